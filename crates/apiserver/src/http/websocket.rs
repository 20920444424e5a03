//! Replies over WebSocket: logs and watches for clients that cannot read a body as it grows (browsers).
//!
//! Follows upstream's `wsstream`: a log is sent in binary messages (or base64 text, where the client asks for that), a
//! watch in one text message an event. The client sends nothing but a close; streams that go both ways (exec and its kin)
//! pass the server untouched and are not this module's.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Body, full};

/// From the WebSocket standard: makes the answer to a key.
const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const BINARY: &str = "binary.k8s.io";
const BASE64: &str = "base64.binary.k8s.io";
const CLOSE_FRAME: [u8; 4] = [0x88, 2, 0x03, 0xe8];

/// How messages are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Binary,
    Base64,
    /// Each line of the body is a message.
    Lines,
}

/// A client's wish to have the reply as messages.
pub struct Upgrade {
    connection: OnUpgrade,
    accept: String,
    protocol: Option<&'static str>,
    form: Form,
}

/// Whether a request asks for a WebSocket.
pub fn is_asked(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

impl Upgrade {
    /// Takes the wish out of a request, which then goes on as an ordinary one.
    pub fn take<B>(request: &mut http::Request<B>, lines: bool) -> Option<Self> {
        let key = request.headers().get(header::SEC_WEBSOCKET_KEY)?.to_str().ok()?.to_string();
        let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{MAGIC}").as_bytes());
        let asked =
            request.headers().get(header::SEC_WEBSOCKET_PROTOCOL).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let protocol =
            asked.split(',').map(str::trim).find_map(|p| [BINARY, BASE64].into_iter().find(|known| *known == p));
        let form = match protocol {
            _ if lines => Form::Lines,
            Some(BASE64) => Form::Base64,
            _ => Form::Binary,
        };
        let connection = hyper::upgrade::on(&mut *request);
        let headers = request.headers_mut();
        for name in [
            header::UPGRADE,
            header::CONNECTION,
            header::SEC_WEBSOCKET_KEY,
            header::SEC_WEBSOCKET_PROTOCOL,
            header::SEC_WEBSOCKET_VERSION,
        ] {
            headers.remove(name);
        }
        headers.remove(header::ACCEPT_ENCODING);
        Some(Self { connection, accept: STANDARD.encode(digest), protocol, form })
    }

    /// Sends a successful reply's body as messages; any other reply is given as it is.
    pub fn carry(self, response: Response<Body>) -> Response<Body> {
        if response.status() != StatusCode::OK {
            return response;
        }
        let (connection, form) = (self.connection, self.form);
        tokio::spawn(async move {
            match connection.await {
                Ok(upgraded) => pump(TokioIo::new(upgraded), response.into_body(), form).await,
                Err(error) => tracing::debug!(%error, "WebSocket upgrade"),
            }
        });
        let mut answer = Response::new(full(Bytes::new()));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        if let Some(protocol) = self.protocol {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        answer
    }
}

/// Writes messages until the body or the client ends.
async fn pump<S: tokio::io::AsyncRead + tokio::io::AsyncWrite>(stream: S, mut body: Body, form: Form) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    // Anything the client says is taken as good-bye only when it is the end; pings are rare enough to let the read go on.
    let gone = async {
        let mut sink = [0u8; 512];
        while reader.read(&mut sink).await.is_ok_and(|n| n > 0 && sink[0] & 0x0f != 8) {}
    };
    let send = async {
        let mut rest = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            match form {
                Form::Binary => message(&mut writer, 2, &data).await?,
                Form::Base64 => message(&mut writer, 1, STANDARD.encode(&data).as_bytes()).await?,
                Form::Lines => {
                    rest.extend_from_slice(&data);
                    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                        let line: Vec<u8> = rest.drain(..=end).collect();
                        message(&mut writer, 1, &line[..end]).await?;
                    }
                }
            }
        }
        writer.write_all(&CLOSE_FRAME).await?;
        writer.shutdown().await
    };
    tokio::select! {
        () = gone => {}
        result = send => {
            if let Err(error) = result {
                tracing::debug!(%error, "WebSocket");
            }
        }
    }
}

async fn message<W: tokio::io::AsyncWrite + Unpin>(writer: &mut W, opcode: u8, data: &[u8]) -> std::io::Result<()> {
    let mut frame = Vec::with_capacity(data.len() + 10);
    frame.push(0x80 | opcode);
    match data.len() {
        short @ 0..=125 => frame.push(short as u8),
        medium @ 126..=0xffff => {
            frame.push(126);
            frame.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            frame.push(127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(data);
    writer.write_all(&frame).await
}
