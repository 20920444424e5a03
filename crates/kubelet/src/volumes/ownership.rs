//! `fsGroup`: giving a volume's files to a group.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use crate::spec;

const READ_WRITE: u32 = 0o660;
const READ_ONLY: u32 = 0o440;
const SEARCH: u32 = 0o110;
const SET_GROUP: u32 = 0o2000;

/// Gives a tree to a group that may read (and, unless `read_only`, write) it; directories pass the group on. Symbolic
/// links are not followed.
pub fn give_group(path: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    std::os::unix::fs::lchown(path, None, Some(group))?;
    if metadata.file_type().is_symlink() {
        return Ok(());
    }
    let mut mask = if read_only { READ_ONLY } else { READ_WRITE };
    if metadata.is_dir() {
        mask |= SET_GROUP | SEARCH;
        for entry in fs::read_dir(path)? {
            give_group(&entry?.path(), group, read_only)?;
        }
    }
    // A change of owner clears the set-group bit, so the mode comes last.
    fs::set_permissions(path, fs::Permissions::from_mode((metadata.mode() & 0o7777) | mask))
}

/// Whether the top of a tree already is as [`give_group`] leaves it (`fsGroupChangePolicy: OnRootMismatch`).
pub fn root_matches(path: &Path, group: u32) -> bool {
    let wanted = READ_WRITE | SET_GROUP | SEARCH;
    fs::symlink_metadata(path).is_ok_and(|m| m.gid() == group && m.mode() & wanted == wanted)
}

/// Whether a pod wants a volume whose top is right already to be left alone.
pub fn lazily(pod: &Pod) -> bool {
    let context = spec::spec(pod).security_context.as_ref();
    context.and_then(|c| c.fs_group_change_policy.as_deref()) == Some("OnRootMismatch")
}
