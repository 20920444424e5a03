//! A node as the core sees it: what it offers, and what its pods take of it.
//!
//! It keeps sums, so that a question about it costs the same however many pods it has.

use std::sync::Arc;

use meta::Object;

use crate::amounts::{Amounts, Extended, pods_allowed};
use crate::plugins::node_declared_features::Features;
use crate::pod::{Effect, HostPort, Pod, Volume, normalized_image};
use crate::snapshot::PodId;
use crate::symbol::{Labels, Symbol, SymbolMap};
use crate::view::NodeView;

#[derive(Clone, Debug, PartialEq)]
pub struct Taint {
    pub key: Symbol,
    pub value: Symbol,
    /// The value where it is a number.
    pub number: Option<i64>,
    pub effect: Effect,
}

/// What the node's own object says, where it bears on placement.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Offer {
    pub labels: Labels,
    /// Labels whose values are numbers.
    pub numbers: Box<[(Symbol, i64)]>,
    pub unschedulable: bool,
    pub taints: Box<[Taint]>,
    pub allocatable: Amounts,
    pub pods_allowed: u32,
    /// Image name and size in bytes, ordered.
    pub images: Box<[(Symbol, i64)]>,
    pub features: Features,
}

impl Offer {
    pub fn of(object: &Object, view: &NodeView) -> Self {
        let labels = || object.meta.labels.iter().map(|(k, v)| (&**k, &**v));
        let taint = |t: &crate::view::TaintView| {
            let effect = Effect::of(&t.effect)?;
            Some(Taint { key: Symbol::of(&t.key), value: Symbol::of(&t.value), number: t.value.parse().ok(), effect })
        };
        let named = |i: &crate::view::ImageView| {
            let size = i.size_bytes;
            i.names.iter().map(|n| (normalized_image(n), size)).collect::<Vec<_>>()
        };
        let mut images: Vec<(Symbol, i64)> = view.status.images.iter().flat_map(named).collect();
        images.sort_unstable();
        images.dedup_by_key(|i| i.0);
        Self {
            labels: Labels::new(labels()),
            numbers: labels().filter_map(|(k, v)| Some((Symbol::of(k), v.parse().ok()?))).collect(),
            unschedulable: view.spec.unschedulable,
            taints: view.spec.taints.iter().filter_map(taint).collect(),
            allocatable: Amounts::of(&view.status.allocatable),
            pods_allowed: pods_allowed(&view.status.allocatable),
            images: images.into(),
            features: Features::declared(&view.status.declared_features),
        }
    }

    pub fn image(&self, name: Symbol) -> Option<i64> {
        self.images.binary_search_by_key(&name, |i| i.0).ok().map(|at| self.images[at].1)
    }
}

/// A node and its pods.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: Arc<str>,
    pub symbol: Symbol,
    /// Whether there is such a node, rather than only pods that name it.
    pub present: bool,
    pub offer: Arc<Offer>,
    pub requested: Amounts,
    pub assumed: (i64, i64),
    pub ports: Vec<HostPort>,
    /// Disks in use: identity, whether to share, how often.
    pub disks: Vec<(Symbol, bool, u32)>,
    pub pods: Vec<PodId>,
    pub count: u32,
    /// The snapshot's version when the node last changed.
    pub changed: u64,
}

impl std::ops::Deref for Node {
    type Target = Offer;

    fn deref(&self) -> &Offer {
        &self.offer
    }
}

impl Node {
    pub fn named(name: Arc<str>) -> Self {
        Self {
            symbol: Symbol::of(&name),
            name,
            present: false,
            offer: Arc::default(),
            requested: Amounts::default(),
            assumed: (0, 0),
            ports: Vec::new(),
            disks: Vec::new(),
            pods: Vec::new(),
            count: 0,
            changed: 0,
        }
    }

    /// A label's value where it is a number.
    pub fn number(&self, key: Symbol) -> Option<i64> {
        self.numbers.iter().find(|n| n.0 == key).map(|n| n.1)
    }

    /// Counts a pod in.
    pub fn take(&mut self, pod: &Pod) {
        self.requested.add(&pod.spec.requests);
        self.assumed.0 += pod.spec.assumed.0;
        self.assumed.1 += pod.spec.assumed.1;
        self.ports.extend_from_slice(&pod.spec.ports);
        for volume in &*pod.volumes {
            let Volume::Disk { identity, sharable } = volume else { continue };
            match self.disks.iter_mut().find(|d| (d.0, d.1) == (*identity, *sharable)) {
                Some(disk) => disk.2 += 1,
                None => self.disks.push((*identity, *sharable, 1)),
            }
        }
        self.count += 1;
    }

    /// Counts a pod out.
    pub fn give_back(&mut self, pod: &Pod) {
        self.requested.subtract(&pod.spec.requests);
        self.requested.extended.retain(|e: &Extended| e.amount != 0);
        self.assumed.0 -= pod.spec.assumed.0;
        self.assumed.1 -= pod.spec.assumed.1;
        for port in &pod.spec.ports {
            if let Some(at) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(at);
            }
        }
        for volume in &*pod.volumes {
            let Volume::Disk { identity, sharable } = volume else { continue };
            if let Some(at) = self.disks.iter().position(|d| (d.0, d.1) == (*identity, *sharable)) {
                self.disks[at].2 -= 1;
                if self.disks[at].2 == 0 {
                    self.disks.swap_remove(at);
                }
            }
        }
        self.count = self.count.saturating_sub(1);
    }
}

/// How many nodes have an image.
pub type ImageSpread = SymbolMap<i64>;
