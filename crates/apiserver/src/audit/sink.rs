//! Where events go: a queue of bounded length and size before whoever writes them.
//!
//! A full queue either holds up the request that fills it (blocking: the audit log is then complete and the server as slow
//! as its disk) or drops the event and counts it (batch). Nothing waits without bound for a writer that is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Events that wait, as upstream's buffer.
const MAX_QUEUED: usize = 10_000;
/// Bytes of the events that wait; one larger takes all the room there is.
const MAX_QUEUED_BYTES: u32 = 64 << 20;

/// What a writer takes from its queue.
pub enum Queued {
    /// An event's JSON; its room is free again when it is dropped.
    Event(Bytes, OwnedSemaphorePermit),
    /// Asks for word when everything before is written.
    Flush(oneshot::Sender<()>),
}

/// What a full queue means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    Block,
    Drop,
}

/// The near end of a queue.
pub struct Sink {
    pub name: &'static str,
    sender: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
    overflow: Overflow,
    /// Bytes of an event beyond which it is cut, if it is.
    max_event: Option<usize>,
    /// Said once, until there is room again.
    dropping: AtomicBool,
    /// Events that did not get where they should.
    pub errors: Arc<AtomicU64>,
}

impl Sink {
    /// A queue; the far end is for the writer.
    pub fn new(name: &'static str, overflow: Overflow) -> (Self, mpsc::Receiver<Queued>) {
        let (sender, receiver) = mpsc::channel(MAX_QUEUED);
        let room = Arc::new(Semaphore::new(MAX_QUEUED_BYTES as usize));
        let (dropping, errors) = Default::default();
        (Self { name, sender, room, overflow, max_event: None, dropping, errors }, receiver)
    }

    /// Cuts events of more than so many bytes.
    pub fn truncating(self, max_event: Option<usize>) -> Self {
        Self { max_event, ..self }
    }

    pub async fn put(&self, event: Bytes) {
        let event = match self.max_event {
            None => event,
            Some(max) => match super::truncate::to(event, max) {
                Some(event) => event,
                None => {
                    self.errors.fetch_add(1, Ordering::Relaxed);
                    return tracing::error!(backend = self.name, "event is too large even after truncating");
                }
            },
        };
        let size = u32::try_from(event.len()).unwrap_or(u32::MAX).min(MAX_QUEUED_BYTES);
        let put = match self.overflow {
            // The semaphore is never closed; a closed queue has lost its writer.
            Overflow::Block => match self.room.clone().acquire_many_owned(size).await {
                Ok(room) => self.sender.send(Queued::Event(event, room)).await.is_ok(),
                Err(_) => false,
            },
            Overflow::Drop => match self.room.clone().try_acquire_many_owned(size) {
                Ok(room) => self.sender.try_send(Queued::Event(event, room)).is_ok(),
                Err(_) => false,
            },
        };
        let dropped_before = self.dropping.swap(!put, Ordering::Relaxed);
        if !put {
            self.errors.fetch_add(1, Ordering::Relaxed);
            if !dropped_before {
                tracing::error!(backend = self.name, "audit backend's queue is full: events are dropped");
            }
        }
    }

    /// Waits until what is queued now is written.
    pub async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.sender.send(Queued::Flush(done)).await.is_ok() {
            let _ = written.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_drops_and_counts() {
        let (sink, mut receiver) = Sink::new("log", Overflow::Drop);
        let large = Bytes::from(vec![0; 24 << 20]);
        for _ in 0..3 {
            sink.put(large.clone()).await;
        }
        assert_eq!(sink.errors.load(Ordering::Relaxed), 1, "three of them are more than there is room for");
        drop(receiver.recv().await);
        sink.put(large).await;
        assert_eq!(sink.errors.load(Ordering::Relaxed), 1);
        drop(receiver);
        sink.put(Bytes::from_static(b"x")).await;
        assert_eq!(sink.errors.load(Ordering::Relaxed), 2, "nobody writes any more");
    }

    #[tokio::test]
    async fn a_full_queue_holds_up_whoever_fills_it() {
        let (sink, mut receiver) = Sink::new("log", Overflow::Block);
        let large = Bytes::from(vec![0; 40 << 20]);
        sink.put(large.clone()).await;
        let second = sink.put(large);
        tokio::pin!(second);
        assert!(futures::poll!(&mut second).is_pending());
        drop(receiver.recv().await);
        second.await;
        assert_eq!(sink.errors.load(Ordering::Relaxed), 0);
    }
}
