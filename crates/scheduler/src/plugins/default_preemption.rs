//! Making room for a pod by removing less important ones.

use std::collections::HashMap;
use std::sync::Arc;

use client::Change;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;

use crate::selector::Selector;
use crate::symbol::Symbol;
use crate::world::view;

/// A disruption budget.
#[derive(Clone, Debug, PartialEq)]
struct Budget {
    namespace: Symbol,
    selector: Selector,
    allowed: i64,
    /// Names of pods whose disruption is counted already.
    disrupted: Box<[Box<str>]>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BudgetView {
    spec: BudgetSpec,
    status: BudgetStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BudgetSpec {
    selector: Option<LabelSelector>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BudgetStatus {
    disruptions_allowed: i64,
    disrupted_pods: Option<HashMap<Box<str>, serde_json::Value>>,
}

/// The disruption budgets there are.
#[derive(Default)]
pub struct Budgets(HashMap<Arc<str>, Budget>);

impl Budgets {
    pub fn take(&mut self, change: &Change) {
        let Some((object, budget)) = change.new.as_ref().and_then(|o| Some((o, view::<BudgetView>(o)?))) else {
            self.0.remove(&change.key);
            return;
        };
        let budget = Budget {
            namespace: Symbol::of(&object.meta.namespace),
            selector: Selector::compile(budget.spec.selector.as_ref()),
            allowed: budget.status.disruptions_allowed,
            disrupted: budget.status.disrupted_pods.into_iter().flatten().map(|(name, _)| name).collect(),
        };
        self.0.insert(change.key.clone(), budget);
    }
}
