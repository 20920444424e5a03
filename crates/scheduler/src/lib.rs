//! The scheduler: finds each pod its node.
//!
//! A pure [`core`] decides, over a [`snapshot`] that is kept current change by change; one file a plugin. A thin shell
//! ([`run`]) takes in what the informers tell and sends out bindings. What it deliberately does not know is how pods come
//! to be, or how they run.

#![forbid(unsafe_code)]

pub mod amounts;
pub mod assess;
pub mod config;
mod consult;
pub mod core;
pub mod counters;
pub mod devices;
mod events;
pub mod explain;
pub mod extender;
mod gang;
mod gang_preemption;
pub mod group;
mod hints;
pub mod metrics;
pub mod node;
pub mod node_selection;
pub mod plugins;
pub mod pod;
pub mod profile;
pub mod queue;
pub mod ranking;
mod resource_figures;
mod run;
pub mod selector;
pub mod snapshot;
mod sources;
pub mod spread_defaults;
pub mod storage;
pub mod symbol;
pub mod timing;
pub mod verdict;
pub mod view;
mod world;
mod writes;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use resource_figures::page as resource_figures;
pub use run::{run, warm};
pub use sources::Source;

/// How the scheduler runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Pods with the `schedulerName` of one of these are ours.
    pub profiles: Vec<profile::ProfileRef>,
    /// The delay after a pod's first failed attempt; it doubles.
    pub pod_initial_backoff: Duration,
    /// The longest such delay.
    pub pod_max_backoff: Duration,
    /// How long a pod lies unschedulable at most before it is tried again whatever happened.
    pub unschedulable_for: Duration,
    /// Calls to the API at once, each some kilobytes: enough to keep a server busy, few enough not to be a flood.
    pub calls_in_flight: usize,
    pub extenders: Vec<extender::Settings>,
    /// The gate `GenericWorkload`: pods of groups are placed together.
    pub groups: bool,
    /// The gate `TopologyAwareWorkloadScheduling`: and kept in one domain of a topology, if they ask for it.
    pub topology: bool,
    /// Set once all that is followed was listed.
    pub synced: Arc<AtomicBool>,
}

impl From<&config::Configuration> for Options {
    fn from(from: &config::Configuration) -> Self {
        Self {
            profiles: from.profiles.clone(),
            pod_initial_backoff: from.pod_initial_backoff,
            pod_max_backoff: from.pod_max_backoff,
            extenders: from.extenders.clone(),
            ..Self::default()
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            profiles: vec![profile::ProfileRef::default()],
            pod_initial_backoff: Duration::from_secs(1),
            pod_max_backoff: Duration::from_secs(10),
            unschedulable_for: queue::UNSCHEDULABLE_FOR,
            calls_in_flight: 128,
            extenders: Vec::new(),
            groups: false,
            topology: false,
            synced: Arc::default(),
        }
    }
}

/// Why the scheduler ended.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("the informers stopped")]
    Stopped,
    #[error("{0}")]
    Extender(meta::Status),
}
