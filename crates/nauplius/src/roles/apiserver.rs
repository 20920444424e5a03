//! The API server as a role: its store, its certificates, its listeners.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use apiserver::server::FrontProxy;
use apiserver::server::{Dial, DirectDial, KubeletConnection};
use apiserver::{ApiServer, Config};
use async_trait::async_trait;
use store::Backend;
use store::transform::{Replaceable, Transformed};
use tokio_util::sync::CancellationToken;

use crate::cli::{Ranges, parse_listen};
use crate::pki::{Pair, Pki, Purpose};
use crate::{fabric, tls};

/// `iss` and default audience of service account tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// What the server calls itself to extension servers.
const FRONT_PROXY: &str = "front-proxy-client";
/// Names the server answers to.
const NAMES: [&str; 5] =
    ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"];

#[derive(clap::Args, Clone)]
pub struct Options {
    /// Certificates and, without --etcd-servers, the store.
    #[arg(long, default_value_os_t = crate::up::default_data_dir())]
    pub data_dir: PathBuf,
    /// Where to serve HTTPS.
    #[arg(long, default_value = "127.0.0.1:6443", value_parser = parse_listen)]
    pub listen: SocketAddr,
    /// The address members of the cluster reach this server at; the listening address when absent.
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    #[command(flatten)]
    pub ranges: Ranges,
    /// Serve inside this network namespace too, at the advertised address, and reach nodes from there.
    #[arg(long, hide = true)]
    pub network_namespace: Option<PathBuf>,
    #[command(flatten)]
    pub store: StoreOptions,
    #[command(flatten)]
    pub serving: super::Serving,
    #[command(flatten)]
    pub audit: super::AuditOptions,
    #[command(flatten)]
    pub access: super::AccessOptions,
    #[command(flatten)]
    pub listening: super::ListeningOptions,
}

/// Where objects are kept.
#[derive(clap::Args, Clone, Default)]
pub struct StoreOptions {
    /// A real etcd's client URLs instead of the embedded store.
    #[arg(long, value_delimiter = ',')]
    pub etcd_servers: Vec<String>,
    #[arg(long)]
    pub etcd_cafile: Option<PathBuf>,
    #[arg(long)]
    pub etcd_certfile: Option<PathBuf>,
    #[arg(long)]
    pub etcd_keyfile: Option<PathBuf>,
    /// An EncryptionConfiguration: which resources are encrypted in the store, and how.
    #[arg(long)]
    pub encryption_provider_config: Option<PathBuf>,
    /// Take up changes of --encryption-provider-config without a restart.
    #[arg(long, requires = "encryption_provider_config", num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    pub encryption_provider_config_automatic_reload: bool,
}

pub async fn open_store(options: &StoreOptions, data_dir: &Path) -> Result<Arc<dyn Backend>> {
    // Before the store: what cannot be understood must not have opened anything.
    let encryption = match &options.encryption_provider_config {
        Some(file) => Some((file, super::encryption::read(file)?)),
        None => None,
    };
    let store = open_backend(options, data_dir).await?;
    // Without a configuration too: what was sealed once is then an error, not an object that cannot be read.
    let rules = Arc::new(Replaceable::default());
    if let Some((file, (bytes, read))) = encryption {
        rules.replace(read);
        if options.encryption_provider_config_automatic_reload {
            super::encryption::spawn_follow(file, bytes, &rules);
        }
    }
    Ok(Arc::new(Transformed::new(store, rules)))
}

async fn open_backend(options: &StoreOptions, data_dir: &Path) -> Result<Arc<dyn Backend>> {
    if options.etcd_servers.is_empty() {
        let dir = data_dir.join("store");
        let opened = store::embedded::open(&dir, store::embedded::Options::default());
        let store = Arc::new(opened.with_context(|| format!("store in {}", dir.display()))?);
        // Ends with the store. Without it the cluster works: its store cannot be asked from outside.
        if let Err(error) = store::door::serve(&store) {
            tracing::warn!(%error, "`nauplius store` cannot work beside this cluster");
        }
        return Ok(store);
    }
    let read = |file: &Option<PathBuf>| {
        file.as_ref().map(|f| std::fs::read(f).with_context(|| format!("cannot read {}", f.display()))).transpose()
    };
    let options = store::etcd::Options {
        endpoints: options.etcd_servers.clone(),
        ca: read(&options.etcd_cafile)?,
        cert: read(&options.etcd_certfile)?,
        key: read(&options.etcd_keyfile)?,
        ..Default::default()
    };
    let servers = options.endpoints.join(", ");
    Ok(Arc::new(store::etcd::connect(options).await.with_context(|| format!("etcd at {servers}"))?))
}

/// Dials nodes and pods from inside a network namespace.
struct NamespaceDial(PathBuf);

#[async_trait]
impl Dial for NamespaceDial {
    async fn connect(&self, address: SocketAddr) -> std::io::Result<tokio::net::TcpStream> {
        fabric::connect_in(&self.0, address).await
    }
}

/// A server that listens.
pub struct Running {
    pub server: Arc<ApiServer>,
    pub address: SocketAddr,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Running {
    /// Waits until the listeners have let their clients go.
    pub async fn ended(self) {
        for task in self.tasks {
            let _ = task.await;
        }
        if let Some(audit) = &self.server.config().audit {
            audit.flush().await;
        }
    }
}

/// What was asked for, as upstream's flags would say it.
fn flags(options: &Options, address: SocketAddr) -> BTreeMap<String, String> {
    let (store, gates) = (&options.store, options.serving.gates.flag());
    let file = |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string());
    let modes = match &options.access.authorization_mode[..] {
        [] if options.access.authorization_config.is_some() => String::new(),
        [] => "Node,RBAC".into(),
        modes => modes.join(","),
    };
    let ranges: Vec<String> = options.ranges.service_cluster_ip_range.iter().map(ToString::to_string).collect();
    let said = [
        ("advertise-address", options.advertise_address.map(|a| a.to_string())),
        ("authentication-config", file(&options.access.authentication_config)),
        ("authorization-config", file(&options.access.authorization_config)),
        ("authorization-mode", Some(modes)),
        ("bind-address", Some(address.ip().to_string())),
        ("encryption-provider-config", file(&store.encryption_provider_config)),
        ("etcd-cafile", file(&store.etcd_cafile)),
        ("etcd-certfile", file(&store.etcd_certfile)),
        ("etcd-keyfile", file(&store.etcd_keyfile)),
        ("etcd-servers", Some(store.etcd_servers.join(","))),
        ("feature-gates", gates),
        ("runtime-config", Some(options.serving.runtime_config.join(","))),
        ("secure-port", Some(address.port().to_string())),
        (
            "service-account-issuer",
            Some(options.access.service_account_issuer.first().cloned().unwrap_or(ISSUER.into())),
        ),
        ("service-cluster-ip-range", Some(ranges.join(","))),
    ];
    let audit = options.audit.flags().into_iter().map(|(name, value)| (name, Some(value.display().to_string())));
    said.into_iter().chain(audit).map(|(name, value)| (name.to_string(), value.unwrap_or_default())).collect()
}

/// Opens the store and serves. Ready when this returns.
pub async fn start(options: &Options, pki: &Pki, cancel: CancellationToken) -> Result<Running> {
    // What cannot be understood is told before anything is opened.
    let settings = options.listening.settings()?;
    let enabled = options.serving.read()?;
    let access = options.access.open(ISSUER, &cancel).await?;
    let listener = super::listen(options.listening.address(options.listen)).await?;
    let address = listener.local_addr()?;
    let advertise = SocketAddr::new(options.advertise_address.unwrap_or(address.ip()), address.port());
    let mut addresses = vec![address.ip(), advertise.ip(), IpAddr::from([127, 0, 0, 1])];
    addresses.extend(options.ranges.kubernetes());
    let listening = &options.listening;
    let named = |certificate: &Option<PathBuf>, key: &Option<PathBuf>| {
        Some(Pair { certificate: certificate.clone()?, key: key.clone()? })
    };
    let own =
        || pki.pair("apiserver", "kube-apiserver", &[], &Purpose::Server { names: &NAMES, addresses: &addresses });
    let serving = named(&listening.tls_cert_file, &listening.tls_private_key_file).map_or_else(own, Ok)?;
    let own =
        || pki.pair("apiserver-kubelet-client", "kube-apiserver-kubelet-client", &["system:masters"], &Purpose::Client);
    let kubelet = named(&listening.kubelet_client_certificate, &listening.kubelet_client_key).map_or_else(own, Ok)?;
    let kubelet_ca = listening.kubelet_certificate_authority.as_ref().map(std::fs::read_to_string).transpose()?;
    let front_proxies = pki.front_proxy()?;
    let own = || front_proxies.pair("front-proxy-client", FRONT_PROXY, &[], &Purpose::Client);
    let front_proxy =
        named(&listening.proxy_client_cert_file, &listening.proxy_client_key_file).map_or_else(own, Ok)?;
    let (certificate, key) = front_proxy.read()?;
    let dial: Arc<dyn Dial> = match &options.network_namespace {
        Some(namespace) => Arc::new(NamespaceDial(namespace.clone())),
        None => Arc::new(DirectDial),
    };
    // The cluster's own authorities count beside those that are named: its own parts have their certificates from them.
    let client_ca = format!("{}{}", pki.ca_pem(), access.client_ca);
    let front_proxy_ca = format!("{}{}", front_proxies.ca_pem(), access.front_proxy_ca);
    let mut allowed_names = access.front_proxy_names;
    if access.front_proxy_ca.is_empty() || !allowed_names.is_empty() {
        allowed_names.insert(0, FRONT_PROXY.into());
    }
    let trusted = format!("{client_ca}{front_proxy_ca}");
    let config = Config {
        advertise,
        service_cidrs: options.ranges.service_cluster_ip_range.clone(),
        node_ports: listening.node_ports(),
        issuer: access.issuer.unwrap_or_else(|| ISSUER.into()),
        service_account_key: access.signing_key.map_or_else(|| pki.service_account_key(), Ok)?,
        service_accounts: access.service_accounts,
        kubelet: KubeletConnection { tls: tls::kubelet_client(&kubelet, kubelet_ca.as_deref())?, dial },
        front_proxy: Some(Arc::new(FrontProxy {
            client_ca,
            ca: front_proxy_ca,
            allowed_names,
            headers: access.front_proxy_headers,
            certificate,
            key,
        })),
        authentication: access.authentication,
        authorization: access.authorization,
        enabled,
        audit: options.audit.open().await?,
        settings,
        flags: flags(options, address),
    };
    let store = open_store(&options.store, &options.data_dir).await?;
    let server = ApiServer::start(config, store, cancel.clone()).await.map_err(|e| anyhow!(e))?;
    let tls =
        tls::server_speaking(&serving, &trusted, listening.tls_min_version.as_deref(), &listening.tls_cipher_suites)?;
    let mut tasks = Vec::new();
    if let Some(namespace) = &options.network_namespace {
        let inside = fabric::listen_in(namespace, advertise)
            .with_context(|| format!("cannot listen on {advertise} in {}", namespace.display()))?;
        inside.set_nonblocking(true)?;
        let inside = tokio::net::TcpListener::from_std(inside)?;
        tasks.push(tokio::spawn(apiserver::http::serve(server.clone(), inside, tls.clone(), cancel.clone())));
    }
    tasks.push(tokio::spawn(apiserver::http::serve(server.clone(), listener, tls, cancel)));
    Ok(Running { server, address, tasks })
}

/// The role alone.
pub async fn run(options: Options, cancel: CancellationToken) -> Result<()> {
    let pki = Pki::open(&options.data_dir.join("pki"))?;
    let running = start(&options, &pki, cancel.clone()).await?;
    eprintln!("kube-apiserver is ready on https://{}", running.address);
    cancel.cancelled().await;
    running.ended().await;
    Ok(())
}
