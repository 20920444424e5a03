//! What a tunnel needs beyond plain links and routes: VXLAN links, neighbours that nobody is asked for, whose address is
//! where, how large a link's packets may be, and a table of routes of its own.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use nix::errno::Errno;

use super::{Netlink, ROUTE_PROTOCOL, Route, TUNNEL_TABLE, existing, family, is, new_link};

/// Where the rule for the tunnel's own packets stands: before the main table's, 32766.
const RULE_PRIORITY: u32 = 7846;

/// A link's hardware address.
pub type Hardware = [u8; 6];

/// A VXLAN link's parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    pub number: u32,
    pub port: u16,
    /// Where this end's packets come from.
    pub local: IpAddr,
    pub hardware: Hardware,
    pub mtu: u32,
}

/// An entry of a link's tables that stays until it is taken away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Neighbour {
    /// An address on the link, and its hardware.
    Near(IpAddr, Hardware),
    /// Hardware behind the tunnel, and the machine it is on.
    Behind(Hardware, IpAddr),
}

impl Netlink {
    /// Makes a VXLAN link, up, that learns nothing by itself.
    pub fn add_vxlan(&mut self, name: &str, wanted: &Vxlan) -> io::Result<()> {
        let local = match wanted.local {
            IpAddr::V4(v4) => InfoVxlan::Local(v4),
            IpAddr::V6(v6) => InfoVxlan::Local6(v6),
        };
        let parameters =
            vec![InfoVxlan::Id(wanted.number), local, InfoVxlan::Port(wanted.port), InfoVxlan::Learning(false)];
        let mut message = new_link(name);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.push(LinkAttribute::Address(wanted.hardware.to_vec()));
        message.attributes.push(LinkAttribute::Mtu(wanted.mtu));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(parameters)),
        ]));
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// The parameters of a VXLAN link; `None` when there is no such link, or it is of another kind.
    pub fn vxlan(&mut self, name: &str) -> io::Result<Option<Vxlan>> {
        let Some(link) = self.link_message(new_link(name))? else { return Ok(None) };
        let mut found = Vxlan { number: 0, port: 0, local: [0; 4].into(), hardware: [0; 6], mtu: 0 };
        let mut parameters = None;
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::Address(bytes) => found.hardware = bytes.try_into().unwrap_or_default(),
                LinkAttribute::Mtu(mtu) => found.mtu = mtu,
                LinkAttribute::LinkInfo(infos) => {
                    parameters = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Data(InfoData::Vxlan(parameters)) => Some(parameters),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        let Some(parameters) = parameters else { return Ok(None) };
        for parameter in parameters {
            match parameter {
                InfoVxlan::Id(number) => found.number = number,
                InfoVxlan::Port(port) => found.port = port,
                InfoVxlan::Local(v4) => found.local = v4.into(),
                InfoVxlan::Local6(v6) => found.local = v6.into(),
                _ => {}
            }
        }
        Ok(Some(found))
    }

    /// The largest packet of the link that has an address.
    pub fn mtu_of_address(&mut self, address: IpAddr) -> io::Result<Option<u32>> {
        match self.addresses()?.into_iter().find(|(_, own)| own.addr() == address) {
            Some((link, _)) => self.mtu(link),
            None => Ok(None),
        }
    }

    /// The largest packet of the link that the default route leads to.
    pub fn mtu_of_default_route(&mut self) -> io::Result<Option<u32>> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let replies = self.request(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)?;
            let link = replies.into_iter().find_map(|reply| match reply {
                RouteNetlinkMessage::NewRoute(route)
                    if route.header.destination_prefix_length == 0
                        && route.header.table == RouteHeader::RT_TABLE_MAIN =>
                {
                    route.attributes.into_iter().find_map(|attribute| match attribute {
                        RouteAttribute::Oif(link) => Some(link),
                        _ => None,
                    })
                }
                _ => None,
            });
            if let Some(link) = link {
                return self.mtu(link);
            }
        }
        Ok(None)
    }

    fn mtu(&mut self, link: u32) -> io::Result<Option<u32>> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        let found = self.link_message(message)?;
        Ok(found.into_iter().flat_map(|link| link.attributes).find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(mtu),
            _ => None,
        }))
    }

    /// One link, as the kernel shows it.
    fn link_message(&mut self, wanted: LinkMessage) -> io::Result<Option<LinkMessage>> {
        match self.request(RouteNetlinkMessage::GetLink(wanted), NLM_F_ACK) {
            Ok(replies) => Ok(replies.into_iter().find_map(|reply| match reply {
                RouteNetlinkMessage::NewLink(link) => Some(link),
                _ => None,
            })),
            Err(error) if is(&error, Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every address of the namespace, with its link.
    pub fn addresses(&mut self) -> io::Result<Vec<(u32, IpNet)>> {
        let replies = self.request(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
        let read = |reply| {
            let RouteNetlinkMessage::NewAddress(message) = reply else { return None };
            let named = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
            // A pair's own end is `Local`; IPv6 has the one only.
            let address = named(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            })
            .or_else(|| {
                named(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                })
            })?;
            Some((message.header.index, IpNet::new(address, message.header.prefix_len).ok()?))
        };
        Ok(replies.into_iter().filter_map(read).collect())
    }

    /// The route to an address here, as a route of the tunnel's table; `None` when there is no way.
    pub fn tunnel_route(&mut self, to: IpAddr) -> io::Result<Option<Route>> {
        let found = self.route_to(to)?.as_ref().and_then(super::next_hop);
        let route = |(link, gateway): (u32, Option<IpAddr>)| Route {
            // On the link itself the next hop is whom it is for.
            gateway: gateway.or(Some(to)),
            link: Some(link),
            table: TUNNEL_TABLE,
            ..Route::to(to.into(), None)
        };
        Ok(found.map(route))
    }

    /// Has packets to a UDP port routed by the tunnel's table, before the main one.
    pub fn add_tunnel_rule(&mut self, port: u16) -> io::Result<()> {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        existing(self.request(RouteNetlinkMessage::NewRule(tunnel_rule(port)), flags))
    }

    /// Takes that back; what is not there is no error.
    pub fn delete_tunnel_rule(&mut self, port: u16) -> io::Result<()> {
        match self.request(RouteNetlinkMessage::DelRule(tunnel_rule(port)), NLM_F_ACK) {
            Err(error) if is(&error, Errno::ENOENT) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The lasting entries of a link's tables.
    pub fn neighbours(&mut self, link: u32) -> io::Result<BTreeSet<Neighbour>> {
        let mut out = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            let replies = self.request(RouteNetlinkMessage::GetNeighbour(message), NLM_F_DUMP)?;
            out.extend(replies.into_iter().filter_map(|reply| match reply {
                RouteNetlinkMessage::NewNeighbour(message) if message.header.ifindex == link => read(&message),
                _ => None,
            }));
        }
        Ok(out)
    }

    /// Puts an entry in place, over any other for the same address.
    pub fn replace_neighbour(&mut self, link: u32, neighbour: &Neighbour) -> io::Result<()> {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.request(RouteNetlinkMessage::NewNeighbour(written(link, neighbour)), flags).map(drop)
    }

    /// Takes an entry away; one that is gone already is no error.
    pub fn delete_neighbour(&mut self, link: u32, neighbour: &Neighbour) -> io::Result<()> {
        match self.request(RouteNetlinkMessage::DelNeighbour(written(link, neighbour)), NLM_F_ACK) {
            Err(error) if is(&error, Errno::ENOENT) => Ok(()),
            other => other.map(drop),
        }
    }
}

fn tunnel_rule(port: u16) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.table = TUNNEL_TABLE;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)),
        RuleAttribute::IpProtocol(IpProtocol::Udp),
        RuleAttribute::DestinationPortRange(RulePortRange { start: port, end: port }),
    ];
    message
}

fn written(link: u32, neighbour: &Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    let (destination, hardware) = match *neighbour {
        Neighbour::Near(address, hardware) => {
            message.header.family = family(address);
            (address, hardware)
        }
        Neighbour::Behind(hardware, address) => {
            message.header.family = AddressFamily::Bridge;
            message.header.flags = NeighbourFlags::Own;
            (address, hardware)
        }
    };
    message.attributes.push(NeighbourAttribute::Destination(destination.into()));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(hardware.to_vec()));
    message
}

/// Reads an entry back, if it is one [`written`] could have made.
fn read(message: &NeighbourMessage) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut destination, mut hardware) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => destination = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => destination = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
                destination = v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from)).ok();
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => hardware = Hardware::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    let (destination, hardware) = (destination?, hardware?);
    Some(match message.header.family {
        AddressFamily::Bridge => Neighbour::Behind(hardware, destination),
        _ => Neighbour::Near(destination, hardware),
    })
}
