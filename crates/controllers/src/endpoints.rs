//! What stands behind a Service, at which addresses and ports: gathered once for EndpointSlices
//! ([`crate::endpoint_slices`]) and for the Endpoints object, which is planned here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use client::{Change, Informer};
use k8s_openapi::api::core::v1::{Endpoints, Node, ObjectReference, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use meta::{LabelSelector, Object, Status};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::plan::{Action, Note, Plan};
use crate::pod_facts::{self, Facts, Port};
use crate::pods::{self, PodView};
use crate::runner::{Controller, own_key};
use crate::{Context, decoded};

/// A Service's pods often change one after the other, and each change writes all of them anew: so long after a write the
/// next ones are taken together.
pub const PACE: std::time::Duration = std::time::Duration::from_millis(30);
/// Addresses in an Endpoints object; beyond that it is marked as truncated.
pub const MAX_ADDRESSES: usize = 1000;
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const HEADLESS: &str = "service.kubernetes.io/headless";
pub const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// When what is told last changed, for those who measure how long telling takes.
pub const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";
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
    /// Endpoints in a slice.
    pub max_per_slice: usize,
}

pub fn is_headless(spec: &ServiceSpec) -> bool {
    matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"))
}

/// Whether the pod has an address anybody could use.
pub fn belongs(pod: &PodView, with_terminating: bool) -> bool {
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

/// A port of an endpoint; the Endpoints object leaves out an empty name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointPort {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<Box<str>>,
}

/// The ports a pod offers a Service.
pub fn endpoint_ports(spec: &ServiceSpec, pod: &Facts, always_named: bool) -> Vec<EndpointPort> {
    let each = spec.ports.iter().flatten().filter_map(|port| {
        let name = port.name.as_deref().unwrap_or_default();
        Some(EndpointPort {
            port: Some(target_port(pod, port)?),
            name: (always_named || !name.is_empty()).then(|| name.into()),
            protocol: Some(port.protocol.as_deref().unwrap_or("TCP").into()),
            app_protocol: port.app_protocol.as_deref().map(Into::into),
        })
    });
    each.collect()
}

pub fn hostname<'a>(service: &Object, pod: &'a PodView) -> Option<&'a str> {
    let hostname = pod.facts.hostname.as_deref().filter(|h| !h.is_empty())?;
    (pod.facts.shape.subdomain.as_deref() == Some(&*service.meta.name)).then_some(hostname)
}

/// The pod an address is of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Target {
    #[serde(skip_serializing_if = "str::is_empty")]
    kind: Box<str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: Box<str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: Box<str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub uid: Box<str>,
}

pub fn target(pod: &PodView) -> Target {
    let meta = &pod.object.meta;
    Target { kind: "Pod".into(), namespace: meta.namespace.clone(), name: meta.name.clone(), uid: meta.uid.clone() }
}

pub fn service_labels(service: &Object) -> Map<String, Value> {
    service.meta.labels.iter().map(|(k, v)| (k.to_string(), Value::from(&**v))).collect()
}

/// Go clients write `null` for empty lists.
pub fn or_empty<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

pub fn families(spec: &ServiceSpec, pods: &[PodView]) -> Vec<String> {
    let declared = spec.ip_families.clone().unwrap_or_default();
    if !declared.is_empty() {
        return declared;
    }
    // Services from before dual stack: as their address, or their pods', says.
    let ip = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
    let of_pod = || pods.iter().find_map(|p| p.facts.ips.first()?.parse::<IpAddr>().ok());
    vec![if ip.or_else(of_pod).is_some_and(|ip| ip.is_ipv6()) { "IPv6" } else { "IPv4" }.to_string()]
}

impl World<'_> {
    /// A pod's addresses of one family.
    pub fn addresses<'p>(pod: &'p PodView, family: &str) -> impl Iterator<Item = &'p Box<str>> {
        let is_v4 = family == "IPv4";
        pod.facts.ips.iter().filter(move |ip| ip.parse::<IpAddr>().is_ok_and(|a| a.is_ipv4() == is_v4))
    }

    /// The latest change of readiness of the Service's pods; the Service's own beginning when none is known.
    pub fn triggered(&self) -> Value {
        let changed = |p: &PodView| p.condition("Ready")?.last_transition_time;
        let latest = self.pods.iter().filter_map(changed).max();
        latest.map_or_else(|| (&*self.service.meta.creation_timestamp).into(), |t| client::time::rfc3339(t).into())
    }
}

/// One address of an Endpoints object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Address {
    ip: Box<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_ref: Option<Target>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Subset {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_empty")]
    addresses: Vec<Address>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_empty")]
    not_ready_addresses: Vec<Address>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_empty")]
    ports: Vec<EndpointPort>,
}

#[derive(Deserialize)]
struct Held {
    #[serde(default)]
    metadata: Value,
    #[serde(default, deserialize_with = "or_empty")]
    subsets: Vec<Subset>,
}

/// The subsets a Service's Endpoints object should have, and whether there are more addresses than it may hold.
fn subsets(world: &World<'_>) -> (Vec<Subset>, bool) {
    let all = world.spec.publish_not_ready_addresses == Some(true);
    let family = families(world.spec, &world.pods).into_iter().next().unwrap_or_default();
    let portless = world.spec.ports.as_ref().is_none_or(Vec::is_empty) && is_headless(world.spec);
    let mut groups: BTreeMap<Vec<EndpointPort>, Subset> = BTreeMap::new();
    let mut count = 0;
    let mut pods: Vec<&PodView> = world.pods.iter().filter(|p| belongs(p, all)).collect();
    pods.sort_by_key(|p| !p.is_ready());
    for pod in pods {
        let Some(ip) = World::addresses(pod, &family).next() else { continue };
        let ports = endpoint_ports(world.spec, &pod.facts, false);
        if ports.is_empty() && !portless {
            continue;
        }
        count += 1;
        if count > MAX_ADDRESSES {
            continue;
        }
        let address = Address {
            ip: ip.clone(),
            hostname: hostname(world.service, pod).map(Into::into),
            node_name: Some(pod.node()).filter(|n| !n.is_empty()).map(Into::into),
            target_ref: Some(target(pod)),
        };
        let group = groups.entry(ports).or_default();
        if all || pod.is_ready() {
            group.addresses.push(address);
        } else {
            group.not_ready_addresses.push(address);
        }
    }
    let in_order = |mut list: Vec<Address>| {
        list.sort_by(|a, b| {
            (&a.ip, a.target_ref.as_ref().map(|t| &t.uid)).cmp(&(&b.ip, b.target_ref.as_ref().map(|t| &t.uid)))
        });
        list
    };
    let each = groups.into_iter().map(|(ports, group)| Subset {
        addresses: in_order(group.addresses),
        not_ready_addresses: in_order(group.not_ready_addresses),
        ports,
    });
    (each.collect(), count > MAX_ADDRESSES)
}

/// The Endpoints object of a Service that has none yet.
fn reference(service: &Object) -> ObjectReference {
    ObjectReference { kind: Some("Endpoints".into()), uid: None, resource_version: None, ..client::reference(service) }
}

/// Brings a Service's Endpoints object to what its pods are.
pub fn plan_endpoints(world: &World<'_>, existing: Option<&Arc<Object>>) -> Result<Plan, Status> {
    let resource = client::gvr_of::<Endpoints>();
    let (subsets, truncated) = subsets(world);
    let mut labels = service_labels(world.service);
    labels.insert(ENDPOINTS_MANAGED_BY.into(), "endpoint-controller".into());
    match is_headless(world.spec) {
        true => labels.insert(HEADLESS.into(), "".into()),
        false => labels.remove(HEADLESS),
    };
    let mut plan = Plan::nothing();
    let held = existing.map(|o| serde_json::from_slice::<Held>(o.raw())).transpose().map_err(Status::internal)?;
    let mut metadata = match (&held, existing) {
        (Some(held), Some(object)) => {
            let mut metadata = held.metadata.clone();
            metadata["resourceVersion"] = object.resource_version.to_string().into();
            metadata
        }
        _ => json!({"name": &*world.service.meta.name, "namespace": &*world.service.meta.namespace}),
    };
    let labels = Value::Object(labels);
    let was_truncated = metadata["annotations"].get(OVER_CAPACITY).is_some_and(|w| w == "truncated");
    if held.is_some_and(|h| h.subsets == subsets) && metadata["labels"] == labels && was_truncated == truncated {
        return Ok(plan);
    }
    metadata["labels"] = labels;
    metadata["annotations"][TRIGGERED] = world.triggered();
    match metadata["annotations"].as_object_mut() {
        Some(annotations) if !truncated => drop(annotations.remove(OVER_CAPACITY)),
        _ => metadata["annotations"][OVER_CAPACITY] = "truncated".into(),
    }
    let mut body = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata});
    if !subsets.is_empty() {
        body["subsets"] = serde_json::to_value(&subsets).map_err(Status::internal)?;
    }
    match existing {
        None => {
            let said = format!("Failed to create endpoint for service {}: {{}}", world.service.meta.key());
            let failed = Note {
                about: reference(world.service),
                ..Note::warning(world.service, "FailedToCreateEndpoint", said)
            };
            plan.act(Action::create(&resource, &world.service.meta.namespace, body).may_exist().failed(failed))
        }
        Some(object) => {
            let said = format!("Failed to update endpoint {}: {{}}", object.meta.key());
            plan.act(Action::update(&resource, object, body).failed(Note::warning(
                object,
                "FailedToUpdateEndpoint",
                said,
            )))
        }
    };
    Ok(plan)
}

pub fn gather<'a>(
    service: &'a Object,
    typed: &'a Service,
    pods: &Informer,
    nodes: &Informer,
    max_per_slice: usize,
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
    Ok(Some(World { service, spec, pods, zones, max_per_slice }))
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

pub fn pod_to_services(services: &Arc<Informer>) -> impl Fn(&Change) -> Vec<String> + Send + Sync + 'static {
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
pub fn index(services: &Informer, pods: &Informer) {
    services.add_index(BY_SELECTOR, |o| {
        let typed = o.typed::<Service>().ok();
        let first = typed.as_ref().and_then(|s| s.spec.as_ref()?.selector.as_ref()?.iter().next());
        first.map(|(k, v)| selected(&o.meta.namespace, k, v)).into_iter().collect()
    });
    pods.index_labels();
}

pub fn endpoints(cx: &Context) -> Controller {
    let (services, all_pods) = (cx.informers.get::<Service>(), pod_facts::informer(&cx.informers));
    let (nodes, endpoints) = (cx.informers.get::<Node>(), cx.informers.get::<Endpoints>());
    let (of, of_pods, of_nodes, of_endpoints) = (services.clone(), all_pods.clone(), nodes.clone(), endpoints.clone());
    index(&services, &all_pods);
    let max_per_slice = cx.options.max_endpoints_per_slice;
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
        let Some(world) = gather(&object, &typed, &of_pods, &of_nodes, max_per_slice)? else {
            return Ok(Plan::nothing());
        };
        plan_endpoints(&world, existing.as_ref())
    })
    .watch(&services, own_key)
    .watch(&all_pods, pod_to_services(&services))
    .watch(&endpoints, move |c| match c.object() {
        Some(o) if ours(o) => own_key(c),
        _ => Vec::new(),
    })
    .read(&nodes)
    .paced(PACE)
    .settled()
    .workers(cx.options.concurrency)
}
