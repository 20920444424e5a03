//! What must hold whatever the cluster and the pods: checked on random ones, against rules told anew from the objects
//! themselves, as simply as can be.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use scheduler::plugins::volume_binding::Step;
use scheduler::pod::Pod;
use serde_json::{Value, json};
use support::{Cluster, cells, disks, object};

const SEEDS: u64 = 150;
const PODS: usize = 30;

/// A cell with pods on it, as objects, beside the core that is asked.
struct World {
    cell: cells::Cell,
    cluster: Cluster,
    /// Claims and volumes by name, and how many volumes a node's driver attaches.
    claims: BTreeMap<String, Value>,
    volumes: BTreeMap<String, Value>,
    attachable: BTreeMap<String, i64>,
    nodes: BTreeMap<String, Value>,
    placed: Vec<(Value, String)>,
}

fn world(seed: u64) -> (World, SmallRng) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let cell = cells::cell(1, &mut rng);
    let mut cluster = Cluster::new("s");
    cells::namespaces(1).into_iter().for_each(|n| cluster.namespace(&object(n)));
    cluster.service(&object(cells::service(1)));
    disks::classes(1).into_iter().for_each(|class| cluster.storage(Arc::new(object(class))));
    let (mut nodes, mut attachable) = (BTreeMap::new(), BTreeMap::new());
    for node in &cell.nodes {
        cluster.node(&object(node.clone()));
        let name = node["metadata"]["name"].as_str().unwrap().to_string();
        let drivers = disks::csi_node(node, &mut rng);
        if let Some(count) = drivers["spec"]["drivers"][0]["allocatable"]["count"].as_i64() {
            attachable.insert(name.clone(), count);
        }
        cluster.storage(Arc::new(object(drivers)));
        nodes.insert(name, node.clone());
    }
    let (claims, volumes) = (BTreeMap::new(), BTreeMap::new());
    let mut world = World { cell, cluster, claims, volumes, attachable, nodes, placed: Vec::new() };
    world.fill(&disks::shared(1));
    (world, rng)
}

/// The claims a pod uses, by key.
fn claims_of(pod: &Value) -> impl Iterator<Item = String> + '_ {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap();
    let named = pod["spec"]["volumes"].as_array().into_iter().flatten();
    named.filter_map(move |v| Some(format!("{namespace}/{}", v["persistentVolumeClaim"]["claimName"].as_str()?)))
}

fn quantity(value: &Value) -> i64 {
    value.as_str().map_or(0, |t| t.parse::<meta::quantity::Quantity>().unwrap().milli_value())
}

/// What a pod asks for of a resource, in thousandths.
fn asks(pod: &Value, resource: &str) -> i64 {
    let of = |list: &Value| {
        list.as_array()
            .into_iter()
            .flatten()
            .map(|c| quantity(&c["resources"]["requests"][resource]))
            .collect::<Vec<_>>()
    };
    let running: i64 = of(&pod["spec"]["containers"]).iter().sum();
    of(&pod["spec"]["initContainers"]).into_iter().max().unwrap_or(0).max(running)
}

fn ports(pod: &Value) -> Vec<(i64, String, String)> {
    let containers = pod["spec"]["containers"].as_array().unwrap();
    let ports = containers.iter().flat_map(|c| c["ports"].as_array().into_iter().flatten());
    ports
        .map(|p| {
            (
                p["hostPort"].as_i64().unwrap(),
                p["protocol"].to_string(),
                p["hostIP"].as_str().unwrap_or_default().to_string(),
            )
        })
        .collect()
}

fn matches(selector: &Value, labels: &Value) -> bool {
    let equal = selector["matchLabels"].as_object().into_iter().flatten().all(|(k, v)| labels[k] == *v);
    equal
        && selector["matchExpressions"].as_array().into_iter().flatten().all(|e| {
            let value = &labels[e["key"].as_str().unwrap()];
            let among = || e["values"].as_array().unwrap().contains(value);
            match e["operator"].as_str().unwrap() {
                "In" => !value.is_null() && among(),
                "NotIn" => value.is_null() || !among(),
                "Exists" => !value.is_null(),
                _ => value.is_null(),
            }
        })
}

impl World {
    fn fill(&mut self, disks: &disks::Disks) {
        for volume in &disks.volumes {
            self.set_volume(volume.clone());
        }
        for claim in &disks.claims {
            self.set_claim(claim.clone());
        }
    }

    fn set_volume(&mut self, volume: Value) {
        self.cluster.storage(Arc::new(object(volume.clone())));
        self.volumes.insert(volume["metadata"]["name"].as_str().unwrap().into(), volume);
    }

    fn set_claim(&mut self, claim: Value) {
        let object = object(claim.clone());
        let key = object.meta.key();
        self.cluster.storage(Arc::new(object));
        self.claims.insert(key, claim);
    }

    /// Does what is to be done about a pod's claims once it has a node.
    fn bind(&mut self, steps: Vec<Step>) {
        for step in steps {
            let (claim, volume) = match step {
                Step::Bind { volume, claim, .. } => (claim, volume.to_string()),
                Step::Provision { claim } => (claim.clone(), format!("made-{claim}")),
            };
            let mut claim = self.claims[&*claim].clone();
            claim["spec"]["volumeName"] = volume.as_str().into();
            claim["metadata"]["annotations"] = json!({disks::BOUND: "yes"});
            let fresh = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": &volume},
                "spec": {"csi": {"driver": disks::DRIVER, "volumeHandle": &volume}}});
            let mut body = self.volumes.get(&volume).cloned().unwrap_or(fresh);
            assert!(body["spec"]["claimRef"].is_null(), "{volume} is given twice");
            body["spec"]["claimRef"] =
                json!({"namespace": claim["metadata"]["namespace"], "name": claim["metadata"]["name"]});
            self.set_volume(body);
            self.set_claim(claim);
        }
    }

    /// Volumes are reached from the nodes of their pods, drivers attach no more than they can, and claims for one pod have one.
    fn check_disks(&self) {
        for name in self.nodes.keys() {
            let mut attached = std::collections::BTreeSet::new();
            for claim in self.on(name).flat_map(claims_of) {
                let volume = self.claims[&claim]["spec"]["volumeName"].as_str().unwrap();
                assert!(self.reaches(name, &self.volumes[volume]), "{volume} is not reached from {name}");
                if self.volumes[volume]["spec"]["csi"].is_object() {
                    attached.insert(volume);
                }
            }
            assert!(
                self.attachable.get(name).is_none_or(|most| attached.len() as i64 <= *most),
                "{name}: {attached:?}"
            );
        }
        for alone in self.claims.iter().filter(|(_, c)| c["spec"]["accessModes"][0] == "ReadWriteOncePod") {
            let users = self.placed.iter().filter(|(p, _)| claims_of(p).any(|c| c == *alone.0)).count();
            assert!(users <= 1, "{} has {users} users", alone.0);
        }
    }

    fn reaches(&self, node: &str, volume: &Value) -> bool {
        let labels = &self.nodes[node]["metadata"]["labels"];
        let terms = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"].as_array();
        let by_terms = terms.is_none_or(|t| t.iter().any(|t| matches(t, labels)));
        let zone = &labels["topology.kubernetes.io/zone"];
        let zones = volume["metadata"]["labels"]["topology.kubernetes.io/zone"].as_str();
        by_terms && zones.is_none_or(|zones| zone.is_null() || zones.split("__").any(|z| z == *zone))
    }

    fn on(&self, node: &str) -> impl Iterator<Item = &Value> {
        self.placed.iter().filter(move |(_, n)| n == node).map(|(p, _)| p)
    }

    /// Nodes are never overfull, ports never twice taken.
    fn check_capacity(&self) {
        for (name, node) in &self.nodes {
            let has = &node["status"]["allocatable"];
            for resource in ["cpu", "memory", "ephemeral-storage", "example.com/gpu", "hugepages-2Mi"] {
                let used: i64 = self.on(name).map(|p| asks(p, resource)).sum();
                assert!(used <= quantity(&has[resource]), "{name}: {resource} {used}");
            }
            assert!(self.on(name).count() as i64 * 1000 <= quantity(&has["pods"]), "{name}: too many pods");
            let all: Vec<_> = self.on(name).flat_map(ports).collect();
            for (at, a) in all.iter().enumerate() {
                let conflict = all[..at]
                    .iter()
                    .any(|b| a.0 == b.0 && a.1 == b.1 && (a.2 == b.2 || a.2.is_empty() || b.2.is_empty()));
                // Of one pod's containers, two may ask for the same: that is the pod's own affair.
                assert!(!conflict || self.on(name).any(|p| ports(p).len() > 1), "{name}: {a:?} twice");
            }
        }
    }

    /// No hard rule of the pod's own is violated on the node, as things were when it came.
    fn check_rules(&self, pod: &Value, node: &str) {
        let (spec, labels) = (&pod["spec"], &self.nodes[node]["metadata"]["labels"]);
        for (key, value) in spec["nodeSelector"].as_object().unwrap() {
            assert_eq!(labels[key], *value, "nodeSelector");
        }
        let tolerated = |taint: &Value| {
            spec["tolerations"].as_array().into_iter().flatten().any(|t| {
                (t["effect"].is_null() || t["effect"] == taint["effect"])
                    && (t["key"].is_null() || t["key"] == taint["key"])
                    && (t["operator"] == "Exists" || t["value"] == taint["value"])
            })
        };
        for taint in self.nodes[node]["spec"]["taints"].as_array().unwrap() {
            assert!(taint["effect"] == "PreferNoSchedule" || tolerated(taint), "taint {taint}");
        }
        let domain = |node: &str, key: &str| self.nodes[node]["metadata"]["labels"][key].clone();
        let terms = spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"].as_array();
        for term in terms.into_iter().flatten() {
            let key = term["topologyKey"].as_str().unwrap();
            let own = domain(node, key);
            let within = |other: &Value| {
                let namespace = &other["metadata"]["namespace"];
                match (term["namespaces"].as_array(), term["namespaceSelector"].as_object()) {
                    (Some(names), _) => names.contains(namespace),
                    (None, Some(labels)) if labels.is_empty() => true,
                    (None, Some(labels)) => {
                        let team = if namespace == "cell-1-x" { "red" } else { "blue" };
                        labels["matchLabels"]["team"] == team
                    }
                    (None, None) => *namespace == pod["metadata"]["namespace"],
                }
            };
            let near = self.placed.iter().any(|(other, at)| {
                !own.is_null()
                    && domain(at, key) == own
                    && within(other)
                    && matches(&term["labelSelector"], &other["metadata"]["labels"])
            });
            assert!(!near, "anti-affinity {term}");
        }
        for constraint in spec["topologySpreadConstraints"].as_array().into_iter().flatten() {
            if constraint["whenUnsatisfiable"] == "DoNotSchedule" {
                let key = constraint["topologyKey"].as_str().unwrap();
                assert!(!domain(node, key).is_null(), "spread over {key}");
            }
        }
    }
}

#[test]
fn no_node_is_overfull_and_no_hard_rule_violated() {
    let (mut placed, mut refused) = (0, 0);
    for seed in 0..SEEDS {
        let (mut w, mut rng) = world(seed);
        for n in 0..PODS {
            let case = cells::case(&w.cell, &format!("p{n}"), "s", &mut rng);
            w.fill(&case.disks);
            let pod = w.cluster.pod(&object(case.pod.clone()));
            let assessment = w.cluster.core.assess(&pod);
            match w.cluster.core.schedule(&pod, &mut rng) {
                Ok(id) => {
                    let node = w.cluster.core.snapshot.node(id).name.to_string();
                    // The quick way finds what the thorough one thinks best.
                    let best = assessment.feasible.first().map(|l| l.total);
                    let own = assessment.feasible.iter().find(|l| l.id == id).map(|l| l.total);
                    assert!(own.is_some() && own == best, "seed {seed} pod {n}: {own:?} of {best:?}");
                    w.check_rules(&case.pod, &node);
                    let steps = w.cluster.core.volume_steps(&pod, id);
                    w.bind(steps);
                    w.cluster.core.snapshot.place(pod, &node);
                    w.placed.push((case.pod, node));
                    placed += 1;
                }
                Err(why) => {
                    assert!(assessment.feasible.is_empty(), "seed {seed} pod {n}: {why}");
                    assert_eq!(assessment.why_not(&pod, w.nodes.len()).map(|w| w.to_string()), Some(why.to_string()));
                    refused += 1;
                }
            }
            // Some go again, so that what is remembered must be forgotten.
            if rng.random_range(0..4) == 0 && !w.placed.is_empty() {
                let (gone, _) = w.placed.swap_remove(rng.random_range(0..w.placed.len()));
                let key = format!(
                    "{}/{}",
                    gone["metadata"]["namespace"].as_str().unwrap(),
                    gone["metadata"]["name"].as_str().unwrap()
                );
                w.cluster.core.snapshot.remove(&key);
            }
            w.check_capacity();
            w.check_disks();
        }
    }
    assert!(placed > 1000 && refused > 500, "too one-sided to mean anything: {placed} {refused}");
}

#[test]
fn nobody_is_removed_in_vain() {
    let mut plans = 0;
    for seed in 0..SEEDS {
        let (mut w, mut rng) = world(seed);
        for n in 0..PODS {
            let mut case = cells::case(&w.cell, &format!("p{n}"), "s", &mut rng);
            w.fill(&case.disks);
            case.pod["spec"]["priority"] = rng.random_range(0..4).into();
            let pod = w.cluster.pod(&object(case.pod));
            let core = &mut w.cluster.core;
            let why = match core.schedule(&pod, &mut rng) {
                Ok(id) => {
                    let node = core.snapshot.node(id).name.to_string();
                    core.snapshot.place(pod, &node);
                    continue;
                }
                Err(why) => why,
            };
            let Ok(plan) = core.preempt(&pod, &why, &mut rng) else { continue };
            plans += 1;
            let node = core.snapshot.node(plan.node).name.to_string();
            let fits = |core: &mut scheduler::core::Core, pod: &Pod| {
                core.assess(pod).feasible.iter().any(|l| l.id == plan.node)
            };
            assert!(!plan.victims.is_empty());
            for victim in &plan.victims {
                assert!(victim.priority() < pod.priority(), "seed {seed}: {} is not less important", victim.key);
                core.snapshot.remove(&victim.key);
            }
            assert!(fits(core, &pod), "seed {seed} pod {n}: no room after all");
            // With any one of them back there would be none.
            for victim in &plan.victims {
                core.snapshot.place(victim.clone(), &node);
                assert!(!fits(core, &pod), "seed {seed} pod {n}: {} went in vain", victim.key);
                core.snapshot.remove(&victim.key);
            }
            core.snapshot.place(pod, &node);
        }
    }
    assert!(plans > 200, "too few plans to mean anything: {plans}");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_behind_those_who_do_not_fit() {
    use scheduler::queue::{Condition, PodQueue};
    use scheduler::verdict::{Plugin, Plugins};
    use std::time::Duration;
    use tokio::time::Instant;

    let (mut w, _) = world(1);
    let mut queue = PodQueue::new(Duration::from_secs(1), Duration::from_secs(10));
    let mut put = |queue: &mut PodQueue, name: &str, priority: i64| {
        let body = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "n"},
            "spec": {"schedulerName": "s", "priority": priority, "containers": [{"name": "c"}]}});
        let object = object(body);
        let pod = w.cluster.pod(&object);
        queue.put(pod, Arc::new(object), Condition::default(), false, Instant::now());
    };
    // Important pods that never fit, woken again and again, and one small pod behind them.
    (0..50).for_each(|n| put(&mut queue, &format!("large-{n}"), 1000));
    put(&mut queue, "small", 0);
    let mut tried = std::collections::BTreeMap::new();
    let mut small_after = None;
    let begun = Instant::now();
    for _ in 0..600 {
        let now = Instant::now();
        queue.advance(now);
        // One attempt each tenth of a second, and something happens all the time that might help.
        if let Some(key) = queue.pop(now) {
            *tried.entry(key.to_string()).or_insert(0) += 1;
            if &*key == "n/small" {
                small_after = Some(begun.elapsed());
                queue.remove(&key);
            } else {
                queue.refused(&key, Plugins::of(&[Plugin::NodeResourcesFit]));
            }
        }
        queue.wake(now, |_| Some((false, "")));
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    assert!(small_after.is_some_and(|after| after < Duration::from_secs(30)), "{small_after:?} {tried:?}");
    let large: Vec<i32> = (0..50).map(|n| tried.get(&format!("n/large-{n}")).copied().unwrap_or(0)).collect();
    assert!(large.iter().all(|n| *n >= 3), "everybody's turn comes again: {large:?}");
}
