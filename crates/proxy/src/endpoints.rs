//! Which endpoints of a Service's port get traffic here.
//!
//! Ready ones; when there are none, those that still serve while they terminate. Among the ready ones a topology hint
//! may narrow the choice to this node or this zone, but only when it is given for every one of them and names at least
//! one for here: else some zone would be left without.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::service::{Protocol, ServicePort};
use crate::{Family, NodeView};

/// A slice with this label belongs to a headless Service: DNS only.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Where traffic goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
}

/// `address:port`, IPv6 in brackets: as `dnat to` takes it.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// What a slice says of an endpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidate {
    pub local: bool,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub for_zones: Vec<String>,
    pub for_nodes: Vec<String>,
}

/// All endpoints of one port, over all slices of one family.
pub fn candidates<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    port: &ServicePort,
    family: Family,
    node: &NodeView,
) -> BTreeMap<Endpoint, Candidate> {
    let mut out = BTreeMap::new();
    for slice in slices {
        let labels = slice.metadata.labels.as_ref();
        if slice.address_type != family.address_type() || labels.is_some_and(|l| l.contains_key(HEADLESS_LABEL)) {
            continue;
        }
        let ports = slice.ports.iter().flatten().filter(|p| {
            p.name.as_deref().unwrap_or_default() == port.name
                && Protocol::parse(p.protocol.as_deref()) == Some(port.protocol)
        });
        for number in ports.filter_map(|p| u16::try_from(p.port?).ok()).filter(|number| *number != 0) {
            for endpoint in slice.endpoints.iter().flatten() {
                // All addresses of one endpoint are one pod's: the first stands for it.
                let Some(address) = endpoint.addresses.first().and_then(|a| a.parse::<IpAddr>().ok()) else { continue };
                if Family::of(address) != family {
                    continue;
                }
                let conditions = endpoint.conditions.as_ref();
                let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
                let hints = endpoint.hints.as_ref();
                let candidate = Candidate {
                    local: endpoint.node_name.as_deref() == Some(&node.name),
                    ready,
                    serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
                    terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
                    for_zones: hints
                        .iter()
                        .flat_map(|h| h.for_zones.iter().flatten())
                        .map(|z| z.name.clone())
                        .collect(),
                    for_nodes: hints
                        .iter()
                        .flat_map(|h| h.for_nodes.iter().flatten())
                        .map(|n| n.name.clone())
                        .collect(),
                };
                // The same address may be in two slices while an endpoint moves from one to the other.
                let known = out.entry(Endpoint { address, port: number }).or_insert_with(|| candidate.clone());
                if candidate.ready && !known.ready {
                    *known = candidate;
                }
            }
        }
    }
    out
}

/// The endpoints for traffic that may go to any node.
pub fn cluster_wide(candidates: &BTreeMap<Endpoint, Candidate>, node: &NodeView) -> Vec<Endpoint> {
    let ready: Vec<(&Endpoint, &Candidate)> = candidates.iter().filter(|(_, c)| c.ready).collect();
    if ready.is_empty() {
        return terminating(candidates, |_| true);
    }
    let here = |names: &[String], here: &str| !here.is_empty() && names.iter().any(|name| name == here);
    let for_node = |c: &Candidate| here(&c.for_nodes, &node.name);
    let for_zone = |c: &Candidate| here(&c.for_zones, &node.zone);
    let narrowed: Vec<Endpoint> =
        if ready.iter().all(|(_, c)| !c.for_nodes.is_empty()) && ready.iter().any(|(_, c)| for_node(c)) {
            ready.iter().filter(|(_, c)| for_node(c)).map(|(e, _)| **e).collect()
        } else if ready.iter().all(|(_, c)| !c.for_zones.is_empty()) && ready.iter().any(|(_, c)| for_zone(c)) {
            ready.iter().filter(|(_, c)| for_zone(c)).map(|(e, _)| **e).collect()
        } else {
            ready.iter().map(|(e, _)| **e).collect()
        };
    narrowed
}

/// The endpoints for traffic that must stay on this node.
pub fn node_local(candidates: &BTreeMap<Endpoint, Candidate>) -> Vec<Endpoint> {
    let ready: Vec<Endpoint> = candidates.iter().filter(|(_, c)| c.local && c.ready).map(|(e, _)| *e).collect();
    if ready.is_empty() { terminating(candidates, |c| c.local) } else { ready }
}

fn terminating(candidates: &BTreeMap<Endpoint, Candidate>, which: impl Fn(&Candidate) -> bool) -> Vec<Endpoint> {
    candidates.iter().filter(|(_, c)| c.serving && c.terminating && which(c)).map(|(e, _)| *e).collect()
}

/// Puts `wanted` into the order that changes least: who was there keeps his place, newcomers take the places of who
/// left, and if there are fewer now the last ones move up.
pub fn settle(previous: &[Endpoint], wanted: &[Endpoint]) -> Vec<Endpoint> {
    let count = wanted.len();
    let mut places: Vec<Option<Endpoint>> =
        previous.iter().map(|e| wanted.binary_search(e).is_ok().then_some(*e)).collect();
    let old: std::collections::HashSet<Endpoint> = previous.iter().copied().collect();
    let displaced: Vec<Endpoint> = places.drain(count.min(places.len())..).flatten().collect();
    places.resize(count, None);
    let mut waiting = displaced.into_iter().chain(wanted.iter().copied().filter(|e| !old.contains(e)));
    places.into_iter().filter_map(|place| place.or_else(|| waiting.next())).collect()
}
