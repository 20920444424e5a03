//! The etcd v3 API over the embedded store: what upstream's API server and `etcdctl` ask of etcd, answered by one member.
//!
//! Guarantees: reads are linearizable, an acknowledged write is durable, refusals have etcd's codes and words, and every
//! queue, stream and connection count is bounded ([`limits`]), so that one client cannot hold up another. Who may speak is
//! decided by client certificates alone; etcd's users and roles, its locks and elections are not served. Knows nothing of
//! the API server.

mod calls;
mod connections;
mod convert;
mod error;
mod http2;
pub(crate) mod key;
mod kv;
mod lease;
mod limits;
mod maintenance;
mod metrics;
mod opening;
mod pages;
mod range;
mod tls;
mod txn;
mod watch;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tonic::Status;

use crate::embedded::Embedded;
use crate::etcdserverpb;
use crate::{Revision, StoreError};

/// The version of etcd whose API this is, for clients that choose by it: the first of 3.5 from whose progress answers a
/// client may conclude that it has all events.
pub const API_VERSION: &str = "3.5.13";

/// A lone member was elected once and for all.
const TERM: u64 = 1;

/// How often watches that ask for it hear how far they are; as clusters set it for etcd.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// How long clients may take to go when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The server's certificate, and whose clients it takes.
#[derive(Clone)]
pub struct Tls {
    /// The certificate chain, PEM.
    pub cert: Vec<u8>,
    /// Its key, PEM.
    pub key: Vec<u8>,
    /// The authority whose client certificates are needed, PEM; none: whoever reaches the port is served.
    pub client_ca: Option<Vec<u8>>,
}

/// How to serve.
#[derive(Clone)]
pub struct Options {
    /// HTTPS instead of HTTP.
    pub tls: Option<Tls>,
    /// The URLs that clients are told to use.
    pub client_urls: Vec<String>,
    /// How often watches that ask for it hear how far they are. Default 5 s.
    pub progress_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { tls: None, client_urls: Vec::new(), progress_interval: PROGRESS_INTERVAL }
    }
}

/// What all services share.
pub(crate) struct Served {
    store: Arc<Embedded>,
    cluster: u64,
    member: u64,
    client_urls: Vec<String>,
    progress_interval: Duration,
    /// Watches on all streams.
    watches: AtomicUsize,
    /// The store had no room for the last write.
    full: AtomicBool,
    /// Numbers the files snapshots are sent from.
    saves: AtomicU64,
    snapshots: Arc<Semaphore>,
    calls: Arc<calls::Calls>,
    /// Events sent to watches.
    events: AtomicU64,
    /// Bytes that came and went on all connections.
    received: AtomicU64,
    sent: AtomicU64,
    /// Becomes true when the server stops: streams end.
    stopping: tokio::sync::watch::Sender<bool>,
}

impl Served {
    fn new(store: Arc<Embedded>, options: &Options) -> Self {
        let cluster = store.identity().max(1);
        Served {
            cluster,
            member: cluster.rotate_left(32) | 1,
            client_urls: options.client_urls.clone(),
            progress_interval: options.progress_interval.max(Duration::from_millis(10)),
            watches: AtomicUsize::new(0),
            full: AtomicBool::new(false),
            saves: AtomicU64::new(0),
            snapshots: Arc::new(Semaphore::new(limits::MAX_SNAPSHOTS)),
            calls: Arc::default(),
            events: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            stopping: tokio::sync::watch::Sender::new(false),
            store,
        }
    }

    fn header(&self, revision: Revision) -> etcdserverpb::ResponseHeader {
        etcdserverpb::ResponseHeader {
            cluster_id: self.cluster,
            member_id: self.member,
            revision: revision as i64,
            raft_term: TERM,
        }
    }

    /// Waits until the server stops.
    async fn stopped(&self) {
        // Never fails: the sender is here.
        _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    fn header_now(&self) -> etcdserverpb::ResponseHeader {
        let revision = *self.store.published().borrow();
        self.header(revision)
    }

    /// The outcome of a write in etcd's words; remembers whether there was room.
    fn noted<T>(&self, outcome: Result<T, StoreError>) -> Result<T, Status> {
        match &outcome {
            Err(StoreError::Full(_)) => self.full.store(true, Ordering::Relaxed),
            Ok(_) if self.full.load(Ordering::Relaxed) => self.full.store(false, Ordering::Relaxed),
            _ => {}
        }
        outcome.map_err(error::status)
    }
}

/// Serves until `stop`; then lets requests under way finish and streams end.
pub fn serve(
    store: Arc<Embedded>,
    listener: TcpListener,
    options: Options,
    stop: impl Future<Output = ()> + Send + 'static,
) -> BoxFuture<'static, Result<(), StoreError>> {
    boxed(store, listener, options, Box::pin(stop))
}

/// Built here, with what this crate is built for, and not where it is called.
fn boxed(
    store: Arc<Embedded>,
    listener: TcpListener,
    options: Options,
    stop: BoxFuture<'static, ()>,
) -> BoxFuture<'static, Result<(), StoreError>> {
    Box::pin(serving(store, listener, options, stop))
}

async fn serving(
    store: Arc<Embedded>,
    listener: TcpListener,
    options: Options,
    mut stop: BoxFuture<'static, ()>,
) -> Result<(), StoreError> {
    let served = Arc::new(Served::new(store, &options));
    let tls = options.tls.as_ref().map(tls::acceptor).transpose()?;
    let services = http2::Services::new(served.clone());
    let incoming = connections::Connections::new(listener);
    let mut open = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            (stream, place) = incoming.next() => {
                let (tls, services) = (tls.clone(), services.clone());
                open.spawn(async move {
                    if let Err(error) = connection(stream, tls, services).await {
                        tracing::debug!(error, "a connection of the etcd API ended");
                    }
                    drop(place);
                });
            }
            Some(_) = open.join_next(), if !open.is_empty() => {}
            () = &mut stop => break,
        }
    }
    drop(incoming);
    served.stopping.send_replace(true);
    // Who takes longer is cut off.
    _ = tokio::time::timeout(STOP_TIMEOUT, async { while open.join_next().await.is_some() {} }).await;
    Ok(())
}

async fn connection(
    stream: tokio::net::TcpStream,
    tls: Option<tokio_rustls::TlsAcceptor>,
    services: http2::Services,
) -> Result<(), String> {
    match tls {
        None => opened(stream, services).await,
        Some(tls) => {
            let accepted = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, tls.accept(stream)).await;
            let stream = accepted.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            opened(stream, services).await
        }
    }
}

/// The API in HTTP/2, pages in HTTP/1.1.
async fn opened(io: impl AsyncRead + AsyncWrite + Unpin, services: http2::Services) -> Result<(), String> {
    let io = connections::Counted { io, served: services.served().clone() };
    let opened = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, opening::open(io)).await;
    match opened.map_err(|error| error.to_string())?.map_err(|error| error.to_string())? {
        (true, io) => http2::serve(io, services).await.map_err(|error| error.to_string()),
        (false, io) => pages::serve(io, services.served().clone()).await.map_err(|error| error.to_string()),
    }
}
