//! Priority: a pod's number, from its class or the default one.

use std::sync::Arc;

use async_trait::async_trait;
use meta::{Object, Status, Value};
use serde::Deserialize;

use super::{Attributes, Plugin, Write};
use crate::server::ApiServer;

pub struct Priority;

const GROUP: &str = "scheduling.k8s.io";

/// What pods take from their class.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Class {
    metadata: Named,
    #[serde(default)]
    value: i64,
    #[serde(default)]
    global_default: bool,
    preemption_policy: Option<String>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// Read once for each version of the class.
fn view(class: &Object) -> Result<Arc<Class>, Status> {
    class.typed().map_err(Status::internal)
}

#[async_trait]
impl Plugin for Priority {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.creates("", "pods") || a.updates("", "pods") || a.is(GROUP, "priorityclasses")
    }

    async fn mutate(&self, write: &Write<'_>, pod: &mut Value) -> Result<(), Status> {
        let Write { server, a, .. } = *write;
        if a.updates("", "pods") {
            keep(pod, write.old);
            return Ok(());
        }
        if !a.creates("", "pods") {
            return Ok(());
        }
        let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default().to_string();
        let Some(spec) = pod["spec"].as_object_mut() else { return Ok(()) };
        let class_name = spec.get("priorityClassName").and_then(Value::as_str).unwrap_or_default().to_string();
        let class = if class_name.is_empty() {
            default_class(server)?
        } else {
            let mut found = server.lookup(GROUP, "priorityclasses", "", &class_name);
            if found.is_none() {
                server.await_newest().await?;
                found = server.lookup(GROUP, "priorityclasses", "", &class_name);
            }
            let found = found
                .ok_or_else(|| a.forbid(&pod_name, format!("no PriorityClass with name {class_name} was found")))?;
            Some(view(&found)?)
        };
        let value = class.as_ref().map_or(0, |class| class.value);
        if let Some(said) = spec.get("priority").and_then(Value::as_i64).filter(|said| *said != value) {
            return Err(a.forbid(&pod_name, format!("the integer value of priority ({said}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name")));
        }
        spec.insert("priority".into(), value.into());
        let policy =
            class.as_ref().and_then(|class| class.preemption_policy.as_deref()).unwrap_or("PreemptLowerPriority");
        if let Some(said) = spec.get("preemptionPolicy").and_then(Value::as_str).filter(|said| *said != policy) {
            return Err(a.forbid(&pod_name, format!("the string value of PreemptionPolicy ({said}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name")));
        }
        spec.entry("preemptionPolicy").or_insert_with(|| policy.into());
        if class_name.is_empty()
            && let Some(class) = &class
        {
            spec.insert("priorityClassName".into(), class.metadata.name.as_str().into());
        }
        Ok(())
    }

    async fn validate(&self, write: &Write<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Write { server, a, .. } = *write;
        let Some(class) = object.filter(|o| a.is(GROUP, "priorityclasses") && o["globalDefault"] == true) else {
            return Ok(());
        };
        let name = class["metadata"]["name"].as_str().unwrap_or_default();
        match default_class(server)? {
            Some(other) if other.metadata.name != name => {
                let other = &other.metadata.name;
                Err(a.forbid(
                    name,
                    format!("PriorityClass {other} is already marked as default. Only one default can exist"),
                ))
            }
            _ => Ok(()),
        }
    }
}

/// An update that leaves out what was filled in here takes it over.
fn keep(pod: &mut Value, old: Option<&Value>) {
    let (Some(spec), Some(before)) = (pod["spec"].as_object_mut(), old.and_then(|old| old["spec"].as_object())) else {
        return;
    };
    for field in ["priority", "preemptionPolicy"] {
        if let Some(kept) = before.get(field).filter(|_| spec.get(field).is_none_or(Value::is_null)) {
            spec.insert(field.into(), kept.clone());
        }
    }
}

/// Of several, the one with the smallest value.
fn default_class(server: &ApiServer) -> Result<Option<Arc<Class>>, Status> {
    let mut best: Option<Arc<Class>> = None;
    for class in server.lookup_all(GROUP, "priorityclasses", "") {
        let class = view(&class)?;
        if class.global_default && best.as_ref().is_none_or(|best| class.value < best.value) {
            best = Some(class);
        }
    }
    Ok(best)
}
