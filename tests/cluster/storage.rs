//! A small CSI driver on one node, a task of this test, and pods with its volumes: one that outlives them and one that
//! does not. The agent is killed once while a pod uses them and once while a pod goes. And an image as a volume.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use plugins::csi::node_server::{Node, NodeServer};
use plugins::registration::registration_server::{Registration, RegistrationServer};
use plugins::{csi, registration};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::process::signal;
use super::{Stage, faults, image, node_is_ready, value, wait};

const NODE: &str = "node-1";
const NAME: &str = "small.test.nauplius.dev";
const LASTING: &str = "lasting";

/// Mounts below a directory, by their places.
pub fn mounted(dir: &Path) -> Result<Vec<PathBuf>> {
    let all = std::fs::read_to_string("/proc/self/mountinfo")?;
    let places = all.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    Ok(places.filter(|place| place.starts_with(dir)).collect())
}

/// Volumes are directories that are bound to where they are wanted.
#[derive(Clone)]
struct Small {
    volumes: PathBuf,
    said: Arc<Mutex<Vec<String>>>,
}

pub type Answer<T> = Result<Response<T>, Status>;

pub fn failed(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

/// Again where it is already, nothing: an agent that starts anew asks again.
pub fn bind(from: &Path, to: &str) -> Result<(), Status> {
    if mounted(Path::new(to)).map_err(failed)?.iter().any(|place| place == Path::new(to)) {
        return Ok(());
    }
    std::fs::create_dir_all(from).and_then(|()| std::fs::create_dir_all(to)).map_err(failed)?;
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(failed)
}

/// Already gone is what is wanted.
pub fn unbind(from: &str) -> Result<(), Status> {
    match umount2(from, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(failed(error)),
    }
    match std::fs::remove_dir(from) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

impl Small {
    fn say(&self, what: String) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// Waits until the driver was told this since the last look, in whatever order, and nothing else.
    async fn told(&self, what: &str, mut expected: Vec<String>) -> Result<()> {
        expected.sort();
        wait(what, || async {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            let mut sorted = said.clone();
            sorted.sort();
            ensure!(sorted == expected, "the driver was told {said:?}");
            said.clear();
            Ok(())
        })
        .await
    }
}

#[tonic::async_trait]
impl Registration for Small {
    async fn get_info(&self, _: Request<registration::InfoRequest>) -> Answer<registration::PluginInfo> {
        Ok(Response::new(registration::PluginInfo {
            r#type: "CSIPlugin".into(),
            name: NAME.into(),
            supported_versions: vec!["1.0.0".into()],
            ..Default::default()
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<registration::RegistrationStatus>,
    ) -> Answer<registration::RegistrationStatusResponse> {
        let status = request.into_inner();
        self.say(if status.plugin_registered { "registered".into() } else { status.error });
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl Node for Small {
    async fn node_stage_volume(&self, r: Request<csi::NodeStageVolumeRequest>) -> Answer<csi::NodeStageVolumeResponse> {
        let r = r.into_inner();
        self.say(format!("stage {}", r.volume_id));
        bind(&self.volumes.join(&r.volume_id), &r.staging_target_path)?;
        Ok(Response::new(Default::default()))
    }

    async fn node_unstage_volume(
        &self,
        r: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Answer<csi::NodeUnstageVolumeResponse> {
        let r = r.into_inner();
        unbind(&r.staging_target_path)?;
        self.say(format!("unstage {}", r.volume_id));
        Ok(Response::new(Default::default()))
    }

    async fn node_publish_volume(
        &self,
        r: Request<csi::NodePublishVolumeRequest>,
    ) -> Answer<csi::NodePublishVolumeResponse> {
        let r = r.into_inner();
        let pod = r.volume_context.get("csi.storage.k8s.io/pod.name").cloned().unwrap_or_default();
        if r.staging_target_path.is_empty() {
            let own = self.volumes.join(&r.volume_id);
            std::fs::create_dir_all(&own).and_then(|()| std::fs::write(own.join("pod"), &pod)).map_err(failed)?;
            bind(&own, &r.target_path)?;
            self.say(format!("publish one of {pod}'s own"));
        } else {
            bind(Path::new(&r.staging_target_path), &r.target_path)?;
            self.say(format!("publish {} to {pod}", r.volume_id));
        }
        Ok(Response::new(Default::default()))
    }

    async fn node_unpublish_volume(
        &self,
        r: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Answer<csi::NodeUnpublishVolumeResponse> {
        let r = r.into_inner();
        unbind(&r.target_path)?;
        let which = if r.volume_id == LASTING { LASTING } else { "a pod's own" };
        self.say(format!("unpublish {which}"));
        Ok(Response::new(Default::default()))
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Answer<csi::NodeGetVolumeStatsResponse> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn node_expand_volume(
        &self,
        _: Request<csi::NodeExpandVolumeRequest>,
    ) -> Answer<csi::NodeExpandVolumeResponse> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Answer<csi::NodeGetCapabilitiesResponse> {
        use csi::node_service_capability::{Rpc, Type, rpc};
        let stages = Type::Rpc(Rpc { r#type: rpc::Type::StageUnstageVolume as i32 });
        let capabilities = vec![csi::NodeServiceCapability { r#type: Some(stages) }];
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<csi::NodeGetInfoRequest>) -> Answer<csi::NodeGetInfoResponse> {
        Ok(Response::new(csi::NodeGetInfoResponse { node_id: "one".into(), ..Default::default() }))
    }
}

/// Reads and writes the volume that lasts, and reads what the driver left in the pod's own.
fn pod(name: &str) -> Value {
    let script =
        "seen=$(cat /lasting/* /own/pod); echo $seen > /lasting/file; trap exit TERM; while sleep 1; do :; done";
    json!({"metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 1,
        "volumes": [{"name": LASTING, "persistentVolumeClaim": {"claimName": LASTING}},
                    {"name": "own", "csi": {"driver": NAME}}],
        "containers": [{"name": "c", "image": image::NAME, "command": ["sh", "-c", script],
            "volumeMounts": [{"name": LASTING, "mountPath": "/lasting"}, {"name": "own", "mountPath": "/own"}]}],
    }})
}

/// What a driver is told when a pod's volumes are brought, and when they are given back.
fn brought(pod: &str) -> Vec<String> {
    vec!["stage lasting".into(), format!("publish lasting to {pod}"), format!("publish one of {pod}'s own")]
}

fn given_back() -> Vec<String> {
    ["unpublish lasting", "unpublish a pod's own", "unstage lasting"].map(String::from).to_vec()
}

/// What there is before any pod: the driver's word about itself, a class without a provisioner, a volume and its claim.
async fn objects(stage: &Stage) -> Result<()> {
    let wish = json!({"capacity": {"storage": "1Gi"}, "csi": {"driver": NAME, "volumeHandle": LASTING},
        "accessModes": ["ReadWriteOnce"], "storageClassName": "small", "persistentVolumeReclaimPolicy": "Retain"});
    let claim = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "small",
        "resources": {"requests": {"storage": "1Gi"}}});
    let driver = json!({"attachRequired": false, "podInfoOnMount": true,
        "volumeLifecycleModes": ["Persistent", "Ephemeral"]});
    for (group, plural, object) in [
        ("storage.k8s.io", "csidrivers", json!({"metadata": {"name": NAME}, "spec": driver})),
        (
            "storage.k8s.io",
            "storageclasses",
            json!({"metadata": {"name": "small"},
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"}),
        ),
        ("", "persistentvolumes", json!({"metadata": {"name": LASTING}, "spec": wish})),
    ] {
        stage.client.dynamic(client::Gvr::new(group, "v1", plural)).create(object).await?;
    }
    let claim = json!({"metadata": {"name": LASTING}, "spec": claim});
    stage.api("", "v1", "persistentvolumeclaims").create(claim).await?;
    Ok(())
}

/// A driver comes to the node; pods use what it gives, and then all is given back.
pub async fn driver(stage: &Stage) -> Result<()> {
    let small = Small { volumes: stage.cluster.dir.join("volumes"), said: Arc::default() };
    objects(stage).await?;
    let agent = stage.cluster.data().join("nodes").join(NODE).join("kubelet");
    let socket = agent.join("plugins_registry/small.sock");
    let listener = UnixListener::bind(&socket).context("the node's plugin registry")?;
    let serving = tonic::transport::Server::builder()
        .add_service(RegistrationServer::new(small.clone()))
        .add_service(NodeServer::new(small.clone()))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let serving = tokio::spawn(serving);
    let registered = vec!["registered".to_string()];
    small.told("the driver is registered", registered.clone()).await?;
    let nodes = stage.client.dynamic(client::Gvr::new("storage.k8s.io", "v1", "csinodes"));
    let found = value(&*nodes.get(NODE).await?)?;
    ensure!(found["spec"]["drivers"][0]["nodeID"] == "one", "its node has {}", found["spec"]);

    let pods = stage.api("", "v1", "pods");
    let runs = |name: &'static str, written: &'static str| {
        let (pods, file) = (&pods, small.volumes.join(LASTING).join("file"));
        wait("the pod with a driver's volumes runs", move || {
            let file = file.clone();
            async move {
                let pod = value(&*pods.get(name).await?)?;
                ensure!(node_is_ready(&pod), "its status is {}", pod["status"]);
                let file = std::fs::read_to_string(file)?;
                ensure!(file == written, "it wrote {file:?}");
                ensure!(pod["status"]["containerStatuses"][0]["restartCount"] == 0, "its status is {}", pod["status"]);
                Ok(())
            }
        })
    };
    pods.create(pod("first")).await?;
    runs("first", "first\n").await?;
    small.told("its volumes are brought", brought("first")).await?;

    let processes = faults::processes_of(stage, NODE)?;
    processes.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
    let again = registered.iter().cloned().chain(brought("first")).collect();
    small.told("an agent that starts anew asks again", again).await?;
    runs("first", "first\n").await?;
    pods.delete("first", &client::DeleteOptions::default().grace(1)).await?;
    small.told("the driver has its volumes back", given_back()).await?;
    ensure!(small.volumes.join("lasting/file").exists(), "what the pod wrote is gone");

    pods.create(pod("second")).await?;
    runs("second", "first second\n").await?;
    small.told("the volumes are brought to another pod", brought("second")).await?;
    let processes = faults::processes_of(stage, NODE)?;
    processes.iter().for_each(|pid| signal(*pid, Signal::SIGSTOP));
    pods.delete("second", &client::DeleteOptions::default().grace(0)).await?;
    processes.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
    let expected = registered.into_iter().chain(given_back()).collect();
    small.told("an agent that starts anew gives back what no pod has", expected).await?;
    let left = mounted(&agent.join("plugins"))?;
    ensure!(left.is_empty(), "still mounted: {left:?}");
    wait("nothing of a pod is mounted", || async {
        let left = mounted(&agent.join("pods"))?;
        ensure!(left.is_empty(), "still mounted: {left:?}");
        Ok(())
    })
    .await?;

    serving.abort();
    std::fs::remove_file(socket)?;
    wait("the node forgets the driver", || async {
        let found = value(&*nodes.get(NODE).await?)?;
        ensure!(found["spec"]["drivers"].as_array().is_none_or(Vec::is_empty), "its node has {}", found["spec"]);
        Ok(())
    })
    .await
}

/// A pod reads an image's files, all of them and those of one directory, and cannot change them.
pub async fn image_files(stage: &Stage) -> Result<()> {
    let script = "cat /part/passwd && test -x /whole/bin/busybox && ! touch /part/new && ! touch /whole/new";
    let pod = json!({"metadata": {"name": "of-image"}, "spec": {
        "restartPolicy": "Never",
        "volumes": [{"name": "files", "image": {"reference": image::NAME, "pullPolicy": "Never"}}],
        "containers": [{"name": "c", "image": image::NAME, "command": ["sh", "-c", script], "volumeMounts": [
            {"name": "files", "mountPath": "/whole"}, {"name": "files", "mountPath": "/part", "subPath": "etc"}]}],
    }});
    let pods = stage.api("", "v1", "pods");
    pods.create(pod).await?;
    wait("the pod has read an image's files", || async {
        let pod = value(&*pods.get("of-image").await?)?;
        ensure!(pod["status"]["phase"] == "Succeeded", "its status is {}", pod["status"]);
        Ok(())
    })
    .await?;
    let log = stage.client.get_path("/api/v1/namespaces/default/pods/of-image/log").await?;
    ensure!(log.starts_with(b"root:x:0:0:"), "it says {log:?}");
    Ok(())
}
