//! Values that may be absent.

use std::rc::Rc;

use super::{Row, bool, list, no_overload};
use crate::eval::{Error, fail};
use crate::value::Value;

fn is_zero(value: &Value<'_>) -> bool {
    match value {
        Value::Null
        | Value::Bool(false)
        | Value::Int(0)
        | Value::Uint(0)
        | Value::Duration(0)
        | Value::Optional(None) => true,
        Value::Double(d) => *d == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::List(list) => list.len() == 0,
        Value::Map(map) => map.len() == 0,
        _ => false,
    }
}

fn unwrap<'a>(args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let mut out = Vec::new();
    for item in list(args, 0)?.items()? {
        match item {
            Value::Optional(Some(value)) => out.push((*value).clone()),
            Value::Optional(None) => {}
            _ => return no_overload(),
        }
    }
    Ok(Value::list(out))
}

pub const ROWS: &[Row] = &[
    Row("optional.of", "optional_of", "(V) optional(V)", |a| Ok(Value::some(a[0].clone()))),
    Row("optional.ofNonZeroValue", "optional_ofNonZeroValue", "(V) optional(V)", |a| {
        Ok(Value::Optional((!is_zero(&a[0])).then(|| Rc::new(a[0].clone()))))
    }),
    Row("optional.none", "optional_none", "() optional(V)", |_| Ok(Value::Optional(None))),
    Row("optional.unwrap", "optional_unwrap", "(list(optional(V))) list(V)", unwrap),
    Row("unwrapOpt", "optional_unwrapOpt", "list(optional(V)).() list(V)", unwrap),
    Row("value", "optional_value", "optional(V).() V", |a| match &a[0] {
        Value::Optional(Some(value)) => Ok((**value).clone()),
        _ => fail("optional.none() dereference"),
    }),
    Row("hasValue", "optional_hasValue", "optional(V).() bool", |a| bool(matches!(a[0], Value::Optional(Some(_))))),
    Row("or", "optional_or_optional", "optional(V).(optional(V)) optional(V)", |a| match &a[0] {
        Value::Optional(Some(_)) => Ok(a[0].clone()),
        _ => Ok(a[1].clone()),
    }),
    Row("orValue", "optional_orValue_value", "optional(V).(V) V", |a| match &a[0] {
        Value::Optional(Some(value)) => Ok((**value).clone()),
        _ => Ok(a[1].clone()),
    }),
];
