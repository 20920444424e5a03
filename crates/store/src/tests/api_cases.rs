//! What the etcd API answers, case by case: each runs on a real etcd and on the served store, see `served`.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tonic::{Code, Status};

use super::ask::{self, Watches};
use crate::etcd::wire::{Call, Connection};
use crate::etcdserverpb::compare::CompareResult::{Equal, Greater, Less, NotEqual};
use crate::etcdserverpb::compare::TargetUnion::{CreateRevision, Lease, ModRevision, Value, Version};
use crate::etcdserverpb::event::EventType;
use crate::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::etcdserverpb::response_op::Response;
use crate::etcdserverpb::watch_create_request::FilterType;
use crate::etcdserverpb::{self as pb};

pub type Case = fn(Connection) -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub const ALL: &[(&str, Case)] = &[$((stringify!($name), |client| Box::pin($name(client)))),*];
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

/// An answer that has to come.
pub async fn ok<C: Call>(client: &Connection, request: C) -> C::Answer {
    client.call(request).await.unwrap()
}

async fn fill(client: &Connection, keys: &[&'static str]) {
    for key in keys {
        ok(client, ask::put(*key, format!("v{key}"))).await;
    }
}

/// The newest version of a key.
async fn kv(client: &Connection, key: &'static str) -> pb::KeyValue {
    ok(client, ask::get(key)).await.kvs.remove(0)
}

async fn keys(client: &Connection, request: pb::RangeRequest) -> Vec<String> {
    ok(client, request).await.kvs.iter().map(|kv| text(&kv.key)).collect()
}

async fn now(client: &Connection) -> i64 {
    ok(client, ask::get("any")).await.header.unwrap().revision
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, words: &str) {
    match answer {
        Err(status) => assert_eq!((status.code(), status.message()), (code, words)),
        Ok(answer) => panic!("{words}: {answer:?}"),
    }
}

fn leased(put: pb::PutRequest, lease: i64) -> pb::PutRequest {
    pb::PutRequest { lease, ..put }
}

async fn grant(client: &Connection) -> i64 {
    ok(client, pb::LeaseGrantRequest { ttl: 100, id: 0 }).await.id
}

async fn puts_tell_what_was(client: Connection) {
    let told = |value: &'static str| pb::PutRequest { prev_kv: true, ..ask::put("k", value) };
    let first = ok(&client, told("1")).await;
    assert!(first.prev_kv.is_none());
    let previous = ok(&client, told("2")).await.prev_kv.unwrap();
    assert_eq!((&*previous.value, previous.version), (&b"1"[..], 1));
    assert_eq!(previous.mod_revision, first.header.unwrap().revision);
    let kept = ok(&client, pb::PutRequest { ignore_value: true, ..ask::put("k", "") }).await;
    let found = kv(&client, "k").await;
    let revision = kept.header.unwrap().revision;
    assert_eq!((&*found.value, found.version, found.mod_revision), (&b"2"[..], 3, revision));
    let lease = grant(&client).await;
    ok(&client, leased(ask::put("k", "3"), lease)).await;
    ok(&client, pb::PutRequest { ignore_lease: true, ..ask::put("k", "4") }).await;
    assert_eq!(kv(&client, "k").await.lease, lease);
    ok(&client, ask::put("k", "5")).await;
    assert_eq!(kv(&client, "k").await.lease, 0);
}

async fn ranges_are_picked_and_ordered(client: Connection) {
    fill(&client, &["a", "b", "c", "d"]).await;
    ok(&client, ask::put("b", "first")).await;
    let all = || ask::get_all("");
    let until = |from: &'static str, end: &'static str| pb::RangeRequest { range_end: end.into(), ..ask::get(from) };
    assert_eq!(keys(&client, all()).await, ["a", "b", "c", "d"]);
    assert_eq!(keys(&client, until("c", "\0")).await, ["c", "d"]);
    assert_eq!(keys(&client, until("b", "d")).await, ["b", "c"]);
    assert_eq!(keys(&client, until("d", "b")).await, [""; 0]);
    for (target, order, expected) in [
        (SortTarget::Key, SortOrder::Descend, ["d", "c", "b", "a"]),
        (SortTarget::Mod, SortOrder::Ascend, ["a", "c", "d", "b"]),
        (SortTarget::Create, SortOrder::Descend, ["d", "c", "b", "a"]),
        (SortTarget::Version, SortOrder::Descend, ["b", "d", "c", "a"]),
        (SortTarget::Value, SortOrder::Ascend, ["b", "a", "c", "d"]),
    ] {
        let request = pb::RangeRequest { sort_target: target.into(), sort_order: order.into(), ..all() };
        let sorted = keys(&client, request).await;
        if target == SortTarget::Version {
            // The rest is alike: any order will do.
            assert_eq!(sorted[0], "b");
        } else {
            assert_eq!(sorted, expected, "{target:?} {order:?}");
        }
    }
    let page = ok(&client, pb::RangeRequest { limit: 3, ..all() }).await;
    assert_eq!((page.kvs.len(), page.more, page.count), (3, true, 4));
    let count = ok(&client, pb::RangeRequest { count_only: true, ..all() }).await;
    assert_eq!((count.kvs.len(), count.count, count.more), (0, 4, false));
    let bare = ok(&client, pb::RangeRequest { keys_only: true, ..all() }).await;
    assert!(bare.kvs.iter().all(|kv| kv.value.is_empty() && kv.mod_revision > 0));
    let now = page.header.unwrap().revision;
    assert_eq!(keys(&client, pb::RangeRequest { min_mod_revision: now, ..all() }).await, ["b"]);
    assert_eq!(keys(&client, pb::RangeRequest { max_create_revision: 3, ..all() }).await, ["a", "b"]);
    let past = ok(&client, pb::RangeRequest { revision: now - 1, ..ask::get("b") }).await;
    assert_eq!((&*past.kvs[0].value, past.header.unwrap().revision), (&b"vb"[..], now));
}

async fn deletes_take_ranges(client: Connection) {
    fill(&client, &["p/1", "p/2", "p/3", "q"]).await;
    let before = now(&client).await;
    let gone = ok(&client, pb::DeleteRangeRequest { prev_kv: true, ..ask::delete_all("p/") }).await;
    assert_eq!((gone.deleted, gone.header.unwrap().revision), (3, before + 1));
    assert_eq!(gone.prev_kvs.iter().map(|kv| text(&kv.value)).collect::<Vec<_>>(), ["vp/1", "vp/2", "vp/3"]);
    let none = ok(&client, ask::delete_all("p/")).await;
    assert_eq!((none.deleted, none.header.unwrap().revision), (0, before + 1));
    // More than one transaction may name.
    for i in 0..300 {
        ok(&client, ask::put(format!("m/{i}"), "")).await;
    }
    assert_eq!(ok(&client, ask::delete_all("m/")).await.deleted, 300);
    assert_eq!(keys(&client, ask::get_all("")).await, ["q"]);
}

async fn transactions_compare_anything(client: Connection) {
    let lease = grant(&client).await;
    ok(&client, leased(ask::put("k", "m"), lease)).await;
    let modified = kv(&client, "k").await.mod_revision;
    ok(&client, ask::put("k2", "n")).await;
    for (compare, expected) in [
        (ask::compare("k", Equal, Version(1)), true),
        (ask::compare("k", Greater, Version(1)), false),
        (ask::compare("none", Equal, Version(0)), true),
        (ask::compare("k", Equal, Value("m".into())), true),
        (ask::compare("k", Less, Value("n".into())), true),
        (ask::compare("k", NotEqual, Value("m".into())), false),
        // What does not exist has no value to compare.
        (ask::compare("none", NotEqual, Value("m".into())), false),
        (ask::compare("k", Equal, ModRevision(modified)), true),
        (ask::compare("k", Greater, ModRevision(modified)), false),
        (ask::compare("none", Equal, ModRevision(0)), true),
        (ask::compare("k", Less, CreateRevision(modified + 1)), true),
        (ask::compare("none", NotEqual, CreateRevision(0)), false),
        (ask::compare("k", Equal, Lease(lease)), true),
        (ask::compare("k2", Equal, Lease(0)), true),
        // Every key of a range has to hold.
        (ask::of_all(ask::compare("k", Equal, Version(1))), true),
        (ask::of_all(ask::compare("k", Equal, Value("m".into()))), false),
        (ask::of_all(ask::compare("zz", Equal, Version(0))), true),
    ] {
        let answer = ok(&client, pb::TxnRequest { compare: vec![compare.clone()], ..Default::default() }).await;
        assert_eq!(answer.succeeded, expected, "{compare:?}");
    }
}

async fn transactions_read_their_own_writes(client: Connection) {
    fill(&client, &["t/a", "t/b"]).await;
    let before = now(&client).await;
    let txn = ask::txn([
        ask::get_all("t/").into(),
        pb::PutRequest { prev_kv: true, ..ask::put("t/c", "new") }.into(),
        pb::DeleteRangeRequest { prev_kv: true, ..ask::delete("t/a") }.into(),
        ask::get_all("t/").into(),
    ]);
    let answer = ok(&client, txn).await;
    assert!(answer.succeeded);
    assert_eq!(answer.header.unwrap().revision, before + 1);
    let read = |i: usize| match &answer.responses[i].response {
        Some(Response::ResponseRange(found)) => found.kvs.iter().map(|kv| text(&kv.key)).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(read(0), ["t/a", "t/b"]);
    assert_eq!(read(3), ["t/b", "t/c"]);
    let Some(Response::ResponseDeleteRange(gone)) = &answer.responses[2].response else {
        panic!("{:?}", answer.responses[2])
    };
    assert_eq!((gone.deleted, &*gone.prev_kvs[0].value), (1, &b"vt/a"[..]));
    let made = kv(&client, "t/c").await;
    assert_eq!((made.create_revision, made.mod_revision, made.version), (before + 1, before + 1, 1));
}

async fn transactions_nest(client: Connection) {
    let inner = pb::TxnRequest {
        compare: vec![ask::compare("x", Equal, Version(0))],
        success: vec![ask::put("x", "inner").into()],
        failure: vec![ask::get("x").into()],
    };
    for (round, made) in [(0, true), (1, false)] {
        let answer = ok(&client, ask::txn([ask::put("y", "outer").into(), inner.clone().into()])).await;
        let Some(Response::ResponseTxn(nested)) = &answer.responses[1].response else {
            panic!("{:?}", answer.responses[1])
        };
        assert_eq!(nested.succeeded, made, "round {round}");
    }
    assert_eq!(kv(&client, "x").await.version, 1);
    assert_eq!(kv(&client, "y").await.version, 2);
}

async fn refusals_have_their_words(client: Connection) {
    use Code::{InvalidArgument, NotFound, OutOfRange};
    let ask = async |request: pb::PutRequest| client.call(request).await;
    refused(ask(ask::put("", "x")).await, InvalidArgument, "etcdserver: key is not provided");
    refused(client.call(ask::get("")).await, InvalidArgument, "etcdserver: key is not provided");
    let ignoring = |value: &'static str| pb::PutRequest { ignore_value: true, ..ask::put("none", value) };
    refused(ask(ignoring("")).await, InvalidArgument, "etcdserver: key not found");
    refused(ask(ignoring("x")).await, InvalidArgument, "etcdserver: value is provided");
    let lost = || leased(ask::put("k", "x"), 99);
    refused(ask(lost()).await, NotFound, "etcdserver: requested lease not found");
    let txn = async |request: pb::TxnRequest| client.call(request).await;
    refused(txn(ask::txn([lost().into()])).await, NotFound, "etcdserver: requested lease not found");
    let revoked = client.call(pb::LeaseRevokeRequest { id: 99 }).await;
    refused(revoked, NotFound, "etcdserver: requested lease not found");
    let endless = client.call(pb::LeaseGrantRequest { ttl: 9_000_000_001, id: 0 }).await;
    refused(endless, OutOfRange, "etcdserver: too large lease TTL");
    let future = client.call(pb::RangeRequest { revision: 1000, ..ask::get("k") }).await;
    refused(future, OutOfRange, "etcdserver: mvcc: required revision is a future revision");
    let future = client.call(pb::CompactionRequest { revision: 1000, physical: false }).await;
    refused(future, OutOfRange, "etcdserver: mvcc: required revision is a future revision");

    let put = |value: &'static str| pb::RequestOp::from(ask::put("k", value));
    let twice = "etcdserver: duplicate key given in txn request";
    refused(txn(ask::txn([put("1"), put("2")])).await, InvalidArgument, twice);
    let covered = ask::txn([ask::delete_all("p").into(), ask::put("p/1", "").into()]);
    refused(txn(covered).await, InvalidArgument, twice);
    let inner = pb::TxnRequest { failure: vec![put("2")], ..Default::default() };
    refused(txn(ask::txn([put("1"), inner.into()])).await, InvalidArgument, twice);
    let branches = pb::TxnRequest { failure: vec![put("2")], ..ask::txn([put("1")]) };
    assert!(txn(branches).await.is_ok(), "only one of the branches is taken");
    let many = |count: usize| ask::txn((0..count).map(|i| ask::put(format!("{i}"), "").into()));
    refused(txn(many(129)).await, InvalidArgument, "etcdserver: too many operations in txn request");
    assert!(txn(many(128)).await.is_ok());
}

async fn compaction_is_refused_twice(client: Connection) {
    fill(&client, &["a", "b", "a", "c", "a"]).await;
    let compaction = |revision| pb::CompactionRequest { revision, physical: false };
    ok(&client, compaction(4)).await;
    for (revision, words) in [
        (4, "etcdserver: mvcc: required revision has been compacted"),
        (2, "etcdserver: mvcc: required revision has been compacted"),
        (99, "etcdserver: mvcc: required revision is a future revision"),
    ] {
        refused(client.call(compaction(revision)).await, Code::OutOfRange, words);
    }
    let at = |revision| pb::RangeRequest { revision, ..ask::get("a") };
    assert!(client.call(at(4)).await.is_ok());
    assert!(client.call(at(3)).await.unwrap_err().message().contains("has been compacted"));
    let mut watch = Watches::open(&client, pb::WatchCreateRequest { start_revision: 2, ..ask::watch("a") }).await;
    loop {
        let response = watch.next().await;
        if response.created && !response.canceled {
            continue;
        }
        assert!(response.canceled && response.compact_revision >= 4, "{response:?}");
        break;
    }
}

async fn watches_share_a_stream(client: Connection) {
    let named = |create, watch_id| pb::WatchCreateRequest { watch_id, prev_kv: true, ..create };
    let mut stream = Watches::created(&client, named(ask::watch("w/1"), 7)).await;
    stream.add(named(ask::watch_all("w/"), 9)).await;
    assert_eq!(stream.next().await.watch_id, 9);
    // A name in use is refused, and hurts nobody.
    stream.add(named(ask::watch("w/"), 9)).await;
    let twice = stream.next().await;
    assert!(twice.canceled && twice.watch_id == -1, "{twice:?}");
    fill(&client, &["w/1", "w/2", "v"]).await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let response = stream.next().await;
        for event in response.events {
            seen.push((response.watch_id, text(&event.kv.unwrap().key)));
        }
    }
    seen.sort();
    assert_eq!(seen, [(7, "w/1".to_owned()), (9, "w/1".to_owned()), (9, "w/2".to_owned())]);
    stream.cancel(7).await;
    let cancelled = stream.next().await;
    assert!(cancelled.canceled && cancelled.watch_id == 7);
    ok(&client, ask::put("w/1", "again")).await;
    let mut response = stream.next().await;
    assert_eq!(response.watch_id, 9);
    let event = response.events.remove(0);
    assert_eq!((&*event.kv.unwrap().value, &*event.prev_kv.unwrap().value), (&b"again"[..], &b"vw/1"[..]));
}

/// Reads events of a stream until there are so many.
pub async fn events(stream: &mut Watches, most: usize) -> Vec<(EventType, String, i64)> {
    let mut seen = Vec::new();
    while seen.len() < most {
        for event in stream.next().await.events {
            let kind = event.r#type();
            let kv = event.kv.unwrap();
            seen.push((kind, text(&kv.key), kv.mod_revision));
        }
    }
    seen
}

async fn watches_begin_anywhere(client: Connection) {
    fill(&client, &["a", "b", "c"]).await;
    let now = now(&client).await;
    let from = |start_revision| pb::WatchCreateRequest { start_revision, ..ask::watch_all("") };
    let mut past = Watches::open(&client, from(3)).await;
    assert_eq!(events(&mut past, 2).await, [(EventType::Put, "b".into(), 3), (EventType::Put, "c".into(), 4)]);
    // A start that lies ahead keeps silent until then.
    let mut ahead = Watches::created(&client, from(now + 3)).await;
    fill(&client, &["d", "e", "f", "g"]).await;
    let expected = [(EventType::Put, "f".to_owned(), now + 3), (EventType::Put, "g".to_owned(), now + 4)];
    assert_eq!(events(&mut ahead, 2).await, expected);
    assert_eq!(events(&mut past, 4).await.last(), Some(&expected[1]));
}

async fn watches_filter(client: Connection) {
    let without = |filter: FilterType| pb::WatchCreateRequest { filters: vec![filter.into()], ..ask::watch_all("") };
    let mut deletes = Watches::created(&client, without(FilterType::Noput)).await;
    let mut puts = Watches::created(&client, without(FilterType::Nodelete)).await;
    ok(&client, ask::put("a", "")).await;
    ok(&client, ask::delete("a")).await;
    ok(&client, ask::put("b", "")).await;
    assert_eq!(events(&mut deletes, 1).await, [(EventType::Delete, "a".into(), 3)]);
    assert_eq!(events(&mut puts, 2).await, [(EventType::Put, "a".into(), 2), (EventType::Put, "b".into(), 4)]);
}

async fn progress_comes_after_events(client: Connection) {
    let mut stream = Watches::created(&client, ask::watch_all("p/")).await;
    for i in 0..20 {
        ok(&client, ask::put(format!("p/{i}"), "")).await;
    }
    events(&mut stream, 20).await;
    let written = ok(&client, ask::put("q", "")).await.header.unwrap().revision;
    // etcd leaves the question open while it catches up: put it again.
    let reached = loop {
        stream.request_progress().await;
        if let Ok(response) = tokio::time::timeout(Duration::from_millis(500), stream.answers.message()).await {
            let response = response.unwrap().unwrap();
            assert!(response.events.is_empty());
            break response.header.unwrap().revision;
        }
    };
    assert_eq!(reached, written);
}

async fn leases_are_named_and_looked_at(client: Connection) {
    const NAME: i64 = 0x1234;
    let named = pb::LeaseGrantRequest { ttl: 60, id: NAME };
    assert_eq!(ok(&client, named).await.id, NAME);
    refused(client.call(named).await, Code::FailedPrecondition, "etcdserver: lease already exists");
    let other = grant(&client).await;
    for key in ["l/b", "l/a"] {
        ok(&client, leased(ask::put(key, ""), NAME)).await;
    }
    let found = ok(&client, pb::LeaseTimeToLiveRequest { id: NAME, keys: true }).await;
    assert_eq!(found.granted_ttl, 60);
    assert!((55..=60).contains(&found.ttl), "{}", found.ttl);
    let mut attached: Vec<_> = found.keys.iter().map(|key| text(key)).collect();
    attached.sort();
    assert_eq!(attached, ["l/a", "l/b"]);
    let all = ok(&client, pb::LeaseLeasesRequest {}).await;
    let mut all: Vec<_> = all.leases.iter().map(|lease| lease.id).collect();
    all.sort();
    let mut expected = [NAME, other];
    expected.sort();
    assert_eq!(all, expected);
    let keeping = futures::stream::iter([pb::LeaseKeepAliveRequest { id: other }]);
    let mut answers = client.stream(keeping).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl, 100);
    ok(&client, pb::LeaseRevokeRequest { id: NAME }).await;
    assert_eq!(ok(&client, ask::get_all("l/")).await.count, 0);
    assert_eq!(ok(&client, pb::LeaseTimeToLiveRequest { id: NAME, keys: false }).await.ttl, -1);
}

async fn keys_are_bytes(client: Connection) {
    let stored: [&[u8]; 5] = [b"b/\x00", b"b/\x80\xff", b"b/a", b"b/\xc3(", b"b/\xfe\x91\x02"];
    for key in stored {
        ok(&client, ask::put(key, key)).await;
    }
    let mut sorted = stored.to_vec();
    sorted.sort();
    let all = ok(&client, ask::get_all("b/")).await;
    assert_eq!(all.kvs.iter().map(|kv| &*kv.key).collect::<Vec<_>>(), sorted);
    assert!(all.kvs.iter().all(|kv| kv.key == kv.value));
    let one = ok(&client, ask::get(&b"b/\x80\xff"[..])).await;
    assert_eq!(&*one.kvs[0].key, b"b/\x80\xff");
    assert_eq!(ok(&client, ask::delete_all(&b"b/\x80"[..])).await.deleted, 1);
}

async fn large_requests_are_refused(client: Connection) {
    const FITS: usize = (3 << 19) - 1024;
    ok(&client, ask::put("fits", vec![b'x'; FITS])).await;
    let large = client.call(ask::put("large", vec![b'x'; (3 << 19) + 1024])).await;
    refused(large, Code::InvalidArgument, "etcdserver: request is too large");
    // Beyond what a message may have at all: another refusal, and the connection stays.
    assert!(client.call(ask::put("larger", vec![b'x'; 3 << 20])).await.is_err());
    assert_eq!(kv(&client, "fits").await.value.len(), FITS);
}
