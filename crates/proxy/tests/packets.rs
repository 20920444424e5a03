//! The program with real packets, in network namespaces of its own: a node, a client outside, two pods.
//!
//! Each test runs in IPv4 and in IPv6. Addresses are written as IPv4's everywhere; [`Net::address`] says what they are in
//! the other family.
//!
//! Needs root, `ip` and `nft`; without them it says so and passes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nix::sched::{CloneFlags, setns};
use proxy::conntrack::{Netfilter, stale};
use proxy::nft::{full, intact};
use proxy::{Config, Family, NodeView, Ruleset, TABLE, diff, program};
use serde_json::{Value, json};

const VIP: &str = "10.7.0.10";
const NODE: &str = "10.9.0.1";
const CLIENT: &str = "10.9.0.2";
const WAIT: Duration = Duration::from_secs(2);

/// Four namespaces, taken down at the end.
struct Net {
    prefix: String,
    family: Family,
}

/// `fd00::` and the parts of the IPv4 address, each a group.
const SIX: &str = "fd00::";

fn translated(family: Family, text: &str) -> String {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p.parse::<u8>().unwrap())));
    if family == Family::V4 || address.parse::<std::net::Ipv4Addr>().is_err() {
        return text.to_string();
    }
    let six = format!("{SIX}{}", address.replace('.', ":"));
    // Eight bits there are sixteen here.
    let bits = |prefix: u8| if prefix == 0 { 0 } else { 128 - (32 - prefix) / 8 * 16 - (32 - prefix) % 8 };
    prefix.map_or(six.clone(), |prefix| format!("{six}/{}", bits(prefix)))
}

impl Net {
    fn new(family: Family) -> Option<Net> {
        let has = |tool: &str| Command::new(tool).arg("-V").output().is_ok();
        if !nix::unistd::geteuid().is_root() || !has("ip") || !has("nft") {
            println!("skipped: needs root, ip and nft");
            return None;
        }
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let net = Net { prefix: format!("proxy-{}-{count}", std::process::id()), family };
        for place in ["node", "client", "one", "two"] {
            run("ip", &["netns", "add", &net.name(place)], "");
            // An address that is asked about for a second is none for a second.
            net.within(place, || std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap());
            net.ip(place, "link set lo up");
        }
        for (place, near, far) in
            [("client", NODE, CLIENT), ("one", "10.8.1.1", "10.8.1.2"), ("two", "10.8.2.1", "10.8.2.2")]
        {
            net.ip("node", &format!("link add {place} type veth peer name eth0 netns {}", net.name(place)));
            net.ip("node", &format!("addr add {near}/24 dev {place}"));
            net.ip("node", &format!("link set {place} up"));
            net.ip(place, &format!("addr add {far}/24 dev eth0"));
            net.ip(place, "link set eth0 up");
            net.ip(place, &format!("route add default via {near}"));
        }
        // The node itself needs some route for cluster IPs, as through its default route in a cluster.
        net.ip("node", "route add default via 10.9.0.2");
        net.within("node", || {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        });
        Some(net)
    }

    fn address(&self, text: &str) -> IpAddr {
        translated(self.family, text).parse().unwrap()
    }

    /// A document with this family's addresses.
    fn document(&self, value: Value) -> Value {
        match value {
            Value::String(text) => match text.as_str() {
                "IPv4" => self.family.address_type().into(),
                _ => translated(self.family, &text).into(),
            },
            Value::Array(list) => list.into_iter().map(|value| self.document(value)).collect(),
            Value::Object(map) => map.into_iter().map(|(key, value)| (key, self.document(value))).collect(),
            other => other,
        }
    }

    fn listing(&self) -> proxy::nft::Listing {
        serde_json::from_str(&self.nft(&["-j", "list", "table", self.family.nft(), TABLE], "")).unwrap()
    }

    fn table(&self, spec: Value, endpoints: &[(&str, &str)]) -> Ruleset {
        self.table_with(spec, endpoints, &self.config())
    }

    fn table_with(&self, spec: Value, endpoints: &[(&str, &str)], config: &Config) -> Ruleset {
        program([&self.service(spec)], [&self.slice_of(endpoints)], self.family, &self.view(), config)
    }

    fn service(&self, spec: Value) -> Service {
        let body = json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec});
        serde_json::from_value(self.document(body)).unwrap()
    }

    fn slice_of(&self, endpoints: &[(&str, &str)]) -> EndpointSlice {
        let list = endpoints.iter().map(|(address, node)| json!({"addresses": [address], "nodeName": node})).collect();
        self.slice(list)
    }

    fn slice(&self, endpoints: Vec<Value>) -> EndpointSlice {
        serde_json::from_value(self.document(json!({
            "metadata": {"name": "web-x", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "t", "port": 8080}, {"name": "u", "port": 8080, "protocol": "UDP"}]})))
        .unwrap()
    }

    fn view(&self) -> NodeView {
        NodeView::new(None, &self.config())
    }

    fn config(&self) -> Config {
        Config {
            node_addresses: vec![self.address(NODE)],
            cluster_cidrs: vec![translated(self.family, "10.8.0.0/16").parse().unwrap()],
            ..Config::new("node")
        }
    }

    fn name(&self, place: &str) -> String {
        format!("{}-{place}", self.prefix)
    }

    fn ip(&self, place: &str, arguments: &str) {
        let mut all = vec!["-n".to_string(), self.name(place)];
        all.extend(arguments.split(' ').map(|word| translated(self.family, word)));
        run("ip", &all.iter().map(String::as_str).collect::<Vec<_>>(), "");
    }

    fn nft(&self, arguments: &[&str], input: &str) -> String {
        let node = self.name("node");
        let mut all = vec!["netns", "exec", &node, "nft"];
        all.extend(arguments);
        run("ip", &all, input)
    }

    fn apply(&self, text: &str) {
        self.nft(&["-f", "-"], text);
    }

    fn within<T: Send>(&self, place: &str, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name(place));
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(std::fs::File::open(path).unwrap().as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// A pod that answers each connection with its name and whom it sees, by TCP and UDP.
    fn serve(&self, place: &'static str, port: u16) {
        let (tcp, udp) =
            self.within(place, || (TcpListener::bind(("::", port)).unwrap(), UdpSocket::bind(("::", port)).unwrap()));
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let peer = stream.peer_addr().unwrap().ip().to_canonical();
                let _ = write!(stream, "{place} {peer}");
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{place} {}", peer.ip().to_canonical()).as_bytes(), peer);
            }
        });
    }

    /// Who answers, and whom he sees.
    fn ask(&self, from: &str, to: &str, port: u16) -> std::io::Result<(String, String)> {
        self.ask_within(from, to, port, WAIT)
    }

    fn ask_within(&self, from: &str, to: &str, port: u16, wait: Duration) -> std::io::Result<(String, String)> {
        let to = SocketAddr::new(self.address(to), port);
        self.within(from, || {
            let mut stream = TcpStream::connect_timeout(&to, wait)?;
            stream.set_read_timeout(Some(wait))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            let (name, peer) = text.split_once(' ').unwrap();
            Ok((name.to_string(), peer.strip_prefix(SIX).map_or(peer.to_string(), |groups| groups.replace(':', "."))))
        })
    }

    /// As [`Net::ask`], until each of `expect` answered once and nobody else did.
    fn answers(&self, from: &str, to: &str, port: u16, expect: &[(&str, &str)]) {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..40 {
            seen.insert(self.ask(from, to, port).unwrap_or_else(|error| panic!("{from} → {to}:{port}: {error}")));
        }
        let expect = expect.iter().map(|(name, peer)| (name.to_string(), peer.to_string())).collect();
        assert_eq!(seen, expect, "{from} → {to}:{port}");
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for place in ["node", "client", "one", "two"] {
            let _ = Command::new("ip").args(["netns", "del", &self.name(place)]).status();
        }
    }
}

fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}\n{input}");
    String::from_utf8(output.stdout).unwrap()
}

fn spec(extra: Value) -> Value {
    let mut spec = json!({"type": "NodePort", "clusterIP": VIP, "ports": [
        {"name": "t", "port": 80, "nodePort": 30080}, {"name": "u", "port": 80, "protocol": "UDP", "nodePort": 30080}]});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    spec
}

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
        let connections = netfilter.connections(family).unwrap();
        let stale = stale(&connections, &now, &net.view());
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

/// 10,000 Services of 5 endpoints: how long the whole table takes, and one endpoint's change. A measurement: run it with
/// `cargo test -p proxy --release --test packets -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn ten_thousand_services() {
    let Some(net) = Net::new(Family::V4) else { return };
    let service = |n: u32| -> Service {
        let ip = std::net::Ipv4Addr::from(0x0a60_0000 + n);
        serde_json::from_value(json!({"metadata": {"name": format!("s{n}"), "namespace": "ns"},
            "spec": {"clusterIP": ip.to_string(), "ports": [{"port": 80}]}}))
        .unwrap()
    };
    let slice = |n: u32, first: u32| -> EndpointSlice {
        let endpoints: Vec<Value> = (first..first + 5)
            .map(|e| json!({"addresses": [std::net::Ipv4Addr::from(0x0a08_0000 + n * 5 + e).to_string()]}))
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": format!("s{n}-x"), "namespace": "ns", "labels": {"kubernetes.io/service-name": format!("s{n}")}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 8080}]}))
        .unwrap()
    };
    let services: Vec<Service> = (0..10_000).map(service).collect();
    let slices: Vec<EndpointSlice> = (0..10_000).map(|n| slice(n, 0)).collect();
    let began = std::time::Instant::now();
    let mut table = program(&services, &slices, Family::V4, &net.view(), &net.config());
    println!("compiled in {:?}", began.elapsed());
    let mut netfilter = net.within("node", || Netfilter::open().unwrap());
    assert!(!netfilter.has_table(Family::V4, TABLE).unwrap());
    let skeleton = proxy::nft::first(&table);
    let began = std::time::Instant::now();
    net.apply(&skeleton.text);
    println!("without elements applied in {:?}", began.elapsed());
    netfilter.fill(Family::V4, proxy::nft::direct(&table)).unwrap();
    println!("all applied in {:?}", began.elapsed());
    assert!(netfilter.has_table(Family::V4, TABLE).unwrap());
    let listing = net.listing();
    assert!(intact(&listing, &table));
    let text = full(&table).text;
    let began = std::time::Instant::now();
    net.apply(&text);
    println!("by nft, {} KiB, anew in {:?}", text.len() >> 10, began.elapsed());
    for round in 0..3 {
        let began = std::time::Instant::now();
        let mut delta = proxy::program::Delta::default();
        let previous = table.fragment("ns/s77").cloned();
        let mut world = proxy::world::World::new("node");
        world.set_service(&services[77]);
        world.set_slice(&slice(77, round + 1));
        let next = world.compile("ns/s77", Family::V4, &net.view(), &net.config(), previous.as_deref());
        table.update("ns/s77", next, &mut delta);
        let elements = proxy::nft::element_changes(&delta, &table).expect("elements only");
        let all: Vec<_> = elements.into_iter().map(|change| (Family::V4, change)).collect();
        let compiled = began.elapsed();
        assert!(netfilter.change_elements(&all).unwrap());
        println!("one endpoint changed: compiled in {compiled:?}, applied after {:?}", began.elapsed());
    }
}
