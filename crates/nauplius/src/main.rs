//! `nauplius`: every component of Kubernetes in one binary.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    nauplius::cli::main()
}
