//! Pod addresses for nodes: each node gets a block of every cluster network.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::plan::{Action, Note, Plan};
use crate::runner::{Controller, own_key};
use crate::{Context, decoded};

/// Blocks of one network that are looked at; 2²⁰ nodes are beyond any cluster.
const MAX_BLOCKS: u64 = 1 << 20;
/// Nodes given addresses at once.
const WORKERS: usize = 8;

fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Which blocks of one network are taken. Taking the first free one does not look at all those before it.
struct Blocks {
    network: IpNet,
    prefix: u8,
    taken: HashSet<u64>,
    /// No block before this one is free.
    first_free: u64,
}

impl Blocks {
    fn new(network: IpNet, prefix: u8) -> Self {
        Self { network, prefix: prefix.max(network.prefix_len()), taken: HashSet::new(), first_free: 0 }
    }

    /// How many there are.
    fn count(&self) -> u64 {
        1u64.checked_shl(u32::from(self.prefix - self.network.prefix_len())).unwrap_or(MAX_BLOCKS).min(MAX_BLOCKS)
    }

    /// How far addresses are shifted in a block's number.
    fn shift(&self) -> u32 {
        u32::from(self.network.max_prefix_len() - self.prefix)
    }

    /// The n-th block.
    fn block(&self, n: u64) -> Option<IpNet> {
        let net: IpNet = match self.network.network() {
            IpAddr::V4(base) => {
                let offset = u32::try_from(n).ok()?.checked_shl(self.shift()).unwrap_or(0);
                Ipv4Net::new((u32::from(base) + offset).into(), self.prefix).ok()?.into()
            }
            IpAddr::V6(base) => {
                let offset = u128::from(n).checked_shl(self.shift()).unwrap_or(0);
                Ipv6Net::new((u128::from(base) + offset).into(), self.prefix).ok()?.into()
            }
        };
        Some(net)
    }

    /// The numbers of the blocks that a network covers some of.
    fn covered(&self, by: &IpNet) -> Range<u64> {
        if !overlaps(&self.network, by) {
            return 0..0;
        }
        if by.prefix_len() <= self.network.prefix_len() {
            return 0..self.count();
        }
        let offset = match (self.network.network(), by.network()) {
            (IpAddr::V4(base), IpAddr::V4(at)) => u128::from(u32::from(at) - u32::from(base)),
            (IpAddr::V6(base), IpAddr::V6(at)) => u128::from(at) - u128::from(base),
            _ => return 0..0,
        };
        let first = u64::try_from(offset.checked_shr(self.shift()).unwrap_or(0)).unwrap_or(u64::MAX);
        let blocks = 1u64.checked_shl(u32::from(self.prefix.saturating_sub(by.prefix_len()))).unwrap_or(MAX_BLOCKS);
        first.min(self.count())..first.saturating_add(blocks).min(self.count())
    }

    fn mark(&mut self, net: &IpNet, taken: bool) {
        let covered = self.covered(net);
        if taken {
            self.taken.extend(covered);
        } else {
            self.first_free = self.first_free.min(if covered.is_empty() { u64::MAX } else { covered.start });
            for n in covered {
                self.taken.remove(&n);
            }
        }
    }

    /// The first free block.
    fn free(&mut self) -> Option<IpNet> {
        while self.taken.contains(&self.first_free) {
            self.first_free += 1;
        }
        if self.first_free < self.count() { self.block(self.first_free) } else { None }
    }
}

/// Who has which blocks: what nodes say, and what was given out and may not be seen yet.
struct Book {
    networks: Vec<Blocks>,
    held: HashMap<String, Vec<IpNet>>,
}

impl Book {
    fn new(options: &crate::Options) -> Self {
        let prefix = |net: &IpNet| match net {
            IpNet::V4(_) => options.node_cidr_mask_size_ipv4,
            IpNet::V6(_) => options.node_cidr_mask_size_ipv6,
        };
        let mut networks: Vec<Blocks> =
            options.cluster_cidrs.iter().map(|net| Blocks::new(*net, prefix(net))).collect();
        for blocks in &mut networks {
            options.service_cidrs.iter().for_each(|net| blocks.mark(net, true));
        }
        Self { networks, held: HashMap::new() }
    }

    /// Notes what a node has; nothing: it is gone.
    fn hold(&mut self, node: &str, nets: Vec<IpNet>) {
        if self.held.get(node).map_or(nets.is_empty(), |known| *known == nets) {
            return;
        }
        let before = self.held.remove(node).unwrap_or_default();
        for blocks in &mut self.networks {
            before.iter().for_each(|net| blocks.mark(net, false));
            nets.iter().for_each(|net| blocks.mark(net, true));
        }
        if !nets.is_empty() {
            self.held.insert(node.into(), nets);
        }
    }

    /// A block of every network for a node, the same as before when asked again; `None`: one has no more.
    fn give(&mut self, node: &str) -> Option<Vec<IpNet>> {
        if let Some(known) = self.held.get(node) {
            return Some(known.clone());
        }
        let nets: Vec<IpNet> = self.networks.iter_mut().map(Blocks::free).collect::<Option<_>>()?;
        self.hold(node, nets.clone());
        Some(nets)
    }
}

fn has(node: &Node) -> Vec<IpNet> {
    let cidrs = node.spec.iter().flat_map(|s| s.pod_cidrs.iter().flatten());
    cidrs.filter_map(|c| c.parse().ok()).collect()
}

pub fn node_ipam(cx: &Context) -> Controller {
    let all_nodes = cx.informers.get::<Node>();
    let (of, options) = (all_nodes.clone(), cx.options.clone());
    // Filled from all nodes before the first is given anything.
    let book: Mutex<Option<Book>> = Mutex::default();
    Controller::new("node-ipam-controller", move |ask| {
        let mut plan = Plan::nothing();
        if !options.allocate_node_cidrs || options.cluster_cidrs.is_empty() {
            return Ok(plan);
        }
        let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
        let book = match &mut *book {
            Some(book) => book,
            none => {
                let mut filled = Book::new(&options);
                for object in of.list(None) {
                    filled.hold(&object.meta.name, has(&*decoded::<Node>(&object)?));
                }
                none.insert(filled)
            }
        };
        let Some(object) = of.get(&ask.key) else {
            book.hold(&ask.key, Vec::new());
            return Ok(plan);
        };
        let known = has(&*decoded::<Node>(&object)?);
        if !known.is_empty() {
            book.hold(&ask.key, known);
            return Ok(plan);
        }
        let Some(blocks) = book.give(&ask.key) else {
            let said = format!("Node {} status is now: CIDRNotAvailable", object.meta.name);
            plan.note(Note::normal(&object, "CIDRNotAvailable", said));
            plan.again_after(std::time::Duration::from_secs(30));
            return Ok(plan);
        };
        let texts: Vec<String> = blocks.iter().map(ToString::to_string).collect();
        let patch =
            json!({"metadata": {"uid": &*object.meta.uid}, "spec": {"podCIDR": texts.first(), "podCIDRs": texts}});
        let said = format!("Node {} status is now: CIDRAssignmentFailed", object.meta.name);
        let assign = Action::patch(&client::gvr_of::<Node>(), &object, "", client::Patch::Merge(patch));
        plan.act(assign.failed(Note::normal(&object, "CIDRAssignmentFailed", said)));
        Ok(plan)
    })
    .watch(&all_nodes, own_key)
    .workers(WORKERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn blocks() {
        for (network, prefix, used, expect) in [
            ("10.42.0.0/16", 24, &[][..], Some("10.42.0.0/24")),
            ("10.42.0.0/16", 24, &["10.42.0.0/24", "10.42.1.0/24", "10.42.3.0/24"][..], Some("10.42.2.0/24")),
            ("10.42.0.0/24", 24, &["10.42.0.0/24"][..], None),
            ("10.42.0.0/16", 24, &["10.42.0.0/17"][..], Some("10.42.128.0/24")),
            ("10.42.0.0/16", 24, &["10.42.0.16/28", "10.99.0.0/24"][..], Some("10.42.1.0/24")),
            ("10.42.0.0/16", 24, &["10.0.0.0/8"][..], None),
            ("fd00:1::/48", 64, &["fd00:1::/64"][..], Some("fd00:1:0:1::/64")),
            ("fd00:1::/48", 64, &["10.42.0.0/24", "fd00:1::/63"][..], Some("fd00:1:0:2::/64")),
        ] {
            let mut blocks = Blocks::new(net(network), prefix);
            used.iter().for_each(|u| blocks.mark(&net(u), true));
            assert_eq!(blocks.free(), expect.map(net), "{network} {used:?}");
        }
    }

    #[test]
    fn what_is_given_back_is_given_again() {
        let options = crate::Options {
            cluster_cidrs: vec![net("10.42.0.0/22"), net("fd00:1::/62")],
            service_cidrs: vec![net("10.42.0.0/24")],
            ..crate::Options::default()
        };
        let mut book = Book::new(&options);
        let of = |four: &str, six: &str| Some(vec![net(four), net(six)]);
        assert_eq!(book.give("a"), of("10.42.1.0/24", "fd00:1::/64"));
        assert_eq!(book.give("b"), of("10.42.2.0/24", "fd00:1:0:1::/64"));
        assert_eq!(book.give("a"), of("10.42.1.0/24", "fd00:1::/64"), "asked again");
        // Somebody else gave it another.
        book.hold("b", vec![net("10.42.3.0/24"), net("fd00:1:0:3::/64")]);
        assert_eq!(book.give("c"), of("10.42.2.0/24", "fd00:1:0:1::/64"));
        assert_eq!(book.give("d"), None);
        book.hold("a", Vec::new());
        assert_eq!(book.give("d"), of("10.42.1.0/24", "fd00:1::/64"));
    }
}
