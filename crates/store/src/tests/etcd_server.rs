//! A real etcd for the tests, where one is installed: on loopback, in a temporary directory, killed at the end.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::{commit, concurrent, model, put, scenarios};
use crate::etcd::{self, Etcd};
use crate::{Backend, StoreError, WatchItem};

pub struct Server {
    process: Child,
    pub endpoint: String,
    peer: String,
    dir: tempfile::TempDir,
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn command(dir: &Path, endpoint: &str, peer: &str) -> Command {
    let mut command = Command::new("etcd");
    command
        .arg("--data-dir")
        .arg(dir)
        .args(["--name", "test", "--log-level", "error"])
        .args(["--listen-client-urls", endpoint, "--advertise-client-urls", endpoint])
        .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
        .args(["--initial-cluster", &format!("test={peer}")])
        // A lone member elects itself at once, and grants leases of a second.
        .args(["--heartbeat-interval", "10", "--election-timeout", "100"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

impl Server {
    /// Starts one, or says why there is none.
    pub fn start() -> Option<Self> {
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let endpoint = format!("http://127.0.0.1:{}", free_port());
            let peer = format!("http://127.0.0.1:{}", free_port());
            let command = command(dir.path(), &endpoint, &peer);
            let mut server = Server::run(command, endpoint, peer, dir)?;
            // A port that was free may be so no more: then it ends at once.
            while server.process.try_wait().unwrap().is_none() {
                if TcpStream::connect(server.endpoint.trim_start_matches("http://")).is_ok() {
                    return Some(server);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        panic!("etcd ends as soon as it is started");
    }

    /// Starts one on what `etcdctl snapshot restore` makes of a file.
    pub fn of_snapshot(file: &Path) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = format!("http://127.0.0.1:{}", free_port());
        let peer = format!("http://127.0.0.1:{}", free_port());
        let data = dir.path().join("data");
        let restored = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["snapshot", "restore", "--name", "test", "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}"), "--data-dir"])
            .args([&data, file])
            .output()
            .ok()?;
        assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
        Server::run(command(&data, &endpoint, &peer), endpoint, peer, dir)
    }

    fn run(mut command: Command, endpoint: String, peer: String, dir: tempfile::TempDir) -> Option<Self> {
        match command.spawn() {
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
        self.process = command(self.dir.path(), &self.endpoint, &self.peer).spawn().unwrap();
    }

    pub async fn connect(&self) -> Arc<Etcd> {
        let endpoints = vec![self.endpoint.clone()];
        // Far above what a busy machine takes: nothing here waits for a request to run out of time.
        connect(etcd::Options { endpoints, request_timeout: Duration::from_secs(20), ..etcd::Options::default() }).await
    }
}

/// Connects to a server that is coming up.
pub async fn connect(options: etcd::Options) -> Arc<Etcd> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match etcd::connect(options.clone()).await {
            Ok(store) => return Arc::new(store),
            Err(e) if Instant::now() > end => panic!("etcd does not come up: {e}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn etcd_keeps_concurrent_histories() {
    let (mut calls, mut changes) = (0, 0);
    for seed in 1..=concurrent::histories(2) {
        let Some(server) = Server::start() else { return };
        let store = server.connect().await;
        let mut history = concurrent::History::new(seed, &*store).await;
        history.forgets_compacted_deletions = true;
        history.run(store.clone(), 120).await;
        let checked = history.check();
        (calls, changes) = (calls + checked.0, changes + checked.1);
    }
    println!("etcd: {calls} calls, {changes} changes checked");
}

#[tokio::test]
async fn a_watch_survives_a_restart_of_etcd() {
    let Some(mut server) = Server::start() else { return };
    let store = server.connect().await;
    let start = commit(&*store, vec![put("/w/0", "")]).await;
    const WRITES: usize = 60;
    let mut watch = store.watch("/w/", start).await.unwrap();
    let reader = tokio::spawn(async move {
        let mut changes = Vec::new();
        while changes.len() < WRITES {
            if let WatchItem::Changes(some) = watch.next().await.unwrap().unwrap() {
                changes.extend(some.iter().cloned());
            }
        }
        changes
    });
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
    let keys: Vec<_> = changes.iter().map(|change| change.key.to_string()).collect();
    assert_eq!(keys, (1..=WRITES).map(|n| format!("/w/{n}")).collect::<Vec<_>>(), "all, once, in order");
    assert!(changes.windows(2).all(|pair| pair[0].revision < pair[1].revision));
}

#[tokio::test]
async fn progress_never_overtakes_changes() {
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
async fn a_full_etcd_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let peer = format!("http://127.0.0.1:{}", free_port());
    let mut command = command(dir.path(), &endpoint, &peer);
    command.args(["--quota-backend-bytes", "4000000"]);
    let Some(server) = Server::run(command, endpoint, peer, dir) else { return };
    let store = server.connect().await;
    let value = "v".repeat(1 << 20);
    for n in 0..20 {
        let txn = crate::Txn { compares: Vec::new(), ops: vec![put(&format!("/{n}"), &value)] };
        match store.txn(txn).await {
            Ok(_) => {}
            Err(StoreError::Full(_)) => return,
            Err(other) => panic!("{other:?}"),
        }
    }
    panic!("20 MiB fit into 4 MB");
}

/// Members that are of no use, beside one that is: nothing is lost and nothing waits for them.
#[tokio::test]
async fn useless_endpoints_are_worked_around() {
    let Some(server) = Server::start() else { return };
    server.connect().await;
    let dead = format!("http://127.0.0.1:{}", free_port());
    // A port that accepts and never answers.
    let hung = TcpListener::bind("127.0.0.1:0").unwrap();
    let hung = format!("http://{}", hung.local_addr().unwrap());
    let by_name = server.endpoint.replace("127.0.0.1", "localhost");
    let asked = Instant::now();
    for endpoints in [[&dead, &server.endpoint, &hung], [&hung, &dead, &by_name]] {
        let endpoints = endpoints.into_iter().cloned().collect();
        let store = etcd::connect(etcd::Options { endpoints, ..etcd::Options::default() }).await.unwrap();
        let first = store.current_revision().await.unwrap();
        for n in 0..20 {
            let revision = commit(&store, vec![put("/k", &n.to_string())]).await;
            assert_eq!(store.get("/k", None).await.unwrap().1, revision);
        }
        assert_eq!(model::collect(&store, "/k", first, first + 20).await.len(), 20);
        drop(store);
    }
    assert!(asked.elapsed() < Duration::from_secs(10), "the hung member has held up nobody");
}

/// A member whose certificate is of another authority.
#[tokio::test]
async fn a_wrong_certificate_is_named_and_worked_around() {
    let (ours, other) = (Pki::new(), Pki::new());
    let mut endpoints = Vec::new();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let dir = tempfile::tempdir().unwrap();
    for (name, pki) in [("other", &other), ("ours", &ours)] {
        let (_, cert, key) = pki.issue("server", true);
        let store = Arc::new(crate::embedded::open(dir.path().join(name), Default::default()).unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        endpoints.push(format!("https://localhost:{}", listener.local_addr().unwrap().port()));
        let options =
            crate::serve::Options { tls: Some(crate::serve::Tls { cert, key, client_ca: None }), ..Default::default() };
        let mut stopped = stopped.clone();
        let stop = async move { _ = stopped.wait_for(|stop| *stop).await };
        tokio::spawn(crate::serve::serve(store, listener, options, stop));
    }
    let options = |endpoints: &[String]| etcd::Options {
        endpoints: endpoints.to_vec(),
        ca: Some(ours.ca()),
        request_timeout: Duration::from_secs(5),
        ..etcd::Options::default()
    };
    let error = etcd::connect(options(&endpoints[..1])).await.err().unwrap().to_string();
    assert!(error.contains(&endpoints[0]) && error.contains("certificate"), "{error}");
    let store = etcd::connect(options(&endpoints)).await.unwrap();
    for n in 0..10 {
        commit(&store, vec![put("/k", &n.to_string())]).await;
    }
    stop.send_replace(true);
}

/// An authority made for a test, with its files.
pub struct Pki {
    dir: tempfile::TempDir,
    authority: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Pki {
    pub fn new() -> Self {
        let mut authority = rcgen::CertificateParams::default();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = rcgen::CertifiedIssuer::self_signed(authority, rcgen::KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), authority.pem()).unwrap();
        Pki { dir, authority }
    }

    pub fn ca(&self) -> Vec<u8> {
        self.authority.pem().into_bytes()
    }

    pub fn ca_file(&self) -> std::path::PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// A certificate for 127.0.0.1 and localhost, for clients or for servers too: its files, itself and its key.
    pub fn issue(&self, name: &str, server: bool) -> ([std::path::PathBuf; 2], Vec<u8>, Vec<u8>) {
        use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        // etcd's own gateway is a client of its server with the server's certificate.
        params.extended_key_usages = if server { vec![ServerAuth, ClientAuth] } else { vec![ClientAuth] };
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.authority).unwrap();
        let paths = ["crt", "key"].map(|kind| self.dir.path().join(format!("{name}.{kind}")));
        std::fs::write(&paths[0], cert.pem()).unwrap();
        std::fs::write(&paths[1], key.serialize_pem()).unwrap();
        (paths, cert.pem().into_bytes(), key.serialize_pem().into_bytes())
    }
}

/// A server that wants client certificates, from an authority made for the test.
#[tokio::test]
async fn tls_with_client_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new();
    let (server_files, ..) = pki.issue("server", true);
    let (_, cert, key) = pki.issue("client", false);
    let endpoint = format!("https://127.0.0.1:{}", free_port());
    let peer = format!("http://127.0.0.1:{}", free_port());
    let mut command = command(&dir.path().join("data"), &endpoint, &peer);
    command.arg("--cert-file").arg(&server_files[0]).arg("--key-file").arg(&server_files[1]);
    command.arg("--trusted-ca-file").arg(pki.ca_file()).arg("--client-cert-auth");
    let Some(_server) = Server::run(command, endpoint.clone(), peer, tempfile::tempdir().unwrap()) else { return };
    let whole = etcd::Options {
        endpoints: vec![endpoint],
        ca: Some(pki.ca()),
        cert: Some(cert),
        key: Some(key),
        request_timeout: Duration::from_secs(2),
        ..etcd::Options::default()
    };
    let store = connect(whole.clone()).await;
    let revision = commit(&*store, vec![put("/secret", "s")]).await;
    assert_eq!(model::collect(&*store, "/", 1, revision).await.len(), 1);
    let nameless = etcd::Options { cert: None, key: None, ..whole.clone() };
    let refused = etcd::connect(nameless).await.err().unwrap();
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused:?}");
    let half = etcd::Options { key: None, ..whole };
    assert!(matches!(etcd::connect(half).await.err().unwrap(), StoreError::Invalid(_)));
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
