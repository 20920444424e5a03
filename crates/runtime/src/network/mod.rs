//! Pod networking: CNI plugins where configured, else the built-in bridge; host ports either way.
//!
//! Guarantees: a pod that failed to connect leaves nothing; disconnecting is idempotent and needs no pod to be alive.

mod bridge;
mod cni;
mod departures;
mod hostport;
mod ipam;
pub mod namespace;
pub mod netlink;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;

use cri::v1::PodSandboxConfig;
use ipam::Ipam;
use netlink::Netlink;

pub use bridge::POD_INTERFACE;

/// How pods are connected.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Where CNI configurations are looked for; the first by name counts. Without any, the built-in bridge.
    pub cni_conf_dir: Option<PathBuf>,
    /// Where CNI plugins are.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// The built-in bridge's name.
    pub bridge: String,
    /// The largest packet of the built-in bridge's pods in bytes: what gets to other nodes whole.
    pub mtu: u32,
    /// The node's pod ranges, one of each address family, if known from the start; otherwise `UpdateRuntimeConfig` brings
    /// them.
    pub pod_cidrs: Vec<IpNet>,
    /// Hide pod addresses behind the node's when they talk to anything outside these ranges; empty: never.
    pub masquerade_except: Vec<IpNet>,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        NetworkConfig {
            cni_conf_dir: None,
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            bridge: "cni0".into(),
            mtu: 1500,
            pod_cidrs: Vec::new(),
            masquerade_except: Vec::new(),
        }
    }
}

/// The node's pod network.
pub struct Network {
    config: NetworkConfig,
    dir: PathBuf,
    /// One of each address family, the first one leading.
    pools: RwLock<Vec<Arc<Ipam>>>,
    /// The node's routing socket and the bridge's number: one change at a time.
    node: Mutex<Netlink>,
    departures: departures::Departures,
    hostports: hostport::HostPorts,
}

impl Network {
    /// Opens the network's durable state below `dir`.
    pub fn open(config: NetworkConfig, dir: PathBuf) -> Result<Network> {
        std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let ranges = match config.pod_cidrs.as_slice() {
            [] => std::fs::read_to_string(dir.join("pod-cidr"))
                .iter()
                .flat_map(|text| text.trim().split(',').filter_map(|one| one.parse().ok()))
                .collect(),
            named => named.to_vec(),
        };
        let network = Network {
            hostports: hostport::HostPorts::new(&config.bridge, dir.join("host-ports")),
            config,
            dir,
            pools: RwLock::default(),
            node: Mutex::new(Netlink::open().context("opening a netlink socket")?),
            departures: departures::Departures::new().context("opening a netlink socket")?,
        };
        network.set_ranges(&ranges)?;
        Ok(network)
    }

    /// Sets the node's pod ranges. A range in use cannot be replaced under its pods, but new pods get the new one.
    pub fn set_ranges(&self, ranges: &[IpNet]) -> Result<()> {
        let ranges: Vec<IpNet> = ranges.iter().map(IpNet::trunc).collect();
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        if pools.iter().map(|pool| pool.range()).eq(ranges.iter().copied()) {
            return Ok(());
        }
        let dir = self.dir.join("addresses");
        let open = |range: &IpNet| Ipam::open(&dir, *range).map(Arc::new).context("opening the address pool");
        *pools = ranges.iter().map(open).collect::<Result<_>>()?;
        let text = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        std::fs::write(self.dir.join("pod-cidr"), &text)?;
        tracing::info!(ranges = text, "pod ranges set");
        Ok(())
    }

    fn pools(&self) -> Vec<Arc<Ipam>> {
        self.pools.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn conflist(&self) -> Option<Result<cni::Conflist>> {
        cni::Conflist::load(self.config.cni_conf_dir.as_deref()?).transpose()
    }

    /// Why pods cannot be connected now, if so.
    pub fn problem(&self) -> Option<String> {
        match self.conflist() {
            Some(Ok(list)) => list.is_runnable(&self.config.cni_bin_dirs).err().map(|error| format!("{error:#}")),
            Some(Err(error)) => Some(format!("cni config invalid: {error:#}")),
            None if !self.pools().is_empty() => None,
            None => Some("no CNI configuration and no pod CIDR yet".into()),
        }
    }

    /// Connects a sandbox and returns its addresses. Blocks.
    pub fn attach(
        &self,
        sandbox: &str,
        config: &PodSandboxConfig,
        namespace: &OwnedFd,
        shim: i32,
    ) -> Result<Vec<IpAddr>> {
        let attached = self.try_attach(sandbox, config, namespace, shim);
        if attached.is_err()
            && let Err(error) = self.detach(sandbox, config, Some(shim))
        {
            tracing::warn!(sandbox, error = format!("{error:#}"), "cleaning up after a failed connection");
        }
        attached
    }

    fn try_attach(
        &self,
        sandbox: &str,
        config: &PodSandboxConfig,
        namespace: &OwnedFd,
        shim: i32,
    ) -> Result<Vec<IpAddr>> {
        bridge::loopback(namespace)?;
        if let Some(conflist) = self.conflist() {
            let call = cni::Call::new(sandbox, config, &self.config.cni_bin_dirs, Some(shim));
            return conflist?.add(&call, &self.dir);
        }
        let pools = self.pools();
        if pools.is_empty() {
            bail!("no pod CIDR is known yet");
        }
        let addresses = {
            let mut node = self.node.lock().unwrap_or_else(PoisonError::into_inner);
            let index = bridge::ensure(&mut node, &self.config.bridge, &pools)?;
            bridge::attach(&mut node, (index, self.config.mtu), &pools, sandbox, namespace)?
        };
        let ranges: Vec<IpNet> = pools.iter().map(|pool| pool.range()).collect();
        self.hostports.ensure_masquerade(&ranges, &self.config.masquerade_except)?;
        self.hostports.open(sandbox, &addresses, &config.port_mappings)?;
        Ok(addresses)
    }

    /// Disconnects a sandbox; idempotent, whether or not its shim lives. Blocks.
    pub fn detach(&self, sandbox: &str, config: &PodSandboxConfig, shim: Option<i32>) -> Result<()> {
        let remembered = self.dir.join(cni::cache_name(sandbox));
        if remembered.exists() {
            let call = cni::Call::new(sandbox, config, &self.config.cni_bin_dirs, shim);
            return cni::delete_cached(&call, &self.dir);
        }
        self.hostports.close(sandbox)?;
        let link = bridge::host_interface(sandbox);
        self.departures.remove(&self.node, &link).context("removing the pod's link")?;
        self.pools().iter().try_for_each(|pool| pool.release(sandbox)).context("releasing the pod's address")
    }

    /// After a restart: forgets addresses of sandboxes that are no more, and writes the host ports of those that are.
    pub fn reconcile(&self, alive: &[(String, Vec<IpAddr>, PodSandboxConfig)]) -> Result<()> {
        for pool in self.pools() {
            pool.keep_only(|owner| alive.iter().any(|(id, ..)| id == owner))?;
        }
        for (sandbox, addresses, config) in alive {
            if !self.dir.join(cni::cache_name(sandbox)).exists() {
                self.hostports.open(sandbox, addresses, &config.port_mappings)?;
            }
        }
        self.hostports.refresh()
    }

    /// Removes every pod's link, the bridge and the rules, for a node that is taken down.
    pub fn remove_pods_and_bridge(&self, config: &crate::Config) -> Result<()> {
        for entry in std::fs::read_dir(config.root.join("sandboxes")).into_iter().flatten().flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            let record: crate::records::SandboxRecord =
                crate::records::load(&entry.path().join("record")).unwrap_or_default();
            if let Err(error) = self.detach(&id, &record.config.unwrap_or_default(), None) {
                tracing::warn!(sandbox = id, error = format!("{error:#}"), "disconnecting a pod");
            }
        }
        self.hostports.remove_all()?;
        let mut node = self.node.lock().unwrap_or_else(PoisonError::into_inner);
        node.delete_link(&self.config.bridge).context("removing the bridge")
    }
}
