//! The multi-version index: what every key is now, and what it was at any revision since the compacted one.
//!
//! Guarantees: a read at a revision sees exactly the state that revision left; history is whole from `compacted` on.
//! Pure: no clock, no file, no lock, no thread; times are passed in. Knows nothing of requests or of the log.
//!
//! History is one queue of committed groups. `touched` holds for every change in it what the key was before, so a key at a
//! revision is what it was before its first change after it; keys that did not change lately cost nothing for history. The
//! newest groups are kept whole and shared with every watcher; older ones are put together again from `touched`, their
//! values read back from the log (see `history`).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::history::{Past, PastChange, Source, Spot, Taken, Version};
use crate::{Change, ChangeKind, Compare, Key, KeyValue, LeaseId, Op, Range, Revision, StoreError};

/// An empty store stands at revision 1, like etcd: 0 stays free to mean "none".
pub const FIRST_REVISION: Revision = 1;

/// The newest groups are kept whole, for watchers that keep up: so many changes (each some 220 bytes) ... Few in tests, so
/// that these see the others.
const SHARED_CHANGES: usize = if cfg!(test) { 16 } else { 4096 };

/// ... and so many bytes of superseded values; the newest group whatever it holds.
const SHARED_BYTES: u64 = 2 << 20;

/// Groups of the past are taken until loading them takes more than so many bytes.
const TAKE_BYTES: usize = 1 << 20;

/// How much history is kept.
#[derive(Clone, Copy, Debug)]
pub struct HistoryLimits {
    /// Milliseconds a change stays readable.
    pub age_ms: u64,
    /// Bytes of superseded values that can be read.
    pub bytes: u64,
    /// Bytes of those that are in memory because no file of the log holds them.
    pub memory_bytes: u64,
    /// Changes kept.
    pub changes: usize,
}

/// The items of a range, their values still to be loaded.
#[derive(Debug)]
pub struct Page {
    pub items: Vec<Version>,
    pub more: bool,
    pub count: u64,
    pub revision: Revision,
    pub current_revision: Revision,
}

impl Page {
    pub fn is_on_disk(&self) -> bool {
        self.items.iter().any(Version::is_on_disk)
    }

    pub fn load(self) -> Result<Range, StoreError> {
        let Page { items, more, count, revision, current_revision } = self;
        let items = items.into_iter().map(Version::load).collect::<Result<_, _>>()?;
        Ok(Range { items, more, count, revision, current_revision })
    }
}

/// The newest version of a key; the key itself is in the map.
#[derive(Clone, Debug)]
struct Stored {
    value: Bytes,
    create_revision: Revision,
    mod_revision: Revision,
    version: u64,
    lease: Option<LeaseId>,
    spot: Spot,
}

impl Stored {
    fn with_key(&self, key: &Key) -> KeyValue {
        KeyValue {
            key: key.clone(),
            value: self.value.clone(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: self.lease,
        }
    }
}

/// One commit group: whole revisions, ascending.
#[derive(Debug)]
struct Group {
    changes: Held,
    last: Revision,
    at_ms: u64,
    /// Bytes of the values it superseded, and those of them that `touched` holds in memory.
    bytes: u64,
    memory_bytes: u64,
}

/// The changes of a group.
#[derive(Debug)]
enum Held {
    Shared(Arc<[Change]>),
    Keys(Box<[(Key, Revision)]>),
}

impl Group {
    fn len(&self) -> usize {
        match &self.changes {
            Held::Shared(changes) => changes.len(),
            Held::Keys(keys) => keys.len(),
        }
    }
}

/// The state and its history.
#[derive(Debug)]
pub struct Index {
    live: BTreeMap<Key, Stored>,
    live_bytes: u64,
    revision: Revision,
    compacted: Revision,
    history: VecDeque<Group>,
    history_bytes: u64,
    history_memory: u64,
    history_changes: usize,
    /// How many of the newest groups are kept whole, their changes, and the bytes of the values they superseded.
    shared: (usize, usize, u64),
    /// Every (key, revision) in `history`, and what the key was before; none when it did not exist.
    touched: BTreeMap<(Key, Revision), Option<Past>>,
    /// The segments of the log, by number: what superseded values are read back from.
    segments: BTreeMap<u32, Arc<Source>>,
}

/// A borrowed version of a key, so that counting does not clone.
enum Seen<'a> {
    Live(&'a Key, &'a Stored),
    Past(&'a Key, &'a Past),
}

impl Seen<'_> {
    fn to_version(&self) -> Version {
        match self {
            Seen::Live(key, stored) => stored.with_key(key).into(),
            Seen::Past(key, past) => past.version(key),
        }
    }
}

impl Default for Index {
    fn default() -> Self {
        Index {
            live: BTreeMap::new(),
            live_bytes: 0,
            revision: FIRST_REVISION,
            compacted: 0,
            history: VecDeque::new(),
            history_bytes: 0,
            history_memory: 0,
            history_changes: 0,
            shared: (0, 0, 0),
            touched: BTreeMap::new(),
            segments: BTreeMap::new(),
        }
    }
}

impl Index {
    /// An index holding a snapshot: the state at `revision`, and no history before it.
    pub fn from_snapshot(revision: Revision, items: impl IntoIterator<Item = KeyValue>) -> Self {
        let mut index = Index { revision, compacted: revision, ..Index::default() };
        // Items come sorted: a BTreeMap collects a sorted sequence in one pass.
        index.live = items
            .into_iter()
            .map(|kv| {
                let KeyValue { key, value, create_revision, mod_revision, version, lease } = kv;
                (key, Stored { value, create_revision, mod_revision, version, lease, spot: Spot::default() })
            })
            .collect();
        index.live_bytes = index.live.iter().map(|(k, s)| entry_bytes(k, &s.value)).sum();
        index
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Keys and values that exist now, in bytes.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub fn live_keys(&self) -> usize {
        self.live.len()
    }

    pub fn history_changes(&self) -> usize {
        self.history_changes
    }

    /// Bytes of superseded values that can be read.
    pub fn history_bytes(&self) -> u64 {
        self.history_bytes
    }

    /// Bytes of superseded values in memory.
    pub fn history_memory(&self) -> u64 {
        self.history_memory
    }

    /// Makes a segment of the log known: values committed from now on may lie in it.
    pub fn add_segment(&mut self, number: u64, source: Arc<Source>) {
        if let Ok(number) = u32::try_from(number) {
            self.segments.insert(number, source);
        }
    }

    /// Forgets segments that are about to be removed; what history needs of them stays readable.
    pub fn retire_segments(&mut self, numbers: &[u64]) -> Result<(), StoreError> {
        for number in numbers.iter().filter_map(|number| u32::try_from(*number).ok()) {
            if let Some(source) = self.segments.remove(&number)
                && Arc::strong_count(&source) > 1
            {
                source.pin()?;
            }
        }
        Ok(())
    }

    /// What a key is now.
    pub fn current(&self, key: &str) -> Option<KeyValue> {
        self.live.get_key_value(key).map(|(k, s)| s.with_key(k))
    }

    /// All live keys that belong to a lease, with it.
    pub fn leased(&self) -> impl Iterator<Item = (&Key, LeaseId)> {
        self.live.iter().filter_map(|(k, s)| s.lease.map(|lease| (k, lease)))
    }

    /// Which revision a read at `at` means, or why it cannot be answered.
    pub fn resolve(&self, at: Option<Revision>) -> Result<Revision, StoreError> {
        match at {
            None | Some(0) => Ok(self.revision),
            Some(at) if at > self.revision => Err(StoreError::FutureRevision { requested: at, current: self.revision }),
            Some(at) if at < self.compacted => Err(self.compacted_error()),
            Some(at) => Ok(at),
        }
    }

    fn compacted_error(&self) -> StoreError {
        StoreError::Compacted { compacted: self.compacted, current: self.revision }
    }

    /// A key as it was at `at`.
    pub fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Version>, StoreError> {
        let at = self.resolve(at)?;
        if at < self.revision
            && let Some((key, past)) = self.next_past(key, at + 1)
        {
            return Ok(past.as_ref().map(|past| past.version(key)));
        }
        Ok(self.current(key).map(Version::from))
    }

    /// What `key` was before its first change at `from` or later.
    fn next_past(&self, key: &str, from: Revision) -> Option<(&Key, &Option<Past>)> {
        let ((found, _), past) = self.touched.range((Key::from(key), from)..).next()?;
        (**found == *key).then_some((found, past))
    }

    /// The keys in `start..end` as they were at `at`.
    pub fn range(&self, start: &str, end: &str, limit: usize, at: Option<Revision>) -> Result<Page, StoreError> {
        let at = self.resolve(at)?;
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut items = Vec::new();
        let mut count = 0_u64;
        self.visit(start, end, at, |seen| {
            count += 1;
            if items.len() < limit {
                items.push(seen.to_version());
            }
            true
        });
        let more = count > items.len() as u64;
        Ok(Page { items, more, count, revision: at, current_revision: self.revision })
    }

    /// At most `limit` keys from `start` on, as they were at `at`, which the caller keeps from being trimmed.
    pub fn page(&self, start: &str, limit: usize, at: Revision) -> Vec<Version> {
        let mut items = Vec::with_capacity(limit);
        self.visit(start, "", at, |seen| {
            items.push(seen.to_version());
            items.len() < limit
        });
        items
    }

    /// Shows every key of `start..end` (an empty end: to the last) at a revision, in order, until told to stop.
    fn visit<'a>(&'a self, start: &str, end: &str, at: Revision, mut see: impl FnMut(Seen<'a>) -> bool) {
        if !end.is_empty() && start >= end {
            return;
        }
        let upper = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
        let mut live = self
            .live
            .range::<str, _>((Bound::Included(start), upper))
            .filter(|(_, stored)| stored.mod_revision <= at)
            .peekable();
        // Keys changed after `at`: the first such change of each says what it was. A key is never on both sides.
        let mut past = None;
        if at < self.revision {
            let from = (Key::from(start), 0);
            let mut last: Option<&Key> = None;
            past = Some(
                self.touched
                    .range(from..)
                    .take_while(move |((key, _), _)| end.is_empty() || &**key < end)
                    .filter(move |((_, revision), _)| *revision > at)
                    .filter(move |((key, _), _)| last.replace(key) != Some(key))
                    .filter_map(|((key, _), past)| Some((key, past.as_ref()?)))
                    .peekable(),
            );
        }
        loop {
            let older = past.as_mut().and_then(|past| past.peek().copied());
            let seen = match (live.peek(), older) {
                (None, None) => return,
                (Some((live, _)), Some((key, past))) if key < *live => Seen::Past(key, past),
                (None, Some((key, past))) => Seen::Past(key, past),
                (Some((key, stored)), _) => Seen::Live(key, stored),
            };
            match seen {
                Seen::Live(..) => _ = live.next(),
                Seen::Past(..) => _ = past.as_mut().and_then(Iterator::next),
            }
            if !see(seen) {
                return;
            }
        }
    }

    /// The groups after `position`, oldest first, at most `most`; a group that holds `position` is cut after it.
    pub fn changes_after(&self, position: Revision, most: usize) -> Result<Vec<Taken>, StoreError> {
        if position < self.compacted {
            return Err(self.compacted_error());
        }
        let first = self.history.partition_point(|g| g.last <= position);
        let mut bytes = 0;
        let mut groups = Vec::new();
        for group in self.history.iter().skip(first).take(most) {
            let taken = match &group.changes {
                Held::Shared(changes) => {
                    let cut = changes.partition_point(|c| c.revision <= position);
                    Taken::Shared(if cut == 0 { changes.clone() } else { changes[cut..].into() })
                }
                Held::Keys(keys) => {
                    let cut = keys.partition_point(|(_, revision)| *revision <= position);
                    Taken::Past(keys[cut..].iter().map(|(key, revision)| self.past_change(key, *revision)).collect())
                }
            };
            bytes += taken.bytes();
            groups.push(taken);
            if bytes > TAKE_BYTES {
                break;
            }
        }
        Ok(groups)
    }

    /// The change of `key` at `revision`, which is in the history: what it made of the key is what the key was before
    /// its next change, or is still.
    fn past_change(&self, key: &Key, revision: Revision) -> PastChange {
        let now = match self.next_past(key, revision + 1) {
            Some((_, past)) => past.as_ref().map(|past| past.version(key)),
            None => self.current(key).map(Version::from),
        };
        let before = self.touched.get(&(key.clone(), revision)).and_then(Option::as_ref);
        PastChange { key: key.clone(), revision, now, before: before.map(|past| past.version(key)) }
    }

    /// Makes staged changes the state. `changes` is one commit group, made by [`Staging`] on this index; `spots` tells for
    /// each where the log holds the value it put.
    pub fn commit(&mut self, changes: Arc<[Change]>, spots: &[Spot], at_ms: u64) {
        let Some(last) = changes.last().map(|c| c.revision) else { return };
        let (mut bytes, mut memory_bytes) = (0, 0);
        for (change, spot) in changes.iter().zip(spots) {
            let old = match &change.kind {
                ChangeKind::Put(kv) => {
                    self.live_bytes += entry_bytes(&kv.key, &kv.value);
                    let stored = Stored {
                        value: kv.value.clone(),
                        create_revision: kv.create_revision,
                        mod_revision: kv.mod_revision,
                        version: kv.version,
                        lease: kv.lease,
                        spot: *spot,
                    };
                    self.live.insert(kv.key.clone(), stored)
                }
                ChangeKind::Delete => self.live.remove(&change.key),
            };
            let past = change.previous.as_ref().map(|previous| {
                self.live_bytes -= entry_bytes(&previous.key, &previous.value);
                let place = old.and_then(|old| Some((self.segments.get(&old.spot.segment)?.clone(), old.spot.offset)));
                let past = Past::new(previous, place);
                let (all, in_memory) = past.bytes();
                bytes += all;
                memory_bytes += in_memory;
                past
            });
            self.touched.insert((change.key.clone(), change.revision), past);
        }
        self.revision = last;
        self.history_bytes += bytes;
        self.history_memory += memory_bytes;
        self.history_changes += changes.len();
        self.shared = (self.shared.0 + 1, self.shared.1 + changes.len(), self.shared.2 + bytes);
        self.history.push_back(Group { changes: Held::Shared(changes), last, at_ms, bytes, memory_bytes });
        while self.shared.0 > 1 && (self.shared.1 > SHARED_CHANGES || self.shared.2 > SHARED_BYTES) {
            self.unshare_oldest();
        }
    }

    /// Lets go of the oldest group that is kept whole.
    fn unshare_oldest(&mut self) {
        let at = self.history.len() - self.shared.0;
        let group = &mut self.history[at];
        self.shared = (self.shared.0 - 1, self.shared.1 - group.len(), self.shared.2 - group.bytes);
        if let Held::Shared(changes) = &group.changes {
            group.changes = Held::Keys(changes.iter().map(|change| (change.key.clone(), change.revision)).collect());
        }
    }

    /// Forgets history below `revision`; groups that reach above `pin` stay in memory (something still reads them).
    pub fn compact(&mut self, revision: Revision, pin: Option<Revision>) {
        self.compacted = self.compacted.max(revision.min(self.revision));
        let floor = pin.map_or(self.compacted, |pin| pin.min(self.compacted));
        while self.history.front().is_some_and(|group| group.last <= floor) {
            self.forget_oldest();
        }
    }

    /// Forgets what is over the limits, oldest first. The newest group always stays, for the watchers to read.
    pub fn enforce(&mut self, limits: &HistoryLimits, now_ms: u64, pin: Option<Revision>) {
        while self.history.len() > 1 {
            let Some(oldest) = self.history.front() else { return };
            let over = self.history_changes > limits.changes
                || self.history_bytes > limits.bytes
                || self.history_memory > limits.memory_bytes
                || now_ms.saturating_sub(oldest.at_ms) > limits.age_ms;
            if !over || pin.is_some_and(|pin| oldest.last > pin) {
                return;
            }
            self.compacted = self.compacted.max(oldest.last);
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if self.shared.0 == self.history.len() && !self.history.is_empty() {
            self.unshare_oldest();
        }
        let Some(group) = self.history.pop_front() else { return };
        self.history_bytes -= group.bytes;
        self.history_memory -= group.memory_bytes;
        self.history_changes -= group.len();
        if let Held::Keys(keys) = group.changes {
            for touched in keys {
                self.touched.remove(&touched);
            }
        }
        if self.history.capacity() > 1024 && self.history.len() < self.history.capacity() / 4 {
            self.history.shrink_to(2 * self.history.len());
        }
    }
}

/// What an entry counts towards the database limit.
fn entry_bytes(key: &str, value: &Bytes) -> u64 {
    (key.len() + value.len()) as u64
}

/// The changes of a group being gathered, on top of an index that does not show them yet.
pub struct Staging<'a> {
    index: &'a Index,
    overlay: HashMap<Key, Option<KeyValue>>,
    changes: Vec<Change>,
    /// For each change, where its value lies in the group's payload.
    offsets: Vec<u32>,
    revision: Revision,
    bytes: i64,
}

/// A whole group: its changes, and for each where its value lies in the group's payload.
pub struct Staged {
    pub changes: Vec<Change>,
    pub offsets: Vec<u32>,
}

impl Staged {
    /// The places of the values once the payload lies in a segment at an offset.
    pub fn spots(&self, segment: u64, payload_at: u64) -> Vec<Spot> {
        self.offsets.iter().map(|offset| Spot::new(segment, payload_at + u64::from(*offset))).collect()
    }
}

impl<'a> Staging<'a> {
    pub fn new(index: &'a Index) -> Self {
        Staging {
            index,
            overlay: HashMap::new(),
            changes: Vec::new(),
            offsets: Vec::new(),
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

    /// What a key is after the changes staged so far.
    pub fn current(&self, key: &str) -> Option<KeyValue> {
        match self.overlay.get(key) {
            Some(staged) => staged.clone(),
            None => self.index.current(key),
        }
    }

    /// Shows every key of `start..end` (an empty end: to the last) after the changes staged so far, in order, until told
    /// to stop.
    pub fn visit(&self, start: &str, end: &str, mut see: impl FnMut(KeyValue) -> bool) {
        let staged: BTreeMap<&Key, &Option<KeyValue>> =
            self.overlay.iter().filter(|(key, _)| &***key >= start && (end.is_empty() || &***key < end)).collect();
        let mut staged = staged.into_iter().peekable();
        let mut stopped = false;
        self.index.visit(start, end, self.index.revision(), |seen| {
            // At the newest revision every version is a live one.
            let Seen::Live(key, stored) = seen else { return true };
            let kv = stored.with_key(key);
            while let Some((_, newer)) = staged.next_if(|(key, _)| **key < kv.key) {
                if let Some(newer) = newer
                    && !see(newer.clone())
                {
                    stopped = true;
                    return false;
                }
            }
            let shown = match staged.next_if(|(key, _)| **key == kv.key) {
                Some((_, newer)) => newer.clone(),
                None => Some(kv),
            };
            stopped = shown.is_some_and(|kv| !see(kv));
            !stopped
        });
        while !stopped && let Some((_, newer)) = staged.next() {
            stopped = newer.as_ref().is_some_and(|kv| !see(kv.clone()));
        }
    }

    /// Whether a compare holds.
    pub fn holds(&self, compare: &Compare) -> bool {
        let now = match self.overlay.get(&compare.key) {
            Some(staged) => staged.as_ref().map(|kv| kv.mod_revision),
            None => self.index.live.get(&compare.key).map(|stored| stored.mod_revision),
        };
        now.unwrap_or(0) == compare.mod_revision
    }

    /// Applies operations at one new revision, and tells it; none when nothing would change. `offsets` tells for each
    /// operation where its value lies in the group's payload.
    pub fn apply(&mut self, ops: Vec<Op>, offsets: &[u32]) -> Option<Revision> {
        let revision = self.revision + 1;
        let before = self.changes.len();
        for (op, offset) in ops.into_iter().zip(offsets) {
            let previous = self.current(op.key());
            if let Some(previous) = &previous {
                self.bytes -= entry_bytes(&previous.key, &previous.value) as i64;
            }
            match op {
                Op::Put { key, value, lease } => {
                    // The stored key is shared by every version of it.
                    let key = previous.as_ref().map_or(key, |previous| previous.key.clone());
                    self.bytes += entry_bytes(&key, &value) as i64;
                    let kv = KeyValue {
                        key: key.clone(),
                        value,
                        create_revision: previous.as_ref().map_or(revision, |p| p.create_revision),
                        mod_revision: revision,
                        version: previous.as_ref().map_or(1, |p| p.version + 1),
                        lease,
                    };
                    self.overlay.insert(key.clone(), Some(kv.clone()));
                    self.changes.push(Change { key, revision, kind: ChangeKind::Put(kv), previous });
                    self.offsets.push(*offset);
                }
                Op::Delete { .. } => {
                    let Some(previous) = previous else { continue };
                    let key = previous.key.clone();
                    self.overlay.insert(key.clone(), None);
                    self.changes.push(Change { key, revision, kind: ChangeKind::Delete, previous: Some(previous) });
                    self.offsets.push(0);
                }
            }
        }
        if self.changes.len() == before {
            return None;
        }
        self.revision = revision;
        Some(revision)
    }

    /// The changes staged, to be committed once they are durable.
    pub fn finish(self) -> Staged {
        Staged { changes: self.changes, offsets: self.offsets }
    }
}
