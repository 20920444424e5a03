//! What a node may leave on the machine beyond its own files: mounts below its directories, and its cgroups.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Tries at a cgroup whose processes are on their way out.
const TRIES: usize = 50;
const BETWEEN: Duration = Duration::from_millis(20);

/// Unmounts everything mounted below a directory, the deepest first.
pub fn unmount_below(dir: &Path) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mount table")?;
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|point| point.starts_with(dir))
        .collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    for point in points {
        umount2(&point, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {}", point.display()))?;
    }
    Ok(())
}

/// The mount table writes space, tab, newline and backslash in octal.
fn unescape(text: &str) -> PathBuf {
    let mut out = text.to_string();
    for (code, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        out = out.replace(code, plain);
    }
    out.into()
}

/// Removes a path's cgroups from every mounted hierarchy, ending what still runs in them.
pub fn remove_cgroups(path: &str) -> Result<()> {
    let relative = path.trim_start_matches('/');
    if relative.is_empty() {
        return Ok(());
    }
    let root = Path::new("/sys/fs/cgroup");
    let mut hierarchies = vec![root.to_path_buf()];
    hierarchies.extend(fs::read_dir(root)?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
    for hierarchy in hierarchies {
        let group = hierarchy.join(relative);
        if group.join("cgroup.procs").exists() {
            remove_tree(&group)?;
        }
    }
    Ok(())
}

fn remove_tree(group: &Path) -> Result<()> {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    for _ in 0..TRIES {
        for pid in fs::read_to_string(group.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
            .filter_map(|pid| pid.parse().ok())
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(_) => std::thread::sleep(BETWEEN),
        }
    }
    fs::remove_dir(group).with_context(|| format!("cannot remove the cgroup {}", group.display()))
}
