//! NamespaceLifecycle: nothing is created in a namespace that does not exist or is going away, and the namespaces the
//! system needs stay.

use async_trait::async_trait;
use meta::{Cause, Status, Value};

use super::{Attributes, Operation, Plugin};
use crate::server::ApiServer;

pub struct NamespaceLifecycle;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

#[async_trait]
impl Plugin for NamespaceLifecycle {
    async fn mutate(
        &self,
        server: &ApiServer,
        a: &Attributes<'_>,
        _object: &mut Value,
        _old: Option<&Value>,
    ) -> Result<(), Status> {
        let namespace = &*a.target.request.namespace;
        if a.operation != Operation::Create || !a.target.served.resource.namespaced || namespace.is_empty() {
            return Ok(());
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
        let name = _object["metadata"]["name"].as_str().unwrap_or_default();
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let cause = Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".into(),
        };
        Err(a.forbid(name, why).with_causes(vec![cause]))
    }

    async fn validate(
        &self,
        _server: &ApiServer,
        a: &Attributes<'_>,
        _object: Option<&Value>,
        _old: Option<&Value>,
    ) -> Result<(), Status> {
        if a.operation == Operation::Delete && a.is("", "namespaces") && IMMORTAL.contains(&&*a.target.request.name) {
            return Err(a.forbid(&a.target.request.name, "this namespace may not be deleted"));
        }
        Ok(())
    }
}
