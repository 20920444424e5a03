//! TaintNodesByCondition: a new Node takes no pods until the node controller has found it ready.

use async_trait::async_trait;
use meta::{Status, Value};
use serde_json::json;

use super::{Attributes, Plugin, Write};
use crate::server::ApiServer;

pub struct TaintNodesByCondition;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

#[async_trait]
impl Plugin for TaintNodesByCondition {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.creates("", "nodes")
    }

    async fn mutate(&self, _write: &Write<'_>, node: &mut Value) -> Result<(), Status> {
        taint(node);
        Ok(())
    }
}

fn taint(node: &mut Value) {
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    let taints = &mut node["spec"]["taints"];
    if !taints.is_array() {
        *taints = json!([]);
    }
    if let Some(list) = taints.as_array_mut()
        && !list.iter().any(|t| t["key"] == NOT_READY && t["effect"] == "NoSchedule")
    {
        list.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints() {
        let ours = json!({"key": NOT_READY, "effect": "NoSchedule"});
        let other = json!({"key": "a", "effect": "NoExecute"});
        for (node, expect) in [
            (json!({}), json!([ours])),
            (json!({"spec": {"taints": [other]}}), json!([other, ours])),
            (json!({"spec": {"taints": [ours]}}), json!([ours])),
        ] {
            let mut tainted = node.clone();
            taint(&mut tainted);
            assert_eq!(tainted["spec"]["taints"], expect, "{node}");
        }
    }
}
