//! The server's parts, put together: store, feed, catalog, authorizer, token keys.

use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use ipnet::IpNet;
use meta::{Object, Status};
use store::{Backend, LeaseId, StoreError};
use tokio_util::sync::CancellationToken;

use crate::authn::Authentication;
use crate::authn::token::TokenKeys;
use crate::authz::chain::Authorization;
use crate::authz::node::NodeAuthorizer;
use crate::authz::rbac::Rbac;
use crate::cache::feed::Feed;
use crate::catalog::{Catalog, Served};
use crate::pipeline::FRESHNESS_LIMIT;
use crate::pipeline::read::store_error;

/// What the server is told at start.
#[derive(Clone)]
pub struct Config {
    /// Where clients of the cluster reach it: the `kubernetes` Service's endpoint.
    pub advertise: std::net::SocketAddr,
    /// Cluster IPs: a range, or one of each address family; the first is what Services get that do not say.
    pub service_cidrs: Vec<IpNet>,
    /// First and last node port.
    pub node_ports: (u16, u16),
    /// `iss` of service account tokens.
    pub issuer: String,
    /// Private key that signs service account tokens, PEM.
    pub service_account_key: String,
    pub service_accounts: ServiceAccounts,
    /// How the server presents itself to kubelets, and how it trusts them.
    pub kubelet: KubeletConnection,
    /// Who may speak for others, and how this server does so to extension servers; none takes no such calls.
    pub front_proxy: Option<Arc<FrontProxy>>,
    /// Who else is believed, and who decides.
    pub authentication: Arc<Authentication>,
    pub authorization: Arc<Authorization>,
    /// Feature gates, and which kinds are served in which versions.
    pub enabled: resources::enablement::Enablement,
    /// Who is told of requests; nobody where absent.
    pub audit: Option<Arc<crate::audit::Audit>>,
    pub settings: Settings,
    /// How this server was told to be, by upstream's names of flags; for people to look at.
    pub flags: std::collections::BTreeMap<String, String>,
}

/// What is as upstream has it unless somebody says otherwise.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Admission plugins that are not asked.
    pub disabled_plugins: crate::admission::Disabled,
    /// What PodSecurity asks of namespaces that do not say, and of whom it asks nothing.
    pub pod_security: crate::admission::pod_security::Configured,
    /// How long pods stay on nodes that fail, unless they say so themselves.
    pub toleration_seconds: crate::admission::default_tolerations::Seconds,
    /// Seconds an event lives.
    pub event_ttl: Option<u64>,
    /// The longest a request may take.
    pub request_timeout: Option<Duration>,
    /// Origins whose pages may call this server from a browser.
    pub cors: crate::http::cors::Origins,
}

/// Service account tokens beyond the usual: who else's are taken, and what they are for.
#[derive(Clone, Debug, Default)]
pub struct ServiceAccounts {
    /// Other keys they may be signed with, PEM.
    pub keys: Vec<String>,
    pub other_issuers: Vec<String>,
    /// What tokens for this server are for; its issuer where empty.
    pub audiences: Vec<String>,
    /// Where relying parties find the keys; below the issuer where empty.
    pub jwks_uri: String,
    /// Longest life of a token, seconds.
    pub max_seconds: Option<i64>,
}

/// The authority of front proxies, apart from the clients' own; and this server's certificate of it. All PEM.
pub struct FrontProxy {
    /// Who signs clients' certificates: extension servers are told.
    pub client_ca: String,
    /// Who signs front proxies' certificates.
    pub ca: String,
    /// Common names of front proxies; empty takes all the authority signed.
    pub allowed_names: Vec<String>,
    pub headers: FrontProxyHeaders,
    pub certificate: String,
    pub key: String,
}

/// Under which headers front proxies say for whom they speak; of several the first that is there counts.
#[derive(Clone, Debug)]
pub struct FrontProxyHeaders {
    pub username: Vec<String>,
    pub uid: Vec<String>,
    pub group: Vec<String>,
    pub extra_prefix: Vec<String>,
}

impl Default for FrontProxyHeaders {
    fn default() -> Self {
        let one = |name: &str| vec![name.to_string()];
        Self {
            username: one("X-Remote-User"),
            uid: one("X-Remote-Uid"),
            group: one("X-Remote-Group"),
            extra_prefix: one("X-Remote-Extra-"),
        }
    }
}

/// How kubelets are reached for logs, exec and the like.
#[derive(Clone)]
pub struct KubeletConnection {
    pub tls: Arc<rustls::ClientConfig>,
    pub dial: Arc<dyn Dial>,
}

/// Opens TCP connections to nodes and pods; in an all-in-one cluster, inside another network namespace.
#[async_trait::async_trait]
pub trait Dial: Send + Sync {
    async fn connect(&self, address: std::net::SocketAddr) -> std::io::Result<tokio::net::TcpStream>;
}

/// Dials from where the process is.
pub struct DirectDial;

#[async_trait::async_trait]
impl Dial for DirectDial {
    async fn connect(&self, address: std::net::SocketAddr) -> std::io::Result<tokio::net::TcpStream> {
        tokio::net::TcpStream::connect(address).await
    }
}

/// Objects with a lifetime share leases of this granularity, so that a burst of events needs one lease.
const LEASE_SHARED_FOR: Duration = Duration::from_secs(60);

pub struct ApiServer {
    config: Config,
    store: Arc<dyn Backend>,
    feed: Arc<Feed>,
    catalog: RwLock<Arc<Catalog>>,
    rbac: Rbac,
    node_authorizer: NodeAuthorizer,
    keys: TokenKeys,
    flow_control: crate::flowcontrol::FlowControl,
    openapi: crate::openapi::OpenApi,
    readings: crate::metrics_api::Readings,
    aggregation: crate::aggregation::Aggregation,
    front_proxies: Option<crate::authn::front_proxy::FrontProxies>,
    lease: tokio::sync::Mutex<Option<(LeaseId, u64, Instant)>>,
    /// Held while the catalog changes.
    pub(crate) changing_catalog: Mutex<()>,
    /// The catalog's generation.
    catalog_changes: tokio::sync::watch::Sender<u64>,
    started: Instant,
    ready: std::sync::atomic::AtomicBool,
}

impl ApiServer {
    /// Loads the store into the caches and follows it until `cancel`. The server then answers calls; it is ready when
    /// its bootstrap objects are there ([`crate::bootstrap`]).
    pub fn start(
        config: Config,
        store: Arc<dyn Backend>,
        cancel: CancellationToken,
    ) -> BoxFuture<'static, Result<Arc<Self>, String>> {
        Box::pin(Self::starting(config, store, cancel))
    }

    async fn starting(config: Config, store: Arc<dyn Backend>, cancel: CancellationToken) -> Result<Arc<Self>, String> {
        let keys = TokenKeys::new(&config.service_account_key, &config.issuer, &config.service_accounts)?;
        let front_proxies =
            config.front_proxy.as_deref().map(crate::authn::front_proxy::FrontProxies::new).transpose()?;
        let catalog = Catalog::new(builtin_kinds(&config), 1);
        let feed = Feed::new(store.clone());
        let mut caches: Vec<_> = catalog.kinds().iter().filter_map(|served| served.cache.clone()).collect();
        caches.sort_by(|a, b| a.prefix().cmp(b.prefix()));
        caches.dedup_by(|a, b| Arc::ptr_eq(a, b));
        feed.load(caches).await.map_err(|e| format!("reading the store: {e}"))?;
        let server = Arc::new(Self {
            config,
            store,
            feed: feed.clone(),
            catalog: RwLock::new(Arc::new(catalog)),
            rbac: Rbac::default(),
            node_authorizer: NodeAuthorizer::default(),
            keys,
            flow_control: Default::default(),
            openapi: Default::default(),
            readings: Default::default(),
            aggregation: Default::default(),
            front_proxies,
            lease: tokio::sync::Mutex::default(),
            changing_catalog: Mutex::default(),
            catalog_changes: tokio::sync::watch::Sender::new(1),
            started: Instant::now(),
            ready: Default::default(),
        });
        let followed = cancel.clone();
        tokio::spawn(async move {
            let cancel = followed;
            tokio::select! {
                () = cancel.cancelled() => {}
                error = feed.follow() => {
                    if !matches!(error, StoreError::Closed) {
                        // Caches that can no longer follow would answer with the past: better to be started anew.
                        tracing::error!(%error, "the watch cache lost the store");
                    }
                    cancel.cancel();
                }
            }
        });
        crate::bootstrap::run(&server).await.map_err(|status| format!("bootstrap objects: {status}"))?;
        tokio::spawn(crate::crd::run(server.clone(), cancel.clone()));
        tokio::spawn(crate::admission::policy_status::run(server.clone(), cancel.clone()));
        tokio::spawn(crate::aggregation::registration::run(server.clone(), cancel.clone()));
        tokio::spawn(crate::aggregation::availability::run(server.clone(), cancel));
        server.ready.store(true, std::sync::atomic::Ordering::Release);
        Ok(server)
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn store(&self) -> &Arc<dyn Backend> {
        &self.store
    }

    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    pub fn authentication(&self) -> &Authentication {
        &self.config.authentication
    }

    pub fn authorization(&self) -> &Authorization {
        &self.config.authorization
    }

    pub fn rbac(&self) -> &Rbac {
        &self.rbac
    }

    pub fn node_authorizer(&self) -> &NodeAuthorizer {
        &self.node_authorizer
    }

    pub fn flow_control(&self) -> &crate::flowcontrol::FlowControl {
        &self.flow_control
    }

    pub fn openapi(&self) -> &crate::openapi::OpenApi {
        &self.openapi
    }

    pub fn aggregation(&self) -> &crate::aggregation::Aggregation {
        &self.aggregation
    }

    pub fn front_proxies(&self) -> Option<&crate::authn::front_proxy::FrontProxies> {
        self.front_proxies.as_ref()
    }

    /// What kubelets last said of their use.
    pub(crate) fn readings(&self) -> &crate::metrics_api::Readings {
        &self.readings
    }

    pub fn token_keys(&self) -> &TokenKeys {
        &self.keys
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(std::sync::atomic::Ordering::Acquire)
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Replaces the catalog with what `change` makes of its kinds.
    pub fn change_catalog(&self, change: impl FnOnce(&[Arc<Served>]) -> Vec<Arc<Served>>) {
        let _held = self.changing_catalog.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let old = self.catalog();
        let new = Catalog::new(change(old.kinds()), old.generation + 1);
        let generation = new.generation;
        *self.catalog.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(new);
        self.catalog_changes.send_replace(generation);
    }

    /// Wakes whoever depends on what is served.
    pub fn catalog_changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.catalog_changes.subscribe()
    }

    /// An object as the cache has it now, in its storage version.
    pub fn lookup(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let catalog = self.catalog();
        let served = catalog.find(group, plural)?;
        served.cache.as_ref()?.get(&served.resource.key(namespace, name))
    }

    /// An object a call names, in its storage version. What the cache does not have may only just have been written: another
    /// look is taken when it has everything.
    pub(crate) async fn find(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Object>>, Status> {
        if let Some(found) = self.lookup(group, plural, namespace, name) {
            return Ok(Some(found));
        }
        self.await_newest().await?;
        Ok(self.lookup(group, plural, namespace, name))
    }

    /// Whether the cache has any object of a kind.
    pub fn has_any(&self, group: &str, plural: &str) -> bool {
        let catalog = self.catalog();
        catalog.find(group, plural).and_then(|served| served.cache.as_ref()).is_some_and(|cache| !cache.is_empty())
    }

    /// All objects of a kind the cache has now, in one namespace or (when empty) all.
    pub fn lookup_all(&self, group: &str, plural: &str, namespace: &str) -> Vec<Arc<Object>> {
        let catalog = self.catalog();
        let Some(cache) = catalog.find(group, plural).and_then(|served| served.cache.clone()) else {
            return Vec::new();
        };
        let prefix = if namespace.is_empty() {
            format!("{}/", cache.prefix())
        } else {
            format!("{}/{namespace}/", cache.prefix())
        };
        cache.list(&prefix).items
    }

    /// Waits until the caches hold everything written so far.
    pub async fn await_newest(&self) -> Result<(), Status> {
        let revision = self.store.current_revision().await.map_err(store_error)?;
        if self.feed.progress() < revision {
            self.store.request_progress().await.map_err(store_error)?;
            Box::pin(self.feed.reach(revision, FRESHNESS_LIMIT)).await;
        }
        Ok(())
    }

    /// The lease for an object that lives `ttl` seconds; objects written within a minute share one.
    pub(crate) async fn lease_for(&self, ttl: u64) -> Result<Option<LeaseId>, Status> {
        if ttl == 0 {
            return Ok(None);
        }
        let mut held = self.lease.lock().await;
        if let Some((lease, for_ttl, since)) = *held
            && for_ttl == ttl
            && since.elapsed() < LEASE_SHARED_FOR
        {
            return Ok(Some(lease));
        }
        let lease = self.store.grant_lease(ttl + LEASE_SHARED_FOR.as_secs()).await.map_err(store_error)?;
        *held = Some((lease, ttl, Instant::now()));
        Ok(Some(lease))
    }
}

/// The built-in rows, rows of one prefix over one cache.
fn builtin_kinds(config: &Config) -> Vec<Arc<Served>> {
    let mut kinds: Vec<Arc<Served>> = Vec::new();
    let types = meta::schema::builtin();
    for mut resource in resources::builtin::table(types, &config.enabled) {
        if &*resource.plural == "events" {
            resource.ttl_seconds = config.settings.event_ttl.unwrap_or(resource.ttl_seconds);
        }
        let owner =
            kinds.iter().find(|served| !resource.prefix.is_empty() && served.resource.prefix == resource.prefix);
        kinds.push(match owner {
            Some(owner) => Served::sharing(resource, owner),
            None => Served::new(resource),
        });
    }
    kinds
}
