//! One pipeline for every kind and verb.
//!
//! [`ApiServer::call`] takes a request whose caller is known: it authorizes, finds the kind, and hands over to reading
//! ([`read`]), writing ([`write`]) or deleting ([`delete`]). No kind and no subresource decides order or authorization for
//! itself.

pub mod body;
mod converted;
pub mod delete;
mod list_options;
pub mod metadata;
mod owners;
pub mod read;
pub mod write;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use meta::{Reply, Request, RequestBody, Status, Verb};
use resources::{Resource, ResourceVersion, SubresourceKind, Verbs};

use crate::audit::Trail;
use crate::authn::User;
use crate::authz;
use crate::catalog::Served;
use crate::flowcontrol::Executing;
use crate::server::ApiServer;

/// Longest wait for the caches to reach a revision; then 504.
pub const FRESHNESS_LIMIT: Duration = Duration::from_secs(3);
/// Most `Warning` headers a reply carries.
const MAX_WARNINGS: usize = 64;

/// Who asks, and what the answer should tell them besides.
pub struct Caller {
    pub user: Arc<User>,
    pub user_agent: String,
    /// Where the audit log is told of this request, if it is.
    pub trail: Option<Arc<Trail>>,
    /// What it was taken under, if it came over HTTPS.
    pub flow: OnceLock<Executing>,
    warnings: Mutex<Vec<String>>,
}

impl Caller {
    pub fn new(user: Arc<User>, user_agent: &str) -> Self {
        Self {
            user,
            user_agent: user_agent.to_string(),
            trail: None,
            flow: OnceLock::new(),
            warnings: Mutex::default(),
        }
    }

    pub fn told_to(self, trail: Option<Arc<Trail>>) -> Self {
        Self { trail, ..self }
    }

    /// Takes the request under a flow schema; its answer says which.
    pub fn taken(&self, server: &ApiServer, attributes: &authz::Attributes<'_>) {
        if let Some(executing) = server.flow_control().take(server, &self.user, attributes) {
            // A request is taken once.
            let _ = self.flow.set(executing);
        }
    }

    /// Adds a word to what the audit log is told.
    pub fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        if let Some(trail) = &self.trail {
            trail.annotate(key, value);
        }
    }

    /// Adds a text for a `Warning` header, once.
    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if warnings.len() < MAX_WARNINGS && !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// What a request is about, resolved.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub caller: &'a Caller,
    pub served: &'a Arc<Served>,
    pub version: &'a ResourceVersion,
    pub request: &'a Request,
}

impl Target<'_> {
    pub fn group(&self) -> &str {
        &self.served.resource.group
    }

    pub fn plural(&self) -> &str {
        &self.served.resource.plural
    }

    pub fn key(&self) -> String {
        self.served.resource.key(&self.request.namespace, &self.request.name)
    }

    pub fn not_found(&self) -> Status {
        Status::not_found(self.group(), self.plural(), &self.request.name)
    }

    pub fn not_allowed(&self) -> Status {
        Status::method_not_allowed(self.group(), self.plural(), self.request.verb.as_str())
    }

    pub fn dry_run(&self) -> Result<bool, Status> {
        body::check_options(self)?;
        Ok(!self.request.options.dry_run.is_empty())
    }
}

impl ApiServer {
    /// Serves one request of a known caller, authorization included.
    pub async fn call(&self, caller: &Caller, request: Request) -> Result<Reply, Status> {
        authz::admit(self, caller, &authz::Attributes::of(&request)).await?;
        // Calls from this process come here first; those over HTTPS were sent on before they were routed.
        let services = self.aggregation().services();
        if let Some(remote) = services.remote(&request.resource.group, &request.resource.version) {
            return Box::pin(crate::aggregation::calls::call(self, remote, caller, request)).await;
        }
        self.serve(caller, request).await
    }

    /// Serves one request that is already authorized.
    pub async fn serve(&self, caller: &Caller, mut request: Request) -> Result<Reply, Status> {
        let catalog = self.catalog();
        let (served, version) = catalog.get(&request.resource).ok_or_else(Status::unknown_path)?;
        let resource = &served.resource;
        let version = &resource.versions[version];
        if let Some(text) = &version.deprecation {
            caller.warn(&**text);
            caller.annotate("k8s.io/deprecated", "true");
            if let Some(release) = version.removed_release() {
                caller.annotate("k8s.io/removed-release", release);
            }
        }
        if resource.namespaced && request.namespace.is_empty() && !matches!(request.verb, Verb::List | Verb::Watch) {
            // All namespaces' objects are at that path, to be read alone.
            let is_path = request.name.is_empty();
            return Err(if is_path { Status::wrong_method() } else { Status::unknown_path() });
        }
        let in_itself = &*resource.plural == "namespaces" && resource.group.is_empty();
        if !resource.namespaced && !request.namespace.is_empty() && !in_itself || request.name.contains('/') {
            return Err(Status::unknown_path());
        }
        if matches!(request.verb, Verb::Get | Verb::Patch | Verb::Delete)
            && let Some(why) = resources::validate::formats::not_a_path_segment(&request.name)
        {
            return Err(Status::bad_request(format!("Name parameter invalid: {:?}: {why}", request.name)));
        }
        // A tree that was handed over becomes the object; the audit log looks at it in the request.
        let sent = match &mut request.body {
            RequestBody::Value { value, .. } if caller.trail.is_none() => Some(value),
            _ => None,
        };
        let sent = sent.filter(|_| stores(resource, request.verb, &request.subresource)).map(std::mem::take);
        let target = Target { caller, served, version, request: &request };
        if let Some(trail) = &caller.trail {
            Box::pin(tell_body(trail, &target)).await;
        }
        // Each kind of request in a place of its own: a future is as large as its largest branch, and all those around it
        // are copied as they are made.
        if !request.subresource.is_empty() {
            let sub = resource.subresource(&request.subresource).ok_or_else(Status::unknown_path)?;
            return match (&sub.kind, request.verb) {
                (SubresourceKind::Part, verb) if request.subresource == "finalize" && verb != Verb::Update => {
                    Err(Status::wrong_method())
                }
                (SubresourceKind::Status | SubresourceKind::Part, Verb::Get) => Box::pin(self.get(target)).await,
                (SubresourceKind::Status | SubresourceKind::Part, Verb::Update | Verb::Patch) => {
                    Box::pin(self.update(target, sent)).await
                }
                (SubresourceKind::Scale { .. }, Verb::Get | Verb::Update | Verb::Patch) => {
                    Box::pin(crate::subresource::scale::serve(self, target)).await
                }
                (SubresourceKind::Action, Verb::Create) => Box::pin(crate::subresource::act(self, target)).await,
                _ => Err(Status::wrong_method()),
            };
        }
        match (resource.verbs, request.verb) {
            (Verbs::CreateOnly, Verb::Create) => Box::pin(crate::reviews::create(self, target)).await,
            (Verbs::CreateOnly, _) => Err(Status::wrong_method()),
            (Verbs::ReadOnly, Verb::Get | Verb::List) if &*resource.group == crate::metrics_api::GROUP => {
                Box::pin(crate::metrics_api::read(self, target)).await
            }
            (Verbs::ReadOnly, Verb::Get | Verb::List) => {
                Box::pin(crate::reviews::component_statuses(self, target)).await
            }
            (Verbs::ReadOnly, _) | (Verbs::NoDeleteCollection, Verb::DeleteCollection) => Err(Status::wrong_method()),
            (_, Verb::Get) => Box::pin(self.get(target)).await,
            (_, Verb::List) => Box::pin(self.list(target)).await,
            (_, Verb::Watch) => Box::pin(self.watch(target)).await,
            (_, Verb::Create) => Box::pin(self.create(target, sent)).await,
            (_, Verb::Update | Verb::Patch) => Box::pin(self.update(target, sent)).await,
            (_, Verb::Delete) => Box::pin(self.delete(target)).await,
            (_, Verb::DeleteCollection) => Box::pin(self.delete_collection(target)).await,
        }
    }
}

/// Whether a request's body is an object of the kind, to be stored.
fn stores(resource: &Resource, verb: Verb, subresource: &str) -> bool {
    match (resource.verbs, verb) {
        (Verbs::CreateOnly, _) => false,
        (_, Verb::Create) => subresource.is_empty(),
        (_, Verb::Update) => {
            let sub = resource.subresource(subresource);
            sub.is_none_or(|sub| matches!(sub.kind, SubresourceKind::Status | SubresourceKind::Part))
        }
        _ => false,
    }
}

/// Tells the audit log what was sent, where that is needed.
async fn tell_body(trail: &Trail, target: &Target<'_>) {
    let request = target.request;
    let stored = stores(&target.served.resource, request.verb, &request.subresource);
    match stored.then(|| body::decode_quietly(target)).flatten() {
        Some(body) => trail.sent(target, &body).await,
        None => trail.sent_as_it_is(&request.body),
    }
}
