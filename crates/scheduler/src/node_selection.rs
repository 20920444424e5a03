//! Which nodes a pod (or a volume) may or would like to be on: `nodeSelector` and node affinity, compiled.
//!
//! Follows `k8s.io/component-helpers/scheduling/corev1/nodeaffinity`: an empty term matches nothing, terms are or-ed, and
//! what cannot be parsed matches nothing.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PreferredSchedulingTerm, TopologySelectorTerm,
};

use crate::node::Node;
use crate::selector::{Operator, Requirement, Selector};
use crate::symbol::Symbol;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Condition {
    Label(Requirement),
    GreaterThan(Symbol, i64),
    LessThan(Symbol, i64),
    /// The node's name is (true) or is not (false) this.
    Name(Symbol, bool),
    Never,
}

impl Condition {
    fn of_label(api: &NodeSelectorRequirement) -> Self {
        let values = api.values.as_deref().unwrap_or_default();
        let key = Symbol::of(&api.key);
        let number = || values.first().filter(|_| values.len() == 1).and_then(|v| v.parse().ok());
        let operator = match api.operator.as_str() {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => return number().map_or(Self::Never, |n| Self::GreaterThan(key, n)),
            "Lt" => return number().map_or(Self::Never, |n| Self::LessThan(key, n)),
            _ => return Self::Never,
        };
        Self::Label(Requirement { key, operator, values: values.iter().map(|v| Symbol::of(v)).collect() })
    }

    fn of_field(api: &NodeSelectorRequirement) -> Self {
        match (api.key.as_str(), api.operator.as_str(), api.values.as_deref()) {
            ("metadata.name", "In", Some([name])) => Self::Name(Symbol::of(name), true),
            ("metadata.name", "NotIn", Some([name])) => Self::Name(Symbol::of(name), false),
            _ => Self::Never,
        }
    }

    fn holds(&self, node: &Node) -> bool {
        match self {
            Self::Label(requirement) => requirement.matches(&node.labels),
            Self::GreaterThan(key, than) => node.number(*key).is_some_and(|n| n > *than),
            Self::LessThan(key, than) => node.number(*key).is_some_and(|n| n < *than),
            Self::Name(name, equal) => (node.symbol == *name) == *equal,
            Self::Never => false,
        }
    }
}

/// Conditions that must all hold; none at all never match.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Term(Box<[Condition]>);

impl Term {
    fn of(api: &NodeSelectorTerm) -> Self {
        let labels = api.match_expressions.iter().flatten().map(Condition::of_label);
        Self(labels.chain(api.match_fields.iter().flatten().map(Condition::of_field)).collect())
    }

    /// The node it names, if it does.
    fn name(&self) -> Option<Symbol> {
        self.0.iter().find_map(|c| if let Condition::Name(name, true) = c { Some(*name) } else { None })
    }

    fn matches(&self, node: &Node) -> bool {
        !self.0.is_empty() && self.0.iter().all(|c| c.holds(node))
    }
}

/// What a node must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeSelection {
    selector: Selector,
    /// One must match, if given.
    terms: Option<Box<[Term]>>,
    /// The nodes that can match at all, where every term names some.
    names: Option<Box<[Symbol]>>,
}

impl NodeSelection {
    pub fn new(selector: &BTreeMap<Box<str>, Box<str>>, affinity: Option<&NodeSelector>) -> Self {
        let terms: Option<Box<[Term]>> = affinity.map(|a| a.node_selector_terms.iter().map(Term::of).collect());
        let names = terms.as_ref().filter(|t| !t.is_empty()).and_then(|t| t.iter().map(Term::name).collect());
        Self { selector: Selector::equal(selector.iter().map(|(k, v)| (&**k, &**v))), terms, names }
    }

    /// A storage class's `allowedTopologies`.
    pub fn of_topologies(terms: &[TopologySelectorTerm]) -> Self {
        let term = |t: &TopologySelectorTerm| {
            let conditions = t.match_label_expressions.iter().flatten().map(|e| {
                let values = e.values.iter().map(|v| Symbol::of(v)).collect();
                Condition::Label(Requirement { key: Symbol::of(&e.key), operator: Operator::In, values })
            });
            Term(conditions.collect())
        };
        Self { terms: Some(terms.iter().map(term).collect()), ..Self::default() }
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_none() && self.selector.is_everything()
    }

    /// The one node's name, where it is asked for by name.
    pub fn only_name(&self) -> Option<Symbol> {
        if let Some([name]) = self.names.as_deref() { Some(*name) } else { None }
    }

    /// Whether it is other nodes that are asked for by name.
    pub fn names_others(&self, node: Symbol) -> bool {
        self.names.as_ref().is_some_and(|names| !names.contains(&node))
    }

    /// The one value a node's label must have, where only that will do.
    pub fn only_value(&self, key: Symbol) -> Option<Symbol> {
        let [term] = self.terms.as_deref()? else { return None };
        term.0.iter().find_map(|c| match c {
            Condition::Label(Requirement { key: of, operator: Operator::In, values }) if *of == key => {
                match &values[..] {
                    [value] => Some(*value),
                    _ => None,
                }
            }
            _ => None,
        })
    }

    pub fn matches(&self, node: &Node) -> bool {
        self.selector.matches(&node.labels) && self.terms.as_ref().is_none_or(|t| t.iter().any(|t| t.matches(node)))
    }
}

/// What a node would better be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Preference {
    pub weight: i64,
    term: Term,
}

impl Preference {
    pub fn all(api: Option<&[PreferredSchedulingTerm]>) -> Box<[Self]> {
        let of = |p: &PreferredSchedulingTerm| Self { weight: i64::from(p.weight), term: Term::of(&p.preference) };
        api.into_iter().flatten().filter(|p| p.weight != 0).map(of).collect()
    }

    pub fn matches(&self, node: &Node) -> bool {
        self.term.matches(node)
    }
}
