//! What clients' bytes reach first, as functions of bytes that must neither panic nor grow: decoders, patches, expressions.
//!
//! Each entry also checks what must hold of whatever it accepts: what is read can be written, and reads the same again. The
//! libFuzzer targets and the repository's own mutating test call the same entries. Of connections, SPDY's and WebSocket's frames
//! have their entries beside them (`runtime::frames`); HTTP and TLS are others' crates.

pub mod mutate;
mod seeds;

use cel::{Env, NoStructs, PER_CALL_LIMIT, Type};
use meta::quantity::Quantity;
use meta::schema::{View, builtin};
use meta::{FieldSelector, Gvk, LabelSelector, Object, Value, apply, decode, patch, protobuf};
use serde_json::json;

/// Bytes a patch may add to a document beyond its own: what its `copy` operations may, and the document's spelling.
const MAX_GROWTH: usize = 4 << 20;

/// An entry by name, and what it is fed first.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: &'static [&'static str],
}

pub const TARGETS: &[Target] = &[
    Target { name: "json", run: json_body, seeds: seeds::OBJECTS },
    Target { name: "yaml", run: yaml_body, seeds: seeds::YAML },
    Target { name: "object", run: object, seeds: seeds::OBJECTS },
    Target { name: "proto", run: proto, seeds: seeds::OBJECTS },
    Target { name: "json_patch", run: json_patch, seeds: seeds::JSON_PATCHES },
    Target { name: "merge_patch", run: merge_patch, seeds: seeds::MERGE_PATCHES },
    Target { name: "strategic", run: strategic, seeds: seeds::MERGE_PATCHES },
    Target { name: "server_side_apply", run: server_side_apply, seeds: seeds::OBJECTS },
    Target { name: "selectors", run: selectors, seeds: seeds::SELECTORS },
    Target { name: "quantity", run: quantity, seeds: seeds::QUANTITIES },
    Target { name: "time", run: time, seeds: seeds::TIMES },
    Target { name: "structural", run: structural, seeds: seeds::SCHEMAS },
    Target { name: "expression", run: expression, seeds: seeds::EXPRESSIONS },
];

fn pods() -> View<'static> {
    builtin().kind(&Gvk::new("", "v1", "Pod")).expect("pods are built in")
}

fn live() -> Value {
    serde_json::from_str(seeds::OBJECTS[0]).expect("the first seed is a pod")
}

/// A body of any kind, then as a pod's: what passes is clean.
pub fn json_body(data: &[u8]) {
    if let Ok((value, _)) = decode::json(data) {
        let text = serde_json::to_vec(&value).expect("trees can be written");
        let (again, issues) = decode::json(&text).expect("what was written can be read");
        assert!(again == value && issues.is_empty(), "read differently again");
    }
    if let Ok((value, issues)) = decode::object(pods(), data, decode::Format::Json) {
        issues.texts().for_each(drop);
        let text = serde_json::to_vec(&value).expect("trees can be written");
        let (again, issues) = decode::object(pods(), &text, decode::Format::Json).expect("clean");
        assert!(again == value && issues.is_empty(), "pruned twice");
    }
}

pub fn yaml_body(data: &[u8]) {
    if let Ok((value, issues)) = decode::object(pods(), data, decode::Format::Yaml) {
        issues.texts().for_each(drop);
        // JSON is YAML.
        let text = serde_json::to_vec(&value).expect("trees can be written");
        assert!(decode::object(pods(), &text, decode::Format::Json).is_ok(), "valid as YAML only");
    }
}

/// Objects as other servers send them, and as the store keeps them.
pub fn object(data: &[u8]) {
    let Ok(object) = Object::from_wire(data.to_vec().into()) else { return };
    let Ok(value) = object.value() else { return };
    let mut item = Vec::new();
    object.write_json(&mut item);
    if let Ok(stored) = meta::object::encode_stored(&value)
        && let Ok(stored) = Object::from_stored(stored, 7)
    {
        let seen: Value = serde_json::from_slice(&stored.to_json()).expect("the version is spliced into JSON");
        assert_eq!(seen["metadata"]["resourceVersion"], "7");
    }
}

/// Any bytes as protobuf; and JSON there and back.
pub fn proto(data: &[u8]) {
    if let Ok(value) = protobuf::decode(builtin(), data) {
        assert!(value.is_object());
    }
    if let Ok((mut value, _)) = decode::object(pods(), data, decode::Format::Json) {
        (value["apiVersion"], value["kind"]) = ("v1".into(), "Pod".into());
        let Ok(bytes) = protobuf::encode(pods(), &value) else { return };
        let back = protobuf::decode(builtin(), &bytes).expect("what was written can be read");
        let again = protobuf::encode(pods(), &back).expect("and written again");
        assert!(again == bytes, "protobuf differs the second time");
    }
    // Most random bytes fail at the envelope; these do not.
    let sealed = protobuf::seal("v1", "Pod", data);
    if let Ok(value) = protobuf::decode(builtin(), &sealed) {
        protobuf::encode(pods(), &value).expect("what was read can be written");
    }
}

fn bounded(before: &Value, patch: &[u8], after: &Value) {
    let (before, after) = (before.to_string().len(), after.to_string().len());
    // An escaped character takes six bytes.
    assert!(after <= before + patch.len() * 6 + MAX_GROWTH, "{before} bytes became {after}");
}

pub fn json_patch(data: &[u8]) {
    let Ok((operations, _)) = decode::json(data) else { return };
    if let Ok(patched) = patch::json(live(), &operations) {
        bounded(&live(), data, &patched);
    }
}

pub fn merge_patch(data: &[u8]) {
    let Ok((changes, _)) = decode::json(data) else { return };
    let mut patched = live();
    if patch::merge(&mut patched, &changes).is_ok() {
        bounded(&live(), data, &patched);
        let once = patched.clone();
        patch::merge(&mut patched, &changes).expect("what merged once merges again");
        assert!(once == patched, "a merge patch applied twice differs");
    }
}

pub fn strategic(data: &[u8]) {
    let Ok((changes, _)) = decode::json(data) else { return };
    if let Ok(patched) = patch::strategic(pods(), live(), &changes) {
        bounded(&live(), data, &patched);
    }
}

/// Applies what the bytes say, twice, then tracks an update back to what was.
pub fn server_side_apply(data: &[u8]) {
    let Ok((configuration, _)) = decode::object(pods(), data, decode::Format::Json) else { return };
    let writer = apply::Writer { manager: "m", subresource: "", now: "2026-01-01T00:00:00Z" };
    let Ok(once) = apply::apply(pods(), &live(), &configuration, true, &writer) else { return };
    bounded(&live(), data, &once);
    let twice = apply::apply(pods(), &once, &configuration, false, &writer);
    assert!(twice.is_ok(), "its own manager conflicts with itself");
    let mut back = live();
    apply::track_update(pods(), Some(&once), &mut back, &writer);
}

pub fn selectors(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(selector) = LabelSelector::parse(&text) {
        let shown = selector.to_string();
        let again = LabelSelector::parse(&shown).expect("what was written can be read");
        assert_eq!(again.to_string(), shown);
        selector.matches_by(|_| Some("x"));
    }
    if let Ok(selector) = FieldSelector::parse(&text) {
        selector.matches_by(|_| "x");
    }
}

pub fn quantity(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(quantity) = text.parse::<Quantity>() {
        let shown = quantity.to_string();
        let again: Quantity = shown.parse().expect("what was written can be read");
        assert_eq!(again.to_string(), shown, "{text}");
        let _ =
            (quantity.value(), quantity.milli_value(), quantity.as_f64(), quantity.add(&again), quantity.sub(&again));
    }
}

pub fn time(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(at) = meta::time::parse(&text) {
        assert!(meta::time::parse(&meta::time::micro_time(at)).is_some(), "{text}");
    }
    let _ = meta::time::canonical(&text, true);
    if let Some(nanos) = meta::time::parse_duration(&text) {
        assert_eq!(meta::time::parse_duration(&meta::time::format_duration(nanos)), Some(nanos), "{text}");
    }
}

/// A definition's schema; one that is accepted reads objects, and defaults them once.
pub fn structural(data: &[u8]) {
    let Ok((schema, _)) = decode::json(data) else { return };
    if let Ok(schema) = meta::schema::structural::build(&schema, &meta::FieldPath::new("schema")) {
        let _ = decode::object(schema.root(), seeds::OBJECTS[0].as_bytes(), decode::Format::Json);
    }
}

/// Compiles, estimates and runs an expression over some data, within the limit of its cost.
pub fn expression(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let values =
        json!({"i": 7, "s": "text", "l": [3, 1, 2], "m": {"a": 1, "b-c": 2}, "d": 1.5, "o": {"p": {"q": "r"}}});
    let Ok(program) = Env::new(&NoStructs).var("x", Type::Dyn).compile(&text) else { return };
    let _ = program.estimate(None);
    let variables = [("x", cel::Value::json(&values))];
    let (value, cost) = program.eval(&&variables[..], PER_CALL_LIMIT);
    assert!(cost <= PER_CALL_LIMIT || value == Err(cel::Error::CostLimit));
    if let Ok(value) = value {
        let _ = value.to_json();
    }
}

#[cfg(test)]
mod tests;
