//! Device plugins: which devices the node has, and which container has which.
//!
//! A plugin registers at the agent's socket (or in the registry directory), tells of its devices in a stream, and says
//! on allocation what a container needs to use them. Grants are written down before they are acted upon, so that an agent
//! that starts anew gives no device away twice. It guarantees that a device belongs to one pod at a time; which of several
//! free ones is best is the plugin's to prefer.

mod grants;
mod register;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::plugins::device::device_plugin_client::DevicePluginClient;
use ::plugins::device::{
    AllocateRequest, ContainerAllocateRequest, ContainerPreferredAllocationRequest, Device, DevicePluginOptions,
    PreStartContainerRequest, PreferredAllocationRequest,
};
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;

pub use grants::{Grant, Grants};
pub use register::serve;

use super::within;
use crate::metrics::{Metrics, families};
use crate::quantity;
use crate::spec::{self, Kind};
use crate::topology::hint::Mask;
use crate::topology::{APART, DeviceView};

/// A plugin may take this long to answer; as upstream waits for PreStartContainer.
const CALL: Duration = Duration::from_secs(30);
/// How long the devices of a plugin that went are still counted as the node's, though not as usable.
const REMEMBERED: Duration = Duration::from_secs(300);
const HEALTHY: &str = "Healthy";

/// One resource's plugin and its devices.
struct Plugin {
    client: DevicePluginClient<Channel>,
    options: DevicePluginOptions,
    devices: BTreeMap<String, Device>,
    /// When its stream ended.
    gone: Option<Instant>,
    _stream: AbortOnDropHandle<()>,
}

impl Plugin {
    fn healthy(&self) -> BTreeSet<String> {
        if self.gone.is_some() {
            return BTreeSet::new();
        }
        self.devices.values().filter(|d| d.health == HEALTHY).map(|d| d.id.clone()).collect()
    }
}

#[derive(Default)]
struct State {
    plugins: BTreeMap<String, Plugin>,
    grants: Grants,
    /// Resources the node once had: their amounts in its status must become zero.
    once: BTreeSet<String>,
}

type Changed = Arc<dyn Fn() + Send + Sync>;

/// The node's devices.
#[derive(Clone)]
pub struct Devices {
    dir: PathBuf,
    state: Arc<Mutex<State>>,
    changed: Changed,
    /// One allocation at a time: choosing and granting have calls to the plugin between them.
    allocating: Arc<tokio::sync::Mutex<()>>,
    metrics: Arc<Metrics>,
}

/// A number of devices of each resource.
pub type Amounts = BTreeMap<String, i64>;

/// Whether a resource can be a plugin's: neither the platform's own nor a quota's name.
pub fn is_extended(resource: &str) -> bool {
    resource.split_once('/').is_some_and(|(domain, name)| {
        !name.is_empty() && !domain.ends_with("kubernetes.io") && !domain.starts_with("requests.")
    })
}

impl Devices {
    /// `dir` holds the agent's socket and the plugins'; `changed` is called when the node's devices change.
    pub fn new(dir: impl Into<PathBuf>, changed: Changed, metrics: Arc<Metrics>) -> Self {
        let dir = dir.into();
        let grants = Grants::load(&dir.join(grants::FILE));
        let once = grants.resources();
        let state = State { grants, once, ..State::default() };
        Self { dir, state: Arc::new(Mutex::new(state)), changed, allocating: Arc::default(), metrics }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Entries are whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the node has, and what of it can be used.
    pub fn amounts(&self) -> (Amounts, Amounts) {
        let mut state = self.state();
        let gone = |p: &Plugin| p.gone.is_some_and(|at| at.elapsed() > REMEMBERED);
        state.plugins.retain(|_, p| !gone(p));
        let (mut capacity, mut allocatable) = (Amounts::new(), Amounts::new());
        for resource in &state.once {
            capacity.insert(resource.clone(), 0);
            allocatable.insert(resource.clone(), 0);
        }
        for (resource, plugin) in &state.plugins {
            capacity.insert(resource.clone(), plugin.devices.len() as i64);
            allocatable.insert(resource.clone(), plugin.healthy().len() as i64);
        }
        (capacity, allocatable)
    }

    /// All devices by resource, for those who watch the node's inventory.
    pub fn inventory(&self) -> BTreeMap<String, Vec<Device>> {
        self.state().plugins.iter().map(|(r, p)| (r.clone(), p.devices.values().cloned().collect())).collect()
    }

    /// What a container was given, by resource.
    pub fn granted(&self, pod_uid: &str, container: &str) -> BTreeMap<String, Grant> {
        self.state().grants.of(pod_uid, container)
    }

    /// The health of a container's devices, by resource and id; `None` where nobody knows it any more.
    pub fn health(&self, pod_uid: &str, container: &str) -> BTreeMap<String, Vec<(String, Option<bool>)>> {
        let state = self.state();
        let of = |resource: &str, id: &str| {
            let plugin = state.plugins.get(resource)?;
            Some(plugin.gone.is_none() && plugin.devices.get(id)?.health == HEALTHY)
        };
        let granted = state.grants.of(pod_uid, container).into_iter();
        granted.map(|(r, g)| (r.clone(), g.ids.iter().map(|id| (id.clone(), of(&r, id))).collect())).collect()
    }

    /// All devices with their places, and those that are free, by resource.
    pub fn view(&self) -> DeviceView {
        let state = self.state();
        let of = |(resource, plugin): (&String, &Plugin)| {
            let all = plugin.devices.values().map(|d| (d.id.clone(), place(d))).collect();
            let taken = state.grants.taken(resource);
            let free = plugin.healthy().into_iter().filter(|id| !taken.contains(id)).collect();
            (resource.clone(), (all, free))
        };
        state.plugins.iter().map(of).collect()
    }

    /// Gives a pod's containers the devices they ask for; what is already theirs stays theirs. `at` says where a
    /// container's should be, and whether nowhere else will do.
    pub async fn allocate(&self, pod: &Pod, at: impl Fn(&str) -> Option<(Mask, bool)>) -> Result<(), String> {
        let asked = |c: &k8s_openapi::api::core::v1::Container| -> Vec<(String, usize)> {
            let limits = c.resources.as_ref().and_then(|r| r.limits.as_ref());
            let extended = limits.into_iter().flatten().filter(|(r, _)| is_extended(r));
            let counted = extended.map(|(r, q)| (r.clone(), quantity::value(q).max(0) as usize));
            counted.filter(|(r, n)| *n > 0 && self.keeps(r)).collect()
        };
        // What an init container used is free for those that come after it.
        let mut reusable: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (kind, container) in spec::all_containers(pod) {
            for (resource, count) in asked(container) {
                let spare = reusable.entry(resource.clone()).or_default();
                let at = at(&container.name);
                let ids = self.grant((spec::uid(pod), &container.name), &resource, count, spare, at).await?;
                if kind == Kind::Init {
                    spare.extend(ids);
                } else {
                    spare.retain(|id| !ids.contains(id));
                }
            }
        }
        Ok(())
    }

    /// Whether the resource is, or was, a device plugin's.
    fn keeps(&self, resource: &str) -> bool {
        let state = self.state();
        state.plugins.contains_key(resource) || state.once.contains(resource)
    }

    async fn grant(
        &self,
        (pod, container): (&str, &str),
        resource: &str,
        count: usize,
        spare: &BTreeSet<String>,
        at: Option<(Mask, bool)>,
    ) -> Result<Vec<String>, String> {
        let _turn = self.allocating.lock().await;
        let (mut client, options, mut free, near) = {
            let state = self.state();
            if let Some(grant) = state.grants.of(pod, container).get(resource) {
                return Ok(grant.ids.clone());
            }
            let plugin = state
                .plugins
                .get(resource)
                .filter(|p| p.gone.is_none())
                .ok_or_else(|| format!("Allocate failed due to no healthy devices present; cannot allocate unhealthy devices {resource}, which is unexpected"))?;
            let taken = state.grants.taken(resource);
            let free: BTreeSet<String> =
                plugin.healthy().into_iter().filter(|id| spare.contains(id) || !taken.contains(id)).collect();
            let is_near = |id: &&String| {
                let own = plugin.devices.get(*id).and_then(place);
                own.zip(at).is_none_or(|(own, (wanted, _))| own.and(wanted).count() > 0)
            };
            let near: BTreeSet<String> = free.iter().filter(is_near).cloned().collect();
            (plugin.client.clone(), plugin.options, free, near)
        };
        if free.len() < count {
            return Err(format!(
                "Allocate failed due to requested number of devices unavailable for {resource}. Requested: {count}, Available: {}, which is unexpected",
                free.len()
            ));
        }
        let strict = at.is_some_and(|(_, strict)| strict);
        if strict && near.len() < count {
            return Err(APART.into());
        }
        // Only where those that are near do not do, others are.
        if near.len() >= count {
            free = near;
        }
        let must: Vec<String> = spare.intersection(&free).take(count).cloned().collect();
        let mut chosen = must.clone();
        if options.get_preferred_allocation_available && chosen.len() < count {
            chosen = preferred(&mut client, &free, must, count).await?;
        }
        let rest: Vec<String> = free.iter().filter(|id| !chosen.contains(id)).cloned().collect();
        chosen.extend(rest.into_iter().take(count.saturating_sub(chosen.len())));
        let request =
            AllocateRequest { container_requests: vec![ContainerAllocateRequest { devices_ids: chosen.clone() }] };
        let began = std::time::Instant::now();
        let answer = within(CALL, client.allocate(request)).await;
        self.metrics.since(&families::DEVICE_PLUGIN_ALLOCATIONS, &[resource], began);
        let answer = answer.map_err(|e| format!("Allocate failed due to {e}, which is unexpected"))?;
        let response = answer
            .container_responses
            .into_iter()
            .next()
            .ok_or("Allocate failed due to no containers in response from device plugin, which is unexpected")?;
        let mut state = self.state();
        state.grants.put(pod, container, resource, Grant { ids: chosen.clone(), response });
        state.grants.save(&self.dir.join(grants::FILE));
        Ok(chosen)
    }

    /// Tells plugins that ask for it that a container is about to start.
    pub async fn before_start(&self, pod_uid: &str, container: &str) -> Result<(), String> {
        for (resource, grant) in self.granted(pod_uid, container) {
            let found = self.state().plugins.get(&resource).map(|p| (p.client.clone(), p.options));
            let (mut client, options) =
                found.ok_or_else(|| format!("endpoint not found in cache for a registered resource: {resource}"))?;
            if options.pre_start_required {
                let request = PreStartContainerRequest { devices_ids: grant.ids };
                within(CALL, client.pre_start_container(request))
                    .await
                    .map_err(|e| format!("device plugin PreStartContainer rpc failed with err: {e}"))?;
            }
        }
        Ok(())
    }

    /// A pod is over: its devices are free.
    pub fn release(&self, pod_uid: &str) {
        let mut state = self.state();
        if state.grants.release(pod_uid) {
            state.grants.save(&self.dir.join(grants::FILE));
        }
    }
}

/// The memory nodes a device is near to; none for one that does not say.
fn place(device: &Device) -> Option<Mask> {
    let nodes = device.topology.iter().flat_map(|t| &t.nodes).filter_map(|n| u32::try_from(n.id).ok());
    Some(Mask::of(nodes)).filter(|mask| mask.count() > 0)
}

/// Which of the free ones the plugin would take; a plugin that answers nonsense is not heeded.
async fn preferred(
    client: &mut DevicePluginClient<Channel>,
    free: &BTreeSet<String>,
    must: Vec<String>,
    count: usize,
) -> Result<Vec<String>, String> {
    let request = PreferredAllocationRequest {
        container_requests: vec![ContainerPreferredAllocationRequest {
            available_device_i_ds: free.iter().cloned().collect(),
            must_include_device_i_ds: must.clone(),
            allocation_size: count as i32,
        }],
    };
    let answer = within(CALL, client.get_preferred_allocation(request))
        .await
        .map_err(|e| format!("device plugin GetPreferredAllocation rpc failed with err: {e}"))?;
    let mut ids = answer.container_responses.into_iter().next().map(|r| r.device_i_ds).unwrap_or_default();
    ids.retain(|id| free.contains(id) && !must.contains(id));
    Ok(must.into_iter().chain(ids).take(count).collect())
}
