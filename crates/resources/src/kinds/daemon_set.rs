//! Daemon sets: a pod on every node.

use meta::{FieldError, Value};

use crate::cells::{age, containers, labels, name, selector};
use crate::defaults;
use crate::kinds::apps::{CONTAINERS, HISTORY, spec_of, template_warnings};
use crate::strategy::{Context, Strategy};
use crate::validate::workloads::{
    at_most_all, collisions, int_or_percent, number_of, selector as check_selector, template,
};
use crate::validate::{At, Errors, same};
use meta::Tree;

kinds! {
    DaemonSet: "Name|Desired#|Current#|Ready#|Up-to-date#|Available#|Node Selector|Age|Containers*|Images*|Selector*";
}

const DAEMON_COUNTS: [&str; 4] =
    ["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"];
/// Counts changes of the template, for clients of the first versions of the kind.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn template_generation(object: &Value) -> i64 {
    object
        .map("metadata.annotations")
        .get(TEMPLATE_GENERATION)
        .and_then(Value::as_str)
        .and_then(|t| t.parse().ok())
        .unwrap_or(0)
}

impl Strategy for DaemonSet {
    fn default(&self, object: &mut Value) {
        defaults::zero_counts(object, &DAEMON_COUNTS);
        let Some(spec) = object.at_mut("spec") else { return };
        spec.or_put("updateStrategy.type", "RollingUpdate");
        if spec.text("updateStrategy.type") == "RollingUpdate" {
            spec.or_put("updateStrategy.rollingUpdate.maxUnavailable", 1);
            spec.or_put("updateStrategy.rollingUpdate.maxSurge", 0);
        }
        spec.or_put("revisionHistoryLimit", HISTORY);
        defaults::template(spec, "template");
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        defaults::zero_counts(object, &DAEMON_COUNTS);
        let generation = template_generation(object).max(1).to_string();
        object.dig("metadata.annotations").insert(TEMPLATE_GENERATION.into(), generation.into());
    }

    fn prepare_update(&self, cx: &Context<'_>, object: &mut Value, old: &Value) {
        if cx.subresource.is_empty() {
            let changed =
                ["spec.template", "spec.updateStrategy"].iter().any(|path| !same(object.at(path), old.at(path)));
            let generation = template_generation(old) + i64::from(changed);
            object.dig("metadata.annotations").insert(TEMPLATE_GENERATION.into(), generation.to_string().into());
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = spec_of(object);
        check_selector(&spec.child("selector"), "daemonset", &mut errors);
        template(&spec, "DaemonSet", &mut errors);
        for field in ["minReadySeconds", "revisionHistoryLimit"] {
            errors.not_negative(&spec.child(field));
        }
        let (strategy, rolling) = (spec.child("updateStrategy"), spec.child("updateStrategy.rollingUpdate"));
        match strategy.value.text("type") {
            "OnDelete" => {}
            "RollingUpdate" => {
                let (unavailable, surge) = (rolling.child("maxUnavailable"), rolling.child("maxSurge"));
                for at in [&unavailable, &surge] {
                    int_or_percent(at, &mut errors);
                    at_most_all(at, &mut errors);
                }
                match (number_of(unavailable.value) != 0, number_of(surge.value) != 0) {
                    (true, true) => errors.invalid(&surge, "may not be set when maxUnavailable is non-zero"),
                    (false, false) => errors.required(&unavailable, "cannot be 0 when maxSurge is 0"),
                    _ => {}
                }
            }
            _ => errors.not_supported(&strategy.child("type"), &["OnDelete", "RollingUpdate"]),
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        if cx.subresource == "status" {
            let (mut errors, status) = (Errors::default(), At::new(object.at("status"), "status"));
            for field in [
                "currentNumberScheduled",
                "numberMisscheduled",
                "desiredNumberScheduled",
                "numberReady",
                "observedGeneration",
                "updatedNumberScheduled",
                "numberAvailable",
                "numberUnavailable",
            ] {
                errors.not_negative(&status.child(field));
            }
            collisions(&At::root(object), old, &mut errors);
            return errors.0;
        }
        let mut errors = Errors(self.validate_create(cx, object));
        errors.immutable(&At::root(object).child("spec.selector"), old.at("spec.selector"));
        errors.0
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        template_warnings(object)
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let [names, images] = containers(object.list(CONTAINERS));
        let counts = [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
        ]
        .map(|field| Value::from(object["status"].int(field)));
        let node_selector = labels(object.map("spec.template.spec.nodeSelector"));
        let rest = [node_selector, age(object, now), names, images, selector(object.at("spec.selector"))];
        [name(object)].into_iter().chain(counts).chain(rest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::apps::tests::{CX, check};
    use serde_json::json;

    #[test]
    fn daemon_sets_count_their_templates() {
        let mut old = check(&DaemonSet, json!({}), &[]);
        DaemonSet.prepare_create(&CX, &mut old);
        let mut new = old.clone();
        new.put("spec.template.spec.hostname", "h");
        DaemonSet.prepare_update(&CX, &mut new, &old);
        assert_eq!((template_generation(&old), template_generation(&new)), (1, 2));
        check(
            &DaemonSet,
            json!({"spec.updateStrategy.rollingUpdate": {"maxUnavailable": 0, "maxSurge": 0}}),
            &["spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0"],
        );
    }
}
