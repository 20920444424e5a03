//! The cluster's network on one machine: a namespace that holds a bridge, and a namespace a node on that bridge.
//!
//! ```text
//!   host namespace            only `unreachable` routes for the cluster's ranges: nothing of it leaves the machine
//!   namespace CLUSTER         bridge `fabric`, 10.245.0.1/24: the control plane's address for nodes and pods
//!     ├─ node-1 ── eth0  namespace CLUSTER-node-1   10.245.0.11/24   pods 10.244.?.0/24 behind it
//!     └─ node-2 ── eth0  namespace CLUSTER-node-2   10.245.0.12/24
//! ```
//!
//! Guarantees: [`Fabric::ensure`] may be called any number of times and finds what is there; [`Fabric::remove`] takes
//! away exactly what `ensure` made for that cluster name, also after a crash half-way; several clusters coexist. The
//! fabric has no uplink: a packet for an address outside it is answered "network unreachable" at the bridge.
//!
//! It does not know what runs in the namespaces, which node has which pod range ([`routes`] follows the Node objects),
//! or who listens on what.

mod namespace;
mod netlink;
mod nodeports;
mod routes;
#[cfg(test)]
mod tests;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;

pub use namespace::{connect_in, enter, listen_in, within};
use netlink::{Netlink, Route};
pub use nodeports::publish_node_ports;
pub use routes::{routes, routes_in};

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
    /// Cut into one range a node by the node IPAM controller; here it only must not leave the machine.
    pub pod_network: Ipv4Net,
    /// Cluster IPs; likewise.
    pub service_network: Ipv4Net,
    /// Addresses for Services of type LoadBalancer; likewise.
    pub balancer_network: Ipv4Net,
}

impl Layout {
    /// The usual ranges.
    pub fn new(cluster: impl Into<String>, nodes: u32) -> Layout {
        Layout {
            cluster: cluster.into(),
            nodes,
            node_network: Ipv4Net::new_assert(Ipv4Addr::new(10, 245, 0, 0), 24),
            pod_network: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16),
            service_network: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12),
            balancer_network: Ipv4Net::new_assert(Ipv4Addr::new(10, 245, 1, 0), 24),
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

    /// The control plane's address on the fabric.
    pub fn control_plane_address(&self) -> Ipv4Addr {
        host(self.node_network, 1)
    }

    /// Node `n`'s address.
    pub fn node_address(&self, n: u32) -> Ipv4Addr {
        host(self.node_network, NODE_OFFSET + n)
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

    /// The routes that keep the cluster's ranges on this machine.
    fn host_routes(&self) -> Vec<Route> {
        let metric = HOST_METRIC | (fnv1a(self.cluster.as_bytes()) & 0x00ff_ffff);
        [self.pod_network, self.service_network, self.node_network, self.balancer_network]
            .map(|destination| Route { destination: destination.trunc(), gateway: None, metric })
            .to_vec()
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
                    let present = netlink.routes()?;
                    layout
                        .host_routes()
                        .iter()
                        .filter(|r| present.contains(r))
                        .try_for_each(|r| netlink.delete_route(r))
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
    let address = Ipv4Net::new_assert(layout.control_plane_address(), layout.node_network.prefix_len());
    netlink.add_address(bridge, address)?;
    let nowhere = Route { destination: Ipv4Net::default(), gateway: None, metric: 0 };
    netlink.replace_route(&nowhere)?;
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
    netlink.add_address(uplink, Ipv4Net::new_assert(layout.node_address(n), layout.node_network.prefix_len()))?;
    netlink.set_up(uplink)?;
    let out = Route { destination: Ipv4Net::default(), gateway: Some(layout.control_plane_address()), metric: 0 };
    netlink.replace_route(&out)
}

/// What a node needs of its kernel: forwarding between pods and the bridge, bridged pod traffic seen by the proxy's
/// rules, connections kept through address rewriting even when segments arrive late, and no source check that would
/// drop a rewritten reply.
const NODE_SYSCTLS: [(&str, &str); 9] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/bridge/bridge-nf-call-iptables", "1"),
    ("net/bridge/bridge-nf-call-ip6tables", "1"),
    ("net/netfilter/nf_conntrack_tcp_be_liberal", "1"),
    // A crowded node's pods close many short connections: let the table forget them sooner than in two minutes.
    ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "30"),
];

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

fn host(network: Ipv4Net, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.network()).wrapping_add(n))
}

/// 32-bit FNV-1a: a stable number from a name.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
