//! What goes wrong on machines: a process killed, the whole of `up` killed under load, a node that says nothing more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::process::{api, parent, processes, signal, started};
use super::{Stage, image, node_is_ready, value, wait};

/// Writes that must be behind the cluster when it is killed: enough that some are under way.
const WRITES_BEFORE: usize = 100;

/// Of those processes, the ones in the control groups of one cluster: another's on this machine may run the same.
fn serving(stage: &Stage) -> Vec<(i32, String)> {
    let mut found = marked("httpd -f -p 8080 -h /www");
    let group = format!("/{}/", stage.cluster.name);
    found.retain(|(pid, _)| {
        std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(&group))
    });
    found
}

/// The processes whose words contain the mark, with what tells each from a later one of the same id.
fn marked(mark: &str) -> Vec<(i32, String)> {
    let found = processes().into_iter().filter(|(_, words)| words.trim_end().ends_with(mark));
    found.filter_map(|(pid, _)| Some((pid, started(pid)?))).collect()
}

/// A pod whose process fails at once, from its start to the look at what became of it.
pub struct Crashing(Instant);

/// The third restart comes after waits of 10 and 20 s.
const WAITS_BEFORE_THIRD: Duration = Duration::from_secs(30);

impl Crashing {
    pub async fn start(stage: &Stage) -> Result<Self> {
        let pod = json!({"metadata": {"name": "crashing"}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": image::NAME, "command": ["sh", "-c", "echo again; exit 3"]}]}});
        let began = Instant::now();
        stage.api("", "v1", "pods").create(pod).await?;
        Ok(Self(began))
    }

    /// It was started again and again, less and less often, and each time was counted.
    pub async fn end(self, stage: &Stage) -> Result<()> {
        wait("it waits for its third restart", || async {
            let pod = value(&*stage.api("", "v1", "pods").get("crashing").await?)?;
            let status = &pod["status"]["containerStatuses"][0];
            let count = status["restartCount"].as_u64().unwrap_or_default();
            let least = match count {
                0..3 => Duration::ZERO,
                _ => WAITS_BEFORE_THIRD,
            };
            ensure!(self.0.elapsed() >= least, "{count} restarts after {} s", self.0.elapsed().as_secs());
            ensure!(
                count >= 3
                    && status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
                    && status["lastState"]["terminated"]["exitCode"] == 3,
                "its status is {status}"
            );
            Ok(())
        })
        .await
    }
}

/// A container whose process is killed is started again, and counted.
pub async fn container_killed(stage: &Stage) -> Result<()> {
    let mark = format!("sleep 98{:07}", rand::random::<u32>() % 10_000_000);
    let command: Vec<_> = mark.split(' ').collect();
    let pod = json!({"metadata": {"name": "victim"}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": image::NAME, "command": command}]}});
    stage.api("", "v1", "pods").create(pod).await?;
    let running = |restarts: u64| async move {
        let pod = value(&*stage.api("", "v1", "pods").get("victim").await?)?;
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(status["restartCount"] == restarts && status["state"]["running"].is_object(), "its status is {status}");
        Ok(pod)
    };
    wait("the pod runs", || running(0)).await?;
    let [(pid, _)] = marked(&mark)[..] else { anyhow::bail!("processes of {mark}: {:?}", marked(&mark)) };
    signal(pid, Signal::SIGKILL);
    let pod = wait("the container is started again", || running(1)).await?;
    ensure!(
        pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 137,
        "its last state is {}",
        pod["status"]
    );
    Ok(())
}

/// `up` is killed while clients write: no acknowledged write is lost, no pod touched.
pub async fn up_killed(stage: &mut Stage) -> Result<()> {
    let pods = stage.pods("app=web").await?;
    let before = serving(stage);
    ensure!(before.len() >= pods.len(), "{} processes serve {} pods", before.len(), pods.len());
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut writers = Vec::new();
    for writer in 0..4 {
        let (client, stop, acknowledged) = (stage.client.clone(), stop.clone(), acknowledged.clone());
        writers.push(tokio::spawn(async move {
            for n in 0.. {
                let name = format!("write-{writer}-{n}");
                let written = api(&client, "", "v1", "configmaps").create(json!({"metadata": {"name": name}})).await;
                match written {
                    Ok(_) => acknowledged.lock().map(|mut a| a.push(name)).unwrap_or_default(),
                    Err(_) => return,
                }
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        }));
    }
    wait("writes are under way", || async {
        let count = acknowledged.lock().map_or(0, |a| a.len());
        ensure!(count >= WRITES_BEFORE, "{count} writes");
        Ok(())
    })
    .await?;
    stage.cluster.kill()?;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await?;
    }
    ensure!(serving(stage) == before, "the pods died with it");
    stage.cluster.start()?;
    stage.client = stage.cluster.ready(stage.nodes).await?;
    let list = stage.api("", "v1", "configmaps").list(&Default::default()).await?;
    let there: std::collections::HashSet<_> = list.items.iter().map(|o| o.meta.name.to_string()).collect();
    let written = acknowledged.lock().map(|a| a.clone()).unwrap_or_default();
    let lost: Vec<_> = written.iter().filter(|name| !there.contains(*name)).collect();
    ensure!(lost.is_empty(), "{} of {} acknowledged writes are lost: {lost:?}", lost.len(), written.len());
    // Each node's kubelet and engine have to know them: they answer from within.
    for pod in &pods {
        stage.exec(pod["metadata"]["name"].as_str().unwrap_or_default(), "hostname", "web-").await?;
    }
    let after = stage.ready_pods("app=web", pods.len()).await?;
    let restarted = after.iter().any(|pod| pod["status"]["containerStatuses"][0]["restartCount"] != 0);
    ensure!(!restarted, "pods were restarted: {}", super::states(&after));
    let uids = |pods: &[Value]| {
        let mut uids: Vec<_> = pods.iter().map(|p| p["metadata"]["uid"].to_string()).collect();
        uids.sort();
        uids
    };
    ensure!(uids(&pods) == uids(&after), "the pods are others now");
    ensure!(serving(stage) == before, "the pods' processes are others now");
    Ok(())
}

/// A stopped process that goes on whatever happens.
struct Stopped(i32);

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, Signal::SIGCONT);
    }
}

/// A node's own processes, children of `up`; an error when there are none.
pub fn processes_of(stage: &Stage, node: &str) -> Result<Vec<i32>> {
    let up = stage.cluster.pid()?;
    let place = stage.cluster.data().join("nodes").join(node).join("node.json").display().to_string();
    let found = processes().into_iter().filter(|(pid, words)| words.contains(&place) && parent(*pid) == Some(up));
    let found: Vec<_> = found.map(|(pid, _)| pid).collect();
    ensure!(!found.is_empty(), "{node} has no processes");
    Ok(found)
}

/// A node that says nothing more is NotReady, and its pods are replaced elsewhere; it comes back when it speaks again.
pub async fn node_lost(stage: &Stage) -> Result<()> {
    let stopped = wait("node-2 has processes", || async {
        Ok(processes_of(stage, "node-2")?.into_iter().map(Stopped).collect::<Vec<_>>())
    })
    .await?;
    for Stopped(pid) in &stopped {
        signal(*pid, Signal::SIGSTOP);
    }
    let ready = |expected: bool| async move {
        let node = value(&*stage.client.dynamic(client::Gvr::new("", "v1", "nodes")).get("node-2").await?)?;
        ensure!(node_is_ready(&node) == expected, "its conditions are {}", node["status"]["conditions"]);
        Ok(())
    };
    wait("node-2 is NotReady", || ready(false)).await?;
    let pods = wait("its pods are elsewhere", || async {
        let pods = stage.pods("app=web").await?;
        let there = pods.iter().filter(|p| p["spec"]["nodeName"] == "node-1" && node_is_ready(p)).count();
        ensure!(there == 3, "{there} pods are Ready on node-1: {}", super::states(&pods));
        Ok(pods)
    })
    .await?;
    ensure!(pods.len() == 3, "{} pods", pods.len());
    drop(stopped);
    wait("node-2 is Ready again", || ready(true)).await
}
