//! The controller manager as a role: its flags as upstream spells them, its keys, and what it tells of itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use client::{Client, Informers, LeaderElection};
use controllers::signing::Authority;
use controllers::tokens::Signer;
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::controller_flags::{
    AutoscalerFlags, Concurrency, Election, Endpoints, Fixed, Signers, Switches, TakenFlags,
};
use super::{CONTROLLER_MANAGER, FeatureGates, seconds, status};
use crate::cli::{ApiAccess, Ranges};
use crate::pki::Pki;

/// Where it shows itself, unless told otherwise.
const PORT: u16 = 10257;
/// Where the built-in provisioner's volumes lie, below the data directory.
const LOCAL_VOLUMES: &str = "volumes";

#[derive(clap::Args, Clone)]
pub struct ControllerManagerOptions {
    #[command(flatten)]
    pub api: ApiAccess,
    /// Pods' addresses, one range of each address family.
    #[arg(long, value_delimiter = ',', default_value = "10.244.0.0/16")]
    pub cluster_cidr: Vec<IpNet>,
    /// Services' addresses, one range of each address family.
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/12")]
    pub service_cluster_ip_range: Vec<IpNet>,
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set)]
    pub allocate_node_cidrs: bool,
    /// Prefix length of a node's IPv4 pod range.
    #[arg(long, alias = "node-cidr-mask-size", default_value_t = 24)]
    pub node_cidr_mask_size_ipv4: u8,
    #[arg(long, default_value_t = 64)]
    pub node_cidr_mask_size_ipv6: u8,
    /// Published in each namespace as `kube-root-ca.crt`.
    #[arg(long)]
    pub root_ca_file: Option<PathBuf>,
    /// Signs certificate requests, with its key.
    #[arg(long, requires = "cluster_signing_key_file")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    #[arg(long, requires = "cluster_signing_cert_file")]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// Longest life of a certificate signed.
    #[arg(long, value_parser = duration, default_value = "8760h0m0s")]
    pub cluster_signing_duration: Duration,
    /// Signs tokens kept in Secrets.
    #[arg(long)]
    pub service_account_private_key_file: Option<PathBuf>,
    /// Let each controller write under the service account upstream gives it.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    pub use_service_account_credentials: bool,
    /// `*`, names, and `-name` for those to leave out.
    #[arg(long, value_delimiter = ',', default_value = "*", allow_hyphen_values = true)]
    pub controllers: Vec<String>,
    #[arg(long, value_parser = duration, default_value = "5s")]
    pub node_monitor_period: Duration,
    #[arg(long, value_parser = duration, default_value = "50s")]
    pub node_monitor_grace_period: Duration,
    #[arg(long, value_parser = duration, default_value = "1m")]
    pub node_startup_grace_period: Duration,
    #[arg(long, default_value_t = 0.1)]
    pub node_eviction_rate: f64,
    #[arg(long, default_value_t = 0.01)]
    pub secondary_node_eviction_rate: f64,
    #[arg(long, default_value_t = 50)]
    pub large_cluster_size_threshold: usize,
    #[arg(long, default_value_t = 0.55)]
    pub unhealthy_zone_threshold: f64,
    #[arg(long, default_value_t = 12_500)]
    pub terminated_pod_gc_threshold: usize,
    /// How long a token kept in a Secret may lie unused before it is made invalid, and how long it then lies.
    #[arg(long, value_parser = duration, default_value = "8760h0m0s")]
    pub legacy_service_account_token_clean_up_period: Duration,
    /// Leave volumes on unhealthy nodes that do not let go of them.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    pub disable_force_detach_on_timeout: bool,
    /// The API server's address, in place of the kubeconfig's.
    #[arg(long)]
    pub master: Option<String>,
    /// Keep volumes of the class `local-path` in this directory; only where every node sees it.
    #[arg(long)]
    pub local_path_dir: Option<PathBuf>,
    #[command(flatten)]
    pub election: Election,
    #[command(flatten)]
    pub signers: Signers,
    #[command(flatten)]
    pub autoscaler: AutoscalerFlags,
    #[command(flatten)]
    pub endpoints: Endpoints,
    #[command(flatten)]
    pub switches: Switches,
    #[command(flatten)]
    pub gates: FeatureGates,
    #[command(flatten)]
    pub port: status::Port,
    #[command(flatten)]
    pub fixed: Fixed,
    #[command(flatten)]
    pub taken: TakenFlags,
    #[command(flatten)]
    pub concurrency: Concurrency,
}

/// The configuration in effect, as upstream's `/configz` names it.
fn document(options: &controllers::Options, election: &Election, own_accounts: bool) -> Value {
    let time = |d: Duration| meta::time::format_duration(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX));
    let joined = crate::ranges::joined;
    json!({
        "Generic": {
            "Controllers": options.controllers,
            "LeaderElection": {
                "LeaderElect": election.leader_elect,
                "LeaseDuration": time(election.leader_elect_lease_duration),
                "RenewDeadline": time(election.leader_elect_renew_deadline),
                "RetryPeriod": time(election.leader_elect_retry_period),
                "ResourceLock": "leases",
                "ResourceName": election.leader_elect_resource_name,
                "ResourceNamespace": election.leader_elect_resource_namespace,
            },
        },
        "KubeCloudShared": {
            "AllocateNodeCIDRs": options.allocate_node_cidrs,
            "ClusterCIDR": joined(&options.cluster_cidrs),
            "NodeMonitorPeriod": time(options.node_monitor_period),
            "UseServiceAccountCredentials": own_accounts,
        },
        "CSRSigningController": {"ClusterSigningDuration": time(options.cluster_signing_duration)},
        "NodeIPAMController": {
            "ServiceCIDR": joined(&options.service_cidrs),
            "NodeCIDRMaskSizeIPv4": options.node_cidr_mask_size_ipv4,
            "NodeCIDRMaskSizeIPv6": options.node_cidr_mask_size_ipv6,
        },
        "NodeLifecycleController": {
            "NodeEvictionRate": options.node_eviction_rate,
            "SecondaryNodeEvictionRate": options.secondary_node_eviction_rate,
            "NodeStartupGracePeriod": time(options.node_startup_grace_period),
            "NodeMonitorGracePeriod": time(options.node_monitor_grace_period),
            "LargeClusterSizeThreshold": options.large_cluster_size_threshold,
            "UnhealthyZoneThreshold": options.unhealthy_zone_threshold,
        },
        "HPAController": {
            "HorizontalPodAutoscalerSyncPeriod": time(options.autoscaling.period),
            "HorizontalPodAutoscalerTolerance": options.autoscaling.tolerance,
            "HorizontalPodAutoscalerCPUInitializationPeriod": time(options.autoscaling.cpu_initialization),
            "HorizontalPodAutoscalerInitialReadinessDelay": time(options.autoscaling.initial_readiness_delay),
            "HorizontalPodAutoscalerDownscaleStabilizationWindow": time(options.autoscaling.downscale_stabilization),
        },
        "EndpointSliceController": {"MaxEndpointsPerSlice": options.max_endpoints_per_slice},
        "PodGCController": {"TerminatedPodGCThreshold": options.terminated_pod_gc_threshold},
    })
}

/// A duration as Go writes it: `40s`, `8760h0m0s`, `1m30s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration such as 40s or 1h30m");
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return seconds(text);
    }
    let (mut total, mut rest) = (0u64, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
        let behind = &rest[digits..];
        let unit = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let millis = match &behind[..unit] {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1000,
            "ms" => 1,
            _ => return Err(bad()),
        };
        total = number.checked_mul(millis).and_then(|n| total.checked_add(n)).ok_or_else(bad)?;
        rest = &behind[unit..];
    }
    Ok(Duration::from_millis(total))
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

pub fn authority(certificate: &Path, key: &Path) -> Result<Authority> {
    let made = Authority::from_pem(&read(certificate)?, &read(key)?);
    made.map_err(|e| anyhow!("{} and {}: {e}", certificate.display(), key.display()))
}

fn signer(key: &Path) -> Result<Signer> {
    Signer::from_pem(&read(key)?).map_err(|e| anyhow!("{}: {e}", key.display()))
}

/// The role alone.
pub async fn controller_manager(options: ControllerManagerOptions, cancel: CancellationToken) -> Result<()> {
    options.election.check()?;
    options.gates.read()?;
    let client = super::connect_to(&options.api.kubeconfig, options.master.as_deref(), CONTROLLER_MANAGER).await?;
    let files = options.cluster_signing_cert_file.as_deref().zip(options.cluster_signing_key_file.as_deref());
    let own_accounts = options.use_service_account_credentials;
    let accounts = own_accounts.then(|| {
        let (main, kubeconfig) = (client.clone(), options.api.kubeconfig.clone());
        controllers::Accounts(Arc::new(move |name: &str| {
            let account =
                client::Account::new(main.clone(), kubeconfig.clone(), "kube-system", name, CONTROLLER_MANAGER);
            Client::new(account).with_field_manager(CONTROLLER_MANAGER)
        }))
    });
    let controllers = controllers::Options {
        accounts,
        controllers: options.controllers.into_iter().chain(options.switches.off()).collect(),
        workers: options.concurrency.workers(),
        batches: options.endpoints.batches(),
        autoscaling: options.autoscaler.read(),
        max_endpoints_per_slice: options.endpoints.max_endpoints_per_slice.into(),
        signers: options.signers.read(files.is_some())?,
        allocate_node_cidrs: options.allocate_node_cidrs,
        cluster_cidrs: options.cluster_cidr,
        service_cidrs: options.service_cluster_ip_range,
        node_cidr_mask_size_ipv4: options.node_cidr_mask_size_ipv4,
        node_cidr_mask_size_ipv6: options.node_cidr_mask_size_ipv6,
        node_monitor_period: options.node_monitor_period,
        node_monitor_grace_period: options.node_monitor_grace_period,
        node_startup_grace_period: options.node_startup_grace_period,
        node_eviction_rate: options.node_eviction_rate,
        secondary_node_eviction_rate: options.secondary_node_eviction_rate,
        large_cluster_size_threshold: options.large_cluster_size_threshold,
        unhealthy_zone_threshold: options.unhealthy_zone_threshold,
        local_path: options.local_path_dir,
        root_ca: options.root_ca_file.as_deref().map(read).transpose()?,
        signing: files.map(|(certificate, key)| authority(certificate, key)).transpose()?,
        cluster_signing_duration: options.cluster_signing_duration,
        service_account_signer: options.service_account_private_key_file.as_deref().map(signer).transpose()?,
        terminated_pod_gc_threshold: options.terminated_pod_gc_threshold,
        legacy_token_clean_up: options.legacy_service_account_token_clean_up_period,
        force_detach: !options.disable_force_detach_on_timeout,
        ..controllers::Options::default()
    };
    let about = status::About {
        component: CONTROLLER_MANAGER,
        configuration: ("kubecontrollermanager.config.k8s.io", document(&controllers, &options.election, own_accounts)),
        parts: controllers::health,
        client: client.clone(),
        began: std::time::Instant::now(),
        gates: resources::gates::Gates::default(),
        checks: vec![status::Check::leadership(options.election.leader_elect_resource_name.clone(), &["healthz"])],
        pages: Vec::new(),
    };
    options.port.serve(PORT, about, &cancel).await?;
    let informers = Informers::new(client.clone());
    let run =
        |cancel: CancellationToken| controllers::run(client.clone(), informers.clone(), controllers.clone(), cancel);
    let election = &options.election;
    if !election.leader_elect {
        return run(cancel).await.map_err(Into::into);
    }
    let (namespace, name) = (&election.leader_elect_resource_namespace, &election.leader_elect_resource_name);
    let candidate = LeaderElection {
        lease_duration: election.leader_elect_lease_duration,
        renew_deadline: election.leader_elect_renew_deadline,
        retry_period: election.leader_elect_retry_period,
        ..LeaderElection::new(client.clone(), namespace, name, &super::identity())
    };
    match candidate.run(cancel, run).await {
        Some(Err(error)) => Err(error.into()),
        Some(Ok(())) | None => Ok(()),
    }
}

/// The controllers of a cluster whose files are ours, with all its keys.
pub fn options_of(ranges: &Ranges, pki: &Pki, data_dir: &Path) -> Result<controllers::Options> {
    let ca = pki.ca_file();
    pki.service_account_key()?;
    Ok(controllers::Options {
        cluster_cidrs: ranges.cluster_cidr.clone(),
        service_cidrs: ranges.service_cluster_ip_range.clone(),
        root_ca: Some(pki.ca_pem().to_string()),
        signing: Some(authority(&ca, &ca.with_file_name("ca.key"))?),
        service_account_signer: Some(signer(&ca.with_file_name("service-account.key"))?),
        local_path: Some(data_dir.join(LOCAL_VOLUMES)),
        controllers: ["*", "bootstrap-signer-controller", "token-cleaner-controller"].map(Into::into).into(),
        ..controllers::Options::default()
    })
}

/// The same as flags, for a process of its own; `ca` is the authority's certificate among the cluster's files.
pub fn arguments_of(ca: &Path) -> Vec<String> {
    let flag = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
    let volumes = ca.parent().and_then(Path::parent).map(|data_dir| data_dir.join(LOCAL_VOLUMES));
    let mut out = vec![
        flag("cluster-signing-cert-file", ca.into()),
        flag("cluster-signing-key-file", ca.with_file_name("ca.key")),
        flag("service-account-private-key-file", ca.with_file_name("service-account.key")),
        "--controllers=*,bootstrap-signer-controller,token-cleaner-controller".into(),
        "--secure-port=0".into(),
    ];
    out.extend(volumes.map(|dir| flag("local-path-dir", dir)));
    out
}

/// The controllers beside the API server, which has no other.
pub async fn run_controllers(client: Client, options: controllers::Options, cancel: CancellationToken) -> Result<()> {
    let informers = Informers::new(client.clone());
    controllers::run(client, informers, options, cancel).await.map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expect) in [
            ("40s", Some(40)),
            ("40", Some(40)),
            ("8760h0m0s", Some(31_536_000)),
            ("1m30s", Some(90)),
            ("1s500ms", Some(1)),
            ("ms", None),
            ("x", None),
            ("5", Some(5)),
            ("3d", None),
        ] {
            assert_eq!(duration(text).ok().map(|d| d.as_secs()), expect, "{text}");
        }
    }
}
