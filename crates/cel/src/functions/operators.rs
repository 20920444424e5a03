//! Operators, sizes and conversions.

use std::cmp::Ordering;

use super::{Row, by_evaluator, int, list, made, map, no_overload, text, time};
use crate::eval::{Error, fail};
use crate::value::Value;

type Outcome<'a> = Result<Value<'a>, Error>;

/// Order of values that have one.
pub fn compare(a: &Value<'_>, b: &Value<'_>) -> Result<Option<Ordering>, Error> {
    use Value as V;
    Ok(match (a, b) {
        (V::Bool(a), V::Bool(b)) => Some(a.cmp(b)),
        (V::String(a), V::String(b)) => Some((**a).cmp(&**b)),
        (V::Bytes(a), V::Bytes(b)) => Some(a.cmp(b)),
        (V::Duration(a), V::Duration(b)) => Some(a.cmp(b)),
        (V::Timestamp(a), V::Timestamp(b)) => Some(a.cmp(b)),
        (V::Int(_) | V::Uint(_) | V::Double(_), V::Int(_) | V::Uint(_) | V::Double(_)) => a.compare_numbers(b),
        _ => return no_overload(),
    })
}

fn size<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [value @ (Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_))] => {
            Ok(Value::Int(value.size() as i64))
        }
        _ => no_overload(),
    }
}

fn overflow<T>(kind: &str) -> Result<T, Error> {
    fail(format!("{kind} overflow"))
}

fn arithmetic<'a>(
    args: &[Value<'a>],
    ints: fn(i64, i64) -> Option<i64>,
    uints: fn(u64, u64) -> Option<u64>,
    doubles: fn(f64, f64) -> f64,
) -> Outcome<'a> {
    match args {
        [Value::Int(a), Value::Int(b)] => ints(*a, *b).map_or_else(|| overflow("integer"), |v| Ok(Value::Int(v))),
        [Value::Uint(a), Value::Uint(b)] => {
            uints(*a, *b).map_or_else(|| overflow("unsigned integer"), |v| Ok(Value::Uint(v)))
        }
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(doubles(*a, *b))),
        _ => no_overload(),
    }
}

fn add<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(a), Value::String(b)] => made(format!("{}{}", &**a, &**b)),
        [Value::Bytes(a), Value::Bytes(b)] => {
            if a.len() + b.len() > crate::value::MAX_TEXT {
                return fail(format!("more than {} bytes", crate::value::MAX_TEXT));
            }
            Ok(Value::Bytes([&**a, &**b].concat().into()))
        }
        [Value::List(a), Value::List(b)] => a.plus(b),
        [Value::Duration(a), Value::Duration(b)] => {
            a.checked_add(*b).map_or_else(|| overflow("duration"), |v| Ok(Value::Duration(v)))
        }
        [Value::Timestamp(t), Value::Duration(d)] | [Value::Duration(d), Value::Timestamp(t)] => time::shifted(*t, *d),
        _ => arithmetic(args, i64::checked_add, u64::checked_add, |a, b| a + b),
    }
}

fn subtract<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Duration(a), Value::Duration(b)] => {
            a.checked_sub(*b).map_or_else(|| overflow("duration"), |v| Ok(Value::Duration(v)))
        }
        [Value::Timestamp(t), Value::Duration(d)] => match d.checked_neg() {
            Some(d) => time::shifted(*t, d),
            None => overflow("duration"),
        },
        [Value::Timestamp(a), Value::Timestamp(b)] => {
            let nanos = a.as_nanosecond() - b.as_nanosecond();
            i64::try_from(nanos).map_or_else(|_| overflow("duration"), |v| Ok(Value::Duration(v)))
        }
        _ => arithmetic(args, i64::checked_sub, u64::checked_sub, |a, b| a - b),
    }
}

fn divide<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [_, Value::Int(0) | Value::Uint(0)] => fail("division by zero"),
        _ => arithmetic(args, i64::checked_div, u64::checked_div, |a, b| a / b),
    }
}

fn modulo<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [_, Value::Int(0) | Value::Uint(0)] => fail("modulus by zero"),
        _ => arithmetic(args, i64::checked_rem, u64::checked_rem, |_, _| f64::NAN),
    }
}

fn negate<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Int(i)] => i.checked_neg().map_or_else(|| overflow("integer"), |v| Ok(Value::Int(v))),
        [Value::Double(d)] => Ok(Value::Double(-d)),
        _ => no_overload(),
    }
}

fn whole_index(value: &Value<'_>) -> Result<i64, Error> {
    match value {
        Value::Int(i) => Ok(*i),
        Value::Uint(u) => i64::try_from(*u).or_else(|_| fail("index out of bounds")),
        Value::Double(d) if d.fract() == 0.0 && d.abs() < 9e15 => Ok(*d as i64),
        other => fail(format!("unsupported index type '{}' in list", other.type_name())),
    }
}

fn index<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::List(list), at] => {
            let at = whole_index(at)?;
            match usize::try_from(at).ok().and_then(|i| list.get(i)) {
                Some(item) => item,
                None => fail(format!("index out of bounds: {at}")),
            }
        }
        [Value::Map(map), key] => match map.get(key) {
            Some(value) => value,
            None => fail(format!("no such key: {}", shown(key))),
        },
        [Value::Optional(Some(_)) | Value::Optional(None), _] => optional_index(args),
        _ => no_overload(),
    }
}

fn optional_index<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let found = match args {
        [Value::Optional(None), _] => None,
        [Value::Optional(Some(inner)), at] => return optional_index(&[(**inner).clone(), at.clone()]),
        [Value::List(list), at] => usize::try_from(whole_index(at)?).ok().and_then(|i| list.get(i)),
        [Value::Map(map), key] => map.get(key),
        _ => return no_overload(),
    };
    Ok(Value::Optional(found.transpose()?.map(std::rc::Rc::new)))
}

fn shown(value: &Value<'_>) -> String {
    match to_string(std::slice::from_ref(value)) {
        Ok(Value::String(text)) => text.to_string(),
        _ => value.type_name().to_string(),
    }
}

fn less<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    ordered(args, |o| o == Ordering::Less)
}

fn less_equals<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    ordered(args, |o| o != Ordering::Greater)
}

fn greater<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    ordered(args, |o| o == Ordering::Greater)
}

fn greater_equals<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    ordered(args, |o| o != Ordering::Less)
}

fn ordered<'a>(args: &[Value<'a>], test: fn(Ordering) -> bool) -> Outcome<'a> {
    match args {
        [a, b] => match compare(a, b)? {
            Some(order) => Ok(Value::Bool(test(order))),
            None => fail("NaN values cannot be ordered"),
        },
        _ => no_overload(),
    }
}

pub const ROWS: &[Row] = &[
    Row("_==_", "equals", "(A, A) bool", |a| Ok(Value::Bool(a[0].equals(&a[1])?))),
    Row("_!=_", "not_equals", "(A, A) bool", |a| Ok(Value::Bool(!a[0].equals(&a[1])?))),
    Row("_&&_", "logical_and", "(bool, bool) bool", by_evaluator),
    Row("_||_", "logical_or", "(bool, bool) bool", by_evaluator),
    Row("_?_:_", "conditional", "(bool, A, A) A", by_evaluator),
    Row("@not_strictly_false", "not_strictly_false", "(bool) bool", by_evaluator),
    Row("!_", "logical_not", "(bool) bool", |a| match a[0] {
        Value::Bool(b) => Ok(Value::Bool(!b)),
        _ => no_overload(),
    }),
    Row("_+_", "add_bytes", "(bytes, bytes) bytes", add),
    Row("_+_", "add_double", "(double, double) double", add),
    Row("_+_", "add_duration_duration", "(duration, duration) duration", add),
    Row("_+_", "add_duration_timestamp", "(duration, timestamp) timestamp", add),
    Row("_+_", "add_timestamp_duration", "(timestamp, duration) timestamp", add),
    Row("_+_", "add_int64", "(int, int) int", add),
    Row("_+_", "add_list", "(list(A), list(A)) list(A)", add),
    Row("_+_", "add_string", "(string, string) string", add),
    Row("_+_", "add_uint64", "(uint, uint) uint", add),
    Row("_-_", "subtract_double", "(double, double) double", subtract),
    Row("_-_", "subtract_duration_duration", "(duration, duration) duration", subtract),
    Row("_-_", "subtract_int64", "(int, int) int", subtract),
    Row("_-_", "subtract_timestamp_duration", "(timestamp, duration) timestamp", subtract),
    Row("_-_", "subtract_timestamp_timestamp", "(timestamp, timestamp) duration", subtract),
    Row("_-_", "subtract_uint64", "(uint, uint) uint", subtract),
    Row("_*_", "multiply_double", "(double, double) double", |a| {
        arithmetic(a, i64::checked_mul, u64::checked_mul, |a, b| a * b)
    }),
    Row("_*_", "multiply_int64", "(int, int) int", |a| arithmetic(a, i64::checked_mul, u64::checked_mul, |a, b| a * b)),
    Row("_*_", "multiply_uint64", "(uint, uint) uint", |a| {
        arithmetic(a, i64::checked_mul, u64::checked_mul, |a, b| a * b)
    }),
    Row("_/_", "divide_double", "(double, double) double", divide),
    Row("_/_", "divide_int64", "(int, int) int", divide),
    Row("_/_", "divide_uint64", "(uint, uint) uint", divide),
    Row("_%_", "modulo_int64", "(int, int) int", modulo),
    Row("_%_", "modulo_uint64", "(uint, uint) uint", modulo),
    Row("-_", "negate_double", "(double) double", negate),
    Row("-_", "negate_int64", "(int) int", negate),
    Row("_[_]", "index_list", "(list(A), int) A", index),
    Row("_[_]", "index_map", "(map(A, B), A) B", index),
    Row("_[_]", "optional_list_index_int", "(optional(list(V)), int) optional(V)", optional_index),
    Row("_[_]", "optional_map_index_value", "(optional(map(K, V)), K) optional(V)", optional_index),
    Row("_[?_]", "list_optindex_optional_int", "(list(V), int) optional(V)", optional_index),
    Row("_[?_]", "optional_list_optindex_optional_int", "(optional(list(V)), int) optional(V)", optional_index),
    Row("_[?_]", "map_optindex_optional_value", "(map(K, V), K) optional(V)", optional_index),
    Row("_[?_]", "optional_map_optindex_optional_value", "(optional(map(K, V)), K) optional(V)", optional_index),
    Row("@in", "in_list", "(A, list(A)) bool", |a| Ok(Value::Bool(list(a, 1)?.contains(&a[0])?))),
    Row("@in", "in_map", "(A, map(A, B)) bool", |a| Ok(Value::Bool(map(a, 1)?.has(&a[0])))),
    Row("size", "size_bytes", "(bytes) int", size),
    Row("size", "bytes_size", "bytes.() int", size),
    Row("size", "size_list", "(list(A)) int", size),
    Row("size", "list_size", "list(A).() int", size),
    Row("size", "size_map", "(map(A, B)) int", size),
    Row("size", "map_size", "map(A, B).() int", size),
    Row("size", "size_string", "(string) int", size),
    Row("size", "string_size", "string.() int", size),
    Row("type", "type", "(A) type(A)", |a| Ok(Value::Type(a[0].type_name()))),
    Row("dyn", "to_dyn", "(A) dyn", |a| Ok(a[0].clone())),
];

macro_rules! comparisons {
    ($($kinds:literal $types:literal),*) => {
        &[$(
            Row("_<_", concat!("less_", $kinds), $types, less),
            Row("_<=_", concat!("less_equals_", $kinds), $types, less_equals),
            Row("_>_", concat!("greater_", $kinds), $types, greater),
            Row("_>=_", concat!("greater_equals_", $kinds), $types, greater_equals),
        )*]
    };
}

pub const COMPARISONS: &[Row] = comparisons!(
    "bool" "(bool, bool) bool",
    "int64" "(int, int) bool",
    "int64_double" "(int, double) bool",
    "int64_uint64" "(int, uint) bool",
    "uint64" "(uint, uint) bool",
    "uint64_double" "(uint, double) bool",
    "uint64_int64" "(uint, int) bool",
    "double" "(double, double) bool",
    "double_int64" "(double, int) bool",
    "double_uint64" "(double, uint) bool",
    "string" "(string, string) bool",
    "bytes" "(bytes, bytes) bool",
    "timestamp" "(timestamp, timestamp) bool",
    "duration" "(duration, duration) bool"
);

fn to_int<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Int(match &args[0] {
        Value::Int(i) => *i,
        Value::Uint(u) => i64::try_from(*u).or_else(|_| overflow("integer"))?,
        Value::Double(d) if d.is_nan() || *d <= -9_223_372_036_854_775_808.0 || *d >= 9_223_372_036_854_775_808.0 => {
            return overflow("integer");
        }
        Value::Double(d) => *d as i64,
        Value::String(text) => match text.parse() {
            Ok(value) => value,
            Err(_) => return fail(format!("strconv.ParseInt: parsing {:?}: invalid syntax", &**text)),
        },
        Value::Timestamp(time) => time.as_second(),
        Value::Duration(nanos) => *nanos,
        _ => return no_overload(),
    }))
}

fn to_uint<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Uint(match &args[0] {
        Value::Uint(u) => *u,
        Value::Int(i) => u64::try_from(*i).or_else(|_| overflow("unsigned integer"))?,
        Value::Double(d) if d.is_nan() || *d < 0.0 || *d >= 18_446_744_073_709_551_616.0 => {
            return overflow("unsigned integer");
        }
        Value::Double(d) => *d as u64,
        Value::String(text) => match text.parse() {
            Ok(value) => value,
            Err(_) => return fail(format!("strconv.ParseUint: parsing {:?}: invalid syntax", &**text)),
        },
        _ => return no_overload(),
    }))
}

fn to_double<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Double(match &args[0] {
        Value::Double(d) => *d,
        Value::Int(i) => *i as f64,
        Value::Uint(u) => *u as f64,
        Value::String(text) => match text.parse() {
            Ok(value) => value,
            Err(_) => return fail(format!("strconv.ParseFloat: parsing {:?}: invalid syntax", &**text)),
        },
        _ => return no_overload(),
    }))
}

fn to_bool<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    Ok(Value::Bool(match &args[0] {
        Value::Bool(b) => *b,
        Value::String(text) => match &**text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => true,
            "0" | "f" | "F" | "FALSE" | "false" | "False" => false,
            other => return fail(format!("strconv.ParseBool: parsing {other:?}: invalid syntax")),
        },
        _ => return no_overload(),
    }))
}

/// A float as Go's shortest `g` format writes it.
pub fn double_text(d: f64) -> String {
    if d.is_nan() {
        return "NaN".into();
    }
    if d.is_infinite() {
        return if d > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    let text = format!("{d:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if d != 0.0 && !(-4..21).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    format!("{d}")
}

pub fn to_string<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    made(match &args[0] {
        value @ Value::String(_) => return Ok(value.clone()),
        Value::Bool(b) => b.to_string(),
        Value::Int(i) => i.to_string(),
        Value::Uint(u) => u.to_string(),
        Value::Double(d) => double_text(*d),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.to_string(),
            Err(_) => return fail("invalid UTF-8 in bytes, cannot convert to string"),
        },
        Value::Timestamp(t) => time::timestamp_text(*t),
        Value::Duration(nanos) => time::duration_text(*nanos),
        Value::Opaque(opaque) => opaque.to_string(),
        _ => return no_overload(),
    })
}

fn to_bytes<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match &args[0] {
        Value::String(_) => Ok(Value::Bytes(text(args, 0)?.as_bytes().into())),
        value => Ok(value.clone()),
    }
}

fn to_timestamp<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match &args[0] {
        Value::Int(_) => match jiff::Timestamp::from_second(int(args, 0)?) {
            Ok(t) => Ok(Value::Timestamp(t)),
            Err(_) => overflow("timestamp"),
        },
        Value::String(said) => match time::parse_timestamp(said) {
            Some(t) => Ok(Value::Timestamp(t)),
            None => fail(format!("parsing time {:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse", &**said)),
        },
        value => Ok(value.clone()),
    }
}

fn to_duration<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match &args[0] {
        Value::Int(nanos) => Ok(Value::Duration(*nanos)),
        Value::String(said) => match time::parse_duration(said) {
            Some(nanos) => Ok(Value::Duration(nanos)),
            None => fail(format!("time: invalid duration {:?}", &**said)),
        },
        value => Ok(value.clone()),
    }
}

pub const CONVERSIONS: &[Row] = &[
    Row("int", "int64_to_int64", "(int) int", to_int),
    Row("int", "double_to_int64", "(double) int", to_int),
    Row("int", "duration_to_int64", "(duration) int", to_int),
    Row("int", "string_to_int64", "(string) int", to_int),
    Row("int", "timestamp_to_int64", "(timestamp) int", to_int),
    Row("int", "uint64_to_int64", "(uint) int", to_int),
    Row("uint", "uint64_to_uint64", "(uint) uint", to_uint),
    Row("uint", "double_to_uint64", "(double) uint", to_uint),
    Row("uint", "int64_to_uint64", "(int) uint", to_uint),
    Row("uint", "string_to_uint64", "(string) uint", to_uint),
    Row("double", "double_to_double", "(double) double", to_double),
    Row("double", "int64_to_double", "(int) double", to_double),
    Row("double", "string_to_double", "(string) double", to_double),
    Row("double", "uint64_to_double", "(uint) double", to_double),
    Row("bool", "bool_to_bool", "(bool) bool", to_bool),
    Row("bool", "string_to_bool", "(string) bool", to_bool),
    Row("string", "string_to_string", "(string) string", to_string),
    Row("string", "bool_to_string", "(bool) string", to_string),
    Row("string", "bytes_to_string", "(bytes) string", to_string),
    Row("string", "double_to_string", "(double) string", to_string),
    Row("string", "duration_to_string", "(duration) string", to_string),
    Row("string", "int64_to_string", "(int) string", to_string),
    Row("string", "timestamp_to_string", "(timestamp) string", to_string),
    Row("string", "uint64_to_string", "(uint) string", to_string),
    Row("string", "ip_to_string", "(net.IP) string", to_string),
    Row("string", "cidr_to_string", "(net.CIDR) string", to_string),
    Row("bytes", "bytes_to_bytes", "(bytes) bytes", to_bytes),
    Row("bytes", "string_to_bytes", "(string) bytes", to_bytes),
    Row("timestamp", "timestamp_to_timestamp", "(timestamp) timestamp", to_timestamp),
    Row("timestamp", "int64_to_timestamp", "(int) timestamp", to_timestamp),
    Row("timestamp", "string_to_timestamp", "(string) timestamp", to_timestamp),
    Row("duration", "duration_to_duration", "(duration) duration", to_duration),
    Row("duration", "int64_to_duration", "(int) duration", to_duration),
    Row("duration", "string_to_duration", "(string) duration", to_duration),
];
