//! Trees → messages, byte for byte as upstream's encoder writes them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::ProtobufError;
use super::wire;
use crate::schema::{Field, JSON_SCHEMA_PROPS, Presence, Scalar, Shape, Struct, View};
use crate::time;

/// Appends a tree's message. Fields the schema does not know are left out.
pub fn write_message(view: View<'_>, value: &Value, out: &mut Vec<u8>) -> Result<(), ProtobufError> {
    let Shape::Struct(s) = view.shape() else { return Err(ProtobufError::Malformed("not a message")) };
    let map = match value {
        Value::Object(map) => map,
        Value::Null => &Map::new(),
        _ => return Err(ProtobufError::Value { field: s.name.to_string(), why: "must be an object" }),
    };
    fields(view, s, map, &s.wire_order, 0, out)
}

/// Writes fields that share their first `depth` tags.
fn fields(
    view: View<'_>,
    s: &Struct,
    map: &Map<String, Value>,
    order: &[u16],
    depth: usize,
    out: &mut Vec<u8>,
) -> Result<(), ProtobufError> {
    let mut rest = order;
    while let Some(first) = rest.first() {
        let field = &s.fields[usize::from(*first)];
        match field.inlined_in.get(depth) {
            None => {
                member(view, field, map.get(&*field.name), out).map_err(|e| within(&field.name, e))?;
                rest = &rest[1..];
            }
            Some(tag) => {
                let same =
                    rest.iter().take_while(|at| s.fields[usize::from(**at)].inlined_in.get(depth) == Some(tag)).count();
                wire::message(out, *tag, |out| fields(view, s, map, &rest[..same], depth + 1, out))?;
                rest = &rest[same..];
            }
        }
    }
    Ok(())
}

fn within(name: &str, error: ProtobufError) -> ProtobufError {
    match error {
        ProtobufError::Value { field, why } if field.is_empty() => ProtobufError::Value { field: name.into(), why },
        ProtobufError::Value { field, why } => ProtobufError::Value { field: format!("{name}.{field}"), why },
        other => other,
    }
}

fn unfit(why: &'static str) -> ProtobufError {
    ProtobufError::Value { field: String::new(), why }
}

fn member(view: View<'_>, field: &Field, value: Option<&Value>, out: &mut Vec<u8>) -> Result<(), ProtobufError> {
    let inner = view.of(field);
    let value = value.unwrap_or(&Value::Null);
    match inner.shape() {
        Shape::List { .. } if !inner.node().wrapped => match (value, inner.item()) {
            (Value::Null, _) => Ok(()),
            (Value::Array(items), Some(item)) => items.iter().try_for_each(|value| one(item, field.tag, value, out)),
            _ => Err(unfit("must be a list")),
        },
        Shape::Map { .. } => match (value, inner.child("")) {
            (Value::Null, _) => Ok(()),
            (Value::Object(map), Some(item)) => {
                let mut keys: Vec<&String> = map.keys().collect();
                keys.sort_unstable();
                keys.into_iter().try_for_each(|key| {
                    wire::message(out, field.tag, |out| {
                        wire::bytes(out, 1, key.as_bytes());
                        one(item, 2, &map[key.as_str()], out)
                    })
                })
            }
            _ => Err(unfit("must be an object")),
        },
        // What may be nil in Go is not written when absent.
        _ if value.is_null() && (field.presence == Presence::Pointer || nil_able(inner)) => Ok(()),
        _ => one(inner, field.tag, value, out),
    }
}

/// Types that are nil in Go without being pointers.
fn nil_able(view: View<'_>) -> bool {
    matches!(view.shape(), Shape::Scalar(Scalar::Bytes) | Shape::List { .. })
}

/// Writes one value as a field; null is the zero value.
fn one(view: View<'_>, tag: u32, value: &Value, out: &mut Vec<u8>) -> Result<(), ProtobufError> {
    let scalar = match view.shape() {
        Shape::Struct(_) => return wire::message(out, tag, |out| write_message(view, value, out)),
        Shape::List { .. } => {
            let item = view.item().ok_or(ProtobufError::Malformed("list without item"))?;
            return wire::message(out, tag, |out| match value {
                Value::Null => Ok(()),
                Value::Array(items) => items.iter().try_for_each(|value| one(item, 1, value, out)),
                _ => Err(unfit("must be a list")),
            });
        }
        Shape::Map { .. } => return Err(ProtobufError::Malformed("map in a place of its own")),
        Shape::Scalar(scalar) => *scalar,
    };
    match scalar {
        Scalar::String => wire::bytes(out, tag, text(value)?.as_bytes()),
        Scalar::Boolean => wire::number(
            out,
            tag,
            match value {
                Value::Null => 0,
                Value::Bool(b) => (*b).into(),
                _ => return Err(unfit("must be a boolean")),
            },
        ),
        Scalar::Int32 | Scalar::Int64 | Scalar::Uint32 | Scalar::Uint64 => wire::number(out, tag, integer(value)?),
        Scalar::Float64 => {
            wire::key(out, tag, 1);
            out.extend_from_slice(&float(value)?.to_le_bytes());
        }
        Scalar::Float32 => {
            wire::key(out, tag, 5);
            out.extend_from_slice(&(float(value)? as f32).to_le_bytes());
        }
        Scalar::Bytes => {
            let bytes = STANDARD.decode(text(value)?).map_err(|_| unfit("must be base64"))?;
            wire::bytes(out, tag, &bytes);
        }
        Scalar::Time | Scalar::MicroTime => {
            let at = match value {
                Value::Null => None,
                value => Some(time::parse(text(value)?).ok_or_else(|| unfit("must be a time"))?),
            };
            wire::message(out, tag, |out| {
                if let Some(at) = at {
                    // A time before 1970 with a fraction counts the fraction forward from the second before.
                    let (seconds, nanos) = match at.subsec_nanosecond() {
                        nanos if nanos < 0 => (at.as_second() - 1, nanos + 1_000_000_000),
                        nanos => (at.as_second(), nanos),
                    };
                    wire::number(out, 1, seconds as u64);
                    wire::number(out, 2, nanos as u64);
                }
            });
        }
        Scalar::Duration => {
            let nanos = match value {
                Value::Null => 0,
                value => time::parse_duration(text(value)?).ok_or_else(|| unfit("must be a duration"))?,
            };
            wire::message(out, tag, |out| wire::number(out, 1, nanos as u64));
        }
        Scalar::Quantity => {
            let text = match value {
                Value::Null => "0".into(),
                Value::Number(n) => n.to_string().into(),
                value => std::borrow::Cow::Borrowed(text(value)?),
            };
            wire::message(out, tag, |out| wire::bytes(out, 1, text.as_bytes()));
        }
        Scalar::IntOrString => {
            let (kind, number, text) = match value {
                Value::String(text) => (1, 0, text.as_str()),
                value => (0, integer(value)?, ""),
            };
            wire::message(out, tag, |out| {
                wire::number(out, 1, kind);
                wire::number(out, 2, number);
                wire::bytes(out, 3, text.as_bytes());
            });
        }
        Scalar::Any | Scalar::FieldsV1 => wire::message(out, tag, |out| {
            if !value.is_null() {
                // Go keeps the raw bytes it was given; a tree has none, so compact JSON stands for them.
                wire::bytes(out, 1, value.to_string().as_bytes());
            }
        }),
        Scalar::SchemaOrBool | Scalar::SchemaOrArray | Scalar::SchemaOrStrings => {
            let schema = view.types.named(JSON_SCHEMA_PROPS).ok_or(ProtobufError::Malformed("no JSONSchemaProps"))?;
            return wire::message(out, tag, |out| schema_or(schema, scalar, value, out));
        }
    }
    Ok(())
}

fn schema_or(schema: View<'_>, scalar: Scalar, value: &Value, out: &mut Vec<u8>) -> Result<(), ProtobufError> {
    match (scalar, value) {
        (_, Value::Null) => Ok(()),
        (Scalar::SchemaOrBool, Value::Bool(allows)) => {
            wire::number(out, 1, (*allows).into());
            Ok(())
        }
        (Scalar::SchemaOrBool, value) => {
            wire::number(out, 1, 1);
            one(schema, 2, value, out)
        }
        (Scalar::SchemaOrArray, Value::Array(items)) => items.iter().try_for_each(|item| one(schema, 2, item, out)),
        (_, Value::Array(items)) => items.iter().try_for_each(|item| {
            wire::bytes(out, 2, text(item)?.as_bytes());
            Ok(())
        }),
        (_, value) => one(schema, 1, value, out),
    }
}

fn text(value: &Value) -> Result<&str, ProtobufError> {
    match value {
        Value::Null => Ok(""),
        Value::String(text) => Ok(text),
        _ => Err(unfit("must be a string")),
    }
}

fn integer(value: &Value) -> Result<u64, ProtobufError> {
    match value {
        Value::Null => Ok(0),
        Value::Number(n) => {
            n.as_i64().map(|n| n as u64).or_else(|| n.as_u64()).ok_or_else(|| unfit("must be an integer"))
        }
        _ => Err(unfit("must be an integer")),
    }
}

fn float(value: &Value) -> Result<f64, ProtobufError> {
    match value {
        Value::Null => Ok(0.0),
        value => value.as_f64().ok_or_else(|| unfit("must be a number")),
    }
}
