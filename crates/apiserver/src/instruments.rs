//! What the server counts besides requests: admission, authentication, authorization, the store, watches. Upstream's names.
//!
//! Where something happens on every write it is an addition to a static; what has names that users choose (webhooks, policies)
//! is kept by name, up to a bound.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use client::metrics::{Histogram, head};
use store::StoreError;

use crate::admission::{MUTATING, Operation, VALIDATING};
use crate::server::ApiServer;

/// Upper bounds of requests' durations, seconds; the store's are the same.
pub static SECONDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
static ADMISSION: [f64; 6] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
static AUTH: [f64; 15] =
    [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384];
/// Bytes of a watch's event: seven doublings of a kibibyte.
const EVENT_BYTES: [usize; 8] = [1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072];
/// Most names of one kind that are told apart.
const MAX_NAMES: usize = 2000;

const OPERATIONS: [Operation; 4] = [Operation::Create, Operation::Update, Operation::Delete, Operation::Connect];
/// Operations, let through and refused.
type ByOutcome = [Histogram<6>; 8];
const fn by_outcome() -> ByOutcome {
    [const { Histogram::new(&ADMISSION) }; 8]
}

/// Which half of admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    Admit,
    Validate,
}

impl Half {
    fn as_str(self) -> &'static str {
        if self == Half::Admit { "admit" } else { "validate" }
    }
}

static STEPS: [ByOutcome; 2] = [const { by_outcome() }; 2];
static MUTATING_TIMES: [ByOutcome; MUTATING.len()] = [const { by_outcome() }; MUTATING.len()];
static VALIDATING_TIMES: [ByOutcome; VALIDATING.len()] = [const { by_outcome() }; VALIDATING.len()];

fn place(operation: Operation, rejected: bool) -> usize {
    OPERATIONS.iter().position(|o| *o == operation).unwrap_or(0) * 2 + usize::from(rejected)
}

/// A whole half was gone through.
pub fn step(half: Half, operation: Operation, rejected: bool, took: Duration) {
    STEPS[half as usize][place(operation, rejected)].observe(took);
}

/// The plugin at a place of its half's list was asked.
pub fn plugin(half: Half, at: usize, operation: Operation, rejected: bool, took: Duration) {
    let times = if half == Half::Admit { &MUTATING_TIMES[..] } else { &VALIDATING_TIMES[..] };
    times[at][place(operation, rejected)].observe(took);
}

/// Series by their labels.
type Named<T> = LazyLock<Mutex<BTreeMap<String, T>>>;

static WEBHOOK_TIMES: Named<Histogram<6>> = LazyLock::new(Mutex::default);
static WEBHOOK_REQUESTS: Named<u64> = LazyLock::new(Mutex::default);
static WEBHOOK_REJECTIONS: Named<u64> = LazyLock::new(Mutex::default);
static WEBHOOK_FAIL_OPEN: Named<u64> = LazyLock::new(Mutex::default);
static POLICY_CHECKS: Named<u64> = LazyLock::new(Mutex::default);
static USERS: Named<u64> = LazyLock::new(Mutex::default);
static LONG_RUNNING: Named<i64> = LazyLock::new(Mutex::default);

fn lock<T>(named: &Mutex<BTreeMap<String, T>>) -> MutexGuard<'_, BTreeMap<String, T>> {
    named.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(named: &Mutex<BTreeMap<String, u64>>, labels: String) {
    let mut series = lock(named);
    if series.len() < MAX_NAMES || series.contains_key(&labels) {
        *series.entry(labels).or_default() += 1;
    }
}

/// How a webhook's call ended.
pub enum Called {
    Allowed,
    /// It said no, with this code.
    Denied(u16),
    /// It could not be asked; whether the request goes on all the same.
    Failed {
        open: bool,
    },
}

/// A webhook was asked. `half` is `admit` or `validating`, as upstream calls them here.
pub fn webhook(name: &str, half: Half, operation: &str, called: &Called, took: Duration) {
    let kind = if half == Half::Admit { "admit" } else { "validating" };
    let (code, rejected) = match called {
        Called::Allowed => (200, false),
        Called::Denied(code) => (*code, true),
        Called::Failed { open } => (503, !open),
    };
    let labels = format!("name=\"{name}\",operation=\"{operation}\",rejected=\"{rejected}\",type=\"{kind}\"");
    count(&WEBHOOK_REQUESTS, format!("code=\"{code}\",{labels}"));
    {
        let mut times = lock(&WEBHOOK_TIMES);
        if times.len() < MAX_NAMES || times.contains_key(&labels) {
            times.entry(labels).or_insert_with(|| Histogram::new(&ADMISSION)).observe(took);
        }
    }
    let error = match called {
        Called::Allowed => return,
        Called::Denied(_) => "no_error",
        Called::Failed { open: true } => {
            return count(&WEBHOOK_FAIL_OPEN, format!("name=\"{name}\",type=\"{kind}\""));
        }
        Called::Failed { open: false } => "calling_webhook_error",
    };
    count(
        &WEBHOOK_REJECTIONS,
        format!(
            "error_type=\"{error}\",name=\"{name}\",operation=\"{operation}\",rejection_code=\"{code}\",type=\"{kind}\""
        ),
    );
}

/// A policy's validation came to something under a binding.
pub fn policy(policy: &str, binding: &str, action: &str, error: &str) {
    count(
        &POLICY_CHECKS,
        format!(
            "enforcement_action=\"{action}\",error_type=\"{error}\",policy=\"{policy}\",policy_binding=\"{binding}\""
        ),
    );
}

static TOKENS_OF_ISSUERS: Named<Histogram<15>> = LazyLock::new(Mutex::default);
static KEYS_READ: Named<u64> = LazyLock::new(Mutex::default);
static WHEN_KEYS_READ: Named<f64> = LazyLock::new(Mutex::default);
static AUTHORIZERS_ASKED: Named<u64> = LazyLock::new(Mutex::default);
static AUTHORIZER_TIMES: Named<Histogram<15>> = LazyLock::new(Mutex::default);
static AUTHORIZERS_FAILED_OPEN: Named<u64> = LazyLock::new(Mutex::default);
static AUTHORIZERS_EXCLUDED: Named<u64> = LazyLock::new(Mutex::default);
static CONDITIONS_FAILED: Named<u64> = LazyLock::new(Mutex::default);
static RELOADS: Named<u64> = LazyLock::new(Mutex::default);
static WHEN_RELOADED: Named<f64> = LazyLock::new(Mutex::default);
static IMPERSONATIONS: Named<u64> = LazyLock::new(Mutex::default);

fn time(named: &Mutex<BTreeMap<String, Histogram<15>>>, labels: String, took: Duration) {
    let mut series = lock(named);
    if series.len() < MAX_NAMES || series.contains_key(&labels) {
        series.entry(labels).or_insert_with(|| Histogram::new(&AUTH)).observe(took);
    }
}

fn now() -> f64 {
    jiff::Timestamp::now().as_duration().as_secs_f64()
}

/// A name as upstream's metrics hide it.
fn hashed(name: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An issuer's token was judged.
pub fn token_of_issuer(issuer: &str, good: bool, took: Duration) {
    let result = if good { "success" } else { "failure" };
    time(&TOKENS_OF_ISSUERS, format!("jwt_issuer_hash=\"{}\",result=\"{result}\"", hashed(issuer)), took);
}

/// An issuer's keys were read, or could not be.
pub fn keys_read(issuer: &str, well: bool) {
    let result = if well { "success" } else { "failure" };
    let labels = format!("jwt_issuer_hash=\"{}\",result=\"{result}\"", hashed(issuer));
    count(&KEYS_READ, labels.clone());
    lock(&WHEN_KEYS_READ).insert(labels, now());
}

/// How asking an authorizer went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Error,
    Timeout,
}

/// A webhook authorizer was asked.
pub fn authorizer_asked(name: &str, outcome: Outcome, denies_on_error: bool, took: Duration) {
    let result = match outcome {
        Outcome::Success => "success",
        Outcome::Error => "error",
        Outcome::Timeout => "timeout",
    };
    let labels = format!("name=\"{name}\",result=\"{result}\"");
    count(&AUTHORIZERS_ASKED, labels.clone());
    time(&AUTHORIZER_TIMES, labels.clone(), took);
    if outcome != Outcome::Success && !denies_on_error {
        count(&AUTHORIZERS_FAILED_OPEN, labels);
    }
}

/// A webhook's match conditions said that it is not to be asked, or could not say.
pub fn authorizer_excluded(name: &str) {
    count(&AUTHORIZERS_EXCLUDED, format!("name=\"{name}\",type=\"Webhook\""));
}

pub fn authorizer_condition_failed(name: &str) {
    count(&CONDITIONS_FAILED, format!("name=\"{name}\",type=\"Webhook\""));
}

/// A configuration file that changed was taken up, or not: `authentication` or `authorization`.
pub fn reloaded(what: &'static str, well: bool) {
    let status = if well { "success" } else { "failure" };
    let labels = format!("{what} status=\"{status}\"");
    count(&RELOADS, labels.clone());
    lock(&WHEN_RELOADED).insert(labels, now());
}

/// Somebody acted as another, in this mode, or wanted to.
pub fn impersonated(mode: &str, allowed: bool) {
    let decision = if allowed { "allowed" } else { "denied" };
    count(&IMPERSONATIONS, format!("decision=\"{decision}\",mode=\"{mode}\""));
}

static AUTHENTICATION: [Histogram<15>; 2] = [const { Histogram::new(&AUTH) }; 2];
const AUTHENTICATED: [&str; 2] = ["success", "failure"];
static AUTHORIZATION: [Histogram<15>; 2] = [const { Histogram::new(&AUTH) }; 2];
const AUTHORIZED: [&str; 2] = ["allowed", "no-opinion"];

/// Somebody was made out, or not.
pub fn authenticated(user: Option<&str>, took: Duration) {
    AUTHENTICATION[usize::from(user.is_none())].observe(took);
    // As upstream: whoever it may be, few names are told.
    let name = match user {
        None => return,
        Some(name @ ("admin" | "client" | "kube_proxy" | "kubelet" | "system:serviceaccount:kube-system:default")) => {
            name
        }
        Some(name) if name.contains('@') => "email_id",
        Some(_) => "other",
    };
    let mut users = lock(&USERS);
    match users.get_mut(name) {
        Some(count) => *count += 1,
        None => drop(users.insert(name.into(), 1)),
    }
}

pub fn authorized(allowed: bool, took: Duration) {
    AUTHORIZATION[usize::from(!allowed)].observe(took);
}

/// What is asked of the store.
#[derive(Clone, Copy, Debug)]
pub enum Asked {
    Get,
    List,
    Create,
    Update,
    Delete,
}

const ASKED: [&str; 5] = ["get", "list", "create", "update", "delete"];

#[derive(Default)]
struct Times {
    took: Option<[Histogram<23>; 5]>,
    errors: [AtomicU64; 5],
}

/// How long the store takes with one kind; nothing is kept for a kind nobody asks for.
#[derive(Default)]
pub struct StoreTimes(OnceLock<Box<Times>>);

impl StoreTimes {
    pub async fn of<T>(
        &self,
        asked: Asked,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let answer = answer.await;
        let new = || Times { took: Some([const { Histogram::new(&SECONDS) }; 5]), ..Times::default() };
        let times = self.0.get_or_init(|| Box::new(new()));
        if let Some(took) = &times.took {
            took[asked as usize].observe(began.elapsed());
        }
        if answer.is_err() {
            times.errors[asked as usize].fetch_add(1, Ordering::Relaxed);
        }
        answer
    }
}

/// Events of one version of a kind that went to watchers.
#[derive(Default)]
pub struct Watched {
    count: AtomicU64,
    bytes: AtomicU64,
    buckets: [AtomicU64; EVENT_BYTES.len()],
}

static WATCHED: Named<Arc<Watched>> = LazyLock::new(Mutex::default);

/// Where a watch counts its events.
pub fn watched(group: &str, version: &str, resource: &str, kind: &str) -> Arc<Watched> {
    let labels = format!("group=\"{group}\",kind=\"{kind}\",resource=\"{resource}\",version=\"{version}\"");
    lock(&WATCHED).entry(labels).or_default().clone()
}

impl Watched {
    pub fn sent(&self, bytes: usize) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(at) = EVENT_BYTES.iter().position(|bound| bytes <= *bound) {
            self.buckets[at].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A request whose answer goes on, counted until dropped.
pub struct LongRunning(String);

impl LongRunning {
    pub fn begin(labels: String) -> Self {
        *lock(&LONG_RUNNING).entry(labels.clone()).or_default() += 1;
        Self(labels)
    }
}

impl Drop for LongRunning {
    fn drop(&mut self) {
        if let Some(count) = lock(&LONG_RUNNING).get_mut(&self.0) {
            *count -= 1;
        }
    }
}

fn series<T: std::fmt::Display>(
    out: &mut String,
    name: &str,
    kind: &str,
    about: &str,
    of: impl Iterator<Item = (String, T)>,
) {
    head(out, name, kind, about);
    for (labels, value) in of {
        let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(out, "{name}{braces} {value}");
    }
}

fn named(out: &mut String, name: &str, about: &str, of: &Mutex<BTreeMap<String, u64>>) {
    series(out, name, "counter", about, lock(of).iter().map(|(labels, count)| (labels.clone(), *count)));
}

fn outcomes(out: &mut String, name: &str, before: &str, half: Half, times: &ByOutcome) {
    for (at, histogram) in times.iter().enumerate().filter(|(_, h)| h.count() > 0) {
        let (operation, rejected) = (OPERATIONS[at / 2].as_str(), at % 2 == 1);
        let labels = format!("{before}operation=\"{operation}\",rejected=\"{rejected}\",type=\"{}\"", half.as_str());
        histogram.write(out, name, &labels);
    }
}

fn write_admission(out: &mut String) {
    const HALVES: [Half; 2] = [Half::Admit, Half::Validate];
    let name = "apiserver_admission_step_admission_duration_seconds";
    head(out, name, "histogram", "[STABLE] Time of each half of admission.");
    for (half, times) in HALVES.into_iter().zip(&STEPS) {
        outcomes(out, name, "", half, times);
    }
    let name = "apiserver_admission_controller_admission_duration_seconds";
    head(out, name, "histogram", "[STABLE] Time of each admission plugin.");
    let mutating = MUTATING.iter().zip(&MUTATING_TIMES).map(|((name, _), times)| (Half::Admit, *name, times));
    let validating = VALIDATING.iter().zip(&VALIDATING_TIMES).map(|((name, _), times)| (Half::Validate, *name, times));
    for (half, plugin, times) in mutating.chain(validating).filter(|(_, plugin, _)| !plugin.is_empty()) {
        outcomes(out, name, &format!("name=\"{plugin}\","), half, times);
    }
    let name = "apiserver_admission_webhook_admission_duration_seconds";
    head(out, name, "histogram", "[STABLE] Time of each webhook.");
    for (labels, histogram) in lock(&WEBHOOK_TIMES).iter() {
        histogram.write(out, name, labels);
    }
    let webhook = "apiserver_admission_webhook";
    named(out, &format!("{webhook}_request_total"), "[ALPHA] Calls of webhooks.", &WEBHOOK_REQUESTS);
    named(out, &format!("{webhook}_rejection_count"), "[ALPHA] Requests refused over webhooks.", &WEBHOOK_REJECTIONS);
    let about = "[ALPHA] Requests that went on although a webhook failed.";
    named(out, &format!("{webhook}_fail_open_count"), about, &WEBHOOK_FAIL_OPEN);
    let name = "apiserver_validating_admission_policy_check_total";
    named(out, name, "[BETA] Outcomes of policies' validations.", &POLICY_CHECKS);
}

fn write_auth(out: &mut String) {
    for (attempts, duration, results, times) in [
        ("authentication_attempts", "authentication_duration_seconds", AUTHENTICATED, &AUTHENTICATION),
        ("authorization_attempts_total", "authorization_duration_seconds", AUTHORIZED, &AUTHORIZATION),
    ] {
        let all = || results.iter().zip(times).map(|(result, times)| (format!("result=\"{result}\""), times));
        series(out, attempts, "counter", "[ALPHA] Attempts by result.", all().map(|(l, times)| (l, times.count())));
        head(out, duration, "histogram", "[ALPHA] Seconds by result.");
        all().for_each(|(labels, times)| times.write(out, duration, &labels));
    }
    let users = lock(&USERS).iter().map(|(name, count)| (format!("username=\"{name}\""), *count)).collect::<Vec<_>>();
    let about = "[ALPHA] Requests of those that were made out.";
    series(out, "authenticated_user_requests", "counter", about, users.into_iter());
}

fn write_configured(out: &mut String, server: &ApiServer) {
    let times = |out: &mut String, name: &str, about: &str, of: &Mutex<BTreeMap<String, Histogram<15>>>| {
        head(out, name, "histogram", about);
        lock(of).iter().for_each(|(labels, times)| times.write(out, name, labels));
    };
    let authentication = "apiserver_authentication";
    let name = format!("{authentication}_jwt_authenticator_latency_seconds");
    times(out, &name, "[ALPHA] Seconds an issuer's token took.", &TOKENS_OF_ISSUERS);
    let name = format!("{authentication}_jwt_authenticator_jwks_fetch_total");
    named(out, &name, "[ALPHA] How often issuers' keys were read.", &KEYS_READ);
    let name = format!("{authentication}_jwt_authenticator_jwks_fetch_last_timestamp_seconds");
    let read = lock(&WHEN_KEYS_READ).clone();
    series(out, &name, "gauge", "[ALPHA] When issuers' keys were read last.", read.into_iter());
    let authorization = "apiserver_authorization";
    let decisions: Vec<_> = server.authorization().chain().0.iter().flat_map(|member| member.counts()).collect();
    let decisions = decisions.into_iter().filter(|(_, count)| *count > 0);
    let name = format!("{authorization}_decisions_total");
    series(out, &name, "counter", "[ALPHA] Decisions by who made them.", decisions);
    for (name, about, of) in [
        ("webhook_evaluations_total", "[ALPHA] Calls of authorizers elsewhere.", &AUTHORIZERS_ASKED),
        (
            "webhook_evaluations_fail_open_total",
            "[ALPHA] Calls that failed and left it to others.",
            &AUTHORIZERS_FAILED_OPEN,
        ),
        (
            "match_condition_exclusions_total",
            "[ALPHA] Requests an authorizer was not asked about.",
            &AUTHORIZERS_EXCLUDED,
        ),
        ("match_condition_evaluation_errors_total", "[ALPHA] Match conditions that failed.", &CONDITIONS_FAILED),
    ] {
        named(out, &format!("{authorization}_{name}"), about, of);
    }
    let name = format!("{authorization}_webhook_duration_seconds");
    times(out, &name, "[ALPHA] Seconds authorizers elsewhere took.", &AUTHORIZER_TIMES);
    for what in ["authentication", "authorization"] {
        let of = |(labels, value): (&String, f64)| {
            labels.strip_prefix(what).map(|labels| (labels.trim_start().to_string(), value))
        };
        let prefix = format!("apiserver_{what}_config_controller_automatic_reload");
        let reloads: Vec<_> = lock(&RELOADS).iter().filter_map(|(l, n)| of((l, *n as f64))).collect();
        let about = "[ALPHA] How often a changed configuration was taken up.";
        series(out, &format!("{prefix}s_total"), "counter", about, reloads.into_iter());
        let when: Vec<_> = lock(&WHEN_RELOADED).iter().filter_map(|(l, at)| of((l, *at))).collect();
        let about = "[ALPHA] When a changed configuration was taken up last.";
        series(out, &format!("{prefix}_last_timestamp_seconds"), "gauge", about, when.into_iter());
    }
    let name = "apiserver_impersonation_attempts_total";
    named(out, name, "[ALPHA] Attempts to act as another.", &IMPERSONATIONS);
}

fn write_store(out: &mut String, server: &ApiServer) {
    let catalog = server.catalog();
    let mut kinds: Vec<_> =
        catalog.kinds().iter().filter_map(|served| Some((&served.resource, served.stored.0.get()?))).collect();
    kinds.sort_by_key(|(resource, _)| (resource.group.clone(), resource.plural.clone()));
    let all = || {
        kinds.iter().flat_map(|(resource, times)| {
            ASKED.iter().zip(times.took.iter().flatten()).zip(&times.errors).map(move |((asked, took), errors)| {
                let (group, plural) = (&resource.group, &resource.plural);
                (format!("group=\"{group}\",operation=\"{asked}\",resource=\"{plural}\""), took, errors)
            })
        })
    };
    let name = "etcd_request_duration_seconds";
    head(out, name, "histogram", "[ALPHA] Seconds the store took.");
    for (labels, took, _) in all().filter(|(_, took, _)| took.count() > 0) {
        took.write(out, name, &labels);
    }
    let asked = all().filter(|(_, took, _)| took.count() > 0);
    let counted = asked.map(|(labels, took, _)| (labels, took.count()));
    series(out, "etcd_requests_total", "counter", "[ALPHA] Requests to the store.", counted);
    let failed = all().map(|(labels, _, errors)| (labels, errors.load(Ordering::Relaxed))).filter(|(_, n)| *n > 0);
    series(out, "etcd_request_errors_total", "counter", "[ALPHA] Requests the store failed.", failed);
    if let Some(bytes) = server.store().size_bytes() {
        let labels = "storage_cluster_id=\"etcd-0\"".to_string();
        let about = "[STABLE] Size of the store's files.";
        series(out, "apiserver_storage_size_bytes", "gauge", about, std::iter::once((labels, bytes)));
    }
}

fn write_watches(out: &mut String) {
    let all = lock(&WATCHED).clone();
    let counts = all.iter().map(|(labels, watched)| (labels.clone(), watched.count.load(Ordering::Relaxed)));
    series(out, "apiserver_watch_events_total", "counter", "[ALPHA] Events sent to watchers.", counts);
    let name = "apiserver_watch_events_sizes";
    head(out, name, "histogram", "[ALPHA] Bytes of events sent to watchers.");
    for (labels, watched) in &all {
        let mut total = 0;
        for (bound, bucket) in EVENT_BYTES.iter().zip(&watched.buckets) {
            total += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
        }
        let (count, bytes) = (watched.count.load(Ordering::Relaxed), watched.bytes.load(Ordering::Relaxed));
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {bytes}\n{name}_count{{{labels}}} {count}");
    }
    let open = lock(&LONG_RUNNING).clone();
    let about = "[STABLE] Requests whose answers go on.";
    series(out, "apiserver_longrunning_requests", "gauge", about, open.into_iter());
}

/// All of it, as text.
pub fn write_page(out: &mut String, server: &ApiServer) {
    write_admission(out);
    write_auth(out);
    write_configured(out, server);
    write_store(out, server);
    write_watches(out);
    server.flow_control().write_page(out);
}
