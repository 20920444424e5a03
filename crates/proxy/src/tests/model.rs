//! A table in memory that takes nft's commands as strictly as the kernel does, and packets.
//!
//! Random histories of Services are played to it, and of policies. IPv6's table is the same but for its words, so it is told
//! of as IPv4's ([`Model::apply_of`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::Family;

/// What the table holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Model {
    pub(super) sets: BTreeMap<String, BTreeMap<String, String>>,
    pub(super) chains: BTreeMap<String, Vec<String>>,
}

impl Model {
    /// One transaction of a family.
    pub(super) fn apply_of(&mut self, family: Family, text: &str) {
        match family {
            Family::V4 => self.apply(text),
            Family::V6 => self.apply(&text.replace("ip6 ", "ip ")),
        }
    }

    /// One transaction. Panics where nft or the kernel would refuse.
    pub(super) fn apply(&mut self, text: &str) {
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let rest = |from: usize| words[from..].join(" ");
            match words[..2] {
                ["add" | "delete", "table"] => *self = Model::default(),
                ["add", "map" | "set"] => {
                    assert!(self.sets.insert(words[4].into(), BTreeMap::new()).is_none(), "{line}");
                }
                ["add", "chain"] => assert!(self.chains.insert(words[4].into(), Vec::new()).is_none(), "{line}"),
                ["add", "rule"] => {
                    let rule = rest(5);
                    for target in targets(&rule) {
                        assert!(self.chains.contains_key(target), "no chain {target}: {line}");
                    }
                    for set in rule.split('@').skip(1) {
                        let name = set.split(' ').next().unwrap();
                        assert!(self.sets.contains_key(name), "no set {name}: {line}");
                    }
                    self.chains.get_mut(words[4]).expect(line).push(rule);
                }
                ["flush", "chain"] => self.chains.get_mut(words[4]).expect(line).clear(),
                ["delete", "chain"] => {
                    let gone = self.chains.remove(words[4]).expect(line);
                    assert!(gone.is_empty(), "not flushed: {line}");
                    self.assert_unused(words[4]);
                }
                ["delete", "set"] => {
                    self.sets.remove(words[4]).expect(line);
                    let at = format!("@{} ", words[4]);
                    assert!(
                        !self.chains.values().flatten().any(|rule| format!("{rule} ").contains(&at)),
                        "in use: {line}"
                    );
                }
                [verb @ ("add" | "delete"), "element"] => {
                    let list = rest(5);
                    let list = list.strip_prefix("{ ").and_then(|list| list.strip_suffix(" }")).expect(line);
                    for element in list.split(", ") {
                        let (key, value) = element.split_once(" : ").unwrap_or((element, ""));
                        for target in targets(value) {
                            assert!(self.chains.contains_key(target), "no chain {target}: {element}");
                        }
                        let set = self.sets.get_mut(words[4]).expect(line);
                        if verb == "add" {
                            let before = set.insert(key.into(), value.into());
                            assert!(before.is_none_or(|before| before == value), "exists: {element} in {line}");
                        } else {
                            assert!(set.remove(key).is_some(), "no {element}: {line}");
                        }
                    }
                }
                _ => panic!("unknown command: {line}"),
            }
        }
    }

    /// Without chains that are kept although nothing leads to them.
    pub(super) fn used(&self) -> Model {
        let mut out = self.clone();
        loop {
            let led_to: BTreeSet<String> = out
                .chains
                .values()
                .flatten()
                .chain(out.sets.values().flat_map(BTreeMap::values))
                .flat_map(|text| targets(text))
                .map(str::to_string)
                .collect();
            let before = out.chains.len();
            out.chains.retain(|name, _| !name.contains("spread") || led_to.contains(name));
            if out.chains.len() == before {
                return out;
            }
        }
    }

    fn assert_unused(&self, chain: &str) {
        let rules = self.chains.values().flatten().map(String::as_str);
        let values = self.sets.values().flat_map(BTreeMap::values).map(String::as_str);
        assert!(!rules.chain(values).any(|text| targets(text).contains(&chain)), "{chain} is in use");
    }

    /// All endpoints a new connection may be sent to, or why none; and whether its source is rewritten.
    pub(super) fn packet(&self, source: Source, from: &str, to: (&str, &str, u16)) -> (Outcome, bool) {
        let (address, protocol, port) = to;
        let key = format!("{address} . {protocol} . {port}");
        let from: IpAddr = from.parse().unwrap();
        let is_let_in = |entry: &String| {
            let range = entry.strip_prefix(&format!("{key} . "));
            range.is_some_and(|range| range.parse::<IpNet>().unwrap().contains(&from))
        };
        if self.sets["restricted"].contains_key(&key) && !self.sets["sources"].keys().any(is_let_in) {
            return (Outcome::Dropped, false);
        }
        let verdict = self.sets["frontends"].get(&key).or_else(|| {
            self.sets["node-addresses"].get(address)?;
            self.sets["node-ports"].get(&format!("{protocol} . {port}"))
        });
        let mut marked = false;
        let outcome = match verdict {
            Some(verdict) => self.follow(verdict, source, &key, &mut marked),
            None if self.sets["cluster-ips"].contains_key(address) => Outcome::Refused,
            None => Outcome::Untouched,
        };
        (outcome, marked)
    }

    fn follow(&self, verdict: &str, source: Source, key: &str, marked: &mut bool) -> Outcome {
        match verdict {
            "drop" => return Outcome::Dropped,
            "goto refuse" => return Outcome::Refused,
            _ => {}
        }
        let chain = verdict.strip_prefix("goto ").expect(verdict);
        for rule in &self.chains[chain] {
            // Conditions first.
            let rest = if let Some(rest) = rule.strip_prefix("ip saddr != @pod-networks ") {
                if source == Source::Pod {
                    continue;
                }
                rest
            } else if let Some(rest) = rule.strip_prefix("ip saddr @pod-networks ") {
                if source != Source::Pod {
                    continue;
                }
                rest
            } else if let Some(rest) = rule.strip_prefix("fib saddr type local ") {
                if source != Source::Node {
                    continue;
                }
                rest
            } else if rule.starts_with("ip saddr @affinity-") || rule.starts_with("update ") {
                // Nobody has been here before.
                continue;
            } else {
                rule
            };
            let rest = match rest.strip_prefix("meta mark set meta mark or 0x4000") {
                Some(rest) => {
                    *marked = true;
                    rest.trim_start()
                }
                None => rest,
            };
            if rest.is_empty() {
                continue;
            }
            if let Some(endpoint) = rest.split("dnat to ").nth(1) {
                return Outcome::To(BTreeSet::from([endpoint.replace(['[', ']'], "")]));
            }
            if let Some((count, map)) = spread(rest) {
                let (address, port) = (key.split(" . ").next().unwrap(), key.rsplit(" . ").next().unwrap());
                let stem = if rest.contains("ip daddr") { format!("{address} . {port}") } else { port.to_string() };
                let found = count.map(|index| self.sets[map][&format!("{stem} . {index}")].replace(" . ", ":"));
                return Outcome::To(found.collect());
            }
            if let Some((_, choices)) = rest.split_once(" vmap { ") {
                let all = choices.trim_end_matches(" }").split(", ").map(|choice| choice.split_once(" : ").unwrap().1);
                let outcomes = all.map(|verdict| self.follow(verdict, source, key, marked));
                return Outcome::To(
                    outcomes.flat_map(|o| if let Outcome::To(to) = o { to } else { BTreeSet::new() }).collect(),
                );
            }
            return self.follow(rest, source, key, marked);
        }
        panic!("chain {chain} ends without a verdict");
    }
}

/// The indexes and the map of a `dnat … numgen random mod N [offset O] map @M`.
fn spread(rule: &str) -> Option<(std::ops::Range<usize>, &str)> {
    let (_, tail) = rule.split_once("numgen random mod ")?;
    let (numbers, map) = tail.split_once(" map @")?;
    let mut numbers = numbers.split(" offset ").map(|number| number.parse::<usize>().unwrap());
    let (count, offset) = (numbers.next()?, numbers.next().unwrap_or(0));
    Some((offset..offset + count, map))
}

fn targets(text: &str) -> Vec<&str> {
    let mut words = text.split([' ', ',']).peekable();
    let mut out = Vec::new();
    while let Some(word) = words.next() {
        if matches!(word, "goto" | "jump") {
            out.extend(words.peek().copied());
        }
    }
    out
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Source {
    Pod,
    Node,
    Outside,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    To(BTreeSet<String>),
    Refused,
    Dropped,
    /// None of the proxy's business.
    Untouched,
}

/// A small generator: the same histories on every run.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    pub(super) fn yes(&mut self, one_in: u64) -> bool {
        self.roll(one_in) == 0
    }
}
