//! Lists, sets of list items, and what macros need to build maps.

use std::cmp::Ordering;
use std::rc::Rc;

use super::operators::compare;
use super::{Row, bool, int, list, map, no_overload};
use crate::eval::{Error, fail, insert};
use crate::value::{MAX_ITEMS, Mapping, Value};

type Outcome<'a> = Result<Value<'a>, Error>;

/// Items of the list whose quadratic comparison is still quick.
const MAX_DISTINCT: usize = 10_000;

fn order(a: &Value<'_>, b: &Value<'_>) -> Result<Ordering, Error> {
    match compare(a, b)? {
        Some(order) => Ok(order),
        None => fail("NaN values cannot be ordered"),
    }
}

fn is_sorted<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let items = list(args, 0)?.items()?;
    for pair in items.windows(2) {
        if order(&pair[0], &pair[1])? == Ordering::Greater {
            return bool(false);
        }
    }
    bool(true)
}

fn extreme<'a>(args: &[Value<'a>], name: &str, wanted: Ordering) -> Outcome<'a> {
    let items = list(args, 0)?.items()?;
    let mut best: Option<Value<'a>> = None;
    for item in items {
        match &best {
            Some(so_far) if order(&item, so_far)? != wanted => {}
            _ => best = Some(item),
        }
    }
    best.map_or_else(|| fail(format!("{name} called on empty list")), Ok)
}

fn min<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    extreme(args, "min", Ordering::Less)
}

fn max<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    extreme(args, "max", Ordering::Greater)
}

fn sum<'a>(args: &[Value<'a>], zero: Value<'a>) -> Outcome<'a> {
    let mut total = zero;
    for item in list(args, 0)?.items()? {
        total = match (&total, &item) {
            (Value::Int(a), Value::Int(b)) => {
                Value::Int(a.checked_add(*b).map_or_else(|| fail("integer overflow"), Ok)?)
            }
            (Value::Uint(a), Value::Uint(b)) => {
                Value::Uint(a.checked_add(*b).map_or_else(|| fail("unsigned integer overflow"), Ok)?)
            }
            (Value::Double(a), Value::Double(b)) => Value::Double(a + b),
            (Value::Duration(a), Value::Duration(b)) => {
                Value::Duration(a.checked_add(*b).map_or_else(|| fail("duration overflow"), Ok)?)
            }
            _ => return no_overload(),
        };
    }
    Ok(total)
}

fn position<'a>(args: &[Value<'a>], last: bool) -> Outcome<'a> {
    let mut found = -1;
    for (at, item) in list(args, 0)?.items()?.iter().enumerate() {
        if item.equals(&args[1])? {
            found = at as i64;
            if !last {
                break;
            }
        }
    }
    Ok(Value::Int(found))
}

fn slice<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (items, from, to) = (list(args, 0)?.items()?, int(args, 1)?, int(args, 2)?);
    if from < 0 || to < 0 {
        return fail(format!("cannot slice({from}, {to}), negative indexes not supported"));
    }
    if from > to {
        return fail(format!("cannot slice({from}, {to}), start index must be less than or equal to end index"));
    }
    if to > items.len() as i64 {
        return fail(format!("cannot slice({from}, {to}), list is length {}", items.len()));
    }
    Ok(Value::list(items[from as usize..to as usize].to_vec()))
}

fn flattened<'a>(items: Vec<Value<'a>>, depth: i64, out: &mut Vec<Value<'a>>) -> Result<(), Error> {
    for item in items {
        match item {
            Value::List(inner) if depth > 0 => flattened(inner.items()?, depth - 1, out)?,
            other => out.push(other),
        }
        if out.len() > MAX_ITEMS {
            return fail(format!("a list of more than {MAX_ITEMS} items"));
        }
    }
    Ok(())
}

fn flatten<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let depth = if args.len() > 1 { int(args, 1)? } else { 1 };
    if depth < 0 {
        return fail("level must be non-negative");
    }
    let mut out = Vec::new();
    flattened(list(args, 0)?.items()?, depth, &mut out)?;
    Ok(Value::list(out))
}

fn distinct<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let mut keys = std::collections::BTreeSet::new();
    let mut out: Vec<Value<'a>> = Vec::new();
    let mut others: Vec<Value<'a>> = Vec::new();
    for item in list(args, 0)?.items()? {
        if let Some(key) = item.key() {
            if keys.insert(key) {
                out.push(item);
            }
            continue;
        }
        let mut seen = false;
        for other in &others {
            seen |= other.equals(&item)?;
        }
        if !seen {
            if others.len() >= MAX_DISTINCT {
                return fail(format!("distinct of more than {MAX_DISTINCT} items that have no order"));
            }
            others.push(item.clone());
            out.push(item);
        }
    }
    Ok(Value::list(out))
}

fn sorted<'a>(items: Vec<Value<'a>>, keys: Vec<Value<'a>>) -> Outcome<'a> {
    if keys.len() != items.len() {
        return fail("@sortByAssociatedKeys() expected a list of the same size as the associated keys list");
    }
    let mut failed = None;
    let mut pairs: Vec<(Value<'a>, Value<'a>)> = keys.into_iter().zip(items).collect();
    if let Some((first, _)) = pairs.first() {
        let name = first.type_name();
        if pairs.iter().any(|(key, _)| key.type_name() != name) {
            return fail("list elements must have the same type");
        }
    }
    pairs.sort_by(|a, b| {
        order(&a.0, &b.0).unwrap_or_else(|why| {
            failed = Some(why);
            Ordering::Equal
        })
    });
    match failed {
        Some(why) => Err(why),
        None => Ok(Value::list(pairs.into_iter().map(|(_, item)| item).collect())),
    }
}

fn sort<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let items = list(args, 0)?.items()?;
    sorted(items.clone(), items)
}

fn range<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let count = int(args, 0)?;
    if count > MAX_ITEMS as i64 {
        return fail(format!("a list of more than {MAX_ITEMS} items"));
    }
    Ok(Value::list((0..count).map(Value::Int).collect()))
}

/// `first` and `last`, of lists.
fn end<'a>(args: &[Value<'a>], last: bool) -> Outcome<'a> {
    let items = list(args, 0)?;
    let at = if last { items.len().wrapping_sub(1) } else { 0 };
    Ok(Value::Optional(items.get(at).transpose()?.map(Rc::new)))
}

fn map_insert<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let mut out = match map(args, 0)? {
        Mapping::Made(made) => (**made).clone(),
        other => {
            let mut out = std::collections::BTreeMap::new();
            for pair in other.entries() {
                let (key, value) = pair?;
                insert(&mut out, key, value)?;
            }
            out
        }
    };
    let mut add = |key: Value<'a>, value: Value<'a>| {
        if key.key().is_some_and(|k| out.contains_key(&k)) {
            return fail(format!("insert failed: key {:?} already exists", key.as_str().unwrap_or_default()));
        }
        insert(&mut out, key, value)
    };
    match args {
        [_, key, value] => add(key.clone(), value.clone())?,
        [_, Value::Map(more)] => {
            for pair in more.entries() {
                let (key, value) = pair?;
                add(key, value)?;
            }
        }
        _ => return no_overload(),
    }
    Ok(Value::Map(Mapping::Made(Rc::new(out))))
}

macro_rules! comparable {
    ($($name:literal),*) => {
        &[$(
            Row("isSorted", concat!("list_", $name, "_is_sorted_bool"), concat!("list(", $name, ").() bool"), is_sorted),
            Row("min", concat!("list_", $name, "_min_", $name), concat!("list(", $name, ").() ", $name), min),
            Row("max", concat!("list_", $name, "_max_", $name), concat!("list(", $name, ").() ", $name), max),
            Row("sort", concat!("list_", $name, "_sort"), concat!("list(", $name, ").() list(", $name, ")"), sort),
            Row(
                "@sortByAssociatedKeys",
                concat!("list_", $name, "_sortByAssociatedKeys"),
                concat!("list(T).(list(", $name, ")) list(T)"),
                |a| sorted(list(a, 0)?.items()?, list(a, 1)?.items()?),
            ),
        )*
        Row("sum", "list_int_sum_int", "list(int).() int", |a| sum(a, Value::Int(0))),
        Row("sum", "list_uint_sum_uint", "list(uint).() uint", |a| sum(a, Value::Uint(0))),
        Row("sum", "list_double_sum_double", "list(double).() double", |a| sum(a, Value::Double(0.0))),
        Row("sum", "list_duration_sum_duration", "list(duration).() duration", |a| sum(a, Value::Duration(0))),
        Row("indexOf", "list_a_index_of_int", "list(A).(A) int", |a| position(a, false)),
        Row("lastIndexOf", "list_a_last_index_of_int", "list(A).(A) int", |a| position(a, true)),
        Row("includes", "list_includes_dyn_dyn", "dyn.(dyn) bool", |a| match &a[0] {
            Value::List(items) => bool(items.contains(&a[1])?),
            single => bool(single.equals(&a[1])?),
        }),
        Row("slice", "list_slice", "list(T).(int, int) list(T)", slice),
        Row("flatten", "list_flatten", "list(list(T)).() list(T)", flatten),
        Row("flatten", "list_flatten_int", "list(dyn).(int) list(dyn)", flatten),
        Row("lists.range", "lists_range", "(int) list(int)", range),
        Row("reverse", "list_reverse", "list(T).() list(T)", |a| {
            let mut items = list(a, 0)?.items()?;
            items.reverse();
            Ok(Value::list(items))
        }),
        Row("distinct", "list_distinct", "list(T).() list(T)", distinct),
        Row("first", "list_first", "list(T).() optional(T)", |a| end(a, false)),
        Row("last", "list_last", "list(T).() optional(T)", |a| end(a, true)),
        Row("cel.@mapInsert", "@mapInsert_map_key_value", "(map(K, V), K, V) map(K, V)", map_insert),
        Row("cel.@mapInsert", "@mapInsert_map_map", "(map(K, V), map(K, V)) map(K, V)", map_insert),
        ]
    };
}

pub const ROWS: &[Row] = comparable!("int", "uint", "double", "bool", "duration", "timestamp", "string", "bytes");

fn contains_all(outer: &Value<'_>, inner: &Value<'_>) -> Result<bool, Error> {
    let (Value::List(outer), Value::List(inner)) = (outer, inner) else { return no_overload() };
    for item in inner.items()? {
        if !outer.contains(&item)? {
            return Ok(false);
        }
    }
    Ok(true)
}

pub const SETS: &[Row] = &[
    Row("sets.contains", "list_sets_contains_list", "(list(T), list(T)) bool", |a| bool(contains_all(&a[0], &a[1])?)),
    Row("sets.equivalent", "list_sets_equivalent_list", "(list(T), list(T)) bool", |a| {
        bool(contains_all(&a[0], &a[1])? && contains_all(&a[1], &a[0])?)
    }),
    Row("sets.intersects", "list_sets_intersects_list", "(list(T), list(T)) bool", |a| {
        let other = list(a, 1)?;
        for item in list(a, 0)?.items()? {
            if other.contains(&item)? {
                return bool(true);
            }
        }
        bool(false)
    }),
];
