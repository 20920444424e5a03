//! Nodes and runtime classes.

use std::collections::BTreeSet;

use meta::{FieldError, Value};

use crate::cells::{age, name, or_none};
use crate::defaults;
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors, formats, resources, same, scheduling, selectors};
use meta::Tree;

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
    let roles: BTreeSet<String> =
        node.map("metadata.labels").iter().filter_map(role).filter(|r| !r.is_empty()).collect();
    roles.into_iter().collect::<Vec<_>>().join(",")
}

impl Strategy for Node {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.at_mut("spec") {
            defaults::mirror_first(spec, "podCIDR", "podCIDRs", "");
        }
        if object.has("status.capacity") && !object.has("status.allocatable") {
            let capacity = object.at("status.capacity").clone();
            object.put("status.allocatable", capacity);
        }
    }

    fn prepare_update(&self, cx: &Context<'_>, object: &mut Value, old: &Value) {
        if cx.subresource.is_empty() {
            object.copy_from("status", old);
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let at = At::root(object);
        scheduling::taints(
            &At { value: object.at("spec.taints"), path: meta::FieldPath::new("metadata.taints") },
            &mut errors,
        );
        let ranges = at.child("spec.podCIDRs");
        errors.unique(ranges.items());
        for range in ranges.items() {
            for complaint in formats::cidr(range.str()) {
                errors.invalid(&range, complaint);
            }
        }
        let v6 = ranges.items().filter(|r| r.str().contains(':')).count();
        if ranges.items().count() > 1 && (v6 != 1 || ranges.items().count() > 2) {
            errors.invalid(&ranges, "may specify no more than one CIDR for each IP family");
        }
        for list in ["capacity", "allocatable"] {
            for (resource, value) in at.child("status").child(list).entries() {
                resources::amount(&value, resource, &mut errors);
            }
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors(self.validate_create(cx, object));
        let spec = At::new(object.at("spec"), "spec");
        let before = old.at("spec");
        if !before.list("podCIDRs").is_empty() && !same(before.at("podCIDRs"), spec.value.at("podCIDRs")) {
            errors.forbidden(&spec.child("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid");
        }
        if !before.text("providerID").is_empty() && before.text("providerID") != spec.value.text("providerID") {
            errors.forbidden(
                &spec.child("providerID"),
                "node updates may not change providerID except from \"\" to valid",
            );
        }
        errors.unique(At::new(object.at("status"), "status").each("addresses"));
        errors.0
    }

    /// A kubelet registers a node with its status.
    fn drops_status_on_create(&self) -> bool {
        false
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        false
    }

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
        let address =
            |kind: &str| or_none(object.find("status.addresses", "type", kind).map_or("", |a| a.text("address")));
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
    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors::default());
        errors.format(&at.child("handler"), formats::dns_label);
        resources::list(&at.child("overhead.podFixed"), &mut errors);
        selectors::labels(&at.child("scheduling.nodeSelector"), &mut errors);
        scheduling::tolerations(&at.child("scheduling.tolerations"), &mut errors);
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors(self.validate_create(cx, object));
        errors.immutable(&At::root(object).child("handler"), old.at("handler"));
        errors.0
    }

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
        let expect = json!([
            "n",
            "NotReady,SchedulingDisabled",
            "a,control-plane",
            "5m",
            "v1.37.0",
            "10.0.0.1",
            "<none>",
            "Debian",
            "<unknown>",
            "<unknown>"
        ]);
        assert_eq!(Value::from(Node.table_row(&node, "2026-01-01T00:05:00Z")), expect);
    }
}
