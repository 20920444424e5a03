//! What more Services cost: the whole table, one endpoint's change, a new connection. A measurement: run it with
//! `cargo test -p proxy --release --test packets growth -- --ignored --nocapture`.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proxy::conntrack::Netfilter;
use proxy::listing::intact;
use proxy::nft::{direct, element_changes, first};
use proxy::program::Delta;
use proxy::world::World;
use proxy::{Family, Ruleset, TABLE};
use serde_json::{Value, json};

use crate::net::Net;

const ENDPOINTS: u32 = 5;
const CHANGES: u32 = 50;
const CONNECTIONS: usize = 2_000;
/// The Service connections go through.
const ASKED: u32 = 7;

fn address(base: u32, n: u32) -> String {
    Ipv4Addr::from(base + n).to_string()
}

fn service(n: u32) -> Service {
    serde_json::from_value(json!({"metadata": {"name": format!("s{n}"), "namespace": "ns"},
        "spec": {"clusterIP": address(0x0a60_0000, n), "ports": [{"port": 80}]}}))
    .unwrap()
}

fn slice(n: u32, first: u32) -> EndpointSlice {
    let mut endpoints: Vec<Value> =
        (first..first + ENDPOINTS).map(|e| json!({"addresses": [address(0x0a08_8000, n * ENDPOINTS + e)]})).collect();
    if n == ASKED {
        endpoints = vec![json!({"addresses": ["10.8.1.2"]})];
    }
    serde_json::from_value(json!({
        "metadata": {"name": format!("s{n}-x"), "namespace": "ns", "labels": {"kubernetes.io/service-name": format!("s{n}")}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 8080}]}))
    .unwrap()
}

/// What this thread has had of a processor.
fn cpu() -> Duration {
    let said = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(said.split(' ').next().unwrap().parse().unwrap())
}

#[test]
#[ignore = "a measurement"]
fn growth() {
    for size in [10, 1_000, 10_000] {
        let Some(net) = Net::new(Family::V4) else { return };
        net.serve("one", 8080);
        let mut netfilter = net.within("node", || Netfilter::open().unwrap());
        assert!(!netfilter.has_table(Family::V4, TABLE).unwrap());

        let mut world = World::new("node");
        let mut table = Ruleset::new(Family::V4, &net.view(), &net.config());
        (0..size).for_each(|n| {
            world.set_service(&service(n));
            world.set_slice(&slice(n, 0));
        });
        let (began, used) = (Instant::now(), cpu());
        for key in world.keys() {
            let fragment = world.compile(key, Family::V4, &net.view(), &net.config(), None);
            table.update(key.clone(), fragment, &mut Delta::default());
        }
        net.apply(&first(&table).text);
        netfilter.fill(Family::V4, direct(&table)).unwrap();
        println!("{size} Services × {ENDPOINTS}: all in {:?}, {:?} of CPU", began.elapsed(), cpu() - used);
        assert!(intact(&net.listing(), &table));

        let (began, used) = (Instant::now(), cpu());
        for round in 1..=CHANGES {
            let n = round % 5;
            let key = format!("ns/s{n}");
            let mut delta = Delta::default();
            let previous = table.fragment(&key).cloned();
            world.set_slice(&slice(n, round));
            let next = world.compile(&key, Family::V4, &net.view(), &net.config(), previous.as_deref());
            table.update(key.as_str(), next, &mut delta);
            let elements = element_changes(&delta, &table).expect("elements only");
            let all: Vec<_> = elements.into_iter().map(|change| (Family::V4, change)).collect();
            assert!(netfilter.change_elements(&all).unwrap());
        }
        println!("  a change: {:?}, {:?} of CPU", began.elapsed() / CHANGES, (cpu() - used) / CHANGES);

        let to: SocketAddr = format!("{}:80", address(0x0a60_0000, ASKED)).parse().unwrap();
        let mut took = net.within("client", || {
            let connect = |_| {
                let began = Instant::now();
                TcpStream::connect(to).unwrap();
                began.elapsed()
            };
            (0..CONNECTIONS).map(connect).collect::<Vec<_>>()
        });
        took.sort();
        println!("  a connection: median {:?}, 90% {:?}", took[CONNECTIONS / 2], took[CONNECTIONS * 9 / 10]);
    }
}
