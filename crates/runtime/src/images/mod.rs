//! Images: names, archives, registries, and layers unpacked for overlayfs.

pub mod config;
pub mod hosts;
pub mod import;
pub mod pull;
pub mod reference;
mod registry;
pub mod store;
pub mod unpack;
