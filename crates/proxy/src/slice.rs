//! What the proxy keeps of an EndpointSlice: a fraction of it, since a large cluster has very many.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::Family;
use crate::service::Protocol;

/// What has this label is for the DNS only: slices of headless Services, and Services that are to be taken for such.
pub(crate) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Put on a slice by its controller: when the pods changed that it was written for.
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Different sets of zones kept apart before those nobody names any more are looked for.
const MAX_IDLE_ZONES: usize = 256;

/// One slice, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    pub family: Family,
    pub ports: Box<[SlicePort]>,
    pub endpoints: Box<[Known]>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SlicePort {
    pub name: Box<str>,
    pub protocol: Protocol,
    pub number: u16,
}

/// An endpoint as its slice tells of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    pub address: IpAddr,
    /// On this node.
    pub local: bool,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub nodes: Meant,
    /// The zones it is meant for; `None`: that is not said.
    pub zones: Option<Arc<Zones>>,
}

/// Whom of the nodes an endpoint is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meant {
    Unsaid,
    Here,
    Elsewhere,
}

/// Names of zones.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Zones(Box<[Box<str>]>);

impl Zones {
    pub fn contains(&self, zone: &str) -> bool {
        self.0.iter().any(|name| **name == *zone)
    }
}

/// Reads slices on one node. Zones that many endpoints are meant for are there once.
#[derive(Debug)]
pub struct Reader {
    node: String,
    zones: HashSet<Arc<Zones>>,
}

impl Reader {
    pub fn new(node: &str) -> Reader {
        Reader { node: node.to_string(), zones: HashSet::new() }
    }

    /// `None` for one the proxy has nothing to do with.
    pub fn read(&mut self, slice: &EndpointSlice) -> Option<Slice> {
        let headless = slice.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(HEADLESS_LABEL));
        let of_type = |family: &Family| slice.address_type == family.address_type();
        let family = [Family::V4, Family::V6].into_iter().find(of_type).filter(|_| !headless)?;
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            Some(SlicePort {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol: Protocol::parse(port.protocol.as_deref())?,
                number: u16::try_from(port.port?).ok().filter(|number| *number != 0)?,
            })
        });
        let endpoints = slice.endpoints.iter().flatten().filter_map(|endpoint| {
            // All addresses of one endpoint are one pod's: the first stands for it.
            let address = endpoint.addresses.first()?.parse::<IpAddr>().ok().filter(|ip| Family::of(*ip) == family)?;
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let is_here = |name: &str| name == self.node && !name.is_empty();
            let nodes = endpoint.hints.iter().flat_map(|hints| hints.for_nodes.iter().flatten());
            let nodes = nodes.fold(Meant::Unsaid, |meant, node| match meant {
                Meant::Here => Meant::Here,
                _ if is_here(&node.name) => Meant::Here,
                _ => Meant::Elsewhere,
            });
            let zones = endpoint.hints.iter().flat_map(|hints| hints.for_zones.iter().flatten());
            let zones = Zones(zones.map(|zone| zone.name.as_str().into()).collect());
            Some(Known {
                address,
                local: endpoint.node_name.as_deref().is_some_and(is_here),
                ready,
                serving: conditions.and_then(|c| c.serving).unwrap_or(true),
                terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
                nodes,
                zones: (!zones.0.is_empty()).then(|| shared(&mut self.zones, zones)),
            })
        });
        Some(Slice { family, ports: ports.collect(), endpoints: endpoints.collect() })
    }
}

fn shared(known: &mut HashSet<Arc<Zones>>, zones: Zones) -> Arc<Zones> {
    if let Some(same) = known.get(&zones) {
        return same.clone();
    }
    if known.len() >= MAX_IDLE_ZONES {
        known.retain(|zones| Arc::strong_count(zones) > 1);
    }
    let zones = Arc::new(zones);
    known.insert(zones.clone());
    zones
}

/// When the pods changed that a slice was written for, if its controller said so.
pub fn triggered(slice: &EndpointSlice) -> Option<SystemTime> {
    let time = slice.metadata.annotations.as_ref()?.get(TRIGGERED)?;
    Some(time.parse::<jiff::Timestamp>().ok()?.into())
}
