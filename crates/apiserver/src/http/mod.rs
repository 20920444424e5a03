//! HTTPS: connections, and one request from bytes to bytes.
//!
//! Accepts TLS connections (HTTP/1.1 and HTTP/2), learns the caller from the client certificate or token, routes, calls the
//! pipeline and encodes what comes back. Every body is bounded. A handler that panics is answered with a 500 and counted.

mod alike;
mod audited;
mod connection;
pub mod cors;
mod deadline;
pub mod encode;
mod health;
mod held;
mod impersonation;
mod jsonpath;
pub mod lasting;
mod lists;
mod metrics;
pub mod negotiated;
mod paths;
pub mod route;
mod table;
mod websocket;
mod zpages;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use meta::{Reason, Status};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::aggregation;
use crate::authn::{self, User};
use crate::authz;
use crate::instruments::{self, LongRunning};
use crate::pipeline::Caller;
use crate::server::ApiServer;
use lasting::Lasting;
pub(crate) use paths::GIT_VERSION;
use route::Route;

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Largest request body, as upstream.
const MAX_BODY: usize = 3 << 20;
/// What is read and thrown away of a larger one.
const MAX_DRAINED: usize = 64 << 20;
/// A client that does not finish its TLS handshake in this time is let go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections served at a time.
const MAX_CONNECTIONS: usize = 10_000;
/// How long open requests may finish after shutdown begins.
const DRAIN: Duration = Duration::from_secs(5);

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// Accepts connections until `cancel`, then lets open requests finish for a moment.
pub fn serve(
    server: Arc<ApiServer>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    cancel: CancellationToken,
) -> BoxFuture<'static, ()> {
    Box::pin(accepting(server, listener, tls, cancel))
}

async fn accepting(
    server: Arc<ApiServer>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    cancel: CancellationToken,
) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let tracker = TaskTracker::new();
    let places = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = tokio::select! {
            () = cancel.cancelled() => break,
            place = places.clone().acquire_owned() => place,
        };
        let Ok(place) = place else { break };
        let (stream, from) = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: give those that close a moment.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (acceptor, server, cancel) = (acceptor.clone(), server.clone(), cancel.clone());
        tracker.spawn(async move {
            let _place = place;
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => connection(server, stream, from.ip(), cancel).await,
                Ok(Err(error)) => {
                    metrics::handshake_failed();
                    tracing::debug!(%error, "TLS handshake");
                }
                Err(_) => {
                    metrics::handshake_failed();
                    tracing::debug!("TLS handshake timed out");
                }
            }
        });
    }
    tracker.close();
    let _ = tokio::time::timeout(DRAIN, tracker.wait()).await;
}

/// Who a connection's certificate says the client is.
struct Peer {
    user: Result<Option<Arc<User>>, Status>,
    /// It may name others.
    speaks: bool,
    /// Where it is.
    address: IpAddr,
}

impl Peer {
    fn of(server: &ApiServer, chain: &[rustls::pki_types::CertificateDer<'_>], address: IpAddr) -> Self {
        match server.front_proxies() {
            Some(proxies) if proxies.signed(chain) => {
                Self { user: Ok(None), speaks: proxies.may_speak(chain), address }
            }
            _ => Self {
                user: chain.first().map(|der| authn::user_of_certificate(der).map(Arc::new)).transpose(),
                speaks: false,
                address,
            },
        }
    }
}

async fn connection(
    server: Arc<ApiServer>,
    stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    address: IpAddr,
    cancel: CancellationToken,
) {
    let peer = Arc::new(Peer::of(&server, stream.get_ref().1.peer_certificates().unwrap_or_default(), address));
    let ending = cancel.clone();
    let service = hyper::service::service_fn(move |request| {
        let (server, peer, ending) = (server.clone(), peer.clone(), ending.clone());
        // In one place from the beginning: hyper moves what it is given several times.
        let long = may_take_long(&request);
        let answer = Box::pin(async move { guarded(&server, &peer, request, ending).await });
        async move { Ok::<_, Infallible>(if long { beside(answer).await } else { answer.await }) }
    });
    connection::serve(stream, service, cancel).await;
}

/// Whether answering may compute for long: other requests of the connection do not wait for it. Those of one object, and
/// writes, are short.
fn may_take_long<B>(request: &http::Request<B>) -> bool {
    let path = request.uri().path();
    let parts = path.bytes().filter(|byte| *byte == b'/').count();
    request.method() == Method::GET && !matches!((path.starts_with("/api/"), parts), (true, 4 | 6..) | (false, 5 | 7..))
}

/// Runs in a task of its own, which ends when nobody waits for it.
async fn beside(answer: BoxFuture<'static, Response<Body>>) -> Response<Body> {
    AbortOnDropHandle::new(tokio::spawn(answer))
        .await
        .unwrap_or_else(|why| error(&Status::internal(format!("the request's task: {why}"))))
}

/// What a request is called by everybody who tells of it.
const AUDIT_ID: header::HeaderName = header::HeaderName::from_static("audit-id");

/// The client's name for its request, or a new one.
fn audit_id(headers: &HeaderMap) -> HeaderValue {
    let mut buffer = uuid::Uuid::encode_buffer();
    let mut id = headers.get(AUDIT_ID).filter(|id| !id.is_empty()).cloned().unwrap_or_else(|| {
        let new = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
        HeaderValue::from_str(new.hyphenated().encode_lower(&mut buffer)).unwrap_or(HeaderValue::from_static(""))
    });
    // No two are alike: kept out of the table that HTTP/2 compresses headers by, where it would push out those that are.
    id.set_sensitive(true);
    id
}

/// Answers a request, whatever happens to its handler.
async fn guarded(
    server: &Arc<ApiServer>,
    peer: &Peer,
    request: http::Request<Incoming>,
    ending: CancellationToken,
) -> Response<Body> {
    let observed = metrics::Observed::begin(&request);
    let origin = server.config().settings.cors.allowed(request.headers());
    if let Some(origin) = &origin
        && request.method() == Method::OPTIONS
    {
        return cors::asked(origin);
    }
    let audit_id = audit_id(request.headers());
    let told = audited::Slot::default();
    let about = (&audit_id, &told, observed.long_running());
    let handled = std::panic::AssertUnwindSafe(handle(server, peer, request, about, ending)).catch_unwind();
    let mut response = match handled.await {
        Ok(response) => told.ended(response).await,
        Err(why) => {
            tracing::error!(method = %observed.method(), path = observed.path(), "a request handler panicked");
            told.panicked(why).await;
            error(&Status::internal("this request caused apiserver to panic. Look in log for details"))
        }
    };
    response.headers_mut().insert(AUDIT_ID, audit_id);
    if let Some(origin) = &origin {
        cors::tell(origin, response.headers_mut());
    }
    observed.end(response.status());
    tracing::debug!(
        method = %observed.method(),
        path = observed.path(),
        status = response.status().as_u16(),
        ms = observed.took().as_secs_f64() * 1e3,
        "request"
    );
    response
}

/// A Status as a response.
pub fn error(status: &Status) -> Response<Body> {
    let mut response = Response::new(full(status.to_value().to_string() + "\n"));
    *response.status_mut() = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    let retry = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    // Clients try again by themselves what comes with a time: not what a budget refuses.
    if retry > 0 {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(retry));
    }
    response
}

fn text_of(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

async fn handle(
    server: &Arc<ApiServer>,
    peer: &Peer,
    mut request: http::Request<Incoming>,
    (audit_id, told, open): (&HeaderValue, &audited::Slot, Option<Arc<LongRunning>>),
    ending: CancellationToken,
) -> Response<Body> {
    let began = std::time::Instant::now();
    let spoken_for = server.front_proxies().filter(|_| peer.speaks).and_then(|f| f.user(request.headers_mut()));
    let user = match (spoken_for, &peer.user) {
        (Some(user), _) => Ok(Arc::new(user)),
        (None, Ok(user)) => {
            let said = text_of(request.headers(), header::AUTHORIZATION);
            server.authenticate(user.as_ref(), said, request.uri().path()).await
        }
        (None, Err(status)) => Err(status.clone()),
    };
    instruments::authenticated(user.as_ref().ok().map(|user| &*user.name), began.elapsed());
    if let Some(audit) = &server.config().audit {
        Box::pin(told.begin(audit, &request, user.as_deref().ok(), peer.address, audit_id)).await;
    }
    let user = match user {
        Ok(user) => user,
        Err(status) => return error(&status),
    };
    let user = match impersonation::apply(server, user, &request, told) {
        Ok(user) => user,
        Err(status) => return told.refused(&status),
    };
    let agent = text_of(request.headers(), header::USER_AGENT).unwrap_or_default();
    let caller = Caller::new(user, agent).told_to(told.trail());
    let lasting = Lasting::default().with(told.trail().map(|trail| trail as _)).with(open.map(|open| open as _));
    request.extensions_mut().insert(lasting);
    let mut response = answer(server, &caller, request, (peer.address, audit_id), ending)
        .await
        .unwrap_or_else(|status| told.refused(&status));
    if let Some(executing) = caller.flow.get() {
        executing.tell(response.headers_mut());
    }
    for warning in caller.take_warnings() {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}

async fn answer(
    server: &Arc<ApiServer>,
    caller: &Caller,
    mut request: http::Request<Incoming>,
    (address, audit_id): (IpAddr, &HeaderValue),
    ending: CancellationToken,
) -> Result<Response<Body>, Status> {
    let remote = {
        let path = request.uri().path();
        // An extension server's own OpenAPI document is served by it, under the path it said.
        let of_document = path.strip_prefix("/openapi/v3").filter(|rest| rest.starts_with("/apis/"));
        let publishes = |r: &Arc<aggregation::Remote>| of_document.is_none() || r.documents.openapi_v3.is_some();
        aggregation::proxy::of_path(server, of_document.unwrap_or(path)).filter(publishes)
    };
    if let Some(remote) = remote {
        authorize_elsewhere(server, caller, &request).await?;
        aggregation::proxy::came_from(request.headers_mut(), address);
        request.headers_mut().insert(AUDIT_ID, audit_id.clone());
        return Ok(Box::pin(aggregation::proxy::carry(server, &remote, &caller.user, request)).await);
    }
    let route = route::parse(request.method(), request.uri().path(), request.uri().query().unwrap_or_default());
    let route = route.map_err(|status| not_there(server, request.uri().path(), status))?;
    let lasting = match &route {
        // Streams take it along themselves.
        Route::Connect(call) if call.request.subresource != "log" => Lasting::default(),
        _ => request.extensions_mut().remove().unwrap_or_default(),
    };
    if websocket::is_asked(request.headers()) {
        let lines = matches!(&route, Route::Resource(r) if r.verb == meta::Verb::Watch);
        let log = matches!(&route, Route::Connect(c) if c.request.subresource == "log");
        if (lines || log)
            && let Some(upgrade) = websocket::Upgrade::take(&mut request, lines)
        {
            let response = dispatch(server, caller, route, request, ending).await?;
            return Ok(upgrade.carry(response.map(|body| lasting.held_by(body))));
        }
    }
    let allowed = {
        let longest = server.config().settings.request_timeout;
        deadline::allowed(&route, request.uri().query().unwrap_or_default(), longest)?
    };
    let response = deadline::kept(allowed, dispatch(server, caller, route, request, ending)).await?;
    Ok(response.map(|body| lasting.held_by(body)))
}

/// A method that no resource takes is one thing, a resource that is not there another.
fn not_there(server: &ApiServer, path: &str, refused: Status) -> Status {
    let parts: Vec<&str> = path.split('/').skip(1).filter(|part| *part != "watch").collect();
    let (group, version, rest) = match &parts[..] {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return refused,
    };
    let plural = match rest {
        ["namespaces", _, plural, ..] if !plural.is_empty() => plural,
        [plural, ..] => plural,
        [] => return refused,
    };
    match server.catalog().get(&meta::Gvr::new(group, version, plural)) {
        Some(_) => refused,
        None => Status::unknown_path(),
    }
}

/// Authorizes a call that another server answers: paths there may be longer than ours.
async fn authorize_elsewhere<B>(server: &ApiServer, caller: &Caller, request: &http::Request<B>) -> Result<(), Status> {
    authz::admit(server, caller, &Asks::of(request).attributes()).await
}

/// What a request asks for, as rules describe it, wherever it is answered.
enum Asks<'r> {
    Resource(Box<meta::Request>, Option<&'static str>),
    Path(String, &'r str),
}

impl<'r> Asks<'r> {
    fn of<B>(request: &'r http::Request<B>) -> Self {
        let (method, path) = (request.method(), request.uri().path());
        match route::parse(method, path, request.uri().query().unwrap_or_default()) {
            Ok(Route::Resource(asked)) => Self::Resource(Box::new(asked), None),
            Ok(Route::Connect(call)) => {
                let verb = call.verb(method);
                Self::Resource(Box::new(call.request), Some(verb))
            }
            Ok(Route::Path) | Err(_) => Self::Path(method.as_str().to_ascii_lowercase(), path),
        }
    }

    fn attributes(&self) -> authz::Attributes<'_> {
        match self {
            Self::Resource(request, verb) => {
                let attributes = authz::Attributes::of(request);
                authz::Attributes { verb: verb.unwrap_or(attributes.verb), ..attributes }
            }
            Self::Path(verb, path) => authz::Attributes::path(verb, path),
        }
    }
}

/// Each kind of route in a future of its own, as large as it has to be.
fn dispatch<'a>(
    server: &'a Arc<ApiServer>,
    caller: &'a Caller,
    route: Route,
    request: http::Request<Incoming>,
    ending: CancellationToken,
) -> BoxFuture<'a, Result<Response<Body>, Status>> {
    match route {
        Route::Path => Box::pin(path_asked(server, caller, request, ending)),
        Route::Connect(call) => Box::pin(connect(server, caller, call, request)),
        Route::Resource(asked) => Box::pin(resource(server, caller, asked, request, ending)),
    }
}

async fn path_asked(
    server: &Arc<ApiServer>,
    caller: &Caller,
    request: http::Request<Incoming>,
    ending: CancellationToken,
) -> Result<Response<Body>, Status> {
    let (parts, _) = request.into_parts();
    let verb = parts.method.as_str().to_ascii_lowercase();
    let attributes = authz::Attributes::path(&verb, parts.uri.path());
    caller.taken(server, &attributes);
    authz::admit(server, caller, &attributes).await?;
    let response = paths::serve(server, &parts, ending.is_cancelled()).await?;
    // What is not there is not there for any method.
    let there = response.status() != http::StatusCode::NOT_FOUND;
    if there && !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(Status::wrong_method());
    }
    Ok(response)
}

async fn connect(
    server: &Arc<ApiServer>,
    caller: &Caller,
    call: route::Connect,
    request: http::Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let verb = call.verb(request.method());
    authz::admit(server, caller, &authz::Attributes { verb, ..authz::Attributes::of(&call.request) }).await?;
    if crate::webhook::admission::is_connect(&call.request) {
        let (subject, options) = crate::webhook::admission::Subject::of_connect(caller, &call.request, &call.query);
        Box::pin(crate::webhook::admission::validate_body(server, &subject, &options)).await?;
    }
    Box::pin(crate::subresource::connect::serve(server, call, request)).await
}

async fn resource(
    server: &Arc<ApiServer>,
    caller: &Caller,
    mut asked: meta::Request,
    request: http::Request<Incoming>,
    ending: CancellationToken,
) -> Result<Response<Body>, Status> {
    let (parts, body) = request.into_parts();
    caller.taken(server, &authz::Attributes::of(&asked));
    let pretty = negotiated::wants_pretty(&parts.headers, parts.uri.query().unwrap_or_default());
    let negotiated = negotiated::Negotiated::of(&parts.headers, asked.verb)?.pretty(pretty);
    if asked.verb.is_write() {
        let content_type = text_of(&parts.headers, header::CONTENT_TYPE).unwrap_or_default().to_string();
        let bytes = read_body(body).await?;
        if !bytes.is_empty() {
            asked.body = meta::RequestBody::Bytes { content_type, bytes };
        }
    }
    let shape = encode::Shape::of(server, &asked)?;
    let reply = server.call(caller, asked).await?;
    if let Some(trail) = &caller.trail {
        let shown = audited::wanted(trail, &reply, &shape, &negotiated)?;
        if let Some(shown) = shown {
            Box::pin(audited::answered(trail, shown)).await;
        }
    }
    encode::reply(reply, &shape, &negotiated, &ending)
}

async fn read_body(mut body: Incoming) -> Result<Bytes, Status> {
    match Limited::new(&mut body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            // A client that still writes would not read why.
            let _ = tokio::time::timeout(DRAIN, Limited::new(body, MAX_DRAINED).collect()).await;
            Err(Status::new(Reason::RequestEntityTooLarge, format!("Request entity too large: limit is {MAX_BODY}")))
        }
        Err(error) => Err(Status::bad_request(format!("reading the request's body: {error}"))),
    }
}

/// The body of a GET on a path that is no resource, for callers in this process.
pub fn get_path<'a>(
    server: &'a Arc<ApiServer>,
    user: &'a Arc<User>,
    path_and_query: &'a str,
) -> BoxFuture<'a, Result<Bytes, Status>> {
    Box::pin(path(server, user, path_and_query))
}

async fn path(server: &Arc<ApiServer>, user: &Arc<User>, path_and_query: &str) -> Result<Bytes, Status> {
    let request = http::Request::get(path_and_query).body(()).map_err(|e| Status::bad_request(e.to_string()))?;
    let (parts, ()) = request.into_parts();
    authz::require(server, user, &authz::Attributes::path("get", parts.uri.path()))?;
    let response = paths::serve(server, &parts, false).await?;
    let status = response.status();
    let body = match response.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(never) => match never {},
    };
    if status.is_success() { Ok(body) } else { Err(Status::internal(String::from_utf8_lossy(&body))) }
}
