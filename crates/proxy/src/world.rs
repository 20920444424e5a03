//! All Services and EndpointSlices, as much of them as rules are made of.
//!
//! A slice lies with the Service it belongs to, whichever of them came first. It does not know how objects arrive:
//! [`World`] is told of changes and says which Services to compile again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::endpoints::{Endpoint, candidates};
use crate::fragment::{Fragment, compile};
use crate::program::NodeView;
use crate::service::{Front, Service, ServicePort};
use crate::slice::{Reader, Slice};
use crate::{Config, Family};

/// Names the Service of a slice.
const OWNER_LABEL: &str = "kubernetes.io/service-name";

/// What Services' rules are made of. Keys are `namespace/name`.
#[derive(Debug)]
pub struct World {
    services: BTreeMap<Arc<str>, Known>,
    /// The Service each slice lies with.
    owners: HashMap<Arc<str>, Arc<str>>,
    reader: Reader,
    dirty: BTreeSet<Arc<str>>,
}

/// A Service in each family, and its slices. One of them may be missing as yet.
#[derive(Debug, Default)]
struct Known {
    v4: Option<Box<Service>>,
    v6: Option<Box<Service>>,
    slices: Vec<(Arc<str>, Slice)>,
}

impl Known {
    fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none() && self.slices.is_empty()
    }
}

impl World {
    /// As it is seen from a node.
    pub fn new(node: &str) -> World {
        World { services: BTreeMap::new(), owners: HashMap::new(), reader: Reader::new(node), dirty: BTreeSet::new() }
    }

    pub fn set_service(&mut self, service: &core::Service) {
        let read = |family| Service::read(service, family).map(Box::new);
        self.put_service(&key_of(&service.metadata), read(Family::V4), read(Family::V6));
    }

    pub fn remove_service(&mut self, key: &str) {
        self.put_service(key, None, None);
    }

    fn put_service(&mut self, key: &str, v4: Option<Box<Service>>, v6: Option<Box<Service>>) {
        let nothing = v4.is_none() && v6.is_none();
        let (key, known) = match self.services.get_key_value(key).map(|(key, _)| key.clone()) {
            None if nothing => return,
            None => entry(&mut self.services, key.into()),
            Some(key) => entry(&mut self.services, key),
        };
        if known.v4 != v4 || known.v6 != v6 {
            (known.v4, known.v6) = (v4, v6);
            self.touched(key);
        }
    }

    pub fn set_slice(&mut self, slice: &EndpointSlice) {
        let key = key_of(&slice.metadata);
        let owner = slice.metadata.labels.as_ref().and_then(|labels| labels.get(OWNER_LABEL));
        let Some((owner, read)) = owner.zip(self.reader.read(slice)) else { return self.remove_slice(&key) };
        let owner = format!("{}/{owner}", slice.metadata.namespace.as_deref().unwrap_or_default());
        if self.owners.get(&*key).is_some_and(|before| **before != *owner) {
            self.remove_slice(&key);
        }
        let owner = self.services.get_key_value(&*owner).map_or_else(|| owner.as_str().into(), |(key, _)| key.clone());
        let (owner, known) = entry(&mut self.services, owner);
        match known.slices.iter_mut().find(|(name, _)| **name == *key) {
            Some((_, before)) if *before == read => return,
            Some((_, before)) => *before = read,
            None => {
                let key: Arc<str> = key.into();
                self.owners.insert(key.clone(), owner.clone());
                known.slices.reserve_exact(1);
                known.slices.push((key, read));
            }
        }
        self.touched(owner);
    }

    pub fn remove_slice(&mut self, key: &str) {
        let Some(owner) = self.owners.remove(key) else { return };
        if let Some(known) = self.services.get_mut(&owner) {
            known.slices.retain(|(name, _)| **name != *key);
        }
        self.touched(owner);
    }

    fn touched(&mut self, key: Arc<str>) {
        if self.services.get(&key).is_some_and(Known::is_empty) {
            self.services.remove(&key);
        }
        self.dirty.insert(key);
    }

    /// The Services to compile again; asked once.
    pub fn take_dirty(&mut self) -> BTreeSet<Arc<str>> {
        std::mem::take(&mut self.dirty)
    }

    /// Gives back the room that growing took beyond what is there.
    pub fn pack(&mut self) {
        self.services = std::mem::take(&mut self.services).into_iter().collect();
    }

    /// Every Service.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.services.keys()
    }

    /// A Service's part of the table of a family. `previous` is what it compiled to before: endpoints keep their indexes
    /// from there.
    pub fn compile(
        &self,
        key: &str,
        family: Family,
        node: &NodeView,
        config: &Config,
        previous: Option<&Fragment>,
    ) -> Option<Fragment> {
        let (service, slices) = self.of_family(key, family)?;
        Some(compile(key, service, slices, family, node, config, previous))
    }

    /// Who serves behind a front of a Service, wherever it is and whatever goes to whom from here.
    pub fn serving(&self, key: &str, family: Family, front: &Front) -> BTreeSet<Endpoint> {
        let Some((service, slices)) = self.of_family(key, family) else { return BTreeSet::new() };
        let ports = service.ports.iter().filter(|port| is_at(port, front));
        let candidates = ports.flat_map(|port| candidates(slices.clone(), port));
        candidates.filter(|(_, known)| known.serving).map(|(endpoint, _)| endpoint).collect()
    }

    fn of_family(&self, key: &str, family: Family) -> Option<(&Service, impl Iterator<Item = &Slice> + Clone)> {
        let known = self.services.get(key)?;
        let service = match family {
            Family::V4 => known.v4.as_deref()?,
            Family::V6 => known.v6.as_deref()?,
        };
        Some((service, known.slices.iter().map(|(_, slice)| slice).filter(move |slice| slice.family == family)))
    }
}

/// Whether a Service's port answers at a front.
fn is_at(port: &ServicePort, front: &Front) -> bool {
    match *front {
        Front::Address(_, protocol, number) => (port.protocol, port.port) == (protocol, number),
        Front::NodePort(protocol, number) => (port.protocol, port.node_port) == (protocol, Some(number)),
    }
}

fn entry(services: &mut BTreeMap<Arc<str>, Known>, key: Arc<str>) -> (Arc<str>, &mut Known) {
    (key.clone(), services.entry(key).or_default())
}

fn key_of(metadata: &ObjectMeta) -> String {
    format!("{}/{}", metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}
