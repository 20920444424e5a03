//! Benchmarks only; see `benches/`. `cargo bench -p benches` runs them.
