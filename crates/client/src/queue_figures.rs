//! What work queues count, under the names upstream's have.
//!
//! Each named queue keeps its own figures under its own lock; here they are gathered and written.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of durations: ten nanoseconds, and each ten times the one before.
const BOUNDS: usize = 12;
const FIRST_BOUND_NS: u128 = 10;
/// Those bounds in seconds, as they are written.
const LABELS: [&str; BOUNDS] =
    ["1e-08", "1e-07", "1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", "1", "10", "100", "1000"];

/// Durations, counted by size.
#[derive(Clone, Debug, Default)]
pub(crate) struct Durations {
    buckets: [u64; BOUNDS],
    count: u64,
    sum: Duration,
}

impl Durations {
    pub(crate) fn observe(&mut self, took: Duration) {
        let (ns, mut bound) = (took.as_nanos(), FIRST_BOUND_NS);
        for bucket in &mut self.buckets {
            if ns <= bound {
                *bucket += 1;
                break;
            }
            bound *= 10;
        }
        self.count += 1;
        self.sum += took;
    }

    fn write(&self, out: &mut String, family: &str, queue: &str) {
        let mut sum = 0;
        for (bucket, label) in self.buckets.iter().zip(LABELS) {
            sum += bucket;
            let _ = writeln!(out, "{family}_bucket{{name=\"{queue}\",le=\"{label}\"}} {sum}");
        }
        let (count, seconds) = (self.count, self.sum.as_secs_f64());
        let _ = writeln!(out, "{family}_bucket{{name=\"{queue}\",le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{family}_sum{{name=\"{queue}\"}} {seconds}\n{family}_count{{name=\"{queue}\"}} {count}");
    }
}

/// A queue's figures.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub adds: u64,
    pub retries: u64,
    pub waited: Durations,
    pub worked: Durations,
    /// Keys that wait, as of now.
    pub depth: usize,
    /// How long those under work have been so, together and the longest.
    pub unfinished: Duration,
    pub longest: Duration,
}

/// Tells a queue's figures; `None` once it is gone.
type Read = Box<dyn Fn() -> Option<Figures> + Send>;

static QUEUES: Mutex<BTreeMap<String, Read>> = Mutex::new(BTreeMap::new());

pub(crate) fn register(name: &str, read: Read) {
    crate::exposition::register("workqueue", text);
    QUEUES.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into(), read);
}

/// All queues' figures.
fn text() -> String {
    let mut queues = QUEUES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut figures = Vec::with_capacity(queues.len());
    queues.retain(|name, read| read().map(|f| figures.push((name.clone(), f))).is_some());
    drop(queues);
    let mut out = String::new();
    let mut numbers = |family: &str, kind: &str, help: &str, of: fn(&Figures) -> f64| {
        let _ = writeln!(out, "# HELP {family} {help}\n# TYPE {family} {kind}");
        for (name, figures) in &figures {
            let _ = writeln!(out, "{family}{{name=\"{name}\"}} {}", of(figures));
        }
    };
    numbers("workqueue_adds_total", "counter", "Keys taken in.", |f| f.adds as f64);
    numbers("workqueue_depth", "gauge", "Keys that wait.", |f| f.depth as f64);
    numbers("workqueue_retries_total", "counter", "Keys taken in again after a failure.", |f| f.retries as f64);
    numbers("workqueue_unfinished_work_seconds", "gauge", "Seconds of work not ended yet, of all workers.", |f| {
        f.unfinished.as_secs_f64()
    });
    numbers(
        "workqueue_longest_running_processor_seconds",
        "gauge",
        "Seconds the longest work has taken so far.",
        |f| f.longest.as_secs_f64(),
    );
    let mut durations = |family: &str, help: &str, of: fn(&Figures) -> &Durations| {
        let _ = writeln!(out, "# HELP {family} {help}\n# TYPE {family} histogram");
        figures.iter().for_each(|(name, figures)| of(figures).write(&mut out, family, name));
    };
    durations("workqueue_queue_duration_seconds", "Seconds a key waits.", |f| &f.waited);
    durations("workqueue_work_duration_seconds", "Seconds a key is worked on.", |f| &f.worked);
    out
}
