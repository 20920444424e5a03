//! Where a pod may run: affinity, tolerations, spreading, node selectors.

use meta::Value;

use super::selectors::{label_selector, labels};
use super::{At, Errors, formats};
use meta::Tree;

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub fn tolerations(at: &At<'_>, errors: &mut Errors) {
    for toleration in at.items() {
        let (key, operator, effect) =
            (toleration.child("key"), toleration.child("operator"), toleration.child("effect"));
        errors.may_format(&key, formats::qualified_name);
        if key.blank() && operator.str() != "Exists" {
            errors.invalid_as(
                &operator,
                operator.str(),
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if toleration.value.has("tolerationSeconds") && effect.str() != "NoExecute" {
            errors.invalid_as(&effect, effect.str(), "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        let value = toleration.value.text("value");
        match operator.str() {
            "" | "Equal" => {
                let complaints = formats::label_value(value);
                if !complaints.is_empty() {
                    errors.invalid_as(&operator, value, complaints.join(";"));
                }
            }
            "Exists" if !value.is_empty() => errors.invalid_as(
                &operator,
                toleration.value.clone(),
                "value must be empty when `operator` is 'Exists'",
            ),
            "Exists" => {}
            _ => errors.not_supported(&operator, &["Equal", "Exists"]),
        }
        if !effect.blank() {
            errors.one_of(&effect, &EFFECTS);
        }
    }
}

/// Taints of a node.
pub fn taints(at: &At<'_>, errors: &mut Errors) {
    let mut seen = std::collections::HashSet::new();
    for taint in at.items() {
        errors.format(&taint.child("key"), formats::qualified_name);
        errors.may_format(&taint.child("value"), formats::label_value);
        errors.need_one_of(&taint.child("effect"), &EFFECTS);
        if !seen.insert((taint.value.text("key"), taint.value.text("effect"))) {
            let mut error = meta::FieldError::duplicate(&taint.path, taint.value.clone());
            error.detail = "taints must be unique by key and effect pair".into();
            errors.0.push(error);
        }
    }
}

fn node_requirement(at: &At<'_>, errors: &mut Errors) {
    let values = at.child("values");
    let count = values.value.list("").len();
    match at.value.text("operator") {
        "In" | "NotIn" if count == 0 => {
            errors.required(&values, "must be specified when `operator` is 'In' or 'NotIn'")
        }
        "Exists" | "DoesNotExist" if count > 0 => {
            errors.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
        }
        "Gt" | "Lt" if count != 1 => {
            errors.required(&values, "must be specified single value when `operator` is 'Lt' or 'Gt'")
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        _ => errors.invalid(&at.child("operator"), "not a valid selector operator"),
    }
    errors.format(&at.child("key"), formats::qualified_name);
}

fn node_field_requirement(at: &At<'_>, errors: &mut Errors) {
    let (values, key) = (at.child("values"), at.child("key"));
    match at.value.text("operator") {
        "In" | "NotIn" if values.value.list("").len() != 1 => {
            errors
                .required(&values, "must be only one value when `operator` is 'In' or 'NotIn' for node field selector");
        }
        "In" | "NotIn" => {}
        _ => errors.invalid(&at.child("operator"), "not a valid selector operator"),
    }
    if key.str() != "metadata.name" {
        return errors.invalid(&key, "not a valid field selector key");
    }
    for value in values.items() {
        errors.format(&value, formats::dns_subdomain);
    }
}

fn node_term(at: &At<'_>, errors: &mut Errors) {
    for requirement in at.each("matchExpressions") {
        node_requirement(&requirement, errors);
    }
    for requirement in at.each("matchFields") {
        node_field_requirement(&requirement, errors);
    }
}

/// A `core/v1 NodeSelector`.
pub fn node_selector(at: &At<'_>, errors: &mut Errors) {
    let terms = at.child("nodeSelectorTerms");
    if terms.value.list("").is_empty() {
        errors.required(&terms, "must have at least one node selector term");
    }
    for term in terms.items() {
        node_term(&term, errors);
    }
}

fn pod_term(at: &At<'_>, errors: &mut Errors) {
    label_selector(&at.child("labelSelector"), errors);
    label_selector(&at.child("namespaceSelector"), errors);
    for namespace in at.each("namespaces") {
        for complaint in formats::dns_label(namespace.str()) {
            errors.invalid_as(&at.child("namespace"), namespace.str(), complaint);
        }
    }
    let key = at.child("topologyKey");
    errors.need(&key, "can not be empty");
    errors.format(&key, formats::qualified_name);
}

fn weight(at: &At<'_>, errors: &mut Errors) {
    if at.number().is_none_or(|w| !(1..=100).contains(&w)) {
        errors.invalid_as(at, at.number().unwrap_or(0), "must be in the range 1-100");
    }
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub fn affinity(at: &At<'_>, errors: &mut Errors) {
    let node = at.child("nodeAffinity");
    let required = node.child(REQUIRED);
    if required.there() {
        node_selector(&required, errors);
    }
    for term in node.each(PREFERRED) {
        weight(&term.child("weight"), errors);
        node_term(&term.child("preference"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = at.child(kind);
        for term in pods.each(REQUIRED) {
            pod_term(&term, errors);
        }
        for term in pods.each(PREFERRED) {
            weight(&term.child("weight"), errors);
            pod_term(&term.child("podAffinityTerm"), errors);
        }
    }
}

pub fn spread(at: &At<'_>, errors: &mut Errors) {
    let mut seen = std::collections::HashMap::new();
    for constraint in at.items() {
        let (skew, key, when) =
            (constraint.child("maxSkew"), constraint.child("topologyKey"), constraint.child("whenUnsatisfiable"));
        const POSITIVE: &str = "must be greater than zero";
        if skew.number().is_none_or(|s| s <= 0) {
            errors.invalid_as(&skew, skew.number().unwrap_or(0), POSITIVE);
        }
        errors.need(&key, "can not be empty");
        if !["DoNotSchedule", "ScheduleAnyway"].contains(&when.str()) {
            errors.0.push(meta::FieldError::not_supported(
                &when.path,
                when.str(),
                &["DoNotSchedule", "ScheduleAnyway"],
            ));
        }
        // The first of two that are the same is the one complained about.
        let pair = format!("{{{}, {}}}", key.str(), when.str());
        if let Some(first) = seen.insert(pair.clone(), constraint.path.clone()) {
            errors.0.push(meta::FieldError::duplicate(&first.child("{topologyKey, whenUnsatisfiable}"), pair));
        }
        let domains = constraint.child("minDomains");
        errors.at_least(&domains, 1, POSITIVE);
        if domains.there() && when.str() != "DoNotSchedule" {
            let detail = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", when.str());
            errors.invalid(&domains, detail);
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            errors.may_one_of(&constraint.child(policy), &["Honor", "Ignore"]);
        }
        let keys = constraint.child("matchLabelKeys");
        let selector = constraint.child("labelSelector");
        if !keys.value.list("").is_empty() && !selector.there() {
            errors.forbidden(&keys, "must not be specified when labelSelector is not set");
        }
        for key in keys.items() {
            errors.format(&key, formats::qualified_name);
            if selector.value.list("matchExpressions").iter().any(|e| e.at("key") == key.value)
                || selector.value.map("matchLabels").contains_key(key.str())
            {
                errors.invalid(&key, "exists in both matchLabelKeys and labelSelector");
            }
        }
        label_selector(&selector, errors);
    }
}

/// All of a pod spec's say in where it runs.
pub fn of_spec(spec: &At<'_>, errors: &mut Errors) {
    labels(&spec.child("nodeSelector"), errors);
    affinity(&spec.child("affinity"), errors);
    tolerations(&spec.child("tolerations"), errors);
    spread(&spec.child("topologySpreadConstraints"), errors);
    // Upstream says of a gate's name where the gate is.
    let gates = || spec.each("schedulingGates").map(|g| At { value: g.value.at("name"), path: g.path });
    for gate in gates() {
        errors.format(&gate, formats::qualified_name);
    }
    errors.unique(gates());
}

/// Tolerations may be added, and their seconds changed; nothing else.
pub fn only_added_tolerations(at: &At<'_>, old: &Value, errors: &mut Errors) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        toleration.drop("tolerationSeconds");
        toleration
    };
    let kept =
        |old: &Value| at.value.list("").iter().any(|new| super::same(&without_seconds(new), &without_seconds(old)));
    if !old.list("").iter().all(kept) {
        errors.forbidden(at, "existing toleration can not be modified except its tolerationSeconds");
    }
}
