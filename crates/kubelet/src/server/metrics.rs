//! `/metrics`: the agent's own numbers in the Prometheus text format.

use http::{Response, StatusCode};

use super::{Body, text};
use crate::agent::Context;
use crate::pods::status::is_terminal;

/// All metrics.
pub fn serve(context: &Context) -> Response<Body> {
    let pods = context.workers.pods();
    let active = pods.iter().filter(|p| !is_terminal(p.status.as_ref().and_then(|s| s.phase.as_deref()))).count();
    let node = &context.config.node_name;
    let out = format!(
        "# HELP kubelet_node_name The node's name. The count is always 1.\n# TYPE kubelet_node_name gauge\nkubelet_node_name{{node=\"{node}\"}} 1\n\
         # HELP kubelet_running_pods Number of pods that have a running pod sandbox\n# TYPE kubelet_running_pods gauge\nkubelet_running_pods {active}\n\
         # HELP kubelet_desired_pods The number of pods the kubelet is being instructed to run\n# TYPE kubelet_desired_pods gauge\nkubelet_desired_pods {}\n",
        pods.len()
    );
    text(StatusCode::OK, out)
}
