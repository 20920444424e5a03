//! The container engine as the agent sees it: CRI v1 over a unix socket.
//!
//! One lazily connected channel, so that an engine that starts later or restarts is met again without ceremony. Every
//! call has a deadline. It knows no pods: ids and configurations go in, statuses come out.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

pub use ::cri::v1;
use v1::image_service_client::ImageServiceClient;
use v1::runtime_service_client::RuntimeServiceClient;

use crate::metrics::{Metrics, families};

/// Deadline of calls that only read or that an engine answers at once; as upstream's `--runtime-request-timeout`.
const CALL: Duration = Duration::from_secs(120);
/// Making a sandbox may wait for a network plugin: twice the ordinary deadline, as upstream.
const SANDBOX: Duration = Duration::from_secs(240);
/// A pull is bounded by its progress on the engine's side; this only catches a hung engine.
const PULL: Duration = Duration::from_secs(3600);
/// The largest answer accepted: a list of some ten thousand containers.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// What a CRI call can fail with: the engine's own gRPC status.
pub type CallResult<T> = Result<T, tonic::Status>;

/// A handle to the engine; cheap to clone.
#[derive(Clone)]
pub struct Engine {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    metrics: Arc<Metrics>,
}

/// `unix:///run/x.sock` or `/run/x.sock`.
fn socket_path(endpoint: &str) -> PathBuf {
    PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint))
}

/// A channel to a unix socket; opened by the first call.
pub fn channel(endpoint: &str) -> Channel {
    let path = socket_path(endpoint);
    // The address is never dialled: the connector below opens the socket.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
    }))
}

fn request<T>(message: T, deadline: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(deadline);
    request
}

/// A call as the metrics name it: `run_podsandbox`, `update_container`.
fn operation(call: &str) -> String {
    call.trim_end_matches("_resources").replace("pod_sandbox", "podsandbox")
}

impl Engine {
    /// Waits for a call no longer than its deadline even when the engine ignores the one sent to it, and counts it.
    async fn bounded<T>(
        &self,
        name: &str,
        deadline: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> CallResult<T> {
        let began = Instant::now();
        let answer = match tokio::time::timeout(deadline + Duration::from_secs(1), call).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(tonic::Status::deadline_exceeded("context deadline exceeded")),
        };
        let labels = [operation(name)];
        let labels = labels.each_ref().map(String::as_str);
        self.metrics.count(&families::CALLS, &labels);
        self.metrics.since(&families::CALL_DURATION, &labels, began);
        if answer.is_err() {
            self.metrics.count(&families::CALL_ERRORS, &labels);
        }
        answer
    }
}

macro_rules! calls {
    ($($(#[$doc:meta])* $service:ident.$name:ident($request:ident, $deadline:expr) -> $response:ident;)*) => {
        impl Engine {
            $($(#[$doc])* pub async fn $name(&self, message: v1::$request) -> CallResult<v1::$response> {
                let mut client = self.$service.clone();
                self.bounded(stringify!($name), $deadline, client.$name(request(message, $deadline))).await
            })*
        }
    };
}

calls! {
    /// Runtime and network readiness.
    runtime.status(StatusRequest, CALL) -> StatusResponse;
    runtime.version(VersionRequest, CALL) -> VersionResponse;
    /// How the engine wants cgroups kept.
    runtime.runtime_config(RuntimeConfigRequest, CALL) -> RuntimeConfigResponse;
    runtime.update_runtime_config(UpdateRuntimeConfigRequest, CALL) -> UpdateRuntimeConfigResponse;
    runtime.run_pod_sandbox(RunPodSandboxRequest, SANDBOX) -> RunPodSandboxResponse;
    runtime.stop_pod_sandbox(StopPodSandboxRequest, CALL) -> StopPodSandboxResponse;
    runtime.remove_pod_sandbox(RemovePodSandboxRequest, CALL) -> RemovePodSandboxResponse;
    runtime.pod_sandbox_status(PodSandboxStatusRequest, CALL) -> PodSandboxStatusResponse;
    runtime.list_pod_sandbox(ListPodSandboxRequest, CALL) -> ListPodSandboxResponse;
    runtime.create_container(CreateContainerRequest, CALL) -> CreateContainerResponse;
    runtime.start_container(StartContainerRequest, CALL) -> StartContainerResponse;
    runtime.remove_container(RemoveContainerRequest, CALL) -> RemoveContainerResponse;
    runtime.list_containers(ListContainersRequest, CALL) -> ListContainersResponse;
    runtime.container_status(ContainerStatusRequest, CALL) -> ContainerStatusResponse;
    runtime.update_container_resources(UpdateContainerResourcesRequest, CALL) -> UpdateContainerResourcesResponse;
    runtime.checkpoint_container(CheckpointContainerRequest, PULL) -> CheckpointContainerResponse;
    runtime.reopen_container_log(ReopenContainerLogRequest, CALL) -> ReopenContainerLogResponse;
    runtime.exec(ExecRequest, CALL) -> ExecResponse;
    runtime.attach(AttachRequest, CALL) -> AttachResponse;
    runtime.port_forward(PortForwardRequest, CALL) -> PortForwardResponse;
    runtime.list_container_stats(ListContainerStatsRequest, CALL) -> ListContainerStatsResponse;
    runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest, CALL) -> ListPodSandboxStatsResponse;
    images.list_images(ListImagesRequest, CALL) -> ListImagesResponse;
    images.image_status(ImageStatusRequest, CALL) -> ImageStatusResponse;
    images.pull_image(PullImageRequest, PULL) -> PullImageResponse;
    images.remove_image(RemoveImageRequest, CALL) -> RemoveImageResponse;
    images.image_fs_info(ImageFsInfoRequest, CALL) -> ImageFsInfoResponse;
}

impl Engine {
    /// A handle; the socket is opened by the first call.
    pub fn new(cri_endpoint: &str, image_endpoint: Option<&str>, metrics: Arc<Metrics>) -> Self {
        let runtime = channel(cri_endpoint);
        let images = image_endpoint.map_or_else(|| runtime.clone(), channel);
        Self {
            runtime: RuntimeServiceClient::new(runtime).max_decoding_message_size(MAX_MESSAGE_BYTES),
            images: ImageServiceClient::new(images).max_decoding_message_size(MAX_MESSAGE_BYTES),
            metrics,
        }
    }

    /// Stops a container, giving it `grace` before it is killed.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> CallResult<()> {
        let message = v1::StopContainerRequest { container_id: id.into(), timeout: grace.as_secs() as i64 };
        let deadline = grace + CALL;
        let mut client = self.runtime.clone();
        self.bounded("stop_container", deadline, client.stop_container(request(message, deadline))).await.map(drop)
    }

    /// Runs a command in a container and waits for it.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> CallResult<v1::ExecSyncResponse> {
        // The engine counts whole seconds, zero meaning for ever; the call itself must outlast it to hear the verdict.
        let message =
            v1::ExecSyncRequest { container_id: id.into(), cmd: command, timeout: timeout.as_secs().max(1) as i64 };
        let deadline = timeout.max(Duration::from_secs(1)) + Duration::from_secs(5);
        let mut client = self.runtime.clone();
        self.bounded("exec_sync", deadline, client.exec_sync(request(message, deadline))).await
    }

    /// The engine's stream of container events; `Unimplemented` from engines that have none.
    pub async fn container_events(&self) -> CallResult<tonic::Streaming<v1::ContainerEventResponse>> {
        let mut client = self.runtime.clone();
        Ok(client.get_container_events(v1::GetEventsRequest {}).await?.into_inner())
    }

    /// Sandboxes and containers that carry these labels (all, for none).
    pub async fn list(&self, labels: HashMap<String, String>) -> CallResult<(Vec<v1::PodSandbox>, Vec<v1::Container>)> {
        let sandboxes = self.list_pod_sandbox(v1::ListPodSandboxRequest {
            filter: Some(v1::PodSandboxFilter { label_selector: labels.clone(), ..Default::default() }),
        });
        let containers = self.list_containers(v1::ListContainersRequest {
            filter: Some(v1::ContainerFilter { label_selector: labels, ..Default::default() }),
        });
        let (sandboxes, containers) = tokio::try_join!(sandboxes, containers)?;
        Ok((sandboxes.items, containers.containers))
    }
}
