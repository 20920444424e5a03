//! The table as text for `nft -f -`: all of it, or what changed.
//!
//! A [`Transaction`] is one atomic commit. A difference adds chains and sets first, then swaps map elements, then removes
//! what nothing leads to any more, so that each step refers only to what exists.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use crate::elements::Change;
use crate::map::{Element, Entry, Map, Value};
use crate::program::{Delta, NodeView, Ruleset};
use crate::service::Protocol;
use crate::{Config, Family, TABLE};

/// Elements in one command: keeps nft's parser from holding one enormous line.
const ELEMENTS_PER_COMMAND: usize = 1_000;
/// Elements sorted together on their way into text: some hundred KiB.
const ELEMENTS_PER_PIECE: usize = 8_000;
/// The chain that refuses.
pub(crate) const REFUSE: &str = "refuse";

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

    /// Elements in their order, as few commands as may be.
    fn elements<'a>(&mut self, family: Family, verb: &str, elements: impl Iterator<Item = (&'a Element, &'a Value)>) {
        let mut now: Option<(Map, usize)> = None;
        for (element, value) in elements {
            let map = element.map();
            match &mut now {
                Some((same, count)) if *same == map && *count < ELEMENTS_PER_COMMAND => {
                    *count += 1;
                    self.text.push_str(", ");
                }
                _ => {
                    if now.is_some() {
                        self.text.push_str(" }\n");
                    }
                    now = Some((map, 1));
                    let _ = write!(self.text, "{verb} element {} {TABLE} {} {{ ", family.nft(), map.name());
                }
            }
            // Writing to a String cannot fail.
            let _ = write!(self.text, "{}", Entry(element, value));
        }
        if now.is_some() {
            self.text.push_str(" }\n");
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
        format!("add chain {REFUSE}"),
        format!("add rule {REFUSE} reject"),
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
        format!("add rule services {ip} daddr @cluster-ips goto {REFUSE}"),
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
    let mut out = skeleton(ruleset);
    in_pieces(ruleset.elements(), |piece| {
        out.elements(ruleset.family, "add", piece.iter().map(|(element, value)| (element, value)));
    });
    out
}

/// The whole table without the elements that [`direct`] has.
pub fn first(ruleset: &Ruleset) -> Transaction {
    let mut out = skeleton(ruleset);
    let rest = ruleset.elements().filter(|(element, _)| !is_direct(element));
    in_pieces(rest, |piece| {
        out.elements(ruleset.family, "add", piece.iter().map(|(element, value)| (element, value)));
    });
    out
}

/// The elements that the kernel can be told itself: what leads somewhere comes after what it leads to.
pub fn direct(ruleset: &Ruleset) -> impl Iterator<Item = Change> + '_ {
    let all = ruleset.elements().filter(|(element, _)| is_direct(element));
    all.map(|(element, value)| Change { element, value: Some(value) })
}

/// Ranges have a form of their own there.
fn is_direct(element: &Element) -> bool {
    element.map() != Map::Sources
}

/// The table, its chains and empty sets in place of whatever was there.
fn skeleton(ruleset: &Ruleset) -> Transaction {
    let mut out = removal(ruleset.family);
    let _ = writeln!(out.text, "add table {} {TABLE}", ruleset.family.nft());
    for command in &*ruleset.base {
        out.line(ruleset.family, format_args!("{command}"));
    }
    out.append(changes(
        &Delta {
            chains: ruleset.chains.keys().map(|name| (name.clone(), None)).collect(),
            sets: ruleset.sets.keys().map(|name| (name.clone(), None)).collect(),
            ..Delta::default()
        },
        ruleset,
    ));
    out
}

/// Some at a time, each time sorted by their maps.
fn in_pieces(elements: impl Iterator<Item = (Element, Value)>, mut each: impl FnMut(&[(Element, Value)])) {
    let mut piece = Vec::new();
    for element in elements {
        piece.push(element);
        if piece.len() >= ELEMENTS_PER_PIECE {
            piece.sort_by_key(|(element, _)| *element);
            each(&piece);
            piece.clear();
        }
    }
    piece.sort_by_key(|(element, _)| *element);
    each(&piece);
}

/// What turns the table that holds `old` into one that holds `new`, in one commit.
pub fn diff(old: &Ruleset, new: &Ruleset) -> Transaction {
    if old.family != new.family || old.base != new.base {
        return full(new);
    }
    let mut delta = Delta {
        chains: new.chains.keys().map(|name| (name.clone(), None)).collect(),
        sets: new.sets.keys().map(|name| (name.clone(), None)).collect(),
        ..Delta::default()
    };
    old.elements().for_each(|(element, value)| delta.gone(element, value));
    new.elements().for_each(|(element, value)| delta.came(element, value));
    for (name, (rules, _)) in &old.chains {
        delta.chains.insert(name.clone(), Some(rules.clone()));
    }
    for (name, (declaration, _)) in &old.sets {
        delta.sets.insert(name.clone(), Some(declaration.clone()));
    }
    changes(&delta, new)
}

/// The same when it is elements only, deletions first; `None` when chains or sets change too.
pub fn element_changes(delta: &Delta, now: &Ruleset) -> Option<Vec<Change>> {
    let chains = delta.chains.iter().all(|(name, old)| now.chains.get(name).map(|(rules, _)| rules) == old.as_ref());
    let sets = delta.sets.iter().all(|(name, old)| now.sets.contains_key(name) == old.is_some());
    if !chains || !sets {
        return None;
    }
    let differing = || delta.elements.iter().filter(|(_, (before, now))| before != now);
    let gone =
        differing().filter(|(_, (before, _))| before.is_some()).map(|(e, _)| Change { element: *e, value: None });
    let added = differing().filter_map(|(e, (_, now))| Some(Change { element: *e, value: Some(now.clone()?) }));
    Some(gone.chain(added).collect())
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
    let differing = || delta.elements.iter().filter(|(_, (before, now))| before != now);
    let gone = differing().filter(|(_, (before, _))| before.is_some());
    out.elements(family, "delete", gone.map(|(element, _)| (element, &Value::There)));
    out.elements(family, "add", differing().filter_map(|(element, (_, now))| Some((element, now.as_ref()?))));
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
