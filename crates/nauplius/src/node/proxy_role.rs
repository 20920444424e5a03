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
    #[command(flatten)]
    pub document: DocumentFlags,
    /// Enforce NetworkPolicies too; needs to read them, Pods and Namespaces.
    #[arg(long)]
    pub network_policies: bool,
    /// Remove the proxy's rules from this network namespace, and end.
    #[arg(long)]
    pub cleanup: bool,
    /// Set what only the privileged may set, connection tracking's limits, and end.
    #[arg(long)]
    pub init_only: bool,
    #[command(flatten)]
    pub taken: TakenFlags,
}

/// Flags that say what a configuration file's fields would, and are read as such.
#[derive(clap::Args, Clone, Default)]
pub struct DocumentFlags {
    /// Ranges of the node's addresses that node ports answer on, or `primary`.
    #[arg(long, value_delimiter = ',')]
    nodeport_addresses: Vec<String>,
    /// An address, with a port or without.
    #[arg(long)]
    healthz_bind_address: Option<String>,
    /// The same for metrics.
    #[arg(long)]
    metrics_bind_address: Option<String>,
    #[arg(long, visible_alias = "iptables-masquerade-bit")]
    nftables_masquerade_bit: Option<i64>,
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
            "nodePortAddresses": self.nodeport_addresses,
            "healthzBindAddress": self.healthz_bind_address,
            "metricsBindAddress": self.metrics_bind_address,
            "nftables": {"masqueradeBit": self.nftables_masquerade_bit},
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
    config_sync_period: Option<String>,
    #[arg(long, hide = true)]
    iptables_min_sync_period: Option<String>,
    #[arg(long, hide = true)]
    iptables_sync_period: Option<String>,
    #[arg(long, hide = true)]
    ipvs_exclude_cidrs: Option<String>,
    #[arg(long, hide = true)]
    ipvs_min_sync_period: Option<String>,
    #[arg(long, hide = true)]
    ipvs_scheduler: Option<String>,
    #[arg(long, hide = true)]
    ipvs_sync_period: Option<String>,
    #[arg(long, hide = true)]
    ipvs_tcp_timeout: Option<String>,
    #[arg(long, hide = true)]
    ipvs_tcpfin_timeout: Option<String>,
    #[arg(long, hide = true)]
    ipvs_udp_timeout: Option<String>,
    #[arg(long, hide = true)]
    kube_api_burst: Option<String>,
    #[arg(long, hide = true)]
    kube_api_content_type: Option<String>,
    #[arg(long, hide = true)]
    kube_api_qps: Option<String>,
    #[arg(long, hide = true)]
    log_flush_frequency: Option<String>,
    #[arg(long, hide = true)]
    logging_format: Option<String>,
    #[arg(long, hide = true)]
    nftables_min_sync_period: Option<String>,
    #[arg(long, hide = true)]
    nftables_sync_period: Option<String>,
    #[arg(long, hide = true)]
    proxy_port_range: Option<String>,
    #[arg(long, hide = true)]
    show_hidden_metrics_for_version: Option<String>,
    #[arg(long, hide = true)]
    vmodule: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    iptables_localhost_nodeports: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    ipvs_strict_arp: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    profiling: Option<bool>,
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
        network_policies: options.network_policies,
        ..proxy::Config::new(own_hostname(options.hostname_override.clone())?)
    };
    config.healthz = Some(SocketAddr::from(([0, 0, 0, 0], proxy::HEALTHZ_PORT)));
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
    if options.init_only {
        config.conntrack.apply();
        return Ok(());
    }
    let Some(kubeconfig) = kubeconfig else {
        bail!("no credentials: give --kubeconfig, or a --config that names one under clientConnection.kubeconfig");
    };
    let client = roles::connect(&kubeconfig, "kube-proxy").await?;
    crate::resident::give_back_now().await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: ProxyOptions,
    }

    /// The flags upstream's manifests start it with.
    #[test]
    fn flags_are_upstreams() {
        let line = "kube-proxy --kubeconfig=/k --hostname-override=n --cluster-cidr=10.8.0.0/16,fd00::/56 --proxy-mode=iptables \
            --nodeport-addresses=192.0.2.0/24 --healthz-bind-address=127.0.0.1 --metrics-bind-address=127.0.0.1:1 \
            --iptables-masquerade-bit=7 --iptables-sync-period=30s --ipvs-scheduler=rr --ipvs-strict-arp --kube-api-qps=5 \
            --conntrack-max-per-core=0 --oom-score-adj=-998 --profiling=false --feature-gates=A=true --masquerade-all -v 2";
        let options = <Line as clap::Parser>::try_parse_from(line.split_ascii_whitespace()).unwrap().options;
        assert_eq!(options.masquerade_all, Some(true));
        let config = proxy::configuration::read(&options.document.document(), proxy::Config::new("n")).unwrap().config;
        let addresses = [config.healthz, config.metrics].map(|address| address.unwrap().to_string());
        assert_eq!(addresses, ["127.0.0.1:10256", "127.0.0.1:1"]);
        assert_eq!((config.masquerade_mark, config.conntrack.max_per_core), (1 << 7, 0));
        assert_eq!(config.node_port_addresses, ["192.0.2.0/24".parse().unwrap()]);
        assert_eq!(config.oom_score_adj, Some(-998));
    }
}
