//! The API server: the only door to the store.
//!
//! One pipeline ([`pipeline`]) serves every kind: route → authenticate → authorize → decode → default → admission →
//! prepare → validate → transaction → encode. Reads come from the watch cache ([`cache`]). HTTP ([`http`]) and the
//! in-process transport differ only in how a request arrives and a reply leaves. Nothing here knows a particular kind
//! except the rooms that say so by name: [`subresource`], [`reviews`], [`bootstrap`].

#![forbid(unsafe_code)]

pub mod admission;
pub mod aggregation;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod cache;
pub mod catalog;
pub mod clock;
pub mod crd;
pub mod crd_rules;
pub mod discovery;
pub mod document;
pub mod flowcontrol;
mod following;
pub mod http;
mod instruments;
mod metrics_api;
pub mod openapi;
pub mod pipeline;
pub mod reviews;
pub mod server;
mod stored;
pub mod subresource;
pub mod webhook;

pub use authn::User;
pub use server::{ApiServer, Config};

#[cfg(test)]
mod testing;
