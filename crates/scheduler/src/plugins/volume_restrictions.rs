//! Disks that only one pod of a node may mount, and claims that only one pod of the cluster may use.

use super::volume_binding;
use crate::node::Node;
use crate::pod::{Pod, Spec, Volume};
use crate::storage::Storage;
use crate::verdict::{Plugin, Reason, Refusal};

/// Claims of the pod for one pod only, and how many others use them.
#[derive(Clone)]
pub struct State {
    claims: Vec<Box<str>>,
    users: i64,
}

impl State {
    pub fn prepare(storage: &Storage, binding: &volume_binding::State) -> Self {
        let claims: Vec<Box<str>> = binding.claims().filter(|c| c.one_pod).map(|c| c.key.clone()).collect();
        let users = claims.iter().map(|c| i64::from(storage.users(c))).sum();
        Self { claims, users }
    }

    pub fn filter(&self, spec: &Spec, node: &Node) -> Result<(), Refusal> {
        for volume in &spec.volumes {
            let Volume::Disk { identity, sharable } = volume else { continue };
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
        let theirs = other.spec.volumes.iter().filter_map(|v| other.claim(v));
        self.users += by * theirs.filter(|c| self.claims.iter().any(|own| **own == **c)).count() as i64;
    }
}
