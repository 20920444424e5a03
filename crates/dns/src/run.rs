//! The shell: sockets, and the zone kept as the API says.
//!
//! A query is answered on the task that received it, under a read lock held for microseconds; only questions for other
//! servers get a task of their own. Until the first lists are in, names of the cluster are answered "try again".

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use client::answers::{Answer, serve};
use client::{Client, Informers, Keep, News, Reflector, Scope, gvr_of};
use futures_core::future::BoxFuture;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::address::{self, Held};
use crate::answer::{Outcome, Takes, Transport, add_foreign, answer, encode};
use crate::cache::Cache;
use crate::metrics::{Answered, By, Metrics};
use crate::settings::Settings;
use crate::untracked::untracked;
use crate::upstreams::Upstreams;
use crate::world::{World, triggered};
use crate::zone::Zone;
use crate::{Config, forward, settings};

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
        upstreams: RwLock::new(Arc::new(upstreams)),
        cache: Mutex::default(),
        metrics: Arc::default(),
        forwarded: Arc::new(Semaphore::new(MAX_FORWARDED)),
        connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
    });
    let untracked = match config.untracked {
        true => untracked(&config.listen).await,
        false => Ok(None),
    };
    if let Err(error) = &untracked {
        tracing::warn!("the kernel remembers every question as a connection: {error:#}");
    }
    let mut held = Vec::new();
    let mut tasks = tokio::task::JoinSet::new();
    for address in &config.listen {
        let (udp, tcp) = bind(*address, &mut held).await.with_context(|| format!("DNS cannot listen on {address}"))?;
        tasks.spawn(server.clone().serve_udp(Arc::new(udp)));
        tasks.spawn(server.clone().serve_tcp(tcp));
    }
    let mut pages = Vec::new();
    for address in &config.metrics {
        match TcpListener::bind(address).await {
            Ok(listener) => pages.push(serve(listener, server.clone().pages())),
            Err(error) => tracing::warn!("DNS does not show its metrics on {address}: {error}"),
        }
    }
    cancel
        .run_until_cancelled(async {
            tokio::select! {
                () = follow(&server, &client) => {}
                () = follow_settings(&server, &client, &config) => {}
            }
        })
        .await;
    tasks.shutdown().await;
    drop(pages);
    drop(untracked);
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
                Some(news) => all_slices |= server.take_slices(news, &mut world, all_slices),
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

/// Asks the servers that the ConfigMap names, from when it does; those of the start when it says nothing or is not there.
async fn follow_settings(server: &Server, client: &Client, config: &Config) {
    let Some((namespace, name)) = &config.config_map else { return std::future::pending().await };
    let scope = Scope {
        namespace: namespace.clone(),
        field_selector: Some(format!("metadata.name={name}")),
        ..Scope::all(gvr_of::<ConfigMap>())
    };
    let mut news = Reflector::start(client, scope);
    let mut now = Settings::default();
    while let Some(batch) = news.next().await {
        for one in batch {
            let said = match one {
                News::Put(object) => {
                    let data = read::<ConfigMap>(&object).and_then(|map| map.data).unwrap_or_default();
                    let (said, faults) = settings::read(&data);
                    for fault in faults {
                        tracing::warn!("the ConfigMap {namespace}/{name} for the DNS is passed over in part: {fault}");
                    }
                    said
                }
                News::Gone(_) => Settings::default(),
                News::Complete => continue,
            };
            if said != now {
                server.ask_others(&said, config);
                now = said;
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
    upstreams: RwLock<Arc<Upstreams>>,
    cache: Mutex<Cache>,
    metrics: Arc<Metrics>,
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

    // So is the cache, and whom to ask is one pointer.
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn upstreams(&self) -> Arc<Upstreams> {
        self.upstreams.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Other servers from now on, and nothing remembered of what those before them said.
    fn ask_others(&self, said: &Settings, config: &Config) {
        let default = said.upstreams.clone().unwrap_or_else(|| config.upstreams.clone());
        let own = config.stub_domains.iter().filter(|(domain, _)| !said.stub_domains.iter().any(|(d, _)| d == domain));
        let stubs: Vec<_> = said.stub_domains.iter().chain(own).cloned().collect();
        // Names were checked when they were read.
        let Some(upstreams) = Upstreams::new(default, &stubs) else { return };
        *self.upstreams.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(upstreams);
        self.cache().clear();
    }

    /// What is shown to probes and scrapers.
    fn pages(self: Arc<Self>) -> impl Fn(&str) -> Answer + Send + Sync + 'static {
        move |path| match path {
            "/metrics" => {
                {
                    let cache = self.cache();
                    self.metrics.holds(cache.held(), cache.evicted());
                }
                let page = self.metrics.render() + &client::process::text();
                Answer { content_type: "text/plain; version=0.0.4", ..Answer::text(200, page) }
            }
            "/health" => Answer::text(200, "OK"),
            "/ready" if self.read().is_complete() => Answer::text(200, "OK"),
            "/ready" => Answer::text(503, "kubernetes"),
            _ => Answer::text(404, "404 page not found\n"),
        }
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

    /// Changes after the first list count for how long they took to get here.
    fn take_slices(&self, news: Vec<News>, world: &mut World, listed: bool) -> bool {
        let mut all = false;
        let mut changed = BTreeSet::new();
        let mut triggers = Vec::new();
        for one in news {
            match one {
                News::Put(object) => {
                    let Some(slice) = read::<EndpointSlice>(&object) else { continue };
                    let headless = world.set_slice(&slice);
                    if listed && !headless.is_empty() {
                        triggers.extend(triggered(&slice));
                    }
                    changed.extend(headless);
                }
                News::Gone(key) => changed.extend(world.remove_slice(&key)),
                News::Complete => all = true,
            }
        }
        let origin = self.read().origin.clone();
        for key in changed {
            let records = world.records(&key, &origin);
            self.write().set_service(&key, records);
        }
        let now = SystemTime::now();
        triggers.iter().for_each(|then| self.metrics.programmed(now.duration_since(*then).unwrap_or_default()));
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
            let mut asked = Asked {
                transport: Transport::Udp,
                peer,
                began: Instant::now(),
                bytes: length,
                takes: Takes::default(),
            };
            let outcome = self.begin(&buffer[..length], &mut asked);
            match outcome {
                Outcome::Ignore => {}
                Outcome::Reply(reply) => {
                    if let Some(bytes) = self.end(reply, By::Zone, &asked) {
                        // An asker that cannot be reached asks again, or not.
                        let _ = socket.send_to(&bytes, peer).await;
                    }
                }
                asking => {
                    let (server, socket) = (self.clone(), socket.clone());
                    let Ok(permit) = self.forwarded.clone().try_acquire_owned() else {
                        self.metrics.rejected();
                        if let Some(bytes) = refuse(asking).and_then(|reply| self.end(reply, By::Nobody, &asked)) {
                            let _ = socket.send_to(&bytes, peer).await;
                        }
                        continue;
                    };
                    tokio::spawn(async move {
                        if let Some((reply, by)) = server.finish(asking).await
                            && let Some(bytes) = server.end(reply, by, &asked)
                        {
                            let _ = socket.send_to(&bytes, peer).await;
                        }
                        drop(permit);
                    });
                }
            }
        }
    }

    /// Decides a packet, as far as that can be done here.
    fn begin(&self, packet: &[u8], asked: &mut Asked) -> Outcome {
        let upstreams = self.upstreams();
        let (outcome, takes) = answer(&self.read(), packet, &upstreams);
        asked.takes = takes;
        outcome
    }

    /// The reply's bytes; counted.
    fn end(&self, reply: Message, by: By, asked: &Asked) -> Option<Vec<u8>> {
        let code = reply.metadata.response_code;
        let kind = reply.queries.first().map_or(RecordType::ZERO, |query| query.query_type);
        let by = if by == By::Zone && !reply.metadata.authoritative { By::Nobody } else { by };
        let bytes = encode(reply, asked.transport, asked.takes)?;
        self.metrics.answered(&Answered {
            transport: asked.transport,
            over_v4: asked.peer.is_ipv4(),
            kind,
            code,
            signatures: asked.takes.signatures,
            by,
            took: asked.began.elapsed(),
            sizes: (asked.bytes, bytes.len()),
        });
        Some(bytes)
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let Ok(permit) = self.connections.clone().try_acquire_owned() else { continue };
            let server = self.clone();
            tokio::spawn(async move {
                // Who hangs up or falls silent is no news.
                let _ = server.converse(stream, peer).await;
                drop(permit);
            });
        }
    }

    /// One TCP connection's questions, one after the other.
    async fn converse(&self, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        loop {
            let packet = tokio::time::timeout(IDLE, async {
                let mut packet = vec![0; usize::from(stream.read_u16().await?)];
                stream.read_exact(&mut packet).await.map(|_| packet)
            })
            .await??;
            let (began, bytes) = (Instant::now(), packet.len());
            let mut asked = Asked { transport: Transport::Tcp, peer, began, bytes, takes: Takes::default() };
            let outcome = self.begin(&packet, &mut asked);
            let Some((reply, by)) = self.finish(outcome).await else { return Ok(()) };
            let Some(bytes) = self.end(reply, by, &asked) else { return Ok(()) };
            let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
            tokio::time::timeout(IDLE, stream.write_all(&[&length.to_be_bytes(), &bytes[..]].concat())).await??;
        }
    }

    /// Asks other servers where that is needed; and says who had the answer.
    async fn finish(&self, outcome: Outcome) -> Option<(Message, By)> {
        match outcome {
            Outcome::Ignore => None,
            Outcome::Reply(reply) => Some((reply, By::Zone)),
            Outcome::Ask { mut reply, name, kind } => {
                let found = self.cache().fill(&mut reply, &name, kind, Instant::now());
                self.metrics.looked_up(found);
                if found.is_some() {
                    return Some((reply, By::Cache));
                }
                let upstreams = self.upstreams();
                match forward::ask(upstreams.servers(&name), &name, kind, &self.metrics).await {
                    Ok(foreign) => {
                        // Whom nobody asks any more must not be remembered.
                        if Arc::ptr_eq(&upstreams, &self.upstreams()) {
                            self.cache().keep(&name, kind, &foreign, Instant::now());
                        }
                        add_foreign(&mut reply, foreign);
                    }
                    Err(error) => {
                        tracing::debug!("cannot resolve {name}: {error}");
                        reply.metadata.response_code = ResponseCode::ServFail;
                    }
                }
                Some((reply, By::Forward))
            }
        }
    }
}

/// A question on its way.
struct Asked {
    transport: Transport,
    peer: SocketAddr,
    began: Instant,
    bytes: usize,
    takes: Takes,
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
