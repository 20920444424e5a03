//! The machine goes down: pods are ended in order of priority, each step within its time, before this agent ends.
//!
//! The sign is that this process is told to end: where systemd runs the machine only while that is stopping, elsewhere
//! always. It is heeded only where the configuration gives pods time; an agent without one leaves them running.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::process::Command;
use tokio::time::Instant;

use crate::agent::Context;
use crate::config::Shutdown;
use crate::eviction::active;
use crate::metrics::families;
use crate::spec;

pub const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// How often it is looked whether a step's pods are over.
const LOOK: Duration = Duration::from_millis(100);
/// The service manager says what it is doing within this, or it is not asked again.
const ASK: Duration = Duration::from_secs(2);

/// The step each pod ends in: the one of the highest priority that is not above its own, the first for those below all.
fn groups(steps: &[Shutdown], pods: Vec<Arc<Pod>>) -> Vec<(Duration, Vec<Arc<Pod>>)> {
    let mut out: Vec<(Duration, Vec<Arc<Pod>>)> = steps.iter().map(|s| (s.grace, Vec::new())).collect();
    for pod in pods {
        let priority = spec::spec(&pod).priority.unwrap_or(0);
        let at = steps.iter().rposition(|s| s.priority <= priority).unwrap_or(0);
        if let Some((_, list)) = out.get_mut(at) {
            list.push(pod);
        }
    }
    out
}

/// Whether the end of this process is the end of the node.
async fn is_the_machine() -> bool {
    if !Path::new("/run/systemd/system").exists() {
        return true;
    }
    let asked = Command::new("systemctl").arg("is-system-running").kill_on_drop(true).output();
    match tokio::time::timeout(ASK, asked).await {
        Ok(Ok(output)) => output.stdout.trim_ascii() == b"stopping",
        _ => false,
    }
}

/// Ends the node's pods, if that is what has come.
pub async fn run(context: &Arc<Context>) {
    let steps = &context.config.shutdown;
    if steps.is_empty() || !is_the_machine().await {
        return;
    }
    context.shutting_down.store(true, Ordering::Relaxed);
    context.node_changed.notify_one();
    let now = || jiff::Timestamp::now().as_second() as f64;
    context.metrics.set(&families::SHUTDOWN_BEGAN, &[], now());
    context.events.normal(&context.events.about_node(), "NodeShutdown", "Shutdown manager detected shutdown event");
    for (grace, pods) in groups(steps, active(context)) {
        for pod in &pods {
            context.evictions.sentence(context, pod, REASON, MESSAGE.into(), grace);
        }
        let deadline = Instant::now() + grace;
        while pods.iter().any(|p| context.workers.works_on(spec::uid(p))) && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
    }
    context.metrics.set(&families::SHUTDOWN_ENDED, &[], now());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_goes_when() {
        let pod = |priority: i32| -> Arc<Pod> {
            Arc::new(serde_json::from_value(json!({"spec": {"priority": priority, "containers": []}})).unwrap())
        };
        let step = |priority, seconds| Shutdown { priority, grace: Duration::from_secs(seconds) };
        let steps = [step(0, 30), step(1000, 20), step(2_000_000_000, 10)];
        let got = groups(&steps, [-5, 0, 999, 1000, 2_000_000_000, 2_000_001_000].map(pod).into());
        let counts: Vec<(u64, usize)> = got.iter().map(|(g, l)| (g.as_secs(), l.len())).collect();
        assert_eq!(counts, [(30, 3), (20, 1), (10, 2)]);
    }
}
