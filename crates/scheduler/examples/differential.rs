//! Random clusters and pods, given to a scheduler in a cluster and to this crate's core: do they agree?
//!
//! ```text
//! cargo run --release -p scheduler --example differential -- --kubeconfig ADMIN --scheduler-name NAME [--cases 2000] [--cells 100] [--seed 1]
//! ```
//!
//! The other scheduler runs in the cluster under the given name, with sampling off (`percentageOfNodesToScore: 100`). Each case is one
//! pod for one cell of nodes. Where the other places it, the core must find it feasible, and best; where the other finds no node, the core must
//! find none. Nodes need no kubelets, but node health must not be looked after meanwhile (a long grace period). Differences are printed one a line;
//! the last line sums up; the exit code is 1 when feasibility ever differed.

#[path = "../tests/support/mod.rs"]
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
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use support::{Cluster, cells};

/// Calls at once.
const IN_FLIGHT: usize = 24;
/// How long removals are given to reach the other scheduler before new pods do.
const SETTLE: Duration = Duration::from_millis(300);
/// How long a round of pods may take to be decided.
const ROUND_WITHIN: Duration = Duration::from_secs(180);

struct Arguments {
    kubeconfig: PathBuf,
    scheduler_name: String,
    cases: usize,
    cells: u32,
    seed: u64,
}

fn arguments() -> Result<Arguments, String> {
    let mut out =
        Arguments { kubeconfig: PathBuf::new(), scheduler_name: String::new(), cases: 2000, cells: 100, seed: 1 };
    let mut rest = std::env::args().skip(1);
    while let Some(flag) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{flag} wants a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{flag}: {value:?} is no number"));
        match flag.as_str() {
            "--kubeconfig" => out.kubeconfig = value.into(),
            "--scheduler-name" => out.scheduler_name = value,
            "--cases" => out.cases = number()? as usize,
            "--cells" => out.cells = number()?.clamp(1, 1000) as u32,
            "--seed" => out.seed = number()?,
            _ => return Err(format!("unknown flag {flag}")),
        }
    }
    if out.kubeconfig.as_os_str().is_empty() || out.scheduler_name.is_empty() {
        return Err("--kubeconfig and --scheduler-name are needed".into());
    }
    Ok(out)
}

fn resource(name: &str) -> Gvr {
    let group = if name == "csinodes" { "storage.k8s.io" } else { "" };
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
}

fn decision(pod: &Object) -> Option<Decision> {
    let body = pod.value().ok()?;
    if let Some(node) = body["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
        return Some(Decision::Placed(node.into()));
    }
    let condition = body["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "PodScheduled")?;
    (condition["status"] == "False" && condition["reason"] == "Unschedulable")
        .then(|| Decision::Refused(condition["message"].as_str().unwrap_or_default().into()))
}

#[derive(Default, Debug)]
struct Tally {
    cases: usize,
    placed: usize,
    refused: usize,
    feasibility_differs: usize,
    scores_compared: usize,
    scores_differ: usize,
}

async fn run(arguments: Arguments) -> Result<Tally, String> {
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
    let drivers = |node: &Value| json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": node["metadata"]["name"]}, "spec": {"drivers": []}});
    create(&client, "csinodes", all.iter().flat_map(|c| &c.nodes).map(drivers).collect()).await?;
    create(&client, "nodes", all.iter().flat_map(|c| c.nodes.clone()).collect()).await?;
    // New nodes get a taint until somebody finds them healthy: the wanted ones are said once more.
    for node in all.iter().flat_map(|c| &c.nodes) {
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        let patch = json!({"spec": {"taints": node["spec"]["taints"]}});
        let api = client.dynamic(resource("nodes"));
        api.patch(name, client::Patch::Merge(patch)).await.map_err(|s| s.to_string())?;
    }
    let informers = Informers::new(client.clone());
    let (pods, nodes) =
        (informers.get_gvr(resource("pods"), "", None, None), informers.get_gvr(resource("nodes"), "", None, None));
    let (spaces, services) = (
        informers.get_gvr(resource("namespaces"), "", None, None),
        informers.get_gvr(resource("services"), "", None, None),
    );
    informers.synced().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut cluster = Cluster::new(&arguments.scheduler_name);
    nodes.list(None).iter().for_each(|o| cluster.node(o));
    spaces.list(None).iter().for_each(|o| cluster.namespace(o));
    services.list(None).iter().for_each(|o| cluster.service(o));
    for object in pods.list(None) {
        if let Some(Decision::Placed(node)) = decision(&object) {
            let pod = cluster.pod(&object);
            cluster.core.snapshot.place(pod, &node);
        }
    }
    let mut tally = Tally::default();
    let mut round = 0;
    while tally.cases < arguments.cases {
        round += 1;
        let name = format!("s{}-r{round}", arguments.seed);
        let cases: HashMap<String, cells::Case> = all
            .iter()
            .map(|c| cells::case(c.number, &name, &arguments.scheduler_name, &mut rng))
            .map(|case| (format!("{}/{name}", case.pod["metadata"]["namespace"].as_str().unwrap_or_default()), case))
            .collect();
        create(&client, "pods", cases.values().map(|c| c.pod.clone()).collect()).await?;
        let decided = decided(&pods, &cases).await?;
        compare(&mut cluster, &cases, &decided, &mut tally);
        // What was removed and what comes next reach a scheduler by different ways.
        tidy(&client, &mut cluster, &decided, &pods, &mut rng).await?;
        tokio::time::sleep(SETTLE).await;
        eprintln!("round {round}: {tally:?}");
    }
    Ok(tally)
}

/// Waits until every pod of a round is decided on.
async fn decided(
    pods: &client::Informer,
    cases: &HashMap<String, cells::Case>,
) -> Result<HashMap<String, (Arc<Object>, Decision)>, String> {
    let begun = Instant::now();
    let mut out: HashMap<String, (Arc<Object>, Decision)> = HashMap::new();
    while out.len() < cases.len() {
        if begun.elapsed() > ROUND_WITHIN {
            let missing: Vec<&String> = cases.keys().filter(|k| !out.contains_key(*k)).take(5).collect();
            return Err(format!("not decided in time: {missing:?}"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        for key in cases.keys() {
            if !out.contains_key(key)
                && let Some(object) = pods.get(key)
                && let Some(decision) = decision(&object)
            {
                out.insert(key.clone(), (object, decision));
            }
        }
    }
    Ok(out)
}

/// Asks the core about each pod as things were before the round, then takes over what was decided.
fn compare(
    cluster: &mut Cluster,
    cases: &HashMap<String, cells::Case>,
    decided: &HashMap<String, (Arc<Object>, Decision)>,
    tally: &mut Tally,
) {
    let mut placed = Vec::new();
    for (key, (object, decision)) in decided {
        let pod = cluster.pod(object);
        let assessment = cluster.core.assess(&pod);
        let name = |id| cluster.core.snapshot.node(id).name.to_string();
        tally.cases += 1;
        match decision {
            Decision::Placed(node) => {
                tally.placed += 1;
                let found = assessment.feasible.iter().find(|l| name(l.id) == *node);
                match found {
                    None => {
                        tally.feasibility_differs += 1;
                        let refused = assessment.refused.iter().find(|r| name(r.0) == *node).map(|r| r.1);
                        println!("FEASIBILITY {key}: placed on {node}, refused here: {refused:?} {}", cases[key].pod);
                    }
                    Some(own) if cases[key].scores_alike => {
                        tally.scores_compared += 1;
                        let best = &assessment.feasible[0];
                        if own.total != best.total {
                            tally.scores_differ += 1;
                            println!(
                                "SCORE {key}: placed on {node} {} {:?}; here {} {} {:?} {}",
                                own.total,
                                own.scores,
                                name(best.id),
                                best.total,
                                best.scores,
                                cases[key].pod
                            );
                        }
                    }
                    Some(_) => {}
                }
                placed.push((pod, node.clone()));
            }
            Decision::Refused(message) => {
                tally.refused += 1;
                if let Some(best) = assessment.feasible.first() {
                    tally.feasibility_differs += 1;
                    println!(
                        "FEASIBILITY {key}: refused ({message}), here {} would do: {}",
                        name(best.id),
                        cases[key].pod
                    );
                }
            }
        }
    }
    for (pod, node) in placed {
        cluster.core.snapshot.place(pod, &node);
    }
}

/// Removes what was refused, and some of what is placed, so that there is room for the next round.
async fn tidy(
    client: &Client,
    cluster: &mut Cluster,
    decided: &HashMap<String, (Arc<Object>, Decision)>,
    pods: &client::Informer,
    rng: &mut SmallRng,
) -> Result<(), String> {
    let mut gone: HashSet<String> =
        decided.iter().filter(|(_, d)| matches!(d.1, Decision::Refused(_))).map(|(key, _)| key.clone()).collect();
    for object in pods.list(None) {
        if rng.random_range(0..12) == 0 && matches!(decision(&object), Some(Decision::Placed(_))) {
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
                if tally.feasibility_differs == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
