//! Superseded versions: what keys were before their recent changes, read back from the log where it holds the value.
//!
//! Guarantees: a value read back is what was written (its CRC is kept in memory) or the error names the file and the
//! offset; a file that history still needs stays readable after it was removed. Memory holds some 90 bytes a change, and
//! only those values that no file of the log has. Knows nothing of which history is to be kept.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::{Change, ChangeKind, Key, KeyValue, LeaseId, Revision, StoreError};

/// Values no longer than this stay in memory: what says where they lie on disk is no shorter. In bytes.
const INLINE_BYTES: usize = 64;

/// A segment of the log, as values are read back from it.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file: OnceLock<File>,
}

impl Source {
    pub fn new(path: &Path) -> Self {
        Source { path: path.into(), file: OnceLock::new() }
    }

    /// Opens the file now, since it is about to be removed.
    pub fn pin(&self) -> Result<(), StoreError> {
        self.open().map(|_| ())
    }

    fn open(&self) -> Result<&File, StoreError> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = File::open(&self.path)
            .map_err(|e| StoreError::io(format_args!("opening {} for its history", self.path.display()), &e))?;
        Ok(self.file.get_or_init(|| file))
    }
}

/// Where a value lies: first in the payload of its group, then in the log. Twelve bytes, since every key has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spot {
    /// The segment's number; 0 when no segment holds the value.
    pub segment: u32,
    pub offset: u32,
    pub crc: u32,
}

impl Spot {
    /// A value in a payload. Payloads are bounded far below 4 GiB by the request and group limits.
    pub fn in_payload(offset: usize, value: &[u8]) -> Self {
        // Values this short are never read back.
        let crc = if value.len() > INLINE_BYTES { crc32fast::hash(value) } else { 0 };
        Spot { segment: 0, offset: offset as u32, crc }
    }

    /// The same value once its payload lies in a segment at an offset; none when that cannot be told in so few bits.
    pub fn within(self, segment: u64, payload_at: u64) -> Self {
        match (u32::try_from(segment), u32::try_from(payload_at + u64::from(self.offset))) {
            (Ok(segment), Ok(offset)) => Spot { segment, offset, crc: self.crc },
            _ => Spot::default(),
        }
    }
}

/// A superseded value.
#[derive(Clone, Debug)]
enum Value {
    Memory(Box<Bytes>),
    Disk(OnDisk),
}

/// A value in a file.
#[derive(Clone, Debug)]
struct OnDisk {
    source: Arc<Source>,
    offset: u32,
    len: u32,
    crc: u32,
}

impl OnDisk {
    fn read(&self) -> Result<Bytes, StoreError> {
        let path = self.source.path.display();
        let corrupt =
            |what: &str| StoreError::Corrupt(format!("{path} at offset {}: {what} a superseded value", self.offset));
        let mut bytes = vec![0; self.len as usize];
        match self.source.open()?.read_exact_at(&mut bytes, self.offset.into()) {
            Ok(()) if crc32fast::hash(&bytes) == self.crc => Ok(bytes.into()),
            Ok(()) => Err(corrupt("the file does not hold what was written as")),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(corrupt("the file has been cut short in")),
            Err(e) => Err(StoreError::io(format_args!("reading {path}"), &e)),
        }
    }
}

/// What a key was before a change of it.
#[derive(Clone, Debug)]
pub struct Past {
    create_revision: Revision,
    mod_revision: Revision,
    version: u64,
    /// 0: none.
    lease: i64,
    value: Value,
}

impl Past {
    /// Takes a version over when it is superseded. `source` is the segment that `spot` names, if there is one.
    pub fn new(kv: &KeyValue, source: Option<&Arc<Source>>, spot: Spot) -> Self {
        let value = match (source, u32::try_from(kv.value.len())) {
            (Some(source), Ok(len)) if kv.value.len() > INLINE_BYTES => {
                Value::Disk(OnDisk { source: source.clone(), offset: spot.offset, len, crc: spot.crc })
            }
            _ => Value::Memory(Box::new(kv.value.clone())),
        };
        Past {
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: kv.lease.map_or(0, |lease| lease.0),
            value,
        }
    }

    /// The bytes of the value: all, and those of them in memory.
    pub fn bytes(&self) -> (u64, u64) {
        match &self.value {
            Value::Memory(value) => (value.len() as u64, value.len() as u64),
            Value::Disk(value) => (value.len.into(), 0),
        }
    }

    /// The version, its value still to be loaded.
    pub fn version(&self, key: &Key) -> Version {
        let (value, disk) = match &self.value {
            Value::Memory(value) => ((**value).clone(), None),
            Value::Disk(disk) => (Bytes::new(), Some(disk.clone())),
        };
        let Past { create_revision, mod_revision, version, lease, .. } = *self;
        let lease = (lease != 0).then_some(LeaseId(lease));
        Version { kv: KeyValue { key: key.clone(), value, create_revision, mod_revision, version, lease }, disk }
    }
}

/// A version of a key whose value may have to be read from disk, which is done without holding the index.
#[derive(Clone, Debug)]
pub struct Version {
    kv: KeyValue,
    disk: Option<OnDisk>,
}

impl Version {
    /// When it was written, and of which key.
    pub fn written(&self) -> (Revision, Key) {
        (self.kv.mod_revision, self.kv.key.clone())
    }

    pub fn is_on_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// The bytes that loading takes.
    fn bytes(&self) -> usize {
        self.disk.as_ref().map_or(0, |disk| disk.len as usize)
    }

    pub fn load(self) -> Result<KeyValue, StoreError> {
        let Version { mut kv, disk } = self;
        if let Some(disk) = disk {
            kv.value = disk.read()?;
        }
        Ok(kv)
    }
}

impl From<KeyValue> for Version {
    fn from(kv: KeyValue) -> Self {
        Version { kv, disk: None }
    }
}

/// A change of the past, its values still to be loaded.
#[derive(Debug)]
pub struct PastChange {
    pub key: Key,
    pub revision: Revision,
    pub now: Option<Version>,
    pub before: Option<Version>,
}

impl PastChange {
    fn load(self) -> Result<Change, StoreError> {
        let PastChange { key, revision, now, before } = self;
        let kind = match now {
            Some(version) => ChangeKind::Put(version.load()?),
            None => ChangeKind::Delete,
        };
        Ok(Change { key, revision, kind, previous: before.map(Version::load).transpose()? })
    }
}

/// A group taken from the history.
#[derive(Debug)]
pub enum Taken {
    /// As it was committed, shared with everybody.
    Shared(Arc<[Change]>),
    /// To be put together again.
    Past(Vec<PastChange>),
}

impl Taken {
    pub fn is_on_disk(&self) -> bool {
        let on_disk = |version: &Option<Version>| version.as_ref().is_some_and(Version::is_on_disk);
        match self {
            Taken::Shared(_) => false,
            Taken::Past(changes) => changes.iter().any(|change| on_disk(&change.now) || on_disk(&change.before)),
        }
    }

    /// The bytes that loading takes.
    pub fn bytes(&self) -> usize {
        let bytes = |version: &Option<Version>| version.as_ref().map_or(0, Version::bytes);
        match self {
            Taken::Shared(_) => 0,
            Taken::Past(changes) => changes.iter().map(|change| bytes(&change.now) + bytes(&change.before)).sum(),
        }
    }

    pub fn load(self) -> Result<Arc<[Change]>, StoreError> {
        match self {
            Taken::Shared(changes) => Ok(changes),
            Taken::Past(changes) => changes.into_iter().map(PastChange::load).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superseded_value_is_read_back_or_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log-7");
        let value = Bytes::from(vec![7; 300]);
        let mut bytes = vec![0; 10];
        bytes.extend_from_slice(&value);
        std::fs::write(&path, &bytes).unwrap();
        let key: Key = "/k".into();
        let kv = KeyValue { key: key.clone(), value, create_revision: 2, mod_revision: 3, version: 2, lease: None };
        let source = Arc::new(Source::new(&path));
        let past = Past::new(&kv, Some(&source), Spot::in_payload(10, &kv.value));
        assert_eq!((past.bytes(), past.version(&key).load().unwrap()), ((300, 0), kv.clone()));
        assert_eq!(Past::new(&kv, None, Spot::default()).bytes(), (300, 300));
        bytes[100] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = past.version(&key).load().unwrap_err().to_string();
        assert!(error.contains("log-7 at offset 10"), "{error}");
        std::fs::write(&path, &bytes[..200]).unwrap();
        assert!(matches!(past.version(&key).load(), Err(StoreError::Corrupt(_))));
        // Pinned, the file outlives its name.
        bytes[100] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        source.pin().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(past.version(&key).load().unwrap(), kv);
    }
}
