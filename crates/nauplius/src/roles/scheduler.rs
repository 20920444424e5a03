//! The scheduler's role: its flags, its configuration file, and `explain`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use client::{Client, Informers, LeaderElection};
use scheduler::config::{self, Configuration};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{FeatureGates, SCHEDULER, connect, status};

/// Where it shows itself, unless told otherwise.
const PORT: u16 = 10259;
/// A configuration file is some kilobytes; anything larger is something else.
const MAX_FILE: u64 = 1 << 20;

#[derive(clap::Args, Clone)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct SchedulerOptions {
    /// Credentials and address of the API server [default: clientConnection.kubeconfig of the configuration file].
    #[arg(long, required_unless_present_any = ["config", "write_config_to"])]
    pub kubeconfig: Option<PathBuf>,
    /// A KubeSchedulerConfiguration (kubescheduler.config.k8s.io/v1), YAML or JSON.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Run only while holding the lease, so that several may stand by [default: true].
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub leader_elect: Option<bool>,
    #[command(flatten)]
    pub lease: LeaseFlags,
    /// The API server's address, whatever the kubeconfig says.
    #[arg(long)]
    pub master: Option<String>,
    /// Write the configuration with its defaults to this file, and end.
    #[arg(long)]
    pub write_config_to: Option<PathBuf>,
    /// How long a pod lies unschedulable before it is tried again whatever happened.
    #[arg(long, value_parser = super::duration, default_value = "5m0s")]
    pub pod_max_in_unschedulable_pods_duration: Duration,
    #[command(flatten)]
    pub port: status::Port,
    #[command(flatten)]
    pub gates: FeatureGates,
    #[arg(long, hide = true)]
    kube_api_content_type: Option<String>,
    #[command(subcommand)]
    pub action: Option<Action>,
}

/// The lease of the one that works: what is said here goes before the configuration file, and is checked as its fields are.
#[derive(clap::Args, Clone, Default)]
pub struct LeaseFlags {
    /// How long the lease holds without being renewed [default: 15s].
    #[arg(long)]
    leader_elect_lease_duration: Option<String>,
    #[arg(long)]
    leader_elect_renew_deadline: Option<String>,
    #[arg(long)]
    leader_elect_retry_period: Option<String>,
    #[arg(long)]
    leader_elect_resource_lock: Option<String>,
    #[arg(long)]
    leader_elect_resource_name: Option<String>,
    #[arg(long)]
    leader_elect_resource_namespace: Option<String>,
}

impl LeaseFlags {
    fn put_into(&self, file: &mut Value) {
        for (field, said) in [
            ("leaseDuration", &self.leader_elect_lease_duration),
            ("renewDeadline", &self.leader_elect_renew_deadline),
            ("retryPeriod", &self.leader_elect_retry_period),
            ("resourceLock", &self.leader_elect_resource_lock),
            ("resourceName", &self.leader_elect_resource_name),
            ("resourceNamespace", &self.leader_elect_resource_namespace),
        ] {
            // Of another form it is refused when it is read.
            if let (Some(said), true) = (said, file["leaderElection"].is_object() || file["leaderElection"].is_null()) {
                file["leaderElection"][field] = said.as_str().into();
            }
        }
    }
}

#[derive(clap::Subcommand, Clone)]
pub enum Action {
    /// Say where a pod could go and why not elsewhere, plugin by plugin. Changes nothing.
    Explain {
        /// The pod's name.
        pod: String,
        #[arg(long, short, default_value = "default")]
        namespace: String,
        #[arg(long, env = "KUBECONFIG")]
        kubeconfig: PathBuf,
        /// The scheduler's configuration file, if it has one.
        #[arg(long)]
        config: Option<PathBuf>,
    },
}

/// Reads a configuration file, under what flags say; without one, the defaults.
fn configuration(file: Option<&Path>, lease: &LeaseFlags, gates: &FeatureGates) -> Result<Configuration> {
    let gates = config::Gates {
        groups: gates.groups()?,
        topology: gates.topology()?,
        capacity_scoring: gates.scores_capacity()?,
    };
    let Some(file) = file else {
        let mut raw = config::nothing_said();
        lease.put_into(&mut raw);
        return Ok(config::read(&raw, gates)?);
    };
    let name = || format!("scheduler configuration {}", file.display());
    if std::fs::metadata(file).with_context(name)?.len() > MAX_FILE {
        bail!("{} is larger than {MAX_FILE} bytes", name());
    }
    let text = std::fs::read(file).with_context(name)?;
    let (mut raw, issues) = meta::yaml::read(&text).map_err(anyhow::Error::msg).with_context(name)?;
    if raw.is_object() {
        lease.put_into(&mut raw);
    }
    let configuration = config::read(&raw, gates).with_context(name)?;
    match issues.strict_error() {
        None => Ok(configuration),
        Some(wrong) => Err(anyhow::Error::msg(wrong)).with_context(name),
    }
}

/// The role, alone.
pub async fn scheduler(options: SchedulerOptions, cancel: CancellationToken) -> Result<()> {
    if let Some(Action::Explain { pod, namespace, kubeconfig, config }) = &options.action {
        let client = connect(kubeconfig, SCHEDULER).await?;
        let told = scheduler::explain::explain(
            &client,
            &configuration(config.as_deref(), &options.lease, &options.gates)?,
            namespace,
            pod,
        )
        .await?;
        print!("{told}");
        return Ok(());
    }
    let mut configuration = configuration(options.config.as_deref(), &options.lease, &options.gates)?;
    if let Some(elect) = options.leader_elect {
        configuration.document["leaderElection"]["leaderElect"] = elect.into();
    }
    if let (None, Some(kubeconfig)) = (&options.config, &options.kubeconfig) {
        configuration.document["clientConnection"]["kubeconfig"] = kubeconfig.to_string_lossy().into();
    }
    if let Some(file) = &options.write_config_to {
        let text = serde_json::to_vec_pretty(&config::written(&configuration.document))?;
        return std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()));
    }
    let kubeconfig = options.kubeconfig.clone().or_else(|| configuration.kubeconfig.clone().map(Into::into));
    let Some(kubeconfig) = kubeconfig else {
        bail!("no kubeconfig: give --kubeconfig, or clientConnection.kubeconfig in the configuration file");
    };
    let client = super::connect_to(&kubeconfig, options.master.as_deref(), SCHEDULER).await?;
    let elect = options.leader_elect.unwrap_or(configuration.leader_election.elect);
    let informers = Informers::new(client.clone());
    let unschedulable_for = options.pod_max_in_unschedulable_pods_duration;
    let settings = scheduler::Options { unschedulable_for, ..settings(&configuration, &options.gates)? };
    let about = status::About {
        component: SCHEDULER,
        configuration: ("componentconfig", configuration.document.clone()),
        parts: Vec::new,
        client: client.clone(),
        began: std::time::Instant::now(),
        gates: options.gates.read()?,
        checks: checks(&configuration, elect, &settings, &cancel),
        pages: vec![resources(&configuration, elect, &informers, &settings)],
    };
    options.port.serve(PORT, about, &cancel).await?;
    run_configured(client, elect, &configuration, informers, settings, cancel).await
}

fn settings(configuration: &Configuration, gates: &FeatureGates) -> Result<scheduler::Options> {
    let from = scheduler::Options::from(configuration);
    Ok(scheduler::Options { groups: gates.groups()?, topology: gates.topology()?, ..from })
}

/// Health, as upstream's scheduler has it: whoever stands by is ready too, having seen the cluster.
fn checks(
    configuration: &Configuration,
    elect: bool,
    settings: &scheduler::Options,
    cancel: &CancellationToken,
) -> Vec<status::Check> {
    let lease = configuration.leader_election.name.clone();
    let leadership = elect.then(|| status::Check::leadership(lease, &["healthz", "readyz"]));
    let synced = settings.synced.clone();
    let sync = move || (!synced.load(Ordering::Acquire)).then(|| "handlers are not fully synchronized".into());
    let own = [
        status::Check::staying(cancel.clone()),
        status::Check { name: "sched-handler-sync", askers: &["readyz"], fault: Box::new(sync) },
    ];
    leadership.into_iter().chain(own).collect()
}

/// What pods ask for; only who leads tells, or it would be told twice.
fn resources(
    configuration: &Configuration,
    elect: bool,
    informers: &Arc<Informers>,
    settings: &scheduler::Options,
) -> status::Page {
    let (lease, informers, synced) =
        (configuration.leader_election.name.clone(), informers.clone(), settings.synced.clone());
    let tells = move || synced.load(Ordering::Acquire) && (!elect || client::election::leads(&lease));
    let text = move || if tells() { scheduler::resource_figures(&informers) } else { String::new() };
    status::Page { path: "/metrics/resources", text: Box::new(text) }
}

/// The role beside others, by the defaults.
pub async fn run_scheduler(client: Client, elect: bool, gates: FeatureGates, cancel: CancellationToken) -> Result<()> {
    let configuration = configuration(None, &LeaseFlags::default(), &gates)?;
    let (informers, settings) = (Informers::new(client.clone()), settings(&configuration, &gates)?);
    run_configured(client, elect, &configuration, informers, settings, cancel).await
}

async fn run_configured(
    client: Client,
    elect: bool,
    configuration: &Configuration,
    informers: Arc<Informers>,
    settings: scheduler::Options,
    cancel: CancellationToken,
) -> Result<()> {
    let run = |cancel: CancellationToken| scheduler::run(client.clone(), informers.clone(), settings.clone(), cancel);
    if !elect {
        return run(cancel).await.map_err(Into::into);
    }
    let warm = scheduler::warm(&client, &informers, &settings);
    if !configuration.delay_cache && cancel.run_until_cancelled(warm).await.is_none() {
        return Ok(());
    }
    let lease = &configuration.leader_election;
    let election = LeaderElection {
        lease_duration: lease.lease_duration,
        renew_deadline: lease.renew_deadline,
        retry_period: lease.retry_period,
        ..LeaderElection::new(client.clone(), &lease.namespace, &lease.name, &super::identity())
    };
    match election.run(cancel, run).await {
        Some(Err(error)) => Err(error.into()),
        Some(Ok(())) | None => Ok(()),
    }
}
