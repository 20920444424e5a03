//! What records are made of, as far as it does not follow from one Service alone: headless Services and their endpoints.
//!
//! A Service with an address answers with that, so nothing is kept of it here. It does not know how objects arrive.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::SystemTime;

use hickory_proto::rr::Name;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::zone::{Records, records, records_of_endpoints};

const OWNER_LABEL: &str = "kubernetes.io/service-name";
const MANAGED_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// Says of each of its slices whether the Service is headless, and again when that changes. Nobody else does.
const CONTROLLER: &str = "endpointslice-controller.k8s.io";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Put on a slice by its controller: when the pods changed that it was written for.
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Name, protocol in lower case, number.
type Port = (Box<str>, Box<str>, u16);

/// What an EndpointSlice contributes: its ready endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoints {
    pub ports: Box<[Port]>,
    /// Addresses, and the host name in lower case where there is one.
    pub hosts: Box<[(IpAddr, Box<str>)]>,
}

impl Endpoints {
    /// Ready ones: a Service that wants to publish others has them marked ready.
    fn read(slice: &EndpointSlice) -> Endpoints {
        let spoken = matches!(slice.address_type.as_str(), "IPv4" | "IPv6");
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
            Some((port.name.as_deref().unwrap_or_default().into(), protocol.into(), u16::try_from(port.port?).ok()?))
        });
        let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
            spoken && endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false)
        });
        let hosts = ready.flat_map(|endpoint| {
            let name = endpoint.hostname.as_deref().unwrap_or_default().to_ascii_lowercase();
            let addresses = endpoint.addresses.iter().filter_map(|address| address.parse().ok());
            addresses.map(move |address| (address, name.as_str().into()))
        });
        Endpoints { ports: ports.collect(), hosts: hosts.collect() }
    }
}

#[derive(Debug, Default)]
struct Known {
    headless: bool,
    slices: Vec<(Box<str>, Endpoints)>,
}

/// Headless Services, and slices that are theirs or may be. Keys are `namespace/name`.
#[derive(Debug, Default)]
pub struct World {
    services: HashMap<Box<str>, Known>,
    /// The Service each slice is kept for.
    owners: HashMap<Box<str>, Box<str>>,
}

impl World {
    /// A Service's records; `None` when it has none (yet).
    pub fn set_service(&mut self, service: &Service, origin: &Name) -> Option<Records> {
        let key = key_of(&service.metadata);
        let spec = service.spec.as_ref()?;
        let external = spec.type_.as_deref() == Some("ExternalName");
        self.set_headless(&key, !external && spec.cluster_ip.as_deref() == Some("None"));
        self.records(&key, origin).or_else(|| records(service, origin))
    }

    pub fn remove_service(&mut self, key: &str) {
        self.set_headless(key, false);
    }

    fn set_headless(&mut self, key: &str, headless: bool) {
        match self.services.get_mut(key) {
            Some(known) => known.headless = headless,
            None if headless => _ = self.services.insert(key.into(), Known { headless, slices: Vec::new() }),
            None => {}
        }
        self.tidy(key);
    }

    /// Which headless Services have other records now: hardly ever more than one.
    pub fn set_slice(&mut self, slice: &EndpointSlice) -> Vec<Box<str>> {
        let key = key_of(&slice.metadata);
        let label = |name: &str| slice.metadata.labels.as_ref()?.get(name).map(String::as_str);
        let passed_over = label(MANAGED_LABEL) == Some(CONTROLLER) && label(HEADLESS_LABEL).is_none();
        let Some(owner) = label(OWNER_LABEL).filter(|_| !passed_over) else {
            return self.remove_slice(&key).into_iter().collect();
        };
        let owner = format!("{}/{owner}", slice.metadata.namespace.as_deref().unwrap_or_default());
        let mut changed = Vec::new();
        if self.owners.get(&*key).is_some_and(|before| **before != *owner) {
            changed.extend(self.remove_slice(&key));
        }
        let known = self.services.entry(owner.as_str().into()).or_default();
        let read = Endpoints::read(slice);
        match known.slices.iter_mut().find(|(name, _)| **name == *key) {
            Some((_, before)) if *before == read => return changed,
            Some((_, before)) => *before = read,
            None => {
                known.slices.push((key.as_str().into(), read));
                self.owners.insert(key.into(), owner.as_str().into());
            }
        }
        changed.extend(known.headless.then(|| owner.into()));
        changed
    }

    /// Which headless Service has other records now.
    pub fn remove_slice(&mut self, key: &str) -> Option<Box<str>> {
        let owner = self.owners.remove(key)?;
        let known = self.services.get_mut(&owner)?;
        known.slices.retain(|(name, _)| **name != *key);
        let headless = known.headless;
        self.tidy(&owner);
        headless.then_some(owner)
    }

    fn tidy(&mut self, key: &str) {
        if self.services.get(key).is_some_and(|known| !known.headless && known.slices.is_empty()) {
            self.services.remove(key);
        }
    }

    /// The records of a headless Service.
    pub fn records(&self, key: &str, origin: &Name) -> Option<Records> {
        let known = self.services.get(key).filter(|known| known.headless)?;
        records_of_endpoints(key, known.slices.iter().map(|(_, endpoints)| endpoints), origin)
    }
}

/// When the pods changed that a slice was written for, if its controller said so.
pub fn triggered(slice: &EndpointSlice) -> Option<SystemTime> {
    let time = slice.metadata.annotations.as_ref()?.get(TRIGGERED)?;
    Some(time.parse::<jiff::Timestamp>().ok()?.into())
}

/// `namespace/name`.
pub fn key_of(metadata: &ObjectMeta) -> String {
    format!("{}/{}", metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}
