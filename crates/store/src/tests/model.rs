//! A random walk: the same operations on a store and on a model that keeps every state whole.
//!
//! Deterministic for a seed. After each step the outcome is compared; reads at random revisions and watches from random
//! revisions are compared with what the model remembers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;

use super::{at, delete, put};
use crate::{Backend, Change, ChangeKind, Key, KeyValue, Op, Revision, StoreError, Txn, TxnOutcome, WatchItem};

type State = BTreeMap<Key, KeyValue>;

/// xorshift64*: enough for a walk, and the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }
}

/// The model: the state each revision left, and the changes that led to it.
pub struct Walk {
    random: Random,
    states: BTreeMap<Revision, State>,
    changes: Vec<Change>,
    compacted: Revision,
    first: Revision,
    /// What is watched. With an old etcd, progress for less than all keys takes revisions of its own.
    pub prefixes: &'static [&'static str],
}

impl Walk {
    /// Starts at an empty store.
    pub async fn new(seed: u64, store: &dyn Backend) -> Self {
        let first = store.current_revision().await.unwrap();
        Walk {
            random: Random::new(seed),
            states: BTreeMap::from([(first, State::new())]),
            changes: Vec::new(),
            compacted: first,
            first,
            prefixes: &["/a/", "/b/", "/"],
        }
    }

    fn now(&self) -> (Revision, &State) {
        let (revision, state) = self.states.last_key_value().unwrap();
        (*revision, state)
    }

    fn key(&mut self) -> String {
        format!("/{}/{}", ["a", "b"][self.random.below(2) as usize], self.random.below(12))
    }

    fn txn(&mut self) -> Txn {
        let mut txn = Txn::default();
        for _ in 0..1 + self.random.below(3) {
            let key = self.key();
            if txn.ops.iter().any(|op| **op.key() == *key) {
                continue;
            }
            let size = 1 + self.random.below(200) as usize;
            let value = format!("{:x}", self.random.below(u64::MAX)).repeat(size / 8 + 1);
            txn.ops.push(if self.random.below(4) == 0 { delete(&key) } else { put(&key, &value) });
        }
        if self.random.below(2) == 0 {
            let key = self.key();
            let held = self.now().1.get(&*key).map_or(0, |kv| kv.mod_revision);
            txn.compares.push(at(&key, if self.random.below(3) == 0 { held + 1 } else { held }));
        }
        txn
    }

    /// What the model says a transaction does.
    fn apply(&mut self, txn: &Txn) -> TxnOutcome {
        let (revision, state) = self.now();
        let mut state = state.clone();
        let holds = |c: &crate::Compare| state.get(&c.key).map_or(0, |kv| kv.mod_revision) == c.mod_revision;
        if !txn.compares.iter().all(holds) {
            let current = txn.compares.iter().map(|c| state.get(&c.key).cloned()).collect();
            return TxnOutcome::Conflict { current, revision };
        }
        let next = revision + 1;
        let mut changes = Vec::new();
        for op in &txn.ops {
            let previous = state.remove(op.key());
            let kind = match op {
                Op::Put { key, value, lease } => {
                    let kv = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: previous.as_ref().map_or(next, |p| p.create_revision),
                        mod_revision: next,
                        version: previous.as_ref().map_or(1, |p| p.version + 1),
                        lease: *lease,
                    };
                    state.insert(key.clone(), kv.clone());
                    ChangeKind::Put(kv)
                }
                Op::Delete { .. } if previous.is_none() => continue,
                Op::Delete { .. } => ChangeKind::Delete,
            };
            changes.push(Change { key: op.key().clone(), revision: next, kind, previous });
        }
        if changes.is_empty() {
            return TxnOutcome::Committed { revision };
        }
        self.changes.extend(changes);
        self.states.insert(next, state);
        TxnOutcome::Committed { revision: next }
    }

    /// Takes so many steps.
    pub async fn run(&mut self, store: Arc<dyn Backend>, steps: usize) {
        for _ in 0..steps {
            match self.random.below(20) {
                0..12 => {
                    let txn = self.txn();
                    let expected = self.apply(&txn);
                    assert_eq!(store.txn(txn.clone()).await.unwrap(), expected, "{txn:?}");
                }
                12..16 => self.check_read(&*store).await,
                16..18 => self.check_watch(&*store).await,
                18 => {
                    // A group of independent writers: the order is the store's choice, so only their sum is compared.
                    self.check_group(store.clone()).await;
                }
                _ => {
                    let (revision, _) = self.now();
                    if self.random.below(4) == 0 && revision > self.compacted + 40 {
                        self.compacted = revision - self.random.below(30);
                        store.compact(self.compacted).await.unwrap();
                    }
                }
            }
        }
    }

    async fn check_read(&mut self, store: &dyn Backend) {
        let (revision, _) = self.now();
        let back = self.random.below(60).min(revision - self.first);
        let asked = revision - back;
        let key = self.key();
        let (start, end) = [("/a/", "/a0"), ("/", "0"), ("/a/3", "/b/2")][self.random.below(3) as usize];
        let limit = [0, 1, 5][self.random.below(3) as usize];
        let got = store.get(&key, Some(asked)).await;
        let range = store.range(start, end, limit, Some(asked)).await;
        if asked < self.compacted {
            assert!(matches!(got, Err(StoreError::Compacted { .. })), "{got:?}");
            assert!(matches!(range, Err(StoreError::Compacted { .. })), "{range:?}");
            return;
        }
        let state = &self.states[&asked];
        assert_eq!(got.unwrap(), (state.get(&*key).cloned(), revision));
        let all: Vec<_> = state.range(Key::from(start)..Key::from(end)).map(|(_, kv)| kv.clone()).collect();
        let range = range.unwrap();
        assert_eq!((range.revision, range.current_revision, range.count), (asked, revision, all.len() as u64));
        let most = if limit == 0 { all.len() } else { limit.min(all.len()) };
        assert_eq!(range.items, all[..most]);
        assert_eq!(range.more, most < all.len());
    }

    async fn check_watch(&mut self, store: &dyn Backend) {
        let (revision, _) = self.now();
        let after = (revision - self.random.below(60).min(revision - self.first)).max(self.compacted);
        let prefix = self.prefixes[self.random.below(self.prefixes.len() as u64) as usize];
        let expected: Vec<_> =
            self.changes.iter().filter(|c| c.revision > after && c.key.starts_with(prefix)).cloned().collect();
        let got = collect(store, prefix, after, revision).await;
        // etcd no longer has the version before a change whose predecessor is compacted.
        let without = |changes: &[Change]| -> Vec<Change> {
            let strip = |c: &Change| Change { previous: None, ..c.clone() };
            changes.iter().map(strip).collect()
        };
        assert_eq!(without(&got), without(&expected), "{prefix} after {after}");
        for (got, expected) in got.iter().zip(&expected) {
            match (&got.previous, &expected.previous) {
                (None, Some(previous)) => assert!(previous.mod_revision <= self.compacted, "{got:?}"),
                (got, expected) => assert_eq!(got, expected),
            }
        }
    }

    async fn check_group(&mut self, store: Arc<dyn Backend>) {
        let writes: Vec<_> = (0..8).map(|i| (format!("/a/g{i}"), format!("{}", self.random.below(1000)))).collect();
        let txns =
            writes.iter().map(|(key, value)| store.txn(Txn { compares: Vec::new(), ops: vec![put(key, value)] }));
        let outcomes = futures::future::join_all(txns).await;
        let mut order: Vec<_> = outcomes
            .into_iter()
            .zip(&writes)
            .map(|(outcome, write)| match outcome.unwrap() {
                TxnOutcome::Committed { revision } => (revision, write),
                other => panic!("{other:?}"),
            })
            .collect();
        order.sort();
        for (revision, (key, value)) in order {
            let expected = self.apply(&Txn { compares: Vec::new(), ops: vec![put(key, value)] });
            assert_eq!(expected, TxnOutcome::Committed { revision });
        }
    }

    /// Compares the whole state.
    pub async fn check_all(&self, store: &dyn Backend) {
        let (revision, state) = self.now();
        let range = store.range("", "\u{10FFFF}", 0, None).await;
        let range = match range {
            // etcd takes no empty start.
            Err(StoreError::Invalid(_)) => store.range("\0", "\u{10FFFF}", 0, None).await.unwrap(),
            other => other.unwrap(),
        };
        assert_eq!(range.current_revision, revision);
        assert_eq!(range.items, state.values().cloned().collect::<Vec<_>>());
    }
}

/// All changes of a prefix in `after..=until`.
pub async fn collect(store: &dyn Backend, prefix: &str, after: Revision, until: Revision) -> Vec<Change> {
    collect_to(store, prefix, after, || until).await
}

/// As [`collect`], where the end may come to be known on the way. With an old etcd, asking for progress takes revisions.
pub async fn collect_to(
    store: &dyn Backend,
    prefix: &str,
    after: Revision,
    until: impl Fn() -> Revision,
) -> Vec<Change> {
    let mut stream = store.watch(prefix, after).await.unwrap();
    let mut changes = Vec::new();
    let mut reached = after;
    let mut silences = 0;
    while reached < until() {
        let Ok(next) = tokio::time::timeout(Duration::from_millis(200), stream.next()).await else {
            // Only now: with an old etcd, asking writes.
            silences += 1;
            assert!(silences < 100, "the watch says nothing");
            store.request_progress().await.unwrap();
            continue;
        };
        silences = 0;
        match next.expect("the watch ended").unwrap() {
            WatchItem::Changes(some) => {
                assert!(!some.is_empty());
                assert!(some[0].revision > reached, "{} after {reached}", some[0].revision);
                assert!(some.windows(2).all(|pair| pair[0].revision <= pair[1].revision));
                reached = some[some.len() - 1].revision;
                changes.extend(some.iter().cloned());
            }
            WatchItem::Progress(revision) => {
                assert!(revision >= reached);
                reached = revision;
            }
        }
    }
    changes
}

#[test]
fn the_walk_is_the_same_for_a_seed() {
    let (mut a, mut b) = (Random(7), Random(7));
    assert!((0..100).all(|_| a.below(1000) == b.below(1000)));
    assert_eq!(Bytes::from_static(b"x"), "x");
}
