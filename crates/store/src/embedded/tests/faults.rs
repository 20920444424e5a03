//! Faults of the disk and misuse: failed syncs, no room, two processes, limits.

use std::sync::atomic::Ordering;

use futures::StreamExt;

use super::*;
use crate::tests::{commit, put};
use crate::{Txn, TxnOutcome};

async fn try_put(store: &Embedded, key: &str, value: &str) -> Result<TxnOutcome, StoreError> {
    store.txn(Txn { compares: Vec::new(), ops: vec![put(key, value)] }).await
}

#[tokio::test]
async fn after_a_failed_sync_writes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small()).unwrap();
    let revision = commit(&store, vec![put("/a", "1")]).await;
    store.faults.sync.store(true, Ordering::SeqCst);
    let failed = try_put(&store, "/a", "2").await;
    assert!(matches!(&failed, Err(StoreError::Unavailable(text)) if text.contains("log-")), "{failed:?}");
    // The disk is said to be well again: what is on it is still not known.
    store.faults.sync.store(false, Ordering::SeqCst);
    let refused = try_put(&store, "/b", "2").await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(store.grant_lease(5).await.is_err());
    let (kv, current) = store.get("/a", None).await.unwrap();
    assert_eq!((kv.map(|kv| kv.value), current), (Some("1".into()), revision), "reads see the last durable state");
    drop(store);
    // The write whose sync failed may be there or not; nothing else is lost.
    let store = open(dir.path(), small()).unwrap();
    assert!(store.current_revision().await.unwrap() >= revision);
    commit(&store, vec![put("/b", "1")]).await;
}

#[tokio::test]
async fn without_room_writes_fail_and_later_work() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small()).unwrap();
    store.faults.space.store(true, Ordering::SeqCst);
    let value = "v".repeat(500);
    let mut revision = 1;
    // Some fit into what is reserved.
    let full = loop {
        match try_put(&store, "/k", &value).await {
            Ok(TxnOutcome::Committed { revision: next }) => revision = next,
            other => break other,
        }
    };
    assert!(matches!(&full, Err(StoreError::Full(_))), "{full:?}");
    assert!(matches!(try_put(&store, "/k", &value).await, Err(StoreError::Full(_))));
    assert_eq!(store.current_revision().await.unwrap(), revision);
    store.faults.space.store(false, Ordering::SeqCst);
    for n in 1..20 {
        assert_eq!(commit(&store, vec![put("/k", &value)]).await, revision + n);
    }
    drop(store);
    let store = open(dir.path(), small()).unwrap();
    assert_eq!(store.current_revision().await.unwrap(), revision + 19);
}

/// Segments written past the cache, through it, and both: a filesystem may know direct writes today and not tomorrow.
#[tokio::test]
async fn direct_and_cached_writes_go_on_from_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let value = |n: usize| format!("{n}-").repeat(1 + n * 37 % 500);
    let mut written = 0;
    for indirect in [false, true, true, false, true, false] {
        let store = open(dir.path(), small()).unwrap();
        for n in 0..written {
            let (kv, _) = store.get(&format!("/k{n}"), None).await.unwrap();
            assert_eq!(kv.unwrap().value, value(n), "key {n} of {written}");
        }
        // From the next segment on.
        store.faults.indirect.store(indirect, Ordering::SeqCst);
        for n in written..written + 25 {
            commit(&store, vec![put(&format!("/k{n}"), &value(n))]).await;
        }
        written += 25;
    }
}

#[test]
fn a_directory_belongs_to_one_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small()).unwrap();
    let second = open(dir.path(), small()).err().unwrap();
    assert!(second.to_string().contains("in use by another process"), "{second}");
    drop(store);
    open(dir.path(), small()).unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(open(&file, small()), Err(StoreError::Io(_))));
}

#[tokio::test]
async fn a_foreign_or_newer_file_is_reported() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for dir in &dirs {
        let store = open(dir.path(), small()).unwrap();
        for _ in 0..20 {
            commit(&store, vec![put("/k", &"v".repeat(300))]).await;
        }
    }
    let [ours, theirs] = dirs.each_ref().map(|dir| files(dir.path(), "log-"));
    std::fs::copy(&theirs[1], &ours[1]).unwrap();
    let mixed = open(dirs[0].path(), small()).err().unwrap();
    assert!(mixed.to_string().contains("another store"), "{mixed}");
    std::fs::copy(&theirs[2], &theirs[1]).unwrap();
    let renamed = open(dirs[1].path(), small()).err().unwrap();
    assert!(renamed.to_string().contains("under another's name"), "{renamed}");
}

#[tokio::test]
async fn the_database_limit_stops_growth_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Options { max_database_bytes: 10_000, ..small() }).unwrap();
    let value = "v".repeat(1000);
    let mut fitted = 0;
    let full = loop {
        match try_put(&store, &format!("/{fitted}"), &value).await {
            Ok(_) => fitted += 1,
            Err(e) => break e,
        }
    };
    assert_eq!((fitted, matches!(full, StoreError::Full(_))), (9, true), "{full}");
    commit(&store, vec![crate::tests::delete("/0"), crate::tests::delete("/1")]).await;
    commit(&store, vec![put("/again", &value)]).await;
}

#[tokio::test]
async fn a_watcher_left_behind_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Options { history_changes: 50, ..Options::default() }).unwrap();
    let start = store.current_revision().await.unwrap();
    let mut slow = store.watch("/", start).await.unwrap();
    for n in 0..200 {
        commit(&store, vec![put("/k", &n.to_string())]).await;
    }
    let behind = slow.next().await;
    assert!(matches!(behind, Some(Err(StoreError::Compacted { .. }))), "{behind:?}");
    assert!(slow.next().await.is_none());
    let status = store.status().unwrap();
    assert_eq!((status.history_changes, status.keys), (50, 1));
    assert_eq!(status.compacted, status.revision - 50);
}

#[tokio::test]
async fn closing_ends_everything() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small()).unwrap();
    let revision = commit(&store, vec![put("/a", "1")]).await;
    let mut watch = store.watch("/", revision).await.unwrap();
    store.close();
    assert!(matches!(watch.next().await, Some(Err(StoreError::Closed))));
    assert!(matches!(try_put(&store, "/a", "2").await, Err(StoreError::Closed)));
    assert!(matches!(store.get("/a", None).await, Err(StoreError::Closed)));
    store.close();
}
