//! Whether the node takes a pod the scheduler gave it: a pure function of the pod, the node and the pods already here.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod};

use super::status::Verdict;
use crate::eviction::core::CRITICAL;
use crate::spec::{self, resources, security};

/// The node as admission sees it. Amounts: `cpu` in thousandths.
pub struct Room<'a> {
    pub node: Option<&'a Node>,
    pub allocatable: BTreeMap<String, i64>,
    pub allowed_sysctls: &'a [String],
    pub memory_pressure: bool,
    pub disk_pressure: bool,
    pub pid_pressure: bool,
    /// The machine's kernel enforces AppArmor profiles.
    pub apparmor: bool,
    /// The machine goes down.
    pub shutting_down: bool,
}

fn refuse(reason: &str, message: String) -> Result<(), Verdict> {
    Err(Verdict { reason: reason.into(), message: format!("Pod was rejected: {message}"), disruption: false })
}

fn requirement(r: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values: Vec<&str> = r.values.iter().flatten().map(String::as_str).collect();
    let number = |t: &str| t.parse::<i64>().ok();
    let compared = |pick: fn(i64, i64) -> bool| match (value.and_then(number), values.first().and_then(|v| number(v))) {
        (Some(have), Some(want)) => pick(have, want),
        _ => false,
    };
    match r.operator.as_str() {
        "In" => value.is_some_and(|v| values.contains(&v)),
        "NotIn" => !value.is_some_and(|v| values.contains(&v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(|have, want| have > want),
        "Lt" => compared(|have, want| have < want),
        _ => false,
    }
}

fn term(t: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let (expressions, fields) =
        (t.match_expressions.as_deref().unwrap_or_default(), t.match_fields.as_deref().unwrap_or_default());
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| requirement(r, labels.and_then(|l| l.get(&r.key)).map(String::as_str)))
        && fields
            .iter()
            .all(|r| requirement(r, (r.key == "metadata.name").then_some(node.metadata.name.as_deref()).flatten()))
}

/// Whether the node's labels satisfy the pod's selector and required affinity.
pub fn node_fits(pod: &Pod, node: &Node) -> bool {
    let spec = spec::spec(pod);
    let labels = node.metadata.labels.as_ref();
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|n| n.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term(t, node)))
}

/// Taints that even a running node enforces.
fn untolerated(pod: &Pod, node: &Node) -> Option<String> {
    let tolerations = spec::spec(pod).tolerations.as_deref().unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints.iter().filter(|t| t.effect == "NoExecute").find_map(|taint| {
        let tolerated = tolerations.iter().any(|t| {
            let key = t.key.as_deref().unwrap_or_default();
            let exists = t.operator.as_deref() == Some("Exists");
            (key == taint.key || (key.is_empty() && exists))
                && t.effect.as_deref().is_none_or(|e| e.is_empty() || e == taint.effect)
                && (exists || t.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
        });
        (!tolerated).then(|| taint.key.clone())
    })
}

/// Takes or refuses a pod; `others` are the pods that already have a place here.
pub fn admit<'a>(pod: &Pod, room: &Room<'_>, others: impl Iterator<Item = &'a Pod>) -> Result<(), Verdict> {
    let spec = spec::spec(pod);
    if room.shutting_down {
        return refuse("NodeShutdown", "node is shutting down".into());
    }
    if let Some(why) = security::forbidden_sysctl(pod, room.allowed_sysctls) {
        return refuse("SysctlForbidden", why);
    }
    if let Some(why) = security::unenforceable_apparmor(pod, room.apparmor) {
        return refuse("AppArmor", why);
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return refuse("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS".into());
    }
    let critical = is_critical(pod);
    if !critical && room.disk_pressure {
        return refuse("Evicted", "The node had condition: [DiskPressure]. ".into());
    }
    if !critical && room.pid_pressure {
        return refuse("Evicted", "The node had condition: [PIDPressure]. ".into());
    }
    if !critical && room.memory_pressure && resources::qos(pod) == resources::Qos::BestEffort {
        return refuse("Evicted", "The node had condition: [MemoryPressure]. ".into());
    }
    if let Some(node) = room.node {
        if !node_fits(pod, node) {
            return refuse(
                "NodeAffinity",
                "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".into(),
            );
        }
        if let Some(key) = untolerated(pod, node) {
            return refuse(
                "TaintToleration",
                format!("Predicate TaintToleration failed: node(s) had untolerated taint {{{key}}}"),
            );
        }
    }
    let mut used: BTreeMap<String, i64> = BTreeMap::new();
    let mut pods = 0;
    let ports = |p: &Pod| -> Vec<(i32, String)> {
        let host = spec::host_network(p);
        spec::all_containers(p)
            .flat_map(|(_, c)| c.ports.iter().flatten())
            .filter_map(|port| {
                let number = port.host_port.filter(|n| *n > 0).or(host.then_some(port.container_port))?;
                Some((
                    number,
                    format!(
                        "{}/{}",
                        port.protocol.as_deref().unwrap_or("TCP"),
                        port.host_ip.as_deref().unwrap_or("0.0.0.0")
                    ),
                ))
            })
            .collect()
    };
    let wanted_ports = ports(pod);
    for other in others {
        pods += 1;
        for (name, amount) in resources::pod_total(other, false) {
            *used.entry(name).or_default() += amount;
        }
        if ports(other).iter().any(|taken| wanted_ports.contains(taken)) {
            return refuse(
                "NodePorts",
                "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports".into(),
            );
        }
    }
    let out_of = |name: &str, requested: i64, used: i64, capacity: i64| {
        refuse(
            &format!("OutOf{name}"),
            format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        )
    };
    if let Some(capacity) = room.allocatable.get("pods")
        && pods + 1 > *capacity
    {
        return out_of("pods", 1, pods, *capacity);
    }
    for (name, requested) in resources::pod_total(pod, false) {
        let (capacity, taken) = (room.allocatable.get(&name).copied(), used.get(&name).copied().unwrap_or(0));
        // Resources the node does not count at all are somebody else's to account for.
        if let Some(capacity) = capacity
            && requested > 0
            && requested + taken > capacity
        {
            return out_of(&name, requested, taken, capacity);
        }
    }
    Ok(())
}

/// Pods of the node's own go before all others.
fn is_critical(pod: &Pod) -> bool {
    spec::spec(pod).priority.unwrap_or(0) >= CRITICAL
}

/// Whom a critical pod that found no room displaces: as few as make room, the least important first and of those the
/// larger. None when that would not help or the pod is not critical.
pub fn victims<'a>(pod: &Pod, room: &Room<'_>, others: &'a [Arc<Pod>], refusal: &Verdict) -> Vec<&'a Arc<Pod>> {
    let lacks = refusal.reason.starts_with("OutOf") || refusal.reason == "NodePorts";
    if !is_critical(pod) || !lacks {
        return Vec::new();
    }
    let size = |p: &Pod| resources::pod_total(p, false).get("memory").copied().unwrap_or(0);
    let priority = |p: &Pod| spec::spec(p).priority.unwrap_or(0);
    let mut movable: Vec<&Arc<Pod>> = others.iter().filter(|p| !is_critical(p)).collect();
    movable.sort_by_key(|p| (priority(p), std::cmp::Reverse(size(p))));
    let fits = |gone: &[&Arc<Pod>]| {
        admit(pod, room, others.iter().filter(|o| !gone.iter().any(|g| Arc::ptr_eq(g, o))).map(|p| &**p)).is_ok()
    };
    let Some(count) = (1..=movable.len()).find(|n| fits(&movable[..*n])) else { return Vec::new() };
    let mut chosen = movable[..count].to_vec();
    // Whoever turns out not to be in the way stays, the most important first.
    for at in (0..chosen.len()).rev() {
        let mut fewer = chosen.clone();
        fewer.remove(at);
        if fits(&fewer) {
            chosen = fewer;
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn admission() {
        let pod = |spec: Value| -> Pod {
            let mut spec = spec;
            if spec.get("containers").is_none() {
                spec["containers"] = json!([{"name": "c", "resources": {"requests": {"cpu": "600m"}}}]);
            }
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
        };
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"disk": "ssd"}},
            "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}))
        .unwrap();
        let room = Room {
            node: Some(&node),
            allocatable: [("cpu".to_string(), 1000), ("pods".to_string(), 2)].into(),
            allowed_sysctls: &[],
            memory_pressure: false,
            disk_pressure: false,
            pid_pressure: false,
            apparmor: false,
            shutting_down: false,
        };
        let affinity = |operator: &str| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "disk", "operator": operator, "values": ["ssd"]}]}]}}}})
        };
        for (spec, others, expect) in [
            (json!({}), 0, "ok"),
            (json!({}), 1, "OutOfcpu"),
            (json!({"containers": []}), 2, "OutOfpods"),
            (json!({"nodeSelector": {"disk": "hdd"}}), 0, "NodeAffinity"),
            (affinity("In"), 0, "ok"),
            (affinity("NotIn"), 0, "NodeAffinity"),
            (json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}), 0, "AppArmor"),
            (json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}), 0, "ok"),
            (json!({"securityContext": {"sysctls": [{"name": "kernel.foo", "value": "1"}]}}), 0, "SysctlForbidden"),
        ] {
            let others: Vec<Pod> = (0..others).map(|_| pod(json!({}))).collect();
            let got = admit(&pod(spec.clone()), &room, others.iter());
            assert_eq!(got.err().map_or("ok".to_string(), |v| v.reason), expect, "{spec}");
        }
    }

    #[test]
    fn critical_pods_make_room() {
        let pod = |name: &str, priority: i32, cpu: &str, port: i32| -> Arc<Pod> {
            let mut container = json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
            if port > 0 {
                container["ports"] = json!([{"containerPort": port, "hostPort": port}]);
            }
            Arc::new(
                serde_json::from_value(
                    json!({"metadata": {"name": name}, "spec": {"priority": priority, "containers": [container]}}),
                )
                .unwrap(),
            )
        };
        let room = Room {
            node: None,
            allocatable: [("cpu".to_string(), 1000)].into(),
            allowed_sysctls: &[],
            memory_pressure: false,
            disk_pressure: false,
            pid_pressure: false,
            apparmor: false,
            shutting_down: false,
        };
        let others = [
            pod("low", 1, "100m", 80),
            pod("mid", 5, "500m", 0),
            pod("high", 9, "300m", 0),
            pod("own", CRITICAL, "100m", 0),
        ];
        for (cpu, port, priority, expect) in [
            ("100m", 0, CRITICAL, vec!["low"]),
            ("500m", 0, CRITICAL, vec!["mid"]),
            ("600m", 0, CRITICAL, vec!["low", "mid"]),
            ("0", 80, CRITICAL, vec!["low"]),
            ("2", 0, CRITICAL, vec![]),
            ("100m", 0, 100, vec![]),
        ] {
            let wanted = pod("new", priority, cpu, port);
            let refusal = admit(&wanted, &room, others.iter().map(|p| &**p)).unwrap_err();
            let names: Vec<&str> = victims(&wanted, &room, &others, &refusal).iter().map(|p| spec::name(p)).collect();
            assert_eq!(names, expect, "{cpu} {port} {priority}");
        }
    }
}
