//! resource.k8s.io: claims on devices and the slices that offer them.

use meta::Value;

use crate::cells::{age, name, or_none};
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    /// Device classes, claim templates and taint rules: nothing more to print.
    NameAge: "Name|Age";
    ResourceClaim: "Name|State|Age";
    ResourceSlice: "Name|Node|Driver|Pool|Age";
}

impl Strategy for NameAge {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), age(object, now)]
    }
}

impl Strategy for ResourceClaim {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let deleted = object.has("metadata.deletionTimestamp");
        let mut states = Vec::new();
        if deleted {
            states.push("deleted");
        }
        if object.has("status.allocation") {
            states.push("allocated");
            if !object.list("status.reservedFor").is_empty() {
                states.push("reserved");
            }
        } else if !deleted {
            states.push("pending");
        }
        vec![name(object), states.join(",").into(), age(object, now)]
    }
}

impl Strategy for ResourceSlice {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let node = if object.flag("spec.allNodes") { "<all nodes>".into() } else { or_none(object.text("spec.nodeName")) };
        vec![name(object), node, object.text("spec.driver").into(), object.text("spec.pool.name").into(), age(object, now)]
    }
}
