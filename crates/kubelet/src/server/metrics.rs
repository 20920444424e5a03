//! `/metrics`: the agent's own numbers in the Prometheus text format.

use std::collections::BTreeMap;

use http::{Response, StatusCode};

use super::{Body, text};
use crate::agent::Context;
use crate::cri::v1;
use crate::pods::observed::State;
use crate::pods::status::is_terminal;
use crate::spec;

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
    text(StatusCode::OK, out)
}
