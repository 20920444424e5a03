//! What the table's maps and sets hold: elements, as numbers. There are a dozen for each Service, so what keeps them
//! writes no text before nft or somebody reading needs it.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::endpoints::Endpoint;
use crate::service::Protocol;

/// The table's maps and sets of elements that Services and policies contribute to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Map {
    Frontends,
    NodePorts,
    /// One map a protocol, see [`crate::nft`].
    Endpoints(Protocol),
    NodePortEndpoints(Protocol),
    ClusterIps,
    Hairpin,
    Restricted,
    Sources,
    PolicyIngress,
    PolicyEgress,
    Peers(u64),
    NamedPorts(u64),
}

impl Map {
    pub fn name(self) -> Cow<'static, str> {
        let name = match self {
            Map::Peers(set) => return format!("peers-{set:016x}").into(),
            Map::NamedPorts(set) => return format!("ports-{set:016x}").into(),
            Map::Frontends => "frontends",
            Map::NodePorts => "node-ports",
            Map::Endpoints(Protocol::Tcp) => "tcp-endpoints",
            Map::Endpoints(Protocol::Udp) => "udp-endpoints",
            Map::Endpoints(Protocol::Sctp) => "sctp-endpoints",
            Map::NodePortEndpoints(Protocol::Tcp) => "tcp-node-port-endpoints",
            Map::NodePortEndpoints(Protocol::Udp) => "udp-node-port-endpoints",
            Map::NodePortEndpoints(Protocol::Sctp) => "sctp-node-port-endpoints",
            Map::ClusterIps => "cluster-ips",
            Map::Hairpin => "hairpin",
            Map::Restricted => "restricted",
            Map::Sources => "sources",
            Map::PolicyIngress => "policy-ingress",
            Map::PolicyEgress => "policy-egress",
        };
        name.into()
    }
}

/// One element's key, and so which map it is in; in the order of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// Where a port of an address leads.
    Frontend(IpAddr, Protocol, u16),
    /// The same for ports of the node's own addresses.
    NodePort(Protocol, u16),
    /// A port of an address, and an index: the endpoint.
    Endpoint(Protocol, IpAddr, u16, u16),
    NodePortEndpoint(Protocol, u16, u16),
    /// An address of which other ports are refused.
    ClusterIp(IpAddr),
    /// An endpoint: a connection of its own that came back to it has this address twice.
    Hairpin(IpAddr),
    /// A load balancer's address and port that only some may use, and who.
    Restricted(IpAddr, Protocol, u16),
    Source(IpAddr, Protocol, u16, IpNet),
    /// A local pod's address: leads to the chain of the policies that isolate it.
    PolicyIngress(IpAddr),
    PolicyEgress(IpAddr),
    /// A pod that a policy's selector selects.
    Peer(u64, IpAddr),
    /// The address and number of a port that policies call by a name.
    NamedPort(u64, IpAddr, u16),
}

impl Element {
    pub fn map(&self) -> Map {
        match *self {
            Element::Frontend(..) => Map::Frontends,
            Element::NodePort(..) => Map::NodePorts,
            Element::Endpoint(protocol, ..) => Map::Endpoints(protocol),
            Element::NodePortEndpoint(protocol, ..) => Map::NodePortEndpoints(protocol),
            Element::ClusterIp(_) => Map::ClusterIps,
            Element::Hairpin(_) => Map::Hairpin,
            Element::Restricted(..) => Map::Restricted,
            Element::Source(..) => Map::Sources,
            Element::PolicyIngress(_) => Map::PolicyIngress,
            Element::PolicyEgress(_) => Map::PolicyEgress,
            Element::Peer(set, _) => Map::Peers(set),
            Element::NamedPort(set, ..) => Map::NamedPorts(set),
        }
    }
}

/// The key as nft writes it.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Frontend(ip, protocol, port) | Element::Restricted(ip, protocol, port) => {
                write!(f, "{ip} . {protocol} . {port}")
            }
            Element::NodePort(protocol, port) => write!(f, "{protocol} . {port}"),
            Element::Endpoint(_, ip, port, index) => write!(f, "{ip} . {port} . {index}"),
            Element::NodePortEndpoint(_, port, index) => write!(f, "{port} . {index}"),
            Element::Hairpin(ip) => write!(f, "{ip} . {ip}"),
            Element::Source(ip, protocol, port, net) => write!(f, "{ip} . {protocol} . {port} . {net}"),
            Element::ClusterIp(ip) | Element::PolicyIngress(ip) | Element::PolicyEgress(ip) | Element::Peer(_, ip) => {
                ip.fmt(f)
            }
            Element::NamedPort(_, ip, port) => write!(f, "{ip} . {port}"),
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Drop,
    /// Is refused: nobody is there.
    Refuse,
    /// Goes to a chain.
    Goto(Arc<str>),
}

impl Verdict {
    /// The chain it leads to.
    pub(crate) fn chain(&self) -> Option<&str> {
        match self {
            Verdict::Drop => None,
            Verdict::Refuse => Some(crate::nft::REFUSE),
            Verdict::Goto(chain) => Some(chain),
        }
    }
}

/// As nft writes it.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.chain() {
            Some(chain) => write!(f, "goto {chain}"),
            None => f.write_str("drop"),
        }
    }
}

/// What an element leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// It is an element of a set: there, and nothing more.
    There,
    To(Endpoint),
    Verdict(Verdict),
}

/// An element as nft writes it, with what it leads to.
pub(crate) struct Entry<'a>(pub &'a Element, pub &'a Value);

impl fmt::Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Value::There => self.0.fmt(f),
            Value::To(Endpoint { address, port }) => write!(f, "{} : {address} . {port}", self.0),
            Value::Verdict(verdict) => write!(f, "{} : {verdict}", self.0),
        }
    }
}
