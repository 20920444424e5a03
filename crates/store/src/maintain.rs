//! Care of an embedded store that no process has open: look at it, check it, save it to a file, restore it from one.
//!
//! Everything here takes the directory's lock, so that it never works beside a running store, and reads through the same
//! code that opens one: what passes a check opens. [`check`] and [`save`] read on a read-only file system too. Only [`restore`] writes into a store's directory, and only into a new
//! one. To save a store that is running, see [`Embedded::save`](crate::embedded::Embedded::save).

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::embedded::history::Version;
use crate::embedded::log::Log;
use crate::embedded::recovery::{self, Files, Replay};
use crate::embedded::snapshot::{self, Contents, snapshot_name};
use crate::embedded::{Options, Status};
use crate::{Revision, StoreError, etcd_file};

/// What a check found; that it returns at all means that every byte was good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Sizes and positions, as of an open store.
    pub status: Status,
    /// The revision of the snapshot the log builds on, if there is one.
    pub snapshot: Option<Revision>,
    /// Segments of the log.
    pub segments: u64,
    /// Bytes of all files.
    pub disk_bytes: u64,
    /// Whether the log ends in the torn remains of a write that was never acknowledged; opening cuts them.
    pub torn: bool,
}

fn read(dir: &Path, options: &Options) -> Result<(Files, Replay, Option<recovery::Lock>), StoreError> {
    if !dir.is_dir() {
        return Err(StoreError::Invalid(format!("{} is not a directory", dir.display())));
    }
    let lock = recovery::lock_for_reading(dir)?;
    let files = Files::list(dir, false)?;
    if files.segments.is_empty() {
        return Err(match files.snapshots.last_key_value() {
            None => StoreError::Invalid(format!("there is no store in {}", dir.display())),
            Some((_, path)) => StoreError::Corrupt(format!("{} is there, but no log", path.display())),
        });
    }
    let replay = recovery::replay(&files, options)?;
    Ok((files, replay, lock))
}

/// Reads and checks every file that counts. Changes nothing.
pub fn check(dir: impl AsRef<Path>, options: &Options) -> Result<Report, StoreError> {
    let dir = dir.as_ref();
    let (files, replay, _lock) = read(dir, options)?;
    let mut disk_bytes = 0;
    for path in files.segments.values().chain(files.snapshots.values()) {
        let metadata = path.metadata().map_err(|e| StoreError::io(format_args!("reading {}", path.display()), &e))?;
        disk_bytes += metadata.len();
    }
    let index = &replay.index;
    let tail = &replay.tail;
    Ok(Report {
        status: Status {
            revision: index.revision(),
            compacted: index.compacted(),
            keys: index.live_keys() as u64,
            live_bytes: index.live_bytes(),
            history_changes: index.history_changes() as u64,
            history_bytes: index.history_bytes(),
            history_memory_bytes: index.history_memory(),
            log_bytes: tail.position + tail.sealed.iter().map(|sealed| sealed.bytes).sum::<u64>(),
            leases: replay.leases.len() as u64,
        },
        snapshot: files.snapshots.last_key_value().map(|(revision, _)| *revision),
        segments: files.segments.len() as u64,
        disk_bytes,
        torn: tail.torn,
    })
}

/// Saves the newest state to one file. Gives its revision and the size of the file in bytes.
pub fn save(dir: impl AsRef<Path>, options: &Options, file: impl AsRef<Path>) -> Result<(Revision, u64), StoreError> {
    let (_, replay, _lock) = read(dir.as_ref(), options)?;
    let revision = replay.index.revision();
    let contents = Contents {
        store: replay.tail.header.store,
        revision,
        leases: replay.leases.terms(),
        next_lease: replay.leases.next_id(),
    };
    let page =
        |start: &str| replay.index.page(start, snapshot::PAGE_KEYS, revision).into_iter().map(Version::load).collect();
    let size = snapshot::write(file.as_ref(), &contents, page)?;
    Ok((revision, size))
}

/// Makes a store from a saved file, or from one of etcd's, in a directory that holds none. The new store stands `bump` revisions above the saved
/// one: clients that saw revisions after the save must not meet them again with another meaning, so give more than were
/// written since. Gives the revision the store stands at.
pub fn restore(
    file: impl AsRef<Path>,
    dir: impl AsRef<Path>,
    options: &Options,
    bump: u64,
) -> Result<Revision, StoreError> {
    let (file, dir) = (file.as_ref(), dir.as_ref());
    let mut items = Vec::new();
    let mut contents = if etcd_file::is_one(file) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        etcd_file::read(file, now.as_millis() as u64, |kv| items.push(kv))?
    } else {
        snapshot::read(file, |kv| items.push(kv))?
    };
    let _lock = recovery::lock(dir)?;
    let files = Files::list(dir, true)?;
    if !files.segments.is_empty() || !files.snapshots.is_empty() {
        return Err(StoreError::Invalid(format!("there is a store in {} already", dir.display())));
    }
    // A store of its own: its files must not mix with those of the store that was saved.
    contents.store = recovery::new_identity();
    contents.revision = contents.revision.saturating_add(bump);
    let revision = contents.revision;
    let mut rest = items.as_slice();
    let page = |_: &str| {
        let (page, after) = rest.split_at(rest.len().min(snapshot::PAGE_KEYS));
        rest = after;
        Ok(page.to_vec())
    };
    snapshot::write(&dir.join(snapshot_name(revision)), &contents, page)?;
    Log::create(dir, contents.store, revision, options.segment_bytes, Default::default())?;
    Ok(revision)
}
