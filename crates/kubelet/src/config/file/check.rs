//! What makes a configuration invalid, in upstream's words, and what of a valid one this agent cannot do.

use std::collections::BTreeSet;
use std::time::Duration;

use super::fields::{File, Time};

/// The longest wait before a restart that may be asked for, and the shortest.
const RESTART_PERIOD: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(300)];
/// The shortest pause between looks at logs' sizes.
const MIN_LOG_MONITOR: Duration = Duration::from_secs(3);
/// What quotas of processor time are reckoned by without the gate that changes it.
const USUAL_PERIOD: Duration = Duration::from_millis(100);
/// Ids of a pod with users of its own: as many as POSIX users have, or a multiple.
const IDS: i64 = 65_536;
const ENFORCED: [&str; 6] =
    ["pods", "system-reserved", "system-reserved-compressible", "kube-reserved", "kube-reserved-compressible", "none"];
const VERIFICATIONS: [&str; 4] =
    ["NeverVerify", "NeverVerifyPreloadedImages", "NeverVerifyAllowlistedImages", "AlwaysVerify"];

/// `"a", "b" or "c"`.
fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|n| format!("{n:?}")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

fn text(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or_default()
}

fn set(value: Option<Time>) -> Option<Duration> {
    value.map(|t| t.0).filter(|t| !t.is_zero())
}

impl File {
    /// Fields that hold a number, their flags, and what is allowed.
    fn wrong_numbers(&self) -> Vec<String> {
        const NOT_NEGATIVE: &str = "must not be a negative number";
        let mut out = Vec::new();
        let mut hold = |fine: bool, field: &str, flag: &str, value: Option<i64>, rule: &str| {
            if let Some(value) = value.filter(|_| !fine) {
                out.push(format!("{field} ({flag}) {value} {rule}"));
            }
        };
        for (field, flag, value) in [
            ("eventBurst", "--event-burst", self.eventBurst),
            ("eventRecordQPS", "--event-qps", self.eventRecordQPS),
            ("kubeAPIBurst", "--kube-api-burst", self.kubeAPIBurst),
            ("kubeAPIQPS", "--kube-api-qps", self.kubeAPIQPS),
            ("maxOpenFiles", "--max-open-files", self.maxOpenFiles),
            ("maxPods", "--max-pods", self.maxPods),
            ("podsPerCore", "--pods-per-core", self.podsPerCore),
            ("registryBurst", "--registry-burst", self.registryBurst),
            ("registryPullQPS", "--registry-qps", self.registryPullQPS),
        ] {
            hold(value.is_none_or(|v| v >= 0), field, flag, value, NOT_NEGATIVE);
        }
        for (field, flag, value, range, rule) in [
            ("healthzPort", "--healthz-port", self.healthzPort, 0..=65_535, "must be between 1 and 65535, inclusive"),
            ("port", "--port", self.port, 0..=65_535, "must be between 1 and 65535, inclusive"),
            (
                "readOnlyPort",
                "--read-only-port",
                self.readOnlyPort,
                0..=65_535,
                "must be between 0 and 65535, inclusive",
            ),
            (
                "oomScoreAdj",
                "--oom-score-adj",
                self.oomScoreAdj,
                -1000..=1000,
                "must be between -1000 and 1000, inclusive",
            ),
            (
                "iptablesDropBit",
                "--iptables-drop-bit",
                self.iptablesDropBit,
                0..=31,
                "must be between 0 and 31, inclusive",
            ),
            (
                "iptablesMasqueradeBit",
                "--iptables-masquerade-bit",
                self.iptablesMasqueradeBit,
                0..=31,
                "must be between 0 and 31, inclusive",
            ),
            (
                "imageGCHighThresholdPercent",
                "--image-gc-high-threshold",
                self.imageGCHighThresholdPercent,
                0..=100,
                "must be between 0 and 100, inclusive",
            ),
            (
                "imageGCLowThresholdPercent",
                "--image-gc-low-threshold",
                self.imageGCLowThresholdPercent,
                0..=100,
                "must be between 0 and 100, inclusive",
            ),
            (
                "nodeStatusMaxImages",
                "--node-status-max-images",
                self.nodeStatusMaxImages,
                -1..=i64::MAX,
                "must be -1 or greater",
            ),
        ] {
            hold(value.is_none_or(|v| range.contains(&v)), field, flag, value, rule);
        }
        if self.nodeLeaseDurationSeconds.is_some_and(|s| s < 0) {
            out.push("nodeLeaseDurationSeconds must be greater than 0".into());
        }
        let (high, low) =
            (self.imageGCHighThresholdPercent.unwrap_or(85), self.imageGCLowThresholdPercent.unwrap_or(80));
        if low >= high {
            out.push(format!(
                "imageGCLowThresholdPercent (--image-gc-low-threshold) {low} must be less than imageGCHighThresholdPercent (--image-gc-high-threshold) {high}"
            ));
        }
        out
    }

    fn wrong_images(&self) -> Vec<String> {
        let mut out = Vec::new();
        let least = set(self.imageMinimumGCAge).unwrap_or(Duration::from_secs(120));
        if let Some(most) = set(self.imageMaximumGCAge).filter(|most| *most <= least) {
            out.push(format!("imageMaximumGCAge {most:?} must be greater than imageMinimumGCAge {least:?}"));
        }
        if let Some(pulls) = self.maxParallelImagePulls {
            if pulls < 1 {
                out.push(format!("maxParallelImagePulls {pulls} must be a positive number"));
            } else if pulls > 1 && self.serializeImagePulls == Some(true) {
                out.push(
                    "maxParallelImagePulls cannot be larger than 1 unless SerializeImagePulls (--serialize-image-pulls) is set to false"
                        .into(),
                );
            }
        }
        let policy = text(&self.imagePullCredentialsVerificationPolicy);
        let exempt = self.preloadedImagesVerificationAllowlist.as_deref().unwrap_or_default();
        if !self.gate("KubeletEnsureSecretPulledImages", true) {
            for (field, used) in [
                ("imagePullCredentialsVerificationPolicy", !policy.is_empty()),
                ("preloadedImagesVerificationAllowlist", !exempt.is_empty()),
            ] {
                if used {
                    out.push(format!(
                        "`{field}` must not be set if KubeletEnsureSecretPulledImages feature gate is not enabled"
                    ));
                }
            }
            return out;
        }
        if !policy.is_empty() && !VERIFICATIONS.contains(&policy) {
            out.push(format!(
                "option {policy:?} specified for imagePullCredentialsVerificationPolicy. Valid options are {}",
                listed(&VERIFICATIONS)
            ));
        }
        if !exempt.is_empty() && policy != "NeverVerifyAllowlistedImages" {
            out.push(
                "can't set `preloadedImagesVerificationAllowlist` if `imagePullCredentialsVertificationPolicy` is not \"NeverVerifyAllowlistedImages\""
                    .into(),
            );
        } else if let Some(bad) = exempt.iter().find_map(|pattern| bad_pattern(pattern)) {
            out.push(format!("invalid image pattern in `preloadedImagesVerificationAllowlist`: {bad}"));
        }
        out
    }

    fn wrong_enforcements(&self) -> Vec<String> {
        let all = self.enforceNodeAllocatable.as_deref().unwrap_or_default();
        let has = |name: &str| all.iter().any(|e| e == name);
        let mut out = Vec::new();
        for whose in ["system", "kube"] {
            let (whole, compressible) = (format!("{whose}-reserved"), format!("{whose}-reserved-compressible"));
            if has(&whole) && has(&compressible) {
                out.push(format!(
                    "both {whole:?} and {compressible:?} cannot be specified together in enforceNodeAllocatable (--enforce-node-allocatable)"
                ));
            }
            let cgroup = if whose == "system" { &self.systemReservedCgroup } else { &self.kubeReservedCgroup };
            if (has(&whole) || has(&compressible)) && text(cgroup).is_empty() {
                out.push(format!(
                    "{whose}ReservedCgroup (--{whose}-reserved-cgroup) must be specified when {whole:?} or {compressible:?} included in enforceNodeAllocatable (--enforce-node-allocatable)"
                ));
            }
        }
        let mut seen = BTreeSet::new();
        for one in all {
            if !seen.insert(one) {
                out.push(format!(
                    "duplicated enforcements {one:?} in enforceNodeAllocatable (--enforce-node-allocatable)"
                ));
            } else if !ENFORCED.contains(&one.as_str()) {
                out.push(format!(
                    "option {one:?} specified for enforceNodeAllocatable (--enforce-node-allocatable). Valid options are {}",
                    listed(&ENFORCED)
                ));
            } else if one == "none" {
                if all.len() > 1 {
                    out.push("enforceNodeAllocatable (--enforce-node-allocatable) may not contain additional enforcements when \"none\" is specified".into());
                }
            } else if self.cgroupsPerQOS == Some(false) {
                out.push(format!("cgroupsPerQOS (--cgroups-per-qos) must be set to true when {one:?} contained in enforceNodeAllocatable (--enforce-node-allocatable)"));
            }
        }
        out
    }

    fn wrong_memory(&self) -> Vec<String> {
        let mut out = Vec::new();
        let swap = text(&self.memorySwap.swapBehavior);
        if !["", "NoSwap", "LimitedSwap"].contains(&swap) {
            out.push(format!("memorySwap.swapBehavior {swap:?} must be one of: \"\", \"LimitedSwap\" or \"NoSwap\""));
        }
        if let Some(factor) = self.memoryThrottlingFactor.filter(|f| *f <= 0.0 || *f > 1.0) {
            out.push(format!("memoryThrottlingFactor {factor} must be greater than 0 and less than or equal to 1.0"));
        }
        let policy = text(&self.memoryReservationPolicy);
        if !["", "None", "TieredReservation"].contains(&policy) {
            out.push(format!(
                "option {policy:?} specified for memoryReservationPolicy. Valid options are \"None\" or \"TieredReservation\""
            ));
        } else if policy == "TieredReservation" && !self.gate("MemoryQoS", true) {
            out.push(format!("memoryReservationPolicy {policy:?} requires MemoryQoS feature gate to be enabled"));
        }
        out
    }

    fn wrong_logs(&self) -> Vec<String> {
        let mut out = Vec::new();
        if self.containerLogMaxWorkers.is_some_and(|n| n < 1) {
            out.push("containerLogMaxWorkers must be greater than or equal to 1".into());
        }
        if set(self.containerLogMonitorInterval).is_some_and(|t| t < MIN_LOG_MONITOR) {
            out.push("containerLogMonitorInterval must be a positive time duration greater than or equal to 3s".into());
        }
        if self.containerLogMaxFiles.is_some_and(|n| n <= 1) {
            out.push("containerLogMaxFiles must be greater than 1".into());
        }
        let dir = text(&self.podLogsDir);
        if !dir.is_empty() {
            let clean =
                dir == "/" || !dir.ends_with('/') && !dir.split('/').skip(1).any(|p| matches!(p, "" | "." | ".."));
            for (fine, rule) in [
                (dir.starts_with('/'), "must be absolute path"),
                (clean, "must be normalized"),
                (dir.is_ascii(), "mut contains ASCII characters only"),
            ] {
                if !fine {
                    out.push(format!("pod logs path {dir:?} {rule}"));
                }
            }
        }
        if self.enableSystemLogQuery == Some(true) && self.enableSystemLogHandler == Some(false) {
            out.push("enableSystemLogHandler is required for enableSystemLogQuery".into());
        }
        out
    }

    fn wrong_shutdown(&self) -> Vec<String> {
        let (total, critical) = (set(self.shutdownGracePeriod), set(self.shutdownGracePeriodCriticalPods));
        let mut out = Vec::new();
        if critical > total {
            out.push(format!(
                "shutdownGracePeriodCriticalPods {:?} must be <= shutdownGracePeriod {:?}",
                critical.unwrap_or_default(),
                total.unwrap_or_default()
            ));
        }
        for (field, time) in [("shutdownGracePeriod", total), ("shutdownGracePeriodCriticalPods", critical)] {
            if let Some(time) = time.filter(|t| *t < Duration::from_secs(1)) {
                out.push(format!("{field} {time:?} must be either zero or otherwise >= 1 sec"));
            }
        }
        let steps = self.shutdownGracePeriodByPodPriority.as_ref().is_some_and(|s| !s.is_empty());
        let simple = total.is_some() || critical.is_some();
        if simple && !self.gate("GracefulNodeShutdown", true) {
            out.push("specifying shutdownGracePeriod or shutdownGracePeriodCriticalPods requires feature gate GracefulNodeShutdown".into());
        }
        if steps && !self.gate("GracefulNodeShutdownBasedOnPodPriority", true) {
            out.push("Specifying shutdownGracePeriodByPodPriority requires feature gate GracefulNodeShutdownBasedOnPodPriority".into());
        } else if steps && simple {
            out.push(
                "Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same time".into(),
            );
        }
        out
    }

    fn wrong_processors(&self) -> Vec<String> {
        let mut out = Vec::new();
        if let Some(period) = set(self.cpuCFSQuotaPeriod) {
            let custom = self.gate("CustomCPUCFSQuotaPeriod", false);
            if !custom && period != USUAL_PERIOD {
                out.push(format!("cpuCFSQuotaPeriod (--cpu-cfs-quota-period) {period:?} requires feature gate CustomCPUCFSQuotaPeriod"));
            } else if !(Duration::from_millis(1)..=Duration::from_secs(1)).contains(&period) {
                out.push(format!(
                    "cpuCFSQuotaPeriod (--cpu-cfs-quota-period) {period:?} must be between 1ms and 1sec, inclusive"
                ));
            }
        }
        let reserved = !text(&self.systemReservedCgroup).is_empty() || !text(&self.kubeReservedCgroup).is_empty();
        if !text(&self.reservedSystemCPUs).is_empty() && reserved {
            out.push("can't use reservedSystemCPUs (--reserved-cpus) with systemReservedCgroup (--system-reserved-cgroup) or kubeReservedCgroup (--kube-reserved-cgroup)".into());
        }
        let policy = text(&self.topologyManagerPolicy);
        let policies = ["none", "best-effort", "restricted", "single-numa-node"];
        if !policy.is_empty() && !policies.contains(&policy) {
            let shown: Vec<String> = policies.iter().map(|p| format!("{p:?}")).collect();
            out.push(format!(
                "topologyManagerPolicy (--topology-manager-policy) {policy:?} must be one of: [{}]",
                shown.join(" ")
            ));
        }
        let scope = text(&self.topologyManagerScope);
        if !["", "container", "pod"].contains(&scope) {
            out.push(format!(
                "topologyManagerScope (--topology-manager-scope) {scope:?} must be one of: \"container\", or \"pod\""
            ));
        }
        out
    }

    /// What upstream refuses too.
    fn invalid(&self) -> Vec<String> {
        let parts = [
            self.wrong_numbers(),
            self.wrong_images(),
            self.wrong_enforcements(),
            self.wrong_memory(),
            self.wrong_logs(),
            self.wrong_shutdown(),
            self.wrong_processors(),
        ];
        let mut out = parts.concat();
        if !text(&self.systemCgroups).is_empty() && text(&self.cgroupRoot).is_empty() {
            out.push(
                "systemCgroups (--system-cgroups) was specified and cgroupRoot (--cgroup-root) was not specified"
                    .into(),
            );
        }
        if self.runOnce == Some(true) {
            out.push("runOnce (--runOnce) true, Runonce mode has been deprecated and should not be set".into());
        }
        let hairpin = text(&self.hairpinMode);
        if !["", "none", "hairpin-veth", "promiscuous-bridge"].contains(&hairpin) {
            out.push(format!(
                "option {hairpin:?} specified for hairpinMode (--hairpin-mode). Valid options are \"none\", \"hairpin-veth\" or \"promiscuous-bridge\""
            ));
        }
        if self.serverTLSBootstrap == Some(true) && !self.gate("RotateKubeletServerCertificate", true) {
            out.push("serverTLSBootstrap true requires feature gate RotateKubeletServerCertificate".into());
        }
        if let Some(period) = self.crashLoopBackOff.maxContainerRestartPeriod {
            if !self.gate("KubeletCrashLoopBackOffMax", true) {
                out.push("FeatureGate KubeletCrashLoopBackOffMax not enabled, CrashLoopBackOff.MaxContainerRestartPeriod must not be set".into());
            } else if period.0 < RESTART_PERIOD[0] || period.0 > RESTART_PERIOD[1] {
                out.push(format!(
                    "CrashLoopBackOff.MaxContainerRestartPeriod (got: {} seconds) must be set between 1s and 300s",
                    period.0.as_secs_f64()
                ));
            }
        }
        if let Some(ids) =
            self.userNamespaces.idsPerPod.filter(|n| *n < IDS || n % IDS != 0 || *n > i64::from(u32::MAX))
        {
            out.push(format!("userNamespaces.idsPerPod {ids} must be a multiple of {IDS}"));
        }
        let timed = self.registerWithTaints.iter().flatten().any(|t| t.time_added.is_some());
        if timed {
            out.push("taint.TimeAdded is not nil".into());
        }
        out
    }

    /// What this agent cannot do, or has other words for.
    fn impossible(&self) -> Vec<String> {
        let one_of = |value: &Option<String>, names: &[&str]| {
            let value = text(value);
            value.is_empty() || names.iter().any(|n| n.eq_ignore_ascii_case(value))
        };
        let sysctls = self.defaultPodSysctls.as_ref().is_none_or(|s| s.is_empty());
        [
            (
                one_of(&self.cpuManagerPolicy, &["none", "static"]),
                "cpuManagerPolicy: only none and static are supported",
            ),
            (one_of(&self.cgroupDriver, &["cgroupfs", "systemd"]), "cgroupDriver: only cgroupfs and systemd are known"),
            (
                one_of(&self.tlsMinVersion, &["VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"]),
                "tlsMinVersion: only VersionTLS12 and VersionTLS13 are spoken",
            ),
            (
                one_of(&self.authorization.mode, &["Webhook", "AlwaysAllow"]),
                "authorization.mode: only Webhook and AlwaysAllow are known",
            ),
            (
                one_of(&self.configMapAndSecretChangeDetectionStrategy, &["Get", "Cache", "Watch"]),
                "configMapAndSecretChangeDetectionStrategy: only Get, Cache and Watch are known",
            ),
            (text(&self.staticPodURL).is_empty(), "staticPodURL: is not supported; use staticPodPath"),
            (
                sysctls || self.gate("DefaultPodSysctls", false),
                "defaultPodSysctls requires feature gate DefaultPodSysctls",
            ),
        ]
        .into_iter()
        .filter(|(fine, _)| !fine)
        .map(|(_, why)| why.to_string())
        .collect()
    }

    /// Everything that is wrong with the file.
    pub fn complaints(&self) -> Vec<String> {
        let all = self.invalid().into_iter().chain(self.impossible());
        all.map(|why| format!("invalid configuration: {why}")).collect()
    }
}

/// What is wrong with a name of the exempted images.
fn bad_pattern(pattern: &str) -> Option<String> {
    let name = pattern.strip_suffix("/*").unwrap_or(pattern);
    if pattern.trim() != pattern {
        Some(format!("leading/trailing spaces are not allowed: {pattern}"))
    } else if pattern.is_empty() || name.is_empty() {
        Some(format!("the supplied pattern is too short: {pattern}"))
    } else if name.contains('*') {
        Some("not a valid wildcard pattern, only patterns ending with '/*' are allowed".to_string())
    } else if name.contains('@') || name.rsplit('/').next().is_some_and(|last| last.contains(':')) && name.contains('/')
    {
        Some(format!("images with tags or digests are not allowed: {pattern}"))
    } else {
        None
    }
}
