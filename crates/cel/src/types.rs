//! Types of CEL, and who knows the fields of structs.

use std::fmt;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    Dyn,
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Arc<Type>),
    Map(Arc<(Type, Type)>),
    /// An object with named fields, which a [`Provider`] knows.
    Struct(Arc<str>),
    /// Values only functions look into: `net.IP`, `optional_type(int)`.
    Opaque(Arc<str>, Arc<[Type]>),
    /// The type of a type.
    Kind(Arc<Type>),
    /// Stands for any type, the same at each place in one signature.
    Param(Arc<str>),
}

pub const OPTIONAL: &str = "optional_type";

impl Type {
    pub fn list(item: Type) -> Self {
        Type::List(Arc::new(item))
    }

    pub fn map(key: Type, value: Type) -> Self {
        Type::Map(Arc::new((key, value)))
    }

    pub fn optional(of: Type) -> Self {
        Type::Opaque(OPTIONAL.into(), Arc::new([of]))
    }

    pub fn opaque(name: &str) -> Self {
        Type::Opaque(name.into(), Arc::new([]))
    }

    pub fn kind(of: Type) -> Self {
        Type::Kind(Arc::new(of))
    }

    pub fn as_optional(&self) -> Option<&Type> {
        match self {
            Type::Opaque(name, of) if &**name == OPTIONAL => of.first(),
            _ => None,
        }
    }

    pub fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn | Type::Error)
    }

    /// The type a signature's word names. Signatures are constants of this crate.
    pub fn parse(text: &str) -> Type {
        let text = text.trim();
        let Some((head, rest)) = text.split_once('(') else {
            return match text {
                "dyn" => Type::Dyn,
                "null" => Type::Null,
                "bool" => Type::Bool,
                "int" => Type::Int,
                "uint" => Type::Uint,
                "double" => Type::Double,
                "string" => Type::String,
                "bytes" => Type::Bytes,
                "duration" => Type::Duration,
                "timestamp" => Type::Timestamp,
                other if other.len() == 1 => Type::Param(other.into()),
                other => Type::opaque(other),
            };
        };
        let mut args = arguments(rest.strip_suffix(')').unwrap_or(rest)).into_iter().map(|a| Type::parse(&a));
        let mut next = || args.next().unwrap_or(Type::Dyn);
        match head {
            "list" => Type::list(next()),
            "map" => Type::map(next(), next()),
            "optional" => Type::optional(next()),
            _ => Type::kind(next()),
        }
    }

    /// The name `type(x)` compares by: parameters do not count.
    pub fn name(&self) -> String {
        match self {
            Type::List(_) => "list".into(),
            Type::Map(_) => "map".into(),
            Type::Null => "null_type".into(),
            Type::Duration => "google.protobuf.Duration".into(),
            Type::Timestamp => "google.protobuf.Timestamp".into(),
            Type::Opaque(name, _) | Type::Struct(name) => name.to_string(),
            Type::Kind(_) => "type".into(),
            other => other.to_string(),
        }
    }

    /// As a program's result is named: with the full names of well-known types.
    pub fn full(&self) -> String {
        match self {
            Type::Null | Type::Duration | Type::Timestamp => self.name(),
            Type::List(of) => format!("list({})", of.full()),
            Type::Map(of) => format!("map({}, {})", of.0.full(), of.1.full()),
            Type::Opaque(name, of) if !of.is_empty() => {
                format!("{name}({})", of.iter().map(Type::full).collect::<Vec<_>>().join(", "))
            }
            other => other.to_string(),
        }
    }
}

/// Splits at commas outside brackets.
pub fn arguments(text: &str) -> Vec<String> {
    let (mut out, mut depth, mut current) = (Vec::new(), 0, String::new());
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                out.push(std::mem::take(&mut current).trim().to_string());
                continue;
            }
            _ => {}
        }
        current.push(c);
    }
    if !current.trim().is_empty() {
        out.push(current.trim().to_string());
    }
    out
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Dyn => f.write_str("dyn"),
            Type::Error => f.write_str("!error!"),
            Type::Null => f.write_str("null"),
            Type::Bool => f.write_str("bool"),
            Type::Int => f.write_str("int"),
            Type::Uint => f.write_str("uint"),
            Type::Double => f.write_str("double"),
            Type::String => f.write_str("string"),
            Type::Bytes => f.write_str("bytes"),
            Type::Duration => f.write_str("duration"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::List(of) => write!(f, "list({of})"),
            Type::Map(of) => write!(f, "map({}, {})", of.0, of.1),
            Type::Struct(name) | Type::Param(name) => f.write_str(name),
            Type::Kind(of) => write!(f, "type({of})"),
            Type::Opaque(name, of) if of.is_empty() => f.write_str(name),
            Type::Opaque(name, of) => {
                let of: Vec<String> = of.iter().map(ToString::to_string).collect();
                write!(f, "{name}({})", of.join(", "))
            }
        }
    }
}

/// Who knows structs by name.
pub trait Provider {
    /// A field's type; `None` when the struct has no such field.
    fn field(&self, name: &str, field: &str) -> Option<Type>;

    /// Whether expressions may make values of the struct (`Object{}`), and its full name.
    fn constructible(&self, _name: &str) -> bool {
        false
    }
}

/// Knows no structs.
pub struct NoStructs;

impl Provider for NoStructs {
    fn field(&self, _name: &str, _field: &str) -> Option<Type> {
        None
    }
}
