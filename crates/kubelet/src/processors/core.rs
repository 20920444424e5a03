//! Which processors a container gets for itself: a pure function of the machine, what is given away, and the pod.
//!
//! Whole sockets first, then whole cores, then single threads, those of broken cores before others: neighbours of one
//! container disturb nobody else.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::quantity::amount;
use crate::spec::{Kind, resources};
use crate::topology::hint::{Hint, Mask, judged, masks};

/// Processors by their numbers.
pub type Cpus = BTreeSet<u32>;

/// Reads `0-3,5`.
pub fn parse(text: &str) -> Option<Cpus> {
    let mut out = Cpus::new();
    for part in text.trim().split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        // More than any machine has is a mistake, not a set.
        if last < first || last > 1 << 16 {
            return None;
        }
        out.extend(first..=last);
    }
    Some(out)
}

/// Writes it.
pub fn printed(cpus: &Cpus) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for cpu in cpus {
        match runs.last_mut() {
            Some(run) if run.1 + 1 == *cpu => run.1 = *cpu,
            _ => runs.push((*cpu, *cpu)),
        }
    }
    let run = |(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}

/// Where one processor sits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub socket: u32,
    pub core: u32,
    /// The memory it is near to.
    pub node: u32,
}

/// Where processors sit, by number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology(pub BTreeMap<u32, Place>);

impl Topology {
    /// All processors.
    pub fn all(&self) -> Cpus {
        self.0.keys().copied().collect()
    }

    /// Those near to some memory nodes.
    fn near(&self, mask: Mask) -> Cpus {
        self.0.iter().filter(|(_, place)| mask.has(place.node)).map(|(cpu, _)| *cpu).collect()
    }

    /// Takes some of the free ones; none if there are too few.
    pub fn take(&self, free: &Cpus, count: usize) -> Option<Cpus> {
        if free.len() < count {
            return None;
        }
        let mut taken = Cpus::new();
        let place = |cpu: u32| self.0.get(&cpu);
        let node = |cpu: u32| place(cpu).map(|p| (p.node, 0));
        let socket = |cpu: u32| place(cpu).map(|p| (p.socket, 0));
        let core = |cpu: u32| place(cpu).map(|p| (p.socket, p.core));
        let distinct = |of: &dyn Fn(&Place) -> u32| self.0.values().map(of).collect::<BTreeSet<u32>>().len();
        // The larger units first.
        if distinct(&|p| p.socket) >= distinct(&|p| p.node) {
            self.take_whole(free, count, &mut taken, node);
            self.take_whole(free, count, &mut taken, socket);
        } else {
            self.take_whole(free, count, &mut taken, socket);
            self.take_whole(free, count, &mut taken, node);
        }
        self.take_whole(free, count, &mut taken, core);
        // Threads of cores that are broken already come first.
        let mut left: Vec<u32> = free.difference(&taken).copied().collect();
        let siblings = |cpu: u32| left.iter().filter(|other| core(**other) == core(cpu)).count();
        let order: BTreeMap<u32, usize> = left.iter().map(|cpu| (*cpu, siblings(*cpu))).collect();
        left.sort_by_key(|cpu| (order[cpu], *cpu));
        let missing = count - taken.len();
        taken.extend(left.into_iter().take(missing));
        Some(taken)
    }

    /// Takes units that are wholly free and no larger than what is missing.
    fn take_whole<K: Ord>(&self, free: &Cpus, count: usize, taken: &mut Cpus, unit: impl Fn(u32) -> Option<K>) {
        let mut units: BTreeMap<K, Cpus> = BTreeMap::new();
        for cpu in self.0.keys() {
            if let Some(key) = unit(*cpu) {
                units.entry(key).or_default().insert(*cpu);
            }
        }
        for cpus in units.values() {
            let whole = cpus.is_subset(free) && cpus.is_disjoint(taken);
            if whole && cpus.len() <= count - taken.len() {
                taken.extend(cpus);
            }
        }
    }
}

/// How many processors a container is to have for itself: whole ones of a guaranteed pod.
pub fn wanted(pod: &Pod, container: &Container) -> usize {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref().or(r.limits.as_ref()));
    let milli = amount(requests, "cpu").unwrap_or(0);
    let whole = milli > 0 && milli % 1000 == 0 && resources::qos(pod) == resources::Qos::Guaranteed;
    if whole { usize::try_from(milli / 1000).unwrap_or(0) } else { 0 }
}

/// What is being given to one pod's containers, one after the other. What init containers had, those after them may have.
pub struct Giving {
    topology: Topology,
    free: Cpus,
    spare: Cpus,
}

impl Giving {
    /// The free ones are those nobody has and nobody reserved.
    pub fn new(topology: Topology, free: Cpus) -> Self {
        Self { topology, free, spare: Cpus::new() }
    }

    /// Near which of these memory nodes so many could be had.
    pub fn hints(&self, nodes: &[u32], count: usize) -> Vec<Hint> {
        let (mut fewest, mut fitting) = (nodes.len(), Vec::new());
        for mask in masks(nodes) {
            let near = self.topology.near(mask);
            if near.len() >= count {
                fewest = fewest.min(mask.count());
            }
            // What the pod has already must be among it.
            if self.spare.is_subset(&near) && self.spare.len() + self.free.intersection(&near).count() >= count {
                fitting.push(mask);
            }
        }
        judged(fitting, fewest)
    }

    /// Gives so many, those near to the memory nodes first.
    pub fn give(&mut self, kind: Kind, count: usize, affinity: Option<Mask>) -> Result<Cpus, String> {
        let again = self.spare.len().min(count);
        let mut given = self.topology.take(&self.spare, again).unwrap_or_default();
        let missing = count - again;
        let short = || {
            let available = self.free.len() + again;
            format!("not enough cpus available to satisfy request: requested={count}, available={available}")
        };
        let mut fresh = Cpus::new();
        if let Some(mask) = affinity {
            let near: Cpus = self.free.intersection(&self.topology.near(mask)).copied().collect();
            fresh = self.topology.take(&near, near.len().min(missing)).unwrap_or_default();
        }
        let rest: Cpus = self.free.difference(&fresh).copied().collect();
        fresh.extend(self.topology.take(&rest, missing - fresh.len()).ok_or_else(short)?);
        self.free.retain(|cpu| !fresh.contains(cpu));
        if kind == Kind::Init {
            self.spare.extend(&fresh);
        } else {
            self.spare.retain(|cpu| !given.contains(cpu));
        }
        given.extend(fresh);
        Ok(given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec;
    use serde_json::{Value, json};

    #[test]
    fn sets_are_read_and_written() {
        for (text, shown) in [("0-3,5", "0-3,5"), ("1,0,2", "0-2"), ("", ""), ("7", "7")] {
            assert_eq!(printed(&parse(text).unwrap()), shown);
        }
        for bad in ["a", "3-1", "0-99999999", "-"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    /// Two sockets of two cores of two threads: 0/4 1/5 on the first, 2/6 3/7 on the second.
    fn machine() -> Topology {
        let place = |cpu: u32| Place { socket: (cpu % 4) / 2, core: cpu % 4, node: (cpu % 4) / 2 };
        Topology((0..8).map(|cpu| (cpu, place(cpu))).collect())
    }

    #[test]
    fn whole_units_come_first() {
        for (free, count, expect) in [
            ("0-7", 4, "0-1,4-5"),
            ("0-7", 2, "0,4"),
            ("0-7", 1, "0"),
            ("1-7", 2, "1,5"),
            ("1-7", 1, "4"),
            ("1-7", 5, "2-4,6-7"),
            ("0-1", 2, "0-1"),
        ] {
            let taken = machine().take(&parse(free).unwrap(), count).unwrap();
            assert_eq!(printed(&taken), expect, "{count} of {free}");
        }
        assert_eq!(machine().take(&parse("0").unwrap(), 2), None);
    }

    #[test]
    fn pods_get_whole_processors() {
        let container = |name: &str, cpu: &str| json!({"name": name, "resources": {"limits": {"cpu": cpu, "memory": "1Mi"}, "requests": {"cpu": cpu, "memory": "1Mi"}}});
        let check = |spec: Value, expect: &str| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            let mut giving = Giving::new(machine(), parse("1-7").unwrap());
            let each =
                spec::all_containers(&pod).map(|(kind, c)| (kind, c, wanted(&pod, c))).filter(|(_, _, n)| *n > 0);
            let given = each.map(|(kind, c, count)| {
                giving.give(kind, count, None).map(|cpus| format!("{}={}", c.name, printed(&cpus)))
            });
            let shown = given.collect::<Result<Vec<_>, _>>().map_or_else(|why| why, |given| given.join(" "));
            assert_eq!(shown, expect, "{spec}");
        };
        check(json!({"containers": [container("a", "2"), container("b", "1500m")]}), "a=1,5");
        check(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "2"}}}]}), "");
        check(
            json!({"initContainers": [container("i", "2")], "containers": [container("a", "1"), container("b", "2")]}),
            "i=1,5 a=1 b=4-5",
        );
        check(
            json!({"containers": [container("a", "8")]}),
            "not enough cpus available to satisfy request: requested=8, available=7",
        );
    }
}
