//! The built-in network: one bridge a node, one veth pair a pod.
//!
//! Pods reach each other through the bridge and everything else through its address, which is their gateway. Routes
//! between nodes and Services are others' business.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::ipam::Ipam;
use super::netlink::Netlink;

/// The interface's name in a pod.
pub const POD_INTERFACE: &str = "eth0";

/// The node's end of a pod's link. Names may have 15 characters.
pub fn host_interface(sandbox: &str) -> String {
    format!("veth{}", &sandbox[..sandbox.len().min(11)])
}

/// Makes the bridge if need be and returns its number.
pub fn ensure(netlink: &mut Netlink, name: &str, pools: &[Arc<Ipam>]) -> Result<u32> {
    let find = |netlink: &mut Netlink| -> io::Result<u32> {
        netlink.link(name)?.map(|l| l.index).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    };
    if netlink.link(name)?.is_none() {
        netlink.add_bridge(name).with_context(|| format!("creating bridge {name}"))?;
        let index = find(netlink)?;
        // A fixed address: a bridge otherwise takes its lowest port's, and pods' neighbour tables would go stale.
        if let Some(pool) = pools.first() {
            let [a, b, c, d] = match pool.gateway() {
                IpAddr::V4(v4) => v4.octets(),
                // The network's own part: the rest is the same on every node.
                IpAddr::V6(v6) => v6.octets().last_chunk::<12>().map_or([0; 4], |o| [o[0], o[1], o[2], o[3]]),
            };
            netlink.set_address(index, &[0x0a, 0x58, a, b, c, d]).context("setting the bridge's hardware address")?;
        }
    }
    let index = find(netlink).with_context(|| format!("bridge {name}"))?;
    for pool in pools {
        let prefix = pool.range().prefix_len();
        netlink.add_address(index, pool.gateway(), prefix).context("giving the bridge its address")?;
        // Forwarding is per network namespace, and this process is in its node's.
        let forward = if pool.gateway().is_ipv4() { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" };
        if let Err(error) = std::fs::write(format!("/proc/sys/net/{forward}"), "1") {
            tracing::warn!(%error, "cannot turn on IP forwarding; pods reach only their own node");
        }
    }
    netlink.set_up(index).context("bringing the bridge up")?;
    Ok(index)
}

/// A pod's hardware address, told by its own: who knew the pod that had this address before finds the one that has it now.
/// A random one would leave neighbour tables wrong for seconds, longer than a probe waits.
fn hardware_address(address: IpAddr) -> [u8; 6] {
    let [a, b, c, d] = match address {
        IpAddr::V4(v4) => v4.octets(),
        // The end's own part: what precedes it is the same for all pods of a node.
        IpAddr::V6(v6) => v6.octets().last_chunk::<4>().copied().unwrap_or_default(),
    };
    [0x0a, 0x58, a, b, c, d]
}

/// Connects a pod by a link of this largest packet, and returns its addresses, one of each pool.
pub fn attach(
    netlink: &mut Netlink,
    (bridge, mtu): (u32, u32),
    pools: &[Arc<Ipam>],
    sandbox: &str,
    namespace: &OwnedFd,
) -> Result<Vec<IpAddr>> {
    let addresses = Ipam::allocate_all(pools, sandbox).context("allocating an address")?;
    let name = host_interface(sandbox);
    netlink.delete_link(&name)?;
    netlink.add_veth(&name, bridge, POD_INTERFACE, namespace.as_raw_fd(), mtu).context("creating a veth pair")?;
    let port = netlink.link(&name)?.map(|l| l.index).context("the veth pair has vanished")?;
    netlink.set_hairpin(port).context("setting hairpin mode")?;
    let mut inside = Netlink::open_in(std::os::fd::AsFd::as_fd(namespace)).context("entering the pod's network")?;
    let eth0 = inside.link(POD_INTERFACE)?.context("the pod's interface has vanished")?.index;
    // Of IPv4 where there is both: the addresses of the other family go along with these.
    if let Some(told_by) = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()) {
        inside.set_address(eth0, &hardware_address(*told_by)).context("setting the pod's hardware address")?;
    }
    for (pool, address) in pools.iter().zip(&addresses) {
        let prefix = pool.range().prefix_len();
        inside.add_address(eth0, *address, prefix).context("giving the pod its address")?;
    }
    inside.set_up(eth0).context("bringing the pod's interface up")?;
    for pool in pools {
        inside.add_default_route(pool.gateway(), eth0).context("giving the pod its default route")?;
    }
    Ok(addresses)
}

/// Brings a namespace's loopback interface up.
pub fn loopback(namespace: &OwnedFd) -> Result<()> {
    let mut inside = Netlink::open_in(std::os::fd::AsFd::as_fd(namespace)).context("entering the pod's network")?;
    let lo = inside.link("lo")?.context("no loopback interface")?.index;
    inside.set_up(lo).context("bringing loopback up")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_follow_addresses() {
        for (address, expect) in
            [("10.244.1.51", [0x0a, 0x58, 10, 244, 1, 51]), ("fd00::1:51", [0x0a, 0x58, 0, 1, 0, 0x51])]
        {
            assert_eq!(hardware_address(address.parse().expect("an address")), expect, "{address}");
        }
    }
}
