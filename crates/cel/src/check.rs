//! Types of expressions, worked out before anything runs.
//!
//! Follows cel-go's checker: overloads are chosen by unification, literals of mixed types are refused, and complaints are
//! worded and placed as there.

use std::collections::HashMap;
use std::sync::Arc;

use crate::ast::{Expr, Fold, Kind, Literal};
use crate::functions::{Overload, Registry, time};
use crate::issue::Issue;
use crate::types::{OPTIONAL, Provider, Type};

/// What a name or call was found to be.
#[derive(Clone, Debug, Default)]
pub enum Ref {
    #[default]
    None,
    /// A variable, perhaps with dots in its name.
    Var(Arc<str>),
    /// The name of a type.
    Type(Arc<str>),
    Overloads(Vec<&'static Overload>),
}

/// A tree with its types.
#[derive(Debug)]
pub struct Checked {
    pub expr: Expr,
    /// By node id.
    pub types: Vec<Type>,
    pub refs: Vec<Ref>,
    pub output: Type,
}

pub struct Scope<'e> {
    pub vars: &'e [(Arc<str>, Type)],
    pub provider: &'e dyn Provider,
    pub registry: &'static Registry,
}

struct Checker<'e> {
    scope: &'e Scope<'e>,
    locals: Vec<(Arc<str>, Type)>,
    types: Vec<Type>,
    refs: Vec<Ref>,
    bound: HashMap<Arc<str>, Type>,
    fresh: usize,
    issues: Vec<Issue>,
}

/// Names of types that expressions may use as values.
const TYPE_NAMES: [&str; 16] = [
    "bool",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "google.protobuf.Duration",
    "google.protobuf.Timestamp",
    "kubernetes.Quantity",
    "net.IP",
    "net.CIDR",
    "kubernetes.URL",
    "kubernetes.Semver",
    "null_type",
    "optional_type",
    "type",
];

fn type_named(name: &str) -> Option<Type> {
    Some(match name {
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "null_type" => Type::Null,
        "google.protobuf.Duration" => Type::Duration,
        "google.protobuf.Timestamp" => Type::Timestamp,
        "optional_type" => Type::optional(Type::Dyn),
        "type" => Type::kind(Type::Dyn),
        other if TYPE_NAMES.contains(&other) => Type::parse(other),
        _ => return None,
    })
}

pub fn check(mut expr: Expr, ids: u32, scope: &Scope<'_>) -> Result<Checked, Vec<Issue>> {
    let mut checker = Checker {
        scope,
        locals: Vec::new(),
        types: vec![Type::Dyn; ids as usize],
        refs: vec![Ref::None; ids as usize],
        bound: HashMap::new(),
        fresh: 0,
        issues: Vec::new(),
    };
    let output = checker.expr(&mut expr);
    if checker.issues.is_empty() {
        literals(&expr, &mut checker.issues);
    }
    if !checker.issues.is_empty() {
        return Err(checker.issues);
    }
    let output = checker.resolve(&output, true);
    let types = std::mem::take(&mut checker.types);
    let types = types.iter().map(|t| checker.resolve(t, true)).collect();
    Ok(Checked { expr, types, refs: checker.refs, output })
}

impl Checker<'_> {
    fn complain(&mut self, at: u32, message: String) -> Type {
        self.issues.push(Issue { at, message });
        Type::Error
    }

    /// The type with what is known of its parameters put in; the unknown become dyn at the end.
    fn resolve(&self, ty: &Type, last: bool) -> Type {
        match ty {
            Type::Param(name) => match self.bound.get(name) {
                Some(found) => self.resolve(found, last),
                None if last => Type::Dyn,
                None => ty.clone(),
            },
            Type::List(of) => Type::list(self.resolve(of, last)),
            Type::Map(of) => Type::map(self.resolve(&of.0, last), self.resolve(&of.1, last)),
            Type::Opaque(name, of) if !of.is_empty() => {
                Type::Opaque(name.clone(), of.iter().map(|t| self.resolve(t, last)).collect())
            }
            Type::Kind(of) => Type::kind(self.resolve(of, last)),
            other => other.clone(),
        }
    }

    fn expr(&mut self, e: &mut Expr) -> Type {
        let ty = match &mut e.kind {
            Kind::Literal(value) => match value {
                Literal::Null => Type::Null,
                Literal::Bool(_) => Type::Bool,
                Literal::Int(_) => Type::Int,
                Literal::Uint(_) => Type::Uint,
                Literal::Double(_) => Type::Double,
                Literal::String(_) => Type::String,
                Literal::Bytes(_) => Type::Bytes,
            },
            Kind::Ident(name) => {
                let name = name.clone();
                match self.name(e.id, &name) {
                    Some(ty) => ty,
                    None => self.complain(e.at, format!("undeclared reference to '{name}' (in container '')")),
                }
            }
            Kind::Select { .. } => self.select(e),
            Kind::Call { .. } => self.call(e),
            Kind::List(_) => self.list(e),
            Kind::Map(_) => self.map(e),
            Kind::Struct { .. } => self.message(e),
            Kind::Fold(fold) => self.fold(fold),
        };
        self.types[e.id as usize] = ty.clone();
        ty
    }

    fn local(&self, name: &str) -> Option<&Type> {
        self.locals.iter().rev().find(|(n, _)| **n == *name).map(|(_, t)| t)
    }

    fn name(&mut self, id: u32, name: &Arc<str>) -> Option<Type> {
        if let Some(ty) = self.local(name) {
            return Some(ty.clone());
        }
        if let Some((_, ty)) = self.scope.vars.iter().find(|(n, _)| n == name) {
            self.refs[id as usize] = Ref::Var(name.clone());
            return Some(ty.clone());
        }
        let ty = type_named(name)?;
        self.refs[id as usize] = Ref::Type(ty.name().into());
        Some(Type::kind(ty))
    }

    /// A name with dots that is declared as a whole.
    fn dotted(&mut self, e: &Expr) -> Option<Type> {
        let name = e.qualified()?;
        if self.local(name.split('.').next()?).is_some() {
            return None;
        }
        self.name(e.id, &name.into())
    }

    fn select(&mut self, e: &mut Expr) -> Type {
        if let Some(ty) = self.dotted(e) {
            return ty;
        }
        let Kind::Select { operand, field, test } = &mut e.kind else { return Type::Error };
        let (field, test) = (field.clone(), *test);
        let of = self.expr(operand);
        let of = self.resolve(&of, false);
        let ty = self.field(e.at, &of, &field, false);
        if test { Type::Bool } else { ty }
    }

    fn field(&mut self, at: u32, of: &Type, field: &str, optional: bool) -> Type {
        if let Some(inner) = of.as_optional() {
            let inner = self.resolve(inner, false);
            let ty = self.field(at, &inner, field, true);
            return Type::optional(ty);
        }
        match of {
            Type::Map(of) => of.1.clone(),
            Type::Struct(name) => match self.scope.provider.field(name, field) {
                Some(ty) => ty,
                None => self.complain(at, format!("undefined field '{field}'")),
            },
            Type::Param(name) => {
                self.bound.insert(name.clone(), Type::Dyn);
                Type::Dyn
            }
            Type::Dyn | Type::Error => Type::Dyn,
            other => {
                let _ = optional;
                let shown = self.resolve(other, false);
                self.complain(at, format!("type '{shown}' does not support field selection"))
            }
        }
    }

    fn call(&mut self, e: &mut Expr) -> Type {
        let id = e.id;
        let Kind::Call { function, target, args } = &mut e.kind else { return Type::Error };
        // A function's name may have dots: its target is then no value.
        if let Some(of) = target.as_deref()
            && let Some(prefix) = of.qualified()
            && self.local(prefix.split('.').next().unwrap_or_default()).is_none()
        {
            let whole: Arc<str> = format!("{prefix}.{function}").into();
            if self.scope.registry.get(&whole).iter().any(|o| !o.member) {
                *function = whole;
                *target = None;
            }
        }
        let function = function.clone();
        if &*function == "_?._" && args.len() == 2 {
            let of = self.expr(&mut args[0]);
            self.types[args[1].id as usize] = Type::String;
            let Kind::Literal(Literal::String(field)) = &args[1].kind else {
                return self.complain(e.at, "unsupported optional field selection".into());
            };
            let (of, field) = (self.resolve(&of, false), field.clone());
            let inner = of.as_optional().cloned().unwrap_or(of);
            let ty = self.field(e.at, &inner, &field, true);
            return Type::optional(ty);
        }
        let member = target.is_some();
        let mut types = Vec::with_capacity(args.len() + 1);
        if let Some(target) = target {
            types.push(self.expr(target));
        }
        for arg in args.iter_mut() {
            types.push(self.expr(arg));
        }
        let known = self.scope.registry.get(&function);
        if known.is_empty() {
            return self.complain(e.at, format!("undeclared reference to '{function}' (in container '')"));
        }
        let mut found: Vec<&'static Overload> = Vec::new();
        let mut result: Option<Type> = None;
        for overload in known.iter().filter(|o| o.member == member && o.args.len() == types.len()) {
            let mut names = HashMap::new();
            let wanted: Vec<Type> = overload.args.iter().map(|t| self.freshen(t, &mut names)).collect();
            let gives = self.freshen(&overload.result, &mut names);
            let before = self.bound.clone();
            if !types.iter().zip(&wanted).all(|(t, w)| self.assignable(w, t)) {
                self.bound = before;
                continue;
            }
            found.push(overload);
            let gives = self.resolve(&gives, false);
            result = Some(match result {
                Some(earlier) if earlier.is_dyn() || earlier != gives => Type::Dyn,
                _ => gives,
            });
        }
        let Some(result) = result else {
            let shown: Vec<String> = types.iter().map(|t| self.resolve(t, true).to_string()).collect();
            let applied = match (member, shown.split_first()) {
                (true, Some((target, rest))) => format!("{target}.({})", rest.join(", ")),
                _ => format!("({})", shown.join(", ")),
            };
            return self.complain(e.at, format!("found no matching overload for '{function}' applied to '{applied}'"));
        };
        self.refs[id as usize] = Ref::Overloads(found);
        result
    }

    fn freshen(&mut self, ty: &Type, names: &mut HashMap<Arc<str>, Type>) -> Type {
        match ty {
            Type::Param(name) => {
                if let Some(fresh) = names.get(name) {
                    return fresh.clone();
                }
                self.fresh += 1;
                let fresh = Type::Param(format!("_var{}", self.fresh).into());
                names.insert(name.clone(), fresh.clone());
                fresh
            }
            Type::List(of) => Type::list(self.freshen(of, names)),
            Type::Map(of) => Type::map(self.freshen(&of.0, names), self.freshen(&of.1, names)),
            Type::Opaque(name, of) if !of.is_empty() => {
                Type::Opaque(name.clone(), of.iter().map(|t| self.freshen(t, names)).collect())
            }
            Type::Kind(of) => Type::kind(self.freshen(of, names)),
            other => other.clone(),
        }
    }

    fn mentions(&self, ty: &Type, name: &str) -> bool {
        match ty {
            Type::Param(other) => {
                **other == *name || self.bound.get(other).is_some_and(|inner| self.mentions(inner, name))
            }
            Type::List(of) | Type::Kind(of) => self.mentions(of, name),
            Type::Map(of) => self.mentions(&of.0, name) || self.mentions(&of.1, name),
            Type::Opaque(_, of) => of.iter().any(|t| self.mentions(t, name)),
            _ => false,
        }
    }

    /// Whether a `found` may be where a `wanted` is asked for; parameters are bound on the way.
    fn assignable(&mut self, wanted: &Type, found: &Type) -> bool {
        match (wanted, found) {
            (Type::Param(a), Type::Param(b)) if a == b => true,
            (Type::Param(name), other) | (other, Type::Param(name)) => {
                if let Some(bound) = self.bound.get(name).cloned() {
                    let ok = if matches!(wanted, Type::Param(n) if n == name) {
                        self.assignable(&bound, other)
                    } else {
                        self.assignable(other, &bound)
                    };
                    // A parameter that met dyn stays open to anything.
                    if ok && other.is_dyn() {
                        self.bound.insert(name.clone(), Type::Dyn);
                    }
                    return ok;
                }
                if self.mentions(other, name) {
                    return false;
                }
                self.bound.insert(name.clone(), other.clone());
                true
            }
            (a, b) if a.is_dyn() || b.is_dyn() => true,
            (Type::List(a), Type::List(b)) => self.assignable(a, b),
            (Type::Map(a), Type::Map(b)) => self.assignable(&a.0, &b.0) && self.assignable(&a.1, &b.1),
            (Type::Kind(_), Type::Kind(_)) => true,
            (Type::Opaque(a, of_a), Type::Opaque(b, of_b)) => {
                a == b && of_a.len() == of_b.len() && of_a.iter().zip(of_b.iter()).all(|(a, b)| self.assignable(a, b))
            }
            (Type::Struct(_) | Type::Duration | Type::Timestamp, Type::Null)
            | (Type::Null, Type::Struct(_) | Type::Duration | Type::Timestamp) => true,
            (Type::Opaque(name, _), Type::Null) | (Type::Null, Type::Opaque(name, _)) => &**name != OPTIONAL,
            (a, b) => a == b,
        }
    }

    /// One type for items of a literal.
    fn join(&mut self, at: u32, so_far: Option<Type>, next: Type) -> Type {
        let Some(so_far) = so_far else { return next };
        if self.assignable(&so_far, &next) {
            // The more general one tells more of what may come.
            return if next.is_dyn() { next } else { so_far };
        }
        self.mismatch(at, &so_far, &next);
        Type::Dyn
    }

    fn mismatch(&mut self, at: u32, wanted: &Type, found: &Type) -> Type {
        let (wanted, found) = (self.resolve(wanted, true), self.resolve(found, true));
        self.complain(at, format!("expected type '{wanted}' but found '{found}'"))
    }

    fn unwrapped(&mut self, at: u32, ty: Type, optional: bool) -> Type {
        if !optional {
            return ty;
        }
        let ty = self.resolve(&ty, false);
        match ty.as_optional() {
            Some(inner) => inner.clone(),
            None if ty.is_dyn() => Type::Dyn,
            None => self.mismatch(at, &Type::optional(ty.clone()), &ty),
        }
    }

    fn list(&mut self, e: &mut Expr) -> Type {
        let Kind::List(items) = &mut e.kind else { return Type::Error };
        let mut item = None;
        for (expr, optional) in items {
            let ty = self.expr(expr);
            let ty = self.unwrapped(expr.at, ty, *optional);
            item = Some(self.join(expr.at, item, ty));
        }
        Type::list(item.unwrap_or_else(|| self.open()))
    }

    fn open(&mut self) -> Type {
        self.fresh += 1;
        Type::Param(format!("_var{}", self.fresh).into())
    }

    fn map(&mut self, e: &mut Expr) -> Type {
        let Kind::Map(entries) = &mut e.kind else { return Type::Error };
        let (mut key, mut value) = (None, None);
        for entry in entries {
            let ty = self.expr(&mut entry.key);
            key = Some(self.join(entry.key.at, key, ty));
            let ty = self.expr(&mut entry.value);
            let ty = self.unwrapped(entry.value.at, ty, entry.optional);
            value = Some(self.join(entry.value.at, value, ty));
        }
        let key = key.unwrap_or_else(|| self.open());
        Type::map(key, value.unwrap_or_else(|| self.open()))
    }

    fn message(&mut self, e: &mut Expr) -> Type {
        let at = e.at;
        let Kind::Struct { name, fields } = &mut e.kind else { return Type::Error };
        let name = name.clone();
        let known = self.scope.provider.constructible(&name);
        for (field, value, optional) in fields {
            let found = self.expr(value);
            let found = self.unwrapped(value.at, found, *optional);
            if !known {
                continue;
            }
            match self.scope.provider.field(&name, field) {
                Some(wanted) if !self.assignable(&wanted, &found) => {
                    let (wanted, found) = (self.resolve(&wanted, true), self.resolve(&found, true));
                    let message =
                        format!("expected type of field '{field}' is '{wanted}' but provided type is '{found}'");
                    self.complain(value.at, message);
                }
                Some(_) => {}
                None => {
                    self.complain(value.at, format!("undefined field '{field}'"));
                }
            }
        }
        if !known {
            return self.complain(at, format!("undeclared reference to '{name}' (in container '')"));
        }
        Type::Struct(name)
    }

    fn fold(&mut self, fold: &mut Fold) -> Type {
        let range = self.expr(&mut fold.range);
        let init = self.expr(&mut fold.init);
        let range = self.resolve(&range, false);
        let (first, second) = match &range {
            Type::List(item) if fold.var2.is_some() => (Type::Int, (**item).clone()),
            Type::List(item) => ((**item).clone(), Type::Dyn),
            Type::Map(of) => (of.0.clone(), of.1.clone()),
            Type::Dyn | Type::Error => (Type::Dyn, Type::Dyn),
            Type::Param(name) => {
                self.bound.insert(name.clone(), Type::Dyn);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.complain(fold.range.at, message);
                (Type::Error, Type::Error)
            }
        };
        let depth = self.locals.len();
        self.locals.push((fold.accu.clone(), init.clone()));
        self.locals.push((fold.var.clone(), first));
        if let Some(var2) = &fold.var2 {
            self.locals.push((var2.clone(), second));
        }
        if Expr::is_bind(fold) {
            // A bound name is only named: its step is the name itself.
            self.types[fold.cond.id as usize] = Type::Bool;
            self.types[fold.step.id as usize] = init;
        } else {
            let cond = self.expr(&mut fold.cond);
            if !self.assignable(&Type::Bool, &cond) {
                self.mismatch(fold.cond.at, &Type::Bool, &cond);
            }
            let step = self.expr(&mut fold.step);
            if !self.assignable(&init, &step) {
                self.mismatch(fold.step.at, &init, &step);
            }
        }
        self.locals.truncate(depth + 1);
        let result = self.expr(&mut fold.result);
        self.locals.truncate(depth);
        self.resolve(&result, false)
    }
}

/// Literal arguments that can only fail are refused before they do.
fn literals(e: &Expr, issues: &mut Vec<Issue>) {
    let mut below = |expr: &Expr| literals(expr, issues);
    match &e.kind {
        Kind::Literal(_) | Kind::Ident(_) => {}
        Kind::Select { operand, .. } => below(operand),
        Kind::List(items) => items.iter().for_each(|i| below(&i.0)),
        Kind::Map(entries) => entries.iter().for_each(|e| {
            below(&e.key);
            below(&e.value);
        }),
        Kind::Struct { fields, .. } => fields.iter().for_each(|f| below(&f.1)),
        Kind::Fold(fold) => {
            [&fold.range, &fold.init, &fold.cond, &fold.step, &fold.result].into_iter().for_each(below);
        }
        Kind::Call { function, target, args } => {
            target.iter().for_each(|t| below(t));
            args.iter().for_each(&mut below);
            let last = args.last();
            let text = last.and_then(|arg| match &arg.kind {
                Kind::Literal(Literal::String(text)) => Some((arg.at, text)),
                _ => None,
            });
            let Some((at, text)) = text else { return };
            let wrong = match &**function {
                "duration" if target.is_none() => time::parse_duration(text).is_none().then_some("duration"),
                "timestamp" if target.is_none() => time::parse_timestamp(text).is_none().then_some("timestamp"),
                "matches" => crate::functions::regex::compile(text).is_err().then_some("matches"),
                _ => None,
            };
            if let Some(function) = wrong {
                issues.push(Issue { at, message: format!("invalid {function} argument") });
            }
        }
    }
}
