//! The engine's state: every sandbox and container, on disk and in memory, and what happens to them by themselves.
//!
//! Guarantees: what a call has answered is on disk; after a restart everything that lives is found again, and what
//! ended meanwhile has its exit code; an event is sent for every change, after it can be seen. What callers ask for is
//! in `sandbox` and `container`.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use anyhow::{Context, Result};
use tokio::sync::{broadcast, watch};

use crate::Config;
use crate::cgroup::Cgroups;
use crate::images::store::ImageStore;
use crate::network::Network;
use crate::records::{self, ContainerRecord, SandboxRecord};
use crate::shim::protocol::{Exit, Reply, Request};
use crate::shim::sys::now;
use crate::shim_client::{self, Connection, Zygote};
use crate::streaming::Tokens;
use cri::v1::{ContainerEventResponse, ContainerEventType, ContainerStatus};

/// Events a slow listener may fall behind; then its stream ends and it has to list anew.
const EVENT_BACKLOG: usize = 4096;
/// How long a shim nobody knows may take to end.
const STRANGER: std::time::Duration = std::time::Duration::from_secs(10);

/// A sandbox in memory.
pub struct Sandbox {
    /// Its id.
    pub id: String,
    record: Mutex<SandboxRecord>,
    /// Setting up, stopping and removing are done one after the other.
    pub changing: tokio::sync::Mutex<()>,
    /// False once its shim is gone.
    pub alive: watch::Sender<bool>,
}

/// A container in memory.
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its sandbox's id.
    pub sandbox_id: String,
    record: Mutex<ContainerRecord>,
    /// Starting, stopping and removing are done one after the other.
    pub changing: tokio::sync::Mutex<()>,
    /// True once it has ended.
    pub ended: watch::Sender<bool>,
}

impl Sandbox {
    /// In memory only.
    pub fn new(record: SandboxRecord) -> Arc<Sandbox> {
        Arc::new(Sandbox {
            id: record.id.clone(),
            record: Mutex::new(record),
            changing: tokio::sync::Mutex::new(()),
            alive: watch::Sender::new(false),
        })
    }

    /// A snapshot of its record.
    pub fn record(&self) -> SandboxRecord {
        lock(&self.record).clone()
    }

    /// Looks at its record where it is: lists look at all of them and keep few.
    pub fn read<T>(&self, look: impl FnOnce(&SandboxRecord) -> T) -> T {
        look(&lock(&self.record))
    }
}

impl Container {
    /// In memory only.
    pub fn new(record: ContainerRecord) -> Arc<Container> {
        Arc::new(Container {
            id: record.id.clone(),
            sandbox_id: record.sandbox_id.clone(),
            ended: watch::Sender::new(record.finished_at != 0),
            record: Mutex::new(record),
            changing: tokio::sync::Mutex::new(()),
        })
    }

    /// A snapshot of its record.
    pub fn record(&self) -> ContainerRecord {
        lock(&self.record).clone()
    }

    /// Looks at its record where it is: lists look at all of them and keep few.
    pub fn read<T>(&self, look: impl FnOnce(&ContainerRecord) -> T) -> T {
        look(&lock(&self.record))
    }

    /// Waits until it has ended.
    pub async fn wait(&self) {
        // The sender lives as long as the container.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything.
pub struct Engine {
    /// How it was set up.
    pub config: Config,
    /// The images.
    pub images: ImageStore,
    /// The pod network.
    pub network: Network,
    /// The cgroup hierarchies.
    pub cgroups: Cgroups,
    /// Where shims come from.
    pub zygote: Zygote,
    /// Streaming sessions that wait for their client.
    pub tokens: Tokens,
    /// Processor time seen last, to tell the rate: by container or sandbox, (when, nanoseconds used).
    pub cpu_seen: Mutex<HashMap<String, (i64, u64)>>,
    events: broadcast::Sender<ContainerEventResponse>,
    sandboxes: RwLock<BTreeMap<String, Arc<Sandbox>>>,
    containers: RwLock<BTreeMap<String, Arc<Container>>>,
}

impl Engine {
    /// Opens the engine's state and adopts what lives.
    pub async fn open(config: Config) -> Result<Arc<Engine>> {
        for dir in ["sandboxes", "containers", "images"] {
            let dir = config.root.join(dir);
            std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        }
        for dir in ["sandboxes", "rootfs"] {
            let dir = config.state.join(dir);
            std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        }
        let engine = Arc::new(Engine {
            images: ImageStore::open(&config.root.join("images"))?,
            network: Network::open(config.network.clone(), config.root.join("network"))?,
            cgroups: Cgroups::detect()?,
            zygote: Zygote::new(config.shim_exe.clone()),
            tokens: Tokens::default(),
            cpu_seen: Mutex::default(),
            events: broadcast::channel(EVENT_BACKLOG).0,
            sandboxes: RwLock::default(),
            containers: RwLock::default(),
            config,
        });
        engine.adopt().await?;
        Ok(engine)
    }

    /// A sandbox's durable directory.
    pub fn sandbox_dir(&self, id: &str) -> PathBuf {
        self.config.root.join("sandboxes").join(id)
    }

    /// A sandbox's run-time directory.
    pub fn sandbox_state_dir(&self, id: &str) -> PathBuf {
        self.config.state.join("sandboxes").join(id)
    }

    /// A container's durable directory.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.config.root.join("containers").join(id)
    }

    /// Changes a sandbox's record, on disk and in memory.
    pub fn update_sandbox(&self, sandbox: &Sandbox, change: impl FnOnce(&mut SandboxRecord)) -> Result<()> {
        let mut record = lock(&sandbox.record);
        let mut changed = record.clone();
        change(&mut changed);
        records::save(&self.sandbox_dir(&sandbox.id).join("record"), &changed)?;
        *record = changed;
        Ok(())
    }

    /// Changes a container's record, on disk and in memory.
    pub fn update_container(&self, container: &Container, change: impl FnOnce(&mut ContainerRecord)) -> Result<()> {
        let mut record = lock(&container.record);
        let mut changed = record.clone();
        change(&mut changed);
        records::save(&self.container_dir(&container.id).join("record"), &changed)?;
        *record = changed;
        Ok(())
    }

    /// Notes that something of a sandbox has ended, whatever becomes of the disk: on a full one, too, what ends must be
    /// seen to. A restarted engine finds the end anew.
    pub fn end_sandbox(&self, sandbox: &Sandbox, change: impl FnOnce(&mut SandboxRecord)) {
        let mut record = lock(&sandbox.record);
        change(&mut record);
        if let Err(error) = records::save(&self.sandbox_dir(&sandbox.id).join("record"), &*record) {
            tracing::error!(
                sandbox = sandbox.id,
                error = format!("{error:#}"),
                "a sandbox's end could not be recorded"
            );
        }
    }

    /// The same of a container.
    pub fn end_container(&self, container: &Container, change: impl FnOnce(&mut ContainerRecord)) {
        let mut record = lock(&container.record);
        change(&mut record);
        if let Err(error) = records::save(&self.container_dir(&container.id).join("record"), &*record) {
            tracing::error!(container = container.id, error = format!("{error:#}"), "an exit could not be recorded");
        }
    }

    /// Every sandbox.
    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.sandboxes.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Every container.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.containers.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The containers of a sandbox.
    pub fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let mut list = self.containers();
        list.retain(|c| c.sandbox_id == sandbox);
        list
    }

    /// A sandbox by id or a prefix that only it has.
    pub fn sandbox(&self, id: &str) -> Option<Arc<Sandbox>> {
        by_prefix(&self.sandboxes.read().unwrap_or_else(PoisonError::into_inner), id)
    }

    /// A container by id or a prefix that only it has.
    pub fn container(&self, id: &str) -> Option<Arc<Container>> {
        by_prefix(&self.containers.read().unwrap_or_else(PoisonError::into_inner), id)
    }

    /// Makes a sandbox known.
    pub fn insert_sandbox(&self, sandbox: Arc<Sandbox>) {
        self.sandboxes.write().unwrap_or_else(PoisonError::into_inner).insert(sandbox.id.clone(), sandbox);
    }

    /// Makes a container known.
    pub fn insert_container(&self, container: Arc<Container>) {
        self.containers.write().unwrap_or_else(PoisonError::into_inner).insert(container.id.clone(), container);
    }

    /// Forgets a sandbox.
    pub fn forget_sandbox(&self, id: &str) {
        self.sandboxes.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        lock(&self.cpu_seen).remove(id);
    }

    /// Forgets a container.
    pub fn forget_container(&self, id: &str) {
        self.containers.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        lock(&self.cpu_seen).remove(id);
    }

    /// Listens to events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<ContainerEventResponse> {
        self.events.subscribe()
    }

    /// Tells listeners that something happened to a sandbox or container of `sandbox`.
    pub fn announce(&self, id: &str, kind: ContainerEventType, sandbox: &str) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let event = ContainerEventResponse {
            container_id: id.to_string(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: self.sandbox(sandbox).map(|s| crate::status::sandbox(&s.record())),
            containers_statuses: self.statuses_of(sandbox),
        };
        // Without listeners nobody misses it.
        let _ = self.events.send(event);
    }

    /// The statuses of a sandbox's containers.
    pub fn statuses_of(&self, sandbox: &str) -> Vec<ContainerStatus> {
        self.containers_of(sandbox).iter().map(|c| self.container_status(&c.record())).collect()
    }

    /// Follows a shim until it ends.
    pub fn follow(self: &Arc<Self>, sandbox: Arc<Sandbox>, connection: Connection) {
        sandbox.alive.send_replace(true);
        let engine = self.clone();
        tokio::spawn(async move {
            loop {
                match connection.receive().await {
                    Ok(Some((Reply::Exited { id, exit }, _))) => {
                        // Its start is recorded and announced before its end, however short its life.
                        if let Some(container) = engine.container(&id) {
                            drop(container.changing.lock().await);
                        }
                        engine.container_ended(&id, &exit).await;
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(sandbox = sandbox.id, error = format!("{error:#}"), "lost a shim");
                        break;
                    }
                }
            }
            engine.shim_ended(&sandbox).await;
        });
    }

    /// A container's first process has ended.
    pub async fn container_ended(&self, id: &str, exit: &Exit) {
        let Some(container) = self.container(id) else { return };
        if container.record().finished_at != 0 {
            return;
        }
        if let Err(error) = self.oci_forget(&container.sandbox_id, id) {
            tracing::warn!(container = id, error = format!("{error:#}"), "a runtime's record is left");
        }
        let cgroup = container.record().cgroup;
        let cgroups = self.cgroups.clone();
        let removed = tokio::task::spawn_blocking(move || cgroups.remove(&cgroup)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(container = id, error = format!("{error:#}"), "a cgroup is left");
        }
        self.end_container(&container, |r| {
            r.finished_at = exit.at;
            r.exit_code = exit.code;
            r.reason = match (exit.oom, exit.code) {
                (true, code) if code != 0 => "OOMKilled",
                (_, 0) => "Completed",
                _ => "Error",
            }
            .into();
            if r.started_at == 0 {
                r.started_at = exit.at;
            }
        });
        self.announce(id, ContainerEventType::ContainerStoppedEvent, &container.sandbox_id);
        container.ended.send_replace(true);
    }

    /// A shim is gone: its namespaces with it, so nothing of the sandbox may live on.
    async fn shim_ended(&self, sandbox: &Sandbox) {
        for container in self.containers_of(&sandbox.id) {
            let record = container.record();
            if !record.running() {
                continue;
            }
            let exit = self.exit_on_disk(&container.id).unwrap_or(Exit { code: 255, at: now(), oom: false });
            self.container_ended(&container.id, &exit).await;
        }
        sandbox.alive.send_replace(false);
        if sandbox.record().ready {
            tracing::warn!(sandbox = sandbox.id, "the sandbox's shim has ended");
            self.end_sandbox(sandbox, |r| r.ready = false);
            self.announce(&sandbox.id, ContainerEventType::ContainerStoppedEvent, &sandbox.id);
        }
    }

    fn exit_on_disk(&self, container: &str) -> Option<Exit> {
        serde_json::from_slice(&std::fs::read(self.container_dir(container).join("exit.json")).ok()?).ok()
    }

    /// After a start: finds everything again.
    async fn adopt(self: &Arc<Self>) -> Result<()> {
        for entry in std::fs::read_dir(self.config.root.join("sandboxes"))? {
            let entry = entry?;
            match records::load::<SandboxRecord>(&entry.path().join("record")) {
                // Another name in it, or none, is what a disk made of it.
                Ok(record) if *record.id == *entry.file_name() => self.insert_sandbox(Sandbox::new(record)),
                // Nothing had been started before the record was written.
                _ => discard(&entry.path()),
            }
        }
        self.end_strangers().await;
        for entry in std::fs::read_dir(self.config.root.join("containers"))? {
            let entry = entry?;
            match records::load::<ContainerRecord>(&entry.path().join("record")) {
                Ok(record) if *record.id == *entry.file_name() && self.sandbox(&record.sandbox_id).is_some() => {
                    self.images.hold(&record.id, &record.layers);
                    self.insert_container(Container::new(record));
                }
                read => {
                    if let Ok(record) = read {
                        self.remove_orphaned_cgroup(&record.cgroup);
                    }
                    discard(&entry.path());
                }
            }
        }
        for sandbox in self.sandboxes() {
            self.adopt_sandbox(&sandbox).await;
        }
        for container in self.containers() {
            // Its engine died between starting it and writing that down, and its shim is gone too.
            let record = container.record();
            if record.finished_at == 0 && record.started_at != 0 && !self.is_alive(&record.sandbox_id) {
                let exit = self.exit_on_disk(&container.id).unwrap_or(Exit { code: 255, at: now(), oom: false });
                self.container_ended(&container.id, &exit).await;
            }
        }
        let alive: Vec<(String, Vec<IpAddr>, _)> = self
            .sandboxes()
            .iter()
            .map(|s| s.record())
            .filter(|r| r.ready)
            .map(|r| (r.id, r.addresses.iter().filter_map(|a| a.parse().ok()).collect(), r.config.unwrap_or_default()))
            .collect();
        if let Err(error) = self.network.reconcile(&alive) {
            tracing::warn!(error = format!("{error:#}"), "the pod network could not be reconciled");
        }
        self.images.collect()
    }

    /// Removes the cgroup of a container whose sandbox is lost, and the one above it, which was the sandbox's, once that is
    /// empty.
    fn remove_orphaned_cgroup(&self, path: &str) {
        if path.trim_matches('/').is_empty() || !self.cgroups.exists(path) {
            return;
        }
        if let Err(error) = self.cgroups.remove(path) {
            tracing::warn!(path, "cgroup not removed: {error:#}");
        }
        let above = path.rsplit_once('/').map_or("", |(above, _)| above);
        if !above.trim_matches('/').is_empty() {
            self.cgroups.dirs(above).iter().for_each(|dir| drop(std::fs::remove_dir(dir)));
        }
    }

    /// Ends shims whose sandboxes nothing is known of any more, since a disk lost the records: what they run nobody could
    /// ever stop, and would be started once more.
    async fn end_strangers(&self) {
        for entry in std::fs::read_dir(self.config.state.join("sandboxes")).into_iter().flatten().flatten() {
            let (id, state) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
            if self.sandbox(&id).is_some() {
                continue;
            }
            if let Ok(connection) = Connection::open(&state) {
                tracing::warn!(sandbox = id, "a sandbox is ended, its record is lost");
                let _ = tokio::time::timeout(STRANGER, connection.ask(&Request::Shutdown, &[])).await;
            }
            let _ = nix::mount::umount2(&state.join("shm"), nix::mount::MntFlags::MNT_DETACH);
            discard(&state);
        }
    }

    /// Whether a sandbox's shim lives.
    pub fn is_alive(&self, sandbox: &str) -> bool {
        self.sandbox(sandbox).is_some_and(|s| *s.alive.borrow())
    }

    async fn adopt_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let connected = async {
            let connection = Connection::open(&self.sandbox_state_dir(&sandbox.id))?;
            let (state, _) = connection.ask(&Request::Watch, &[]).await?;
            anyhow::Ok((connection, state))
        };
        match connected.await {
            Ok((connection, Reply::State { pid, init, containers })) => {
                for state in containers {
                    let Some(container) = self.container(&state.id) else {
                        // Its record is lost: nobody could ever stop it.
                        if state.exit.is_none() {
                            tracing::warn!(container = state.id, "a container is ended, its record is lost");
                        }
                        let end = Request::Signal { id: state.id.clone(), signal: 9, all: true };
                        let _ = shim_client::ask(&self.sandbox_state_dir(&sandbox.id), &end).await;
                        continue;
                    };
                    if container.record().started_at == 0 {
                        let _ = self.update_container(&container, |r| {
                            r.started_at = state.started_at;
                            r.pid = state.pid;
                        });
                    }
                    if let Some(exit) = state.exit {
                        self.container_ended(&state.id, &exit).await;
                    }
                }
                let half_made = !sandbox.record().ready;
                let _ = self.update_sandbox(sandbox, |r| (r.shim_pid, r.init_pid) = (pid, init));
                self.follow(sandbox.clone(), connection);
                if half_made {
                    // Its creation or its stopping was interrupted; either way it is to end.
                    if let Err(error) = self.stop_sandbox(sandbox).await {
                        tracing::warn!(sandbox = sandbox.id, error = format!("{error:#}"), "cleaning up a sandbox");
                    }
                } else {
                    tracing::info!(sandbox = sandbox.id, "adopted a sandbox");
                }
            }
            _ => {
                if sandbox.record().ready {
                    self.shim_ended(sandbox).await;
                }
                if let Err(error) = self.stop_sandbox(sandbox).await {
                    tracing::warn!(sandbox = sandbox.id, error = format!("{error:#}"), "cleaning up a sandbox");
                }
            }
        }
    }
}

/// Removes a directory that is of no use any more; one that cannot be removed is in nobody's way.
fn discard(path: &Path) {
    if let Err(error) = std::fs::remove_dir_all(path) {
        tracing::warn!("cannot remove {}: {error}", path.display());
    }
}

/// An entry by its key, or by a prefix that only one key has.
fn by_prefix<T: Clone>(map: &BTreeMap<String, T>, id: &str) -> Option<T> {
    /// Shortest prefix taken for an id.
    const SHORTEST: usize = 4;
    if let Some(found) = map.get(id) {
        return Some(found.clone());
    }
    if id.len() < SHORTEST {
        return None;
    }
    let mut matching = map.range(id.to_string()..).take_while(|(key, _)| key.starts_with(id));
    let (_, first) = matching.next()?;
    matching.next().is_none().then(|| first.clone())
}

/// A new id: 64 hexadecimal digits.
pub fn new_id() -> String {
    use rand::RngCore;
    let mut raw = [0u8; 32];
    rand::rng().fill_bytes(&mut raw);
    crate::images::unpack::hex(&raw)
}
