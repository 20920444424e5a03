//! The kind table: one row a kind, and what its schema cannot say.
//!
//! Everything the API server serves is a [`Resource`]. Built-in kinds are rows of a static table ([`builtin`]); a
//! CustomResourceDefinition builds the same struct at run time and nothing downstream can tell them apart. Routes,
//! discovery, OpenAPI, RBAC names, storage prefixes, watch caches, server-side tables and the rest are derived from the row.
//! No IO here; no clock but what a caller hands in.

#![forbid(unsafe_code)]

pub mod builtin;
pub mod cells;
pub mod defaults;
pub mod enablement;
pub mod gates;
pub mod kinds;
pub mod metadata;
pub mod strategy;
pub mod validate;

use std::sync::Arc;

use meta::schema::Schema;
use meta::{GroupVersion, Gvk, Gvr, Value};

pub use strategy::{Context, Default, Strategy};

/// One kind.
#[derive(Clone)]
pub struct Resource {
    pub group: Arc<str>,
    pub kind: Arc<str>,
    pub list_kind: Arc<str>,
    pub plural: Arc<str>,
    pub singular: Arc<str>,
    pub short_names: Vec<Arc<str>>,
    pub categories: Vec<Arc<str>>,
    pub namespaced: bool,
    /// In order of preference, as discovery lists them.
    pub versions: Vec<ResourceVersion>,
    /// Index into `versions`: the form objects are stored and cached in.
    pub storage: usize,
    /// The store's directory without a closing slash: `/registry/pods`, `/registry/services/specs`. Keys below it are
    /// `PREFIX/NAMESPACE/NAME` or `PREFIX/NAME`. Empty for kinds that are never stored (reviews).
    pub prefix: Arc<str>,
    pub verbs: Verbs,
    pub subresources: Vec<Subresource>,
    /// Field selectors beyond `metadata.name` and `metadata.namespace`; [`meta::Object::fields`] follows this order.
    pub selectable: Arc<[Selectable]>,
    pub strategy: Arc<dyn Strategy>,
    /// From a CustomResourceDefinition.
    pub custom: bool,
    /// A delete is answered with the object rather than a `Status`.
    pub delete_returns_object: bool,
    /// Seconds after which the store forgets an object (events); 0 for never.
    pub ttl_seconds: u64,
}

/// One served version of a kind.
#[derive(Clone)]
pub struct ResourceVersion {
    pub name: Arc<str>,
    pub served: bool,
    /// The text of the `Warning` header each request gets.
    pub deprecation: Option<Arc<str>>,
    pub schema: Schema,
    pub columns: Arc<[Column]>,
    /// A CustomResourceDefinition's `openAPIV3Schema` as its author wrote it, for OpenAPI.
    pub published: Option<Arc<Value>>,
    /// A custom kind's version has selectable fields of its own; a built-in kind's are the resource's.
    pub selectable: Arc<[Selectable]>,
}

impl ResourceVersion {
    /// The release without it, as its warning names it.
    pub fn removed_release(&self) -> Option<&str> {
        let (_, version) = self.deprecation.as_deref()?.split_once("unavailable in v")?;
        version.split('+').next()
    }
}

/// Which verbs the resource itself offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbs {
    /// get, list, watch, create, update, patch, delete, deletecollection.
    All,
    /// As `All` without deletecollection (Namespaces, Services before it had one).
    NoDeleteCollection,
    /// create only, answered and never stored (reviews, bindings).
    CreateOnly,
    /// get and list, computed (component statuses).
    ReadOnly,
}

/// What a subresource does.
#[derive(Clone, Debug, PartialEq)]
pub enum SubresourceKind {
    /// Same object; only `status` (and some metadata) may change.
    Status,
    /// `autoscaling/v1 Scale`, mapped onto these JSON paths (dotted, without a leading dot).
    Scale { spec_replicas: Arc<str>, status_replicas: Arc<str>, selector: Option<Arc<str>> },
    /// Same object, another set of changeable fields: `approval`, `finalize`, `resize`, `ephemeralcontainers`. The
    /// strategy decides by the subresource's name.
    Part,
    /// A POST that acts: `binding`, `eviction`, `token`.
    Action,
    /// A stream or proxied call to a kubelet or pod: `log`, `exec`, `attach`, `portforward`, `proxy`.
    Connect,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Subresource {
    pub name: Arc<str>,
    pub kind: SubresourceKind,
    /// The kind of its body: the resource's own, or `Scale`, `Binding`, `Eviction`, `TokenRequest`, `PodExecOptions`, …
    pub body: Gvk,
    /// Verbs discovery lists.
    pub verbs: &'static [&'static str],
}

/// One selectable field.
#[derive(Clone, Debug, PartialEq)]
pub struct Selectable {
    /// As selectors spell it: `spec.nodeName`.
    pub name: Arc<str>,
    pub value: SelectableValue,
}

/// Where a selectable field's text comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum SelectableValue {
    /// The scalar at the same dotted path as the name; absent is the empty string.
    Path,
    /// As `Path`, with another text for absent (`spec.hostNetwork`: `false`).
    PathOr(&'static str),
    /// The scalar at another dotted path.
    At(&'static str),
    /// As `At`, with another text for absent.
    AtOr(&'static str, &'static str),
    /// The scalar at the first path, or when that is empty at the second.
    Either(&'static str, &'static str),
}

/// A column of a server-side table.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    pub name: Arc<str>,
    /// `string`, `integer`, `number`, `boolean`, `date`.
    pub kind: Arc<str>,
    pub format: Arc<str>,
    pub description: Arc<str>,
    /// 0 is always shown; above needs `-o wide`.
    pub priority: i32,
    pub cell: Cell,
}

/// How a cell is made of an object. `Built` rows get the whole row from [`Strategy::table_row`].
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// By the strategy, at this column's place.
    Built,
    /// A JSONPath of a CRD's `additionalPrinterColumns`, or a dotted path.
    JsonPath(Arc<str>),
}

impl Resource {
    pub fn version(&self, name: &str) -> Option<&ResourceVersion> {
        self.versions.iter().find(|v| &*v.name == name)
    }

    pub fn storage_version(&self) -> &ResourceVersion {
        &self.versions[self.storage]
    }

    pub fn storage_gvk(&self) -> Gvk {
        Gvk { group: self.group.clone(), version: self.storage_version().name.clone(), kind: self.kind.clone() }
    }

    pub fn gvr(&self, version: &str) -> Gvr {
        Gvr::new(&self.group, version, &self.plural)
    }

    pub fn group_version(&self, version: &str) -> GroupVersion {
        GroupVersion::new(&self.group, version)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| &*s.name == name)
    }

    /// The kind of a subresource's body, asked for below `version`.
    pub fn body(&self, sub: &Subresource, version: &str) -> Gvk {
        let own = sub.body.kind == self.kind && sub.body.group == self.group;
        if own { Gvk { version: version.into(), ..sub.body.clone() } } else { sub.body.clone() }
    }

    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// The store's key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced { format!("{}/{namespace}/{name}", self.prefix) } else { format!("{}/{name}", self.prefix) }
    }

    /// [`select_fields`] by the row's fields.
    pub fn select_fields(&self, body: &Value) -> Box<[Box<str>]> {
        select_fields(&self.selectable, body)
    }
}

/// The texts of the selectable fields of a body, in the order of `fields`.
pub fn select_fields(fields: &[Selectable], body: &Value) -> Box<[Box<str>]> {
    fields
        .iter()
        .map(|field| match field.value {
            SelectableValue::Path => scalar_text(body, &field.name, ""),
            SelectableValue::PathOr(absent) => scalar_text(body, &field.name, absent),
            SelectableValue::At(path) => scalar_text(body, path, ""),
            SelectableValue::AtOr(path, absent) => scalar_text(body, path, absent),
            SelectableValue::Either(first, second) => Some(scalar_text(body, first, ""))
                .filter(|t| !t.is_empty())
                .unwrap_or_else(|| scalar_text(body, second, "")),
        })
        .collect()
}

/// The scalar at a dotted path as text; `absent` when there is none.
fn scalar_text(body: &Value, path: &str, absent: &str) -> Box<str> {
    match path.split('.').try_fold(body, |at, part| at.get(part)) {
        None | Some(Value::Null) => absent.into(),
        Some(Value::String(text)) => text.as_str().into(),
        Some(other) => other.to_string().into(),
    }
}
