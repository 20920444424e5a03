//! Stopping containers: preStop hook, grace, order.

use std::collections::HashMap;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::hooks;
use super::observed::{Container, Observed};
use crate::agent::Context;
use crate::cri::v1;
use crate::metrics::families;
use crate::spec::{self, Kind};

/// However late it is, a container gets this long to react to its signal; as upstream.
const LEAST_GRACE: Duration = Duration::from_secs(2);
/// `terminationGracePeriodSeconds` of a pod that does not say.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// How long the pod may take to end.
pub fn grace(pod: &Pod) -> Duration {
    let asked = pod.metadata.deletion_grace_period_seconds.filter(|_| pod.metadata.deletion_timestamp.is_some());
    let seconds = asked.or(spec::spec(pod).termination_grace_period_seconds);
    // Zero would mean not even to ask.
    seconds.map_or(DEFAULT_GRACE, |s| Duration::from_secs(s.max(1) as u64))
}

/// Stops one container by a deadline: its preStop hook runs first, on the same clock, then it waits for its turn.
/// Failures are logged: whoever asked looks again.
pub async fn container(
    context: &Context,
    pod: &Pod,
    container: &Container,
    ips: &[String],
    deadline: Instant,
    message: &str,
    turn: impl Future<Output = ()>,
) {
    let Some((kind, spec)) = spec::find_container(pod, &container.name) else {
        return stop(context, &container.id, LEAST_GRACE).await;
    };
    let about = context.events.about_container(pod, kind, &container.name);
    context.events.normal(&about, "Killing", message);
    if let Some(hook) = spec.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref())
        && deadline > Instant::now()
    {
        match tokio::time::timeout_at(deadline, hooks::run(context, hook, &spec, &container.id, ips)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => context.events.warning(&about, "FailedPreStopHook", "PreStopHook failed"),
            Err(_) => {
                if hook.sleep.is_some() {
                    context.metrics.count(&families::HOOKS_ASLEEP, &[]);
                }
                tracing::info!(container = %container.name, pod = %spec::described(pod), "preStop hook outlasted the grace period")
            }
        }
    }
    // Whoever takes longer than the pod has does not keep the others from being asked.
    let _ = tokio::time::timeout_at(deadline, turn).await;
    let left = deadline.saturating_duration_since(Instant::now());
    // CRI counts whole seconds: a fraction must not shorten what was promised.
    let left = Duration::from_secs(left.as_secs() + u64::from(left.subsec_millis() >= 500));
    stop(context, &container.id, left.max(LEAST_GRACE)).await;
}

async fn stop(context: &Context, id: &str, grace: Duration) {
    match context.engine.stop_container(id, grace).await {
        Ok(()) => {}
        Err(status) if status.code() == tonic::Code::NotFound => {}
        Err(status) => tracing::warn!(container = id, "container not stopped: {status}"),
    }
}

/// The containers a container outlives: a sidecar all main ones, and whatever started after it.
fn outlives<'a>(pod: &'a Pod, name: &str) -> Vec<&'a str> {
    let inits: Vec<_> = spec::init_containers(pod).collect();
    let Some(at) = inits.iter().position(|(kind, c)| *kind == Kind::Sidecar && c.name == name) else {
        return Vec::new();
    };
    let later = inits[at + 1..].iter().map(|(_, c)| *c);
    later.chain(&spec::spec(pod).containers).map(|c| c.name.as_str()).collect()
}

/// Stops a whole pod: all preStop hooks at once, then main containers, then sidecars in reverse order, then the
/// sandboxes.
pub async fn pod(context: &Context, pod: &Pod, seen: &Observed, deadline: Instant) {
    let ips = seen.ready_sandbox().map(|s| s.ips.clone()).unwrap_or_default();
    let gone: HashMap<&str, CancellationToken> =
        seen.running().map(|c| (c.name.as_str(), CancellationToken::new())).collect();
    join_all(seen.running().map(|c| {
        let (ips, gone) = (&ips, &gone);
        async move {
            let turn = async {
                for name in outlives(pod, &c.name) {
                    if let Some(gone) = gone.get(name) {
                        gone.cancelled().await;
                    }
                }
            };
            container(context, pod, c, ips, deadline, &format!("Stopping container {}", c.name), turn).await;
            if let Some(gone) = gone.get(c.name.as_str()) {
                gone.cancel();
            }
        }
    }))
    .await;
    let sandboxes = seen.sandboxes.iter().filter(|s| s.ready).map(|s| async {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: s.id.clone() };
        if let Err(status) = context.engine.stop_pod_sandbox(request).await
            && status.code() != tonic::Code::NotFound
        {
            tracing::warn!(sandbox = %s.id, "sandbox not stopped: {status}");
        }
    });
    join_all(sandboxes).await;
}

/// Removes everything the engine has of a pod.
pub async fn remove(context: &Context, seen: &Observed) -> Result<(), tonic::Status> {
    let gone = |r: Result<(), tonic::Status>| match r {
        Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
        other => other,
    };
    for container in &seen.containers {
        gone(
            context
                .engine
                .remove_container(v1::RemoveContainerRequest { container_id: container.id.clone() })
                .await
                .map(drop),
        )?;
    }
    for sandbox in &seen.sandboxes {
        gone(
            context
                .engine
                .stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() })
                .await
                .map(drop),
        )?;
        gone(
            context
                .engine
                .remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() })
                .await
                .map(drop),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sidecars_outlive_whom_they_serve() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}, {"name": "t", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}, {"name": "b"}]}}))
        .unwrap();
        for (name, expect) in [("s", vec!["t", "a", "b"]), ("t", vec!["a", "b"]), ("a", vec![]), ("i", vec![])] {
            assert_eq!(outlives(&pod, name), expect, "{name}");
        }
    }
}
