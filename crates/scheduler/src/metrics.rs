//! What the scheduler counts, under upstream's names, and a page of it.
//!
//! One set for the process, since there is one scheduler in it; counting is a few relaxed additions. It knows nothing of who
//! reads.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use client::metrics::{Histogram, head};

use crate::profile::Profile;
use crate::timing::{Ended, Point, Run, Timing};
use crate::verdict::Plugin;

const fn growing<const N: usize>(first: f64, by: f64) -> [f64; N] {
    let (mut out, mut at) = ([first; N], 1);
    while at < N {
        out[at] = out[at - 1] * by;
        at += 1;
    }
    out
}

const fn doubling<const N: usize>(first: f64) -> [f64; N] {
    growing(first, 2.0)
}

// Upper bounds as upstream has them: seconds, or pieces.
static ATTEMPT_BOUNDS: [f64; 15] = doubling(0.001);
static POINT_BOUNDS: [f64; 12] = doubling(0.0001);
static SLI_BOUNDS: [f64; 20] = doubling(0.01);
static PLUGIN_BOUNDS: [f64; 20] = growing(0.00001, 1.5);
static TRIES_BOUNDS: [f64; 5] = doubling(1.0);
static VICTIMS_BOUNDS: [f64; 7] = doubling(1.0);

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    Scheduled,
    Unschedulable,
    Error,
}

impl Attempt {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Scheduled, "scheduled"), (Self::Unschedulable, "unschedulable"), (Self::Error, "error")];
}

/// What put a pod into a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    PodAdd,
    PodUpdate,
    ScheduleAttemptFailure,
    BackoffComplete,
    UnschedulableTimeout,
    /// What held it is no more: its gates, or companions that were missing.
    Opened,
    /// Something in the cluster, by upstream's word for it.
    Event(&'static str),
}

impl Cause {
    const FIXED: [(Self, &'static str); 6] = [
        (Self::PodAdd, "PodAdd"),
        (Self::PodUpdate, "PodUpdate"),
        (Self::ScheduleAttemptFailure, "ScheduleAttemptFailure"),
        (Self::BackoffComplete, "BackoffComplete"),
        (Self::UnschedulableTimeout, "UnschedulableTimeout"),
        (Self::Opened, "SchedulingGateEliminated"),
    ];
}

const QUEUES: [&str; 4] = ["active", "backoff", "unschedulable", "gated"];

/// Of one profile.
struct OfProfile {
    name: Box<str>,
    attempts: [Histogram<15>; 3],
    /// By point and end.
    points: [[Histogram<12>; Ended::ALL.len()]; Point::ALL.len()],
    /// Plugins that had something to filter by: for the pod at all, and for each node.
    filtered: [[AtomicU64; Plugin::ALL.len()]; 2],
    scored: Mutex<BTreeMap<&'static str, u64>>,
}

/// See the module.
pub struct Metrics {
    profiles: OnceLock<Vec<OfProfile>>,
    algorithm: Histogram<15>,
    /// By attempts, the last for so many and more.
    to_bound: [Histogram<20>; MOST_TRIES],
    tries: Histogram<5>,
    preemption_attempts: AtomicU64,
    victims: Histogram<7>,
    /// By queue and cause.
    incoming: [[AtomicU64; Cause::FIXED.len()]; 4],
    incoming_by_event: Mutex<BTreeMap<(usize, &'static str), u64>>,
    after_flush: AtomicU64,
    removals: [Histogram<20>; 2],
    plugins: Mutex<BTreeMap<(&'static str, Point, Ended), Box<Histogram<20>>>>,
    pending: [AtomicU64; 4],
    /// By plugin and profile.
    unschedulable: Mutex<Vec<(&'static str, Box<str>, usize)>>,
    assumed: AtomicU64,
    nodes: AtomicU64,
    pods: AtomicU64,
    binding: AtomicU64,
}

/// Attempts told apart where times to binding are counted.
const MOST_TRIES: usize = 16;

/// The process's own.
pub static METRICS: Metrics = Metrics {
    profiles: OnceLock::new(),
    algorithm: Histogram::new(&ATTEMPT_BOUNDS),
    to_bound: [const { Histogram::new(&SLI_BOUNDS) }; MOST_TRIES],
    tries: Histogram::new(&TRIES_BOUNDS),
    preemption_attempts: AtomicU64::new(0),
    victims: Histogram::new(&VICTIMS_BOUNDS),
    incoming: [const { [const { AtomicU64::new(0) }; Cause::FIXED.len()] }; 4],
    incoming_by_event: Mutex::new(BTreeMap::new()),
    after_flush: AtomicU64::new(0),
    removals: [const { Histogram::new(&SLI_BOUNDS) }; 2],
    plugins: Mutex::new(BTreeMap::new()),
    pending: [const { AtomicU64::new(0) }; 4],
    unschedulable: Mutex::new(Vec::new()),
    assumed: AtomicU64::new(0),
    nodes: AtomicU64::new(0),
    pods: AtomicU64::new(0),
    binding: AtomicU64::new(0),
};

impl Metrics {
    /// Names the profiles, once.
    pub fn name(&self, profiles: impl Iterator<Item = Box<str>>) {
        let of = |name| OfProfile {
            name,
            attempts: [const { Histogram::new(&ATTEMPT_BOUNDS) }; 3],
            points: [const { [const { Histogram::new(&POINT_BOUNDS) }; Ended::ALL.len()] }; Point::ALL.len()],
            filtered: [const { [const { AtomicU64::new(0) }; Plugin::ALL.len()] }; 2],
            scored: Mutex::new(BTreeMap::new()),
        };
        self.profiles.get_or_init(|| profiles.map(of).collect());
    }

    fn of(&self, profile: &str) -> Option<&OfProfile> {
        self.profiles.get()?.iter().find(|p| *p.name == *profile)
    }

    /// One attempt to place a pod.
    pub fn attempt(&self, profile: &str, how: Attempt, took: Duration) {
        if let Some(of) = self.of(profile) {
            of.attempts[how as usize].observe(took);
        }
        self.algorithm.observe(took);
    }

    /// What an extension point took.
    pub fn point(&self, profile: &str, point: Point, ended: Ended, took: Duration) {
        if let Some(of) = self.of(profile) {
            of.points[point as usize][ended as usize].observe(took);
        }
    }

    /// What was noted of an attempt: its points, the plugins that were asked, and what those looked at closely took.
    pub fn timing(&self, profile: &Profile, timing: &Timing) {
        let Some(of) = self.of(&profile.scheduler_name) else { return };
        timing
            .points()
            .iter()
            .for_each(|(point, ended, took)| of.points[*point as usize][*ended as usize].observe(*took));
        for (asked, counts) in [(profile.filters, &of.filtered[0]), (timing.filtered, &of.filtered[1])] {
            for plugin in asked.iter() {
                counts[plugin as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
        if !timing.scored.is_empty() {
            let mut scored = of.scored.lock().unwrap_or_else(PoisonError::into_inner);
            timing.scored.iter().for_each(|plugin| *scored.entry(plugin).or_default() += 1);
        }
        timing.plugins().iter().for_each(|run| self.plugin(*run));
    }

    /// What one run of a plugin took.
    pub fn plugin(&self, (plugin, point, ended, took): Run) {
        let mut plugins = self.plugins.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Box::new(Histogram::new(&PLUGIN_BOUNDS));
        plugins.entry((plugin, point, ended)).or_insert_with(fresh).observe(took);
    }

    /// The same of a plugin that is alone at its point.
    pub fn plugin_and_point(&self, profile: &str, run: Run) {
        self.point(profile, run.1, run.2, run.3);
        self.plugin(run);
    }

    /// A pod was removed to make room, or was not.
    pub fn removed(&self, success: bool, took: Duration) {
        self.removals[usize::from(success)].observe(took);
    }

    /// A pod was bound this long after it was first seen, at that attempt, made perhaps only because it had waited for so long.
    pub fn bound(&self, attempts: u32, after: Duration, flushed: bool) {
        self.after_flush.fetch_add(flushed.into(), Ordering::Relaxed);
        let at = (attempts.max(1) as usize).min(MOST_TRIES) - 1;
        self.to_bound[at].observe(after);
        self.tries.observe(Duration::from_secs(attempts.into()));
    }

    pub fn preempted(&self, victims: usize) {
        self.preemption_attempts.fetch_add(1, Ordering::Relaxed);
        self.victims.observe(Duration::from_secs(victims as u64));
    }

    /// A pod came into a queue: 0 active, 1 backing off, 2 unschedulable, 3 gated.
    pub fn incoming(&self, queue: usize, cause: Cause) {
        let fixed = Cause::FIXED.iter().position(|(known, _)| *known == cause);
        match (fixed, cause) {
            (Some(at), _) => {
                self.incoming[queue][at].fetch_add(1, Ordering::Relaxed);
            }
            (None, Cause::Event(event)) => {
                let mut counts = self.incoming_by_event.lock().unwrap_or_else(PoisonError::into_inner);
                *counts.entry((queue, event)).or_default() += 1;
            }
            (None, _) => {}
        }
    }

    /// How many pods each plugin keeps waiting.
    pub fn unschedulable(&self, counts: Vec<(&'static str, Box<str>, usize)>) {
        *self.unschedulable.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// How much there is of everything: pods waiting by queue, assumed pods, nodes, placed pods, calls under way.
    pub fn sizes(&self, pending: [usize; 4], assumed: usize, nodes: usize, pods: usize, binding: usize) {
        for (gauge, size) in self.pending.iter().zip(pending) {
            gauge.store(size as u64, Ordering::Relaxed);
        }
        for (gauge, size) in
            [(&self.assumed, assumed), (&self.nodes, nodes), (&self.pods, pods), (&self.binding, binding)]
        {
            gauge.store(size as u64, Ordering::Relaxed);
        }
    }

    /// The page, in Prometheus' text format.
    pub fn page(&self) -> String {
        let mut out = String::new();
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let profiles = || self.profiles.get().into_iter().flatten();
        let name = "scheduler_schedule_attempts_total";
        head(&mut out, name, "counter", "[STABLE] Attempts to schedule pods, by result.");
        for of in profiles() {
            for (how, result) in Attempt::ALL {
                let count = of.attempts[how as usize].count();
                let _ = writeln!(out, "{name}{{profile=\"{}\",result=\"{result}\"}} {count}", of.name);
            }
        }
        let name = "scheduler_scheduling_attempt_duration_seconds";
        head(&mut out, name, "histogram", "[STABLE] How long an attempt takes, without the binding.");
        for of in profiles() {
            for (how, result) in Attempt::ALL {
                let labels = format!("profile=\"{}\",result=\"{result}\"", of.name);
                of.attempts[how as usize].write(&mut out, name, &labels);
            }
        }
        let name = "scheduler_scheduling_algorithm_duration_seconds";
        head(&mut out, name, "histogram", "[ALPHA] How long the choice of a node takes.");
        self.algorithm.write(&mut out, name, "");
        let name = "scheduler_framework_extension_point_duration_seconds";
        head(&mut out, name, "histogram", "[STABLE] How long the plugins of an extension point take.");
        for of in profiles() {
            for (point, ended) in Point::ALL.iter().flat_map(|p| Ended::ALL.iter().map(move |e| (*p, *e))) {
                let histogram = &of.points[point as usize][ended as usize];
                if histogram.count() > 0 {
                    let (point, status) = (point.name(), ended.name());
                    let labels = format!("extension_point=\"{point}\",profile=\"{}\",status=\"{status}\"", of.name);
                    histogram.write(&mut out, name, &labels);
                }
            }
        }
        let name = "scheduler_plugin_execution_duration_seconds";
        head(&mut out, name, "histogram", "[BETA] How long a plugin takes, of some attempts and nodes.");
        for ((plugin, point, ended), took) in self.plugins.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let (point, status) = (point.name(), ended.name());
            took.write(&mut out, name, &format!("extension_point=\"{point}\",plugin=\"{plugin}\",status=\"{status}\""));
        }
        let name = "scheduler_plugin_evaluation_total";
        head(&mut out, name, "counter", "[BETA] Attempts in which a plugin had a say.");
        for of in profiles() {
            let mut line = |plugin: &str, point: &str, count: u64| {
                if count > 0 {
                    let profile = &of.name;
                    let _ = writeln!(
                        out,
                        "{name}{{extension_point=\"{point}\",plugin=\"{plugin}\",profile=\"{profile}\"}} {count}"
                    );
                }
            };
            for (counts, point) in of.filtered.iter().zip(["PreFilter", "Filter"]) {
                let asked = Plugin::ALL.iter().zip(counts).filter(|(p, _)| point == "Filter" || p.prepares());
                asked.for_each(|(plugin, count)| line(plugin.name(), point, load(count)));
            }
            let scored = of.scored.lock().unwrap_or_else(PoisonError::into_inner);
            scored.iter().for_each(|(plugin, count)| line(plugin, "Score", *count));
        }
        let name = "scheduler_pod_scheduling_sli_duration_seconds";
        head(&mut out, name, "histogram", "[BETA] From the first sight of a pod to its binding, by attempts.");
        for (at, histogram) in self.to_bound.iter().enumerate().filter(|(at, h)| *at == 0 || h.count() > 0) {
            histogram.write(&mut out, name, &format!("attempts=\"{}\"", at + 1));
        }
        let name = "scheduler_pod_scheduling_attempts";
        head(&mut out, name, "histogram", "[STABLE] Attempts until a pod was placed.");
        self.tries.write(&mut out, name, "");
        let name = "scheduler_pod_scheduled_after_flush_total";
        head(
            &mut out,
            name,
            "counter",
            "[ALPHA] Pods placed when they were tried again only for the time they had waited.",
        );
        let _ = writeln!(out, "{name} {}", load(&self.after_flush));
        let name = "scheduler_preemption_attempts_total";
        head(&mut out, name, "counter", "[STABLE] Attempts to make room.");
        let _ = writeln!(out, "{name} {}", load(&self.preemption_attempts));
        let name = "scheduler_preemption_victims";
        head(&mut out, name, "histogram", "[STABLE] Pods removed to make room.");
        self.victims.write(&mut out, name, "");
        let name = "scheduler_preemption_goroutines_duration_seconds";
        head(&mut out, name, "histogram", "[ALPHA] How long the removal of a pod takes that is in the way.");
        let removals = || self.removals.iter().zip(["error", "success"]);
        removals().for_each(|(took, result)| took.write(&mut out, name, &format!("result=\"{result}\"")));
        let name = "scheduler_preemption_goroutines_execution_total";
        head(&mut out, name, "counter", "[ALPHA] Removals of pods that are in the way.");
        for (took, result) in removals() {
            let _ = writeln!(out, "{name}{{result=\"{result}\"}} {}", took.count());
        }
        let name = "scheduler_queue_incoming_pods_total";
        head(&mut out, name, "counter", "[STABLE] Pods that came into a queue, by what put them there.");
        let events = self.incoming_by_event.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let fixed = self.incoming.iter().enumerate().flat_map(|(queue, counts)| {
            Cause::FIXED.iter().zip(counts).map(move |((_, event), count)| ((queue, *event), load(count)))
        });
        for ((queue, event), count) in fixed.filter(|(_, count)| *count > 0).chain(events) {
            let _ = writeln!(out, "{name}{{event=\"{event}\",queue=\"{}\"}} {count}", QUEUES[queue]);
        }
        let name = "scheduler_pending_pods";
        head(&mut out, name, "gauge", "[STABLE] Pods that wait, by queue.");
        for (queue, size) in QUEUES.iter().zip(&self.pending) {
            let _ = writeln!(out, "{name}{{queue=\"{queue}\"}} {}", load(size));
        }
        let name = "scheduler_unschedulable_pods";
        head(&mut out, name, "gauge", "[ALPHA] Pods that a plugin keeps waiting; one may be kept by several.");
        for (plugin, profile, count) in self.unschedulable.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "{name}{{plugin=\"{plugin}\",profile=\"{profile}\"}} {count}");
        }
        let name = "scheduler_cache_size";
        head(&mut out, name, "gauge", "[ALPHA] Nodes, pods and assumed pods known.");
        for (kind, size) in [("assumed_pods", &self.assumed), ("nodes", &self.nodes), ("pods", &self.pods)] {
            let _ = writeln!(out, "{name}{{type=\"{kind}\"}} {}", load(size));
        }
        let name = "scheduler_goroutines";
        head(&mut out, name, "gauge", "[ALPHA] Calls under way, by what for.");
        let _ = writeln!(out, "{name}{{operation=\"binding\"}} {}", load(&self.binding));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Plugins;

    #[test]
    fn a_page_has_upstreams_names() {
        METRICS.name(["default-scheduler".into()].into_iter());
        METRICS.attempt("default-scheduler", Attempt::Scheduled, Duration::from_millis(1));
        METRICS.bound(3, Duration::from_millis(15), true);
        METRICS.preempted(2);
        METRICS.incoming(2, Cause::ScheduleAttemptFailure);
        METRICS.incoming(0, Cause::Event("NodeAdd"));
        METRICS.removed(true, Duration::from_millis(15));
        let run = ("DefaultBinder", Point::Bind, Ended::Success, Duration::from_micros(150));
        METRICS.plugin_and_point("default-scheduler", run);
        let mut timing = Timing::watching();
        timing.begin();
        timing.lap(Point::PreFilter, Ended::Unresolvable);
        (timing.filtered, timing.scored) = (Plugins::of(&[Plugin::NodePorts]), vec!["ImageLocality"]);
        METRICS.timing(&Profile::default(), &timing);
        METRICS.unschedulable(vec![("NodePorts", "default-scheduler".into(), 4)]);
        let page = METRICS.page();
        for expect in [
            "scheduler_schedule_attempts_total{profile=\"default-scheduler\",result=\"scheduled\"} ",
            "scheduler_scheduling_attempt_duration_seconds_bucket{profile=\"default-scheduler\",result=\"scheduled\",le=\"0.001\"} ",
            "scheduler_scheduling_algorithm_duration_seconds_count",
            "scheduler_framework_extension_point_duration_seconds_bucket{extension_point=\"Bind\",profile=\"default-scheduler\",status=\"Success\",le=\"0.0002\"} 1\n",
            "scheduler_framework_extension_point_duration_seconds_count{extension_point=\"PreFilter\",profile=\"default-scheduler\",status=\"UnschedulableAndUnresolvable\"} 1\n",
            "scheduler_plugin_execution_duration_seconds_count{extension_point=\"Bind\",plugin=\"DefaultBinder\",status=\"Success\"} 1\n",
            "scheduler_plugin_evaluation_total{extension_point=\"Filter\",plugin=\"NodePorts\",profile=\"default-scheduler\"} 1\n",
            "scheduler_plugin_evaluation_total{extension_point=\"PreFilter\",plugin=\"NodeAffinity\",profile=\"default-scheduler\"} 1\n",
            "scheduler_plugin_evaluation_total{extension_point=\"Score\",plugin=\"ImageLocality\",profile=\"default-scheduler\"} 1\n",
            "scheduler_pod_scheduled_after_flush_total ",
            "scheduler_preemption_goroutines_execution_total{result=\"success\"} ",
            "scheduler_queue_incoming_pods_total{event=\"NodeAdd\",queue=\"active\"} ",
            "scheduler_pod_scheduling_sli_duration_seconds_bucket{attempts=\"3\",le=\"0.02\"} 1\n",
            "scheduler_pod_scheduling_attempts_bucket{le=\"4\"} ",
            "scheduler_preemption_attempts_total ",
            "scheduler_preemption_victims_bucket{le=\"2\"} ",
            "scheduler_queue_incoming_pods_total{event=\"ScheduleAttemptFailure\",queue=\"unschedulable\"} ",
            "scheduler_pending_pods{queue=\"gated\"} ",
            "scheduler_unschedulable_pods{plugin=\"NodePorts\",profile=\"default-scheduler\"} 4\n",
            "scheduler_cache_size{type=\"assumed_pods\"} ",
            "scheduler_goroutines{operation=\"binding\"} ",
        ] {
            assert!(page.contains(expect), "{expect}\n{page}");
        }
    }
}
