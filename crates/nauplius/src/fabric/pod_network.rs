//! How pods' packets get from node to node: routed, or through a tunnel; and how large they may be.
//!
//! Either way the Node objects say where each pod range is, and the kernel's tables are made so: for a node that comes,
//! goes or changes its address. Routing needs a network that delivers packets with pods' addresses between nodes, as one
//! link does; a tunnel needs none. A node that changes from one to the other leaves nothing of the first.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use client::Informers;
use k8s_openapi::api::core::v1::Node;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::netlink::Netlink;
use super::routes;
use super::vxlan::{self, Tunnel};

/// What a link holds when nobody can say: Ethernet's.
const USUAL_MTU: u32 = 1500;
/// The least a link must hold for IPv6, and the most there is.
const MTU_RANGE: std::ops::RangeInclusive<i64> = 1280..=65_535;

/// Which way.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodNetwork {
    /// By the nodes' addresses: they are on one link, or what is between them knows where pods are.
    #[default]
    Routes,
    /// In UDP between the nodes' addresses, whatever is between them.
    Vxlan,
}

/// What all parts of the pod network are told.
#[derive(clap::Args, Clone, Debug, Default, Serialize, Deserialize)]
pub struct PodNetworkOptions {
    /// How pods' packets get to other nodes; the same on all nodes.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub pod_network: PodNetwork,
    /// The largest packet of pods in bytes [default: that of the link between nodes, less what a tunnel adds].
    #[arg(long, value_parser = clap::value_parser!(u32).range(MTU_RANGE))]
    #[serde(default)]
    pub pod_mtu: Option<u32>,
    /// The tunnel's number [default: 7846]; clusters that share a network need different ones.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    #[serde(default)]
    pub vxlan_id: Option<u32>,
}

/// The largest packet pods may send from here, a node with one of these addresses; without any known, from the link of the
/// default route.
pub fn pod_mtu(options: &PodNetworkOptions, addresses: &[IpAddr]) -> io::Result<u32> {
    if let Some(mtu) = options.pod_mtu {
        return Ok(mtu);
    }
    let mut netlink = Netlink::here()?;
    let below = match addresses.first() {
        Some(address) => netlink.mtu_of_address(*address)?,
        None => netlink.mtu_of_default_route()?,
    };
    let added = match (options.pod_network, addresses.first()) {
        (PodNetwork::Routes, _) => 0,
        (PodNetwork::Vxlan, Some(address)) => vxlan::overhead(*address),
        // Whichever family it will be.
        (PodNetwork::Vxlan, None) => vxlan::overhead(IpAddr::from([0u16; 8])),
    };
    Ok(below.unwrap_or(USUAL_MTU).saturating_sub(added))
}

/// Keeps the ways from this node to all others right, in the calling thread's namespace, until cancelled.
pub async fn pod_network(
    options: &PodNetworkOptions,
    informers: Arc<Informers>,
    own_node: &str,
    cancel: CancellationToken,
) -> io::Result<()> {
    if options.pod_network == PodNetwork::Vxlan {
        super::sysctl(super::FORWARD_LEARNT_MTU.0, super::FORWARD_LEARNT_MTU.1);
    }
    let mut netlink = Netlink::here()?;
    routes::follow(informers, cancel, |nodes| update(&mut netlink, options, own_node, nodes)).await
}

/// Makes the kernel's tables as the Nodes say.
pub(super) fn update(
    netlink: &mut Netlink,
    options: &PodNetworkOptions,
    own_node: &str,
    nodes: &[Arc<Node>],
) -> io::Result<()> {
    let (own, others): (Vec<&Node>, Vec<&Node>) =
        nodes.iter().map(|node| &**node).partition(|node| node.metadata.name.as_deref() == Some(own_node));
    let wanted = match options.pod_network {
        PodNetwork::Routes => {
            vxlan::remove(netlink)?;
            others.iter().flat_map(|node| routes::routes_to(node)).collect()
        }
        PodNetwork::Vxlan => match own.first().and_then(|own| Tunnel::plan(own, others.iter().copied())) {
            Some(tunnel) => tunnel.reconcile(netlink, options.vxlan_id.unwrap_or(vxlan::NUMBER), options.pod_mtu)?,
            // Before the kubelet has said who this is; the next change of Nodes tells.
            None => return Ok(()),
        },
    };
    routes::reconcile(netlink, &wanted)
}
