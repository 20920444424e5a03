//! Random concurrent histories: many clients at once, checked afterwards for linearizability and exact watch order.
//!
//! Every answer carries the revision it was given at, so the order that must exist is known: the changes of the store, as a
//! watch of everything tells them, are replayed on a model that keeps each state whole; every answer must be what the
//! model says at the answer's revision; and of two calls, one of which ended before the other began, the later one must
//! not be at an earlier revision. The same test runs on each backend, so a real etcd checks the model itself.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt;

use super::model::Random;
use super::{at, commit, delete, put};
use crate::{
    Backend, Change, ChangeKind, Key, KeyValue, LeaseId, Op, Range, Revision, StoreError, Txn, TxnOutcome, WatchItem,
    prefix_end,
};

type State = BTreeMap<Key, KeyValue>;

const CLIENTS: u64 = 8;

/// What a client saw.
#[derive(Debug)]
enum Seen {
    Txn(Txn, TxnOutcome),
    Get(String, Option<KeyValue>, Revision),
    Range(&'static str, usize, Range),
    /// A read of the past.
    Past(&'static str, Revision, Result<Range, StoreError>),
    Current(Revision),
    Compact(Revision),
    Revoke(LeaseId, Result<(), StoreError>),
    /// A write under leases, one of which had ended.
    LeaseRefused(Vec<LeaseId>),
}

/// A call, with its place in the order of all beginnings and endings.
#[derive(Debug)]
struct Call {
    start: u64,
    end: u64,
    seen: Seen,
}

/// What a watcher was told: changes, and the error that ended it if one did.
struct Watched {
    prefix: &'static str,
    after: Revision,
    start: u64,
    end: u64,
    changes: Vec<Change>,
    ended: Option<StoreError>,
}

/// One history, which may go on over several openings of a store.
pub struct History {
    seed: u64,
    phase: u64,
    first: Revision,
    clock: Arc<AtomicU64>,
    calls: Vec<Call>,
    watched: Vec<Watched>,
    /// Every change, in order.
    log: Vec<Change>,
    /// Leases that end by themselves within the test.
    short: HashSet<LeaseId>,
    /// Whether the store may leave a deletion out of a watch when it is compacted to at that very revision: etcd before 3.4.33
    /// and 3.5.15 loses the tombstone, though its own rules say that the revision is kept.
    pub forgets_compacted_deletions: bool,
}

struct Client {
    store: Arc<dyn Backend>,
    clock: Arc<AtomicU64>,
    /// How far the recorder is: nothing newer is compacted.
    recorded: Arc<AtomicU64>,
    random: Random,
    name: String,
    count: u64,
    first: Revision,
    known: HashMap<String, Revision>,
    leases: Vec<LeaseId>,
    calls: Vec<Call>,
    short: HashSet<LeaseId>,
    watches: Vec<tokio::task::JoinHandle<Watched>>,
}

fn has_put(txn: &Txn) -> bool {
    txn.ops.iter().any(|op| matches!(op, Op::Put { .. }))
}

const PREFIXES: [&str; 3] = ["/a/", "/b/", "/"];

/// The key that tells a watcher of a prefix that the phase is over.
fn end_key(prefix: &str, phase: u64) -> String {
    format!("{}~end{phase}", if prefix == "/" { "/b/" } else { prefix })
}

impl Client {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn note(&mut self, start: u64, seen: Seen) {
        let end = self.tick();
        self.calls.push(Call { start, end, seen });
    }

    fn learn(&mut self, key: &str, kv: Option<&KeyValue>) {
        self.known.insert(key.to_owned(), kv.map_or(0, |kv| kv.mod_revision));
    }

    fn key(&mut self) -> String {
        format!("/{}/{}", ["a", "b"][self.random.below(2) as usize], self.random.below(8))
    }

    fn prefix(&mut self) -> &'static str {
        PREFIXES[self.random.below(3) as usize]
    }

    fn lease(&mut self) -> Option<LeaseId> {
        let n = self.leases.len() as u64;
        (n > 0).then(|| self.leases[self.random.below(n) as usize])
    }

    /// Some revision of the past.
    fn back(&mut self) -> Revision {
        let recorded = self.recorded.load(Ordering::SeqCst);
        recorded - self.random.below(80).min(recorded - self.first)
    }

    async fn step(&mut self, phase: u64) {
        match self.random.below(100) {
            0..55 => self.txn().await,
            55..70 => {
                let key = self.key();
                let start = self.tick();
                let (kv, revision) = self.store.get(&key, None).await.unwrap();
                self.learn(&key, kv.as_ref());
                self.note(start, Seen::Get(key, kv, revision));
            }
            70..78 => {
                let (prefix, limit) = (self.prefix(), [0, 1, 5][self.random.below(3) as usize]);
                let start = self.tick();
                let range = self.store.range(prefix, &prefix_end(prefix), limit, None).await.unwrap();
                self.note(start, Seen::Range(prefix, limit, range));
            }
            78..85 => {
                let (prefix, revision) = (self.prefix(), self.back());
                let start = self.tick();
                let range = self.store.range(prefix, &prefix_end(prefix), 0, Some(revision)).await;
                self.note(start, Seen::Past(prefix, revision, range));
            }
            85..88 => {
                let start = self.tick();
                let revision = self.store.current_revision().await.unwrap();
                self.note(start, Seen::Current(revision));
            }
            88..90 => {
                let revision = self.back();
                let start = self.tick();
                self.store.compact(revision).await.unwrap();
                self.note(start, Seen::Compact(revision));
            }
            90..93 => {
                let short = self.random.below(4) == 0;
                let lease = self.store.grant_lease(if short { 1 } else { 600 }).await.unwrap();
                self.leases.push(lease);
                if short {
                    self.short.insert(lease);
                }
            }
            93..95 => {
                if let Some(lease) = self.lease() {
                    let kept = self.store.keep_alive_lease(lease).await;
                    assert!(matches!(kept, Ok(()) | Err(StoreError::LeaseNotFound(_))), "{kept:?}");
                }
            }
            95..97 => {
                if let Some(lease) = self.lease() {
                    let start = self.tick();
                    let revoked = self.store.revoke_lease(lease).await;
                    self.note(start, Seen::Revoke(lease, revoked));
                }
            }
            _ => {
                let (prefix, after) = (self.prefix(), self.back());
                let (store, clock) = (self.store.clone(), self.clock.clone());
                self.watches.push(tokio::spawn(watch(store, clock, prefix, after, end_key(prefix, phase))));
            }
        }
    }

    async fn txn(&mut self) {
        let mut txn = Txn::default();
        for _ in 0..1 + self.random.below(3) {
            let key = self.key();
            if txn.ops.iter().any(|op| **op.key() == *key) {
                continue;
            }
            self.count += 1;
            let filler = "x".repeat(self.random.below(200) as usize);
            txn.ops.push(match self.random.below(10) {
                0..3 => delete(&key),
                3..5 => {
                    let value = Bytes::from(format!("{}.{}", self.name, self.count));
                    Op::Put { key: key.as_str().into(), value, lease: self.lease() }
                }
                // No value is written twice, so each tells who wrote it.
                _ => put(&key, &format!("{}.{}{filler}", self.name, self.count)),
            });
        }
        for _ in 0..self.random.below(3) {
            let key = self.key();
            txn.compares.push(at(&key, self.known.get(&key).copied().unwrap_or(0)));
        }
        let start = self.tick();
        match self.store.txn(txn.clone()).await {
            Ok(outcome) => {
                match &outcome {
                    TxnOutcome::Committed { revision } => {
                        for op in &txn.ops {
                            let held = if matches!(op, Op::Put { .. }) { *revision } else { 0 };
                            self.known.insert(op.key().to_string(), held);
                        }
                    }
                    TxnOutcome::Conflict { current, .. } => {
                        txn.compares.iter().zip(current).for_each(|(c, kv)| self.learn(&c.key, kv.as_ref()));
                    }
                }
                self.note(start, Seen::Txn(txn, outcome));
            }
            Err(StoreError::LeaseNotFound(_)) => {
                let lease = |op: &Op| if let Op::Put { lease, .. } = op { *lease } else { None };
                let leases = txn.ops.iter().filter_map(lease).collect();
                self.note(start, Seen::LeaseRefused(leases));
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// Watches until a key is written or the watch ends.
async fn watch(
    store: Arc<dyn Backend>,
    clock: Arc<AtomicU64>,
    prefix: &'static str,
    after: Revision,
    until: String,
) -> Watched {
    let start = clock.fetch_add(1, Ordering::SeqCst);
    let mut watched = Watched { prefix, after, start, end: 0, changes: Vec::new(), ended: None };
    match store.watch(prefix, after).await {
        Err(error) => watched.ended = Some(error),
        Ok(mut stream) => loop {
            match stream.next().await.expect("a watch ends with an error") {
                Ok(WatchItem::Changes(changes)) => {
                    watched.changes.extend(changes.iter().cloned());
                    if changes.iter().any(|change| *change.key == *until) {
                        break;
                    }
                }
                Ok(WatchItem::Progress(_)) => {}
                Err(error) => {
                    watched.ended = Some(error);
                    break;
                }
            }
        },
    }
    watched.end = clock.fetch_add(1, Ordering::SeqCst);
    watched
}

impl History {
    pub async fn new(seed: u64, store: &dyn Backend) -> Self {
        History {
            seed,
            phase: 0,
            first: store.current_revision().await.unwrap(),
            clock: Arc::default(),
            calls: Vec::new(),
            watched: Vec::new(),
            log: Vec::new(),
            short: HashSet::new(),
            forgets_compacted_deletions: false,
        }
    }

    /// Lets the clients take so many steps each, and records all of it.
    pub async fn run(&mut self, store: Arc<dyn Backend>, steps: usize) {
        self.phase += 1;
        let phase = self.phase;
        let start = store.current_revision().await.unwrap();
        let recorded = Arc::new(AtomicU64::new(start));
        let recorder = {
            let (recorded, mut stream) = (recorded.clone(), store.watch("/", start).await.unwrap());
            let until = end_key("/", phase);
            tokio::spawn(async move {
                let mut log: Vec<Change> = Vec::new();
                loop {
                    let WatchItem::Changes(changes) = stream.next().await.unwrap().unwrap() else { continue };
                    recorded.store(changes[changes.len() - 1].revision, Ordering::SeqCst);
                    log.extend(changes.iter().cloned());
                    if changes.iter().any(|change| *change.key == *until) {
                        return log;
                    }
                }
            })
        };
        let clients = (0..CLIENTS).map(|n| {
            let mut client = Client {
                store: store.clone(),
                clock: self.clock.clone(),
                recorded: recorded.clone(),
                random: Random::new(self.seed * 1000 + phase * 100 + n),
                name: format!("{phase}.{n}"),
                count: 0,
                first: self.first,
                known: HashMap::new(),
                leases: Vec::new(),
                calls: Vec::new(),
                short: HashSet::new(),
                watches: Vec::new(),
            };
            tokio::spawn(async move {
                for _ in 0..steps {
                    client.step(phase).await;
                }
                client
            })
        });
        let clients = futures::future::try_join_all(clients).await.unwrap();
        for prefix in ["/a/", "/b/"] {
            let txn = Txn { compares: Vec::new(), ops: vec![put(&end_key(prefix, phase), "end")] };
            let start = self.clock.fetch_add(1, Ordering::SeqCst);
            let revision = commit(&*store, txn.ops.clone()).await;
            let end = self.clock.fetch_add(1, Ordering::SeqCst);
            self.calls.push(Call { start, end, seen: Seen::Txn(txn, TxnOutcome::Committed { revision }) });
        }
        self.log.extend(recorder.await.unwrap());
        for client in clients {
            self.calls.extend(client.calls);
            self.short.extend(client.short);
            for watch in client.watches {
                self.watched.push(watch.await.unwrap());
            }
        }
    }

    /// Checks everything that was recorded; gives how many calls and changes there were.
    pub fn check(&self) -> (usize, usize) {
        let states = self.replay();
        let last = *states.last_key_value().unwrap().0;
        let effective = self.effective();
        let wrote: HashSet<usize> = effective.values().copied().collect();
        let mut ended: HashSet<LeaseId> = self.short.clone();
        ended.extend(self.calls.iter().filter_map(|call| match call.seen {
            Seen::Revoke(lease, _) => Some(lease),
            _ => None,
        }));
        self.check_unclaimed(&states, &effective, &ended);
        let mut placed = Vec::new();
        for (n, call) in self.calls.iter().enumerate() {
            let wrote = wrote.contains(&n);
            if let Some(revision) = self.check_call(call, &states, wrote, &ended) {
                placed.push((call, revision, wrote && matches!(&call.seen, Seen::Txn(txn, _) if has_put(txn))));
            }
        }
        check_order(placed);
        for watched in &self.watched {
            self.check_watch(watched);
        }
        for lease in self.calls.iter().filter_map(|call| match call.seen {
            Seen::Revoke(lease, Ok(())) => Some(lease),
            _ => None,
        }) {
            assert!(!states[&last].values().any(|kv| kv.lease == Some(lease)), "{lease} was revoked and holds keys");
        }
        (self.calls.len(), self.log.len())
    }

    /// The state after each revision, from the changes; these must follow from each other.
    fn replay(&self) -> BTreeMap<Revision, State> {
        let mut states = BTreeMap::from([(self.first, State::new())]);
        for changes in self.log.chunk_by(|a, b| a.revision == b.revision) {
            let (before, state) = states.last_key_value().unwrap();
            let revision = changes[0].revision;
            assert_eq!(revision, before + 1, "no revision is left out");
            let mut state = state.clone();
            for change in changes {
                let previous = state.remove(&change.key);
                // etcd no longer has the version before a change whose predecessor is compacted.
                if change.previous.is_some() {
                    assert_eq!(change.previous, previous);
                }
                match &change.kind {
                    ChangeKind::Delete => assert!(previous.is_some(), "{change:?}"),
                    ChangeKind::Put(kv) => {
                        assert_eq!((kv.mod_revision, &kv.key), (revision, &change.key));
                        assert_eq!(kv.version, previous.as_ref().map_or(1, |p| p.version + 1));
                        assert_eq!(kv.create_revision, previous.map_or(revision, |p| p.create_revision));
                        state.insert(change.key.clone(), kv.clone());
                    }
                }
            }
            states.insert(revision, state);
        }
        states
    }

    fn changes_at(&self, revision: Revision) -> &[Change] {
        let from = self.log.partition_point(|change| change.revision < revision);
        let to = self.log.partition_point(|change| change.revision <= revision);
        &self.log[from..to]
    }

    /// For each revision a transaction made: which call it was.
    fn effective(&self) -> BTreeMap<Revision, usize> {
        let mut claims: BTreeMap<Revision, usize> = BTreeMap::new();
        for (n, call) in self.calls.iter().enumerate() {
            let Seen::Txn(txn, TxnOutcome::Committed { revision }) = &call.seen else { continue };
            let changes = self.changes_at(*revision);
            let did = |change: &Change| {
                txn.ops.iter().any(|op| match (op, &change.kind) {
                    (Op::Put { key, value, lease }, ChangeKind::Put(kv)) => {
                        *key == kv.key && *value == kv.value && *lease == kv.lease
                    }
                    (Op::Delete { key }, ChangeKind::Delete) => *key == change.key,
                    _ => false,
                })
            };
            if changes.is_empty() || !changes.iter().all(did) {
                assert!(!has_put(txn), "lost: {call:?}, {changes:?}");
                continue;
            }
            // Of several that only deleted the same keys, the first to end did it.
            let claim = claims.entry(*revision).or_insert(n);
            if self.calls[*claim].end > call.end {
                *claim = n;
            }
        }
        claims
    }

    /// Revisions that no transaction made: the ends of leases.
    fn check_unclaimed(
        &self,
        states: &BTreeMap<Revision, State>,
        effective: &BTreeMap<Revision, usize>,
        ended: &HashSet<LeaseId>,
    ) {
        for changes in self.log.chunk_by(|a, b| a.revision == b.revision) {
            let revision = changes[0].revision;
            if effective.contains_key(&revision) {
                continue;
            }
            assert!(changes.iter().all(|change| change.kind == ChangeKind::Delete), "nobody wrote {changes:?}");
            let before = &states[&(revision - 1)];
            let lease = before[&changes[0].key].lease.unwrap_or_else(|| panic!("nobody deleted {changes:?}"));
            assert!(ended.contains(&lease), "{lease} ended by itself");
            let held: Vec<_> = before.values().filter(|kv| kv.lease == Some(lease)).map(|kv| &kv.key).collect();
            let mut deleted: Vec<_> = changes.iter().map(|change| &change.key).collect();
            deleted.sort();
            assert_eq!(deleted, held, "a lease takes all its keys at once");
        }
    }

    /// Whether a compaction above a revision may or must have been seen by a call.
    fn compacted(&self, revision: Revision, start: u64, end: u64) -> (bool, bool) {
        let above = |call: &&Call| matches!(call.seen, Seen::Compact(to) if to > revision);
        let mut compactions = self.calls.iter().filter(above);
        let may = compactions.clone().any(|call| call.start < end);
        (may, compactions.any(|call| call.end < start))
    }

    /// Checks an answer against the model; gives the revision at which it was true.
    fn check_call(
        &self,
        call: &Call,
        states: &BTreeMap<Revision, State>,
        effective: bool,
        ended: &HashSet<LeaseId>,
    ) -> Option<Revision> {
        let matching = |state: &State, prefix: &str| -> Vec<KeyValue> {
            state.values().filter(|kv| kv.key.starts_with(prefix)).cloned().collect()
        };
        let held = |state: &State, key: &str| state.get(key).map_or(0, |kv| kv.mod_revision);
        match &call.seen {
            Seen::Txn(txn, TxnOutcome::Committed { revision }) => {
                let before = &states[&(revision - u64::from(effective))];
                let hold = |state: &State| txn.compares.iter().all(|c| held(state, &c.key) == c.mod_revision);
                // Who deleted is not known for sure: a lease may have ended right before, with the same keys.
                let around = [revision - 1, *revision];
                assert!(hold(before) || !has_put(txn) && around.iter().any(|at| hold(&states[at])), "{call:?}");
                for op in &txn.ops {
                    let key = op.key();
                    match (effective, op) {
                        (true, Op::Put { key, value, .. }) => assert_eq!(&states[revision][key].value, value),
                        (true, Op::Delete { .. }) => assert!(!states[revision].contains_key(key), "{call:?}"),
                        (false, _) => assert!(!before.contains_key(key), "{call:?} did nothing"),
                    }
                }
                Some(*revision)
            }
            Seen::Txn(txn, TxnOutcome::Conflict { current, revision }) => {
                let state = &states[revision];
                let expected: Vec<_> = txn.compares.iter().map(|c| state.get(&c.key).cloned()).collect();
                assert_eq!(current, &expected, "{call:?}");
                let failed = txn.compares.iter().any(|c| held(state, &c.key) != c.mod_revision);
                assert!(failed, "no compare fails: {call:?}");
                Some(*revision)
            }
            Seen::Get(key, kv, revision) => {
                assert_eq!(kv.as_ref(), states[revision].get(&**key), "{call:?}");
                Some(*revision)
            }
            Seen::Range(prefix, limit, range) => {
                let expected = matching(&states[&range.revision], prefix);
                let most = if *limit == 0 { expected.len() } else { expected.len().min(*limit) };
                assert_eq!(range.items, expected[..most], "{call:?}");
                assert_eq!((range.count, range.more), (expected.len() as u64, most < expected.len()), "{call:?}");
                Some(range.revision)
            }
            Seen::Past(prefix, revision, result) => {
                let (may, must) = self.compacted(*revision, call.start, call.end);
                match result {
                    Ok(range) => {
                        assert!(!must, "read below a compaction: {call:?}");
                        assert_eq!(range.items, matching(&states[revision], prefix), "{call:?}");
                    }
                    Err(StoreError::Compacted { .. }) => assert!(may, "{call:?}"),
                    Err(other) => panic!("{other:?}"),
                }
                None
            }
            Seen::Current(revision) => Some(*revision),
            Seen::Revoke(lease, result) => {
                let known = result.is_ok() || ended.contains(lease);
                assert!(known, "{call:?}");
                None
            }
            Seen::LeaseRefused(leases) => {
                assert!(leases.iter().any(|lease| ended.contains(lease)), "{call:?}");
                None
            }
            Seen::Compact(_) => None,
        }
    }

    fn check_watch(&self, watched: &Watched) {
        let Watched { prefix, after, start, end, changes, ended } = watched;
        let got: HashSet<(Revision, &Key)> = changes.iter().map(|change| (change.revision, &change.key)).collect();
        let forgotten = |change: &Change| {
            self.forgets_compacted_deletions
                && change.kind == ChangeKind::Delete
                && !got.contains(&(change.revision, &change.key))
                && self.calls.iter().any(|call| matches!(call.seen, Seen::Compact(at) if at == change.revision))
        };
        let due = |change: &&Change| change.revision > *after && change.key.starts_with(prefix) && !forgotten(change);
        let expected: Vec<&Change> = self.log.iter().filter(due).take(changes.len()).collect();
        assert_eq!(expected.len(), changes.len());
        for (got, expected) in changes.iter().zip(expected) {
            assert_eq!((&got.key, got.revision, &got.kind), (&expected.key, expected.revision, &expected.kind));
            if got.previous.is_some() && expected.previous.is_some() {
                assert_eq!(got.previous, expected.previous);
            }
        }
        if let Some(last) = changes.last() {
            let of_last = |change: &&Change| {
                change.revision == last.revision && change.key.starts_with(prefix) && !forgotten(change)
            };
            let (whole, got) = (self.log.iter().filter(of_last).count(), changes.iter().filter(|c| of_last(c)).count());
            assert_eq!(got, whole, "a revision was split");
        }
        match ended {
            None => {}
            Some(StoreError::Compacted { .. }) => {
                let position = changes.last().map_or(*after, |change| change.revision);
                assert!(self.compacted(position, *start, *end).0, "compacted at {position}");
            }
            Some(other) => panic!("{other:?}"),
        }
    }
}

/// Of two calls, the one that began after the other had ended is not at an earlier revision; and a write is at a later one.
fn check_order(mut placed: Vec<(&Call, Revision, bool)>) {
    let mut by_end = placed.clone();
    by_end.sort_by_key(|(call, ..)| call.end);
    placed.sort_by_key(|(call, ..)| call.start);
    let mut ended = by_end.into_iter().peekable();
    let mut floor: Option<(Revision, &Call)> = None;
    for (call, revision, wrote) in placed {
        while let Some((earlier, at, _)) = ended.next_if(|(earlier, ..)| earlier.end < call.start) {
            if floor.is_none_or(|(highest, _)| at > highest) {
                floor = Some((at, earlier));
            }
        }
        if let Some((floor, earlier)) = floor {
            assert!(revision >= floor + u64::from(wrote), "{call:?} at {revision} after {earlier:?} at {floor}");
        }
    }
}

/// How many histories a test makes: more by `STORE_MODEL_HISTORIES`.
pub fn histories(default: u64) -> u64 {
    std::env::var("STORE_MODEL_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}
