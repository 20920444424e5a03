//! What a component shows on its own port: `/healthz`, `/livez` and `/readyz` for whoever keeps the process alive; single
//! checks, `/metrics`, `/configz`, `/statusz` and `/flagz` for whom the API server lets read them.

mod pages;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use client::health::ASKERS;
use client::{Client, Gvr, Status};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use resources::gates::Gates;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections at a time: a few probes and scrapers.
const MAX_CONNECTIONS: usize = 32;
/// A connection that lasts longer is let go.
const CONNECTION_TIME: Duration = Duration::from_secs(60);

/// The flags by which a component shows itself.
#[derive(clap::Args, Clone)]
pub struct Port {
    /// Where to serve /healthz, /metrics, /configz, /statusz and /flagz.
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    /// Its port; 0 serves nothing [default: as upstream's component has it].
    #[arg(long)]
    secure_port: Option<u16>,
    /// Certificate to serve with, and its key; one made for the occasion without.
    #[arg(long, requires = "tls_private_key_file")]
    tls_cert_file: Option<PathBuf>,
    #[arg(long, requires = "tls_cert_file")]
    tls_private_key_file: Option<PathBuf>,
    /// The oldest TLS spoken: VersionTLS12 or VersionTLS13; nothing older is.
    #[arg(long, default_value = "VersionTLS12", value_parser = ["VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"])]
    tls_min_version: String,
    /// Paths that anybody may read.
    #[arg(long, value_delimiter = ',', default_value = "/healthz,/readyz,/livez")]
    authorization_always_allow_paths: Vec<String>,
    #[command(flatten)]
    taken: Taken,
}

/// Flags of upstream's that are taken so that its manifests start us, and that change nothing: what they set up is
/// otherwise here: callers are judged by the API server.
#[derive(clap::Args, Clone, Default)]
struct Taken {
    #[arg(long, hide = true)]
    authentication_kubeconfig: Option<String>,
    #[arg(long, hide = true)]
    authorization_kubeconfig: Option<String>,
    #[arg(long, hide = true)]
    authentication_tolerate_lookup_failure: Option<String>,
    #[arg(long, hide = true)]
    client_ca_file: Option<String>,
    #[arg(long, hide = true)]
    requestheader_client_ca_file: Option<String>,
    #[arg(long, hide = true)]
    cert_dir: Option<String>,
    #[arg(long, hide = true)]
    kube_api_qps: Option<String>,
    #[arg(long, hide = true)]
    kube_api_burst: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    profiling: Option<String>,
    #[arg(long, hide = true)]
    allow_metric_labels: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    authentication_skip_lookup: Option<String>,
    #[arg(long, hide = true)]
    authentication_token_webhook_cache_ttl: Option<String>,
    #[arg(long, hide = true)]
    authorization_webhook_cache_authorized_ttl: Option<String>,
    #[arg(long, hide = true)]
    authorization_webhook_cache_unauthorized_ttl: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    contention_profiling: Option<String>,
    #[arg(long, hide = true)]
    disabled_metrics: Option<String>,
    #[arg(long, hide = true)]
    http2_max_streams_per_connection: Option<String>,
    #[arg(long, hide = true)]
    log_flush_frequency: Option<String>,
    #[arg(long, hide = true)]
    log_json_info_buffer_size: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    log_json_split_stream: Option<String>,
    #[arg(long, hide = true)]
    logging_format: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    permit_address_sharing: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    permit_port_sharing: Option<String>,
    #[arg(long, hide = true)]
    requestheader_allowed_names: Option<String>,
    #[arg(long, hide = true)]
    requestheader_extra_headers_prefix: Option<String>,
    #[arg(long, hide = true)]
    requestheader_group_headers: Option<String>,
    #[arg(long, hide = true)]
    requestheader_uid_headers: Option<String>,
    #[arg(long, hide = true)]
    requestheader_username_headers: Option<String>,
    #[arg(long, hide = true)]
    show_hidden_metrics_for_version: Option<String>,
    #[arg(long, hide = true)]
    tls_cipher_suites: Option<String>,
    #[arg(long, hide = true)]
    vmodule: Option<String>,
    #[arg(short, long, hide = true)]
    v: Option<String>,
}

impl Port {
    /// Shows a component until cancelled, where it is asked for.
    pub async fn serve(&self, usual: u16, about: About, cancel: &CancellationToken) -> Result<()> {
        let port = self.secure_port.unwrap_or(usual);
        if port == 0 {
            return Ok(());
        }
        let about = Arc::new(Shown { about, open: self.authorization_always_allow_paths.clone() });
        let newest_only = self.tls_min_version == "VersionTLS13";
        let own = self.tls_cert_file.as_deref().zip(self.tls_private_key_file.as_deref());
        let listener = super::listen((self.bind_address, port).into()).await?;
        tokio::spawn(serve(listener, tls(own, newest_only)?, about, cancel.clone()));
        Ok(())
    }
}

/// The flags this process was started with.
static FLAGS: OnceLock<BTreeMap<String, Vec<String>>> = OnceLock::new();

/// Remembers the flags of the subcommand that runs, to show them.
pub fn note_flags(command: &clap::Command, matches: &clap::ArgMatches) {
    let Some((name, matches)) = matches.subcommand() else { return };
    let arguments = command.find_subcommand(name).into_iter().flat_map(clap::Command::get_arguments);
    let flags = arguments.filter_map(|argument| {
        let values = matches.try_get_raw(argument.get_id().as_str()).ok().flatten()?;
        Some((argument.get_long()?.to_string(), values.map(|value| value.to_string_lossy().into_owned()).collect()))
    });
    // There is one command a process.
    let _ = FLAGS.set(flags.collect());
}

/// The flags of a group that this process was given, for another process of this program.
pub fn said_of<A: clap::Args>() -> Vec<std::ffi::OsString> {
    let group = A::augment_args(clap::Command::new("group"));
    let names = group.get_arguments().filter_map(clap::Arg::get_long);
    let said = names.flat_map(|name| flags().get(name).into_iter().flatten().map(move |value| (name, value)));
    said.map(|(name, value)| format!("--{name}={value}").into()).collect()
}

fn flags() -> &'static BTreeMap<String, Vec<String>> {
    FLAGS.get_or_init(BTreeMap::new)
}

/// What to serve with: the files named, or a certificate nobody needs to trust, as upstream makes one.
fn tls(files: Option<(&Path, &Path)>, newest_only: bool) -> Result<Arc<ServerConfig>> {
    let (certificate, key) = match files {
        Some((certificate, key)) => {
            let read = |p: &Path| std::fs::read_to_string(p).with_context(|| format!("cannot read {}", p.display()));
            (read(certificate)?, read(key)?)
        }
        None => {
            let made = rcgen::generate_simple_self_signed(["localhost".to_string(), "127.0.0.1".to_string()])?;
            (made.cert.pem(), made.signing_key.serialize_pem())
        }
    };
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    let versions = if newest_only { &[&rustls::version::TLS13][..] } else { rustls::ALL_VERSIONS };
    Ok(Arc::new(
        ServerConfig::builder_with_protocol_versions(versions).with_no_client_auth().with_single_cert(chain, key)?,
    ))
}

/// Serves until cancelled.
async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, about: Arc<Shown>, cancel: CancellationToken) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (Ok((stream, _)), Ok(place)) = (accepted, places.clone().try_acquire_owned()) else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (acceptor, about) = (acceptor.clone(), about.clone());
        tokio::spawn(async move {
            let _place = place;
            let connection = async {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let answer = |request: Request<Incoming>| {
                    let about = about.clone();
                    async move { Ok::<_, Infallible>(answer(&about, &request).await) }
                };
                let service = hyper::service::service_fn(answer);
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            };
            let _ = tokio::time::timeout(CONNECTION_TIME, connection).await;
        });
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// What is wrong with something, if anything is.
type Fault = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// A health check beside `ping`, which answering at all passes.
pub struct Check {
    pub name: &'static str,
    /// Who ask it: of [`client::health::ASKERS`].
    pub askers: &'static [&'static str],
    pub fault: Fault,
}

impl Check {
    /// That a leader renews its lease.
    pub fn leadership(lease: String, askers: &'static [&'static str]) -> Self {
        Self { name: "leaderElection", askers, fault: Box::new(move || client::election::fault(&lease)) }
    }

    /// That the process means to stay.
    pub fn staying(cancel: CancellationToken) -> Self {
        let fault = move || cancel.is_cancelled().then(|| "process is shutting down".into());
        Self { name: "shutdown", askers: &["readyz"], fault: Box::new(fault) }
    }
}

/// A page in the Prometheus text format beside `/metrics`.
pub struct Page {
    pub path: &'static str,
    pub text: Box<dyn Fn() -> String + Send + Sync>,
}

/// What a component tells of itself.
pub struct About {
    /// As upstream calls it.
    pub component: &'static str,
    /// The configuration in effect, under the name `/configz` has it by.
    pub configuration: (&'static str, Value),
    /// Its parts, and which are well.
    pub parts: fn() -> Vec<(&'static str, bool)>,
    /// Judges who may read what is not for everybody.
    pub client: Client,
    pub began: Instant,
    pub gates: Gates,
    pub checks: Vec<Check>,
    pub pages: Vec<Page>,
}

impl About {
    /// Checks of one asker: their names, and what is wrong.
    fn outcomes(&self, asker: &str) -> impl Iterator<Item = (&'static str, Option<String>)> {
        let own = self.checks.iter().filter(move |c| c.askers.contains(&asker)).map(|c| (c.name, (c.fault)()));
        let parts = (self.parts)().into_iter().map(|(name, well)| (name, (!well).then(|| "it has ended".to_string())));
        std::iter::once(("ping", None)).chain(own).chain(parts)
    }

    /// Health, if the path asks for it.
    fn health(&self, path: &str, query: &str) -> Option<Response<Full<Bytes>>> {
        let (asker, check) = path.strip_prefix('/')?.split_once('/').unwrap_or((path.get(1..)?, ""));
        let asker = ASKERS.into_iter().find(|known| *known == asker)?;
        let said = if check.is_empty() {
            let query: Vec<(String, String)> = query
                .split('&')
                .map(|p| p.split_once('=').unwrap_or((p, "")))
                .map(|(k, v)| (k.into(), v.into()))
                .collect();
            client::health::told(asker, &self.outcomes(asker).collect::<Vec<_>>(), &query)
        } else {
            client::health::alone(self.outcomes(asker).find(|(name, _)| *name == check)?.1)
        };
        Some(match said {
            Ok(said) => text(StatusCode::OK, said),
            Err(said) => text(StatusCode::INTERNAL_SERVER_ERROR, said),
        })
    }
}

/// What is shown, and which of it to everybody.
struct Shown {
    about: About,
    open: Vec<String>,
}

impl Shown {
    /// Whether a path is one of those, or below one that ends in `*`.
    fn is_open(&self, path: &str) -> bool {
        self.open.iter().any(|open| match open.strip_suffix('*') {
            Some(above) => path.starts_with(above),
            None => path == open,
        })
    }
}

async fn answer(shown: &Shown, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (about, path) = (&shown.about, request.uri().path());
    let of = |name: header::HeaderName| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let health = about.health(path, request.uri().query().unwrap_or_default());
    let page = about.pages.iter().find(|p| p.path == path);
    if health.is_none() && page.is_none() && !pages::PATHS.contains(&path) {
        return text(StatusCode::NOT_FOUND, "404 page not found\n");
    }
    if !shown.is_open(path) {
        let Some(token) = of(header::AUTHORIZATION).strip_prefix("Bearer ") else {
            return text(StatusCode::UNAUTHORIZED, "Unauthorized\n");
        };
        match may_read(&about.client, token, path).await {
            Ok(true) => {}
            Ok(false) => return text(StatusCode::FORBIDDEN, "Forbidden\n"),
            Err(status) => return text(StatusCode::INTERNAL_SERVER_ERROR, status.message),
        }
    }
    if let Some(health) = health {
        return health;
    }
    if let Some(page) = page {
        return text(StatusCode::OK, (page.text)());
    }
    let told = match path {
        "/metrics" => {
            let own = pages::build_info() + &pages::features(&about.gates) + &client::process::text();
            return text(StatusCode::OK, client::exposition::text() + &own);
        }
        "/metrics/slis" => return text(StatusCode::OK, client::health::slis()),
        "/configz" => {
            let (name, configuration) = &about.configuration;
            pages::Told::Json(json!({*name: configuration}))
        }
        "/statusz" => {
            let more: Vec<&str> = about.pages.iter().map(|p| p.path).collect();
            pages::statusz(about.component, &more, of(header::ACCEPT), about.began.elapsed(), jiff::Timestamp::now())
        }
        _ => {
            let shown = flags().iter().map(|(name, values)| (name.clone(), values.join(","))).collect();
            pages::flagz(about.component, of(header::ACCEPT), &shown)
        }
    };
    match told {
        pages::Told::Text(said) => text(StatusCode::OK, said),
        pages::Told::Unacceptable => text(StatusCode::NOT_ACCEPTABLE, pages::ACCEPTED),
        pages::Told::Json(value) => {
            let mut response = text(StatusCode::OK, value.to_string());
            response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
            response
        }
    }
}

/// Asks the API server who a token is for, and whether that one may read a path.
async fn may_read(client: &Client, token: &str, path: &str) -> Result<bool, Status> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let reviews = client.dynamic(Gvr::new("authentication.k8s.io", "v1", "tokenreviews"));
    let answer = reviews.create(review).await?.value().map_err(Status::internal)?;
    if answer["status"]["authenticated"] != true {
        return Ok(false);
    }
    let user = &answer["status"]["user"];
    let access = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {
            "user": user["username"], "uid": user["uid"], "groups": user["groups"], "extra": user["extra"],
            "nonResourceAttributes": {"path": path, "verb": "get"},
        },
    });
    let reviews = client.dynamic(Gvr::new("authorization.k8s.io", "v1", "subjectaccessreviews"));
    let answer = reviews.create(access).await?.value().map_err(Status::internal)?;
    Ok(answer["status"]["allowed"] == true)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A server that nobody asks.
    struct Nobody;

    #[async_trait::async_trait]
    impl client::Transport for Nobody {
        async fn call(&self, _: meta::Request) -> Result<meta::Reply, Status> {
            Err(Status::internal("nobody is there"))
        }

        async fn get_path(&self, _: &str) -> Result<Bytes, Status> {
            Err(Status::internal("nobody is there"))
        }
    }

    #[test]
    fn who_is_not_in_sync_is_alive_and_not_ready() {
        let (synced, cancel) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
        let seen = synced.clone();
        let sync = move || (!seen.load(Ordering::Acquire)).then(|| "handlers are not fully synchronized".into());
        let about = About {
            component: "kube-scheduler",
            configuration: ("componentconfig", Value::Null),
            client: Client::new(Nobody),
            began: Instant::now(),
            parts: || vec![("a-part", true)],
            gates: Gates::default(),
            checks: vec![
                Check::leadership("nobody's".into(), &["healthz", "readyz"]),
                Check::staying(cancel.clone()),
                Check { name: "sched-handler-sync", askers: &["readyz"], fault: Box::new(sync) },
            ],
            pages: Vec::new(),
        };
        let code = |path: &str, query: &str| about.health(path, query).map_or(404, |r| r.status().as_u16());
        for (path, before, after) in [
            ("/healthz", 200, 200),
            ("/livez", 200, 200),
            ("/readyz", 500, 200),
            ("/readyz/sched-handler-sync", 500, 200),
            ("/readyz/ping", 200, 200),
            ("/readyz/a-part", 200, 200),
            ("/readyz/leaderElection", 200, 200),
            ("/livez/leaderElection", 404, 404),
            ("/metrics", 404, 404),
        ] {
            synced.store(false, Ordering::Release);
            assert_eq!(code(path, ""), before, "{path}");
            synced.store(true, Ordering::Release);
            assert_eq!(code(path, ""), after, "{path}");
        }
        cancel.cancel();
        assert_eq!((code("/readyz", ""), code("/readyz", "exclude=shutdown"), code("/livez", "")), (500, 200, 200));
    }
}
