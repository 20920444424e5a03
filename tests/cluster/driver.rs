//! A CSI driver on one node, a task of a test: its volumes are directories that are bound to where they are wanted, and one
//! may be a device. What it can is a table; what it was told it remembers.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use plugins::csi::node_server::{Node, NodeServer};
use plugins::csi::node_service_capability::{Rpc, Type, rpc};
use plugins::csi::{self, volume_capability::AccessType};
use plugins::registration;
use plugins::registration::registration_server::{Registration, RegistrationServer};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};

use super::wait;

pub type Answer<T> = Result<Response<T>, Status>;

/// A volume's numbers: capacity, used bytes, used inodes.
pub type Numbers = (i64, i64, i64);

/// What one can.
#[derive(Clone)]
pub struct Driver {
    pub name: &'static str,
    pub can: &'static [rpc::Type],
    pub volumes: PathBuf,
    /// A volume of this id is no directory but this block device.
    pub device: Option<(&'static str, PathBuf)>,
    /// What it says of every volume.
    pub numbers: Option<Numbers>,
    pub said: Arc<Mutex<Vec<String>>>,
}

/// One that serves, until dropped.
pub struct Serving {
    pub socket: PathBuf,
    _task: AbortOnDropHandle<std::result::Result<(), tonic::transport::Error>>,
}

/// Mounts below a directory, by their places.
pub fn mounted(dir: &Path) -> Result<Vec<PathBuf>> {
    let all = std::fs::read_to_string("/proc/self/mountinfo")?;
    let places = all.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    Ok(places.filter(|place| place.starts_with(dir)).collect())
}

fn failed(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

/// Again where it is already, nothing: an agent that starts anew asks again.
fn bind(from: &Path, to: &str) -> Result<(), Status> {
    if mounted(Path::new(to)).map_err(failed)?.iter().any(|place| place == Path::new(to)) {
        return Ok(());
    }
    let made = match from.metadata() {
        Ok(meta) if !meta.is_dir() => std::fs::write(to, ""),
        _ => std::fs::create_dir_all(from).and_then(|()| std::fs::create_dir_all(to)),
    };
    made.map_err(failed)?;
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(failed)
}

/// Already gone is what is wanted.
fn unbind(from: &str) -> Result<(), Status> {
    match umount2(from, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(failed(error)),
    }
    let removed = std::fs::remove_dir(from).or_else(|_| std::fs::remove_file(from));
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Those that a pod describes itself get their ids from the node.
fn is_own(volume: &str) -> bool {
    volume.starts_with("csi-")
}

fn detail(word: &str, value: &str) -> String {
    if value.is_empty() { String::new() } else { format!(" {word} {value}") }
}

/// The values of the secrets that were given.
fn secret(secrets: &std::collections::HashMap<String, String>) -> String {
    detail("with", &secrets.values().cloned().collect::<Vec<_>>().join(","))
}

impl Driver {
    fn say(&self, what: String) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// Comes to a node, by the agent's plugin registry.
    pub fn serve(&self, agent: &Path) -> Result<Serving> {
        let socket = agent.join("plugins_registry").join(format!("{}.sock", self.name));
        let listener = UnixListener::bind(&socket).context("the node's plugin registry")?;
        let serving = tonic::transport::Server::builder()
            .add_service(RegistrationServer::new(self.clone()))
            .add_service(NodeServer::new(self.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        Ok(Serving { socket, _task: AbortOnDropHandle::new(tokio::spawn(serving)) })
    }

    /// Waits until it was told this since the last look, in whatever order, and nothing else.
    pub async fn told(&self, what: &str, mut expected: Vec<String>) -> Result<()> {
        expected.sort();
        wait(what, || async {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            let mut sorted = said.clone();
            sorted.sort();
            ensure!(sorted == expected, "the driver was told {said:?}, not {expected:?}");
            said.clear();
            Ok(())
        })
        .await
    }

    /// Where a volume's data is.
    fn data(&self, volume: &str) -> PathBuf {
        let device = self.device.as_ref().filter(|(id, _)| *id == volume);
        device.map_or_else(|| self.volumes.join(volume), |(_, device)| device.clone())
    }

    fn is_device(&self, volume: &str) -> bool {
        self.device.as_ref().is_some_and(|(id, _)| *id == volume)
    }
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<registration::InfoRequest>) -> Answer<registration::PluginInfo> {
        Ok(Response::new(registration::PluginInfo {
            r#type: "CSIPlugin".into(),
            name: self.name.into(),
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
impl Node for Driver {
    async fn node_stage_volume(&self, r: Request<csi::NodeStageVolumeRequest>) -> Answer<csi::NodeStageVolumeResponse> {
        let r = r.into_inner();
        let place = r.publish_context.get("place").cloned().unwrap_or_default();
        self.say(format!("stage {}{}{}", r.volume_id, detail("at", &place), secret(&r.secrets)));
        if !self.is_device(&r.volume_id) {
            bind(&self.data(&r.volume_id), &r.staging_target_path)?;
        }
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
        let block = matches!(r.volume_capability.and_then(|c| c.access_type), Some(AccessType::Block(_)));
        if is_own(&r.volume_id) {
            let own = self.data(&r.volume_id);
            std::fs::create_dir_all(&own).and_then(|()| std::fs::write(own.join("pod"), &pod)).map_err(failed)?;
            bind(&own, &r.target_path)?;
            self.say(format!("publish one of {pod}'s own"));
            return Ok(Response::new(Default::default()));
        }
        let from = if block { self.data(&r.volume_id) } else { r.staging_target_path.into() };
        bind(&from, &r.target_path)?;
        let raw = if block { " raw" } else { "" };
        self.say(format!("publish {}{}{}{raw}", r.volume_id, detail("to", &pod), secret(&r.secrets)));
        Ok(Response::new(Default::default()))
    }

    async fn node_unpublish_volume(
        &self,
        r: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Answer<csi::NodeUnpublishVolumeResponse> {
        let r = r.into_inner();
        unbind(&r.target_path)?;
        self.say(format!("unpublish {}", if is_own(&r.volume_id) { "a pod's own" } else { &r.volume_id }));
        Ok(Response::new(Default::default()))
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Answer<csi::NodeGetVolumeStatsResponse> {
        use csi::volume_usage::Unit;
        let (capacity, bytes, inodes) = self.numbers.ok_or_else(|| Status::unimplemented("not asked for"))?;
        let row =
            |unit: Unit, total, used| csi::VolumeUsage { unit: unit as i32, total, used, available: total - used };
        let usage = vec![row(Unit::Bytes, capacity, bytes), row(Unit::Inodes, 100, inodes)];
        Ok(Response::new(csi::NodeGetVolumeStatsResponse { usage, ..Default::default() }))
    }

    async fn node_expand_volume(
        &self,
        r: Request<csi::NodeExpandVolumeRequest>,
    ) -> Answer<csi::NodeExpandVolumeResponse> {
        let r = r.into_inner();
        let size = r.capacity_range.map_or(0, |c| c.required_bytes);
        self.say(format!("expand {} to {size}{}", r.volume_id, secret(&r.secrets)));
        Ok(Response::new(csi::NodeExpandVolumeResponse { capacity_bytes: size }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Answer<csi::NodeGetCapabilitiesResponse> {
        let one =
            |kind: &rpc::Type| csi::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: *kind as i32 })) };
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities: self.can.iter().map(one).collect() }))
    }

    async fn node_get_info(&self, _: Request<csi::NodeGetInfoRequest>) -> Answer<csi::NodeGetInfoResponse> {
        Ok(Response::new(csi::NodeGetInfoResponse { node_id: "one".into(), ..Default::default() }))
    }
}
