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

/// What a volume of a pod needs attached: its own volume, or the one that will be made for its claim.
fn attachment(storage: &Storage, pod: &Pod, volume: &Volume) -> Option<Attachment> {
    let claim = storage.claim(&pod.claim(volume)?)?;
    if !claim.volume.is_empty() {
        return storage.volume(&claim.volume)?.csi;
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
        let limits: Vec<(Symbol, i64)> = self
            .0
            .iter()
            .filter_map(|a| Some((a.0, storage.limit(node.symbol, a.0).filter(|l| *l < i64::MAX)?)))
            .collect();
        if limits.is_empty() {
            return Ok(());
        }
        let there = node.pods.iter().filter_map(|id| snapshot.placed(*id).map(|p| &p.pod));
        let mut attached: HashSet<Attachment> =
            there.flat_map(|p| p.volumes.iter().filter_map(|v| attachment(storage, p, v))).collect();
        let before = attached.len();
        attached.extend(&self.0);
        if attached.len() == before {
            return Ok(());
        }
        // What is still attached though its pods are gone takes its place too.
        attached.extend(storage.attached(node.symbol).filter_map(|v| v.csi));
        let over = |(driver, limit): &(Symbol, i64)| attached.iter().filter(|a| a.0 == *driver).count() as i64 > *limit;
        if limits.iter().any(over) {
            return Err(Refusal::resolvable(Plugin::NodeVolumeLimits, Reason::VolumeLimit));
        }
        Ok(())
    }
}
