//! apps, and the core kinds that are workloads: deployments, replica sets, stateful sets, daemon sets, revisions.

use meta::{FieldError, Value};
use serde_json::{Map, json};

use crate::cells::{age, containers, labels, name, or_none, selector};
use crate::defaults;
use crate::kinds::pod::env_warnings;
use crate::strategy::{Context, Strategy};
use crate::tree::Tree;
use crate::validate::selectors::labels as check_labels;
use crate::validate::workloads::{
    at_most_all, counts, int_or_percent, lasting_pods, number_of, selected, selector as check_selector, template,
};
use crate::validate::{At, Errors, pod_spec, same};

kinds! {
    Deployment: "Name|Ready|Up-to-date|Available|Age|Containers*|Images*|Selector*";
    ReplicaSet: "Name|Desired#|Current#|Ready#|Age|Containers*|Images*|Selector*";
    ReplicationController: "Name|Desired#|Current#|Ready#|Age|Containers*|Images*|Selector*";
    StatefulSet: "Name|Ready|Age|Containers*|Images*";
    DaemonSet: "Name|Desired#|Current#|Ready#|Up-to-date#|Available#|Node Selector|Age|Containers*|Images*|Selector*";
    ControllerRevision: "Name|Controller|Revision|Age";
    PodTemplate: "Name|Containers|Images|Pod Labels";
}

const CONTAINERS: &str = "spec.template.spec.containers";

fn ready(object: &Value) -> Value {
    format!("{}/{}", object.int("status.readyReplicas"), object.int("spec.replicas")).into()
}

const HISTORY: i64 = 10;

/// The spec of an object, and a place for what is wrong with it.
fn spec_of(object: &Value) -> (At<'_>, Errors) {
    (At::new(object.at("spec"), "spec"), Errors::default())
}

fn template_warnings(object: &Value) -> Vec<String> {
    env_warnings(&At::new(object.at("spec.template.spec"), "spec.template.spec"))
}

impl Strategy for Deployment {
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
            counts(&At::root(object), &["updatedReplicas", "readyReplicas", "availableReplicas"], &mut errors);
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
            selector(object.at("spec.selector")),
        ]
    }
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
            counts(&At::root(object), &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"], &mut errors);
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

/// The template with a volume for each claim the set makes, as its pods will have them.
fn template_with_claims(spec: &Value) -> Value {
    let mut template = spec.at("template").clone();
    let claims = spec.list("volumeClaimTemplates").iter().map(|c| c.text("metadata.name").to_string());
    let missing: Vec<String> = claims.filter(|name| template.find("spec.volumes", "name", name).is_none()).collect();
    let volumes = template.dig("spec").entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.extend(missing.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}})));
    }
    template
}

impl Strategy for StatefulSet {
    fn default(&self, object: &mut Value) {
        defaults::zero_counts(object, &["replicas", "availableReplicas"]);
        let Some(spec) = object.at_mut("spec") else { return };
        spec.or_put("podManagementPolicy", "OrderedReady");
        if !spec.has("updateStrategy.type") {
            spec.put("updateStrategy.type", "RollingUpdate");
            spec.or_put("updateStrategy.rollingUpdate", Map::new());
        }
        if spec.text("updateStrategy.type") == "RollingUpdate" && spec.has("updateStrategy.rollingUpdate") {
            spec.or_put("updateStrategy.rollingUpdate.partition", 0);
        }
        for when in ["whenDeleted", "whenScaled"] {
            spec.or_put(&format!("persistentVolumeClaimRetentionPolicy.{when}"), "Retain");
        }
        spec.or_put("replicas", 1);
        spec.or_put("revisionHistoryLimit", HISTORY);
        for claim in spec.list_mut("volumeClaimTemplates") {
            claim.put("apiVersion", "v1");
            claim.put("kind", "PersistentVolumeClaim");
            claim.or_put("spec.volumeMode", "Filesystem");
            claim.or_put("status.phase", "Pending");
        }
        defaults::template(spec, "template");
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        defaults::zero_counts(object, &["replicas", "availableReplicas"]);
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = spec_of(object);
        let policy = spec.child("podManagementPolicy");
        if errors.need(&policy, "") && !["OrderedReady", "Parallel"].contains(&policy.str()) {
            errors.invalid(&policy, "must be 'OrderedReady' or 'Parallel'");
        }
        let (strategy, rolling) = (spec.child("updateStrategy"), spec.child("updateStrategy.rollingUpdate"));
        match strategy.value.text("type") {
            "" => errors.required(&strategy, ""),
            "OnDelete" if rolling.there() => {
                errors.invalid(&rolling, "only allowed for updateStrategy 'RollingUpdate'")
            }
            "OnDelete" => {}
            "RollingUpdate" => {
                errors.not_negative(&rolling.child("partition"));
                int_or_percent(&rolling.child("maxUnavailable"), &mut errors);
                at_most_all(&rolling.child("maxUnavailable"), &mut errors);
            }
            _ => errors.invalid(&strategy, "must be 'RollingUpdate' or 'OnDelete'"),
        }
        for when in ["whenDeleted", "whenScaled"] {
            errors.one_of(&spec.child("persistentVolumeClaimRetentionPolicy").child(when), &["Delete", "Retain"]);
        }
        for field in ["replicas", "minReadySeconds", "ordinals.start", "revisionHistoryLimit"] {
            errors.not_negative(&spec.child(field));
        }
        check_selector(&spec.child("selector"), "statefulset", &mut errors);
        selected(&spec, &mut errors);
        let pods = template_with_claims(spec.value);
        let pods = At { value: &pods, path: spec.path.child("template") };
        pod_spec::template(&pods, &mut errors);
        lasting_pods(&pods, "StatefulSet", &mut errors);
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        const MUTABLE: [&str; 7] = [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
        ];
        if cx.subresource == "status" {
            let mut errors = Errors::default();
            let counted = ["readyReplicas", "availableReplicas", "currentReplicas", "updatedReplicas"];
            counts(&At::root(object), &counted, &mut errors);
            return errors.0;
        }
        let mut errors = Errors(self.validate_create(cx, object));
        let mut rest = object.at("spec").clone();
        for field in MUTABLE {
            rest.copy_from(field, old.at("spec"));
        }
        if !same(&rest, old.at("spec")) {
            errors.forbidden(
                &At::root(object).child("spec"),
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            );
        }
        errors.0
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        template_warnings(object)
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let [names, images] = containers(object.list(CONTAINERS));
        vec![name(object), ready(object), age(object, now), names, images]
    }
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
mod tests {
    use super::*;
    use crate::validate::tests::expect;

    const CX: Context<'static> = Context { now: "2026-01-01T00:00:00Z", user: "u", groups: &[], subresource: "" };

    fn workload(changes: Value) -> Value {
        let mut object = json!({"metadata": {"name": "w"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}});
        for (path, value) in changes.as_object().unwrap() {
            object.put(path, value.clone());
        }
        object
    }

    fn check(strategy: &dyn Strategy, changes: Value, expected: &[&str]) -> Value {
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
    fn stateful_sets_mount_their_claims() {
        let claims = json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]);
        let containers = json!([{"name": "c", "image": "x", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]);
        let old = check(
            &StatefulSet,
            json!({"spec.volumeClaimTemplates": claims, "spec.template.spec.containers": containers}),
            &[],
        );
        assert_eq!(old["spec"]["volumeClaimTemplates"][0]["status"], json!({"phase": "Pending"}));
        let mut new = old.clone();
        new.put("spec.replicas", 3);
        expect(&StatefulSet.validate_update(&CX, &new, &old), &[], &new);
        new.put("spec.serviceName", "other");
        assert_eq!(StatefulSet.validate_update(&CX, &new, &old).len(), 1);
        check(
            &StatefulSet,
            json!({"spec.podManagementPolicy": "X"}),
            &["spec.podManagementPolicy: Invalid value: \"X\": must be 'OrderedReady' or 'Parallel'"],
        );
    }

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
