//! From CRI's wishes to a container's exact specification. Pure but for looking at the node's devices: what must be
//! read from disk (image configuration, account files) comes in as arguments.

pub mod bundle;
pub mod capabilities;
pub mod cdi;
pub mod container;
pub mod devices;
pub mod oci;
pub mod seccomp;
mod syscalls;
pub mod user;
