//! Schemas as OpenAPI definitions that refer to each other by upstream's names.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Map, Value, json};

use super::{Descriptions, Kind, Source, Version, custom_name, gvk_value, object};
use crate::schema::{Field, ListKind, META_GROUP, PatchStrategy, Presence, Scalar, Shape, TypeId, View, builtin};
use crate::{GroupVersion, Gvk};

/// A kind whose fields of every kind are described as any kind's are.
const EVERY_KIND: &str = "io.k8s.api.core.v1.Pod";

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const APIEXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

/// What `/version` tells, and whether always.
const VERSION: &[(&str, bool)] = &[
    ("major", true),
    ("minor", true),
    ("emulationMajor", false),
    ("emulationMinor", false),
    ("minCompatibilityMajor", false),
    ("minCompatibilityMinor", false),
    ("gitVersion", true),
    ("gitCommit", true),
    ("gitTreeState", true),
    ("buildDate", true),
    ("goVersion", true),
    ("compiler", true),
    ("platform", true),
];

/// What upstream says of single definitions, or of their fields, and nobody here acts upon: definition, field, key, JSON.
const BESIDES: &[(&str, &str, &str, &str)] = &[
    (
        "io.k8s.api.core.v1.AppArmorProfile",
        "",
        UNIONS,
        r#"[{"discriminator": "type", "fields-to-discriminateBy": {"localhostProfile": "LocalhostProfile"}}]"#,
    ),
    ("io.k8s.api.core.v1.PersistentVolumeClaimStatus", "allocatedResourceStatuses", MAP_TYPE, r#""granular""#),
    ("io.k8s.api.core.v1.PersistentVolumeSpec", "claimRef", MAP_TYPE, r#""granular""#),
    (
        "io.k8s.api.core.v1.PodSchedulingGroup",
        "",
        UNIONS,
        r#"[{"fields-to-discriminateBy": {"podGroupName": "PodGroupName"}}]"#,
    ),
    (
        "io.k8s.api.core.v1.SeccompProfile",
        "",
        UNIONS,
        r#"[{"discriminator": "type", "fields-to-discriminateBy": {"localhostProfile": "LocalhostProfile"}}]"#,
    ),
    (
        "io.k8s.api.flowcontrol.v1.LimitResponse",
        "",
        UNIONS,
        r#"[{"discriminator": "type", "fields-to-discriminateBy": {"queuing": "Queuing"}}]"#,
    ),
    (
        "io.k8s.api.flowcontrol.v1.PriorityLevelConfigurationSpec",
        "",
        UNIONS,
        r#"[{"discriminator": "type", "fields-to-discriminateBy": {"exempt": "Exempt", "limited": "Limited"}}]"#,
    ),
    (
        "io.k8s.api.flowcontrol.v1.Subject",
        "",
        UNIONS,
        r#"[{"discriminator": "kind", "fields-to-discriminateBy": {"group": "Group", "serviceAccount": "ServiceAccount", "user": "User"}}]"#,
    ),
    ("io.k8s.api.policy.v1.PodDisruptionBudgetSpec", "selector", "x-kubernetes-patch-strategy", r#""replace""#),
    (
        "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIServiceSpec",
        "caBundle",
        "x-kubernetes-list-type",
        r#""atomic""#,
    ),
];

const UNIONS: &str = "x-kubernetes-unions";
const MAP_TYPE: &str = "x-kubernetes-map-type";

/// Versions that upstream's types are registered in, served or not: each has its `DeleteOptions` and `WatchEvent`.
#[rustfmt::skip]
const REGISTERED: &[(&str, &[&str])] = &[
    ("admission.k8s.io", &["v1", "v1beta1"]),
    ("admissionregistration.k8s.io", &["v1alpha1", "v1beta1"]),
    ("apiextensions.k8s.io", &["v1beta1"]),
    ("apiregistration.k8s.io", &["v1beta1"]),
    ("apps", &["v1beta1", "v1beta2"]),
    ("authentication.k8s.io", &["v1alpha1", "v1beta1"]),
    ("authorization.k8s.io", &["v1beta1"]),
    ("batch", &["v1beta1"]),
    ("certificates.k8s.io", &["v1alpha1", "v1beta1"]),
    ("coordination.k8s.io", &["v1alpha2", "v1beta1"]),
    ("discovery.k8s.io", &["v1beta1"]),
    ("events.k8s.io", &["v1beta1"]),
    ("extensions", &["v1beta1"]),
    ("flowcontrol.apiserver.k8s.io", &["v1beta1", "v1beta2", "v1beta3"]),
    ("imagepolicy.k8s.io", &["v1alpha1"]),
    ("internal.apiserver.k8s.io", &["v1alpha1"]),
    ("networking.k8s.io", &["v1beta1"]),
    ("node.k8s.io", &["v1alpha1", "v1beta1"]),
    ("policy", &["v1beta1"]),
    ("rbac.authorization.k8s.io", &["v1alpha1", "v1beta1"]),
    ("resource.k8s.io", &["v1alpha3", "v1beta1", "v1beta2"]),
    ("scheduling.k8s.io", &["v1alpha3", "v1beta1"]),
    ("storage.k8s.io", &["v1alpha1", "v1beta1"]),
    ("storagemigration.k8s.io", &["v1beta1"]),
];

/// Whether upstream's types know a version of a group, served or not.
pub fn is_registered(group: &str, version: &str) -> bool {
    builtin().kinds.keys().any(|k| &*k.group == group && &*k.version == version)
        || REGISTERED.iter().any(|(g, versions)| *g == group && versions.contains(&version))
}

/// Collects definitions: each is written when something first refers to it.
pub(super) struct Definitions<'a> {
    version: Version,
    served: Vec<GroupVersion>,
    descriptions: &'a dyn Descriptions,
    /// The kinds of built-in structs.
    kinds: HashMap<TypeId, Vec<Gvk>>,
    done: BTreeMap<String, Value>,
}

impl<'a> Definitions<'a> {
    /// `served` are the versions the document is of; `others` those served beside them.
    pub(super) fn new(
        version: Version,
        served: Vec<GroupVersion>,
        others: &[GroupVersion],
        descriptions: &'a dyn Descriptions,
    ) -> Self {
        let mut kinds: HashMap<TypeId, Vec<Gvk>> = HashMap::new();
        for (gvk, id) in &builtin().kinds {
            if &*gvk.group != META_GROUP {
                kinds.entry(*id).or_default().push(gvk.clone());
            } else if matches!(&*gvk.kind, "DeleteOptions" | "WatchEvent") {
                // Every group has its own.
                let of = |gv: &GroupVersion| Gvk {
                    group: gv.group.clone(),
                    version: gv.version.clone(),
                    kind: gvk.kind.clone(),
                };
                let named = |(group, versions): &(&str, &[&str])| -> Vec<GroupVersion> {
                    versions.iter().map(|version| GroupVersion::new(group, version)).collect()
                };
                let registered: Vec<GroupVersion> = REGISTERED.iter().flat_map(named).collect();
                let all: BTreeSet<&GroupVersion> = served.iter().chain(others).chain(&registered).collect();
                kinds.entry(*id).or_default().extend(all.into_iter().map(of));
            } else if matches!(&*gvk.kind, "Status" | "APIGroup" | "APIGroupList" | "APIResourceList" | "APIVersions") {
                kinds.entry(*id).or_default().push(Gvk::new("", "v1", &gvk.kind));
            }
        }
        Self { version, served, descriptions, kinds, done: BTreeMap::new() }
    }

    pub(super) fn finish(self) -> Value {
        Value::Object(self.done.into_iter().collect())
    }

    /// The reference text of a definition.
    fn reference(&self, name: &str) -> Value {
        match self.version {
            Version::V2 => format!("#/definitions/{name}").into(),
            Version::V3 => format!("#/components/schemas/{name}").into(),
        }
    }

    /// `{"$ref": …}` of a built-in definition by name, which is written if it was not.
    pub(super) fn named(&mut self, name: &str) -> Value {
        match builtin().named(name) {
            Some(view) => self.schema(view, ""),
            None => json!({"type": "object"}),
        }
    }

    /// What `/version` answers: no kind, and in no proto.
    pub(super) fn version(&mut self) -> Value {
        let name = "io.k8s.apimachinery.pkg.version.Info";
        let properties: Map<String, Value> =
            VERSION.iter().map(|(field, _)| ((*field).to_string(), json!({"type": "string"}))).collect();
        let required: Vec<&str> = VERSION.iter().filter(|(_, required)| *required).map(|(field, _)| *field).collect();
        let info = json!({"type": "object", "required": required, "properties": properties});
        self.done.insert(name.into(), info);
        json!({"$ref": self.reference(name)})
    }

    /// The schema of a kind's objects.
    pub(super) fn kind(&mut self, kind: &Kind<'_>) -> Value {
        match kind.schema {
            Source::Builtin(view) => self.schema(view, ""),
            Source::Custom(schema) => self.custom(kind, schema),
        }
    }

    /// The schema of a kind's lists.
    pub(super) fn list(&mut self, kind: &Kind<'_>) -> Value {
        let gvk = Gvk { kind: kind.list_kind.into(), ..kind.gvk.clone() };
        match kind.schema {
            Source::Builtin(view) => match view.types.kinds.get(&gvk) {
                Some(id) => self.schema(View { types: view.types, id: *id }, ""),
                None => json!({"type": "object"}),
            },
            Source::Custom(_) => {
                let name = custom_name(&gvk);
                let item = self.kind(kind);
                let meta = self.named(&format!("{META}.ListMeta"));
                let list = json!({
                    "type": "object",
                    "required": ["items"],
                    "properties": {
                        "apiVersion": self.text("apiVersion"),
                        "kind": self.text("kind"),
                        "metadata": meta,
                        "items": {"type": "array", "items": item},
                    },
                    "x-kubernetes-group-version-kind": [gvk_value(&gvk)],
                });
                self.done.insert(name.clone(), list);
                json!({"$ref": self.reference(&name)})
            }
        }
    }

    /// A string field that every object has.
    fn text(&self, field: &str) -> Value {
        let mut schema = object([("type", "string".into())]);
        self.sentence(&mut schema, &format!("{META}.Status"), Some(field));
        schema.into()
    }

    fn sentence(&self, schema: &mut Map<String, Value>, definition: &str, field: Option<&str>) {
        if let Some(text) = self.descriptions.describe(definition, field) {
            schema.insert("description".into(), text.into());
        }
    }

    fn custom(&mut self, kind: &Kind<'_>, schema: &Value) -> Value {
        let name = custom_name(&kind.gvk);
        if !self.done.contains_key(&name) {
            let open = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
            let mut body = match schema {
                Value::Object(map) if !(open && self.version == Version::V2) => self.with_common_fields(map.clone()),
                // No fields at all, or clients take those that are named for all there are.
                _ => object([("type", "object".into())]),
            };
            body.insert("x-kubernetes-group-version-kind".into(), json!([gvk_value(&kind.gvk)]));
            if !kind.selectable.is_empty() {
                let fields: Vec<Value> = kind.selectable.iter().map(|path| json!({"fieldPath": path})).collect();
                body.insert("x-kubernetes-selectable-fields".into(), fields.into());
            }
            self.done.insert(name.clone(), body.into());
        }
        json!({"$ref": self.reference(&name)})
    }

    /// A CRD's schema with the fields every object has.
    fn with_common_fields(&mut self, mut body: Map<String, Value>) -> Map<String, Value> {
        if self.version == Version::V2 {
            simplify(&mut body);
        }
        let reference = self.named(&format!("{META}.ObjectMeta"));
        // Beside a reference nothing counts in v3.
        let mut metadata = match (self.version, reference) {
            (Version::V2, Value::Object(reference)) => reference,
            (_, reference) => object([("allOf", json!([reference]))]),
        };
        // What every kind says of its metadata, a built-in one says it in.
        self.sentence(&mut metadata, EVERY_KIND, Some("metadata"));
        if let Value::Object(properties) = body.entry("properties").or_insert_with(|| json!({})) {
            properties.insert("apiVersion".into(), self.text("apiVersion"));
            properties.insert("kind".into(), self.text("kind"));
            properties.insert("metadata".into(), metadata.into());
        }
        body
    }

    /// A node's schema; `owner` is the definition it is used in.
    pub(super) fn schema(&mut self, view: View<'_>, owner: &str) -> Value {
        let node = view.node();
        let mut schema = match &node.shape {
            Shape::Struct(s) => {
                let name = s.name.to_string();
                self.define(view);
                object([("$ref", self.reference(&name))])
            }
            Shape::Map { .. } => {
                let value = view.child("").map(|v| self.item(v, owner)).unwrap_or_default();
                object([("type", "object".into()), ("additionalProperties", value)])
            }
            Shape::List { kind, patch, .. } => {
                let item = view.item().map(|v| self.item(v, owner)).unwrap_or_default();
                let mut schema = object([("type", "array".into()), ("items", item)]);
                // A list type of its own says nothing of how it merges.
                if !node.wrapped {
                    list_extensions(&mut schema, kind, patch);
                }
                schema
            }
            Shape::Scalar(scalar) => self.scalar(*scalar, owner),
        };
        if !node.enumeration.is_empty() {
            schema.insert("enum".into(), node.enumeration.clone().into());
        }
        if node.atomic && matches!(node.shape, Shape::Map { .. }) {
            schema.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        schema.into()
    }

    /// An item of a list or map: v3 names its zero value.
    fn item(&mut self, view: View<'_>, owner: &str) -> Value {
        let schema = self.schema(view, owner);
        match (self.version, schema) {
            (Version::V3, Value::Object(schema)) => match zero(view) {
                Some(zero) => beside(schema, [("default", zero)]).into(),
                None => schema.into(),
            },
            (_, schema) => schema,
        }
    }

    fn scalar(&mut self, scalar: Scalar, owner: &str) -> Map<String, Value> {
        let plain = |ty: &str, format: &str| {
            let mut schema = object([("type", ty.into())]);
            if !format.is_empty() {
                schema.insert("format".into(), format.into());
            }
            schema
        };
        let (name, schema) = match scalar {
            Scalar::String => return plain("string", ""),
            Scalar::Boolean => return plain("boolean", ""),
            Scalar::Int32 => return plain("integer", "int32"),
            Scalar::Int64 | Scalar::Uint32 | Scalar::Uint64 => return plain("integer", "int64"),
            Scalar::Float32 => return plain("number", "float"),
            Scalar::Float64 => return plain("number", "double"),
            Scalar::Bytes => return plain("string", "byte"),
            Scalar::Time => (format!("{META}.Time"), plain("string", "date-time")),
            Scalar::MicroTime => (format!("{META}.MicroTime"), plain("string", "date-time")),
            Scalar::Duration => (format!("{META}.Duration"), plain("string", "")),
            Scalar::Quantity => {
                let schema = match self.version {
                    Version::V2 => plain("string", ""),
                    Version::V3 => object([("oneOf", json!([{"type": "string"}, {"type": "number"}]))]),
                };
                ("io.k8s.apimachinery.pkg.api.resource.Quantity".into(), schema)
            }
            Scalar::IntOrString => {
                let mut schema = plain("string", "int-or-string");
                if self.version == Version::V3 {
                    schema.remove("type");
                    schema.insert("oneOf".into(), json!([{"type": "integer"}, {"type": "string"}]));
                }
                ("io.k8s.apimachinery.pkg.util.intstr.IntOrString".into(), schema)
            }
            Scalar::Any if owner.starts_with(APIEXTENSIONS) => (format!("{APIEXTENSIONS}.JSON"), Map::new()),
            Scalar::Any => ("io.k8s.apimachinery.pkg.runtime.RawExtension".into(), plain("object", "")),
            Scalar::FieldsV1 => (format!("{META}.FieldsV1"), plain("object", "")),
            Scalar::SchemaOrBool => (format!("{APIEXTENSIONS}.JSONSchemaPropsOrBool"), Map::new()),
            Scalar::SchemaOrArray => (format!("{APIEXTENSIONS}.JSONSchemaPropsOrArray"), Map::new()),
            Scalar::SchemaOrStrings => (format!("{APIEXTENSIONS}.JSONSchemaPropsOrStringArray"), Map::new()),
        };
        if !self.done.contains_key(&name) {
            let mut schema = schema;
            self.sentence(&mut schema, &name, None);
            self.done.insert(name.clone(), schema.into());
        }
        object([("$ref", self.reference(&name))])
    }

    /// Writes the definition of a named struct, and of what it refers to.
    fn define(&mut self, view: View<'_>) {
        let Shape::Struct(s) = view.shape() else { return };
        if self.done.contains_key(&*s.name) {
            return;
        }
        // Taken before its fields are written, for schemas that contain themselves.
        self.done.insert(s.name.to_string(), Value::Null);
        let mut schema = object([("type", "object".into())]);
        self.sentence(&mut schema, &s.name, None);
        let mut properties = Map::new();
        for field in &s.fields {
            properties.insert(field.name.to_string(), self.field(view, &s.name, field));
        }
        let required: Vec<&str> = s.fields.iter().filter(|f| f.required).map(|f| &*f.name).collect();
        if !properties.is_empty() {
            schema.insert("properties".into(), properties.into());
        }
        if !required.is_empty() {
            schema.insert("required".into(), required.into());
        }
        if view.node().atomic {
            schema.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        if let Some(kinds) = self.kinds.get(&view.id) {
            // Kinds of versions that are not served do not show, but a struct that is none else keeps its name.
            let everywhere = matches!(s.name.strip_prefix(META), Some(".DeleteOptions" | ".WatchEvent"));
            let served = |gvk: &&Gvk| {
                everywhere || self.served.iter().any(|gv| gv.group == gvk.group && gv.version == gvk.version)
            };
            let mut shown: Vec<&Gvk> = kinds.iter().filter(served).collect();
            if shown.is_empty() {
                shown = kinds.iter().collect();
            }
            shown.sort();
            schema.insert("x-kubernetes-group-version-kind".into(), shown.into_iter().map(gvk_value).collect());
        }
        besides(&mut schema, &s.name, "");
        self.done.insert(s.name.to_string(), schema.into());
    }

    fn field(&mut self, view: View<'_>, owner: &str, field: &Field) -> Value {
        let inner = view.of(field);
        let mut schema = match self.schema(inner, owner) {
            Value::Object(schema) => schema,
            other => return other,
        };
        if &*field.name == "items" && self.kinds.contains_key(&view.id) {
            // Lists of kinds are never applied, so nobody said how their items merge.
            schema.remove("x-kubernetes-list-type");
        }
        let mut around = Map::new();
        self.sentence(&mut around, owner, Some(&field.name));
        if self.version == Version::V3 {
            let implied = match inner.shape() {
                Shape::Struct(_) if field.presence != Presence::Pointer => zero(inner),
                Shape::Scalar(_) if field.presence == Presence::Always => zero(inner),
                _ => None,
            };
            if let Some(default) = field.default.as_deref().cloned().or(implied) {
                around.insert("default".into(), default);
            }
        }
        besides(&mut around, owner, &field.name);
        if field.retain_keys {
            around.insert("x-kubernetes-patch-strategy".into(), "retainKeys".into());
        }
        if schema.contains_key("$ref") && !around.is_empty() {
            match self.version {
                Version::V2 => schema.append(&mut around),
                Version::V3 => {
                    around.insert("allOf".into(), json!([schema]));
                    schema = around;
                }
            }
        } else {
            schema.append(&mut around);
        }
        schema.into()
    }
}

/// Adds keys to a schema; a reference stands alone in `allOf` then.
fn beside(schema: Map<String, Value>, entries: impl IntoIterator<Item = (&'static str, Value)>) -> Map<String, Value> {
    let mut out = if schema.contains_key("$ref") { object([("allOf", json!([schema]))]) } else { schema };
    out.extend(object(entries));
    out
}

fn besides(schema: &mut Map<String, Value>, definition: &str, field: &str) {
    for (_, _, key, text) in BESIDES.iter().filter(|(of, at, ..)| *of == definition && *at == field) {
        schema.insert((*key).into(), serde_json::from_str(text).unwrap_or_default());
    }
}

fn list_extensions(schema: &mut Map<String, Value>, kind: &ListKind, patch: &PatchStrategy) {
    match kind {
        ListKind::Atomic => drop(schema.insert("x-kubernetes-list-type".into(), "atomic".into())),
        ListKind::Set => drop(schema.insert("x-kubernetes-list-type".into(), "set".into())),
        ListKind::Map { keys } => {
            schema.insert("x-kubernetes-list-type".into(), "map".into());
            schema.insert("x-kubernetes-list-map-keys".into(), keys.iter().map(|k| Value::from(&**k)).collect());
        }
    }
    let strategy = match (patch.merge, patch.retain_keys) {
        (true, true) => "merge,retainKeys",
        (true, false) => "merge",
        (false, true) => "retainKeys",
        (false, false) => return,
    };
    schema.insert("x-kubernetes-patch-strategy".into(), strategy.into());
    if !patch.merge_key.is_empty() {
        schema.insert("x-kubernetes-patch-merge-key".into(), (&*patch.merge_key).into());
    }
}

/// Go's zero value as v3 documents name it; `None` where they name none.
fn zero(view: View<'_>) -> Option<Value> {
    Some(match view.shape() {
        Shape::Struct(_) => json!({}),
        Shape::Map { .. } | Shape::List { .. } => return None,
        Shape::Scalar(scalar) => match scalar {
            Scalar::String => "".into(),
            Scalar::Boolean => false.into(),
            Scalar::Int32 | Scalar::Int64 | Scalar::Uint32 | Scalar::Uint64 | Scalar::Float32 | Scalar::Float64 => {
                0.into()
            }
            _ => return None,
        },
    })
}

/// A CRD's schema as far as v2 can say it: what v2 has no words for is left open.
fn simplify(schema: &mut Map<String, Value>) {
    let said = |schema: &Map<String, Value>, key: &str| schema.get(key).and_then(Value::as_bool) == Some(true);
    let open = said(schema, "x-kubernetes-preserve-unknown-fields");
    let untyped = said(schema, "nullable") || said(schema, "x-kubernetes-int-or-string");
    for key in ["oneOf", "anyOf", "allOf", "not", "nullable", "default", "example", "x-kubernetes-validations"] {
        schema.remove(key);
    }
    if untyped {
        for key in ["type", "items", "properties", "additionalProperties", "required", "enum", "format"] {
            schema.remove(key);
        }
    }
    if open {
        for key in ["items", "properties"] {
            schema.remove(key);
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(Value::Object(inner)) = schema.get_mut(key) {
            simplify(inner);
        }
    }
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        for inner in properties.values_mut() {
            if let Value::Object(inner) = inner {
                simplify(inner);
            }
        }
    }
}
