//! Bindings: a pod gets its node, which is what the scheduler writes.
//!
//! The most frequent change of all says little: a node, a condition, a few labels. So it is made on the pod's bytes: what
//! does not change is copied and never becomes a tree. As upstream, nobody comes to own what a binding says, and neither
//! the generation nor the strategy has to do with it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use meta::{FieldError, FieldPath, Object, Reply, Status, Value, Verb};
use serde::Deserialize;
use serde_json::value::RawValue;
use store::{Compare, Op, Txn};

use crate::admission::pod_topology::TOPOLOGY;
use crate::clock;
use crate::pipeline::read::store_error;
use crate::pipeline::write::Outcome;
use crate::pipeline::{Target, body, metadata};
use crate::server::ApiServer;

/// Tries at a pod that others change all the time.
const TRIES: usize = 64;

/// An object's members as JSON texts: those of the old bytes, or new ones. In the order of trees.
type Members<'a> = BTreeMap<Cow<'a, str>, Cow<'a, str>>;

fn members(json: &str) -> Result<Members<'_>, serde_json::Error> {
    let parsed: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(json)?;
    Ok(parsed.into_iter().map(|(key, value)| (key, value.get().into())).collect())
}

/// The members of a member; none where it is not there.
fn members_of<'a>(of: &Members<'a>, key: &str) -> Result<Members<'a>, serde_json::Error> {
    match of.get(key) {
        Some(Cow::Borrowed(json)) if *json != "null" => members(json),
        _ => Ok(Members::new()),
    }
}

fn write(members: &Members<'_>) -> String {
    let mut out = String::with_capacity(members.iter().map(|(k, v)| k.len() + v.len() + 4).sum::<usize>() + 2);
    out.push('{');
    for (key, value) in members {
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str(&text(key));
        out.push(':');
        out.push_str(value);
    }
    out.push('}');
    out
}

fn text(text: &str) -> String {
    Value::from(text).to_string()
}

#[derive(Deserialize)]
struct Condition<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
}

/// What a binding says.
struct Assignment<'a> {
    node: &'a str,
    uid: &'a str,
    annotations: Vec<(&'a str, &'a Value)>,
    labels: Vec<(&'a str, &'a str)>,
    now: &'a str,
}

impl Assignment<'_> {
    /// The pod's bytes with all that in them.
    fn bytes(&self, raw: &[u8], conflict: &dyn Fn(String) -> Status) -> Result<Bytes, Status> {
        let internal = |error: serde_json::Error| Status::internal(error);
        let raw = std::str::from_utf8(raw).map_err(Status::internal)?;
        let mut pod = members(raw).map_err(internal)?;
        let mut spec = members_of(&pod, "spec").map_err(internal)?;
        let unset = |value: Option<&Cow<'_, str>>| value.is_none_or(|v| matches!(&**v, "null" | "\"\"" | "[]"));
        if let Some(before) = spec.get("nodeName").filter(|v| !unset(Some(v))) {
            return Err(conflict(format!("pod {} is already assigned to node {before}", self.name(&pod))));
        }
        if !unset(spec.get("schedulingGates")) {
            return Err(conflict(format!("pod {} has non-empty .spec.schedulingGates", self.name(&pod))));
        }
        spec.insert("nodeName".into(), text(self.node).into());

        let mut status = members_of(&pod, "status").map_err(internal)?;
        let conditions: Vec<&RawValue> = match status.get("conditions") {
            Some(Cow::Borrowed(list)) if *list != "null" => serde_json::from_str(list).map_err(internal)?,
            _ => Vec::new(),
        };
        let is_ours = |c: &RawValue| {
            serde_json::from_str::<Condition<'_>>(c.get()).is_ok_and(|condition| condition.r#type == "PodScheduled")
        };
        let mut conditions: Vec<&str> = conditions.into_iter().filter(|c| !is_ours(c)).map(RawValue::get).collect();
        let scheduled = format!(
            r#"{{"lastProbeTime":null,"lastTransitionTime":{},"status":"True","type":"PodScheduled"}}"#,
            text(self.now)
        );
        conditions.push(&scheduled);
        status.insert("conditions".into(), format!("[{}]", conditions.join(",")).into());
        // Where it was expected says nothing any more.
        status.remove("nominatedNodeName");

        if !self.annotations.is_empty() || !self.labels.is_empty() {
            let mut metadata = members_of(&pod, "metadata").map_err(internal)?;
            let labels = self.labels.iter().map(|(key, value)| (*key, text(value))).collect::<Vec<_>>();
            let annotations = self.annotations.iter().map(|(key, value)| (*key, value.to_string())).collect();
            for (field, new) in [("labels", labels), ("annotations", annotations)] {
                let mut held = members_of(&metadata, field).map_err(internal)?;
                held.extend(new.into_iter().map(|(key, value)| (Cow::Owned(key.to_string()), Cow::Owned(value))));
                if !held.is_empty() {
                    let held = write(&held);
                    metadata.insert(field.into(), held.into());
                }
            }
            let metadata = write(&metadata);
            pod.insert("metadata".into(), metadata.into());
        }
        pod.insert("spec".into(), write(&spec).into());
        pod.insert("status".into(), write(&status).into());
        Ok(stored(pod))
    }

    fn name(&self, pod: &Members<'_>) -> String {
        let metadata: Value = pod.get("metadata").and_then(|m| serde_json::from_str(m).ok()).unwrap_or_default();
        metadata["name"].as_str().unwrap_or_default().to_string()
    }
}

/// In stored form: kind, apiVersion and metadata first.
fn stored(mut pod: Members<'_>) -> Bytes {
    let mut out = String::with_capacity(pod.values().map(|v| v.len() + 24).sum());
    for key in ["kind", "apiVersion", "metadata"] {
        out.push_str(if out.is_empty() { "{" } else { "," });
        let value = pod.remove(key).unwrap_or(Cow::Borrowed("null"));
        out.push_str(&format!("\"{key}\":"));
        out.push_str(&value);
    }
    for (key, value) in pod {
        out.push(',');
        out.push_str(&text(&key));
        out.push(':');
        out.push_str(&value);
    }
    out.push('}');
    out.shrink_to_fit();
    Bytes::from(out)
}

/// Gives a pod its node.
pub async fn bind(server: &ApiServer, target: Target<'_>, binding: &Value) -> Result<Reply, Status> {
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    let kind = binding["target"]["kind"].as_str().unwrap_or("Node");
    let refuse = |error| Err(Status::invalid("", "Binding", &target.request.name, &[error]));
    if !matches!(kind, "" | "Node") {
        return refuse(FieldError::not_supported(&FieldPath::new("target.kind"), kind, &["Node", "<empty>"]));
    }
    if node.is_empty() {
        return refuse(FieldError::required(&FieldPath::new("target.name"), ""));
    }
    let on = server.lookup("", "nodes", "", node);
    let labels = on.iter().flat_map(|n| TOPOLOGY.iter().filter_map(|key| Some((*key, n.meta.label(key)?)))).collect();
    let now = clock::now();
    let annotations = binding["metadata"]["annotations"].as_object();
    let assignment = Assignment {
        node,
        uid: metadata::text(binding, "uid"),
        annotations: annotations.into_iter().flatten().map(|(key, value)| (key.as_str(), value)).collect(),
        labels,
        now: &now,
    };
    assign(server, &target, &assignment).await?;
    Ok(super::created())
}

async fn assign(server: &ApiServer, target: &Target<'_>, assignment: &Assignment<'_>) -> Result<(), Status> {
    let name = &target.request.name;
    let conflict = |why: String| Status::conflict("", "pods/binding", name, why);
    let dry = target.dry_run()?;
    let cache = target.served.cache()?;
    let key: store::Key = target.key().into();
    let read = |stored: store::KeyValue| {
        cache.decode(&stored).map(Arc::new).map_err(|error| crate::cache::unreadable(&stored.key, &error))
    };
    // The cache may be a moment behind; then the transaction tells, or the store is asked.
    let mut current = cache.get(&key);
    let mut certain = false;
    for _ in 0..TRIES {
        let made = match &current {
            None => Err(target.not_found()),
            Some(pod) => bound(target, assignment, pod, &conflict),
        };
        let (pod, draft) = match (made, &current) {
            (Ok(draft), Some(pod)) => (pod, draft),
            (Err(status), _) if certain => return Err(status),
            // What failed may have failed against an old state.
            _ => {
                let (stored, _) = server.store().get(&key, None).await.map_err(store_error)?;
                (current, certain) = (stored.map(read).transpose()?, true);
                continue;
            }
        };
        if dry {
            return Ok(());
        }
        let put = Op::Put { key: key.clone(), value: draft.raw().clone(), lease: None };
        let compares = vec![Compare { key: key.clone(), mod_revision: pod.resource_version }];
        match server.commit(target, Txn { compares, ops: vec![put] }, draft).await? {
            Outcome::Stored(_) => return Ok(()),
            Outcome::Conflict(found) => {
                (current, certain) = (found.into_iter().next().flatten().map(read).transpose()?, true);
            }
        }
    }
    Err(conflict(metadata::MODIFIED.into()))
}

/// The pod on its node, before that is stored.
fn bound(
    target: &Target<'_>,
    assignment: &Assignment<'_>,
    pod: &Object,
    conflict: &dyn Fn(String) -> Status,
) -> Result<Object, Status> {
    if !assignment.uid.is_empty() && assignment.uid != &*pod.meta.uid {
        return Err(conflict(format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            assignment.uid, pod.meta.uid
        )));
    }
    if pod.meta.deletion_timestamp.is_some() {
        return Err(conflict(format!("pod {} is being deleted, cannot be assigned to a host", pod.meta.name)));
    }
    let mut draft = pod.with_body(assignment.bytes(pod.raw(), conflict)?).map_err(Status::internal)?;
    for (key, value) in &assignment.labels {
        draft.meta.labels.insert((*key).into(), (*value).into());
    }
    let selectable = &target.served.storage().selectable;
    if let Some(at) = selectable.iter().position(|field| &*field.name == "spec.nodeName")
        && let Some(field) = draft.fields.get_mut(at)
    {
        *field = assignment.node.into();
    }
    Ok(draft)
}

/// A POST of a Binding to the `bindings` collection names the pod in its body.
pub async fn bind_by_name(server: &ApiServer, target: Target<'_>) -> Result<Reply, Status> {
    let binding = body::decode_options(&target.request.body, "Binding")?;
    let mut request = target.request.clone();
    request.name = metadata::text(&binding, "name").to_string();
    request.verb = Verb::Update;
    let catalog = server.catalog();
    let served = catalog.find("", "pods").ok_or_else(Status::unknown_path)?;
    bind(server, Target { served, version: served.resource.storage_version(), request: &request, ..target }, &binding)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixture, admin, pod, said};
    use serde_json::json;

    /// What a binding makes of a pod is what encoding the changed tree would be.
    #[test]
    fn bytes_are_as_if_a_tree_had_been_written() {
        let pod = |extra: Value| {
            let mut pod = json!({"kind": "Pod", "apiVersion": "v1", "spec": {"containers": [{"name": "a\"b"}], "nodeName": ""},
                "metadata": {"name": "p", "managedFields": [{"fieldsV1": {"f:spec": {}}}]}, "status": {"phase": "Pending"}});
            crate::testing::merge(&mut pod, extra);
            pod
        };
        let annotation = json!("x");
        let assignment = |rich: bool| Assignment {
            node: "n-1",
            uid: "",
            annotations: if rich { vec![("k", &annotation)] } else { Vec::new() },
            labels: if rich { vec![("zone", "z")] } else { Vec::new() },
            now: "2026-01-01T00:00:00Z",
        };
        let scheduled = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null,
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let kept = json!({"type": "Ready", "status": "False"});
        for (rich, before, after) in [
            (false, json!({}), json!({"status": {"conditions": [scheduled]}})),
            (
                false,
                json!({"status": {"nominatedNodeName": "n-2", "conditions": [{"type": "PodScheduled", "status": "False"}, kept]}}),
                json!({"status": {"conditions": [kept, scheduled]}}),
            ),
            (
                true,
                json!({"metadata": {"labels": {"zone": "old", "a": "b"}}}),
                json!({"metadata": {"labels": {"zone": "z"}, "annotations": {"k": "x"}}, "status": {"conditions": [scheduled]}}),
            ),
        ] {
            let before = pod(before);
            let mut expected = before.clone();
            expected["spec"]["nodeName"] = "n-1".into();
            crate::testing::merge(&mut expected, after);
            if let Some(status) = expected["status"].as_object_mut() {
                status.remove("nominatedNodeName");
            }
            let raw = meta::object::encode_stored(&before).unwrap();
            let made = assignment(rich).bytes(&raw, &|_| Status::internal("refused")).unwrap();
            assert_eq!(made, meta::object::encode_stored(&expected).unwrap());
        }
    }

    #[tokio::test]
    async fn a_pod_is_bound_once_and_takes_its_nodes_topology() {
        let f = Fixture::start().await;
        f.namespace("n", json!({})).await;
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n-1",
            "labels": {"topology.kubernetes.io/zone": "z1", "other": "x"}}});
        f.create("nodes", "", node).await.unwrap();
        f.create("pods", "n", pod("p", json!({"metadata": {"labels": {"a": "b"}}}))).await.unwrap();
        f.create("pods", "n", pod("gated", json!({"spec": {"schedulingGates": [{"name": "example.com/g"}]}})))
            .await
            .unwrap();
        let bind = async |name: &str, target: Value, uid: &str| {
            let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, "uid": uid}, "target": target});
            said(&f.ask(&admin(), Verb::Create, "pods:binding", "n", name, body).await)
        };
        let to = |node: &str| json!({"kind": "Node", "name": node});
        let conflict =
            |name: &str, why: &str| format!("409 Operation cannot be fulfilled on pods/binding \"{name}\": {why}");
        assert_eq!(bind("absent", to("n-1"), "").await, "404 pods \"absent\" not found");
        assert_eq!(
            bind("gated", to("n-1"), "").await,
            conflict("gated", "pod gated has non-empty .spec.schedulingGates")
        );
        assert!(bind("p", to("n-1"), "other").await.contains("Precondition failed: UID"));
        assert!(bind("p", to(""), "").await.contains("target.name: Required value"));
        assert_eq!(bind("p", to("n-1"), "").await, "ok");
        assert_eq!(bind("p", to("n-2"), "").await, conflict("p", "pod p is already assigned to node \"n-1\""));
        let held = f.server.lookup("", "pods", "n", "p").unwrap();
        let body = held.value().unwrap();
        assert_eq!(body["metadata"]["labels"], json!({"a": "b", "topology.kubernetes.io/zone": "z1"}));
        assert_eq!(held.meta.label("topology.kubernetes.io/zone"), Some("z1"));
        assert!(held.fields.iter().any(|field| &**field == "n-1"));
        // Read from the store it is the same.
        let again = Object::from_stored(held.raw().clone(), held.resource_version).unwrap();
        assert_eq!(again.meta, held.meta);
        assert_eq!(meta::object::encode_stored(&body).unwrap(), *held.raw());
    }
}
