//! A table in memory that takes nft's commands as strictly as the kernel does, and packets.
//!
//! Random histories of Services and endpoints are played: after each step the table got to by differences must equal the
//! table written whole, and send every packet where a plain reading of the objects says.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::{compiled, service, slice, view};
use crate::nft::{changes, full};
use crate::program::Delta;
use crate::{Config, Family, Ruleset};

/// What the table holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Model {
    pub(super) sets: BTreeMap<String, BTreeMap<String, String>>,
    pub(super) chains: BTreeMap<String, Vec<String>>,
}

impl Model {
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
    fn packet(&self, source: Source, address: &str, protocol: &str, port: u16) -> (Outcome, bool) {
        let key = format!("{address} . {protocol} . {port}");
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
                return Outcome::To(BTreeSet::from([endpoint.to_string()]));
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
enum Source {
    Pod,
    Node,
    Outside,
}

#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    To(BTreeSet<String>),
    Refused,
    Dropped,
    /// None of the proxy's business.
    Untouched,
}

/// An endpoint: number, local, ready, serving.
type Listed = (u8, bool, bool, bool);

/// A small Service as the objects say it, before any cleverness.
#[derive(Clone, Debug)]
struct Plain {
    number: u8,
    protocol: &'static str,
    external: bool,
    affinity: bool,
    internal_local: bool,
    external_local: bool,
    endpoints: Vec<Listed>,
}

impl Plain {
    fn objects(&self) -> (core::Service, EndpointSlice) {
        let name = format!("s{}", self.number);
        let mut spec = json!({"type": "NodePort", "clusterIP": format!("10.7.0.{}", self.number),
            "ports": [{"name": "p", "port": 80, "protocol": self.protocol, "nodePort": 30000 + u32::from(self.number)}],
            "internalTrafficPolicy": if self.internal_local { "Local" } else { "Cluster" },
            "externalTrafficPolicy": if self.external_local { "Local" } else { "Cluster" }});
        if self.affinity {
            spec["sessionAffinity"] = "ClientIP".into();
        }
        if self.external {
            spec["externalIPs"] = json!(["198.51.100.1"]);
        }
        let endpoints: Vec<Value> = self
            .endpoints
            .iter()
            .map(|(n, local, ready, serving)| {
                json!({"addresses": [format!("10.8.0.{n}")], "nodeName": if *local { "here" } else { "there" },
                    "conditions": {"ready": ready, "serving": serving, "terminating": !ready}})
            })
            .collect();
        let ports = json!([{"name": "p", "port": 8080, "protocol": self.protocol}]);
        (service(&name, spec), slice(&name, ports, Value::Array(endpoints)))
    }

    fn usable(&self, local_only: bool) -> BTreeSet<String> {
        let near = |e: &&Listed| e.1 || !local_only;
        let pick = |want: fn(&Listed) -> bool| -> BTreeSet<String> {
            self.endpoints.iter().filter(near).filter(|e| want(e)).map(|e| format!("10.8.0.{}:8080", e.0)).collect()
        };
        let ready = pick(|e| e.2);
        if ready.is_empty() { pick(|e| e.3) } else { ready }
    }

    fn expect(&self, source: Source, external: bool) -> (Outcome, bool) {
        let (all, here) = (self.usable(false), self.usable(true));
        let to = |set: &BTreeSet<String>, marked: bool| (Outcome::To(set.clone()), marked);
        let outside = source != Source::Pod;
        match (external, if external { self.external_local } else { self.internal_local }) {
            _ if all.is_empty() && here.is_empty() => (Outcome::Refused, false),
            (false, false) => to(&all, outside),
            (false, true) if here.is_empty() => (Outcome::Dropped, false),
            (false, true) => to(&here, outside),
            (true, false) => to(&all, true),
            (true, true) => match source {
                Source::Pod => to(&all, false),
                Source::Node => to(&all, true),
                Source::Outside if here.is_empty() => (Outcome::Dropped, false),
                Source::Outside => to(&here, false),
            },
        }
    }
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

    fn service(&mut self, number: u8) -> Plain {
        let endpoints = (0..self.roll(6))
            .map(|_| {
                let n = self.roll(9) as u8 + 1;
                let ready = !self.yes(3);
                (n, n.is_multiple_of(2), ready, ready || self.yes(2))
            })
            .map(|e| (e.0, e))
            .collect::<BTreeMap<_, _>>()
            .into_values()
            .collect();
        Plain {
            number,
            protocol: ["TCP", "UDP", "SCTP"][self.roll(3) as usize],
            external: self.yes(2),
            affinity: self.yes(3),
            internal_local: self.yes(3),
            external_local: self.yes(2),
            endpoints,
        }
    }
}

#[test]
fn random_histories() {
    let config = Config { cluster_cidrs: vec!["10.8.0.0/16".parse().unwrap()], ..Config::new("here") };
    for seed in 0..12 {
        let mut dice = Dice(seed);
        let mut world: BTreeMap<u8, Plain> = BTreeMap::new();
        let mut table = Ruleset::new(Family::V4, &view(), &config);
        let mut model = Model::default();
        model.apply(&full(&table).text);
        for _ in 0..40 {
            let mut delta = Delta::default();
            for _ in 0..=dice.roll(3) {
                let number = dice.roll(6) as u8 + 1;
                let key = format!("ns/s{number}");
                if dice.yes(5) {
                    world.remove(&number);
                    table.update(key.as_str(), None, &mut delta);
                    continue;
                }
                let plain = dice.service(number);
                let (service, slice) = plain.objects();
                world.insert(number, plain);
                let previous = table.fragment(&key).cloned();
                let next = compiled(&service, &[slice], &config, previous.as_deref());
                table.update(key.as_str(), next, &mut delta);
            }
            model.apply(&changes(&delta, &table).text);
            let mut whole = Model::default();
            whole.apply(&full(&table).text);
            assert_eq!(model.used(), whole.used(), "seed {seed}");
            for (number, plain) in &world {
                let protocol = plain.protocol.to_lowercase();
                for source in [Source::Pod, Source::Node, Source::Outside] {
                    let ip = format!("10.7.0.{number}");
                    assert_eq!(
                        model.packet(source, &ip, &protocol, 80),
                        plain.expect(source, false),
                        "{source:?} → {plain:?}"
                    );
                    let port = 30000 + u16::from(*number);
                    let got = model.packet(source, "192.0.2.1", &protocol, port);
                    assert_eq!(got, plain.expect(source, true), "{source:?} → node port of {plain:?}");
                    assert_eq!(model.packet(source, &ip, &protocol, 81).0, Outcome::Refused);
                }
            }
            // The external IP is the first claimant's, for each protocol.
            for protocol in ["TCP", "UDP", "SCTP"] {
                let owner = world.values().find(|plain| plain.external && plain.protocol == protocol);
                let got = model.packet(Source::Outside, "198.51.100.1", &protocol.to_lowercase(), 80);
                let expect = owner.map_or((Outcome::Untouched, false), |plain| plain.expect(Source::Outside, true));
                assert_eq!(got, expect, "seed {seed} {protocol}");
            }
        }
    }
}
