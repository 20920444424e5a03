//! Opening a directory: takes its lock, loads the newest snapshot, replays the log, and finds where to go on.
//!
//! Guarantees: either everything that was ever acknowledged is there, or the error names the file and the offset of the
//! damage. Only one thing is ever cut: the torn remains of the very last write, which nobody was told of.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Options;
use super::history::Source;
use super::index::{FIRST_REVISION, Index};
use super::keys::Keys;
use super::leases::Leases;
use super::log::{Faults, Log, SEGMENT_HEADER, Sealed, SegmentHeader, Tail, segment_name};
use super::record::{self, Entry, Found, Place};
use super::snapshot::{self, snapshot_name};
use super::staging::Staging;
use crate::{Revision, StoreError};

/// The file whose lock makes a directory one process's.
const LOCK_NAME: &str = "lock";

/// A directory's lock, held until dropped.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Not left to the closing of the file: a process being started may have a copy of the descriptor for a moment.
        _ = self.0.unlock();
    }
}

/// Everything the writer needs to go on.
pub struct Recovered {
    pub index: Index,
    pub leases: Leases,
    pub log: Log,
    pub lock: Lock,
    /// Time the recovery has seen last, in milliseconds since 1970.
    pub last_ms: u64,
}

/// Opens or creates the store in `dir`.
pub fn open(dir: &Path, options: &Options, faults: Arc<Faults>) -> Result<Recovered, StoreError> {
    let lock = lock(dir)?;
    let files = Files::list(dir, true)?;
    if files.segments.is_empty() {
        if let Some((revision, path)) = files.snapshots.last_key_value() {
            let what = format!("{} is there (revision {revision}), but no log", path.display());
            return Err(StoreError::Corrupt(what));
        }
        let log = Log::create(dir, new_identity(), FIRST_REVISION, options.segment_bytes, faults)?;
        return Ok(Recovered { index: Index::default(), leases: Leases::default(), log, lock, last_ms: 0 });
    }
    let replay = replay(&files, options)?;
    for (revision, path) in &files.snapshots {
        if *revision < replay.base {
            remove(path);
        }
    }
    for number in replay.obsolete.iter().chain(&replay.unused) {
        remove(&dir.join(segment_name(*number)));
    }
    let tail = replay.tail;
    if tail.torn {
        let name = segment_name(tail.header.number);
        tracing::warn!(file = name, offset = tail.position, "cutting the torn remains of an unacknowledged write");
    }
    let log = Log::resume(dir, tail, options.segment_bytes, faults)?;
    // The removed segments: nothing of them is in the index, which starts at the snapshot that covers them.
    Ok(Recovered { index: replay.index, leases: replay.leases, log, lock, last_ms: replay.last_ms })
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove a superseded file of the store");
    }
}

/// An identity that tells this store's files from any other's.
pub fn new_identity() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard hasher's keys come from the operating system's random source.
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// Creates the directory if needed and takes its lock, or says who is in the way.
pub fn lock(dir: &Path) -> Result<Lock, StoreError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| StoreError::io(format_args!("creating {}", dir.display()), &e))?;
    let path = dir.join(LOCK_NAME);
    let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    take_lock(dir, &path, opened.map_err(|e| StoreError::io(format_args!("locking {}", path.display()), &e))?)
}

/// Takes the lock to read only: none on a file system that nobody can write to, when there is no lock file.
pub fn lock_for_reading(dir: &Path) -> Result<Option<Lock>, StoreError> {
    let path = dir.join(LOCK_NAME);
    let error = |e| StoreError::io(format_args!("locking {}", path.display()), &e);
    let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::ReadOnlyFilesystem => match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(error(e)),
        },
        Err(e) => return Err(error(e)),
    };
    take_lock(dir, &path, file).map(Some)
}

fn take_lock(dir: &Path, path: &Path, file: File) -> Result<Lock, StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(StoreError::Unavailable(format!(
            "the store in {} is in use by another process (it holds the lock on {})",
            dir.display(),
            path.display()
        ))),
        Err(TryLockError::Error(e)) => Err(StoreError::io(format_args!("locking {}", path.display()), &e)),
    }
}

/// The store's files, by number and by revision.
pub struct Files {
    pub segments: BTreeMap<u64, PathBuf>,
    pub snapshots: BTreeMap<Revision, PathBuf>,
}

impl Files {
    /// Lists a directory; `tidy` removes what an interrupted write left aside.
    pub fn list(dir: &Path, tidy: bool) -> Result<Self, StoreError> {
        let error = |e| StoreError::io(format_args!("listing {}", dir.display()), &e);
        let mut files = Files { segments: BTreeMap::new(), snapshots: BTreeMap::new() };
        for entry in std::fs::read_dir(dir).map_err(error)? {
            let name = entry.map_err(error)?.file_name();
            let Some(name) = name.to_str() else { continue };
            let number = |prefix| name.strip_prefix(prefix).and_then(|hex| u64::from_str_radix(hex, 16).ok());
            if let Some(number) = number("log-").filter(|n| segment_name(*n) == name) {
                files.segments.insert(number, dir.join(name));
            } else if let Some(revision) = number("snapshot-").filter(|r| snapshot_name(*r) == name) {
                files.snapshots.insert(revision, dir.join(name));
            } else if tidy && name.ends_with(".tmp") {
                remove(&dir.join(name));
            }
        }
        Ok(files)
    }
}

/// What reading all files gave. Changes nothing on disk.
pub struct Replay {
    pub index: Index,
    pub leases: Leases,
    /// The revision of the snapshot it started from.
    pub base: Revision,
    pub tail: Tail,
    /// Segments the snapshot covers, and a last one that was never used.
    pub obsolete: Vec<u64>,
    pub unused: Option<u64>,
    pub last_ms: u64,
}

struct Segment {
    number: u64,
    path: PathBuf,
    header: SegmentHeader,
}

fn corrupt(path: &Path, offset: usize, what: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("{} at offset {offset}: {what}", path.display()))
}

/// Reads the newest snapshot and every record after it.
pub fn replay(files: &Files, options: &Options) -> Result<Replay, StoreError> {
    let (index, leases, store) = load_snapshot(files)?;
    let base = index.revision();
    let (segments, obsolete) = chain(files, store, base)?;
    let header = segments[0].header;
    let last_revision = header.first_revision - 1;
    let mut replay = Replay {
        index,
        leases,
        base,
        tail: Tail { header, position: 0, torn: false, last_revision, sealed: Vec::new() },
        obsolete,
        unused: None,
        last_ms: 0,
    };
    for (i, segment) in segments.iter().enumerate() {
        if replay.unused.is_some() {
            break;
        }
        let next = segments.get(i + 1);
        let file = std::fs::read(&segment.path)
            .map_err(|e| StoreError::io(format_args!("reading {}", segment.path.display()), &e))?;
        if segment.header.first_revision != replay.tail.last_revision + 1 {
            return Err(corrupt(&segment.path, 0, "revisions are missing before this segment"));
        }
        replay.index.add_segment(segment.number, Arc::new(Source::new(&segment.path)));
        let sealed = replay.segment(segment, &file, options)?;
        match (sealed, next) {
            (true, Some(_)) => replay.tail.sealed.push(Sealed {
                number: segment.number,
                bytes: replay.tail.position,
                last_revision: replay.tail.last_revision,
            }),
            (true, None) => return Err(corrupt(&segment.path, file.len(), "the segment after this one is missing")),
            (false, None) => {}
            // A crash between creating a segment and sealing the one before it leaves an empty last segment.
            (false, Some(next)) if i + 2 == segments.len() && is_unused(&next.path)? => {
                replay.unused = Some(next.number)
            }
            (false, Some(_)) => {
                return Err(corrupt(&segment.path, replay.tail.position as usize, "the segment ends without its seal"));
            }
        }
    }
    Ok(replay)
}

fn load_snapshot(files: &Files) -> Result<(Index, Leases, Option<u64>), StoreError> {
    let mut leases = Leases::default();
    let Some((revision, path)) = files.snapshots.last_key_value() else { return Ok((Index::default(), leases, None)) };
    let mut keys = Keys::default();
    let contents = snapshot::read(path, |kv| keys.push(kv))?;
    if contents.revision != *revision {
        return Err(corrupt(path, 0, format_args!("the snapshot is of revision {}", contents.revision)));
    }
    contents.leases.iter().for_each(|term| leases.set(*term));
    leases.reserve_ids(contents.next_lease);
    keys.arrange();
    let index = Index::from_snapshot(contents.revision, keys);
    index.leased().for_each(|(key, lease)| leases.attach(key, lease));
    Ok((index, leases, Some(contents.store)))
}

/// The segments to replay, in order, and those the snapshot at `base` covers.
fn chain(files: &Files, store: Option<u64>, base: Revision) -> Result<(Vec<Segment>, Vec<u64>), StoreError> {
    let mut segments = Vec::new();
    for (number, path) in &files.segments {
        let mut bytes = [0; SEGMENT_HEADER];
        let read = File::open(path).and_then(|file| std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0));
        match read {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(corrupt(path, 0, "the file is cut short in its header"));
            }
            Err(e) => return Err(StoreError::io(format_args!("reading {}", path.display()), &e)),
        }
        let header = SegmentHeader::decode(&bytes).map_err(|what| corrupt(path, 0, what))?;
        if header.number != *number {
            return Err(corrupt(path, 0, format_args!("this is segment {} under another's name", header.number)));
        }
        segments.push(Segment { number: *number, path: path.clone(), header });
    }
    let store = store.unwrap_or(segments[0].header.store);
    if let Some(other) = segments.iter().find(|s| s.header.store != store) {
        return Err(corrupt(&other.path, 0, "this segment belongs to another store"));
    }
    // A segment is covered when the one after it starts no later than right after the snapshot.
    let covered = segments.windows(2).take_while(|pair| pair[1].header.first_revision <= base + 1).count();
    let kept = segments.split_off(covered);
    let obsolete = segments.iter().map(|s| s.number).collect();
    let first = &kept[0];
    if first.header.first_revision > base + 1 {
        let missing =
            format!("revisions {} to {} are missing before this segment", base + 1, first.header.first_revision - 1);
        return Err(corrupt(&first.path, 0, missing));
    }
    for pair in kept.windows(2) {
        if pair[1].number != pair[0].number + 1 {
            return Err(corrupt(&pair[1].path, 0, format_args!("segment {} is missing", pair[0].number + 1)));
        }
    }
    Ok((kept, obsolete))
}

/// Whether a segment holds no record.
fn is_unused(path: &Path) -> Result<bool, StoreError> {
    let file = std::fs::read(path).map_err(|e| StoreError::io(format_args!("reading {}", path.display()), &e))?;
    Ok(file.get(SEGMENT_HEADER..).is_some_and(record::is_zero))
}

impl Replay {
    /// Replays one segment; tells whether it ended with its seal.
    fn segment(&mut self, segment: &Segment, file: &[u8], options: &Options) -> Result<bool, StoreError> {
        self.tail.header = segment.header;
        let mut offset = SEGMENT_HEADER;
        let place = Place { store: segment.header.store, segment: segment.number, offset: 0 };
        loop {
            self.tail.position = offset as u64;
            match record::read(file, Place { offset: offset as u64, ..place }) {
                Found::End => return Ok(false),
                Found::Torn => {
                    self.tail.torn = true;
                    return Ok(false);
                }
                Found::Damaged(what) => return Err(corrupt(&segment.path, offset, what)),
                Found::Record { payload, next } => {
                    let at = (segment.number, (offset + record::HEADER) as u64);
                    let sealed =
                        self.group(payload, at, options).map_err(|what| corrupt(&segment.path, offset, what))?;
                    if let Some(number) = sealed {
                        if number != segment.number + 1 {
                            return Err(corrupt(&segment.path, offset, "the seal names another segment"));
                        }
                        self.tail.position = next as u64;
                        return Ok(true);
                    }
                    offset = next;
                }
            }
        }
    }

    /// Replays one commit group, whose payload lies `at` an offset of a segment; gives the number of the next segment if
    /// it was a seal.
    fn group(&mut self, payload: &[u8], at: (u64, u64), options: &Options) -> Result<Option<u64>, &'static str> {
        let (at_ms, entries) = record::decode(payload)?;
        self.last_ms = self.last_ms.max(at_ms);
        let mut staging = Staging::new(&self.index, entries.len());
        let mut ends = Vec::new();
        let mut compact = None;
        for entry in entries {
            match entry {
                Entry::Commit { revision, ops, spots } => {
                    if revision != self.tail.last_revision + 1 {
                        return Err("a revision is missing");
                    }
                    self.tail.last_revision = revision;
                    if revision > self.base && staging.apply(ops, &spots) != Some(revision) {
                        return Err("a revision changes nothing");
                    }
                }
                Entry::Lease(term) => self.leases.set(term),
                Entry::LeaseEnd(id) => ends.push(id),
                Entry::Compact(revision) => compact = compact.max(Some(revision)),
                Entry::Seal(number) => return Ok(Some(number)),
            }
        }
        let staged = staging.finish();
        self.leases.follow(&staged.changes);
        ends.into_iter().for_each(|id| self.leases.remove(id));
        self.index.commit(staged, at, at_ms);
        if let Some(revision) = compact {
            self.index.compact(revision, None);
        }
        self.index.enforce(&options.history_limits(), at_ms, None);
        drop(self.index.let_go());
        Ok(None)
    }
}
