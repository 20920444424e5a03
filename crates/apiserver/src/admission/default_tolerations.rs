//! DefaultTolerationSeconds: a pod stays five minutes, or as long as is configured, on a node that is not ready or out of reach.

use async_trait::async_trait;
use meta::{Status, Value};
use serde_json::json;

use super::{Attributes, Operation, Plugin, Write};
use crate::server::ApiServer;

pub struct DefaultTolerationSeconds;

/// How long pods stay: on nodes that are not ready, and on those out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub [i64; 2]);

impl Default for Seconds {
    /// Upstream's.
    fn default() -> Self {
        Self([300; 2])
    }
}

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.is("", "pods") && matches!(a.operation, Operation::Create | Operation::Update)
    }

    async fn mutate(&self, write: &Write<'_>, pod: &mut Value) -> Result<(), Status> {
        tolerate(pod, write.server.config().settings.toleration_seconds);
        Ok(())
    }
}

fn tolerate(pod: &mut Value, Seconds(seconds): Seconds) {
    let Some(spec) = pod["spec"].as_object_mut() else { return };
    let tolerations = spec.get("tolerations").and_then(Value::as_array);
    let covers = |t: &Value, key: &str| {
        let text = |field: &str| t[field].as_str().unwrap_or_default();
        matches!(text("effect"), "" | "NoExecute") && (text("key") == key || text("key").is_empty())
    };
    let is_covered = |key: &str| tolerations.is_some_and(|list| list.iter().any(|t| covers(t, key)));
    let missing: Vec<(&str, i64)> = TAINTS.into_iter().zip(seconds).filter(|(key, _)| !is_covered(key)).collect();
    if missing.is_empty() {
        return;
    }
    let list = spec.entry("tolerations").or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.extend(
            missing.iter().map(
                |(key, seconds)| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}),
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations() {
        let ours = |at: usize| json!({"key": TAINTS[at], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        let all = json!({"operator": "Exists"});
        let one = json!({"key": TAINTS[0], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
        let schedule = json!({"key": TAINTS[0], "operator": "Exists", "effect": "NoSchedule"});
        for (given, expect) in [
            (json!([]), json!([ours(0), ours(1)])),
            (json!([all]), json!([all])),
            (json!([one]), json!([one, ours(1)])),
            (json!([schedule]), json!([schedule, ours(0), ours(1)])),
        ] {
            let mut pod = json!({"spec": {"tolerations": given}});
            tolerate(&mut pod, Seconds::default());
            assert_eq!(pod["spec"]["tolerations"], expect, "{given}");
        }
        let mut pod = json!({"spec": {}});
        tolerate(&mut pod, Seconds([30, 0]));
        let seconds = [0, 1].map(|at| pod["spec"]["tolerations"][at]["tolerationSeconds"].as_i64());
        assert_eq!(seconds, [Some(30), Some(0)]);
    }
}
