//! Questions and answers as data.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use crate::answer::{Outcome, Takes, Transport, answer, encode};
use crate::cache::Cache;
use crate::upstreams::{Upstreams, parse_stub};
use crate::world::World;
use crate::zone::{Zone, records};

fn put(zone: &mut Zone, name: &str, spec: Value, endpoints: Value) {
    let slice = json!({"addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}]});
    put_slices(zone, &format!("ns/{name}"), spec, &[slice]);
}

fn a_slice(key: &str, name: &str, body: &Value) -> EndpointSlice {
    let (namespace, service) = key.split_once('/').unwrap();
    let mut slice = body.clone();
    slice["metadata"] =
        json!({"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": service}});
    serde_json::from_value(slice).unwrap()
}

fn a_service(key: &str, spec: Value) -> Service {
    let (namespace, name) = key.split_once('/').unwrap();
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec})).unwrap()
}

fn put_slices(zone: &mut Zone, key: &str, spec: Value, slices: &[Value]) {
    let mut world = World::default();
    for (n, body) in slices.iter().enumerate() {
        world.set_slice(&a_slice(key, &format!("x{n}"), body));
    }
    let made = world.set_service(&a_service(key, spec), &zone.origin);
    zone.set_service(key, made);
}

/// Slices before their Service and after it, of one that turns headless, and whose controller says they are of no use.
#[test]
fn what_is_kept_follows_the_objects() {
    let origin = Name::from_ascii("cluster.local.").unwrap();
    let body = |ip: &str| json!({"addressType": "IPv4", "endpoints": [{"addresses": [ip]}]});
    let mut world = World::default();
    let addresses = |world: &World| world.records("ns/a", &origin).map(|records| records.addresses.len());
    assert!(world.set_slice(&a_slice("ns/a", "one", &body("10.244.0.2"))).is_empty());
    assert!(world.set_service(&a_service("ns/a", json!({"clusterIP": "10.96.0.1"})), &origin).is_some());
    assert_eq!(addresses(&world), None);
    assert!(world.set_service(&a_service("ns/a", json!({"clusterIP": "None"})), &origin).is_some());
    assert_eq!(addresses(&world), Some(1));
    assert_eq!(world.set_slice(&a_slice("ns/a", "two", &body("10.244.0.3"))), ["ns/a".into()]);
    assert!(world.set_slice(&a_slice("ns/a", "two", &body("10.244.0.3"))).is_empty(), "nothing new");
    assert_eq!(addresses(&world), Some(2));
    let mut useless = a_slice("ns/a", "two", &body("10.244.0.3"));
    let label = ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io");
    useless.metadata.labels.as_mut().unwrap().insert(label.0.into(), label.1.into());
    assert_eq!(world.set_slice(&useless), ["ns/a".into()]);
    assert_eq!(addresses(&world), Some(1));
    assert_eq!(world.set_slice(&a_slice("ns/b", "one", &body("10.244.0.2"))), ["ns/a".into()], "it went elsewhere");
    assert_eq!(addresses(&world), Some(0));
    assert_eq!(world.remove_slice("ns/one"), None, "nobody asks for it there");
    world.remove_service("ns/a");
    assert_eq!(addresses(&world), None);
}

fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local", 5).unwrap();
    zone.set_namespaces(HashSet::from(["ns".to_string()]));
    put(
        &mut zone,
        "web",
        json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5", "fd00::5"],
        "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        json!([]),
    );
    put(&mut zone, "plain", json!({"clusterIP": "10.96.0.6", "ports": [{"port": 80}]}), json!([]));
    put(
        &mut zone,
        "db",
        json!({"clusterIP": "None"}),
        json!([
        {"addresses": ["10.244.0.2"], "hostname": "db-0"}, {"addresses": ["10.244.1.2"]},
        {"addresses": ["10.244.1.3"], "conditions": {"ready": false}}]),
    );
    put(&mut zone, "none", json!({"clusterIP": "None"}), json!([]));
    put(&mut zone, "out", json!({"type": "ExternalName", "externalName": "example.com"}), json!([]));
    put(&mut zone, "in", json!({"type": "ExternalName", "externalName": "plain.ns.svc.cluster.local"}), json!([]));
    put(&mut zone, "round", json!({"type": "ExternalName", "externalName": "round.ns.svc.cluster.local"}), json!([]));
    put(&mut zone, "dead", json!({"type": "ExternalName", "externalName": "gone.ns.svc.cluster.local"}), json!([]));
    put_slices(
        &mut zone,
        "ns/six",
        json!({"clusterIP": "None"}),
        &[
            json!({"addressType": "IPv6", "ports": [{"name": "db", "port": 5432}], "endpoints": [
            {"addresses": ["fd00::a"], "hostname": "six-0"}, {"addresses": ["fd00::b"]}]}),
            json!({"addressType": "IPv4", "ports": [{"name": "db", "port": 5432}], "endpoints": [
            {"addresses": ["10.244.3.1"], "hostname": "six-0"}]}),
        ],
    );
    put_slices(&mut zone, "kube-system/kube-dns", json!({"clusterIP": "10.96.0.10", "ports": []}), &[]);
    zone.complete();
    zone
}

fn packet(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(bytes) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(bytes);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

/// The reply as text: code, then each answer, then what else is there.
fn ask(zone: &Zone, name: &str, kind: RecordType) -> String {
    show(answer(zone, &packet(name, kind, None), &Upstreams::default()))
}

fn show((outcome, _): (Outcome, Takes)) -> String {
    let reply = match outcome {
        Outcome::Reply(reply) => reply,
        Outcome::Ask { reply, name, kind } => {
            return format!("{} answers, then ask {kind} {name}", reply.answers.len());
        }
        Outcome::Ignore => return "ignored".into(),
    };
    // As it arrives: through the wire's form.
    let reply = Message::from_vec(&reply.to_vec().unwrap()).unwrap();
    let mut out = format!("{:?}", reply.metadata.response_code);
    if reply.metadata.authoritative {
        out.push_str(" aa");
    }
    for record in &reply.answers {
        assert_eq!(record.ttl, 5, "{record}");
        out.push_str(&format!("; {} {}", record.record_type(), record.data));
    }
    for record in &reply.additionals {
        out.push_str(&format!("; + {} {} {}", record.name, record.record_type(), record.data));
    }
    if reply.authorities.iter().any(|record| record.record_type() == RecordType::SOA && record.ttl == 5) {
        out.push_str("; soa");
    }
    out
}

#[test]
fn questions_and_answers() {
    use RecordType::{A, AAAA, ANY, CNAME, DNSKEY, DS, HTTPS, MX, NS, PTR, SOA, SRV, TXT};
    let zone = zone();
    for (name, kind, expect) in [
        ("web.ns.svc.cluster.local.", A, "NoError aa; A 10.96.0.5"),
        ("WEB.ns.SVC.Cluster.Local.", A, "NoError aa; A 10.96.0.5"),
        ("web.ns.svc.cluster.local.", AAAA, "NoError aa; AAAA fd00::5"),
        ("web.ns.svc.cluster.local.", ANY, "NoError aa; A 10.96.0.5; AAAA fd00::5"),
        ("plain.ns.svc.cluster.local.", AAAA, "NoError aa; soa"),
        ("plain.ns.svc.cluster.local.", MX, "NoError aa; soa"),
        ("gone.ns.svc.cluster.local.", A, "NXDomain aa; soa"),
        ("web.other.svc.cluster.local.", A, "NXDomain aa; soa"),
        ("example.com.ns.svc.cluster.local.", A, "NXDomain aa; soa"),
        ("x.web.ns.svc.cluster.local.", A, "NXDomain aa; soa"),
        // What a resolver makes of a name by its search path.
        ("web.ns.svc.cluster.local.ns.svc.cluster.local.", A, "NXDomain aa; soa"),
        ("web.ns.svc.cluster.local.svc.cluster.local.", A, "NXDomain aa; soa"),
        ("web.ns.svc.cluster.local.cluster.local.", A, "NXDomain aa; soa"),
        ("web.svc.cluster.local.", A, "NXDomain aa; soa"),
        ("web.cluster.local.", A, "NXDomain aa; soa"),
        // Types a name has nothing of.
        ("web.ns.svc.cluster.local.", HTTPS, "NoError aa; soa"),
        ("web.ns.svc.cluster.local.", SOA, "NoError aa; soa"),
        ("web.ns.svc.cluster.local.", CNAME, "NoError aa; soa"),
        ("web.ns.svc.cluster.local.", PTR, "NoError aa; soa"),
        ("cluster.local.", DNSKEY, "NoError aa; soa"),
        ("cluster.local.", DS, "NoError aa; soa"),
        ("dns-version.cluster.local.", A, "NoError aa; soa"),
        ("ns.dns.cluster.local.", A, "NoError aa; A 10.96.0.10"),
        // Names that only have names below them.
        ("cluster.local.", A, "NoError aa; soa"),
        ("svc.cluster.local.", A, "NoError aa; soa"),
        ("ns.svc.cluster.local.", A, "NoError aa; soa"),
        ("other.svc.cluster.local.", A, "NXDomain aa; soa"),
        ("_tcp.web.ns.svc.cluster.local.", SRV, "NoError aa; soa"),
        ("_sctp.web.ns.svc.cluster.local.", SRV, "NXDomain aa; soa"),
        // Ports.
        (
            "_http._tcp.web.ns.svc.cluster.local.",
            SRV,
            "NoError aa; SRV 0 100 80 web.ns.svc.cluster.local.; + web.ns.svc.cluster.local. A 10.96.0.5; + web.ns.svc.cluster.local. AAAA fd00::5",
        ),
        // Without a port's name, all of them; a port without a name has none of its own.
        (
            "web.ns.svc.cluster.local.",
            SRV,
            "NoError aa; SRV 0 100 80 web.ns.svc.cluster.local.; SRV 0 100 53 web.ns.svc.cluster.local.; \
             + web.ns.svc.cluster.local. A 10.96.0.5; + web.ns.svc.cluster.local. AAAA fd00::5",
        ),
        (
            "plain.ns.svc.cluster.local.",
            SRV,
            "NoError aa; SRV 0 100 80 plain.ns.svc.cluster.local.; + plain.ns.svc.cluster.local. A 10.96.0.6",
        ),
        ("_._tcp.plain.ns.svc.cluster.local.", SRV, "NXDomain aa; soa"),
        ("http._tcp.web.ns.svc.cluster.local.", SRV, "NXDomain aa; soa"),
        ("_http._tcp.db-0.db.ns.svc.cluster.local.", SRV, "NXDomain aa; soa"),
        ("_http._tcp.none.ns.svc.cluster.local.", SRV, "NXDomain aa; soa"),
        ("_http._udp.web.ns.svc.cluster.local.", SRV, "NXDomain aa; soa"),
        ("_http._tcp.web.ns.svc.cluster.local.", A, "NoError aa; soa"),
        (
            "_dns._udp.db.ns.svc.cluster.local.",
            SRV,
            "NoError aa; SRV 0 100 53 db-0.db.ns.svc.cluster.local.; SRV 0 100 53 10-244-1-2.db.ns.svc.cluster.local.; \
             + 10-244-1-2.db.ns.svc.cluster.local. A 10.244.1.2; + db-0.db.ns.svc.cluster.local. A 10.244.0.2",
        ),
        // Headless.
        ("db.ns.svc.cluster.local.", A, "NoError aa; A 10.244.0.2; A 10.244.1.2"),
        ("db-0.db.ns.svc.cluster.local.", A, "NoError aa; A 10.244.0.2"),
        ("10-244-1-2.db.ns.svc.cluster.local.", A, "NoError aa; A 10.244.1.2"),
        ("10-244-1-3.db.ns.svc.cluster.local.", A, "NXDomain aa; soa"),
        ("db.ns.svc.cluster.local.", AAAA, "NoError aa; soa"),
        ("db-0.db.ns.svc.cluster.local.", AAAA, "NoError aa; soa"),
        ("DB-0.db.ns.svc.cluster.local.", A, "NoError aa; A 10.244.0.2"),
        // A pod with a name is not there by its address too.
        ("10-244-0-2.db.ns.svc.cluster.local.", A, "NXDomain aa; soa"),
        ("six.ns.svc.cluster.local.", AAAA, "NoError aa; AAAA fd00::a; AAAA fd00::b"),
        ("six.ns.svc.cluster.local.", A, "NoError aa; A 10.244.3.1"),
        ("six-0.six.ns.svc.cluster.local.", ANY, "NoError aa; AAAA fd00::a; A 10.244.3.1"),
        ("fd00--b.six.ns.svc.cluster.local.", AAAA, "NoError aa; AAAA fd00::b"),
        (
            "_db._tcp.six.ns.svc.cluster.local.",
            SRV,
            "NoError aa; SRV 0 100 5432 six-0.six.ns.svc.cluster.local.; SRV 0 100 5432 fd00--b.six.ns.svc.cluster.local.; \
             + fd00--b.six.ns.svc.cluster.local. AAAA fd00::b; + six-0.six.ns.svc.cluster.local. AAAA fd00::a; \
             + six-0.six.ns.svc.cluster.local. A 10.244.3.1",
        ),
        ("none.ns.svc.cluster.local.", A, "NoError aa; soa"),
        // Aliases.
        ("out.ns.svc.cluster.local.", A, "NoError aa; CNAME example.com."),
        ("out.ns.svc.cluster.local.", AAAA, "NoError aa; CNAME example.com."),
        ("out.ns.svc.cluster.local.", CNAME, "NoError aa; CNAME example.com."),
        ("x.out.ns.svc.cluster.local.", A, "NXDomain aa; soa"),
        ("in.ns.svc.cluster.local.", A, "NoError aa; CNAME plain.ns.svc.cluster.local.; A 10.96.0.6"),
        ("in.ns.svc.cluster.local.", CNAME, "NoError aa; CNAME plain.ns.svc.cluster.local."),
        ("dead.ns.svc.cluster.local.", A, "NXDomain aa; CNAME gone.ns.svc.cluster.local.; soa"),
        // Pods.
        ("10-244-1-9.ns.pod.cluster.local.", A, "NoError aa; A 10.244.1.9"),
        ("fd00--9.ns.pod.cluster.local.", AAAA, "NoError aa; AAAA fd00::9"),
        ("10-244-1-9.ns.pod.cluster.local.", AAAA, "NoError aa; soa"),
        ("fd00--9.ns.pod.cluster.local.", A, "NoError aa; soa"),
        ("ns.pod.cluster.local.", A, "NoError aa; soa"),
        ("pod.cluster.local.", A, "NoError aa; soa"),
        ("x.10-244-1-9.ns.pod.cluster.local.", A, "NXDomain aa; soa"),
        ("10-244-1-9.other.pod.cluster.local.", A, "NXDomain aa; soa"),
        ("nonsense.ns.pod.cluster.local.", A, "NXDomain aa; soa"),
        // Addresses.
        ("5.0.96.10.in-addr.arpa.", PTR, "NoError aa; PTR web.ns.svc.cluster.local."),
        ("2.0.244.10.in-addr.arpa.", PTR, "NoError aa; PTR db-0.db.ns.svc.cluster.local."),
        ("2.1.244.10.in-addr.arpa.", PTR, "NoError aa; PTR 10-244-1-2.db.ns.svc.cluster.local."),
        ("9.9.9.9.in-addr.arpa.", PTR, "NXDomain"),
        ("5.0.96.10.in-addr.arpa.", A, "NoError aa; soa"),
        ("96.10.in-addr.arpa.", PTR, "NXDomain"),
        (
            "a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
            PTR,
            "NoError aa; PTR six-0.six.ns.svc.cluster.local.",
        ),
        (
            "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
            PTR,
            "NoError aa; PTR web.ns.svc.cluster.local.",
        ),
        // The zone itself.
        ("dns-version.cluster.local.", TXT, "NoError aa; TXT 1.1.0"),
        ("cluster.local.", NS, "NoError aa; NS ns.dns.cluster.local."),
        // Not ours.
        ("example.com.", A, "Refused"),
        ("local.", A, "Refused"),
    ] {
        assert_eq!(ask(&zone, name, kind), expect, "{kind} {name}");
    }
    assert!(
        ask(&zone, "cluster.local.", SOA)
            .starts_with("NoError aa; SOA ns.dns.cluster.local. hostmaster.cluster.local.")
    );
    assert!(ask(&zone, "round.ns.svc.cluster.local.", A).starts_with("ServFail"));
}

#[test]
fn other_servers_are_asked_where_there_are_any() {
    let zone = zone();
    for (name, kind, expect) in [
        ("example.com.", RecordType::A, "0 answers, then ask A example.com."),
        ("9.9.9.9.in-addr.arpa.", RecordType::PTR, "0 answers, then ask PTR 9.9.9.9.in-addr.arpa."),
        ("out.ns.svc.cluster.local.", RecordType::A, "1 answers, then ask A example.com."),
        ("gone.ns.svc.cluster.local.", RecordType::A, "NXDomain aa; soa"),
    ] {
        assert_eq!(show(answer(&zone, &packet(name, kind, None), &asking())), expect);
    }
}

#[test]
fn before_the_first_lists_are_in() {
    let zone = Zone::new("cluster.local", 5).unwrap();
    assert_eq!(ask(&zone, "web.ns.svc.cluster.local.", RecordType::A), "ServFail");
    assert_eq!(ask(&zone, "example.com.", RecordType::A), "Refused");
}

#[test]
fn changes_take_the_old_records_away() {
    let mut zone = zone();
    let serial = zone.soa().data.to_string();
    put(&mut zone, "web", json!({"clusterIP": "10.96.0.7", "ports": []}), json!([]));
    assert_ne!(zone.soa().data.to_string(), serial);
    assert_eq!(ask(&zone, "web.ns.svc.cluster.local.", RecordType::A), "NoError aa; A 10.96.0.7");
    assert_eq!(ask(&zone, "5.0.96.10.in-addr.arpa.", RecordType::PTR), "NXDomain");
    assert_eq!(ask(&zone, "7.0.96.10.in-addr.arpa.", RecordType::PTR), "NoError aa; PTR web.ns.svc.cluster.local.");
    zone.set_service("ns/web", None);
    assert_eq!(ask(&zone, "web.ns.svc.cluster.local.", RecordType::A), "NXDomain aa; soa");
    assert_eq!(ask(&zone, "7.0.96.10.in-addr.arpa.", RecordType::PTR), "NXDomain");
}

#[test]
fn odd_packets() {
    let zone = zone();
    let good = packet("web.ns.svc.cluster.local.", RecordType::A, None);
    let with = |change: &dyn Fn(&mut Message)| {
        let mut message = Message::from_vec(&good).unwrap();
        change(&mut message);
        show(answer(&zone, &message.to_vec().unwrap(), &Upstreams::default()))
    };
    assert_eq!(show(answer(&zone, &[], &Upstreams::default())), "ignored");
    assert_eq!(show(answer(&zone, &good[..11], &Upstreams::default())), "ignored");
    assert_eq!(show(answer(&zone, &good[..20], &Upstreams::default())), "FormErr");
    assert_eq!(with(&|m| m.metadata.message_type = MessageType::Response), "ignored");
    assert_eq!(with(&|m| m.metadata.op_code = OpCode::Status), "NotImp");
    assert_eq!(with(&|m| m.queries.clear()), "FormErr");
    assert_eq!(
        with(&|m| {
            m.queries[0].set_query_class(DNSClass::CH);
        }),
        "Refused"
    );
    assert_eq!(
        with(&|m| {
            m.queries[0].set_query_type(RecordType::AXFR);
        }),
        "Refused"
    );
    let mut edns = Edns::new();
    edns.set_version(1);
    // The number 16 has two names; with EDNS it is "bad version".
    assert_eq!(
        with(&|m| {
            m.set_edns(edns.clone());
        }),
        "BADSIG"
    );
    // Whatever comes, nothing breaks.
    let mut noise = good.clone();
    for at in 0..noise.len() {
        for value in [0, 1, 0x3f, 0x40, 0xc0, 0xff] {
            let was = std::mem::replace(&mut noise[at], value);
            let _ = answer(&zone, &noise, &Upstreams::default());
            noise[at] = was;
        }
    }
}

#[test]
fn what_does_not_fit_is_marked() {
    let mut zone = zone();
    let endpoints: Vec<Value> =
        (0..200).map(|n| json!({"addresses": [format!("10.244.{}.{}", n / 100, n % 100)]})).collect();
    put(&mut zone, "many", json!({"clusterIP": "None"}), Value::Array(endpoints));
    let reply = |edns: Option<u16>, transport| {
        let packet = packet("many.ns.svc.cluster.local.", RecordType::A, edns);
        let (Outcome::Reply(reply), size) = answer(&zone, &packet, &Upstreams::default()) else { panic!("no reply") };
        let bytes = encode(reply, transport, size).unwrap();
        let message = Message::from_vec(&bytes).unwrap();
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        (bytes.len(), message.answers.len(), message.metadata.truncation, message.edns.is_some())
    };
    let (bytes, answers, truncated, edns) = reply(None, Transport::Udp);
    assert!(bytes <= 512 && answers > 25 && truncated && !edns, "{bytes} {answers}");
    let (bytes, answers, truncated, edns) = reply(Some(4096), Transport::Udp);
    assert!(bytes <= 1232 && answers > 70 && truncated && edns, "{bytes} {answers}");
    let (_, answers, truncated, _) = reply(None, Transport::Tcp);
    assert!(answers == 200 && !truncated);
    let (_, answers, truncated, _) = reply(Some(100), Transport::Udp);
    assert!(answers > 20 && truncated);
}

/// As many as there may be: each takes no more than it must, over TCP all are there.
#[test]
fn very_many_endpoints_are_told() {
    let mut zone = zone();
    let slices: Vec<Value> = (0..30)
        .map(|slice| {
            let endpoints: Vec<Value> = (0..100)
                .map(|n| json!({"addresses": [format!("10.244.{slice}.{n}")], "hostname": format!("h{slice}-{n}")}))
                .collect();
            json!({"addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "p", "port": 80}]})
        })
        .collect();
    put_slices(&mut zone, "ns/huge", json!({"clusterIP": "None"}), &slices);
    put_slices(&mut zone, "ns/large", json!({"clusterIP": "None"}), &slices[..10]);
    for (name, kind, transport, edns, expect) in [
        ("huge.ns", RecordType::A, Transport::Tcp, None, (3000, 0, false)),
        ("huge.ns", RecordType::A, Transport::Tcp, Some(1232), (3000, 0, false)),
        ("huge.ns", RecordType::A, Transport::Udp, Some(1232), (73, 0, true)),
        ("_p._tcp.large.ns", RecordType::SRV, Transport::Tcp, None, (1000, 0, false)),
        ("_p._tcp.LARGE.ns", RecordType::SRV, Transport::Udp, None, (9, 0, true)),
        ("h9-7.large.ns", RecordType::A, Transport::Udp, None, (1, 0, false)),
    ] {
        let packet = packet(&format!("{name}.svc.cluster.local."), kind, edns);
        let (Outcome::Reply(reply), size) = answer(&zone, &packet, &Upstreams::default()) else { panic!("no reply") };
        let whole: Vec<Record> = reply.answers.clone();
        let bytes = encode(reply, transport, size).unwrap();
        let message = Message::from_vec(&bytes).unwrap();
        let got = (message.answers.len(), message.additionals.len(), message.metadata.truncation);
        assert_eq!(got, expect, "{name} {kind} {transport:?}");
        assert_eq!(message.edns.is_some(), edns.is_some());
        assert_eq!(message.answers, whole[..message.answers.len()], "{name}");
    }
}

#[test]
fn the_first_answer_takes_turns() {
    let zone = zone();
    let mut firsts = HashSet::new();
    for id in 0..2 {
        let mut message = Message::from_vec(&packet("db.ns.svc.cluster.local.", RecordType::A, None)).unwrap();
        message.metadata.id = id;
        let (Outcome::Reply(reply), _) = answer(&zone, &message.to_vec().unwrap(), &Upstreams::default()) else {
            panic!("no reply")
        };
        firsts.insert(reply.answers[0].data.to_string());
    }
    assert_eq!(firsts.len(), 2);
}

/// How many packets one core answers: printed, not judged here.
#[test]
fn how_fast() {
    let zone = zone();
    let packet = packet("web.ns.svc.cluster.local.", RecordType::A, Some(1232));
    let began = std::time::Instant::now();
    let rounds = 20_000;
    for _ in 0..rounds {
        let (Outcome::Reply(reply), size) = answer(&zone, &packet, &Upstreams::default()) else { panic!("no reply") };
        assert!(encode(reply, Transport::Udp, size).is_some());
    }
    println!("{:.0} answers a second", f64::from(rounds) / began.elapsed().as_secs_f64());
}

fn asking() -> Upstreams {
    Upstreams::new(vec!["192.0.2.53:53".parse().unwrap()], &[]).unwrap()
}

#[test]
fn the_longest_stub_domain_is_asked() {
    let stubs: Vec<(String, Vec<SocketAddr>)> =
        ["corp.example=192.0.2.1", "Deep.corp.example=192.0.2.2:5353+2001:db8::1"]
            .map(|text| parse_stub(text).unwrap())
            .into();
    let upstreams = Upstreams::new(vec!["192.0.2.53:53".parse().unwrap()], &stubs).unwrap();
    let cases = [
        ("a.corp.example.", "192.0.2.1:53"),
        ("CORP.example.", "192.0.2.1:53"),
        ("x.deep.corp.example.", "192.0.2.2:5353 [2001:db8::1]:53"),
        ("notcorp.example.", "192.0.2.53:53"),
    ];
    for (name, expect) in cases {
        let servers = upstreams.servers(&Name::from_ascii(name).unwrap());
        let got: Vec<String> = servers.in_turn().map(|server| server.to_string()).collect();
        assert_eq!(got.join(" "), expect, "{name}");
    }
    // Who answered last is asked first.
    let deep = upstreams.servers(&Name::from_ascii("deep.corp.example.").unwrap());
    deep.answered("[2001:db8::1]:53".parse().unwrap());
    assert_eq!(deep.in_turn().map(|server| server.port()).collect::<Vec<_>>(), [53, 5353]);
    let alone = Upstreams::new(Vec::new(), &stubs).unwrap();
    assert!(alone.servers(&Name::from_ascii("example.").unwrap()).is_empty());
    for bad in ["corp.example", "=192.0.2.1", "corp.example=server", "a..b=192.0.2.1"] {
        assert!(parse_stub(bad).is_err(), "{bad}");
    }
}

#[test]
fn what_others_said_is_kept_for_a_while() {
    let name = Name::from_ascii("www.example.").unwrap();
    let record = |ttl, data| Record::from_rdata(name.clone(), ttl, data);
    let address = || RData::A(A::new(192, 0, 2, 7));
    let soa = || {
        let host = Name::from_ascii("ns.example.").unwrap();
        RData::SOA(SOA::new(host.clone(), host, 1, 2, 3, 4, 12))
    };
    let message = |code, answers: Vec<Record>, authorities: Vec<Record>| {
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        message.answers.extend(answers);
        message.authorities.extend(authorities);
        message
    };
    // What is said, for how many seconds it is kept, and the time to live after ten.
    let cases = [
        (message(ResponseCode::NoError, vec![record(20, address()), record(300, address())], vec![]), 20, "10 290"),
        (message(ResponseCode::NoError, vec![record(300, address())], vec![]), 30, "290"),
        (message(ResponseCode::NXDomain, vec![], vec![record(300, soa())]), 12, "290"),
        (message(ResponseCode::NoError, vec![], vec![record(11, soa())]), 11, "1"),
        (message(ResponseCode::NXDomain, vec![], vec![]), 0, ""),
        (message(ResponseCode::ServFail, vec![record(300, address())], vec![]), 0, ""),
    ];
    for (said, seconds, left) in cases {
        let mut cache = Cache::default();
        let now = Instant::now();
        cache.keep(&name, RecordType::A, &said, now);
        let ask = |after: u64| {
            let mut reply = message(ResponseCode::NoError, vec![], vec![]);
            let asked = Name::from_ascii("WWW.example.").unwrap();
            let found = cache.fill(&mut reply, &asked, RecordType::A, now + Duration::from_secs(after));
            assert!(found.is_none_or(|something| something != reply.answers.is_empty()));
            found.map(|_| reply)
        };
        assert_eq!(ask(0).is_some(), seconds > 0, "{said:?}");
        assert!(ask(seconds).is_none());
        let Some(reply) = ask(10).filter(|_| seconds > 10) else { continue };
        assert_eq!(reply.metadata.response_code, said.metadata.response_code);
        let ttls: Vec<String> = reply.answers.iter().chain(&reply.authorities).map(|r| r.ttl.to_string()).collect();
        assert_eq!(ttls.join(" "), left);
    }
}

/// Answers a second on one core, from packet to packet. A measurement: `cargo test -p dns --release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn answers_a_second() {
    let mut zone = Zone::new("cluster.local", 5).unwrap();
    for n in 0..10_000u32 {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": format!("s{n}"), "namespace": "ns"},
            "spec": {"clusterIP": std::net::Ipv4Addr::from(0x0a60_0000 + n).to_string(),
                "ports": [{"name": "http", "port": 80}]}}))
        .unwrap();
        zone.set_service(&format!("ns/s{n}"), records(&service, &zone.origin));
    }
    zone.set_namespaces(["ns".to_string()].into());
    zone.complete();
    let upstreams = Upstreams::default();
    for (what, name, kind) in [
        ("A", "s77.ns.svc.cluster.local.", RecordType::A),
        ("SRV", "_http._tcp.s77.ns.svc.cluster.local.", RecordType::SRV),
        ("no such name", "s77.ns.svc.cluster.local.ns.svc.cluster.local.", RecordType::A),
    ] {
        let packet = packet(name, kind, Some(1232));
        let (began, count) = (Instant::now(), 200_000u32);
        for _ in 0..count {
            let (Outcome::Reply(reply), size) = answer(&zone, &packet, &upstreams) else { panic!("no reply") };
            assert!(encode(reply, Transport::Udp, size).is_some());
        }
        println!("{what}: {:.0} a second", f64::from(count) / began.elapsed().as_secs_f64());
    }
}
