//! Flags of upstream's API server that mean nothing here: taken, so that manifests written for it work, and told of.
//!
//! Flags that would change what the server does or promises are not among them; those are refused like words nobody knows.

use std::ffi::OsString;

/// A flag, whether it takes a value, and why it makes no difference.
const INERT: [(&str, bool, &str); 78] = [
    ("aggregator-reject-forwarding-redirect", false, "redirects of extension servers are never followed"),
    ("allow-metric-labels", true, "metrics have a bound of their own"),
    ("allow-metric-labels-manifest", true, "metrics have a bound of their own"),
    ("allow-privileged", false, "PodSecurity decides about privileged containers"),
    ("apiserver-count", true, "endpoints are kept by leases"),
    ("audit-log-batch-buffer-size", true, "the log has a bound of its own"),
    ("audit-log-batch-max-size", true, "events are written as they come"),
    ("audit-log-batch-max-wait", true, "events are written as they come"),
    ("audit-log-batch-throttle-burst", true, "the log is not slowed down"),
    ("audit-log-batch-throttle-enable", false, "the log is not slowed down"),
    ("audit-log-batch-throttle-qps", true, "the log is not slowed down"),
    ("audit-log-version", true, "audit.k8s.io/v1"),
    ("audit-webhook-batch-buffer-size", true, "what waits has a bound of its own"),
    ("audit-webhook-batch-throttle-burst", true, "one batch is sent after another"),
    ("audit-webhook-batch-throttle-enable", false, "one batch is sent after another"),
    ("audit-webhook-batch-throttle-qps", true, "one batch is sent after another"),
    ("audit-webhook-version", true, "audit.k8s.io/v1"),
    ("cert-dir", true, "certificates are in the data directory"),
    ("cloud-config", true, "there are no cloud providers within"),
    ("cloud-provider", true, "there are no cloud providers within"),
    ("contention-profiling", false, "there is no Go runtime to profile"),
    ("coordinated-leadership-lease-duration", true, "leaders elect themselves"),
    ("coordinated-leadership-renew-deadline", true, "leaders elect themselves"),
    ("coordinated-leadership-retry-period", true, "leaders elect themselves"),
    ("debug-socket-path", true, "there is no Go runtime to profile"),
    ("delete-collection-workers", true, "collections are deleted in one transaction after another"),
    ("disabled-metrics", true, "all metrics are shown"),
    ("enable-aggregator-routing", false, "extension servers are reached by their endpoints always"),
    ("enable-garbage-collector", false, "it is the controller manager's"),
    ("enable-logs-handler", false, "logs are not served"),
    ("enable-priority-and-fairness", false, "requests are classified, and none waits"),
    ("endpoint-reconciler-type", true, "endpoints are kept by leases"),
    ("etcd-compaction-interval", true, "the store compacts itself"),
    ("etcd-count-metric-poll-period", true, "objects are counted as they change"),
    ("etcd-db-metric-poll-interval", true, "the size is read when asked for"),
    ("etcd-healthcheck-timeout", true, "2 seconds"),
    ("etcd-readycheck-timeout", true, "2 seconds"),
    ("external-hostname", true, "documents name no host"),
    ("goaway-chance", true, "clients are not sent away"),
    ("http2-max-streams-per-connection", true, "streams have a bound of their own"),
    ("kubelet-preferred-address-types", true, "a node's internal address"),
    ("kubelet-timeout", true, "streams to kubelets end when they end"),
    ("kubernetes-service-node-port", true, "the Service kubernetes has none"),
    ("lease-reuse-duration-seconds", true, "60 seconds"),
    ("livez-grace-period", true, "the server is alive when it is ready"),
    ("log-flush-frequency", true, "logs are not held back"),
    ("log-json-info-buffer-size", true, "logs are not held back"),
    ("log-json-split-stream", false, "logs go to standard error"),
    ("log-text-info-buffer-size", true, "logs are not held back"),
    ("log-text-split-stream", false, "logs go to standard error"),
    ("logging-format", true, "logs are text"),
    ("master-service-namespace", true, "default"),
    ("max-connection-bytes-per-sec", true, "connections are not slowed down"),
    ("max-mutating-requests-inflight", true, "requests are bounded by connections and streams"),
    ("max-requests-inflight", true, "requests are bounded by connections and streams"),
    ("min-request-timeout", true, "watches end after 30 to 60 minutes"),
    ("peer-advertise-ip", true, "servers hand nothing to each other"),
    ("peer-advertise-port", true, "servers hand nothing to each other"),
    ("peer-ca-file", true, "servers hand nothing to each other"),
    ("permit-address-sharing", false, "one server listens at an address"),
    ("permit-port-sharing", false, "one server listens at an address"),
    ("profiling", false, "there is no Go runtime to profile"),
    ("send-retry-after-while-not-ready-once", false, "the server listens when it is ready"),
    ("service-account-extend-token-expiration", false, "the tokens of pods are extended"),
    ("service-account-lookup", false, "tokens are good while what they are bound to exists"),
    ("show-hidden-metrics-for-version", true, "no metric is hidden"),
    ("shutdown-delay-duration", true, "open requests end first"),
    ("shutdown-send-retry-after", false, "open requests end first"),
    ("shutdown-watch-termination-grace-period", true, "watches end at once"),
    ("storage-backend", true, "embedded, or etcd 3 by --etcd-servers"),
    ("storage-initialization-timeout", true, "the store is open before the server listens"),
    ("storage-media-type", true, "objects are stored as JSON, and all forms are read"),
    ("strict-transport-security-directives", true, "there is no plain HTTP"),
    ("v", true, "use --log"),
    ("vmodule", true, "use --log"),
    ("watch-cache", false, "all kinds are cached"),
    ("watch-cache-sizes", true, "all kinds are cached"),
    ("etcd-servers-overrides", true, "all kinds are in one store"),
];

/// The arguments without these flags, and what is to be said of them.
pub fn without(arguments: Vec<OsString>) -> (Vec<OsString>, Vec<String>) {
    let (mut kept, mut said) = (Vec::with_capacity(arguments.len()), Vec::new());
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        let word = text.strip_prefix("--").or_else(|| text.strip_prefix('-').filter(|rest| rest.starts_with('v')));
        let (name, value) = word.map_or(("", None), |word| match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        });
        let Some((name, takes, why)) = INERT.iter().find(|(known, ..)| *known == name) else {
            kept.push(argument);
            continue;
        };
        if *takes && value.is_none() {
            arguments.next();
        }
        said.push(format!("--{name} makes no difference here: {why}"));
    }
    (kept, said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inert_flags_are_taken() {
        let words = "apiserver --v=2 -v 4 --profiling=false --allow-privileged --etcd-servers=http://a --max-requests-inflight 400 --listen 127.0.0.1:1 --who";
        let (kept, said) = without(words.split(' ').map(OsString::from).collect());
        let kept: Vec<_> = kept.iter().map(|word| word.to_string_lossy()).collect();
        assert_eq!(kept.join(" "), "apiserver --etcd-servers=http://a --listen 127.0.0.1:1 --who");
        assert_eq!(said.len(), 5);
        assert_eq!(said[2], "--profiling makes no difference here: there is no Go runtime to profile");
    }
}
