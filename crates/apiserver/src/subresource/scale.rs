//! `scale`: the number of replicas, whatever the kind, as `autoscaling/v1 Scale`.

use meta::{FieldError, FieldPath, Reply, Status, Value, Verb};
use resources::SubresourceKind;
use serde_json::json;

use crate::pipeline::write::Change;
use crate::pipeline::{Target, body, metadata};
use crate::server::ApiServer;

fn at<'a>(body: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(body, |at, part| &at[part])
}

/// The Scale of an object, by the paths its kind names.
pub(crate) fn scale_of(kind: &SubresourceKind, object: &Value) -> Value {
    let SubresourceKind::Scale { spec_replicas, status_replicas, selector } = kind else { return Value::Null };
    let selector = match selector.as_deref().map(|path| at(object, path)) {
        Some(Value::String(text)) => text.clone(),
        // A ReplicationController's selector is a plain map, the others' a LabelSelector.
        Some(map @ Value::Object(fields)) => {
            let plain = !fields.contains_key("matchLabels") && !fields.contains_key("matchExpressions");
            let pairs = || fields.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)));
            let parsed =
                if plain { Ok(meta::LabelSelector::from_map(pairs())) } else { meta::LabelSelector::from_value(map) };
            parsed.map(|s| s.to_string()).unwrap_or_default()
        }
        _ => String::new(),
    };
    let m = &object["metadata"];
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": m["name"], "namespace": m["namespace"], "uid": m["uid"], "resourceVersion": m["resourceVersion"], "creationTimestamp": m["creationTimestamp"]},
        "spec": {},
        "status": {"replicas": at(object, status_replicas).as_i64().unwrap_or(0)},
    });
    // Go leaves out a zero.
    if let Some(replicas) = at(object, spec_replicas).as_i64().filter(|replicas| *replicas != 0) {
        scale["spec"]["replicas"] = replicas.into();
    }
    if !selector.is_empty() {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

/// Gives an object the replicas a Scale says.
pub(crate) fn set_replicas(kind: &SubresourceKind, object: &mut Value, scale: &Value) {
    let SubresourceKind::Scale { spec_replicas, .. } = kind else { return };
    let mut place = object;
    for part in spec_replicas.split('.') {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[part];
    }
    *place = scale["spec"]["replicas"].as_i64().unwrap_or(0).into();
}

fn negative(scale: &Value) -> Option<FieldError> {
    let replicas = scale["spec"]["replicas"].as_i64().filter(|replicas| *replicas < 0)?;
    Some(FieldError::invalid(&FieldPath::new("spec.replicas"), replicas, "must be greater than or equal to 0"))
}

/// Upstream looks for the scales of its own kinds, and for the objects of custom ones.
fn not_there(target: &Target<'_>) -> Status {
    match target.served.resource.custom {
        true => target.not_found(),
        false => Status::not_found(target.group(), &format!("{}/scale", target.plural()), &target.request.name),
    }
}

/// What an applied Scale says of its object: the replicas, which are then owned there.
fn applied(target: &Target<'_>, kind: &SubresourceKind, scale: &Value) -> body::Document {
    let resource = &target.served.resource;
    let mut object = json!({
        "apiVersion": resource.group_version(&target.version.name).to_string(), "kind": &*resource.kind,
        "metadata": scale["metadata"],
    });
    if scale["spec"]["replicas"].is_number() {
        set_replicas(kind, &mut object, scale);
    }
    body::Document::Apply(object)
}

pub async fn serve(server: &ApiServer, target: Target<'_>) -> Result<Reply, Status> {
    let sub = target.served.resource.subresource(&target.request.subresource).ok_or_else(Status::unknown_path)?;
    let kind = &sub.kind;
    let SubresourceKind::Scale { .. } = kind else { return Err(target.not_allowed()) };
    let answer = |object: &meta::Object| -> Result<Reply, Status> {
        let body = object.value().map_err(Status::internal)?;
        Ok(Reply::Value { value: scale_of(kind, &body), code: 200 })
    };
    if target.request.verb == Verb::Get {
        server.await_newest().await?;
        let object = target.served.cache()?.get(&target.key()).ok_or_else(|| not_there(&target))?;
        return answer(&object);
    }
    let document = match body::ScaleDocument::of(&target)? {
        body::ScaleDocument::Apply(scale) => {
            let written = server.change(target, Change::Document(applied(&target, kind, &scale))).await?;
            return answer(&written.object);
        }
        document => document,
    };
    let set = |object: &mut Value| {
        let before = scale_of(kind, object);
        let scale = document.changed(&target, &before)?;
        let named = metadata::text(&scale, "resourceVersion");
        if !named.is_empty() && named != metadata::text(object, "resourceVersion") {
            return Err(Status::conflict(target.group(), target.plural(), &target.request.name, metadata::MODIFIED));
        }
        let uid = metadata::text(&scale, "uid");
        if !uid.is_empty() && uid != metadata::text(object, "uid") {
            return Err(Status::conflict(
                target.group(),
                target.plural(),
                &target.request.name,
                format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    metadata::text(object, "uid")
                ),
            ));
        }
        if let Some(error) = negative(&scale) {
            return Err(Status::invalid("autoscaling", "Scale", &target.request.name, &[error]));
        }
        set_replicas(kind, object, &scale);
        Ok(())
    };
    let written = server.change(target, Change::Judged(&set)).await?;
    answer(&written.object)
}
