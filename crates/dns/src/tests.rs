//! Questions and answers as data.

use std::collections::HashSet;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use crate::answer::{Outcome, Transport, answer, encode};
use crate::zone::{Zone, records};

fn put(zone: &mut Zone, name: &str, spec: Value, endpoints: Value) {
    let service: Service =
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec})).unwrap();
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": "x", "namespace": "ns"}, "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}]}))
    .unwrap();
    let made = records(&service, [&slice], &zone.origin);
    zone.set_service(&format!("ns/{name}"), made);
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
    show(answer(zone, &packet(name, kind, None), false))
}

fn show((outcome, _): (Outcome, Option<u16>)) -> String {
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
    use RecordType::{A, AAAA, ANY, CNAME, MX, NS, PTR, SOA, SRV, TXT};
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
        ("none.ns.svc.cluster.local.", A, "NoError aa; soa"),
        // Aliases.
        ("out.ns.svc.cluster.local.", A, "NoError aa; CNAME example.com."),
        ("out.ns.svc.cluster.local.", CNAME, "NoError aa; CNAME example.com."),
        ("in.ns.svc.cluster.local.", A, "NoError aa; CNAME plain.ns.svc.cluster.local.; A 10.96.0.6"),
        ("in.ns.svc.cluster.local.", CNAME, "NoError aa; CNAME plain.ns.svc.cluster.local."),
        ("dead.ns.svc.cluster.local.", A, "NXDomain aa; CNAME gone.ns.svc.cluster.local.; soa"),
        // Pods.
        ("10-244-1-9.ns.pod.cluster.local.", A, "NoError aa; A 10.244.1.9"),
        ("fd00--9.ns.pod.cluster.local.", AAAA, "NoError aa; AAAA fd00::9"),
        ("10-244-1-9.ns.pod.cluster.local.", AAAA, "NoError aa; soa"),
        ("10-244-1-9.other.pod.cluster.local.", A, "NXDomain aa; soa"),
        ("nonsense.ns.pod.cluster.local.", A, "NXDomain aa; soa"),
        // Addresses.
        ("5.0.96.10.in-addr.arpa.", PTR, "NoError aa; PTR web.ns.svc.cluster.local."),
        ("2.0.244.10.in-addr.arpa.", PTR, "NoError aa; PTR db-0.db.ns.svc.cluster.local."),
        ("2.1.244.10.in-addr.arpa.", PTR, "NoError aa; PTR 10-244-1-2.db.ns.svc.cluster.local."),
        ("9.9.9.9.in-addr.arpa.", PTR, "NXDomain"),
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
        assert_eq!(show(answer(&zone, &packet(name, kind, None), true)), expect);
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
        show(answer(&zone, &message.to_vec().unwrap(), false))
    };
    assert_eq!(show(answer(&zone, &[], false)), "ignored");
    assert_eq!(show(answer(&zone, &good[..11], false)), "ignored");
    assert_eq!(show(answer(&zone, &good[..20], false)), "FormErr");
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
            let _ = answer(&zone, &noise, false);
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
        let (Outcome::Reply(reply), size) = answer(&zone, &packet, false) else { panic!("no reply") };
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

#[test]
fn the_first_answer_takes_turns() {
    let zone = zone();
    let mut firsts = HashSet::new();
    for id in 0..2 {
        let mut message = Message::from_vec(&packet("db.ns.svc.cluster.local.", RecordType::A, None)).unwrap();
        message.metadata.id = id;
        let (Outcome::Reply(reply), _) = answer(&zone, &message.to_vec().unwrap(), false) else { panic!("no reply") };
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
        let (Outcome::Reply(reply), size) = answer(&zone, &packet, false) else { panic!("no reply") };
        assert!(encode(reply, Transport::Udp, size).is_some());
    }
    println!("{:.0} answers a second", f64::from(rounds) / began.elapsed().as_secs_f64());
}
