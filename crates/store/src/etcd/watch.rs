//! Watches on etcd: a task that follows one stream, and takes it up again wherever it broke.
//!
//! Guarantees: the position moves by whole revisions, and a new stream starts right after it, so that nothing is lost or
//! seen twice; only a compacted position ends the watch. At most [`BUFFERED`] items wait for the reader.
//!
//! Progress on demand: etcd answers a progress request with the newest revision, but before 3.4.31 and 3.5.13 the answer
//! can overtake the events below it. There the task writes a key of its own just below the prefix instead, inside the
//! watched range: its event comes, in order, after all earlier ones. It does so only when the position has not come up
//! with the newest revision by itself.

use std::ops::ControlFlow;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::convert::{change, map_error, revision_of};
use super::wire::Connection;
use super::{FIRST_PAUSE, LONGEST_PAUSE, bytes, nothing};
use crate::etcdserverpb::watch_request::RequestUnion;
use crate::etcdserverpb::{self as pb};
use crate::{Change, Revision, StoreError, WatchItem, WatchStream, prefix_end};

/// Items waiting for the reader; more stay with etcd.
const BUFFERED: usize = 64;

/// Questions for progress on their way to etcd: one is asked at a time, about once a second.
const QUESTIONS: usize = 4;

/// How long the stream may take to come up.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How long events under way get to arrive before a key is written for progress.
const GRACE: Duration = Duration::from_millis(20);

/// After this the question for progress is put again: etcd leaves it unanswered while a watch is behind.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How to learn what a watch is complete up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// By etcd's progress request.
    Request,
    /// By writing a key and waiting for its event.
    Write,
}

impl Progress {
    /// What is right for all of these versions.
    pub fn for_versions(versions: &[String]) -> Self {
        if !versions.is_empty() && versions.iter().all(|version| answers_in_order(version)) {
            Progress::Request
        } else {
            Progress::Write
        }
    }
}

/// Whether a version's progress answers never overtake events.
fn answers_in_order(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(3), Some(4), Some(patch)) => patch >= 31,
        (Some(3), Some(5), Some(patch)) => patch >= 13,
        (Some(major), Some(minor), Some(_)) => (major, minor) > (3, 5),
        _ => false,
    }
}

/// The key written for the progress of watches of a prefix, next below all keys of the prefix; none for odd prefixes.
fn progress_key(prefix: &str) -> Option<String> {
    let mut key = prefix.to_owned();
    let last = key.pop()?;
    key.push(char::from_u32(u32::from(last).checked_sub(1)?)?);
    key.push_str("nauplius-progress");
    Some(key)
}

/// Where the questions of a stream go.
type Questions = mpsc::Sender<pb::WatchRequest>;

fn request(union: RequestUnion) -> pb::WatchRequest {
    pb::WatchRequest { request_union: Some(union) }
}

/// Why following a stream ended.
enum Ended {
    /// Nobody reads any more.
    Unread,
    /// The watch cannot go on.
    Final(StoreError),
    /// The stream broke: take it up again.
    Lost(StoreError),
}

/// A question for progress under way.
enum Ask {
    None,
    /// Wait until then whether the position reaches the revision by itself.
    Grace(Revision, Instant),
    /// Put to etcd; ask again then.
    Sent(Instant),
}

struct Follower {
    connection: Connection,
    name: String,
    prefix: String,
    progress: Progress,
    progress_key: Option<String>,
    asked: tokio::sync::watch::Receiver<u64>,
    orphaned: bool,
    ask: Ask,
    /// Everything of the prefix up to here has been handed on.
    position: Revision,
    out: mpsc::Sender<Result<WatchItem, StoreError>>,
}

/// Starts a watch.
pub fn start(
    connection: &Connection,
    name: &str,
    progress: Progress,
    asked: tokio::sync::watch::Receiver<u64>,
    prefix: &str,
    after: Revision,
) -> WatchStream {
    let (out, items) = mpsc::channel(BUFFERED);
    let follower = Follower {
        connection: connection.clone(),
        name: name.to_owned(),
        prefix: prefix.to_owned(),
        progress,
        progress_key: if progress == Progress::Write { progress_key(prefix) } else { None },
        asked,
        orphaned: false,
        ask: Ask::None,
        position: after,
        out,
    };
    tokio::spawn(follower.run());
    ReceiverStream::new(items).boxed()
}

impl Follower {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let mut failing = false;
        loop {
            let before = self.position;
            let error = match self.follow().await {
                Ended::Unread => return,
                Ended::Final(error) => {
                    // A reader that is gone does not care.
                    _ = self.out.send(Err(error)).await;
                    return;
                }
                Ended::Lost(error) => error,
            };
            if self.position > before {
                (pause, failing) = (FIRST_PAUSE, false);
            }
            if !failing {
                tracing::warn!(prefix = self.prefix, position = self.position, %error, "lost a watch on etcd; taking it up again");
                failing = true;
            }
            tokio::select! {
                () = self.out.closed() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// Follows one stream from the position on.
    async fn follow(&mut self) -> Ended {
        let from = self.progress_key.as_deref().unwrap_or(if self.prefix.is_empty() { "\0" } else { &self.prefix });
        let create = pb::WatchCreateRequest {
            key: bytes(from),
            range_end: bytes(&prefix_end(&self.prefix)),
            start_revision: self.position as i64 + 1,
            prev_kv: true,
            progress_notify: true,
            ..Default::default()
        };
        let (mut requests, waiting) = mpsc::channel(QUESTIONS);
        let create = futures::stream::iter([request(RequestUnion::CreateRequest(create))]);
        let stream = self.connection.stream(create.chain(ReceiverStream::new(waiting)));
        let started = tokio::select! {
            () = self.out.closed() => return Ended::Unread,
            started = tokio::time::timeout(START_TIMEOUT, stream) => started,
        };
        let mut responses = match started {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Ended::Lost(map_error(&self.name, &error)),
            Err(_) => {
                self.connection.doubt();
                return Ended::Lost(super::convert::silent(&self.name, START_TIMEOUT));
            }
        };
        if let Ask::Sent(again) = &mut self.ask {
            // The stream that was asked is gone.
            *again = Instant::now();
        }
        loop {
            let due = match self.ask {
                Ask::None => None,
                Ask::Grace(_, at) | Ask::Sent(at) => Some(at),
            };
            let step = tokio::select! {
                () = self.out.closed() => return Ended::Unread,
                response = responses.message() => match response {
                    Ok(Some(response)) => self.take(response).await,
                    Ok(None) => ControlFlow::Break(Ended::Lost(StoreError::Unavailable("etcd ended the watch stream".into()))),
                    Err(error) => ControlFlow::Break(Ended::Lost(map_error(&self.name, &error))),
                },
                changed = self.asked.changed(), if due.is_none() && !self.orphaned => match changed {
                    Ok(()) => self.begin_ask(&mut requests).await,
                    // The store was dropped; its watches live on without questions.
                    Err(_) => {
                        self.orphaned = true;
                        ControlFlow::Continue(())
                    }
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.put_ask(&mut requests).await,
            };
            if let ControlFlow::Break(ended) = step {
                return ended;
            }
        }
    }

    /// Takes up a call for progress.
    async fn begin_ask(&mut self, requests: &mut Questions) -> ControlFlow<Ended> {
        if self.progress == Progress::Request {
            return self.put_ask(requests).await;
        }
        match tokio::time::timeout(START_TIMEOUT, self.connection.call(nothing())).await {
            Ok(Ok(answer)) => {
                let newest = revision_of(&answer.header);
                if self.position >= newest {
                    return self.send(WatchItem::Progress(self.position)).await;
                }
                self.ask = Ask::Grace(newest, Instant::now() + GRACE);
            }
            // etcd is away: the stream will notice, and the question stays.
            _ => self.ask = Ask::Sent(Instant::now() + ASK_AGAIN),
        }
        ControlFlow::Continue(())
    }

    /// Puts the question to etcd.
    async fn put_ask(&mut self, requests: &mut Questions) -> ControlFlow<Ended> {
        self.ask = Ask::Sent(Instant::now() + ASK_AGAIN);
        match (self.progress, &self.progress_key) {
            (Progress::Write, Some(key)) => {
                let put = pb::PutRequest { key: bytes(key), ..Default::default() };
                match tokio::time::timeout(START_TIMEOUT, self.connection.call(put)).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "cannot write the key for a watch's progress"),
                    Err(_) => tracing::debug!("writing the key for a watch's progress takes too long"),
                }
            }
            _ => {
                let question = request(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
                if requests.send(question).await.is_err() {
                    let ended = StoreError::Unavailable("etcd takes no more questions on a watch stream".into());
                    return ControlFlow::Break(Ended::Lost(ended));
                }
            }
        }
        ControlFlow::Continue(())
    }

    async fn send(&mut self, item: WatchItem) -> ControlFlow<Ended> {
        match self.out.send(Ok(item)).await {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(Ended::Unread),
        }
    }

    /// Hands on what a response holds.
    async fn take(&mut self, response: pb::WatchResponse) -> ControlFlow<Ended> {
        let newest = revision_of(&response.header);
        if response.canceled {
            let compacted = response.compact_revision;
            return ControlFlow::Break(if compacted > 0 {
                Ended::Final(StoreError::Compacted { compacted: compacted as Revision, current: newest })
            } else {
                Ended::Lost(StoreError::Unavailable(format!("etcd cancelled the watch: {}", response.cancel_reason)))
            });
        }
        if response.created {
            return ControlFlow::Continue(());
        }
        if response.events.is_empty() {
            // Progress, asked for or periodic.
            if self.progress == Progress::Request {
                self.ask = Ask::None;
            }
            self.position = self.position.max(newest);
            return self.send(WatchItem::Progress(self.position)).await;
        }
        let changes: Vec<Change> = match response.events.into_iter().map(change).collect() {
            Ok(changes) => changes,
            Err(error) => return ControlFlow::Break(Ended::Final(error)),
        };
        // What was delivered before a stream broke may come again only by a fault of etcd.
        let reached = changes.last().map_or(self.position, |change| change.revision);
        let mine: Vec<Change> = changes
            .into_iter()
            .filter(|change| change.revision > self.position && change.key.starts_with(&self.prefix))
            .collect();
        self.position = self.position.max(reached);
        let told = mine.last().map(|change| change.revision);
        if let Some(told) = told {
            let step = self.send(WatchItem::Changes(mine.into())).await;
            if step.is_break() || told == reached {
                self.reached(reached);
                return step;
            }
        }
        self.reached(reached);
        // The last event was the key written for progress.
        self.ask = Ask::None;
        self.send(WatchItem::Progress(reached)).await
    }

    /// A question is answered when events have come far enough by themselves.
    fn reached(&mut self, revision: Revision) {
        if matches!(self.ask, Ask::Grace(goal, _) if goal <= revision) {
            self.ask = Ask::None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_whose_progress_can_be_trusted() {
        let cases = [
            ("3.4.23", false),
            ("3.4.30", false),
            ("3.4.31", true),
            ("3.5.0", false),
            ("3.5.12", false),
            ("3.5.13", true),
            ("3.6.0-rc.1", true),
            ("4.0.0", true),
            ("3.3.99", false),
            ("", false),
            ("strange", false),
        ];
        for (version, expected) in cases {
            assert_eq!(answers_in_order(version), expected, "{version:?}");
        }
        let both = ["3.5.13".to_owned(), "3.4.23".to_owned()];
        assert_eq!(Progress::for_versions(&both), Progress::Write);
        assert_eq!(Progress::for_versions(&both[..1]), Progress::Request);
        assert_eq!(Progress::for_versions(&[]), Progress::Write);
    }

    #[test]
    fn the_progress_key_lies_just_below_the_prefix() {
        for prefix in ["/registry/", "a", "/b"] {
            let key = progress_key(prefix).unwrap();
            assert!(*key < *prefix && !key.starts_with(prefix), "{key}");
        }
        assert_eq!(progress_key("/registry/").as_deref(), Some("/registry.nauplius-progress"));
        assert_eq!(progress_key(""), None);
    }
}
