//! The scheduler's calls to the API: bindings, conditions, and the removal of pods that make room.
//!
//! Each is one task; how many there may be at once is the caller's to bound. Nothing is decided here.

use std::sync::Arc;
use std::time::Duration;

use client::{Client, DeleteOptions, DynamicApi, Informer, Patch, gvr_of};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use meta::{Object, Status};
use serde_json::{Value, json};

use crate::plugins::volume_binding::Step;
use crate::queue::Condition;
use crate::storage::{SELECTED_NODE, is_bound};

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
    let condition =
        Condition { status: "True".into(), reason: "PreemptionByScheduler".into(), message: message.into() };
    match set_condition(client.clone(), victim.clone(), "DisruptionTarget", condition, true, None).await {
        Ok(()) => {}
        Err(status) if status.is_not_found() => return Ok(()),
        Err(status) => return Err(status),
    }
    match pods(&client, &victim.meta.namespace).delete(&victim.meta.name, &DeleteOptions::uid(&*victim.meta.uid)).await
    {
        Err(status) if !status.is_not_found() => Err(status),
        _ => Ok(()),
    }
}

/// Gives a pod's claims their volumes, or has them made, and waits until all are bound.
pub async fn bind_claims(
    client: Client,
    claims: Arc<Informer>,
    steps: Vec<Step>,
    node: Arc<str>,
    within: Duration,
) -> Result<(), Status> {
    // First, so that no change is missed.
    let mut changes = claims.subscribe();
    for step in &steps {
        match step {
            Step::Bind { volume, claim, uid } => {
                let (namespace, name) = meta::object::split_key(claim);
                let claim = json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": namespace, "name": name, "uid": &**uid});
                let patch = json!({
                    "metadata": {"annotations": {"pv.kubernetes.io/bound-by-controller": "yes"}},
                    "spec": {"claimRef": claim},
                });
                client.dynamic(gvr_of::<PersistentVolume>()).patch(volume, Patch::Merge(patch)).await?;
            }
            Step::Provision { claim } => {
                let (namespace, name) = meta::object::split_key(claim);
                let patch = json!({"metadata": {"annotations": {SELECTED_NODE: &*node}}});
                client
                    .dynamic(gvr_of::<PersistentVolumeClaim>())
                    .namespaced(namespace)
                    .patch(name, Patch::Merge(patch))
                    .await?;
            }
        }
    }
    let keys: Vec<&str> = steps
        .iter()
        .map(|s| match s {
            Step::Bind { claim, .. } | Step::Provision { claim } => &**claim,
        })
        .collect();
    let all_bound = async {
        while !keys.iter().all(|key| claims.get(key).is_some_and(|claim| is_bound(&claim))) {
            if changes.next().await.is_none() {
                return Err(Status::internal("the informers stopped"));
            }
        }
        Ok(())
    };
    tokio::time::timeout(within, all_bound)
        .await
        .unwrap_or_else(|_| Err(Status::timeout("binding volumes: context deadline exceeded", 1)))
}
