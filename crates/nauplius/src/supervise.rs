//! Roles as supervised tasks: one that fails or panics is started again, alone, with back-off.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

/// Wait before the first restart; doubles up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A role that ran this long starts its waits anew.
const SETTLED: Duration = Duration::from_secs(60);

/// Runs a role until `cancel`; returns when it has ended for good.
pub async fn role<F, Fut>(name: &str, cancel: CancellationToken, mut start: F)
where
    F: FnMut(CancellationToken) -> Fut,
    Fut: Future<Output = anyhow::Result<()>> + Send,
{
    let mut wait = FIRST_WAIT;
    while !cancel.is_cancelled() {
        let began = Instant::now();
        // A role gets a token of its own, so that what a panic left running ends before the next start.
        let own = cancel.child_token();
        let outcome = AssertUnwindSafe(start(own.clone())).catch_unwind().await;
        own.cancel();
        if cancel.is_cancelled() {
            return;
        }
        match outcome {
            Ok(Ok(())) => tracing::warn!(role = name, "ended; starting again"),
            Ok(Err(error)) => tracing::error!(role = name, error = format!("{error:#}"), "failed; starting again"),
            Err(_) => tracing::error!(role = name, "panicked; starting again"),
        }
        if began.elapsed() > SETTLED {
            wait = FIRST_WAIT;
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(LONGEST_WAIT),
        }
    }
}
