//! What expressions cost: at most, before they run, and actually, as they run.
//!
//! Port of the rules of cel-go's estimator and Kubernetes' additions to it. Estimates decide which rules a CRD may have, so
//! they must come out as upstream's to the unit. Here are estimates of the language itself; those of its libraries, and
//! what calls did cost, are below.

mod actual;
mod library;

use std::collections::HashMap;

use crate::ast::{Expr, Fold, Kind, Literal, RESULT};
use crate::check::{Checked, Ref};
use crate::decl::Decl;
use crate::types::Type;

pub use actual::of_call;

const TRAVERSAL: f64 = 0.1;
const REGEX: f64 = 0.25;
/// The longest pattern behind a named format.
const FORMAT_REGEX: f64 = 128.0;
const AUTHORIZATION: u64 = 350_000;

/// From at least to at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    pub min: u64,
    pub max: u64,
}

const UNKNOWN: Range = Range { min: 0, max: u64::MAX };

impl Range {
    pub const fn fixed(n: u64) -> Self {
        Self { min: n, max: n }
    }

    fn plus(self, other: Self) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn times(self, other: Self) -> Self {
        Self { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    fn scaled(self, factor: f64) -> Self {
        let scale = |n: u64| {
            let x = (n as f64 * factor).ceil();
            if x >= 18_446_744_073_709_551_616.0 { u64::MAX } else { x as u64 }
        };
        Self { min: scale(self.min), max: scale(self.max) }
    }

    fn union(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

#[derive(Clone, Copy)]
struct Entries {
    list: bool,
    key: Range,
    value: Range,
}

fn union(a: Option<Entries>, b: Option<Entries>) -> Option<Entries> {
    let (a, b) = (a?, b?);
    Some(Entries { list: a.list, key: a.key.union(b.key), value: a.value.union(b.value) })
}

#[derive(Clone)]
struct Local {
    path: Vec<String>,
    size: Option<Range>,
    entries: Option<Entries>,
}

struct Coster<'c> {
    checked: &'c Checked,
    /// What `self` and `oldSelf` are.
    root: Option<&'c Decl>,
    paths: HashMap<u32, Vec<String>>,
    locals: HashMap<String, Vec<Local>>,
    sizes: HashMap<u32, Range>,
    entries: HashMap<u32, Entries>,
}

struct Estimate {
    cost: Range,
    size: Option<Range>,
}

/// What a checked expression costs over data of the given shape.
pub fn estimate(checked: &Checked, root: Option<&Decl>) -> Range {
    let mut coster = Coster {
        checked,
        root,
        paths: HashMap::new(),
        locals: HashMap::new(),
        sizes: HashMap::new(),
        entries: HashMap::new(),
    };
    coster.cost(&checked.expr)
}

fn is_scalar(ty: &Type) -> bool {
    match ty {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
        other => other.as_optional().is_some_and(is_scalar),
    }
}

impl Coster<'_> {
    fn ty(&self, e: &Expr) -> &Type {
        &self.checked.types[e.id as usize]
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.get(name)?.last()
    }

    fn push(&mut self, name: &str, local: Local) {
        self.locals.entry(name.into()).or_default().push(local);
    }

    fn pop(&mut self, name: &str) {
        if let Some(stack) = self.locals.get_mut(name) {
            stack.pop();
        }
    }

    fn path(&self, e: &Expr) -> Vec<String> {
        if let Some(local) = e.as_ident().and_then(|name| self.local(name)) {
            return local.path.clone();
        }
        self.paths.get(&e.id).cloned().unwrap_or_default()
    }

    fn extended(&self, e: &Expr, step: &str) -> Vec<String> {
        let mut path = self.path(e);
        path.push(step.into());
        path
    }

    /// By the declared shape, for what a path from a variable leads to.
    fn declared(&self, path: &[String]) -> Option<Range> {
        let (_, steps) = path.split_first()?;
        let mut decl = self.root?;
        for step in steps {
            decl = match (step.as_str(), &decl.shape) {
                ("@keys", crate::decl::Shape::Map { .. }) => return Some(Range { min: 0, max: 0 }),
                (step, _) => decl.below(step)?,
            };
        }
        Some(Range { min: 0, max: decl.max_elements as u64 })
    }

    fn size(&mut self, e: &Expr) -> Option<Range> {
        if let Some(size) = self.sizes.get(&e.id) {
            return Some(*size);
        }
        let literal = match &e.kind {
            Kind::Literal(Literal::String(text)) => Some(text.chars().count()),
            Kind::Literal(Literal::Bytes(bytes)) => Some(bytes.len()),
            Kind::Literal(_) => Some(1),
            Kind::List(items) => Some(items.len()),
            Kind::Map(entries) => Some(entries.len()),
            _ => None,
        };
        if let Some(size) = literal {
            return Some(Range::fixed(size as u64));
        }
        if let Some(size) = self.declared(&self.path(e)) {
            self.sizes.insert(e.id, size);
            return Some(size);
        }
        if is_scalar(self.ty(e)) {
            return Some(Range::fixed(1));
        }
        self.local(e.as_ident()?)?.size
    }

    fn size_or_unknown(&mut self, e: &Expr) -> Range {
        self.size(e).unwrap_or(UNKNOWN)
    }

    fn entries(&self, e: &Expr) -> Option<Entries> {
        self.entries.get(&e.id).copied().or_else(|| self.local(e.as_ident()?)?.entries)
    }

    fn keep_entries(&mut self, e: &Expr, entries: Option<Entries>) {
        if let Some(entries) = entries {
            self.entries.insert(e.id, entries);
        }
    }

    fn cost(&mut self, e: &Expr) -> Range {
        match &e.kind {
            Kind::Literal(_) => Range::fixed(0),
            Kind::Ident(name) => {
                let path = match self.local(name) {
                    Some(local) => local.path.clone(),
                    None => vec![name.to_string()],
                };
                self.paths.insert(e.id, path);
                Range::fixed(1)
            }
            Kind::Select { operand, field, test } => self.select(e, operand, field, *test),
            Kind::Call { function, target, args } => self.call(e, function, target.as_deref(), args),
            Kind::List(items) => {
                let (mut sum, mut item) = (Range::fixed(0), Range { min: u64::MAX, max: 0 });
                for (inner, _) in items {
                    sum = sum.plus(self.cost(inner));
                    item = item.union(self.size_or_unknown(inner));
                }
                if items.is_empty() {
                    item.min = 0;
                }
                self.keep_entries(e, Some(Entries { list: true, key: Range::fixed(1), value: item }));
                sum.plus(Range::fixed(10))
            }
            Kind::Map(entries) => {
                let none = Range { min: if entries.is_empty() { 0 } else { u64::MAX }, max: 0 };
                let (mut sum, mut key, mut value) = (Range::fixed(0), none, none);
                for entry in entries {
                    sum = sum.plus(self.cost(&entry.key)).plus(self.cost(&entry.value));
                    key = key.union(self.size_or_unknown(&entry.key));
                    value = value.union(self.size_or_unknown(&entry.value));
                }
                self.keep_entries(e, Some(Entries { list: false, key, value }));
                sum.plus(Range::fixed(30))
            }
            Kind::Struct { fields, .. } => {
                fields.iter().fold(Range::fixed(40), |sum, (_, value, _)| sum.plus(self.cost(value)))
            }
            Kind::Fold(fold) => self.fold(e, fold),
        }
    }

    fn select(&mut self, e: &Expr, operand: &Expr, field: &str, test: bool) -> Range {
        if let Ref::Var(name) = &self.checked.refs[e.id as usize] {
            self.paths.insert(e.id, vec![name.to_string()]);
            return Range::fixed(1);
        }
        let sum = self.cost(operand);
        if test {
            return sum;
        }
        let path = self.extended(operand, field);
        let direct = matches!(self.ty(operand), Type::Map(_) | Type::Struct(_) | Type::Param(_));
        self.paths.insert(e.id, path);
        if direct { sum.plus(Range::fixed(1)) } else { sum }
    }

    fn fold(&mut self, e: &Expr, fold: &Fold) -> Range {
        let mut sum = self.cost(&fold.range);
        sum = sum.plus(self.cost(&fold.init));
        let accu =
            Local { path: self.path(&fold.init), size: self.size(&fold.init), entries: self.entries(&fold.init) };
        self.push(&fold.accu, accu);
        if Expr::is_bind(fold) {
            sum = sum.plus(self.cost(&fold.result));
            self.pop(&fold.accu);
            if let Some(size) = self.size(&fold.result) {
                self.sizes.insert(e.id, size);
            }
            self.keep_entries(e, self.entries(&fold.result));
            return sum;
        }
        let entries = self.entries(&fold.range);
        let list = entries.map_or(matches!(self.ty(&fold.range), Type::List(_)), |e| e.list);
        let (key, value) = if list { ("@indices", "@items") } else { ("@keys", "@values") };
        let local = |this: &Self, step: &str, size: Option<Range>| Local {
            path: this.extended(&fold.range, step),
            size,
            entries: None,
        };
        match &fold.var2 {
            Some(var2) => {
                let (first, second) =
                    (local(self, key, entries.map(|e| e.key)), local(self, value, entries.map(|e| e.value)));
                self.push(&fold.var, first);
                self.push(var2, second);
            }
            None if list => {
                let item = local(self, value, entries.map(|e| e.value));
                self.push(&fold.var, item);
            }
            None => {
                let item = local(self, key, entries.map(|e| e.key));
                self.push(&fold.var, item);
            }
        }
        let looped = self.cost(&fold.cond);
        let step = self.cost(&fold.step);
        self.pop(&fold.var);
        if let Some(var2) = &fold.var2 {
            self.pop(var2);
        }
        sum = sum.plus(self.cost(&fold.result));
        self.pop(&fold.accu);
        let count = self.size_or_unknown(&fold.range);
        sum = sum.plus(count.times(step.plus(looped)));
        match &fold.init.kind {
            Kind::Literal(_) => {
                if let Some(size) = self.size(&fold.init) {
                    self.sizes.insert(e.id, size);
                }
            }
            Kind::List(_) | Kind::Map(_) => {
                self.sizes.insert(e.id, count);
                self.keep_entries(e, self.entries(&fold.step));
            }
            _ => {}
        }
        sum
    }

    fn call(&mut self, e: &Expr, function: &str, target: Option<&Expr>, args: &[Expr]) -> Range {
        if function == "dyn"
            && let [arg] = args
        {
            let cost = self.cost(arg);
            if let Some(size) = self.size(arg) {
                self.sizes.insert(e.id, size);
            }
            self.keep_entries(e, self.entries(arg));
            return cost.plus(Range::fixed(1));
        }
        let costs: Vec<Range> = args.iter().map(|a| self.cost(a)).collect();
        if function == "_?._" {
            return costs.iter().fold(Range::fixed(1), |sum, c| sum.plus(*c));
        }
        let checked = self.checked;
        let Ref::Overloads(overloads) = &checked.refs[e.id as usize] else { return Range::fixed(0) };
        let of_target = target.map_or(Range::fixed(0), |t| self.cost(t));
        let (mut cost, mut size) = (Range { min: u64::MAX, max: 0 }, None::<Range>);
        for overload in overloads {
            let est = self.overload(e, function, overload.id, target, args, &costs);
            cost = cost.union(est.cost);
            if let Some(found) = est.size {
                size = Some(size.map_or(found, |s| s.union(found)));
            }
            if let ("index_list" | "index_map", Some(of)) = (overload.id, args.first()) {
                size = self.entries(of).map(|e| e.value);
                let step = if overload.id == "index_list" { "@items" } else { "@values" };
                let path = self.extended(of, step);
                self.paths.insert(e.id, path);
            }
            if size.is_none() {
                size = self.size(e);
            }
        }
        if let Some(size) = size {
            self.sizes.insert(e.id, size);
        }
        of_target.plus(cost)
    }

    /// A node's own size: what was worked out, else what its shape says.
    fn known(&mut self, e: &Expr) -> Range {
        let path = self.path(e);
        if path.first().is_some_and(|p| p == RESULT) && !self.sizes.contains_key(&e.id) {
            return self.size(e).unwrap_or(UNKNOWN);
        }
        self.size_or_unknown(e)
    }

    fn item_size(&mut self, list: &Expr) -> Range {
        let path = self.path(list);
        if path.is_empty() {
            return UNKNOWN;
        }
        self.declared(&self.extended(list, "@items")).unwrap_or(UNKNOWN)
    }

    fn overload(
        &mut self,
        e: &Expr,
        function: &str,
        id: &str,
        target: Option<&Expr>,
        args: &[Expr],
        costs: &[Range],
    ) -> Estimate {
        let sum = costs.iter().fold(Range::fixed(0), |sum, c| sum.plus(*c));
        if let Some(est) = self.library(function, id, target, args) {
            return Estimate { cost: est.cost.plus(sum), size: est.size };
        }
        let only = |cost: Range| Estimate { cost: cost.plus(sum), size: None };
        match (id, target, args) {
            ("string_format", Some(target), _) => only(self.known(target).scaled(TRAVERSAL)),
            ("string_to_bytes", _, [arg]) => {
                let size = self.known(arg);
                let result = Range { min: size.min, max: size.max.saturating_mul(4) };
                Estimate { cost: size.scaled(TRAVERSAL).plus(sum), size: Some(result) }
            }
            ("bytes_to_string", _, [arg]) => {
                let size = self.known(arg);
                let result = Range { min: size.min / 4, max: size.max };
                Estimate { cost: size.scaled(TRAVERSAL).plus(sum), size: Some(result) }
            }
            ("strings_quote", _, [arg]) => {
                let size = self.known(arg);
                let result =
                    Range { min: size.min.saturating_add(2), max: size.max.saturating_mul(2).saturating_add(2) };
                Estimate { cost: size.scaled(TRAVERSAL).plus(sum), size: Some(result) }
            }
            ("starts_with_string" | "ends_with_string", _, [arg]) => only(self.known(arg).scaled(TRAVERSAL)),
            ("in_list", _, [_, list]) => only(self.known(list)),
            ("matches_string", Some(target), [pattern]) => {
                let text = self.known(target).plus(Range::fixed(1)).scaled(TRAVERSAL);
                only(text.times(self.known(pattern).scaled(REGEX)))
            }
            ("contains_string", Some(target), [part]) => {
                let text = self.known(target).scaled(TRAVERSAL);
                only(text.times(self.known(part).scaled(TRAVERSAL)))
            }
            ("logical_or" | "logical_and", _, [_, _]) => {
                Estimate { cost: Range { min: costs[0].min, max: costs[0].plus(costs[1]).max }, size: None }
            }
            ("conditional", _, [_, yes, no]) => {
                let size = self.known(yes).union(self.known(no));
                self.keep_entries(e, union(self.entries(yes), self.entries(no)));
                Estimate { cost: costs[0].plus(costs[1].union(costs[2])), size: Some(size) }
            }
            ("add_string" | "add_bytes" | "add_list", _, [left, right]) => {
                let size = self.known(left).plus(self.known(right));
                self.keep_entries(e, union(self.entries(left), self.entries(right)));
                let cost = if id == "add_list" { Range::fixed(1) } else { size.scaled(TRAVERSAL) };
                Estimate { cost: cost.plus(sum), size: Some(size) }
            }
            (id, _, [left, right]) if compares_contents(id) => {
                let max = self.known(left).max.min(self.known(right).max);
                only(Range { min: u64::from(max > 0), max }.scaled(TRAVERSAL))
            }
            _ => only(Range::fixed(1)),
        }
    }
}

/// Whether an overload compares two contents, as far as the shorter goes.
fn compares_contents(id: &str) -> bool {
    let ordered = ["less_equals_", "less_", "greater_equals_", "greater_"].iter().find_map(|by| id.strip_prefix(by));
    matches!(id, "equals" | "not_equals") || ordered.is_some_and(|of| matches!(of, "string" | "bytes"))
}
