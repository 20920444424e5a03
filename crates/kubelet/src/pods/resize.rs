//! Other resources for a pod that runs: whether the node grants them, and giving them to the containers.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use serde::Serialize;

use super::allocation::Allocation;
use super::observed::{Observed, State};
use super::plan::{Waiting, resized, whole_changed};
use super::status::is_terminal;
use super::worker::{RETRY, Worker};
use crate::agent::Context;
use crate::cgroups;
use crate::cri::v1;
use crate::metrics::families;
use crate::spec;
use crate::spec::resources::Qos;

/// Why a pod's wish waits that could be granted another time.
const DEFERRED: &str = "Deferred";
/// Why it cannot be granted at all.
const INFEASIBLE: &str = "Infeasible";

/// A pod's wish as its events tell of it; fields in upstream's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Wish<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<Asked<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<Asked<'a>>,
    generation: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

#[derive(Serialize)]
struct Asked<'a> {
    name: &'a str,
    resources: ResourceRequirements,
}

impl<'a> Asked<'a> {
    fn of(container: &'a Container) -> Self {
        Self { name: &container.name, resources: container.resources.clone().unwrap_or_default() }
    }
}

/// What an event says of a wish.
fn told(what: &str, pod: &Pod, generation: i64, error: &str) -> String {
    let spec = spec::spec(pod);
    let wish = Wish {
        init_containers: spec.init_containers.iter().flatten().map(Asked::of).collect(),
        containers: spec.containers.iter().map(Asked::of).collect(),
        generation,
        error,
    };
    serde_json::to_string(&wish).map_or_else(|_| what.to_string(), |wish| format!("{what}: {wish}"))
}

fn generation(pod: &Pod) -> i64 {
    pod.metadata.generation.unwrap_or(0)
}

/// Whether the pod wishes for more than it has.
fn grows(granted: &Pod, wished: &Pod) -> bool {
    let had = spec::resources::pod_total(granted, false);
    spec::resources::pod_total(wished, false)
        .into_iter()
        .any(|(name, amount)| amount > had.get(&name).copied().unwrap_or(0))
}

/// Grants a pod what it asks for.
fn grant(context: &Context, pod: &Pod, wished: Allocation) {
    context.allocations.grant(&context.config, spec::uid(pod), wished);
    context.allocations.defer(spec::uid(pod), false);
    let message = told("Pod resize started", pod, generation(pod), "");
    context.events.normal(&context.events.about_pod(pod), "ResizeStarted", &message);
}

/// What is never given anew to a guaranteed pod that wishes for another amount of it, and what metrics call that.
fn pinned(context: &Context, pod: &Pod) -> Option<(&'static str, &'static str)> {
    if spec::resources::qos(pod) != Qos::Guaranteed {
        return None;
    }
    let granted = context.allocations.get(pod);
    let wished = Allocation::of(pod);
    let policies = [
        (context.config.exclusive_processors, "cpu", "CPU", "guaranteed_pod_cpu_manager_static_policy"),
        (context.config.alignment.memory.is_some(), "memory", "Memory", "guaranteed_pod_memory_manager_static_policy"),
    ];
    policies
        .into_iter()
        .find(|(is_static, name, ..)| *is_static && !granted.requests_as_much(&wished, name))
        .map(|(.., policy, detail)| (policy, detail))
}

/// Why what the pod asks for cannot be granted now, and what metrics call that.
fn no_room(context: &Context, pod: &Pod) -> Option<(Waiting, &'static str)> {
    if let Some((policy, detail)) = pinned(context, pod) {
        let policy_name = if policy == "CPU" { "static" } else { "Static" };
        let message =
            format!("Resize is infeasible for Guaranteed Pods alongside {policy} Manager policy \"{policy_name}\"");
        return Some((Waiting { reason: INFEASIBLE.into(), message }, detail));
    }
    let room = context.machine.allocatable_amounts(&context.config);
    let others: Vec<Arc<Pod>> = context
        .workers
        .pods()
        .into_iter()
        .filter(|p| spec::uid(p) != spec::uid(pod) && !is_terminal(p.status.as_ref().and_then(|s| s.phase.as_deref())))
        .map(|p| context.allocations.apply(&p))
        .collect();
    let waiting = spec::resources::pod_total(pod, false).into_iter().find_map(|(name, requested)| {
        let capacity = room.get(&name).copied()?;
        let used: i64 = others.iter().filter_map(|p| spec::resources::pod_total(p, false).get(&name).copied()).sum();
        let waiting = |reason: &str, message: String| Some(Waiting { reason: reason.into(), message });
        if requested > capacity {
            return waiting(
                INFEASIBLE,
                format!("Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}"),
            );
        }
        if requested + used <= capacity {
            return None;
        }
        waiting(
            DEFERRED,
            format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        )
    });
    waiting.map(|waiting| (waiting, "insufficient_node_allocatable"))
}

impl Worker {
    /// Takes note of what containers have, and grants what the pod asks for where the node has room: the pod as granted.
    pub(super) fn judge_resize(&mut self, pod: &Arc<Pod>, seen: &Observed) -> Arc<Pod> {
        let granted_pod;
        self.memory.applied.retain(|id, _| seen.containers.iter().any(|c| c.id == *id && c.state == State::Running));
        for running in seen.containers.iter().filter(|c| c.state == State::Running) {
            let Some((_, container)) = spec::find_container(pod, &running.name) else { continue };
            if self.memory.applied.contains_key(&running.id) {
                continue;
            }
            // Adopted: what was reported is what it was given; a new one was given its specification.
            let lists = [&self.before.container_statuses, &self.before.init_container_statuses];
            let reported = lists.into_iter().flatten().flatten().find(|s| {
                s.container_id.as_deref().and_then(|i| i.split_once("://")).is_some_and(|(_, id)| id == running.id)
            });
            let had = reported.and_then(|s| s.resources.clone()).or_else(|| container.resources.clone());
            self.memory.applied.insert(running.id.clone(), had.unwrap_or_default());
        }
        if self.memory.applied_whole.is_none() && seen.ready_sandbox().is_some() {
            let granted = self.context.allocations.apply(pod);
            let had = self.before.resources.clone().or_else(|| spec::resources::pod_level(&granted).cloned());
            self.memory.applied_whole = had;
        }
        let wished = Allocation::of(pod);
        let events = &self.context.events;
        let judging = self.context.allocations.judging();
        if self.context.allocations.get(pod).equals(&wished) {
            self.context.allocations.defer(&self.uid, false);
            (self.memory.resize_pending, granted_pod) = (None, pod.clone());
        } else {
            let before = self.memory.resize_pending.take();
            match no_room(&self.context, pod) {
                None => {
                    grant(&self.context, pod, wished);
                    (self.memory.resize_since, self.memory.resize_error) = (Some(generation(pod)), None);
                }
                Some((pending, detail)) => {
                    let news = before.as_ref().map(|b| &b.reason) != Some(&pending.reason)
                        || self.memory.resize_judged != generation(pod);
                    let infeasible = pending.reason == INFEASIBLE;
                    if news && infeasible {
                        self.context.metrics.count(&families::RESIZES_INFEASIBLE, &[detail]);
                    }
                    if news {
                        let what = format!("Pod resize {}", pending.reason);
                        let message = told(&what, pod, generation(pod), &pending.message);
                        let reason = if infeasible { "ResizeInfeasible" } else { "ResizeDeferred" };
                        events.warning(&events.about_pod(pod), reason, &message);
                    }
                    self.context.allocations.defer(&self.uid, !infeasible);
                    self.memory.resize_pending = Some(pending);
                }
            }
            self.memory.resize_judged = generation(pod);
            granted_pod = self.context.allocations.apply(pod);
        }
        drop(judging);
        self.memory.resizing = seen.containers.iter().filter(|c| c.state == State::Running).any(|c| {
            let applied = self.memory.applied.get(&c.id);
            spec::find_container(&granted_pod, &c.name)
                .is_some_and(|(_, s)| applied.is_some_and(|a| resized(&s, a).is_some()))
        }) || whole_changed(&granted_pod, &self.memory);
        if self.memory.resizing {
            let reported = self.before.conditions.iter().flatten().find(|c| c.type_ == "PodResizeInProgress");
            let since = reported.and_then(|c| c.observed_generation).unwrap_or_else(|| generation(pod));
            self.memory.resize_since.get_or_insert(since);
        } else {
            self.memory.resize_error = None;
            if let Some(since) = self.memory.resize_since.take() {
                let message = told("Pod resize completed", &granted_pod, since, "");
                events.normal(&events.about_pod(pod), "ResizeCompleted", &message);
                // What it gave up may be what others wait for.
                self.wake_waiting();
            }
        }
        granted_pod
    }

    /// Grants pods their wishes that had to wait for room, where there is now: first those that ask for no more than they
    /// have, then by priority and class, then who waits longest.
    pub(super) fn wake_waiting(&self) {
        let allocations = &self.context.allocations;
        let waiting = allocations.waiting();
        if waiting.is_empty() {
            return;
        }
        let _judging = allocations.judging();
        let pods = self.context.workers.pods().into_iter();
        let mut pods: Vec<_> = pods.filter_map(|p| waiting.get(spec::uid(&p)).map(|since| (*since, p))).collect();
        pods.sort_by_key(|(since, pod)| {
            let priority = spec::spec(pod).priority.unwrap_or(0);
            let guaranteed = spec::resources::qos(pod) == Qos::Guaranteed;
            (grows(&allocations.apply(pod), pod), std::cmp::Reverse(priority), !guaranteed, *since)
        });
        for (_, pod) in pods {
            if no_room(&self.context, &pod).is_none() {
                grant(&self.context, &pod, Allocation::of(&pod));
                self.context.workers.wake(spec::uid(&pod));
            }
        }
    }

    /// A container's numbers for the engine.
    fn numbers(&self, pod: &Pod, name: &str) -> Option<v1::LinuxContainerResources> {
        let (kind, container) = spec::find_container(pod, name)?;
        let mut numbers = spec::resources::container(pod, kind, &container, self.context.machine.memory_bytes as i64);
        if !self.context.config.cpu_quota {
            numbers.cpu_quota = 0;
        }
        spec::resources::stretch(&mut numbers, self.context.config.cpu_period);
        Some(numbers)
    }

    fn resize_bounds(&self, pod: &Pod) {
        if let Err(error) = cgroups::make_pod(&self.context.config, pod, false, "update", &self.context.metrics) {
            tracing::warn!(pod = %spec::described(pod), "pod cgroup not resized: {error:#}");
        }
    }

    /// The pod's own bounds, and those of containers that have no other.
    pub(super) async fn resize_whole(&mut self, pod: &Pod, seen: &Observed) {
        let Some(wanted) = spec::resources::pod_level(pod).cloned() else { return };
        let limit = crate::quantity::amount(wanted.limits.as_ref(), "memory").unwrap_or(0);
        let had = self.memory.applied_whole.as_ref().and_then(|a| crate::quantity::amount(a.limits.as_ref(), "memory"));
        if limit > 0 && had.is_none_or(|had| limit < had) {
            let labels = [(spec::names::POD_UID.to_string(), self.uid.clone())].into();
            let used = self.used(v1::ContainerStatsFilter { label_selector: labels, ..Default::default() }).await;
            if let Some(used) = used.filter(|used| *used > limit as u64) {
                let why = format!("attempting to set pod memory limit ({limit}) below current usage ({used})");
                return self.not_resized(pod, why).await;
            }
        }
        self.resize_bounds(pod);
        for running in seen.containers.iter().filter(|c| c.state == State::Running) {
            let Some(numbers) = self.numbers(pod, &running.name) else { continue };
            let request = v1::UpdateContainerResourcesRequest {
                container_id: running.id.clone(),
                linux: Some(numbers),
                ..Default::default()
            };
            if let Err(status) = self.context.engine.update_container_resources(request).await {
                tracing::warn!(pod = %spec::described(pod), container = %running.name, "container not resized: {status}");
                return self.not_resized(pod, status.message().into()).await;
            }
        }
        self.resize_bounds(pod);
        self.memory.applied_whole = Some(wanted);
        self.memory.resize_error = None;
    }

    async fn not_resized(&mut self, pod: &Pod, why: String) {
        let error = Waiting { reason: "Error".into(), message: why };
        if self.memory.resize_error.as_ref() != Some(&error) {
            let since = self.memory.resize_since.unwrap_or_else(|| generation(pod));
            let message = told("Pod resize error", pod, since, &error.message);
            self.context.events.warning(&self.context.events.about_pod(pod), "ResizeError", &message);
        }
        self.memory.resize_error = Some(error);
        tokio::time::sleep(RETRY).await;
    }

    /// The memory that containers use.
    async fn used(&self, filter: v1::ContainerStatsFilter) -> Option<u64> {
        let request = v1::ListContainerStatsRequest { filter: Some(filter) };
        let stats = self.context.engine.list_container_stats(request).await.ok()?.stats;
        let of = |s: &v1::ContainerStats| Some(s.memory.as_ref()?.usage_bytes.as_ref()?.value);
        (!stats.is_empty()).then(|| stats.iter().filter_map(of).sum())
    }

    pub(super) async fn resize(&mut self, pod: &Pod, id: &str, name: &str) {
        let Some((_, container)) = spec::find_container(pod, name) else { return };
        let Some(numbers) = self.numbers(pod, name) else { return };
        if let Some(why) = self.too_full(id, numbers.memory_limit_in_bytes).await {
            return self.not_resized(pod, why).await;
        }
        // The pod's own bounds first where they grow, and again at the end where they could only then shrink.
        self.resize_bounds(pod);
        let request =
            v1::UpdateContainerResourcesRequest { container_id: id.into(), linux: Some(numbers), ..Default::default() };
        match self.context.engine.update_container_resources(request).await {
            Ok(_) => {
                self.resize_bounds(pod);
                self.memory.applied.insert(id.into(), container.resources.clone().unwrap_or_default());
                self.memory.resize_error = None;
            }
            Err(status) => {
                tracing::warn!(pod = %spec::described(pod), container = name, "container not resized: {status}");
                self.not_resized(pod, status.message().into()).await;
            }
        }
    }

    /// A limit below what a container uses would not shrink but kill it.
    async fn too_full(&self, id: &str, limit: i64) -> Option<String> {
        let applied = self.memory.applied.get(id)?;
        let had = crate::quantity::amount(applied.limits.as_ref(), "memory");
        if limit <= 0 || had.is_some_and(|had| had <= limit) {
            return None;
        }
        let used = self.used(v1::ContainerStatsFilter { id: id.into(), ..Default::default() }).await?;
        (used > limit as u64)
            .then(|| format!("attempting to set container memory limit ({limit}) below current usage ({used})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_events_say() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"generation": 4}, "spec": {
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}}],
        }}))
        .unwrap();
        let containers = r#""initContainers":[{"name":"i","resources":{}}],"containers":[{"name":"c","resources":{"limits":{"cpu":"2"},"requests":{"cpu":"1"}}}]"#;
        assert_eq!(
            told("Pod resize started", &pod, generation(&pod), ""),
            format!("Pod resize started: {{{containers},\"generation\":4}}")
        );
        assert_eq!(
            told("Pod resize error", &pod, 3, "too full"),
            format!("Pod resize error: {{{containers},\"generation\":3,\"error\":\"too full\"}}")
        );
    }

    #[test]
    fn who_asks_for_more() {
        let pod = |cpu: &str, memory: &str| -> Pod {
            let resources = json!({"requests": {"cpu": cpu, "memory": memory}});
            serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "resources": resources}]}})).unwrap()
        };
        for (cpu, memory, expect) in
            [("1", "1Gi", false), ("500m", "1Gi", false), ("2", "1Gi", true), ("500m", "2Gi", true)]
        {
            assert_eq!(grows(&pod("1", "1Gi"), &pod(cpu, memory)), expect, "{cpu} {memory}");
        }
    }
}
