//! The file's word on each matter, laid over the defaults.
//!
//! A number, a duration or a text that is empty is as good as unsaid, as upstream has it: programs that write the file write
//! all of its durations.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use jiff::SignedDuration;

use super::fields::{Amounts, File, Time};
use crate::config::{Config, ImageGc, Reserved, Shutdown, eviction};
use crate::images::access::Verification;
use crate::processors::take::Options;
use crate::spec::memory;
use crate::topology::Wishes;
use crate::topology::merge::{Policy, Rules};

/// How late the kernel should pick this agent when memory runs out; as upstream.
const OOM_SCORE: i32 = -999;

/// Where the file says something.
fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn time(value: Option<Time>) -> Option<Duration> {
    value.map(|t| t.0).filter(|t| !t.is_zero())
}

fn text(value: Option<String>) -> Option<String> {
    value.filter(|t| !t.is_empty())
}

fn path(value: Option<PathBuf>) -> Option<PathBuf> {
    value.filter(|p| !p.as_os_str().is_empty())
}

/// A number within its bounds that says something.
fn number<T: TryFrom<i64>>(value: Option<i64>) -> Option<T> {
    value.filter(|n| *n != 0).and_then(|n| T::try_from(n).ok())
}

fn address(field: &str, value: Option<String>) -> anyhow::Result<Option<IpAddr>> {
    let parsed =
        text(value).map(|t| t.parse().with_context(|| format!("invalid configuration: {field} {t:?} is no address")));
    parsed.transpose()
}

fn invalid(field: &str) -> impl Fn(String) -> anyhow::Error + use<> {
    let field = field.to_string();
    move |why| anyhow::anyhow!("invalid configuration: {field}: {why}")
}

impl File {
    fn shutdown(&self) -> Vec<Shutdown> {
        let (total, critical) = (time(self.shutdownGracePeriod), time(self.shutdownGracePeriodCriticalPods));
        let (total, critical) = (total.unwrap_or_default(), critical.unwrap_or_default());
        let steps = self.shutdownGracePeriodByPodPriority.as_deref().unwrap_or_default();
        let mut out: Vec<Shutdown> = steps
            .iter()
            .map(|s| Shutdown { priority: s.priority, grace: Duration::from_secs(s.shutdownGracePeriodSeconds) })
            .collect();
        if !total.is_zero() {
            out.push(Shutdown { priority: 0, grace: total - critical });
            out.push(Shutdown { priority: crate::eviction::core::CRITICAL, grace: critical });
        }
        out.sort_by_key(|s| s.priority);
        out
    }

    /// Where pods' resources are to lie.
    fn alignment(&self) -> anyhow::Result<Wishes> {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let policy = text(&self.topologyManagerPolicy);
        let rules = Policy::parse(&policy)
            .with_context(|| format!("invalid configuration: topologyManagerPolicy non-allowable value: {policy}"))?;
        let whole_pods = text(&self.topologyManagerScope) == "pod";
        let mut out = Wishes { rules: Rules { policy: rules, closest: false }, whole_pods, ..Wishes::default() };
        for (name, value) in self.topologyManagerPolicyOptions.iter().flatten() {
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
        let memory = text(&self.memoryManagerPolicy);
        let reserved = self.reservedMemory.as_deref().unwrap_or_default();
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
                        of.insert(one.numaNode, amounts).is_none(),
                        "invalid configuration: reservedMemory has a duplicate value for NUMA node {}",
                        one.numaNode
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
        for (name, value) in self.cpuManagerPolicyOptions.iter().flatten() {
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

    /// How images are brought here and how long they stay.
    fn images(&mut self, config: &mut Config) -> anyhow::Result<()> {
        let policy = self.imagePullCredentialsVerificationPolicy.take().unwrap_or_default();
        let exempt = self.preloadedImagesVerificationAllowlist.take().unwrap_or_default();
        config.image_verification = if self.gate("KubeletEnsureSecretPulledImages", true) {
            Verification::parse(&policy, exempt).map_err(invalid("imagePullCredentialsVerificationPolicy"))?
        } else {
            Verification::Never
        };
        config.parallel_pulls = match (self.serializeImagePulls, self.maxParallelImagePulls) {
            (Some(true), _) | (None, Some(1)) => 1,
            (_, Some(pulls)) => usize::try_from(pulls).unwrap_or(1).min(tokio::sync::Semaphore::MAX_PERMITS),
            (Some(false), None) => tokio::sync::Semaphore::MAX_PERMITS,
            (None, None) => config.parallel_pulls,
        };
        let gc = config.image_gc.clone().unwrap_or_default();
        config.image_gc = Some(ImageGc {
            high_percent: self.imageGCHighThresholdPercent.map_or(gc.high_percent, |p| p.max(0) as u64),
            low_percent: self.imageGCLowThresholdPercent.map_or(gc.low_percent, |p| p.max(0) as u64),
            min_age: time(self.imageMinimumGCAge).unwrap_or(gc.min_age),
            max_age: time(self.imageMaximumGCAge).or(gc.max_age),
        });
        set(&mut config.reported_images, self.nodeStatusMaxImages.map(|n| usize::try_from(n).ok()));
        Ok(())
    }

    /// What is kept back from pods, and from whom it is kept.
    fn reservations(&mut self, config: &mut Config) -> anyhow::Result<()> {
        let enforced = self.enforceNodeAllocatable.take().unwrap_or_else(|| vec!["pods".into()]);
        config.bound_pods = enforced.iter().any(|e| e == "pods");
        for (whose, amounts, cgroup) in [
            ("system", &self.systemReserved, self.systemReservedCgroup.take()),
            ("kube", &self.kubeReserved, self.kubeReservedCgroup.take()),
        ] {
            for (name, amount) in amounts.iter().flatten() {
                config.reserve(name, amount).map_err(invalid(&format!("{whose}Reserved")))?;
            }
            let kind = enforced.iter().filter_map(|e| e.strip_prefix(whose)?.strip_prefix("-reserved")).next();
            if let (Some(kind), Some(cgroup)) = (kind, cgroup) {
                let amounts = amounts.clone().unwrap_or_default();
                config.reserved_cgroups.push(Reserved { cgroup, amounts, memory_too: kind.is_empty() });
            }
        }
        if let Some(text) = text(self.reservedSystemCPUs.take()) {
            let cpus = crate::processors::core::parse(&text).filter(|c| !c.is_empty());
            let cpus = cpus.with_context(|| {
                format!("invalid configuration: unable to parse reservedSystemCPUs (--reserved-cpus) {text}")
            })?;
            // It says what `cpu` of the two reservations would.
            config.reserved.insert("cpu".into(), cpus.len().to_string());
            config.reserved_processors = Some(cpus);
        }
        Ok(())
    }

    fn eviction(&mut self, config: &mut Config) -> anyhow::Result<()> {
        let hard = match (self.evictionHard.take(), self.mergeDefaultEvictionSettings) {
            (Some(own), Some(true)) => eviction::defaults().into_iter().chain(own).collect(),
            (Some(own), _) => own,
            (None, _) => eviction::defaults(),
        };
        let map = |m: &Option<Amounts>| m.clone().unwrap_or_default();
        config.eviction.thresholds = eviction::parse(
            &hard,
            &map(&self.evictionSoft),
            &map(&self.evictionSoftGracePeriod),
            &map(&self.evictionMinimumReclaim),
        )
        .map_err(invalid("eviction"))?;
        set(&mut config.eviction.pressure_transition, time(self.evictionPressureTransitionPeriod));
        let grace = self.evictionMaxPodGracePeriod.map(|s| Duration::from_secs(s.max(0) as u64));
        set(&mut config.eviction.max_pod_grace, grace);
        set(&mut config.local_storage, self.localStorageCapacityIsolation);
        Ok(())
    }

    /// The node API: where it is, and whom it answers.
    fn server(&mut self, config: &mut Config) -> anyhow::Result<()> {
        config.listen = SocketAddr::new(
            address("address", self.address.take())?.unwrap_or(config.listen.ip()),
            number(self.port).unwrap_or(config.listen.port()),
        );
        set(&mut config.serve, self.enableServer);
        config.read_only = number(self.readOnlyPort).map(|port| SocketAddr::new(config.listen.ip(), port));
        match (path(self.tlsCertFile.take()), path(self.tlsPrivateKeyFile.take())) {
            (Some(certificate), Some(key)) => config.serving_certificate = Some((certificate, key)),
            (None, None) => {}
            _ => bail!("invalid configuration: tlsCertFile and tlsPrivateKeyFile belong together"),
        }
        config.tls.newest_only = self.tlsMinVersion.take().is_some_and(|v| v.eq_ignore_ascii_case("VersionTLS13"));
        set(&mut config.tls.suites, self.tlsCipherSuites.take());
        set(&mut config.rotate_certificates, self.rotateCertificates);
        set(&mut config.server_tls_bootstrap, self.serverTLSBootstrap);
        config.client_ca = path(self.authentication.x509.clientCAFile.take()).or(config.client_ca.take());
        let auth = &mut config.auth;
        set(&mut auth.tokens, self.authentication.webhook.enabled);
        set(&mut auth.token_for, time(self.authentication.webhook.cacheTTL));
        set(&mut auth.anonymous, self.authentication.anonymous.enabled);
        auth.everything = self.authorization.mode.take().is_some_and(|m| m.eq_ignore_ascii_case("AlwaysAllow"));
        set(&mut auth.allowed_for, time(self.authorization.webhook.cacheAuthorizedTTL));
        set(&mut auth.denied_for, time(self.authorization.webhook.cacheUnauthorizedTTL));
        set(&mut config.debugging_handlers, self.enableDebuggingHandlers);
        set(&mut config.system_logs, self.enableSystemLogHandler);
        set(&mut config.system_log_query, self.enableSystemLogQuery);
        let healthz = self.healthzPort.map_or(10248, |p| u16::try_from(p).unwrap_or(0));
        let near =
            address("healthzBindAddress", self.healthzBindAddress.take())?.unwrap_or(IpAddr::from([127, 0, 0, 1]));
        config.healthz = (healthz > 0).then(|| SocketAddr::new(near, healthz));
        Ok(())
    }

    /// Cgroups, and the process itself.
    fn machine(&mut self, config: &mut Config) {
        set(&mut config.single_process_oom_kill, self.singleProcessOOMKill);
        set(&mut config.cpu_quota, self.cpuCFSQuota);
        set(&mut config.cpu_period, time(self.cpuCFSQuotaPeriod));
        set(&mut config.cgroup_root, text(self.cgroupRoot.take()));
        set(&mut config.cgroups_per_qos, self.cgroupsPerQOS);
        config.systemd_cgroups = self.cgroupDriver.take().is_some_and(|d| d.eq_ignore_ascii_case("systemd"));
        config.fail_cgroup_v1 = self.failCgroupV1 == Some(true);
        config.fail_swap_on = self.failSwapOn.unwrap_or(true);
        let swap = self.memorySwap.swapBehavior.take();
        config.memory = memory::Wishes {
            qos: self.gate("MemoryQoS", true),
            throttling: self.memoryThrottlingFactor,
            tiered: self.memoryReservationPolicy.take().is_some_and(|p| p.eq_ignore_ascii_case("TieredReservation")),
            swap: swap.is_some_and(|s| s.eq_ignore_ascii_case("LimitedSwap")),
        };
        config.process.oom_score = Some(self.oomScoreAdj.and_then(|n| i32::try_from(n).ok()).unwrap_or(OOM_SCORE));
        config.process.open_files = number(self.maxOpenFiles);
        config.process.kernel_as_expected = self.protectKernelDefaults == Some(true);
    }

    /// What pods are told and get.
    fn pods(&mut self, config: &mut Config) -> anyhow::Result<()> {
        config.static_pod_path = path(self.staticPodPath.take()).or(config.static_pod_path.take());
        set(&mut config.pod_logs, text(self.podLogsDir.take()).map(PathBuf::from));
        set(&mut config.cluster_domain, text(self.clusterDomain.take()).map(|d| d.trim_end_matches('.').to_string()));
        set(&mut config.cluster_dns, self.clusterDNS.take());
        set(&mut config.resolv_conf, self.resolvConf.take());
        set(&mut config.max_pods, number(self.maxPods));
        if let Some(per_core) = number::<u32>(self.podsPerCore) {
            let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
            config.max_pods = config.max_pods.min(per_core.saturating_mul(cores));
        }
        config.pod_cidr = text(self.podCIDR.take()).or(config.pod_cidr.take());
        config.pod_pids_limit = self.podPidsLimit.filter(|l| *l > 0).or(config.pod_pids_limit);
        set(&mut config.seccomp_default, self.seccompDefault);
        set(&mut config.allowed_unsafe_sysctls, self.allowedUnsafeSysctls.take());
        set(&mut config.default_sysctls, self.defaultPodSysctls.take());
        set(&mut config.ids_per_pod, number(self.userNamespaces.idsPerPod));
        if let Some(size) = text(self.containerLogMaxSize.take()) {
            let quantity: meta::quantity::Quantity =
                size.parse().map_err(|e| anyhow::anyhow!("invalid configuration: containerLogMaxSize: {e}"))?;
            config.container_logs.max_size = quantity.value().max(0) as u64;
        }
        set(&mut config.container_logs.max_files, number(self.containerLogMaxFiles));
        set(&mut config.container_logs.workers, number(self.containerLogMaxWorkers));
        set(&mut config.container_logs.every, time(self.containerLogMonitorInterval));
        if let Some(period) = self.crashLoopBackOff.maxContainerRestartPeriod {
            config.max_restart_back_off = SignedDuration::try_from(period.0)?;
        }
        Ok(())
    }

    /// The whole of it.
    pub fn apply(mut self, mut config: Config) -> anyhow::Result<Config> {
        config.gates.allocated_pods = self.gate("KubeletAllocatedPodsEndpoint", false);
        config.gates.checkpoint = self.gate("ContainerCheckpoint", true);
        config.shutdown = self.shutdown();
        config.alignment = self.alignment()?;
        config.processor_options = self.processor_options()?;
        config.exclusive_processors = self.cpuManagerPolicy.take().is_some_and(|p| p.eq_ignore_ascii_case("static"));
        self.server(&mut config)?;
        self.machine(&mut config);
        self.pods(&mut config)?;
        self.images(&mut config)?;
        self.reservations(&mut config)?;
        self.eviction(&mut config)?;
        let update = time(self.nodeStatusUpdateFrequency);
        set(&mut config.status_report, time(self.nodeStatusReportFrequency).or(update));
        set(&mut config.status_update, update);
        set(&mut config.lease_duration, number(self.nodeLeaseDurationSeconds).map(Duration::from_secs));
        config.provider_id = text(self.providerID.take()).or(config.provider_id);
        set(&mut config.taints, self.registerWithTaints.take());
        set(&mut config.register_node, self.registerNode);
        set(&mut config.cri_endpoint, text(self.containerRuntimeEndpoint.take()));
        config.image_endpoint = text(self.imageServiceEndpoint.take()).or(config.image_endpoint);
        Ok(config)
    }
}
