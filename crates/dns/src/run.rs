//! The shell: sockets, and the zone kept as the API says.
//!
//! A query is answered on the task that received it, under a read lock held for microseconds; only questions for other
//! servers get a task of their own. Until the first lists are in, names of the cluster are answered "try again".

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use client::{Batch, Client, Informer, Informers};
use hickory_proto::op::{Message, ResponseCode};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::address::{self, Held};
use crate::answer::{Outcome, Transport, add_foreign, answer, encode};
use crate::cache::Cache;
use crate::upstreams::Upstreams;
use crate::zone::{Zone, records};
use crate::{Config, forward};

/// The index of EndpointSlices by their Service; other components of a process use the same.
const BY_SERVICE: &str = "kubernetes.io/service-name";
/// Questions under way to other servers; beyond it askers are told to try again.
const MAX_FORWARDED: usize = 1000;
/// TCP connections; the next one is closed at once.
const MAX_CONNECTIONS: usize = 256;
/// Silence after which a TCP connection is closed, as RFC 7766 suggests.
const IDLE: Duration = Duration::from_secs(10);
/// The largest UDP query read; real ones have a few hundred bytes.
const QUERY_BYTES: usize = 4096;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until cancelled.
pub async fn run(config: Config, client: Client, cancel: CancellationToken) -> Result<()> {
    let Some(zone) = Zone::new(&config.domain, config.ttl) else {
        bail!("{:?} is no domain name the cluster could have", config.domain);
    };
    let Some(upstreams) = Upstreams::new(config.upstreams.clone(), &config.stub_domains) else {
        bail!("{:?}: a stub domain is no domain name", config.stub_domains);
    };
    let server = Arc::new(Server {
        zone: RwLock::new(zone),
        upstreams,
        cache: Mutex::default(),
        forwarded: Arc::new(Semaphore::new(MAX_FORWARDED)),
        connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
    });
    let mut held = Vec::new();
    let mut tasks = tokio::task::JoinSet::new();
    for address in &config.listen {
        let (udp, tcp) = bind(*address, &mut held).await.with_context(|| format!("DNS cannot listen on {address}"))?;
        tasks.spawn(server.clone().serve_udp(Arc::new(udp)));
        tasks.spawn(server.clone().serve_tcp(tcp));
    }
    let informers = Informers::new(client);
    cancel.run_until_cancelled(follow(&server, &informers)).await;
    tasks.shutdown().await;
    drop(held);
    Ok(())
}

/// Both sockets of an address, which is added to `lo` if this machine lacks it.
async fn bind(address: SocketAddr, held: &mut Vec<Held>) -> io::Result<(UdpSocket, TcpListener)> {
    let udp = match UdpSocket::bind(address).await {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            held.extend(address::hold(address.ip())?);
            UdpSocket::bind(address).await?
        }
        other => other?,
    };
    Ok((udp, TcpListener::bind(address).await?))
}

/// What of the zone is to be looked at again.
#[derive(Default)]
struct Dirty {
    services: BTreeSet<String>,
    everything: bool,
    namespaces: bool,
}

impl Dirty {
    fn services(&mut self, batch: &Batch) {
        match batch {
            Batch::Changes(changes) => self.services.extend(changes.iter().map(|change| change.key.to_string())),
            Batch::Resync => self.everything = true,
        }
    }

    fn slices(&mut self, batch: &Batch) {
        match batch {
            Batch::Changes(changes) => {
                let objects = changes.iter().flat_map(|change| [&change.old, &change.new]).flatten();
                self.services.extend(objects.filter_map(|slice| slice_owner(slice)));
            }
            Batch::Resync => self.everything = true,
        }
    }
}

/// The Service a slice belongs to, from its metadata alone.
fn slice_owner(slice: &client::Object) -> Option<String> {
    Some(format!("{}/{}", slice.meta.namespace, slice.meta.label(BY_SERVICE)?))
}

/// Keeps the zone as the API says.
async fn follow(server: &Server, informers: &Arc<Informers>) {
    let sources = Sources {
        services: informers.get::<Service>(),
        slices: informers.get::<EndpointSlice>(),
        namespaces: informers.get::<Namespace>(),
    };
    sources.slices.add_index(BY_SERVICE, |slice| slice_owner(slice).into_iter().collect());
    let mut services = sources.services.subscribe();
    let mut slices = sources.slices.subscribe();
    let mut namespaces = sources.namespaces.subscribe();
    tokio::join!(sources.services.synced(), sources.slices.synced(), sources.namespaces.synced());
    server.update(Dirty { everything: true, namespaces: true, ..Dirty::default() }, &sources);
    server.write().complete();
    loop {
        let mut dirty = Dirty::default();
        tokio::select! {
            batch = services.next() => match batch {
                Some(batch) => dirty.services(&batch),
                None => return,
            },
            batch = slices.next() => match batch {
                Some(batch) => dirty.slices(&batch),
                None => return,
            },
            batch = namespaces.next() => match batch {
                Some(_) => dirty.namespaces = true,
                None => return,
            },
        }
        server.update(dirty, &sources);
    }
}

struct Sources {
    services: Arc<Informer>,
    slices: Arc<Informer>,
    namespaces: Arc<Informer>,
}

struct Server {
    zone: RwLock<Zone>,
    upstreams: Upstreams,
    cache: Mutex<Cache>,
    forwarded: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Server {
    // The zone is whole after each of its methods, so a poisoned lock still guards a good one.
    fn read(&self) -> RwLockReadGuard<'_, Zone> {
        self.zone.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Zone> {
        self.zone.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is dirty anew. Records are made outside the lock.
    fn update(&self, mut dirty: Dirty, sources: &Sources) {
        if dirty.everything {
            dirty.services.extend(sources.services.list(None).iter().map(|service| service.meta.key()));
            dirty.services.extend(self.read().keys().map(str::to_string));
        }
        if dirty.namespaces {
            let now: HashSet<String> =
                sources.namespaces.list(None).iter().map(|namespace| namespace.meta.name.to_string()).collect();
            self.write().set_namespaces(now);
        }
        let origin = self.read().origin.clone();
        for key in &dirty.services {
            let service = sources.services.get(key).and_then(|service| service.typed::<Service>().ok());
            let slices: Vec<Arc<EndpointSlice>> =
                sources.slices.by_index(BY_SERVICE, key).iter().filter_map(|slice| slice.typed().ok()).collect();
            let made = service.and_then(|service| records(&service, slices.iter().map(|slice| &**slice), &origin));
            self.write().set_service(key, made);
        }
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; QUERY_BYTES];
        loop {
            let (length, peer) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    // An ICMP error for an earlier reply, mostly: the asker is gone.
                    tracing::debug!("DNS: {error}");
                    continue;
                }
            };
            let packet = &buffer[..length];
            let (outcome, size) = answer(&self.read(), packet, &self.upstreams);
            match outcome {
                Outcome::Ignore => {}
                Outcome::Reply(reply) => {
                    if let Some(bytes) = encode(reply, Transport::Udp, size) {
                        // An asker that cannot be reached asks again, or not.
                        let _ = socket.send_to(&bytes, peer).await;
                    }
                }
                asking => {
                    let (server, socket) = (self.clone(), socket.clone());
                    let Ok(permit) = self.forwarded.clone().try_acquire_owned() else {
                        if let Some(bytes) = refuse(asking).and_then(|reply| encode(reply, Transport::Udp, size)) {
                            let _ = socket.send_to(&bytes, peer).await;
                        }
                        continue;
                    };
                    tokio::spawn(async move {
                        if let Some(bytes) =
                            server.finish(asking).await.and_then(|reply| encode(reply, Transport::Udp, size))
                        {
                            let _ = socket.send_to(&bytes, peer).await;
                        }
                        drop(permit);
                    });
                }
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let Ok(permit) = self.connections.clone().try_acquire_owned() else { continue };
            let server = self.clone();
            tokio::spawn(async move {
                // Who hangs up or falls silent is no news.
                let _ = server.converse(stream).await;
                drop(permit);
            });
        }
    }

    /// One TCP connection's questions, one after the other.
    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        loop {
            let packet = tokio::time::timeout(IDLE, async {
                let mut packet = vec![0; usize::from(stream.read_u16().await?)];
                stream.read_exact(&mut packet).await.map(|_| packet)
            })
            .await??;
            let (outcome, _) = answer(&self.read(), &packet, &self.upstreams);
            let Some(bytes) = self.finish(outcome).await.and_then(|reply| encode(reply, Transport::Tcp, None)) else {
                return Ok(());
            };
            let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
            tokio::time::timeout(IDLE, stream.write_all(&[&length.to_be_bytes(), &bytes[..]].concat())).await??;
        }
    }

    /// Asks other servers where that is needed.
    async fn finish(&self, outcome: Outcome) -> Option<Message> {
        match outcome {
            Outcome::Ignore => None,
            Outcome::Reply(reply) => Some(reply),
            Outcome::Ask { mut reply, name, kind } => {
                // The cache is whole after each of its methods, so a poisoned lock still guards a good one.
                let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
                if cache().fill(&mut reply, &name, kind, Instant::now()) {
                    return Some(reply);
                }
                match forward::ask(self.upstreams.servers(&name), &name, kind).await {
                    Ok(foreign) => {
                        cache().keep(&name, kind, &foreign, Instant::now());
                        add_foreign(&mut reply, foreign);
                    }
                    Err(error) => {
                        tracing::debug!("cannot resolve {name}: {error}");
                        reply.metadata.response_code = ResponseCode::ServFail;
                    }
                }
                Some(reply)
            }
        }
    }
}

/// "Try again", to a question that there is no room for now.
fn refuse(outcome: Outcome) -> Option<Message> {
    match outcome {
        Outcome::Ignore => None,
        Outcome::Reply(mut reply) | Outcome::Ask { mut reply, .. } => {
            reply.metadata.response_code = ResponseCode::ServFail;
            Some(reply)
        }
    }
}
