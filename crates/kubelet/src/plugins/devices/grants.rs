//! Which container has which devices, and the file that remembers it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ::plugins::device::ContainerAllocateResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde::{Deserialize, Serialize};

/// Below the device plugins' directory.
pub const FILE: &str = "grants.json";

/// Devices of one resource in one container, and what the plugin said it needs to use them.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    pub ids: Vec<String>,
    pub response: ContainerAllocateResponse,
}

/// A grant as it is written down.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    pod_uid: String,
    container: String,
    resource: String,
    device_ids: Vec<String>,
    /// The plugin's answer, as it came.
    response: String,
}

/// By pod, container and resource.
#[derive(Default)]
pub struct Grants(BTreeMap<String, BTreeMap<String, BTreeMap<String, Grant>>>);

impl Grants {
    /// What the file holds; nothing, where there is none or it cannot be read: then plugins are asked anew.
    pub fn load(path: &Path) -> Self {
        let mut out = Self::default();
        let Ok(bytes) = std::fs::read(path) else { return out };
        let entries: Vec<Entry> = match serde_json::from_slice(&bytes) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::error!(file = %path.display(), "device grants are not readable: {error}");
                return out;
            }
        };
        for entry in entries {
            let response = STANDARD.decode(&entry.response).unwrap_or_default();
            let response = ContainerAllocateResponse::decode(response.as_slice()).unwrap_or_default();
            out.put(&entry.pod_uid, &entry.container, &entry.resource, Grant { ids: entry.device_ids, response });
        }
        out
    }

    /// Replaces the file as a whole.
    pub fn save(&self, path: &Path) {
        let entries: Vec<Entry> = self
            .each()
            .map(|(pod_uid, container, resource, grant)| Entry {
                pod_uid: pod_uid.into(),
                container: container.into(),
                resource: resource.into(),
                device_ids: grant.ids.clone(),
                response: STANDARD.encode(grant.response.encode_to_vec()),
            })
            .collect();
        let fresh = path.with_extension("new");
        let written = serde_json::to_vec(&entries)
            .map_err(std::io::Error::from)
            .and_then(|bytes| std::fs::write(&fresh, bytes))
            .and_then(|()| std::fs::rename(&fresh, path));
        if let Err(error) = written {
            tracing::warn!(file = %path.display(), "device grants not written down: {error}");
        }
    }

    fn each(&self) -> impl Iterator<Item = (&str, &str, &str, &Grant)> {
        self.0.iter().flat_map(|(pod, containers)| {
            containers.iter().flat_map(move |(container, resources)| {
                resources
                    .iter()
                    .map(move |(resource, grant)| (pod.as_str(), container.as_str(), resource.as_str(), grant))
            })
        })
    }

    pub fn put(&mut self, pod: &str, container: &str, resource: &str, grant: Grant) {
        let container = self.0.entry(pod.into()).or_default().entry(container.into()).or_default();
        container.insert(resource.into(), grant);
    }

    pub fn of(&self, pod: &str, container: &str) -> BTreeMap<String, Grant> {
        self.0.get(pod).and_then(|p| p.get(container)).cloned().unwrap_or_default()
    }

    /// The devices of a resource that somebody has.
    pub fn taken(&self, resource: &str) -> BTreeSet<String> {
        self.each().filter(|(_, _, r, _)| *r == resource).flat_map(|(_, _, _, g)| g.ids.iter().cloned()).collect()
    }

    pub fn resources(&self) -> BTreeSet<String> {
        self.each().map(|(_, _, resource, _)| resource.to_string()).collect()
    }

    /// True when the pod had any.
    pub fn release(&mut self, pod: &str) -> bool {
        self.0.remove(pod).is_some()
    }
}
