//! Claims and volumes for the pods of cells: bound ones and such that wait for their first pod.
//!
//! Classes are a cell's own, so that no claim is ever given another cell's volume.

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use super::cells::{Cell, maybe, pick};

pub const DRIVER: &str = "csi.example.com";
/// By whom a binding is completed: an administrator's claim only names its volume.
pub const BOUND: &str = "pv.kubernetes.io/bind-completed";

/// What a pod wants to be there before it.
#[derive(Default)]
pub struct Disks {
    pub volumes: Vec<Value>,
    pub claims: Vec<Value>,
}

pub fn classes(cell: u32) -> Vec<Value> {
    let of = |name: &str, provisioner: &str| {
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": format!("{name}-{cell}")},
               "provisioner": provisioner, "reclaimPolicy": "Retain", "volumeBindingMode": "WaitForFirstConsumer"})
    };
    let mut made = of("made", DRIVER);
    let zones: Vec<String> = (0..2).map(|zone| format!("{cell}-z{zone}")).collect();
    made["allowedTopologies"] =
        json!([{"matchLabelExpressions": [{"key": "topology.kubernetes.io/zone", "values": zones}]}]);
    vec![of("local", "kubernetes.io/no-provisioner"), made]
}

/// What the driver attaches to a node, where it is there.
pub fn csi_node(node: &Value, rng: &mut SmallRng) -> Value {
    let name = &node["metadata"]["name"];
    let mut drivers = json!([]);
    if maybe(rng, 80) {
        drivers = json!([{"name": DRIVER, "nodeID": name, "topologyKeys": null}]);
        if maybe(rng, 80) {
            drivers[0]["allocatable"] = json!({"count": rng.random_range(1..=3)});
        }
    }
    json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": name}, "spec": {"drivers": drivers}})
}

fn volume(name: &str, class: &str, size: &str, mode: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name, "labels": {}},
           "spec": {"storageClassName": class, "capacity": {"storage": size}, "accessModes": [mode], "persistentVolumeReclaimPolicy": "Retain",
                    "csi": {"driver": DRIVER, "volumeHandle": name}},
           "status": {"phase": "Available"}})
}

fn claim(name: &str, namespace: &str, class: &str, size: &str, mode: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": namespace},
           "spec": {"storageClassName": class, "accessModes": [mode], "resources": {"requests": {"storage": size}}}})
}

/// A claim and the volume that it has.
fn bound(name: &str, namespace: &str, mode: &str) -> (Value, Value) {
    let title = format!("{namespace}-{name}");
    let mut volume = volume(&title, "", "5Gi", mode);
    volume["spec"]["claimRef"] =
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name});
    volume["status"]["phase"] = "Bound".into();
    let mut claim = claim(name, namespace, "", "1Gi", mode);
    claim["spec"]["volumeName"] = title.into();
    claim["metadata"]["annotations"] = json!({BOUND: "yes"});
    (volume, claim)
}

fn reach(of: &Cell, rng: &mut SmallRng) -> Value {
    let cell = of.number;
    let expression = if maybe(rng, 60) {
        let hosts: Vec<&Value> =
            (0..rng.random_range(1..=3)).filter_map(|_| of.nodes.choose(rng)).map(|n| &n["metadata"]["name"]).collect();
        json!({"key": "kubernetes.io/hostname", "operator": "In", "values": hosts})
    } else {
        let zone = format!("{cell}-z{}", rng.random_range(0..3));
        json!({"key": "topology.kubernetes.io/zone", "operator": pick(rng, &["In", "NotIn"]), "values": [zone]})
    };
    json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}})
}

/// Claims that many pods of a cell use, with their volumes.
pub fn shared(cell: u32) -> Disks {
    let mut out = Disks::default();
    for namespace in ["x", "y"] {
        for (name, mode) in [("many", "ReadWriteMany"), ("one", "ReadWriteOncePod")] {
            let (volume, claim) = bound(name, &format!("cell-{cell}-{namespace}"), mode);
            out.volumes.push(volume);
            out.claims.push(claim);
        }
    }
    out
}

/// Gives a pod a claim or two.
pub fn give(of: &Cell, pod: &mut Value, rng: &mut SmallRng) -> Disks {
    let mut out = Disks::default();
    let cell = of.number;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let (pod_name, namespace) = (text(&pod["metadata"]["name"]), text(&pod["metadata"]["namespace"]));
    let mut used = Vec::new();
    for n in 0..rng.random_range(1..=2) {
        let name = format!("{pod_name}-{n}");
        let size = pick(rng, &["1Gi", "2Gi", "5Gi", "8Gi"]);
        used.push(match rng.random_range(0..20) {
            0..=5 => {
                let (mut volume, claim) = bound(&name, &namespace, "ReadWriteOnce");
                if maybe(rng, 50) {
                    volume["spec"]["nodeAffinity"] = reach(of, rng);
                }
                if maybe(rng, 30) {
                    let zones = [format!("{cell}-z0"), format!("{cell}-z1__{cell}-z2"), format!("{cell}-z2")];
                    volume["metadata"]["labels"]["topology.kubernetes.io/zone"] =
                        zones[rng.random_range(0..3)].as_str().into();
                }
                out.volumes.push(volume);
                out.claims.push(claim);
                name
            }
            6..=8 => pick(rng, &["many", "one"]).to_string(),
            9..=13 => {
                let class = format!("local-{cell}");
                for at in 0..rng.random_range(0..=3) {
                    let size = pick(rng, &["1Gi", "3Gi", "5Gi", "10Gi"]);
                    let mode = pick(rng, &["ReadWriteOnce", "ReadWriteOnce", "ReadOnlyMany"]);
                    let mut volume = volume(&format!("{namespace}-{name}-{at}"), &class, size, mode);
                    // No driver attaches it.
                    volume["spec"].as_object_mut().and_then(|spec| spec.remove("csi"));
                    volume["spec"]["local"] = json!({"path": "/disk"});
                    volume["spec"]["nodeAffinity"] = reach(of, rng);
                    volume["metadata"]["labels"]["tier"] = pick(rng, &["gold", "iron"]).into();
                    out.volumes.push(volume);
                }
                let mut claim = claim(&name, &namespace, &class, size, "ReadWriteOnce");
                if maybe(rng, 20) {
                    claim["spec"]["selector"] = json!({"matchLabels": {"tier": "gold"}});
                }
                out.claims.push(claim);
                name
            }
            14..=17 => {
                out.claims.push(claim(&name, &namespace, &format!("made-{cell}"), size, "ReadWriteOnce"));
                name
            }
            18 => {
                out.claims.push(claim(&name, &namespace, "", size, "ReadWriteOnce"));
                name
            }
            _ => "nowhere".into(),
        });
    }
    used.dedup();
    let own = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    let named = |(n, claim): (usize, String)| json!({"name": format!("claim-{n}"), "persistentVolumeClaim": {"claimName": claim}});
    pod["spec"]["volumes"] = own.into_iter().chain(used.into_iter().enumerate().map(named)).collect();
    out
}
