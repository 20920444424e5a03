//! Tokens to trees.
//!
//! Text, nesting and the number of nodes are bounded, so no later walk can run away.

mod lexer;
mod macros;

use std::sync::Arc;

use crate::ast::{Entry, Expr, Kind, Literal};
use crate::issue::Issue;
use lexer::{Spanned, Token};

/// Characters of one expression, as cel-go.
const MAX_CHARS: usize = 100_000;
/// Height of one tree, as cel-go: also keeps every walk over it within a thread's stack.
const MAX_HEIGHT: u32 = 250;
/// Brackets within brackets: each is a row of frames of this parser.
const MAX_NESTING: u32 = 100;
/// Nodes of one expression with its macros written out; the optional macros copy their targets.
const MAX_NODES: u32 = 200_000;

/// Words that name nothing, beside those of the grammar itself.
pub(crate) const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];
const EXPECTED: &str =
    "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";

/// What a parse leaves: the tree and how many ids it used.
#[derive(Debug)]
pub struct Parsed {
    pub expr: Expr,
    pub ids: u32,
}

pub struct Parser {
    tokens: Vec<Spanned>,
    at: usize,
    next_id: u32,
    depth: u32,
    issues: Vec<Issue>,
    /// Whether `cel.bind` is a macro here.
    bindings: bool,
}

type Parse<T> = Result<T, ()>;

pub fn parse(text: &str, bindings: bool) -> Result<Parsed, Vec<Issue>> {
    let size = text.chars().count();
    if size > MAX_CHARS {
        let message = format!("expression code point size exceeds limit: size: {size}, limit {MAX_CHARS}");
        return Err(vec![Issue { at: 0, message }]);
    }
    let tokens = lexer::tokens(text)?;
    let mut parser = Parser { tokens, at: 0, next_id: 0, depth: 0, issues: Vec::new(), bindings };
    let expr = parser.expr().and_then(|expr| {
        if *parser.peek() != Token::End {
            let found = &parser.tokens[parser.at];
            let message = format!("Syntax error: extraneous input '{}' expecting <EOF>", found.text);
            parser.issues.push(Issue { at: found.at, message });
            return Err(());
        }
        Ok(expr)
    });
    match expr {
        Ok(expr) if parser.issues.is_empty() => Ok(Parsed { expr, ids: parser.next_id }),
        _ => Err(parser.issues),
    }
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)].token
    }

    fn place(&self) -> u32 {
        self.tokens[self.at.min(self.tokens.len() - 1)].at
    }

    fn take(&mut self, sign: &str) -> Option<u32> {
        if matches!(self.peek(), Token::Sign(found) if *found == sign) {
            let at = self.place();
            self.at += 1;
            return Some(at);
        }
        None
    }

    fn fail<T>(&mut self, at: u32, message: impl Into<String>) -> Parse<T> {
        self.issues.push(Issue { at, message: message.into() });
        Err(())
    }

    fn unexpected<T>(&mut self, expected: &str) -> Parse<T> {
        let at = self.at.min(self.tokens.len() - 1);
        let (place, text) = (self.tokens[at].at, self.tokens[at].text.clone());
        self.fail(place, format!("Syntax error: mismatched input '{text}' expecting {expected}"))
    }

    fn need(&mut self, sign: &str) -> Parse<u32> {
        match self.take(sign) {
            Some(at) => Ok(at),
            None => self.unexpected(&format!("'{sign}'")),
        }
    }

    /// A new node; too high a tree is refused here.
    fn node(&mut self, at: u32, kind: Kind) -> Parse<Expr> {
        let below = match &kind {
            Kind::Literal(_) | Kind::Ident(_) => 0,
            Kind::Select { operand, .. } => operand.height,
            Kind::Call { target, args, .. } => {
                target.iter().map(|t| t.height).chain(args.iter().map(|a| a.height)).max().unwrap_or(0)
            }
            Kind::List(items) => items.iter().map(|i| i.0.height).max().unwrap_or(0),
            Kind::Map(entries) => entries.iter().map(|e| e.key.height.max(e.value.height)).max().unwrap_or(0),
            Kind::Struct { fields, .. } => fields.iter().map(|f| f.1.height).max().unwrap_or(0),
            Kind::Fold(fold) => [&fold.range, &fold.init, &fold.cond, &fold.step, &fold.result]
                .map(|e| e.height)
                .into_iter()
                .max()
                .unwrap_or(0),
        };
        if below >= MAX_HEIGHT {
            return self.fail(at, format!("expression recursion limit exceeded: {MAX_HEIGHT}"));
        }
        let id = self.id(at)?;
        Ok(Expr { id, at, height: below + 1, kind })
    }

    fn id(&mut self, at: u32) -> Parse<u32> {
        if self.next_id >= MAX_NODES {
            return self.fail(at, format!("expression with its macros has more than {MAX_NODES} nodes"));
        }
        self.next_id += 1;
        Ok(self.next_id - 1)
    }

    fn call(&mut self, at: u32, function: &str, args: Vec<Expr>) -> Parse<Expr> {
        self.node(at, Kind::Call { function: function.into(), target: None, args })
    }

    fn expr(&mut self) -> Parse<Expr> {
        self.depth += 1;
        if self.depth > MAX_NESTING {
            let at = self.place();
            return self.fail(at, format!("expression recursion limit exceeded: {MAX_NESTING}"));
        }
        let condition = self.balanced("||")?;
        let out = match self.take("?") {
            None => condition,
            Some(at) => {
                let yes = self.balanced("||")?;
                self.need(":")?;
                let no = self.expr()?;
                self.call(at, "_?_:_", vec![condition, yes, no])?
            }
        };
        self.depth -= 1;
        Ok(out)
    }

    /// A row of `||` or `&&`, as a tree of little height.
    fn balanced(&mut self, sign: &'static str) -> Parse<Expr> {
        let next = |p: &mut Self| if sign == "||" { p.balanced("&&") } else { p.binary(1) };
        let mut terms = vec![next(self)?];
        let mut places = Vec::new();
        while let Some(at) = self.take(sign) {
            places.push(at);
            terms.push(next(self)?);
        }
        self.balance(if sign == "||" { "_||_" } else { "_&&_" }, terms, &places)
    }

    fn balance(&mut self, function: &str, mut terms: Vec<Expr>, places: &[u32]) -> Parse<Expr> {
        match terms.len() {
            0 => Err(()),
            1 => Ok(terms.remove(0)),
            count => {
                let middle = count / 2;
                let right = terms.split_off(middle);
                let left = self.balance(function, terms, &places[..middle - 1])?;
                let right = self.balance(function, right, &places[middle..])?;
                self.call(places[middle - 1], function, vec![left, right])
            }
        }
    }

    /// Operators that bind tighter than `&&`, by how tight they bind: one frame of the stack for all of them.
    fn binary(&mut self, tightness: u8) -> Parse<Expr> {
        const SIGNS: [(&str, &str, u8); 12] = [
            ("==", "_==_", 1),
            ("!=", "_!=_", 1),
            ("<=", "_<=_", 1),
            (">=", "_>=_", 1),
            ("<", "_<_", 1),
            (">", "_>_", 1),
            ("in", "@in", 1),
            ("+", "_+_", 2),
            ("-", "_-_", 2),
            ("*", "_*_", 3),
            ("/", "_/_", 3),
            ("%", "_%_", 3),
        ];
        let mut left = self.unary()?;
        loop {
            let found = SIGNS.iter().filter(|s| s.2 >= tightness).find_map(|s| Some((s, self.take(s.0)?)));
            let Some(((_, function, tight), at)) = found else { return Ok(left) };
            let right = self.binary(tight + 1)?;
            left = self.call(at, function, vec![left, right])?;
        }
    }

    fn unary(&mut self) -> Parse<Expr> {
        for (sign, function) in [("!", "!_"), ("-", "-_")] {
            let Some(at) = self.take(sign) else { continue };
            let mut count = 1;
            let negated_number = |p: &Self| sign == "-" && matches!(p.peek(), Token::Number(_));
            while !negated_number(self) && self.take(sign).is_some() {
                count += 1;
            }
            if sign == "-" && count % 2 == 1 {
                match self.peek().clone() {
                    Token::Number(text) => {
                        self.at += 1;
                        let number = self.whole(at, &text, true)?;
                        return self.members(number);
                    }
                    Token::Literal(Literal::Double(value)) => {
                        self.at += 1;
                        let number = self.node(at, Kind::Literal(Literal::Double(-value)))?;
                        return self.members(number);
                    }
                    _ => {}
                }
            }
            let operand = self.member()?;
            return if count % 2 == 0 { Ok(operand) } else { self.call(at, function, vec![operand]) };
        }
        self.member()
    }

    fn whole(&mut self, at: u32, text: &str, negative: bool) -> Parse<Expr> {
        let magnitude = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
            Some(hex) => i128::from_str_radix(hex, 16),
            None => text.parse::<i128>(),
        };
        let value = magnitude.ok().map(|m| if negative { -m } else { m }).and_then(|m| i64::try_from(m).ok());
        match value {
            Some(value) => self.node(at, Kind::Literal(Literal::Int(value))),
            None => self.fail(at, "invalid int literal"),
        }
    }

    fn member(&mut self) -> Parse<Expr> {
        let primary = self.primary()?;
        self.members(primary)
    }

    /// `.field`, `.call()`, `[index]`, as many as there are.
    fn members(&mut self, mut operand: Expr) -> Parse<Expr> {
        loop {
            if let Some(at) = self.take(".") {
                let optional = self.take("?").is_some();
                let Token::Ident(name) = self.peek().clone() else { return self.unexpected("IDENTIFIER") };
                self.at += 1;
                operand = match (optional, self.take("(")) {
                    (true, _) => {
                        let name = self.node(at, Kind::Literal(Literal::String(name)))?;
                        self.call(at, "_?._", vec![operand, name])?
                    }
                    (false, Some(open)) => {
                        let args = self.arguments(")")?;
                        self.member_call(open, &name, operand, args)?
                    }
                    (false, None) => {
                        self.node(at, Kind::Select { operand: Box::new(operand), field: name, test: false })?
                    }
                };
            } else if let Some(at) = self.take("[") {
                let function = if self.take("?").is_some() { "_[?_]" } else { "_[_]" };
                let index = self.expr()?;
                self.need("]")?;
                operand = self.call(at, function, vec![operand, index])?;
            } else if matches!(self.peek(), Token::Sign("{"))
                && let Some(name) = operand.qualified()
            {
                let at = self.place();
                self.at += 1;
                operand = self.message(at, &name)?;
            } else {
                return Ok(operand);
            }
        }
    }

    fn arguments(&mut self, close: &str) -> Parse<Vec<Expr>> {
        let mut args = Vec::new();
        if self.take(close).is_some() {
            return Ok(args);
        }
        loop {
            args.push(self.expr()?);
            if self.take(",").is_none() {
                self.need(close)?;
                return Ok(args);
            }
        }
    }

    fn message(&mut self, at: u32, name: &str) -> Parse<Expr> {
        let mut fields = Vec::new();
        while self.take("}").is_none() {
            let optional = self.take("?").is_some();
            let Token::Ident(field) = self.peek().clone() else {
                return self.unexpected("{'}', ',', '?', IDENTIFIER}");
            };
            self.at += 1;
            self.need(":")?;
            fields.push((field, self.expr()?, optional));
            if self.take(",").is_none() {
                self.need("}")?;
                break;
            }
        }
        self.node(at, Kind::Struct { name: name.into(), fields })
    }

    fn primary(&mut self) -> Parse<Expr> {
        let at = self.place();
        match self.peek().clone() {
            Token::Literal(value) => {
                self.at += 1;
                self.node(at, Kind::Literal(value))
            }
            Token::Number(text) => {
                self.at += 1;
                self.whole(at, &text, false)
            }
            Token::Ident(name) => self.named(at, name),
            Token::Sign(".") => {
                // A leading dot says "from the root"; there is no other container.
                self.at += 1;
                match self.peek().clone() {
                    Token::Ident(name) => self.named(at, name),
                    _ => self.unexpected("IDENTIFIER"),
                }
            }
            Token::Sign("(") => {
                self.at += 1;
                let inner = self.expr()?;
                self.need(")")?;
                Ok(inner)
            }
            Token::Sign("[") => {
                self.at += 1;
                let mut items = Vec::new();
                while self.take("]").is_none() {
                    let optional = self.take("?").is_some();
                    items.push((self.expr()?, optional));
                    if self.take(",").is_none() {
                        self.need("]")?;
                        break;
                    }
                }
                self.node(at, Kind::List(items))
            }
            Token::Sign("{") => {
                self.at += 1;
                let mut entries = Vec::new();
                while self.take("}").is_none() {
                    let optional = self.take("?").is_some();
                    let key = self.expr()?;
                    self.need(":")?;
                    let value = self.expr()?;
                    entries.push(Entry { key, value, optional });
                    if self.take(",").is_none() {
                        self.need("}")?;
                        break;
                    }
                }
                self.node(at, Kind::Map(entries))
            }
            _ => self.unexpected(EXPECTED),
        }
    }

    fn named(&mut self, at: u32, name: Arc<str>) -> Parse<Expr> {
        self.at += 1;
        if RESERVED.contains(&&*name) {
            return self.fail(at, format!("reserved identifier: {name}"));
        }
        match self.take("(") {
            Some(open) => {
                let args = self.arguments(")")?;
                self.global_call(open, &name, args)
            }
            None => self.node(at, Kind::Ident(name)),
        }
    }
}
