//! Cases for the core: a cluster as data, a pod, and where it may go or why nowhere.

use meta::Object;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::{Value, json};

use crate::core::Core;
use crate::node::Offer;
use crate::pod::{Pod, Specs};
use crate::view::{NodeView, PodView};

/// A cluster to ask about.
pub struct Cluster {
    pub core: Core,
    pub specs: Specs,
}

pub fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

pub fn object(kind: &str, name: &str, rest: &Value) -> Object {
    let (namespace, name) = meta::object::split_key(name);
    let version = match kind {
        "StorageClass" | "CSINode" | "CSIDriver" | "CSIStorageCapacity" | "VolumeAttachment" => "storage.k8s.io/v1",
        "ResourceClaim" | "DeviceClass" | "ResourceSlice" => "resource.k8s.io/v1",
        _ => "v1",
    };
    let mut body =
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "uid": name, "resourceVersion": "1"}});
    if !namespace.is_empty() {
        body["metadata"]["namespace"] = namespace.into();
    }
    merge(&mut body, rest);
    Object::from_value(&body).unwrap()
}

impl Cluster {
    /// Nodes have 4 CPUs, 8 GiB, 10 pods and their host name, unless said otherwise.
    pub fn new(nodes: &[(&str, Value)]) -> Self {
        let mut cluster = Self { core: Core::default(), specs: Specs::default() };
        for (name, rest) in nodes {
            let mut body = json!({"metadata": {"labels": {"kubernetes.io/hostname": name}},
                "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}}});
            merge(&mut body, rest);
            let object = object("Node", name, &body);
            let view: NodeView = serde_json::from_slice(object.raw()).unwrap();
            cluster.core.snapshot.set_node(name, Offer::of(&object, &view));
        }
        cluster
    }

    /// A pod of namespace `n`.
    pub fn pod(&mut self, name: &str, rest: &Value) -> Pod {
        let mut body = json!({"spec": {"containers": [{"name": "c"}]}});
        merge(&mut body, rest);
        let key = if name.contains('/') { name.to_string() } else { format!("n/{name}") };
        let object = object("Pod", &key, &body);
        let view: PodView = serde_json::from_slice(object.raw()).unwrap();
        Pod::new(&object, &view, &mut self.specs)
    }

    pub fn place(&mut self, name: &str, node: &str, rest: &Value) {
        let pod = self.pod(name, rest);
        self.core.snapshot.place(pod, node);
    }

    /// Where the pod would go: every node that is as good as the best, or why nowhere.
    pub fn ask(&mut self, rest: &Value) -> String {
        let pod = self.pod("asked", rest);
        let mut found = std::collections::BTreeSet::new();
        for seed in 0..20 {
            match self.core.schedule(&pod, &mut SmallRng::seed_from_u64(seed)) {
                Ok(id) => found.insert(self.core.snapshot.node(id).name.to_string()),
                Err(why) => return why.to_string(),
            };
        }
        found.into_iter().collect::<Vec<_>>().join(" ")
    }
}

impl Cluster {
    fn storage(&mut self, source: crate::sources::Source, kind: &str, name: &str, rest: Value) {
        let object = std::sync::Arc::new(object(kind, name, &rest));
        let change = client::Change { key: object.meta.key().into(), old: None, new: Some(object) };
        self.core.snapshot.storage.take(source, &change);
    }
}

fn uses(claim: &str) -> Value {
    json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}})
}

#[test]
fn volumes_bind_pods_to_nodes() {
    use crate::plugins::volume_binding::{Step, reserve};
    use crate::sources::Source;
    let zone = "topology.kubernetes.io/zone";
    let mut cluster = Cluster::new(&zoned(&[("a", "1"), ("b", "1"), ("c", "2")]));
    let c = &mut cluster;
    let on = |node: &str| json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}});
    for (name, mode, provisioner) in [
        ("now", "Immediate", "x"),
        ("local", "WaitForFirstConsumer", "kubernetes.io/no-provisioner"),
        ("made", "WaitForFirstConsumer", "csi.x"),
    ] {
        let topologies = json!([{"matchLabelExpressions": [{"key": zone, "values": ["1"]}]}]);
        c.storage(
            Source::Classes,
            "StorageClass",
            name,
            json!({"provisioner": provisioner, "volumeBindingMode": mode, "allowedTopologies": topologies}),
        );
    }
    let claim = |class: &str, rest: Value| {
        let mut body = json!({"spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        merge(&mut body, &rest);
        body
    };
    let bound = |volume: &str| json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": volume}});
    let volume = |size: &str, node: &str, rest: Value| {
        let mut body = json!({"spec": {"storageClassName": "local", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}, "nodeAffinity": on(node)}, "status": {"phase": "Available"}});
        merge(&mut body, &rest);
        body
    };
    c.storage(Source::Claims, "PersistentVolumeClaim", "n/now", claim("now", json!({})));
    c.storage(Source::Claims, "PersistentVolumeClaim", "n/local", claim("local", json!({})));
    c.storage(Source::Claims, "PersistentVolumeClaim", "n/local2", claim("local", json!({})));
    c.storage(Source::Claims, "PersistentVolumeClaim", "n/made", claim("made", json!({})));
    c.storage(Source::Claims, "PersistentVolumeClaim", "n/lost", claim("now", bound("nowhere")));
    c.storage(Source::Claims, "PersistentVolumeClaim", "n/bound", claim("now", bound("pv-c")));
    c.storage(Source::Claims, "PersistentVolumeClaim", "n/zoned", claim("now", bound("pv-zone")));
    c.storage(Source::Claims, "PersistentVolumeClaim", "n/alone", claim("now", json!({"metadata": bound("pv-free")["metadata"], "spec": {"volumeName": "pv-free", "accessModes": ["ReadWriteOncePod"]}})));
    c.storage(
        Source::Volumes,
        "PersistentVolume",
        "pv-c",
        volume("1Gi", "c", json!({"spec": {"claimRef": {"namespace": "n", "name": "bound"}}})),
    );
    c.storage(
        Source::Volumes,
        "PersistentVolume",
        "pv-zone",
        json!({"metadata": {"labels": {zone: "1__3"}}, "spec": {"claimRef": {"name": "z"}}}),
    );
    c.storage(Source::Volumes, "PersistentVolume", "pv-free", json!({"spec": {"claimRef": {"name": "z"}}}));
    c.storage(Source::Volumes, "PersistentVolume", "pv-small", volume("1Mi", "a", json!({})));
    c.storage(Source::Volumes, "PersistentVolume", "pv-big", volume("3Gi", "b", json!({})));
    c.storage(Source::Volumes, "PersistentVolume", "pv-fit", volume("2Gi", "b", json!({})));
    c.storage(
        Source::Volumes,
        "PersistentVolume",
        "pv-new",
        volume("1Gi", "a", json!({"status": {"phase": "Pending"}})),
    );
    c.storage(Source::Claims, "PersistentVolumeClaim", "n/given", claim("local", json!({})));
    c.storage(
        Source::Volumes,
        "PersistentVolume",
        "pv-given",
        volume("4Gi", "a", json!({"spec": {"claimRef": {"namespace": "n", "name": "given"}}})),
    );
    c.storage(
        Source::Claims,
        "PersistentVolumeClaim",
        "n/gone",
        claim("now", json!({"status": {"phase": "Lost"}, "spec": {"volumeName": "pv-x"}})),
    );
    c.storage(Source::Claims, "PersistentVolumeClaim", "n/asked-e", claim("local", json!({})));
    for (name, expect) in [
        ("none", "0/3 nodes are available: persistentvolumeclaim \"none\" not found."),
        ("now", "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
        (
            "lost",
            "0/3 nodes are available: 3 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s).",
        ),
        (
            "gone",
            "0/3 nodes are available: persistentvolumeclaim \"gone\" bound to non-existent persistentvolume \"pv-x\".",
        ),
        ("bound", "c"),
        ("zoned", "a b"),
        ("given", "a"),
        ("local", "b"),
        ("made", "a b"),
        ("alone", "a b c"),
    ] {
        assert_eq!(c.ask(&uses(name)), expect, "{name}");
    }
    let ephemeral = json!({"spec": {"volumes": [{"name": "e", "ephemeral": {}}]}});
    let whose = "0/3 nodes are available: PVC n/asked-e was not created for pod n/asked (pod is not owner).";
    assert_eq!(c.ask(&ephemeral), whose);
    let both = c.pod("both", &json!({"spec": {"volumes": [
        {"name": "v", "persistentVolumeClaim": {"claimName": "large"}}, {"name": "w", "persistentVolumeClaim": {"claimName": "local"}}]}}));
    c.storage(
        Source::Claims,
        "PersistentVolumeClaim",
        "n/large",
        claim("local", json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}})),
    );
    let at_b = c.core.snapshot.node_id(crate::symbol::Symbol::of("b")).unwrap();
    let given: Vec<_> = c
        .core
        .volume_steps(&both, at_b)
        .into_iter()
        .map(|s| match s {
            Step::Bind { volume, claim, .. } => format!("{claim} {volume}"),
            Step::Provision { claim } => claim.into(),
        })
        .collect();
    assert_eq!(given, ["n/local pv-fit", "n/large pv-big"], "the small first");
    let pod = c.pod("p", &uses("local"));
    let b = c.core.snapshot.node_id(crate::symbol::Symbol::of("b")).unwrap();
    let steps = c.core.volume_steps(&pod, b);
    assert_eq!(steps, [Step::Bind { volume: "pv-fit".into(), claim: "n/local".into(), uid: "local".into() }]);
    let node = c.core.snapshot.node(b).symbol;
    reserve(&mut c.core.snapshot.storage, &steps, node);
    let other = c.pod("q", &uses("local2"));
    assert!(matches!(&c.core.volume_steps(&other, b)[..], [Step::Bind { volume, .. }] if &**volume == "pv-big"));
    reserve(&mut c.core.snapshot.storage, &[Step::Provision { claim: "n/made".into() }], node);
    assert_eq!(c.ask(&uses("made")), "b", "where it is being made");
    c.place("user", "a", &uses("alone"));
    assert_eq!(
        c.ask(&uses("alone")),
        "0/3 nodes are available: 3 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode."
    );
    let disk = json!({"spec": {"volumes": [{"name": "v", "gcePersistentDisk": {"pdName": "d"}}]}});
    c.place("disk", "a", &disk);
    c.place("disk2", "b", &disk);
    assert_eq!(c.ask(&disk), "c");
    let image = |monitors: &[&str]| json!({"spec": {"volumes": [{"name": "v", "rbd": {"monitors": monitors, "pool": "p", "image": "i"}}]}});
    c.place("image", "a", &image(&["1", "2"]));
    c.place("image2", "b", &image(&["3"]));
    c.place("image3", "c", &image(&["2"]));
    assert_eq!(c.ask(&image(&["2", "4"])), "b", "one monitor in common is enough");
}

#[test]
fn room_for_volumes_counts() {
    use crate::sources::Source;
    let mut cluster = Cluster::new(&zoned(&[("a", "1"), ("b", "2"), ("c", "3")]));
    let c = &mut cluster;
    let class = json!({"provisioner": "csi.x", "volumeBindingMode": "WaitForFirstConsumer"});
    c.storage(Source::Classes, "StorageClass", "made", class.clone());
    c.storage(Source::Classes, "StorageClass", "told", class);
    c.storage(Source::CsiDrivers, "CSIDriver", "csi.x", json!({"spec": {"storageCapacity": true}}));
    for (zone, room) in [("1", "10Gi"), ("2", "100Gi"), ("3", "20Gi")] {
        c.storage(
            Source::Capacities,
            "CSIStorageCapacity",
            &format!("n/{zone}"),
            json!({"storageClassName": "made", "capacity": room,
                "nodeTopology": {"matchLabels": {"topology.kubernetes.io/zone": zone}}}),
        );
    }
    let claim = |class: &str, size: &str| json!({"spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}});
    c.storage(Source::Claims, "PersistentVolumeClaim", "n/one", claim("made", "5Gi"));
    c.storage(Source::Claims, "PersistentVolumeClaim", "n/large", claim("made", "15Gi"));
    c.storage(Source::Claims, "PersistentVolumeClaim", "n/local", claim("local", "5Gi"));
    assert_eq!(c.ask(&uses("one")), "b", "where the most room is left");
    let pod = c.pod("asked", &uses("one"));
    let scores = |c: &mut Cluster, pod: &Pod| -> Vec<(String, i64)> {
        let of = |scores: &[(&'static str, i64)]| scores.iter().find(|s| s.0 == "VolumeBinding").map_or(0, |s| s.1);
        let mut out: Vec<_> = c
            .core
            .assess(pod)
            .feasible
            .iter()
            .map(|l| (c.core.snapshot.node(l.id).name.to_string(), of(&l.scores)))
            .collect();
        out.sort();
        out
    };
    assert_eq!(scores(c, &pod), [("a".into(), 50), ("b".into(), 95), ("c".into(), 75)]);
    let two = c.pod("two", &json!({"spec": {"volumes": [
        {"name": "v", "persistentVolumeClaim": {"claimName": "one"}}, {"name": "w", "persistentVolumeClaim": {"claimName": "large"}}]}}));
    assert_eq!(scores(c, &two), [("b".into(), 80), ("c".into(), 0)], "together they take more than there is at c");
    // Volumes that are there count by their own size.
    c.storage(
        Source::Classes,
        "StorageClass",
        "local",
        json!({"provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"}),
    );
    for (node, size) in [("a", "20Gi"), ("c", "10Gi")] {
        let on = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}});
        c.storage(Source::Volumes, "PersistentVolume", node,
            json!({"spec": {"storageClassName": "local", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}, "nodeAffinity": on}, "status": {"phase": "Available"}}));
    }
    let local = c.pod("local", &uses("local"));
    assert_eq!(scores(c, &local), [("a".into(), 75), ("c".into(), 50)]);
    assert_eq!(c.ask(&uses("local")), "a");
}

#[test]
fn drivers_attach_only_so_many_volumes() {
    use crate::sources::Source;
    let mut cluster = Cluster::new(&[("a", json!({})), ("b", json!({}))]);
    let c = &mut cluster;
    for name in ["a", "b"] {
        c.storage(
            Source::CsiNodes,
            "CSINode",
            name,
            json!({"spec": {"drivers": [{"name": "d", "nodeID": name, "allocatable": {"count": 1}}]}}),
        );
    }
    for name in ["one", "two", "three"] {
        c.storage(
            Source::Volumes,
            "PersistentVolume",
            name,
            json!({"spec": {"csi": {"driver": "d", "volumeHandle": name}}}),
        );
        c.storage(Source::Claims, "PersistentVolumeClaim", &format!("n/{name}"),
            json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": name}}));
    }
    c.place("p", "a", &uses("one"));
    assert_eq!(c.ask(&uses("two")), "b");
    assert_eq!(c.ask(&uses("one")), "b", "the emptier");
    c.place("q", "b", &uses("two"));
    assert_eq!(c.ask(&uses("three")), "0/2 nodes are available: 2 node(s) exceed max volume count.");
    assert_eq!(c.ask(&uses("two")), "b", "attached already");
    // A pod that is gone leaves its volume attached for a while.
    c.core.snapshot.remove("n/p");
    assert_eq!(c.ask(&uses("three")), "a");
    let attachment = json!({"spec": {"attacher": "d", "nodeName": "a", "source": {"persistentVolumeName": "one"}}});
    c.storage(Source::Attachments, "VolumeAttachment", "va", attachment);
    assert_eq!(c.ask(&uses("three")), "0/2 nodes are available: 2 node(s) exceed max volume count.");
    // A node without the driver has no limit, unless the driver says that it is needed.
    c.storage(Source::CsiNodes, "CSINode", "a", json!({"spec": {"drivers": []}}));
    assert_eq!(c.ask(&uses("three")), "a");
    c.storage(Source::CsiDrivers, "CSIDriver", "d", json!({"spec": {"preventPodSchedulingIfMissing": true}}));
    assert_eq!(
        c.ask(&uses("three")),
        "0/2 nodes are available: 1 d CSI driver is not installed on the node, 1 node(s) exceed max volume count."
    );
}

fn cpu(amount: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": amount, "memory": "1Gi"}}}]}})
}

fn taints(effect: &str) -> Value {
    json!({"spec": {"taints": [{"key": "k", "value": "5", "effect": effect}]}})
}

fn tolerates(operator: &str, value: &str) -> Value {
    json!({"spec": {"tolerations": [{"key": "k", "operator": operator, "value": value}]}})
}

fn selects(requirement: Value) -> Value {
    let term = json!({"matchExpressions": [requirement]});
    json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}}})
}

#[test]
fn nodes_that_will_not_do_are_refused() {
    let labels = |n: &str| json!({"metadata": {"labels": {"n": n}}});
    let port = |p: Value| json!({"spec": {"containers": [{"name": "c", "ports": [p]}]}});
    let two = |a: Value, b: Value| vec![("a", a), ("b", b)];
    type Case = (Vec<(&'static str, Value)>, Value, &'static str);
    let by_name = |name: &str| {
        let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
        json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}}})
    };
    let cases: Vec<Case> = vec![
        (two(json!({}), json!({})), by_name("b"), "b"),
        (
            two(json!({}), json!({"spec": {"unschedulable": true}})),
            by_name("b"),
            "0/2 nodes are available: 1 node(s) didn't satisfy plugin(s) [NodeAffinity], 1 node(s) were unschedulable.",
        ),
        (
            two(json!({}), json!({})),
            by_name("c"),
            "0/2 nodes are available: 2 node(s) didn't satisfy plugin(s) [NodeAffinity].",
        ),
        (vec![], json!({}), "no nodes available to schedule pods"),
        (two(json!({}), json!({})), json!({}), "a b"),
        (two(json!({}), json!({"spec": {"unschedulable": true}})), json!({}), "a"),
        (
            two(json!({"spec": {"unschedulable": true}}), taints("NoSchedule")),
            json!({}),
            "0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable.",
        ),
        (two(taints("NoExecute"), taints("NoSchedule")), tolerates("Equal", "5"), "a b"),
        (two(taints("NoSchedule"), taints("PreferNoSchedule")), tolerates("Equal", "6"), "b"),
        (two(taints("PreferNoSchedule"), json!({})), json!({}), "b"),
        (two(taints("NoSchedule"), json!({"spec": {"unschedulable": true}})), tolerates("Gt", "4"), "a"),
        (
            two(taints("NoSchedule"), taints("NoSchedule")),
            tolerates("Lt", "5"),
            "0/2 nodes are available: 2 node(s) had untolerated taint(s).",
        ),
        (two(labels("1"), labels("2")), json!({"spec": {"nodeSelector": {"n": "2"}}}), "b"),
        (two(labels("1"), labels("2")), selects(json!({"key": "n", "operator": "Gt", "values": ["1"]})), "b"),
        (two(labels("1"), json!({})), selects(json!({"key": "n", "operator": "DoesNotExist"})), "b"),
        (
            two(labels("1"), labels("2")),
            selects(json!({"key": "n", "operator": "In", "values": ["3"]})),
            "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.",
        ),
        (
            two(labels("1"), labels("2")),
            json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
            [{"weight": 5, "preference": {"matchExpressions": [{"key": "n", "operator": "In", "values": ["1"]}]}}]}}}}),
            "a",
        ),
        (two(json!({}), json!({"status": {"allocatable": {"cpu": "8"}}})), cpu("5"), "b"),
        (
            two(json!({}), json!({"status": {"allocatable": {"cpu": "1", "memory": "512Mi"}}})),
            cpu("9"),
            "0/2 nodes are available: 1 Insufficient memory, 2 Insufficient cpu.",
        ),
        (two(json!({}), json!({"status": {"allocatable": {"pods": "0"}}})), json!({}), "a"),
        (
            two(json!({}), json!({"status": {"allocatable": {"e.com/gpu": "1"}}})),
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"e.com/gpu": "1"}}}]}}),
            "b",
        ),
        (
            two(json!({}), json!({})),
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"e.com/gpu": "1"}}}]}}),
            "0/2 nodes are available: 2 Insufficient e.com/gpu.",
        ),
        (
            two(json!({"status": {"images": [{"names": ["x/big:latest"], "sizeBytes": 900_000_000}]}}), json!({})),
            json!({"spec": {"containers": [{"name": "c", "image": "x/big"}]}}),
            "a",
        ),
        (two(json!({}), json!({})), port(json!({"containerPort": 80, "hostPort": 80})), "a b"),
    ];
    for (nodes, pod, expect) in cases {
        assert_eq!(Cluster::new(&nodes).ask(&pod), expect, "{nodes:?} {pod}");
    }
}

#[test]
fn pods_on_nodes_take_of_them() {
    let mut cluster = Cluster::new(&[("a", json!({})), ("b", json!({}))]);
    let port = |ip: &str| json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip}]}]}});
    cluster.place("one", "a", &cpu("3"));
    assert_eq!(cluster.ask(&cpu("1")), "b", "the emptier is better");
    assert_eq!(cluster.ask(&cpu("2")), "b");
    cluster.place("two", "b", &cpu("3"));
    assert_eq!(cluster.ask(&cpu("2")), "0/2 nodes are available: 2 Insufficient cpu.");
    cluster.core.snapshot.remove("n/one");
    assert_eq!(cluster.ask(&cpu("2")), "a");
    cluster.place("port", "a", &port("10.0.0.1"));
    assert_eq!(cluster.ask(&port("0.0.0.0")), "b");
    assert_eq!(cluster.ask(&port("10.0.0.2")), "a");
    cluster.place("port2", "b", &port(""));
    assert_eq!(
        cluster.ask(&port("")),
        "0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports."
    );
    cluster.core.snapshot.remove_node("a");
    assert_eq!(cluster.ask(&cpu("2")), "0/1 nodes are available: 1 Insufficient cpu.");
    cluster.core.snapshot.remove_node("b");
    assert_eq!(cluster.ask(&json!({})), "no nodes available to schedule pods");
}

fn zoned(zones: &[(&'static str, &str)]) -> Vec<(&'static str, Value)> {
    zones.iter().map(|(n, z)| (*n, json!({"metadata": {"labels": {"topology.kubernetes.io/zone": z}}}))).collect()
}

fn labelled(app: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}})
}

fn spread(key: &str, skew: i32, when: &str, rest: Value) -> Value {
    let mut constraint = json!({"topologyKey": key, "maxSkew": skew, "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"app": "x"}}});
    merge(&mut constraint, &rest);
    json!({"metadata": {"labels": {"app": "x"}}, "spec": {"topologySpreadConstraints": [constraint]}})
}

#[test]
fn pods_are_spread() {
    let zone = "topology.kubernetes.io/zone";
    let mut cluster = Cluster::new(&zoned(&[("a", "1"), ("b", "1"), ("c", "2")]));
    cluster.place("p1", "a", &labelled("x"));
    let ask = |cluster: &mut Cluster, skew, when: &str, rest| cluster.ask(&spread(zone, skew, when, rest));
    assert_eq!(ask(&mut cluster, 1, "DoNotSchedule", json!({})), "c");
    assert_eq!(ask(&mut cluster, 1, "ScheduleAnyway", json!({})), "c");
    cluster.place("p2", "c", &labelled("x"));
    cluster.place("p3", "c", &labelled("x"));
    cluster.place("other", "b", &labelled("y"));
    cluster.place("elsewhere/x", "b", &labelled("x"));
    assert_eq!(ask(&mut cluster, 1, "DoNotSchedule", json!({})), "a");
    assert_eq!(
        ask(&mut cluster, 1, "DoNotSchedule", json!({"minDomains": 3})),
        "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints."
    );
    assert_eq!(
        cluster.ask(&spread("rack", 1, "DoNotSchedule", json!({}))),
        "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints (missing required label)."
    );
    // Its own kind of pods by default: those of its Service.
    let selector = crate::selector::Selector::equal([("app", "x")]);
    cluster.core.snapshot.spread_defaults.set_service("n", "s", Some(selector));
    assert_eq!(cluster.ask(&labelled("x")), "b");
}

fn near(kind: &str, required: bool, app: &str, key: &str, rest: Value) -> Value {
    let mut term = json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}});
    merge(&mut term, &rest);
    let terms = if required {
        json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]})
    } else {
        json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 10, "podAffinityTerm": term}]})
    };
    json!({"spec": {"affinity": {kind: terms}}})
}

#[test]
fn pods_attract_and_repel_each_other() {
    let (zone, host) = ("topology.kubernetes.io/zone", "kubernetes.io/hostname");
    let mut cluster = Cluster::new(&zoned(&[("a", "1"), ("b", "1"), ("c", "2")]));
    cluster.place("x", "a", &labelled("x"));
    let rules = "0/3 nodes are available: 3 node(s) didn't match pod affinity rules.";
    for (pod, expect) in [
        (near("podAffinity", true, "x", zone, json!({})), "b"),
        (near("podAffinity", true, "x", host, json!({})), "a"),
        (near("podAffinity", true, "z", zone, json!({})), rules),
        (near("podAntiAffinity", true, "x", zone, json!({})), "c"),
        (near("podAntiAffinity", true, "x", host, json!({})), "b c"),
        (near("podAffinity", false, "x", zone, json!({})), "b"),
        (near("podAntiAffinity", false, "x", zone, json!({})), "c"),
        (near("podAffinity", true, "x", zone, json!({"namespaces": ["m"]})), rules),
        (near("podAffinity", true, "x", zone, json!({"namespaceSelector": {}})), "b"),
        (near("podAntiAffinity", true, "x", zone, json!({"namespaceSelector": {"matchLabels": {"t": "1"}}})), "b c"),
    ] {
        assert_eq!(cluster.ask(&pod), expect, "{pod}");
    }
    // The first of its kind may go anywhere.
    let mut first = near("podAffinity", true, "z", zone, json!({}));
    merge(&mut first, &labelled("z"));
    assert_eq!(cluster.ask(&first), "b c");
    // Who is there already may object.
    cluster.place("hermit", "c", &near("podAntiAffinity", true, "y", zone, json!({})));
    cluster.place("fan", "b", &near("podAffinity", false, "x", host, json!({})));
    assert_eq!(cluster.ask(&labelled("y")), "a b");
    assert_eq!(cluster.ask(&labelled("x")), "b");
    let mut nowhere = near("podAntiAffinity", true, "x", zone, json!({}));
    merge(&mut nowhere, &labelled("y"));
    assert_eq!(
        cluster.ask(&nowhere),
        "0/3 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules, 2 node(s) didn't match pod anti-affinity rules."
    );
}

#[test]
fn identical_pods_fill_a_cluster_evenly() {
    let names: Vec<String> = (0..50).map(|n| format!("node-{n}")).collect();
    let nodes: Vec<(&str, Value)> = names.iter().map(|n| (n.as_str(), json!({}))).collect();
    let mut cluster = Cluster::new(&nodes);
    let mut rng = SmallRng::seed_from_u64(1);
    for n in 0..200 {
        let pod = cluster.pod(&format!("p{n}"), &cpu("1"));
        let id = cluster.core.schedule(&pod, &mut rng).unwrap();
        let node = cluster.core.snapshot.node(id).name.clone();
        cluster.core.snapshot.place(pod, &node);
    }
    assert!(cluster.core.snapshot.nodes().iter().all(|n| n.count == 4));
    assert_eq!(cluster.ask(&cpu("1")), "0/50 nodes are available: 50 Insufficient cpu.");
}

fn important(priority: i32, amount: &str, rest: Value) -> Value {
    let mut body = cpu(amount);
    merge(&mut body, &json!({"spec": {"priority": priority}}));
    merge(&mut body, &rest);
    body
}

impl Cluster {
    /// `node: victims`, or why none.
    fn preempt(&mut self, rest: &Value) -> String {
        let pod = self.pod("asked", rest);
        let mut rng = SmallRng::seed_from_u64(3);
        let why = self.core.schedule(&pod, &mut rng).expect_err("a node has room");
        match self.core.preempt(&pod, &why, &mut rng) {
            Ok(plan) => {
                let victims: Vec<&str> = plan.victims.iter().map(|v| meta::object::split_key(&v.key).1).collect();
                format!("{}: {}", self.core.snapshot.node(plan.node).name, victims.join(" "))
            }
            Err(why) => why,
        }
    }
}

#[test]
fn the_least_is_lost_where_room_is_made() {
    let started = |at: &str| json!({"status": {"startTime": format!("2024-01-01T00:00:0{at}Z")}});
    let app = |name: &str| json!({"metadata": {"labels": {"app": name}}});
    // (pods: name, node, body), who asks, what comes of it.
    type Case = (Vec<(&'static str, &'static str, Value)>, Value, &'static str);
    let none = || json!({});
    let cases: Vec<Case> = vec![
        (
            vec![("p", "a", important(5, "4", none())), ("q", "b", important(4, "4", none()))],
            important(9, "1", none()),
            "b: q",
        ),
        (
            vec![("p", "a", important(9, "4", none())), ("q", "b", important(9, "4", none()))],
            important(9, "1", none()),
            "0/2 nodes are available: 2 No preemption victims found for incoming pod.",
        ),
        (vec![], important(9, "5", none()), "0/2 nodes are available: 2 Preemption is not helpful for scheduling."),
        // Two of less sum or one of more: the highest victim counts first, then the sum.
        (
            vec![
                ("p", "a", important(3, "4", none())),
                ("q", "b", important(3, "2", none())),
                ("r", "b", important(1, "2", none())),
            ],
            important(9, "3", none()),
            "a: p",
        ),
        // The most important are taken back first.
        (
            vec![
                ("p", "a", important(3, "2", none())),
                ("q", "a", important(2, "2", none())),
                ("x", "b", important(99, "4", none())),
            ],
            important(9, "2", none()),
            "a: q",
        ),
        // Of equals, the one that has not started, or started last.
        (
            vec![("p", "a", important(3, "4", none())), ("q", "b", important(3, "4", started("2")))],
            important(9, "1", none()),
            "a: p",
        ),
        (
            vec![("p", "a", important(3, "4", started("1"))), ("q", "b", important(3, "4", started("2")))],
            important(9, "1", none()),
            "b: q",
        ),
        // Who keeps others away can be made to go.
        (
            vec![
                (
                    "p",
                    "a",
                    important(3, "1", {
                        let mut b = near("podAntiAffinity", true, "y", "kubernetes.io/hostname", none());
                        merge(&mut b, &app("p"));
                        b
                    }),
                ),
                ("q", "b", important(99, "4", none())),
            ],
            important(9, "1", app("y")),
            "a: p",
        ),
        // Who is protected is spared, if another can go.
        (
            vec![("p", "a", important(1, "4", app("guarded"))), ("q", "b", important(5, "4", none()))],
            important(9, "1", none()),
            "b: q",
        ),
        (
            vec![("p", "a", important(1, "4", app("guarded"))), ("q", "b", important(50, "4", none()))],
            important(9, "1", none()),
            "a: p",
        ),
        (
            vec![("p", "a", important(1, "4", none()))],
            important(9, "4", json!({"spec": {"preemptionPolicy": "Never"}})),
            "not eligible due to preemptionPolicy=Never.",
        ),
    ];
    for (pods, asks, expect) in cases {
        let mut cluster = Cluster::new(&[("a", json!({})), ("b", json!({}))]);
        let budget = object(
            "PodDisruptionBudget",
            "n/b",
            &json!({"apiVersion": "policy/v1", "spec": {"selector": {"matchLabels": {"app": "guarded"}}},
            "status": {"disruptionsAllowed": 0}}),
        );
        let change = client::Change { key: "n/b".into(), old: None, new: Some(std::sync::Arc::new(budget)) };
        cluster.core.budgets.take(&change);
        if pods.len() == 1 {
            cluster.core.snapshot.remove_node("b");
        }
        for (name, node, body) in &pods {
            cluster.place(name, node, body);
        }
        assert_eq!(cluster.preempt(&asks), expect, "{pods:?} {asks}");
    }
}

#[test]
fn room_made_for_one_is_not_taken_by_another() {
    let mut cluster = Cluster::new(&[("a", json!({})), ("b", json!({"status": {"allocatable": {"cpu": "1"}}}))]);
    let waits = cluster.pod("waits", &important(5, "4", json!({})));
    let a = crate::symbol::Symbol::of("a");
    cluster.core.nominations.set(&waits, Some(a));
    assert_eq!(cluster.ask(&important(5, "1", json!({}))), "b");
    assert_eq!(cluster.ask(&important(6, "4", json!({}))), "a", "the more important may");
    cluster.core.nominations.set(&waits, None);
    assert_eq!(cluster.ask(&important(5, "4", json!({}))), "a");
}

#[test]
fn features_that_nodes_declare() {
    let declares = |features: &[&str]| json!({"status": {"declaredFeatures": features}});
    let mut cluster = Cluster::new(&[
        ("a", json!({})),
        ("b", declares(&["Other", "RestartAllContainersOnContainerExits"])),
        ("c", declares(&["UserNamespacesHostNetworkSupport"])),
    ]);
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let restarts = json!({"spec": {"containers": [{"name": "c", "restartPolicyRules": rules}]}});
    let mapped = json!({"spec": {"hostNetwork": true, "hostUsers": false}});
    let mut both = restarts.clone();
    merge(&mut both, &mapped);
    for (pod, expect) in [
        (json!({"spec": {"hostUsers": false}}), "a b c"),
        (restarts, "b"),
        (mapped, "c"),
        (
            both,
            "0/3 nodes are available: 1 node declared features check failed - unsatisfied requirements: RestartAllContainersOnContainerExits, \
             1 node declared features check failed - unsatisfied requirements: RestartAllContainersOnContainerExits, UserNamespacesHostNetworkSupport, \
             1 node declared features check failed - unsatisfied requirements: UserNamespacesHostNetworkSupport.",
        ),
    ] {
        assert_eq!(cluster.ask(&pod), expect, "{pod}");
    }
}

#[test]
fn the_earlier_alternative_is_liked_better() {
    use crate::sources::Source;
    let mut c = Cluster::new(&[("a", json!({})), ("b", json!({})), ("c", json!({}))]);
    c.core.snapshot.devices.served = true;
    let mut put = |source, kind: &str, name: &str, rest: Value| {
        let new = Some(std::sync::Arc::new(object(kind, name, &rest)));
        c.core.snapshot.devices.take(source, &client::Change { key: name.into(), old: None, new });
    };
    for (node, size) in [("a", "small"), ("b", "large"), ("c", "small")] {
        put(
            Source::DeviceClasses,
            "DeviceClass",
            size,
            json!({"spec": {"selectors": [
            {"cel": {"expression": format!("device.attributes['d'].size == '{size}'")}}]}}),
        );
        put(
            Source::DeviceSlices,
            "ResourceSlice",
            node,
            json!({"spec": {"driver": "d", "nodeName": node,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "one", "attributes": {"size": {"string": size}}}]}}),
        );
    }
    let alternatives =
        json!([{"name": "best", "deviceClassName": "large"}, {"name": "other", "deviceClassName": "small"}]);
    put(
        Source::DeviceClaims,
        "ResourceClaim",
        "n/g",
        json!({"spec": {"devices": {"requests": [
        {"name": "r", "firstAvailable": alternatives}]}}}),
    );
    let wants = json!({"spec": {"resourceClaims": [{"name": "g", "resourceClaimName": "g"}]}});
    // The node is fuller than the others, which costs less than the alternative is worth.
    c.place(
        "there",
        "b",
        &json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "300m"}}}]}}),
    );
    assert_eq!(c.ask(&wants), "b");
    let pod = c.pod("asked", &wants);
    let liked = c.core.assess(&pod).feasible;
    let of = |node: &str| {
        let liked = liked.iter().find(|l| &*c.core.snapshot.node(l.id).name == node).unwrap();
        liked.scores.iter().find(|s| s.0 == "DynamicResources").unwrap().1
    };
    // Seven of eight, of a hundred, twice.
    assert_eq!((of("b"), of("a")), (200, 174));
}
