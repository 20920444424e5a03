//! What a crash or a bad disk leaves: a copy of a store's files is changed, and opened.
//!
//! The rule: an open store holds every acknowledged write, or opening reports the damage and names the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::*;
use crate::embedded::record::SECTOR;
use crate::tests::{commit, delete, put};

struct Sample {
    dir: tempfile::TempDir,
    contents: BTreeMap<String, KeyValue>,
    revision: u64,
}

/// A closed store of several segments; with a snapshot if asked.
async fn sample(options: &Options, writes: u32) -> Sample {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), options.clone()).unwrap();
    for n in 0..writes {
        let value = format!("value {n} ").repeat(n as usize % 40);
        commit(&store, vec![put(&format!("/k/{}", n % 11), &value)]).await;
        if n % 5 == 0 {
            commit(&store, vec![delete(&format!("/k/{}", n % 7)), put("/deleted", &n.to_string())]).await;
        }
    }
    let lease = store.grant_lease(3600).await.unwrap();
    let leased = crate::Op::Put { key: "/leased".into(), value: "l".into(), lease: Some(lease) };
    commit(&store, vec![leased]).await;
    let contents = contents(&store).await;
    let revision = store.current_revision().await.unwrap();
    drop(store);
    // Closing may come between a snapshot and the removal of what it supersedes; opening removes it.
    drop(open(dir.path(), options.clone()).unwrap());
    Sample { dir, contents, revision }
}

impl Sample {
    /// Changes a copy with `damage` and opens it; a store that opens must hold everything.
    async fn reopen(&self, what: &str, options: &Options, damage: impl FnOnce(&Path)) -> Result<(), StoreError> {
        let dir = tempfile::tempdir().unwrap();
        copy(self.dir.path(), dir.path());
        damage(dir.path());
        let store = open(dir.path(), options.clone()).inspect_err(|e| assert!(is_corrupt(e), "{what}: {e}"))?;
        assert_eq!(store.current_revision().await.unwrap(), self.revision, "{what}");
        assert_eq!(contents(&store).await, self.contents, "{what}");
        Ok(())
    }
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// The end of what is written in a file: the rest is zeros.
fn written(path: &Path) -> usize {
    std::fs::read(path).unwrap().iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

fn in_dir(dir: &Path, path: &Path) -> PathBuf {
    dir.join(path.file_name().unwrap())
}

/// With a snapshot in the middle: history is short, and a snapshot is due at once.
fn snapshotting() -> Options {
    Options { history_changes: 8, snapshot_log_bytes: 4 << 10, ..small() }
}

#[tokio::test]
async fn damage_is_reported_or_harmless() {
    for options in [small(), snapshotting()] {
        let sample = sample(&options, 60).await;
        sample.reopen("nothing", &options, |_| {}).await.expect("an untouched copy opens");
        let logs = files(sample.dir.path(), "log-");
        assert!(logs.len() > 1, "{logs:?}");
        let snapshots = files(sample.dir.path(), "snapshot-");
        assert_eq!(snapshots.is_empty(), options.snapshot_log_bytes > 1 << 20);
        for path in logs.iter().chain(&snapshots) {
            let name = path.file_name().unwrap().to_str().unwrap();
            let end = written(path);
            let mut reported = 0;
            for offset in (0..end).step_by(7) {
                let what = format!("{name}: bit {} of byte {offset} flipped", offset % 8);
                let flip = |dir: &Path| change(&in_dir(dir, path), |bytes| bytes[offset] ^= 1 << (offset % 8));
                reported += usize::from(sample.reopen(&what, &options, flip).await.is_err());
            }
            assert_eq!(reported, end.div_ceil(7), "{name}: every flipped bit is noticed");
            for offset in (0..end).step_by(11) {
                let what = format!("{name}: cut at {offset}");
                let cut = |dir: &Path| change(&in_dir(dir, path), |bytes| bytes.truncate(offset));
                sample.reopen(&what, &options, cut).await.expect_err(&what);
            }
            let what = format!("{name}: removed");
            let remove = |dir: &Path| std::fs::remove_file(in_dir(dir, path)).unwrap();
            sample.reopen(&what, &options, remove).await.expect_err(&what);
        }
        // Behind the last record: nothing that was acknowledged.
        let last = logs.last().unwrap();
        let end = written(last);
        for offset in [end, end + 1, end + 100] {
            let stray = |dir: &Path| change(&in_dir(dir, last), |bytes| bytes[offset] = 7);
            let opened = sample.reopen(&format!("a stray byte at {offset}"), &options, stray).await;
            assert!(opened.is_ok() || offset < end + 16, "{opened:?}");
        }
        // A sector in the middle that reads as zeros is damage, not a torn write.
        for path in &logs[..logs.len() - 1] {
            for sector in (SECTOR..written(path).saturating_sub(SECTOR)).step_by(SECTOR) {
                let what = format!("{}: zeros at {sector}", path.display());
                let zero = |dir: &Path| change(&in_dir(dir, path), |bytes| bytes[sector..sector + SECTOR].fill(0));
                sample.reopen(&what, &options, zero).await.expect_err(&what);
            }
        }
    }
}

#[tokio::test]
async fn a_torn_last_write_is_cut() {
    let options = Options { segment_bytes: 64 << 10, ..Options::default() };
    let text = "torn? ".repeat(500);
    let zeros = "\0".repeat(2500);
    let mixed = format!("{}{}{}", "a".repeat(700), "\0".repeat(1100), "b".repeat(900));
    for value in ["short", &*text, &*zeros, &*mixed] {
        for before in [10, 300, 512, 700] {
            let dir = tempfile::tempdir().unwrap();
            let store = open(dir.path(), options.clone()).unwrap();
            commit(&store, vec![put("/first", &"x".repeat(before))]).await;
            drop(store);
            let log = files(dir.path(), "log-").pop().unwrap();
            let old = std::fs::read(&log).unwrap();
            let store = open(dir.path(), options.clone()).unwrap();
            let last = commit(&store, vec![put("/last", value)]).await;
            drop(store);
            let new = std::fs::read(&log).unwrap();
            assert_eq!(old.len(), new.len(), "a record changes no file size");
            let changed: Vec<usize> = (0..new.len().div_ceil(SECTOR))
                .map(|sector| sector * SECTOR)
                .filter(|at| old[*at..new.len().min(at + SECTOR)] != new[*at..new.len().min(at + SECTOR)])
                .collect();
            // Every subset of the sectors may have reached the disk when the power went.
            for subset in 0_u32..1 << changed.len() {
                let mut torn = old.clone();
                for (i, at) in changed.iter().enumerate() {
                    if subset & 1 << i != 0 {
                        let end = new.len().min(at + SECTOR);
                        torn[*at..end].copy_from_slice(&new[*at..end]);
                    }
                }
                std::fs::write(&log, &torn).unwrap();
                let store = open(dir.path(), options.clone()).unwrap_or_else(|e| panic!("{subset:b}: {e}"));
                let whole = torn == new;
                assert_eq!(store.get("/last", None).await.unwrap().0.is_some(), whole, "{subset:b}");
                assert!(store.get("/first", None).await.unwrap().0.is_some());
                // And it goes on from there.
                assert_eq!(commit(&store, vec![put("/more", "m")]).await, if whole { last + 1 } else { last });
                drop(store);
                let store = open(dir.path(), options.clone()).unwrap();
                assert!(store.get("/more", None).await.unwrap().0.is_some());
                drop(store);
                std::fs::write(&log, &new).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_crash_while_a_segment_is_followed() {
    let options = small();
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), options.clone()).unwrap();
    let value = "v".repeat(300);
    let mut revision = 0;
    let mut unsealed = Vec::new();
    let first = files(dir.path(), "log-").pop().unwrap();
    while files(dir.path(), "log-").len() == 1 {
        unsealed = std::fs::read(&first).unwrap();
        revision = commit(&store, vec![put("/k", &value)]).await;
    }
    drop(store);
    // The next segment is there, empty; the seal is not.
    let next = files(dir.path(), "log-").pop().unwrap();
    change(&next, |bytes| bytes[super::super::log::SEGMENT_HEADER..].fill(0));
    std::fs::write(&first, unsealed).unwrap();
    std::fs::write(next.with_extension("tmp"), "left aside").unwrap();
    for _ in 0..2 {
        let store = open(dir.path(), options.clone()).unwrap();
        assert_eq!(
            store.current_revision().await.unwrap(),
            revision - 1,
            "the write that made the segment is not in it"
        );
        drop(store);
    }
    let store = open(dir.path(), options.clone()).unwrap();
    for n in 0..20 {
        assert_eq!(commit(&store, vec![put("/k", &value)]).await, revision + n);
    }
    drop(store);
    assert_eq!(open(dir.path(), options).unwrap().current_revision().await.unwrap(), revision + 19);
}

#[tokio::test]
async fn a_crash_while_a_snapshot_replaces_segments() {
    let options = snapshotting();
    let sample = sample(&options, 60).await;
    // The same writes without snapshots leave the same log, whole.
    let kept = Options { snapshot_log_bytes: u64::MAX, ..options.clone() };
    let dir = tempfile::tempdir().unwrap();
    copy(sample.dir.path(), dir.path());
    let oldest = files(dir.path(), "log-")[0].clone();
    // An older snapshot that was not removed yet, and a newer one that was never finished.
    let snapshot = files(dir.path(), "snapshot-").pop().unwrap();
    std::fs::write(dir.path().join("snapshot-0000000000000001"), "superseded").unwrap();
    std::fs::write(dir.path().join("snapshot-00000000000fffff.tmp"), "unfinished").unwrap();
    let store = open(dir.path(), kept).unwrap();
    assert_eq!(contents(&store).await, sample.contents);
    drop(store);
    assert_eq!(files(dir.path(), "snapshot-"), [snapshot], "what is superseded is removed");
    assert!(oldest.exists());
}

/// What docs/store.md advises when the last segment is damaged and what follows is given up.
#[tokio::test]
async fn a_damaged_last_segment_can_be_cut_by_hand() {
    let options = Options::default();
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), options.clone()).unwrap();
    for n in 0..20 {
        commit(&store, vec![put(&format!("/{n}"), &"v".repeat(300))]).await;
    }
    drop(store);
    let log = files(dir.path(), "log-").pop().unwrap();
    change(&log, |bytes| bytes[4000] ^= 1);
    let damage = open(dir.path(), options.clone()).err().unwrap().to_string();
    let (_, after) = damage.split_once("at offset ").expect("the offset is named");
    let offset: usize = after.split(':').next().unwrap().parse().unwrap();
    assert!((3500..=4000).contains(&offset), "{damage}");
    change(&log, |bytes| bytes[offset..].fill(0));
    let report = crate::maintain::check(dir.path(), &options).unwrap();
    assert_eq!((report.torn, report.status.keys), (false, report.status.revision - 1));
    assert!((8..12).contains(&report.status.keys), "{report:?}");
    commit(&open(dir.path(), options).unwrap(), vec![put("/more", "")]).await;
}
