//! A small CSI driver on one node, and pods with its volumes: one that outlives them and one that
//! does not. The agent is killed once while a pod uses them and once while a pod goes. And an image as a volume.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use plugins::csi::node_service_capability::rpc;
use serde_json::{Value, json};

use super::driver::{Driver, mounted};
use super::process::signal;
use super::{Stage, faults, image, node_is_ready, value, wait};

const NODE: &str = "node-1";
const NAME: &str = "small.test.nauplius.dev";
const LASTING: &str = "lasting";

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
    let small = Driver {
        name: NAME,
        can: &[rpc::Type::StageUnstageVolume],
        volumes: stage.cluster.dir.join("volumes"),
        device: None,
        numbers: None,
        said: Default::default(),
    };
    objects(stage).await?;
    let agent = stage.cluster.data().join("nodes").join(NODE).join("kubelet");
    let serving = small.serve(&agent)?;
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

    let socket = serving.socket.clone();
    drop(serving);
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
