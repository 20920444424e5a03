//! A plain HTTPS client of one API server, described by a kubeconfig.
//!
//! It says exactly what it is told to and shows exactly what came back: headers, bytes, and the lines of a watch as they
//! arrive. It knows no resource and repeats nothing.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::sync::Mutex;

type Sender = SendRequest<Full<Bytes>>;

/// Who a request comes from, as far as the connection tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Identity {
    /// The kubeconfig's client certificate.
    Certificate,
    /// No certificate: anonymous, or whoever a header says.
    None,
}

pub struct Server {
    host: String,
    port: u16,
    with_certificate: Arc<rustls::ClientConfig>,
    without: Arc<rustls::ClientConfig>,
    /// One connection for each identity, opened when first used.
    connections: Mutex<[Option<Sender>; 2]>,
}

/// A whole answer.
pub struct Answer {
    pub code: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The texts of its `Warning` headers.
    pub fn warnings(&self) -> Vec<String> {
        let texts = self.headers.get_all(header::WARNING).iter().filter_map(|v| v.to_str().ok());
        texts
            .map(|v| {
                let quoted = v.splitn(3, ' ').nth(2).unwrap_or(v);
                quoted.strip_prefix('"').and_then(|q| q.strip_suffix('"')).unwrap_or(quoted).replace("\\\"", "\"")
            })
            .collect()
    }
}

/// A watch that is open.
pub struct Stream {
    body: Incoming,
    rest: BytesMut,
}

impl Stream {
    /// The next line, or nothing when the server ended the stream.
    pub async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line = self.rest.split_to(end + 1);
                return Ok(Some(serde_json::from_slice(&line).context("a line of a watch")?));
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                }
                None => return Ok(None),
            }
        }
    }
}

fn decoded(value: &Value, what: &str) -> Result<Vec<u8>> {
    let text = value.as_str().with_context(|| format!("the kubeconfig has no {what}"))?;
    Ok(base64::engine::general_purpose::STANDARD.decode(text)?)
}

impl Server {
    pub fn from_kubeconfig(file: &Path) -> Result<Self> {
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let config = super::yaml(&text)?;
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let url = cluster["server"].as_str().context("the kubeconfig has no server")?;
        let (host, port) = url
            .trim_start_matches("https://")
            .trim_end_matches('/')
            .rsplit_once(':')
            .context("the server has no port")?;
        let mut roots = rustls::RootCertStore::empty();
        for certificate in
            CertificateDer::pem_slice_iter(&decoded(&cluster["certificate-authority-data"], "authority")?)
        {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_slice_iter(&decoded(&user["client-certificate-data"], "client certificate")?)
            .collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&decoded(&user["client-key-data"], "client key")?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = || {
            rustls::ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .map(|b| b.with_root_certificates(roots.clone()))
        };
        let mut with_certificate = builder()?.with_client_auth_cert(chain, key)?;
        let mut without = builder()?.with_no_client_auth();
        with_certificate.alpn_protocols = vec![b"h2".to_vec()];
        without.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            host: host.into(),
            port: port.parse()?,
            with_certificate: Arc::new(with_certificate),
            without: Arc::new(without),
            connections: Mutex::default(),
        })
    }

    async fn connect(&self, identity: Identity) -> Result<Sender> {
        let mut connections = self.connections.lock().await;
        let slot = &mut connections[identity as usize];
        if let Some(sender) = slot.as_ref().filter(|s| !s.is_closed()) {
            return Ok(sender.clone());
        }
        let config = if identity == Identity::Certificate { &self.with_certificate } else { &self.without };
        let tcp = tokio::net::TcpStream::connect((self.host.as_str(), self.port))
            .await
            .with_context(|| format!("cannot reach {}:{}", self.host, self.port))?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(self.host.clone())?;
        let tls = tokio_rustls::TlsConnector::from(config.clone()).connect(name, tcp).await?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        *slot = Some(sender.clone());
        Ok(sender)
    }

    async fn begin(
        &self,
        identity: Identity,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: Bytes,
    ) -> Result<http::Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(format!("https://{}:{}{path}", self.host, self.port));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).map_err(|e| anyhow!("{method} {path}: {e}"))?;
        let mut sender = self.connect(identity).await?;
        sender.ready().await?;
        Ok(sender.send_request(request).await?)
    }

    pub async fn send(
        &self,
        identity: Identity,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: Bytes,
    ) -> Result<Answer> {
        let response = self.begin(identity, method, path, headers, body).await?;
        let (parts, body) = response.into_parts();
        Ok(Answer { code: parts.status, headers: parts.headers, body: body.collect().await?.to_bytes() })
    }

    /// Opens a stream of lines; an answer that is no 200 is an error.
    pub async fn open(&self, identity: Identity, path: &str, headers: &[(String, String)]) -> Result<Stream> {
        let response = self.begin(identity, "GET", path, headers, Bytes::new()).await?;
        if response.status() != StatusCode::OK {
            let code = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            bail!("{code}: {}", String::from_utf8_lossy(&body));
        }
        Ok(Stream { body: response.into_body(), rest: BytesMut::new() })
    }
}
