//! Fields that make no difference here: taken, so that files written for upstream work, and told of.

use serde_json::{Map, Value};

/// A field and what is done in place of what it asks for.
const INERT: [(&str, &str); 32] = [
    ("configMapAndSecretChangeDetectionStrategy", "changes are watched"),
    ("contentType", "the API server is spoken to in JSON"),
    ("cpuManagerReconcilePeriod", "processors are assigned as they change"),
    ("draManagerReconcilePeriod", "claims are looked at with their pods"),
    ("enableContentionProfiling", "there is no Go runtime to profile"),
    ("enableControllerAttachDetach", "the controller attaches"),
    ("enableDebugFlagsHandler", "there is no such flag"),
    ("enableProfilingHandler", "there is no Go runtime to profile"),
    ("eventBurst", "events are rationed by what they are about"),
    ("eventRecordQPS", "events are rationed by what they are about"),
    ("fileCheckFrequency", "manifests are looked for every 2 seconds"),
    ("hairpinMode", "the pod network decides"),
    ("httpCheckFrequency", "there is no staticPodURL"),
    ("iptablesDropBit", "there are no iptables rules"),
    ("iptablesMasqueradeBit", "there are no iptables rules"),
    ("kernelMemcgNotification", "memory is looked at"),
    ("kubeAPIBurst", "requests are bounded by how many are under way"),
    ("kubeAPIQPS", "requests are bounded by how many are under way"),
    ("kubeletCgroups", "this agent stays in the cgroup it was started in"),
    ("logging", "use --log"),
    ("makeIPTablesUtilChains", "there are no iptables rules"),
    ("qosReserved", "nothing is kept back from other classes"),
    ("registryBurst", "pulls are bounded by how many are under way"),
    ("registryPullQPS", "pulls are bounded by how many are under way"),
    ("runtimeRequestTimeout", "2 minutes"),
    ("showHiddenMetricsForVersion", "no metric is hidden"),
    ("staticPodURLHeader", "there is no staticPodURL"),
    ("syncFrequency", "pods are looked at as they change"),
    ("systemCgroups", "others' processes are left where they are"),
    ("tlsCurvePreferences", "X25519, P-256 and P-384, with ML-KEM where the client has it"),
    ("tracing", "traces are not exported"),
    ("volumeStatsAggPeriod", "volumes are counted when somebody asks"),
];

/// Whether a value asks for nothing in particular.
fn empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(items) => items.iter().all(empty),
        Value::Object(map) => map.values().all(empty),
        Value::Bool(true) => false,
    }
}

/// What is to be said of a file's fields.
pub fn said(file: &Map<String, Value>) -> Vec<String> {
    let used = INERT.iter().filter(|(field, _)| file.get(*field).is_some_and(|value| !empty(value)));
    used.map(|(field, why)| format!("{field} makes no difference here: {why}")).collect()
}
