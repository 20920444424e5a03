//! One file a plugin: the rules by which nodes are refused, and by which they are liked.
//!
//! The plugins on a node alone (`filter(spec, node)`, `score(spec, node)`) know nothing of other nodes, so their verdicts
//! are kept and only asked again when the node changes. The others prepare a state for one pod over the whole cluster.
//! Pods that name their node themselves never reach the scheduler, so upstream's `NodeName` has nothing to refuse here.

pub mod default_preemption;
pub mod dynamic_resources;
pub mod image_locality;
pub mod inter_pod_affinity;
pub mod node_affinity;
pub mod node_declared_features;
pub mod node_ports;
pub mod node_resources_balanced_allocation;
pub mod node_resources_fit;
pub mod node_unschedulable;
pub mod node_volume_limits;
pub mod pod_topology_spread;
pub mod scheduling_gates;
pub mod taint_toleration;
pub mod volume_binding;
pub mod volume_restrictions;
pub mod volume_zone;

/// The best score of one plugin.
pub const MAX_SCORE: i64 = 100;
