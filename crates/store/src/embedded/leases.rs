//! The lease table: which leases exist, when they end, which keys they hold.
//!
//! Pure: times are milliseconds passed in. Knows nothing of timers: it tells when the next lease ends.

use std::collections::{BTreeSet, HashMap};

use crate::{Change, ChangeKind, Key, LeaseId, StoreError};

/// The most leases at once. Far above any real use; keeps a runaway client from filling memory.
pub const MAX_LEASES: usize = 200_000;

/// The most keys on one lease: they are deleted at one revision, in one log record.
pub const MAX_LEASE_KEYS: usize = 1_000_000;

/// The longest lease in seconds (etcd's limit, some 285 years).
pub const MAX_TTL_SECONDS: u64 = 9_000_000_000;

/// A lease without its keys: what the log and the snapshot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTerm {
    pub id: LeaseId,
    pub ttl_ms: u64,
    pub expires_ms: u64,
}

#[derive(Debug, Default)]
struct Lease {
    ttl_ms: u64,
    expires_ms: u64,
    keys: BTreeSet<Key>,
}

#[derive(Debug)]
pub struct Leases {
    table: HashMap<LeaseId, Lease>,
    deadlines: BTreeSet<(u64, LeaseId)>,
    next: i64,
}

impl Default for Leases {
    fn default() -> Self {
        Leases { table: HashMap::new(), deadlines: BTreeSet::new(), next: 1 }
    }
}

impl Leases {
    /// A term for a new lease; it exists once [`Leases::set`] is called with it.
    pub fn plan(&mut self, ttl_seconds: u64, now_ms: u64) -> Result<LeaseTerm, StoreError> {
        // Identifiers named by clients may lie anywhere; the count goes on after the last one and around.
        while self.contains(LeaseId(self.next)) {
            self.next = self.next.checked_add(1).unwrap_or(1);
        }
        let term = self.plan_as(LeaseId(self.next), ttl_seconds, now_ms)?;
        self.next = self.next.checked_add(1).unwrap_or(1);
        Ok(term)
    }

    /// A term for a new lease of this name, which must be free.
    pub fn plan_as(&self, id: LeaseId, ttl_seconds: u64, now_ms: u64) -> Result<LeaseTerm, StoreError> {
        if ttl_seconds == 0 || ttl_seconds > MAX_TTL_SECONDS {
            return Err(StoreError::Invalid(format!(
                "a lease lasts 1 to {MAX_TTL_SECONDS} seconds, not {ttl_seconds}"
            )));
        }
        if self.table.len() >= MAX_LEASES {
            return Err(StoreError::Full(format!("there are {MAX_LEASES} leases already")));
        }
        let ttl_ms = ttl_seconds * 1000;
        Ok(LeaseTerm { id, ttl_ms, expires_ms: now_ms.saturating_add(ttl_ms) })
    }

    /// The identifier the next lease gets.
    pub fn next_id(&self) -> i64 {
        self.next
    }

    /// Never hands out an identifier below `next` again.
    pub fn reserve_ids(&mut self, next: i64) {
        self.next = self.next.max(next);
    }

    pub fn contains(&self, id: LeaseId) -> bool {
        self.table.contains_key(&id)
    }

    /// Whether another key may be attached.
    pub fn has_room(&self, id: LeaseId) -> bool {
        self.table.get(&id).is_some_and(|lease| lease.keys.len() < MAX_LEASE_KEYS)
    }

    /// The term a lease gets when kept alive now.
    pub fn renewed(&self, id: LeaseId, now_ms: u64) -> Option<LeaseTerm> {
        let lease = self.table.get(&id)?;
        Some(LeaseTerm { id, ttl_ms: lease.ttl_ms, expires_ms: now_ms.saturating_add(lease.ttl_ms) })
    }

    /// Creates the lease or moves its end.
    pub fn set(&mut self, term: LeaseTerm) {
        self.reserve_ids(term.id.0.saturating_add(1));
        let lease = self.table.entry(term.id).or_default();
        self.deadlines.remove(&(lease.expires_ms, term.id));
        lease.ttl_ms = term.ttl_ms;
        lease.expires_ms = term.expires_ms;
        self.deadlines.insert((term.expires_ms, term.id));
    }

    pub fn remove(&mut self, id: LeaseId) {
        if let Some(lease) = self.table.remove(&id) {
            self.deadlines.remove(&(lease.expires_ms, id));
        }
    }

    pub fn attach(&mut self, key: &Key, id: LeaseId) {
        if let Some(lease) = self.table.get_mut(&id) {
            lease.keys.insert(key.clone());
        }
    }

    fn detach(&mut self, key: &Key, id: LeaseId) {
        if let Some(lease) = self.table.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    /// Follows committed changes: keys move between leases.
    pub fn follow(&mut self, changes: &[Change]) {
        for change in changes {
            if let Some(id) = change.previous.as_ref().and_then(|previous| previous.lease) {
                self.detach(&change.key, id);
            }
            if let ChangeKind::Put(kv) = &change.kind
                && let Some(id) = kv.lease
            {
                self.attach(&kv.key, id);
            }
        }
    }

    /// The keys a lease holds.
    pub fn keys(&self, id: LeaseId) -> impl Iterator<Item = &Key> {
        self.table.get(&id).into_iter().flat_map(|lease| &lease.keys)
    }

    /// When the next lease ends; none when there are no leases, so that no timer runs.
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// The leases that have ended by `now_ms`, at most `most`.
    pub fn ended(&self, now_ms: u64, most: usize) -> Vec<LeaseId> {
        let ended = self.deadlines.iter().take_while(|(at, _)| *at <= now_ms);
        ended.take(most).map(|(_, id)| *id).collect()
    }

    /// What is known of one lease.
    pub fn term(&self, id: LeaseId) -> Option<LeaseTerm> {
        let lease = self.table.get(&id)?;
        Some(LeaseTerm { id, ttl_ms: lease.ttl_ms, expires_ms: lease.expires_ms })
    }

    /// Every lease, for a snapshot.
    pub fn terms(&self) -> Vec<LeaseTerm> {
        let term =
            |(id, lease): (&LeaseId, &Lease)| LeaseTerm { id: *id, ttl_ms: lease.ttl_ms, expires_ms: lease.expires_ms };
        self.table.iter().map(term).collect()
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// After a restart: no lease lasts longer than its whole time from now, whatever the clock did meanwhile.
    pub fn clamp(&mut self, now_ms: u64) {
        for term in self.terms() {
            let most = now_ms.saturating_add(term.ttl_ms);
            if term.expires_ms > most {
                self.set(LeaseTerm { expires_ms: most, ..term });
            }
        }
    }
}
