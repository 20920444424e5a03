//! RuntimeClass: a pod takes its runtime's overhead, and runs where that runtime is.

use async_trait::async_trait;
use meta::{Status, Value};
use serde_json::json;

use super::{Attributes, Plugin, Write, amounts};
use crate::server::ApiServer;

pub struct RuntimeClass;

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

async fn class_of(server: &ApiServer, a: &Attributes<'_>, pod: &Value) -> Result<Option<Value>, Status> {
    let Some(name) = pod["spec"]["runtimeClassName"].as_str() else { return Ok(None) };
    let look = || server.lookup("node.k8s.io", "runtimeclasses", "", name);
    let mut found = look();
    if found.is_none() {
        server.await_newest().await?;
        found = look();
    }
    let missing = || {
        a.forbid(
            pod["metadata"]["name"].as_str().unwrap_or_default(),
            format!("pod rejected: RuntimeClass {name:?} not found"),
        )
    };
    found.ok_or_else(missing)?.value().map(Some).map_err(Status::internal)
}

#[async_trait]
impl Plugin for RuntimeClass {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.creates("", "pods")
    }

    async fn mutate(&self, write: &Write<'_>, pod: &mut Value) -> Result<(), Status> {
        let Write { server, a, .. } = *write;
        let Some(class) = class_of(server, a, pod).await? else { return Ok(()) };
        apply(&class, pod).map_err(|why| a.forbid(pod["metadata"]["name"].as_str().unwrap_or_default(), why))
    }

    async fn validate(&self, write: &Write<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Write { server, a, .. } = *write;
        let Some(pod) = object else { return Ok(()) };
        let class = class_of(server, a, pod).await?;
        let fixed = class.as_ref().map(|class| &class["overhead"]["podFixed"]).filter(|o| o.is_object());
        let own = &pod["spec"]["overhead"];
        let why = match fixed {
            Some(fixed) if amounts::of(fixed) != amounts::of(own) => MISMATCH,
            None if own.as_object().is_some_and(|o| !o.is_empty()) => {
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"
            }
            _ => return Ok(()),
        };
        Err(a.forbid(pod["metadata"]["name"].as_str().unwrap_or_default(), why))
    }
}

fn apply(class: &Value, pod: &mut Value) -> Result<(), String> {
    let fixed = &class["overhead"]["podFixed"];
    let spec = &mut pod["spec"];
    if fixed.is_object() {
        if spec["overhead"].is_object() && amounts::of(fixed) != amounts::of(&spec["overhead"]) {
            return Err(MISMATCH.into());
        }
        spec["overhead"] = fixed.clone();
    }
    for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        if !spec["nodeSelector"].is_object() {
            spec["nodeSelector"] = json!({});
        }
        let said = spec["nodeSelector"].get(key).and_then(Value::as_str);
        let wanted = value.as_str().unwrap_or_default();
        if let Some(said) = said.filter(|said| *said != wanted) {
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; pod.spec.nodeSelector[{key}] = {said}"
            ));
        }
        spec["nodeSelector"][key] = value.clone();
    }
    for toleration in amounts::list(&class["scheduling"], "tolerations") {
        if !spec["tolerations"].is_array() {
            spec["tolerations"] = json!([]);
        }
        if let Some(list) = spec["tolerations"].as_array_mut()
            && !list.contains(toleration)
        {
            list.push(toleration.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applies() {
        let class = json!({"overhead": {"podFixed": {"cpu": "100m"}}, "scheduling": {"nodeSelector": {"k": "v"}, "tolerations": [{"key": "t"}]}});
        for (spec, expect) in [
            (
                json!({}),
                Ok(json!({"overhead": {"cpu": "100m"}, "nodeSelector": {"k": "v"}, "tolerations": [{"key": "t"}]})),
            ),
            (
                json!({"nodeSelector": {"k": "w"}}),
                Err("conflict: runtimeClass.scheduling.nodeSelector[k] = v; pod.spec.nodeSelector[k] = w"),
            ),
            (json!({"overhead": {"cpu": "1"}}), Err(MISMATCH)),
            (
                json!({"overhead": {"cpu": "0.1"}, "tolerations": [{"key": "t"}]}),
                Ok(json!({"overhead": {"cpu": "100m"}, "nodeSelector": {"k": "v"}, "tolerations": [{"key": "t"}]})),
            ),
        ] {
            let mut pod = json!({"spec": spec});
            let result = apply(&class, &mut pod).map(|()| pod["spec"].clone());
            assert_eq!(result, expect.map_err(String::from), "{spec}");
        }
    }
}
