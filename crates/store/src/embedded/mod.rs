//! The embedded store: one process, one directory, no daemon.
//!
//! An append-only segmented log is the only durable truth; snapshots of the state at the compacted revision let old
//! segments go; memory holds every key's newest version and the recent history (see `docs/adr/0002-embedded-store.md`).
//! One writer thread commits waiting requests in groups, one sync a group; readers read memory and see only what is
//! durable. An idle store writes nothing and wakes nobody.

mod direct;
pub(crate) mod history;
pub(crate) mod index;
mod keys;
pub(crate) mod leases;
pub(crate) mod log;
pub(crate) mod meter;
pub(crate) mod record;
pub(crate) mod recovery;
pub(crate) mod snapshot;
pub(crate) mod staging;

#[cfg(test)]
mod tests;
mod watch;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::sync::{Semaphore, oneshot};

use crate::{
    Backend, Key, KeyValue, LeaseId, Range, Revision, StoreError, Txn, TxnOutcome, WatchStream, etcd_file, limits,
};
use history::{Taken, Version};
use index::{HistoryLimits, Index};
use writer::{Moment, Request, Work};

/// Requests waiting for the writer may hold so many KiB together (each counts at least one); more callers wait.
const QUEUE_KIB: usize = 64 << 10;

/// What may be set when opening a store. The defaults suit a cluster of any size on one machine.
#[derive(Clone, Debug)]
pub struct Options {
    /// The most bytes of keys and values one transaction may carry. Default 1.5 MiB, as with etcd.
    pub max_request_bytes: usize,
    /// The most bytes of keys and values that may exist; beyond it only deletes work. Default 8 GiB, as advised for etcd.
    pub max_database_bytes: u64,
    /// How long history stays readable. Default 5 minutes, upstream's compaction interval.
    pub history_age: Duration,
    /// The most bytes of superseded values that stay readable, on disk for the most part. Default 128 MiB.
    pub history_bytes: u64,
    /// The most bytes of superseded values kept in memory, since no file of the log has them: those that were older than
    /// the log when they were superseded. Default 16 MiB.
    pub history_memory_bytes: u64,
    /// The most changes kept as history (each takes some 150 bytes of memory). Default 100 000.
    pub history_changes: usize,
    /// A segment of the log ends when it is longer than this. Default 16 MiB.
    pub segment_bytes: u64,
    /// The name of the writer thread. Default `store-writer`.
    pub writer_name: &'static str,
    /// A snapshot is due when it would free this much log, and twice the size of the data. Default 64 MiB.
    pub snapshot_log_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_request_bytes: limits::MAX_REQUEST_BYTES,
            max_database_bytes: 8 << 30,
            history_age: Duration::from_secs(5 * 60),
            history_bytes: 128 << 20,
            history_memory_bytes: 16 << 20,
            history_changes: 100_000,
            segment_bytes: 16 << 20,
            writer_name: "store-writer",
            snapshot_log_bytes: 64 << 20,
        }
    }
}

impl Options {
    fn history_limits(&self) -> HistoryLimits {
        HistoryLimits {
            age_ms: u64::try_from(self.history_age.as_millis()).unwrap_or(u64::MAX),
            bytes: self.history_bytes,
            memory_bytes: self.history_memory_bytes,
            changes: self.history_changes,
        }
    }
}

/// Sizes and positions of an open store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The newest revision.
    pub revision: Revision,
    /// The oldest readable revision.
    pub compacted: Revision,
    /// Keys that exist.
    pub keys: u64,
    /// Their bytes, with their values.
    pub live_bytes: u64,
    /// Changes kept as history.
    pub history_changes: u64,
    /// Bytes of superseded values that can be read.
    pub history_bytes: u64,
    /// Those of them that are in memory.
    pub history_memory_bytes: u64,
    /// Bytes of records in the log.
    pub log_bytes: u64,
    /// Leases that exist.
    pub leases: u64,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "revision: {}", self.revision)?;
        writeln!(f, "compacted: {}", self.compacted)?;
        writeln!(f, "keys: {}", self.keys)?;
        writeln!(f, "live bytes: {}", self.live_bytes)?;
        writeln!(f, "history changes: {}", self.history_changes)?;
        writeln!(f, "history bytes: {}", self.history_bytes)?;
        writeln!(f, "history bytes in memory: {}", self.history_memory_bytes)?;
        writeln!(f, "log bytes: {}", self.log_bytes)?;
        writeln!(f, "leases: {}", self.leases)
    }
}

/// Milliseconds since 1970 that never go back while the process lives.
#[derive(Debug)]
struct Clock {
    start: Instant,
    start_ms: u64,
}

impl Clock {
    /// A clock that starts now, but not before `floor_ms`.
    fn starting_at(floor_ms: u64) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { start: Instant::now(), start_ms: (wall.as_millis() as u64).max(floor_ms) }
    }

    fn now_ms(&self) -> u64 {
        self.start_ms + self.start.elapsed().as_millis() as u64
    }
}

/// What the writer and the readers share.
#[derive(Debug)]
struct Shared {
    index: RwLock<Index>,
    /// The newest durable revision; written under the index lock.
    revision: AtomicU64,
    log_bytes: AtomicU64,
    leases: AtomicU64,
    meter: meter::Meter,
    closed: AtomicBool,
    /// What requests that wait for the writer hold, in KiB; the writer gives it back when it takes them.
    queue: Semaphore,
    /// Wakes the watchers; its value is the newest revision.
    published: tokio::sync::watch::Sender<Revision>,
}

impl Shared {
    fn read(&self) -> Result<RwLockReadGuard<'_, Index>, StoreError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        // Poisoned: the writer panicked while changing the index. What it holds is not to be trusted.
        self.index.read().map_err(|_| StoreError::Closed)
    }

    fn write(&self) -> Result<RwLockWriteGuard<'_, Index>, StoreError> {
        self.index.write().map_err(|_| StoreError::Closed)
    }
}

/// An open store. Dropping it closes it: the writer finishes what it has and the directory is free again.
#[derive(Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    writer: Mutex<Option<JoinHandle<()>>>,
    options: Options,
    dir: PathBuf,
    store: u64,
    #[cfg(test)]
    faults: Arc<log::Faults>,
}

/// Opens the store in `dir`, creating it if there is none. Reads the whole log: call it off the async threads when the
/// store may be large.
pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Embedded, StoreError> {
    let dir = dir.as_ref();
    let faults = Arc::new(log::Faults::default());
    let recovered = recovery::open(dir, &options, faults.clone())?;
    let clock = Clock::starting_at(recovered.last_ms);
    let mut leases = recovered.leases;
    leases.clamp(clock.now_ms());
    let revision = recovered.index.revision();
    let shared = Arc::new(Shared {
        index: RwLock::new(recovered.index),
        revision: AtomicU64::new(revision),
        log_bytes: AtomicU64::new(recovered.log.bytes()),
        leases: AtomicU64::new(leases.len() as u64),
        meter: meter::Meter::default(),
        closed: AtomicBool::new(false),
        queue: Semaphore::new(QUEUE_KIB),
        published: tokio::sync::watch::Sender::new(revision),
    });
    let (requests, waiting) = mpsc::channel();
    let store = recovered.log.store();
    let writer = writer::Writer::new(
        shared.clone(),
        requests.clone(),
        waiting,
        recovered.log,
        leases,
        clock,
        options.clone(),
        dir.into(),
    );
    let lock: recovery::Lock = recovered.lock;
    let thread = std::thread::Builder::new()
        .name(options.writer_name.into())
        .spawn(move || {
            writer.run();
            drop(lock);
        })
        .map_err(|e| StoreError::io("starting the store's writer thread", &e))?;
    Ok(Embedded {
        shared,
        requests,
        writer: Mutex::new(Some(thread)),
        options,
        dir: dir.into(),
        store,
        #[cfg(test)]
        faults,
    })
}

impl Embedded {
    /// Hands work to the writer and waits for its answer. `bytes` is what the work holds in memory.
    async fn ask<T>(
        &self,
        bytes: usize,
        work: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Work,
    ) -> Result<T, StoreError> {
        let share = (1 + bytes / 1024).min(QUEUE_KIB) as u32;
        self.shared.queue.acquire_many(share).await.map_err(|_| StoreError::Closed)?.forget();
        let (answer, answered) = oneshot::channel();
        let request = Request { work: work(answer), bytes, share };
        self.requests.send(request).map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Sizes and positions.
    pub fn status(&self) -> Result<Status, StoreError> {
        let index = self.shared.read()?;
        Ok(Status {
            revision: index.revision(),
            compacted: index.compacted(),
            keys: index.live_keys() as u64,
            live_bytes: index.live_bytes(),
            history_changes: index.history_changes() as u64,
            history_bytes: index.history_bytes(),
            history_memory_bytes: index.history_memory(),
            log_bytes: self.shared.log_bytes.load(Ordering::Acquire),
            leases: self.shared.leases.load(Ordering::Acquire),
        })
    }

    /// Writes the state as it is now to one file, that [`crate::maintain::restore`] takes; the store works on meanwhile.
    /// Blocks the thread for as long as the file takes. Gives the revision and the size of the file in bytes.
    pub fn save(&self, path: &Path) -> Result<(Revision, u64), StoreError> {
        let contents = self.moment()?;
        let page = |start: &str| self.page(start, contents.revision)?.into_iter().map(Version::load).collect();
        let size = snapshot::write(path, &contents, page)?;
        Ok((contents.revision, size))
    }

    /// Like [`Embedded::save`], in a file of etcd's. Holds some 24 bytes a key in memory meanwhile.
    pub(crate) fn save_for_etcd(&self, path: &Path) -> Result<(Revision, u64), StoreError> {
        let contents = self.moment()?;
        let revision = contents.revision;
        let mut order = Vec::new();
        let mut start = String::new();
        loop {
            let page = self.page(&start, revision)?;
            order.extend(page.iter().map(Version::written));
            let Some((_, last)) = order.last().filter(|_| !page.is_empty()) else { break };
            start = format!("{last}\0");
        }
        let versions = |asked: &[(Revision, Key)]| {
            let found: Vec<Version> = {
                let index = self.shared.read()?;
                let find = |(_, key): &(Revision, Key)| index.get(key, Some(revision)).transpose();
                asked.iter().filter_map(find).collect::<Result<_, _>>()?
            };
            found.into_iter().map(Version::load).collect()
        };
        let written = etcd_file::write(path, &contents, order, versions);
        let size = written.inspect_err(|_| _ = std::fs::remove_file(path))?;
        Ok((revision, size))
    }

    /// What a snapshot of this moment holds besides the keys.
    fn moment(&self) -> Result<snapshot::Contents, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Work::Moment(answer).into()).map_err(|_| StoreError::Closed)?;
        let Moment { revision, leases, next_lease } = answered.blocking_recv().map_err(|_| StoreError::Closed)?;
        Ok(snapshot::Contents { store: self.store, revision, leases, next_lease })
    }

    /// Keys from a start on, as they were at a revision.
    fn page(&self, start: &str, revision: Revision) -> Result<Vec<Version>, StoreError> {
        let index = self.shared.read()?;
        // History may be given up under a slow disk: an error, never a mixture of revisions.
        index.resolve(Some(revision))?;
        Ok(index.page(start, snapshot::PAGE_KEYS, revision))
    }

    /// Replaces by a snapshot what the log holds of before the compacted revision, without waiting until it is worth it.
    /// Gives the bytes of log that went; the store works on meanwhile. Compact first to give up history too.
    pub async fn defragment(&self) -> Result<u64, StoreError> {
        self.ask(0, Work::Defragment).await
    }

    /// Runs a transaction that is decided on the state it is applied to, which a [`Txn`] cannot say: `decide` sees all
    /// writes before it and gives the effects, one for each key. It runs on the writer's thread, so it must be brief.
    /// `bytes` is what it holds in memory.
    pub(crate) async fn decide(
        &self,
        bytes: usize,
        decide: impl FnOnce(&staging::Staging<'_>) -> Vec<crate::Op> + Send + 'static,
    ) -> Result<TxnOutcome, StoreError> {
        self.ask(bytes, |answer| Work::Decide(Box::new(decide), answer)).await
    }

    /// Makes a lease of a chosen name.
    pub(crate) async fn grant_lease_as(&self, lease: LeaseId, ttl_seconds: u64) -> Result<LeaseId, StoreError> {
        self.ask(0, |answer| Work::GrantAs(lease, ttl_seconds, answer)).await
    }

    /// Looks at the leases, as they are on disk, and at the time in milliseconds since 1970.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&leases::Leases, u64) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        self.ask(0, |answer| {
            // A caller that no longer waits does not care for its answer.
            Work::Look(Box::new(move |leases, now| _ = answer.send(Ok(look(leases, now)))))
        })
        .await
    }

    /// The committed groups after a revision, oldest first and at most `most`, and the newest revision.
    pub(crate) async fn changes_after(
        &self,
        position: Revision,
        most: usize,
    ) -> Result<(Vec<Arc<[crate::Change]>>, Revision), StoreError> {
        let (groups, revision) = {
            let index = self.shared.read()?;
            (index.changes_after(position, most)?, index.revision())
        };
        Ok((load_groups(groups).await?, revision))
    }

    /// Tells the newest revision, and wakes whoever waits for it; ends when the store closes.
    pub(crate) fn published(&self) -> tokio::sync::watch::Receiver<Revision> {
        self.shared.published.subscribe()
    }

    /// What it has done since it was opened.
    pub(crate) fn meter(&self) -> &meter::Meter {
        &self.shared.meter
    }

    /// What the store was opened with.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// The store's own number, given when it was made.
    pub(crate) fn identity(&self) -> u64 {
        self.store
    }

    /// The directory the store is in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Closes the store: waits for the group under way, then refuses everything. Watches end with `Closed`.
    pub fn close(&self) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = writer.take() {
            // The writer being gone already is as good.
            _ = self.requests.send(Work::Close.into());
            if writer.join().is_err() {
                tracing::error!("the store's writer thread had panicked");
            }
        }
        self.shared.closed.store(true, Ordering::Release);
        self.shared.queue.close();
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.close();
    }
}

/// Puts together what was taken from the index; off the async threads if the disk has to be read for it.
async fn load<T: Send + 'static>(
    on_disk: bool,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    if !on_disk {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(|e| StoreError::Unavailable(format!("reading history: {e}")))?
}

async fn load_groups(groups: Vec<Taken>) -> Result<Vec<Arc<[crate::Change]>>, StoreError> {
    load(groups.iter().any(Taken::is_on_disk), move || groups.into_iter().map(Taken::load).collect()).await
}

#[async_trait]
impl Backend for Embedded {
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let bytes = limits::check_txn(&txn, self.options.max_request_bytes)?;
        self.ask(bytes, |answer| Work::Txn(txn, answer)).await
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<KeyValue>, Revision), StoreError> {
        let (version, revision) = {
            let index = self.shared.read()?;
            (index.get(key, at)?, index.revision())
        };
        let on_disk = version.as_ref().is_some_and(Version::is_on_disk);
        Ok((load(on_disk, move || version.map(Version::load).transpose()).await?, revision))
    }

    async fn range(&self, start: &str, end: &str, limit: usize, at: Option<Revision>) -> Result<Range, StoreError> {
        let page = self.shared.read()?.range(start, end, limit, at)?;
        load(page.is_on_disk(), move || page.load()).await
    }

    async fn current_revision(&self) -> Result<Revision, StoreError> {
        Ok(self.shared.revision.load(Ordering::Acquire))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, StoreError> {
        watch::start(self.shared.clone(), prefix, after)
    }

    fn size_bytes(&self) -> Option<u64> {
        self.status().ok().map(|status| status.log_bytes)
    }

    async fn request_progress(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.ask(0, |answer| Work::Compact(revision, answer)).await
    }

    async fn grant_lease(&self, ttl_seconds: u64) -> Result<LeaseId, StoreError> {
        self.ask(0, |answer| Work::Grant(ttl_seconds, answer)).await
    }

    async fn keep_alive_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(0, |answer| Work::KeepAlive(lease, answer)).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(0, |answer| Work::Revoke(lease, answer)).await
    }
}
