//! Other resources for a pod that runs: whether the node grants them, and giving them to the containers.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::allocation::Allocation;
use super::observed::{Observed, State};
use super::plan::{Waiting, resized};
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
        });
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

    pub(super) async fn resize(&mut self, pod: &Pod, id: &str, name: &str) {
        let Some((kind, container)) = spec::find_container(pod, name) else { return };
        let mut numbers = spec::resources::container(pod, kind, &container, self.context.machine.memory_bytes as i64);
        if !self.context.config.cpu_quota {
            numbers.cpu_quota = 0;
        }
        if let Some(why) = self.too_full(id, numbers.memory_limit_in_bytes).await {
            self.memory.resize_error = Some(Waiting { reason: "Error".into(), message: why });
            tokio::time::sleep(RETRY).await;
            return;
        }
        // The pod's own bounds first where they grow, and again at the end where they could only then shrink.
        let bounds = || {
            if let Err(error) = cgroups::make_pod(&self.context.config, pod, false, "update", &self.context.metrics) {
                tracing::warn!(pod = %spec::described(pod), "pod cgroup not resized: {error:#}");
            }
        };
        bounds();
        let request =
            v1::UpdateContainerResourcesRequest { container_id: id.into(), linux: Some(numbers), ..Default::default() };
        match self.context.engine.update_container_resources(request).await {
            Ok(_) => {
                bounds();
                self.memory.applied.insert(id.into(), container.resources.clone().unwrap_or_default());
                self.memory.resize_error = None;
            }
            Err(status) => {
                tracing::warn!(pod = %spec::described(pod), container = name, "container not resized: {status}");
                self.memory.resize_error = Some(Waiting { reason: "Error".into(), message: status.message().into() });
                tokio::time::sleep(RETRY).await;
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
        let filter = v1::ContainerStatsFilter { id: id.into(), ..Default::default() };
        let request = v1::ListContainerStatsRequest { filter: Some(filter) };
        let stats = self.context.engine.list_container_stats(request).await.ok()?.stats;
        let used = stats.first()?.memory.as_ref()?.usage_bytes.as_ref()?.value;
        (used > limit as u64)
            .then(|| format!("attempting to set container memory limit ({limit}) below current usage ({used})"))
    }
}
