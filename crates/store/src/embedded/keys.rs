//! Every key the index knows, those that are gone but have history included: found by name, and in order.
//!
//! Guarantees: a key has one slot for as long as it is known, names are found in constant time, and keys of a range are
//! counted without being looked at one by one. Costs some 115 bytes a key besides its text and its value. Pure; knows
//! nothing of revisions but that a key without one does not exist.

use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;
use hashbrown::HashTable;

use super::history::Spot;
use crate::{Key, KeyValue, LeaseId, Revision};

/// Where a key's entry lies.
pub type Slot = u32;

/// The most slots in one piece of the order: what an insertion moves, and what a count at the end of a range looks at.
/// Few in tests, so that these see several pieces.
const PIECE: usize = if cfg!(test) { 8 } else { 512 };

/// A table of fewer slots is never made smaller.
const LEAST_SLOTS: usize = if cfg!(test) { 16 } else { 4096 };

/// A key, and its newest version.
#[derive(Debug)]
pub struct Entry {
    pub key: Key,
    pub value: Bytes,
    pub create_revision: Revision,
    /// 0: the key does not exist now.
    pub mod_revision: Revision,
    pub version: u64,
    /// 0: none.
    pub lease: i64,
    /// The number of the key's newest change in the history; what has left the history counts as none.
    pub newest: u64,
    pub spot: Spot,
    hash: u32,
}

impl Entry {
    pub fn exists(&self) -> bool {
        self.mod_revision != 0
    }

    /// The newest version; meaningless when the key does not exist.
    pub fn key_value(&self) -> KeyValue {
        KeyValue {
            key: self.key.clone(),
            value: self.value.clone(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: (self.lease != 0).then_some(LeaseId(self.lease)),
        }
    }
}

/// A piece of the order: never empty.
#[derive(Debug)]
struct Piece {
    /// The key of the first slot, so that a search of the pieces need not look for it elsewhere.
    first: Key,
    slots: Vec<Slot>,
    /// How many of them exist.
    live: usize,
}

/// A position in the order: a piece, and a place in it.
type Place = (usize, usize);

#[derive(Debug)]
pub struct Keys {
    entries: Vec<Entry>,
    free: Vec<Slot>,
    by_name: HashTable<Slot>,
    order: Vec<Piece>,
    live: usize,
    hasher: RandomState,
    /// The key of slots that are free.
    blank: Key,
}

impl Default for Keys {
    fn default() -> Self {
        Keys {
            entries: Vec::new(),
            free: Vec::new(),
            by_name: HashTable::new(),
            order: Vec::new(),
            live: 0,
            hasher: RandomState::new(),
            blank: "".into(),
        }
    }
}

/// The table wants its bits spread over the whole word.
pub fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl Keys {
    /// Keys that exist.
    pub fn live(&self) -> usize {
        self.live
    }

    pub fn hash(&self, key: &str) -> u32 {
        self.hasher.hash_one(key) as u32
    }

    pub fn find(&self, key: &str) -> Option<Slot> {
        self.find_hashed(key, self.hash(key))
    }

    /// Finds a key whose hash is known.
    pub fn find_hashed(&self, key: &str, hash: u32) -> Option<Slot> {
        self.by_name.find(spread(hash), |slot| *self.entry(*slot).key == *key).copied()
    }

    pub fn entry(&self, slot: Slot) -> &Entry {
        &self.entries[slot as usize]
    }

    pub fn entry_mut(&mut self, slot: Slot) -> &mut Entry {
        &mut self.entries[slot as usize]
    }

    /// All entries, in no order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.exists())
    }

    /// Makes a key known that is not, and that exists from now on; `mod_revision` is to say the same.
    pub fn add(&mut self, key: Key) -> Slot {
        let hash = self.hash(&key);
        let (piece, at) = self.place(&key);
        let entry = Entry {
            key,
            value: Bytes::new(),
            create_revision: 0,
            mod_revision: 0,
            version: 0,
            lease: 0,
            newest: 0,
            spot: Spot::default(),
            hash,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.entries[slot as usize] = entry;
                slot
            }
            None => {
                self.entries.push(entry);
                // Four thousand million keys do not fit into memory.
                (self.entries.len() - 1) as Slot
            }
        };
        let entries = &self.entries;
        self.by_name.insert_unique(spread(hash), slot, |slot| spread(entries[*slot as usize].hash));
        self.insert_at(piece, at, slot);
        slot
    }

    fn insert_at(&mut self, mut piece: usize, mut at: usize, slot: Slot) {
        let entries = &self.entries;
        let key = |slot: Slot| entries[slot as usize].key.clone();
        match self.order.get_mut(piece) {
            // Keys that come in order leave full pieces behind.
            Some(Piece { slots, .. }) if slots.len() >= PIECE && at == slots.len() => {
                (piece, at) = (piece + 1, 0);
                self.order.insert(piece, Piece { first: key(slot), slots: Vec::new(), live: 0 });
            }
            Some(Piece { slots, live, .. }) if slots.len() >= PIECE => {
                let rest = slots.split_off(PIECE / 2);
                slots.shrink_to_fit();
                let moved = rest.iter().filter(|slot| entries[**slot as usize].exists()).count();
                *live -= moved;
                self.order.insert(piece + 1, Piece { first: key(rest[0]), slots: rest, live: moved });
                if at > PIECE / 2 {
                    (piece, at) = (piece + 1, at - PIECE / 2);
                }
            }
            Some(_) => {}
            None => self.order.push(Piece { first: key(slot), slots: Vec::new(), live: 0 }),
        }
        let piece = &mut self.order[piece];
        piece.slots.insert(at, slot);
        piece.live += 1;
        self.live += 1;
        if at == 0 {
            piece.first = key(slot);
        }
    }

    /// Says whether a known key exists from now on; `mod_revision` is to say the same.
    pub fn set_live(&mut self, slot: Slot, live: bool) {
        let (piece, _) = self.place(&self.entry(slot).key);
        let piece = &mut self.order[piece];
        if live {
            piece.live += 1;
            self.live += 1;
        } else {
            piece.live -= 1;
            self.live -= 1;
        }
    }

    /// Forgets a key that does not exist.
    pub fn remove(&mut self, slot: Slot) {
        let (piece, at) = self.place(&self.entry(slot).key);
        let entry = &mut self.entries[slot as usize];
        entry.key = self.blank.clone();
        if let Ok(found) = self.by_name.find_entry(spread(entry.hash), |known| *known == slot) {
            found.remove();
        }
        let slots = &mut self.order[piece].slots;
        slots.remove(at);
        match slots.first().copied() {
            Some(first) => self.order[piece].first = self.entries[first as usize].key.clone(),
            None => _ = self.order.remove(piece),
        }
        self.free.push(slot);
    }

    /// Whether most slots are free.
    pub fn is_sparse(&self) -> bool {
        self.entries.len() > LEAST_SLOTS && self.free.len() > self.entries.len() / 4 * 3
    }

    /// Gives every key a new slot, without free ones between, in order. Tells the new slot for each old one.
    pub fn renumber(&mut self) -> Vec<Slot> {
        let mut new = vec![Slot::MAX; self.entries.len()];
        let old = std::mem::take(&mut self.order);
        for (next, slot) in old.iter().flat_map(|piece| &piece.slots).enumerate() {
            new[*slot as usize] = next as Slot;
        }
        let mut entries: Vec<(Slot, Entry)> =
            std::mem::take(&mut self.entries).into_iter().enumerate().map(|(at, entry)| (new[at], entry)).collect();
        entries.retain(|(slot, _)| *slot != Slot::MAX);
        entries.sort_unstable_by_key(|(slot, _)| *slot);
        self.entries = entries.into_iter().map(|(_, entry)| entry).collect();
        self.free = Vec::new();
        self.arrange();
        new
    }

    /// Builds the table of names and the order anew from entries that lie in order.
    pub fn arrange(&mut self) {
        let entries = &self.entries;
        self.by_name = HashTable::with_capacity(entries.len());
        self.order = Vec::with_capacity(entries.len() / PIECE + 1);
        for (at, piece) in entries.chunks(PIECE).enumerate() {
            let slots: Vec<Slot> = (0..piece.len()).map(|n| (at * PIECE + n) as Slot).collect();
            for slot in &slots {
                let hash = spread(entries[*slot as usize].hash);
                self.by_name.insert_unique(hash, *slot, |slot| spread(entries[*slot as usize].hash));
            }
            let live = piece.iter().filter(|entry| entry.exists()).count();
            self.order.push(Piece { first: piece[0].key.clone(), slots, live });
        }
        self.live = self.order.iter().map(|piece| piece.live).sum();
    }

    /// Takes keys that exist one by one, in order; they are known once [`Keys::arrange`] was called.
    pub fn push(&mut self, KeyValue { key, value, create_revision, mod_revision, version, lease }: KeyValue) {
        let hash = self.hash(&key);
        let lease = lease.map_or(0, |lease| lease.0);
        let spot = Spot::default();
        self.entries.push(Entry { key, value, create_revision, mod_revision, version, lease, newest: 0, spot, hash });
    }

    /// Where a key is, or would be.
    fn place(&self, key: &str) -> Place {
        let name = |slot: Slot| &*self.entry(slot).key;
        let piece = self.order.partition_point(|piece| &*piece.first <= key).saturating_sub(1);
        let slots = self.order.get(piece).map_or(&[][..], |piece| &piece.slots);
        (piece, slots.partition_point(|slot| name(*slot) < key))
    }

    /// Where the first key of `start..end` is, and where the first after it; an empty end means to the last.
    fn bounds(&self, start: &str, end: &str) -> (Place, Place) {
        let first = self.place(start);
        let last = if end.is_empty() { (self.order.len(), 0) } else { self.place(end) };
        (first, last.max(first))
    }

    /// The slots of `start..end` in order, those of keys that do not exist included.
    pub fn range(&self, start: &str, end: &str) -> impl Iterator<Item = Slot> {
        let ((first, from), (last, to)) = self.bounds(start, end);
        let pieces = self.order.get(first..self.order.len().min(last + 1)).unwrap_or(&[]);
        pieces.iter().enumerate().flat_map(move |(n, piece)| {
            let from = if n == 0 { from } else { 0 };
            let to = if first + n == last { to } else { piece.slots.len() };
            piece.slots[from..to].iter().copied()
        })
    }

    /// How many keys of `start..end` exist.
    pub fn count(&self, start: &str, end: &str) -> usize {
        let ((first, from), (last, to)) = self.bounds(start, end);
        let some = |slots: &[Slot]| slots.iter().filter(|slot| self.entry(**slot).exists()).count();
        let Some(piece) = self.order.get(first) else { return 0 };
        if first == last {
            return some(&piece.slots[from..to]);
        }
        let whole: usize = self.order[first..last].iter().map(|piece| piece.live).sum();
        let tail = self.order.get(last).map_or(0, |piece| some(&piece.slots[..to]));
        whole - some(&piece.slots[..from]) + tail
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn check(keys: &Keys, model: &BTreeMap<String, bool>) {
        let found = |slot: Slot| (keys.entry(slot).key.to_string(), keys.entry(slot).exists());
        assert_eq!(keys.live(), model.values().filter(|live| **live).count());
        for (start, end) in [("", ""), ("k2", ""), ("k1", "k3"), ("k25", "k26"), ("k9", "k99"), ("x", ""), ("k3", "k1")]
        {
            let inside = |key: &&String| ***key >= *start && (end.is_empty() || ***key < *end);
            let expected: Vec<_> = model.iter().filter(|(key, _)| inside(key)).map(|(k, l)| (k.clone(), *l)).collect();
            assert_eq!(keys.range(start, end).map(found).collect::<Vec<_>>(), expected, "{start}..{end}");
            assert_eq!(keys.count(start, end), expected.iter().filter(|(_, live)| *live).count(), "{start}..{end}");
        }
        for key in model.keys() {
            assert_eq!(keys.find(key).map(|slot| keys.entry(slot).key.to_string()).as_ref(), Some(key));
        }
    }

    #[test]
    fn keys_are_found_by_name_and_in_order() {
        let mut keys = Keys::default();
        let mut model = BTreeMap::new();
        let mut random = 1_u64;
        let mut renumbered = 0;
        for step in 0..3000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let key = format!("k{}", (random >> 33) % if step < 1500 { 200 } else { 5 });
            let slot = keys.find(&key);
            assert_eq!(slot.is_some(), model.contains_key(&key), "{key}");
            match (slot, model.get(&key).copied()) {
                (Some(slot), Some(true)) => {
                    keys.set_live(slot, false);
                    keys.entry_mut(slot).mod_revision = 0;
                    model.insert(key, false);
                }
                (Some(slot), _) if step % 3 != 0 => {
                    keys.remove(slot);
                    model.remove(&key);
                }
                (slot, _) => {
                    let slot = match slot {
                        None => keys.add(key.as_str().into()),
                        Some(slot) => {
                            keys.set_live(slot, true);
                            slot
                        }
                    };
                    keys.entry_mut(slot).mod_revision = 7;
                    model.insert(key, true);
                }
            }
            if step == 1500 {
                // Most go: the few that stay move together.
                for (key, live) in std::mem::take(&mut model) {
                    let slot = keys.find(&key).unwrap();
                    if live {
                        keys.set_live(slot, false);
                        keys.entry_mut(slot).mod_revision = 0;
                    }
                    keys.remove(slot);
                }
            }
            if keys.is_sparse() {
                let kept: Vec<_> = model.keys().map(|key| (key.clone(), keys.find(key).unwrap())).collect();
                let new = keys.renumber();
                assert!(kept.iter().all(|(key, slot)| keys.find(key) == Some(new[*slot as usize])));
                renumbered += 1;
            }
            if step % 50 == 0 {
                check(&keys, &model);
            }
        }
        assert!(renumbered > 0);
        check(&keys, &model);
    }

    #[test]
    fn a_table_is_filled_in_order() {
        let mut keys = Keys::default();
        let names: Vec<String> = (0..100).map(|n| format!("k{n:03}")).collect();
        for name in &names {
            let key = name.as_str().into();
            let value = Bytes::new();
            keys.push(KeyValue { key, value, create_revision: 1, mod_revision: 1, version: 1, lease: None });
        }
        keys.arrange();
        check(&keys, &names.into_iter().map(|name| (name, true)).collect());
    }
}
