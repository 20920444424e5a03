//! The agent as a whole: what its parts share, and their start.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use client::informer::Scope;
use client::{Client, Gvr, Informer};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::node::v1::RuntimeClass;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::cri::{Engine, v1};
use crate::events::Events;
use crate::eviction::{self, Evictions};
use crate::images::{self, Images};
use crate::metrics::Metrics;
use crate::node::machine::{self, Machine};
use crate::plugins::claims::Claims;
use crate::plugins::devices::Devices;
use crate::pods::allocation::Allocations;
use crate::pods::report::Turns;
use crate::pods::{self, Workers};
use crate::processors::{self, Processors};
use crate::references::References;
use crate::statics::Statics;
use crate::stats::Stats;
use crate::topology::Alignment;
use crate::user_namespaces::UserNamespaces;
use crate::volumes::certificates::Certificates;
use crate::volumes::csi::Csi;
use crate::volumes::tokens::Tokens;
use crate::volumes::usage::Places;
use crate::{cgroups, logs, node, oom, plugins, process, server, shutdown, spec, statics};

/// Between questions to an engine that is not up yet.
const ENGINE_RETRY: Duration = Duration::from_millis(10);

/// What the engine says of itself.
#[derive(Default)]
struct About {
    name: String,
    version: String,
    handlers: Vec<v1::RuntimeHandler>,
    supplemental_groups_policy: bool,
}

/// What all parts of the agent share.
pub struct Context {
    pub config: Config,
    pub client: Client,
    pub engine: Engine,
    pub events: Events,
    pub references: References,
    pub tokens: Tokens,
    pub users: UserNamespaces,
    pub metrics: Arc<Metrics>,
    /// When the agent began.
    pub began: std::time::Instant,
    pub devices: Devices,
    pub claims: Claims,
    pub allocations: Allocations,
    pub csi: Csi,
    pub places: Places,
    pub processors: Processors,
    pub alignment: Alignment,
    pub certificates: Certificates,
    pub images: Images,
    pub machine: Machine,
    pub host_ips: Vec<IpAddr>,
    /// Pods bound to this node.
    pub pods: Arc<Informer>,
    pub services: Arc<Informer>,
    /// This node's own object.
    pub nodes: Arc<Informer>,
    pub workers: Arc<Workers>,
    pub turns: Arc<Turns>,
    pub evictions: Evictions,
    pub statics: Statics,
    pub stats: Stats,
    /// Something the node's status depends on changed.
    pub node_changed: Arc<Notify>,
    /// The machine goes down: no pod begins any more.
    pub shutting_down: AtomicBool,
    /// Cancelled when the agent ends: whoever works for a pod stops where it is, and the next agent goes on.
    pub stopped: CancellationToken,
    /// Cancelled once every pod the API had at start has a worker.
    pub pods_seen: CancellationToken,
    /// Uids found in the engine that no worker has claimed yet.
    pub strangers: Mutex<HashSet<String>>,
    about: RwLock<About>,
}

impl Context {
    /// The node's object as the API has it.
    pub fn node(&self) -> Option<Arc<Node>> {
        self.nodes.get(&self.config.node_name)?.typed::<Node>().ok()
    }

    fn about<T>(&self, pick: impl FnOnce(&About) -> T) -> T {
        pick(&self.about.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until the engine answers, and learns its name.
    pub async fn learn_engine(&self) {
        loop {
            match self.engine.version(v1::VersionRequest { version: "v1".into() }).await {
                Ok(answer) => {
                    let mut about = self.about.write().unwrap_or_else(PoisonError::into_inner);
                    about.name = answer.runtime_name;
                    about.version = answer.runtime_version;
                    return;
                }
                Err(status) => tracing::debug!("engine does not answer yet: {status}"),
            }
            tokio::time::sleep(ENGINE_RETRY).await;
        }
    }

    /// Takes note of what the engine can do.
    pub fn learn_handlers(&self, status: &v1::StatusResponse) {
        let policy = status.features.as_ref().is_some_and(|f| f.supplemental_groups_policy);
        if self.about(|a| a.handlers != status.runtime_handlers || a.supplemental_groups_policy != policy) {
            let mut about = self.about.write().unwrap_or_else(PoisonError::into_inner);
            about.handlers = status.runtime_handlers.clone();
            about.supplemental_groups_policy = policy;
        }
    }

    pub fn runtime_name(&self) -> String {
        self.about(|a| a.name.clone())
    }

    /// `containerd://1.6.20`.
    pub fn runtime_version(&self) -> String {
        self.about(|a| format!("{}://{}", a.name, a.version.trim_start_matches('v')))
    }

    pub fn handlers(&self) -> Vec<v1::RuntimeHandler> {
        self.about(|a| a.handlers.clone())
    }

    pub fn supplemental_groups_policy(&self) -> bool {
        self.about(|a| a.supplemental_groups_policy)
    }

    /// Whether a handler (the default one, for no name) has a feature.
    pub fn handler_has(&self, name: &str, feature: impl Fn(&v1::RuntimeHandlerFeatures) -> bool) -> bool {
        self.about(|a| a.handlers.iter().any(|h| h.name == name && h.features.as_ref().is_some_and(&feature)))
    }

    /// Whether the default handler can mount recursively read-only.
    pub fn recursive_read_only(&self) -> bool {
        self.handler_has("", |f| f.recursive_read_only_mounts)
    }

    /// The handler of the pod's runtime class; empty for the engine's default.
    pub async fn runtime_handler(&self, pod: &Pod) -> Result<String, String> {
        let Some(name) = spec::spec(pod).runtime_class_name.as_deref().filter(|n| !n.is_empty()) else {
            return Ok(String::new());
        };
        match self.client.api::<RuntimeClass>().get(name).await {
            Ok(class) => Ok(class.handler.clone()),
            Err(status) if status.is_not_found() => Err(format!("RuntimeClass \"{name}\" not found")),
            Err(status) => Err(format!("failed to get RuntimeClass {name}: {status}")),
        }
    }
}

fn by_field(resource: &str, selector: String) -> Scope {
    Scope { field_selector: Some(selector), ..Scope::all(Gvr::new("", "v1", resource)) }
}

fn build(config: Config, client: Client) -> anyhow::Result<Arc<Context>> {
    process::prepare(&config)?;
    let dirs = [
        config.root_dir.join("pods"),
        config.pod_logs.clone(),
        config.log_dir.join("containers"),
        config.plugin_registry(),
    ];
    for dir in dirs {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let machine = Machine::look(&config.root_dir);
    let amounts = if config.bound_pods { machine.allocatable_amounts(&config) } else { machine.amounts(&config) };
    let of = |name: &str| amounts.get(name).copied().unwrap_or(0);
    cgroups::make_root(&config, of("memory") as u64, of("cpu"))?;
    cgroups::bound_reserved(&config)?;
    let host_ips = machine::addresses(&config);
    anyhow::ensure!(
        !host_ips.is_empty(),
        "no address for the node: no interface has one besides loopback; set node_ips"
    );
    let workers = Arc::<Workers>::default();
    let woken = workers.clone();
    let node_changed = Arc::new(Notify::new());
    let (counted, looked) = (node_changed.clone(), workers.clone());
    let devices_changed = move || {
        counted.notify_one();
        looked.wake_all();
    };
    let node = &config.node_name;
    let metrics = Arc::<Metrics>::default();
    Ok(Arc::new(Context {
        engine: Engine::new(&config.cri_endpoint, config.image_endpoint.as_deref(), metrics.clone()),
        events: Events::new(&client, node),
        references: References::new(client.clone(), Arc::new(move |uid: &str| woken.wake_for_references(uid))),
        tokens: Tokens::default(),
        users: UserNamespaces::load(&config),
        metrics: metrics.clone(),
        began: std::time::Instant::now(),
        devices: Devices::new(config.root_dir.join("device-plugins"), Arc::new(devices_changed), metrics.clone()),
        claims: Claims::load(config.root_dir.join("resource-claims.json")),
        allocations: Allocations::default(),
        certificates: Certificates::default(),
        csi: Csi::new(client.clone(), config.root_dir.clone(), config.node_name.clone(), metrics.clone()),
        places: Places::default(),
        processors: Processors::new(&config)?,
        alignment: Alignment::new(&config, machine.memory_bytes)?,
        images: Images::new(&config)?,
        machine,
        host_ips,
        pods: Informer::start(&client, by_field("pods", format!("spec.nodeName={node}"))),
        services: Informer::start(&client, Scope::all(Gvr::new("", "v1", "services"))),
        nodes: Informer::start(&client, by_field("nodes", format!("metadata.name={node}"))),
        workers,
        turns: Arc::default(),
        evictions: Evictions::default(),
        statics: Statics::default(),
        stats: Stats::default(),
        node_changed,
        shutting_down: AtomicBool::new(false),
        stopped: CancellationToken::new(),
        pods_seen: CancellationToken::new(),
        strangers: Mutex::default(),
        about: RwLock::default(),
        config,
        client,
    }))
}

/// What only plugins need is no reason to stop when it cannot be had: it is said, and done without.
async fn or_without(what: &str, ended: anyhow::Result<()>) {
    if let Err(error) = ended {
        tracing::error!("no service for {what}: {error:#}");
    }
    std::future::pending().await
}

/// Whether cgroups can be kept as the engine wants it, which goes before what the configuration says; an engine that
/// does not say leaves it to that.
async fn cgroup_driver(context: &Context) -> anyhow::Result<()> {
    let systemd = loop {
        match context.engine.runtime_config(v1::RuntimeConfigRequest {}).await {
            Ok(answer) => match answer.linux {
                Some(linux) => break linux.cgroup_driver() == v1::CgroupDriver::Systemd,
                None => break context.config.systemd_cgroups,
            },
            Err(status) if status.code() == tonic::Code::Unimplemented => break context.config.systemd_cgroups,
            Err(status) => tracing::debug!("engine does not say how it keeps cgroups: {status}"),
        }
        tokio::time::sleep(ENGINE_RETRY).await;
    };
    anyhow::ensure!(
        !systemd || !context.config.cgroups_per_qos,
        "the cgroup driver systemd is not supported: set cgroupDriver to cgroupfs, and the container engine to the same \
         (containerd: SystemdCgroup = false)"
    );
    Ok(())
}

/// Why an agent ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Cancelled,
    /// What it was given is out of date: another one has to go on.
    Outdated,
}

/// Runs the agent until it is cancelled or what it was given is out of date. Running pods are left running. Once this
/// returns, ports and sockets are free for the next agent.
pub async fn run(
    config: Config,
    client: Client,
    cancel: CancellationToken,
    outdated: impl Future<Output = ()>,
) -> anyhow::Result<Ended> {
    let client = client.with_field_manager("kubelet");
    let context = build(config, client)?;
    let _stop = context.stopped.clone().drop_guard();
    let listener = if context.config.serve { Some(server::Server::bind(&context).await?) } else { None };
    let mut parts = JoinSet::new();
    parts.spawn(node::run(context.clone()));
    parts.spawn(node::lease::run(context.clone()));
    parts.spawn(pods::pleg::follow(context.clone()));
    parts.spawn(eviction::run(context.clone()));
    parts.spawn(oom::run(context.clone()));
    parts.spawn(statics::run(context.clone()));
    parts.spawn(plugins::run(context.clone()));
    parts.spawn(processors::run(context.clone()));
    let devices = context.devices.clone();
    parts.spawn(async move { or_without("device plugins", plugins::devices::serve(devices).await).await });
    let listed = context.clone();
    parts.spawn(async move { or_without("pod resources", plugins::pod_resources::serve(listed).await).await });
    parts.spawn(logs::rotation::run(context.clone()));
    if let Some(listener) = listener {
        parts.spawn(listener.serve());
    }
    if let Some(address) = context.config.read_only {
        parts.spawn(server::read_only(context.clone(), address));
    }
    parts.spawn(server::healthz(context.config.healthz, context.metrics.clone()));
    let following = context.clone();
    parts.spawn(async move {
        // Pods are named by the engine that runs them: their status waits for its answer.
        following.learn_engine().await;
        pods::follow(following).await;
    });
    if let Some(policy) = context.config.image_gc.clone() {
        let collecting = context.clone();
        parts.spawn(async move { images::gc::run(&collecting, policy).await });
    }
    let driver = cgroup_driver(&context);
    let ended = tokio::select! {
        Err(refused) = driver => Err(refused),
        () = cancel.cancelled() => Ok(Ended::Cancelled),
        () = outdated => Ok(Ended::Outdated),
        Some(ended) = parts.join_next() => match ended {
            Ok(()) if cancel.is_cancelled() => Ok(Ended::Cancelled),
            Ok(()) => Err(anyhow::anyhow!("a part of the node agent ended by itself")),
            Err(error) => Err(anyhow::Error::new(error).context("a part of the node agent failed")),
        },
    };
    if matches!(ended, Ok(Ended::Cancelled)) {
        // The parts go on meanwhile: they are what ends pods.
        shutdown::run(&context).await;
    }
    parts.shutdown().await;
    ended
}
