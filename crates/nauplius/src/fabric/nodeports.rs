//! Node ports, published on the host's loopback.
//!
//! A node lives in a namespace the host has no route into, so `127.0.0.1:NODEPORT` on the host is carried over by this
//! process: it accepts there, connects to the node's port inside the namespace, and copies bytes both ways. TCP only,
//! loopback only; the proxy's rules inside the namespace decide which pod answers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
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

/// Follows Services and publishes each TCP node port on the host's loopback until cancelled. `namespace` and `address`
/// are those of the node that serves them.
pub async fn publish_node_ports(
    informers: Arc<Informers>,
    namespace: PathBuf,
    address: Ipv4Addr,
    cancel: CancellationToken,
) {
    let services = informers.get::<Service>();
    let mut changes = services.subscribe();
    let carrier = Arc::new(Carrier { namespace, address, room: Arc::new(Semaphore::new(MAX_CONNECTIONS)) });
    let mut published: BTreeMap<u16, DropGuard> = BTreeMap::new();
    let mut refused: BTreeSet<u16> = BTreeSet::new();
    loop {
        let wanted: BTreeSet<u16> = services
            .list(None)
            .iter()
            .filter_map(|object| object.typed::<Service>().ok())
            .flat_map(|service| tcp_node_ports(&service))
            .collect();
        published.retain(|port, _| wanted.contains(port));
        refused.retain(|port| wanted.contains(port));
        for port in wanted {
            if published.contains_key(&port) {
                continue;
            }
            match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
                Ok(listener) => {
                    refused.remove(&port);
                    let stop = cancel.child_token();
                    let carrier = carrier.clone();
                    let stopped = stop.clone();
                    tokio::spawn(async move { stopped.run_until_cancelled(carrier.serve(listener, port)).await });
                    published.insert(port, stop.drop_guard());
                }
                Err(error) => {
                    if refused.insert(port) {
                        tracing::warn!("node port {port} is not published on 127.0.0.1: {error}");
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

/// A Service's TCP node ports.
pub(super) fn tcp_node_ports(service: &Service) -> Vec<u16> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports
        .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
        .filter_map(|port| u16::try_from(port.node_port?).ok())
        .filter(|port| *port != 0)
        .collect()
}

struct Carrier {
    namespace: PathBuf,
    address: Ipv4Addr,
    room: Arc<Semaphore>,
}

impl Carrier {
    async fn serve(self: Arc<Self>, listener: TcpListener, port: u16) {
        loop {
            let near = match listener.accept().await {
                Ok((near, _)) => near,
                Err(error) => {
                    tracing::debug!("node port {port}: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match self.room.clone().try_acquire_owned() {
                Ok(permit) => {
                    let carrier = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = carrier.carry(near, port, permit).await {
                            tracing::debug!("node port {port}: {error}");
                        }
                    });
                }
                Err(_) => tracing::debug!("node port {port}: {MAX_CONNECTIONS} connections are carried already"),
            }
        }
    }

    async fn carry(&self, mut near: TcpStream, port: u16, _permit: OwnedSemaphorePermit) -> io::Result<()> {
        near.set_nodelay(true)?;
        let target = SocketAddr::from((self.address, port));
        let mut far = tokio::time::timeout(CONNECT_TIMEOUT, connect_in(&self.namespace, target)).await??;
        tokio::io::copy_bidirectional(&mut near, &mut far).await.map(drop)
    }
}
