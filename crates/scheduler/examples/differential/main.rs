//! Random clusters and pods, given to a scheduler in a cluster and to this crate's core: do they agree?
//!
//! ```text
//! cargo run --release -p scheduler --example differential -- --kubeconfig ADMIN --config FILE [--cases 2000] [--cells 100] [--seed 1] [--priorities 0] [--devices 0]
//! ```
//!
//! The other scheduler runs in the cluster with the same configuration file, with sampling off (`percentageOfNodesToScore: 100`); each pod is for
//! one of the file's profiles. Each case is one pod for one cell of nodes. Where the other places it, the core must find it feasible, and best; where
//! the other finds no node, the core must find none. Volumes of classes that make them are made here. Nodes need no kubelets, but node health must
//! not be looked after meanwhile (a long grace period), and claims have to be bound. With several priorities, pods make room for
//! each other, some of them under disruption budgets, and both must agree on where, and who has to go. With devices, so many of a hundred pods claim
//! some (the API server then looks after claims), and what a claim gets must be the same to the letter. Differences are printed one a line; the last
//! line sums up; the exit code is 1 when feasibility, or what is given, ever differed.

mod gear;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Client, DeleteOptions, Gvr, Informers};
use futures::StreamExt;
use meta::Object;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use scheduler::config;
use scheduler::pod::Pod;
use scheduler::symbol::Symbol;
use scheduler::verdict::WhyNot;
use serde_json::{Value, json};
use support::{Cluster, cells, disks, hardware};

/// Calls at once.
const IN_FLIGHT: usize = 24;
/// How long removals are given to reach the other scheduler before new pods do.
const SETTLE: Duration = Duration::from_millis(300);
/// How long a round of pods may take to be decided.
const ROUND_WITHIN: Duration = Duration::from_secs(180);

struct Arguments {
    kubeconfig: PathBuf,
    config: PathBuf,
    cases: usize,
    cells: u32,
    seed: u64,
    priorities: u64,
    devices: u32,
}

fn arguments() -> Result<Arguments, String> {
    let mut out = Arguments {
        kubeconfig: PathBuf::new(),
        config: PathBuf::new(),
        cases: 2000,
        cells: 100,
        seed: 1,
        priorities: 0,
        devices: 0,
    };
    let mut rest = std::env::args().skip(1);
    while let Some(flag) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{flag} wants a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{flag}: {value:?} is no number"));
        match flag.as_str() {
            "--kubeconfig" => out.kubeconfig = value.into(),
            "--config" => out.config = value.into(),
            "--cases" => out.cases = number()? as usize,
            "--cells" => out.cells = number()?.clamp(1, 1000) as u32,
            "--seed" => out.seed = number()?,
            "--priorities" => out.priorities = number()?,
            "--devices" => out.devices = number()?.min(100) as u32,
            _ => return Err(format!("unknown flag {flag}")),
        }
    }
    if out.kubeconfig.as_os_str().is_empty() || out.config.as_os_str().is_empty() {
        return Err("--kubeconfig and --config are needed".into());
    }
    Ok(out)
}

fn resource(name: &str) -> Gvr {
    let group = match name {
        "csinodes" | "storageclasses" => "storage.k8s.io",
        "priorityclasses" => "scheduling.k8s.io",
        "poddisruptionbudgets" => "policy",
        "resourceclaims" | "resourceclaimtemplates" | "resourceslices" | "deviceclasses" => "resource.k8s.io",
        _ => "",
    };
    Gvr::new(group, "v1", name)
}

/// Creates objects, many at once; those there already stay.
async fn create(client: &Client, kind: &str, bodies: Vec<Value>) -> Result<(), String> {
    let made = futures::stream::iter(bodies.into_iter().map(|body| async move {
        let namespace = body["metadata"]["namespace"].as_str().unwrap_or_default();
        let api = client.dynamic(resource(kind)).namespaced(namespace);
        for attempt in 0.. {
            match api.create(body.clone()).await {
                Err(status) if status.is_already_exists() => break,
                // A namespace's service account may take a moment.
                Err(_) if attempt < 40 => tokio::time::sleep(Duration::from_millis(250)).await,
                Err(status) => return Err(format!("{kind} {}: {status}", body["metadata"]["name"])),
                Ok(_) => break,
            }
        }
        Ok(())
    }))
    .buffer_unordered(IN_FLIGHT)
    .collect::<Vec<_>>()
    .await;
    made.into_iter().collect()
}

/// How the other scheduler decided.
enum Decision {
    Placed(String),
    Refused(String),
    /// Room is made for it there.
    Nominated(String),
    /// Something went wrong.
    Faulted(String),
}

fn decision(pod: &Object) -> Option<Decision> {
    let body = pod.value().ok()?;
    if let Some(node) = body["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
        return Some(Decision::Placed(node.into()));
    }
    let condition = body["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "PodScheduled")?;
    let message = condition["message"].as_str().unwrap_or_default().to_string();
    match condition["reason"].as_str().filter(|_| condition["status"] == "False")? {
        // It had a node, and what it knew of a claim was not the newest: it tries again.
        "SchedulerError"
            if ["Reserve", "PreBind"].iter().any(|p| message.starts_with(&format!("running {p} plugin"))) =>
        {
            None
        }
        "SchedulerError" => Some(Decision::Faulted(message)),
        "Unschedulable" => Some(match body["status"]["nominatedNodeName"].as_str().filter(|n| !n.is_empty()) {
            Some(node) => Decision::Nominated(node.into()),
            None => Decision::Refused(message),
        }),
        _ => None,
    }
}

/// The profiles of the configuration that the other scheduler has too. Room for volumes does not count with it.
fn profiles(file: &std::path::Path) -> Result<Vec<scheduler::profile::ProfileRef>, String> {
    let text = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let (raw, _) = meta::yaml::read(&text)?;
    let gates = config::Gates { capacity_scoring: false, ..config::Gates::default() };
    Ok(config::read(&raw, gates).map_err(|e| e.to_string())?.profiles)
}

/// What pods' claims come to.
struct Store {
    client: Client,
    claims: Arc<client::Informer>,
    volumes: Arc<client::Informer>,
}

impl Store {
    /// Makes claims and volumes, and waits until those are bound that name each other.
    async fn fill(&self, all: impl Iterator<Item = &disks::Disks>) -> Result<(), String> {
        let (mut volumes, mut claims) = (Vec::new(), Vec::new());
        for disks in all {
            volumes.extend(disks.volumes.iter().cloned());
            claims.extend(disks.claims.iter().cloned());
        }
        // Whoever binds claims says so himself.
        claims.iter_mut().for_each(|c| drop(c["metadata"].as_object_mut().and_then(|m| m.remove("annotations"))));
        let key = |body: &Value| {
            let text = |name: &str| body["metadata"][name].as_str().unwrap_or_default().to_string();
            meta::object::object_key(&text("namespace"), &text("name"))
        };
        let wanted: Vec<String> = claims.iter().map(key).collect();
        let offered: Vec<String> = volumes.iter().map(key).collect();
        create(&self.client, "persistentvolumes", volumes).await?;
        create(&self.client, "persistentvolumeclaims", claims).await?;
        let settled = || {
            let body = |informer: &client::Informer, key: &str| informer.get(key)?.value().ok();
            let bound = |key: &String| {
                body(&self.claims, key).is_some_and(|c| {
                    c["spec"]["volumeName"].is_null() || c["metadata"]["annotations"][disks::BOUND].is_string()
                })
            };
            let looked_at = |key: &String| {
                body(&self.volumes, key)
                    .is_some_and(|v| matches!(v["status"]["phase"].as_str(), Some("Available" | "Bound")))
            };
            wanted.iter().all(bound) && offered.iter().all(looked_at)
        };
        let begun = Instant::now();
        while !settled() {
            if begun.elapsed() > ROUND_WITHIN {
                return Err("claims are not bound in time".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// What the core is to know.
    fn show(&self, cluster: &mut Cluster) {
        self.volumes.list(None).into_iter().chain(self.claims.list(None)).for_each(|o| cluster.storage(o));
    }

    /// Makes the volumes that are asked for on a node.
    async fn provision(&self, case: &cells::Case) -> Result<(), String> {
        for body in &case.disks.claims {
            let text = |name: &str| body["metadata"][name].as_str().unwrap_or_default().to_string();
            let Some(claim) = self.claims.get(&format!("{}/{}", text("namespace"), text("name"))) else { continue };
            let Ok(now) = claim.value() else { continue };
            let asked = now["metadata"]["annotations"][scheduler::storage::SELECTED_NODE].is_string();
            if !asked || now["spec"]["volumeName"].is_string() {
                continue;
            }
            let name = format!("pvc-{}", claim.meta.uid);
            let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume",
                "metadata": {"name": &name, "annotations": {"pv.kubernetes.io/provisioned-by": disks::DRIVER}},
                "spec": {"storageClassName": now["spec"]["storageClassName"], "accessModes": now["spec"]["accessModes"],
                         "capacity": now["spec"]["resources"]["requests"], "persistentVolumeReclaimPolicy": "Retain",
                         "csi": {"driver": disks::DRIVER, "volumeHandle": &name},
                         "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": text("namespace"), "name": text("name"), "uid": &*claim.meta.uid}}});
            create(&self.client, "persistentvolumes", vec![volume]).await?;
        }
        Ok(())
    }
}

#[derive(Default, Debug)]
struct Tally {
    cases: usize,
    placed: usize,
    refused: usize,
    feasibility_differs: usize,
    scores_compared: usize,
    scores_differ: usize,
    preempted: usize,
    preemption_differs: usize,
    faulted: usize,
    let_go: usize,
    gifts_compared: usize,
    gifts_differ: usize,
    words_compared: usize,
    words_differ: usize,
}

async fn run(arguments: Arguments) -> Result<Tally, String> {
    let profiles = profiles(&arguments.config)?;
    let names: Vec<String> = profiles.iter().map(|p| p.scheduler_name.to_string()).collect();
    let client = Client::from_kubeconfig(&arguments.kubeconfig, "differential").await.map_err(|s| s.to_string())?;
    let mut rng = SmallRng::seed_from_u64(arguments.seed);
    let all: Vec<cells::Cell> = (0..arguments.cells).map(|n| cells::cell(n, &mut rng)).collect();
    let mut namespaces = Vec::new();
    let mut accounts = Vec::new();
    for cell in &all {
        for namespace in cells::namespaces(cell.number) {
            let name = namespace["metadata"]["name"].clone();
            accounts.push(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}));
            namespaces.push(namespace);
        }
    }
    create(&client, "namespaces", namespaces).await?;
    create(&client, "serviceaccounts", accounts).await?;
    create(&client, "services", all.iter().map(|c| cells::service(c.number)).collect()).await?;
    // Old releases trip over disks named in pods on nodes whose drivers nobody tells of.
    let drivers: Vec<Value> = all.iter().flat_map(|c| &c.nodes).map(|node| disks::csi_node(node, &mut rng)).collect();
    create(&client, "csinodes", drivers).await?;
    create(&client, "storageclasses", all.iter().flat_map(|c| disks::classes(c.number)).collect()).await?;
    create(&client, "nodes", all.iter().flat_map(|c| c.nodes.clone()).collect()).await?;
    // New nodes get a taint until somebody finds them healthy: the wanted ones are said once more.
    for node in all.iter().flat_map(|c| &c.nodes) {
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        let patch = json!({"spec": {"taints": node["spec"]["taints"]}});
        let api = client.dynamic(resource("nodes"));
        api.patch(name, client::Patch::Merge(patch)).await.map_err(|s| s.to_string())?;
    }
    if arguments.priorities > 0 {
        let class = |n| json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": format!("p{n}")}, "value": 10 * n});
        create(&client, "priorityclasses", (0..arguments.priorities).map(class).collect()).await?;
        let budget = |cell: &cells::Cell| {
            json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b", "namespace": format!("cell-{}-x", cell.number)},
            "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "a"}}}})
        };
        create(&client, "poddisruptionbudgets", all.iter().map(budget).collect()).await?;
    }
    let informers = Informers::new(client.clone());
    let (pods, nodes) =
        (informers.get_gvr(resource("pods"), "", None, None), informers.get_gvr(resource("nodes"), "", None, None));
    let (spaces, services) = (
        informers.get_gvr(resource("namespaces"), "", None, None),
        informers.get_gvr(resource("services"), "", None, None),
    );
    let budgets = informers.get_gvr(resource("poddisruptionbudgets"), "", None, None);
    let (drivers, classes) = (
        informers.get_gvr(resource("csinodes"), "", None, None),
        informers.get_gvr(resource("storageclasses"), "", None, None),
    );
    let store = Store {
        claims: informers.get_gvr(resource("persistentvolumeclaims"), "", None, None),
        volumes: informers.get_gvr(resource("persistentvolumes"), "", None, None),
        client: client.clone(),
    };
    informers.synced().await;
    let gear = match arguments.devices {
        0 => None,
        _ => Some(gear::Gear::new(&client, &informers, &all, &mut rng).await?),
    };
    store.fill(all.iter().map(|c| disks::shared(c.number)).collect::<Vec<_>>().iter()).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut cluster = Cluster::of(profiles);
    drivers.list(None).into_iter().chain(classes.list(None)).for_each(|o| cluster.storage(o));
    if let Some(gear) = &gear {
        gear.begin(&mut cluster);
    }
    let mut known = HashSet::new();
    nodes.list(None).iter().for_each(|o| cluster.node(o));
    spaces.list(None).iter().for_each(|o| cluster.namespace(o));
    services.list(None).iter().for_each(|o| cluster.service(o));
    for object in pods.list(None) {
        if let Some(Decision::Placed(node)) = decision(&object) {
            let pod = cluster.pod(&object);
            cluster.core.snapshot.place(pod, &node);
        }
    }
    for object in budgets.list(None) {
        cluster.core.budgets.take(&client::Change { key: object.meta.key().into(), old: None, new: Some(object) });
    }
    let mut tally = Tally::default();
    let mut round = 0;
    let mut started = 0;
    while tally.cases < arguments.cases {
        round += 1;
        let name = format!("s{}-r{round}", arguments.seed);
        let drawn: Vec<cells::Case> = all
            .iter()
            .map(|c| cells::case(c, &name, names.choose(&mut rng).map_or("", String::as_str), &mut rng))
            .collect();
        let cases: HashMap<String, cells::Case> = drawn
            .into_iter()
            .map(|mut case| {
                if arguments.priorities > 0 {
                    let class = format!("p{}", rng.random_range(0..arguments.priorities));
                    case.pod["spec"]["priorityClassName"] = class.into();
                }
                if rng.random_range(0..100) < arguments.devices
                    && let Some(cell) = all.iter().find(|c| c.number == case.cell)
                {
                    case.hardware = hardware::give(cell, &mut case.pod, &mut rng);
                }
                case
            })
            .map(|case| (format!("{}/{name}", case.pod["metadata"]["namespace"].as_str().unwrap_or_default()), case))
            .collect();
        store.fill(cases.values().map(|c| &c.disks)).await?;
        if let Some(gear) = &gear {
            gear.fill(cases.values().map(|c| &c.hardware)).await?;
        }
        tokio::time::sleep(SETTLE).await;
        // Those to whom other cells matter come one by one, after the rest.
        let (apart, together): (Vec<_>, Vec<_>) = cases.into_iter().partition(|(_, case)| case.looks_beyond);
        let mut refused = HashSet::new();
        for group in std::iter::once(together).chain(apart.into_iter().map(|case| vec![case])) {
            let cases: HashMap<String, cells::Case> = group.into_iter().collect();
            store.show(&mut cluster);
            if let Some(gear) = &gear {
                gear.show(&mut cluster, &mut known);
            }
            create(&client, "pods", cases.values().map(|c| c.pod.clone()).collect()).await?;
            let decided = decided(&pods, &cases, &store).await?;
            let mut gifts = HashMap::new();
            if let Some(gear) = &gear {
                gear.show_new(&mut cluster, &mut known);
                for (key, (object, decision)) in &decided {
                    if matches!(decision, Decision::Placed(_)) {
                        gifts.insert(key.clone(), gear.given(object, &cluster.pod(object)).await?);
                    }
                }
            }
            let world = World { cases: &cases, decided: &decided, pods: &pods, gear: gear.as_ref(), gifts };
            for (key, node) in compare(&mut cluster, &world, &mut tally) {
                let node = match node {
                    Some(node) => node,
                    None => placed_at_last(&pods, &key, &cases[&key], &store).await?,
                };
                started += 1;
                let object = match arguments.priorities {
                    0 => decided[&key].0.clone(),
                    _ => begin(&client, &key, started).await?,
                };
                let pod = cluster.pod(&object);
                cluster.core.snapshot.place(pod, &node);
            }
            refused.extend(
                decided
                    .into_iter()
                    .filter(|(_, d)| matches!(d.1, Decision::Refused(_) | Decision::Faulted(_)))
                    .map(|(key, _)| key),
            );
        }
        // What was removed and what comes next reach a scheduler by different ways.
        // Where room is to be made there must be little.
        let one_in = if arguments.priorities > 0 { 60 } else { 12 };
        tidy(&client, &mut cluster, refused, &pods, one_in, &mut rng).await?;
        if let Some(gear) = &gear {
            gear.settled(&pods).await?;
        }
        tokio::time::sleep(SETTLE).await;
        eprintln!("round {round}: {tally:?}");
    }
    Ok(tally)
}

/// Waits until every pod of a round is decided on.
async fn decided(
    pods: &client::Informer,
    cases: &HashMap<String, cells::Case>,
    store: &Store,
) -> Result<HashMap<String, (Arc<Object>, Decision)>, String> {
    let begun = Instant::now();
    let mut out: HashMap<String, (Arc<Object>, Decision)> = HashMap::new();
    while out.len() < cases.len() {
        if begun.elapsed() > ROUND_WITHIN {
            let missing: Vec<&String> = cases.keys().filter(|k| !out.contains_key(*k)).take(5).collect();
            return Err(format!("not decided in time: {missing:?}"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        for (key, case) in cases {
            if out.contains_key(key) {
                continue;
            }
            store.provision(case).await?;
            if let Some(object) = pods.get(key)
                && let Some(decision) = decision(&object)
            {
                out.insert(key.clone(), (object, decision));
            }
        }
    }
    Ok(out)
}

/// A round's pods, and what the other scheduler made of them.
struct World<'a> {
    cases: &'a HashMap<String, cells::Case>,
    decided: &'a HashMap<String, (Arc<Object>, Decision)>,
    pods: &'a client::Informer,
    gear: Option<&'a gear::Gear>,
    gifts: HashMap<String, gear::Given>,
}

/// A pod as it was before anything was found for it.
fn fresh(object: &Arc<Object>) -> Arc<Object> {
    let Ok(mut body) = object.value() else { return object.clone() };
    if let Some(status) = body["status"].as_object_mut() {
        status.remove("extendedResourceClaimStatus");
    }
    Object::from_value(&body).map_or_else(|_| object.clone(), Arc::new)
}

/// Asks the core about each pod as things were before the round, and takes away who had to go. Answers who was placed, and where if
/// that is known yet.
fn compare(cluster: &mut Cluster, world: &World<'_>, tally: &mut Tally) -> Vec<(String, Option<String>)> {
    let mut placed = Vec::new();
    let mut gone = Vec::new();
    for (key, (object, decision)) in world.decided {
        let shown = &world.cases[key].pod;
        let pod = cluster.pod(&fresh(object));
        let mut assessment = cluster.core.assess(&pod);
        if let (Some(gear), Some(claim)) = (world.gear, &assessment.to_let_go) {
            // Another attempt follows at once, and it may be that which is seen.
            tally.let_go += 1;
            if !matches!(decision, Decision::Refused(_)) {
                gear.show_empty(cluster, claim);
                assessment = cluster.core.assess(&pod);
            }
        }
        let name = |id| cluster.core.snapshot.node(id).name.to_string();
        tally.cases += 1;
        match decision {
            Decision::Placed(node) => {
                tally.placed += 1;
                let found = assessment.feasible.iter().find(|l| name(l.id) == *node);
                match found {
                    _ if assessment.fault.is_some() => {
                        tally.feasibility_differs += 1;
                        println!("FEASIBILITY {key}: placed on {node}, here {:?} {shown}", assessment.fault);
                    }
                    None => {
                        tally.feasibility_differs += 1;
                        let refused = assessment.refused.iter().find(|r| name(r.0) == *node).map(|r| r.1);
                        println!(
                            "FEASIBILITY {key}: placed on {node}, refused here: {refused:?} {:?} {shown}",
                            assessment.pod
                        );
                    }
                    Some(own) => {
                        tally.scores_compared += 1;
                        let best = &assessment.feasible[0];
                        if own.total != best.total {
                            tally.scores_differ += 1;
                            let (total, scores, here) = (own.total, &own.scores, name(best.id));
                            println!(
                                "SCORE {key}: placed on {node} {total} {scores:?}; here {here} {} {:?} {shown}",
                                best.total, best.scores
                            );
                        }
                    }
                }
                if let (Some(gear), Some(given), Some(_)) =
                    (world.gear, world.gifts.get(key).filter(|g| !g.is_empty()), found)
                {
                    tally.gifts_compared += 1;
                    let own = gear.would_give(cluster, &pod, node);
                    if own.as_ref() != Ok(given) {
                        tally.gifts_differ += 1;
                        println!(
                            "GIFT {key}: {given:?} on {node}, here {own:?} {shown} {:?}",
                            world.cases[key].hardware.claims
                        );
                    }
                }
                placed.push((key.clone(), Some(node.clone())));
            }
            Decision::Nominated(node) => {
                tally.preempted += 1;
                let snapshot = &cluster.core.snapshot;
                let there = snapshot.node_id(Symbol::of(node)).into_iter().flat_map(|id| snapshot.pods_on(id));
                let mut theirs: Vec<String> =
                    there.map(|(_, p)| p.key.to_string()).filter(|k| world.pods.get(k).is_none()).collect();
                theirs.sort();
                let own =
                    assessment.why_not(&pod, cluster.core.snapshot.present()).map(|why| room(cluster, &pod, &why));
                if own != Some(Ok((node.clone(), theirs.clone()))) {
                    tally.preemption_differs += 1;
                    println!("PREEMPTION {key}: on {node} by {theirs:?}, here {own:?} {shown}");
                }
                gone.extend(theirs);
                placed.push((key.clone(), None));
            }
            Decision::Faulted(message) => {
                tally.faulted += 1;
                // Which node's fault is told is chance.
                let of_any = |text: &str| {
                    text.split([' ', '/'])
                        .filter(|w| !w.contains("cell-") && !w.contains(".example.com") && !w.starts_with('d'))
                        .collect::<String>()
                };
                if assessment.fault.as_deref().map(of_any) != Some(of_any(message)) {
                    let differs = if assessment.fault.is_some() {
                        &mut tally.words_differ
                    } else {
                        &mut tally.feasibility_differs
                    };
                    *differs += 1;
                    println!(
                        "FAULT {key}: {message}; here {:?} {shown} {:?}",
                        assessment.fault, world.cases[key].hardware.claims
                    );
                }
            }
            Decision::Refused(message) => {
                tally.refused += 1;
                if let Some(best) = assessment.feasible.first() {
                    tally.feasibility_differs += 1;
                    println!(
                        "FEASIBILITY {key}: refused ({message}), here {} would do: {shown} {:?}",
                        name(best.id),
                        world.cases[key].hardware.claims
                    );
                    continue;
                }
                if assessment.fault.is_some() {
                    tally.feasibility_differs += 1;
                    println!("FEASIBILITY {key}: refused ({message}), here {:?} {shown}", assessment.fault);
                    continue;
                }
                let Some(mut why) = assessment.why_not(&pod, cluster.core.snapshot.present()) else { continue };
                match room(cluster, &pod, &why) {
                    Ok(plan) => {
                        tally.preemption_differs += 1;
                        println!("PREEMPTION {key}: refused ({message}), here {plan:?} {shown}");
                    }
                    Err(said) => {
                        why.preemption = said;
                        tally.words_compared += 1;
                        why.tell_of_devices(&pod);
                        if *message != why.to_string() {
                            tally.words_differ += 1;
                            println!("WORDS {key}:\n  {message}\n  {why}");
                        }
                    }
                }
            }
        }
    }
    gone.iter().for_each(|key| drop(cluster.core.snapshot.remove(key)));
    placed
}

/// Where the core would make room for a pod, and by whose removal.
fn room(cluster: &mut Cluster, pod: &Pod, why: &WhyNot) -> Result<(String, Vec<String>), String> {
    let plan = cluster.core.preempt(pod, why, &mut SmallRng::seed_from_u64(1))?;
    let mut victims: Vec<String> = plan.victims.iter().map(|v| v.key.to_string()).collect();
    victims.sort();
    Ok((cluster.core.snapshot.node(plan.node).name.to_string(), victims))
}

/// Where a pod went once room was made for it.
async fn placed_at_last(
    pods: &client::Informer,
    key: &str,
    case: &cells::Case,
    store: &Store,
) -> Result<String, String> {
    let begun = Instant::now();
    while begun.elapsed() < ROUND_WITHIN {
        if let Some(Decision::Placed(node)) = pods.get(key).and_then(|o| decision(&o)) {
            return Ok(node);
        }
        store.provision(case).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(format!("{key} was not placed in the room made for it"))
}

/// Says when a pod started: each at a time of its own, since who started last goes first.
async fn begin(client: &Client, key: &str, second: i64) -> Result<Arc<Object>, String> {
    let (namespace, name) = meta::object::split_key(key);
    let at = jiff::Timestamp::from_second(1_700_000_000 + second).map_err(|e| e.to_string())?;
    let patch = client::Patch::Merge(json!({"status": {"startTime": at.to_string()}}));
    let api = client.dynamic(resource("pods")).namespaced(namespace);
    api.patch_subresource(name, "status", patch).await.map_err(|s| s.to_string())
}

/// Removes what was refused, and some of what is placed, so that there is room for the next round.
async fn tidy(
    client: &Client,
    cluster: &mut Cluster,
    refused: HashSet<String>,
    pods: &client::Informer,
    one_in: u32,
    rng: &mut SmallRng,
) -> Result<(), String> {
    let mut gone = refused;
    for object in pods.list(None) {
        if rng.random_range(0..one_in) == 0 && matches!(decision(&object), Some(Decision::Placed(_))) {
            gone.insert(object.meta.key());
        }
    }
    let removed = futures::stream::iter(gone.iter().map(|key| async move {
        let (namespace, name) = meta::object::split_key(key);
        let api = client.dynamic(resource("pods")).namespaced(namespace);
        match api.delete(name, &DeleteOptions::default().grace(0)).await {
            Err(status) if !status.is_not_found() => Err(status.to_string()),
            _ => Ok(()),
        }
    }))
    .buffer_unordered(IN_FLIGHT)
    .collect::<Vec<_>>()
    .await;
    removed.into_iter().collect::<Result<(), _>>()?;
    for key in &gone {
        cluster.core.snapshot.remove(key);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let _ = rustls_provider();
    match arguments() {
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(2)
        }
        Ok(arguments) => match run(arguments).await {
            Ok(tally) => {
                println!("{tally:?}");
                if tally.feasibility_differs + tally.gifts_differ == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Err(why) => {
                eprintln!("{why}");
                ExitCode::from(2)
            }
        },
    }
}

fn rustls_provider() -> Result<(), ()> {
    rustls::crypto::ring::default_provider().install_default().map_err(drop)
}
