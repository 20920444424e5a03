//! The end of a container: killing what is left of it, and writing down how it ended.

use std::path::{Path, PathBuf};

use super::protocol::Exit;
use super::sys;

/// Renamed into place, so that a reader sees all of it or nothing.
pub fn write_exit(path: &Path, exit: &Exit) {
    let Ok(text) = serde_json::to_vec(exit) else { return };
    let partial = path.with_extension("part");
    if std::fs::write(&partial, text).is_ok() {
        let _ = std::fs::rename(&partial, path);
    }
}

/// Signals every process of a container by its first cgroup.
pub fn signal_cgroup(cgroups: &[PathBuf], signal: i32) {
    /// Passes over the list: processes may fork while being killed.
    const PASSES: usize = 8;
    let Some(dir) = cgroups.first() else { return };
    for _ in 0..PASSES {
        let list = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        let pids: Vec<i32> = list.lines().filter_map(|l| l.parse().ok()).filter(|&pid| pid > 0).collect();
        for &pid in &pids {
            let _ = sys::kill(pid, signal);
        }
        if pids.is_empty() || signal != libc::SIGKILL {
            return;
        }
    }
}

/// Whether the kernel's counter (`oom_kill N`) is above zero.
pub fn oom_killed(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .any(|count| count.trim().parse::<u64>().is_ok_and(|n| n > 0))
}
