//! Values at run time.
//!
//! JSON is seen in place, through its declared shape; nothing is copied until a function makes something new.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value as Json};

use crate::decl::{Decl, Fields, ListKind, Shape};
use crate::eval::Error;
use crate::functions::opaque::Opaque;
use crate::types::{OPTIONAL, Type};

/// Items a list may come to hold: concatenation is cheap by cost, but not by memory.
pub const MAX_ITEMS: usize = 1_000_000;
/// Bytes a text may come to hold.
pub const MAX_TEXT: usize = 16 << 20;

/// A string, borrowed from the data or made.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    Of(&'a str),
    Made(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Text::Of(text) => text,
            Text::Made(text) => text,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    /// Nanoseconds.
    Duration(i64),
    Timestamp(Timestamp),
    List(List<'a>),
    Map(Mapping<'a>),
    Object(Object<'a>),
    Type(Arc<str>),
    Optional(Option<Rc<Value<'a>>>),
    Opaque(Opaque<'a>),
}

#[derive(Clone, Debug)]
pub enum List<'a> {
    Json(&'a [Json], Option<&'a Decl>),
    Made(Rc<Vec<Value<'a>>>),
}

#[derive(Clone, Debug)]
pub enum Mapping<'a> {
    Json(&'a Map<String, Json>, Option<&'a Decl>),
    Made(Rc<BTreeMap<Key, (Value<'a>, Value<'a>)>>),
    /// Of maps: one that is asked for and not there is empty.
    Open(Rc<BTreeMap<Key, (Value<'a>, Value<'a>)>>),
}

#[derive(Clone)]
pub enum Object<'a> {
    Json(&'a Map<String, Json>, &'a Fields),
    Made(Arc<str>, Rc<BTreeMap<Arc<str>, Value<'a>>>),
    /// Fields that were worked out before, well or not.
    Worked(Arc<str>, Rc<BTreeMap<Arc<str>, Result<Value<'a>, Error>>>),
}

impl fmt::Debug for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object {}", self.name())
    }
}

/// A map's key; whole numbers are equal whatever their type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    Number(i128),
    String(Arc<str>),
}

impl<'a> Value<'a> {
    pub fn text(text: impl Into<Arc<str>>) -> Self {
        Value::String(Text::Made(text.into()))
    }

    pub fn list(items: Vec<Value<'a>>) -> Self {
        Value::List(List::Made(Rc::new(items)))
    }

    /// A map without entries.
    fn nothing() -> Self {
        Value::Map(Mapping::Made(Rc::default()))
    }

    pub fn some(value: Value<'a>) -> Self {
        Value::Optional(Some(Rc::new(value)))
    }

    /// JSON without a declared shape.
    pub fn json(json: &'a Json) -> Self {
        match json {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(i), _) => Value::Int(i),
                (_, Some(u)) => Value::Uint(u),
                _ => Value::Double(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::String(Text::Of(text)),
            Json::Array(items) => Value::List(List::Json(items, None)),
            Json::Object(map) => Value::Map(Mapping::Json(map, None)),
        }
    }

    /// JSON as its declared shape shows it. What does not fit the shape is an error, as upstream has it.
    pub fn of(json: &'a Json, decl: &'a Decl) -> Result<Self, Error> {
        let wrong = |what: &str| Err(Error::Eval(format!("invalid data, expected {what}")));
        Ok(match (&decl.shape, json) {
            (_, Json::Null) => Value::Null,
            (Shape::Dyn, _) => Value::json(json),
            (Shape::Bool, Json::Bool(b)) => Value::Bool(*b),
            (Shape::Int, Json::Number(n)) => match n.as_i64() {
                Some(i) => Value::Int(i),
                None => match n.as_f64() {
                    Some(f) if f.fract() == 0.0 && f.abs() < 9.2e18 => Value::Int(f as i64),
                    _ => return wrong("int"),
                },
            },
            (Shape::Double, Json::Number(n)) => Value::Double(n.as_f64().unwrap_or(f64::NAN)),
            (Shape::String, Json::String(text)) => Value::String(Text::Of(text)),
            (Shape::Bytes, Json::String(text)) => match crate::functions::time::base64(text) {
                Some(bytes) => Value::Bytes(bytes.into()),
                None => return wrong("byte"),
            },
            (Shape::Duration, Json::String(text)) => match meta::time::parse_duration(text) {
                Some(nanos) => Value::Duration(nanos),
                None => return wrong("duration"),
            },
            (Shape::Timestamp, Json::String(text)) => {
                let date = format!("{text}T00:00:00Z");
                match meta::time::parse(text).or_else(|| meta::time::parse(&date)) {
                    Some(time) => Value::Timestamp(time),
                    None => return wrong("date-time"),
                }
            }
            (Shape::List { .. }, Json::Array(items)) => Value::List(List::Json(items, Some(decl))),
            (Shape::Map { .. }, Json::Object(map)) => Value::Map(Mapping::Json(map, Some(decl))),
            (Shape::Object(fields), Json::Object(map)) => Value::Object(Object::Json(map, fields)),
            _ => return wrong(&decl.ty().name()),
        })
    }

    /// The name of the value's type.
    pub fn type_name(&self) -> Arc<str> {
        match self {
            Value::Null => "null_type".into(),
            Value::Bool(_) => "bool".into(),
            Value::Int(_) => "int".into(),
            Value::Uint(_) => "uint".into(),
            Value::Double(_) => "double".into(),
            Value::String(_) => "string".into(),
            Value::Bytes(_) => "bytes".into(),
            Value::Duration(_) => "google.protobuf.Duration".into(),
            Value::Timestamp(_) => "google.protobuf.Timestamp".into(),
            Value::List(_) => "list".into(),
            Value::Map(_) => "map".into(),
            Value::Object(object) => object.name().into(),
            Value::Type(_) => "type".into(),
            Value::Optional(_) => OPTIONAL.into(),
            Value::Opaque(opaque) => opaque.type_name().into(),
        }
    }

    /// Whether the value may be an argument where a signature says `ty`.
    pub fn fits(&self, ty: &Type) -> bool {
        match (ty, self) {
            (Type::Dyn | Type::Error | Type::Param(_), _)
            | (Type::Null, Value::Null)
            | (Type::Bool, Value::Bool(_))
            | (Type::Int, Value::Int(_))
            | (Type::Uint, Value::Uint(_))
            | (Type::Double, Value::Double(_))
            | (Type::String, Value::String(_))
            | (Type::Bytes, Value::Bytes(_))
            | (Type::Duration, Value::Duration(_))
            | (Type::Timestamp, Value::Timestamp(_))
            | (Type::Map(_), Value::Map(_))
            | (Type::Kind(_), Value::Type(_)) => true,
            (Type::List(item), Value::List(list)) => {
                // The first item tells lists of one signature from those of another.
                list.len() == 0 || list.get(0).is_none_or(|first| first.is_ok_and(|first| first.fits(item)))
            }
            (Type::Opaque(name, _), Value::Optional(_)) => &**name == OPTIONAL,
            (Type::Opaque(name, _), Value::Opaque(opaque)) => **name == *opaque.type_name(),
            (Type::Struct(name), Value::Object(object)) => **name == *object.name(),
            _ => false,
        }
    }

    /// Characters, bytes, items, entries; 1 for all else.
    pub fn size(&self) -> u64 {
        match self {
            Value::String(text) => text.chars().count() as u64,
            Value::Bytes(bytes) => bytes.len() as u64,
            Value::List(list) => list.len() as u64,
            Value::Map(map) => map.len() as u64,
            Value::Optional(Some(inner)) => inner.size(),
            Value::Opaque(opaque) => opaque.size(),
            _ => 1,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn key(&self) -> Option<Key> {
        Some(match self {
            Value::Bool(b) => Key::Bool(*b),
            Value::Int(i) => Key::Number(i128::from(*i)),
            Value::Uint(u) => Key::Number(i128::from(*u)),
            Value::Double(d) if d.fract() == 0.0 && d.abs() < 1e19 => Key::Number(*d as i128),
            Value::String(text) => Key::String((&**text).into()),
            _ => return None,
        })
    }

    pub fn equals(&self, other: &Value<'_>) -> Result<bool, Error> {
        use Value as V;
        Ok(match (self, other) {
            (V::Null, V::Null) => true,
            (V::Bool(a), V::Bool(b)) => a == b,
            (V::String(a), V::String(b)) => **a == **b,
            (V::Bytes(a), V::Bytes(b)) => a == b,
            (V::Duration(a), V::Duration(b)) => a == b,
            (V::Timestamp(a), V::Timestamp(b)) => a == b,
            (V::Type(a), V::Type(b)) => a == b,
            (V::Optional(a), V::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b)?,
                (a, b) => a.is_none() && b.is_none(),
            },
            (V::List(a), V::List(b)) => a.equals(b)?,
            (V::Map(a), V::Map(b)) => a.equals(b)?,
            (V::Object(a), V::Object(b)) => a.equals(b)?,
            // A struct of one program may meet the plain map of a dynamic one.
            (V::Opaque(a), V::Opaque(b)) => a.equals(b),
            (a, b) => a.compare_numbers(b) == Some(std::cmp::Ordering::Equal),
        })
    }

    /// Order among numbers of any type.
    pub fn compare_numbers(&self, other: &Value<'_>) -> Option<std::cmp::Ordering> {
        use Value as V;
        let whole = |v: &Value<'_>| match v {
            V::Int(i) => Some(i128::from(*i)),
            V::Uint(u) => Some(i128::from(*u)),
            _ => None,
        };
        match (self, other) {
            (V::Double(a), V::Double(b)) => a.partial_cmp(b),
            (V::Double(a), b) => compare_mixed(*a, whole(b)?),
            (a, V::Double(b)) => compare_mixed(*b, whole(a)?).map(std::cmp::Ordering::reverse),
            (a, b) => Some(whole(a)?.cmp(&whole(b)?)),
        }
    }

    /// As JSON: what a mutation made. Not every value is one.
    pub fn to_json(&self) -> Result<Json, Error> {
        let not = |what: &str| Error::Eval(format!("unsupported conversion of {what} to JSON"));
        Ok(match self {
            Value::Null => Json::Null,
            Value::Bool(b) => (*b).into(),
            Value::Int(i) => (*i).into(),
            Value::Uint(u) => (*u).into(),
            Value::Double(d) => serde_json::Number::from_f64(*d).map_or(Json::Null, Json::Number),
            Value::String(text) => (&**text).into(),
            Value::Bytes(bytes) => crate::functions::time::to_base64(bytes).into(),
            Value::Duration(nanos) => crate::functions::time::duration_text(*nanos).into(),
            Value::Timestamp(time) => crate::functions::time::timestamp_text(*time).into(),
            Value::List(list) => (0..list.len())
                .filter_map(|i| list.get(i))
                .map(|item| item?.to_json())
                .collect::<Result<Vec<_>, _>>()?
                .into(),
            Value::Map(map) => {
                let mut out = Map::new();
                for pair in map.entries() {
                    let (key, value) = pair?;
                    let key = key.as_str().map(str::to_string).ok_or_else(|| not("a map whose keys are no strings"))?;
                    out.insert(key, value.to_json()?);
                }
                Json::Object(out)
            }
            Value::Object(Object::Json(map, _)) => Json::Object((*map).clone()),
            Value::Object(Object::Made(_, fields)) => {
                let mut out = Map::new();
                for (name, value) in fields.iter() {
                    out.insert(name.to_string(), value.to_json()?);
                }
                Json::Object(out)
            }
            Value::Opaque(opaque) => opaque.to_string().into(),
            other => return Err(not(&other.type_name())),
        })
    }
}

fn compare_mixed(double: f64, whole: i128) -> Option<std::cmp::Ordering> {
    if double.is_nan() {
        return None;
    }
    if double.abs() >= 1e30 {
        return Some(if double > 0.0 { std::cmp::Ordering::Greater } else { std::cmp::Ordering::Less });
    }
    let floor = double.floor();
    match (floor as i128).cmp(&whole) {
        std::cmp::Ordering::Equal if double > floor => Some(std::cmp::Ordering::Greater),
        order => Some(order),
    }
}

impl<'a> List<'a> {
    pub(crate) fn len(&self) -> usize {
        match self {
            List::Json(items, _) => items.len(),
            List::Made(items) => items.len(),
        }
    }

    fn kind(&self) -> &ListKind {
        match self {
            List::Json(_, Some(Decl { shape: Shape::List { kind, .. }, .. })) => kind,
            _ => &ListKind::Atomic,
        }
    }

    pub fn get(&self, at: usize) -> Option<Result<Value<'a>, Error>> {
        match self {
            List::Json(items, Some(Decl { shape: Shape::List { item, .. }, .. })) => {
                items.get(at).map(|json| Value::of(json, item))
            }
            List::Json(items, _) => items.get(at).map(|json| Ok(Value::json(json))),
            List::Made(items) => items.get(at).cloned().map(Ok),
        }
    }

    pub fn items(&self) -> Result<Vec<Value<'a>>, Error> {
        (0..self.len()).filter_map(|i| self.get(i)).collect()
    }

    pub fn contains(&self, value: &Value<'_>) -> Result<bool, Error> {
        for at in 0..self.len() {
            if let Some(item) = self.get(at)
                && item?.equals(value)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sets are equal in any order, and so are lists of entries by key.
    fn equals(&self, other: &List<'_>) -> Result<bool, Error> {
        if self.len() != other.len() {
            return Ok(false);
        }
        let unordered = *self.kind() != ListKind::Atomic;
        for at in 0..self.len() {
            let (Some(a), Some(b)) = (self.get(at), other.get(at)) else { return Ok(false) };
            let a = a?;
            if !(a.equals(&b?)? || unordered && other.contains(&a)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One after the other; sets and lists of entries by key are merged.
    pub fn plus(&self, other: &List<'a>) -> Result<Value<'a>, Error> {
        let mut items = self.items()?;
        if items.len() + other.len() > MAX_ITEMS {
            return Err(Error::Eval(format!("a list of more than {MAX_ITEMS} items")));
        }
        match self.kind() {
            ListKind::Atomic => items.extend(other.items()?),
            ListKind::Set => {
                for item in other.items()? {
                    if !self.contains(&item)? {
                        items.push(item);
                    }
                }
            }
            ListKind::Map(keys) => {
                for item in other.items()? {
                    let mut same = None;
                    for (at, old) in items.iter().enumerate() {
                        if same_keys(keys, old, &item)? {
                            same = Some(at);
                        }
                    }
                    match same {
                        Some(at) => items[at] = item,
                        None => items.push(item),
                    }
                }
            }
        }
        Ok(Value::list(items))
    }
}

fn same_keys(keys: &[String], a: &Value<'_>, b: &Value<'_>) -> Result<bool, Error> {
    let field = |value: &Value<'_>, key: &str| match value {
        Value::Object(Object::Json(map, _)) => map.get(key).cloned(),
        _ => None,
    };
    Ok(keys.iter().all(|key| field(a, key) == field(b, key)))
}

impl<'a> Mapping<'a> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Mapping::Json(map, _) => map.len(),
            Mapping::Made(map) | Mapping::Open(map) => map.len(),
        }
    }

    fn at(&self, json: &'a Json) -> Result<Value<'a>, Error> {
        match self {
            Mapping::Json(_, Some(Decl { shape: Shape::Map { value }, .. })) => Value::of(json, value),
            _ => Ok(Value::json(json)),
        }
    }

    pub fn get_text(&self, key: &str) -> Option<Result<Value<'a>, Error>> {
        match self {
            Mapping::Json(map, _) => map.get(key).map(|json| self.at(json)),
            Mapping::Made(map) => map.get(&Key::String(key.into())).map(|(_, v)| Ok(v.clone())),
            Mapping::Open(map) => {
                Some(Ok(map.get(&Key::String(key.into())).map_or_else(Value::nothing, |e| e.1.clone())))
            }
        }
    }

    pub fn get(&self, key: &Value<'_>) -> Option<Result<Value<'a>, Error>> {
        match (self, key) {
            (_, Value::String(text)) => self.get_text(text),
            (Mapping::Json(..), _) => None,
            (Mapping::Made(map) | Mapping::Open(map), key) => map.get(&key.key()?).map(|(_, v)| Ok(v.clone())),
        }
    }

    /// Whether the key is really there.
    pub fn has(&self, key: &Value<'_>) -> bool {
        match self {
            Mapping::Open(map) => key.key().is_some_and(|k| map.contains_key(&k)),
            _ => self.get(key).is_some(),
        }
    }

    /// Keys and values in the order of keys.
    pub fn entries(&self) -> Vec<Result<(Value<'a>, Value<'a>), Error>> {
        match self {
            Mapping::Json(map, _) => map.iter().map(|(k, v)| Ok((Value::String(Text::Of(k)), self.at(v)?))).collect(),
            Mapping::Made(map) | Mapping::Open(map) => map.values().cloned().map(Ok).collect(),
        }
    }

    fn equals(&self, other: &Mapping<'_>) -> Result<bool, Error> {
        if self.len() != other.len() {
            return Ok(false);
        }
        for pair in self.entries() {
            let (key, value) = pair?;
            let Some(found) = other.get(&key) else { return Ok(false) };
            if !value.equals(&found?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl<'a> Object<'a> {
    pub fn name(&self) -> &str {
        match self {
            Object::Json(_, fields) => &fields.name,
            Object::Made(name, _) | Object::Worked(name, _) => name,
        }
    }

    pub fn field(&self, name: &str) -> Option<Result<Value<'a>, Error>> {
        match self {
            Object::Json(map, fields) => {
                let (property, decl) = fields.escaped.get(name)?;
                map.get(&**property).map(|json| Value::of(json, decl))
            }
            Object::Made(_, fields) => fields.get(name).cloned().map(Ok),
            Object::Worked(_, fields) => fields.get(name).cloned(),
        }
    }

    fn equals(&self, other: &Object<'_>) -> Result<bool, Error> {
        match (self, other) {
            (Object::Json(a, fields), Object::Json(b, _)) => {
                for (property, decl) in fields.escaped.values() {
                    match (a.get(&**property), b.get(&**property)) {
                        (Some(a), Some(b)) if !Value::of(a, decl)?.equals(&Value::of(b, decl)?)? => return Ok(false),
                        (Some(_), Some(_)) | (None, None) => {}
                        _ => return Ok(false),
                    }
                }
                Ok(true)
            }
            (Object::Made(a_name, a), Object::Made(b_name, b)) => {
                if a_name != b_name || a.len() != b.len() {
                    return Ok(false);
                }
                for (name, value) in a.iter() {
                    match b.get(name) {
                        Some(other) if value.equals(other)? => {}
                        _ => return Ok(false),
                    }
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}
