//! The address ranges that every part of a cluster agrees on: read, and checked against one another.
//!
//! One range of each kind, or two: one of each address family, the first one leading. It guarantees that ranges which pass
//! [`Ranges::check`] can carry a cluster of that many nodes. It does not know who hands the addresses out.

use std::net::IpAddr;

use anyhow::{Result, bail};
use ipnet::IpNet;

/// Each node's pods get a range of this prefix length, as the node IPAM controller cuts them: IPv4, IPv6.
const NODE_RANGE_BITS: [u8; 2] = [24, 64];
/// The longest prefix of a service range: it must hold `kubernetes` (.1), DNS (.10) and something else.
const LONGEST_SERVICE_PREFIX: [u8; 2] = [28, 124];
/// Longer than the node's prefix by more than this and the range is refused, as by upstream: the map of blocks.
const MAX_BLOCK_BITS: u8 = 16;
/// The tenth address of the services' range is the name server's.
const DNS_OFFSET: u128 = 10;

/// Ranges every part of a cluster agrees on.
#[derive(clap::Args, Clone, Debug)]
pub struct Ranges {
    /// Services' addresses: a range, or two joined by a comma, one of each address family.
    #[arg(long, alias = "service-cidr", value_delimiter = ',', default_value = "10.96.0.0/12", value_parser = parse)]
    pub service_cluster_ip_range: Vec<IpNet>,
    /// Pods' addresses, likewise.
    #[arg(long, alias = "pod-network-cidr", value_delimiter = ',', default_value = "10.244.0.0/16", value_parser = parse)]
    pub cluster_cidr: Vec<IpNet>,
}

fn parse(text: &str) -> Result<IpNet, String> {
    text.trim().parse().map(|net: IpNet| net.trunc()).map_err(|_| {
        format!("{text:?} is no range of addresses: write an address and a prefix length, such as 10.244.0.0/16 or fd00:10:244::/56")
    })
}

/// As the flag takes them.
pub fn joined(ranges: &[IpNet]) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn family(range: &IpNet) -> usize {
    usize::from(range.addr().is_ipv6())
}

fn nth(range: &IpNet, number: u128) -> IpAddr {
    match range.network() {
        IpAddr::V4(base) => IpAddr::V4(u32::from(base).wrapping_add(number as u32).into()),
        IpAddr::V6(base) => IpAddr::V6(u128::from(base).wrapping_add(number).into()),
    }
}

impl Ranges {
    /// The cluster's name server: the tenth address of each service range.
    pub fn dns(&self) -> Vec<IpAddr> {
        self.service_cluster_ip_range.iter().map(|range| nth(range, DNS_OFFSET)).collect()
    }

    /// The `kubernetes` Service.
    pub fn kubernetes(&self) -> Vec<IpAddr> {
        self.service_cluster_ip_range.iter().take(1).map(|range| nth(range, 1)).collect()
    }

    /// Whether a cluster of so many nodes, whose own addresses lie in `node_networks`, can have these ranges.
    pub fn check(&self, nodes: u32, node_networks: &[IpNet]) -> Result<()> {
        let (services, pods) = (&self.service_cluster_ip_range, &self.cluster_cidr);
        for (flag, ranges) in [("--service-cluster-ip-range", services), ("--cluster-cidr", pods)] {
            let ([_] | [_, _]) = ranges.as_slice() else { bail!("{flag} takes one range or two") };
            if ranges.len() == 2 && family(&ranges[0]) == family(&ranges[1]) {
                bail!("{flag} {}: two ranges must be one of IPv4 and one of IPv6", joined(ranges));
            }
        }
        if !services.iter().all(|range| pods.iter().any(|pods| family(pods) == family(range))) {
            bail!(
                "--service-cluster-ip-range {} has an address family that --cluster-cidr {} has not: Services would lead nowhere",
                joined(services),
                joined(pods)
            );
        }
        if family(&services[0]) != family(&pods[0]) {
            bail!("--service-cluster-ip-range and --cluster-cidr must name the same address family first");
        }
        for services in services {
            let longest = LONGEST_SERVICE_PREFIX[family(services)];
            if services.prefix_len() > longest {
                bail!(
                    "--service-cluster-ip-range {services} is too small for the cluster's own Services: use a prefix length of {longest} or less"
                );
            }
        }
        for pods in pods {
            let bits = NODE_RANGE_BITS[family(pods)];
            let room = bits.checked_sub(pods.prefix_len()).map_or(0, |bits| 1_u64 << bits.min(31));
            if room < u64::from(nodes) {
                bail!(
                    "--cluster-cidr {pods} holds {room} pod ranges of /{bits}, one a node, and there are to be {nodes} nodes: use a shorter prefix"
                );
            }
            if family(pods) == 1 && bits - pods.prefix_len().min(bits) > MAX_BLOCK_BITS {
                bail!(
                    "--cluster-cidr {pods} is larger than a cluster could use: use a prefix length of {} or more",
                    bits - MAX_BLOCK_BITS
                );
            }
        }
        let named: Vec<(&str, IpNet)> = services
            .iter()
            .map(|range| ("--service-cluster-ip-range", *range))
            .chain(pods.iter().map(|range| ("--cluster-cidr", *range)))
            .chain(node_networks.iter().map(|range| ("the nodes' own network", *range)))
            .collect();
        for (at, (name, range)) in named.iter().enumerate() {
            if let Some(problem) = stays_here(name, range) {
                bail!(problem);
            }
            for (other, taken) in &named[at + 1..] {
                if range.contains(taken) || taken.contains(range) {
                    bail!("{name} {range} and {other} {taken} overlap: choose ranges that have no address in common");
                }
            }
        }
        Ok(())
    }
}

/// IPv6 has room for addresses that are nobody else's: the cluster takes no others.
fn stays_here(name: &str, range: &IpNet) -> Option<String> {
    let IpNet::V6(v6) = range else { return None };
    let unique_local = v6.addr().octets()[0] & 0xfe == 0xfc && v6.prefix_len() >= 7;
    (!unique_local).then(|| format!("{name} {range}: use unique local addresses for IPv6, such as fd00:10:244::/56"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(services: &str, pods: &str, nodes: u32, expected: Result<(), &str>) {
        let read = |text: &str| text.split(',').map(|one| parse(one).unwrap()).collect();
        let ranges = Ranges { service_cluster_ip_range: read(services), cluster_cidr: read(pods) };
        let own = ["10.245.0.0/24".parse().unwrap(), "fd0a:245::/64".parse().unwrap()];
        let found = ranges.check(nodes, &own).map_err(|e| e.to_string());
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

    #[test]
    fn ranges_of_two_families() {
        check("10.96.0.0/12,fd96::/112", "10.244.0.0/16,fd44::/56", 100, Ok(()));
        check("fd96::/112", "fd44::/56", 1, Ok(()));
        check("10.96.0.0/12", "10.244.0.0/16,fd44::/56", 1, Ok(()));
        check("10.96.0.0/12,fd96::/112", "10.244.0.0/16", 1, Err("Services would lead nowhere"));
        check("fd96::/112,10.96.0.0/12", "10.244.0.0/16,fd44::/56", 1, Err("the same address family first"));
        check("10.96.0.0/12,10.9.0.0/16", "10.244.0.0/16", 1, Err("one of IPv4 and one of IPv6"));
        check("fd96::/112", "fd44::/64", 2, Err("holds 1 pod ranges of /64"));
        check("fd96::/112", "fd44::/32", 2, Err("use a prefix length of 48 or more"));
        check("fd96::/125", "fd44::/56", 1, Err("too small"));
        check("2001:db8::/112", "fd44::/56", 1, Err("unique local"));
        check("fd96::/112", "fd0a:245::/56", 1, Err("overlap"));
    }

    #[test]
    fn well_known_addresses() {
        let ranges = Ranges {
            service_cluster_ip_range: vec!["10.96.0.0/12".parse().unwrap(), "fd96::/112".parse().unwrap()],
            cluster_cidr: Vec::new(),
        };
        let text = |all: Vec<IpAddr>| all.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!((text(ranges.dns()), text(ranges.kubernetes())), ("10.96.0.10 fd96::a".into(), "10.96.0.1".into()));
    }
}
