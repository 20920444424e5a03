//! A webhook for scenarios to configure: it does what the path it is called under says, and remembers what it was asked.
//!
//! `$hooks/JOURNAL/WHAT/…` in a scenario is such a path. Admission: `allow`, `deny`, `warn`, `label/KEY/VALUE`,
//! `count` (an annotation that says how often it was asked about this object), `untyped` (a patch of no type), `uid` (the answer
//! to something else), `garbage`, `broken` (an HTTP error), `silent` (no answer). Conversion: `convert` between `v1`, whose
//! spec has `host` and `port`, and any other version, whose spec has both in one `address`; `refuse`, `lose` (one object
//! too few), `rename`. Reviews of access: `allow`, `deny`, anything else has no opinion. Reviews of tokens: `user/NAME` for
//! the token NAME, which names NAME in the group `remote`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nauplius::pki::{Pki, Purpose};
use serde_json::{Value, json};

type Journals = Mutex<BTreeMap<String, Vec<Value>>>;

/// The webhook's server, until dropped.
pub struct Hooks {
    /// `https://ADDRESS:PORT`.
    pub url: String,
    /// Who signed its certificate, as a `caBundle` has it.
    pub bundle: String,
    journals: Arc<Journals>,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Hooks {
    pub async fn start() -> Result<Self> {
        nauplius::tls::install_provider();
        let dir = tempfile::tempdir()?;
        let pki = Pki::open(dir.path())?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let pair = pki.pair("hooks", "hooks", &[], &Purpose::Server { names: &[], addresses: &[address.ip()] })?;
        let tls = tokio_rustls::TlsAcceptor::from(nauplius::tls::server(&pair, pki.ca_pem())?);
        let journals = Arc::new(Journals::default());
        let task = tokio::spawn(accept(listener, tls, journals.clone()));
        let (url, bundle) = (format!("https://{address}"), STANDARD.encode(pki.ca_pem()));
        Ok(Self { url, bundle, journals, task, _dir: dir })
    }

    /// What scenarios call it by.
    pub fn words(&self) -> [(&str, &str); 2] {
        [("hooks", &self.url), ("bundle", &self.bundle)]
    }

    /// A kubeconfig whose server is this one, under a path.
    pub fn kubeconfig(&self, path: &str) -> String {
        let server = format!("{}{path}", self.url);
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "hooks",
            "clusters": [{"name": "hooks", "cluster": {"server": server, "certificate-authority-data": self.bundle}}],
            "users": [{"name": "hooks", "user": {}}],
            "contexts": [{"name": "hooks", "context": {"cluster": "hooks", "user": "hooks"}}],
        })
        .to_string()
    }

    /// What was asked since the last look.
    pub fn asked(&self, journal: &str) -> Vec<Value> {
        self.journals.lock().map(|mut all| all.remove(journal).unwrap_or_default()).unwrap_or_default()
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: tokio::net::TcpListener, tls: tokio_rustls::TlsAcceptor, journals: Arc<Journals>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, journals) = (tls.clone(), journals.clone());
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = hyper::service::service_fn(move |request| {
                let journals = journals.clone();
                async move { answer(&journals, request).await }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(journals: &Journals, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
    let path = request.uri().path().to_string();
    let mut words = path.trim_start_matches('/').splitn(3, '/');
    let (journal, what, rest) =
        (words.next().unwrap_or_default(), words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let review: Value = serde_json::from_slice(&request.into_body().collect().await?.to_bytes())?;
    if let Ok(mut all) = journals.lock() {
        let asked = if review["request"].is_object() { &review["request"] } else { &review["spec"] };
        all.entry(journal.into()).or_default().push(asked.clone());
    }
    let (code, media, body) = match what {
        "silent" => return std::future::pending().await,
        "broken" => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "out of order".into()),
        "garbage" => (StatusCode::OK, "application/json", "no review at all".into()),
        _ => (StatusCode::OK, "application/json", reviewed(&review, what, rest)?.to_string()),
    };
    Ok(Response::builder().status(code).header("content-type", media).body(Full::new(body.into()))?)
}

/// The review, answered.
fn reviewed(review: &Value, what: &str, rest: &str) -> Result<Value> {
    let request = &review["request"];
    let status = match review["kind"].as_str() {
        Some("SubjectAccessReview") => {
            json!({"allowed": what == "allow", "denied": what == "deny", "reason": format!("the hook says {what}")})
        }
        Some("TokenReview") if review["spec"]["token"] == rest => {
            json!({"authenticated": true, "user": {"username": rest, "groups": ["remote"]}})
        }
        Some("TokenReview") => json!({"authenticated": false}),
        _ => Value::Null,
    };
    if !status.is_null() {
        return Ok(json!({"apiVersion": review["apiVersion"], "kind": review["kind"], "status": status}));
    }
    let answer = match review["kind"].as_str() {
        Some("ConversionReview") => converted(request, what),
        _ => admitted(&request["object"], what, rest)?,
    };
    let mut response = json!({"uid": if what == "uid" { json!("another") } else { request["uid"].clone() }});
    for (key, value) in answer.as_object().context("an answer")? {
        response[key] = value.clone();
    }
    Ok(json!({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}))
}

/// A patch that sets one key of a map in the metadata.
fn set(object: &Value, map: &str, key: &str, value: &str) -> Value {
    let patch = match object["metadata"][map].is_object() {
        true => json!([{"op": "add", "path": format!("/metadata/{map}/{key}"), "value": value}]),
        false => json!([{"op": "add", "path": format!("/metadata/{map}"), "value": {key: value}}]),
    };
    json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string())})
}

fn admitted(object: &Value, what: &str, rest: &str) -> Result<Value> {
    Ok(match what {
        "deny" => json!({"allowed": false, "status": {"code": 403, "reason": "Forbidden", "message": "not like this"}}),
        "warn" => json!({"allowed": true, "warnings": ["mind the gap"], "auditAnnotations": {"key": "value"}}),
        "label" => {
            let (key, value) = rest.split_once('/').context("label/KEY/VALUE")?;
            set(object, "labels", key, value)
        }
        "count" => {
            let before = object["metadata"]["annotations"]["asked"].as_str().and_then(|n| n.parse().ok()).unwrap_or(0);
            set(object, "annotations", "asked", &(before + 1).to_string())
        }
        "untyped" => json!({"allowed": true, "patch": STANDARD.encode("[]")}),
        _ => json!({"allowed": true}),
    })
}

fn converted(request: &Value, what: &str) -> Value {
    if what == "refuse" {
        return json!({"result": {"status": "Failed", "message": "not today"}});
    }
    let mut objects: Vec<Value> = request["objects"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|o| convert(o, &request["desiredAPIVersion"]))
        .collect();
    match what {
        "lose" => drop(objects.pop()),
        "rename" => objects.iter_mut().for_each(|o| o["metadata"]["name"] = "other".into()),
        _ => {}
    }
    json!({"result": {"status": "Success"}, "convertedObjects": objects})
}

fn convert(object: &Value, version: &Value) -> Value {
    let mut out = object.clone();
    out["apiVersion"] = version.clone();
    let Some(Value::Object(spec)) = out.get_mut("spec") else { return out };
    if version.as_str().is_some_and(|v| v.ends_with("/v1")) {
        if let Some(Value::String(address)) = spec.remove("address") {
            let (host, port) = address.split_once(':').unwrap_or((&address, ""));
            spec.insert("host".into(), host.into());
            spec.insert("port".into(), port.into());
        }
    } else if let (Some(Value::String(host)), Some(Value::String(port))) = (spec.remove("host"), spec.remove("port")) {
        spec.insert("address".into(), format!("{host}:{port}").into());
    }
    out
}
