//! The life of a simulated pod: what its status should be at a moment, and when that changes next.
//!
//! A pod's annotations say how it lives; durations are written `500ms`, `2s`, `5m`, `1h`:
//!
//! | annotation | meaning | otherwise |
//! |---|---|---|
//! | `simulated.nauplius.dev/start-after` | from its binding until it runs | [`Schedule::start_after`] |
//! | `simulated.nauplius.dev/ready-after` | from then until it is ready | at once |
//! | `simulated.nauplius.dev/run-for` | from its start until its containers end | pods of Jobs: [`Schedule::jobs_run_for`]; others run on |
//! | `simulated.nauplius.dev/exit-code` | with which they end | 0 |
//! | `simulated.nauplius.dev/stop-after` | how much of its grace period it takes to end when deleted | none |
//!
//! Containers that end are started again as `restartPolicy` asks, without back-off.

use std::time::Duration;

use client::time::rfc3339;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodCondition};
use serde_json::{Map, Value, json};

/// What the annotations of simulated pods begin with.
pub const PREFIX: &str = "simulated.nauplius.dev/";
/// Containers that restart run at least this long, whatever their annotation says: each restart is a write.
const LEAST_RUN: Duration = Duration::from_secs(1);

/// How pods live whose annotations do not say.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub start_after: Duration,
    pub jobs_run_for: Duration,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { start_after: Duration::ZERO, jobs_run_for: Duration::from_secs(1) }
    }
}

/// What is to be done about a pod now.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing until then, if ever.
    Wait(Option<Timestamp>),
    /// Write this status, and look again then.
    Write { status: Value, again: Option<Timestamp> },
    /// It has ended: remove it for good.
    Remove,
}

/// `500ms`, `2s`, `5m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("{text:?} is not a duration such as 500ms, 2s, 5m or 1h")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a duration such as 500ms, 2s, 5m or 1h"))?;
    number
        .checked_mul(milliseconds)
        .filter(|ms| *ms <= 10 * 365 * 86_400_000)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is longer than ten years"))
}

/// A pod's annotations and the defaults, read.
struct Life {
    start_after: Duration,
    ready_after: Duration,
    run_for: Option<Duration>,
    exit_code: i32,
    stop_after: Duration,
}

impl Life {
    fn of(pod: &Pod, schedule: &Schedule) -> Result<Self, String> {
        let annotation = |name: &str| {
            let annotations = pod.metadata.annotations.as_ref()?;
            annotations.get(&format!("{PREFIX}{name}")).map(String::as_str)
        };
        let time = |name: &str| {
            let read = |text| duration(text).map_err(|why| format!("annotation {PREFIX}{name}: {why}"));
            annotation(name).map(read).transpose()
        };
        let of_job =
            pod.metadata.owner_references.iter().flatten().any(|o| o.kind == "Job" && o.controller == Some(true));
        let exit_code = match annotation("exit-code") {
            None => 0,
            Some(text) => text
                .parse()
                .ok()
                .filter(|c| (0..=255).contains(c))
                .ok_or_else(|| format!("annotation {PREFIX}exit-code: {text:?} is not a number from 0 to 255"))?,
        };
        Ok(Self {
            start_after: time("start-after")?.unwrap_or(schedule.start_after),
            ready_after: time("ready-after")?.unwrap_or_default(),
            run_for: time("run-for")?.or(of_job.then_some(schedule.jobs_run_for)),
            exit_code,
            stop_after: time("stop-after")?.unwrap_or_default(),
        })
    }
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// Whether no container of the pod will run again.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

fn after(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// Whether containers are started again after they ended with this code.
fn restarts(pod: &Pod, exit_code: i32) -> bool {
    match pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) {
        Some("Never") => false,
        Some("OnFailure") => exit_code != 0,
        _ => true,
    }
}

/// A pod's status in the making.
struct Draft<'a> {
    pod: &'a Pod,
    host: &'a str,
    address: &'a str,
    now: Timestamp,
}

/// How all containers are.
#[derive(Clone, Copy)]
enum State<'a> {
    Waiting { reason: &'a str, message: &'a str },
    Running { since: Timestamp, ready: bool, restarts: i32, last: Option<(Timestamp, i32)> },
    Ended { since: Option<Timestamp>, at: Timestamp, exit_code: i32 },
}

impl Draft<'_> {
    fn containers(&self) -> &[Container] {
        self.pod.spec.as_ref().map_or(&[], |s| s.containers.as_slice())
    }

    fn known(&self, name: &str) -> Option<&ContainerStatus> {
        let status = self.pod.status.as_ref()?;
        let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        all.into_iter().find(|c| c.name == name)
    }

    fn id(&self, name: &str) -> String {
        format!("simulated://{}/{name}", self.pod.metadata.uid.as_deref().unwrap_or_default())
    }

    fn ended(&self, name: &str, since: Option<Timestamp>, at: Timestamp, exit_code: i32) -> Value {
        let reason = if exit_code == 0 { "Completed" } else { "Error" };
        let mut out =
            json!({"exitCode": exit_code, "reason": reason, "finishedAt": rfc3339(at), "containerID": self.id(name)});
        out["startedAt"] = since.map_or(Value::Null, |s| rfc3339(s).into());
        json!({"terminated": out})
    }

    fn container(&self, container: &Container, state: State<'_>) -> Value {
        let name = &container.name;
        let before = self.known(name).map_or(0, |c| c.restart_count);
        let (state, ready, started, restarts, last) = match state {
            State::Waiting { reason, message } => {
                let mut waiting = json!({"reason": reason});
                if !message.is_empty() {
                    waiting["message"] = message.into();
                }
                (json!({"waiting": waiting}), false, false, before, None)
            }
            State::Running { since, ready, restarts, last } => {
                (json!({"running": {"startedAt": rfc3339(since)}}), ready, true, before.max(restarts), last)
            }
            State::Ended { since, at, exit_code } => {
                (self.ended(name, since, at, exit_code), false, false, before, None)
            }
        };
        let last = last.map_or_else(|| json!({}), |(at, code)| self.ended(name, None, at, code));
        let mut out = json!({
            "name": name, "image": container.image, "imageID": "", "ready": ready, "started": started,
            "restartCount": restarts, "state": state, "lastState": last,
        });
        if started {
            out["containerID"] = self.id(name).into();
        }
        out
    }

    /// Init containers have done their work as soon as the others run; those that restart always run beside them.
    fn init_container(&self, container: &Container, state: State<'_>) -> Value {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        match state {
            State::Running { since, .. } if !sidecar => {
                let mut out = self.container(container, State::Ended { since: Some(since), at: since, exit_code: 0 });
                out["ready"] = true.into();
                out
            }
            State::Running { since, .. } => {
                self.container(container, State::Running { since, ready: true, restarts: 0, last: None })
            }
            State::Ended { since, at, .. } => self.container(container, State::Ended { since, at, exit_code: 0 }),
            waiting => self.container(container, waiting),
        }
    }

    fn gates_hold(&self) -> bool {
        let gates = self.pod.spec.iter().flat_map(|s| s.readiness_gates.iter().flatten());
        let conditions: &[PodCondition] =
            self.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        gates.into_iter().all(|g| conditions.iter().any(|c| c.type_ == g.condition_type && c.status == "True"))
    }

    /// The conditions: a kubelet's own, then everybody else's as they are.
    fn conditions(&self, state: State<'_>) -> Vec<Value> {
        let running = !matches!(state, State::Waiting { .. });
        let (ready, reason) = match state {
            State::Running { ready, .. } => (ready, "ContainersNotReady"),
            State::Ended { exit_code: 0, .. } => (false, "PodCompleted"),
            State::Ended { .. } => (false, "PodFailed"),
            State::Waiting { .. } => (false, "ContainersNotReady"),
        };
        let gated = ready && !self.gates_hold();
        let own = [
            ("PodReadyToStartContainers", matches!(state, State::Running { .. }), "", ""),
            ("Initialized", running, "", ""),
            if gated {
                ("Ready", false, "ReadinessGatesNotReady", "the status of pod readiness gate is not \"True\"")
            } else {
                ("Ready", ready, if ready { "" } else { reason }, "")
            },
            ("ContainersReady", ready, if ready { "" } else { reason }, ""),
        ];
        let have: &[PodCondition] = self.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let mut out = Vec::with_capacity(have.len() + own.len());
        for (type_, holds, reason, message) in own {
            let status = if holds { "True" } else { "False" };
            let same = have.iter().find(|c| c.type_ == type_ && c.status == status);
            let since = same.and_then(|c| c.last_transition_time.as_ref()).map_or(self.now, |t| t.0);
            let mut condition =
                json!({"type": type_, "status": status, "lastTransitionTime": rfc3339(since), "lastProbeTime": null});
            for (field, text) in [("reason", reason), ("message", message)].into_iter().filter(|f| !f.1.is_empty()) {
                condition[field] = text.into();
            }
            out.push(condition);
        }
        let others = have.iter().filter(|c| own.iter().all(|(type_, ..)| *type_ != c.type_));
        out.extend(others.filter_map(|c| serde_json::to_value(c).ok()));
        out
    }

    fn status(&self, phase: &str, state: State<'_>) -> Value {
        let start = self.pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(self.now, |t| t.0);
        let mut out = Map::new();
        out.insert("phase".into(), phase.into());
        out.insert("startTime".into(), rfc3339(start).into());
        out.insert("conditions".into(), self.conditions(state).into());
        out.insert("hostIP".into(), self.host.into());
        out.insert("hostIPs".into(), json!([{"ip": self.host}]));
        if !matches!(state, State::Waiting { .. }) {
            out.insert("podIP".into(), self.address.into());
            out.insert("podIPs".into(), json!([{"ip": self.address}]));
        }
        let containers: Vec<Value> = self.containers().iter().map(|c| self.container(c, state)).collect();
        out.insert("containerStatuses".into(), containers.into());
        let init = self.pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
        if !init.is_empty() {
            let statuses: Vec<Value> = init.iter().map(|c| self.init_container(c, state)).collect();
            out.insert("initContainerStatuses".into(), statuses.into());
        }
        Value::Object(out)
    }
}

/// When the containers started, if they run.
fn running_since(pod: &Pod) -> Option<Timestamp> {
    let first = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    Some(first.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "ContainersReady" && c.status == "True")
}

/// How a pod that is being deleted goes.
fn end(draft: &Draft<'_>, life: &Life, deletion: Timestamp) -> Step {
    let pod = draft.pod;
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0).max(0);
    let finalizers = pod.metadata.finalizers.as_ref().is_some_and(|f| !f.is_empty());
    let grace = Duration::from_secs(grace as u64);
    let asked = deletion.checked_sub(grace).unwrap_or(deletion);
    let at = after(asked, life.stop_after.min(grace));
    let held = is_finished(pod) || running_since(pod).is_none();
    if !held && draft.now < at {
        return Step::Wait(Some(at));
    }
    // Who holds a pod by a finalizer wants to know how it ended.
    if finalizers && !is_finished(pod) {
        let exit_code = if running_since(pod).is_some() { life.exit_code } else { 137 };
        let phase = if exit_code == 0 { "Succeeded" } else { "Failed" };
        let state = State::Ended { since: running_since(pod), at: draft.now, exit_code };
        return Step::Write { status: draft.status(phase, state), again: None };
    }
    if finalizers && grace.is_zero() { Step::Wait(None) } else { Step::Remove }
}

/// What is to be done about a pod now. `address` is the pod's own.
pub fn step(pod: &Pod, host: &str, address: &str, schedule: &Schedule, now: Timestamp) -> Step {
    let draft = Draft { pod, host, address, now };
    let life = Life::of(pod, schedule);
    if let Some(deletion) = &pod.metadata.deletion_timestamp {
        let life = life.unwrap_or(Life {
            start_after: Duration::ZERO,
            ready_after: Duration::ZERO,
            run_for: None,
            exit_code: 0,
            stop_after: Duration::ZERO,
        });
        return end(&draft, &life, deletion.0);
    }
    if is_finished(pod) {
        return Step::Wait(None);
    }
    let life = match life {
        Ok(life) => life,
        Err(why) => {
            let said = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref()).is_some_and(|c| !c.is_empty());
            let state = State::Waiting { reason: "CreateContainerConfigError", message: &why };
            return if said {
                Step::Wait(None)
            } else {
                Step::Write { status: draft.status("Pending", state), again: None }
            };
        }
    };
    let Some(since) = running_since(pod) else { return start(&draft, &life) };
    let ready_at = after(since, life.ready_after);
    let mut restarts_so_far =
        pod.status.as_ref().and_then(|s| s.container_statuses.as_ref()?.first().map(|c| c.restart_count)).unwrap_or(0);
    let again = restarts(pod, life.exit_code);
    let ends = life.run_for.map(|d| after(since, if again { d.max(LEAST_RUN) } else { d }));
    if let Some(at) = ends.filter(|at| *at <= now) {
        if !again {
            let phase = if life.exit_code == 0 { "Succeeded" } else { "Failed" };
            let state = State::Ended { since: Some(since), at: now, exit_code: life.exit_code };
            return Step::Write { status: draft.status(phase, state), again: None };
        }
        restarts_so_far += 1;
        let ready = life.ready_after.is_zero();
        let state = State::Running { since: now, ready, restarts: restarts_so_far, last: Some((at, life.exit_code)) };
        return Step::Write { status: draft.status("Running", state), again: None };
    }
    // What is ready at once stays so, whoever sets the clock.
    let ready = life.ready_after.is_zero() || ready_at <= now;
    let wanted = ready && draft.gates_hold();
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let says_ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    if is_ready(pod) != ready || says_ready != wanted {
        let state = State::Running { since, ready, restarts: restarts_so_far, last: None };
        return Step::Write { status: draft.status("Running", state), again: None };
    }
    Step::Wait(ends.into_iter().chain((!ready).then_some(ready_at)).min())
}

/// The pod is new here: it runs now, or waits first.
fn start(draft: &Draft<'_>, life: &Life) -> Step {
    let begun = draft.pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
    let at = after(begun.unwrap_or(draft.now), life.start_after);
    if at > draft.now {
        let state = State::Waiting { reason: "ContainerCreating", message: "" };
        return match begun {
            Some(_) => Step::Wait(Some(at)),
            None => Step::Write { status: draft.status("Pending", state), again: Some(at) },
        };
    }
    let ready = life.ready_after.is_zero();
    let state = State::Running { since: draft.now, ready, restarts: 0, last: None };
    Step::Write { status: draft.status("Running", state), again: None }
}

#[cfg(test)]
mod tests;
