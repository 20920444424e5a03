//! Disks that only one pod of a node may mount, and claims that only one pod of the cluster may use.

use super::volume_binding;
use crate::node::Node;
use crate::pod::{Pod, Volume};
use crate::storage::Storage;
use crate::symbol::Symbol;
use crate::verdict::{Plugin, Reason, Refusal};

/// Disks of the pod, and its claims for one pod only with how many others use them.
#[derive(Clone)]
pub struct State {
    disks: Vec<(Symbol, bool)>,
    claims: Vec<Box<str>>,
    users: i64,
}

impl State {
    pub fn prepare(storage: &Storage, pod: &Pod, binding: &volume_binding::State) -> Self {
        let claims: Vec<Box<str>> = binding.claims().filter(|c| c.one_pod).map(|c| c.key.clone()).collect();
        let users = claims.iter().map(|c| i64::from(storage.users(c))).sum();
        let disk =
            |v: &Volume| if let Volume::Disk { identity, sharable } = v { Some((*identity, *sharable)) } else { None };
        Self { disks: pod.volumes.iter().filter_map(disk).collect(), claims, users }
    }

    pub fn filter(&self, node: &Node) -> Result<(), Refusal> {
        for (identity, sharable) in &self.disks {
            if node.disks.iter().any(|d| d.0 == *identity && !(d.1 && *sharable)) {
                return Err(Refusal::resolvable(Plugin::VolumeRestrictions, Reason::DiskConflict));
            }
        }
        if self.users > 0 {
            return Err(Refusal::resolvable(Plugin::VolumeRestrictions, Reason::ReadWriteOncePod));
        }
        Ok(())
    }

    /// Supposes that another pod came (1) or left (-1).
    pub fn suppose(&mut self, other: &Pod, by: i64) {
        if self.claims.is_empty() {
            return;
        }
        let theirs = other.volumes.iter().filter_map(|v| other.claim(v));
        self.users += by * theirs.filter(|c| self.claims.iter().any(|own| **own == **c)).count() as i64;
    }
}
