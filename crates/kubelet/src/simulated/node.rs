//! What a simulated node says of itself.

use std::net::Ipv4Addr;

use client::time::rfc3339;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::{LABEL, node_name};

/// 100.64.0.0/10: no address here is one's of this machine or of another's network.
const RANGE: u32 = 0x6440_0000;
/// Addresses a node.
const BLOCK: u32 = 256;
/// Conditions a healthy node has, with reason and message as a kubelet gives them.
const CONDITIONS: &[(&str, &str, &str, &str)] = &[
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
];

/// Where a node's block of addresses begins. Numbers count from 1.
pub fn block(number: u32) -> Ipv4Addr {
    (RANGE + number.saturating_sub(1) * BLOCK).into()
}

/// The address the node's own (host network) pods have.
pub fn host_address(number: u32) -> Ipv4Addr {
    (u32::from(block(number)) + 1).into()
}

fn resources() -> Value {
    json!({"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "1Ti", "hugepages-1Gi": "0", "hugepages-2Mi": "0"})
}

fn conditions(now: Timestamp) -> Vec<Value> {
    let condition = |(type_, status, reason, message): &(&str, &str, &str, &str)| {
        json!({"type": type_, "status": status, "reason": reason, "message": message,
               "lastHeartbeatTime": rfc3339(now), "lastTransitionTime": rfc3339(now)})
    };
    CONDITIONS.iter().map(condition).collect()
}

/// The object to register: healthy from the first moment.
pub fn object(number: u32, now: Timestamp) -> Value {
    let name = node_name(number);
    let cidr = format!("{}/24", block(number));
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": &name,
            "labels": {
                LABEL: "true", "kubernetes.io/hostname": &name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            },
        },
        "spec": {"podCIDR": &cidr, "podCIDRs": [&cidr], "providerID": format!("simulated://{name}")},
        "status": status(&name, now),
    })
}

fn status(name: &str, now: Timestamp) -> Value {
    json!({
        // No address where anybody could ask for it: there is no kubelet to answer.
        "addresses": [{"type": "Hostname", "address": name}],
        "capacity": resources(), "allocatable": resources(),
        "conditions": conditions(now),
        "nodeInfo": {
            "architecture": "amd64", "operatingSystem": "linux", "osImage": "none: a simulated node", "kernelVersion": "",
            "bootID": "", "machineID": "", "systemUUID": "", "kubeProxyVersion": "",
            "containerRuntimeVersion": "simulated://", "kubeletVersion": concat!("v1.37.0-nauplius-", env!("CARGO_PKG_VERSION")),
        },
    })
}

/// What to write where the node is not said to be as it is; `None` when all is well. Capacity is set once, so that
/// people may change it.
pub fn status_patch(number: u32, seen: &Node, now: Timestamp) -> Option<Value> {
    let have = seen.status.as_ref();
    let known = have.and_then(|s| s.capacity.as_ref()).is_some_and(|c| !c.is_empty());
    let has = |type_: &str, status: &str| {
        let conditions = have.into_iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.into_iter().any(|c| c.type_ == type_ && c.status == status)
    };
    if known && CONDITIONS.iter().all(|(type_, status, ..)| has(type_, status)) {
        return None;
    }
    let mut patch = status(&node_name(number), now);
    if known && let Some(map) = patch.as_object_mut() {
        map.retain(|field, _| field == "conditions");
    }
    Some(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u32) -> Value {
        object(number, Timestamp::UNIX_EPOCH)
    }

    fn typed(value: &Value) -> Node {
        serde_json::from_value(value.clone()).unwrap()
    }

    #[test]
    fn blocks_stay_in_their_range() {
        assert_eq!(block(1), Ipv4Addr::new(100, 64, 0, 0));
        assert_eq!(host_address(300), Ipv4Addr::new(100, 65, 43, 1));
        assert_eq!(block(super::super::MAX_NODES), Ipv4Addr::new(100, 127, 255, 0));
    }

    #[test]
    fn only_what_is_wrong_is_written() {
        let good = node(1);
        assert_eq!(status_patch(1, &typed(&good), Timestamp::UNIX_EPOCH), None);
        let mut lost = good.clone();
        lost["status"]["conditions"][3]["status"] = "Unknown".into();
        lost["status"]["capacity"]["cpu"] = "4".into();
        let patch = status_patch(1, &typed(&lost), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(patch.as_object().unwrap().keys().collect::<Vec<_>>(), ["conditions"]);
        let mut bare = good;
        bare["status"] = json!({});
        assert!(status_patch(1, &typed(&bare), Timestamp::UNIX_EPOCH).unwrap()["capacity"]["cpu"] == "32");
    }
}
