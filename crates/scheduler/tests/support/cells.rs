//! Random small clusters ("cells") and pods for them, over every rule the scheduler knows.
//!
//! Cells do not touch: each has labels, zones and namespaces of its own, and every pod asks for its cell. So one control
//! plane can hold hundreds, and each pod is a case by itself. The same seed makes the same objects.

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use super::disks::{self, Disks};
use super::hardware::Hardware;

/// A cell: its number and the names of its nodes.
pub struct Cell {
    pub number: u32,
    pub nodes: Vec<Value>,
}

/// A pod, and what is to be known of it.
pub struct Case {
    pub cell: u32,
    pub pod: Value,
    pub disks: Disks,
    pub hardware: Hardware,
    /// Whether pods of other cells matter to it: one that wants company may be the first of its kind only while there is
    /// none in any namespace that it looks at.
    pub looks_beyond: bool,
}

const APPS: &[&str] = &["a", "b", "c"];
const IMAGES: &[(&str, i64)] = &[
    ("registry.example/big:v1", 900 << 20),
    ("registry.example/middle:v2", 300 << 20),
    ("registry.example/small:v1", 30 << 20),
];

/// The namespaces of a cell, with their labels.
pub fn namespaces(cell: u32) -> Vec<Value> {
    let of = |suffix: &str, team: &str| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("cell-{cell}-{suffix}"),
               "labels": {"cell": cell.to_string(), "team": team, "resource.kubernetes.io/admin-access": "true"}}})
    };
    vec![of("x", "red"), of("y", "blue")]
}

/// A Service in a cell's first namespace: it makes pods without constraints spread.
pub fn service(cell: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": format!("cell-{cell}-x")},
           "spec": {"selector": {"app": "a"}, "ports": [{"port": 80}]}})
}

pub fn maybe(rng: &mut SmallRng, percent: u32) -> bool {
    rng.random_range(0..100) < percent
}

pub fn pick<'a, T: ?Sized>(rng: &mut SmallRng, of: &[&'a T]) -> &'a T {
    of.choose(rng).copied().unwrap_or(of[0])
}

pub fn cell(number: u32, rng: &mut SmallRng) -> Cell {
    let count = rng.random_range(3..=8);
    let nodes = (0..count).map(|n| node(number, n, rng)).collect();
    Cell { number, nodes }
}

fn node(cell: u32, n: u32, rng: &mut SmallRng) -> Value {
    let name = format!("cell-{cell}-{n}");
    let mut labels = json!({"kubernetes.io/hostname": &name, "cell": cell.to_string()});
    if maybe(rng, 85) {
        labels["topology.kubernetes.io/zone"] = format!("{cell}-z{}", rng.random_range(0..3)).into();
    }
    if maybe(rng, 50) {
        labels["disk"] = pick(rng, &["ssd", "hdd"]).into();
    }
    if maybe(rng, 50) {
        labels["size"] = rng.random_range(1..20).to_string().into();
    }
    let mut taints = Vec::new();
    for effect in ["NoSchedule", "PreferNoSchedule", "NoExecute"] {
        if maybe(rng, 12) {
            taints.push(
                json!({"key": pick(rng, &["dedicated", "gpu"]), "value": pick(rng, &["", "x", "y"]), "effect": effect}),
            );
        }
    }
    let images: Vec<Value> = IMAGES
        .iter()
        .filter(|_| maybe(rng, 40))
        .map(|(name, size)| json!({"names": [name], "sizeBytes": size}))
        .collect();
    let allocatable = json!({
        "cpu": rng.random_range(1..=8).to_string(), "memory": format!("{}Gi", rng.random_range(1..=16)),
        "pods": rng.random_range(3..=12).to_string(), "ephemeral-storage": "20Gi",
        "example.com/gpu": rng.random_range(0..=3).to_string(), "hugepages-2Mi": format!("{}Mi", 2 * rng.random_range(0..=16)),
    });
    let block = cell * 8 + n;
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
        "spec": {"podCIDR": format!("100.{}.{}.0/24", 64 + (block >> 8) % 64, block & 255), "taints": taints, "unschedulable": maybe(rng, 7)},
        "status": {"capacity": allocatable, "allocatable": allocatable, "images": images,
                   "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": null, "lastTransitionTime": null}]},
    })
}

fn requirement(cell: u32, rng: &mut SmallRng) -> Value {
    match rng.random_range(0..6) {
        0 => json!({"key": "disk", "operator": pick(rng, &["In", "NotIn"]), "values": [pick(rng, &["ssd", "hdd"])]}),
        1 => {
            json!({"key": "size", "operator": pick(rng, &["Gt", "Lt"]), "values": [rng.random_range(1..20).to_string()]})
        }
        2 => json!({"key": pick(rng, &["disk", "size"]), "operator": pick(rng, &["Exists", "DoesNotExist"])}),
        3 | 4 => {
            let zone = format!("{cell}-z{}", rng.random_range(0..3));
            json!({"key": "topology.kubernetes.io/zone", "operator": pick(rng, &["In", "NotIn"]), "values": [zone]})
        }
        _ => json!({"key": "cell", "operator": "In", "values": [cell.to_string()]}),
    }
}

fn node_term(cell: u32, rng: &mut SmallRng) -> Value {
    let mut term = json!({});
    if maybe(rng, 90) {
        let count = rng.random_range(1..=2);
        term["matchExpressions"] = (0..count).map(|_| requirement(cell, rng)).collect();
    }
    if maybe(rng, 15) || term.as_object().is_some_and(serde_json::Map::is_empty) {
        let name = format!("cell-{cell}-{}", rng.random_range(0..3));
        term["matchFields"] =
            json!([{"key": "metadata.name", "operator": pick(rng, &["In", "NotIn"]), "values": [name]}]);
    }
    term
}

fn selector(rng: &mut SmallRng) -> Value {
    match rng.random_range(0..4) {
        0 => {
            json!({"matchExpressions": [{"key": "app", "operator": pick(rng, &["In", "NotIn"]), "values": [pick(rng, APPS), pick(rng, APPS)]}]})
        }
        1 => json!({"matchExpressions": [{"key": "tier", "operator": pick(rng, &["Exists", "DoesNotExist"])}]}),
        _ => json!({"matchLabels": {"app": pick(rng, APPS)}}),
    }
}

fn topology(rng: &mut SmallRng) -> &'static str {
    pick(rng, &["kubernetes.io/hostname", "topology.kubernetes.io/zone"])
}

fn pod_term(cell: u32, rng: &mut SmallRng) -> Value {
    let mut term = json!({"labelSelector": selector(rng), "topologyKey": topology(rng)});
    match rng.random_range(0..6) {
        0 => term["namespaces"] = json!([format!("cell-{cell}-{}", pick(rng, &["x", "y"]))]),
        1 => term["namespaceSelector"] = json!({"matchLabels": {"team": pick(rng, &["red", "blue"])}}),
        2 => term["namespaceSelector"] = json!({}),
        _ => {}
    }
    term
}

fn many(rng: &mut SmallRng, most: usize, mut make: impl FnMut(&mut SmallRng) -> Value) -> Vec<Value> {
    let count = rng.random_range(1..=most);
    (0..count).map(|_| make(rng)).collect()
}

fn weighted(field: &str, rng: &mut SmallRng, mut make: impl FnMut(&mut SmallRng) -> Value) -> Vec<Value> {
    many(rng, 2, |rng| {
        let mut out = json!({"weight": rng.random_range(1..=100)});
        out[field] = make(rng);
        out
    })
}

fn container(n: usize, plain: bool, rng: &mut SmallRng) -> Value {
    let mut requests = json!({});
    if plain || maybe(rng, 90) {
        requests["cpu"] = pick(rng, &["100m", "250m", "500m", "1", "2", "1500m"]).into();
        requests["memory"] = pick(rng, &["64Mi", "256Mi", "1Gi", "2Gi", "3G"]).into();
    }
    if maybe(rng, 15) {
        requests["ephemeral-storage"] = pick(rng, &["1Gi", "8Gi", "15Gi"]).into();
    }
    let mut limits = json!({});
    if maybe(rng, 12) {
        let gpus = rng.random_range(1..=2).to_string();
        requests["example.com/gpu"] = gpus.as_str().into();
        limits["example.com/gpu"] = gpus.into();
    }
    let image = IMAGES.choose(rng).map_or("x", |i| i.0);
    let mut out =
        json!({"name": format!("c{n}"), "image": image, "resources": {"requests": requests, "limits": limits}});
    if plain && maybe(rng, 6) {
        let pages = pick(rng, &["2Mi", "8Mi", "16Mi"]);
        out["resources"]["requests"]["hugepages-2Mi"] = pages.into();
        out["resources"]["limits"]["hugepages-2Mi"] = pages.into();
    }
    // Within a pod a port may be asked for once.
    if n == 0 && maybe(rng, 12) {
        let port = pick(rng, &[&8080, &9090]);
        let mut entry = json!({"containerPort": port, "hostPort": port, "protocol": pick(rng, &["TCP", "UDP"])});
        if maybe(rng, 40) {
            entry["hostIP"] = pick(rng, &["127.0.0.1", "10.0.0.1"]).into();
        }
        out["ports"] = json!([entry]);
    }
    out
}

/// A pod for a cell. Pods of other priorities than 0 come only where asked for.
pub fn case(of: &Cell, name: &str, scheduler: &str, rng: &mut SmallRng) -> Case {
    let cell = of.number;
    let namespace = format!("cell-{cell}-{}", pick(rng, &["x", "y"]));
    let mut labels = json!({"app": pick(rng, APPS)});
    if maybe(rng, 30) {
        labels["tier"] = "front".into();
    }
    let plain = maybe(rng, 85);
    let containers: Vec<Value> = (0..rng.random_range(1..=2)).map(|n| container(n, plain, rng)).collect();
    let mut spec = json!({
        "schedulerName": scheduler, "nodeSelector": {"cell": cell.to_string()}, "containers": containers,
        "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
    });
    if maybe(rng, 10) {
        let mut first = container(9, true, rng);
        if let Some(map) = first.as_object_mut() {
            map.remove("ports");
        }
        spec["initContainers"] = json!([first]);
    }
    if maybe(rng, 12) {
        spec["nodeSelector"]["disk"] = pick(rng, &["ssd", "hdd"]).into();
    }
    if maybe(rng, 30) {
        spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"] =
            many(rng, 2, |rng| node_term(cell, rng)).into();
    }
    if maybe(rng, 30) {
        spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] =
            weighted("preference", rng, |rng| node_term(cell, rng)).into();
    }
    for (kind, required, preferred) in [("podAffinity", 12, 20), ("podAntiAffinity", 15, 20)] {
        if maybe(rng, required) {
            spec["affinity"][kind]["requiredDuringSchedulingIgnoredDuringExecution"] =
                many(rng, 2, |rng| pod_term(cell, rng)).into();
        }
        if maybe(rng, preferred) {
            spec["affinity"][kind]["preferredDuringSchedulingIgnoredDuringExecution"] =
                weighted("podAffinityTerm", rng, |rng| pod_term(cell, rng)).into();
        }
    }
    if maybe(rng, 35) {
        let mut seen = Vec::new();
        let constraints = many(rng, 2, |rng| {
            let mut out = json!({
                "maxSkew": rng.random_range(1..=2), "topologyKey": topology(rng), "labelSelector": selector(rng),
                "whenUnsatisfiable": pick(rng, &["DoNotSchedule", "ScheduleAnyway"]),
            });
            if maybe(rng, 25) {
                out["nodeAffinityPolicy"] = pick(rng, &["Honor", "Ignore"]).into();
            }
            if maybe(rng, 25) {
                out["nodeTaintsPolicy"] = pick(rng, &["Honor", "Ignore"]).into();
            }
            out
        });
        let unique = constraints.into_iter().filter(|c| {
            let key = (c["topologyKey"].clone(), c["whenUnsatisfiable"].clone());
            let fresh = !seen.contains(&key);
            seen.push(key);
            fresh
        });
        spec["topologySpreadConstraints"] = unique.collect();
    }
    if maybe(rng, 45) {
        spec["tolerations"] = many(rng, 2, |rng| match rng.random_range(0..4) {
            0 => json!({"operator": "Exists"}),
            1 => json!({"key": pick(rng, &["dedicated", "gpu"]), "operator": "Exists", "effect": pick(rng, &["NoSchedule", "NoExecute", "PreferNoSchedule"])}),
            2 => json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}),
            _ => json!({"key": pick(rng, &["dedicated", "gpu"]), "value": pick(rng, &["", "x", "y"])}),
        })
        .into();
    }
    if maybe(rng, 8) {
        let disk = format!("disk-{cell}-{}", rng.random_range(0..2));
        let read_only = maybe(rng, 50);
        spec["volumes"] = match rng.random_range(0..4) {
            0 => {
                json!([{"name": "d", "iscsi": {"targetPortal": "10.0.0.9:3260", "iqn": format!("iqn.2020-01.example:{disk}"), "lun": 0, "readOnly": read_only}}])
            }
            1 => json!([{"name": "d", "gcePersistentDisk": {"pdName": disk, "readOnly": read_only}}]),
            2 => json!([{"name": "d", "awsElasticBlockStore": {"volumeID": disk, "readOnly": read_only}}]),
            _ => {
                let monitors: &[&[&str]] =
                    &[&["10.0.0.8:6789"], &["10.0.0.9:6789", "10.0.0.8:6789"], &["10.0.0.9:6789"]];
                let monitors = monitors.choose(rng).copied().unwrap_or_default();
                json!([{"name": "d", "rbd": {"monitors": monitors, "pool": "rbd", "image": disk, "readOnly": read_only}}])
            }
        };
    }
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels}, "spec": spec,
    });
    let disks = if maybe(rng, 22) { disks::give(of, &mut pod, rng) } else { Disks::default() };
    let near = &pod["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let looks_beyond = near.as_array().into_iter().flatten().any(|term| !term["namespaceSelector"].is_null());
    Case { cell, pod, disks, hardware: Hardware::default(), looks_beyond }
}
