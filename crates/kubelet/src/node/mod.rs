//! The Node object: registration, status, lease.

pub mod lease;
pub mod machine;
pub mod status;

use std::sync::Arc;
use std::time::Duration;

use client::Patch;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::agent::Context;
use crate::cri::v1;

/// While the node is not ready (an engine coming up) its status is looked at this often, so that it is ready as soon as
/// it can be; later at the slow pace.
const EAGER: Duration = Duration::from_millis(25);
const EAGER_FOR: Duration = Duration::from_secs(30);
const UNREADY: Duration = Duration::from_secs(1);
/// Between attempts to register: doubling up to the longest.
const RETRY: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Creates the node's object, or brings what this agent owns of an existing one up to date. The status that one had.
pub async fn register(context: &Context, status: &NodeStatus) -> Option<NodeStatus> {
    let config = &context.config;
    let wanted = status::object(context, status);
    let api = context.client.api::<Node>();
    let mut pause = RETRY;
    loop {
        let outcome = match api.create(&wanted).await {
            Ok(_) => {
                tracing::info!(node = %config.node_name, "node registered");
                return None;
            }
            Err(error) if error.is_already_exists() => reconcile(context, &wanted).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(had) => {
                tracing::info!(node = %config.node_name, "node was registered before");
                return had;
            }
            Err(error) => tracing::debug!(node = %config.node_name, "not registered yet: {error}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

async fn reconcile(context: &Context, wanted: &Node) -> Result<Option<NodeStatus>, client::Status> {
    let api = context.client.api::<Node>();
    let name = &context.config.node_name;
    let have = api.get(name).await?;
    let labels = have.metadata.labels.clone().unwrap_or_default();
    let stale: Map<String, Value> = wanted
        .metadata
        .labels
        .iter()
        .flatten()
        .filter(|(k, v)| labels.get(*k) != Some(*v))
        .map(|(k, v)| (k.clone(), Value::from(v.as_str())))
        .collect();
    if !stale.is_empty() {
        api.patch(name, Patch::Strategic(json!({"metadata": {"labels": stale}}))).await?;
    }
    Ok(have.status.clone())
}

/// Events of conditions that changed, by what they are called where the condition holds and where it does not.
const TOLD: [(&str, &str, &str); 4] = [
    ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
    ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
    ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
    ("Ready", "NodeReady", "NodeNotReady"),
];

/// The events that say how a status differs from the one told before.
fn news(before: &NodeStatus, now: &NodeStatus) -> Vec<&'static str> {
    let of = |status: &NodeStatus, name: &str| {
        status.conditions.iter().flatten().find(|c| c.type_ == name).map(|c| c.status == "True")
    };
    let changed = TOLD.iter().filter_map(|(name, held, not)| {
        let holds = of(now, name)?;
        // A node that begins says when it is ready, not that it is not yet.
        let worth = of(before, name) != Some(holds) && (of(before, name).is_some() || holds || *name != "Ready");
        worth.then_some(if holds { *held } else { *not })
    });
    changed.collect()
}

/// Says once what this start of the agent is worth telling.
fn tell_start(context: &Context, before: &NodeStatus, now: &NodeStatus) {
    let (about, name) = (context.events.about_node(), &context.config.node_name);
    context.events.normal(&about, "Starting", "Starting kubelet.");
    if context.config.cgroups_per_qos {
        context.events.normal(&about, "NodeAllocatableEnforced", "Updated Node Allocatable limit across pods");
    }
    if !crate::cgroups::is_v2() {
        context.events.warning(
            &about,
            "CgroupV1",
            "cgroup v1 detected. Support for it is deprecated: please migrate to cgroup v2.",
        );
    }
    let boot = |status: &NodeStatus| status.node_info.as_ref().map(|i| i.boot_id.clone()).filter(|id| !id.is_empty());
    if let (Some(had), Some(has)) = (boot(before), boot(now))
        && had != has
    {
        let message = format!("Node {name} has been rebooted, boot id: {has}");
        context.events.warning(&about, "Rebooted", &message);
    }
}

/// Says that the node was closed to new pods, or opened.
fn tell_cordon(context: &Context, before: &mut bool) {
    let Some(node) = context.node() else { return };
    let is_cordoned = node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
    if std::mem::replace(before, is_cordoned) != is_cordoned {
        let reason = if is_cordoned { "NodeNotSchedulable" } else { "NodeSchedulable" };
        let message = format!("Node {} status is now: {reason}", context.config.node_name);
        context.events.normal(&context.events.about_node(), reason, &message);
    }
}

/// Tells the engine which addresses pods get.
async fn hand_on_pod_cidr(context: &Context, last: &mut Option<String>) {
    // All of them, joined: one of each address family.
    let of_node = || {
        let spec = context.node()?.spec.clone()?;
        spec.pod_cidrs.filter(|all| !all.is_empty()).map(|all| all.join(",")).or(spec.pod_cidr)
    };
    let Some(cidr) = context.config.pod_cidr.clone().or_else(of_node).filter(|c| !c.is_empty()) else { return };
    if last.as_ref() == Some(&cidr) {
        return;
    }
    let config = v1::RuntimeConfig { network_config: Some(v1::NetworkConfig { pod_cidr: cidr.clone() }) };
    match context.engine.update_runtime_config(v1::UpdateRuntimeConfigRequest { runtime_config: Some(config) }).await {
        Ok(_) => {
            tracing::info!(cidr, "pod range handed to the engine");
            *last = Some(cidr);
        }
        Err(status) if status.code() == tonic::Code::Unimplemented => *last = Some(cidr),
        Err(status) => tracing::debug!("pod range not taken: {status}"),
    }
}

/// Whether the status says Ready.
fn is_ready(status: &NodeStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Registers, then keeps the status current until the agent stops.
pub async fn run(context: Arc<Context>) {
    let begun = Instant::now();
    let mut pod_cidr = None;
    context.learn_engine().await;
    let mut before = status::compute(&context, &NodeStatus::default()).await;
    let mut told = NodeStatus::default();
    if context.config.register_node {
        told = register(&context, &before).await.unwrap_or_default();
    }
    tell_start(&context, &told, &before);
    // What holds since before this agent began began then.
    before.conditions = told.conditions.clone().or(before.conditions);
    // What a create made of the status is the server's business: the first patch sends all of it.
    let mut sent: Option<(NodeStatus, Instant)> = None;
    let mut node_changes = context.nodes.subscribe();
    let mut is_cordoned = false;
    loop {
        tell_cordon(&context, &mut is_cordoned);
        hand_on_pod_cidr(&context, &mut pod_cidr).await;
        let now = status::compute(&context, &before).await;
        let due = sent
            .as_ref()
            .is_none_or(|(last, at)| status::differs(last, &now) || at.elapsed() >= context.config.status_report)
            || overwritten(&context, sent.as_ref());
        if due {
            match status::write(&context, &now).await {
                Ok(()) => {
                    if !sent.as_ref().is_some_and(|(s, _)| is_ready(s)) && is_ready(&now) {
                        tracing::info!(node = %context.config.node_name, after_ms = begun.elapsed().as_millis() as u64, "node is ready");
                    }
                    for reason in news(&told, &now) {
                        let message = format!("Node {} status is now: {reason}", context.config.node_name);
                        context.events.normal(&context.events.about_node(), reason, &message);
                    }
                    told.conditions.clone_from(&now.conditions);
                    sent = Some((now.clone(), Instant::now()));
                }
                Err(error) => {
                    tracing::debug!("node status not written: {error}");
                    if error.is_not_found() && context.config.register_node {
                        register(&context, &now).await;
                    }
                }
            }
        }
        before = now;
        let pace = match (is_ready(&before) && sent.is_some(), begun.elapsed() < EAGER_FOR) {
            (true, _) => context.config.status_update,
            (false, true) => EAGER,
            (false, false) => UNREADY,
        };
        tokio::select! {
            () = tokio::time::sleep(pace) => {}
            () = context.node_changed.notified() => {}
            () = changed(&context, &mut node_changes, pod_cidr.is_none(), sent.as_ref()) => {}
        }
    }
}

/// Whether the API holds other words than ours for a condition we told it of: a node thought lost says so for us, and
/// must hear at once that it is not.
fn overwritten(context: &Context, sent: Option<&(NodeStatus, Instant)>) -> bool {
    let (Some((said, _)), Some(node)) = (sent, context.node()) else { return false };
    let held = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    contradicted(said.conditions.as_deref().unwrap_or_default(), held)
}

fn contradicted(said: &[NodeCondition], held: &[NodeCondition]) -> bool {
    said.iter().any(|ours| held.iter().any(|theirs| theirs.type_ == ours.type_ && theirs.status != ours.status))
}

/// Waits for a change of the node's object that matters here: its pod range while that is unknown, somebody else's words
/// about its conditions.
async fn changed(
    context: &Context,
    changes: &mut client::Subscription,
    cidr: bool,
    sent: Option<&(NodeStatus, Instant)>,
) {
    loop {
        if changes.next().await.is_none() {
            return std::future::pending().await;
        }
        if cidr || overwritten(context, sent) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new() {
        let status = |ready: &str, memory: &str| NodeStatus {
            conditions: Some(
                [("Ready", ready), ("MemoryPressure", memory)]
                    .map(|(type_, status)| NodeCondition {
                        type_: type_.into(),
                        status: status.into(),
                        ..Default::default()
                    })
                    .into(),
            ),
            ..Default::default()
        };
        let none = NodeStatus::default();
        assert_eq!(news(&none, &status("False", "False")), ["NodeHasSufficientMemory"]);
        assert_eq!(news(&none, &status("True", "False")), ["NodeHasSufficientMemory", "NodeReady"]);
        assert_eq!(news(&status("True", "False"), &status("True", "False")), [""; 0]);
        assert_eq!(
            news(&status("True", "False"), &status("False", "True")),
            ["NodeHasInsufficientMemory", "NodeNotReady"]
        );
        // Somebody else thought it lost.
        assert_eq!(news(&status("Unknown", "False"), &status("True", "False")), ["NodeReady"]);
    }

    #[test]
    fn words_put_into_our_mouth() {
        let condition = |type_: &str, status: &str| NodeCondition {
            type_: type_.into(),
            status: status.into(),
            ..Default::default()
        };
        let said = [condition("Ready", "True"), condition("DiskPressure", "False")];
        assert!(!contradicted(&said, &[]));
        assert!(!contradicted(&said, &said));
        assert!(!contradicted(&said, &[condition("NetworkUnavailable", "True")]));
        assert!(contradicted(&said, &[condition("DiskPressure", "False"), condition("Ready", "Unknown")]));
    }
}
