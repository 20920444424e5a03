//! Dynamic resource allocation on the node: claims are prepared by their drivers before a pod's containers start, and
//! taken back when its last pod here is over.
//!
//! What was prepared is written down before anybody relies on it, so that an agent that starts anew takes back what an
//! earlier one prepared. It knows devices by what drivers call them; what they are is between driver and engine.

mod state;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::plugins::dra::dra_plugin_client::DraPluginClient;
use ::plugins::dra::{Claim, NodePrepareResourcesRequest, NodeUnprepareResourcesRequest};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use tonic::transport::Channel;

pub use state::{Prepared, PreparedDevice};

use super::within;
use crate::cri;
use crate::spec;
use state::State;

/// A driver may take this long; as upstream.
const CALL: Duration = Duration::from_secs(45);
/// The service as drivers name it when they register.
const SERVICE: &str = "v1.DRAPlugin";

/// The node's claims and their drivers.
pub struct Claims {
    file: PathBuf,
    state: Mutex<State>,
    drivers: Mutex<BTreeMap<String, DraPluginClient<Channel>>>,
    /// One preparation at a time: a claim may be shared by pods that start together.
    preparing: tokio::sync::Mutex<()>,
}

/// The claims a pod refers to: its own name of each, and the claim's. `None` for one that is not made yet.
pub fn claim_names(pod: &Pod) -> Vec<(String, Option<String>)> {
    let status = pod.status.as_ref();
    let statuses = status.and_then(|s| s.resource_claim_statuses.as_deref()).unwrap_or_default();
    let mut out: Vec<(String, Option<String>)> = Vec::new();
    for reference in spec::spec(pod).resource_claims.iter().flatten() {
        let made = || statuses.iter().find(|s| s.name == reference.name);
        match (&reference.resource_claim_name, made()) {
            (Some(name), _) => out.push((reference.name.clone(), Some(name.clone()))),
            // Made from a template; a status without a name says that none is needed.
            (None, Some(made)) => {
                out.extend(made.resource_claim_name.clone().map(|n| (reference.name.clone(), Some(n))))
            }
            (None, None) => out.push((reference.name.clone(), None)),
        }
    }
    if let Some(extended) = status.and_then(|s| s.extended_resource_claim_status.as_ref()) {
        out.push((String::new(), Some(extended.resource_claim_name.clone())));
    }
    out
}

/// The requests of a claim a container uses; an empty one for all of them.
fn requests(pod: &Pod, container: &str) -> Vec<(String, String)> {
    let names = claim_names(pod);
    let claim = |own: &str| names.iter().find(|(n, _)| n == own).and_then(|(_, claim)| claim.clone());
    let found = spec::find_container(pod, container);
    let asked = found.iter().filter_map(|(_, c)| c.resources.as_ref()?.claims.as_ref()).flatten();
    let mut out: Vec<(String, String)> =
        asked.filter_map(|c| Some((claim(&c.name)?, c.request.clone().unwrap_or_default()))).collect();
    let extended = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    if let Some(status) = extended {
        let mine = status.request_mappings.iter().filter(|m| m.container_name == container);
        out.extend(mine.map(|m| (status.resource_claim_name.clone(), m.request_name.clone())));
    }
    out
}

/// Whether a device prepared for these requests is meant: `gpu` covers its alternatives `gpu/large` and `gpu/small`.
fn serves(prepared: &[String], asked: &str) -> bool {
    asked.is_empty() || prepared.iter().any(|r| r == asked || r.split('/').next() == Some(asked))
}

impl Claims {
    /// `file` remembers what was prepared.
    pub fn load(file: impl Into<PathBuf>) -> Self {
        let file = file.into();
        let state = Mutex::new(State::load(&file));
        Self { file, state, drivers: Mutex::default(), preparing: tokio::sync::Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Entries are whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drivers(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, DraPluginClient<Channel>>> {
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Meets a driver.
    pub fn connect(&self, driver: &str, endpoint: &str, versions: &[String]) -> Result<(), String> {
        if !versions.iter().any(|v| v == SERVICE) {
            return Err(format!("none of the versions supported by this driver are usable: {versions:?}"));
        }
        self.drivers().insert(driver.into(), DraPluginClient::new(cri::channel(endpoint)));
        Ok(())
    }

    pub fn lose(&self, driver: &str) {
        self.drivers().remove(driver);
    }

    pub fn has_driver(&self, driver: &str) -> bool {
        self.drivers().contains_key(driver)
    }

    fn driver(&self, name: &str) -> Result<DraPluginClient<Channel>, String> {
        let found = self.drivers().get(name).cloned();
        found.ok_or_else(|| format!("DRA driver {name} is not registered"))
    }

    /// Has a pod's claims prepared by their drivers; what is prepared already only gets one more user.
    pub async fn prepare(&self, pod_uid: &str, claims: &[Arc<ResourceClaim>]) -> Result<(), String> {
        let _turn = self.preparing.lock().await;
        let mut by_driver: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
        for claim in claims {
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            let (name, namespace, uid) =
                (text(&claim.metadata.name), text(&claim.metadata.namespace), text(&claim.metadata.uid));
            let status = claim.status.as_ref();
            let allocation = status
                .and_then(|s| s.allocation.as_ref())
                .ok_or_else(|| format!("ResourceClaim {name} is not allocated yet"))?;
            if !status.and_then(|s| s.reserved_for.as_ref()).into_iter().flatten().any(|r| r.uid == pod_uid) {
                return Err(format!("pod is not allowed to use ResourceClaim {namespace}/{name}"));
            }
            let results = allocation.devices.as_ref().and_then(|d| d.results.as_deref()).unwrap_or_default();
            let mut drivers: Vec<&str> = results.iter().map(|r| r.driver.as_str()).collect();
            drivers.sort_unstable();
            drivers.dedup();
            let mut state = self.state();
            for driver in state.begin(&namespace, &name, &uid, pod_uid, &drivers)? {
                let claim = Claim { namespace: namespace.clone(), uid: uid.clone(), name: name.clone() };
                by_driver.entry(driver).or_default().push(claim);
            }
            // Written before the driver is asked: what it may have begun has to be taken back.
            state.save(&self.file);
        }
        for (driver, claims) in by_driver {
            let mut client = self.driver(&driver)?;
            let asked: Vec<(String, String)> = claims.iter().map(|c| (c.uid.clone(), c.name.clone())).collect();
            let answer = within(CALL, client.node_prepare_resources(NodePrepareResourcesRequest { claims }))
                .await
                .map_err(|e| format!("NodePrepareResources: {e}"))?;
            for (uid, name) in asked {
                let result =
                    answer.claims.get(&uid).ok_or_else(|| format!("NodePrepareResources left out claim {name}"))?;
                if !result.error.is_empty() {
                    return Err(format!("NodePrepareResources failed for ResourceClaim {name}: {}", result.error));
                }
                self.state().done(&uid, &driver, &result.devices);
            }
            self.state().save(&self.file);
        }
        Ok(())
    }

    /// The CDI names of the devices a container uses.
    pub fn cdi_ids(&self, pod: &Pod, container: &str) -> Vec<String> {
        let mut out: Vec<String> =
            self.devices_of(pod, container).into_iter().flat_map(|(_, _, device)| device.cdi_ids).collect();
        let mut seen = std::collections::HashSet::new();
        out.retain(|id| seen.insert(id.clone()));
        out
    }

    /// The devices a container uses: claim, driver, device.
    pub fn devices_of(&self, pod: &Pod, container: &str) -> Vec<(String, String, PreparedDevice)> {
        let asked = requests(pod, container);
        if asked.is_empty() {
            return Vec::new();
        }
        let state = self.state();
        let mut out = Vec::new();
        for (name, request) in asked {
            for (driver, device) in state.devices(spec::namespace(pod), &name) {
                if serves(&device.requests, &request) {
                    out.push((name.clone(), driver.clone(), device.clone()));
                }
            }
        }
        out
    }

    /// A pod is over: claims nobody here uses any more are given back.
    pub async fn release(&self, pod_uid: &str) -> Result<(), String> {
        if !self.state().uses(pod_uid) {
            return Ok(());
        }
        let _turn = self.preparing.lock().await;
        let unused = self.state().leave(pod_uid);
        let mut by_driver: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
        for prepared in &unused {
            for driver in prepared.drivers.keys() {
                by_driver.entry(driver.clone()).or_default().push(Claim {
                    namespace: prepared.namespace.clone(),
                    uid: prepared.uid.clone(),
                    name: prepared.name.clone(),
                });
            }
        }
        for (driver, claims) in by_driver {
            let mut client = self.driver(&driver)?;
            let asked: Vec<(String, String)> = claims.iter().map(|c| (c.uid.clone(), c.name.clone())).collect();
            let answer = within(CALL, client.node_unprepare_resources(NodeUnprepareResourcesRequest { claims }))
                .await
                .map_err(|e| format!("NodeUnprepareResources: {e}"))?;
            for (uid, name) in asked {
                match answer.claims.get(&uid) {
                    Some(result) if result.error.is_empty() => {}
                    Some(result) => {
                        return Err(format!(
                            "NodeUnprepareResources failed for ResourceClaim {name}: {}",
                            result.error
                        ));
                    }
                    None => return Err(format!("NodeUnprepareResources left out claim {name}")),
                }
            }
        }
        let mut state = self.state();
        state.forget(pod_uid);
        state.save(&self.file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_uses_what() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "n"},
            "spec": {
                "resourceClaims": [{"name": "own", "resourceClaimName": "shared"}, {"name": "made", "resourceClaimTemplateName": "t"},
                    {"name": "none", "resourceClaimTemplateName": "t"}, {"name": "later", "resourceClaimTemplateName": "t"}],
                "containers": [{"name": "a", "resources": {"claims": [{"name": "own"}, {"name": "made", "request": "gpu"}]}}, {"name": "b"}]},
            "status": {"resourceClaimStatuses": [{"name": "made", "resourceClaimName": "made-x"}, {"name": "none"}],
                "extendedResourceClaimStatus": {"resourceClaimName": "ext", "requestMappings": [{"containerName": "b", "resourceName": "x/y", "requestName": "r0"}]}}
        }))
        .unwrap();
        let names: Vec<_> = claim_names(&pod).into_iter().map(|(_, c)| c).collect();
        let some = |t: &str| Some(t.to_string());
        assert_eq!(names, [some("shared"), some("made-x"), None, some("ext")]);
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        assert_eq!(requests(&pod, "a"), [pair("shared", ""), pair("made-x", "gpu")]);
        assert_eq!(requests(&pod, "b"), [pair("ext", "r0")]);
        for (prepared, asked, expect) in
            [("gpu", "", true), ("gpu", "gpu", true), ("gpu/large", "gpu", true), ("gpu", "nic", false)]
        {
            assert_eq!(serves(&[prepared.to_string()], asked), expect, "{prepared} {asked}");
        }
    }
}
