//! What a user may do: whoever is in the chain decides, and masters pass.
//!
//! Every request passes [`admit`] exactly once before the pipeline looks at it. Where nothing else is configured
//! ([`configuration`]), a node may do what its own pods need ([`node`]); everyone else, and a node beyond that, needs a rule
//! ([`rbac`]). Others may be asked ([`webhook`]).

pub mod abac;
pub mod chain;
pub mod configuration;
pub mod node;
pub mod rbac;
pub mod references;
#[cfg(test)]
mod tests;
pub mod webhook;

use meta::{Request, Status, Verb};

use crate::authn::User;
use crate::pipeline::Caller;
use crate::server::ApiServer;

/// What is to be done, as rules describe it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// Non-resource requests have a path and nothing else but the verb.
    pub path: Option<&'a str>,
    /// What a collection is narrowed to, as the request spells it.
    pub field_selector: &'a str,
    pub label_selector: &'a str,
}

impl<'a> Attributes<'a> {
    pub fn of(request: &'a Request) -> Self {
        let collection = matches!(request.verb, Verb::List | Verb::Watch | Verb::DeleteCollection);
        let narrowed = |selector: &'a Option<String>| selector.as_deref().filter(|_| collection).unwrap_or_default();
        let mut out = Self {
            verb: request.verb.as_str(),
            group: &request.resource.group,
            version: &request.resource.version,
            resource: &request.resource.resource,
            subresource: &request.subresource,
            namespace: &request.namespace,
            name: if request.verb == Verb::Create && request.subresource.is_empty() { "" } else { &request.name },
            path: None,
            field_selector: narrowed(&request.options.field_selector),
            label_selector: narrowed(&request.options.label_selector),
        };
        // Reading one object through a field selector is a read of that object, as upstream sees it.
        if out.name.is_empty() {
            out.name = out.selected("metadata.name").unwrap_or_default();
        }
        out
    }

    pub fn path(verb: &'a str, path: &'a str) -> Self {
        Self { verb, path: Some(path), ..Self::default() }
    }

    /// The one value the field selector allows for a field.
    pub fn selected(&self, field: &str) -> Option<&'a str> {
        self.field_selector.split(',').find_map(|term| {
            let (key, value) = term.split_once('=')?;
            (key.trim() == field).then(|| value.strip_prefix('=').unwrap_or(value).trim())
        })
    }

    /// `pods/log`, as rules spell it.
    fn full_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.into()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

/// Whether, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(String),
    /// No, whoever else would be asked.
    Deny(String),
    NoOpinion(String),
}

/// Decides where nothing may be waited for.
pub fn decide(server: &ApiServer, user: &User, attributes: &Attributes<'_>) -> Decision {
    if chain::is_master(user) {
        return Decision::Allow(String::new());
    }
    server.authorization().chain().decide(server, user, attributes)
}

/// As [`require`], for the request itself: the audit log is told, and who has to be asked elsewhere is waited for.
pub async fn admit(server: &ApiServer, caller: &Caller, attributes: &Attributes<'_>) -> Result<(), Status> {
    let began = std::time::Instant::now();
    let chain = server.authorization().chain();
    let decision = if chain.asks_others() && !chain::is_master(&caller.user) {
        Box::pin(chain.ask(server, &caller.user, attributes)).await
    } else {
        decide(server, &caller.user, attributes)
    };
    crate::instruments::authorized(matches!(decision, Decision::Allow(_)), began.elapsed());
    if let Some(trail) = &caller.trail {
        let (word, reason) = match &decision {
            Decision::Allow(reason) => ("allow", reason),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => ("forbid", reason),
        };
        trail.annotate("authorization.k8s.io/decision", word);
        trail.annotate("authorization.k8s.io/reason", reason.as_str());
    }
    verdict(decision, &caller.user, attributes)
}

/// A 403 in upstream's words unless allowed.
pub fn require(server: &ApiServer, user: &User, attributes: &Attributes<'_>) -> Result<(), Status> {
    verdict(decide(server, user, attributes), user, attributes)
}

fn verdict(decision: Decision, user: &User, attributes: &Attributes<'_>) -> Result<(), Status> {
    let (Decision::Deny(reason) | Decision::NoOpinion(reason)) = decision else { return Ok(()) };
    let why = match attributes.path {
        Some(path) => format!("User {:?} cannot {} path {path:?}", user.name, attributes.verb),
        None => {
            let scope = match attributes.namespace {
                "" => " at the cluster scope".to_string(),
                ns => format!(" in the namespace {ns:?}"),
            };
            let resource = attributes.full_resource();
            format!(
                "User {:?} cannot {} resource {resource:?} in API group {:?}{scope}",
                user.name, attributes.verb, attributes.group
            )
        }
    };
    let why = if reason.is_empty() { why } else { format!("{why}: {reason}") };
    Err(Status::forbidden(attributes.group, attributes.resource, attributes.name, why))
}
