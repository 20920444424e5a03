//! Functions: what each library declares, and what it does.
//!
//! A library is a table of rows: name, overload, signature, code. Which overload a call may mean is the checker's
//! question, which one it is at run time the evaluator's; code here is only called with arguments that fit its signature.

mod addresses;
mod authorizer;
mod formats;
mod lists;
pub mod opaque;
mod operators;
mod optional;
mod quantity;
pub mod regex;
mod semver;
mod strings;
pub mod time;
mod url;

pub use authorizer::{Authorize, Check, Decision};

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::eval::{Error, fail};
use crate::types::{Type, arguments};
use crate::value::{List, Mapping, Value};

pub type Code = for<'a> fn(&[Value<'a>]) -> Result<Value<'a>, Error>;

/// Name, overload, signature (`string.(int) bool` for members, `(string) bool` else), code.
pub struct Row(pub &'static str, pub &'static str, pub &'static str, pub Code);

#[derive(Debug)]
pub struct Overload {
    pub id: &'static str,
    pub member: bool,
    pub args: Vec<Type>,
    pub result: Type,
    pub run: Code,
}

/// All functions of an environment.
#[derive(Debug, Default)]
pub struct Registry {
    functions: HashMap<&'static str, Vec<Overload>>,
}

/// Which functions and macros expressions have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Library {
    /// Every place's.
    #[default]
    Base,
    /// With `jsonpatch.escapeKey`: mutations.
    Patches,
    /// With `cel.bind`: device selectors.
    Bindings,
}

impl Registry {
    pub fn get(&self, name: &str) -> &[Overload] {
        self.functions.get(name).map_or(&[], |overloads| &overloads[..])
    }

    fn add(&mut self, rows: &[Row]) {
        for Row(name, id, signature, code) in rows {
            let (target, rest) = signature.split_once(".(").unwrap_or(("", signature.trim_start_matches('(')));
            // The arguments end with the bracket that was never opened.
            let mut depth = 0;
            let end = rest.char_indices().find_map(|(at, c)| {
                match c {
                    '(' => depth += 1,
                    ')' if depth == 0 => return Some(at),
                    ')' => depth -= 1,
                    _ => {}
                }
                None
            });
            let (args, result) = rest.split_at(end.unwrap_or(rest.len()));
            let mut types: Vec<Type> = arguments(args).iter().map(|a| Type::parse(a)).collect();
            if !target.is_empty() {
                types.insert(0, Type::parse(target));
            }
            self.functions.entry(name).or_default().push(Overload {
                id,
                member: !target.is_empty(),
                args: types,
                result: Type::parse(result.trim_start_matches(')')),
                run: *code,
            });
        }
    }

    fn base() -> Self {
        let mut all = Self::default();
        for rows in [
            operators::ROWS,
            operators::COMPARISONS,
            operators::CONVERSIONS,
            strings::ROWS,
            lists::ROWS,
            lists::SETS,
            regex::ROWS,
            time::ROWS,
            optional::ROWS,
            url::ROWS,
            quantity::ROWS,
            addresses::ROWS,
            semver::ROWS,
            formats::ROWS,
            authorizer::ROWS,
        ] {
            all.add(rows);
        }
        all
    }
}

/// The functions of an environment, made on first use.
pub fn registry(library: Library) -> &'static Registry {
    static BASE: OnceLock<Registry> = OnceLock::new();
    static PATCHES: OnceLock<Registry> = OnceLock::new();
    match library {
        Library::Base | Library::Bindings => BASE.get_or_init(Registry::base),
        Library::Patches => PATCHES.get_or_init(|| {
            let mut all = Registry::base();
            all.add(strings::PATCHES);
            all
        }),
    }
}

/// The code of operators the evaluator runs itself.
fn by_evaluator<'a>(_: &[Value<'a>]) -> Result<Value<'a>, Error> {
    fail("no such overload")
}

fn no_overload<T>() -> Result<T, Error> {
    fail("no such overload")
}

fn text<'v>(args: &'v [Value<'_>], at: usize) -> Result<&'v str, Error> {
    match args.get(at) {
        Some(Value::String(text)) => Ok(text),
        _ => no_overload(),
    }
}

fn int(args: &[Value<'_>], at: usize) -> Result<i64, Error> {
    match args.get(at) {
        Some(Value::Int(i)) => Ok(*i),
        _ => no_overload(),
    }
}

fn list<'v, 'a>(args: &'v [Value<'a>], at: usize) -> Result<&'v List<'a>, Error> {
    match args.get(at) {
        Some(Value::List(list)) => Ok(list),
        _ => no_overload(),
    }
}

fn map<'v, 'a>(args: &'v [Value<'a>], at: usize) -> Result<&'v Mapping<'a>, Error> {
    match args.get(at) {
        Some(Value::Map(map)) => Ok(map),
        _ => no_overload(),
    }
}

fn made<'a>(text: String) -> Result<Value<'a>, Error> {
    if text.len() > crate::value::MAX_TEXT {
        return fail(format!("a text of more than {} bytes", crate::value::MAX_TEXT));
    }
    Ok(Value::text(text))
}

fn bool<'a>(value: bool) -> Result<Value<'a>, Error> {
    Ok(Value::Bool(value))
}
