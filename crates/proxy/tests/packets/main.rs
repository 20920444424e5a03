//! The program with real packets, in network namespaces of its own: a node, a client outside, two pods.
//!
//! Each test runs in IPv4 and in IPv6. Addresses are written as IPv4's everywhere; [`Net::address`] says what they are in
//! the other family.
//!
//! Needs root, `ip` and `nft`; without them it says so and passes.

mod growth;
mod net;
mod settings;

use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use net::{CLIENT, NODE, Net, VIP, WAIT, spec, translated};
use proxy::conntrack::{Netfilter, stale};
use proxy::listing::intact;
use proxy::nft::full;
use proxy::service::{Front, Protocol};
use proxy::{Config, Family, Ruleset, TABLE, diff, program};
use serde_json::{Value, json};

#[test]
fn packets_go_where_the_program_says() {
    packets_go(Family::V4);
}

#[test]
fn packets_go_where_the_program_says_in_ipv6() {
    packets_go(Family::V6);
}

fn packets_go(family: Family) {
    let Some(net) = Net::new(family) else { return };
    net.serve("one", 8080);
    net.serve("two", 8080);
    let both = [("10.8.1.2", "node"), ("10.8.2.2", "elsewhere")];

    let mut now = net.table(spec(json!({})), &both);
    net.apply(&full(&now).text);
    // From outside, through the cluster IP: masqueraded, spread over both.
    net.answers("client", VIP, 80, &[("one", "10.8.1.1"), ("two", "10.8.2.1")]);
    // From a pod: its own address, and masqueraded when it comes back to itself.
    net.answers("one", VIP, 80, &[("one", "10.8.1.1"), ("two", "10.8.1.2")]);
    // From the node itself.
    net.answers("node", VIP, 80, &[("one", "10.8.1.1"), ("two", "10.8.2.1")]);
    // A node port, from outside, from a pod, from the node.
    net.answers("client", NODE, 30080, &[("one", "10.8.1.1"), ("two", "10.8.2.1")]);
    net.answers("two", NODE, 30080, &[("one", "10.8.1.1"), ("two", "10.8.2.1")]);
    net.answers("node", NODE, 30080, &[("one", "10.8.1.1"), ("two", "10.8.2.1")]);
    // A port the Service has not.
    let error = net.ask("client", VIP, 81).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);

    // What the kernel shows is what was meant; a flush is noticed.
    let listing = || net.listing();
    assert!(intact(&listing(), &now), "{:?}", listing());
    net.nft(&["flush", "map", family.nft(), TABLE, "tcp-endpoints"], "");
    assert!(!intact(&listing(), &now));
    net.apply(&full(&now).text);
    assert!(intact(&listing(), &now));
    // So is what takes another's place: an endpoint, and a rule.
    let table = format!("{} {TABLE}", family.nft());
    let (vip, pod, other) = (net.address(VIP), net.address("10.8.1.2"), net.address("10.8.3.9"));
    let put = |pod| format!("element {table} tcp-endpoints {{ {vip} . 80 . 0 : {pod} . 8080 }}");
    net.apply(&format!("delete {}\nadd {}\n", put(pod), put(other)));
    assert!(!intact(&listing(), &now));
    net.apply(&full(&now).text);
    net.apply(&format!("flush chain {table} prerouting\nadd rule {table} prerouting accept\n"));
    assert!(!intact(&listing(), &now));
    net.apply(&full(&now).text);

    // One endpoint less: the table that was is turned into the table that is.
    let next = |now: &mut Ruleset, table: Ruleset| {
        net.apply(&diff(now, &table).text);
        assert!(intact(&listing(), &table), "{:?}", listing());
        *now = table;
    };
    let udp = net.within("client", || {
        let socket = UdpSocket::bind((net.address(CLIENT), 0)).unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        socket
    });
    let ask_udp = || -> std::io::Result<String> {
        udp.send_to(b"?", (net.address(VIP), 80))?;
        let mut buffer = [0; 64];
        let (length, _) = udp.recv_from(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).split(' ').next().unwrap().to_string())
    };
    let first = ask_udp().unwrap();
    assert_eq!(ask_udp().unwrap(), first, "one socket's packets are one connection");
    let (stays, other) = if first == "one" { (both[1], "two") } else { (both[0], "one") };
    next(&mut now, net.table(spec(json!({})), &[stays]));
    let near = if other == "one" { "10.8.1.1" } else { "10.8.2.1" };
    net.answers("client", VIP, 80, &[(other, near)]);
    // The kernel still sends this socket's packets where the endpoint was, until it is told to forget.
    assert_eq!(ask_udp().unwrap(), first);
    net.within("node", || {
        let mut netfilter = Netfilter::open().unwrap();
        let connections = netfilter.connections(family, Protocol::Udp).unwrap();
        let serving = |_: &str, front: &Front| now.behind(front).iter().flat_map(|b| b.cluster.to_vec()).collect();
        let stale = stale(&connections, &now, &net.view(), serving);
        assert_eq!(stale.len(), 1, "{connections:?}");
        netfilter.forget(stale[0]).unwrap();
        netfilter.forget(stale[0]).unwrap();
        let before = netfilter.generation().unwrap();
        assert_eq!(netfilter.generation().unwrap(), before);
    });
    assert_eq!(ask_udp().unwrap(), other);

    // Only this node's endpoints, and the client's own address.
    next(&mut now, net.table(spec(json!({"externalTrafficPolicy": "Local"})), &both));
    net.answers("client", NODE, 30080, &[("one", CLIENT)]);
    net.answers("one", NODE, 30080, &[("one", "10.8.1.1"), ("two", "10.8.1.2")]);
    next(&mut now, net.table(spec(json!({"externalTrafficPolicy": "Local"})), &[both[1]]));
    assert!(matches!(
        net.ask("client", NODE, 30080).unwrap_err().kind(),
        std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock
    ));
    net.answers("one", NODE, 30080, &[("two", "10.8.1.2")]);

    // A client stays with its endpoint.
    next(&mut now, net.table(spec(json!({"sessionAffinity": "ClientIP"})), &both));
    let chosen = net.ask("client", VIP, 80).unwrap();
    net.answers("client", VIP, 80, &[(&chosen.0, &chosen.1)]);
    net.answers("client", NODE, 30080, &[(&chosen.0, &chosen.1)]);
    // Its endpoint goes: it gets the other one.
    let (stays, other) =
        if chosen.0 == "one" { (both[1], ("two", "10.8.2.1")) } else { (both[0], ("one", "10.8.1.1")) };
    next(&mut now, net.table(spec(json!({"sessionAffinity": "ClientIP"})), &[stays]));
    net.answers("client", VIP, 80, &[other]);

    // Nobody there: refused at once.
    next(&mut now, net.table(spec(json!({})), &[]));
    for (from, to, port) in [("client", VIP, 80), ("one", VIP, 80), ("node", VIP, 80), ("client", NODE, 30080)] {
        assert_eq!(net.ask(from, to, port).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused, "{from} → {to}");
    }
    // A cluster IP that the node itself has is answered by who listens there.
    net.ip("node", &format!("addr add {VIP}/32 dev lo"));
    let own = net.within("node", || TcpListener::bind((net.address(VIP), 80)).unwrap());
    std::thread::spawn(move || {
        for mut stream in own.incoming().flatten() {
            let _ = write!(stream, "own {}", stream.peer_addr().unwrap().ip());
        }
    });
    net.answers("client", VIP, 80, &[("own", CLIENT)]);
    net.answers("one", VIP, 80, &[("own", "10.8.1.2")]);
    net.ip("node", &format!("addr del {VIP}/32 dev lo"));
    // Nothing of a Service is left behind.
    next(&mut now, Ruleset::new(family, &net.view(), &net.config()));
    assert!(!net.nft(&["list", "table", family.nft(), TABLE], "").contains("spread"));
    net.apply(&proxy::nft::removal(family).text);
    assert!(!net.nft(&["list", "ruleset"], "").contains(TABLE));

    // An external address, and load balancer sources: who is not among them waits in vain.
    let silent = |from: &str, to: &str, port: u16| {
        let error = net.ask_within(from, to, port, Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock), "{error}");
    };
    let balanced = |sources: &[&str]| {
        let mut service = net.service(spec(
            json!({"type": "LoadBalancer", "loadBalancerSourceRanges": sources, "externalIPs": ["198.51.100.7"]}),
        ));
        let status = net.document(json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.8", "ipMode": "VIP"}]}}));
        service.status = Some(serde_json::from_value(status).unwrap());
        program([&service], [&net.slice_of(&both)], family, &net.view(), &net.config())
    };
    net.apply(&full(&balanced(&["203.0.113.0/24", "10.9.0.0/30"])).text);
    for address in ["198.51.100.7", "198.51.100.8"] {
        net.answers("client", address, 80, &[("one", "10.8.1.1"), ("two", "10.8.2.1")]);
    }
    net.apply(&full(&balanced(&["203.0.113.0/24"])).text);
    net.answers("client", "198.51.100.7", 80, &[("one", "10.8.1.1"), ("two", "10.8.2.1")]);
    silent("client", "198.51.100.8", 80);

    // Inside, only this node's endpoints; none here is silence, since there are some elsewhere.
    net.apply(&full(&net.table(spec(json!({"internalTrafficPolicy": "Local"})), &both)).text);
    net.answers("two", VIP, 80, &[("one", "10.8.2.2")]);
    net.answers("client", NODE, 30080, &[("one", "10.8.1.1"), ("two", "10.8.2.1")]);
    net.apply(&full(&net.table(spec(json!({"internalTrafficPolicy": "Local"})), &both[1..])).text);
    silent("one", VIP, 80);

    // Who terminates and still serves gets traffic when nobody else is left.
    let endpoint = |address: &str, ready: bool| {
        json!({"addresses": [address], "nodeName": "node",
            "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
    };
    for (ready, expect) in [(true, &[("one", "10.8.1.1")][..]), (false, &[("one", "10.8.1.1"), ("two", "10.8.2.1")])] {
        let slice = net.slice(vec![endpoint("10.8.1.2", ready), endpoint("10.8.2.2", false)]);
        let service = net.service(spec(json!({})));
        net.apply(&full(&program([&service], [&slice], family, &net.view(), &net.config())).text);
        net.answers("client", VIP, 80, expect);
    }
}

/// Policies with real connections: both directions, by selector, by name of a port, by range, by address.
#[test]
fn policies_hold() {
    hold_policies(Family::V4);
}

#[test]
fn policies_hold_in_ipv6() {
    hold_policies(Family::V6);
}

fn hold_policies(family: Family) {
    use proxy::policies::Policies;
    use proxy::policy::{Pod, Policy};
    let Some(net) = Net::new(family) else { return };
    for place in ["one", "two", "client"] {
        net.serve(place, 80);
        net.serve(place, 81);
        net.serve(place, 8080);
    }
    let config = Config { network_policies: true, ..net.config() };
    let mut known = Policies::default();
    let pod = |name: &str, address: &str| -> Option<Pod> {
        let pod = json!({"metadata": {"name": name, "namespace": "ns", "labels": {"app": name}},
            "spec": {"nodeName": "node", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 80}]}]},
            "status": {"podIP": address}});
        Pod::read(&serde_json::from_value(net.document(pod)).unwrap(), "node")
    };
    known.set_namespace("ns", Some([("team".to_string(), "x".to_string())].into()));
    known.set_pod("ns/one", pod("one", "10.8.1.2"));
    known.set_pod("ns/two", pod("two", "10.8.2.2"));
    let mut table = net.table_with(spec(json!({})), &[("10.8.1.2", "node"), ("10.8.2.2", "node")], &config);
    net.apply(&full(&table).text);
    let mut netfilter = net.within("node", || Netfilter::open().unwrap());
    let mut set = |name: &str, spec: Option<Value>| {
        let policy = spec.map(|spec| {
            let object = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec});
            Policy::read(&serde_json::from_value(net.document(object)).unwrap())
        });
        known.set_policy(&format!("ns/{name}"), policy);
        let mut delta = proxy::program::Delta::default();
        for key in known.take_dirty() {
            table.update(key.as_str(), known.compile(&key, family), &mut delta);
        }
        // Elements alone by netlink, the rest by nft.
        match proxy::nft::element_changes(&delta, &table) {
            Some(elements) => {
                let all: Vec<_> = elements.into_iter().map(|change| (family, change)).collect();
                assert!(netfilter.change_elements(&all).unwrap());
            }
            None => net.apply(&proxy::nft::changes(&delta, &table).text),
        }
        let listing = net.listing();
        assert!(intact(&listing, &table), "{listing:?}");
    };
    let open = |from: &str, to: &str, port: u16, expect: bool| {
        let answer = net.ask_within(from, to, port, Duration::from_millis(300));
        assert_eq!(answer.is_ok(), expect, "{from} → {to}:{port}: {answer:?}");
    };
    let (one, two) = ("10.8.1.2", "10.8.2.2");
    open("two", one, 80, true);
    // Nobody, but for the node itself.
    set("none", Some(json!({"podSelector": {"matchLabels": {"app": "one"}}, "policyTypes": ["Ingress"]})));
    open("two", one, 80, false);
    open("client", one, 80, false);
    open("node", one, 80, true);
    open("one", two, 80, true);
    open("one", CLIENT, 80, true);
    // A pod reaches itself through its Service, though nobody else does: the other endpoint answers some of the time.
    for _ in 0..8 {
        net.ask_within("one", VIP, 80, Duration::from_millis(300)).unwrap();
    }
    // The port of a name, to who has the label.
    let from_two = json!([{"from": [{"podSelector": {"matchLabels": {"app": "two"}}}], "ports": [{"port": "web"}]}]);
    set("some", Some(json!({"podSelector": {"matchLabels": {"app": "one"}}, "ingress": from_two.clone()})));
    open("two", one, 80, true);
    open("two", one, 81, false);
    open("client", one, 80, false);
    // The same by the namespace's label, and by an address.
    let by_namespace = json!([{"from": [{"namespaceSelector": {"matchLabels": {"team": "y"}}}]},
        {"from": [{"ipBlock": {"cidr": "10.9.0.0/24"}}], "ports": [{"port": 81, "endPort": 90}]}]);
    set("some", Some(json!({"podSelector": {}, "ingress": by_namespace})));
    open("two", one, 80, false);
    open("client", one, 81, true);
    open("client", one, 80, false);
    set("none", None);
    set("some", None);
    // Out of a pod: only to that port; DNS of the node's own is never in the way.
    let egress = json!([{"to": [{"podSelector": {"matchLabels": {"app": "one"}}}], "ports": [{"port": 81}]}]);
    set(
        "out",
        Some(json!({"podSelector": {"matchLabels": {"app": "two"}}, "policyTypes": ["Egress"], "egress": egress})),
    );
    open("two", one, 81, true);
    open("two", one, 80, false);
    open("two", CLIENT, 80, false);
    open("one", two, 80, true);
    open("client", two, 80, true);
    let egress = json!([{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.8.1.0/24"]}}]}]);
    set(
        "out",
        Some(json!({"podSelector": {"matchLabels": {"app": "two"}}, "policyTypes": ["Egress"], "egress": egress})),
    );
    open("two", one, 81, false);
    open("two", CLIENT, 80, true);
    set("out", None);
    open("two", one, 81, true);
}

/// Changes of elements by netlink arrive where nft's would.
#[test]
fn elements_by_netlink_arrive() {
    elements_by_netlink(Family::V4);
}

#[test]
fn elements_by_netlink_arrive_in_ipv6() {
    elements_by_netlink(Family::V6);
}

fn elements_by_netlink(family: Family) {
    let Some(net) = Net::new(family) else { return };
    net.serve("one", 8080);
    net.serve("two", 8080);
    let both = [("10.8.1.2", "node"), ("10.8.2.2", "elsewhere")];
    let mut now = net.table(spec(json!({"externalIPs": ["198.51.100.7"]})), &both[..1]);
    net.apply(&full(&now).text);
    net.answers("client", VIP, 80, &[("one", "10.8.1.1")]);
    let mut netfilter = net.within("node", || Netfilter::open().unwrap());
    let service = net.service(spec(json!({"externalIPs": ["198.51.100.7"]})));
    for (list, who) in [(&both[1..], ("two", "10.8.2.1")), (&both[..1], ("one", "10.8.1.1"))] {
        let mut delta = proxy::program::Delta::default();
        let next = net.table(spec(json!({"externalIPs": ["198.51.100.7"]})), list);
        let slices = net.slice_of(list);
        let previous = now.fragment("ns/web").cloned();
        let mut world = proxy::world::World::new("node");
        world.set_service(&service);
        world.set_slice(&slices);
        let fragment = world.compile("ns/web", family, &net.view(), &net.config(), previous.as_deref());
        now.update("ns/web", fragment, &mut delta);
        let elements = proxy::nft::element_changes(&delta, &now).expect("elements only");
        assert!(!elements.is_empty());
        let all: Vec<_> = elements.into_iter().map(|change| (family, change)).collect();
        assert!(netfilter.change_elements(&all).unwrap());
        // Taking away what is not there is refused, and nothing of the batch happens.
        let nobody = translated(family, "192.0.2.99").parse().unwrap();
        let missing = proxy::elements::Change { element: proxy::map::Element::ClusterIp(nobody), value: None };
        let mut refused = vec![(family, missing)];
        refused.extend(all.iter().filter(|(_, change)| change.value.is_none()).cloned());
        assert!(netfilter.change_elements(&refused).is_err());
        let listing = net.listing();
        assert!(intact(&listing, &next), "{listing:?}");
        for to in [VIP, "198.51.100.7"] {
            net.answers("client", to, 80, &[who]);
        }
        net.answers("client", NODE, 30080, &[who]);
    }
}
