//! The store on an etcd v3 cluster: any number of API servers may share it.
//!
//! Keys are etcd's keys, verbatim, so what upstream's API server wrote is found. Reads are linearizable. Nothing is cached
//! here. Reads are tried again while etcd is away, up to the request timeout; a write only when it surely was not sent,
//! so that nothing happens twice. Compaction is the caller's: call [`Backend::compact`] on a schedule.

mod convert;
mod watch;
pub(crate) mod wire;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::etcdserverpb::request_op::Request;
use crate::etcdserverpb::response_op::Response;
use crate::etcdserverpb::{self as pb};
use crate::{
    Backend, Compare, KeyValue, LeaseId, Op, Range, Revision, StoreError, Txn, TxnOutcome, WatchStream, limits,
};
use convert::{key_value, map_error, retry, revision_of};
use wire::{Call, Connection};

/// How long a connection may take to come up, and a member to say how it is.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long members that are slower than the first get to tell their version. Watches may come to lie on any of them, so one
/// that does not tell is taken for old.
const VERSION_GRACE: Duration = Duration::from_secs(1);

/// A read is given up on one member after this share of its time, and tried again, on another: a member that was
/// cut off answers nothing at all.
const TRIES: u32 = 4;

/// The first pause before a read is tried again; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Keys read with one call: bounds the size of an answer, and how long etcd is busy with it.
const PAGE_KEYS: usize = 1000;

/// The largest answer accepted, in bytes. A page that would be larger is asked for in smaller ones.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// The largest watch message accepted, in bytes: as large as etcd can send, since it may hold many revisions.
const MAX_WATCH_BYTES: usize = i32::MAX as usize;

/// Where etcd is and how to speak to it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Client URLs, such as `https://10.0.0.1:2379`; all `http` or all `https`.
    pub endpoints: Vec<String>,
    /// The certificate authority of the servers, PEM. Needed for `https`.
    pub ca: Option<Vec<u8>>,
    /// The client certificate, PEM; with `key`.
    pub cert: Option<Vec<u8>>,
    /// The key of the client certificate, PEM.
    pub key: Option<Vec<u8>>,
    /// How long a request may take, tries included. Default 10 s.
    pub request_timeout: Duration,
    /// How often a silent connection is probed, and how long the answer may take before the connection counts as broken.
    /// Default 10 s and 5 s: this is how long a watch may lie on a member that was cut off.
    pub keep_alive: (Duration, Duration),
    /// The most bytes of keys and values one transaction may carry; etcd has its own limit. Default 1.5 MiB.
    pub max_request_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            endpoints: Vec::new(),
            ca: None,
            cert: None,
            key: None,
            request_timeout: Duration::from_secs(10),
            keep_alive: (Duration::from_secs(10), Duration::from_secs(5)),
            max_request_bytes: limits::MAX_REQUEST_BYTES,
        }
    }
}

impl Options {
    /// The members as they are connected to.
    fn members(&self) -> Result<Vec<Endpoint>, StoreError> {
        let invalid = |what: String| Err(StoreError::Invalid(what));
        if self.endpoints.is_empty() {
            return invalid("no etcd endpoint is given".into());
        }
        if let Some(other) =
            self.endpoints.iter().find(|url| !url.starts_with("http://") && !url.starts_with("https://"))
        {
            return invalid(format!(
                "etcd endpoint {other:?} is not a URL: write http://HOST:PORT or https://HOST:PORT"
            ));
        }
        let secure = self.endpoints.iter().filter(|url| url.starts_with("https://")).count();
        if secure != 0 && secure != self.endpoints.len() {
            return invalid("etcd endpoints mix http and https".into());
        }
        let tls = if secure == 0 { None } else { Some(self.tls()?) };
        self.endpoints.iter().map(|url| self.member(url, tls.as_ref())).collect()
    }

    fn tls(&self) -> Result<ClientTlsConfig, StoreError> {
        let Some(ca) = &self.ca else {
            return Err(StoreError::Invalid(
                "etcd endpoints are https: the certificate authority of the servers is needed".into(),
            ));
        };
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Ok(tls.identity(Identity::from_pem(cert, key))),
            (None, None) => Ok(tls),
            _ => Err(StoreError::Invalid("the etcd client certificate and its key must be given together".into())),
        }
    }

    fn member(&self, url: &str, tls: Option<&ClientTlsConfig>) -> Result<Endpoint, StoreError> {
        let invalid =
            |e: tonic::transport::Error| StoreError::Invalid(format!("etcd endpoint {url:?}: {}", causes(&e)));
        let member = Endpoint::from_shared(url.to_owned())
            .map_err(invalid)?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(self.keep_alive.0)
            .keep_alive_timeout(self.keep_alive.1)
            .keep_alive_while_idle(true);
        match tls {
            Some(tls) => member.tls_config(tls.clone()).map_err(invalid),
            None => Ok(member),
        }
    }
}

/// A store on etcd. Cheap to share behind an `Arc`.
pub struct Etcd {
    connection: Connection,
    /// The endpoints, for messages.
    name: String,
    options: Options,
    progress: watch::Progress,
    /// Counts the calls for progress; every watch follows it.
    asked: tokio::sync::watch::Sender<u64>,
}

/// Connects, and makes sure that etcd answers.
pub async fn connect(options: Options) -> Result<Etcd, StoreError> {
    let members = options.members()?;
    let name = options.endpoints.join(", ");
    let connection = Connection::new(members);
    let versions = tokio::time::timeout(options.request_timeout, connection.choose(VERSION_GRACE)).await;
    let versions = versions.map_err(|_| convert::silent(&name, options.request_timeout))?;
    let versions = versions.map_err(|error| map_error(&name, &error))?;
    let progress = watch::Progress::for_versions(&versions);
    tracing::info!(endpoints = name, ?versions, ?progress, "connected to etcd");
    Ok(Etcd { connection, name, options, progress, asked: tokio::sync::watch::Sender::new(0) })
}

impl Etcd {
    /// Asks until there is an answer, a refusal, or the time is up.
    async fn call<C: Call + Clone>(&self, idempotent: bool, request: C) -> Result<C::Answer, StoreError> {
        self.retrying(idempotent, || self.connection.call(request.clone())).await
    }

    async fn retrying<T, F>(&self, idempotent: bool, attempt: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let deadline = Instant::now() + self.options.request_timeout;
        let mut pause = FIRST_PAUSE;
        loop {
            let enough = match idempotent {
                true => deadline.min(Instant::now() + self.options.request_timeout / TRIES),
                // Whether it happened would not be known: wait for the answer as long as there is time.
                false => deadline,
            };
            let error = match tokio::time::timeout_at(enough, attempt()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => {
                    self.connection.doubt();
                    if enough < deadline {
                        continue;
                    }
                    return Err(convert::silent(&self.name, self.options.request_timeout));
                }
            };
            if !retry(&error, idempotent) || Instant::now() + pause >= deadline {
                return Err(map_error(&self.name, &error));
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// The seconds a lease has left; none when it has ended.
    pub async fn lease_seconds(&self, lease: LeaseId) -> Result<Option<u64>, StoreError> {
        match self.call(true, pb::LeaseTimeToLiveRequest { id: lease.0, keys: false }).await {
            // A lease that is not there has -1 seconds left.
            Ok(answer) => Ok(u64::try_from(answer.ttl).ok()),
            Err(StoreError::LeaseNotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn page(&self, start: &str, end: &str, limit: usize, at: Revision) -> Result<Range, StoreError> {
        // etcd's first key is "\0": it takes no empty start.
        let start = if start.is_empty() { "\0" } else { start };
        let request = pb::RangeRequest { limit: limit as i64, revision: at as i64, ..range(start, end) };
        let answer = self.call(true, request).await.map_err(|e| about(e, at))?;
        let current_revision = revision_of(&answer.header);
        let items = answer.kvs.into_iter().map(key_value).collect::<Result<_, _>>()?;
        let revision = if at == 0 { current_revision } else { at };
        Ok(Range { items, more: answer.more, count: answer.count as u64, revision, current_revision })
    }
}

/// A read of a range, or of one key when the end is empty.
fn range(start: &str, end: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: bytes(start), range_end: bytes(end), ..Default::default() }
}

/// A read that finds at most a count: for the revision in its header. Linearizable like any other.
fn nothing() -> pb::RangeRequest {
    pb::RangeRequest { count_only: true, ..range("\0", "") }
}

fn bytes(key: &str) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

/// Fills in what etcd's messages do not say: the revision that was asked for.
fn about(error: StoreError, at: Revision) -> StoreError {
    match error {
        StoreError::Compacted { current, .. } => StoreError::Compacted { compacted: at + 1, current },
        StoreError::FutureRevision { current, .. } => StoreError::FutureRevision { requested: at, current },
        other => other,
    }
}

fn compare(compare: &Compare) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: bytes(&compare.key),
        target_union: Some(TargetUnion::ModRevision(compare.mod_revision as i64)),
        ..Default::default()
    }
}

fn op(op: &Op) -> Request {
    match op {
        Op::Put { key, value, lease } => Request::RequestPut(pb::PutRequest {
            key: bytes(key),
            value: value.clone(),
            lease: lease.map_or(0, |lease| lease.0),
            ..Default::default()
        }),
        Op::Delete { key } => {
            Request::RequestDeleteRange(pb::DeleteRangeRequest { key: bytes(key), ..Default::default() })
        }
    }
}

fn ops(requests: impl Iterator<Item = Request>) -> Vec<pb::RequestOp> {
    requests.map(|request| pb::RequestOp { request: Some(request) }).collect()
}

#[async_trait]
impl Backend for Etcd {
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let size = limits::check_txn(&txn, self.options.max_request_bytes)?;
        let request = pb::TxnRequest {
            compare: txn.compares.iter().map(compare).collect(),
            success: ops(txn.ops.iter().map(op)),
            failure: ops(txn.compares.iter().map(|compare| Request::RequestRange(range(&compare.key, "")))),
        };
        let answer = self.call(false, request).await.map_err(|error| match error {
            StoreError::TooLarge { limit, .. } => StoreError::TooLarge { size, limit },
            StoreError::LeaseNotFound(_) => {
                let lease = txn.ops.iter().find_map(|op| match op {
                    Op::Put { lease, .. } => *lease,
                    Op::Delete { .. } => None,
                });
                StoreError::LeaseNotFound(lease.unwrap_or(LeaseId(0)))
            }
            other => other,
        })?;
        let revision = revision_of(&answer.header);
        if answer.succeeded {
            return Ok(TxnOutcome::Committed { revision });
        }
        let mut current = Vec::with_capacity(txn.compares.len());
        for response in answer.responses {
            if let Some(Response::ResponseRange(mut found)) = response.response {
                current.push(found.kvs.pop().map(key_value).transpose()?);
            }
        }
        Ok(TxnOutcome::Conflict { current, revision })
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<KeyValue>, Revision), StoreError> {
        let at = at.unwrap_or(0);
        let request = pb::RangeRequest { revision: at as i64, ..range(key, "") };
        let mut answer = self.call(true, request).await.map_err(|e| about(e, at))?;
        let revision = revision_of(&answer.header);
        Ok((answer.kvs.pop().map(key_value).transpose()?, revision))
    }

    async fn range(&self, start: &str, end: &str, limit: usize, at: Option<Revision>) -> Result<Range, StoreError> {
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut page_keys = PAGE_KEYS;
        let mut from = start.to_owned();
        let mut whole: Option<Range> = None;
        if start >= end {
            let current_revision = self.current_revision().await?;
            let revision = at.filter(|at| *at != 0).unwrap_or(current_revision);
            return Ok(Range { items: Vec::new(), more: false, count: 0, revision, current_revision });
        }
        loop {
            let have = whole.as_ref().map_or(0, |whole| whole.items.len());
            let revision = whole.as_ref().map_or(at.unwrap_or(0), |whole| whole.revision);
            let wanted = page_keys.min(limit - have);
            let page = match self.page(&from, end, wanted, revision).await {
                Ok(page) => page,
                Err(StoreError::TooLarge { .. }) if wanted > 1 => {
                    page_keys = wanted / 2;
                    continue;
                }
                Err(e) => return Err(e),
            };
            let more = page.more;
            if let Some(last) = page.items.last() {
                from = format!("{}\0", last.key);
            }
            let whole = match &mut whole {
                None => whole.insert(page),
                Some(whole) => {
                    whole.items.extend(page.items);
                    whole.more = more;
                    whole
                }
            };
            if !more || whole.items.len() >= limit {
                break;
            }
        }
        // The loop ends only after a page was read.
        whole.ok_or_else(|| StoreError::Unavailable("etcd gave no page".into()))
    }

    async fn current_revision(&self) -> Result<Revision, StoreError> {
        Ok(revision_of(&self.call(true, nothing()).await?.header))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, StoreError> {
        let current = self.current_revision().await?;
        if after > current {
            return Err(StoreError::FutureRevision { requested: after, current });
        }
        Ok(watch::start(&self.connection, &self.name, self.progress, self.asked.subscribe(), prefix, after))
    }

    async fn request_progress(&self) -> Result<(), StoreError> {
        self.asked.send_modify(|count| *count = count.wrapping_add(1));
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        match self.call(true, pb::CompactionRequest { revision: revision as i64, physical: false }).await {
            Ok(_) | Err(StoreError::Compacted { .. }) => Ok(()),
            Err(e) => Err(about(e, revision)),
        }
    }

    async fn grant_lease(&self, ttl_seconds: u64) -> Result<LeaseId, StoreError> {
        let ttl = i64::try_from(ttl_seconds).ok().filter(|ttl| *ttl > 0);
        let Some(ttl) = ttl else {
            return Err(StoreError::Invalid(format!("a lease cannot last {ttl_seconds} seconds")));
        };
        Ok(LeaseId(self.call(false, pb::LeaseGrantRequest { ttl, id: 0 }).await?.id))
    }

    async fn keep_alive_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        let once = || async {
            let question = futures::stream::iter([pb::LeaseKeepAliveRequest { id: lease.0 }]);
            self.connection.stream(question).await?.message().await
        };
        match self.retrying(true, once).await {
            Ok(Some(kept)) if kept.ttl > 0 => Ok(()),
            // A lease that is not there has no time left.
            Ok(Some(_)) => Err(StoreError::LeaseNotFound(lease)),
            Ok(None) => {
                Err(StoreError::Unavailable(format!("etcd at {} did not say whether a lease was kept", self.name)))
            }
            Err(error) => Err(of_lease(error, lease)),
        }
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        let revoked = self.call(false, pb::LeaseRevokeRequest { id: lease.0 }).await;
        revoked.map(|_| ()).map_err(|e| of_lease(e, lease))
    }
}

fn of_lease(error: StoreError, lease: LeaseId) -> StoreError {
    match error {
        StoreError::LeaseNotFound(_) => StoreError::LeaseNotFound(lease),
        other => other,
    }
}

/// An error with what lies below it.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        next = error.source();
    }
    text
}
