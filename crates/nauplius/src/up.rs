//! `nauplius up`: a whole cluster on this machine, in the foreground, until Ctrl-C.
//!
//! The control plane runs in this process, each role a supervised task (or, with `--split`, each in a process of its
//! own); each node is a child process inside its own network namespace. Containers live under shims of their own, so
//! nothing that happens to these processes touches them. All state is in the data directory; the network is
//! [`crate::fabric`]'s.

mod children;
mod progress;
mod reset;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use client::{Client, Informers};
use tokio_util::sync::CancellationToken;

use crate::claim::Claim;
use crate::cli::{Ranges, parse_listen};
use crate::fabric::{Fabric, Layout};
use crate::local::Local;
use crate::pki::{Pki, Purpose};
use crate::roles::{self, apiserver::StoreOptions};
use crate::{preflight, supervise};
use children::{Child, Children};
use progress::Progress;

pub use reset::{ResetOptions, run as reset};

/// How long the nodes may take to become Ready before `up` says which are not.
const NODES_READY_WITHIN: Duration = Duration::from_secs(60);
const MAX_NODES: u32 = 100;

#[derive(clap::Args, Clone)]
pub struct Options {
    /// Only the API server, scheduler and controllers: needs no root, touches nothing but its data directory.
    #[arg(long)]
    pub control_plane_only: bool,
    /// Where everything is kept [default: /var/lib/nauplius, or ~/.local/share/nauplius without root].
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Where to serve HTTPS.
    #[arg(long, default_value = "127.0.0.1:6443", value_parser = parse_listen)]
    pub listen: SocketAddr,
    /// Where to write the administrator's kubeconfig [default: DATA_DIR/admin.kubeconfig].
    #[arg(long)]
    pub kubeconfig_out: Option<PathBuf>,
    /// How many nodes, each in a network namespace of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_NODES)))]
    pub nodes: u32,
    /// Nodes that are objects only: their pods are said to run, and run nowhere.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=roles::simulated::MAX))]
    pub simulated_nodes: u32,
    #[command(flatten)]
    pub simulated_schedule: roles::simulated::ScheduleOptions,
    #[command(flatten)]
    pub store: StoreOptions,
    /// Another container engine's CRI socket, for a cluster of one node.
    #[arg(long)]
    pub container_runtime_endpoint: Option<String>,
    #[command(flatten)]
    pub ranges: Ranges,
    #[command(flatten)]
    pub network: crate::fabric::PodNetworkOptions,
    /// Connect pods by the CNI plugins of the configuration found here, or in its folder named like the node; without, by the
    /// built-in bridge.
    #[arg(long, conflicts_with = "container_runtime_endpoint")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Run each role in a process of its own, over HTTPS.
    #[arg(long)]
    pub split: bool,
    /// How long a node may say nothing before it counts as lost.
    #[arg(long, value_parser = roles::seconds, default_value = "50s")]
    pub node_monitor_grace_period: Duration,
    /// Give nodes ranges for their pods; without, whoever adds nodes brings their network, as a control plane alone expects.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", hide = true)]
    pub allocate_node_cidrs: Option<bool>,
    #[command(flatten)]
    pub serving: roles::Serving,
    #[command(flatten)]
    pub audit: roles::AuditOptions,
    #[command(flatten)]
    pub access: roles::AccessOptions,
    #[command(flatten)]
    pub admission: roles::AdmissionOptions,
}

/// Where a cluster's files are when no one says.
pub fn default_data_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/var/lib/nauplius".into();
    }
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home =
        || std::env::var_os("HOME").map_or_else(|| PathBuf::from("/tmp"), |h| PathBuf::from(h).join(".local/share"));
    data.unwrap_or_else(home).join("nauplius")
}

/// The data directory, made, and absolute.
pub fn data_dir(asked: Option<&Path>) -> Result<PathBuf> {
    let dir = asked.map_or_else(default_data_dir, Path::to_path_buf);
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make the data directory {}", dir.display()))?;
    dir.canonicalize().with_context(|| format!("cannot use the data directory {}", dir.display()))
}

/// The name of a cluster's namespaces: plain for the usual data directory, with a mark for any other.
pub fn cluster_name(data_dir: &Path) -> String {
    if data_dir == Path::new("/var/lib/nauplius") {
        return "nauplius".into();
    }
    let hash = crate::fabric::fnv1a_64(data_dir.as_os_str().as_encoded_bytes());
    format!("nauplius-{:06x}", hash & 0xff_ffff)
}

/// A client of the running cluster under one identity.
struct Identities<'a> {
    pki: &'a Pki,
    dir: PathBuf,
    /// Where clients outside the cluster's namespaces find the API server.
    outside: String,
    /// And inside.
    inside: String,
}

impl Identities<'_> {
    fn kubeconfig(&self, name: &str, user: &str, groups: &[&str], inside: bool) -> Result<PathBuf> {
        let pair = self.pki.pair(name, user, groups, &Purpose::Client)?;
        let file = self.dir.join(format!("{name}.kubeconfig"));
        self.pki.kubeconfig(&file, if inside { &self.inside } else { &self.outside }, user, &pair)?;
        Ok(file)
    }
}

pub async fn run(options: Options, cancel: CancellationToken) -> Result<()> {
    let began = Instant::now();
    let with_nodes = !options.control_plane_only;
    let usual = Layout::new("nauplius", 0);
    let own = [usual.node_network.into(), usual.node_network_v6.into()];
    options.ranges.check(if with_nodes { options.nodes } else { 1 }, &own)?;
    if options.container_runtime_endpoint.is_some() && (options.nodes > 1 || !with_nodes) {
        bail!("--container-runtime-endpoint names one engine, which serves one node: use it with --nodes 1");
    }
    if with_nodes {
        preflight::node()?;
    }
    options.serving.read_for_all()?;
    if options.split && options.listen.port() == 0 {
        bail!("--split needs a port that all its processes know: name one with --listen");
    }
    let data_dir = data_dir(options.data_dir.as_deref())?;
    let claim = Claim::take(&data_dir).await?;
    // Asked before anything is made; whoever serves binds it for good.
    drop(roles::listen(options.listen).await?);
    let progress = Progress::new(began);
    let pki = Pki::open(&data_dir.join("pki"))?;
    let layout = Layout {
        pod_networks: options.ranges.cluster_cidr.clone(),
        service_networks: options.ranges.service_cluster_ip_range.clone(),
        ..Layout::new(cluster_name(&data_dir), options.nodes)
    };
    let fabric = if with_nodes {
        let layout = layout.clone();
        let fabric = tokio::task::spawn_blocking(move || Fabric::ensure(&layout)).await??;
        progress.done("network");
        Some(fabric)
    } else {
        None
    };

    let server_options = roles::apiserver::Options {
        data_dir: data_dir.clone(),
        listen: options.listen,
        advertise_address: fabric.as_ref().map(|f| f.layout.control_plane_address()),
        ranges: options.ranges.clone(),
        network_namespace: fabric.as_ref().map(|f| f.layout.fabric_namespace()),
        store: options.store.clone(),
        serving: options.serving.clone(),
        audit: options.audit.clone(),
        access: options.access.clone(),
        listening: roles::ListeningOptions { admission: options.admission.clone(), ..Default::default() },
    };
    let mut children = Children::new(cancel.clone(), &claim);
    // Ended after everything that still talks to it.
    let server_cancel = CancellationToken::new();
    let mut running = None;
    let mut roles_tasks = tokio_util::task::TaskTracker::new();
    let address;
    if options.split {
        address = options.listen;
        children.start(Child::apiserver(&server_options)?, server_cancel.clone());
    } else {
        let started = roles::apiserver::start(&server_options, &pki, server_cancel.clone()).await?;
        address = started.address;
        running = Some(started);
    }
    let outside = format!("https://{address}");
    let inside = fabric.as_ref().map_or_else(
        || outside.clone(),
        |f| format!("https://{}", SocketAddr::new(f.layout.control_plane_address(), address.port())),
    );
    let identities = Identities { pki: &pki, dir: data_dir.join("kubeconfig"), outside: outside.clone(), inside };
    let admin_pair = pki.pair("admin", "kubernetes-admin", &["system:masters"], &Purpose::Client)?;
    let kubeconfig = options.kubeconfig_out.clone().unwrap_or_else(|| data_dir.join("admin.kubeconfig"));
    pki.kubeconfig(&kubeconfig, &outside, "kubernetes-admin", &admin_pair)?;
    let admin = match &running {
        Some(running) => {
            Local::new(running.server.clone(), "kubernetes-admin", &["system:masters"], "nauplius").client()
        }
        None => roles::connect(&kubeconfig, "nauplius").await?,
    };
    children::ready(&admin, &cancel).await?;
    progress.done("kube-apiserver");
    crate::node::dns_service(&admin, &options.ranges.dns()).await?;
    crate::node::publish_roles(&admin).await?;

    let controller_options = controllers::Options {
        node_monitor_grace_period: options.node_monitor_grace_period,
        allocate_node_cidrs: options
            .allocate_node_cidrs
            .unwrap_or(!options.control_plane_only || options.simulated_nodes > 0),
        ..roles::controller_manager::options_of(&options.ranges, &pki, &data_dir)?
    };
    match &running {
        Some(running) => {
            start_in_process(&mut roles_tasks, running, controller_options, options.serving.gates.clone(), &cancel);
        }
        None => {
            let scheduler = identities.kubeconfig("scheduler", "system:kube-scheduler", &[], false)?;
            let controllers =
                identities.kubeconfig("controller-manager", "system:kube-controller-manager", &[], false)?;
            children.start(Child::scheduler(&scheduler, &options.serving.gates)?, cancel.clone());
            children.start(
                Child::controller_manager(
                    &controllers,
                    &options.ranges,
                    &pki.ca_file(),
                    (options.node_monitor_grace_period, controller_options.allocate_node_cidrs),
                )?,
                cancel.clone(),
            );
        }
    }
    progress.done("kube-scheduler");
    progress.done("kube-controller-manager");

    simulate(&options, running.as_ref(), &admin, &identities, (&mut roles_tasks, &mut children), &cancel).await?;
    if let Some(fabric) = &fabric {
        for n in 1..=options.nodes {
            for child in Child::node(&options, &data_dir, &fabric.layout, n, &identities, &pki)? {
                children.start(child, cancel.clone());
            }
        }
        let informers = Informers::new(admin.clone());
        let (namespace, first, token) =
            (fabric.layout.node_namespace(1), fabric.layout.node_addresses(1)[0], cancel.clone());
        roles_tasks.spawn(crate::fabric::publish_node_ports(informers.clone(), namespace, first, token));
        let balancers = fabric.layout.balancer_networks();
        roles_tasks.spawn(proxy::balancer::run(admin.clone(), informers.clone(), balancers.clone(), cancel.clone()));
        let (namespace, token) = (fabric.layout.fabric_namespace(), cancel.clone());
        roles_tasks.spawn(async move {
            if let Err(error) = crate::fabric::routes_in(informers, &namespace, balancers, token).await {
                tracing::error!(%error, "routes from the control plane to pods");
            }
        });
        progress.waiting(&format!("{} node{}", options.nodes, if options.nodes == 1 { "" } else { "s" }));
    }
    let real = if with_nodes { options.nodes } else { 0 };
    if real + options.simulated_nodes > 0 {
        nodes_ready(&admin, real, options.simulated_nodes, &progress, &cancel).await?;
    }
    progress.finish(&kubeconfig, options.control_plane_only && options.simulated_nodes == 0);
    cancel.cancelled().await;
    progress.stopping();
    roles_tasks.close();
    roles_tasks.wait().await;
    children.ended().await;
    server_cancel.cancel();
    if let Some(running) = running {
        running.ended().await;
    }
    children.ended().await;
    Ok(())
}

/// Scheduler and controllers beside the API server, each under its own identity.
fn start_in_process(
    tasks: &mut tokio_util::task::TaskTracker,
    running: &roles::apiserver::Running,
    controllers: controllers::Options,
    gates: roles::FeatureGates,
    cancel: &CancellationToken,
) {
    let client = |user: &str, agent: &str| Local::new(running.server.clone(), user, &[], agent).client();
    let (scheduler, token) = (client("system:kube-scheduler", roles::SCHEDULER), cancel.clone());
    tasks.spawn(async move {
        let run = |own| roles::run_scheduler(scheduler.clone(), false, gates.clone(), own);
        supervise::role(roles::SCHEDULER, token, run).await;
    });
    let (manager, token) = (client("system:kube-controller-manager", roles::CONTROLLER_MANAGER), cancel.clone());
    tasks.spawn(async move {
        supervise::role(roles::CONTROLLER_MANAGER, token, |own| {
            roles::run_controllers(manager.clone(), controllers.clone(), own)
        })
        .await;
    });
}

/// Simulated nodes, beside the API server or in a process of their own; without any, those of an earlier run go.
async fn simulate(
    options: &Options,
    running: Option<&roles::apiserver::Running>,
    admin: &Client,
    identities: &Identities<'_>,
    (tasks, children): (&mut tokio_util::task::TaskTracker, &mut Children),
    cancel: &CancellationToken,
) -> Result<()> {
    use roles::simulated;
    if options.simulated_nodes == 0 {
        let admin = admin.clone();
        tasks.spawn(async move {
            if let Err(status) = kubelet::simulated::remove_beyond(&admin, 0).await {
                tracing::warn!("simulated nodes of an earlier run not removed: {status}");
            }
        });
        return Ok(());
    }
    simulated::grant(admin).await?;
    let (nodes, grace) = (options.simulated_nodes, options.node_monitor_grace_period);
    let Some(running) = running else {
        let kubeconfig = identities.kubeconfig("simulated-nodes", simulated::USER, &[], false)?;
        let child = Child::simulated_nodes(&kubeconfig, nodes, &options.simulated_schedule, grace)?;
        children.start(child, cancel.clone());
        return Ok(());
    };
    let client = Local::new(running.server.clone(), simulated::USER, &[], simulated::AGENT).client();
    let simulation = simulated::simulation(nodes, &options.simulated_schedule, grace);
    let token = cancel.clone();
    tasks.spawn(async move {
        supervise::role(simulated::AGENT, token, |own| {
            let run = kubelet::simulated::run(client.clone(), simulation.clone(), own);
            async {
                run.await;
                Ok(())
            }
        })
        .await;
    });
    Ok(())
}

/// Waits until the nodes report Ready, the simulated ones too; says so and goes on when some do not in time.
async fn nodes_ready(
    admin: &Client,
    real: u32,
    simulated: u32,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<()> {
    use k8s_openapi::api::core::v1::Node;
    let informers = Informers::new(admin.clone());
    let nodes = informers.get::<Node>();
    let mut changes = nodes.subscribe();
    let deadline = tokio::time::Instant::now() + NODES_READY_WITHIN;
    let (mut seen, mut seen_simulated) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    let mut waits_for_simulated = simulated > 0;
    loop {
        if waits_for_simulated && seen_simulated.len() >= simulated as usize {
            waits_for_simulated = false;
            progress.done(&format!("{simulated} simulated node{}", if simulated == 1 { "" } else { "s" }));
        }
        if seen.len() >= real as usize && !waits_for_simulated {
            return Ok(());
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep_until(deadline) => {
                let (ready, count) = (seen.len() + seen_simulated.len(), real + simulated);
                progress.note(&format!("{ready} of {count} nodes are Ready after {} s; see the log of the others", NODES_READY_WITHIN.as_secs()));
                return Ok(());
            }
            batch = changes.next() => {
                let objects = match batch {
                    Some(client::Batch::Changes(batch)) => batch.into_iter().filter_map(|c| c.new).collect(),
                    Some(client::Batch::Resync) => nodes.list(None),
                    None => return Ok(()),
                };
                for object in objects {
                    note_ready(&object, &mut seen, &mut seen_simulated, progress);
                }
            }
        }
    }
}

/// Notes a node that is Ready. One of an earlier life says so until its kubelet speaks again; that is as good.
fn note_ready(
    object: &meta::Object,
    seen: &mut std::collections::BTreeSet<String>,
    seen_simulated: &mut std::collections::BTreeSet<String>,
    progress: &Progress,
) {
    use k8s_openapi::api::core::v1::Node;
    let Ok(node) = object.typed::<Node>() else { return };
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    if !conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True") {
        return;
    }
    let name = object.meta.name.to_string();
    if object.meta.label(kubelet::simulated::LABEL).is_some() {
        seen_simulated.insert(name);
    } else if seen.insert(name) {
        progress.done(&object.meta.name);
    }
}
