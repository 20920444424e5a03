//! One runner for all controllers: events to keys, keys to plans, plans to writes.
//!
//! It guarantees that a key has one reconcile at a time, that a reconcile sees at least what the last one of its key
//! wrote (it waits until the informers have reached those versions), and that a failing or panicking reconcile comes back
//! with its own back-off. What a key means it does not know.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Batch, Change, Client, Informer, Queue, Recorder, give_back};
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt, join_all};
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use meta::{Gvr, Object, Reason, Status};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::plan::{Action, Note, Plan, What};
use crate::{figures, metrics};

/// How long a reconcile waits for the informers to reach its key's last writes before the key goes to the back.
const CATCH_UP: Duration = Duration::from_secs(5);
/// A deletion the informer never shows (the object came back as it was) is believed after this.
const DELETION_SEEN: Duration = Duration::from_secs(30);
/// How long a key rests before it is looked at again, for each time unit its plan took to make: the larger its world, the
/// more changes are taken together. What is looked at quickly does not rest.
const REST: u32 = 20;
/// And at most.
const LONGEST_REST: Duration = Duration::from_millis(50);
const SHORTEST_REST: Duration = Duration::from_millis(2);
/// Writes at once of one plan.
const MAX_AT_ONCE: usize = 64;

/// What a reconcile is asked.
#[derive(Clone, Debug)]
pub struct Ask {
    pub key: Arc<str>,
    pub now: Timestamp,
    /// Why the key's last plan did not go through, until one does.
    pub failure: Option<Arc<Status>>,
}

type Map = Box<dyn Fn(&Change) -> Vec<String> + Send + Sync>;
type Reconcile = Box<dyn Fn(Ask) -> BoxFuture<'static, Result<Plan, Status>> + Send + Sync>;

type Feed = Box<dyn FnOnce(Queue<Arc<str>>) -> BoxFuture<'static, ()> + Send>;

struct Watch {
    informer: Arc<Informer>,
    map: Map,
}

/// A controller, declared: what it watches, which keys that makes dirty, and how a key becomes a plan.
pub struct Controller {
    pub name: &'static str,
    watches: Vec<Watch>,
    /// Waited for and read, but its changes make no key dirty.
    reads: Vec<Arc<Informer>>,
    tick: Option<(Duration, &'static str)>,
    feed: Option<Feed>,
    settling: Duration,
    pace: Duration,
    reconcile: Reconcile,
    workers: usize,
    /// What it does follows from informers alone, so a look without an event must find nothing.
    is_pure: bool,
    is_settled: bool,
}

/// The changed object's own key.
pub fn own_key(change: &Change) -> Vec<String> {
    vec![change.key.to_string()]
}

impl Controller {
    pub fn new(name: &'static str, reconcile: impl Fn(Ask) -> Result<Plan, Status> + Send + Sync + 'static) -> Self {
        let controller = Self::with_io(name, move |ask| futures::future::ready(reconcile(ask)).boxed());
        Self { is_pure: true, ..controller }
    }

    /// For the few whose world is not all in informers.
    pub fn with_io(
        name: &'static str,
        reconcile: impl Fn(Ask) -> BoxFuture<'static, Result<Plan, Status>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            watches: Vec::new(),
            reads: Vec::new(),
            tick: None,
            feed: None,
            settling: Duration::ZERO,
            pace: Duration::ZERO,
            reconcile: Box::new(reconcile),
            workers: 5,
            is_pure: false,
            is_settled: false,
        }
    }

    pub fn watch(
        mut self,
        informer: &Arc<Informer>,
        map: impl Fn(&Change) -> Vec<String> + Send + Sync + 'static,
    ) -> Self {
        self.watches.push(Watch { informer: informer.clone(), map: Box::new(map) });
        self
    }

    pub fn read(mut self, informer: &Arc<Informer>) -> Self {
        self.reads.push(informer.clone());
        self
    }

    /// Makes a key dirty again and again.
    pub fn every(mut self, period: Duration, key: &'static str) -> Self {
        self.tick = Some((period, key));
        self.is_pure = false;
        self
    }

    /// A task of its own that makes keys dirty, for what cannot be declared beforehand.
    pub fn feed(mut self, feed: impl FnOnce(Queue<Arc<str>>) -> BoxFuture<'static, ()> + Send + 'static) -> Self {
        self.feed = Some(Box::new(feed));
        self.is_pure = false;
        self
    }

    /// Lets what changed settle for so long before it is looked at: for what nobody waits for.
    pub fn settling(mut self, settling: Duration) -> Self {
        self.settling = settling;
        self
    }

    /// Lets a key rest at least so long after a write: for what sums up many objects that change together. The first change
    /// is still taken at once.
    pub fn paced(mut self, pace: Duration) -> Self {
        self.pace = pace;
        self
    }

    /// One plan does all there is to do: what it wrote need not be looked at when it is seen again.
    pub fn settled(mut self) -> Self {
        self.is_settled = true;
        self
    }

    /// Keys reconciled at once.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Runs until cancelled. `every`: how often everything is looked at, whether or not anything was heard; see
    /// [`metrics::Counts::resync_found`].
    pub async fn run(self, client: Client, every: Duration, cancel: CancellationToken) {
        let recorder = Recorder::new(&client, self.name, "");
        let running = Arc::new(Running {
            name: self.name,
            client,
            recorder,
            queue: Queue::named(metrics::queue_name(self.name)),
            reconcile: self.reconcile,
            pace: self.pace,
            is_pure: self.is_pure,
            is_settled: self.is_settled,
            informers: self
                .watches
                .iter()
                .map(|w| &w.informer)
                .chain(&self.reads)
                .map(|i| (i.scope().resource.clone(), i.clone()))
                .collect(),
            memory: Mutex::default(),
            unheard: Mutex::default(),
        });
        metrics::count(self.name, |_| {});
        let synced = join_all(running.informers.values().map(|i| i.synced()));
        if cancel.run_until_cancelled(synced).await.is_none() {
            return;
        }
        let mut tasks = JoinSet::new();
        let watches: Vec<Arc<Watch>> = self.watches.into_iter().map(Arc::new).collect();
        for watch in &watches {
            tasks.spawn(follow(watch.clone(), running.clone(), self.settling));
        }
        if self.is_pure {
            tasks.spawn(resync(watches, running.clone(), every));
        }
        if let Some((period, key)) = self.tick {
            let queue = running.queue.clone();
            tasks.spawn(async move {
                loop {
                    queue.add(key.into());
                    tokio::time::sleep(period).await;
                }
            });
        }
        if let Some(feed) = self.feed {
            tasks.spawn(feed(running.queue.clone()));
        }
        tracing::debug!(controller = self.name, "started");
        cancel.run_until_cancelled(running.dispatch(self.workers)).await;
        running.queue.close();
        tasks.shutdown().await;
    }
}

/// Turns one informer's changes into dirty keys.
async fn follow(watch: Arc<Watch>, running: Arc<Running>, settling: Duration) {
    let mut subscription = watch.informer.subscribe();
    while let Some(batch) = subscription.next().await {
        let changes = match batch {
            Batch::Changes(changes) => changes,
            Batch::Resync => everything(&watch.informer),
        };
        for change in &changes {
            for key in (watch.map)(change) {
                let key: Arc<str> = key.into();
                if running.is_settled && running.is_echo(&key, &watch.informer.scope().resource, change) {
                    continue;
                }
                running.unheard().remove(&key);
                running.queue.add_after(key, settling);
            }
        }
    }
}

fn everything(informer: &Informer) -> Vec<Change> {
    let whole = |o: Arc<Object>| Change { key: o.meta.key().into(), old: None, new: Some(o) };
    informer.list(None).into_iter().map(whole).collect()
}

/// Makes every key dirty now and then, noting which were so without any event.
async fn resync(watches: Vec<Arc<Watch>>, running: Arc<Running>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        for watch in &watches {
            for change in everything(&watch.informer) {
                for key in (watch.map)(&change) {
                    let key: Arc<str> = key.into();
                    running.unheard().insert(key.clone());
                    running.queue.add(key);
                }
            }
        }
    }
}

/// What the runner remembers of a key between its reconciles.
#[derive(Default)]
struct KeyMemory {
    /// Versions its writes were given.
    written: HashMap<Gvr, u64>,
    /// (resource, key, uid, when)
    deleted: Vec<(Gvr, String, String, Instant)>,
    failure: Option<Arc<Status>>,
    /// When it wanted to look again, whatever happens until then.
    due: Option<Instant>,
    /// (resource, namespace, name) of what may have been created though the answer said otherwise.
    unsure: Vec<(Gvr, String, String)>,
}

impl KeyMemory {
    fn is_empty(&self) -> bool {
        self.written.is_empty()
            && self.deleted.is_empty()
            && self.failure.is_none()
            && self.due.is_none()
            && self.unsure.is_empty()
    }
}

struct Running {
    name: &'static str,
    client: Client,
    recorder: Recorder,
    queue: Queue<Arc<str>>,
    reconcile: Reconcile,
    pace: Duration,
    is_pure: bool,
    is_settled: bool,
    informers: HashMap<Gvr, Arc<Informer>>,
    memory: Mutex<HashMap<Arc<str>, KeyMemory>>,
    /// Keys that only a resync made dirty.
    unheard: Mutex<HashSet<Arc<str>>>,
}

impl Running {
    async fn dispatch(self: &Arc<Self>, workers: usize) {
        let permits = Arc::new(Semaphore::new(workers));
        let mut tasks = JoinSet::new();
        loop {
            // The semaphore is never closed.
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let Some(key) = self.queue.get().await else { return };
            while tasks.try_join_next().is_some() {}
            let running = self.clone();
            tasks.spawn(async move {
                let (took, wrote) = running.work(&key).await;
                let rest = (took * REST).min(LONGEST_REST).max(if wrote { running.pace } else { Duration::ZERO });
                drop(permit);
                if rest > SHORTEST_REST {
                    running.queue.rests(&key);
                    tokio::time::sleep(rest).await;
                }
                running.queue.done(&key);
            });
        }
    }

    /// The Job of a key, for those who count by its kind.
    fn job(&self, key: &str) -> Option<Arc<Object>> {
        self.informers.get(&client::gvr_of::<Job>())?.get(key)
    }

    fn unheard(&self) -> std::sync::MutexGuard<'_, HashSet<Arc<str>>> {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, key: &Arc<str>, change: impl FnOnce(&mut KeyMemory)) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let of_key = memory.entry(key.clone()).or_default();
        change(of_key);
        if of_key.is_empty() {
            memory.remove(key);
            give_back(&mut memory);
        }
    }

    /// Whether a change is the key's own last write, seen again, and nothing else.
    fn is_echo(&self, key: &Arc<str>, resource: &Gvr, change: &Change) -> bool {
        let Some(seen) = change.new.as_ref().map(|o| o.resource_version) else { return false };
        let mut is_own = false;
        self.remember(key, |memory| {
            is_own = memory.written.get(resource) == Some(&seen);
            if is_own {
                memory.written.remove(resource);
            }
        });
        is_own
    }

    /// Finds out what was created without our knowing, so that it is waited for as if we knew.
    async fn make_sure(&self, key: &Arc<str>) -> Result<(), Status> {
        let mut unsure = Vec::new();
        self.remember(key, |memory| unsure = memory.unsure.clone());
        for asked in unsure {
            let (resource, namespace, name) = &asked;
            let found = self.client.dynamic(resource.clone()).namespaced(namespace).get_opt(name).await?;
            self.remember(key, |memory| {
                memory.unsure.retain(|u| *u != asked);
                if let Some(found) = found {
                    let version = memory.written.entry(resource.clone()).or_default();
                    *version = (*version).max(found.resource_version);
                }
            });
        }
        Ok(())
    }

    /// Waits until the informers show what this key's last plan wrote.
    async fn caught_up(&self, key: &Arc<str>) -> bool {
        if self.make_sure(key).await.is_err() {
            return false;
        }
        let mut written = HashMap::new();
        let mut waiting = false;
        self.remember(key, |memory| {
            written = std::mem::take(&mut memory.written);
            memory.deleted.retain(|(resource, name, uid, at)| {
                let Some(informer) = self.informers.get(resource) else { return false };
                let seen =
                    informer.get(name).is_none_or(|o| *o.meta.uid != **uid || o.meta.deletion_timestamp.is_some());
                !seen && at.elapsed() < DELETION_SEEN
            });
            waiting = !memory.deleted.is_empty();
        });
        if waiting {
            // The deletion's own event makes the key dirty as well; this is for the case that it does not.
            self.remember(key, |memory| memory.written.extend(written));
            return false;
        }
        let reached = join_all(written.iter().map(|(resource, version)| async move {
            if let Some(informer) = self.informers.get(resource) {
                informer.reached(*version).await;
            }
        }));
        if tokio::time::timeout(CATCH_UP, reached).await.is_err() {
            self.remember(key, |memory| memory.written.extend(written));
            return false;
        }
        true
    }

    /// Looks at a key, and says how long thinking took, and whether anything was written.
    async fn work(self: &Arc<Self>, key: &Arc<str>) -> (Duration, bool) {
        if !self.caught_up(key).await {
            self.queue.add_after(key.clone(), Duration::from_millis(100));
            return (Duration::ZERO, false);
        }
        let (mut took, mut wrote) = (Duration::ZERO, false);
        let (mut failure, mut is_due, mut action) = (None, false, "reconciling");
        self.remember(key, |memory| {
            failure = memory.failure.clone();
            is_due = memory.due.take().is_some_and(|due| due <= Instant::now());
        });
        let unheard = self.unheard().remove(key) && failure.is_none() && !is_due;
        let began = Instant::now();
        let ask = Ask { key: key.clone(), now: Timestamp::now(), failure };
        let outcome = AssertUnwindSafe(async {
            let begun = Instant::now();
            let plan = (self.reconcile)(ask).await;
            // Waiting for the server is not thinking.
            took = if self.is_pure { begun.elapsed() } else { Duration::ZERO };
            let plan = plan?;
            let (again, writes) = (plan.again, plan.actions.len());
            wrote = writes > 0;
            action = figures::action(&plan);
            let found = unheard && wrote;
            if found {
                tracing::warn!(controller = self.name, %key, first = %plan.actions[0], "only a resync found this to do");
            }
            metrics::count(self.name, |counts| {
                counts.reconciles += 1;
                counts.writes += writes as u64;
                counts.resync_found += u64::from(found);
            });
            self.execute(key, plan).await.map(|()| again)
        })
        .catch_unwind()
        .await
        .unwrap_or_else(|_| Err(Status::internal(format!("{} panicked at {key}", self.name))));
        figures::synced(self.name, action, || self.job(key), began.elapsed(), outcome.as_ref().err());
        match outcome {
            Ok(again) => {
                self.queue.forget(key);
                self.remember(key, |memory| memory.failure = None);
                if let Some(delay) = again {
                    self.remember(key, |memory| memory.due = Some(Instant::now() + delay));
                    self.queue.add_after(key.clone(), delay);
                }
            }
            Err(status) if is_namespace_terminating(&status) => self.queue.forget(key),
            Err(status) => {
                metrics::count(self.name, |counts| counts.failures += 1);
                let attempts = self.queue.failures(key) + 1;
                // Conflicts, and writes to what is gone, are the ordinary way to learn of a newer world.
                let conflict = status.is_conflict() || status.is_not_found();
                if conflict || !attempts.is_power_of_two() {
                    tracing::debug!(controller = self.name, %key, "retrying: {status}");
                } else {
                    tracing::warn!(controller = self.name, %key, attempts, "retrying: {status}");
                }
                if !conflict {
                    self.remember(key, |memory| memory.failure = Some(Arc::new(status)));
                }
                self.queue.retry(key.clone());
            }
        }
        (took, wrote)
    }

    async fn execute(&self, key: &Arc<str>, plan: Plan) -> Result<(), Status> {
        for note in &plan.notes {
            self.record(note, "");
        }
        let mut first = None;
        for action in plan.actions {
            let result = match action.what {
                What::SlowStart(actions) => self.slow_start(key, actions).await,
                _ => self.perform(key, action).await,
            };
            if let Err(status) = result {
                first.get_or_insert(status);
                if plan.stop_at_failure {
                    break;
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn record(&self, note: &Note, fill: &str) {
        self.recorder.event(&note.about, note.kind, note.reason, note.message.replace("{}", fill));
    }

    async fn perform(&self, key: &Arc<str>, action: Action) -> Result<(), Status> {
        let Action { resource, namespace, what, done, failed, may_exist, may_be_forbidden } = action;
        let api = self.client.dynamic(resource.clone()).namespaced(&namespace);
        let (mut name, mut removed) = (String::new(), None);
        let creates = matches!(what, What::Create { .. });
        let (verb, due) = (what.verb(), figures::due(self.name, &what));
        let result = match what {
            What::Create { body } => {
                name = body["metadata"]["name"].as_str().unwrap_or_default().to_string();
                api.create(body).await.map(Some)
            }
            What::Update { name: n, subresource, body } => {
                let result = match subresource {
                    "" => api.update(&n, body).await,
                    sub => api.update_subresource(&n, sub, body).await,
                };
                name = n;
                result.map(Some)
            }
            What::Patch { name: n, subresource, patch } => {
                let result = api.patch_subresource(&n, subresource, patch).await;
                name = n;
                result.map(Some)
            }
            What::Delete { name: n, options } => {
                let result = api.delete(&n, &options).await;
                // One that asked for a version has to look again at the newer one.
                let any_version = options.resource_version.is_none();
                removed = options.uid.map(|uid| (meta::object::object_key(&namespace, &n), uid));
                name = n;
                match result {
                    // Gone, or another of the same name: what was to be deleted is.
                    Err(status) if status.is_not_found() || (any_version && status.is_conflict()) => return Ok(()),
                    other => other,
                }
            }
            What::DeleteCollection { options } => {
                api.delete_collection(&options, &Default::default()).await.map(|()| None)
            }
            // Groups do not nest; `execute` takes them apart.
            What::SlowStart(_) => return Ok(()),
        };
        figures::wrote(self.name, verb, &resource.resource, due, result.is_ok());
        match result {
            Ok(object) => {
                self.remember(key, |memory| {
                    if let Some((name, uid)) = removed {
                        memory.deleted.push((resource.clone(), name, uid, Instant::now()));
                    } else if let Some(object) = &object {
                        let version = memory.written.entry(resource.clone()).or_default();
                        *version = (*version).max(object.resource_version);
                    }
                });
                if let Some(note) = done {
                    let name = object.as_ref().map_or(name.as_str(), |o| &o.meta.name);
                    self.record(&note, name);
                }
                Ok(())
            }
            Err(status) if may_exist && status.is_already_exists() => Ok(()),
            Err(status) if may_be_forbidden && status.is(Reason::Forbidden) => Ok(()),
            Err(status) => {
                // It may have been done all the same: the next plan must not be made before that is known.
                if creates && status.code >= 500 && self.informers.contains_key(&resource) {
                    self.remember(key, |memory| memory.unsure.push((resource, namespace, name)));
                }
                if let Some(note) = failed
                    && !is_namespace_terminating(&status)
                {
                    self.record(&note, &status.message);
                }
                Err(status)
            }
        }
    }

    async fn slow_start(&self, key: &Arc<str>, actions: Vec<Action>) -> Result<(), Status> {
        let mut rest = actions.into_iter();
        let mut size = 1;
        while size < MAX_AT_ONCE {
            let group: Vec<Action> = rest.by_ref().take(size).collect();
            if group.is_empty() {
                return Ok(());
            }
            let results = join_all(group.into_iter().map(|a| self.perform(key, a))).await;
            if let Some(status) = results.into_iter().find_map(Result::err) {
                return Err(status);
            }
            size *= 2;
        }
        // Well begun: each that ends makes room for the next.
        let mut under_way: FuturesUnordered<_> =
            rest.by_ref().take(MAX_AT_ONCE).map(|a| self.perform(key, a)).collect();
        let mut failure = None;
        while let Some(result) = under_way.next().await {
            match result {
                Ok(()) if failure.is_none() => under_way.extend(rest.next().map(|a| self.perform(key, a))),
                Ok(()) => {}
                Err(status) => drop(failure.get_or_insert(status)),
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

/// Creating in a namespace that goes away fails for good, and rightly so.
fn is_namespace_terminating(status: &Status) -> bool {
    status.is(Reason::Forbidden)
        && status.details.as_ref().is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating"))
}
