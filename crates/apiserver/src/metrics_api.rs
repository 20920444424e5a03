//! `metrics.k8s.io/v1beta1`: what nodes and pods use, asked of the kubelets when somebody wants to know.
//!
//! Nothing is stored and nothing runs while nobody asks. Processor use is the difference of two readings of a kubelet's
//! counters, the last two asked for, or two taken a moment apart when the last is old. Where an APIService names
//! another server for the group, that one answers instead and this never runs.

mod simulated;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use meta::{LabelSelector, List, Object, Reply, Status, Value};
use serde_json::json;

use crate::pipeline::Target;
use crate::server::ApiServer;
use crate::subresource::connect;

pub const GROUP: &str = "metrics.k8s.io";

/// A reading younger than this answers without asking the kubelet again.
const FRESH_SECONDS: f64 = 10.0;
/// A reading older than this says nothing of the present.
const STALE_SECONDS: f64 = 60.0;
/// Between two readings when there was none lately.
const MOMENT: Duration = Duration::from_secs(1);
/// Kubelets asked at once.
const AT_ONCE: usize = 32;
/// Memory is told in KiB, as upstream's metrics server does.
const KIB: u64 = 1024;

/// Counters of one container, or of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counters {
    cpu_nanoseconds: u64,
    working_set: u64,
}

/// One answer of a kubelet.
#[derive(Debug, Default)]
struct Reading {
    at: Timestamp,
    node: Counters,
    /// By pod uid and container name.
    containers: HashMap<(String, String), Counters>,
}

impl Reading {
    fn parse(at: Timestamp, summary: &Value) -> Self {
        let counters = |of: &Value| -> Option<Counters> {
            Some(Counters {
                cpu_nanoseconds: of["cpu"]["usageCoreNanoSeconds"].as_u64()?,
                working_set: of["memory"]["workingSetBytes"].as_u64()?,
            })
        };
        let mut containers = HashMap::new();
        for pod in summary["pods"].as_array().into_iter().flatten() {
            let uid = pod["podRef"]["uid"].as_str().unwrap_or_default();
            for container in pod["containers"].as_array().into_iter().flatten() {
                if let Some(counters) = counters(container) {
                    let name = container["name"].as_str().unwrap_or_default();
                    containers.insert((uid.to_string(), name.to_string()), counters);
                }
            }
        }
        Self { at, node: counters(&summary["node"]).unwrap_or_default(), containers }
    }

    fn age(&self, now: Timestamp) -> f64 {
        now.duration_since(self.at).as_secs_f64()
    }
}

/// A node's last two readings.
#[derive(Clone, Default)]
struct Pair {
    before: Option<Arc<Reading>>,
    last: Option<Arc<Reading>>,
}

impl Pair {
    fn put(&mut self, reading: Arc<Reading>) {
        self.before = self.last.replace(reading);
    }

    /// Both readings, when they tell of the present.
    fn present(&self, now: Timestamp, within: f64) -> Option<(Arc<Reading>, Arc<Reading>)> {
        let (before, last) = (self.before.clone()?, self.last.clone()?);
        let gap = before.age(last.at);
        (last.age(now) < within && gap > 0.0 && gap < STALE_SECONDS).then_some((before, last))
    }
}

/// The last readings of every node asked for lately; a node's entry goes with the node.
#[derive(Default)]
pub struct Readings(Mutex<HashMap<String, Pair>>);

impl Readings {
    fn pair(&self, node: &str) -> Pair {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(node).cloned().unwrap_or_default()
    }

    fn put(&self, node: &str, reading: Reading) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(node.to_string()).or_default().put(Arc::new(reading));
    }

    fn keep(&self, nodes: &[String]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| nodes.contains(name));
    }
}

async fn take(server: &ApiServer, node: &str) -> Result<(), Status> {
    let bytes = connect::kubelet_get(server, node, "/stats/summary").await?;
    let summary: Value = serde_json::from_slice(&bytes).map_err(Status::internal)?;
    server.readings().put(node, Reading::parse(Timestamp::now(), &summary));
    Ok(())
}

/// The last two readings of a node; `None` when its kubelet does not answer.
async fn readings(server: &ApiServer, node: &str) -> Option<(Arc<Reading>, Arc<Reading>)> {
    let pair = server.readings().pair(node);
    if let Some(both) = pair.present(Timestamp::now(), FRESH_SECONDS) {
        return Some(both);
    }
    let recent = pair.last.is_some_and(|last| last.age(Timestamp::now()) < STALE_SECONDS);
    let asked = async {
        if !recent {
            take(server, node).await?;
            tokio::time::sleep(MOMENT).await;
        }
        take(server, node).await
    };
    if let Err(status) = asked.await {
        tracing::debug!(node, "no readings: {}", status.message);
        return None;
    }
    server.readings().pair(node).present(Timestamp::now(), STALE_SECONDS)
}

/// `{cpu, memory}` between two readings; `None` when the counter began anew between them.
fn usage(before: Counters, last: Counters, seconds: f64) -> Option<Value> {
    let used = last.cpu_nanoseconds.checked_sub(before.cpu_nanoseconds)?;
    let cores = (used as f64 / seconds).round();
    Some(json!({"cpu": format!("{cores}n"), "memory": format!("{}Ki", last.working_set / KIB)}))
}

fn shell(kind: &str, of: &Object, before: &Reading, last: &Reading) -> Value {
    let whole = Timestamp::from_second(last.at.as_second()).unwrap_or(last.at);
    let mut metadata = json!({"name": &*of.meta.name, "creationTimestamp": whole.to_string()});
    if !of.meta.namespace.is_empty() {
        metadata["namespace"] = (&*of.meta.namespace).into();
    }
    let labels: serde_json::Map<String, Value> =
        of.meta.labels.iter().map(|(k, v)| (k.to_string(), v.to_string().into())).collect();
    if !labels.is_empty() {
        metadata["labels"] = labels.into();
    }
    json!({
        "kind": kind, "apiVersion": "metrics.k8s.io/v1beta1", "metadata": metadata,
        "timestamp": whole.to_string(), "window": format!("{:.3}s", before.age(last.at)),
    })
}

fn node_metrics(node: &Object, before: &Reading, last: &Reading) -> Option<Value> {
    let mut out = shell("NodeMetrics", node, before, last);
    out["usage"] = usage(before.node, last.node, before.age(last.at))?;
    Some(out)
}

/// Only pods all of whose running containers were read twice are told: half a pod would look like an idle one.
fn pod_metrics(pod: &Object, before: &Reading, last: &Reading) -> Option<Value> {
    let body = pod.value().ok()?;
    let uid = pod.meta.uid.to_string();
    let mut containers = Vec::new();
    let statuses = body.pointer("/status/containerStatuses").and_then(Value::as_array);
    let sidecars = body.pointer("/status/initContainerStatuses").and_then(Value::as_array);
    for status in statuses.into_iter().chain(sidecars).flatten().filter(|s| s["state"].get("running").is_some()) {
        let name = status["name"].as_str()?;
        let key = (uid.clone(), name.to_string());
        let (first, second) = (before.containers.get(&key)?, last.containers.get(&key)?);
        containers.push(json!({"name": name, "usage": usage(*first, *second, before.age(last.at))?}));
    }
    if containers.is_empty() {
        return None;
    }
    let mut out = shell("PodMetrics", pod, before, last);
    out["containers"] = containers.into();
    Some(out)
}

fn node_of(pod: &Object) -> Option<String> {
    let body = pod.value().ok()?;
    body.pointer("/spec/nodeName").and_then(Value::as_str).filter(|n| !n.is_empty()).map(Into::into)
}

/// Answers `get` and `list` of `nodes` and `pods`.
pub async fn read(server: &ApiServer, target: Target<'_>) -> Result<Reply, Status> {
    let request = target.request;
    server.await_newest().await?;
    let of_pods = target.plural() == "pods";
    let plural = if of_pods { "pods" } else { "nodes" };
    let one = !request.name.is_empty();
    let selector = LabelSelector::parse(request.options.label_selector.as_deref().unwrap_or_default())
        .map_err(Status::bad_request)?;
    let objects: Vec<Arc<Object>> = match one {
        true => vec![server.lookup("", plural, &request.namespace, &request.name).ok_or_else(|| target.not_found())?],
        false => server.lookup_all("", plural, &request.namespace),
    };
    let wanted: Vec<(Arc<Object>, String)> = objects
        .into_iter()
        .filter(|o| one || selector.matches(&o.meta.labels))
        .filter_map(|o| {
            let node = if of_pods { node_of(&o)? } else { o.meta.name.to_string() };
            Some((o, node))
        })
        .collect();
    let mut nodes: Vec<String> = wanted.iter().map(|(_, node)| node.clone()).collect();
    nodes.sort();
    nodes.dedup();
    let is_simulated =
        |name: &String| server.lookup("", "nodes", "", name).is_some_and(|n| simulated::is_simulated(&n));
    let (simulated, nodes): (Vec<String>, Vec<String>) = nodes.into_iter().partition(is_simulated);
    let simulated: HashSet<String> = simulated.into_iter().collect();
    let asked = stream::iter(nodes).map(|node| async move { (readings(server, &node).await, node) });
    let answers: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
    let known: Vec<String> = server.lookup_all("", "nodes", "").iter().map(|n| n.meta.name.to_string()).collect();
    server.readings().keep(&known);
    let mut by_node: HashMap<String, (Arc<Reading>, Arc<Reading>)> =
        answers.into_iter().filter_map(|(both, node)| Some((node, both?))).collect();
    if !simulated.is_empty() {
        let pods = match of_pods {
            true => wanted.iter().map(|(pod, _)| pod.clone()).collect(),
            false => server.lookup_all("", "pods", ""),
        };
        by_node.extend(simulated::readings(&pods, &simulated, Timestamp::now()));
    }
    let told = wanted.iter().filter_map(|(object, node)| {
        let (before, last) = by_node.get(node)?;
        if of_pods { pod_metrics(object, before, last) } else { node_metrics(object, before, last) }
    });
    let mut items = Vec::new();
    for value in told {
        items.push(Arc::new(Object::from_value(&value).map_err(Status::internal)?));
    }
    if one {
        let object = items.pop().ok_or_else(|| target.not_found())?;
        return Ok(Reply::Object { object, created: false });
    }
    Ok(Reply::List(List { resource_version: server.feed().progress(), items, ..List::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at: i64, cpu: u64) -> Reading {
        let summary = json!({
            "node": {"cpu": {"usageCoreNanoSeconds": cpu * 10}, "memory": {"workingSetBytes": 4096}},
            "pods": [{"podRef": {"uid": "u"}, "containers": [
                {"name": "c", "cpu": {"usageCoreNanoSeconds": cpu}, "memory": {"workingSetBytes": 2048}},
                {"name": "new", "memory": {"workingSetBytes": 1}}]}],
        });
        Reading::parse(Timestamp::from_second(at).unwrap(), &summary)
    }

    #[test]
    fn use_is_the_difference_of_two_readings() {
        let (before, last) = (reading(100, 1_000_000_000), reading(102, 2_000_000_000));
        let object = |kind: &str, status: Value| {
            let body = json!({"kind": kind, "apiVersion": "v1", "metadata": {"name": "x", "namespace": if kind == "Pod" { "n" } else { "" }, "uid": "u"}, "status": status});
            Object::from_value(&body).unwrap()
        };
        let running = |names: &[&str]| {
            let all: Vec<Value> = names.iter().map(|n| json!({"name": n, "state": {"running": {}}})).collect();
            object("Pod", json!({"containerStatuses": all}))
        };
        let node = node_metrics(&object("Node", json!({})), &before, &last).unwrap();
        assert_eq!(node["usage"], json!({"cpu": "5000000000n", "memory": "4Ki"}));
        assert_eq!(node["window"], "2.000s");
        let pod = pod_metrics(&running(&["c"]), &before, &last).unwrap();
        assert_eq!(pod["containers"], json!([{"name": "c", "usage": {"cpu": "500000000n", "memory": "2Ki"}}]));
        assert!(pod_metrics(&running(&["c", "new"]), &before, &last).is_none(), "a container not read");
        assert!(pod_metrics(&running(&["c"]), &last, &before).is_none(), "a counter that began anew");
        assert!(pod_metrics(&running(&[]), &before, &last).is_none(), "nothing runs");
    }

    #[test]
    fn old_readings_do_not_answer() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let pair = |a: i64, b: i64| Pair { before: Some(Arc::new(reading(a, 1))), last: Some(Arc::new(reading(b, 2))) };
        for (pair, now, within, expect) in [
            (pair(100, 115), 116, FRESH_SECONDS, true),
            (pair(100, 115), 126, FRESH_SECONDS, false),
            (pair(100, 115), 126, STALE_SECONDS, true),
            (pair(100, 1000), 1001, FRESH_SECONDS, false),
            (pair(100, 100), 101, FRESH_SECONDS, false),
            (Pair::default(), 101, FRESH_SECONDS, false),
        ] {
            assert_eq!(pair.present(at(now), within).is_some(), expect, "{now}");
        }
    }
}
