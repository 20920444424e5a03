//! Messages → trees.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Number, Value};

use super::ProtobufError;
use super::wire::{Reader, WireValue};
use crate::schema::{Field, JSON_SCHEMA_PROPS, Presence, Scalar, Shape, Struct, View, is_zero};
use crate::time;

/// Levels of nesting; as many as JSON bodies may have.
const MAX_DEPTH: usize = 128;

/// Go's zero time, in seconds of Unix time.
const ZERO_TIME: i64 = -62_135_596_800;

/// Reads a message. Zero values that Go's JSON would leave out are left out.
pub fn read_message(view: View<'_>, bytes: &[u8]) -> Result<Value, ProtobufError> {
    message(view, bytes, 0)
}

fn message(view: View<'_>, bytes: &[u8], depth: usize) -> Result<Value, ProtobufError> {
    let mut map = Map::new();
    whole(view, bytes, &mut map, depth)?;
    Ok(Value::Object(map))
}

fn whole(view: View<'_>, bytes: &[u8], into: &mut Map<String, Value>, depth: usize) -> Result<(), ProtobufError> {
    let Shape::Struct(s) = view.shape() else { return Err(ProtobufError::Malformed("not a message")) };
    fields(view, s, &s.wire_order, 0, bytes, into, depth)
}

/// Reads fields that share their first `level` tags: a whole struct's, or those of a message inlined in it.
fn fields(
    view: View<'_>,
    s: &Struct,
    order: &[u16],
    level: usize,
    bytes: &[u8],
    into: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    if depth > MAX_DEPTH {
        return Err(ProtobufError::Malformed("message nested too deeply"));
    }
    let field = |at: &u16| &s.fields[usize::from(*at)];
    let tag_of = |at: &u16| field(at).inlined_in.get(level).copied().unwrap_or(field(at).tag);
    let mut reader = Reader::new(bytes);
    // Fields come in the order of their tags, so the next one is most often right behind the last.
    let mut next = 0;
    while let Some((tag, wire)) = reader.field()? {
        let known = |at: usize| order.get(at).is_some_and(|f| tag_of(f) == tag);
        let first = match () {
            () if known(next) => next,
            () if known(next + 1) => next + 1,
            () => order.partition_point(|f| tag_of(f) < tag),
        };
        let Some(found) = order.get(first).filter(|f| tag_of(f) == tag) else { continue };
        next = first;
        if field(found).inlined_in.len() <= level {
            member(view, field(found), wire, into, depth)?;
        } else {
            let start = order.partition_point(|f| tag_of(f) < tag);
            let end = order.partition_point(|f| tag_of(f) <= tag);
            fields(view, s, &order[start..end], level + 1, wire.bytes()?, into, depth + 1)?;
        }
    }
    Ok(())
}

/// The place of a list or map that is read in parts.
fn slot<'m>(map: &'m mut Map<String, Value>, name: &str, empty: fn() -> Value) -> &'m mut Value {
    if !map.contains_key(name) {
        map.insert(name.to_string(), empty());
    }
    &mut map[name]
}

fn member(
    view: View<'_>,
    field: &Field,
    wire: WireValue<'_>,
    map: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    let inner = view.of(field);
    match inner.shape() {
        Shape::List { .. } if !inner.node().wrapped => {
            let item = inner.item().ok_or(ProtobufError::Malformed("list without item"))?;
            let Value::Array(items) = slot(map, &field.name, || Value::Array(Vec::new())) else { return Ok(()) };
            match (wire, item.shape()) {
                // Numbers may come packed.
                (WireValue::Bytes(packed), Shape::Scalar(scalar)) if is_number(*scalar) => {
                    let mut reader = Reader::new(packed);
                    while !reader.is_empty() {
                        let wire = match scalar {
                            Scalar::Float64 => WireValue::Fixed64(array(reader.take(8)?)?),
                            Scalar::Float32 => WireValue::Fixed32(array(reader.take(4)?)?),
                            _ => WireValue::Varint(reader.varint()?),
                        };
                        items.extend(one(item, wire, depth)?);
                    }
                }
                _ => items.push(one(item, wire, depth)?.unwrap_or(Value::Null)),
            }
        }
        Shape::Map { .. } => {
            let value = inner.child("").ok_or(ProtobufError::Malformed("map without value"))?;
            let Value::Object(entries) = slot(map, &field.name, || Value::Object(Map::new())) else { return Ok(()) };
            let (mut key, mut content) = ("", None);
            let mut reader = Reader::new(wire.bytes()?);
            while let Some((tag, wire)) = reader.field()? {
                match tag {
                    1 => key = wire.text()?,
                    2 => content = one(value, wire, depth)?,
                    _ => {}
                }
            }
            entries.insert(key.to_string(), content.unwrap_or_else(|| empty(value)));
        }
        Shape::Struct(_) if map.contains_key(&*field.name) => {
            // A message in two parts is merged.
            if let Some(Value::Object(before)) = map.get_mut(&*field.name) {
                whole(inner, wire.bytes()?, before, depth + 1)?;
            }
        }
        _ => match one(inner, wire, depth)? {
            Some(value) if field.presence == Presence::NonZero && !value.is_object() && is_zero(&value) => {
                map.remove(&*field.name);
            }
            Some(value) => drop(map.insert(field.name.to_string(), value)),
            None => {}
        },
    }
    Ok(())
}

fn empty(view: View<'_>) -> Value {
    match view.shape() {
        Shape::Struct(_) | Shape::Map { .. } => Value::Object(Map::new()),
        Shape::List { .. } => Value::Array(Vec::new()),
        Shape::Scalar(Scalar::Quantity) => "0".into(),
        Shape::Scalar(scalar) if is_number(*scalar) => 0.into(),
        Shape::Scalar(Scalar::String | Scalar::Bytes) => "".into(),
        Shape::Scalar(_) => Value::Null,
    }
}

fn is_number(scalar: Scalar) -> bool {
    use Scalar::{Boolean, Float32, Float64, Int32, Int64, Uint32, Uint64};
    matches!(scalar, Boolean | Float32 | Float64 | Int32 | Int64 | Uint32 | Uint64)
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], ProtobufError> {
    bytes.try_into().map_err(|_| ProtobufError::Truncated)
}

/// One value; `None` for what JSON has only null for (zero times, empty raw JSON).
fn one(view: View<'_>, wire: WireValue<'_>, depth: usize) -> Result<Option<Value>, ProtobufError> {
    let scalar = match view.shape() {
        Shape::Struct(_) => return message(view, wire.bytes()?, depth + 1).map(Some),
        Shape::List { .. } => {
            let item = view.item().ok_or(ProtobufError::Malformed("list without item"))?;
            let mut items = Vec::new();
            let mut reader = Reader::new(wire.bytes()?);
            while let Some((tag, wire)) = reader.field()? {
                if tag == 1 {
                    items.extend(one(item, wire, depth + 1)?);
                }
            }
            return Ok(Some(Value::Array(items)));
        }
        Shape::Map { .. } => return Err(ProtobufError::Malformed("map in a place of its own")),
        Shape::Scalar(scalar) => *scalar,
    };
    Ok(Some(match scalar {
        Scalar::String => wire.text()?.into(),
        Scalar::Boolean => (wire.varint()? != 0).into(),
        Scalar::Int32 => (wire.varint()? as i32).into(),
        Scalar::Int64 => (wire.varint()? as i64).into(),
        Scalar::Uint32 => (wire.varint()? as u32).into(),
        Scalar::Uint64 => wire.varint()?.into(),
        Scalar::Float64 => match wire {
            WireValue::Fixed64(bytes) => float(f64::from_le_bytes(bytes)),
            _ => return Err(ProtobufError::Malformed("wrong wireType")),
        },
        Scalar::Float32 => match wire {
            WireValue::Fixed32(bytes) => float(f32::from_le_bytes(bytes).into()),
            _ => return Err(ProtobufError::Malformed("wrong wireType")),
        },
        Scalar::Bytes => STANDARD.encode(wire.bytes()?).into(),
        Scalar::Time | Scalar::MicroTime => return timestamp(wire.bytes()?, scalar == Scalar::MicroTime),
        Scalar::Duration => {
            let nanos = only(wire.bytes()?, 1)?.map_or(Ok(0), WireValue::varint)?;
            time::format_duration(nanos as i64).into()
        }
        Scalar::Quantity => match only(wire.bytes()?, 1)? {
            Some(text) => text.text()?.into(),
            None => "0".into(),
        },
        Scalar::IntOrString => {
            let bytes = wire.bytes()?;
            if only(bytes, 1)?.map_or(Ok(0), WireValue::varint)? == 0 {
                (only(bytes, 2)?.map_or(Ok(0), WireValue::varint)? as i32).into()
            } else {
                only(bytes, 3)?.map_or(Ok(""), WireValue::text)?.into()
            }
        }
        Scalar::Any | Scalar::FieldsV1 => match only(wire.bytes()?, 1)?.map_or(Ok(&b""[..]), WireValue::bytes)? {
            [] => return Ok(None),
            raw => serde_json::from_slice(raw).map_err(|_| ProtobufError::Malformed("raw value is no JSON"))?,
        },
        Scalar::SchemaOrBool | Scalar::SchemaOrArray | Scalar::SchemaOrStrings => {
            return schema_or(view, scalar, wire.bytes()?, depth);
        }
    }))
}

fn float(value: f64) -> Value {
    // Whole floats are written without a fraction, as Go writes them.
    if value.fract() == 0.0 && value.abs() < 9.0e15 {
        return (value as i64).into();
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// The last field of a number in a message.
fn only(bytes: &[u8], wanted: u32) -> Result<Option<WireValue<'_>>, ProtobufError> {
    let mut reader = Reader::new(bytes);
    let mut found = None;
    while let Some((tag, wire)) = reader.field()? {
        if tag == wanted {
            found = Some(wire);
        }
    }
    Ok(found)
}

fn timestamp(bytes: &[u8], micro: bool) -> Result<Option<Value>, ProtobufError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let seconds = only(bytes, 1)?.map_or(Ok(0), WireValue::varint)? as i64;
    let nanos = only(bytes, 2)?.map_or(Ok(0), WireValue::varint)? as i32;
    if seconds == ZERO_TIME && nanos == 0 {
        return Ok(None);
    }
    let at = Timestamp::new(seconds, nanos).map_err(|_| ProtobufError::Malformed("time out of range"))?;
    Ok(Some(if micro { time::micro_time(at) } else { time::seconds(at) }.into()))
}

fn schema_or(view: View<'_>, scalar: Scalar, bytes: &[u8], depth: usize) -> Result<Option<Value>, ProtobufError> {
    let schema = view.types.named(JSON_SCHEMA_PROPS).ok_or(ProtobufError::Malformed("no JSONSchemaProps"))?;
    let (own, others) = if scalar == Scalar::SchemaOrBool { (2, 1) } else { (1, 2) };
    let (mut one_schema, mut allows, mut items) = (None, false, Vec::new());
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.field()? {
        if tag == own {
            one_schema = one(schema, wire, depth + 1)?;
        } else if tag == others {
            match scalar {
                Scalar::SchemaOrBool => allows = wire.varint()? != 0,
                Scalar::SchemaOrArray => items.extend(one(schema, wire, depth + 1)?),
                _ => items.push(wire.text()?.into()),
            }
        }
    }
    Ok(match (one_schema, scalar) {
        (Some(schema), _) if items.is_empty() => Some(schema),
        (_, Scalar::SchemaOrBool) => Some(allows.into()),
        _ if items.is_empty() => None,
        _ => Some(Value::Array(items)),
    })
}
