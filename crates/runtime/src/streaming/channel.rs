//! The channels of a session, whatever carries them: a way in is a receiver of bytes, a way out an [`Output`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

/// What a connection's writer is told.
#[derive(Debug)]
pub enum Outgoing {
    /// Bytes of a channel.
    Data(u32, Bytes),
    /// A channel ends.
    Finish(u32),
    /// A stream that the client opened is accepted.
    Reply(u32),
    /// A ready frame.
    Raw(Bytes),
    /// The connection ends.
    Close,
}

/// A way out to the client.
#[derive(Debug, Clone)]
pub struct Output {
    channel: u32,
    sender: mpsc::Sender<Outgoing>,
    finished: Arc<AtomicBool>,
}

/// The client is gone.
#[derive(Debug, thiserror::Error)]
#[error("the client has gone")]
pub struct Gone;

impl Output {
    /// Of a connection's writer.
    pub fn new(channel: u32, sender: mpsc::Sender<Outgoing>) -> Output {
        Output { channel, sender, finished: Arc::default() }
    }

    /// Sends bytes, waiting while the client is slow.
    pub async fn write(&self, data: Bytes) -> Result<(), Gone> {
        self.sender.send(Outgoing::Data(self.channel, data)).await.map_err(|_| Gone)
    }

    /// Ends the channel, once.
    pub async fn finish(&self) {
        if !self.finished.swap(true, Ordering::Relaxed) {
            // A client that is gone sees no end.
            let _ = self.sender.send(Outgoing::Finish(self.channel)).await;
        }
    }
}

/// The channels of an exec or attach session.
pub struct Channels {
    /// Standard input; ends when the client says so or goes away.
    pub stdin: Option<mpsc::Receiver<Bytes>>,
    /// Standard output.
    pub stdout: Option<Output>,
    /// Standard error.
    pub stderr: Option<Output>,
    /// How it ended.
    pub error: Output,
    /// Terminal sizes, as JSON objects.
    pub resize: Option<mpsc::Receiver<Bytes>>,
    /// How `error` is written.
    pub status: StatusFormat,
    /// Ends the connection.
    pub connection: mpsc::Sender<Outgoing>,
    /// Ends when the client is gone.
    pub alive: mpsc::Receiver<std::convert::Infallible>,
}

/// How a session's end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusFormat {
    /// Text, and only if it failed.
    Text,
    /// A `Status` object.
    Json,
}
