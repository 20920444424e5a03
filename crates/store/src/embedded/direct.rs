//! Writing a segment past the kernel's cache of pages.
//!
//! A write of whole blocks from aligned memory goes to the disk as it is, and is durable when it returns (`O_DIRECT`,
//! `O_DSYNC`): half the processor time of a write into the cache and a sync, since nothing is copied, looked for or marked.
//! Guarantees: a block that holds older records is written again with the same bytes in the same sectors, as the cache would
//! do. Knows nothing of records. A filesystem that cannot do it says so when the file is opened, or with the first write.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

/// What is written starts and ends at a multiple of this many bytes, in the file and in memory: no disk has larger sectors.
pub const BLOCK: usize = 4 << 10;

/// Memory kept for the next write, in bytes; a larger write's goes when it is done.
const KEPT_ROOM: usize = 1 << 20;

/// Zeros written in one piece, in bytes.
const ZEROS: usize = 256 << 10;

/// A segment's end, as far as direct writes go.
#[derive(Debug)]
pub struct Direct {
    file: File,
    /// The block the segment ends in; what lies behind the end does not count.
    last: Box<[u8; BLOCK]>,
    room: Vec<u8>,
}

impl Direct {
    /// Opens a segment that ends at `position`; none where direct writes cannot be.
    pub fn open(path: &Path, position: u64) -> io::Result<Option<Self>> {
        let flags = OFlag::O_DIRECT | OFlag::O_DSYNC;
        let file = match OpenOptions::new().write(true).custom_flags(flags.bits()).open(path) {
            Ok(file) => file,
            Err(e) if is_unable(&e) => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut last = Box::new([0; BLOCK]);
        let kept = kept(position);
        File::open(path)?.read_exact_at(&mut last[..kept], position - kept as u64)?;
        Ok(Some(Direct { file, last, room: Vec::new() }))
    }

    /// Writes at the segment's end, durably. The file must be long enough for the last block to be whole. An error that
    /// [`is_unable`] has written nothing.
    pub fn append(&mut self, bytes: &[u8], position: u64) -> io::Result<()> {
        let kept = kept(position);
        let end = kept + bytes.len();
        let blocks = whole(&mut self.room, end.next_multiple_of(BLOCK));
        blocks[..kept].copy_from_slice(&self.last[..kept]);
        blocks[kept..end].copy_from_slice(bytes);
        blocks[end..].fill(0);
        self.file.write_all_at(blocks, position - kept as u64)?;
        let begun = end - end % BLOCK;
        self.last[..end - begun].copy_from_slice(&blocks[begun..end]);
        if self.room.len() > KEPT_ROOM {
            self.room = Vec::new();
        }
        Ok(())
    }
}

/// Fills a new file with zeros from one block's start to another's, not yet durably; false where that cannot be.
pub fn write_zeros(path: &Path, from: u64, to: u64) -> io::Result<bool> {
    let opened = OpenOptions::new().write(true).custom_flags(OFlag::O_DIRECT.bits()).open(path);
    let (mut at, mut room) = (from, Vec::new());
    let zeros = whole(&mut room, ZEROS);
    let written = opened.and_then(|file| {
        while at < to {
            let piece = &zeros[..(to - at).min(ZEROS as u64) as usize];
            file.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(true)
    });
    written.or_else(|e| if is_unable(&e) { Ok(false) } else { Err(e) })
}

/// Whether an error says that a filesystem knows no direct writes, or none of such blocks.
pub fn is_unable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

/// Bytes of the last block that lie before a position.
fn kept(position: u64) -> usize {
    (position % BLOCK as u64) as usize
}

/// So many bytes of a buffer, aligned.
fn whole(room: &mut Vec<u8>, bytes: usize) -> &mut [u8] {
    if room.len() < bytes + BLOCK {
        *room = vec![0; bytes + BLOCK];
    }
    let skipped = room.as_ptr().align_offset(BLOCK);
    &mut room[skipped..skipped + bytes]
}
