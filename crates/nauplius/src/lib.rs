//! The binary.

pub mod fabric;
