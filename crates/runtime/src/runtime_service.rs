//! CRI's RuntimeService over the engine: arguments checked, records filtered and shown, errors given their codes.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status};

use crate::engine::{Container as KnownContainer, Engine, Sandbox};
use crate::exec::TimedOut;
use crate::records::{ContainerRecord, SandboxRecord};
use crate::streaming::Session;
use crate::{NAME, status};
use cri::v1::runtime_service_server::RuntimeService;
use cri::v1::*;

/// Items of one message of a streamed list.
const STREAM_CHUNK: usize = 256;

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub struct RuntimeServer {
    /// What it serves.
    pub engine: Arc<Engine>,
}

/// An error of the engine as gRPC shows it.
pub fn failed(error: anyhow::Error) -> Status {
    let message = format!("{error:#}");
    if error.is::<TimedOut>() { Status::deadline_exceeded(message) } else { Status::unknown(message) }
}

fn selected(selector: &HashMap<String, String>, labels: Option<&HashMap<String, String>>) -> bool {
    selector.iter().all(|(k, v)| labels.is_some_and(|l| l.get(k) == Some(v)))
}

fn chunks<T: Send + 'static, M: Send + 'static>(items: Vec<T>, wrap: fn(Vec<T>) -> M) -> Streamed<M> {
    let mut messages = Vec::new();
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        messages.push(Ok(wrap(items.by_ref().take(STREAM_CHUNK).collect())));
    }
    stream::iter(messages).boxed()
}

impl RuntimeServer {
    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Status> {
        self.engine.sandbox(id).ok_or_else(|| Status::not_found(format!("could not find sandbox \"{id}\": not found")))
    }

    fn container(&self, id: &str) -> Result<Arc<KnownContainer>, Status> {
        self.engine
            .container(id)
            .ok_or_else(|| Status::not_found(format!("could not find container \"{id}\": not found")))
    }

    fn sandboxes(&self, filter: Option<PodSandboxFilter>) -> Vec<PodSandbox> {
        let filter = filter.unwrap_or_default();
        let id = (!filter.id.is_empty()).then(|| self.engine.sandbox(&filter.id).map(|s| s.id.clone()));
        let wanted = |s: &SandboxRecord| {
            id.as_ref().is_none_or(|id| id.as_ref() == Some(&s.id))
                && filter.state.as_ref().is_none_or(|v| v.state == i32::from(status::sandbox_state(s)))
                && selected(&filter.label_selector, s.config.as_ref().map(|c| &c.labels))
        };
        let all = self.engine.sandboxes();
        all.iter().filter_map(|s| s.read(|s| wanted(s).then(|| status::sandbox_item(s)))).collect()
    }

    fn containers(&self, filter: Option<ContainerFilter>) -> Vec<Container> {
        let filter = filter.unwrap_or_default();
        let id = (!filter.id.is_empty()).then(|| self.engine.container(&filter.id).map(|c| c.id.clone()));
        let sandbox = (!filter.pod_sandbox_id.is_empty())
            .then(|| self.engine.sandbox(&filter.pod_sandbox_id).map(|s| s.id.clone()));
        let wanted = |c: &ContainerRecord| {
            id.as_ref().is_none_or(|id| id.as_ref() == Some(&c.id))
                && sandbox.as_ref().is_none_or(|id| id.as_ref() == Some(&c.sandbox_id))
                && filter.state.as_ref().is_none_or(|v| v.state == i32::from(status::state(c)))
                && selected(&filter.label_selector, c.config.as_ref().map(|c| &c.labels))
        };
        let all = self.engine.containers();
        all.iter().filter_map(|c| c.read(|c| wanted(c).then(|| status::container_item(c)))).collect()
    }

    async fn container_stats_list(&self, filter: Option<ContainerStatsFilter>) -> Vec<ContainerStats> {
        let filter = filter.unwrap_or_default();
        let running = self.containers(Some(ContainerFilter {
            id: filter.id,
            state: Some(ContainerStateValue { state: ContainerState::ContainerRunning.into() }),
            pod_sandbox_id: filter.pod_sandbox_id,
            label_selector: filter.label_selector,
        }));
        let mut stats = Vec::new();
        for item in running {
            if let Some(container) = self.engine.container(&item.id) {
                stats.extend(self.engine.container_stats(&container).await);
            }
        }
        stats
    }

    async fn sandbox_metrics_list(&self) -> Vec<PodSandboxMetrics> {
        let mut metrics = Vec::new();
        for sandbox in self.engine.sandboxes() {
            if sandbox.read(|s| s.ready) {
                metrics.extend(self.engine.sandbox_metrics(&sandbox).await);
            }
        }
        metrics
    }

    async fn sandbox_stats_list(&self, filter: Option<PodSandboxStatsFilter>) -> Vec<PodSandboxStats> {
        let filter = filter.unwrap_or_default();
        let ready = self.sandboxes(Some(PodSandboxFilter {
            id: filter.id,
            state: Some(PodSandboxStateValue { state: PodSandboxState::SandboxReady.into() }),
            label_selector: filter.label_selector,
        }));
        let mut stats = Vec::new();
        for item in ready {
            if let Some(sandbox) = self.engine.sandbox(&item.id) {
                stats.extend(self.engine.sandbox_stats(&sandbox).await);
            }
        }
        stats
    }

    fn url(&self, path: &str, session: Session) -> Result<String, Status> {
        let token = self.engine.tokens.add(session).map_err(|e| Status::resource_exhausted(e.to_string()))?;
        let address =
            self.engine.tokens.address().ok_or_else(|| Status::unavailable("the streaming server is not up"))?;
        Ok(format!("http://{address}/{path}/{token}"))
    }

    fn running(&self, id: &str) -> Result<Arc<KnownContainer>, Status> {
        let container = self.container(id)?;
        if container.record().running() {
            Ok(container)
        } else {
            let state = status::state(&container.record()).as_str_name();
            Err(Status::unknown(format!("container is in {state} state")))
        }
    }
}

#[tonic::async_trait]
impl RuntimeService for RuntimeServer {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: NAME.into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let RunPodSandboxRequest { config, runtime_handler } = request.into_inner();
        let config = config.ok_or_else(|| Status::invalid_argument("sandbox config is missing"))?;
        if config.metadata.is_none() {
            return Err(Status::invalid_argument("sandbox config must include metadata"));
        }
        crate::handlers::find(&runtime_handler).map_err(failed)?;
        let id = spawned(&self.engine, move |engine| async move { engine.run_sandbox(config, runtime_handler).await })
            .await?;
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(&self, request: Request<StopPodSandboxRequest>) -> Answer<StopPodSandboxResponse> {
        if let Some(sandbox) = self.engine.sandbox(&request.into_inner().pod_sandbox_id) {
            spawned(&self.engine, move |engine| async move { engine.stop_sandbox(&sandbox).await }).await?;
        }
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(&self, request: Request<RemovePodSandboxRequest>) -> Answer<RemovePodSandboxResponse> {
        if let Some(sandbox) = self.engine.sandbox(&request.into_inner().pod_sandbox_id) {
            spawned(&self.engine, move |engine| async move { engine.remove_sandbox(&sandbox).await }).await?;
        }
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(&self, request: Request<PodSandboxStatusRequest>) -> Answer<PodSandboxStatusResponse> {
        let PodSandboxStatusRequest { pod_sandbox_id, verbose } = request.into_inner();
        let record = self.sandbox(&pod_sandbox_id)?.record();
        let mut info = HashMap::new();
        if verbose {
            let about = serde_json::json!({"pid": record.shim_pid, "init": record.init_pid, "cgroupParent": record.cgroup_parent});
            info.insert("info".to_string(), about.to_string());
        }
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(status::sandbox(&record)),
            info,
            containers_statuses: self.engine.statuses_of(&record.id),
            timestamp: crate::shim::sys::now(),
        }))
    }

    async fn list_pod_sandbox(&self, request: Request<ListPodSandboxRequest>) -> Answer<ListPodSandboxResponse> {
        Ok(Response::new(ListPodSandboxResponse { items: self.sandboxes(request.into_inner().filter) }))
    }

    type StreamPodSandboxesStream = Streamed<StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let items = self.sandboxes(request.into_inner().filter);
        Ok(Response::new(chunks(items, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes })))
    }

    async fn create_container(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        let CreateContainerRequest { pod_sandbox_id, config, sandbox_config } = request.into_inner();
        let sandbox = self.sandbox(&pod_sandbox_id)?;
        let config = config.ok_or_else(|| Status::invalid_argument("container config is missing"))?;
        if config.metadata.is_none() {
            return Err(Status::invalid_argument("container config must include metadata"));
        }
        let id = spawned(&self.engine, move |engine| async move {
            tokio::task::spawn_blocking(move || engine.create_container(&sandbox, config, sandbox_config)).await?
        })
        .await?;
        Ok(Response::new(CreateContainerResponse { container_id: id }))
    }

    async fn start_container(&self, request: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        let container = self.container(&request.into_inner().container_id)?;
        spawned(&self.engine, move |engine| async move { engine.start_container(&container).await }).await?;
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let StopContainerRequest { container_id, timeout } = request.into_inner();
        let grace = Duration::from_secs(u64::try_from(timeout).unwrap_or(0));
        if let Some(container) = self.engine.container(&container_id) {
            self.engine.stop_container(&container, grace).await.map_err(failed)?;
        }
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(&self, request: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        if let Some(container) = self.engine.container(&request.into_inner().container_id) {
            spawned(&self.engine, move |engine| async move { engine.remove_container(&container).await }).await?;
        }
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(&self, request: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
        Ok(Response::new(ListContainersResponse { containers: self.containers(request.into_inner().filter) }))
    }

    type StreamContainersStream = Streamed<StreamContainersResponse>;
    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let items = self.containers(request.into_inner().filter);
        Ok(Response::new(chunks(items, |containers| StreamContainersResponse { containers })))
    }

    async fn container_status(&self, request: Request<ContainerStatusRequest>) -> Answer<ContainerStatusResponse> {
        let ContainerStatusRequest { container_id, verbose } = request.into_inner();
        let record = self.container(&container_id)?.record();
        let mut info = HashMap::new();
        if verbose {
            let about = serde_json::json!({"pid": record.pid, "sandboxID": record.sandbox_id, "cgroup": record.cgroup});
            info.insert("info".to_string(), about.to_string());
        }
        Ok(Response::new(ContainerStatusResponse { status: Some(self.engine.container_status(&record)), info }))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let UpdateContainerResourcesRequest { container_id, linux, .. } = request.into_inner();
        let container = self.container(&container_id)?;
        if let Some(linux) = linux {
            self.engine.update_resources(&container, linux).await.map_err(failed)?;
        }
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        let container = self.running(&request.into_inner().container_id)?;
        let dir = self.engine.sandbox_state_dir(&container.sandbox_id);
        let request = crate::shim::protocol::Request::ReopenLog { id: container.id.clone() };
        crate::shim_client::ask(&dir, &request).await.map_err(failed)?;
        Ok(Response::new(ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let ExecSyncRequest { container_id, cmd, timeout } = request.into_inner();
        let container = self.running(&container_id)?;
        let timeout = Duration::from_secs(u64::try_from(timeout).unwrap_or(0));
        let output = self.engine.exec_sync(&container, cmd, timeout).await.map_err(failed)?;
        Ok(Response::new(ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.code }))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let request = request.into_inner();
        let container = self.running(&request.container_id)?;
        if request.cmd.is_empty() {
            return Err(Status::invalid_argument("cmd is required"));
        }
        if request.tty && request.stderr {
            return Err(Status::invalid_argument("tty and stderr cannot both be true"));
        }
        let session = Session::Exec { container: container.id.clone(), request };
        Ok(Response::new(ExecResponse { url: self.url("exec", session)? }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let request = request.into_inner();
        let container = self.running(&request.container_id)?;
        let session = Session::Attach { container: container.id.clone(), request };
        Ok(Response::new(AttachResponse { url: self.url("attach", session)? }))
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        let request = request.into_inner();
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.record().ready {
            return Err(Status::unknown(format!("sandbox container \"{}\" is not running", sandbox.id)));
        }
        let session = Session::PortForward { sandbox: sandbox.id.clone(), ports: request.port };
        Ok(Response::new(PortForwardResponse { url: self.url("portforward", session)? }))
    }

    async fn container_stats(&self, request: Request<ContainerStatsRequest>) -> Answer<ContainerStatsResponse> {
        let container = self.container(&request.into_inner().container_id)?;
        Ok(Response::new(ContainerStatsResponse { stats: self.engine.container_stats(&container).await }))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let stats = self.container_stats_list(request.into_inner().filter).await;
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = Streamed<StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let items = self.container_stats_list(request.into_inner().filter).await;
        Ok(Response::new(chunks(items, |container_stats| StreamContainerStatsResponse { container_stats })))
    }

    async fn pod_sandbox_stats(&self, request: Request<PodSandboxStatsRequest>) -> Answer<PodSandboxStatsResponse> {
        let sandbox = self.sandbox(&request.into_inner().pod_sandbox_id)?;
        Ok(Response::new(PodSandboxStatsResponse { stats: self.engine.sandbox_stats(&sandbox).await }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let stats = self.sandbox_stats_list(request.into_inner().filter).await;
        Ok(Response::new(ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = Streamed<StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let items = self.sandbox_stats_list(request.into_inner().filter).await;
        Ok(Response::new(chunks(items, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats })))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let cidrs = request.into_inner().runtime_config.and_then(|c| c.network_config).unwrap_or_default().pod_cidr;
        // Dual-stack nodes name two ranges, joined.
        let read = |one: &str| one.parse().map_err(|e| Status::invalid_argument(format!("pod CIDR \"{one}\": {e}")));
        let ranges = cidrs.split(',').map(str::trim).filter(|one| !one.is_empty()).map(read);
        let ranges = ranges.collect::<Result<Vec<_>, _>>()?;
        if !ranges.is_empty() {
            self.engine.network.set_ranges(&ranges).map_err(failed)?;
        }
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let problem = self.engine.network.problem();
        let condition = |kind: &str, problem: Option<String>| RuntimeCondition {
            r#type: kind.into(),
            status: problem.is_none(),
            reason: problem.as_ref().map(|_| "NetworkPluginNotReady".into()).unwrap_or_default(),
            message: problem.map(|p| format!("Network plugin returns error: {p}")).unwrap_or_default(),
        };
        let mut info = HashMap::new();
        if request.into_inner().verbose {
            let config = serde_json::json!({
                "root": self.engine.config.root,
                "state": self.engine.config.state,
                "cgroupParent": self.engine.config.cgroup_parent,
                "sandboxImage": "",
            });
            info.insert("config".to_string(), config.to_string());
        }
        let handler = |(name, user_namespaces): (&str, bool)| RuntimeHandler {
            name: name.into(),
            features: Some(RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces }),
        };
        Ok(Response::new(StatusResponse {
            status: Some(RuntimeStatus {
                conditions: vec![condition("RuntimeReady", None), condition("NetworkReady", problem)],
            }),
            info,
            runtime_handlers: crate::handlers::available().into_iter().map(handler).collect(),
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
                mount_options: true,
            }),
        }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Err(Status::unimplemented("method CheckpointContainer not implemented"))
    }

    async fn checkpoint_pod(&self, _: Request<CheckpointPodRequest>) -> Answer<CheckpointPodResponse> {
        Err(Status::unimplemented("method CheckpointPod not implemented"))
    }

    async fn restore_pod(&self, _: Request<RestorePodRequest>) -> Answer<RestorePodResponse> {
        Err(Status::unimplemented("method RestorePod not implemented"))
    }

    type GetContainerEventsStream = Streamed<ContainerEventResponse>;
    async fn get_container_events(&self, _: Request<GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        let events = tokio_stream::wrappers::BroadcastStream::new(self.engine.subscribe());
        let events = events.map(|event| {
            event.map_err(|_| Status::resource_exhausted("events were lost: the listener is too slow; list anew"))
        });
        Ok(Response::new(events.boxed()))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        Ok(Response::new(ListMetricDescriptorsResponse { descriptors: crate::metrics::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        Ok(Response::new(ListPodSandboxMetricsResponse { pod_metrics: self.sandbox_metrics_list().await }))
    }

    type StreamPodSandboxMetricsStream = Streamed<StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let items = self.sandbox_metrics_list().await;
        Ok(Response::new(chunks(items, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics })))
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        let driver = LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs.into() };
        Ok(Response::new(RuntimeConfigResponse { linux: Some(driver) }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        // A notice: the pod's cgroup is the kubelet's, and our part of a pod has no limits of its own.
        self.sandbox(&request.into_inner().pod_sandbox_id)?;
        Ok(Response::new(UpdatePodSandboxResourcesResponse {}))
    }
}

/// Runs a change on a task of its own: a caller that hangs up must not leave it half done.
async fn spawned<T, F>(engine: &Arc<Engine>, work: impl FnOnce(Arc<Engine>) -> F) -> Result<T, Status>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    match tokio::spawn(work(engine.clone())).await {
        Ok(outcome) => outcome.map_err(failed),
        Err(error) => Err(Status::internal(format!("the call died: {error}"))),
    }
}
