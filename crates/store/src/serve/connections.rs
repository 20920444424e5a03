//! Accepting connections, only so many at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits::MAX_CONNECTIONS;

/// The pause after the system refused a connection: it is short of something that does not come at once.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// A listener whose connections are counted.
pub struct Connections {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Connections {
    pub fn new(listener: TcpListener) -> Self {
        Connections { listener, places: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }

    /// The next connection, and its place among them; it is taken until dropped. With all places taken, more wait in the
    /// system's queue.
    pub async fn next(&self) -> (TcpStream, Option<OwnedSemaphorePermit>) {
        // Fails only when closed, which nobody does.
        let place = self.places.clone().acquire_owned().await.ok();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    // Without it answers are late, not wrong.
                    _ = stream.set_nodelay(true);
                    return (stream, place);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
            }
        }
    }
}
