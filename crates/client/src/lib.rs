//! One interface to the API, over two transports.
//!
//! A [`Client`] speaks [`meta::Request`] and [`meta::Reply`] to a [`Transport`]: the [`remote`] one (HTTPS, kubeconfig,
//! authentication plugins) or the one inside the API server's process, which shares objects by pointer. On it stand the
//! [`Api`] calls, the [`Informer`]s with their indexes and subscriptions, the
//! [`Reflector`]s for who keeps little, the work [`Queue`], the event [`Recorder`] and
//! the [`LeaderElection`]. What a component built on this cannot tell is which transport it has.

#![forbid(unsafe_code)]

pub mod account;
pub mod answers;
mod any_certificate;
pub mod api;
pub mod discovery;
pub mod election;
pub mod exposition;
mod follower;
pub mod health;
pub mod informer;
pub mod metrics;
pub mod process;
pub mod queue;
mod queue_figures;
pub mod recorder;
pub mod reflector;
pub mod remote;
pub mod site;
pub mod store;
pub mod subscription;
pub mod time;
pub mod transport;
mod wire;

pub use account::Account;
pub use any_certificate::AnyCertificate;
pub use api::{Api, DeleteOptions, DynamicApi, Kind, ListOptions, Patch, Propagation, gvr_of};
pub use discovery::ApiResource;
pub use election::LeaderElection;
pub use informer::{Informer, Informers, Keep, Scope};
pub use queue::{Backoff, Queue, give_back};
pub use recorder::{EventType, Recorder, reference};
pub use reflector::{News, Reflector};
pub use site::Site;
pub use subscription::{Batch, Change, Subscription};
pub use transport::{Client, Transport};

pub use meta::{Gvr, List, Object, Status};

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
