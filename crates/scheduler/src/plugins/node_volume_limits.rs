//! A driver attaches only so many volumes to a node, and none where it is not.

use std::collections::HashSet;

use crate::node::Node;
use crate::pod::{Pod, Volume};
use crate::snapshot::Snapshot;
use crate::storage::Storage;
use crate::symbol::Symbol;
use crate::verdict::{Plugin, Reason, Refusal};

/// A driver, and what tells its volumes apart.
type Attachment = (Symbol, Symbol);

/// The attachments the pod needs.
#[derive(Clone)]
pub struct State(Vec<Attachment>);

/// What a volume of a pod needs attached: its claim's volume, or the one that is not there yet.
fn attachment(storage: &Storage, pod: &Pod, volume: &Volume) -> Option<Attachment> {
    let claim = storage.claim(&pod.claim(volume)?)?;
    if let Some(volume) = storage.volume(&claim.volume) {
        return volume.csi;
    }
    Some((storage.class(&claim.class)?.driver?, Symbol::of(&claim.key)))
}

impl State {
    pub fn prepare(snapshot: &Snapshot, pod: &Pod) -> Self {
        Self(pod.volumes.iter().filter_map(|v| attachment(&snapshot.storage, pod, v)).collect())
    }

    pub fn filter(&self, snapshot: &Snapshot, node: &Node) -> Result<(), Refusal> {
        let storage = &snapshot.storage;
        if let Some(said) = self.0.iter().find_map(|a| storage.missing(node.symbol, a.0)) {
            return Err(Refusal::resolvable(Plugin::NodeVolumeLimits, Reason::MissingDriver(said)));
        }
        let limit = |a: &Attachment| storage.limit(node.symbol, a.0).filter(|l| *l < i64::MAX);
        if !self.0.iter().any(|a| limit(a).is_some()) {
            return Ok(());
        }
        let there = node.pods.iter().filter_map(|id| snapshot.placed(*id).map(|p| &p.pod));
        let mut attached: HashSet<Attachment> =
            there.flat_map(|p| p.volumes.iter().filter_map(|v| attachment(storage, p, v))).collect();
        // What is still attached though its pods are gone takes its place too.
        attached.extend(storage.attached(node.symbol).filter_map(|v| v.csi));
        let new: Vec<&Attachment> = self.0.iter().filter(|a| !attached.contains(a)).collect();
        attached.extend(&self.0);
        let over = |a: &&Attachment| {
            limit(a).is_some_and(|limit| attached.iter().filter(|b| b.0 == a.0).count() as i64 > limit)
        };
        if new.iter().any(over) {
            return Err(Refusal::resolvable(Plugin::NodeVolumeLimits, Reason::VolumeLimit));
        }
        Ok(())
    }
}
