//! What is left of pods nobody here runs: sandboxes and containers in the engine, directories and cgroups on the node.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::look::Known;
use super::stop;
use crate::agent::Context;
use crate::metrics::families;
use crate::spec::names;
use crate::{cgroups, volumes};

/// How long a stranger is let be: its pod may be about to arrive, or its worker about to be done.
const PATIENCE: Duration = Duration::from_secs(5);
/// Asking a stranger's containers to end; nothing is known of the grace their pod wanted but what upstream assumes.
const GRACE: Duration = Duration::from_secs(30);

/// Between attempts to give back volumes whose driver does not answer.
const DRIVER_RETRY: Duration = Duration::from_secs(10);

/// Meets a pod the API does not know: it is ended if it still is a stranger a little later.
pub fn meet(context: &Arc<Context>, uid: &str) {
    if !context.strangers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(uid.to_string()) {
        return;
    }
    let (context, uid) = (context.clone(), uid.to_string());
    tokio::spawn(async move {
        tokio::time::sleep(PATIENCE).await;
        if !context.workers.knows(&uid) {
            end(&context, &uid).await;
        }
        context.strangers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&uid);
    });
}

async fn end(context: &Arc<Context>, uid: &str) {
    let mut known = Known::default();
    let removal = async {
        let seen = known.look(&context.engine, uid).await?;
        if seen.containers.is_empty() && seen.sandboxes.is_empty() {
            return Ok(());
        }
        tracing::info!(uid, "ending a pod that the API does not know");
        context.metrics.count(&families::ORPHANED_PODS, &[]);
        let stops = seen.running().map(|c| context.engine.stop_container(&c.id, GRACE));
        futures::future::join_all(stops).await;
        let seen = known.look(&context.engine, uid).await?;
        stop::remove(context, &seen).await
    };
    if let Err(status) = removal.await {
        // Its next event, or the next start, tries again.
        tracing::warn!(uid, "orphaned pod not removed: {status}");
        return;
    }
    // Drivers register a little after the agent starts, and some may be gone for longer.
    while let Err(why) = volumes::give_back(context, uid).await {
        tracing::warn!(uid, "orphaned pod's volumes not given back: {why}");
        tokio::time::sleep(DRIVER_RETRY).await;
        if context.workers.knows(uid) {
            return;
        }
    }
    let (config, uid, metrics) = (context.config.clone(), uid.to_string(), context.metrics.clone());
    let cleaned = tokio::task::spawn_blocking(move || {
        cgroups::remove_uid(&config, &uid, &metrics)?;
        volumes::remove(&config.pod_dir(&uid)).map_err(anyhow::Error::from)
    });
    context.metrics.add(&families::ORPHANED_VOLUMES, &[], 1.0);
    if let Ok(Err(error)) = cleaned.await {
        context.metrics.add(&families::ORPHANED_VOLUMES_ERRORS, &[], 1.0);
        tracing::warn!("orphaned pod's directory not removed: {error:#}");
    }
}

/// Looks for strangers everywhere; at start, and when the engine came back.
pub async fn sweep(context: &Arc<Context>) {
    let Ok((sandboxes, containers)) = context.engine.list(HashMap::new()).await else { return };
    let labels = sandboxes.iter().map(|s| &s.labels).chain(containers.iter().map(|c| &c.labels));
    let mut uids: HashSet<String> = labels.filter_map(|l| l.get(names::POD_UID).cloned()).collect();
    let dirs = std::fs::read_dir(context.config.root_dir.join("pods"));
    uids.extend(dirs.into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned()));
    uids.retain(|uid| !context.workers.knows(uid));
    context.metrics.set(&families::ORPHANED_VOLUMES, &[], 0.0);
    context.metrics.set(&families::ORPHANED_VOLUMES_ERRORS, &[], 0.0);
    uids.iter().for_each(|uid| meet(context, uid));
}
