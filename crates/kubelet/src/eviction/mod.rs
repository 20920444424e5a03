//! Pressure: when memory, disk or process ids run short the node says so, frees what nobody needs, and gives up pods, the
//! least deserving first. [`core`] decides; this room measures and carries out.

pub mod core;
pub mod local;
mod measure;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use self::core::{CRITICAL, Due, History, Pressure, message, rank};
use crate::agent::Context;
use crate::images;
use crate::metrics::families;
use crate::pods::status::{Verdict, is_terminal};
use crate::spec;

/// How often signals are read; as upstream's monitoring interval.
const EVERY: Duration = Duration::from_secs(10);
/// Time for one eviction to show before the next.
const SETTLE: Duration = Duration::from_secs(20);
/// What a pod over its own bounds gets.
const GRACE: Duration = Duration::from_secs(1);

/// Pressure now, and verdicts waiting for their workers.
#[derive(Default)]
pub struct Evictions {
    memory: AtomicBool,
    disk: AtomicBool,
    pid: AtomicBool,
    verdicts: Mutex<HashMap<String, (Verdict, Duration)>>,
}

impl Evictions {
    fn flag(&self, pressure: Pressure) -> &AtomicBool {
        match pressure {
            Pressure::Memory => &self.memory,
            Pressure::Disk => &self.disk,
            Pressure::Pid => &self.pid,
        }
    }

    pub fn under(&self, pressure: Pressure) -> bool {
        self.flag(pressure).load(Ordering::Relaxed)
    }

    /// The verdict on a pod, for its worker to carry out, with the grace it leaves.
    pub fn take(&self, uid: &str) -> Option<(Verdict, Duration)> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).remove(uid)
    }

    /// The node ends a pod for its own sake.
    pub fn sentence(&self, context: &Context, pod: &Pod, reason: &str, message: String, grace: Duration) {
        tracing::warn!(pod = %spec::described(pod), reason, "ended by the node: {message}");
        let verdict = Verdict { reason: reason.into(), message, disruption: true };
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).insert(spec::uid(pod).into(), (verdict, grace));
        context.workers.wake(spec::uid(pod));
    }
}

/// The pods that run here and are not ending.
pub fn active(context: &Context) -> Vec<Arc<Pod>> {
    let pods = context.workers.pods().into_iter();
    pods.filter(|p| !is_terminal(p.status.as_ref().and_then(|s| s.phase.as_deref())))
        .filter(|p| p.metadata.deletion_timestamp.is_none())
        .collect()
}

/// Watches the signals until the agent stops.
pub async fn run(context: Arc<Context>) {
    let mut history = History::default();
    // How long something lasts is not to be told by a clock that may be set.
    let began = Instant::now();
    loop {
        tokio::time::sleep(EVERY).await;
        let looked = Instant::now();
        let readings = measure::node(&context).await;
        let now = Timestamp::UNIX_EPOCH + looked.duration_since(began);
        let (pressures, due) = history.judge(&context.config.eviction, &readings, now);
        for pressure in [Pressure::Memory, Pressure::Disk, Pressure::Pid] {
            let on = pressures.contains(&pressure);
            if context.evictions.flag(pressure).swap(on, Ordering::Relaxed) != on {
                context.node_changed.notify_one();
            }
        }
        if enforce_bounds(&context).await {
            continue;
        }
        let Some(due) = due else { continue };
        if Pressure::from(due.threshold.signal) == Pressure::Disk && freed(&context, &due).await {
            continue;
        }
        if evict_one(&context, &due).await {
            context.metrics.since(&families::EVICTION_STATS_AGE, &[due.threshold.signal.as_str()], looked);
            tokio::time::sleep(SETTLE).await;
        }
    }
}

/// Removes images nobody uses; true when that was enough.
async fn freed(context: &Arc<Context>, due: &Due) -> bool {
    context.events.warning(
        &context.events.about_node(),
        "EvictionThresholdMet",
        &format!("Attempting to reclaim {}", due.threshold.signal.resource()),
    );
    if context.config.image_gc.is_none() {
        // Images that nobody could bring back stay.
        return false;
    }
    if let Err(error) = images::gc::remove_unused(context).await {
        tracing::warn!("unused images not removed: {error:#}");
    }
    let again = measure::node(context).await;
    again.get(&due.threshold.signal).is_some_and(|r| r.available >= due.threshold.amount.of(r.capacity))
}

/// Ends pods that use more of the disk than they may; true when there was one.
async fn enforce_bounds(context: &Arc<Context>) -> bool {
    let mut any = false;
    for pod in active(context).into_iter().filter(|p| context.config.local_storage && local::is_bounded(p)) {
        let parts = measure::parts(context, &pod).await;
        if let Some((signal, why)) = local::excess(&pod, &parts) {
            context.metrics.count(&families::EVICTIONS, &[signal]);
            context.events.warning(&context.events.about_pod(&pod), "Evicted", &why);
            context.evictions.sentence(context, &pod, "Evicted", why, GRACE);
            any = true;
        }
    }
    any
}

/// Gives up one pod; false when there is none to give up.
async fn evict_one(context: &Arc<Context>, due: &Due) -> bool {
    let candidates = active(context).into_iter().filter(|p| spec::spec(p).priority.unwrap_or(0) < CRITICAL).collect();
    let mut pods = measure::usage(context, candidates, due.threshold.signal).await;
    rank(&mut pods, due.threshold.signal);
    let Some((pod, _)) = pods.first() else { return false };
    let why = message(due);
    context.metrics.count(&families::EVICTIONS, &[due.threshold.signal.as_str()]);
    context.events.warning(&context.events.about_pod(pod), "Evicted", &why);
    context.evictions.sentence(context, pod, "Evicted", why, due.grace);
    true
}
