//! Snapshot files: the whole state at one revision, with the leases.
//!
//! Guarantees: a snapshot under its final name is complete and on disk (written aside, synced, renamed, directory
//! synced); reading one checks every byte and that nothing is missing. The file is a 64-byte header and records in the
//! log's frame, the last of which counts the items. Knows nothing of when snapshots are due.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::leases::LeaseTerm;
use super::log::{FORMAT, sync_dir};
use super::record::{self, HEADER, Place, Reader};
use crate::{Key, KeyValue, Revision, StoreError};

const MAGIC: &[u8; 8] = b"NAUPSNP\n";

/// The header of a snapshot, in bytes.
const SNAPSHOT_HEADER: usize = 64;

/// Items are gathered into records of about this many bytes.
const BLOCK_BYTES: usize = 256 << 10;

/// Keys taken at a time from the source of a snapshot, so that it is not held for long.
pub const PAGE_KEYS: usize = 512;

/// In a record's place, where the log has its segment number: snapshots are no segment.
const NO_SEGMENT: u64 = u64::MAX;

const ITEMS: u8 = 1;
const LEASES: u8 = 2;
const END: u8 = 3;

/// Everything a snapshot holds besides the items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    pub store: u64,
    pub revision: Revision,
    pub leases: Vec<LeaseTerm>,
    pub next_lease: i64,
}

/// The name of a snapshot's file.
pub fn snapshot_name(revision: Revision) -> String {
    format!("snapshot-{revision:016x}")
}

pub fn io_error(doing: &str, path: &Path) -> impl Fn(std::io::Error) -> StoreError {
    let what = format!("{doing} {}", path.display());
    move |e| StoreError::io(&what, &e)
}

struct Output<'a> {
    file: File,
    path: &'a Path,
    place: Place,
}

impl Output<'_> {
    /// Writes a block, and leaves one of the same kind that is empty.
    fn record(&mut self, block: &mut Vec<u8>) -> Result<(), StoreError> {
        record::seal(block, self.place);
        self.file.write_all(block).map_err(io_error("writing", self.path))?;
        self.place.offset += block.len() as u64;
        block.truncate(EMPTY_BLOCK);
        Ok(())
    }
}

/// Room for a record's header, and the block's kind.
const EMPTY_BLOCK: usize = HEADER + 1;

fn block(kind: u8) -> Vec<u8> {
    let mut block = vec![0; HEADER];
    block.push(kind);
    block
}

/// Writes a snapshot to `path`. `page` gives the keys from a start on, in order; an empty page ends it; an error stops it.
pub fn write(
    path: &Path,
    contents: &Contents,
    mut page: impl FnMut(&str) -> Result<Vec<KeyValue>, StoreError>,
) -> Result<u64, StoreError> {
    let temporary = path.with_extension("tmp");
    let written = (|| {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(io_error("creating", &temporary))?;
        let place = Place { store: contents.store, segment: NO_SEGMENT, offset: SNAPSHOT_HEADER as u64 };
        let mut out = Output { file, path: &temporary, place };
        out.file.write_all(&encode_header(contents)).map_err(io_error("writing", &temporary))?;
        let items = write_items(&mut out, &mut page)?;
        write_end(&mut out, contents, items)?;
        out.file.sync_all().map_err(io_error("syncing", &temporary))?;
        std::fs::rename(&temporary, path).map_err(io_error("renaming", &temporary))?;
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        sync_dir(parent).map_err(io_error("syncing", parent))?;
        Ok(out.place.offset)
    })();
    written.inspect_err(|_| _ = std::fs::remove_file(&temporary))
}

fn write_items(
    out: &mut Output<'_>,
    page: &mut impl FnMut(&str) -> Result<Vec<KeyValue>, StoreError>,
) -> Result<u64, StoreError> {
    let mut block = block(ITEMS);
    let mut items = 0;
    let mut start = String::new();
    loop {
        let page = page(&start)?;
        let Some(last) = page.last() else { break };
        start = format!("{}\0", last.key);
        for kv in &page {
            record::put_bytes(&mut block, kv.key.as_bytes());
            let words = [kv.create_revision, kv.mod_revision, kv.version, kv.lease.map_or(0, |l| l.0) as u64];
            words.iter().for_each(|word| record::put_u64(&mut block, *word));
            record::put_bytes(&mut block, &kv.value);
            items += 1;
            if block.len() >= BLOCK_BYTES {
                out.record(&mut block)?;
            }
        }
    }
    if block.len() > EMPTY_BLOCK {
        out.record(&mut block)?;
    }
    Ok(items)
}

fn write_end(out: &mut Output<'_>, contents: &Contents, items: u64) -> Result<(), StoreError> {
    let mut terms = block(LEASES);
    contents.leases.iter().for_each(|term| record::put_term(&mut terms, term));
    out.record(&mut terms)?;
    let mut end = block(END);
    record::put_u64(&mut end, items);
    record::put_u64(&mut end, contents.next_lease as u64);
    out.record(&mut end)
}

fn encode_header(contents: &Contents) -> [u8; SNAPSHOT_HEADER] {
    let mut bytes = [0; SNAPSHOT_HEADER];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[16..24].copy_from_slice(&contents.store.to_le_bytes());
    bytes[24..32].copy_from_slice(&contents.revision.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..SNAPSHOT_HEADER - 4]);
    bytes[SNAPSHOT_HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

struct Input {
    file: BufReader<File>,
    path: PathBuf,
    offset: u64,
}

impl Input {
    fn corrupt(&self, what: impl std::fmt::Display) -> StoreError {
        StoreError::Corrupt(format!("{} at offset {}: {what}", self.path.display(), self.offset))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), StoreError> {
        match self.file.read_exact(buffer) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(self.corrupt("the file has been cut short")),
            Err(e) => Err(io_error("reading", &self.path)(e)),
        }
    }

    fn record(&mut self, store: u64, buffer: &mut Vec<u8>) -> Result<usize, StoreError> {
        buffer.resize(HEADER, 0);
        self.fill(buffer)?;
        let place = Place { store, segment: NO_SEGMENT, offset: self.offset };
        let Some((len, crc)) = record::header(buffer, place).filter(|(len, _)| *len <= record::MAX_PAYLOAD) else {
            return Err(self.corrupt("the header of a record is damaged"));
        };
        buffer.resize(record::framed_len(len) - HEADER, 0);
        self.fill(buffer)?;
        if crc32fast::hash(buffer) != crc {
            return Err(self.corrupt("the content of a record is damaged"));
        }
        self.offset += record::framed_len(len) as u64;
        Ok(len)
    }
}

/// Reads a snapshot: its items go to `item` in order.
pub fn read(path: &Path, mut item: impl FnMut(KeyValue)) -> Result<Contents, StoreError> {
    let file = File::open(path).map_err(io_error("opening", path))?;
    let mut input = Input { file: BufReader::with_capacity(BLOCK_BYTES, file), path: path.into(), offset: 0 };
    let mut header = [0; SNAPSHOT_HEADER];
    input.fill(&mut header)?;
    let mut contents = decode_header(&header).map_err(|what| input.corrupt(what))?;
    input.offset = SNAPSHOT_HEADER as u64;
    let mut buffer = Vec::new();
    let mut items = 0;
    let mut last: Option<Key> = None;
    loop {
        let at = input.offset;
        let len = input.record(contents.store, &mut buffer)?;
        let (tag, body) = buffer[..len].split_first().unwrap_or((&0, &[]));
        let mut reader = Reader(body);
        let damaged = |what: &str| StoreError::Corrupt(format!("{} at offset {at}: {what}", path.display()));
        match *tag {
            ITEMS => {
                while !reader.0.is_empty() {
                    let kv = read_item(&mut reader).map_err(damaged)?;
                    if last.as_ref().is_some_and(|last| *last >= kv.key) {
                        return Err(damaged("keys are out of order"));
                    }
                    last = Some(kv.key.clone());
                    item(kv);
                    items += 1;
                }
            }
            LEASES => {
                while !reader.0.is_empty() {
                    contents.leases.push(reader.term().map_err(damaged)?);
                }
            }
            END => {
                if reader.u64().map_err(damaged)? != items {
                    return Err(damaged("items are missing"));
                }
                contents.next_lease = reader.u64().map_err(damaged)? as i64;
                return Ok(contents);
            }
            _ => return Err(damaged("unknown block")),
        }
    }
}

fn read_item(reader: &mut Reader<'_>) -> Result<KeyValue, &'static str> {
    let key = reader.key()?;
    let (create_revision, mod_revision, version) = (reader.u64()?, reader.u64()?, reader.u64()?);
    let lease = reader.lease()?;
    Ok(KeyValue { key, create_revision, mod_revision, version, lease, value: reader.value()? })
}

fn decode_header(bytes: &[u8; SNAPSHOT_HEADER]) -> Result<Contents, String> {
    if &bytes[..8] != MAGIC {
        return Err("this is not a snapshot".into());
    }
    let mut reader = Reader(&bytes[8..]);
    let mut read = || -> Result<_, &'static str> { Ok((reader.u32()?, reader.u32()?, reader.u64()?, reader.u64()?)) };
    let (format, _, store, revision) = read()?;
    if bytes[SNAPSHOT_HEADER - 4..] != crc32fast::hash(&bytes[..SNAPSHOT_HEADER - 4]).to_le_bytes() {
        return Err("the file's header is damaged".into());
    }
    if format != FORMAT as usize {
        return Err(format!("format {format} is not known, only {FORMAT}"));
    }
    Ok(Contents { store, revision, leases: Vec::new(), next_lease: 1 })
}
