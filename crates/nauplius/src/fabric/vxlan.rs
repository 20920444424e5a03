//! A tunnel between nodes that do not share a link, or whose network does not route pods' addresses: VXLAN.
//!
//! Each node has one link, [`LINK`]; its packets travel in UDP between the nodes' addresses, of the cluster's first family,
//! whichever family the pods' own are. Nothing is learnt or flooded: routes, neighbours and ends of the tunnel are written
//! from the Node objects, and a node's hardware address there follows from its name, so that nobody has to tell it.
//!
//! The link has the first address of each of the node's pod ranges, which no pod gets: it is where the node's own packets
//! to other nodes' pods come from, so that the answers come back through the tunnel.
//!
//! How large packets to another node may be is learnt of others' packets too: a client here whose packet was too large for a
//! pod behind a node port there is told so in that node's name. The tunnel has nothing to do with that, so its own packets
//! have a table of routes of their own, where nothing is learnt; what is too large for the way goes in pieces. IPv6 has no
//! such pieces: between nodes of IPv6 pods' packets follow what is learnt, and become smaller for as long.
//!
//! [`Tunnel::plan`] is pure; [`Tunnel::reconcile`] makes the kernel's tables equal to it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

use super::netlink::{Hardware, Neighbour, Netlink, Route, Vxlan};
use super::routes::{internal_address, pod_ranges};

/// The tunnel's link on every node.
pub const LINK: &str = "nauplius-vxlan";
/// VXLAN's own port.
const PORT: u16 = 4789;
/// The tunnel's number; several clusters on one network need several.
pub const NUMBER: u32 = 7846;

/// What the tunnel adds to each packet in bytes: Ethernet, VXLAN, UDP, and IP's header.
pub fn overhead(local: IpAddr) -> u32 {
    14 + 8 + 8 + if local.is_ipv4() { 20 } else { 40 }
}

/// A node's hardware address in the tunnel: locally administered, of its name.
fn hardware(node: &str) -> Hardware {
    let hash = super::fnv1a_64(node.as_bytes()).to_be_bytes();
    [0x06, hash[3], hash[4], hash[5], hash[6], hash[7]]
}

/// One node's end of the tunnel, and all others'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub local: IpAddr,
    hardware: Hardware,
    /// The link's own.
    addresses: BTreeSet<IpNet>,
    /// Destination and next hop of each route.
    routes: BTreeSet<(IpNet, IpAddr)>,
    pub neighbours: BTreeSet<Neighbour>,
}

impl Tunnel {
    /// `None` while this node has no address yet.
    pub fn plan<'a>(own: &Node, others: impl Iterator<Item = &'a Node>) -> Option<Tunnel> {
        let local = internal_address(own, |_| true)?;
        let name = own.metadata.name.as_deref()?;
        let single = |range: &IpNet| IpNet::new(range.network(), range.max_prefix_len()).ok();
        let mut tunnel = Tunnel {
            local,
            hardware: hardware(name),
            addresses: pod_ranges(own).iter().filter_map(single).collect(),
            routes: BTreeSet::new(),
            neighbours: BTreeSet::new(),
        };
        for other in others {
            let Some(far) = internal_address(other, |address| address.is_ipv4() == local.is_ipv4()) else { continue };
            let hardware = hardware(other.metadata.name.as_deref().unwrap_or_default());
            for range in pod_ranges(other) {
                tunnel.routes.insert((range, range.network()));
                tunnel.neighbours.insert(Neighbour::Near(range.network(), hardware));
                tunnel.neighbours.insert(Neighbour::Behind(hardware, far));
            }
        }
        Some(tunnel)
    }

    /// Makes link and tables so; returns the routes that lead into it, and those of its own packets.
    pub fn reconcile(&self, netlink: &mut Netlink, number: u32, mtu: Option<u32>) -> io::Result<BTreeSet<Route>> {
        let mtu = match mtu {
            Some(mtu) => mtu,
            None => {
                let below = netlink.mtu_of_address(self.local)?;
                let below = below
                    .ok_or_else(|| io::Error::other(format!("no link here has this node's address {}", self.local)))?;
                below.saturating_sub(overhead(self.local))
            }
        };
        let wanted = Vxlan { number, port: PORT, local: self.local, hardware: self.hardware, mtu };
        let mut present = netlink.link(LINK)?;
        if let Some(link) = present {
            let here = netlink.addresses()?.into_iter();
            let ours: BTreeSet<IpNet> = here
                .filter(|(at, address)| *at == link && !is_link_local(address))
                .map(|(_, address)| address)
                .collect();
            if netlink.vxlan(LINK)?.as_ref() != Some(&wanted) || ours != self.addresses {
                netlink.delete_link(LINK)?;
                present = None;
            }
        }
        let link = match present {
            Some(link) => link,
            None => {
                netlink.add_vxlan(LINK, &wanted)?;
                let link = netlink.expect_link(LINK)?;
                for address in &self.addresses {
                    netlink.add_address(link, *address)?;
                }
                link
            }
        };
        let there = netlink.neighbours(link)?;
        let mut first = Ok(());
        for stale in there.difference(&self.neighbours) {
            first = first.and(netlink.delete_neighbour(link, stale));
        }
        for missing in self.neighbours.difference(&there) {
            first = first.and(netlink.replace_neighbour(link, missing));
        }
        first?;
        let into = |(destination, gateway): &(IpNet, IpAddr)| Route {
            link: Some(link),
            ..Route::to(*destination, Some(*gateway))
        };
        let mut routes: BTreeSet<Route> = self.routes.iter().map(into).collect();
        if self.local.is_ipv4() {
            for neighbour in &self.neighbours {
                if let Neighbour::Behind(_, far) = neighbour {
                    routes.extend(netlink.tunnel_route(*far)?);
                }
            }
            netlink.add_tunnel_rule(PORT)?;
        }
        Ok(routes)
    }
}

/// Takes the tunnel away; that there is none is no error. Its routes go with the others.
pub fn remove(netlink: &mut Netlink) -> io::Result<()> {
    netlink.delete_link(LINK)?;
    netlink.delete_tunnel_rule(PORT)
}

/// The kernel gives every link one of these.
fn is_link_local(address: &IpNet) -> bool {
    matches!(address, IpNet::V6(v6) if v6.addr().is_unicast_link_local())
}
