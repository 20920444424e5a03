//! autoscaling: the horizontal pod autoscaler.

use meta::{FieldError, Status, Value};
use serde_json::json;

use crate::cells::{age, name, quantity, some_of};
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors, NOT_NEGATIVE, formats, resources};
use meta::Tree;

kinds! {
    HorizontalPodAutoscaler: "Name|Reference|Targets|MinPods|MaxPods|Replicas|Age";
}

/// Metrics shown before the rest is counted.
const METRICS_SHOWN: usize = 2;

/// `current/target` of one metric.
fn metric(spec: &Value, status: &Value) -> String {
    let source = match spec.text("type") {
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        _ => return "<unknown type>".into(),
    };
    let (target, current) = (spec[source].at("target"), status.at(source).at("current"));
    let amount =
        |from: &Value, field: &str| if from.has(field) { quantity(from.at(field)) } else { "<unknown>".into() };
    let percent = |value: Option<i64>, absent: &str| value.map_or_else(|| absent.to_string(), |p| format!("{p}%"));
    match source {
        "resource" | "containerResource" => {
            let values = if target.has("averageValue") {
                format!("{}/{}", amount(current, "averageValue"), amount(target, "averageValue"))
            } else {
                let current = percent(current.number("averageUtilization"), "<unknown>");
                format!("{current}/{}", percent(target.number("averageUtilization"), "<auto>"))
            };
            format!("{}: {values}", spec[source].text("name"))
        }
        "object" | "external" if target.has("averageValue") => {
            format!("{}/{} (avg)", amount(current, "averageValue"), amount(target, "averageValue"))
        }
        "pods" => format!("{}/{}", amount(current, "averageValue"), amount(target, "averageValue")),
        _ => format!("{}/{}", amount(current, "value"), amount(target, "value")),
    }
}

const CPU_PERCENT: i64 = 80;
const MAX_WINDOW_SECONDS: i64 = 3600;
const MAX_PERIOD_SECONDS: i64 = 1800;
/// Kinds of metrics and the fields that hold them.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];
/// The fields again, in the order upstream looks at them.
const SOURCES_LOOKED_AT: [&str; 5] = ["object", "external", "pods", "resource", "containerResource"];
/// Where `v1` keeps what it has no fields for: annotation and path in `v2`.
const V1_ANNOTATIONS: [(&str, &str); 4] = [
    ("autoscaling.alpha.kubernetes.io/metrics", "spec.metrics"),
    ("autoscaling.alpha.kubernetes.io/behavior", "spec.behavior"),
    ("autoscaling.alpha.kubernetes.io/current-metrics", "status.currentMetrics"),
    ("autoscaling.alpha.kubernetes.io/conditions", "status.conditions"),
];

fn cpu_metric(percent: Value) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
}

/// The CPU percentage among metrics, taken out of them.
fn take_cpu(metrics: &mut Vec<Value>, utilization: &str) -> Option<Value> {
    let at = metrics.iter().position(|m| {
        m.text("type") == "Resource" && m.text("resource.name") == "cpu" && m.at("resource").has(utilization)
    })?;
    Some(metrics.remove(at).at("resource").at(utilization).clone())
}

fn to_v1(object: &mut Value) {
    for (path, v1, utilization) in [
        ("spec.metrics", "spec.targetCPUUtilizationPercentage", "target.averageUtilization"),
        ("status.currentMetrics", "status.currentCPUUtilizationPercentage", "current.averageUtilization"),
    ] {
        let mut metrics = object.list(path).to_vec();
        if let Some(percent) = take_cpu(&mut metrics, utilization) {
            object.put(path, metrics);
            object.put(v1, percent);
        }
    }
    for (annotation, path) in V1_ANNOTATIONS {
        let value = object.at(path).clone();
        let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        object.drop(path);
        if !empty {
            object.dig("metadata.annotations").insert(annotation.into(), value.to_string().into());
        }
    }
    object.put("apiVersion", "autoscaling/v1");
}

fn to_v2(object: &mut Value) {
    for (annotation, path) in V1_ANNOTATIONS {
        let Some(Value::Object(annotations)) = object.at_mut("metadata.annotations") else { break };
        if let Some(text) = annotations.remove(annotation)
            && let Ok(value) = serde_json::from_str::<Value>(text.as_str().unwrap_or_default())
        {
            object.put(path, value);
        }
    }
    if object.at("metadata.annotations").as_object().is_some_and(serde_json::Map::is_empty) {
        object.drop("metadata.annotations");
    }
    for (v1, path, field) in [
        ("spec.targetCPUUtilizationPercentage", "spec.metrics", "target"),
        ("status.currentCPUUtilizationPercentage", "status.currentMetrics", "current"),
    ] {
        let percent = object.at(v1).clone();
        object.drop(v1);
        if !percent.is_null() {
            let metric = match field {
                "target" => cpu_metric(percent),
                _ => {
                    json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent, "averageValue": "0"}}})
                }
            };
            let mut metrics = object.list(path).to_vec();
            metrics.insert(0, metric);
            object.put(path, metrics);
        }
    }
    object.put("apiVersion", "autoscaling/v2");
}

fn check_target(at: &At<'_>, errors: &mut Errors) {
    let kind = at.child("type");
    errors.need(&kind, "must specify a metric target type");
    if !["AverageValue", "Utilization", "Value"].contains(&kind.str()) {
        errors.invalid_as(&kind, kind.str(), "must be either Utilization, Value, or AverageValue");
    }
    for amount in ["value", "averageValue"].map(|f| at.child(f)).into_iter().filter(At::there) {
        if meta::quantity::Quantity::from_value(amount.value).is_ok_and(|q| q.sign() != 1) {
            errors.invalid(&amount, "must be positive");
        }
    }
    errors.positive(&at.child("averageUtilization"));
}

fn check_metric(at: &At<'_>, errors: &mut Errors) {
    let kind = at.child("type");
    let names = SOURCES.map(|(name, _)| name);
    errors.need(&kind, "must specify a metric source type");
    errors.one_of(&kind, &names);
    // Only the first of several is looked into.
    let given = || SOURCES_LOOKED_AT.iter().filter(|field| at.value.has(field));
    if let Some(field) = given().next() {
        check_source(&at.child(field), field, errors);
    }
    let Some((_, wanted)) = SOURCES.iter().find(|(name, _)| *name == kind.str()) else {
        return errors.not_supported(&kind, &names);
    };
    if !at.value.has(wanted) {
        errors.required(&at.child(wanted), "must populate information for the given metric source");
    }
    if given().count() != 1 {
        for other in given().filter(|field| *field != wanted) {
            errors.forbidden(&at.child(other), "must populate the given metric source only");
        }
    }
}

fn check_source(source: &At<'_>, field: &str, errors: &mut Errors) {
    let target = source.child("target");
    let has = |f: &str| target.value.has(f);
    let name = source.child("metric.name");
    match field {
        "resource" | "containerResource" => {
            let (resource, container) = (source.child("name"), source.child("container"));
            if errors.need(&resource, "must specify a resource name") && field == "containerResource" {
                resources::container_name(&resource, resource.str(), errors);
            }
            if field == "containerResource" && errors.need(&container, "must specify a container") {
                errors.format(&container, formats::dns_label);
            }
        }
        _ => {
            if field == "object" {
                check_reference(&source.child("describedObject"), Versions { empty_group: true, any: false }, errors);
            }
            if errors.need(&name, "must specify a metric name") {
                errors.path_segment(&name);
            }
        }
    }
    check_target(&target, errors);
    let (average, utilization) = (target.child("averageValue"), target.child("averageUtilization"));
    match field {
        "resource" | "containerResource" => match (has("averageUtilization"), has("averageValue")) {
            (false, false) => {
                errors.required(&utilization, "must set either a target raw value or a target utilization");
            }
            (true, true) => {
                errors.forbidden(&average, "may not set both a target raw value and a target utilization");
            }
            _ => {}
        },
        "pods" if !has("averageValue") => errors.required(&average, "must specify a positive target averageValue"),
        "object" if !has("value") && !has("averageValue") => {
            errors.required(&average, "must set either a target value or averageValue");
        }
        "external" if !has("value") && !has("averageValue") => {
            errors.required(&average, "must set either a target value for metric or a per-pod target");
        }
        "external" if has("value") && has("averageValue") => {
            let both = "may not set both a target value for metric and a per-pod target";
            errors.forbidden(&target.child("value"), both);
        }
        _ => {}
    }
}

/// What may be said of the API a reference is to.
#[derive(Clone, Copy)]
struct Versions {
    empty_group: bool,
    any: bool,
}

fn check_reference(at: &At<'_>, versions: Versions, errors: &mut Errors) {
    for field in ["kind", "name"].map(|f| at.child(f)) {
        if errors.need(&field, "") {
            errors.path_segment(&field);
        }
    }
    let version = at.child("apiVersion");
    if versions.any {
        return;
    }
    let slashes = version.str().matches('/').count();
    if slashes > 1 {
        errors.invalid(&version, format!("unexpected GroupVersion string: {}", version.str()));
    } else if !versions.empty_group && version.str().split_once('/').is_none_or(|(group, _)| group.is_empty()) {
        errors.invalid_as(&version, version.str(), "apiVersion must specify API group");
    }
}

fn check_scaling(at: &At<'_>, errors: &mut Errors) {
    if !at.there() {
        return;
    }
    let (window, policies) = (at.child("stabilizationWindowSeconds"), at.child("policies"));
    errors.at_least(&window, 0, "must be greater than or equal to zero");
    if window.number().is_some_and(|s| s > MAX_WINDOW_SECONDS) {
        errors.invalid(&window, format!("must be less than or equal to {MAX_WINDOW_SECONDS}"));
    }
    errors.may_one_of(&at.child("selectPolicy"), &["Disabled", "Max", "Min"]);
    if policies.value.list("").is_empty() {
        errors.required(&policies, "must specify at least one Policy");
    }
    for policy in policies.items() {
        errors.one_of(&policy.child("type"), &["Percent", "Pods"]);
        for field in ["value", "periodSeconds"].map(|f| policy.child(f)) {
            if field.number().unwrap_or(0) <= 0 {
                errors.invalid_as(&field, field.number().unwrap_or(0), "must be greater than zero");
            }
        }
        if policy.value.int("periodSeconds") > MAX_PERIOD_SECONDS {
            errors
                .invalid(&policy.child("periodSeconds"), format!("must be less than or equal to {MAX_PERIOD_SECONDS}"));
        }
    }
    let tolerance = at.child("tolerance");
    if meta::quantity::Quantity::from_value(tolerance.value).is_ok_and(|q| q.sign() < 0) {
        errors.invalid(&tolerance, NOT_NEGATIVE);
    }
}

fn check(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
    let (least, most) = (spec.child("minReplicas"), spec.child("maxReplicas"));
    errors.not_negative(&least);
    let max = most.number().unwrap_or(0);
    match max {
        0 => errors.required(&most, "must be set and greater than 0"),
        ..0 => errors.invalid(&most, "must be greater than or equal to 1"),
        _ => {}
    }
    if least.number().is_some_and(|min| max < min) {
        errors.invalid_as(&most, max, "must be greater than or equal to `minReplicas`");
    }
    let target = spec.child("scaleTargetRef");
    // What stands there already may stay; the core API has one kind that scales.
    let kept = old.is_some_and(|old| {
        ["apiVersion", "kind"].iter().all(|f| old.at("spec.scaleTargetRef").text(f) == target.value.text(f))
    });
    let versions = Versions { empty_group: target.value.text("kind") == "ReplicationController", any: kept };
    check_reference(&target, versions, &mut errors);
    for metric in spec.each("metrics") {
        check_metric(&metric, &mut errors);
    }
    let from_outside = |metric: &Value| ["External", "Object"].contains(&metric.text("type"));
    if least.number() == Some(0) && !spec.value.list("metrics").iter().any(from_outside) {
        let detail = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.forbidden(&spec.child("metrics"), detail);
    }
    check_scaling(&spec.child("behavior.scaleUp"), &mut errors);
    check_scaling(&spec.child("behavior.scaleDown"), &mut errors);
    errors.0
}

impl Strategy for HorizontalPodAutoscaler {
    fn past_versions(&self) -> &'static [&'static str] {
        &["v2beta2"]
    }

    fn default(&self, object: &mut Value) {
        crate::defaults::zero_counts(object, &["desiredReplicas"]);
        let Some(spec) = object.at_mut("spec") else { return };
        spec.or_put("minReplicas", 1);
        if spec.list("metrics").is_empty() {
            spec.put("metrics", json!([cpu_metric(CPU_PERCENT.into())]));
        }
        if let Some(behavior) = spec.at_mut("behavior") {
            let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
            behavior.or_put("scaleUp.stabilizationWindowSeconds", 0);
            behavior.or_put("scaleUp.policies", json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, percent]));
            behavior.or_put("scaleDown.policies", json!([percent]));
            for way in ["scaleUp", "scaleDown"] {
                behavior.or_put(&format!("{way}.selectPolicy"), "Max");
            }
        }
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        crate::defaults::zero_counts(object, &["desiredReplicas"]);
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        check(object, None)
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        if cx.subresource != "status" {
            return check(object, Some(old));
        }
        let (status, mut errors) = (At::new(object.at("status"), "status"), Errors::default());
        errors.not_negative(&status.child("currentReplicas"));
        errors.not_negative(&status.child("desiredReplicas"));
        errors.0
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        false
    }

    /// Stored as `v2`. What `v1` lacks is kept in annotations, in the form `v2` has it.
    fn convert(&self, object: &mut Value, from: &str, to: &str) -> Result<(), Status> {
        match (from, to) {
            ("v1", "v2") => to_v2(object),
            ("v2", "v1") => to_v1(object),
            _ => {}
        }
        Ok(())
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let statuses = object.list("status.currentMetrics");
        let metrics = object
            .list("spec.metrics")
            .iter()
            .enumerate()
            .map(|(i, m)| metric(m, statuses.get(i).unwrap_or(&Value::Null)));
        let target = object.at("spec.scaleTargetRef");
        vec![
            name(object),
            format!("{}/{}", target.text("kind"), target.text("name")).into(),
            some_of(metrics, METRICS_SHOWN, ", ", "<none>"),
            object.number("spec.minReplicas").map_or("<unset>".into(), |n| n.to_string().into()),
            object.int("spec.maxReplicas").into(),
            object.int("status.currentReplicas").into(),
            age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::expect;

    const CX: Context<'static> = Context::SOMEBODY;

    #[test]
    fn versions_go_both_ways() {
        let mut v1 = json!({"apiVersion": "autoscaling/v1", "metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}});
        let given = v1.clone();
        HorizontalPodAutoscaler.convert(&mut v1, "v1", "v2").unwrap();
        assert_eq!(v1["spec"]["metrics"], json!([cpu_metric(json!(50))]));
        v1["spec"]["metrics"].as_array_mut().unwrap().push(json!({"type": "Pods", "pods": {}}));
        let v2 = v1.clone();
        HorizontalPodAutoscaler.convert(&mut v1, "v2", "v1").unwrap();
        assert_eq!(v1["spec"], given["spec"]);
        HorizontalPodAutoscaler.convert(&mut v1, "v1", "v2").unwrap();
        assert_eq!(v1, v2);
    }

    #[test]
    fn autoscalers_are_checked_and_printed() {
        let check = |spec: Value, expected: &[&str]| {
            let mut object = json!({"metadata": {"name": "h"}, "spec": spec});
            HorizontalPodAutoscaler.default(&mut object);
            expect(&HorizontalPodAutoscaler.validate_create(&CX, &object), expected, &object);
            object
        };
        let target = || json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
        let good = check(json!({"maxReplicas": 3, "scaleTargetRef": target(), "behavior": {}}), &[]);
        let row = HorizontalPodAutoscaler.table_row(&good, CX.now);
        assert_eq!((&row[1], &row[2], &row[3]), (&json!("Deployment/d"), &json!("cpu: <unknown>/80%"), &json!("1")));
        check(
            json!({"maxReplicas": 1, "minReplicas": 2, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment"}}),
            &[
                "spec.maxReplicas: Invalid value: 1: must be greater than or equal to `minReplicas`",
                "spec.scaleTargetRef.name: Required value",
            ],
        );
        check(
            json!({"maxReplicas": 1, "scaleTargetRef": target(), "metrics": [{"type": "Pods"}]}),
            &["spec.metrics[0].pods: Required value: must populate information for the given metric source"],
        );
    }
}
