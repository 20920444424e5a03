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
use crate::view::{PodView, Quantities};

/// The resource of a class that names none begins with this.
const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";
/// Marks a claim as made for extended resources.
const MARK: &str = "resource.kubernetes.io/extended-resource-claim";
/// Requests of one claim (`DeviceRequestsMaxSize`).
const MOST_REQUESTS: usize = 32;

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

/// One container's amount of one resource.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    container: Box<str>,
    resource: Box<str>,
    symbol: Symbol,
    request: String,
    class: Box<str>,
    count: i64,
}

/// What a pod asks of resources that classes stand for.
#[derive(Clone, Debug, PartialEq)]
pub struct Extended {
    wanted: Vec<Wanted>,
    /// The claim that was made already.
    pub made: Option<Box<str>>,
}

impl Extended {
    /// `None` for the many that ask none.
    pub fn of(view: &PodView, classes: &Classes) -> Option<Self> {
        if classes.is_empty() {
            return None;
        }
        let mut wanted = Vec::new();
        for (at, container) in view.spec.init_containers.iter().chain(&view.spec.containers).enumerate() {
            let requests: &Quantities = &container.resources.requests;
            let backed = requests.iter().filter_map(|(name, text)| Some((name, text, classes.get(name)?)));
            for (n, (name, text, class)) in backed.enumerate() {
                let count = text.parse::<meta::quantity::Quantity>().map_or(0, |q| q.value());
                if count > 0 && wanted.len() < MOST_REQUESTS {
                    wanted.push(Wanted {
                        container: container.name.clone(),
                        resource: name.clone(),
                        symbol: Symbol::of(name),
                        request: format!("container-{at}-request-{n}"),
                        class: class.clone(),
                        count,
                    });
                }
            }
        }
        let made = view.status.extended_resource_claim_status.as_ref().map(|s| s.resource_claim_name.clone());
        (!wanted.is_empty()).then_some(Self { wanted, made })
    }

    /// The resources, for those who count them where nodes have them.
    pub fn resources(&self) -> Box<[Symbol]> {
        let mut out: Vec<Symbol> = self.wanted.iter().map(|w| w.symbol).collect();
        out.sort_unstable();
        out.dedup();
        out.into()
    }

    /// Which of it a node does not have as a number, as bits.
    pub fn missing(&self, node: &Node) -> u32 {
        let lacks = |w: &Wanted| node.allocatable.extended(w.symbol) == 0;
        self.wanted.iter().enumerate().fold(0, |bits, (at, w)| bits | u32::from(lacks(w)) << at)
    }

    fn those(&self, missing: u32) -> impl Iterator<Item = &Wanted> {
        self.wanted.iter().enumerate().filter(move |(at, _)| missing >> at & 1 == 1).map(|(_, w)| w)
    }

    /// The claim for what is missing, as it would be made.
    pub fn claim(&self, missing: u32) -> Arc<api::ResourceClaim> {
        let request = |w: &Wanted| api::DeviceRequest {
            name: w.request.clone(),
            exactly: Some(api::ExactDeviceRequest {
                device_class_name: w.class.to_string(),
                allocation_mode: Some("ExactCount".into()),
                count: Some(w.count),
                ..Default::default()
            }),
            ..Default::default()
        };
        let devices =
            api::DeviceClaim { requests: Some(self.those(missing).map(request).collect()), ..Default::default() };
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
        let mapping =
            |w: &Wanted| json!({"containerName": w.container, "resourceName": w.resource, "requestName": w.request});
        let mappings: Vec<Value> = self.those(missing).map(mapping).collect();
        (body, json!({"requestMappings": mappings, "resourceClaimName": claim}))
    }
}
