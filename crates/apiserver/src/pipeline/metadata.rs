//! What the server itself says in `metadata`: names, identity, times, generations; and what clients may not change there.
//!
//! Follows `k8s.io/apiserver/pkg/registry/rest` (BeforeCreate, BeforeUpdate) and `storage/names`.

use meta::{FieldError, FieldPath, Status, Value};
use rand::Rng;
use serde_json::Map;

use super::Target;

/// Characters of generated suffixes: no vowels, nothing that looks like another.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
/// Longest base a generated name keeps, so that base and suffix fit a DNS label.
const MAX_GENERATED_BASE: usize = 63 - SUFFIX_LENGTH;

/// The metadata of a body, which must be an object.
pub fn of(body: &mut Value) -> Result<&mut Map<String, Value>, Status> {
    let map = body.as_object_mut().ok_or_else(|| Status::bad_request("the body of the request is not an object"))?;
    let metadata = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().ok_or_else(|| Status::bad_request("metadata is not an object"))
}

pub fn text<'a>(body: &'a Value, field: &str) -> &'a str {
    body["metadata"][field].as_str().unwrap_or_default()
}

/// A name made of `generateName` and a random suffix.
pub fn generate_name(base: &str) -> String {
    let mut end = base.len().min(MAX_GENERATED_BASE);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut rng = rand::rng();
    let suffix = (0..SUFFIX_LENGTH).map(|_| SUFFIX_ALPHABET[rng.random_range(0..SUFFIX_ALPHABET.len())] as char);
    base[..end].chars().chain(suffix).collect()
}

/// Checks that the body's namespace and name agree with the URL's, and fills them in.
pub fn agree_with_url(target: &Target<'_>, body: &mut Value) -> Result<(), Status> {
    let request = target.request;
    let metadata = of(body)?;
    if target.served.resource.namespaced {
        let said = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
        if !said.is_empty() && said != request.namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        metadata.insert("namespace".into(), request.namespace.as_str().into());
    } else if metadata.get("namespace").and_then(Value::as_str).is_some_and(|ns| !ns.is_empty()) {
        return Err(Status::bad_request("namespace may not be set on a cluster-scoped object"));
    } else {
        metadata.remove("namespace");
    }
    if !request.name.is_empty() {
        let said = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
        if !said.is_empty() && said != request.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({said}) does not match the name on the URL ({})",
                request.name
            )));
        }
        metadata.insert("name".into(), request.name.as_str().into());
    }
    Ok(())
}

/// A body that is put where the URL says must say so itself.
pub fn named_as_url(target: &Target<'_>, body: &Value) -> Result<(), Status> {
    let name = &target.request.name;
    match text(body, "name") {
        "" => Err(Status::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        ))),
        said if said != name => Err(Status::bad_request(format!(
            "the name of the object ({said}) does not match the name on the URL ({name})"
        ))),
        _ => Ok(()),
    }
}

/// A new object's identity. `managedFields` that came with the body stay for field management to judge.
pub fn prepare_create(body: &mut Value, now: &str, generation: bool) -> Result<(), Status> {
    let metadata = of(body)?;
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion", "selfLink", "generation"] {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), now.into());
    if generation {
        metadata.insert("generation".into(), 1.into());
    }
    drop_empty(metadata);
    Ok(())
}

/// Empty maps and lists mean the same as none; Go leaves them out, and so does the store.
fn drop_empty(metadata: &mut Map<String, Value>) {
    for field in ["labels", "annotations", "finalizers", "ownerReferences", "managedFields", "name", "generateName"] {
        let empty = match metadata.get(field) {
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Null) => true,
            _ => false,
        };
        if empty {
            metadata.remove(field);
        }
    }
}

/// An owner named twice in the same words is one owner, and the client is told.
pub fn one_of_each_owner(target: &Target<'_>, body: &mut Value) {
    let Some(owners) = body["metadata"].get_mut("ownerReferences").and_then(Value::as_array_mut) else { return };
    let (mut kept, mut twice): (Vec<Value>, Vec<String>) = (Vec::with_capacity(owners.len()), Vec::new());
    for owner in owners.drain(..) {
        match kept.contains(&owner) {
            true => twice.push(owner["uid"].as_str().unwrap_or_default().into()),
            false => kept.push(owner),
        }
    }
    *owners = kept;
    if !twice.is_empty() {
        target.caller.warn(format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            twice.join(", ")
        ));
    }
}

/// When an object goes is said by its deletion alone.
pub fn same_end(target: &Target<'_>, body: &Value, old: &Value) -> Result<(), Status> {
    let (said, stored) = (text(body, "deletionTimestamp"), text(old, "deletionTimestamp"));
    if said.is_empty() || said == stored {
        return Ok(());
    }
    let error = FieldError::invalid(&FieldPath::new("metadata.deletionTimestamp"), said, "field is immutable");
    Err(Status::invalid(target.group(), &target.served.resource.kind, text(old, "name"), &[error]))
}

/// Restores what an update may not touch. `deletionTimestamp` and its kin are the server's alone.
pub fn prepare_update(body: &mut Value, old: &Value) -> Result<(), Status> {
    let before = &old["metadata"];
    let metadata = of(body)?;
    for field in
        ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "uid", "selfLink"]
    {
        match before.get(field) {
            // A wrong uid is a failed precondition, told apart from an absent one by `preconditions`.
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    }
    drop_empty(metadata);
    Ok(())
}

/// The uid and version a client's body names must be the stored ones. Says whether a version was named.
pub fn preconditions(target: &Target<'_>, body: &Value, old: &Value) -> Result<bool, Status> {
    let conflict = |why: String| Err(Status::conflict(target.group(), target.plural(), text(old, "name"), why));
    let (uid, stored) = (text(body, "uid"), text(old, "uid"));
    if !uid.is_empty() && uid != stored {
        // A patch has no preconditions of its own: it would change what does not change.
        if target.request.verb == meta::Verb::Patch {
            let error = FieldError::invalid(&FieldPath::new("metadata.uid"), uid, "field is immutable");
            let (group, kind) = (target.group(), &target.served.resource.kind);
            return Err(Status::invalid(group, kind, text(old, "name"), &[error]));
        }
        return conflict(format!(
            "StorageError: invalid object, Code: 4, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {stored}",
            target.key()
        ));
    }
    // 0 is any version, here as in reads.
    let version = Some(text(body, "resourceVersion")).filter(|version| *version != "0").unwrap_or_default();
    if !version.is_empty() && version != text(old, "resourceVersion") {
        return conflict(MODIFIED.into());
    }
    Ok(!version.is_empty())
}

/// What clients match on to retry.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// What the user wants of an object: all fields but those that say what it is, and how it is.
fn wanted(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let fields = object.as_object().into_iter().flatten();
    fields.filter(|(k, v)| !matches!(k.as_str(), "metadata" | "status" | "kind" | "apiVersion") && !v.is_null())
}

/// `generation` counts changes of what the user wants: everything but metadata and status, and `annotations` where a kind
/// counts those.
pub fn bump_generation(body: &mut Value, old: &Value, annotations: bool) {
    let noted = |object: &Value| object["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    let changed = !wanted(body).eq(wanted(old)) || annotations && noted(body) != noted(old);
    // Going away is a change of what is wanted, too.
    let deleted = old["metadata"]["deletionTimestamp"].is_null() && !body["metadata"]["deletionTimestamp"].is_null();
    if (changed || deleted)
        && let Ok(metadata) = of(body)
    {
        let generation = metadata.get("generation").and_then(Value::as_i64).unwrap_or(0);
        metadata.insert("generation".into(), (generation + 1).into());
    }
}

/// Names and the objects' immutable identity; labels, annotations and owners are checked by the resource room.
pub fn validate_name(target: &Target<'_>, body: &Value) -> Vec<FieldError> {
    let (name, base) = (text(body, "name"), text(body, "generateName"));
    let path = FieldPath::new("metadata");
    let strategy = &target.served.resource.strategy;
    let mut errors = Vec::new();
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), "name or generateName is required"));
        return errors;
    }
    if !base.is_empty()
        && let Err(why) = strategy.validate_name(base, true)
    {
        errors.push(FieldError::invalid(&path.child("generateName"), base, why));
    }
    let wrong = strategy.validate_name(name, false).err();
    if let Some(why) = wrong.or_else(|| resources::validate::formats::not_a_path_segment(name)) {
        errors.push(FieldError::invalid(&path.child("name"), name, why));
    }
    errors
}
