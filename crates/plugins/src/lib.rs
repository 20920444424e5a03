//! What a node's plugins and the kubelet say to each other over unix sockets, with stubs for both ends.
//!
//! Generated from the v1.37 definitions and committed, so that building needs no `protoc`; both ends, so that a test's
//! plugin speaks the same words. It knows no behaviour: neither deadlines nor paths nor who may register.

pub mod csi;
pub mod device;
pub mod dra;
pub mod pod_resources;
pub mod registration;
