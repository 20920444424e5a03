//! Why a node, or all of them, will not do; and how that is said.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::plugins::dynamic_resources::Obstacle;
use crate::plugins::node_declared_features::Features;
use crate::pod::Pod;
use crate::snapshot::NodeId;

/// The plugins that refuse nodes or pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Plugin {
    SchedulingGates,
    NodeUnschedulable,
    TaintToleration,
    NodeAffinity,
    NodePorts,
    NodeResourcesFit,
    VolumeRestrictions,
    NodeVolumeLimits,
    VolumeBinding,
    VolumeZone,
    PodTopologySpread,
    InterPodAffinity,
    DynamicResources,
    GangScheduling,
    NodeDeclaredFeatures,
}

impl Plugin {
    pub const ALL: [Self; 15] = [
        Self::SchedulingGates,
        Self::NodeUnschedulable,
        Self::TaintToleration,
        Self::NodeAffinity,
        Self::NodePorts,
        Self::NodeResourcesFit,
        Self::VolumeRestrictions,
        Self::NodeVolumeLimits,
        Self::VolumeBinding,
        Self::VolumeZone,
        Self::PodTopologySpread,
        Self::InterPodAffinity,
        Self::DynamicResources,
        Self::GangScheduling,
        Self::NodeDeclaredFeatures,
    ];

    /// Whether it looks at the pod before it looks at nodes.
    pub fn prepares(self) -> bool {
        !matches!(self, Self::SchedulingGates | Self::NodeUnschedulable | Self::TaintToleration)
    }

    /// As upstream calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SchedulingGates => "SchedulingGates",
            Self::NodeUnschedulable => "NodeUnschedulable",
            Self::TaintToleration => "TaintToleration",
            Self::NodeAffinity => "NodeAffinity",
            Self::NodePorts => "NodePorts",
            Self::NodeResourcesFit => "NodeResourcesFit",
            Self::VolumeRestrictions => "VolumeRestrictions",
            Self::NodeVolumeLimits => "NodeVolumeLimits",
            Self::VolumeBinding => "VolumeBinding",
            Self::VolumeZone => "VolumeZone",
            Self::PodTopologySpread => "PodTopologySpread",
            Self::InterPodAffinity => "InterPodAffinity",
            Self::DynamicResources => "DynamicResources",
            Self::GangScheduling => "GangScheduling",
            Self::NodeDeclaredFeatures => "NodeDeclaredFeatures",
        }
    }
}

/// A set of plugins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Plugins(u16);

impl Plugins {
    pub fn of(plugins: &[Plugin]) -> Self {
        let mut out = Self::default();
        plugins.iter().for_each(|p| out.insert(*p));
        out
    }

    pub fn insert(&mut self, plugin: Plugin) {
        self.0 |= 1 << plugin as u16;
    }

    pub fn remove(&mut self, plugin: Plugin) {
        self.0 &= !(1 << plugin as u16);
    }

    pub fn contains(self, plugin: Plugin) -> bool {
        self.0 & (1 << plugin as u16) != 0
    }

    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub fn iter(self) -> impl Iterator<Item = Plugin> {
        Plugin::ALL.into_iter().filter(move |p| self.contains(*p))
    }

    /// Whether nothing is here that is not there.
    pub fn within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Those of both.
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What a pod lacks on a node, as bits: see [`Shortage::names`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shortage(pub u32);

impl Shortage {
    pub const PODS: u32 = 1;
    pub const CPU: u32 = 2;
    pub const MEMORY: u32 = 4;
    pub const EPHEMERAL: u32 = 8;
    /// The first of the pod's other resources.
    pub const EXTENDED: u32 = 16;
    /// Other resources told apart; what is beyond shares the last bit.
    pub const MAX_EXTENDED: usize = 28;
}

/// Why a pod's claims cannot be bound on a node, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Unbindable(pub u8);

impl Unbindable {
    /// A volume cannot be used there.
    pub const NODE: u8 = 1;
    /// There is none to be bound.
    pub const BIND: u8 = 2;
    pub const SPACE: u8 = 4;
    /// A volume is not there at all.
    pub const MISSING: u8 = 8;
}

/// Why a node will not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    Unschedulable,
    Taint,
    NodeAffinity,
    /// The pod names other nodes, by a plugin's reading of it.
    OtherNodes,
    EnforcedNodeAffinity,
    Ports,
    Insufficient(Shortage),
    DiskConflict,
    ReadWriteOncePod,
    VolumeLimit,
    /// What is said of a driver that the node has not.
    MissingDriver(&'static str),
    Unbindable(Unbindable),
    VolumeZone,
    Spread,
    SpreadLabel,
    Affinity,
    AntiAffinity,
    ExistingAntiAffinity,
    NoDevices,
    ClaimElsewhere,
    InvalidPools,
    DevicesTimedOut,
    Undeclared(Features),
    OutsideDomain,
}

/// A refusal of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Refusal {
    pub plugin: Plugin,
    pub reason: Reason,
    /// Whether fewer pods on the node could change it.
    pub resolvable: bool,
}

impl Refusal {
    pub fn resolvable(plugin: Plugin, reason: Reason) -> Self {
        Self { plugin, reason, resolvable: true }
    }

    pub fn unresolvable(plugin: Plugin, reason: Reason) -> Self {
        Self { plugin, reason, resolvable: false }
    }
}

impl Reason {
    /// The messages, of which a shortage may have several.
    pub fn each(self, extended: &[&str], mut tell: impl FnMut(String)) {
        let text = match self {
            Self::Insufficient(shortage) => {
                for (bit, message) in [
                    (Shortage::PODS, "Too many pods"),
                    (Shortage::CPU, "Insufficient cpu"),
                    (Shortage::MEMORY, "Insufficient memory"),
                    (Shortage::EPHEMERAL, "Insufficient ephemeral-storage"),
                ] {
                    if shortage.0 & bit != 0 {
                        tell(message.into());
                    }
                }
                for (at, name) in extended.iter().take(Shortage::MAX_EXTENDED).enumerate() {
                    if shortage.0 & (Shortage::EXTENDED << at) != 0 {
                        tell(format!("Insufficient {name}"));
                    }
                }
                return;
            }
            Self::Unbindable(why) => {
                for (bit, message) in [
                    (Unbindable::NODE, "node(s) didn't match PersistentVolume's node affinity"),
                    (Unbindable::BIND, "node(s) didn't find available persistent volumes to bind"),
                    (Unbindable::SPACE, "node(s) did not have enough free storage"),
                    (Unbindable::MISSING, "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"),
                ] {
                    if why.0 & bit != 0 {
                        tell(message.into());
                    }
                }
                return;
            }
            Self::Undeclared(features) => {
                let names = features.names();
                return tell(format!("node declared features check failed - unsatisfied requirements: {names}"));
            }
            Self::Unschedulable => "node(s) were unschedulable",
            Self::Taint => "node(s) had untolerated taint(s)",
            Self::NodeAffinity => "node(s) didn't match Pod's node affinity/selector",
            Self::OtherNodes => "node(s) didn't satisfy plugin(s) [NodeAffinity]",
            Self::EnforcedNodeAffinity => "node(s) didn't match scheduler-enforced node affinity",
            Self::Ports => "node(s) didn't have free ports for the requested pod ports",
            Self::DiskConflict => "node(s) had no available disk",
            Self::ReadWriteOncePod => {
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
            }
            Self::MissingDriver(said) => said,
            Self::VolumeLimit => "node(s) exceed max volume count",
            Self::VolumeZone => "node(s) had no available volume zone",
            Self::Spread => "node(s) didn't match pod topology spread constraints",
            Self::SpreadLabel => "node(s) didn't match pod topology spread constraints (missing required label)",
            Self::Affinity => "node(s) didn't match pod affinity rules",
            Self::AntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Self::ExistingAntiAffinity => "node(s) didn't satisfy existing pods anti-affinity rules",
            Self::NoDevices => "cannot allocate all claims",
            Self::ClaimElsewhere => "resourceclaim not available on the node",
            Self::InvalidPools => "invalid resource pools were encountered",
            Self::OutsideDomain => "node(s) were outside the pod group's placement",
            Self::DevicesTimedOut => "timed out trying to allocate devices",
        };
        tell(text.into());
    }
}

/// Why no node will do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WhyNot {
    pub nodes: usize,
    /// How many nodes were refused for what.
    pub refusals: BTreeMap<Refusal, usize>,
    /// What stands in the way wherever the pod would go, by plugin.
    pub pod: Option<(Plugin, String)>,
    /// Names of the pod's extended resources, for messages.
    pub extended: Vec<String>,
    /// No refusal but something that went wrong, which only another attempt can tell.
    pub fault: Option<String>,
    /// What extenders said, and of how many nodes.
    pub others: BTreeMap<String, usize>,
    /// Nodes that extenders refused for good.
    pub closed: Vec<NodeId>,
    /// A claim's key that may be let go to help.
    pub to_let_go: Option<Arc<str>>,
    /// What came of trying to let go of devices.
    pub devices: &'static str,
    /// What came of trying to make room.
    pub preemption: String,
}

impl WhyNot {
    pub fn of_devices(obstacle: Obstacle, nodes: usize) -> Self {
        let plugin = Plugin::DynamicResources;
        match obstacle {
            Obstacle::Wait(why) => Self { nodes, pod: Some((plugin, why)), ..Self::default() },
            Obstacle::Fault(why) => {
                let fault = format!("running {:?} filter plugin: {why}", plugin.name());
                Self { nodes, fault: Some(fault), ..Self::default() }
            }
        }
    }

    /// Says what comes of trying to let go of devices: upstream does so for every pod, also for those that claim none.
    pub fn tell_of_devices(&mut self, pod: &Pod) {
        if self.nodes == 0 || !pod.spec.profile.has(Plugin::DynamicResources) {
            return;
        }
        self.devices = match (&self.to_let_go, &self.pod) {
            (Some(_), _) => "deallocation of ResourceClaim completed",
            (None, None) if pod.wants_devices() => "still not schedulable",
            (None, None | Some((Plugin::DynamicResources, _))) => "no new claims to deallocate",
            // Refused before anybody looked at its claims.
            (None, Some(_)) => "",
        };
    }

    /// Names of the pod's extended resources, as [`Reason::each`] wants them.
    pub fn extended_names(&self) -> Vec<&str> {
        self.extended.iter().map(String::as_str).collect()
    }

    /// The plugins that refused.
    pub fn plugins(&self) -> Plugins {
        if !self.others.is_empty() {
            // Nobody knows what changes an extender's mind.
            return Plugins::all();
        }
        let mut out = Plugins::default();
        self.refusals.keys().for_each(|r| out.insert(r.plugin));
        if let Some((plugin, _)) = &self.pod {
            out.insert(*plugin);
        }
        out
    }
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fault) = &self.fault {
            return f.write_str(fault);
        }
        if self.nodes == 0 && self.pod.is_none() {
            f.write_str("no nodes available to schedule pods")?;
        } else {
            write!(f, "0/{} nodes are available:", self.nodes)?;
            match &self.pod {
                Some((_, why)) => write!(f, " {why}.")?,
                None => {
                    let extended = self.extended_names();
                    let mut counts = self.others.clone();
                    for (refusal, nodes) in &self.refusals {
                        refusal.reason.each(&extended, |text| *counts.entry(text).or_insert(0) += nodes);
                    }
                    let mut parts: Vec<String> = counts.into_iter().map(|(text, n)| format!("{n} {text}")).collect();
                    parts.sort_unstable();
                    write!(f, " {}.", parts.join(", "))?;
                }
            }
        }
        if !self.devices.is_empty() {
            write!(f, " {}{}", self.devices, if self.preemption.is_empty() { "" } else { "," })?;
        }
        if !self.preemption.is_empty() {
            write!(f, " preemption: {}", self.preemption)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn said_as_upstream_says_it() {
        let fit = |bits| Refusal::resolvable(Plugin::NodeResourcesFit, Reason::Insufficient(Shortage(bits)));
        let taint = Refusal::unresolvable(Plugin::TaintToleration, Reason::Taint);
        for (why, expect) in [
            (WhyNot::default(), "no nodes available to schedule pods"),
            (
                WhyNot {
                    nodes: 3,
                    refusals: [(fit(Shortage::CPU | Shortage::EXTENDED), 1), (fit(Shortage::CPU), 1), (taint, 1)]
                        .into(),
                    extended: vec!["example.com/gpu".into()],
                    preemption: "0/3 nodes are available: 3 Preemption is not helpful for scheduling.".into(),
                    ..WhyNot::default()
                },
                "0/3 nodes are available: 1 Insufficient example.com/gpu, 1 node(s) had untolerated taint(s), 2 Insufficient cpu. \
                 preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.",
            ),
            (
                WhyNot {
                    nodes: 2,
                    pod: Some((Plugin::VolumeBinding, "persistentvolumeclaim \"a\" not found".into())),
                    ..WhyNot::default()
                },
                "0/2 nodes are available: persistentvolumeclaim \"a\" not found.",
            ),
        ] {
            assert_eq!(why.to_string(), expect);
        }
    }
}
