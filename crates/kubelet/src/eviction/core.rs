//! When the node is under pressure and who has to go: a pure function of what is measured, what was measured before, and
//! the time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use crate::config::eviction::{Eviction, Signal, Threshold};
use crate::spec::{self, resources};

/// Pods of at least this priority are the node's own.
pub const CRITICAL: i32 = 2_000_000_000;
/// What a pod gets that a hard threshold evicts: the least there is.
const LEAST_GRACE: Duration = Duration::from_secs(1);

/// One signal's reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    pub available: u64,
    pub capacity: u64,
}

pub type Readings = BTreeMap<Signal, Reading>;

/// What a node can be short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pressure {
    Memory,
    Disk,
    Pid,
}

impl From<Signal> for Pressure {
    fn from(signal: Signal) -> Self {
        match signal {
            Signal::Memory => Pressure::Memory,
            Signal::Pids => Pressure::Pid,
            _ => Pressure::Disk,
        }
    }
}

/// A threshold that has to be acted upon.
#[derive(Clone, Debug, PartialEq)]
pub struct Due {
    pub threshold: Threshold,
    pub reading: Reading,
    /// What an evicted pod may take to end.
    pub grace: Duration,
}

/// What was seen before.
#[derive(Default)]
pub struct History {
    /// Since when each threshold (by its place in the configuration) has been crossed.
    since: HashMap<usize, Timestamp>,
    /// When each pressure was last seen.
    last: BTreeMap<Pressure, Timestamp>,
}

impl History {
    /// The pressures there are, and the most urgent threshold whose grace is over.
    pub fn judge(
        &mut self,
        config: &Eviction,
        readings: &Readings,
        now: Timestamp,
    ) -> (BTreeSet<Pressure>, Option<Due>) {
        let mut due: Vec<Due> = Vec::new();
        for (at, threshold) in config.thresholds.iter().enumerate() {
            let Some(reading) = readings.get(&threshold.signal).filter(|r| r.capacity > 0) else { continue };
            let mut bound = threshold.amount.of(reading.capacity);
            if self.since.contains_key(&at) {
                // Once crossed, more has to be free before it counts as left.
                bound += threshold.reclaim.map_or(0, |r| r.of(reading.capacity));
            }
            if reading.available >= bound {
                self.since.remove(&at);
                continue;
            }
            let since = *self.since.entry(at).or_insert(now);
            self.last.insert(threshold.signal.into(), now);
            let borne = Duration::try_from(now.duration_since(since)).unwrap_or_default();
            if threshold.grace.is_none_or(|g| borne >= g) {
                let grace = threshold.grace.map_or(LEAST_GRACE, |_| config.max_pod_grace.max(LEAST_GRACE));
                due.push(Due { threshold: threshold.clone(), reading: *reading, grace });
            }
        }
        let lasts = SignedDuration::try_from(config.pressure_transition).unwrap_or(SignedDuration::MAX);
        let still = |at: &Timestamp| *at == now || now.duration_since(*at) < lasts;
        self.last.retain(|_, at| still(at));
        due.sort_by_key(|d| (d.threshold.signal, d.threshold.grace.is_some()));
        (self.last.keys().copied().collect(), due.into_iter().next())
    }
}

/// What a pod uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub memory: u64,
    pub disk: u64,
    pub inodes: u64,
    pub processes: u64,
}

impl Usage {
    pub fn of(&self, signal: Signal) -> u64 {
        match signal {
            Signal::Memory => self.memory,
            Signal::NodefsBytes | Signal::ImagefsBytes => self.disk,
            Signal::NodefsInodes | Signal::ImagefsInodes => self.inodes,
            Signal::Pids => self.processes,
        }
    }
}

/// Who goes first: over its request before within it, then lower priority, then the larger user beyond its request.
pub fn rank(pods: &mut [(Arc<Pod>, Usage)], signal: Signal) {
    pods.sort_by_key(|(pod, usage)| {
        let request = resources::pod_total(pod, false).get(signal.resource()).copied().unwrap_or(0).max(0) as u64;
        let over = usage.of(signal).saturating_sub(request);
        let counts = matches!(signal.resource(), "memory" | "ephemeral-storage");
        (counts && over == 0, spec::spec(pod).priority.unwrap_or(0), std::cmp::Reverse(over))
    });
}

/// Bytes as messages show them.
fn shown(signal: Signal, amount: u64) -> String {
    match signal {
        Signal::Memory | Signal::NodefsBytes | Signal::ImagefsBytes => format!("{}Ki", amount / 1024),
        _ => amount.to_string(),
    }
}

/// Why, as the pod's status says it.
pub fn message(due: &Due) -> String {
    let signal = due.threshold.signal;
    format!(
        "The node was low on resource: {}. Threshold quantity: {}, available: {}. ",
        signal.resource(),
        shown(signal, due.threshold.amount.of(due.reading.capacity)),
        shown(signal, due.reading.available)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::eviction::parse;
    use serde_json::json;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn pressure_comes_and_goes() {
        let map = |name: &str, text: &str| [(name.to_string(), text.to_string())].into();
        let config = Eviction {
            thresholds: parse(
                &map("memory.available", "100"),
                &map("nodefs.available", "50%"),
                &map("nodefs.available", "30s"),
                &map("memory.available", "50"),
            )
            .unwrap(),
            pressure_transition: Duration::from_secs(60),
            max_pod_grace: Duration::from_secs(7),
        };
        let mut history = History::default();
        // Second, memory, disk: what is said.
        for (second, memory, disk, expect) in [
            (0, 500, 900, ""),
            (10, 99, 900, "Memory; memory.available 1s"),
            // Free again, but not by as much as has to be.
            (20, 120, 900, "Memory; memory.available 1s"),
            (30, 151, 900, "Memory;"),
            (79, 500, 900, "Memory;"),
            (80, 500, 900, ""),
            (90, 500, 400, "Disk;"),
            (110, 500, 600, "Disk;"),
            (120, 500, 400, "Disk;"),
            (150, 500, 400, "Disk; nodefs.available 7s"),
            (160, 50, 400, "Memory Disk; memory.available 1s"),
        ] {
            let readings = [
                (Signal::Memory, Reading { available: memory, capacity: 1000 }),
                (Signal::NodefsBytes, Reading { available: disk, capacity: 1000 }),
            ]
            .into();
            let (pressures, due) = history.judge(&config, &readings, at(second));
            let words: Vec<String> = pressures.iter().map(|p| format!("{p:?}")).collect();
            let due = due.map(|d| format!(" {} {}s", d.threshold.signal.as_str(), d.grace.as_secs()));
            let said = match words.is_empty() {
                true => String::new(),
                false => format!("{};{}", words.join(" "), due.unwrap_or_default()),
            };
            assert_eq!(said, expect, "at {second}");
        }
    }

    #[test]
    fn the_least_deserving_go_first() {
        let pod = |name: &str, priority: i32, request: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"priority": priority,
                    "containers": [{"name": "c", "resources": {"requests": {"memory": request}}}]}}))
                .unwrap(),
            )
        };
        let memory = |memory| Usage { memory, ..Default::default() };
        let mut pods = vec![
            (pod("within", 0, "10Mi"), memory(5 << 20)),
            (pod("over-a-little", 0, "10Mi"), memory(11 << 20)),
            (pod("over-but-important", 9, "10Mi"), memory(99 << 20)),
            (pod("over-much", 0, "10Mi"), memory(50 << 20)),
        ];
        rank(&mut pods, Signal::Memory);
        let order: Vec<&str> = pods.iter().map(|(p, _)| spec::name(p)).collect();
        assert_eq!(order, ["over-much", "over-a-little", "over-but-important", "within"]);
    }
}
