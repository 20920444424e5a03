//! Admission: what must be true of a write beyond its own schema.
//!
//! Built-in plugins in upstream's order, each in a file of its own. Mutating ones run first, then, on the prepared and
//! validated object, the validating ones.

mod namespace_lifecycle;
mod priority;
mod service_account;
pub mod service_address;
mod storage_protection;

use async_trait::async_trait;
use meta::{Status, Value};

use crate::pipeline::Target;
use crate::server::ApiServer;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// What a plugin knows of the write.
pub struct Attributes<'a> {
    pub target: Target<'a>,
    pub operation: Operation,
    pub dry_run: bool,
}

impl<'a> Attributes<'a> {
    pub fn new(target: &Target<'a>, operation: Operation) -> Result<Self, Status> {
        Ok(Self { target: *target, operation, dry_run: target.dry_run()? })
    }

    /// The group and plural without a subresource: what most plugins look for.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.target.request.subresource.is_empty() && self.target.group() == group && self.target.plural() == plural
    }

    pub fn creates(&self, group: &str, plural: &str) -> bool {
        self.operation == Operation::Create && self.is(group, plural)
    }

    /// A 403 in the words of this write's object.
    pub fn forbid(&self, name: &str, why: impl std::fmt::Display) -> Status {
        Status::forbidden(self.target.group(), self.target.plural(), name, why)
    }
}

/// One plugin.
#[async_trait]
pub trait Plugin: Send + Sync {
    async fn mutate(&self, _server: &ApiServer, _a: &Attributes<'_>, _object: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        Ok(())
    }

    /// `object` is absent on deletes.
    async fn validate(&self, _server: &ApiServer, _a: &Attributes<'_>, _object: Option<&Value>, _old: Option<&Value>) -> Result<(), Status> {
        Ok(())
    }
}

const PLUGINS: &[&dyn Plugin] = &[
    &namespace_lifecycle::NamespaceLifecycle,
    &service_account::ServiceAccount,
    &priority::Priority,
    &service_address::ServiceAddress,
    &storage_protection::StorageProtection,
];

pub async fn mutate(server: &ApiServer, a: &mut Attributes<'_>, object: &mut Value, old: Option<&Value>) -> Result<(), Status> {
    for plugin in PLUGINS {
        plugin.mutate(server, a, object, old).await?;
    }
    Ok(())
}

pub async fn validate(server: &ApiServer, a: &Attributes<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
    for plugin in PLUGINS {
        plugin.validate(server, a, object, old).await?;
    }
    Ok(())
}
