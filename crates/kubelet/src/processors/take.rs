//! Which of the free processors are taken for a container: upstream's choice, with the options of its static policy.
//!
//! Packed: whole sockets and memory nodes first, then whole cores, then single threads; of several, those come first that
//! have the fewest free. Spread: evenly over as few memory nodes as will do, or a thread of each core at a time.

use std::collections::{BTreeMap, BTreeSet};

use super::core::{Cpus, Topology};

/// `cpuManagerPolicyOptions`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `full-pcpus-only`: cores are given whole or not at all.
    pub whole_cores: bool,
    /// `distribute-cpus-across-numa`.
    pub across_nodes: bool,
    /// `distribute-cpus-across-cores`.
    pub across_cores: bool,
    /// `align-by-socket`: what is near is on the same socket, not on the same memory node.
    pub by_socket: bool,
    /// `prefer-align-cpus-by-uncorecache`.
    pub by_cache: bool,
    /// `strict-cpu-reservation`: nobody shares the reserved ones.
    pub strict: bool,
}

/// What processors are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Node,
    Socket,
    Cache,
    Core,
}

type Key = (u32, u32);

/// A choice in the making.
struct Taking<'a> {
    topology: &'a Topology,
    /// From the largest to the smallest.
    levels: [Unit; 3],
    free: Cpus,
    taken: Cpus,
    missing: usize,
}

impl<'a> Taking<'a> {
    fn new(topology: &'a Topology, free: &Cpus, count: usize) -> Self {
        let known = topology.0.values();
        let (mut sockets, mut nodes) = (BTreeSet::new(), BTreeSet::new());
        known.for_each(|p| {
            sockets.insert(p.socket);
            nodes.insert(p.node);
        });
        let levels = match sockets.len() >= nodes.len() {
            true => [Unit::Node, Unit::Socket, Unit::Core],
            false => [Unit::Socket, Unit::Node, Unit::Core],
        };
        let free = free.iter().filter(|cpu| topology.0.contains_key(cpu)).copied().collect();
        Self { topology, levels, free, taken: Cpus::new(), missing: count }
    }

    fn key(&self, cpu: u32, unit: Unit) -> Option<Key> {
        let place = self.topology.0.get(&cpu)?;
        Some(match unit {
            Unit::Node => (place.node, 0),
            Unit::Socket => (place.socket, 0),
            Unit::Cache => (place.cache, 0),
            Unit::Core => (place.socket, place.core),
        })
    }

    fn free_in(&self, unit: Unit, key: Key) -> Cpus {
        self.free.iter().filter(|cpu| self.key(**cpu, unit) == Some(key)).copied().collect()
    }

    fn all_in(&self, unit: Unit, key: Key) -> usize {
        self.topology.0.keys().filter(|cpu| self.key(**cpu, unit) == Some(key)).count()
    }

    /// Units with free ones that lie in another, the fewest free first.
    fn sorted(&self, unit: Unit, within: Option<(Unit, Key)>) -> Vec<Key> {
        let inside = |cpu: &&u32| within.is_none_or(|(unit, key)| self.key(**cpu, unit) == Some(key));
        let found: BTreeSet<Key> = self.free.iter().filter(inside).filter_map(|cpu| self.key(*cpu, unit)).collect();
        let mut found: Vec<(usize, Key)> = found.into_iter().map(|k| (self.free_in(unit, k).len(), k)).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, key)| key).collect()
    }

    /// All units of a level, those of one larger unit after the other.
    fn ordered(&self, level: usize) -> Vec<Key> {
        let Some(above) = level.checked_sub(1) else { return self.sorted(self.levels[0], None) };
        let larger = self.ordered(above).into_iter();
        larger.flat_map(|key| self.sorted(self.levels[level], Some((self.levels[above], key)))).collect()
    }

    fn nodes(&self) -> Vec<Key> {
        self.ordered(self.levels.iter().position(|u| *u == Unit::Node).unwrap_or(0))
    }

    fn take(&mut self, cpus: &Cpus) {
        self.free.retain(|cpu| !cpus.contains(cpu));
        self.missing = self.missing.saturating_sub(cpus.len());
        self.taken.extend(cpus);
    }

    /// Takes units that are wholly free and no larger than what is missing.
    fn take_whole(&mut self, unit: Unit, order: Vec<Key>) {
        for key in order {
            let cpus = self.free_in(unit, key);
            if cpus.len() == self.all_in(unit, key) && cpus.len() <= self.missing {
                self.take(&cpus);
            }
        }
    }

    /// Takes whole caches, and for the rest one cache whose free cores suffice.
    fn take_caches(&mut self) {
        for key in self.sorted(Unit::Cache, None) {
            let order = self.sorted(Unit::Cache, None);
            self.take_whole(Unit::Cache, order);
            if self.missing == 0 {
                return;
            }
            let per_core = self.topology.threads();
            let mut chosen = Cpus::new();
            let cores =
                self.sorted(Unit::Core, Some((Unit::Cache, key))).into_iter().map(|c| self.free_in(Unit::Core, c));
            for cpus in cores.filter(|cpus| cpus.len() == per_core) {
                chosen.extend(cpus.into_iter().take(self.missing - chosen.len()));
            }
            if chosen.len() == self.missing {
                return self.take(&chosen);
            }
        }
    }

    fn take_threads(&mut self, across_cores: bool) {
        let cores = self.ordered(2).into_iter().map(|key| self.free_in(Unit::Core, key));
        let mut lists: Vec<Vec<u32>> = cores.map(|cpus| cpus.into_iter().collect()).collect();
        let order: Vec<u32> = if across_cores {
            let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
            (0..longest)
                .flat_map(|at| lists.iter().filter_map(move |l| l.get(at).copied()).collect::<Vec<_>>())
                .collect()
        } else {
            lists.drain(..).flatten().collect()
        };
        let chosen = order.into_iter().take(self.missing).collect();
        self.take(&chosen);
    }
}

impl Topology {
    /// Threads of a core.
    pub fn threads(&self) -> usize {
        let cores: BTreeSet<Key> = self.0.values().map(|p| (p.socket, p.core)).collect();
        self.0.len().checked_div(cores.len()).unwrap_or(1).max(1)
    }

    /// Takes some of the free ones; none if there are too few.
    pub fn take(&self, free: &Cpus, count: usize, options: &Options) -> Option<Cpus> {
        if !options.across_nodes {
            return self.packed(free, count, options);
        }
        let group = if options.whole_cores { self.threads() } else { 1 };
        self.distributed(free, count, group, options)
    }

    fn packed(&self, free: &Cpus, count: usize, options: &Options) -> Option<Cpus> {
        let mut taking = Taking::new(self, free, count);
        if taking.free.len() < count {
            return None;
        }
        for level in 0..2 {
            let order = taking.ordered(level);
            taking.take_whole(taking.levels[level], order);
        }
        if options.by_cache && taking.missing > 0 {
            taking.take_caches();
        }
        if !options.across_cores {
            let order = taking.ordered(2);
            taking.take_whole(Unit::Core, order);
        }
        if taking.missing > 0 {
            taking.take_threads(options.across_cores);
        }
        Some(taking.taken)
    }

    /// In groups, as many of each of as few memory nodes as will do; what is over of those that leaves most balanced.
    fn distributed(&self, free: &Cpus, count: usize, group: usize, options: &Options) -> Option<Cpus> {
        let mut taking = Taking::new(self, free, count);
        if count == 0 || !count.is_multiple_of(group) {
            return self.packed(free, count, options);
        }
        if taking.free.len() < count {
            return None;
        }
        let nodes = taking.nodes();
        let free_of: BTreeMap<Key, usize> = nodes.iter().map(|n| (*n, taking.free_in(Unit::Node, *n).len())).collect();
        let all_nodes = self.0.values().map(|p| p.node).collect::<BTreeSet<u32>>().len();
        let groups_of_node = self.0.len().div_ceil(group).div_ceil(all_nodes.max(1)).max(1);
        let needed = count / group;
        for size in needed.div_ceil(groups_of_node)..=needed.min(nodes.len()) {
            let mut best: Option<(f64, &Vec<Key>, Vec<Key>)> = None;
            let sets = subsets(&nodes, size);
            for set in &sets {
                if best.as_ref().is_some_and(|(balance, ..)| *balance == 0.0) {
                    break;
                }
                let Some((balance, rest)) = balance(&free_of, set, count, group) else { continue };
                if best.as_ref().is_none_or(|(least, ..)| balance < *least) {
                    best = Some((balance, set, rest));
                }
            }
            let Some((_, set, rest)) = best else { continue };
            let each = count / size / group * group;
            for node in set {
                let cpus = self.packed(&taking.free_in(Unit::Node, *node), each, options)?;
                taking.take(&cpus);
            }
            while taking.missing > 0 {
                let before = taking.missing;
                for node in &rest {
                    let near = taking.free_in(Unit::Node, *node);
                    if taking.missing > 0 && near.len() >= group {
                        let cpus = self.packed(&near, group, options)?;
                        taking.take(&cpus);
                    }
                }
                if taking.missing == before {
                    return self.packed(free, count, options);
                }
            }
            return Some(taking.taken);
        }
        self.packed(free, count, options)
    }
}

/// How unevenly the nodes are left when a set of them gives so many, and which of the set give what is over; none, when
/// the set cannot.
fn balance(free: &BTreeMap<Key, usize>, set: &[Key], count: usize, group: usize) -> Option<(f64, Vec<Key>)> {
    let of = |node: &Key| free.get(node).copied().unwrap_or(0);
    let whole: usize = set.iter().map(|node| of(node) / group * group).sum();
    let each = count / set.len() / group * group;
    if whole < count || set.iter().any(|node| of(node) < each) {
        return None;
    }
    let mut after = free.clone();
    set.iter().for_each(|node| *after.entry(*node).or_default() -= each);
    let over = count - each * set.len();
    if over == 0 {
        return Some((deviation(after.values()), Vec::new()));
    }
    let able: Vec<Key> = set.iter().filter(|node| after[node] >= group).copied().collect();
    let mut best: Option<(f64, Vec<Key>)> = None;
    for size in (1..=able.len()).rev() {
        for some in subsets(&able, size) {
            let Some(left) = dealt(after.clone(), &some, over, group) else { continue };
            let balance = deviation(left.values());
            if best.as_ref().is_none_or(|(least, _)| balance < *least) {
                best = Some((balance, some));
            }
        }
    }
    best
}

/// What is left after some nodes gave what is over, a group at a time in turn; none, when they cannot.
fn dealt(mut left: BTreeMap<Key, usize>, some: &[Key], mut over: usize, group: usize) -> Option<BTreeMap<Key, usize>> {
    while over > 0 {
        let before = over;
        for node in some {
            let of = left.entry(*node).or_default();
            if over > 0 && *of >= group {
                *of -= group;
                over -= group;
            }
        }
        if over == before {
            return None;
        }
    }
    Some(left)
}

/// The standard deviation, to three places as upstream compares them.
fn deviation<'a>(values: impl Iterator<Item = &'a usize>) -> f64 {
    let values: Vec<f64> = values.map(|v| *v as f64).collect();
    let round = |x: f64| (x * 1000.0).round() / 1000.0;
    let count = values.len() as f64;
    let mean = round(values.iter().sum::<f64>() / count);
    round((values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count).sqrt())
}

/// Every set of so many, in order.
fn subsets(of: &[Key], size: usize) -> Vec<Vec<Key>> {
    if size == 0 {
        return vec![Vec::new()];
    }
    let first = |at: usize| subsets(&of[at + 1..], size - 1).into_iter().map(move |rest| (at, rest));
    (0..of.len()).flat_map(first).map(|(at, rest)| std::iter::once(of[at]).chain(rest).collect::<Vec<Key>>()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::core::{Place, parse, printed};
    use super::*;

    /// Sockets, memory nodes a socket, cores a node, threads a core; siblings are numbered after all cores, as the kernel does.
    fn machine(sockets: u32, nodes: u32, cores: u32, threads: u32) -> Topology {
        let all = sockets * nodes * cores;
        let place = |cpu: u32| {
            let core = cpu % all;
            let node = core / cores;
            Place { socket: node / nodes, core, node, cache: core / 2 }
        };
        Topology((0..all * threads).map(|cpu| (cpu, place(cpu))).collect())
    }

    #[test]
    fn choices() {
        let packed = Options::default();
        let across = Options { across_nodes: true, ..packed };
        let whole = Options { across_nodes: true, whole_cores: true, ..packed };
        let cores = Options { across_cores: true, ..packed };
        let cache = Options { by_cache: true, ..packed };
        for (machine, options, free, count, expect) in [
            // One socket of four cores of two threads.
            (machine(1, 1, 4, 2), packed, "0-7", 1, "0"),
            (machine(1, 1, 4, 2), packed, "0-7", 2, "0,4"),
            (machine(1, 1, 4, 2), packed, "1-7", 1, "4"),
            (machine(1, 1, 4, 2), packed, "1-7", 2, "1,5"),
            // The socket with fewer free ones first.
            (machine(2, 1, 4, 2), packed, "0-3,5-11,13-15", 2, "5,13"),
            (machine(2, 1, 4, 2), packed, "0-15", 8, "0-3,8-11"),
            (machine(2, 1, 4, 2), packed, "1-15", 8, "4-7,12-15"),
            // Two memory nodes on one socket.
            (machine(1, 2, 4, 1), packed, "1-7", 4, "4-7"),
            (machine(1, 2, 4, 1), packed, "0-7", 5, "0-4"),
            (machine(1, 2, 4, 1), packed, "0-1", 3, "short"),
            // Evenly over memory nodes, where one does not do.
            (machine(2, 1, 4, 1), across, "0-7", 4, "0-3"),
            (machine(2, 1, 4, 1), across, "0-7", 6, "0-2,4-6"),
            (machine(2, 1, 4, 1), across, "0-7", 5, "0-2,4-5"),
            (machine(2, 1, 4, 1), across, "0,3-7", 5, "0,3-6"),
            (machine(2, 1, 4, 1), across, "1-7", 6, "1-6"),
            (machine(4, 1, 4, 1), across, "1-15", 8, "4-11"),
            (machine(4, 1, 4, 1), across, "0-15", 9, "0-2,4-6,8-10"),
            (machine(2, 1, 4, 2), whole, "0-15", 12, "0-2,4-6,8-10,12-14"),
            (machine(2, 1, 4, 2), whole, "0-15", 10, "0-2,4-5,8-10,12-13"),
            // A thread of each core.
            (machine(1, 1, 4, 2), cores, "0-7", 3, "0-2"),
            (machine(1, 1, 4, 2), cores, "0-7", 5, "0-4"),
            // Caches of two cores: what fits in one is not spread over two.
            (machine(1, 1, 8, 1), cache, "1-7", 2, "2-3"),
            (machine(1, 1, 8, 1), packed, "1-7", 2, "1-2"),
            (machine(1, 1, 8, 1), cache, "1-7", 3, "1-3"),
            (machine(1, 1, 8, 1), cache, "0-7", 3, "0-2"),
        ] {
            let free = parse(free).unwrap();
            let taken = machine.take(&free, count, &options).map_or("short".into(), |cpus| printed(&cpus));
            assert_eq!(taken, expect, "{count} of {} with {options:?}", printed(&free));
        }
    }
}
