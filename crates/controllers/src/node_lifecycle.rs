//! The health of nodes: what a silent node is said to be, and the taints that follow from a node's conditions.
//!
//! A node is heard when its lease or its status changes; how long ago is measured by our clock from when we saw it, so
//! that clocks need not agree. Evicting the pods of tainted nodes is [`crate::taint_eviction`]'s.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::EventType;
use client::time::rfc3339;
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use meta::{Object, Status};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::node_upkeep;
use crate::nodes::{self, NOT_READY, UNREACHABLE};
use crate::plan::{Action, Note, Plan, What};
use crate::pod_facts::{self, facts};
use crate::pods::{self, PodView};
use crate::runner::{Ask, Controller, own_key};
use crate::{Context, decoded, figures, status_of};

const LEASES: &str = "kube-node-lease";
/// Conditions that say nothing any more once the node is silent.
const CONDITIONS: &[&str] = &["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// The index of pods by node.
pub const BY_NODE: &str = "node";

/// (condition, its status, the NoSchedule taint it means)
const TAINTS: &[(&str, &str, &str)] = &[
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", nodes::MEMORY_PRESSURE),
    ("DiskPressure", "True", nodes::DISK_PRESSURE),
    ("PIDPressure", "True", nodes::PID_PRESSURE),
    ("NetworkUnavailable", "True", nodes::NETWORK_UNAVAILABLE),
];

pub fn index_pods_by_node(pods: &client::Informer) {
    pods.add_index(BY_NODE, |o| facts(o).map(|f| f.node.to_string()).filter(|n| !n.is_empty()).into_iter().collect());
}

/// How a node stands at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Seconds since it was last heard.
    pub silent: i64,
    /// Seconds a node may be silent.
    pub grace: i64,
    /// Whether its pods may be told to go now: evictions are rationed by zone.
    pub may_evict: bool,
    /// No node anywhere is ready: the fault is more likely here than there, and nobody is told to go.
    pub all_down: bool,
}

/// How a zone's nodes fare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneState {
    Normal,
    Partial,
    Full,
}

/// A zone with so many nodes, so many of them not ready.
pub fn zone_state(nodes: usize, unready: usize, threshold: f64) -> ZoneState {
    match () {
        () if nodes > 0 && unready == nodes => ZoneState::Full,
        // Two nodes down are two nodes, in however small a zone.
        () if unready > 2 && unready as f64 / nodes as f64 >= threshold => ZoneState::Partial,
        () => ZoneState::Normal,
    }
}

/// Nodes of a zone whose pods may begin to be evicted, per second.
pub fn eviction_rate(state: ZoneState, nodes: usize, options: &crate::Options) -> f64 {
    match state {
        ZoneState::Partial if nodes > options.large_cluster_size_threshold => options.secondary_node_eviction_rate,
        ZoneState::Partial => 0.0,
        ZoneState::Normal | ZoneState::Full => options.node_eviction_rate,
    }
}

fn ready_status(node: &Node) -> &str {
    nodes::condition(node, "Ready").map_or("Unknown", |c| c.status.as_str())
}

/// What becomes of one node, and of the readiness of its pods.
pub fn plan(object: &Object, node: &Node, health: Health, pods: &[PodView], now: Timestamp) -> Result<Plan, Status> {
    let resource = client::gvr_of::<Node>();
    let mut plan = Plan::nothing();
    let declared = nodes::condition(node, "Ready").is_some_and(|c| c.status == "Unknown");
    if health.silent > health.grace && !declared {
        let mut status = status_of(object)?;
        silence(&mut status, &object.meta.creation_timestamp, now);
        let said = format!("Node {} status is now: NodeNotReady", object.meta.name);
        plan.act(Action::status(&resource, object, status)?.done(Note::normal(object, "NodeNotReady", said)));
        // Taints follow from what is written now.
        return Ok(plan);
    }
    let known = nodes::taints(node);
    let wanted = wanted_taints(node, health, now);
    if wanted != known {
        let metadata = json!({"resourceVersion": object.resource_version.to_string()});
        let taints = if wanted.is_empty() { Value::Null } else { json!(wanted) };
        plan.act(Action::patch(
            &resource,
            object,
            "",
            client::Patch::Merge(json!({"metadata": metadata, "spec": {"taints": taints}})),
        ));
    }
    if ready_status(node) == "Unknown" && nodes::condition(node, "Ready").is_some() {
        for pod in pods.iter().filter(|p| p.is_ready()) {
            let unready = json!({"type": "Ready", "status": "False", "lastTransitionTime": rfc3339(now)});
            plan.act(pod.tell(json!({"conditions": [unready]})).done(Note::warning(
                &pod.object,
                "NodeNotReady",
                "Node is not ready",
            )));
        }
    }
    Ok(plan)
}

/// Whether a plan says of a node that it is silent.
fn declares_silent(plan: &Plan) -> bool {
    let nodes = client::gvr_of::<Node>();
    plan.actions.iter().any(|a| a.resource == nodes && matches!(a.what, What::Update { subresource: "status", .. }))
}

/// When a lease was renewed.
fn renewed(lease: &Object) -> Option<String> {
    decoded::<Lease>(lease).ok()?.spec.as_ref()?.renew_time.as_ref().map(|t| t.0.to_string())
}

fn silence(status: &mut Value, created: &str, now: Timestamp) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let at = Value::from(rfc3339(now));
    for kind in CONDITIONS {
        let list = status["conditions"].as_array_mut().into_iter().flatten();
        match list.into_iter().find(|c| c["type"] == *kind) {
            Some(condition) if condition["status"] != "Unknown" => {
                condition["status"] = "Unknown".into();
                condition["reason"] = "NodeStatusUnknown".into();
                condition["message"] = "Kubelet stopped posting node status.".into();
                condition["lastTransitionTime"] = at.clone();
            }
            Some(_) => {}
            None => {
                let condition = json!({
                    "type": kind, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
                    "message": "Kubelet never posted node status.", "lastHeartbeatTime": created, "lastTransitionTime": at,
                });
                if let Some(list) = status["conditions"].as_array_mut() {
                    list.push(condition);
                }
            }
        }
    }
}

fn wanted_taints(node: &Node, health: Health, now: Timestamp) -> Vec<Taint> {
    let has = |kind: &str, status: &str| nodes::condition(node, kind).is_some_and(|c| c.status == status);
    let known = nodes::taints(node);
    let ready = nodes::condition(node, "Ready");
    let mut wanted: Vec<(&str, &str)> = TAINTS
        .iter()
        .filter(|(kind, status, _)| has(kind, status))
        .map(|(_, _, taint)| (*taint, "NoSchedule"))
        .collect();
    if ready.is_none() && known.iter().any(|t| t.key == NOT_READY && t.effect == "NoSchedule") {
        // It has not said anything yet: it stays as it was registered.
        wanted.push((NOT_READY, "NoSchedule"));
    }
    if node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true)) {
        wanted.push((nodes::UNSCHEDULABLE, "NoSchedule"));
    }
    let unready = match ready.map(|c| c.status.as_str()) {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        _ => None,
    };
    let evicting = known.iter().any(|t| t.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&t.key.as_str()));
    if let Some(taint) = unready.filter(|_| !health.all_down && (health.may_evict || evicting)) {
        wanted.push((taint, "NoExecute"));
    }
    let ours = |t: &Taint| match t.effect.as_str() {
        "NoSchedule" => t.key == nodes::UNSCHEDULABLE || TAINTS.iter().any(|(_, _, key)| *key == t.key),
        "NoExecute" => [NOT_READY, UNREACHABLE].contains(&t.key.as_str()),
        _ => false,
    };
    let is = |t: &Taint, w: &(&str, &str)| t.key == w.0 && t.effect == w.1;
    let mut out: Vec<Taint> = known.iter().filter(|t| !ours(t) || wanted.iter().any(|w| is(t, w))).cloned().collect();
    for want in wanted {
        if !out.iter().any(|t| is(t, &want)) {
            let whole = Timestamp::from_second(now.as_second()).unwrap_or(now);
            out.push(Taint { key: want.0.into(), effect: want.1.into(), value: None, time_added: Some(Time(whole)) });
        }
    }
    out
}

/// A node that is known.
struct Heard {
    uid: String,
    /// What it said last, and when that was heard: by a clock that nobody sets.
    voice: String,
    at: Instant,
}

/// That a node came or went, as people look for it.
fn told(name: &str, uid: &str, reason: &'static str, said: &str) -> Note {
    let some = |text: &str| Some(text.to_string());
    let about = ObjectReference {
        api_version: some("v1"),
        kind: some("Node"),
        name: some(name),
        uid: some(uid),
        ..ObjectReference::default()
    };
    Note { about, kind: EventType::Normal, reason, message: format!("Node {name} event: {said}") }
}

/// What is remembered of nodes between looks; a restart begins every grace period anew.
#[derive(Default)]
struct Memory {
    heard: HashMap<String, Heard>,
    /// When a node of a zone was last told to evict.
    evicted: HashMap<String, Instant>,
}

/// A node's zone, as upstream's figures name it.
fn zone(object: &Object) -> String {
    let label = |name: &str| object.meta.label(name).unwrap_or_default().to_string();
    let (region, zone) = (label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"));
    if region.is_empty() && zone.is_empty() { String::new() } else { format!("{region}:\0:{zone}") }
}

const ZONE_GAUGES: [&str; 3] =
    ["node_collector_zone_size", "node_collector_zone_health", "node_collector_unhealthy_nodes_in_zone"];

/// Shows how large zones are, and how well.
fn show_zones(all: &[Arc<Object>]) {
    let mut zones: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for node in all {
        let (size, unready) = zones.entry(zone(node)).or_default();
        *size += 1;
        *unready += usize::from(!node.typed::<Node>().is_ok_and(|n| ready_status(&n) == "True"));
    }
    for gauge in ZONE_GAUGES {
        figures::clear(gauge);
    }
    for (zone, (size, unready)) in zones {
        figures::set(ZONE_GAUGES[0], &[("zone", &zone)], size);
        figures::set(ZONE_GAUGES[1], &[("zone", &zone)], (size - unready) * 100 / size);
        figures::set(ZONE_GAUGES[2], &[("zone", &zone)], unready);
    }
}

pub fn node_lifecycle(cx: &Context) -> Controller {
    let (all_nodes, all_pods) = (cx.informers.get::<Node>(), pod_facts::informer(&cx.informers));
    let leases = cx.informers.get_gvr(client::gvr_of::<Lease>(), LEASES, None, None);
    index_pods_by_node(&all_pods);
    let (of, of_pods, of_leases, options) = (all_nodes.clone(), all_pods.clone(), leases.clone(), cx.options.clone());
    let memory = Mutex::new(Memory::default());
    let everything = all_nodes.clone();
    let queue_all = move |queue: client::Queue<Arc<str>>, period: Duration| async move {
        loop {
            tokio::time::sleep(period).await;
            let all = everything.list(None);
            show_zones(&all);
            all.iter().for_each(|n| queue.add(n.meta.name.to_string().into()));
        }
    };
    let period = cx.options.node_monitor_period;
    // Else they go with what the other writes.
    let labels = !cx.runs("ttl-controller");
    // `live`: when its lease was renewed, where the server itself was asked.
    let look = Arc::new(move |ask: &Ask, live: Option<String>| {
        let Some(object) = of.get(&ask.key) else {
            let known = memory.lock().unwrap_or_else(PoisonError::into_inner).heard.remove(&*ask.key);
            let gone = |h: Heard| {
                told(&ask.key, &h.uid, "RemovingNode", &format!("Removing Node {} from Controller", ask.key))
            };
            return Ok(Plan { notes: known.map(gone).into_iter().collect(), ..Plan::nothing() });
        };
        let node = decoded::<Node>(&object)?;
        let renewed =
            live.or_else(|| of_leases.get(&format!("{LEASES}/{}", ask.key)).and_then(|lease| renewed(&lease)));
        let beat =
            nodes::condition(&node, "Ready").and_then(|c| c.last_heartbeat_time.as_ref()).map(|t| t.0.to_string());
        let voice = format!("{}|{}", renewed.unwrap_or_default(), beat.unwrap_or_default());
        let grace = match nodes::condition(&node, "Ready") {
            Some(_) => options.node_monitor_grace_period,
            None => options.node_startup_grace_period,
        };
        let instant = Instant::now();
        let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        let uid = object.meta.uid.to_string();
        let is_new = memory.heard.get(&*ask.key).is_none_or(|h| h.uid != uid);
        let heard =
            memory.heard.entry(ask.key.to_string()).or_insert_with(|| Heard { uid, voice: voice.clone(), at: instant });
        if heard.voice != voice || is_new {
            *heard = Heard { uid: object.meta.uid.to_string(), voice, at: instant };
        }
        let silent = i64::try_from((instant - heard.at).as_secs()).unwrap_or(i64::MAX);
        let (mut may_evict, mut all_down) = (false, false);
        if ready_status(&node) != "True" && nodes::condition(&node, "Ready").is_some() {
            let zone = zone(&object);
            // (nodes, those not ready) of this zone, and whether any node anywhere is ready.
            let (mut here, mut unready, mut anybody) = (0, 0, false);
            for other in of.list(None) {
                let is_ready = other.typed::<Node>().is_ok_and(|n| ready_status(&n) == "True");
                anybody |= is_ready;
                if self::zone(&other) == zone {
                    here += 1;
                    unready += usize::from(!is_ready);
                }
            }
            all_down = !anybody;
            let state = zone_state(here, unready, options.unhealthy_zone_threshold);
            let rate = eviction_rate(state, here, &options);
            let last = memory.evicted.get(&zone).copied();
            let rationed = last.is_none_or(|l| (instant - l).as_secs_f64() >= 1.0 / rate);
            may_evict = anybody && rate > 0.0 && rationed;
            let tainted = nodes::taints(&node)
                .iter()
                .any(|t| t.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&t.key.as_str()));
            if may_evict && !tainted {
                figures::count("node_collector_evictions_total", &[("zone", &zone)], 1);
                memory.evicted.insert(zone, instant);
            }
        }
        drop(memory);
        let health = Health { silent, grace: i64::try_from(grace.as_secs()).unwrap_or(i64::MAX), may_evict, all_down };
        let views = if ready_status(&node) == "Unknown" {
            pods::views(of_pods.by_index(BY_NODE, &ask.key))?
        } else {
            Vec::new()
        };
        let mut plan = plan(&object, &node, health, &views, ask.now)?;
        if labels && let Some(patch) = node_upkeep::upkeep(&object, None, true) {
            plan.act(Action::patch(&client::gvr_of::<Node>(), &object, "", client::Patch::Merge(patch)));
        }
        if is_new {
            let said = format!("Registered Node {} in Controller", ask.key);
            plan.note(told(&ask.key, &object.meta.uid, "RegisteredNode", &said));
        }
        Ok(plan)
    });
    let client = cx.client.clone();
    Controller::with_io("node-lifecycle-controller", move |ask| {
        let (look, client) = (look.clone(), client.clone());
        async move {
            let plan = look(&ask, None)?;
            if !declares_silent(&plan) {
                return Ok(plan);
            }
            // The informer may be late; a server that does not answer says nothing new.
            let leases = client.dynamic(client::gvr_of::<Lease>()).namespaced(LEASES);
            match leases.get_opt(&ask.key).await.ok().flatten().and_then(|lease| renewed(&lease)) {
                Some(live) => look(&ask, Some(live)),
                None => Ok(plan),
            }
        }
        .boxed()
    })
    .watch(&all_nodes, own_key)
    .read(&leases)
    .read(&all_pods)
    .feed(move |queue| Box::pin(queue_all(queue, period)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_in_trouble_evict_slower() {
        let options = crate::Options::default();
        for (nodes, unready, state, rate) in [
            (10, 0, ZoneState::Normal, 0.1),
            (10, 5, ZoneState::Normal, 0.1),
            (10, 6, ZoneState::Partial, 0.0),
            (100, 60, ZoneState::Partial, 0.01),
            (3, 2, ZoneState::Normal, 0.1),
            (3, 3, ZoneState::Full, 0.1),
        ] {
            let found = zone_state(nodes, unready, options.unhealthy_zone_threshold);
            assert_eq!((found, eviction_rate(found, nodes, &options)), (state, rate), "{unready} of {nodes}");
        }
    }

    #[test]
    fn the_server_is_asked_before_a_node_is_called_silent() {
        let node = |ready: &str| {
            let conditions =
                json!([{"type": "Ready", "status": ready, "lastHeartbeatTime": null, "lastTransitionTime": null}]);
            Object::from_value(&json!({"kind": "Node", "apiVersion": "v1",
                "metadata": {"name": "n", "uid": "u", "resourceVersion": "3"}, "status": {"conditions": conditions}}))
            .unwrap()
        };
        for (ready, silent, expect) in
            [("True", 10, false), ("True", 60, true), ("False", 10, false), ("Unknown", 60, false)]
        {
            let object = node(ready);
            let typed = object.typed::<Node>().unwrap();
            let health = Health { silent, grace: 50, may_evict: false, all_down: false };
            let plan = plan(&object, &typed, health, &[], Timestamp::UNIX_EPOCH).unwrap();
            assert_eq!(declares_silent(&plan), expect, "{ready} {silent}");
        }
        let lease = json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": "n", "namespace": LEASES},
            "spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}});
        assert_eq!(renewed(&Object::from_value(&lease).unwrap()).as_deref(), Some("2026-01-01T00:00:00Z"));
    }
}
