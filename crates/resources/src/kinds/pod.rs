//! Pods: strategy. The rules of a pod's spec, which workloads share, are in [`crate::validate`].

use meta::Value;

use crate::kinds::pod_columns;
use crate::strategy::Strategy;

kinds! {
    Pod: "Name|Ready|Status|Restarts|Age|IP*|Node*|Nominated Node*|Readiness Gates*";
}

impl Strategy for Pod {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        pod_columns::row(object, now)
    }
}
