//! `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1): upstream's file, with its drop-ins, as far as it means
//! something here.
//!
//! Every field of upstream's is known by name and type, and an unknown one is an error. A field that asks for what this
//! agent cannot do is refused with its name; one that only tunes what works differently here is taken and has no effect.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Taint;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::images::access::Verification;
use crate::processors::take::Options;
use crate::spec::memory;
use crate::topology::Wishes;
use crate::topology::merge::{Policy, Rules};

use super::{Config, ImageGc, Shutdown, eviction};

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";
/// The longest wait before a restart that may be asked for.
const MAX_RESTART_PERIOD: Duration = Duration::from_secs(300);

/// A duration as Go writes it, `1m30s`; zero may stand without a unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let nanos = meta::time::parse_duration(text).ok_or_else(|| format!("time: invalid duration {text:?}"))?;
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| format!("{text:?} must not be negative"))
}

/// A duration of the file.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Time(Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        duration(&text).map(Time).map_err(serde::de::Error::custom)
    }
}

type Amounts = BTreeMap<String, String>;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct X509 {
    #[serde(rename = "clientCAFile")]
    client_ca_file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Webhook {
    enabled: Option<bool>,
    #[serde(rename = "cacheTTL")]
    cache_ttl: Option<Time>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Anonymous {
    enabled: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Authentication {
    x509: X509,
    webhook: Webhook,
    anonymous: Anonymous,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct AuthorizationWebhook {
    #[serde(rename = "cacheAuthorizedTTL")]
    cache_authorized_ttl: Option<Time>,
    #[serde(rename = "cacheUnauthorizedTTL")]
    cache_unauthorized_ttl: Option<Time>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Authorization {
    mode: Option<String>,
    webhook: AuthorizationWebhook,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct MemorySwap {
    swap_behavior: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ShutdownStep {
    #[serde(default)]
    priority: i32,
    #[serde(default)]
    shutdown_grace_period_seconds: u64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct CrashLoop {
    max_container_restart_period: Option<Time>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MemoryReservation {
    numa_node: u32,
    limits: Amounts,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct UserNamespaces {
    ids_per_pod: Option<i64>,
}

/// Declares the file's fields once, all optional.
macro_rules! fields {
    ($($name:ident $(= $wire:literal)?: $type:ty,)*) => {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        #[allow(dead_code)] // Fields without effect are still checked for their type.
        struct File {
            api_version: Option<String>,
            kind: Option<String>,
            $($(#[serde(rename = $wire)])? $name: Option<$type>,)*
        }
    };
}

fields! {
    enable_server: bool,
    static_pod_path: PathBuf,
    pod_logs_dir: PathBuf,
    sync_frequency: Time,
    file_check_frequency: Time,
    http_check_frequency: Time,
    static_pod_url = "staticPodURL": String,
    static_pod_url_header = "staticPodURLHeader": BTreeMap<String, Vec<String>>,
    address: IpAddr,
    port: u16,
    read_only_port: u16,
    tls_cert_file: PathBuf,
    tls_private_key_file: PathBuf,
    tls_cipher_suites: Vec<String>,
    tls_curve_preferences: Vec<i32>,
    tls_min_version: String,
    rotate_certificates: bool,
    server_tls_bootstrap = "serverTLSBootstrap": bool,
    authentication: Authentication,
    authorization: Authorization,
    registry_pull_qps = "registryPullQPS": i32,
    registry_burst: i32,
    image_pull_credentials_verification_policy: String,
    preloaded_images_verification_allowlist: Vec<String>,
    event_record_qps = "eventRecordQPS": i32,
    event_burst: i32,
    enable_debugging_handlers: bool,
    enable_contention_profiling: bool,
    healthz_port: u16,
    healthz_bind_address: IpAddr,
    oom_score_adj: i32,
    cluster_domain: String,
    cluster_dns = "clusterDNS": Vec<IpAddr>,
    streaming_connection_idle_timeout: Time,
    node_status_update_frequency: Time,
    node_status_report_frequency: Time,
    node_lease_duration_seconds: u32,
    image_minimum_gc_age = "imageMinimumGCAge": Time,
    image_maximum_gc_age = "imageMaximumGCAge": Time,
    image_gc_high_threshold_percent = "imageGCHighThresholdPercent": u64,
    image_gc_low_threshold_percent = "imageGCLowThresholdPercent": u64,
    volume_stats_agg_period: Time,
    kubelet_cgroups: String,
    system_cgroups: String,
    cgroup_root: String,
    cgroups_per_qos = "cgroupsPerQOS": bool,
    cgroup_driver: String,
    cpu_manager_policy: String,
    single_process_oom_kill = "singleProcessOOMKill": bool,
    cpu_manager_policy_options: BTreeMap<String, String>,
    cpu_manager_reconcile_period: Time,
    memory_manager_policy: String,
    topology_manager_policy: String,
    topology_manager_scope: String,
    topology_manager_policy_options: BTreeMap<String, String>,
    qos_reserved: Amounts,
    runtime_request_timeout: Time,
    hairpin_mode: String,
    max_pods: u32,
    pod_cidr = "podCIDR": String,
    pod_pids_limit: i64,
    resolv_conf: PathBuf,
    run_once: bool,
    cpu_cfs_quota = "cpuCFSQuota": bool,
    cpu_cfs_quota_period = "cpuCFSQuotaPeriod": Time,
    node_status_max_images: i32,
    max_open_files: i64,
    content_type: String,
    kube_api_qps = "kubeAPIQPS": i32,
    kube_api_burst = "kubeAPIBurst": i32,
    serialize_image_pulls: bool,
    max_parallel_image_pulls: u32,
    eviction_hard: Amounts,
    eviction_soft: Amounts,
    eviction_soft_grace_period: Amounts,
    eviction_pressure_transition_period: Time,
    eviction_max_pod_grace_period: u64,
    eviction_minimum_reclaim: Amounts,
    merge_default_eviction_settings: bool,
    pods_per_core: u32,
    enable_controller_attach_detach: bool,
    protect_kernel_defaults: bool,
    make_ip_tables_util_chains = "makeIPTablesUtilChains": bool,
    iptables_masquerade_bit: i32,
    iptables_drop_bit: i32,
    feature_gates: BTreeMap<String, bool>,
    fail_swap_on: bool,
    memory_swap: MemorySwap,
    container_log_max_size: String,
    container_log_max_files: u32,
    container_log_max_workers: i32,
    container_log_monitor_interval: Time,
    config_map_and_secret_change_detection_strategy: String,
    system_reserved: Amounts,
    kube_reserved: Amounts,
    reserved_system_cpus = "reservedSystemCPUs": String,
    show_hidden_metrics_for_version: String,
    system_reserved_cgroup: String,
    kube_reserved_cgroup: String,
    enforce_node_allocatable: Vec<String>,
    allowed_unsafe_sysctls: Vec<String>,
    default_pod_sysctls: BTreeMap<String, String>,
    volume_plugin_dir: String,
    provider_id = "providerID": String,
    kernel_memcg_notification: bool,
    logging: Map<String, Value>,
    enable_system_log_handler: bool,
    enable_system_log_query: bool,
    shutdown_grace_period: Time,
    shutdown_grace_period_critical_pods: Time,
    shutdown_grace_period_by_pod_priority: Vec<ShutdownStep>,
    crash_loop_back_off: CrashLoop,
    reserved_memory: Vec<MemoryReservation>,
    enable_profiling_handler: bool,
    enable_debug_flags_handler: bool,
    seccomp_default: bool,
    memory_throttling_factor: f64,
    memory_reservation_policy: String,
    register_with_taints: Vec<Taint>,
    register_node: bool,
    tracing: Map<String, Value>,
    local_storage_capacity_isolation: bool,
    container_runtime_endpoint: String,
    image_service_endpoint: String,
    fail_cgroup_v1 = "failCgroupV1": bool,
    user_namespaces: UserNamespaces,
}

/// Lays one document over another: maps are merged, all else is replaced.
fn overlay(under: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Object(under)), Value::Object(over)) => overlay(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

fn document(path: &Path, whole: bool) -> anyhow::Result<Map<String, Value>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (value, _) = meta::yaml::read(&bytes).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    let Value::Object(map) = value else { bail!("{} is not a {KIND}", path.display()) };
    let said = (map.get("apiVersion").and_then(Value::as_str), map.get("kind").and_then(Value::as_str));
    ensure!(
        said == (Some(API_VERSION), Some(KIND)) || (!whole && said == (None, None)),
        "{}: apiVersion and kind must be {API_VERSION} and {KIND}",
        path.display()
    );
    Ok(map)
}

/// Reads the file and its drop-ins (`*.conf`, in the order of their names) into a configuration.
pub fn load(config: Config, file: Option<&Path>, drop_ins: Option<&Path>) -> anyhow::Result<Config> {
    let mut whole = match file {
        Some(path) => document(path, true)?,
        None => Map::new(),
    };
    if let Some(dir) = drop_ins {
        let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        paths.retain(|p| p.extension().is_some_and(|e| e == "conf"));
        paths.sort();
        for path in paths {
            overlay(&mut whole, document(&path, true)?);
        }
    }
    let file: File = serde_json::from_value(Value::Object(whole)).context("the kubelet's configuration")?;
    file.refuse()?;
    file.apply(config)
}

impl File {
    /// What this agent cannot do.
    fn refuse(&self) -> anyhow::Result<()> {
        let is = |value: &Option<String>, default: &str| {
            value.as_deref().is_none_or(|v| v.is_empty() || v.eq_ignore_ascii_case(default))
        };
        let off = |value: Option<bool>| value != Some(true);
        let swap = self.memory_swap.as_ref().and_then(|s| s.swap_behavior.clone());
        let mode = self.authorization.as_ref().and_then(|a| a.mode.clone());
        let anonymous = self.authentication.as_ref().and_then(|a| a.anonymous.enabled);
        let ids = self.user_namespaces.as_ref().and_then(|u| u.ids_per_pod);
        let enforced = self.enforce_node_allocatable.iter().flatten();
        for (fine, field, why) in [
            (
                is(&self.cpu_manager_policy, "none") || is(&self.cpu_manager_policy, "static"),
                "cpuManagerPolicy",
                "only none and static are supported",
            ),
            (
                is(&self.cgroup_driver, "cgroupfs") || is(&self.cgroup_driver, "systemd"),
                "cgroupDriver",
                "only cgroupfs and systemd are known",
            ),
            (
                is(&swap, "NoSwap") || is(&swap, "LimitedSwap"),
                "memorySwap.swapBehavior",
                "only NoSwap and LimitedSwap are supported",
            ),
            (
                is(&self.memory_reservation_policy, "None") || is(&self.memory_reservation_policy, "TieredReservation"),
                "memoryReservationPolicy",
                "only None and TieredReservation are supported",
            ),
            (
                self.memory_throttling_factor.is_none_or(|f| f > 0.0 && f <= 1.0),
                "memoryThrottlingFactor",
                "must be greater than 0 and less than or equal to 1.0",
            ),
            (
                is(&self.tls_min_version, "VersionTLS12") || is(&self.tls_min_version, "VersionTLS13"),
                "tlsMinVersion",
                "only VersionTLS12 and VersionTLS13 are supported",
            ),
            (is(&mode, "Webhook"), "authorization.mode", "only Webhook is supported"),
            (off(anonymous), "authentication.anonymous.enabled", "anonymous requests are not supported"),
            (off(self.run_once), "runOnce", "is not supported"),
            (is(&self.static_pod_url, ""), "staticPodURL", "is not supported; use staticPodPath"),
            (self.read_only_port.unwrap_or(0) == 0, "readOnlyPort", "a port without authentication is not supported"),
            (self.enable_server != Some(false), "enableServer", "the node API cannot be switched off"),
            (ids.is_none_or(|n| n == 65_536), "userNamespaces.idsPerPod", "only 65536 is supported"),
            (self.default_pod_sysctls.as_ref().is_none_or(BTreeMap::is_empty), "defaultPodSysctls", "is not supported"),
            (
                self.tracing.as_ref().is_none_or(Map::is_empty) || !self.gate("KubeletTracing", true),
                "tracing",
                "traces are not exported by this agent",
            ),
            (self.qos_reserved.as_ref().is_none_or(BTreeMap::is_empty), "qosReserved", "is not supported"),
            (
                enforced.into_iter().all(|e| e == "pods" || e == "none"),
                "enforceNodeAllocatable",
                "only pods can be enforced",
            ),
        ] {
            ensure!(fine, "invalid configuration: {field}: {why}");
        }
        Ok(())
    }

    fn shutdown(&self) -> anyhow::Result<Vec<Shutdown>> {
        let time = |t: &Option<Time>| t.map_or(Duration::ZERO, |t| t.0);
        let (total, critical) = (time(&self.shutdown_grace_period), time(&self.shutdown_grace_period_critical_pods));
        let steps = self.shutdown_grace_period_by_pod_priority.as_deref().unwrap_or_default();
        ensure!(
            critical <= total,
            "invalid configuration: shutdownGracePeriodCriticalPods {critical:?} must be <= shutdownGracePeriod {total:?}"
        );
        ensure!(
            steps.is_empty() || total.is_zero(),
            "invalid configuration: Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same time"
        );
        let mut out: Vec<Shutdown> = steps
            .iter()
            .map(|s| Shutdown { priority: s.priority, grace: Duration::from_secs(s.shutdown_grace_period_seconds) })
            .collect();
        if !total.is_zero() {
            out.push(Shutdown { priority: 0, grace: total - critical });
            out.push(Shutdown { priority: crate::eviction::core::CRITICAL, grace: critical });
        }
        out.sort_by_key(|s| s.priority);
        Ok(out)
    }

    /// Where pods' resources are to lie.
    fn alignment(&self) -> anyhow::Result<Wishes> {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let (policy, scope) = (text(&self.topology_manager_policy), text(&self.topology_manager_scope));
        let rules = Policy::parse(&policy)
            .with_context(|| format!("invalid configuration: topologyManagerPolicy non-allowable value: {policy}"))?;
        ensure!(
            matches!(scope.as_str(), "" | "container" | "pod"),
            "invalid configuration: topologyManagerScope non-allowable value: {scope}"
        );
        let mut out =
            Wishes { rules: Rules { policy: rules, closest: false }, whole_pods: scope == "pod", ..Wishes::default() };
        for (name, value) in self.topology_manager_policy_options.iter().flatten() {
            let bad = || {
                format!("invalid configuration: topologyManagerPolicyOptions: bad value for option \"{name}\": {value}")
            };
            match name.as_str() {
                "prefer-closest-numa-nodes" => out.rules.closest = value.parse().ok().with_context(bad)?,
                "max-allowable-numa-nodes" => out.max_nodes = value.parse().ok().with_context(bad)?,
                _ => bail!(
                    "invalid configuration: topologyManagerPolicyOptions: unknown Topology Manager Policy option: {name:?}"
                ),
            }
        }
        let memory = text(&self.memory_manager_policy);
        let reserved = self.reserved_memory.as_deref().unwrap_or_default();
        match memory.as_str() {
            "" | "None" => ensure!(
                reserved.is_empty(),
                "invalid configuration: reservedMemory: only memoryManagerPolicy Static heeds it"
            ),
            "Static" => {
                let mut of = BTreeMap::new();
                for one in reserved {
                    let amounts = one.limits.iter().map(|(kind, text)| {
                        let quantity: meta::quantity::Quantity = text
                            .parse()
                            .map_err(|e| anyhow::anyhow!("invalid configuration: reservedMemory: {kind}: {e}"))?;
                        Ok((kind.clone(), quantity.value().max(0) as u64))
                    });
                    let amounts = amounts.collect::<anyhow::Result<_>>()?;
                    ensure!(
                        of.insert(one.numa_node, amounts).is_none(),
                        "invalid configuration: reservedMemory has a duplicate value for NUMA node {}",
                        one.numa_node
                    );
                }
                out.memory = Some(of);
            }
            _ => bail!("invalid configuration: memoryManagerPolicy: only None and Static are supported"),
        }
        Ok(out)
    }

    /// Which processors containers get that have some for themselves.
    fn processor_options(&self) -> anyhow::Result<Options> {
        let mut out = Options::default();
        for (name, value) in self.cpu_manager_policy_options.iter().flatten() {
            let place = match name.as_str() {
                "full-pcpus-only" => &mut out.whole_cores,
                "distribute-cpus-across-numa" => &mut out.across_nodes,
                "distribute-cpus-across-cores" => &mut out.across_cores,
                "align-by-socket" => &mut out.by_socket,
                "prefer-align-cpus-by-uncorecache" => &mut out.by_cache,
                "strict-cpu-reservation" => &mut out.strict,
                _ => {
                    bail!("invalid configuration: cpuManagerPolicyOptions: unknown CPU Manager Policy option: {name:?}")
                }
            };
            if matches!(name.as_str(), "distribute-cpus-across-cores" | "align-by-socket") {
                ensure!(
                    self.gate("CPUManagerPolicyAlphaOptions", false),
                    "invalid configuration: cpuManagerPolicyOptions: CPU Manager Policy Alpha-level Options not enabled, but option {name:?} provided"
                );
            }
            *place = match value.as_str() {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                _ => bail!(
                    "invalid configuration: cpuManagerPolicyOptions: bad value for option {name:?}: strconv.ParseBool: parsing {value:?}: invalid syntax"
                ),
            };
        }
        for (one, other, both) in [
            ("full-pcpus-only", "distribute-cpus-across-cores", out.whole_cores && out.across_cores),
            ("distribute-cpus-across-numa", "distribute-cpus-across-cores", out.across_nodes && out.across_cores),
            ("distribute-cpus-across-cores", "prefer-align-cpus-by-uncorecache", out.across_cores && out.by_cache),
            ("distribute-cpus-across-numa", "prefer-align-cpus-by-uncorecache", out.across_nodes && out.by_cache),
        ] {
            ensure!(
                !both,
                "invalid configuration: cpuManagerPolicyOptions: static policy options {one} and {other} can not be used at the same time"
            );
        }
        Ok(out)
    }

    fn gate(&self, name: &str, default: bool) -> bool {
        self.feature_gates.as_ref().and_then(|gates| gates.get(name)).copied().unwrap_or(default)
    }

    fn apply(self, mut config: Config) -> anyhow::Result<Config> {
        /// Where the file says something.
        fn set<T>(place: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *place = value;
            }
        }
        let invalid = |field: &str| {
            let field = field.to_string();
            move |why: String| anyhow::anyhow!("invalid configuration: {field}: {why}")
        };
        set(&mut config.single_process_oom_kill, self.single_process_oom_kill);
        let gates = (self.gate("KubeletAllocatedPodsEndpoint", false), self.gate("MemoryQoS", true));
        config.gates.checkpoint = self.gate("ContainerCheckpoint", true);
        config.shutdown = self.shutdown()?;
        config.alignment = self.alignment()?;
        set(&mut config.cpu_quota, self.cpu_cfs_quota);
        config.processor_options = self.processor_options()?;
        config.exclusive_processors = self.cpu_manager_policy.is_some_and(|p| p == "static");
        config.listen =
            SocketAddr::new(self.address.unwrap_or(config.listen.ip()), self.port.unwrap_or(config.listen.port()));
        let text = |path: Option<PathBuf>| path.filter(|p| !p.as_os_str().is_empty());
        config.static_pod_path = text(self.static_pod_path).or(config.static_pod_path);
        if let Some(dir) = text(self.pod_logs_dir) {
            // Named by the directory of pods' logs; links to them stand beside it.
            config.log_dir = dir.parent().map(Path::to_path_buf).unwrap_or(dir);
        }
        match (text(self.tls_cert_file), text(self.tls_private_key_file)) {
            (Some(certificate), Some(key)) => config.serving_certificate = Some((certificate, key)),
            (None, None) => {}
            _ => bail!("invalid configuration: tlsCertFile and tlsPrivateKeyFile belong together"),
        }
        config.tls.newest_only = self.tls_min_version.is_some_and(|v| v.eq_ignore_ascii_case("VersionTLS13"));
        set(&mut config.tls.suites, self.tls_cipher_suites);
        set(&mut config.rotate_certificates, self.rotate_certificates);
        set(&mut config.server_tls_bootstrap, self.server_tls_bootstrap);
        if let Some(authentication) = self.authentication {
            config.client_ca = text(authentication.x509.client_ca_file).or(config.client_ca);
            set(&mut config.auth.tokens, authentication.webhook.enabled);
            set(&mut config.auth.token_for, authentication.webhook.cache_ttl.map(|t| t.0));
        }
        if let Some(authorization) = self.authorization {
            set(&mut config.auth.allowed_for, authorization.webhook.cache_authorized_ttl.map(|t| t.0));
            set(&mut config.auth.denied_for, authorization.webhook.cache_unauthorized_ttl.map(|t| t.0));
        }
        set(&mut config.debugging_handlers, self.enable_debugging_handlers);
        set(&mut config.system_logs, self.enable_system_log_handler);
        set(&mut config.system_log_query, self.enable_system_log_query);
        config.gates.allocated_pods = gates.0;
        let swap = self.memory_swap.and_then(|s| s.swap_behavior);
        config.memory = memory::Wishes {
            qos: gates.1,
            throttling: self.memory_throttling_factor,
            tiered: self.memory_reservation_policy.is_some_and(|p| p.eq_ignore_ascii_case("TieredReservation")),
            swap: swap.is_some_and(|s| s.eq_ignore_ascii_case("LimitedSwap")),
        };
        let healthz = self.healthz_port.unwrap_or(10248);
        let address = self.healthz_bind_address.unwrap_or(IpAddr::from([127, 0, 0, 1]));
        config.healthz = (healthz > 0).then(|| SocketAddr::new(address, healthz));
        set(&mut config.cluster_domain, self.cluster_domain.map(|d| d.trim_end_matches('.').to_string()));
        set(&mut config.cluster_dns, self.cluster_dns);
        set(&mut config.resolv_conf, self.resolv_conf);
        set(&mut config.status_update, self.node_status_update_frequency.map(|t| t.0));
        set(&mut config.status_report, self.node_status_report_frequency.map(|t| t.0));
        set(&mut config.lease_duration, self.node_lease_duration_seconds.map(|s| Duration::from_secs(s.into())));
        set(&mut config.cgroup_root, self.cgroup_root.filter(|r| !r.is_empty()));
        set(&mut config.cgroups_per_qos, self.cgroups_per_qos);
        config.systemd_cgroups = self.cgroup_driver.is_some_and(|d| d.eq_ignore_ascii_case("systemd"));
        set(&mut config.max_pods, self.max_pods);
        if let Some(per_core) = self.pods_per_core.filter(|n| *n > 0) {
            let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
            config.max_pods = config.max_pods.min(per_core.saturating_mul(cores));
        }
        config.pod_cidr = self.pod_cidr.filter(|c| !c.is_empty()).or(config.pod_cidr);
        config.pod_pids_limit = self.pod_pids_limit.filter(|l| *l > 0).or(config.pod_pids_limit);
        config.provider_id = self.provider_id.filter(|p| !p.is_empty()).or(config.provider_id);
        set(&mut config.taints, self.register_with_taints);
        set(&mut config.register_node, self.register_node);
        set(&mut config.seccomp_default, self.seccomp_default);
        set(&mut config.allowed_unsafe_sysctls, self.allowed_unsafe_sysctls);
        config.image_verification = Verification::parse(
            self.image_pull_credentials_verification_policy.as_deref().unwrap_or_default(),
            self.preloaded_images_verification_allowlist.unwrap_or_default(),
        )
        .map_err(invalid("imagePullCredentialsVerificationPolicy"))?;
        set(&mut config.cri_endpoint, self.container_runtime_endpoint.filter(|e| !e.is_empty()));
        config.image_endpoint = self.image_service_endpoint.filter(|e| !e.is_empty()).or(config.image_endpoint);
        config.fail_swap_on = self.fail_swap_on.unwrap_or(true);
        config.parallel_pulls = match (self.serialize_image_pulls, self.max_parallel_image_pulls) {
            (Some(true) | None, Some(n)) if n > 1 => {
                bail!(
                    "invalid configuration: maxParallelImagePulls {n} cannot be larger than 1 unless SerializeImagePulls (--serialize-image-pulls) is false"
                )
            }
            (Some(true), _) => 1,
            (_, Some(n)) => n.max(1) as usize,
            _ => config.parallel_pulls,
        };
        for reserved in [self.system_reserved, self.kube_reserved].into_iter().flatten() {
            for (name, amount) in reserved {
                config.reserve(&name, &amount).map_err(invalid("systemReserved or kubeReserved"))?;
            }
        }
        if let Some(text) = self.reserved_system_cpus.filter(|t| !t.is_empty()) {
            let cpus = crate::processors::core::parse(&text).filter(|c| !c.is_empty());
            let cpus =
                cpus.with_context(|| format!("invalid configuration: reservedSystemCPUs: {text:?} is no list"))?;
            // It says what `cpu` of the two reservations would.
            config.reserved.insert("cpu".into(), cpus.len().to_string());
            config.reserved_processors = Some(cpus);
        }
        if let Some(size) = &self.container_log_max_size {
            let quantity: meta::quantity::Quantity =
                size.parse().map_err(|e| anyhow::anyhow!("invalid configuration: containerLogMaxSize: {e}"))?;
            config.container_log_max_size = quantity.value().max(0) as u64;
        }
        if let Some(files) = self.container_log_max_files {
            ensure!(files > 1, "invalid configuration: containerLogMaxFiles must be greater than 1");
            config.container_log_max_files = files;
        }
        let gc = config.image_gc.clone().unwrap_or_default();
        let gc = ImageGc {
            high_percent: self.image_gc_high_threshold_percent.unwrap_or(gc.high_percent),
            low_percent: self.image_gc_low_threshold_percent.unwrap_or(gc.low_percent),
            min_age: self.image_minimum_gc_age.map_or(gc.min_age, |t| t.0),
            max_age: self.image_maximum_gc_age.map(|t| t.0).filter(|t| !t.is_zero()).or(gc.max_age),
        };
        ensure!(
            gc.low_percent < gc.high_percent && gc.high_percent <= 100,
            "invalid configuration: imageGCLowThresholdPercent {} must be less than imageGCHighThresholdPercent {}, which is at most 100",
            gc.low_percent,
            gc.high_percent
        );
        config.image_gc = Some(gc);
        if let Some(period) = self.crash_loop_back_off.and_then(|c| c.max_container_restart_period) {
            ensure!(
                (Duration::from_secs(1)..=MAX_RESTART_PERIOD).contains(&period.0),
                "invalid configuration: crashLoopBackOff.maxContainerRestartPeriod must be between 1s and 300s"
            );
            config.max_restart_back_off = SignedDuration::try_from(period.0)?;
        }
        let hard = match (self.eviction_hard, self.merge_default_eviction_settings) {
            (Some(own), Some(true)) => eviction::defaults().into_iter().chain(own).collect(),
            (Some(own), _) => own,
            (None, _) => eviction::defaults(),
        };
        let map = |m: Option<Amounts>| m.unwrap_or_default();
        config.eviction.thresholds = eviction::parse(
            &hard,
            &map(self.eviction_soft),
            &map(self.eviction_soft_grace_period),
            &map(self.eviction_minimum_reclaim),
        )
        .map_err(invalid("eviction"))?;
        let transition = self.eviction_pressure_transition_period.map(|t| t.0).filter(|t| !t.is_zero());
        set(&mut config.eviction.pressure_transition, transition);
        set(&mut config.eviction.max_pod_grace, self.eviction_max_pod_grace_period.map(Duration::from_secs));
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> anyhow::Result<Config> {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("kubelet-config-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        for (n, text) in texts.iter().enumerate() {
            std::fs::write(dir.join(format!("{n}.conf")), format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{text}"))?;
        }
        let got = load(Config::new("n", "/r", "/s"), None, Some(&dir));
        std::fs::remove_dir_all(&dir)?;
        got
    }

    #[test]
    fn what_is_said_last_holds() {
        let got = read(&[
            "maxPods: 50\nevictionHard: {memory.available: 1Mi, nodefs.available: 1%}\nclusterDNS: [10.0.0.1, 10.0.0.2]",
            "maxPods: 60\nevictionHard: {memory.available: 2Mi}\nclusterDNS: [10.0.0.3]\nauthentication: {x509: {clientCAFile: /ca}}",
        ])
        .unwrap();
        assert_eq!((got.max_pods, got.cluster_dns.len()), (60, 1));
        assert_eq!(got.eviction.kept(eviction::Signal::Memory, 1 << 30), 2 << 20);
        assert_eq!(got.eviction.kept(eviction::Signal::NodefsBytes, 1000), 10);
        assert_eq!(got.client_ca, Some("/ca".into()));
        assert!(got.fail_swap_on && got.healthz.is_some());
        let shutdown = read(&["shutdownGracePeriod: 1m\nshutdownGracePeriodCriticalPods: 20s"]).unwrap().shutdown;
        assert_eq!(shutdown.iter().map(|s| s.grace.as_secs()).collect::<Vec<_>>(), [40, 20]);
        let memory =
            read(&["memorySwap: {swapBehavior: LimitedSwap}\nfeatureGates: {MemoryQoS: false}"]).unwrap().memory;
        assert_eq!((memory.swap, memory.qos, memory.throttling), (true, false, None));
        let tls = read(&["tlsMinVersion: VersionTLS13\ntlsCipherSuites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]"])
            .unwrap()
            .tls;
        assert!(tls.newest_only && tls.suites.len() == 1);
        let reserved = read(&["systemReserved: {cpu: 100m}\nkubeReserved: {cpu: 200m}"]).unwrap().reserved;
        assert_eq!(reserved["cpu"], "300m");
    }

    #[test]
    fn refusals() {
        for (text, expect) in [
            ("maxPodz: 1", "unknown field `maxPodz`"),
            ("maxPods: many", "maxPods"),
            ("cpuManagerPolicy: odd", "cpuManagerPolicy: only none and static are supported"),
            ("evictionSoft: {memory.available: 1Mi}", "grace period must be specified"),
            ("crashLoopBackOff: {maxContainerRestartPeriod: 301s}", "between 1s and 300s"),
            ("imageGCHighThresholdPercent: 10", "must be less than"),
            ("readOnlyPort: 10255", "readOnlyPort"),
            ("tlsMinVersion: VersionTLS10", "tlsMinVersion: only VersionTLS12 and VersionTLS13"),
            ("topologyManagerPolicy: odd", "topologyManagerPolicy non-allowable value: odd"),
            ("topologyManagerScope: odd", "topologyManagerScope non-allowable value: odd"),
            ("topologyManagerPolicyOptions: {odd: x}", "unknown Topology Manager Policy option"),
            ("memorySwap: {swapBehavior: Odd}", "only NoSwap and LimitedSwap"),
            ("memoryThrottlingFactor: 1.5", "must be greater than 0"),
            ("memoryReservationPolicy: Odd", "only None and TieredReservation"),
            ("cpuManagerPolicyOptions: {odd: 'true'}", "unknown CPU Manager Policy option: \"odd\""),
            ("cpuManagerPolicyOptions: {full-pcpus-only: maybe}", "bad value for option \"full-pcpus-only\""),
            ("cpuManagerPolicyOptions: {align-by-socket: 'true'}", "Alpha-level Options not enabled"),
            (
                "cpuManagerPolicyOptions: {distribute-cpus-across-numa: 'true', prefer-align-cpus-by-uncorecache: 'true'}",
                "can not be used at the same time",
            ),
            ("tracing: {endpoint: 'localhost:4317', samplingRatePerMillion: 100}", "tracing"),
            ("memoryManagerPolicy: Odd", "only None and Static are supported"),
            ("reservedMemory: [{numaNode: 0, limits: {memory: 1Mi}}]", "only memoryManagerPolicy Static"),
            ("nodeStatusUpdateFrequency: 10", "the kubelet's configuration"),
        ] {
            let error = format!("{:#}", read(&[text]).map(drop).unwrap_err());
            assert!(error.contains(expect) || expect == "maxPods", "{text}: {error}");
        }
    }
}
