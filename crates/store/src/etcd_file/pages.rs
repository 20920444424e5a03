//! The pages of a bbolt file: where they lie, their heads, and the two that say where everything begins.
//!
//! Guarantees: what is written is whole once [`Output::finish`] returns, and its last pages to be written are the first two,
//! without which it is no such file; a page is read only within the file, and only once. Knows nothing of what pages hold.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::StoreError;
use crate::embedded::snapshot::io_error;

/// A page, in bytes, where we write: what the processor's pages are nearly everywhere.
pub const PAGE: usize = 4096;

/// A page begins with its number, what it holds, how many of them, and how many pages it goes on for.
pub const HEAD: usize = 16;

pub const BRANCH: u16 = 1;
pub const LEAF: u16 = 2;
const META: u16 = 4;
const FREE: u16 = 16;

pub const MAGIC: u32 = 0xED0C_DAED;
pub const MAGIC_AT: usize = HEAD;
const VERSION: u32 = 2;

/// What the first pages hold, without its checksum.
const META_BYTES: usize = 56;

/// The list of free pages: none. The pages before it say where all begins.
const FREE_PAGE: u64 = 2;

/// The largest run of pages that is read: far above the largest value.
const LARGEST_RUN: u64 = 1 << 30;

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

fn head(number: u64, kind: u16, count: u16, more: u32) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(&number.to_le_bytes());
    head[8..10].copy_from_slice(&kind.to_le_bytes());
    head[10..12].copy_from_slice(&count.to_le_bytes());
    head[12..].copy_from_slice(&more.to_le_bytes());
    head
}

/// A file being written, page after page.
pub struct Output {
    file: BufWriter<File>,
    path: PathBuf,
    next: u64,
}

impl Output {
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
        let file = file.map_err(io_error("creating", path))?;
        let mut out = Output { file: BufWriter::with_capacity(256 << 10, file), path: path.into(), next: 0 };
        // Room for the first two, and a list of free pages that has none.
        out.bytes(&[0; FREE_PAGE as usize * PAGE])?;
        out.next = FREE_PAGE;
        out.page(FREE, 0, &[])?;
        Ok(out)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).map_err(io_error("writing", &self.path))
    }

    /// Writes a page, and as many after it as it needs. Gives its number.
    pub fn page(&mut self, kind: u16, count: u16, body: &[u8]) -> Result<u64, StoreError> {
        const ZEROS: [u8; PAGE] = [0; PAGE];
        let number = self.next;
        let bytes = HEAD + body.len();
        let pages = bytes.div_ceil(PAGE);
        let more = u32::try_from(pages - 1).map_err(|_| StoreError::Invalid("a value of terabytes".into()))?;
        self.bytes(&head(number, kind, count, more))?;
        self.bytes(body)?;
        self.bytes(&ZEROS[..pages * PAGE - bytes])?;
        self.next += pages as u64;
        Ok(number)
    }

    /// Says where everything begins. Gives the size of the file.
    pub fn finish(self, root: u64) -> Result<u64, StoreError> {
        let Output { file, path, next } = self;
        let io = io_error("writing", &path);
        let file = file.into_inner().map_err(|error| io(error.into_error()))?;
        for number in 0..FREE_PAGE {
            let mut meta = Vec::with_capacity(META_BYTES + 8);
            for word in [MAGIC, VERSION, PAGE as u32, 0] {
                meta.extend_from_slice(&word.to_le_bytes());
            }
            // The root, its sequence, the free pages, the end, and which of the two is newer.
            for word in [root, 0, FREE_PAGE, next, number] {
                meta.extend_from_slice(&word.to_le_bytes());
            }
            meta.extend_from_slice(&checksum(&meta).to_le_bytes());
            let at = number * PAGE as u64;
            file.write_all_at(&head(number, META, 0, 0), at).map_err(&io)?;
            file.write_all_at(&meta, at + HEAD as u64).map_err(&io)?;
        }
        file.sync_all().map_err(io_error("syncing", &path))?;
        Ok(next * PAGE as u64)
    }
}

/// A file being read.
pub struct Input {
    file: File,
    path: PathBuf,
    page: u64,
    end: u64,
    root: u64,
    seen: RefCell<HashSet<u64>>,
}

/// A page that was read: what it holds, how many of them, and its bytes, from behind its head on.
pub struct Page {
    pub kind: u16,
    pub count: u16,
    pub body: Vec<u8>,
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Splits a page's bytes from its head. None: they are fewer than a head.
pub fn parse(bytes: &[u8]) -> Option<(Page, u64, u64)> {
    let (head, body) = bytes.split_at_checked(HEAD)?;
    let kinds = word32(head, 8)?;
    let page = Page { kind: kinds as u16, count: (kinds >> 16) as u16, body: body.to_vec() };
    Some((page, word64(head, 0)?, word32(head, 12)?.into()))
}

impl Input {
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(io_error("opening", path))?;
        let size = file.metadata().map_err(io_error("reading", path))?.len();
        let mut input = Input { file, path: path.into(), page: 0, end: 0, root: 0, seen: RefCell::default() };
        // The second one lies where the first says, or, if that is damaged, where it is for pages of some size.
        let first = input.meta_at(0)?;
        let sizes = match &first {
            Some((_, page, ..)) => vec![*page],
            None => (9..=16).map(|bits| 1 << bits).collect(),
        };
        let second = sizes.iter().find_map(|page| input.meta_at(*page).transpose()).transpose()?;
        let newest = first.into_iter().chain(second).max_by_key(|(newer, ..)| *newer);
        let Some((_, page, root, end)) = newest else { return Err(input.corrupt("both first pages are damaged")) };
        if !page.is_power_of_two()
            || !(512..=65536).contains(&page)
            || end.checked_mul(page).is_none_or(|end| end > size)
        {
            return Err(input.corrupt("it has been cut short"));
        }
        (input.page, input.root, input.end) = (page, root, end);
        Ok(input)
    }

    /// How new, the size of pages, the root and the end: what a first page says that is whole.
    fn meta_at(&self, at: u64) -> Result<Option<(u64, u64, u64, u64)>, StoreError> {
        let mut bytes = [0; META_BYTES + 8];
        match self.file.read_exact_at(&mut bytes, at + HEAD as u64) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(io_error("reading", &self.path)(error)),
        }
        let whole = word32(&bytes, 0) == Some(MAGIC)
            && word32(&bytes, 4) == Some(VERSION)
            && word64(&bytes, META_BYTES) == Some(checksum(&bytes[..META_BYTES]));
        let said = || Some((word64(&bytes, 48)?, word32(&bytes, 8)?.into(), word64(&bytes, 16)?, word64(&bytes, 40)?));
        Ok(if whole { said() } else { None })
    }

    pub fn corrupt(&self, what: &str) -> StoreError {
        StoreError::Corrupt(format!("{}: {what}", self.path.display()))
    }

    /// The page the buckets' names are under.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Reads a page, with those it goes on for. Each once: a file whose pages go in a circle has no end.
    pub fn read(&self, number: u64) -> Result<Page, StoreError> {
        let damaged = || self.corrupt(&format!("page {number} is damaged"));
        if number >= self.end || !self.seen.borrow_mut().insert(number) {
            return Err(damaged());
        }
        let bytes = |pages: u64| {
            let mut bytes = vec![0; usize::try_from(pages * self.page).map_err(|_| damaged())?];
            self.file.read_exact_at(&mut bytes, number * self.page).map_err(io_error("reading", &self.path))?;
            Ok::<_, StoreError>(bytes)
        };
        let (page, said, more) = parse(&bytes(1)?).ok_or_else(damaged)?;
        if said != number || more >= self.end - number || (more + 1) * self.page > LARGEST_RUN {
            return Err(damaged());
        }
        if more == 0 {
            return Ok(page);
        }
        Ok(parse(&bytes(more + 1)?).ok_or_else(damaged)?.0)
    }
}
