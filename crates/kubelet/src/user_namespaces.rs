//! Ids for pods with a user namespace of their own (`hostUsers: false`): each gets a range of the node's that no other
//! pod has, and keeps it across restarts of the agent.
//!
//! The node's ranges are those `/etc/subuid` and `/etc/subgid` give the user `kubelet`, else everything behind the first
//! 65,536 ids for as many pods as the node takes. A pod's range is written in its directory and goes with it.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config::Config;
use crate::cri::v1::{IdMapping, NamespaceMode, UserNamespace};
use crate::spec;

/// Ids of one pod unless the node says otherwise, and what all ranges are multiples of; as many as POSIX users have.
const LENGTH: u32 = 65_536;
const FILE: &str = "userns";

/// Whether the pod asks for users of its own.
pub fn wanted(pod: &Pod) -> bool {
    spec::spec(pod).host_users == Some(false)
}

/// The ids of the node, in ranges of so many.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Supply {
    first: u32,
    ranges: u32,
    length: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

/// The range a file of subordinate ids gives a user.
fn subordinate(text: &str, user: &str) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == user).then_some(())?;
        Some((fields.next()?.trim().parse().ok()?, fields.next()?.trim().parse().ok()?))
    })
}

fn supply(max_pods: u32, each: u32, subuid: &str, subgid: &str) -> Result<Supply, String> {
    match (subordinate(subuid, "kubelet"), subordinate(subgid, "kubelet")) {
        (None, None) => Ok(Supply { first: each, ranges: max_pods.min(u32::MAX / each - 1), length: each }),
        (Some(uids), Some(gids)) if uids == gids => {
            let (first, length) = uids;
            if first < LENGTH || first % LENGTH != 0 || length % LENGTH != 0 {
                return Err(format!(
                    "the ids of user kubelet must begin at and be a multiple of {LENGTH}, and not be the first: {first}:{length}"
                ));
            }
            if length / each < max_pods {
                return Err(format!("the ids of user kubelet are too few for {max_pods} pods of {each}: {length}"));
            }
            Ok(Supply { first, ranges: length / each, length: each })
        }
        _ => Err("user kubelet must have the same ids in /etc/subuid and /etc/subgid".into()),
    }
}

/// Who has which range.
pub struct UserNamespaces {
    supply: Result<Supply, String>,
    /// First id and number of each pod's.
    taken: Mutex<HashMap<String, (u32, u32)>>,
}

impl UserNamespaces {
    /// Takes over what pods of an earlier agent have.
    pub fn load(config: &Config) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let supply = supply(config.max_pods, config.ids_per_pod, &read("/etc/subuid"), &read("/etc/subgid"));
        let mut taken = HashMap::new();
        for entry in fs::read_dir(config.root_dir.join("pods")).into_iter().flatten().flatten() {
            let record = fs::read(entry.path().join(FILE)).ok();
            let record = record.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            if let Some(range) = record.and_then(|r| r.uid_mappings.first().map(|m| (m.host_id, m.length))) {
                taken.insert(entry.file_name().to_string_lossy().into_owned(), range);
            }
        }
        Self { supply, taken: Mutex::new(taken) }
    }

    fn path(config: &Config, uid: &str) -> PathBuf {
        config.pod_dir(uid).join(FILE)
    }

    /// The pod's range, found or given now.
    fn range(&self, config: &Config, uid: &str) -> Result<(u32, u32), String> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(range) = taken.get(uid) {
            return Ok(*range);
        }
        let Supply { first, ranges, length } = self.supply.clone()?;
        // Pods of an earlier configuration may have more ids, or fewer.
        let meets = |a: u32, (b, of_b): (u32, u32)| u64::from(a) < u64::from(b) + u64::from(of_b) && b < a + length;
        let first = (0..ranges)
            .map(|n| first + n * length)
            .find(|first| !taken.values().any(|t| meets(*first, *t)))
            .ok_or("could not find an empty slot to allocate a user namespace")?;
        let mapping = json!([{"hostId": first, "containerId": 0, "length": length}]);
        let record = json!({"uidMappings": mapping, "gidMappings": mapping});
        fs::create_dir_all(config.pod_dir(uid))
            .and_then(|()| fs::write(Self::path(config, uid), record.to_string()))
            .map_err(|e| format!("user namespace not written down: {e}"))?;
        taken.insert(uid.into(), (first, length));
        Ok((first, length))
    }

    /// What CRI is told of the pod's users; `None` for one that has the node's.
    pub fn of(&self, config: &Config, pod: &Pod) -> Result<Option<UserNamespace>, String> {
        if !wanted(pod) {
            return Ok(None);
        }
        let (host_id, length) = self.range(config, spec::uid(pod))?;
        let ids = vec![IdMapping { host_id, container_id: 0, length }];
        Ok(Some(UserNamespace { mode: NamespaceMode::Pod as i32, uids: ids.clone(), gids: ids }))
    }

    /// A pod is gone.
    pub fn release(&self, uid: &str) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supplies() {
        for (each, subuid, subgid, expect) in [
            (LENGTH, "", "", Some((65_536, 110))),
            (2 * LENGTH, "", "", Some((131_072, 110))),
            (LENGTH, "other:1:2\n", "other:1:2\n", Some((65_536, 110))),
            (LENGTH, "kubelet:65536:7208960\n", "kubelet:65536:7208960\n", Some((65_536, 110))),
            (2 * LENGTH, "kubelet:65536:7208960\n", "kubelet:65536:7208960\n", None),
            (LENGTH, "kubelet:65536:65536\n", "kubelet:65536:65536\n", None),
            (LENGTH, "kubelet:65537:7208960\n", "kubelet:65537:7208960\n", None),
            (LENGTH, "kubelet:65536:7208960\n", "", None),
        ] {
            let got = supply(110, each, subuid, subgid).ok().map(|s| (s.first, s.ranges));
            assert_eq!(got, expect, "{subuid:?} {subgid:?}");
        }
    }

    #[test]
    fn ranges_are_kept_and_given_back() {
        let dir = std::env::temp_dir().join(format!("kubelet-users-{}", std::process::id()));
        let mut config = Config::new("n", &dir, "/s");
        let supply = Supply { first: LENGTH, ranges: 2, length: LENGTH };
        let users = UserNamespaces { supply: Ok(supply), taken: Mutex::default() };
        assert_eq!(users.range(&config, "a"), Ok((LENGTH, LENGTH)));
        assert_eq!(users.range(&config, "b"), Ok((2 * LENGTH, LENGTH)));
        assert!(users.range(&config, "c").is_err());
        config.ids_per_pod = 2 * LENGTH;
        let wider = UserNamespaces::load(&config);
        assert_eq!(wider.range(&config, "b"), Ok((2 * LENGTH, LENGTH)));
        assert_eq!(wider.range(&config, "d"), Ok((4 * LENGTH, 2 * LENGTH)), "the first is in use");
        users.release("a");
        assert_eq!(users.range(&config, "c"), Ok((LENGTH, LENGTH)));
        fs::remove_dir_all(dir).unwrap();
    }
}
