//! autoscaling: the horizontal pod autoscaler.

use meta::Value;

use crate::cells::{age, name, quantity, some_of};
use crate::strategy::Strategy;
use crate::tree::Tree;

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
    let amount = |from: &Value, field: &str| if from.has(field) { quantity(from.at(field)) } else { "<unknown>".into() };
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

impl Strategy for HorizontalPodAutoscaler {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let statuses = object.list("status.currentMetrics");
        let metrics = object.list("spec.metrics").iter().enumerate().map(|(i, m)| metric(m, statuses.get(i).unwrap_or(&Value::Null)));
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
