//! The row of a pod: what its containers' states add up to in one word.

use std::collections::HashSet;

use meta::Value;

use crate::cells::{age, name, or_none, since};
use meta::Tree;

/// Restarts and the time of the latest.
#[derive(Default)]
struct Restarts<'a> {
    count: i64,
    last: &'a str,
}

impl<'a> Restarts<'a> {
    fn add(&mut self, container: &'a Value) {
        self.count += container.int("restartCount");
        // RFC 3339 in whole seconds, all in UTC: later is greater.
        self.last = self.last.max(container.text("lastState.terminated.finishedAt"));
    }
}

/// `Signal:9` or `ExitCode:1`, for terminations without a reason.
fn exit(terminated: &Value) -> String {
    match (terminated.text("reason"), terminated.int("signal")) {
        ("", 0) => format!("ExitCode:{}", terminated.int("exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_string(),
    }
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a Value {
    pod.find("status.conditions", "type", kind).unwrap_or(&Value::Null)
}

/// Ready containers, the status word and the restarts.
fn summary(pod: &Value) -> (usize, String, Restarts<'_>) {
    let phase = pod.text("status.phase");
    let mut reason = Some(pod.text("status.reason")).filter(|r| !r.is_empty()).unwrap_or(phase).to_string();
    if condition(pod, "PodScheduled").text("reason") == "SchedulingGated" {
        reason = "SchedulingGated".into();
    }
    let init = pod.list("spec.initContainers");
    let sidecars: HashSet<&str> =
        init.iter().filter(|c| c.text("restartPolicy") == "Always").map(|c| c.text("name")).collect();
    let (mut all, mut of_sidecars, mut ready, mut initializing) = (Restarts::default(), Restarts::default(), 0, false);
    for (i, container) in pod.list("status.initContainerStatuses").iter().enumerate() {
        let sidecar = sidecars.contains(container.text("name"));
        all.add(container);
        if sidecar {
            of_sidecars.add(container);
        }
        let (terminated, waiting) = (container.at("state.terminated"), container.text("state.waiting.reason"));
        if !terminated.is_null() && terminated.int("exitCode") == 0 {
            continue;
        }
        if sidecar && container.flag("started") {
            ready += usize::from(container.flag("ready"));
            continue;
        }
        initializing = true;
        reason = match () {
            _ if !terminated.is_null() => format!("Init:{}", exit(terminated)),
            _ if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            _ => format!("Init:{i}/{}", init.len()),
        };
        break;
    }
    if !initializing || condition(pod, "Initialized").text("status") == "True" {
        all = of_sidecars;
        let mut running = false;
        for container in pod.list("status.containerStatuses").iter().rev() {
            all.add(container);
            let (terminated, waiting) = (container.at("state.terminated"), container.text("state.waiting.reason"));
            if !waiting.is_empty() {
                reason = waiting.to_string();
            } else if !terminated.is_null() {
                reason = exit(terminated);
            } else if container.flag("ready") && container.has("state.running") {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            reason = if condition(pod, "Ready").text("status") == "True" { "Running" } else { "NotReady" }.into();
        }
    }
    if pod.has("metadata.deletionTimestamp") {
        if pod.text("status.reason") == "NodeLost" {
            reason = "Unknown".into();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            reason = "Terminating".into();
        }
    }
    (ready, reason, all)
}

fn readiness_gates(pod: &Value) -> String {
    let gates = pod.list("spec.readinessGates");
    let open = gates.iter().filter(|gate| condition(pod, gate.text("conditionType")).text("status") == "True").count();
    if gates.is_empty() { String::new() } else { format!("{open}/{}", gates.len()) }
}

/// The cells of a pod.
pub fn row(pod: &Value, now: &str) -> Vec<Value> {
    let (ready, reason, restarts) = summary(pod);
    let sidecars = pod.list("spec.initContainers").iter().filter(|c| c.text("restartPolicy") == "Always").count();
    let restarts = match restarts.last {
        "" => restarts.count.to_string(),
        last => format!("{} ({} ago)", restarts.count, since(last, now)),
    };
    vec![
        name(pod),
        format!("{ready}/{}", pod.list("spec.containers").len() + sidecars).into(),
        reason.into(),
        restarts.into(),
        age(pod, now),
        or_none(pod.list("status.podIPs").first().map_or(pod.text("status.podIP"), |ip| ip.text("ip"))),
        or_none(pod.text("spec.nodeName")),
        or_none(pod.text("status.nominatedNodeName")),
        or_none(&readiness_gates(pod)),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pods_state_is_one_word() {
        let check = |init: Value, statuses: Value, init_statuses: Value, phase: &str, expect: (&str, &str, &str)| {
            let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": init},
                "status": {"phase": phase, "containerStatuses": statuses, "initContainerStatuses": init_statuses}});
            let row = row(&pod, "2026-01-01T00:05:00Z");
            assert_eq!(
                (row[1].as_str(), row[2].as_str(), row[3].as_str()),
                (Some(expect.0), Some(expect.1), Some(expect.2)),
                "{pod}"
            );
        };
        let running = json!({"ready": true, "restartCount": 0, "state": {"running": {}}});
        let completed = json!({"restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let crashed = json!({"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:00:00Z"}}});
        let killed = json!({"restartCount": 0, "state": {"terminated": {"exitCode": 137, "signal": 9}}});
        let none = || json!([]);
        check(none(), none(), none(), "Pending", ("0/2", "Pending", "0"));
        check(none(), json!([running, running]), none(), "Running", ("2/2", "Running", "0"));
        check(none(), json!([running, crashed]), none(), "Running", ("1/2", "CrashLoopBackOff", "3 (5m ago)"));
        check(none(), json!([running, completed]), none(), "Running", ("1/2", "NotReady", "0"));
        check(none(), json!([completed, completed]), none(), "Succeeded", ("0/2", "Completed", "0"));
        check(none(), json!([killed]), none(), "Failed", ("0/2", "Signal:9", "0"));
        let init = || json!([{"name": "i"}, {"name": "j"}]);
        check(init(), none(), json!([{"name": "i", "state": {"running": {}}}]), "Pending", ("0/2", "Init:0/2", "0"));
        check(
            init(),
            none(),
            json!([{"name": "i", "restartCount": 2, "state": {"terminated": {"exitCode": 2}}}]),
            "Pending",
            ("0/2", "Init:ExitCode:2", "2"),
        );
        check(
            json!([{"name": "s", "restartPolicy": "Always"}]),
            json!([running, running]),
            json!([{"name": "s", "started": true, "ready": true, "restartCount": 1, "state": {"running": {}}}]),
            "Running",
            ("3/3", "Running", "1"),
        );
    }

    #[test]
    fn deletion_wins_until_the_end() {
        let status = |phase: &str| {
            let pod = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": phase}});
            summary(&pod).1
        };
        assert_eq!((status("Running").as_str(), status("Succeeded").as_str()), ("Terminating", "Succeeded"));
    }
}
