//! Leader election on a `coordination.k8s.io/v1` Lease, with upstream's timings.
//!
//! Guarantees that work is told to stop before another candidate may begin, as long as clocks run at the same speed:
//! the leader gives up at its renew deadline, others wait for the longer lease duration, measured by their own clock
//! from when they saw the last renewal.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use meta::Status;
use rand::Rng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::head;
use crate::{Api, Client, EventType, Recorder};

/// A candidate for a lease.
#[derive(Clone, Debug)]
pub struct LeaderElection {
    pub client: Client,
    pub namespace: String,
    pub name: String,
    /// Unique among candidates: `host_uuid`.
    pub identity: String,
    /// How long others wait after the last renewal they saw.
    pub lease_duration: Duration,
    /// How long the leader tries to renew before it gives up.
    pub renew_deadline: Duration,
    /// Between tries.
    pub retry_period: Duration,
}

/// How long a leader may go on past its lease before its health says so: it should have given up long before.
const TOLERATED: Duration = Duration::from_secs(20);

/// By the lease's name: until when this process leads at most, as of its last renewal; `None` while it stands by.
static LEADS: Mutex<BTreeMap<String, Option<Instant>>> = Mutex::new(BTreeMap::new());

/// What is wrong with the leadership of a lease, where this process thinks that it leads.
pub fn fault(lease: &str) -> Option<String> {
    let until = LEADS.lock().unwrap_or_else(PoisonError::into_inner).get(lease).copied().flatten()?;
    let over = until + TOLERATED < Instant::now();
    over.then(|| format!("failed election to renew leadership on lease {lease}"))
}

/// Whether this process leads, or does not have to.
pub fn leads(lease: &str) -> bool {
    LEADS.lock().unwrap_or_else(PoisonError::into_inner).get(lease).is_none_or(Option::is_some)
}

/// What `/metrics` shows of it.
fn page() -> String {
    let mut out = String::new();
    let name = "leader_election_master_status";
    head(&mut out, name, "gauge", "[ALPHA] Whether this process leads: 1, or stands by: 0.");
    for (lease, leads) in LEADS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = writeln!(out, "{name}{{name=\"{lease}\"}} {}", u8::from(leads.is_some()));
    }
    out
}

/// The last renewal seen, and when by our own clock.
struct Seen {
    spec: LeaseSpec,
    at: Instant,
}

impl LeaderElection {
    /// A candidate with upstream's timings: 15 s, 10 s, 2 s.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            client,
            namespace: namespace.into(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }

    /// Waits for leadership, then runs `lead` with a token that is cancelled when leadership is lost or `cancel` fires.
    /// `None` when cancelled before leading. Returns when `lead` has returned; the lease is then released.
    pub async fn run<F, Fut, T>(&self, cancel: CancellationToken, lead: F) -> Option<T>
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = T>,
    {
        let api = self.client.api::<Lease>().namespaced(&self.namespace);
        let mut seen = None;
        self.tell(false);
        crate::exposition::register("leader_election", page);
        cancel.run_until_cancelled(self.acquire(&api, &mut seen)).await?;
        tracing::info!(lease = %self.name, identity = %self.identity, "became leader");
        self.tell(true);
        let recorder = Recorder::new(&self.client, &self.name, "");
        self.record(&recorder, "became leader");
        let leading = cancel.child_token();
        let work = lead(leading.clone());
        tokio::pin!(work);
        let result = tokio::select! {
            result = &mut work => result,
            () = self.renew(&api, &mut seen) => {
                tracing::error!(lease = %self.name, "leadership lost");
                self.tell(false);
                self.record(&recorder, "stopped leading");
                leading.cancel();
                return Some(work.await);
            }
        };
        self.tell(false);
        self.release(&api).await;
        Some(result)
    }

    /// Says whether this process leads, from now on or again.
    fn tell(&self, leads: bool) {
        let until = leads.then(|| Instant::now() + self.lease_duration);
        LEADS.lock().unwrap_or_else(PoisonError::into_inner).insert(self.name.clone(), until);
    }

    fn record(&self, recorder: &Recorder, what: &str) {
        let lease = ObjectReference {
            api_version: Some("coordination.k8s.io/v1".into()),
            kind: Some("Lease".into()),
            namespace: Some(self.namespace.clone()),
            name: Some(self.name.clone()),
            ..ObjectReference::default()
        };
        recorder.event(&lease, EventType::Normal, "LeaderElection", format!("{} {what}", self.identity));
    }

    fn pause(&self) -> Duration {
        // Upstream's jitter, so that candidates do not move in step.
        self.retry_period.mul_f64(rand::rng().random_range(1.0..2.2))
    }

    async fn acquire(&self, api: &Api<Lease>, seen: &mut Option<Seen>) {
        let mut failures: u32 = 0;
        loop {
            match self.try_hold(api, seen).await {
                Ok(true) => return,
                Ok(false) => failures = 0,
                Err(status) => {
                    failures = failures.saturating_add(1);
                    // A server that is still starting is no news; one that does not allow it is.
                    if failures >= 4 && failures.is_power_of_two() {
                        tracing::warn!(lease = %self.name, failures, "cannot acquire: {status}");
                    } else {
                        tracing::debug!(lease = %self.name, "cannot acquire: {status}");
                    }
                }
            }
            tokio::time::sleep(self.pause()).await;
        }
    }

    /// Returns when leadership is lost.
    async fn renew(&self, api: &Api<Lease>, seen: &mut Option<Seen>) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.retry_period).await;
            let left = self.renew_deadline.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.try_hold(api, seen)).await {
                Ok(Ok(true)) => {
                    renewed = Instant::now();
                    self.tell(true);
                }
                Ok(Ok(false)) => return,
                Ok(Err(status)) => tracing::warn!(lease = %self.name, "cannot renew: {status}"),
                Err(_) => return,
            }
            if renewed.elapsed() >= self.renew_deadline {
                return;
            }
        }
    }

    /// One try to take or keep the lease. `false` when another holds it.
    async fn try_hold(&self, api: &Api<Lease>, seen: &mut Option<Seen>) -> Result<bool, Status> {
        let now = MicroTime(Timestamp::now());
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.lease_duration.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now.clone()),
            lease_transitions: Some(0),
            ..LeaseSpec::default()
        };
        let Some(lease) = api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            };
            return match api.create(&Lease { metadata, spec: Some(spec) }).await {
                Ok(_) => Ok(true),
                Err(status) if status.is_already_exists() => Ok(false),
                Err(status) => Err(status),
            };
        };
        let held = lease.spec.clone().unwrap_or_default();
        let holder = held.holder_identity.as_deref().unwrap_or_default();
        let ours = holder == self.identity;
        if !ours && !holder.is_empty() {
            let fresh = match seen {
                Some(s) if s.spec == held => s.at.elapsed() < self.lease_duration,
                _ => {
                    *seen = Some(Seen { spec: held.clone(), at: Instant::now() });
                    true
                }
            };
            if fresh {
                return Ok(false);
            }
        }
        let transitions = held.lease_transitions.unwrap_or(0);
        let spec = LeaseSpec {
            acquire_time: if ours { held.acquire_time } else { spec.acquire_time },
            lease_transitions: Some(if ours { transitions } else { transitions.saturating_add(1) }),
            ..spec
        };
        // A conflict says only that somebody wrote: the next try sees who.
        api.update(&Lease { metadata: lease.metadata.clone(), spec: Some(spec) }).await.map(|_| true)
    }

    /// Lets others take over at once; failing to is no harm, they wait for the lease to run out.
    async fn release(&self, api: &Api<Lease>) {
        let Ok(lease) = api.get(&self.name).await else { return };
        let held = lease.spec.clone().unwrap_or_default();
        if held.holder_identity.as_deref() != Some(&self.identity) {
            return;
        }
        let now = MicroTime(Timestamp::now());
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            ..held
        };
        if let Err(status) = api.update(&Lease { metadata: lease.metadata.clone(), spec: Some(spec) }).await {
            tracing::debug!(lease = %self.name, "cannot release: {status}");
        }
    }
}
