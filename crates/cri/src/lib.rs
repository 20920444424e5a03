//! The Container Runtime Interface: what a kubelet and an engine say to each other, with stubs for both ends.
//!
//! Generated from the v1.37 definition and committed, so that building needs no `protoc` and both ends know calls and
//! fields that the published binding crates do not have yet. It guarantees that kubelet and engine are built from one
//! definition. It knows no behaviour: neither end's deadlines, sockets or limits.

pub mod metrics;
pub mod v1;
