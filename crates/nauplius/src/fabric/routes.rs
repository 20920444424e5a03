//! Routes to the pods of other nodes, kept as the Node objects say.
//!
//! Each node's pod range is reached through the node's address. Only routes with our mark are added or removed, and what
//! somebody else took away comes back within [`RECHECK`]. It does not know who hands out the ranges.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use client::Informers;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use tokio_util::sync::CancellationToken;

use super::namespace;
use super::netlink::{Netlink, Route};

/// How often the kernel's routes are compared although no Node changed.
const RECHECK: Duration = Duration::from_secs(30);
/// A shorter prefix than this is no pod range: it would take over traffic that is none of the cluster's. One for each
/// family.
const WIDEST_POD_RANGE_BITS: [u8; 2] = [8, 32];

/// Keeps the routes of the calling thread's namespace right until cancelled. `own_node` is the node that lives here.
pub async fn routes(informers: Arc<Informers>, own_node: &str, cancel: CancellationToken) -> io::Result<()> {
    follow(Netlink::here()?, informers, own_node, Vec::new(), cancel).await
}

/// As [`routes`], for the namespace with the bridge, so that the control plane reaches pods; and load balancers' addresses
/// through a node that is Ready, whose proxy knows them.
pub async fn routes_in(
    informers: Arc<Informers>,
    namespace: &Path,
    balancers: Vec<IpNet>,
    cancel: CancellationToken,
) -> io::Result<()> {
    follow(namespace::within(namespace, Netlink::here)?, informers, "", balancers, cancel).await
}

async fn follow(
    mut netlink: Netlink,
    informers: Arc<Informers>,
    own: &str,
    balancers: Vec<IpNet>,
    cancel: CancellationToken,
) -> io::Result<()> {
    let nodes = informers.get::<Node>();
    let mut changes = nodes.subscribe();
    tokio::select! {
        () = cancel.cancelled() => return Ok(()),
        () = nodes.synced() => {}
    }
    let mut recheck = tokio::time::interval(RECHECK);
    recheck.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let others: Vec<Arc<Node>> = nodes
            .list(None)
            .iter()
            .filter(|object| &*object.meta.name != own)
            .filter_map(|object| object.typed::<Node>().ok())
            .collect();
        let mut wanted: BTreeSet<Route> = others.iter().flat_map(|node| routes_to(node)).collect();
        wanted.extend(balancers.iter().filter_map(|net| to_balancers(others.iter().map(|node| &**node), *net)));
        if let Err(error) = reconcile(&mut netlink, &wanted) {
            tracing::warn!("cannot bring the routes to other nodes up to date: {error}");
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            changed = changes.next() => if changed.is_none() { return Ok(()) },
            _ = recheck.tick() => {}
        }
    }
}

/// The route to load balancers' addresses: through the first Ready node by name.
pub(super) fn to_balancers<'a>(nodes: impl Iterator<Item = &'a Node>, net: IpNet) -> Option<Route> {
    let ready = |node: &&Node| {
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let addressed = |node: &'a Node| Some((node.metadata.name.as_deref()?, internal_address(node, net)?));
    let (_, gateway) = nodes.filter(ready).filter_map(addressed).min()?;
    Some(Route { destination: net.trunc(), gateway: Some(gateway), metric: 0 })
}

/// The node's address of a range's family.
fn internal_address(node: &Node, range: IpNet) -> Option<IpAddr> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let mut internal = addresses.filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse::<IpAddr>().ok());
    internal.find(|address| address.is_ipv4() == range.addr().is_ipv4())
}

/// The routes that lead to one node's pods.
pub(super) fn routes_to(node: &Node) -> Vec<Route> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let ranges = match &spec.pod_cidrs {
        Some(ranges) if !ranges.is_empty() => ranges.clone(),
        _ => spec.pod_cidr.iter().cloned().collect(),
    };
    ranges
        .iter()
        .filter_map(|range| range.parse::<IpNet>().ok())
        .filter(|range| range.prefix_len() >= WIDEST_POD_RANGE_BITS[usize::from(range.addr().is_ipv6())])
        .filter_map(|range| {
            let gateway = internal_address(node, range)?;
            Some(Route { destination: range.trunc(), gateway: Some(gateway), metric: 0 })
        })
        .collect()
}

/// Makes the kernel's marked routes equal to `wanted`; the default route is not ours to judge here. Every route is
/// tried; the first failure is reported.
fn reconcile(netlink: &mut Netlink, wanted: &BTreeSet<Route>) -> io::Result<()> {
    let present: BTreeSet<Route> = netlink.routes()?.into_iter().filter(|r| r.destination.prefix_len() > 0).collect();
    let mut first = Ok(());
    for stale in present.difference(wanted) {
        first = first.and(netlink.delete_route(stale));
    }
    for missing in wanted.difference(&present) {
        first = first.and(netlink.replace_route(missing));
    }
    first
}
