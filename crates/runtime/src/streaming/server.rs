//! The streaming server: takes a token, upgrades the connection, and runs its session.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Session;
use super::channel::{Channels, Output, StatusFormat};
use super::portforward::Pair;
use super::websocket::Coding;
use super::{exec, portforward, spdy, websocket};
use crate::engine::Engine;

/// How long a client may take to open all streams of a session.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
/// Most connections at once.
const MAX_CONNECTIONS: usize = 1024;
/// The header in which SPDY clients offer protocols.
const PROTOCOL_HEADER: &str = "x-stream-protocol-version";

/// Protocols of exec and attach over SPDY, best first.
const SPDY_EXEC: [&str; 4] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// The protocol of port forwarding over SPDY.
const SPDY_PORTFORWARD: [&str; 1] = ["portforward.k8s.io"];
/// Protocols of exec and attach over WebSocket.
const WS_EXEC: [&str; 5] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"];
/// Protocols of port forwarding over WebSocket: a tunnel for SPDY, and a pair of channels a port.
const WS_PORTFORWARD: [&str; 3] = ["SPDY/3.1+portforward.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

type Answer = Response<Full<Bytes>>;

/// Serves until cancelled.
pub async fn serve(listener: TcpListener, engine: Arc<Engine>, cancel: CancellationToken) {
    let places = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = cancel.cancelled() => return,
        };
        let (stream, _) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a streaming connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let engine = engine.clone();
        tokio::spawn(async move {
            // Small writes must not wait for each other: a keystroke is one.
            let _ = stream.set_nodelay(true);
            let service = hyper::service::service_fn(|request| {
                let engine = engine.clone();
                async move { Ok::<_, Infallible>(answer(engine, request)) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a streaming connection ended");
            }
            drop(place);
        });
    }
}

fn refuse(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut response = Response::new(Full::from(text.into()));
    *response.status_mut() = status;
    response
}

/// The values of a header, each of which may be a list.
fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|v| v.trim().to_string())
        .filter(|v| !v.is_empty())
        .collect()
}

fn answer(engine: Arc<Engine>, mut request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_string();
    let Some((kind, token)) = path.trim_start_matches('/').split_once('/') else {
        return refuse(StatusCode::NOT_FOUND, "not found");
    };
    if request.method() != Method::POST && request.method() != Method::GET {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST are allowed");
    }
    let upgrade = request.headers().get(header::UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or("").to_lowercase();
    let is_portforward = kind == "portforward";
    let (offered, known): (Vec<String>, &[&str]) = match (upgrade.as_str(), is_portforward) {
        ("spdy/3.1", false) => (values(request.headers(), PROTOCOL_HEADER), &SPDY_EXEC),
        ("spdy/3.1", true) => (values(request.headers(), PROTOCOL_HEADER), &SPDY_PORTFORWARD),
        ("websocket", false) => (values(request.headers(), "sec-websocket-protocol"), &WS_EXEC),
        ("websocket", true) => (values(request.headers(), "sec-websocket-protocol"), &WS_PORTFORWARD),
        _ => return refuse(StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade headers in request"),
    };
    // The client's order counts. One that offers nothing over WebSocket speaks the oldest.
    let chosen = offered.iter().find(|o| known.contains(&o.as_str())).cloned();
    let protocol = match (chosen, offered.is_empty(), upgrade.as_str()) {
        (Some(chosen), ..) => chosen,
        (None, true, "websocket") => String::new(),
        (None, true, _) => {
            return refuse(StatusCode::BAD_REQUEST, format!("unable to upgrade: {PROTOCOL_HEADER} is required"));
        }
        (None, false, _) => {
            return refuse(
                StatusCode::FORBIDDEN,
                format!(
                    "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {known:?}"
                ),
            );
        }
    };
    let key = request.headers().get("sec-websocket-key").and_then(|v| v.to_str().ok()).map(str::to_string);
    if upgrade == "websocket" && key.is_none() {
        return refuse(StatusCode::BAD_REQUEST, "missing Sec-WebSocket-Key");
    }
    // Taken last: a request that could not be served leaves the token for a better one.
    let session = match (kind, engine.tokens.take(token)) {
        ("exec", Some(s @ Session::Exec { .. })) => s,
        ("attach", Some(s @ Session::Attach { .. })) => s,
        ("portforward", Some(s @ Session::PortForward { .. })) => s,
        _ => return refuse(StatusCode::NOT_FOUND, "not found"),
    };
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, if upgrade == "websocket" { "websocket" } else { "SPDY/3.1" });
    if let Some(key) = key.filter(|_| upgrade == "websocket") {
        response = response.header("Sec-WebSocket-Accept", websocket::accept_key(&key));
        if !protocol.is_empty() {
            response = response.header("Sec-WebSocket-Protocol", &protocol);
        }
    } else {
        response = response.header("X-Stream-Protocol-Version", &protocol);
    }
    let upgraded = hyper::upgrade::on(&mut request);
    let websocket = upgrade == "websocket";
    tokio::spawn(async move {
        match upgraded.await {
            Ok(connection) if websocket => run_websocket(engine, session, &protocol, connection).await,
            Ok(connection) => run_spdy(engine, session, &protocol, connection).await,
            Err(error) => tracing::debug!(%error, "a client went away while upgrading"),
        }
    });
    response.body(Full::default()).unwrap_or_else(|e| refuse(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}

/// Which channels a session has: stdin, stdout, stderr, terminal.
fn wishes(session: &Session) -> (bool, bool, bool, bool) {
    match session {
        Session::Exec { request: r, .. } => (r.stdin, r.stdout, r.stderr && !r.tty, r.tty),
        Session::Attach { request: r, .. } => (r.stdin, r.stdout, r.stderr && !r.tty, r.tty),
        Session::PortForward { .. } => (false, false, false, false),
    }
}

async fn run(engine: Arc<Engine>, session: Session, channels: Channels) {
    match session {
        Session::Exec { container, request } => exec::exec(engine, &container, request, channels).await,
        Session::Attach { container, request } => exec::attach(engine, &container, request, channels).await,
        Session::PortForward { .. } => {}
    }
}

async fn run_spdy(engine: Arc<Engine>, session: Session, protocol: &str, connection: Upgraded) {
    let (mut streams, sender) = spdy::serve(TokioIo::new(connection));
    if let Session::PortForward { sandbox, .. } = session {
        return portforward::serve_spdy(engine, sandbox, streams, sender).await;
    }
    let (stdin, stdout, stderr, tty) = wishes(&session);
    let resizes = tty && (protocol.starts_with("v3") || protocol.starts_with("v4"));
    let mut wanted: Vec<&str> = vec!["error"];
    for (name, here) in [("stdin", stdin), ("stdout", stdout), ("stderr", stderr), ("resize", resizes)] {
        if here {
            wanted.push(name);
        }
    }
    let mut open: HashMap<String, spdy::Stream> = HashMap::new();
    let deadline = tokio::time::Instant::now() + STREAMS_TIMEOUT;
    while !wanted.iter().all(|w| open.contains_key(*w)) {
        match tokio::time::timeout_at(deadline, streams.recv()).await {
            Ok(Some(stream)) => {
                let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
                open.insert(kind, stream);
            }
            Ok(None) | Err(_) => {
                tracing::debug!(?wanted, "a client did not open its streams in time");
                let _ = sender.send(super::channel::Outgoing::Close).await;
                return;
            }
        }
    }
    let Some(error) = open.remove("error") else { return };
    let mut output = |name: &str, here: bool| open.remove(name).filter(|_| here);
    let (life, alive) = mpsc::channel(1);
    let stdin = output("stdin", stdin);
    let stdout = output("stdout", stdout);
    let stderr = output("stderr", stderr);
    let resize = output("resize", resizes);
    // The receiver of new streams ends with the connection.
    tokio::spawn(async move {
        while streams.recv().await.is_some() {}
        drop(life);
    });
    let channels = Channels {
        stdin: stdin.map(|s| s.input),
        stdout: stdout.map(|s| s.output),
        stderr: stderr.map(|s| s.output),
        error: error.output,
        resize: resize.map(|s| s.input),
        status: if protocol.starts_with("v4") { StatusFormat::Json } else { StatusFormat::Text },
        connection: sender,
        alive,
    };
    run(engine, session, channels).await;
}

async fn run_websocket(engine: Arc<Engine>, session: Session, protocol: &str, connection: Upgraded) {
    let coding = Coding {
        base64: protocol.contains("base64"),
        close_signal: protocol.starts_with("v5"),
        plain: protocol.starts_with("SPDY/3.1+"),
    };
    let connection = TokioIo::new(connection);
    if let Session::PortForward { sandbox, ports } = session {
        return if coding.plain {
            tunnel(engine, sandbox, connection, coding).await
        } else {
            forward_channels(engine, sandbox, ports, connection, coding).await
        };
    }
    let (stdin, stdout, stderr, tty) = wishes(&session);
    let mut readable = Vec::new();
    if stdin {
        readable.push(STDIN);
    }
    if tty {
        readable.push(RESIZE);
    }
    let (mut inputs, sender, alive) = websocket::serve(connection, coding, &readable);
    let output = |channel: u8| Output::new(channel.into(), sender.clone());
    let first = if stdout {
        STDOUT
    } else if stderr {
        STDERR
    } else {
        ERROR
    };
    // An empty message tells the client that the connection stands.
    let _ = output(first).write(Bytes::new()).await;
    let channels = Channels {
        stdin: inputs.remove(&STDIN),
        stdout: stdout.then(|| output(STDOUT)),
        stderr: stderr.then(|| output(STDERR)),
        error: output(ERROR),
        resize: inputs.remove(&RESIZE),
        status: if protocol.starts_with('v') { StatusFormat::Json } else { StatusFormat::Text },
        connection: sender,
        alive,
    };
    run(engine, session, channels).await;
}

/// SPDY inside a WebSocket: the messages are one stream of bytes.
async fn tunnel<S>(engine: Arc<Engine>, sandbox: String, connection: S, coding: Coding)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + 'static,
{
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// Bytes that wait between the two protocols.
    const BUFFER: usize = 64 * 1024;
    let (mut inputs, sender, _alive) = websocket::serve(connection, coding, &[STDIN]);
    let Some(mut input) = inputs.remove(&STDIN) else { return };
    let (inner, outer) = tokio::io::duplex(BUFFER);
    let (mut from_spdy, mut to_spdy) = tokio::io::split(outer);
    tokio::spawn(async move {
        while let Some(data) = input.recv().await {
            if to_spdy.write_all(&data).await.is_err() {
                break;
            }
        }
        let _ = to_spdy.shutdown().await;
    });
    let out = Output::new(STDIN.into(), sender.clone());
    tokio::spawn(async move {
        let mut buffer = vec![0u8; BUFFER];
        while let Ok(n) = from_spdy.read(&mut buffer).await {
            if n == 0 || out.write(Bytes::copy_from_slice(&buffer[..n])).await.is_err() {
                break;
            }
        }
        let _ = sender.send(super::channel::Outgoing::Close).await;
    });
    let (streams, spdy_sender) = spdy::serve(inner);
    portforward::serve_spdy(engine, sandbox, streams, spdy_sender).await;
}

/// Two channels a port, data and error; each begins with the port in two bytes, little end first.
async fn forward_channels<S>(engine: Arc<Engine>, sandbox: String, ports: Vec<i32>, connection: S, coding: Coding)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + 'static,
{
    /// Most ports of one connection: two channels each, in one byte.
    const MAX_PORTS: usize = 100;
    let ports: Vec<u16> = ports.into_iter().filter_map(|p| u16::try_from(p).ok()).take(MAX_PORTS).collect();
    let readable: Vec<u8> = (0..ports.len()).map(|n| 2 * n as u8).collect();
    let (mut inputs, sender, mut alive) = websocket::serve(connection, coding, &readable);
    let mut running = tokio::task::JoinSet::new();
    for (n, port) in ports.into_iter().enumerate() {
        let Some(input) = inputs.remove(&(2 * n as u8)) else { continue };
        let (data, error) = (Output::new(2 * n as u32, sender.clone()), Output::new(2 * n as u32 + 1, sender.clone()));
        let greeting = Bytes::copy_from_slice(&port.to_le_bytes());
        let _ = data.write(greeting.clone()).await;
        let _ = error.write(greeting).await;
        running.spawn(portforward::forward(engine.clone(), sandbox.clone(), Pair { input, data, error, port }));
    }
    tokio::select! {
        () = async { while running.join_next().await.is_some() {} } => {}
        _ = alive.recv() => {}
    }
    let _ = sender.send(super::channel::Outgoing::Close).await;
}
