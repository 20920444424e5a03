//! A store over time: restarts, leases, history, snapshots, idleness, saving and restoring.

use std::time::Duration;

use super::*;
use crate::tests::model::collect;
use crate::tests::{commit, delete, put};
use crate::{ChangeKind, LeaseId, Op, maintain};

fn leased(key: &str, lease: LeaseId) -> Op {
    Op::Put { key: key.into(), value: "l".into(), lease: Some(lease) }
}

#[tokio::test]
async fn history_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small()).unwrap();
    for n in 0..100 {
        commit(&store, vec![put(&format!("/{}", n % 10), &n.to_string())]).await;
    }
    let (changes, then) = (collect(&store, "/", 1, 101).await, store.range("/", "0", 0, Some(50)).await.unwrap());
    drop(store);
    let store = open(dir.path(), small()).unwrap();
    assert_eq!(collect(&store, "/", 1, 101).await, changes);
    assert_eq!(store.range("/", "0", 0, Some(50)).await.unwrap(), then);
    store.compact(60).await.unwrap();
    drop(store);
    let store = open(dir.path(), small()).unwrap();
    assert_eq!(store.status().unwrap().compacted, 60, "a compaction that was asked for is kept");
    assert!(matches!(store.get("/1", Some(59)).await, Err(StoreError::Compacted { .. })));
    assert_eq!(collect(&store, "/", 60, 101).await, changes[59..]);
}

#[tokio::test]
async fn snapshots_bound_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { history_changes: 20, snapshot_log_bytes: 8 << 10, ..small() };
    let store = open(dir.path(), options.clone()).unwrap();
    let lease = store.grant_lease(3600).await.unwrap();
    commit(&store, vec![leased("/leased", lease), put("/gone", "1")]).await;
    commit(&store, vec![delete("/gone")]).await;
    for n in 0..1000 {
        commit(&store, vec![put(&format!("/{}", n % 10), &format!("{n}").repeat(40))]).await;
    }
    // The snapshot is taken beside the writes: on a busy machine it may come a little later.
    let mut more = 0;
    while store.status().unwrap().log_bytes > 48 << 10 {
        more += 1;
        assert!(more < 5000, "no snapshot frees the log: {:?}", store.status());
        commit(&store, vec![put("/more", &more.to_string())]).await;
    }
    let status = store.status().unwrap();
    let before = contents(&store).await;
    drop(store);
    let store = open(dir.path(), options.clone()).unwrap();
    assert_eq!(files(dir.path(), "snapshot-").len(), 1);
    assert_eq!(contents(&store).await, before);
    let reopened = store.status().unwrap();
    assert_eq!((reopened.revision, reopened.leases), (status.revision, 1));
    // The lease still holds its key, and its identifier is not given again.
    assert_ne!(store.grant_lease(5).await.unwrap(), lease);
    store.revoke_lease(lease).await.unwrap();
    assert!(store.get("/leased", None).await.unwrap().0.is_none());
    drop(store);
    assert_eq!(maintain::check(dir.path(), &options).unwrap().status.leases, 1);
}

#[tokio::test]
async fn a_snapshot_under_writes_is_of_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    // History so short that only holding it back keeps the snapshot's revision readable.
    let options = Options { history_changes: 4, snapshot_log_bytes: 8 << 10, segment_bytes: 16 << 10, ..small() };
    let store = open(dir.path(), options.clone()).unwrap();
    for hundred in 0..120 {
        commit(&store, (0..100).map(|i| put(&format!("/{:05}", hundred * 100 + i), "1")).collect()).await;
    }
    let mut snapshots = std::collections::BTreeSet::new();
    for n in 0..2500 {
        let keys = (0..4).map(|i| format!("/{:05}", (n * 7 + i * 2999) % 12000));
        let writes = keys.map(|key| (key, n.to_string().repeat(20)));
        futures::future::join_all(writes.map(|(key, value)| {
            let store = &store;
            async move { commit(store, vec![put(&key, &value)]).await }
        }))
        .await;
        if n % 10 == 0 {
            let names = files(dir.path(), "snapshot-").into_iter();
            snapshots.extend(names.filter(|name| name.extension().is_none()));
        }
    }
    assert!(snapshots.len() > 1, "{snapshots:?}");
    let before = contents(&store).await;
    drop(store);
    let store = open(dir.path(), options.clone()).unwrap();
    assert!(contents(&store).await == before, "the snapshot mixes revisions");
    drop(store);
    assert_eq!(maintain::check(dir.path(), &options).unwrap().status.keys, 12000);
}

#[tokio::test]
async fn leases_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small()).unwrap();
    let short = store.grant_lease(1).await.unwrap();
    let long = store.grant_lease(3600).await.unwrap();
    let ended = store.grant_lease(3600).await.unwrap();
    let last = commit(&store, vec![leased("/short", short), leased("/long", long), put("/free", "f")]).await;
    store.revoke_lease(ended).await.unwrap();
    drop(store);
    let store = open(dir.path(), small()).unwrap();
    let changes = collect(&store, "/", last, last + 1).await;
    assert_eq!(changes.iter().map(|c| (&*c.key, &c.kind)).collect::<Vec<_>>(), [("/short", &ChangeKind::Delete)]);
    assert!(store.get("/long", None).await.unwrap().0.is_some());
    assert!(store.keep_alive_lease(ended).await.is_err());
    store.keep_alive_lease(long).await.unwrap();
}

#[tokio::test]
async fn a_lease_ended_in_a_group_takes_what_the_group_gave_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small()).unwrap();
    for round in 0..20 {
        let lease = store.grant_lease(60).await.unwrap();
        let key = format!("/{round}");
        let write = store.txn(crate::Txn { compares: Vec::new(), ops: vec![leased(&key, lease)] });
        let (written, revoked) = futures::join!(write, store.revoke_lease(lease));
        revoked.unwrap();
        // Either the write came first and its key went with the lease, or it found no lease.
        assert!(matches!(written, Ok(_) | Err(StoreError::LeaseNotFound(_))), "{written:?}");
        assert!(store.get(&key, None).await.unwrap().0.is_none());
    }
    let before = contents(&store).await;
    drop(store);
    assert_eq!(contents(&open(dir.path(), small()).unwrap()).await, before);
}

#[tokio::test]
async fn an_idle_store_sleeps() {
    let switches = || -> u64 {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        let writers = tasks.filter(|task| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "store-idle-test")
        });
        let count = |task: std::path::PathBuf| {
            let status = std::fs::read_to_string(task.join("status")).unwrap_or_default();
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
            line.and_then(|line| line.split_whitespace().last()?.parse().ok()).unwrap_or(0)
        };
        writers.map(count).sum()
    };
    let dir = tempfile::tempdir().unwrap();
    let options = Options { writer_name: "store-idle-test", ..small() };
    let store = open(dir.path(), options).unwrap();
    commit(&store, vec![put("/a", "1")]).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let before = switches();
    assert!(before > 0, "the writer thread is found");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(switches(), before, "an idle store wakes up");
}

#[tokio::test]
async fn saving_and_restoring() {
    let dir = tempfile::tempdir().unwrap();
    let (data, saved, new) = (dir.path().join("data"), dir.path().join("saved"), dir.path().join("new"));
    let store = std::sync::Arc::new(open(&data, small()).unwrap());
    for n in 0..50 {
        commit(&*store, vec![put(&format!("/{n}"), &n.to_string())]).await;
    }
    let lease = store.grant_lease(3600).await.unwrap();
    let last = commit(&*store, vec![leased("/leased", lease)]).await;
    let before = contents(&store).await;
    let (saver, path) = (store.clone(), saved.clone());
    let (revision, size) = tokio::task::spawn_blocking(move || saver.save(&path)).await.unwrap().unwrap();
    assert_eq!((revision, size), (last, saved.metadata().unwrap().len()));
    assert!(maintain::check(&data, &small()).unwrap_err().to_string().contains("in use"));
    drop(store);
    let report = maintain::check(&data, &small()).unwrap();
    assert_eq!((report.status.revision, report.status.keys, report.torn), (last, 51, false));
    assert_eq!(maintain::save(&data, &small(), dir.path().join("offline")).unwrap(), (last, size));
    assert_eq!(std::fs::read(dir.path().join("offline")).unwrap(), std::fs::read(&saved).unwrap());
    assert_eq!(maintain::restore(&saved, &new, &small(), 1000).unwrap(), last + 1000);
    let again = maintain::restore(&saved, &new, &small(), 0);
    assert!(matches!(again, Err(StoreError::Invalid(_))), "{again:?}");
    let store = open(&new, small()).unwrap();
    assert_eq!(contents(&store).await, before);
    assert_eq!(commit(&store, vec![put("/a", "")]).await, last + 1001);
    assert!(matches!(store.get("/a", Some(last)).await, Err(StoreError::Compacted { .. })));
    store.revoke_lease(lease).await.unwrap();
    assert!(store.get("/leased", None).await.unwrap().0.is_none());
    assert!(maintain::check(dir.path().join("none"), &small()).is_err());
}

#[tokio::test]
async fn care_through_the_door() {
    use crate::door::{self, Ask};
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    assert_eq!(door::ask(&data, &Ask::Status).unwrap(), None, "no store, nobody answers");
    let store = std::sync::Arc::new(open(&data, small()).unwrap());
    let served = door::serve(&store).unwrap();
    let ask = async |what: Ask| {
        let data = data.clone();
        tokio::task::spawn_blocking(move || door::ask(&data, &what)).await.unwrap()
    };
    for n in 0..40 {
        commit(&*store, vec![put("/k", &format!("{n} ").repeat(100))]).await;
    }
    let status = ask(Ask::Status).await.unwrap().unwrap();
    assert!(status.contains("revision: 41\n") && status.contains("keys: 1\n"), "{status}");
    let saved = dir.path().join("saved");
    let answer = ask(Ask::Save(saved.clone())).await.unwrap().unwrap();
    assert!(answer.contains("revision: 41\n"), "{answer}");
    assert_eq!(maintain::restore(&saved, dir.path().join("new"), &small(), 0).unwrap(), 41);
    store.compact(41).await.unwrap();
    let freed = ask(Ask::Defragment).await.unwrap().unwrap();
    assert!(freed.starts_with("freed bytes: ") && !freed.contains(": 0"), "{freed}");
    let refused = ask(Ask::Save(dir.path().join("none/there"))).await;
    assert!(matches!(&refused, Err(StoreError::Unavailable(what)) if what.contains("none/there")), "{refused:?}");
    let refused = ask(Ask::Save("relative".into())).await;
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    served.abort();
    _ = served.await;
    drop(store);
    // A socket that nobody serves is no obstacle.
    assert_eq!(ask(Ask::Status).await.unwrap(), None);
    let store = std::sync::Arc::new(open(&data, small()).unwrap());
    door::serve(&store).unwrap();
    assert!(ask(Ask::Status).await.unwrap().is_some());
}
