//! EndpointSlices and Endpoints: which pods stand behind a Service, at which addresses and ports.
//!
//! One gathering for both; a pure plan for each. Slices are filled to [`MAX_PER_SLICE`] and changed as little as
//! possible; each has one address family and one set of ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use client::{Change, Informer};
use k8s_openapi::api::core::v1::{Endpoints, Node, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use meta::{LabelSelector, Object, Status};
use serde_json::{Map, Value, json};

use crate::plan::{Action, Plan};
use crate::pod_facts::{self, Facts, Port};
use crate::pods::{self, PodView};
use crate::runner::{Controller, own_key};
use crate::{Context, decoded};

/// Endpoints in a slice, upstream's default.
const MAX_PER_SLICE: usize = 100;
/// Addresses in an Endpoints object; beyond that it is marked as truncated.
pub const MAX_ADDRESSES: usize = 1000;
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const SLICE_CONTROLLER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
pub const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// When what is told last changed, for those who measure how long telling takes.
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The index of Services by the first label they select by.
const BY_SELECTOR: &str = "selector";

/// A Service with its pods.
pub struct World<'a> {
    pub service: &'a Object,
    pub spec: &'a ServiceSpec,
    pub pods: Vec<PodView>,
    /// Zones of nodes that have one.
    pub zones: BTreeMap<String, String>,
}

fn is_headless(spec: &ServiceSpec) -> bool {
    matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"))
}

/// Whether the pod has an address anybody could use.
fn belongs(pod: &PodView, with_terminating: bool) -> bool {
    !pod.facts.ips.is_empty() && !pod.is_finished() && (with_terminating || !pod.is_terminating())
}

/// The pod's number for a Service's port; `None` when it names a port the pod has not.
fn target_port(pod: &Facts, port: &ServicePort) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => Some(port.port),
        Some(IntOrString::String(name)) => {
            let containers = pod.shape.containers().iter().chain(pod.shape.sidecars());
            let wanted = port.protocol.as_deref().unwrap_or("TCP");
            let fits = |p: &&Port| p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == wanted;
            containers.flat_map(|c| c.ports.iter().flatten()).find(fits).map(|p| p.container_port)
        }
    }
}

fn endpoint_ports(spec: &ServiceSpec, pod: &Facts, always_named: bool) -> Vec<Value> {
    let mut ports = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Some(number) = target_port(pod, port) else { continue };
        let mut out = Map::new();
        let name = port.name.clone().unwrap_or_default();
        if always_named || !name.is_empty() {
            out.insert("name".into(), name.into());
        }
        out.insert("port".into(), number.into());
        out.insert("protocol".into(), port.protocol.clone().unwrap_or_else(|| "TCP".into()).into());
        if let Some(app) = &port.app_protocol {
            out.insert("appProtocol".into(), app.as_str().into());
        }
        ports.push(Value::Object(out));
    }
    ports
}

fn hostname<'a>(service: &Object, pod: &'a PodView) -> Option<&'a str> {
    let hostname = pod.facts.hostname.as_deref().filter(|h| !h.is_empty())?;
    (pod.facts.shape.subdomain.as_deref() == Some(&*service.meta.name)).then_some(hostname)
}

fn target_ref(pod: &PodView) -> Value {
    let meta = &pod.object.meta;
    json!({"kind": "Pod", "namespace": &*meta.namespace, "name": &*meta.name, "uid": &*meta.uid})
}

fn service_labels(service: &Object) -> Map<String, Value> {
    service.meta.labels.iter().map(|(k, v)| (k.to_string(), Value::from(&**v))).collect()
}

fn slice_endpoint(world: &World<'_>, pod: &PodView, family: &str) -> Option<Value> {
    let wanted = |ip: &&str| ip.parse::<IpAddr>().is_ok_and(|a| a.is_ipv4() == (family == "IPv4"));
    let addresses: Vec<&str> = pod.facts.ips.iter().map(|ip| &**ip).filter(wanted).collect();
    if addresses.is_empty() {
        return None;
    }
    let (serving, terminating) = (pod.is_ready(), pod.is_terminating());
    let ready = world.spec.publish_not_ready_addresses == Some(true) || (serving && !terminating);
    let mut out = json!({
        "addresses": addresses,
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": target_ref(pod),
    });
    if !pod.node().is_empty() {
        out["nodeName"] = pod.node().into();
    }
    if let Some(hostname) = hostname(world.service, pod) {
        out["hostname"] = hostname.into();
    }
    if let Some(zone) = world.zones.get(pod.node()) {
        out["zone"] = zone.as_str().into();
        match world.spec.traffic_distribution.as_deref() {
            Some("PreferClose" | "PreferSameZone") => out["hints"] = json!({"forZones": [{"name": zone}]}),
            Some("PreferSameNode") => {
                out["hints"] = json!({"forZones": [{"name": zone}], "forNodes": [{"name": pod.node()}]})
            }
            _ => {}
        }
    }
    Some(out)
}

fn families(spec: &ServiceSpec, pods: &[PodView]) -> Vec<String> {
    let declared = spec.ip_families.clone().unwrap_or_default();
    if !declared.is_empty() {
        return declared;
    }
    // Services from before dual stack: as their address, or their pods', says.
    let ip = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
    let of_pod = || pods.iter().find_map(|p| p.facts.ips.first()?.parse::<IpAddr>().ok());
    vec![if ip.or_else(of_pod).is_some_and(|ip| ip.is_ipv6()) { "IPv6" } else { "IPv4" }.to_string()]
}

/// A slice that is there, with its body.
type Existing = (Arc<Object>, Value);

/// One slice as it should be.
struct Slice {
    existing: Option<Existing>,
    endpoints: Vec<Value>,
}

fn identity(endpoint: &Value) -> String {
    format!("{}{}", endpoint["targetRef"]["uid"], endpoint["addresses"])
}

/// The slices of one address family and one set of ports: keep what is right, change in place, then fill up.
fn fill(existing: Vec<Existing>, desired: Vec<Value>) -> Vec<Slice> {
    let mut desired: BTreeMap<String, Value> = desired.into_iter().map(|e| (identity(&e), e)).collect();
    let mut slices: Vec<Slice> = existing
        .into_iter()
        .map(|(object, body)| {
            let held = body["endpoints"].as_array().cloned().unwrap_or_default();
            let endpoints = held.iter().filter_map(|e| desired.remove(&identity(e))).collect();
            Slice { existing: Some((object, body)), endpoints }
        })
        .collect();
    let mut rest = desired.into_values();
    for slice in &mut slices {
        let room = MAX_PER_SLICE.saturating_sub(slice.endpoints.len());
        slice.endpoints.extend(rest.by_ref().take(room));
    }
    loop {
        let endpoints: Vec<Value> = rest.by_ref().take(MAX_PER_SLICE).collect();
        if endpoints.is_empty() {
            return slices;
        }
        slices.push(Slice { existing: None, endpoints });
    }
}

impl World<'_> {
    /// The latest change of readiness of the Service's pods; the Service's own beginning when none is known.
    fn triggered(&self) -> Value {
        let changed = |p: &PodView| p.condition("Ready")?.last_transition_time;
        let latest = self.pods.iter().filter_map(changed).max();
        latest.map_or_else(|| (&*self.service.meta.creation_timestamp).into(), |t| client::time::rfc3339(t).into())
    }
}

/// Brings a Service's slices to what its pods are.
pub fn plan_slices(world: &World<'_>, slices: Vec<Arc<Object>>, taken: impl Fn(&str) -> bool) -> Result<Plan, Status> {
    let resource = client::gvr_of::<EndpointSlice>();
    let mut plan = Plan::nothing();
    let mut labels = service_labels(world.service);
    labels.retain(|k, _| ![SERVICE_NAME, MANAGED_BY, HEADLESS].contains(&k.as_str()));
    labels.insert(SERVICE_NAME.into(), (&*world.service.meta.name).into());
    labels.insert(MANAGED_BY.into(), SLICE_CONTROLLER.into());
    if is_headless(world.spec) {
        labels.insert(HEADLESS.into(), "".into());
    }
    let labels = Value::Object(labels);
    let prefix = pods::name_prefix(&world.service.meta.name);
    let uids: Vec<String> = slices.iter().map(|s| s.meta.uid.to_string()).collect();
    let mut fresh = 0;
    let mut existing: BTreeMap<(String, String), Vec<Existing>> = BTreeMap::new();
    let supported = families(world.spec, &world.pods);
    for slice in slices {
        let body = slice.value().map_err(Status::internal)?;
        let family = body["addressType"].as_str().unwrap_or_default().to_string();
        let ours = slice.meta.owner_references.iter().any(|o| *o.uid == *world.service.meta.uid);
        if !ours || !supported.contains(&family) {
            plan.act(Action::delete(&resource, &slice));
            continue;
        }
        existing.entry((family, ports_key(&body["ports"]))).or_default().push((slice, body));
    }
    for family in supported {
        let mut desired: BTreeMap<String, (Vec<Value>, Vec<Value>)> = BTreeMap::new();
        for pod in world.pods.iter().filter(|p| belongs(p, true)) {
            let Some(endpoint) = slice_endpoint(world, pod, &family) else { continue };
            let ports = endpoint_ports(world.spec, &pod.facts, true);
            let group = desired.entry(ports_key(&json!(ports))).or_insert_with(|| (ports, Vec::new()));
            group.1.push(endpoint);
        }
        if desired.is_empty() {
            // A Service without endpoints has one slice that says so.
            desired.insert(ports_key(&json!([])), (Vec::new(), Vec::new()));
        }
        let is_placeholder = desired.values().all(|d| d.1.is_empty());
        for (key, (ports, endpoints)) in desired {
            let mut filled = fill(existing.remove(&(family.clone(), key)).unwrap_or_default(), endpoints);
            if is_placeholder && filled.is_empty() {
                filled.push(Slice { existing: None, endpoints: Vec::new() });
            }
            for (at, slice) in filled.into_iter().enumerate() {
                match slice.existing {
                    Some((object, _)) if slice.endpoints.is_empty() && !(is_placeholder && at == 0) => {
                        plan.act(Action::delete(&resource, &object));
                    }
                    Some((object, mut body)) => {
                        let held = body["endpoints"].as_array().cloned().unwrap_or_default();
                        if held == slice.endpoints && body["metadata"]["labels"] == labels {
                            continue;
                        }
                        body["endpoints"] = slice.endpoints.into();
                        body["metadata"]["labels"] = labels.clone();
                        body["metadata"]["annotations"][TRIGGERED] = world.triggered();
                        plan.act(Action::update(&resource, &object, body));
                    }
                    None => {
                        fresh += 1;
                        let seed = format!("{}{family}", world.service.meta.uid);
                        let names = pods::fresh_names(&prefix, &seed, uids.iter().map(String::as_str), &taken, fresh);
                        let body = json!({
                            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                            "metadata": {
                                "name": names.last(), "generateName": prefix, "namespace": &*world.service.meta.namespace,
                                "labels": labels, "ownerReferences": [crate::owners::controller_ref(world.service)],
                                "annotations": {TRIGGERED: world.triggered()},
                            },
                            "addressType": family, "endpoints": slice.endpoints, "ports": ports,
                        });
                        plan.act(Action::create(&resource, &world.service.meta.namespace, body).may_exist());
                    }
                }
            }
        }
    }
    for (object, _) in existing.into_values().flatten() {
        plan.act(Action::delete(&resource, &object));
    }
    Ok(plan)
}

/// The same for the same set of ports.
fn ports_key(ports: &Value) -> String {
    let mut keys: Vec<String> = ports
        .as_array()
        .into_iter()
        .flatten()
        .map(|p| {
            format!("{}/{}/{}/{}", p["name"].as_str().unwrap_or_default(), p["port"], p["protocol"], p["appProtocol"])
        })
        .collect();
    keys.sort();
    keys.join(",")
}

/// Brings a Service's Endpoints object to what its pods are.
pub fn plan_endpoints(world: &World<'_>, existing: Option<&Arc<Object>>) -> Result<Plan, Status> {
    let resource = client::gvr_of::<Endpoints>();
    let all = world.spec.publish_not_ready_addresses == Some(true);
    let family = families(world.spec, &world.pods).into_iter().next().unwrap_or_default();
    // (ports, ready, not ready) by ports
    let mut groups: BTreeMap<String, [Vec<Value>; 3]> = BTreeMap::new();
    let mut count = 0;
    let mut pods: Vec<&PodView> = world.pods.iter().filter(|p| belongs(p, all)).collect();
    pods.sort_by_key(|p| !p.is_ready());
    for pod in pods {
        let Some(endpoint) = slice_endpoint(world, pod, &family) else { continue };
        let ports = endpoint_ports(world.spec, &pod.facts, false);
        let portless = world.spec.ports.as_ref().is_none_or(Vec::is_empty);
        if ports.is_empty() && !(portless && is_headless(world.spec)) {
            continue;
        }
        count += 1;
        if count > MAX_ADDRESSES {
            continue;
        }
        let mut address = json!({"ip": endpoint["addresses"][0], "targetRef": endpoint["targetRef"]});
        for field in ["nodeName", "hostname"] {
            if let Some(value) = endpoint.get(field) {
                address[field] = value.clone();
            }
        }
        let group = groups.entry(ports_key(&json!(ports))).or_insert_with(|| [ports, Vec::new(), Vec::new()]);
        group[if all || pod.is_ready() { 1 } else { 2 }].push(address);
    }
    let mut subsets = Vec::new();
    for [ports, mut ready, mut not_ready] in groups.into_values() {
        let mut subset = Map::new();
        for (field, list) in [("addresses", &mut ready), ("notReadyAddresses", &mut not_ready)] {
            list.sort_by_key(|a| (a["ip"].as_str().map(str::to_string), a["targetRef"]["uid"].to_string()));
            if !list.is_empty() {
                subset.insert(field.into(), std::mem::take(list).into());
            }
        }
        if !ports.is_empty() {
            subset.insert("ports".into(), ports.into());
        }
        subsets.push(Value::Object(subset));
    }
    let mut labels = service_labels(world.service);
    labels.insert(ENDPOINTS_MANAGED_BY.into(), "endpoint-controller".into());
    match is_headless(world.spec) {
        true => labels.insert(HEADLESS.into(), "".into()),
        false => labels.remove(HEADLESS),
    };
    let labels = Value::Object(labels);
    let truncated = (count > MAX_ADDRESSES).then_some("truncated");
    let mut plan = Plan::nothing();
    let mut body = match existing {
        Some(object) => object.value().map_err(Status::internal)?,
        None => json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": &*world.service.meta.name, "namespace": &*world.service.meta.namespace},
        }),
    };
    let before = body.clone();
    body["metadata"]["labels"] = labels;
    match truncated {
        Some(word) => body["metadata"]["annotations"][OVER_CAPACITY] = word.into(),
        None => {
            if let Some(annotations) = body["metadata"].get_mut("annotations").and_then(Value::as_object_mut) {
                annotations.remove(OVER_CAPACITY);
            }
        }
    }
    if subsets.is_empty() {
        if let Some(map) = body.as_object_mut() {
            map.remove("subsets");
        }
    } else {
        body["subsets"] = subsets.into();
    }
    if existing.is_some() && body == before {
        return Ok(plan);
    }
    body["metadata"]["annotations"][TRIGGERED] = world.triggered();
    match existing {
        None => plan.act(Action::create(&resource, &world.service.meta.namespace, body).may_exist()),
        Some(object) => plan.act(Action::update(&resource, object, body)),
    };
    Ok(plan)
}

fn gather<'a>(
    service: &'a Object,
    typed: &'a Service,
    pods: &Informer,
    nodes: &Informer,
) -> Result<Option<World<'a>>, Status> {
    let Some(spec) = &typed.spec else { return Ok(None) };
    let Some(selector) = spec.selector.as_ref().filter(|_| spec.type_.as_deref() != Some("ExternalName")) else {
        return Ok(None);
    };
    if selector.is_empty() || service.meta.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let selector = LabelSelector::from_map(selector.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    let pods = pods::views(pods.list_selected(Some(&service.meta.namespace), &selector))?;
    let zone = |p: &PodView| Some((p.node().to_string(), nodes.get(p.node())?.meta.label(ZONE)?.to_string()));
    let zones = pods.iter().filter_map(zone).collect();
    Ok(Some(World { service, spec, pods, zones }))
}

/// Whether endpoints show the same of two versions of a pod.
fn show_the_same(old: &Arc<Object>, new: &Arc<Object>) -> bool {
    let (Ok(old), Ok(new)) = (PodView::new(old.clone()), PodView::new(new.clone())) else { return false };
    let state = |p: &PodView| (p.is_ready(), p.is_terminating(), p.is_finished());
    let (a, b) = (&old.facts, &new.facts);
    state(&old) == state(&new)
        && (&a.ips, &a.node, &a.hostname, &a.shape.subdomain) == (&b.ips, &b.node, &b.hostname, &b.shape.subdomain)
        && old.object.meta.labels == new.object.meta.labels
}

fn pod_to_services(services: &Arc<Informer>) -> impl Fn(&Change) -> Vec<String> + Send + Sync + 'static {
    let services = services.clone();
    move |change| {
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && show_the_same(old, new)
        {
            return Vec::new();
        }
        let mut keys = BTreeSet::new();
        for object in [&change.old, &change.new].into_iter().flatten() {
            let pairs = object.meta.labels.iter().map(|(k, v)| selected(&object.meta.namespace, k, v));
            for service in pairs.flat_map(|pair| services.by_index(BY_SELECTOR, &pair)) {
                let fits = |map: &BTreeMap<String, String>| map.iter().all(|(k, v)| object.meta.label(k) == Some(v));
                let typed = service.typed::<Service>().ok();
                if typed.is_some_and(|s| s.spec.as_ref().and_then(|s| s.selector.as_ref()).is_some_and(fits)) {
                    keys.insert(service.meta.key());
                }
            }
        }
        keys.into_iter().collect()
    }
}

/// A label a Service selects by, as their index holds it.
fn selected(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}/{key}={value}")
}

/// A pod with all labels of a selector has its first one too: one is enough to find the Services of a pod.
fn index(services: &Informer, pods: &Informer) {
    services.add_index(BY_SELECTOR, |o| {
        let typed = o.typed::<Service>().ok();
        let first = typed.as_ref().and_then(|s| s.spec.as_ref()?.selector.as_ref()?.iter().next());
        first.map(|(k, v)| selected(&o.meta.namespace, k, v)).into_iter().collect()
    });
    pods.index_labels();
}

pub fn endpoint_slices(cx: &Context) -> Controller {
    let (services, all_pods) = (cx.informers.get::<Service>(), pod_facts::informer(&cx.informers));
    let (nodes, slices) = (cx.informers.get::<Node>(), cx.informers.get::<EndpointSlice>());
    index(&services, &all_pods);
    let ours = |o: &Object| o.meta.label(MANAGED_BY) == Some(SLICE_CONTROLLER);
    let service_of = move |o: &Object| {
        Some(meta::object::object_key(&o.meta.namespace, o.meta.label(SERVICE_NAME).filter(|_| ours(o))?))
    };
    slices.add_index("service", move |o| service_of(o).into_iter().collect());
    let (of, of_pods, of_nodes, of_slices) = (services.clone(), all_pods.clone(), nodes.clone(), slices.clone());
    Controller::new("endpointslice-controller", move |ask| {
        // The slices of a Service that is gone go with it: they are its dependents.
        let Some(object) = of.get(&ask.key) else { return Ok(Plan::nothing()) };
        let typed = decoded::<Service>(&object)?;
        let Some(world) = gather(&object, &typed, &of_pods, &of_nodes)? else { return Ok(Plan::nothing()) };
        let namespace = &object.meta.namespace;
        let taken = |name: &str| of_slices.get(&meta::object::object_key(namespace, name)).is_some();
        plan_slices(&world, of_slices.by_index("service", &ask.key), taken)
    })
    .watch(&services, own_key)
    .watch(&all_pods, pod_to_services(&services))
    .watch(&slices, move |c| [&c.old, &c.new].into_iter().flatten().filter_map(|o| service_of(o)).collect())
    .read(&nodes)
    .workers(cx.options.concurrency)
}

pub fn endpoints(cx: &Context) -> Controller {
    let (services, all_pods) = (cx.informers.get::<Service>(), pod_facts::informer(&cx.informers));
    let (nodes, endpoints) = (cx.informers.get::<Node>(), cx.informers.get::<Endpoints>());
    let (of, of_pods, of_nodes, of_endpoints) = (services.clone(), all_pods.clone(), nodes.clone(), endpoints.clone());
    index(&services, &all_pods);
    let ours = |o: &Object| o.meta.label(ENDPOINTS_MANAGED_BY).is_some();
    Controller::new("endpoints-controller", move |ask| {
        let existing = of_endpoints.get(&ask.key);
        let Some(object) = of.get(&ask.key) else {
            let mut plan = Plan::nothing();
            if let Some(left) = existing.filter(|e| ours(e)) {
                plan.act(Action::delete(&client::gvr_of::<Endpoints>(), &left));
            }
            return Ok(plan);
        };
        let typed = decoded::<Service>(&object)?;
        let Some(world) = gather(&object, &typed, &of_pods, &of_nodes)? else { return Ok(Plan::nothing()) };
        plan_endpoints(&world, existing.as_ref())
    })
    .watch(&services, own_key)
    .watch(&all_pods, pod_to_services(&services))
    .watch(&endpoints, move |c| match c.object() {
        Some(o) if ours(o) => own_key(c),
        _ => Vec::new(),
    })
    .read(&nodes)
    .workers(cx.options.concurrency)
}
