//! What the node has granted each pod. A change of a pod's resources is a wish until it is granted here; sums of what is
//! taken count grants, and containers are started with them.
//!
//! A grant is written beside the pod's volumes before it is acted upon, so that an agent that starts anew knows what was
//! granted although the API shows what is wished. Pods that ask for nothing have nothing to be written down.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::quantity;
use crate::spec;

const FILE: &str = "allocated-resources.json";

/// One pod's grant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    /// By container name; containers that ask for nothing are left out.
    containers: BTreeMap<String, ResourceRequirements>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<ResourceRequirements>,
}

fn asks(resources: &ResourceRequirements) -> bool {
    resources.requests.as_ref().is_some_and(|r| !r.is_empty())
        || resources.limits.as_ref().is_some_and(|l| !l.is_empty())
}

/// The two amounts that can change in a living pod.
fn resizable(resources: Option<&ResourceRequirements>) -> [Option<i64>; 4] {
    let of = |list, name| quantity::amount(list, name);
    let (requests, limits) = (resources.and_then(|r| r.requests.as_ref()), resources.and_then(|r| r.limits.as_ref()));
    [of(requests, "cpu"), of(requests, "memory"), of(limits, "cpu"), of(limits, "memory")]
}

impl Allocation {
    /// What the pod's specification asks for.
    pub fn of(pod: &Pod) -> Self {
        let named = spec::all_containers(pod).filter_map(|(_, c)| Some((c.name.clone(), c.resources.clone()?)));
        Self {
            containers: named.filter(|(_, r)| asks(r)).collect(),
            pod: spec::spec(pod).resources.clone().filter(asks),
        }
    }

    fn is_empty(&self) -> bool {
        self.containers.is_empty() && self.pod.is_none()
    }

    /// Whether another grant means the same amounts of what can be resized.
    pub fn equals(&self, other: &Allocation) -> bool {
        let names: HashSet<&String> = self.containers.keys().chain(other.containers.keys()).collect();
        resizable(self.pod.as_ref()) == resizable(other.pod.as_ref())
            && names.into_iter().all(|n| resizable(self.containers.get(n)) == resizable(other.containers.get(n)))
    }

    /// Whether both ask for the same of a resource, container by container.
    pub fn requests_as_much(&self, other: &Allocation, resource: &str) -> bool {
        let of = |grant: &Allocation, name: &String| {
            quantity::amount(grant.containers.get(name).and_then(|r| r.requests.as_ref()), resource)
        };
        self.containers.keys().chain(other.containers.keys()).all(|name| of(self, name) == of(other, name))
    }

    /// The pod as granted.
    pub fn apply(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        if self.equals(&Self::of(pod)) {
            return pod.clone();
        }
        let mut granted = (**pod).clone();
        if let Some(spec) = granted.spec.as_mut() {
            for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
                container.resources = self.containers.get(&container.name).cloned();
            }
            spec.resources = self.pod.clone();
        }
        Arc::new(granted)
    }
}

/// All grants of the node, and who waits for room.
#[derive(Default)]
pub struct Allocations {
    granted: Mutex<HashMap<String, Allocation>>,
    /// Since when.
    deferred: Mutex<HashMap<String, Instant>>,
    /// Who looks for room has it until it is granted.
    judging: Mutex<()>,
}

fn file(config: &Config, uid: &str) -> PathBuf {
    config.pod_dir(uid).join(FILE)
}

/// Replaces the file as a whole: a torn one would be worse than an old one.
fn write(path: &Path, allocation: &Allocation) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, serde_json::to_vec(allocation)?)?;
    std::fs::rename(fresh, path)
}

impl Allocations {
    fn granted(&self) -> std::sync::MutexGuard<'_, HashMap<String, Allocation>> {
        // Entries are whole after every statement.
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a pod on: with what was granted by an earlier agent, else with what it asks for.
    pub fn adopt(&self, config: &Config, pod: &Pod, acknowledged: bool) {
        let asked = Allocation::of(pod);
        if asked.is_empty() {
            return;
        }
        let uid = spec::uid(pod);
        let written = acknowledged.then(|| std::fs::read(file(config, uid)).ok()).flatten();
        let known = written.and_then(|bytes| serde_json::from_slice::<Allocation>(&bytes).ok());
        if known.is_none() {
            self.record(config, uid, &asked);
        }
        self.granted().insert(uid.into(), known.unwrap_or(asked));
    }

    fn record(&self, config: &Config, uid: &str, allocation: &Allocation) {
        if let Err(error) = write(&file(config, uid), allocation) {
            tracing::warn!(uid, "grant not written down: {error}");
        }
    }

    /// What a pod has; what it asks for, where nothing was granted.
    pub fn get(&self, pod: &Pod) -> Allocation {
        self.granted().get(spec::uid(pod)).cloned().unwrap_or_else(|| Allocation::of(pod))
    }

    /// The pod as granted.
    pub fn apply(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        match self.granted().get(spec::uid(pod)) {
            Some(allocation) => allocation.apply(pod),
            None => pod.clone(),
        }
    }

    /// Grants a pod what it now asks for.
    pub fn grant(&self, config: &Config, uid: &str, allocation: Allocation) {
        self.record(config, uid, &allocation);
        self.granted().insert(uid.into(), allocation);
    }

    /// Nobody else looks for room meanwhile.
    pub fn judging(&self) -> std::sync::MutexGuard<'_, ()> {
        self.judging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod waits for room, or no longer does.
    pub fn defer(&self, uid: &str, waits: bool) {
        let mut deferred = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        if waits {
            deferred.entry(uid.into()).or_insert_with(Instant::now);
        } else {
            deferred.remove(uid);
        }
    }

    /// Those who wait for room, and since when.
    pub fn waiting(&self) -> HashMap<String, Instant> {
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A pod is gone.
    pub fn release(&self, uid: &str) {
        self.granted().remove(uid);
        self.defer(uid, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(resources: Value) -> Arc<Pod> {
        let value = json!({"metadata": {"uid": "u"}, "spec": {"containers": [{"name": "a", "resources": resources}, {"name": "b"}]}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn a_wish_is_no_grant() {
        let small = pod(json!({"requests": {"cpu": "1"}}));
        let large = pod(json!({"requests": {"cpu": "2"}}));
        let granted = Allocation::of(&small);
        assert!(granted.equals(&Allocation::of(&pod(json!({"requests": {"cpu": "1000m"}})))));
        assert!(!granted.equals(&Allocation::of(&large)));
        let as_granted = granted.apply(&large);
        assert_eq!(Allocation::of(&as_granted), granted);
        assert!(Arc::ptr_eq(&granted.apply(&small), &small));
    }

    #[test]
    fn grants_survive_the_agent() {
        let dir = std::env::temp_dir().join(format!("kubelet-grants-{}", std::process::id()));
        let config = Config::new("n", &dir, "/s");
        let (small, large) = (pod(json!({"limits": {"memory": "1Mi"}})), pod(json!({"limits": {"memory": "2Mi"}})));
        let first = Allocations::default();
        first.adopt(&config, &small, false);
        let second = Allocations::default();
        second.adopt(&config, &large, true);
        assert_eq!(Allocation::of(&second.apply(&large)), Allocation::of(&small));
        second.grant(&config, "u", Allocation::of(&large));
        let third = Allocations::default();
        third.adopt(&config, &small, true);
        assert_eq!(third.get(&small), Allocation::of(&large));
        third.release("u");
        assert_eq!(third.get(&small), Allocation::of(&small));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
