//! A real etcd for the tests, where one is installed: on loopback, in a temporary directory, killed at the end.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{commit, model, put, scenarios};
use crate::etcd::{self, Etcd};
use crate::{Backend, StoreError, WatchItem};

pub struct Server {
    process: Child,
    pub endpoint: String,
    peer: String,
    dir: tempfile::TempDir,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(dir: &Path, endpoint: &str, peer: &str) -> std::io::Result<Child> {
    Command::new("etcd")
        .arg("--data-dir")
        .arg(dir)
        .args(["--name", "test", "--log-level", "error", "--unsafe-no-fsync"])
        .args(["--listen-client-urls", endpoint, "--advertise-client-urls", endpoint])
        .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
        .args(["--initial-cluster", &format!("test={peer}")])
        // A lone member elects itself at once, and grants leases of a second.
        .args(["--heartbeat-interval", "10", "--election-timeout", "100"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

impl Server {
    /// Starts one, or says why there is none.
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = format!("http://127.0.0.1:{}", free_port());
        let peer = format!("http://127.0.0.1:{}", free_port());
        match spawn(dir.path(), &endpoint, &peer) {
            Ok(process) => Some(Server { process, endpoint, peer, dir }),
            Err(e) => {
                println!("skipped: no etcd binary found ({e})");
                None
            }
        }
    }

    fn stop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }

    fn restart(&mut self) {
        self.stop();
        self.process = spawn(self.dir.path(), &self.endpoint, &self.peer).unwrap();
    }

    async fn connect(&self) -> Arc<Etcd> {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let options = etcd::Options {
                endpoints: vec![self.endpoint.clone()],
                request_timeout: Duration::from_secs(2),
                ..etcd::Options::default()
            };
            match etcd::connect(options).await {
                Ok(store) => return Arc::new(store),
                Err(e) if Instant::now() > end => panic!("etcd does not come up: {e}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

#[tokio::test]
async fn etcd_keeps_the_scenarios() {
    for (name, scenario) in scenarios::ALL {
        let Some(server) = Server::start() else { return };
        println!("etcd: {name}");
        scenario(server.connect().await).await;
    }
}

#[tokio::test]
async fn etcd_walks_with_the_model() {
    for seed in 1..=2 {
        let Some(server) = Server::start() else { return };
        let store = server.connect().await;
        let mut walk = model::Walk::new(seed, &*store).await;
        walk.prefixes = &["/"];
        walk.run(store.clone(), 250).await;
        walk.check_all(&*store).await;
    }
}

#[tokio::test]
async fn a_watch_survives_a_restart_of_etcd() {
    let Some(mut server) = Server::start() else { return };
    let store = server.connect().await;
    let start = commit(&*store, vec![put("/w/0", "")]).await;
    let follower = store.clone();
    const WRITES: u64 = 60;
    let reader = tokio::spawn(async move { model::collect(&*follower, "/w/", start, start + WRITES).await });
    for n in 1..=WRITES {
        if n % 20 == 0 {
            server.restart();
        }
        // A write that breaks with the connection may or may not have happened: a fixed value at a compare tells.
        loop {
            let key = format!("/w/{n}");
            let txn = crate::Txn { compares: vec![super::at(&key, 0)], ops: vec![put(&key, "x")] };
            if store.txn(txn).await.is_ok() {
                break;
            }
        }
    }
    let changes = tokio::time::timeout(Duration::from_secs(30), reader).await.unwrap().unwrap();
    let revisions: Vec<_> = changes.iter().map(|change| change.revision).collect();
    assert_eq!(revisions, (start + 1..=start + WRITES).collect::<Vec<_>>(), "all, once, in order");
}

#[tokio::test]
async fn progress_never_overtakes_changes() {
    use futures::StreamExt;
    let Some(server) = Server::start() else { return };
    let store = server.connect().await;
    let start = store.current_revision().await.unwrap();
    let mut watch = store.watch("/p/", start).await.unwrap();
    let writer = store.clone();
    let writes = tokio::spawn(async move {
        let mut last = 0;
        for n in 0..300 {
            let key = if n % 3 == 0 { format!("/q/{n}") } else { format!("/p/{n}") };
            last = commit(&*writer, vec![put(&key, "")]).await;
            writer.request_progress().await.unwrap();
        }
        last
    });
    let (mut reached, mut seen) = (start, 0);
    let mut last = None;
    let mut writes = Some(writes);
    while last.is_none_or(|last| reached < last) {
        if let Some(done) = writes.take_if(|writes| writes.is_finished()) {
            last = Some(done.await.unwrap());
            continue;
        }
        store.request_progress().await.unwrap();
        match tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap().unwrap() {
            WatchItem::Changes(changes) => {
                assert!(changes[0].revision > reached, "a change at {} after progress {reached}", changes[0].revision);
                reached = changes[changes.len() - 1].revision;
                seen += changes.len();
            }
            WatchItem::Progress(revision) => {
                assert!(revision >= reached);
                reached = revision;
            }
        }
    }
    assert_eq!(seen, 200);
}

#[tokio::test]
async fn an_unreachable_etcd_is_a_clear_error() {
    let port = free_port();
    let options = |endpoint: String| etcd::Options {
        endpoints: vec![endpoint],
        request_timeout: Duration::from_millis(500),
        ..etcd::Options::default()
    };
    let error = etcd::connect(options(format!("http://127.0.0.1:{port}"))).await.err().unwrap();
    let StoreError::Unavailable(text) = &error else { panic!("{error:?}") };
    assert!(text.contains(&port.to_string()) && text.to_lowercase().contains("refused"), "{text}");
    // A port that accepts and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let error = etcd::connect(options(endpoint)).await.err().unwrap();
    assert!(error.to_string().contains("no answer from etcd"), "{error}");
    for (endpoint, expected) in [("127.0.0.1:1", "is not a URL"), ("https://127.0.0.1:1", "certificate authority")] {
        let error = etcd::connect(options(endpoint.into())).await.err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
