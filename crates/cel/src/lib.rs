//! Kubernetes' expression language: CEL with static types, costs, and the libraries Kubernetes gives it.
//!
//! Follows `k8s.io/apiserver/pkg/cel` at v1.37 over cel-go: what compiles there compiles here and costs the same by
//! estimate, complaints are worded alike, and evaluation is stopped at the same limits. An [`Env`] says which variables
//! there are; [`Env::compile`] makes a [`Program`]; [`Program::eval`] runs it over JSON seen in place.
//!
//! Knows nothing of admission, definitions or requests; whoever uses it declares what it puts in.

#![forbid(unsafe_code)]

pub mod ast;
pub mod check;
pub mod cost;
pub mod decl;
pub mod device;
pub mod eval;
pub mod functions;
mod issue;
mod parse;
pub mod types;
pub mod value;

use std::sync::Arc;

pub use decl::{Decl, Structs};
pub use eval::{Error, PER_CALL_LIMIT, Variables};
pub use functions::{Authorize, Check, Decision, Library, opaque::Opaque};
pub use issue::{Issue, Issues};
pub use types::{NoStructs, Provider, Type};
pub use value::Value;

/// Variables, their structs, and the functions there are.
pub struct Env<'e> {
    pub vars: Vec<(Arc<str>, Type)>,
    pub provider: &'e dyn Provider,
    pub library: Library,
}

/// An expression that may be run.
#[derive(Debug)]
pub struct Program {
    checked: check::Checked,
}

impl<'e> Env<'e> {
    pub fn new(provider: &'e dyn Provider) -> Self {
        Self { vars: Vec::new(), provider, library: Library::Base }
    }

    /// With one more variable.
    pub fn var(mut self, name: &str, ty: Type) -> Self {
        self.vars.push((name.into(), ty));
        self
    }

    pub fn library(mut self, library: Library) -> Self {
        self.library = library;
        self
    }

    pub fn compile(&self, text: &str) -> Result<Program, Issues> {
        let wrong = |issues| Issues::new(text, issues);
        let parsed = parse::parse(text, self.library == Library::Bindings).map_err(wrong)?;
        let scope =
            check::Scope { vars: &self.vars, provider: self.provider, registry: functions::registry(self.library) };
        let checked = check::check(parsed.expr, parsed.ids, &scope).map_err(wrong)?;
        Ok(Program { checked })
    }
}

impl Program {
    /// The type of what it comes to.
    pub fn output(&self) -> &Type {
        &self.checked.output
    }

    /// Whether it asks for a variable.
    pub fn uses(&self, var: &str) -> bool {
        self.checked.refs.iter().any(|r| matches!(r, check::Ref::Var(name) if **name == *var))
    }

    /// The fields of a variable it may ask for.
    pub fn fields_of(&self, var: &str) -> Vec<&str> {
        let mut found = Vec::new();
        fields_of(&self.checked.expr, var, &mut found);
        found
    }

    /// What it costs at most over data of the shape that `self` and `oldSelf` have.
    pub fn estimate(&self, root: Option<&Decl>) -> cost::Range {
        cost::estimate(&self.checked, root)
    }

    /// Its value, and what that cost.
    pub fn eval<'a>(&self, vars: &dyn Variables<'a>, limit: u64) -> (Result<Value<'a>, Error>, u64) {
        eval::run(&self.checked, vars, limit)
    }
}

fn fields_of<'e>(expr: &'e ast::Expr, var: &str, found: &mut Vec<&'e str>) {
    use ast::Kind;
    let mut below = |inner: &'e ast::Expr| fields_of(inner, var, found);
    match &expr.kind {
        Kind::Literal(_) | Kind::Ident(_) => {}
        Kind::Select { operand, field, .. } => {
            below(operand);
            if operand.as_ident() == Some(var) && !found.contains(&&**field) {
                found.push(field);
            }
        }
        Kind::Call { function, target, args } => {
            target.as_deref().into_iter().chain(args).for_each(below);
            // `claims.?name`
            if &**function == "_?._"
                && let [operand, name] = &args[..]
                && operand.as_ident() == Some(var)
                && let Kind::Literal(ast::Literal::String(field)) = &name.kind
                && !found.contains(&&**field)
            {
                found.push(field);
            }
        }
        Kind::List(items) => items.iter().for_each(|i| below(&i.0)),
        Kind::Map(entries) => entries.iter().for_each(|e| {
            below(&e.key);
            below(&e.value);
        }),
        Kind::Struct { fields, .. } => fields.iter().for_each(|f| below(&f.1)),
        Kind::Fold(fold) => {
            [&fold.range, &fold.init, &fold.cond, &fold.step, &fold.result].into_iter().for_each(below);
        }
    }
}

#[cfg(test)]
mod tests;
