//! The store beside its floor and its peer, in one run: raw append with fdatasync into a preallocated file, and a real etcd.
//!
//! `cargo bench -p benches --bench store_ratios [-- PART...]` with PART one of `puts`, `watch`, `growth`, `memory`; all of
//! them by default. Rounds of the rivals alternate, so that a disk that changes its mind changes it for all; medians are
//! printed. etcd takes part where Debian's `etcd` is installed. Growth is measured in a process of its own for each size.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use store::embedded::{self, Embedded, Options};
use store::{Backend, Op, Txn, TxnOutcome, WatchItem};
use tokio::runtime::Runtime;

const VALUE_BYTES: usize = 1024;
/// Rounds of each rival.
const ROUNDS: usize = 25;
/// The length of one round.
const ROUND: Duration = Duration::from_millis(200);
/// The process that measures one size of store, and where it finds it if it is loaded already.
const GROWTH_KEYS: &str = "STORE_BENCH_GROWTH_KEYS";
const GROWTH_DIR: &str = "STORE_BENCH_GROWTH_DIR";

fn main() {
    if let Ok(keys) = std::env::var(GROWTH_KEYS) {
        return growth_of(keys.parse().unwrap());
    }
    let parts: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    if wanted("puts") {
        puts();
    }
    if wanted("watch") {
        watch();
    }
    if wanted("growth") {
        growth();
    }
    if wanted("memory") {
        memory();
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn put(key: String, bytes: usize) -> Txn {
    let value = vec![b'x'; bytes].into();
    Txn { compares: vec![], ops: vec![Op::Put { key: key.into(), value, lease: None }] }
}

/// Bytes this process has caused to be written to disk.
fn written() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    text.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.trim().parse().ok()).unwrap()
}

/// CPU time of this process's threads, those that have ended left out.
fn cpu() -> Duration {
    let of = |task: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(std::fs::read_dir("/proc/self/task").unwrap().filter_map(of).sum())
}

/// Resident memory in MiB, after giving back what the allocator holds.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096.0 / f64::from(1 << 20)
}

/// One round's outcome: durable puts a second, bytes written per byte stored, and CPU time a put.
#[derive(Clone, Copy)]
struct Rate {
    puts: f64,
    written: f64,
    cpu: Duration,
}

/// Median and ninth decile of the puts, means of the others.
fn summary(mut rates: Vec<Rate>) -> ([f64; 2], f64, f64) {
    rates.sort_by(|a, b| a.puts.total_cmp(&b.puts));
    let puts = [rates[rates.len() / 2].puts, rates[rates.len() * 9 / 10].puts];
    let all = rates.iter().map(|rate| rate.puts).sum::<f64>();
    let mean = |of: fn(&Rate) -> f64| rates.iter().map(|rate| of(rate) * rate.puts).sum::<f64>() / all;
    (puts, mean(|rate| rate.written), mean(|rate| rate.cpu.as_secs_f64() * 1e6))
}

/// What a round starts from.
struct Start {
    at: Instant,
    written: u64,
    cpu: Duration,
}

impl Start {
    fn now() -> Self {
        Start { at: Instant::now(), written: written(), cpu: cpu() }
    }

    fn rate(&self, puts: usize) -> Rate {
        let (time, cpu) = (self.at.elapsed(), cpu().saturating_sub(self.cpu));
        let bytes = (puts * VALUE_BYTES) as f64;
        Rate {
            puts: puts as f64 / time.as_secs_f64(),
            written: (written() - self.written) as f64 / bytes,
            cpu: cpu / puts.max(1) as u32,
        }
    }
}

/// The floor: records of `batch` values appended to a file of zeros, a sync each.
fn raw(file: &File, length: u64, batch: usize) -> Rate {
    let record = vec![b'x'; batch * VALUE_BYTES];
    let start = Start::now();
    let (mut at, mut puts) = (0, 0);
    while start.at.elapsed() < ROUND {
        if at + record.len() as u64 > length {
            at = 0;
        }
        file.write_all_at(&record, at).unwrap();
        file.sync_data().unwrap();
        at += record.len() as u64;
        puts += batch;
    }
    start.rate(puts)
}

/// So many writers, each waiting for its own put before the next.
fn writers(runtime: &Runtime, store: &Arc<dyn Backend>, writers: usize, round: usize) -> Rate {
    let start = Start::now();
    let started = start.at;
    let puts = runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..writers {
            let store = store.clone();
            tasks.spawn(async move {
                let mut n = 0;
                while started.elapsed() < ROUND {
                    let key = format!("/registry/configmaps/default/{round}-{writer}-{:06}", n % 1000);
                    store.txn(put(key, VALUE_BYTES)).await.unwrap();
                    n += 1;
                }
                n
            });
        }
        tasks.join_all().await.into_iter().sum()
    });
    start.rate(puts)
}

/// A lone etcd on loopback; killed when dropped.
struct Etcd(Child);

impl Drop for Etcd {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn etcd(runtime: &Runtime, dir: &Path) -> Option<(Etcd, Arc<dyn Backend>)> {
    let port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (client, peer) = (format!("http://127.0.0.1:{}", port()), format!("http://127.0.0.1:{}", port()));
    let child = Command::new("etcd")
        .arg("--data-dir")
        .arg(dir.join("etcd"))
        .args(["--name", "bench", "--log-level", "error", "--listen-client-urls", &client])
        .args(["--advertise-client-urls", &client, "--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("bench={peer}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .inspect_err(|e| println!("etcd takes no part: {e}"))
        .ok()?;
    let guard = Etcd(child);
    let options = store::etcd::Options { endpoints: vec![client], ..Default::default() };
    let started = Instant::now();
    loop {
        match runtime.block_on(store::etcd::connect(options.clone())) {
            Ok(store) => return Some((guard, Arc::new(store))),
            Err(e) => assert!(started.elapsed() < Duration::from_secs(20), "etcd does not come up: {e}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn puts() {
    let dir = tempfile::tempdir_in(std::env::var("STORE_BENCH_DIR").unwrap_or(".".into())).unwrap();
    let runtime = runtime();
    let length = 64 << 20;
    let path = dir.path().join("raw");
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(path).unwrap();
    // By the page: the kernel writes whole what was written in one piece, however little of it changes later.
    (0..length / 4096).for_each(|page| file.write_all_at(&[0; 4096], page * 4096).unwrap());
    file.sync_all().unwrap();
    let store: Arc<dyn Backend> = Arc::new(embedded::open(dir.path().join("store"), Options::default()).unwrap());
    let mut rates: Vec<(String, Vec<Rate>)> = Vec::new();
    let mut note = |name: String, rate| match rates.iter_mut().find(|(known, _)| *known == name) {
        Some((_, list)) => list.push(rate),
        None => rates.push((name, vec![rate])),
    };
    // Whoever comes after a rival meets the disk as that one left it: they take turns at being first.
    for (batch, many) in [(1, 1), (32, 64)] {
        for round in 0..ROUNDS {
            for turn in [round % 2, 1 - round % 2] {
                match turn {
                    0 => note(format!("raw, batch {batch}"), raw(&file, length, batch)),
                    _ => note(format!("embedded, {many} at once"), writers(&runtime, &store, many, round)),
                }
            }
        }
    }
    if let Some((_server, etcd)) = etcd(&runtime, dir.path()) {
        for many in [1, 64] {
            (0..ROUNDS).for_each(|n| note(format!("etcd, {many} at once"), writers(&runtime, &etcd, many, n)));
        }
    }
    println!(
        "durable puts of {VALUE_BYTES} bytes         median/s  of raw      d9/s  of raw   of this process: bytes written per byte, CPU us a put"
    );
    let mut floor = [[0.0; 2]; 2];
    for (name, list) in rates {
        let (puts, written, cpu) = summary(list);
        let many = usize::from(name.contains("32") || name.contains("64"));
        if name.starts_with("raw") {
            floor[many] = puts;
        }
        let part = |n: usize| 100.0 * puts[n] / floor[many][n];
        println!(
            "{name:32} {:8.0} {:6.1}%  {:8.0} {:6.1}%   {written:.2}  {cpu:.1}",
            puts[0],
            part(0),
            puts[1],
            part(1)
        );
    }
}

/// How long after the commit's acknowledgement each of many watchers has the change.
fn watch() {
    const WATCHERS: usize = 1000;
    const PUTS: usize = 200;
    let dir = tempfile::tempdir_in(".").unwrap();
    let runtime = runtime();
    let store = Arc::new(embedded::open(dir.path(), Options::default()).unwrap());
    for (what, prefix) in [("all see every change", "/w/"), ("only one in ten sees each", "")] {
        let after = runtime.block_on(store.current_revision()).unwrap();
        let watchers: Vec<_> = (0..WATCHERS)
            .map(|n| {
                let store = store.clone();
                let prefix = if prefix.is_empty() { format!("/w/{}/", n % 10) } else { prefix.to_owned() };
                runtime.spawn(async move {
                    let mut stream = store.watch(&prefix, after).await.unwrap();
                    let mut seen = Vec::with_capacity(PUTS);
                    let last = after + PUTS as u64;
                    loop {
                        match stream.next().await.unwrap().unwrap() {
                            WatchItem::Changes(changes) => {
                                let now = Instant::now();
                                seen.extend(changes.iter().map(|change| (change.revision, now)));
                                if seen.last().is_some_and(|(revision, _)| *revision >= last) {
                                    return seen;
                                }
                            }
                            WatchItem::Progress(revision) if revision >= last => return seen,
                            WatchItem::Progress(_) => {}
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        // From a thread of its own, so that the writer does not wait in the watchers' queue.
        let mut committed = Vec::with_capacity(PUTS);
        for n in 0..PUTS {
            let outcome = futures::executor::block_on(store.txn(put(format!("/w/{}/k", n % 10), VALUE_BYTES))).unwrap();
            let TxnOutcome::Committed { revision } = outcome else { panic!("{outcome:?}") };
            committed.push((revision, Instant::now()));
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut delays: Vec<Duration> = Vec::new();
        for watcher in watchers {
            for (revision, seen) in runtime.block_on(watcher).unwrap() {
                let (_, at) = committed[(revision - after - 1) as usize];
                delays.push(seen.saturating_duration_since(at));
            }
        }
        delays.sort();
        let at = |part: f64| delays[((delays.len() - 1) as f64 * part) as usize];
        println!(
            "watch, {WATCHERS} watchers, {what}: delivered after commit p50 {:?}, p99 {:?}, most {:?}",
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}

fn growth() {
    println!(
        "keys (1 KiB)  load puts/s   open     RSS MiB   get us  page of 500  list all   compact   save     disk MiB"
    );
    for keys in [10_000, 100_000, 1_000_000] {
        let dir = tempfile::tempdir_in(".").unwrap();
        // One process loads, the other opens: what the first has freed is not taken for the second's memory.
        for _ in 0..2 {
            let me = std::env::current_exe().unwrap();
            let ran = Command::new(me).env(GROWTH_KEYS, keys.to_string()).env(GROWTH_DIR, dir.path()).status().unwrap();
            assert!(ran.success());
        }
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let started = Instant::now();
    let result = work();
    (started.elapsed(), result)
}

fn growth_of(keys: usize) {
    let dir = std::path::PathBuf::from(std::env::var(GROWTH_DIR).unwrap());
    let runtime = runtime();
    let data = dir.join("data");
    let open = || -> Embedded { embedded::open(&data, Options::default()).unwrap() };
    let key = |n: usize| format!("/registry/configmaps/namespace-{:03}/name-{n:08}", n % 100);
    if !data.exists() {
        let store = open();
        let (load, ()) = timed(|| {
            for first in (0..keys).step_by(100) {
                let ops = (first..first + 100).flat_map(|n| put(key(n), VALUE_BYTES).ops).collect();
                runtime.block_on(store.txn(Txn { compares: vec![], ops })).unwrap();
            }
        });
        return print!("{keys:>12}  {:>11.0}", keys as f64 / load.as_secs_f64());
    }
    let before = resident();
    let (opened, store) = timed(open);
    let held = resident() - before;
    let (get, ()) = timed(|| {
        for n in 0..10_000 {
            runtime.block_on(store.get(&key(n * 7919 % keys), None)).unwrap().0.unwrap();
        }
    });
    let (page, _) = timed(|| runtime.block_on(store.range("/registry/", "/registry0", 500, None)).unwrap());
    let (list, all) = timed(|| runtime.block_on(store.range("/registry/", "/registry0", 0, None)).unwrap());
    assert_eq!(all.items.len(), keys);
    drop(all);
    // History of its own, all of which the compaction forgets.
    for first in (0..keys.min(50_000)).step_by(100) {
        let ops = (first..first + 100).flat_map(|n| put(key(n), VALUE_BYTES).ops).collect();
        runtime.block_on(store.txn(Txn { compares: vec![], ops })).unwrap();
    }
    let revision = runtime.block_on(store.current_revision()).unwrap();
    let (compact, _) = timed(|| runtime.block_on(store.compact(revision)).unwrap());
    let (save, _) = timed(|| store.save(&dir.join("saved")).unwrap());
    let disk: u64 = std::fs::read_dir(&data).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
    println!(
        "  {:>7.1?}  {held:>7.1}  {:>6.1}  {:>9.1?}  {:>9.1?}  {:>8.1?}  {:>8.1?}  {:>7}",
        opened,
        get.as_secs_f64() * 100.0,
        page,
        list,
        compact,
        save,
        disk >> 20,
    );
}

/// What a load leaves in memory: objects created and updated, as a cluster's load does.
fn memory() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let runtime = runtime();
    let store = embedded::open(dir.path(), Options::default()).unwrap();
    let empty = resident();
    const OBJECTS: usize = 30_000;
    for round in 0..4 {
        for first in (0..OBJECTS).step_by(50) {
            let ops = (first..first + 50).flat_map(|n| put(format!("/registry/pods/default/{n:06}"), 2048).ops);
            runtime.block_on(store.txn(Txn { compares: vec![], ops: ops.collect() })).unwrap();
        }
        println!("memory: {OBJECTS} objects of 2 KiB written {} times: {:.1} MiB more", round + 1, resident() - empty);
    }
    let status = store.status().unwrap();
    println!("memory: live {} MiB; {status:?}", status.live_bytes >> 20);
    for first in (0..OBJECTS).step_by(50) {
        let ops = (first..first + 50).map(|n| Op::Delete { key: format!("/registry/pods/default/{n:06}").into() });
        runtime.block_on(store.txn(Txn { compares: vec![], ops: ops.collect() })).unwrap();
    }
    println!("memory: after deleting all: {:.1} MiB more", resident() - empty);
    let revision = runtime.block_on(store.current_revision()).unwrap();
    runtime.block_on(store.compact(revision)).unwrap();
    println!("memory: and compacting: {:.1} MiB more", resident() - empty);
}
