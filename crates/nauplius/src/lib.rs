//! The binary: roles, configuration, PKI, bootstrap, wiring, signals. Nothing else.
//!
//! [`cli`] reads what is asked; [`up`] brings a whole cluster up on one machine; [`roles`] runs one component, in this
//! process or alone; [`fabric`] is the cluster's network on one machine. No component's logic lives here.

mod claim;
pub mod cli;
pub mod fabric;
pub mod local;
pub mod node;
pub mod pki;
pub mod preflight;
mod ranges;
mod resident;
pub mod roles;
mod storage;
pub mod supervise;
pub mod tls;
pub mod up;
