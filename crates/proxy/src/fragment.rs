//! One Service compiled into what it contributes to the table.
//!
//! A [`Fragment`] holds for each front the endpoints behind it, from which its map elements follow, and chains and sets as
//! nft writes them. The chains that spread over N endpoints are the same for all Services, so their names say all that is in them; only
//! session affinity needs chains and sets of a Service's own. A pure function of the objects, the node and the
//! configuration; it does not know what other Services there are.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::endpoints::{self, Endpoint};
use crate::few::Few;
use crate::map::{Element, Map, Value, Verdict};
use crate::program::NodeView;
use crate::service::{Front, Service};
use crate::slice::Slice;
use crate::{Config, Family, Locality};

/// Node-local endpoints of a port live in the same map as the cluster-wide ones, from this index on.
const LOCAL_OFFSET: usize = 0x8000;
/// Endpoints of one port beyond this are left out: indexes of the two sets must not meet.
pub const MAX_ENDPOINTS: usize = LOCAL_OFFSET;
/// Clients remembered for one endpoint of a Service with session affinity; nft refuses to forget this bound itself.
const MAX_AFFINE_CLIENTS: usize = 65_535;

/// The endpoints behind one front, in the order of their indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    pub cluster: Box<[Endpoint]>,
    pub local: Box<[Endpoint]>,
    pub(crate) verdict: Verdict,
    /// Who may use it; empty: everybody.
    sources: Box<[IpNet]>,
    /// Which endpoint a client gets is said by chains, not by elements.
    affine: bool,
    /// The front's address is a cluster IP.
    inside: bool,
}

impl Behind {
    /// The elements of the front that has this behind it: what leads somewhere after what it leads to.
    pub(crate) fn elements(&self, front: Front) -> impl Iterator<Item = (Element, Value)> + '_ {
        let near = (LOCAL_OFFSET..).zip(&self.local);
        let places = (0..).zip(&self.cluster).chain(near).filter(|_| !self.affine);
        let endpoints = places.map(move |(index, endpoint): (usize, _)| {
            let index = index as u16;
            let element = match front {
                Front::Address(ip, protocol, port) => Element::Endpoint(protocol, ip, port, index),
                Front::NodePort(protocol, port) => Element::NodePortEndpoint(protocol, port, index),
            };
            (element, Value::To(*endpoint))
        });
        let restricted = self.sources.iter().enumerate().flat_map(move |(index, net)| {
            let Front::Address(ip, protocol, port) = front else { return [None, None] };
            let once = (index == 0).then_some(Element::Restricted(ip, protocol, port));
            [Some(Element::Source(ip, protocol, port, *net)), once]
        });
        let element = match front {
            Front::Address(ip, protocol, port) => Element::Frontend(ip, protocol, port),
            Front::NodePort(protocol, port) => Element::NodePort(protocol, port),
        };
        endpoints
            .chain(restricted.flatten().map(|element| (element, Value::There)))
            .chain([(element, Value::Verdict(self.verdict.clone()))])
    }
}

/// What one Service contributes to the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    pub(crate) fronts: Few<Front, Behind>,
    /// Elements that several fragments may share, with their values; most have none.
    pub(crate) shared: Few<Element, Value>,
    /// Chains by name with their rules; the name of a shared chain says all that is in it.
    pub(crate) chains: Few<Arc<str>, Arc<[String]>>,
    /// Sets by name with their declaration.
    pub(crate) sets: Few<Arc<str>, Arc<str>>,
    /// The health check port and how many local endpoints it reports.
    pub health: Option<(u16, usize)>,
    /// Local traffic policy without an endpoint here, though there are some elsewhere: internal, external.
    pub without_local: [bool; 2],
}

impl Fragment {
    /// Cluster IPs of the Service, each once.
    pub(crate) fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let mut last = None;
        self.fronts.iter().filter_map(move |(front, behind)| match *front {
            Front::Address(ip, ..) if behind.inside => (last.replace(ip) != Some(ip)).then_some(ip),
            _ => None,
        })
    }
}

/// Compiles one Service from its slices of a family. `previous` is what it compiled to before: endpoints keep their
/// indexes from there.
pub(crate) fn compile<'a>(
    key: &str,
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    family: Family,
    node: &NodeView,
    config: &Config,
    previous: Option<&Fragment>,
) -> Fragment {
    let mut compiler = Compiler { family, config, node, fragment: Fragment::default(), previous };
    let mut local_count = BTreeSet::new();
    for port in &service.ports {
        let candidates = endpoints::candidates(slices.clone(), port);
        let cluster = endpoints::cluster_wide(&candidates, node);
        let local = endpoints::node_local(&candidates);
        local_count.extend(candidates.iter().filter(|(_, c)| c.local && c.ready).map(|(e, _)| e.address));
        for (endpoint, _) in candidates.iter().filter(|(_, c)| c.local) {
            compiler.fragment.shared.insert(Element::Hairpin(endpoint.address), Value::There);
        }
        let affinity = service.affinity.map(|seconds| Affinity {
            id: fnv1a(&format!("{key}/{}/{}/{seconds}", port.name, port.protocol)),
            protocol: port.protocol.to_string(),
            seconds,
        });
        for (missing, policy) in
            compiler.fragment.without_local.iter_mut().zip([service.internal_local, service.external_local])
        {
            *missing |= policy && local.is_empty() && !cluster.is_empty();
        }
        let internal = Reach::Internal { local: service.internal_local };
        let external = Reach::External { local: service.external_local };
        let front = |ip: &IpAddr| Front::Address(*ip, port.protocol, port.port);
        for ip in &service.cluster_ips {
            compiler.front(front(ip), internal, &cluster, &local, affinity.as_ref(), &[]);
        }
        for ip in &service.external_ips {
            compiler.front(front(ip), external, &cluster, &local, affinity.as_ref(), &[]);
        }
        let sources = sources(service, node);
        for ip in &service.balancer_ips {
            compiler.front(front(ip), external, &cluster, &local, affinity.as_ref(), &sources);
        }
        if let Some(number) = port.node_port {
            let front = Front::NodePort(port.protocol, number);
            compiler.front(front, external, &cluster, &local, affinity.as_ref(), &[]);
        }
    }
    compiler.fragment.health = service.health_port.map(|port| (port, local_count.len()));
    let Fragment { fronts, shared, chains, sets, .. } = &mut compiler.fragment;
    fronts.shrink();
    shared.shrink();
    chains.shrink();
    sets.shrink();
    compiler.fragment
}

/// Who may use the Service's load balancer addresses. Where this node may and holds such an address itself, as some
/// balancers have it, its own packets come from that address.
fn sources(service: &Service, node: &NodeView) -> Vec<IpNet> {
    let ranges = &service.source_ranges;
    if !ranges.iter().any(|range| node.addresses.iter().any(|address| range.contains(address))) {
        return ranges.to_vec();
    }
    let own = service.balancer_ips.iter().map(|ip| IpNet::from(*ip));
    IpNet::aggregate(&ranges.iter().copied().chain(own).collect())
}

/// From where a front is meant to be used, and whether only this node's endpoints may serve it.
#[derive(Clone, Copy)]
enum Reach {
    Internal { local: bool },
    External { local: bool },
}

struct Affinity {
    id: u64,
    protocol: String,
    seconds: u32,
}

struct Compiler<'a> {
    family: Family,
    config: &'a Config,
    node: &'a NodeView,
    fragment: Fragment,
    previous: Option<&'a Fragment>,
}

impl Compiler<'_> {
    fn front(
        &mut self,
        front: Front,
        reach: Reach,
        cluster: &[Endpoint],
        local: &[Endpoint],
        affinity: Option<&Affinity>,
        sources: &[IpNet],
    ) {
        if self.fragment.fronts.contains_key(&front) {
            return;
        }
        let before = self.previous.and_then(|previous| previous.fronts.get(&front));
        let keep = |old: Option<&Box<[Endpoint]>>, new: &[Endpoint]| -> Box<[Endpoint]> {
            endpoints::settle(old.map_or(&[], |old| old), &new[..new.len().min(MAX_ENDPOINTS)]).into()
        };
        let only_local = matches!(reach, Reach::Internal { local: true });
        let all_places = if only_local { Box::default() } else { keep(before.map(|b| &b.cluster), cluster) };
        let near_places = match reach {
            Reach::Internal { local: true } | Reach::External { local: true } => keep(before.map(|b| &b.local), local),
            _ => Box::default(),
        };
        let verdict = match reach {
            Reach::Internal { local } => {
                let here = if local { &near_places } else { &all_places };
                match self.picker(&front, here, local, affinity) {
                    Some(picker) => self.inside(picker),
                    // Endpoints there are, but not here: silence, as upstream; else nobody could ever answer.
                    None if local && !cluster.is_empty() => Verdict::Drop,
                    None => Verdict::Refuse,
                }
            }
            Reach::External { local: false } => match self.picker(&front, &all_places, false, affinity) {
                Some(picker) => self.masqueraded(&picker),
                None => Verdict::Refuse,
            },
            Reach::External { local: true } => {
                let anywhere = self.picker(&front, &all_places, false, affinity);
                let here = self.picker(&front, &near_places, true, affinity);
                match anywhere {
                    Some(anywhere) => self.short_circuit(&anywhere, here.as_deref()),
                    None => match here {
                        Some(here) => Verdict::Goto(here),
                        None => Verdict::Refuse,
                    },
                }
            }
        };
        let (affine, sources) = (affinity.is_some(), sources.into());
        let inside = matches!(reach, Reach::Internal { .. });
        let behind = Behind { cluster: all_places, local: near_places, verdict, sources, affine, inside };
        self.fragment.fronts.insert(front, behind);
    }

    /// The chain that picks one of `endpoints`, none when there are none.
    fn picker(
        &mut self,
        front: &Front,
        endpoints: &[Endpoint],
        local: bool,
        affinity: Option<&Affinity>,
    ) -> Option<Arc<str>> {
        if endpoints.is_empty() {
            return None;
        }
        if let Some(affinity) = affinity {
            return Some(self.affine(endpoints, local, affinity));
        }
        let (map, protocol, kind) = match *front {
            Front::Address(_, protocol, _) => (Map::Endpoints(protocol), protocol, "spread"),
            Front::NodePort(protocol, _) => (Map::NodePortEndpoints(protocol), protocol, "node-port-spread"),
        };
        let (family, count) = (self.family.nft(), endpoints.len());
        let key = if matches!(front, Front::Address(..)) { format!("{family} daddr . ") } else { String::new() };
        let shift = if local { format!(" offset {LOCAL_OFFSET}") } else { String::new() };
        let rule = format!(
            "dnat {family} addr . port to {key}{protocol} dport . numgen random mod {count}{shift} map @{}",
            map.name()
        );
        let name = format!("{protocol}-{kind}{}-{count}", if local { "-local" } else { "" });
        Some(self.chain(&name, [rule]))
    }

    /// Clients seen lately go where they went; the others anywhere, and are remembered there.
    fn affine(&mut self, endpoints: &[Endpoint], local: bool, affinity: &Affinity) -> Arc<str> {
        let family = self.family.nft();
        let stem = format!("affinity-{:016x}", affinity.id);
        let mut sorted = endpoints.to_vec();
        sorted.sort();
        let mut rules = Vec::new();
        let mut choices = Vec::new();
        for (index, endpoint) in sorted.iter().enumerate() {
            let name = format!("{stem}-{:016x}", fnv1a(&endpoint.to_string()));
            let kind = if self.family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" };
            let declaration = format!(
                "type {kind} ; flags dynamic,timeout ; timeout {}s ; size {MAX_AFFINE_CLIENTS} ;",
                affinity.seconds
            );
            self.fragment.sets.insert(name.as_str().into(), declaration.into());
            self.chain(
                &name,
                [
                    format!("update @{name} {{ {family} saddr }}"),
                    format!("meta l4proto {} dnat to {endpoint}", affinity.protocol),
                ],
            );
            rules.push(format!("{family} saddr @{name} goto {name}"));
            choices.push(format!("{index} : goto {name}"));
        }
        rules.push(format!("numgen random mod {} vmap {{ {} }}", sorted.len(), choices.join(", ")));
        let name = if local { format!("{stem}-local") } else { stem };
        self.chain(&name, rules)
    }

    /// Through a cluster IP: who is not a pod is masqueraded, so that the answer comes back this way.
    fn inside(&mut self, picker: Arc<str>) -> Verdict {
        if self.config.masquerade_all {
            return self.masqueraded(&picker);
        }
        let Some(outside) = self.of_pods("!= ") else { return Verdict::Goto(picker) };
        let name = format!("inside-{picker}");
        Verdict::Goto(self.chain(&name, [format!("{outside} {}", mark(self.config)), format!("goto {picker}")]))
    }

    fn masqueraded(&mut self, picker: &str) -> Verdict {
        let name = format!("masquerade-{picker}");
        Verdict::Goto(self.chain(&name, [mark(self.config), format!("goto {picker}")]))
    }

    /// From outside only to this node's endpoints, with the client's own address. Pods and the node itself are not
    /// outside: for them it is as if they had used the cluster IP.
    fn short_circuit(&mut self, anywhere: &str, here: Option<&str>) -> Verdict {
        let name = format!("outside-{anywhere}-{}", here.unwrap_or("none"));
        let mut rules: Vec<String> =
            self.of_pods("").map(|pods| format!("{pods} goto {anywhere}")).into_iter().collect();
        rules.push(format!("fib saddr type local {} goto {anywhere}", mark(self.config)));
        rules.push(here.map_or("drop".to_string(), |here| format!("goto {here}")));
        Verdict::Goto(self.chain(&name, rules))
    }

    /// The match for packets of pods, or with `!= ` for those of all others; none when nobody can tell.
    fn of_pods(&self, negation: &str) -> Option<String> {
        if let Locality::Interface(name) = &self.config.locality {
            return Some(format!("iifname {negation}\"{name}\""));
        }
        let known = self.node.pod_networks.iter().any(|net| Family::of(net.addr()) == self.family);
        known.then(|| format!("{} saddr {negation}@pod-networks", self.family.nft()))
    }

    fn chain(&mut self, name: &str, rules: impl IntoIterator<Item = String>) -> Arc<str> {
        let name: Arc<str> = name.into();
        self.fragment.chains.insert_new(name.clone(), || rules.into_iter().collect());
        name
    }
}

/// Has the packet's source rewritten when it leaves.
fn mark(config: &Config) -> String {
    format!("meta mark set meta mark or {:#x}", config.masquerade_mark)
}

/// Whether a chain is the same for all Services with as many endpoints.
pub(crate) fn is_common(chain: &str) -> bool {
    chain.contains("spread")
}

/// 64-bit FNV-1a: stable names for chains and sets.
pub(crate) fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
