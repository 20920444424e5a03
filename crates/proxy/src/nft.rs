//! The table as text for `nft -f -`: all of it, or what changed.
//!
//! A [`Transaction`] is one atomic commit. A difference adds chains and sets first, then swaps map elements, then removes
//! what nothing leads to any more, so that each step refers only to what exists.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;

use crate::elements::Change;
use crate::program::{Delta, NodeView, Ruleset};
use crate::service::Protocol;
use crate::{Config, Family, TABLE};

/// Elements in one command: keeps nft's parser from holding one enormous line.
const ELEMENTS_PER_COMMAND: usize = 1_000;

/// The table's maps and sets of elements that Services contribute to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Map {
    /// Address, protocol, port → where to go.
    Frontends,
    /// The same for ports of the node's own addresses.
    NodePorts,
    /// Address, port, index → endpoint; one map a protocol, see [`base`].
    Endpoints(Protocol),
    NodePortEndpoints(Protocol),
    /// Addresses of which other ports are refused.
    ClusterIps,
    /// An endpoint's address twice: a connection of its own that came back to it.
    Hairpin,
    /// Load balancer addresses only some may use, and who.
    Restricted,
    Sources,
    /// A local pod's address → the chain of the policies that isolate it.
    PolicyIngress,
    PolicyEgress,
    /// The pods a policy's selector selects.
    Peers(u64),
    /// Addresses and numbers of a port that policies call by a name.
    NamedPorts(u64),
}

impl Map {
    pub fn name(self) -> Cow<'static, str> {
        let name = match self {
            Map::Peers(set) => return format!("peers-{set:016x}").into(),
            Map::NamedPorts(set) => return format!("ports-{set:016x}").into(),
            Map::Frontends => "frontends",
            Map::NodePorts => "node-ports",
            Map::Endpoints(Protocol::Tcp) => "tcp-endpoints",
            Map::Endpoints(Protocol::Udp) => "udp-endpoints",
            Map::Endpoints(Protocol::Sctp) => "sctp-endpoints",
            Map::NodePortEndpoints(Protocol::Tcp) => "tcp-node-port-endpoints",
            Map::NodePortEndpoints(Protocol::Udp) => "udp-node-port-endpoints",
            Map::NodePortEndpoints(Protocol::Sctp) => "sctp-node-port-endpoints",
            Map::ClusterIps => "cluster-ips",
            Map::Hairpin => "hairpin",
            Map::Restricted => "restricted",
            Map::Sources => "sources",
            Map::PolicyIngress => "policy-ingress",
            Map::PolicyEgress => "policy-egress",
        };
        name.into()
    }
}

/// Text for one run of `nft -f -`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    pub text: String,
}

impl Transaction {
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub fn append(&mut self, other: Transaction) {
        self.text.push_str(&other.text);
    }

    fn line(&mut self, family: Family, command: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{}", OneTable(family, command));
    }

    fn elements<'a>(&mut self, family: Family, verb: &str, elements: impl Iterator<Item = (Map, String)> + 'a) {
        let mut by_map: BTreeMap<Map, Vec<String>> = BTreeMap::new();
        for (map, element) in elements {
            by_map.entry(map).or_default().push(element);
        }
        for (map, elements) in by_map {
            for some in elements.chunks(ELEMENTS_PER_COMMAND) {
                let _ = writeln!(
                    self.text,
                    "{verb} element {} {TABLE} {} {{ {} }}",
                    family.nft(),
                    map.name(),
                    some.join(", ")
                );
            }
        }
    }
}

/// `add chain` + ` ip nauplius-proxy ` + `name …`: the command's first two words, the table, the rest.
struct OneTable<'a>(Family, std::fmt::Arguments<'a>);

impl std::fmt::Display for OneTable<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let command = self.1.to_string();
        let words = command.match_indices(' ').nth(1).map_or(command.len(), |(at, _)| at);
        let (verb, rest) = command.split_at(words);
        write!(f, "{verb} {} {TABLE}{rest}", self.0.nft())
    }
}

/// The fixed part of the table, one command a line, without the table's name.
pub(crate) fn base(family: Family, node: &NodeView, config: &Config) -> Vec<String> {
    let (ip, address) = match family {
        Family::V4 => ("ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6_addr"),
    };
    let mine = |ip: &&IpAddr| Family::of(**ip) == family;
    let mark = config.masquerade_mark;
    let mut out = vec![
        format!("add map frontends {{ type {address} . inet_proto . inet_service : verdict ; }}"),
        "add map node-ports { type inet_proto . inet_service : verdict ; }".to_string(),
        format!("add set cluster-ips {{ type {address} ; }}"),
        format!("add set hairpin {{ type {address} . {address} ; }}"),
        format!("add set restricted {{ type {address} . inet_proto . inet_service ; }}"),
        format!("add set sources {{ type {address} . inet_proto . inet_service . {address} ; flags interval ; }}"),
        format!("add set node-addresses {{ type {address} ; }}"),
        format!("add set pod-networks {{ type {address} ; flags interval ; auto-merge ; }}"),
        format!("add set service-networks {{ type {address} ; flags interval ; auto-merge ; }}"),
        "add chain services".to_string(),
        "add chain refuse".to_string(),
        "add rule refuse reject".to_string(),
        "add chain prerouting { type nat hook prerouting priority dstnat ; }".to_string(),
        "add rule prerouting jump services".to_string(),
        "add chain output { type nat hook output priority -100 ; }".to_string(),
        "add rule output jump services".to_string(),
        // Somebody on this node holds the address himself.
        format!("add rule services {ip} daddr @cluster-ips fib daddr type local return"),
        format!(
            "add rule services {ip} daddr . meta l4proto . th dport @restricted {ip} daddr . meta l4proto . th dport . {ip} saddr != @sources drop"
        ),
        format!("add rule services {ip} daddr . meta l4proto . th dport vmap @frontends"),
        format!("add rule services {ip} daddr @node-addresses meta l4proto . th dport vmap @node-ports"),
        format!("add rule services {ip} daddr @cluster-ips meta l4proto {{ tcp, udp, sctp }} goto refuse"),
        // Nobody's yet: whoever has it by the time the client asks again must be asked anew.
        format!("add rule services {ip} daddr @service-networks fib daddr type != local drop"),
        "add chain postrouting { type nat hook postrouting priority srcnat ; }".to_string(),
        format!("add rule postrouting ct status dnat {ip} saddr . {ip} daddr @hairpin masquerade fully-random"),
        format!("add rule postrouting meta mark and {mark:#x} == 0 return"),
        format!("add rule postrouting meta mark set meta mark xor {mark:#x}"),
        "add rule postrouting masquerade fully-random".to_string(),
    ];
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        // Only `typeof` can say "a random number", and it needs the port's header named: hence a map for each protocol.
        for (map, address) in
            [(Map::Endpoints(protocol), format!("{ip} daddr . ")), (Map::NodePortEndpoints(protocol), String::new())]
        {
            let key = format!("{address}{protocol} dport . numgen random mod 65536");
            out.push(format!("add map {} {{ typeof {key} : {ip} daddr . {protocol} dport ; }}", map.name()));
        }
    }
    if config.network_policies {
        out.extend(policy_base(family));
    }
    for address in node.addresses.iter().filter(mine).filter(|ip| !ip.is_loopback()) {
        out.push(format!("add element node-addresses {{ {address} }}"));
    }
    for net in node.pod_networks.iter().filter(|net| Family::of(net.addr()) == family) {
        out.push(format!("add element pod-networks {{ {} }}", net.trunc()));
    }
    for net in node.service_networks.iter().filter(|net| Family::of(net.addr()) == family) {
        out.push(format!("add element service-networks {{ {} }}", net.trunc()));
    }
    out
}

/// What a forwarded packet is judged by: first the policies of the pod it left, then those of the pod it goes to. To
/// accept in the first chain is to go on to the second. Replies belong to what was let through; a pod reaches itself.
fn policy_base(family: Family) -> Vec<String> {
    let (ip, address) = match family {
        Family::V4 => ("ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6_addr"),
    };
    let mut out = Vec::new();
    for (map, chain, side, later) in
        [(Map::PolicyEgress, "leaving-pods", "saddr", ""), (Map::PolicyIngress, "entering-pods", "daddr", " + 1")]
    {
        out.push(format!("add map {} {{ type {address} : verdict ; }}", map.name()));
        out.push(format!("add chain {chain} {{ type filter hook forward priority filter{later} ; }}"));
        out.push(format!("add rule {chain} ct state established,related accept"));
        if family == Family::V6 {
            // Neighbours on the bridge find each other whatever policies say.
            out.push(format!("add rule {chain} icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept"));
        }
        out.push(format!("add rule {chain} {ip} saddr . {ip} daddr @hairpin accept"));
        out.push(format!("add rule {chain} {ip} {side} vmap @{}", map.name()));
    }
    out
}

/// Removes the table; no error when there is none.
pub fn removal(family: Family) -> Transaction {
    let table = format!("table {} {TABLE}", family.nft());
    Transaction { text: format!("add {table}\ndelete {table}\n") }
}

/// The whole table in place of whatever was there.
pub fn full(ruleset: &Ruleset) -> Transaction {
    let mut out = removal(ruleset.family);
    let _ = writeln!(out.text, "add table {} {TABLE}", ruleset.family.nft());
    for command in &*ruleset.base {
        out.line(ruleset.family, format_args!("{command}"));
    }
    out.append(changes(&everything(ruleset), ruleset));
    out
}

/// The whole table without the elements the kernel can be told itself, and these elements: what leads somewhere comes
/// after what it leads to.
pub fn first(ruleset: &Ruleset) -> (Transaction, Vec<Change>) {
    let mut rest = everything(ruleset);
    let direct: Vec<(Map, Arc<str>)> = rest.elements.keys().filter(|(map, _)| *map != Map::Sources).cloned().collect();
    rest.elements.retain(|(map, _), _| *map == Map::Sources);
    let elements = direct.into_iter().rev().filter_map(|(map, key)| {
        let (value, _) = ruleset.elements.get(&(map, key.clone()))?;
        Some(Change { map, key, value: Some(value.clone()) })
    });
    let elements = elements.collect();
    let mut out = removal(ruleset.family);
    let _ = writeln!(out.text, "add table {} {TABLE}", ruleset.family.nft());
    for command in &*ruleset.base {
        out.line(ruleset.family, format_args!("{command}"));
    }
    out.append(changes(&rest, ruleset));
    (out, elements)
}

/// What turns the table that holds `old` into one that holds `new`, in one commit.
pub fn diff(old: &Ruleset, new: &Ruleset) -> Transaction {
    if old.family != new.family || old.base != new.base {
        return full(new);
    }
    let mut delta = everything(new);
    for (key, (value, _)) in &old.elements {
        delta.elements.insert(key.clone(), Some(value.clone()));
    }
    for (name, (rules, _)) in &old.chains {
        delta.chains.insert(name.clone(), Some(rules.clone()));
    }
    for (name, (declaration, _)) in &old.sets {
        delta.sets.insert(name.clone(), Some(declaration.clone()));
    }
    changes(&delta, new)
}

/// As if nothing had been there before.
fn everything(ruleset: &Ruleset) -> Delta {
    Delta {
        elements: ruleset.elements.keys().map(|key| (key.clone(), None)).collect(),
        chains: ruleset.chains.keys().map(|name| (name.clone(), None)).collect(),
        sets: ruleset.sets.keys().map(|name| (name.clone(), None)).collect(),
        connectionless: false,
    }
}

/// The same when it is elements only, deletions first; `None` when chains or sets change too.
pub fn element_changes(delta: &Delta, now: &Ruleset) -> Option<Vec<Change>> {
    let chains = delta.chains.iter().all(|(name, old)| now.chains.get(name).map(|(rules, _)| rules) == old.as_ref());
    let sets = delta.sets.iter().all(|(name, old)| now.sets.contains_key(name) == old.is_some());
    if !chains || !sets {
        return None;
    }
    let (mut gone, mut added) = (Vec::new(), Vec::new());
    for ((map, key), before) in &delta.elements {
        let after = now.elements.get(&(*map, key.clone())).map(|(value, _)| value.clone());
        if before.as_deref() == after.as_deref() {
            continue;
        }
        let change = |value| Change { map: *map, key: key.clone(), value };
        if before.is_some() {
            gone.push(change(None));
        }
        if after.is_some() {
            added.push(change(after));
        }
    }
    gone.append(&mut added);
    Some(gone)
}

/// What was touched, as far as it is different now.
pub fn changes(delta: &Delta, now: &Ruleset) -> Transaction {
    let family = now.family;
    let mut out = Transaction::default();
    for (name, before) in &delta.sets {
        if let (None, Some((declaration, _))) = (before, now.sets.get(name)) {
            out.line(family, format_args!("add set {name} {{ {declaration} }}"));
        }
    }
    // All chains before any rule: rules lead from one to another.
    for (name, before) in &delta.chains {
        if before.is_none() && now.chains.contains_key(name) {
            out.line(family, format_args!("add chain {name}"));
        }
    }
    for (name, before) in &delta.chains {
        let Some((rules, _)) = now.chains.get(name) else { continue };
        if before.as_ref() == Some(rules) {
            continue;
        }
        if before.is_some() {
            out.line(family, format_args!("flush chain {name}"));
        }
        for rule in &**rules {
            out.line(family, format_args!("add rule {name} {rule}"));
        }
    }
    let differs = |key: &(Map, Arc<str>), before: &Option<Arc<str>>| {
        before.as_deref() != now.elements.get(key).map(|(value, _)| &**value)
    };
    let gone = delta.elements.iter().filter(|(key, before)| before.is_some() && differs(key, before));
    out.elements(family, "delete", gone.map(|((map, key), _)| (*map, key.to_string())));
    let added = delta.elements.iter().filter(|(key, before)| differs(key, before));
    out.elements(
        family,
        "add",
        added.filter_map(|(key, _)| {
            let (value, _) = now.elements.get(key)?;
            let text = if value.is_empty() { key.1.to_string() } else { format!("{} : {value}", key.1) };
            Some((key.0, text))
        }),
    );
    let dead: Vec<&Arc<str>> = delta
        .chains
        .iter()
        .filter(|(name, before)| before.is_some() && !now.chains.contains_key(*name))
        .map(|(name, _)| name)
        .collect();
    for name in &dead {
        out.line(family, format_args!("flush chain {name}"));
    }
    for name in &dead {
        out.line(family, format_args!("delete chain {name}"));
    }
    for (name, before) in &delta.sets {
        if before.is_some() && !now.sets.contains_key(name) {
            out.line(family, format_args!("delete set {name}"));
        }
    }
    out
}

/// Whether what `nft -j list table` shows has everything the ruleset put there, by count: enough to see a flush or a
/// removal, without reading each element back.
pub fn intact(listing: &Value, ruleset: &Ruleset) -> bool {
    let mut rules: BTreeMap<&str, usize> = BTreeMap::new();
    let mut elements: BTreeMap<&str, usize> = BTreeMap::new();
    for object in listing["nftables"].as_array().into_iter().flatten() {
        if let Some(chain) = object["chain"]["name"].as_str() {
            rules.entry(chain).or_default();
        } else if let Some(chain) = object["rule"]["chain"].as_str() {
            *rules.entry(chain).or_default() += 1;
        } else if let Some(map) = object.get("map").or_else(|| object.get("set"))
            && let Some(name) = map["name"].as_str()
        {
            elements.insert(name, map["elem"].as_array().map_or(0, Vec::len));
        }
    }
    let mut expected_rules: BTreeMap<&str, usize> = BTreeMap::new();
    for command in &*ruleset.base {
        let mut words = command.split(' ').skip(1);
        match (words.next(), words.next()) {
            (Some("chain"), Some(name)) => _ = expected_rules.entry(name).or_default(),
            (Some("rule"), Some(name)) => *expected_rules.entry(name).or_default() += 1,
            _ => {}
        }
    }
    expected_rules.extend(ruleset.chains.iter().map(|(name, (rules, _))| (&**name, rules.len())));
    let mut counts: BTreeMap<Map, usize> = BTreeMap::new();
    for (map, _) in ruleset.elements.keys() {
        *counts.entry(*map).or_default() += 1;
    }
    expected_rules.iter().all(|(name, count)| rules.get(name) == Some(count))
        && counts.iter().all(|(map, count)| elements.get(&*map.name()) == Some(count))
        && ruleset.sets.keys().all(|name| elements.contains_key(&**name))
}
