//! Nodes that are rows, not machines: what schedulers and controllers are tried with by the thousand.
//!
//! One task speaks a kubelet's half of the API for all of them: it registers the nodes, keeps their leases, says their
//! pods run (and end, on a schedule their annotations may set), and lets go of pods that are deleted. It guarantees what a
//! kubelet guarantees to others: addresses that no two pods share, conditions that keep their transition times, removal
//! only after the grace period a pod takes, and only of the pod that was meant. Decisions are pure ([`pod`], [`node`]);
//! it knows no engine, runs nothing, and has no endpoint: logs and exec of its pods are refused by the API server, since
//! the nodes have no address. A node with the annotation [`SILENT`] is as one that was lost: nothing is said of it or of
//! its pods until the annotation is gone.

mod addresses;
mod heartbeat;
pub mod node;
pub mod pod;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::informer::Scope;
use client::{Batch, Client, DeleteOptions, Gvr, Informer, Object, Patch, Queue, Status};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use addresses::Addresses;
use pod::{Schedule, Step};

/// The label simulated nodes carry.
pub const LABEL: &str = "nauplius.dev/simulated";
/// The annotation by which a node is silent, when it is "true".
pub const SILENT: &str = "simulated.nauplius.dev/silent";
/// Nodes are named with this and their number, from 1.
pub const NAME: &str = "simulated-";
/// As many nodes as their address range has blocks for.
pub const MAX_NODES: u32 = 1 << 14;
/// Pods and nodes worked on at once: enough to share the server's syncs, few enough to leave it to others.
const WORKERS: usize = 48;
/// A pod that finds its node's addresses used up asks again after this.
const ADDRESS_RETRY: Duration = Duration::from_secs(1);

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Options {
    pub nodes: u32,
    /// How soon pods run, and how long those of Jobs do, unless their annotations say otherwise.
    pub schedule: Schedule,
    /// How long the control plane lets a node be silent.
    pub grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 0, schedule: Schedule::default(), grace: Duration::from_secs(40) }
    }
}

/// The name of a node.
pub fn node_name(number: u32) -> String {
    format!("{NAME}{number}")
}

/// The number of a node; `None` for names that are not ours.
pub fn node_number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix(NAME)?;
    let number = digits.parse().ok().filter(|n| (1..=MAX_NODES).contains(n))?;
    // "simulated-007" is somebody else's.
    (node_name(number) == name).then_some(number)
}

/// Whether a node is to be as if it were lost.
fn is_silent(node: &Object) -> bool {
    // Hardly any is: a look at the bytes tells.
    let named = node.raw().windows(SILENT.len()).any(|w| w == SILENT.as_bytes());
    let says =
        |n: Arc<Node>| n.metadata.annotations.as_ref().is_some_and(|a| a.get(SILENT).is_some_and(|v| v == "true"));
    named && node.typed::<Node>().is_ok_and(says)
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Node(u32),
    Pod(Arc<str>),
}

struct Simulation {
    client: Client,
    options: Options,
    nodes: Arc<Informer>,
    pods: Arc<Informer>,
    queue: Queue<Key>,
    addresses: Mutex<Addresses>,
    /// Nodes there were in this life: one that somebody deleted stays deleted.
    registered: Mutex<HashSet<u32>>,
}

/// Simulates until cancelled.
pub async fn run(client: Client, options: Options, cancel: CancellationToken) {
    let labelled = Scope { label_selector: Some(format!("{LABEL}=true")), ..Scope::all(Gvr::new("", "v1", "nodes")) };
    let placed = Scope { field_selector: Some("spec.nodeName!=".into()), ..Scope::all(Gvr::new("", "v1", "pods")) };
    let simulation = Arc::new(Simulation {
        nodes: Informer::start(&client, labelled),
        pods: Informer::start(&client, placed),
        queue: Queue::default(),
        addresses: Mutex::default(),
        registered: Mutex::default(),
        client,
        options,
    });
    let tasks = TaskTracker::new();
    let all = async {
        simulation.nodes.synced().await;
        simulation.pods.synced().await;
        simulation.adopt().await;
        for _ in 0..WORKERS {
            tasks.spawn(worker(simulation.clone()));
        }
        tokio::join!(
            simulation.listen(),
            heartbeat::run(&simulation.client, &simulation.nodes, simulation.options.grace)
        );
    };
    cancel.run_until_cancelled(all).await;
    simulation.queue.close();
    tasks.close();
    tasks.wait().await;
}

/// Removes nodes of an earlier life that are not simulated any more.
pub async fn remove_beyond(client: &Client, nodes: u32) -> Result<(), Status> {
    let api = client.api::<Node>();
    let ours = api.list(&client::ListOptions::labels(format!("{LABEL}=true"))).await?;
    for object in ours.items.iter().filter(|o| node_number(&o.meta.name).is_none_or(|n| n > nodes)) {
        match api.delete(&object.meta.name, &DeleteOptions::uid(&*object.meta.uid)).await {
            Err(status) if !status.is_not_found() => return Err(status),
            _ => {}
        }
    }
    Ok(())
}

async fn worker(simulation: Arc<Simulation>) {
    while let Some(key) = simulation.queue.get().await {
        let outcome = match &key {
            Key::Node(number) => simulation.keep_node(*number).await,
            Key::Pod(pod) => simulation.keep_pod(pod).await,
        };
        match outcome {
            Ok(again) => {
                simulation.queue.forget(&key);
                if let Some(after) = again {
                    simulation.queue.add_after(key.clone(), after);
                }
            }
            Err(status) => {
                let delay = simulation.queue.retry(key.clone());
                // Somebody else wrote first: the next look sees what.
                if !status.is_conflict() {
                    tracing::debug!(?delay, "simulated node or pod not written: {status}");
                }
            }
        }
        simulation.queue.done(&key);
    }
}

impl Simulation {
    /// Takes over what an earlier life left: addresses in use, nodes there are.
    async fn adopt(&self) {
        if let Err(status) = remove_beyond(&self.client, self.options.nodes).await {
            tracing::warn!("simulated nodes of an earlier run not removed: {status}");
        }
        let mut addresses = self.lock_addresses();
        for object in self.pods.list(None) {
            let Ok(pod) = object.typed::<Pod>() else { continue };
            if let Some(number) = self.number_of(&pod)
                && !pod::is_finished(&pod)
                && let Some(address) = pod.status.as_ref().and_then(|s| s.pod_ip.as_deref())
            {
                addresses.take(number, &object.meta.uid, address);
            }
        }
        drop(addresses);
        for number in 1..=self.options.nodes {
            self.queue.add(Key::Node(number));
        }
    }

    fn lock_addresses(&self) -> std::sync::MutexGuard<'_, Addresses> {
        // Each method leaves it whole.
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the pod's node, if it is one of ours.
    fn number_of(&self, pod: &Pod) -> Option<u32> {
        let node = pod.spec.as_ref()?.node_name.as_deref()?;
        node_number(node).filter(|n| *n <= self.options.nodes)
    }

    async fn listen(&self) {
        let (mut pods, mut nodes) = (self.pods.subscribe(), self.nodes.subscribe());
        loop {
            tokio::select! {
                batch = pods.next() => match batch {
                    Some(Batch::Changes(changes)) => {
                        for change in changes {
                            // Of most changes a look at the newest version is enough to pass over them.
                            if change.object().and_then(|o| o.typed::<Pod>().ok()).is_some_and(|p| self.number_of(&p).is_some()) {
                                if change.new.is_none() && let Some(old) = &change.old {
                                    self.lock_addresses().release(&old.meta.uid);
                                }
                                self.queue.add(Key::Pod(change.key));
                            }
                        }
                    }
                    Some(Batch::Resync) => {
                        for object in self.pods.list(None) {
                            self.queue.add(Key::Pod(object.meta.key().into()));
                        }
                    }
                    None => return,
                },
                batch = nodes.next() => match batch {
                    Some(Batch::Changes(changes)) => {
                        for change in &changes {
                            let Some(number) = node_number(&change.key) else { continue };
                            self.queue.add(Key::Node(number));
                            let silent = |o: &Option<Arc<Object>>| o.as_ref().is_some_and(|o| is_silent(o));
                            if silent(&change.old) && !silent(&change.new) {
                                self.look_at_pods_of(number);
                            }
                        }
                    }
                    Some(Batch::Resync) => (1..=self.options.nodes).for_each(|n| self.queue.add(Key::Node(n))),
                    None => return,
                },
            }
        }
    }

    /// What happened to a node's pods while it was silent was passed over.
    fn look_at_pods_of(&self, number: u32) {
        for object in self.pods.list(None) {
            if object.typed::<Pod>().is_ok_and(|p| self.number_of(&p) == Some(number)) {
                self.queue.add(Key::Pod(object.meta.key().into()));
            }
        }
    }

    async fn keep_node(&self, number: u32) -> Result<Option<Duration>, Status> {
        if number > self.options.nodes {
            return Ok(None);
        }
        let name = node_name(number);
        let api = self.client.api::<Node>();
        let now = Timestamp::now();
        let Some(object) = self.nodes.get(&name) else {
            let registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner).contains(&number);
            if !registered {
                match api.dynamic().create(node::object(number, now)).await {
                    Err(status) if status.is_already_exists() => {
                        tracing::warn!(node = %name, "there is such a node, and it is not a simulated one: left alone");
                    }
                    Err(status) => return Err(status),
                    Ok(_) => {}
                }
                self.registered.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
            }
            return Ok(None);
        };
        self.registered.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
        if is_silent(&object) {
            return Ok(None);
        }
        let seen = object.typed::<Node>().map_err(Status::internal)?;
        if let Some(status) = node::status_patch(number, &seen, now) {
            api.patch_status(&name, Patch::Strategic(json!({"status": status}))).await?;
        }
        Ok(None)
    }

    async fn keep_pod(&self, key: &str) -> Result<Option<Duration>, Status> {
        let Some(object) = self.pods.get(key) else { return Ok(None) };
        let pod = object.typed::<Pod>().map_err(Status::internal)?;
        let Some(number) = self.number_of(&pod) else { return Ok(None) };
        if self.nodes.get(&node_name(number)).is_some_and(|n| is_silent(&n)) {
            return Ok(None);
        }
        let now = Timestamp::now();
        let host = node::host_address(number).to_string();
        let address = if pod::is_finished(&pod) {
            self.lock_addresses().release(&object.meta.uid);
            pod.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap_or_default()
        } else if pod.spec.as_ref().and_then(|s| s.host_network) == Some(true) {
            host.clone()
        } else {
            match self.lock_addresses().of(number, &object.meta.uid) {
                Some(address) => address.to_string(),
                None => return Ok(Some(ADDRESS_RETRY)),
            }
        };
        let api = self.client.api::<Pod>().namespaced(&object.meta.namespace);
        match pod::step(&pod, &host, &address, &self.options.schedule, now) {
            Step::Wait(until) => Ok(until.map(|at| pause(at, now))),
            Step::Write { status, again } => {
                let body = json!({
                    "metadata": {"uid": &*object.meta.uid, "resourceVersion": object.resource_version.to_string()},
                    "status": status,
                });
                match api.patch_status(&object.meta.name, Patch::Merge(body)).await {
                    Err(status) if !status.is_not_found() => Err(status),
                    _ => Ok(again.map(|at| pause(at, now))),
                }
            }
            Step::Remove => {
                let options = DeleteOptions::uid(&*object.meta.uid).grace(0);
                match api.delete(&object.meta.name, &options).await {
                    // A conflict: another pod has the name by now.
                    Err(status) if !status.is_not_found() && !status.is_conflict() => Err(status),
                    _ => Ok(None),
                }
            }
        }
    }
}

/// How long until a time, never nothing: the clock may be read a little before it.
fn pause(at: Timestamp, now: Timestamp) -> Duration {
    const LEAST: Duration = Duration::from_millis(5);
    Duration::try_from(at.duration_since(now)).unwrap_or(LEAST).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_silent_that_says_so() {
        for (annotations, expect) in [
            (json!({}), false),
            (json!({SILENT: "true"}), true),
            (json!({SILENT: "false"}), false),
            (json!({"other": SILENT}), false),
        ] {
            let body = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "simulated-1", "annotations": annotations}});
            assert_eq!(is_silent(&Object::from_value(&body).unwrap()), expect, "{body}");
        }
    }

    #[test]
    fn only_our_own_names_have_numbers() {
        for (name, expect) in [
            ("simulated-1", Some(1)),
            ("simulated-16384", Some(16384)),
            ("simulated-16385", None),
            ("simulated-0", None),
            ("simulated-01", None),
            ("simulated-", None),
            ("node-1", None),
        ] {
            assert_eq!(node_number(name), expect, "{name}");
        }
    }
}
