//! A pod's status: a pure function of its specification, what the engine has, what the plan waits for and what was
//! reported before. It guarantees that a terminal phase never changes and that transition times move only when a
//! condition does.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as Spec, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::observed::{Container, Observed, State};
use super::plan::{Memory, Waiting, restarts, round};
use crate::cri::v1;
use crate::spec::{self, Kind, resources};

/// How the pod's life ends, when it does by decision and not by its containers.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub reason: String,
    pub message: String,
    /// The node ends it for its own sake, which is told apart from what the pod did.
    pub disruption: bool,
}

/// What a status is made from, besides the pod.
pub struct Facts<'a> {
    pub seen: &'a Observed,
    pub memory: &'a Memory,
    pub waiting: &'a BTreeMap<String, Waiting>,
    /// Reported so far: the last status written, or the API's.
    pub before: &'a PodStatus,
    /// `containerd`, as container ids are prefixed.
    pub runtime_name: &'a str,
    pub host_ips: &'a [IpAddr],
    /// All containers are stopped for good.
    pub over: bool,
    /// Evicted, past its deadline, or refused.
    pub verdict: Option<&'a Verdict>,
    /// Whether the engine makes mounts below a read-only one read-only, too.
    pub recursive_read_only: bool,
    /// Messages containers left when they ended, by container id.
    pub messages: &'a BTreeMap<String, String>,
    pub now: Timestamp,
}

pub const PENDING: &str = "Pending";
pub const RUNNING: &str = "Running";
pub const SUCCEEDED: &str = "Succeeded";
pub const FAILED: &str = "Failed";

pub fn is_terminal(phase: Option<&str>) -> bool {
    matches!(phase, Some(SUCCEEDED | FAILED))
}

fn terminated(c: &Container, facts: &Facts<'_>) -> ContainerState {
    let reason = match (c.reason.as_str(), c.exit_code) {
        ("", 0) => "Completed".to_string(),
        ("", _) => "Error".to_string(),
        (reason, _) => reason.to_string(),
    };
    let message = facts
        .messages
        .get(&c.id)
        .cloned()
        .filter(|m| !m.is_empty())
        .or_else(|| Some(c.message.clone()).filter(|m| !m.is_empty()));
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("{}://{}", facts.runtime_name, c.id)),
            exit_code: c.exit_code,
            // One that never started has no times of its own.
            started_at: Some(Time(c.started_at.unwrap_or(Timestamp::UNIX_EPOCH))),
            finished_at: Some(Time(c.finished_at.unwrap_or(Timestamp::UNIX_EPOCH))),
            message,
            reason: Some(reason),
            signal: None,
        }),
        ..Default::default()
    }
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.into()),
            message: Some(message.to_string()).filter(|m| !m.is_empty()),
        }),
        ..Default::default()
    }
}

/// The signal that ends the container, where anybody says.
fn signal(spec: &Spec, effective: i32) -> Option<String> {
    let asked = spec.lifecycle.as_ref().and_then(|l| l.stop_signal.clone());
    let engine = v1::Signal::try_from(effective).ok().filter(|s| *s != v1::Signal::RuntimeDefault);
    asked.or_else(|| engine.map(|s| s.as_str_name().trim_start_matches("SIGNAL_").into()))
}

/// One container's status.
fn container(
    pod: &Pod,
    kind: Kind,
    spec: &Spec,
    before: Option<&ContainerStatus>,
    facts: &Facts<'_>,
) -> ContainerStatus {
    let mut history = facts.seen.history(&spec.name).filter(|c| c.state != State::Created);
    let current = history.next();
    let previous = history.find(|c| c.state == State::Exited);
    let mut out = ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        started: Some(false),
        last_state: Some(ContainerState::default()),
        ..Default::default()
    };
    let has_init = spec::spec(pod).init_containers.as_ref().is_some_and(|l| !l.is_empty());
    match current {
        Some(c) => {
            out.image = if c.image.is_empty() { out.image } else { c.image.clone() };
            out.image_id = c.image_id.clone();
            out.container_id = Some(format!("{}://{}", facts.runtime_name, c.id));
            out.restart_count = c.attempt as i32;
            out.last_state = Some(previous.map(|p| terminated(p, facts)).unwrap_or_default());
            if previous.is_none()
                && let Some(before) = before.filter(|b| b.restart_count == c.attempt as i32)
                && let Some(state) = before.last_state.clone().filter(|s| s.terminated.is_some())
            {
                // The engine's record may have been collected; what was reported stays true.
                out.last_state = Some(state);
            }
            match c.state {
                State::Running => {
                    out.state = Some(ContainerState {
                        running: Some(ContainerStateRunning { started_at: c.started_at.map(Time) }),
                        ..Default::default()
                    });
                    let probed = facts.memory.probed.get(&c.id).copied().unwrap_or_default();
                    let started = spec.startup_probe.is_none() || probed.started == Some(true);
                    out.started = Some(started);
                    out.ready = match kind {
                        Kind::Init | Kind::Ephemeral => false,
                        _ => started && (spec.readiness_probe.is_none() || probed.ready == Some(true)),
                    };
                }
                State::Exited => {
                    let ended = terminated(c, facts);
                    match facts.waiting.get(&spec.name).filter(|_| !facts.over) {
                        Some(w) => {
                            out.last_state = Some(ended);
                            out.state = Some(waiting(&w.reason, &w.message));
                        }
                        None => out.state = Some(ended),
                    }
                    out.ready = kind == Kind::Init && c.exit_code == 0;
                }
                _ => {
                    out.state = Some(waiting(
                        "ContainerStatusUnknown",
                        "The container could not be located when the pod was terminated",
                    ))
                }
            }
            out.stop_signal = signal(spec, c.stop_signal);
            out.user = c.user.as_ref().map(|u| ContainerUser {
                linux: Some(LinuxContainerUser {
                    uid: u.uid,
                    gid: u.gid,
                    supplemental_groups: Some(u.supplemental_groups.clone()).filter(|g| !g.is_empty()),
                }),
            });
        }
        None => {
            let reported = before.and_then(|b| b.state.as_ref());
            if let (Some(before), Some(_)) = (before, reported.and_then(|s| s.terminated.as_ref())) {
                return before.clone();
            }
            if let (true, Some(before), Some(_)) = (facts.over, before, reported.and_then(|s| s.running.as_ref())) {
                let mut lost = before.clone();
                lost.ready = false;
                lost.started = Some(false);
                lost.state = Some(ContainerState {
                    terminated: Some(ContainerStateTerminated {
                        exit_code: 137,
                        reason: Some("ContainerStatusUnknown".into()),
                        message: Some("The container could not be located when the pod was terminated".into()),
                        ..Default::default()
                    }),
                    ..Default::default()
                });
                return lost;
            }
            if let Some(before) = before {
                out.restart_count = before.restart_count;
                out.last_state = before.last_state.clone();
            }
            out.state = Some(match facts.waiting.get(&spec.name) {
                Some(w) => waiting(&w.reason, &w.message),
                None if has_init && kind != Kind::Ephemeral => waiting("PodInitializing", ""),
                None => waiting("ContainerCreating", ""),
            });
        }
    }
    if let Some(current) = current {
        // What it has, which during a resize is not yet what it asks for.
        out.resources = facts.memory.applied.get(&current.id).cloned().or_else(|| spec.resources.clone());
        out.allocated_resources_status = facts.memory.devices.get(&spec.name).cloned();
        out.allocated_resources = spec.resources.as_ref().and_then(|r| r.requests.clone());
    }
    let mounts: Vec<VolumeMountStatus> = spec
        .volume_mounts
        .iter()
        .flatten()
        .map(|m| VolumeMountStatus {
            mount_path: m.mount_path.clone(),
            name: m.name.clone(),
            read_only: m.read_only.filter(|r| *r),
            recursive_read_only: (m.read_only == Some(true)).then(|| {
                let is_recursive = match m.recursive_read_only.as_deref() {
                    Some("Enabled" | "IfPossible") => facts.recursive_read_only,
                    _ => false,
                };
                if is_recursive { "Enabled" } else { "Disabled" }.to_string()
            }),
            volume_status: None,
        })
        .collect();
    out.volume_mounts = Some(mounts).filter(|m| !m.is_empty());
    out
}

fn made_before(facts: &Facts<'_>, name: &str, since: i64) -> bool {
    facts.seen.latest(name).is_some_and(|c| c.created_at <= since)
}

/// The phase its containers add up to.
fn phase(pod: &Pod, inits: &[ContainerStatus], mains: &[ContainerStatus], facts: &Facts<'_>) -> &'static str {
    let state = |s: &ContainerStatus, pick: fn(&ContainerState) -> bool| s.state.as_ref().is_some_and(pick);
    let is_running = |s: &ContainerStatus| state(s, |s| s.running.is_some());
    let exit = |s: &ContainerStatus| -> Option<i32> {
        let ended = |s: &Option<ContainerState>| s.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code);
        // Waiting for a restart counts as stopped.
        ended(&s.state).or_else(|| if is_running(s) { None } else { ended(&s.last_state) })
    };
    let anew = |kind: Kind, spec: &Spec, code: i32| !facts.over && restarts(pod, kind, spec, code);
    let main_began = mains.iter().any(|s| is_running(s) || exit(s).is_some());
    let mut init_failed = false;
    let mut init_pending = false;
    for ((kind, spec), status) in spec::init_containers(pod).zip(inits) {
        match kind {
            Kind::Sidecar => init_pending |= status.started != Some(true) && !main_began,
            _ => match state(status, |s| s.terminated.is_some()).then(|| exit(status)).flatten() {
                Some(0) => {}
                Some(code) if !anew(kind, spec, code) => init_failed = true,
                _ => init_pending |= !main_began,
            },
        }
    }
    if init_failed {
        return FAILED;
    }
    let waiting = mains.iter().filter(|s| !is_running(s) && exit(s).is_none()).count();
    let running = mains.iter().filter(|s| is_running(s)).count();
    let stopped: Vec<i32> = mains.iter().filter_map(exit).collect();
    if facts.over {
        // A pod that is over is never pending again: what never ran was stopped before it could.
        return if waiting == 0 && !stopped.is_empty() && stopped.iter().all(|c| *c == 0) && !init_pending {
            SUCCEEDED
        } else {
            FAILED
        };
    }
    if init_pending || waiting > 0 {
        return PENDING;
    }
    if running > 0 {
        return RUNNING;
    }
    let mut ended = spec::spec(pod).containers.iter().zip(mains);
    match () {
        () if ended.any(|(spec, status)| exit(status).is_some_and(|code| anew(Kind::Main, spec, code))) => RUNNING,
        () if round(pod, facts.seen).is_some_and(|since| mains.iter().any(|s| made_before(facts, &s.name, since))) => {
            RUNNING
        }
        () if stopped.iter().all(|c| *c == 0) => SUCCEEDED,
        () => FAILED,
    }
}

fn condition(type_: &str, status: bool, reason: &str, message: String) -> PodCondition {
    PodCondition {
        type_: type_.into(),
        status: if status { "True" } else { "False" }.into(),
        reason: Some(reason.to_string()).filter(|r| !r.is_empty()),
        message: Some(message).filter(|m| !m.is_empty()),
        ..Default::default()
    }
}

/// The five conditions the agent owns.
fn conditions(
    pod: &Pod,
    phase: &str,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
    facts: &Facts<'_>,
) -> Vec<PodCondition> {
    let names = |list: Vec<&str>| list.join(" ");
    let sandboxed = facts.seen.ready_sandbox().is_some_and(|s| s.host_network || !s.ips.is_empty()) && !facts.over;
    let mut out = vec![condition("PodReadyToStartContainers", sandboxed, "", String::new())];

    let kinds: Vec<Kind> = spec::init_containers(pod).map(|(k, _)| k).collect();
    let main_began = mains.iter().any(|s| s.state.as_ref().is_some_and(|s| s.waiting.is_none()));
    let incomplete: Vec<&str> = inits
        .iter()
        .zip(&kinds)
        .filter(|(s, k)| match k {
            Kind::Sidecar => s.started != Some(true) && !main_began,
            _ => !s.ready && !main_began,
        })
        .map(|(s, _)| s.name.as_str())
        .collect();
    out.push(if phase == SUCCEEDED {
        condition("Initialized", true, "PodCompleted", String::new())
    } else if incomplete.is_empty() {
        condition("Initialized", true, "", String::new())
    } else {
        condition(
            "Initialized",
            false,
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", names(incomplete)),
        )
    });

    let sidecars = inits.iter().zip(&kinds).filter(|(_, k)| **k == Kind::Sidecar).map(|(s, _)| s);
    let unready: Vec<&str> = sidecars.chain(mains).filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    let containers_ready = match phase {
        SUCCEEDED => condition("ContainersReady", false, "PodCompleted", String::new()),
        FAILED => condition("ContainersReady", false, "PodFailed", String::new()),
        _ if unready.is_empty() => condition("ContainersReady", true, "", String::new()),
        _ => condition(
            "ContainersReady",
            false,
            "ContainersNotReady",
            format!("containers with unready status: [{}]", names(unready)),
        ),
    };
    let mut ready = PodCondition { type_: "Ready".into(), ..containers_ready.clone() };
    if ready.status == "True" {
        let known = facts.before.conditions.iter().chain(pod.status.iter().filter_map(|s| s.conditions.as_ref()));
        let known: Vec<&PodCondition> = known.flatten().collect();
        let missing: Vec<String> = spec::spec(pod)
            .readiness_gates
            .iter()
            .flatten()
            .filter_map(|gate| {
                // The pod's own copy is newer than what was reported here.
                match known.iter().rfind(|c| c.type_ == gate.condition_type) {
                    None => Some(format!(
                        "corresponding condition of pod readiness gate {:?} does not exist.",
                        gate.condition_type
                    )),
                    Some(c) if c.status != "True" => Some(format!(
                        "the status of pod readiness gate {:?} is not \"True\", but {}",
                        gate.condition_type, c.status
                    )),
                    Some(_) => None,
                }
            })
            .collect();
        if !missing.is_empty() {
            ready = condition("Ready", false, "ReadinessGatesNotReady", missing.join(", "));
        }
    }
    out.push(ready);
    out.push(containers_ready);
    out.push(condition("PodScheduled", true, "", String::new()));
    if let Some(pending) = &facts.memory.resize_pending {
        out.push(condition("PodResizePending", true, &pending.reason, pending.message.clone()));
    }
    match &facts.memory.resize_error {
        Some(error) => out.push(condition("PodResizeInProgress", true, &error.reason, error.message.clone())),
        None if facts.memory.resizing && !facts.over => {
            out.push(condition("PodResizeInProgress", true, "", String::new()));
        }
        None => {}
    }
    if let Some(verdict) = facts.verdict.filter(|v| v.disruption) {
        out.push(condition("DisruptionTarget", true, "TerminationByKubelet", verdict.message.clone()));
    }
    let generation = pod.metadata.generation;
    for condition in &mut out {
        let begun = facts.memory.resize_since.filter(|_| condition.type_ == "PodResizeInProgress");
        condition.observed_generation = begun.or(generation);
        let before = facts.before.conditions.iter().flatten().find(|b| b.type_ == condition.type_);
        // Of a resize, another reason is another state.
        let is_resize = condition.type_.starts_with("PodResize");
        let same = before.filter(|b| b.status == condition.status && !(is_resize && b.reason != condition.reason));
        condition.last_transition_time = same.and_then(|b| b.last_transition_time.clone()).or(Some(Time(facts.now)));
        // Sent as null, as upstream sends it, so that field managers agree.
        condition.last_probe_time = None;
    }
    out
}

/// The status now.
pub fn generate(pod: &Pod, facts: &Facts<'_>) -> PodStatus {
    let before = facts.before;
    let find =
        |list: &Option<Vec<ContainerStatus>>, name: &str| list.iter().flatten().find(|s| s.name == name).cloned();
    let inits: Vec<ContainerStatus> = spec::init_containers(pod)
        .map(|(kind, c)| container(pod, kind, c, find(&before.init_container_statuses, &c.name).as_ref(), facts))
        .collect();
    let mains: Vec<ContainerStatus> = spec::spec(pod)
        .containers
        .iter()
        .map(|c| container(pod, Kind::Main, c, find(&before.container_statuses, &c.name).as_ref(), facts))
        .collect();
    let ephemerals: Vec<ContainerStatus> = spec::spec(pod)
        .ephemeral_containers
        .iter()
        .flatten()
        .map(|c| {
            container(
                pod,
                Kind::Ephemeral,
                &spec::as_container(c),
                find(&before.ephemeral_container_statuses, &c.name).as_ref(),
                facts,
            )
        })
        .collect();
    // Somebody else may have declared the pod over, as the garbage collector of a lost node does.
    let declared = pod.status.as_ref().filter(|s| is_terminal(s.phase.as_deref()));
    let decided = Some(before).filter(|b| is_terminal(b.phase.as_deref())).or(declared);
    let phase = match decided.and_then(|s| s.phase.as_deref()) {
        Some(FAILED) => FAILED,
        Some(SUCCEEDED) => SUCCEEDED,
        _ if facts.verdict.is_some() => FAILED,
        _ => phase(pod, &inits, &mains, facts),
    };
    let conditions = conditions(pod, phase, &inits, &mains, facts);
    let verdict = facts.verdict;
    let mut out = PodStatus {
        observed_generation: pod.metadata.generation,
        phase: Some(phase.into()),
        reason: verdict.map(|v| v.reason.clone()).or_else(|| decided.unwrap_or(before).reason.clone()),
        message: verdict.map(|v| v.message.clone()).or_else(|| decided.unwrap_or(before).message.clone()),
        conditions: Some(conditions),
        start_time: before.start_time.clone().or(Some(Time(facts.now))),
        qos_class: Some(resources::qos(pod).as_str().into()),
        init_container_statuses: Some(inits).filter(|l| !l.is_empty()),
        container_statuses: Some(mains),
        ephemeral_container_statuses: Some(ephemerals).filter(|l| !l.is_empty()),
        ..Default::default()
    };
    if let Some(granted) = spec::spec(pod).resources.as_ref().filter(|_| !facts.over) {
        out.resources = facts.memory.applied_whole.clone().or_else(|| Some(granted.clone()));
        out.allocated_resources = granted.requests.clone();
    }
    if let Some(first) = facts.host_ips.first() {
        out.host_ip = Some(first.to_string());
        out.host_ips = Some(facts.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect());
    }
    let ips: Vec<String> = if spec::host_network(pod) {
        facts.host_ips.iter().map(ToString::to_string).collect()
    } else {
        facts.seen.ready_sandbox().map(|s| s.ips.clone()).unwrap_or_default()
    };
    if ips.is_empty() {
        // The address it had stays on record.
        out.pod_ip = before.pod_ip.clone();
        out.pod_ips = before.pod_ips.clone();
    } else {
        out.pod_ip = ips.first().cloned();
        out.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
    }
    out
}

/// The status of a pod the node refuses to run.
pub fn rejected(pod: &Pod, verdict: &Verdict, now: Timestamp) -> PodStatus {
    PodStatus {
        observed_generation: pod.metadata.generation,
        phase: Some(FAILED.into()),
        reason: Some(verdict.reason.clone()),
        message: Some(verdict.message.clone()),
        start_time: Some(Time(now)),
        qos_class: Some(resources::qos(pod).as_str().into()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::observed::Sandbox;
    use serde_json::{Value, json};

    fn seen(list: &[(&str, u32, State, i32)]) -> Observed {
        let mut out = Observed {
            sandboxes: vec![Sandbox {
                id: "s".into(),
                attempt: 0,
                ready: true,
                created_at: 1,
                ips: vec!["10.0.0.7".into()],
                host_network: false,
            }],
            containers: list
                .iter()
                .map(|(name, attempt, state, exit_code)| Container {
                    id: format!("{name}{attempt}"),
                    sandbox_id: "s".into(),
                    name: (*name).into(),
                    attempt: *attempt,
                    state: *state,
                    created_at: i64::from(*attempt),
                    started_at: Some(Timestamp::UNIX_EPOCH),
                    finished_at: None,
                    exit_code: *exit_code,
                    reason: String::new(),
                    message: String::new(),
                    image: "i".into(),
                    image_id: "sha".into(),
                    hash: String::new(),
                    log_path: String::new(),
                    user: None,
                    resources: None,
                    stop_signal: 0,
                })
                .collect(),
        };
        out.sort();
        out
    }

    fn status(spec: Value, seen: &Observed, waiting: &[(&str, &str)], over: bool) -> PodStatus {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "generation": 2}, "spec": spec})).unwrap();
        let waiting = waiting
            .iter()
            .map(|(n, r)| (n.to_string(), Waiting { reason: r.to_string(), message: String::new() }))
            .collect();
        generate(&pod, &facts(seen, &waiting, over))
    }

    fn facts<'a>(seen: &'a Observed, waiting: &'a BTreeMap<String, Waiting>, over: bool) -> Facts<'a> {
        use std::sync::LazyLock;
        static MEMORY: LazyLock<Memory> = LazyLock::new(Memory::default);
        static BEFORE: LazyLock<PodStatus> = LazyLock::new(PodStatus::default);
        static MESSAGES: BTreeMap<String, String> = BTreeMap::new();
        Facts {
            seen,
            memory: &MEMORY,
            waiting,
            before: &BEFORE,
            runtime_name: "r",
            host_ips: &[],
            over,
            verdict: None,
            recursive_read_only: true,
            messages: &MESSAGES,
            now: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn phases() {
        use State::*;
        for (policy, containers, waiting, over, expect) in [
            ("Always", vec![], vec![], false, PENDING),
            ("Always", vec![("a", 0, Running, 0), ("b", 0, Running, 0)], vec![], false, RUNNING),
            ("Always", vec![("a", 0, Running, 0)], vec![], false, PENDING),
            (
                "Always",
                vec![("a", 0, Running, 0), ("b", 0, Exited, 1)],
                vec![("b", "CrashLoopBackOff")],
                false,
                RUNNING,
            ),
            ("Never", vec![("a", 0, Exited, 0), ("b", 0, Exited, 0)], vec![], false, SUCCEEDED),
            ("Never", vec![("a", 0, Exited, 0), ("b", 0, Exited, 2)], vec![], false, FAILED),
            ("OnFailure", vec![("a", 0, Exited, 0), ("b", 0, Exited, 2)], vec![], false, RUNNING),
            ("Always", vec![("a", 0, Exited, 0), ("b", 0, Exited, 0)], vec![], true, SUCCEEDED),
            ("Always", vec![("a", 0, Exited, 137), ("b", 0, Exited, 0)], vec![], true, FAILED),
        ] {
            let spec = json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]});
            let got = status(spec, &seen(&containers), &waiting, over);
            assert_eq!(got.phase.as_deref(), Some(expect), "{policy} {containers:?}");
        }
    }

    #[test]
    fn a_declared_phase_stays() {
        for (declared, exit, expect) in [("Failed", 0, FAILED), ("Succeeded", 1, SUCCEEDED), ("Running", 0, SUCCEEDED)]
        {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"},
                "spec": {"restartPolicy": "Always", "containers": [{"name": "a"}]},
                "status": {"phase": declared, "reason": "NodeLost"}}))
            .unwrap();
            let seen = seen(&[("a", 0, State::Exited, exit)]);
            let got = generate(&pod, &facts(&seen, &BTreeMap::new(), true));
            assert_eq!(got.phase.as_deref(), Some(expect), "{declared}");
            assert_eq!(got.reason.as_deref() == Some("NodeLost"), is_terminal(Some(declared)));
        }
    }

    #[test]
    fn containers_with_policies_of_their_own() {
        let rule = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
        for (own, code, expect) in [
            (json!({"restartPolicy": "Never", "restartPolicyRules": rule}), 42, RUNNING),
            (json!({"restartPolicy": "Never", "restartPolicyRules": rule}), 1, FAILED),
            (json!({"restartPolicy": "Always"}), 0, RUNNING),
            (json!({"restartPolicy": "OnFailure"}), 0, SUCCEEDED),
            (json!({}), 1, FAILED),
        ] {
            let mut container = own.clone();
            container["name"] = "a".into();
            let spec = json!({"restartPolicy": "Never", "containers": [container]});
            let got = status(spec, &seen(&[("a", 0, State::Exited, code)]), &[], false);
            assert_eq!(got.phase.as_deref(), Some(expect), "{own} {code}");
        }
    }

    #[test]
    fn how_mounts_are_read_only() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "a", "volumeMounts": [
            {"name": "v", "mountPath": "/0"},
            {"name": "v", "mountPath": "/1", "readOnly": true},
            {"name": "v", "mountPath": "/2", "readOnly": true, "recursiveReadOnly": "IfPossible"},
            {"name": "v", "mountPath": "/3", "readOnly": true, "recursiveReadOnly": "Disabled"}]}]}}))
        .unwrap();
        let seen = seen(&[("a", 0, State::Running, 0)]);
        let waiting = BTreeMap::new();
        for (supported, expect) in [
            (true, [None, Some("Disabled"), Some("Enabled"), Some("Disabled")]),
            (false, [None, Some("Disabled"), Some("Disabled"), Some("Disabled")]),
        ] {
            let status = generate(&pod, &Facts { recursive_read_only: supported, ..facts(&seen, &waiting, false) });
            let mounts = status.container_statuses.unwrap()[0].volume_mounts.clone().unwrap();
            let got: Vec<_> = mounts.iter().map(|m| m.recursive_read_only.as_deref()).collect();
            assert_eq!(got, expect, "{supported}");
        }
    }

    #[test]
    fn container_states() {
        let spec = json!({"restartPolicy": "Always", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
        let got = status(spec.clone(), &seen(&[("i", 0, State::Running, 0)]), &[], false);
        assert_eq!(got.phase.as_deref(), Some(PENDING));
        let reason = got.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap().reason;
        assert_eq!(reason.as_deref(), Some("PodInitializing"));
        let all = [("i", 0, State::Exited, 0), ("a", 0, State::Exited, 1), ("a", 1, State::Exited, 3)];
        let got = status(spec, &seen(&all), &[("a", "CrashLoopBackOff")], false);
        let a = &got.container_statuses.unwrap()[0];
        assert_eq!(a.restart_count, 1);
        assert_eq!(a.state.clone().unwrap().waiting.unwrap().reason.as_deref(), Some("CrashLoopBackOff"));
        assert_eq!(a.last_state.clone().unwrap().terminated.unwrap().exit_code, 3);
        assert_eq!(got.pod_ip.as_deref(), Some("10.0.0.7"));
        let by_type = |t: &str| got.conditions.iter().flatten().find(|c| c.type_ == t).unwrap().status.clone();
        assert_eq!((by_type("Initialized"), by_type("Ready")), ("True".into(), "False".into()));
    }
}
