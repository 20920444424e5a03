//! Leases of simulated nodes: renewed evenly over time, a share of them each second, so that thousands cost little and
//! never all at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::time::rfc3339_micro;
use client::{Batch, Change, Client, Gvr, Informer, Object, Status};
use futures::StreamExt;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};

use super::{is_silent, node_number};

const NAMESPACE: &str = "kube-node-lease";
/// Renewals under way at once: they share the store's syncs.
const IN_FLIGHT: usize = 128;
const TICK: Duration = Duration::from_secs(1);

/// Ticks between two renewals of a node: two thirds of the time it may be silent. A renewal that is lost is tried again at
/// the next tick, so the last third holds many attempts.
fn ticks(grace: Duration) -> u64 {
    (grace.as_secs() * 2 / 3).max(1)
}

fn lease(node: &Object, grace: Duration, known: Option<&Arc<Object>>) -> Value {
    let name = &*node.meta.name;
    let mut metadata = json!({
        "name": name, "namespace": NAMESPACE,
        // Once its node is gone, the lease goes with it.
        "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": &*node.meta.uid}],
    });
    if let Some(known) = known {
        metadata["resourceVersion"] = known.resource_version.to_string().into();
    }
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata,
        "spec": {"holderIdentity": name, "leaseDurationSeconds": grace.as_secs(), "renewTime": rfc3339_micro(Timestamp::now())},
    })
}

/// Writes a lease; answers it as it is now.
async fn renew(
    api: &client::DynamicApi,
    node: &Object,
    grace: Duration,
    known: Option<Arc<Object>>,
) -> Result<Arc<Object>, Status> {
    let name = &*node.meta.name;
    let known = match known {
        Some(known) => Some(known),
        None => api.get_opt(name).await?,
    };
    let body = lease(node, grace, known.as_ref());
    match &known {
        Some(_) => api.update(name, body).await,
        None => api.create(body).await,
    }
}

/// Renews until dropped.
pub async fn run(client: &Client, nodes: &Informer, grace: Duration) {
    let api = client.dynamic(Gvr::new("coordination.k8s.io", "v1", "leases")).namespaced(NAMESPACE);
    let mut known: HashMap<u32, Arc<Object>> = HashMap::new();
    // Kept change by change: to look at thousands of nodes each second would cost as much as the renewals.
    let mut changes = nodes.subscribe();
    let mut ours: HashMap<u32, Arc<Object>> = HashMap::new();
    let rounds = ticks(grace);
    let mut tick = tokio::time::interval_at(Instant::now(), TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = 0u64;
    loop {
        tick.tick().await;
        round += 1;
        while let Some(batch) = changes.try_next() {
            let changed = match batch {
                Batch::Changes(changed) => changed,
                Batch::Resync => {
                    ours.clear();
                    let all = nodes.list(None).into_iter();
                    all.map(|node| Change { key: node.meta.key().into(), old: None, new: Some(node) }).collect()
                }
            };
            for change in changed {
                let Some(number) = node_number(&change.key) else { continue };
                match change.new.filter(|node| !is_silent(node)) {
                    Some(node) => ours.insert(number, node),
                    None => {
                        known.remove(&number);
                        ours.remove(&number)
                    }
                };
            }
        }
        // A new node need not wait for its turn.
        let is_due = |number: u32| u64::from(number) % rounds == round % rounds || !known.contains_key(&number);
        let due = ours.iter().filter(|(number, _)| is_due(**number));
        let due: Vec<_> = due.map(|(number, node)| (*number, node.clone(), known.get(number).cloned())).collect();
        let api = &api;
        let written: Vec<_> = futures::stream::iter(due)
            .map(|(number, node, before)| async move { (number, renew(api, &node, grace, before).await) })
            .buffer_unordered(IN_FLIGHT)
            .collect()
            .await;
        for (number, outcome) in written {
            match outcome {
                Ok(lease) => {
                    known.insert(number, lease);
                }
                Err(status) => {
                    // Changed or removed by somebody: read anew at the next tick.
                    known.remove(&number);
                    tracing::debug!(number, "lease not renewed: {status}");
                }
            }
        }
        if round.is_multiple_of(rounds) {
            known.retain(|number, _| ours.contains_key(number));
        }
    }
}
