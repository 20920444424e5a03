//! NetworkPolicies: what the table lets through equals what a plain reading of the objects says.
//!
//! Random histories of policies, pods and namespaces; after each step the table got to by differences must hold what the
//! table written whole holds, and judge every connection among pods and strangers as [`World::allows`] does.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::model::{Dice, Model};
use super::view;
use crate::nft::{changes, element_changes, full};
use crate::policies::Policies;
use crate::policy::{Labels, Pod, Policy};
use crate::program::Delta;
use crate::{Config, Family, Ruleset};

/// Histories, and steps of each.
const SEEDS: u64 = 10;
const STEPS: usize = 24;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const OUTSIDE: [[&str; 3]; 2] =
    [["203.0.113.5", "10.1.2.3", "10.1.9.9"], ["2001:db8::5", "fd01:1:2::3", "fd01:1:9::9"]];

/// One packet that opens a connection.
#[derive(Clone, Copy, Debug)]
struct Packet<'a> {
    from: &'a str,
    to: &'a str,
    protocol: &'a str,
    port: u16,
}

/// Judges by the table's text, rule by rule.
fn passes(model: &Model, packet: Packet<'_>) -> bool {
    let through = |map: &str, key: &str| match model.sets[map].get(key) {
        Some(verdict) => judged(model, verdict.strip_prefix("goto ").unwrap(), packet),
        None => true,
    };
    through("policy-egress", packet.from) && through("policy-ingress", packet.to)
}

fn judged(model: &Model, chain: &str, packet: Packet<'_>) -> bool {
    run(model, chain, packet).unwrap_or_else(|| panic!("{chain} ends without a verdict"))
}

/// `None`: the chain falls through to where it was called from.
fn run(model: &Model, chain: &str, packet: Packet<'_>) -> Option<bool> {
    for rule in &model.chains[chain] {
        if rule == "drop" {
            return Some(false);
        }
        if let Some(chain) = rule.strip_prefix("jump ") {
            if let Some(verdict) = run(model, chain, packet) {
                return Some(verdict);
            }
            continue;
        }
        if matches(model, rule.strip_suffix("accept").expect(rule), packet) {
            return Some(true);
        }
    }
    None
}

/// Each match of a rule in turn.
fn matches(model: &Model, mut rest: &str, packet: Packet<'_>) -> bool {
    while !rest.is_empty() {
        let take = |prefix: &str| rest.strip_prefix(prefix);
        let (holds, after) = if let Some(after) = take("ip daddr . ") {
            let (protocol, after) = after.split_once(" dport @").unwrap();
            let (set, after) = after.split_once(' ').unwrap();
            let key = format!("{} . {}", packet.to, packet.port);
            (packet.protocol == protocol && model.sets[set].contains_key(&key), after)
        } else if let Some(after) = take("ip saddr ") {
            address(model, after, packet.from)
        } else if let Some(after) = take("ip daddr ") {
            address(model, after, packet.to)
        } else if let Some(after) = take("meta l4proto ") {
            let (protocol, after) = after.split_once(' ').unwrap();
            (packet.protocol == protocol, after)
        } else {
            let (protocol, after) = rest.split_once(" dport { ").unwrap();
            let (list, after) = after.split_once(" } ").unwrap();
            let within = list.split(", ").any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                (first.parse().unwrap()..=last.parse().unwrap()).contains(&packet.port)
            });
            (packet.protocol == protocol && within, after)
        };
        if !holds {
            return false;
        }
        rest = after;
    }
    true
}

fn address<'a>(model: &Model, after: &'a str, address: &str) -> (bool, &'a str) {
    let ip: IpAddr = address.parse().unwrap();
    if let Some(after) = after.strip_prefix("!= { ") {
        let (list, after) = after.split_once(" } ").unwrap();
        return (!list.split(", ").any(|net| net.parse::<IpNet>().unwrap().contains(&ip)), after);
    }
    let (what, after) = after.split_once(' ').unwrap();
    match what.strip_prefix('@') {
        Some(set) => (model.sets[set].contains_key(address), after),
        None => (what.parse::<IpNet>().unwrap().contains(&ip), after),
    }
}

/// The objects.
#[derive(Clone, Debug, Default)]
struct World {
    namespaces: BTreeMap<String, Value>,
    /// By `namespace/name`: labels, an address of each family, local.
    pods: BTreeMap<String, (Value, [String; 2], bool)>,
    policies: BTreeMap<String, Value>,
}

impl World {
    /// As Kubernetes says it, without any cleverness.
    fn allows(&self, packet: Packet<'_>) -> bool {
        self.allows_side(packet.from, packet.to, packet, "Egress", "egress", "to")
            && self.allows_side(packet.to, packet.from, packet, "Ingress", "ingress", "from")
    }

    fn pod_at(&self, address: &str) -> Option<(&str, &Value, bool)> {
        self.pods
            .iter()
            .find(|(_, pod)| pod.1.iter().any(|own| own == address))
            .map(|(key, pod)| (key.split_once('/').unwrap().0, &pod.0, pod.2))
    }

    fn allows_side(&self, own: &str, other: &str, packet: Packet<'_>, kind: &str, rules: &str, peers: &str) -> bool {
        let Some((namespace, labels, true)) = self.pod_at(own) else { return true };
        let mut isolated = false;
        for (key, spec) in &self.policies {
            let mine = key.split_once('/').unwrap().0 == namespace && selected(&spec["podSelector"], labels);
            if !mine || !spec["policyTypes"].as_array().unwrap().contains(&json!(kind)) {
                continue;
            }
            isolated = true;
            for rule in spec[rules].as_array().into_iter().flatten() {
                let peer = rule[peers]
                    .as_array()
                    .is_none_or(|list| list.is_empty() || list.iter().any(|peer| self.is_peer(peer, namespace, other)));
                let port = rule["ports"]
                    .as_array()
                    .is_none_or(|list| list.is_empty() || list.iter().any(|port| self.is_port(port, packet)));
                if peer && port {
                    return true;
                }
            }
        }
        !isolated
    }

    fn is_peer(&self, peer: &Value, own: &str, address: &str) -> bool {
        if peer["ipBlock"].is_object() {
            let ip: IpAddr = address.parse().unwrap();
            let within = |net: &Value| net.as_str().unwrap().parse::<IpNet>().unwrap().contains(&ip);
            let except = peer["ipBlock"]["except"].as_array();
            return within(&peer["ipBlock"]["cidr"]) && !except.into_iter().flatten().any(within);
        }
        let Some((namespace, labels, _)) = self.pod_at(address) else { return false };
        let there = match &peer["namespaceSelector"] {
            Value::Null => namespace == own,
            selector => self.namespaces.get(namespace).is_some_and(|labels| selected(selector, labels)),
        };
        there && (peer["podSelector"].is_null() || selected(&peer["podSelector"], labels))
    }

    fn is_port(&self, port: &Value, packet: Packet<'_>) -> bool {
        if port["protocol"].as_str().unwrap().to_lowercase() != packet.protocol {
            return false;
        }
        match &port["port"] {
            Value::Null => true,
            // Every pod's port 80 has the name: see `pod_object`.
            Value::String(_) => packet.port == 80 && packet.protocol == "tcp" && self.pod_at(packet.to).is_some(),
            number => {
                let first = number.as_u64().unwrap();
                (first..=port["endPort"].as_u64().unwrap_or(first)).contains(&u64::from(packet.port))
            }
        }
    }
}

fn selected(selector: &Value, labels: &Value) -> bool {
    selector["matchLabels"].as_object().into_iter().flatten().all(|(key, value)| labels[key] == *value)
        && selector["matchExpressions"].as_array().into_iter().flatten().all(|expression| {
            let value = &labels[expression["key"].as_str().unwrap()];
            let listed = expression["values"].as_array().is_some_and(|values| values.contains(value));
            match expression["operator"].as_str().unwrap() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => !value.is_null(),
                _ => value.is_null(),
            }
        })
}

fn pod_object(key: &str, labels: &Value, addresses: &[String], local: bool) -> core::Pod {
    let (namespace, name) = key.split_once('/').unwrap();
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": if local { "here" } else { "there" },
            "containers": [{"name": "c", "ports": [{"name": "serve", "containerPort": 80}]}]},
        "status": {"phase": "Running", "podIP": addresses[0],
            "podIPs": addresses.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()}}))
    .unwrap()
}

fn labels(dice: &mut Dice) -> Value {
    let mut out = json!({});
    for key in ["app", "tier"] {
        if !dice.yes(3) {
            out[key] = json!(["a", "b"][dice.roll(2) as usize]);
        }
    }
    out
}

fn selector(dice: &mut Dice) -> Value {
    match dice.roll(5) {
        0 => json!({}),
        1 => json!({"matchLabels": labels(dice)}),
        2 => json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]}),
        3 => json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}),
        _ => json!({"matchLabels": {"app": "a"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]}),
    }
}

fn peer(dice: &mut Dice) -> Value {
    match dice.roll(7) {
        0 => json!({"podSelector": selector(dice)}),
        1 => json!({"namespaceSelector": selector(dice)}),
        2 => json!({"namespaceSelector": selector(dice), "podSelector": selector(dice)}),
        3 => json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.1.2.0/24", "10.8.0.0/30"]}}),
        4 => json!({"ipBlock": {"cidr": "::/0", "except": ["fd01:1:2::/48", "fd00:8:a0::/127"]}}),
        5 => json!({"ipBlock": {"cidr": "fd01:1::/32"}}),
        _ => json!({"ipBlock": {"cidr": "10.1.0.0/16"}}),
    }
}

fn port(dice: &mut Dice) -> Value {
    let protocol = ["TCP", "UDP", "SCTP"][dice.roll(3) as usize];
    match dice.roll(5) {
        0 => json!({"protocol": protocol}),
        1 => json!({"protocol": "TCP", "port": "serve"}),
        2 => json!({"protocol": protocol, "port": 79, "endPort": 81 + dice.roll(3)}),
        3 => json!({"protocol": protocol, "port": 81, "endPort": 90}),
        _ => json!({"protocol": protocol, "port": 80}),
    }
}

fn policy(dice: &mut Dice) -> Value {
    let rules = |dice: &mut Dice, peers: &str| -> Value {
        let count = dice.roll(3);
        (0..count)
            .map(|_| {
                let mut rule = json!({});
                if !dice.yes(3) {
                    rule[peers] = (0..dice.roll(3)).map(|_| peer(dice)).collect();
                }
                if !dice.yes(3) {
                    rule["ports"] = (0..dice.roll(4)).map(|_| port(dice)).collect();
                }
                rule
            })
            .collect()
    };
    let types = [json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])][dice.roll(3) as usize].clone();
    let (ingress, egress) = (rules(dice, "from"), rules(dice, "to"));
    json!({"podSelector": selector(dice), "policyTypes": types, "ingress": ingress, "egress": egress})
}

fn read(key: &str, spec: &Value) -> Policy {
    let (namespace, name) = key.split_once('/').unwrap();
    let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
    Policy::read(&serde_json::from_value(object).unwrap())
}

#[test]
fn random_policies() {
    let config = Config { network_policies: true, ..Config::new("here") };
    let mut judged = [0usize; 2];
    for seed in 0..SEEDS {
        let mut dice = Dice(seed + 100);
        let mut world = World::default();
        let mut known = Policies::default();
        let mut tables = FAMILIES.map(|family| Ruleset::new(family, &view(), &config));
        let mut models = [Model::default(), Model::default()];
        for (model, table) in models.iter_mut().zip(&tables) {
            model.apply_of(table.family, &full(table).text);
        }
        for _ in 0..STEPS {
            for _ in 0..=dice.roll(4) {
                let namespace = format!("n{}", dice.roll(2));
                let number = dice.roll(4) + 1;
                let key = format!("{namespace}/{number}");
                match dice.roll(8) {
                    0 => {
                        let labels = labels(&mut dice);
                        let read: Labels = serde_json::from_value(labels.clone()).unwrap();
                        known.set_namespace(&namespace, Some(read));
                        world.namespaces.insert(namespace, labels);
                    }
                    1 => {
                        known.set_pod(&key, None);
                        world.pods.remove(&key);
                    }
                    2..=4 => {
                        let labels = labels(&mut dice);
                        let place = &namespace[1..];
                        let addresses = [format!("10.8.{place}.{number}"), format!("fd00:8:a{place}::{number}")];
                        let local = !number.is_multiple_of(3);
                        known.set_pod(&key, Pod::read(&pod_object(&key, &labels, &addresses, local), "here"));
                        world.pods.insert(key, (labels, addresses, local));
                    }
                    5 => {
                        known.set_policy(&key, None);
                        world.policies.remove(&key);
                    }
                    _ => {
                        let spec = policy(&mut dice);
                        known.set_policy(&key, Some(read(&key, &spec)));
                        world.policies.insert(key, spec);
                    }
                }
            }
            let dirty = known.take_dirty();
            for (which, (table, model)) in tables.iter_mut().zip(&mut models).enumerate() {
                let family = table.family;
                let mut delta = Delta::default();
                for key in &dirty {
                    table.update(key.as_str(), known.compile(key, family), &mut delta);
                }
                let text = changes(&delta, table).text;
                assert!(element_changes(&delta, table).is_none_or(|changes| changes.is_empty() == text.is_empty()));
                model.apply_of(family, &text);
                let mut fresh = Ruleset::new(family, &view(), &config);
                for key in known.keys() {
                    fresh.update(key.as_str(), known.compile(&key, family), &mut Delta::default());
                }
                let mut whole = Model::default();
                whole.apply_of(family, &full(&fresh).text);
                assert_eq!(*model, whole, "seed {seed}");
                let pods = world.pods.values().map(|pod| pod.1[which].as_str());
                let addresses: Vec<&str> = pods.chain(OUTSIDE[which]).collect();
                for (from, to) in addresses.iter().flat_map(|from| addresses.iter().map(move |to| (*from, *to))) {
                    if from == to {
                        continue;
                    }
                    for (protocol, port) in [("tcp", 80), ("tcp", 83), ("udp", 80), ("sctp", 90), ("icmp", 0)] {
                        let packet = Packet { from, to, protocol, port };
                        let expect = world.allows(packet);
                        assert_eq!(passes(model, packet), expect, "seed {seed} {packet:?} in {world:#?}");
                        judged[usize::from(expect)] += 1;
                    }
                }
            }
        }
    }
    assert!(judged.iter().all(|count| *count > 1_000), "both answers are tried: {judged:?}");
}

/// Types that are left out, pods that do not count, and the form of the rules.
#[test]
fn policies_as_lines() {
    let cases = [
        (json!({"podSelector": {}}), vec!["in"], vec![]),
        (json!({"podSelector": {}, "egress": [{}]}), vec!["in", "out"], vec!["out accept"]),
        (json!({"podSelector": {}, "policyTypes": ["Egress"]}), vec!["out"], vec![]),
        (
            json!({"podSelector": {}, "ingress": [{"ports": [
                {"protocol": "TCP", "port": 80}, {"protocol": "TCP", "port": 81, "endPort": 90},
                {"protocol": "TCP", "port": 85}, {"protocol": "UDP"}, {"protocol": "UDP", "port": 53}]}]}),
            vec!["in"],
            vec!["in tcp dport { 80-90 } accept", "in meta l4proto udp accept"],
        ),
        (
            json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8",
                "except": ["10.1.0.0/16", "10.1.2.0/24"]}}, {"ipBlock": {"cidr": "fd00::/8"}}]}]}),
            vec!["in"],
            vec!["in ip saddr 10.0.0.0/8 ip saddr != { 10.1.0.0/16 } accept"],
        ),
    ];
    for (spec, chains, lines) in cases {
        let fragment = read("ns/p", &spec).compile("ns/p", Family::V4);
        let direction = |name: &str| name.split('-').nth(1).unwrap().to_string();
        let got: Vec<String> = fragment.chains.keys().map(|name| direction(name)).collect();
        assert_eq!(got, chains, "{spec}");
        let got: Vec<String> = fragment
            .chains
            .iter()
            .flat_map(|(name, rules)| rules.iter().map(move |rule| format!("{} {rule}", direction(name))))
            .collect();
        assert_eq!(got, lines, "{spec}");
    }
    let mut pod = pod_object("ns/p", &json!({}), &["10.8.0.1".into()], true);
    assert!(Pod::read(&pod, "here").is_some_and(|pod| pod.local));
    pod.status.as_mut().unwrap().phase = Some("Succeeded".into());
    assert_eq!(Pod::read(&pod, "here"), None);
}
