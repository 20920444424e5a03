//! Expressions as trees: what the parser makes, macros already written out.
//!
//! Every node has an id, an index into the tables that the checker fills, and the place it came from. Heights and counts
//! are bounded where nodes are made ([`crate::parse`]), so every walk over a tree may recurse.

use std::sync::Arc;

/// A node.
#[derive(Clone, Debug)]
pub struct Expr {
    pub id: u32,
    /// Characters before it in the text.
    pub at: u32,
    /// Nodes on the longest way down.
    pub height: u32,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Literal(Literal),
    Ident(Arc<str>),
    Select {
        operand: Box<Expr>,
        field: Arc<str>,
        /// Of `has()`: whether the field is there.
        test: bool,
    },
    Call {
        function: Arc<str>,
        target: Option<Box<Expr>>,
        args: Vec<Expr>,
    },
    /// Items; `true` for those that may be missing (`[?a]`).
    List(Vec<(Expr, bool)>),
    Map(Vec<Entry>),
    Struct {
        name: Arc<str>,
        fields: Vec<(Arc<str>, Expr, bool)>,
    },
    Fold(Box<Fold>),
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub key: Expr,
    pub value: Expr,
    pub optional: bool,
}

/// A comprehension: all macros over lists and maps are one.
#[derive(Clone, Debug)]
pub struct Fold {
    pub var: Arc<str>,
    pub var2: Option<Arc<str>>,
    pub range: Expr,
    pub accu: Arc<str>,
    pub init: Expr,
    pub cond: Expr,
    pub step: Expr,
    pub result: Expr,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

/// The accumulator of a macro; no text can name it.
pub const RESULT: &str = "@result";

impl Expr {
    pub fn as_ident(&self) -> Option<&str> {
        match &self.kind {
            Kind::Ident(name) => Some(name),
            _ => None,
        }
    }

    /// `a.b.c`, if the expression is nothing else.
    pub fn qualified(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.to_string()),
            Kind::Select { operand, field, test: false } => Some(format!("{}.{field}", operand.qualified()?)),
            _ => None,
        }
    }

    /// Whether a fold only names a value (`cel.bind` and the optional macros).
    pub fn is_bind(fold: &Fold) -> bool {
        matches!(&fold.range.kind, Kind::List(items) if items.is_empty())
            && matches!(fold.cond.kind, Kind::Literal(Literal::Bool(false)))
            && &*fold.accu != RESULT
    }
}
