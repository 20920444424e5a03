//! Other resources for a pod that runs: whether the node grants them, and giving them to the containers.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::allocation::Allocation;
use super::observed::{Observed, State};
use super::plan::{Waiting, resized, whole_changed};
use super::status::is_terminal;
use super::worker::{RETRY, Worker};
use crate::cgroups;
use crate::cri::v1;
use crate::metrics::families;
use crate::spec;

/// Why a pod's wish waits that could be granted another time.
const DEFERRED: &str = "Deferred";
/// Why it cannot be granted at all.
const INFEASIBLE: &str = "Infeasible";

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
        let granted = self.context.allocations.get(pod);
        if granted.equals(&wished) {
            self.context.allocations.defer(&self.uid, false);
            (self.memory.resize_pending, granted_pod) = (None, pod.clone());
        } else {
            let was_infeasible = self.memory.resize_pending.as_ref().is_some_and(|w| w.reason == INFEASIBLE);
            self.memory.resize_pending = self.no_room(pod);
            let infeasible = self.memory.resize_pending.as_ref().is_some_and(|w| w.reason == INFEASIBLE);
            if infeasible && !was_infeasible {
                let pinned = self.context.processors.has_exclusive(&self.uid);
                let why =
                    if pinned { "guaranteed_pod_cpu_manager_static_policy" } else { "insufficient_node_allocatable" };
                self.context.metrics.count(&families::RESIZES_INFEASIBLE, &[why]);
            }
            self.context
                .allocations
                .defer(&self.uid, self.memory.resize_pending.as_ref().is_some_and(|w| w.reason == DEFERRED));
            if self.memory.resize_pending.is_none() {
                self.context.allocations.grant(&self.context.config, &self.uid, wished);
                // What it gave up may be what others wait for.
                self.wake_waiting();
            }
            granted_pod = self.context.allocations.apply(pod);
        }
        self.memory.resizing = seen.containers.iter().filter(|c| c.state == State::Running).any(|c| {
            let applied = self.memory.applied.get(&c.id);
            spec::find_container(&granted_pod, &c.name)
                .is_some_and(|(_, s)| applied.is_some_and(|a| resized(&s, a).is_some()))
        }) || whole_changed(&granted_pod, &self.memory);
        if !self.memory.resizing {
            self.memory.resize_error = None;
        }
        granted_pod
    }

    /// Lets pods look again whose wish had to wait for room.
    pub(super) fn wake_waiting(&self) {
        for uid in self.context.allocations.waiting().iter().filter(|uid| **uid != self.uid) {
            self.context.workers.wake(uid);
        }
    }

    /// Why what the pod asks for cannot be granted now.
    fn no_room(&self, pod: &Pod) -> Option<Waiting> {
        if self.context.processors.has_exclusive(&self.uid) {
            let message = "Resize is infeasible for Guaranteed Pods alongside CPU Manager static policy";
            return Some(Waiting { reason: INFEASIBLE.into(), message: message.into() });
        }
        let room = self.context.machine.allocatable_amounts(&self.context.config);
        let others: Vec<Arc<Pod>> = self
            .context
            .workers
            .pods()
            .into_iter()
            .filter(|p| spec::uid(p) != self.uid && !is_terminal(p.status.as_ref().and_then(|s| s.phase.as_deref())))
            .map(|p| self.context.allocations.apply(&p))
            .collect();
        spec::resources::pod_total(pod, false).into_iter().find_map(|(name, requested)| {
            let capacity = room.get(&name).copied()?;
            let used: i64 =
                others.iter().filter_map(|p| spec::resources::pod_total(p, false).get(&name).copied()).sum();
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
        })
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
                return self.not_resized(why).await;
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
                return self.not_resized(status.message().into()).await;
            }
        }
        self.resize_bounds(pod);
        self.memory.applied_whole = Some(wanted);
        self.memory.resize_error = None;
    }

    async fn not_resized(&mut self, why: String) {
        self.memory.resize_error = Some(Waiting { reason: "Error".into(), message: why });
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
            return self.not_resized(why).await;
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
                self.not_resized(status.message().into()).await;
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
