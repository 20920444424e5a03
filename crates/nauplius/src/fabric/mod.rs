//! The cluster's network on one machine: a namespace that holds a bridge, and a namespace a node on that bridge.
//!
//! ```text
//!   host namespace            only `unreachable` routes for the cluster's ranges: nothing of it leaves the machine
//!   namespace CLUSTER         bridge `fabric`, 10.245.0.1/24: the control plane's address for nodes and pods
//!     ├─ node-1 ── eth0  namespace CLUSTER-node-1   10.245.0.11/24   pods 10.244.?.0/24 behind it
//!     └─ node-2 ── eth0  namespace CLUSTER-node-2   10.245.0.12/24
//! ```
//!
//! A cluster with an IPv6 range has an IPv6 network between its nodes too, numbered alike, of unique local addresses.
//!
//! Guarantees: [`Fabric::ensure`] may be called any number of times and finds what is there; [`Fabric::remove`] takes
//! away exactly what `ensure` made for that cluster name, also after a crash half-way; several clusters coexist. The
//! fabric has no uplink: a packet for an address outside it is answered "network unreachable" at the bridge.
//!
//! It does not know what runs in the namespaces, which node has which pod range ([`pod_network()`] follows the Node
//! objects), or who listens on what.

mod namespace;
mod netlink;
mod nodeports;
mod pod_network;
mod routes;
#[cfg(test)]
mod tests;
mod vxlan;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use namespace::{connect_in, enter, listen_in, within};
use netlink::{Netlink, Route};
pub use nodeports::publish_node_ports;
pub use pod_network::{PodNetwork, PodNetworkOptions, pod_mtu, pod_network};
pub use routes::routes_in;

/// The bridge inside the cluster's namespace.
const BRIDGE: &str = "fabric";
/// A node's link to the bridge, as nodes call it.
const UPLINK: &str = "eth0";
/// Host part of node N's address is this plus N: leaves the low addresses to the bridge and to future services.
const NODE_OFFSET: u32 = 10;
/// The longest cluster name: a namespace's name must stay readable beside `-node-NNN`.
const CLUSTER_NAME_BYTES: usize = 40;
/// Metric of the host's `unreachable` routes: far behind any route an administrator sets. The low bits tell clusters
/// apart, so that each adds and removes its own.
const HOST_METRIC: u32 = 0x4e00_0000;

/// What the cluster's network is to look like.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Prefix of every namespace's name: `nauplius`, or something made from the data directory when several clusters
    /// share a machine.
    pub cluster: String,
    /// Nodes are numbered from 1.
    pub nodes: u32,
    /// The bridge's network: .1 the control plane, .10+N node N.
    pub node_network: Ipv4Net,
    /// The same for IPv6, used when pods have a range of it.
    pub node_network_v6: Ipv6Net,
    /// One of each family the cluster has, the first one leading. Cut into one range a node by the node IPAM controller;
    /// here they only must not leave the machine.
    pub pod_networks: Vec<IpNet>,
    /// Cluster IPs; likewise.
    pub service_networks: Vec<IpNet>,
    /// Addresses for Services of type LoadBalancer; likewise.
    pub balancer_networks: Vec<IpNet>,
}

impl Layout {
    /// The usual ranges.
    pub fn new(cluster: impl Into<String>, nodes: u32) -> Layout {
        let v4 = |a, b, c, prefix| Ipv4Net::new_assert(Ipv4Addr::new(10, a, b, c), prefix);
        let v6 = |part, prefix| Ipv6Net::new_assert(Ipv6Addr::new(0xfd0a, 0x245, part, 0, 0, 0, 0, 0), prefix);
        Layout {
            cluster: cluster.into(),
            nodes,
            node_network: v4(245, 0, 0, 24),
            node_network_v6: v6(0, 64),
            pod_networks: vec![v4(244, 0, 0, 16).into()],
            service_networks: vec![v4(96, 0, 0, 12).into()],
            balancer_networks: vec![v4(245, 1, 0, 24).into(), v6(1, 120).into()],
        }
    }

    /// The namespace that holds the bridge: where the control plane is reached by nodes and pods.
    pub fn fabric_namespace(&self) -> PathBuf {
        namespace::path(&self.cluster)
    }

    /// Node `n`'s namespace.
    pub fn node_namespace(&self, n: u32) -> PathBuf {
        namespace::path(&self.node_name_of(n))
    }

    /// The name of node `n`'s namespace under `ip netns`.
    pub fn node_name_of(&self, n: u32) -> String {
        format!("{}-node-{n}", self.cluster)
    }

    /// The control plane's address on the fabric, of the cluster's first family.
    pub fn control_plane_address(&self) -> IpAddr {
        self.hosts(1)[0].addr()
    }

    /// Node `n`'s addresses, in the order of the cluster's families.
    pub fn node_addresses(&self, n: u32) -> Vec<IpAddr> {
        self.hosts(NODE_OFFSET + n).iter().map(IpNet::addr).collect()
    }

    /// The addresses with a number, and their networks, in the order of the cluster's families; at least one.
    fn hosts(&self, number: u32) -> Vec<IpNet> {
        let v4 = || {
            let address = Ipv4Addr::from(u32::from(self.node_network.network()).wrapping_add(number));
            IpNet::new_assert(address.into(), self.node_network.prefix_len())
        };
        let v6 = || {
            let address = Ipv6Addr::from(u128::from(self.node_network_v6.network()).wrapping_add(number.into()));
            IpNet::new_assert(address.into(), self.node_network_v6.prefix_len())
        };
        let of_family = |net: &IpNet| if net.addr().is_ipv4() { v4() } else { v6() };
        let found: Vec<IpNet> = self.pod_networks.iter().map(of_family).collect();
        if found.is_empty() { vec![v4()] } else { found }
    }

    /// The balancers' networks of the cluster's families.
    pub fn balancer_networks(&self) -> Vec<IpNet> {
        let is_used = |net: &&IpNet| self.pod_networks.iter().any(|pods| pods.addr().is_ipv4() == net.addr().is_ipv4());
        self.balancer_networks.iter().filter(is_used).copied().collect()
    }

    fn check(&self) -> Result<()> {
        let name = &self.cluster;
        let letters = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if name.is_empty() || name.len() > CLUSTER_NAME_BYTES || !name.bytes().all(letters) || name.contains("-node-") {
            bail!(
                "cluster name {name:?}: use at most {CLUSTER_NAME_BYTES} lower-case letters, digits and '-', without \"-node-\""
            );
        }
        let room = u32::MAX.checked_shr(u32::from(self.node_network.prefix_len())).unwrap_or(0);
        if NODE_OFFSET.saturating_add(self.nodes) >= room {
            bail!("{} nodes do not fit into the node network {}", self.nodes, self.node_network);
        }
        Ok(())
    }

    fn host_metric(&self) -> u32 {
        HOST_METRIC | (fnv1a(self.cluster.as_bytes()) & 0x00ff_ffff)
    }

    /// The routes that keep the cluster's ranges on this machine.
    fn host_routes(&self) -> Vec<Route> {
        let metric = self.host_metric();
        let v6 = self.pod_networks.iter().any(|net| net.addr().is_ipv6());
        let nodes = [self.node_network.into()].into_iter().chain(v6.then_some(self.node_network_v6.into()));
        let ranges = self.pod_networks.iter().chain(&self.service_networks).copied();
        let all = nodes.chain(ranges).chain(self.balancer_networks());
        all.map(|destination: IpNet| Route { metric, ..Route::to(destination.trunc(), None) }).collect()
    }

    fn is_node_name(&self, name: &str) -> bool {
        name.strip_prefix(&*self.cluster)
            .and_then(|rest| rest.strip_prefix("-node-"))
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit()))
    }
}

/// The cluster's network, in place.
#[derive(Clone, Debug)]
pub struct Fabric {
    pub layout: Layout,
}

impl Fabric {
    /// Makes what is missing of the layout. Blocks for some tens of milliseconds when everything is.
    pub fn ensure(layout: &Layout) -> Result<Fabric> {
        layout.check()?;
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "the cluster's network needs root: it makes network namespaces (run as root, or use --control-plane-only)"
            );
        }
        hold_at_home(layout).context("cannot set the host's unreachable routes")?;
        namespace::create(&layout.cluster)
            .with_context(|| format!("cannot create the network namespace {}", layout.cluster))?;
        let mut fabric = raise_bridge(layout)
            .with_context(|| format!("cannot set up the bridge in network namespace {}", layout.cluster))?;
        for n in 1..=layout.nodes {
            raise_node(layout, n, &mut fabric)
                .with_context(|| format!("cannot set up the network namespace {}", layout.node_name_of(n)))?;
        }
        Ok(Fabric { layout: layout.clone() })
    }

    /// Removes every namespace and route of the cluster, also of nodes beyond the layout's count. What is not there is
    /// no error; the first thing that could not be removed is reported after everything was tried.
    pub fn remove(layout: &Layout) -> Result<()> {
        layout.check()?;
        let mut first = Ok(());
        let mut keep = |result: Result<()>| {
            if first.is_ok() {
                first = result;
            }
        };
        // Deleting the links at once: a namespace that some process still holds open would keep them.
        let inside = layout.fabric_namespace();
        let nodes = match namespace::named(|name| layout.is_node_name(name)) {
            Ok(nodes) => nodes,
            Err(error) => {
                keep(Err(error).context("cannot list network namespaces"));
                Vec::new()
            }
        };
        if namespace::exists(&inside) {
            keep(
                within(&inside, Netlink::here)
                    .and_then(|mut netlink| {
                        for name in &nodes {
                            netlink.delete_link(&port_of(layout, name))?;
                        }
                        netlink.delete_link(BRIDGE)
                    })
                    .context("cannot remove the bridge"),
            );
        }
        for name in nodes.iter().chain([&layout.cluster]) {
            keep(namespace::remove(name).with_context(|| format!("cannot remove the network namespace {name}")));
        }
        keep(
            Netlink::here()
                .and_then(|mut netlink| {
                    // By the cluster's own metric: its ranges may have been others than these.
                    let metric = layout.host_metric();
                    netlink.routes()?.iter().filter(|r| r.metric == metric).try_for_each(|r| netlink.delete_route(r))
                })
                .context("cannot remove the host's unreachable routes"),
        );
        first
    }
}

/// A range the host already routes keeps its route: ours stands behind it.
fn hold_at_home(layout: &Layout) -> io::Result<()> {
    let mut netlink = Netlink::here()?;
    for route in layout.host_routes() {
        netlink.add_route(&route)?;
    }
    Ok(())
}

/// The bridge with its address; nothing but its own network is reachable from here, and nodes are told so.
fn raise_bridge(layout: &Layout) -> io::Result<Netlink> {
    let inside = layout.fabric_namespace();
    let mut netlink = within(&inside, || {
        for (name, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            // Node to node is plain switching: no rules apply on the bridge itself.
            ("net/bridge/bridge-nf-call-iptables", "0"),
            ("net/bridge/bridge-nf-call-ip6tables", "0"),
        ] {
            sysctl(name, value);
        }
        Netlink::here()
    })?;
    netlink.set_up(LOOPBACK)?;
    if netlink.link(BRIDGE)?.is_none() {
        netlink.add_bridge(BRIDGE)?;
    }
    let bridge = netlink.expect_link(BRIDGE)?;
    netlink.set_up(bridge)?;
    for address in layout.hosts(1) {
        netlink.add_address(bridge, address)?;
        netlink.replace_route(&Route::to(everywhere(address), None))?;
    }
    Ok(netlink)
}

/// One node's namespace, its link to the bridge and its way out (which ends at the bridge).
fn raise_node(layout: &Layout, n: u32, fabric: &mut Netlink) -> io::Result<()> {
    let name = layout.node_name_of(n);
    namespace::create(&name)?;
    let inside = layout.node_namespace(n);
    let mut netlink = within(&inside, || {
        for (name, value) in NODE_SYSCTLS {
            sysctl(name, value);
        }
        Netlink::here()
    })?;
    netlink.set_up(LOOPBACK)?;
    let uplink = match netlink.link(UPLINK)? {
        Some(index) => index,
        None => {
            let port = port_of(layout, &name);
            // Left over when a node's namespace was taken away behind our back.
            fabric.delete_link(&port)?;
            let bridge = fabric.expect_link(BRIDGE)?;
            let file = std::fs::File::open(&inside)?;
            fabric.add_port(&port, bridge, UPLINK, file.as_fd())?;
            netlink.expect_link(UPLINK)?
        }
    };
    netlink.set_up(uplink)?;
    for (address, gateway) in layout.hosts(NODE_OFFSET + n).into_iter().zip(layout.hosts(1)) {
        netlink.add_address(uplink, address)?;
        netlink.replace_route(&Route::to(everywhere(address), Some(gateway.addr())))?;
    }
    Ok(())
}

/// The default route's destination in an address's family.
fn everywhere(address: IpNet) -> IpNet {
    match address {
        IpNet::V4(_) => Ipv4Net::default().into(),
        IpNet::V6(_) => Ipv6Net::default().into(),
    }
}

/// What a node needs of its kernel: forwarding between pods and the bridge, bridged pod traffic seen by the proxy's
/// rules, connections kept through address rewriting even when segments arrive late, and no source check that would
/// drop a rewritten reply.
const NODE_SYSCTLS: [(&str, &str); 10] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    FORWARD_LEARNT_MTU,
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/bridge/bridge-nf-call-iptables", "1"),
    ("net/bridge/bridge-nf-call-ip6tables", "1"),
    ("net/netfilter/nf_conntrack_tcp_be_liberal", "1"),
    // A crowded node's pods close many short connections: let the table forget them sooner than in two minutes.
    ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "30"),
];

/// What is learnt of the way between nodes holds for pods' IPv4 packets too, as it does for IPv6's: else one that is too large
/// for a tunnel between nodes of IPv6, which takes nothing apart, is lost and nobody told.
const FORWARD_LEARNT_MTU: (&str, &str) = ("net/ipv4/ip_forward_use_pmtu", "1");

/// Sets one of the calling thread's namespace's parameters. Kernels without the feature behind it lack the file, and
/// then have nothing to set either.
fn sysctl(name: &str, value: &str) {
    let path = format!("/proc/sys/{name}");
    if let Err(error) = std::fs::write(&path, value) {
        tracing::debug!("cannot set {path} to {value}: {error}");
    }
}

/// `lo` is the first link of every namespace.
const LOOPBACK: u32 = 1;

/// The bridge port of a node's namespace: `node-N`.
fn port_of(layout: &Layout, name: &str) -> String {
    name.strip_prefix(&*layout.cluster).unwrap_or(name).trim_start_matches('-').to_string()
}

/// 64-bit FNV-1a: a stable number from a name.
pub fn fnv1a_64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The same in 32 bits.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
