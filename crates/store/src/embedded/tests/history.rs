//! History on disk: read back from the log, also from segments that are gone.

use futures::StreamExt;

use super::*;
use crate::tests::model::collect;
use crate::tests::{commit, put};

fn text(n: u64) -> String {
    format!("{n:08}").repeat(40)
}

#[tokio::test]
async fn history_outlives_its_segments() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small()).unwrap();
    for n in 0..300 {
        commit(&store, vec![put(&format!("/{}", n % 30), &text(n))]).await;
    }
    let before = files(dir.path(), "log-").len();
    // What the changes after 200 superseded lies before it, in segments that go now.
    store.compact(200).await.unwrap();
    assert!(store.defragment().await.unwrap() > 0);
    assert!(files(dir.path(), "log-").len() < before / 2);
    assert_eq!(store.defragment().await.unwrap(), 0, "nothing is left to give back");
    let status = store.status().unwrap();
    assert!(status.history_bytes >= 30 * 320 && status.history_memory_bytes < 400, "{status:?}");
    for n in 0..30 {
        // At revision 200 + 2, key n was last written by some of the 30 writes before it.
        let last = (172..=200).chain([171]).filter(|write| write % 30 == n).max().unwrap();
        let (kv, _) = store.get(&format!("/{n}"), Some(202)).await.unwrap();
        assert_eq!(kv.unwrap().value, text(last), "/{n}");
    }
    let range = store.range("/", "0", 0, Some(202)).await.unwrap();
    assert_eq!(range.items.len(), 30);
    assert!(range.items.iter().all(|kv| kv.mod_revision <= 202 && kv.value.len() == 320));
    for (n, change) in (199..).zip(collect(&store, "/", 200, 301).await) {
        assert_eq!((change.revision, change.previous.unwrap().value), (n + 2, text(n - 30).into()));
        assert!(matches!(change.kind, crate::ChangeKind::Put(kv) if kv.value == text(n)));
    }
}

#[tokio::test]
async fn values_older_than_the_log_stay_in_memory_up_to_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { history_memory_bytes: 3200, ..small() };
    let store = open(dir.path(), options).unwrap();
    for n in 0..40 {
        commit(&store, vec![put(&format!("/{n}"), &text(n))]).await;
    }
    for _ in 0..12 {
        commit(&store, vec![put("/filler", &text(0))]).await;
    }
    store.compact(53).await.unwrap();
    store.defragment().await.unwrap();
    // The first segment that is left may hold some; the others are in the snapshot only.
    for n in 0..40 {
        commit(&store, vec![put(&format!("/{n}"), &text(n + 100))]).await;
        let status = store.status().unwrap();
        assert!(status.history_memory_bytes <= 3200, "{status:?}");
    }
    let status = store.status().unwrap();
    assert!(status.compacted > 53, "history is shorter rather than larger");
    let range = store.range("/", "0", 0, Some(status.compacted)).await.unwrap();
    assert_eq!(range.items.len(), 41);
}

#[tokio::test]
async fn damaged_history_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small()).unwrap();
    for n in 0..60 {
        commit(&store, vec![put("/k", &text(n))]).await;
    }
    let first = files(dir.path(), "log-")[0].clone();
    let mut bytes = std::fs::read(&first).unwrap();
    bytes[300] ^= 4;
    std::fs::write(&first, bytes).unwrap();
    let error = store.get("/k", Some(2)).await.unwrap_err();
    assert!(is_corrupt(&error) && error.to_string().contains("log-0000000000000001"), "{error}");
    let mut watch = store.watch("/", 1).await.unwrap();
    assert!(is_corrupt(&watch.next().await.unwrap().unwrap_err()));
    assert!(store.get("/k", Some(59)).await.is_ok());
}
