//! One component each, over whatever client it is given: in this process or in one of its own.

pub mod apiserver;
pub mod scheduler;
pub mod simulated;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use client::{Client, Informers};
use tokio_util::sync::CancellationToken;

pub use scheduler::{SchedulerOptions, run_scheduler, scheduler};

use crate::cli::{ApiAccess, Ranges};

pub const SCHEDULER: &str = "kube-scheduler";
pub const CONTROLLER_MANAGER: &str = "kube-controller-manager";

#[derive(clap::Args, Clone)]
pub struct ControllerManagerOptions {
    #[command(flatten)]
    pub api: ApiAccess,
    #[command(flatten)]
    pub ranges: Ranges,
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_elect: bool,
    /// Published in each namespace as `kube-root-ca.crt`.
    #[arg(long)]
    pub root_ca_file: Option<PathBuf>,
    /// `*`, names, and `-name` for those to leave out.
    #[arg(long, value_delimiter = ',', default_value = "*")]
    pub controllers: Vec<String>,
    #[arg(long, value_parser = seconds, default_value = "40s")]
    pub node_monitor_grace_period: std::time::Duration,
}

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

pub async fn controller_manager(options: ControllerManagerOptions, cancel: CancellationToken) -> Result<()> {
    let client = connect(&options.api.kubeconfig, CONTROLLER_MANAGER).await?;
    let root_ca = match &options.root_ca_file {
        Some(file) => Some(std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?),
        None => None,
    };
    let controllers = controllers::Options {
        controllers: options.controllers,
        node_monitor_grace_period: options.node_monitor_grace_period,
        ..controller_options(&options.ranges, root_ca)
    };
    run_controllers(client, options.leader_elect, controllers, cancel).await
}

pub fn controller_options(ranges: &Ranges, root_ca: Option<String>) -> controllers::Options {
    controllers::Options {
        cluster_cidrs: vec![ranges.cluster_cidr.into()],
        service_cidrs: vec![ranges.service_cluster_ip_range.into()],
        root_ca,
        ..controllers::Options::default()
    }
}

pub async fn run_controllers(
    client: Client,
    elect: bool,
    options: controllers::Options,
    cancel: CancellationToken,
) -> Result<()> {
    let informers = Informers::new(client.clone());
    let run = |cancel: CancellationToken| controllers::run(client.clone(), informers.clone(), options.clone(), cancel);
    lead(&client, elect, CONTROLLER_MANAGER, cancel, run).await
}

/// This candidate for a lease.
fn identity() -> String {
    let host = nix::unistd::gethostname().map_or_else(|_| "localhost".into(), |h| h.to_string_lossy().into_owned());
    format!("{host}_{}", std::process::id())
}

/// Runs a component, when asked only while it holds its lease.
async fn lead<F, Fut, E>(client: &Client, elect: bool, name: &str, cancel: CancellationToken, run: F) -> Result<()>
where
    F: Fn(CancellationToken) -> Fut,
    Fut: std::future::Future<Output = Result<(), E>>,
    E: std::error::Error + Send + Sync + 'static,
{
    if !elect {
        return run(cancel).await.map_err(Into::into);
    }
    let election = client::LeaderElection::new(client.clone(), "kube-system", name, &identity());
    match election.run(cancel, run).await {
        Some(Err(error)) => Err(error.into()),
        Some(Ok(())) | None => Ok(()),
    }
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
