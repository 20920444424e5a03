//! Whether what happened may have changed a plugin's mind about a pod that it refused.
//!
//! One function a plugin, as fine as upstream's queueing hints: not only what kind of thing happened counts, but what of it
//! matters to this pod. A hint may be wrong by waking too many; it must not be wrong by waking too few. It knows
//! nothing of queues, and decides nothing about where the pod goes.

use std::sync::Arc;

use crate::amounts::Amounts;
use crate::core::Core;
use crate::node::{Node, Offer};
use crate::plugins::{
    node_affinity, node_declared_features, node_ports, node_resources_fit, node_unschedulable, taint_toleration,
};
use crate::pod::{ClaimName, Pod, Spec, Volume};
use crate::profile::SpreadDefaulting;
use crate::snapshot::NodeId;
use crate::storage;
use crate::symbol::{Labels, Symbol};
use crate::verdict::{Plugin, Plugins, Refusal};

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A node is new, or offers something else than it did (`before`, without its pods).
    Node { id: NodeId, before: Option<Box<Node>> },
    /// A node is gone: what it offered.
    NodeGone(Arc<Offer>),
    /// A pod is on a node, or has other labels there.
    Came(Pod),
    /// A pod is gone from a node, where it was like this; or asks for less there.
    Left(Pod, NodeId),
    /// A namespace's labels changed.
    Namespace,
    /// A PersistentVolumeClaim, by key.
    Claim(Arc<str>),
    /// A PersistentVolume that is new or changed; whether it is reachable from elsewhere now.
    Volume { moved: bool },
    /// A StorageClass, by name.
    Class(Arc<str>),
    /// What drivers attach to a node; whether it may be more than before.
    Attachable { more: bool },
    /// Where drivers have room for new volumes.
    Capacity,
    /// A ResourceClaim, by key; whether its devices are free now.
    DeviceClaim { key: Arc<str>, freed: bool },
    /// Devices there are, their classes, their taints.
    Devices,
    /// A pod group, or who is in it, by key.
    Group(Arc<str>),
}

impl Event {
    /// What upstream calls it: the resource, and what became of it.
    pub fn label(&self, core: &Core) -> &'static str {
        match self {
            Self::Node { before: None, .. } => "NodeAdd",
            Self::Node { id, before: Some(before) } => node(core, *id).map_or("NodeUpdate", |now| {
                if now.allocatable != before.allocatable {
                    "NodeUpdateNodeAllocatable"
                } else if now.labels != before.labels {
                    "NodeUpdateNodeLabel"
                } else if now.taints != before.taints || now.unschedulable != before.unschedulable {
                    "NodeUpdateNodeTaint"
                } else {
                    "NodeUpdate"
                }
            }),
            Self::NodeGone(_) => "NodeDelete",
            Self::Came(_) => "AssignedPodAdd",
            Self::Left(..) => "AssignedPodDelete",
            Self::Namespace => "NamespaceUpdate",
            Self::Claim(_) => "PersistentVolumeClaimUpdate",
            Self::Volume { .. } => "PersistentVolumeUpdate",
            Self::Class(_) => "storage.k8s.io/StorageClassAdd",
            Self::Attachable { .. } => "storage.k8s.io/CSINodeUpdate",
            Self::Capacity => "storage.k8s.io/CSIStorageCapacityUpdate",
            Self::DeviceClaim { .. } => "resource.k8s.io/ResourceClaimUpdate",
            Self::Devices => "resource.k8s.io/ResourceSliceUpdate",
            Self::Group(_) => "scheduling.k8s.io/PodGroupUpdate",
        }
    }
}

/// Whether an event may have changed a plugin's mind about a pod.
pub fn helps(plugin: Plugin, event: &Event, pod: &Pod, core: &Core) -> bool {
    let spec = &*pod.spec;
    match plugin {
        // The pod itself has to change.
        Plugin::SchedulingGates => false,
        Plugin::NodeUnschedulable => admits_now(event, spec, core, node_unschedulable::filter),
        Plugin::TaintToleration => admits_now(event, spec, core, taint_toleration::filter),
        Plugin::NodeAffinity => admits_now(event, spec, core, node_affinity::filter),
        Plugin::NodeDeclaredFeatures => admits_now(event, spec, core, node_declared_features::filter),
        Plugin::NodePorts => ports(event, spec, core),
        Plugin::NodeResourcesFit => fit(event, spec, core),
        Plugin::VolumeRestrictions => volume_restrictions(event, pod),
        Plugin::NodeVolumeLimits => volume_limits(event, pod),
        Plugin::VolumeBinding => volume_binding(event, pod, core),
        Plugin::VolumeZone => volume_zone(event, pod, core),
        Plugin::PodTopologySpread => spread(event, pod, core),
        Plugin::InterPodAffinity => affinity(event, pod, core),
        Plugin::DynamicResources => devices(event, pod, core),
        Plugin::GangScheduling => matches!(event, Event::Group(group) if pod.group.as_ref() == Some(group)),
    }
}

/// Plugins that may think otherwise of a pod that changed itself.
pub fn own_change(before: &Pod, after: &Pod) -> Plugins {
    let (old, new) = (&before.spec, &after.spec);
    let mut out = Plugins::default();
    let mut when = |changed: bool, plugins: &[Plugin]| {
        if changed {
            plugins.iter().for_each(|p| out.insert(*p));
        }
    };
    when(before.labels != after.labels, &[Plugin::PodTopologySpread, Plugin::InterPodAffinity]);
    when(before.claims != after.claims || before.extended != after.extended, &[Plugin::DynamicResources]);
    when(before.group != after.group, &[Plugin::GangScheduling]);
    when(before.volumes != after.volumes, &[Plugin::VolumeBinding, Plugin::VolumeRestrictions, Plugin::VolumeZone]);
    if Arc::ptr_eq(old, new) {
        return out;
    }
    when(
        old.tolerations != new.tolerations,
        &[Plugin::NodeUnschedulable, Plugin::TaintToleration, Plugin::PodTopologySpread],
    );
    when(old.selection != new.selection, &[Plugin::NodeAffinity, Plugin::PodTopologySpread]);
    when(
        asks_less(&old.requests, &new.requests) || old.delegated != new.delegated,
        &[Plugin::NodeResourcesFit, Plugin::DynamicResources],
    );
    // Who is more important than before may have room made for it.
    when(old.priority != new.priority, &Plugin::ALL);
    when(old.ports != new.ports, &[Plugin::NodePorts]);
    when(old.spread != new.spread, &[Plugin::PodTopologySpread]);
    when(old.terms != new.terms, &[Plugin::InterPodAffinity]);
    when(old.features != new.features, &[Plugin::NodeDeclaredFeatures]);
    out
}

fn asks_less(before: &Amounts, after: &Amounts) -> bool {
    after.cpu < before.cpu
        || after.memory < before.memory
        || after.ephemeral < before.ephemeral
        || before.extended.iter().any(|e| after.extended(e.resource) < e.amount)
}

fn node(core: &Core, id: NodeId) -> Option<&Node> {
    core.snapshot.nodes().get(id.index()).filter(|n| n.present)
}

/// A rule about a node alone: whether it refused the node as it was and does not as it is.
fn admits_now(event: &Event, spec: &Spec, core: &Core, rule: fn(&Spec, &Node) -> Result<(), Refusal>) -> bool {
    let Event::Node { id, before } = event else { return false };
    before.as_ref().is_none_or(|b| rule(spec, b).is_err()) && node(core, *id).is_some_and(|n| rule(spec, n).is_ok())
}

fn ports(event: &Event, spec: &Spec, core: &Core) -> bool {
    match event {
        Event::Left(other, _) => other.spec.ports.iter().any(|p| spec.ports.iter().any(|wanted| p.conflicts(wanted))),
        Event::Node { id, before: None } => node(core, *id).is_some_and(|n| node_ports::filter(spec, n).is_ok()),
        _ => false,
    }
}

/// Whether a node has room for the pod, or would once pods were removed for it.
fn could_fit(core: &Core, id: NodeId, spec: &Spec) -> bool {
    let Some(node) = node(core, id) else { return false };
    match node_resources_fit::filter(spec, node) {
        Ok(()) => true,
        Err(refusal) if !refusal.resolvable || !spec.preempts || !spec.profile.preempts => false,
        Err(_) => {
            let mut lower = core.snapshot.pods_on(id).filter(|(_, p)| p.priority() < spec.priority).peekable();
            if lower.peek().is_none() {
                return false;
            }
            let mut emptier = node.clone();
            lower.for_each(|(_, p)| emptier.give_back(p));
            node_resources_fit::filter(spec, &emptier).is_ok()
        }
    }
}

/// Whether one list has more than another of something that is asked for.
fn has_more(wanted: &Amounts, now: &Amounts, before: &Amounts) -> bool {
    let more = |wanted: i64, now: i64, before: i64| wanted > 0 && now > before;
    more(wanted.cpu, now.cpu, before.cpu)
        || more(wanted.memory, now.memory, before.memory)
        || more(wanted.ephemeral, now.ephemeral, before.ephemeral)
        || wanted.extended.iter().any(|e| more(e.amount, now.extended(e.resource), before.extended(e.resource)))
}

fn fit(event: &Event, spec: &Spec, core: &Core) -> bool {
    match event {
        // A place among the pods of a node is something too, so any pod's leaving may help.
        Event::Left(_, id) | Event::Node { id, before: None } => could_fit(core, *id, spec),
        Event::Node { id, before: Some(before) } => {
            let grew = node(core, *id).is_some_and(|n| {
                n.pods_allowed > before.pods_allowed || has_more(&spec.requests, &n.allocatable, &before.allocatable)
            });
            grew && could_fit(core, *id, spec)
        }
        // What classes stand for decides what counts as a device.
        Event::Devices => !spec.delegated.is_empty(),
        _ => false,
    }
}

fn uses(pod: &Pod, claim: &str) -> bool {
    pod.volumes.iter().any(|v| pod.claim(v).is_some_and(|c| *c == *claim))
}

/// Whether one of the pod's claims is of a class.
fn is_of_class(pod: &Pod, class: &str, core: &Core) -> bool {
    let claims = pod.volumes.iter().filter_map(|v| core.snapshot.storage.claim(&pod.claim(v)?));
    claims.into_iter().any(|c| *c.class == *class)
}

/// Whether both want the same disk, or the same claim.
fn share_a_volume(pod: &Pod, other: &Pod) -> bool {
    let disk = |v: &Volume| if let Volume::Disk { identity, .. } = v { Some(*identity) } else { None };
    other.volumes.iter().any(|theirs| match disk(theirs) {
        Some(identity) => pod.volumes.iter().any(|own| disk(own) == Some(identity)),
        None => other.claim(theirs).is_some_and(|claim| uses(pod, &claim)),
    })
}

fn volume_restrictions(event: &Event, pod: &Pod) -> bool {
    match event {
        Event::Left(other, _) => share_a_volume(pod, other),
        Event::Claim(claim) => uses(pod, claim),
        Event::Node { before: None, .. } => true,
        _ => false,
    }
}

fn volume_limits(event: &Event, pod: &Pod) -> bool {
    match event {
        Event::Left(other, _) => !other.volumes.is_empty(),
        Event::Attachable { more } => *more,
        Event::Claim(claim) => uses(pod, claim),
        Event::Node { before: None, .. } => true,
        _ => false,
    }
}

/// Whether a node is new or has other labels than it had.
fn is_elsewhere(event: &Event, core: &Core) -> bool {
    match event {
        Event::Node { before: None, .. } => true,
        Event::Node { id, before: Some(before) } => node(core, *id).is_some_and(|n| n.labels != before.labels),
        _ => false,
    }
}

fn volume_binding(event: &Event, pod: &Pod, core: &Core) -> bool {
    match event {
        Event::Claim(claim) => uses(pod, claim),
        Event::Class(class) => is_of_class(pod, class, core),
        Event::Volume { .. } | Event::Capacity | Event::Attachable { more: true } => true,
        _ => is_elsewhere(event, core),
    }
}

fn volume_zone(event: &Event, pod: &Pod, core: &Core) -> bool {
    match event {
        Event::Claim(claim) => uses(pod, claim),
        Event::Class(class) => is_of_class(pod, class, core),
        Event::Volume { moved } => *moved,
        _ => is_elsewhere(event, core),
    }
}

/// The topology keys of a pod's rules about spreading, or whether they are not its own.
fn spread_keys(pod: &Pod) -> Vec<Symbol> {
    let own = pod.spec.spread.iter();
    match &pod.spec.profile.spread {
        SpreadDefaulting::List(list) if pod.spec.spread.is_empty() => {
            list.iter().filter(|c| c.hard).map(|c| c.topology).collect()
        }
        _ => own.filter(|c| c.hard).map(|c| c.topology).collect(),
    }
}

fn spread(event: &Event, pod: &Pod, core: &Core) -> bool {
    let has_keys = |labels: &Labels| spread_keys(pod).iter().all(|key| labels.get(*key).is_some());
    match event {
        Event::Came(other) | Event::Left(other, _) => {
            // Whom default rules count, Services and controllers say.
            let counted = || pod.spec.spread.iter().any(|c| c.hard && c.selector.matches(&other.labels));
            other.namespace == pod.namespace && (pod.spec.spread.is_empty() || counted())
        }
        Event::Node { id, before: None } => node(core, *id).is_some_and(|n| has_keys(&n.labels)),
        Event::Node { id, before: Some(before) } => node(core, *id).is_some_and(|n| {
            let moved = spread_keys(pod).iter().any(|key| n.labels.get(*key) != before.labels.get(*key));
            let counts = |n: &Node| (pod.spec.selection.matches(n), taint_toleration::admits(&pod.spec, n));
            moved || counts(n) != counts(before)
        }),
        Event::NodeGone(offer) => has_keys(&offer.labels),
        _ => false,
    }
}

fn affinity(event: &Event, pod: &Pod, core: &Core) -> bool {
    let namespaces = &core.snapshot.namespaces;
    let terms = pod.spec.terms.as_deref();
    let near = || terms.into_iter().flat_map(|t| &t.affinity);
    let far = || terms.into_iter().flat_map(|t| &t.anti);
    match event {
        Event::Came(other) => near().any(|t| t.picks(pod, other, namespaces)),
        Event::Left(other, _) => {
            let theirs = other.spec.terms.as_deref();
            far().any(|t| t.picks(pod, other, namespaces))
                || theirs.is_some_and(|t| t.anti.iter().any(|t| t.picks(other, pod, namespaces)))
                // The first of its kind needs no company.
                || near().any(|t| t.picks(pod, other, namespaces) && t.picks(pod, pod, namespaces))
        }
        Event::Node { id, before } => node(core, *id).is_some_and(|n| match before {
            None => near().all(|t| n.labels.get(t.topology).is_some()),
            // Whose terms keep it away, and by which label, may be another's.
            Some(before) => n.labels != before.labels,
        }),
        Event::Namespace => true,
        _ => false,
    }
}

fn devices(event: &Event, pod: &Pod, core: &Core) -> bool {
    match event {
        Event::DeviceClaim { key, freed } => {
            let (namespace, name) = meta::object::split_key(key);
            let own = pod.key.split_once('/').is_some_and(|(n, _)| n == namespace);
            let named = |claim: &ClaimName| match claim {
                ClaimName::Given(n) | ClaimName::Generated(Some(Some(n))) => **n == *name,
                // Which it will be is not known yet.
                ClaimName::Generated(None) => true,
                ClaimName::Generated(Some(None)) | ClaimName::Unknown => false,
            };
            *freed || own && (pod.extended.is_some() || pod.claims.iter().any(|c| named(&c.claim)))
        }
        Event::Devices => true,
        Event::Node { id, before: Some(before) } => node(core, *id).is_some_and(|n| {
            n.labels != before.labels || n.taints != before.taints || n.allocatable != before.allocatable
        }),
        Event::Node { before: None, .. } => true,
        _ => false,
    }
}

/// What changed about a volume: whether it is reachable from elsewhere than it was.
pub fn has_moved(before: Option<&storage::Volume>, after: &storage::Volume) -> bool {
    before.is_none_or(|b| b.zones != after.zones)
}

#[cfg(test)]
mod tests;
