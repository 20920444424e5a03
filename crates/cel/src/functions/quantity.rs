//! Quantities, exactly as resources count them.

use meta::quantity::Quantity;

use super::opaque::Opaque;
use super::{Row, bool, int, no_overload, text};
use crate::eval::{Error, fail};
use crate::value::Value;

fn get<'v>(args: &'v [Value<'_>], at: usize) -> Result<&'v Quantity, Error> {
    match args.get(at) {
        Some(Value::Opaque(Opaque::Quantity(q))) => Ok(q),
        _ => no_overload(),
    }
}

fn of<'a>(q: Quantity) -> Result<Value<'a>, Error> {
    Ok(Value::Opaque(Opaque::Quantity(q)))
}

fn fits(q: &Quantity) -> bool {
    q.is_whole() && q.value() != i64::MAX && q.value() != i64::MIN
}

pub const ROWS: &[Row] = &[
    Row("quantity", "string_to_quantity", "(string) kubernetes.Quantity", |a| match text(a, 0)?.parse::<Quantity>() {
        Ok(q) => of(q),
        Err(why) => fail(why.to_string()),
    }),
    Row("isQuantity", "is_quantity_string", "(string) bool", |a| bool(text(a, 0)?.parse::<Quantity>().is_ok())),
    Row("sign", "quantity_sign", "kubernetes.Quantity.() int", |a| Ok(Value::Int(i64::from(get(a, 0)?.sign())))),
    Row("isGreaterThan", "quantity_is_greater_than", "kubernetes.Quantity.(kubernetes.Quantity) bool", |a| {
        bool(get(a, 0)?.cmp(get(a, 1)?).is_gt())
    }),
    Row("isLessThan", "quantity_is_less_than", "kubernetes.Quantity.(kubernetes.Quantity) bool", |a| {
        bool(get(a, 0)?.cmp(get(a, 1)?).is_lt())
    }),
    Row("compareTo", "quantity_compare_to", "kubernetes.Quantity.(kubernetes.Quantity) int", |a| {
        Ok(Value::Int(get(a, 0)?.cmp(get(a, 1)?) as i64))
    }),
    Row("asApproximateFloat", "quantity_get_float", "kubernetes.Quantity.() double", |a| {
        Ok(Value::Double(get(a, 0)?.as_f64()))
    }),
    Row("asInteger", "quantity_get_int", "kubernetes.Quantity.() int", |a| {
        let q = get(a, 0)?;
        if fits(q) { Ok(Value::Int(q.value())) } else { fail("cannot convert value to integer") }
    }),
    Row("isInteger", "quantity_is_integer", "kubernetes.Quantity.() bool", |a| bool(fits(get(a, 0)?))),
    Row("add", "quantity_add", "kubernetes.Quantity.(kubernetes.Quantity) kubernetes.Quantity", |a| {
        of(get(a, 0)?.add(get(a, 1)?))
    }),
    Row("add", "quantity_add_int", "kubernetes.Quantity.(int) kubernetes.Quantity", |a| {
        of(get(a, 0)?.add(&Quantity::from_int(int(a, 1)?)))
    }),
    Row("sub", "quantity_sub", "kubernetes.Quantity.(kubernetes.Quantity) kubernetes.Quantity", |a| {
        of(get(a, 0)?.sub(get(a, 1)?))
    }),
    Row("sub", "quantity_sub_int", "kubernetes.Quantity.(int) kubernetes.Quantity", |a| {
        of(get(a, 0)?.sub(&Quantity::from_int(int(a, 1)?)))
    }),
];
