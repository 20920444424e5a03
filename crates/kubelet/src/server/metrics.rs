//! `/metrics`: the agent's own numbers in the Prometheus text format.

use std::collections::BTreeMap;

use http::{Response, StatusCode};

use super::{Body, text};
use crate::agent::Context;
use crate::cri::v1;
use crate::pods::observed::State;
use crate::pods::status::is_terminal;
use crate::spec;
use crate::volumes::usage::{self, Usage};

/// All metrics.
pub async fn serve(context: &Context) -> Response<Body> {
    let pods = context.workers.pods();
    let active = pods.iter().filter(|p| !is_terminal(p.status.as_ref().and_then(|s| s.phase.as_deref()))).count();
    let mut by_state: BTreeMap<&str, usize> = [("created", 0), ("exited", 0), ("running", 0), ("unknown", 0)].into();
    let containers = context.engine.list_containers(v1::ListContainersRequest::default()).await;
    for container in containers.map(|a| a.containers).unwrap_or_default() {
        let state = match State::from_wire(container.state) {
            State::Created => "created",
            State::Running => "running",
            State::Exited => "exited",
            State::Unknown => "unknown",
        };
        *by_state.entry(state).or_default() += 1;
    }
    let node = format!("{{node=\"{}\"}}", context.config.node_name);
    let mut out = String::new();
    let mut gauge = |name: &str, help: &str, lines: Vec<(String, usize)>| {
        out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n"));
        for (labels, value) in lines {
            out.push_str(&format!("{name}{labels} {value}\n"));
        }
    };
    let one = |value: usize| vec![(String::new(), value)];
    gauge("kubelet_node_name", "The node's name. The count is always 1.", vec![(node, 1)]);
    gauge("kubelet_running_pods", "Number of pods that have a running pod sandbox", one(active));
    gauge("kubelet_desired_pods", "The number of pods the kubelet is being instructed to run", one(pods.len()));
    gauge(
        "kubelet_running_containers",
        "Number of containers currently running",
        by_state.into_iter().map(|(state, n)| (format!("{{container_state=\"{state}\"}}"), n)).collect(),
    );
    gauge(
        "kubelet_managed_ephemeral_containers",
        "Current number of ephemeral containers in pods managed by this kubelet.",
        one(pods.iter().map(|p| spec::spec(p).ephemeral_containers.as_ref().map_or(0, Vec::len)).sum()),
    );
    volumes(context, &mut gauge).await;
    text(StatusCode::OK, out)
}

type Pick = fn(&Usage) -> Option<u64>;

/// Numbers of claims' volumes, as monitoring knows them.
const OF_VOLUMES: [(&str, &str, Pick); 6] = [
    ("kubelet_volume_stats_available_bytes", "Number of available bytes in the volume", |u| u.available),
    ("kubelet_volume_stats_capacity_bytes", "Capacity in bytes of the volume", |u| u.capacity),
    ("kubelet_volume_stats_inodes", "Maximum number of inodes in the volume", |u| u.inodes),
    ("kubelet_volume_stats_inodes_free", "Number of free inodes in the volume", |u| u.inodes_free),
    ("kubelet_volume_stats_inodes_used", "Number of used inodes in the volume", |u| u.inodes_used),
    ("kubelet_volume_stats_used_bytes", "Number of used bytes in the volume", |u| u.used),
];

async fn volumes(context: &Context, gauge: &mut impl FnMut(&str, &str, Vec<(String, usize)>)) {
    // A claim that several pods use is one volume.
    let mut found: BTreeMap<(String, String), Usage> = BTreeMap::new();
    for pod in context.workers.pods() {
        for counted in usage::of(context, &pod).await {
            if let Some(claim) = counted.claim {
                found.insert((spec::namespace(&pod).to_string(), claim), counted.usage);
            }
        }
    }
    if found.is_empty() {
        return;
    }
    for (name, help, pick) in OF_VOLUMES {
        let line = |((namespace, claim), usage): (&(String, String), &Usage)| {
            let labels = format!("{{namespace=\"{namespace}\",persistentvolumeclaim=\"{claim}\"}}");
            Some((labels, usize::try_from(pick(usage)?).ok()?))
        };
        gauge(name, help, found.iter().filter_map(line).collect());
    }
}
