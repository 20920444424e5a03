//! Documents of issuers, read over HTTPS.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};

use crate::server::{Dial, DirectDial};
use crate::webhook::client::{over_tls, tls};

/// How long an issuer may take, as upstream.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a document: a thousand keys.
const MAX_DOCUMENT: usize = 1 << 20;
const HTTPS_PORT: u16 = 443;

/// The body behind a URL whose server shows a certificate that this authority (PEM; empty for what the machine trusts)
/// vouches for.
pub async fn get(url: &str, authority: &str) -> Result<Bytes, String> {
    let failed = |why: &dyn std::fmt::Display| format!("Get {url:?}: {why}");
    match tokio::time::timeout(TIMEOUT, read(url, authority)).await {
        Err(_) => Err(failed(&"context deadline exceeded")),
        Ok(Err(why)) => Err(failed(&why)),
        Ok(Ok((status, body))) if status == http::StatusCode::OK => Ok(body),
        Ok(Ok((status, body))) => Err(format!("{status}: {}", String::from_utf8_lossy(&body[..body.len().min(256)]))),
    }
}

async fn read(url: &str, authority: &str) -> Result<(http::StatusCode, Bytes), String> {
    let uri: http::Uri = url.parse().map_err(|e| format!("{e}"))?;
    let host = uri.host().ok_or("no host")?.trim_matches(['[', ']']).to_string();
    let port = uri.port_u16().unwrap_or(HTTPS_PORT);
    let address = match host.parse() {
        Ok(ip) => SocketAddr::new(ip, port),
        Err(_) => {
            let mut found = tokio::net::lookup_host((&*host, port)).await.map_err(|e| e.to_string())?;
            found.next().ok_or("no such host")?
        }
    };
    let bundle = (!authority.is_empty()).then(|| base64::engine::general_purpose::STANDARD.encode(authority));
    let stream = DirectDial.connect(address).await.map_err(|e| format!("dial tcp {address}: {e}"))?;
    let mut sender = over_tls(stream, tls(bundle.as_deref())?, &host).await?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let request = http::Request::get(path)
        .header(http::header::HOST, uri.authority().map_or("", |a| a.as_str()))
        .header(http::header::USER_AGENT, "kube-apiserver")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_DOCUMENT).collect().await.map_err(|e| e.to_string())?;
    Ok((status, body.to_bytes()))
}
