//! Which endpoints of a Service's port get traffic here.
//!
//! Ready ones; when there are none, those that still serve while they terminate. Among the ready ones a topology hint
//! may narrow the choice to this node or this zone, but only when it is given for every one of them and names at least
//! one for here: else some zone would be left without.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::NodeView;
use crate::service::ServicePort;
use crate::slice::{Known, Meant, Slice};

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

/// All endpoints of one port, over all slices of one family.
pub fn candidates<'a>(
    slices: impl IntoIterator<Item = &'a Slice>,
    port: &ServicePort,
) -> BTreeMap<Endpoint, &'a Known> {
    let mut out: BTreeMap<Endpoint, &Known> = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
        for number in ports.map(|p| p.number) {
            for candidate in &slice.endpoints {
                // The same address may be in two slices while an endpoint moves from one to the other, or a pod has the
                // address of one that is still going.
                let at = Endpoint { address: candidate.address, port: number };
                let known = out.entry(at).or_insert(candidate);
                if rank(candidate) > rank(known) {
                    *known = candidate;
                }
            }
        }
    }
    out
}

/// Which of two with one address is believed.
fn rank(known: &Known) -> (bool, bool) {
    (!known.terminating, known.ready)
}

/// The endpoints for traffic that may go to any node.
pub fn cluster_wide(candidates: &BTreeMap<Endpoint, &Known>, node: &NodeView) -> Vec<Endpoint> {
    let ready: Vec<(&Endpoint, &&Known)> = candidates.iter().filter(|(_, c)| c.ready).collect();
    if ready.is_empty() {
        return terminating(candidates, |_| true);
    }
    let for_node = |c: &Known| c.nodes == Meant::Here;
    let for_zone =
        |c: &Known| c.zones.as_ref().is_some_and(|zones| !node.zone.is_empty() && zones.contains(&node.zone));
    let narrowed: Vec<Endpoint> =
        if ready.iter().all(|(_, c)| c.nodes != Meant::Unsaid) && ready.iter().any(|(_, c)| for_node(c)) {
            ready.iter().filter(|(_, c)| for_node(c)).map(|(e, _)| **e).collect()
        } else if ready.iter().all(|(_, c)| c.zones.is_some()) && ready.iter().any(|(_, c)| for_zone(c)) {
            ready.iter().filter(|(_, c)| for_zone(c)).map(|(e, _)| **e).collect()
        } else {
            ready.iter().map(|(e, _)| **e).collect()
        };
    narrowed
}

/// The endpoints for traffic that must stay on this node.
pub fn node_local(candidates: &BTreeMap<Endpoint, &Known>) -> Vec<Endpoint> {
    let ready: Vec<Endpoint> = candidates.iter().filter(|(_, c)| c.local && c.ready).map(|(e, _)| *e).collect();
    if ready.is_empty() { terminating(candidates, |c| c.local) } else { ready }
}

fn terminating(candidates: &BTreeMap<Endpoint, &Known>, which: impl Fn(&Known) -> bool) -> Vec<Endpoint> {
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
