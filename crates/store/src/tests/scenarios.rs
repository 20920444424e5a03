//! The scenarios both backends keep. Each gets an empty store.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;

use super::model::{collect, collect_to};
use super::{at, commit, delete, put};
use crate::{Backend, ChangeKind, Key, LeaseId, MAX_TXN_OPS, Op, StoreError, Txn, TxnOutcome, WatchItem, prefix_end};

type Scenario = fn(Arc<dyn Backend>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        /// All scenarios, by name.
        pub const ALL: &[(&str, Scenario)] = &[$((stringify!($name), |store| Box::pin($name(store)))),*];
    };
}

scenarios![
    an_empty_store_answers,
    writes_count_revisions_and_versions,
    compare_and_swap,
    a_transaction_is_all_or_nothing,
    deletes_of_nothing_change_nothing,
    malformed_transactions_are_refused,
    ranges_are_ordered_and_paged,
    many_keys_are_read_whole,
    reads_at_a_revision,
    compaction_forgets,
    future_revisions_are_refused,
    watch_replays_then_follows,
    watch_of_a_prefix_reports_progress,
    watch_keeps_revisions_whole,
    watchers_see_what_concurrent_writers_wrote,
    concurrent_swaps_have_one_winner,
    revoked_leases_take_their_keys,
    leases_expire,
    leases_are_kept_alive,
    text_is_kept_verbatim,
];

async fn value(store: &dyn Backend, key: &str) -> Option<String> {
    let (kv, _) = store.get(key, None).await.unwrap();
    kv.map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

async fn swap(store: &dyn Backend, compares: Vec<crate::Compare>, ops: Vec<Op>) -> TxnOutcome {
    store.txn(Txn { compares, ops }).await.unwrap()
}

async fn an_empty_store_answers(store: Arc<dyn Backend>) {
    let revision = store.current_revision().await.unwrap();
    assert_eq!(revision, 1, "an empty store stands at a revision that is not 0");
    assert_eq!(store.get("/x", None).await.unwrap(), (None, revision));
    let range = store.range("/", "0", 0, None).await.unwrap();
    assert_eq!((range.items.len(), range.more, range.count), (0, false, 0));
    assert_eq!((range.revision, range.current_revision), (revision, revision));
}

async fn writes_count_revisions_and_versions(store: Arc<dyn Backend>) {
    let first = commit(&*store, vec![put("/k", "1")]).await;
    let other = commit(&*store, vec![put("/other", "x")]).await;
    let second = commit(&*store, vec![put("/k", "2")]).await;
    assert_eq!((other, second), (first + 1, first + 2));
    let (kv, current) = store.get("/k", None).await.unwrap();
    let kv = kv.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (first, second, 2));
    assert_eq!((&*kv.value, current, kv.lease), (&b"2"[..], second, None));
    commit(&*store, vec![delete("/k")]).await;
    let again = commit(&*store, vec![put("/k", "3")]).await;
    let kv = store.get("/k", None).await.unwrap().0.unwrap();
    assert_eq!((kv.create_revision, kv.version), (again, 1), "a key made anew starts anew");
}

async fn compare_and_swap(store: Arc<dyn Backend>) {
    let created = swap(&*store, vec![at("/k", 0)], vec![put("/k", "1")]).await;
    let TxnOutcome::Committed { revision } = created else { panic!("{created:?}") };
    let again = swap(&*store, vec![at("/k", 0)], vec![put("/k", "2")]).await;
    let TxnOutcome::Conflict { current, revision: now } = again else { panic!("{again:?}") };
    assert_eq!(now, revision);
    assert_eq!(current.len(), 1);
    assert_eq!(current[0].as_ref().map(|kv| (&*kv.value, kv.mod_revision)), Some((&b"1"[..], revision)));
    let stale = swap(&*store, vec![at("/k", revision + 7)], vec![put("/k", "2")]).await;
    assert!(matches!(stale, TxnOutcome::Conflict { .. }));
    let right = swap(&*store, vec![at("/k", revision)], vec![put("/k", "2")]).await;
    assert_eq!(right, TxnOutcome::Committed { revision: revision + 1 });
    let gone = swap(&*store, vec![at("/none", 5)], vec![delete("/none")]).await;
    assert_eq!(gone, TxnOutcome::Conflict { current: vec![None], revision: revision + 1 });
}

async fn a_transaction_is_all_or_nothing(store: Arc<dyn Backend>) {
    let a = commit(&*store, vec![put("/a", "1")]).await;
    let failed = swap(&*store, vec![at("/a", a), at("/b", 9)], vec![put("/a", "2"), put("/b", "2")]).await;
    let TxnOutcome::Conflict { current, .. } = failed else { panic!("{failed:?}") };
    assert_eq!(current.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false]);
    assert_eq!(value(&*store, "/a").await.as_deref(), Some("1"));
    let both = swap(&*store, vec![at("/a", a), at("/b", 0)], vec![delete("/a"), put("/b", "2")]).await;
    assert_eq!(both, TxnOutcome::Committed { revision: a + 1 });
    assert_eq!((value(&*store, "/a").await, value(&*store, "/b").await.as_deref()), (None, Some("2")));
}

async fn deletes_of_nothing_change_nothing(store: Arc<dyn Backend>) {
    let revision = commit(&*store, vec![put("/a", "1")]).await;
    assert_eq!(commit(&*store, vec![delete("/none")]).await, revision);
    assert_eq!(commit(&*store, vec![]).await, revision);
    assert_eq!(store.current_revision().await.unwrap(), revision);
    assert_eq!(commit(&*store, vec![delete("/none"), put("/b", "1")]).await, revision + 1);
}

async fn malformed_transactions_are_refused(store: Arc<dyn Backend>) {
    let many = (0..=MAX_TXN_OPS).map(|i| put(&format!("/{i}"), "")).collect();
    let cases = [
        ("an empty key", vec![put("", "x")]),
        ("a key written twice", vec![put("/a", "1"), put("/a", "2")]),
        ("a key written and deleted", vec![put("/a", "1"), delete("/a")]),
        ("too many operations", many),
    ];
    for (what, ops) in cases {
        let refused = store.txn(Txn { compares: Vec::new(), ops }).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{what}: {refused:?}");
    }
    let large = "x".repeat(2 << 20);
    let refused = store.txn(Txn { compares: Vec::new(), ops: vec![put("/large", &large)] }).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
    assert_eq!(commit(&*store, vec![put("/fits", &"x".repeat(1 << 20))]).await, 2);
    let leased = Op::Put { key: Key::from("/l"), value: Bytes::new(), lease: Some(LeaseId(99)) };
    let refused = store.txn(Txn { compares: Vec::new(), ops: vec![leased] }).await;
    assert!(matches!(refused, Err(StoreError::LeaseNotFound(_))), "{refused:?}");
    assert_eq!(store.current_revision().await.unwrap(), 2);
}

async fn ranges_are_ordered_and_paged(store: Arc<dyn Backend>) {
    for key in ["/r/b", "/r/a", "/r/c", "/q/z", "/r0", "/r/aa", "/r/é"] {
        commit(&*store, vec![put(key, key)]).await;
    }
    let current = store.current_revision().await.unwrap();
    let keys = |range: &crate::Range| range.items.iter().map(|kv| kv.key.to_string()).collect::<Vec<_>>();
    let all = store.range("/r/", &prefix_end("/r/"), 0, None).await.unwrap();
    assert_eq!(keys(&all), ["/r/a", "/r/aa", "/r/b", "/r/c", "/r/é"]);
    assert_eq!((all.more, all.count, all.revision), (false, 5, current));
    let page = store.range("/r/", &prefix_end("/r/"), 2, None).await.unwrap();
    assert_eq!((keys(&page), page.more, page.count), (vec!["/r/a".into(), "/r/aa".into()], true, 5));
    // The next page reads the same revision, whatever happens meanwhile.
    commit(&*store, vec![put("/r/ab", "new"), delete("/r/b")]).await;
    let start = format!("{}\0", page.items[1].key);
    let rest = store.range(&start, &prefix_end("/r/"), 0, Some(page.revision)).await.unwrap();
    assert_eq!(keys(&rest), ["/r/b", "/r/c", "/r/é"]);
    assert_eq!((rest.revision, rest.current_revision), (current, current + 1));
    let none = store.range("/z", "/a", 0, None).await.unwrap();
    assert_eq!((none.items.len(), none.count), (0, 0));
}

async fn many_keys_are_read_whole(store: Arc<dyn Backend>) {
    for hundred in 0..23 {
        commit(&*store, (0..100).map(|i| put(&format!("/m/{:05}", hundred * 100 + i), "v")).collect()).await;
    }
    let revision = commit(&*store, vec![put("/other", "")]).await;
    for (limit, expected) in [(0, 2300), (1, 1), (1000, 1000), (1500, 1500), (2300, 2300), (5000, 2300)] {
        let range = store.range("/m/", "/m0", limit, None).await.unwrap();
        assert_eq!((range.items.len(), range.count, range.more), (expected, 2300, expected < 2300), "limit {limit}");
        assert_eq!((range.revision, range.current_revision), (revision, revision));
        for (i, kv) in range.items.iter().enumerate() {
            assert_eq!(*kv.key, *format!("/m/{i:05}"));
        }
    }
}

async fn reads_at_a_revision(store: Arc<dyn Backend>) {
    let first = commit(&*store, vec![put("/k", "1"), put("/stays", "s")]).await;
    let second = commit(&*store, vec![put("/k", "2")]).await;
    let third = commit(&*store, vec![delete("/k")]).await;
    let fourth = commit(&*store, vec![put("/k", "4"), put("/late", "l")]).await;
    let cases = [(first, Some("1"), 2), (second, Some("2"), 2), (third, None, 1), (fourth, Some("4"), 3)];
    for (revision, expected, count) in cases {
        let (kv, current) = store.get("/k", Some(revision)).await.unwrap();
        let got = kv.map(|kv| String::from_utf8(kv.value.to_vec()).unwrap());
        assert_eq!((got.as_deref(), current), (expected, fourth), "at {revision}");
        let range = store.range("/", "0", 0, Some(revision)).await.unwrap();
        assert_eq!((range.count, range.items.len(), range.revision), (count, count as usize, revision));
    }
    let (kv, _) = store.get("/k", Some(0)).await.unwrap();
    assert_eq!(kv.map(|kv| kv.mod_revision), Some(fourth), "revision 0 means now");
}

async fn compaction_forgets(store: Arc<dyn Backend>) {
    let first = commit(&*store, vec![put("/k", "1")]).await;
    let second = commit(&*store, vec![put("/k", "2")]).await;
    let third = commit(&*store, vec![put("/k", "3")]).await;
    store.compact(second).await.unwrap();
    store.compact(second).await.expect("compacting twice does nothing");
    store.compact(first).await.expect("compacting the compacted does nothing");
    let old = store.get("/k", Some(first)).await;
    assert!(matches!(old, Err(StoreError::Compacted { .. })), "{old:?}");
    let old = store.range("/", "0", 0, Some(first)).await;
    assert!(matches!(old, Err(StoreError::Compacted { .. })), "{old:?}");
    let kept = store.get("/k", Some(second)).await.unwrap().0.unwrap();
    assert_eq!((&*kept.value, kept.version), (&b"2"[..], 2));
    let mut watch = match store.watch("/", first - 1).await {
        Ok(watch) => watch,
        Err(e) => return assert!(matches!(e, StoreError::Compacted { .. }), "{e:?}"),
    };
    let refused = watch.next().await;
    assert!(matches!(refused, Some(Err(StoreError::Compacted { .. }))), "{refused:?}");
    assert!(watch.next().await.is_none(), "a watch ends after its error");
    assert_eq!(collect(&*store, "/", second, third).await.len(), 1);
}

async fn future_revisions_are_refused(store: Arc<dyn Backend>) {
    let now = commit(&*store, vec![put("/k", "1")]).await;
    let future = store.get("/k", Some(now + 1)).await;
    assert!(matches!(future, Err(StoreError::FutureRevision { .. })), "{future:?}");
    let future = store.range("/", "0", 0, Some(now + 10)).await;
    assert!(matches!(future, Err(StoreError::FutureRevision { .. })), "{future:?}");
    let future = store.compact(now + 1).await;
    assert!(matches!(future, Err(StoreError::FutureRevision { .. })), "{future:?}");
    let future = store.watch("/", now + 1).await.map(|_| ());
    assert!(matches!(future, Err(StoreError::FutureRevision { .. })), "{future:?}");
}

async fn watch_replays_then_follows(store: Arc<dyn Backend>) {
    let first = commit(&*store, vec![put("/w/a", "1")]).await;
    let second = commit(&*store, vec![put("/w/a", "2")]).await;
    let mut watch = store.watch("/w/", first).await.unwrap();
    let mut seen = Vec::new();
    let next = async |watch: &mut crate::WatchStream| loop {
        let item = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap().unwrap();
        if let WatchItem::Changes(changes) = item {
            return changes;
        }
    };
    seen.extend(next(&mut watch).await.iter().cloned());
    let third = commit(&*store, vec![delete("/w/a")]).await;
    seen.extend(next(&mut watch).await.iter().cloned());
    let revisions: Vec<_> = seen.iter().map(|c| c.revision).collect();
    assert_eq!(revisions, [second, third]);
    assert!(matches!(&seen[0].kind, ChangeKind::Put(kv) if &*kv.value == b"2" && kv.version == 2));
    assert_eq!(seen[0].previous.as_ref().map(|kv| &*kv.value), Some(&b"1"[..]));
    assert_eq!(seen[1].kind, ChangeKind::Delete);
    assert_eq!(seen[1].previous.as_ref().map(|kv| (&*kv.value, kv.mod_revision)), Some((&b"2"[..], second)));
}

async fn watch_of_a_prefix_reports_progress(store: Arc<dyn Backend>) {
    let start = store.current_revision().await.unwrap();
    let mut watch = store.watch("/mine/", start).await.unwrap();
    commit(&*store, vec![put("/mine/a", "1")]).await;
    let last = commit(&*store, vec![put("/theirs/a", "1")]).await;
    let mut changes = 0;
    loop {
        store.request_progress().await.unwrap();
        match tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap().unwrap() {
            WatchItem::Changes(some) => {
                assert!(some.iter().all(|change| &*change.key == "/mine/a"));
                changes += some.len();
            }
            WatchItem::Progress(revision) if revision >= last => break,
            WatchItem::Progress(_) => {}
        }
    }
    assert_eq!(changes, 1, "progress comes after all that it covers");
}

async fn watch_keeps_revisions_whole(store: Arc<dyn Backend>) {
    let before = store.current_revision().await.unwrap();
    // Large enough together that etcd sends the revision in fragments.
    let value = "x".repeat(11 << 10);
    for round in 0..3 {
        let ops = (0..100).map(|i| put(&format!("/w/{round}/{i:03}"), &value)).collect();
        commit(&*store, ops).await;
    }
    let after = commit(&*store, vec![put("/w/end", "")]).await;
    let mut watch = store.watch("/w/", before).await.unwrap();
    let mut reached = before;
    let mut total = 0;
    while reached < after {
        let item = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap().unwrap();
        let WatchItem::Changes(changes) = item else { continue };
        assert!(changes[0].revision > reached, "a revision was split");
        reached = changes[changes.len() - 1].revision;
        total += changes.len();
    }
    assert_eq!(total, 301);
}

async fn watchers_see_what_concurrent_writers_wrote(store: Arc<dyn Backend>) {
    const WRITERS: usize = 8;
    const WRITES: usize = 40;
    let before = store.current_revision().await.unwrap();
    // Where to end is known once all is written.
    let end = Arc::new(AtomicU64::new(u64::MAX));
    let watches: Vec<_> = (0..4)
        .map(|i| {
            let (store, end) = (store.clone(), end.clone());
            let prefix = if i == 0 { "/c/".to_owned() } else { format!("/c/{i}/") };
            let until = move || end.load(Ordering::SeqCst);
            tokio::spawn(async move { collect_to(&*store, &prefix, before, until).await })
        })
        .collect();
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..WRITES {
                commit(&*store, vec![put(&format!("/c/{writer}/{}", n % 7), &n.to_string())]).await;
            }
        })
    });
    futures::future::try_join_all(writers).await.unwrap();
    end.store(store.current_revision().await.unwrap(), Ordering::SeqCst);
    for (i, watch) in watches.into_iter().enumerate() {
        let changes = watch.await.unwrap();
        assert_eq!(changes.len(), if i == 0 { WRITERS * WRITES } else { WRITES });
        assert!(changes.windows(2).all(|pair| pair[0].revision < pair[1].revision));
    }
}

async fn concurrent_swaps_have_one_winner(store: Arc<dyn Backend>) {
    let mut revision = commit(&*store, vec![put("/k", "0")]).await;
    for round in 0..10 {
        let attempts = (0..8).map(|i| {
            let txn = Txn { compares: vec![at("/k", revision)], ops: vec![put("/k", &format!("{round}.{i}"))] };
            store.txn(txn)
        });
        let outcomes = futures::future::try_join_all(attempts).await.unwrap();
        let won: Vec<_> = outcomes
            .iter()
            .filter_map(|outcome| match outcome {
                TxnOutcome::Committed { revision } => Some(*revision),
                TxnOutcome::Conflict { current, .. } => {
                    assert!(current[0].as_ref().is_some_and(|kv| kv.mod_revision > revision));
                    None
                }
            })
            .collect();
        assert_eq!(won.len(), 1);
        revision = won[0];
    }
}

fn leased(key: &str, lease: LeaseId) -> Op {
    Op::Put { key: Key::from(key), value: Bytes::from_static(b"l"), lease: Some(lease) }
}

async fn revoked_leases_take_their_keys(store: Arc<dyn Backend>) {
    let lease = store.grant_lease(600).await.unwrap();
    let other = store.grant_lease(600).await.unwrap();
    assert_ne!(lease, other);
    commit(&*store, vec![leased("/l/a", lease), leased("/l/b", lease), leased("/l/moved", lease)]).await;
    commit(&*store, vec![leased("/l/other", other), put("/l/moved", "free")]).await;
    let last = commit(&*store, vec![leased("/l/a", lease)]).await;
    assert_eq!(store.get("/l/a", None).await.unwrap().0.unwrap().lease, Some(lease));
    assert_eq!(store.get("/l/moved", None).await.unwrap().0.unwrap().lease, None);
    store.revoke_lease(lease).await.unwrap();
    let left = store.range("/l/", "/l0", 0, None).await.unwrap();
    let keys: Vec<_> = left.items.iter().map(|kv| &*kv.key).collect();
    assert_eq!(keys, ["/l/moved", "/l/other"]);
    assert_eq!(left.current_revision, last + 1, "one revision for all keys");
    let changes = collect(&*store, "/l/", last, last + 1).await;
    assert!(changes.iter().all(|change| change.kind == ChangeKind::Delete));
    assert_eq!(changes.len(), 2);
    let again = store.revoke_lease(lease).await;
    assert!(matches!(again, Err(StoreError::LeaseNotFound(_))), "{again:?}");
    let again = store.keep_alive_lease(lease).await;
    assert!(matches!(again, Err(StoreError::LeaseNotFound(_))), "{again:?}");
}

async fn leases_expire(store: Arc<dyn Backend>) {
    // etcd grants no less than its election timeout in whole seconds: the shortest either takes.
    let lease = store.grant_lease(1).await.unwrap();
    let written = commit(&*store, vec![leased("/l/a", lease), put("/l/b", "stays")]).await;
    let changes = collect(&*store, "/l/", written, written + 1).await;
    assert_eq!(changes.len(), 1);
    assert_eq!((&*changes[0].key, &changes[0].kind), ("/l/a", &ChangeKind::Delete));
    assert_eq!(value(&*store, "/l/b").await.as_deref(), Some("stays"));
}

async fn leases_are_kept_alive(store: Arc<dyn Backend>) {
    let lease = store.grant_lease(600).await.unwrap();
    commit(&*store, vec![leased("/l/a", lease)]).await;
    store.keep_alive_lease(lease).await.unwrap();
    assert!(value(&*store, "/l/a").await.is_some());
    assert!(store.grant_lease(0).await.is_err());
}

async fn text_is_kept_verbatim(store: Arc<dyn Backend>) {
    let zeros = "\0".repeat(5000);
    for (key, text) in [("/t/empty", ""), ("/t/\u{1F980}", "crab"), ("/t/zeros", &*zeros), ("/t/a b\n\t", "\u{FEFF}")] {
        commit(&*store, vec![put(key, text)]).await;
        assert_eq!(value(&*store, key).await.as_deref(), Some(text));
    }
}

#[test]
fn prefix_ends() {
    let cases = [
        ("/a/", "/a0"),
        ("a", "b"),
        ("\u{D7FF}", "\u{E000}"),
        ("a\u{10FFFF}", "b"),
        ("", "\u{10FFFF}"),
        ("\u{10FFFF}", "\u{10FFFF}"),
    ];
    for (prefix, end) in cases {
        assert_eq!(prefix_end(prefix), end, "{prefix:?}");
    }
}
