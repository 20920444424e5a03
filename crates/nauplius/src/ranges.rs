//! The address ranges that every part of a cluster agrees on: read, and checked against one another.
//!
//! It guarantees that ranges which pass [`Ranges::check`] can carry a cluster of that many nodes. It does not know who
//! hands the addresses out.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, bail};
use ipnet::Ipv4Net;

/// Each node's pods get a range of this prefix length, as the node IPAM controller cuts them.
const NODE_RANGE_BITS: u8 = 24;
/// The longest prefix of a service range: it must hold `kubernetes` (.1), DNS (.10) and something else.
const LONGEST_SERVICE_PREFIX: u8 = 28;

/// Ranges every part of a cluster agrees on.
#[derive(clap::Args, Clone, Debug)]
pub struct Ranges {
    #[arg(long, default_value = "10.96.0.0/12", value_parser = parse)]
    pub service_cluster_ip_range: Ipv4Net,
    #[arg(long, default_value = "10.244.0.0/16", value_parser = parse)]
    pub cluster_cidr: Ipv4Net,
}

fn parse(text: &str) -> Result<Ipv4Net, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is no IPv4 range: write an address and a prefix length of 0 to 32, such as 10.244.0.0/16")
    })
}

impl Ranges {
    /// The cluster's name server: the service range's tenth address.
    pub fn dns(&self) -> IpAddr {
        Ipv4Addr::from(u32::from(self.service_cluster_ip_range.network()) + 10).into()
    }

    /// The `kubernetes` Service.
    pub fn kubernetes(&self) -> IpAddr {
        Ipv4Addr::from(u32::from(self.service_cluster_ip_range.network()) + 1).into()
    }

    /// Whether a cluster of so many nodes, whose own addresses lie in `node_network`, can have these ranges.
    pub fn check(&self, nodes: u32, node_network: Ipv4Net) -> Result<()> {
        let (services, pods) = (self.service_cluster_ip_range, self.cluster_cidr);
        if services.prefix_len() > LONGEST_SERVICE_PREFIX {
            bail!(
                "--service-cluster-ip-range {services} is too small for the cluster's own Services: use a prefix length of {LONGEST_SERVICE_PREFIX} or less"
            );
        }
        let room = u64::from(NODE_RANGE_BITS.checked_sub(pods.prefix_len()).map_or(0, |bits| 1_u32 << bits.min(31)));
        if room < u64::from(nodes) {
            bail!(
                "--cluster-cidr {pods} holds {room} pod ranges of /{NODE_RANGE_BITS}, one a node, and there are to be {nodes} nodes: use a shorter prefix"
            );
        }
        let named = [
            ("--service-cluster-ip-range", services),
            ("--cluster-cidr", pods),
            ("the nodes' own network", node_network),
        ];
        for (at, (name, range)) in named.iter().enumerate() {
            for (other, taken) in &named[at + 1..] {
                if range.contains(taken) || taken.contains(range) {
                    bail!("{name} {range} and {other} {taken} overlap: choose ranges that have no address in common");
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(services: &str, pods: &str, nodes: u32, expected: Result<(), &str>) {
        let ranges =
            Ranges { service_cluster_ip_range: services.parse().unwrap(), cluster_cidr: pods.parse().unwrap() };
        let found = ranges.check(nodes, "10.245.0.0/24".parse().unwrap()).map_err(|e| e.to_string());
        match expected {
            Ok(()) => assert_eq!(found, Ok(())),
            Err(part) => assert!(found.as_ref().is_err_and(|e| e.contains(part)), "{found:?}"),
        }
    }

    #[test]
    fn ranges_that_cannot_be() {
        check("10.96.0.0/12", "10.244.0.0/16", 100, Ok(()));
        check("10.96.0.0/28", "10.244.0.0/24", 1, Ok(()));
        check("10.96.0.0/29", "10.244.0.0/16", 1, Err("too small"));
        check("10.96.0.0/12", "10.244.0.0/24", 2, Err("holds 1 pod ranges"));
        check("10.96.0.0/12", "10.244.0.0/25", 1, Err("holds 0 pod ranges"));
        check("10.96.0.0/12", "10.100.0.0/16", 1, Err("overlap"));
        check("10.96.0.0/12", "10.0.0.0/8", 1, Err("overlap"));
        check("10.245.0.0/24", "10.244.0.0/16", 1, Err("the nodes' own network"));
        check("10.96.0.0/12", "0.0.0.0/0", 1, Err("overlap"));
    }
}
