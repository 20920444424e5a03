//! The etcd API over the embedded store beside a real etcd, in one run, with the same clients on the same cores.
//!
//! `cargo bench -p benches --bench etcd_api [-- PART...]` with PART `puts` (64 writers of 1 KiB over one connection and over
//! eight, rounds alternating, medians printed, and the CPU time a put of server and clients; the default) or `perf` (etcd's own load tool, `etcdctl check perf`, a minute
//! for each load and store). Each server is a process of its own. etcd takes part where Debian's `etcd` is installed.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use store::etcd::{Etcd, Options, connect};
use store::{Backend, Op, Txn};
use tokio::runtime::Runtime;

const WRITERS: usize = 64;
const VALUE_BYTES: usize = 1024;
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(700);
/// Loads of `etcdctl check perf`: what clients it has, and how many puts a second they try.
const LOADS: [(&str, &str); 3] =
    [("m", "200 clients, 1000/s"), ("l", "500 clients, 8000/s"), ("xl", "1000 clients, 15000/s")];
/// The process that serves: the directory and the address.
const SERVE: &str = "ETCD_API_BENCH_SERVE";

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn main() {
    if let Ok(place) = std::env::var(SERVE) {
        return serve(&place);
    }
    let parts: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let dir = tempfile::tempdir_in(".").unwrap();
    let servers: Vec<Server> = [Server::ours(dir.path()), Server::etcd(dir.path())].into_iter().flatten().collect();
    if parts.is_empty() || parts.iter().any(|part| part == "puts") {
        puts(&servers);
    }
    if parts.iter().any(|part| part == "perf") {
        perf(&servers);
    }
}

fn serve(place: &str) {
    let (dir, address) = place.split_once(' ').unwrap();
    let store = Arc::new(store::embedded::open(dir, store::embedded::Options::default()).unwrap());
    runtime().block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        store::serve::serve(store, listener, Default::default(), std::future::pending()).await.unwrap();
    });
}

struct Server {
    name: &'static str,
    address: String,
    process: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

impl Server {
    fn ours(dir: &Path) -> Option<Self> {
        let address = free_address();
        let place = format!("{} {address}", dir.join("ours").display());
        let process = Command::new(std::env::current_exe().unwrap()).env(SERVE, place).spawn().unwrap();
        Some(Server { name: "embedded store", address, process })
    }

    fn etcd(dir: &Path) -> Option<Self> {
        let (address, peer) = (free_address(), format!("http://{}", free_address()));
        let url = format!("http://{address}");
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(dir.join("etcd"))
            .args(["--name", "bench", "--log-level", "error", "--quota-backend-bytes", "8589934592"])
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("bench={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .inspect_err(|e| println!("etcd takes no part: {e}"))
            .ok()?;
        Some(Server { name: "etcd", address, process })
    }

    fn connect(&self, runtime: &Runtime) -> Arc<Etcd> {
        let options = Options { endpoints: vec![format!("http://{}", self.address)], ..Options::default() };
        let started = Instant::now();
        loop {
            match runtime.block_on(connect(options.clone())) {
                Ok(store) => return Arc::new(store),
                Err(e) => assert!(started.elapsed() < Duration::from_secs(20), "{} does not come up: {e}", self.name),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// CPU time of a process's threads, those that have ended left out.
fn cpu(process: u32) -> Duration {
    let of = |task: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(std::fs::read_dir(format!("/proc/{process}/task")).unwrap().filter_map(of).sum())
}

/// What a round gave.
#[derive(Clone, Copy)]
struct Round {
    puts: f64,
    p99: Duration,
    /// CPU time a put, in microseconds: of the server, and of the clients.
    cpu: [f64; 2],
}

/// One round of all writers.
fn round(runtime: &Runtime, stores: &[Arc<Etcd>], server: u32) -> Round {
    let processes = [server, std::process::id()];
    let before = processes.map(cpu);
    let started = Instant::now();
    let mut times = runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let store = stores[writer % stores.len()].clone();
            tasks.spawn(async move {
                let mut times = Vec::new();
                while started.elapsed() < ROUND {
                    let key = format!("/registry/configmaps/default/{writer}-{:06}", times.len() % 1000);
                    let op = Op::Put { key: key.into(), value: vec![b'x'; VALUE_BYTES].into(), lease: None };
                    let asked = Instant::now();
                    store.txn(Txn { compares: vec![], ops: vec![op] }).await.unwrap();
                    times.push(asked.elapsed());
                }
                times
            });
        }
        tasks.join_all().await.concat()
    });
    let puts = times.len() as f64;
    let (elapsed, after) = (started.elapsed().as_secs_f64(), processes.map(cpu));
    times.sort();
    let cpu = [0, 1].map(|n| after[n].saturating_sub(before[n]).as_secs_f64() * 1e6 / puts);
    Round { puts: puts / elapsed, p99: times[times.len() * 99 / 100], cpu }
}

fn puts(servers: &[Server]) {
    let runtime = runtime();
    for connections in [1, 8] {
        let stores: Vec<Vec<Arc<Etcd>>> =
            servers.iter().map(|server| (0..connections).map(|_| server.connect(&runtime)).collect()).collect();
        let mut rates = vec![Vec::new(); servers.len()];
        for _ in 0..ROUNDS {
            for (server, (stores, rates)) in servers.iter().zip(stores.iter().zip(&mut rates)) {
                rates.push(round(&runtime, stores, server.process.id()));
            }
        }
        for (server, rates) in servers.iter().zip(&mut rates) {
            rates.sort_by(|a, b| a.puts.total_cmp(&b.puts));
            let Round { puts, p99, .. } = rates[rates.len() / 2];
            let mean = |n: usize| rates.iter().map(|round| round.cpu[n]).sum::<f64>() / rates.len() as f64;
            println!(
                "{:<15} {WRITERS} writers on {connections} connections: {puts:>7.0} puts a second, p99 {:>5.1} ms, CPU {:>4.0} us a put, the clients' {:>4.0}",
                server.name,
                p99.as_secs_f64() * 1e3,
                mean(0),
                mean(1)
            );
        }
    }
}

fn perf(servers: &[Server]) {
    for (load, what) in LOADS {
        for server in servers {
            let output = Command::new("etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", &server.address, "check", "perf", &format!("--load={load}")])
                .args(["--command-timeout", "120s"])
                .output();
            let Ok(output) = output else {
                println!("etcdctl is not installed");
                return;
            };
            println!("{:<15} etcdctl check perf, {what}:", server.name);
            for line in
                String::from_utf8_lossy(&output.stdout).lines().filter(|l| l.contains("PASS") || l.contains("FAIL"))
            {
                println!("    {}", line.rsplit('\r').next().unwrap_or(line).trim());
            }
        }
    }
}
