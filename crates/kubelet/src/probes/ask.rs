//! Putting one question to a container: a command, an HTTP request, a connection, a gRPC health check. Lifecycle hooks
//! ask over HTTP the same way.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use crate::agent::Context;

/// As much of an answer as is kept for a message.
const MAX_BODY: usize = 10 << 10;
const MAX_REDIRECTS: usize = 10;

/// Who is asked.
pub struct Target<'a> {
    pub context: &'a Context,
    pub container: &'a Container,
    pub id: &'a str,
    pub ips: &'a [String],
}

/// What came of it.
#[derive(Debug, PartialEq)]
pub enum Answer {
    Good,
    /// Good, and worth a word.
    GoodBut(String),
    Bad(String),
    /// The question could not be put: counts neither way.
    Unsure(String),
}

/// A port by number, or by the name it has in the container.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named =
                container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name)).map(|p| p.container_port);
            match named.or_else(|| name.parse().ok()) {
                Some(number) => number,
                None => return Err(format!("strconv.Atoi: parsing {name:?}: invalid syntax")),
            }
        }
    };
    u16::try_from(number).ok().filter(|p| *p > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

fn host<'a>(asked: Option<&'a str>, target: &'a Target<'_>) -> &'a str {
    asked.filter(|h| !h.is_empty()).or(target.ips.first().map(String::as_str)).unwrap_or_default()
}

/// `host:port`, with brackets around IPv6 addresses.
fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Asks once.
pub async fn probe(target: &Target<'_>, probe: &Probe, timeout: Duration) -> Answer {
    if let Some(exec) = &probe.exec {
        return command(target, exec.command.clone().unwrap_or_default(), timeout).await;
    }
    if let Some(get) = &probe.http_get {
        return match tokio::time::timeout(timeout, http(target, get, "kube-probe/1.37")).await {
            Ok(Ok((status, _))) if (200..300).contains(&status) => Answer::Good,
            Ok(Ok((status, body))) if (300..400).contains(&status) => {
                Answer::GoodBut(format!("Probe terminated redirects, Response body: {body}"))
            }
            Ok(Ok((status, _))) => Answer::Bad(format!("HTTP probe failed with statuscode: {status}")),
            Ok(Err(error)) => Answer::Bad(format!("Get {:?}: {error}", shown(target, get))),
            Err(_) => Answer::Bad(format!(
                "Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
                shown(target, get)
            )),
        };
    }
    if let Some(tcp) = &probe.tcp_socket {
        let number = match port(&tcp.port, target.container) {
            Ok(number) => number,
            Err(why) => return Answer::Unsure(why),
        };
        let address = join(host(tcp.host.as_deref(), target), number);
        return match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
            Ok(Ok(_)) => Answer::Good,
            Ok(Err(error)) => Answer::Bad(format!("dial tcp {address}: connect: {}", plain(&error))),
            Err(_) => Answer::Bad(format!("dial tcp {address}: i/o timeout")),
        };
    }
    if let Some(check) = &probe.grpc {
        let address = join(host(None, target), check.port as u16);
        let service = check.service.clone().unwrap_or_default();
        return grpc(&address, service, timeout).await;
    }
    Answer::Unsure("missing probe handler".into())
}

async fn command(target: &Target<'_>, command: Vec<String>, timeout: Duration) -> Answer {
    match target.context.engine.exec_sync(target.id, command.clone(), timeout).await {
        Ok(done) if done.exit_code == 0 => Answer::Good,
        Ok(done) => {
            let mut text = done.stdout;
            text.extend(done.stderr);
            text.truncate(MAX_BODY);
            Answer::Bad(String::from_utf8_lossy(&text).into_owned())
        }
        Err(status) if status.code() == tonic::Code::DeadlineExceeded || status.message().contains("timeout") => {
            Answer::Bad(format!("command timed out: {:?} timed out after {}s", command.join(" "), timeout.as_secs()))
        }
        Err(status) => Answer::Unsure(format!("rpc error: code = {:?} desc = {}", status.code(), status.message())),
    }
}

fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
        std::io::ErrorKind::HostUnreachable => "no route to host".into(),
        std::io::ErrorKind::ConnectionReset => "connection reset by peer".into(),
        _ => error.to_string(),
    }
}

fn scheme(get: &HTTPGetAction) -> String {
    get.scheme.as_deref().filter(|s| !s.is_empty()).unwrap_or("HTTP").to_lowercase()
}

/// The URL as messages show it.
fn shown(target: &Target<'_>, get: &HTTPGetAction) -> String {
    let number = port(&get.port, target.container).unwrap_or(0);
    let path = get.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{}://{}{slash}{path}", scheme(get), join(host(get.host.as_deref(), target), number))
}

/// One GET, following redirects on the same host: status and the beginning of the body.
pub async fn http(target: &Target<'_>, get: &HTTPGetAction, agent: &str) -> Result<(u16, String), String> {
    let host = host(get.host.as_deref(), target);
    let (mut scheme, mut address) = (scheme(get), join(host, port(&get.port, target.container)?));
    let mut path = get.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".into());
    if !path.starts_with('/') {
        path.insert(0, '/');
    }
    let mut hops = 0;
    loop {
        let (status, location, body) = one_get(&address, &scheme, &path, get, agent).await?;
        let Some(location) = location.filter(|_| (300..400).contains(&status) && status != 304) else {
            return Ok((status, body));
        };
        hops += 1;
        if hops > MAX_REDIRECTS {
            return Err(format!("stopped after {MAX_REDIRECTS} redirects"));
        }
        match elsewhere(&location) {
            // Another host's answer says nothing about this container.
            Some((_, other, _, _)) if other != host => return Ok((status, body)),
            Some((to, _, port, rest)) => {
                (scheme, address, path) = (to.to_lowercase(), join(host, port), rest.to_string());
            }
            None if location.starts_with('/') => path = location,
            // Beside what was asked for.
            None => path = format!("{}/{location}", path.rsplit_once('/').map_or("", |(above, _)| above)),
        }
    }
}

/// Scheme, host, port and path of a location that names its host; none of one on the same host.
fn elsewhere(location: &str) -> Option<(&str, &str, u16, &str)> {
    let (scheme, rest) = location.split_once("://")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let default = if scheme.eq_ignore_ascii_case("https") { 443 } else { 80 };
    let bracketed = authority.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match authority[bracketed..].find(':') {
        Some(at) => (&authority[..bracketed + at], authority[bracketed + at + 1..].parse().unwrap_or(default)),
        None => (authority, default),
    };
    Some((scheme, host.trim_matches(['[', ']']), port, if path.is_empty() { "/" } else { path }))
}

async fn one_get(
    address: &str,
    scheme: &str,
    path: &str,
    get: &HTTPGetAction,
    agent: &str,
) -> Result<(u16, Option<String>, String), String> {
    let stream =
        TcpStream::connect(address).await.map_err(|e| format!("dial tcp {address}: connect: {}", plain(&e)))?;
    let mut request = http::Request::get(path);
    let (mut has_host, mut has_agent, mut has_accept) = (false, false, false);
    for header in get.http_headers.iter().flatten() {
        has_host |= header.name.eq_ignore_ascii_case("host");
        has_agent |= header.name.eq_ignore_ascii_case("user-agent");
        has_accept |= header.name.eq_ignore_ascii_case("accept");
        if header.value.is_empty()
            && (header.name.eq_ignore_ascii_case("user-agent") || header.name.eq_ignore_ascii_case("accept"))
        {
            continue;
        }
        request = request.header(&header.name, &header.value);
    }
    if !has_host {
        request = request.header("Host", address);
    }
    if !has_agent {
        request = request.header("User-Agent", agent);
    }
    if !has_accept {
        request = request.header("Accept", "*/*");
    }
    let request =
        request.header("Connection", "close").body(Empty::<bytes::Bytes>::new()).map_err(|e| e.to_string())?;
    if scheme == "https" {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(unverified()));
        let name = rustls_pki_types::ServerName::try_from("probe.invalid").map_err(|e| e.to_string())?;
        let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
        exchange(TokioIo::new(stream), request).await
    } else {
        exchange(TokioIo::new(stream), request).await
    }
}

async fn exchange<S>(
    stream: S,
    request: http::Request<Empty<bytes::Bytes>>,
) -> Result<(u16, Option<String>, String), String>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(|e| e.to_string())?;
    let ask = async {
        // A connection that ends before its answer is called what it is, by whichever side the library saw it first.
        let ended = |e: hyper::Error| match e.is_canceled() || e.is_incomplete_message() {
            true => "EOF".to_string(),
            false => e.to_string(),
        };
        let answer = sender.send_request(request).await.map_err(ended)?;
        let status = answer.status().as_u16();
        let location = answer.headers().get("location").and_then(|l| l.to_str().ok()).map(str::to_string);
        let body = match Limited::new(answer.into_body(), MAX_BODY).collect().await {
            Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            Err(_) => String::new(),
        };
        Ok((status, location, body))
    };
    tokio::pin!(ask);
    tokio::select! {
        answer = &mut ask => answer,
        _ = connection => ask.await,
    }
}

/// Probes do not check certificates: a container under test often serves one for another name.
fn unverified() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    // The ring provider supports the default versions.
    let builder = builder.expect("ring supports TLS 1.2 and 1.3");
    let builder = builder.dangerous().with_custom_certificate_verifier(client::AnyCertificate::verifier());
    let mut config = builder.with_no_client_auth();
    config.enable_sni = false;
    config
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; 1 is SERVING.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

async fn grpc(address: &str, service: String, timeout: Duration) -> Answer {
    let ask = async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| Answer::Unsure(e.to_string()))?;
        let endpoint = endpoint.user_agent("kube-probe/1.37").map_err(|e| Answer::Unsure(e.to_string()))?;
        let timed_out = || {
            Answer::Bad(format!(
                "timeout: failed to connect service {address:?} within {timeout:?}: context deadline exceeded"
            ))
        };
        let channel = endpoint.connect().await.map_err(|_| timed_out())?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|_| timed_out())?;
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let codec = tonic_prost::ProstCodec::<HealthRequest, HealthResponse>::default();
        let shown = service.clone();
        match client.unary(tonic::Request::new(HealthRequest { service }), path, codec).await {
            Ok(answer) if answer.get_ref().status == 1 => Ok(Answer::Good),
            Ok(answer) => {
                let word = match answer.get_ref().status {
                    2 => "NOT_SERVING",
                    3 => "SERVICE_UNKNOWN",
                    _ => "UNKNOWN",
                };
                Ok(Answer::Bad(format!("service unhealthy (responded with {word:?})")))
            }
            Err(status) if status.code() == tonic::Code::Unimplemented => Ok(Answer::Bad(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
                status.message()
            ))),
            Err(status) => Ok(Answer::Bad(format!("service {shown:?}: health rpc failed: {}", status.message()))),
        }
    };
    match tokio::time::timeout(timeout, ask).await {
        Ok(Ok(answer)) | Ok(Err(answer)) => answer,
        Err(_) => Answer::Bad(format!("timeout: health rpc did not complete within {timeout:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        for (location, expect) in [
            ("/here", None),
            ("there", None),
            ("http://0.0.0.0/", Some(("http", "0.0.0.0", 80, "/"))),
            ("https://a.example", Some(("https", "a.example", 443, "/"))),
            ("http://10.0.0.1:8080/x?y=http://z", Some(("http", "10.0.0.1", 8080, "/x?y=http://z"))),
            ("http://[fd00::1]:81/x", Some(("http", "fd00::1", 81, "/x"))),
            ("http://[fd00::1]/x", Some(("http", "fd00::1", 80, "/x"))),
        ] {
            assert_eq!(elsewhere(location), expect, "{location}");
        }
    }
}
