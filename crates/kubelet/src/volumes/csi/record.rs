//! What of drivers' volumes is on this node, as files beside them. Written before a driver is asked and removed after it
//! has let go, so that whatever happens in between, the next agent knows what to give back.
//!
//! Layout and keys are upstream's: `vol_data.json` in a volume's directory of its pod, and beside a staged volume.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const FILE: &str = "vol_data.json";
/// Below a pod's directory.
const VOLUMES: &str = "volumes/kubernetes.io~csi";

/// A volume of a pod, or one that is staged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    #[serde(rename = "specVolID")]
    pub name: String,
    pub volume_handle: String,
    pub driver_name: String,
    pub node_name: String,
    /// Empty for a volume that is not attached.
    #[serde(rename = "attachmentID")]
    pub attachment: String,
    pub volume_lifecycle_mode: String,
    /// A device instead of a file system.
    pub block: bool,
}

/// A record and the directory it lies in.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub dir: PathBuf,
    pub record: Record,
}

impl Found {
    /// What the driver publishes to.
    pub fn target(&self) -> PathBuf {
        target(&self.dir, self.record.block)
    }
}

/// The directory of a pod's volume.
pub fn dir(pod_dir: &Path, volume: &str) -> PathBuf {
    pod_dir.join(VOLUMES).join(volume)
}

/// What a driver publishes to, in the directory of a pod's volume.
pub fn target(dir: &Path, block: bool) -> PathBuf {
    dir.join(if block { "device" } else { "mount" })
}

/// Writes a record; whole or not at all.
pub fn write(dir: &Path, record: &Record) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let partial = dir.join(format!("{FILE}.part"));
    fs::write(&partial, serde_json::to_vec(record)?)?;
    fs::rename(partial, dir.join(FILE))
}

fn read(dir: PathBuf) -> Option<Found> {
    let record = serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()?;
    Some(Found { dir, record })
}

/// Removes what an unpublished or unstaged volume leaves. Never through a mount: then it is not empty.
pub fn remove(dir: &Path, leftover: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    if leftover.is_dir() {
        gone(fs::remove_dir(leftover))?;
    } else {
        gone(fs::remove_file(leftover))?;
    }
    gone(fs::remove_file(dir.join(FILE)))?;
    gone(fs::remove_dir(dir))
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path())
}

/// The drivers' volumes of a pod.
pub fn of_pod(pod_dir: &Path) -> Vec<Found> {
    entries(&pod_dir.join(VOLUMES)).filter_map(read).collect()
}

/// The drivers' volumes of all pods.
pub fn of_all(root: &Path) -> Vec<Found> {
    entries(&root.join("pods")).flat_map(|pod| of_pod(&pod)).collect()
}

/// What a driver has staged.
pub fn staged(root: &Path, driver: &str) -> Vec<Found> {
    entries(&root.join("plugins/kubernetes.io/csi").join(driver)).filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_until_removed() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("pods/u");
        let record = Record { name: "pv".into(), driver_name: "d".into(), ..Record::default() };
        let at = dir(&pod, "pv");
        write(&at, &record).unwrap();
        fs::create_dir(target(&at, false)).unwrap();
        assert_eq!(of_all(root.path()), [Found { dir: at.clone(), record }]);
        // Something is in it: it stays, and so does its record.
        fs::write(target(&at, false).join("data"), "x").unwrap();
        assert!(remove(&at, &target(&at, false)).is_err());
        assert_eq!(of_pod(&pod).len(), 1);
        fs::remove_file(target(&at, false).join("data")).unwrap();
        remove(&at, &target(&at, false)).unwrap();
        assert!(of_pod(&pod).is_empty() && !at.exists());
    }
}
