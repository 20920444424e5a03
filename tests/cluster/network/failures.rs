//! Nodes that fail: cut off, killed, both. Endpoints leave and come back, connections with others stay, and packets have
//! the source addresses they should have, before and after, as captured where they arrive.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use client::Gvr;
use nix::sys::signal::Signal;
use serde_json::json;

use super::super::faults::processes_of;
use super::super::place::{Capture, PATIENCE, Place, Talk};
use super::super::process::signal;
use super::super::{node_is_ready, value, wait};
use super::{Ground, OUTSIDE, POD_PORT, PORT, cluster_ips, names, node_port_of, of_family};

/// Where pods hold conversations.
const TALK_PORT: u16 = 8081;

/// Each failure in turn; after each everything is as before.
pub async fn nodes_fail(ground: &Ground<'_>, done: &dyn Fn(&str)) -> Result<()> {
    for pod in &ground.pods {
        pod.place.serve_talks(TALK_PORT)?;
    }
    let talk = json!({"type": "NodePort", "ports": [{"port": PORT, "targetPort": TALK_PORT}]});
    let made = ground.service("talk", json!({"app": "net"}), talk).await?;
    let local = json!({"type": "NodePort", "externalTrafficPolicy": "Local"});
    let local_port = node_port_of(&ground.service("kept", json!({"which": "net-1"}), local).await?)?;
    let (ips, node_port) = (cluster_ips(&made), node_port_of(&made)?);
    let failing = Failing { ground, ips, node_port, local_port };
    failing.captured().await?;
    done("source addresses captured");
    failing.killed().await?;
    failing.captured().await?;
    done("a node's process killed");
    failing.lost(false).await?;
    failing.captured().await?;
    done("a node cut off and healed");
    failing.lost(true).await?;
    failing.captured().await?;
    done("a node cut off, its process killed, and healed");
    Ok(())
}

struct Failing<'a> {
    ground: &'a Ground<'a>,
    /// Of the Service of conversations.
    ips: Vec<IpAddr>,
    node_port: u16,
    /// The node port that leads to net-1, and only on its node.
    local_port: u16,
}

impl Failing<'_> {
    /// What arrives at a pod is from whom it should be: from pods as they are, through a node port by the node, or as it
    /// was sent where the traffic policy is local.
    async fn captured(&self) -> Result<()> {
        let Ground { pods, nodes, outside, .. } = self.ground;
        for v4 in [true, false] {
            let own = of_family(&pods[1].ips, v4)?;
            let vip = SocketAddr::new(of_family(&self.ips, v4)?, PORT);
            let on = |port: u16| -> Result<SocketAddr> { Ok(SocketAddr::new(of_family(&nodes[0].ips, v4)?, port)) };
            let stranger = OUTSIDE.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()).find(|ip| ip.is_ipv4() == v4);
            let stranger = stranger.context("an address outside")?;
            // Through the Service to net-3: nothing but the pod's own address.
            let capture = Capture::begin(&pods[2].place)?;
            self.talks(&pods[1].place, vip).await?;
            let sources = capture.sources(TALK_PORT)?;
            ensure!(sources == [own].into(), "pod → Service: the packets are from {sources:?}");
            // From outside, by the node's port: the node's, never the client's.
            self.talks(&outside.place, on(self.node_port)?).await?;
            let sources = capture.sources(TALK_PORT)?;
            let of_node = sources.iter().all(|ip| self.ground.is_of_node(0, *ip));
            ensure!(sources.len() == 1 && of_node, "outside → node port: the packets are from {sources:?}");
            let capture = Capture::begin(&pods[0].place)?;
            wait("the node port that is local", || async {
                outside.place.ask(on(self.local_port)?, 0, PATIENCE).map(drop)
            })
            .await?;
            let sources = capture.sources(POD_PORT)?;
            ensure!(sources == [stranger].into(), "outside → local node port: the packets are from {sources:?}");
        }
        Ok(())
    }

    /// A conversation with each pod.
    async fn talks(&self, from: &Place, to: SocketAddr) -> Result<Vec<Talk>> {
        wait("each pod answers", || async { from.talk_with_all(to, self.ground.pods.len()) }).await
    }

    /// Conversations from a pod and from outside, in both families.
    async fn all_talks(&self) -> Result<Vec<Talk>> {
        let mut all = Vec::new();
        for v4 in [true, false] {
            let vip = SocketAddr::new(of_family(&self.ips, v4)?, PORT);
            let port = SocketAddr::new(of_family(&self.ground.nodes[0].ips, v4)?, self.node_port);
            all.append(&mut self.talks(&self.ground.pods[0].place, vip).await?);
            all.append(&mut self.talks(&self.ground.outside.place, port).await?);
        }
        Ok(all)
    }

    /// Whether a node is Ready.
    async fn node_is(&self, name: &str, ready: bool) -> Result<()> {
        let node = value(&*self.ground.stage.client.dynamic(Gvr::new("", "v1", "nodes")).get(name).await?)?;
        ensure!(node_is_ready(&node) == ready, "its conditions are {}", node["status"]["conditions"]);
        Ok(())
    }

    fn kill(&self, node: &str) -> Result<Vec<i32>> {
        let killed = processes_of(self.ground.stage, node)?;
        for pid in &killed {
            signal(*pid, Signal::SIGKILL);
        }
        Ok(killed)
    }

    /// New connections reach these pods, and no others.
    async fn reached(&self, expect: &[&str]) -> Result<()> {
        let expect: BTreeSet<&str> = expect.iter().copied().collect();
        let made = value(&*self.ground.stage.api("", "v1", "services").get("net").await?)?;
        for v4 in [true, false] {
            let port = SocketAddr::new(of_family(&self.ground.nodes[0].ips, v4)?, node_port_of(&made)?);
            wait("whom new connections reach", || async {
                let answers = self.ground.outside.place.everybody(port)?;
                ensure!(names(&answers) == expect, "{answers:?}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// node-2's process dies: no connection does, the kernel goes on with what it was told; the next process takes over.
    async fn killed(&self) -> Result<()> {
        let mut talks = self.all_talks().await?;
        let killed = self.kill("node-2")?;
        talks.iter_mut().try_for_each(Talk::goes_on)?;
        self.reached(&["net-1", "net-2", "net-3"]).await?;
        wait("node-2 has another process", || async {
            let now = processes_of(self.ground.stage, "node-2")?;
            ensure!(now.iter().all(|pid| !killed.contains(pid)), "{now:?} of {killed:?}");
            Ok(())
        })
        .await?;
        // What changes now reaches node-2 through the new process.
        let made = self.ground.service("after", json!({"app": "net"}), json!({})).await?;
        let vip = SocketAddr::new(of_family(&cluster_ips(&made), true)?, PORT);
        wait("node-2 knows of a new Service", || async { self.ground.pods[1].place.ask(vip, 0, PATIENCE).map(drop) })
            .await?;
        self.ground.stage.api("", "v1", "services").delete("after", &Default::default()).await?;
        wait("node-2 is Ready", || self.node_is("node-2", true)).await?;
        talks.iter_mut().try_for_each(Talk::goes_on)
    }

    /// node-3 is lost, alive behind a cut or dead: its endpoint leaves, nobody is sent there, conversations with others go
    /// on; with the link everything comes back, also conversations that were silent meanwhile.
    async fn lost(&self, dead: bool) -> Result<()> {
        self.reached(&["net-1", "net-2", "net-3"]).await?;
        let mut talks = self.all_talks().await?;
        let cut = Cut::new(&self.ground.fabric)?;
        if dead {
            self.kill("node-3")?;
        }
        let mut others: Vec<&mut Talk> = talks.iter_mut().filter(|talk| talk.with != "net-3").collect();
        others.iter_mut().try_for_each(|talk| talk.goes_on())?;
        wait("node-3 is lost", || self.node_is("node-3", false)).await?;
        self.reached(&["net-1", "net-2"]).await?;
        others.iter_mut().try_for_each(|talk| talk.goes_on())?;
        drop(cut);
        wait("node-3 is back", || self.node_is("node-3", true)).await?;
        self.reached(&["net-1", "net-2", "net-3"]).await?;
        talks.iter_mut().try_for_each(Talk::goes_on)
    }
}

/// node-3's link is down for as long as this lives.
struct Cut<'a>(&'a Place);

impl Cut<'_> {
    fn new(fabric: &Place) -> Result<Cut<'_>> {
        fabric.ip("link set node-3 down")?;
        Ok(Cut(fabric))
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.ip("link set node-3 up") {
            eprintln!("{error:#}");
        }
    }
}
