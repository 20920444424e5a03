//! One connection: HTTP/1.1, or HTTP/2 with all its streams in one task.
//!
//! A client's requests come several at a time and their answers leave several at a time: handlers are polled where the
//! connection is, so that what is read in one go costs one wake-up and, when all answers are there, one write. What may
//! compute for long is given a task of its own by the service, not here.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::Body;
use super::held::Held;

/// A connection of HTTP/1.1 that brings no whole head of a request in this time is closed, an idle one too: upstream's time
/// for idle ones.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);
/// Streams one HTTP/2 connection may have open: upstream's default.
const MAX_STREAMS: u32 = 250;
/// A silent connection is asked whether it is alive so often.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// What answers requests.
pub trait Answers:
    Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
{
}

impl<S> Answers for S where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
{
}

/// Serves a connection until the client leaves, or `cancel` is called and what was asked is answered.
pub async fn serve(stream: TlsStream<TcpStream>, service: impl Answers, cancel: CancellationToken) {
    let result = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => in_one_task(stream, service, cancel).await,
        _ => spawning(stream, service, cancel).await,
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection");
    }
}

/// HTTP/1.1, with upgrades; and HTTP/2 of clients that did not say so in their handshake.
async fn spawning(
    stream: TlsStream<TcpStream>,
    service: impl Answers,
    cancel: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS).keep_alive_interval(KEEP_ALIVE);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => result,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// HTTP/2.
async fn in_one_task(
    stream: TlsStream<TcpStream>,
    service: impl Answers,
    cancel: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (tcp, tls) = stream.into_inner();
    let (held, begun) = (Held::new(tcp, tls), Begun::default());
    let mut connection = hyper::server::conn::http2::Builder::new(begun.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(KEEP_ALIVE)
        .serve_connection(held.clone(), service);
    let mut streams = FuturesUnordered::new();
    let mut cancelled = std::pin::pin!(cancel.cancelled());
    let mut ending = false;
    std::future::poll_fn(move |cx| {
        if !ending && cancelled.as_mut().poll(cx).is_ready() {
            ending = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        // First those that waited for something: what they say goes with the rest.
        advance(&mut streams, cx);
        loop {
            if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(result.map_err(Into::into));
            }
            streams.extend(begun.take());
            // What those that do not end say wakes this task.
            if !advance(&mut streams, cx) {
                break;
            }
        }
        match held.send(cx) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error.into())),
        }
    })
    .await
}

type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Polls the streams that have something to do; whether one of them ended.
fn advance(streams: &mut FuturesUnordered<Stream>, cx: &mut Context<'_>) -> bool {
    let mut ended = false;
    while let Poll::Ready(Some(())) = streams.poll_next_unpin(cx) {
        ended = true;
    }
    ended
}

/// Streams that the connection began and nobody has polled.
#[derive(Clone, Default)]
struct Begun(Arc<Mutex<Vec<Stream>>>);

impl Begun {
    fn take(&self) -> Vec<Stream> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Begun {
    fn execute(&self, stream: F) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::pin(stream));
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
