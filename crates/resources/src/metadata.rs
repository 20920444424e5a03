//! Rules of `metadata` that hold for every kind: labels, annotations, owners, finalizers, namespace.
//!
//! Names are checked by the kind's own rule ([`crate::Strategy::validate_name`]).

use meta::{FieldError, Value};

use crate::validate::{At, Errors, formats, selectors};
use meta::Tree;

/// All keys and values of annotations together, in bytes.
const MAX_ANNOTATIONS_BYTES: usize = 256 << 10;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// Finalizers that need no domain.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", ORPHAN, FOREGROUND];

/// On create, when the server has filled in what it fills in.
pub fn validate(object: &Value, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let metadata = At::new(object.at("metadata"), "metadata");
    let namespace = metadata.child("namespace");
    match (namespaced, namespace.blank()) {
        (true, true) => errors.required(&namespace, ""),
        (true, false) => errors.format(&namespace, formats::dns_label),
        (false, false) => errors.forbidden(&namespace, "not allowed on this type"),
        (false, true) => {}
    }
    everywhere(&metadata, &mut errors);
    finalizers(&metadata.child("finalizers"), &mut errors);
    standard_finalizers(object, &metadata, &mut errors);
    errors.0
}

/// Built-in kinds have finalizers of a domain, and those Kubernetes knows.
fn standard_finalizers(object: &Value, metadata: &At<'_>, errors: &mut Errors) {
    if !built_in(object.text("apiVersion")) {
        return;
    }
    for finalizer in
        metadata.each("finalizers").filter(|f| !f.str().contains('/') && !STANDARD_FINALIZERS.contains(&f.str()))
    {
        errors.invalid(&finalizer, "name is neither a standard finalizer name nor is it fully qualified");
    }
}

/// Whether a group is one of the project's own: without a domain, or in its domain.
fn built_in(api_version: &str) -> bool {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    !group.contains('.') || group.ends_with(".k8s.io")
}

/// On update.
pub fn validate_update(object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (metadata, old) = (At::new(object.at("metadata"), "metadata"), old.at("metadata"));
    let list = metadata.child("finalizers");
    if old.has("deletionTimestamp") {
        let mut new: Vec<&str> =
            list.items().map(|f| f.str()).filter(|f| !old.list("finalizers").iter().any(|o| o == f)).collect();
        new.sort_unstable();
        new.dedup();
        if !new.is_empty() {
            let new = new.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ");
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{new}}}"
            );
            errors.forbidden(&list, detail);
        }
    }
    for field in ["name", "namespace"] {
        errors.immutable(&metadata.child(field), old.at(field));
    }
    everywhere(&metadata, &mut errors);
    // What was let in before stays.
    if list.value != old.at("finalizers") {
        finalizers(&list, &mut errors);
        standard_finalizers(object, &metadata, &mut errors);
    }
    errors.0
}

/// The metadata of objects within objects: pod templates, claim templates, job templates.
pub fn template(metadata: &At<'_>, errors: &mut Errors) {
    selectors::labels(&metadata.child("labels"), errors);
    annotations(&metadata.child("annotations"), errors);
    finalizers(&metadata.child("finalizers"), errors);
}

fn everywhere(metadata: &At<'_>, errors: &mut Errors) {
    errors.not_negative(&metadata.child("generation"));
    selectors::labels(&metadata.child("labels"), errors);
    annotations(&metadata.child("annotations"), errors);
    owners(&metadata.child("ownerReferences"), errors);
}

/// Labels or annotations that a conversion webhook made. Upstream's path of annotations lacks its last letter here.
pub fn validate_map(field: &str, map: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    match field {
        "labels" => selectors::labels(&At::new(map, "metadata.labels"), &mut errors),
        _ => annotations(&At::new(map, "metadata.annotation"), &mut errors),
    }
    errors.0
}

fn annotations(at: &At<'_>, errors: &mut Errors) {
    let mut total = 0;
    for (key, value) in at.entries() {
        total += key.len() + value.str().len();
        for complaint in formats::qualified_name(&key.to_lowercase()) {
            errors.invalid_as(at, key, complaint);
        }
    }
    if total > MAX_ANNOTATIONS_BYTES {
        errors.too_long(at, MAX_ANNOTATIONS_BYTES);
    }
}

fn owners(at: &At<'_>, errors: &mut Errors) {
    const EMPTY: &str = "must not be empty";
    let mut controller: Option<String> = None;
    for owner in at.items() {
        let version = owner.child("apiVersion");
        if errors.need(&version, EMPTY) && meta::GroupVersion::parse(version.str()).is_none() {
            errors.invalid(&version, "must be <group>/<version> or <version>");
        }
        for field in ["kind", "name", "uid"] {
            errors.need(&owner.child(field), EMPTY);
        }
        if (version.str(), owner.value.text("kind")) == ("v1", "Event") {
            errors.invalid(&owner, "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner.value.flag("controller") {
            let name = format!("{}/{}", owner.value.text("kind"), owner.value.text("name"));
            match &controller {
                Some(first) => errors.invalid(
                    at,
                    format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"),
                ),
                None => controller = Some(name),
            }
        }
    }
}

fn finalizers(at: &At<'_>, errors: &mut Errors) {
    for finalizer in at.items() {
        for complaint in formats::qualified_name(finalizer.str()) {
            errors.invalid_as(at, finalizer.str(), complaint);
        }
    }
    let has = |name: &str| at.items().any(|f| f.str() == name);
    if has(ORPHAN) && has(FOREGROUND) {
        errors.invalid(at, format!("finalizer {ORPHAN} and {FOREGROUND} cannot be both set"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::tests::expect;

    #[test]
    fn metadata_is_checked() {
        let check = |metadata: Value, namespaced: bool, expected: &[&str]| {
            let object = json!({"metadata": metadata});
            expect(&validate(&object, namespaced), expected, &object);
        };
        check(
            json!({"name": "a", "namespace": "n", "labels": {"a/b": "c"}, "annotations": {"A/b": "any thing"}}),
            true,
            &[],
        );
        check(json!({"name": "a"}), true, &["metadata.namespace: Required value"]);
        check(
            json!({"name": "a", "namespace": "n"}),
            false,
            &["metadata.namespace: Forbidden: not allowed on this type"],
        );
        check(
            json!({"labels": {"a": "b c"}}),
            false,
            &[
                "metadata.labels: Invalid value: \"b c\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ],
        );
        check(
            json!({"annotations": {"a": "x".repeat(256 << 10)}}),
            false,
            &["metadata.annotations: Too long: may not be more than 262144 bytes"],
        );
        check(
            json!({"finalizers": ["orphan", "foregroundDeletion"]}),
            false,
            &[
                "metadata.finalizers: Invalid value: [\"orphan\",\"foregroundDeletion\"]: finalizer orphan and foregroundDeletion cannot be both set",
            ],
        );
        check(
            json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p"}]}),
            false,
            &["metadata.ownerReferences[0].uid: Required value: must not be empty"],
        );
    }

    #[test]
    fn what_is_going_away_takes_no_more_finalizers() {
        let old =
            json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"]}});
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!([]);
        expect(&validate_update(&new, &old), &[], &new);
        new["metadata"]["finalizers"] = json!(["a/b", "c/d"]);
        expect(
            &validate_update(&new, &old),
            &[
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"c/d\"}",
            ],
            &new,
        );
        new = json!({"metadata": {"name": "b"}});
        expect(
            &validate_update(&new, &json!({"metadata": {"name": "a"}})),
            &["metadata.name: Invalid value: \"b\": field is immutable"],
            &new,
        );
    }
}
