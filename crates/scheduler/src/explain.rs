//! Why a pod is where it is, or nowhere, in words: `nauplius scheduler explain`.
//!
//! The cluster is read as the scheduler reads it, and the pod assessed as if it waited now. Nothing is written.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use client::{Client, Informers};
use futures::FutureExt;
use meta::Status;
use tokio::time::Instant;

use crate::assess::Assessment;
use crate::config::Configuration;
use crate::core::Core;
use crate::events::Events;
use crate::pod::Pod;
use crate::queue::PodQueue;
use crate::sources::{Served, Sources};
use crate::view::PodView;
use crate::world::{World, view};

/// Nodes shown of those that would do, and named of those refused for one reason.
const LIKED_SHOWN: usize = 10;
const REFUSED_NAMED: usize = 5;

/// Explains a pod.
pub async fn explain(
    client: &Client,
    configuration: &Configuration,
    namespace: &str,
    name: &str,
) -> Result<String, Status> {
    let api = client.dynamic(client::gvr_of::<k8s_openapi::api::core::v1::Pod>()).namespaced(namespace);
    let object = api.get(name).await?;
    let informers = Informers::new(client.clone());
    let served = Served::of(client).await;
    let mut sources = Sources::new(&informers, served);
    sources.listen().await;
    let queue = PodQueue::new(configuration.pod_initial_backoff, configuration.pod_max_backoff);
    let mut world = World::new(queue, configuration.profiles.clone());
    world.core.snapshot.devices.served = served.devices;
    world.core.snapshot.places_groups = served.groups;
    world.groups.enabled = served.groups;
    let now = Instant::now();
    while let Some(Some((source, changes))) = sources.next().now_or_never() {
        world.take(source, changes, &mut Events::default(), now);
    }
    let view: PodView = view(&object).ok_or_else(|| Status::internal("the pod cannot be read"))?;
    let mut out = format!("pod {namespace}/{name}\n");
    if world.specs.profile(&view.spec.scheduler_name).is_none() {
        let _ = writeln!(out, "  is for another scheduler: {:?}", view.spec.scheduler_name);
        return Ok(out);
    }
    let key: Arc<str> = object.meta.key().into();
    if !view.spec.node_name.is_empty() {
        let _ = writeln!(out, "  is on node {}; as if it were not:", view.spec.node_name);
        world.core.snapshot.remove(&key);
    }
    if !view.spec.scheduling_gates.is_empty() {
        let gates: Vec<&str> = view.spec.scheduling_gates.iter().map(|g| &*g.name).collect();
        let _ = writeln!(out, "  waits for its scheduling gates to be removed: {}", gates.join(", "));
    }
    let pod = Pod::new(&object, &view, &mut world.specs);
    if let Some(why) = world.held_by(&pod).filter(|_| view.spec.node_name.is_empty()) {
        let _ = writeln!(out, "  is not tried yet: {why}");
    }
    let assessment = world.core.assess(&pod);
    tell(&mut out, &mut world.core, &pod, &assessment);
    Ok(out)
}

/// Writes an assessment down.
pub fn tell(out: &mut String, core: &mut Core, pod: &Pod, assessment: &Assessment) {
    let nodes = core.snapshot.present();
    let _ = writeln!(out, "  {} of {nodes} nodes would do", assessment.feasible.len());
    if let Some((plugin, why)) = &assessment.pod {
        let _ = writeln!(out, "  {}: {why}", plugin.name());
    }
    let extended: Vec<&str> = pod.spec.requests.extended.iter().map(|e| &*e.name).collect();
    let mut reasons: BTreeMap<(&str, String), Vec<&str>> = BTreeMap::new();
    for (id, refusal) in &assessment.refused {
        let name = &core.snapshot.node(*id).name;
        refusal.reason.each(&extended, |text| reasons.entry((refusal.plugin.name(), text)).or_default().push(name));
    }
    if !reasons.is_empty() {
        out.push_str("\n  refused by\n");
    }
    for ((plugin, text), names) in &mut reasons {
        names.sort_unstable();
        let shown = names[..names.len().min(REFUSED_NAMED)].join(", ");
        let more = if names.len() > REFUSED_NAMED { ", …" } else { "" };
        let _ = writeln!(out, "    {plugin:<18} {:>6}  {text} ({shown}{more})", names.len());
    }
    if !assessment.feasible.is_empty() {
        out.push_str("\n  best\n");
    }
    for liked in assessment.feasible.iter().take(LIKED_SHOWN) {
        let scores: Vec<String> =
            liked.scores.iter().filter(|s| s.1 != 0).map(|(plugin, score)| format!("{plugin} {score}")).collect();
        let _ =
            writeln!(out, "    {:<30} {:>6}  {}", core.snapshot.node(liked.id).name, liked.total, scores.join(", "));
    }
    if let Some(why) = assessment.why_not(pod, nodes) {
        match core.preempt(pod, &why, &mut rand::rng()) {
            Ok(plan) => {
                let victims: Vec<&str> = plan.victims.iter().map(|v| &*v.key).collect();
                let node = &core.snapshot.node(plan.node).name;
                let _ = writeln!(out, "\n  room could be made on {node} by removing {}", victims.join(", "));
            }
            Err(why) if !why.is_empty() => {
                let _ = writeln!(out, "\n  preemption: {why}");
            }
            Err(_) => {}
        }
    }
}
