//! What is wanted of a driver: one volume for one pod, read from the PersistentVolume or the pod. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    CSIVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod, SecretReference, Volume,
};
use ring::digest::{SHA256, digest};

use super::driver::Abilities;
use crate::spec;
use ::plugins::csi as v1;
use ::plugins::csi::volume_capability::access_mode::Mode;

fn hex(text: &str) -> String {
    digest(&SHA256, text.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// A volume as its driver will be told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The PersistentVolume's name, or the pod's name for a volume that lives as long as the pod.
    pub name: String,
    pub driver: String,
    pub handle: String,
    pub attributes: BTreeMap<String, String>,
    pub fs_type: String,
    pub mount_options: Vec<String>,
    /// The first access mode of the PersistentVolume, in Kubernetes' words.
    pub access: String,
    pub block: bool,
    pub read_only: bool,
    pub stage_secret: Option<SecretReference>,
    pub publish_secret: Option<SecretReference>,
    pub expand_secret: Option<SecretReference>,
    /// Lives as long as its pod: never attached or staged.
    pub ephemeral: bool,
}

impl Wanted {
    /// What a PersistentVolume of a driver says. `None` when it is another kind of volume.
    pub fn persistent(volume: &PersistentVolume, read_only: bool) -> Option<Wanted> {
        let wish = volume.spec.as_ref()?;
        let source = wish.csi.as_ref()?;
        Some(Wanted {
            name: volume.metadata.name.clone().unwrap_or_default(),
            driver: source.driver.clone(),
            handle: source.volume_handle.clone(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            mount_options: wish.mount_options.clone().unwrap_or_default(),
            access: wish.access_modes.iter().flatten().next().cloned().unwrap_or_else(|| "ReadWriteOnce".into()),
            block: wish.volume_mode.as_deref() == Some("Block"),
            read_only: read_only || source.read_only == Some(true),
            stage_secret: source.node_stage_secret_ref.clone(),
            publish_secret: source.node_publish_secret_ref.clone(),
            expand_secret: source.node_expand_secret_ref.clone(),
            ephemeral: false,
        })
    }

    /// What a pod says of a volume of its own.
    pub fn inline(pod: &Pod, volume: &Volume, source: &CSIVolumeSource) -> Wanted {
        let secret = source
            .node_publish_secret_ref
            .as_ref()
            .map(|s| SecretReference { name: Some(s.name.clone()), namespace: Some(spec::namespace(pod).to_string()) });
        Wanted {
            name: volume.name.clone(),
            driver: source.driver.clone(),
            handle: format!("csi-{}", hex(&format!("{}{}", spec::uid(pod), volume.name))),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            mount_options: Vec::new(),
            access: "ReadWriteOnce".into(),
            block: false,
            read_only: source.read_only == Some(true),
            stage_secret: None,
            publish_secret: secret,
            expand_secret: None,
            ephemeral: true,
        }
    }

    /// In the words of `volumeLifecycleModes`.
    pub fn lifecycle(&self) -> &'static str {
        if self.ephemeral { "Ephemeral" } else { "Persistent" }
    }

    /// How the node's status names it.
    pub fn unique_name(&self) -> String {
        unique_name(&self.driver, &self.handle)
    }

    /// What its VolumeAttachment to a node is called; the controller computes the same name.
    pub fn attachment(&self, node: &str) -> String {
        format!("csi-{}", hex(&format!("{}{}{node}", self.handle, self.driver)))
    }

    fn mode(&self, abilities: &Abilities) -> Mode {
        match (self.access.as_str(), abilities.single_node_multi_writer) {
            ("ReadOnlyMany", _) => Mode::MultiNodeReaderOnly,
            ("ReadWriteMany", _) => Mode::MultiNodeMultiWriter,
            ("ReadWriteOncePod", true) => Mode::SingleNodeSingleWriter,
            (_, true) => Mode::SingleNodeMultiWriter,
            (_, false) => Mode::SingleNodeWriter,
        }
    }

    /// The capability as a driver is asked for it; `group` if it gives the volume to the pod's group itself.
    pub fn capability(&self, abilities: &Abilities, group: Option<u32>) -> v1::VolumeCapability {
        use v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
        let kind = if self.block {
            AccessType::Block(BlockVolume {})
        } else {
            AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone(),
                mount_flags: self.mount_options.clone(),
                volume_mount_group: group.map(|g| g.to_string()).unwrap_or_default(),
            })
        };
        v1::VolumeCapability {
            access_mode: Some(AccessMode { mode: self.mode(abilities) as i32 }),
            access_type: Some(kind),
        }
    }

    /// Whether the agent gives the files to the pod's group, by the driver's `fsGroupPolicy`.
    pub fn takes_group(&self, policy: Option<&str>) -> bool {
        if self.block || self.read_only {
            return false;
        }
        match policy {
            Some("None") => false,
            Some("File") => true,
            // Only what surely is a file system of this node's alone.
            _ => !self.fs_type.is_empty() && matches!(self.access.as_str(), "ReadWriteOnce" | "ReadWriteOncePod"),
        }
    }
}

/// `kubernetes.io/csi/DRIVER^HANDLE`.
pub fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// Where a driver stages a volume on this node.
pub fn staging(root: &Path, driver: &str, handle: &str) -> PathBuf {
    root.join("plugins/kubernetes.io/csi").join(driver).join(hex(handle))
}

/// A claim whose volume has grown beyond what the claim knows: the file system may have to follow.
pub fn growth(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<i64> {
    let size = |q: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>| q.map(crate::quantity::value);
    let has = size(volume.spec.as_ref()?.capacity.as_ref()?.get("storage"))?;
    let status = claim.status.as_ref();
    let known = size(status.and_then(|s| s.capacity.as_ref()?.get("storage")))?;
    let resizing = status.and_then(|s| s.allocated_resource_statuses.as_ref()?.get("storage")).map(String::as_str);
    // One that the driver has refused for good waits for a new wish.
    (has > known && resizing != Some("NodeResizeInfeasible")).then_some(has)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn volume(spec: serde_json::Value) -> PersistentVolume {
        serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": spec})).unwrap()
    }

    #[test]
    fn modes_follow_what_the_driver_can() {
        let (old, new) = (Abilities::default(), Abilities { single_node_multi_writer: true, ..Abilities::default() });
        for (access, of_old, of_new) in [
            ("ReadWriteOnce", Mode::SingleNodeWriter, Mode::SingleNodeMultiWriter),
            ("ReadWriteOncePod", Mode::SingleNodeWriter, Mode::SingleNodeSingleWriter),
            ("ReadOnlyMany", Mode::MultiNodeReaderOnly, Mode::MultiNodeReaderOnly),
            ("ReadWriteMany", Mode::MultiNodeMultiWriter, Mode::MultiNodeMultiWriter),
        ] {
            let pv = volume(json!({"csi": {"driver": "d", "volumeHandle": "h"}, "accessModes": [access]}));
            let wanted = Wanted::persistent(&pv, false).unwrap();
            assert_eq!((wanted.mode(&old), wanted.mode(&new)), (of_old, of_new), "{access}");
        }
    }

    #[test]
    fn groups_follow_the_policy() {
        for (fs_type, access, read_only, policy, takes) in [
            ("ext4", "ReadWriteOnce", false, None, true),
            ("ext4", "ReadWriteOnce", false, Some("ReadWriteOnceWithFSType"), true),
            ("", "ReadWriteOnce", false, None, false),
            ("ext4", "ReadWriteMany", false, None, false),
            ("", "ReadWriteMany", false, Some("File"), true),
            ("ext4", "ReadWriteOnce", false, Some("None"), false),
            ("ext4", "ReadWriteOnce", true, Some("File"), false),
        ] {
            let pv = volume(
                json!({"csi": {"driver": "d", "volumeHandle": "h", "fsType": fs_type}, "accessModes": [access]}),
            );
            let wanted = Wanted::persistent(&pv, read_only).unwrap();
            assert_eq!(wanted.takes_group(policy), takes, "{fs_type} {access} {read_only} {policy:?}");
        }
    }

    #[test]
    fn growth_is_seen_until_it_is_refused() {
        for (capacity, known, resizing, grown) in [
            ("2Gi", "1Gi", json!({}), Some(2 << 30)),
            ("2Gi", "1Gi", json!({"storage": "NodeResizePending"}), Some(2 << 30)),
            ("2Gi", "1Gi", json!({"storage": "NodeResizeInfeasible"}), None),
            ("2Gi", "2Gi", json!({}), None),
        ] {
            let pv = volume(json!({"capacity": {"storage": capacity}}));
            let claim = json!({"status": {"capacity": {"storage": known}, "allocatedResourceStatuses": resizing}});
            assert_eq!(growth(&pv, &serde_json::from_value(claim).unwrap()), grown, "{capacity} {known}");
        }
    }
}
