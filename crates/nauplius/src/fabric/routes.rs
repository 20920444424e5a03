//! Routes to the pods of other nodes, as the Node objects say.
//!
//! Each node's pod range is reached through the node's address, or what a tunnel puts in its place. Only routes with our
//! mark are added or removed. It does not know who hands out the ranges.

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

/// How often the kernel's tables are compared although no Node changed: what somebody else took away comes back then.
const RECHECK: Duration = Duration::from_secs(30);
/// A shorter prefix than this is no pod range: it would take over traffic that is none of the cluster's. One for each
/// family.
const WIDEST_POD_RANGE_BITS: [u8; 2] = [8, 32];

/// Keeps the routes of the namespace with the bridge right until cancelled, so that the control plane reaches pods; and load
/// balancers' addresses through a node that is Ready, whose proxy knows them.
pub async fn routes_in(
    informers: Arc<Informers>,
    namespace: &Path,
    balancers: Vec<IpNet>,
    cancel: CancellationToken,
) -> io::Result<()> {
    let mut netlink = namespace::within(namespace, Netlink::here)?;
    follow(informers, cancel, |nodes| {
        let mut wanted: BTreeSet<Route> = nodes.iter().flat_map(|node| routes_to(node)).collect();
        wanted.extend(balancers.iter().filter_map(|net| to_balancers(nodes.iter().map(|node| &**node), *net)));
        reconcile(&mut netlink, &wanted)
    })
    .await
}

/// Has the kernel's tables brought up to date whenever a Node changed, and from time to time, until cancelled.
pub(super) async fn follow(
    informers: Arc<Informers>,
    cancel: CancellationToken,
    mut update: impl FnMut(&[Arc<Node>]) -> io::Result<()>,
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
        let all: Vec<Arc<Node>> = nodes.list(None).iter().filter_map(|object| object.typed::<Node>().ok()).collect();
        if let Err(error) = update(&all) {
            tracing::warn!("cannot bring the ways to other nodes up to date: {error}");
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
    let addressed = |node: &'a Node| Some((node.metadata.name.as_deref()?, address_for(node, net)?));
    let (_, gateway) = nodes.filter(ready).filter_map(addressed).min()?;
    Some(Route::to(net.trunc(), Some(gateway)))
}

/// The node's address of a range's family.
fn address_for(node: &Node, range: IpNet) -> Option<IpAddr> {
    internal_address(node, |address| address.is_ipv4() == range.addr().is_ipv4())
}

/// The node's first internal address that is wanted.
pub(super) fn internal_address(node: &Node, wanted: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let mut internal = addresses.filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse::<IpAddr>().ok());
    internal.find(wanted)
}

/// The ranges of one node's pods.
pub(super) fn pod_ranges(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let ranges = match &spec.pod_cidrs {
        Some(ranges) if !ranges.is_empty() => ranges.clone(),
        _ => spec.pod_cidr.iter().cloned().collect(),
    };
    let parsed = ranges.iter().filter_map(|range| range.parse::<IpNet>().ok()).map(|range| range.trunc());
    parsed.filter(|range| range.prefix_len() >= WIDEST_POD_RANGE_BITS[usize::from(range.addr().is_ipv6())]).collect()
}

/// The routes that lead to one node's pods through its address.
pub(super) fn routes_to(node: &Node) -> Vec<Route> {
    let route = |range: IpNet| Some(Route::to(range, Some(address_for(node, range)?)));
    pod_ranges(node).into_iter().filter_map(route).collect()
}

/// Makes the kernel's marked routes equal to `wanted`; the default route is not ours to judge here. Every route is
/// tried; the first failure is reported.
pub(super) fn reconcile(netlink: &mut Netlink, wanted: &BTreeSet<Route>) -> io::Result<()> {
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
