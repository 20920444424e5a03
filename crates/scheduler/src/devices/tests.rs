//! Claims and slices in, allocations out.

use client::Change;
use meta::Object;
use serde_json::{Value, json};

use super::allocator::{Asked, Failure, allocate};
use super::*;
use crate::node::Node;

fn change(kind: &str, name: &str, mut body: Value) -> Change {
    body["apiVersion"] = "resource.k8s.io/v1".into();
    body["kind"] = kind.into();
    body["metadata"]["name"] = name.into();
    body["metadata"]["uid"] = format!("uid-{name}").into();
    body["metadata"]["resourceVersion"] = "1".into();
    let object = Arc::new(Object::from_value(&body).unwrap());
    Change { key: name.into(), old: None, new: Some(object) }
}

#[derive(Default)]
struct World(Devices);

impl World {
    /// A pool of one slice on node `n`, of a driver `d.x`.
    fn pool(&mut self, name: &str, rest: Value) {
        let mut spec = json!({
            "driver": "d.x", "nodeName": "n",
            "pool": {"name": name, "generation": 1, "resourceSliceCount": 1},
        });
        for (field, value) in rest.as_object().unwrap() {
            match value {
                Value::Null => drop(spec.as_object_mut().unwrap().remove(field)),
                _ => spec[field] = value.clone(),
            }
        }
        self.0.take(Source::DeviceSlices, &change("ResourceSlice", name, json!({"spec": spec})));
    }

    fn class(&mut self, name: &str, spec: Value) {
        self.0.take(Source::DeviceClasses, &change("DeviceClass", name, json!({"spec": spec})));
    }

    fn claim(&mut self, name: &str, devices: Value, status: Value) -> Result<Asked, String> {
        let body = json!({"spec": {"devices": devices}, "status": status});
        let change = change("ResourceClaim", name, body);
        self.0.take(Source::DeviceClaims, &change);
        let claim = self.0.claim(name).unwrap().clone();
        Asked::of(&self.0, &change.key, &claim)
    }

    /// What claims get on a node, as `request=pool/device`, or why nothing.
    fn told(&self, asked: &[Asked], node: &str) -> String {
        let found = match allocate(&self.0, asked, &Node::named(node.into()), 100_000) {
            Ok(found) => found,
            Err(Failure::Fault(why)) => return why,
            Err(other) => return format!("{other:?}"),
        };
        let one = |r: &api::DeviceRequestAllocationResult| {
            let consumed: Vec<String> =
                r.consumed_capacity.iter().flatten().map(|(name, q)| format!(" {name} {}", q.0)).collect();
            format!("{}={}/{}{}", r.request, r.pool, r.device, consumed.concat())
        };
        let claim = |a: &api::AllocationResult| {
            let results = a.devices.as_ref().unwrap().results.as_deref().unwrap();
            results.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        found.iter().map(claim).collect::<Vec<_>>().join("; ")
    }

    fn check(&mut self, devices: Value, expect: &str) {
        let told = match self.claim("c", devices.clone(), Value::Null) {
            Ok(asked) => self.told(&[asked], "n"),
            Err(why) => why,
        };
        assert_eq!(told, expect, "{devices}");
    }
}

fn exactly(name: &str, class: &str, rest: Value) -> Value {
    let mut request = json!({"deviceClassName": class, "allocationMode": "ExactCount", "count": 1});
    for (field, value) in rest.as_object().unwrap() {
        request[field] = value.clone();
    }
    json!({"name": name, "exactly": request})
}

fn select(expression: &str) -> Value {
    json!([{"cel": {"expression": expression}}])
}

fn gpu(name: &str, memory: &str, numa: i64) -> Value {
    json!({"name": name, "attributes": {"numa": {"int": numa}, "model": {"string": "a"}, "version": {"version": "1.2.0"}},
        "capacity": {"memory": {"value": memory}}})
}

fn gpus() -> World {
    let mut world = World::default();
    world.pool(
        "p",
        json!({"devices": [gpu("a", "40Gi", 0), gpu("b", "80Gi", 1), gpu("c", "80Gi", 0), gpu("d", "80Gi", 1)]}),
    );
    world.class(
        "gpu",
        json!({"selectors": select("device.driver == 'd.x'"),
        "config": [{"opaque": {"driver": "d.x", "parameters": {"a": 1}}}]}),
    );
    world.class("other", json!({"selectors": select("device.driver == 'e.x'")}));
    world
}

#[test]
fn requests_find_devices() {
    let mut world = gpus();
    let one = |rest| json!({"requests": [exactly("r", "gpu", rest)]});
    world.check(one(json!({})), "r=p/a");
    world.check(one(json!({"count": 3})), "r=p/a, r=p/b, r=p/c");
    world.check(one(json!({"count": 5})), "None");
    world.check(one(json!({"allocationMode": "All"})), "r=p/a, r=p/b, r=p/c, r=p/d");
    world.check(json!({"requests": [exactly("r", "other", json!({}))]}), "None");
    world.check(
        json!({"requests": [exactly("r", "none", json!({}))]}),
        "claim c, request r: could not retrieve device class none: not found",
    );
    for (expression, expect) in [
        ("device.capacity['d.x'].memory.compareTo(quantity('64Gi')) > 0", "r=p/b"),
        ("device.attributes['d.x'].numa == 1 && device.attributes['d.x'].model == 'a'", "r=p/b"),
        ("device.attributes['d.x'].version.isGreaterThan(semver('1.1.9'))", "r=p/a"),
        ("cel.bind(own, device.attributes['d.x'], own.numa == 1)", "r=p/b"),
        ("'e.x' in device.attributes", "None"),
        ("has(device.attributes['e.x'].numa)", "None"),
        ("device.attributes['e.x'].numa == 1", "claim c: selector #0: CEL runtime error: no such key: numa"),
        (
            "device.driver",
            "claim c: selector #0: CEL compile error: must evaluate to bool or the unknown type, not string",
        ),
    ] {
        world.check(one(json!({"selectors": select(expression)})), expect);
    }
    let asked = world.claim("c", one(json!({})), Value::Null).unwrap();
    assert_eq!(world.told(&[asked], "elsewhere"), "None");
}

#[test]
fn the_search_goes_back() {
    let mut world = gpus();
    // The first takes the only one the second could have, unless it gives way.
    world.check(
        json!({"requests": [
            exactly("any", "gpu", json!({})),
            exactly("a", "gpu", json!({"selectors": select("device.capacity['d.x'].memory.isLessThan(quantity('64Gi'))")})),
        ]}),
        "any=p/b, a=p/a",
    );
    let numa = |kind: &str, count: i64| json!({"requests": [exactly("r", "gpu", json!({"count": count}))], "constraints": [{kind: "d.x/numa"}]});
    world.check(numa("matchAttribute", 2), "r=p/a, r=p/c");
    world.check(numa("distinctAttribute", 2), "r=p/a, r=p/b");
    world.check(numa("matchAttribute", 3), "None");
    let alternatives = json!({"requests": [{"name": "r", "firstAvailable": [
        {"name": "big", "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 5},
        {"name": "small", "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2},
    ]}]});
    world.check(alternatives, "r/small=p/a, r/small=p/b");
    // Claims of one pod do not share.
    let two: Vec<_> = ["x", "y"]
        .map(|name| {
            world.claim(name, json!({"requests": [exactly("r", "gpu", json!({"count": 2}))]}), Value::Null).unwrap()
        })
        .into();
    assert_eq!(world.told(&two, "n"), "r=p/a, r=p/b; r=p/c, r=p/d");
}

#[test]
fn what_others_have_is_not_given() {
    let mut world = gpus();
    let one = json!({"requests": [exactly("r", "gpu", json!({}))]});
    let has = |device: &str, admin: bool| {
        json!({"allocation": {"devices": {"results": [
            {"request": "r", "driver": "d.x", "pool": "p", "device": device, "adminAccess": admin}]}}})
    };
    world.claim("first", one.clone(), has("a", false)).unwrap();
    world.claim("watching", one.clone(), has("b", true)).unwrap();
    world.check(one.clone(), "r=p/b");
    world.check(json!({"requests": [exactly("r", "gpu", json!({"adminAccess": true}))]}), "r=p/a");
    let asked = world.claim("c", one.clone(), Value::Null).unwrap();
    let found = allocate(&world.0, &[asked], &Node::named("n".into()), 100_000).unwrap();
    assert_eq!(found[0].devices.as_ref().unwrap().config.as_ref().unwrap()[0].source, "FromClass");
    let only = &found[0].node_selector.as_ref().unwrap().node_selector_terms[0].match_fields.as_ref().unwrap()[0];
    assert_eq!((&*only.key, only.values.as_deref()), ("metadata.name", Some(&["n".to_string()][..])));
    world.0.decide(&"c".into(), Arc::new(found.into_iter().next().unwrap()));
    let asked = world.claim("d", one.clone(), Value::Null).unwrap();
    assert_eq!(world.told(&[asked], "n"), "r=p/c", "what was decided here counts");
    world.0.forget("c");
    let asked = world.claim("d", one.clone(), Value::Null).unwrap();
    assert_eq!(world.told(&[asked], "n"), "r=p/b");
    world.claim("first", one.clone(), Value::Null).unwrap();
    world.check(one, "r=p/a");
}

#[test]
fn pools_count_as_a_whole() {
    let mut world = World::default();
    world.class("gpu", json!({}));
    let all = json!({"requests": [exactly("r", "gpu", json!({"allocationMode": "All"}))]});
    let one = json!({"requests": [exactly("r", "gpu", json!({}))]});
    let pool = |count: i64| json!({"name": "p", "generation": 2, "resourceSliceCount": count});
    world.pool("p", json!({"pool": pool(2), "devices": [gpu("a", "1Gi", 0)]}));
    world.check(one.clone(), "None");
    world.check(
        all.clone(),
        "claim c, request r: asks for all devices, but resource pool d.x/p is currently being updated",
    );
    world.pool("p2", json!({"pool": pool(2), "devices": [gpu("a", "1Gi", 0)]}));
    world.check(one.clone(), "InvalidPools");
    world.pool("p2", json!({"pool": pool(2), "nodeName": null, "allNodes": true, "devices": [gpu("b", "1Gi", 0)]}));
    world.check(all, "r=p/a, r=p/b");
    world.pool(
        "p2",
        json!({"pool": pool(2), "nodeName": null, "perDeviceNodeSelection": true,
        "devices": [{"name": "x", "nodeName": "m"}, {"name": "y", "nodeName": "n"}]}),
    );
    world.pool("p", json!({"pool": pool(2), "nodeName": "m", "devices": []}));
    world.check(one, "r=p/y");
}

#[test]
fn taints_partitions_and_shares() {
    let mut world = World::default();
    world.class("gpu", json!({}));
    world
        .pool("t", json!({"devices": [{"name": "a", "taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}]}));
    let request = |rest| json!({"requests": [exactly("r", "gpu", rest)]});
    world.check(request(json!({})), "None");
    world.check(request(json!({"tolerations": [{"key": "k", "operator": "Exists"}]})), "r=t/a");

    // Rules lay taints on devices that have none, where they say which.
    let mut world = World::default();
    world.class("gpu", json!({}));
    world.pool("t", json!({"devices": [{"name": "a"}, {"name": "b"}]}));
    let mut rule = |name: &str, selector: Value| {
        let body = json!({"spec": {"deviceSelector": selector, "taint": {"key": "k", "effect": "NoExecute"}}});
        world.0.take(Source::DeviceTaintRules, &change("DeviceTaintRule", name, body));
    };
    rule("of-nothing", Value::Null);
    rule("of-another-driver", json!({"driver": "other", "device": "a"}));
    rule("of-one", json!({"pool": "t", "device": "a"}));
    world.check(request(json!({})), "r=t/b");
    world.check(request(json!({"count": 2})), "None");
    world.check(request(json!({"count": 2, "tolerations": [{"operator": "Exists"}]})), "r=t/a, r=t/b");

    // Of devices that will do, those first that need not be made ready.
    let mut world = World::default();
    world.class("gpu", json!({}));
    world.pool(
        "a",
        json!({"devices": [{"name": "x", "bindingConditions": ["Attached"], "bindingFailureConditions": ["Broken"]}]}),
    );
    world.pool("b", json!({"devices": [{"name": "y"}]}));
    world.check(request(json!({})), "r=b/y");
    world.check(request(json!({"count": 2})), "r=b/y, r=a/x");

    let mut world = World::default();
    world.class("gpu", json!({}));
    let part = |name: &str, slots: &str| json!({"name": name, "consumesCounters": [{"counterSet": "s", "counters": {"slots": {"value": slots}}}]});
    world.pool(
        "p",
        json!({
            "sharedCounters": [{"name": "s", "counters": {"slots": {"value": "4"}}}],
            "devices": [part("whole", "4"), part("half", "2"), part("quarter", "1"), part("rest", "1")],
        }),
    );
    world.check(request(json!({"count": 3})), "r=p/half, r=p/quarter, r=p/rest");
    world.check(request(json!({"count": 4})), "None");

    let mut world = World::default();
    world.class("net", json!({}));
    world.pool(
        "p",
        json!({"devices": [{"name": "a", "allowMultipleAllocations": true, "capacity": {"bw": {
        "value": "10", "requestPolicy": {"default": "1", "validRange": {"min": "1", "step": "2"}}}}}]}),
    );
    let asked = |amount: &str| exactly("r", "net", json!({"capacity": {"requests": {"bw": amount}}}));
    world.check(json!({"requests": [asked("4")]}), "r=p/a bw 5");
    world.check(json!({"requests": [exactly("r", "net", json!({})), asked("5")]}), "r=p/a bw 1, r=p/a bw 5");
    let status = json!({"allocation": {"devices": {"results": [{"request": "r", "driver": "d.x", "pool": "p", "device": "a",
        "shareID": "s", "consumedCapacity": {"bw": "7"}}]}}});
    world.claim("other", json!({"requests": [asked("7")]}), status).unwrap();
    world.check(json!({"requests": [asked("3")]}), "r=p/a bw 3");
    world.check(json!({"requests": [asked("4")]}), "None");
}
