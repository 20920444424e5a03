//! A pod's claims: bound ones must be reachable from the node; those that wait for their first pod must find a volume
//! there, or be able to have one made.

use std::sync::{Arc, LazyLock};

use crate::node::Node;
use crate::plugins::node_resources_fit::height;
use crate::pod::{Pod, Volume as PodVolume};
use crate::profile::Profile;
use crate::snapshot::{NodeId, Snapshot};
use crate::storage::{Claim, Storage, Volume, ZONE_LABELS};
use crate::symbol::Symbol;
use crate::verdict::{Plugin, Reason, Refusal};

static ZONE_KEYS: LazyLock<Vec<Symbol>> =
    LazyLock::new(|| ZONE_LABELS.iter().flat_map(|(new, old)| [Symbol::of(new), Symbol::of(old)]).collect());

/// A pod's claims and what is bound to them.
#[derive(Clone, Default)]
pub struct State {
    bound: Vec<(Arc<Claim>, Option<Arc<Volume>>)>,
    waiting: Vec<Arc<Claim>>,
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
            if claim.deleting {
                return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
            if claim.bound {
                out.bound.push((claim.clone(), storage.volume(&claim.volume).cloned()));
            } else if claim.volume.is_empty() && storage.class(&claim.class).is_some_and(|c| c.waits) {
                out.waiting.push(claim.clone());
            } else {
                return Err("pod has unbound immediate PersistentVolumeClaims".into());
            }
        }
        Ok(out)
    }

    pub fn claims(&self) -> impl Iterator<Item = &Arc<Claim>> {
        self.bound.iter().map(|b| &b.0).chain(&self.waiting)
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
        let refuse = |reason| Err(Refusal::unresolvable(Plugin::VolumeBinding, reason));
        for (_, volume) in &self.bound {
            match volume {
                None => return refuse(Reason::MissingVolume),
                Some(volume) if !volume.affinity.matches(node) => return refuse(Reason::VolumeNodeAffinity),
                Some(_) => {}
            }
        }
        self.steps(storage, node).map_or_else(refuse, |_| Ok(()))
    }

    /// What is to be done to have every claim bound on a node, or why that cannot be.
    pub fn steps(&self, storage: &Storage, node: &Node) -> Result<Vec<Step>, Reason> {
        let mut steps = Vec::with_capacity(self.waiting.len());
        let mut taken: Vec<&str> = Vec::new();
        for claim in &self.waiting {
            let selected = storage.selected_node(claim);
            if selected.is_some_and(|n| n != node.symbol) {
                return Err(Reason::NoVolume);
            }
            let found = if selected.is_none() { find_volume(storage, claim, node, &taken) } else { None };
            if let Some(volume) = found {
                taken.push(&volume.name);
                steps.push(Step::Bind {
                    volume: volume.name.clone(),
                    claim: claim.key.clone(),
                    uid: claim.uid.clone(),
                });
                continue;
            }
            let class = storage.class(&claim.class).ok_or(Reason::NoVolume)?;
            if !class.provisions || claim.selector.is_some() || !class.topologies.matches(node) {
                return Err(Reason::NoVolume);
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
        let claim = |key: &str| self.waiting.iter().find(|c| *c.key == *key);
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

/// The smallest volume that a claim can have on a node; one that was made for it before any other.
fn find_volume<'a>(storage: &'a Storage, claim: &Claim, node: &Node, taken: &[&str]) -> Option<&'a Arc<Volume>> {
    let given = |v: &Volume| {
        v.claim.as_ref().is_some_and(|(key, uid)| *key == claim.key && (uid.is_empty() || *uid == claim.uid))
    };
    let fits = |v: &Volume| {
        v.usable
            && v.class == claim.class
            && v.block == claim.block
            && v.size >= claim.size
            && (v.claim.is_none() || given(v))
            && claim.modes.iter().all(|m| v.modes.contains(m))
            && claim.selector.as_ref().is_none_or(|s| s.matches(&v.labels))
            && !taken.contains(&&*v.name)
            && !storage.is_reserved(&v.name, &claim.key)
            && v.affinity.matches(node)
    };
    storage.volumes().filter(|v| fits(v)).min_by_key(|v| (!given(v), v.size, v.name.clone()))
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
