//! A CSI driver whose volumes are attached before they come to the node, that is given secrets, whose files belong to the
//! pod's group, that grows volumes and tells how full they are; and one of its volumes as a raw device. The test is
//! what attaches and grows for its controller.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use client::{Client, Gvr, Patch};
use plugins::csi::node_service_capability::rpc;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use super::driver::{Driver, Numbers, mounted};
use super::{LOOK_AGAIN_AFTER, Stage, image, value, wait};

const NODE: &str = "node-1";
const NAME: &str = "disk.test.nauplius.dev";
/// A volume with a file system, and one without.
const DISK: &str = "disk";
const RAW: &str = "raw";
/// The pod's group.
const GROUP: u32 = 4321;
/// What the driver says of every volume.
const NUMBERS: Numbers = (1 << 31, 123_456, 7);

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
    let disk = Driver {
        name: NAME,
        can: &[rpc::Type::StageUnstageVolume, rpc::Type::ExpandVolume, rpc::Type::GetVolumeStats],
        volumes: dir.clone(),
        device: device.as_ref().map(|d| (RAW, d.0.clone())),
        numbers: Some(NUMBERS),
        said: Default::default(),
    };
    let agent = stage.cluster.data().join("nodes").join(NODE).join("kubelet");
    let serving = disk.serve(&agent)?;
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
        "registered".to_string(),
        format!("stage {DISK} at slot-9 with for-stage"),
        format!("publish {DISK} with for-publish"),
        format!("expand {DISK} to {} with for-expand", 2i64 << 30),
    ];
    if raw {
        expected.push(format!("stage {RAW} at slot-9 with for-stage"));
        expected.push(format!("publish {RAW} with for-publish raw"));
    }
    disk.told("the volumes are brought", expected).await?;
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
    let expected = names.iter().flat_map(|n| [format!("unpublish {n}"), format!("unstage {n}")]).collect();
    disk.told("the volumes are given back", expected).await?;
    let left = mounted(&agent.join("plugins"))?;
    ensure!(left.is_empty(), "still mounted: {left:?}");
    std::fs::remove_file(&serving.socket)?;
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
