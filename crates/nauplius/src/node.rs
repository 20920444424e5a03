//! A node's components: runtime, kubelet, proxy, DNS, routes; all in one process, or one at a time.
//!
//! What a node is told stands in one file ([`NodePlace`]) that `up` writes; the same options exist as flags for a node
//! outside an `up` cluster.

pub mod leftovers;
mod pod_network_role;
mod proxy_flags;
mod proxy_role;
mod published;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use client::Informers;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Taint;
use kubelet::certificates;
use kubelet::config::eviction::{Amount, Eviction, Signal};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use pod_network_role::{PodNetworkRoleOptions, pod_network};
pub use proxy_role::{ProxyOptions, proxy};
pub use published::{dns_service, roles as publish_roles};

use crate::cli::ApiAccess;
use crate::{fabric, roles, supervise};

const CLUSTER_DOMAIN: &str = "cluster.local";
/// How long the engine may take to open its socket.
const ENGINE_WITHIN: Duration = Duration::from_secs(20);

/// Node `n`'s name.
pub fn node_name(n: u32) -> String {
    format!("node-{n}")
}

/// Everything a node of an `up` cluster is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodePlace {
    pub name: String,
    /// Durable files of the node.
    pub dir: PathBuf,
    /// Sockets and mount points.
    pub run_dir: PathBuf,
    /// All of the node's cgroups are below this path.
    pub cgroup: String,
    pub network_namespace: PathBuf,
    /// One of each address family of the cluster, the first one leading.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Cluster IPs of the name server.
    #[serde(default)]
    pub dns_addresses: Vec<IpAddr>,
    #[serde(default)]
    pub pod_networks: Vec<IpNet>,
    #[serde(default)]
    pub pod_network: fabric::PodNetworkOptions,
    /// Where the embedded engine looks for CNI configurations; the built-in bridge when absent.
    #[serde(default)]
    pub cni_conf_dir: Option<PathBuf>,
    pub client_ca: PathBuf,
    pub kubelet_kubeconfig: PathBuf,
    pub proxy_kubeconfig: PathBuf,
    pub dns_kubeconfig: PathBuf,
    /// Another engine's CRI socket; the embedded one when absent.
    pub container_runtime_endpoint: Option<String>,
}

impl NodePlace {
    fn engine_socket(&self) -> PathBuf {
        self.run_dir.join("runtime.sock")
    }

    fn endpoint(&self) -> String {
        self.container_runtime_endpoint.clone().unwrap_or_else(|| format!("unix://{}", self.engine_socket().display()))
    }

    fn runtime(&self) -> Result<runtime::Config> {
        let dirs = (self.dir.join("runtime"), self.run_dir.join("runtime"));
        let mut config = runtime_config(&dirs.0, &dirs.1, &self.engine_socket(), &self.cgroup)?;
        config.network.cni_conf_dir = self.cni_conf_dir.clone();
        Ok(config)
    }

    fn kubelet(&self) -> kubelet::Config {
        let usual = kubelet::Config::new(&self.name, self.dir.join("kubelet"), self.endpoint());
        let six_first = self.addresses.first().is_some_and(IpAddr::is_ipv6);
        kubelet::Config {
            // Where the API server looks for it: at the node's first address.
            listen: SocketAddr::new(if six_first { [0u16; 8].into() } else { usual.listen.ip() }, usual.listen.port()),
            client_ca: Some(self.client_ca.clone()),
            node_ips: self.addresses.clone(),
            hostname: Some(self.name.clone()),
            cluster_dns: self.dns_addresses.iter().take(1).copied().collect(),
            cluster_domain: CLUSTER_DOMAIN.into(),
            cgroup_root: self.cgroup.clone(),
            // Images are brought in by hand; nothing could fetch them again.
            image_gc: None,
            // The disk is the machine's, and shared: what is much room on it is not the cluster's to say. Only a disk
            // that is about to be full costs pods their place.
            eviction: Eviction::default()
                .with(Signal::NodefsBytes, Amount::Percent(1.0))
                .with(Signal::NodefsInodes, Amount::Percent(1.0))
                .with(Signal::ImagefsBytes, Amount::Percent(1.0))
                .with(Signal::ImagefsInodes, Amount::Percent(1.0)),
            labels: BTreeMap::new(),
            ..usual
        }
    }

    fn proxy(&self) -> proxy::Config {
        let six_first = self.addresses.first().is_some_and(IpAddr::is_ipv6);
        let all = if six_first { IpAddr::from([0u16; 8]) } else { IpAddr::from([0; 4]) };
        proxy::Config {
            // Load balancers ask from elsewhere, at the node's address.
            healthz: Some(SocketAddr::new(all, proxy::HEALTHZ_PORT)),
            families: self.pod_networks.iter().map(|range| proxy::Family::of(range.addr())).collect(),
            cluster_cidrs: self.pod_networks.clone(),
            network_policies: true,
            ..proxy::Config::new(&self.name)
        }
    }

    fn dns(&self) -> dns::Config {
        dns::Config {
            listen: self.dns_addresses.iter().map(|address| SocketAddr::new(*address, 53)).collect(),
            untracked: true,
            domain: CLUSTER_DOMAIN.into(),
            config_map: Some((published::DNS_NAMESPACE.into(), published::DNS_NAME.into())),
            // At the address that is the node's own while it answers there.
            metrics: self.dns_addresses.iter().map(|address| SocketAddr::new(*address, dns::METRICS_PORT)).collect(),
            ..dns::Config::default()
        }
    }
}

fn runtime_config(root: &Path, state: &Path, socket: &Path, cgroup: &str) -> Result<runtime::Config> {
    Ok(runtime::Config {
        root: root.into(),
        state: state.into(),
        socket: socket.into(),
        cgroup_parent: cgroup.into(),
        network: runtime::NetworkConfig::default(),
        streaming_address: SocketAddr::from(([127, 0, 0, 1], 0)),
        registry_dirs: runtime::registry_dirs(),
        shim_exe: std::env::current_exe().context("cannot find this program's own file")?,
    })
}

#[derive(clap::Args, Clone)]
pub struct NodeOptions {
    /// The file `up` wrote for the node.
    #[arg(long)]
    pub place: PathBuf,
    /// Entered before anything else happens.
    #[arg(long)]
    pub network_namespace: Option<PathBuf>,
    /// One role only: runtime, kubelet, proxy or dns.
    #[arg(long)]
    pub only: Option<String>,
}

/// Upstream's flags for a node of its own. Those that stand for fields of the configuration file go before it.
#[derive(clap::Args, Clone)]
#[command(after_help = fields_help())]
pub struct KubeletOptions {
    /// How the API server is reached; with `--bootstrap-kubeconfig`, where that is written.
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// Reaches the API server only to ask for a certificate, when `--kubeconfig` has none that is valid.
    #[arg(long)]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Where certificates and keys are kept [default: `pki` below the root directory].
    #[arg(long)]
    pub cert_dir: Option<PathBuf>,
    /// A KubeletConfiguration file.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// A directory of `*.conf` files laid over it, in the order of their names.
    #[arg(long)]
    pub config_dir: Option<PathBuf>,
    /// The node's name [default: the host's].
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// The node's address, or two joined by a comma: one of each address family.
    #[arg(long, value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
    #[arg(long, default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,
    /// A CredentialProviderConfig file.
    #[arg(long, requires = "image_credential_provider_bin_dir")]
    pub image_credential_provider_config: Option<PathBuf>,
    #[arg(long, requires = "image_credential_provider_config")]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
    /// `key=value`, joined by commas.
    #[arg(long, value_delimiter = ',', value_parser = parse_label)]
    pub node_labels: Vec<(String, String)>,
    /// `external`: the node is not to be used before somebody else has set it up.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub cloud_provider: String,
    /// What flags say of the configuration's fields, as JSON.
    #[arg(long, hide = true, default_value = "{}", value_parser = parse_fields)]
    pub fields: Fields,
}

/// Fields of the kubelet's configuration.
type Fields = serde_json::Map<String, serde_json::Value>;

fn parse_fields(text: &str) -> Result<Fields, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

fn fields_help() -> String {
    format!(
        "These flags of upstream's stand for fields of the configuration file, and go before what it says:\n  {}",
        kubelet::config::flags::names().join(", ")
    )
}

/// The arguments with flags for fields of the kubelet's configuration as one, and what is to be said of others.
pub fn kubelet_arguments(arguments: Vec<std::ffi::OsString>) -> (Vec<std::ffi::OsString>, Vec<String>) {
    let mut taken = kubelet::config::flags::take(arguments);
    if !taken.fields.is_empty() {
        taken.kept.push(format!("--fields={}", serde_json::Value::Object(taken.fields)).into());
    }
    (taken.kept, taken.said)
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    text.split_once('=').map(|(k, v)| (k.into(), v.into())).ok_or_else(|| format!("{text:?} is not key=value"))
}

#[derive(clap::Args, Clone)]
pub struct DnsOptions {
    #[command(flatten)]
    pub api: ApiAccess,
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:53")]
    pub listen: Vec<SocketAddr>,
    /// Keep questions and answers out of the kernel's table of connections; needs nft.
    #[arg(long)]
    pub untracked: bool,
    #[arg(long, default_value = CLUSTER_DOMAIN)]
    pub cluster_domain: String,
    /// Servers for names outside the cluster, `ADDRESS[:PORT]`, joined by commas.
    #[arg(long, value_delimiter = ',', value_parser = dns::upstreams::parse_server)]
    pub upstream: Vec<SocketAddr>,
    /// Servers for a domain of their own, `DOMAIN=ADDRESS[:PORT][+…]`, joined by commas.
    #[arg(long, value_delimiter = ',', value_parser = dns::upstreams::parse_stub)]
    pub stub_domain: Vec<(String, Vec<SocketAddr>)>,
    /// A ConfigMap, `NAMESPACE/NAME`, whose `stubDomains` and `upstreamNameservers` go before these two, also when they
    /// change; needs to read it.
    #[arg(long, value_parser = parse_config_map)]
    pub config_map: Option<(String, String)>,
    /// Where /metrics, /health and /ready are served, joined by commas.
    #[arg(long, value_delimiter = ',')]
    pub metrics_bind_address: Vec<SocketAddr>,
}

fn parse_config_map(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    parts
        .map(|(namespace, name)| (namespace.into(), name.into()))
        .ok_or_else(|| format!("{text:?} is not NAMESPACE/NAME"))
}

#[derive(clap::Args, Clone)]
pub struct RuntimeOptions {
    #[arg(long, default_value = "/var/lib/nauplius/runtime")]
    pub root: PathBuf,
    #[arg(long, default_value = "/run/nauplius/runtime")]
    pub state: PathBuf,
    #[arg(long, default_value = "/run/nauplius/runtime.sock")]
    pub socket: PathBuf,
    /// Where all cgroups lie; what a kubelet asks for is below it [default: where the kubelet asks for them].
    #[arg(long, default_value = "", hide_default_value = true)]
    pub cgroup_parent: String,
    /// Where CNI configurations are looked for; without any the built-in bridge connects pods.
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    #[arg(long, value_delimiter = ',', default_value = "/opt/cni/bin,/usr/lib/cni")]
    pub cni_bin_dir: Vec<PathBuf>,
    #[command(flatten)]
    pub network: fabric::PodNetworkOptions,
}

fn own_hostname(asked: Option<String>) -> Result<String> {
    match asked {
        Some(name) => Ok(name),
        None => Ok(nix::unistd::gethostname()?.to_string_lossy().to_lowercase()),
    }
}

/// The configuration file with the flags over it.
fn kubelet_config(options: &KubeletOptions) -> Result<kubelet::Config> {
    let name = own_hostname(options.hostname_override.clone())?;
    let usual = kubelet::Config {
        // Where whoever gathers logs looks for them.
        pod_logs: "/var/log/pods".into(),
        log_dir: "/var/log".into(),
        ..kubelet::Config::new(name, &options.root_dir, "unix:///run/nauplius/runtime.sock")
    };
    let (file, dir) = (options.config.as_deref(), options.config_dir.as_deref());
    let mut config = kubelet::config::file::load(usual, file, dir, options.fields.clone())?;
    if !options.node_ip.is_empty() {
        config.node_ips = options.node_ip.clone();
    }
    if options.cloud_provider == "external" {
        config.taints.push(Taint {
            key: "node.cloudprovider.kubernetes.io/uninitialized".into(),
            value: Some("true".into()),
            effect: "NoSchedule".into(),
            time_added: None,
        });
    }
    let providers = options.image_credential_provider_config.clone();
    config.credential_providers = providers.zip(options.image_credential_provider_bin_dir.clone());
    config.labels.extend(options.node_labels.iter().cloned());
    Ok(config)
}

pub async fn kubelet(options: KubeletOptions, cancel: CancellationToken) -> Result<()> {
    let config = kubelet_config(&options)?;
    let dir = options.cert_dir.clone().unwrap_or_else(|| options.root_dir.join("pki"));
    let store = certificates::Store::client(dir);
    let bootstrapped = options.bootstrap_kubeconfig.is_some();
    if let Some(bootstrap) = &options.bootstrap_kubeconfig {
        let ensured = certificates::bootstrap::ensure(&options.kubeconfig, bootstrap, &config.node_name, &store);
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            ensured = ensured => ensured?,
        }
    }
    loop {
        let client = roles::connect_modestly(&options.kubeconfig, "kubelet", kubelet::MAX_IN_FLIGHT).await?;
        let replaced = async {
            if bootstrapped && config.rotate_certificates {
                certificates::replace(&client, &store, &certificates::client_ask(&config.node_name)).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        // A new certificate means new connections: the agent starts anew and finds every pod as it was.
        if kubelet::run(config.clone(), client.clone(), cancel.clone(), replaced).await? == kubelet::Ended::Cancelled {
            return Ok(());
        }
    }
}

pub async fn dns(options: DnsOptions, cancel: CancellationToken) -> Result<()> {
    let client = roles::connect(&options.api.kubeconfig, "nauplius-dns").await?;
    crate::resident::give_back_now().await;
    dns::run(
        dns::Config {
            listen: options.listen,
            untracked: options.untracked,
            domain: options.cluster_domain,
            upstreams: options.upstream,
            stub_domains: options.stub_domain,
            config_map: options.config_map,
            metrics: options.metrics_bind_address,
            ..dns::Config::default()
        },
        client,
        cancel,
    )
    .await
}

pub async fn runtime(options: RuntimeOptions, cancel: CancellationToken) -> Result<()> {
    let mut config = runtime_config(&options.root, &options.state, &options.socket, &options.cgroup_parent)?;
    config.network.cni_conf_dir = Some(options.cni_conf_dir);
    config.network.cni_bin_dirs = options.cni_bin_dir;
    config.network.mtu = fabric::pod_mtu(&options.network, &[]).context("cannot find the links' largest packet")?;
    let (ready, opened) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        if opened.await.is_ok() {
            eprintln!("the container runtime listens on {}", options.socket.display());
        }
    });
    runtime::serve(config, cancel, ready).await
}

/// The roles of a node of an `up` cluster, each supervised.
pub async fn all(options: NodeOptions, cancel: CancellationToken) -> Result<()> {
    let text = std::fs::read(&options.place).with_context(|| format!("cannot read {}", options.place.display()))?;
    let place: NodePlace =
        serde_json::from_slice(&text).with_context(|| format!("{} is not a node's file", options.place.display()))?;
    let only = options.only.as_deref();
    if let Some(role) = only.filter(|role| !["runtime", "kubelet", "proxy", "dns"].contains(role)) {
        bail!("--only={role}: the roles of a node are runtime, kubelet, proxy and dns");
    }
    let wanted = |role: &str| only.is_none_or(|only| only == role);
    std::fs::create_dir_all(&place.run_dir).with_context(|| format!("cannot make {}", place.run_dir.display()))?;
    let tasks = TaskTracker::new();
    if wanted("runtime") && place.container_runtime_endpoint.is_none() {
        let (place, cancel) = (place.clone(), cancel.clone());
        tasks.spawn(async move {
            supervise::role("runtime", cancel, |own| {
                let (config, mtu) = (place.runtime(), fabric::pod_mtu(&place.pod_network, &place.addresses));
                async move {
                    let mut config = config?;
                    config.network.mtu = mtu.context("cannot find the links' largest packet")?;
                    runtime::serve(config, own, tokio::sync::oneshot::channel().0).await
                }
            })
            .await;
        });
    }
    if wanted("kubelet") {
        let (place, cancel) = (place.clone(), cancel.clone());
        tasks.spawn(async move {
            supervise::role("kubelet", cancel, |own| {
                let place = place.clone();
                async move {
                    let client =
                        roles::connect_modestly(&place.kubelet_kubeconfig, "kubelet", kubelet::MAX_IN_FLIGHT).await?;
                    wait_for_socket(&place.endpoint()).await;
                    kubelet::run(place.kubelet(), client, own, std::future::pending()).await.map(drop)
                }
            })
            .await;
        });
    }
    if wanted("kubelet") {
        let (place, cancel) = (place.clone(), cancel.clone());
        tasks.spawn(async move {
            supervise::role("pod-network", cancel, |own| {
                let place = place.clone();
                async move {
                    // A kubelet may read no Node but its own; who carries Services may read all.
                    let client = roles::connect(&place.proxy_kubeconfig, "nauplius-routes").await?;
                    let informers = Informers::new(client);
                    fabric::pod_network(&place.pod_network, informers, &place.name, own).await.map_err(Into::into)
                }
            })
            .await;
        });
    }
    if wanted("proxy") {
        let (place, cancel) = (place.clone(), cancel.clone());
        tasks.spawn(async move {
            supervise::role("kube-proxy", cancel, |own| {
                let place = place.clone();
                async move {
                    proxy::run(place.proxy(), roles::connect(&place.proxy_kubeconfig, "kube-proxy").await?, own).await
                }
            })
            .await;
        });
    }
    if wanted("dns") {
        let (place, cancel) = (place.clone(), cancel.clone());
        tasks.spawn(async move {
            supervise::role("dns", cancel, |own| {
                let place = place.clone();
                async move { dns::run(place.dns(), roles::connect(&place.dns_kubeconfig, "nauplius-dns").await?, own).await }
            })
            .await;
        });
    }
    cancel.cancelled().await;
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// The engine starts beside the kubelet; asking it a moment too early would cost a back-off.
async fn wait_for_socket(endpoint: &str) {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    let deadline = tokio::time::Instant::now() + ENGINE_WITHIN;
    while tokio::net::UnixStream::connect(path).await.is_err() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Imports archives through an engine's socket, or into every node of a cluster.
pub async fn import_images(data_dir: Option<PathBuf>, socket: Option<PathBuf>, files: Vec<PathBuf>) -> Result<()> {
    let sockets = match socket {
        Some(socket) => vec![socket],
        None => {
            let dir = data_dir.unwrap_or_else(crate::up::default_data_dir);
            let nodes = std::fs::read_dir(dir.join("nodes"))
                .with_context(|| format!("no cluster in {}: start one with `nauplius up`", dir.display()))?;
            let mut sockets = Vec::new();
            for node in nodes {
                let place = std::fs::read(node?.path().join("node.json"))?;
                sockets.push(serde_json::from_slice::<NodePlace>(&place)?.engine_socket());
            }
            sockets.sort();
            sockets
        }
    };
    for file in &files {
        for socket in &sockets {
            let imported = runtime::image_import(socket, file, Vec::new())
                .await
                .with_context(|| format!("{} into {}", file.display(), socket.display()))?;
            for image in imported {
                println!("{} {}", image.id, image.names.join(" "));
            }
        }
    }
    Ok(())
}

/// Removes a node's pods, mounts and cgroups. Its network rules go with its namespace.
pub async fn remove(place: &NodePlace) -> Result<()> {
    let (config, place) = (place.runtime()?, place.clone());
    tokio::task::spawn_blocking(move || {
        runtime::reset(&config)?;
        leftovers::unmount_below(&place.dir)?;
        leftovers::unmount_below(&place.run_dir)?;
        leftovers::remove_cgroups(&place.cgroup)
    })
    .await?
}
