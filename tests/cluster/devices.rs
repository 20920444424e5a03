//! A device plugin and a driver of claims on one node, tasks of this test, and a pod whose container gets a device of each.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use client::Gvr;
use plugins::device::device_plugin_server::{DevicePlugin, DevicePluginServer};
use plugins::device::registration_client::RegistrationClient;
use plugins::device::*;
use plugins::dra::dra_plugin_server::{DraPlugin, DraPluginServer};
use plugins::dra::{
    NodePrepareResourceResponse, NodePrepareResourcesRequest, NodePrepareResourcesResponse,
    NodeUnprepareResourceResponse, NodeUnprepareResourcesRequest, NodeUnprepareResourcesResponse,
};
use plugins::registration;
use plugins::registration::registration_server::{Registration, RegistrationServer};
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};

use super::driver::Answer;
use super::{Stage, image, value, wait};

const NODE: &str = "node-1";
const THING: &str = "test.nauplius.dev/thing";
const DRIVER: &str = "gpu.test.nauplius.dev";
const CDI_KIND: &str = "test.nauplius.dev/gpu";
/// Where the engine looks for what devices need.
const CDI_DIR: &str = "/var/run/cdi";

/// Has one device, which is the node's `/dev/zero` under another name.
#[derive(Clone)]
struct Plugin;

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Answer<DevicePluginOptions> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    type ListAndWatchStream = ReceiverStream<std::result::Result<ListAndWatchResponse, Status>>;

    async fn list_and_watch(&self, _: Request<Empty>) -> Answer<Self::ListAndWatchStream> {
        let (send, receive) = tokio::sync::mpsc::channel(1);
        let device = Device { id: "a".into(), health: "Healthy".into(), topology: None };
        let _ = send.send(Ok(ListAndWatchResponse { devices: vec![device] })).await;
        // Open as long as somebody listens: its end would be the plugin's.
        tokio::spawn(async move { send.closed().await });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Answer<PreferredAllocationResponse> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Answer<AllocateResponse> {
        let given = |asked: ContainerAllocateRequest| ContainerAllocateResponse {
            envs: [("THING".to_string(), asked.devices_ids.join(","))].into(),
            devices: vec![DeviceSpec {
                container_path: "/dev/thing".into(),
                host_path: "/dev/zero".into(),
                permissions: "rw".into(),
            }],
            ..Default::default()
        };
        let container_responses = request.into_inner().container_requests.into_iter().map(given).collect();
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(&self, _: Request<PreStartContainerRequest>) -> Answer<PreStartContainerResponse> {
        Err(Status::unimplemented("not asked for"))
    }
}

/// Prepares the only device there is, by the name of its file.
#[derive(Clone)]
struct Driver {
    endpoint: PathBuf,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Driver {
    fn note(&self, call: &str) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call.into());
    }
}

#[tonic::async_trait]
impl DraPlugin for Driver {
    async fn node_prepare_resources(
        &self,
        request: Request<NodePrepareResourcesRequest>,
    ) -> Answer<NodePrepareResourcesResponse> {
        let mut out = NodePrepareResourcesResponse::default();
        for claim in request.into_inner().claims {
            self.note("prepare");
            let device = plugins::dra::Device {
                request_names: vec!["gpu".into()],
                pool_name: NODE.into(),
                device_name: "one".into(),
                cdi_device_ids: vec![format!("{CDI_KIND}=one")],
                share_id: None,
            };
            out.claims.insert(claim.uid, NodePrepareResourceResponse { devices: vec![device], error: String::new() });
        }
        Ok(Response::new(out))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<NodeUnprepareResourcesRequest>,
    ) -> Answer<NodeUnprepareResourcesResponse> {
        let mut out = NodeUnprepareResourcesResponse::default();
        for claim in request.into_inner().claims {
            self.note("unprepare");
            out.claims.insert(claim.uid, NodeUnprepareResourceResponse::default());
        }
        Ok(Response::new(out))
    }
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<registration::InfoRequest>) -> Answer<registration::PluginInfo> {
        Ok(Response::new(registration::PluginInfo {
            r#type: "DRAPlugin".into(),
            name: DRIVER.into(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec!["v1.DRAPlugin".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<registration::RegistrationStatus>,
    ) -> Answer<registration::RegistrationStatusResponse> {
        let status = request.into_inner();
        self.note(if status.plugin_registered { "registered" } else { &status.error });
        Ok(Response::new(Default::default()))
    }
}

/// A file that is removed with it.
struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        // Only if nobody else has files there.
        let _ = std::fs::remove_dir(CDI_DIR);
    }
}

fn cdi_file() -> Result<File> {
    std::fs::create_dir_all(CDI_DIR)?;
    let file = File(Path::new(CDI_DIR).join(format!("nauplius-test-{}.json", std::process::id())));
    let edits = json!({"env": ["GPU=one"], "deviceNodes": [{"path": "/dev/gpu", "hostPath": "/dev/full"}]});
    let content =
        json!({"cdiVersion": "0.6.0", "kind": CDI_KIND, "devices": [{"name": "one", "containerEdits": edits}]});
    std::fs::write(&file.0, content.to_string())?;
    Ok(file)
}

async fn register(agent: &Path) -> Result<AbortOnDropHandle<()>> {
    let dir = agent.join("device-plugins");
    let incoming = UnixListenerStream::new(UnixListener::bind(dir.join("thing.sock"))?);
    let server = tonic::transport::Server::builder().add_service(DevicePluginServer::new(Plugin));
    let serving = AbortOnDropHandle::new(tokio::spawn(async move {
        let _ = server.serve_with_incoming(incoming).await;
    }));
    let door = dir.join("kubelet.sock");
    let connect = tower::service_fn(move |_: http::Uri| {
        let door = door.clone();
        async move { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(UnixStream::connect(door).await?)) }
    });
    let channel = tonic::transport::Endpoint::from_static("http://localhost").connect_with_connector(connect).await?;
    let request = RegisterRequest {
        version: "v1beta1".into(),
        endpoint: "thing.sock".into(),
        resource_name: THING.into(),
        options: None,
    };
    RegistrationClient::new(channel).register(request).await.context("registering the device plugin")?;
    Ok(serving)
}

/// What the scheduler has to know of the claim's device.
async fn objects(stage: &Stage) -> Result<()> {
    let resource = |plural: &str| stage.client.dynamic(Gvr::new("resource.k8s.io", "v1", plural));
    resource("deviceclasses").create(json!({"metadata": {"name": "gpus"}, "spec": {}})).await?;
    let pool = json!({"name": NODE, "generation": 1, "resourceSliceCount": 1});
    let slice = json!({"driver": DRIVER, "nodeName": NODE, "pool": pool, "devices": [{"name": "one"}]});
    resource("resourceslices").create(json!({"metadata": {"name": "gpus-of-one"}, "spec": slice})).await?;
    let requests = json!([{"name": "gpu", "exactly": {"deviceClassName": "gpus"}}]);
    let claim = json!({"metadata": {"name": "gpu"}, "spec": {"devices": {"requests": requests}}});
    stage.api("resource.k8s.io", "v1", "resourceclaims").create(claim).await?;
    Ok(())
}

/// A container opens both devices and says what it was told of them.
pub async fn given(stage: &Stage) -> Result<()> {
    let agent = stage.cluster.data().join("nodes").join(NODE).join("kubelet");
    let _cdi = cdi_file()?;
    let _plugin = register(&agent).await?;
    let endpoint = stage.cluster.dir.join("gpu.sock");
    let driver = Driver { endpoint: endpoint.clone(), calls: Arc::default() };
    let serve = |listener: UnixListener| {
        let server = tonic::transport::Server::builder()
            .add_service(RegistrationServer::new(driver.clone()))
            .add_service(DraPluginServer::new(driver.clone()));
        AbortOnDropHandle::new(tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener))))
    };
    let _driver = serve(UnixListener::bind(&endpoint)?);
    let door = agent.join("plugins_registry/gpu.sock");
    let _door = serve(UnixListener::bind(&door)?);
    let told = |expected: &'static [&'static str]| {
        let calls = driver.calls.clone();
        wait("the driver of claims is told", move || {
            let calls = calls.clone();
            async move {
                let calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
                ensure!(*calls == expected, "it was told {calls:?}");
                Ok(())
            }
        })
    };
    told(&["registered"]).await?;
    objects(stage).await?;
    let nodes = stage.client.dynamic(Gvr::new("", "v1", "nodes"));
    wait("the node has the plugin's device", || async {
        let node = value(&*nodes.get(NODE).await?)?;
        ensure!(node["status"]["allocatable"][THING] == "1", "allocatable: {}", node["status"]["allocatable"]);
        Ok(())
    })
    .await?;
    let script = ": </dev/thing && : </dev/gpu && echo -n $THING $GPU >/dev/termination-log";
    let pods = stage.api("", "v1", "pods");
    pods.create(json!({"metadata": {"name": "with-devices"}, "spec": {
        "restartPolicy": "Never",
        "resourceClaims": [{"name": "mine", "resourceClaimName": "gpu"}],
        "containers": [{"name": "c", "image": image::NAME, "command": ["sh", "-c", script],
            "resources": {"limits": {THING: "1"}, "claims": [{"name": "mine"}]}}],
    }}))
    .await?;
    wait("the container had its devices", || async {
        let status = value(&*pods.get("with-devices").await?)?["status"].clone();
        let ended = &status["containerStatuses"][0]["state"]["terminated"];
        ensure!(ended["exitCode"] == 0 && ended["message"] == "a one", "its status is {status}");
        Ok(())
    })
    .await?;
    pods.delete("with-devices", &client::DeleteOptions::default().grace(1)).await?;
    told(&["registered", "prepare", "unprepare"]).await?;
    std::fs::remove_file(door)?;
    Ok(())
}
