//! What both backends must do, run against each: the scenarios, and a random walk beside a simple model.

mod api_cases;
mod ask;
mod concurrent;
mod copy;
mod etcd_cluster;
mod etcd_server;
mod hostile;
pub(crate) mod model;
mod scenarios;
mod sealed;
mod served;

use std::sync::Arc;

use bytes::Bytes;

use crate::{Backend, Compare, Key, Op, Revision, Txn, TxnOutcome, embedded};

/// A put without a lease.
pub fn put(key: &str, value: &str) -> Op {
    Op::Put { key: Key::from(key), value: Bytes::copy_from_slice(value.as_bytes()), lease: None }
}

/// A delete.
pub fn delete(key: &str) -> Op {
    Op::Delete { key: Key::from(key) }
}

/// "The key was last written at this revision."
pub fn at(key: &str, mod_revision: Revision) -> Compare {
    Compare { key: Key::from(key), mod_revision }
}

/// Commits operations that must succeed; gives their revision.
pub async fn commit(store: &dyn Backend, ops: Vec<Op>) -> Revision {
    match store.txn(Txn { compares: Vec::new(), ops }).await {
        Ok(TxnOutcome::Committed { revision }) => revision,
        other => panic!("not committed: {other:?}"),
    }
}

#[tokio::test]
async fn embedded_keeps_the_scenarios() {
    for (name, scenario) in scenarios::ALL {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(embedded::open(dir.path(), embedded::Options::default()).unwrap());
        println!("embedded: {name}");
        scenario(store).await;
    }
}

#[tokio::test]
async fn embedded_walks_with_the_model() {
    for seed in 1..=12 {
        let dir = tempfile::tempdir().unwrap();
        // Small segments and little history, so that rotation, trimming and snapshots take part.
        let options = embedded::Options {
            segment_bytes: 4 << 10,
            snapshot_log_bytes: if seed % 2 == 0 { 8 << 10 } else { 64 << 20 },
            ..embedded::Options::default()
        };
        let mut store = Arc::new(embedded::open(dir.path(), options.clone()).unwrap());
        let mut walk = model::Walk::new(seed, &*store).await;
        for _ in 0..4 {
            walk.run(store.clone(), 150).await;
            drop(store);
            store = Arc::new(embedded::open(dir.path(), options.clone()).unwrap());
        }
        walk.check_all(&*store).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn embedded_keeps_concurrent_histories() {
    let (mut calls, mut changes) = (0, 0);
    for seed in 1..=concurrent::histories(4) {
        let dir = tempfile::tempdir().unwrap();
        let options = embedded::Options {
            segment_bytes: 16 << 10,
            snapshot_log_bytes: if seed % 2 == 0 { 32 << 10 } else { 64 << 20 },
            ..embedded::Options::default()
        };
        let mut store = Arc::new(embedded::open(dir.path(), options.clone()).unwrap());
        let mut history = concurrent::History::new(seed, &*store).await;
        for _ in 0..2 {
            history.run(store.clone(), 120).await;
            store.close();
            drop(store);
            store = Arc::new(embedded::open(dir.path(), options.clone()).unwrap());
        }
        let checked = history.check();
        (calls, changes) = (calls + checked.0, changes + checked.1);
    }
    println!("embedded: {calls} calls, {changes} changes checked");
}
