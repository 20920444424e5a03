//! The server over real sockets of this host's loopback, against an API that has fixed objects, and another DNS server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use client::{Client, Transport};
use futures::StreamExt;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use meta::{EventKind, List, Object, Reply, Request, Status, Verb, WatchEvent};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const WAIT: Duration = Duration::from_secs(10);

/// Two Services in the first list, another one in the watch once it is let through, and endpoints of the one that is
/// headless; and a ConfigMap for the server.
struct Api {
    second: watch::Receiver<bool>,
    stub_domains: String,
}

fn service(name: &str, ip: &str, version: u32) -> Arc<Object> {
    let body = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": version.to_string()},
        "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
    Arc::new(Object::from_value(&body).unwrap())
}

fn slice() -> Arc<Object> {
    let body = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "none-x", "namespace": "ns", "uid": "x", "resourceVersion": "2",
            "labels": {"kubernetes.io/service-name": "none"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-02T03:04:05Z"}},
        "addressType": "IPv4", "endpoints": [{"addresses": ["10.244.0.9"]}]});
    Arc::new(Object::from_value(&body).unwrap())
}

#[async_trait]
impl Transport for Api {
    async fn call(&self, request: Request) -> Result<Reply, Status> {
        let news = match &*request.resource.resource {
            "services" => Some(service("two", "10.96.0.2", 2)),
            "endpointslices" => Some(slice()),
            _ => None,
        };
        if request.verb == Verb::List {
            let items = match &*request.resource.resource {
                "services" => vec![service("one", "10.96.0.1", 1), service("none", "None", 1)],
                "configmaps" => {
                    assert_eq!(request.options.field_selector.as_deref(), Some("metadata.name=kube-dns"));
                    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"stubDomains": self.stub_domains},
                        "metadata": {"name": "kube-dns", "namespace": "kube-system", "uid": "m", "resourceVersion": "1"}});
                    vec![Arc::new(Object::from_value(&body).unwrap())]
                }
                _ => Vec::new(),
            };
            return Ok(Reply::List(List { resource_version: 1, items, ..List::default() }));
        }
        if request.options.send_initial_events == Some(true) {
            return Err(Status::new(meta::Reason::Invalid, "sendInitialEvents is forbidden for watch"));
        }
        let mut second = self.second.clone();
        let events = futures::stream::once(async move {
            match news {
                Some(object) if second.wait_for(|let_through| *let_through).await.is_ok() => {
                    vec![WatchEvent::Object { kind: EventKind::Added, object }]
                }
                _ => std::future::pending().await,
            }
        });
        Ok(Reply::Watch(events.chain(futures::stream::pending()).boxed()))
    }

    async fn get_path(&self, _: &str) -> Result<Bytes, Status> {
        Err(Status::internal("not asked here"))
    }
}

fn question(name: &str) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message
}

async fn over_udp(server: SocketAddr, name: &str) -> Message {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(server).await.unwrap();
    let mut buffer = [0; 4096];
    tokio::time::timeout(WAIT, async {
        socket.send(&question(name).to_vec().unwrap()).await.unwrap();
        let length = socket.recv(&mut buffer).await.unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    })
    .await
    .expect(name)
}

async fn over_tcp(server: SocketAddr, names: &[&str]) -> Vec<Message> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let mut out = Vec::new();
    for name in names {
        let packet = question(name).to_vec().unwrap();
        stream.write_u16(packet.len() as u16).await.unwrap();
        stream.write_all(&packet).await.unwrap();
        let mut buffer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut buffer).await.unwrap();
        out.push(Message::from_vec(&buffer).unwrap());
    }
    out
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

/// Says that it failed, whatever it is asked.
async fn useless_server() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let request = Message::from_vec(&buffer[..length]).unwrap();
            let mut reply = Message::new(request.metadata.id, MessageType::Response, OpCode::Query);
            reply.queries = request.queries.clone();
            reply.metadata.response_code = ResponseCode::ServFail;
            socket.send_to(&reply.to_vec().unwrap(), peer).await.unwrap();
        }
    });
    address
}

/// Knows one name, by UDP only.
async fn other_server(known: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let request = Message::from_vec(&buffer[..length]).unwrap();
            let mut reply = Message::new(request.metadata.id, MessageType::Response, OpCode::Query);
            reply.queries = request.queries.clone();
            let name = request.queries[0].name.clone();
            if name.to_string() == known {
                reply.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::new(192, 0, 2, 7)))));
            } else {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            // A liar first: another question's answer must not be taken for this one's.
            let mut lie = reply.clone();
            lie.metadata.id = request.metadata.id.wrapping_add(1);
            lie.metadata.response_code = ResponseCode::Refused;
            socket.send_to(&lie.to_vec().unwrap(), peer).await.unwrap();
            socket.send_to(&reply.to_vec().unwrap(), peer).await.unwrap();
        }
    });
    address
}

async fn page(at: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(at).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await?;
    let mut out = String::new();
    stream.read_to_string(&mut out).await?;
    Ok(out)
}

/// Each family has its type before its first value.
fn page_is_fine(page: &str) -> bool {
    let body = page.split("\r\n\r\n").nth(1).unwrap_or_default();
    let mut family = "";
    body.lines().all(|line| match line.strip_prefix("# TYPE ") {
        Some(rest) => {
            family = rest.split(' ').next().unwrap_or_default();
            true
        }
        None => line.starts_with("# HELP ") || line.starts_with(family),
    })
}

#[tokio::test]
async fn it_serves() {
    // A port free for UDP a moment ago; TCP ports of that number are hardly ever taken.
    let probe = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let server = probe.local_addr().unwrap();
    drop(probe);
    let (let_through, second) = watch::channel(false);
    let cancel = CancellationToken::new();
    // Of three servers two are of no use: one is not there, one knows nothing.
    let gone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let upstreams = vec![gone, useless_server().await, other_server("example.com.").await];
    let config = dns::Config {
        listen: vec![server],
        upstreams,
        config_map: Some(("kube-system".into(), "kube-dns".into())),
        metrics: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, server.port().wrapping_add(1).max(1024)))],
        ..dns::Config::default()
    };
    let shown = config.metrics[0];
    let stub_domains = json!({"stub.example": [other_server("host.stub.example.").await.to_string()]}).to_string();
    let running = tokio::spawn(dns::run(config, Client::new(Api { second, stub_domains }), cancel.clone()));

    // Until the first lists are in the answer is "try again"; a connection tells that the sockets are there.
    let ready = async {
        while TcpStream::connect(server).await.is_err() {
            tokio::task::yield_now().await;
        }
        while over_udp(server, "one.ns.svc.cluster.local.").await.metadata.response_code == ResponseCode::ServFail {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT, ready).await.expect("it starts");

    let one = over_udp(server, "one.ns.svc.cluster.local.").await;
    assert_eq!(addresses(&one), [IpAddr::from([10, 96, 0, 1])]);
    assert!(one.metadata.recursion_available && one.metadata.authoritative);
    let both = over_tcp(server, &["one.ns.svc.cluster.local.", "two.ns.svc.cluster.local."]).await;
    assert_eq!(addresses(&both[0]), [IpAddr::from([10, 96, 0, 1])]);
    assert_eq!(both[1].metadata.response_code, ResponseCode::NXDomain);

    let foreign = over_udp(server, "example.com.").await;
    assert_eq!(addresses(&foreign), [IpAddr::from([192, 0, 2, 7])]);
    assert!(!foreign.metadata.authoritative);
    assert_eq!(over_tcp(server, &["example.org."]).await[0].metadata.response_code, ResponseCode::NXDomain);

    let by_stub = async {
        while addresses(&over_udp(server, "host.stub.example.").await).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT, by_stub).await.expect("the ConfigMap's server is asked");
    // Where somebody else has that port there is nothing to see.
    if let Ok(page) = page(shown, "/metrics").await {
        for line in [
            "coredns_dns_requests_total{family=\"1\",proto=\"tcp\",server=\"dns://:53\",view=\"\",zone=\".\",type=\"A\"} 3",
            "coredns_dns_responses_total{plugin=\"kubernetes\",rcode=\"NXDOMAIN\",server=\"dns://:53\",view=\"\",zone=\".\"} 1",
            "coredns_cache_hits_total{type=\"success\",",
            "coredns_cache_evictions_total{type=\"denial\",",
            "coredns_plugin_enabled{name=\"kubernetes\",server=\"dns://:53\",view=\"\",zone=\".\"} 1",
            "coredns_dns_do_requests_total{server=\"dns://:53\",view=\"\",zone=\".\"} 0",
            "coredns_kubernetes_dns_programming_duration_seconds_count{service_kind=\"headless_with_selector\"} 0",
            "process_resident_memory_bytes ",
            "coredns_proxy_request_duration_seconds_count{proxy_name=\"forward\",rcode=\"NOERROR\",to=\"127.0.0.1:",
        ] {
            assert!(page.contains(line), "{line}\n{page}");
        }
        assert!(page_is_fine(&page), "{page}");
    }

    let_through.send(true).unwrap();
    let told = async {
        for name in ["two", "none"] {
            while addresses(&over_udp(server, &format!("{name}.ns.svc.cluster.local.")).await).is_empty() {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(WAIT, told).await.expect("a change is told");
    let line = "coredns_kubernetes_dns_programming_duration_seconds_count{service_kind=\"headless_with_selector\"} 1";
    let counted = async {
        while page(shown, "/metrics").await.is_ok_and(|page| !page.contains(line)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT, counted).await.expect("and how long it took");

    cancel.cancel();
    tokio::time::timeout(WAIT, running).await.expect("it stops").unwrap().unwrap();
}

/// Each question comes from a port of its own; the kernel's table of connections has none of them, if it is told so.
#[test]
fn questions_are_not_remembered() {
    let has = |tool: &str| std::process::Command::new(tool).arg("-V").output().is_ok();
    if !nix::unistd::geteuid().is_root() || !has("ip") || !has("nft") {
        println!("skipped: needs root, ip and nft");
        return;
    }
    // A thread with a network of its own, which goes with it.
    let run = |program: &str, arguments: &[&str]| {
        let done = std::process::Command::new(program).args(arguments).status().unwrap();
        assert!(done.success(), "{program} {arguments:?}");
    };
    let asked = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        run("ip", &["link", "set", "lo", "up"]);
        // The kernel remembers connections where somebody asks for their state.
        run("nft", &["table inet t { chain c { type filter hook input priority 0 ; ct state new counter ; } ; }"]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        [false, true].map(|untracked| {
            let server = SocketAddr::new(if untracked { "fd00::53" } else { "192.0.2.53" }.parse().unwrap(), 53);
            let config = dns::Config { listen: vec![server], untracked, ..dns::Config::default() };
            let (_let_through, second) = watch::channel(false);
            let client = Client::new(Api { second, stub_domains: "{}".into() });
            let cancel = CancellationToken::new();
            runtime.block_on(async {
                let running = tokio::spawn(dns::run(config, client, cancel.clone()));
                for _ in 0..50 {
                    let socket = loop {
                        // The server brings its address with it.
                        if let Ok(socket) = UdpSocket::bind((server.ip(), 0)).await {
                            break socket;
                        }
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    };
                    socket.connect(server).await.unwrap();
                    let question = question("one.ns.svc.cluster.local.").to_vec().unwrap();
                    let mut buffer = [0; 512];
                    loop {
                        // Refused until the server listens.
                        let _ = socket.send(&question).await;
                        if let Ok(Ok(_)) = tokio::time::timeout(WAIT, socket.recv(&mut buffer)).await {
                            break;
                        }
                    }
                }
                let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
                cancel.cancel();
                running.await.unwrap().unwrap();
                count.trim().parse::<u32>().unwrap()
            })
        })
    });
    let [remembered, more] = asked.join().unwrap();
    assert!(remembered >= 50, "{remembered}");
    assert!(more <= remembered, "{more} after {remembered}");
}
