//! What to do next for a pod: a pure function of its specification, what the engine has, what is remembered, and the
//! time. No clock, no call, no choice is left to the executor.
//!
//! A plan is one layer deep: after its steps the worker looks again and plans again, until there is nothing to do but
//! wait. Everything remembered may be lost (a restart of the agent) at the price of a shorter back-off, never of a
//! needless restart.

mod back_off;
mod init;
mod restart;
mod sandbox;

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Pod, ResourceRequirements, ResourceStatus};

pub use back_off::{BackOff, MAX_BACK_OFF, is_over};
pub use restart::{changed, resized, restarts, round};

use super::observed::{Container, Observed, State};
use crate::spec::{self, Kind, names};
use back_off::{END_TOLD, go_duration};

/// What probes have found about one container.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Probed {
    /// The startup probe has passed; `None` without one or before a verdict.
    pub started: Option<bool>,
    pub ready: Option<bool>,
    /// The liveness probe has given up.
    pub dead: bool,
    /// The startup probe has given up.
    pub never_started: bool,
}

/// What a worker remembers between looks.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// By container name.
    pub back_off: HashMap<String, BackOff>,
    /// By container id.
    pub probed: HashMap<String, Probed>,
    /// Containers whose last start failed: until when not to try again, with reason and message.
    pub failed: BTreeMap<String, Failed>,
    /// The same for the sandbox and the volumes.
    pub sandbox_failed: Option<Failed>,
    /// The resources each running container has, by id, as far as this agent gave or found them.
    pub applied: HashMap<String, ResourceRequirements>,
    /// The same of the pod as a whole.
    pub applied_whole: Option<ResourceRequirements>,
    /// The health of the devices plugins gave the containers, by container name.
    pub devices: BTreeMap<String, Vec<ResourceStatus>>,
    /// Why a resize that is asked for cannot be made now.
    pub resize_pending: Option<Waiting>,
    /// One was granted and is not yet made.
    pub resizing: bool,
    /// The generation of the pod that the one under way was granted to.
    pub resize_since: Option<i64>,
    /// The generation whose wish was judged last.
    pub resize_judged: i64,
    /// What went wrong with one that was begun.
    pub resize_error: Option<Waiting>,
}

/// A start that did not work out.
#[derive(Clone, Debug, PartialEq)]
pub struct Failed {
    pub reason: String,
    pub message: String,
    pub retry_at: Timestamp,
}

/// Why a container is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Liveness,
    Startup,
    /// Its specification changed.
    Changed,
    /// The engine lost track of it.
    Unknown,
    /// An init container's pod moved on without it, or its sandbox is gone.
    Superseded,
    /// Its resources changed in a way it asked to be restarted for.
    Resized,
    /// Another container's exit restarts them all.
    Restarted,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Stops a sandbox and whatever runs in it.
    StopSandbox {
        id: String,
    },
    /// Makes the volumes and the sandbox.
    CreateSandbox {
        attempt: u32,
    },
    Kill {
        id: String,
        name: String,
        why: Why,
    },
    /// Forgets a container that was created and never started.
    Remove {
        id: String,
    },
    /// Gives a running container the resources of its specification.
    Resize {
        id: String,
        name: String,
    },
    /// Gives the pod as a whole the resources of its specification.
    ResizeWhole,
    Start {
        name: String,
        kind: Kind,
        restart_count: u32,
        finished: Option<Timestamp>,
    },
}

/// Why a container is not running although it should.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

/// What the pod needs now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// When to look again although nothing happened.
    pub wake: Option<Timestamp>,
    /// By container name.
    pub waiting: BTreeMap<String, Waiting>,
    /// No container will run again: the pod is over.
    pub finished: bool,
}

struct Planner<'a> {
    pod: &'a Pod,
    seen: &'a Observed,
    memory: &'a Memory,
    now: Timestamp,
    /// Containers made before this are of an earlier round.
    round: Option<i64>,
    out: Plan,
}

impl Planner<'_> {
    fn is_current(&self, container: &Container) -> bool {
        self.round.is_none_or(|since| container.created_at > since)
    }

    /// Ends what runs on from an earlier round; true while there was any.
    fn end_earlier_round(&mut self) -> bool {
        let stale = self.seen.running().filter(|c| !self.is_current(c));
        let stale = stale.filter(|c| spec::all_containers(self.pod).any(|(_, s)| s.name == c.name));
        let kills = stale.map(|c| Step::Kill { id: c.id.clone(), name: c.name.clone(), why: Why::Restarted });
        self.out.steps.extend(kills.collect::<Vec<_>>());
        !self.out.steps.is_empty()
    }

    fn wake(&mut self, at: Timestamp) {
        self.out.wake = Some(self.out.wake.map_or(at, |w| w.min(at)));
    }

    fn wait(&mut self, name: &str, reason: &str, message: &str) {
        self.out.waiting.insert(name.into(), Waiting { reason: reason.into(), message: message.into() });
    }

    /// Starts a container, unless it has to wait.
    fn start(&mut self, kind: Kind, container: &Spec, last: Option<&Container>) {
        let name = &container.name;
        let finished = last.map(|l| l.finished_at.unwrap_or(self.now));
        if let (Some(finished), Some(back_off)) = (finished, self.memory.back_off.get(name))
            && let Some(until) = back_off.until(finished)
            && !is_over(until, self.now)
        {
            let message = format!(
                "back-off {} restarting failed container={name} pod={}",
                go_duration(back_off.delay),
                spec::described(self.pod)
            );
            // Its end is told first: who looks now and then would never see it otherwise.
            let told = finished.checked_add(END_TOLD).map_or(until, |told| told.min(until));
            if told > self.now {
                return self.wake(told);
            }
            self.wait(name, "CrashLoopBackOff", &message);
            return self.wake(until);
        }
        if let Some(failed) = self.memory.failed.get(name) {
            self.wait(name, &failed.reason, &failed.message);
            if !is_over(failed.retry_at, self.now) {
                return self.wake(failed.retry_at);
            }
        }
        let restart_count = last.map_or(0, |l| l.attempt + 1);
        self.out.steps.push(Step::Start { name: name.clone(), kind, restart_count, finished });
    }

    /// A running container: kills it when its probes or its specification say so. True while it may stay.
    fn keep(&mut self, container: &Spec, running: &Container) -> bool {
        let probed = self.memory.probed.get(&running.id).copied().unwrap_or_default();
        let why = if !running.hash.is_empty() && running.hash != names::container_hash(container) {
            Why::Changed
        } else if probed.dead {
            Why::Liveness
        } else if probed.never_started {
            Why::Startup
        } else if running.state == State::Unknown {
            Why::Unknown
        } else {
            match self.memory.applied.get(&running.id).and_then(|a| resized(container, a)) {
                None => return true,
                Some(true) => Why::Resized,
                Some(false) => {
                    self.out.steps.push(Step::Resize { id: running.id.clone(), name: container.name.clone() });
                    return true;
                }
            }
        };
        self.out.steps.push(Step::Kill { id: running.id.clone(), name: container.name.clone(), why });
        if matches!(why, Why::Changed | Why::Resized) {
            self.out.steps.push(Step::Start {
                name: container.name.clone(),
                kind: Kind::Main,
                restart_count: running.attempt + 1,
                finished: Some(self.now),
            });
        }
        false
    }

    /// Whether a running container has started in the sense of its startup probe.
    fn has_started(&self, container: &Spec, running: &Container) -> bool {
        container.startup_probe.is_none() || self.memory.probed.get(&running.id).and_then(|p| p.started) == Some(true)
    }

    fn main(&mut self) {
        let mut alive = false;
        for container in &spec::spec(self.pod).containers {
            let last = self.seen.history(&container.name).find(|c| c.state != State::Created);
            match last {
                Some(c) if matches!(c.state, State::Running | State::Unknown) => {
                    self.keep(container, c);
                    alive = true;
                }
                Some(c) if self.is_current(c) && !restarts(self.pod, Kind::Main, container, c.exit_code) => {}
                last => {
                    self.start(Kind::Main, container, last);
                    alive = true;
                }
            }
        }
        self.out.finished = !alive;
    }

    fn ephemeral(&mut self) {
        for container in spec::spec(self.pod).ephemeral_containers.iter().flatten() {
            if self.seen.latest(&container.name).is_none() {
                self.start(Kind::Ephemeral, &spec::as_container(container), None);
            }
        }
    }
}

/// Whether the pod as a whole has other resources than it asks for.
pub fn whole_changed(pod: &Pod, memory: &Memory) -> bool {
    let wanted = spec::resources::pod_level(pod);
    let both = memory.applied_whole.as_ref().zip(wanted);
    both.is_some_and(|(applied, wanted)| changed(wanted, applied).next().is_some())
}

/// What to do now.
pub fn plan(pod: &Pod, seen: &Observed, memory: &Memory, now: Timestamp) -> Plan {
    let mut planner = Planner { pod, seen, memory, now, round: round(pod, seen), out: Plan::default() };
    let usable = seen.ready_sandbox().filter(|s| {
        let others = seen.sandboxes.iter().skip(1).any(|o| o.ready);
        !others && s.host_network == spec::host_network(pod) && (s.host_network || !s.ips.is_empty())
    });
    let Some(sandbox) = usable else {
        planner.sandbox();
        return planner.out;
    };
    if planner.end_earlier_round() {
        return planner.out;
    }
    for stale in seen.containers.iter().filter(|c| c.state == State::Created) {
        planner.out.steps.push(Step::Remove { id: stale.id.clone() });
    }
    if whole_changed(pod, memory) {
        planner.out.steps.push(Step::ResizeWhole);
    }
    planner.ephemeral();
    if planner.init(&sandbox.id) {
        planner.main();
    }
    if planner.out.finished && !planner.out.steps.is_empty() {
        // An ephemeral container cannot keep a pod alive.
        planner.out.steps.clear();
    }
    planner.out
}

#[cfg(test)]
mod tests;
