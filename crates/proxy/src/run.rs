//! The shell: follows the API, writes transactions, looks after the table.
//!
//! Level-triggered: an event only marks a Service; its compilation reads the informers. While one transaction is being
//! written further changes gather for the next. A transaction that fails is followed by the whole table, with back-off.
//! On exit the table stays, so that connections go on working while the proxy restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use client::{Client, Informer, Informers, Recorder, gvr_of};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use tokio_util::sync::CancellationToken;

use crate::conntrack::{CONNECTIONLESS, Netfilter, stale};
use crate::fragment::Fragment;
use crate::health::{Health, HealthPorts, own_servers};
use crate::listing::intact;
use crate::metrics::Metrics;
use crate::nft::{self, Transaction};
use crate::objects::Objects;
use crate::policies::{Policies, is_service};
use crate::program::{Delta, NodeView, Ruleset};
use crate::service::{Front, Protocol};
use crate::update::{Update, apply, listing, tables_absent};
use crate::watch::Watch;
use crate::{Config, Family, OOM_SCORE_ADJ, TABLE, settings};

/// Put on a node before the cluster autoscaler removes it.
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
/// How often the rule set's generation is looked at, to see whether somebody else changed something.
const LOOK: Duration = Duration::from_secs(1);
/// How often the kernel's table of connections is looked at, whether there is room.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(10);
/// How long the first table waits for the policies.
const POLICIES_WITHIN: Duration = Duration::from_secs(10);
/// How long the first table waits for the ranges of cluster IPs.
const RANGES_WITHIN: Duration = Duration::from_millis(300);
/// After a failed write: doubling from the first to the last.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LAST: Duration = Duration::from_secs(30);

/// Runs the proxy in the network namespace of this process until cancelled.
pub fn run(config: Config, client: Client, cancel: CancellationToken) -> BoxFuture<'static, Result<()>> {
    Box::pin(running(config, client, cancel))
}

async fn running(config: Config, client: Client, cancel: CancellationToken) -> Result<()> {
    config.conntrack.apply();
    if let Some(score) = config.oom_score_adj
        && let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string())
    {
        // What nobody asked for may be as it is.
        if score == OOM_SCORE_ADJ {
            tracing::debug!("cannot set this process's OOM score to {score}: {error}");
        } else {
            tracing::warn!("cannot set this process's OOM score to {score}: {error}");
        }
    }
    let mut objects = Objects::start(&client, &config.node_name);
    let informers = Informers::new(client.clone());
    let own = format!("metadata.name={}", config.node_name);
    let nodes = informers.get_gvr(gvr_of::<core::Node>(), "", None, Some(&own));
    let ranges = informers.get::<ServiceCIDR>();
    let (mut node_changes, mut range_changes) = (nodes.subscribe(), ranges.subscribe());
    let health = Arc::new(Health::new(&config.families));
    let metrics = Arc::new(Metrics::new(&config.families));
    let _servers = own_servers(&config, &health, &metrics).await?;
    let ready = async { tokio::join!(objects.ready(), nodes.synced()) };
    if cancel.run_until_cancelled(ready).await.is_none() {
        return Ok(());
    }
    // Servers before v1.31 have none, and say so again and again.
    let _ = tokio::time::timeout(RANGES_WITHIN, ranges.synced()).await;
    let mut watch = config.network_policies.then(|| Watch::start(&client, &config.node_name));
    if let Some(watch) = &mut watch {
        // What a restart finds in the kernel is better than a table without policies; but Services cannot wait for ever.
        let ready = tokio::time::timeout(POLICIES_WITHIN, watch.ready());
        match cancel.run_until_cancelled(ready).await {
            None => return Ok(()),
            Some(Err(_)) => tracing::warn!("NetworkPolicies cannot be read yet: none are enforced"),
            Some(Ok(())) => {}
        }
    }
    let mut netfilter = Netfilter::open().context("cannot speak to netfilter (is this running as root?)")?;
    let known_generation =
        netfilter.generation().context("cannot speak to nftables (does the kernel have nf_tables?)")?;
    let mut shell = Shell {
        node: NodeView::default(),
        tables: Vec::new(),
        dirty: BTreeSet::new(),
        rewrite: true,
        known_generation,
        failures: 0,
        room: settings::Room::default(),
        health_ports: HealthPorts::default(),
        recorder: Recorder::new(&client, "kube-proxy", &config.node_name),
        config,
        objects,
        nodes,
        ranges,
        netfilter,
        health,
        metrics,
    };
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut look_for_room = tokio::time::interval(LOOK_FOR_ROOM);
    look_for_room.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // Everything that is pending goes into one transaction.
        shell.objects.absorb();
        while node_changes.try_next().is_some() || range_changes.try_next().is_some() {}
        if let Some(watch) = &mut watch {
            watch.absorb();
        }
        let policies = watch.as_mut().and_then(Watch::known);
        let pause = shell.sync(policies).await?;
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            more = shell.objects.changed() => if !more { return Ok(()) },
            () = async { match &mut watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            } } => {}
            batch = node_changes.next() => if batch.is_none() { return Ok(()) },
            batch = range_changes.next() => if batch.is_none() { return Ok(()) },
            _ = look.tick() => shell.look().await,
            _ = look_for_room.tick() => shell.room.look(),
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

/// Removes the proxy's tables from the network namespace of this process.
pub async fn clean_up(families: &[Family]) -> Result<()> {
    let mut transaction = Transaction::default();
    for family in families {
        transaction.append(nft::removal(*family));
    }
    apply(&transaction).await
}

/// Whose connections may outlive their endpoints.
type Connectionless = Vec<(Family, Protocol)>;

struct Shell {
    config: Config,
    node: NodeView,
    tables: Vec<Ruleset>,
    /// Services, policies and pods to compile again.
    dirty: BTreeSet<Arc<str>>,
    /// The whole table is to be written: at the start, when the node changed, after a failure or a disturbance.
    rewrite: bool,
    known_generation: u32,
    failures: u32,
    room: settings::Room,
    objects: Objects,
    nodes: Arc<Informer>,
    ranges: Arc<Informer>,
    netfilter: Netfilter,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    health_ports: HealthPorts,
    recorder: Recorder,
}

impl Shell {
    /// Brings the table up to date. Says how long to wait before trying again when that failed.
    async fn sync(&mut self, mut policies: Option<&mut Policies>) -> Result<Option<Duration>> {
        let node = self.nodes.get(&self.config.node_name).and_then(|node| node.typed::<core::Node>().ok());
        if let Some(node) = node.as_deref() {
            self.health.node_is(!is_leaving(node));
        }
        let links = if self.config.node_port_addresses.is_empty() { Vec::new() } else { link_addresses() };
        let ranges: Vec<Arc<ServiceCIDR>> =
            self.ranges.list(None).iter().filter_map(|object| object.typed().ok()).collect();
        let view = NodeView::new(node.as_deref(), &self.config)
            .on_links(links, &self.config)
            .with_service_networks(ranges.iter().map(|range| &**range));
        if view != self.node {
            self.node = view;
            self.rewrite = true;
        }
        let (services, slices) = std::mem::take(&mut self.objects.changes);
        self.metrics.changed(services, slices);
        self.dirty.append(&mut self.objects.world.take_dirty());
        if let Some(policies) = &mut policies {
            self.dirty.extend(policies.take_dirty().into_iter().map(Into::into));
        }
        if self.dirty.is_empty() && !self.rewrite {
            return Ok(None);
        }
        self.health.waiting();
        let began = Instant::now();
        let full = self.rewrite;
        let (update, connectionless) =
            if full { self.whole(policies.as_deref()) } else { self.changed(policies.as_deref()) };
        if !update.is_empty() {
            let before = self.netfilter.generation().unwrap_or(self.known_generation);
            let written = update.write(&mut self.netfilter, &self.tables).await;
            if let Err(error) = &written {
                self.metrics.failed();
                if self.failures == 0 {
                    tracing::error!("cannot write the proxy's rules: {error:#}");
                }
                if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
                    return written.map(|_| None);
                }
                self.rewrite = true;
                let pause = RETRY_FIRST.saturating_mul(1 << self.failures.min(10)).min(RETRY_LAST);
                self.failures += 1;
                return Ok(Some(pause));
            }
            // One commit, one generation. If there were more somebody else was at work, and `look` will see to it.
            self.known_generation = before.wrapping_add(written.unwrap_or(1));
        }
        self.rewrite = false;
        self.failures = 0;
        self.health.done();
        let services = self.tables.first().map_or(0, Ruleset::services);
        self.metrics.synced(began.elapsed(), full, services);
        self.metrics.programmed(self.objects.triggers.drain(..));
        self.metrics.without_local(self.tables.iter().map(Ruleset::without_local));
        tracing::debug!(full, services, took = ?began.elapsed(), "proxy rules written");
        self.forget_stale(&connectionless);
        let mut wanted = BTreeMap::new();
        for (key, port, count) in self.tables.iter().flat_map(Ruleset::health) {
            // A pod with an address of each family is one endpoint.
            let known = wanted.entry(port).or_insert((key.to_string(), 0usize));
            known.1 = known.1.max(count);
        }
        let teller = (&*self.config.node_name, &self.recorder);
        self.health_ports.set(&wanted, &self.node.addresses, &self.health, teller).await;
        Ok(None)
    }

    /// Every Service compiled anew; endpoints keep their places.
    fn whole(&mut self, policies: Option<&Policies>) -> (Update, Connectionless) {
        self.dirty.clear();
        let policy_keys = policies.iter().flat_map(|policies| policies.keys()).map(Arc::from);
        let keys: Vec<Arc<str>> = self.objects.world.keys().cloned().chain(policy_keys).collect();
        let mut tables = Vec::new();
        for family in &self.config.families {
            let old = self.tables.iter().find(|table| table.family == *family);
            let mut table = Ruleset::new(*family, &self.node, &self.config);
            for key in &keys {
                let previous = old.and_then(|old| old.fragment(key)).map(|fragment| &**fragment);
                // Nobody asks what changed: all of it is written.
                table.update(key.clone(), self.compile(key, *family, previous, policies), &mut Delta::default());
            }
            table.pack();
            tables.push(table);
        }
        self.objects.world.pack();
        self.tables = tables;
        let both = |family: &Family| CONNECTIONLESS.map(|(protocol, _)| (*family, protocol));
        let all = self.config.families.iter().flat_map(both).collect();
        // Into an empty place, at the start or when somebody took the tables away, the elements go directly: many times
        // faster, and nobody has these Services meanwhile.
        if tables_absent(&mut self.netfilter, &self.config.families) {
            let mut skeleton = Transaction::default();
            self.tables.iter().for_each(|table| skeleton.append(nft::first(table)));
            return (Update::First(skeleton), all);
        }
        let mut out = Transaction::default();
        for table in &self.tables {
            out.append(nft::full(table));
        }
        (Update::Text(out), all)
    }

    /// Only the Services that were marked.
    fn changed(&mut self, policies: Option<&Policies>) -> (Update, Connectionless) {
        let dirty = std::mem::take(&mut self.dirty);
        let mut tables = std::mem::take(&mut self.tables);
        let mut deltas = Vec::new();
        let mut connectionless = Vec::new();
        for table in &mut tables {
            let mut delta = Delta::default();
            for key in &dirty {
                let previous = table.fragment(key).cloned();
                let fragment = self.compile(key, table.family, previous.as_deref(), policies);
                table.update(key.clone(), fragment, &mut delta);
            }
            connectionless.extend(delta.connectionless.iter().map(|protocol| (table.family, *protocol)));
            deltas.push(delta);
        }
        self.tables = tables;
        (Update::of(&deltas, &self.tables), connectionless)
    }

    fn compile(
        &self,
        key: &str,
        family: Family,
        previous: Option<&Fragment>,
        policies: Option<&Policies>,
    ) -> Option<Fragment> {
        if !is_service(key) {
            return policies?.compile(key, family);
        }
        self.objects.world.compile(key, family, &self.node, &self.config, previous)
    }

    /// Has the kernel forget UDP and SCTP connections that the program no longer would make.
    fn forget_stale(&mut self, connectionless: &Connectionless) {
        for (family, protocol) in connectionless {
            let Some(table) = self.tables.iter().find(|table| table.family == *family) else { continue };
            let began = Instant::now();
            let forgotten = self.netfilter.connections(*family, *protocol).and_then(|connections| {
                let serving = |key: &str, front: &Front| self.objects.world.serving(key, *family, front);
                let stale = stale(&connections, table, &self.node, serving);
                stale.iter().try_for_each(|connection| self.netfilter.forget(connection)).map(|()| stale.len())
            });
            match forgotten {
                Ok(count) => self.metrics.forgotten(count, began.elapsed()),
                Err(error) => tracing::warn!("cannot clean up connections whose endpoint is gone: {error}"),
            }
        }
    }

    /// When somebody else changed nftables here, makes sure that our table is still whole.
    async fn look(&mut self) {
        let Ok(generation) = self.netfilter.generation() else { return };
        if self.rewrite || generation == self.known_generation {
            return;
        }
        for table in &self.tables {
            if !listing(table.family).await.is_some_and(|listing| intact(&listing, table)) {
                tracing::warn!(
                    "the table {} {TABLE} was changed by somebody else: writing it anew",
                    table.family.nft()
                );
                self.metrics.put_back();
                self.rewrite = true;
            }
        }
        self.known_generation = generation;
    }
}

/// Whether load balancers should look elsewhere: the node goes, or the cluster autoscaler means to take it away.
fn is_leaving(node: &core::Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    node.metadata.deletion_timestamp.is_some() || taints.into_iter().any(|taint| taint.key == LEAVING_TAINT)
}

/// The addresses of this network namespace's links.
fn link_addresses() -> Vec<IpAddr> {
    let read = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
    };
    match nix::ifaddrs::getifaddrs() {
        Ok(links) => links.filter_map(|link| read(link.address?)).collect(),
        Err(error) => {
            tracing::warn!("cannot read the addresses of this node's links: {error}");
            Vec::new()
        }
    }
}
