//! Of what several givers could do, what goes together best, and whether that is well enough: upstream's topology
//! policies as pure functions.

use std::collections::BTreeMap;

use super::hint::{Hint, Mask};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Nothing is looked at.
    #[default]
    None,
    /// As well as can be.
    BestEffort,
    /// Well, or not at all.
    Restricted,
    /// All on one memory node, or not at all.
    SingleNode,
}

impl Policy {
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "" | "none" => Self::None,
            "best-effort" => Self::BestEffort,
            "restricted" => Self::Restricted,
            "single-numa-node" => Self::SingleNode,
            _ => return None,
        })
    }

    /// Whether a pod that cannot be placed well is refused.
    pub fn is_strict(self) -> bool {
        matches!(self, Self::Restricted | Self::SingleNode)
    }
}

/// The memory nodes of a machine: from each to each, how far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Nodes(pub BTreeMap<u32, BTreeMap<u32, u64>>);

impl Nodes {
    pub fn numbers(&self) -> Vec<u32> {
        self.0.keys().copied().collect()
    }

    fn all(&self) -> Mask {
        Mask::of(self.0.keys().copied())
    }

    /// How far the nodes of a set are from each other, on average.
    fn spread(&self, mask: Mask) -> f64 {
        let pairs = mask.nodes().flat_map(|a| mask.nodes().map(move |b| (a, b)));
        let far = |(a, b): (u32, u32)| self.0.get(&a).and_then(|to| to.get(&b)).copied().unwrap_or(0);
        let (sum, count) = pairs.fold((0, 0), |(sum, count), pair| (sum + far(pair), count + 1));
        if count == 0 { 0.0 } else { sum as f64 / f64::from(count) }
    }
}

/// How possibilities are weighed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rules {
    pub policy: Policy,
    /// Of sets of one size, that whose nodes are nearer to each other.
    pub closest: bool,
}

/// What one giver can do for one resource, if it cares.
pub type Offers = Vec<Vec<Hint>>;

struct Weighing<'a> {
    nodes: &'a Nodes,
    rules: Rules,
    /// Of possibilities that are not well: as many nodes as the hungriest resource needs at least.
    enough: usize,
}

impl Weighing<'_> {
    /// The fitter of two sets, the first where they are alike.
    fn fitter(&self, a: Hint, b: Hint) -> Hint {
        let (Some(left), Some(right)) = (a.affinity, b.affinity) else { return a };
        let closest = self.rules.closest && self.rules.policy != Policy::SingleNode && left.count() == right.count();
        let (near, far) = (self.nodes.spread(left), self.nodes.spread(right));
        let other = if closest && near != far { far < near } else { right.is_narrower(left) };
        if other { b } else { a }
    }

    fn better(&self, best: Option<Hint>, other: Hint) -> Option<Hint> {
        let count = |hint: Hint| hint.affinity.map_or(0, Mask::count);
        if count(other) == 0 {
            return best;
        }
        let Some(best) = best else { return Some(other) };
        let (had, has) = (count(best), count(other));
        Some(match (best.preferred, other.preferred) {
            (false, true) => other,
            (true, false) => best,
            (true, true) => self.fitter(best, other),
            (false, false) if had > self.enough => self.fitter(best, other),
            (false, false) if had == self.enough && has != self.enough => best,
            (false, false) if had == self.enough => self.fitter(best, other),
            (false, false) if has > self.enough => best,
            (false, false) if has == self.enough || has > had => other,
            (false, false) if has < had => best,
            (false, false) => self.fitter(best, other),
        })
    }

    /// Every choice of one possibility of each offer, put together.
    fn each(&self, offers: &[Vec<Hint>], chosen: &mut Vec<Hint>, best: &mut Option<Hint>) {
        let Some((first, rest)) = offers.split_first() else {
            *best = self.better(*best, together(self.nodes.all(), chosen));
            return;
        };
        for hint in first {
            chosen.push(*hint);
            self.each(rest, chosen, best);
            chosen.pop();
        }
    }
}

/// What is left of several possibilities: well only if all are and none differs.
fn together(all: Mask, chosen: &[Hint]) -> Hint {
    let sets: Vec<Mask> = chosen.iter().filter_map(|h| h.affinity).collect();
    let alike = sets.windows(2).all(|pair| pair[0] == pair[1]);
    let affinity = sets.iter().fold(all, |left, set| left.and(*set));
    Hint { affinity: Some(affinity), preferred: alike && chosen.iter().all(|h| h.preferred) }
}

/// The best there is, and whether a pod may have it. An offer without possibilities is one that cannot be kept.
pub fn merge(nodes: &Nodes, rules: Rules, offers: &[Vec<Hint>]) -> (Hint, bool) {
    if rules.policy == Policy::None {
        return (Hint::NOWHERE, true);
    }
    let mut offers: Offers =
        offers.iter().map(|offer| if offer.is_empty() { vec![Hint::NOWHERE] } else { offer.clone() }).collect();
    if rules.policy == Policy::SingleNode {
        for offer in &mut offers {
            offer.retain(|h| h.preferred && h.affinity.is_none_or(|mask| mask.count() == 1));
        }
    }
    let narrowest = |offer: &Vec<Hint>| {
        let sets = offer.iter().filter_map(|h| h.affinity);
        sets.reduce(|a, b| if b.is_narrower(a) { b } else { a }).map_or(0, Mask::count)
    };
    let enough = offers.iter().map(narrowest).max().unwrap_or(0);
    let mut best = None;
    Weighing { nodes, rules, enough }.each(&offers, &mut Vec::new(), &mut best);
    let mut best = best.unwrap_or(Hint { affinity: Some(nodes.all()), preferred: false });
    if rules.policy == Policy::SingleNode && best.affinity == Some(nodes.all()) {
        best.affinity = None;
    }
    (best, best.preferred || !rules.policy.is_strict())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Possibilities of one resource, `0+1!`; those of others after a comma; `-` for one that does not care, nothing for
    /// one that cannot.
    fn offers(text: &str) -> Offers {
        let set = |word: &str| Mask::of(word.split('+').map(|n| n.parse().unwrap()));
        let hint = |word: &str| match word.strip_suffix('!') {
            Some(nodes) => Hint { affinity: Some(set(nodes)), preferred: true },
            None => Hint { affinity: Some(set(word)), preferred: false },
        };
        let one = |text: &str| match text.trim() {
            "-" => vec![Hint::ANYWHERE],
            words => words.split_whitespace().map(hint).collect(),
        };
        text.split(',').map(one).collect()
    }

    fn shown((hint, admitted): (Hint, bool)) -> String {
        let nodes = hint.affinity.map(|m| m.nodes().map(|n| n.to_string()).collect::<Vec<_>>().join("+"));
        let nodes = nodes.unwrap_or("-".into());
        format!("{nodes}{}{}", if hint.preferred { "!" } else { "" }, if admitted { "" } else { " refused" })
    }

    fn machine(count: u32) -> Nodes {
        let far = |a: u32, b: u32| {
            if a == b {
                10
            } else if a / 2 == b / 2 {
                12
            } else {
                20
            }
        };
        Nodes((0..count).map(|a| (a, (0..count).map(|b| (b, far(a, b))).collect())).collect())
    }

    fn check(nodes: u32, rules: Rules, cases: &[(&str, &str)]) {
        for (text, expect) in cases {
            assert_eq!(shown(merge(&machine(nodes), rules, &offers(text))), *expect, "{text:?} by {rules:?}");
        }
    }

    /// Upstream's common table.
    const COMMON: [(&str, &str); 8] = [
        ("0!,0!", "0!"),
        ("1!,1!", "1!"),
        ("-,0!", "0!"),
        ("-,1!", "1!"),
        ("0! 1!,0!", "0!"),
        ("0! 1!,0! 0+1", "0!"),
        ("1! 0+1,0! 1! 0+1", "1!"),
        ("1!,0! 1! 0+1", "1!"),
    ];

    #[test]
    fn what_goes_together() {
        for policy in [Policy::BestEffort, Policy::Restricted, Policy::SingleNode] {
            check(4, Rules { policy, closest: false }, &COMMON);
        }
        check(4, Rules { policy: Policy::None, closest: false }, &[("0!,1!", "-")]);
    }

    #[test]
    fn as_well_as_can_be() {
        let rules = Rules { policy: Policy::BestEffort, closest: false };
        check(
            4,
            rules,
            &[
                ("0+1! 0+2!,0+1! 0+2!", "0+1!"),
                ("-,-", "0+1+2+3!"),
                ("", "0+1+2+3"),
                ("0!,", "0"),
                ("0!,1!", "0+1+2+3"),
                ("0!,0+1", "0"),
                ("0+1+3,0+1+3", "0+1+3"),
                ("0 1,0 0+1", "0"),
                ("0+1 0+1+2+3,0+1+2+3", "0+1+2+3"),
                ("0+1+2+3!,0+1", "0+1"),
            ],
        );
    }

    #[test]
    fn well_or_not_at_all() {
        let rules = Rules { policy: Policy::Restricted, closest: false };
        check(
            4,
            rules,
            &[("0!,1!", "0+1+2+3 refused"), ("-,-", "0+1+2+3!"), ("0+1!,0+1!", "0+1!"), ("0!,", "0 refused")],
        );
        let rules = Rules { policy: Policy::SingleNode, closest: false };
        check(
            4,
            rules,
            &[
                ("-,-", "-!"),
                ("", "- refused"),
                ("0+1!,0+1!", "- refused"),
                ("0!,0+1!", "- refused"),
                ("0! 1!,1! 0+1!", "1!"),
                ("0!,1!", "- refused"),
                ("0,0!", "- refused"),
            ],
        );
    }

    #[test]
    fn nearer_nodes_go_before_lower_ones() {
        let cases = [("0+3! 2+3!,0+3! 2+3!", "0+3!", "2+3!"), ("0+1! 0+2!,-", "0+1!", "0+1!")];
        for (text, narrow, near) in cases {
            for (closest, expect) in [(false, narrow), (true, near)] {
                check(4, Rules { policy: Policy::BestEffort, closest }, &[(text, expect)]);
            }
        }
    }
}
