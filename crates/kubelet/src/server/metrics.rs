//! `/metrics`: the agent's own numbers in the Prometheus text format.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use http::{Response, StatusCode};
use k8s_openapi::api::core::v1::Pod;

use super::{Body, text};
use crate::agent::Context;
use crate::certificates::Store;
use crate::cgroups;
use crate::cri::v1;
use crate::metrics::families;
use crate::node::machine;
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
    let by_source = |wanted: &dyn Fn(&Pod) -> bool| {
        let count =
            |fixed: bool| pods.iter().filter(|p| context.statics.is_static(spec::uid(p)) == fixed && wanted(p)).count();
        vec![("{static=\"\"}".to_string(), count(false)), ("{static=\"true\"}".to_string(), count(true))]
    };
    let ends = |p: &Pod| p.metadata.deletion_timestamp.is_some();
    let is_over = |p: &Pod| is_terminal(p.status.as_ref().and_then(|s| s.phase.as_deref()));
    gauge("kubelet_node_name", "The node's name; always 1.", vec![(node, 1)]);
    gauge("kubelet_running_pods", "Pods that run here and are not over.", one(active));
    gauge("kubelet_desired_pods", "Pods that are to run here, by whether they are static.", by_source(&|_| true));
    gauge(
        "kubelet_active_pods",
        "Pods that are not over and not ending, by whether they are static.",
        by_source(&|p| !is_over(p) && !ends(p)),
    );
    gauge("kubelet_working_pods", "Pods by where in their life they are.", working(context, &pods));
    gauge("kubelet_mirror_pods", "Static pods that the API knows.", one(mirrors(context)));
    gauge("kubelet_cgroup_version", "The version of cgroups: 1 or 2.", one(if cgroups::is_v2() { 2 } else { 1 }));
    gauge(
        "kubelet_running_containers",
        "Containers by what became of them.",
        by_state.into_iter().map(|(state, n)| (format!("{{container_state=\"{state}\"}}"), n)).collect(),
    );
    gauge(
        "kubelet_managed_ephemeral_containers",
        "Ephemeral containers of the pods here.",
        one(pods.iter().map(|p| spec::spec(p).ephemeral_containers.as_ref().map_or(0, Vec::len)).sum()),
    );
    gauge(
        "volume_manager_total_volumes",
        "Volumes of the pods here, by kind: those there are to be, and those that are.",
        total_volumes(context, &pods),
    );
    if let Some((shared, exclusive)) = context.processors.counts() {
        gauge(
            "kubelet_cpu_manager_shared_pool_size_millicores",
            "Thousandths of processors that all others share.",
            one(shared * 1000),
        );
        gauge(
            "kubelet_cpu_manager_exclusive_cpu_allocation_count",
            "Processors that containers have for themselves.",
            one(exclusive),
        );
    }
    let began = Instant::now();
    volumes(context, &mut gauge).await;
    context.metrics.since(&families::VOLUME_LOOKS, &["pvc"], began);
    out.push_str(&build_info(&context.config.version));
    out.push_str(&context.metrics.printed(&families::ALL));
    out.push_str(&certificates(context));
    out.push_str(&client::process::text());
    // A process that serves more than this agent shows its clients' figures where it shows all of them, too.
    out.push_str(&client::exposition::text());
    text(StatusCode::OK, out)
}

/// `/metrics/probes`.
pub fn probes(context: &Context) -> String {
    context.metrics.printed(&families::PROBES)
}

/// How long the certificates in use are still good for.
fn certificates(context: &Context) -> String {
    let dir = context.config.root_dir.join("pki");
    let now = jiff::Timestamp::now();
    let mut out = String::new();
    for (name, store) in [("client", Store::client(&dir)), ("server", Store::server(&dir))] {
        if let Some((_, until)) = store.valid(now) {
            let name = format!("kubelet_certificate_manager_{name}_ttl_seconds");
            let left = until.duration_since(now).as_secs();
            out.push_str(&format!(
                "# HELP {name} How long the certificate in use is valid yet.\n# TYPE {name} gauge\n{name} {left}\n"
            ));
        }
    }
    out
}

/// Static pods that the API has a mirror of.
fn mirrors(context: &Context) -> usize {
    let of = |o: &Arc<client::Object>| o.typed::<Pod>().ok();
    let mirrors = context.pods.list(None).into_iter();
    mirrors
        .filter(|o| {
            of(o).is_some_and(|p| {
                p.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(spec::names::CONFIG_MIRROR))
            })
        })
        .count()
}

/// Pods by where in their life they are, whether anybody wants them, and whether they are static.
fn working(context: &Context, pods: &[Arc<Pod>]) -> Vec<(String, usize)> {
    let mut counted: BTreeMap<String, usize> = BTreeMap::new();
    for pod in pods {
        let works = context.workers.works_on(spec::uid(pod));
        let ending = pod.metadata.deletion_timestamp.is_some();
        let lifecycle = match (works, ending) {
            (false, _) => "terminated",
            (true, true) => "terminating",
            (true, false) => "sync",
        };
        let fixed = if context.statics.is_static(spec::uid(pod)) { "true" } else { "" };
        *counted.entry(format!("{{config=\"desired\",lifecycle=\"{lifecycle}\",static=\"{fixed}\"}}")).or_default() +=
            1;
    }
    counted.into_iter().collect()
}

/// Volumes by kind.
fn total_volumes(context: &Context, pods: &[Arc<Pod>]) -> Vec<(String, usize)> {
    let mut counted: BTreeMap<(String, &str), usize> = BTreeMap::new();
    for pod in pods.iter().filter(|p| !is_terminal(p.status.as_ref().and_then(|s| s.phase.as_deref()))) {
        let ready = context.places.names(spec::uid(pod));
        for volume in spec::spec(pod).volumes.iter().flatten() {
            let kind = crate::volumes::plugin(volume);
            if ready.contains(&volume.name) {
                *counted.entry((kind.clone(), "actual_state_of_world")).or_default() += 1;
            }
            *counted.entry((kind, "desired_state_of_world")).or_default() += 1;
        }
    }
    let labels = |(kind, state): (String, &str)| format!("{{plugin_name=\"{kind}\",state=\"{state}\"}}");
    counted.into_iter().map(|(key, n)| (labels(key), n)).collect()
}

/// What this is.
fn build_info(version: &str) -> String {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let name = "kubernetes_build_info";
    format!(
        "# HELP {name} The version of what runs here; always 1.\n# TYPE {name} gauge\n\
         {name}{{git_version=\"{version}\",major=\"{major}\",minor=\"{minor}\",platform=\"linux/{}\"}} 1\n",
        machine::architecture()
    )
}

type Pick = fn(&Usage) -> Option<u64>;

/// Numbers of claims' volumes, as monitoring knows them.
const OF_VOLUMES: [(&str, &str, Pick); 6] = [
    ("kubelet_volume_stats_available_bytes", "Bytes of the volume that are free.", |u| u.available),
    ("kubelet_volume_stats_capacity_bytes", "Bytes of the volume.", |u| u.capacity),
    ("kubelet_volume_stats_inodes", "Inodes of the volume.", |u| u.inodes),
    ("kubelet_volume_stats_inodes_free", "Inodes of the volume that are free.", |u| u.inodes_free),
    ("kubelet_volume_stats_inodes_used", "Inodes of the volume in use.", |u| u.inodes_used),
    ("kubelet_volume_stats_used_bytes", "Bytes of the volume in use.", |u| u.used),
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
