//! Questions to the authorizer, built step by step and asked with `check`.

use std::sync::Arc;

use super::opaque::Opaque;
use super::{Row, bool, made, no_overload, text};
use crate::eval::{Error, fail};
use crate::value::Value;

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// Instead of the request's user: a service account's namespace and name.
    pub service_account: Option<(String, String)>,
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
    pub verb: String,
}

/// What was answered.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    pub error: String,
}

/// Who answers.
pub trait Authorize {
    fn authorize(&self, check: &Check) -> Decision;
}

/// The next step of a question: `from` one kind of check to another, with one more thing said.
fn step<'a>(
    args: &[Value<'a>],
    say: fn(&mut Check, &str),
    to: fn(&'a dyn Authorize, Arc<Check>) -> Opaque<'a>,
) -> Result<Value<'a>, Error> {
    let Some(Value::Opaque(
        Opaque::Authorizer(who, check) | Opaque::GroupCheck(who, check) | Opaque::ResourceCheck(who, check),
    )) = args.first()
    else {
        return no_overload();
    };
    let mut check = (**check).clone();
    say(&mut check, text(args, 1)?);
    Ok(Value::Opaque(to(*who, Arc::new(check))))
}

fn is_name(text: &str, max: usize, dots: bool) -> bool {
    let part = |p: &str| {
        let bytes = p.as_bytes();
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        matches!((bytes.first(), bytes.last()), (Some(a), Some(b)) if fits(*a) && fits(*b))
            && bytes.iter().all(|b| fits(*b) || *b == b'-')
    };
    text.len() <= max && if dots { text.split('.').all(part) } else { part(text) }
}

fn ask<'a>(args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let Some(Value::Opaque(Opaque::PathCheck(who, check) | Opaque::ResourceCheck(who, check))) = args.first() else {
        return no_overload();
    };
    let mut check = (**check).clone();
    check.verb = text(args, 1)?.into();
    Ok(Value::Opaque(Opaque::Decision(Arc::new(who.authorize(&check)))))
}

fn decision<'v>(args: &'v [Value<'_>]) -> Result<&'v Decision, Error> {
    match args.first() {
        Some(Value::Opaque(Opaque::Decision(decision))) => Ok(decision),
        _ => no_overload(),
    }
}

macro_rules! kinds {
    (authorizer) => {
        "kubernetes.authorization.Authorizer"
    };
    (path) => {
        "kubernetes.authorization.PathCheck"
    };
    (group) => {
        "kubernetes.authorization.GroupCheck"
    };
    (resource) => {
        "kubernetes.authorization.ResourceCheck"
    };
    (decision) => {
        "kubernetes.authorization.Decision"
    };
}

macro_rules! sign {
    ($from:ident ($args:literal) $to:ident) => {
        concat!(kinds!($from), ".(", $args, ") ", kinds!($to))
    };
    ($from:ident ($args:literal) = $to:literal) => {
        concat!(kinds!($from), ".(", $args, ") ", $to)
    };
}

pub const ROWS: &[Row] = &[
    Row("path", "authorizer_path", sign!(authorizer ("string") path), |a| {
        if text(a, 1)?.is_empty() {
            return fail("path must not be empty");
        }
        step(a, |c, said| c.path = said.into(), Opaque::PathCheck)
    }),
    Row("group", "authorizer_group", sign!(authorizer ("string") group), |a| {
        step(a, |c, said| c.group = said.into(), Opaque::GroupCheck)
    }),
    Row("serviceAccount", "authorizer_serviceaccount", sign!(authorizer ("string, string") authorizer), |a| {
        let (namespace, name) = (text(a, 1)?, text(a, 2)?);
        if !is_name(namespace, 63, false) {
            return fail("Invalid service account namespace");
        }
        if !is_name(name, 253, true) {
            return fail("Invalid service account name");
        }
        let Some(Value::Opaque(Opaque::Authorizer(who, _))) = a.first() else { return no_overload() };
        let check = Check { service_account: Some((namespace.into(), name.into())), ..Check::default() };
        Ok(Value::Opaque(Opaque::Authorizer(*who, Arc::new(check))))
    }),
    Row("resource", "groupcheck_resource", sign!(group ("string") resource), |a| {
        step(a, |c, said| c.resource = said.into(), Opaque::ResourceCheck)
    }),
    Row("subresource", "resourcecheck_subresource", sign!(resource ("string") resource), |a| {
        step(a, |c, said| c.subresource = said.into(), Opaque::ResourceCheck)
    }),
    Row("namespace", "resourcecheck_namespace", sign!(resource ("string") resource), |a| {
        step(a, |c, said| c.namespace = said.into(), Opaque::ResourceCheck)
    }),
    Row("name", "resourcecheck_name", sign!(resource ("string") resource), |a| {
        step(a, |c, said| c.name = said.into(), Opaque::ResourceCheck)
    }),
    Row("fieldSelector", "authorizer_fieldselector", sign!(resource ("string") resource), |a| {
        step(a, |c, said| c.field_selector = said.into(), Opaque::ResourceCheck)
    }),
    Row("labelSelector", "authorizer_labelselector", sign!(resource ("string") resource), |a| {
        step(a, |c, said| c.label_selector = said.into(), Opaque::ResourceCheck)
    }),
    Row("check", "pathcheck_check", sign!(path ("string") decision), ask),
    Row("check", "resourcecheck_check", sign!(resource ("string") decision), ask),
    Row("allowed", "decision_allowed", sign!(decision("") = "bool"), |a| bool(decision(a)?.allowed)),
    Row("reason", "decision_reason", sign!(decision("") = "string"), |a| made(decision(a)?.reason.clone())),
    Row("errored", "decision_errored", sign!(decision("") = "bool"), |a| bool(!decision(a)?.error.is_empty())),
    Row("error", "decision_error", sign!(decision("") = "string"), |a| made(decision(a)?.error.clone())),
];
