//! Which processors a container gets for itself: a pure function of the machine, what is given away, and the pod. Which of
//! several are taken is [`super::take`]'s.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod};

use super::take::Options;
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
    /// The last cache before memory that it has with others.
    pub cache: u32,
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

    /// Those of the sockets that have these memory nodes.
    fn on_sockets_of(&self, mask: Mask) -> Cpus {
        let sockets = self.sockets_of(mask);
        self.0.iter().filter(|(_, place)| sockets.contains(&place.socket)).map(|(cpu, _)| *cpu).collect()
    }

    fn sockets_of(&self, mask: Mask) -> BTreeSet<u32> {
        self.0.values().filter(|place| mask.has(place.node)).map(|place| place.socket).collect()
    }

    /// The threads of the same cores.
    pub fn siblings(&self, cpus: &Cpus) -> Cpus {
        let core = |cpu: &u32| self.0.get(cpu).map(|p| (p.socket, p.core));
        let cores: BTreeSet<_> = cpus.iter().map(core).collect();
        self.0.keys().filter(|cpu| cores.contains(&core(cpu))).copied().collect()
    }

    /// How many different ones of something there are.
    pub fn distinct(&self, of: impl Fn(&Place) -> u32) -> usize {
        self.0.values().map(of).collect::<BTreeSet<u32>>().len()
    }
}

/// Why processors are not given.
#[derive(Debug, PartialEq)]
pub enum Refused {
    Short(String),
    /// Cores could not be given whole.
    Unaligned(String),
}

/// So many thousandths of processors, when these are whole ones; 0 otherwise.
pub fn whole(milli: i64) -> usize {
    if milli > 0 && milli % 1000 == 0 { usize::try_from(milli / 1000).unwrap_or(0) } else { 0 }
}

/// How many processors a container is to have for itself: whole ones of what is guaranteed.
pub fn wanted(pod: &Pod, container: &Container) -> usize {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref().or(r.limits.as_ref()));
    if resources::is_guaranteed(pod, container) { whole(amount(requests, "cpu").unwrap_or(0)) } else { 0 }
}

/// What is being given to one pod's containers, one after the other. What init containers had, those after them may have.
pub struct Giving {
    topology: Topology,
    options: Options,
    free: Cpus,
    spare: Cpus,
}

impl Giving {
    /// The free ones are those nobody has and nobody reserved.
    pub fn new(topology: Topology, free: Cpus, options: Options) -> Self {
        Self { topology, options, free, spare: Cpus::new() }
    }

    /// Some of this machine's processors, to be given in turn.
    pub fn among(&self, cpus: &Cpus) -> Self {
        Self::new(self.topology.clone(), cpus.clone(), self.options)
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
        let mut hints = judged(fitting, fewest);
        let (nodes, sockets) = (self.topology.distinct(|p| p.node), self.topology.distinct(|p| p.socket));
        if let Some(nodes_of_socket) = nodes.checked_div(sockets).filter(|n| self.options.by_socket && *n > 0) {
            let fewest_sockets = fewest.div_ceil(nodes_of_socket);
            for hint in &mut hints {
                hint.preferred |=
                    hint.affinity.is_some_and(|mask| self.topology.sockets_of(mask).len() == fewest_sockets);
            }
        }
        hints
    }

    /// Whether cores can be given whole.
    fn check_cores(&self, count: usize) -> Result<(), Refused> {
        let threads = self.topology.threads();
        if !count.is_multiple_of(threads) {
            let why = format!("SMT Alignment Error: requested {count} cpus not multiple cpus per core = {threads}");
            return Err(Refused::Unaligned(why));
        }
        let available = self.free.union(&self.spare).count();
        if count > available {
            let why = format!(
                "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = {available}, requested CPUs = {count}, CPUs per core = {threads}"
            );
            return Err(Refused::Unaligned(why));
        }
        Ok(())
    }

    /// Gives so many, those near to the memory nodes first.
    pub fn give(&mut self, kind: Kind, count: usize, affinity: Option<Mask>) -> Result<Cpus, Refused> {
        if self.options.whole_cores {
            self.check_cores(count)?;
        }
        let again = self.spare.len().min(count);
        let mut given = self.topology.take(&self.spare, again, &self.options).unwrap_or_default();
        let missing = count - again;
        let short = || {
            let available = self.free.len() + again;
            let why = format!("not enough cpus available to satisfy request: requested={count}, available={available}");
            Refused::Short(why)
        };
        let mut fresh = Cpus::new();
        if let Some(mask) = affinity {
            let near = match self.options.by_socket {
                true => self.topology.on_sockets_of(mask),
                false => self.topology.near(mask),
            };
            let near: Cpus = self.free.intersection(&near).copied().collect();
            fresh = self.topology.take(&near, near.len().min(missing), &self.options).unwrap_or_default();
        }
        let rest: Cpus = self.free.difference(&fresh).copied().collect();
        fresh.extend(self.topology.take(&rest, missing - fresh.len(), &self.options).ok_or_else(short)?);
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
        let place = |cpu: u32| Place { socket: (cpu % 4) / 2, core: cpu % 4, node: (cpu % 4) / 2, cache: 0 };
        Topology((0..8).map(|cpu| (cpu, place(cpu))).collect())
    }

    #[test]
    fn pods_get_whole_processors() {
        let container = |name: &str, cpu: &str| json!({"name": name, "resources": {"limits": {"cpu": cpu, "memory": "1Mi"}, "requests": {"cpu": cpu, "memory": "1Mi"}}});
        let check_with = |options: Options, spec: Value, expect: &str| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            let mut giving = Giving::new(machine(), parse("1-7").unwrap(), options);
            let each =
                spec::all_containers(&pod).map(|(kind, c)| (kind, c, wanted(&pod, c))).filter(|(_, _, n)| *n > 0);
            let given = each.map(|(kind, c, count)| {
                giving.give(kind, count, None).map(|cpus| format!("{}={}", c.name, printed(&cpus)))
            });
            let shown = given
                .collect::<Result<Vec<_>, _>>()
                .map_or_else(|(Refused::Short(why) | Refused::Unaligned(why))| why, |given| given.join(" "));
            assert_eq!(shown, expect, "{spec}");
        };
        let check = |spec: Value, expect: &str| check_with(Options::default(), spec, expect);
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
        let whole = Options { whole_cores: true, ..Options::default() };
        check_with(
            whole,
            json!({"containers": [container("a", "3")]}),
            "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2",
        );
        check_with(
            whole,
            json!({"containers": [container("a", "8")]}),
            "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 7, requested CPUs = 8, CPUs per core = 2",
        );
    }
}
