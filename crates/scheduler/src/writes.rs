//! The scheduler's calls to the API: bindings, conditions, and the removal of pods that make room.
//!
//! Each is one task; how many there may be at once is the caller's to bound. Nothing is decided here.

use std::sync::Arc;

use client::{Client, DeleteOptions, DynamicApi, Patch, gvr_of};
use k8s_openapi::api::core::v1::Pod;
use meta::{Object, Status};
use serde_json::{Value, json};

use crate::queue::Condition;

/// The pods of one namespace.
pub fn pods(client: &Client, namespace: &str) -> DynamicApi {
    client.dynamic(gvr_of::<Pod>()).namespaced(namespace)
}

/// Binds a pod to a node.
pub async fn bind(client: Client, object: Arc<Object>, node: Arc<str>) -> Result<(), Status> {
    let meta = &object.meta;
    let body = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": &*meta.name, "namespace": &*meta.namespace, "uid": &*meta.uid},
        "target": {"kind": "Node", "name": &*node},
    });
    pods(&client, &meta.namespace).create_subresource(&meta.name, "binding", body).await.map(drop)
}

/// Sets a condition, and `nominatedNodeName` where given (empty: takes it away).
pub async fn set_condition(
    client: Client,
    object: Arc<Object>,
    kind: &'static str,
    condition: Condition,
    transition: bool,
    nominated: Option<Arc<str>>,
) -> Result<(), Status> {
    let mut entry = json!({
        "type": kind,
        "status": &*condition.status,
        "reason": &*condition.reason,
        "message": &*condition.message,
        "lastProbeTime": null,
    });
    if transition {
        entry["lastTransitionTime"] = client::time::rfc3339(jiff::Timestamp::now()).into();
    }
    if object.meta.generation > 0 {
        entry["observedGeneration"] = object.meta.generation.into();
    }
    let mut status = json!({"conditions": [entry]});
    if let Some(node) = nominated {
        status["nominatedNodeName"] = if node.is_empty() { Value::Null } else { (&*node).into() };
    }
    // The uid keeps it from a later pod of the same name.
    let patch = json!({"metadata": {"uid": &*object.meta.uid}, "status": status});
    let meta = &object.meta;
    pods(&client, &meta.namespace).patch_subresource(&meta.name, "status", Patch::Strategic(patch)).await.map(drop)
}

/// Deletes a pod that makes room for another, after saying so in its conditions.
pub async fn evict(client: Client, victim: Arc<Object>, message: String) -> Result<(), Status> {
    let condition = Condition { status: "True".into(), reason: "PreemptionByScheduler".into(), message: message.into() };
    match set_condition(client.clone(), victim.clone(), "DisruptionTarget", condition, true, None).await {
        Ok(()) => {}
        Err(status) if status.is_not_found() => return Ok(()),
        Err(status) => return Err(status),
    }
    match pods(&client, &victim.meta.namespace).delete(&victim.meta.name, &DeleteOptions::uid(&*victim.meta.uid)).await {
        Err(status) if !status.is_not_found() => Err(status),
        _ => Ok(()),
    }
}
