//! Priority classes, leases and who would hold them.

use meta::{FieldError, Value};

use crate::cells::{age, name};
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors};
use meta::Tree;

kinds! {
    PriorityClass: "Name|Value#|Global-Default?|PreemptionPolicy|Age";
    Lease: "Name|Holder|Age";
    LeaseCandidate: "Name|LeaseName|BinaryVersion|EmulationVersion|PingTime|RenewTime|Strategy";
}

const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;
const SYSTEM_PREFIX: &str = "system-";
/// Name and value of the classes the system itself has.
const SYSTEM_CLASSES: [(&str, i64); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

impl Strategy for PriorityClass {
    fn default(&self, object: &mut Value) {
        object.or_put("preemptionPolicy", "PreemptLowerPriority");
        object.or_put("value", 0);
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors::default());
        let (name, value) = (at.child("metadata.name"), at.child("value"));
        if name.str().starts_with(SYSTEM_PREFIX) {
            let why = match SYSTEM_CLASSES.iter().find(|(known, _)| *known == name.str()) {
                None => Some(format!("{} is not a known system priority class", name.str())),
                Some((_, wanted)) if value.number() != Some(*wanted) => {
                    Some(format!("value of {} PriorityClass must be {wanted}", name.str()))
                }
                Some(_) if object.flag("globalDefault") => {
                    Some(format!("globalDefault of {} PriorityClass must be false", name.str()))
                }
                Some(_) => None,
            };
            if let Some(why) = why {
                errors.forbidden(
                    &name,
                    format!(
                        "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
                    ),
                );
            }
        } else if value.number().unwrap_or(0) > HIGHEST_USER_PRIORITY {
            errors.forbidden(
                &value,
                format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"),
            );
        }
        errors.may_one_of(&at.child("preemptionPolicy"), &["Never", "PreemptLowerPriority"]);
        errors.0
    }

    fn validate_update(&self, _cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors::default());
        if object.int("value") != old.int("value") {
            errors.forbidden(&at.child("value"), "may not be changed in an update.");
        }
        errors.immutable(&at.child("preemptionPolicy"), old.at("preemptionPolicy"));
        errors.0
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        true
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let policy = object.at("preemptionPolicy").as_str().unwrap_or("<unset>");
        vec![
            name(object),
            object.int("value").into(),
            object.flag("globalDefault").into(),
            policy.into(),
            age(object, now),
        ]
    }
}

impl Strategy for Lease {
    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        errors.positive(&spec.child("leaseDurationSeconds"));
        errors.not_negative(&spec.child("leaseTransitions"));
        errors.0
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), object.text("spec.holderIdentity").into(), age(object, now)]
    }
}

impl Strategy for LeaseCandidate {
    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        errors.need(&spec.child("leaseName"), "");
        errors.need(&spec.child("binaryVersion"), "");
        errors.need(&spec.child("strategy"), "");
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors(self.validate_create(cx, object));
        errors.immutable(&At::root(object).child("spec.leaseName"), old.at("spec.leaseName"));
        errors.0
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn table_row(&self, object: &Value, _now: &str) -> Vec<Value> {
        let fields = ["leaseName", "binaryVersion", "emulationVersion", "pingTime", "renewTime", "strategy"];
        std::iter::once(name(object)).chain(fields.map(|f| object.at("spec").text(f).into())).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::tests::expect;

    const CX: Context<'static> = Context::SOMEBODY;

    #[test]
    fn priorities_are_bounded_and_stay() {
        let class = |name: &str, value: i64| json!({"metadata": {"name": name}, "value": value});
        let check =
            |object: Value, expected: &[&str]| expect(&PriorityClass.validate_create(&CX, &object), expected, &object);
        check(class("a", 1_000_000_000), &[]);
        check(
            class("a", 1_000_000_001),
            &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"],
        );
        check(class("system-node-critical", 2_000_001_000), &[]);
        check(
            class("system-x", 1),
            &[
                "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-x is not a known system priority class",
            ],
        );
        let (new, old) = (class("a", 2), class("a", 1));
        expect(
            &PriorityClass.validate_update(&CX, &new, &old),
            &["value: Forbidden: may not be changed in an update."],
            &new,
        );
        let lease = json!({"spec": {"leaseDurationSeconds": 0}});
        expect(
            &Lease.validate_create(&CX, &lease),
            &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"],
            &lease,
        );
    }
}
