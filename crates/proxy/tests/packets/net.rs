//! The ground the tests are on: four namespaces, their servers and clients.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nix::sched::{CloneFlags, setns};
use proxy::{Config, Family, NodeView, Ruleset, TABLE, program};
use serde_json::{Value, json};

pub const VIP: &str = "10.7.0.10";
pub const NODE: &str = "10.9.0.1";
pub const CLIENT: &str = "10.9.0.2";
pub const WAIT: Duration = Duration::from_secs(2);

/// Four namespaces, taken down at the end.
pub struct Net {
    prefix: String,
    pub family: Family,
}

/// `fd00::` and the parts of the IPv4 address, each a group.
const SIX: &str = "fd00::";

pub fn translated(family: Family, text: &str) -> String {
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
    pub fn new(family: Family) -> Option<Net> {
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

    pub fn address(&self, text: &str) -> IpAddr {
        translated(self.family, text).parse().unwrap()
    }

    /// A range of addresses.
    pub fn net(&self, text: &str) -> ipnet::IpNet {
        translated(self.family, text).parse().unwrap()
    }

    /// A document with this family's addresses.
    pub fn document(&self, value: Value) -> Value {
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

    pub fn listing(&self) -> proxy::listing::Listing {
        serde_json::from_str(&self.nft(&["-j", "list", "table", self.family.nft(), TABLE], "")).unwrap()
    }

    pub fn table(&self, spec: Value, endpoints: &[(&str, &str)]) -> Ruleset {
        self.table_with(spec, endpoints, &self.config())
    }

    pub fn table_with(&self, spec: Value, endpoints: &[(&str, &str)], config: &Config) -> Ruleset {
        program([&self.service(spec)], [&self.slice_of(endpoints)], self.family, &self.view(), config)
    }

    pub fn service(&self, spec: Value) -> Service {
        let body = json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec});
        serde_json::from_value(self.document(body)).unwrap()
    }

    pub fn slice_of(&self, endpoints: &[(&str, &str)]) -> EndpointSlice {
        let list = endpoints.iter().map(|(address, node)| json!({"addresses": [address], "nodeName": node})).collect();
        self.slice(list)
    }

    pub fn slice(&self, endpoints: Vec<Value>) -> EndpointSlice {
        serde_json::from_value(self.document(json!({
            "metadata": {"name": "web-x", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "t", "port": 8080}, {"name": "u", "port": 8080, "protocol": "UDP"}]})))
        .unwrap()
    }

    pub fn view(&self) -> NodeView {
        NodeView::new(None, &self.config())
    }

    pub fn config(&self) -> Config {
        Config {
            node_addresses: vec![self.address(NODE)],
            cluster_cidrs: vec![self.net("10.8.0.0/16")],
            ..Config::new("node")
        }
    }

    pub fn name(&self, place: &str) -> String {
        format!("{}-{place}", self.prefix)
    }

    pub fn ip(&self, place: &str, arguments: &str) {
        let mut all = vec!["-n".to_string(), self.name(place)];
        all.extend(arguments.split(' ').map(|word| translated(self.family, word)));
        // Else it is tentative for a moment, also on `lo`, and nobody can listen on it.
        all.extend((self.family == Family::V6 && arguments.starts_with("addr add")).then(|| "nodad".to_string()));
        run("ip", &all.iter().map(String::as_str).collect::<Vec<_>>(), "");
    }

    pub fn nft(&self, arguments: &[&str], input: &str) -> String {
        let node = self.name("node");
        let mut all = vec!["netns", "exec", &node, "nft"];
        all.extend(arguments);
        run("ip", &all, input)
    }

    pub fn apply(&self, text: &str) {
        self.nft(&["-f", "-"], text);
    }

    pub fn within<T: Send>(&self, place: &str, work: impl FnOnce() -> T + Send) -> T {
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
    pub fn serve(&self, place: &'static str, port: u16) {
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
    pub fn ask(&self, from: &str, to: &str, port: u16) -> std::io::Result<(String, String)> {
        self.ask_within(from, to, port, WAIT)
    }

    pub fn ask_within(&self, from: &str, to: &str, port: u16, wait: Duration) -> std::io::Result<(String, String)> {
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
    pub fn answers(&self, from: &str, to: &str, port: u16, expect: &[(&str, &str)]) {
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

pub fn run(program: &str, arguments: &[&str], input: &str) -> String {
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

pub fn spec(extra: Value) -> Value {
    let mut spec = json!({"type": "NodePort", "clusterIP": VIP, "ports": [
        {"name": "t", "port": 80, "nodePort": 30080}, {"name": "u", "port": 80, "protocol": "UDP", "nodePort": 30080}]});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    spec
}
