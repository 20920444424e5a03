//! Streaming: exec, attach and port forwarding over connections that a client upgrades to SPDY/3.1 or WebSocket.
//!
//! CRI hands out a URL with a token; whoever opens it within a minute gets the session, once.

pub mod channel;
mod exec;
pub mod frames;
mod portforward;
pub mod server;
mod spdy;
mod websocket;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cri::v1::{AttachRequest, ExecRequest};

/// How long a token waits for its client.
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// Most tokens that wait; beyond it callers are told to come back.
const MAX_TOKENS: usize = 1000;

/// What a token stands for.
#[derive(Debug, Clone)]
pub enum Session {
    /// A command in a container.
    Exec {
        /// Its id in full.
        container: String,
        /// As asked for.
        request: ExecRequest,
    },
    /// A container's own streams.
    Attach {
        /// Its id in full.
        container: String,
        /// As asked for.
        request: AttachRequest,
    },
    /// Connections to a pod's ports.
    PortForward {
        /// The sandbox's id in full.
        sandbox: String,
        /// Ports asked for; empty: any.
        ports: Vec<i32>,
    },
}

/// No more sessions can be prepared for now.
#[derive(Debug, thiserror::Error)]
#[error("maximum number of in-flight streaming requests exceeded")]
pub struct TooMany;

/// The sessions that wait for their client.
#[derive(Default)]
pub struct Tokens {
    waiting: Mutex<HashMap<String, (Instant, Session)>>,
    address: OnceLock<SocketAddr>,
}

impl Tokens {
    /// A token for a session.
    pub fn add(&self, session: Session) -> Result<String, TooMany> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (since, _)| since.elapsed() < TOKEN_LIFETIME);
        if waiting.len() >= MAX_TOKENS {
            return Err(TooMany);
        }
        let token = crate::engine::new_id();
        waiting.insert(token.clone(), (Instant::now(), session));
        Ok(token)
    }

    /// The session of a token, once.
    pub fn take(&self, token: &str) -> Option<Session> {
        let (since, session) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(token)?;
        (since.elapsed() < TOKEN_LIFETIME).then_some(session)
    }

    /// Where the streaming server listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address.get().copied()
    }

    /// Says where the streaming server listens.
    pub fn set_address(&self, address: SocketAddr) {
        // Set once, when the server begins to listen.
        let _ = self.address.set(address);
    }
}
