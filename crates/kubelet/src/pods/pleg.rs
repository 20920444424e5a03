//! The engine's events: each wakes the worker of the pod it is about. Where the engine has no event stream, its lists
//! are compared once a second instead.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::orphans;
use crate::agent::Context;
use crate::cri::v1;
use crate::metrics::families;
use crate::spec::names;

/// How often lists are compared without an event stream; as upstream.
const RELIST: Duration = Duration::from_secs(1);
/// With one, how often everybody looks anyway, should an event be lost.
const SAFETY_NET: Duration = Duration::from_secs(300);
const RECONNECT: Duration = Duration::from_millis(200);

/// Follows the engine until the agent stops.
pub async fn follow(context: Arc<Context>) {
    context.pods_seen.cancelled().await;
    loop {
        match context.engine.container_events().await {
            Ok(stream) => {
                context.metrics.count(&families::EVENTED_OPENED, &[]);
                // What happened before the stream began.
                context.workers.wake_all();
                let began = Instant::now();
                orphans::sweep(&context).await;
                context.metrics.since(&families::PLEG_RELIST, &[], began);
                if !listen(&context, stream).await {
                    return relist(&context).await;
                }
            }
            Err(status) if status.code() == tonic::Code::Unimplemented => return relist(&context).await,
            Err(status) => tracing::debug!("no event stream: {status}"),
        }
        context.metrics.count(&families::EVENTED_FAILED, &[]);
        tokio::time::sleep(RECONNECT).await;
    }
}

fn wake(context: &Arc<Context>, uid: &str) {
    if !uid.is_empty() && !context.workers.wake(uid) {
        orphans::meet(context, uid);
    }
}

/// Passes events on; false when the engine turns out to have none.
async fn listen(context: &Arc<Context>, mut stream: tonic::Streaming<v1::ContainerEventResponse>) -> bool {
    loop {
        match tokio::time::timeout(SAFETY_NET, stream.message()).await {
            Ok(Ok(Some(event))) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
                context.metrics.observe(
                    &families::EVENTED_LATENCY,
                    &[],
                    (now - event.created_at as f64 / 1e9).max(0.0),
                );
                context.metrics.set(&families::PLEG_SEEN, &[], now.floor());
                let metadata = event.pod_sandbox_status.as_ref().and_then(|s| s.metadata.as_ref());
                let uid = metadata.map(|m| m.uid.as_str()).filter(|u| !u.is_empty());
                let label =
                    event.containers_statuses.first().and_then(|c| c.labels.get(names::POD_UID)).map(String::as_str);
                match uid.or(label) {
                    Some(uid) => wake(context, uid),
                    // An event that names no pod: everybody looks.
                    None => context.workers.wake_all(),
                }
            }
            Ok(Ok(None)) => return true,
            Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => return false,
            Ok(Err(status)) => {
                tracing::debug!("event stream ended: {status}");
                return true;
            }
            Err(_) => context.workers.wake_all(),
        }
    }
}

/// Compares lists, for engines without events.
async fn relist(context: &Arc<Context>) {
    let mut last: HashMap<String, (String, i32)> = HashMap::new();
    let mut looked = None;
    let mut ticks = tokio::time::interval(RELIST);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let began = Instant::now();
        if let Some(before) = looked.replace(began) {
            let between = began.duration_since(before).as_secs_f64();
            context.metrics.observe(&families::PLEG_INTERVAL, &[], between);
        }
        let Ok((sandboxes, containers)) = context.engine.list(HashMap::new()).await else { continue };
        context.metrics.since(&families::PLEG_RELIST, &[], began);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        context.metrics.set(&families::PLEG_SEEN, &[], now.as_secs() as f64);
        let uid = |labels: &HashMap<String, String>| labels.get(names::POD_UID).cloned().unwrap_or_default();
        let mut now: HashMap<String, (String, i32)> =
            sandboxes.iter().map(|s| (s.id.clone(), (uid(&s.labels), s.state))).collect();
        now.extend(containers.iter().map(|c| (c.id.clone(), (uid(&c.labels), c.state))));
        let changed = now.iter().filter(|(id, seen)| last.get(*id) != Some(seen)).map(|(_, (uid, _))| uid.clone());
        let gone = last.iter().filter(|(id, _)| !now.contains_key(*id)).map(|(_, (uid, _))| uid.clone());
        let uids: HashSet<String> = changed.chain(gone).collect();
        uids.iter().for_each(|uid| wake(context, uid));
        last = now;
    }
}
