//! Configuration files, and what becomes of them or what is wrong with them.

use serde_json::{Value, json};

use super::*;
use crate::profile::{Resource, SpreadDefaulting, Strategy};
use crate::verdict::{Plugin, Plugins};

fn file(rest: Value) -> Result<Configuration, Wrong> {
    let mut raw = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration"});
    for (field, value) in rest.as_object().unwrap() {
        raw[field] = value.clone();
    }
    read(&raw, Gates { groups: true, topology: true, ..Gates::default() })
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
    assert_eq!((p.weights.image_locality, p.weights.node_affinity, p.weights.taint_toleration), (7, 1, 0));
    assert_eq!(p.filters, Plugins::all());
    let p = set("filter", json!({"disabled": [{"name": "TaintToleration"}]}));
    assert!(!p.has(Plugin::TaintToleration) && p.weights.taint_toleration == 3);
    let p = set(
        "multiPoint",
        json!({"disabled": [{"name": "PodTopologySpread"}], "enabled": [{"name": "TaintToleration", "weight": 5}]}),
    );
    assert!(!p.has(Plugin::PodTopologySpread) && p.weights.pod_topology_spread == 0 && p.weights.taint_toleration == 5);
    let p = set("postFilter", json!({"disabled": [{"name": "*"}]}));
    assert!(!p.preempts && p.preempts_for_groups);
    assert!(!set("podGroupPostFilter", json!({"disabled": [{"name": "DefaultPreemption"}]})).preempts_for_groups);
    assert!(!set("preEnqueue", json!({"disabled": [{"name": "SchedulingGates"}]})).has(Plugin::SchedulingGates));
    assert!(!set("multiPoint", json!({"disabled": [{"name": "GangScheduling"}]})).has(Plugin::GangScheduling));
    let off = json!({"disabled": [{"name": "TopologyPlacementGenerator"}, {"name": "PodGroupPodsCount"}]});
    let p = set("multiPoint", off);
    assert!(!p.generates_placements && p.weights.placement_pods_count == 0 && p.weights.placement_fit == 1);
    // A point's own set goes before the common one; who is not known may be switched off.
    let both = json!({"multiPoint": {"disabled": [{"name": "*"}], "enabled": [{"name": "PrioritySort"},
        {"name": "DefaultBinder"}, {"name": "NodeResourcesFit", "weight": 9}]}, "score": {"disabled": [{"name": "Foo"}],
        "enabled": [{"name": "NodeResourcesFit", "weight": 4}]}});
    let p = one(json!({"plugins": both}));
    assert_eq!((p.weights.node_resources_fit, p.weights.placement_fit), (4, 9));
    assert_eq!(p.filters, Plugins::of(&[Plugin::NodeResourcesFit]));
}

#[test]
fn every_default_plugin_can_be_named() {
    // Name and points, as upstream has them.
    for (name, points) in [
        ("SchedulingGates", "preEnqueue"),
        ("PrioritySort", "queueSort"),
        ("NodeUnschedulable", "filter"),
        ("NodeName", "filter"),
        ("TaintToleration", "filter preScore score"),
        ("NodeAffinity", "preFilter filter preScore score"),
        ("NodePorts", "preFilter filter"),
        ("NodeResourcesFit", "preFilter filter preScore score placementScore"),
        ("VolumeRestrictions", "preFilter filter"),
        ("NodeVolumeLimits", "preFilter filter"),
        ("VolumeBinding", "preFilter filter reserve preBind preScore score"),
        ("VolumeZone", "preFilter filter"),
        ("PodTopologySpread", "preFilter filter preScore score"),
        ("InterPodAffinity", "preFilter filter preScore score"),
        ("DynamicResources", "preEnqueue preFilter filter postFilter score reserve preBind"),
        ("DefaultPreemption", "postFilter preEnqueue podGroupPostFilter"),
        ("NodeResourcesBalancedAllocation", "preScore score"),
        ("ImageLocality", "score"),
        ("DefaultBinder", "bind"),
        ("NodeDeclaredFeatures", "preFilter filter"),
        ("GangScheduling", "preEnqueue permit reserve"),
        ("TopologyPlacementGenerator", "placementGenerate"),
        ("PodGroupPodsCount", "placementScore"),
        ("DeferredPodScheduling", "preFilter filter"),
    ] {
        for point in points.split(' ').chain(["multiPoint"]) {
            one(json!({"plugins": {point: {"enabled": [{"name": name, "weight": 2}]}}}));
        }
        let wrong = if name == "ImageLocality" { "filter" } else { "postBind" };
        let said = file(json!({"profiles": [{"plugins": {wrong: {"enabled": [{"name": name}]}}}]})).unwrap_err();
        assert!(said.to_string().contains("does not extend"), "{said}");
    }
    assert_eq!(names(Gates::default()).len(), 20);
    assert_eq!(
        names(Gates { groups: true, topology: true, ..Gates::default() })[20..],
        ["GangScheduling", "TopologyPlacementGenerator", "PodGroupPodsCount"]
    );
}

fn names(gates: Gates) -> Vec<String> {
    let usual = Configuration::usual(gates).unwrap().document;
    let enabled = usual["Profiles"][0]["Plugins"]["MultiPoint"]["Enabled"].as_array().unwrap().clone();
    enabled.iter().map(|p| p["Name"].as_str().unwrap().to_string()).collect()
}

#[test]
fn values_of_other_types_are_told_as_go_tells_them() {
    let bad = |rest: Value| file(rest).unwrap_err().to_string();
    // The right side is what upstream says of the same file.
    for (given, found, of, path, wanted) in [
        (json!({"parallelism": "x", "bogus": 1}), "string", "KubeSchedulerConfiguration", "parallelism", "int32"),
        (json!({"parallelism": 1.5}), "number 1.5", "KubeSchedulerConfiguration", "parallelism", "int32"),
        (
            json!({"parallelism": 99999999999_i64}),
            "number 99999999999",
            "KubeSchedulerConfiguration",
            "parallelism",
            "int32",
        ),
        (json!({"parallelism": [1]}), "array", "KubeSchedulerConfiguration", "parallelism", "int32"),
        (json!({"enableProfiling": 1}), "number", "KubeSchedulerConfiguration", "enableProfiling", "bool"),
        (json!({"profiles": {}}), "object", "KubeSchedulerConfiguration", "profiles", "[]v1.KubeSchedulerProfile"),
        (json!({"profiles": [1]}), "number", "KubeSchedulerConfiguration", "profiles", "v1.KubeSchedulerProfile"),
        (
            json!({"profiles": [{"schedulerName": 5}]}),
            "number",
            "KubeSchedulerProfile",
            "profiles.schedulerName",
            "string",
        ),
        (json!({"profiles": [{"plugins": []}]}), "array", "KubeSchedulerProfile", "profiles.plugins", "v1.Plugins"),
        (
            json!({"profiles": [{"plugins": {"score": {"enabled": [{"name": "NodePorts", "weight": "heavy"}]}}}]}),
            "string",
            "Plugin",
            "profiles.plugins.score.enabled.weight",
            "int32",
        ),
        (
            json!({"profiles": [{"plugins": {"score": {"enabled": "NodePorts"}}}]}),
            "string",
            "PluginSet",
            "profiles.plugins.score.enabled",
            "[]v1.Plugin",
        ),
        (
            json!({"leaderElection": true}),
            "bool",
            "KubeSchedulerConfiguration",
            "leaderElection",
            "v1alpha1.LeaderElectionConfiguration",
        ),
        (
            json!({"leaderElection": {"leaseDuration": 15}}),
            "number",
            "LeaderElectionConfiguration",
            "leaderElection.leaseDuration",
            "string",
        ),
        (
            json!({"clientConnection": {"qps": "fast"}}),
            "string",
            "ClientConnectionConfiguration",
            "clientConnection.qps",
            "float32",
        ),
        (
            json!({"clientConnection": {"burst": 1.5}}),
            "number 1.5",
            "ClientConnectionConfiguration",
            "clientConnection.burst",
            "int32",
        ),
        (
            json!({"extenders": [{"tlsConfig": "x"}]}),
            "string",
            "Extender",
            "extenders.tlsConfig",
            "v1.ExtenderTLSConfig",
        ),
        (
            json!({"extenders": [{"managedResources": ["a"]}]}),
            "string",
            "Extender",
            "extenders.managedResources",
            "v1.ExtenderManagedResource",
        ),
        (
            json!({"profiles": [{"pluginConfig": [{"name": [1]}]}]}),
            "array",
            "PluginConfig",
            "profiles.pluginConfig.name",
            "string",
        ),
    ] {
        let expect = format!("json: cannot unmarshal {found} into Go struct field {of}.{path} of type {wanted}");
        assert_eq!(bad(given), expect);
    }
    for (name, given, found, field, wanted) in [
        (
            "NodeResourcesFit",
            json!({"ignoredResources": "x"}),
            "string",
            "NodeResourcesFitArgs.ignoredResources",
            "[]string",
        ),
        (
            "NodeResourcesFit",
            json!({"scoringStrategy": {"resources": [{"name": "cpu", "weight": "x"}]}}),
            "string",
            "ResourceSpec.scoringStrategy.resources.weight",
            "int64",
        ),
        (
            "NodeAffinity",
            json!({"addedAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": "x"}}}),
            "string",
            "NodeSelector.addedAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms",
            "[]v1.NodeSelectorTerm",
        ),
        (
            "PodTopologySpread",
            json!({"defaultConstraints": [{"maxSkew": "x"}]}),
            "string",
            "TopologySpreadConstraint.defaultConstraints.maxSkew",
            "int32",
        ),
        (
            "VolumeBinding",
            json!({"bindTimeoutSeconds": "5s"}),
            "string",
            "VolumeBindingArgs.bindTimeoutSeconds",
            "int64",
        ),
    ] {
        let said = bad(json!({"profiles": [{"pluginConfig": [{"name": name, "args": given}]}]}));
        let before = format!("decoding .profiles[0].pluginConfig[0]: decoding args for plugin {name}");
        assert_eq!(
            said,
            format!("{before}: json: cannot unmarshal {found} into Go struct field {field} of type {wanted}")
        );
    }
    let wanted =
        r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
    let look = "couldn't get version/kind; json parse error: json: cannot unmarshal";
    for (given, expect) in [
        (json!(["a"]), format!("{look} array into Go value of type {wanted}")),
        (json!("x"), format!("{look} string into Go value of type {wanted}")),
        (
            json!({"apiVersion": 5, "kind": "x"}),
            format!("{look} number into Go struct field .apiVersion of type string"),
        ),
        (Value::Null, "Object 'Kind' is missing in ''".into()),
    ] {
        assert_eq!(read(&given, Gates::default()).unwrap_err().to_string(), expect);
    }
    // Null is as good as nothing.
    let nothing = json!({"parallelism": null, "profiles": [{"schedulerName": null, "plugins": null}], "extenders": null,
        "leaderElection": {"resourceName": null}});
    assert_eq!(file(nothing).unwrap().document, file(json!({"profiles": [{}]})).unwrap().document);
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
    assert_eq!(args("VolumeBinding", Value::Null).volume_shape.as_deref(), Some(&[(0, 100), (100, 0)][..]));
    let shape = json!({"shape": [{"utilization": 0, "score": 0}, {"utilization": 50, "score": 7}]});
    assert_eq!(args("VolumeBinding", shape).volume_shape.as_deref(), Some(&[(0, 0), (50, 70)][..]));
    assert_eq!(args("DefaultPreemption", json!({"minCandidateNodesPercentage": 20})).candidates, (20, 100));
    let p = args("DynamicResources", json!({"filterTimeout": "0s", "bindingTimeout": "1m30s"}));
    assert_eq!((p.devices_filter_within, p.devices_ready_within), (None, Duration::from_secs(90)));
    let p = args("DynamicResources", Value::Null);
    assert_eq!(
        (p.devices_filter_within, p.devices_ready_within),
        (Some(Duration::from_secs(10)), Duration::from_secs(600))
    );
    let p = args(
        "PodTopologySpread",
        json!({"defaultingType": "List", "defaultConstraints": [{"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}]}),
    );
    assert!(matches!(&p.spread, SpreadDefaulting::List(l) if l.len() == 1 && l[0].hard));
    // A wish that counts for nothing may be anything.
    let idle = json!([{"weight": 0, "preference": {"matchExpressions": [{"key": "a", "operator": "Lt"}]}}]);
    args("NodeAffinity", json!({"addedAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": idle}}));
    // Plugins without arguments, and those nobody knows, are left alone.
    args("NodePorts", json!({"a": 1}));
    args("Foo", json!({"a": 1}));
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
    assert_eq!(read.document["Extenders"][0]["HTTPTimeout"], "200ms");
}

#[test]
fn what_is_in_effect_is_shown() {
    let shown = file(json!({"parallelism": 3, "leaderElection": {"leaderElect": false}})).unwrap().document;
    for (at, expect) in [
        ("/apiVersion", json!("kubescheduler.config.k8s.io/v1")),
        ("/Parallelism", json!(3)),
        ("/LeaderElection/LeaderElect", json!(false)),
        ("/LeaderElection/RenewDeadline", json!("10s")),
        ("/PodMaxBackoffSeconds", json!(10)),
        ("/Profiles/0/SchedulerName", json!("default-scheduler")),
        ("/Profiles/0/Plugins/Score", json!({"Enabled": null, "Disabled": null})),
        ("/Profiles/0/Plugins/MultiPoint/Enabled/4", json!({"Name": "TaintToleration", "Weight": 3})),
        ("/Profiles/0/PluginConfig/0/Name", json!("DefaultPreemption")),
        ("/Profiles/0/PluginConfig/0/Args/MinCandidateNodesAbsolute", json!(100)),
        ("/Profiles/0/PluginConfig/1/Args", json!({"FilterTimeout": "10s", "BindingTimeout": "10m0s"})),
        ("/Extenders", Value::Null),
    ] {
        assert_eq!(shown.pointer(at), Some(&expect), "{at} of {shown:#}");
    }
}

#[test]
fn what_is_written_reads_the_same() {
    for rest in [
        json!({}),
        json!({
            "profiles": [{"schedulerName": "a", "percentageOfNodesToScore": 7, "plugins": {"score": {"disabled": [{"name": "*"}], "enabled": [{"name": "ImageLocality", "weight": 3}]}},
                "pluginConfig": [{"name": "NodeResourcesFit", "args": {"scoringStrategy": {"type": "MostAllocated", "resources": [{"name": "cpu", "weight": 2}]}}}]}],
            "extenders": [{"urlPrefix": "https://x", "enableHTTPS": true, "filterVerb": "f", "tlsConfig": {"caFile": "/ca"}, "httpTimeout": "1s"}],
            "leaderElection": {"leaseDuration": "20s"}, "clientConnection": {"qps": 7.0},
        }),
    ] {
        let first = file(rest).unwrap();
        let text = written(&first.document);
        let second = read(&text, Gates { groups: true, topology: true, ..Gates::default() }).unwrap();
        assert_eq!(written(&second.document), text);
        let profile = |c: &Configuration| {
            let p = &c.profiles[0];
            (p.scheduler_name.clone(), p.filters, p.weights, p.fit.clone(), p.preempts)
        };
        assert_eq!(profile(&first), profile(&second));
        assert_eq!((&first.extenders, &first.leader_election), (&second.extenders, &second.leader_election));
    }
}

#[test]
fn what_is_wrong_is_said() {
    let bad = |rest: Value| file(rest).unwrap_err().to_string();
    let profile = |profile: Value| bad(json!({"profiles": [profile]}));
    let plugin = |point: &str, set: Value| profile(json!({"plugins": {point: set}}));
    let args = |name: &str, args: Value| profile(json!({"pluginConfig": [{"name": name, "args": args}]}));
    let unscored = |args: Value| {
        let raw = json!({"apiVersion": GROUP_VERSION, "kind": "KubeSchedulerConfiguration",
            "profiles": [{"pluginConfig": [{"name": "VolumeBinding", "args": args}]}]});
        read(&raw, Gates { capacity_scoring: false, ..Gates::default() }).unwrap_err().to_string()
    };
    let constraint = json!([{"maxSkew": 0, "topologyKey": "", "whenUnsatisfiable": "X", "labelSelector": {}}]);
    let of_profile =
        |said: &str| format!("initializing profiles: creating profile for scheduler name default-scheduler: {said}");
    let of_args = |said: &str| format!("profiles[0].pluginConfig[0].args.{said}");
    // The right side is what upstream says of the same file.
    for (said, expect) in [
        (bad(json!({"kind": "Pod"})), "no kind \"Pod\" is registered for version \"kubescheduler.config.k8s.io/v1\"".into()),
        (bad(json!({"apiVersion": "v1"})), "no kind \"KubeSchedulerConfiguration\" is registered for version \"v1\"".into()),
        (bad(json!({"foo": 1})), "strict decoding error: unknown field \"foo\"".to_string()),
        (profile(json!({"foo": 1})), "strict decoding error: unknown field \"profiles[0].foo\"".into()),
        (
            bad(json!({"leaderElection": {"x": 1}, "extenders": [{"tlsConfig": {"caFiles": ""}}]})),
            "strict decoding error: unknown field \"extenders[0].tlsConfig.caFiles\", unknown field \"leaderElection.x\"".into(),
        ),
        (
            bad(json!({"parallelism": 0, "percentageOfNodesToScore": -1})),
            "[parallelism: Invalid value: 0: should be an integer value greater than zero, percentageOfNodesToScore: Invalid value: -1: not in valid range [0-100]]".into(),
        ),
        (
            bad(json!({"podInitialBackoffSeconds": 20, "podMaxBackoffSeconds": 10})),
            "podMaxBackoffSeconds: Invalid value: 10: must be greater than or equal to PodInitialBackoffSeconds".into(),
        ),
        (
            bad(json!({"apiVersion": ""})),
            "Object 'apiVersion' is missing in '{\"apiVersion\":\"\",\"kind\":\"KubeSchedulerConfiguration\"}'".into(),
        ),
        (bad(json!({"extenders": [{"httpTimeout": "5"}]})), "time: missing unit in duration \"5\"".into()),
        (bad(json!({"extenders": [{"httpTimeout": "1s5x"}]})), "time: unknown unit \"x\" in duration \"1s5x\"".into()),
        (bad(json!({"leaderElection": {"retryPeriod": "abc"}})), "time: invalid duration \"abc\"".into()),
        (
            bad(json!({"extenders": [{"tlsConfig": {"certData": "not base64!"}}]})),
            "illegal base64 data at input byte 3".into(),
        ),
        (bad(json!({"extenders": [{"tlsConfig": {"caData": "abcde"}}]})), "illegal base64 data at input byte 4".into()),
        (
            bad(json!({"profiles": [{"plugins": {"queueSort": {"enabled": [{"name": "PrioritySort"}, {"name": "X"}]}}}]})),
            "profiles[0].plugins.queueSort.Enabled: Invalid value: 2: only one queue sort plugin can be enabled".into(),
        ),
        (
            bad(json!({"profiles": [{"schedulerName": "a"}, {"schedulerName": "b", "plugins": {"queueSort": {"disabled": [{"name": "*"}]}}}]})),
            "profiles[1].plugins.queueSort: Invalid value: {\"Enabled\":null,\"Disabled\":[{\"Name\":\"*\",\"Weight\":0}]}: has to match for all profiles".into(),
        ),
        (
            args("NodeAffinity", json!({"addedAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["x", "y"]}, {"key": "metadata.name", "operator": "Exists"}]}]}}})),
            format!(
                "[{}, {}]",
                of_args("addedAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields[0].values: Invalid value: [\"x\",\"y\"]: must have one element"),
                of_args("addedAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields[1].operator: Unsupported value: \"Exists\": supported values: \"In\", \"NotIn\""),
            ),
        ),
        (bad(json!({"podInitialBackoffSeconds": 0})), "podInitialBackoffSeconds: Invalid value: 0: must be greater than 0".into()),
        (bad(json!({"clientConnection": {"burst": -1}})), "clientConnection.burst: Invalid value: -1: must be non-negative".into()),
        (
            bad(json!({"profiles": [{"schedulerName": "a"}, {"schedulerName": "a"}]})),
            "profiles[1].schedulerName: Duplicate value: profiles[0].schedulerName".into(),
        ),
        (bad(json!({"profiles": [{"schedulerName": "a"}, {}]})), "profiles[1].schedulerName: Required value".into()),
        (plugin("score", json!({"enabled": [{"name": "Foo"}]})), of_profile("ScorePlugin \"Foo\" does not exist")),
        (plugin("multiPoint", json!({"enabled": [{"name": "Foo"}]})), of_profile("PreFilterPlugin \"Foo\" does not exist")),
        (
            plugin("score", json!({"enabled": [{"name": "NodePorts"}]})),
            of_profile("plugin \"NodePorts\" does not extend ScorePlugin plugin"),
        ),
        (
            plugin("score", json!({"enabled": [{"name": "ImageLocality"}, {"name": "ImageLocality"}]})),
            of_profile("plugin \"ImageLocality\" already registered as \"ScorePlugin\""),
        ),
        (
            plugin("multiPoint", json!({"enabled": [{"name": "ImageLocality"}, {"name": "ImageLocality"}]})),
            of_profile("plugin \"ImageLocality\" already registered as \"ScorePlugin\""),
        ),
        (
            plugin("queueSort", json!({"disabled": [{"name": "*"}]})),
            of_profile("only one queue sort plugin required for profile with scheduler name \"default-scheduler\", but got 0"),
        ),
        (
            plugin("bind", json!({"disabled": [{"name": "*"}]})),
            of_profile("at least one bind plugin is needed for profile with scheduler name \"default-scheduler\""),
        ),
        (
            plugin("score", json!({"enabled": [{"name": "NodeAffinity", "weight": -1}]})),
            of_profile("plugin \"NodeAffinity\": weight -1 is not in the range 0 to 1000000"),
        ),
        (args("InterPodAffinity", json!({"hardPodAffinityWeight": 101})), of_args("hardPodAffinityWeight: Invalid value: 101: not in valid range [0, 100]")),
        (
            args("NodeResourcesFit", json!({"scoringStrategy": {"type": "Best"}})),
            of_args("scoringStrategy.type: Unsupported value: \"Best\": supported values: \"LeastAllocated\", \"MostAllocated\", \"RequestedToCapacityRatio\""),
        ),
        (
            args("NodeResourcesFit", json!({"scoringStrategy": {"type": "RequestedToCapacityRatio"}})),
            of_args("scoringStrategy.requestedToCapacityRatio: Required value: must be specified when type is RequestedToCapacityRatio"),
        ),
        (
            args("NodeResourcesFit", json!({"scoringStrategy": {"type": "LeastAllocated", "resources": [{"name": "cpu", "weight": 101}]}})),
            of_args("scoringStrategy.resources[0].weight: Invalid value: 101: resource weight of cpu not in valid range (0, 100]"),
        ),
        (
            args("NodeResourcesFit", json!({"ignoredResourceGroups": ["x/y"]})),
            of_args("ignoredResourceGroups[0]: Invalid value: \"x/y\": resource group name can't contain '/'"),
        ),
        (
            args("NodeResourcesFit", json!({"foo": 1})),
            "strict decoding error: decoding .profiles[0].pluginConfig[0]: strict decoding error: decoding args for plugin NodeResourcesFit: strict decoding error: unknown field \"foo\"".into(),
        ),
        (
            args("NodeResourcesFit", json!({"kind": "InterPodAffinityArgs"})),
            "decoding .profiles[0].pluginConfig[0]: args for plugin NodeResourcesFit were not of type NodeResourcesFitArgs.kubescheduler.config.k8s.io, got InterPodAffinityArgs.kubescheduler.config.k8s.io".into(),
        ),
        (
            args("NodeResourcesBalancedAllocation", json!({"resources": [{"name": "cpu", "weight": 2}, {"name": "cpu"}]})),
            format!("[{}, {}]", of_args("resources[0].weight: Invalid value: 2: must be 1"), of_args("resources[1].name: Duplicate value: \"cpu\"")),
        ),
        (
            args("PodTopologySpread", json!({"defaultConstraints": constraint})),
            format!(
                "[{}, {}, {}, {}, {}]",
                of_args("defaultingType: Invalid value: \"System\": when .defaultConstraints are not empty"),
                of_args("defaultConstraints[0].maxSkew: Invalid value: 0: not in valid range (0, inf)"),
                of_args("defaultConstraints[0].topologyKey: Required value: can not be empty"),
                of_args("defaultConstraints[0].whenUnsatisfiable: Unsupported value: \"X\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\""),
                of_args("defaultConstraints[0].labelSelector: Forbidden: constraint must not define a selector, as they deduced for each pod"),
            ),
        ),
        (
            args("VolumeBinding", json!({"bindTimeoutSeconds": -1, "shape": [{"utilization": 0, "score": 11}]})),
            format!(
                "[{}, {}]",
                of_args("bindTimeoutSeconds: Invalid value: -1: invalid BindTimeoutSeconds, should not be a negative value"),
                of_args("shape[0].score: Invalid value: 11: not in valid range [0, 10]"),
            ),
        ),
        (
            unscored(json!({"bindTimeoutSeconds": -1, "shape": [{"utilization": 0, "score": 1}]})),
            format!(
                "[{}, {}]",
                of_args("bindTimeoutSeconds: Invalid value: -1: invalid BindTimeoutSeconds, should not be a negative value"),
                of_args("shape: Invalid value: [{\"Utilization\":0,\"Score\":1}]: unexpected field `shape`, remove it or turn on the feature gate StorageCapacityScoring"),
            ),
        ),
        (
            args("DefaultPreemption", json!({"minCandidateNodesPercentage": 200, "minCandidateNodesAbsolute": -1})),
            format!(
                "[{}, {}]",
                of_args("minCandidateNodesPercentage: Invalid value: 200: not in valid range [0, 100]"),
                of_args("minCandidateNodesAbsolute: Invalid value: -1: not in valid range [0, inf)"),
            ),
        ),
        (
            args("DynamicResources", json!({"filterTimeout": "-1s", "bindingTimeout": "10ms"})),
            format!(
                "[{}, {}]",
                of_args("filterTimeout: Invalid value: \"-1s\": must be zero or positive"),
                of_args("bindingTimeout: Invalid value: \"10ms\": must be at least 1 second"),
            ),
        ),
        (
            args("NodeAffinity", json!({"addedAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "b", "operator": "X"}]}]}}})),
            format!(
                "[{}, {}]",
                of_args("addedAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].values: Invalid value: null: for 'in', 'notin' operators, values set can't be empty"),
                of_args("addedAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[1].operator: Unsupported value: \"X\""),
            ),
        ),
        (
            profile(json!({"pluginConfig": [{"name": "NodeAffinity"}, {"name": "NodeAffinity"}]})),
            "profiles[0].pluginConfig[1]: Duplicate value: \"NodeAffinity\"".into(),
        ),
        (
            bad(json!({"extenders": [{"urlPrefix": "http://x", "prioritizeVerb": "p"}]})),
            "extenders[0].weight: Invalid value: 0: must have a positive weight applied to it".into(),
        ),
        (
            bad(json!({"extenders": [{"bindVerb": "b"}, {"bindVerb": "b"}]})),
            "extenders: Invalid value: \"found 2 extenders implementing bind\": only one extender can implement bind".into(),
        ),
        (
            bad(json!({"extenders": [{"managedResources": [{"name": "a/b"}, {"name": "a/b"}, {"name": "cpu"}]}]})),
            "[extenders[0].managedResources[1].name: Invalid value: \"a/b\": duplicate extender managed resource name, extenders[0].managedResources[2].name: Invalid value: \"cpu\": is an invalid extended resource name]".into(),
        ),
        (
            bad(json!({"leaderElection": {"leaseDuration": "5s"}})),
            "leaderElection.leaseDuration: Invalid value: \"10s\": LeaseDuration must be greater than RenewDeadline".into(),
        ),
        (bad(json!({"leaderElection": {"leaseDuration": "x"}})), "time: invalid duration \"x\"".into()),
    ] {
        assert_eq!(said, expect);
    }
}
