//! Revision history of DaemonSets and StatefulSets, kept in ControllerRevisions. Pure.
//!
//! A revision's data is the patch that brings the set back to it, as `kubectl rollout undo` applies it. The newest
//! revision has the highest number; going back to an old template gives its revision the next number.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use meta::{Object, Status};
use serde_json::{Value, json};

use crate::plan::Action;

/// The label of revisions and pods.
pub const HASH_LABEL: &str = "controller-revision-hash";

/// Where a set stands in its history.
pub struct History {
    /// The revision of the present template.
    pub name: String,
    pub hash: String,
    /// Revisions that are there, oldest first.
    pub known: Vec<Arc<Object>>,
    pub actions: Vec<Action>,
    /// Another object has the name the present revision would get; counted up, the next hash is another.
    pub collided: bool,
}

fn number(revision: &Object) -> i64 {
    revision.typed::<ControllerRevision>().ok().and_then(|r| r.revision).unwrap_or(0)
}

fn data(revision: &Object) -> Value {
    revision.typed::<ControllerRevision>().map(|r| r.data.0.clone()).unwrap_or(Value::Null)
}

/// The template a revision stands for.
pub fn template(revision: &Object) -> Value {
    let mut template = data(revision)["spec"]["template"].take();
    if let Some(map) = template.as_object_mut() {
        map.remove("$patch");
    }
    template
}

/// Containers of a template, of both sorts.
fn containers(template: &mut Value) -> impl Iterator<Item = &mut Value> {
    let spec = template.get_mut("spec").and_then(Value::as_object_mut);
    let lists =
        spec.into_iter().flatten().filter(|(field, _)| matches!(field.as_str(), "containers" | "initContainers"));
    lists.flat_map(|(_, list)| list.as_array_mut().into_iter().flatten())
}

/// A template with the empty fields that Go's encoder always writes: clients compare revisions byte by byte with what
/// they themselves encode.
fn as_written_by_go(template: &Value) -> Value {
    let mut template = template.clone();
    if template["metadata"].get("creationTimestamp").is_none() {
        template["metadata"]["creationTimestamp"] = Value::Null;
    }
    for container in containers(&mut template) {
        if container.get("resources").is_none() {
            container["resources"] = json!({});
        }
    }
    template
}

/// Whether two revisions mean the same; releases differ in which empty fields they write.
fn is_same(a: &Value, b: &Value) -> bool {
    let bare = |data: &Value| {
        let mut template = data["spec"]["template"].clone();
        if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|field, value| field != "creationTimestamp" || !value.is_null());
        }
        for container in containers(&mut template).filter_map(Value::as_object_mut) {
            container.retain(|field, value| field != "resources" || value.as_object().is_none_or(|r| !r.is_empty()));
        }
        template
    };
    bare(a) == bare(b)
}

/// Finds or makes the revision of a set's present template. `hash_label` is what the revision itself is labelled with;
/// `taken` says whether a revision's name is in use.
pub fn sync(
    set: &Object,
    hash_label: &str,
    mut owned: Vec<Arc<Object>>,
    taken: impl Fn(&str) -> bool,
) -> Result<History, Status> {
    let resource = client::gvr_of::<ControllerRevision>();
    let body = set.value().map_err(Status::internal)?;
    let mut template = as_written_by_go(&body["spec"]["template"]);
    template["$patch"] = "replace".into();
    let data_now = json!({"spec": {"template": template}});
    owned.sort_by(|a, b| number(a).cmp(&number(b)).then_with(|| a.meta.name.cmp(&b.meta.name)));
    let next = owned.last().map_or(0, |r| number(r)) + 1;
    let equal: Vec<&Arc<Object>> = owned.iter().filter(|r| is_same(&data(r), &data_now)).collect();
    let mut actions = Vec::new();
    if let Some(present) = equal.last() {
        if number(present) + 1 < next {
            let mut body = present.value().map_err(Status::internal)?;
            body["revision"] = next.into();
            actions.push(Action::update(&resource, present, body));
        }
        let hash = present.meta.label(hash_label).unwrap_or_default().to_string();
        return Ok(History {
            name: present.meta.name.to_string(),
            hash,
            known: owned.clone(),
            actions,
            collided: false,
        });
    }
    let collisions = body["status"]["collisionCount"].as_i64().and_then(|c| i32::try_from(c).ok());
    let hash = crate::hash::template_hash(&data_now, collisions);
    let name = format!("{}-{hash}", &set.meta.name[..set.meta.name.len().min(223)]);
    let collided = taken(&name);
    if !collided {
        let mut labels = body["spec"]["template"]["metadata"]["labels"].clone();
        labels[hash_label] = hash.as_str().into();
        let mut metadata = json!({
            "name": name, "namespace": &*set.meta.namespace, "labels": labels,
            "ownerReferences": [crate::owners::controller_ref(set)],
        });
        if let Some(annotations) = body["metadata"].get("annotations") {
            metadata["annotations"] = annotations.clone();
        }
        let revision = json!({
            "apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": metadata, "data": data_now, "revision": next,
        });
        actions.push(Action::create(&resource, &set.meta.namespace, revision).may_exist());
    }
    Ok(History { name, hash, known: owned, actions, collided })
}

/// Deletes the oldest revisions beyond the limit that no pod lives by.
pub fn clean_up(history: &History, limit: i32, live: &BTreeSet<String>) -> Vec<Action> {
    let resource = client::gvr_of::<ControllerRevision>();
    let dead: Vec<&Arc<Object>> =
        history.known.iter().filter(|r| *r.meta.name != *history.name && !live.contains(&*r.meta.name)).collect();
    let beyond = dead.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    dead.into_iter().take(beyond).map(|r| Action::delete(&resource, r)).collect()
}
