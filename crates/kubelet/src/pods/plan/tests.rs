//! What is done next, case by case: what there is in, steps out.

use super::back_off::FIRST_BACK_OFF;
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
            Step::ResizeWhole => "resize-whole".to_string(),
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
    check(&always, ready(), "main=1", &memory, "");
    let seen = Observed { sandboxes: ready(), containers: containers("main=1") };
    let wakes = |now| plan(&always, &seen, &memory, at(now)).wake;
    assert_eq!((wakes(1), wakes(3)), (Some(at(3)), Some(at(10))), "its end, then the wait, then the start");
    assert_eq!(words(&plan(&always, &seen, &memory, at(3))), "wait:main:CrashLoopBackOff");
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
    // The clock was set back by an hour: nobody waits until it is as late again.
    let hour = |memory: &Memory, containers_: &str| {
        let seen = Observed { sandboxes: ready(), containers: containers(containers_) };
        words(&plan(&always, &seen, memory, at(-3600)))
    };
    assert_eq!(hour(&memory, ""), "start:main/0 wait:main:ErrImagePull");
    let back_off = BackOff { delay: FIRST_BACK_OFF, at: at(0) };
    let memory = Memory { back_off: [("main".to_string(), back_off)].into(), ..Memory::default() };
    assert_eq!(hour(&memory, "main=1"), "start:main/1");
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

#[test]
fn a_pod_as_a_whole_is_resized() {
    let whole = |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"cpu": "2", "memory": "1Mi"}});
    let seen = Observed { sandboxes: vec![sandbox(0, true)], containers: containers("main=R") };
    for (has, wants, expect) in [
        (Some("100m"), Some("100m"), vec![]),
        (Some("100m"), Some("0.1"), vec![]),
        (Some("100m"), Some("200m"), vec![Step::ResizeWhole]),
        // Nothing is known, or nothing asked.
        (None, Some("200m"), vec![]),
        (Some("100m"), None, vec![]),
    ] {
        let spec = wants.map_or(json!({}), |cpu| json!({"resources": whole(cpu)}));
        let applied_whole = has.map(|cpu| serde_json::from_value(whole(cpu)).unwrap());
        let memory = Memory { applied_whole, ..Memory::default() };
        assert_eq!(plan(&pod("Always", spec), &seen, &memory, at(9)).steps, expect, "{has:?} {wants:?}");
    }
}
