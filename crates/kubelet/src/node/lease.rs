//! The node's lease: the heartbeat by which the control plane knows that this agent lives.

use std::sync::Arc;
use std::time::Duration;

use client::time::rfc3339_micro;
use client::{Gvr, Patch};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::agent::Context;

const NAMESPACE: &str = "kube-node-lease";
/// The lease is renewed four times within its duration.
const RENEWALS: u32 = 4;
/// After a failed renewal: soon, so that one lost request does not cost a heartbeat.
const RETRY: Duration = Duration::from_millis(500);

/// Renews until the agent stops.
pub async fn run(context: Arc<Context>) {
    let api = context.client.dynamic(Gvr::new("coordination.k8s.io", "v1", "leases")).namespaced(NAMESPACE);
    let name = &context.config.node_name;
    let seconds = context.config.lease_duration.as_secs();
    let mut owned = false;
    loop {
        let mut lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": seconds, "renewTime": rfc3339_micro(Timestamp::now())},
        });
        // Once its node is gone, the lease goes with it.
        let owner = context.node().and_then(|n| n.metadata.uid.clone());
        if let Some(uid) = &owner {
            lease["metadata"]["ownerReferences"] =
                json!([{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}]);
        }
        let patch = if owned {
            json!({"spec": lease["spec"]})
        } else {
            json!({"metadata": {"ownerReferences": lease["metadata"]["ownerReferences"]}, "spec": lease["spec"]})
        };
        let renewed = match api.patch(name, Patch::Merge(strip_null(patch))).await {
            Err(error) if error.is_not_found() => api.create(lease).await,
            other => other,
        };
        let pause = match renewed {
            Ok(_) => {
                owned = owner.is_some();
                context.config.lease_duration / RENEWALS
            }
            Err(error) => {
                tracing::debug!("lease not renewed: {error}");
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// In a merge patch null would remove what it only means to leave alone.
fn strip_null(mut patch: Value) -> Value {
    if patch["metadata"]["ownerReferences"].is_null()
        && let Some(map) = patch.as_object_mut()
    {
        map.remove("metadata");
    }
    patch
}
