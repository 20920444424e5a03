//! The pod resources API: which devices and claims each container has, for monitors on the node.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::plugins::device::Device;
use ::plugins::pod_resources::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use ::plugins::pod_resources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, CdiDevice, ClaimResource, ContainerDevices,
    ContainerMemory, ContainerResources, DynamicResource, GetPodResourcesRequest, GetPodResourcesResponse,
    ListPodResourcesRequest, ListPodResourcesResponse, NumaNode, PodResources, TopologyInfo,
};
use k8s_openapi::api::core::v1::Pod;
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};

use crate::agent::Context;
use crate::metrics::{Family, families};
use crate::pods::status::is_terminal;
use crate::spec;
use crate::topology::memory::Block;

/// The version of the API, as requests are counted by it.
const VERSION: &str = "v1";

struct Lister(Arc<Context>);

/// Devices of one resource, grouped by where they sit.
fn by_place(resource: &str, devices: &[&Device]) -> Vec<ContainerDevices> {
    let mut places: BTreeMap<Vec<i64>, Vec<String>> = BTreeMap::new();
    for device in devices {
        let nodes = device.topology.iter().flat_map(|t| &t.nodes).map(|n| n.id).collect();
        places.entry(nodes).or_default().push(device.id.clone());
    }
    let place = |nodes: Vec<i64>| {
        let nodes: Vec<NumaNode> = nodes.into_iter().map(|id| NumaNode { id }).collect();
        (!nodes.is_empty()).then_some(TopologyInfo { nodes })
    };
    let each = places.into_iter();
    each.map(|(nodes, device_ids)| ContainerDevices {
        resource_name: resource.into(),
        device_ids,
        topology: place(nodes),
    })
    .collect()
}

fn memory(block: Block) -> ContainerMemory {
    let nodes = block.nodes.into_iter().map(|id| NumaNode { id: i64::from(id) }).collect();
    ContainerMemory { memory_type: block.kind, size: block.size, topology: Some(TopologyInfo { nodes }) }
}

impl Lister {
    fn counted(&self, what: &'static Family) {
        self.0.metrics.count(&families::POD_RESOURCES_REQUESTS, &[VERSION]);
        self.0.metrics.count(what, &[VERSION]);
    }

    fn pod(&self, pod: &Pod) -> PodResources {
        let uid = spec::uid(pod);
        let inventory = self.0.devices.inventory();
        let containers = spec::all_containers(pod)
            // Init containers are over; only sidecars run on.
            .filter(|(kind, _)| *kind != spec::Kind::Init)
            .map(|(_, container)| {
                let granted = self.0.devices.granted(uid, &container.name);
                let devices = granted.iter().flat_map(|(resource, grant)| {
                    let known = inventory.get(resource);
                    let found = |id: &String| known.and_then(|l| l.iter().find(|d| d.id == *id)).cloned();
                    let of: Vec<Device> = grant
                        .ids
                        .iter()
                        .map(|id| found(id).unwrap_or(Device { id: id.clone(), ..Default::default() }))
                        .collect();
                    by_place(resource, &of.iter().collect::<Vec<_>>())
                });
                ContainerResources {
                    name: container.name.clone(),
                    devices: devices.collect(),
                    dynamic_resources: self.claims(pod, &container.name),
                    cpu_ids: self.0.processors.exclusive(uid, &container.name).into_iter().map(i64::from).collect(),
                    memory: self.0.alignment.memory_of(uid, &container.name).into_iter().map(memory).collect(),
                }
            })
            .collect();
        PodResources {
            name: spec::name(pod).into(),
            namespace: spec::namespace(pod).into(),
            containers,
            ..Default::default()
        }
    }

    fn claims(&self, pod: &Pod, container: &str) -> Vec<DynamicResource> {
        let mut out: Vec<DynamicResource> = Vec::new();
        for (claim, driver, device) in self.0.claims.devices_of(pod, container) {
            let resource = ClaimResource {
                cdi_devices: device.cdi_ids.iter().map(|id| CdiDevice { name: id.clone() }).collect(),
                driver_name: driver,
                pool_name: device.pool.clone(),
                device_name: device.device.clone(),
                share_id: device.share_id.clone(),
            };
            match out.iter_mut().find(|d| d.claim_name == claim) {
                Some(known) => known.claim_resources.push(resource),
                None => out.push(DynamicResource {
                    claim_name: claim,
                    claim_namespace: spec::namespace(pod).into(),
                    claim_resources: vec![resource],
                }),
            }
        }
        out
    }

    fn active(&self) -> impl Iterator<Item = Arc<Pod>> {
        let pods = self.0.workers.pods().into_iter();
        pods.filter(|p| !is_terminal(p.status.as_ref().and_then(|s| s.phase.as_deref())))
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(&self, _: Request<ListPodResourcesRequest>) -> Result<Response<ListPodResourcesResponse>, Status> {
        self.counted(&families::POD_RESOURCES_LIST);
        let pod_resources = self.active().map(|p| self.pod(&p)).collect();
        Ok(Response::new(ListPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        self.counted(&families::POD_RESOURCES_ALLOCATABLE);
        let inventory = self.0.devices.inventory();
        let devices =
            inventory.iter().flat_map(|(resource, list)| by_place(resource, &list.iter().collect::<Vec<_>>()));
        Ok(Response::new(AllocatableResourcesResponse {
            devices: devices.collect(),
            cpu_ids: self.0.processors.allocatable(self.0.machine.cpus).into_iter().map(i64::from).collect(),
            memory: self.0.alignment.allocatable().into_iter().map(memory).collect(),
        }))
    }

    async fn get(&self, request: Request<GetPodResourcesRequest>) -> Result<Response<GetPodResourcesResponse>, Status> {
        self.counted(&families::POD_RESOURCES_GET);
        let request = request.into_inner();
        let found = self
            .active()
            .find(|p| spec::name(p) == request.pod_name && spec::namespace(p) == request.pod_namespace)
            .ok_or_else(|| {
                self.0.metrics.count(&families::POD_RESOURCES_GET_ERRORS, &[VERSION]);
                Status::unknown(format!("pod {} in namespace {} not found", request.pod_name, request.pod_namespace))
            })?;
        Ok(Response::new(GetPodResourcesResponse { pod_resources: Some(self.pod(&found)) }))
    }
}

/// Serves at `<root dir>/pod-resources/kubelet.sock` until it is dropped.
pub async fn serve(context: Arc<Context>) -> anyhow::Result<()> {
    let dir = context.config.root_dir.join("pod-resources");
    std::fs::create_dir_all(&dir)?;
    let socket = dir.join("kubelet.sock");
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(UnixListener::bind(&socket)?);
    let server = tonic::transport::Server::builder().add_service(PodResourcesListerServer::new(Lister(context)));
    Ok(server.serve_with_incoming(incoming).await?)
}
