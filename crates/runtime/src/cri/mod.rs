//! The wire: protobuf messages and gRPC services this engine speaks. It knows no behaviour.
//!
//! The CRI types are generated from the v1.37 definition and committed, so that building needs no `protoc` and the
//! engine offers calls and fields that the published binding crates do not have yet.

pub mod transfer;
pub mod v1;
