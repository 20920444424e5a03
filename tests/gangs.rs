//! Gangs on a real API server, with the gate that serves them open: all that are needed are placed, or none.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use client::{Client, DynamicApi, Gvr};
use nauplius::roles::{self, FeatureGates, Serving};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::api::server::InProcess;

/// On a busy machine everything takes its time.
const WITHIN: Duration = Duration::from_secs(60);

fn node(name: &str) -> Value {
    let size = json!({"cpu": "2", "memory": "8Gi", "pods": "110"});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"capacity": size, "allocatable": size,
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
}

fn pod(name: &str, group: &str, cpu: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"schedulingGroup": {"podGroupName": group}, "tolerations": [{"operator": "Exists"}], "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}})
}

fn group(name: &str, least: usize) -> Value {
    json!({"apiVersion": "scheduling.k8s.io/v1beta1", "kind": "PodGroup", "metadata": {"name": name},
        "spec": {"schedulingPolicy": {"gang": {"minCount": least}}}})
}

/// Waits until an object looks as wanted.
async fn until(api: &DynamicApi, name: &str, want: impl Fn(&Value) -> bool) -> Result<Value> {
    let began = Instant::now();
    loop {
        let body = api.get(name).await?.value()?;
        if want(&body) {
            return Ok(body);
        }
        ensure!(began.elapsed() < WITHIN, "{name} stays {body}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn said(group: &Value) -> Option<(&str, &str)> {
    let conditions = group["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|c| c["type"] == "PodGroupInitiallyScheduled")?;
    Some((found["status"].as_str()?, found["message"].as_str()?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gang_goes_together_or_not_at_all() -> Result<()> {
    let gates = FeatureGates { feature_gates: vec!["GenericWorkload=true".parse().map_err(anyhow::Error::msg)?] };
    let runtime_config = vec!["scheduling.k8s.io/v1beta1=true".into()];
    let server = InProcess::serving(Default::default(), Serving { runtime_config, gates: gates.clone() }).await?;
    let client = Client::from_kubeconfig(&server.kubeconfig, "test").await?;
    let cancel = CancellationToken::new();
    let _ends = cancel.clone().drop_guard();
    tokio::spawn(roles::run_scheduler(client.clone(), false, gates, cancel));

    let api = |group: &str, version: &str, plural: &str| client.dynamic(Gvr::new(group, version, plural));
    let nodes = api("", "v1", "nodes");
    for name in ["n-1", "n-2"] {
        nodes.create(node(name)).await?;
        nodes.update_subresource(name, "status", node(name)).await?;
    }
    let pods = api("", "v1", "pods").namespaced("default");
    let groups = api("scheduling.k8s.io", "v1beta1", "podgroups").namespaced("default");
    let accounts = api("", "v1", "serviceaccounts").namespaced("default");
    let began = Instant::now();
    while accounts.get_opt("default").await?.is_none() {
        ensure!(began.elapsed() < WITHIN, "no service account");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let scheduled = |pod: &Value| pod["spec"]["nodeName"].is_string();

    // Two of three wait for the third, though there is room; another pod shows that the scheduler went on meanwhile.
    groups.create(group("small", 3)).await?;
    for name in ["small-1", "small-2"] {
        pods.create(pod(name, "small", "500m")).await?;
    }
    let mut alone = pod("alone", "", "100m");
    alone["spec"].as_object_mut().context("a spec")?.remove("schedulingGroup");
    pods.create(alone).await?;
    until(&pods, "alone", scheduled).await?;
    for name in ["small-1", "small-2"] {
        ensure!(!scheduled(&pods.get(name).await?.value()?), "{name} went ahead");
    }
    pods.create(pod("small-3", "small", "500m")).await?;
    for name in ["small-1", "small-2", "small-3"] {
        until(&pods, name, scheduled).await?;
    }
    until(&groups, "small", |g| said(g) == Some(("True", ""))).await?;

    // Of three large ones one at most would find room: none is placed.
    groups.create(group("large", 3)).await?;
    for name in ["large-1", "large-2", "large-3"] {
        pods.create(pod(name, "large", "1200m")).await?;
    }
    let told = until(&groups, "large", |g| said(g).is_some()).await?;
    ensure!(said(&told).is_some_and(|(status, _)| status == "False"), "{told}");
    for name in ["large-1", "large-2", "large-3"] {
        ensure!(!scheduled(&pods.get(name).await?.value()?), "{name} went alone");
    }
    // Room comes: all three go.
    nodes.create(node("n-3")).await?;
    nodes.update_subresource("n-3", "status", node("n-3")).await?;
    nodes.create(node("n-4")).await?;
    nodes.update_subresource("n-4", "status", node("n-4")).await?;
    for name in ["large-1", "large-2", "large-3"] {
        until(&pods, name, scheduled).await?;
    }
    until(&groups, "large", |g| said(g).is_some_and(|(status, _)| status == "True")).await?;

    // What matters more has room made for it, all of it, and a group that is in use outlives its deletion.
    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "vital"}, "value": 1000});
    api("scheduling.k8s.io", "v1", "priorityclasses").create(class).await?;
    groups.create(group("vital", 4)).await?;
    let vital = ["vital-1", "vital-2", "vital-3", "vital-4"];
    for name in vital {
        let mut body = pod(name, "vital", "1800m");
        body["spec"]["priorityClassName"] = "vital".into();
        pods.create(body).await?;
    }
    for name in vital {
        until(&pods, name, scheduled).await?;
    }
    for name in ["large-1", "large-2", "large-3"] {
        ensure!(pods.get_opt(name).await?.is_none(), "{name} is still there");
    }
    groups.delete("vital", &client::DeleteOptions::default()).await?;
    ensure!(groups.get("vital").await?.meta.deletion_timestamp.is_some());
    Ok(())
}
