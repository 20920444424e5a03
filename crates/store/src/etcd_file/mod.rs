//! A state in the file etcd itself keeps: what `etcdctl snapshot save` writes, `status` reads and `restore` takes.
//!
//! Guarantees: a file written here is one of an etcd compacted at the revision it was saved at, with every key, lease, revision
//! and version as they are in the store; reading one checks what the format lets be checked - the headers, the order of
//! revisions, and the checksum that `etcdctl snapshot save` puts behind a file - and is an error otherwise, never a panic or a
//! part. History is not taken along. etcd's members, users and alarms are neither written nor read. Knows the buckets;
//! the pages are [`tree`]'s and [`pages`]'s.

mod pages;
mod tree;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use prost::Message;
use sha2::{Digest, Sha256};

use crate::embedded::leases::LeaseTerm;
use crate::embedded::snapshot::{Contents, io_error};
use crate::etcdserverpb as pb;
use crate::serve::key;
use crate::{Key, KeyValue, LeaseId, Revision, StoreError};

/// A checksum stands behind a file whose length is so much more than a multiple of [`ALIGN`].
const CHECKSUM: u64 = 32;

/// What the length of a file is a multiple of.
const ALIGN: u64 = 512;

/// Read at a time to work out a checksum, in bytes.
const DIGEST_BYTES: usize = 256 << 10;

/// etcd's buckets, in order, but for `key` (which comes with its own tree): those it makes in a new file.
const LEASES: &str = "lease";
const META: &str = "meta";
const KEYS: &str = "key";
const BUCKETS: [&str; 10] =
    ["alarm", "auth", "authRoles", "authUsers", "cluster", KEYS, LEASES, "members", "members_removed", META];

const FINISHED_COMPACT: &str = "finishedCompactRev";
const SCHEDULED_COMPACT: &str = "scheduledCompactRev";

/// Behind a key's revision: it was deleted there.
const TOMBSTONE: u8 = b't';

/// A lease as etcd stores it.
#[derive(Clone, PartialEq, Message)]
struct StoredLease {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl: i64,
    #[prost(int64, tag = "3")]
    remaining_ttl: i64,
}

/// A revision as etcd writes it: the number, and the place among the changes it made.
fn stored_revision(revision: Revision, place: u64) -> [u8; 17] {
    let mut bytes = [b'_'; 17];
    bytes[..8].copy_from_slice(&revision.to_be_bytes());
    bytes[9..].copy_from_slice(&place.to_be_bytes());
    bytes
}

/// The number in a revision as etcd writes it.
fn read_revision(bytes: &[u8]) -> Option<Revision> {
    let number = bytes.first_chunk().filter(|_| matches!(bytes.len(), 17 | 18) && bytes[8] == b'_')?;
    Some(u64::from_be_bytes(*number))
}

/// Writes a file to `path`. `order` says which keys there are and when each was last written; `versions` gives a
/// few of them, in the order asked. Gives the size in bytes.
///
/// # Errors
/// Those of the disk, and of `versions`.
pub fn write(
    path: &Path,
    contents: &Contents,
    mut order: Vec<(Revision, Key)>,
    mut versions: impl FnMut(&[(Revision, Key)]) -> Result<Vec<KeyValue>, StoreError>,
) -> Result<u64, StoreError> {
    order.sort_unstable();
    let mut out = pages::Output::create(path)?;
    let mut keys = tree::Tree::default();
    let (mut last, mut place) = (0, 0);
    for asked in order.chunks(crate::embedded::snapshot::PAGE_KEYS) {
        for kv in versions(asked)? {
            place = if kv.mod_revision == last { place + 1 } else { 0 };
            last = kv.mod_revision;
            let stored = pb::KeyValue {
                key: key::to_bytes(&kv.key),
                create_revision: kv.create_revision as i64,
                mod_revision: kv.mod_revision as i64,
                version: kv.version as i64,
                value: kv.value,
                lease: kv.lease.map_or(0, |lease| lease.0),
            };
            keys.add(&mut out, &stored_revision(last, place), &stored.encode_to_vec())?;
        }
    }
    let keys = keys.finish(&mut out)?;
    let mut leases = tree::Tree::default();
    let mut terms = contents.leases.clone();
    terms.sort_unstable_by_key(|term| term.id.0 as u64);
    for term in terms {
        let ttl = term.ttl_ms.div_ceil(1000) as i64;
        let lease = StoredLease { id: term.id.0, ttl, remaining_ttl: 0 };
        leases.add(&mut out, &term.id.0.to_be_bytes(), &lease.encode_to_vec())?;
    }
    let leases = leases.finish(&mut out)?;
    let mut meta = tree::Tree::default();
    let compacted = stored_revision(contents.revision, 0);
    meta.add(&mut out, b"consistent_index", &contents.revision.to_be_bytes())?;
    meta.add(&mut out, FINISHED_COMPACT.as_bytes(), &compacted)?;
    meta.add(&mut out, SCHEDULED_COMPACT.as_bytes(), &compacted)?;
    let meta = meta.finish(&mut out)?;
    let mut roots = Vec::new();
    for name in BUCKETS {
        let root = match name {
            KEYS => keys,
            LEASES => leases,
            META => meta,
            _ => tree::Tree::default().finish(&mut out)?,
        };
        roots.push((name, root));
    }
    let root = tree::buckets(&mut out, &roots)?;
    out.finish(root)
}

/// Whether a file is one of etcd's, by its first page.
pub fn is_one(path: &Path) -> bool {
    let mut start = [0; pages::MAGIC_AT + 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok()
        && start[pages::MAGIC_AT..] == pages::MAGIC.to_le_bytes()
}

/// Reads a file: the newest version of each key that is there goes to `item`, in the order of keys. Leases have their whole
/// time again, counted from `now_ms`, as with etcd.
///
/// # Errors
/// [`StoreError::Corrupt`] for what no etcd writes.
pub fn read(path: &Path, now_ms: u64, mut item: impl FnMut(KeyValue)) -> Result<Contents, StoreError> {
    let corrupt = |what: String| StoreError::Corrupt(format!("{}: {what}", path.display()));
    check_sum(path)?;
    let input = pages::Input::open(path)?;
    let roots = tree::roots(&input)?;
    let root = |name: &str| roots.get(name.as_bytes()).cloned();
    let mut contents =
        Contents { store: 0, revision: crate::embedded::index::FIRST_REVISION, leases: Vec::new(), next_lease: 1 };
    if let Some(meta) = root(META) {
        tree::walk(&input, &meta, &mut |name, value| {
            if name == FINISHED_COMPACT.as_bytes() {
                let revision =
                    read_revision(value).ok_or_else(|| corrupt(format!("{FINISHED_COMPACT} is no revision")))?;
                contents.revision = contents.revision.max(revision);
            }
            Ok(())
        })?;
    }
    if let Some(leases) = root(LEASES) {
        tree::walk(&input, &leases, &mut |_, value| {
            let lease = StoredLease::decode(value).map_err(|error| corrupt(format!("a lease: {error}")))?;
            let ttl_ms = u64::try_from(lease.ttl).unwrap_or(0).max(1).saturating_mul(1000);
            let expires_ms = now_ms.saturating_add(ttl_ms);
            contents.leases.push(LeaseTerm { id: LeaseId(lease.id), ttl_ms, expires_ms });
            Ok(())
        })?;
    }
    let keys = root(KEYS).ok_or_else(|| corrupt("there are no keys' pages".into()))?;
    let mut newest: BTreeMap<Key, KeyValue> = BTreeMap::new();
    let mut last = Vec::new();
    tree::walk(&input, &keys, &mut |revision, value| {
        let number = read_revision(revision).ok_or_else(|| corrupt("a key has no revision".into()))?;
        if *last >= *revision {
            return Err(corrupt(format!("revision {number} is out of order")));
        }
        last.clear();
        last.extend_from_slice(revision);
        contents.revision = contents.revision.max(number);
        let stored = pb::KeyValue::decode(value).map_err(|error| corrupt(format!("revision {number}: {error}")))?;
        let key: Key = key::stored(&stored.key);
        if revision.get(17) == Some(&TOMBSTONE) {
            newest.remove(&key);
        } else {
            let kv = KeyValue {
                key: key.clone(),
                value: stored.value,
                create_revision: stored.create_revision as Revision,
                mod_revision: number,
                version: stored.version as u64,
                lease: (stored.lease != 0).then_some(LeaseId(stored.lease)),
            };
            newest.insert(key, kv);
        }
        Ok(())
    })?;
    newest.into_values().for_each(&mut item);
    Ok(contents)
}

/// Checks the sum behind a file, if there is one: a copy of a member's file has none.
fn check_sum(path: &Path) -> Result<(), StoreError> {
    let io = io_error("reading", path);
    let mut file = File::open(path).map_err(&io)?;
    let size = file.metadata().map_err(&io)?.len();
    if size % ALIGN != CHECKSUM {
        return Ok(());
    }
    let mut digest = Sha256::new();
    let mut piece = vec![0; DIGEST_BYTES];
    let mut left = size - CHECKSUM;
    while left > 0 {
        let some = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.read_exact(&mut piece[..some]).map_err(&io)?;
        digest.update(&piece[..some]);
        left -= some as u64;
    }
    file.seek(SeekFrom::Start(size - CHECKSUM)).map_err(&io)?;
    let mut said = [0; CHECKSUM as usize];
    file.read_exact(&mut said).map_err(&io)?;
    if digest.finalize()[..] != said {
        return Err(StoreError::Corrupt(format!("{}: its checksum is another", path.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
