//! EndpointSlices: a Service's endpoints in slices of at most so many, each of one address family and one set of
//! ports, changed as little as possible. Pure but for what it is declared with; hints are [`crate::topology`]'s.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use client::Informer;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use meta::{Object, Status};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::endpoints::{
    EndpointPort, HEADLESS, MANAGED_BY, PACE, SERVICE_NAME, TRIGGERED, Target, World, belongs, endpoint_ports,
    families, gather, hostname, index, is_headless, or_empty, pod_to_services, service_labels, target,
};
use crate::plan::{Action, Note, Plan};
use crate::pod_facts;
use crate::pods::{self, PodView};
use crate::runner::{Controller, own_key};
use crate::topology::{self, Zones};
use crate::{Context, decoded, figures};

const CONTROLLER: &str = "endpointslice-controller.k8s.io";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Name {
    name: Box<str>,
}

/// For whom an endpoint is meant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Hints {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_empty")]
    for_zones: Vec<Name>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_empty")]
    for_nodes: Vec<Name>,
}

impl Hints {
    pub fn zone(name: &str) -> Self {
        Self { for_zones: vec![Name { name: name.into() }], for_nodes: Vec::new() }
    }
}

/// One endpoint as slices hold it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Endpoint {
    #[serde(deserialize_with = "or_empty")]
    addresses: Vec<Box<str>>,
    conditions: Conditions,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_ref: Option<Target>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hints: Option<Hints>,
}

impl Endpoint {
    pub fn is_ready(&self) -> bool {
        self.conditions.ready != Some(false)
    }

    /// What makes it the same endpoint as another in whatever state.
    fn identity(&self) -> (&str, &[Box<str>]) {
        (self.target_ref.as_ref().map_or("", |t| &t.uid), &self.addresses)
    }

    fn of(world: &World<'_>, pod: &PodView, family: &str) -> Option<Self> {
        let addresses: Vec<Box<str>> = World::addresses(pod, family).cloned().collect();
        if addresses.is_empty() {
            return None;
        }
        let (serving, terminating) = (pod.is_ready(), pod.is_terminating());
        let ready = world.spec.publish_not_ready_addresses == Some(true) || (serving && !terminating);
        let node = Some(pod.node()).filter(|n| !n.is_empty());
        let zone = world.zones.get(pod.node());
        let hints = zone.zip(node).and_then(|(zone, node)| match world.spec.traffic_distribution.as_deref() {
            Some("PreferClose" | "PreferSameZone") => Some(Hints::zone(zone)),
            Some("PreferSameNode") => Some(Hints { for_nodes: vec![Name { name: node.into() }], ..Hints::zone(zone) }),
            _ => None,
        });
        Some(Self {
            addresses,
            conditions: Conditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) },
            target_ref: Some(target(pod)),
            node_name: node.map(Into::into),
            hostname: hostname(world.service, pod).map(Into::into),
            zone: zone.map(|z| z.as_str().into()),
            hints,
        })
    }
}

/// What is read of a slice that is there.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Held {
    #[serde(default)]
    metadata: Value,
    #[serde(default)]
    address_type: Box<str>,
    #[serde(default, deserialize_with = "or_empty")]
    endpoints: Vec<Endpoint>,
    #[serde(default, deserialize_with = "or_empty")]
    ports: Vec<EndpointPort>,
}

type Existing = (Arc<Object>, Held);

/// One slice as it should be.
struct Slice {
    existing: Option<Existing>,
    endpoints: Vec<Endpoint>,
    ports: Vec<EndpointPort>,
}

/// The slices of one address family and one set of ports: keep what is right, change in place, then fill up.
fn fill(existing: Vec<Existing>, desired: Vec<Endpoint>, ports: &[EndpointPort], most: usize) -> Vec<Slice> {
    let at: HashMap<(&str, &[Box<str>]), usize> =
        desired.iter().enumerate().map(|(at, e)| (e.identity(), at)).collect();
    let mut taken = vec![false; desired.len()];
    let mut places: Vec<Vec<usize>> = Vec::new();
    for (_, held) in &existing {
        let known = held.endpoints.iter().filter_map(|e| at.get(&e.identity()).copied());
        // An endpoint that is in two slices stays in the first.
        places.push(known.filter(|at| !std::mem::replace(&mut taken[*at], true)).collect());
    }
    let mut rest: Vec<usize> = (0..desired.len()).filter(|at| !taken[*at]).collect();
    rest.sort_by_key(|at| desired[*at].identity());
    let mut rest = rest.into_iter();
    for place in &mut places {
        let room = most.saturating_sub(place.len());
        place.extend(rest.by_ref().take(room));
    }
    loop {
        let place: Vec<usize> = rest.by_ref().take(most).collect();
        if place.is_empty() {
            break;
        }
        places.push(place);
    }
    let mut desired: Vec<Option<Endpoint>> = desired.into_iter().map(Some).collect();
    let mut existing = existing.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
    let slices = places.into_iter().map(|place| Slice {
        existing: existing.next().flatten(),
        endpoints: place.into_iter().filter_map(|at| desired[at].take()).collect(),
        ports: ports.to_vec(),
    });
    slices.collect()
}

/// The slices a Service should have of one family.
fn of_family(
    world: &World<'_>,
    family: &str,
    existing: &mut BTreeMap<(Box<str>, Vec<EndpointPort>), Vec<Existing>>,
) -> Vec<Slice> {
    let mut desired: BTreeMap<Vec<EndpointPort>, Vec<Endpoint>> = BTreeMap::new();
    for pod in world.pods.iter().filter(|p| belongs(p, true)) {
        let Some(endpoint) = Endpoint::of(world, pod, family) else { continue };
        desired.entry(in_order(endpoint_ports(world.spec, &pod.facts, true))).or_default().push(endpoint);
    }
    if desired.is_empty() {
        // A Service without endpoints has one slice that says so.
        desired.entry(Vec::new()).or_default();
    }
    let is_placeholder = desired.values().all(Vec::is_empty);
    let mut slices = Vec::new();
    for (ports, endpoints) in desired {
        let held = existing.remove(&(family.into(), ports.clone())).unwrap_or_default();
        slices.extend(fill(held, endpoints, &ports, world.max_per_slice));
    }
    if is_placeholder && slices.is_empty() {
        slices.push(Slice { existing: None, endpoints: Vec::new(), ports: Vec::new() });
    }
    slices
}

/// Sets of ports are the same in whatever order.
fn in_order(mut ports: Vec<EndpointPort>) -> Vec<EndpointPort> {
    ports.sort();
    ports
}

fn labels_of(world: &World<'_>) -> Map<String, Value> {
    let mut labels = service_labels(world.service);
    labels.retain(|k, _| ![SERVICE_NAME, MANAGED_BY, HEADLESS].contains(&k.as_str()));
    labels.insert(SERVICE_NAME.into(), (&*world.service.meta.name).into());
    labels.insert(MANAGED_BY.into(), CONTROLLER.into());
    if is_headless(world.spec) {
        labels.insert(HEADLESS.into(), "".into());
    }
    labels
}

/// Brings a Service's slices to what its pods are.
pub fn plan(
    world: &World<'_>,
    zones: Option<&Zones>,
    held: Vec<Arc<Object>>,
    taken: impl Fn(&str) -> bool,
) -> Result<Plan, Status> {
    let resource = client::gvr_of::<EndpointSlice>();
    let mut plan = Plan::nothing();
    let labels = Value::Object(labels_of(world));
    let uids: Vec<String> = held.iter().map(|s| s.meta.uid.to_string()).collect();
    let mut existing: BTreeMap<(Box<str>, Vec<EndpointPort>), Vec<Existing>> = BTreeMap::new();
    let (supported, mut had_hints) = (families(world.spec, &world.pods), false);
    for slice in held {
        let body: Held = serde_json::from_slice(slice.raw()).map_err(Status::internal)?;
        let ours = slice.meta.owner_references.iter().any(|o| *o.uid == *world.service.meta.uid);
        if !ours || !supported.iter().any(|f| **f == *body.address_type) {
            plan.act(Action::delete(&resource, &slice));
            continue;
        }
        had_hints |= body.endpoints.iter().any(|e| e.hints.is_some());
        existing.entry((body.address_type.clone(), in_order(body.ports.clone()))).or_default().push((slice, body));
    }
    let said = format!("Error updating Endpoint Slices for Service {}: {{}}", world.service.meta.key());
    let failed = Note::warning(world.service, "FailedToUpdateEndpointSlices", said);
    let mut fresh = 0;
    for family in supported {
        let mut slices = of_family(world, &family, &mut existing);
        if let Some(zones) = zones {
            let mut all: Vec<&mut Endpoint> = slices.iter_mut().flat_map(|s| &mut s.endpoints).collect();
            plan.notes.extend(told(world.service, topology::hint(zones, &mut all), had_hints, &family));
        }
        let mut empty_one_stays = slices.iter().all(|s| s.endpoints.is_empty());
        for slice in slices {
            let is_needed = !slice.endpoints.is_empty() || std::mem::take(&mut empty_one_stays);
            match slice.existing {
                Some((object, _)) if !is_needed => drop(plan.act(Action::delete(&resource, &object))),
                Some((_, held)) if held.endpoints == slice.endpoints && held.metadata["labels"] == labels => {}
                Some((object, held)) => {
                    let mut metadata = held.metadata;
                    metadata["labels"] = labels.clone();
                    metadata["annotations"][TRIGGERED] = world.triggered();
                    metadata["resourceVersion"] = object.resource_version.to_string().into();
                    let body = json!({
                        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
                        "addressType": family, "endpoints": slice.endpoints, "ports": held.ports,
                    });
                    plan.act(Action::update(&resource, &object, body).failed(failed.clone()));
                }
                None => {
                    fresh += 1;
                    let prefix = pods::name_prefix(&world.service.meta.name);
                    let seed = format!("{}{family}", world.service.meta.uid);
                    let names = pods::fresh_names(&prefix, &seed, uids.iter().map(String::as_str), &taken, fresh);
                    let body = json!({
                        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                        "metadata": {
                            "name": names.last(), "generateName": prefix, "namespace": &*world.service.meta.namespace,
                            "labels": labels, "ownerReferences": [crate::owners::controller_ref(world.service)],
                            "annotations": {TRIGGERED: world.triggered()},
                        },
                        "addressType": family, "endpoints": slice.endpoints, "ports": slice.ports,
                    });
                    let create = Action::create(&resource, &world.service.meta.namespace, body).may_exist();
                    plan.act(create.failed(failed.clone()));
                }
            }
        }
    }
    for (object, _) in existing.into_values().flatten() {
        plan.act(Action::delete(&resource, &object));
    }
    Ok(plan)
}

/// What is said of hints: that there are some now, or why there are none.
fn told(service: &Object, outcome: Result<(), String>, had_hints: bool, family: &str) -> Option<Note> {
    match outcome {
        Ok(()) if had_hints => None,
        Ok(()) => {
            let said = format!("Topology Aware Hints has been enabled, addressType: {family}");
            Some(Note::normal(service, "TopologyAwareHintsEnabled", said))
        }
        Err(why) => Some(Note::warning(service, "TopologyAwareHintsDisabled", format!("{why}, addressType: {family}"))),
    }
}

fn zones_of(nodes: &Informer) -> Result<Zones, Status> {
    let nodes = nodes.list(None).into_iter().map(|o| Ok((decoded::<Node>(&o)?, o)));
    let nodes: Vec<(Arc<Node>, Arc<Object>)> = nodes.collect::<Result<_, Status>>()?;
    Ok(topology::zones(nodes.iter().map(|(node, object)| (&**object, &**node))))
}

/// Has shown how many slices and endpoints there are and should be.
fn show(
    desired: &Arc<Mutex<HashMap<Arc<str>, usize>>>,
    slices: &Arc<Informer>,
    ours: fn(&Object) -> bool,
    max_per_slice: usize,
) {
    let (desired, slices) = (Arc::downgrade(desired), Arc::downgrade(slices));
    figures::refreshed("endpointslice-controller", move || {
        let Some((desired, slices)) = desired.upgrade().zip(slices.upgrade()) else { return };
        let (mut endpoints, mut least) = (0, 0);
        for count in desired.lock().unwrap_or_else(PoisonError::into_inner).values() {
            endpoints += count;
            least += count.div_ceil(max_per_slice).max(1);
        }
        figures::set("endpoint_slice_controller_endpoints_desired", &[], endpoints);
        figures::set("endpoint_slice_controller_desired_endpoint_slices", &[], least);
        figures::set("endpoint_slice_controller_num_endpoint_slices", &[], slices.list_where(None, ours).len());
    });
}

pub fn endpoint_slices(cx: &Context) -> Controller {
    let (services, all_pods) = (cx.informers.get::<Service>(), pod_facts::informer(&cx.informers));
    let (nodes, slices) = (cx.informers.get::<Node>(), cx.informers.get::<EndpointSlice>());
    index(&services, &all_pods);
    let max_per_slice = cx.options.max_endpoints_per_slice;
    let ours: fn(&Object) -> bool = |o| o.meta.label(MANAGED_BY) == Some(CONTROLLER);
    let service_of = move |o: &Object| {
        Some(meta::object::object_key(&o.meta.namespace, o.meta.label(SERVICE_NAME).filter(|_| ours(o))?))
    };
    slices.add_index("service", move |o| service_of(o).into_iter().collect());
    let hinted = services.clone();
    let (of, of_pods, of_nodes, of_slices) = (services.clone(), all_pods.clone(), nodes.clone(), slices.clone());
    // Endpoints of each Service, for those who watch how many there are.
    let desired: Arc<Mutex<HashMap<Arc<str>, usize>>> = Arc::default();
    show(&desired, &slices, ours, max_per_slice);
    Controller::new("endpointslice-controller", move |ask| {
        // The slices of a Service that is gone go with it: they are its dependents.
        let Some(object) = of.get(&ask.key) else {
            desired.lock().unwrap_or_else(PoisonError::into_inner).remove(&ask.key);
            return Ok(Plan::nothing());
        };
        let typed = decoded::<Service>(&object)?;
        let Some(world) = gather(&object, &typed, &of_pods, &of_nodes, max_per_slice)? else {
            return Ok(Plan::nothing());
        };
        let namespace = &object.meta.namespace;
        let taken = |name: &str| of_slices.get(&meta::object::object_key(namespace, name)).is_some();
        // Of both ways to ask the annotation counts.
        let wanted = topology::is_wanted(typed.metadata.annotations.as_ref());
        let shares = if wanted { Some(zones_of(&of_nodes)?) } else { None };
        let endpoints = world.pods.iter().filter(|p| belongs(p, true)).count();
        desired.lock().unwrap_or_else(PoisonError::into_inner).insert(ask.key.clone(), endpoints);
        plan(&world, shares.as_ref(), of_slices.by_index("service", &ask.key), taken)
    })
    .watch(&services, own_key)
    .watch(&all_pods, pod_to_services(&services))
    .watch(&slices, move |c| [&c.old, &c.new].into_iter().flatten().filter_map(|o| service_of(o)).collect())
    .watch(&nodes, move |change| {
        // Zones and processors of nodes matter to those alone that ask for their share.
        let seen = |o: &Arc<Object>| {
            let node = o.typed::<Node>().ok()?;
            let ready = crate::nodes::condition(&node, "Ready").map(|c| c.status.clone());
            Some((ready, o.meta.labels.clone(), node.status.as_ref()?.allocatable.as_ref()?.get("cpu").cloned()))
        };
        match (&change.old, &change.new) {
            (Some(old), Some(new)) if seen(old) == seen(new) => Vec::new(),
            _ => hinted
                .list_where(None, |o| {
                    o.typed::<Service>().is_ok_and(|s| topology::is_wanted(s.metadata.annotations.as_ref()))
                })
                .iter()
                .map(|s| s.meta.key())
                .collect(),
        }
    })
    .paced(PACE)
    .settled()
    .workers(cx.options.concurrency)
}
