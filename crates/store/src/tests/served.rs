//! The etcd API over the embedded store: every case runs on a real etcd too, where one is installed, so that the case itself
//! is checked; then the scenarios and the model through the API; then what only this server promises.

use std::future::Future;
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, EventType, GetOptions, LeaseGrantOptions, LeaseTimeToLiveOptions,
    PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, WatchFilterType, WatchOptions,
};
use futures::StreamExt;
use tokio::net::TcpListener;

use super::etcd_server::{self, Server};
use super::{commit, model, put, scenarios};
use crate::{Backend, WatchItem, embedded, etcd, maintain, serve};

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

    pub async fn client(&self) -> Client {
        Client::connect([&self.endpoint], None).await.unwrap()
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

type Case = fn(Client) -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        const CASES: &[(&str, Case)] = &[$((stringify!($name), |client| Box::pin($name(client)))),*];
    };
}

cases![
    puts_tell_what_was,
    ranges_are_picked_and_ordered,
    deletes_take_ranges,
    transactions_compare_anything,
    transactions_read_their_own_writes,
    transactions_nest,
    refusals_have_their_words,
    compaction_is_refused_twice,
    watches_share_a_stream,
    watches_begin_anywhere,
    watches_filter,
    progress_comes_after_events,
    leases_are_named_and_looked_at,
    keys_are_bytes,
    large_requests_are_refused,
];

#[tokio::test]
async fn the_api_answers_as_etcd_does() {
    for (name, case) in CASES {
        if let Some(server) = Server::start() {
            println!("etcd: {name}");
            server.connect().await;
            case(Client::connect([&server.endpoint], None).await.unwrap()).await;
        }
        println!("served: {name}");
        let served = Served::start().await;
        case(served.client().await).await;
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

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

async fn fill(client: &mut Client, keys: &[&str]) {
    for key in keys {
        client.put(*key, format!("v{key}"), None).await.unwrap();
    }
}

async fn keys(client: &mut Client, key: &str, options: GetOptions) -> Vec<String> {
    let answer = client.get(key, Some(options)).await.unwrap();
    answer.kvs().iter().map(|kv| text(kv.key()).to_owned()).collect()
}

async fn puts_tell_what_was(mut client: Client) {
    let first = client.put("k", "1", Some(PutOptions::new().with_prev_key())).await.unwrap();
    assert!(first.prev_key().is_none());
    let second = client.put("k", "2", Some(PutOptions::new().with_prev_key())).await.unwrap();
    let previous = second.prev_key().unwrap();
    assert_eq!((previous.value(), previous.version()), (&b"1"[..], 1));
    assert_eq!(previous.mod_revision(), first.header().unwrap().revision());
    let kept = client.put("k", "", Some(PutOptions::new().with_ignore_value())).await.unwrap();
    let kv = client.get("k", None).await.unwrap().kvs()[0].clone();
    assert_eq!((kv.value(), kv.version(), kv.mod_revision()), (&b"2"[..], 3, kept.header().unwrap().revision()));
    let lease = client.lease_grant(100, None).await.unwrap().id();
    client.put("k", "3", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    client.put("k", "4", Some(PutOptions::new().with_ignore_lease())).await.unwrap();
    assert_eq!(client.get("k", None).await.unwrap().kvs()[0].lease(), lease);
    client.put("k", "5", None).await.unwrap();
    assert_eq!(client.get("k", None).await.unwrap().kvs()[0].lease(), 0);
}

async fn ranges_are_picked_and_ordered(mut client: Client) {
    fill(&mut client, &["a", "b", "c", "d"]).await;
    client.put("b", "first", None).await.unwrap();
    let all = GetOptions::new().with_all_keys();
    assert_eq!(keys(&mut client, "", all.clone()).await, ["a", "b", "c", "d"]);
    assert_eq!(keys(&mut client, "c", GetOptions::new().with_from_key()).await, ["c", "d"]);
    assert_eq!(keys(&mut client, "b", GetOptions::new().with_range("d")).await, ["b", "c"]);
    assert_eq!(keys(&mut client, "d", GetOptions::new().with_range("b")).await, [""; 0]);
    for (target, order, expected) in [
        (SortTarget::Key, SortOrder::Descend, ["d", "c", "b", "a"]),
        (SortTarget::Mod, SortOrder::Ascend, ["a", "c", "d", "b"]),
        (SortTarget::Create, SortOrder::Descend, ["d", "c", "b", "a"]),
        (SortTarget::Version, SortOrder::Descend, ["b", "d", "c", "a"]),
        (SortTarget::Value, SortOrder::Ascend, ["b", "a", "c", "d"]),
    ] {
        let sorted = keys(&mut client, "", all.clone().with_sort(target, order)).await;
        if target == SortTarget::Version {
            // The rest is alike: any order will do.
            assert_eq!(sorted[0], "b");
        } else {
            assert_eq!(sorted, expected, "{target:?} {order:?}");
        }
    }
    let page = client.get("", Some(all.clone().with_limit(3))).await.unwrap();
    assert_eq!((page.kvs().len(), page.more(), page.count()), (3, true, 4));
    let count = client.get("", Some(all.clone().with_count_only())).await.unwrap();
    assert_eq!((count.kvs().len(), count.count(), count.more()), (0, 4, false));
    let bare = client.get("", Some(all.clone().with_keys_only())).await.unwrap();
    assert!(bare.kvs().iter().all(|kv| kv.value().is_empty() && kv.mod_revision() > 0));
    let now = page.header().unwrap().revision();
    let newest = keys(&mut client, "", all.clone().with_min_mod_revision(now)).await;
    assert_eq!(newest, ["b"]);
    let oldest = keys(&mut client, "", all.clone().with_max_create_revision(3)).await;
    assert_eq!(oldest, ["a", "b"]);
    let past = client.get("b", Some(GetOptions::new().with_revision(now - 1))).await.unwrap();
    assert_eq!((past.kvs()[0].value(), past.header().unwrap().revision()), (&b"vb"[..], now));
}

async fn deletes_take_ranges(mut client: Client) {
    fill(&mut client, &["p/1", "p/2", "p/3", "q"]).await;
    let before = client.get("q", None).await.unwrap().header().unwrap().revision();
    let gone = client.delete("p/", Some(DeleteOptions::new().with_prefix().with_prev_key())).await.unwrap();
    assert_eq!((gone.deleted(), gone.header().unwrap().revision()), (3, before + 1));
    assert_eq!(gone.prev_kvs().iter().map(|kv| text(kv.value())).collect::<Vec<_>>(), ["vp/1", "vp/2", "vp/3"]);
    let none = client.delete("p/", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    assert_eq!((none.deleted(), none.header().unwrap().revision()), (0, before + 1));
    // More than one transaction may name.
    for i in 0..300 {
        client.put(format!("m/{i}"), "", None).await.unwrap();
    }
    let many = client.delete("m/", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    assert_eq!(many.deleted(), 300);
    assert_eq!(keys(&mut client, "", GetOptions::new().with_all_keys()).await, ["q"]);
}

async fn transactions_compare_anything(mut client: Client) {
    let lease = client.lease_grant(100, None).await.unwrap().id();
    client.put("k", "m", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    let kv = client.get("k", None).await.unwrap().kvs()[0].clone();
    client.put("k2", "n", None).await.unwrap();
    use CompareOp::{Equal, Greater, Less, NotEqual};
    for (compare, expected) in [
        (Compare::version("k", Equal, 1), true),
        (Compare::version("k", Greater, 1), false),
        (Compare::version("none", Equal, 0), true),
        (Compare::value("k", Equal, "m"), true),
        (Compare::value("k", Less, "n"), true),
        (Compare::value("k", NotEqual, "m"), false),
        // What does not exist has no value to compare.
        (Compare::value("none", NotEqual, "m"), false),
        (Compare::mod_revision("k", Equal, kv.mod_revision()), true),
        (Compare::mod_revision("k", Greater, kv.mod_revision()), false),
        (Compare::mod_revision("none", Equal, 0), true),
        (Compare::create_revision("k", Less, kv.mod_revision() + 1), true),
        (Compare::create_revision("none", NotEqual, 0), false),
        (Compare::lease("k", Equal, lease), true),
        (Compare::lease("k2", Equal, 0), true),
        // Every key of a range has to hold.
        (Compare::version("k", Equal, 1).with_prefix(), true),
        (Compare::value("k", Equal, "m").with_prefix(), false),
        (Compare::version("zz", Equal, 0).with_prefix(), true),
    ] {
        let answer = client.txn(Txn::new().when([compare.clone()])).await.unwrap();
        assert_eq!(answer.succeeded(), expected, "{compare:?}");
    }
}

async fn transactions_read_their_own_writes(mut client: Client) {
    fill(&mut client, &["t/a", "t/b"]).await;
    let before = client.get("t/a", None).await.unwrap().header().unwrap().revision();
    let all = || TxnOp::get("t/", Some(GetOptions::new().with_prefix()));
    let txn = Txn::new().and_then([
        all(),
        TxnOp::put("t/c", "new", Some(PutOptions::new().with_prev_key())),
        TxnOp::delete("t/a", Some(DeleteOptions::new().with_prev_key())),
        all(),
    ]);
    let answer = client.txn(txn).await.unwrap();
    assert!(answer.succeeded());
    assert_eq!(answer.header().unwrap().revision(), before + 1);
    let read = |response: &TxnOpResponse| match response {
        TxnOpResponse::Get(get) => get.kvs().iter().map(|kv| text(kv.key()).to_owned()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let responses = answer.op_responses();
    assert_eq!(read(&responses[0]), ["t/a", "t/b"]);
    assert_eq!(read(&responses[3]), ["t/b", "t/c"]);
    let TxnOpResponse::Delete(gone) = &responses[2] else { panic!("{:?}", responses[2]) };
    assert_eq!((gone.deleted(), gone.prev_kvs()[0].value()), (1, &b"vt/a"[..]));
    let kv = client.get("t/c", None).await.unwrap().kvs()[0].clone();
    assert_eq!((kv.create_revision(), kv.mod_revision(), kv.version()), (before + 1, before + 1, 1));
}

async fn transactions_nest(mut client: Client) {
    let inner = Txn::new()
        .when([Compare::version("x", CompareOp::Equal, 0)])
        .and_then([TxnOp::put("x", "inner", None)])
        .or_else([TxnOp::get("x", None)]);
    for (round, made) in [(0, true), (1, false)] {
        let outer = Txn::new().and_then([TxnOp::put("y", "outer", None), TxnOp::txn(inner.clone())]);
        let answer = client.txn(outer).await.unwrap();
        let responses = answer.op_responses();
        let TxnOpResponse::Txn(nested) = &responses[1] else { panic!("{:?}", responses[1]) };
        assert_eq!(nested.succeeded(), made, "round {round}");
    }
    assert_eq!(client.get("x", None).await.unwrap().kvs()[0].version(), 1);
    assert_eq!(client.get("y", None).await.unwrap().kvs()[0].version(), 2);
}

async fn refusals_have_their_words(mut client: Client) {
    fn refused<T: std::fmt::Debug>(answer: Result<T, etcd_client::Error>, code: i32, words: &str) {
        match answer {
            Err(etcd_client::Error::GRpcStatus(status)) => {
                assert_eq!((status.code() as i32, status.message()), (code, words));
            }
            other => panic!("{words}: {other:?}"),
        }
    }
    const INVALID: i32 = 3;
    refused(client.put("", "x", None).await, INVALID, "etcdserver: key is not provided");
    refused(client.get("", None).await, INVALID, "etcdserver: key is not provided");
    let ignore = Some(PutOptions::new().with_ignore_value());
    refused(client.put("none", "", ignore.clone()).await, INVALID, "etcdserver: key not found");
    refused(client.put("none", "x", ignore).await, INVALID, "etcdserver: value is provided");
    let lease = || Some(PutOptions::new().with_lease(99));
    refused(client.put("k", "x", lease()).await, 5, "etcdserver: requested lease not found");
    let leased = Txn::new().and_then([TxnOp::put("k", "x", lease())]);
    refused(client.txn(leased).await, 5, "etcdserver: requested lease not found");
    refused(client.lease_revoke(99).await, 5, "etcdserver: requested lease not found");
    refused(client.lease_grant(9_000_000_001, None).await, 11, "etcdserver: too large lease TTL");
    let future = Some(GetOptions::new().with_revision(1000));
    refused(client.get("k", future).await, 11, "etcdserver: mvcc: required revision is a future revision");
    refused(client.compact(1000, None).await, 11, "etcdserver: mvcc: required revision is a future revision");
    let twice = || Txn::new().and_then([TxnOp::put("k", "1", None), TxnOp::put("k", "2", None)]);
    refused(client.txn(twice()).await, INVALID, "etcdserver: duplicate key given in txn request");
    let covered = Txn::new()
        .and_then([TxnOp::delete("p", Some(DeleteOptions::new().with_prefix())), TxnOp::put("p/1", "", None)]);
    refused(client.txn(covered).await, INVALID, "etcdserver: duplicate key given in txn request");
    let nested =
        Txn::new().and_then([TxnOp::put("k", "1", None), TxnOp::txn(Txn::new().or_else([TxnOp::put("k", "2", None)]))]);
    refused(client.txn(nested).await, INVALID, "etcdserver: duplicate key given in txn request");
    let branches = Txn::new().and_then([TxnOp::put("k", "1", None)]).or_else([TxnOp::put("k", "2", None)]);
    assert!(client.txn(branches).await.is_ok(), "only one of the branches is taken");
    let many: Vec<_> = (0..129).map(|i| TxnOp::put(format!("{i}"), "", None)).collect();
    refused(client.txn(Txn::new().and_then(many)).await, INVALID, "etcdserver: too many operations in txn request");
    let most: Vec<_> = (0..128).map(|i| TxnOp::put(format!("{i}"), "", None)).collect();
    assert!(client.txn(Txn::new().and_then(most)).await.is_ok());
}

async fn compaction_is_refused_twice(mut client: Client) {
    fill(&mut client, &["a", "b", "a", "c", "a"]).await;
    client.compact(4, None).await.unwrap();
    for (revision, words) in [
        (4, "etcdserver: mvcc: required revision has been compacted"),
        (2, "etcdserver: mvcc: required revision has been compacted"),
        (99, "etcdserver: mvcc: required revision is a future revision"),
    ] {
        match client.compact(revision, None).await {
            Err(etcd_client::Error::GRpcStatus(status)) => assert_eq!(status.message(), words, "{revision}"),
            other => panic!("{revision}: {other:?}"),
        }
    }
    let at = |revision| Some(GetOptions::new().with_revision(revision));
    assert!(client.get("a", at(4)).await.is_ok());
    assert!(client.get("a", at(3)).await.unwrap_err().to_string().contains("has been compacted"));
    let mut watch = client.watch("a", Some(WatchOptions::new().with_start_revision(2))).await.unwrap();
    loop {
        let response = watch.message().await.unwrap().unwrap();
        if response.created() && !response.canceled() {
            continue;
        }
        assert!(response.canceled() && response.compact_revision() >= 4, "{response:?}");
        break;
    }
}

async fn watches_share_a_stream(mut client: Client) {
    let mut stream = client.watch("w/1", Some(WatchOptions::new().with_watch_id(7))).await.unwrap();
    assert!(stream.message().await.unwrap().unwrap().created());
    stream.watch("w/", Some(WatchOptions::new().with_prefix().with_prev_key().with_watch_id(9))).await.unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().watch_id(), 9);
    // A name in use is refused, and hurts nobody.
    stream.watch("w/", Some(WatchOptions::new().with_watch_id(9))).await.unwrap();
    let twice = stream.message().await.unwrap().unwrap();
    assert!(twice.canceled() && twice.watch_id() == -1, "{twice:?}");
    fill(&mut client, &["w/1", "w/2", "v"]).await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let response = stream.message().await.unwrap().unwrap();
        for event in response.events() {
            seen.push((response.watch_id(), text(event.kv().unwrap().key()).to_owned()));
        }
    }
    seen.sort();
    assert_eq!(seen, [(7, "w/1".to_owned()), (9, "w/1".to_owned()), (9, "w/2".to_owned())]);
    stream.cancel(7).await.unwrap();
    let cancelled = stream.message().await.unwrap().unwrap();
    assert!(cancelled.canceled() && cancelled.watch_id() == 7);
    client.put("w/1", "again", None).await.unwrap();
    let response = stream.message().await.unwrap().unwrap();
    assert_eq!(response.watch_id(), 9);
    let event = &response.events()[0];
    assert_eq!((event.kv().unwrap().value(), event.prev_kv().unwrap().value()), (&b"again"[..], &b"vw/1"[..]));
}

/// Reads events of a stream until there are so many.
async fn events(stream: &mut etcd_client::WatchStream, most: usize) -> Vec<(EventType, String, i64)> {
    let mut seen = Vec::new();
    while seen.len() < most {
        let response = tokio::time::timeout(Duration::from_secs(10), stream.message()).await.unwrap().unwrap().unwrap();
        for event in response.events() {
            let kv = event.kv().unwrap();
            seen.push((event.event_type(), text(kv.key()).to_owned(), kv.mod_revision()));
        }
    }
    seen
}

async fn watches_begin_anywhere(mut client: Client) {
    fill(&mut client, &["a", "b", "c"]).await;
    let now = client.get("c", None).await.unwrap().header().unwrap().revision();
    let from = |revision| Some(WatchOptions::new().with_all_keys().with_start_revision(revision));
    let mut past = client.watch("", from(3)).await.unwrap();
    assert_eq!(events(&mut past, 2).await, [(EventType::Put, "b".into(), 3), (EventType::Put, "c".into(), 4)]);
    // A start that lies ahead keeps silent until then.
    let mut ahead = client.watch("", from(now + 3)).await.unwrap();
    assert!(ahead.message().await.unwrap().unwrap().created());
    fill(&mut client, &["d", "e", "f", "g"]).await;
    let expected = [(EventType::Put, "f".to_owned(), now + 3), (EventType::Put, "g".to_owned(), now + 4)];
    assert_eq!(events(&mut ahead, 2).await, expected);
    assert_eq!(events(&mut past, 4).await.last(), Some(&expected[1]));
}

async fn watches_filter(mut client: Client) {
    let without = |filter| Some(WatchOptions::new().with_all_keys().with_filters([filter]));
    let mut deletes = client.watch("", without(WatchFilterType::NoPut)).await.unwrap();
    let mut puts = client.watch("", without(WatchFilterType::NoDelete)).await.unwrap();
    assert!(deletes.message().await.unwrap().unwrap().created());
    assert!(puts.message().await.unwrap().unwrap().created());
    client.put("a", "", None).await.unwrap();
    client.delete("a", None).await.unwrap();
    client.put("b", "", None).await.unwrap();
    assert_eq!(events(&mut deletes, 1).await, [(EventType::Delete, "a".into(), 3)]);
    assert_eq!(events(&mut puts, 2).await, [(EventType::Put, "a".into(), 2), (EventType::Put, "b".into(), 4)]);
}

async fn progress_comes_after_events(mut client: Client) {
    let mut stream = client.watch("p/", Some(WatchOptions::new().with_prefix())).await.unwrap();
    assert!(stream.message().await.unwrap().unwrap().created());
    for i in 0..20 {
        client.put(format!("p/{i}"), "", None).await.unwrap();
    }
    events(&mut stream, 20).await;
    client.put("q", "", None).await.unwrap();
    let now = client.get("q", None).await.unwrap().header().unwrap().revision();
    // etcd leaves the question open while it catches up: put it again.
    let reached = loop {
        stream.request_progress().await.unwrap();
        if let Ok(response) = tokio::time::timeout(Duration::from_millis(500), stream.message()).await {
            let response = response.unwrap().unwrap();
            assert!(response.events().is_empty());
            break response.header().unwrap().revision();
        }
    };
    assert_eq!(reached, now);
}

async fn leases_are_named_and_looked_at(mut client: Client) {
    let named = Some(LeaseGrantOptions::new().with_id(0x1234));
    assert_eq!(client.lease_grant(60, named.clone()).await.unwrap().id(), 0x1234);
    match client.lease_grant(60, named).await {
        Err(etcd_client::Error::GRpcStatus(status)) => {
            assert_eq!((status.code() as i32, status.message()), (9, "etcdserver: lease already exists"));
        }
        other => panic!("{other:?}"),
    }
    let other = client.lease_grant(100, None).await.unwrap().id();
    for key in ["l/b", "l/a"] {
        client.put(key, "", Some(PutOptions::new().with_lease(0x1234))).await.unwrap();
    }
    let look = Some(LeaseTimeToLiveOptions::new().with_keys());
    let found = client.lease_time_to_live(0x1234, look).await.unwrap();
    assert_eq!(found.granted_ttl(), 60);
    assert!((55..=60).contains(&found.ttl()), "{}", found.ttl());
    let mut attached: Vec<_> = found.keys().iter().map(|key| text(key).to_owned()).collect();
    attached.sort();
    assert_eq!(attached, ["l/a", "l/b"]);
    let mut all: Vec<_> = client.leases().await.unwrap().leases().iter().map(|lease| lease.id()).collect();
    all.sort();
    let mut expected = [0x1234, other];
    expected.sort();
    assert_eq!(all, expected);
    let (mut keeper, mut answers) = client.lease_keep_alive(other).await.unwrap();
    keeper.keep_alive().await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 100);
    client.lease_revoke(0x1234).await.unwrap();
    assert_eq!(client.get("l/", Some(GetOptions::new().with_prefix())).await.unwrap().count(), 0);
    assert_eq!(client.lease_time_to_live(0x1234, None).await.unwrap().ttl(), -1);
}

async fn keys_are_bytes(mut client: Client) {
    let stored: [&[u8]; 5] = [b"b/\x00", b"b/\x80\xff", b"b/a", b"b/\xc3(", b"b/\xfe\x91\x02"];
    for key in stored {
        client.put(key, key, None).await.unwrap();
    }
    let mut sorted = stored.to_vec();
    sorted.sort();
    let all = client.get("b/", Some(GetOptions::new().with_prefix())).await.unwrap();
    assert_eq!(all.kvs().iter().map(|kv| kv.key()).collect::<Vec<_>>(), sorted);
    assert!(all.kvs().iter().all(|kv| kv.key() == kv.value()));
    let one = client.get(b"b/\x80\xff".as_slice(), None).await.unwrap();
    assert_eq!(one.kvs()[0].key(), b"b/\x80\xff");
    assert_eq!(
        client.delete(b"b/\x80".as_slice(), Some(DeleteOptions::new().with_prefix())).await.unwrap().deleted(),
        1
    );
}

async fn large_requests_are_refused(mut client: Client) {
    client.put("fits", vec![b'x'; (3 << 19) - 1024], None).await.unwrap();
    match client.put("large", vec![b'x'; (3 << 19) + 1024], None).await {
        Err(etcd_client::Error::GRpcStatus(status)) => {
            assert_eq!((status.code() as i32, status.message()), (3, "etcdserver: request is too large"));
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
    // Beyond what a message may have at all: another refusal, and the connection stays.
    assert!(client.put("larger", vec![b'x'; 3 << 20], None).await.is_err());
    assert_eq!(client.get("fits", None).await.unwrap().kvs()[0].value().len(), (3 << 19) - 1024);
}

#[tokio::test]
async fn progress_is_told_from_time_to_time() {
    let options = serve::Options { progress_interval: Duration::from_millis(20), ..serve::Options::default() };
    let served = Served::with(embedded::Options::default(), options).await;
    let mut client = served.client().await;
    let options = WatchOptions::new().with_prefix().with_progress_notify();
    let mut stream = client.watch("quiet/", Some(options)).await.unwrap();
    assert!(stream.message().await.unwrap().unwrap().created());
    let revision = client.put("loud", "", None).await.unwrap().header().unwrap().revision();
    loop {
        let response = stream.message().await.unwrap().unwrap();
        assert!(response.events().is_empty() && !response.canceled());
        if response.header().unwrap().revision() == revision {
            return;
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_hurts_nobody() {
    // So little history that the sleeper falls out of it.
    let options = embedded::Options { history_changes: 500, ..embedded::Options::default() };
    let served = Served::with(options, serve::Options::default()).await;
    let mut sleeper = served.client().await;
    let mut asleep = sleeper.watch("s/", Some(WatchOptions::new().with_prefix())).await.unwrap();
    assert!(asleep.message().await.unwrap().unwrap().created());
    let (mut writer, mut reader) = (served.client().await, served.client().await);
    let mut awake = reader.watch("s/", Some(WatchOptions::new().with_prefix())).await.unwrap();
    assert!(awake.message().await.unwrap().unwrap().created());
    let value = vec![b'x'; 20 << 10];
    const WRITES: usize = 1500;
    let reading = tokio::spawn(async move { events(&mut awake, WRITES).await });
    for i in 0..WRITES {
        writer.put(format!("s/{}", i % 10), value.clone(), None).await.unwrap();
    }
    let seen = tokio::time::timeout(Duration::from_secs(20), reading).await.unwrap().unwrap();
    assert_eq!(seen.len(), WRITES);
    assert!(seen.windows(2).all(|pair| pair[1].2 == pair[0].2 + 1), "all, once, in order");
    // It gets what was on the way to it, in order, and is then told that the rest is gone.
    let mut last = None;
    let compacted = loop {
        let response = asleep.message().await.unwrap().unwrap();
        for event in response.events() {
            let revision = event.kv().unwrap().mod_revision();
            assert!(last.is_none_or(|last| revision == last + 1));
            last = Some(revision);
        }
        if response.canceled() {
            break response.compact_revision();
        }
    };
    assert!(compacted > last.unwrap() + 1 && compacted <= seen[WRITES - 1].2, "{compacted}");
    // From there it can go on.
    let options = WatchOptions::new().with_prefix().with_start_revision(compacted);
    let mut again = sleeper.watch("s/", Some(options)).await.unwrap();
    let rest = (seen[WRITES - 1].2 - compacted + 1) as usize;
    assert_eq!(events(&mut again, rest).await[0].2, compacted);
}

#[tokio::test]
async fn watches_on_a_stream_are_counted() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let mut stream = client.watch("k", None).await.unwrap();
    assert!(stream.message().await.unwrap().unwrap().created());
    const MOST: i64 = 10_000;
    let mut refused = 0;
    for batch in 0..=MOST / 100 {
        for _ in 0..100 {
            stream.watch("k", None).await.unwrap();
        }
        for _ in 0..100 {
            let response = stream.message().await.unwrap().unwrap();
            assert!(response.created(), "{batch}: {response:?}");
            refused += i64::from(response.canceled());
        }
    }
    assert_eq!(refused, 101, "one watch was there before");
}

#[tokio::test]
async fn large_revisions_come_in_fragments() {
    let served = Served::start().await;
    let mut client = served.client().await;
    let options = || WatchOptions::new().with_prefix().with_prev_key();
    let mut pieces = client.watch("f/", Some(options().with_fragment())).await.unwrap();
    assert!(pieces.message().await.unwrap().unwrap().created());
    let value = vec![b'x'; 1 << 20];
    for i in 0..5 {
        client.put(format!("f/{i}"), value.clone(), None).await.unwrap();
    }
    // One revision of five megabytes.
    client.delete("f/", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    let (mut puts, mut deletes, mut fragments) = (0, 0, 0);
    while deletes < 5 {
        let response = pieces.message().await.unwrap().unwrap();
        let here = response.events().iter().filter(|event| event.event_type() == EventType::Delete).count();
        puts += response.events().len() - here;
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
    let mut client = Client::connect([&endpoint], None).await.unwrap();
    let mut stream = client.watch("k", None).await.unwrap();
    assert!(stream.message().await.unwrap().unwrap().created());
    stop.send(()).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(3), stream.message()).await.unwrap();
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
    // Without a scheme: this client's status calls put the endpoint as it is where a host has to be.
    let endpoint = served.endpoint.trim_start_matches("http://").to_owned();
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
        ("user list", "", "Unimplemented"),
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
