//! Random histories of Services and their slices, in both address families: after each step the table got to by differences
//! must equal the table written whole, and send every packet where a plain reading of the objects says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use super::model::{Dice, Model, Outcome, Source};
use super::service;
use crate::nft::{changes, full};
use crate::program::Delta;
use crate::world::World;
use crate::{Config, Family, NodeView, Ruleset};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
/// What loadBalancerSourceRanges may say: strangers only, or pods only.
const RANGES: [[&str; 2]; 2] = [["203.0.113.0/24", "2001:db8:9::/64"], ["10.0.0.0/8", "fd00::/8"]];
const SLICES: u8 = 2;

/// An endpoint, before any cleverness.
#[derive(Clone, Debug)]
struct Listed {
    number: u8,
    slice: u8,
    local: bool,
    ready: bool,
    serving: bool,
    /// Meant for this node, or another.
    node: Option<bool>,
    /// Meant for this zone, or another.
    zone: Option<bool>,
    /// Also in the other slice, as one that is not ready.
    twice: bool,
}

/// A small Service as the objects say it.
#[derive(Clone, Debug)]
struct Plain {
    number: u8,
    /// One port for each, of the same number.
    protocols: Vec<&'static str>,
    external: bool,
    /// Has a balancer's address; and who may use that, if not everybody.
    balanced: Option<Option<usize>>,
    affinity: bool,
    internal_local: bool,
    external_local: bool,
    /// Somebody else's, by its label.
    others: Option<&'static str>,
    endpoints: Vec<Listed>,
}

fn of(family: Family, v4: String, v6: String) -> String {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

fn pod(family: Family, number: u8) -> String {
    of(family, format!("10.8.0.{number}"), format!("fd00:8::{number}"))
}

fn vip(family: Family, number: u8) -> String {
    of(family, format!("10.7.0.{number}"), format!("fd00:7::{number}"))
}

fn balancer(family: Family, number: u8) -> String {
    of(family, format!("198.51.100.{}", 100 + number), format!("2001:db8:2::{number}"))
}

fn external(family: Family) -> String {
    of(family, "198.51.100.1".into(), "2001:db8:1::1".into())
}

fn node(family: Family) -> String {
    of(family, "192.0.2.1".into(), "2001:db8::1".into())
}

fn address(family: Family, source: Source) -> String {
    match source {
        Source::Pod => pod(family, 200),
        Source::Node => node(family),
        Source::Outside => of(family, "203.0.113.9".into(), "2001:db8:9::9".into()),
    }
}

impl Plain {
    fn service(&self) -> core::Service {
        let kind = if self.balanced.is_some() { "LoadBalancer" } else { "NodePort" };
        let ports = self.protocols.iter().map(|protocol| {
            json!({"name": protocol.to_lowercase(), "port": 80, "protocol": protocol,
                "nodePort": 30000 + u32::from(self.number)})
        });
        let mut spec = json!({"type": kind, "clusterIPs": FAMILIES.map(|family| vip(family, self.number)),
            "clusterIP": vip(Family::V4, self.number), "ports": ports.collect::<Vec<_>>(),
            "internalTrafficPolicy": if self.internal_local { "Local" } else { "Cluster" },
            "externalTrafficPolicy": if self.external_local { "Local" } else { "Cluster" }});
        if self.affinity {
            spec["sessionAffinity"] = "ClientIP".into();
        }
        if self.external {
            spec["externalIPs"] = json!(FAMILIES.map(external));
        }
        let mut out = service(&format!("s{}", self.number), spec);
        if let Some(ranges) = self.balanced {
            let ingress = FAMILIES.map(|family| json!({"ip": balancer(family, self.number), "ipMode": "VIP"}));
            out.status = serde_json::from_value(json!({"loadBalancer": {"ingress": ingress}})).unwrap();
            let ranges = ranges.map(|which| RANGES[which].map(str::to_string).to_vec());
            out.spec.as_mut().unwrap().load_balancer_source_ranges = ranges;
        }
        out.metadata.labels = self.others.map(|label| [(label.to_string(), String::new())].into());
        out
    }

    fn slices(&self) -> Vec<EndpointSlice> {
        let mut out = Vec::new();
        for (family, number) in FAMILIES.iter().flat_map(|family| (0..SLICES).map(move |number| (*family, number))) {
            let mut endpoints = Vec::new();
            for e in &self.endpoints {
                let conditions = if e.slice == number {
                    json!({"ready": e.ready, "serving": e.serving, "terminating": !e.ready})
                } else if e.twice {
                    json!({"ready": false, "serving": false, "terminating": true})
                } else {
                    continue;
                };
                let mut hints = json!({});
                if let Some(here) = e.zone {
                    hints["forZones"] = json!([{"name": if here { "a" } else { "b" }}]);
                }
                if let Some(here) = e.node {
                    hints["forNodes"] = json!([{"name": if here { "here" } else { "there" }}]);
                }
                endpoints.push(json!({"addresses": [pod(family, e.number)], "conditions": conditions, "hints": hints,
                    "nodeName": if e.local { "here" } else { "there" }}));
            }
            let ports = self
                .protocols
                .iter()
                .map(|protocol| json!({"name": protocol.to_lowercase(), "port": 8080, "protocol": protocol}));
            let name = format!("s{}-{}-{number}", self.number, family.nft());
            let body = json!({"addressType": family.address_type(), "ports": ports.collect::<Vec<_>>(),
                "endpoints": endpoints, "metadata": {"name": name, "namespace": "ns",
                    "labels": {"kubernetes.io/service-name": format!("s{}", self.number)}}});
            out.push(serde_json::from_value(body).unwrap());
        }
        out
    }

    /// Who gets traffic that may go anywhere, or must stay here.
    fn usable(&self, family: Family, local_only: bool) -> BTreeSet<String> {
        let all: Vec<&Listed> = self.endpoints.iter().filter(|e| e.local || !local_only).collect();
        let show = |e: &&Listed| format!("{}:8080", pod(family, e.number));
        let ready: Vec<&Listed> = all.iter().copied().filter(|e| e.ready).collect();
        if ready.is_empty() {
            return all.iter().filter(|e| e.serving).map(show).collect();
        }
        if !local_only {
            // A hint counts when every one has it and one of them means us.
            for hint in [|e: &Listed| e.node, |e: &Listed| e.zone] {
                if ready.iter().all(|e| hint(e).is_some()) && ready.iter().any(|e| hint(e) == Some(true)) {
                    return ready.iter().filter(|e| hint(e) == Some(true)).map(show).collect();
                }
            }
        }
        ready.iter().map(show).collect()
    }

    fn expect(&self, family: Family, source: Source, external: bool) -> (Outcome, bool) {
        let (all, here) = (self.usable(family, false), self.usable(family, true));
        let to = |set: &BTreeSet<String>, marked: bool| (Outcome::To(set.clone()), marked);
        let outside = source != Source::Pod;
        match (external, if external { self.external_local } else { self.internal_local }) {
            _ if self.others.is_some() => (Outcome::Untouched, false),
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

    fn expect_of_balancer(&self, family: Family, source: Source) -> (Outcome, bool) {
        let from: IpAddr = address(family, source).parse().unwrap();
        let within = |which: usize| RANGES[which].iter().any(|net| net.parse::<IpNet>().unwrap().contains(&from));
        match self.balanced {
            None => (Outcome::Untouched, false),
            Some(Some(which)) if self.others.is_none() && !within(which) => (Outcome::Dropped, false),
            Some(_) => self.expect(family, source, true),
        }
    }
}

fn random(dice: &mut Dice, number: u8) -> Plain {
    // No hints, of nodes, of zones, or whatever comes: not all have one then.
    let hints = dice.roll(6);
    let mut endpoints = BTreeMap::new();
    for _ in 0..dice.roll(6) {
        let number = dice.roll(9) as u8 + 1;
        let ready = !dice.yes(3);
        let hint = |dice: &mut Dice, all: bool| (all || hints == 5 && dice.yes(2)).then(|| dice.yes(2));
        let listed = Listed {
            number,
            slice: dice.roll(u64::from(SLICES)) as u8,
            local: number.is_multiple_of(2),
            ready,
            serving: ready || dice.yes(2),
            node: hint(dice, hints == 3),
            zone: hint(dice, hints == 4),
            twice: ready && dice.yes(4),
        };
        endpoints.insert(number, listed);
    }
    let first = dice.roll(3) as usize;
    let protocols = (0..=dice.roll(2) as usize).map(|more| PROTOCOLS[(first + more) % PROTOCOLS.len()]).collect();
    let labels = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];
    Plain {
        number,
        protocols,
        external: dice.yes(2),
        balanced: dice.yes(2).then(|| dice.yes(2).then(|| dice.roll(2) as usize)),
        affinity: dice.yes(3),
        internal_local: dice.yes(3),
        external_local: dice.yes(2),
        others: dice.yes(8).then(|| labels[dice.roll(2) as usize]),
        endpoints: endpoints.into_values().collect(),
    }
}

/// What is played to, and what is read.
struct Stage {
    config: Config,
    place: NodeView,
    plain: BTreeMap<u8, Plain>,
    world: World,
    tables: [Ruleset; 2],
    models: [Model; 2],
}

impl Stage {
    fn new() -> Stage {
        let cluster_cidrs: Vec<IpNet> = vec!["10.8.0.0/16".parse().unwrap(), "fd00:8::/64".parse().unwrap()];
        let config = Config { cluster_cidrs: cluster_cidrs.clone(), ..Config::new("here") };
        let place = NodeView {
            name: "here".into(),
            zone: "a".into(),
            addresses: FAMILIES.map(|family| node(family).parse().unwrap()).to_vec(),
            pod_networks: cluster_cidrs,
            ..NodeView::default()
        };
        let tables = FAMILIES.map(|family| Ruleset::new(family, &place, &config));
        let mut models = [Model::default(), Model::default()];
        for (model, table) in models.iter_mut().zip(&tables) {
            model.apply_of(table.family, &full(table).text);
        }
        Stage { config, place, plain: BTreeMap::new(), world: World::new("here"), tables, models }
    }

    /// A Service and its slices become this, in any order.
    fn put(&mut self, number: u8, plain: Option<Plain>, dice: &mut Dice) {
        let slices_first = dice.yes(2);
        let objects = plain.as_ref().map(|plain| (plain.service(), plain.slices()));
        for slices in [slices_first, !slices_first] {
            match &objects {
                Some((service, _)) if !slices => self.world.set_service(service),
                Some((_, all)) => all.iter().for_each(|slice| self.world.set_slice(slice)),
                None if !slices => self.world.remove_service(&format!("ns/s{number}")),
                None => {
                    for (family, slice) in FAMILIES.iter().flat_map(|f| (0..SLICES).map(move |n| (f, n))) {
                        self.world.remove_slice(&format!("ns/s{number}-{}-{slice}", family.nft()));
                    }
                }
            }
        }
        match plain {
            Some(plain) => self.plain.insert(number, plain),
            None => self.plain.remove(&number),
        };
    }

    /// Brings the tables up to date by differences, and compares them with whole ones.
    fn sync(&mut self, seed: u64) {
        let dirty = self.world.take_dirty();
        for (table, model) in self.tables.iter_mut().zip(&mut self.models) {
            let family = table.family;
            let mut delta = Delta::default();
            for key in &dirty {
                let previous = table.fragment(key).cloned();
                let next = self.world.compile(key, family, &self.place, &self.config, previous.as_deref());
                table.update(key.clone(), next, &mut delta);
            }
            model.apply_of(family, &changes(&delta, table).text);
            let mut whole = Model::default();
            whole.apply_of(family, &full(table).text);
            assert_eq!(model.used(), whole.used(), "seed {seed}");
        }
    }

    fn judge(&self, seed: u64) {
        for (family, model) in FAMILIES.iter().copied().zip(&self.models) {
            for source in [Source::Pod, Source::Node, Source::Outside] {
                for plain in self.plain.values() {
                    for protocol in PROTOCOLS {
                        judge_one(model, family, source, plain, protocol, seed);
                    }
                }
                // The external IP is the first claimant's, for each protocol.
                for protocol in PROTOCOLS {
                    let claims = |plain: &&Plain| {
                        plain.external && plain.others.is_none() && plain.protocols.contains(&protocol)
                    };
                    let owner = self.plain.values().find(claims);
                    let to = external(family);
                    let got = model.packet(source, &address(family, source), (&to, &protocol.to_lowercase(), 80));
                    let nobody = (Outcome::Untouched, false);
                    let expect = owner.map_or(nobody, |plain| plain.expect(family, source, true));
                    assert_eq!(got, expect, "seed {seed} {protocol}");
                }
            }
        }
    }
}

/// Whatever a Service answers on, one protocol.
fn judge_one(model: &Model, family: Family, source: Source, plain: &Plain, protocol: &str, seed: u64) {
    let (from, name) = (address(family, source), protocol.to_lowercase());
    let has = plain.protocols.contains(&protocol);
    let ask = |to: &str, port: u16| model.packet(source, &from, (to, &name, port));
    let told = |expect, otherwise| if has { expect } else { (otherwise, false) };
    let unserved = if plain.others.is_some() { Outcome::Untouched } else { Outcome::Refused };
    let node_port = 30000 + u16::from(plain.number);
    for (what, got, expect) in [
        (
            "cluster IP",
            ask(&vip(family, plain.number), 80),
            told(plain.expect(family, source, false), unserved.clone()),
        ),
        ("node port", ask(&node(family), node_port), told(plain.expect(family, source, true), Outcome::Untouched)),
        (
            "balancer",
            ask(&balancer(family, plain.number), 80),
            told(plain.expect_of_balancer(family, source), Outcome::Untouched),
        ),
        ("another port", ask(&vip(family, plain.number), 81), (unserved, false)),
    ] {
        assert_eq!(got, expect, "seed {seed} {what} {source:?} → {protocol} of {plain:?}");
    }
}

#[test]
fn random_histories() {
    for seed in 0..5 {
        let mut dice = Dice(seed);
        let mut stage = Stage::new();
        for _ in 0..14 {
            for _ in 0..=dice.roll(3) {
                let number = dice.roll(6) as u8 + 1;
                let plain = (!dice.yes(5)).then(|| random(&mut dice, number));
                stage.put(number, plain, &mut dice);
            }
            stage.sync(seed);
            stage.judge(seed);
        }
    }
}
