//! `nauplius store`: care of a cluster's embedded store, whether its API server runs or not.
//!
//! While a process has the store open, `status`, `snapshot` and `defrag` are asked of it through the store's door; otherwise
//! they open the files themselves, under the store's lock. `check` and `restore` need a store that nobody has open. Only
//! `defrag` and `restore` change anything. Knows nothing of what the store holds.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use store::door::{self, Ask};
use store::embedded::Options;
use store::{Backend, StoreError, maintain};
use tokio_util::sync::CancellationToken;

/// How long a store that is locked may have no door, before it counts as in the way: opening a large one takes seconds.
const CHANGING_HANDS: Duration = Duration::from_secs(5);

/// Wait before asking again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

#[derive(Args)]
pub struct Care {
    /// The cluster's data directory.
    #[arg(long, global = true)]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show revisions and sizes. Works beside a running cluster.
    Status,
    /// Read and check every byte; the cluster must be stopped. Changes nothing.
    Check,
    /// Save the newest state to a file. Works beside a running cluster.
    Snapshot { file: PathBuf },
    /// Make a store from a saved file, where there is none; the cluster must be stopped.
    Restore {
        file: PathBuf,
        /// How far the new store stands above the saved revision: more than was written since, so that no client meets a
        /// revision it knows with another meaning.
        #[arg(long, default_value_t = 1_000_000_000)]
        bump_revision: u64,
    },
    /// Give back the disk space of what is no longer needed. Works beside a running cluster.
    Defrag {
        /// Give up the history first, so that its space can go too; only of a stopped cluster.
        #[arg(long)]
        compact: bool,
    },
    /// What a store is to others.
    #[command(flatten)]
    Among(crate::roles::store::Action),
}

pub async fn run(care: Care, cancel: CancellationToken) -> Result<()> {
    let dir = care.data_dir.unwrap_or_else(crate::up::default_data_dir).join("store");
    if let Action::Among(action) = care.action {
        return crate::roles::store::run(action, dir, cancel).await;
    }
    // Reading a large store takes its time: not on the threads that answer signals.
    let text = tokio::task::spawn_blocking(move || act(&dir, care.action)).await??;
    print!("{text}");
    Ok(())
}

fn act(dir: &Path, action: Action) -> Result<String> {
    let options = Options::default();
    Ok(match action {
        Action::Status => asked_or(dir, &Ask::Status, || Ok(maintain::check(dir, &options)?.status.to_string()))?,
        Action::Check => {
            let report = maintain::check(dir, &options).map_err(explain)?;
            let torn =
                if report.torn { "an unacknowledged write was cut off by a crash; opening removes it" } else { "no" };
            let snapshot = report.snapshot.map_or("none".to_owned(), |revision| revision.to_string());
            format!(
                "{}snapshot: {snapshot}\nsegments: {}\ndisk bytes: {}\ntorn end: {torn}\nevery byte is good\n",
                report.status, report.segments, report.disk_bytes
            )
        }
        Action::Snapshot { file } => {
            let file = std::path::absolute(&file)?;
            asked_or(dir, &Ask::Save(file.clone()), || {
                let (revision, bytes) = maintain::save(dir, &options, &file)?;
                Ok(format!("revision: {revision}\nbytes: {bytes}\n"))
            })?
        }
        Action::Restore { file, bump_revision } => {
            let revision = maintain::restore(&file, dir, &options, bump_revision)
                .with_context(|| format!("restoring {} to {}", file.display(), dir.display()))?;
            format!("revision: {revision}\n")
        }
        // Done before: they go on until they are interrupted.
        Action::Among(_) => String::new(),
        Action::Defrag { compact } => {
            if compact && door::ask(dir, &Ask::Status)?.is_some() {
                bail!("the cluster is running: its clients read the history; stop it, or defrag without --compact");
            }
            asked_or(dir, &Ask::Defragment, || offline_defrag(dir, options.clone(), compact))?
        }
    })
}

fn offline_defrag(dir: &Path, options: Options, compact: bool) -> Result<String, StoreError> {
    // A directory without a store must not become one.
    maintain::check(dir, &options)?;
    let store = store::embedded::open(dir, options)?;
    let freed = tokio::runtime::Handle::current().block_on(async {
        if compact {
            store.compact(store.current_revision().await?).await?;
        }
        store.defragment().await
    })?;
    store.close();
    Ok(format!("freed bytes: {freed}\n"))
}

/// The answer of whoever has the store open, or what `alone` finds when nobody has. A process that starts has the lock
/// before it opens its door, and one that ends the other way round: both are waited for.
fn asked_or(dir: &Path, ask: &Ask, alone: impl Fn() -> Result<String, StoreError>) -> Result<String> {
    let began = Instant::now();
    loop {
        if let Some(answer) = door::ask(dir, ask)? {
            return Ok(answer);
        }
        match alone() {
            Err(StoreError::Unavailable(_)) if began.elapsed() < CHANGING_HANDS => std::thread::sleep(ASK_AGAIN),
            done => return Ok(done?),
        }
    }
}

fn explain(error: StoreError) -> anyhow::Error {
    let hint = match &error {
        StoreError::Unavailable(_) => "stop the cluster first; `store status` works beside it",
        StoreError::Corrupt(_) => "nothing was changed; docs/store.md says how to recover what is readable",
        _ => return error.into(),
    };
    anyhow::Error::from(error).context(hint)
}
