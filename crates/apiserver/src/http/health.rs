//! `/healthz`, `/livez`, `/readyz`: single checks, and all of them together, as upstream words them.
//!
//! What is asked is counted for `/metrics/slis`. Why a check fails is told only below its own path, which takes a right of
//! its own.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::Body;
use super::paths::with_type;
use crate::server::ApiServer;

/// How long the store may take to say that it is there.
const STORE_WITHIN: Duration = Duration::from_secs(2);

/// What a check looks at.
#[derive(Clone, Copy, PartialEq)]
enum Check {
    /// Answering at all is the proof.
    Answering,
    Store,
    /// Whether what must be there at start is there.
    Started,
    /// Whether this server means to stay.
    Staying,
}

/// Checks in upstream's order: name, what it looks at, and whether readiness alone asks.
const CHECKS: &[(&str, Check, bool)] = &[
    ("ping", Check::Answering, false),
    ("log", Check::Answering, false),
    ("etcd", Check::Store, false),
    ("etcd-readiness", Check::Store, true),
    ("informer-sync", Check::Started, true),
    ("poststarthook/start-apiserver-admission-initializer", Check::Started, false),
    ("poststarthook/generic-apiserver-start-informers", Check::Started, false),
    ("poststarthook/storage-object-count-tracker-hook", Check::Started, false),
    ("poststarthook/start-apiextensions-informers", Check::Started, false),
    ("poststarthook/start-apiextensions-controllers", Check::Started, false),
    ("poststarthook/crd-informer-synced", Check::Started, false),
    ("poststarthook/start-system-namespaces-controller", Check::Started, false),
    ("poststarthook/start-cluster-authentication-info-controller", Check::Started, false),
    ("poststarthook/rbac/bootstrap-roles", Check::Started, false),
    ("poststarthook/scheduling/bootstrap-system-priority-classes", Check::Started, false),
    ("poststarthook/start-kube-aggregator-informers", Check::Started, false),
    ("poststarthook/apiservice-registration-controller", Check::Started, false),
    ("poststarthook/apiservice-status-remote-available-controller", Check::Started, false),
    ("poststarthook/kube-apiserver-autoregistration", Check::Started, false),
    ("autoregister-completion", Check::Started, false),
    ("poststarthook/apiservice-openapi-controller", Check::Started, false),
    ("poststarthook/apiservice-openapiv3-controller", Check::Started, false),
    ("shutdown", Check::Staying, true),
];

/// Outcomes by check and by who asks: how often well, how often not, and whether the last was well.
type Seen = BTreeMap<(&'static str, &'static str), (u64, u64, bool)>;

static SEEN: LazyLock<Mutex<Seen>> = LazyLock::new(Mutex::default);

/// The three who ask.
const ASKERS: [&str; 3] = ["healthz", "livez", "readyz"];

fn checks(asker: &str) -> impl Iterator<Item = (&'static str, Check)> {
    let ready = asker == "readyz";
    CHECKS.iter().filter(move |(.., only_ready)| ready || !only_ready).map(|(name, check, _)| (*name, *check))
}

/// Every path answered here.
pub fn paths() -> impl Iterator<Item = String> {
    let below = |asker: &'static str| checks(asker).map(move |(name, _)| format!("/{asker}/{name}"));
    ASKERS.into_iter().flat_map(move |asker| std::iter::once(format!("/{asker}")).chain(below(asker)))
}

/// What is wrong, if anything is.
async fn fault(server: &ApiServer, check: Check, ending: bool) -> Option<String> {
    match check {
        Check::Answering => None,
        Check::Store => match tokio::time::timeout(STORE_WITHIN, server.store().current_revision()).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("context deadline exceeded".into()),
        },
        Check::Started => (!server.is_ready()).then(|| "not finished".into()),
        Check::Staying => ending.then(|| "process is shutting down".into()),
    }
}

/// Answers below one of the three; `None` where there is no such check.
pub async fn serve(server: &ApiServer, asker: &str, check: &str, query: &str, ending: bool) -> Option<Response<Body>> {
    let asker = ASKERS.into_iter().find(|known| *known == asker)?;
    if !check.is_empty() {
        let (_, check) = checks(asker).find(|(name, _)| *name == check)?;
        return Some(match fault(server, check, ending).await {
            None => text(StatusCode::OK, "ok".into()),
            Some(why) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n")),
        });
    }
    let query: Vec<(String, String)> = super::route::pairs(query).collect();
    let mut excluded: Vec<&str> = query.iter().filter(|(k, _)| k == "exclude").map(|(_, v)| &**v).collect();
    let (mut told, mut fine) = (String::new(), true);
    // Writing to a String does not fail.
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = told.write_fmt(text);
    };
    for (name, check) in checks(asker) {
        if excluded.contains(&name) {
            excluded.retain(|e| *e != name);
            line(format_args!("[+]{name} excluded: ok\n"));
            continue;
        }
        let fault = fault(server, check, ending).await;
        let mut seen = SEEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let outcome = seen.entry((name, asker)).or_default();
        outcome.2 = fault.is_none();
        match fault {
            None => {
                outcome.0 += 1;
                line(format_args!("[+]{name} ok\n"));
            }
            Some(why) => {
                tracing::warn!(name, why, "a health check failed");
                outcome.1 += 1;
                fine = false;
                line(format_args!("[-]{name} failed: reason withheld\n"));
            }
        }
    }
    if !excluded.is_empty() {
        excluded.sort_unstable();
        let names: Vec<String> = excluded.iter().map(|name| format!("{name:?}")).collect();
        line(format_args!("warn: some health checks cannot be excluded: no matches for {}\n", names.join(",")));
    }
    Some(if !fine {
        text(StatusCode::INTERNAL_SERVER_ERROR, format!("{told}{asker} check failed\n"))
    } else if query.iter().any(|(k, _)| k == "verbose") {
        text(StatusCode::OK, format!("{told}{asker} check passed\n"))
    } else {
        text(StatusCode::OK, "ok".into())
    })
}

fn text(code: StatusCode, text: String) -> Response<Body> {
    let mut response = with_type(text, "text/plain; charset=utf-8");
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    response
}

/// `/metrics/slis`.
pub fn slis() -> String {
    let seen = SEEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut out = String::from(
        "# HELP kubernetes_healthcheck [STABLE] The outcome of the last health check of a name and type.\n\
         # TYPE kubernetes_healthcheck gauge\n",
    );
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = out.write_fmt(text);
    };
    for ((name, asker), (.., fine)) in seen.iter() {
        line(format_args!("kubernetes_healthcheck{{name=\"{name}\",type=\"{asker}\"}} {}\n", u8::from(*fine)));
    }
    line(format_args!("# HELP kubernetes_healthchecks_total [STABLE] Health checks by name, type and outcome.\n"));
    line(format_args!("# TYPE kubernetes_healthchecks_total counter\n"));
    for ((name, asker), (well, ill, _)) in seen.iter() {
        for (status, count) in [("error", ill), ("success", well)].into_iter().filter(|(_, n)| **n > 0) {
            line(format_args!(
                "kubernetes_healthchecks_total{{name=\"{name}\",status=\"{status}\",type=\"{asker}\"}} {count}\n"
            ));
        }
    }
    out
}
