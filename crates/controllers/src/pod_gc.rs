//! Pods nobody else would ever remove: of nodes that are gone, never scheduled and told to go, and finished ones beyond
//! a number.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Client, DeleteOptions};
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use meta::Status;
use serde_json::json;

use crate::Context;
use crate::nodes;
use crate::plan::{Action, Plan};
use crate::pod_facts;
use crate::pods::{self, PodView, seconds_between};
use crate::replicas::pods_resource;
use crate::runner::Controller;

const PERIOD: Duration = Duration::from_secs(20);
/// Seconds a node must be missing before its pods are taken for lost.
const QUARANTINE: i64 = 40;

/// Marks a pod failed if it has not ended, and removes it at once.
fn remove(plan: &mut Plan, pod: &PodView, disruption: Option<&str>, now: Timestamp) {
    if !pod.is_finished() {
        let mut status = json!({"phase": "Failed"});
        let why =
            disruption.and_then(|message| pod.to_say("DisruptionTarget", "True", "DeletionByPodGC", message, now));
        if let Some(condition) = why {
            status["conditions"] = json!([condition]);
        }
        plan.act(pod.tell(status));
    }
    plan.act(Action::delete_with(&pods_resource(), &pod.object, DeleteOptions::default().grace(0)));
}

/// `gone` says whether a node is known not to exist; `out_of_service` whether it was declared so while not ready.
pub fn plan(
    all: &[PodView],
    gone: impl Fn(&str) -> bool,
    out_of_service: impl Fn(&str) -> bool,
    threshold: usize,
    now: Timestamp,
) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    for pod in all {
        if !pod.node().is_empty() && gone(pod.node()) {
            remove(&mut plan, pod, Some("PodGC: node no longer exists"), now);
        } else if pod.is_terminating() && (pod.node().is_empty() || out_of_service(pod.node())) {
            remove(&mut plan, pod, None, now);
        }
    }
    let mut finished: Vec<&PodView> = all.iter().filter(|p| p.is_finished() && !p.is_terminating()).collect();
    if threshold > 0 && finished.len() > threshold {
        finished.sort_by_key(|p| (p.created(), p.object.meta.name.clone()));
        for pod in finished.iter().take(finished.len() - threshold) {
            remove(&mut plan, pod, None, now);
        }
    }
    Ok(plan)
}

/// Nodes that pods name and that are not there, when first missed.
type Missing = Mutex<HashMap<String, Timestamp>>;

/// Which of the missing nodes are gone for sure: long enough, and the server says so too.
async fn confirm(client: &Client, missing: &Missing, now: Timestamp) -> Result<Vec<String>, Status> {
    let due: Vec<String> = {
        let missing = missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing
            .iter()
            .filter(|(_, since)| seconds_between(**since, now) >= QUARANTINE)
            .map(|(name, _)| name.clone())
            .collect()
    };
    let mut gone = Vec::new();
    for name in due {
        if client.api::<Node>().get_opt(&name).await?.is_none() {
            gone.push(name);
        }
    }
    Ok(gone)
}

pub fn pod_gc(cx: &Context) -> Controller {
    let (all_pods, all_nodes) = (pod_facts::informer(&cx.informers), cx.informers.get::<Node>());
    let (of, of_nodes, client) = (all_pods.clone(), all_nodes.clone(), cx.client.clone());
    let threshold = cx.options.terminated_pod_gc_threshold;
    let missing: Arc<Missing> = Arc::default();
    let reconcile = move |ask: crate::runner::Ask| {
        let (of, of_nodes, client, missing) = (of.clone(), of_nodes.clone(), client.clone(), missing.clone());
        async move {
            let views = pods::views(of.list(None))?;
            {
                let mut missing = missing.lock().unwrap_or_else(PoisonError::into_inner);
                let lost = |name: &str| !name.is_empty() && of_nodes.get(name).is_none();
                missing.retain(|name, _| lost(name) && views.iter().any(|p| p.node() == name));
                for pod in views.iter().filter(|p| lost(p.node())) {
                    missing.entry(pod.node().to_string()).or_insert(ask.now);
                }
            }
            let gone = confirm(&client, &missing, ask.now).await?;
            let out_of_service = |name: &str| {
                let node = of_nodes.get(name).and_then(|o| o.typed::<Node>().ok());
                node.is_some_and(|n| {
                    let ready = nodes::condition(&n, "Ready").is_some_and(|c| c.status == "True");
                    !ready && nodes::taints(&n).iter().any(|t| t.key == nodes::OUT_OF_SERVICE)
                })
            };
            plan(&views, |name| gone.iter().any(|g| g == name), out_of_service, threshold, ask.now)
        }
        .boxed()
    };
    Controller::with_io("pod-garbage-collector-controller", reconcile)
        .every(PERIOD, "")
        // Unscheduled pods told to go need not wait.
        .watch(&all_pods, |change| {
            let unplaced = |o: &&Arc<meta::Object>| {
                o.meta.deletion_timestamp.is_some() && PodView::new((*o).clone()).is_ok_and(|p| p.node().is_empty())
            };
            change.new.as_ref().filter(unplaced).map(|_| String::new()).into_iter().collect()
        })
        .read(&all_nodes)
        .workers(1)
}
