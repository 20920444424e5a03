//! What the kernel is told of memory beyond its limit, with version 2 of cgroups: from where on a container is slowed
//! down (`memory.high`), what it keeps when others want it (`memory.min`, `memory.low`), and how much of it may be swapped
//! (`memory.swap.max`). Numbers only; who writes them is others' business.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::resources::{self, Qos};
use crate::quantity::amount;

/// Pods of at least this priority do without swap.
const CRITICAL: i32 = 2_000_000_000;

/// How the node is to do it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wishes {
    /// `MemoryQoS`; without it nothing is slowed down and nothing kept.
    pub qos: bool,
    /// How far between what it asks for and its limit a container is let; none: it is not slowed down.
    pub throttling: Option<f64>,
    /// Guaranteed pods keep what they ask for, burstable ones as long as can be.
    pub tiered: bool,
    /// Burstable pods may swap their share.
    pub swap: bool,
}

impl Default for Wishes {
    fn default() -> Self {
        Self { qos: true, throttling: None, tiered: false, swap: false }
    }
}

/// The node's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Node {
    pub capacity: u64,
    pub allocatable: u64,
    pub swap: u64,
    pub page: u64,
}

fn of(container: &Container, limits: bool) -> u64 {
    let list = container.resources.as_ref().and_then(|r| if limits { r.limits.as_ref() } else { r.requests.as_ref() });
    amount(list, "memory").unwrap_or(0).max(0) as u64
}

fn protection(qos: Qos, bytes: u64) -> Option<(&'static str, u64)> {
    match qos {
        Qos::Guaranteed => Some(("memory.min", bytes)),
        Qos::Burstable => Some(("memory.low", bytes)),
        Qos::BestEffort => None,
    }
    .filter(|(_, bytes)| *bytes > 0)
}

/// Files and values of a container's cgroup.
pub fn container(wishes: &Wishes, node: &Node, pod: &Pod, container: &Container) -> BTreeMap<&'static str, String> {
    let qos = resources::qos(pod);
    let (request, limit) = (of(container, false), of(container, true));
    let mut out = BTreeMap::new();
    if wishes.qos && wishes.tiered {
        out.extend(protection(qos, request).map(|(file, bytes)| (file, bytes.to_string())));
    }
    if let Some(factor) =
        wishes.throttling.filter(|_| wishes.qos && qos != Qos::Guaranteed && (limit == 0 || limit > request))
    {
        let most = if limit > 0 { limit } else { node.allocatable };
        let high = request as f64 + factor * most.saturating_sub(request) as f64;
        let high = high as u64 / node.page.max(1) * node.page.max(1);
        if high > request {
            out.insert("memory.high", high.to_string());
        }
    }
    if node.swap > 0 {
        let critical = super::spec(pod).priority.unwrap_or(0) >= CRITICAL;
        let may = wishes.swap && qos == Qos::Burstable && request > 0 && request != limit && !critical;
        let share = request as f64 / node.capacity.max(1) as f64 * node.swap as f64;
        out.insert("memory.swap.max", if may { share as u64 } else { 0 }.to_string());
    }
    out
}

/// What a whole pod keeps: the file and the bytes.
pub fn pod(wishes: &Wishes, pod: &Pod) -> Option<(&'static str, u64)> {
    if !wishes.qos || !wishes.tiered {
        return None;
    }
    let request = resources::pod_total(pod, false).get("memory").copied().unwrap_or(0);
    protection(resources::qos(pod), request.max(0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_follow_class_and_wishes() {
        let node = Node { capacity: 1000 << 20, allocatable: 800 << 20, swap: 500 << 20, page: 4096 };
        let dry = Node { swap: 0, ..node };
        let check = |request: &str, limit: &str, wishes: &Wishes, node: &Node, expect: &str| {
            let mut resources = json!({});
            for (list, amount) in [("requests", request), ("limits", limit)] {
                if !amount.is_empty() {
                    resources[list] = json!({"memory": amount, "cpu": "1"});
                }
            }
            let of: Pod =
                serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "resources": resources}]}}))
                    .unwrap();
            let got = container(wishes, node, &of, &super::super::spec(&of).containers[0]);
            let mut shown: Vec<String> = got.iter().map(|(file, value)| format!("{file}={value}")).collect();
            shown.extend(pod(wishes, &of).map(|(file, bytes)| format!("pod {file}={bytes}")));
            assert_eq!(shown.join(" "), expect, "{request} of {limit} by {wishes:?}");
        };
        let usual = Wishes::default();
        let tiered = Wishes { tiered: true, ..Wishes::default() };
        let slowed = Wishes { throttling: Some(0.9), ..Wishes::default() };
        let swapping = Wishes { swap: true, ..Wishes::default() };
        let off = Wishes { qos: false, tiered: true, throttling: Some(0.9), swap: false };
        for wishes in [&usual, &off] {
            check("10Mi", "20Mi", wishes, &dry, "");
        }
        check("10Mi", "20Mi", &usual, &node, "memory.swap.max=0");
        check("10Mi", "10Mi", &tiered, &dry, "memory.min=10485760 pod memory.min=10485760");
        check("10Mi", "20Mi", &tiered, &dry, "memory.low=10485760 pod memory.low=10485760");
        check("", "", &tiered, &dry, "");
        // 10 Mi + 0.9 * 10 Mi, in whole pages.
        check("10Mi", "20Mi", &slowed, &dry, "memory.high=19922944");
        check("10Mi", "10Mi", &slowed, &dry, "");
        // Without a limit up to what pods may have: 0.9 * 800 Mi.
        check("", "", &slowed, &dry, "memory.high=754974720");
        check("100Mi", "200Mi", &swapping, &node, "memory.swap.max=52428800");
        check("100Mi", "100Mi", &swapping, &node, "memory.swap.max=0");
        check("", "", &swapping, &node, "memory.swap.max=0");
    }
}
