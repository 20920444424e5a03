//! Pod addresses for nodes: each node gets a block of every cluster network.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::plan::{Action, Note, Plan};
use crate::runner::{Controller, own_key};
use crate::{Context, decoded};

/// Blocks looked at for a free one; 2²⁰ nodes are beyond any cluster.
const MAX_BLOCKS: u64 = 1 << 20;

fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The n-th block of a prefix length; `None` past the last.
fn block(of: &IpNet, prefix: u8, n: u64) -> Option<IpNet> {
    let bits = prefix.checked_sub(of.prefix_len())?;
    if bits < 64 && n >= 1 << bits {
        return None;
    }
    match of.network() {
        IpAddr::V4(base) => {
            let shift = 32u32.checked_sub(u32::from(prefix))?;
            let offset = u32::try_from(n).ok()?.checked_shl(shift).unwrap_or(0);
            Some(Ipv4Net::new((u32::from(base) + offset).into(), prefix).ok()?.into())
        }
        IpAddr::V6(base) => {
            let shift = 128u32.checked_sub(u32::from(prefix))?;
            let offset = u128::from(n).checked_shl(shift).unwrap_or(0);
            Some(Ipv6Net::new((u128::from(base) + offset).into(), prefix).ok()?.into())
        }
    }
}

/// The first block of a network that overlaps nothing in use.
pub fn free_block(network: &IpNet, prefix: u8, used: &[IpNet]) -> Option<IpNet> {
    (0..MAX_BLOCKS).map_while(|n| block(network, prefix, n)).find(|b| !used.iter().any(|u| overlaps(u, b)))
}

pub fn node_ipam(cx: &Context) -> Controller {
    let all_nodes = cx.informers.get::<Node>();
    let (of, options) = (all_nodes.clone(), cx.options.clone());
    // What was given out and may not be seen yet. One key at a time, so nothing is given twice.
    let given: Mutex<HashMap<String, Vec<IpNet>>> = Mutex::default();
    Controller::new("node-ipam-controller", move |ask| {
        let mut plan = Plan::nothing();
        if !options.allocate_node_cidrs || options.cluster_cidrs.is_empty() {
            return Ok(plan);
        }
        let mut given = given.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(object) = of.get(&ask.key) else {
            given.remove(&*ask.key);
            return Ok(plan);
        };
        let node = decoded::<Node>(&object)?;
        if node.spec.as_ref().and_then(|s| s.pod_cidr.as_deref()).is_some_and(|c| !c.is_empty()) {
            given.remove(&*ask.key);
            return Ok(plan);
        }
        let mut used = options.service_cidrs.clone();
        for other in of.list(None) {
            let other = decoded::<Node>(&other)?;
            used.extend(
                other.spec.iter().flat_map(|s| s.pod_cidrs.iter().flatten()).filter_map(|c| c.parse::<IpNet>().ok()),
            );
        }
        used.extend(given.iter().filter(|(name, _)| **name != *ask.key).flat_map(|(_, blocks)| blocks.clone()));
        let prefix = |net: &IpNet| match net {
            IpNet::V4(_) => options.node_cidr_mask_size_ipv4.max(net.prefix_len()),
            IpNet::V6(_) => options.node_cidr_mask_size_ipv6.max(net.prefix_len()),
        };
        let blocks = given
            .get(&*ask.key)
            .cloned()
            .or_else(|| options.cluster_cidrs.iter().map(|net| free_block(net, prefix(net), &used)).collect());
        let Some(blocks) = blocks else {
            let said = format!("Node {} status is now: CIDRNotAvailable", object.meta.name);
            plan.note(Note::normal(&object, "CIDRNotAvailable", said));
            plan.again_after(std::time::Duration::from_secs(30));
            return Ok(plan);
        };
        given.insert(ask.key.to_string(), blocks.clone());
        let texts: Vec<String> = blocks.iter().map(ToString::to_string).collect();
        let patch =
            json!({"metadata": {"uid": &*object.meta.uid}, "spec": {"podCIDR": texts.first(), "podCIDRs": texts}});
        plan.act(Action::patch(&client::gvr_of::<Node>(), &object, "", client::Patch::Merge(patch)));
        Ok(plan)
    })
    .watch(&all_nodes, own_key)
    .workers(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks() {
        let net = |t: &str| t.parse::<IpNet>().unwrap();
        for (network, prefix, used, expect) in [
            ("10.42.0.0/16", 24, &[][..], Some("10.42.0.0/24")),
            ("10.42.0.0/16", 24, &["10.42.0.0/24", "10.42.1.0/24", "10.42.3.0/24"][..], Some("10.42.2.0/24")),
            ("10.42.0.0/24", 24, &["10.42.0.0/24"][..], None),
            ("10.42.0.0/16", 24, &["10.42.0.0/17"][..], Some("10.42.128.0/24")),
            ("fd00:1::/48", 64, &["fd00:1::/64"][..], Some("fd00:1:0:1::/64")),
        ] {
            let used: Vec<IpNet> = used.iter().map(|u| net(u)).collect();
            assert_eq!(free_block(&net(network), prefix, &used), expect.map(net), "{network} {used:?}");
        }
    }
}
