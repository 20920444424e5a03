//! Controllers: each a pure plan over the world its informers show, one runner for all.
//!
//! A controller is declared in its own file: which resources it watches, which keys their changes make dirty, and a
//! function from a key to a [`plan::Plan`]. The [`runner`] does the rest. Controllers know the API only through
//! [`client`]; they hold no state that a restart could lose.

#![forbid(unsafe_code)]

mod address_repair;
mod attach_detach;
mod certificates;
mod claim_protection;
mod cluster_roles;
mod conditions;
mod cronjob;
mod daemonset;
mod deployment;
mod device_taints;
mod disruption;
mod endpoint_mirroring;
mod endpoint_slices;
mod endpoints;
mod figures;
mod garbage;
mod hash;
mod history;
mod horizontal_pod_autoscaler;
mod hpa;
mod hpa_metrics;
mod indexes;
mod job;
mod job_controller;
mod legacy_tokens;
mod local_path;
pub mod metrics;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod node_upkeep;
mod nodes;
mod owners;
mod plan;
mod pod_facts;
mod pod_failure;
mod pod_gc;
mod pod_group_protection;
mod pods;
mod quota;
mod replicas;
mod replicaset;
mod resource_claims;
mod rollout;
mod rollout_status;
mod runner;
mod scale;
mod schedule;
mod service_cidr;
pub mod signing;
mod statefulset;
mod storage_migration;
mod taint_eviction;
pub mod tokens;
mod topology;
mod trust_bundles;
mod volume_attributes;
mod volume_growth;
mod volume_reclaim;
mod volumes;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Client, Informers};
use ipnet::IpNet;
use meta::{Object, Status};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use hpa::Autoscaling;
use runner::Controller;

/// How long a node may be silent when nobody says otherwise: upstream's since v1.32.
pub const NODE_MONITOR_GRACE_PERIOD: Duration = Duration::from_secs(50);

/// How the controllers are set up; the names are those of `kube-controller-manager`'s flags.
#[derive(Clone, Debug)]
pub struct Options {
    /// `*`: all that are on by default; `name`: that one; `-name`: not that one.
    pub controllers: Vec<String>,
    /// Whether nodes are given pod CIDRs out of `cluster_cidrs`.
    pub allocate_node_cidrs: bool,
    /// At most one of each address family.
    pub cluster_cidrs: Vec<IpNet>,
    pub service_cidrs: Vec<IpNet>,
    /// Prefix lengths of a node's pod CIDRs.
    pub node_cidr_mask_size_ipv4: u8,
    pub node_cidr_mask_size_ipv6: u8,
    /// How often nodes are looked at.
    pub node_monitor_period: Duration,
    /// How long a node may be silent before it is unhealthy.
    pub node_monitor_grace_period: Duration,
    /// How long a new node may take to speak first.
    pub node_startup_grace_period: Duration,
    /// Nodes of a zone whose pods may begin to be evicted, per second.
    pub node_eviction_rate: f64,
    /// The same in a large zone most of whose nodes are not ready; in a small one nobody is told to go then.
    pub secondary_node_eviction_rate: f64,
    /// Nodes above which a zone is large.
    pub large_cluster_size_threshold: usize,
    /// Share of a zone's nodes that are not ready from which on the zone is in trouble.
    pub unhealthy_zone_threshold: f64,
    /// Where volumes of the built-in provisioner lie; it is off without, and must be where nodes' disks are elsewhere.
    pub local_path: Option<std::path::PathBuf>,
    /// PEM bundle for `kube-root-ca.crt`; nothing is published without one.
    pub root_ca: Option<String>,
    /// Signs certificate requests; without it they wait.
    pub signing: Option<signing::Authority>,
    /// Authorities of signers that have their own, by the signer's name.
    pub signers: BTreeMap<String, signing::Authority>,
    /// Longest life of a certificate signed.
    pub cluster_signing_duration: Duration,
    /// Signs tokens kept in Secrets; without it such Secrets stay empty.
    pub service_account_signer: Option<tokens::Signer>,
    /// Lets each controller write under an account of its own; all read as the manager.
    pub accounts: Option<Accounts>,
    /// Keys a controller reconciles at once.
    pub concurrency: usize,
    /// The same for controllers that have their own number, by name.
    pub workers: BTreeMap<&'static str, usize>,
    /// How long controllers let changes gather before they look, by name.
    pub batches: BTreeMap<&'static str, Duration>,
    pub autoscaling: Autoscaling,
    /// Endpoints in a slice.
    pub max_endpoints_per_slice: usize,
    /// Finished pods kept before the oldest are deleted.
    pub terminated_pod_gc_threshold: usize,
    /// How long a token kept in a Secret may lie unused before it is made invalid, and how long it then lies.
    pub legacy_token_clean_up: Duration,
    /// Whether volumes are taken from unhealthy nodes that do not let go of them.
    pub force_detach: bool,
    /// How often controllers look at everything, to find what no event told; that there never is any is [`metrics`]' to say.
    pub resync: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            controllers: vec!["*".into()],
            allocate_node_cidrs: true,
            cluster_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            node_cidr_mask_size_ipv4: 24,
            node_cidr_mask_size_ipv6: 64,
            node_monitor_period: Duration::from_secs(5),
            node_monitor_grace_period: NODE_MONITOR_GRACE_PERIOD,
            node_startup_grace_period: Duration::from_secs(60),
            node_eviction_rate: 0.1,
            secondary_node_eviction_rate: 0.01,
            large_cluster_size_threshold: 50,
            unhealthy_zone_threshold: 0.55,
            local_path: None,
            root_ca: None,
            signing: None,
            signers: BTreeMap::new(),
            cluster_signing_duration: Duration::from_secs(365 * 24 * 3600),
            service_account_signer: None,
            accounts: None,
            concurrency: 5,
            workers: BTreeMap::new(),
            batches: BTreeMap::new(),
            autoscaling: Autoscaling::default(),
            max_endpoints_per_slice: 100,
            terminated_pod_gc_threshold: 12_500,
            legacy_token_clean_up: Duration::from_secs(365 * 24 * 3600),
            force_detach: true,
            resync: Duration::from_secs(600),
        }
    }
}

/// Why the controllers cannot start.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("\"{0}\" is not in the list of known controllers")]
    UnknownController(String),
    #[error("{0}")]
    Invalid(String),
}

/// What every controller is made from.
struct Context {
    client: Client,
    informers: Arc<Informers>,
    options: Arc<Options>,
}

impl Context {
    /// Whether a controller is among those that run.
    fn runs(&self, name: &str) -> bool {
        CONTROLLERS.iter().any(|c| c.0 == name && is_enabled(name, c.1, &self.options.controllers))
    }
}

impl Context {
    /// A controller as the options have it.
    fn made(&self, name: &str, make: Make) -> Controller {
        let controller = make(self);
        let controller = match self.options.workers.get(name) {
            Some(workers) => controller.workers(*workers),
            None => controller,
        };
        match self.options.batches.get(name) {
            Some(batch) => controller.settling(*batch),
            None => controller,
        }
    }
}

type Make = fn(&Context) -> Controller;

/// Every controller: its name, whether `*` includes it, and how it is made.
const CONTROLLERS: &[(&str, bool, Make)] = &[
    ("deployment-controller", true, deployment::deployments),
    ("replicaset-controller", true, replicaset::replica_sets),
    ("replicationcontroller-controller", true, replicaset::replication_controllers),
    ("endpointslice-controller", true, endpoint_slices::endpoint_slices),
    ("endpoints-controller", true, endpoints::endpoints),
    ("endpointslice-mirroring-controller", true, endpoint_mirroring::endpoint_slice_mirroring),
    ("namespace-controller", true, namespace::namespaces),
    ("serviceaccount-controller", true, namespace::service_accounts),
    ("root-ca-certificate-publisher-controller", true, namespace::root_ca),
    ("garbage-collector-controller", true, garbage::garbage_collector),
    ("job-controller", true, job_controller::jobs),
    ("daemonset-controller", true, daemonset::daemon_sets),
    ("statefulset-controller", true, statefulset::stateful_sets),
    ("cronjob-controller", true, cronjob::cron_jobs),
    ("node-lifecycle-controller", true, node_lifecycle::node_lifecycle),
    ("taint-eviction-controller", true, taint_eviction::taint_eviction),
    ("node-ipam-controller", true, node_ipam::node_ipam),
    ("pod-garbage-collector-controller", true, pod_gc::pod_gc),
    ("disruption-controller", true, disruption::disruption),
    ("resourcequota-controller", true, quota::resource_quotas),
    ("clusterrole-aggregation-controller", true, cluster_roles::aggregation),
    ("persistentvolume-binder-controller", true, volumes::binder),
    ("persistentvolumeclaim-protection-controller", true, claim_protection::claim_protection),
    ("persistentvolume-protection-controller", true, volumes::volume_protection),
    ("ephemeral-volume-controller", true, volumes::ephemeral_volumes),
    ("serviceaccount-token-controller", true, tokens::service_account_tokens),
    ("legacy-serviceaccount-token-cleaner-controller", true, legacy_tokens::cleaner),
    ("certificatesigningrequest-approving-controller", true, certificates::approving),
    ("certificatesigningrequest-signing-controller", true, certificates::signing_requests),
    ("certificatesigningrequest-cleaner-controller", true, certificates::cleaner),
    ("podcertificaterequest-cleaner-controller", true, certificates::pod_request_cleaner),
    ("kube-apiserver-serving-clustertrustbundle-publisher-controller", true, trust_bundles::publisher),
    ("bootstrap-signer-controller", false, tokens::bootstrap_signer),
    ("token-cleaner-controller", false, tokens::token_cleaner),
    ("podgroup-protection-controller", true, pod_group_protection::pod_group_protection),
    ("ttl-controller", true, node_upkeep::ttl),
    ("service-cidr-controller", true, service_cidr::service_cidrs),
    ("ipallocator-repair-controller", true, address_repair::address_repair),
    ("horizontal-pod-autoscaler-controller", true, horizontal_pod_autoscaler::autoscaler),
    ("persistentvolume-attach-detach-controller", true, attach_detach::attach_detach),
    ("persistentvolume-expander-controller", true, volume_growth::expander),
    ("volumeattributesclass-protection-controller", true, volume_attributes::protection),
    ("local-path-provisioner-controller", true, local_path::provisioner),
    ("resourceclaim-controller", true, resource_claims::resource_claims),
    ("device-taint-eviction-controller", true, device_taints::eviction),
    ("storage-version-migrator-controller", true, storage_migration::migrator),
    ("ttl-after-finished-controller", true, job_controller::ttl_after_finished),
];

/// Upstream's controllers that are not here, and why. They may be named, so that flags written for upstream are taken.
const ELSEWHERE: &[(&str, &str)] = &[
    ("validatingadmissionpolicy-status-controller", "the API server does it"),
    ("service-lb-controller", "it needs a cloud provider"),
    ("node-route-controller", "it needs a cloud provider"),
    ("cloud-node-lifecycle-controller", "it needs a cloud provider"),
    ("selinux-warning-controller", "it is not supported"),
    ("storageversion-garbage-collector-controller", "its API is not supported"),
    ("resourcepoolstatusrequest-controller", "its API is not supported"),
    ("evictionrequest-controller", "its API is not supported"),
];

/// Resources an older server may lack, and the controllers that are nothing without them.
const NEEDS: &[(&str, &str, &str, &str)] = &[
    ("podcertificaterequest-cleaner-controller", "certificates.k8s.io", "v1", "podcertificaterequests"),
    (
        "kube-apiserver-serving-clustertrustbundle-publisher-controller",
        "certificates.k8s.io",
        "v1",
        "clustertrustbundles",
    ),
    ("service-cidr-controller", "networking.k8s.io", "v1", "servicecidrs"),
    ("ipallocator-repair-controller", "networking.k8s.io", "v1", "ipaddresses"),
    ("volumeattributesclass-protection-controller", "storage.k8s.io", "v1", "volumeattributesclasses"),
    ("resourceclaim-controller", "resource.k8s.io", "v1", "resourceclaims"),
    ("device-taint-eviction-controller", "resource.k8s.io", "v1", "devicetaintrules"),
    ("podgroup-protection-controller", "scheduling.k8s.io", "v1beta1", "podgroups"),
    ("storage-version-migrator-controller", "storagemigration.k8s.io", "v1", "storageversionmigrations"),
];
/// How often a server is asked again for what it lacks: it may be upgraded below us.
const NEEDS_PERIOD: Duration = Duration::from_secs(60);

/// What controllers were called before their names were settled; `--controllers` takes both.
const ALIASES: &[(&str, &str)] = &[
    ("cloud-node-lifecycle", "cloud-node-lifecycle-controller"),
    ("route", "node-route-controller"),
    ("service", "service-lb-controller"),
    ("storage-version-gc", "storageversion-garbage-collector-controller"),
    ("attachdetach", "persistentvolume-attach-detach-controller"),
    ("bootstrapsigner", "bootstrap-signer-controller"),
    ("clusterrole-aggregation", "clusterrole-aggregation-controller"),
    ("cronjob", "cronjob-controller"),
    ("csrapproving", "certificatesigningrequest-approving-controller"),
    ("csrcleaner", "certificatesigningrequest-cleaner-controller"),
    ("csrsigning", "certificatesigningrequest-signing-controller"),
    ("daemonset", "daemonset-controller"),
    ("deployment", "deployment-controller"),
    ("disruption", "disruption-controller"),
    ("endpoint", "endpoints-controller"),
    ("endpointslice", "endpointslice-controller"),
    ("endpointslicemirroring", "endpointslice-mirroring-controller"),
    ("ephemeral-volume", "ephemeral-volume-controller"),
    ("garbagecollector", "garbage-collector-controller"),
    ("horizontalpodautoscaling", "horizontal-pod-autoscaler-controller"),
    ("job", "job-controller"),
    ("legacy-service-account-token-cleaner", "legacy-serviceaccount-token-cleaner-controller"),
    ("namespace", "namespace-controller"),
    ("nodeipam", "node-ipam-controller"),
    ("nodelifecycle", "node-lifecycle-controller"),
    ("persistentvolume-binder", "persistentvolume-binder-controller"),
    ("persistentvolume-expander", "persistentvolume-expander-controller"),
    ("podgc", "pod-garbage-collector-controller"),
    ("pv-protection", "persistentvolume-protection-controller"),
    ("pvc-protection", "persistentvolumeclaim-protection-controller"),
    ("replicaset", "replicaset-controller"),
    ("replicationcontroller", "replicationcontroller-controller"),
    ("resource-claim-controller", "resourceclaim-controller"),
    ("resourcequota", "resourcequota-controller"),
    ("root-ca-cert-publisher", "root-ca-certificate-publisher-controller"),
    ("serviceaccount", "serviceaccount-controller"),
    ("serviceaccount-token", "serviceaccount-token-controller"),
    ("statefulset", "statefulset-controller"),
    ("tokencleaner", "token-cleaner-controller"),
    ("ttl", "ttl-controller"),
    ("ttl-after-finished", "ttl-after-finished-controller"),
];

/// The service account upstream's roles are bound to for each controller; one without acts as the manager itself.
const ACCOUNTS: &[(&str, &str)] = &[
    ("deployment-controller", "deployment-controller"),
    ("replicaset-controller", "replicaset-controller"),
    ("replicationcontroller-controller", "replication-controller"),
    ("endpointslice-controller", "endpointslice-controller"),
    ("endpoints-controller", "endpoint-controller"),
    ("endpointslice-mirroring-controller", "endpointslicemirroring-controller"),
    ("namespace-controller", "namespace-controller"),
    ("serviceaccount-controller", "service-account-controller"),
    ("root-ca-certificate-publisher-controller", "root-ca-cert-publisher"),
    ("garbage-collector-controller", "generic-garbage-collector"),
    ("job-controller", "job-controller"),
    ("daemonset-controller", "daemon-set-controller"),
    ("statefulset-controller", "statefulset-controller"),
    ("cronjob-controller", "cronjob-controller"),
    ("node-lifecycle-controller", "node-controller"),
    ("taint-eviction-controller", "node-controller"),
    ("node-ipam-controller", "node-controller"),
    ("pod-garbage-collector-controller", "pod-garbage-collector"),
    ("podgroup-protection-controller", "podgroup-protection-controller"),
    ("disruption-controller", "disruption-controller"),
    ("resourcequota-controller", "resourcequota-controller"),
    ("clusterrole-aggregation-controller", "clusterrole-aggregation-controller"),
    ("persistentvolume-binder-controller", "persistent-volume-binder"),
    ("persistentvolumeclaim-protection-controller", "pvc-protection-controller"),
    ("persistentvolume-protection-controller", "pv-protection-controller"),
    ("ephemeral-volume-controller", "ephemeral-volume-controller"),
    ("legacy-serviceaccount-token-cleaner-controller", "legacy-service-account-token-cleaner"),
    ("certificatesigningrequest-approving-controller", "certificate-controller"),
    ("certificatesigningrequest-signing-controller", "certificate-controller"),
    ("certificatesigningrequest-cleaner-controller", "certificate-controller"),
    ("bootstrap-signer-controller", "bootstrap-signer"),
    ("token-cleaner-controller", "token-cleaner"),
    ("ttl-controller", "ttl-controller"),
    ("service-cidr-controller", "service-cidrs-controller"),
    ("horizontal-pod-autoscaler-controller", "horizontal-pod-autoscaler"),
    ("persistentvolume-attach-detach-controller", "attachdetach-controller"),
    ("persistentvolume-expander-controller", "expand-controller"),
    ("volumeattributesclass-protection-controller", "volumeattributesclass-protection-controller"),
    ("resourceclaim-controller", "resource-claim-controller"),
    ("device-taint-eviction-controller", "device-taint-eviction-controller"),
    ("storage-version-migrator-controller", "storage-version-migrator-controller"),
    ("ttl-after-finished-controller", "ttl-after-finished-controller"),
];

/// Makes the client of a service account in `kube-system`.
#[derive(Clone)]
pub struct Accounts(pub Arc<dyn Fn(&str) -> Client + Send + Sync>);

impl std::fmt::Debug for Accounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Accounts")
    }
}

/// Names of all controllers, for help texts.
pub fn names() -> impl Iterator<Item = &'static str> {
    CONTROLLERS.iter().map(|c| c.0)
}

/// A name as the table has it, `-` kept.
fn canonical(wanted: &str) -> String {
    let (sign, name) = wanted.strip_prefix('-').map_or(("", wanted), |name| ("-", name));
    let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| name);
    format!("{sign}{name}")
}

fn is_enabled(name: &str, by_default: bool, wanted: &[String]) -> bool {
    let off = wanted.iter().any(|w| w.strip_prefix('-') == Some(name));
    let on = wanted.iter().any(|w| w == name);
    on || (!off && by_default && wanted.iter().any(|w| w == "*"))
}

/// Waits until the server has what a controller is nothing without.
async fn has_needs(client: &Client, name: &str) {
    let Some((_, group, version, plural)) = NEEDS.iter().find(|n| n.0 == name) else { return };
    let mut told = false;
    loop {
        let is_wanted = |a: &client::ApiResource| {
            (&*a.resource.group, &*a.resource.version, &*a.resource.resource) == (*group, *version, *plural)
        };
        match client.discover().await {
            Ok(found) if found.resources.iter().any(is_wanted) => return,
            Ok(_) if !told => {
                tracing::info!(controller = name, "waits: the server has no {plural}.{group}/{version}");
                told = true;
            }
            // A server that cannot be asked yet is everybody's trouble, and told by others.
            Ok(_) | Err(_) => {}
        }
        tokio::time::sleep(NEEDS_PERIOD).await;
    }
}

/// The controllers that were started, and whether each still runs.
static STARTED: Mutex<BTreeMap<&'static str, bool>> = Mutex::new(BTreeMap::new());

/// The controllers that run here; `false` for one that ended though nobody asked it to.
pub fn health() -> Vec<(&'static str, bool)> {
    STARTED.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(name, well)| (*name, *well)).collect()
}

/// Notes a controller as running while it lives.
struct Alive(&'static str);

impl Alive {
    fn new(name: &'static str) -> Self {
        STARTED.lock().unwrap_or_else(PoisonError::into_inner).insert(name, true);
        Self(name)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        if std::thread::panicking() {
            started.insert(self.0, false);
        } else {
            started.remove(self.0);
        }
    }
}

/// Runs the controllers until cancelled. Leader election, where there are several of us, is the caller's.
pub async fn run(
    client: Client,
    informers: Arc<Informers>,
    mut options: Options,
    cancel: CancellationToken,
) -> Result<(), Error> {
    for wanted in &mut options.controllers {
        *wanted = canonical(wanted);
        let name = wanted.strip_prefix('-').unwrap_or(wanted);
        if let Some((_, why)) = ELSEWHERE.iter().find(|(n, _)| *n == name) {
            if !wanted.starts_with('-') {
                tracing::warn!(controller = name, "does not run: {why}");
            }
        } else if name != "*" && !names().any(|n| n == name) {
            return Err(Error::UnknownController(name.into()));
        }
    }
    metrics::show();
    let cx = Arc::new(Context { client, informers, options: Arc::new(options) });
    let mut tasks = JoinSet::new();
    for (name, by_default, make) in CONTROLLERS {
        if !is_enabled(name, *by_default, &cx.options.controllers) {
            continue;
        }
        let account = ACCOUNTS.iter().find(|(controller, _)| controller == name).map(|(_, account)| *account);
        let own = cx.options.accounts.as_ref().zip(account).map(|(accounts, account)| (accounts.0)(account));
        let cx = Arc::new(Context {
            client: own.unwrap_or_else(|| cx.client.clone()),
            informers: cx.informers.clone(),
            options: cx.options.clone(),
        });
        let alive = Alive::new(name);
        if !NEEDS.iter().any(|n| n.0 == *name) {
            let run = cx.made(name, *make).run(cx.client.clone(), cx.options.resync, cancel.clone());
            tasks.spawn(async move {
                let _alive = alive;
                run.await;
            });
            continue;
        }
        let cancel = cancel.clone();
        tasks.spawn(async move {
            let _alive = alive;
            if cancel.run_until_cancelled(has_needs(&cx.client, name)).await.is_some() {
                cx.made(name, *make).run(cx.client.clone(), cx.options.resync, cancel).await;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!("a controller ended: {error}");
        }
    }
    Ok(())
}

/// An object's typed view, or why there is none.
fn decoded<T: DeserializeOwned + Send + Sync + 'static>(object: &Object) -> Result<Arc<T>, Status> {
    object.typed().map_err(|e| Status::internal(format!("{} {}: {e}", object.kind, object.meta.key())))
}

/// An object's status as JSON; null when it has none. Nothing else of the body is built.
fn status_of(object: &Object) -> Result<Value, Status> {
    #[derive(serde::Deserialize)]
    struct Body {
        #[serde(default)]
        status: Value,
    }
    serde_json::from_slice::<Body>(object.raw()).map(|body| body.status).map_err(Status::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_old_and_new() {
        for (alias, name) in ALIASES {
            let known = names().chain(ELSEWHERE.iter().map(|e| e.0)).any(|n| n == *name);
            assert!(known, "{alias} stands for {name}, which is none");
        }
        assert!(ACCOUNTS.iter().all(|(name, _)| names().any(|n| n == *name)));
        assert!(metrics::QUEUES.iter().all(|(name, _)| names().any(|n| n == *name)));
        let queues: std::collections::HashSet<&str> = names().map(metrics::queue_name).collect();
        assert_eq!(queues.len(), CONTROLLERS.len(), "two queues of one name");
        assert!(NEEDS.iter().all(|need| names().any(|n| n == need.0)));
        assert_eq!(canonical("-nodelifecycle"), "-node-lifecycle-controller");
        assert_eq!(canonical("*"), "*");
    }
}

#[cfg(test)]
mod chaos;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod transcripts;
