//! NamespaceLifecycle: nothing is created in a namespace that does not exist or is going away, and the namespaces the
//! system needs stay.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use meta::{Cause, Status, Value};

use super::{Attributes, Operation, Plugin, Write};
use crate::server::ApiServer;

/// Remembers whose end was asked for here: the cache may not know yet, with a store elsewhere.
pub struct NamespaceLifecycle {
    going: Mutex<BTreeMap<String, Instant>>,
}

/// How long a namespace that was asked to go is looked up only after the cache has caught up, as upstream.
const GOING_FOR: Duration = Duration::from_secs(30);
/// Namespaces remembered at a time; beyond it those that come are not, and the cache alone tells.
const MAX_GOING: usize = 10_000;
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

impl NamespaceLifecycle {
    pub const fn new() -> Self {
        Self { going: Mutex::new(BTreeMap::new()) }
    }

    fn asked_to_go(&self, namespace: &str) {
        let mut going = self.going.lock().unwrap_or_else(PoisonError::into_inner);
        going.retain(|_, asked| asked.elapsed() < GOING_FOR);
        if going.len() < MAX_GOING {
            going.insert(namespace.to_string(), Instant::now());
        }
    }

    fn may_be_going(&self, namespace: &str) -> bool {
        let going = self.going.lock().unwrap_or_else(PoisonError::into_inner);
        going.get(namespace).is_some_and(|asked| asked.elapsed() < GOING_FOR)
    }

    /// Refuses what would be new in a namespace that is going or not there. Acting subresources count as new, too.
    pub async fn admit(&self, server: &ApiServer, a: &Attributes<'_>, name: &str) -> Result<(), Status> {
        let namespace = &*a.target.request.namespace;
        if a.operation != Operation::Create || !a.target.served.resource.namespaced || namespace.is_empty() {
            return Ok(());
        }
        if self.may_be_going(namespace) {
            server.await_newest().await?;
        }
        let found = match server.lookup("", "namespaces", "", namespace) {
            None => {
                server.await_newest().await?;
                server
                    .lookup("", "namespaces", "", namespace)
                    .ok_or_else(|| Status::not_found("", "namespaces", namespace))?
            }
            Some(found) => found,
        };
        // Reviews ask about a namespace; they put nothing into it.
        if found.meta.deletion_timestamp.is_none() || a.target.served.cache.is_none() {
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let cause = Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".into(),
        };
        Err(a.forbid(name, why).with_causes(vec![cause]))
    }
}

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        matches!(a.operation, Operation::Create | Operation::Delete)
    }

    async fn mutate(&self, write: &Write<'_>, object: &mut Value) -> Result<(), Status> {
        let Write { server, a, .. } = *write;
        self.admit(server, a, object["metadata"]["name"].as_str().unwrap_or_default()).await
    }

    async fn validate(&self, write: &Write<'_>, _object: Option<&Value>) -> Result<(), Status> {
        let Write { a, .. } = *write;
        if a.operation == Operation::Delete && a.is("", "namespaces") {
            if IMMORTAL.contains(&&*a.target.request.name) {
                return Err(a.forbid(&a.target.request.name, "this namespace may not be deleted"));
            }
            self.asked_to_go(&a.target.request.name);
        }
        Ok(())
    }
}
