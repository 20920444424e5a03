//! A CSI driver whose volumes are attached before they come to the node, that is given secrets, whose files belong to the
//! pod's group, that grows volumes and tells how full they are; and one of its volumes as a raw device. The test is the
//! driver, and what attaches and grows for its controller.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use client::{Client, Gvr, Patch};
use plugins::csi::node_server::{Node, NodeServer};
use plugins::csi::{self, volume_capability::AccessType};
use plugins::registration;
use plugins::registration::registration_server::{Registration, RegistrationServer};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};

use super::storage::{Answer, bind, failed, mounted, unbind};
use super::{LOOK_AGAIN_AFTER, Stage, image, value, wait};

const NODE: &str = "node-1";
const NAME: &str = "disk.test.nauplius.dev";
/// A volume with a file system, and one without.
const DISK: &str = "disk";
const RAW: &str = "raw";
/// The pod's group.
const GROUP: u32 = 4321;
/// What the driver says of every volume: capacity, used bytes, used inodes.
const NUMBERS: (i64, i64, i64) = (1 << 31, 123_456, 7);

#[derive(Clone)]
struct Disk {
    volumes: PathBuf,
    /// A block device, where this machine has one to give.
    device: Option<PathBuf>,
    said: Arc<Mutex<Vec<String>>>,
}

impl Disk {
    fn say(&self, what: String) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }
}

#[tonic::async_trait]
impl Registration for Disk {
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
        _: Request<registration::RegistrationStatus>,
    ) -> Answer<registration::RegistrationStatusResponse> {
        Ok(Response::new(Default::default()))
    }
}

/// The value of the only secret.
fn secret(secrets: &std::collections::HashMap<String, String>) -> String {
    secrets.values().cloned().collect::<Vec<_>>().join(",")
}

#[tonic::async_trait]
impl Node for Disk {
    async fn node_stage_volume(&self, r: Request<csi::NodeStageVolumeRequest>) -> Answer<csi::NodeStageVolumeResponse> {
        let r = r.into_inner();
        let place = r.publish_context.get("place").cloned().unwrap_or_default();
        self.say(format!("stage {} at {place} with {}", r.volume_id, secret(&r.secrets)));
        if r.volume_id == DISK {
            bind(&self.volumes.join(DISK), &r.staging_target_path)?;
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
        let block = matches!(r.volume_capability.and_then(|c| c.access_type), Some(AccessType::Block(_)));
        self.say(format!("publish {} with {}{}", r.volume_id, secret(&r.secrets), if block { " raw" } else { "" }));
        if block {
            let device = self.device.as_ref().ok_or_else(|| Status::internal("no device"))?;
            std::fs::write(&r.target_path, "").map_err(failed)?;
            let flags = nix::mount::MsFlags::MS_BIND;
            nix::mount::mount(Some(device), r.target_path.as_str(), None::<&str>, flags, None::<&str>)
                .map_err(failed)?;
        } else {
            bind(Path::new(&r.staging_target_path), &r.target_path)?;
        }
        Ok(Response::new(Default::default()))
    }

    async fn node_unpublish_volume(
        &self,
        r: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Answer<csi::NodeUnpublishVolumeResponse> {
        let r = r.into_inner();
        if r.volume_id == RAW {
            let gone = nix::mount::umount2(r.target_path.as_str(), nix::mount::MntFlags::UMOUNT_NOFOLLOW);
            if !matches!(gone, Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT)) {
                return Err(Status::internal("the device is in use"));
            }
            let _ = std::fs::remove_file(&r.target_path);
        } else {
            unbind(&r.target_path)?;
        }
        self.say(format!("unpublish {}", r.volume_id));
        Ok(Response::new(Default::default()))
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Answer<csi::NodeGetVolumeStatsResponse> {
        use csi::volume_usage::Unit;
        let row =
            |unit: Unit, total, used| csi::VolumeUsage { unit: unit as i32, total, used, available: total - used };
        let usage = vec![row(Unit::Bytes, NUMBERS.0, NUMBERS.1), row(Unit::Inodes, 100, NUMBERS.2)];
        Ok(Response::new(csi::NodeGetVolumeStatsResponse { usage, ..Default::default() }))
    }

    async fn node_expand_volume(
        &self,
        r: Request<csi::NodeExpandVolumeRequest>,
    ) -> Answer<csi::NodeExpandVolumeResponse> {
        let r = r.into_inner();
        let size = r.capacity_range.map_or(0, |c| c.required_bytes);
        self.say(format!("expand {} to {size} with {}", r.volume_id, secret(&r.secrets)));
        Ok(Response::new(csi::NodeExpandVolumeResponse { capacity_bytes: size }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Answer<csi::NodeGetCapabilitiesResponse> {
        use csi::node_service_capability::{Rpc, Type, rpc};
        let all = [rpc::Type::StageUnstageVolume, rpc::Type::ExpandVolume, rpc::Type::GetVolumeStats];
        let capability = |kind| csi::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind as i32 })) };
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities: all.map(capability).to_vec() }))
    }

    async fn node_get_info(&self, _: Request<csi::NodeGetInfoRequest>) -> Answer<csi::NodeGetInfoResponse> {
        Ok(Response::new(csi::NodeGetInfoResponse { node_id: "one".into(), ..Default::default() }))
    }
}

fn attachments() -> Gvr {
    Gvr::new("storage.k8s.io", "v1", "volumeattachments")
}

/// What a driver's controller does: says of every attachment that it is made.
async fn attach(client: Client) {
    let api = client.dynamic(attachments());
    loop {
        let list = api.list(&Default::default()).await.map(|l| l.items).unwrap_or_default();
        for found in list.iter().filter_map(|a| value(a).ok()) {
            if found["spec"]["attacher"] == NAME && found["status"]["attached"] != true {
                let status = json!({"status": {"attached": true, "attachmentMetadata": {"place": "slot-9"}}});
                let name = found["metadata"]["name"].as_str().unwrap_or_default();
                // Tried again with the next look.
                let _ = api.patch_subresource(name, "status", Patch::Merge(status)).await;
            }
        }
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    }
}

async fn objects(stage: &Stage, raw: bool) -> Result<()> {
    let secrets = stage.api("", "v1", "secrets");
    for name in ["for-stage", "for-publish", "for-expand"] {
        secrets.create(json!({"metadata": {"name": name}, "stringData": {"key": name}})).await?;
    }
    let storage = |plural: &str| stage.client.dynamic(Gvr::new("storage.k8s.io", "v1", plural));
    let driver = json!({"attachRequired": true, "fsGroupPolicy": "File", "volumeLifecycleModes": ["Persistent"]});
    storage("csidrivers").create(json!({"metadata": {"name": NAME}, "spec": driver})).await?;
    let class = json!({"metadata": {"name": "disks"}, "provisioner": "kubernetes.io/no-provisioner",
        "allowVolumeExpansion": true, "volumeBindingMode": "WaitForFirstConsumer"});
    storage("storageclasses").create(class).await?;
    let of = |name: &str| json!({"name": name, "namespace": "default"});
    for (name, mode) in [(DISK, "Filesystem"), (RAW, "Block")].into_iter().take(if raw { 2 } else { 1 }) {
        let source = json!({"driver": NAME, "volumeHandle": name, "fsType": "ext4", "nodeStageSecretRef": of("for-stage"),
            "nodePublishSecretRef": of("for-publish"), "nodeExpandSecretRef": of("for-expand")});
        let wish = json!({"capacity": {"storage": "1Gi"}, "csi": source, "accessModes": ["ReadWriteOnce"],
            "storageClassName": "disks", "volumeMode": mode, "persistentVolumeReclaimPolicy": "Retain"});
        let volumes = stage.client.dynamic(Gvr::new("", "v1", "persistentvolumes"));
        volumes.create(json!({"metadata": {"name": name}, "spec": wish})).await?;
        let claim = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "disks", "volumeMode": mode,
            "volumeName": name, "resources": {"requests": {"storage": "1Gi"}}});
        let claims = stage.api("", "v1", "persistentvolumeclaims");
        claims.create(json!({"metadata": {"name": name}, "spec": claim})).await?;
        wait("the claim is bound", || async {
            let claim = value(&*claims.get(name).await?)?;
            ensure!(claim["status"]["phase"] == "Bound", "its status is {}", claim["status"]);
            Ok(())
        })
        .await?;
    }
    // What a driver's controller does with a claim that wants more: the volume is larger, the node has to follow.
    let volumes = stage.client.dynamic(Gvr::new("", "v1", "persistentvolumes"));
    volumes.patch(DISK, Patch::Merge(json!({"spec": {"capacity": {"storage": "2Gi"}}}))).await?;
    let claims = stage.api("", "v1", "persistentvolumeclaims");
    claims.patch(DISK, Patch::Merge(json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}))).await?;
    let pending = json!({"status": {"allocatedResourceStatuses": {"storage": "NodeResizePending"}}});
    claims.patch_subresource(DISK, "status", Patch::Merge(pending)).await?;
    Ok(())
}

fn pod(raw: bool) -> Value {
    let device = if raw { "cat /dev/raw > /disk/raw;" } else { "" };
    let script = format!("ls -ldn /disk > /disk/listed; {device} trap exit TERM; while sleep 1; do :; done");
    let mut pod = json!({"metadata": {"name": "of-disks"}, "spec": {
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"fsGroup": GROUP},
        "volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": DISK}}],
        "containers": [{"name": "c", "image": image::NAME, "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "disk", "mountPath": "/disk"}]}],
    }});
    if raw {
        let volume = json!({"name": "raw", "persistentVolumeClaim": {"claimName": RAW}});
        pod["spec"]["volumes"] = json!([pod["spec"]["volumes"][0], volume]);
        pod["spec"]["containers"][0]["volumeDevices"] = json!([{"name": "raw", "devicePath": "/dev/raw"}]);
    }
    pod
}

/// A loop device over a file, for as long as it lives.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path) -> Option<Loop> {
        let mut content = b"a raw device".to_vec();
        content.resize(4096, b'.');
        std::fs::write(file, content).ok()?;
        let output = Command::new("losetup").args(["-f", "--show"]).arg(file).output().ok()?;
        let device = String::from_utf8(output.stdout).ok()?.trim().to_string();
        (output.status.success() && !device.is_empty()).then(|| Loop(device.into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Gone with the machine otherwise.
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// Volumes come, are used and counted, grow, and go.
pub async fn disks(stage: &Stage) -> Result<()> {
    let dir = stage.cluster.dir.join("disks");
    std::fs::create_dir_all(&dir)?;
    let device = Loop::over(&dir.join("backing"));
    if device.is_none() {
        println!("skipped in part: without a loop device no raw volume");
    }
    let raw = device.is_some();
    let disk = Disk { volumes: dir.clone(), device: device.as_ref().map(|d| d.0.clone()), said: Arc::default() };
    let agent = stage.cluster.data().join("nodes").join(NODE).join("kubelet");
    let listener =
        UnixListener::bind(agent.join("plugins_registry/disk.sock")).context("the node's plugin registry")?;
    let serving = tonic::transport::Server::builder()
        .add_service(RegistrationServer::new(disk.clone()))
        .add_service(NodeServer::new(disk.clone()))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let _serving = AbortOnDropHandle::new(tokio::spawn(serving));
    let _attaching = AbortOnDropHandle::new(tokio::spawn(attach(stage.client.clone())));
    objects(stage, raw).await?;
    let pods = stage.api("", "v1", "pods");
    pods.create(pod(raw)).await?;
    wait("the pod of attached volumes runs", || async {
        let pod = value(&*pods.get("of-disks").await?)?;
        ensure!(super::node_is_ready(&pod), "its status is {}", pod["status"]);
        let listed = std::fs::read_to_string(dir.join(DISK).join("listed"))?;
        ensure!(listed.split_whitespace().nth(3) == Some(&GROUP.to_string()), "it is {listed:?}");
        if raw {
            let read = std::fs::read(dir.join(DISK).join("raw"))?;
            ensure!(read.starts_with(b"a raw device"), "the device reads {read:?}");
        }
        Ok(())
    })
    .await?;
    let mut expected = vec![
        format!("stage {DISK} at slot-9 with for-stage"),
        format!("publish {DISK} with for-publish"),
        format!("expand {DISK} to {} with for-expand", 2i64 << 30),
    ];
    if raw {
        expected.push(format!("stage {RAW} at slot-9 with for-stage"));
        expected.push(format!("publish {RAW} with for-publish raw"));
    }
    told(&disk, expected)?;
    counted(stage, raw).await?;

    pods.delete("of-disks", &client::DeleteOptions::default().grace(1)).await?;
    wait("the volumes are given back and detached", || async {
        let left = stage.client.dynamic(attachments()).list(&Default::default()).await?.items.len();
        ensure!(left == 0, "{left} attachments are left");
        let node = value(&*stage.client.dynamic(Gvr::new("", "v1", "nodes")).get(NODE).await?)?;
        let used = &node["status"]["volumesInUse"];
        ensure!(used.as_array().is_none_or(Vec::is_empty), "in use: {used}");
        Ok(())
    })
    .await?;
    let names = if raw { vec![DISK, RAW] } else { vec![DISK] };
    told(&disk, names.iter().flat_map(|n| [format!("unpublish {n}"), format!("unstage {n}")]).collect())?;
    let left = mounted(&agent.join("plugins"))?;
    ensure!(left.is_empty(), "still mounted: {left:?}");
    std::fs::remove_file(agent.join("plugins_registry/disk.sock"))?;
    Ok(())
}

/// In whatever order, and nothing else since the last look.
fn told(disk: &Disk, mut expected: Vec<String>) -> Result<()> {
    let mut said = std::mem::take(&mut *disk.said.lock().unwrap_or_else(PoisonError::into_inner));
    said.sort();
    expected.sort();
    ensure!(said == expected, "the driver was told {said:?}, not {expected:?}");
    Ok(())
}

/// The claim's size, the node's status, the summary and the metrics say what the driver said.
async fn counted(stage: &Stage, raw: bool) -> Result<()> {
    let claim = value(&*stage.api("", "v1", "persistentvolumeclaims").get(DISK).await?)?;
    ensure!(claim["status"]["capacity"]["storage"] == "2Gi", "its status is {}", claim["status"]);
    let unique = format!("kubernetes.io/csi/{NAME}^{DISK}");
    wait("the node says what it uses and has", || async {
        let node = value(&*stage.client.dynamic(Gvr::new("", "v1", "nodes")).get(NODE).await?)?;
        let used = node["status"]["volumesInUse"].as_array().cloned().unwrap_or_default();
        ensure!(used.len() == if raw { 2 } else { 1 } && used.contains(&json!(unique)), "in use: {used:?}");
        let attached = node["status"]["volumesAttached"].as_array().cloned().unwrap_or_default();
        ensure!(attached.iter().any(|a| a["name"] == unique.as_str()), "attached: {attached:?}");
        Ok(())
    })
    .await?;
    let of_node = format!("/api/v1/nodes/{NODE}/proxy");
    let summary = stage.client.get_path(&format!("{of_node}/stats/summary")).await?;
    let summary: Value = serde_json::from_slice(&summary)?;
    let pods = summary["pods"].as_array().cloned().unwrap_or_default();
    let volumes = pods.iter().find(|p| p["podRef"]["name"] == "of-disks").map(|p| &p["volume"]);
    let volume = volumes.and_then(|v| v.as_array()?.iter().find(|v| v["name"] == "disk"));
    let volume = volume.with_context(|| format!("the summary has {volumes:?}"))?;
    ensure!(
        volume["pvcRef"]["name"] == DISK && volume["usedBytes"] == NUMBERS.1 && volume["inodesUsed"] == NUMBERS.2,
        "the summary says {volume}"
    );
    let metrics = stage.client.get_path(&format!("{of_node}/metrics")).await?;
    let metrics = String::from_utf8_lossy(&metrics).into_owned();
    let line = format!(
        "kubelet_volume_stats_used_bytes{{namespace=\"default\",persistentvolumeclaim=\"{DISK}\"}} {}",
        NUMBERS.1
    );
    ensure!(metrics.contains(&line), "the metrics lack {line}");
    Ok(())
}
