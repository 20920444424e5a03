//! The ways between nodes' pods alone, for a machine that is a node by itself: beside `kubelet`, `runtime` and `proxy`.

use anyhow::{Result, bail};
use client::Informers;
use tokio_util::sync::CancellationToken;

use super::own_hostname;
use crate::cli::ApiAccess;
use crate::{fabric, roles};

#[derive(clap::Args, Clone)]
pub struct PodNetworkRoleOptions {
    #[command(flatten)]
    pub api: ApiAccess,
    /// The node's name [default: the host's].
    #[arg(long)]
    pub hostname_override: Option<String>,
    #[command(flatten)]
    pub network: fabric::PodNetworkOptions,
}

pub async fn pod_network(options: PodNetworkRoleOptions, cancel: CancellationToken) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the ways between nodes are the kernel's: run this as root");
    }
    let name = own_hostname(options.hostname_override)?;
    let informers = Informers::new(roles::connect(&options.api.kubeconfig, "nauplius-routes").await?);
    Ok(fabric::pod_network(&options.network, informers, &name, cancel).await?)
}
