//! Makes a tree fit its schema: unknown fields leave, types are checked, defaults fill in.
//!
//! One walk over value and schema together, in place. Below a named (built-in) struct the rules are those of Go's decoder: nulls mean
//! absent, integers have ranges, times and quantities must parse, and the first misfit is an error worded as Go words it.
//! Below the inline objects of CRDs a misfit is left for validation to report. It knows no validation and no request.

use serde_json::{Map, Value};

use super::{Field, Presence, Scalar, Shape, Struct, View};
use crate::decode::{Issue, Issues};
use crate::quantity::Quantity;
use crate::time;

/// A value of the wrong type for its field, worded as Go's decoder words it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TypeError(pub String);

/// Drops unknown fields (reported to `issues`) and nulls, and checks types.
pub fn prune(view: View<'_>, value: &mut Value, issues: &mut Issues) -> Result<(), TypeError> {
    Walk { issues: Some(issues), defaults: false }.root(view, value)
}

/// Fills in the schema's static defaults, below objects that exist.
pub fn default(view: View<'_>, value: &mut Value) {
    // Without `issues` nothing is checked, so nothing can fail.
    let _ = Walk { issues: None, defaults: true }.root(view, value);
}

/// [`prune`] and [`default`] in one walk.
pub fn conform(view: View<'_>, value: &mut Value, issues: &mut Issues) -> Result<(), TypeError> {
    Walk { issues: Some(issues), defaults: true }.root(view, value)
}

/// Where the walk is; lives on the stack, and is only read to word a complaint.
#[derive(Clone, Copy)]
pub(super) struct Path<'p> {
    pub(super) parent: Option<&'p Path<'p>>,
    pub(super) step: Step<'p>,
}

#[derive(Clone, Copy)]
pub(super) enum Step<'p> {
    Root,
    /// A field, and the name of the struct it is in.
    Field(&'p str, &'p str),
    Key(&'p str),
    Index(usize),
}

impl Path<'_> {
    /// `spec.containers[0].image`.
    pub(super) fn text(&self) -> String {
        let mut out = self.parent.map_or_else(String::new, Path::text);
        match self.step {
            Step::Root => {}
            Step::Field(name, _) | Step::Key(name) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
            Step::Index(at) => out.push_str(&format!("[{at}]")),
        }
        out
    }

    /// Go's words for the place: `Go struct field Container.spec.containers.image`.
    fn go(&self) -> String {
        let (mut names, mut owner, mut at) = (Vec::new(), "", Some(self));
        while let Some(path) = at {
            if let Step::Field(name, of) = path.step {
                if names.is_empty() {
                    owner = of;
                }
                names.push(name);
            }
            at = path.parent;
        }
        if names.is_empty() {
            return "Go value".into();
        }
        names.reverse();
        format!("Go struct field {}.{}", owner.rsplit('.').next().unwrap_or_default(), names.join("."))
    }

    fn misfit(&self, found: &str, wanted: &str) -> TypeError {
        TypeError(format!("json: cannot unmarshal {found} into {} of type {wanted}", self.go()))
    }
}

struct Walk<'i> {
    /// Set when unknown fields go and types are checked.
    issues: Option<&'i mut Issues>,
    defaults: bool,
}

impl Walk<'_> {
    fn root(&mut self, view: View<'_>, value: &mut Value) -> Result<(), TypeError> {
        self.walk(view, value, false, &Path { parent: None, step: Step::Root })
    }

    /// `go`: below a built-in struct, where Go's decoder has its say.
    fn walk(&mut self, view: View<'_>, value: &mut Value, go: bool, path: &Path<'_>) -> Result<(), TypeError> {
        match (view.shape(), &mut *value) {
            (Shape::Struct(s), Value::Object(map)) => self.structure(view, s, map, go || !s.name.is_empty(), path),
            (Shape::Map { .. }, Value::Object(map)) => {
                let Some(inner) = view.child("") else { return Ok(()) };
                if !go && self.issues.is_some() && !inner.node().nullable && !any(inner) {
                    map.retain(|_, v| !v.is_null());
                }
                for (key, value) in map.iter_mut() {
                    let path = Path { parent: Some(path), step: Step::Key(key) };
                    self.item(inner, value, go, &path)?;
                }
                Ok(())
            }
            (Shape::List { .. }, Value::Array(items)) => {
                let Some(inner) = view.item() else { return Ok(()) };
                for (at, value) in items.iter_mut().enumerate() {
                    let path = Path { parent: Some(path), step: Step::Index(at) };
                    self.item(inner, value, go, &path)?;
                }
                Ok(())
            }
            (Shape::Scalar(scalar @ (Scalar::SchemaOrBool | Scalar::SchemaOrArray | Scalar::SchemaOrStrings)), _) => {
                self.schema_or(view, *scalar, value, path)
            }
            (Shape::Scalar(scalar), _) if go && self.issues.is_some() => check_scalar(*scalar, value, path),
            (Shape::Scalar(_), _) => Ok(()),
            (shape, found) => {
                let go = go || matches!(shape, Shape::Struct(s) if !s.name.is_empty());
                if go && self.issues.is_some() { Err(path.misfit(json_type(found), &go_type(view))) } else { Ok(()) }
            }
        }
    }

    /// An item of a list or map: Go reads null as the zero value.
    fn item(&mut self, view: View<'_>, value: &mut Value, go: bool, path: &Path<'_>) -> Result<(), TypeError> {
        if go && value.is_null() && !any(view) {
            *value = zero(view);
            return Ok(());
        }
        self.walk(view, value, go, path)
    }

    fn structure(
        &mut self,
        view: View<'_>,
        s: &Struct,
        map: &mut Map<String, Value>,
        go: bool,
        path: &Path<'_>,
    ) -> Result<(), TypeError> {
        if self.defaults {
            for field in &s.fields {
                if let Some(default) = &field.default
                    && wants_default(view, field, map.get(&*field.name), default, go)
                {
                    map.insert(field.name.to_string(), Value::clone(default));
                }
                if go && holds_defaults(view, field) && map.get(&*field.name).is_none_or(Value::is_null) {
                    map.insert(field.name.to_string(), Value::Object(Map::new()));
                }
            }
        }
        let mut failed = None;
        map.retain(|key, value| {
            if failed.is_some() {
                return true;
            }
            let Some(field) = view.field_facts(key) else {
                if s.preserve_unknown {
                    return true;
                }
                let Some(issues) = self.issues.as_deref_mut() else { return true };
                let path = Path { parent: Some(path), step: Step::Key(key) };
                issues.push(Issue::Unknown(path.text()));
                return false;
            };
            let inner = view.of(field);
            // What Go cannot tell from absent is absent; nothing that is stored has it.
            if self.defaults && go && field.presence == Presence::NonZero && is_absent(inner, value) {
                return false;
            }
            if value.is_null() {
                return self.issues.is_none() || inner.node().nullable || (!go && any(inner));
            }
            let path = Path { parent: Some(path), step: Step::Field(&field.name, &s.name) };
            failed = self.walk(inner, value, go, &path).err();
            true
        });
        failed.map_or(Ok(()), Err)
    }

    /// CRD schemas' unions: below an object is a schema, below a list are schemas (or strings).
    fn schema_or(
        &mut self,
        view: View<'_>,
        scalar: Scalar,
        value: &mut Value,
        path: &Path<'_>,
    ) -> Result<(), TypeError> {
        let Some(schema) = view.types.named(JSON_SCHEMA_PROPS) else { return Ok(()) };
        match value {
            Value::Object(_) => self.walk(schema, value, true, path),
            Value::Array(items) if scalar == Scalar::SchemaOrArray => {
                for (at, item) in items.iter_mut().enumerate() {
                    self.walk(schema, item, true, &Path { parent: Some(path), step: Step::Index(at) })?;
                }
                Ok(())
            }
            Value::Array(_) if scalar == Scalar::SchemaOrStrings => Ok(()),
            Value::Bool(_) if scalar == Scalar::SchemaOrBool => Ok(()),
            _ if self.issues.is_none() => Ok(()),
            _ if scalar == Scalar::SchemaOrBool => Err(TypeError("boolean or JSON schema expected".into())),
            _ => Err(TypeError("array or JSON schema expected".into())),
        }
    }
}

/// The struct below [`Scalar::SchemaOrBool`] and its like.
pub(crate) const JSON_SCHEMA_PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// A zero value that `omitempty` leaves out. Structs are never empty to it, and what has its own encoding is not looked into.
fn is_absent(view: View<'_>, value: &Value) -> bool {
    match (view.shape(), value) {
        (Shape::List { .. }, Value::Array(items)) => items.is_empty(),
        (Shape::Map { .. }, Value::Object(map)) => map.is_empty(),
        (Shape::Scalar(Scalar::String | Scalar::Bytes), Value::String(text)) => text.is_empty(),
        (Shape::Scalar(Scalar::Boolean), Value::Bool(said)) => !said,
        (Shape::Scalar(scalar), Value::Number(_)) => {
            !matches!(scalar, Scalar::Any | Scalar::IntOrString) && is_zero(value)
        }
        _ => false,
    }
}

/// A struct that is always there in Go, so that what is below it has its defaults even where nobody said anything.
fn holds_defaults(view: View<'_>, field: &Field) -> bool {
    matches!(&*field.name, "spec" | "template" | "jobTemplate")
        && field.presence != Presence::Pointer
        && matches!(view.of(field).shape(), Shape::Struct(_))
}

fn any(view: View<'_>) -> bool {
    matches!(view.shape(), Shape::Scalar(Scalar::Any))
}

fn wants_default(view: View<'_>, field: &Field, found: Option<&Value>, default: &Value, go: bool) -> bool {
    let node = view.of(field).node();
    // Where Go cannot tell zero from absent, a zero default changes nothing and zero asks for the default.
    let zero_is_absent = go && field.presence != Presence::Pointer;
    match found {
        None => !(zero_is_absent && is_zero(default)),
        Some(Value::Null) => !(node.nullable || zero_is_absent && is_zero(default)),
        Some(value) => zero_is_absent && is_zero(value) && !is_zero(default),
    }
}

/// Whether Go would call a value zero and `omitempty` leave it out.
pub(crate) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn zero(view: View<'_>) -> Value {
    match view.shape() {
        Shape::Struct(_) | Shape::Map { .. } => Value::Object(Map::new()),
        Shape::List { .. } => Value::Array(Vec::new()),
        Shape::Scalar(scalar) => match scalar {
            Scalar::Boolean => Value::Bool(false),
            Scalar::Quantity => "0".into(),
            Scalar::String | Scalar::Bytes => "".into(),
            Scalar::Time | Scalar::MicroTime | Scalar::Any | Scalar::FieldsV1 => Value::Null,
            Scalar::SchemaOrBool | Scalar::SchemaOrArray | Scalar::SchemaOrStrings => Value::Null,
            Scalar::Duration => "0s".into(),
            _ => 0.into(),
        },
    }
}

/// What Go calls a JSON value's type; numbers that do not fit are named with their digits.
pub fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Go's spelling of a node's type: `v1.PodSpec`, `[]v1.Container`, `map[string]string`.
fn go_type(view: View<'_>) -> String {
    match view.shape() {
        Shape::Struct(s) => {
            let from = s.name.rmatch_indices('.').nth(1).map_or(0, |(at, _)| at + 1);
            s.name[from..].to_string()
        }
        Shape::Map { .. } => format!("map[string]{}", view.child("").map(go_type).unwrap_or_default()),
        Shape::List { .. } => format!("[]{}", view.item().map(go_type).unwrap_or_default()),
        Shape::Scalar(scalar) => match scalar {
            Scalar::String => "string",
            Scalar::Boolean => "bool",
            Scalar::Int32 => "int32",
            Scalar::Int64 => "int64",
            Scalar::Uint32 => "uint32",
            Scalar::Uint64 => "uint64",
            Scalar::Float32 => "float32",
            Scalar::Float64 => "float64",
            Scalar::Bytes => "[]uint8",
            Scalar::Time => "v1.Time",
            Scalar::MicroTime => "v1.MicroTime",
            Scalar::Duration => "v1.Duration",
            Scalar::Quantity => "resource.Quantity",
            Scalar::IntOrString => "intstr.IntOrString",
            Scalar::Any => "runtime.RawExtension",
            Scalar::FieldsV1 => "v1.FieldsV1",
            Scalar::SchemaOrBool => "v1.JSONSchemaPropsOrBool",
            Scalar::SchemaOrArray => "v1.JSONSchemaPropsOrArray",
            Scalar::SchemaOrStrings => "v1.JSONSchemaPropsOrStringArray",
        }
        .to_string(),
    }
}

/// Checks a leaf as Go's decoder would; texts that Go rewrites (times, quantities given as numbers) are rewritten.
fn check_scalar(scalar: Scalar, value: &mut Value, path: &Path<'_>) -> Result<(), TypeError> {
    let inner =
        |found: &str, wanted: &str| TypeError(format!("json: cannot unmarshal {found} into Go value of type {wanted}"));
    let misfit = |value: &Value, wanted: &str| Err(path.misfit(json_type(value), wanted));
    let integer = |value: &Value, low: i128, high: i128, wanted: &str| match value {
        Value::Number(n) => {
            let whole = n.as_i64().map(i128::from).or_else(|| n.as_u64().map(i128::from));
            match whole.filter(|w| (low..=high).contains(w)) {
                Some(_) => Ok(()),
                None => Err(path.misfit(&format!("number {n}"), wanted)),
            }
        }
        other => Err(path.misfit(json_type(other), wanted)),
    };
    match scalar {
        Scalar::String => {
            if value.is_string() {
                Ok(())
            } else {
                misfit(value, "string")
            }
        }
        Scalar::Boolean => {
            if value.is_boolean() {
                Ok(())
            } else {
                misfit(value, "bool")
            }
        }
        Scalar::Int32 => integer(value, i32::MIN.into(), i32::MAX.into(), "int32"),
        Scalar::Int64 => integer(value, i64::MIN.into(), i64::MAX.into(), "int64"),
        Scalar::Uint32 => integer(value, 0, u32::MAX.into(), "uint32"),
        Scalar::Uint64 => integer(value, 0, u64::MAX.into(), "uint64"),
        Scalar::Float32 => {
            if value.is_number() {
                Ok(())
            } else {
                misfit(value, "float32")
            }
        }
        Scalar::Float64 => {
            if value.is_number() {
                Ok(())
            } else {
                misfit(value, "float64")
            }
        }
        Scalar::Bytes => match value {
            Value::String(text) => {
                if text.contains(['\n', '\r']) {
                    text.retain(|c| c != '\n' && c != '\r');
                }
                check_base64(text)
            }
            other => misfit(other, "[]uint8"),
        },
        Scalar::Time | Scalar::MicroTime => match value {
            Value::String(text) => {
                let canonical = time::canonical(text, scalar == Scalar::MicroTime).map_err(TypeError)?;
                if let Some(canonical) = canonical {
                    *text = canonical;
                }
                Ok(())
            }
            other => Err(inner(json_type(other), "string")),
        },
        Scalar::Duration => match value {
            Value::String(text) => match time::parse_duration(text) {
                Some(nanos) => {
                    *text = time::format_duration(nanos);
                    Ok(())
                }
                None => Err(TypeError(format!("time: invalid duration {text:?}"))),
            },
            other => Err(inner(json_type(other), "string")),
        },
        Scalar::Quantity => {
            if let Value::Number(n) = value {
                *value = Value::String(n.to_string());
            }
            match value {
                Value::String(text) => {
                    let quantity: Quantity = text.trim().parse().map_err(|e| TypeError(format!("{e}")))?;
                    let canonical = quantity.to_string();
                    if *text != canonical {
                        *text = canonical;
                    }
                    Ok(())
                }
                other => Err(inner(json_type(other), "string")),
            }
        }
        Scalar::IntOrString => match value {
            Value::String(_) => Ok(()),
            Value::Number(n) => match n.as_i64().and_then(|n| i32::try_from(n).ok()) {
                Some(_) => Ok(()),
                None => Err(inner(&format!("number {n}"), "int32")),
            },
            other => Err(inner(json_type(other), "int32")),
        },
        Scalar::Any | Scalar::FieldsV1 => Ok(()),
        Scalar::SchemaOrBool | Scalar::SchemaOrArray | Scalar::SchemaOrStrings => Ok(()),
    }
}

/// Go's complaint about base64 names the first byte it cannot use.
fn check_base64(text: &str) -> Result<(), TypeError> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let mut buffer = [0u8; 768];
    let bytes = text.as_bytes();
    let mut from = 0;
    loop {
        // Whole groups of four at a time, so that nothing of the size of the text is allocated.
        let to = (from + 1024).min(bytes.len());
        let last = to == bytes.len();
        let chunk = &bytes[from..to];
        let padded_early = !last && chunk.last() == Some(&b'=');
        match STANDARD.decode_slice(chunk, &mut buffer) {
            Ok(_) if !padded_early => {}
            Ok(_) => return Err(TypeError(format!("illegal base64 data at input byte {to}"))),
            Err(base64::DecodeSliceError::DecodeError(base64::DecodeError::InvalidByte(at, _))) => {
                return Err(TypeError(format!("illegal base64 data at input byte {}", from + at)));
            }
            Err(_) => return Err(TypeError(format!("illegal base64 data at input byte {}", bytes.len() / 4 * 4))),
        }
        if last {
            return Ok(());
        }
        from = to;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Gvk;
    use crate::schema::builtin;

    fn check(kind: (&str, &str, &str), body: Value, expect: Result<(Value, &[&str]), &str>) {
        let view = builtin().kind(&Gvk::new(kind.0, kind.1, kind.2)).expect("kind");
        let (mut value, mut issues) = (body, Issues::default());
        let got = conform(view, &mut value, &mut issues);
        match expect {
            Ok((expect, unknown)) => {
                assert_eq!(got, Ok(()));
                assert_eq!(value, expect);
                let texts: Vec<String> = issues.texts().collect();
                assert_eq!(texts, unknown);
            }
            Err(text) => assert_eq!(got, Err(TypeError(text.into()))),
        }
    }

    const POD: (&str, &str, &str) = ("", "v1", "Pod");

    #[test]
    fn unknown_fields_and_nulls_leave() {
        check(
            POD,
            json!({"kind": "Pod", "foo": 1, "metadata": {"labels": {"a": null}, "creationTimestamp": null},
                   "spec": {"containers": [{"name": "c", "imag": "x", "ports": [{"containerPort": 80}]}], "nodeName": null}}),
            Ok((
                json!({"kind": "Pod", "metadata": {"labels": {"a": ""}},
                       "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}}),
                &[r#"unknown field "foo""#, r#"unknown field "spec.containers[0].imag""#],
            )),
        );
    }

    #[test]
    fn misfits_are_worded_as_go_words_them() {
        let cases = [
            (
                json!({"spec": {"containers": [{"image": 1}]}}),
                "json: cannot unmarshal number into Go struct field Container.spec.containers.image of type string",
            ),
            (
                json!({"spec": {"containers": {}}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                json!({"spec": {"priority": 3_000_000_000i64}}),
                "json: cannot unmarshal number 3000000000 into Go struct field PodSpec.spec.priority of type int32",
            ),
            (
                json!({"metadata": {"labels": {"a": true}}}),
                "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (json!([]), "json: cannot unmarshal array into Go value of type v1.Pod"),
            (
                json!({"metadata": {"creationTimestamp": "yesterday"}}),
                "parsing time \"yesterday\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"yesterday\" as \"2006\"",
            ),
            (
                json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "x1"}}}]}}),
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        ];
        for (body, text) in cases {
            check(POD, body, Err(text));
        }
        check(("", "v1", "Secret"), json!({"data": {"a": "YQ=*"}}), Err("illegal base64 data at input byte 2"));
    }

    #[test]
    fn times_are_written_in_utc() {
        check(
            POD,
            json!({"metadata": {"creationTimestamp": "2024-02-03T04:05:06.7+01:00"}}),
            Ok((json!({"metadata": {"creationTimestamp": "2024-02-03T03:05:06Z"}, "spec": {}}), &[])),
        );
    }

    #[test]
    fn zero_is_absent_where_go_cannot_tell_them_apart() {
        check(
            ("apps", "v1", "Deployment"),
            json!({"spec": {"replicas": 0, "paused": false, "minReadySeconds": 0, "strategy": {"type": ""}, "selector": {},
                   "template": {"spec": {"restartPolicy": "", "hostNetwork": false, "automountServiceAccountToken": false}}}}),
            Ok((
                json!({"spec": {"replicas": 0, "strategy": {}, "selector": {},
                       "template": {"spec": {"automountServiceAccountToken": false}}}}),
                &[],
            )),
        );
        check(("apps", "v1", "Deployment"), json!({}), Ok((json!({"spec": {"template": {"spec": {}}}}), &[])));
        check(("", "v1", "ReplicationController"), json!({"spec": null}), Ok((json!({"spec": {"replicas": 1}}), &[])));
    }

    #[test]
    fn schemas_of_crds_are_walked_too() {
        check(
            ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
            json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {
                "items": {"foo": 1, "type": "string"}, "additionalProperties": true, "default": {"x": null}}}}]}}),
            Ok((
                json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {
                    "items": {"type": "string"}, "additionalProperties": true, "default": {"x": null}}}}]}}),
                &[r#"unknown field "spec.versions[0].schema.openAPIV3Schema.items.foo""#],
            )),
        );
    }
}
