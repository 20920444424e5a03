//! What the controllers count, in the Prometheus text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

/// Counts of one controller since the process began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub reconciles: u64,
    pub failures: u64,
    /// Writes asked for by plans.
    pub writes: u64,
    /// Times a look at everything found something to do that no event had told of. Anything but zero is a fault of ours.
    pub resync_found: u64,
}

/// What upstream calls the queues of its controllers, where that is not the controller's name without its last word.
pub const QUEUES: &[(&str, &str)] = &[
    ("bootstrap-signer-controller", "bootstrap_signer_queue"),
    ("certificatesigningrequest-signing-controller", "certificate"),
    ("clusterrole-aggregation-controller", "ClusterRoleAggregator"),
    ("endpoints-controller", "endpoint"),
    ("endpointslice-controller", "endpoint_slice"),
    ("endpointslice-mirroring-controller", "endpoint_slice_mirroring"),
    ("ephemeral-volume-controller", "ephemeral_volume"),
    ("garbage-collector-controller", "garbage_collector_attempt_to_delete"),
    ("horizontal-pod-autoscaler-controller", "horizontalpodautoscaler"),
    ("node-lifecycle-controller", "node_lifecycle_controller"),
    ("persistentvolume-binder-controller", "claims"),
    ("persistentvolume-attach-detach-controller", "pvcs"),
    ("persistentvolume-expander-controller", "volume_expand"),
    ("persistentvolume-protection-controller", "pvprotection"),
    ("persistentvolumeclaim-protection-controller", "pvcprotection"),
    ("pod-garbage-collector-controller", "orphaned_pods_nodes"),
    ("podgroup-protection-controller", "podgroupprotection"),
    ("replicationcontroller-controller", "replicationmanager"),
    ("resourceclaim-controller", "resource_claim"),
    ("resourcequota-controller", "resourcequota_primary"),
    ("root-ca-certificate-publisher-controller", "root_ca_cert_publisher"),
    ("serviceaccount-token-controller", "serviceaccount_tokens_secret"),
    ("taint-eviction-controller", "noexec_taint_pod"),
    ("token-cleaner-controller", "token_cleaner"),
    ("ttl-after-finished-controller", "ttl_jobs_to_delete"),
    ("ttl-controller", "ttlcontroller"),
];

/// The name of a controller's queue.
pub fn queue_name(controller: &str) -> &str {
    let known = QUEUES.iter().find(|(name, _)| *name == controller).map(|(_, queue)| *queue);
    known.unwrap_or_else(|| controller.strip_suffix("-controller").unwrap_or(controller))
}

static COUNTS: Mutex<BTreeMap<&'static str, Counts>> = Mutex::new(BTreeMap::new());

/// Changes one controller's counts.
pub fn count(controller: &'static str, change: impl FnOnce(&mut Counts)) {
    change(COUNTS.lock().unwrap_or_else(PoisonError::into_inner).entry(controller).or_default());
}

/// Times any controller's resync found something.
pub fn resync_found() -> u64 {
    COUNTS.lock().unwrap_or_else(PoisonError::into_inner).values().map(|c| c.resync_found).sum()
}

/// Shows the counts at this process's `/metrics`.
pub fn show() {
    client::exposition::register("controllers", text);
    client::exposition::register("controllers, each", crate::figures::text);
}

/// All counts, as `/metrics` shows them.
fn text() -> String {
    let counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let families: [(&str, &str, fn(&Counts) -> u64); 4] = [
        ("nauplius_controller_reconciles_total", "Reconciles of keys.", |c| c.reconciles),
        ("nauplius_controller_reconcile_failures_total", "Reconciles that failed and are retried.", |c| c.failures),
        ("nauplius_controller_writes_total", "Writes asked for by plans.", |c| c.writes),
        ("nauplius_controller_resync_found_total", "Things only a resync found; should be zero.", |c| c.resync_found),
    ];
    let mut out = String::new();
    for (name, help, of) in families {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
        for (controller, counts) in &counts {
            let _ = writeln!(out, "{name}{{controller=\"{controller}\"}} {}", of(counts));
        }
    }
    out
}
