//! Who controls what: owner references, adoption of orphans, release of strangers, and the way back from a dependent to
//! its controller's key.

use std::sync::Arc;

use client::{Change, Informer, Patch};
use meta::{Gvr, LabelSelector, Object, OwnerReference};
use serde_json::{Value, json};

use crate::plan::Action;

/// The index of objects by their controller's uid.
pub const BY_CONTROLLER: &str = "controller";
/// The index of objects without a controller, by namespace.
pub const ORPHANS: &str = "orphans";

/// Adds both indexes.
pub fn index(informer: &Informer) {
    informer.add_index(BY_CONTROLLER, |o| o.meta.controller().map(|c| c.uid.clone()).into_iter().collect());
    informer.add_index(ORPHANS, |o| match o.meta.controller() {
        Some(_) => Vec::new(),
        None => vec![o.meta.namespace.to_string()],
    });
}

/// The reference a dependent carries to its controller.
pub fn controller_ref(owner: &Object) -> Value {
    json!({
        "apiVersion": &*owner.api_version, "kind": &*owner.kind, "name": &*owner.meta.name, "uid": &*owner.meta.uid,
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// An owner reference as JSON, without what it leaves open.
pub fn reference_value(reference: &OwnerReference) -> Value {
    let mut out = json!({
        "apiVersion": reference.api_version, "kind": reference.kind, "name": reference.name, "uid": reference.uid,
    });
    if let Some(controller) = reference.controller {
        out["controller"] = controller.into();
    }
    if let Some(block) = reference.block_owner_deletion {
        out["blockOwnerDeletion"] = block.into();
    }
    out
}

fn set_references(resource: &Gvr, of: &Object, references: Vec<Value>) -> Action {
    let metadata = json!({"uid": &*of.meta.uid, "resourceVersion": of.resource_version.to_string(), "ownerReferences": references});
    Action::patch(resource, of, "", Patch::Merge(json!({"metadata": metadata})))
}

/// The dependents a controller has, and the patches that make it so: orphans its selector matches are adopted, its own
/// that no longer match are released.
pub struct Claimed {
    pub objects: Vec<Arc<Object>>,
    pub actions: Vec<Action>,
}

/// Sorts out a controller's dependents. `may_adopt` is asked of each orphan.
pub fn claim(
    resource: &Gvr,
    owner: &Object,
    selector: &LabelSelector,
    owned: Vec<Arc<Object>>,
    orphans: Vec<Arc<Object>>,
    may_adopt: impl Fn(&Arc<Object>) -> bool,
) -> Claimed {
    let mut claimed = Claimed { objects: Vec::new(), actions: Vec::new() };
    let leaving = owner.meta.deletion_timestamp.is_some();
    for object in owned {
        if selector.matches(&object.meta.labels) {
            claimed.objects.push(object);
        } else if !leaving && object.meta.deletion_timestamp.is_none() {
            let rest = object.meta.owner_references.iter().filter(|r| *r.uid != *owner.meta.uid);
            claimed.actions.push(set_references(resource, &object, rest.map(reference_value).collect()));
        }
    }
    for object in orphans {
        if leaving
            || object.meta.deletion_timestamp.is_some()
            || !selector.matches(&object.meta.labels)
            || !may_adopt(&object)
        {
            continue;
        }
        let mut references: Vec<Value> = object.meta.owner_references.iter().map(reference_value).collect();
        references.push(controller_ref(owner));
        claimed.actions.push(set_references(resource, &object, references));
        claimed.objects.push(object);
    }
    claimed
}

/// Maps a dependent's change to its controllers' keys, old and new; an orphan to every owner whose selector matches.
pub fn to_controllers(
    kind: &'static str,
    owners: &Arc<Informer>,
    selector_of: fn(&Object) -> LabelSelector,
) -> impl Fn(&Change) -> Vec<String> + Send + Sync + 'static {
    let owners = owners.clone();
    move |change| {
        let mut keys = Vec::new();
        for object in [&change.old, &change.new].into_iter().flatten() {
            match object.meta.controller() {
                Some(owner) if owner.kind == kind => {
                    let key = meta::object::object_key(&object.meta.namespace, &owner.name);
                    if owners.get(&key).is_some_and(|o| *o.meta.uid == *owner.uid) && !keys.contains(&key) {
                        keys.push(key);
                    }
                }
                Some(_) => {}
                None => {
                    for owner in owners.list(Some(&object.meta.namespace)) {
                        if selector_of(&owner).matches(&object.meta.labels) {
                            let key = owner.meta.key();
                            if !keys.contains(&key) {
                                keys.push(key);
                            }
                        }
                    }
                }
            }
        }
        keys
    }
}

/// As [`to_controllers`], for dependents that are never adopted.
pub fn to_controller(kind: &'static str) -> impl Fn(&Change) -> Vec<String> + Send + Sync + 'static {
    move |change| {
        let mut keys: Vec<String> = [&change.old, &change.new]
            .into_iter()
            .flatten()
            .filter_map(|o| {
                let owner = o.meta.controller().filter(|c| c.kind == kind)?;
                Some(meta::object::object_key(&o.meta.namespace, &owner.name))
            })
            .collect();
        keys.dedup();
        keys
    }
}

/// An object's `spec.selector` as a label selector; nothing when it has none or a broken one.
pub fn spec_selector(object: &Object) -> LabelSelector {
    #[derive(serde::Deserialize, Default)]
    struct Spec {
        #[serde(default)]
        selector: Value,
    }
    #[derive(serde::Deserialize, Default)]
    struct Body {
        #[serde(default)]
        spec: Spec,
    }
    let body: Body = serde_json::from_slice(object.raw()).unwrap_or_default();
    LabelSelector::from_value(&body.spec.selector).unwrap_or_else(|_| LabelSelector::nothing())
}
