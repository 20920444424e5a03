//! The multi-version index: what every key is now, and what it was at any revision since the compacted one.
//!
//! Guarantees: a read at a revision sees exactly the state that revision left; history is whole from `compacted` on.
//! Pure: no clock, no file, no lock, no thread; times are passed in. Knows nothing of requests or of the log.
//!
//! History is one queue of changes, in order, each with what its key was before; the changes of one key are linked, so a key
//! at a revision is what it was before its first change after it, and keys that did not change lately cost nothing for
//! history. Groups cut the queue as changes were committed together. The newest groups are also kept whole, shared with every
//! watcher; older ones are put together again from the queue, their values read back from the log (see `history`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::history::{Past, PastChange, Source, Taken, Version};
use super::keys::{Entry, Keys, Slot};
use super::staging::Staged;
use crate::{Change, ChangeKind, Key, LeaseId, Range, Revision, StoreError};

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

/// One commit group: whole revisions, ascending.
#[derive(Debug)]
struct Group {
    /// The number of its first change, and how many it has.
    first: u64,
    len: usize,
    /// Its changes, while it is one of the newest.
    shared: Option<Arc<[Change]>>,
    last: Revision,
    at_ms: u64,
    /// Bytes of the values it superseded, and those of them that the queue holds in memory.
    bytes: u64,
    memory_bytes: u64,
}

/// One change in the queue.
#[derive(Debug)]
struct Step {
    slot: Slot,
    revision: Revision,
    /// The numbers of the changes of the key before and after it. 0: there is none; so does a number that has left the queue.
    older: u64,
    newer: u64,
    /// What the key was before; none when it did not exist.
    before: Option<Past>,
}

/// The state and its history.
#[derive(Debug)]
pub struct Index {
    keys: Keys,
    live_bytes: u64,
    revision: Revision,
    compacted: Revision,
    steps: VecDeque<Step>,
    /// The number of the first change in the queue; numbers go up by one.
    first: u64,
    groups: VecDeque<Group>,
    history_bytes: u64,
    history_memory: u64,
    /// How many of the newest groups are kept whole, their changes, and the bytes of the values they superseded.
    shared: (usize, usize, u64),
    /// Groups that are kept whole no more: freeing them takes a while.
    let_go: Vec<Arc<[Change]>>,
    /// The segments of the log, by number: what superseded values are read back from.
    segments: BTreeMap<u32, Arc<Source>>,
}

/// A borrowed version of a key.
enum Seen<'a> {
    Live(&'a Entry),
    Past(&'a Key, &'a Past),
}

impl Seen<'_> {
    fn to_version(&self) -> Version {
        match self {
            Seen::Live(entry) => entry.key_value().into(),
            Seen::Past(key, past) => past.version(key),
        }
    }
}

impl Default for Index {
    fn default() -> Self {
        Index {
            keys: Keys::default(),
            live_bytes: 0,
            revision: FIRST_REVISION,
            compacted: 0,
            steps: VecDeque::new(),
            first: 1,
            groups: VecDeque::new(),
            history_bytes: 0,
            history_memory: 0,
            shared: (0, 0, 0),
            let_go: Vec::new(),
            segments: BTreeMap::new(),
        }
    }
}

impl Index {
    /// An index holding a snapshot: the keys as they were at `revision`, and no history before it.
    pub fn from_snapshot(revision: Revision, keys: Keys) -> Self {
        let live_bytes = keys.entries().map(|entry| entry_bytes(&entry.key, &entry.value)).sum();
        Index { keys, live_bytes, revision, compacted: revision, ..Index::default() }
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
        self.keys.live()
    }

    pub fn history_changes(&self) -> usize {
        self.steps.len()
    }

    /// Bytes of superseded values that can be read.
    pub fn history_bytes(&self) -> u64 {
        self.history_bytes
    }

    /// Bytes of superseded values in memory.
    pub fn history_memory(&self) -> u64 {
        self.history_memory
    }

    /// The keys, to stage changes on.
    pub fn keys(&self) -> &Keys {
        &self.keys
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

    /// All keys that belong to a lease, with it.
    pub fn leased(&self) -> impl Iterator<Item = (&Key, LeaseId)> {
        self.keys.entries().filter(|entry| entry.lease != 0).map(|entry| (&entry.key, LeaseId(entry.lease)))
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

    /// A change by its number, if the queue still has it.
    fn step(&self, number: u64) -> Option<&Step> {
        self.steps.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// What a key was at a revision.
    fn seen<'a>(&'a self, entry: &'a Entry, at: Revision) -> Option<Seen<'a>> {
        let mut after = None;
        if entry.mod_revision > at || !entry.exists() {
            let mut number = entry.newest;
            while let Some(step) = self.step(number).filter(|step| step.revision > at) {
                after = Some(step);
                number = step.older;
            }
        }
        match after {
            Some(step) => step.before.as_ref().map(|past| Seen::Past(&entry.key, past)),
            None => entry.exists().then_some(Seen::Live(entry)),
        }
    }

    /// A key as it was at `at`.
    pub fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Version>, StoreError> {
        let at = self.resolve(at)?;
        let Some(slot) = self.keys.find(key) else { return Ok(None) };
        Ok(self.seen(self.keys.entry(slot), at).map(|seen| seen.to_version()))
    }

    /// The keys in `start..end` as they were at `at`.
    pub fn range(&self, start: &str, end: &str, limit: usize, at: Option<Revision>) -> Result<Page, StoreError> {
        let at = self.resolve(at)?;
        let limit = if limit == 0 { usize::MAX } else { limit };
        let items = self.page_of(start, end, limit, at);
        // A page that is not full is the whole.
        let count = if items.len() < limit { items.len() as u64 } else { self.count(start, end, at) };
        let more = count > items.len() as u64;
        Ok(Page { items, more, count, revision: at, current_revision: self.revision })
    }

    /// At most `limit` keys from `start` on, as they were at `at`, which the caller keeps from being trimmed.
    pub fn page(&self, start: &str, limit: usize, at: Revision) -> Vec<Version> {
        self.page_of(start, "", limit, at)
    }

    fn page_of(&self, start: &str, end: &str, limit: usize, at: Revision) -> Vec<Version> {
        let seen = self.keys.range(start, end).filter_map(|slot| self.seen(self.keys.entry(slot), at));
        seen.take(limit).map(|seen| seen.to_version()).collect()
    }

    /// How many keys a range held at a revision: those it holds now, but for what was made and unmade since.
    fn count(&self, start: &str, end: &str, at: Revision) -> u64 {
        let mut count = self.keys.count(start, end) as u64;
        let from = self.steps.partition_point(|step| step.revision <= at);
        for step in self.steps.range(from..).filter(|step| step.older < self.first + from as u64) {
            // The first change of its key after the revision.
            let entry = self.keys.entry(step.slot);
            if *entry.key < *start || (!end.is_empty() && *entry.key >= *end) {
                continue;
            }
            match (step.before.is_some(), entry.exists()) {
                (true, false) => count += 1,
                (false, true) => count -= 1,
                _ => {}
            }
        }
        count
    }

    /// The groups after `position`, oldest first, at most `most`; a group that holds `position` is cut after it.
    pub fn changes_after(&self, position: Revision, most: usize) -> Result<Vec<Taken>, StoreError> {
        if position < self.compacted {
            return Err(self.compacted_error());
        }
        let first = self.groups.partition_point(|group| group.last <= position);
        let mut bytes = 0;
        let mut groups = Vec::new();
        for group in self.groups.range(first..).take(most) {
            let taken = match &group.shared {
                Some(changes) => {
                    let cut = changes.partition_point(|change| change.revision <= position);
                    Taken::Shared(if cut == 0 { changes.clone() } else { changes[cut..].into() })
                }
                None => {
                    let at = (group.first - self.first) as usize;
                    let steps = self.steps.range(at..at + group.len).filter(|step| step.revision > position);
                    Taken::Past(steps.map(|step| self.past_change(step)).collect())
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

    /// A change put together again: what it made of the key is what the key was before its next change, or is still.
    fn past_change(&self, step: &Step) -> PastChange {
        let entry = self.keys.entry(step.slot);
        let version = |past: &Option<Past>| past.as_ref().map(|past| past.version(&entry.key));
        let now = match self.step(step.newer) {
            Some(next) => version(&next.before),
            None => entry.exists().then(|| entry.key_value().into()),
        };
        PastChange { key: entry.key.clone(), revision: step.revision, now, before: version(&step.before) }
    }

    /// Makes staged changes the state: one commit group, staged on this index. `place` is the segment and the offset that
    /// its payload lies at.
    pub fn commit(&mut self, staged: Staged, place: (u64, u64), at_ms: u64) {
        let Staged { changes, targets } = staged;
        let Some(last) = changes.last().map(|change| change.revision) else { return };
        let first = self.first + self.steps.len() as u64;
        let (mut bytes, mut memory_bytes) = (0, 0);
        for (change, target) in changes.iter().zip(targets) {
            let known = target.slot.or_else(|| self.keys.find(&change.key));
            let slot = known.unwrap_or_else(|| self.keys.add(change.key.clone()));
            let number = self.first + self.steps.len() as u64;
            let before = change.previous.as_ref().map(|previous| {
                let spot = self.keys.entry(slot).spot;
                let past = Past::new(previous, self.segments.get(&spot.segment), spot);
                let (all, in_memory) = past.bytes();
                bytes += all;
                memory_bytes += in_memory;
                self.live_bytes -= entry_bytes(&previous.key, &previous.value);
                past
            });
            let (existed, exists) = (before.is_some(), matches!(change.kind, ChangeKind::Put(_)));
            if known.is_some() && existed != exists {
                self.keys.set_live(slot, exists);
            }
            let entry = self.keys.entry_mut(slot);
            match &change.kind {
                ChangeKind::Put(kv) => {
                    self.live_bytes += entry_bytes(&kv.key, &kv.value);
                    entry.value = kv.value.clone();
                    entry.create_revision = kv.create_revision;
                    entry.mod_revision = kv.mod_revision;
                    entry.version = kv.version;
                    entry.lease = kv.lease.map_or(0, |lease| lease.0);
                    entry.spot = target.spot.within(place.0, place.1);
                }
                ChangeKind::Delete => {
                    entry.value = Default::default();
                    entry.mod_revision = 0;
                }
            }
            let older = std::mem::replace(&mut entry.newest, number);
            if let Some(older) = older.checked_sub(self.first) {
                self.steps[older as usize].newer = number;
            }
            if self.steps.len() == self.steps.capacity() {
                // By a part, not to the double: a queue comes to touch all it has.
                self.steps.reserve_exact(self.steps.len() / 4 + 64);
            }
            self.steps.push_back(Step { slot, revision: change.revision, older, newer: 0, before });
        }
        self.revision = last;
        self.history_bytes += bytes;
        self.history_memory += memory_bytes;
        let len = changes.len();
        self.shared = (self.shared.0 + 1, self.shared.1 + len, self.shared.2 + bytes);
        self.groups.push_back(Group { first, len, shared: Some(changes), last, at_ms, bytes, memory_bytes });
        while self.shared.0 > 1 && (self.shared.1 > SHARED_CHANGES || self.shared.2 > SHARED_BYTES) {
            self.unshare_oldest();
        }
    }

    /// Groups that are kept whole no more, to be freed when nobody waits.
    pub fn let_go(&mut self) -> Vec<Arc<[Change]>> {
        std::mem::take(&mut self.let_go)
    }

    /// Lets go of the oldest group that is kept whole.
    fn unshare_oldest(&mut self) {
        let at = self.groups.len() - self.shared.0;
        let group = &mut self.groups[at];
        self.shared = (self.shared.0 - 1, self.shared.1 - group.len, self.shared.2 - group.bytes);
        self.let_go.extend(group.shared.take());
    }

    /// Forgets history below `revision`; groups that reach above `pin` stay in memory (something still reads them).
    pub fn compact(&mut self, revision: Revision, pin: Option<Revision>) {
        self.compacted = self.compacted.max(revision.min(self.revision));
        let floor = pin.map_or(self.compacted, |pin| pin.min(self.compacted));
        while self.groups.front().is_some_and(|group| group.last <= floor) {
            self.forget_oldest();
        }
        self.tidy();
    }

    /// Forgets what is over the limits, oldest first. The newest group always stays, for the watchers to read.
    pub fn enforce(&mut self, limits: &HistoryLimits, now_ms: u64, pin: Option<Revision>) {
        while self.groups.len() > 1 {
            let Some(oldest) = self.groups.front() else { break };
            let over = self.steps.len() > limits.changes
                || self.history_bytes > limits.bytes
                || self.history_memory > limits.memory_bytes
                || now_ms.saturating_sub(oldest.at_ms) > limits.age_ms;
            if !over || pin.is_some_and(|pin| oldest.last > pin) {
                break;
            }
            self.compacted = self.compacted.max(oldest.last);
            self.forget_oldest();
        }
        self.tidy();
    }

    fn forget_oldest(&mut self) {
        if self.shared.0 == self.groups.len() && !self.groups.is_empty() {
            self.unshare_oldest();
        }
        let Some(group) = self.groups.pop_front() else { return };
        self.history_bytes -= group.bytes;
        self.history_memory -= group.memory_bytes;
        for step in self.steps.drain(..group.len) {
            // The newest change of a key that is gone: nothing is left to know of it.
            if step.newer == 0 && !self.keys.entry(step.slot).exists() {
                self.keys.remove(step.slot);
            }
        }
        self.first += group.len as u64;
    }

    /// Gives back the memory of what was forgotten.
    fn tidy(&mut self) {
        shrink(&mut self.groups);
        shrink(&mut self.steps);
        if self.keys.is_sparse() {
            let new = self.keys.renumber();
            self.steps.iter_mut().for_each(|step| step.slot = new[step.slot as usize]);
        }
    }
}

fn shrink<T>(queue: &mut VecDeque<T>) {
    if queue.capacity() > 1024 && queue.len() < queue.capacity() / 4 {
        queue.shrink_to(2 * queue.len());
    }
}

/// What an entry counts towards the database limit.
pub fn entry_bytes(key: &str, value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64
}
