//! The service proxy alone, with upstream's flags and configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use proxy::Family;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::own_hostname;
use crate::roles;

/// How often the configuration file is looked at.
const CONFIGURATION_LOOK: Duration = Duration::from_secs(5);

#[derive(clap::Args, Clone)]
pub struct ProxyOptions {
    /// Credentials and address of the API server; the configuration file may name them too.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// A KubeProxyConfiguration; what it says goes before flags, but for --hostname-override.
    #[arg(long)]
    pub config: Option<PathBuf>,
    #[arg(long)]
    pub hostname_override: Option<String>,
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<ipnet::IpNet>,
    #[arg(long, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub masquerade_all: Option<bool>,
    #[arg(long, value_delimiter = ',')]
    pub nodeport_addresses: Vec<ipnet::IpNet>,
    #[command(flatten)]
    pub document: DocumentFlags,
    #[arg(long)]
    pub healthz_bind_address: Option<SocketAddr>,
    #[arg(long)]
    pub metrics_bind_address: Option<SocketAddr>,
    /// Enforce NetworkPolicies too; needs to read them, Pods and Namespaces.
    #[arg(long)]
    pub network_policies: bool,
    /// Remove the proxy's rules from this network namespace, and end.
    #[arg(long)]
    pub cleanup: bool,
    #[command(flatten)]
    pub taken: TakenFlags,
}

/// Flags that say what a configuration file's fields would, and are read as such.
#[derive(clap::Args, Clone, Default)]
pub struct DocumentFlags {
    #[arg(long)]
    detect_local_mode: Option<String>,
    #[arg(long)]
    pod_bridge_interface: Option<String>,
    #[arg(long)]
    pod_interface_name_prefix: Option<String>,
    #[arg(long)]
    conntrack_max_per_core: Option<i64>,
    #[arg(long)]
    conntrack_min: Option<i64>,
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    conntrack_tcp_be_liberal: Option<bool>,
    #[arg(long)]
    conntrack_tcp_timeout_established: Option<String>,
    #[arg(long)]
    conntrack_tcp_timeout_close_wait: Option<String>,
    #[arg(long)]
    conntrack_udp_timeout: Option<String>,
    #[arg(long)]
    conntrack_udp_timeout_stream: Option<String>,
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    bind_address_hard_fail: Option<bool>,
    #[arg(long, allow_hyphen_values = true)]
    oom_score_adj: Option<i64>,
}

impl DocumentFlags {
    /// As a configuration file would say it.
    fn document(&self) -> Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "detectLocalMode": self.detect_local_mode,
            "detectLocal": {
                "bridgeInterface": self.pod_bridge_interface, "interfaceNamePrefix": self.pod_interface_name_prefix,
            },
            "conntrack": {
                "maxPerCore": self.conntrack_max_per_core, "min": self.conntrack_min,
                "tcpBeLiberal": self.conntrack_tcp_be_liberal,
                "tcpEstablishedTimeout": self.conntrack_tcp_timeout_established,
                "tcpCloseWaitTimeout": self.conntrack_tcp_timeout_close_wait,
                "udpTimeout": self.conntrack_udp_timeout, "udpStreamTimeout": self.conntrack_udp_timeout_stream,
            },
            "bindAddressHardFail": self.bind_address_hard_fail,
            "oomScoreAdj": self.oom_score_adj,
        })
    }
}

/// Flags of upstream's that are taken so that its manifests start us, and that change nothing: this proxy has one mode and
/// writes at once what changed.
#[derive(clap::Args, Clone, Default)]
pub struct TakenFlags {
    #[arg(long, hide = true)]
    proxy_mode: Option<String>,
    #[arg(long, hide = true)]
    bind_address: Option<String>,
    #[arg(long, hide = true)]
    feature_gates: Option<String>,
    #[arg(long, hide = true)]
    iptables_min_sync_period: Option<String>,
    #[arg(long, hide = true)]
    iptables_sync_period: Option<String>,
    #[arg(long, hide = true)]
    config_sync_period: Option<String>,
    #[arg(short, long, hide = true)]
    v: Option<String>,
}

pub async fn proxy(options: ProxyOptions, cancel: CancellationToken) -> Result<()> {
    if options.cleanup {
        return proxy::clean_up(&families()).await;
    }
    let mut config = proxy::Config {
        families: families(),
        cluster_cidrs: options.cluster_cidr,
        masquerade_all: options.masquerade_all == Some(true),
        node_port_addresses: options.nodeport_addresses,
        network_policies: options.network_policies,
        ..proxy::Config::new(own_hostname(options.hostname_override.clone())?)
    };
    let usual = SocketAddr::from(([0, 0, 0, 0], proxy::HEALTHZ_PORT));
    config.healthz = Some(options.healthz_bind_address.unwrap_or(usual));
    config.metrics = options.metrics_bind_address.or(config.metrics);
    let told = |error: String| anyhow::anyhow!("the flags: {error}");
    config = proxy::configuration::read(&options.document.document(), config).map_err(told)?.config;
    let mut kubeconfig = options.kubeconfig;
    let mut said = None;
    if let Some(file) = options.config {
        let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let (document, _) =
            meta::decode::yaml(&text).map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
        let read = proxy::configuration::read(&document, config)
            .map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
        for warning in &read.warnings {
            tracing::warn!("{}: {warning}", file.display());
        }
        config = read.config;
        kubeconfig = read.kubeconfig.map(PathBuf::from).or(kubeconfig);
        if let Some(name) = options.hostname_override {
            config.node_name = name;
        }
        said = Some((file, text));
    }
    let Some(kubeconfig) = kubeconfig else {
        bail!("no credentials: give --kubeconfig, or a --config that names one under clientConnection.kubeconfig");
    };
    let client = roles::connect(&kubeconfig, "kube-proxy").await?;
    match said {
        Some((file, text)) => tokio::select! {
            ended = proxy::run(config, client, cancel) => ended,
            ended = changed(&file, &text) => ended,
        },
        None => proxy::run(config, client, cancel).await,
    }
}

/// Ends, with an error as upstream's, when a configuration file says something else than it did: whoever started this
/// starts it again with that.
async fn changed(file: &Path, before: &[u8]) -> Result<()> {
    loop {
        tokio::time::sleep(CONFIGURATION_LOOK).await;
        if tokio::fs::read(file).await.with_context(|| format!("cannot read {}", file.display()))? != before {
            bail!("content of the proxy server's configuration file was updated");
        }
    }
}

/// IPv4, and IPv6 where the kernel has it.
fn families() -> Vec<Family> {
    let mut out = vec![Family::V4];
    out.extend(std::path::Path::new("/proc/net/if_inet6").exists().then_some(Family::V6));
    out
}
