//! Configuration files, and what becomes of them or what is wrong with them.

use serde_json::{Value, json};

use super::*;

fn file(rest: Value) -> Result<Configuration, Wrong> {
    let mut raw = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration"});
    for (field, value) in rest.as_object().unwrap() {
        raw[field] = value.clone();
    }
    read(&raw)
}

fn one(profile: Value) -> ProfileRef {
    file(json!({"profiles": [profile]})).unwrap().profiles[0].clone()
}

#[test]
fn plugins_go_on_and_off() {
    let usual = one(json!({}));
    assert_eq!((usual.weights, usual.filters), (Profile::default().weights, Plugins::all()));
    let set = |point: &str, set: Value| one(json!({"plugins": {point: set}}));
    let p = set(
        "score",
        json!({"disabled": [{"name": "*"}], "enabled": [{"name": "ImageLocality", "weight": 7}, {"name": "NodeAffinity"}]}),
    );
    assert_eq!((p.weights.image_locality, p.weights.node_affinity, p.weights.taint_toleration), (7, 2, 0));
    assert_eq!(p.filters, Plugins::all());
    let p = set("filter", json!({"disabled": [{"name": "TaintToleration"}]}));
    assert!(!p.has(Plugin::TaintToleration) && p.weights.taint_toleration == 3);
    let p = set(
        "multiPoint",
        json!({"disabled": [{"name": "PodTopologySpread"}], "enabled": [{"name": "TaintToleration", "weight": 5}]}),
    );
    assert!(!p.has(Plugin::PodTopologySpread) && p.weights.pod_topology_spread == 0 && p.weights.taint_toleration == 5);
    assert!(!set("postFilter", json!({"disabled": [{"name": "*"}]})).preempts);
    assert!(!set("preEnqueue", json!({"disabled": [{"name": "SchedulingGates"}]})).has(Plugin::SchedulingGates));
}

#[test]
fn arguments_are_taken() {
    let args = |name: &str, args: Value| one(json!({"pluginConfig": [{"name": name, "args": args}]}));
    let p = args(
        "NodeResourcesFit",
        json!({
            "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "NodeResourcesFitArgs",
            "ignoredResources": ["example.com/foo"], "ignoredResourceGroups": ["other.com"],
            "scoringStrategy": {"type": "RequestedToCapacityRatio", "resources": [{"name": "example.com/gpu", "weight": 3}],
                "requestedToCapacityRatio": {"shape": [{"utilization": 0, "score": 0}, {"utilization": 100, "score": 10}]}},
        }),
    );
    assert!(p.fit.ignores("example.com/foo") && p.fit.ignores("other.com/bar") && !p.fit.ignores("cpu"));
    assert_eq!(p.fit.strategy, Strategy::RequestedToCapacityRatio([(0, 0), (100, 100)].into()));
    assert_eq!(&*p.fit.resources, [(Resource::of("example.com/gpu"), 3)]);
    assert_eq!(args("InterPodAffinity", json!({"hardPodAffinityWeight": 9})).hard_pod_affinity_weight, 9);
    assert_eq!(args("VolumeBinding", json!({"bindTimeoutSeconds": 5})).bind_timeout, Duration::from_secs(5));
    assert_eq!(args("DefaultPreemption", json!({"minCandidateNodesPercentage": 20})).candidates, (20, 100));
    let p = args(
        "PodTopologySpread",
        json!({"defaultingType": "List", "defaultConstraints": [{"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}]}),
    );
    assert!(matches!(&p.spread, SpreadDefaulting::List(l) if l.len() == 1 && l[0].hard));
}

#[test]
fn extenders_are_read() {
    let read = file(json!({"extenders": [{
        "urlPrefix": "https://127.0.0.1:8443/x", "filterVerb": "filter", "prioritizeVerb": "prioritize", "weight": 5,
        "enableHTTPS": true, "httpTimeout": "200ms", "nodeCacheCapable": true, "ignorable": true,
        "managedResources": [{"name": "example.com/foo", "ignoredByScheduler": true}, {"name": "example.com/bar"}],
    }]}));
    let read = read.unwrap();
    let [extender] = &read.extenders[..] else { panic!() };
    assert_eq!((extender.weight, extender.within), (5, Duration::from_millis(200)));
    assert!(extender.tls.insecure && extender.names_only && extender.ignorable);
    assert_eq!(extender.managed, ["example.com/foo", "example.com/bar"]);
    assert!(read.profiles[0].fit.ignores("example.com/foo") && !read.profiles[0].fit.ignores("example.com/bar"));
}

#[test]
fn what_is_wrong_is_said() {
    let bad = |rest: Value| file(rest).unwrap_err().to_string();
    let plugin = |point: &str, set: Value| bad(json!({"profiles": [{"plugins": {point: set}}]}));
    let args = |name: &str, args: Value| bad(json!({"profiles": [{"pluginConfig": [{"name": name, "args": args}]}]}));
    for (said, expect) in [
        (read(&json!({"kind": "Pod"})).unwrap_err().to_string(), "no kind \"Pod\""),
        (bad(json!({"foo": 1})), "unknown field `foo`"),
        (
            bad(json!({"extenders": [{"urlPrefix": "http://x", "prioritizeVerb": "p"}]})),
            "extenders[0].weight: Invalid value: 0: must have a positive weight applied to it",
        ),
        (bad(json!({"extenders": [{"bindVerb": "b"}, {"bindVerb": "b"}]})), "found 2 extenders implementing bind"),
        (
            bad(json!({"extenders": [{"managedResources": [{"name": "a/b"}, {"name": "a/b"}]}]})),
            "extenders[0].managedResources: Invalid value: \"a/b\": duplicate extender managed resource name",
        ),
        (bad(json!({"percentageOfNodesToScore": 101})), "percentageOfNodesToScore: Invalid value"),
        (bad(json!({"podInitialBackoffSeconds": 20, "podMaxBackoffSeconds": 10})), "podMaxBackoffSeconds"),
        (
            bad(json!({"profiles": [{"schedulerName": "a"}, {"schedulerName": "a"}]})),
            "profiles[1].schedulerName: Duplicate value: \"a\"",
        ),
        (
            plugin("score", json!({"enabled": [{"name": "Foo"}]})),
            "profiles[0].plugins.score.enabled[0].name: plugin \"Foo\" does not exist",
        ),
        (plugin("score", json!({"enabled": [{"name": "NodePorts"}]})), "does not extend this point"),
        (plugin("multiPoint", json!({"enabled": [{"name": "GangScheduling"}]})), "is not supported by this scheduler"),
        (
            plugin("queueSort", json!({"disabled": [{"name": "*"}]})),
            "one queue sort plugin required for profile with scheduler name \"default-scheduler\"",
        ),
        (plugin("bind", json!({"disabled": [{"name": "*"}]})), "at least one bind plugin is needed"),
        (args("InterPodAffinity", json!({"hardPodAffinityWeight": 101})), "hardPodAffinityWeight: Invalid value: 101"),
        (args("NodeResourcesFit", json!({"scoringStrategy": {"type": "Best"}})), "Unsupported value: \"Best\""),
        (args("NodePorts", json!({"a": 1})), "takes no arguments"),
        (bad(json!({"leaderElection": {"leaseDuration": "5s"}})), "must be greater than RenewDeadline"),
    ] {
        assert!(said.contains(expect), "{said}\nwant {expect}");
    }
}
