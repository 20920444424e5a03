//! Links, addresses and routes of one network namespace, changed over a netlink socket.
//!
//! A [`Netlink`] speaks for the namespace in which its socket was made, for as long as it lives, whatever the thread
//! using it does later: so one thread can set up many namespaces without spawning `ip` and without a runtime. Every
//! call waits for the kernel's acknowledgement. It knows nothing of clusters: names and numbers come from the caller.

mod tunnel;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

pub use tunnel::{Hardware, Neighbour, Vxlan};

/// How a route says who made it (`proto 78` in `ip route`): only routes with this mark are ever removed.
pub const ROUTE_PROTOCOL: u8 = 78;

/// The metric the kernel gives an IPv6 route that names none; IPv4 has 0 for that.
const IPV6_METRIC: u32 = 1024;

/// How long an address may take until packets for it are taken, and how often that is looked at.
const LOCAL_WITHIN: Duration = Duration::from_secs(1);
const LOCAL_LOOK: Duration = Duration::from_millis(1);

/// The table that the tunnel's own packets are routed by, before the main one.
pub const TUNNEL_TABLE: u8 = 78;

/// One route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub destination: IpNet,
    /// The next hop, of the same family; none means packets for the destination are refused (`unreachable`).
    pub gateway: Option<IpAddr>,
    /// Smaller is preferred; routes that differ only in this live side by side. 0: the usual one.
    pub metric: u32,
    /// The link the next hop is on, where no address of it says so.
    pub link: Option<u32>,
    /// The main table, or [`TUNNEL_TABLE`].
    pub table: u8,
}

impl Route {
    /// The usual one to a destination.
    pub fn to(destination: IpNet, gateway: Option<IpAddr>) -> Route {
        Route { destination, gateway, metric: 0, link: None, table: RouteHeader::RT_TABLE_MAIN }
    }
}

/// A request-and-acknowledge channel to one namespace's network configuration.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Speaks for the namespace the calling thread is in now.
    pub fn here() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// The index of the link called `name`.
    pub fn link(&mut self, name: &str) -> io::Result<Option<u32>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        match self.request(RouteNetlinkMessage::GetLink(message), NLM_F_ACK) {
            Ok(replies) => Ok(replies.into_iter().find_map(|reply| match reply {
                RouteNetlinkMessage::NewLink(link) => Some(link.header.index),
                _ => None,
            })),
            Err(error) if is(&error, Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The link must exist: it was just made.
    pub fn expect_link(&mut self, name: &str) -> io::Result<u32> {
        self.link(name)?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no link {name}")))
    }

    /// Makes a bridge, up. One that exists is left as it is.
    pub fn add_bridge(&mut self, name: &str) -> io::Result<()> {
        let mut message = new_link(name);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        existing(self.request(RouteNetlinkMessage::NewLink(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL))
    }

    /// Makes a pair of links in one step: `name` here, up, a port of `bridge`; its other end `peer` in the namespace
    /// `peer_namespace`.
    pub fn add_port(&mut self, name: &str, bridge: u32, peer: &str, peer_namespace: BorrowedFd<'_>) -> io::Result<()> {
        let mut far = new_link(peer);
        far.attributes.push(LinkAttribute::NetNsFd(peer_namespace.as_raw_fd()));
        let mut message = new_link(name);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::Controller(bridge));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]));
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK).map(drop)
    }

    /// Removes a link; one that is gone already is no error.
    pub fn delete_link(&mut self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        match self.request(RouteNetlinkMessage::DelLink(message), NLM_F_ACK) {
            Err(error) if is(&error, Errno::ENODEV) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Gives a link an address, at once: addresses here are ours to give, nobody has to be asked whether he has one.
    /// Packets for it are taken from then on. One it has already is no error.
    pub fn add_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.scope = AddressScope::Universe;
        message.header.index = index;
        message.attributes.push(AddressAttribute::Local(address.addr()));
        message.attributes.push(AddressAttribute::Address(address.addr()));
        match address {
            IpNet::V4(v4) if v4.prefix_len() < 31 => {
                message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
            }
            IpNet::V4(_) => {}
            IpNet::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
        }
        existing(self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL))?;
        if address.addr().is_ipv6() { self.wait_until_local(address.addr()) } else { Ok(()) }
    }

    /// Waits until packets for an address of this namespace are taken. The kernel gives an IPv6 address its route some time
    /// after it said that it is there, and drops or sends away what comes for it until then.
    fn wait_until_local(&mut self, address: IpAddr) -> io::Result<()> {
        let until = Instant::now() + LOCAL_WITHIN;
        while !self.is_local(address)? {
            if Instant::now() >= until {
                tracing::debug!("packets for {address} are not taken yet");
                break;
            }
            std::thread::sleep(LOCAL_LOOK);
        }
        Ok(())
    }

    fn is_local(&mut self, address: IpAddr) -> io::Result<bool> {
        let found = self.route_to(address)?;
        Ok(found.is_some_and(|route| route.header.kind == RouteType::Local))
    }

    /// The route that a packet to an address would take; `None` when there is no way.
    fn route_to(&mut self, address: IpAddr) -> io::Result<Option<RouteMessage>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(address);
        message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(route_address(address)));
        match self.request(RouteNetlinkMessage::GetRoute(message), NLM_F_ACK) {
            Err(error) if is(&error, Errno::ENETUNREACH) || is(&error, Errno::EHOSTUNREACH) => Ok(None),
            other => Ok(other?.into_iter().find_map(|reply| match reply {
                RouteNetlinkMessage::NewRoute(route) => Some(route),
                _ => None,
            })),
        }
    }

    /// Puts a route in place, over one of ours or anybody's with the same destination and metric.
    pub fn replace_route(&mut self, route: &Route) -> io::Result<()> {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.request(RouteNetlinkMessage::NewRoute(route_message(route)), flags).map(drop)
    }

    /// Adds a route if no other has the same destination and metric; says whether it did.
    pub fn add_route(&mut self, route: &Route) -> io::Result<bool> {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        match self.request(RouteNetlinkMessage::NewRoute(route_message(route)), flags) {
            Ok(_) => Ok(true),
            Err(error) if is(&error, Errno::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a route that carries our mark; one that is gone already is no error.
    pub fn delete_route(&mut self, route: &Route) -> io::Result<()> {
        match self.request(RouteNetlinkMessage::DelRoute(route_message(route)), NLM_F_ACK) {
            Err(error) if is(&error, Errno::ESRCH) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The routes of both tables that carry our mark, of both families.
    pub fn routes(&mut self) -> io::Result<Vec<Route>> {
        let mut out = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let replies = self.request(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)?;
            out.extend(replies.into_iter().filter_map(|reply| match reply {
                RouteNetlinkMessage::NewRoute(message) => ours(&message),
                _ => None,
            }));
        }
        Ok(out)
    }

    /// Sends one request and collects what comes back until the acknowledgement or the end of the dump.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut replies = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                // Messages are padded to four bytes; a length that leads nowhere would loop for ever.
                let length = (reply.header.length as usize).next_multiple_of(4).max(16);
                rest = rest.get(length..).unwrap_or_default();
                if reply.header.sequence_number != self.sequence {
                    continue;
                }
                match reply.payload {
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(replies),
                            Some(code) => Err(io::Error::from_raw_os_error(-code.get())),
                        };
                    }
                    NetlinkPayload::Done(_) => return Ok(replies),
                    NetlinkPayload::InnerMessage(inner) => replies.push(inner),
                    _ => {}
                }
            }
        }
    }
}

fn new_link(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn route_message(route: &Route) -> RouteMessage {
    let v6 = route.destination.addr().is_ipv6();
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.destination.addr());
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.header.table = route.table;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.scope = RouteScope::Universe;
    message.header.kind = if route.gateway.is_some() { RouteType::Unicast } else { RouteType::Unreachable };
    message.attributes.push(RouteAttribute::Destination(route_address(route.destination.network())));
    let metric = if v6 && route.metric == 0 { IPV6_METRIC } else { route.metric };
    message.attributes.push(RouteAttribute::Priority(metric));
    if let Some(gateway) = route.gateway {
        message.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
    }
    if let Some(link) = route.link {
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Oif(link));
    }
    message
}

/// Reads a route back, if it is one [`route_message`] could have written.
fn ours(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let is_known = matches!(header.table, RouteHeader::RT_TABLE_MAIN | TUNNEL_TABLE);
    if !is_known || header.protocol != RouteProtocol::Other(ROUTE_PROTOCOL) {
        return None;
    }
    let v6 = header.address_family == AddressFamily::Inet6;
    let mut destination: IpAddr =
        if v6 { std::net::Ipv6Addr::UNSPECIFIED.into() } else { std::net::Ipv4Addr::UNSPECIFIED.into() };
    let mut gateway = None;
    let (mut metric, mut link) = (0, None);
    let on_link = header.flags.contains(RouteFlags::Onlink);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = address_of(address)?,
            RouteAttribute::Gateway(address) => gateway = address_of(address),
            RouteAttribute::Priority(priority) if v6 && *priority == IPV6_METRIC => {}
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) if on_link => link = Some(*index),
            _ => {}
        }
    }
    let destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    Some(Route { destination, gateway, metric, link, table: header.table })
}

/// The link a route leads to, and the next hop if there is one.
fn next_hop(message: &RouteMessage) -> Option<(u32, Option<IpAddr>)> {
    let link = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(link) => Some(*link),
        _ => None,
    })?;
    let gateway = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => address_of(address),
        _ => None,
    });
    Some((link, gateway))
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// What exists already is as good as made.
fn existing<T>(result: io::Result<T>) -> io::Result<()> {
    match result {
        Err(error) if is(&error, Errno::EEXIST) => Ok(()),
        other => other.map(drop),
    }
}
