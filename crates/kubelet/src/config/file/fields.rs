//! The fields of `KubeletConfiguration` as upstream's v1beta1 has them: names and types, all optional.
//!
//! A value of the wrong type is an error that names the field. A field nobody knows is none: upstream reads such a file
//! all the same and says so, since it may have been written for another version.

// The names are the file's own.
#![allow(non_snake_case)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A duration of the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Time(pub Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        super::duration(&text).map(Time).map_err(serde::de::Error::custom)
    }
}

pub type Amounts = BTreeMap<String, String>;

#[derive(Deserialize)]
pub struct ShutdownStep {
    #[serde(default)]
    pub priority: i32,
    #[serde(default)]
    pub shutdownGracePeriodSeconds: u64,
}

#[derive(Deserialize)]
pub struct MemoryReservation {
    pub numaNode: u32,
    pub limits: Amounts,
}

fn below(at: &str, name: &str) -> String {
    if at.is_empty() { name.into() } else { format!("{at}.{name}") }
}

/// Takes a field out of its document; one that is null is as good as absent.
fn take<T: DeserializeOwned>(at: &str, name: &str, map: &mut Map<String, Value>) -> Result<Option<T>, String> {
    match map.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => serde_json::from_value(value).map(Some).map_err(|e| format!("{}: {e}", below(at, name))),
    }
}

/// Declares a document: fields with values, then fields with documents of their own.
macro_rules! document {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* } $({ $($inner:ident: $document:ident,)* })?) => {
        $(#[$doc])*
        #[derive(Default)]
        #[allow(dead_code)] // Those without effect are looked at for their type only.
        pub struct $name {
            $(pub $field: Option<$type>,)*
            $($(pub $inner: $document,)*)?
        }

        impl $name {
            /// Reads it from its place in the file; `unknown` gets the fields that are no one's.
            pub fn read(at: &str, value: Value, unknown: &mut Vec<String>) -> Result<Self, String> {
                let mut map = match value {
                    Value::Null => Map::new(),
                    Value::Object(map) => map,
                    other => return Err(format!("{at}: invalid type: {other}, expected a map")),
                };
                let out = Self {
                    $($field: take(at, stringify!($field), &mut map)?,)*
                    $($($inner: {
                        let inner = map.remove(stringify!($inner)).unwrap_or_default();
                        $document::read(&below(at, stringify!($inner)), inner, unknown)?
                    },)*)?
                };
                unknown.extend(map.into_iter().map(|(name, _)| below(at, &name)));
                Ok(out)
            }
        }
    };
}

document! { X509 { clientCAFile: PathBuf, } }
document! { TokenReviews { enabled: bool, cacheTTL: Time, } }
document! { Anonymous { enabled: bool, } }
document! { Authentication {} { x509: X509, webhook: TokenReviews, anonymous: Anonymous, } }
document! { AccessReviews { cacheAuthorizedTTL: Time, cacheUnauthorizedTTL: Time, } }
document! { Authorization { mode: String, } { webhook: AccessReviews, } }
document! { MemorySwap { swapBehavior: String, } }
document! { CrashLoop { maxContainerRestartPeriod: Time, } }
document! { UserNamespaces { idsPerPod: i64, } }

document! {
    /// The whole file.
    File {
        apiVersion: String,
        kind: String,
        enableServer: bool,
        staticPodPath: PathBuf,
        podLogsDir: String,
        syncFrequency: Time,
        fileCheckFrequency: Time,
        httpCheckFrequency: Time,
        staticPodURL: String,
        staticPodURLHeader: BTreeMap<String, Vec<String>>,
        address: String,
        port: i64,
        readOnlyPort: i64,
        tlsCertFile: PathBuf,
        tlsPrivateKeyFile: PathBuf,
        tlsCipherSuites: Vec<String>,
        tlsCurvePreferences: Vec<i32>,
        tlsMinVersion: String,
        rotateCertificates: bool,
        serverTLSBootstrap: bool,
        registryPullQPS: i64,
        registryBurst: i64,
        imagePullCredentialsVerificationPolicy: String,
        preloadedImagesVerificationAllowlist: Vec<String>,
        eventRecordQPS: i64,
        eventBurst: i64,
        enableDebuggingHandlers: bool,
        enableContentionProfiling: bool,
        healthzPort: i64,
        healthzBindAddress: String,
        oomScoreAdj: i64,
        clusterDomain: String,
        clusterDNS: Vec<IpAddr>,
        streamingConnectionIdleTimeout: Time,
        nodeStatusUpdateFrequency: Time,
        nodeStatusReportFrequency: Time,
        nodeLeaseDurationSeconds: i64,
        imageMinimumGCAge: Time,
        imageMaximumGCAge: Time,
        imageGCHighThresholdPercent: i64,
        imageGCLowThresholdPercent: i64,
        // Negative: no figures.
        volumeStatsAggPeriod: String,
        kubeletCgroups: String,
        systemCgroups: String,
        cgroupRoot: String,
        cgroupsPerQOS: bool,
        cgroupDriver: String,
        cpuManagerPolicy: String,
        singleProcessOOMKill: bool,
        cpuManagerPolicyOptions: BTreeMap<String, String>,
        cpuManagerReconcilePeriod: Time,
        draManagerReconcilePeriod: Time,
        memoryManagerPolicy: String,
        topologyManagerPolicy: String,
        topologyManagerScope: String,
        topologyManagerPolicyOptions: BTreeMap<String, String>,
        qosReserved: Amounts,
        runtimeRequestTimeout: Time,
        hairpinMode: String,
        maxPods: i64,
        podCIDR: String,
        podPidsLimit: i64,
        resolvConf: PathBuf,
        runOnce: bool,
        cpuCFSQuota: bool,
        cpuCFSQuotaPeriod: Time,
        nodeStatusMaxImages: i64,
        maxOpenFiles: i64,
        contentType: String,
        kubeAPIQPS: i64,
        kubeAPIBurst: i64,
        serializeImagePulls: bool,
        maxParallelImagePulls: i64,
        evictionHard: Amounts,
        evictionSoft: Amounts,
        evictionSoftGracePeriod: Amounts,
        evictionPressureTransitionPeriod: Time,
        evictionMaxPodGracePeriod: i64,
        evictionMinimumReclaim: Amounts,
        mergeDefaultEvictionSettings: bool,
        podsPerCore: i64,
        enableControllerAttachDetach: bool,
        protectKernelDefaults: bool,
        makeIPTablesUtilChains: bool,
        iptablesMasqueradeBit: i64,
        iptablesDropBit: i64,
        featureGates: BTreeMap<String, bool>,
        failSwapOn: bool,
        containerLogMaxSize: String,
        containerLogMaxFiles: i64,
        containerLogMaxWorkers: i64,
        containerLogMonitorInterval: Time,
        configMapAndSecretChangeDetectionStrategy: String,
        systemReserved: Amounts,
        kubeReserved: Amounts,
        reservedSystemCPUs: String,
        showHiddenMetricsForVersion: String,
        systemReservedCgroup: String,
        kubeReservedCgroup: String,
        enforceNodeAllocatable: Vec<String>,
        allowedUnsafeSysctls: Vec<String>,
        defaultPodSysctls: BTreeMap<String, String>,
        volumePluginDir: String,
        providerID: String,
        kernelMemcgNotification: bool,
        logging: Map<String, Value>,
        enableSystemLogHandler: bool,
        enableSystemLogQuery: bool,
        shutdownGracePeriod: Time,
        shutdownGracePeriodCriticalPods: Time,
        shutdownGracePeriodByPodPriority: Vec<ShutdownStep>,
        reservedMemory: Vec<MemoryReservation>,
        enableProfilingHandler: bool,
        enableDebugFlagsHandler: bool,
        seccompDefault: bool,
        memoryThrottlingFactor: f64,
        memoryReservationPolicy: String,
        registerWithTaints: Vec<Taint>,
        registerNode: bool,
        tracing: Map<String, Value>,
        localStorageCapacityIsolation: bool,
        containerRuntimeEndpoint: String,
        imageServiceEndpoint: String,
        failCgroupV1: bool,
    } {
        authentication: Authentication,
        authorization: Authorization,
        memorySwap: MemorySwap,
        crashLoopBackOff: CrashLoop,
        userNamespaces: UserNamespaces,
    }
}

impl File {
    /// A feature gate of the file's, or what it is without a word.
    pub fn gate(&self, name: &str, default: bool) -> bool {
        self.featureGates.as_ref().and_then(|gates| gates.get(name)).copied().unwrap_or(default)
    }
}
