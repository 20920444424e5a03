//! Three members of a real etcd: a member's death, a lost majority, a cut and healed network.
//!
//! The members of the network test live in namespaces of their own; that test needs root, `ip` and etcd, and says when it
//! skips. Writers put each key only if it is absent and try again when they do not know, so every key is written once.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::etcd_server::{connect, free_port};
use super::{ask, at, commit, put};
use crate::etcd::{self, Etcd};
use crate::etcdserverpb::{self as pb};
use crate::{Backend, Change, StoreError, Txn, TxnOutcome, WatchItem};

const MEMBERS: usize = 3;

struct Member {
    client: String,
    peer: String,
    namespace: Option<String>,
    process: Option<Child>,
    dir: tempfile::TempDir,
}

struct Cluster {
    members: Vec<Member>,
}

impl Cluster {
    /// Three members on loopback, or none where etcd is not installed.
    fn start() -> Option<Self> {
        let url = || format!("http://127.0.0.1:{}", free_port());
        Self::of((0..MEMBERS).map(|_| (url(), url(), None)))
    }

    fn of(places: impl Iterator<Item = (String, String, Option<String>)>) -> Option<Self> {
        if let Err(e) = Command::new("etcd").arg("--version").output() {
            println!("skipped: no etcd binary found ({e})");
            return None;
        }
        let members = places
            .map(|(client, peer, namespace)| Member {
                client,
                peer,
                namespace,
                process: None,
                dir: tempfile::tempdir().unwrap(),
            })
            .collect();
        let mut cluster = Cluster { members };
        (0..MEMBERS).for_each(|i| cluster.run(i));
        Some(cluster)
    }

    fn run(&mut self, i: usize) {
        let all: Vec<_> = self.members.iter().enumerate().map(|(n, member)| format!("m{n}={}", member.peer)).collect();
        let member = &mut self.members[i];
        let mut command = match &member.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, "etcd"]);
                command
            }
            None => Command::new("etcd"),
        };
        command
            .arg("--data-dir")
            .arg(member.dir.path())
            .args(["--name", &format!("m{i}"), "--log-level", "error"])
            .args(["--listen-client-urls", &member.client, "--advertise-client-urls", &member.client])
            .args(["--listen-peer-urls", &member.peer, "--initial-advertise-peer-urls", &member.peer])
            .args(["--initial-cluster", &all.join(",")])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        member.process = Some(command.spawn().unwrap());
    }

    /// kill -9.
    fn kill(&mut self, i: usize) {
        if let Some(mut process) = self.members[i].process.take() {
            _ = process.kill();
            _ = process.wait();
        }
    }

    async fn connect(&self) -> Arc<Etcd> {
        connect(etcd::Options {
            endpoints: self.members.iter().map(|member| member.client.clone()).collect(),
            request_timeout: Duration::from_secs(3),
            keep_alive: (Duration::from_secs(1), Duration::from_secs(1)),
            ..etcd::Options::default()
        })
        .await
    }

    /// Which member leads.
    async fn leader(&self) -> usize {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            for (i, member) in self.members.iter().enumerate().filter(|(_, member)| member.process.is_some()) {
                let member = ask::client(&member.client);
                let status = tokio::time::timeout(Duration::from_secs(1), member.call(pb::StatusRequest {})).await;
                if let Ok(Ok(status)) = status
                    && status.leader != 0
                    && status.header.is_some_and(|header| header.member_id == status.leader)
                {
                    return i;
                }
            }
            assert!(Instant::now() < end, "no leader is elected");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|i| self.kill(i));
    }
}

/// Writes a key once, whatever happens on the way.
async fn write(store: &Etcd, key: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    let txn = Txn { compares: vec![at(key, 0)], ops: vec![put(key, "x")] };
    while let Err(error) = store.txn(txn.clone()).await {
        assert!(Instant::now() < end, "{key} cannot be written: {error}");
        // Some refusals come at once.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Follows a prefix until so many changes have come.
async fn follow(
    store: Arc<Etcd>,
    prefix: &'static str,
    after: u64,
    most: usize,
) -> tokio::task::JoinHandle<Vec<Change>> {
    let mut watch = store.watch(prefix, after).await.unwrap();
    tokio::spawn(async move {
        let mut changes = Vec::new();
        while changes.len() < most {
            if let WatchItem::Changes(some) = watch.next().await.unwrap().unwrap() {
                changes.extend(some.iter().cloned());
            }
        }
        changes
    })
}

/// All of the keys came, once, in the order they were written.
async fn check(following: tokio::task::JoinHandle<Vec<Change>>, prefix: &str, writes: usize) {
    let changes = tokio::time::timeout(Duration::from_secs(60), following).await.expect("events are missing").unwrap();
    let keys: Vec<_> = changes.iter().map(|change| change.key.to_string()).collect();
    assert_eq!(keys, (0..writes).map(|n| format!("{prefix}{n}")).collect::<Vec<_>>());
    assert!(changes.windows(2).all(|pair| pair[0].revision < pair[1].revision));
}

#[tokio::test]
async fn a_leaders_death_loses_nothing() {
    let Some(mut cluster) = Cluster::start() else { return };
    let store = cluster.connect().await;
    let begin = commit(&*store, vec![put("/begin", "")]).await;
    const WRITES: usize = 60;
    // One watch through the store that writes, one through another: whichever member they lie on.
    let followers = [
        follow(store.clone(), "/w/", begin, WRITES).await,
        follow(cluster.connect().await, "/w/", begin, WRITES).await,
    ];
    let mut dead = None;
    for n in 0..WRITES {
        if n % 20 == 10 {
            if let Some(dead) = dead.take() {
                cluster.run(dead);
            }
            let leader = cluster.leader().await;
            cluster.kill(leader);
            dead = Some(leader);
        }
        write(&store, &format!("/w/{n}")).await;
    }
    for following in followers {
        check(following, "/w/", WRITES).await;
    }
    let range = store.range("/w/", "/w0", 0, None).await.unwrap();
    assert_eq!(range.items.len(), WRITES);
    assert!(range.items.iter().all(|kv| kv.version == 1));
}

/// Members that stop without ending, one after the other: connections stay, and nothing comes.
#[tokio::test]
async fn a_member_that_hangs_loses_nothing() {
    let Some(cluster) = Cluster::start() else { return };
    let store = cluster.connect().await;
    let begin = commit(&*store, vec![put("/begin", "")]).await;
    const EACH: usize = 10;
    let mut followers = Vec::new();
    for _ in 0..MEMBERS {
        followers.push(follow(cluster.connect().await, "/w/", begin, MEMBERS * EACH).await);
    }
    for i in 0..MEMBERS {
        let signal = |name: &str| {
            let pid = cluster.members[i].process.as_ref().unwrap().id().to_string();
            assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
        };
        signal("-STOP");
        for n in i * EACH..(i + 1) * EACH {
            write(&store, &format!("/w/{n}")).await;
        }
        signal("-CONT");
    }
    for following in followers {
        check(following, "/w/", MEMBERS * EACH).await;
    }
}

#[tokio::test]
async fn a_lost_majority_is_a_clear_error_that_ends_by_itself() {
    let Some(mut cluster) = Cluster::start() else { return };
    let store = cluster.connect().await;
    let begin = commit(&*store, vec![put("/begin", "")]).await;
    let following = follow(store.clone(), "/w/", begin, 2).await;
    write(&store, "/w/0").await;
    let leader = cluster.leader().await;
    let second = (leader + 1) % MEMBERS;
    cluster.kill(leader);
    cluster.kill(second);
    let asked = Instant::now();
    for _ in 0..3 {
        let error = store.get("/w/0", None).await.unwrap_err();
        let StoreError::Unavailable(said) = &error else { panic!("{error:?}") };
        let clear = ["has no leader", "no answer from etcd", "connect", "refused", "transport"];
        assert!(clear.iter().any(|words| said.contains(words)), "{said}");
        let written = store.txn(Txn { compares: Vec::new(), ops: vec![put("/never", "")] }).await;
        assert!(matches!(written, Err(StoreError::Unavailable(_))), "{written:?}");
    }
    assert!(asked.elapsed() < Duration::from_secs(30), "no call takes longer than its time");
    cluster.run(second);
    write(&store, "/w/1").await;
    check(following, "/w/", 2).await;
}

#[tokio::test]
async fn several_servers_share_an_etcd() {
    let Some(cluster) = Cluster::start() else { return };
    let stores = [cluster.connect().await, cluster.connect().await, cluster.connect().await];
    let begin = commit(&*stores[0], vec![put("/count", "0")]).await;
    const EACH: usize = 30;
    let mut followers = Vec::new();
    for store in &stores {
        followers.push(follow(store.clone(), "/count", begin, EACH * stores.len()).await);
    }
    let counting = stores.iter().cloned().map(|store| async move {
        for _ in 0..EACH {
            loop {
                let kv = store.get("/count", None).await.unwrap().0.unwrap();
                let next: usize = std::str::from_utf8(&kv.value).unwrap().parse::<usize>().unwrap() + 1;
                let txn =
                    Txn { compares: vec![at("/count", kv.mod_revision)], ops: vec![put("/count", &next.to_string())] };
                if let TxnOutcome::Committed { .. } = store.txn(txn).await.unwrap() {
                    break;
                }
            }
        }
    });
    futures::future::join_all(counting).await;
    let mut histories = Vec::new();
    for following in followers {
        histories.push(tokio::time::timeout(Duration::from_secs(20), following).await.unwrap().unwrap());
    }
    assert_eq!(histories[0].len(), EACH * stores.len());
    // The versions before the first are told or not, by what a member still has; all else is alike.
    assert!(histories.windows(2).all(|pair| pair[0] == pair[1]));
    // A write through one is seen by the next read through another.
    for n in 0..20 {
        let revision = commit(&*stores[n % 3], vec![put("/seen", &n.to_string())]).await;
        let (kv, now) = stores[(n + 1) % 3].get("/seen", None).await.unwrap();
        assert!(now >= revision && kv.unwrap().mod_revision == revision);
    }
}

/// Progress for consistent reads from a cache, from whichever member the watch lies on.
#[tokio::test]
async fn progress_reaches_every_write_on_three_members() {
    let Some(cluster) = Cluster::start() else { return };
    let (store, other) = (cluster.connect().await, cluster.connect().await);
    let begin = commit(&*store, vec![put("/p/begin", "")]).await;
    let mut watch = store.watch("/p/", begin).await.unwrap();
    let mut reached = begin;
    for n in 0..30 {
        // Every third write concerns the watch; each is waited for.
        let key = if n % 3 == 0 { format!("/p/{n}") } else { format!("/q/{n}") };
        let revision = commit(&*other, vec![put(&key, "")]).await;
        store.request_progress().await.unwrap();
        while reached < revision {
            let item = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap().unwrap();
            let up_to = match item {
                WatchItem::Changes(changes) => {
                    assert!(changes[0].revision > reached, "a change after progress past it");
                    changes[changes.len() - 1].revision
                }
                WatchItem::Progress(revision) => revision,
            };
            assert!(up_to >= reached);
            reached = up_to;
        }
    }
}

/// The namespaces of one run; removed at the end.
struct Network {
    name: String,
}

impl Network {
    fn ip(args: &str) {
        let output = Command::new("ip").args(args.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn new() -> Self {
        let network = Network { name: format!("nauetcd{}", std::process::id()) };
        let name = &network.name;
        let hub = format!("{name}-hub");
        Self::ip(&format!("netns add {hub}"));
        Self::ip(&format!("-n {hub} link set lo up"));
        Self::ip(&format!("-n {hub} link add br0 type bridge"));
        Self::ip(&format!("-n {hub} addr add 10.99.0.254/24 dev br0"));
        Self::ip(&format!("-n {hub} link set br0 up"));
        for i in 0..MEMBERS {
            let member = format!("{name}-{i}");
            Self::ip(&format!("netns add {member}"));
            Self::ip(&format!("-n {member} link set lo up"));
            Self::ip(&format!("-n {hub} link add v{i} type veth peer name eth0 netns {member}"));
            Self::ip(&format!("-n {hub} link set v{i} master br0 up"));
            Self::ip(&format!("-n {member} addr add 10.99.0.{}/24 dev eth0", i + 1));
            Self::ip(&format!("-n {member} link set eth0 up"));
        }
        network
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for part in ["hub", "0", "1", "2"] {
            let namespace = format!("{}-{part}", self.name);
            // What was started there and outlived a failed test.
            if let Ok(output) = Command::new("ip").args(["netns", "pids", &namespace]).output() {
                for pid in String::from_utf8_lossy(&output.stdout).split_whitespace() {
                    _ = Command::new("kill").args(["-9", pid]).status();
                }
            }
            _ = Command::new("ip").args(["netns", "del", &namespace]).output();
        }
    }
}

/// Names the network of the test below in the process that runs inside it.
const INSIDE: &str = "NAUPLIUS_ETCD_NETWORK";

#[test]
fn a_cut_and_healed_network_loses_nothing() {
    let root = std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t")));
    if !root || Command::new("ip").arg("-V").output().is_err() {
        println!("skipped: network namespaces need root and ip");
        return;
    }
    if Command::new("etcd").arg("--version").output().is_err() {
        println!("skipped: no etcd binary found");
        return;
    }
    let network = Network::new();
    // The client of the cluster lives in the hub: this very test, run there.
    let output = Command::new("ip")
        .args(["netns", "exec", &format!("{}-hub", network.name)])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "tests::etcd_cluster::inside_the_network", "--ignored", "--nocapture"])
        .env(INSIDE, &network.name)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
#[ignore = "run by a_cut_and_healed_network_loses_nothing, in a network of its own"]
async fn inside_the_network() {
    let Ok(name) = std::env::var(INSIDE) else { return };
    let url = |i: usize, port: u16| format!("http://10.99.0.{}:{port}", i + 1);
    let places = (0..MEMBERS).map(|i| (url(i, 2379), url(i, 2380), Some(format!("{name}-{i}"))));
    let Some(cluster) = Cluster::of(places) else { return };
    let store = cluster.connect().await;
    let begin = commit(&*store, vec![put("/begin", "")]).await;
    const WRITES: usize = 50;
    let mut followers = Vec::new();
    for _ in 0..3 {
        followers.push(follow(cluster.connect().await, "/w/", begin, WRITES).await);
    }
    let mut n = 0;
    let mut some = async |count: usize| {
        for _ in 0..count {
            write(&store, &format!("/w/{n}")).await;
            n += 1;
        }
    };
    some(10).await;
    // The leader is cut off from the other members; clients still reach it.
    let leader = cluster.leader().await;
    for i in (0..MEMBERS).filter(|i| *i != leader) {
        Network::ip(&format!("-n {name}-{leader} route add blackhole 10.99.0.{}/32", i + 1));
    }
    some(10).await;
    for i in (0..MEMBERS).filter(|i| *i != leader) {
        Network::ip(&format!("-n {name}-{leader} route del blackhole 10.99.0.{}/32", i + 1));
    }
    some(10).await;
    // A member vanishes from everybody: its connections just fall silent.
    let leader = cluster.leader().await;
    Network::ip(&format!("-n {name}-hub link set v{leader} down"));
    some(10).await;
    Network::ip(&format!("-n {name}-hub link set v{leader} up"));
    some(10).await;
    for following in followers {
        check(following, "/w/", WRITES).await;
    }
}
