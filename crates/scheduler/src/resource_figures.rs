//! `/metrics/resources`: what pods ask for and may take at most, pod by pod, as scheduler and kubelet reckon it.
//!
//! Apart from `/metrics`, since it has several lines for every pod of the cluster. Pods that ended take nothing.

use std::fmt::Write;

use client::Informers;
use client::metrics::{escape, head};
use k8s_openapi::api::core::v1::Pod;
use meta::Object;

use crate::amounts::{self, Amounts};
use crate::view::PodView;
use crate::world::view;

/// In what a resource is counted, where that is known.
fn unit(resource: &str) -> &'static str {
    match resource {
        "cpu" => "cores",
        "memory" | "storage" | "ephemeral-storage" => "bytes",
        _ if resource.starts_with("hugepages-") => "bytes",
        _ if resource.starts_with("attachable-volumes-") => "integer",
        _ => "",
    }
}

fn lines(out: &mut String, name: &str, labels: &str, amounts: &Amounts) {
    let mut line = |resource: &str, amount: f64| {
        if amount != 0.0 {
            let unit = unit(resource);
            let _ = writeln!(out, "{name}{{{labels},resource=\"{}\",unit=\"{unit}\"}} {amount}", escape(resource));
        }
    };
    line("cpu", amounts.cpu as f64 / 1000.0);
    line("memory", amounts.memory as f64);
    line("ephemeral-storage", amounts.ephemeral as f64);
    amounts.extended.iter().for_each(|e| line(&e.name, e.amount as f64));
}

/// The page of all pods that an informer's set follows.
pub fn page(informers: &Informers) -> String {
    of_pods(informers.get::<Pod>().list(None).iter().map(|object| &**object))
}

fn of_pods<'a>(pods: impl Iterator<Item = &'a Object>) -> String {
    let (request, limit) = ("kube_pod_resource_request", "kube_pod_resource_limit");
    let (mut requests, mut limits) = (String::new(), String::new());
    let about = "What pods ask for, as the scheduler and the kubelet reckon it.";
    head(&mut requests, request, "gauge", &format!("[STABLE] {about}"));
    head(&mut limits, limit, "gauge", "[STABLE] What pods may take at most.");
    for object in pods {
        let Some(pod) = view::<PodView>(object) else { continue };
        let ended = matches!(&*pod.status.phase, "Succeeded" | "Failed");
        if ended && !pod.spec.node_name.is_empty() {
            continue;
        }
        let labels = format!(
            "namespace=\"{}\",pod=\"{}\",node=\"{}\",scheduler=\"{}\",priority=\"{}\"",
            object.meta.namespace, object.meta.name, pod.spec.node_name, pod.spec.scheduler_name, pod.spec.priority
        );
        lines(&mut requests, request, &labels, &amounts::of_pod(&pod.spec, &pod.status, false));
        lines(&mut limits, limit, &labels, &amounts::limits_of_pod(&pod.spec));
    }
    limits + &requests
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_are_told_as_upstream_tells_them() {
        let pod = |name: &str, spec: serde_json::Value, phase: &str| {
            let body = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "n"}, "spec": spec,
                "status": {"phase": phase}});
            Object::from_value(&body).unwrap()
        };
        let container = |requests: serde_json::Value, limits: serde_json::Value| json!({"resources": {"requests": requests, "limits": limits}});
        let pods = [
            pod(
                "a",
                json!({"nodeName": "m", "schedulerName": "s", "priority": 7, "overhead": {"cpu": "50m", "memory": "1Ki"},
                "containers": [container(json!({"cpu": "100m", "memory": "1Mi"}), json!({"cpu": "1", "example.com/x": "2"}))],
                "initContainers": [container(json!({"cpu": "2"}), json!({"cpu": "3"}))]}),
                "Running",
            ),
            pod(
                "ended",
                json!({"nodeName": "m", "containers": [container(json!({"cpu": "1"}), json!({}))]}),
                "Succeeded",
            ),
        ];
        let page = of_pods(pods.iter());
        let labels = "namespace=\"n\",pod=\"a\",node=\"m\",scheduler=\"s\",priority=\"7\"";
        let told: Vec<&str> = page.lines().filter(|l| !l.starts_with('#')).collect();
        let expect = [
            ("limit", "cpu", "cores", "3.05"),
            ("limit", "example.com/x", "", "2"),
            ("request", "cpu", "cores", "2.05"),
            ("request", "memory", "bytes", "1049600"),
        ];
        let expect = expect.map(|(which, resource, unit, amount)| {
            format!("kube_pod_resource_{which}{{{labels},resource=\"{resource}\",unit=\"{unit}\"}} {amount}")
        });
        assert_eq!(told, expect);
    }
}
