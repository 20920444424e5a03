//! Label selectors over symbols.
//!
//! Compiled once from the API's form; matching allocates nothing. A selector the API would refuse selects nothing.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::symbol::{Labels, Symbol};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    pub key: Symbol,
    pub operator: Operator,
    pub values: Box<[Symbol]>,
}

impl Requirement {
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(self.key);
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.contains(&v)),
            Operator::NotIn => !value.is_some_and(|v| self.values.contains(&v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// All requirements must hold; none at all matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Selector {
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// `key=value` for each pair.
    pub fn equal<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut out = Self::default();
        for (key, value) in pairs {
            out.require_one(Symbol::of(key), Symbol::of(value), true);
        }
        out
    }

    /// A `metav1.LabelSelector`; an absent one selects nothing.
    pub fn compile(selector: Option<&LabelSelector>) -> Self {
        let Some(selector) = selector else { return Self::nothing() };
        let labels = selector.match_labels.iter().flatten().map(|(k, v)| (k.as_str(), v.as_str()));
        let mut out = Self::equal(labels);
        for expression in selector.match_expressions.iter().flatten() {
            let operator = match expression.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => return Self::nothing(),
            };
            let values = expression.values.iter().flatten().map(|v| Symbol::of(v)).collect();
            out.requirements.push(Requirement { key: Symbol::of(&expression.key), operator, values });
        }
        out
    }

    /// Adds `key in (value)`, or `key notin (value)`.
    pub fn require_one(&mut self, key: Symbol, value: Symbol, equal: bool) {
        let operator = if equal { Operator::In } else { Operator::NotIn };
        self.requirements.push(Requirement { key, operator, values: [value].into() });
    }

    /// Both selectors must hold.
    pub fn and(&mut self, other: &Self) {
        self.nothing |= other.nothing;
        self.requirements.extend(other.requirements.iter().cloned());
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }
}
