//! The machine's memory nodes, as the kernel shows them: which processors and how much memory each has, how far they are
//! from each other.

use std::collections::BTreeMap;
use std::path::Path;

use super::merge::Nodes;
use crate::node::machine::huge_pages;
use crate::processors::core::{Cpus, parse};

/// Bytes of each kind of memory: `memory`, `hugepages-2Mi`.
pub type Amounts = BTreeMap<String, u64>;

/// All memory nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    pub distances: Nodes,
    pub cpus: BTreeMap<u32, Cpus>,
    pub memory: BTreeMap<u32, Amounts>,
}

fn kib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|l| l.contains("MemTotal:"))?;
    line.split_whitespace().rev().nth(1)?.parse().ok()
}

impl Machine {
    /// Reads `/sys/devices/system/node`; a machine without is one node.
    pub fn look(base: &Path, all: &Cpus, memory: u64) -> Self {
        let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let online: Vec<u32> = parse(&read(base.join("online"))).unwrap_or_default().into_iter().collect();
        if online.is_empty() {
            return Self {
                distances: Nodes([(0, [(0, 10)].into())].into()),
                cpus: [(0, all.clone())].into(),
                memory: [(0, [("memory".to_string(), memory)].into())].into(),
            };
        }
        let mut out = Self::default();
        for node in &online {
            let dir = base.join(format!("node{node}"));
            let far = read(dir.join("distance"));
            let far = online.iter().copied().zip(far.split_whitespace().filter_map(|d| d.parse().ok()));
            out.distances.0.insert(*node, far.collect());
            let cpus = parse(&read(dir.join("cpulist"))).unwrap_or_default();
            out.cpus.insert(*node, cpus.intersection(all).copied().collect());
            let mut amounts = huge_pages(&dir.join("hugepages"));
            let huge: u64 = amounts.values().sum();
            let total = kib(&read(dir.join("meminfo"))).unwrap_or(0) * 1024;
            amounts.insert("memory".into(), total.saturating_sub(huge));
            out.memory.insert(*node, amounts);
        }
        out
    }

    /// The node a processor is of.
    pub fn node_of(&self, cpu: u32) -> u32 {
        self.cpus.iter().find(|(_, cpus)| cpus.contains(&cpu)).map_or(0, |(node, _)| *node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_read() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let all: Cpus = (0..4).collect();
        let one = Machine::look(root.path(), &all, 9);
        assert_eq!((one.cpus[&0].len(), one.memory[&0]["memory"]), (4, 9));
        write("online", "0-1\n");
        for (node, cpus, far) in [(0, "0-1\n", "10 20\n"), (1, "2-3\n", "20 10\n")] {
            write(&format!("node{node}/cpulist"), cpus);
            write(&format!("node{node}/distance"), far);
            write(
                &format!("node{node}/meminfo"),
                &format!("Node {node} MemTotal:  4096 kB\nNode {node} MemFree: 1 kB\n"),
            );
            write(&format!("node{node}/hugepages/hugepages-1024kB/nr_hugepages"), "2\n");
        }
        let two = Machine::look(root.path(), &all, 9);
        assert_eq!(two.memory[&1], [("hugepages-1Mi".to_string(), 2 << 20), ("memory".to_string(), 2 << 20)].into());
        assert_eq!((two.distances.0[&0][&1], two.node_of(3)), (20, 1));
    }
}
