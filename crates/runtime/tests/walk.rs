//! Every call of CRI, walked in an order that makes sense. A call that the protocol has and this walk does not make fails
//! it. Needs root; skips with a line otherwise.

mod node;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use cri::v1::image_service_client::ImageServiceClient;
use cri::v1::runtime_service_client::RuntimeServiceClient;
use cri::v1::*;
use futures::StreamExt;
use node::{Node, pod, shell};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, GrpcMethod, Request, Status};

type Made = Arc<Mutex<BTreeSet<String>>>;

/// Notes which calls are made.
#[derive(Clone)]
struct Noting(Made);

impl tonic::service::Interceptor for Noting {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let method = request.extensions().get::<GrpcMethod<'static>>().expect("every stub names its call");
        self.0.lock().unwrap().insert(format!("/{}/{}", method.service(), method.method()));
        Ok(request)
    }
}

/// The calls that the generated stubs know.
fn all_calls() -> BTreeSet<String> {
    let stubs = include_str!("../../cri/src/v1.rs");
    let calls = stubs.split('"').filter(|s| s.starts_with("/runtime.v1.")).map(str::to_string);
    calls.collect()
}

struct Walk {
    runtime: RuntimeServiceClient<InterceptedService<Channel, Noting>>,
    images: ImageServiceClient<InterceptedService<Channel, Noting>>,
    made: Made,
}

macro_rules! call {
    ($client:expr, $method:ident, $request:expr) => {
        $client.$method($request).await.unwrap_or_else(|e| panic!("{}: {e}", stringify!($method))).into_inner()
    };
}

/// All items of a streamed list.
async fn gathered<M, T>(mut stream: tonic::Streaming<M>, items: fn(M) -> Vec<T>) -> Vec<T> {
    let mut all = Vec::new();
    while let Some(message) = stream.next().await {
        all.extend(items(message.unwrap()));
    }
    all
}

impl Walk {
    async fn about_the_runtime(&mut self) {
        let version = call!(self.runtime, version, VersionRequest { version: "v1".into() });
        assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("nauplius", "v1"));
        let network = NetworkConfig { pod_cidr: "10.77.26.0/24".into() };
        let config =
            UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config: Some(network) }) };
        call!(self.runtime, update_runtime_config, config);
        let status = call!(self.runtime, status, StatusRequest { verbose: true });
        assert!(status.status.unwrap().conditions.iter().all(|c| c.status));
        assert!(status.info.contains_key("config") && !status.runtime_handlers.is_empty());
        let driver = call!(self.runtime, runtime_config, RuntimeConfigRequest {}).linux.unwrap().cgroup_driver();
        assert_eq!(driver, CgroupDriver::Cgroupfs);
        assert!(!call!(self.runtime, list_metric_descriptors, ListMetricDescriptorsRequest {}).descriptors.is_empty());
    }

    async fn about_images(&mut self) {
        let named = |name: &str| Some(ImageSpec { image: name.into(), ..Default::default() });
        let listed = call!(self.images, list_images, ListImagesRequest::default()).images;
        let stream = call!(self.images, stream_images, StreamImagesRequest::default());
        assert_eq!(gathered(stream, |m| m.images).await, listed);
        let status = ImageStatusRequest { image: named("busybox:test"), verbose: true };
        let status = call!(self.images, image_status, status);
        assert_eq!(status.image.as_ref(), listed.first());
        assert!(status.info.contains_key("info"));
        let pull = PullImageRequest { image: named("localhost:1/nothing"), ..Default::default() };
        let refused = self.images.pull_image(pull).await.unwrap_err();
        assert!(refused.message().contains("failed to pull and unpack image"), "{refused}");
        let usage = call!(self.images, image_fs_info, ImageFsInfoRequest {});
        assert!(usage.image_filesystems[0].used_bytes.unwrap().value > 0);
        call!(self.images, remove_image, RemoveImageRequest { image: named("never:there") });
    }

    async fn about_sandboxes(&mut self, id: &str) {
        let of = || Some(PodSandboxFilter { id: id.into(), ..Default::default() });
        let listed = call!(self.runtime, list_pod_sandbox, ListPodSandboxRequest { filter: of() }).items;
        assert_eq!(listed.len(), 1);
        let stream = call!(self.runtime, stream_pod_sandboxes, StreamPodSandboxesRequest { filter: of() });
        assert_eq!(gathered(stream, |m| m.pod_sandboxes).await, listed);
        let status = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: true };
        let status = call!(self.runtime, pod_sandbox_status, status);
        assert_eq!(status.status.unwrap().state(), PodSandboxState::SandboxReady);
        assert_eq!(status.containers_statuses.len(), 1);
        call!(
            self.runtime,
            update_pod_sandbox_resources,
            UpdatePodSandboxResourcesRequest { pod_sandbox_id: id.into(), ..Default::default() }
        );
        let name = |s: &PodSandboxStats| s.attributes.clone().unwrap().id;
        let one = call!(self.runtime, pod_sandbox_stats, PodSandboxStatsRequest { pod_sandbox_id: id.into() });
        assert_eq!(one.stats.as_ref().map(name).as_deref(), Some(id));
        let filter = Some(PodSandboxStatsFilter { id: id.into(), ..Default::default() });
        let request = ListPodSandboxStatsRequest { filter: filter.clone() };
        assert_eq!(
            call!(self.runtime, list_pod_sandbox_stats, request).stats.iter().map(name).collect::<Vec<_>>(),
            [id]
        );
        let stream = call!(self.runtime, stream_pod_sandbox_stats, StreamPodSandboxStatsRequest { filter });
        assert_eq!(gathered(stream, |m| m.pod_sandbox_stats).await.iter().map(name).collect::<Vec<_>>(), [id]);
        let metrics = call!(self.runtime, list_pod_sandbox_metrics, ListPodSandboxMetricsRequest {}).pod_metrics;
        assert_eq!((metrics[0].pod_sandbox_id.as_str(), metrics[0].container_metrics.len()), (id, 1));
        let series = |name: &str| {
            let all = metrics[0].metrics.iter().chain(&metrics[0].container_metrics[0].metrics);
            all.filter(|m| m.name == name).count()
        };
        assert_eq!(series("container_memory_working_set_bytes"), 2);
        assert_eq!(series("container_network_receive_bytes_total"), 1);
        let stream = call!(self.runtime, stream_pod_sandbox_metrics, StreamPodSandboxMetricsRequest {});
        assert_eq!(gathered(stream, |m| m.pod_sandbox_metrics).await.len(), 1);
    }

    async fn about_containers(&mut self, id: &str) {
        let of = || Some(ContainerFilter { id: id.into(), ..Default::default() });
        let listed = call!(self.runtime, list_containers, ListContainersRequest { filter: of() }).containers;
        assert_eq!((listed.len(), listed[0].state()), (1, ContainerState::ContainerRunning));
        let stream = call!(self.runtime, stream_containers, StreamContainersRequest { filter: of() });
        assert_eq!(gathered(stream, |m| m.containers).await, listed);
        let status = ContainerStatusRequest { container_id: id.into(), verbose: true };
        assert!(call!(self.runtime, container_status, status).info.contains_key("info"));
        let linux = Some(LinuxContainerResources { cpu_shares: 300, ..Default::default() });
        let update = UpdateContainerResourcesRequest { container_id: id.into(), linux, ..Default::default() };
        call!(self.runtime, update_container_resources, update);
        let status = ContainerStatusRequest { container_id: id.into(), verbose: false };
        let status = call!(self.runtime, container_status, status).status.unwrap();
        assert_eq!(status.resources.unwrap().linux.unwrap().cpu_shares, 300);
        let log = std::path::PathBuf::from(&status.log_path);
        std::fs::rename(&log, log.with_extension("1")).unwrap();
        call!(self.runtime, reopen_container_log, ReopenContainerLogRequest { container_id: id.into() });
        assert!(log.exists());
        let cmd = vec!["echo".to_string(), "hi".into()];
        let sync = ExecSyncRequest { container_id: id.into(), cmd: cmd.clone(), timeout: 10 };
        assert_eq!(call!(self.runtime, exec_sync, sync).stdout, b"hi\n");
        let exec = ExecRequest { container_id: id.into(), cmd, stdout: true, ..Default::default() };
        assert!(call!(self.runtime, exec, exec).url.starts_with("http://127.0.0.1:"));
        let attach = AttachRequest { container_id: id.into(), stdout: true, ..Default::default() };
        assert!(call!(self.runtime, attach, attach).url.contains("/attach/"));
        let name = |s: &ContainerStats| s.attributes.clone().unwrap().id;
        let one = call!(self.runtime, container_stats, ContainerStatsRequest { container_id: id.into() });
        assert_eq!(one.stats.as_ref().map(name).as_deref(), Some(id));
        let filter = Some(ContainerStatsFilter { id: id.into(), ..Default::default() });
        let request = ListContainerStatsRequest { filter: filter.clone() };
        assert_eq!(call!(self.runtime, list_container_stats, request).stats.len(), 1);
        let stream = call!(self.runtime, stream_container_stats, StreamContainerStatsRequest { filter });
        assert_eq!(gathered(stream, |m| m.container_stats).await.len(), 1);
    }

    /// What this engine says it cannot do.
    async fn refusals(&mut self, sandbox: &str, container: &str) {
        let checkpoint = CheckpointContainerRequest { container_id: container.into(), ..Default::default() };
        assert_eq!(self.runtime.checkpoint_container(checkpoint).await.unwrap_err().code(), Code::Unimplemented);
        let checkpoint = CheckpointPodRequest { pod_sandbox_id: sandbox.into(), ..Default::default() };
        assert_eq!(self.runtime.checkpoint_pod(checkpoint).await.unwrap_err().code(), Code::Unimplemented);
        let restored = self.runtime.restore_pod(RestorePodRequest::default()).await;
        assert_eq!(restored.unwrap_err().code(), Code::Unimplemented);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_is_answered() {
    let all = all_calls();
    assert!(all.len() > 40, "{all:?}");
    if let Some(why) = node::unable() {
        eprintln!("skipped: {why}");
        return;
    }
    let node = Node::start(&[]).await;
    node.import_busybox("busybox:test").await;
    let made = Made::default();
    let channel = node.channel().await.expect("the server answers");
    let mut walk = Walk {
        runtime: RuntimeServiceClient::with_interceptor(channel.clone(), Noting(made.clone())),
        images: ImageServiceClient::with_interceptor(channel, Noting(made.clone())),
        made,
    };
    walk.about_the_runtime().await;
    walk.about_images().await;
    let mut events = call!(walk.runtime, get_container_events, GetEventsRequest {});
    let config = pod("walked", &node.dir.path().join("logs"));
    let run = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    let sandbox = call!(walk.runtime, run_pod_sandbox, run).pod_sandbox_id;
    let create = CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(shell("main", "trap 'exit 0' TERM; while :; do sleep 0.01; done")),
        sandbox_config: Some(config),
    };
    let container = call!(walk.runtime, create_container, create).container_id;
    call!(walk.runtime, start_container, StartContainerRequest { container_id: container.clone() });
    walk.about_containers(&container).await;
    walk.about_sandboxes(&sandbox).await;
    walk.refusals(&sandbox, &container).await;
    let forward = PortForwardRequest { pod_sandbox_id: sandbox.clone(), port: vec![80] };
    assert!(call!(walk.runtime, port_forward, forward).url.contains("/portforward/"));
    let stop = StopContainerRequest { container_id: container.clone(), timeout: 10 };
    call!(walk.runtime, stop_container, stop);
    call!(walk.runtime, remove_container, RemoveContainerRequest { container_id: container.clone() });
    call!(walk.runtime, stop_pod_sandbox, StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() });
    call!(walk.runtime, remove_pod_sandbox, RemovePodSandboxRequest { pod_sandbox_id: sandbox.clone() });
    let mut seen = BTreeSet::new();
    while !seen.contains(&(sandbox.clone(), ContainerEventType::ContainerDeletedEvent as i32)) {
        let event = events.next().await.unwrap().unwrap();
        seen.insert((event.container_id, event.container_event_type));
    }
    assert!(seen.contains(&(container, ContainerEventType::ContainerStoppedEvent as i32)));
    let made = walk.made.lock().unwrap();
    assert_eq!(all.difference(&made).collect::<Vec<_>>(), Vec::<&String>::new(), "calls that were not walked");
}
