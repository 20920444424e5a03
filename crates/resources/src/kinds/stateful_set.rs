//! Stateful sets, whose pods keep names and volumes.

use meta::{FieldError, Value};
use serde_json::{Map, json};

use crate::cells::{age, containers, name};
use crate::defaults;
use crate::kinds::apps::{CONTAINERS, HISTORY, ready, spec_of, template_warnings};
use crate::kinds::volume::check_claim;
use crate::strategy::{Context, Strategy};
use crate::validate::workloads::{
    at_most_all, collisions, counts, int_or_percent, lasting_pods, selected, selector as check_selector,
};
use crate::validate::{At, Errors, formats, pod_spec, same};
use meta::Tree;

kinds! {
    StatefulSet: "Name|Ready|Age|Containers*|Images*";
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

fn check(object: &Value) -> Vec<FieldError> {
    let (spec, mut errors) = spec_of(object);
    let policy = spec.child("podManagementPolicy");
    if errors.need(&policy, "") && !["OrderedReady", "Parallel"].contains(&policy.str()) {
        errors.invalid(&policy, "must be 'OrderedReady' or 'Parallel'");
    }
    let (strategy, rolling) = (spec.child("updateStrategy"), spec.child("updateStrategy.rollingUpdate"));
    match strategy.value.text("type") {
        "" => errors.required(&strategy, ""),
        "OnDelete" if rolling.there() => errors.invalid(&rolling, "only allowed for updateStrategy 'RollingUpdate'"),
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
    for field in ["replicas", "minReadySeconds", "ordinals.start"] {
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
            spec.or_put("updateStrategy.rollingUpdate.maxUnavailable", 1);
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

    fn validate_name(&self, name: &str, generate: bool) -> Result<(), String> {
        formats::name(formats::dns_label, name, generate)
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors(check(object));
        // What was stored before these were looked at may stay.
        let spec = At::new(object.at("spec"), "spec");
        errors.may_format(&spec.child("serviceName"), formats::dns_label);
        spec.each("volumeClaimTemplates").for_each(|claim| check_claim(&claim.child("spec"), &mut errors));
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
            counts(&At::root(object), &counted, "status.readyReplicas", &mut errors);
            collisions(&At::root(object), old, &mut errors);
            return errors.0;
        }
        let mut errors = Errors(check(object));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::apps::tests::{CX, check};
    use crate::validate::tests::expect;

    #[test]
    fn stateful_sets_mount_their_claims() {
        let claims = json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]);
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
}
