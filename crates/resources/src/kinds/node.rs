//! Nodes and runtime classes.

use std::collections::BTreeSet;

use meta::Value;

use crate::cells::{age, name, or_none};
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    Node: "Name|Status|Roles|Age|Version|Internal-IP*|External-IP*|OS-Image*|Kernel-Version*|Container-Runtime*";
    RuntimeClass: "Name|Handler|Age";
}

/// Labels that name a node's roles: in their own name, or in their value.
const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE_LABEL: &str = "kubernetes.io/role";

fn roles(node: &Value) -> String {
    let role = |(key, value): (&String, &Value)| match key.strip_prefix(ROLE_PREFIX) {
        Some(role) => Some(role.to_string()),
        None if key == ROLE_LABEL => value.as_str().map(Into::into),
        None => None,
    };
    let roles: BTreeSet<String> = node.map("metadata.labels").iter().filter_map(role).filter(|r| !r.is_empty()).collect();
    roles.into_iter().collect::<Vec<_>>().join(",")
}

impl Strategy for Node {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let mut status = match object.find("status.conditions", "type", "Ready").map(|c| c.text("status")) {
            None => "Unknown",
            Some("True") => "Ready",
            Some(_) => "NotReady",
        }
        .to_string();
        if object.flag("spec.unschedulable") {
            status += ",SchedulingDisabled";
        }
        let address = |kind: &str| or_none(object.find("status.addresses", "type", kind).map_or("", |a| a.text("address")));
        let info = object.at("status.nodeInfo");
        let known = |field: &str| Value::from(Some(info.text(field)).filter(|t| !t.is_empty()).unwrap_or("<unknown>"));
        vec![
            name(object),
            status.into(),
            or_none(&roles(object)),
            age(object, now),
            info.text("kubeletVersion").into(),
            address("InternalIP"),
            address("ExternalIP"),
            known("osImage"),
            known("kernelVersion"),
            known("containerRuntimeVersion"),
        ]
    }
}

impl Strategy for RuntimeClass {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), object.text("handler").into(), age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_printed() {
        let node = json!({"metadata": {"name": "n", "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "a"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "Unknown"}], "nodeInfo": {"kubeletVersion": "v1.37.0", "osImage": "Debian"},
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}});
        let expect = json!(["n", "NotReady,SchedulingDisabled", "a,control-plane", "5m", "v1.37.0", "10.0.0.1", "<none>", "Debian",
            "<unknown>", "<unknown>"]);
        assert_eq!(Value::from(Node.table_row(&node, "2026-01-01T00:05:00Z")), expect);
    }
}
