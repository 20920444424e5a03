//! Running checked expressions, counting what they cost.
//!
//! A tree walk. Costs are charged as upstream charges them, so an expression that is stopped there is stopped here; the
//! limit bounds time, and [`crate::value`]'s limits bound memory.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use crate::ast::{Entry, Expr, Fold, Kind, Literal};
use crate::check::{Checked, Ref};
use crate::functions::Overload;
use crate::types::Type;
use crate::value::{Key, List, MAX_ITEMS, Mapping, Object, Text, Value};

/// The most one expression may cost to run.
pub const PER_CALL_LIMIT: u64 = 1_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// What the expression itself came to.
    Eval(String),
    /// It was stopped.
    CostLimit,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Eval(why) => f.write_str(why),
            Error::CostLimit => f.write_str("operation cancelled: actual cost limit exceeded"),
        }
    }
}

impl std::error::Error for Error {}

/// An error of evaluation.
pub fn fail<T>(why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Eval(why.into()))
}

/// Where variables get their values.
pub trait Variables<'a> {
    fn get(&self, name: &str) -> Option<Result<Value<'a>, Error>>;
}

impl<'a> Variables<'a> for &[(&str, Value<'a>)] {
    fn get(&self, name: &str) -> Option<Result<Value<'a>, Error>> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| Ok(v.clone()))
    }
}

struct Run<'r, 'a> {
    checked: &'r Checked,
    vars: &'r dyn Variables<'a>,
    locals: Vec<(Arc<str>, Result<Value<'a>, Error>)>,
    cost: u64,
    limit: u64,
}

/// Runs a checked expression; what it cost is told in any case.
pub fn run<'a>(checked: &Checked, vars: &dyn Variables<'a>, limit: u64) -> (Result<Value<'a>, Error>, u64) {
    let mut run = Run { checked, vars, locals: Vec::new(), cost: 0, limit };
    let value = run.eval(&checked.expr);
    (value, run.cost)
}

fn literal<'a>(value: &Literal) -> Value<'a> {
    match value {
        Literal::Null => Value::Null,
        Literal::Bool(b) => Value::Bool(*b),
        Literal::Int(i) => Value::Int(*i),
        Literal::Uint(u) => Value::Uint(*u),
        Literal::Double(d) => Value::Double(*d),
        Literal::String(text) => Value::String(Text::Made(text.clone())),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
    }
}

impl<'a> Run<'_, 'a> {
    fn charge(&mut self, cost: u64) -> Result<(), Error> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit { Err(Error::CostLimit) } else { Ok(()) }
    }

    fn eval(&mut self, e: &Expr) -> Result<Value<'a>, Error> {
        match &e.kind {
            Kind::Literal(value) => Ok(literal(value)),
            Kind::Ident(name) => self.ident(e.id, name),
            Kind::Select { operand, field, test } => self.select(e.id, operand, field, *test),
            Kind::Call { function, target, args } => self.call(e.id, function, target.as_deref(), args),
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::Struct { name, fields } => self.message(name, fields),
            Kind::Fold(fold) => self.fold(fold),
        }
    }

    fn ident(&mut self, id: u32, name: &str) -> Result<Value<'a>, Error> {
        self.charge(1)?;
        if let Some((_, value)) = self.locals.iter().rev().find(|(n, _)| **n == *name) {
            return value.clone();
        }
        if let Ref::Type(ty) = &self.checked.refs[id as usize] {
            return Ok(Value::Type(ty.clone()));
        }
        match self.vars.get(name) {
            Some(value) => value,
            None => fail(format!("no such attribute(s): {name}")),
        }
    }

    fn select(&mut self, id: u32, operand: &Expr, field: &str, test: bool) -> Result<Value<'a>, Error> {
        if let Ref::Var(name) = &self.checked.refs[id as usize] {
            let name = name.clone();
            return self.ident(id, &name);
        }
        let object = self.eval(operand)?;
        if !test {
            self.charge(1)?;
        }
        if let Value::Optional(inner) = &object {
            let found = match inner {
                Some(inner) => get_field(inner, field)?.transpose()?,
                None => None,
            };
            return Ok(if test { Value::Bool(found.is_some()) } else { Value::Optional(found.map(Rc::new)) });
        }
        let found = get_field(&object, field)?;
        if test {
            return found.transpose().map(|found| Value::Bool(found.is_some()));
        }
        found.unwrap_or_else(|| fail(format!("no such key: {field}")))
    }

    fn call(&mut self, id: u32, function: &str, target: Option<&Expr>, args: &[Expr]) -> Result<Value<'a>, Error> {
        match (function, args) {
            ("_&&_" | "_||_", [left, right]) => return self.logical(function == "_||_", left, right),
            ("_?_:_", [condition, yes, no]) => {
                return match self.eval(condition)? {
                    Value::Bool(true) => self.eval(yes),
                    Value::Bool(false) => self.eval(no),
                    _ => fail("no such overload"),
                };
            }
            ("@not_strictly_false", [accu]) => {
                let value = self.eval(accu);
                self.charge(1)?;
                return match value {
                    Err(Error::CostLimit) => Err(Error::CostLimit),
                    Ok(Value::Bool(false)) => Ok(Value::Bool(false)),
                    _ => Ok(Value::Bool(true)),
                };
            }
            ("_?._", [operand, name]) => {
                let object = self.eval(operand)?;
                let name = self.eval(name)?;
                self.charge(1)?;
                return optional_field(&object, name.as_str().unwrap_or_default());
            }
            ("_+_", [accu, more]) if accu.as_ident() == Some(crate::ast::RESULT) => {
                if let Kind::List(items) = &more.kind
                    && let [(item, false)] = &items[..]
                {
                    return self.push(id, item);
                }
            }
            _ => {}
        }
        let mut values = Vec::with_capacity(args.len() + 1);
        if let Some(target) = target {
            values.push(self.eval(target)?);
        }
        for arg in args {
            values.push(self.eval(arg)?);
        }
        self.dispatch(id, function, &values)
    }

    fn dispatch(&mut self, id: u32, function: &str, values: &[Value<'a>]) -> Result<Value<'a>, Error> {
        let checked = self.checked;
        let Ref::Overloads(overloads) = &checked.refs[id as usize] else { return fail("no such overload") };
        let fits = |o: &&&Overload| o.args.len() == values.len() && o.args.iter().zip(values).all(|(t, v)| v.fits(t));
        let Some(overload) = overloads.iter().find(fits) else {
            let names: Vec<String> = values.iter().map(|v| v.type_name().to_string()).collect();
            return fail(format!("no such overload: {function}({})", names.join(", ")));
        };
        let result = (overload.run)(values)?;
        let cost = crate::cost::of_call(function, overload.id, values, &result);
        self.charge(cost)?;
        Ok(result)
    }

    /// `accu + [item]`, without copying what was gathered so far.
    fn push(&mut self, id: u32, item: &Expr) -> Result<Value<'a>, Error> {
        // The accumulator's own cost, a list's and an addition's.
        self.charge(12)?;
        let item = self.eval(item)?;
        let slot = self.locals.iter_mut().rev().find(|(n, _)| &**n == crate::ast::RESULT);
        let Some((_, slot)) = slot else { return fail("no such attribute(s): @result") };
        match std::mem::replace(slot, Ok(Value::Null))? {
            Value::List(List::Made(mut items)) => {
                if items.len() >= MAX_ITEMS {
                    return fail(format!("a list of more than {MAX_ITEMS} items"));
                }
                Rc::make_mut(&mut items).push(item);
                Ok(Value::List(List::Made(items)))
            }
            other => self.dispatch(id, "_+_", &[other, Value::list(vec![item])]),
        }
    }

    /// One side that decides is enough, even if the other fails.
    fn logical(&mut self, decides: bool, left: &Expr, right: &Expr) -> Result<Value<'a>, Error> {
        let mut failed = None;
        for side in [left, right] {
            match self.eval(side) {
                Ok(Value::Bool(value)) if value == decides => return Ok(Value::Bool(decides)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => failed = failed.or(Some(Error::Eval("no such overload".into()))),
                Err(Error::CostLimit) => return Err(Error::CostLimit),
                Err(why) => failed = failed.or(Some(why)),
            }
        }
        failed.map_or(Ok(Value::Bool(!decides)), Err)
    }

    fn list(&mut self, items: &[(Expr, bool)]) -> Result<Value<'a>, Error> {
        let mut out = Vec::with_capacity(items.len());
        for (item, optional) in items {
            match (self.eval(item)?, optional) {
                (Value::Optional(None), true) => {}
                (Value::Optional(Some(value)), true) => out.push((*value).clone()),
                (value, _) => out.push(value),
            }
        }
        self.charge(10)?;
        Ok(Value::list(out))
    }

    fn map(&mut self, entries: &[Entry]) -> Result<Value<'a>, Error> {
        let mut out = BTreeMap::new();
        for entry in entries {
            let key = self.eval(&entry.key)?;
            let value = match (self.eval(&entry.value)?, entry.optional) {
                (Value::Optional(None), true) => continue,
                (Value::Optional(Some(value)), true) => (*value).clone(),
                (value, _) => value,
            };
            insert(&mut out, key, value)?;
        }
        self.charge(30)?;
        Ok(Value::Map(Mapping::Made(Rc::new(out))))
    }

    fn message(&mut self, name: &Arc<str>, fields: &[(Arc<str>, Expr, bool)]) -> Result<Value<'a>, Error> {
        let mut out = BTreeMap::new();
        for (field, value, optional) in fields {
            let value = match (self.eval(value)?, optional) {
                (Value::Optional(None), true) => continue,
                (Value::Optional(Some(value)), true) => (*value).clone(),
                (value, _) => value,
            };
            out.insert(field.clone(), value);
        }
        self.charge(40)?;
        Ok(Value::Object(Object::Made(name.clone(), Rc::new(out))))
    }

    fn fold(&mut self, fold: &Fold) -> Result<Value<'a>, Error> {
        let range = self.eval(&fold.range)?;
        let init = self.eval(&fold.init);
        if init == Err(Error::CostLimit) {
            return Err(Error::CostLimit);
        }
        let depth = self.locals.len();
        self.locals.push((fold.accu.clone(), init));
        let mut outcome = Ok(());
        if !Expr::is_bind(fold) {
            outcome = self.steps(fold, &range, depth);
        }
        self.locals.truncate(depth + 1);
        let value = match outcome {
            Ok(()) => self.eval(&fold.result),
            Err(why) => Err(why),
        };
        self.locals.truncate(depth);
        value
    }

    fn steps(&mut self, fold: &Fold, range: &Value<'a>, depth: usize) -> Result<(), Error> {
        let entries = match range {
            Value::Map(map) => Some(map.entries()),
            _ => None,
        };
        let count = match (range, &entries) {
            (Value::List(list), _) => list.len(),
            (_, Some(entries)) => entries.len(),
            _ => return fail("no such overload"),
        };
        for at in 0..count {
            let (first, second) = match (range, &entries) {
                (Value::List(list), _) => {
                    let item = list.get(at).unwrap_or(Ok(Value::Null));
                    if fold.var2.is_some() { (Ok(Value::Int(at as i64)), item) } else { (item, Ok(Value::Null)) }
                }
                (_, Some(entries)) => match &entries[at] {
                    Ok((key, value)) => (Ok(key.clone()), Ok(value.clone())),
                    Err(why) => (Err(why.clone()), Err(why.clone())),
                },
                _ => (Ok(Value::Null), Ok(Value::Null)),
            };
            self.locals.push((fold.var.clone(), first));
            if let Some(var2) = &fold.var2 {
                self.locals.push((var2.clone(), second));
            }
            let goes_on = match self.eval(&fold.cond)? {
                Value::Bool(goes_on) => goes_on,
                _ => return fail("no such overload"),
            };
            if !goes_on {
                break;
            }
            let next = self.eval(&fold.step);
            if next == Err(Error::CostLimit) {
                return Err(Error::CostLimit);
            }
            let decided_by_errors = matches!(fold.init.kind, Kind::Literal(Literal::Bool(_)));
            if !decided_by_errors {
                // Only `all` and `exists` may go on after an error.
                next.as_ref().map_err(Clone::clone)?;
            }
            self.locals.truncate(depth + 1);
            self.locals[depth].1 = next;
        }
        Ok(())
    }
}

impl PartialEq for Value<'_> {
    /// For tests and for telling errors apart; CEL's own equality is [`Value::equals`].
    fn eq(&self, other: &Self) -> bool {
        self.type_name() == other.type_name() && self.equals(other).unwrap_or(false)
    }
}

/// Adds an entry to a map being made.
pub fn insert<'a>(
    map: &mut BTreeMap<Key, (Value<'a>, Value<'a>)>,
    key: Value<'a>,
    value: Value<'a>,
) -> Result<(), Error> {
    let Some(place) = key.key() else { return fail(format!("unsupported key type: {}", key.type_name())) };
    if map.len() >= MAX_ITEMS {
        return fail(format!("a map of more than {MAX_ITEMS} entries"));
    }
    map.insert(place, (key, value));
    Ok(())
}

/// A field or key, `None` when it is not there.
#[allow(clippy::type_complexity)]
pub fn get_field<'a>(object: &Value<'a>, field: &str) -> Result<Option<Result<Value<'a>, Error>>, Error> {
    match object {
        Value::Map(map) => Ok(map.get_text(field)),
        Value::Object(object) => Ok(object.field(field)),
        other => fail(format!("no such overload: {}.{field}", other.type_name())),
    }
}

fn optional_field<'a>(object: &Value<'a>, field: &str) -> Result<Value<'a>, Error> {
    match object {
        Value::Optional(None) => Ok(Value::Optional(None)),
        Value::Optional(Some(inner)) => optional_field(inner, field),
        object => Ok(Value::Optional(get_field(object, field)?.transpose()?.map(Rc::new))),
    }
}

/// Whether a program of this result type may stand where `wanted` is asked for.
pub fn is_exactly(found: &Type, wanted: &Type) -> bool {
    found == wanted
}
