//! One NetworkPolicy as the proxy reads it, and the chains it becomes.
//!
//! A policy is two chains at most, `policy-in-…` and `policy-out-…`, whose rules accept what it allows and fall through
//! otherwise. Whom a selector selects is not in the rules but in a set ([`PodPeer::set`]) that the pods fill, so that a
//! pod's coming and going touches elements only. Equal selectors of different policies share one set; so do named ports
//! of one name. A pure function of the object; it does not know the pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as WireSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use meta::LabelSelector;

use crate::Family;
use crate::fragment::{Fragment, fnv1a};
use crate::map::{Element, Map};
use crate::service::Protocol;

pub type Labels = BTreeMap<String, String>;

/// What policies need to know of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub labels: Labels,
    pub addresses: Vec<IpAddr>,
    /// On this node: its policies are enforced here.
    pub local: bool,
    pub ports: Vec<(String, Protocol, u16)>,
}

impl Pod {
    /// `None` for pods policies do not apply to: those on the host's network, without an address, or at their end.
    pub fn read(pod: &core::Pod, node: &str) -> Option<Pod> {
        let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
        if spec.host_network == Some(true) || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return None;
        }
        let listed = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
        let mut addresses: Vec<IpAddr> = listed.chain(&status.pod_ip).filter_map(|ip| ip.parse().ok()).collect();
        addresses.sort();
        addresses.dedup();
        if addresses.is_empty() {
            return None;
        }
        let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
        Some(Pod {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            addresses,
            local: spec.node_name.as_deref() == Some(node),
            ports: ports
                .filter_map(|port| {
                    let number = u16::try_from(port.container_port).ok()?;
                    Some((port.name.clone()?, Protocol::parse(port.protocol.as_deref())?, number))
                })
                .collect(),
        })
    }
}

/// In which namespaces a peer's pods are.
#[derive(Clone, Debug, PartialEq)]
pub enum Namespaces {
    /// The policy's own.
    One(String),
    Matching(LabelSelector),
}

/// Pods by selectors.
#[derive(Clone, Debug, PartialEq)]
pub struct PodPeer {
    pub namespaces: Namespaces,
    pub pods: LabelSelector,
}

impl PodPeer {
    pub fn matches(&self, pod: &Pod, namespace: Option<&Labels>) -> bool {
        let there = match &self.namespaces {
            Namespaces::One(name) => *name == pod.namespace,
            Namespaces::Matching(selector) => namespace.is_some_and(|labels| selects(selector, labels)),
        };
        there && selects(&self.pods, &pod.labels)
    }

    /// Names the set of its addresses; equal peers have the same.
    pub fn set(&self) -> u64 {
        fnv1a(&match &self.namespaces {
            Namespaces::One(name) => format!("in {name}: {}", self.pods),
            Namespaces::Matching(selector) => format!("where {selector}: {}", self.pods),
        })
    }
}

pub fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.matches_by(|key| labels.get(key).map(String::as_str))
}

/// Names the set of addresses and numbers of a named port.
pub fn named_set(protocol: Protocol, name: &str) -> u64 {
    fnv1a(&format!("{protocol} {name}"))
}

#[derive(Clone, Debug, PartialEq)]
enum Peer {
    Pods(PodPeer),
    Block { net: IpNet, except: Vec<IpNet> },
}

#[derive(Clone, Debug, PartialEq)]
enum Port {
    Any(Protocol),
    Numbers(Protocol, u16, u16),
    Named(Protocol, String),
}

/// What one entry of `ingress` or `egress` allows; `None`: everybody, or every port.
#[derive(Clone, Debug, PartialEq)]
struct Rule {
    peers: Option<Vec<Peer>>,
    ports: Option<Vec<Port>>,
}

/// A policy. A direction it says nothing of is `None`: pods are not isolated in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub namespace: String,
    pub pods: LabelSelector,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

/// Seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    In,
    Out,
}

impl Direction {
    fn word(self) -> &'static str {
        match self {
            Direction::In => "in",
            Direction::Out => "out",
        }
    }

    /// The element that leads a pod's address to its chain.
    pub fn leads(self, address: IpAddr) -> Element {
        match self {
            Direction::In => Element::PolicyIngress(address),
            Direction::Out => Element::PolicyEgress(address),
        }
    }
}

impl Policy {
    pub fn read(policy: &networking::NetworkPolicy) -> Policy {
        let namespace = policy.metadata.namespace.clone().unwrap_or_default();
        let spec = policy.spec.clone().unwrap_or_default();
        let types = spec.policy_types.unwrap_or_default();
        let (ingress, egress) = (spec.ingress.unwrap_or_default(), spec.egress.unwrap_or_default());
        let says = |name: &str| types.iter().any(|kind| kind == name);
        // Without types a policy is for ingress, and for egress when it has rules for it.
        let for_ingress = types.is_empty() || says("Ingress");
        let for_egress = says("Egress") || (types.is_empty() && !egress.is_empty());
        let rule = |peers: Option<Vec<networking::NetworkPolicyPeer>>,
                    ports: Option<Vec<networking::NetworkPolicyPort>>| Rule {
            peers: peers
                .filter(|list| !list.is_empty())
                .map(|list| list.iter().filter_map(|peer| read_peer(peer, &namespace)).collect()),
            ports: ports.filter(|list| !list.is_empty()).map(|list| list.iter().filter_map(read_port).collect()),
        };
        Policy {
            pods: selector(spec.pod_selector.as_ref()),
            ingress: for_ingress.then(|| ingress.into_iter().map(|r| rule(r.from, r.ports)).collect()),
            egress: for_egress.then(|| egress.into_iter().map(|r| rule(r.to, r.ports)).collect()),
            namespace,
        }
    }

    fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::In => self.ingress.as_deref(),
            Direction::Out => self.egress.as_deref(),
        }
    }

    /// Whether pods it selects are shut off in this direction but for what policies allow.
    pub fn isolates(&self, direction: Direction) -> bool {
        self.rules(direction).is_some()
    }

    fn all_rules(&self) -> impl Iterator<Item = &Rule> {
        self.ingress.iter().chain(&self.egress).flatten()
    }

    /// The peers by selector in it.
    pub fn pod_peers(&self) -> impl Iterator<Item = &PodPeer> {
        self.all_rules().flat_map(|rule| rule.peers.iter().flatten()).filter_map(|peer| match peer {
            Peer::Pods(peer) => Some(peer),
            Peer::Block { .. } => None,
        })
    }

    /// The named ports in it.
    pub fn named_ports(&self) -> impl Iterator<Item = (Protocol, &str)> {
        self.all_rules().flat_map(|rule| rule.ports.iter().flatten()).filter_map(|port| match port {
            Port::Named(protocol, name) => Some((*protocol, name.as_str())),
            _ => None,
        })
    }

    /// Its chains and the sets they look into. `key`: `namespace/name`.
    pub fn compile(&self, key: &str, family: Family) -> Fragment {
        let mut fragment = Fragment::default();
        let address = match family {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        };
        for peer in self.pod_peers() {
            let name = Map::Peers(peer.set()).name().into_owned();
            fragment.sets.insert(name.into(), format!("type {address} ;").into());
        }
        for (protocol, name) in self.named_ports() {
            let set = Map::NamedPorts(named_set(protocol, name)).name().into_owned();
            fragment.sets.insert(set.into(), format!("type {address} . inet_service ;").into());
        }
        for direction in [Direction::In, Direction::Out] {
            let Some(rules) = self.rules(direction) else { continue };
            let lines: Vec<String> = rules.iter().flat_map(|rule| lines(rule, direction, family)).collect();
            fragment.chains.insert(chain(key, direction).into(), lines.into());
        }
        fragment
    }
}

/// The name of a policy's chain.
fn chain(key: &str, direction: Direction) -> String {
    format!("policy-{}-{:016x}", direction.word(), fnv1a(key))
}

/// The chain of pods that exactly these policies isolate, its name and its rules; what none of them accepts is dropped.
pub fn of_pods<'a>(policies: impl Iterator<Item = &'a String>, direction: Direction) -> (String, Arc<[String]>) {
    let mut all = String::new();
    let mut rules = Vec::new();
    for key in policies {
        all.push_str(key);
        all.push('\n');
        rules.push(format!("jump {}", chain(key, direction)));
    }
    rules.push("drop".into());
    (format!("pods-{}-{:016x}", direction.word(), fnv1a(&all)), rules.into())
}

fn lines(rule: &Rule, direction: Direction, family: Family) -> Vec<String> {
    let (ip, other) = (family.nft(), if direction == Direction::In { "saddr" } else { "daddr" });
    let peers: Vec<String> = match &rule.peers {
        None => vec![String::new()],
        Some(peers) => peers
            .iter()
            .filter_map(|peer| match peer {
                Peer::Pods(peer) => Some(format!("{ip} {other} @{} ", Map::Peers(peer.set()).name())),
                Peer::Block { net, .. } if Family::of(net.addr()) != family => None,
                Peer::Block { net, except } => {
                    let mut text = String::new();
                    if net.prefix_len() > 0 {
                        text = format!("{ip} {other} {net} ");
                    }
                    if !except.is_empty() {
                        let list: Vec<String> = except.iter().map(IpNet::to_string).collect();
                        text.push_str(&format!("{ip} {other} != {{ {} }} ", list.join(", ")));
                    }
                    Some(text)
                }
            })
            .collect(),
    };
    let ports = match &rule.ports {
        None => vec![String::new()],
        Some(ports) => port_matches(ports, ip),
    };
    peers.iter().flat_map(|peer| ports.iter().map(move |port| format!("{peer}{port}accept"))).collect()
}

/// One match a protocol for the numbers, and one a named port.
fn port_matches(ports: &[Port], ip: &str) -> Vec<String> {
    let mut out = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        if ports.contains(&Port::Any(protocol)) {
            out.push(format!("meta l4proto {protocol} "));
            continue;
        }
        let mut ranges: Vec<(u16, u16)> = ports
            .iter()
            .filter_map(|port| match port {
                Port::Numbers(p, first, last) if *p == protocol => Some((*first, *last)),
                _ => None,
            })
            .collect();
        ranges.sort();
        // Sets of ranges do not take overlapping ones.
        let mut merged: Vec<(u16, u16)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        if !merged.is_empty() {
            let list = merged.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
            out.push(format!("{protocol} dport {{ {} }} ", list.collect::<Vec<_>>().join(", ")));
        }
        for port in ports {
            if let Port::Named(p, name) = port
                && *p == protocol
            {
                let set = Map::NamedPorts(named_set(protocol, name)).name();
                out.push(format!("{ip} daddr . {protocol} dport @{set} "));
            }
        }
    }
    out
}

/// Nobody, when it cannot be read: the API server let nothing wrong in, and an opening by mistake is worse.
fn selector(wire: Option<&WireSelector>) -> LabelSelector {
    let Some(wire) = wire else { return LabelSelector::everything() };
    let value = serde_json::to_value(wire).unwrap_or_default();
    LabelSelector::from_value(&value).unwrap_or_else(|_| LabelSelector::nothing())
}

fn read_peer(peer: &networking::NetworkPolicyPeer, own: &str) -> Option<Peer> {
    if let Some(block) = &peer.ip_block {
        let net: IpNet = block.cidr.parse().ok()?;
        let except: Vec<IpNet> = block.except.iter().flatten().filter_map(|text| text.parse().ok()).collect();
        let mine: Vec<IpNet> =
            except.into_iter().filter(|e| Family::of(e.addr()) == Family::of(net.addr())).map(|e| e.trunc()).collect();
        return Some(Peer::Block { net: net.trunc(), except: IpNet::aggregate(&mine) });
    }
    if peer.pod_selector.is_none() && peer.namespace_selector.is_none() {
        return None;
    }
    let namespaces = match &peer.namespace_selector {
        Some(wire) => Namespaces::Matching(selector(Some(wire))),
        None => Namespaces::One(own.to_string()),
    };
    Some(Peer::Pods(PodPeer { namespaces, pods: selector(peer.pod_selector.as_ref()) }))
}

fn read_port(port: &networking::NetworkPolicyPort) -> Option<Port> {
    let protocol = Protocol::parse(port.protocol.as_deref())?;
    Some(match &port.port {
        None => Port::Any(protocol),
        Some(IntOrString::String(name)) => Port::Named(protocol, name.clone()),
        Some(IntOrString::Int(first)) => {
            let first = u16::try_from(*first).ok()?;
            let last = match port.end_port {
                Some(last) => u16::try_from(last).ok().filter(|last| *last >= first)?,
                None => first,
            };
            Port::Numbers(protocol, first, last)
        }
    })
}
