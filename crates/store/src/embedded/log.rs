//! The segmented log: files of records, appended and synced one commit group at a time.
//!
//! Guarantees: when [`Log::append`] returns, the record is on disk; the room for a record was on disk as zeros before, so
//! syncing a record changes no file metadata, running out of space cannot tear a record, and a cut file is noticed. After
//! any failed write or sync the caller must stop writing ([`AppendError::Broken`]). Knows nothing of what payloads mean.
//!
//! A segment is a 64-byte header, then records (see `record`), then zeros. Every segment but the last ends with a seal
//! that names the next one, so a missing segment is noticed at either end. While a segment is being written, a thread fills
//! the next with zeros, so that a busy log does not wait for them.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use super::direct::{self, BLOCK, Direct};
use super::record::{self, Entry, Place};
use crate::{Revision, StoreError};

/// The version of the log's and the snapshot's format, in every file's header.
pub const FORMAT: u32 = 1;

/// The header of a segment, in bytes; a multiple of the record alignment.
pub const SEGMENT_HEADER: usize = 64;

const MAGIC: &[u8; 8] = b"NAUPLOG\n";

/// How far a segment is filled with zeros ahead of the records, in bytes: one extra sync for so much log. Less only when
/// the whole segment is to be shorter.
const ZEROS_AHEAD: u64 = 1 << 20;

/// Room kept behind every record for a seal and for the zero header that ends the log, in bytes.
const TAIL_ROOM: u64 = 128;

/// Zeros are written in pieces of this many bytes, a page: the kernel keeps what was written in one piece as one unit of
/// its cache, and writes the whole unit to disk however little of it a later record changes.
/// Only where writes cannot go past that cache.
const ZERO_PIECE: usize = 4 << 10;

/// The next segment is prepared when a segment is longer than this part of what it may be: there is time, and a store that
/// hardly writes does not prepare what it does not need.
const PREPARE_AFTER: u64 = 4;

/// Why a record was not appended.
#[derive(Debug)]
pub enum AppendError {
    /// No room: nothing was written, and later appends may work.
    NoSpace(StoreError),
    /// What is on disk is unknown: no further write may be tried.
    Broken(StoreError),
}

/// A segment that takes no more records.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub number: u64,
    pub bytes: u64,
    /// The newest revision up to its end.
    pub last_revision: Revision,
}

/// Where recovery found the log to end.
#[derive(Clone, Debug)]
pub struct Tail {
    /// The last segment, and the end of its last record.
    pub header: SegmentHeader,
    pub position: u64,
    /// Whether torn remains of a write lie behind it.
    pub torn: bool,
    pub last_revision: Revision,
    pub sealed: Vec<Sealed>,
}

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub store: u64,
    pub number: u64,
    /// The revision the first commit in the segment has.
    pub first_revision: Revision,
}

impl SegmentHeader {
    fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.store.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.number.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.first_revision.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..SEGMENT_HEADER - 4]);
        bytes[SEGMENT_HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the header of a segment file.
    pub fn decode(file: &[u8]) -> Result<Self, String> {
        let Some(bytes) = file.get(..SEGMENT_HEADER) else { return Err("the file is cut short in its header".into()) };
        if &bytes[..8] != MAGIC {
            return Err("this is not a log segment".into());
        }
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let half = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if half(SEGMENT_HEADER - 4) != crc32fast::hash(&bytes[..SEGMENT_HEADER - 4]) {
            return Err("the file's header is damaged".into());
        }
        if half(8) != FORMAT {
            return Err(format!("format {} is not known, only {FORMAT}", half(8)));
        }
        Ok(SegmentHeader { store: word(16), number: word(24), first_revision: word(32) })
    }
}

/// Faults a test can ask for.
#[derive(Debug, Default)]
pub struct Faults {
    #[cfg(test)]
    pub sync: std::sync::atomic::AtomicBool,
    #[cfg(test)]
    pub space: std::sync::atomic::AtomicBool,
    /// The filesystem knows no direct writes.
    #[cfg(test)]
    pub indirect: std::sync::atomic::AtomicBool,
}

impl Faults {
    /// Opens a segment for direct writes, where they can be.
    fn direct(&self, path: &Path, position: u64) -> io::Result<Option<Direct>> {
        #[cfg(test)]
        if self.indirect.load(std::sync::atomic::Ordering::SeqCst) {
            return Ok(None);
        }
        Direct::open(path, position)
    }

    fn check_sync(&self) -> io::Result<()> {
        #[cfg(test)]
        if self.sync.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(io::Error::other("injected sync failure"));
        }
        Ok(())
    }

    fn check_space(&self) -> io::Result<()> {
        #[cfg(test)]
        if self.space.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

/// The name of a segment's file.
pub fn segment_name(number: u64) -> String {
    format!("log-{number:016x}")
}

/// The log, open for appending.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    file: File,
    direct: Option<Direct>,
    header: SegmentHeader,
    position: u64,
    reserved: u64,
    last_revision: Revision,
    sealed: Vec<Sealed>,
    segment_bytes: u64,
    /// The next segment, in the making.
    next: Option<JoinHandle<io::Result<(File, u64)>>>,
    faults: std::sync::Arc<Faults>,
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(next) = self.next.take() {
            _ = next.join();
            // If it stays, the next opening removes it.
            _ = std::fs::remove_file(self.next_path());
        }
    }
}

impl Log {
    /// Starts a log with an empty first segment.
    pub fn create(
        dir: &Path,
        store: u64,
        after: Revision,
        segment_bytes: u64,
        faults: std::sync::Arc<Faults>,
    ) -> Result<Self, StoreError> {
        let header = SegmentHeader { store, number: 1, first_revision: after + 1 };
        let reserved = blocks(SEGMENT_HEADER as u64 + zeros_ahead(segment_bytes));
        let path = dir.join(segment_name(header.number));
        let create = || {
            let file = make_segment(&path.with_extension("tmp"), reserved, &faults)?;
            name_segment(&file, &path, &header)?;
            Ok((file, faults.direct(&path, SEGMENT_HEADER as u64)?))
        };
        let (file, direct) = create().map_err(|e| StoreError::io("creating the log", &e))?;
        Ok(Log {
            dir: dir.into(),
            file,
            direct,
            header,
            position: SEGMENT_HEADER as u64,
            reserved,
            last_revision: after,
            sealed: Vec::new(),
            segment_bytes,
            next: None,
            faults,
        })
    }

    /// Goes on with a log that recovery has read.
    pub fn resume(
        dir: &Path,
        tail: Tail,
        segment_bytes: u64,
        faults: std::sync::Arc<Faults>,
    ) -> Result<Self, StoreError> {
        let Tail { header, position, torn, last_revision, sealed } = tail;
        let path = dir.join(segment_name(header.number));
        let open = || {
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            let reserved = file.metadata()?.len();
            if torn {
                write_zeros(&file, position, reserved)?;
                file.sync_all()?;
            }
            // Recovery has read the file ahead in large units; they would be written whole with each record.
            nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            Ok((file, faults.direct(&path, position)?, reserved))
        };
        let (file, direct, reserved) =
            open().map_err(|e| StoreError::io(format_args!("opening {}", path.display()), &e))?;
        let dir = dir.into();
        Ok(Log {
            dir,
            file,
            direct,
            header,
            position,
            reserved,
            last_revision,
            sealed,
            segment_bytes,
            next: None,
            faults,
        })
    }

    /// Appends one record, begun by [`record::begin`], and syncs it. `last_revision` is the newest revision in it or before
    /// it. Gives the number of the segment, and the offset of the payload in it.
    pub fn append(&mut self, record: &mut Vec<u8>, last_revision: Revision) -> Result<(u64, u64), AppendError> {
        if self.position >= self.segment_bytes {
            self.rotate()?;
        }
        self.reserve(record::framed_len(record.len() - record::HEADER) as u64)?;
        let at = self.position + record::HEADER as u64;
        self.write(record).map_err(|e| AppendError::Broken(self.error("writing", &e)))?;
        self.last_revision = last_revision;
        if self.next.is_none() && self.position > self.segment_bytes / PREPARE_AFTER {
            self.prepare();
        }
        Ok((self.header.number, at))
    }

    /// The number and the file of the segment under way.
    pub fn segment(&self) -> (u64, PathBuf) {
        (self.header.number, self.dir.join(segment_name(self.header.number)))
    }

    fn error(&self, doing: &str, error: &io::Error) -> StoreError {
        let path = self.dir.join(segment_name(self.header.number));
        StoreError::io(format_args!("{doing} {}", path.display()), error)
    }

    fn write(&mut self, record: &mut Vec<u8>) -> io::Result<()> {
        let place = Place { store: self.header.store, segment: self.header.number, offset: self.position };
        record::seal(record, place);
        let written = match &mut self.direct {
            Some(direct) => match direct.append(record, self.position) {
                Err(e) if direct::is_unable(&e) => false,
                written => written.map(|()| true)?,
            },
            None => false,
        };
        if !written {
            self.direct = None;
            self.file.write_all_at(record, self.position)?;
            self.file.sync_data()?;
        }
        self.faults.check_sync()?;
        self.position += record.len() as u64;
        Ok(())
    }

    /// Makes sure that zeros for a record of so many bytes are on disk.
    fn reserve(&mut self, bytes: u64) -> Result<(), AppendError> {
        let needed = blocks(self.position + bytes + TAIL_ROOM);
        if needed <= self.reserved {
            return Ok(());
        }
        let to = needed.max(blocks(self.reserved + zeros_ahead(self.segment_bytes)));
        let path = self.segment().1;
        let written = self.faults.check_space().and_then(|()| fill(&self.file, &path, self.reserved, to));
        match written {
            Ok(()) => {}
            Err(e) if is_full(&e) => {
                return Err(AppendError::NoSpace(StoreError::Full(format!("{}", self.error("extending", &e)))));
            }
            Err(e) => return Err(AppendError::Broken(self.error("extending", &e))),
        }
        let synced = self.faults.check_sync().and_then(|()| self.file.sync_all());
        synced.map_err(|e| AppendError::Broken(self.error("syncing", &e)))?;
        self.reserved = to;
        Ok(())
    }

    /// Where the next segment is made.
    fn next_path(&self) -> PathBuf {
        self.dir.join(segment_name(self.header.number + 1)).with_extension("tmp")
    }

    /// Starts to make the next segment. That it fails is met again when the segment is needed.
    fn prepare(&mut self) {
        let (path, faults) = (self.next_path(), self.faults.clone());
        let length = blocks(SEGMENT_HEADER as u64 + self.segment_bytes + zeros_ahead(self.segment_bytes));
        let make = move || Ok((make_segment(&path, length, &faults)?, length));
        self.next = std::thread::Builder::new().name("store-segment".into()).spawn(make).ok();
    }

    /// The next segment under its temporary name, and its length: what was prepared, or a short one made now.
    fn next_segment(&mut self) -> io::Result<(File, u64)> {
        let prepared = self.next.take().and_then(|next| next.join().ok()).and_then(Result::ok);
        match prepared {
            Some(prepared) => Ok(prepared),
            None => {
                let length = blocks(SEGMENT_HEADER as u64 + zeros_ahead(self.segment_bytes));
                Ok((make_segment(&self.next_path(), length, &self.faults)?, length))
            }
        }
    }

    /// Starts the next segment, then seals this one: a crash in between leaves an empty segment that recovery drops.
    fn rotate(&mut self) -> Result<(), AppendError> {
        let number = self.header.number + 1;
        let header = SegmentHeader { number, first_revision: self.last_revision + 1, ..self.header };
        let next = self.next_segment().and_then(|(file, reserved)| {
            let path = self.dir.join(segment_name(number));
            name_segment(&file, &path, &header)?;
            Ok((file, self.faults.direct(&path, SEGMENT_HEADER as u64)?, reserved))
        });
        let (file, direct, reserved) = match next {
            Ok(next) => next,
            Err(e) if is_full(&e) => {
                return Err(AppendError::NoSpace(StoreError::Full(format!(
                    "{}",
                    self.error("creating the segment after", &e)
                ))));
            }
            Err(e) => return Err(AppendError::Broken(self.error("creating the segment after", &e))),
        };
        let mut seal = Vec::new();
        record::begin(&mut seal, 0);
        record::step(&mut seal, &Entry::Seal(number));
        self.write(&mut seal).map_err(|e| AppendError::Broken(self.error("sealing", &e)))?;
        // The zeros behind the seal serve no more; if cutting them fails they only take room.
        _ = self.file.set_len(self.position + TAIL_ROOM);
        self.sealed.push(Sealed {
            number: self.header.number,
            bytes: self.position,
            last_revision: self.last_revision,
        });
        self.file = file;
        self.direct = direct;
        self.header = header;
        self.position = SEGMENT_HEADER as u64;
        self.reserved = reserved;
        Ok(())
    }

    /// The store's identity.
    pub fn store(&self) -> u64 {
        self.header.store
    }

    /// Bytes of records on disk.
    pub fn bytes(&self) -> u64 {
        self.position + self.sealed.iter().map(|s| s.bytes).sum::<u64>()
    }

    /// Bytes of segments that a snapshot at `revision` would make superfluous.
    pub fn droppable(&self, revision: Revision) -> u64 {
        self.sealed.iter().take_while(|s| s.last_revision <= revision).map(|s| s.bytes).sum()
    }

    /// The numbers of the segments that a snapshot at `revision` makes superfluous.
    pub fn covered(&self, revision: Revision) -> Vec<u64> {
        self.sealed.iter().take_while(|s| s.last_revision <= revision).map(|s| s.number).collect()
    }

    /// Deletes the segments a durable snapshot at `revision` has made superfluous, oldest first.
    pub fn drop_up_to(&mut self, revision: Revision) -> io::Result<()> {
        while let Some(oldest) = self.sealed.first().filter(|s| s.last_revision <= revision) {
            std::fs::remove_file(self.dir.join(segment_name(oldest.number)))?;
            self.sealed.remove(0);
        }
        sync_dir(&self.dir)
    }
}

fn zeros_ahead(segment_bytes: u64) -> u64 {
    segment_bytes.clamp(2 * TAIL_ROOM, ZEROS_AHEAD)
}

/// Whole blocks for so many bytes.
fn blocks(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK as u64)
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Writes zeros past the cache where they can be, which they can if `from` and `to` lie between blocks.
fn fill(file: &File, path: &Path, from: u64, to: u64) -> io::Result<()> {
    if direct::write_zeros(path, from, to)? { Ok(()) } else { write_zeros(file, from, to) }
}

fn write_zeros(file: &File, from: u64, to: u64) -> io::Result<()> {
    let zeros = [0; ZERO_PIECE];
    let mut at = from;
    while at < to {
        let n = (to - at).min(ZERO_PIECE as u64);
        file.write_all_at(&zeros[..n as usize], at)?;
        at += n;
    }
    Ok(())
}

/// A file of zeros, on disk.
fn make_segment(path: &Path, length: u64, faults: &Faults) -> io::Result<File> {
    let make = || {
        faults.check_space()?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut at = 0;
        while at < length {
            let to = length.min(at + ZEROS_AHEAD);
            fill(&file, path, at, to)?;
            // Piece by piece, so that records of the segment before do not wait behind all of it.
            file.sync_all()?;
            at = to;
        }
        Ok(file)
    };
    make().inspect_err(|_| _ = std::fs::remove_file(path))
}

/// Gives a segment its header and its final name, wholly on disk.
fn name_segment(file: &File, path: &Path, header: &SegmentHeader) -> io::Result<()> {
    let name = || {
        file.write_all_at(&header.encode(), 0)?;
        file.sync_all()?;
        std::fs::rename(path.with_extension("tmp"), path)?;
        // A segment has a directory.
        path.parent().map_or(Ok(()), sync_dir)
    };
    name().inspect_err(|_| _ = std::fs::remove_file(path.with_extension("tmp")))
}

/// Makes renames and removals in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
