//! Which of the machine's memory nodes (NUMA) something could lie on, and whether that would be well.

/// A set of memory nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mask(u64);

impl Mask {
    /// Nodes above 63, which no machine of this kind has, are left out.
    pub fn of(nodes: impl IntoIterator<Item = u32>) -> Self {
        Self(nodes.into_iter().filter(|n| *n < 64).fold(0, |bits, n| bits | 1 << n))
    }

    pub fn nodes(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |n| self.has(*n))
    }

    pub fn has(self, node: u32) -> bool {
        node < 64 && self.0 & (1 << node) != 0
    }

    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub fn contains(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// Has fewer nodes, or as many with lower numbers.
    pub fn is_narrower(self, other: Self) -> bool {
        (self.count(), self.0) < (other.count(), other.0)
    }
}

/// Every set of these nodes but the empty one, the smaller first, and those with lower numbers before others.
pub fn masks(nodes: &[u32]) -> Vec<Mask> {
    let mut all: Vec<Vec<u32>> = vec![Vec::new()];
    for node in nodes {
        let with: Vec<Vec<u32>> = all.iter().map(|set| set.iter().copied().chain([*node]).collect()).collect();
        all.extend(with);
    }
    all.retain(|set| !set.is_empty());
    all.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    all.into_iter().map(Mask::of).collect()
}

/// One possibility. Without an affinity it does not matter where.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hint {
    pub affinity: Option<Mask>,
    pub preferred: bool,
}

impl Hint {
    pub const ANYWHERE: Self = Self { affinity: None, preferred: true };
    pub const NOWHERE: Self = Self { affinity: None, preferred: false };
}

/// Possibilities of as few nodes as could ever do are well, others are not.
pub fn judged(fitting: Vec<Mask>, fewest: usize) -> Vec<Hint> {
    fitting.into_iter().map(|mask| Hint { affinity: Some(mask), preferred: mask.count() == fewest }).collect()
}

/// A device: its id, and the nodes it is near to; none for one that does not say.
pub type Placed = (String, Option<Mask>);

/// Where so many devices of a resource could be had; `None`, when none of them lies anywhere in particular.
pub fn of_devices(nodes: &[u32], all: &[Placed], free: &[String], spare: &[String], count: usize) -> Option<Vec<Hint>> {
    all.iter().find(|(_, mask)| mask.is_some())?;
    let near = |id: &String, mask: Mask| {
        let own = all.iter().find(|(other, _)| other == id).and_then(|(_, m)| *m);
        own.map(|own| own.and(mask).count() > 0)
    };
    let (mut fewest, mut fitting) = (nodes.len(), Vec::new());
    for mask in masks(nodes) {
        let ever = all.iter().filter(|(id, _)| near(id, mask) == Some(true)).count();
        if ever >= count {
            fewest = fewest.min(mask.count());
        }
        // What the pod has already must be among it.
        if spare.iter().any(|id| near(id, mask) == Some(false)) {
            continue;
        }
        let mine = spare.iter().filter(|id| near(id, mask).is_some()).count();
        let others = free.iter().filter(|id| !spare.contains(id) && near(id, mask) == Some(true)).count();
        if mine + others >= count {
            fitting.push(mask);
        }
    }
    Some(judged(fitting, fewest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_come_in_order() {
        let shown: Vec<Vec<u32>> = masks(&[0, 1, 2]).into_iter().map(|m| m.nodes().collect()).collect();
        assert_eq!(shown, [vec![0], vec![1], vec![2], vec![0, 1], vec![0, 2], vec![1, 2], vec![0, 1, 2]]);
        assert!(Mask::of([5]).is_narrower(Mask::of([0, 1])) && Mask::of([0, 2]).is_narrower(Mask::of([1, 2])));
    }

    /// Upstream's cases of its device manager, on two nodes.
    #[test]
    fn devices_say_where_they_are() {
        let placed = |text: &str| -> Vec<Placed> {
            let one = |word: &str| match word.split_once('@') {
                Some((id, nodes)) => (id.to_string(), Some(Mask::of(nodes.split('+').map(|n| n.parse().unwrap())))),
                None => (word.to_string(), None),
            };
            text.split_whitespace().map(one).collect()
        };
        let ids = |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_string).collect() };
        let shown = |hints: Option<Vec<Hint>>| match hints {
            None => "anywhere".to_string(),
            Some(hints) => hints
                .iter()
                .map(|h| {
                    let nodes: Vec<String> = h.affinity.unwrap().nodes().map(|n| n.to_string()).collect();
                    format!("{}{}", nodes.join("+"), if h.preferred { "!" } else { "" })
                })
                .collect::<Vec<_>>()
                .join(" "),
        };
        for (all, free, spare, count, expect) in [
            ("a b", "a b", "", 1, "anywhere"),
            ("a@0 b@1", "a b", "", 1, "0! 1! 0+1"),
            ("a@0 b@1", "b", "", 1, "1! 0+1"),
            ("a@0", "a", "", 1, "0! 0+1"),
            ("a@0 b@1", "a b", "", 2, "0+1!"),
            ("a@0 b@1 c@0 d@1", "a b c d", "", 2, "0! 1! 0+1"),
            ("a@0 b@1 c@0 d@1", "a b", "", 2, "0+1"),
            ("a@0 b@1 c@0 d@1", "b c d", "a", 2, "0! 0+1"),
            ("a@0 b@1 c@0 d@1", "", "a c", 2, "0! 0+1"),
            ("a@0+1 b@1", "a b", "", 1, "0! 1! 0+1"),
            ("a@0 b@1", "", "", 1, ""),
        ] {
            let got = of_devices(&[0, 1], &placed(all), &ids(free), &ids(spare), count);
            assert_eq!(shown(got), expect, "{count} of {free} among {all}, having {spare}");
        }
    }
}
