//! Pods on this node: who has a worker, and waking the right one.
//!
//! Sources of work are the API (pods bound here), the engine's events, and timers. Decisions are in [`plan`],
//! [`status`] and [`admit`], which are pure; [`worker`] carries them out.

pub mod admit;
pub mod allocation;
pub mod end;
pub mod hooks;
pub mod inbox;
pub mod look;
pub mod observed;
pub mod orphans;
pub mod plan;
pub mod pleg;
pub mod report;
pub mod resize;
pub mod start;
pub mod status;
pub mod stop;
pub mod worker;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Batch, Change, Object, Patch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::task::AbortOnDropHandle;

use crate::agent::Context;
use crate::eviction::core::Pressure;
use crate::metrics::families;
use crate::spec;
use inbox::Inbox;
use status::is_terminal;
use worker::Worker;

/// How often it is looked whether displaced pods are over.
const DISPLACED_LOOK: Duration = Duration::from_millis(100);

struct Place {
    inbox: Arc<Inbox>,
    /// The worker has done all there is to do; the place is kept until the API forgets the pod, lest it begin anew.
    done: bool,
}

/// The workers, by pod uid.
#[derive(Default)]
pub struct Workers {
    places: Mutex<HashMap<String, Place>>,
}

impl Workers {
    fn places(&self) -> std::sync::MutexGuard<'_, HashMap<String, Place>> {
        // Entries are whole after every statement.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inbox(&self, uid: &str) -> Option<Arc<Inbox>> {
        self.places().get(uid).map(|p| p.inbox.clone())
    }

    /// Something happened in the engine; false for a pod nobody here knows.
    pub fn wake(&self, uid: &str) -> bool {
        let inbox = self.inbox(uid);
        if let Some(inbox) = &inbox {
            inbox.wake();
        }
        inbox.is_some()
    }

    pub fn wake_all(&self) {
        self.places().values().for_each(|p| p.inbox.wake());
    }

    /// Something the pod refers to changed.
    pub fn wake_for_references(&self, uid: &str) {
        if let Some(inbox) = self.inbox(uid) {
            inbox.wake_for_references();
        }
    }

    /// The API has lost the pod's status.
    pub fn resend(&self, uid: &str) {
        if let Some(inbox) = self.inbox(uid) {
            inbox.resend();
        }
    }

    /// The pods that have a worker, finished ones included.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.places().values().map(|p| p.inbox.latest().pod).collect()
    }

    /// Whether a pod's worker still has to see to what it runs.
    pub fn works_on(&self, uid: &str) -> bool {
        self.places().get(uid).is_some_and(|p| !p.done && !p.inbox.is_idle())
    }

    pub fn knows(&self, uid: &str) -> bool {
        self.places().contains_key(uid)
    }

    /// A pod by namespace and name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = self.pods();
        pods.into_iter().filter(|p| spec::namespace(p) == namespace && spec::name(p) == name).max_by_key(|p| {
            // Of namesakes the younger is meant.
            p.metadata.creation_timestamp.clone()
        })
    }

    fn removed(&self, uid: &str) {
        let mut places = self.places();
        let Some(place) = places.get(uid) else { return };
        if place.done {
            places.remove(uid);
        } else {
            place.inbox.remove();
        }
    }

    fn finished(&self, uid: &str) {
        let mut places = self.places();
        if let Some(place) = places.get_mut(uid) {
            place.done = true;
            if place.inbox.latest().removed {
                places.remove(uid);
            }
        }
    }
}

/// Gives a pod a worker.
fn begin(context: &Arc<Context>, pod: Arc<Pod>) {
    let uid = spec::uid(&pod).to_string();
    let containers = spec::all_containers(&pod).filter(|(kind, _)| *kind == spec::Kind::Main).count();
    context.metrics.observe(&families::CONTAINERS_OF_PODS, &[], containers as f64);
    let inbox = Inbox::new(pod);
    context.workers.places().insert(uid.clone(), Place { inbox: inbox.clone(), done: false });
    let (context, seen) = (context.clone(), std::time::Instant::now());
    tokio::spawn(async move {
        context.metrics.since(&families::POD_WORKER_START, &[], seen);
        let worker = AbortOnDropHandle::new(tokio::spawn(Worker::new(context.clone(), inbox).run()));
        let ended = tokio::select! {
            () = context.stopped.cancelled() => return,
            ended = worker => ended,
        };
        if let Err(error) = ended {
            // A worker that panicked: its pod is left as it is and looked at anew when the API speaks of it again.
            tracing::error!(uid, "pod worker failed: {error}");
            context.workers.places().remove(&uid);
            return;
        }
        context.workers.finished(&uid);
    });
}

/// Ends pods so that a critical one finds room, which then arrives again.
fn displace(context: &Arc<Context>, pod: Arc<Pod>, victims: Vec<&Arc<Pod>>, short_of: &str) {
    let uids: Vec<String> = victims.iter().map(|v| spec::uid(v).to_string()).collect();
    for victim in victims {
        let message = "Preempted in order to admit critical pod";
        context.metrics.count(&families::PREEMPTIONS, &[short_of]);
        context.events.warning(&context.events.about_pod(victim), "Preempting", message);
        context.evictions.sentence(context, victim, "Preempting", message.into(), stop::grace(victim));
    }
    let context = context.clone();
    tokio::spawn(async move {
        while uids.iter().any(|uid| context.workers.works_on(uid)) {
            tokio::time::sleep(DISPLACED_LOOK).await;
        }
        // It may be gone, or have come again, meanwhile.
        let key = format!("{}/{}", spec::namespace(&pod), spec::name(&pod));
        let held = context.pods.get(&key).filter(|o| *o.meta.uid == *spec::uid(&pod));
        if held.is_some() && !context.workers.knows(spec::uid(&pod)) {
            arrive(&context, pod);
        }
    });
}

/// A pod seen for the first time: takes it on, or refuses it.
fn arrive(context: &Arc<Context>, pod: Arc<Pod>) {
    let status = pod.status.as_ref();
    let acknowledged = status.is_some_and(|s| s.start_time.is_some());
    let over = is_terminal(status.and_then(|s| s.phase.as_deref())) || pod.metadata.deletion_timestamp.is_some();
    if !acknowledged && !over {
        let others: Vec<Arc<Pod>> = context
            .workers
            .pods()
            .into_iter()
            .filter(|p| !is_terminal(p.status.as_ref().and_then(|s| s.phase.as_deref())))
            .map(|p| context.allocations.apply(&p))
            .collect();
        let node = context.node();
        let room = admit::Room {
            node: node.as_deref(),
            allocatable: context.machine.allocatable_amounts(&context.config),
            allowed_sysctls: &context.config.allowed_unsafe_sysctls,
            memory_pressure: context.evictions.under(Pressure::Memory),
            disk_pressure: context.evictions.under(Pressure::Disk),
            apparmor: spec::security::apparmor_enabled(),
            shutting_down: context.shutting_down.load(Ordering::Relaxed),
            pid_pressure: context.evictions.under(Pressure::Pid),
        };
        let taken = admit::admit(&pod, &room, others.iter().map(|p| &**p));
        let Context { metrics, processors, devices, .. } = &**context;
        if let Err(verdict) = taken.and_then(|()| context.alignment.admit(metrics, processors, devices, &pod)) {
            let displaced = admit::victims(&pod, &room, &others, &verdict);
            if !displaced.is_empty() {
                let short_of = verdict.reason.trim_start_matches("OutOf").to_lowercase();
                return displace(context, pod, displaced, &short_of);
            }
            tracing::info!(pod = %spec::described(&pod), "refused: {}", verdict.message);
            metrics.count(&families::ADMISSION_REJECTIONS, &[&verdict.reason]);
            context.events.warning(&context.events.about_pod(&pod), &verdict.reason, &verdict.message);
            let status = status::rejected(&pod, &verdict, Timestamp::now());
            let refused = Arc::new(Pod { status: Some(status.clone()), ..(*pod).clone() });
            let (client, uid) = (context.client.clone(), spec::uid(&pod).to_string());
            tokio::spawn(async move {
                let patch = serde_json::json!({"metadata": {"uid": uid}, "status": status});
                let api = client.api::<Pod>().namespaced(spec::namespace(&pod));
                if let Err(error) = api.patch_status(spec::name(&pod), Patch::Strategic(patch)).await {
                    tracing::warn!(pod = %spec::described(&pod), "refusal not written: {error}");
                }
            });
            // Its worker starts at the end: nothing to run, and a deletion to wait for.
            return begin(context, refused);
        }
    }
    if !over {
        context.allocations.adopt(&context.config, &pod, acknowledged);
    }
    begin(context, pod);
}

fn typed(object: &Arc<Object>) -> Option<Arc<Pod>> {
    match object.typed::<Pod>() {
        Ok(pod) => Some(pod),
        Err(error) => {
            tracing::error!(pod = %object.meta.key(), "pod does not parse: {error}");
            None
        }
    }
}

fn take(context: &Arc<Context>, change: &Change) {
    if let Some(old) = &change.old
        && change.new.as_ref().is_none_or(|n| n.meta.uid != old.meta.uid)
    {
        context.workers.removed(&old.meta.uid);
    }
    let Some(pod) = change.new.as_ref().and_then(typed) else { return };
    if pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(spec::names::CONFIG_MIRROR)) {
        return context.statics.mirror_seen(context, &pod);
    }
    match context.workers.inbox(spec::uid(&pod)) {
        Some(inbox) => inbox.update(pod),
        None => arrive(context, pod),
    }
}

/// Starts a pod that did not come from the API.
pub fn begin_static(context: &Arc<Context>, pod: Arc<Pod>) {
    begin(context, pod);
}

/// Ends one.
pub fn end_static(context: &Context, uid: &str) {
    context.workers.removed(uid);
}

/// Follows the pods bound to this node until the agent stops.
pub async fn follow(context: Arc<Context>) {
    let mut changes = context.pods.subscribe();
    context.pods.synced().await;
    if let Some(batch) = changes.try_next() {
        take_batch(&context, batch);
    }
    context.alignment.keep(|uid| context.workers.knows(uid));
    // From here on a pod without a worker is an orphan.
    context.pods_seen.cancel();
    while let Some(batch) = changes.next().await {
        take_batch(&context, batch);
    }
}

fn take_batch(context: &Arc<Context>, batch: Batch) {
    match batch {
        Batch::Changes(mut list) => {
            // In order of creation, so that after a restart the elder pods are admitted first.
            list.sort_by_cached_key(|c| c.object().map(|o| o.meta.creation_timestamp.clone()));
            list.iter().for_each(|change| take(context, change));
        }
        Batch::Resync => {
            let held: Vec<Arc<Object>> = context.pods.list(None);
            let known: Vec<String> = context.workers.places().keys().cloned().collect();
            let gone = known
                .iter()
                .filter(|uid| !context.statics.is_static(uid) && !held.iter().any(|o| *o.meta.uid == ***uid));
            gone.for_each(|uid| context.workers.removed(uid));
            for object in held {
                take(context, &Change { key: object.meta.key().into(), old: None, new: Some(object) });
            }
        }
    }
}
