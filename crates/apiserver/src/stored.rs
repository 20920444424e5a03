//! Stored bytes → objects: the one door through which caches, single reads, history and pages see the store.
//!
//! What this server writes is JSON in canonical order. What upstream's wrote beside it is mostly protobuf, and may be in a
//! version of its time: it is read by the facts of the version it names, and then said in the storage version of now.
//! Upstream reads JSON, so nothing is ever written in another form.

use meta::protobuf::{self, Envelope};
use meta::schema::{Field, Shape, TypeId, View};
use meta::{Gvk, Object, Value};
use resources::Resource;
use store::KeyValue;

use crate::cache::{Decode, Unreadable};

/// As [`decoder`], of a kind whose versions differ in more than name: each object stays in the version it was stored in.
pub fn decoder_as_stored(resource: &Resource) -> Box<Decode> {
    let resource = resource.clone();
    Box::new(move |stored: &KeyValue| {
        let mut body = json(&stored.value)?;
        let version = body["apiVersion"].as_str().and_then(|v| resource.version(v.rsplit('/').next()?));
        meta::schema::default(version.unwrap_or(resource.storage_version()).schema.root(), &mut body);
        object(&resource, &body, stored)
    })
}

/// How a kind's stored bytes become objects. Custom kinds are defaulted as they are read, since their schema may have
/// gained defaults after they were written.
pub fn decoder(resource: &Resource) -> Box<Decode> {
    let (resource, storage) = (resource.clone(), resource.storage_gvk().api_version());
    Box::new(move |stored: &KeyValue| {
        if resource.custom {
            let mut body = json(&stored.value)?;
            meta::schema::default(resource.storage_version().schema.root(), &mut body);
            body["apiVersion"] = storage.as_str().into();
            return object(&resource, &body, stored);
        }
        if protobuf::is_protobuf(&stored.value) {
            let mut body = from_protobuf(&resource, &stored.value)?;
            // Its writer left to its readers what it did not know.
            meta::schema::default(resource.storage_version().schema.root(), &mut body);
            resource.strategy.default(&mut body);
            return object(&resource, &body, stored);
        }
        let mut found = Object::from_stored(stored.value.clone(), stored.mod_revision).map_err(broken)?;
        if *found.api_version != *storage {
            let body = in_storage_version(&resource, json(&stored.value)?)?;
            return object(&resource, &body, stored);
        }
        if !resource.selectable.is_empty() {
            found.fields = resource.select_fields(&json(&stored.value)?);
        }
        Ok(found)
    })
}

fn broken(error: impl std::fmt::Display) -> Unreadable {
    Unreadable::Broken(error.to_string())
}

fn json(bytes: &[u8]) -> Result<Value, Unreadable> {
    serde_json::from_slice(bytes).map_err(broken)
}

fn object(resource: &Resource, body: &Value, stored: &KeyValue) -> Result<Object, Unreadable> {
    let raw = meta::object::encode_stored(body).map_err(broken)?;
    let mut object = Object::from_stored_body(raw, body, stored.mod_revision).map_err(broken)?;
    object.fields = resource.select_fields(body);
    Ok(object)
}

fn from_protobuf(resource: &Resource, bytes: &[u8]) -> Result<Value, Unreadable> {
    let envelope = Envelope::open(bytes).map_err(broken)?;
    let (found, storage) = (envelope.gvk(), resource.storage_version().schema.root());
    let view = if resource.strategy.past_versions().contains(&&*found.version) {
        Some(storage)
    } else {
        storage.types.kinds.contains_key(&found).then(|| storage.types.kind(&found)).flatten()
    };
    let view = view.ok_or_else(|| foreign(&found))?;
    in_storage_version(resource, protobuf::decode_as(view, &envelope).map_err(broken)?)
}

fn foreign(found: &Gvk) -> Unreadable {
    Unreadable::Foreign(format!("no kind {:?} is registered for version {:?}", found.kind, found.api_version()))
}

/// A tree of whatever version, said in the storage version. Versions no strategy knows are taken if the wire cannot tell them
/// apart, which forgives renamed fields and nothing else.
fn in_storage_version(resource: &Resource, mut body: Value) -> Result<Value, Unreadable> {
    let storage = resource.storage_gvk();
    let text = |key: &str| body[key].as_str().unwrap_or_default();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
    let found = Gvk::new(group, version, text("kind"));
    if found == storage {
        return Ok(body);
    }
    if found.group != storage.group || found.kind != storage.kind {
        return Err(foreign(&found));
    }
    if resource.version(&found.version).is_some() {
        resource.strategy.convert(&mut body, &found.version, &storage.version).map_err(broken)?;
    } else if resource.strategy.past_versions().contains(&&*found.version) {
        resource.strategy.upgrade(&mut body);
    } else {
        let new = resource.storage_version().schema.root();
        let old = new.types.kind(&found).filter(|old| same_on_the_wire(*old, new, &mut Vec::new()));
        let mut message = Vec::new();
        protobuf::write_message(old.ok_or_else(|| foreign(&found))?, &body, &mut message).map_err(broken)?;
        body = protobuf::read_message(new, &message).map_err(broken)?;
        body["kind"] = storage.kind.as_ref().into();
    }
    body["apiVersion"] = storage.api_version().into();
    Ok(body)
}

/// Whether every message of `old` says the same as one of `new`: each of its field numbers is there, with the same form.
fn same_on_the_wire<'t>(old: View<'t>, new: View<'t>, seen: &mut Vec<(TypeId, TypeId)>) -> bool {
    if old.id == new.id || seen.contains(&(old.id, new.id)) {
        return true;
    }
    seen.push((old.id, new.id));
    let mut below = |old: Option<View<'t>>, new: Option<View<'t>>| {
        old.zip(new).is_some_and(|(old, new)| same_on_the_wire(old, new, seen))
    };
    match (old.shape(), new.shape()) {
        (Shape::Struct(before), Shape::Struct(after)) => before.fields.iter().filter(|f| f.tag != 0).all(|field| {
            let same = |other: &&Field| other.wire_path().eq(field.wire_path());
            after.fields.iter().find(same).is_some_and(|other| below(Some(old.of(field)), Some(new.of(other))))
        }),
        (Shape::Map { .. }, Shape::Map { .. }) => below(old.child(""), new.child("")),
        (Shape::List { .. }, Shape::List { .. }) => {
            old.node().wrapped == new.node().wrapped && below(old.item(), new.item())
        }
        (Shape::Scalar(before), Shape::Scalar(after)) => before == after,
        _ => false,
    }
}

#[cfg(test)]
#[path = "stored_tests.rs"]
mod tests;
