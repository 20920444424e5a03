//! Node ports and load balancers, published on the host's loopback.
//!
//! A node lives in a namespace the host has no route into, so `127.0.0.1:NODEPORT` on the host, and `127.0.0.1:PORT` for a
//! Service of type LoadBalancer, is carried over by this process: it accepts there, connects to the port inside the
//! namespace, and copies bytes both ways. Of two load balancers with one port the first by name has it. TCP only,
//! loopback only; the proxy's rules inside the namespace decide which pod answers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use client::Informers;
use k8s_openapi::api::core::v1::Service;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::connect_in;

/// Connections carried at once, over all ports; each costs two sockets and two 8 KiB buffers. The next one is closed
/// at once.
const MAX_CONNECTIONS: usize = 1024;
/// How long the node may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A port that could not be had (somebody else listens there) is tried again this often.
const RETRY: Duration = Duration::from_secs(10);
/// After a failed accept (out of file descriptors, mostly), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Follows Services and publishes each TCP port that is meant for outside on the host's loopback until cancelled. `namespace` and `address`
/// are those of the node that serves them.
pub async fn publish_node_ports(
    informers: Arc<Informers>,
    namespace: PathBuf,
    address: IpAddr,
    cancel: CancellationToken,
) {
    let services = informers.get::<Service>();
    let mut changes = services.subscribe();
    let carrier = Arc::new(Carrier { namespace, room: Arc::new(Semaphore::new(MAX_CONNECTIONS)) });
    let mut open: BTreeMap<u16, (SocketAddr, DropGuard)> = BTreeMap::new();
    let mut refused: BTreeSet<u16> = BTreeSet::new();
    loop {
        let mut objects = services.list(None);
        objects.sort_by_key(|object| object.meta.key());
        let mut wanted: BTreeMap<u16, SocketAddr> = BTreeMap::new();
        for service in objects.iter().filter_map(|object| object.typed::<Service>().ok()) {
            for (port, target) in published(&service, address) {
                wanted.entry(port).or_insert(target);
            }
        }
        open.retain(|port, (target, _)| wanted.get(port) == Some(target));
        refused.retain(|port| wanted.contains_key(port));
        for (port, target) in wanted {
            if open.contains_key(&port) {
                continue;
            }
            match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
                Ok(listener) => {
                    refused.remove(&port);
                    let stop = cancel.child_token();
                    let carrier = carrier.clone();
                    let stopped = stop.clone();
                    tokio::spawn(async move { stopped.run_until_cancelled(carrier.serve(listener, target)).await });
                    open.insert(port, (target, stop.drop_guard()));
                }
                Err(error) => {
                    if refused.insert(port) {
                        tracing::warn!("port {port} is not published on 127.0.0.1: {error}");
                    }
                }
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = changes.next() => if changed.is_none() { return },
            () = tokio::time::sleep(RETRY), if !refused.is_empty() => {}
        }
    }
}

/// Where a Service's TCP ports are published, and where they lead: load balancers' first, then node ports of the node
/// with this address.
pub(super) fn published(service: &Service, node: IpAddr) -> Vec<(u16, SocketAddr)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let tcp = || spec.ports.iter().flatten().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    let number = |number: i32| u16::try_from(number).ok().filter(|number| *number != 0);
    let balancer = service.status.iter().filter_map(|status| status.load_balancer.as_ref());
    let address = balancer
        .flat_map(|balancer| balancer.ingress.iter().flatten())
        .find_map(|ingress| ingress.ip.as_ref()?.parse::<IpAddr>().ok())
        .filter(|_| spec.type_.as_deref() == Some("LoadBalancer"));
    let balanced = address.into_iter().flat_map(|address| {
        tcp().filter_map(move |port| Some((number(port.port)?, SocketAddr::from((address, number(port.port)?)))))
    });
    let node_ports = tcp().filter_map(|port| {
        let port = number(port.node_port?)?;
        Some((port, SocketAddr::from((node, port))))
    });
    balanced.chain(node_ports).collect()
}

struct Carrier {
    namespace: PathBuf,
    room: Arc<Semaphore>,
}

impl Carrier {
    async fn serve(self: Arc<Self>, listener: TcpListener, target: SocketAddr) {
        loop {
            let near = match listener.accept().await {
                Ok((near, _)) => near,
                Err(error) => {
                    tracing::debug!("{target}: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match self.room.clone().try_acquire_owned() {
                Ok(permit) => {
                    let carrier = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = carrier.carry(near, target, permit).await {
                            tracing::debug!("{target}: {error}");
                        }
                    });
                }
                Err(_) => tracing::debug!("{target}: {MAX_CONNECTIONS} connections are carried already"),
            }
        }
    }

    async fn carry(&self, mut near: TcpStream, target: SocketAddr, _permit: OwnedSemaphorePermit) -> io::Result<()> {
        near.set_nodelay(true)?;
        let mut far = tokio::time::timeout(CONNECT_TIMEOUT, connect_in(&self.namespace, target)).await??;
        tokio::io::copy_bidirectional(&mut near, &mut far).await.map(drop)
    }
}
