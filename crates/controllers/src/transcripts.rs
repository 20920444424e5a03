//! Plans as data: a world goes in, lines come out.

use std::sync::Arc;

use jiff::Timestamp;
use meta::{Gvr, Object};
use serde_json::{Value, json};

use crate::garbage::Standing;
use crate::node_lifecycle::Health;
use crate::plan::{Plan, What};
use crate::pods::PodView;

fn object(kind: &str, name: &str, extra: Value) -> Arc<Object> {
    let api_version = match kind {
        "Pod" | "Node" | "ConfigMap" | "PersistentVolumeClaim" | "PersistentVolume" => "v1",
        "CronJob" | "Job" => "batch/v1",
        "PodDisruptionBudget" => "policy/v1",
        _ => "apps/v1",
    };
    let mut body = json!({"kind": kind, "apiVersion": api_version, "metadata": {
        "name": name, "namespace": "n", "uid": format!("uid-{name}"), "resourceVersion": "5", "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }});
    for (key, value) in extra.as_object().unwrap() {
        match (body.get_mut(key).and_then(Value::as_object_mut), value) {
            (Some(into), Value::Object(from)) => into.extend(from.clone()),
            _ => body[key] = value.clone(),
        }
    }
    Arc::new(Object::from_value(&body).unwrap())
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Actions, then events, then when to look again.
fn lines(plan: &Plan) -> Vec<String> {
    let mut out: Vec<String> = plan.actions.iter().map(ToString::to_string).collect();
    out.extend(plan.notes.iter().map(|n| format!("{} {}", n.reason, n.message)));
    out.extend(plan.again.map(|d| format!("again in {} s", d.as_secs())));
    out
}

fn status_written(plan: &Plan) -> Value {
    let bodies = plan.actions.iter().filter_map(|a| match &a.what {
        What::Update { subresource: "status", body, .. } => Some(body["status"].clone()),
        _ => None,
    });
    bodies.reduce(|_, last| last).unwrap_or(Value::Null)
}

/// Three pods own each other; the first two wait already. Once the last waits, too, nobody breaks the circle any more.
#[test]
fn a_circle_of_owners_is_broken_before_its_last_member_waits() {
    let owner = |of: &str| json!([{"apiVersion": "v1", "kind": "Pod", "name": of, "uid": format!("uid-{of}"), "blockOwnerDeletion": true}]);
    let waits = json!({"metadata": {"ownerReferences": owner("c"), "deletionTimestamp": "2026-01-01T00:00:00Z",
        "finalizers": ["foregroundDeletion"]}});
    let gvr = Gvr::new("", "v1", "pods");
    let (a, c) = (object("Pod", "a", waits), object("Pod", "c", json!({"metadata": {"ownerReferences": owner("b")}})));
    let plan = crate::garbage::plan(&gvr, &c, &[Standing::Waiting], &[(gvr.clone(), a)]);
    let [unblock, delete] = &plan.actions[..] else { panic!("{plan:?}") };
    assert!(matches!(&unblock.what, What::Patch { name, .. } if name == "a"), "{unblock:?}");
    assert!(matches!(&delete.what, What::Delete { name, .. } if name == "c"), "{delete:?}");
    assert!(plan.stop_at_failure, "a patch that fails leaves the pod undeleted, to be tried again");
}

#[test]
fn owners_decide_what_is_garbage() {
    use Standing::*;
    let owners = |n: usize| -> Value {
        (0..n).map(|i| json!({"apiVersion": "v1", "kind": "Pod", "name": "o", "uid": format!("u{i}")})).collect()
    };
    let gvr = Gvr::new("", "v1", "configmaps");
    for (standing, finalizers, expect) in [
        (&[][..], json!([]), ""),
        (&[Solid], json!([]), ""),
        (&[Gone], json!([]), "delete configmaps n/d Background"),
        (&[Gone], json!(["orphan"]), "delete configmaps n/d Orphan"),
        (&[Gone], json!(["foregroundDeletion"]), "delete configmaps n/d Foreground"),
        (&[Waiting], json!([]), "delete configmaps n/d Background"),
        (&[Gone, Solid], json!([]), "patch configmaps n/d"),
        (&[Waiting, Solid], json!([]), "patch configmaps n/d"),
        (&[Gone, Unknown], json!([]), ""),
    ] {
        let dependent = object(
            "ConfigMap",
            "d",
            json!({"metadata": {"finalizers": finalizers, "ownerReferences": owners(standing.len())}}),
        );
        let plan = crate::garbage::plan(&gvr, &dependent, standing, &[]);
        let said: Vec<String> = plan
            .actions
            .iter()
            .map(|a| match &a.what {
                What::Delete { options, .. } => format!("{a} {}", options.propagation.unwrap().as_str()),
                _ => a.to_string(),
            })
            .collect();
        assert_eq!(said.join("; "), expect, "{standing:?} {finalizers}");
    }
}

#[test]
fn a_waiting_owner_is_let_go_after_its_blocking_dependents() {
    let gvr = Gvr::new("", "v1", "configmaps");
    let owner = object(
        "ConfigMap",
        "o",
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["foregroundDeletion"]}}),
    );
    let dependent = |block: bool| {
        let references = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "uid-o", "blockOwnerDeletion": block}]);
        (gvr.clone(), object("ConfigMap", "d", json!({"metadata": {"ownerReferences": references}})))
    };
    assert!(crate::garbage::plan(&gvr, &owner, &[], &[dependent(true)]).actions.is_empty());
    assert_eq!(lines(&crate::garbage::plan(&gvr, &owner, &[], &[dependent(false)])), ["patch configmaps n/o"]);
}

#[test]
fn cron_jobs_follow_their_schedule() {
    let now = at("2026-01-01T10:07:30Z");
    let job = |name: &str, ended: Option<&str>| {
        let conditions: Value = ended.map(|c| json!({"type": c, "status": "True"})).into_iter().collect();
        object(
            "Job",
            name,
            json!({"metadata": {"ownerReferences": [{"uid": "uid-c"}]}, "status": {"conditions": conditions, "startTime": name}}),
        )
    };
    let next = "again in 60 s";
    let name = format!("c-{}", at("2026-01-01T10:05:00Z").as_second() / 60);
    let running = json!({"status": {"active": [{"name": "j", "uid": "uid-j"}]}});
    for (what, spec, status, jobs, expect) in [
        ("due", json!({}), json!({}), vec![], vec![format!("create jobs n/{name}"), next.into()]),
        ("done", json!({}), json!({"status": {"lastScheduleTime": "2026-01-01T10:05:00Z"}}), vec![], vec![next.into()]),
        ("suspended", json!({"suspend": true}), json!({}), vec![], vec![]),
        ("too late", json!({"startingDeadlineSeconds": 100}), json!({}), vec![], vec![next.into()]),
        (
            "forbidden",
            json!({"concurrencyPolicy": "Forbid"}),
            running.clone(),
            vec![job("j", None)],
            vec![
                "JobAlreadyActive Not starting job because prior execution is running and concurrency policy is Forbid"
                    .into(),
                next.into(),
            ],
        ),
        (
            "replaced",
            json!({"concurrencyPolicy": "Replace"}),
            running.clone(),
            vec![job("j", None)],
            vec![
                "delete jobs n/j".into(),
                format!("create jobs n/{name}"),
                "update cronjobs/status n/c".into(),
                next.into(),
            ],
        ),
        (
            "ended",
            json!({"suspend": true, "successfulJobsHistoryLimit": 1}),
            running,
            vec![job("j", Some("Complete")), job("k", Some("Complete"))],
            vec![
                "delete jobs n/j".into(),
                "update cronjobs/status n/c".into(),
                "SawCompletedJob Saw completed job: j, condition: Complete".into(),
            ],
        ),
        ("bad zone", json!({"timeZone": "Nowhere/At_All"}), json!({}), vec![], vec!["UnknownTimeZone".into()]),
    ] {
        let mut body = json!({"spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": {}}}}});
        body["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        body.as_object_mut().unwrap().extend(status.as_object().unwrap().clone());
        let cron = object("CronJob", "c", body);
        let typed = cron.typed::<k8s_openapi::api::batch::v1::CronJob>().unwrap();
        let mut said = lines(&crate::cronjob::plan(&cron, &typed.spec, &jobs, false, now).unwrap());
        said.retain(|l| !l.starts_with("TooManyMissedTimes"));
        said.iter_mut().filter(|l| l.starts_with("UnknownTimeZone")).for_each(|l| l.truncate("UnknownTimeZone".len()));
        assert_eq!(said, expect, "{what}");
    }
}

#[test]
fn schedules_nobody_can_follow_are_told() {
    let now = at("2026-01-01T10:07:30Z");
    for (schedule, is_changed, expect) in [
        ("TZ=Europe/Paris 0 3 * * *", false, &["UnsupportedSchedule"][..]),
        ("59 23 31 2 *", false, &["InvalidSchedule"]),
        ("whenever", false, &["UnparseableSchedule"]),
        ("whenever", true, &["UnParseableCronJobSchedule"]),
        ("0 3 * * *", true, &[]),
    ] {
        let cron = object(
            "CronJob",
            "c",
            json!({
                "metadata": {"creationTimestamp": "2026-01-01T10:00:00Z"},
                "spec": {"schedule": schedule, "jobTemplate": {"spec": {"template": {}}}},
            }),
        );
        let typed = cron.typed::<k8s_openapi::api::batch::v1::CronJob>().unwrap();
        let plan = crate::cronjob::plan(&cron, &typed.spec, &[], is_changed, now).unwrap();
        let reasons: Vec<&str> = plan.notes.iter().map(|n| n.reason).collect();
        assert_eq!((reasons.as_slice(), plan.actions.len()), (expect, 0), "{schedule}");
    }
}

#[test]
fn a_pod_of_several_budgets_is_told() {
    let budget = |name: &str, app: &str| {
        object("PodDisruptionBudget", name, json!({"spec": {"selector": {"matchLabels": {"app": app}}}}))
    };
    let pod = object("Pod", "p", json!({"metadata": {"labels": {"app": "a"}}}));
    for (budgets, expect) in [
        (vec![budget("x", "a"), budget("y", "b")], None),
        (
            vec![budget("x", "b"), budget("y", "a"), budget("z", "a")],
            Some("Pod \"n\"/\"p\" matches multiple PodDisruptionBudgets.  Chose \"y\" arbitrarily."),
        ),
    ] {
        let plan = crate::disruption::plan_many(&pod, &budgets);
        assert_eq!(plan.notes.first().map(|n| &*n.message), expect);
    }
}

#[test]
fn nodes_that_fall_silent() {
    let now = at("2026-01-01T01:00:00Z");
    let node = |ready: Option<&str>, taints: Value| {
        let conditions: Value = ready.map(|s| json!({"type": "Ready", "status": s})).into_iter().collect();
        object(
            "Node",
            "a",
            json!({"metadata": {"namespace": ""}, "spec": {"taints": taints}, "status": {"conditions": conditions}}),
        )
    };
    let pod = PodView::new(object("Pod", "p", json!({"spec": {"containers": []}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}))).unwrap();
    let both = json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}, {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]);
    for (what, node, silent, may_evict, expect) in [
        ("well", node(Some("True"), json!([])), 10, false, &[][..]),
        ("silent", node(Some("True"), json!([])), 41, false, &["update nodes/status a"]),
        ("unknown", node(Some("Unknown"), json!([])), 41, true, &["patch nodes a", "patch pods/status n/p"]),
        ("tainted", node(Some("Unknown"), both.clone()), 41, false, &["patch pods/status n/p"]),
        ("back", node(Some("True"), both), 0, false, &["patch nodes a"]),
        ("new", node(None, json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])), 5, false, &[]),
    ] {
        let typed = node.typed::<k8s_openapi::api::core::v1::Node>().unwrap();
        let health = Health { silent, grace: 40, may_evict, all_down: false };
        let plan = crate::node_lifecycle::plan(&node, &typed, health, std::slice::from_ref(&pod), now).unwrap();
        assert_eq!(lines(&plan), expect, "{what}");
    }
}

#[test]
fn budgets_allow_what_is_to_spare() {
    let now = at("2026-01-01T01:00:00Z");
    let pods: Vec<PodView> = (0..5)
        .map(|i| {
            let ready = if i < 4 { "True" } else { "False" };
            PodView::new(object(
                "Pod",
                &format!("p{i}"),
                json!({"spec": {"containers": []}, "status": {"conditions": [{"type": "Ready", "status": ready}]}}),
            ))
            .unwrap()
        })
        .collect();
    for (spec, known, expect) in [
        (json!({"minAvailable": 3}), json!({}), (4, 3, 5, 1)),
        (json!({"minAvailable": "50%"}), json!({}), (4, 3, 6, 1)),
        (json!({"maxUnavailable": 1}), json!({}), (4, 5, 6, 0)),
        (json!({"minAvailable": 3}), json!({"disruptedPods": {"p0": "2026-01-01T00:59:30Z"}}), (3, 3, 5, 0)),
        (json!({"minAvailable": 3}), json!({"disruptedPods": {"p0": "2026-01-01T00:50:00Z"}}), (4, 3, 5, 1)),
    ] {
        let budget = object("PodDisruptionBudget", "b", json!({"spec": spec, "status": known}));
        let typed = budget.typed::<k8s_openapi::api::policy::v1::PodDisruptionBudget>().unwrap();
        let plan = crate::disruption::plan(&budget, typed.spec.as_ref().unwrap(), &pods, 6, now).unwrap();
        // Nobody is known to make these pods anew: no share of them can be told.
        let warned = plan.notes.iter().any(|note| note.reason == "UnmanagedPods");
        assert_eq!(warned, !spec["minAvailable"].is_number(), "{spec}");
        let status = status_written(&plan);
        let number = |f: &str| status[f].as_i64().unwrap();
        let said =
            (number("currentHealthy"), number("desiredHealthy"), number("expectedPods"), number("disruptionsAllowed"));
        assert_eq!(said, expect, "{spec}");
    }
}

#[test]
fn failed_job_pods_wait_longer_each_time_and_policies_decide() {
    let pod = |i: usize, phase: &str, code: i64, finished: &str| {
        let state = json!({"terminated": {"exitCode": code, "finishedAt": finished}});
        let body = json!({
            "metadata": {"labels": {"job": "j"}, "finalizers": ["batch.kubernetes.io/job-tracking"], "ownerReferences": [{"kind": "Job", "uid": "uid-j", "controller": true}]},
            "spec": {"containers": []}, "status": {"phase": phase, "containerStatuses": [{"name": "c", "state": state}]},
        });
        PodView::new(object("Pod", &format!("p{i}"), body)).unwrap()
    };
    let now = at("2026-01-01T00:10:00Z");
    let failed = |n: usize| (0..n).map(|i| pod(i, "Failed", 3, "2026-01-01T00:09:58Z")).collect::<Vec<_>>();
    let policy = |action: &str| json!({"podFailurePolicy": {"rules": [{"action": action, "onExitCodes": {"operator": "In", "values": [3]}}]}});
    for (what, extra, pods, expect) in [
        ("first", json!({}), vec![], &["update jobs/status n/j", "create"][..]),
        ("one failure", json!({}), failed(1), &["update jobs/status n/j", "patch pods n/p0", "again in 8 s"]),
        (
            "two failures",
            json!({}),
            failed(2),
            &["update jobs/status n/j", "patch pods n/p0", "patch pods n/p1", "again in 18 s"],
        ),
        ("ignored", policy("Ignore"), failed(1), &["update jobs/status n/j", "patch pods n/p0", "create"]),
        ("suspended", json!({"suspend": true}), vec![], &["update jobs/status n/j", "Suspended Job suspended"]),
    ] {
        let mut body = json!({"spec": {"completions": 1, "parallelism": 1, "backoffLimit": 6, "selector": {"matchLabels": {"job": "j"}}, "template": {"spec": {"containers": [], "restartPolicy": "Never"}}}});
        body["spec"].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let job = object("Job", "j", body);
        let typed = job.typed::<k8s_openapi::api::batch::v1::Job>().unwrap();
        let plan = crate::job::plan(&job, typed.spec.as_ref().unwrap(), &pods, &|_| false, now).unwrap();
        let said: Vec<String> =
            lines(&plan).into_iter().map(|l| if l.starts_with("create pods") { "create".into() } else { l }).collect();
        assert_eq!(said, expect, "{what}");
    }
    let mut body = json!({"spec": {"completions": 1, "parallelism": 1, "backoffLimit": 6, "template": {"spec": {"containers": []}}}});
    body["spec"].as_object_mut().unwrap().extend(policy("FailJob").as_object().unwrap().clone());
    let job = object("Job", "j", body);
    let typed = job.typed::<k8s_openapi::api::batch::v1::Job>().unwrap();
    let status =
        status_written(&crate::job::plan(&job, typed.spec.as_ref().unwrap(), &failed(1), &|_| false, now).unwrap());
    let target = crate::conditions::get(&status, "FailureTarget").unwrap();
    assert_eq!(target["message"], "Container c for pod n/p0 failed with exit code 3 matching FailJob rule at index 0");
}

#[test]
fn the_same_world_makes_the_same_pods() {
    let set = object("ReplicaSet", "web", json!({}));
    let template = k8s_openapi::api::core::v1::PodTemplateSpec::default();
    let plan = |pods: &[PodView]| {
        let set = crate::replicas::Set {
            resource: Gvr::new("apps", "v1", "replicasets"),
            object: &set,
            replicas: 3,
            min_ready_seconds: 0,
            template: &template,
            status: Value::Null,
        };
        let world = crate::replicas::World { pods, crowd: &Default::default, taken: &|_| false, failure: None };
        lines(&crate::replicas::plan(&set, &world, at("2026-01-01T00:00:00Z")).unwrap())
    };
    assert_eq!(plan(&[]), plan(&[]));
    let one = PodView::new(object("Pod", "web-x", json!({"status": {"phase": "Running"}}))).unwrap();
    assert_ne!(plan(&[]), plan(&[one]));
}

#[test]
fn the_clock_of_cron_jobs_may_jump() {
    let spec = json!({"spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": {}}}}, "status": {"lastScheduleTime": "2026-01-08T10:00:00Z"}});
    let cron = object("CronJob", "c", spec);
    let typed = cron.typed::<k8s_openapi::api::batch::v1::CronJob>().unwrap();
    for (now, created, said) in [
        // A week back: nothing is due before the time that was last.
        ("2026-01-01T10:00:00Z", 0, false),
        ("2026-01-08T10:00:01Z", 0, false),
        ("2026-01-08T10:05:00Z", 1, false),
        // A week forward: one Job, not two thousand, and a word about it.
        ("2026-01-15T10:01:00Z", 1, true),
    ] {
        let plan = crate::cronjob::plan(&cron, &typed.spec, &[], false, at(now)).unwrap();
        let creations = plan.actions.iter().filter(|a| matches!(a.what, What::Create { .. })).count();
        let missed = plan.notes.iter().any(|n| n.reason == "TooManyMissedTimes");
        assert_eq!((creations, missed), (created, said), "{now}");
    }
}

/// A Job of indexes, its pods and what it wants.
fn indexed_job(extra: Value, status: Value, pods: &[PodView]) -> Plan {
    let mut body = json!({"spec": {
        "completions": 3, "parallelism": 3, "backoffLimit": 2_147_483_647, "completionMode": "Indexed",
        "selector": {"matchLabels": {"job": "j"}}, "template": {"spec": {"containers": [], "restartPolicy": "Never"}},
    }, "status": status});
    body["spec"].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let job = object("Job", "j", body);
    let typed = job.typed::<k8s_openapi::api::batch::v1::Job>().unwrap();
    crate::job::plan(&job, typed.spec.as_ref().unwrap(), pods, &|_| false, at("2026-01-01T01:00:00Z")).unwrap()
}

fn indexed_pod(index: usize, phase: &str, code: i64, annotations: Value) -> PodView {
    let mut notes = json!({"batch.kubernetes.io/job-completion-index": index.to_string()});
    notes.as_object_mut().unwrap().extend(annotations.as_object().unwrap().clone());
    let state = json!({"terminated": {"exitCode": code, "finishedAt": "2026-01-01T00:00:00Z"}});
    let body = json!({
        "metadata": {"labels": {"job": "j"}, "annotations": notes, "finalizers": ["batch.kubernetes.io/job-tracking"]},
        "spec": {"containers": []}, "status": {"phase": phase, "containerStatuses": [{"name": "c", "state": state}]},
    });
    PodView::new(object("Pod", &format!("p{index}"), body)).unwrap()
}

fn created(plan: &Plan) -> Vec<Value> {
    let groups = plan.actions.iter().filter_map(|a| match &a.what {
        What::SlowStart(actions) => Some(actions),
        _ => None,
    });
    let bodies = groups.flatten().filter_map(|a| match &a.what {
        What::Create { body } => Some(body.clone()),
        _ => None,
    });
    bodies.collect()
}

#[test]
fn failures_of_an_index_are_counted_apart_and_not_forgotten() {
    const COUNTED: &str = "batch.kubernetes.io/job-index-failure-count";
    const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
    let limit = json!({"backoffLimitPerIndex": 2, "podFailurePolicy": {"rules": [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": [9]}}]}});
    for (code, before, counted, ignored) in [
        (3, json!({}), json!("1"), Value::Null),
        (3, json!({COUNTED: "1"}), json!("2"), Value::Null),
        (9, json!({COUNTED: "1"}), json!("1"), json!("1")),
        (9, json!({COUNTED: "1", IGNORED: "2"}), json!("1"), json!("3")),
    ] {
        let pods = [
            indexed_pod(0, "Failed", code, before),
            indexed_pod(1, "Running", 0, json!({})),
            indexed_pod(2, "Running", 0, json!({})),
        ];
        let plan = indexed_job(limit.clone(), json!({}), &pods);
        let next = created(&plan);
        assert_eq!(next.len(), 1);
        let notes = &next[0]["metadata"]["annotations"];
        assert_eq!((&notes[COUNTED], &notes[IGNORED]), (&counted, &ignored), "{code}");
        assert!(!lines(&plan).contains(&"patch pods n/p0".into()), "stays until it is replaced");
    }
    // At the limit the index has failed, and the pod is let go.
    let pods = [
        indexed_pod(0, "Failed", 3, json!({COUNTED: "2"})),
        indexed_pod(1, "Running", 0, json!({})),
        indexed_pod(2, "Running", 0, json!({})),
    ];
    let plan = indexed_job(limit, json!({}), &pods);
    assert_eq!(status_written(&plan)["failedIndexes"], "0");
    assert_eq!((created(&plan).len(), lines(&plan).contains(&"patch pods n/p0".into())), (0, true));
}

#[test]
fn failing_goes_before_early_success() {
    let both = json!({
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [3]}}]},
    });
    let pods = |code: i64| {
        [
            indexed_pod(0, "Succeeded", 0, json!({})),
            indexed_pod(1, "Failed", code, json!({})),
            indexed_pod(2, "Running", 0, json!({})),
        ]
    };
    for (code, kind) in [(3, "FailureTarget"), (4, "SuccessCriteriaMet")] {
        let status = status_written(&indexed_job(both.clone(), json!({}), &pods(code)));
        assert!(crate::conditions::is_true(&status, kind), "{code} {status}");
    }
}

/// A set of so many pods, each (ordinal, revision, ready), and claims by name.
fn stateful(spec: Value, pods: &[(i64, &str, bool)], claim: &dyn Fn(&str) -> Option<Arc<Object>>) -> Vec<String> {
    let mut body = json!({"spec": {"replicas": 3, "serviceName": "", "selector": {"matchLabels": {"app": "s"}}, "template": {"spec": {"containers": []}}},
        "status": {"currentRevision": "old", "updateRevision": "new", "replicas": pods.len()}});
    body["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let set = object("StatefulSet", "s", body);
    let typed = set.typed::<k8s_openapi::api::apps::v1::StatefulSet>().unwrap();
    let pods: Vec<PodView> = pods
        .iter()
        .map(|(at, revision, ready)| {
            let ready = if *ready { "True" } else { "False" };
            let body = json!({"metadata": {"labels": {"app": "s", "controller-revision-hash": revision}}, "spec": {"containers": []},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}});
            PodView::new(object("Pod", &format!("s-{at}"), body)).unwrap()
        })
        .collect();
    let history = crate::history::History {
        name: "new".into(),
        hash: "new".into(),
        known: Vec::new(),
        actions: Vec::new(),
        collided: false,
    };
    let world = crate::statefulset::World { pods: &pods, history, claim };
    let mut said = lines(&crate::statefulset::plan(&set, &typed.spec, world, at("2026-01-01T01:00:00Z")).unwrap());
    said.retain(|l| !l.starts_with("update statefulsets/status"));
    said
}

#[test]
fn stateful_sets_step_by_step() {
    let none = |_: &str| None;
    let parallel = json!({"podManagementPolicy": "Parallel"});
    let with = |mut a: Value, b: Value| {
        a.as_object_mut().unwrap().extend(b.as_object().unwrap().clone());
        a
    };
    let down = |n: i64| json!({"replicas": n});
    let (new, old) = ("new", "old");
    for (what, spec, pods, expect) in [
        ("in order", json!({}), vec![], &["create pods n/s-0"][..]),
        ("waits", json!({}), vec![(0, new, false)], &[]),
        ("all at once", parallel.clone(), vec![], &["create pods n/s-0; create pods n/s-1; create pods n/s-2"]),
        ("from the top", down(1), vec![(0, new, true), (1, new, true), (2, new, true)], &["delete pods n/s-2"]),
        (
            "a healthy one does not wait for those below",
            down(1),
            vec![(0, new, true), (1, new, false), (2, new, true)],
            &["delete pods n/s-2"],
        ),
        ("an unhealthy one waits for one below", down(1), vec![(0, new, true), (1, new, false), (2, new, false)], &[]),
        (
            "down at once",
            with(down(1), parallel.clone()),
            vec![(0, new, true), (1, new, true), (2, new, true)],
            &["delete pods n/s-2; delete pods n/s-1"],
        ),
        ("rolls", json!({}), vec![(0, old, true), (1, old, true), (2, old, true)], &["delete pods n/s-2"]),
        ("rolls on", json!({}), vec![(0, old, true), (1, old, true), (2, new, true)], &["delete pods n/s-1"]),
        (
            "broken first",
            parallel.clone(),
            vec![(0, old, false), (1, old, true), (2, old, true)],
            &["delete pods n/s-0"],
        ),
        (
            "to its partition",
            json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}),
            vec![(0, old, true), (1, old, true), (2, new, true)],
            &[],
        ),
        (
            "two at once",
            with(
                parallel.clone(),
                json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}}}),
            ),
            vec![(0, old, true), (1, old, true), (2, old, true)],
            &["delete pods n/s-2", "delete pods n/s-1"],
        ),
        ("from five on", json!({"ordinals": {"start": 5}}), vec![(5, new, true)], &["create pods n/s-6"]),
    ] {
        assert_eq!(stateful(spec, &pods, &none), expect, "{what}");
    }
}

#[test]
fn claims_of_another_controller_are_left_to_it() {
    let spec = json!({
        "replicas": 1, "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
    });
    let owner = |kind: &str, name: &str, uid: &str, controller: bool| json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": controller});
    let (set, other) = (owner("StatefulSet", "s", "uid-s", true), owner("Other", "o", "uid-o", true));
    for (what, owners, is_written, is_told) in [
        ("nobody's", json!([]), true, false),
        ("its own", json!([set]), false, false),
        ("its own, not under its control", json!([owner("StatefulSet", "s", "uid-s", false)]), true, false),
        ("another's", json!([other]), false, true),
        ("another's too", json!([set, other]), true, true),
        ("a friend's", json!([set, owner("Other", "o", "uid-o", false)]), false, false),
        ("of a set before", json!([owner("StatefulSet", "s", "gone", true)]), false, true),
    ] {
        let claim = |_: &str| {
            Some(object("PersistentVolumeClaim", "data-s-0", json!({"metadata": {"ownerReferences": owners}})))
        };
        let said = stateful(spec.clone(), &[(0, "new", true)], &claim);
        assert_eq!(said.iter().any(|line| line == "patch persistentvolumeclaims n/data-s-0"), is_written, "{what}");
        assert_eq!(said.iter().any(|line| line.starts_with("ConflictingController ")), is_told, "{what}");
    }
}

#[test]
fn a_new_pod_waits_for_its_predecessors_claim_to_go() {
    let claims =
        json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]});
    let stale = |_: &str| {
        let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "s-0", "uid": "gone"}]);
        Some(object("PersistentVolumeClaim", "data-s-0", json!({"metadata": {"ownerReferences": owner}})))
    };
    let kept = |_: &str| Some(object("PersistentVolumeClaim", "data-s-0", json!({})));
    assert_eq!(stateful(claims.clone(), &[], &stale), ["again in 1 s"]);
    assert_eq!(stateful(claims.clone(), &[], &kept), ["create pods n/s-0"]);
    assert_eq!(stateful(claims, &[], &|_| None), ["create persistentvolumeclaims n/data-s-0", "create pods n/s-0"]);
}

#[test]
fn budgets_nobody_can_reckon_allow_nothing_and_idle_words_are_taken_back() {
    let now = at("2026-01-01T01:00:00Z");
    let budget =
        object("PodDisruptionBudget", "b", json!({"spec": {"maxUnavailable": 1}, "status": {"disruptionsAllowed": 2}}));
    let plan =
        crate::disruption::fail_safe(&budget, "jobs.batch does not implement the scale subresource", now).unwrap();
    let status = status_written(&plan);
    let condition = crate::conditions::get(&status, "DisruptionAllowed").unwrap();
    assert_eq!((&status["disruptionsAllowed"], &condition["reason"]), (&json!(0), &json!("SyncFailed")));
    for (reason, since, deleted, expect) in [
        ("EvictionByEvictionAPI", "2026-01-01T00:50:00Z", false, &["patch pods/status n/p"][..]),
        ("EvictionByEvictionAPI", "2026-01-01T00:59:30Z", false, &["again in 90 s"]),
        ("EvictionByEvictionAPI", "2026-01-01T00:50:00Z", true, &[]),
        ("TerminationByKubelet", "2026-01-01T00:50:00Z", false, &[]),
    ] {
        let condition =
            json!({"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": since});
        let mut body = json!({"spec": {"containers": []}, "status": {"phase": "Running", "conditions": [condition]}});
        if deleted {
            body["metadata"] = json!({"deletionTimestamp": since});
        }
        let pod = PodView::new(object("Pod", "p", body)).unwrap();
        assert_eq!(lines(&crate::disruption::plan_stale(&pod, now).unwrap()), expect, "{reason}");
    }
}

#[test]
fn a_volume_asked_for_by_name_must_suit() {
    use crate::volumes::{Volume, plan_claim};
    let spec = |class: &str, mode: &str, size: &str| {
        json!({"spec": {"storageClassName": class, "accessModes": [mode], "capacity": {"storage": size},
            "resources": {"requests": {"storage": size}}}})
    };
    let check = |volume: Value, expect: &[&str]| {
        let object = object("PersistentVolume", "pv", volume);
        let volume = Volume { typed: object.typed().unwrap(), object };
        let mut wanted = spec("slow", "ReadWriteOnce", "5Gi");
        wanted["spec"]["volumeName"] = "pv".into();
        let claim = self::object("PersistentVolumeClaim", "c", wanted);
        let plan = plan_claim(&claim, &claim.typed().unwrap(), &[volume], None, &[]).unwrap();
        assert_eq!(lines(&plan), expect);
    };
    let pending = "update persistentvolumeclaims/status n/c";
    let mismatch = |why: &str| format!("VolumeMismatch Cannot bind to requested volume \"pv\": {why}");
    for (volume, why) in [
        (spec("slow", "ReadWriteOnce", "1Gi"), "requested PV is too small"),
        (spec("fast", "ReadWriteOnce", "9Gi"), "storageClassName does not match"),
        (spec("slow", "ReadOnlyMany", "9Gi"), "incompatible accessMode"),
    ] {
        check(volume, &[pending, &mismatch(why)]);
    }
    let old = json!({"metadata": {"annotations": {"volume.beta.kubernetes.io/storage-class": "slow"}}});
    let mut volume = spec("", "ReadWriteOnce", "9Gi");
    volume["metadata"] = old["metadata"].clone();
    check(volume, &["patch persistentvolumes n/pv", "patch persistentvolumeclaims n/c"]);
}
