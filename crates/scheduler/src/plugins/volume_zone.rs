//! A volume of a zone is reached only from nodes of that zone.

use super::volume_binding;
use crate::node::Node;
use crate::verdict::{Plugin, Reason, Refusal};

pub fn filter(binding: &volume_binding::State, node: &Node) -> Result<(), Refusal> {
    for (keys, values) in binding.volumes().flat_map(|v| &v.zones) {
        let here = keys.iter().find_map(|k| node.labels.get(*k));
        // A node that says nothing of zones is taken to be in all of them.
        let unzoned = || !binding.is_zoned(node);
        if !here.is_some_and(|z| values.contains(&z)) && !unzoned() {
            return Err(Refusal::unresolvable(Plugin::VolumeZone, Reason::VolumeZone));
        }
    }
    Ok(())
}
