//! The file's form, field by field as upstream names them. What is not named is an error.

use std::time::Duration;

use client::site::Tls;
use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::Deserialize;
use serde_json::Value;

use super::{Wrong, wrong};
use crate::extender::Settings;

macro_rules! form {
    ($($name:ident { $($(#[$about:meta])* $field:ident: $type:ty),* $(,)? })*) => {
        $(
            #[derive(Clone, Debug, Default, Deserialize)]
            #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
            #[allow(dead_code, reason = "fields without a meaning here are read so that files that have them are taken")]
            pub struct $name { $($(#[$about])* pub $field: $type,)* }
        )*
    };
}

form! {
    File {
        api_version: String,
        kind: String,
        parallelism: Option<i64>,
        leader_election: Option<LeaderElectionFile>,
        client_connection: Option<ClientConnection>,
        enable_profiling: Option<bool>,
        enable_contention_profiling: Option<bool>,
        percentage_of_nodes_to_score: Option<i64>,
        pod_initial_backoff_seconds: Option<i64>,
        pod_max_backoff_seconds: Option<i64>,
        profiles: Vec<ProfileFile>,
        extenders: Vec<ExtenderFile>,
        delay_cache_until_active: bool,
    }
    ExtenderFile {
        url_prefix: String,
        filter_verb: String,
        preempt_verb: String,
        prioritize_verb: String,
        weight: i64,
        bind_verb: String,
        #[serde(rename = "enableHTTPS")]
        enable_https: bool,
        tls_config: Option<TlsFile>,
        http_timeout: Option<String>,
        node_cache_capable: bool,
        managed_resources: Vec<ManagedResource>,
        ignorable: bool,
    }
    TlsFile {
        insecure: bool,
        server_name: Option<String>,
        cert_file: Option<String>,
        key_file: Option<String>,
        ca_file: Option<String>,
        cert_data: Option<String>,
        key_data: Option<String>,
        ca_data: Option<String>,
    }
    ManagedResource { name: String, ignored_by_scheduler: bool }
    LeaderElectionFile {
        leader_elect: Option<bool>,
        lease_duration: Option<String>,
        renew_deadline: Option<String>,
        retry_period: Option<String>,
        resource_lock: Option<String>,
        resource_name: Option<String>,
        resource_namespace: Option<String>,
    }
    ClientConnection {
        kubeconfig: Option<String>,
        accept_content_types: Option<String>,
        content_type: Option<String>,
        qps: Option<f64>,
        burst: Option<i64>,
    }
    ProfileFile {
        scheduler_name: Option<String>,
        percentage_of_nodes_to_score: Option<i64>,
        plugins: Option<PluginSets>,
        plugin_config: Vec<ArgsOf>,
    }
    PluginSets {
        pre_enqueue: Option<PluginSet>,
        queue_sort: Option<PluginSet>,
        pre_filter: Option<PluginSet>,
        filter: Option<PluginSet>,
        post_filter: Option<PluginSet>,
        pre_score: Option<PluginSet>,
        score: Option<PluginSet>,
        reserve: Option<PluginSet>,
        permit: Option<PluginSet>,
        pre_bind: Option<PluginSet>,
        bind: Option<PluginSet>,
        post_bind: Option<PluginSet>,
        multi_point: Option<PluginSet>,
    }
    PluginSet { enabled: Vec<PluginFile>, disabled: Vec<PluginFile> }
    PluginFile { name: String, weight: Option<i32> }
    ArgsOf { name: String, args: Value }
    ResourceSpec { name: String, weight: i64 }
    ScoringStrategy {
        r#type: String,
        resources: Vec<ResourceSpec>,
        requested_to_capacity_ratio: Option<Ratio>,
    }
    Ratio { shape: Vec<ShapePoint> }
    ShapePoint { utilization: i64, score: i64 }
    NodeResourcesFitArgs {
        ignored_resources: Vec<String>,
        ignored_resource_groups: Vec<String>,
        scoring_strategy: Option<ScoringStrategy>,
    }
    BalancedArgs { resources: Vec<ResourceSpec> }
    InterPodAffinityArgs {
        hard_pod_affinity_weight: Option<i64>,
        ignore_preferred_terms_of_existing_pods: bool,
    }
    NodeAffinityArgs { added_affinity: Option<NodeAffinity> }
    PodTopologySpreadArgs {
        default_constraints: Vec<TopologySpreadConstraint>,
        defaulting_type: String,
    }
    VolumeBindingArgs { bind_timeout_seconds: Option<i64>, shape: Vec<ShapePoint> }
    DefaultPreemptionArgs {
        min_candidate_nodes_percentage: Option<i64>,
        min_candidate_nodes_absolute: Option<i64>,
    }
}

/// How leadership is held, where there are several schedulers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderElection {
    /// `None` when the file does not say.
    pub elect: Option<bool>,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
    pub name: String,
    pub namespace: String,
}

impl Default for LeaderElection {
    fn default() -> Self {
        Self {
            elect: None,
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
            name: "kube-scheduler".into(),
            namespace: "kube-system".into(),
        }
    }
}

/// `15s`, `1m30s`, `500ms`, as Go writes durations.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number * seconds).ok()?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(total)
}

/// What an extender may take to answer, if the file does not say.
const EXTENDER_TIMEOUT: Duration = Duration::from_secs(5);

impl ExtenderFile {
    pub fn checked(self, path: &str) -> Result<Settings, Wrong> {
        if !self.prioritize_verb.is_empty() && self.weight <= 0 {
            return wrong(
                format!("{path}.weight"),
                format!("Invalid value: {}: must have a positive weight applied to it", self.weight),
            );
        }
        let within = match &self.http_timeout {
            None => EXTENDER_TIMEOUT,
            Some(text) => match duration(text) {
                Some(time) if time.is_zero() => EXTENDER_TIMEOUT,
                Some(time) => time,
                None => return wrong(format!("{path}.httpTimeout"), format!("Invalid value: {text:?}")),
            },
        };
        let from = self.tls_config.unwrap_or_default();
        let tls = Tls {
            // Upstream checks nobody where it was given nothing to check by.
            insecure: from.insecure || self.enable_https && from.ca_file.is_none() && from.ca_data.is_none(),
            server_name: from.server_name,
            certificate_file: from.cert_file,
            certificate_data: from.cert_data,
            key_file: from.key_file,
            key_data: from.key_data,
            authority_file: from.ca_file,
            authority_data: from.ca_data,
        };
        Ok(Settings {
            url: self.url_prefix,
            filter: self.filter_verb,
            prioritize: self.prioritize_verb,
            preempt: self.preempt_verb,
            bind: self.bind_verb,
            weight: self.weight,
            tls,
            within,
            names_only: self.node_cache_capable,
            managed: self.managed_resources.into_iter().map(|m| m.name).collect(),
            ignorable: self.ignorable,
        })
    }
}

impl LeaderElectionFile {
    pub fn checked(self) -> Result<LeaderElection, Wrong> {
        let usual = LeaderElection::default();
        let time = |text: Option<String>, usual: Duration, name: &str| match text {
            None => Ok(usual),
            Some(text) => duration(&text).filter(|d| !d.is_zero()).map_or_else(
                || {
                    wrong(
                        format!("leaderElection.{name}"),
                        format!("Invalid value: {text:?}: must be greater than zero"),
                    )
                },
                Ok,
            ),
        };
        if let Some(lock) = self.resource_lock.filter(|l| !l.is_empty() && l != "leases") {
            return wrong(
                "leaderElection.resourceLock",
                format!("Invalid value: {lock:?}: resourceLock value must be \"leases\""),
            );
        }
        let out = LeaderElection {
            elect: self.leader_elect,
            lease_duration: time(self.lease_duration, usual.lease_duration, "leaseDuration")?,
            renew_deadline: time(self.renew_deadline, usual.renew_deadline, "renewDeadline")?,
            retry_period: time(self.retry_period, usual.retry_period, "retryPeriod")?,
            name: self.resource_name.filter(|n| !n.is_empty()).unwrap_or(usual.name),
            namespace: self.resource_namespace.filter(|n| !n.is_empty()).unwrap_or(usual.namespace),
        };
        if out.lease_duration <= out.renew_deadline {
            return wrong(
                "leaderElection.leaseDuration",
                "Invalid value: LeaseDuration must be greater than RenewDeadline",
            );
        }
        Ok(out)
    }
}
