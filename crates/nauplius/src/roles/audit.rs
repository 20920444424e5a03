//! `--audit-*`: the audit log's policy, file and webhook, as upstream's flags say them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use apiserver::audit::policy::Policy;
use apiserver::audit::sink::Overflow;
use apiserver::audit::{Audit, log, webhook};

use super::seconds;

/// Bytes of a truncated event, as upstream.
const MAX_EVENT: usize = 100 << 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Answers wait for their events to be taken.
    #[default]
    Blocking,
    /// Answers wait for nothing; events that find no room are dropped and counted.
    Batch,
}

/// Who is told of requests.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct AuditOptions {
    /// An audit.k8s.io/v1 Policy: what is told of which requests.
    #[arg(long)]
    pub audit_policy_file: Option<PathBuf>,
    /// The file events are written to; `-` is standard output.
    #[arg(long)]
    pub audit_log_path: Option<PathBuf>,
    /// Days to keep old files; 0 is for ever.
    #[arg(long, default_value_t = 0)]
    pub audit_log_maxage: u64,
    /// How many old files to keep; 0 is all.
    #[arg(long, default_value_t = 0)]
    pub audit_log_maxbackup: usize,
    /// Megabytes of a file before it is put aside; 0 is 100.
    #[arg(long, default_value_t = 0)]
    pub audit_log_maxsize: u64,
    /// Compress old files.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    pub audit_log_compress: bool,
    /// How events are written.
    #[arg(long, default_value = "json", value_parser = ["json", "legacy"])]
    pub audit_log_format: String,
    /// Whether an event that is too large for the log loses its objects.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    pub audit_log_truncate_enabled: bool,
    /// Bytes of an event in the log, where it is truncated.
    #[arg(long, default_value_t = MAX_EVENT)]
    pub audit_log_truncate_max_event_size: usize,
    /// What a request does when the log is slower than it.
    #[arg(long, value_enum, default_value_t)]
    pub audit_log_mode: Mode,
    /// A kubeconfig of the server that events are sent to.
    #[arg(long)]
    pub audit_webhook_config_file: Option<PathBuf>,
    /// Events sent at a time.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub audit_webhook_batch_max_size: u32,
    /// How long an event waits for others to be sent with.
    #[arg(long, value_parser = seconds, default_value = "30s")]
    pub audit_webhook_batch_max_wait: Duration,
    /// The wait before events are sent again.
    #[arg(long, value_parser = seconds, default_value = "10s")]
    pub audit_webhook_initial_backoff: Duration,
    /// Whether an event that is too large for the webhook loses its objects.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    pub audit_webhook_truncate_enabled: bool,
    /// Bytes of an event for the webhook, where it is truncated.
    #[arg(long, default_value_t = MAX_EVENT)]
    pub audit_webhook_truncate_max_event_size: usize,
}

impl AuditOptions {
    /// The policy and its sinks, opened; nothing where either is missing.
    pub async fn open(&self) -> Result<Option<Arc<Audit>>> {
        let Some(file) = &self.audit_policy_file else {
            if self.audit_log_path.is_some() || self.audit_webhook_config_file.is_some() {
                tracing::warn!("No audit policy file provided, no events will be recorded");
            }
            return Ok(None);
        };
        let shown = file.display();
        let bytes = std::fs::read(file)
            .with_context(|| format!("loading audit policy file: failed to read file path {shown}"))?;
        let policy = Policy::parse(&bytes).map_err(|e| anyhow!("loading audit policy file: {e}: from file {shown}"))?;
        let mut sinks = Vec::new();
        if let Some(path) = &self.audit_log_path {
            let options = log::Options {
                path: path.clone(),
                max_age_days: self.audit_log_maxage,
                max_backups: self.audit_log_maxbackup,
                max_megabytes: self.audit_log_maxsize,
                compress: self.audit_log_compress,
                legacy: self.audit_log_format == "legacy",
            };
            let overflow = if self.audit_log_mode == Mode::Batch { Overflow::Drop } else { Overflow::Block };
            let opened = log::open(options, overflow).map_err(|e| anyhow!(e))?;
            let max = self.audit_log_truncate_enabled.then_some(self.audit_log_truncate_max_event_size);
            sinks.push(opened.truncating(max));
        }
        if let Some(kubeconfig) = &self.audit_webhook_config_file {
            let options = webhook::Options {
                max_batch: self.audit_webhook_batch_max_size as usize,
                max_wait: self.audit_webhook_batch_max_wait,
                initial_backoff: self.audit_webhook_initial_backoff,
            };
            let opened = webhook::open(kubeconfig, options).await;
            let opened = opened.map_err(|e| anyhow!("initializing audit webhook: {e}"))?;
            let max = self.audit_webhook_truncate_enabled.then_some(self.audit_webhook_truncate_max_event_size);
            sinks.push(opened.truncating(max));
        }
        if sinks.is_empty() {
            return Ok(None);
        }
        Ok(Some(Audit::new(policy, sinks)))
    }

    /// Those that were given, by upstream's names.
    pub fn flags(&self) -> Vec<(&'static str, OsString)> {
        let path = |path: &Option<PathBuf>| path.clone().map(PathBuf::into_os_string);
        let number = |number: u64| (number > 0).then(|| number.to_string().into());
        let time = |time: Duration| Some(format!("{}s", time.as_secs()).into());
        let webhook = self.audit_webhook_config_file.is_some();
        let mode = (self.audit_log_mode == Mode::Batch).then(|| "batch".into());
        [
            ("audit-policy-file", path(&self.audit_policy_file)),
            ("audit-log-path", path(&self.audit_log_path)),
            ("audit-log-maxage", number(self.audit_log_maxage)),
            ("audit-log-maxbackup", number(self.audit_log_maxbackup as u64)),
            ("audit-log-maxsize", number(self.audit_log_maxsize)),
            ("audit-log-compress", self.audit_log_compress.then(|| "true".into())),
            ("audit-log-mode", mode),
            ("audit-log-format", (self.audit_log_format == "legacy").then(|| "legacy".into())),
            ("audit-log-truncate-enabled", self.audit_log_truncate_enabled.then(|| "true".into())),
            (
                "audit-log-truncate-max-event-size",
                self.audit_log_truncate_enabled.then(|| self.audit_log_truncate_max_event_size.to_string().into()),
            ),
            ("audit-webhook-truncate-enabled", self.audit_webhook_truncate_enabled.then(|| "true".into())),
            (
                "audit-webhook-truncate-max-event-size",
                self.audit_webhook_truncate_enabled
                    .then(|| self.audit_webhook_truncate_max_event_size.to_string().into()),
            ),
            ("audit-webhook-config-file", path(&self.audit_webhook_config_file)),
            ("audit-webhook-batch-max-size", webhook.then(|| self.audit_webhook_batch_max_size.to_string().into())),
            ("audit-webhook-batch-max-wait", time(self.audit_webhook_batch_max_wait).filter(|_| webhook)),
            ("audit-webhook-initial-backoff", time(self.audit_webhook_initial_backoff).filter(|_| webhook)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}
