//! What a pod's volumes hold and could hold, for whoever asks: counted by the file system, by walking, or by the driver.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};

use super::{Ready, record_of};
use crate::agent::Context;
use crate::eviction::local;
use crate::spec;

/// How old an answer may be: directories are walked and drivers asked for it.
const FRESH: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

/// Bytes and inodes of one volume; what nobody knows is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub capacity: Option<u64>,
    pub available: Option<u64>,
    pub used: Option<u64>,
    pub inodes: Option<u64>,
    pub inodes_free: Option<u64>,
    pub inodes_used: Option<u64>,
}

/// One volume's numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Counted {
    pub name: String,
    /// Its claim's name, in the pod's namespace.
    pub claim: Option<String>,
    pub at: Timestamp,
    pub usage: Usage,
    /// Its bytes lie on the node's own disk, beside those of other pods.
    pub local: bool,
}

/// The volumes of pods on this node that are at their places, and their last numbers.
#[derive(Default)]
pub struct Places {
    ready: Mutex<HashMap<String, HashMap<String, Ready>>>,
    counted: Mutex<HashMap<String, (Timestamp, Vec<Counted>)>>,
}

impl Places {
    /// A pod's volumes are ready.
    pub fn set(&self, uid: &str, ready: &HashMap<String, Ready>) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.into(), ready.clone());
    }

    /// A pod's volumes are given back.
    pub fn release(&self, uid: &str) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// The names of a pod's volumes that are ready.
    pub fn names(&self, uid: &str) -> Vec<String> {
        self.of(uid).into_keys().collect()
    }

    fn of(&self, uid: &str) -> HashMap<String, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned().unwrap_or_default()
    }
}

/// How a volume is counted.
#[derive(Debug, PartialEq)]
enum How {
    /// A file system of its own.
    FileSystem,
    /// A directory among others.
    Directory,
    /// By its driver.
    Driver,
}

fn how(volume: &Volume, ready: &Ready) -> Option<How> {
    if let Some(empty) = &volume.empty_dir {
        let memory = !empty.medium.as_deref().unwrap_or_default().is_empty();
        return Some(if memory { How::FileSystem } else { How::Directory });
    }
    let written = volume.config_map.is_some() || volume.secret.is_some() || volume.downward_api.is_some();
    if written || volume.projected.is_some() {
        return Some(How::Directory);
    }
    match (ready.driver, ready.local) {
        (true, _) => Some(How::Driver),
        (_, true) if !ready.block => Some(How::FileSystem),
        // A path of the node is the node's, and an image is no volume that fills.
        _ => None,
    }
}

fn file_system(path: &Path) -> Option<Usage> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let unit = stat.fragment_size();
    Some(Usage {
        capacity: Some(stat.blocks() * unit),
        available: Some(stat.blocks_available() * unit),
        used: Some((stat.blocks() - stat.blocks_free()) * unit),
        inodes: Some(stat.files()),
        inodes_free: Some(stat.files_free()),
        inodes_used: Some(stat.files() - stat.files_free()),
    })
}

fn directory(path: &Path) -> Option<Usage> {
    let (used, inodes_used) = local::usage(path);
    Some(Usage { used: Some(used), inodes_used: Some(inodes_used), ..file_system(path)? })
}

async fn count(context: &Context, uid: &str, how: &How, ready: &Ready) -> Option<Usage> {
    let path: PathBuf = ready.path.clone();
    match how {
        How::FileSystem => tokio::task::spawn_blocking(move || file_system(&path)).await.ok()?,
        How::Directory => tokio::task::spawn_blocking(move || directory(&path)).await.ok()?,
        How::Driver => {
            let record = record_of(&context.config.pod_dir(uid), &path)?;
            match context.csi.usage(&record, &path).await {
                Ok(usage) => usage,
                Err(why) => {
                    tracing::debug!(uid, volume = record.name, "a driver does not count its volume: {why}");
                    None
                }
            }
        }
    }
}

/// The numbers of a pod's volumes, at most a minute old.
pub async fn of(context: &Context, pod: &Pod) -> Vec<Counted> {
    let uid = spec::uid(pod);
    let now = Timestamp::now();
    let places = &context.places;
    let known = places.counted.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned();
    if let Some((at, counted)) = known
        && now.duration_since(at) < FRESH
    {
        return counted;
    }
    let ready = places.of(uid);
    let mut out = Vec::new();
    for volume in spec::spec(pod).volumes.iter().flatten() {
        let Some(place) = ready.get(&volume.name) else { continue };
        let Some(how) = how(volume, place) else { continue };
        if let Some(usage) = count(context, uid, &how, place).await {
            let local = how == How::Directory;
            out.push(Counted { name: volume.name.clone(), claim: place.claim.clone(), at: now, usage, local });
        }
    }
    if !ready.is_empty() {
        places.counted.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.into(), (now, out.clone()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn each_kind_is_counted_its_way() {
        let at = |path: &str| Ready::at(path);
        for (volume, ready, expect) in [
            (json!({"emptyDir": {}}), at("/v"), Some(How::Directory)),
            (json!({"emptyDir": {"medium": "Memory"}}), at("/v"), Some(How::FileSystem)),
            (json!({"configMap": {"name": "c"}}), at("/v"), Some(How::Directory)),
            (json!({"hostPath": {"path": "/"}}), at("/"), None),
            (json!({"image": {"reference": "i"}}), at(""), None),
            (
                json!({"persistentVolumeClaim": {"claimName": "c"}}),
                Ready { driver: true, ..at("/v") },
                Some(How::Driver),
            ),
            (
                json!({"persistentVolumeClaim": {"claimName": "c"}}),
                Ready { local: true, ..at("/v") },
                Some(How::FileSystem),
            ),
            (json!({"persistentVolumeClaim": {"claimName": "c"}}), at("/host"), None),
        ] {
            let mut volume: Value = volume;
            volume["name"] = "v".into();
            assert_eq!(how(&serde_json::from_value(volume.clone()).unwrap(), &ready), expect, "{volume}");
        }
    }
}
