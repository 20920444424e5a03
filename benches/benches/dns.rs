//! The cluster's DNS server over real sockets of this host's loopback: answers a second, and the server's CPU for each.
//!
//! `cargo bench -p benches --bench dns [-- SECONDS]`. The server has a thread of its own and 10,000 Services; clients on
//! other threads keep a window of questions under way. What a core answers is one second over the CPU of one answer: the
//! system's part of receiving and sending is in it.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use client::{Client, Transport};
use futures::StreamExt;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use meta::{List, Object, Reply, Request, Status, Verb};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const SERVICES: u32 = 10_000;
const CLIENTS: usize = 2;
/// Questions one client has under way: enough that the server never waits for one.
const WINDOW: u64 = 32;
const LOST_AFTER: Duration = Duration::from_millis(200);

/// An API that has so many Services, and never changes.
struct Api;

#[async_trait]
impl Transport for Api {
    async fn call(&self, request: Request) -> Result<Reply, Status> {
        if request.options.send_initial_events == Some(true) {
            return Err(Status::new(meta::Reason::Invalid, "sendInitialEvents is forbidden for watch"));
        }
        if request.verb != Verb::List {
            return Ok(Reply::Watch(futures::stream::pending().boxed()));
        }
        let items = match &*request.resource.resource {
            "services" => (0..SERVICES).map(service).collect(),
            "namespaces" => vec![object(json!({"apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": "ns", "uid": "ns", "resourceVersion": "1"}}))],
            _ => Vec::new(),
        };
        Ok(Reply::List(List { resource_version: 1, items, ..List::default() }))
    }

    async fn get_path(&self, _: &str) -> Result<Bytes, Status> {
        Err(Status::internal("not asked here"))
    }
}

fn object(body: serde_json::Value) -> Arc<Object> {
    Arc::new(Object::from_value(&body).unwrap())
}

fn service(n: u32) -> Arc<Object> {
    object(json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("s{n}"), "namespace": "ns", "uid": n.to_string(), "resourceVersion": "1"},
        "spec": {"clusterIP": Ipv4Addr::from(0x0a60_0000 + n).to_string(), "ports": [{"name": "http", "port": 80}]}}))
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message.to_vec().unwrap()
}

/// Nanoseconds of CPU a thread of this process has had.
fn cpu(thread: nix::unistd::Pid) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

fn main() {
    let seconds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(3);
    let probe = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let server = probe.local_addr().unwrap();
    drop(probe);
    let cancel = CancellationToken::new();
    let (told, thread) = std::sync::mpsc::channel();
    let token = cancel.clone();
    let running = std::thread::spawn(move || {
        told.send(nix::unistd::gettid()).unwrap();
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let config = dns::Config { listen: vec![server], ..dns::Config::default() };
        tokio.block_on(dns::run(config, Client::new(Api), token)).unwrap();
    });
    let thread = thread.recv().unwrap();
    until_it_answers(server);
    println!("{SERVICES} Services, {CLIENTS} clients with {WINDOW} questions each under way, {seconds} s each");
    for (what, name, kind) in [
        ("A of a Service", "s77.ns.svc.cluster.local.", RecordType::A),
        ("AAAA that is not there", "s77.ns.svc.cluster.local.", RecordType::AAAA),
        ("SRV of a port", "_http._tcp.s77.ns.svc.cluster.local.", RecordType::SRV),
        ("no such name", "s77.ns.svc.cluster.local.ns.svc.cluster.local.", RecordType::A),
        ("PTR", "77.0.96.10.in-addr.arpa.", RecordType::PTR),
    ] {
        let (before, began) = (cpu(thread), Instant::now());
        let answers = load(server, &question(name, kind), Duration::from_secs(seconds));
        let each = (cpu(thread) - before) as f64 / answers as f64;
        let rate = answers as f64 / began.elapsed().as_secs_f64();
        println!(
            "{what:24} {rate:>9.0} a second, {:.2} us of CPU each: {:.0} a second and core",
            each / 1e3,
            1e9 / each
        );
    }
    cancel.cancel();
    running.join().unwrap();
}

fn until_it_answers(server: SocketAddr) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(LOST_AFTER)).unwrap();
    let packet = question("s77.ns.svc.cluster.local.", RecordType::A);
    let mut buffer = [0; 1500];
    for _ in 0..300 {
        socket.send_to(&packet, server).unwrap();
        if let Ok(length) = socket.recv(&mut buffer)
            && Message::from_vec(&buffer[..length]).unwrap().metadata.response_code == ResponseCode::NoError
        {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the server does not answer");
}

/// Answers that came in that time.
fn load(server: SocketAddr, packet: &[u8], time: Duration) -> u64 {
    let (stop, total) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                socket.connect(server).unwrap();
                socket.set_read_timeout(Some(LOST_AFTER)).unwrap();
                let mut buffer = [0; 1500];
                let (mut under_way, mut answers) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    while under_way < WINDOW {
                        socket.send(packet).unwrap();
                        under_way += 1;
                    }
                    match socket.recv(&mut buffer) {
                        Ok(_) => (under_way, answers) = (under_way - 1, answers + 1),
                        // Lost, all of them: asked anew.
                        Err(_) => under_way = 0,
                    }
                }
                total.fetch_add(answers, Ordering::Relaxed);
            });
        }
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
    });
    total.into_inner()
}
