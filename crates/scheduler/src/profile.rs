//! How pods of one scheduler name are treated: which plugins have a say, how much, and with which arguments.
//!
//! A profile is made once, from the defaults or from a configuration file ([`crate::config`]), and every pod's spec points
//! at its own, so that the core never asks for it. It knows nothing of files.

use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::node_selection::{NodeSelection, Preference};
use crate::pod::SpreadConstraint;
use crate::symbol::Symbol;
use crate::verdict::{Plugin, Plugins};

/// The weights of the scoring plugins; 0 for one that has no say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    pub taint_toleration: i64,
    pub node_affinity: i64,
    pub node_resources_fit: i64,
    pub node_resources_balanced_allocation: i64,
    pub pod_topology_spread: i64,
    pub inter_pod_affinity: i64,
    pub image_locality: i64,
    pub dynamic_resources: i64,
    pub volume_binding: i64,
    /// Of placements of a pod group: how many of its pods a placement holds, and how full it is.
    pub placement_pods_count: i64,
    pub placement_fit: i64,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            taint_toleration: 3,
            node_affinity: 2,
            node_resources_fit: 1,
            node_resources_balanced_allocation: 1,
            pod_topology_spread: 2,
            inter_pod_affinity: 2,
            image_locality: 1,
            dynamic_resources: 2,
            volume_binding: 1,
            placement_pods_count: 1,
            placement_fit: 1,
        }
    }
}

/// A resource that counts when nodes are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    Cpu,
    Memory,
    Ephemeral,
    Other(Symbol),
}

impl Resource {
    pub fn of(name: &str) -> Self {
        match name {
            "cpu" => Self::Cpu,
            "memory" => Self::Memory,
            "ephemeral-storage" => Self::Ephemeral,
            other => Self::Other(Symbol::of(other)),
        }
    }
}

/// By what `NodeResourcesFit` likes nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strategy {
    LeastAllocated,
    MostAllocated,
    /// Points (utilization in percent, score 0..=100) of a broken line, ordered.
    RequestedToCapacityRatio(Box<[(i64, i64)]>),
}

/// `NodeResourcesFit`'s arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    pub strategy: Strategy,
    pub resources: Box<[(Resource, i64)]>,
    /// Resources nobody checks, by name and by what comes before the slash.
    pub ignored: Box<[Box<str>]>,
    pub ignored_groups: Box<[Box<str>]>,
}

impl Fit {
    /// Has nobody check some resources.
    pub fn ignore(&mut self, names: &[String]) {
        let more = names.iter().map(|n| n.as_str().into());
        self.ignored = self.ignored.iter().cloned().chain(more).collect();
    }

    pub fn ignores(&self, name: &str) -> bool {
        self.ignored.iter().any(|i| **i == *name)
            || name.split_once('/').is_some_and(|(group, _)| self.ignored_groups.iter().any(|i| **i == *group))
    }
}

/// How pods spread that do not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpreadDefaulting {
    /// Over hosts and zones, as a wish.
    System,
    /// As these say; their selectors are those of the pod's Services and controller.
    List(Box<[SpreadConstraint]>),
}

/// See the module.
#[derive(Debug)]
pub struct Profile {
    pub scheduler_name: Box<str>,
    /// Plugins that may refuse.
    pub filters: Plugins,
    pub weights: Weights,
    /// Whether room may be made for pods, and for pod groups as a whole.
    pub preempts: bool,
    pub preempts_for_groups: bool,
    /// Whether the domains of a topology are placements of a pod group that asks for one.
    pub generates_placements: bool,
    pub fit: Fit,
    pub balanced: Box<[Resource]>,
    /// What a required affinity of a placed pod is worth to one it wants near.
    pub hard_pod_affinity_weight: i64,
    pub ignore_preferred_terms_of_existing_pods: bool,
    /// What every node must be, and would better be, for every pod.
    pub added_affinity: Option<NodeSelection>,
    pub added_preferences: Box<[Preference]>,
    pub spread: SpreadDefaulting,
    pub bind_timeout: Duration,
    /// Points (utilization in percent, score 0..=100) of a broken line: what is thought of how much of the room for volumes a pod
    /// takes; `None` for nothing.
    pub volume_shape: Option<Box<[(i64, i64)]>>,
    /// How long one node may be searched for devices; `None` for as long as it takes.
    pub devices_filter_within: Option<Duration>,
    /// How long devices may take to be made ready for a pod.
    pub devices_ready_within: Duration,
    /// Nodes tried when room is to be made: percent of those that may help, and at least so many.
    pub candidates: (usize, usize),
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".into(),
            filters: Plugins::all(),
            weights: Weights::default(),
            preempts: true,
            preempts_for_groups: true,
            generates_placements: true,
            fit: Fit {
                strategy: Strategy::LeastAllocated,
                resources: [(Resource::Cpu, 1), (Resource::Memory, 1)].into(),
                ignored: Box::default(),
                ignored_groups: Box::default(),
            },
            balanced: [Resource::Cpu, Resource::Memory].into(),
            hard_pod_affinity_weight: 1,
            ignore_preferred_terms_of_existing_pods: false,
            added_affinity: None,
            added_preferences: Box::default(),
            spread: SpreadDefaulting::System,
            bind_timeout: Duration::from_secs(600),
            volume_shape: Some([(0, 100), (100, 0)].into()),
            devices_filter_within: Some(Duration::from_secs(10)),
            devices_ready_within: Duration::from_secs(600),
            candidates: (10, 100),
        }
    }
}

impl Profile {
    pub fn has(&self, plugin: Plugin) -> bool {
        self.filters.contains(plugin)
    }
}

/// A profile, shared. Two are equal when they are one.
#[derive(Clone, Debug)]
pub struct ProfileRef(Arc<Profile>);

static DEFAULT: LazyLock<ProfileRef> = LazyLock::new(|| ProfileRef(Arc::default()));

impl ProfileRef {
    pub fn new(profile: Profile) -> Self {
        Self(Arc::new(profile))
    }
}

impl Default for ProfileRef {
    fn default() -> Self {
        DEFAULT.clone()
    }
}

impl Deref for ProfileRef {
    type Target = Profile;

    fn deref(&self) -> &Profile {
        &self.0
    }
}

impl PartialEq for ProfileRef {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for ProfileRef {}

impl Hash for ProfileRef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (Arc::as_ptr(&self.0) as usize).hash(state);
    }
}
