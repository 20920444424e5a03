//! Disruption budgets, quotas and limit ranges.

use std::collections::HashSet;

use meta::quantity::Quantity;
use meta::{FieldError, Value};
use serde_json::json;

use crate::cells::{age, name, quantity};
use crate::defaults;
use crate::strategy::{Context, Strategy};
use crate::validate::conditions::conditions;
use crate::validate::workloads::{at_most_all, int_or_percent};
use crate::validate::{At, Errors, IMMUTABLE, formats, resources, selectors};
use meta::Tree;

kinds! {
    PodDisruptionBudget: "Name|Min Available|Max Unavailable|Allowed Disruptions#|Age";
    ResourceQuota: "Name|Request|Limit|Age";
    LimitRange: "Name|Created At";
}

const BUDGET_COUNTS: [&str; 4] = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];

/// `v1beta1` had no other word for a selector of all pods, nor `v1` one for none: `{}` meant none there and means all here.
const EMPTY_SELECTOR: &str = "pdb.kubernetes.io/deprecated-v1beta1-empty-selector-match";

impl Strategy for PodDisruptionBudget {
    fn past_versions(&self) -> &'static [&'static str] {
        &["v1beta1"]
    }

    fn upgrade(&self, object: &mut Value) {
        let Some(selector) = object.at_mut("spec.selector") else { return };
        let of = |operator: &str| json!({"matchExpressions": [{"key": EMPTY_SELECTOR, "operator": operator}]});
        if *selector == json!({}) {
            *selector = of("Exists");
        } else if *selector == of("DoesNotExist") {
            *selector = json!({});
        }
    }

    fn default(&self, object: &mut Value) {
        defaults::zero_counts(object, &BUDGET_COUNTS);
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        defaults::zero_counts(object, &BUDGET_COUNTS);
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        let bounds = ["minAvailable", "maxUnavailable"].map(|f| spec.child(f));
        if bounds.iter().all(At::there) {
            errors.invalid(&spec, "minAvailable and maxUnavailable cannot be both set");
        }
        for bound in &bounds {
            int_or_percent(bound, &mut errors);
            at_most_all(bound, &mut errors);
        }
        selectors::label_selector(&spec.child("selector"), &mut errors);
        errors.may_one_of(&spec.child("unhealthyPodEvictionPolicy"), &["AlwaysAllow", "IfHealthyBudget"]);
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        if cx.subresource != "status" {
            return self.validate_create(cx, object);
        }
        let (status, mut errors) = (At::new(object.at("status"), "status"), Errors::default());
        for field in BUDGET_COUNTS {
            errors.not_negative(&status.child(field));
        }
        conditions(&status.child("conditions"), &mut errors);
        errors.0
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let bound = |field: &str| match object["spec"].at(field) {
            Value::Null => "N/A".into(),
            Value::String(text) => Value::from(text.as_str()),
            number => number.to_string().into(),
        };
        let allowed = object.int("status.disruptionsAllowed");
        vec![name(object), bound("minAvailable"), bound("maxUnavailable"), allowed.into(), age(object, now)]
    }
}

const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

/// Whether a scope says anything about a resource: the scopes are about pods, and that of best effort only counts them.
fn scope_fits(scope: &str, resource: &str) -> bool {
    const OF_PODS: [&str; 10] = [
        "pods",
        "cpu",
        "memory",
        "ephemeral-storage",
        "requests.cpu",
        "requests.memory",
        "requests.ephemeral-storage",
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
    ];
    match scope {
        "BestEffort" => resource == "pods",
        _ => OF_PODS.contains(&resource),
    }
}

impl Strategy for ResourceQuota {
    fn default(&self, object: &mut Value) {
        defaults::zero_counts(object, &[]);
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        defaults::zero_counts(object, &[]);
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        for (resource, value) in spec.child("hard").entries() {
            resources::quota_name(&value, resource, &mut errors);
            resources::amount(&value, resource, &mut errors);
        }
        let scopes = spec.child("scopes");
        let has = |scope: &str| scopes.items().any(|s| s.str() == scope);
        for scope in scopes.items() {
            if !SCOPES.contains(&scope.str()) {
                errors.invalid(&scopes, "unsupported scope");
            }
            for _ in spec.value.map("hard").keys().filter(|r| !r.contains('/') && !scope_fits(scope.str(), r)) {
                errors.invalid(&scopes, "unsupported scope applied to resource");
            }
        }
        if (has("BestEffort") && has("NotBestEffort")) || (has("Terminating") && has("NotTerminating")) {
            errors.invalid(&scopes, "conflicting scopes");
        }
        let list = spec.child("scopeSelector.matchExpressions");
        // Upstream says of all of them where the list is.
        for expression in list.items().map(|item| At { path: list.path.clone(), ..item }) {
            let scope = expression.child("scopeName");
            if !SCOPES.contains(&scope.str()) {
                errors.invalid(&scope, "unsupported scope");
            }
            let values = expression.child("values");
            match expression.value.text("operator") {
                "In" | "NotIn" if values.value.list("").is_empty() => {
                    errors.required(
                        &values,
                        "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
                    );
                }
                "Exists" | "DoesNotExist" if !values.value.list("").is_empty() => {
                    errors.invalid(
                        &values,
                        "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
                    );
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                _ => errors.invalid(&expression.child("operator"), "not a valid selector operator"),
            }
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        if cx.subresource == "status" {
            return Vec::new();
        }
        let mut errors = Errors(self.validate_create(cx, object));
        let scopes = |v: &Value| {
            v.list("spec.scopes").iter().filter_map(|s| s.as_str().map(String::from)).collect::<HashSet<_>>()
        };
        if scopes(object) != scopes(old) {
            errors.invalid(&At::root(object).child("spec.scopes"), IMMUTABLE);
        }
        errors.0
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        false
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let (hard, used) = (object.map("status.hard"), object.map("status.used"));
        let side = |limits: bool| {
            let of = hard.iter().filter(|(name, _)| name.starts_with("limits.") == limits);
            let used = |name: &str| used.get(name).map_or("0".to_string(), quantity);
            Value::from(
                of.map(|(name, hard)| format!("{name}: {}/{}", used(name), quantity(hard)))
                    .collect::<Vec<_>>()
                    .join(", "),
            )
        };
        vec![name(object), side(false), side(true), age(object, now)]
    }
}

/// Copies into one list what is only in another.
fn fill(item: &mut Value, from: &str, to: &str) {
    let amounts = item.map(from).clone();
    if !amounts.is_empty() {
        let target = item.dig(to);
        for (name, amount) in amounts {
            target.entry(name).or_insert(amount);
        }
    }
}

/// Lists of a limit, the smaller before the larger, and how each is called in messages.
const ORDER: &[(&str, &str, &str, &str, &str)] = &[
    ("min", "max", "min", "min value", "max value"),
    ("min", "defaultRequest", "defaultRequest", "min value", "default request value"),
    ("defaultRequest", "max", "defaultRequest", "default request value", "max value"),
    ("defaultRequest", "default", "defaultRequest", "default request value", "default limit value"),
    ("min", "default", "default", "min value", "default value"),
    ("default", "max", "default", "default value", "max value"),
];

fn check_limit(limit: &At<'_>, errors: &mut Errors) {
    let quantity = |list: &str, name: &str| limit.value.map(list).get(name).and_then(|v| Quantity::from_value(v).ok());
    let kind = limit.value.text("type");
    for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        let at = limit.child(list);
        if kind == "Pod" && matches!(list, "default" | "defaultRequest") && !at.value.map("").is_empty() {
            errors.forbidden(&at, "may not be specified when `type` is 'Pod'");
        }
        resources::list(&at, errors);
    }
    let lists = ["max", "min", "default", "defaultRequest"];
    let names: HashSet<&String> = lists.iter().flat_map(|list| limit.value.map(list).keys()).collect();
    for name in names {
        for (smaller, larger, at, smaller_name, larger_name) in ORDER {
            // What a pod may not have is not compared either.
            if kind == "Pod" && (smaller.starts_with("default") || larger.starts_with("default")) {
                continue;
            }
            if let (Some(a), Some(b)) = (quantity(smaller, name), quantity(larger, name))
                && a > b
            {
                let at = At {
                    value: limit.value.map(at).get(name).unwrap_or(&Value::Null),
                    path: limit.path.child(at).key(name),
                };
                errors.invalid(&at, format!("{smaller_name} {a} is greater than {larger_name} {b}"));
            }
        }
    }
    for (_, ratio) in limit.child("maxLimitRequestRatio").entries() {
        if let Ok(value) = Quantity::from_value(ratio.value)
            && value < Quantity::from_int(1)
        {
            errors.invalid(&ratio, format!("ratio {value} is less than 1"));
        }
    }
    if kind == "PersistentVolumeClaim" && quantity("min", "storage").is_none() && quantity("max", "storage").is_none() {
        errors.required(
            &limit.child("limits"),
            "either minimum or maximum storage value is required, but neither was provided",
        );
    }
}

impl Strategy for LimitRange {
    fn default(&self, object: &mut Value) {
        for item in object.at_mut("spec").map(|s| s.list_mut("limits")).unwrap_or_default() {
            if item.text("type") == "Container" {
                fill(item, "max", "default");
                fill(item, "default", "defaultRequest");
                fill(item, "min", "defaultRequest");
            }
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        for limit in spec.each("limits") {
            let kind = limit.child("type");
            let before = errors.0.len();
            errors.format(&kind, formats::qualified_name);
            if errors.0.len() == before
                && !kind.str().contains('/')
                && !["Container", "PersistentVolumeClaim", "Pod"].contains(&kind.str())
            {
                errors.invalid(&kind, "must be a standard limit type or fully qualified");
            }
            check_limit(&limit, &mut errors);
        }
        errors.unique(spec.each("limits").map(|l| l.child("type")));
        errors.0
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        crate::kinds::Plain.table_row(object, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::expect;

    const CX: Context<'static> = Context::SOMEBODY;

    fn check(strategy: &dyn Strategy, spec: Value, expected: &[&str]) -> Value {
        let mut object = json!({"spec": spec});
        strategy.default(&mut object);
        expect(&strategy.validate_create(&CX, &object), expected, &object);
        object
    }

    #[test]
    fn budgets() {
        check(&PodDisruptionBudget, json!({"minAvailable": "50%"}), &[]);
        check(
            &PodDisruptionBudget,
            json!({"minAvailable": "150%"}),
            &["spec.minAvailable: Invalid value: \"150%\": must not be greater than 100%"],
        );
        check(
            &PodDisruptionBudget,
            json!({"minAvailable": 1, "maxUnavailable": 1}),
            &[
                "spec: Invalid value: {\"maxUnavailable\":1,\"minAvailable\":1}: minAvailable and maxUnavailable cannot be both set",
            ],
        );
    }

    #[test]
    fn quotas() {
        check(&ResourceQuota, json!({"hard": {"pods": "10", "requests.cpu": "1", "count/deployments.apps": "5"}}), &[]);
        check(
            &ResourceQuota,
            json!({"hard": {"pods": "-1", "x": "1"}}),
            &[
                "spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0",
                "spec.hard[x]: Invalid value: \"x\": must be a standard resource type or fully qualified",
                "spec.hard[x]: Invalid value: \"x\": must be a standard resource for quota",
            ],
        );
        check(
            &ResourceQuota,
            json!({"scopes": ["Terminating", "NotTerminating"]}),
            &["spec.scopes: Invalid value: [\"Terminating\",\"NotTerminating\"]: conflicting scopes"],
        );
    }

    #[test]
    fn limits() {
        let object = check(
            &LimitRange,
            json!({"limits": [{"type": "Container", "max": {"cpu": "1"}, "min": {"memory": "1Mi"}}]}),
            &[],
        );
        assert_eq!(object["spec"]["limits"][0]["defaultRequest"], json!({"cpu": "1", "memory": "1Mi"}));
        check(
            &LimitRange,
            json!({"limits": [{"type": "Pod", "max": {"cpu": "1"}, "min": {"cpu": "2"}}]}),
            &["spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1"],
        );
    }
}
