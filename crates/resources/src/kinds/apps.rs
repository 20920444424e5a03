//! Workloads of pods that are all alike: deployments, replica sets, replication controllers; and what they are made of.

use meta::{FieldError, LabelSelector, Value};

use crate::cells::{age, containers, labels, name, or_none, selector};
use crate::defaults;
use crate::kinds::pod::env_warnings;
use crate::strategy::{Context, Strategy};
use crate::validate::selectors::labels as check_labels;
use crate::validate::workloads::{
    at_most_all, collisions, counts, int_or_percent, lasting_pods, number_of, selector as check_selector, template,
};
use crate::validate::{At, Errors, pod_spec};
use meta::Tree;

kinds! {
    Deployment: "Name|Ready|Up-to-date|Available|Age|Containers*|Images*|Selector*";
    ReplicaSet: "Name|Desired#|Current#|Ready#|Age|Containers*|Images*|Selector*";
    ReplicationController: "Name|Desired#|Current#|Ready#|Age|Containers*|Images*|Selector*";
    ControllerRevision: "Name|Controller|Revision|Age";
    PodTemplate: "Name|Containers|Images|Pod Labels";
}

pub(super) const CONTAINERS: &str = "spec.template.spec.containers";

pub(super) fn ready(object: &Value) -> Value {
    format!("{}/{}", object.int("status.readyReplicas"), object.int("spec.replicas")).into()
}

pub(super) const HISTORY: i64 = 10;

/// The spec of an object, and a place for what is wrong with it.
pub(super) fn spec_of(object: &Value) -> (At<'_>, Errors) {
    (At::new(object.at("spec"), "spec"), Errors::default())
}

pub(super) fn template_warnings(object: &Value) -> Vec<String> {
    env_warnings(&At::new(object.at("spec.template.spec"), "spec.template.spec"))
}

impl Strategy for Deployment {
    fn counts_annotations(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        defaults::zero_counts(object, &[]);
        let Some(spec) = object.at_mut("spec") else { return };
        spec.or_put("replicas", 1);
        spec.or_put("strategy.type", "RollingUpdate");
        if spec.text("strategy.type") == "RollingUpdate" {
            spec.or_put("strategy.rollingUpdate.maxUnavailable", "25%");
            spec.or_put("strategy.rollingUpdate.maxSurge", "25%");
        }
        spec.or_put("revisionHistoryLimit", HISTORY);
        spec.or_put("progressDeadlineSeconds", 600);
        defaults::template(spec, "template");
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        defaults::zero_counts(object, &[]);
    }

    fn prepare_update(&self, cx: &Context<'_>, object: &mut Value, old: &Value) {
        if cx.subresource == "status" {
            object.copy_from("metadata.labels", old);
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = spec_of(object);
        errors.not_negative(&spec.child("replicas"));
        check_selector(&spec.child("selector"), "deployment", &mut errors);
        template(&spec, "ReplicaSet", &mut errors);
        let (strategy, rolling) = (spec.child("strategy"), spec.child("strategy.rollingUpdate"));
        match strategy.value.text("type") {
            "Recreate" if rolling.there() => {
                errors.forbidden(&rolling, "may not be specified when strategy `type` is 'Recreate'");
            }
            "Recreate" => {}
            "RollingUpdate" => {
                let (unavailable, surge) = (rolling.child("maxUnavailable"), rolling.child("maxSurge"));
                int_or_percent(&unavailable, &mut errors);
                int_or_percent(&surge, &mut errors);
                if number_of(unavailable.value) == 0 && number_of(surge.value) == 0 {
                    errors.invalid(&unavailable, "may not be 0 when `maxSurge` is 0");
                }
                at_most_all(&unavailable, &mut errors);
            }
            _ => errors.not_supported(&strategy.child("type"), &["Recreate", "RollingUpdate"]),
        }
        for field in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
            errors.not_negative(&spec.child(field));
        }
        let deadline = spec.child("progressDeadlineSeconds");
        if deadline.number().is_some_and(|s| s <= spec.value.int("minReadySeconds")) {
            errors.invalid(&deadline, "must be greater than minReadySeconds");
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        if cx.subresource == "status" {
            let mut errors = Errors::default();
            let at = At::root(object);
            counts(&at, &["updatedReplicas", "readyReplicas", "availableReplicas"], "readyReplicas", &mut errors);
            errors.not_negative(&at.child("status.unavailableReplicas"));
            collisions(&at, old, &mut errors);
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
        vec![
            name(object),
            ready(object),
            object.int("status.updatedReplicas").into(),
            object.int("status.availableReplicas").into(),
            age(object, now),
            names,
            images,
            LabelSelector::from_value(object.at("spec.selector")).map_or("<invalid>".into(), |s| s.to_string()).into(),
        ]
    }
}

/// What a ReplicaSet, of whichever age, counts.
fn replica_counts(object: &Value, errors: &mut Errors) {
    let fields = ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
    counts(&At::root(object), &fields, "readyReplicas", errors);
}

fn replicas_row(object: &Value, selector: Value, now: &str) -> Vec<Value> {
    let [names, images] = containers(object.list(CONTAINERS));
    let count = |path| Value::from(object.int(path));
    let counts = ["spec.replicas", "status.replicas", "status.readyReplicas"].map(count);
    [name(object)].into_iter().chain(counts).chain([age(object, now), names, images, selector]).collect()
}

impl Strategy for ReplicaSet {
    fn default(&self, object: &mut Value) {
        defaults::zero_counts(object, &["replicas"]);
        let Some(spec) = object.at_mut("spec") else { return };
        spec.or_put("replicas", 1);
        defaults::template(spec, "template");
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        defaults::zero_counts(object, &["replicas"]);
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = spec_of(object);
        errors.not_negative(&spec.child("replicas"));
        errors.not_negative(&spec.child("minReadySeconds"));
        check_selector(&spec.child("selector"), "deployment", &mut errors);
        template(&spec, "ReplicaSet", &mut errors);
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        if cx.subresource == "status" {
            let mut errors = Errors::default();
            replica_counts(object, &mut errors);
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
        replicas_row(object, selector(object.at("spec.selector")), now)
    }
}

impl Strategy for ReplicationController {
    fn default(&self, object: &mut Value) {
        defaults::zero_counts(object, &["replicas"]);
        defaults::selector_from_template(object);
        let Some(spec) = object.at_mut("spec") else { return };
        spec.or_put("replicas", 1);
        defaults::template(spec, "template");
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        defaults::zero_counts(object, &["replicas"]);
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = spec_of(object);
        errors.not_negative(&spec.child("replicas"));
        errors.not_negative(&spec.child("minReadySeconds"));
        let (selector, pods) = (spec.child("selector"), spec.child("template"));
        check_labels(&selector, &mut errors);
        if selector.value.map("").is_empty() {
            errors.required(&selector, "");
        }
        if !pods.there() {
            errors.required(&pods, "");
            return errors.0;
        }
        let labels = pods.child("metadata.labels");
        if !selector.value.map("").iter().all(|(key, value)| labels.value.map("").get(key) == Some(value)) {
            errors.invalid(&labels, "`selector` does not match template `labels`");
        }
        pod_spec::template(&pods, &mut errors);
        lasting_pods(&pods, "ReplicationController", &mut errors);
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        if cx.subresource != "status" {
            return self.validate_create(cx, object);
        }
        let mut errors = Errors::default();
        replica_counts(object, &mut errors);
        errors.0
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        template_warnings(object)
    }

    fn default_orphans(&self) -> bool {
        true
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        replicas_row(object, labels(object.map("spec.selector")), now)
    }
}

impl Strategy for ControllerRevision {
    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors::default());
        if !at.child("data").there() {
            errors.required(&at.child("data"), "data is mandatory");
        }
        errors.not_negative(&at.child("revision"));
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors(self.validate_create(cx, object));
        errors.immutable(&At::root(object).child("data"), old.at("data"));
        errors.0
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let owner = object.list("metadata.ownerReferences").iter().find(|o| o.flag("controller")).map_or(
            String::new(),
            |owner| {
                let group = owner.text("apiVersion").split_once('/').map_or("", |(group, _)| group);
                let kind = owner.text("kind").to_lowercase();
                let dot = if group.is_empty() { "" } else { "." };
                format!("{kind}{dot}{group}/{}", owner.text("name"))
            },
        );
        vec![name(object), or_none(&owner), object.int("revision").into(), age(object, now)]
    }
}

impl Strategy for PodTemplate {
    fn default(&self, object: &mut Value) {
        defaults::template(object, "template");
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        pod_spec::template(&At::root(object).child("template"), &mut errors);
        errors.0
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        true
    }

    fn table_row(&self, object: &Value, _now: &str) -> Vec<Value> {
        let [names, images] = containers(object.list("template.spec.containers"));
        vec![name(object), names, images, labels(object.map("template.metadata.labels"))]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::daemon_set::DaemonSet;
    use crate::validate::tests::expect;

    pub const CX: Context<'static> = Context::SOMEBODY;

    pub fn workload(changes: Value) -> Value {
        let mut object = json!({"metadata": {"name": "w"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}});
        for (path, value) in changes.as_object().unwrap() {
            object.put(path, value.clone());
        }
        object
    }

    pub fn check(strategy: &dyn Strategy, changes: Value, expected: &[&str]) -> Value {
        let mut object = workload(changes);
        strategy.default(&mut object);
        expect(&strategy.validate_create(&CX, &object), expected, &object);
        object
    }

    #[test]
    fn deployments() {
        let object = check(&Deployment, json!({}), &[]);
        assert_eq!(
            object["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
        );
        assert_eq!(object["spec"]["template"]["spec"]["containers"][0]["terminationMessagePolicy"], "File");
        check(
            &Deployment,
            json!({"spec.replicas": -1}),
            &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
        );
        check(
            &Deployment,
            json!({"spec.selector": null}),
            &[
                "spec.selector: Required value",
                "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
            ],
        );
        check(
            &Deployment,
            json!({"spec.selector": {}}),
            &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
        );
        check(
            &Deployment,
            json!({"spec.template.metadata.labels": {"a": "c"}}),
            &[
                "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
            ],
        );
        check(
            &Deployment,
            json!({"spec.template.spec.restartPolicy": "Never"}),
            &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
        );
        check(
            &Deployment,
            json!({"spec.strategy.rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
            &["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0"],
        );
        check(
            &Deployment,
            json!({"spec.strategy": {"type": "Recreate", "rollingUpdate": {}}}),
            &["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"],
        );
        check(
            &Deployment,
            json!({"spec.minReadySeconds": 600}),
            &["spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds"],
        );
    }

    #[test]
    fn selectors_stay() {
        for strategy in [&Deployment as &dyn Strategy, &ReplicaSet, &DaemonSet] {
            let old = check(strategy, json!({}), &[]);
            let new = check(
                strategy,
                json!({"spec.selector.matchLabels": {"a": "b", "c": "d"}, "spec.template.metadata.labels": {"a": "b", "c": "d"}}),
                &[],
            );
            let errors = strategy.validate_update(&CX, &new, &old);
            expect(
                &errors,
                &["spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\",\"c\":\"d\"}}: field is immutable"],
                &new,
            );
        }
    }

    #[test]
    fn replication_controllers_take_labels_from_their_template() {
        let object = check(&ReplicationController, json!({"spec.selector": null}), &[]);
        assert_eq!(
            (&object["spec"]["selector"], &object["metadata"]["labels"]),
            (&json!({"a": "b"}), &json!({"a": "b"}))
        );
        check(
            &ReplicationController,
            json!({"spec.selector": {"a": "z"}}),
            &[
                "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
            ],
        );
    }

    #[test]
    fn statuses_add_up() {
        let object = json!({"status": {"replicas": 1, "readyReplicas": 2, "availableReplicas": 0}});
        let cx = Context { subresource: "status", ..CX };
        expect(
            &Deployment.validate_update(&cx, &object, &object),
            &["status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"],
            &object,
        );
    }
}
