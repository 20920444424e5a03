//! A pod's claims: bound ones must be reachable from the node; those that wait for their first pod must find a volume
//! there, or be able to have one made.

use std::sync::{Arc, LazyLock};

use crate::node::Node;
use crate::plugins::node_resources_fit::height;
use crate::pod::{Pod, Volume as PodVolume};
use crate::profile::Profile;
use crate::snapshot::{NodeId, Snapshot};
use crate::storage::{Claim, Storage, Volume, ZONE_LABELS};
use crate::symbol::{Symbol, SymbolMap};
use crate::verdict::{Plugin, Reason, Refusal, Unbindable};

static ZONE_KEYS: LazyLock<Vec<Symbol>> =
    LazyLock::new(|| ZONE_LABELS.iter().flat_map(|(new, old)| [Symbol::of(new), Symbol::of(old)]).collect());

static HOSTNAME: LazyLock<Symbol> = LazyLock::new(|| Symbol::of("kubernetes.io/hostname"));

/// Volumes that a claim may have, the small first: those of one node by the node's host name, since there may be one for each
/// of thousands of nodes.
#[derive(Default)]
struct Candidates {
    pinned: SymbolMap<Vec<Arc<Volume>>>,
    others: Vec<Arc<Volume>>,
}

impl Candidates {
    /// Where a volume was made for the claim, that and no other.
    fn of(storage: &Storage, claim: &Claim) -> Self {
        let given = |v: &Volume| {
            v.claim.as_ref().is_some_and(|(key, uid)| *key == claim.key && (uid.is_empty() || *uid == claim.uid))
        };
        let large_enough = |v: &Volume| {
            v.class == claim.class
                && v.block == claim.block
                && v.size >= claim.size
                && !v.deleting
                && !storage.is_reserved(&v.name, &claim.key)
        };
        let free = |v: &Volume| {
            v.claim.is_none()
                && v.available
                && claim.modes.iter().all(|m| v.modes.contains(m))
                && claim.selector.as_ref().is_none_or(|s| s.matches(&v.labels))
        };
        let fitting = || storage.volumes().filter(|v| large_enough(v));
        if let Some(own) = fitting().find(|v| given(v)) {
            return Self { others: vec![own.clone()], ..Self::default() };
        }
        let mut out = Self::default();
        for volume in fitting().filter(|v| free(v)) {
            let list = match volume.affinity.only_value(*HOSTNAME) {
                Some(host) => out.pinned.entry(host).or_default(),
                None => &mut out.others,
            };
            list.push(volume.clone());
        }
        for list in out.pinned.values_mut().chain([&mut out.others]) {
            list.sort_unstable_by(|a, b| (a.size, &a.name).cmp(&(b.size, &b.name)));
        }
        out
    }

    /// The smallest that can be had on a node.
    fn find(&self, node: &Node, taken: &[&str]) -> Option<&Arc<Volume>> {
        let will_do = |v: &&Arc<Volume>| !taken.contains(&&*v.name) && v.affinity.matches(node);
        let pinned = node.labels.get(*HOSTNAME).and_then(|host| self.pinned.get(&host)?.iter().find(will_do));
        let other = self.others.iter().find(will_do);
        pinned.into_iter().chain(other).min_by(|a, b| (a.size, &a.name).cmp(&(b.size, &b.name)))
    }
}

/// A pod's claims: what is bound to them, or may be.
#[derive(Clone, Default)]
pub struct State {
    bound: Vec<(Arc<Claim>, Option<Arc<Volume>>)>,
    waiting: Vec<(Arc<Claim>, Arc<Candidates>)>,
}

/// What is to be done about a claim once a pod's node is chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Give this volume to the claim.
    Bind { volume: Box<str>, claim: Box<str>, uid: Box<str> },
    /// Have a volume made.
    Provision { claim: Box<str> },
}

impl State {
    /// An error stands in the way wherever the pod would go.
    pub fn prepare(storage: &Storage, pod: &Pod) -> Result<Self, String> {
        let mut out = Self { bound: Vec::new(), waiting: Vec::new() };
        for volume in &*pod.volumes {
            let Some(key) = pod.claim(volume) else { continue };
            let (_, name) = meta::object::split_key(&key);
            let claim = storage.claim(&key).ok_or_else(|| match volume {
                PodVolume::Ephemeral(_) => {
                    format!("waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\"")
                }
                _ => format!("persistentvolumeclaim \"{name}\" not found"),
            })?;
            if claim.lost {
                let volume = &claim.volume;
                return Err(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
                ));
            }
            if claim.deleting {
                return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
            if matches!(volume, PodVolume::Ephemeral(_)) && claim.controller.as_deref() != Some(&*pod.uid) {
                return Err(format!("PVC {key} was not created for pod {} (pod is not owner)", pod.key));
            }
            if claim.bound {
                out.bound.push((claim.clone(), storage.volume(&claim.volume).cloned()));
            } else if claim.volume.is_empty() && storage.class(&claim.class).is_some_and(|c| c.waits) {
                out.waiting.push((claim.clone(), Arc::new(Candidates::of(storage, claim))));
            } else {
                return Err("pod has unbound immediate PersistentVolumeClaims".into());
            }
        }
        // The small first, so that they leave the large volumes to the large.
        out.waiting.sort_by_key(|(claim, _)| claim.size);
        Ok(out)
    }

    pub fn claims(&self) -> impl Iterator<Item = &Arc<Claim>> {
        self.bound.iter().map(|b| &b.0).chain(self.waiting.iter().map(|w| &w.0))
    }

    /// Volumes bound already.
    pub fn volumes(&self) -> impl Iterator<Item = &Arc<Volume>> {
        self.bound.iter().filter_map(|b| b.1.as_ref())
    }

    /// Whether a node says anything of zones.
    pub fn is_zoned(&self, node: &Node) -> bool {
        ZONE_KEYS.iter().any(|k| node.labels.get(*k).is_some())
    }

    pub fn filter(&self, storage: &Storage, node: &Node) -> Result<(), Refusal> {
        let bound = self.bound.iter().find_map(|(_, volume)| match volume {
            None => Some(Unbindable::MISSING),
            Some(volume) => (!volume.affinity.matches(node)).then_some(Unbindable::NODE),
        });
        let why = bound.unwrap_or(0) | self.steps(storage, node).err().unwrap_or(0);
        match why {
            0 => Ok(()),
            why => Err(Refusal::unresolvable(Plugin::VolumeBinding, Reason::Unbindable(Unbindable(why)))),
        }
    }

    /// What is to be done to have every claim bound on a node, or why that cannot be, as a bit.
    pub fn steps(&self, storage: &Storage, node: &Node) -> Result<Vec<Step>, u8> {
        let mut steps = Vec::with_capacity(self.waiting.len());
        let mut taken: Vec<&str> = Vec::new();
        for (claim, candidates) in &self.waiting {
            let selected = storage.selected_node(claim);
            if selected.is_some_and(|n| n != node.symbol) {
                return Err(Unbindable::BIND);
            }
            let found = if selected.is_none() { candidates.find(node, &taken) } else { None };
            if let Some(volume) = found {
                taken.push(&volume.name);
                steps.push(Step::Bind {
                    volume: volume.name.clone(),
                    claim: claim.key.clone(),
                    uid: claim.uid.clone(),
                });
                continue;
            }
            let class = storage.class(&claim.class).ok_or(Unbindable::BIND)?;
            if !class.provisions || !class.topologies.matches(node) {
                return Err(Unbindable::BIND);
            }
            storage.room_for(claim, class, &node.labels)?;
            steps.push(Step::Provision { claim: claim.key.clone() });
        }
        Ok(steps)
    }

    /// Whether nodes may differ in the room they have for what is to be bound or made.
    pub fn scores(&self, profile: &Profile) -> bool {
        !self.waiting.is_empty() && profile.weights.volume_binding != 0 && profile.volume_shape.is_some()
    }

    /// What is thought of the share of a node's room that the pod would take: volumes that are there, or, where none is
    /// to be bound, what drivers tell; by class, each counting the same.
    fn score_one(&self, storage: &Storage, node: &Node, shape: &[(i64, i64)]) -> i64 {
        let Ok(steps) = self.steps(storage, node) else { return 0 };
        let claim = |key: &str| self.waiting.iter().map(|w| &w.0).find(|c| *c.key == *key);
        let mut classes: Vec<(&str, i64, i64)> = Vec::new();
        let mut take = |class, asked: i64, room: &dyn Fn(i64) -> i64| match classes.iter_mut().find(|c| c.0 == class) {
            Some(of) => (of.1, of.2) = (of.1.saturating_add(asked), room(of.2)),
            None => classes.push((class, asked, room(0))),
        };
        let binds = steps.iter().any(|s| matches!(s, Step::Bind { .. }));
        for step in &steps {
            match step {
                Step::Bind { volume, claim: key, .. } => {
                    if let (Some(volume), Some(claim)) = (storage.volume(volume), claim(key)) {
                        take(&claim.class, claim.size, &|room| room.saturating_add(volume.size));
                    }
                }
                Step::Provision { claim: key } if !binds => {
                    let Some((claim, class)) = claim(key).and_then(|c| Some((c, storage.class(&c.class)?))) else {
                        continue;
                    };
                    if let Ok(Some(room)) = storage.room_for(claim, class, &node.labels) {
                        // However many are made there, the room is the same.
                        take(&claim.class, claim.size, &|_| room);
                    }
                }
                Step::Provision { .. } => {}
            }
        }
        let count = i64::try_from(classes.len()).unwrap_or(i64::MAX);
        let whole = |asked: i64, room: i64| room == 0 || asked > room;
        let used =
            |asked, room| if whole(asked, room) { 100 } else { (i128::from(asked) * 100 / i128::from(room)) as i64 };
        let sum: i64 = classes.iter().map(|(_, asked, room)| height(shape, used(*asked, *room))).sum();
        // Rounded half up.
        if count == 0 { 0 } else { (2 * sum + count) / (2 * count) }
    }

    /// Adds the weighted scores of nodes to their totals.
    pub fn score(&self, snapshot: &Snapshot, profile: &Profile, nodes: &[NodeId], totals: &mut [i64]) {
        let Some(shape) = profile.volume_shape.as_deref().filter(|_| self.scores(profile)) else { return };
        for (id, total) in nodes.iter().zip(totals) {
            *total += profile.weights.volume_binding * self.score_one(&snapshot.storage, snapshot.node(*id), shape);
        }
    }
}

/// Notes what is to be done, so that nobody else counts on the same.
pub fn reserve(storage: &mut Storage, steps: &[Step], node: Symbol) {
    for step in steps {
        match step {
            Step::Bind { volume, claim, .. } => storage.reserve(volume, claim),
            Step::Provision { claim } => storage.select(claim, node),
        }
    }
}

/// Takes that back.
pub fn release(storage: &mut Storage, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Bind { volume, claim, .. } => storage.release(Some(volume), claim),
            Step::Provision { claim } => storage.release(None, claim),
        }
    }
}
