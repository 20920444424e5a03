//! The audit log: who asked what, when, and how it was answered.
//!
//! A [`Policy`] decides what is told of each request; a [`Trail`] gathers it while the request is served, and every stage of
//! it becomes one line for every sink. Where no policy is given there is no [`Audit`], no request has a trail, and nothing here
//! costs anything. Follows `k8s.io/apiserver/pkg/audit` and its filter; what a request means is not known here.

mod event;
mod legacy;
pub mod log;
pub mod policy;
pub mod sink;
#[cfg(test)]
mod tests;
mod trail;
mod truncate;
pub mod webhook;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use meta::{Reply, Request, Status, Verb};

use crate::authn::User;
use crate::authz::Attributes;
use crate::pipeline::Caller;
use crate::server::ApiServer;
use policy::{Level, Policy};
use sink::Sink;
pub use trail::Trail;

/// How long the end of the server waits for what is still to be written.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);
/// Who calls from this process, as far as there is an address.
const WITHIN: &str = "127.0.0.1";

/// A policy, and where what it tells goes.
pub struct Audit {
    policy: Policy,
    sinks: Vec<Sink>,
    /// Events told.
    events: AtomicU64,
    /// Requests, by what is told of them, in the order of [`Level::ALL`].
    levels: [AtomicU64; 4],
}

/// A request as it arrives.
pub struct Received<'a> {
    pub audit_id: &'a str,
    pub uri: String,
    /// Absent when nobody could be made out.
    pub user: Option<&'a User>,
    pub source_ips: Vec<String>,
    pub user_agent: &'a str,
    pub attributes: &'a Attributes<'a>,
    /// Its answer goes on for as long as the client likes.
    pub long_running: bool,
}

impl Audit {
    pub fn new(policy: Policy, sinks: Vec<Sink>) -> Arc<Self> {
        Arc::new(Self { policy, sinks, events: Default::default(), levels: Default::default() })
    }

    /// The trail of a request, if anything is to be told of it.
    pub fn begin(self: &Arc<Self>, received: Received<'_>) -> Option<Arc<Trail>> {
        let verdict = self.policy.verdict(received.user, received.attributes);
        self.levels[verdict.level as usize].fetch_add(1, Ordering::Relaxed);
        (verdict.level > Level::None).then(|| Arc::new(Trail::new(self.clone(), &verdict, received)))
    }

    async fn tell(&self, event: Bytes) {
        self.events.fetch_add(1, Ordering::Relaxed);
        for sink in &self.sinks {
            sink.put(event.clone()).await;
        }
    }

    /// Waits, but not for long, until what was told is written.
    pub async fn flush(&self) {
        let all = futures::future::join_all(self.sinks.iter().map(Sink::flush));
        if tokio::time::timeout(FLUSH_WITHIN, all).await.is_err() {
            tracing::warn!("audit events were not all written");
        }
    }

    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Requests by level.
    pub fn levels(&self) -> impl Iterator<Item = (Level, u64)> {
        Level::ALL.into_iter().zip(&self.levels).map(|(level, count)| (level, count.load(Ordering::Relaxed)))
    }

    /// Events lost, by sink.
    pub fn errors(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.sinks.iter().map(|sink| (sink.name, sink.errors.load(Ordering::Relaxed)))
    }
}

impl ApiServer {
    /// A call from this process: told like one over HTTPS, and otherwise [`ApiServer::call`].
    pub fn call_within<'a>(
        &'a self,
        user: &'a Arc<User>,
        user_agent: &'a str,
        request: Request,
    ) -> BoxFuture<'a, Result<Reply, Status>> {
        Box::pin(self.told(user, user_agent, request))
    }

    async fn told(&self, user: &Arc<User>, user_agent: &str, request: Request) -> Result<Reply, Status> {
        let Some(audit) = &self.config().audit else {
            return self.call(&Caller::new(user.clone(), user_agent), request).await;
        };
        let trail = audit.begin(Received {
            audit_id: &uuid::Uuid::new_v4().to_string(),
            uri: client::remote::url(&request),
            user: Some(user),
            source_ips: vec![WITHIN.into()],
            user_agent,
            attributes: &Attributes::of(&request),
            long_running: request.verb == Verb::Watch,
        });
        let Some(trail) = trail else { return self.call(&Caller::new(user.clone(), user_agent), request).await };
        trail.received().await;
        let caller = Caller::new(user.clone(), user_agent).told_to(Some(trail.clone()));
        let reply = Box::pin(self.call(&caller, request)).await;
        let code = match &reply {
            Ok(reply) => {
                trail.answered(reply);
                match reply {
                    Reply::Object { created: true, .. } => 201,
                    Reply::Value { code, .. } => *code,
                    _ => 200,
                }
            }
            Err(status) => {
                trail.refused(status);
                status.code
            }
        };
        trail.ended(code).await;
        match reply {
            Ok(Reply::Watch(events)) => Ok(Reply::Watch(trail::held_stream(events, trail))),
            other => other,
        }
    }
}
