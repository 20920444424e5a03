//! `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1): upstream's file, with its drop-ins and the flags that stand for
//! fields of it, as far as it means something here.
//!
//! Every field of upstream's is known by name and type ([`fields`]). What upstream refuses is refused in its words, and so is
//! what this agent cannot do ([`check`]); what only tunes that which works differently here is taken and told of
//! ([`inert`]); the rest holds ([`apply`]).

mod apply;
mod check;
mod fields;
mod inert;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Map, Value};

use self::fields::File;
use super::Config;

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";
/// Directories below the one of drop-ins.
const MAX_DEPTH: usize = 8;

/// A duration as Go writes it, `1m30s`; zero may stand without a unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let nanos = meta::time::parse_duration(text).ok_or_else(|| format!("time: invalid duration {text:?}"))?;
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| format!("{text:?} must not be negative"))
}

/// Lays one document over another: maps are merged, what is null is gone, all else is replaced.
fn overlay(under: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (_, Value::Null) => {
                under.remove(&key);
            }
            (Some(Value::Object(under)), Value::Object(over)) => overlay(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

fn document(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (value, _) = meta::yaml::read(&bytes).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    let Value::Object(map) = value else { bail!("{} is not a {KIND}", path.display()) };
    let said = (map.get("apiVersion").and_then(Value::as_str), map.get("kind").and_then(Value::as_str));
    ensure!(
        said == (Some(API_VERSION), Some(KIND)),
        "{}: apiVersion and kind must be {API_VERSION} and {KIND}",
        path.display()
    );
    Ok(map)
}

/// The drop-ins of a directory and those below it, in the order of their names.
fn drop_ins(dir: &Path, depth: usize, out: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    ensure!(depth <= MAX_DEPTH, "{} is too deep for drop-ins", dir.display());
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() && !path.is_symlink() {
            drop_ins(&path, depth + 1, out)?;
        } else if path.extension().is_some_and(|e| e == "conf") {
            out.push(path);
        }
    }
    Ok(())
}

/// Reads the file, its drop-ins (`*.conf`) and what flags say of its fields into a configuration.
pub fn load(
    config: Config,
    file: Option<&Path>,
    dir: Option<&Path>,
    flags: Map<String, Value>,
) -> anyhow::Result<Config> {
    let mut whole = match file {
        Some(path) => document(path)?,
        None => Map::new(),
    };
    if let Some(dir) = dir {
        let mut paths = Vec::new();
        drop_ins(dir, 0, &mut paths)?;
        for path in paths {
            overlay(&mut whole, document(&path)?);
        }
    }
    for (field, value) in flags {
        // A flag says all of its map, but for the gates, which it adds to.
        if field != "featureGates" && value.as_object().is_some_and(|m| m.values().all(Value::is_string)) {
            whole.insert(field, value);
        } else {
            overlay(&mut whole, Map::from_iter([(field, value)]));
        }
    }
    inert::said(&whole).iter().for_each(|said| tracing::warn!("{said}"));
    let mut unknown = Vec::new();
    let file = File::read("", Value::Object(whole), &mut unknown)
        .map_err(|e| anyhow::anyhow!("the kubelet's configuration: {e}"))?;
    unknown.iter().for_each(|field| tracing::warn!("the kubelet's configuration: unknown field {field:?}"));
    let complaints = file.complaints();
    ensure!(complaints.is_empty(), "{}", complaints.join("; "));
    file.apply(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::eviction;

    fn read(texts: &[&str]) -> anyhow::Result<Config> {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("kubelet-config-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        for (n, text) in texts.iter().enumerate() {
            std::fs::write(dir.join(format!("{n}.conf")), format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{text}"))?;
        }
        let got = load(Config::new("n", "/r", "/s"), None, Some(&dir), Map::new());
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

    /// What kubeadm writes: every duration, most of them zero.
    #[test]
    fn empty_values_are_none() {
        let usual = Config::new("n", "/r", "/s");
        let got = read(&["authentication: {anonymous: {enabled: false}, webhook: {cacheTTL: 0s, enabled: true}, x509: {clientCAFile: /ca}}\n\
             authorization: {mode: Webhook, webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}}\ncgroupDriver: systemd\n\
             containerRuntimeEndpoint: ''\ncpuManagerReconcilePeriod: 0s\ncrashLoopBackOff: {}\nevictionPressureTransitionPeriod: 0s\n\
             imageMaximumGCAge: 0s\nimageMinimumGCAge: 0s\nlogging: {flushFrequency: 0, options: {json: {infoBufferSize: '0'}}, verbosity: 0}\n\
             memorySwap: {}\nnodeStatusReportFrequency: 0s\nnodeStatusUpdateFrequency: 0s\nrotateCertificates: true\nshutdownGracePeriod: 0s\n\
             shutdownGracePeriodCriticalPods: 0s\nstaticPodPath: /etc/kubernetes/manifests\nstreamingConnectionIdleTimeout: 0s\n\
             healthzBindAddress: ''\nmaxPods: 0\nport: 0\nnodeLeaseDurationSeconds: 0\nclusterDomain: ''\nmaxPodz: 1"])
        .unwrap();
        assert_eq!((got.status_update, got.status_report), (usual.status_update, usual.status_report));
        assert_eq!((got.auth.token_for, got.auth.allowed_for), (usual.auth.token_for, usual.auth.allowed_for));
        assert_eq!((got.max_pods, got.listen, got.lease_duration), (110, usual.listen, usual.lease_duration));
        assert_eq!((got.cri_endpoint, got.cluster_domain), (usual.cri_endpoint, usual.cluster_domain));
        assert!(got.image_gc.is_some_and(|gc| gc.min_age.as_secs() == 120 && gc.max_age.is_none()));
        assert!(got.shutdown.is_empty() && got.systemd_cgroups && got.rotate_certificates && got.healthz.is_some());
        let often = read(&["nodeStatusUpdateFrequency: 4s"]).unwrap();
        assert_eq!((often.status_update.as_secs(), often.status_report.as_secs()), (4, 4));
        for (text, pulls) in [
            ("maxParallelImagePulls: 7", 7),
            ("serializeImagePulls: true", 1),
            ("serializeImagePulls: false\nmaxParallelImagePulls: 3", 3),
            ("serializeImagePulls: false", tokio::sync::Semaphore::MAX_PERMITS),
        ] {
            assert_eq!(read(&[text]).unwrap().parallel_pulls, pulls, "{text}");
        }
    }

    #[test]
    fn refusals() {
        for (text, expect) in [
            ("maxPods: many", "maxPods: invalid type"),
            ("cpuManagerPolicy: odd", "cpuManagerPolicy: only none and static are supported"),
            ("evictionSoft: {memory.available: 1Mi}", "grace period must be specified"),
            (
                "crashLoopBackOff: {maxContainerRestartPeriod: 301s}",
                "(got: 301 seconds) must be set between 1s and 300s",
            ),
            (
                "imageGCHighThresholdPercent: 10",
                "80 must be less than imageGCHighThresholdPercent (--image-gc-high-threshold) 10",
            ),
            ("imageGCHighThresholdPercent: 101", "101 must be between 0 and 100, inclusive"),
            ("imageMaximumGCAge: 1m", "must be greater than imageMinimumGCAge"),
            ("port: 70000", "port (--port) 70000 must be between 1 and 65535, inclusive"),
            ("maxOpenFiles: -1", "maxOpenFiles (--max-open-files) -1 must not be a negative number"),
            ("tlsMinVersion: VersionTLS99", "tlsMinVersion: only VersionTLS12 and VersionTLS13"),
            (
                "topologyManagerPolicy: odd",
                "topologyManagerPolicy (--topology-manager-policy) \"odd\" must be one of: [\"none\" \"best-effort\"",
            ),
            ("topologyManagerScope: odd", "\"odd\" must be one of: \"container\", or \"pod\""),
            ("topologyManagerPolicyOptions: {odd: x}", "unknown Topology Manager Policy option"),
            (
                "memorySwap: {swapBehavior: UnlimitedSwap}",
                "memorySwap.swapBehavior \"UnlimitedSwap\" must be one of: \"\", \"LimitedSwap\" or \"NoSwap\"",
            ),
            ("memoryThrottlingFactor: 1.5", "must be greater than 0"),
            ("memoryReservationPolicy: Odd", "Valid options are \"None\" or \"TieredReservation\""),
            (
                "memoryReservationPolicy: TieredReservation\nfeatureGates: {MemoryQoS: false}",
                "requires MemoryQoS feature gate",
            ),
            ("cpuManagerPolicyOptions: {odd: 'true'}", "unknown CPU Manager Policy option: \"odd\""),
            ("cpuManagerPolicyOptions: {full-pcpus-only: maybe}", "bad value for option \"full-pcpus-only\""),
            ("cpuManagerPolicyOptions: {align-by-socket: 'true'}", "Alpha-level Options not enabled"),
            (
                "cpuManagerPolicyOptions: {distribute-cpus-across-numa: 'true', prefer-align-cpus-by-uncorecache: 'true'}",
                "can not be used at the same time",
            ),
            ("memoryManagerPolicy: Odd", "only None and Static are supported"),
            ("reservedMemory: [{numaNode: 0, limits: {memory: 1Mi}}]", "only memoryManagerPolicy Static"),
            ("nodeStatusUpdateFrequency: 10", "nodeStatusUpdateFrequency: invalid type"),
            ("maxParallelImagePulls: 0", "maxParallelImagePulls 0 must be a positive number"),
            (
                "serializeImagePulls: true\nmaxParallelImagePulls: 2",
                "unless SerializeImagePulls (--serialize-image-pulls) is set to false",
            ),
            (
                "imagePullCredentialsVerificationPolicy: Odd",
                "option \"Odd\" specified for imagePullCredentialsVerificationPolicy",
            ),
            ("preloadedImagesVerificationAllowlist: [a]", "is not \"NeverVerifyAllowlistedImages\""),
            (
                "imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\npreloadedImagesVerificationAllowlist: ['r/*/a']",
                "only patterns ending with '/*' are allowed",
            ),
            (
                "enforceNodeAllocatable: [system-reserved]",
                "systemReservedCgroup (--system-reserved-cgroup) must be specified",
            ),
            ("enforceNodeAllocatable: [pods, none]", "may not contain additional enforcements"),
            (
                "enforceNodeAllocatable: [pods]\ncgroupsPerQOS: false",
                "cgroupsPerQOS (--cgroups-per-qos) must be set to true",
            ),
            ("podLogsDir: var/log", "must be absolute path"),
            ("podLogsDir: /var//log", "must be normalized"),
            ("containerLogMonitorInterval: 1s", "greater than or equal to 3s"),
            ("containerLogMaxWorkers: 0", "containerLogMaxWorkers must be greater than or equal to 1"),
            ("cpuCFSQuotaPeriod: 10ms", "requires feature gate CustomCPUCFSQuotaPeriod"),
            ("runOnce: true", "Runonce mode has been deprecated and should not be set"),
            ("userNamespaces: {idsPerPod: 1000}", "must be a multiple of 65536"),
            ("hairpinMode: odd", "option \"odd\" specified for hairpinMode"),
            ("systemCgroups: /system", "cgroupRoot (--cgroup-root) was not specified"),
            ("shutdownGracePeriod: 10s\nshutdownGracePeriodCriticalPods: 20s", "must be <= shutdownGracePeriod 10s"),
            ("staticPodURL: http://a", "staticPodURL: is not supported"),
        ] {
            let error = format!("{:#}", read(&[text]).map(drop).unwrap_err());
            assert!(error.contains(expect), "{text}: {error}");
        }
    }
}
