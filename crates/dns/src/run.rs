//! The shell: sockets, and the zone kept as the API says.
//!
//! A query is answered on the task that received it, under a read lock held for microseconds; only questions for other
//! servers get a task of their own. Until the first lists are in, names of the cluster are answered "try again".

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use client::{Client, Informers, Keep, News, Reflector, Scope, gvr_of};
use futures_core::future::BoxFuture;
use hickory_proto::op::{Message, ResponseCode};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::address::{self, Held};
use crate::answer::{Outcome, Transport, add_foreign, answer, encode};
use crate::cache::Cache;
use crate::upstreams::Upstreams;
use crate::world::World;
use crate::zone::Zone;
use crate::{Config, forward};

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
pub fn run(config: Config, client: Client, cancel: CancellationToken) -> BoxFuture<'static, Result<()>> {
    Box::pin(running(config, client, cancel))
}

async fn running(config: Config, client: Client, cancel: CancellationToken) -> Result<()> {
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
    cancel.run_until_cancelled(follow(&server, &client)).await;
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

/// Keeps the zone as the API says.
async fn follow(server: &Server, client: &Client) {
    let mut services = Reflector::start(client, Scope::all(gvr_of::<Service>()));
    let mut slices = Reflector::start(client, Scope::all(gvr_of::<EndpointSlice>()));
    let informers = Informers::new(client.clone());
    let namespaces = informers.get_scope(Scope::all(gvr_of::<Namespace>()).keeping(Keep::Metadata));
    let mut namespace_changes = namespaces.subscribe();
    let mut world = World::default();
    let (mut all_services, mut all_slices, mut complete) = (false, false, false);
    loop {
        tokio::select! {
            news = services.next() => match news {
                Some(news) => all_services |= server.take_services(news, &mut world),
                None => return,
            },
            news = slices.next() => match news {
                Some(news) => all_slices |= server.take_slices(news, &mut world),
                None => return,
            },
            batch = namespace_changes.next() => match batch {
                Some(_) => {
                    let all = namespaces.list(None).iter().map(|namespace| namespace.meta.name.to_string()).collect();
                    server.write().set_namespaces(all);
                }
                None => return,
            },
            // An empty list changes nothing that could be heard of above.
            () = namespaces.synced(), if !complete && all_services && all_slices => {
                complete = true;
                server.write().complete();
            }
        }
    }
}

/// Reads an object; what is made of it is kept, not the object.
fn read<T: DeserializeOwned>(object: &client::Object) -> Option<T> {
    match serde_json::from_slice(object.raw()) {
        Ok(read) => Some(read),
        Err(error) => {
            tracing::warn!("cannot read {} {}: {error}", object.kind, object.meta.key());
            None
        }
    }
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

    /// Whether that was all. Records are made outside the lock.
    fn take_services(&self, news: Vec<News>, world: &mut World) -> bool {
        let origin = self.read().origin.clone();
        let mut all = false;
        for one in news {
            match one {
                News::Put(object) => {
                    let Some(service) = read::<Service>(&object) else { continue };
                    let records = world.set_service(&service, &origin);
                    self.write().set_service(&object.meta.key(), records);
                }
                News::Gone(key) => {
                    world.remove_service(&key);
                    self.write().set_service(&key, None);
                }
                News::Complete => all = true,
            }
        }
        all
    }

    fn take_slices(&self, news: Vec<News>, world: &mut World) -> bool {
        let mut all = false;
        let mut changed = BTreeSet::new();
        for one in news {
            match one {
                News::Put(object) => changed.extend(read(&object).iter().flat_map(|slice| world.set_slice(slice))),
                News::Gone(key) => changed.extend(world.remove_slice(&key)),
                News::Complete => all = true,
            }
        }
        let origin = self.read().origin.clone();
        for key in changed {
            let records = world.records(&key, &origin);
            self.write().set_service(&key, records);
        }
        all
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
