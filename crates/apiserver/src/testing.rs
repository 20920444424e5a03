//! A whole server over a store in a temporary directory, for tests that are tables of requests.

use std::sync::Arc;

use meta::{Gvr, Reply, Request, Status, Value, Verb};
use tokio_util::sync::CancellationToken;

use crate::authn::User;
use crate::pipeline::Caller;
use crate::server::{ApiServer, Config, DirectDial, KubeletConnection};

pub struct Fixture {
    pub server: Arc<ApiServer>,
    cancel: CancellationToken,
    _dir: Option<tempfile::TempDir>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn key() -> String {
    use base64::Engine;
    let pair = ring::signature::EcdsaKeyPair::generate_pkcs8(
        &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        &ring::rand::SystemRandom::new(),
    );
    let body = base64::engine::general_purpose::STANDARD.encode(pair.unwrap().as_ref());
    format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")
}

/// `plural`, `group/version/plural`, each optionally followed by `:subresource`.
fn parse(resource: &str) -> (Gvr, &str) {
    let (resource, sub) = resource.split_once(':').unwrap_or((resource, ""));
    let gvr = match resource.split('/').collect::<Vec<_>>()[..] {
        [group, version, plural] => Gvr::new(group, version, plural),
        _ => Gvr::new("", "v1", resource),
    };
    (gvr, sub)
}

impl Fixture {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(store::embedded::open(dir.path(), store::embedded::Options::default()).unwrap());
        Self::over(store, Some(dir)).await
    }

    /// Whose requests are told to an audit log.
    pub async fn audited(dir: tempfile::TempDir, audit: Arc<crate::audit::Audit>) -> Self {
        let store = Arc::new(store::embedded::open(dir.path(), store::embedded::Options::default()).unwrap());
        Self::with(store, Some(dir), Some(audit)).await
    }

    /// Over a store, in a directory of the fixture's own if it has one.
    pub async fn over(store: Arc<dyn store::Backend>, dir: Option<tempfile::TempDir>) -> Self {
        Self::with(store, dir, None).await
    }

    async fn with(
        store: Arc<dyn store::Backend>,
        dir: Option<tempfile::TempDir>,
        audit: Option<Arc<crate::audit::Audit>>,
    ) -> Self {
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let tls = tls
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let config = Config {
            advertise: ([127, 0, 0, 1], 6443).into(),
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd96::/112".parse().unwrap()],
            node_ports: (30000, 32767),
            issuer: "https://kubernetes.default.svc".into(),
            service_account_key: key(),
            service_accounts: Default::default(),
            kubelet: KubeletConnection { tls: Arc::new(tls), dial: Arc::new(DirectDial) },
            front_proxy: None,
            authentication: Default::default(),
            authorization: Default::default(),
            enabled: Default::default(),
            audit,
            settings: Default::default(),
            flags: Default::default(),
        };
        let cancel = CancellationToken::new();
        let server = ApiServer::start(config, store, cancel.clone()).await.unwrap();
        Self { server, cancel, _dir: dir }
    }

    /// A request as a user; the object answered, or the refusal. Caches are current afterwards.
    pub async fn ask(
        &self,
        user: &User,
        verb: Verb,
        resource: &str,
        namespace: &str,
        name: &str,
        body: Value,
    ) -> Result<Value, Status> {
        self.ask_warned(user, verb, resource, namespace, name, body).await.0
    }

    pub async fn ask_warned(
        &self,
        user: &User,
        verb: Verb,
        resource: &str,
        namespace: &str,
        name: &str,
        body: Value,
    ) -> (Result<Value, Status>, Vec<String>) {
        let (gvr, sub) = parse(resource);
        let mut request = Request::new(verb, gvr, namespace, name).subresource(sub);
        if !body.is_null() {
            request = request.json(body);
        }
        let caller = Caller::new(Arc::new(user.clone()), "test");
        let reply = self.server.call(&caller, request).await.map(|reply| match reply {
            Reply::Object { object, .. } => object.value().unwrap(),
            Reply::Value { value, .. } => value,
            Reply::List(list) => list.items.iter().map(|item| item.value().unwrap()).collect(),
            Reply::Watch(_) => Value::Null,
        });
        self.server.await_newest().await.unwrap();
        (reply, caller.take_warnings())
    }

    /// Creates as the cluster's administrator.
    pub async fn create(&self, resource: &str, namespace: &str, body: Value) -> Result<Value, Status> {
        self.ask(&admin(), Verb::Create, resource, namespace, "", body).await
    }

    /// A namespace with its default service account.
    pub async fn namespace(&self, name: &str, labels: Value) {
        let kind = |kind: &str, name: &str, labels: Value| serde_json::json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "labels": labels}});
        self.create("namespaces", "", kind("Namespace", name, labels)).await.unwrap();
        self.create("serviceaccounts", name, kind("ServiceAccount", "default", Value::Null)).await.unwrap();
    }
}

pub fn admin() -> User {
    User::new("admin", &["system:masters", "system:authenticated"])
}

pub fn node(name: &str) -> User {
    User::new(&format!("system:node:{name}"), &["system:nodes", "system:authenticated"])
}

/// A pod with one container; `extra` is merged over it.
pub fn pod(name: &str, extra: Value) -> Value {
    let mut pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"automountServiceAccountToken": false, "containers": [{"name": "c", "image": "i"}]}});
    merge(&mut pod, extra);
    pod
}

pub fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// `ok`, or the refusal's code and message.
pub fn said(result: &Result<Value, Status>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(status) => format!("{} {}", status.code, status.message),
    }
}
