//! OpenAPI documents from schemas: v3 a group-version, v2 for everything, and v2's protobuf form.
//!
//! What kubectl's explain, apply, diff and validation read: definitions with their group-version-kinds, list types, patch strategies,
//! enums and defaults; paths with group-version-kinds and query parameters. Definitions keep upstream's names and refer to each other.
//! Documents are trees; who serves them encodes, caches and hashes them. Sentences come from the caller
//! ([`Descriptions`]); this module has none of upstream's.

mod definitions;
mod gnostic;
mod paths;

use serde_json::{Map, Value, json};

use crate::schema::View;
use crate::{GroupVersion, Gvk};
use definitions::Definitions;

pub use definitions::is_registered;
pub use gnostic::encode as gnostic;

/// The media type of [`gnostic`]'s bytes.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// A served kind in one version.
pub struct Kind<'a> {
    pub gvk: Gvk,
    pub list_kind: &'a str,
    pub plural: &'a str,
    pub namespaced: bool,
    pub schema: Source<'a>,
    /// As discovery lists them: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verbs: &'a [&'a str],
    pub subresources: Vec<Part<'a>>,
    /// A delete is answered with the object rather than a `Status`.
    pub delete_returns_object: bool,
    /// A custom kind's own selectable fields: dotted paths.
    pub selectable: Vec<&'a str>,
}

/// Where a kind's schema comes from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    Builtin(View<'a>),
    /// A CustomResourceDefinition's `openAPIV3Schema`, or null for none.
    Custom(&'a Value),
}

/// A subresource.
pub struct Part<'a> {
    pub name: &'a str,
    pub verbs: &'a [&'a str],
    /// The kind of its body (its options, for streams).
    pub body: Gvk,
    /// Its body's schema; `None` for the kind's own.
    pub schema: Option<View<'a>>,
    /// A stream or proxied call: every method connects.
    pub connect: bool,
}

/// Sentences about definitions and their fields.
pub trait Descriptions {
    /// Of a definition, or of one of its fields.
    fn describe(&self, definition: &str, field: Option<&str>) -> Option<&str>;
}

/// No sentences.
impl Descriptions for () {
    fn describe(&self, _: &str, _: Option<&str>) -> Option<&str> {
        None
    }
}

/// Which of the two formats is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V2,
    V3,
}

/// The v3 document of one group-version's kinds; `others` are the group-versions served beside it.
pub fn v3(kinds: &[Kind<'_>], others: &[GroupVersion], descriptions: &dyn Descriptions) -> Value {
    let mut definitions = Definitions::new(Version::V3, versions(kinds), others, descriptions);
    let paths = paths::paths(Version::V3, kinds, &mut definitions);
    document(paths, definitions.finish())
}

/// The v3 document of a path that tells about the server or its versions: `api`, `apis/apps`, `version`, …
pub fn v3_of_path(path: &str, versions: &[GroupVersion], descriptions: &dyn Descriptions) -> Value {
    let mut definitions = Definitions::new(Version::V3, Vec::new(), &[], descriptions);
    let paths = paths::lookup(&format!("/{path}/"), versions, &mut definitions);
    document(paths, definitions.finish())
}

fn document(paths: Value, schemas: Value) -> Value {
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"BearerToken": bearer()}},
    })
}

/// The v2 document of all kinds.
pub fn v2(kinds: &[Kind<'_>], descriptions: &dyn Descriptions) -> Value {
    let mut definitions = Definitions::new(Version::V2, versions(kinds), &[], descriptions);
    let paths = paths::paths(Version::V2, kinds, &mut definitions);
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": paths,
        "definitions": definitions.finish(),
        "securityDefinitions": {"BearerToken": bearer()},
        "security": [{"BearerToken": []}],
    })
}

fn bearer() -> Value {
    json!({"type": "apiKey", "in": "header", "name": "authorization", "description": "Bearer Token authentication"})
}

fn versions(kinds: &[Kind<'_>]) -> Vec<GroupVersion> {
    let mut versions: Vec<GroupVersion> =
        kinds.iter().map(|k| GroupVersion { group: k.gvk.group.clone(), version: k.gvk.version.clone() }).collect();
    versions.sort();
    versions.dedup();
    versions
}

/// The definition name of a custom kind: its group backwards, its version, its kind (`com.example.stable.v1.CronTab`).
pub fn custom_name(gvk: &Gvk) -> String {
    let mut parts: Vec<&str> = gvk.group.split('.').rev().collect();
    parts.extend([&*gvk.version, &*gvk.kind]);
    parts.join(".")
}

fn gvk_value(gvk: &Gvk) -> Value {
    json!({"group": &*gvk.group, "version": &*gvk.version, "kind": &*gvk.kind})
}

fn object(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Map<String, Value> {
    entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

#[cfg(test)]
mod tests;
