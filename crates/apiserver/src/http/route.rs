//! From method, path and query to what is asked.
//!
//! Follows `k8s.io/apiserver/pkg/endpoints/request` (RequestInfo).

use http::Method;
use meta::{Gvr, Options, Request, Status, Verb};

/// Subresources that are streams or proxied calls.
const CONNECT: [&str; 5] = ["log", "exec", "attach", "portforward", "proxy"];

/// A call to a kubelet, pod or service.
pub struct Connect {
    pub request: Request,
    /// What follows `proxy/` in the path, with its leading slash, or empty.
    pub rest: String,
    /// The undecoded query.
    pub query: String,
}

impl Connect {
    /// What authorization calls it.
    pub fn verb(&self, method: &Method) -> &'static str {
        match (&*self.request.subresource, method) {
            ("log", _) => "get",
            // Streams were opened by POST before WebSockets; both need the right to create.
            ("exec" | "attach" | "portforward", &Method::GET) => "get",
            (_, &Method::POST) => "create",
            (_, &Method::PUT) => "update",
            (_, &Method::PATCH) => "patch",
            (_, &Method::DELETE) => "delete",
            _ => "get",
        }
    }
}

pub enum Route {
    Resource(Request),
    Connect(Connect),
    /// Not below `/api/VERSION` or `/apis/GROUP/VERSION`.
    Path,
}

/// Decodes percent escapes; what is not UTF-8 afterwards is replaced.
pub fn decode(text: &str) -> String {
    percent(text, false)
}

fn percent(text: &str, plus_is_space: bool) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let escape = bytes
            .get(at + 1..at + 3)
            .and_then(|h| std::str::from_utf8(h).ok())
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[at], escape) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) if plus_is_space => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// The query's pairs, decoded, in order.
pub fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent(key, true), percent(value, true))
    })
}

/// What Go says of a text that is no number.
pub fn not_a_number(function: &str, text: &str, error: &std::num::ParseIntError) -> String {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    let why = if matches!(error.kind(), PosOverflow | NegOverflow) { "value out of range" } else { "invalid syntax" };
    format!("strconv.{function}: parsing {text:?}: {why}")
}

/// Options that hold one value.
const ONCE: [&str; 12] = [
    "labelSelector",
    "fieldSelector",
    "limit",
    "continue",
    "resourceVersion",
    "resourceVersionMatch",
    "allowWatchBookmarks",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
    "fieldManager",
    "fieldValidation",
];

fn options(query: &str) -> Result<(Options, bool), Status> {
    let mut out = Options::default();
    let mut watch = false;
    // As upstream reads them: whatever is not plainly false is true, and a number below zero is as good as none.
    let truth = |value: &str| !value.eq_ignore_ascii_case("false") && value != "0";
    let number = |value: &str| {
        let number: Result<i64, _> = value.parse();
        let number = number.map_err(|error| Status::bad_request(not_a_number("ParseInt", value, &error)))?;
        Ok::<_, Status>(u64::try_from(number).ok())
    };
    let mut seen: Vec<String> = Vec::new();
    for (key, value) in pairs(query) {
        // Of what is said more than once, the first counts.
        if ONCE.contains(&&*key) {
            if seen.contains(&key) {
                continue;
            }
            seen.push(key.clone());
        }
        match &*key {
            "labelSelector" => out.label_selector = Some(value),
            "fieldSelector" => out.field_selector = Some(value),
            "limit" if !value.is_empty() => out.limit = number(&value)?,
            "continue" => out.continue_token = Some(value),
            "resourceVersion" => out.resource_version = Some(value),
            "resourceVersionMatch" => out.resource_version_match = Some(value),
            "allowWatchBookmarks" => out.allow_watch_bookmarks = truth(&value),
            "sendInitialEvents" => out.send_initial_events = Some(truth(&value)),
            "timeoutSeconds" if !value.is_empty() => out.timeout_seconds = number(&value)?,
            "watch" => watch = truth(&value),
            "dryRun" => out.dry_run.push(value),
            "fieldManager" => out.field_manager = Some(value),
            "fieldValidation" => out.field_validation = Some(value),
            "force" => out.force = Some(truth(&value)),
            _ => out.other.push((key, value)),
        }
    }
    Ok((out, watch))
}

/// Finds out what a path means. Whether such a kind exists is the pipeline's business.
pub fn parse(method: &Method, path: &str, query: &str) -> Result<Route, Status> {
    let parts: Vec<&str> = path.strip_prefix('/').unwrap_or(path).trim_end_matches('/').split('/').collect();
    let (group, version, mut rest) = match &parts[..] {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Ok(Route::Path),
    };
    // `/api/v1/watch/…` is the old spelling of `?watch=true`.
    let old_watch = rest.len() > 1 && rest[0] == "watch";
    if old_watch {
        rest = &rest[1..];
    }
    let mut request = Request::new(Verb::Get, Gvr::new(group, version, ""), "", "");
    let tail = match rest {
        ["namespaces", namespace, resource, tail @ ..]
            if !(group.is_empty() && matches!(*resource, "status" | "finalize")) =>
        {
            request.namespace = decode(namespace);
            request.resource.resource = decode(resource).into();
            tail
        }
        [resource, tail @ ..] => {
            request.resource.resource = decode(resource).into();
            // A namespace is in itself, for authorization and admission.
            if *resource == "namespaces" && group.is_empty() && !tail.is_empty() {
                request.namespace = decode(tail[0]);
            }
            tail
        }
        [] => return Ok(Route::Path),
    };
    let mut proxied = String::new();
    match tail {
        [] => {}
        [name] => request.name = decode(name),
        [name, sub] => {
            request.name = decode(name);
            request.subresource = decode(sub);
        }
        [name, "proxy", ..] => {
            request.name = decode(name);
            request.subresource = "proxy".into();
            let head = path.find(&format!("/{name}/proxy")).map_or(0, |at| at + name.len() + 7);
            proxied = path[head..].to_string();
        }
        _ => return Err(Status::unknown_path()),
    }
    if proxied.is_empty() && request.subresource == "proxy" && path.ends_with('/') {
        proxied.push('/');
    }
    if CONNECT.contains(&&*request.subresource) {
        return Ok(Route::Connect(Connect { request, rest: proxied, query: query.into() }));
    }
    let (options, watch) = options(query)?;
    request.options = options;
    if *method == Method::HEAD || old_watch && *method != Method::GET {
        return Err(Status::wrong_method());
    }
    request.verb = match (method, request.name.is_empty()) {
        (&Method::GET, true) if watch || old_watch => Verb::Watch,
        (&Method::GET, true) => Verb::List,
        // One object is watched through its collection, or under the old path: here the word means nothing.
        (&Method::GET, false) if old_watch => Verb::Watch,
        (&Method::GET, false) => Verb::Get,
        (&Method::POST, true) => Verb::Create,
        (&Method::POST, false) if !request.subresource.is_empty() => Verb::Create,
        (&Method::PUT, false) => Verb::Update,
        (&Method::PATCH, false) => Verb::Patch,
        (&Method::DELETE, true) => Verb::DeleteCollection,
        (&Method::DELETE, false) => Verb::Delete,
        _ => return Err(Status::wrong_method()),
    };
    Ok(Route::Resource(request))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (method, path, query, expect) in [
            ("GET", "/api/v1/pods", "", "list core/v1/pods ns= name= sub="),
            ("GET", "/api/v1/namespaces/a/pods", "watch=1", "watch core/v1/pods ns=a name= sub="),
            ("GET", "/api/v1/watch/namespaces/a/pods/b", "", "watch core/v1/pods ns=a name=b sub="),
            ("GET", "/api/v1/namespaces/a/pods/b", "watch=1", "get core/v1/pods ns=a name=b sub="),
            ("GET", "//api/v1/pods", "", "path"),
            (
                "PUT",
                "/apis/apps/v1/namespaces/a/deployments/b/status",
                "",
                "update apps/v1/deployments ns=a name=b sub=status",
            ),
            ("DELETE", "/api/v1/namespaces/a", "", "delete core/v1/namespaces ns=a name=a sub="),
            ("PUT", "/api/v1/namespaces/a/finalize", "", "update core/v1/namespaces ns=a name=a sub=finalize"),
            ("DELETE", "/api/v1/namespaces/a/pods", "", "deletecollection core/v1/pods ns=a name= sub="),
            ("POST", "/api/v1/namespaces/a/pods/b/binding", "", "create core/v1/pods ns=a name=b sub=binding"),
            ("GET", "/api/v1/namespaces/a/services/b/proxy/x/y", "", "connect b /x/y"),
            ("GET", "/api/v1/namespaces/a/services/b/proxy/", "", "connect b /"),
            ("GET", "/apis/apps/v1", "", "path"),
            ("GET", "/healthz", "", "path"),
        ] {
            let said = match parse(&method.parse().unwrap(), path, query).unwrap() {
                Route::Path => "path".to_string(),
                Route::Connect(c) => format!("connect {} {}", c.request.name, c.rest),
                Route::Resource(r) => {
                    let group = if r.resource.group.is_empty() { "core" } else { &r.resource.group };
                    format!(
                        "{} {group}/{}/{} ns={} name={} sub={}",
                        r.verb.as_str(),
                        r.resource.version,
                        r.resource.resource,
                        r.namespace,
                        r.name,
                        r.subresource
                    )
                }
            };
            assert_eq!(said, expect, "{method} {path}");
        }
    }
}
