//! Simulated nodes: the flags, the rights they need, and the role, beside an API server or alone against any cluster.

use std::time::Duration;

use anyhow::{Context, Result};
use client::Client;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubelet::simulated::{self, pod::Schedule};
use tokio_util::sync::CancellationToken;

use crate::cli::ApiAccess;

/// The identity, and the name of its role.
pub const USER: &str = "nauplius:simulated-nodes";
pub const AGENT: &str = "nauplius-simulated-nodes";
/// As many nodes as there are addresses for.
pub const MAX: i64 = simulated::MAX_NODES as i64;

/// How simulated pods live unless their annotations say otherwise.
#[derive(clap::Args, Clone, Debug)]
pub struct ScheduleOptions {
    /// How long pods on simulated nodes take to start.
    #[arg(long, value_parser = simulated::pod::duration, default_value = "0s")]
    pub simulated_pods_start_after: Duration,
    /// How long the pods of Jobs run on simulated nodes.
    #[arg(long, value_parser = simulated::pod::duration, default_value = "1s")]
    pub simulated_jobs_run_for: Duration,
}

#[derive(clap::Args, Clone)]
pub struct Options {
    #[command(flatten)]
    pub api: ApiAccess,
    /// How many nodes.
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=MAX))]
    pub nodes: u32,
    #[command(flatten)]
    pub schedule: ScheduleOptions,
    /// How long the cluster lets a node be silent: leases are renewed twice as often.
    #[arg(long, value_parser = super::seconds, default_value = "40s")]
    pub node_monitor_grace_period: Duration,
}

pub fn simulation(nodes: u32, schedule: &ScheduleOptions, grace: Duration) -> simulated::Options {
    simulated::Options {
        nodes,
        schedule: Schedule {
            start_after: schedule.simulated_pods_start_after,
            jobs_run_for: schedule.simulated_jobs_run_for,
        },
        grace,
    }
}

/// The role, alone.
pub async fn run(options: Options, cancel: CancellationToken) -> Result<()> {
    let client = super::connect(&options.api.kubeconfig, AGENT).await?;
    let simulation = simulation(options.nodes, &options.schedule, options.node_monitor_grace_period);
    simulated::run(client, simulation, cancel).await;
    Ok(())
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> PolicyRule {
    let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    PolicyRule {
        api_groups: Some(vec![group.into()]),
        resources: Some(owned(resources)),
        verbs: owned(verbs),
        ..Default::default()
    }
}

/// Gives the identity what it needs and no more.
pub async fn grant(admin: &Client) -> Result<()> {
    let metadata = || ObjectMeta { name: Some(USER.into()), ..Default::default() };
    let role = ClusterRole {
        metadata: metadata(),
        rules: Some(vec![
            rule("", &["nodes"], &["get", "list", "watch", "create", "delete"]),
            rule("", &["nodes/status", "pods/status"], &["patch"]),
            rule("", &["pods"], &["get", "list", "watch", "delete"]),
            rule("coordination.k8s.io", &["leases"], &["get", "create", "update"]),
        ]),
        ..Default::default()
    };
    let binding = ClusterRoleBinding {
        metadata: metadata(),
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "ClusterRole".into(),
            name: USER.into(),
        },
        subjects: Some(vec![Subject {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "User".into(),
            name: USER.into(),
            ..Default::default()
        }]),
    };
    let made = [admin.api().create(&role).await.err(), admin.api().create(&binding).await.err()];
    match made.into_iter().flatten().find(|status| !status.is_already_exists()) {
        Some(status) => Err(status).context("rights of simulated nodes"),
        None => Ok(()),
    }
}
