//! VolumeAttributesClasses are kept while claims or volumes name them.

use std::collections::BTreeSet;

use client::Change;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use meta::Object;

use crate::Context;
use crate::plan::Plan;
use crate::runner::{Controller, own_key};
use crate::volumes::finalizer;

const FINALIZER: &str = "kubernetes.io/vac-protection";
/// The index of claims and of volumes by the classes they name.
const BY_CLASS: &str = "attributes-class";

fn classes_of(object: &Object) -> Vec<String> {
    let mut names = BTreeSet::new();
    if let Ok(claim) = object.typed::<PersistentVolumeClaim>() {
        names.extend(claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.clone()));
        let status = claim.status.as_ref();
        names.extend(status.and_then(|s| s.current_volume_attributes_class_name.clone()));
        names.extend(status.and_then(|s| s.modify_volume_status.as_ref()?.target_volume_attributes_class_name.clone()));
    }
    names.into_iter().filter(|n| !n.is_empty()).collect()
}

fn class_of_volume(object: &Object) -> Vec<String> {
    let name =
        object.typed::<PersistentVolume>().ok().and_then(|v| v.spec.as_ref()?.volume_attributes_class_name.clone());
    name.into_iter().filter(|n| !n.is_empty()).collect()
}

pub fn protection(cx: &Context) -> Controller {
    let classes = cx.informers.get::<VolumeAttributesClass>();
    let (claims, volumes) = (cx.informers.get::<PersistentVolumeClaim>(), cx.informers.get::<PersistentVolume>());
    claims.add_index(BY_CLASS, classes_of);
    volumes.add_index(BY_CLASS, class_of_volume);
    let (of, of_claims, of_volumes) = (classes.clone(), claims.clone(), volumes.clone());
    Controller::new("volumeattributesclass-protection-controller", move |ask| {
        let mut plan = Plan::nothing();
        let Some(object) = of.get(&ask.key) else { return Ok(plan) };
        let used = || {
            !of_claims.by_index(BY_CLASS, &ask.key).is_empty() || !of_volumes.by_index(BY_CLASS, &ask.key).is_empty()
        };
        let wanted = object.meta.deletion_timestamp.is_none() || used();
        plan.actions.extend(finalizer(&client::gvr_of::<VolumeAttributesClass>(), &object, FINALIZER, wanted)?);
        Ok(plan)
    })
    .watch(&classes, own_key)
    // Only what lets go of a class can let the class go.
    .watch(&claims, |change: &Change| change.old.iter().flat_map(|o| classes_of(o)).collect())
    .watch(&volumes, |change: &Change| change.old.iter().flat_map(|o| class_of_volume(o)).collect())
}
