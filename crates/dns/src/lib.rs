//! The cluster's DNS: Services and EndpointSlices become answers.
//!
//! [`zone`] holds what is known, an immutable set of records for each Service, replaced one by one as the API changes;
//! [`answer`] turns one packet into one packet, a pure function of the zone; [`run`] listens on UDP and TCP, and
//! [`forward`] asks other servers about other names, where there are any ([`upstreams`], and what a ConfigMap says of them,
//! [`settings`]), and [`cache`] remembers what they said; [`metrics`] counts; [`untracked`](mod@untracked) keeps a node's
//! questions to its own server out of the kernel's table of connections.
//!
//! It follows the Kubernetes DNS specification, version 1.1. Where it runs: in every node, on the cluster IP of the
//! Service `kube-dns` itself, which it holds as an address of `lo` ([`address`]). So a pod's query is answered on its
//! own node, a DNS server's death is one node's affair, and there is an answer as soon as the node is up. The proxy leaves
//! a cluster IP alone that is an address of the node.
//!
//! It does not know pods (their names say their address) and does no DNSSEC.

#![forbid(unsafe_code)]

pub mod address;
pub mod answer;
pub mod cache;
mod forward;
pub mod metrics;
mod run;
pub mod settings;
#[cfg(test)]
mod tests;
mod untracked;
pub mod upstreams;
pub mod world;
pub mod zone;

use std::net::SocketAddr;

pub use run::run;

/// Where CoreDNS shows its metrics.
pub const METRICS_PORT: u16 = 9153;

/// How this server works.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens, UDP and TCP. An address this machine lacks is added to `lo` and taken off again at the end.
    pub listen: Vec<SocketAddr>,
    /// Keep questions to those addresses, and answers, out of the kernel's table of connections.
    pub untracked: bool,
    /// The cluster's domain, without a dot at the end.
    pub domain: String,
    /// Servers to ask about other names, in order. Without any, other names are refused.
    pub upstreams: Vec<SocketAddr>,
    /// Domains that have servers of their own.
    pub stub_domains: Vec<(String, Vec<SocketAddr>)>,
    /// The ConfigMap, namespace and name, that says of other servers what goes before this.
    pub config_map: Option<(String, String)>,
    /// Where `/metrics`, `/health` and `/ready` answer; an address that is taken is done without.
    pub metrics: Vec<SocketAddr>,
    /// How long an answer may be kept, in seconds; also for "no such name".
    pub ttl: u32,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: Vec::new(),
            untracked: false,
            domain: "cluster.local".into(),
            upstreams: Vec::new(),
            stub_domains: Vec::new(),
            config_map: None,
            metrics: Vec::new(),
            ttl: 5,
        }
    }
}
