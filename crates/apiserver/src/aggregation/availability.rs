//! Whether extension servers are there, and what they serve.
//!
//! One task follows APIServices, and the Services and endpoints they lead to. Each extension server is asked for its own
//! version's discovery now and then: the answer is its `Available` condition. What it publishes is fetched with it, and
//! a new [`Services`] snapshot is put in force whenever anything of that changed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{join_all, select_ok};
use futures::{FutureExt, TryFutureExt};
use meta::{Object, Request, Status, Value, Verb};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::documents::{self, Documents};
use super::{Backend, GROUP, PLURAL, Remote, Services, Spec, proxy};
use crate::bootstrap::loopback;
use crate::clock;
use crate::pipeline::Target;
use crate::pipeline::write::Change;
use crate::server::ApiServer;

/// How often an extension server that is there is asked again.
const CHECK_EVERY: Duration = Duration::from_secs(30);
/// First wait before one that is not there is asked again; each failure doubles it, up to `CHECK_EVERY`.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// How long one may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Questions at once: one dead endpoint among several must not make a service unavailable.
const ATTEMPTS: usize = 3;
/// Changes of endpoints come in bursts.
const SETTLE: Duration = Duration::from_millis(50);
/// APIServices of extension servers that are followed.
const MAX_REMOTES: usize = 256;

/// What is known of one APIService.
struct Known {
    /// The spec as it was when `remote` was made of it.
    spec: Value,
    remote: Option<Arc<Remote>>,
    next_check: Instant,
    wait: Duration,
    /// What stood in the way before anybody was asked.
    obstacle: Option<(&'static str, String)>,
}

/// The verdict on one APIService.
struct Verdict {
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn unavailable(reason: &'static str, message: String) -> Self {
        Self { status: "False", reason, message }
    }

    fn passed() -> Self {
        Self { status: "True", reason: "Passed", message: "all checks passed".into() }
    }
}

/// What keeps a Service from leading anywhere.
fn obstacle(server: &ApiServer, backend: &Backend) -> Option<(&'static str, String)> {
    let place = format!("service/{} in {:?}", backend.name, backend.namespace);
    let Some(service) = server.lookup("", "services", &backend.namespace, &backend.name) else {
        return Some(("ServiceNotFound", format!("{place} is not present")));
    };
    let Ok(service) = service.value() else {
        return Some(("ServiceAccessError", format!("{place} cannot be checked")));
    };
    if service["spec"]["type"] != "ClusterIP" {
        return None;
    }
    let ports = service["spec"]["ports"].as_array();
    let Some(port) = ports.into_iter().flatten().find(|p| p["port"] == backend.port) else {
        return Some(("ServicePortError", format!("{place} is not listening on port {}", backend.port)));
    };
    let port_name = port["name"].as_str().unwrap_or_default();
    let slices = server.lookup_all("discovery.k8s.io", "endpointslices", &backend.namespace);
    let mut slices =
        slices.iter().filter(|s| s.meta.label("kubernetes.io/service-name") == Some(&backend.name)).peekable();
    if slices.peek().is_none() {
        return Some(("EndpointsNotFound", format!("cannot find endpointslices for {place}")));
    }
    let leads = |slice: &Arc<Object>| {
        let Ok(slice) = slice.value() else { return false };
        let list = |name: &str| slice[name].as_array().cloned().unwrap_or_default();
        list("endpoints").iter().any(|e| e["conditions"]["ready"] != false)
            && list("ports")
                .iter()
                .any(|p| p["name"].as_str().unwrap_or_default() == port_name && p["port"].is_number())
    };
    if slices.any(leads) {
        return None;
    }
    Some(("MissingEndpoints", format!("endpointslices for {place} have no addresses with port name {port_name:?}")))
}

async fn ask(server: &ApiServer, remote: &Remote) -> Result<(), String> {
    let tls = remote.tls.as_ref().map_err(Clone::clone)?;
    let path = format!("/apis/{}/{}", remote.gv.group, remote.gv.version);
    let answer = tokio::time::timeout(ANSWER_WITHIN, proxy::fetch(server, &remote.backend, tls, &path, &[])).await;
    let url = format!("https://{}:{}{path}", remote.backend.host(), remote.backend.port);
    match answer {
        Err(_) => Err(format!("timed out waiting for {url}")),
        Ok(Err(why)) => Err(format!("failing or missing response from {url}: Get {url:?}: {why}")),
        Ok(Ok(answer)) if answer.code.is_success() => Ok(()),
        Ok(Ok(answer)) => Err(format!(
            "failing or missing response from {0}: bad status from {0}: {1}",
            answer.url,
            answer.code.as_u16()
        )),
    }
}

/// Asks, and fetches what is published when there is an answer.
async fn check(server: &ApiServer, remote: &Remote) -> (Verdict, Arc<Documents>) {
    let attempts = (0..ATTEMPTS).map(|_| ask(server, remote).boxed());
    match select_ok(attempts).map_ok(|(answer, _)| answer).await {
        Ok(()) => (Verdict::passed(), documents::fetch(server, remote).await),
        Err(why) => (Verdict::unavailable("FailedDiscoveryCheck", why), Arc::new(remote.documents.stale())),
    }
}

fn remote_of(server: &ApiServer, spec: &Spec, before: Option<&Arc<Remote>>) -> Option<Arc<Remote>> {
    let backend = spec.backend.clone()?;
    let front_proxy = server.config().front_proxy.as_deref();
    let same = before.filter(|before| before.backend == backend);
    Some(Arc::new(Remote {
        gv: spec.gv.clone(),
        tls: proxy::tls(spec.ca_bundle.as_deref(), spec.insecure, front_proxy),
        backend,
        available: same.is_some_and(|before| before.available),
        documents: same.map_or_else(Default::default, |before| before.documents.clone()),
    }))
}

/// Everything the task remembers.
#[derive(Default)]
pub(super) struct Follower {
    known: BTreeMap<String, Known>,
    generation: u64,
}

impl Follower {
    /// Looks at all APIServices, asks whom it is time to ask, and puts the outcome in force.
    pub(super) async fn look(&mut self, server: &Arc<ApiServer>) {
        let now = Instant::now();
        let objects = server.lookup_all(GROUP, PLURAL, "");
        let mut changed = self.known.len() != objects.len();
        self.known.retain(|name, _| objects.iter().any(|o| *o.meta.name == **name));
        let mut priorities = HashMap::new();
        let mut due = Vec::new();
        for object in &objects {
            let Ok(body) = object.value() else { continue };
            let name = object.meta.name.to_string();
            let spec = Spec::of(&body);
            priorities.insert(spec.gv.clone(), spec.priority);
            let known = self.known.get(&name);
            if known.is_none_or(|known| known.spec != body["spec"]) {
                changed = true;
                let remote = remote_of(server, &spec, known.and_then(|known| known.remote.as_ref()));
                let new =
                    Known { spec: body["spec"].clone(), remote, next_check: now, wait: FIRST_RETRY, obstacle: None };
                self.known.insert(name.clone(), new);
            }
            let Some(known) = self.known.get_mut(&name) else { continue };
            let Some(remote) = known.remote.clone() else { continue };
            let obstacle = obstacle(server, &remote.backend);
            if obstacle != known.obstacle {
                known.obstacle.clone_from(&obstacle);
                known.next_check = now;
                known.wait = FIRST_RETRY;
            }
            if known.next_check <= now && due.len() < MAX_REMOTES {
                due.push((name, remote, obstacle));
            }
        }
        let checks = due.into_iter().map(|(name, remote, obstacle)| async move {
            let (verdict, documents) = match obstacle {
                Some((reason, message)) => (Verdict::unavailable(reason, message), Arc::new(remote.documents.stale())),
                None => check(server, &remote).await,
            };
            report(server, &name, &verdict).await;
            (name, remote, verdict, documents)
        });
        for (name, before, verdict, documents) in join_all(checks).await {
            let Some(known) = self.known.get_mut(&name) else { continue };
            let available = verdict.status == "True";
            known.next_check = Instant::now() + if available { CHECK_EVERY } else { known.wait };
            known.wait = if available { FIRST_RETRY } else { (known.wait * 2).min(CHECK_EVERY) };
            if before.available != available || *before.documents != *documents {
                changed = true;
                known.remote = Some(Arc::new(Remote {
                    gv: before.gv.clone(),
                    backend: before.backend.clone(),
                    tls: before.tls.clone(),
                    available,
                    documents,
                }));
            }
        }
        if changed {
            self.generation += 1;
            let remotes = self.known.values().filter_map(|known| known.remote.clone()).collect();
            server.aggregation().publish(Services::new(self.generation, priorities, remotes));
        }
    }

    fn next_check(&self) -> Option<Instant> {
        self.known.values().filter(|known| known.remote.is_some()).map(|known| known.next_check).min()
    }
}

/// Writes the condition, if it is not what it was.
async fn report(server: &ApiServer, name: &str, verdict: &Verdict) {
    if let Err(status) = write_condition(server, name, verdict).await {
        tracing::warn!(name, %status, "status of an APIService");
    }
}

async fn write_condition(server: &ApiServer, name: &str, verdict: &Verdict) -> Result<(), Status> {
    let says =
        |c: &Value| c["status"] == verdict.status && c["reason"] == verdict.reason && c["message"] == *verdict.message;
    let conditions = |object: &Value| object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let current = server.lookup(GROUP, PLURAL, "", name).map(|o| o.value()).transpose().map_err(Status::internal)?;
    if current.is_none_or(|current| conditions(&current).iter().any(|c| c["type"] == "Available" && says(c))) {
        return Ok(());
    }
    let update = |object: &mut Value| {
        let mut list = conditions(object);
        let mut new = json!({
            "type": "Available", "status": verdict.status, "reason": verdict.reason, "message": verdict.message,
            "lastTransitionTime": clock::now(),
        });
        match list.iter_mut().find(|c| c["type"] == "Available") {
            Some(old) => {
                if old["status"] == new["status"] && old["lastTransitionTime"].is_string() {
                    new["lastTransitionTime"] = old["lastTransitionTime"].clone();
                }
                *old = new;
            }
            None => list.push(new),
        }
        if !object["status"].is_object() {
            object["status"] = json!({});
        }
        object["status"]["conditions"] = list.into();
        Ok(())
    };
    let catalog = server.catalog();
    let served = catalog.find(GROUP, PLURAL).ok_or_else(Status::unknown_path)?;
    let version = served.resource.storage_version();
    let request = Request::new(Verb::Update, served.resource.gvr(&version.name), "", name).subresource("status");
    let caller = loopback();
    match server.change(Target { caller: &caller, served, version, request: &request }, Change::Server(&update)).await {
        Err(status) if !status.is_not_found() => Err(status),
        _ => Ok(()),
    }
}

/// Follows APIServices until `cancel`.
pub async fn run(server: Arc<ApiServer>, cancel: CancellationToken) {
    let catalog = server.catalog();
    let changes = |group: &str, plural: &str| Some(catalog.find(group, plural)?.cache.as_ref()?.changes());
    let (Some(mut own), Some(mut services), Some(mut endpoints)) =
        (changes(GROUP, PLURAL), changes("", "services"), changes("discovery.k8s.io", "endpointslices"))
    else {
        return;
    };
    let mut follower = Follower::default();
    loop {
        for seen in [&mut own, &mut services, &mut endpoints] {
            seen.mark_unchanged();
        }
        follower.look(&server).await;
        let next = follower.next_check();
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = own.changed() => if changed.is_err() { return },
            _ = services.changed(), if next.is_some() => tokio::time::sleep(SETTLE).await,
            _ = endpoints.changed(), if next.is_some() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
    }
}
