//! Priority classes and leases.

use meta::Value;

use crate::cells::{age, name};
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    PriorityClass: "Name|Value#|Global-Default|PreemptionPolicy|Age";
    Lease: "Name|Holder|Age";
}

impl Strategy for PriorityClass {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let policy = object.at("preemptionPolicy").as_str().unwrap_or("<unset>");
        vec![name(object), object.int("value").into(), object.flag("globalDefault").into(), policy.into(), age(object, now)]
    }
}

impl Strategy for Lease {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), object.text("spec.holderIdentity").into(), age(object, now)]
    }
}
