//! One component each, over whatever client it is given: in this process or in one of its own.

mod access;
pub mod apiserver;
mod audit;
pub mod controller_flags;
pub mod controller_manager;
mod encryption;
mod gates;
pub mod inert;
mod listening;
mod reload;
pub mod scheduler;
pub mod simulated;
pub mod status;
pub mod store;

use std::net::SocketAddr;

use anyhow::{Context, Result};
use client::Client;

pub use access::AccessOptions;
pub use audit::AuditOptions;
pub use controller_manager::{ControllerManagerOptions, controller_manager, duration, run_controllers};
pub use gates::{FeatureGates, Serving};
pub use listening::{AdmissionOptions, ListeningOptions};
pub use scheduler::{SchedulerOptions, run_scheduler, scheduler};

pub const SCHEDULER: &str = "kube-scheduler";
pub const CONTROLLER_MANAGER: &str = "kube-controller-manager";

/// A whole number of seconds, `40s` or `40`.
pub fn seconds(text: &str) -> Result<std::time::Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    number
        .parse()
        .map(std::time::Duration::from_secs)
        .map_err(|_| format!("{text:?} is not a number of seconds such as 40s"))
}

/// A client from a kubeconfig.
pub async fn connect(kubeconfig: &std::path::Path, agent: &str) -> Result<Client> {
    Client::from_kubeconfig(kubeconfig, agent).await.with_context(|| format!("kubeconfig {}", kubeconfig.display()))
}

/// The same, of a server at another address than the kubeconfig's if one is said.
pub async fn connect_to(kubeconfig: &std::path::Path, server: Option<&str>, agent: &str) -> Result<Client> {
    let Some(server) = server else { return connect(kubeconfig, agent).await };
    Client::of_server(kubeconfig, server, agent).await.with_context(|| format!("kubeconfig {}", kubeconfig.display()))
}

/// The same for one of very many.
pub async fn connect_modestly(kubeconfig: &std::path::Path, agent: &str, in_flight: usize) -> Result<Client> {
    let connected = Client::modest(kubeconfig, agent, in_flight).await;
    connected.with_context(|| format!("kubeconfig {}", kubeconfig.display()))
}

/// This candidate for a lease.
fn identity() -> String {
    let host = nix::unistd::gethostname().map_or_else(|_| "localhost".into(), |h| h.to_string_lossy().into_owned());
    format!("{host}_{}", std::process::id())
}

/// A free port's address, or what is wrong with the one asked for.
pub async fn listen(address: SocketAddr) -> Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "{address} is in use: another process listens there. Stop it, or choose another address with --listen"
        ),
        std::io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("{address}: permission denied. Ports below 1024 need root")
        }
        std::io::ErrorKind::AddrNotAvailable => anyhow::anyhow!("{address}: this machine has no such address"),
        _ => anyhow::Error::new(error).context(format!("cannot listen on {address}")),
    })
}
