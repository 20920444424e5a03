//! Extended resources that device classes stand for: what a pod asks as a number is asked as devices where a node has no
//! such number.
//!
//! A class may name the resource it stands for, and every class stands for one under its own name. The claim is made by the
//! scheduler, for one pod, and the pod's status says which of its devices are whose.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::resource::v1 as api;
use serde_json::{Value, json};

use super::Devices;
use crate::node::Node;
use crate::symbol::Symbol;
use crate::view::{ContainerView, PodView, Quantities};

/// The resource of a class that names none begins with this.
const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";
/// Marks a claim as made for extended resources.
const MARK: &str = "resource.kubernetes.io/extended-resource-claim";
/// Resources of one pod, a bit each: each takes a request at least, and a claim has no more (`DeviceRequestsMaxSize`).
const MOST_RESOURCES: usize = 32;

/// Classes by the resource they stand for.
pub type Classes = BTreeMap<Box<str>, Box<str>>;

impl Devices {
    /// Which class stands for which resource: of several that name the same, the one made last.
    pub fn extended_classes(&self) -> Classes {
        let mut named: BTreeMap<&str, &api::DeviceClass> = BTreeMap::new();
        let mut out = Classes::new();
        let name = |c: &api::DeviceClass| c.metadata.name.clone().unwrap_or_default();
        for class in self.classes.values() {
            out.insert(format!("{IMPLICIT}{}", name(class)).into(), name(class).into());
            let Some(resource) = class.spec.as_ref().and_then(|s| s.extended_resource_name.as_deref()) else {
                continue;
            };
            let rank = |c: &api::DeviceClass| {
                (c.metadata.creation_timestamp.as_ref().map(|t| t.0), std::cmp::Reverse(name(c)))
            };
            let known = named.entry(resource).or_insert(class);
            if rank(class) > rank(known) {
                *known = class;
            }
        }
        out.extend(named.into_iter().map(|(resource, class)| (resource.into(), name(class).into())));
        out
    }
}

/// A container that asks for one or the other.
#[derive(Clone, Debug, PartialEq)]
struct Asking {
    name: Box<str>,
    /// Ends before later containers begin: what they get may be lent to it.
    ends_first: bool,
    /// Amounts by resource, with the place of the resource among all that the container asks for.
    amounts: Vec<(Box<str>, usize, i64)>,
}

/// What a pod asks of resources that classes stand for.
#[derive(Clone, Debug, PartialEq)]
pub struct Extended {
    containers: Vec<Asking>,
    /// With the class of each, by name.
    resources: Vec<(Box<str>, Symbol, Box<str>)>,
    /// The claim that was made already.
    pub made: Option<Box<str>>,
}

/// A request, and which containers' resources it serves.
#[derive(Default)]
struct Requests {
    devices: Vec<api::DeviceRequest>,
    /// (container, resource, request)
    served: Vec<(Box<str>, Box<str>, String)>,
}

fn request(name: &str, class: &str, count: i64) -> api::DeviceRequest {
    api::DeviceRequest {
        name: name.into(),
        exactly: Some(api::ExactDeviceRequest {
            device_class_name: class.into(),
            allocation_mode: Some("ExactCount".into()),
            count: Some(count),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Extended {
    /// `None` for the many that ask none.
    pub fn of(view: &PodView, classes: &Classes) -> Option<Self> {
        if classes.is_empty() {
            return None;
        }
        let mut resources: BTreeMap<&str, &str> = BTreeMap::new();
        let mut container = |container: &'_ ContainerView, first: bool| {
            let requests: &Quantities = &container.resources.requests;
            let mut amounts = Vec::new();
            for (place, (name, text)) in requests.iter().enumerate() {
                let Some((known, class)) = classes.get_key_value(name) else { continue };
                let amount =
                    text.parse::<meta::quantity::Quantity>().map_or(0, |q| if q.is_whole() { q.value() } else { 0 });
                if amount > 0 && (resources.len() < MOST_RESOURCES || resources.contains_key(&**known)) {
                    resources.insert(known, class);
                    amounts.push((name.clone(), place, amount));
                }
            }
            let ends_first = first && &*container.restart_policy != "Always";
            Asking { name: container.name.clone(), ends_first, amounts }
        };
        let first: Vec<Asking> = view.spec.init_containers.iter().map(|c| container(c, true)).collect();
        let containers = first.into_iter().chain(view.spec.containers.iter().map(|c| container(c, false))).collect();
        let resources: Vec<_> =
            resources.into_iter().map(|(name, class)| (name.into(), Symbol::of(name), class.into())).collect();
        let made = view.status.extended_resource_claim_status.as_ref().map(|s| s.resource_claim_name.clone());
        (!resources.is_empty()).then_some(Self { containers, resources, made })
    }

    /// The resources, for those who count them where nodes have them.
    pub fn resources(&self) -> Box<[Symbol]> {
        self.resources.iter().map(|(_, symbol, _)| *symbol).collect()
    }

    /// Which of it a node does not have as a number, as bits.
    pub fn missing(&self, node: &Node) -> u32 {
        let lacks = |symbol: &Symbol| node.allocatable.extended(*symbol) == 0;
        self.resources.iter().enumerate().fold(0, |bits, (at, (_, symbol, _))| bits | u32::from(lacks(symbol)) << at)
    }

    /// The requests for what is missing. Containers that stay get their own; those that end before others begin are lent the
    /// others', and share what they need beyond that.
    fn requests(&self, missing: u32) -> Requests {
        let mut out = Requests::default();
        for (at, (resource, _, class)) in self.resources.iter().enumerate() {
            if missing >> at & 1 == 0 {
                continue;
            }
            let asks = |c: &Asking| c.amounts.iter().find(|(name, ..)| name == resource).map(|a| (a.1, a.2));
            let serve = |out: &mut Requests, by: &Asking, name: &str| {
                out.served.push((by.name.clone(), resource.clone(), name.to_string()));
            };
            let mut staying: Vec<Option<(String, i64)>> = Vec::with_capacity(self.containers.len());
            for (n, container) in self.containers.iter().enumerate() {
                let own = asks(container).filter(|_| !container.ends_first);
                let own = own.map(|(place, amount)| (format!("container-{n}-request-{place}"), amount));
                if let Some((name, _)) = &own {
                    serve(&mut out, container, name);
                }
                staying.push(own);
            }
            // What those that end need beyond what they are lent: the most that one of them does.
            let mut beyond: Option<(String, i64)> = None;
            let mut of_beyond = Vec::new();
            for (n, container) in self.containers.iter().enumerate().filter(|(_, c)| c.ends_first) {
                let Some((place, amount)) = asks(container) else { continue };
                let mut lent = 0;
                for (name, count) in staying[n..].iter().flatten() {
                    if lent >= amount {
                        break;
                    }
                    lent += count;
                    of_beyond.push((container, Some(name.clone())));
                }
                if lent < amount {
                    of_beyond.push((container, None));
                    if beyond.as_ref().is_none_or(|(_, most)| *most < amount - lent) {
                        beyond = Some((format!("container-{n}-request-{place}"), amount - lent));
                    }
                }
            }
            for (container, lender) in of_beyond {
                let shared = beyond.as_ref().map_or("", |b| b.0.as_str());
                serve(&mut out, container, lender.as_deref().unwrap_or(shared));
            }
            let all = beyond.into_iter().chain(staying.into_iter().flatten());
            out.devices.extend(all.map(|(name, count)| request(&name, class, count)));
        }
        out.devices.sort_by(|a, b| a.name.cmp(&b.name));
        out
    }

    /// The claim for what is missing, as it would be made.
    pub fn claim(&self, missing: u32) -> Arc<api::ResourceClaim> {
        let devices = api::DeviceClaim { requests: Some(self.requests(missing).devices), ..Default::default() };
        Arc::new(api::ResourceClaim {
            spec: Some(api::ResourceClaimSpec { devices: Some(devices) }),
            ..Default::default()
        })
    }

    /// What is written of the claim, and of the pod: (claim, `extendedResourceClaimStatus`).
    pub fn bodies(&self, missing: u32, pod: (&str, &str), uid: &str, claim: &str) -> (Value, Value) {
        let (namespace, name) = pod;
        let body = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {
                "name": claim, "namespace": namespace, "annotations": {MARK: "true"},
                "finalizers": [super::CLAIM_FINALIZER],
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid, "controller": true, "blockOwnerDeletion": true}],
            },
            "spec": self.claim(missing).spec,
        });
        let mappings: Vec<Value> = self
            .requests(missing)
            .served
            .iter()
            .map(|(container, resource, request)| {
                json!({"containerName": container, "resourceName": resource, "requestName": request})
            })
            .collect();
        (body, json!({"requestMappings": mappings, "resourceClaimName": claim}))
    }
}
