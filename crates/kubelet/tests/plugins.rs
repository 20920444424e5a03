//! Device plugins and claim drivers as small servers of this test: what they are told, what containers get, what an
//! agent that starts anew remembers.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kubelet::plugins::claims::Claims;
use kubelet::plugins::devices::{self, Devices};
use plugins::device::device_plugin_server::{DevicePlugin, DevicePluginServer};
use plugins::device::registration_client::RegistrationClient;
use plugins::device::*;
use plugins::dra::dra_plugin_server::{DraPlugin, DraPluginServer};
use plugins::dra::{
    NodePrepareResourceResponse, NodePrepareResourcesRequest, NodePrepareResourcesResponse,
    NodeUnprepareResourceResponse, NodeUnprepareResourcesRequest, NodeUnprepareResourcesResponse,
};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

fn scratch(name: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("kubelet-{name}-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Waits for something that comes by itself; a test that never sees it fails by its time.
async fn until(what: impl Fn() -> bool) {
    tokio::time::timeout(Duration::from_secs(60), async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("what was waited for did not come");
}

type Lists = Arc<Mutex<Option<mpsc::Receiver<Result<ListAndWatchResponse, Status>>>>>;

/// A plugin that prefers the last devices and notes what it is asked.
#[derive(Clone)]
struct Small {
    lists: Lists,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Small {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }
}

#[tonic::async_trait]
impl DevicePlugin for Small {
    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true }))
    }

    type ListAndWatchStream = ReceiverStream<Result<ListAndWatchResponse, Status>>;

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let lists = self.lists.lock().unwrap().take();
        Ok(Response::new(ReceiverStream::new(lists.ok_or_else(|| Status::internal("asked twice"))?)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let asked = request.into_inner().container_requests.remove(0);
        self.note(format!("prefer {} of {}", asked.allocation_size, asked.available_device_i_ds.join(",")));
        let ids = asked.available_device_i_ds.into_iter().rev().take(asked.allocation_size as usize).collect();
        let response = ContainerPreferredAllocationResponse { device_i_ds: ids };
        Ok(Response::new(PreferredAllocationResponse { container_responses: vec![response] }))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        let ids = request.into_inner().container_requests.remove(0).devices_ids;
        self.note(format!("allocate {}", ids.join(",")));
        let response = ContainerAllocateResponse {
            envs: [("IDS".to_string(), ids.join(","))].into(),
            cdi_devices: vec![CdiDevice { name: "example.com/thing=1".into() }],
            ..Default::default()
        };
        Ok(Response::new(AllocateResponse { container_responses: vec![response] }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        self.note(format!("start {}", request.into_inner().devices_ids.join(",")));
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

fn list(devices: &[(&str, &str)]) -> Result<ListAndWatchResponse, Status> {
    let device = |(id, health): &(&str, &str)| Device { id: (*id).into(), health: (*health).into(), topology: None };
    Ok(ListAndWatchResponse { devices: devices.iter().map(device).collect() })
}

fn pod(uid: &str, init: Value, containers: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"uid": uid, "name": uid, "namespace": "n"},
        "spec": {"initContainers": init, "containers": containers}}))
    .unwrap()
}

fn asks(name: &str, count: u32) -> Value {
    json!({"name": name, "resources": {"limits": {"example.com/thing": count.to_string()}}})
}

fn start_plugin(
    dir: &Path,
) -> (Small, mpsc::Sender<Result<ListAndWatchResponse, Status>>, tokio::task::JoinHandle<()>) {
    let (send, receive) = mpsc::channel(4);
    let small = Small { lists: Arc::new(Mutex::new(Some(receive))), calls: Arc::default() };
    let incoming = UnixListenerStream::new(UnixListener::bind(dir.join("thing.sock")).unwrap());
    let server = tonic::transport::Server::builder().add_service(DevicePluginServer::new(small.clone()));
    let task = tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
    (small, send, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_are_counted_given_and_remembered() {
    let dir = scratch("devices");
    let things = Devices::new(&dir, Arc::new(|| ()), Arc::default());
    tokio::spawn(devices::serve(things.clone()));
    until(|| dir.join("kubelet.sock").exists()).await;
    let (small, lists, _server) = start_plugin(&dir);
    lists.send(list(&[("a", "Healthy"), ("b", "Healthy"), ("c", "Healthy"), ("d", "Unhealthy")])).await.unwrap();
    let mut door = RegistrationClient::new(kubelet::cri::channel(&dir.join("kubelet.sock").to_string_lossy()));
    let request = |version: &str, resource_name: &str| RegisterRequest {
        version: version.into(),
        endpoint: "thing.sock".into(),
        resource_name: resource_name.into(),
        options: None,
    };
    assert!(door.register(request("v1", "example.com/thing")).await.is_err());
    assert!(door.register(request("v1beta1", "cpu")).await.is_err());
    door.register(request("v1beta1", "example.com/thing")).await.unwrap();
    let count = |d: &Devices| {
        let (capacity, allocatable) = d.amounts();
        (capacity.get("example.com/thing").copied(), allocatable.get("example.com/thing").copied())
    };
    until(|| count(&things) == (Some(4), Some(3))).await;

    // What the init container used, the main one uses again.
    let first = pod("first", json!([asks("i", 1)]), json!([asks("m", 2)]));
    things.allocate(&first, |_| None).await.unwrap();
    things.allocate(&first, |_| None).await.unwrap();
    let ids = |pod: &str, container: &str| things.granted(pod, container)["example.com/thing"].ids.clone();
    assert_eq!((ids("first", "i"), ids("first", "m")), (vec!["c".to_string()], vec!["c".to_string(), "b".to_string()]));
    let refused = things.allocate(&pod("second", json!([]), json!([asks("m", 2)])), |_| None).await.unwrap_err();
    assert!(refused.contains("Requested: 2, Available: 1"), "{refused}");
    things.allocate(&pod("third", json!([]), json!([asks("m", 1)])), |_| None).await.unwrap();
    things.before_start("first", "m").await.unwrap();
    let expect = [
        "prefer 1 of a,b,c",
        "allocate c",
        "prefer 2 of a,b,c",
        "allocate c,b",
        "prefer 1 of a",
        "allocate a",
        "start c,b",
    ];
    assert_eq!(*small.calls.lock().unwrap(), expect);

    // An agent that starts anew gives nothing away twice, and knows what to tell containers.
    let again = Devices::new(&dir, Arc::new(|| ()), Arc::default());
    let grant = again.granted("first", "m").remove("example.com/thing").unwrap();
    assert_eq!(grant.response.envs["IDS"], "c,b");
    assert_eq!(count(&again), (Some(0), Some(0)));

    lists.send(list(&[("a", "Healthy"), ("b", "Unhealthy"), ("c", "Healthy")])).await.unwrap();
    until(|| count(&things) == (Some(3), Some(2))).await;
    let health = things.health("first", "m").remove("example.com/thing").unwrap();
    assert_eq!(health, [("c".to_string(), Some(true)), ("b".to_string(), Some(false))]);
    things.release("first");
    assert!(things.granted("first", "m").is_empty());
    drop(lists);
    until(|| count(&things) == (Some(3), Some(0))).await;
    std::fs::remove_dir_all(dir).unwrap();
}

/// A driver that names what it prepares after the claim, and can be told to fail.
#[derive(Clone, Default)]
struct Driver {
    calls: Arc<Mutex<Vec<String>>>,
    fails: Arc<Mutex<bool>>,
}

#[tonic::async_trait]
impl DraPlugin for Driver {
    async fn node_prepare_resources(
        &self,
        request: Request<NodePrepareResourcesRequest>,
    ) -> Result<Response<NodePrepareResourcesResponse>, Status> {
        let mut out = NodePrepareResourcesResponse::default();
        for claim in request.into_inner().claims {
            self.calls.lock().unwrap().push(format!("prepare {}/{}", claim.namespace, claim.name));
            let device = plugins::dra::Device {
                request_names: vec!["gpu".into()],
                pool_name: "pool".into(),
                device_name: "dev".into(),
                cdi_device_ids: vec![format!("example.com/gpu={}", claim.name)],
                share_id: None,
            };
            let error = if *self.fails.lock().unwrap() { "no power".to_string() } else { String::new() };
            out.claims.insert(claim.uid, NodePrepareResourceResponse { devices: vec![device], error });
        }
        Ok(Response::new(out))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<NodeUnprepareResourcesRequest>,
    ) -> Result<Response<NodeUnprepareResourcesResponse>, Status> {
        let mut out = NodeUnprepareResourcesResponse::default();
        for claim in request.into_inner().claims {
            self.calls.lock().unwrap().push(format!("unprepare {}/{}", claim.namespace, claim.name));
            out.claims.insert(claim.uid, NodeUnprepareResourceResponse::default());
        }
        Ok(Response::new(out))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_are_prepared_once_and_given_back_by_the_last() {
    let dir = scratch("claims");
    let (driver, socket, file) = (Driver::default(), dir.join("driver.sock"), dir.join("claims.json"));
    let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let server = tonic::transport::Server::builder().add_service(DraPluginServer::new(driver.clone()));
    tokio::spawn(server.serve_with_incoming(incoming));
    let claim: Arc<ResourceClaim> = Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": "c", "namespace": "n", "uid": "cu"}, "spec": {"devices": {}},
            "status": {
                "allocation": {"devices": {"results": [{"driver": "gpu.example.com", "pool": "pool", "device": "dev", "request": "gpu"}]}},
                "reservedFor": [{"resource": "pods", "name": "a", "uid": "a"}, {"resource": "pods", "name": "b", "uid": "b"}]}
        }))
        .unwrap(),
    );
    let user: Pod = serde_json::from_value(json!({"metadata": {"namespace": "n", "uid": "a"}, "spec": {
        "resourceClaims": [{"name": "mine", "resourceClaimName": "c"}],
        "containers": [{"name": "m", "resources": {"claims": [{"name": "mine", "request": "gpu"}]}}, {"name": "other"}]}}))
    .unwrap();
    let claims = Claims::load(&file);
    let list = [claim.clone()];
    assert!(claims.prepare("a", &list).await.unwrap_err().contains("not registered"));
    let socket = socket.to_string_lossy().into_owned();
    assert!(claims.connect("gpu.example.com", &socket, &["v9.DRAPlugin".into()]).is_err());
    claims.connect("gpu.example.com", &socket, &["v1.DRAPlugin".into()]).unwrap();
    assert!(claims.prepare("stranger", &list).await.unwrap_err().contains("not allowed"));
    *driver.fails.lock().unwrap() = true;
    assert!(claims.prepare("a", &list).await.unwrap_err().contains("no power"));
    *driver.fails.lock().unwrap() = false;
    claims.prepare("a", &list).await.unwrap();
    claims.prepare("b", &list).await.unwrap();
    assert_eq!(claims.cdi_ids(&user, "m"), ["example.com/gpu=c"]);
    assert!(claims.cdi_ids(&user, "other").is_empty());
    claims.release("a").await.unwrap();
    // The last user goes under an agent that has just started.
    let again = Claims::load(&file);
    assert!(again.release("b").await.unwrap_err().contains("not registered"));
    again.connect("gpu.example.com", &socket, &["v1.DRAPlugin".into()]).unwrap();
    again.release("b").await.unwrap();
    again.release("b").await.unwrap();
    assert_eq!(*driver.calls.lock().unwrap(), ["prepare n/c", "prepare n/c", "unprepare n/c"]);
    std::fs::remove_dir_all(dir).unwrap();
}
