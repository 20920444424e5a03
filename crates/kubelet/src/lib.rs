//! The node agent: runs the pods bound to one node and reports on them.
//!
//! It reads orders from the API server (through `client`), gives them to a container engine (through CRI, over a unix
//! socket and nothing else), and writes back what became of them. Decisions are pure ([`pods::plan`],
//! [`pods::status`], [`spec`]); each pod has one worker task that carries them out one after the other. It guarantees
//! that a restart of the agent never touches a running container. It knows no engine in particular, no network
//! plugin, no store.

#![deny(unsafe_code)]

pub mod agent;
pub mod certificates;
pub mod cgroups;
pub mod config;
pub mod cri;
pub mod events;
pub mod eviction;
pub mod images;
pub mod logs;
pub mod metrics;
pub mod node;
mod oom;
pub mod plugins;
pub mod pods;
pub mod probes;
mod process;
pub mod processors;
pub mod quantity;
pub mod references;
pub mod server;
pub mod shutdown;
pub mod simulated;
pub mod spec;
pub mod statics;
pub mod stats;
pub mod topology;
pub mod user_namespaces;
pub mod volumes;

pub use agent::{Ended, run};
pub use config::Config;

/// Requests this agent should have in flight at its API server, watches aside: an agent of a hundred pods has bursts, and
/// more at a time would only open more connections.
pub const MAX_IN_FLIGHT: usize = 16;
