//! The multi-version index: what every key is now, and what it was at any revision since the compacted one.
//!
//! Guarantees: a read at a revision sees exactly the state that revision left; history is whole from `compacted` on.
//! Pure: no clock, no file, no lock, no thread; times are passed in. Knows nothing of requests or of the log.
//!
//! History is one queue of committed groups, shared as `Arc<[Change]>` with every watcher. Each change carries what the
//! key was before, so the value of a key at a revision is the `previous` of the key's first change after it. `touched`
//! finds that change by key, in 24 bytes an entry; keys that did not change lately cost nothing for history.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::{Change, ChangeKind, Compare, Key, KeyValue, LeaseId, Op, Range, Revision, StoreError};

/// An empty store stands at revision 1, like etcd: 0 stays free to mean "none".
pub const FIRST_REVISION: Revision = 1;

/// How much history is kept.
#[derive(Clone, Copy, Debug)]
pub struct HistoryLimits {
    /// Milliseconds a change stays readable.
    pub age_ms: u64,
    /// Bytes of superseded values kept for history alone.
    pub bytes: u64,
    /// Changes kept.
    pub changes: usize,
}

/// The newest version of a key; the key itself is in the map.
#[derive(Clone, Debug)]
struct Stored {
    value: Bytes,
    create_revision: Revision,
    mod_revision: Revision,
    version: u64,
    lease: Option<LeaseId>,
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
    changes: Arc<[Change]>,
    last: Revision,
    at_ms: u64,
    bytes: u64,
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
    history_changes: usize,
    /// Every (key, revision) in `history`.
    touched: BTreeSet<(Key, Revision)>,
}

/// A borrowed version of a key, so that counting does not clone.
enum Seen<'a> {
    Live(&'a Key, &'a Stored),
    Past(&'a KeyValue),
}

impl Seen<'_> {
    fn to_key_value(&self) -> KeyValue {
        match self {
            Seen::Live(key, stored) => stored.with_key(key),
            Seen::Past(kv) => (*kv).clone(),
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
            history_changes: 0,
            touched: BTreeSet::new(),
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
                (key, Stored { value, create_revision, mod_revision, version, lease })
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

    pub fn history_bytes(&self) -> u64 {
        self.history_bytes
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
    pub fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<KeyValue>, StoreError> {
        let at = self.resolve(at)?;
        if at < self.revision {
            let from = (Key::from(key), at + 1);
            if let Some((k, revision)) = self.touched.range(from..).next()
                && &**k == key
            {
                return Ok(self.change(k, *revision).and_then(|change| change.previous.clone()));
            }
        }
        Ok(self.current(key))
    }

    /// The keys in `start..end` as they were at `at`.
    pub fn range(&self, start: &str, end: &str, limit: usize, at: Option<Revision>) -> Result<Range, StoreError> {
        let at = self.resolve(at)?;
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut items = Vec::new();
        let mut count = 0_u64;
        self.visit(start, end, at, |seen| {
            count += 1;
            if items.len() < limit {
                items.push(seen.to_key_value());
            }
            true
        });
        let more = count > items.len() as u64;
        Ok(Range { items, more, count, revision: at, current_revision: self.revision })
    }

    /// At most `limit` keys from `start` on, as they were at `at`, which the caller keeps from being trimmed.
    pub fn page(&self, start: &str, limit: usize, at: Revision) -> Vec<KeyValue> {
        let mut items = Vec::with_capacity(limit);
        self.visit(start, "", at, |seen| {
            items.push(seen.to_key_value());
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
                    .take_while(move |(key, _)| end.is_empty() || &**key < end)
                    .filter(move |(_, revision)| *revision > at)
                    .filter(move |(key, _)| last.replace(key) != Some(key))
                    .filter_map(|(key, revision)| self.change(key, *revision)?.previous.as_ref())
                    .peekable(),
            );
        }
        loop {
            let older = past.as_mut().and_then(|past| past.peek().copied());
            let seen = match (live.peek(), older) {
                (None, None) => return,
                (Some((key, _)), Some(kv)) if kv.key < **key => Seen::Past(kv),
                (None, Some(kv)) => Seen::Past(kv),
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

    /// The change of `key` at `revision`, which is in the history.
    fn change(&self, key: &Key, revision: Revision) -> Option<&Change> {
        let group = self.history.get(self.history.partition_point(|g| g.last < revision))?;
        let first = group.changes.partition_point(|c| c.revision < revision);
        group.changes[first..].iter().take_while(|c| c.revision == revision).find(|c| c.key == *key)
    }

    /// The groups after `position`, oldest first, at most `most`; a group that holds `position` is cut after it.
    pub fn changes_after(&self, position: Revision, most: usize) -> Result<Vec<Arc<[Change]>>, StoreError> {
        if position < self.compacted {
            return Err(self.compacted_error());
        }
        let first = self.history.partition_point(|g| g.last <= position);
        let groups = self.history.iter().skip(first).take(most);
        Ok(groups
            .map(|group| {
                let cut = group.changes.partition_point(|c| c.revision <= position);
                if cut == 0 { group.changes.clone() } else { group.changes[cut..].into() }
            })
            .collect())
    }

    /// Makes staged changes the state. `changes` is one commit group, made by [`Staging`] on this index.
    pub fn commit(&mut self, changes: Arc<[Change]>, at_ms: u64) {
        let Some(last) = changes.last().map(|c| c.revision) else { return };
        let mut bytes = 0;
        for change in changes.iter() {
            if let Some(previous) = &change.previous {
                self.live_bytes -= entry_bytes(&previous.key, &previous.value);
                bytes += previous.value.len() as u64;
            }
            match &change.kind {
                ChangeKind::Put(kv) => {
                    self.live_bytes += entry_bytes(&kv.key, &kv.value);
                    let stored = Stored {
                        value: kv.value.clone(),
                        create_revision: kv.create_revision,
                        mod_revision: kv.mod_revision,
                        version: kv.version,
                        lease: kv.lease,
                    };
                    self.live.insert(kv.key.clone(), stored);
                }
                ChangeKind::Delete => _ = self.live.remove(&change.key),
            }
            self.touched.insert((change.key.clone(), change.revision));
        }
        self.revision = last;
        self.history_bytes += bytes;
        self.history_changes += changes.len();
        self.history.push_back(Group { changes, last, at_ms, bytes });
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
                || now_ms.saturating_sub(oldest.at_ms) > limits.age_ms;
            if !over || pin.is_some_and(|pin| oldest.last > pin) {
                return;
            }
            self.compacted = self.compacted.max(oldest.last);
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some(group) = self.history.pop_front() else { return };
        self.history_bytes -= group.bytes;
        self.history_changes -= group.changes.len();
        for change in group.changes.iter() {
            self.touched.remove(&(change.key.clone(), change.revision));
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
    revision: Revision,
    bytes: i64,
}

impl<'a> Staging<'a> {
    pub fn new(index: &'a Index) -> Self {
        Staging { index, overlay: HashMap::new(), changes: Vec::new(), revision: index.revision(), bytes: 0 }
    }

    /// The revision reached so far.
    pub fn revision(&self) -> Revision {
        self.revision
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

    /// Whether a compare holds.
    pub fn holds(&self, compare: &Compare) -> bool {
        let now = match self.overlay.get(&compare.key) {
            Some(staged) => staged.as_ref().map(|kv| kv.mod_revision),
            None => self.index.live.get(&compare.key).map(|stored| stored.mod_revision),
        };
        now.unwrap_or(0) == compare.mod_revision
    }

    /// Applies operations at one new revision, and tells it; none when nothing would change.
    pub fn apply(&mut self, ops: Vec<Op>) -> Option<Revision> {
        let revision = self.revision + 1;
        let before = self.changes.len();
        for op in ops {
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
                }
                Op::Delete { .. } => {
                    let Some(previous) = previous else { continue };
                    let key = previous.key.clone();
                    self.overlay.insert(key.clone(), None);
                    self.changes.push(Change { key, revision, kind: ChangeKind::Delete, previous: Some(previous) });
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
    pub fn finish(self) -> Vec<Change> {
        self.changes
    }
}
