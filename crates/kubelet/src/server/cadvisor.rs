//! `/metrics/cadvisor`: usage of containers and pods under the names monitoring stacks know, from the engine's numbers.

use std::collections::HashMap;
use std::fmt::Write;

use http::{Response, StatusCode};
use jiff::Timestamp;

use ::cri::metrics::{OF_CONTAINERS, OF_NETWORKS, OF_PODS, Row};

use super::{Body, text};
use crate::agent::Context;
use crate::cri::v1;
use crate::metrics::escaped;
use crate::spec::{self, names};

/// One metric's lines.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    lines: Vec<(String, f64)>,
}

fn labels(of: &v1::ContainerAttributes, image: &str) -> String {
    let label = |key: &str| of.labels.get(key).map(|v| escaped(v)).unwrap_or_default();
    let (pod, namespace, container) =
        (label(names::POD_NAME), label(names::POD_NAMESPACE), label(names::CONTAINER_NAME));
    format!(
        "container=\"{container}\",id=\"/kubepods/pod{}/{}\",image=\"{}\",name=\"{}\",namespace=\"{namespace}\",pod=\"{pod}\"",
        label(names::POD_UID),
        of.id,
        escaped(image),
        of.id
    )
}

/// Puts a row's series where those of its name are.
fn add<T>(all: &mut Vec<Family>, row: &Row<T>, labels: String, of: &T) {
    let Some(value) = (row.pick)(of) else { return };
    let further: String = row.labels.iter().map(|(name, value)| format!(",{name}=\"{value}\"")).collect();
    let line = (labels + &further, value);
    match all.iter_mut().find(|f| f.name == row.name) {
        Some(family) => family.lines.push(line),
        None => {
            let kind = if row.kind == v1::MetricType::Counter { "counter" } else { "gauge" };
            all.push(Family { name: row.name, kind, help: row.help, lines: vec![line] });
        }
    }
}

fn families(
    stats: &[v1::ContainerStats],
    sandboxes: &[v1::PodSandboxStats],
    images: &HashMap<String, String>,
) -> Vec<Family> {
    let mut all = Vec::new();
    for row in OF_CONTAINERS {
        for one in stats {
            let Some(of) = &one.attributes else { continue };
            let image = images.get(&of.id).map_or("", String::as_str);
            add(&mut all, row, labels(of, image), one);
        }
    }
    for one in sandboxes {
        let Some(of) = one.attributes.as_ref().and_then(|a| a.metadata.as_ref()) else { continue };
        let own = |further: &str| {
            format!(
                "container=\"\",id=\"/kubepods/pod{}\",image=\"\",{further}name=\"\",namespace=\"{}\",pod=\"{}\"",
                of.uid, of.namespace, of.name
            )
        };
        for row in OF_PODS {
            add(&mut all, row, own(""), one);
        }
        let network = one.linux.as_ref().and_then(|l| l.network.as_ref());
        if let Some(interface) = network.and_then(|n| n.default_interface.as_ref()) {
            for row in OF_NETWORKS {
                add(&mut all, row, own(&format!("interface=\"{}\",", interface.name)), interface);
            }
        }
    }
    all
}

/// What containers were given, and when they began.
async fn granted(context: &Context, stats: &[v1::ContainerStats]) -> Vec<Family> {
    let began = context.stats.began(context).await;
    let pods: HashMap<String, _> = context.workers.pods().into_iter().map(|p| (spec::uid(&p).to_string(), p)).collect();
    let rows = [
        ("container_start_time_seconds", "When the container began, since 1970."),
        ("container_spec_cpu_period", "The period of its processor limit, in microseconds."),
        ("container_spec_cpu_quota", "Processor time it may use in a period, in microseconds."),
        ("container_spec_cpu_shares", "Its share of processors when they are short."),
        ("container_spec_memory_limit_bytes", "Memory it may use, in bytes; 0 is without limit."),
    ];
    let mut all = rows.map(|(name, help)| Family { name, kind: "gauge", help, lines: Vec::new() });
    for of in stats.iter().filter_map(|s| s.attributes.as_ref()) {
        let label = |key: &str| of.labels.get(key).map(String::as_str).unwrap_or_default();
        let pod = pods.get(label(names::POD_UID));
        let found = pod.and_then(|pod| Some((pod, spec::find_container(pod, label(names::CONTAINER_NAME))?)));
        let numbers = found.map(|(pod, (kind, container))| {
            spec::resources::container(pod, kind, &container, context.machine.memory_bytes as i64)
        });
        let numbers = numbers.as_ref();
        let values = [
            began.get(&of.id).map(|at| *at as f64 / 1e9),
            numbers.filter(|n| n.cpu_quota > 0).map(|n| n.cpu_period as f64),
            numbers.filter(|n| n.cpu_quota > 0).map(|n| n.cpu_quota as f64),
            numbers.map(|n| n.cpu_shares as f64),
            numbers.map(|n| n.memory_limit_in_bytes as f64),
        ];
        for (family, value) in all.iter_mut().zip(values) {
            family.lines.extend(value.map(|value| (labels(of, ""), value)));
        }
    }
    all.into()
}

fn printed(families: &[Family], at: Timestamp) -> String {
    let mut out = String::new();
    let millis = at.as_millisecond();
    for family in families.iter().filter(|f| !f.lines.is_empty()) {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# HELP {} {}\n# TYPE {} {}", family.name, family.help, family.name, family.kind);
        for (labels, value) in &family.lines {
            let _ = match labels.is_empty() {
                true => writeln!(out, "{} {value}", family.name),
                false => writeln!(out, "{}{{{labels}}} {value} {millis}", family.name),
            };
        }
    }
    out
}

/// All of it, now.
pub async fn serve(context: &Context) -> Response<Body> {
    let (stats, sandboxes, containers) = tokio::join!(
        context.engine.list_container_stats(v1::ListContainerStatsRequest::default()),
        context.engine.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()),
        context.engine.list_containers(v1::ListContainersRequest::default()),
    );
    let stats = match stats {
        Ok(answer) => answer.stats,
        Err(status) => return text(StatusCode::INTERNAL_SERVER_ERROR, status.message()),
    };
    // Not every engine counts sandboxes: then there are no numbers of networks.
    let sandboxes = sandboxes.map(|a| a.stats).unwrap_or_default();
    let images = containers.map(|a| a.containers).unwrap_or_default();
    let images = images.into_iter().map(|c| (c.id, c.image.map(|i| i.user_specified_image).unwrap_or_default()));
    let mut all = families(&stats, &sandboxes, &images.collect());
    all.extend(granted(context, &stats).await);
    let machine = |name, help, value| Family { name, kind: "gauge", help, lines: vec![(String::new(), value)] };
    all.push(machine("machine_cpu_cores", "Processors.", context.machine.cpus as f64));
    all.push(machine("machine_memory_bytes", "Memory of the machine, in bytes.", context.machine.memory_bytes as f64));
    let mut response = text(StatusCode::OK, printed(&all, Timestamp::now()));
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert("content-type", kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_names() {
        let labels = [(names::POD_NAME, "p\"q"), (names::POD_NAMESPACE, "n"), (names::CONTAINER_NAME, "c")];
        let stats = v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                id: "i".into(),
                labels: labels.map(|(k, v)| (k.to_string(), v.to_string())).into(),
                ..Default::default()
            }),
            memory: Some(v1::MemoryUsage {
                working_set_bytes: Some(v1::UInt64Value { value: 7 }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let text = printed(&families(&[stats], &[], &HashMap::new()), Timestamp::from_second(1).unwrap());
        let expect = "# HELP container_memory_working_set_bytes Memory that cannot be dropped easily, in bytes.\n# TYPE container_memory_working_set_bytes gauge\n\
            container_memory_working_set_bytes{container=\"c\",id=\"/kubepods/pod/i\",image=\"\",name=\"i\",namespace=\"n\",pod=\"p\\\"q\"} 7 1000\n";
        assert_eq!(text, expect);
    }
}
