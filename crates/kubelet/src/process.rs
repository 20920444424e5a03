//! The process the agent runs in and the kernel under it, as the configuration wants them.

use anyhow::{bail, ensure};
use nix::sys::resource::{Resource, setrlimit};

use crate::cgroups;
use crate::config::Config;
use crate::node::machine;

/// Settings of the kernel that nodes rely on, and what they are expected to be; as upstream.
const EXPECTED: [(&str, i64); 6] = [
    ("vm/overcommit_memory", 1),
    ("vm/panic_on_oom", 0),
    ("kernel/panic", 10),
    ("kernel/panic_on_oops", 1),
    ("kernel/keys/root_maxkeys", 1_000_000),
    ("kernel/keys/root_maxbytes", 25_000_000),
];

/// Prepares the process; what of the machine rules this configuration out is an error.
pub fn prepare(config: &Config) -> anyhow::Result<()> {
    ensure!(
        !config.fail_swap_on || !machine::swap_is_on(),
        "running with swap on is not supported, please disable swap or set --fail-swap-on flag to false"
    );
    ensure!(
        !config.fail_cgroup_v1 || cgroups::is_v2(),
        "kubelet is configured to not run on a host using cgroup v1. cgroup v1 support is unsupported and will be removed in a future release"
    );
    if config.process.kernel_as_expected {
        let wrong: Vec<String> = EXPECTED.iter().filter_map(|(flag, expected)| differs(flag, *expected)).collect();
        if !wrong.is_empty() {
            bail!("{}", wrong.join(", "));
        }
    }
    if let Some(score) = config.process.oom_score
        && let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string())
    {
        tracing::debug!(score, "the kernel picks this agent as any other when memory runs out: {error}");
    }
    if let Some(files) = config.process.open_files
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, files, files)
    {
        tracing::warn!(files, "maxOpenFiles cannot be had: {error}");
    }
    Ok(())
}

fn differs(flag: &str, expected: i64) -> Option<String> {
    let actual = match std::fs::read_to_string(format!("/proc/sys/{flag}")) {
        Ok(text) => text.trim().parse().unwrap_or(i64::MIN),
        Err(error) => return Some(format!("{flag}: {error}")),
    };
    (actual != expected)
        .then(|| format!("invalid kernel flag: {flag}, expected value: {expected}, actual value: {actual}"))
}
