//! flowcontrol.apiserver.k8s.io: flow schemas and priority levels.

use meta::{FieldError, Value};

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

fn check_subject(at: &At<'_>, errors: &mut Errors) {
    errors.need_one_of(&at.child("kind"), &["Group", "ServiceAccount", "User"]);
    let field = match at.value.text("kind") {
        "Group" => "group",
        "ServiceAccount" => "serviceAccount",
        "User" => "user",
        _ => return,
    };
    let subject = at.child(field);
    if !subject.there() {
        return errors
            .required(&subject, &format!("{field} is required when subject kind is '{}'", at.value.text("kind")));
    }
    errors.need(&subject.child("name"), "");
    if field == "serviceAccount" {
        errors.need(&subject.child("namespace"), "must specify namespace for service account");
    }
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
        if !(1..=MAX_PRECEDENCE).contains(&precedence.number().unwrap_or(0)) {
            errors.invalid(&precedence, format!("must be between 1 and {MAX_PRECEDENCE}"));
        }
        let level = spec.child("priorityLevelConfiguration.name");
        if errors.need(&level, "must reference a priority level") {
            errors.format(&level, formats::dns_subdomain);
        }
        errors.may_one_of(&spec.child("distinguisherMethod.type"), &["ByNamespace", "ByUser"]);
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
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        if cx.subresource == "status" { Vec::new() } else { self.validate_create(cx, object) }
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
        errors.need_one_of(&spec.child("type"), &["Exempt", "Limited"]);
        match spec.value.text("type") {
            "Exempt" if limited.there() => errors.forbidden(&limited, "must be nil if the type is not Limited"),
            "Limited" => {
                if exempt.there() {
                    errors.forbidden(&exempt, "must be nil if the type is Limited");
                }
                if !limited.there() {
                    errors.required(&limited, "must not be empty when type is Limited");
                    return errors.0;
                }
                errors.not_negative(&limited.child("nominalConcurrencyShares"));
                let lendable = limited.child("lendablePercent");
                if lendable.number().is_some_and(|p| !(0..=100).contains(&p)) {
                    errors.invalid(&lendable, "must be between 0 and 100, inclusive");
                }
                let (response, queuing) = (limited.child("limitResponse.type"), limited.child("limitResponse.queuing"));
                errors.need_one_of(&response, &["Queue", "Reject"]);
                match (response.str(), queuing.there()) {
                    ("Reject", true) => {
                        errors.forbidden(&queuing, "must be nil if limited.limitResponse.type is not Limited")
                    }
                    ("Queue", false) => {
                        errors.required(&queuing, "must not be empty if limited.limitResponse.type is Limited")
                    }
                    _ => {}
                }
                for field in ["queues", "handSize", "queueLengthLimit"].map(|f| queuing.child(f)) {
                    errors.positive(&field);
                }
                if queuing.value.int("queues") > MAX_QUEUES {
                    errors.invalid(&queuing.child("queues"), format!("must not be greater than {MAX_QUEUES}"));
                }
                if queuing.value.int("handSize") > queuing.value.int("queues") {
                    errors.invalid(
                        &queuing.child("handSize"),
                        format!("should not be greater than queues ({})", queuing.value.int("queues")),
                    );
                }
            }
            _ => {}
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        if cx.subresource == "status" { Vec::new() } else { self.validate_create(cx, object) }
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
