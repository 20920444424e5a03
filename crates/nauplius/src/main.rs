//! `nauplius`: every component of Kubernetes in one binary.

#![forbid(unsafe_code)]

/// How it is set: `.cargo/config.toml`; why: docs/adr/0021.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    nauplius::cli::main()
}
