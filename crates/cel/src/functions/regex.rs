//! Regular expressions: RE2's language, in time linear in the text.

use std::cell::RefCell;
use std::collections::HashMap;

use super::{Row, bool, int, made, text};
use crate::eval::{Error, fail};
use crate::value::Value;

/// Bytes one compiled pattern may take.
const MAX_COMPILED: usize = 1 << 20;
/// Compiled patterns a thread keeps: those of rules are used again and again.
const MAX_KEPT: usize = 128;

pub fn compile(pattern: &str) -> Result<regex::Regex, String> {
    regex::RegexBuilder::new(pattern).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).build().map_err(|e| {
        let said = e.to_string();
        format!("error parsing regexp: {}", said.lines().last().unwrap_or_default().trim_start_matches("error: "))
    })
}

fn with<T>(pattern: &str, then: impl FnOnce(&regex::Regex) -> T) -> Result<T, Error> {
    thread_local! {
        static KEPT: RefCell<HashMap<Box<str>, regex::Regex>> = RefCell::default();
    }
    KEPT.with_borrow_mut(|kept| {
        if !kept.contains_key(pattern) {
            let compiled = match compile(pattern) {
                Ok(compiled) => compiled,
                Err(why) => return fail(why),
            };
            if kept.len() >= MAX_KEPT {
                kept.clear();
            }
            kept.insert(pattern.into(), compiled);
        }
        Ok(then(&kept[pattern]))
    })
}

fn matches<'a>(args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    bool(with(text(args, 1)?, |regex| text(args, 0).map(|t| regex.is_match(t)))??)
}

fn find_all<'a>(args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let limit = if args.len() > 2 { usize::try_from(int(args, 2)?).unwrap_or(usize::MAX) } else { usize::MAX };
    let subject = text(args, 0)?;
    let found = with(text(args, 1)?, |regex| {
        regex.find_iter(subject).take(limit).map(|m| Value::text(m.as_str())).collect::<Vec<_>>()
    })?;
    Ok(Value::list(found))
}

pub const ROWS: &[Row] = &[
    Row("matches", "matches_string", "string.(string) bool", matches),
    Row("matches", "matches", "(string, string) bool", matches),
    Row("find", "string_find_string", "string.(string) string", |a| {
        let subject = text(a, 0)?;
        made(with(text(a, 1)?, |regex| regex.find(subject).map_or("", |m| m.as_str()).to_string())?)
    }),
    Row("findAll", "string_find_all_string", "string.(string) list(string)", find_all),
    Row("findAll", "string_find_all_string_int", "string.(string, int) list(string)", find_all),
];
