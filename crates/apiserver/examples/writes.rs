//! What one write costs: `writes [COUNT] [WORK]…`, each work alone in a server of its own process, without sockets.
//!
//! The bodies are those of an outside client, bytes to be decoded; authorization, admission, the store with its syncs and the
//! caches are the real ones, and nobody watches. Prints processor time for each operation; under a profiler (`valgrind
//! --tool=callgrind`) it shows where that goes. Works: `configmap`, `update`, `pod`, `bind`, `status`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use apiserver::pipeline::Caller;
use apiserver::server::{Config, DirectDial, KubeletConnection};
use apiserver::{ApiServer, User};
use futures::StreamExt;
use meta::{Gvr, Reply, Request, RequestBody, Value, Verb};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// Requests under way at a time.
const CLIENTS: usize = 16;
const WORKS: [&str; 5] = ["configmap", "update", "pod", "bind", "status"];

fn key() -> String {
    use base64::Engine;
    let random = ring::rand::SystemRandom::new();
    let algorithm = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let pair = ring::signature::EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
    let body = base64::engine::general_purpose::STANDARD.encode(pair.as_ref());
    format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")
}

fn config() -> Config {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Config {
        advertise: ([127, 0, 0, 1], 6443).into(),
        service_cidrs: vec!["10.96.0.0/16".parse().expect("a range")],
        node_ports: (30000, 32767),
        issuer: "https://kubernetes.default.svc".into(),
        service_account_key: key(),
        service_accounts: Default::default(),
        authentication: Default::default(),
        authorization: Default::default(),
        kubelet: KubeletConnection { tls: Arc::new(tls), dial: Arc::new(DirectDial) },
        front_proxy: None,
        enabled: Default::default(),
        audit: None,
        settings: Default::default(),
        flags: Default::default(),
    }
}

fn configmap(at: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("cm-{at}")},
           "data": {"seq": format!("s{at}"), "payload": "abcdefgh".repeat(128)}})
}

/// Two containers with all that a usual one has: 2.7 KB.
fn pod(at: usize) -> Value {
    let container = |name: &str, port: u16| {
        let env: Vec<Value> = (0..8)
            .map(|e| json!({"name": format!("SETTING_{e}"), "value": format!("https://service-{e}.example.internal:8443/{name}")}))
            .collect();
        json!({"name": name, "image": format!("registry.example.internal/team/{name}:1.2.3"),
               "args": ["--listen", format!(":{port}"), "--log-level=info"],
               "env": env, "ports": [{"name": "http", "containerPort": port}],
               "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "500m", "memory": "256Mi"}},
               "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10},
               "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 5},
               "volumeMounts": [{"name": "config", "mountPath": "/etc/app"}, {"name": "tmp", "mountPath": "/tmp"}]})
    };
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{at:06}"),
            "labels": {"app": "web", "tier": "backend", "pod-template-hash": "5d4f8c7b9f"},
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"}},
        "spec": {"terminationGracePeriodSeconds": 30,
            "containers": [container("web", 8080), container("sidecar", 9090)],
            "volumes": [{"name": "config", "configMap": {"name": "app-config", "optional": true}}, {"name": "tmp", "emptyDir": {}}]}})
}

fn binding(at: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": format!("pod-{at:06}"), "namespace": "default"},
           "target": {"kind": "Node", "name": format!("node-{}", at % 100)}})
}

/// What a kubelet says of a pod that runs.
fn status(at: usize) -> Value {
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let of = |name: &str| {
        json!({"name": name, "image": format!("registry.example.internal/team/{name}:1.2.3"), "imageID": "sha256:0123",
               "containerID": "containerd://0123456789abcdef", "ready": true, "started": true, "restartCount": 0,
               "lastState": {}, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}})
    };
    let conditions = ["Initialized", "Ready", "ContainersReady"].map(condition);
    json!({"status": {"phase": "Running", "podIP": format!("10.1.{}.{}", at / 250, at % 250), "hostIP": "10.0.0.1",
        "startTime": "2026-01-01T00:00:00Z", "containerStatuses": [of("web"), of("sidecar")],
        "conditions": conditions}})
}

struct Bench {
    server: Arc<ApiServer>,
    user: Arc<User>,
}

impl Bench {
    async fn call(&self, request: Request) -> Reply {
        let caller = Caller::new(self.user.clone(), "writes/1.0");
        self.server.call(&caller, request).await.unwrap_or_else(|status| panic!("{}", status.message))
    }

    fn request(&self, work: &str, at: usize) -> Request {
        const JSON: &str = "application/json";
        let of = |verb, plural: &str, name: &str| Request::new(verb, Gvr::new("", "v1", plural), "default", name);
        let pod_name = format!("pod-{at:06}");
        match work {
            "configmap" => with(of(Verb::Create, "configmaps", ""), JSON, &configmap(at)),
            "update" => {
                let name = format!("cm-{at}");
                let held = self.server.lookup("", "configmaps", "default", &name).expect("created before");
                let mut body = held.value().expect("a body");
                body["data"]["seq"] = format!("t{at}").into();
                with(of(Verb::Update, "configmaps", &name), JSON, &body)
            }
            "pod" => with(of(Verb::Create, "pods", ""), JSON, &pod(at)),
            "bind" => with(of(Verb::Create, "pods", &pod_name).subresource("binding"), JSON, &binding(at)),
            "status" => {
                let request = of(Verb::Patch, "pods", &pod_name).subresource("status");
                with(request, "application/strategic-merge-patch+json", &status(at))
            }
            other => panic!("no work {other:?}"),
        }
    }

    async fn all(&self, requests: Vec<Request>) {
        let all = futures::stream::iter(requests);
        all.for_each_concurrent(CLIENTS, |request| async { drop(self.call(request).await) }).await;
        self.server.await_newest().await.expect("caches");
    }
}

fn with(mut request: Request, content_type: &str, body: &Value) -> Request {
    request.body = RequestBody::Bytes { content_type: content_type.into(), bytes: body.to_string().into() };
    request
}

/// This process's processor time.
fn used() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name in parentheses come the state and ten numbers, then utime and stime, in hundredths of a second.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    Duration::from_millis(10 * fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>())
}

fn main() {
    let mut arguments = std::env::args().skip(1).peekable();
    let count = arguments.next_if(|a| a.parse::<usize>().is_ok()).and_then(|a| a.parse().ok()).unwrap_or(5000);
    let mut works: Vec<String> = arguments.filter(|a| !a.starts_with('-')).collect();
    if works.is_empty() {
        works = WORKS.map(Into::into).into();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let dir = tempfile::tempdir().expect("a directory");
        let store = store::embedded::open(dir.path(), store::embedded::Options::default()).expect("a store");
        let cancel = CancellationToken::new();
        let server = ApiServer::start(config(), Arc::new(store), cancel.clone()).await.expect("a server");
        let bench = Bench { server, user: Arc::new(User::new("admin", &["system:masters", "system:authenticated"])) };
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        let request = Request::new(Verb::Create, Gvr::new("", "v1", "serviceaccounts"), "default", "");
        bench.call(with(request, "application/json", &account)).await;
        for work in &works {
            let requests = (0..count).map(|at| bench.request(work, at)).collect();
            let (wall, before) = (Instant::now(), used());
            bench.all(requests).await;
            let (wall, cpu) = (wall.elapsed(), used() - before);
            println!(
                "{work:10} {:8.1} us of CPU, {:8.0}/s",
                cpu.as_secs_f64() * 1e6 / count as f64,
                count as f64 / wall.as_secs_f64()
            );
        }
        cancel.cancel();
    });
}
