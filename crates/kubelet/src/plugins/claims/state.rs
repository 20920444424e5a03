//! What was prepared for whom, and the file that remembers it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ::plugins::dra::Device;
use serde::{Deserialize, Serialize};

/// One device of a prepared claim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreparedDevice {
    pub requests: Vec<String>,
    pub pool: String,
    pub device: String,
    pub cdi_ids: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_id: Option<String>,
}

/// One claim in use on this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Prepared {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pods: BTreeSet<String>,
    /// By driver; `None` while the driver has not said that it is done.
    pub drivers: BTreeMap<String, Option<Vec<PreparedDevice>>>,
}

/// All claims, by uid.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct State(BTreeMap<String, Prepared>);

impl State {
    /// What the file holds; an unreadable one is said so and counts as empty.
    pub fn load(path: &Path) -> Self {
        let Ok(bytes) = std::fs::read(path) else { return Self::default() };
        serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::error!(file = %path.display(), "prepared claims are not readable: {error}");
            Self::default()
        })
    }

    /// Replaces the file as a whole.
    pub fn save(&self, path: &Path) {
        let fresh = path.with_extension("new");
        let written = serde_json::to_vec(self)
            .map_err(std::io::Error::from)
            .and_then(|bytes| std::fs::write(&fresh, bytes))
            .and_then(|()| std::fs::rename(&fresh, path));
        if let Err(error) = written {
            tracing::warn!(file = %path.display(), "prepared claims not written down: {error}");
        }
    }

    /// Notes that a pod uses a claim: the drivers that still have to prepare it.
    pub fn begin(
        &mut self,
        namespace: &str,
        name: &str,
        uid: &str,
        pod: &str,
        drivers: &[&str],
    ) -> Result<Vec<String>, String> {
        let same = |c: &&Prepared| c.namespace == namespace && c.name == name && c.uid != uid;
        if let Some(old) = self.0.values().find(same) {
            return Err(format!("old ResourceClaim with same name {name} and different UID {} still exists", old.uid));
        }
        let prepared = self.0.entry(uid.into()).or_insert_with(|| Prepared {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
            pods: BTreeSet::new(),
            drivers: BTreeMap::new(),
        });
        prepared.pods.insert(pod.into());
        for driver in drivers {
            prepared.drivers.entry((*driver).into()).or_default();
        }
        Ok(prepared.drivers.iter().filter(|(_, done)| done.is_none()).map(|(driver, _)| driver.clone()).collect())
    }

    /// A driver is done with a claim.
    pub fn done(&mut self, uid: &str, driver: &str, devices: &[Device]) {
        let Some(prepared) = self.0.get_mut(uid) else { return };
        let devices = devices.iter().map(|d| PreparedDevice {
            requests: d.request_names.clone(),
            pool: d.pool_name.clone(),
            device: d.device_name.clone(),
            cdi_ids: d.cdi_device_ids.clone(),
            share_id: d.share_id.clone(),
        });
        prepared.drivers.insert(driver.into(), Some(devices.collect()));
    }

    /// A claim's devices, with their drivers.
    pub fn devices<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> impl Iterator<Item = (&'a String, &'a PreparedDevice)> {
        let of = self.0.values().filter(move |c| c.namespace == namespace && c.name == name);
        of.flat_map(|c| &c.drivers).flat_map(|(driver, list)| list.iter().flatten().map(move |d| (driver, d)))
    }

    pub fn uses(&self, pod: &str) -> bool {
        self.0.values().any(|c| c.pods.contains(pod))
    }

    /// The claims that only this pod uses.
    pub fn leave(&self, pod: &str) -> Vec<Prepared> {
        self.0.values().filter(|c| c.pods.len() == 1 && c.pods.contains(pod)).cloned().collect()
    }

    /// The pod uses none any more; claims without users are forgotten.
    pub fn forget(&mut self, pod: &str) {
        self.0.retain(|_, claim| {
            claim.pods.remove(pod);
            !claim.pods.is_empty()
        });
    }
}
