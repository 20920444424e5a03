//! Persistent volumes: binding claims to volumes, protecting both while in use, and the claims of ephemeral volumes.
//!
//! Volumes that are there are bound; for others the claim is marked for the provisioner its class names. What a
//! released volume's policy says is noted; deleting the medium is its driver's.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{Change, Informer, Patch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meta::quantity::Quantity;
use meta::{Gvr, LabelSelector, Object, Status};
use serde_json::{Value, json};

use crate::plan::{Action, Note, Plan};
use crate::pod_facts::{self, facts};
use crate::pods;
use crate::runner::{Controller, own_key};
use crate::{Context, decoded, figures, owners, status_of, volume_reclaim};

const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// Who made a volume, and deletes it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Where classes were named before there was a field.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// The index of pods by the claims they use.
pub const BY_CLAIM: &str = "claim";

pub fn claims_resource() -> Gvr {
    client::gvr_of::<PersistentVolumeClaim>()
}

pub fn volumes_resource() -> Gvr {
    client::gvr_of::<PersistentVolume>()
}

/// A volume with its typed view.
#[derive(Clone)]
pub struct Volume {
    pub object: Arc<Object>,
    pub typed: Arc<PersistentVolume>,
}

impl Volume {
    fn claim(&self) -> Option<(String, Option<&str>)> {
        let reference = self.typed.spec.as_ref()?.claim_ref.as_ref()?;
        let (namespace, name) = (reference.namespace.as_deref().unwrap_or_default(), reference.name.as_deref()?);
        Some((meta::object::object_key(namespace, name), reference.uid.as_deref().filter(|u| !u.is_empty())))
    }

    fn size(&self) -> Quantity {
        let capacity = self.typed.spec.as_ref().and_then(|s| s.capacity.as_ref()?.get("storage"));
        capacity.and_then(|q| q.0.parse().ok()).unwrap_or_else(Quantity::zero)
    }

    /// Why a claim could not have it, its present owner and the claim's selector aside.
    fn unfit(&self, claim: &PersistentVolumeClaim) -> Option<String> {
        let (volume, wanted) = (self.typed.spec.clone().unwrap_or_default(), claim.spec.clone().unwrap_or_default());
        let class = |meta: &ObjectMeta, class: Option<String>| {
            let marked = meta.annotations.as_ref().and_then(|a| a.get(CLASS_ANNOTATION)).cloned();
            marked.or(class).unwrap_or_default()
        };
        let mode = |m: Option<String>| m.unwrap_or_else(|| "Filesystem".into());
        let has = volume.access_modes.unwrap_or_default();
        if self.object.meta.deletion_timestamp.is_some() {
            return Some(format!("the volume is marked for deletion {:?}", self.object.meta.name));
        }
        let mismatch = [
            (self.size() < asked(claim), "requested PV is too small"),
            (
                class(&self.typed.metadata, volume.storage_class_name)
                    != class(&claim.metadata, wanted.storage_class_name),
                "storageClassName does not match",
            ),
            (mode(volume.volume_mode) != mode(wanted.volume_mode), "incompatible volumeMode"),
            (wanted.access_modes.iter().flatten().any(|m| !has.contains(m)), "incompatible accessMode"),
            (
                volume.volume_attributes_class_name != wanted.volume_attributes_class_name,
                "VolumeAttributesClass does not match",
            ),
        ];
        mismatch.into_iter().find(|m| m.0).map(|m| m.1.into())
    }

    /// Whether a claim could have it, its present owner aside.
    fn suits(&self, claim: &PersistentVolumeClaim) -> bool {
        let selector = claim.spec.as_ref().and_then(|s| serde_json::to_value(s.selector.as_ref()?).ok());
        let selected =
            selector.is_none_or(|s| LabelSelector::from_value(&s).is_ok_and(|s| s.matches(&self.object.meta.labels)));
        selected && self.unfit(claim).is_none()
    }
}

fn asked(claim: &PersistentVolumeClaim) -> Quantity {
    let request = claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage").cloned());
    request.and_then(|q| q.0.parse().ok()).unwrap_or_else(Quantity::zero)
}

/// What one claim wants done. `class` is the claim's storage class, if it names one that exists.
pub fn plan_claim(
    object: &Object,
    claim: &PersistentVolumeClaim,
    volumes: &[Volume],
    class: Option<&StorageClass>,
    consumers: &[String],
) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    plan.stop_at_failure = true;
    if object.meta.deletion_timestamp.is_some() {
        return Ok(plan);
    }
    let spec = claim.spec.clone().unwrap_or_default();
    let annotation = |name: &str| claim.metadata.annotations.as_ref().and_then(|a| a.get(name)).cloned();
    let key = object.meta.key();
    let ours = |v: &&Volume| v.claim().is_some_and(|(k, uid)| k == key && uid.is_none_or(|u| *u == *object.meta.uid));
    let named = spec.volume_name.as_deref().filter(|n| !n.is_empty());
    let found = match named {
        Some(name) => volumes.iter().find(|v| *v.object.meta.name == *name),
        None => {
            let reserved = volumes.iter().find(|v| ours(v) && v.suits(claim));
            let delayed = class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
            let waiting = delayed && annotation(SELECTED_NODE).is_none();
            let free = || {
                volumes
                    .iter()
                    .filter(|v| v.claim().is_none() && v.suits(claim))
                    .min_by_key(|v| (v.size(), v.object.meta.name.clone()))
            };
            reserved.or_else(|| if waiting { None } else { free() })
        }
    };
    let Some(volume) = found else {
        if named.is_some() && annotation(BIND_COMPLETED).is_some() {
            let mut status = status_of(object)?;
            if status["phase"] != "Lost" {
                status["phase"] = "Lost".into();
                plan.note(Note::warning(
                    object,
                    "ClaimLost",
                    "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
                ));
                plan.act(Action::status(&claims_resource(), object, status)?);
            }
            return Ok(plan);
        }
        return wait(plan, object, claim, class, named.is_some(), consumers);
    };
    if let Some(why) = volume.unfit(claim).filter(|_| named.is_some() && volume.claim().is_none()) {
        let said = format!("Cannot bind to requested volume {:?}: {why}", volume.object.meta.name);
        plan.note(Note::warning(object, "VolumeMismatch", said));
        return wait(plan, object, claim, class, true, consumers);
    }
    if volume.claim().is_some() && !ours(&volume) {
        if annotation(BIND_COMPLETED).is_some() {
            let mut status = status_of(object)?;
            if status["phase"] != "Lost" {
                status["phase"] = "Lost".into();
                let said = "Two claims are bound to the same volume, this one is bound incorrectly";
                let note = Note::warning(object, "ClaimMisbound", said);
                plan.act(Action::status(&claims_resource(), object, status)?.done(note));
            }
            return Ok(plan);
        }
        // Another's: wait until it is free.
        return wait(plan, object, claim, class, true, consumers);
    }
    let complete = volume.claim().is_some_and(|(_, uid)| uid.is_some());
    if !complete {
        let mut reference = json!(client::reference(object));
        reference["resourceVersion"] = object.resource_version.to_string().into();
        let mut patch = json!({"metadata": {"resourceVersion": volume.object.resource_version.to_string()}, "spec": {"claimRef": reference}});
        if volume.claim().is_none() {
            patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
        }
        plan.act(Action::patch(&volumes_resource(), &volume.object, "", Patch::Merge(patch)));
    }
    let mut status = status_of(object)?;
    let body = volume.object.value().map_err(Status::internal)?;
    let known = status.clone();
    status["phase"] = "Bound".into();
    status["accessModes"] = body["spec"]["accessModes"].clone();
    // Only when it becomes so: of a volume that grew, the claim hears once its file system has followed.
    if known["phase"] != "Bound" {
        status["capacity"] = body["spec"]["capacity"].clone();
    }
    if named.is_none() || annotation(BIND_COMPLETED).is_none() {
        let mut annotations = json!({BIND_COMPLETED: "yes"});
        if named.is_none() {
            annotations[BOUND_BY_CONTROLLER] = "yes".into();
        }
        let patch = json!({
            "metadata": {"resourceVersion": object.resource_version.to_string(), "annotations": annotations},
            "spec": {"volumeName": &*volume.object.meta.name},
        });
        // The status follows when this is seen.
        plan.act(Action::patch(&claims_resource(), object, "", Patch::Merge(patch)));
    } else if status != known {
        plan.act(Action::status(&claims_resource(), object, status)?);
    }
    Ok(plan)
}

/// A claim without a volume: pending, and for its provisioner if it has one.
fn wait(
    mut plan: Plan,
    object: &Object,
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    named: bool,
    consumers: &[String],
) -> Result<Plan, Status> {
    let annotations = claim.metadata.annotations.clone().unwrap_or_default();
    match class {
        _ if named => {}
        Some(class)
            if class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
                && !annotations.contains_key(SELECTED_NODE) =>
        {
            let (reason, said) = match consumers {
                [] => ("WaitForFirstConsumer", "waiting for first consumer to be created before binding".into()),
                [pod] => ("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
                pods => ("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", pods.join(","))),
            };
            plan.note(Note::normal(object, reason, said));
        }
        Some(class) if class.provisioner == "kubernetes.io/no-provisioner" => {}
        Some(class) => {
            if annotations.get(PROVISIONER) != Some(&class.provisioner) {
                let marks = json!({PROVISIONER: class.provisioner, PROVISIONER_BETA: class.provisioner});
                plan.act(Action::patch(
                    &claims_resource(),
                    object,
                    "",
                    Patch::Merge(json!({"metadata": {"annotations": marks}})),
                ));
            }
            let said = format!(
                "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.",
                class.provisioner
            );
            plan.note(Note::normal(object, "ExternalProvisioning", said));
        }
        None => {
            plan.note(Note::normal(
                object,
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set",
            ));
        }
    }
    let mut status = status_of(object)?;
    if status["phase"] != "Pending" {
        status["phase"] = "Pending".into();
        plan.act(Action::status(&claims_resource(), object, status)?);
    }
    Ok(plan)
}

/// What one volume's status should say. `claim_uid` is the uid of the claim it is for, while that exists.
pub fn plan_volume(
    volume: &Volume,
    claim: Option<(&Object, &PersistentVolumeClaim)>,
    users: &[String],
    now: Timestamp,
) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    let known = status_of(&volume.object)?;
    let phase = match volume.claim() {
        None => "Available",
        // Reserved by its maker for a claim that has not taken it.
        Some((_, None)) => "Available",
        Some((_, Some(uid))) => match claim {
            Some((object, claim)) if *object.meta.uid == *uid => {
                let taken =
                    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()) == Some(&*volume.object.meta.name);
                if taken { "Bound" } else { "Available" }
            }
            _ => "Released",
        },
    };
    if phase == "Released" && known["phase"] == "Failed" {
        return Ok(plan);
    }
    if phase == "Released" && known["phase"] == "Released" {
        return volume_reclaim::plan(volume, known, users, now);
    }
    if known["phase"] != *phase {
        let mut status = if known.is_object() { known } else { json!({}) };
        status["phase"] = phase.into();
        status["lastPhaseTransitionTime"] = client::time::rfc3339(now).into();
        plan.act(Action::status(&volumes_resource(), &volume.object, status)?);
    }
    Ok(plan)
}

/// Has shown how many claims and volumes are bound, and are not.
fn show(claims: &Arc<Informer>, volumes: &Arc<Informer>) {
    let (claims, volumes) = (Arc::downgrade(claims), Arc::downgrade(volumes));
    figures::refreshed("persistentvolume-binder-controller", move || {
        let Some((claims, volumes)) = claims.upgrade().zip(volumes.upgrade()) else { return };
        let tell = |families: [&'static str; 2], label: &str, of: BTreeMap<String, [usize; 2]>| {
            families.into_iter().for_each(figures::clear);
            for (value, counts) in of {
                for (family, count) in families.into_iter().zip(counts).filter(|(_, count)| *count > 0) {
                    figures::set(family, &[(label, &value)], count);
                }
            }
        };
        let mut by_namespace: BTreeMap<String, [usize; 2]> = BTreeMap::new();
        for claim in claims.list(None) {
            let is_bound = status_of(&claim).is_ok_and(|s| s["phase"] == "Bound");
            by_namespace.entry(claim.meta.namespace.to_string()).or_default()[usize::from(!is_bound)] += 1;
        }
        tell(["pv_collector_bound_pvc_count", "pv_collector_unbound_pvc_count"], "namespace", by_namespace);
        let mut by_class: BTreeMap<String, [usize; 2]> = BTreeMap::new();
        for volume in volumes.list(None) {
            let is_bound = status_of(&volume).is_ok_and(|s| s["phase"] == "Bound");
            let typed = volume.typed::<PersistentVolume>().ok();
            let class = typed.and_then(|v| v.spec.as_ref()?.storage_class_name.clone()).unwrap_or_default();
            by_class.entry(class).or_default()[usize::from(!is_bound)] += 1;
        }
        tell(["pv_collector_bound_pv_count", "pv_collector_unbound_pv_count"], "storage_class", by_class);
    });
}

pub fn binder(cx: &Context) -> Controller {
    let (claims, volumes) = (cx.informers.get::<PersistentVolumeClaim>(), cx.informers.get::<PersistentVolume>());
    let (classes, all_pods) = (cx.informers.get::<StorageClass>(), pod_facts::informer(&cx.informers));
    all_pods.add_index(BY_CLAIM, claims_of);
    let pods = all_pods.clone();
    let (of_claims, of_volumes, of_classes) = (claims.clone(), volumes.clone(), classes.clone());
    let (waiting, for_classes) = (claims.clone(), claims.clone());
    let view = |object: Arc<Object>| Ok::<_, Status>(Volume { typed: decoded::<PersistentVolume>(&object)?, object });
    show(&claims, &volumes);
    // A volume's key has no slash; a claim's has one.
    Controller::new("persistentvolume-binder-controller", move |ask| {
        if !ask.key.contains('/') {
            let Some(object) = of_volumes.get(&ask.key) else { return Ok(Plan::nothing()) };
            let volume = view(object)?;
            let claim = volume.claim().and_then(|(key, _)| of_claims.get(&key));
            let typed = claim.as_ref().map(|c| decoded::<PersistentVolumeClaim>(c)).transpose()?;
            let pods = volume.claim().map(|(key, _)| all_pods.by_index(BY_CLAIM, &key)).unwrap_or_default();
            let users: Vec<String> =
                pods::views(pods)?.iter().filter(|p| !p.is_finished()).map(|p| p.object.meta.key()).collect();
            return plan_volume(&volume, claim.as_deref().zip(typed.as_deref()), &users, ask.now);
        }
        let Some(object) = of_claims.get(&ask.key) else { return Ok(Plan::nothing()) };
        let claim = decoded::<PersistentVolumeClaim>(&object)?;
        let all = of_volumes.list(None).into_iter().map(view).collect::<Result<Vec<_>, _>>()?;
        let named = claim.spec.as_ref().and_then(|s| s.storage_class_name.clone());
        let class = match named {
            Some(name) => of_classes.get(&name).map(|c| decoded::<StorageClass>(&c)).transpose()?,
            None => {
                // Made before there was a default class: it gets the one of now.
                let is_default = |o: &&Arc<Object>| o.typed::<StorageClass>().is_ok_and(|c| c.metadata.annotations.as_ref().is_some_and(|a| a.get(DEFAULT_CLASS).is_some_and(|v| v == "true")));
                let default = of_classes.list(None).iter().filter(is_default).map(|o| o.meta.name.to_string()).next();
                if let Some(default) = default.filter(|_| claim.spec.as_ref().is_some_and(|s| s.volume_name.is_none())) {
                    let mut plan = Plan::nothing();
                    let patch = json!({"metadata": {"resourceVersion": object.resource_version.to_string()}, "spec": {"storageClassName": default}});
                    plan.act(Action::patch(&claims_resource(), &object, "", Patch::Merge(patch)));
                    return Ok(plan);
                }
                None
            }
        };
        let waits = |pod: &Arc<Object>| facts(pod).is_some_and(|f| f.node.is_empty());
        let pods = all_pods.by_index(BY_CLAIM, &ask.key).into_iter().filter(waits);
        let consumers: Vec<String> = pods.map(|p| p.meta.name.to_string()).collect();
        plan_claim(&object, &claim, &all, class.as_deref(), &consumers)
    })
    .watch(&claims, |change| {
        let volume = |o: &Arc<Object>| o.typed::<PersistentVolumeClaim>().ok()?.spec.as_ref()?.volume_name.clone();
        let volumes = [&change.old, &change.new].into_iter().flatten().filter_map(volume).filter(|v| !v.is_empty());
        own_key(change).into_iter().chain(volumes).collect()
    })
    .watch(&volumes, move |change| {
        // Its own claim, and every claim that waits for a volume.
        let claim = |o: &Arc<Object>| Some(Volume { typed: o.typed().ok()?, object: o.clone() }.claim()?.0);
        let own = [&change.old, &change.new].into_iter().flatten().filter_map(claim);
        own_key(change).into_iter().chain(own).chain(unbound(&waiting)).collect()
    })
    .watch(&classes, move |_| unbound(&for_classes))
    .read(&pods)
    .workers(1)
}

fn unbound(claims: &Informer) -> Vec<String> {
    let waits = |o: &&Arc<Object>| {
        o.typed::<PersistentVolumeClaim>()
            .is_ok_and(|c| c.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound"))
    };
    claims.list(None).iter().filter(waits).map(|c| c.meta.key()).collect()
}

/// Puts a finalizer on an object that is not leaving, or takes it off; `None` when that is so already. By an update: the
/// protecting controllers' roles allow no patches.
pub fn finalizer(resource: &Gvr, object: &Object, name: &str, wanted: bool) -> Result<Option<Action>, Status> {
    let has = object.meta.finalizers.iter().any(|f| &**f == name);
    if has == wanted || (wanted && object.meta.deletion_timestamp.is_some()) {
        return Ok(None);
    }
    let mut list: Vec<Value> =
        object.meta.finalizers.iter().filter(|f| &***f != name).map(|f| Value::from(&**f)).collect();
    if wanted {
        list.push(name.into());
    }
    let mut body = object.value().map_err(Status::internal)?;
    body["metadata"]["finalizers"] = list.into();
    Ok(Some(Action::update(resource, object, body)))
}

/// Keys of the claims a pod uses, those of its ephemeral volumes included.
pub fn claims_of(object: &Object) -> Vec<String> {
    let Some(pod) = facts(object) else { return Vec::new() };
    let volumes = pod.shape.volumes.iter().flatten();
    let name = |v: &pod_facts::Volume| match (&v.persistent_volume_claim, &v.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.to_string()),
        (None, Some(_)) => Some(format!("{}-{}", object.meta.name, v.name)),
        _ => None,
    };
    volumes.filter_map(name).map(|n| meta::object::object_key(&object.meta.namespace, &n)).collect()
}

pub fn volume_protection(cx: &Context) -> Controller {
    let volumes = cx.informers.get::<PersistentVolume>();
    let of = volumes.clone();
    Controller::new("persistentvolume-protection-controller", move |ask| {
        let mut plan = Plan::nothing();
        let Some(object) = of.get(&ask.key) else { return Ok(plan) };
        let leaving = object.meta.deletion_timestamp.is_some();
        let bound = status_of(&object)?["phase"] == "Bound";
        plan.actions.extend(finalizer(&volumes_resource(), &object, VOLUME_PROTECTION, !leaving || bound)?);
        Ok(plan)
    })
    .watch(&volumes, own_key)
}

/// Makes the claims of pods' ephemeral volumes.
pub fn ephemeral_volumes(cx: &Context) -> Controller {
    let (claims, all_pods) = (cx.informers.get::<PersistentVolumeClaim>(), pod_facts::informer(&cx.informers));
    let (of, of_claims) = (all_pods.clone(), claims.clone());
    Controller::new("ephemeral-volume-controller", move |ask| {
        let mut plan = Plan::nothing();
        let Some(object) = of.get(&ask.key).filter(|o| o.meta.deletion_timestamp.is_none()) else { return Ok(plan) };
        let pod = decoded::<pod_facts::Facts>(&object)?;
        for volume in pod.shape.volumes.iter().flatten() {
            let Some(template) = volume.ephemeral.as_ref().and_then(|e| e.volume_claim_template.as_ref()) else { continue };
            let name = format!("{}-{}", object.meta.name, volume.name);
            match of_claims.get(&meta::object::object_key(&object.meta.namespace, &name)) {
                Some(claim) if claim.meta.controller().is_some_and(|c| *c.uid == *object.meta.uid) => {}
                Some(_) => {
                    let said = format!("PVC {}/{name} was not created for pod {} (pod is not owner)", object.meta.namespace, object.meta.key());
                    plan.note(Note::warning(&object, "EphemeralVolumeClaimNotOwned", said));
                }
                None => {
                    let mut metadata = json!({"name": name, "ownerReferences": [owners::controller_ref(&object)]});
                    let given = template.metadata.as_ref();
                    if let Some(labels) = given.and_then(|m| m.labels.as_ref()) {
                        metadata["labels"] = json!(labels);
                    }
                    if let Some(annotations) = given.and_then(|m| m.annotations.as_ref()) {
                        metadata["annotations"] = json!(annotations);
                    }
                    let body = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": template.spec});
                    let failed = Note::warning(&object, "ProvisioningFailed", "ephemeral volume: {}");
                    plan.act(Action::create(&claims_resource(), &object.meta.namespace, body).may_exist().failed(failed));
                }
            }
        }
        Ok(plan)
    })
    .watch(&all_pods, |change: &Change| match (&change.old, &change.new) {
        // Volumes never change.
        (Some(old), Some(new)) if old.meta.uid == new.meta.uid => Vec::new(),
        _ => own_key(change),
    })
    .watch(&claims, owners::to_controller("Pod"))
}
