//! The flow schemas and priority levels every cluster has: facts of `k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap`.

use meta::Value;
use serde_json::json;

use super::{GROUP, LEVELS, SCHEMAS};
use crate::bootstrap::{Wanted, object};

/// Name, nominal shares, percent that may be lent, and queues with their hand size; none rejects.
const LIMITED: [(&str, u32, u32, Option<(u32, u32)>); 7] = [
    ("catch-all", 5, 0, None),
    ("system", 30, 33, Some((64, 6))),
    ("node-high", 40, 25, Some((64, 6))),
    ("leader-election", 10, 0, Some((16, 4))),
    ("workload-high", 40, 50, Some((128, 6))),
    ("workload-low", 100, 90, Some((128, 6))),
    ("global-default", 20, 50, Some((128, 6))),
];
const QUEUE_LENGTH: u32 = 50;

fn level(name: &str, spec: Value) -> Wanted {
    labelled(LEVELS, "PriorityLevelConfiguration", name, spec)
}

fn labelled(plural: &str, kind: &str, name: &str, spec: Value) -> Wanted {
    let body = json!({"metadata": {"annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}}, "spec": spec});
    object(GROUP, "v1", plural, "", kind, name, body)
}

fn groups(names: &[&str]) -> Vec<Value> {
    names.iter().map(|name| json!({"kind": "Group", "group": {"name": name}})).collect()
}

fn users(names: &[&str]) -> Vec<Value> {
    names.iter().map(|name| json!({"kind": "User", "user": {"name": name}})).collect()
}

fn kube_system(names: &[&str]) -> Vec<Value> {
    let account =
        |name: &&str| json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system", "name": name}});
    names.iter().map(account).collect()
}

fn resources(verbs: &[&str], group: &str, resources: &[&str], cluster_scope: bool) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
    if cluster_scope {
        rule["clusterScope"] = true.into();
    }
    rule
}

/// What belongs to whom, whatever it is.
fn everything(subjects: Vec<Value>) -> Value {
    json!({
        "subjects": subjects,
        "resourceRules": [resources(&["*"], "*", &["*"], true)],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    })
}

fn of_resources(subjects: Vec<Value>, rules: Vec<Value>) -> Value {
    json!({"subjects": subjects, "resourceRules": rules})
}

fn schemas() -> Vec<(&'static str, &'static str, u32, &'static str, Value)> {
    const LEASES: &str = "coordination.k8s.io";
    let manager = "system:kube-controller-manager";
    let scheduler = "system:kube-scheduler";
    let all = || groups(&["system:unauthenticated", "system:authenticated"]);
    let with = |mut first: Vec<Value>, more: Vec<Value>| {
        first.extend(more);
        first
    };
    let probes = json!({
        "subjects": all(),
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}],
    });
    let leases = resources(&["get", "create", "update"], LEASES, &["leases"], false);
    vec![
        ("exempt", "exempt", 1, "", everything(groups(&["system:masters"]))),
        ("probes", "exempt", 2, "", probes),
        (
            "system-leader-election",
            "leader-election",
            100,
            "ByUser",
            of_resources(with(users(&[manager, scheduler]), kube_system(&["*"])), vec![leases]),
        ),
        (
            "system-node-high",
            "node-high",
            400,
            "ByUser",
            of_resources(
                groups(&["system:nodes"]),
                vec![
                    resources(&["*"], "", &["nodes", "nodes/status"], true),
                    resources(&["*"], LEASES, &["leases"], false),
                ],
            ),
        ),
        ("system-nodes", "system", 500, "ByUser", everything(groups(&["system:nodes"]))),
        ("kube-controller-manager", "workload-high", 800, "ByNamespace", everything(users(&[manager]))),
        ("kube-scheduler", "workload-high", 800, "ByNamespace", everything(users(&[scheduler]))),
        ("kube-system-service-accounts", "workload-high", 900, "ByNamespace", everything(kube_system(&["*"]))),
        ("service-accounts", "workload-low", 9000, "ByUser", everything(groups(&["system:serviceaccounts"]))),
        ("global-default", "global-default", 9900, "ByUser", everything(all())),
        ("catch-all", "catch-all", 10_000, "ByUser", everything(all())),
    ]
}

/// All of them.
pub(crate) fn wanted() -> Vec<Wanted> {
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let mut out = vec![level("exempt", exempt)];
    for (name, shares, lendable, queues) in LIMITED {
        let response = match queues {
            None => json!({"type": "Reject"}),
            Some((queues, hand)) => json!({
                "type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": QUEUE_LENGTH},
            }),
        };
        let limited =
            json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response});
        out.push(level(name, json!({"type": "Limited", "limited": limited})));
    }
    for (name, level, precedence, distinguisher, rule) in schemas() {
        let mut spec = json!({
            "matchingPrecedence": precedence, "priorityLevelConfiguration": {"name": level}, "rules": [rule],
        });
        if !distinguisher.is_empty() {
            spec["distinguisherMethod"] = json!({"type": distinguisher});
        }
        out.push(labelled(SCHEMAS, "FlowSchema", name, spec));
    }
    out
}
