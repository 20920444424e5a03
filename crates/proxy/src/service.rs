//! What the proxy reads of a Service: its ports, and the addresses at which each port answers in one family.
//!
//! Headless and ExternalName Services, and those another proxy was named for, have none. Unparsable values are passed
//! over: the API server let nothing wrong in, and one bad field must not take a whole Service down.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use crate::Family;
use crate::slice::HEADLESS_LABEL;

/// Services with one of these labels are not this proxy's: another's, or the DNS's alone.
const OTHERS_LABELS: [&str; 2] = ["service.kubernetes.io/service-proxy-name", HEADLESS_LABEL];
/// The default of `sessionAffinityConfig.clientIP.timeoutSeconds`: three hours.
const AFFINITY_SECONDS: u32 = 10_800;

/// Transport protocols a Service may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The default is TCP.
    pub fn parse(name: Option<&str>) -> Option<Protocol> {
        match name {
            None | Some("" | "TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(_) => None,
        }
    }

    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

/// As nft writes it.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// Where a Service's port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Front {
    Address(IpAddr, Protocol, u16),
    /// On every address of the node.
    NodePort(Protocol, u16),
}

impl Front {
    pub fn protocol(&self) -> Protocol {
        match *self {
            Front::Address(_, protocol, _) | Front::NodePort(protocol, _) => protocol,
        }
    }
}

/// One port of a Service, in one family.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    /// Empty when the Service has only one.
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

/// A Service the proxy has to do with, in one family.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub ports: Box<[ServicePort]>,
    pub cluster_ips: Box<[IpAddr]>,
    pub external_ips: Box<[IpAddr]>,
    /// Load balancer addresses that packets arrive with (`ipMode: VIP`).
    pub balancer_ips: Box<[IpAddr]>,
    /// Who may use the load balancer addresses; empty: everybody.
    pub source_ranges: Box<[IpNet]>,
    pub internal_local: bool,
    pub external_local: bool,
    /// Seconds a client stays with its endpoint.
    pub affinity: Option<u32>,
    /// Where a load balancer asks whether this node has endpoints.
    pub health_port: Option<u16>,
}

impl Service {
    /// `None` when there is nothing to do for this Service in this family.
    pub fn read(service: &core::Service, family: Family) -> Option<Service> {
        let labels = service.metadata.labels.as_ref();
        if labels.is_some_and(|labels| OTHERS_LABELS.iter().any(|label| labels.contains_key(*label))) {
            return None;
        }
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") || spec.cluster_ip.as_deref() == Some("None") {
            return None;
        }
        let cluster_ips: Box<[IpAddr]> = match &spec.cluster_ips {
            Some(ips) if !ips.is_empty() => addresses(ips.iter(), family),
            _ => addresses(spec.cluster_ip.iter(), family),
        };
        if cluster_ips.is_empty() {
            return None;
        }
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            Some(ServicePort {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol: Protocol::parse(port.protocol.as_deref())?,
                port: u16::try_from(port.port).ok().filter(|port| *port != 0)?,
                node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
            })
        });
        let balancer = service.status.iter().filter_map(|status| status.load_balancer.as_ref());
        let ingress = balancer.flat_map(|balancer| balancer.ingress.iter().flatten());
        let vips = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_ref());
        let balanced = spec.type_.as_deref() == Some("LoadBalancer");
        let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
        let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            let seconds = client_ip.and_then(|config| config.timeout_seconds);
            seconds.and_then(|seconds| u32::try_from(seconds).ok()).filter(|s| *s > 0).unwrap_or(AFFINITY_SECONDS)
        });
        let health = spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        Some(Service {
            ports: ports.collect(),
            cluster_ips,
            external_ips: addresses(spec.external_ips.iter().flatten(), family),
            balancer_ips: if balanced { addresses(vips, family) } else { Box::default() },
            source_ranges: source_ranges(spec.load_balancer_source_ranges.iter().flatten(), family),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local,
            affinity,
            health_port: health.filter(|_| balanced && external_local),
        })
    }
}

fn addresses<'a>(texts: impl Iterator<Item = &'a String>, family: Family) -> Box<[IpAddr]> {
    let mut out: Vec<IpAddr> =
        texts.filter_map(|text| text.parse().ok()).filter(|ip| Family::of(*ip) == family).collect();
    out.sort();
    out.dedup();
    out.into()
}

/// Merged, so that no two overlap: nft sets of ranges do not take overlapping ones. One that has every address in it is as
/// none: everybody.
fn source_ranges<'a>(texts: impl Iterator<Item = &'a String>, family: Family) -> Box<[IpNet]> {
    let nets = texts.filter_map(|text| text.trim().parse::<IpNet>().ok());
    let mine: Vec<IpNet> = nets.filter(|net| Family::of(net.addr()) == family).map(|net| net.trunc()).collect();
    if mine.iter().any(|net| net.prefix_len() == 0) { Box::default() } else { IpNet::aggregate(&mine).into() }
}
