//! Bounds on what a pod may keep on the node's disk: `sizeLimit` of its emptyDir volumes and `ephemeral-storage` limits.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use crate::quantity;
use crate::spec;

/// Entries looked at in one directory tree; a larger one is counted as far as this.
const MAX_ENTRIES: usize = 1_000_000;

/// Whether the pod has any bound to be kept to.
pub fn is_bounded(pod: &Pod) -> bool {
    let limited = |c: &k8s_openapi::api::core::v1::Container| {
        quantity::amount(c.resources.as_ref().and_then(|r| r.limits.as_ref()), "ephemeral-storage").is_some()
    };
    spec::all_containers(pod).any(|(_, c)| limited(c)) || sized(pod).next().is_some()
}

/// The emptyDir volumes on disk that have a limit.
fn sized(pod: &Pod) -> impl Iterator<Item = (&str, &str, u64)> {
    spec::spec(pod).volumes.iter().flatten().filter_map(|v| {
        let source = v.empty_dir.as_ref().filter(|e| e.medium.as_deref().unwrap_or_default().is_empty())?;
        let limit = source.size_limit.as_ref()?;
        let bytes = quantity::value(limit);
        (bytes > 0).then_some((v.name.as_str(), limit.0.as_str(), bytes as u64))
    })
}

/// Bytes and entries a tree takes on its own file system; what cannot be read is not counted.
pub fn usage(path: &Path) -> (u64, u64) {
    let (mut bytes, mut entries) = (0, 0);
    let mut left = vec![path.to_path_buf()];
    let device = fs::symlink_metadata(path).map(|m| m.dev()).ok();
    while let Some(path) = left.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if Some(meta.dev()) != device || entries as usize >= MAX_ENTRIES {
            continue;
        }
        entries += 1;
        bytes += meta.blocks() * 512;
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
        }
    }
    (bytes, entries)
}

/// What each part of a pod uses on disk.
#[derive(Default)]
pub struct Parts {
    /// emptyDir volumes on disk, by name.
    pub volumes: Vec<(String, u64)>,
    /// Writable layer and logs, by container.
    pub containers: Vec<(String, u64)>,
}

/// Why the pod has to go, if it does: the bound it is over, as upstream counts them, and the message.
pub fn excess(pod: &Pod, parts: &Parts) -> Option<(&'static str, String)> {
    for (name, text, limit) in sized(pod) {
        let used = parts.volumes.iter().find(|(n, _)| n == name).map_or(0, |(_, used)| *used);
        if used > limit {
            let why = format!("Usage of EmptyDir volume {name:?} exceeds the limit {text:?}. ");
            return Some(("emptydirfs.limit", why));
        }
    }
    let limit_of = |c: &k8s_openapi::api::core::v1::Container| {
        quantity::amount(c.resources.as_ref().and_then(|r| r.limits.as_ref()), "ephemeral-storage")
    };
    let all: Vec<_> = spec::all_containers(pod).map(|(_, c)| (c, limit_of(c))).collect();
    let used: u64 = parts.volumes.iter().chain(&parts.containers).map(|(_, used)| used).sum();
    let total = spec::resources::pod_total(pod, true).get("ephemeral-storage").copied();
    if all.iter().all(|(_, l)| l.is_some())
        && let Some(total) = total.filter(|t| *t > 0 && used > *t as u64)
    {
        let why = format!("Pod ephemeral local storage usage exceeds the total limit of containers {total}. ");
        return Some(("ephemeralpodfs.limit", why));
    }
    all.iter().find_map(|(c, limit)| {
        let limit = (*limit)?;
        let used = parts.containers.iter().find(|(n, _)| *n == c.name).map_or(0, |(_, used)| *used);
        let why = || format!("Container {} exceeded its local ephemeral storage limit \"{limit}\". ", c.name);
        (used > limit as u64).then(|| ("ephemeralcontainerfs.limit", why()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bounds() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Ki"}}, {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1"}}],
            "containers": [{"name": "a", "resources": {"limits": {"ephemeral-storage": "2Ki"}}}, {"name": "b"}]}}))
        .unwrap();
        assert!(is_bounded(&pod));
        for (volume, container, expect) in [
            (1024, 2048, None),
            (1025, 0, Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Ki\". ")),
            (0, 2049, Some("Container a exceeded its local ephemeral storage limit \"2048\". ")),
        ] {
            let parts = Parts { volumes: vec![("v".into(), volume)], containers: vec![("a".into(), container)] };
            assert_eq!(excess(&pod, &parts).map(|(_, why)| why).as_deref(), expect);
        }
    }
}
