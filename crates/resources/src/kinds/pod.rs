//! Pods: what the server fills in, what may change, and how they go.
//!
//! The rules of a pod's spec, which workloads share, are in [`crate::validate::pod_spec`].

use meta::{FieldError, Value};
use serde_json::json;

use crate::defaults;
use crate::kinds::pod_columns;
use crate::strategy::{Context, Deletion, Strategy};
use crate::validate::{At, Errors, formats, pod_spec, pod_update, resources};
use meta::Tree;

kinds! {
    Pod: "Name|Ready|Status|Restarts|Age|IP*|Node*|Nominated Node*|Readiness Gates*";
}

const CONTAINERS: [&str; 2] = ["containers", "initContainers"];

/// Takes from a pod only its containers' resources; everything else is the old pod's.
fn keep_but_resources(object: &mut Value, old: &Value) {
    let mut pod = old.clone();
    for list in CONTAINERS {
        let asked = object.at("spec").list(list);
        for container in pod.at_mut("spec").map(|s| s.list_mut(list)).unwrap_or_default() {
            if let Some(wanted) = asked.iter().find(|c| c["name"] == container["name"]) {
                container.copy_from("resources", wanted);
                container.copy_from("resizePolicy", wanted);
            }
        }
    }
    pod.copy_from("spec.resources", object);
    pod.copy_from("metadata.managedFields", object);
    *object = pod;
}

/// Affinity terms that name keys of the pod's own labels get the values those have now.
fn merge_label_keys(pod: &mut Value) {
    const TERMS: [&str; 2] =
        ["requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"];
    let labels = pod.map("metadata.labels").clone();
    for kind in ["podAffinity", "podAntiAffinity"] {
        for list in TERMS {
            let terms = pod.at_mut(&format!("spec.affinity.{kind}")).map(|a| a.list_mut(list)).unwrap_or_default();
            for term in terms {
                let term = if term.has("podAffinityTerm") { &mut term["podAffinityTerm"] } else { term };
                if !term.has("labelSelector") {
                    continue;
                }
                let mut expressions = term.list("labelSelector.matchExpressions").to_vec();
                for (keys, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
                    let keys =
                        term.list(keys).iter().filter_map(Value::as_str).filter_map(|k| Some((k, labels.get(k)?)));
                    expressions
                        .extend(keys.map(|(key, value)| json!({"key": key, "operator": operator, "values": [value]})));
                }
                if expressions.len() > term.list("labelSelector.matchExpressions").len() {
                    term.put("labelSelector.matchExpressions", expressions);
                }
            }
        }
    }
}

impl Strategy for Pod {
    fn default(&self, object: &mut Value) {
        defaults::pod(object);
    }

    fn prepare_create(&self, cx: &Context<'_>, object: &mut Value) {
        let mut status = json!({"phase": "Pending", "qosClass": resources::quality_of_service(object.at("spec"))});
        if !object.list("spec.schedulingGates").is_empty() {
            status.put(
                "conditions",
                json!([{
                    "type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "lastProbeTime": null,
                    "lastTransitionTime": cx.now, "message": "Scheduling is blocked due to non-empty scheduling gates",
                }]),
            );
        }
        object.put("status", status);
        merge_label_keys(object);
    }

    fn prepare_update(&self, cx: &Context<'_>, object: &mut Value, old: &Value) {
        match cx.subresource {
            "status" => {
                object.copy_from("status.qosClass", old);
                object.copy_from("metadata.ownerReferences", old);
            }
            "resize" => keep_but_resources(object, old),
            "ephemeralcontainers" => {
                let mut pod = old.clone();
                pod.copy_from("spec.ephemeralContainers", object);
                pod.copy_from("metadata.managedFields", object);
                *object = pod;
                defaults::pod(object);
            }
            _ => object.copy_from("status", old),
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = At::new(object.at("spec"), "spec");
        pod_spec::spec(&spec, object.text("metadata.name"), &mut errors);
        if spec.value.text("serviceAccountName").is_empty() {
            for token in spec
                .each("volumes")
                .flat_map(|v| v.each("projected.sources"))
                .map(|s| s.child("serviceAccountToken"))
                .filter(At::there)
            {
                errors.forbidden(&token, "must not be specified when serviceAccountName is not set");
            }
        }
        if !spec.value.list("ephemeralContainers").is_empty() {
            errors.forbidden(&spec.child("ephemeralContainers"), "cannot be set on create");
        }
        if !spec.value.text("nodeName").is_empty() && !spec.value.list("schedulingGates").is_empty() {
            errors.forbidden(&spec.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = At::new(object.at("spec"), "spec");
        if cx.subresource == "status" {
            pod_update::status(&At::root(object), old, &mut errors);
            return errors.0;
        }
        pod_spec::spec(&spec, object.text("metadata.name"), &mut errors);
        match cx.subresource {
            "ephemeralcontainers" => pod_update::ephemeral_containers(&spec, old.at("spec"), &mut errors),
            "resize" => pod_update::resize(&spec, old, &mut errors),
            _ => pod_update::spec(&spec, old.at("spec"), &mut errors),
        }
        errors.0
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        env_warnings(&At::new(object.at("spec"), "spec"))
    }

    fn validate_name(&self, name: &str, generate: bool) -> Result<(), String> {
        formats::name(formats::dns_subdomain, name, generate)
    }

    fn deletion(&self, object: &Value, requested: Option<i64>) -> Deletion {
        let finished = matches!(object.text("status.phase"), "Failed" | "Succeeded");
        // None is given where nobody would use it, and the pod says so as it goes.
        if finished || object.text("spec.nodeName").is_empty() {
            return Deletion::Graceful(0);
        }
        match requested.or(object.number("spec.terminationGracePeriodSeconds")).unwrap_or(0) {
            seconds if seconds < 0 => Deletion::Graceful(1),
            seconds => Deletion::Graceful(seconds),
        }
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        pod_columns::row(object, now)
    }
}

/// Variables that hide earlier ones of the same name.
pub fn env_warnings(spec: &At<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    for container in CONTAINERS.iter().flat_map(|list| spec.each(list)) {
        let mut seen = std::collections::HashSet::new();
        for variable in container.each("env") {
            let name = variable.value.text("name");
            if !seen.insert(name) {
                warnings.push(format!(
                    "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                    variable.path
                ));
            }
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::expect;

    fn pod() -> Value {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "a", "image": "x:1"}]}});
        Pod.default(&mut pod);
        Pod.prepare_create(&cx(""), &mut pod);
        pod
    }

    fn cx(subresource: &'static str) -> Context<'static> {
        Context { subresource, ..Context::SOMEBODY }
    }

    #[test]
    fn a_new_pod_is_pending() {
        assert_eq!(pod()["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
        assert_eq!(Pod.validate_create(&cx(""), &pod()), []);
    }

    #[test]
    fn affinity_follows_the_pods_own_labels() {
        let mut pod = pod();
        pod.put("metadata.labels", json!({"hash": "1"}));
        let term = json!({"topologyKey": "z", "labelSelector": {"matchLabels": {"a": "b"}}, "matchLabelKeys": ["hash", "other"]});
        pod.put("spec.affinity.podAffinity", json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]}));
        Pod.prepare_create(&cx(""), &mut pod);
        let merged = &pod["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
        assert_eq!(
            merged["labelSelector"]["matchExpressions"],
            json!([{"key": "hash", "operator": "In", "values": ["1"]}])
        );
    }

    #[test]
    fn little_of_a_pod_may_change() {
        let check = |subresource, path: &str, value: Value, expected: &[&str]| {
            let (old, mut new) = (pod(), pod());
            match path.strip_prefix("containers.") {
                Some(field) => new["spec"].list_mut("containers")[0].put(field, value),
                None => new.put(path, value),
            }
            Pod.prepare_update(&cx(subresource), &mut new, &old);
            let errors = Pod.validate_update(&cx(subresource), &new, &old);
            let first_lines: Vec<String> =
                errors.iter().map(|e| e.to_string().lines().next().unwrap_or_default().to_string()).collect();
            assert_eq!(first_lines, expected, "{path}");
            new
        };
        const OTHER: &str = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        check("", "containers.image", json!("x:2"), &[]);
        check("", "spec.activeDeadlineSeconds", json!(5), &[]);
        check("", "spec.tolerations", json!([{"operator": "Exists"}]), &[]);
        check("", "metadata.labels", json!({"a": "b"}), &[]);
        check("", "spec.hostname", json!("h"), &[OTHER]);
        check("", "containers.command", json!(["x"]), &[OTHER]);
        check("", "containers.resources", json!({"limits": {"cpu": "1"}}), &[OTHER]);
        check(
            "",
            "spec.containers",
            json!([{"name": "a", "image": "x", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"},
            {"name": "b", "image": "x", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}]),
            &["spec.containers: Forbidden: pod updates may not add or remove containers"],
        );
        let resized = check(
            "resize",
            "containers.resources",
            json!({"requests": {"cpu": "1"}}),
            &["spec: Invalid value: \"Burstable\": Pod QOS Class may not change as a result of resizing"],
        );
        assert_eq!(resized["spec"]["containers"][0]["resources"]["requests"]["cpu"], "1");
        let same = check("resize", "containers.image", json!("y"), &[]);
        assert_eq!(same, pod());
        let debugged =
            check("ephemeralcontainers", "spec.ephemeralContainers", json!([{"name": "d", "image": "b"}]), &[]);
        assert_eq!(debugged["spec"]["ephemeralContainers"][0]["imagePullPolicy"], "Always");
    }

    #[test]
    fn pods_go_gracefully_when_they_run() {
        let check = |changes: &[(&str, Value)], requested, expected| {
            let mut pod = pod();
            for (path, value) in changes {
                pod.put(path, value.clone());
            }
            assert_eq!(Pod.deletion(&pod, requested), expected, "{changes:?}");
        };
        let node = ("spec.nodeName", json!("n"));
        check(&[], None, Deletion::Graceful(0));
        check(std::slice::from_ref(&node), None, Deletion::Graceful(30));
        check(std::slice::from_ref(&node), Some(5), Deletion::Graceful(5));
        check(std::slice::from_ref(&node), Some(0), Deletion::Graceful(0));
        check(&[node, ("status.phase", json!("Failed"))], None, Deletion::Graceful(0));
    }

    #[test]
    fn create_takes_no_ephemeral_containers() {
        let mut pod = pod();
        pod.put("spec.ephemeralContainers", json!([{"name": "d", "image": "b"}]));
        Pod.default(&mut pod);
        expect(
            &Pod.validate_create(&cx(""), &pod),
            &["spec.ephemeralContainers: Forbidden: cannot be set on create"],
            &pod,
        );
    }
}
