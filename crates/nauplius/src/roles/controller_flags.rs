//! The controller manager's flags that tune single controllers, its lease, and those that are taken and change nothing.
//! What is offered nowhere here is refused by name.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use controllers::Autoscaling;
use controllers::signing::{self, Authority};

use super::controller_manager::{authority, duration};

/// Keys that controllers reconcile at once.
#[derive(clap::Args, Clone, Default)]
#[command(next_help_heading = "Keys reconciled at once")]
pub struct Concurrency {
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_cron_job_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_daemonset_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_deployment_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_endpoint_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_ephemeralvolume_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_gc_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_horizontal_pod_autoscaler_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_job_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_namespace_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_rc_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_replicaset_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_device_taint_eviction_syncs: Option<u16>,
    #[arg(long, alias = "concurrent-resource-claim-syncs", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_resourceclaim_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_resource_quota_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_service_endpoint_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_serviceaccount_token_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_statefulset_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrent_ttl_after_finished_syncs: Option<u16>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    mirroring_concurrent_service_endpoint_syncs: Option<u16>,
}

impl Concurrency {
    /// What was said, by the controller's name.
    pub fn workers(&self) -> BTreeMap<&'static str, usize> {
        let each = [
            ("cronjob-controller", self.concurrent_cron_job_syncs),
            ("daemonset-controller", self.concurrent_daemonset_syncs),
            ("deployment-controller", self.concurrent_deployment_syncs),
            ("endpoints-controller", self.concurrent_endpoint_syncs),
            ("endpointslice-controller", self.concurrent_service_endpoint_syncs),
            ("endpointslice-mirroring-controller", self.mirroring_concurrent_service_endpoint_syncs),
            ("ephemeral-volume-controller", self.concurrent_ephemeralvolume_syncs),
            ("garbage-collector-controller", self.concurrent_gc_syncs),
            ("horizontal-pod-autoscaler-controller", self.concurrent_horizontal_pod_autoscaler_syncs),
            ("job-controller", self.concurrent_job_syncs),
            ("namespace-controller", self.concurrent_namespace_syncs),
            ("replicaset-controller", self.concurrent_replicaset_syncs),
            ("replicationcontroller-controller", self.concurrent_rc_syncs),
            ("device-taint-eviction-controller", self.concurrent_device_taint_eviction_syncs),
            ("resourceclaim-controller", self.concurrent_resourceclaim_syncs),
            ("resourcequota-controller", self.concurrent_resource_quota_syncs),
            ("serviceaccount-token-controller", self.concurrent_serviceaccount_token_syncs),
            ("statefulset-controller", self.concurrent_statefulset_syncs),
            ("ttl-after-finished-controller", self.concurrent_ttl_after_finished_syncs),
        ];
        each.into_iter().filter_map(|(name, said)| Some((name, usize::from(said?)))).collect()
    }
}

/// How long changes of pods are let gather before endpoints are told, and how many one slice holds.
#[derive(clap::Args, Clone)]
pub struct Endpoints {
    #[arg(long, value_parser = duration, default_value = "0s")]
    endpoint_updates_batch_period: Duration,
    #[arg(long, value_parser = duration, default_value = "0s")]
    endpointslice_updates_batch_period: Duration,
    #[arg(long, value_parser = duration, default_value = "0s")]
    mirroring_endpointslice_updates_batch_period: Duration,
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub max_endpoints_per_slice: u16,
}

impl Endpoints {
    pub fn batches(&self) -> BTreeMap<&'static str, Duration> {
        let each = [
            ("endpoints-controller", self.endpoint_updates_batch_period),
            ("endpointslice-controller", self.endpointslice_updates_batch_period),
            ("endpointslice-mirroring-controller", self.mirroring_endpointslice_updates_batch_period),
        ];
        each.into_iter().filter(|(_, batch)| !batch.is_zero()).collect()
    }
}

/// What autoscalers go by.
#[derive(clap::Args, Clone)]
pub struct AutoscalerFlags {
    #[arg(long, value_parser = duration, default_value = "15s")]
    horizontal_pod_autoscaler_sync_period: Duration,
    #[arg(long, default_value_t = 0.1)]
    horizontal_pod_autoscaler_tolerance: f64,
    #[arg(long, value_parser = duration, default_value = "5m")]
    horizontal_pod_autoscaler_cpu_initialization_period: Duration,
    #[arg(long, value_parser = duration, default_value = "30s")]
    horizontal_pod_autoscaler_initial_readiness_delay: Duration,
    #[arg(long, value_parser = duration, default_value = "5m")]
    horizontal_pod_autoscaler_downscale_stabilization: Duration,
}

impl AutoscalerFlags {
    pub fn read(&self) -> Autoscaling {
        Autoscaling {
            period: self.horizontal_pod_autoscaler_sync_period,
            tolerance: self.horizontal_pod_autoscaler_tolerance,
            cpu_initialization: self.horizontal_pod_autoscaler_cpu_initialization_period,
            initial_readiness_delay: self.horizontal_pod_autoscaler_initial_readiness_delay,
            downscale_stabilization: self.horizontal_pod_autoscaler_downscale_stabilization,
        }
    }
}

/// Authorities of single signers, in place of the one for all.
#[derive(clap::Args, Clone, Default)]
pub struct Signers {
    #[arg(long, requires = "cluster_signing_kubelet_serving_key_file")]
    cluster_signing_kubelet_serving_cert_file: Option<PathBuf>,
    #[arg(long, requires = "cluster_signing_kubelet_serving_cert_file")]
    cluster_signing_kubelet_serving_key_file: Option<PathBuf>,
    #[arg(long, requires = "cluster_signing_kubelet_client_key_file")]
    cluster_signing_kubelet_client_cert_file: Option<PathBuf>,
    #[arg(long, requires = "cluster_signing_kubelet_client_cert_file")]
    cluster_signing_kubelet_client_key_file: Option<PathBuf>,
    #[arg(long, requires = "cluster_signing_kube_apiserver_client_key_file")]
    cluster_signing_kube_apiserver_client_cert_file: Option<PathBuf>,
    #[arg(long, requires = "cluster_signing_kube_apiserver_client_cert_file")]
    cluster_signing_kube_apiserver_client_key_file: Option<PathBuf>,
    #[arg(long, requires = "cluster_signing_legacy_unknown_key_file")]
    cluster_signing_legacy_unknown_cert_file: Option<PathBuf>,
    #[arg(long, requires = "cluster_signing_legacy_unknown_cert_file")]
    cluster_signing_legacy_unknown_key_file: Option<PathBuf>,
}

impl Signers {
    /// Those named. As upstream has it, they are not beside one for all.
    pub fn read(&self, has_common: bool) -> Result<BTreeMap<String, Authority>> {
        let each = [
            (
                signing::KUBELET_SERVING,
                &self.cluster_signing_kubelet_serving_cert_file,
                &self.cluster_signing_kubelet_serving_key_file,
            ),
            (
                signing::KUBELET_CLIENT,
                &self.cluster_signing_kubelet_client_cert_file,
                &self.cluster_signing_kubelet_client_key_file,
            ),
            (
                signing::KUBE_APISERVER_CLIENT,
                &self.cluster_signing_kube_apiserver_client_cert_file,
                &self.cluster_signing_kube_apiserver_client_key_file,
            ),
            (
                signing::LEGACY_UNKNOWN,
                &self.cluster_signing_legacy_unknown_cert_file,
                &self.cluster_signing_legacy_unknown_key_file,
            ),
        ];
        let named = each.into_iter().filter_map(|(name, certificate, key)| {
            let (certificate, key) = certificate.as_deref().zip(key.as_deref())?;
            Some(authority(certificate, key).map(|made| (name.to_string(), made)))
        });
        let named: BTreeMap<String, Authority> = named.collect::<Result<_>>()?;
        ensure!(
            named.is_empty() || !has_common,
            "cannot specify --cluster-signing-{{cert,key}}-file and other --cluster-signing-*-file flags at the same time"
        );
        Ok(named)
    }
}

/// The lease of the one that works while others stand by.
#[derive(clap::Args, Clone)]
pub struct Election {
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_elect: bool,
    #[arg(long, value_parser = duration, default_value = "15s")]
    pub leader_elect_lease_duration: Duration,
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub leader_elect_renew_deadline: Duration,
    #[arg(long, value_parser = duration, default_value = "2s")]
    pub leader_elect_retry_period: Duration,
    #[arg(long, value_parser = ["leases"], default_value = "leases")]
    leader_elect_resource_lock: String,
    #[arg(long, default_value = super::CONTROLLER_MANAGER)]
    pub leader_elect_resource_name: String,
    #[arg(long, default_value = "kube-system")]
    pub leader_elect_resource_namespace: String,
}

impl Election {
    /// Whether the times leave a leader room to renew, in upstream's words where not.
    pub fn check(&self) -> Result<()> {
        let (lease, renew) = (self.leader_elect_lease_duration, self.leader_elect_renew_deadline);
        ensure!(lease > renew, "leaseDuration must be greater than renewDeadline");
        // Upstream's jitter.
        let retry = self.leader_elect_retry_period.mul_f64(1.2);
        ensure!(renew > retry, "renewDeadline must be greater than retryPeriod*JitterFactor");
        ensure!(!retry.is_zero(), "retryPeriod must be greater than zero");
        Ok(())
    }
}

/// Flags of upstream's with one value that fits here, so that another is refused and not passed over.
#[derive(clap::Args, Clone, Default)]
pub struct Fixed {
    #[arg(long, hide = true, value_parser = ["", "external"])]
    cloud_provider: Option<String>,
    #[arg(long, hide = true, value_parser = ["RangeAllocator"])]
    cidr_allocator_type: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", value_parser = ["false"])]
    enable_leader_migration: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", value_parser = ["false"])]
    enable_hostpath_provisioner: Option<String>,
    #[arg(long, hide = true, value_parser = ["1000"])]
    mirroring_max_endpoints_per_subset: Option<String>,
}

/// Controllers that have switches of their own.
#[derive(clap::Args, Clone)]
pub struct Switches {
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set)]
    enable_garbage_collector: bool,
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set)]
    enable_dynamic_provisioning: bool,
}

impl Switches {
    /// As `--controllers` says it.
    pub fn off(&self) -> impl Iterator<Item = String> {
        let each = [
            (self.enable_garbage_collector, "-garbage-collector-controller"),
            (self.enable_dynamic_provisioning, "-local-path-provisioner-controller"),
        ];
        each.into_iter().filter(|(on, _)| !on).map(|(_, name)| name.to_string())
    }
}

/// Flags of upstream's that are taken and change nothing: they pace looks that follow from events here, or tune parts that are
/// not there.
#[derive(clap::Args, Clone, Default)]
pub struct TakenFlags {
    #[arg(long, hide = true)]
    cluster_name: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    configure_cloud_routes: Option<String>,
    #[arg(long, hide = true)]
    attach_detach_reconcile_sync_period: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    disable_attach_detach_reconcile_sync: Option<String>,
    #[arg(long, hide = true)]
    concurrent_service_syncs: Option<String>,
    #[arg(long, hide = true)]
    concurrent_validating_admission_policy_status_syncs: Option<String>,
    #[arg(long, hide = true)]
    controller_start_interval: Option<String>,
    #[arg(long, hide = true)]
    flex_volume_plugin_dir: Option<String>,
    #[arg(long, hide = true)]
    kube_api_content_type: Option<String>,
    #[arg(long, hide = true)]
    min_resync_period: Option<String>,
    #[arg(long, hide = true)]
    namespace_sync_period: Option<String>,
    #[arg(long, hide = true)]
    resource_quota_sync_period: Option<String>,
    #[arg(long, hide = true)]
    pvclaimbinder_sync_period: Option<String>,
    #[arg(long, hide = true)]
    route_reconciliation_period: Option<String>,
    #[arg(long, hide = true)]
    node_sync_period: Option<String>,
    #[arg(long, hide = true)]
    allow_metric_labels_manifest: Option<String>,
    #[arg(long, hide = true)]
    controller_shutdown_timeout: Option<String>,
    #[arg(long, hide = true)]
    log_text_info_buffer_size: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    log_text_split_stream: Option<String>,
    #[arg(long, hide = true)]
    pv_recycler_pod_template_filepath_hostpath: Option<String>,
    #[arg(long, hide = true)]
    pv_recycler_pod_template_filepath_nfs: Option<String>,
    #[arg(long, hide = true)]
    pv_recycler_increment_timeout_nfs: Option<String>,
    #[arg(long, hide = true)]
    pv_recycler_minimum_timeout_hostpath: Option<String>,
    #[arg(long, hide = true)]
    pv_recycler_minimum_timeout_nfs: Option<String>,
    #[arg(long, hide = true)]
    pv_recycler_timeout_increment_hostpath: Option<String>,
}
