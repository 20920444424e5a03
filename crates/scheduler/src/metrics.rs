//! What the scheduler counts, under upstream's names, and a page of it.
//!
//! One set for the process, since there is one scheduler in it; counting is a few relaxed additions, or an entry in a small map
//! for what is rare. It knows nothing of who reads. Upstream's batches, and its waiting at the point `Permit`, have no counterpart here.

mod family;
mod page;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use client::metrics::Histogram;
use family::{Counts, Family};

use crate::profile::Profile;
use crate::sources::Source;
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
static GANG_VICTIMS_BOUNDS: [f64; 11] = doubling(1.0);
static PREEMPTION_BOUNDS: [f64; 16] = doubling(0.001);
static READY_BOUNDS: [f64; 14] = doubling(0.1);

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

/// What became of an object that is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Add,
    Update,
    Delete,
}

/// What is followed, pods twice: those that wait, and those on nodes.
const FOLLOWED: usize = Source::ALL.len() + 1;

/// A call to the API that a pod's placement does not wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Binding,
    StatusPatch,
}

impl Call {
    const ALL: [(Self, &'static str); 2] = [(Self::Binding, "pod_binding"), (Self::StatusPatch, "pod_status_patch")];
}

/// For whom room is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preemptor {
    Pod,
    Group,
}

impl Preemptor {
    fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Group => "podgroup",
        }
    }
}

/// What a preemption costs others: pods, units of them that go together, and budgets broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub victims: usize,
    pub units: usize,
    pub broken_budgets: usize,
}

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
    /// The same of pods of groups, and of groups.
    incoming_members: Mutex<BTreeMap<(usize, &'static str), (u64, u64)>>,
    after_flush: AtomicU64,
    removals: [Histogram<20>; 2],
    plugins: Mutex<BTreeMap<(&'static str, Point, Ended), Box<Histogram<20>>>>,
    handled: [[Histogram<12>; 3]; FOLLOWED],
    hints: Family<20>,
    /// By call, and whether they failed.
    calls: [[Histogram<15>; 2]; Call::ALL.len()],
    calls_pending: [AtomicU64; Call::ALL.len()],
    groups: Family<15>,
    groups_algorithm: Histogram<15>,
    placements: Counts,
    placements_tried: Family<15>,
    gang_preemptions: Counts,
    gang_victims: Histogram<11>,
    disruptions: Family<11>,
    preemption_search: Family<16>,
    preemption_removal: Family<16>,
    budgets_broken: Counts,
    devices_ready: Family<14>,
    claims_made: Counts,
    volume_failures: Counts,
    pending: [AtomicU64; 4],
    /// By queue: pods that are of no group, and groups.
    entities: [[AtomicU64; 2]; 4],
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
    incoming_members: Mutex::new(BTreeMap::new()),
    after_flush: AtomicU64::new(0),
    removals: [const { Histogram::new(&SLI_BOUNDS) }; 2],
    plugins: Mutex::new(BTreeMap::new()),
    handled: [const { [const { Histogram::new(&POINT_BOUNDS) }; 3] }; FOLLOWED],
    hints: Family::new(&PLUGIN_BOUNDS),
    calls: [const { [const { Histogram::new(&ATTEMPT_BOUNDS) }; 2] }; Call::ALL.len()],
    calls_pending: [const { AtomicU64::new(0) }; Call::ALL.len()],
    groups: Family::new(&ATTEMPT_BOUNDS),
    groups_algorithm: Histogram::new(&ATTEMPT_BOUNDS),
    placements: Counts::new(),
    placements_tried: Family::new(&ATTEMPT_BOUNDS),
    gang_preemptions: Counts::new(),
    gang_victims: Histogram::new(&GANG_VICTIMS_BOUNDS),
    disruptions: Family::new(&GANG_VICTIMS_BOUNDS),
    preemption_search: Family::new(&PREEMPTION_BOUNDS),
    preemption_removal: Family::new(&PREEMPTION_BOUNDS),
    budgets_broken: Counts::new(),
    devices_ready: Family::new(&READY_BOUNDS),
    claims_made: Counts::new(),
    volume_failures: Counts::new(),
    pending: [const { AtomicU64::new(0) }; 4],
    entities: [const { [const { AtomicU64::new(0) }; 2] }; 4],
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
    pub fn removed(&self, preemptor: Preemptor, success: bool, took: Duration) {
        self.removals[usize::from(success)].observe(took);
        let result = if success { "success" } else { "error" };
        self.preemption_removal.observe(&format!("preemptor=\"{}\",result=\"{result}\"", preemptor.name()), took);
    }

    /// A pod was bound this long after it first was to be tried, at that attempt, made perhaps only because it had waited for so long.
    pub fn bound(&self, attempts: u32, after: Duration, flushed: bool) {
        self.after_flush.fetch_add(flushed.into(), Ordering::Relaxed);
        let at = (attempts.max(1) as usize).min(MOST_TRIES) - 1;
        self.to_bound[at].observe(after);
        self.tries.observe(Duration::from_secs(attempts.into()));
    }

    /// Room was looked for, and found at that cost, or not.
    pub fn preempted(&self, preemptor: Preemptor, found: Option<Cost>, took: Duration) {
        let labels = format!("preemptor=\"{}\"", preemptor.name());
        let result = if found.is_some() { Ended::Success } else { Ended::Unschedulable }.name();
        self.preemption_search.observe(&format!("{labels},result=\"{result}\""), took);
        match preemptor {
            Preemptor::Pod => drop(self.preemption_attempts.fetch_add(1, Ordering::Relaxed)),
            Preemptor::Group => self.gang_preemptions.add(&format!("result=\"{result}\""), 1),
        }
        let Some(cost) = found else { return };
        let whole = |n: usize| Duration::from_secs(n as u64);
        match preemptor {
            Preemptor::Pod => self.victims.observe(whole(cost.victims)),
            Preemptor::Group => self.gang_victims.observe(whole(cost.victims)),
        }
        self.disruptions.observe(&labels, whole(cost.units));
        self.budgets_broken.add(&labels, cost.broken_budgets as u64);
    }

    /// A change of what is followed was taken in.
    pub fn handled(&self, source: Source, assigned: bool, verb: Verb, took: Duration) {
        let of = if assigned { FOLLOWED - 1 } else { source as usize };
        self.handled[of][verb as usize].observe(took);
    }

    /// A plugin was asked whether something that happened may have changed its mind.
    pub fn hint(&self, plugin: Plugin, event: &'static str, helps: bool, took: Duration) {
        let (plugin, hint) = (plugin.name(), if helps { "Queue" } else { "QueueSkip" });
        self.hints.observe(&format!("event=\"{event}\",hint=\"{hint}\",plugin=\"{plugin}\""), took);
    }

    pub fn call_begins(&self, call: Call) {
        self.calls_pending[call as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn call_ends(&self, call: Call, success: bool, took: Duration) {
        self.calls_pending[call as usize].fetch_sub(1, Ordering::Relaxed);
        self.calls[call as usize][usize::from(success)].observe(took);
    }

    /// One attempt to place a pod group.
    pub fn group(&self, profile: &str, how: Attempt, took: Duration) {
        let (_, result) = Attempt::ALL[how as usize];
        self.groups.observe(&format!("profile=\"{profile}\",result=\"{result}\""), took);
        self.groups_algorithm.observe(took);
    }

    /// So many placements of a pod group were thought of.
    pub fn placements(&self, profile: &str, count: usize) {
        self.placements.add(&format!("profile=\"{profile}\""), count as u64);
    }

    /// One of them was tried.
    pub fn placement(&self, profile: &str, feasible: bool, took: Duration) {
        let result = if feasible { "feasible" } else { "infeasible" };
        self.placements_tried.observe(&format!("profile=\"{profile}\",result=\"{result}\""), took);
    }

    /// A driver's devices were waited for.
    pub fn devices_awaited(&self, profile: &str, driver: &str, status: &str, took: Duration) {
        let driver = client::metrics::escape(driver);
        self.devices_ready.observe(&format!("driver=\"{driver}\",profile=\"{profile}\",status=\"{status}\""), took);
    }

    /// A claim for a pod's extended resources was made, or was not.
    pub fn claim_made(&self, success: bool) {
        self.claims_made.add(if success { "status=\"success\"" } else { "status=\"failure\"" }, 1);
    }

    /// A pod's volumes were not bound.
    pub fn volumes_not_bound(&self) {
        self.volume_failures.add("operation=\"bind\"", 1);
    }

    /// A pod came into a queue: 0 active, 1 backing off, 2 unschedulable, 3 gated. `member`: it is one of a group, and whether the
    /// first of it there.
    pub fn incoming(&self, queue: usize, cause: Cause, member: Option<bool>) {
        let fixed = Cause::FIXED.iter().position(|(known, _)| *known == cause);
        let event = match (fixed, cause) {
            (Some(at), _) => {
                self.incoming[queue][at].fetch_add(1, Ordering::Relaxed);
                Cause::FIXED[at].1
            }
            (None, Cause::Event(event)) => {
                let mut counts = self.incoming_by_event.lock().unwrap_or_else(PoisonError::into_inner);
                *counts.entry((queue, event)).or_default() += 1;
                event
            }
            (None, _) => return,
        };
        if let Some(first) = member {
            let mut counts = self.incoming_members.lock().unwrap_or_else(PoisonError::into_inner);
            let (pods, groups) = counts.entry((queue, event)).or_default();
            (*pods, *groups) = (*pods + 1, *groups + u64::from(first));
        }
    }

    /// How many entities wait by queue: pods of no group, and groups.
    pub fn entities(&self, by_queue: [[usize; 2]; 4]) {
        for (gauges, sizes) in self.entities.iter().zip(by_queue) {
            gauges.iter().zip(sizes).for_each(|(gauge, size)| gauge.store(size as u64, Ordering::Relaxed));
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
        METRICS.bound(40, Duration::from_millis(15), false);
        METRICS.preempted(
            Preemptor::Pod,
            Some(Cost { victims: 2, units: 2, broken_budgets: 1 }),
            Duration::from_millis(2),
        );
        METRICS.preempted(Preemptor::Group, None, Duration::from_millis(2));
        METRICS.incoming(2, Cause::ScheduleAttemptFailure, None);
        METRICS.incoming(0, Cause::Event("NodeAdd"), None);
        METRICS.incoming(0, Cause::Event("PersistentVolumeUpdate"), Some(true));
        METRICS.incoming(0, Cause::Event("PersistentVolumeUpdate"), Some(false));
        METRICS.entities([[3, 1], [0, 0], [0, 0], [0, 0]]);
        METRICS.removed(Preemptor::Pod, true, Duration::from_millis(15));
        METRICS.handled(Source::CsiNodes, false, Verb::Add, Duration::from_micros(150));
        METRICS.handled(Source::Pods, true, Verb::Delete, Duration::from_micros(150));
        METRICS.hint(Plugin::SchedulingGates, "AssignedPodDelete", false, Duration::from_micros(12));
        METRICS.call_begins(Call::Binding);
        METRICS.call_begins(Call::StatusPatch);
        METRICS.call_ends(Call::StatusPatch, false, Duration::from_millis(3));
        METRICS.group("default-scheduler", Attempt::Unschedulable, Duration::from_millis(3));
        METRICS.placements("default-scheduler", 5);
        METRICS.placement("default-scheduler", true, Duration::from_millis(3));
        METRICS.devices_awaited("default-scheduler", "d", "timeout", Duration::from_millis(300));
        METRICS.claim_made(true);
        METRICS.volumes_not_bound();
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
            "scheduler_pod_scheduling_sli_duration_seconds_bucket{attempts=\"16+\",le=\"0.02\"} 1\n",
            "scheduler_queue_incoming_entities_total{event=\"PersistentVolumeUpdate\",queue=\"active\",type=\"podgroup\"} 1\n",
            "scheduler_queue_incoming_entities_total{event=\"NodeAdd\",queue=\"active\",type=\"pod\"} ",
            "scheduler_queued_entities{queue=\"active\",type=\"pod\"} 3\n",
            "scheduler_queued_entities{queue=\"active\",type=\"podgroup\"} 1\n",
            "scheduler_event_handling_duration_seconds_count{event=\"storage.k8s.io/CSINodeAdd\"} ",
            "scheduler_event_handling_duration_seconds_count{event=\"AssignedPodDelete\"} ",
            "scheduler_queueing_hint_execution_duration_seconds_count{event=\"AssignedPodDelete\",hint=\"QueueSkip\",plugin=\"SchedulingGates\"} 1\n",
            "scheduler_inflight_events{event=\"PodPopped\"} ",
            "scheduler_async_api_call_execution_total{call_type=\"pod_status_patch\",result=\"error\"} 1\n",
            "scheduler_async_api_call_execution_duration_seconds_bucket{call_type=\"pod_status_patch\",result=\"error\",le=\"0.004\"} 1\n",
            "scheduler_pending_async_api_calls{call_type=\"pod_binding\"} 1\n",
            "scheduler_podgroup_schedule_attempts_total{profile=\"default-scheduler\",result=\"unschedulable\"} 1\n",
            "scheduler_podgroup_scheduling_attempt_duration_seconds_bucket{profile=\"default-scheduler\",result=\"unschedulable\",le=\"0.004\"} 1\n",
            "scheduler_podgroup_scheduling_algorithm_duration_seconds_count{} 1\n",
            "scheduler_generated_placements_total{profile=\"default-scheduler\"} 5\n",
            "scheduler_placement_evaluations_total{profile=\"default-scheduler\",result=\"feasible\"} 1\n",
            "scheduler_placement_evaluation_duration_seconds_bucket{profile=\"default-scheduler\",result=\"feasible\",le=\"0.004\"} 1\n",
            "scheduler_workload_preemption_attempts_total{result=\"Unschedulable\"} 1\n",
            "scheduler_workload_preemption_victims_count{} 0\n",
            "scheduler_preemption_workload_disruptions_bucket{preemptor=\"pod\",le=\"2\"} 1\n",
            "scheduler_preemption_evaluation_duration_seconds_bucket{preemptor=\"pod\",result=\"Success\",le=\"0.002\"} 1\n",
            "scheduler_preemption_execution_duration_seconds_bucket{preemptor=\"pod\",result=\"success\",le=\"0.016\"} 1\n",
            "scheduler_preemption_pdb_violations_total{preemptor=\"pod\"} 1\n",
            "scheduler_dra_bindingconditions_allocations_total{driver=\"d\",profile=\"default-scheduler\",status=\"timeout\"} 1\n",
            "scheduler_dra_bindingconditions_wait_duration_seconds_bucket{driver=\"d\",profile=\"default-scheduler\",status=\"timeout\",le=\"0.4\"} 1\n",
            "scheduler_resourceclaim_creates_total{status=\"success\"} 1\n",
            "scheduler_volume_scheduling_stage_error_total{operation=\"bind\"} 1\n",
        ] {
            assert!(page.contains(expect), "{expect}\n{page}");
        }
    }
}
