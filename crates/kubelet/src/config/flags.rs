//! Upstream's flags that stand for fields of the configuration file, and those that are taken and make no difference: a
//! service that starts upstream's kubelet starts this one.

use std::ffi::OsString;

use serde_json::{Map, Value, json};

/// How a flag's value becomes a field's.
#[derive(Clone, Copy)]
enum Form {
    Text,
    /// Without a value it is true.
    Bool,
    Number,
    /// Joined by commas.
    List,
    /// Keys and values with this between them, joined by commas.
    Pairs(char),
    /// The same, true or false.
    Gates,
    /// `key=value:effect`.
    Taints,
    /// `node:kind=amount,kind=amount`, joined by semicolons.
    Memory,
}

use Form::{Bool, Gates, List, Memory, Number, Pairs, Taints, Text};

const FLAGS: [(&str, &str, Form); 106] = [
    ("address", "address", Text),
    ("allowed-unsafe-sysctls", "allowedUnsafeSysctls", List),
    ("anonymous-auth", "authentication.anonymous.enabled", Bool),
    ("authentication-token-webhook", "authentication.webhook.enabled", Bool),
    ("authentication-token-webhook-cache-ttl", "authentication.webhook.cacheTTL", Text),
    ("authorization-mode", "authorization.mode", Text),
    ("authorization-webhook-cache-authorized-ttl", "authorization.webhook.cacheAuthorizedTTL", Text),
    ("authorization-webhook-cache-unauthorized-ttl", "authorization.webhook.cacheUnauthorizedTTL", Text),
    ("cgroup-driver", "cgroupDriver", Text),
    ("cgroup-root", "cgroupRoot", Text),
    ("cgroups-per-qos", "cgroupsPerQOS", Bool),
    ("client-ca-file", "authentication.x509.clientCAFile", Text),
    ("cluster-dns", "clusterDNS", List),
    ("cluster-domain", "clusterDomain", Text),
    ("container-log-max-files", "containerLogMaxFiles", Number),
    ("container-log-max-size", "containerLogMaxSize", Text),
    ("container-runtime-endpoint", "containerRuntimeEndpoint", Text),
    ("contention-profiling", "enableContentionProfiling", Bool),
    ("cpu-cfs-quota", "cpuCFSQuota", Bool),
    ("cpu-cfs-quota-period", "cpuCFSQuotaPeriod", Text),
    ("cpu-manager-policy", "cpuManagerPolicy", Text),
    ("cpu-manager-policy-options", "cpuManagerPolicyOptions", Pairs('=')),
    ("cpu-manager-reconcile-period", "cpuManagerReconcilePeriod", Text),
    ("enable-controller-attach-detach", "enableControllerAttachDetach", Bool),
    ("enable-debugging-handlers", "enableDebuggingHandlers", Bool),
    ("enable-server", "enableServer", Bool),
    ("enforce-node-allocatable", "enforceNodeAllocatable", List),
    ("event-burst", "eventBurst", Number),
    ("event-qps", "eventRecordQPS", Number),
    ("eviction-hard", "evictionHard", Pairs('<')),
    ("eviction-max-pod-grace-period", "evictionMaxPodGracePeriod", Number),
    ("eviction-minimum-reclaim", "evictionMinimumReclaim", Pairs('=')),
    ("eviction-pressure-transition-period", "evictionPressureTransitionPeriod", Text),
    ("eviction-soft", "evictionSoft", Pairs('<')),
    ("eviction-soft-grace-period", "evictionSoftGracePeriod", Pairs('=')),
    ("fail-cgroupv1", "failCgroupV1", Bool),
    ("fail-swap-on", "failSwapOn", Bool),
    ("feature-gates", "featureGates", Gates),
    ("file-check-frequency", "fileCheckFrequency", Text),
    ("hairpin-mode", "hairpinMode", Text),
    ("healthz-bind-address", "healthzBindAddress", Text),
    ("healthz-port", "healthzPort", Number),
    ("http-check-frequency", "httpCheckFrequency", Text),
    ("image-gc-high-threshold", "imageGCHighThresholdPercent", Number),
    ("image-gc-low-threshold", "imageGCLowThresholdPercent", Number),
    ("image-service-endpoint", "imageServiceEndpoint", Text),
    ("iptables-drop-bit", "iptablesDropBit", Number),
    ("iptables-masquerade-bit", "iptablesMasqueradeBit", Number),
    ("kernel-memcg-notification", "kernelMemcgNotification", Bool),
    ("kube-api-burst", "kubeAPIBurst", Number),
    ("kube-api-content-type", "contentType", Text),
    ("kube-api-qps", "kubeAPIQPS", Number),
    ("kube-reserved", "kubeReserved", Pairs('=')),
    ("kube-reserved-cgroup", "kubeReservedCgroup", Text),
    ("kubelet-cgroups", "kubeletCgroups", Text),
    ("local-storage-capacity-isolation", "localStorageCapacityIsolation", Bool),
    ("make-iptables-util-chains", "makeIPTablesUtilChains", Bool),
    ("manifest-url", "staticPodURL", Text),
    ("max-open-files", "maxOpenFiles", Number),
    ("max-pods", "maxPods", Number),
    ("maximum-image-ttl-duration", "imageMaximumGCAge", Text),
    ("memory-manager-policy", "memoryManagerPolicy", Text),
    ("minimum-image-ttl-duration", "imageMinimumGCAge", Text),
    ("node-status-max-images", "nodeStatusMaxImages", Number),
    ("node-status-update-frequency", "nodeStatusUpdateFrequency", Text),
    ("oom-score-adj", "oomScoreAdj", Number),
    ("pod-cidr", "podCIDR", Text),
    ("pod-manifest-path", "staticPodPath", Text),
    ("pod-max-pids", "podPidsLimit", Number),
    ("pods-per-core", "podsPerCore", Number),
    ("port", "port", Number),
    ("protect-kernel-defaults", "protectKernelDefaults", Bool),
    ("provider-id", "providerID", Text),
    ("qos-reserved", "qosReserved", Pairs('=')),
    ("read-only-port", "readOnlyPort", Number),
    ("register-node", "registerNode", Bool),
    ("register-with-taints", "registerWithTaints", Taints),
    ("registry-burst", "registryBurst", Number),
    ("registry-qps", "registryPullQPS", Number),
    ("reserved-cpus", "reservedSystemCPUs", Text),
    ("reserved-memory", "reservedMemory", Memory),
    ("resolv-conf", "resolvConf", Text),
    ("rotate-certificates", "rotateCertificates", Bool),
    ("rotate-server-certificates", "serverTLSBootstrap", Bool),
    ("runonce", "runOnce", Bool),
    ("runtime-request-timeout", "runtimeRequestTimeout", Text),
    ("seccomp-default", "seccompDefault", Bool),
    ("serialize-image-pulls", "serializeImagePulls", Bool),
    ("streaming-connection-idle-timeout", "streamingConnectionIdleTimeout", Text),
    ("sync-frequency", "syncFrequency", Text),
    ("system-cgroups", "systemCgroups", Text),
    ("system-reserved", "systemReserved", Pairs('=')),
    ("system-reserved-cgroup", "systemReservedCgroup", Text),
    ("tls-cert-file", "tlsCertFile", Text),
    ("tls-cipher-suites", "tlsCipherSuites", List),
    ("tls-min-version", "tlsMinVersion", Text),
    ("tls-private-key-file", "tlsPrivateKeyFile", Text),
    ("topology-manager-policy", "topologyManagerPolicy", Text),
    ("topology-manager-policy-options", "topologyManagerPolicyOptions", Pairs('=')),
    ("topology-manager-scope", "topologyManagerScope", Text),
    ("volume-plugin-dir", "volumePluginDir", Text),
    ("volume-stats-agg-period", "volumeStatsAggPeriod", Text),
    // Beside the file's, upstream knows these by a flag alone.
    ("enable-system-log-handler", "enableSystemLogHandler", Bool),
    ("enable-system-log-query", "enableSystemLogQuery", Bool),
    ("max-parallel-image-pulls", "maxParallelImagePulls", Number),
    ("pod-logs-dir", "podLogsDir", Text),
];

const CADVISOR: &str = "containers are measured by their engine";

/// Flags that make no difference, whether they take a value, and why.
const INERT: [(&str, bool, &str); 40] = [
    ("application-metrics-count-limit", true, CADVISOR),
    ("boot-id-file", true, CADVISOR),
    ("cloud-config", true, "there are no cloud providers within"),
    ("container-hints", true, CADVISOR),
    ("container-runtime", true, "the engine is reached by CRI"),
    ("containerd", true, CADVISOR),
    ("containerd-namespace", true, CADVISOR),
    ("enable-load-reader", false, CADVISOR),
    ("event-storage-age-limit", true, CADVISOR),
    ("event-storage-event-limit", true, CADVISOR),
    ("exit-on-lock-contention", false, "the node API's port is the lock"),
    ("experimental-allocatable-ignore-eviction", false, "what eviction keeps free is not allocatable"),
    ("experimental-mounter-path", true, "file systems are mounted by this agent"),
    ("global-housekeeping-interval", true, CADVISOR),
    ("housekeeping-interval", true, CADVISOR),
    ("keep-terminated-pod-volumes", false, "volumes go with their pods"),
    ("lock-file", true, "the node API's port is the lock"),
    ("log-cadvisor-usage", false, CADVISOR),
    ("log-flush-frequency", true, "logs are not held back"),
    ("log-json-info-buffer-size", true, "logs are not held back"),
    ("log-json-split-stream", false, "logs go to standard error"),
    ("log-text-info-buffer-size", true, "logs are not held back"),
    ("log-text-split-stream", false, "logs go to standard error"),
    ("logging-format", true, "logs are text"),
    ("machine-id-file", true, CADVISOR),
    ("max-housekeeping-interval", true, CADVISOR),
    ("maximum-dead-containers", true, "one a container is kept"),
    ("maximum-dead-containers-per-container", true, "one a container is kept"),
    ("minimum-container-ttl-duration", true, "one a container is kept"),
    ("pod-infra-container-image", true, "the engine knows its own"),
    ("runtime-cgroups", true, "the engine stays where it is"),
    ("storage-driver-buffer-duration", true, CADVISOR),
    ("storage-driver-db", true, CADVISOR),
    ("storage-driver-host", true, CADVISOR),
    ("storage-driver-password", true, CADVISOR),
    ("storage-driver-secure", false, CADVISOR),
    ("storage-driver-table", true, CADVISOR),
    ("storage-driver-user", true, CADVISOR),
    ("v", true, "use --log"),
    ("vmodule", true, "use --log"),
];

/// What was found among arguments.
#[derive(Debug, Default, PartialEq)]
pub struct Taken {
    /// All others.
    pub kept: Vec<OsString>,
    /// Fields as the file would have them.
    pub fields: Map<String, Value>,
    /// What is to be said of flags without effect.
    pub said: Vec<String>,
}

fn pairs(text: &str, between: char, value: impl Fn(&str) -> Value) -> Value {
    let each = text.split(',').map(str::trim).filter(|p| !p.is_empty());
    let pair = |p: &str| {
        let (key, said) = p.split_once(between).unwrap_or((p, ""));
        (key.trim().to_string(), value(said.trim()))
    };
    Value::Object(each.map(pair).collect())
}

/// A value as the file would have it; one that makes no sense stays text, and is refused where the field is read.
fn value(form: Form, text: &str) -> Value {
    let truth = |text: &str| match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Value::Bool(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Value::Bool(false),
        other => other.into(),
    };
    let list = || text.split(',').map(str::trim).filter(|p| !p.is_empty());
    match form {
        Text => text.into(),
        Bool => truth(text),
        Number => text.parse::<i64>().map_or_else(|_| text.into(), Value::from),
        List => list().collect(),
        Pairs(between) => pairs(text, between, |said| said.into()),
        Gates => pairs(text, '=', truth),
        Taints => {
            let taint = |text: &str| {
                let (said, effect) = text.rsplit_once(':').unwrap_or((text, ""));
                let (key, value) = said.split_once('=').unwrap_or((said, ""));
                if value.is_empty() {
                    json!({"key": key, "effect": effect})
                } else {
                    json!({"key": key, "value": value, "effect": effect})
                }
            };
            list().map(taint).collect()
        }
        Memory => {
            let one = |text: &str| {
                let (node, limits) = text.split_once(':').unwrap_or((text, ""));
                json!({"numaNode": value(Number, node), "limits": pairs(limits, '=', |said| said.into())})
            };
            text.split(';').filter(|p| !p.is_empty()).map(one).collect()
        }
    }
}

/// Puts a value at its place, making what is above it.
fn place(fields: &mut Map<String, Value>, path: &str, said: Value) {
    match path.split_once('.') {
        Some((first, rest)) => {
            let inner = fields.entry(first).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = inner {
                place(inner, rest, said);
            }
        }
        None => match (fields.get_mut(path), said) {
            // A flag that is repeated adds to its list or map.
            (Some(Value::Object(had)), Value::Object(more)) => had.extend(more),
            (Some(Value::Array(had)), Value::Array(more)) => had.extend(more),
            (_, said) => {
                fields.insert(path.into(), said);
            }
        },
    }
}

/// Takes the flags out of arguments.
pub fn take(arguments: impl IntoIterator<Item = OsString>) -> Taken {
    let mut out = Taken::default();
    let mut arguments = arguments.into_iter().peekable();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        let word = text.strip_prefix("--").or_else(|| text.strip_prefix('-').filter(|rest| rest.starts_with('v')));
        let (name, said) = word.map_or(("", None), |word| match word.split_once('=') {
            Some((name, said)) => (name, Some(said.to_string())),
            None => (word, None),
        });
        let mut next = || arguments.next().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some((_, path, form)) = FLAGS.iter().find(|(known, ..)| *known == name) {
            let said = said.unwrap_or_else(|| if matches!(form, Bool) { "true".into() } else { next() });
            place(&mut out.fields, path, value(*form, &said));
        } else if let Some((name, takes, why)) = INERT.iter().find(|(known, ..)| *known == name) {
            if *takes && said.is_none() {
                next();
            }
            out.said.push(format!("--{name} makes no difference here: {why}"));
        } else {
            drop(text);
            out.kept.push(argument);
        }
    }
    out
}

/// The names of flags that stand for fields, for whoever asks for help.
pub fn names() -> Vec<String> {
    FLAGS.iter().map(|(flag, ..)| format!("--{flag}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_fields() {
        let words = "kubelet --kubeconfig=/k --max-pods 50 --fail-swap-on=false --rotate-certificates --eviction-hard=memory.available<1Gi,nodefs.available<5% \
            --feature-gates=A=true,B=false --feature-gates C=1 --cluster-dns 10.0.0.1,10.0.0.2 --anonymous-auth=false --client-ca-file /ca \
            --register-with-taints=a=b:NoSchedule,c:NoExecute --reserved-memory 0:memory=1Gi;1:memory=2Gi --v=2 -v 4 --pod-infra-container-image pause:3 \
            --system-reserved cpu=100m,memory=1Gi --port many --node-ip 10.0.0.9";
        let taken = take(words.split_whitespace().map(OsString::from));
        let kept: Vec<_> = taken.kept.iter().map(|word| word.to_string_lossy()).collect();
        assert_eq!(kept.join(" "), "kubelet --kubeconfig=/k --node-ip 10.0.0.9");
        assert_eq!(
            Value::Object(taken.fields),
            json!({
                "maxPods": 50, "failSwapOn": false, "rotateCertificates": true, "port": "many",
                "evictionHard": {"memory.available": "1Gi", "nodefs.available": "5%"},
                "featureGates": {"A": true, "B": false, "C": true}, "clusterDNS": ["10.0.0.1", "10.0.0.2"],
                "authentication": {"anonymous": {"enabled": false}, "x509": {"clientCAFile": "/ca"}},
                "registerWithTaints": [{"key": "a", "value": "b", "effect": "NoSchedule"}, {"key": "c", "effect": "NoExecute"}],
                "reservedMemory": [{"numaNode": 0, "limits": {"memory": "1Gi"}}, {"numaNode": 1, "limits": {"memory": "2Gi"}}],
                "systemReserved": {"cpu": "100m", "memory": "1Gi"},
            })
        );
        assert_eq!(taken.said.len(), 3);
        assert_eq!(taken.said[2], "--pod-infra-container-image makes no difference here: the engine knows its own");
    }
}
