//! Memory of named nodes for guaranteed pods (`memoryManagerPolicy: Static`): which nodes each container's memory comes
//! from, as a pure function of the machine, what is given away, and what is asked.
//!
//! A node serves either containers that fit on it alone, or groups of nodes that are always the same; so what is free on a
//! group is never promised twice.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use serde::{Deserialize, Serialize};

use super::hint::{Hint, Mask, judged, masks};
use super::machine::Amounts;
use crate::quantity::value;
use crate::spec::Kind;
use crate::spec::resources;

/// Memory of one kind from a group of nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Block {
    #[serde(rename = "numaAffinity")]
    pub nodes: Vec<u32>,
    #[serde(rename = "type")]
    pub kind: String,
    pub size: u64,
}

/// By pod uid and container name.
pub type Grants = BTreeMap<String, BTreeMap<String, Vec<Block>>>;

/// A node in use.
#[derive(Clone, Debug, Default)]
struct Node {
    used_by: usize,
    /// The group it serves in.
    group: Vec<u32>,
    allocatable: Amounts,
    free: Amounts,
}

/// What a guaranteed pod's container asks for, by kind.
pub fn wanted(pod: &Pod, container: &Container) -> Amounts {
    if !resources::is_guaranteed(pod, container) {
        return Amounts::new();
    }
    asked(container.resources.as_ref())
}

/// The memory among resources, by kind.
pub fn asked(resources: Option<&ResourceRequirements>) -> Amounts {
    let requests = resources.and_then(|r| r.requests.as_ref().or(r.limits.as_ref()));
    let of = requests.into_iter().flatten().filter(|(name, _)| *name == "memory" || name.starts_with("hugepages-"));
    of.map(|(name, q)| (name.clone(), value(q).max(0) as u64)).collect()
}

/// What is being given to one pod's containers, one after the other.
pub struct Giving {
    nodes: BTreeMap<u32, Node>,
    /// What init containers had and those after them may have.
    spare: BTreeMap<(Mask, String), u64>,
    inits: Vec<String>,
    pub given: BTreeMap<String, Vec<Block>>,
}

fn take(nodes: &mut BTreeMap<u32, Node>, block: &Block, mut size: u64) {
    for number in &block.nodes {
        let Some(node) = nodes.get_mut(number) else { continue };
        node.used_by += 1;
        node.group = block.nodes.clone();
        let free = node.free.entry(block.kind.clone()).or_default();
        let taken = size.min(*free);
        *free -= taken;
        size -= taken;
    }
}

impl Giving {
    /// `machine` is what pods may have of each node; `others` what they have.
    pub fn new(machine: &BTreeMap<u32, Amounts>, others: &Grants) -> Self {
        let fresh = |(number, amounts): (&u32, &Amounts)| {
            let node = Node { used_by: 0, group: vec![*number], allocatable: amounts.clone(), free: amounts.clone() };
            (*number, node)
        };
        let mut nodes: BTreeMap<u32, Node> = machine.iter().map(fresh).collect();
        for block in others.values().flat_map(BTreeMap::values).flatten() {
            take(&mut nodes, block, block.size);
        }
        Self { nodes, spare: BTreeMap::new(), inits: Vec::new(), given: BTreeMap::new() }
    }

    fn sum(&self, mask: Mask, kind: &str, of: fn(&Node) -> &Amounts) -> u64 {
        mask.nodes().filter_map(|n| of(self.nodes.get(&n)?).get(kind)).sum()
    }

    fn spare(&self, mask: Mask, kind: &str) -> u64 {
        self.spare.get(&(mask, kind.to_string())).copied().unwrap_or(0)
    }

    /// Whether the nodes may serve together.
    fn is_open(&self, mask: Mask) -> bool {
        let set: Vec<u32> = mask.nodes().collect();
        let in_use = |n: &&Node| n.used_by > 0;
        let mut of = set.iter().filter_map(|n| self.nodes.get(n));
        match set.as_slice() {
            [one] => self.nodes.get(one).is_some_and(|n| n.group.len() == 1),
            _ => !of.any(|n| in_use(&n) && n.group != set),
        }
    }

    /// Where it could all be had.
    pub fn hints(&self, asked: &Amounts) -> Vec<Hint> {
        let numbers: Vec<u32> = self.nodes.keys().copied().collect();
        let (mut fewest, mut fitting) = (numbers.len(), Vec::new());
        for mask in masks(&numbers) {
            if !asked.iter().all(|(kind, size)| self.sum(mask, kind, |n| &n.allocatable) >= *size) {
                continue;
            }
            fewest = fewest.min(mask.count());
            let free = |kind: &str| self.sum(mask, kind, |n| &n.free) + self.spare(mask, kind);
            if self.is_open(mask) && asked.iter().all(|(kind, size)| free(kind) >= *size) {
                fitting.push(mask);
            }
        }
        judged(fitting, fewest)
    }

    /// Gives a container what it asks for, where the hint says or, where that does not do, near it.
    pub fn give(&mut self, kind: Kind, name: &str, asked: &Amounts, hint: Hint) -> Result<(), String> {
        let best = |hints: Vec<Hint>| {
            hints.into_iter().reduce(|best, other| {
                let narrower = matches!((other.affinity, best.affinity), (Some(a), Some(b)) if a.is_narrower(b));
                if other.preferred && !best.preferred || other.preferred == best.preferred && narrower {
                    other
                } else {
                    best
                }
            })
        };
        let (mut chosen, mut well) = (hint.affinity, hint.preferred);
        if chosen.is_none() {
            let usual = best(self.hints(asked)).ok_or(
                "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available",
            )?;
            if well && !usual.preferred {
                return Err("[memorymanager] failed to find the default preferred hint".into());
            }
            (chosen, well) = (usual.affinity, usual.preferred);
        }
        let mut mask = chosen.unwrap_or_default();
        let free = |kind: &str| self.sum(mask, kind, |n| &n.free) + self.spare(mask, kind);
        if !asked.iter().all(|(kind, size)| free(kind) >= *size) {
            let wider =
                self.hints(asked).into_iter().filter(|h| h.affinity.is_some_and(|a| a.contains(mask))).collect();
            let wider =
                best(wider).ok_or("[memorymanager] failed to find NUMA nodes to extend the current topology hint")?;
            if well && !wider.preferred {
                return Err("[memorymanager] failed to find the extended preferred hint".into());
            }
            mask = wider.affinity.unwrap_or_default();
        }
        let blocks: Vec<Block> = asked
            .iter()
            .map(|(kind, size)| Block { nodes: mask.nodes().collect(), kind: kind.clone(), size: *size })
            .collect();
        for block in &blocks {
            let spare = self.spare(mask, &block.kind);
            take(&mut self.nodes, block, block.size.saturating_sub(spare));
            let left = self.spare.entry((mask, block.kind.clone())).or_default();
            if kind == Kind::Init {
                *left = (*left).max(block.size);
            } else {
                *left = left.saturating_sub(block.size);
                let reused = block.size.min(spare);
                self.shrink_inits(block, reused);
            }
        }
        if kind == Kind::Init {
            self.inits.push(name.into());
        }
        self.given.insert(name.into(), blocks);
        Ok(())
    }

    /// What a later container has again is no more counted as an init container's.
    fn shrink_inits(&mut self, block: &Block, mut reused: u64) {
        for init in &self.inits {
            for own in self.given.get_mut(init).into_iter().flatten() {
                if own.kind == block.kind && own.nodes == block.nodes {
                    let less = own.size.min(reused);
                    own.size -= less;
                    reused -= less;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(memory: u64, huge: u64) -> Amounts {
        let both = [("memory".to_string(), memory), ("hugepages-1Gi".to_string(), huge)];
        both.into_iter().filter(|(_, n)| *n > 0).collect()
    }

    fn machine() -> BTreeMap<u32, Amounts> {
        [(0, amounts(10, 4)), (1, amounts(10, 4))].into()
    }

    fn block(nodes: &[u32], size: u64) -> Block {
        Block { nodes: nodes.into(), kind: "memory".into(), size }
    }

    fn others(blocks: Vec<Block>) -> Grants {
        [("u".to_string(), [("c".to_string(), blocks)].into())].into()
    }

    fn at(nodes: &[u32], preferred: bool) -> Hint {
        Hint { affinity: Some(Mask::of(nodes.iter().copied())), preferred }
    }

    #[test]
    fn where_memory_can_be_had() {
        for (taken, asked, expect) in [
            (vec![], amounts(5, 1), vec![at(&[0], true), at(&[1], true), at(&[0, 1], false)]),
            (vec![], amounts(15, 0), vec![at(&[0, 1], true)]),
            (vec![], amounts(25, 0), vec![]),
            (vec![], amounts(1, 6), vec![at(&[0, 1], true)]),
            // Enough in all, but not where it could be.
            (vec![block(&[0], 6)], amounts(5, 0), vec![at(&[1], true)]),
            // A node that serves alone serves in no group.
            (vec![block(&[0], 1)], amounts(15, 0), vec![]),
            // A group stays one.
            (vec![block(&[0, 1], 11)], amounts(5, 0), vec![at(&[0, 1], false)]),
            (vec![block(&[0, 1], 11)], amounts(10, 0), vec![]),
        ] {
            assert_eq!(Giving::new(&machine(), &others(taken.clone())).hints(&asked), expect, "{asked:?} of {taken:?}");
        }
    }

    #[test]
    fn memory_is_given() {
        for (taken, asked, hint, expect) in [
            (vec![], 5, Hint::NOWHERE, Ok(vec![0])),
            (vec![], 5, at(&[1], true), Ok(vec![1])),
            (vec![block(&[0], 6)], 5, Hint::ANYWHERE, Ok(vec![1])),
            (vec![], 15, at(&[0], false), Ok(vec![0, 1])),
            (vec![block(&[0, 1], 11)], 5, Hint::ANYWHERE, Err("default preferred hint")),
            (vec![block(&[0], 6)], 5, at(&[0], true), Err("extend the current topology hint")),
            (vec![], 25, Hint::NOWHERE, Err("no NUMA nodes with enough memory")),
        ] {
            let mut giving = Giving::new(&machine(), &others(taken.clone()));
            let got = giving.give(Kind::Main, "a", &amounts(asked, 0), hint);
            match expect {
                Ok(nodes) => {
                    assert_eq!((got, giving.given["a"][0].nodes.clone()), (Ok(()), nodes), "{asked} of {taken:?}")
                }
                Err(why) => assert!(got.as_ref().is_err_and(|e| e.contains(why)), "{asked} of {taken:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn what_init_containers_had_is_had_again() {
        let mut giving = Giving::new(&machine(), &Grants::new());
        giving.give(Kind::Init, "i", &amounts(8, 0), Hint::NOWHERE).unwrap();
        giving.give(Kind::Main, "a", &amounts(6, 0), Hint::NOWHERE).unwrap();
        giving.give(Kind::Main, "b", &amounts(4, 0), Hint::NOWHERE).unwrap();
        let sizes = ["i", "a", "b"].map(|name| giving.given[name][0].size);
        assert_eq!(sizes, [0, 6, 4]);
        let again = Giving::new(&machine(), &[("u".to_string(), giving.given.clone())].into());
        assert_eq!(again.nodes[&0].free["memory"], 0);
    }
}
