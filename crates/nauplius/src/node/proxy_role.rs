//! The service proxy alone, with upstream's flags and configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proxy::Family;
use resources::gates::Gates;
use tokio_util::sync::CancellationToken;

use super::own_hostname;
use super::proxy_flags::DocumentFlags;
use crate::roles;

/// How often the configuration file is looked at.
const CONFIGURATION_LOOK: Duration = Duration::from_secs(5);

#[derive(clap::Args, Clone)]
pub struct ProxyOptions {
    /// Credentials and address of the API server; the configuration file may name them too. Without any, a pod's own.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// The API server's address, whatever the kubeconfig says.
    #[arg(long)]
    pub master: Option<String>,
    /// A KubeProxyConfiguration; with one, flags that say what it could are passed over, but for --hostname-override.
    #[arg(long)]
    pub config: Option<PathBuf>,
    #[arg(long)]
    pub hostname_override: Option<String>,
    #[command(flatten)]
    pub document: DocumentFlags,
    #[command(flatten)]
    pub gates: roles::FeatureGates,
    /// Enforce NetworkPolicies too; needs to read them, Pods and Namespaces.
    #[arg(long)]
    pub network_policies: bool,
    /// Remove the proxy's rules from this network namespace, and end.
    #[arg(long)]
    pub cleanup: bool,
    /// Set what only the privileged may set, connection tracking's limits, and end.
    #[arg(long)]
    pub init_only: bool,
    /// Write what holds when nobody says otherwise to this file, as a KubeProxyConfiguration, and end.
    #[arg(long)]
    pub write_config_to: Option<PathBuf>,
}

pub async fn proxy(options: ProxyOptions, cancel: CancellationToken) -> Result<()> {
    if options.cleanup {
        return proxy::clean_up(&families()).await;
    }
    let Said { config, kubeconfig, file } = said(&options)?;
    if let Some(path) = &options.write_config_to {
        let document = proxy::configuration::document(&config);
        let text = serde_json::to_vec_pretty(&document)?;
        return std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()));
    }
    if options.init_only {
        config.conntrack.apply();
        return Ok(());
    }
    let client = match &kubeconfig {
        Some(kubeconfig) => roles::connect_to(kubeconfig, options.master.as_deref(), "kube-proxy").await?,
        None if options.master.is_none() => client::Client::in_cluster("kube-proxy").context(
            "no credentials: give --kubeconfig, or a --config that names one under clientConnection.kubeconfig",
        )?,
        None => bail!("--master says where the API server is, and nothing says who asks: give --kubeconfig too"),
    };
    crate::resident::give_back_now().await;
    match file {
        Some((file, text)) => tokio::select! {
            ended = proxy::run(config, client, cancel) => ended,
            ended = changed(&file, &text) => ended,
        },
        None => proxy::run(config, client, cancel).await,
    }
}

/// What flags and the configuration file come to.
struct Said {
    config: proxy::Config,
    kubeconfig: Option<PathBuf>,
    /// The file, and what it said.
    file: Option<(PathBuf, Vec<u8>)>,
}

fn said(options: &ProxyOptions) -> Result<Said> {
    let mut config = proxy::Config {
        families: families(),
        network_policies: options.network_policies,
        oom_score_adj: Some(proxy::OOM_SCORE_ADJ),
        ..proxy::Config::new(own_hostname(None)?)
    };
    config.healthz = Some(SocketAddr::from(([0, 0, 0, 0], proxy::HEALTHZ_PORT)));
    let flags = &options.document;
    let (read, file) = match &options.config {
        None => {
            let read = proxy::configuration::read(&flags.document(), config);
            let mut read = read.map_err(|error| anyhow::anyhow!("the flags: {error}"))?;
            flags.close(&mut read.config);
            options.gates.read()?;
            (read, None)
        }
        Some(file) => {
            let shown = file.display();
            let text = std::fs::read(file).with_context(|| format!("cannot read {shown}"))?;
            let (document, _) = meta::decode::yaml(&text).map_err(|error| anyhow::anyhow!("{shown}: {error}"))?;
            let read = proxy::configuration::read(&document, config);
            let mut read = read.map_err(|error| anyhow::anyhow!("{shown}: {error}"))?;
            Gates::new(read.feature_gates.clone()).map_err(|error| anyhow::anyhow!("{shown}: {error}"))?;
            let passed_over = flags.fields();
            if !passed_over.is_empty() {
                read.warnings.push(format!("flags for {} are passed over", passed_over.join(", ")));
            }
            (read, Some((file.clone(), text)))
        }
    };
    let source = options.config.as_ref().map_or("the flags".to_string(), |file| file.display().to_string());
    let gates = options.gates.flag().into_iter().chain(read.feature_gates.keys().cloned()).collect::<Vec<_>>();
    let of_gates = (!gates.is_empty()).then(|| format!("feature gates make no difference here: {}", gates.join(", ")));
    let of_logs = flags.is_log_held().then(|| "flags of logs make no difference here: they are not held back".into());
    for warning in read.warnings.iter().cloned().chain(of_gates).chain(of_logs) {
        tracing::warn!("{source}: {warning}");
    }
    let mut config = read.config;
    if let Some(name) = &options.hostname_override {
        config.node_name = name.trim().to_lowercase();
        ensure!(!config.node_name.is_empty(), "empty hostname-override is invalid");
    }
    let kubeconfig = read.kubeconfig.map(PathBuf::from).or_else(|| options.kubeconfig.clone());
    Ok(Said { config, kubeconfig, file })
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

    fn options(line: &str) -> ProxyOptions {
        <Line as clap::Parser>::try_parse_from(line.split_ascii_whitespace()).unwrap().options
    }

    /// The flags upstream's manifests start it with.
    #[test]
    fn flags_are_upstreams() {
        let line = "kube-proxy --kubeconfig=/k --hostname-override=N --cluster-cidr=10.8.0.0/16,fd00::/56 --proxy-mode=iptables \
            --nodeport-addresses=192.0.2.0/24 --healthz-bind-address=127.0.0.1 --metrics-bind-address=127.0.0.1:1 \
            --iptables-masquerade-bit=7 --iptables-sync-period=30s --ipvs-scheduler=rr --ipvs-strict-arp --kube-api-qps=5 \
            --conntrack-max-per-core=0 --oom-score-adj=-998 --profiling=false --feature-gates=NFTablesNetlink=true \
            --log-flush-frequency=5s --masquerade-all -v 2";
        let said = said(&options(line)).unwrap();
        let config = said.config;
        let addresses = [config.healthz, config.metrics].map(|address| address.unwrap().to_string());
        assert_eq!(addresses, ["127.0.0.1:10256", "127.0.0.1:1"]);
        assert_eq!((config.masquerade_mark, config.conntrack.max_per_core), (1 << 7, 0));
        assert_eq!((config.masquerade_all, config.cluster_cidrs.len(), &*config.node_name), (true, 2, "n"));
        assert_eq!(config.node_port_addresses, ["192.0.2.0/24".parse().unwrap()]);
        assert_eq!(config.oom_score_adj, Some(-998));
        assert_eq!(said.kubeconfig.as_deref(), Some(Path::new("/k")));
    }

    #[test]
    fn a_file_goes_before_flags() {
        let file = std::env::temp_dir().join(format!("kube-proxy-{}.yaml", std::process::id()));
        let read = |more: &str, flags: &str| {
            let text = format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{more}\n");
            std::fs::write(&file, text).unwrap();
            said(&options(&format!("kube-proxy --config={} {flags}", file.display()))).map(|said| said.config)
        };
        let config = read("hostnameOverride: a", "--masquerade-all --oom-score-adj=5").unwrap();
        assert_eq!((&*config.node_name, config.masquerade_all, config.oom_score_adj), ("a", false, Some(-999)));
        assert_eq!(read("hostnameOverride: a", "--hostname-override=B").unwrap().node_name, "b");
        let error = read("featureGates: {NoSuch: true}", "").unwrap_err().to_string();
        assert!(error.ends_with(": unrecognized feature gate: NoSuch"), "{error}");
        std::fs::remove_file(&file).unwrap();
    }
}
