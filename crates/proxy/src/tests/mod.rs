//! The core as data: objects in, table out.

mod model;
mod policies;
mod services;

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use crate::conntrack::{Connection, stale};
use crate::elements::{Change, encode};
use crate::endpoints::{Endpoint, settle};
use crate::fragment::Fragment;
use crate::listing::intact;
use crate::map::{Element, Entry, Value as Leads, Verdict};
use crate::nft::{changes, full};
use crate::program::Delta;
use crate::service::Protocol;
use crate::world::World;
use crate::{Config, Family, NodeView, Ruleset, diff, program};

pub(crate) fn service(name: &str, spec: Value) -> core::Service {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec})).unwrap()
}

pub(crate) fn slice(service: &str, ports: Value, endpoints: Value) -> EndpointSlice {
    let family = if endpoints.to_string().contains("::") { "IPv6" } else { "IPv4" };
    serde_json::from_value(json!({
        "metadata": {"name": format!("{service}-{family}"), "namespace": "ns", "labels": {"kubernetes.io/service-name": service}},
        "addressType": family,
        "ports": ports, "endpoints": endpoints,
    }))
    .unwrap()
}

pub(crate) fn view() -> NodeView {
    NodeView {
        name: "here".into(),
        zone: "a".into(),
        addresses: vec!["192.0.2.1".parse().unwrap()],
        pod_networks: config().cluster_cidrs,
        ..NodeView::default()
    }
}

fn config() -> Config {
    Config { cluster_cidrs: vec!["10.8.0.0/16".parse().unwrap()], ..Config::new("here") }
}

/// What one Service and its slices compile to, by themselves.
pub(crate) fn compiled(
    service: &core::Service,
    slices: &[EndpointSlice],
    config: &Config,
    previous: Option<&Fragment>,
) -> Option<Fragment> {
    let mut world = World::new("here");
    world.set_service(service);
    slices.iter().for_each(|slice| world.set_slice(slice));
    let key = format!("ns/{}", service.metadata.name.as_deref().unwrap());
    world.compile(&key, Family::V4, &view(), config, previous)
}

fn table(services: &[core::Service], slices: &[EndpointSlice]) -> Ruleset {
    program(services, slices, Family::V4, &view(), &config())
}

/// Elements and chains as lines, without what every table has.
fn lines(ruleset: &Ruleset) -> Vec<String> {
    let mut elements: Vec<(Element, Leads)> = ruleset.elements().collect();
    elements.sort_by_key(|(element, _)| *element);
    let mut out: Vec<String> =
        elements.iter().map(|(element, value)| format!("{} {}", element.map().name(), Entry(element, value))).collect();
    for (name, (rules, _)) in &ruleset.chains {
        out.extend(rules.iter().map(|rule| format!("[{name}] {rule}")));
    }
    out.extend(ruleset.sets.iter().map(|(name, (text, _))| format!("set {name} {text}")));
    out
}

fn check(services: &[core::Service], slices: &[EndpointSlice], expect: &[&str]) {
    assert_eq!(lines(&table(services, slices)), expect);
}

fn web(extra: Value) -> core::Service {
    let mut spec = json!({"clusterIP": "10.7.0.1", "ports": [{"port": 80}]});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    service("web", spec)
}

fn two() -> EndpointSlice {
    slice(
        "web",
        json!([{"port": 8080}]),
        json!([
        {"addresses": ["10.8.0.2"], "nodeName": "here"}, {"addresses": ["10.8.1.2"], "nodeName": "there"}]),
    )
}

const PICK: &str = "dnat ip addr . port to ip daddr . tcp dport . numgen random mod";
const NODE_PICK: &str = "dnat ip addr . port to udp dport . numgen random mod";

#[test]
fn a_cluster_ip_spreads_over_its_endpoints() {
    check(
        &[web(json!({}))],
        &[two()],
        &[
            "frontends 10.7.0.1 . tcp . 80 : goto inside-tcp-spread-2",
            "tcp-endpoints 10.7.0.1 . 80 . 0 : 10.8.0.2 . 8080",
            "tcp-endpoints 10.7.0.1 . 80 . 1 : 10.8.1.2 . 8080",
            "cluster-ips 10.7.0.1",
            "hairpin 10.8.0.2 . 10.8.0.2",
            "[inside-tcp-spread-2] ip saddr != @pod-networks meta mark set meta mark or 0x4000",
            "[inside-tcp-spread-2] goto tcp-spread-2",
            &format!("[tcp-spread-2] {PICK} 2 map @tcp-endpoints"),
        ],
    );
}

#[test]
fn no_endpoints_refuse_and_none_here_is_silence() {
    check(&[web(json!({}))], &[], &["frontends 10.7.0.1 . tcp . 80 : goto refuse", "cluster-ips 10.7.0.1"]);
    let elsewhere = slice("web", json!([{"port": 8080}]), json!([{"addresses": ["10.8.1.2"], "nodeName": "there"}]));
    check(
        &[web(json!({"internalTrafficPolicy": "Local"}))],
        &[elsewhere],
        &["frontends 10.7.0.1 . tcp . 80 : drop", "cluster-ips 10.7.0.1"],
    );
}

#[test]
fn internal_traffic_policy_local_stays_here() {
    let got = lines(&table(&[web(json!({"internalTrafficPolicy": "Local"}))], &[two()]));
    assert!(got.contains(&"tcp-endpoints 10.7.0.1 . 80 . 32768 : 10.8.0.2 . 8080".to_string()), "{got:#?}");
    assert!(!got.iter().any(|line| line.contains("10.8.1.2")), "{got:#?}");
}

#[test]
fn a_node_port_masquerades_or_keeps_the_source() {
    let ports = json!([{"port": 80, "nodePort": 30080, "protocol": "UDP", "name": "u"}]);
    let endpoints = slice(
        "web",
        json!([{"port": 53, "name": "u", "protocol": "UDP"}]),
        json!([
        {"addresses": ["10.8.0.2"], "nodeName": "here"}, {"addresses": ["10.8.1.2"]}]),
    );
    let got = lines(&table(&[web(json!({"type": "NodePort", "ports": ports}))], std::slice::from_ref(&endpoints)));
    for line in [
        "node-ports udp . 30080 : goto masquerade-udp-node-port-spread-2",
        "udp-node-port-endpoints 30080 . 1 : 10.8.1.2 . 53",
        "[masquerade-udp-node-port-spread-2] meta mark set meta mark or 0x4000",
        "[masquerade-udp-node-port-spread-2] goto udp-node-port-spread-2",
        &format!("[udp-node-port-spread-2] {NODE_PICK} 2 map @udp-node-port-endpoints"),
    ] {
        assert!(got.contains(&line.to_string()), "{line}\n{got:#?}");
    }
    let local = web(json!({"type": "NodePort", "ports": ports, "externalTrafficPolicy": "Local"}));
    let got = lines(&table(&[local], &[endpoints]));
    for line in [
        "node-ports udp . 30080 : goto outside-udp-node-port-spread-2-udp-node-port-spread-local-1",
        "udp-node-port-endpoints 30080 . 32768 : 10.8.0.2 . 53",
        "[outside-udp-node-port-spread-2-udp-node-port-spread-local-1] ip saddr @pod-networks goto udp-node-port-spread-2",
        "[outside-udp-node-port-spread-2-udp-node-port-spread-local-1] fib saddr type local meta mark set meta mark or 0x4000 goto udp-node-port-spread-2",
        "[outside-udp-node-port-spread-2-udp-node-port-spread-local-1] goto udp-node-port-spread-local-1",
        &format!("[udp-node-port-spread-local-1] {NODE_PICK} 1 offset 32768 map @udp-node-port-endpoints"),
    ] {
        assert!(got.contains(&line.to_string()), "{line}\n{got:#?}");
    }
}

#[test]
fn load_balancer_addresses_and_external_ips() {
    let mut balanced = web(json!({"type": "LoadBalancer", "externalIPs": ["198.51.100.7"],
        "loadBalancerSourceRanges": ["203.0.113.0/25", "203.0.113.128/25", "fd00::/8"],
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}));
    balanced.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [
        {"ip": "198.51.100.8"}, {"ip": "198.51.100.9", "ipMode": "Proxy"}, {"hostname": "x"}]}}))
    .unwrap();
    let ruleset = table(&[balanced], &[two()]);
    let got = lines(&ruleset);
    for line in [
        "frontends 198.51.100.7 . tcp . 80 : goto outside-tcp-spread-2-tcp-spread-local-1",
        "frontends 198.51.100.8 . tcp . 80 : goto outside-tcp-spread-2-tcp-spread-local-1",
        "restricted 198.51.100.8 . tcp . 80",
        "sources 198.51.100.8 . tcp . 80 . 203.0.113.0/24",
    ] {
        assert!(got.contains(&line.to_string()), "{line}\n{got:#?}");
    }
    assert!(
        !got.iter().any(|line| line.contains("198.51.100.9") || line.contains("restricted 198.51.100.7")),
        "{got:#?}"
    );
    assert_eq!(ruleset.fragment("ns/web").unwrap().health, Some((31000, 1)));
}

#[test]
fn affinity_has_chains_of_its_own() {
    let spec = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
    let ruleset = table(&[web(spec)], &[two()]);
    assert_eq!(ruleset.sets.len(), 2);
    assert!(ruleset.sets.values().all(|(text, _)| text.contains("timeout 60s")));
    let got = lines(&ruleset);
    assert_eq!(got.iter().filter(|line| line.contains("update @affinity-")).count(), 2, "{got:#?}");
    assert!(got.iter().any(|line| line.ends_with("meta l4proto tcp dnat to 10.8.1.2:8080")), "{got:#?}");
}

#[test]
fn what_is_not_ours() {
    for spec in [
        json!({"clusterIP": "None", "ports": [{"port": 80}]}),
        json!({"type": "ExternalName", "externalName": "example.com"}),
        json!({"clusterIP": "fd00::1", "ports": [{"port": 80}]}),
        json!({"ports": [{"port": 80}]}),
    ] {
        check(&[service("s", spec)], &[], &[]);
    }
    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        let mut other = web(json!({}));
        other.metadata.labels = Some(BTreeMap::from([(label.into(), String::new())]));
        check(&[other], &[two()], &[]);
    }
}

/// Conditions and hints → who gets traffic. Endpoint N is 10.8.0.N; even ones are local.
#[test]
fn which_endpoints_count() {
    let ready = |n: u8| json!({"addresses": [format!("10.8.0.{n}")], "nodeName": if n.is_multiple_of(2) { "here" } else { "there" }});
    let with = |n: u8, key: &str, value: Value| {
        let mut out = ready(n);
        out[key] = value;
        out
    };
    let leaving =
        |n: u8, serving: bool| with(n, "conditions", json!({"ready": false, "serving": serving, "terminating": true}));
    let zone = |n: u8, zone: &str| with(n, "hints", json!({"forZones": [{"name": zone}]}));
    let node = |n: u8, node: &str| with(n, "hints", json!({"forZones": [{"name": "a"}], "forNodes": [{"name": node}]}));
    type Case = (&'static str, Vec<Value>, &'static [u8], &'static [u8]);
    let cases: Vec<Case> = vec![
        ("all ready", vec![ready(1), ready(2)], &[1, 2], &[2]),
        ("not ready is left out", vec![ready(1), with(2, "conditions", json!({"ready": false}))], &[1], &[]),
        ("terminating only when nobody else", vec![ready(1), leaving(2, true), leaving(3, true)], &[1], &[2]),
        (
            "the last ones serve while they leave",
            vec![leaving(2, true), leaving(3, true), leaving(4, false)],
            &[2, 3],
            &[2],
        ),
        ("zone hints", vec![zone(1, "a"), zone(2, "b")], &[1], &[2]),
        ("a missing hint voids all", vec![zone(1, "a"), ready(2)], &[1, 2], &[2]),
        ("no hint for here voids all", vec![zone(1, "b"), zone(2, "b")], &[1, 2], &[2]),
        ("node hints come first", vec![node(1, "there"), node(2, "here")], &[2], &[2]),
        ("else the zone", vec![node(1, "there"), node(3, "there")], &[1, 3], &[]),
    ];
    for (what, endpoints, cluster, local) in cases {
        let slice = slice("web", json!([{"port": 80}]), Value::Array(endpoints));
        let service = web(
            json!({"type": "NodePort", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30000}]}),
        );
        let ruleset = table(&[service], &[slice]);
        let behind = ruleset.behind(&crate::service::Front::NodePort(Protocol::Tcp, 30000)).unwrap();
        let addresses = |numbers: &[u8]| -> Box<[Endpoint]> {
            numbers.iter().map(|n| Endpoint { address: format!("10.8.0.{n}").parse().unwrap(), port: 80 }).collect()
        };
        assert_eq!(behind.cluster, addresses(cluster), "{what}");
        assert_eq!(behind.local, addresses(local), "{what}");
    }
}

#[test]
fn ports_are_matched_by_name_and_protocol_over_all_slices() {
    let spec = json!({"clusterIP": "10.7.0.1", "ports": [
        {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}]});
    let one = slice(
        "web",
        json!([{"name": "dns", "protocol": "UDP", "port": 5353}, {"name": "dns-tcp", "port": 5354}]),
        json!([{"addresses": ["10.8.0.2"]}]),
    );
    let mut other = slice(
        "web",
        json!([{"name": "dns-tcp", "port": 6000}]),
        json!([{"addresses": ["10.8.0.3"]}, {"addresses": ["10.8.0.2"]}]),
    );
    other.metadata.name = Some("other".into());
    let got = lines(&table(&[service("web", spec)], &[one, other]));
    let endpoints: Vec<&String> = got.iter().filter(|line| line.contains("-endpoints ")).collect();
    assert_eq!(
        endpoints,
        [
            "tcp-endpoints 10.7.0.1 . 53 . 0 : 10.8.0.2 . 5354",
            "tcp-endpoints 10.7.0.1 . 53 . 1 : 10.8.0.2 . 6000",
            "tcp-endpoints 10.7.0.1 . 53 . 2 : 10.8.0.3 . 6000",
            "udp-endpoints 10.7.0.1 . 53 . 0 : 10.8.0.2 . 5353",
        ]
    );
}

#[test]
fn ipv6_has_its_own_table() {
    let spec = json!({"clusterIP": "10.7.0.1", "clusterIPs": ["10.7.0.1", "fd07::1"], "ports": [{"port": 80}]});
    let six = slice("web", json!([{"port": 8080}]), json!([{"addresses": ["fd08::2"]}]));
    let ruleset = program([&service("web", spec)], [&six, &two()], Family::V6, &view(), &config());
    assert_eq!(
        lines(&ruleset),
        [
            "frontends fd07::1 . tcp . 80 : goto tcp-spread-1",
            "tcp-endpoints fd07::1 . 80 . 0 : fd08::2 . 8080",
            "cluster-ips fd07::1",
            "[tcp-spread-1] dnat ip6 addr . port to ip6 daddr . tcp dport . numgen random mod 1 map @tcp-endpoints",
        ]
    );
    assert!(
        full(&ruleset)
            .text
            .contains("add element ip6 nauplius-proxy frontends { fd07::1 . tcp . 80 : goto tcp-spread-1 }")
    );
}

#[test]
fn the_first_by_name_has_a_contested_address() {
    let claim = |name: &str, ip: &str| {
        service(name, json!({"clusterIP": ip, "externalIPs": ["198.51.100.7"], "ports": [{"port": 80}]}))
    };
    let endpoints = |name: &str, ip: &str| slice(name, json!([{"port": 80}]), json!([{"addresses": [ip]}]));
    let (a, b) = (claim("a", "10.7.0.1"), claim("b", "10.7.0.2"));
    let (of_a, of_b) = (endpoints("a", "10.8.0.1"), endpoints("b", "10.8.0.2"));
    let mut ruleset = table(&[b, a], &[of_b, of_a]);
    let holder = |ruleset: &Ruleset| {
        lines(ruleset)
            .into_iter()
            .find(|line| line.starts_with("tcp-endpoints 198.51.100.7"))
            .map(|line| line[line.len() - 13..].to_string())
    };
    assert_eq!(holder(&ruleset).as_deref(), Some("10.8.0.1 . 80"));
    ruleset.update("ns/a", None, &mut Delta::default());
    assert_eq!(holder(&ruleset).as_deref(), Some("10.8.0.2 . 80"));
    ruleset.update("ns/b", None, &mut Delta::default());
    // But for chains that wait for the next Service.
    ruleset.chains.clear();
    assert_eq!(lines(&ruleset), Vec::<String>::new());
}

/// before → after of a Service's endpoints, and the commands that makes.
#[test]
fn a_difference_is_small() {
    let endpoints = |last: &[u8]| {
        let list: Vec<Value> = last.iter().map(|n| json!({"addresses": [format!("10.8.1.{n}")]})).collect();
        slice("web", json!([{"port": 80}]), Value::Array(list))
    };
    let cases: [(&[u8], &[u8], &str); 4] = [
        (&[1, 2, 3], &[1, 2, 3], ""),
        (&[1, 2, 3], &[2, 3, 4],
            "delete element ip nauplius-proxy tcp-endpoints { 10.7.0.1 . 80 . 0 }
add element ip nauplius-proxy tcp-endpoints { 10.7.0.1 . 80 . 0 : 10.8.1.4 . 80 }
"),
        (&[1, 2], &[2],
            "add chain ip nauplius-proxy inside-tcp-spread-1
add chain ip nauplius-proxy tcp-spread-1
add rule ip nauplius-proxy inside-tcp-spread-1 ip saddr != @pod-networks meta mark set meta mark or 0x4000
add rule ip nauplius-proxy inside-tcp-spread-1 goto tcp-spread-1
add rule ip nauplius-proxy tcp-spread-1 dnat ip addr . port to ip daddr . tcp dport . numgen random mod 1 map @tcp-endpoints
delete element ip nauplius-proxy frontends { 10.7.0.1 . tcp . 80 }
delete element ip nauplius-proxy tcp-endpoints { 10.7.0.1 . 80 . 0, 10.7.0.1 . 80 . 1 }
add element ip nauplius-proxy frontends { 10.7.0.1 . tcp . 80 : goto inside-tcp-spread-1 }
add element ip nauplius-proxy tcp-endpoints { 10.7.0.1 . 80 . 0 : 10.8.1.2 . 80 }
"),
        (&[], &[],  ""),
    ];
    for (before, after, expect) in cases {
        let service = web(json!({}));
        let mut ruleset = table(std::slice::from_ref(&service), &[endpoints(before)]);
        let old = ruleset.clone();
        let mut delta = Delta::default();
        let previous = ruleset.fragment("ns/web").cloned();
        let next = compiled(&service, &[endpoints(after)], &config(), previous.as_deref());
        ruleset.update("ns/web", next, &mut delta);
        assert_eq!(changes(&delta, &ruleset).text, expect, "{before:?} → {after:?}");
        assert_eq!(diff(&old, &ruleset).text, expect, "{before:?} → {after:?}");
    }
}

#[test]
fn another_service_is_not_touched() {
    let other = service("other", json!({"clusterIP": "10.7.0.9", "ports": [{"port": 80}]}));
    let of_other =
        slice("other", json!([{"port": 80}]), json!([{"addresses": ["10.8.0.8"]}, {"addresses": ["10.8.0.9"]}]));
    let mut ruleset = table(&[web(json!({})), other], &[two(), of_other]);
    let mut delta = Delta::default();
    ruleset.update("ns/web", None, &mut delta);
    assert_eq!(
        changes(&delta, &ruleset).text,
        "\
delete element ip nauplius-proxy frontends { 10.7.0.1 . tcp . 80 }
delete element ip nauplius-proxy tcp-endpoints { 10.7.0.1 . 80 . 0, 10.7.0.1 . 80 . 1 }
delete element ip nauplius-proxy cluster-ips { 10.7.0.1 }
delete element ip nauplius-proxy hairpin { 10.8.0.2 . 10.8.0.2 }
"
    );
}

#[test]
fn places_are_kept() {
    let endpoint = |n: u8| Endpoint { address: IpAddr::from([10, 8, 0, n]), port: 80 };
    let cases: [(&[u8], &[u8], &[u8]); 6] = [
        (&[], &[1, 2, 3], &[1, 2, 3]),
        (&[1, 2, 3], &[1, 3, 4], &[1, 4, 3]),
        (&[1, 2, 3], &[2, 3], &[3, 2]),
        (&[3, 2], &[1, 2, 3], &[3, 2, 1]),
        (&[1, 2, 3, 4], &[4], &[4]),
        (&[1, 2], &[], &[]),
    ];
    for (old, new, expect) in cases {
        let list = |numbers: &[u8]| numbers.iter().map(|n| endpoint(*n)).collect::<Vec<_>>();
        assert_eq!(settle(&list(old), &list(new)), list(expect), "{old:?} → {new:?}");
    }
}

/// Who serves keeps what he has, though new connections go to others; with nobody there, there is nobody to go to.
#[test]
fn stale_connections() {
    let spec = json!({"type": "NodePort", "clusterIP": "10.7.0.1", "internalTrafficPolicy": "Local",
        "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}]});
    let going = json!({"ready": false, "serving": true, "terminating": true});
    let gone = json!({"ready": false, "serving": false, "terminating": true});
    let endpoints = json!([{"addresses": ["10.8.0.2"], "nodeName": "here"}, {"addresses": ["10.8.0.4"]},
        {"addresses": ["10.8.0.5"], "conditions": going}, {"addresses": ["10.8.0.6"], "conditions": gone}]);
    let slice = slice("web", json!([{"port": 53, "protocol": "UDP"}]), endpoints);
    let service = service("web", spec);
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let mut world = World::new("here");
    world.set_service(&service);
    let without = table(std::slice::from_ref(&service), &[]);
    // destination, responder, stale with endpoints; nothing is without any
    let cases = [
        ("10.7.0.1", 53, "10.8.0.2", 53, false),
        ("10.7.0.1", 53, "10.8.0.4", 53, false),
        ("10.7.0.1", 53, "10.8.0.5", 53, false),
        ("10.7.0.1", 53, "10.8.0.6", 53, true),
        ("10.7.0.1", 53, "10.8.0.3", 53, true),
        ("10.7.0.1", 53, "10.7.0.1", 53, true),
        ("192.0.2.1", 30053, "10.8.0.3", 53, true),
        ("192.0.2.1", 30053, "10.8.0.2", 53, false),
        ("192.0.2.9", 30053, "10.8.0.3", 53, false),
        ("10.7.0.2", 53, "10.8.0.3", 53, false),
    ];
    let is_stale = |world: &World, table: &Ruleset, (to, port, by, on, _): (&str, u16, &str, u16, bool)| {
        let connection = [Connection::example(Protocol::Udp, (ip(to), port), Endpoint { address: ip(by), port: on })];
        let serving = |key: &str, front: &_| world.serving(key, Family::V4, front);
        !stale(&connection, table, &view(), serving).is_empty()
    };
    for case in cases {
        assert!(!is_stale(&world, &without, case), "{case:?}, no endpoints");
    }
    world.set_slice(&slice);
    let with = table(&[service], &[slice]);
    for case in cases {
        assert_eq!(is_stale(&world, &with, case), case.4, "{case:?}");
    }
}

#[test]
fn a_flushed_table_is_noticed() {
    let ruleset = table(&[], &[]);
    let listing = |text: &str| serde_json::from_str(text).unwrap();
    assert!(!intact(
        &listing(r#"{"nftables": [{"metainfo": {"version": "1"}}, {"table": {"family": "ip"}}]}"#),
        &ruleset
    ));
}

#[test]
fn health_answers() {
    let answer = crate::health::service_health("ns/web", 2, true);
    assert_eq!(answer.status, 200);
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(
        body,
        json!({"service": {"namespace": "ns", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true})
    );
    assert_eq!(crate::health::service_health("ns/web", 0, true).status, 503);
    assert_eq!(crate::health::service_health("ns/web", 2, false).status, 503);
}

/// The kernel's form of a change, and what is left to nft.
#[test]
fn elements_are_written_as_the_kernel_has_them() {
    let change = |family, element, value| (family, Change { element, value });
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let at = Element::Endpoint(Protocol::Tcp, ip("10.7.0.1"), 80, 5);
    let goto = |chain: &str| Some(Leads::Verdict(Verdict::Goto(chain.into())));
    let bytes = |changes: &[(Family, Change)]| encode(changes, 1).map(|(bytes, _)| bytes);
    let has = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    let some = bytes(&[
        change(Family::V4, at, None),
        change(Family::V4, at, Some(Leads::To(Endpoint { address: ip("10.8.1.4"), port: 8080 }))),
        change(Family::V6, Element::Frontend(ip("fd07::1"), Protocol::Udp, 53), goto("udp-spread-1")),
    ])
    .unwrap();
    let mut key = vec![10, 7, 0, 1, 0, 80, 0, 0];
    key.extend(5u32.to_ne_bytes());
    assert!(has(&some, &key));
    assert!(has(&some, &[10, 8, 1, 4, 0x1f, 0x90, 0, 0]));
    assert!(has(&some, &[0, 1, 17, 0, 0, 0, 0, 53, 0, 0]));
    assert!(has(&some, b"udp-spread-1\0"));
    let source = Element::Source(ip("10.7.0.1"), Protocol::Tcp, 80, "10.0.0.0/8".parse().unwrap());
    assert_eq!(bytes(&[change(Family::V4, source, None)]), None);
}

/// Slices come before their Service, change whose they are, and go; only what matters makes a Service dirty.
#[test]
fn what_is_kept_follows_the_objects() {
    let mut world = World::new("here");
    let dirty = |world: &mut World| world.take_dirty().iter().map(|key| key.to_string()).collect::<Vec<_>>().join(" ");
    let counts = |world: &World, name: &str| {
        let fragment = world.compile(name, Family::V4, &view(), &config(), None)?;
        fragment.fronts.iter().next().map(|(_, behind)| behind.cluster.len())
    };
    world.set_slice(&two());
    assert_eq!((dirty(&mut world).as_str(), counts(&world, "ns/web")), ("ns/web", None));
    world.set_service(&web(json!({})));
    assert_eq!((dirty(&mut world).as_str(), counts(&world, "ns/web")), ("ns/web", Some(2)));
    let mut same = two();
    same.metadata.resource_version = Some("2".into());
    world.set_slice(&same);
    world.set_service(&web(json!({"publishNotReadyAddresses": true})));
    assert_eq!(dirty(&mut world), "");
    let mut moved = two();
    moved.metadata.labels = Some(BTreeMap::from([("kubernetes.io/service-name".into(), "other".into())]));
    world.set_slice(&moved);
    assert_eq!((dirty(&mut world).as_str(), counts(&world, "ns/web")), ("ns/other ns/web", Some(0)));
    world.set_slice(&two());
    world.remove_slice("ns/web-IPv4");
    assert_eq!((dirty(&mut world).as_str(), counts(&world, "ns/web")), ("ns/other ns/web", Some(0)));
    world.remove_slice("ns/web-IPv4");
    world.remove_service("ns/nobody");
    assert_eq!(dirty(&mut world), "");
    world.remove_service("ns/web");
    assert_eq!((dirty(&mut world).as_str(), world.keys().count()), ("ns/web", 0));
}
