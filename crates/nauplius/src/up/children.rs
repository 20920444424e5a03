//! Child processes: nodes, and with `--split` every role.
//!
//! Each runs this same binary with other words. One that ends is started again with back-off; on the way out each gets
//! SIGTERM and a moment, then SIGKILL. They are told to end when this process dies, so none is left behind.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use client::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Identities, Options};
use crate::claim::Claim;
use crate::cli::Ranges;
use crate::fabric::Layout;
use crate::node::{NodePlace, node_name};
use crate::pki::Pki;
use crate::ranges::joined;
use crate::{roles, supervise};

/// A child gets this long to end by itself.
const GRACE: Duration = Duration::from_secs(8);
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
const SETTLED: Duration = Duration::from_secs(60);
/// How long the API server may take to answer at all.
const API_WITHIN: Duration = Duration::from_secs(60);
/// A log larger than this is started anew with the child; the last one is kept beside it.
const MAX_LOG: u64 = 32 << 20;

/// One process to keep running.
pub struct Child {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    log: PathBuf,
}

/// Where a node looks for CNI configurations: they mostly name its own pod range, so it may have a folder of its own.
fn cni_conf_dir(dir: &Path, node: &str) -> Result<PathBuf> {
    let dir = dir.canonicalize().with_context(|| format!("cannot use the directory {}", dir.display()))?;
    let own = dir.join(node);
    Ok(if own.is_dir() { own } else { dir })
}

fn arg(name: &str, value: impl AsRef<std::ffi::OsStr>) -> OsString {
    let mut out = OsString::from(format!("--{name}="));
    out.push(value);
    out
}

impl Child {
    fn new(name: &str, log_dir: &Path, role: &str, mut arguments: Vec<OsString>) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        if let Ok(level) = std::env::var("NAUPLIUS_LOG") {
            arguments.push(arg("log", level));
        }
        arguments.insert(0, role.into());
        Ok(Self { name: name.into(), program, arguments, log: log_dir.join(format!("{name}.log")) })
    }

    pub fn apiserver(options: &roles::apiserver::Options) -> Result<Self> {
        let mut arguments = vec![
            arg("data-dir", &options.data_dir),
            arg("listen", options.listen.to_string()),
            arg("service-cluster-ip-range", joined(&options.ranges.service_cluster_ip_range)),
        ];
        if let Some(address) = options.advertise_address {
            arguments.push(arg("advertise-address", address.to_string()));
        }
        if let Some(namespace) = &options.network_namespace {
            arguments.push(arg("network-namespace", namespace));
        }
        arguments.extend(options.serving.gates.flag().map(|gates| arg("feature-gates", gates)));
        arguments.extend(roles::status::said_of::<roles::AccessOptions>());
        arguments.extend(roles::status::said_of::<roles::AdmissionOptions>());
        arguments.extend(options.audit.flags().into_iter().map(|(name, value)| arg(name, value)));
        arguments.extend(options.serving.runtime_config.iter().map(|said| arg("runtime-config", said)));
        if !options.store.etcd_servers.is_empty() {
            arguments.push(arg("etcd-servers", options.store.etcd_servers.join(",")));
        }
        let files = [
            ("etcd-cafile", &options.store.etcd_cafile),
            ("etcd-certfile", &options.store.etcd_certfile),
            ("etcd-keyfile", &options.store.etcd_keyfile),
            ("encryption-provider-config", &options.store.encryption_provider_config),
        ];
        for (name, file) in files {
            if let Some(file) = file {
                arguments.push(arg(name, file));
            }
        }
        if options.store.encryption_provider_config_automatic_reload {
            arguments.push("--encryption-provider-config-automatic-reload".into());
        }
        Self::new("apiserver", &options.data_dir.join("log"), "apiserver", arguments)
    }

    pub fn scheduler(kubeconfig: &Path, gates: &roles::FeatureGates) -> Result<Self> {
        let mut arguments = vec![arg("kubeconfig", kubeconfig), arg("leader-elect", "false"), arg("secure-port", "0")];
        arguments.extend(gates.flag().map(|gates| arg("feature-gates", gates)));
        Self::new("scheduler", &log_dir(kubeconfig), "scheduler", arguments)
    }

    pub fn controller_manager(
        kubeconfig: &Path,
        ranges: &Ranges,
        ca: &Path,
        (node_grace, allocate_node_cidrs): (Duration, bool),
    ) -> Result<Self> {
        let mut arguments = vec![
            arg("kubeconfig", kubeconfig),
            arg("leader-elect", "false"),
            arg("allocate-node-cidrs", allocate_node_cidrs.to_string()),
            arg("cluster-cidr", joined(&ranges.cluster_cidr)),
            arg("service-cluster-ip-range", joined(&ranges.service_cluster_ip_range)),
            arg("root-ca-file", ca),
            arg("node-monitor-grace-period", format!("{}s", node_grace.as_secs())),
        ];
        arguments.extend(roles::controller_manager::arguments_of(ca).into_iter().map(Into::into));
        Self::new("controller-manager", &log_dir(kubeconfig), "controller-manager", arguments)
    }

    pub fn simulated_nodes(
        kubeconfig: &Path,
        nodes: u32,
        schedule: &roles::simulated::ScheduleOptions,
        node_grace: Duration,
    ) -> Result<Self> {
        let milliseconds = |d: Duration| format!("{}ms", d.as_millis());
        let arguments = vec![
            arg("kubeconfig", kubeconfig),
            arg("nodes", nodes.to_string()),
            arg("simulated-pods-start-after", milliseconds(schedule.simulated_pods_start_after)),
            arg("simulated-jobs-run-for", milliseconds(schedule.simulated_jobs_run_for)),
            arg("node-monitor-grace-period", format!("{}s", node_grace.as_secs())),
        ];
        Self::new("simulated-nodes", &log_dir(kubeconfig), "simulated-nodes", arguments)
    }

    /// A node: one process, or one for each of its roles.
    pub(super) fn node(
        options: &Options,
        data_dir: &Path,
        layout: &Layout,
        n: u32,
        identities: &Identities<'_>,
        pki: &Pki,
    ) -> Result<Vec<Self>> {
        let name = node_name(n);
        let place = NodePlace {
            name: name.clone(),
            dir: data_dir.join("nodes").join(&name),
            run_dir: PathBuf::from("/run").join(&layout.cluster).join(&name),
            cgroup: format!("/{}/{name}", layout.cluster),
            network_namespace: layout.node_namespace(n),
            addresses: layout.node_addresses(n),
            dns_addresses: options.ranges.dns(),
            pod_networks: options.ranges.cluster_cidr.clone(),
            pod_network: options.network.clone(),
            cni_conf_dir: options.cni_conf_dir.as_deref().map(|dir| cni_conf_dir(dir, &name)).transpose()?,
            client_ca: pki.ca_file(),
            kubelet_kubeconfig: identities.kubeconfig(
                &name,
                &format!("system:node:{name}"),
                &["system:nodes"],
                true,
            )?,
            proxy_kubeconfig: identities.kubeconfig("kube-proxy", "system:kube-proxy", &[], true)?,
            dns_kubeconfig: identities.kubeconfig("kube-dns", "system:kube-dns", &[], true)?,
            container_runtime_endpoint: options.container_runtime_endpoint.clone(),
        };
        std::fs::create_dir_all(&place.dir).with_context(|| format!("cannot make {}", place.dir.display()))?;
        let file = place.dir.join("node.json");
        std::fs::write(&file, serde_json::to_vec_pretty(&place)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        let roles: &[&str] = match (options.split, &options.container_runtime_endpoint) {
            (false, _) => &[""],
            (true, None) => &["runtime", "kubelet", "proxy", "dns"],
            (true, Some(_)) => &["kubelet", "proxy", "dns"],
        };
        let log_dir = data_dir.join("log");
        let child = |role: &&str| {
            let mut arguments = vec![arg("place", &file), arg("network-namespace", &place.network_namespace)];
            let mut label = name.clone();
            if !role.is_empty() {
                arguments.push(arg("only", role));
                label = format!("{name}-{role}");
            }
            Self::new(&label, &log_dir, "node", arguments)
        };
        roles.iter().map(child).collect()
    }

    fn open_log(&self) -> std::io::Result<File> {
        if let Some(dir) = self.log.parent() {
            std::fs::create_dir_all(dir)?;
        }
        if std::fs::metadata(&self.log).is_ok_and(|m| m.len() > MAX_LOG) {
            std::fs::rename(&self.log, self.log.with_extension("log.1"))?;
        }
        OpenOptions::new().create(true).append(true).open(&self.log)
    }
}

/// Beside the directory of kubeconfigs.
fn log_dir(kubeconfig: &Path) -> PathBuf {
    kubeconfig.parent().and_then(Path::parent).map_or_else(|| PathBuf::from("log"), |dir| dir.join("log"))
}

pub struct Children {
    tracker: TaskTracker,
    cancel: CancellationToken,
    /// What each child's environment says of the data directory.
    claim: (&'static str, PathBuf),
}

impl Children {
    pub fn new(cancel: CancellationToken, claim: &Claim) -> Self {
        Self { tracker: TaskTracker::new(), cancel, claim: claim.environment() }
    }

    /// Keeps a child running until `until`.
    pub fn start(&mut self, child: Child, until: CancellationToken) {
        self.tracker.spawn(keep(child, self.claim.clone(), until));
    }

    /// Waits for the children whose time has come; those of the API server's token may be waited for again.
    pub async fn ended(&mut self) {
        debug_assert!(self.cancel.is_cancelled());
        self.tracker.close();
        let _ = tokio::time::timeout(GRACE * 2, self.tracker.wait()).await;
        self.tracker.reopen();
    }
}

async fn keep(child: Child, claim: (&'static str, PathBuf), until: CancellationToken) {
    let mut wait = FIRST_WAIT;
    while !until.is_cancelled() {
        let began = Instant::now();
        match spawn(&child, &claim) {
            Ok(mut process) => {
                // Its end tells the child of ours.
                let _stdin = process.stdin.take();
                tokio::select! {
                    status = process.wait() => tracing::error!(child = child.name, ?status, log = %child.log.display(), "ended; starting again"),
                    () = until.cancelled() => {
                        stop(&mut process).await;
                        return;
                    }
                }
            }
            Err(error) => tracing::error!(child = child.name, error = format!("{error:#}"), "cannot be started"),
        }
        if began.elapsed() > SETTLED {
            wait = FIRST_WAIT;
        }
        tokio::select! {
            () = until.cancelled() => return,
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(LONGEST_WAIT),
        }
    }
}

fn spawn(child: &Child, claim: &(&'static str, PathBuf)) -> Result<tokio::process::Child> {
    let log = child.open_log().with_context(|| format!("cannot write {}", child.log.display()))?;
    let mut command = tokio::process::Command::new(&child.program);
    command.args(&child.arguments).stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
    // A terminal's Ctrl-C is for this process; it tells the children itself.
    command.process_group(0);
    command.env(supervise::PARENT, supervise::STDIN).env(claim.0, &claim.1);
    command.spawn().with_context(|| format!("cannot start {}", child.program.display()))
}

async fn stop(process: &mut tokio::process::Child) {
    if let Some(pid) = process.id().and_then(|p| i32::try_from(p).ok()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    }
    if tokio::time::timeout(GRACE, process.wait()).await.is_err() {
        let _ = process.kill().await;
    }
}

/// Waits until the API server says it is ready.
pub async fn ready(admin: &Client, cancel: &CancellationToken) -> Result<()> {
    let deadline = Instant::now() + API_WITHIN;
    loop {
        let error = match admin.get_path("/readyz").await {
            Ok(_) => return Ok(()),
            Err(status) => status,
        };
        if Instant::now() > deadline || cancel.is_cancelled() {
            return Err(anyhow::Error::new(error).context("the API server is not ready"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
