//! Aggregation: API groups that other servers answer for.
//!
//! An APIService says who serves a group's version: this server, or a Service behind which an extension server stands.
//! [`registration`] writes the APIServices of what is served here; [`availability`] follows them all, asks extension
//! servers whether they are there and what they serve; [`proxy`] carries calls to them under the caller's name;
//! [`documents`] puts what they publish beside our own. What they serve is looked up in one immutable snapshot
//! ([`Services`]); what an extension server does with a call is its own business.

pub mod availability;
pub mod calls;
pub mod documents;
pub mod proxy;
pub mod registration;

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use meta::{GroupVersion, Value};
use rustls::ClientConfig;

use crate::catalog::Catalog;
use crate::discovery::version_priority;

pub const GROUP: &str = "apiregistration.k8s.io";
pub const PLURAL: &str = "apiservices";

/// The Service an extension server stands behind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Backend {
    pub namespace: String,
    pub name: String,
    pub port: u16,
}

impl Backend {
    /// The name its certificate must be for.
    pub fn host(&self) -> String {
        format!("{}.{}.svc", self.name, self.namespace)
    }
}

/// A group's version that an extension server answers for.
pub struct Remote {
    pub gv: GroupVersion,
    pub backend: Backend,
    /// How to trust it and present ourselves; or why that cannot be done.
    pub tls: Result<Arc<ClientConfig>, String>,
    pub available: bool,
    /// What it published when it was last asked.
    pub documents: Arc<documents::Documents>,
}

/// Where a group and a version of it stand among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority {
    pub group: i64,
    pub version: i64,
}

/// All APIServices at one time.
#[derive(Default)]
pub struct Services {
    /// Grows with each change of what is served or published.
    pub generation: u64,
    priorities: HashMap<GroupVersion, Priority>,
    remotes: HashMap<GroupVersion, Arc<Remote>>,
}

impl Services {
    pub fn new(generation: u64, priorities: HashMap<GroupVersion, Priority>, remotes: Vec<Arc<Remote>>) -> Self {
        let remotes = remotes.into_iter().map(|remote| (remote.gv.clone(), remote)).collect();
        Self { generation, priorities, remotes }
    }

    pub fn remote(&self, group: &str, version: &str) -> Option<&Arc<Remote>> {
        if self.remotes.is_empty() {
            return None;
        }
        self.remotes.get(&GroupVersion::new(group, version))
    }

    /// Extension servers' versions, in a stable order.
    pub fn remotes(&self) -> Vec<&Arc<Remote>> {
        let mut all: Vec<_> = self.remotes.values().collect();
        all.sort_by_key(|remote| remote.gv.to_string());
        all
    }

    fn priority(&self, gv: &GroupVersion, custom: bool) -> Priority {
        self.priorities.get(gv).copied().unwrap_or_else(|| registration::priority(gv, custom))
    }

    /// The groups that are served, whoever serves them, in order of priority, each with its versions in order of preference.
    pub fn groups(&self, catalog: &Catalog) -> Vec<(String, Vec<String>)> {
        let mut found: Vec<(GroupVersion, Priority)> = Vec::new();
        let mut add = |gv: GroupVersion, custom: bool| {
            if !found.iter().any(|(known, _)| *known == gv) {
                let priority = self.priority(&gv, custom);
                found.push((gv, priority));
            }
        };
        for served in catalog.kinds() {
            for version in served.resource.versions.iter().filter(|v| v.served) {
                add(served.resource.group_version(&version.name), served.resource.custom);
            }
        }
        self.remotes.keys().for_each(|gv| add(gv.clone(), true));
        let own = |gv: &GroupVersion| &*gv.group != GROUP;
        found.sort_by_cached_key(|(gv, p)| (own(gv), -p.group, format!("{}.{}", gv.version, gv.group)));
        let mut groups: Vec<(String, Vec<(String, i64)>)> = Vec::new();
        for (gv, priority) in found {
            let at = groups.iter().position(|(group, _)| **group == *gv.group).unwrap_or_else(|| {
                groups.push((gv.group.to_string(), Vec::new()));
                groups.len() - 1
            });
            groups[at].1.push((gv.version.to_string(), priority.version));
        }
        let ordered = |mut versions: Vec<(String, i64)>| {
            versions.sort_by_key(|(v, priority)| std::cmp::Reverse((*priority, version_priority(v))));
            versions.into_iter().map(|(v, _)| v).collect()
        };
        groups.into_iter().map(|(group, versions)| (group, ordered(versions))).collect()
    }
}

/// The snapshot in force.
#[derive(Default)]
pub struct Aggregation {
    services: RwLock<Arc<Services>>,
}

impl Aggregation {
    pub fn services(&self) -> Arc<Services> {
        self.services.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub(crate) fn publish(&self, services: Services) {
        *self.services.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(services);
    }
}

/// What an APIService's spec says.
pub(crate) struct Spec {
    pub gv: GroupVersion,
    pub priority: Priority,
    pub backend: Option<Backend>,
    pub ca_bundle: Option<String>,
    pub insecure: bool,
}

impl Spec {
    pub fn of(api_service: &Value) -> Self {
        let spec = &api_service["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let service = spec["service"].as_object();
        Self {
            gv: GroupVersion::new(
                spec["group"].as_str().unwrap_or_default(),
                spec["version"].as_str().unwrap_or_default(),
            ),
            priority: Priority {
                group: spec["groupPriorityMinimum"].as_i64().unwrap_or(0),
                version: spec["versionPriority"].as_i64().unwrap_or(0),
            },
            backend: service.map(|_| Backend {
                namespace: text(&spec["service"]["namespace"]),
                name: text(&spec["service"]["name"]),
                port: spec["service"]["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443),
            }),
            ca_bundle: spec["caBundle"].as_str().filter(|b| !b.is_empty()).map(String::from),
            insecure: spec["insecureSkipTLSVerify"] == true,
        }
    }
}

#[cfg(test)]
mod tests;
