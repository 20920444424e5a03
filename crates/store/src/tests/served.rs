//! The etcd API over the embedded store: every case runs on a real etcd too, where one is installed, so that the case itself
//! is checked; then the scenarios and the model through the API; then what only this server promises.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::net::TcpListener;

use super::api_cases::{self, events, ok};
use super::ask::{self, Watches};
use super::etcd_server::{self, Server};
use super::{commit, model, put, scenarios};
use crate::etcd::wire::Connection;
use crate::etcdserverpb::event::EventType;
use crate::etcdserverpb::{self as pb};
use crate::{Backend, StoreError, WatchItem, embedded, etcd, maintain, serve};

/// A served store; the server ends with it.
pub struct Served {
    pub endpoint: String,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Served {
    pub async fn start() -> Self {
        Self::with(embedded::Options::default(), serve::Options::default()).await
    }

    pub async fn with(store: embedded::Options, options: serve::Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(embedded::open(dir.path(), store).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let endpoint = format!("{scheme}://{}", listener.local_addr().unwrap());
        let options = serve::Options { client_urls: vec![endpoint.clone()], ..options };
        let served = serve::serve(store, listener, options, std::future::pending());
        let task = tokio::spawn(async move { served.await.unwrap() });
        Served { endpoint, task, _dir: dir }
    }

    pub fn client(&self) -> Connection {
        ask::client(&self.endpoint)
    }

    async fn backend(&self) -> Arc<etcd::Etcd> {
        let endpoints = vec![self.endpoint.clone()];
        Arc::new(etcd::connect(etcd::Options { endpoints, ..etcd::Options::default() }).await.unwrap())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn the_api_answers_as_etcd_does() {
    for (name, case) in api_cases::ALL {
        if let Some(server) = Server::start() {
            println!("etcd: {name}");
            server.connect().await;
            case(ask::client(&server.endpoint)).await;
        }
        println!("served: {name}");
        let served = Served::start().await;
        case(served.client()).await;
    }
}

#[tokio::test]
async fn the_api_keeps_the_scenarios() {
    for (name, scenario) in scenarios::ALL {
        println!("served: {name}");
        let served = Served::start().await;
        scenario(served.backend().await).await;
    }
}

#[tokio::test]
async fn the_api_walks_with_the_model() {
    for seed in 1..=3 {
        let served = Served::start().await;
        let store = served.backend().await;
        let mut walk = model::Walk::new(seed, &*store).await;
        walk.run(store.clone(), 250).await;
        walk.check_all(&*store).await;
    }
}

#[tokio::test]
async fn progress_is_told_from_time_to_time() {
    let options = serve::Options { progress_interval: Duration::from_millis(20), ..serve::Options::default() };
    let served = Served::with(embedded::Options::default(), options).await;
    let client = served.client();
    let quiet = pb::WatchCreateRequest { progress_notify: true, ..ask::watch_all("quiet/") };
    let mut stream = Watches::created(&client, quiet).await;
    let revision = ok(&client, ask::put("loud", "")).await.header.unwrap().revision;
    loop {
        let response = stream.next().await;
        assert!(response.events.is_empty() && !response.canceled);
        if response.header.unwrap().revision == revision {
            return;
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_hurts_nobody() {
    // So little history that the sleeper falls out of it.
    let options = embedded::Options { history_changes: 500, ..embedded::Options::default() };
    let served = Served::with(options, serve::Options::default()).await;
    let sleeper = served.client();
    let mut asleep = Watches::created(&sleeper, ask::watch_all("s/")).await;
    let (writer, reader) = (served.client(), served.client());
    let mut awake = Watches::created(&reader, ask::watch_all("s/")).await;
    let value = vec![b'x'; 20 << 10];
    const WRITES: usize = 1500;
    let reading = tokio::spawn(async move { events(&mut awake, WRITES).await });
    for i in 0..WRITES {
        ok(&writer, ask::put(format!("s/{}", i % 10), value.clone())).await;
    }
    let seen = tokio::time::timeout(Duration::from_secs(20), reading).await.unwrap().unwrap();
    assert_eq!(seen.len(), WRITES);
    assert!(seen.windows(2).all(|pair| pair[1].2 == pair[0].2 + 1), "all, once, in order");
    // It gets what was on the way to it, in order, and is then told that the rest is gone.
    let mut last = None;
    let compacted = loop {
        let response = asleep.next().await;
        for event in response.events {
            let revision = event.kv.unwrap().mod_revision;
            assert!(last.is_none_or(|last| revision == last + 1));
            last = Some(revision);
        }
        if response.canceled {
            break response.compact_revision;
        }
    };
    assert!(compacted > last.unwrap() + 1 && compacted <= seen[WRITES - 1].2, "{compacted}");
    // From there it can go on.
    let create = pb::WatchCreateRequest { start_revision: compacted, ..ask::watch_all("s/") };
    let mut again = Watches::open(&sleeper, create).await;
    let rest = (seen[WRITES - 1].2 - compacted + 1) as usize;
    assert_eq!(events(&mut again, rest).await[0].2, compacted);
}

#[tokio::test]
async fn watches_on_a_stream_are_counted() {
    let served = Served::start().await;
    let client = served.client();
    let mut stream = Watches::created(&client, ask::watch("k")).await;
    const MOST: i64 = 10_000;
    let mut refused = 0;
    for batch in 0..=MOST / 100 {
        for _ in 0..100 {
            stream.add(ask::watch("k")).await;
        }
        for _ in 0..100 {
            let response = stream.next().await;
            assert!(response.created, "{batch}: {response:?}");
            refused += i64::from(response.canceled);
        }
    }
    assert_eq!(refused, 101, "one watch was there before");
}

#[tokio::test]
async fn large_revisions_come_in_fragments() {
    let served = Served::start().await;
    let client = served.client();
    let create = pb::WatchCreateRequest { prev_kv: true, fragment: true, ..ask::watch_all("f/") };
    let mut pieces = Watches::created(&client, create).await;
    let value = vec![b'x'; 1 << 20];
    for i in 0..5 {
        ok(&client, ask::put(format!("f/{i}"), value.clone())).await;
    }
    // One revision of five megabytes.
    ok(&client, ask::delete_all("f/")).await;
    let (mut puts, mut deletes, mut fragments) = (0, 0, 0);
    while deletes < 5 {
        let response = pieces.next().await;
        let here = response.events.iter().filter(|event| event.r#type() == EventType::Delete).count();
        puts += response.events.len() - here;
        deletes += here;
        fragments += usize::from(here > 0);
    }
    assert_eq!((puts, deletes), (5, 5));
    assert!(fragments >= 3, "{fragments}");
}

#[tokio::test]
async fn client_certificates_decide() {
    let pki = etcd_server::Pki::new();
    let (_, cert, key) = pki.issue("server", true);
    let tls = serve::Tls { cert, key, client_ca: Some(pki.ca()) };
    let options = serve::Options { tls: Some(tls), ..serve::Options::default() };
    let served = Served::with(embedded::Options::default(), options).await;
    let (_, cert, key) = pki.issue("client", false);
    let whole = etcd::Options {
        endpoints: vec![served.endpoint.clone()],
        ca: Some(pki.ca()),
        cert: Some(cert),
        key: Some(key),
        request_timeout: Duration::from_secs(2),
        ..etcd::Options::default()
    };
    let store = etcd::connect(whole.clone()).await.unwrap();
    commit(&store, vec![put("/secret", "s")]).await;
    assert!(etcd::connect(etcd::Options { cert: None, key: None, ..whole.clone() }).await.is_err());
    let stranger = etcd_server::Pki::new();
    let (_, cert, key) = stranger.issue("client", false);
    assert!(etcd::connect(etcd::Options { cert: Some(cert), key: Some(key), ..whole }).await.is_err());
}

#[tokio::test]
async fn a_server_that_stops_ends_its_streams() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(embedded::open(dir.path(), embedded::Options::default()).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(serve::serve(store, listener, serve::Options::default(), async move {
        _ = stopped.await;
    }));
    let mut stream = Watches::created(&ask::client(&endpoint), ask::watch("k")).await;
    stop.send(()).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(3), stream.answers.message()).await.unwrap();
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    tokio::time::timeout(Duration::from_secs(8), serving).await.unwrap().unwrap().unwrap();
}

/// A watch through the etcd backend goes on over a restart of the server: its history is on disk.
#[tokio::test]
async fn history_outlives_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let start = || async {
        let store = Arc::new(embedded::open(dir.path(), embedded::Options::default()).unwrap());
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(128).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(serve::serve(store, listener, serve::Options::default(), async move {
            _ = stopped.await;
        }));
        (stop, task)
    };
    let (stop, task) = start().await;
    let options = etcd::Options { endpoints: vec![format!("http://{address}")], ..etcd::Options::default() };
    let store = etcd::connect(options).await.unwrap();
    let begin = commit(&store, vec![put("/h/0", "")]).await;
    let mut watch = store.watch("/h/", begin).await.unwrap();
    commit(&store, vec![put("/h/1", "")]).await;
    stop.send(()).unwrap();
    task.await.unwrap().unwrap();
    let (_stop, _task) = start().await;
    let last = loop {
        let txn = crate::Txn { compares: vec![super::at("/h/2", 0)], ops: vec![put("/h/2", "")] };
        match store.txn(txn).await {
            Ok(crate::TxnOutcome::Committed { revision }) => break revision,
            Ok(other) => panic!("{other:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let mut revisions = Vec::new();
    while revisions.last() != Some(&last) {
        if let WatchItem::Changes(changes) = watch.next().await.unwrap().unwrap() {
            revisions.extend(changes.iter().map(|change| change.revision));
        }
    }
    assert_eq!(revisions, [begin + 1, begin + 2]);
}

/// Debian's client: a line each, and what its answer must hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_works() {
    if Command::new("etcdctl").arg("version").output().is_err() {
        println!("skipped: no etcdctl found");
        return;
    }
    let served = Served::start().await;
    // With its scheme: this client's status calls put the endpoint as it is where a host has to be.
    let endpoint = served.endpoint.clone();
    let saved = tempfile::tempdir().unwrap();
    let file = saved.path().join("snapshot");
    let ctl = |args: &str, input: &str| -> String {
        use std::io::Write;
        let mut child = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg("--endpoints")
            .arg(&endpoint)
            .args(args.split(' '))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let save = format!("snapshot save {}", file.display());
    // The revision, and the entries of all buckets: two keys, a lease, and three that say how far the file goes.
    let status = format!("snapshot status {}", file.display());
    let txn = "mod(\"/a\") > \"0\"\n\nput /t yes\n\nput /t no\n\n";
    for (args, input, expected) in [
        ("put /a 1", "", "OK"),
        ("put /b 2 --prev-kv", "", "OK"),
        ("get /a", "", "/a\n1\n"),
        ("get / --prefix --keys-only", "", "/a\n\n/b\n"),
        ("get /a -w json", "", "\"create_revision\":2"),
        ("txn", txn, "SUCCESS"),
        ("get /t", "", "yes"),
        ("del /b --prev-kv", "", "1\n/b\n2\n"),
        ("lease grant 100", "", "granted with TTL(100s)"),
        ("lease list", "", "found 1 leases"),
        ("compaction 3", "", "compacted revision 3"),
        ("compaction 3", "", "required revision has been compacted"),
        ("get /a --rev=2", "", "required revision has been compacted"),
        ("endpoint health", "", "is healthy"),
        ("endpoint status -w table", "", serve::API_VERSION),
        ("endpoint hashkv", "", &endpoint),
        ("member list", "", "nauplius"),
        ("alarm list", "", ""),
        ("defrag", "", "Finished defragmenting"),
        (&save, "", "Snapshot saved at"),
        (&status, "", ", 4, 6, "),
        ("user list", "", "client certificates decide"),
        ("member add n --peer-urls=http://127.0.0.1:1", "", "takes and loses none"),
        ("get / --prefix --sort-by=VERSION --order=DESCEND --keys-only", "", "/a\n\n/t\n"),
    ] {
        let said = ctl(args, input);
        assert!(said.contains(expected), "etcdctl {args}: {said}");
    }
    // A watch from a past revision reports at once; it is stopped after its first event.
    ctl("put /w/1 here", "");
    let mut watching = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &endpoint, "watch", "/w", "--prefix", "--rev=4"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(watching.stdout.take().unwrap()));
    let said: Vec<String> = (0..3).map(|_| lines.next().unwrap().unwrap()).collect();
    assert_eq!(said, ["PUT", "/w/1", "here"]);
    watching.kill().unwrap();
    watching.wait().unwrap();
    // What was saved is a store.
    let restored = tempfile::tempdir().unwrap();
    let revision = maintain::restore(&file, restored.path(), &embedded::Options::default(), 1000).unwrap();
    assert!(revision > 1000);
    let store = embedded::open(restored.path(), embedded::Options::default()).unwrap();
    assert_eq!(store.range("/", "0", 0, None).await.unwrap().items.len(), 2, "before the watch");
}

/// A store's snapshot becomes an etcd, and that one's becomes a store: the same keys, leases and revisions in all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_go_to_etcd_and_back() {
    if Command::new("etcdctl").arg("version").output().is_err() || Server::start().is_none() {
        println!("skipped: no etcdctl or etcd found");
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let save = |endpoint: &str, name: &str| {
        let file = files.path().join(name);
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", endpoint, "snapshot", "save"]).arg(&file);
        assert!(command.output().unwrap().status.success());
        file
    };
    let served = Served::start().await;
    let first = served.backend().await;
    let lease = first.grant_lease(3600).await.unwrap();
    for n in 0..300 {
        let value = vec![b'v'; if n % 50 == 0 { 20_000 } else { n }];
        let op = |key: String| crate::Op::Put { key: key.into(), value: value.clone().into(), lease: None };
        commit(&*first, vec![op(format!("/a/{n}")), op(format!("/b/{}", n % 7))]).await;
    }
    let leased = crate::Op::Put { key: "/leased".into(), value: "".into(), lease: Some(lease) };
    commit(&*first, vec![leased]).await;
    let last = commit(&*first, vec![crate::Op::Delete { key: "/a/17".into() }]).await;
    let all = first.range("/", "0", 0, None).await.unwrap();

    let second = Server::of_snapshot(&save(&served.endpoint, "ours")).unwrap();
    let etcd = second.connect().await;
    let there = etcd.range("/", "0", 0, None).await.unwrap();
    assert_eq!((there.items, there.current_revision), (all.items.clone(), last));
    etcd.keep_alive_lease(lease).await.unwrap();
    let error = etcd.range("/", "0", 0, Some(last - 1)).await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted { .. }), "{error}");

    // Now with history, and a key that is made and deleted in it.
    let next = commit(&*etcd, vec![put("/a/17", "again"), crate::Op::Delete { key: "/a/1".into() }]).await;
    assert_eq!(next, last + 1);
    commit(&*etcd, vec![put("/a/17", "twice")]).await;
    let all = etcd.range("/", "0", 0, None).await.unwrap();
    let restored = tempfile::tempdir().unwrap();
    let options = embedded::Options::default();
    let revision = maintain::restore(save(&second.endpoint, "theirs"), restored.path(), &options, 0).unwrap();
    let third = embedded::open(restored.path(), options).unwrap();
    let there = third.range("/", "0", 0, None).await.unwrap();
    assert_eq!((there.items, revision), (all.items, last + 2));
    third.keep_alive_lease(lease).await.unwrap();
}

/// What probes and Prometheus ask for, by plain requests on the same port.
#[tokio::test]
async fn pages_are_served() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let served = Served::start().await;
    served.client().call(ask::put("k", "1")).await.unwrap();
    let address = served.endpoint.trim_start_matches("http://");
    for (request, code, expected) in [
        ("GET /health", "200", r#"{"health":"true","reason":""}"#),
        ("GET /health?serializable=true", "200", r#"{"health":"true","reason":""}"#),
        ("GET /version", "200", serve::API_VERSION),
        ("GET /metrics", "200", "\netcd_server_has_leader 1\n"),
        ("GET /metrics", "200", "\netcd_debugging_mvcc_keys_total 1\n"),
        ("GET /metrics", "200", "\netcd_mvcc_put_total 1\n"),
        ("GET /metrics", "200", "\netcd_disk_wal_fsync_duration_seconds_count 1\n"),
        (
            "GET /metrics",
            "200",
            "grpc_code=\"OK\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1\n",
        ),
        ("GET /metrics", "200", "\nprocess_resident_memory_bytes "),
        ("GET /readyz", "200", "ok"),
        ("GET /other", "404", "404 page not found"),
        ("POST /health", "405", ""),
    ] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let text = format!("{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert!(said.starts_with(&format!("HTTP/1.1 {code}")) && said.contains(expected), "{request}: {said}");
    }
}
