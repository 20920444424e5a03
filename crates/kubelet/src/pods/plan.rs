//! What to do next for a pod: a pure function of its specification, what the engine has, what is remembered, and the
//! time. No clock, no call, no choice is left to the executor.
//!
//! A plan is one layer deep: after its steps the worker looks again and plans again, until there is nothing to do but
//! wait. Everything remembered may be lost (a restart of the agent) at the price of a shorter back-off, never of a
//! needless restart.

use std::collections::{BTreeMap, HashMap};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as Spec, Pod, ResourceRequirements, ResourceStatus};

use super::observed::{Container, Observed, State};
use crate::quantity;
use crate::spec::{self, Kind, names};

/// The first wait before a restart; as upstream.
const FIRST_BACK_OFF: SignedDuration = SignedDuration::from_secs(10);
/// The longest, unless the node is told another.
pub const MAX_BACK_OFF: SignedDuration = SignedDuration::from_secs(300);

/// The wait a container earned by its last restart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BackOff {
    pub delay: SignedDuration,
    /// When it was earned.
    pub at: Timestamp,
}

impl BackOff {
    /// The wait after one more restart; a container that ran long enough starts over.
    pub fn next(last: Option<BackOff>, finished: Timestamp, now: Timestamp, most: SignedDuration) -> BackOff {
        let delay = match last {
            Some(last) if !last.expired(finished) => (last.delay * 2).min(most),
            _ => FIRST_BACK_OFF.min(most),
        };
        BackOff { delay, at: now }
    }

    fn expired(&self, finished: Timestamp) -> bool {
        finished.duration_since(self.at) > MAX_BACK_OFF * 2
    }

    /// Until when a container that finished then has to wait.
    fn until(&self, finished: Timestamp) -> Option<Timestamp> {
        if self.expired(finished) { None } else { finished.checked_add(self.delay).ok() }
    }
}

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
    /// The health of the devices plugins gave the containers, by container name.
    pub devices: BTreeMap<String, Vec<ResourceStatus>>,
    /// Why a resize that is asked for cannot be made now.
    pub resize_pending: Option<Waiting>,
    /// One was granted and is not yet made.
    pub resizing: bool,
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

/// What the first rule that speaks of this exit wants done.
fn matched_rule(container: &Spec, exit_code: i32) -> Option<&str> {
    container.restart_policy_rules.iter().flatten().find_map(|rule| {
        let codes = rule.exit_codes.as_ref()?;
        let listed = codes.values.as_ref().is_some_and(|v| v.contains(&exit_code));
        (listed == (codes.operator == "In")).then_some(rule.action.as_str())
    })
}

/// Since when all containers have to run anew: the last exit that asked for it, in the engine's nanoseconds. What was
/// made before is of an earlier round: it ends if it still runs, and is started again whatever its policy.
pub fn round(pod: &Pod, seen: &Observed) -> Option<i64> {
    let asks = |c: &&Container| {
        c.state == State::Exited
            && spec::all_containers(pod)
                .any(|(_, s)| s.name == c.name && matched_rule(s, c.exit_code) == Some("RestartAllContainers"))
    };
    let exits = seen.containers.iter().filter(asks).filter_map(|c| c.finished_at);
    exits.max().and_then(|at| i64::try_from(at.as_nanosecond()).ok())
}

/// Whether a dead container is to be run again.
pub fn restarts(pod: &Pod, kind: Kind, container: &Spec, exit_code: i32) -> bool {
    if kind == Kind::Ephemeral {
        return false;
    }
    if kind == Kind::Sidecar {
        return true;
    }
    if matched_rule(container, exit_code).is_some() {
        return true;
    }
    let policy = container.restart_policy.as_deref().unwrap_or_else(|| spec::restart_policy(pod));
    match (policy, kind) {
        ("Never", _) => false,
        // An init container that succeeded is done whatever the policy.
        ("OnFailure", _) | (_, Kind::Init) => exit_code != 0,
        _ => true,
    }
}

/// Whether cpu or memory differ between what a container has and what it asks for, and whether it asked to be restarted
/// when they do.
pub fn resized(container: &Spec, applied: &ResourceRequirements) -> Option<bool> {
    let wanted = container.resources.clone().unwrap_or_default();
    let differs = |name: &str| {
        let of = |r: &ResourceRequirements| {
            (quantity::amount(r.requests.as_ref(), name), quantity::amount(r.limits.as_ref(), name))
        };
        of(&wanted) != of(applied)
    };
    let restart = |name: &str| {
        container
            .resize_policy
            .iter()
            .flatten()
            .any(|p| p.resource_name == name && p.restart_policy == "RestartContainer")
    };
    let changed: Vec<&str> = ["cpu", "memory"].into_iter().filter(|name| differs(name)).collect();
    (!changed.is_empty()).then(|| changed.into_iter().any(restart))
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
            && until > self.now
        {
            let message = format!(
                "back-off {} restarting failed container={name} pod={}",
                go_duration(back_off.delay),
                spec::described(self.pod)
            );
            self.wait(name, "CrashLoopBackOff", &message);
            return self.wake(until);
        }
        if let Some(failed) = self.memory.failed.get(name) {
            self.wait(name, &failed.reason, &failed.message);
            if failed.retry_at > self.now {
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

    /// Sees to init containers; true when main containers may run.
    fn init(&mut self, sandbox: &str) -> bool {
        let inits: Vec<_> = spec::init_containers(self.pod).collect();
        if inits.is_empty() {
            return true;
        }
        let seen = self.seen;
        let round = self.round;
        let here = |name: &str| {
            seen.containers.iter().find(|c| {
                c.name == name
                    && c.sandbox_id == sandbox
                    && c.state != State::Created
                    && round.is_none_or(|since| c.created_at > since)
            })
        };
        // Records of finished init containers may have been collected: what started later proves them done.
        let main_began = spec::spec(self.pod).containers.iter().any(|c| here(&c.name).is_some());
        let furthest = inits.iter().rposition(|(_, c)| here(&c.name).is_some());
        for (at, (kind, container)) in inits.iter().enumerate() {
            let current = here(&container.name);
            let last = seen.latest(&container.name);
            let passed = main_began || furthest.is_some_and(|f| f > at);
            match (kind, current) {
                (Kind::Sidecar, Some(c)) if matches!(c.state, State::Running | State::Unknown) => {
                    let kept = self.keep(container, c);
                    if !main_began && (!kept || !self.has_started(container, c)) {
                        return false;
                    }
                }
                (Kind::Sidecar, _) => {
                    self.start(*kind, container, last);
                    if !main_began {
                        return false;
                    }
                }
                (_, _) if passed && current.is_none() => {}
                (_, None) => {
                    self.start(*kind, container, last);
                    return false;
                }
                (_, Some(c)) => match c.state {
                    State::Running if main_began => {
                        self.out.steps.push(Step::Kill {
                            id: c.id.clone(),
                            name: c.name.clone(),
                            why: Why::Superseded,
                        });
                    }
                    State::Running | State::Created => return false,
                    State::Unknown => {
                        self.out.steps.push(Step::Kill { id: c.id.clone(), name: c.name.clone(), why: Why::Unknown });
                        return false;
                    }
                    State::Exited if c.exit_code == 0 || passed => {}
                    State::Exited if restarts(self.pod, *kind, container, c.exit_code) => {
                        self.start(*kind, container, Some(c));
                        return false;
                    }
                    State::Exited => {
                        self.out.finished = true;
                        return false;
                    }
                },
            }
        }
        true
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

    /// Whether anything would run in a new sandbox.
    fn worth_a_sandbox(&self) -> bool {
        if spec::restart_policy(self.pod) == "Never" && !self.seen.containers.is_empty() {
            // What ran and is gone with its sandbox does not run again.
            return spec::spec(self.pod).containers.iter().any(|c| c.restart_policy.is_some());
        }
        spec::spec(self.pod).containers.iter().any(|c| match self.seen.latest(&c.name) {
            Some(last) if last.state == State::Exited => restarts(self.pod, Kind::Main, c, last.exit_code),
            _ => true,
        })
    }

    fn sandbox(&mut self) {
        for old in &self.seen.sandboxes {
            if old.ready || self.seen.containers.iter().any(|c| c.sandbox_id == old.id && c.state == State::Running) {
                self.out.steps.push(Step::StopSandbox { id: old.id.clone() });
            }
        }
        if !self.worth_a_sandbox() {
            self.out.finished = true;
            return;
        }
        if let Some(failed) = &self.memory.sandbox_failed
            && failed.retry_at > self.now
        {
            return self.wake(failed.retry_at);
        }
        let attempt = self.seen.sandboxes.iter().map(|s| s.attempt + 1).max().unwrap_or(0);
        self.out.steps.push(Step::CreateSandbox { attempt });
    }
}

/// A duration as Go prints it, in whole seconds.
fn go_duration(delay: SignedDuration) -> String {
    let seconds = delay.as_secs();
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    }
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
mod tests {
    use super::*;
    use crate::pods::observed::Sandbox;
    use serde_json::{Value, json};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn pod(policy: &str, spec: Value) -> Pod {
        let mut spec = spec;
        spec["restartPolicy"] = policy.into();
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "main"}]);
        }
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})).unwrap()
    }

    fn sandbox(attempt: u32, ready: bool) -> Sandbox {
        Sandbox {
            id: format!("s{attempt}"),
            attempt,
            ready,
            created_at: attempt.into(),
            ips: vec!["10.0.0.1".into()],
            host_network: false,
        }
    }

    /// `name/attempt=R`, `=C`, `=U`, or an exit code; finished at second 0; in sandbox 0.
    fn containers(text: &str) -> Vec<Container> {
        text.split_whitespace()
            .map(|word| {
                let (name, state) = word.split_once('=').unwrap();
                let (name, attempt) = name.split_once('/').unwrap_or((name, "0"));
                let (state, exit_code) = match state {
                    "R" => (State::Running, 0),
                    "C" => (State::Created, 0),
                    "U" => (State::Unknown, 0),
                    code => (State::Exited, code.parse().unwrap()),
                };
                let attempt: u32 = attempt.parse().unwrap();
                Container {
                    id: format!("{name}-{attempt}"),
                    sandbox_id: "s0".into(),
                    name: name.into(),
                    attempt,
                    state,
                    created_at: attempt.into(),
                    started_at: Some(at(0)),
                    finished_at: (state == State::Exited).then(|| at(0)),
                    exit_code,
                    reason: String::new(),
                    message: String::new(),
                    image: String::new(),
                    image_id: String::new(),
                    hash: String::new(),
                    log_path: String::new(),
                    user: None,
                    resources: None,
                    stop_signal: 0,
                }
            })
            .collect()
    }

    fn words(plan: &Plan) -> String {
        let mut out: Vec<String> = plan
            .steps
            .iter()
            .map(|s| match s {
                Step::StopSandbox { id } => format!("stop:{id}"),
                Step::CreateSandbox { attempt } => format!("sandbox:{attempt}"),
                Step::Kill { id, why, .. } => format!("kill:{id}:{why:?}"),
                Step::Remove { id } => format!("remove:{id}"),
                Step::Resize { id, .. } => format!("resize:{id}"),
                Step::Start { name, restart_count, .. } => format!("start:{name}/{restart_count}"),
            })
            .collect();
        out.extend(plan.waiting.iter().map(|(name, w)| format!("wait:{name}:{}", w.reason)));
        if plan.finished {
            out.push("finished".into());
        }
        out.join(" ")
    }

    fn check(pod: &Pod, sandboxes: Vec<Sandbox>, have: &str, memory: &Memory, expect: &str) {
        let mut seen = Observed { sandboxes, containers: containers(have) };
        seen.sort();
        assert_eq!(words(&plan(pod, &seen, memory, at(1))), expect, "{have}");
    }

    #[test]
    fn main_containers() {
        let none = Memory::default();
        let ready = || vec![sandbox(0, true)];
        for (policy, have, expect) in [
            ("Always", "", "start:main/0"),
            ("Always", "main=R", ""),
            ("Always", "main=0", "start:main/1"),
            ("OnFailure", "main=0", "finished"),
            ("OnFailure", "main/3=1", "start:main/4"),
            ("Never", "main=1", "finished"),
            ("Never", "main=C", "remove:main-0 start:main/0"),
            ("Always", "main=U", "kill:main-0:Unknown"),
        ] {
            check(&pod(policy, json!({})), ready(), have, &none, expect);
        }
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        check(&pod("Never", two.clone()), ready(), "a=0", &none, "start:b/0");
        check(&pod("Never", two.clone()), ready(), "a=0 b=R", &none, "");
        check(&pod("Never", two), ready(), "a=0 b=3", &none, "finished");
        let ruled = json!({"containers": [{"name": "main", "restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]});
        check(&pod("Never", ruled.clone()), ready(), "main=42", &none, "start:main/1");
        check(&pod("Never", ruled), ready(), "main=1", &none, "finished");
    }

    #[test]
    fn sandboxes() {
        let none = Memory::default();
        for (policy, sandboxes, have, expect) in [
            ("Always", vec![], "", "sandbox:0"),
            ("Always", vec![sandbox(0, false)], "main=137", "sandbox:1"),
            ("Never", vec![sandbox(0, false)], "main=137", "finished"),
            ("Never", vec![sandbox(0, false)], "", "sandbox:1"),
            ("OnFailure", vec![sandbox(0, false)], "main=0", "finished"),
            ("Always", vec![sandbox(0, true), sandbox(1, true)], "", "stop:s1 stop:s0 sandbox:2"),
        ] {
            check(&pod(policy, json!({})), sandboxes, have, &none, expect);
        }
        check(&pod("Always", json!({"hostNetwork": true})), vec![sandbox(0, true)], "", &none, "stop:s0 sandbox:1");
        let failed = Memory {
            sandbox_failed: Some(Failed { reason: "x".into(), message: "y".into(), retry_at: at(5) }),
            ..Memory::default()
        };
        check(&pod("Always", json!({})), vec![], "", &failed, "");
    }

    #[test]
    fn init_containers_and_sidecars() {
        let none = Memory::default();
        let ready = || vec![sandbox(0, true)];
        let init = json!({"initContainers": [{"name": "a"}, {"name": "b"}]});
        for (policy, have, expect) in [
            ("Always", "", "start:a/0"),
            ("Always", "a=R", ""),
            ("Always", "a=0", "start:b/0"),
            ("Always", "a=0 b=1", "start:b/1"),
            ("Never", "a=0 b=1", "finished"),
            ("Always", "a=0 b=0", "start:main/0"),
            ("Always", "b=0", "start:main/0"),
            ("Always", "main=R", ""),
        ] {
            check(&pod(policy, init.clone()), ready(), have, &none, expect);
        }
        let sidecar = json!({"initContainers": [
            {"name": "s", "restartPolicy": "Always", "startupProbe": {"exec": {"command": ["x"]}}}, {"name": "i"}]});
        check(&pod("Never", sidecar.clone()), ready(), "", &none, "start:s/0");
        check(&pod("Never", sidecar.clone()), ready(), "s=R", &none, "");
        let started = Memory {
            probed: [("s-0".to_string(), Probed { started: Some(true), ..Default::default() })].into(),
            ..Memory::default()
        };
        check(&pod("Never", sidecar.clone()), ready(), "s=R", &started, "start:i/0");
        check(&pod("Never", sidecar.clone()), ready(), "s=R i=0", &started, "start:main/0");
        check(&pod("Never", sidecar.clone()), ready(), "s=1 i=0 main=R", &none, "start:s/1");
        check(&pod("Never", sidecar), ready(), "s=R i=0 main=0", &started, "finished");
    }

    #[test]
    fn all_run_anew_when_one_exit_asks_for_it() {
        let spec = json!({"initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
            "containers": [{"name": "a", "restartPolicyRules": [
                {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]}, {"name": "b"}]});
        let pod = pod("Never", spec);
        // Attempts stand for the time of making: the exit of `a` came at second 0, so attempt 0 is before and those
        // made after it are given as later.
        let have = |text: &str| {
            let mut list = containers(text);
            let after = i64::try_from(at(0).as_nanosecond()).unwrap() + 1;
            list.iter_mut().filter(|c| c.attempt > 0).for_each(|c| c.created_at = after);
            let mut seen = Observed { sandboxes: vec![sandbox(0, true)], containers: list };
            seen.sort();
            words(&plan(&pod, &seen, &Memory::default(), at(1)))
        };
        for (seen, expect) in [
            ("i=0 s=R a=42 b=R", "kill:s-0:Restarted kill:b-0:Restarted"),
            ("i=0 s=137 a=42 b=137", "start:i/1"),
            ("i=0 i/1=0 s=137 a=42 b=0", "start:s/1"),
            ("i/1=0 s/1=R a=42 b=0", "start:a/1 start:b/1"),
            ("i/1=0 s/1=R a=42 a/1=R b/1=0", ""),
            ("i/1=0 s/1=R a=42 a/1=0 b/1=0", "finished"),
            ("i=0 s=R a=1 b=0", "finished"),
        ] {
            assert_eq!(have(seen), expect, "{seen}");
        }
    }

    #[test]
    fn waiting_and_probes() {
        let ready = || vec![sandbox(0, true)];
        let always = pod("Always", json!({}));
        let back_off = BackOff { delay: FIRST_BACK_OFF, at: at(-30) };
        let memory = Memory { back_off: [("main".to_string(), back_off)].into(), ..Memory::default() };
        check(&always, ready(), "main=1", &memory, "wait:main:CrashLoopBackOff");
        let old = BackOff { delay: FIRST_BACK_OFF, at: at(-1000) };
        let memory = Memory { back_off: [("main".to_string(), old)].into(), ..Memory::default() };
        check(&always, ready(), "main=1", &memory, "start:main/1");
        let dead = Memory {
            probed: [("main-0".to_string(), Probed { dead: true, ..Default::default() })].into(),
            ..Memory::default()
        };
        check(&always, ready(), "main=R", &dead, "kill:main-0:Liveness");
        let failed = Failed { reason: "ErrImagePull".into(), message: "no".into(), retry_at: at(9) };
        let memory = Memory { failed: [("main".to_string(), failed)].into(), ..Memory::default() };
        check(&always, ready(), "", &memory, "wait:main:ErrImagePull");
    }

    #[test]
    fn resizes() {
        let cpu = |c: &str| json!({"limits": {"cpu": c}});
        let with = |policy: &str| {
            pod(
                "Always",
                json!({"containers": [{"name": "main", "resources": cpu("2"), "resizePolicy": [{"resourceName": "cpu", "restartPolicy": policy}]}]}),
            )
        };
        let applied = |c: &str| Memory {
            applied: [("main-0".to_string(), serde_json::from_value(cpu(c)).unwrap())].into(),
            ..Memory::default()
        };
        let ready = || vec![sandbox(0, true)];
        check(&with("NotRequired"), ready(), "main=R", &applied("2000m"), "");
        check(&with("NotRequired"), ready(), "main=R", &applied("1"), "resize:main-0");
        check(&with("RestartContainer"), ready(), "main=R", &applied("1"), "kill:main-0:Resized start:main/1");
    }

    #[test]
    fn back_off_doubles_and_forgets() {
        let first = BackOff::next(None, at(0), at(0), MAX_BACK_OFF);
        let second = BackOff::next(Some(first), at(5), at(10), MAX_BACK_OFF);
        assert_eq!((first.delay.as_secs(), second.delay.as_secs()), (10, 20));
        let mut last = second;
        for _ in 0..9 {
            last = BackOff::next(Some(last), at(20), at(20), MAX_BACK_OFF);
        }
        assert_eq!(last.delay, MAX_BACK_OFF);
        assert_eq!(BackOff::next(Some(last), at(20 + 601), at(700), MAX_BACK_OFF).delay, FIRST_BACK_OFF);
    }
}
