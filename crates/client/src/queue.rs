//! The work queue: which keys want reconciling.
//!
//! A key waits at most once, and one worker at a time has it: what is added while a worker has it waits until the worker
//! is done. Failed keys come back after an exponential delay of their own; other keys can be added for later. A queue with
//! a name shows its figures at `/metrics`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::queue_figures::{self, Figures};

/// Distinct keys a queue holds; beyond that, adds are refused and [`Queue::take_overflow`] says so.
pub const MAX_KEYS: usize = 1_000_000;

/// An exponential delay with jitter.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: Duration,
    pub most: Duration,
}

impl Backoff {
    /// A controller's delays between attempts at one key.
    pub const RECONCILE: Self = Self { first: Duration::from_millis(5), most: Duration::from_secs(60) };

    /// The delay after the given number of failures in a row (1 is the first), between its half and whole.
    pub fn after(&self, failures: u32) -> Duration {
        let doubled = self.first.saturating_mul(1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        let whole = doubled.min(self.most);
        whole.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

struct State<K> {
    order: VecDeque<K>,
    /// In `order`, or to go there when its worker is done; since when.
    dirty: HashMap<K, Instant>,
    /// With a worker, since when; without a time once its work has ended and it only rests.
    processing: HashMap<K, Option<Instant>>,
    delayed: BTreeMap<(Instant, u64), K>,
    delayed_at: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    sequence: u64,
    closed: bool,
    overflow: bool,
    figures: Figures,
}

/// See the module. Clones share one queue.
pub struct Queue<K> {
    shared: Arc<(Mutex<State<K>>, Notify)>,
    backoff: Backoff,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), backoff: self.backoff }
    }
}

impl<K: Clone + Eq + Hash> Default for Queue<K> {
    fn default() -> Self {
        Self::new(Backoff::RECONCILE)
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    pub fn new(backoff: Backoff) -> Self {
        let state = State {
            order: VecDeque::new(),
            dirty: HashMap::new(),
            processing: HashMap::new(),
            delayed: BTreeMap::new(),
            delayed_at: HashMap::new(),
            failures: HashMap::new(),
            sequence: 0,
            closed: false,
            overflow: false,
            figures: Figures::default(),
        };
        Self { shared: Arc::new((Mutex::new(state), Notify::new())), backoff }
    }

    /// A queue whose figures are shown under a name; a later one of that name takes its place there.
    pub fn named(name: &str) -> Self
    where
        K: Send + 'static,
    {
        let queue = Self::default();
        let shared = Arc::downgrade(&queue.shared);
        queue_figures::register(
            name,
            Box::new(move || {
                let shared = shared.upgrade()?;
                let state = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                let mut figures = Figures { depth: state.order.len(), ..state.figures.clone() };
                for since in state.processing.values().flatten() {
                    figures.unfinished += since.elapsed();
                    figures.longest = figures.longest.max(since.elapsed());
                }
                Some(figures)
            }),
        );
        queue
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        // Nothing below can panic half-way through a change.
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a key now. A delayed add of the same key is kept: it may be about something else.
    pub fn add(&self, key: K) {
        let mut state = self.state();
        if add(&mut state, key) {
            self.shared.1.notify_one();
        }
    }

    /// Asks for a key after a delay; the sooner of two delays counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let mut state = self.state();
        if state.closed {
            return;
        }
        if state.delayed.len() >= MAX_KEYS {
            state.overflow = true;
            return;
        }
        let at = Instant::now() + delay;
        match state.delayed_at.get(&key) {
            Some(known) if known.0 <= at => return,
            Some(known) => {
                let known = *known;
                state.delayed.remove(&known);
            }
            None => {}
        }
        state.sequence += 1;
        let slot = (at, state.sequence);
        state.delayed_at.insert(key.clone(), slot);
        state.delayed.insert(slot, key);
        self.shared.1.notify_one();
    }

    /// Asks for a failed key again, after its own back-off; says how long that is.
    pub fn retry(&self, key: K) -> Duration {
        let delay = {
            let mut state = self.state();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            *failures = failures.saturating_add(1);
            let delay = self.backoff.after(*failures);
            state.figures.retries += 1;
            delay
        };
        self.add_after(key, delay);
        delay
    }

    /// How often in a row the key has failed.
    pub fn failures(&self, key: &K) -> u32 {
        self.state().failures.get(key).copied().unwrap_or(0)
    }

    /// The key went well: its back-off starts over.
    pub fn forget(&self, key: &K) {
        self.state().failures.remove(key);
    }

    /// The next key, and with it the duty to call [`Queue::done`]; `None` once closed. Cancel safe.
    pub async fn get(&self) -> Option<K> {
        loop {
            let next = {
                let mut state = self.state();
                let now = Instant::now();
                while let Some(entry) = state.delayed.first_entry().filter(|e| e.key().0 <= now) {
                    let key = entry.remove();
                    state.delayed_at.remove(&key);
                    add(&mut state, key);
                }
                if let Some(key) = state.order.pop_front() {
                    if let Some(since) = state.dirty.remove(&key) {
                        state.figures.waited.observe(now - since);
                    }
                    state.processing.insert(key.clone(), Some(now));
                    if !state.order.is_empty() || !state.delayed.is_empty() {
                        self.shared.1.notify_one();
                    }
                    return Some(key);
                }
                if state.closed {
                    // The next waiter must learn it too.
                    self.shared.1.notify_one();
                    return None;
                }
                state.delayed.first_key_value().map(|(slot, _)| slot.0)
            };
            match next {
                None => self.shared.1.notified().await,
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, self.shared.1.notified()).await;
                }
            }
        }
    }

    /// The work on a key has ended, though its worker keeps it a little: what it does meanwhile is not told as work.
    pub fn rests(&self, key: &K) {
        let mut state = self.state();
        if let Some(since) = state.processing.get_mut(key).and_then(Option::take) {
            state.figures.worked.observe(since.elapsed());
        }
    }

    /// The worker is done with the key; what was asked meanwhile comes up again.
    pub fn done(&self, key: &K) {
        let mut state = self.state();
        state.give_back();
        if let Some(since) = state.processing.remove(key).flatten() {
            state.figures.worked.observe(since.elapsed());
        }
        if state.dirty.contains_key(key) {
            state.order.push_back(key.clone());
            self.shared.1.notify_one();
        }
    }

    /// Keys waiting now, without the delayed.
    pub fn len(&self) -> usize {
        self.state().order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether adds were refused since the last call: then every key must be assumed dirty.
    pub fn take_overflow(&self) -> bool {
        std::mem::take(&mut self.state().overflow)
    }

    /// Ends the queue: what waits is still handed out, then `get` answers `None`.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.delayed.clear();
        state.delayed_at.clear();
        self.shared.1.notify_one();
    }
}

/// Entries a map may have room for without using it.
const SPARE: usize = 256;

/// Gives back the room a burst needed, once an eighth of it would do.
pub fn give_back<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if map.capacity() > SPARE && map.len() < map.capacity() / 8 {
        map.shrink_to(map.len() * 2);
    }
}

impl<K: Eq + Hash> State<K> {
    fn give_back(&mut self) {
        give_back(&mut self.dirty);
        give_back(&mut self.processing);
        give_back(&mut self.delayed_at);
        give_back(&mut self.failures);
        if self.order.capacity() > SPARE && self.order.len() < self.order.capacity() / 8 {
            self.order.shrink_to(self.order.len() * 2);
        }
    }
}

/// Whether a worker should wake up.
fn add<K: Clone + Eq + Hash>(state: &mut State<K>, key: K) -> bool {
    if state.closed || state.dirty.contains_key(&key) {
        return false;
    }
    if state.dirty.len() >= MAX_KEYS {
        state.overflow = true;
        return false;
    }
    state.figures.adds += 1;
    state.dirty.insert(key.clone(), Instant::now());
    if state.processing.contains_key(&key) {
        return false;
    }
    state.order.push_back(key);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_burst_leaves_no_room_behind() {
        let queue = Queue::<u32>::default();
        (0..10_000).for_each(|key| queue.add(key));
        for _ in 0..10_000 {
            let key = queue.get().await.unwrap();
            queue.done(&key);
        }
        let state = queue.state();
        for room in [state.dirty.capacity(), state.processing.capacity(), state.order.capacity()] {
            assert!(room <= 2 * SPARE, "{room}");
        }
    }
}
