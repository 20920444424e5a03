//! What both backends must do, run against each: the scenarios, and a random walk beside a simple model.

mod api_cases;
mod ask;
mod concurrent;
mod copy;
mod etcd_cluster;
mod etcd_server;
pub(crate) mod model;
mod scenarios;
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

#[tokio::test]
async fn sealed_values_keep_the_scenarios() {
    use crate::transform::{AesGcm, Plain, Transformed, Transformer};
    for (name, scenario) in scenarios::ALL {
        for sealed in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let store = Arc::new(embedded::open(dir.path(), embedded::Options::default()).unwrap());
            let transformer: Arc<dyn Transformer> =
                if sealed { Arc::new(AesGcm::new("key1", &[7; 32]).unwrap()) } else { Arc::new(Plain) };
            println!("{name}, sealed: {sealed}");
            scenario(Arc::new(Transformed::new(store, transformer))).await;
        }
    }
}

#[tokio::test]
async fn sealed_values_are_bound_to_key_and_place() {
    use crate::StoreError;
    use crate::transform::{AesGcm, Plain, Transformed};
    let dir = tempfile::tempdir().unwrap();
    let raw = Arc::new(embedded::open(dir.path(), embedded::Options::default()).unwrap());
    let sealed = |key: u8| Transformed::new(raw.clone(), Arc::new(AesGcm::new("key1", &[key; 32]).unwrap()));
    let (ours, other) = (sealed(1), sealed(2));
    commit(&*raw, vec![put("/old", "in the clear")]).await;
    let first = commit(&ours, vec![put("/secret", "the same"), put("/again", "the same")]).await;
    let stored = |key: &'static str| {
        let raw = raw.clone();
        async move { raw.get(key, None).await.unwrap().0.unwrap().value }
    };
    let (secret, again) = (stored("/secret").await, stored("/again").await);
    assert!(secret.starts_with(b"k8s:enc:aesgcm:v1:key1:") && secret != again);
    assert!(!secret.windows(4).any(|four| four == b"same"));
    assert_eq!(ours.get("/old", None).await.unwrap().0.unwrap().value, "in the clear");
    assert_eq!(ours.get("/secret", None).await.unwrap().0.unwrap().value, "the same");
    for (what, store) in [("another key", other), ("no key", Transformed::new(raw.clone(), Arc::new(Plain)))] {
        let refused = store.get("/secret", None).await;
        assert!(matches!(&refused, Err(StoreError::Corrupt(text)) if text.contains("/secret")), "{what}: {refused:?}");
        assert!(store.range("/", "0", 0, None).await.is_err(), "{what}");
    }
    // Put under another key, cut, changed: refused, in watches too.
    let mut changed = secret.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    for (key, value) in [("/moved", secret.to_vec()), ("/cut", secret[..30].to_vec()), ("/secret", changed)] {
        let after = raw.current_revision().await.unwrap();
        let op = Op::Put { key: key.into(), value: value.into(), lease: None };
        commit(&*raw, vec![op]).await;
        assert!(matches!(ours.get(key, None).await, Err(StoreError::Corrupt(_))), "{key}");
        let mut watch = ours.watch("/", after).await.unwrap();
        assert!(matches!(futures::StreamExt::next(&mut watch).await, Some(Err(StoreError::Corrupt(_)))), "{key}");
        assert!(futures::StreamExt::next(&mut watch).await.is_none());
    }
    assert_eq!(ours.get("/secret", Some(first)).await.unwrap().0.unwrap().value, "the same");
    assert!(AesGcm::new("short", &[0; 16]).is_err());
}
