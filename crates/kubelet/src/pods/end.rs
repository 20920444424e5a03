//! The end of a pod: its containers are stopped, what they held is given back, and finally its object goes.
//!
//! Level-triggered like everything else: each step looks first, so that an agent that starts in the middle goes on where
//! the last one stopped.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use client::DeleteOptions;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::inbox::Latest;
use super::observed::Observed;
use super::start;
use super::status::is_terminal;
use super::stop;
use super::worker::Worker;
use crate::cgroups;
use crate::metrics::families;
use crate::spec::{self, names};
use crate::volumes;

/// The longest wait between attempts to give back volumes: a driver may be gone for long.
const DRIVER_RETRY_MAX: Duration = Duration::from_secs(30);
/// Between attempts while the engine or the API server does not answer.
const RETRY: Duration = Duration::from_secs(1);

impl Worker {
    /// Ends the pod: containers, volumes, and finally its object.
    pub(super) async fn end(mut self) {
        self.probes.ending();
        let seen = self.stop_all().await;
        let pod = self.inbox.latest().pod;
        // A refused pod has a status without containers, and keeps it.
        let refused =
            is_terminal(self.before.phase.as_deref()) && seen.sandboxes.is_empty() && seen.containers.is_empty();
        if !refused {
            self.report(&pod, &seen, &BTreeMap::new(), true);
        }
        self.release(&pod).await;
        // Whoever waits for the pod to be over wants it said too; a pod that nobody can be told of must not wait for it.
        while !self.inbox.latest().removed {
            tokio::select! {
                () = self.reporter.flush() => break,
                () = self.inbox.woken() => {}
            }
        }
        self.inbox.rest();
        // A finished pod keeps its object, its containers' logs and its place here until somebody deletes it.
        loop {
            let Latest { pod, removed } = self.inbox.latest();
            if removed || pod.metadata.deletion_timestamp.is_some() {
                break;
            }
            self.inbox.woken().await;
        }
        if !self.inbox.latest().removed {
            self.reporter.flush().await;
        }
        self.forget().await;
    }

    fn time_left(&self, latest: &Latest, since: Instant) -> Instant {
        let grace = stop::grace(&latest.pod);
        since + self.verdict_grace.map_or(grace, |g| g.min(grace))
    }

    /// Stops everything; a shorter grace that arrives meanwhile is honoured.
    async fn stop_all(&mut self) -> Observed {
        let since = Instant::now();
        loop {
            let seen = match self.known.look(&self.context.engine, &self.uid).await {
                Ok(seen) => seen,
                Err(status) => {
                    tracing::debug!(uid = %self.uid, "cannot look at pod: {status}");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            if seen.running().next().is_none() && !seen.sandboxes.iter().any(|s| s.ready) {
                return seen;
            }
            let latest = self.inbox.latest();
            let deadline = self.time_left(&latest, since);
            let context = self.context.clone();
            let work = stop::pod(&context, &latest.pod, &seen, deadline);
            tokio::pin!(work);
            loop {
                tokio::select! {
                    () = &mut work => break,
                    () = self.inbox.woken() => {
                        let latest = self.inbox.latest();
                        if self.time_left(&latest, since) < deadline {
                            break;
                        }
                        if let Ok(now_seen) = self.known.look(&self.context.engine, &self.uid).await {
                            self.memory.probed = self.probes.results();
                            self.report(&latest.pod, &now_seen, &BTreeMap::new(), false);
                        }
                    }
                }
            }
        }
    }

    /// Gives back what the pod's containers needed.
    async fn release(&self, pod: &Arc<Pod>) {
        let (dir, config) = (self.context.config.pod_dir(&self.uid), self.context.config.clone());
        let mut patience = RETRY;
        self.context.places.release(&self.uid);
        loop {
            let (dir, config, pod) = (dir.clone(), config.clone(), pod.clone());
            let metrics = self.context.metrics.clone();
            if let Err(why) = volumes::give_back(&self.context, &self.uid).await {
                tracing::warn!(uid = %self.uid, "volumes not given back: {why}");
                tokio::time::sleep(patience).await;
                patience = (patience * 2).min(DRIVER_RETRY_MAX);
                continue;
            }
            let done = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
                volumes::release(&dir)?;
                cgroups::remove_uid(&config, spec::uid(&pod), &metrics)
            });
            match done.await {
                Ok(Ok(())) => break,
                Ok(Err(error)) => tracing::warn!(uid = %self.uid, "pod not released: {error:#}"),
                Err(error) => tracing::warn!(uid = %self.uid, "pod not released: {error}"),
            }
            tokio::time::sleep(RETRY).await;
        }
        while let Err(why) = self.context.claims.release(&self.uid).await {
            tracing::warn!(uid = %self.uid, "claims not given back: {why}");
            tokio::time::sleep(RETRY).await;
        }
        let metrics = &self.context.metrics;
        metrics.forget(&families::PROBE_RESULTS, &[("pod_uid", &self.uid)]);
        let named = [("namespace", spec::namespace(pod)), ("pod", spec::name(pod))];
        metrics.forget(&families::PROBE_DURATION, &named);
        self.context.devices.release(&self.uid);
        self.context.allocations.release(&self.uid);
        self.context.processors.release(&self.uid);
        self.context.alignment.release(&self.uid);
        self.wake_waiting();
        self.context.references.release(&self.uid);
        self.context.tokens.release(&self.uid);
        self.context.certificates.release(&self.uid);
        self.context.images.release(&self.uid);
    }

    /// Removes the pod's object, then what is left of it here.
    async fn forget(&mut self) {
        let Latest { pod, removed } = self.inbox.latest();
        if !removed {
            let api = self.context.client.api::<Pod>().namespaced(spec::namespace(&pod));
            let options = DeleteOptions::uid(self.uid.clone()).grace(0);
            loop {
                match api.delete(spec::name(&pod), &options).await {
                    Ok(()) => break,
                    Err(status) if status.is_not_found() || status.is_conflict() => break,
                    Err(status) => tracing::debug!(pod = %spec::described(&pod), "pod not deleted: {status}"),
                }
                tokio::time::sleep(RETRY).await;
            }
        }
        loop {
            let removal = async {
                let seen = self.known.look(&self.context.engine, &self.uid).await?;
                stop::remove(&self.context, &seen).await?;
                Ok::<_, tonic::Status>(seen)
            };
            match removal.await {
                Ok(seen) => {
                    let ids = seen.containers.iter().map(|c| (c.id.clone(), c.name.clone())).collect();
                    start::unlink_logs(&self.context, &pod, &ids);
                    break;
                }
                Err(status) => tracing::warn!(pod = %spec::described(&pod), "pod's containers not removed: {status}"),
            }
            tokio::time::sleep(RETRY).await;
        }
        self.context.users.release(&self.uid);
        let (dir, logs) =
            (self.context.config.pod_dir(&self.uid), names::pod_log_dir(&self.context.config.pod_logs, &pod));
        let removed = tokio::task::spawn_blocking(move || {
            let _ = fs::remove_dir_all(logs);
            volumes::remove(&dir)
        });
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(uid = %self.uid, "pod directory not removed: {error}");
        }
    }
}
