//! What a node agent is told at start. Plain data; [`file`] reads upstream's configuration file into it.

pub mod eviction;
pub mod file;
pub mod flags;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Taint;

use crate::images::access::Verification;
use crate::spec::memory;
use crate::topology::Wishes;
use eviction::Eviction;

/// The version of Kubernetes this agent is one of.
pub const VERSION: &str = "v1.37.0";

/// Everything the agent needs to know; [`Config::new`] fills in upstream's defaults.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// Pod directories, volumes and the generated serving certificate live here.
    pub root_dir: PathBuf,
    /// Containers' logs, a directory a pod.
    pub pod_logs: PathBuf,
    /// What `/logs` serves; holds `containers/`, links to containers' logs.
    pub log_dir: PathBuf,
    /// The engine's CRI socket, with or without `unix://`.
    pub cri_endpoint: String,
    /// The image service's socket where it is not the engine's.
    pub image_endpoint: Option<String>,
    /// The node API (HTTPS).
    pub listen: SocketAddr,
    /// Whether there is one.
    pub serve: bool,
    /// Where what can only be read is told to anybody, without TLS.
    pub read_only: Option<SocketAddr>,
    /// Serving certificate and key (PEM files); a self-signed pair is made in `root_dir` when absent.
    pub serving_certificate: Option<(PathBuf, PathBuf)>,
    /// The node API is served with these only.
    pub tls: Tls,
    /// PEM bundle that client certificates must chain to; without it only bearer tokens are accepted.
    pub client_ca: Option<PathBuf>,
    /// The addresses reported for the node, one of each family it has; the first non-loopback one of the namespace when
    /// empty.
    pub node_ips: Vec<IpAddr>,
    pub hostname: Option<String>,
    /// Name servers of pods with `dnsPolicy: ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// What `dnsPolicy: Default` pods inherit.
    pub resolv_conf: PathBuf,
    pub max_pods: u32,
    /// Fixed pod range; otherwise `Node.spec.podCIDR` is passed on to the engine.
    pub pod_cidr: Option<String>,
    pub register_node: bool,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub provider_id: Option<String>,
    /// The cgroup under which `kubepods` is made, from the hierarchy's root; `/` for the root itself.
    pub cgroup_root: String,
    /// Cgroups are to be systemd's, unless the engine says that they are its own.
    pub systemd_cgroups: bool,
    /// Whether to keep QoS and pod cgroups at all; off where cgroups are not writable.
    pub cgroups_per_qos: bool,
    pub pod_pids_limit: Option<i64>,
    /// Kept back from allocatable (resource name to quantity).
    pub reserved: BTreeMap<String, String>,
    /// Who has it, and is held to it.
    pub reserved_cgroups: Vec<Reserved>,
    /// All pods together are held to what is allocatable.
    pub bound_pods: bool,
    /// Containers that ask for whole processors get them for themselves.
    pub exclusive_processors: bool,
    /// Limits of processor time are enforced (`cpuCFSQuota`).
    pub cpu_quota: bool,
    /// What they are reckoned by.
    pub cpu_period: Duration,
    /// Which ones they get.
    pub processor_options: crate::processors::take::Options,
    /// Those that nobody gets for itself; as many as are reserved, when not named.
    pub reserved_processors: Option<BTreeSet<u32>>,
    /// How memory is kept, slowed down and swapped.
    pub memory: memory::Wishes,
    /// Where on the machine pods' resources lie.
    pub alignment: Wishes,
    /// Out of memory, the kernel kills one process of a container instead of all; version 2 of cgroups asks.
    pub single_process_oom_kill: bool,
    /// A directory of pod manifests run without the API server.
    pub static_pod_path: Option<PathBuf>,
    pub eviction: Eviction,
    /// Disk is counted, offered to pods, and bounded.
    pub local_storage: bool,
    pub image_gc: Option<ImageGc>,
    /// How often node status is computed; it is sent when it changed or after `status_report`.
    pub status_update: Duration,
    pub status_report: Duration,
    /// Images told of in the node's status at most; all, when none.
    pub reported_images: Option<usize>,
    pub lease_duration: Duration,
    /// `RuntimeDefault` instead of `Unconfined` for containers that do not say.
    pub seccomp_default: bool,
    /// Sysctls outside the safe set that pods may use; a trailing `*` is a prefix.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Sysctls of pods that do not say otherwise.
    pub default_sysctls: BTreeMap<String, String>,
    /// Ids that a pod with users of its own gets.
    pub ids_per_pod: u32,
    /// Reported as the kubelet's version.
    pub version: String,
    /// The client certificate is replaced before it ends.
    pub rotate_certificates: bool,
    /// The serving certificate is asked of the cluster's signer.
    pub server_tls_bootstrap: bool,
    pub auth: Auth,
    /// Exec, attach, port-forward and logs of containers are served.
    pub debugging_handlers: bool,
    /// `/logs` is served.
    pub system_logs: bool,
    /// It answers queries too.
    pub system_log_query: bool,
    pub gates: Gates,
    /// Where `/healthz` is served without TLS.
    pub healthz: Option<SocketAddr>,
    /// Swap is a reason not to start.
    pub fail_swap_on: bool,
    /// So is the first version of cgroups.
    pub fail_cgroup_v1: bool,
    pub process: Process,
    /// Image pulls at once: more only share the same line.
    pub parallel_pulls: usize,
    /// What pods get when the machine goes down, by rising priority; nothing is done about them when empty.
    pub shutdown: Vec<Shutdown>,
    /// Which images that are here need credentials all the same.
    pub image_verification: Verification,
    /// The file that names credential providers, and the directory they are in.
    pub credential_providers: Option<(PathBuf, PathBuf)>,
    /// The longest wait before a container that keeps ending is run again.
    pub max_restart_back_off: SignedDuration,
    /// Dead containers kept per container of a living pod, for `logs --previous`.
    pub dead_containers_kept: usize,
    pub container_logs: ContainerLogs,
}

/// When containers' logs are set aside.
#[derive(Clone, Debug)]
pub struct ContainerLogs {
    pub max_size: u64,
    /// Of one container, the one being written included.
    pub max_files: usize,
    /// How often sizes are looked at.
    pub every: Duration,
    /// Logs set aside at once.
    pub workers: usize,
}

impl Default for ContainerLogs {
    fn default() -> Self {
        Self { max_size: 10 << 20, max_files: 5, every: Duration::from_secs(10), workers: 1 }
    }
}

/// What others on the machine keep for themselves, and the cgroup they are in.
#[derive(Clone, Debug)]
pub struct Reserved {
    pub cgroup: String,
    pub amounts: BTreeMap<String, String>,
    /// Memory and processes are bounded, not only processor time.
    pub memory_too: bool,
}

/// The process the agent runs in, where it is the agent's own.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// How early the kernel should pick it when memory runs out.
    pub oom_score: Option<i32>,
    /// Files it may have open.
    pub open_files: Option<u64>,
    /// The kernel's settings are a reason not to start when they are not as pods need them.
    pub kernel_as_expected: bool,
}

/// The feature gates that mean something here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gates {
    /// `KubeletAllocatedPodsEndpoint`: pods are told as they were granted.
    pub allocated_pods: bool,
    /// `ContainerCheckpoint`: containers can be had written down.
    pub checkpoint: bool,
}

impl Default for Gates {
    fn default() -> Self {
        Self { allocated_pods: false, checkpoint: true }
    }
}

/// Who may ask the node API, and how long answers about that are believed.
#[derive(Clone, Debug)]
pub struct Auth {
    /// Bearer tokens are reviewed by the API server.
    pub tokens: bool,
    /// Who shows nothing is `system:anonymous`.
    pub anonymous: bool,
    /// Whoever is known may do everything.
    pub everything: bool,
    pub token_for: Duration,
    pub allowed_for: Duration,
    pub denied_for: Duration,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            tokens: true,
            anonymous: false,
            everything: false,
            token_for: Duration::from_secs(120),
            allowed_for: Duration::from_secs(300),
            denied_for: Duration::from_secs(30),
        }
    }
}

/// What of TLS is offered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tls {
    /// Nothing older than version 1.3; 1.2 is the oldest otherwise.
    pub newest_only: bool,
    /// The cipher suites of version 1.2, by their names; all there are when empty. Those of 1.3 are always offered.
    pub suites: Vec<String>,
}

/// Pods of at least this priority (and below the next step's) get so long when the machine goes down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shutdown {
    pub priority: i32,
    pub grace: Duration,
}

/// Unused images go, oldest use first, when the image file system is fuller than `high_percent`, until `low_percent`.
#[derive(Clone, Debug)]
pub struct ImageGc {
    pub high_percent: u64,
    pub low_percent: u64,
    pub min_age: Duration,
    /// Images unused for longer go whatever room there is.
    pub max_age: Option<Duration>,
}

impl Default for ImageGc {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, min_age: Duration::from_secs(120), max_age: None }
    }
}

impl Config {
    pub fn new(node_name: impl Into<String>, root_dir: impl Into<PathBuf>, cri_endpoint: impl Into<String>) -> Self {
        let root_dir = root_dir.into();
        Self {
            node_name: node_name.into(),
            pod_logs: root_dir.join("log/pods"),
            log_dir: root_dir.join("log"),
            root_dir,
            cri_endpoint: cri_endpoint.into(),
            image_endpoint: None,
            listen: SocketAddr::from(([0, 0, 0, 0], 10250)),
            serve: true,
            read_only: None,
            serving_certificate: None,
            tls: Tls::default(),
            client_ca: None,
            node_ips: Vec::new(),
            hostname: None,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            max_pods: 110,
            pod_cidr: None,
            register_node: true,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            provider_id: None,
            cgroup_root: "/".into(),
            systemd_cgroups: false,
            cgroups_per_qos: true,
            pod_pids_limit: None,
            reserved: BTreeMap::new(),
            reserved_cgroups: Vec::new(),
            bound_pods: true,
            exclusive_processors: false,
            cpu_quota: true,
            cpu_period: Duration::from_millis(100),
            processor_options: Default::default(),
            memory: memory::Wishes::default(),
            alignment: Wishes::default(),
            single_process_oom_kill: false,
            reserved_processors: None,
            static_pod_path: None,
            eviction: Eviction::default(),
            local_storage: true,
            image_gc: Some(ImageGc::default()),
            status_update: Duration::from_secs(10),
            status_report: Duration::from_secs(300),
            reported_images: Some(50),
            lease_duration: Duration::from_secs(40),
            seccomp_default: false,
            allowed_unsafe_sysctls: Vec::new(),
            default_sysctls: BTreeMap::new(),
            ids_per_pod: 65_536,
            version: VERSION.into(),
            rotate_certificates: false,
            server_tls_bootstrap: false,
            auth: Auth::default(),
            debugging_handlers: true,
            system_logs: true,
            system_log_query: false,
            gates: Gates::default(),
            healthz: None,
            fail_swap_on: false,
            fail_cgroup_v1: false,
            process: Process::default(),
            parallel_pulls: 5,
            shutdown: Vec::new(),
            image_verification: Verification::default(),
            credential_providers: None,
            max_restart_back_off: crate::pods::plan::MAX_BACK_OFF,
            dead_containers_kept: 1,
            container_logs: ContainerLogs::default(),
        }
    }

    /// Keeps so much more of a resource back from pods.
    pub fn reserve(&mut self, name: &str, amount: &str) -> Result<(), String> {
        let parse = |text: &str| text.parse::<meta::quantity::Quantity>().map_err(|e| format!("{text:?}: {e}"));
        let held = self.reserved.get(name).map_or(Ok(0), |text| parse(text).map(|q| q.milli_value()))?;
        let total = held + parse(amount)?.milli_value();
        let shown = if total % 1000 == 0 { (total / 1000).to_string() } else { format!("{total}m") };
        self.reserved.insert(name.into(), shown);
        Ok(())
    }

    /// Where plugins put the sockets by which they register.
    pub fn plugin_registry(&self) -> PathBuf {
        self.root_dir.join("plugins_registry")
    }

    /// `<root_dir>/pods/<uid>`.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    /// The name the node gives itself: `--hostname-override` or the node's name.
    pub fn hostname(&self) -> &str {
        self.hostname.as_deref().unwrap_or(&self.node_name)
    }
}
