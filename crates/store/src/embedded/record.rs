//! The bytes of the log: what a commit group looks like as a payload, and how payloads are framed as records.
//!
//! Frame: a 16-byte header (payload length, CRC-32 of payload and padding, CRC-32 of the header, a mark), the payload, and
//! 1 to 16 bytes of 0xFF up to a multiple of 16. Records start at multiples of 16, so a header lies within one
//! 512-byte sector, and the part of a record in its first and in its last sector is never all zero: what a crash left
//! unwritten (zeros, sector by sector) can be told from what was damaged later. The header's CRC covers the store's
//! identity, the segment and the offset, so a record is valid only where it was written.
//!
//! All integers are little endian.

use bytes::Bytes;

use super::history::Spot;
use super::leases::LeaseTerm;
use crate::{Key, LeaseId, Op, Revision};

/// Records start at multiples of this, in bytes.
pub const ALIGN: usize = 16;

/// The size of a record's header.
pub const HEADER: usize = 16;

/// The unit a disk writes or does not write as a whole.
pub const SECTOR: usize = 512;

/// The longest payload believed when reading; the writer's bounds keep far below.
pub const MAX_PAYLOAD: usize = 1 << 30;

/// The last word of a header: keeps it from being zero and names the format.
const MARK: u32 = 0x4352_504E;

/// One step of a commit group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// One revision, and for each operation where its value lies in the payload (nowhere for a delete).
    Commit { revision: Revision, ops: Vec<Op>, spots: Vec<Spot> },
    /// A lease was made or kept alive.
    Lease(LeaseTerm),
    /// A lease ended.
    LeaseEnd(LeaseId),
    /// History below the revision was given up on request.
    Compact(Revision),
    /// The last record of a segment: the log goes on in the segment with this number.
    Seal(u64),
}

const PUT: u8 = 0;
const DELETE: u8 = 1;
const COMMIT: u8 = 1;
const LEASE: u8 = 2;
const LEASE_END: u8 = 3;
const COMPACT: u8 = 4;
const SEAL: u8 = 5;

/// Starts a record: room for its header, then its payload, which begins with the time of the commit in milliseconds since
/// 1970. Steps are appended to it; [`seal`] makes it whole.
pub fn begin(record: &mut Vec<u8>, at_ms: u64) {
    record.clear();
    record.extend_from_slice(&[0; HEADER]);
    record.extend_from_slice(&at_ms.to_le_bytes());
}

/// Whether anything was encoded since [`begin`].
pub fn is_empty(record: &[u8]) -> bool {
    record.len() <= HEADER + 8
}

/// Appends one revision; tells for each operation where its value lies in the payload (nowhere for a delete).
pub fn commit(payload: &mut Vec<u8>, revision: Revision, ops: &[Op], spots: &mut Vec<Spot>) {
    payload.push(COMMIT);
    put_u64(payload, revision);
    put_u32(payload, ops.len());
    for op in ops {
        match op {
            Op::Put { key, value, lease } => {
                payload.push(PUT);
                put_bytes(payload, key.as_bytes());
                put_u64(payload, lease.map_or(0, |lease| lease.0) as u64);
                put_bytes(payload, value);
                spots.push(Spot::in_payload(payload.len() - value.len() - HEADER, value));
            }
            Op::Delete { key } => {
                payload.push(DELETE);
                put_bytes(payload, key.as_bytes());
                spots.push(Spot::default());
            }
        }
    }
}

/// Appends any other step.
pub fn step(payload: &mut Vec<u8>, entry: &Entry) {
    match entry {
        Entry::Commit { revision, ops, .. } => commit(payload, *revision, ops, &mut Vec::new()),
        Entry::Lease(term) => {
            payload.push(LEASE);
            put_term(payload, term);
        }
        Entry::LeaseEnd(id) => {
            payload.push(LEASE_END);
            put_u64(payload, id.0 as u64);
        }
        Entry::Compact(revision) => {
            payload.push(COMPACT);
            put_u64(payload, *revision);
        }
        Entry::Seal(next) => {
            payload.push(SEAL);
            put_u64(payload, *next);
        }
    }
}

/// Reads a payload back: its time and steps, or what is wrong with it.
pub fn decode(payload: &[u8]) -> Result<(u64, Vec<Entry>), &'static str> {
    let mut reader = Reader(payload);
    let at_ms = reader.u64()?;
    let mut entries = Vec::new();
    while !reader.0.is_empty() {
        entries.push(match reader.u8()? {
            COMMIT => {
                let revision = reader.u64()?;
                let count = reader.u32()?;
                // An operation takes five bytes at least.
                let mut ops = Vec::with_capacity(count.min(reader.0.len() / 5));
                let mut spots = Vec::with_capacity(ops.capacity());
                for _ in 0..count {
                    let op = reader.op()?;
                    // A value is the last thing read of its operation.
                    let after = payload.len() - reader.0.len();
                    spots.push(match &op {
                        Op::Put { value, .. } => Spot::in_payload(after - value.len(), value),
                        Op::Delete { .. } => Spot::default(),
                    });
                    ops.push(op);
                }
                Entry::Commit { revision, ops, spots }
            }
            LEASE => Entry::Lease(reader.term()?),
            LEASE_END => Entry::LeaseEnd(LeaseId(reader.u64()? as i64)),
            COMPACT => Entry::Compact(reader.u64()?),
            SEAL => Entry::Seal(reader.u64()?),
            _ => return Err("unknown entry"),
        });
    }
    Ok((at_ms, entries))
}

fn put_u32(to: &mut Vec<u8>, n: usize) {
    // Lengths are bounded far below 4 GiB by the request and group limits.
    to.extend_from_slice(&(n as u32).to_le_bytes());
}

pub fn put_u64(to: &mut Vec<u8>, n: u64) {
    to.extend_from_slice(&n.to_le_bytes());
}

pub fn put_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(to, bytes.len());
    to.extend_from_slice(bytes);
}

pub fn put_term(to: &mut Vec<u8>, term: &LeaseTerm) {
    put_u64(to, term.id.0 as u64);
    put_u64(to, term.ttl_ms);
    put_u64(to, term.expires_ms);
}

/// Takes values off the front of a payload.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], &'static str> {
        let (head, tail) = self.0.split_at_checked(n).ok_or("the payload ends early")?;
        self.0 = tail;
        Ok(head)
    }

    pub fn u8(&mut self) -> Result<u8, &'static str> {
        Ok(self.take(1)?[0])
    }

    pub fn u32(&mut self) -> Result<usize, &'static str> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    }

    pub fn u64(&mut self) -> Result<u64, &'static str> {
        let bytes = self.take(8)?;
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        Ok(u64::from_le_bytes(word))
    }

    pub fn key(&mut self) -> Result<Key, &'static str> {
        let n = self.u32()?;
        let text = std::str::from_utf8(self.take(n)?).map_err(|_| "a key is not text")?;
        Ok(Key::from(text))
    }

    /// A value of its own, so that it does not keep the whole file in memory.
    pub fn value(&mut self) -> Result<Bytes, &'static str> {
        let n = self.u32()?;
        Ok(Bytes::copy_from_slice(self.take(n)?))
    }

    pub fn lease(&mut self) -> Result<Option<LeaseId>, &'static str> {
        let id = self.u64()? as i64;
        Ok((id != 0).then_some(LeaseId(id)))
    }

    pub fn term(&mut self) -> Result<LeaseTerm, &'static str> {
        Ok(LeaseTerm { id: LeaseId(self.u64()? as i64), ttl_ms: self.u64()?, expires_ms: self.u64()? })
    }

    fn op(&mut self) -> Result<Op, &'static str> {
        match self.u8()? {
            PUT => {
                let key = self.key()?;
                let lease = self.lease()?;
                Ok(Op::Put { key, value: self.value()?, lease })
            }
            DELETE => Ok(Op::Delete { key: self.key()? }),
            _ => Err("unknown operation"),
        }
    }
}

/// Where a record lies; part of its header's CRC.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub store: u64,
    pub segment: u64,
    pub offset: u64,
}

/// The bytes a record of this payload takes in the file.
pub fn framed_len(payload: usize) -> usize {
    HEADER + payload + padding(payload)
}

fn padding(payload: usize) -> usize {
    ALIGN - payload % ALIGN
}

fn header_crc(place: Place, len: u32, crc: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&place.store.to_le_bytes());
    hasher.update(&place.segment.to_le_bytes());
    hasher.update(&place.offset.to_le_bytes());
    hasher.update(&len.to_le_bytes());
    hasher.update(&crc.to_le_bytes());
    hasher.finalize()
}

/// Makes a record whole that [`begin`] has started: its padding, and its header for the place it goes to.
pub fn seal(record: &mut Vec<u8>, place: Place) {
    let len = record.len() - HEADER;
    record.extend_from_slice(&[0xFF; ALIGN][..padding(len)]);
    let crc = crc32fast::hash(&record[HEADER..]);
    let len = len as u32;
    let header = [len, crc, header_crc(place, len, crc), MARK];
    for (to, word) in record.chunks_exact_mut(4).zip(header) {
        to.copy_from_slice(&word.to_le_bytes());
    }
}

/// What lies at a place of a segment.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A whole record; the next starts at `next`.
    Record { payload: &'a [u8], next: usize },
    /// Nothing but zeros to the end of the file.
    End,
    /// What a crash in the middle of the last write leaves: some sectors of one record never reached the disk, and
    /// nothing follows it.
    Torn,
    /// Anything else.
    Damaged(&'static str),
}

/// Reads the record at `offset` of a whole segment file.
pub fn read(file: &[u8], mut place: Place) -> Found<'_> {
    let offset = place.offset as usize;
    let Some(rest) = file.get(offset..).filter(|rest| rest.len() >= HEADER) else {
        // The file is extended before a record needs the room, and always by more than a header.
        return Found::Damaged("the file has been cut short");
    };
    if is_zero(&rest[..HEADER]) {
        if is_zero(&rest[HEADER..]) {
            return Found::End;
        }
        // A lost first sector of the last write leaves its later sectors, but never another record.
        for later in (offset + ALIGN..file.len() - HEADER + 1).step_by(ALIGN) {
            place.offset = later as u64;
            if header(&file[later..], place).is_some() {
                return Found::Damaged("a record is missing before another one");
            }
        }
        return Found::Torn;
    }
    let Some((len, crc)) = header(rest, place) else {
        return Found::Damaged("the header of a record is damaged");
    };
    let end = framed_len(len);
    if len > MAX_PAYLOAD {
        return Found::Damaged("the length of a record is impossible");
    }
    let Some(body) = rest.get(HEADER..end) else {
        return Found::Damaged("the file has been cut short inside a record");
    };
    if crc32fast::hash(body) == crc {
        return Found::Record { payload: &body[..len], next: offset + end };
    }
    if is_zero(&rest[end..]) && has_unwritten_sector(file, offset, offset + end) {
        return Found::Torn;
    }
    Found::Damaged("the content of a record is damaged")
}

/// The length and CRC in a valid header.
pub fn header(bytes: &[u8], place: Place) -> Option<(usize, u32)> {
    let word = |i: usize| u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]);
    let (len, crc) = (word(0), word(1));
    (word(3) == MARK && word(2) == header_crc(place, len, crc)).then_some((len as usize, crc))
}

/// Whether the part of `from..to` in some sector is all zero.
fn has_unwritten_sector(file: &[u8], from: usize, to: usize) -> bool {
    let mut at = from;
    while at < to {
        let end = to.min((at / SECTOR + 1) * SECTOR);
        if is_zero(&file[at..end]) {
            return true;
        }
        at = end;
    }
    false
}

/// Whether all bytes are zero, a machine word at a time.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut chunks = bytes.chunks_exact(16);
    chunks.all(|chunk| chunk == [0; 16]) && chunks.remainder().iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let put = |value: &'static [u8], lease| Op::Put { key: "/k".into(), value: Bytes::from_static(value), lease };
        vec![
            Entry::Commit {
                revision: 7,
                ops: vec![put(b"v", Some(LeaseId(3))), Op::Delete { key: "/é".into() }],
                spots: vec![Spot::in_payload(8 + 13 + 1 + 6 + 8 + 4, b"v"), Spot::default()],
            },
            Entry::Commit {
                revision: 8,
                ops: vec![put(b"", None)],
                spots: vec![Spot::in_payload(8 + 13 + 20 + 8 + 13 + 19, b"")],
            },
            Entry::Lease(LeaseTerm { id: LeaseId(3), ttl_ms: 1000, expires_ms: u64::MAX }),
            Entry::LeaseEnd(LeaseId(-1)),
            Entry::Compact(5),
            Entry::Seal(9),
        ]
    }

    #[test]
    fn payloads_come_back() {
        let mut payload = Vec::new();
        begin(&mut payload, 42);
        assert!(is_empty(&payload));
        entries().iter().for_each(|entry| step(&mut payload, entry));
        let payload = &payload[HEADER..];
        assert_eq!(decode(payload), Ok((42, entries())));
        for cut in 0..payload.len() {
            // A cut may fall between two entries; anywhere else it is noticed, and nowhere does it panic.
            match decode(&payload[..cut]) {
                Ok((_, some)) => assert!(entries().starts_with(&some)),
                Err(what) => assert!(!what.is_empty()),
            }
        }
        for at in 8..payload.len() {
            let mut changed = payload.to_vec();
            changed[at] ^= 0xA5;
            _ = decode(&changed);
        }
    }

    #[test]
    fn frames_are_aligned_and_never_blank_at_the_ends() {
        for len in 0..100 {
            let place = Place { store: 1, segment: 2, offset: 64 };
            let mut record = vec![0; HEADER + len];
            seal(&mut record, place);
            let mut frame_bytes = vec![0; 64];
            frame_bytes.extend(record);
            assert_eq!(frame_bytes.len(), 64 + framed_len(len));
            assert_eq!(frame_bytes.len() % ALIGN, 0);
            assert_ne!(frame_bytes[64 + HEADER - 4..64 + HEADER], [0; 4]);
            assert_eq!(frame_bytes.last(), Some(&0xFF));
            let elsewhere = Place { segment: 3, ..place };
            frame_bytes.extend([0; 64]);
            assert!(matches!(read(&frame_bytes, place), Found::Record { payload, .. } if payload.len() == len));
            assert!(matches!(read(&frame_bytes, elsewhere), Found::Damaged(_)));
        }
    }
}
