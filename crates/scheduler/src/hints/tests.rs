//! A pod that nobody would have, something that happens, and whether the pod is worth another look.

use std::sync::Arc;
use std::time::Duration;

use client::Change;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::events::Events;
use crate::profile::ProfileRef;
use crate::queue::PodQueue;
use crate::sources::Source;
use crate::tests::{merge, object};
use crate::world::World;

fn kind(source: Source) -> &'static str {
    match source {
        Source::Nodes => "Node",
        Source::Pods => "Pod",
        Source::Namespaces => "Namespace",
        Source::Claims => "PersistentVolumeClaim",
        Source::Volumes => "PersistentVolume",
        Source::Classes => "StorageClass",
        Source::CsiNodes => "CSINode",
        Source::CsiDrivers => "CSIDriver",
        Source::Capacities => "CSIStorageCapacity",
        Source::Attachments => "VolumeAttachment",
        Source::DeviceClaims => "ResourceClaim",
        Source::DeviceClasses => "DeviceClass",
        Source::DeviceSlices => "ResourceSlice",
        other => panic!("no kind for {other:?}"),
    }
}

struct Script {
    world: World,
    now: Instant,
}

impl Script {
    fn new() -> Self {
        let queue = PodQueue::new(Duration::from_secs(1), Duration::from_secs(10));
        let mut world = World::new(queue, vec![ProfileRef::default()]);
        world.core.snapshot.devices.served = true;
        Self { world, now: Instant::now() }
    }

    /// An object is as given; null: it is gone.
    fn happens(&mut self, source: Source, name: &str, rest: &Value) {
        let usual = match source {
            Source::Nodes => json!({"metadata": {"labels": {"kubernetes.io/hostname": name}},
                "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}}}),
            Source::Pods => {
                json!({"spec": {"schedulerName": "default-scheduler", "containers": [{"name": "c"}]}})
            }
            _ => json!({}),
        };
        let mut body = usual;
        merge(&mut body, rest);
        let new = (!rest.is_null()).then(|| Arc::new(object(kind(source), name, &body)));
        let mut events = Events::default();
        self.world.take(source, vec![Change { key: name.into(), old: None, new }], &mut events, self.now);
        events.wake(&self.world.core, &mut self.world.queue, self.now);
    }

    /// Tries the pod that waits; who refused it.
    fn tried(&mut self) -> String {
        let Some(key) = self.world.queue.pop(self.now) else { return "held".into() };
        let pod = self.world.queue.get(&key).unwrap().pod.clone();
        match self.world.core.schedule(&pod, &mut SmallRng::seed_from_u64(1)) {
            Ok(id) => format!("on {}", self.world.core.snapshot.node(id).name),
            Err(why) => {
                let by = why.plugins();
                self.world.queue.refused(&key, by);
                by.iter().map(|p| p.name()).collect::<Vec<_>>().join(" ")
            }
        }
    }

    fn is_awake(&self) -> bool {
        let [active, backing_off, ..] = self.world.queue.sizes();
        active + backing_off > 0
    }
}

type Happening = (Source, &'static str, Value);

/// `before`: what there is; `pod`: who waits; `by`: who refuses it; then each of `after`, from the same start, with whether
/// it wakes the pod.
fn check(before: &[Happening], pod: Value, by: &str, after: &[(Source, &'static str, Value, bool)]) {
    for (source, name, rest, wakes) in after {
        let mut script = Script::new();
        before.iter().for_each(|(source, name, rest)| script.happens(*source, name, rest));
        script.happens(Source::Pods, "n/waits", &pod);
        assert_eq!(script.tried(), by, "{pod}");
        assert!(!script.is_awake(), "{pod}");
        script.happens(*source, name, rest);
        assert_eq!(script.is_awake(), *wakes, "{pod} refused by {by}, then {source:?} {name} {rest}");
    }
}

fn cpu(amount: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]}})
}

/// The same pod on a node.
fn on(node: &str, mut pod: Value) -> Value {
    pod["spec"]["nodeName"] = node.into();
    pod
}

/// Two values, the second over the first.
fn with(mut value: Value, more: Value) -> Value {
    merge(&mut value, &more);
    value
}

use Source::*;

#[test]
fn resources() {
    let full = [(Nodes, "a", json!({})), (Pods, "n/big", on("a", cpu("3"))), (Pods, "n/small", on("a", cpu("500m")))];
    let allocatable = |cpu: &str, memory: &str| json!({"status": {"allocatable": {"cpu": cpu, "memory": memory}}});
    check(
        &full,
        cpu("2"),
        "NodeResourcesFit",
        &[
            (Pods, "n/big", Value::Null, true),
            (Pods, "n/big", with(on("a", cpu("3")), json!({"status": {"phase": "Succeeded"}})), true),
            (Pods, "n/big", on("a", cpu("1")), true),
            // Too little is freed, or nothing.
            (Pods, "n/small", Value::Null, false),
            (Pods, "n/other", on("a", cpu("100m")), false),
            (Pods, "n/big", with(on("a", cpu("3")), json!({"metadata": {"labels": {"x": "y"}}})), false),
            (Nodes, "b", json!({}), true),
            (Nodes, "b", allocatable("1", "8Gi"), false),
            (Nodes, "a", allocatable("6", "8Gi"), true),
            (Nodes, "a", allocatable("4", "16Gi"), false),
            (Nodes, "a", allocatable("4500m", "8Gi"), false),
            (Nodes, "a", json!({"metadata": {"labels": {"x": "y"}}}), false),
            (Nodes, "a", Value::Null, false),
            (Namespaces, "n", json!({"metadata": {"labels": {"x": "y"}}}), false),
            // It asks for less itself; or changes what nobody minded.
            (Pods, "n/waits", cpu("1"), true),
            (Pods, "n/waits", cpu("3"), false),
            (Pods, "n/waits", with(cpu("2"), json!({"metadata": {"labels": {"x": "y"}}})), false),
        ],
    );
    // Room that could be made by removing who is less important counts.
    let important = json!({"spec": {"priority": 10}});
    let crowd = [
        (Nodes, "a", json!({})),
        (Pods, "n/peer", on("a", with(cpu("3"), important.clone()))),
        (Pods, "n/low", on("a", cpu("1"))),
    ];
    check(&crowd, with(cpu("4"), important.clone()), "NodeResourcesFit", &[(Pods, "n/peer", Value::Null, true)]);
    let never = with(important, json!({"spec": {"preemptionPolicy": "Never"}}));
    check(&crowd, with(cpu("4"), never), "NodeResourcesFit", &[(Pods, "n/peer", Value::Null, false)]);
}

#[test]
fn rules_about_the_node_itself() {
    let cordoned = json!({"spec": {"unschedulable": true}});
    check(
        &[(Nodes, "a", cordoned.clone())],
        json!({}),
        "NodeUnschedulable",
        &[
            (Nodes, "a", json!({}), true),
            (Nodes, "b", json!({}), true),
            (Nodes, "b", cordoned.clone(), false),
            (Nodes, "a", with(cordoned, json!({"metadata": {"labels": {"x": "y"}}})), false),
            (Pods, "n/waits", json!({"spec": {"tolerations": [{"operator": "Exists"}]}}), true),
            (Pods, "n/waits", json!({"metadata": {"labels": {"x": "y"}}}), false),
        ],
    );
    let tainted = |key: &str| json!({"spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}});
    let tolerant = json!({"spec": {"tolerations": [{"key": "ours", "operator": "Exists"}]}});
    check(
        &[(Nodes, "a", tainted("theirs"))],
        tolerant,
        "TaintToleration",
        &[
            (Nodes, "a", tainted("ours"), true),
            (Nodes, "a", tainted("others"), false),
            (Nodes, "a", with(tainted("theirs"), json!({"metadata": {"labels": {"x": "y"}}})), false),
            (Nodes, "b", tainted("theirs"), false),
            (Nodes, "b", json!({}), true),
            (Pods, "n/else", on("a", json!({})), false),
        ],
    );
    let choosy = json!({"spec": {"nodeSelector": {"disk": "ssd"}}});
    let disk = |kind: &str| json!({"metadata": {"labels": {"disk": kind}}});
    check(
        &[(Nodes, "a", disk("hdd"))],
        choosy,
        "NodeAffinity",
        &[
            (Nodes, "a", disk("ssd"), true),
            (Nodes, "a", disk("nvme"), false),
            (Nodes, "b", disk("ssd"), true),
            (Nodes, "b", json!({}), false),
            (Nodes, "a", with(disk("hdd"), json!({"spec": {"taints": [{"key": "t", "effect": "NoSchedule"}]}})), false),
            (Pods, "n/waits", json!({"spec": {"nodeSelector": {"disk": "hdd"}}}), true),
        ],
    );
    let port =
        |port: u16| json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": port}]}]}});
    let taken = [(Nodes, "a", json!({})), (Pods, "n/one", on("a", port(80))), (Pods, "n/two", on("a", port(81)))];
    check(
        &taken,
        port(80),
        "NodePorts",
        &[
            (Pods, "n/one", Value::Null, true),
            (Pods, "n/two", Value::Null, false),
            (Nodes, "b", json!({}), true),
            (Nodes, "a", json!({"metadata": {"labels": {"x": "y"}}}), false),
        ],
    );
}

#[test]
fn rules_about_other_pods() {
    let labelled = |app: &str| json!({"metadata": {"labels": {"app": app}}});
    let zone = |zone: &str| json!({"metadata": {"labels": {"zone": zone}}});
    let term = |app: &str| json!([{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}}]);
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let near = json!({"spec": {"affinity": {"podAffinity": {required: term("db")}}}});
    check(
        &[(Nodes, "a", zone("1"))],
        near,
        "InterPodAffinity",
        &[
            (Pods, "n/db", on("a", labelled("db")), true),
            (Pods, "m/db", on("a", labelled("db")), false),
            (Pods, "n/web", on("a", labelled("web")), false),
            (Nodes, "b", zone("2"), true),
            (Nodes, "b", json!({}), false),
            (
                Nodes,
                "a",
                json!({"status": {"allocatable": {"cpu": "9"}}, "metadata": {"labels": {"zone": "1"}}}),
                false,
            ),
            (Pods, "n/waits", labelled("x"), true),
        ],
    );
    let far = with(labelled("web"), json!({"spec": {"affinity": {"podAntiAffinity": {required: term("web")}}}}));
    let shy = with(labelled("shy"), json!({"spec": {"affinity": {"podAntiAffinity": {required: term("web")}}}}));
    let there =
        [(Nodes, "a", zone("1")), (Pods, "n/web", on("a", labelled("web"))), (Pods, "n/db", on("a", labelled("db")))];
    check(
        &there,
        far.clone(),
        "InterPodAffinity",
        &[
            (Pods, "n/web", Value::Null, true),
            (Pods, "n/web", on("a", labelled("other")), true),
            (Pods, "n/db", Value::Null, false),
            (Pods, "n/web2", on("a", labelled("web")), false),
        ],
    );
    // It is the other that wants no company.
    check(
        &[(Nodes, "a", zone("1")), (Pods, "n/shy", on("a", shy))],
        labelled("web"),
        "InterPodAffinity",
        &[(Pods, "n/shy", Value::Null, true), (Nodes, "a", zone("2"), true)],
    );
    let spread = with(
        labelled("web"),
        json!({"spec": {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]}}),
    );
    let uneven = [
        (Nodes, "a", with(zone("1"), json!({"status": {"allocatable": {"pods": "2"}}}))),
        (Nodes, "b", with(zone("2"), json!({"status": {"allocatable": {"pods": "1"}}}))),
        (Pods, "n/web", on("a", labelled("web"))),
        (Pods, "n/db", on("b", labelled("db"))),
    ];
    check(
        &uneven,
        spread,
        "NodeResourcesFit PodTopologySpread",
        &[
            (Pods, "n/web", Value::Null, true),
            (Pods, "n/web2", on("b", labelled("web")), true),
            (Pods, "n/db", Value::Null, true),
            (Pods, "n/db2", on("a", labelled("db")), false),
            (Pods, "m/web", on("b", labelled("web")), false),
            (Nodes, "c", zone("3"), true),
            (Nodes, "c", json!({"status": {"allocatable": {"pods": "0"}}}), false),
            (Nodes, "b", Value::Null, true),
            (Nodes, "a", with(zone("2"), json!({"status": {"allocatable": {"pods": "2"}}})), true),
        ],
    );
}

#[test]
fn volumes() {
    let wants = json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
    let claim = |volume: &str| {
        json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"volumeName": volume, "storageClassName": "s", "accessModes": ["ReadWriteOnce"]}})
    };
    let waiting = json!({"spec": {"storageClassName": "s", "resources": {"requests": {"storage": "5Gi"}}}});
    let class = |provisioner: &str| json!({"provisioner": provisioner, "volumeBindingMode": "WaitForFirstConsumer"});
    check(
        &[(Nodes, "a", json!({}))],
        wants.clone(),
        "VolumeBinding",
        &[
            (Claims, "n/c", claim("pv"), true),
            (Claims, "n/other", claim("pv"), false),
            (Claims, "m/c", claim("pv"), false),
            (Pods, "n/else", on("a", json!({})), false),
        ],
    );
    let by_hand = [
        (Nodes, "a", json!({})),
        (Classes, "s", class("kubernetes.io/no-provisioner")),
        (Claims, "n/c", waiting.clone()),
    ];
    check(
        &by_hand,
        wants.clone(),
        "VolumeBinding",
        &[
            (Volumes, "pv", json!({"spec": {"storageClassName": "s", "capacity": {"storage": "5Gi"}}}), true),
            (Classes, "s", class("example.com/d"), true),
            (Classes, "t", class("example.com/d"), false),
            (Nodes, "a", json!({"metadata": {"labels": {"x": "y"}}}), true),
            (Nodes, "a", json!({"status": {"allocatable": {"cpu": "9"}}}), false),
        ],
    );
    let room = |size: &str| json!({"storageClassName": "s", "nodeTopology": {"matchLabels": {"kubernetes.io/hostname": "a"}}, "capacity": size});
    let tight = [
        (Nodes, "a", json!({})),
        (Classes, "s", class("example.com/d")),
        (CsiDrivers, "example.com/d", json!({"spec": {"storageCapacity": true}})),
        (Capacities, "ns/a", room("1Gi")),
        (Claims, "n/c", waiting),
    ];
    check(
        &tight,
        wants.clone(),
        "VolumeBinding",
        &[
            (Capacities, "ns/a", room("10Gi"), true),
            (CsiDrivers, "example.com/d", json!({"spec": {"storageCapacity": false}}), true),
            (Capacities, "ns/a", room("1Gi"), false),
        ],
    );
    let zones = |zone: &str| json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}, "spec": {}});
    let away = [
        (Nodes, "a", zones("1")),
        (Classes, "s", class("example.com/d")),
        (Volumes, "pv", zones("2")),
        (Claims, "n/c", claim("pv")),
    ];
    check(
        &away,
        wants.clone(),
        "VolumeZone",
        &[
            (Volumes, "pv", zones("1"), true),
            (Volumes, "pv", with(zones("2"), json!({"status": {"phase": "Bound"}})), false),
            (Nodes, "a", zones("2"), true),
            (Nodes, "b", zones("2"), true),
            (Pods, "n/else", on("a", json!({})), false),
        ],
    );
    let attached =
        |count: i64| json!({"spec": {"drivers": [{"name": "d", "nodeID": "a", "allocatable": {"count": count}}]}});
    let volume = |handle: &str| json!({"spec": {"csi": {"driver": "d", "volumeHandle": handle}}});
    let full = [
        (Nodes, "a", json!({})),
        (CsiNodes, "a", attached(1)),
        (Volumes, "pv", volume("1")),
        (Volumes, "pv2", volume("2")),
        (Claims, "n/c", claim("pv")),
        (Claims, "n/d", claim("pv2")),
        (
            Pods,
            "n/user",
            on("a", json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "d"}}]}})),
        ),
        (Pods, "n/plain", on("a", json!({}))),
    ];
    check(
        &full,
        wants,
        "NodeVolumeLimits",
        &[
            (CsiNodes, "a", attached(2), true),
            (CsiNodes, "a", attached(0), false),
            (Pods, "n/user", Value::Null, true),
            (Pods, "n/plain", Value::Null, false),
        ],
    );
    let disk = |name: &str| json!({"spec": {"volumes": [{"name": "v", "gcePersistentDisk": {"pdName": name}}]}});
    let used = [(Nodes, "a", json!({})), (Pods, "n/one", on("a", disk("1"))), (Pods, "n/two", on("a", disk("2")))];
    check(
        &used,
        disk("1"),
        "VolumeRestrictions",
        &[(Pods, "n/one", Value::Null, true), (Pods, "n/two", Value::Null, false)],
    );
}

#[test]
fn devices() {
    let claims = json!({"spec": {"resourceClaims": [{"name": "gpu", "resourceClaimName": "g"}]}});
    let claim = json!({"spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpus"}}]}}});
    let class = json!({"spec": {}});
    let slice = json!({"spec": {"driver": "d", "nodeName": "a", "pool": {"name": "a", "generation": 1, "resourceSliceCount": 1},
        "devices": [{"name": "one"}]}});
    let taken = json!({"status": {"allocation": {"devices": {"results": [
        {"request": "r", "driver": "d", "pool": "a", "device": "one"}]}}}});
    let here = [
        (Nodes, "a", json!({})),
        (DeviceClasses, "gpus", class.clone()),
        (DeviceClaims, "n/g", claim.clone()),
        (DeviceClaims, "n/other", with(claim.clone(), taken)),
        (DeviceSlices, "s", slice.clone()),
    ];
    check(
        &here,
        claims.clone(),
        "DynamicResources",
        &[
            (DeviceClaims, "n/other", Value::Null, true),
            (DeviceClaims, "n/other", claim.clone(), true),
            (DeviceClaims, "n/third", claim.clone(), false),
            (DeviceSlices, "s2", with(slice, json!({"spec": {"pool": {"name": "b"}}})), true),
            (Nodes, "b", json!({}), true),
            (Pods, "n/else", on("a", json!({})), false),
        ],
    );
    check(
        &here[..1],
        json!({"spec": {"schedulingGates": [{"name": "x"}]}}),
        "held",
        &[
            (Pods, "n/waits", json!({"spec": {"schedulingGates": []}}), true),
            (
                Pods,
                "n/waits",
                json!({"metadata": {"labels": {"x": "y"}}, "spec": {"schedulingGates": [{"name": "x"}]}}),
                false,
            ),
            (Nodes, "b", json!({}), false),
        ],
    );
    check(
        &here[..1],
        claims,
        "held",
        &[(DeviceClaims, "n/g", claim.clone(), true), (DeviceClaims, "n/h", claim, false)],
    );
}

#[test]
fn nobody_is_forgotten() {
    // Where there was no node at all, and where time passes.
    check(&[], json!({}), "", &[(Nodes, "a", json!({}), true)]);
    let mut script = Script::new();
    script.happens(Nodes, "a", &json!({}));
    script.happens(Source::Pods, "n/waits", &cpu("9"));
    assert_eq!(script.tried(), "NodeResourcesFit");
    script.world.queue.advance(script.now + Duration::from_secs(299));
    assert!(!script.is_awake());
    script.world.queue.advance(script.now + Duration::from_secs(300));
    assert!(script.is_awake());
    // More happens than is looked at one by one.
    let mut script = Script::new();
    script.happens(Nodes, "a", &json!({}));
    script.happens(Source::Pods, "n/waits", &cpu("9"));
    script.tried();
    let mut events = Events::default();
    (0..10_000).for_each(|_| events.push(super::Event::Namespace));
    events.wake(&script.world.core, &mut script.world.queue, script.now);
    assert!(script.is_awake());
}
