//! Pressure: when memory or disk runs short the node says so and gives up pods, the least deserving first.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;

use crate::agent::Context;
use crate::pods::status::Verdict;
use crate::spec::{self, resources, resources::Qos};

/// How often signals are read; as upstream's monitoring interval.
const EVERY: Duration = Duration::from_secs(10);
/// What an evicted pod gets: the least there is.
const GRACE: Duration = Duration::from_secs(1);
/// Time for one eviction to show before the next.
const SETTLE: Duration = Duration::from_secs(20);

/// Pressure now, and verdicts waiting for their workers.
#[derive(Default)]
pub struct Evictions {
    memory: AtomicBool,
    disk: AtomicBool,
    verdicts: Mutex<HashMap<String, (Verdict, Duration)>>,
}

impl Evictions {
    pub fn memory_pressure(&self) -> bool {
        self.memory.load(Ordering::Relaxed)
    }

    pub fn disk_pressure(&self) -> bool {
        self.disk.load(Ordering::Relaxed)
    }

    /// The verdict on a pod, for its worker to carry out, with the grace it leaves.
    pub fn take(&self, uid: &str) -> Option<(Verdict, Duration)> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).remove(uid)
    }

    fn sentence(&self, uid: &str, verdict: Verdict) {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.into(), (verdict, GRACE));
    }
}

/// One signal's reading.
struct Reading {
    resource: &'static str,
    low: bool,
    available: u64,
    threshold: u64,
}

fn memory(context: &Context) -> Option<Reading> {
    let threshold = context.config.eviction.memory_available;
    let available = crate::node::machine::memory_available()?;
    Some(Reading { resource: "memory", low: threshold > 0 && available < threshold, available, threshold })
}

fn disk(context: &Context) -> Option<Reading> {
    let stat = nix::sys::statvfs::statvfs(&context.config.root_dir).ok()?;
    let (capacity, available) = (stat.blocks() * stat.fragment_size(), stat.blocks_available() * stat.fragment_size());
    let threshold = capacity * context.config.eviction.nodefs_available_percent / 100;
    let inodes_low = stat.files() > 0
        && stat.files_available() * 100 / stat.files() < context.config.eviction.nodefs_inodes_free_percent;
    Some(Reading {
        resource: "ephemeral-storage",
        low: (threshold > 0 && available < threshold) || inodes_low,
        available,
        threshold,
    })
}

/// Who goes first: over its request before within it, then lower priority, then the lesser class.
pub fn rank(pods: &mut [(Arc<Pod>, u64)], resource: &str) {
    pods.sort_by_key(|(pod, usage)| {
        let request = resources::pod_total(pod, false).get(resource).copied().unwrap_or(0).max(0) as u64;
        let over = usage.saturating_sub(request);
        (
            over == 0,
            spec::spec(pod).priority.unwrap_or(0),
            resources::qos(pod) == Qos::Guaranteed,
            std::cmp::Reverse(over),
        )
    });
}

/// Watches the signals until the agent stops.
pub async fn run(context: Arc<Context>) {
    let (mut memory_last, mut disk_last): (Option<Instant>, Option<Instant>) = (None, None);
    loop {
        tokio::time::sleep(EVERY).await;
        let mut low = None;
        for (reading, last, flag) in [
            (memory(&context), &mut memory_last, &context.evictions.memory),
            (disk(&context), &mut disk_last, &context.evictions.disk),
        ] {
            let Some(reading) = reading else { continue };
            if reading.low {
                *last = Some(Instant::now());
            }
            // A condition outlives its cause for a while, so that pods are not sent back at once.
            let pressed = last.is_some_and(|l| l.elapsed() < context.config.eviction.pressure_transition);
            if flag.swap(pressed, Ordering::Relaxed) != pressed {
                context.node_changed.notify_one();
            }
            if reading.low {
                low.get_or_insert(reading);
            }
        }
        if let Some(reading) = low {
            evict_one(&context, &reading).await;
            tokio::time::sleep(SETTLE).await;
        }
    }
}

async fn evict_one(context: &Arc<Context>, reading: &Reading) {
    let usage = context.stats.working_sets(context).await;
    let mut pods: Vec<(Arc<Pod>, u64)> = context
        .workers
        .pods()
        .into_iter()
        .filter(|p| !crate::pods::status::is_terminal(p.status.as_ref().and_then(|s| s.phase.as_deref())))
        .filter(|p| spec::spec(p).priority.unwrap_or(0) < 2_000_000_000 && p.metadata.deletion_timestamp.is_none())
        .map(|p| {
            let used = usage.get(spec::uid(&p)).copied().unwrap_or(0);
            (p, used)
        })
        .collect();
    rank(&mut pods, reading.resource);
    let Some((pod, _)) = pods.first() else { return };
    let shown = |bytes: u64| format!("{}Ki", bytes / 1024);
    let message = format!(
        "The node was low on resource: {}. Threshold quantity: {}, available: {}. ",
        reading.resource,
        shown(reading.threshold),
        shown(reading.available)
    );
    context.events.warning(&context.events.about_pod(pod), "Evicted", &message);
    tracing::warn!(pod = %spec::described(pod), "evicting: {message}");
    context.evictions.sentence(spec::uid(pod), Verdict { reason: "Evicted".into(), message, disruption: true });
    context.workers.wake(spec::uid(pod));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_least_deserving_go_first() {
        let pod = |name: &str, priority: i32, request: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"priority": priority,
                    "containers": [{"name": "c", "resources": {"requests": {"memory": request}}}]}}))
                .unwrap(),
            )
        };
        let mut pods = vec![
            (pod("within", 0, "10Mi"), 5 << 20),
            (pod("over-a-little", 0, "10Mi"), 11 << 20),
            (pod("over-but-important", 9, "10Mi"), 99 << 20),
            (pod("over-much", 0, "10Mi"), 50 << 20),
        ];
        rank(&mut pods, "memory");
        let order: Vec<&str> = pods.iter().map(|(p, _)| spec::name(p)).collect();
        assert_eq!(order, ["over-much", "over-a-little", "over-but-important", "within"]);
    }
}
