//! The writer thread: takes what waits, decides it, makes it durable with one sync, publishes it, answers.
//!
//! Guarantees: revisions are assigned here and only here, without gaps; nothing staged is visible or answered before it is
//! on disk, refusals included (they may rest on writes of the same group); after a failed sync every write is refused. Sleeps
//! without a timer unless a lease exists.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::history::{Source, Spot, Version};
use super::leases::{LeaseTerm, Leases};
use super::log::{AppendError, Log};
use super::record::{self, Entry};
use super::snapshot::{self, Contents, snapshot_name};
use super::staging::{Staged, Staging};
use super::{Clock, Options, Shared};
use crate::{Key, LeaseId, Op, Revision, StoreError, Txn, TxnOutcome};

/// The most requests committed with one sync: bounds how long the first of them waits.
const GROUP_REQUESTS: usize = 4096;

/// A group takes no further request once it holds so many bytes: bounds the record and the time to write it.
const GROUP_BYTES: usize = 4 << 20;

/// How long the writer looks for the next request before it sleeps, once it has answered a few: waking a sleeping thread takes
/// about as long, and whoever was answered often asks again at once. Only after a group, so an idle store sleeps.
const LINGER: Duration = Duration::from_micros(50);

/// How long a group waits for as many requests as three quarters of the one before had: those who were answered together come
/// back together, and two small groups would take two syncs. A lone writer never waits.
const GATHER: Duration = Duration::from_micros(200);

/// Groups of fewer requests say nothing of the next one.
const GATHER_REQUESTS: usize = 4;

/// The most bytes of buffer kept from one group to the next.
const KEPT_BUFFER: usize = 256 << 10;

/// Leases ended in one group at most; the rest follow in the next.
const GROUP_LEASES: usize = 256;

/// How long ended leases wait after a write found no room, in milliseconds: room does not come at once.
const NO_ROOM_PAUSE_MS: u64 = 5_000;

/// The longest sleep until a lease's end: the clock is looked at again then.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// One request, and the share of the queue it holds until it is taken.
pub struct Request {
    pub work: Work,
    pub bytes: usize,
    pub share: u32,
}

impl From<Work> for Request {
    /// Work that takes no share of the queue.
    fn from(work: Work) -> Self {
        Request { work, bytes: 0, share: 0 }
    }
}

/// Sees the state with all writes before it, and says what to write.
pub type Decision = Box<dyn FnOnce(&Staging<'_>) -> Vec<Op> + Send>;

/// Sees the leases, and the time in milliseconds since 1970.
pub type Look = Box<dyn FnOnce(&Leases, u64) + Send>;

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer can be asked to do.
pub enum Work {
    Txn(Txn, Answer<TxnOutcome>),
    Compact(Revision, Answer<()>),
    /// A transaction decided on the state it is applied to: what it reads goes its own way, what it returns is applied.
    Decide(Decision, Answer<TxnOutcome>),
    Grant(u64, Answer<LeaseId>),
    /// A lease whose name the caller chose.
    GrantAs(LeaseId, u64, Answer<LeaseId>),
    KeepAlive(LeaseId, Answer<()>),
    Revoke(LeaseId, Answer<()>),
    /// A look at the leases, as they are on disk, and at the time.
    Look(Look),
    /// What a saved state needs to know of one moment.
    Moment(oneshot::Sender<Moment>),
    /// Take a snapshot if it frees anything; answered with the bytes of log that went.
    Defragment(Answer<u64>),
    /// A background snapshot has ended: the revision it is of, when it succeeded.
    SnapshotDone(Result<Revision, StoreError>),
    Close,
}

/// The newest revision with the leases of that very moment.
pub struct Moment {
    pub revision: Revision,
    pub leases: Vec<LeaseTerm>,
    pub next_lease: i64,
}

/// An answer that waits for the sync.
enum Pending {
    Txn(Answer<TxnOutcome>, TxnOutcome),
    Done(Answer<()>),
    Granted(Answer<LeaseId>, LeaseId),
}

impl Pending {
    // A caller that no longer waits does not care for its answer: failed sends are dropped.
    fn settle(self, outcome: &Result<(), StoreError>) {
        match (self, outcome.clone()) {
            (Pending::Txn(answer, _), Err(e)) => _ = answer.send(Err(e)),
            (Pending::Txn(answer, outcome), Ok(())) => _ = answer.send(Ok(outcome)),
            (Pending::Done(answer), done) => _ = answer.send(done),
            (Pending::Granted(answer, _), Err(e)) => _ = answer.send(Err(e)),
            (Pending::Granted(answer, id), Ok(())) => _ = answer.send(Ok(id)),
        }
    }
}

/// A group being gathered.
struct Group<'a> {
    staging: Staging<'a>,
    pending: Vec<Pending>,
    terms: Vec<LeaseTerm>,
    ended: HashSet<LeaseId>,
    /// Keys that this group puts on leases.
    leased: Vec<(LeaseId, Key)>,
    /// The compacted revision before the group.
    compacted: Revision,
    compact: Option<Revision>,
}

pub struct Writer {
    shared: Arc<Shared>,
    /// For the snapshot thread's report.
    requests: Sender<Request>,
    waiting: Receiver<Request>,
    log: Log,
    leases: Leases,
    clock: Clock,
    options: Options,
    dir: PathBuf,
    /// The record of the group under way, and where the values of a transaction lie in it.
    record: Vec<u8>,
    spots: Vec<Spot>,
    /// The newest segment the index knows of.
    known_segment: u64,
    /// Why writes are refused for good.
    broken: Option<StoreError>,
    snapshot: Option<(Revision, JoinHandle<()>)>,
    /// Who asked for a snapshot, and has no answer yet: before one under way, and with it.
    defragment: Vec<Answer<u64>>,
    defragmenting: Vec<Answer<u64>>,
    /// After a failed snapshot: the log has to grow to this before the next try.
    snapshot_not_before: u64,
    /// After a write found no room: leases are not ended before this time.
    expiry_not_before: u64,
}

impl Drop for Writer {
    /// However the thread ends: watchers wake up and find the store closed, and no snapshot is left running.
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.published.send_modify(|_| {});
        if let Some((_, thread)) = self.snapshot.take() {
            _ = thread.join();
        }
    }
}

impl Writer {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        shared: Arc<Shared>,
        requests: Sender<Request>,
        waiting: Receiver<Request>,
        log: Log,
        leases: Leases,
        clock: Clock,
        options: Options,
        dir: PathBuf,
    ) -> Self {
        Writer {
            shared,
            requests,
            waiting,
            log,
            leases,
            clock,
            options,
            dir,
            record: Vec::new(),
            spots: Vec::new(),
            known_segment: 0,
            broken: None,
            snapshot: None,
            defragment: Vec::new(),
            defragmenting: Vec::new(),
            snapshot_not_before: 0,
            expiry_not_before: 0,
        }
    }

    /// Works until told to close.
    pub fn run(mut self) {
        let mut open = true;
        let mut last_group = 0;
        while open {
            let Some(first) = self.wait((1..GATHER_REQUESTS).contains(&last_group)) else { break };
            let expected = if last_group < GATHER_REQUESTS { 0 } else { last_group * 3 / 4 };
            let mut gathering: Option<Instant> = None;
            let (mut group, mut moments, mut looks) = (Vec::new(), Vec::new(), Vec::new());
            let (mut bytes, mut shares) = (0, 0);
            let mut next = first;
            while let Some(request) = next.take() {
                bytes += request.bytes;
                shares += request.share as usize;
                match request.work {
                    Work::Close => open = false,
                    Work::SnapshotDone(result) => self.snapshot_done(result),
                    Work::Moment(answer) => moments.push(answer),
                    Work::Defragment(answer) => self.defragment.push(answer),
                    Work::Look(look) => looks.push(look),
                    work => group.push(work),
                }
                if !open || group.len() >= GROUP_REQUESTS || bytes >= GROUP_BYTES {
                    break;
                }
                next = self.waiting.try_recv().ok();
                while next.is_none()
                    && group.len() < expected
                    && gathering.get_or_insert_with(Instant::now).elapsed() < GATHER
                {
                    std::thread::yield_now();
                    next = self.waiting.try_recv().ok();
                }
            }
            self.shared.queue.add_permits(shares);
            last_group = group.len();
            self.commit(group);
            for answer in moments {
                _ = answer.send(Moment {
                    revision: self.shared.revision.load(Ordering::Acquire),
                    leases: self.leases.terms(),
                    next_lease: self.leases.next_id(),
                });
            }
            looks.into_iter().for_each(|look| look(&self.leases, self.clock.now_ms()));
            self.start_snapshot_if_due();
        }
    }

    /// Waits for a request or the end of a lease (`Some(None)`); `None` when nobody can ask any more. `lingering`: one may
    /// come at once.
    fn wait(&self, lingering: bool) -> Option<Option<Request>> {
        if lingering {
            let start = Instant::now();
            while start.elapsed() < LINGER {
                match self.waiting.try_recv() {
                    Ok(request) => return Some(Some(request)),
                    Err(TryRecvError::Disconnected) => return None,
                    // Whoever has work goes first.
                    Err(TryRecvError::Empty) => std::thread::yield_now(),
                }
            }
        }
        let deadline = if self.broken.is_some() { None } else { self.leases.next_deadline() };
        let Some(deadline) = deadline else { return self.waiting.recv().ok().map(Some) };
        let deadline = deadline.max(self.expiry_not_before);
        let sleep = Duration::from_millis(deadline.saturating_sub(self.clock.now_ms())).min(LONGEST_SLEEP);
        match self.waiting.recv_timeout(sleep) {
            Ok(request) => Some(Some(request)),
            Err(RecvTimeoutError::Timeout) => Some(None),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Commits a group of requests, with the leases that have ended.
    fn commit(&mut self, work: Vec<Work>) {
        if let Some(broken) = &self.broken {
            work.into_iter().for_each(|work| refuse(work, broken));
            return;
        }
        let now = self.clock.now_ms();
        let began = Instant::now();
        let shared = self.shared.clone();
        let Ok(index) = shared.read() else {
            work.into_iter().for_each(|work| refuse(work, &StoreError::Closed));
            return;
        };
        record::begin(&mut self.record, now);
        let mut group = Group {
            staging: Staging::new(&index, work.len()),
            pending: Vec::with_capacity(work.len()),
            terms: Vec::new(),
            ended: HashSet::new(),
            leased: Vec::new(),
            compacted: index.compacted(),
            compact: None,
        };
        for work in work {
            self.stage(&mut group, work, now);
        }
        let ended = if now < self.expiry_not_before { Vec::new() } else { self.leases.ended(now, GROUP_LEASES) };
        for id in ended {
            // Kept alive in this very group: it has not ended after all.
            if !group.terms.iter().any(|term| term.id == id) {
                self.end_lease(&mut group, id);
            }
        }
        let Group { staging, pending, terms, ended, compact, .. } = group;
        let revision = staging.revision();
        let staged = staging.finish();
        drop(index);
        let mut place = Ok((0, 0));
        if !record::is_empty(&self.record) {
            let (bytes, began) = (self.record.len() as u64, Instant::now());
            place = self.log.append(&mut self.record, revision).map_err(|e| self.failed(e));
            shared.meter.syncs.add(began.elapsed());
            shared.meter.written.fetch_add(bytes, Ordering::Relaxed);
        }
        let mut let_go = Vec::new();
        let granted = pending.iter().filter(|pending| matches!(pending, Pending::Granted(..))).count() as u64;
        let outcome = place.and_then(|(segment, payload_at)| {
            terms.into_iter().for_each(|term| self.leases.set(term));
            self.leases.follow(&staged.changes);
            shared.meter.changed(&staged.changes);
            shared.meter.leases_granted.fetch_add(granted, Ordering::Relaxed);
            shared.meter.leases_ended.fetch_add(ended.len() as u64, Ordering::Relaxed);
            ended.into_iter().for_each(|id| self.leases.remove(id));
            let_go = self.publish(staged, (segment, payload_at), compact, now)?;
            Ok(())
        });
        shared.meter.groups.add(began.elapsed());
        pending.into_iter().for_each(|pending| pending.settle(&outcome));
        // Only now that everybody has an answer.
        drop(let_go);
        if self.record.capacity() > KEPT_BUFFER {
            self.record = Vec::new();
        }
    }

    fn failed(&mut self, error: AppendError) -> StoreError {
        match error {
            AppendError::NoSpace(error) => {
                tracing::error!(%error, "a write to the store found no room");
                self.expiry_not_before = self.clock.now_ms() + NO_ROOM_PAUSE_MS;
                error
            }
            AppendError::Broken(error) => {
                tracing::error!(%error, "the store takes no more writes: what is on disk is not known");
                let refusal =
                    StoreError::Unavailable(format!("writes are refused since a write to disk failed: {error}"));
                self.broken = Some(refusal.clone());
                refusal
            }
        }
    }

    /// Shows a durable group to everybody; gives what is to be freed after. `place` is the segment and the offset its payload
    /// lies at.
    fn publish(
        &mut self,
        staged: Staged,
        place: (u64, u64),
        compact: Option<Revision>,
        now: u64,
    ) -> Result<Vec<Arc<[crate::Change]>>, StoreError> {
        let pin = self.snapshot.as_ref().map(|(revision, _)| *revision);
        let changed = !staged.changes.is_empty();
        let (revision, let_go) = {
            let mut index = self.shared.write()?;
            if changed && place.0 != self.known_segment {
                let (number, path) = self.log.segment();
                index.add_segment(number, Arc::new(Source::new(&path)));
                self.known_segment = number;
            }
            index.commit(staged, place, now);
            if let Some(revision) = compact {
                index.compact(revision, pin);
            }
            if changed {
                index.enforce(&self.options.history_limits(), now, pin);
            }
            self.shared.revision.store(index.revision(), Ordering::Release);
            (index.revision(), index.let_go())
        };
        self.shared.log_bytes.store(self.log.bytes(), Ordering::Release);
        self.shared.leases.store(self.leases.len() as u64, Ordering::Release);
        if changed {
            self.shared.published.send_replace(revision);
        }
        Ok(let_go)
    }

    /// Decides one request on top of those before it in the group.
    fn stage(&mut self, group: &mut Group<'_>, work: Work, now: u64) {
        match work {
            Work::Txn(txn, answer) => match self.stage_txn(group, txn) {
                Ok(outcome) => group.pending.push(Pending::Txn(answer, outcome)),
                Err(e) => _ = answer.send(Err(e)),
            },
            Work::Decide(decide, answer) => {
                let ops = decide(&group.staging);
                match self.stage_txn(group, Txn { compares: Vec::new(), ops }) {
                    Ok(outcome) => group.pending.push(Pending::Txn(answer, outcome)),
                    Err(e) => _ = answer.send(Err(e)),
                }
            }
            Work::Compact(revision, answer) => {
                let current = group.staging.revision();
                if revision > current {
                    _ = answer.send(Err(StoreError::FutureRevision { requested: revision, current }));
                    return;
                }
                if revision > group.compacted {
                    record::step(&mut self.record, &Entry::Compact(revision));
                }
                group.compact = group.compact.max(Some(revision));
                group.pending.push(Pending::Done(answer));
            }
            Work::Grant(ttl, answer) => match self.leases.plan(ttl, now) {
                Ok(term) => {
                    record::step(&mut self.record, &Entry::Lease(term));
                    group.terms.push(term);
                    group.pending.push(Pending::Granted(answer, term.id));
                }
                Err(e) => _ = answer.send(Err(e)),
            },
            Work::GrantAs(id, ttl, answer) => {
                let taken = self.leases.contains(id) || group.terms.iter().any(|term| term.id == id);
                let planned = match taken {
                    true => Err(StoreError::Invalid(format!("lease {id} exists already"))),
                    false => self.leases.plan_as(id, ttl, now),
                };
                match planned {
                    Ok(term) => {
                        record::step(&mut self.record, &Entry::Lease(term));
                        group.terms.push(term);
                        group.pending.push(Pending::Granted(answer, term.id));
                    }
                    Err(e) => _ = answer.send(Err(e)),
                }
            }
            Work::KeepAlive(id, answer) => match self.leases.renewed(id, now) {
                Some(term) if !group.ended.contains(&id) => {
                    record::step(&mut self.record, &Entry::Lease(term));
                    group.terms.push(term);
                    group.pending.push(Pending::Done(answer));
                }
                _ => _ = answer.send(Err(StoreError::LeaseNotFound(id))),
            },
            Work::Revoke(id, answer) => {
                if !self.leases.contains(id) || group.ended.contains(&id) {
                    _ = answer.send(Err(StoreError::LeaseNotFound(id)));
                    return;
                }
                self.end_lease(group, id);
                group.pending.push(Pending::Done(answer));
            }
            // Handled before a group is staged.
            Work::SnapshotDone(_) | Work::Moment(_) | Work::Defragment(_) | Work::Look(_) | Work::Close => {}
        }
    }

    fn stage_txn(&mut self, group: &mut Group<'_>, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let staging = &mut group.staging;
        if !txn.compares.iter().all(|compare| staging.holds(compare)) {
            let current = txn.compares.iter().map(|compare| staging.current(&compare.key)).collect();
            return Ok(TxnOutcome::Conflict { current, revision: staging.revision() });
        }
        let mut grows = 0;
        for op in &txn.ops {
            let Op::Put { key, value, lease } = op else { continue };
            grows += key.len() + value.len();
            if let Some(id) = lease {
                if !self.leases.contains(*id) || group.ended.contains(id) {
                    return Err(StoreError::LeaseNotFound(*id));
                }
                if !self.leases.has_room(*id) {
                    return Err(StoreError::Full(format!("lease {id} holds as many keys as a lease can")));
                }
            }
        }
        let limit = self.options.max_database_bytes;
        if grows > 0 && staging.live_bytes() + grows as u64 > limit {
            return Err(StoreError::Full(format!("the database limit of {limit} bytes is reached")));
        }
        for op in &txn.ops {
            if let Op::Put { key, lease: Some(id), .. } = op {
                group.leased.push((*id, key.clone()));
            }
        }
        let next = staging.revision() + 1;
        let before = self.record.len();
        self.spots.clear();
        record::commit(&mut self.record, next, &txn.ops, &mut self.spots);
        match staging.apply(txn.ops, &self.spots) {
            Some(revision) => Ok(TxnOutcome::Committed { revision }),
            None => {
                self.record.truncate(before);
                Ok(TxnOutcome::Committed { revision: staging.revision() })
            }
        }
    }

    /// Stages the end of a lease and the deletion of its keys, those this group attaches included.
    fn end_lease(&mut self, group: &mut Group<'_>, id: LeaseId) {
        let attached = group.leased.iter().filter(|(lease, _)| *lease == id).map(|(_, key)| key);
        let mut keys: Vec<Key> = self.leases.keys(id).chain(attached).cloned().collect();
        keys.sort_unstable();
        keys.dedup();
        keys.retain(|key| group.staging.current(key).is_some_and(|kv| kv.lease == Some(id)));
        if !keys.is_empty() {
            let ops: Vec<Op> = keys.into_iter().map(|key| Op::Delete { key }).collect();
            self.spots.clear();
            record::commit(&mut self.record, group.staging.revision() + 1, &ops, &mut self.spots);
            group.staging.apply(ops, &self.spots);
        }
        record::step(&mut self.record, &Entry::LeaseEnd(id));
        group.ended.insert(id);
    }

    /// Starts a snapshot of the compacted revision in the background when enough of the log would go with it.
    fn start_snapshot_if_due(&mut self) {
        if let Some(broken) = &self.broken {
            self.defragment.drain(..).for_each(|answer| _ = answer.send(Err(broken.clone())));
            return;
        }
        if self.snapshot.is_some() {
            return;
        }
        let Ok(index) = self.shared.read() else { return };
        let (revision, live) = (index.compacted(), index.live_bytes());
        drop(index);
        let droppable = self.log.droppable(revision);
        let due = self.options.snapshot_log_bytes.max(2 * live);
        let asked = !self.defragment.is_empty();
        if droppable == 0 {
            self.defragment.drain(..).for_each(|answer| _ = answer.send(Ok(0)));
        }
        if droppable == 0 || !asked && (droppable <= due || self.log.bytes() < self.snapshot_not_before) {
            return;
        }
        self.defragmenting.append(&mut self.defragment);
        let contents = Contents {
            store: self.log.store(),
            revision,
            leases: self.leases.terms(),
            next_lease: self.leases.next_id(),
        };
        let path = self.dir.join(snapshot_name(revision));
        let (shared, requests) = (self.shared.clone(), self.requests.clone());
        let work = move || {
            let page = |start: &str| {
                let page = shared.read()?.page(start, snapshot::PAGE_KEYS, revision);
                page.into_iter().map(Version::load).collect()
            };
            let began = Instant::now();
            let result = snapshot::write(&path, &contents, page).map(|_| revision);
            shared.meter.snapshots.add(began.elapsed());
            // The writer being gone, nobody needs to know.
            _ = requests.send(Work::SnapshotDone(result).into());
        };
        match std::thread::Builder::new().name("store-snapshot".into()).spawn(work) {
            Ok(thread) => self.snapshot = Some((revision, thread)),
            Err(error) => self.snapshot_failed(&StoreError::io("starting a thread", &error)),
        }
    }

    fn snapshot_failed(&mut self, error: &StoreError) {
        tracing::warn!(%error, "a snapshot of the store failed; the log grows until the next one");
        self.snapshot_not_before = self.log.bytes() + self.options.snapshot_log_bytes;
        self.defragmenting.drain(..).for_each(|answer| _ = answer.send(Err(error.clone())));
    }

    /// Lets go of what a finished snapshot has made superfluous.
    fn snapshot_done(&mut self, result: Result<Revision, StoreError>) {
        if let Some((_, thread)) = self.snapshot.take() {
            _ = thread.join();
        }
        let revision = match result {
            Ok(revision) => revision,
            Err(error) => return self.snapshot_failed(&error),
        };
        let (covered, before) = (self.log.covered(revision), self.log.bytes());
        if let Err(error) = self.shared.write().and_then(|mut index| index.retire_segments(&covered)) {
            tracing::warn!(%error, "history in superseded segments of the store cannot be kept readable");
        }
        let removed = self.log.drop_up_to(revision).and_then(|()| {
            let files = super::recovery::Files::list(&self.dir, false).map_err(std::io::Error::other)?;
            for (_, path) in files.snapshots.range(..revision) {
                std::fs::remove_file(path)?;
            }
            Ok(())
        });
        if let Err(error) = removed {
            tracing::warn!(%error, "cannot remove what a snapshot of the store has made superfluous");
        }
        self.shared.log_bytes.store(self.log.bytes(), Ordering::Release);
        let freed = before - self.log.bytes();
        self.defragmenting.drain(..).for_each(|answer| _ = answer.send(Ok(freed)));
        // What a compaction wanted to forget while the snapshot was read.
        if let Ok(mut index) = self.shared.write() {
            let compacted = index.compacted();
            index.compact(compacted, None);
        }
    }
}

fn refuse(work: Work, error: &StoreError) {
    match work {
        Work::Txn(_, answer) | Work::Decide(_, answer) => _ = answer.send(Err(error.clone())),
        Work::Compact(_, answer) | Work::KeepAlive(_, answer) | Work::Revoke(_, answer) => {
            _ = answer.send(Err(error.clone()));
        }
        Work::Grant(_, answer) | Work::GrantAs(_, _, answer) => _ = answer.send(Err(error.clone())),
        Work::SnapshotDone(_) | Work::Moment(_) | Work::Defragment(_) | Work::Look(_) | Work::Close => {}
    }
}
