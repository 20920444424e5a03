//! Calls to etcd: which request goes to which method, and to which member.
//!
//! All calls go to one member, that has shown that it answers and has a leader; another is chosen when it does no more. So a
//! member that is down, cut off, hangs, or has the wrong certificate costs no call but those it had. Nothing is tried again
//! here, and no answer is interpreted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use prost::Message;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, IntoRequest, Request, Status, Streaming};

use super::convert::said;
use super::{CONNECT_TIMEOUT, MAX_ANSWER_BYTES, MAX_WATCH_BYTES};
use crate::etcdserverpb as pb;

/// A request that knows its method.
pub trait Call: Message + 'static {
    /// What comes back: once, or again and again where the method is a stream.
    type Answer: Message + Default + 'static;
    /// The path of the method.
    const METHOD: &'static str;
}

macro_rules! calls {
    ($($request:ident -> $answer:ident: $method:literal),* $(,)?) => {
        $(impl Call for pb::$request {
            type Answer = pb::$answer;
            const METHOD: &'static str = concat!("/etcdserverpb.", $method);
        })*
    };
}

calls![
    RangeRequest -> RangeResponse: "KV/Range",
    TxnRequest -> TxnResponse: "KV/Txn",
    PutRequest -> PutResponse: "KV/Put",
    CompactionRequest -> CompactionResponse: "KV/Compact",
    LeaseGrantRequest -> LeaseGrantResponse: "Lease/LeaseGrant",
    LeaseRevokeRequest -> LeaseRevokeResponse: "Lease/LeaseRevoke",
    LeaseTimeToLiveRequest -> LeaseTimeToLiveResponse: "Lease/LeaseTimeToLive",
    LeaseKeepAliveRequest -> LeaseKeepAliveResponse: "Lease/LeaseKeepAlive",
    WatchRequest -> WatchResponse: "Watch/Watch",
    StatusRequest -> StatusResponse: "Maintenance/Status",
];

// What only the tests ask.
#[cfg(test)]
calls![
    DeleteRangeRequest -> DeleteRangeResponse: "KV/DeleteRange",
    LeaseLeasesRequest -> LeaseLeasesResponse: "Lease/LeaseLeases",
];

/// Stands for no member.
const NONE: usize = usize::MAX;

/// A member of the cluster; connected to when it is first asked, and again whenever the connection broke.
struct Member {
    url: String,
    channel: Channel,
}

impl Member {
    async fn ready(&self, largest: usize) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(largest);
        grpc.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
        Ok(grpc)
    }

    async fn call<C: Call>(&self, request: C) -> Result<C::Answer, Status> {
        let mut grpc = self.ready(MAX_ANSWER_BYTES).await?;
        let method = PathAndQuery::from_static(C::METHOD);
        let codec = tonic_prost::ProstCodec::default();
        Ok(grpc.unary(led(request), method, codec).await?.into_inner())
    }

    async fn stream<C: Call>(
        &self,
        requests: impl Stream<Item = C> + Send + 'static,
    ) -> Result<Streaming<C::Answer>, Status> {
        let mut grpc = self.ready(MAX_WATCH_BYTES).await?;
        let method = PathAndQuery::from_static(C::METHOD);
        let codec = tonic_prost::ProstCodec::default();
        Ok(grpc.streaming(led(requests), method, codec).await?.into_inner())
    }
}

struct Members {
    all: Vec<Member>,
    /// The member that calls go to, by its place; [`NONE`]: one has to be chosen.
    current: AtomicUsize,
    /// One chooses for all.
    choosing: tokio::sync::Mutex<()>,
}

/// A connection to a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Connection {
    members: Arc<Members>,
}

impl Connection {
    /// A connection to some members, at least one. Nothing is connected to yet.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        let member = |endpoint: Endpoint| Member { url: endpoint.uri().to_string(), channel: endpoint.connect_lazy() };
        let all: Vec<_> = endpoints.into_iter().map(member).collect();
        // Between one there is nothing to choose.
        let current = AtomicUsize::new(if all.len() == 1 { 0 } else { NONE });
        Connection { members: Arc::new(Members { all, current, choosing: Default::default() }) }
    }

    fn current(&self) -> Option<(usize, &Member)> {
        let at = self.members.current.load(Ordering::Acquire);
        self.members.all.get(at).map(|member| (at, member))
    }

    /// Has a member chosen anew for the next call: the one in use does not answer.
    pub fn doubt(&self) {
        if self.members.all.len() > 1 {
            self.members.current.store(NONE, Ordering::Release);
        }
    }

    /// Looks at how a call to a member went.
    fn judge<T>(&self, at: usize, answer: Result<T, Status>) -> Result<T, Status> {
        if let Err(error) = &answer
            && self.members.all.len() > 1
            // Refusals have other codes: these say that the member, or the way to it, is not well.
            && matches!(error.code(), Code::Unavailable | Code::Cancelled | Code::Unknown)
        {
            _ = self.members.current.compare_exchange(at, NONE, Ordering::AcqRel, Ordering::Relaxed);
        }
        answer
    }

    async fn member(&self) -> Result<(usize, &Member), Status> {
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let _one = self.members.choosing.lock().await;
        if let Some(current) = self.current() {
            return Ok(current);
        }
        self.choose(Duration::ZERO).await?;
        self.current().ok_or_else(|| Status::unavailable("connect error: another member of etcd is being chosen"))
    }

    /// Asks all members how they are, and chooses the first that answers and has a leader, or else one without. Gives the
    /// versions of those that answer until `grace` after that; an empty one for the others.
    pub async fn choose(&self, grace: Duration) -> Result<Vec<String>, Status> {
        let all = &self.members.all;
        let mut answers: FuturesUnordered<_> = all
            .iter()
            .enumerate()
            .map(|(at, member)| async move {
                (at, tokio::time::timeout(CONNECT_TIMEOUT, member.call(pb::StatusRequest {})).await)
            })
            .collect();
        let mut versions = vec![String::new(); all.len()];
        let mut failures = Vec::new();
        let (mut chosen, mut leaderless) = (None, None);
        let mut until = Instant::now() + CONNECT_TIMEOUT;
        while let Ok(Some((at, answer))) = tokio::time::timeout_at(until, answers.next()).await {
            let failure = match answer {
                Ok(Ok(status)) => {
                    versions[at] = status.version;
                    if status.leader == 0 {
                        leaderless = Some(at);
                    } else if chosen.is_none() {
                        chosen = Some(at);
                        until = Instant::now() + grace;
                    }
                    continue;
                }
                Ok(Err(error)) => said(&error),
                Err(_) => format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            };
            tracing::warn!(member = all[at].url, error = failure, "a member of etcd cannot be used");
            failures.push(format!("{}: {failure}", all[at].url));
        }
        match chosen.or(leaderless) {
            Some(at) => {
                self.members.current.store(at, Ordering::Release);
                Ok(versions)
            }
            None => Err(Status::unavailable(format!("connect error: {}", failures.join("; ")))),
        }
    }

    /// One question, one answer.
    pub async fn call<C: Call>(&self, request: C) -> Result<C::Answer, Status> {
        let (at, member) = self.member().await?;
        self.judge(at, member.call(request).await)
    }

    /// Questions and answers, until either side ends.
    pub async fn stream<C: Call>(
        &self,
        requests: impl Stream<Item = C> + Send + 'static,
    ) -> Result<Streaming<C::Answer>, Status> {
        let (at, member) = self.member().await?;
        self.judge(at, member.stream(requests).await)
    }
}

/// A request for members that have a leader: one that lost it refuses instead of waiting, and ends its streams.
fn led<T>(request: impl IntoRequest<T>) -> Request<T> {
    let mut request = request.into_request();
    request.metadata_mut().insert("hasleader", AsciiMetadataValue::from_static("true"));
    request
}
