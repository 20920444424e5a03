//! Whole clusters with real containers, driven as a person would: images, applications, services, faults, the end.
//!
//! One cluster a variant, one after the other: all in one process, split into one process a role, over a real etcd, with
//! Debian's containerd; and two short ones, with a CSI driver and for the network of three nodes. They need root, namespaces,
//! busybox-static and nftables; without these, or without a variant's own program, a test says what it lacks and passes. What a killed test left on the machine
//! the next one removes.

mod attached;
mod devices;
mod driver;
mod engine;
mod faults;
mod image;
mod network;
mod place;
mod pods;
mod process;
mod storage;
mod workloads;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use client::{Client, Object};
use serde_json::Value;

use crate::api::server::{self, Etcd};
use process::Cluster;
pub use process::program;

/// How long anything may take that takes a second on an idle machine.
const WITHIN: Duration = Duration::from_secs(90);
const KUBECTL_WITHIN: Duration = Duration::from_secs(60);
/// One variant from nothing to nothing.
const ALL_WITHIN: Duration = Duration::from_secs(600);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Clusters share the machine's addresses: one at a time.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[derive(Default)]
struct Variant {
    name: &'static str,
    arguments: &'static [&'static str],
    nodes: usize,
    etcd: bool,
    containerd: bool,
    faults: bool,
    /// Its parts are volumes' alone: a driver's and an image's.
    driver: bool,
    /// Its parts are the network's alone.
    network: bool,
    /// Its parts are attached volumes and devices alone.
    devices: bool,
}

/// A cluster that runs, and what the parts of a test need of it.
struct Stage {
    cluster: Cluster,
    client: Client,
    nodes: usize,
    kubectl: Option<PathBuf>,
}

pub fn node_is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Asks until it is so, or says what is the case instead.
async fn wait<T, F: Future<Output = Result<T>>>(what: &str, mut ask: impl FnMut() -> F) -> Result<T> {
    let deadline = Instant::now() + WITHIN;
    loop {
        match ask().await {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("{what}: not so after {} s", WITHIN.as_secs())));
            }
            Err(_) => tokio::time::sleep(LOOK_AGAIN_AFTER).await,
        }
    }
}

fn value(object: &Object) -> Result<Value> {
    Ok(object.value()?)
}

impl Stage {
    fn api(&self, group: &str, version: &str, plural: &str) -> client::DynamicApi {
        process::api(&self.client, group, version, plural)
    }

    /// The pods of a selector that no one is deleting.
    async fn pods(&self, labels: &str) -> Result<Vec<Value>> {
        let list = self.api("", "v1", "pods").list(&client::ListOptions::labels(labels)).await?;
        let pods = list.items.iter().map(|p| value(p)).collect::<Result<Vec<_>>>()?;
        Ok(pods.into_iter().filter(|p| p["metadata"]["deletionTimestamp"].is_null()).collect())
    }

    /// Waits for so many pods of a selector, all Ready and no others.
    async fn ready_pods(&self, labels: &str, count: usize) -> Result<Vec<Value>> {
        wait(&format!("{count} pods of {labels} Ready"), || async {
            let pods = self.pods(labels).await?;
            let ready = pods.iter().filter(|p| node_is_ready(p)).count();
            ensure!(ready == count && pods.len() == count, "{ready} of {} are Ready: {}", pods.len(), states(&pods));
            Ok(pods)
        })
        .await
    }

    /// What the cluster's own events say is wrong.
    async fn warnings(&self) -> String {
        let list = self.api("", "v1", "events").list(&Default::default()).await;
        let events = list.map(|l| l.items).unwrap_or_default();
        let events = events.iter().filter_map(|e| value(e).ok()).filter(|e| e["type"] == "Warning");
        events
            .map(|e| format!("\n  {} {}: {}", e["involvedObject"]["name"], e["reason"], e["message"]))
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// `kubectl` with these words; nothing when there is none.
    fn kubectl(&self, words: &[&str]) -> Result<Option<String>> {
        let Some(kubectl) = &self.kubectl else { return Ok(None) };
        let mut command = Command::new("timeout");
        command
            .arg(KUBECTL_WITHIN.as_secs().to_string())
            .arg(kubectl)
            .arg("--kubeconfig")
            .arg(&self.cluster.kubeconfig)
            .arg("--cache-dir")
            .arg(self.cluster.dir.join("kubectl"))
            .args(words);
        let output = command.stdin(Stdio::null()).output()?;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "kubectl {}: {said}", words.join(" "));
        Ok(Some(said))
    }

    /// A command of a pod's container, asked until it succeeds with an answer that contains the text.
    async fn exec(&self, pod: &str, script: &str, expected: &str) -> Result<Option<String>> {
        wait(&format!("{script} in {pod} says {expected:?}"), || async {
            let said = self.kubectl(&["exec", pod, "--", "sh", "-c", script])?;
            ensure!(said.as_ref().is_none_or(|s| s.contains(expected)), "it says {said:?}");
            Ok(said)
        })
        .await
    }
}

fn states(pods: &[Value]) -> String {
    let state = |p: &Value| {
        format!(
            "{} on {}: {} {}",
            p["metadata"]["name"], p["spec"]["nodeName"], p["status"]["phase"], p["status"]["containerStatuses"]
        )
    };
    pods.iter().map(state).collect::<Vec<_>>().join("; ")
}

/// What the machine lacks for clusters.
fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root");
    }
    if image::busybox().is_none() {
        return Some("busybox-static");
    }
    server::program("nft").is_none().then_some("nftables")
}

async fn run(variant: Variant) -> Result<()> {
    let lacking = missing().or_else(|| variant.containerd.then(engine::missing).flatten());
    if let Some(what) = lacking {
        println!("skipped: clusters {} need {what}", variant.name);
        return Ok(());
    }
    if server::elsewhere()?.is_some() {
        println!("skipped: another server is tested");
        return Ok(());
    }
    let _turn = ONE_AT_A_TIME.lock().await;
    process::sweep();
    tokio::time::timeout(ALL_WITHIN, on_a_cluster(&variant)).await.with_context(|| {
        format!("cluster {}: the whole test is not done after {} s", variant.name, ALL_WITHIN.as_secs())
    })?
}

async fn on_a_cluster(variant: &Variant) -> Result<()> {
    nauplius::tls::install_provider();
    let etcd = if variant.etcd { Etcd::start()? } else { None };
    if variant.etcd && etcd.is_none() {
        println!("skipped: no etcd is installed");
        return Ok(());
    }
    let dir = process::directory()?;
    // Dropped after the cluster, which still needs it on its way out.
    let mut engine = engine::Containerd::new(&dir.path().join(engine::DIRECTORY));
    let mut arguments: Vec<String> = variant.arguments.iter().map(|a| a.to_string()).collect();
    arguments.push(format!("--nodes={}", variant.nodes));
    if let Some(etcd) = &etcd {
        arguments.push(format!("--etcd-servers={}", etcd.endpoint));
    }
    if variant.containerd {
        arguments.push(format!("--container-runtime-endpoint=unix://{}", engine.socket.display()));
    }
    let mut cluster = Cluster::new(dir.path(), &arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
    let archive = cluster.dir.join("busybox.tar");
    image::write(&image::busybox().context("busybox")?, &archive)?;
    cluster.start()?;
    if variant.containerd {
        let namespace = PathBuf::from("/run/netns").join(format!("{}-node-1", cluster.name));
        engine.start(&namespace, &archive).await?;
    }
    let client = cluster.ready(variant.nodes).await?;
    if !variant.containerd {
        let data = format!("--data-dir={}", cluster.data().display());
        let said = process::run(&["image", "import", &data, &archive.display().to_string()])?;
        ensure!(said.contains(image::NAME), "the import says {said}");
    }
    let mut stage = Stage { cluster, client, nodes: variant.nodes, kubectl: server::program("kubectl") };
    if stage.kubectl.is_none() {
        println!("skipped in part: without kubectl nothing is run inside pods");
    }
    let result = parts(&mut stage, variant).await;
    if let Err(error) = result {
        let (tail, events) = (stage.cluster.tail(), stage.warnings().await);
        return Err(error.context(format!("cluster {}; it warns: {events}; its logs end so: {tail}", variant.name)));
    }
    end(&mut stage).await
}

async fn parts(stage: &mut Stage, variant: &Variant) -> Result<()> {
    let began = Instant::now();
    let done = |part: &str| println!("{}: {part}: {:.1} s", variant.name, began.elapsed().as_secs_f32());
    if variant.devices {
        attached::disks(stage).await?;
        done("attached volumes");
        devices::given(stage).await?;
        done("devices");
        return Ok(());
    }
    if variant.driver {
        storage::image_files(stage).await?;
        done("an image as a volume");
        storage::driver(stage).await?;
        done("a volume driver");
        return Ok(());
    }
    if variant.network {
        return network::packets(stage, &done).await;
    }
    let crashing = faults::Crashing::start(stage).await?;
    workloads::application(stage).await?;
    done("application");
    workloads::services(stage).await?;
    done("services");
    workloads::volumes(stage).await?;
    done("volumes and jobs");
    faults::container_killed(stage).await?;
    done("a container killed");
    crashing.end(stage).await?;
    done("a crash loop");
    if variant.faults {
        faults::up_killed(stage).await?;
        done("up killed");
        faults::node_lost(stage).await?;
        done("a node lost");
        pods::all(&stage.cluster.kubeconfig, image::NAME).await?;
        done("what pods of later years get");
    }
    workloads::rollout(stage).await?;
    done("rollout");
    Ok(())
}

/// Ctrl-C, then reset, and nothing is left.
async fn end(stage: &mut Stage) -> Result<()> {
    for (group, version, plural) in [("apps", "v1", "deployments"), ("batch", "v1", "jobs"), ("", "v1", "pods")] {
        let options = client::DeleteOptions {
            grace: Some(1),
            propagation: Some(client::Propagation::Background),
            ..Default::default()
        };
        stage.api(group, version, plural).delete_collection(&options, &Default::default()).await?;
    }
    wait("no pod is left", || async {
        let pods = stage.api("", "v1", "pods").list(&Default::default()).await?;
        if pods.items.is_empty() {
            return Ok(());
        }
        bail!("{} pods are left", pods.items.len())
    })
    .await?;
    stage.cluster.interrupt()?;
    stage.cluster.reset()?;
    let left = stage.cluster.left();
    ensure!(left.is_empty(), "reset left behind:\n  {}", left.join("\n  "));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_in_one() -> Result<()> {
    run(Variant {
        name: "all in one",
        arguments: &["--node-monitor-grace-period=15s"],
        nodes: 2,
        faults: true,
        ..Default::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn split() -> Result<()> {
    run(Variant {
        name: "split",
        arguments: &["--split", "--node-monitor-grace-period=15s"],
        nodes: 2,
        faults: true,
        ..Default::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_etcd() -> Result<()> {
    run(Variant { name: "over etcd", nodes: 2, etcd: true, ..Default::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_containerd() -> Result<()> {
    run(Variant { name: "with containerd", nodes: 1, containerd: true, ..Default::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_through_a_tunnel() -> Result<()> {
    if server::program("ip").is_none() {
        println!("skipped: the network's test needs iproute2");
        return Ok(());
    }
    run(Variant {
        name: "three nodes through a tunnel",
        arguments: &[
            "--pod-network=vxlan",
            "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
            "--service-cluster-ip-range=10.96.0.0/12,fd00:10:96::/112",
            "--node-monitor-grace-period=15s",
        ],
        nodes: 3,
        network: true,
        ..Default::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_volume_driver() -> Result<()> {
    run(Variant { name: "with a volume driver", nodes: 1, driver: true, ..Default::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_disks_and_devices() -> Result<()> {
    run(Variant { name: "with disks and devices", nodes: 1, devices: true, ..Default::default() }).await
}
