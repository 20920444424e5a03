//! Log rotation: a running container's log that has grown too large is set aside, and the engine told to open it anew.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use jiff::Timestamp;

use crate::agent::Context;
use crate::cri::v1;

/// Runs until the agent stops.
pub async fn run(context: Arc<Context>) {
    let wishes = &context.config.container_logs;
    loop {
        tokio::time::sleep(wishes.every).await;
        let one = |(path, id): (PathBuf, String)| {
            let context = &context;
            async move {
                if let Err(error) = rotate(context, &path, &id).await {
                    tracing::warn!(log = %path.display(), "log not rotated: {error:#}");
                }
            }
        };
        futures::stream::iter(large(&context).await).for_each_concurrent(wishes.workers, one).await;
    }
}

/// Logs beyond the size, with the containers that write them.
async fn large(context: &Context) -> Vec<(PathBuf, String)> {
    let (dir, max) = (context.config.log_dir.join("containers"), context.config.container_logs.max_size);
    let found: Vec<(PathBuf, String)> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let log = fs::read_link(entry.path()).ok()?;
            let large = fs::metadata(&log).ok()?.len() > max;
            let name = entry.file_name().to_string_lossy().into_owned();
            let id = name.strip_suffix(".log")?.rsplit_once('-')?.1.to_string();
            large.then_some((log, id))
        })
        .collect();
    if found.is_empty() {
        return found;
    }
    let state = v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning as i32 };
    let filter = v1::ContainerFilter { state: Some(state), ..Default::default() };
    let running = context.engine.list_containers(v1::ListContainersRequest { filter: Some(filter) }).await;
    let running: HashMap<String, ()> =
        running.map(|r| r.containers.into_iter().map(|c| (c.id, ())).collect()).unwrap_or_default();
    found.into_iter().filter(|(_, id)| running.contains_key(id)).collect()
}

/// Rotated files of a log, oldest first.
pub fn rotated(log: &Path) -> Vec<PathBuf> {
    let name = log.file_name().map(|n| format!("{}.", n.to_string_lossy())).unwrap_or_default();
    let mut out: Vec<PathBuf> = log
        .parent()
        .and_then(|d| fs::read_dir(d).ok())
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&name)))
        .collect();
    out.sort();
    out
}

async fn rotate(context: &Context, log: &Path, id: &str) -> anyhow::Result<()> {
    let old = rotated(log);
    // The current file counts, and the one about to be set aside.
    let keep = context.config.container_logs.max_files.saturating_sub(2);
    for path in old.iter().take(old.len().saturating_sub(keep)) {
        fs::remove_file(path)?;
    }
    let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let aside = PathBuf::from(format!("{}.{stamp}", log.display()));
    fs::rename(log, &aside)?;
    if let Err(status) =
        context.engine.reopen_container_log(v1::ReopenContainerLogRequest { container_id: id.into() }).await
    {
        // The engine still writes to the old file: give it its name back.
        fs::rename(&aside, log)?;
        return Err(status.into());
    }
    Ok(())
}
