//! Events sent in batches to a server that a kubeconfig names.
//!
//! A batch goes when it is full or its first event has waited long enough; one that is refused is sent again a few times and
//! then dropped and counted. One batch is under way at a time.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use client::remote::Post;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::sink::{Overflow, Queued, Sink};

/// Tries at a batch, as upstream.
const TRIES: u32 = 5;
/// Each wait is so much longer than the one before.
const FACTOR: f64 = 1.5;
/// Bytes of a batch beyond which nothing is added: what upstream's receivers are used to.
const MAX_BATCH_BYTES: usize = 10 << 20;

/// `--audit-webhook-*`.
#[derive(Clone, Debug)]
pub struct Options {
    pub max_batch: usize,
    pub max_wait: Duration,
    pub initial_backoff: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_batch: 400, max_wait: Duration::from_secs(30), initial_backoff: Duration::from_secs(10) }
    }
}

/// Reads the kubeconfig; events are sent until the sink is gone.
pub async fn open(kubeconfig: &Path, options: Options) -> Result<Sink, String> {
    let post = Post::from_kubeconfig(kubeconfig, "kube-apiserver").await.map_err(|status| status.message)?;
    let (sink, queue) = Sink::new("webhook", Overflow::Drop);
    tokio::spawn(send_all(post, options, queue, sink.errors.clone()));
    Ok(sink)
}

/// A list of events, as receivers read it.
fn list(events: &[Bytes]) -> Bytes {
    let mut out = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#.to_vec();
    for (at, event) in events.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(event);
    }
    out.extend_from_slice(b"]}\n");
    out.into()
}

async fn send_all(
    post: Post,
    options: Options,
    mut queue: mpsc::Receiver<Queued>,
    errors: std::sync::Arc<std::sync::atomic::AtomicU64>,
) {
    let mut open = true;
    while open {
        let mut batch: Vec<Bytes> = Vec::new();
        let mut asked: Option<oneshot::Sender<()>> = None;
        let (mut bytes, mut until) = (0, None::<Instant>);
        while batch.len() < options.max_batch && bytes < MAX_BATCH_BYTES {
            let next = match until {
                None => queue.recv().await,
                Some(until) => match tokio::time::timeout_at(until, queue.recv()).await {
                    Ok(next) => next,
                    Err(_) => break,
                },
            };
            match next {
                Some(Queued::Event(event, _)) => {
                    bytes += event.len();
                    batch.push(event);
                    until.get_or_insert_with(|| Instant::now() + options.max_wait);
                }
                Some(Queued::Flush(done)) => {
                    asked = Some(done);
                    break;
                }
                None => {
                    open = false;
                    break;
                }
            }
        }
        if !batch.is_empty() && !sent(&post, &options, list(&batch)).await {
            errors.fetch_add(batch.len() as u64, Ordering::Relaxed);
        }
        asked.map(|done| done.send(()));
    }
}

async fn sent(post: &Post, options: &Options, body: Bytes) -> bool {
    let mut wait = options.initial_backoff;
    for left in (0..TRIES).rev() {
        match post.json(body.clone()).await {
            Ok(()) => return true,
            Err(status) => tracing::warn!(left, error = status.message, "audit webhook"),
        }
        if left > 0 {
            tokio::time::sleep(wait).await;
            wait = wait.mul_f64(FACTOR);
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_event_lists() {
        let sent = list(&[Bytes::from_static(b"{}"), Bytes::from_static(b"{\"a\":1}")]);
        let value: serde_json::Value = serde_json::from_slice(&sent).unwrap();
        assert_eq!((value["kind"].as_str(), value["items"][1]["a"].as_i64()), (Some("EventList"), Some(1)));
    }
}
