//! Controllers: each a pure plan over the world its informers show, one runner for all.
//!
//! A controller is declared in its own file: which resources it watches, which keys their changes make dirty, and a
//! function from a key to a [`plan::Plan`]. The [`runner`] does the rest. Controllers know the API only through
//! [`client`]; they hold no state that a restart could lose.

#![forbid(unsafe_code)]

mod cluster_roles;
mod conditions;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoint_mirroring;
mod endpoints;
mod garbage;
mod hash;
mod history;
mod indexes;
mod job;
mod job_controller;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod nodes;
mod owners;
mod plan;
mod pod_failure;
mod pod_gc;
mod pods;
mod quota;
mod replicas;
mod replicaset;
mod rollout;
mod rollout_status;
mod runner;
mod statefulset;
mod taint_eviction;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use client::{Client, Informers};
use ipnet::IpNet;
use meta::{Object, Status};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use runner::Controller;

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
    /// PEM bundle for `kube-root-ca.crt`; nothing is published without one.
    pub root_ca: Option<String>,
    /// Keys a controller reconciles at once.
    pub concurrency: usize,
    /// Finished pods kept before the oldest are deleted.
    pub terminated_pod_gc_threshold: usize,
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
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            node_eviction_rate: 0.1,
            root_ca: None,
            concurrency: 5,
            terminated_pod_gc_threshold: 12_500,
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

type Make = fn(&Context) -> Controller;

/// Every controller: its name, whether `*` includes it, and how it is made.
const CONTROLLERS: &[(&str, bool, Make)] = &[
    ("deployment-controller", true, deployment::deployments),
    ("replicaset-controller", true, replicaset::replica_sets),
    ("replicationcontroller-controller", true, replicaset::replication_controllers),
    ("endpointslice-controller", true, endpoints::endpoint_slices),
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
    ("persistentvolumeclaim-protection-controller", true, volumes::claim_protection),
    ("persistentvolume-protection-controller", true, volumes::volume_protection),
    ("ephemeral-volume-controller", true, volumes::ephemeral_volumes),
    ("ttl-after-finished-controller", true, job_controller::ttl_after_finished),
];

/// Names of all controllers, for help texts.
pub fn names() -> impl Iterator<Item = &'static str> {
    CONTROLLERS.iter().map(|c| c.0)
}

fn is_enabled(name: &str, by_default: bool, wanted: &[String]) -> bool {
    let off = wanted.iter().any(|w| w.strip_prefix('-') == Some(name));
    let on = wanted.iter().any(|w| w == name);
    on || (!off && by_default && wanted.iter().any(|w| w == "*"))
}

/// Runs the controllers until cancelled. Leader election, where there are several of us, is the caller's.
pub async fn run(
    client: Client,
    informers: Arc<Informers>,
    options: Options,
    cancel: CancellationToken,
) -> Result<(), Error> {
    for wanted in &options.controllers {
        let name = wanted.strip_prefix('-').unwrap_or(wanted);
        if name != "*" && !names().any(|n| n == name) {
            return Err(Error::UnknownController(name.into()));
        }
    }
    let cx = Context { client, informers, options: Arc::new(options) };
    let mut tasks = JoinSet::new();
    for (name, by_default, make) in CONTROLLERS {
        if is_enabled(name, *by_default, &cx.options.controllers) {
            let controller = make(&cx);
            tasks.spawn(controller.run(cx.client.clone(), cancel.clone()));
        }
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

/// An object's status as JSON; null when it has none.
fn status_of(object: &Object) -> Result<Value, Status> {
    let mut body = object.value().map_err(Status::internal)?;
    Ok(body.get_mut("status").map_or(Value::Null, Value::take))
}

#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod transcripts;
