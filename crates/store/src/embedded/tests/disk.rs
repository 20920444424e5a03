//! A disk that is really full: a small tmpfs in a mount namespace of its own. Needs root and `unshare`.

use std::process::Command;

use super::*;
use crate::tests::{commit, delete, put};
use crate::{Txn, TxnOutcome};

/// Set for the child, which may mount.
const INSIDE: &str = "STORE_FULL_DISK_TEST";

#[test]
fn a_full_disk_loses_nothing() {
    let status = Command::new("unshare")
        .args(["--mount", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["embedded::tests::disk::inside", "--exact", "--ignored", "--nocapture", "--quiet"])
        .env(INSIDE, "1")
        .status();
    match status {
        Ok(status) if status.success() => {}
        // unshare says so by its own code when it may not.
        Ok(status) if status.code() == Some(1) => println!("skipped: no mount namespace can be made (root is needed)"),
        Ok(status) => panic!("{status}"),
        Err(e) => println!("skipped: unshare cannot be run ({e})"),
    }
}

#[tokio::test]
#[ignore = "runs only as the child of a_full_disk_loses_nothing"]
async fn inside() {
    if std::env::var(INSIDE).is_err() {
        return;
    }
    let mount = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m", "none"]).arg(mount.path()).status();
    assert!(mounted.unwrap().success());
    let dir = mount.path().join("store");
    let options =
        Options { segment_bytes: 256 << 10, history_changes: 50, snapshot_log_bytes: 512 << 10, ..Options::default() };
    let ballast = mount.path().join("ballast");
    let mut known: BTreeMap<String, u64> = BTreeMap::new();
    for round in 0..4_u32 {
        std::fs::write(&ballast, vec![1; (3 << 20) + round as usize * 77_777]).unwrap();
        let store = open(&dir, options.clone()).unwrap();
        let mut full = 0;
        // All keys differ, so that no snapshot can make room for good; writing goes on for a while into the full disk.
        for n in 0.. {
            let key = format!("/{round}/{n}");
            let txn = Txn { compares: Vec::new(), ops: vec![put(&key, &"v".repeat(3000))] };
            match store.txn(txn).await {
                Ok(TxnOutcome::Committed { revision }) => _ = known.insert(key, revision),
                Err(StoreError::Full(_)) => full += 1,
                other => panic!("{other:?}"),
            }
            if full > 20 {
                break;
            }
        }
        let found = contents(&store).await;
        for (key, revision) in &known {
            assert_eq!(found.get(key).map(|kv| kv.mod_revision), Some(*revision), "{key}");
        }
        if round % 2 == 0 {
            drop(store);
            let store = open(&dir, options.clone()).expect("a store on a full disk opens");
            assert_eq!(contents(&store).await, found);
            drop(store);
            std::fs::remove_file(&ballast).unwrap();
        } else {
            // Room comes back while it runs: writes work again.
            std::fs::remove_file(&ballast).unwrap();
            let revision = commit(&store, vec![put("/again", "1")]).await;
            known.insert("/again".into(), revision);
            drop(store);
        }
        let store = open(&dir, options.clone()).unwrap();
        let gone: Vec<String> = known.keys().filter(|key| key.starts_with('/')).cloned().collect();
        for keys in gone.chunks(100) {
            commit(&store, keys.iter().map(|key| delete(key)).collect()).await;
        }
        known.clear();
        let revision = store.current_revision().await.unwrap();
        store.compact(revision).await.unwrap();
        store.defragment().await.unwrap();
        drop(store);
        crate::maintain::check(&dir, &options).unwrap();
    }
    // A read-only file system can be checked and saved from.
    let remounted = Command::new("mount").args(["-o", "remount,ro"]).arg(mount.path()).status();
    assert!(remounted.unwrap().success());
    let report = crate::maintain::check(&dir, &options).unwrap();
    let saved = tempfile::tempdir().unwrap();
    let save = crate::maintain::save(&dir, &options, saved.path().join("saved")).unwrap();
    assert_eq!(save.0, report.status.revision);
    println!("a full disk was met and left; a read-only one was read");
}
