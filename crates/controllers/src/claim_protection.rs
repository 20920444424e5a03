//! Claims stay as long as pods have them, and say since when none does.

use std::sync::Arc;

use client::{Change, Client, Informer, ListOptions};
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use meta::{Object, Status};
use serde_json::json;

use crate::conditions::{self, Condition};
use crate::plan::{Action, Plan};
use crate::pod_facts::{self, facts};
use crate::pods::{self, PodView};
use crate::replicas::pods_resource;
use crate::runner::{Ask, Controller, own_key};
use crate::volumes::{BY_CLAIM, CLAIM_PROTECTION, claims_of, claims_resource, finalizer};
use crate::{Context, status_of};

/// Whether the kubelet is done with a pod that only waits for its finalizers.
fn is_shut_down(pod: &PodView) -> bool {
    pod.is_terminating() && pod.object.meta.deletion_grace_period_seconds == Some(0)
}

/// Whether a pod holds a claim: one that has a node does, also when it has ended; its own ephemeral ones only until it is
/// shut down, since they go with it.
fn holds(pod: &PodView, claim: &Object) -> bool {
    let mut volumes = pod.facts.shape.volumes.iter().flatten();
    !pod.node().is_empty()
        && volumes.any(|v| match (&v.persistent_volume_claim, &v.ephemeral) {
            (Some(source), _) => *source.claim_name == *claim.meta.name,
            (None, Some(_)) => {
                format!("{}-{}", pod.name(), v.name) == *claim.meta.name
                    && claim.meta.controller().is_some_and(|c| *c.uid == *pod.object.meta.uid)
                    && !is_shut_down(pod)
            }
            _ => false,
        })
}

/// What a claim is told: whether any pod that has not ended names it, placed or not.
fn unused(claim: &Object, pods: &[PodView], now: Timestamp) -> Result<Option<Action>, Status> {
    let known = status_of(claim)?;
    let mut status = if known.is_object() { known.clone() } else { json!({}) };
    let (state, reason) = match pods.iter().any(|p| !p.is_finished()) {
        true => ("False", "PodUsingPVC"),
        false => ("True", "NoPodsUsingPVC"),
    };
    conditions::set(&mut status, Condition { kind: "Unused", status: state, reason, message: "" }, now);
    if status == known {
        return Ok(None);
    }
    // An older cluster's role for this controller has no status to write.
    Ok(Some(Action::status(&claims_resource(), claim, status)?.where_allowed()))
}

/// `pods` name the claim; `certain` says that nobody else does, as far as the server knows.
pub fn plan(claim: &Object, pods: &[PodView], certain: bool, now: Timestamp) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    let leaving = claim.meta.deletion_timestamp.is_some();
    let stays = !leaving || !certain || pods.iter().any(|p| holds(p, claim));
    match finalizer(&claims_resource(), claim, CLAIM_PROTECTION, stays)? {
        Some(action) => plan.actions.push(action),
        None => plan.actions.extend(unused(claim, pods, now)?),
    }
    Ok(plan)
}

async fn reconcile(ask: Ask, client: Client, claims: Arc<Informer>, all_pods: Arc<Informer>) -> Result<Plan, Status> {
    let Some(claim) = claims.get(&ask.key) else { return Ok(Plan::nothing()) };
    let known = pods::views(all_pods.by_index(BY_CLAIM, &ask.key))?;
    if claim.meta.deletion_timestamp.is_none() || known.iter().any(|p| holds(p, &claim)) {
        return plan(&claim, &known, false, ask.now);
    }
    // The informer may be late, and a claim let go is gone: the server is asked.
    let api = client.dynamic(pods_resource()).namespaced(&claim.meta.namespace);
    let live = api.list(&ListOptions::default()).await?.items;
    let named = live.into_iter().filter(|p| claims_of(p).contains(&claim.meta.key())).collect();
    plan(&claim, &pods::views(named)?, true, ask.now)
}

/// Keys of the claims for which a pod's change means something.
fn touched(change: &Change) -> Vec<String> {
    let state = |o: &Arc<Object>| {
        let pod = PodView::new(o.clone()).ok()?;
        Some((o.meta.uid.clone(), pod.is_finished(), is_shut_down(&pod), pod.node().is_empty()))
    };
    match (&change.old, &change.new) {
        (Some(old), Some(new)) if state(old) == state(new) => Vec::new(),
        (old, new) => {
            let mut keys: Vec<String> = [old, new].into_iter().flatten().flat_map(|o| claims_of(o)).collect();
            keys.dedup();
            keys
        }
    }
}

pub fn claim_protection(cx: &Context) -> Controller {
    let (claims, all_pods) = (cx.informers.get::<PersistentVolumeClaim>(), pod_facts::informer(&cx.informers));
    all_pods.add_index(BY_CLAIM, claims_of);
    let (client, of, of_pods) = (cx.client.clone(), claims.clone(), all_pods.clone());
    Controller::with_io("persistentvolumeclaim-protection-controller", move |ask| {
        reconcile(ask, client.clone(), of.clone(), of_pods.clone()).boxed()
    })
    .watch(&claims, own_key)
    .watch(&all_pods, |change| match change.object().and_then(|o| facts(o)) {
        Some(pod) if pod.shape.volumes.as_ref().is_some_and(|v| !v.is_empty()) => touched(change),
        _ => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn object(kind: &str, name: &str, extra: Value) -> Object {
        let mut body = json!({"kind": kind, "apiVersion": "v1", "metadata": {"name": name, "namespace": "n", "uid": format!("uid-{name}"), "resourceVersion": "3"}});
        for (field, value) in extra.as_object().unwrap() {
            match value {
                Value::Object(from) if body[field].is_object() => {
                    body[field].as_object_mut().unwrap().extend(from.clone())
                }
                _ => body[field] = value.clone(),
            }
        }
        Object::from_value(&body).unwrap()
    }

    #[test]
    fn claims_say_whether_they_are_used_and_go_when_nobody_holds_them() {
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let pod = |node: &str, phase: &str| {
            let spec =
                json!({"nodeName": node, "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]});
            PodView::new(Arc::new(object("Pod", "p", json!({"spec": spec, "status": {"phase": phase}})))).unwrap()
        };
        let held = |extra: Value| {
            let mut metadata = json!({"finalizers": [CLAIM_PROTECTION]});
            metadata.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            json!({"metadata": metadata})
        };
        let (stays, leaves) = (held(json!({})), held(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})));
        let told = |state: &str, reason: &str| json!([{"type": "Unused", "status": state, "reason": reason, "lastTransitionTime": "2026-01-01T00:01:00Z"}]);
        for (what, claim, pods, expect) in [
            ("new", json!({}), vec![], json!([CLAIM_PROTECTION])),
            ("nobody's", stays.clone(), vec![], told("True", "NoPodsUsingPVC")),
            ("awaited", stays.clone(), vec![pod("", "Pending")], told("False", "PodUsingPVC")),
            ("used before", stays, vec![pod("a", "Succeeded")], told("True", "NoPodsUsingPVC")),
            ("held", leaves.clone(), vec![pod("a", "Running")], told("False", "PodUsingPVC")),
            ("held by one that ended", leaves.clone(), vec![pod("a", "Failed")], told("True", "NoPodsUsingPVC")),
            ("wanted by one without a node", leaves.clone(), vec![pod("", "Pending")], json!([])),
            ("let go", leaves, vec![], json!([])),
        ] {
            let plan = plan(&object("PersistentVolumeClaim", "c", claim), &pods, true, now).unwrap();
            let [Action { what: crate::plan::What::Update { subresource, body, .. }, .. }] = &plan.actions[..] else {
                panic!("{what}: {plan:?}")
            };
            let of =
                if *subresource == "status" { &body["status"]["conditions"] } else { &body["metadata"]["finalizers"] };
            assert_eq!(*of, expect, "{what}");
        }
    }
}
