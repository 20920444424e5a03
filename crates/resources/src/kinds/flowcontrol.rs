//! flowcontrol.apiserver.k8s.io: flow schemas and priority levels.

use meta::{FieldError, Value};
use serde_json::json;

use crate::cells::{age, name, or_none};
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors, formats};
use meta::Tree;

kinds! {
    FlowSchema: "Name|PriorityLevel|MatchingPrecedence|DistinguisherMethod|Age|MissingPL";
    PriorityLevel: "Name|Type|NominalConcurrencyShares|Queues|HandSize|QueueLengthLimit|Age";
}

const PRECEDENCE: i64 = 1000;
const MAX_PRECEDENCE: i64 = 10_000;

const SUBJECTS: [(&str, &str); 3] = [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];
const VERBS: [&str; 9] = ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

fn check_subject(at: &At<'_>, errors: &mut Errors) {
    let kind = at.child("kind");
    let Some((kind, field)) = SUBJECTS.iter().find(|(name, _)| *name == kind.str()) else {
        return errors.not_supported(&kind, &SUBJECTS.map(|(name, _)| name));
    };
    let subject = at.child(field);
    if !subject.there() {
        errors.required(&subject, &format!("{field} is required when subject kind is '{kind}'"));
    } else {
        let (name, namespace) = (subject.child("name"), subject.child("namespace"));
        let named = errors.need(&name, "");
        if *field == "serviceAccount" {
            if named && name.str() != "*" {
                errors.format(&name, formats::dns_subdomain);
            }
            if errors.need(&namespace, "must specify namespace for service account") {
                errors.format(&namespace, formats::dns_label);
            }
        }
    }
    for (kind, other) in SUBJECTS.iter().rev().filter(|(_, other)| other != field && at.value.has(other)) {
        errors.forbidden(&at.child(other), format!("{other} is forbidden when subject kind is not '{kind}'"));
    }
}

fn has_star(at: &At<'_>) -> bool {
    at.value.list("").iter().any(|item| item == "*")
}

/// A list that must not be empty, and in which a star stands alone.
fn check_list(at: &At<'_>, empty: &str, others: &str, errors: &mut Errors) {
    match at.value.list("").len() {
        0 => errors.required(at, empty),
        1 => {}
        _ if has_star(at) => errors.invalid(at, format!("if '*' is present, must not specify other {others}")),
        _ => {}
    }
}

fn check_verbs(rule: &At<'_>, errors: &mut Errors) {
    let verbs = rule.child("verbs");
    check_list(&verbs, "verbs must contain at least one value", "verbs", errors);
    if !has_star(&verbs) && verbs.items().any(|verb| !VERBS.contains(&verb.str())) {
        errors.not_supported(&verbs, &VERBS);
    }
}

fn check_resource_rule(rule: &At<'_>, errors: &mut Errors) {
    check_verbs(rule, errors);
    let groups = "resource rules must supply at least one api group";
    check_list(&rule.child("apiGroups"), groups, "api groups", errors);
    check_list(&rule.child("resources"), "resource rules must supply at least one resource", "resources", errors);
    let namespaces = rule.child("namespaces");
    if namespaces.value.list("").is_empty() {
        if !rule.value.flag("clusterScope") {
            let detail = "resource rules that are not cluster scoped must supply at least one namespace";
            errors.required(&namespaces, detail);
        }
    } else if has_star(&namespaces) {
        check_list(&namespaces, "", "namespaces", errors);
    } else {
        for namespace in namespaces.items() {
            for complaint in formats::dns_label(namespace.str()) {
                let detail = format!("each member of this list must be '*' or a DNS-1123 label; {complaint}");
                errors.invalid(&namespace, detail);
            }
        }
    }
}

fn check_other_rule(rule: &At<'_>, errors: &mut Errors) {
    check_verbs(rule, errors);
    let paths = rule.child("nonResourceURLs");
    check_list(&paths, "nonResourceURLs must contain at least one value", "non-resource URLs", errors);
    if has_star(&paths) {
        return;
    }
    for at in paths.items() {
        let path = at.str();
        let wrong = match path {
            "" => "must not be empty",
            "/" => continue,
            _ if !path.starts_with('/') => "must start with slash",
            _ if path.contains(' ') => "must not contain white-space",
            _ if path.contains("//") => "must not contain double slash",
            _ if path.strip_suffix("/*").unwrap_or(path).contains('*') => "wildcard can only do suffix matching",
            _ => continue,
        };
        errors.invalid(&at, wrong);
    }
}

/// Conditions of a status: each type once.
fn check_conditions(object: &Value) -> Vec<FieldError> {
    let (status, mut errors) = (At::new(object.at("status"), "status"), Errors::default());
    let kinds = || status.each("conditions").map(|condition| condition.child("type"));
    errors.unique(kinds());
    for kind in kinds() {
        errors.need(&kind, "");
    }
    errors.0
}

impl Strategy for FlowSchema {
    fn default(&self, object: &mut Value) {
        if object.int("spec.matchingPrecedence") == 0 {
            object.put("spec.matchingPrecedence", PRECEDENCE);
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        let precedence = spec.child("matchingPrecedence");
        match precedence.number().unwrap_or(0) {
            ..=0 => errors.invalid(&precedence, "must be a positive value"),
            1 if object.text("metadata.name") != "exempt" => {
                errors.invalid(&precedence, "only the schema named 'exempt' may have matchingPrecedence 1");
            }
            n if n > MAX_PRECEDENCE => {
                errors.invalid(&precedence, format!("must not be greater than {MAX_PRECEDENCE}"));
            }
            _ => {}
        }
        let method = spec.child("distinguisherMethod");
        let kind = method.child("type");
        if method.there() && !["ByNamespace", "ByUser"].contains(&kind.str()) {
            // The whole method is shown, as upstream's internal type prints it.
            let shown = json!({"Type": kind.str()});
            errors.0.push(FieldError::not_supported(&kind.path, shown, &["ByNamespace", "ByUser"]));
        }
        let level = spec.child("priorityLevelConfiguration.name");
        if errors.need(&level, "must reference a priority level") {
            errors.format(&level, formats::dns_subdomain);
        }
        for rule in spec.each("rules") {
            let subjects = rule.child("subjects");
            if subjects.value.list("").is_empty() {
                errors.required(&subjects, "subjects must contain at least one value");
            }
            for subject in subjects.items() {
                check_subject(&subject, &mut errors);
            }
            if rule.value.list("resourceRules").is_empty() && rule.value.list("nonResourceRules").is_empty() {
                errors.required(&rule, "at least one of resourceRules and nonResourceRules has to be non-empty");
            }
            rule.each("resourceRules").for_each(|rule| check_resource_rule(&rule, &mut errors));
            rule.each("nonResourceRules").for_each(|rule| check_other_rule(&rule, &mut errors));
        }
        errors.0.extend(check_conditions(object));
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        if cx.subresource == "status" { check_conditions(object) } else { self.validate_create(cx, object) }
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![
            name(object),
            object.text("spec.priorityLevelConfiguration.name").into(),
            object.int("spec.matchingPrecedence").into(),
            or_none(object.text("spec.distinguisherMethod.type")),
            age(object, now),
            object.find("status.conditions", "type", "Dangling").map_or("?", |c| c.text("status")).into(),
        ]
    }
}

const SHARES: i64 = 30;
const QUEUES: i64 = 64;
const HAND_SIZE: i64 = 8;
const QUEUE_LENGTH: i64 = 50;
const MAX_QUEUES: i64 = 10_000_000;

/// Bits of entropy a hand of queues may take.
const MAX_HASH_BITS: f64 = 60.0;

fn check_shares(at: &At<'_>, errors: &mut Errors) {
    errors.at_least(&at.child("nominalConcurrencyShares"), 0, "must be a non-negative integer");
}

fn check_lendable(at: &At<'_>, errors: &mut Errors) {
    let lendable = at.child("lendablePercent");
    if lendable.number().is_some_and(|p| !(0..=100).contains(&p)) {
        errors.invalid(&lendable, "must be between 0 and 100, inclusive");
    }
}

fn check_limited(limited: &At<'_>, errors: &mut Errors) {
    check_shares(limited, errors);
    let (response, queuing) = (limited.child("limitResponse.type"), limited.child("limitResponse.queuing"));
    match response.str() {
        "Reject" if queuing.there() => {
            errors.forbidden(&queuing, "must be nil if limited.limitResponse.type is not Limited");
        }
        "Queue" if queuing.there() => check_queuing(&queuing, errors),
        "Queue" => errors.required(&queuing, "must not be empty if limited.limitResponse.type is Limited"),
        "Reject" => {}
        _ => errors.not_supported(&response, &["Queue", "Reject"]),
    }
    check_lendable(limited, errors);
    let borrowing = limited.child("borrowingLimitPercent");
    errors.at_least(&borrowing, 0, "if specified, must be a non-negative integer");
}

fn check_queuing(at: &At<'_>, errors: &mut Errors) {
    const POSITIVE: &str = "must be positive";
    errors.at_least(&at.child("queueLengthLimit"), 1, POSITIVE);
    let (queues, hand) = (at.child("queues"), at.child("handSize"));
    let (deck, size) = (queues.number().unwrap_or(0), hand.number().unwrap_or(0));
    errors.at_least(&queues, 1, POSITIVE);
    if deck > MAX_QUEUES {
        errors.invalid(&queues, format!("must not be greater than {MAX_QUEUES}"));
    }
    if size <= 0 {
        errors.invalid(&hand, POSITIVE);
    } else if size > deck {
        errors.invalid(&hand, format!("should not be greater than queues ({deck})"));
    } else if ((deck as f64).log2() * size as f64).ceil() > MAX_HASH_BITS {
        let detail = format!(
            "required entropy bits of deckSize {deck} and handSize {size} should not be greater than {MAX_HASH_BITS}"
        );
        errors.invalid(&hand, detail);
    }
}

impl Strategy for PriorityLevel {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.at_mut("spec") else { return };
        if let Some(exempt) = spec.at_mut("exempt") {
            exempt.or_put("nominalConcurrencyShares", 0);
            exempt.or_put("lendablePercent", 0);
        }
        if let Some(limited) = spec.at_mut("limited") {
            limited.or_put("nominalConcurrencyShares", SHARES);
            limited.or_put("lendablePercent", 0);
            if let Some(queuing) = limited.at_mut("limitResponse.queuing") {
                for (field, value) in [("queues", QUEUES), ("handSize", HAND_SIZE), ("queueLengthLimit", QUEUE_LENGTH)]
                {
                    if queuing.int(field) == 0 {
                        queuing.put(field, value);
                    }
                }
            }
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        let (exempt, limited) = (spec.child("exempt"), spec.child("limited"));
        let kind = spec.child("type");
        if (object.text("metadata.name") == "exempt") != (kind.str() == "Exempt") {
            errors.invalid_as(&kind, kind.str(), "must be 'Exempt' if and only if `name` is 'exempt'");
        }
        match kind.str() {
            "Exempt" => {
                if limited.there() {
                    errors.forbidden(&limited, "must be nil if the type is not Limited");
                }
                check_shares(&exempt, &mut errors);
                check_lendable(&exempt, &mut errors);
            }
            "Limited" => {
                if exempt.there() {
                    errors.forbidden(&exempt, "must be nil if the type is Limited");
                }
                if limited.there() {
                    check_limited(&limited, &mut errors);
                } else {
                    errors.required(&limited, "must not be empty when type is Limited");
                }
            }
            _ => errors.not_supported(&kind, &["Exempt", "Limited"]),
        }
        errors.0.extend(check_conditions(object));
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        if cx.subresource == "status" { check_conditions(object) } else { self.validate_create(cx, object) }
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let limited = object.at("spec.limited");
        let queuing = limited.at("limitResponse.queuing");
        let count = |from: &Value, field: &str| if from.is_null() { "<none>".into() } else { from.int(field).into() };
        vec![
            name(object),
            object.text("spec.type").into(),
            count(limited, "nominalConcurrencyShares"),
            count(queuing, "queues"),
            count(queuing, "handSize"),
            count(queuing, "queueLengthLimit"),
            age(object, now),
        ]
    }
}
