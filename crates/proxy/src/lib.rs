//! Services, EndpointSlices and NetworkPolicies become one nftables program on this node.
//!
//! The core is pure: [`world`] keeps of objects what counts, [`endpoints`] decides which endpoints count, [`fragment`] compiles one
//! Service, [`policy`] one NetworkPolicy, [`policies`] knows whom they select, [`program`](mod@program) folds all into a [`Ruleset`], [`nft`] writes a ruleset, or the difference between
//! two, as text for `nft -f -`. The shell ([`run`]) follows the API, applies one atomic transaction for all that changed
//! meanwhile, forgets stale connections ([`conntrack`]), answers health checks ([`health`]) and puts the table back when
//! somebody else took it apart.
//!
//! What decides a packet's fate is data in four maps, looked up by address, protocol and port; the chains they lead to
//! are shared by all Services with as many endpoints. So one endpoint's change is two map elements, whatever the number
//! of Services. Only Services with session affinity have chains of their own.
//!
//! A cluster IP that is an address of this node itself is left alone: somebody here answers for it. That is how the
//! cluster DNS works on every node at once, without a pod: it holds its Service's address on `lo`, queries never leave
//! the node nor enter connection tracking's rewriting, and nobody has to be told of the other.
//!
//! It does not know how endpoints come to be, how pods reach each other, or who else uses nftables here: it touches the
//! table [`TABLE`] only, in the network namespace of its own process.

#![forbid(unsafe_code)]

pub mod balancer;
pub mod configuration;
pub mod conntrack;
pub mod elements;
pub mod endpoints;
mod few;
pub mod fragment;
pub mod health;
pub mod listing;
pub mod map;
pub mod metrics;
pub mod nft;
mod objects;
mod pages;
pub mod policies;
pub mod policy;
pub mod program;
mod run;
pub mod service;
pub mod settings;
pub mod slice;
#[cfg(test)]
mod tests;
mod update;
mod watch;
pub mod world;

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

pub use nft::{Transaction, diff};
pub use program::{NodeView, Ruleset, program};
pub use run::{clean_up, run};

/// The table, one in each address family asked for.
pub const TABLE: &str = "nauplius-proxy";

/// The bit upstream's `masqueradeBit` names when nobody does.
pub const DEFAULT_MASQUERADE_MARK: u32 = 1 << 14;

/// Where upstream's answers `/healthz` and `/livez`, on all addresses.
pub const HEALTHZ_PORT: u16 = 10256;

/// How upstream keeps the kernel from ending it for want of memory.
pub const OOM_SCORE_ADJ: i32 = -999;

/// Where upstream's answers `/metrics`, on loopback.
pub const METRICS_PORT: u16 = 10249;

/// An address family; each has its own table, its own Services' addresses and its own EndpointSlices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// As nft names the family, and the header fields of it.
    pub fn nft(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }

    /// `EndpointSlice.addressType`.
    pub fn address_type(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

/// How a pod's packet is told from one of somebody outside the cluster: `detectLocalMode`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Locality {
    /// By [`Config::cluster_cidrs`].
    #[default]
    ClusterCidr,
    /// By the Node's own pod ranges.
    NodeCidr,
    /// By the link it came in by: a name, or its beginning and `*`.
    Interface(String),
}

/// How this node's proxy works.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Node this runs on: says which endpoints are local and which zone this is.
    pub node_name: String,
    pub families: Vec<Family>,
    /// Where node ports answer. Empty: the Node object's InternalIP and ExternalIP addresses.
    pub node_addresses: Vec<IpAddr>,
    /// The node's address of its family, whatever the Node object says.
    pub bind_address: Option<IpAddr>,
    /// The addresses of the machine's links in these ranges answer for node ports instead, as they are when the proxy
    /// looks; empty: the Node object's.
    pub node_port_addresses: Vec<IpNet>,
    /// The Node object's answer for node ports besides those.
    pub node_ports_on_primary: bool,
    /// Pod addresses of the whole cluster: a source outside them is masqueraded on its way through a cluster IP. Empty:
    /// nothing is known to be outside.
    pub cluster_cidrs: Vec<IpNet>,
    pub locality: Locality,
    /// Masquerade everything that goes through a cluster IP.
    pub masquerade_all: bool,
    /// Set on a packet whose source must be rewritten when it leaves; taken off again at that point. One bit.
    pub masquerade_mark: u32,
    /// Enforce NetworkPolicies; needs to read them, Pods and Namespaces. Pods are followed once there is a policy.
    pub network_policies: bool,
    /// What the kernel's connection tracking is set to.
    pub conntrack: settings::Conntrack,
    /// `/healthz` and `/livez`; upstream's is `0.0.0.0:10256`.
    pub healthz: Option<SocketAddr>,
    /// `/metrics`, `/proxyMode`, `/configz`, `/statusz`, `/flagz`; upstream's is `127.0.0.1:10249`.
    pub metrics: Option<SocketAddr>,
    /// An address of these two that is taken ends the proxy; otherwise it works without.
    pub bind_hard_fail: bool,
    /// How soon the kernel ends this process for its memory; `None` leaves that alone.
    pub oom_score_adj: Option<i32>,
}

impl Config {
    /// Whether an address lies in a range where node ports are to answer.
    fn is_for_node_ports(&self, address: &IpAddr) -> bool {
        self.node_port_addresses.iter().any(|range| range.contains(address))
    }

    /// IPv4, the Node's own addresses, upstream's ports on loopback.
    pub fn new(node_name: impl Into<String>) -> Config {
        Config {
            node_name: node_name.into(),
            families: vec![Family::V4],
            node_addresses: Vec::new(),
            bind_address: None,
            node_port_addresses: Vec::new(),
            node_ports_on_primary: false,
            cluster_cidrs: Vec::new(),
            locality: Locality::default(),
            masquerade_all: false,
            masquerade_mark: DEFAULT_MASQUERADE_MARK,
            network_policies: false,
            conntrack: settings::Conntrack::default(),
            healthz: Some(SocketAddr::from(([127, 0, 0, 1], HEALTHZ_PORT))),
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], METRICS_PORT))),
            bind_hard_fail: false,
            oom_score_adj: None,
        }
    }
}
