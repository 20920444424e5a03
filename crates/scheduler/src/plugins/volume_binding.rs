//! A pod's claims: bound ones must be reachable from the node; those that wait for their first pod must find a volume
//! there, or be able to have one made.

use std::sync::{Arc, LazyLock};

use crate::node::Node;
use crate::pod::{Pod, Volume as PodVolume};
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
            if !storage.has_room(claim, class, &node.labels) {
                return Err(Reason::NoStorageSpace);
            }
            steps.push(Step::Provision { claim: claim.key.clone() });
        }
        Ok(steps)
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
