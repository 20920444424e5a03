//! Devices for cells: classes, slices of every sort, and claims on them for the pods.
//!
//! A cell's devices are of drivers of its own. Every fourth cell has partitions that share counters; in those no device is
//! tainted and no claim has constraints, since upstream forgets to give counters back when either turns a device down.

use rand::Rng;
use rand::rngs::SmallRng;
use serde_json::{Value, json};

use super::cells::{Cell, maybe, pick};

const VERSION: &str = "resource.k8s.io/v1";

/// What a pod wants to be there before it.
#[derive(Default)]
pub struct Hardware {
    pub claims: Vec<Value>,
    pub templates: Vec<Value>,
}

fn gpu(cell: u32) -> String {
    format!("gpu-{cell}.example.com")
}

fn net(cell: u32) -> String {
    format!("net-{cell}.example.com")
}

fn has_partitions(cell: u32) -> bool {
    cell.is_multiple_of(4)
}

pub fn classes(cell: u32) -> Vec<Value> {
    let of = |name: &str, expressions: &[String]| {
        let selectors: Vec<Value> = expressions.iter().map(|e| json!({"cel": {"expression": e}})).collect();
        json!({"apiVersion": VERSION, "kind": "DeviceClass", "metadata": {"name": format!("{name}-{cell}")}, "spec": {"selectors": selectors}})
    };
    let (gpu, net) = (gpu(cell), net(cell));
    let driver = format!("device.driver == {gpu:?}");
    let large = format!("device.capacity[{gpu:?}].memory.compareTo(quantity('40Gi')) >= 0");
    let mut units = of("unit", &[driver.clone(), format!("device.attributes[{gpu:?}].model == 'b'")]);
    units["spec"]["extendedResourceName"] = format!("example.com/unit-{cell}").into();
    let mut any = of("any", std::slice::from_ref(&driver));
    any["spec"]["config"] = json!([{"opaque": {"driver": gpu, "parameters": {"mode": "fast"}}}]);
    vec![any, of("large", &[driver, large]), units, of("net", &[format!("device.driver == {net:?}")])]
}

fn device(cell: u32, n: usize, rng: &mut SmallRng) -> Value {
    let mut out = json!({
        "name": format!("d{n}"),
        "attributes": {"model": {"string": pick(rng, &["a", "b"])}, "numa": {"int": rng.random_range(0..2)},
                       "ver": {"version": pick(rng, &["1.2.0", "2.0.1"])}},
        "capacity": {"memory": {"value": pick(rng, &["16Gi", "40Gi", "80Gi"])}},
    });
    if maybe(rng, 60) {
        out["attributes"]["fast"] = json!({"bool": maybe(rng, 50)});
    }
    if !has_partitions(cell) && maybe(rng, 15) {
        let effect = pick(rng, &["NoSchedule", "NoExecute", "None"]);
        out["taints"] =
            json!([{"key": pick(rng, &["broken", "old"]), "value": pick(rng, &["yes", "no"]), "effect": effect}]);
    }
    out
}

fn slice(name: &str, driver: &str, pool: (&str, i64, usize), rest: Value) -> Value {
    let (pool, generation, count) = pool;
    let mut out = json!({"apiVersion": VERSION, "kind": "ResourceSlice", "metadata": {"name": name},
        "spec": {"driver": driver, "pool": {"name": pool, "generation": generation, "resourceSliceCount": count}}});
    for (field, value) in rest.as_object().into_iter().flatten() {
        out["spec"][field] = value.clone();
    }
    out
}

/// The slices of a node's own pool.
fn of_node(cell: u32, node: &str, rng: &mut SmallRng) -> Vec<Value> {
    let driver = gpu(cell);
    let count = rng.random_range(1..=4);
    let mut devices: Vec<Value> = (0..count).map(|n| device(cell, n, rng)).collect();
    if has_partitions(cell) && maybe(rng, 70) {
        let slots = rng.random_range(2..=5).to_string();
        let counters = json!([{"name": "set", "counters": {"slots": {"value": slots}}}]);
        for device in &mut devices {
            let takes = rng.random_range(1..=3).to_string();
            device["consumesCounters"] = json!([{"counterSet": "set", "counters": {"slots": {"value": takes}}}]);
        }
        let of = |name: &str, field: &str, value: Value| {
            let name = format!("{node}-{name}");
            slice(&name, &driver, (node, 1, 2), json!({"nodeName": node, field: value}))
        };
        return vec![of("a", "sharedCounters", counters), of("b", "devices", devices.into())];
    }
    let mut out = Vec::new();
    let (generation, missing) = (rng.random_range(1..=2), usize::from(maybe(rng, 8)));
    let parts = if devices.len() > 1 && maybe(rng, 40) { 2 } else { 1 };
    for (at, part) in devices.chunks(devices.len().div_ceil(parts)).enumerate() {
        let pool = (node, generation, devices.len().div_ceil(devices.len().div_ceil(parts)) + missing);
        out.push(slice(&format!("{node}-{at}"), &driver, pool, json!({"nodeName": node, "devices": part})));
    }
    if generation == 2 && maybe(rng, 30) {
        // What is left of the generation before.
        let devices = [device(cell, 7, rng)];
        out.push(slice(&format!("{node}-old"), &driver, (node, 1, 1), json!({"nodeName": node, "devices": devices})));
    }
    out
}

/// Devices beside the nodes, which several may share.
fn beside(of: &Cell, rng: &mut SmallRng) -> Vec<Value> {
    let cell = of.number;
    let (driver, pool) = (net(cell), format!("cell-{cell}-net"));
    let mut devices: Vec<Value> = (0..rng.random_range(1..=3))
        .map(|n| {
            let mut out = json!({"name": format!("d{n}"), "attributes": {"numa": {"int": rng.random_range(0..2)}},
                "capacity": {"bw": {"value": pick(rng, &["4", "10"])}}});
            if maybe(rng, 70) {
                out["allowMultipleAllocations"] = true.into();
                match rng.random_range(0..3) {
                    0 => {
                        out["capacity"]["bw"]["requestPolicy"] =
                            json!({"default": "1", "validRange": {"min": "1", "max": "8", "step": "2"}})
                    }
                    1 => {
                        out["capacity"]["bw"]["requestPolicy"] = json!({"default": "2", "validValues": ["1", "2", "4"]})
                    }
                    _ => {}
                }
            }
            out
        })
        .collect();
    let zone = json!([{"key": "topology.kubernetes.io/zone", "operator": "In", "values": [format!("{cell}-z0"), format!("{cell}-z1")]}]);
    let reach = match rng.random_range(0..4) {
        0 => json!({"allNodes": true}),
        1 | 2 => json!({"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": zone}]}}),
        _ => {
            for device in &mut devices {
                match rng.random_range(0..3) {
                    0 => device["allNodes"] = true.into(),
                    1 => device["nodeSelector"] = json!({"nodeSelectorTerms": [{"matchExpressions": zone}]}),
                    _ => device["nodeName"] = of.nodes[rng.random_range(0..of.nodes.len())]["metadata"]["name"].clone(),
                }
            }
            json!({"perDeviceNodeSelection": true})
        }
    };
    let missing = usize::from(maybe(rng, 6) && reach["allNodes"].is_null());
    let mut rest = reach;
    rest["devices"] = devices.into();
    vec![slice(&pool, &driver, (&pool, 1, 1 + missing), rest)]
}

pub fn slices(of: &Cell, rng: &mut SmallRng) -> Vec<Value> {
    let mut out = Vec::new();
    for node in &of.nodes {
        if maybe(rng, 70) {
            out.extend(of_node(of.number, node["metadata"]["name"].as_str().unwrap_or_default(), rng));
        }
    }
    out.extend(beside(of, rng));
    out
}

fn expression(cell: u32, rng: &mut SmallRng) -> String {
    let own = format!("device.attributes['{}']", gpu(cell));
    match rng.random_range(0..20) {
        0..=4 => format!("{own}.model == '{}'", pick(rng, &["a", "b"])),
        5..=8 => format!("{own}.numa == {}", rng.random_range(0..2)),
        9..=11 => format!("{own}.ver.isGreaterThan(semver('1.5.0'))"),
        12..=15 => format!("device.capacity['{}'].memory.compareTo(quantity('40Gi')) >= 0", gpu(cell)),
        16..=18 => format!("'fast' in {own} && {own}.fast"),
        // Goes wrong where the device does not say.
        _ => format!("{own}.fast"),
    }
}

/// What requests and their alternatives have in common.
fn details(cell: u32, of_net: bool, rng: &mut SmallRng) -> Value {
    let class = if of_net { "net" } else { pick(rng, &["any", "any", "large"]) };
    let mut out = json!({"deviceClassName": format!("{class}-{cell}"), "allocationMode": "ExactCount", "count": 1});
    if of_net {
        if maybe(rng, 60) {
            out["capacity"] = json!({"requests": {"bw": pick(rng, &["1", "2", "3", "5", "9"])}});
        }
        return out;
    }
    if maybe(rng, 12) {
        out["allocationMode"] = "All".into();
        out.as_object_mut().map(|o| o.remove("count"));
    } else if maybe(rng, 30) {
        out["count"] = 2.into();
    }
    if maybe(rng, 40) {
        out["selectors"] = json!([{"cel": {"expression": expression(cell, rng)}}]);
    }
    if maybe(rng, 25) {
        out["tolerations"] = match rng.random_range(0..3) {
            0 => json!([{"operator": "Exists"}]),
            1 => json!([{"key": pick(rng, &["broken", "old"]), "operator": "Exists", "effect": "NoSchedule"}]),
            _ => json!([{"key": pick(rng, &["broken", "old"]), "operator": "Equal", "value": "yes"}]),
        };
    }
    out
}

fn request(cell: u32, n: usize, rng: &mut SmallRng) -> Value {
    let name = format!("r{n}");
    let of_net = maybe(rng, 25);
    if !of_net && maybe(rng, 25) {
        let alternatives: Vec<Value> = (0..rng.random_range(2..=3))
            .map(|at| {
                let mut out = details(cell, false, rng);
                out["name"] = format!("s{at}").into();
                out
            })
            .collect();
        return json!({"name": name, "firstAvailable": alternatives});
    }
    let mut exactly = details(cell, of_net, rng);
    if maybe(rng, 8) {
        exactly["adminAccess"] = true.into();
    }
    json!({"name": name, "exactly": exactly})
}

fn spec(cell: u32, rng: &mut SmallRng) -> Value {
    let requests: Vec<Value> = (0..rng.random_range(1..=3)).map(|n| request(cell, n, rng)).collect();
    let mut devices = json!({"requests": requests});
    if !has_partitions(cell) && maybe(rng, 35) {
        let attribute = format!("{}/{}", gpu(cell), pick(rng, &["model", "numa", "fast"]));
        let kind = pick(rng, &["matchAttribute", "matchAttribute", "distinctAttribute"]);
        devices["constraints"] = json!([{kind: attribute}]);
        if maybe(rng, 50) {
            devices["constraints"][0]["requests"] = json!(["r0"]);
        }
    }
    if maybe(rng, 25) {
        devices["config"] = json!([{"opaque": {"driver": gpu(cell), "parameters": {"level": 1}}}]);
        if maybe(rng, 60) {
            let names: Vec<&Value> = requests.iter().map(|r| &r["name"]).collect();
            devices["config"][0]["requests"] = json!(&names[..rng.random_range(1..=names.len())]);
        }
    }
    json!({"devices": devices})
}

fn claim(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": VERSION, "kind": "ResourceClaim", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// A claim that several pods of a cell use.
pub fn shared(cell: u32) -> Value {
    let request = json!({"name": "r", "exactly": {"deviceClassName": format!("any-{cell}"), "allocationMode": "ExactCount", "count": 1}});
    claim(&format!("cell-{cell}-x"), "shared", json!({"devices": {"requests": [request]}}))
}

/// Gives a pod claims on devices, or has it ask for them by number.
pub fn give(of: &Cell, pod: &mut Value, rng: &mut SmallRng) -> Hardware {
    let mut out = Hardware::default();
    let cell = of.number;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let (pod_name, namespace) = (text(&pod["metadata"]["name"]), text(&pod["metadata"]["namespace"]));
    if maybe(rng, 20) {
        let resource = match maybe(rng, 75) {
            true => format!("example.com/unit-{cell}"),
            false => format!("deviceclass.resource.kubernetes.io/any-{cell}"),
        };
        let amount = rng.random_range(1..=2).to_string();
        for side in ["requests", "limits"] {
            pod["spec"]["containers"][0]["resources"][side][&resource] = amount.as_str().into();
        }
        if maybe(rng, 70) {
            return out;
        }
    }
    let mut used = Vec::new();
    for n in 0..rng.random_range(1..=2) {
        let (own, name) = (format!("c{n}"), format!("{pod_name}-{n}"));
        if n == 0 && namespace.ends_with("-x") && maybe(rng, 15) {
            used.push(json!({"name": own, "resourceClaimName": "shared"}));
        } else if maybe(rng, 50) {
            out.claims.push(claim(&namespace, &name, spec(cell, rng)));
            used.push(json!({"name": own, "resourceClaimName": name}));
        } else {
            out.templates.push(json!({"apiVersion": VERSION, "kind": "ResourceClaimTemplate",
                "metadata": {"name": name, "namespace": namespace}, "spec": {"spec": spec(cell, rng)}}));
            used.push(json!({"name": own, "resourceClaimTemplateName": name}));
        }
    }
    let names: Vec<Value> = used.iter().map(|c| json!({"name": c["name"]})).collect();
    pod["spec"]["containers"][0]["resources"]["claims"] = names.into();
    pod["spec"]["resourceClaims"] = used.into();
    out
}
