//! Mounts the agent makes itself: memory-backed directories and bound subpaths; and their removal.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mount points at or below a directory, deepest first.
pub fn below(dir: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut out: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        // The kernel writes blanks in paths as octal escapes.
        .map(|p| PathBuf::from(p.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")))
        .filter(|p| p.starts_with(dir))
        .collect();
    out.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    out
}

/// Removes every mount at or below a directory.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    // Stacked mounts show one by one.
    const ROUNDS: usize = 16;
    for _ in 0..ROUNDS {
        let found = below(dir);
        if found.is_empty() {
            return Ok(());
        }
        for path in found {
            umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
        }
    }
    Err(io::Error::other(format!("mounts below {} do not go away", dir.display())))
}

/// A tmpfs of at most `size` bytes (half of memory when absent).
pub fn tmpfs(at: &Path, size: Option<u64>) -> io::Result<()> {
    if below(at).iter().any(|p| p == at) {
        return Ok(());
    }
    let options = size.filter(|s| *s > 0).map(|s| format!("size={s}"));
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), options.as_deref())?;
    Ok(())
}

/// Huge pages of one size, in bytes, as files.
pub fn huge_pages(at: &Path, page: u64) -> io::Result<()> {
    if below(at).iter().any(|p| p == at) {
        return Ok(());
    }
    mount(Some("nodev"), at, Some("hugetlbfs"), MsFlags::empty(), Some(format!("pagesize={page}").as_str()))?;
    Ok(())
}

/// Opens a path inside a volume; symbolic links may not lead out of it.
fn open_within(volume: &Path, inner: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let root = fs::OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(volume)?;
    let how = OpenHow::new()
        .flags(flags | OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(&root, inner, how)?)
}

/// Makes the directories of a subpath that are missing, never through a link out of the volume.
fn make_within(volume: &Path, inner: &Path) -> io::Result<()> {
    let mut done = PathBuf::new();
    for part in inner.components() {
        let parent =
            open_within(volume, if done.as_os_str().is_empty() { Path::new(".") } else { &done }, OFlag::O_DIRECTORY)?;
        done.push(part);
        match nix::sys::stat::mkdirat(&parent, part.as_os_str(), nix::sys::stat::Mode::from_bits_truncate(0o750)) {
            Ok(()) => {
                // As permissive as the volume itself, so that whoever may use the volume may use the subpath.
                let mode = fs::metadata(volume)?.permissions();
                let made = open_within(volume, &done, OFlag::O_DIRECTORY)?;
                fs::set_permissions(format!("/proc/self/fd/{}", made.as_raw_fd()), mode)?;
            }
            Err(nix::errno::Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Binds a subpath of a volume to `target`, so that what a container later does to links in the volume cannot redirect
/// the mount.
pub fn bind_subpath(volume: &Path, inner: &str, target: &Path) -> io::Result<()> {
    let inner = Path::new(inner);
    if inner.is_absolute() || inner.components().any(|c| matches!(c, std::path::Component::ParentDir)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("subpath {inner:?} must be relative and must not contain '..'"),
        ));
    }
    let found = match open_within(volume, inner, OFlag::empty()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_within(volume, inner)?;
            open_within(volume, inner, OFlag::empty())?
        }
        other => other?,
    };
    let source = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    let is_dir = fs::metadata(&source)?.is_dir();
    if fs::symlink_metadata(target).is_ok() {
        unmount_below(target)?;
    }
    if is_dir {
        if target.is_file() {
            fs::remove_file(target)?;
        }
        fs::create_dir_all(target)?;
    } else {
        if target.is_dir() {
            fs::remove_dir(target)?;
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::OpenOptions::new().create(true).append(true).mode(0o640).open(target)?;
    }
    mount(Some(&source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    Ok(())
}
