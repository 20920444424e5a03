//! The scheduler's calls to the API: bindings, conditions, and the removal of pods that make room.
//!
//! Each is one task; how many there may be at once is the caller's to bound. Nothing is decided here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Client, DeleteOptions, DynamicApi, Informer, Patch, gvr_of};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use meta::{Object, Status};
use serde_json::{Value, json};

use crate::devices::binding::{Readiness, awaited_drivers, readiness};
use crate::devices::{CLAIM_FINALIZER, is_reserved_for};
use crate::metrics::{Call, METRICS};
use crate::plugins::dynamic_resources::Step as DeviceStep;
use crate::plugins::volume_binding::Step;
use crate::queue::Condition;
use crate::storage::{SELECTED_NODE, is_bound};

/// The pods of one namespace.
pub fn pods(client: &Client, namespace: &str) -> DynamicApi {
    client.dynamic(gvr_of::<Pod>()).namespaced(namespace)
}

/// Makes a call that is counted.
async fn counted<T>(kind: Call, call: impl Future<Output = Result<T, Status>>) -> Result<(), Status> {
    let start = Instant::now();
    METRICS.call_begins(kind);
    let result = call.await.map(drop);
    METRICS.call_ends(kind, result.is_ok(), start.elapsed());
    result
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
    let api = pods(&client, &meta.namespace);
    counted(Call::Binding, api.create_subresource(&meta.name, "binding", body)).await
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
    let api = pods(&client, &meta.namespace);
    counted(Call::StatusPatch, api.patch_subresource(&meta.name, "status", Patch::Strategic(patch))).await
}

/// Says where a pod is expected. That it could not be said is no harm.
pub async fn nominate(client: &Client, pod: &Object, node: &str) {
    let patch = json!({"metadata": {"uid": &*pod.meta.uid}, "status": {"nominatedNodeName": node}});
    let api = pods(client, &pod.meta.namespace);
    if let Err(status) = api.patch_subresource(&pod.meta.name, "status", Patch::Strategic(patch)).await {
        tracing::debug!(pod = pod.meta.key(), "not nominated: {status}");
    }
}

/// Says something of a pod group.
pub async fn set_group_condition(
    client: Client,
    group: Arc<str>,
    kind: &'static str,
    condition: Condition,
) -> Result<(), Status> {
    let (namespace, name) = meta::object::split_key(&group);
    let entry = json!({
        "type": kind,
        "status": &*condition.status,
        "reason": &*condition.reason,
        "message": &*condition.message,
        "lastTransitionTime": client::time::rfc3339(jiff::Timestamp::now()),
    });
    let patch = Patch::Strategic(json!({"status": {"conditions": [entry]}}));
    let api = client.dynamic(gvr_of::<PodGroup>()).namespaced(namespace);
    api.patch_subresource(name, "status", patch).await.map(drop)
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

/// Attempts at a claim that others write too.
const CLAIM_ATTEMPTS: usize = 5;

fn device_claims(client: &Client, namespace: &str) -> DynamicApi {
    client.dynamic(gvr_of::<ResourceClaim>()).namespaced(namespace)
}

/// A random name for a share of a device, in the form of a uid.
fn share_id() -> String {
    let n: u128 = rand::random();
    // The bits that say "random", and of which kind.
    let n = n & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{n:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// What a claim gets, as written; shares of devices get ids of their own.
fn allocation_body(allocation: &AllocationResult) -> Result<Value, Status> {
    let mut body = serde_json::to_value(allocation).map_err(Status::internal)?;
    body["allocationTimestamp"] = client::time::rfc3339(jiff::Timestamp::now()).into();
    for result in body["devices"]["results"].as_array_mut().into_iter().flatten() {
        if result.get("shareID").is_some() {
            result["shareID"] = share_id().into();
        }
    }
    Ok(body)
}

/// Gives a pod's claims their devices, and the claims to the pod.
pub async fn reserve_devices(client: &Client, pod: &Object, steps: &[DeviceStep]) -> Result<(), Status> {
    for step in steps {
        reserve_claim(client, pod, step).await?;
    }
    Ok(())
}

async fn reserve_claim(client: &Client, pod: &Object, step: &DeviceStep) -> Result<(), Status> {
    let (namespace, name) = meta::object::split_key(&step.claim);
    let api = device_claims(client, namespace);
    let fail = |why: String| Status::internal(why);
    if let Some(make) = &step.make {
        return make_claim(client, &api, pod, step, make).await;
    }
    let what = if step.allocation.is_some() { "add allocation and reservation" } else { "add reservation" };
    let mut last = None;
    for _ in 0..CLAIM_ATTEMPTS {
        let object = api.get(name).await?;
        let claim = object.typed::<ResourceClaim>().map_err(Status::internal)?;
        if *object.meta.uid != *step.uid || object.meta.deletion_timestamp.is_some() {
            return Err(fail(format!("claim {} got deleted in the meantime", step.claim)));
        }
        if is_reserved_for(&claim, &pod.meta.uid) {
            return Ok(());
        }
        let mut body = object.value().map_err(Status::internal)?;
        let mut version = object.resource_version;
        if let Some(allocation) = &step.allocation {
            if crate::devices::allocation(&claim).is_some() {
                return Err(fail(format!("claim {} got allocated elsewhere in the meantime", step.claim)));
            }
            let finalizers = body["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            if !finalizers.iter().any(|f| f == CLAIM_FINALIZER) {
                let all: Vec<Value> = finalizers.into_iter().chain([CLAIM_FINALIZER.into()]).collect();
                body["metadata"]["finalizers"] = all.into();
                body["metadata"]["resourceVersion"] = version.to_string().into();
                match api.update(name, body).await {
                    Ok(updated) => {
                        version = updated.resource_version;
                        body = updated.value().map_err(Status::internal)?;
                    }
                    Err(status) if status.is_conflict() => {
                        last = Some(status);
                        continue;
                    }
                    Err(status) => return Err(fail(format!("add finalizer to claim {}: {status}", step.claim))),
                }
            }
            body["status"]["allocation"] = allocation_body(allocation)?;
        }
        let mut reserved = body["status"]["reservedFor"].as_array().cloned().unwrap_or_default();
        reserved.push(json!({"resource": "pods", "name": &*pod.meta.name, "uid": &*pod.meta.uid}));
        body["status"]["reservedFor"] = reserved.into();
        body["metadata"]["resourceVersion"] = version.to_string().into();
        match api.update_subresource(name, "status", body).await {
            Ok(_) => return Ok(()),
            Err(status) if status.is_conflict() => last = Some(status),
            Err(status) => return Err(fail(format!("{what} to claim {}: {status}", step.claim))),
        }
    }
    Err(last.unwrap_or_else(|| fail(format!("{what} to claim {}: no attempt was made", step.claim))))
}

/// Makes the claim for a pod's extended resources, with its devices, and says of the pod which they are.
async fn make_claim(
    client: &Client,
    api: &DynamicApi,
    pod: &Object,
    step: &DeviceStep,
    (body, told): &(Value, Value),
) -> Result<(), Status> {
    let failed =
        |status: Status| Status::internal(format!("create claim {} for extended resources: {status}", step.claim));
    let made = api.create(body.clone()).await;
    METRICS.claim_made(made.is_ok());
    let made = made.map_err(failed)?;
    let mut body = made.value().map_err(Status::internal)?;
    if let Some(allocation) = &step.allocation {
        body["status"]["allocation"] = allocation_body(allocation)?;
    }
    body["status"]["reservedFor"] = json!([{"resource": "pods", "name": &*pod.meta.name, "uid": &*pod.meta.uid}]);
    api.update_subresource(&made.meta.name, "status", body).await.map_err(failed)?;
    let patch = json!({"metadata": {"uid": &*pod.meta.uid}, "status": {"extendedResourceClaimStatus": told}});
    pods(client, &pod.meta.namespace)
        .patch_subresource(&pod.meta.name, "status", Patch::Strategic(patch))
        .await
        .map(drop)
}

/// Waits until the devices that a pod got are ready for it. Claims whose devices will not be are let go.
pub async fn await_devices(
    client: &Client,
    claims: &Informer,
    steps: &[DeviceStep],
    within: Duration,
    profile: &str,
) -> Result<(), Status> {
    let start = Instant::now();
    // First, so that no change is missed.
    let mut changes = claims.subscribe();
    let waiting: Vec<&DeviceStep> = steps.iter().filter(|s| s.waits).collect();
    let claim = |step: &DeviceStep| claims.get(&step.claim).filter(|o| step.uid.is_empty() || *o.meta.uid == *step.uid);
    let mut failed = false;
    let all_ready = async {
        loop {
            let mut ready = true;
            for step in &waiting {
                let Some(object) = claim(step) else {
                    // One made just now is not seen yet.
                    if step.make.is_some() {
                        ready = false;
                        continue;
                    }
                    return Err(Status::internal(format!("claim {} got deleted in the meantime", step.claim)));
                };
                let claim = object.typed::<ResourceClaim>().map_err(Status::internal)?;
                match readiness(&claim) {
                    Readiness::Failed(why) => {
                        failed = true;
                        return Err(Status::internal(why));
                    }
                    // Without an allocation it is the claim as it was before.
                    Readiness::Ready => ready &= crate::devices::allocation(&claim).is_some(),
                    Readiness::Pending => ready = false,
                }
            }
            if ready {
                return Ok(());
            }
            if changes.next().await.is_none() {
                return Err(Status::internal("the informers stopped"));
            }
        }
    };
    let outcome = tokio::time::timeout(within, all_ready).await;
    let status = match &outcome {
        Err(_) => "timeout",
        Ok(Ok(())) => "success",
        Ok(Err(_)) if failed => "failure",
        Ok(Err(_)) => "error",
    };
    let mut drivers: Vec<String> =
        waiting.iter().flat_map(|step| step.allocation.iter().flat_map(|a| awaited_drivers(a))).collect();
    drivers.sort_unstable();
    drivers.dedup();
    drivers.iter().for_each(|driver| METRICS.devices_awaited(profile, driver, status, start.elapsed()));
    let outcome = outcome.unwrap_or_else(|_| Err(Status::timeout("device binding timeout", 1)));
    if outcome.is_err() {
        for object in waiting.iter().filter_map(|step| claim(step)) {
            let Ok(claim) = object.typed::<ResourceClaim>() else { continue };
            if let Err(status) = deallocate(client.clone(), claim).await {
                tracing::warn!(claim = object.meta.key(), "not let go: {status}");
            }
        }
    }
    outcome
}

/// Takes a pod that is not bound after all out of its claims. What fails is made good with the next attempt.
pub async fn release_devices(client: &Client, pod: &Object, steps: &[DeviceStep]) {
    for step in steps {
        let (namespace, name) = meta::object::split_key(&step.claim);
        if step.make.is_some() {
            if let Err(status) = device_claims(client, namespace).delete(name, &DeleteOptions::default()).await
                && !status.is_not_found()
            {
                tracing::warn!(claim = &*step.claim, "not deleted: {status}");
            }
            continue;
        }
        let patch = json!({
            "metadata": {"uid": &*step.uid},
            "status": {"reservedFor": [{"$patch": "delete", "uid": &*pod.meta.uid}]},
        });
        let api = device_claims(client, namespace);
        if let Err(status) = api.patch_subresource(name, "status", Patch::Strategic(patch)).await {
            tracing::warn!(claim = &*step.claim, "not released: {status}");
        }
    }
}

/// Takes a claim's devices from it.
pub async fn deallocate(client: Client, claim: Arc<ResourceClaim>) -> Result<(), Status> {
    let mut body = serde_json::to_value(&*claim).map_err(Status::internal)?;
    if let Some(status) = body["status"].as_object_mut() {
        status.remove("allocation");
        status.remove("reservedFor");
        // What was said of devices it has no more.
        status.remove("devices");
    }
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let meta = &claim.metadata;
    let api = device_claims(&client, &text(&meta.namespace));
    api.update_subresource(&text(&meta.name), "status", body).await.map(drop)
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
