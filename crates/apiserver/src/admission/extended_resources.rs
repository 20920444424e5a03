//! ExtendedResourceToleration, off unless asked for: a pod that asks for a device tolerates the taint that keeps others off the
//! nodes that have it.

use std::collections::BTreeSet;

use async_trait::async_trait;
use meta::{Status, Value};
use serde_json::json;

use super::{Attributes, Operation, Plugin, Write};
use crate::server::ApiServer;

pub struct ExtendedResourceToleration;

/// Whether a resource is neither Kubernetes' own nor a quota's.
fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| {
        !domain.starts_with("requests.") && domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io")
    })
}

#[async_trait]
impl Plugin for ExtendedResourceToleration {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.is("", "pods") && matches!(a.operation, Operation::Create | Operation::Update)
    }

    async fn mutate(&self, _write: &Write<'_>, pod: &mut Value) -> Result<(), Status> {
        tolerate(pod);
        Ok(())
    }
}

fn tolerate(pod: &mut Value) {
    let Some(spec) = pod["spec"].as_object_mut() else { return };
    let containers =
        ["containers", "initContainers"].into_iter().filter_map(|list| spec.get(list)?.as_array()).flatten();
    let asked = containers.filter_map(|container| container["resources"]["requests"].as_object()).flatten();
    let devices: BTreeSet<String> = asked.map(|(name, _)| name.to_string()).filter(|name| is_extended(name)).collect();
    if devices.is_empty() {
        return;
    }
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    let Some(list) = tolerations.as_array_mut() else { return };
    for device in devices {
        let toleration = json!({"key": device, "operator": "Exists", "effect": "NoSchedule"});
        if !list.contains(&toleration) {
            list.push(toleration);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_tolerated() {
        for (requests, expect) in [
            (json!({"cpu": "1", "kubernetes.io/x": "1"}), json!(null)),
            (
                json!({"b.io/y": "1", "a.io/x": "1"}),
                json!([
                    {"key": "a.io/x", "operator": "Exists", "effect": "NoSchedule"},
                    {"key": "b.io/y", "operator": "Exists", "effect": "NoSchedule"},
                ]),
            ),
        ] {
            let mut pod = json!({"spec": {"containers": [{"resources": {"requests": requests}}]}});
            tolerate(&mut pod);
            tolerate(&mut pod);
            assert_eq!(pod["spec"]["tolerations"], expect, "{requests}");
        }
    }
}
