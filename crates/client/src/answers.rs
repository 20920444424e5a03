//! Small HTTP answers: what a component on a node says of its health and its numbers, in the clear.
//!
//! Probes and scrapers ask with one short GET; so this reads a request's head, answers, and closes. It knows no keep-alive,
//! no bodies and no TLS, and not who asks.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// Requests answered at once on one port; the next is closed at once.
const MAX_REQUESTS: usize = 64;
/// For one request, from accept to close.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    pub header: Option<(&'static str, String)>,
    pub body: String,
}

impl Answer {
    pub fn text(status: u16, body: impl Into<String>) -> Answer {
        Answer { status, content_type: "text/plain; charset=utf-8", header: None, body: body.into() }
    }
}

/// Answers GETs on a listener until dropped.
pub fn serve(listener: TcpListener, answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> DropGuard {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        stopped
            .run_until_cancelled(async move {
                let room = Arc::new(Semaphore::new(MAX_REQUESTS));
                loop {
                    let Ok((stream, _)) = listener.accept().await else {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    };
                    let Ok(permit) = room.clone().try_acquire_owned() else { continue };
                    let answer = answer.clone();
                    tokio::spawn(async move {
                        // Who asks and goes away is no news.
                        let _ = tokio::time::timeout(REQUEST_TIMEOUT, exchange(stream, &*answer)).await;
                        drop(permit);
                    });
                }
            })
            .await;
    });
    stop.drop_guard()
}

async fn exchange(mut stream: TcpStream, answer: &(impl Fn(&str) -> Answer + ?Sized)) -> io::Result<()> {
    let mut head = Vec::with_capacity(512);
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if head.len() >= MAX_HEAD_BYTES || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&head);
    let mut words = text.split(' ');
    let reply = match (words.next(), words.next()) {
        (Some("GET" | "HEAD"), Some(target)) => answer(target.split('?').next().unwrap_or(target)),
        _ => Answer::text(405, "method not allowed\n"),
    };
    let reason = match reply.status {
        200 => "OK",
        404 => "Not Found",
        405 => "Method Not Allowed",
        _ => "Service Unavailable",
    };
    let extra = reply.header.map(|(name, value)| format!("{name}: {value}\r\n")).unwrap_or_default();
    let out = format!(
        "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nX-Content-Type-Options: nosniff\r\nContent-Length: {}\r\n{extra}Connection: close\r\n\r\n",
        reply.status,
        reply.content_type,
        reply.body.len()
    );
    stream.write_all(out.as_bytes()).await?;
    if !text.starts_with("HEAD") {
        stream.write_all(reply.body.as_bytes()).await?;
    }
    stream.shutdown().await
}
