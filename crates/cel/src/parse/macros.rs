//! Macros, written out as folds.
//!
//! The trees are cel-go's, node for node: the estimated cost of an expression, which decides whether a definition is
//! taken, is the cost of these.

use std::sync::Arc;

use super::{Parse, Parser};
use crate::ast::{Entry, Expr, Fold, Kind, Literal, RESULT};

/// Stands for a variable nobody names.
const UNUSED: &str = "#unused";

impl Parser {
    pub(super) fn global_call(&mut self, at: u32, name: &Arc<str>, mut args: Vec<Expr>) -> Parse<Expr> {
        if &**name == "has" && args.len() == 1 {
            let place = args[0].at;
            return match args.remove(0) {
                Expr { kind: Kind::Select { operand, field, test: false }, .. } => {
                    self.node(at, Kind::Select { operand, field, test: true })
                }
                _ => self.fail(place, "invalid argument to has() macro"),
            };
        }
        self.node(at, Kind::Call { function: name.clone(), target: None, args })
    }

    pub(super) fn member_call(&mut self, at: u32, name: &str, target: Expr, mut args: Vec<Expr>) -> Parse<Expr> {
        match (name, args.len()) {
            ("all" | "exists" | "exists_one" | "map" | "filter", 2)
            | ("map", 3)
            | ("all" | "exists" | "exists_one" | "existsOne", 3)
            | ("transformList" | "transformMap" | "transformMapEntry", 3 | 4) => self.fold(at, name, target, args),
            ("optMap" | "optFlatMap", 2) => self.opt_map(at, name, target, args),
            ("sortBy", 2) => self.sort_by(at, target, args),
            ("bind", 3) if self.bindings && target.as_ident() == Some("cel") => {
                let (body, value) = (args.remove(2), args.remove(1));
                let var = self.simple(&args[0])?;
                self.bind(at, var, value, body)
            }
            _ => self.node(at, Kind::Call { function: name.into(), target: Some(Box::new(target)), args }),
        }
    }

    fn simple(&mut self, expr: &Expr) -> Parse<Arc<str>> {
        match &expr.kind {
            Kind::Ident(name) => Ok(name.clone()),
            _ => self.fail(expr.at, "argument must be a simple name"),
        }
    }

    fn literal(&mut self, at: u32, value: Literal) -> Parse<Expr> {
        self.node(at, Kind::Literal(value))
    }

    fn ident(&mut self, at: u32, name: &str) -> Parse<Expr> {
        self.node(at, Kind::Ident(name.into()))
    }

    fn result(&mut self, at: u32) -> Parse<Expr> {
        self.ident(at, RESULT)
    }

    fn fold(&mut self, at: u32, name: &str, range: Expr, mut args: Vec<Expr>) -> Parse<Expr> {
        let pairs = args.len() >= 3 && name != "map";
        let var = self.simple(&args[0])?;
        let var2 = if pairs { Some(self.simple(&args[1])?) } else { None };
        if var2.as_ref() == Some(&var) {
            let (place, message) = (args[1].at, format!("duplicate iteration variable name: {var}"));
            return self.fail(place, message);
        }
        args.drain(..if pairs { 2 } else { 1 });
        let last = args.pop().ok_or(())?;
        let filter = args.pop();
        let truth = self.literal(at, Literal::Bool(true))?;
        let (init, cond, step, result);
        match name {
            "all" | "exists" => {
                let all = name == "all";
                init = self.literal(at, Literal::Bool(all))?;
                let mut so_far = self.result(at)?;
                if !all {
                    so_far = self.call(at, "!_", vec![so_far])?;
                }
                cond = self.call(at, "@not_strictly_false", vec![so_far])?;
                let accu = self.result(at)?;
                step = self.call(at, if all { "_&&_" } else { "_||_" }, vec![accu, last])?;
                result = self.result(at)?;
            }
            "exists_one" | "existsOne" => {
                init = self.literal(at, Literal::Int(0))?;
                cond = truth;
                let (accu, one, same) = (self.result(at)?, self.literal(at, Literal::Int(1))?, self.result(at)?);
                let more = self.call(at, "_+_", vec![accu, one])?;
                step = self.call(at, "_?_:_", vec![last, more, same])?;
                let (accu, one) = (self.result(at)?, self.literal(at, Literal::Int(1))?);
                result = self.call(at, "_==_", vec![accu, one])?;
            }
            "transformMap" | "transformMapEntry" => {
                init = self.node(at, Kind::Map(Vec::new()))?;
                cond = truth;
                let accu = self.result(at)?;
                let insert = if name == "transformMap" {
                    let key = self.ident(at, &var)?;
                    vec![accu, key, last]
                } else {
                    vec![accu, last]
                };
                let grown = self.call(at, "cel.@mapInsert", insert)?;
                step = self.when(at, filter, grown)?;
                result = self.result(at)?;
            }
            // map, filter, transformList
            _ => {
                init = self.node(at, Kind::List(Vec::new()))?;
                cond = truth;
                let (item, filter) =
                    if name == "filter" { (self.ident(at, &var)?, Some(last)) } else { (last, filter) };
                let one = self.node(at, Kind::List(vec![(item, false)]))?;
                let accu = self.result(at)?;
                let grown = self.call(at, "_+_", vec![accu, one])?;
                step = self.when(at, filter, grown)?;
                result = self.result(at)?;
            }
        }
        self.node(at, Kind::Fold(Box::new(Fold { var, var2, range, accu: RESULT.into(), init, cond, step, result })))
    }

    fn when(&mut self, at: u32, filter: Option<Expr>, grown: Expr) -> Parse<Expr> {
        let Some(filter) = filter else { return Ok(grown) };
        let same = self.result(at)?;
        self.call(at, "_?_:_", vec![filter, grown, same])
    }

    fn bind(&mut self, at: u32, var: Arc<str>, value: Expr, body: Expr) -> Parse<Expr> {
        let (range, cond, step) =
            (self.node(at, Kind::List(Vec::new()))?, self.literal(at, Literal::Bool(false))?, self.ident(at, &var)?);
        let fold = Fold { var: UNUSED.into(), var2: None, range, accu: var, init: value, cond, step, result: body };
        self.node(at, Kind::Fold(Box::new(fold)))
    }

    fn opt_map(&mut self, at: u32, name: &str, target: Expr, mut args: Vec<Expr>) -> Parse<Expr> {
        let body = args.remove(1);
        let var = self.simple(&args[0])?;
        let again = self.copy(&target)?;
        let there = self.method(at, "hasValue", target)?;
        let value = self.method(at, "value", again)?;
        let mut bound = self.bind(at, var, value, body)?;
        if name == "optMap" {
            bound = self.call(at, "optional.of", vec![bound])?;
        }
        let none = self.call(at, "optional.none", Vec::new())?;
        self.call(at, "_?_:_", vec![there, bound, none])
    }

    fn method(&mut self, at: u32, name: &str, target: Expr) -> Parse<Expr> {
        self.node(at, Kind::Call { function: name.into(), target: Some(Box::new(target)), args: Vec::new() })
    }

    fn sort_by(&mut self, at: u32, target: Expr, args: Vec<Expr>) -> Parse<Expr> {
        const INPUT: &str = "@__sortBy_input__";
        let (input, list) = (self.ident(at, INPUT)?, self.ident(at, INPUT)?);
        let keys = self.fold(at, "map", input, args)?;
        let function = "@sortByAssociatedKeys".into();
        let sorted = self.node(at, Kind::Call { function, target: Some(Box::new(list)), args: vec![keys] })?;
        self.bind(at, INPUT.into(), target, sorted)
    }

    /// The same tree under ids of its own.
    fn copy(&mut self, expr: &Expr) -> Parse<Expr> {
        let kind = match &expr.kind {
            Kind::Select { operand, field, test } => {
                Kind::Select { operand: Box::new(self.copy(operand)?), field: field.clone(), test: *test }
            }
            Kind::Call { function, target, args } => Kind::Call {
                function: function.clone(),
                target: match target {
                    Some(target) => Some(Box::new(self.copy(target)?)),
                    None => None,
                },
                args: args.iter().map(|a| self.copy(a)).collect::<Parse<_>>()?,
            },
            Kind::List(items) => Kind::List(items.iter().map(|(e, o)| Ok((self.copy(e)?, *o))).collect::<Parse<_>>()?),
            Kind::Map(entries) => Kind::Map(
                entries
                    .iter()
                    .map(|e| Ok(Entry { key: self.copy(&e.key)?, value: self.copy(&e.value)?, optional: e.optional }))
                    .collect::<Parse<_>>()?,
            ),
            Kind::Struct { name, fields } => Kind::Struct {
                name: name.clone(),
                fields: fields.iter().map(|(n, e, o)| Ok((n.clone(), self.copy(e)?, *o))).collect::<Parse<_>>()?,
            },
            Kind::Fold(fold) => Kind::Fold(Box::new(Fold {
                var: fold.var.clone(),
                var2: fold.var2.clone(),
                range: self.copy(&fold.range)?,
                accu: fold.accu.clone(),
                init: self.copy(&fold.init)?,
                cond: self.copy(&fold.cond)?,
                step: self.copy(&fold.step)?,
                result: self.copy(&fold.result)?,
            })),
            same => same.clone(),
        };
        self.node(expr.at, kind)
    }
}
