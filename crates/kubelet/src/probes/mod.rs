//! Probes: one task for each running container that has any; its findings wake the pod's worker.
//!
//! The startup probe gates the other two. A verdict needs its threshold of equal results in a row, as upstream counts
//! them. This room knows how to ask and count, not what follows from an answer.

pub mod ask;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Pod, PodStatus, Probe};
use tokio_util::task::AbortOnDropHandle;

use crate::agent::Context;
use crate::metrics::families;
use crate::pods::inbox::Inbox;
use crate::pods::observed::{Observed, State};
use crate::pods::plan::Probed;
use crate::spec;
use ask::{Answer, Target};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Startup,
    Liveness,
    Readiness,
}

impl Which {
    fn word(self) -> &'static str {
        match self {
            Which::Startup => "Startup",
            Which::Liveness => "Liveness",
            Which::Readiness => "Readiness",
        }
    }
}

type Results = Arc<Mutex<HashMap<String, Probed>>>;

/// The probes of one pod.
#[derive(Default)]
pub struct Probes {
    tasks: HashMap<String, AbortOnDropHandle<()>>,
    results: Results,
    ending: Arc<AtomicBool>,
    /// The first look after a start of the agent takes over what was known.
    adopted: bool,
}

struct Prober {
    context: Arc<Context>,
    pod: Arc<Pod>,
    container: Spec,
    id: String,
    ips: Vec<String>,
    started_at: Timestamp,
    results: Results,
    inbox: Arc<Inbox>,
    ending: Arc<AtomicBool>,
}

impl Probes {
    /// What is known, by container id.
    pub fn results(&self) -> HashMap<String, Probed> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The pod is ending: only readiness is still asked.
    pub fn ending(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// Starts probes for containers that came, ends those of containers that went.
    pub fn follow(
        &mut self,
        context: &Arc<Context>,
        pod: &Arc<Pod>,
        seen: &Observed,
        before: &PodStatus,
        inbox: &Arc<Inbox>,
    ) {
        let running: HashSet<&str> =
            seen.containers.iter().filter(|c| c.state == State::Running).map(|c| c.id.as_str()).collect();
        self.tasks.retain(|id, _| running.contains(id.as_str()));
        {
            let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
            results.retain(|id, _| seen.containers.iter().any(|c| c.id == *id));
            if !std::mem::replace(&mut self.adopted, true) {
                let lists = [&before.container_statuses, &before.init_container_statuses];
                for status in lists.into_iter().flatten().flatten() {
                    let id = status.container_id.as_deref().and_then(|i| i.split_once("://")).map_or("", |(_, id)| id);
                    if running.contains(id) {
                        results.insert(
                            id.into(),
                            Probed { started: status.started, ready: Some(status.ready), ..Default::default() },
                        );
                    }
                }
            }
        }
        for container in seen.containers.iter().filter(|c| c.state == State::Running) {
            if self.tasks.contains_key(&container.id) {
                continue;
            }
            let Some((kind, spec)) = spec::all_containers(pod).find(|(_, s)| s.name == container.name) else {
                continue;
            };
            let probed =
                spec.startup_probe.is_some() || spec.liveness_probe.is_some() || spec.readiness_probe.is_some();
            if !probed || kind == spec::Kind::Init {
                continue;
            }
            let prober = Prober {
                context: context.clone(),
                pod: pod.clone(),
                container: spec.clone(),
                id: container.id.clone(),
                ips: if spec::host_network(pod) {
                    context.host_ips.iter().map(ToString::to_string).collect()
                } else {
                    seen.ready_sandbox().map(|s| s.ips.clone()).unwrap_or_default()
                },
                started_at: container.started_at.unwrap_or_else(Timestamp::now),
                results: self.results.clone(),
                inbox: inbox.clone(),
                ending: self.ending.clone(),
            };
            self.tasks
                .insert(container.id.clone(), AbortOnDropHandle::new(tokio::spawn(async move { prober.run().await })));
        }
    }
}

impl Prober {
    fn note(&self, change: impl FnOnce(&mut Probed)) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = results.entry(self.id.clone()).or_default();
        let before = *entry;
        change(entry);
        if before != *entry {
            drop(results);
            self.inbox.wake();
        }
    }

    async fn run(self) {
        if let Some(probe) = &self.container.startup_probe {
            let known =
                self.results.lock().unwrap_or_else(PoisonError::into_inner).get(&self.id).and_then(|p| p.started);
            if known != Some(true) {
                self.ask_until(Which::Startup, probe).await;
            }
        }
        let liveness = async {
            if let Some(probe) = &self.container.liveness_probe {
                self.ask_until(Which::Liveness, probe).await;
            }
        };
        let readiness = async {
            if let Some(probe) = &self.container.readiness_probe {
                self.ask_until(Which::Readiness, probe).await;
            }
        };
        tokio::join!(liveness, readiness);
    }

    /// Asks at the probe's pace; returns when there is nothing more to ask.
    async fn ask_until(&self, which: Which, probe: &Probe) {
        let seconds =
            |v: Option<i32>, default: i32| Duration::from_secs(v.filter(|v| *v > 0).unwrap_or(default) as u64);
        let period = seconds(probe.period_seconds, 10);
        let (timeout, delay) = (seconds(probe.timeout_seconds, 1), probe.initial_delay_seconds.unwrap_or(0).max(0));
        let (need_good, need_bad) =
            (probe.success_threshold.unwrap_or(1).max(1), probe.failure_threshold.unwrap_or(3).max(1));
        let already = Timestamp::now().duration_since(self.started_at);
        if let Ok(rest) = Duration::try_from(jiff::SignedDuration::from_secs(delay.into()) - already) {
            tokio::time::sleep(rest).await;
        }
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut streak, mut last) = (0, None);
        let target = Target { context: &self.context, container: &self.container, id: &self.id, ips: &self.ips };
        loop {
            ticks.tick().await;
            if which != Which::Readiness && self.ending.load(Ordering::Relaxed) {
                return;
            }
            let began = std::time::Instant::now();
            let answer = ask::probe(&target, probe, timeout).await;
            let result = match &answer {
                Answer::Good | Answer::GoodBut(_) => "successful",
                Answer::Bad(_) => "failed",
                Answer::Unsure(_) => "unknown",
            };
            let (namespace, pod, uid) = (spec::namespace(&self.pod), spec::name(&self.pod), spec::uid(&self.pod));
            let of = [self.container.name.as_str(), namespace, pod];
            let metrics = &self.context.metrics;
            metrics.count(&families::PROBE_RESULTS, &[of[0], of[1], of[2], uid, which.word(), result]);
            metrics.since(&families::PROBE_DURATION, &[of[0], of[1], of[2], which.word()], began);
            let good = match &answer {
                Answer::Good => true,
                Answer::GoodBut(what) => {
                    let about = self.context.events.about_named(&self.pod, &self.container.name);
                    self.context.events.warning(
                        &about,
                        "ProbeWarning",
                        &format!("{} probe warning: {what}", which.word()),
                    );
                    true
                }
                Answer::Unsure(why) => {
                    // Neither counts: the question could not be put. While the pod ends that is no news.
                    if self.ending.load(Ordering::Relaxed) {
                        continue;
                    }
                    let about = self.context.events.about_named(&self.pod, &self.container.name);
                    self.context.events.warning(&about, "Unhealthy", &format!("{} probe errored: {why}", which.word()));
                    continue;
                }
                Answer::Bad(why) => {
                    let about = self.context.events.about_named(&self.pod, &self.container.name);
                    self.context.events.warning(&about, "Unhealthy", &format!("{} probe failed: {why}", which.word()));
                    false
                }
            };
            streak = if last == Some(good) { streak + 1 } else { 1 };
            last = Some(good);
            if streak < if good { need_good } else { need_bad } {
                continue;
            }
            match (which, good) {
                (Which::Readiness, good) => self.note(|p| p.ready = Some(good)),
                (Which::Startup, true) => {
                    self.note(|p| p.started = Some(true));
                    return;
                }
                (Which::Startup, false) => {
                    self.note(|p| p.never_started = true);
                    return std::future::pending().await;
                }
                (Which::Liveness, true) => {}
                (Which::Liveness, false) => {
                    self.note(|p| p.dead = true);
                    // The container is on its way out; a new one gets a new task.
                    return;
                }
            }
        }
    }
}
