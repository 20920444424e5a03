//! ResourceClaims: made from templates for the pods that name them, let go when no pod uses them any more.

use std::collections::BTreeSet;
use std::sync::Arc;

use client::{Change, Gvr, Informer};
use k8s_openapi::api::core::v1::PodResourceClaim;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate};
use meta::{Object, Status};
use serde_json::{Value, json};

use crate::plan::{Action, Note, Plan};
use crate::pod_facts::{self, facts};
use crate::pods::{self, PodView};
use crate::runner::{Ask, Controller};
use crate::volumes::finalizer;
use crate::{Context, decoded, owners, status_of};

const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// The index of claims by the uid of the pod they were made for.
const BY_POD: &str = "made-for";
/// Keys of pods and of claims share a queue.
const POD: &str = "pod:";
const CLAIM: &str = "claim:";

fn resource() -> Gvr {
    client::gvr_of::<ResourceClaim>()
}

/// Makes what a pod's templates ask and tells the pod; `made` are the claims made for it so far.
pub fn plan_pod(
    pod: &PodView,
    made: &[Arc<Object>],
    template: &dyn Fn(&str) -> Option<Arc<Object>>,
    taken: &dyn Fn(&str) -> bool,
) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    if pod.is_terminating() || pod.is_finished() {
        // What was made for it goes as soon as nothing uses it any more; with the pod itself it would go anyway.
        if pod.is_finished() {
            let left = made.iter().filter(|c| c.meta.deletion_timestamp.is_none());
            plan.actions.extend(left.map(|c| Action::delete(&resource(), c)));
        }
        return Ok(plan);
    }
    let mut names = Vec::new();
    let mut complete = true;
    for wanted in pod.facts.shape.resource_claims() {
        let Some(name) = &wanted.resource_claim_template_name else { continue };
        let label = |o: &&Arc<Object>| {
            let typed = o.typed::<ResourceClaim>().ok();
            typed.is_some_and(|t| t.metadata.annotations.as_ref().and_then(|a| a.get(POD_CLAIM)) == Some(&wanted.name))
        };
        if let Some(claim) = made.iter().filter(|c| c.meta.deletion_timestamp.is_none()).find(label) {
            names.push(json!({"name": wanted.name, "resourceClaimName": &*claim.meta.name}));
            continue;
        }
        complete = false;
        let Some(template) = template(name) else {
            let said = format!("resourceclaimtemplate.resource.k8s.io {name:?} not found");
            plan.note(Note::warning(
                &pod.object,
                "FailedResourceClaimCreation",
                format!("PodResourceClaim {}: {said}", wanted.name),
            ));
            continue;
        };
        let body = template.value().map_err(Status::internal)?;
        let prefix = pods::name_prefix(&format!("{}-{}", pod.name(), wanted.name));
        let fresh = pods::fresh_names(&prefix, &pod.object.meta.uid, std::iter::empty(), taken, 1);
        let mut metadata = body["spec"]["metadata"].clone();
        metadata["name"] = fresh.first().map(String::as_str).unwrap_or_default().into();
        metadata["generateName"] = prefix.into();
        metadata["annotations"][POD_CLAIM] = wanted.name.as_str().into();
        metadata["ownerReferences"] = json!([owners::controller_ref(&pod.object)]);
        let claim = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": metadata, "spec": body["spec"]["spec"],
        });
        let failed = Note::warning(
            &pod.object,
            "FailedResourceClaimCreation",
            format!("PodResourceClaim {}: {{}}", wanted.name),
        );
        plan.act(Action::create(&resource(), &pod.object.meta.namespace, claim).may_exist().failed(failed));
    }
    let known: Vec<Value> =
        pod.facts.resource_claim_statuses.iter().filter_map(|s| serde_json::to_value(s).ok()).collect();
    // Templates may have asked for nothing: such entries have no claim, and stay.
    let has = |entry: &Value| known.iter().any(|k| k == entry);
    if complete && !names.iter().all(has) {
        plan.act(pod.tell(json!({"resourceClaimStatuses": names})));
    }
    Ok(plan)
}

/// Takes off a claim who uses it no more; `uses` says whether a pod of a uid still does.
pub fn plan_claim(claim: &Object, uses: &dyn Fn(&str) -> bool) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    let known = status_of(claim)?;
    let mut status = known.clone();
    let reserved = known["reservedFor"].as_array().cloned().unwrap_or_default();
    // Consumers of other kinds are not ours to judge.
    let stays = |r: &&Value| r["resource"] != "pods" || r["uid"].as_str().is_some_and(uses);
    let left: Vec<Value> = reserved.iter().filter(stays).cloned().collect();
    let allocated = known.get("allocation").is_some_and(|a| !a.is_null());
    let Some(fields) = status.as_object_mut() else { return Ok(plan) };
    if left.is_empty() {
        fields.remove("reservedFor");
        let made_for_a_pod = claim.meta.controller().is_some_and(|c| c.kind == "Pod");
        // Devices of a claim that leaves, or was made for a pod that ended, are free again.
        if allocated && (!reserved.is_empty() || claim.meta.deletion_timestamp.is_some() || !made_for_a_pod) {
            fields.remove("allocation");
            fields.remove("devices");
        }
    } else {
        fields.insert("reservedFor".into(), left.into());
    }
    let free = fields.get("allocation").is_none();
    if status != known {
        plan.act(Action::status(&resource(), claim, status)?);
    } else if free && claim.meta.deletion_timestamp.is_some() {
        // Not sooner: a scheduler adds it, and only then writes the allocation.
        plan.actions.extend(finalizer(&resource(), claim, FINALIZER, false)?);
    }
    Ok(plan)
}

/// Names of the claims a pod uses.
pub fn claims_of(pod: &Object) -> BTreeSet<String> {
    let Some(facts) = facts(pod) else { return BTreeSet::new() };
    let direct = facts.shape.resource_claims().iter().filter_map(|c| c.resource_claim_name.clone());
    direct.chain(facts.resource_claim_statuses.iter().filter_map(|s| s.resource_claim_name.clone())).collect()
}

fn reconcile(ask: &Ask, pods: &Informer, claims: &Informer, templates: &Informer) -> Result<Plan, Status> {
    if let Some(key) = ask.key.strip_prefix(POD) {
        let Some(object) = pods.get(key) else { return Ok(Plan::nothing()) };
        let pod = PodView::new(object)?;
        let namespace = &pod.object.meta.namespace;
        let template = |name: &str| templates.get(&meta::object::object_key(namespace, name));
        let taken = |name: &str| claims.get(&meta::object::object_key(namespace, name)).is_some();
        return plan_pod(&pod, &claims.by_index(BY_POD, &pod.object.meta.uid), &template, &taken);
    }
    let Some(claim) = ask.key.strip_prefix(CLAIM).and_then(|key| claims.get(key)) else { return Ok(Plan::nothing()) };
    let typed = decoded::<ResourceClaim>(&claim)?;
    let reserved = typed.status.as_ref().and_then(|s| s.reserved_for.as_deref()).unwrap_or_default();
    let using: BTreeSet<&str> = reserved
        .iter()
        .filter(|r| {
            let pod = pods.get(&meta::object::object_key(&claim.meta.namespace, &r.name));
            let pod = pod.filter(|p| *p.meta.uid == *r.uid).and_then(|p| PodView::new(p).ok());
            // One that leaves before it had a node never used anything.
            pod.is_some_and(|p| !p.is_finished() && (!p.is_terminating() || !p.node().is_empty()))
        })
        .map(|r| r.uid.as_str())
        .collect();
    plan_claim(&claim, &|uid| using.contains(uid))
}

pub fn resource_claims(cx: &Context) -> Controller {
    let pods = pod_facts::informer(&cx.informers);
    let (claims, templates) = (cx.informers.get::<ResourceClaim>(), cx.informers.get::<ResourceClaimTemplate>());
    claims.add_index(BY_POD, |o| {
        o.meta.controller().filter(|c| c.kind == "Pod").map(|c| c.uid.to_string()).into_iter().collect()
    });
    let (of_pods, of_claims, of_templates) = (pods.clone(), claims.clone(), templates.clone());
    let (waiting, made) = (pods.clone(), claims.clone());
    Controller::new("resourceclaim-controller", move |ask| reconcile(&ask, &of_pods, &of_claims, &of_templates))
        .watch(&pods, move |change: &Change| {
            let Some(object) = change.object() else { return Vec::new() };
            // One without claims of its own may have one made by the scheduler.
            if facts(object).is_none_or(|p| p.shape.resource_claims().is_empty())
                && !made.is_indexed(BY_POD, &object.meta.uid)
            {
                return Vec::new();
            }
            let key = |name: &String| format!("{CLAIM}{}", meta::object::object_key(&object.meta.namespace, name));
            let claims = claims_of(object);
            std::iter::once(format!("{POD}{}", change.key)).chain(claims.iter().map(key)).collect()
        })
        .watch(&claims, |change: &Change| {
            let owner = change.object().and_then(|o| Some((o.meta.namespace.clone(), o.meta.controller()?.clone())));
            let owner = owner.filter(|(_, c)| c.kind == "Pod");
            let pod = owner.map(|(ns, c)| format!("{POD}{}", meta::object::object_key(&ns, &c.name)));
            pod.into_iter().chain([format!("{CLAIM}{}", change.key)]).collect()
        })
        .watch(&templates, move |change: &Change| {
            let (namespace, name) = meta::object::split_key(&change.key);
            let names = |p: &&Arc<Object>| {
                let asks = |c: &PodResourceClaim| c.resource_claim_template_name.as_deref() == Some(name);
                facts(p).is_some_and(|p| p.shape.resource_claims().iter().any(asks))
            };
            waiting.list(Some(namespace)).iter().filter(names).map(|p| format!("{POD}{}", p.meta.key())).collect()
        })
        .workers(cx.options.concurrency)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: &str, api: &str, name: &str, extra: Value) -> Arc<Object> {
        let mut body = json!({"kind": kind, "apiVersion": api, "metadata": {"name": name, "namespace": "n", "uid": format!("uid-{name}"), "resourceVersion": "3"}});
        for (field, value) in extra.as_object().unwrap() {
            match value {
                Value::Object(from) if body[field].is_object() => {
                    body[field].as_object_mut().unwrap().extend(from.clone())
                }
                _ => body[field] = value.clone(),
            }
        }
        Arc::new(Object::from_value(&body).unwrap())
    }

    fn lines(plan: &Plan) -> Vec<String> {
        plan.actions.iter().map(ToString::to_string).chain(plan.notes.iter().map(|n| n.reason.to_string())).collect()
    }

    #[test]
    fn claims_come_from_templates() {
        let spec =
            json!({"spec": {"containers": [], "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}]}});
        let pod = PodView::new(object("Pod", "v1", "p", spec)).unwrap();
        let template =
            object("ResourceClaimTemplate", "resource.k8s.io/v1", "t", json!({"spec": {"spec": {"devices": {}}}}));
        let some = |_: &str| Some(template.clone());
        let first = plan_pod(&pod, &[], &some, &|_| false).unwrap();
        assert!(lines(&first)[0].starts_with("create resourceclaims n/p-gpu-"), "{:?}", lines(&first));
        assert_eq!(lines(&plan_pod(&pod, &[], &|_| None, &|_| false).unwrap()), ["FailedResourceClaimCreation"]);
        let made = object(
            "ResourceClaim",
            "resource.k8s.io/v1",
            "c",
            json!({"metadata": {"annotations": {POD_CLAIM: "gpu"}}, "spec": {"devices": {}}}),
        );
        assert_eq!(lines(&plan_pod(&pod, &[made], &some, &|_| false).unwrap()), ["patch pods/status n/p"]);
    }

    #[test]
    fn devices_come_free() {
        let reserved = json!([{"resource": "pods", "name": "p", "uid": "u"}]);
        let claim = |status: Value, leaving: bool| {
            let mut metadata = json!({"finalizers": [FINALIZER]});
            if leaving {
                metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            object(
                "ResourceClaim",
                "resource.k8s.io/v1",
                "c",
                json!({"metadata": metadata, "spec": {"devices": {}}, "status": status}),
            )
        };
        for (status, leaving, used, expect) in [
            (json!({"allocation": {}, "reservedFor": reserved}), false, true, &[][..]),
            (
                json!({"allocation": {}, "reservedFor": reserved}),
                false,
                false,
                &["update resourceclaims/status n/c"][..],
            ),
            (json!({}), true, false, &["update resourceclaims n/c"][..]),
            (json!({}), false, false, &[][..]),
        ] {
            assert_eq!(lines(&plan_claim(&claim(status, leaving), &|_| used).unwrap()), expect);
        }
    }
}
