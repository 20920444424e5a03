//! The changes of a commit group being gathered, on top of an index that does not show them yet.
//!
//! Guarantees: everything decided here sees what was staged before it, and nothing of it is seen by others. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashTable;

use super::history::Spot;
use super::index::{Index, entry_bytes};
use super::keys::{Slot, spread};
use crate::{Change, ChangeKind, Compare, Key, KeyValue, Op, Revision, StoreError};

/// Where a change goes in the index.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The key's slot, if the index knows the key already.
    pub slot: Option<Slot>,
    /// Where the value lies in the group's payload.
    pub spot: Spot,
}

/// A whole group: its changes, and for each where it goes.
pub struct Staged {
    pub changes: Arc<[Change]>,
    pub targets: Vec<Target>,
}

/// A group being gathered.
pub struct Staging<'a> {
    index: &'a Index,
    /// The newest staged change of each key, by place in `changes`, with the hash of the key.
    newest: HashTable<(u32, u32)>,
    changes: Vec<Change>,
    targets: Vec<Target>,
    revision: Revision,
    bytes: i64,
}

/// What a key is after a change.
fn after(change: &Change) -> Option<&KeyValue> {
    match &change.kind {
        ChangeKind::Put(kv) => Some(kv),
        ChangeKind::Delete => None,
    }
}

impl<'a> Staging<'a> {
    /// Begins a group of about so many changes.
    pub fn new(index: &'a Index, changes: usize) -> Self {
        Staging {
            index,
            newest: HashTable::with_capacity(changes),
            changes: Vec::with_capacity(changes),
            targets: Vec::with_capacity(changes),
            revision: index.revision(),
            bytes: 0,
        }
    }

    /// The revision reached so far.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The keys of a range as they were at a revision before the changes staged so far.
    pub fn past(&self, start: &str, end: &str, at: Revision) -> Result<Vec<KeyValue>, StoreError> {
        Ok(self.index.range(start, end, 0, Some(at))?.load()?.items)
    }

    /// Bytes of keys and values there will be.
    pub fn live_bytes(&self) -> u64 {
        self.index.live_bytes().saturating_add_signed(self.bytes)
    }

    /// The newest staged change of a key.
    fn staged(&self, key: &str, hash: u32) -> Option<&Change> {
        if self.changes.is_empty() {
            return None;
        }
        let same = |(at, _): &(u32, u32)| *self.changes[*at as usize].key == *key;
        self.newest.find(spread(hash), same).map(|(at, _)| &self.changes[*at as usize])
    }

    /// What a key is after the changes staged so far.
    pub fn current(&self, key: &str) -> Option<KeyValue> {
        let hash = self.index.keys().hash(key);
        match self.staged(key, hash) {
            Some(change) => after(change).cloned(),
            None => self.in_index(self.index.keys().find_hashed(key, hash)),
        }
    }

    fn in_index(&self, slot: Option<Slot>) -> Option<KeyValue> {
        let entry = self.index.keys().entry(slot?);
        entry.exists().then(|| entry.key_value())
    }

    /// Shows every key of `start..end` (an empty end: to the last) after the changes staged so far, in order, until told
    /// to stop.
    pub fn visit(&self, start: &str, end: &str, mut see: impl FnMut(KeyValue) -> bool) {
        if !end.is_empty() && start >= end {
            return;
        }
        let inside = |key: &Key| &**key >= start && (end.is_empty() || &**key < end);
        // Later changes of a key take the place of earlier ones.
        let staged: BTreeMap<&Key, &Change> =
            self.changes.iter().filter(|change| inside(&change.key)).map(|change| (&change.key, change)).collect();
        let mut staged = staged.into_iter().peekable();
        for slot in self.index.keys().range(start, end) {
            let entry = self.index.keys().entry(slot);
            while let Some((_, change)) = staged.next_if(|(key, _)| **key < entry.key) {
                if after(change).is_some_and(|kv| !see(kv.clone())) {
                    return;
                }
            }
            let shown = match staged.next_if(|(key, _)| **key == entry.key) {
                Some((_, change)) => after(change).cloned(),
                None => entry.exists().then(|| entry.key_value()),
            };
            if shown.is_some_and(|kv| !see(kv)) {
                return;
            }
        }
        for (_, change) in staged {
            if after(change).is_some_and(|kv| !see(kv.clone())) {
                return;
            }
        }
    }

    /// Whether a compare holds.
    pub fn holds(&self, compare: &Compare) -> bool {
        let keys = self.index.keys();
        let hash = keys.hash(&compare.key);
        let now = match self.staged(&compare.key, hash) {
            Some(change) => after(change).map_or(0, |kv| kv.mod_revision),
            None => keys.find_hashed(&compare.key, hash).map_or(0, |slot| keys.entry(slot).mod_revision),
        };
        now == compare.mod_revision
    }

    /// Applies operations at one new revision, and tells it; none when nothing would change. `spots` tells for each
    /// operation where its value lies in the group's payload.
    pub fn apply(&mut self, ops: Vec<Op>, spots: &[Spot]) -> Option<Revision> {
        let revision = self.revision + 1;
        let before = self.changes.len();
        for (op, spot) in ops.into_iter().zip(spots) {
            let keys = self.index.keys();
            let hash = keys.hash(op.key());
            let slot = keys.find_hashed(op.key(), hash);
            let previous = match self.staged(op.key(), hash) {
                Some(change) => after(change).cloned(),
                None => self.in_index(slot),
            };
            if let Some(previous) = &previous {
                self.bytes -= entry_bytes(&previous.key, &previous.value) as i64;
            }
            let (key, kind) = match op {
                Op::Put { key, value, lease } => {
                    // The stored key is shared by every version of it.
                    let key = match slot {
                        Some(slot) => keys.entry(slot).key.clone(),
                        None => previous.as_ref().map_or(key, |previous| previous.key.clone()),
                    };
                    self.bytes += entry_bytes(&key, &value) as i64;
                    let kv = KeyValue {
                        key: key.clone(),
                        value,
                        create_revision: previous.as_ref().map_or(revision, |previous| previous.create_revision),
                        mod_revision: revision,
                        version: previous.as_ref().map_or(1, |previous| previous.version + 1),
                        lease,
                    };
                    (key, ChangeKind::Put(kv))
                }
                Op::Delete { .. } => match &previous {
                    Some(previous) => (previous.key.clone(), ChangeKind::Delete),
                    None => continue,
                },
            };
            self.push(Change { key, revision, kind, previous }, hash, Target { slot, spot: *spot });
        }
        if self.changes.len() == before {
            return None;
        }
        self.revision = revision;
        Some(revision)
    }

    fn push(&mut self, change: Change, hash: u32, target: Target) {
        // A group holds far fewer changes than that.
        let at = self.changes.len() as u32;
        let changes = &self.changes;
        let same = |(at, _): &(u32, u32)| changes[*at as usize].key == change.key;
        match self.newest.find_mut(spread(hash), same) {
            Some(newest) => newest.0 = at,
            None => _ = self.newest.insert_unique(spread(hash), (at, hash), |(_, hash)| spread(*hash)),
        }
        self.changes.push(change);
        self.targets.push(target);
    }

    /// The changes staged, to be committed once they are durable.
    pub fn finish(self) -> Staged {
        Staged { changes: self.changes.into(), targets: self.targets }
    }
}
