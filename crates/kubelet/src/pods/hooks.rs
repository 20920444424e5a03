//! Lifecycle hooks: postStart and preStop.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::agent::Context;
use crate::probes::ask::{self, Target};

/// An HTTP hook that does not answer is given up after this; commands are bounded by the grace period instead.
const HTTP_TIMEOUT: Duration = Duration::from_secs(60);
/// A command without another bound; the engine takes no "for ever" with a deadline.
const EXEC_TIMEOUT: Duration = Duration::from_secs(3600);

/// Runs a hook to its end; the error says what went wrong.
pub async fn run(
    context: &Context,
    handler: &LifecycleHandler,
    container: &Container,
    id: &str,
    ips: &[String],
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = command.join(" ");
        return match context.engine.exec_sync(id, command, EXEC_TIMEOUT).await {
            Ok(done) if done.exit_code == 0 => Ok(()),
            Ok(done) => Err(format!(
                "Exec lifecycle hook ([{shown}]) for Container {:?} failed - error: command '{shown}' exited with {}: {}",
                container.name,
                done.exit_code,
                String::from_utf8_lossy(&done.stderr)
            )),
            Err(status) => Err(format!(
                "Exec lifecycle hook ([{shown}]) for Container {:?} failed - error: {}",
                container.name,
                status.message()
            )),
        };
    }
    if let Some(get) = &handler.http_get {
        let target = Target { context, container, id, ips };
        let asked = tokio::time::timeout(HTTP_TIMEOUT, ask::http(&target, get, "kube-lifecycle/1.37")).await;
        return match asked {
            Ok(Ok((status, _))) if status < 400 => Ok(()),
            Ok(Ok((status, _))) => Err(format!(
                "HTTP lifecycle hook ({}) for Container {:?} failed with status {status}",
                get.path.as_deref().unwrap_or("/"),
                container.name
            )),
            Ok(Err(error)) => Err(format!(
                "HTTP lifecycle hook ({}) for Container {:?} failed - error: {error}",
                get.path.as_deref().unwrap_or("/"),
                container.name
            )),
            Err(_) => Err(format!("HTTP lifecycle hook for Container {:?} timed out", container.name)),
        };
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
        return Ok(());
    }
    // The deprecated TCP handler is accepted by the API and does nothing, as upstream.
    Ok(())
}
