//! Configuration files that are taken up again when they change.

use std::path::PathBuf;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

/// How often a file is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Reads a file again whenever its content, known so far as `last`, changes. `take` is given what it holds; one that it does
/// not take leaves everything as it was, and is not tried again before the file changes once more.
pub fn follow(
    file: PathBuf,
    last: Vec<u8>,
    cancel: CancellationToken,
    take: impl Fn(Vec<u8>) -> BoxFuture<'static, Result<(), String>> + Send + 'static,
) {
    tokio::spawn(async move {
        let mut last = last;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            // A file that is being replaced may be away for a moment.
            let Ok(now) = tokio::fs::read(&file).await else { continue };
            if now.is_empty() || now == last {
                continue;
            }
            match take(now.clone()).await {
                Ok(()) => tracing::info!(file = %file.display(), "took up a changed configuration"),
                Err(why) => tracing::error!(file = %file.display(), why, "keeping the configuration as it was"),
            }
            last = now;
        }
    });
}
