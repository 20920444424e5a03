//! Data directories of earlier versions: what a released version has written opens for ever, and what a later one may
//! write is refused by name.

use super::*;
use crate::tests::model::collect;
use crate::tests::{commit, delete, put};
use crate::{LeaseId, Op};

/// A directory as format 1 wrote it: several segments, a snapshot, a lease, deletions. Never to be written anew.
const FORMAT_1: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/embedded/tests/format-1");

fn options() -> Options {
    Options { history_changes: 20, snapshot_log_bytes: 2 << 10, ..small() }
}

/// Writes a sample into the directory named by `STORE_FORMAT_SAMPLE`: for a new format's first test.
#[tokio::test]
#[ignore = "writes the sample of a new format"]
async fn write_a_sample() {
    let Ok(dir) = std::env::var("STORE_FORMAT_SAMPLE") else { return };
    let store = open(dir, options()).unwrap();
    for n in 0..60 {
        commit(&store, vec![put(&format!("/k/{}", n % 11), &format!("value {n} ").repeat(1 + n as usize % 9))]).await;
    }
    commit(&store, vec![delete("/k/3"), put("/é", "text")]).await;
    let lease = store.grant_lease(9_000_000_000).await.unwrap();
    commit(&store, vec![Op::Put { key: "/leased".into(), value: "l".into(), lease: Some(lease) }]).await;
}

#[tokio::test]
async fn format_1_opens() {
    let dir = tempfile::tempdir().unwrap();
    copy(Path::new(FORMAT_1), dir.path());
    let store = open(dir.path(), options()).unwrap();
    let found = contents(&store).await;
    assert_eq!(store.current_revision().await.unwrap(), 63);
    assert_eq!(found.len(), 12);
    for n in 49..60_u64 {
        let kv = found.get(&format!("/k/{}", n % 11));
        assert_eq!(kv.is_none(), n % 11 == 3);
        let Some(kv) = kv else { continue };
        assert_eq!(kv.value, format!("value {n} ").repeat(1 + n as usize % 9));
        assert_eq!((kv.mod_revision, kv.create_revision, kv.version), (n + 2, n % 11 + 2, n / 11 + 1));
    }
    assert_eq!((&*found["/é"].value, found["/leased"].lease), (&b"text"[..], Some(LeaseId(1))));
    let status = store.status().unwrap();
    assert!(status.compacted < 63 && status.leases == 1, "{status:?}");
    assert_eq!(collect(&store, "/", status.compacted, 63).await.last().map(|c| c.revision), Some(63));
    store.revoke_lease(LeaseId(1)).await.unwrap();
    assert_eq!(commit(&store, vec![put("/k/0", "new")]).await, 65);
    drop(store);
    assert_eq!(open(dir.path(), options()).unwrap().status().unwrap().keys, 11);
}

#[test]
fn a_later_format_is_refused_by_name() {
    for prefix in ["log-", "snapshot-"] {
        let dir = tempfile::tempdir().unwrap();
        copy(Path::new(FORMAT_1), dir.path());
        let path = files(dir.path(), prefix).pop().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[8] = 2;
        let crc = crc32fast::hash(&bytes[..60]).to_le_bytes();
        bytes[60..64].copy_from_slice(&crc);
        std::fs::write(&path, bytes).unwrap();
        let error = open(dir.path(), options()).err().unwrap().to_string();
        assert!(error.contains(prefix) && error.contains("format 2 is not known"), "{error}");
    }
}
