//! The schema engine: what fields a kind has, how lists merge, what is defaulted and what is pruned.
//!
//! Built-in kinds and CRDs are the same graph of [`Node`]s in an arena ([`Types`]); decoding, defaulting, validation,
//! strategic merge, server-side apply, protobuf and OpenAPI all walk it through [`View`]. The graph may be recursive
//! (`JSONSchemaProps`), so nodes name each other by [`TypeId`].
//!
//! To find a schema: [`builtin()`] is the arena of all built-in types, `builtin().kind(&gvk)` a kind's [`View`],
//! `builtin().named("io.k8s.api.core.v1.PodSpec")` any struct's; [`builtin_schema`] makes a [`Schema`] of a kind.
//!
//! To read a body: [`crate::decode::object`] does bytes → tree → pruned tree with [`crate::decode::Issues`]; its steps
//! are [`crate::decode::json`], [`crate::decode::yaml`], [`prune`], and [`default`]; [`conform`] is the last two in one walk.
//! CRDs: [`structural::build`] makes a [`Schema`] of an `openAPIV3Schema`, [`validate`] checks a (pruned, defaulted) object.
//! To speak protobuf: [`crate::protobuf::decode`] and [`crate::protobuf::encode`].

mod builtin;
mod coerce;
mod fields;
pub mod restore;
pub mod structural;
mod validate;

pub use builtin::builtin;
pub(crate) use coerce::{JSON_SCHEMA_PROPS, is_zero};
pub use coerce::{TypeError, conform, default, json_type, prune};
pub use fields::Fields;
pub use validate::{validate, validate_with};

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use crate::Gvk;

/// A node's place in its arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub u32);

/// An arena of nodes.
#[derive(Debug, Default)]
pub struct Types {
    pub nodes: Vec<Node>,
    /// Named struct types, by their full OpenAPI name (`io.k8s.api.core.v1.PodSpec`).
    pub names: HashMap<Arc<str>, TypeId>,
    /// The structs of kinds: those with an apiVersion and kind of their own.
    pub kinds: HashMap<Gvk, TypeId>,
    /// The patterns in constraints, compiled.
    pub patterns: HashMap<Arc<str>, regex::Regex>,
}

/// A type as used in one place: the same struct may be atomic in one field and granular in another.
#[derive(Clone, Debug)]
pub struct Node {
    pub shape: Shape,
    /// Maps and structs: owned as a whole by one applier (`+mapType=atomic`, `+structType=atomic`).
    pub atomic: bool,
    pub nullable: bool,
    /// Values allowed, empty for any.
    pub enumeration: Vec<Value>,
    /// Scalars: the OpenAPI format (`int32`, `date-time`, `byte`, …); empty for none.
    pub format: Arc<str>,
    /// Lists: protobuf puts the items into a message of their own (`ExtraValue`, `Verbs`).
    pub wrapped: bool,
    /// Constraints only CRD schemas carry (pattern, bounds, CEL rules, …), the node's own JSON schema.
    pub constraints: Option<Arc<Value>>,
}

impl From<Shape> for Node {
    /// A node with nothing special about it.
    fn from(shape: Shape) -> Self {
        Self {
            shape,
            atomic: false,
            nullable: false,
            enumeration: Vec::new(),
            format: Arc::default(),
            wrapped: false,
            constraints: None,
        }
    }
}

/// The form of a value.
#[derive(Clone, Debug)]
pub enum Shape {
    Struct(Struct),
    Map { value: TypeId },
    List { item: TypeId, kind: ListKind, patch: PatchStrategy },
    Scalar(Scalar),
}

/// An object with named fields.
#[derive(Clone, Debug, Default)]
pub struct Struct {
    /// Full OpenAPI name; empty for the inline objects of CRDs.
    pub name: Arc<str>,
    pub fields: Fields,
    /// Places in `fields` of those with a tag, in the order protobuf writes them: by the tags around them and their own.
    pub wire_order: Box<[u16]>,
    /// Fields not named here are kept (`x-kubernetes-preserve-unknown-fields`).
    pub preserve_unknown: bool,
    /// Has its own apiVersion, kind and metadata (`x-kubernetes-embedded-resource`).
    pub embedded_resource: bool,
}

/// One named field.
#[derive(Clone, Debug, Default)]
pub struct Field {
    pub name: Arc<str>,
    pub node: TypeId,
    pub required: bool,
    /// Filled in when the field is absent.
    pub default: Option<Arc<Value>>,
    /// Protobuf field number; 0 for none.
    pub tag: u32,
    /// For fields inlined from an embedded message: the tags of the messages around it, outermost first.
    pub inlined_in: Arc<[u32]>,
    /// Whether Go tells an absent field from a zero one.
    pub presence: Presence,
    /// Strategic merge clears the fields of this struct that the patch does not name (`+patchStrategy=retainKeys`).
    pub retain_keys: bool,
}

impl Field {
    /// The protobuf tags that lead to the field: those of the messages it is inlined from, then its own.
    pub fn wire_path(&self) -> impl Iterator<Item = u32> + '_ {
        self.inlined_in.iter().copied().chain([self.tag])
    }
}

/// What Go's struct does with an absent or zero value; protobuf and JSON encoding depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// A value with `omitempty`: zero and absent are the same, and JSON leaves both out.
    #[default]
    NonZero,
    /// A pointer: zero and absent differ.
    Pointer,
    /// A value without `omitempty`: absent is written as zero.
    Always,
}

/// How appliers share a list (`+listType`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    Atomic,
    Set,
    Map { keys: Arc<[Arc<str>]> },
}

/// How strategic merge patch treats a list or struct (`+patchStrategy`, `+patchMergeKey`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub retain_keys: bool,
    /// Lists of objects; empty for lists of scalars.
    pub merge_key: Arc<str>,
}

/// Leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scalar {
    String,
    Boolean,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Float32,
    Float64,
    /// Base64 in JSON.
    Bytes,
    /// `metav1.Time`, RFC 3339 in whole seconds.
    Time,
    /// `metav1.MicroTime`.
    MicroTime,
    /// `metav1.Duration`, Go's duration text.
    Duration,
    Quantity,
    IntOrString,
    /// `runtime.RawExtension` and other any-JSON values.
    Any,
    /// `metav1.FieldsV1`.
    FieldsV1,
    /// `JSONSchemaPropsOrBool` of CRDs: a schema or a boolean.
    SchemaOrBool,
    /// `JSONSchemaPropsOrArray`: a schema or a list of schemas.
    SchemaOrArray,
    /// `JSONSchemaPropsOrStringArray`: a schema or a list of strings.
    SchemaOrStrings,
}

impl Types {
    pub fn node(&self, id: TypeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub fn named(&self, name: &str) -> Option<View<'_>> {
        Some(View { types: self, id: *self.names.get(name)? })
    }

    /// The struct of a kind. Kinds that every group has (`DeleteOptions`, `Status`, `WatchEvent`, …) are found under any group.
    pub fn kind(&self, gvk: &Gvk) -> Option<View<'_>> {
        let id = self.kinds.get(gvk).copied().or_else(|| {
            let shared = Gvk { group: META_GROUP.into(), version: "v1".into(), kind: gvk.kind.clone() };
            self.kinds.get(&shared).copied()
        })?;
        Some(View { types: self, id })
    }
}

/// A schema: an arena and the node of a whole object.
#[derive(Clone, Debug)]
pub struct Schema {
    pub types: Arc<Types>,
    pub root: TypeId,
}

/// The group under which [`Types::kinds`] has the kinds of `meta/v1` that all groups share.
pub(crate) const META_GROUP: &str = "meta.k8s.io";

/// The schema of a built-in kind.
pub fn builtin_schema(gvk: &Gvk) -> Option<Schema> {
    let types = builtin();
    Some(Schema { types: types.clone(), root: types.kind(gvk)?.id })
}

impl Schema {
    pub fn root(&self) -> View<'_> {
        View { types: &self.types, id: self.root }
    }
}

/// A place in a schema, to walk alongside a value.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub types: &'a Types,
    pub id: TypeId,
}

impl<'a> View<'a> {
    pub fn node(self) -> &'a Node {
        self.types.node(self.id)
    }

    pub fn shape(self) -> &'a Shape {
        &self.node().shape
    }

    fn at(self, id: TypeId) -> Self {
        Self { types: self.types, id }
    }

    /// The field's own facts, for structs.
    pub fn field_facts(self, name: &str) -> Option<&'a Field> {
        let Shape::Struct(s) = self.shape() else { return None };
        s.fields.find(name)
    }

    /// Below a struct's field or a map's key.
    pub fn child(self, name: &str) -> Option<View<'a>> {
        match self.shape() {
            Shape::Struct(_) => self.field_facts(name).map(|f| self.at(f.node)),
            Shape::Map { value } => Some(self.at(*value)),
            _ => None,
        }
    }

    /// A list's item.
    pub fn item(self) -> Option<View<'a>> {
        match self.shape() {
            Shape::List { item, .. } => Some(self.at(*item)),
            _ => None,
        }
    }

    /// The node of a field whose facts are at hand.
    pub fn of(self, field: &Field) -> View<'a> {
        self.at(field.node)
    }
}
