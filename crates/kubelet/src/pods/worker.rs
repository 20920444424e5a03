//! One pod's worker: looks, plans, carries out, reports, waits; and ends the pod when its time has come.
//!
//! One task a pod and everything in it serial, so that no two steps of a pod ever race. Long steps for a living pod
//! (a pull, a hook) are abandoned when the pod has to end.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, Pod, PodStatus, ResourceHealth, ResourceStatus};
use tokio::time::Instant;

use super::inbox::{Inbox, Latest};
use super::look::Known;
use super::observed::{Observed, State};
use super::plan::{BackOff, Failed, Memory, Plan, Step, Waiting, Why, is_over, plan};
use super::report::{Reporter, Weight, weight};
use super::start::{self, Start};
use super::status::{Facts, Verdict, generate, is_terminal};
use super::stop;
use crate::agent::Context;
use crate::cri::v1;
use crate::logs::{self, Printer};
use crate::metrics::families;
use crate::probes::Probes;
use crate::spec::{self, container::message_file, names};
use crate::topology::{APART, APART_REASON};
use crate::volumes::{self, Volumes};

/// How long others' changes of a status are left; upstream looks for them every ten seconds.
const OVERWRITTEN: SignedDuration = SignedDuration::from_secs(5);
/// Between attempts while the engine or the API server does not answer.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// Failed volumes are tried again after this, doubling up to the longest.
const VOLUME_RETRY: SignedDuration = SignedDuration::from_millis(500);
const VOLUME_RETRY_MAX: SignedDuration = SignedDuration::from_secs(122);
/// Claims that could not be prepared are tried again after this; what they wait for may say nothing when it comes.
const CLAIM_RETRY: SignedDuration = SignedDuration::from_secs(2);
/// A pod that was admitted and cannot have what it was admitted with.
const UNEXPECTED: &str = "UnexpectedAdmissionError";
/// A failed refresh of a running pod's volumes.
const REFRESH_RETRY: SignedDuration = SignedDuration::from_secs(10);
/// Bytes of a termination message; of one taken from the log; lines of the latter.
const MAX_MESSAGE: u64 = 4096;
const MAX_LOG_MESSAGE: usize = 2048;
const MAX_LOG_LINES: usize = 80;

/// A pod's worker.
pub struct Worker {
    pub(super) context: Arc<Context>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) uid: String,
    pub(super) memory: Memory,
    pub(super) probes: Probes,
    pub(super) known: Known,
    pub(super) reporter: Reporter,
    /// The last status made; what the API had, at first.
    pub(super) before: PodStatus,
    volumes: Option<Volumes>,
    volume_delay: SignedDuration,
    messages: BTreeMap<String, String>,
    verdict: Option<Verdict>,
    /// When to report again what somebody else changed.
    take_back_at: Option<Timestamp>,
    /// A grace the verdict imposes.
    pub(super) verdict_grace: Option<Duration>,
    /// When it was first seen, until it runs.
    awaited: Option<std::time::Instant>,
}

enum Next {
    Again,
    Over,
    Wait(Option<Timestamp>),
}

async fn sleep_until(at: Option<Timestamp>) {
    match at {
        Some(at) => {
            let left = at.duration_since(Timestamp::now());
            tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
        }
        None => std::future::pending().await,
    }
}

/// How often a container has been started again when it is started now, by what the status says of it.
fn restarts_told(status: &PodStatus, name: &str) -> u32 {
    let all = [&status.init_container_statuses, &status.container_statuses];
    let told = all.into_iter().flatten().flatten().find(|s| s.name == name);
    let ran = told.filter(|s| s.container_id.as_deref().is_some_and(|id| !id.is_empty()));
    ran.map_or(0, |s| s.restart_count.max(0) as u32 + 1)
}

impl Worker {
    pub fn new(context: Arc<Context>, inbox: Arc<Inbox>) -> Self {
        let pod = inbox.latest().pod;
        let before = pod.status.clone().unwrap_or_default();
        let new = before.start_time.is_none();
        Self {
            uid: spec::uid(&pod).to_string(),
            reporter: Self::reporter_from(&context, &pod, before.clone()),
            context,
            inbox,
            memory: Memory::default(),
            probes: Probes::default(),
            known: Known::default(),
            before,
            volumes: None,
            volume_delay: VOLUME_RETRY,
            messages: BTreeMap::new(),
            verdict: None,
            take_back_at: None,
            verdict_grace: None,
            awaited: new.then(std::time::Instant::now),
        }
    }

    /// Runs the pod from wherever it stands to its end.
    pub async fn run(mut self) {
        let ending = self.inbox.ending.clone();
        let mut first = self.awaited.is_some();
        loop {
            let Latest { pod, removed } = self.inbox.latest();
            let over = is_terminal(pod.status.as_ref().and_then(|s| s.phase.as_deref()))
                || is_terminal(self.before.phase.as_deref());
            if removed || over || ending.is_cancelled() {
                break;
            }
            let (began, operation) = (std::time::Instant::now(), if first { "create" } else { "sync" });
            let next = tokio::select! {
                biased;
                () = ending.cancelled() => break,
                next = self.step(&pod) => next,
            };
            first = false;
            self.context.metrics.since(&families::POD_WORKER, &[operation], began);
            match next {
                Next::Again => {}
                Next::Over => break,
                Next::Wait(at) => tokio::select! {
                    () = ending.cancelled() => break,
                    () = self.inbox.woken() => {}
                    () = sleep_until(at.into_iter().chain(self.take_back_at).min()) => {}
                },
            }
        }
        self.end().await;
    }

    fn reporter_from(context: &Context, pod: &Pod, there: PodStatus) -> Reporter {
        Reporter::start(context.client.clone(), context.metrics.clone(), context.turns.clone(), pod, there)
    }

    /// Counts how long the pod took to run, once it does; one that did before this agent began says nothing.
    fn count_start(&mut self, pod: &Pod, status: &PodStatus) {
        let runs = status.phase.as_deref() == Some("Running");
        let Some(seen) = self.awaited.take_if(|_| runs) else { return };
        let metrics = &self.context.metrics;
        metrics.since(&families::POD_START, &[], seen);
        if let Some(created) = &pod.metadata.creation_timestamp {
            let took = Timestamp::now().duration_since(created.0).as_secs_f64();
            metrics.observe(&families::POD_START_TOTAL, &[], took.max(0.0));
            let pulled = self.context.images.pulled_for(&self.uid).as_secs_f64();
            let own = took - pulled - prepared(status).as_secs_f64();
            metrics.observe(&families::POD_START_SLI, &[], own.max(0.0));
        }
    }

    pub(super) fn report(&mut self, pod: &Pod, seen: &Observed, waiting: &BTreeMap<String, Waiting>, over: bool) {
        self.read_messages(pod, seen);
        let facts = Facts {
            seen,
            memory: &self.memory,
            waiting,
            before: &self.before,
            runtime_name: &self.context.runtime_name(),
            host_ips: &self.context.host_ips,
            over,
            verdict: self.verdict.as_ref(),
            recursive_read_only: self.context.recursive_read_only(),
            messages: &self.messages,
            now: Timestamp::now(),
        };
        let status = generate(pod, &facts);
        self.count_start(pod, &status);
        self.before = status.clone();
        // A pod that is asked to end is on its way until all of it has ended.
        let ends = self.inbox.ending.is_cancelled() && !over;
        self.reporter.report(status.clone(), if ends { Weight::Passing } else { weight(&status) });
    }

    /// Reads what containers that ended had to say.
    fn read_messages(&mut self, pod: &Pod, seen: &Observed) {
        for c in seen.containers.iter().filter(|c| c.state == State::Exited) {
            if self.messages.contains_key(&c.id) {
                continue;
            }
            let path = message_file(&self.context.config, pod, &c.name, c.attempt);
            let mut message = String::new();
            if let Ok(file) = fs::File::open(path) {
                let mut bytes = Vec::new();
                if file.take(MAX_MESSAGE).read_to_end(&mut bytes).is_ok() {
                    message = String::from_utf8_lossy(&bytes).into_owned();
                }
            }
            let fallback = spec::find_container(pod, &c.name)
                .is_some_and(|(_, s)| s.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"));
            if message.is_empty() && fallback && c.exit_code != 0 {
                message = log_tail(&c.log_path);
            }
            self.messages.insert(c.id.clone(), message);
        }
        self.messages.retain(|id, _| seen.containers.iter().any(|c| c.id == *id));
    }

    /// Decides whether the pod's time is up although its containers would go on; the time when to look again.
    fn judge(&mut self, pod: &Pod, now: Timestamp) -> Option<Timestamp> {
        if self.verdict.is_some() {
            return None;
        }
        if let Some((verdict, grace)) = self.context.evictions.take(&self.uid) {
            self.verdict = Some(verdict);
            self.verdict_grace = Some(grace);
            return None;
        }
        let seconds = spec::spec(pod).active_deadline_seconds?;
        let started = self.before.start_time.as_ref()?.0;
        let until = started + SignedDuration::from_secs(seconds);
        if until > now {
            return Some(until);
        }
        let message = "Pod was active on the node longer than the specified deadline";
        self.context.events.normal(&self.context.events.about_pod(pod), "DeadlineExceeded", message);
        self.verdict = Some(Verdict { reason: "DeadlineExceeded".into(), message: message.into(), disruption: false });
        None
    }

    /// What others changed in the status is put right, but not at once: they, and who waits for them, may want to see it.
    fn take_back(&mut self, pod: &Pod) {
        let now = Timestamp::now();
        self.take_back_at = match (self.reporter.is_overwritten(pod), self.take_back_at) {
            (false, _) => None,
            (true, None) => now.checked_add(OVERWRITTEN).ok(),
            (true, Some(at)) if !is_over(at, now) => Some(at),
            (true, Some(_)) => {
                let there = pod.status.clone().unwrap_or_default();
                self.reporter = Self::reporter_from(&self.context, pod, there);
                None
            }
        };
    }

    async fn step(&mut self, pod: &Arc<Pod>) -> Next {
        let seen = match self.known.look(&self.context.engine, &self.uid).await {
            Ok(seen) => seen,
            Err(status) => {
                tracing::debug!(pod = %spec::described(pod), "cannot look at pod: {status}");
                return Next::Wait(Timestamp::now().checked_add(RETRY).ok());
            }
        };
        self.probes.follow(&self.context, pod, &seen, &self.before, &self.inbox);
        self.memory.probed = self.probes.results();
        let references = self.inbox.take_references();
        if references {
            // What was missing may be there now.
            let now = Timestamp::now();
            for failed in self.memory.failed.values_mut().chain(&mut self.memory.sandbox_failed) {
                failed.retry_at = failed.retry_at.min(now);
            }
        }
        if self.inbox.take_resend() {
            self.reporter = Self::reporter_from(&self.context, pod, PodStatus::default());
        }
        self.take_back(pod);
        let pod = &self.judge_resize(pod, &seen);
        self.memory.devices = device_health(&self.context, pod);
        let now = Timestamp::now();
        let deadline = self.judge(pod, now);
        let plan = plan(pod, &seen, &self.memory, now);
        self.report(pod, &seen, &plan.waiting, false);
        if plan.finished || self.verdict.is_some() {
            return Next::Over;
        }
        if seen.ready_sandbox().is_some() {
            let due = self.volumes.as_ref().is_none_or(|v| v.renew_at.is_some_and(|at| at <= now));
            if (references || due || shows_metadata(pod))
                && let Some(failure) = self.make_volumes(pod, &seen).await
            {
                tracing::debug!(pod = %spec::described(pod), volume = %failure.volume, "volume not refreshed: {}", failure.message);
                if let Some(volumes) = &mut self.volumes {
                    volumes.renew_at = Some(now + REFRESH_RETRY);
                }
            }
        }
        if !plan.steps.is_empty() {
            self.carry_out(pod, &seen, &plan).await;
            return Next::Again;
        }
        self.collect_dead(&seen).await;
        let renew = self.volumes.as_ref().and_then(|v| v.renew_at);
        Next::Wait([plan.wake, deadline, renew].into_iter().flatten().min())
    }

    async fn make_volumes(&mut self, pod: &Pod, seen: &Observed) -> Option<volumes::Failure> {
        let around = start::surroundings(&self.context, pod, seen.ready_sandbox());
        let (volumes, failure) = volumes::prepare(&self.context, pod, &around).await;
        if failure.is_none() || self.volumes.is_none() {
            self.context.places.set(&self.uid, &volumes.ready);
            self.volumes = Some(volumes);
        }
        failure
    }

    async fn carry_out(&mut self, pod: &Arc<Pod>, seen: &Observed, plan: &Plan) {
        let mut again_from_start = false;
        for step in &plan.steps {
            match step {
                Step::StopSandbox { id } => {
                    let about = self.context.events.about_pod(pod);
                    if self.volumes.is_some() || seen.sandboxes.len() > 1 || !seen.containers.is_empty() {
                        self.context.events.normal(
                            &about,
                            "SandboxChanged",
                            "Pod sandbox changed, it will be killed and re-created.",
                        );
                    }
                    if let Err(status) = self
                        .context
                        .engine
                        .stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() })
                        .await
                    {
                        tracing::warn!(sandbox = %id, "sandbox not stopped: {status}");
                        again_from_start = true;
                    }
                }
                Step::CreateSandbox { attempt } => self.make_sandbox(pod, seen, *attempt).await,
                Step::Kill { id, name, why } => self.kill(pod, seen, id, name, *why).await,
                Step::ResizeWhole => self.resize_whole(pod, seen).await,
                Step::Resize { id, name } => self.resize(pod, id, name).await,
                Step::Remove { id } => {
                    if let Err(status) = self
                        .context
                        .engine
                        .remove_container(v1::RemoveContainerRequest { container_id: id.clone() })
                        .await
                    {
                        tracing::warn!(container = %id, "container not removed: {status}");
                    }
                }
                Step::Start { name, restart_count, finished, .. } => {
                    self.start(pod, seen, name, *restart_count, *finished).await
                }
            }
            if again_from_start {
                tokio::time::sleep(RETRY).await;
                return;
            }
        }
    }

    async fn make_sandbox(&mut self, pod: &Pod, seen: &Observed, attempt: u32) {
        if let Some(failure) = self.make_volumes(pod, seen).await {
            let message = format!("MountVolume.SetUp failed for volume \"{}\" : {}", failure.volume, failure.message);
            self.context.events.warning(&self.context.events.about_pod(pod), "FailedMount", &message);
            let delay = self.volume_delay;
            self.volume_delay = (delay * 2).min(VOLUME_RETRY_MAX);
            self.memory.sandbox_failed =
                Some(Failed { reason: "FailedMount".into(), message, retry_at: Timestamp::now() + delay });
            return;
        }
        self.volume_delay = VOLUME_RETRY;
        let at = |container: &str| self.context.alignment.devices_at(&self.uid, container);
        if let Err(why) = self.context.devices.allocate(pod, at).await {
            let reason = if why == APART { APART_REASON } else { UNEXPECTED };
            self.context.events.warning(&self.context.events.about_pod(pod), reason, &why);
            let message = format!("Pod was rejected: {why}");
            self.verdict = Some(Verdict { reason: reason.into(), message, disruption: false });
            return;
        }
        if let Err(why) = start::claims(&self.context, pod).await {
            let message = format!("Failed to prepare dynamic resources: {why}");
            self.context.events.warning(&self.context.events.about_pod(pod), "FailedPrepareDynamicResources", &message);
            let retry_at = Timestamp::now() + CLAIM_RETRY;
            self.memory.sandbox_failed =
                Some(Failed { reason: "FailedPrepareDynamicResources".into(), message, retry_at });
            return;
        }
        self.memory.sandbox_failed = start::sandbox(&self.context, pod, attempt).await.err();
        if let Some(failed) = &self.memory.sandbox_failed {
            tracing::info!(pod = %spec::described(pod), "no sandbox: {}", failed.message);
        }
    }

    async fn kill(&self, pod: &Pod, seen: &Observed, id: &str, name: &str, why: Why) {
        let Some(container) = seen.containers.iter().find(|c| c.id == id) else { return };
        let spec = spec::find_container(pod, name);
        let probe_grace =
            |probe: Option<&k8s_openapi::api::core::v1::Probe>| probe.and_then(|p| p.termination_grace_period_seconds);
        let spec = spec.as_ref().map(|(_, c)| c.as_ref());
        let (message, grace) = match why {
            Why::Liveness => (
                format!("Container {name} failed liveness probe, will be restarted"),
                probe_grace(spec.and_then(|s| s.liveness_probe.as_ref())),
            ),
            Why::Startup => (
                format!("Container {name} failed startup probe, will be restarted"),
                probe_grace(spec.and_then(|s| s.startup_probe.as_ref())),
            ),
            Why::Changed => (format!("Container {name} definition changed, will be restarted"), None),
            Why::Unknown => (format!("Container {name} is in an unknown state, try killing it before restart"), None),
            Why::Superseded => (format!("Stopping container {name}"), None),
            Why::Resized => (format!("Container {name} resize requires restart"), None),
            Why::Restarted => (format!("Stopping container {name}: all containers of the pod are restarted"), None),
        };
        let grace = grace.map_or_else(|| stop::grace(pod), |s| Duration::from_secs(s.max(1) as u64));
        let ips = seen.ready_sandbox().map(|s| s.ips.clone()).unwrap_or_default();
        stop::container(&self.context, pod, container, &ips, Instant::now() + grace, &message, std::future::ready(()))
            .await;
    }

    async fn start(&mut self, pod: &Pod, seen: &Observed, name: &str, restart_count: u32, finished: Option<Timestamp>) {
        let now = Timestamp::now();
        let empty = Volumes::default();
        // An engine that lost what it knew of the container does not make it the first of its kind.
        let known = seen.containers.iter().any(|c| c.name == name);
        let restart_count = if known { restart_count } else { restart_count.max(restarts_told(&self.before, name)) };
        let start = Start {
            context: &self.context,
            pod,
            seen,
            volumes: self.volumes.as_ref().unwrap_or(&empty),
            name,
            restart_count,
        };
        let result = start.run().await;
        match result {
            Ok(()) => {
                self.memory.failed.remove(name);
            }
            Err(failed) => {
                tracing::info!(pod = %spec::described(pod), container = name, reason = %failed.reason, "container not started: {}", failed.message);
                let began = matches!(failed.reason.as_str(), "RunContainerError" | "PostStartHookError");
                self.memory.failed.insert(name.to_string(), failed);
                if !began {
                    return;
                }
            }
        }
        if let Some(finished) = finished {
            let last = self.memory.back_off.get(name).copied();
            self.memory
                .back_off
                .insert(name.to_string(), BackOff::next(last, finished, now, self.context.config.max_restart_back_off));
        }
    }

    /// Forgets dead containers beyond those kept for their logs, and dead sandboxes.
    async fn collect_dead(&mut self, seen: &Observed) {
        let mut count: HashMap<&str, usize> = HashMap::new();
        for container in &seen.containers {
            let position = count.entry(&container.name).or_default();
            *position += 1;
            // The newest one is the container itself, dead or not.
            if container.state == State::Exited && *position > 1 + self.context.config.dead_containers_kept {
                let _ = self
                    .context
                    .engine
                    .remove_container(v1::RemoveContainerRequest { container_id: container.id.clone() })
                    .await;
                let pod = self.inbox.latest().pod;
                start::unlink_logs(
                    &self.context,
                    &pod,
                    &HashMap::from([(container.id.clone(), container.name.clone())]),
                );
                let log = names::pod_log_dir(&self.context.config.pod_logs, &pod)
                    .join(names::container_log(&container.name, container.attempt));
                let _ = fs::remove_file(log);
            }
        }
        for sandbox in seen.sandboxes.iter().skip(1).filter(|s| !s.ready) {
            if !seen.containers.iter().any(|c| c.sandbox_id == sandbox.id) {
                let _ = self
                    .context
                    .engine
                    .remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() })
                    .await;
            }
        }
    }
}

/// How long init containers ran before the others could.
fn prepared(status: &PodStatus) -> SignedDuration {
    let ran = |s: &k8s_openapi::api::core::v1::ContainerStatus| {
        let ended = s.state.as_ref()?.terminated.as_ref()?;
        Some(ended.finished_at.as_ref()?.0.duration_since(ended.started_at.as_ref()?.0))
    };
    status
        .init_container_statuses
        .iter()
        .flatten()
        .filter_map(ran)
        .fold(SignedDuration::ZERO, SignedDuration::saturating_add)
}

/// What became of the devices plugins gave the pod's containers.
fn device_health(context: &Context, pod: &Pod) -> BTreeMap<String, Vec<ResourceStatus>> {
    let status = |(name, devices): (String, Vec<(String, Option<bool>)>)| ResourceStatus {
        name,
        resources: Some(
            devices
                .into_iter()
                .map(|(resource_id, healthy)| ResourceHealth {
                    resource_id,
                    health: Some(healthy.map_or("Unknown", |h| if h { "Healthy" } else { "Unhealthy" }).into()),
                    message: None,
                })
                .collect(),
        ),
    };
    let of = |name: &str| context.devices.health(spec::uid(pod), name).into_iter().map(status).collect::<Vec<_>>();
    spec::all_containers(pod).map(|(_, c)| (c.name.clone(), of(&c.name))).filter(|(_, l)| !l.is_empty()).collect()
}

/// Whether what can change of a pod shows in its volumes: labels, annotations, resources. Those are written at every look,
/// which does nothing while the content is the same; its name and namespace never change.
fn shows_metadata(pod: &Pod) -> bool {
    let changes = |item: &DownwardAPIVolumeFile| {
        let field = item.field_ref.as_ref().map_or("", |f| f.field_path.as_str());
        item.resource_field_ref.is_some()
            || ["metadata.labels", "metadata.annotations"].iter().any(|name| field.starts_with(name))
    };
    spec::spec(pod).volumes.iter().flatten().any(|v| {
        let projected = v.projected.iter().flat_map(|p| p.sources.iter().flatten());
        let projected = projected.filter_map(|s| s.downward_api.as_ref()?.items.as_ref());
        let own = v.downward_api.as_ref().and_then(|d| d.items.as_ref());
        own.into_iter().chain(projected).flatten().any(changes)
    })
}

/// The end of a container's log, as a termination message.
fn log_tail(path: &str) -> String {
    /// Enough raw log for the message, prefixes and all.
    const WINDOW: u64 = 16 << 10;
    let Ok(mut file) = fs::File::open(path) else { return String::new() };
    let length = file.metadata().map_or(0, |m| m.len());
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(length.saturating_sub(WINDOW))).is_err()
        || file.take(WINDOW).read_to_end(&mut bytes).is_err()
    {
        return String::new();
    }
    let mut printed = Vec::new();
    let mut printer = Printer::new(logs::Options::default());
    // A line the window cuts in two is no record, and is left out.
    bytes.split(|b| *b == b'\n').for_each(|line| printer.print(line, &mut printed));
    let text = String::from_utf8_lossy(&printed);
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut out: String = lines[lines.len().saturating_sub(MAX_LOG_LINES)..].concat();
    if out.len() > MAX_LOG_MESSAGE {
        let mut from = out.len() - MAX_LOG_MESSAGE;
        while !out.is_char_boundary(from) {
            from += 1;
        }
        out.drain(..from);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_can_change_in_volumes() {
        let field = |path: &str| json!({"path": "f", "fieldRef": {"fieldPath": path}});
        let direct = |item: Value| json!({"name": "v", "downwardAPI": {"items": [item]}});
        let projected =
            |item: Value| json!({"name": "v", "projected": {"sources": [{"downwardAPI": {"items": [item]}}]}});
        for (volume, expect) in [
            (direct(field("metadata.name")), false),
            (direct(field("metadata.labels")), true),
            (direct(json!({"path": "f", "resourceFieldRef": {"resource": "limits.cpu"}})), true),
            (projected(field("metadata.namespace")), false),
            (projected(field("metadata.annotations['a']")), true),
            (json!({"name": "v", "emptyDir": {}}), false),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "volumes": [volume]}})).unwrap();
            assert_eq!(shows_metadata(&pod), expect, "{volume}");
        }
    }
}
