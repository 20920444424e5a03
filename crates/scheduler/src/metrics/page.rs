//! The page of what is counted, in Prometheus' text format.

use std::fmt::Write;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use client::metrics::head;

use super::{Attempt, Call, Cause, MOST_TRIES, Metrics, QUEUES, Verb};
use crate::sources::Source;
use crate::timing::{Ended, Point};
use crate::verdict::Plugin;

impl Metrics {
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
        head(&mut out, name, "histogram", "[BETA] How long the choice of a node takes.");
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
        head(&mut out, name, "histogram", "[BETA] From when a pod first was to be tried to its binding, by attempts.");
        for (at, histogram) in self.to_bound.iter().enumerate().filter(|(at, h)| *at == 0 || h.count() > 0) {
            let more = if at + 1 == MOST_TRIES { "+" } else { "" };
            histogram.write(&mut out, name, &format!("attempts=\"{}{more}\"", at + 1));
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
        let incoming: Vec<_> = fixed.filter(|(_, count)| *count > 0).chain(events).collect();
        for ((queue, event), count) in &incoming {
            let _ = writeln!(out, "{name}{{event=\"{event}\",queue=\"{}\"}} {count}", QUEUES[*queue]);
        }
        let name = "scheduler_queue_incoming_entities_total";
        head(&mut out, name, "counter", "[ALPHA] Pods of no group, and groups, that came into a queue.");
        let members = self.incoming_members.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for ((queue, event), count) in &incoming {
            let (pods, groups) = members.get(&(*queue, *event)).copied().unwrap_or_default();
            for (kind, count) in [("pod", count.saturating_sub(pods)), ("podgroup", groups)] {
                if count > 0 {
                    let queue = QUEUES[*queue];
                    let _ = writeln!(out, "{name}{{event=\"{event}\",queue=\"{queue}\",type=\"{kind}\"}} {count}");
                }
            }
        }
        let name = "scheduler_pending_pods";
        head(&mut out, name, "gauge", "[STABLE] Pods that wait, by queue.");
        for (queue, size) in QUEUES.iter().zip(&self.pending) {
            let _ = writeln!(out, "{name}{{queue=\"{queue}\"}} {}", load(size));
        }
        let name = "scheduler_queued_entities";
        head(&mut out, name, "gauge", "[ALPHA] Pods of no group, and groups, that wait, by queue.");
        for (queue, sizes) in QUEUES.iter().zip(&self.entities) {
            for (kind, size) in ["pod", "podgroup"].iter().zip(sizes) {
                let _ = writeln!(out, "{name}{{queue=\"{queue}\",type=\"{kind}\"}} {}", load(size));
            }
        }
        let name = "scheduler_inflight_events";
        head(&mut out, name, "gauge", "[ALPHA] Pods that are out of the queue and not seen bound yet.");
        let _ = writeln!(out, "{name}{{event=\"PodPopped\"}} {}", load(&self.assumed));
        let name = "scheduler_unschedulable_pods";
        head(&mut out, name, "gauge", "[BETA] Pods that a plugin keeps waiting; one may be kept by several.");
        for (plugin, profile, count) in self.unschedulable.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "{name}{{plugin=\"{plugin}\",profile=\"{profile}\"}} {count}");
        }
        let name = "scheduler_cache_size";
        head(&mut out, name, "gauge", "[ALPHA] Nodes, pods and assumed pods known.");
        for (kind, size) in [("assumed_pods", &self.assumed), ("nodes", &self.nodes), ("pods", &self.pods)] {
            let _ = writeln!(out, "{name}{{type=\"{kind}\"}} {}", load(size));
        }
        let name = "scheduler_goroutines";
        head(&mut out, name, "gauge", "[BETA] Calls under way, by what for.");
        let _ = writeln!(out, "{name}{{operation=\"binding\"}} {}", load(&self.binding));
        self.write_events(&mut out);
        self.write_calls(&mut out);
        self.write_groups(&mut out);
        self.write_resources(&mut out);
        out
    }

    /// What taking in changes takes, and asking plugins about them.
    fn write_events(&self, out: &mut String) {
        let name = "scheduler_event_handling_duration_seconds";
        head(out, name, "histogram", "[ALPHA] How long it takes to take in a change.");
        let resources = Source::ALL.iter().map(|s| s.resource()).chain(["AssignedPod"]);
        for (resource, by_verb) in resources.zip(&self.handled) {
            for (verb, took) in [Verb::Add, Verb::Update, Verb::Delete].iter().zip(by_verb) {
                if took.count() > 0 {
                    took.write(out, name, &format!("event=\"{resource}{verb:?}\""));
                }
            }
        }
        let about = "[ALPHA] How long a plugin takes to tell whether a change may help, of some changes.";
        self.hints.write(out, "scheduler_queueing_hint_execution_duration_seconds", about);
    }

    fn write_calls(&self, out: &mut String) {
        let each = || {
            let results = |at: usize| self.calls[at].iter().zip(["error", "success"]);
            Call::ALL
                .iter()
                .flat_map(move |(call, kind)| results(*call as usize).map(move |(took, result)| (*kind, took, result)))
        };
        let name = "scheduler_async_api_call_execution_total";
        head(out, name, "counter", "[ALPHA] Calls that no pod's placement waits for.");
        for (kind, took, result) in each() {
            let _ = writeln!(out, "{name}{{call_type=\"{kind}\",result=\"{result}\"}} {}", took.count());
        }
        let name = "scheduler_async_api_call_execution_duration_seconds";
        head(out, name, "histogram", "[ALPHA] How long they take.");
        for (kind, took, result) in each() {
            took.write(out, name, &format!("call_type=\"{kind}\",result=\"{result}\""));
        }
        let name = "scheduler_pending_async_api_calls";
        head(out, name, "gauge", "[ALPHA] Such calls that are under way.");
        for ((_, kind), pending) in Call::ALL.iter().zip(&self.calls_pending) {
            let _ = writeln!(out, "{name}{{call_type=\"{kind}\"}} {}", pending.load(Ordering::Relaxed));
        }
    }

    /// Groups, their placements, and what preemption costs.
    fn write_groups(&self, out: &mut String) {
        let about = "[ALPHA] Attempts to place pod groups, by result.";
        self.groups.write_counts(out, "scheduler_podgroup_schedule_attempts_total", about);
        let about = "[ALPHA] How long an attempt to place a pod group takes.";
        self.groups.write(out, "scheduler_podgroup_scheduling_attempt_duration_seconds", about);
        let name = "scheduler_podgroup_scheduling_algorithm_duration_seconds";
        head(out, name, "histogram", "[ALPHA] How long the choice of nodes for a pod group takes.");
        self.groups_algorithm.write(out, name, "");
        let about = "[ALPHA] Placements of pod groups that were thought of.";
        self.placements.write(out, "scheduler_generated_placements_total", about);
        let about = "[ALPHA] Placements of pod groups that were tried.";
        self.placements_tried.write_counts(out, "scheduler_placement_evaluations_total", about);
        let about = "[ALPHA] How long it takes to try one.";
        self.placements_tried.write(out, "scheduler_placement_evaluation_duration_seconds", about);
        let about = "[ALPHA] Attempts to make room for pod groups.";
        self.gang_preemptions.write(out, "scheduler_workload_preemption_attempts_total", about);
        let name = "scheduler_workload_preemption_victims";
        head(out, name, "histogram", "[ALPHA] Pods removed to make room for a pod group.");
        self.gang_victims.write(out, name, "");
        let about = "[ALPHA] Units removed to make room: groups that go as a whole, and pods.";
        self.disruptions.write(out, "scheduler_preemption_workload_disruptions", about);
        let about = "[ALPHA] How long the search for room to be made takes.";
        self.preemption_search.write(out, "scheduler_preemption_evaluation_duration_seconds", about);
        let about = "[ALPHA] How long it takes to remove a pod that is in the way.";
        self.preemption_removal.write(out, "scheduler_preemption_execution_duration_seconds", about);
        let about = "[ALPHA] Disruption budgets broken to make room.";
        self.budgets_broken.write(out, "scheduler_preemption_pdb_violations_total", about);
    }

    /// Devices and volumes.
    fn write_resources(&self, out: &mut String) {
        let about = "[ALPHA] Allocations of devices that had to be made ready.";
        self.devices_ready.write_counts(out, "scheduler_dra_bindingconditions_allocations_total", about);
        let about = "[ALPHA] How long devices were waited for.";
        self.devices_ready.write(out, "scheduler_dra_bindingconditions_wait_duration_seconds", about);
        let about = "[ALPHA] Claims made for extended resources.";
        self.claims_made.write(out, "scheduler_resourceclaim_creates_total", about);
        let about = "[ALPHA] Pods whose volumes could not be bound.";
        self.volume_failures.write(out, "scheduler_volume_scheduling_stage_error_total", about);
    }
}
