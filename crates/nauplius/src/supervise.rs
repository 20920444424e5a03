//! Roles as supervised tasks: one that fails or panics is started again, alone, with back-off. Roles as child processes:
//! one whose parent is gone ends.

use std::future::Future;
use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

/// Wait before the first restart; doubles up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A role that ran this long starts its waits anew.
const SETTLED: Duration = Duration::from_secs(60);

/// Set to [`STDIN`] for a process that is of no use without the one that started it.
pub const PARENT: &str = "NAUPLIUS_PARENT";
/// The standard input is a pipe that nobody writes to: its end is the parent's.
pub const STDIN: &str = "stdin";

/// Cancels when the parent is gone without having said so; does nothing in a process that has no such parent.
pub async fn end_with_parent(cancel: CancellationToken) {
    if std::env::var_os(PARENT).is_none_or(|value| value != STDIN) {
        return;
    }
    let pipe = std::io::stdin().as_fd().try_clone_to_owned().and_then(pipe::Receiver::from_owned_fd);
    let mut pipe = match pipe {
        Ok(pipe) => pipe,
        Err(error) => return tracing::warn!("{PARENT}={STDIN}, and the standard input is no pipe: {error}"),
    };
    let mut nothing = [0];
    tokio::select! {
        () = cancel.cancelled() => return,
        _ = pipe.read(&mut nothing) => {}
    }
    tracing::warn!("the process that started this one is gone; ending");
    cancel.cancel();
}

/// A cancelled role that has not ended by itself after this is dropped: what it waits for may never come.
const END_WITHIN: Duration = if cfg!(test) { Duration::from_millis(10) } else { Duration::from_secs(5) };

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
        let late = async {
            cancel.cancelled().await;
            tokio::time::sleep(END_WITHIN).await;
        };
        let outcome = tokio::select! {
            outcome = AssertUnwindSafe(start(own.clone())).catch_unwind() => outcome,
            () = late => {
                tracing::warn!(role = name, "does not end within {END_WITHIN:?}; dropped");
                return;
            }
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_role_that_waits_for_ever_is_dropped() {
        let cancel = CancellationToken::new();
        let waiting = role("deaf", cancel.clone(), |_| std::future::pending::<anyhow::Result<()>>());
        tokio::join!(waiting, async { cancel.cancel() });
    }
}
