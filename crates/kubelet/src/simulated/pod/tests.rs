//! Lives of simulated pods, told step by step.

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

/// Lets a pod live: steps are taken at the given seconds, each write merged into the pod. What happened, in words.
fn live(mut pod: Value, seconds: &[i64]) -> Vec<String> {
    let mut out = Vec::new();
    for second in seconds {
        let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
        let step = step(&typed, "100.64.0.1", "100.64.0.2", &Schedule::default(), at(*second));
        out.push(match step {
            Step::Wait(None) => format!("{second}: -"),
            Step::Wait(Some(until)) => format!("{second}: until {}", until.as_second() - 1_000_000),
            Step::Remove => format!("{second}: gone"),
            Step::Write { status, again } => {
                let ready = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
                let first = &status["containerStatuses"][0];
                let mut line = format!("{second}: {}", status["phase"].as_str().unwrap());
                if ready["status"] == "True" {
                    line += " ready";
                }
                if let Some(code) = first["state"]["terminated"]["exitCode"].as_i64() {
                    line += &format!(" code {code}");
                }
                if first["restartCount"] != 0 {
                    line += &format!(" restarts {}", first["restartCount"]);
                }
                if let Some(why) = first["state"]["waiting"]["message"].as_str() {
                    line += &format!(": {why}");
                }
                if let Some(again) = again {
                    line += &format!(", again {}", again.as_second() - 1_000_000);
                }
                for (field, value) in status.as_object().unwrap() {
                    pod["status"][field] = value.clone();
                }
                line
            }
        });
    }
    out
}

fn pod(annotations: &[(&str, &str)]) -> Value {
    let annotations: Map<String, Value> =
        annotations.iter().map(|(k, v)| (format!("{PREFIX}{k}"), Value::from(*v))).collect();
    json!({
        "metadata": {"name": "a", "namespace": "n", "uid": "u", "annotations": annotations},
        "spec": {"nodeName": "simulated-1", "restartPolicy": "Always", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]},
    })
}

fn with(mut pod: Value, pointer: &str, field: &str, value: Value) -> Value {
    pod.pointer_mut(pointer).unwrap()[field] = value;
    pod
}

#[test]
fn lives() {
    let never = |p| with(p, "/spec", "restartPolicy", "Never".into());
    let deleted = |p, grace: i64, asked: i64| {
        let p = with(p, "/metadata", "deletionTimestamp", rfc3339(at(asked + grace)).into());
        with(p, "/metadata", "deletionGracePeriodSeconds", grace.into())
    };
    let running = json!({"phase": "Running", "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
        "state": {"running": {"startedAt": rfc3339(at(0))}}}]});
    let job = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "j", "controller": true}]);
    let check = |pod: Value, seconds: &[i64], expect: &[&str]| assert_eq!(live(pod, seconds), expect);

    check(pod(&[]), &[0, 1, 100], &["0: Running ready", "1: -", "100: -"]);
    check(
        pod(&[("start-after", "5s"), ("ready-after", "2s")]),
        &[0, 1, 5, 6, 7, 8],
        &["0: Pending, again 5", "1: until 5", "5: Running", "6: until 7", "7: Running ready", "8: -"],
    );
    check(
        never(pod(&[("run-for", "3s")])),
        &[0, 1, 3, 4],
        &["0: Running ready", "1: until 3", "3: Succeeded code 0", "4: -"],
    );
    check(never(pod(&[("run-for", "3s"), ("exit-code", "7")])), &[0, 3], &["0: Running ready", "3: Failed code 7"]);
    check(
        pod(&[("run-for", "0s"), ("exit-code", "1")]),
        &[0, 1, 1, 2],
        &["0: Running ready", "1: Running ready restarts 1", "1: until 2", "2: Running ready restarts 2"],
    );
    check(
        never(with(pod(&[]), "/metadata", "ownerReferences", job)),
        &[0, 1, 2],
        &["0: Running ready", "1: Succeeded code 0", "2: -"],
    );
    check(
        pod(&[("run-for", "soon")]),
        &[0, 1],
        &[
            "0: Pending: annotation simulated.nauplius.dev/run-for: \"soon\" is not a duration such as 500ms, 2s, 5m or 1h",
            "1: -",
        ],
    );
    // Readiness gates are somebody else's word.
    let gated = with(pod(&[]), "/spec", "readinessGates", json!([{"conditionType": "g"}]));
    check(gated.clone(), &[0, 1], &["0: Running", "1: -"]);
    let open = with(gated, "/status", "conditions", json!([{"type": "g", "status": "True"}]));
    check(open, &[0, 1], &["0: Running ready", "1: -"]);
    // Deleted: at once, or with as much of the grace period as the pod takes.
    let stopping = with(pod(&[]), "/metadata", "name", "a".into());
    check(deleted(with(stopping.clone(), "", "status", running.clone()), 30, 10), &[10], &["10: gone"]);
    let slow = with(pod(&[("stop-after", "20s")]), "", "status", running.clone());
    check(deleted(slow.clone(), 30, 10), &[10, 30], &["10: until 30", "30: gone"]);
    check(deleted(slow.clone(), 5, 10), &[10, 15], &["10: until 15", "15: gone"]);
    check(deleted(slow.clone(), 0, 10), &[10], &["10: gone"]);
    check(deleted(pod(&[("stop-after", "20s")]), 30, 10), &[10], &["10: gone"]);
    let held = with(slow, "/metadata", "finalizers", json!(["f"]));
    check(deleted(held.clone(), 30, 10), &[30, 31], &["30: Succeeded code 0", "31: gone"]);
    check(with(deleted(held, 0, 10), "/status", "phase", "Succeeded".into()), &[31], &["31: -"]);
}

#[test]
fn durations() {
    for (text, expect) in [
        ("0s", Some(0)),
        ("1500ms", Some(1500)),
        ("2m", Some(120_000)),
        ("1h", Some(3_600_000)),
        ("5", None),
        ("s", None),
        ("-1s", None),
        ("1.5s", None),
        ("99999999999h", None),
    ] {
        assert_eq!(duration(text).ok(), expect.map(Duration::from_millis), "{text}");
    }
}
