//! What pods of simulated nodes are said to use: nothing runs there that could be measured, so their annotations say it.
//!
//! `simulated.nauplius.dev/cpu-usage` and `simulated.nauplius.dev/memory-usage` are quantities, of each running container of the
//! pod; a node uses what its pods use.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use meta::quantity::Quantity;
use meta::{Object, Value};

use super::{Counters, Reading};

/// The label simulated nodes carry.
const LABEL: &str = "nauplius.dev/simulated";
const PREFIX: &str = "simulated.nauplius.dev/";
/// What a container uses that nothing is said of: little, so that it shows as running.
const USUAL_NANOCORES: u64 = 1_000_000;
const USUAL_BYTES: u64 = 1 << 20;
/// Between the two readings that are told.
const WINDOW_SECONDS: u64 = 10;

pub fn is_simulated(node: &Object) -> bool {
    node.meta.label(LABEL) == Some("true")
}

/// What each container of a pod uses: billionths of a core, and bytes.
fn of_containers(pod: &Value) -> (u64, u64) {
    let said = |name: &str| {
        let text = pod["metadata"]["annotations"][format!("{PREFIX}{name}")].as_str()?;
        text.parse::<Quantity>().ok()
    };
    let positive = |n: i64| u64::try_from(n).unwrap_or(0);
    let cpu = said("cpu-usage").map_or(USUAL_NANOCORES, |q| positive(q.milli_value()).saturating_mul(1_000_000));
    (cpu, said("memory-usage").map_or(USUAL_BYTES, |q| positive(q.value())))
}

/// Two readings of each of the nodes, as if its pods had been measured.
pub fn readings(
    pods: &[Arc<Object>],
    nodes: &HashSet<String>,
    now: Timestamp,
) -> HashMap<String, (Arc<Reading>, Arc<Reading>)> {
    let began = now.checked_sub(SignedDuration::from_secs(WINDOW_SECONDS as i64)).unwrap_or(now);
    let pair = || (Reading { at: began, ..Reading::default() }, Reading { at: now, ..Reading::default() });
    let mut out: HashMap<&String, (Reading, Reading)> = nodes.iter().map(|node| (node, pair())).collect();
    for pod in pods {
        let Ok(body) = pod.value() else { continue };
        let node = body["spec"]["nodeName"].as_str().map(str::to_string);
        let Some((before, last)) = node.and_then(|node| out.get_mut(&node)) else { continue };
        let (cpu, memory) = of_containers(&body);
        let statuses = ["containerStatuses", "initContainerStatuses"].map(|list| body["status"][list].as_array());
        for status in statuses.into_iter().flatten().flatten().filter(|s| s["state"].get("running").is_some()) {
            let key = (pod.meta.uid.to_string(), status["name"].as_str().unwrap_or_default().to_string());
            let used = Counters { cpu_nanoseconds: cpu.saturating_mul(WINDOW_SECONDS), working_set: memory };
            before.containers.insert(key.clone(), Counters::default());
            last.containers.insert(key, used);
            last.node.cpu_nanoseconds = last.node.cpu_nanoseconds.saturating_add(used.cpu_nanoseconds);
            last.node.working_set = last.node.working_set.saturating_add(memory);
        }
    }
    out.into_iter().map(|(node, (before, last))| (node.clone(), (Arc::new(before), Arc::new(last)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics_api::{node_metrics, pod_metrics};
    use serde_json::json;

    #[test]
    fn annotations_say_what_is_used() {
        let pod = |name: &str, annotations: Value| {
            let running = json!([{"name": "c", "state": {"running": {}}}, {"name": "d", "state": {"running": {}}}]);
            let body = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "namespace": "n", "uid": name, "annotations": annotations},
                "spec": {"nodeName": "simulated-1"}, "status": {"containerStatuses": running}});
            Arc::new(Object::from_value(&body).unwrap())
        };
        let said = json!({"simulated.nauplius.dev/cpu-usage": "250m", "simulated.nauplius.dev/memory-usage": "64Mi"});
        let wrong = json!({"simulated.nauplius.dev/cpu-usage": "much"});
        let pods = [pod("said", said), pod("unsaid", json!({})), pod("wrong", wrong)];
        let now = Timestamp::from_second(1000).unwrap();
        let of = readings(&pods, &["simulated-1".to_string()].into(), now);
        let (before, last) = &of["simulated-1"];
        for (pod, cpu, memory) in [(0, "250000000n", "65536Ki"), (1, "1000000n", "1024Ki"), (2, "1000000n", "1024Ki")] {
            let told = pod_metrics(&pods[pod], before, last).unwrap();
            assert_eq!(told["containers"][1], json!({"name": "d", "usage": {"cpu": cpu, "memory": memory}}));
        }
        let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "simulated-1"}});
        let told = node_metrics(&Object::from_value(&node).unwrap(), before, last).unwrap();
        assert_eq!(told["usage"], json!({"cpu": "504000000n", "memory": "135168Ki"}));
    }
}
