//! Builds a container's file system view, from inside its own mount namespace, and makes it `/`.
//!
//! Guarantees: no path from the image or the pod can lead a mount out of the root (every target is resolved with the
//! root as `/`); nothing of it is visible on the node; everything vanishes with the namespace.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::sys;
use crate::spec::bundle::{Bundle, Mount, Rootfs};

/// What failed, for the person who wrote the pod.
pub type Failure = String;

fn context<T, E: std::fmt::Display>(result: Result<T, E>, what: impl FnOnce() -> String) -> Result<T, Failure> {
    result.map_err(|e| format!("{}: {e}", what()))
}

/// Options of mount(8) as the kernel's flags, propagation apart, and the rest as mount data.
fn parse_options(options: &[String]) -> (MsFlags, Option<MsFlags>, bool, String) {
    let (mut flags, mut propagation, mut recursive_ro, mut data) = (MsFlags::empty(), None, false, Vec::new());
    for option in options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" => flags.remove(MsFlags::MS_RDONLY),
            "rro" => {
                flags |= MsFlags::MS_RDONLY;
                recursive_ro = true;
            }
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "strictatime" => flags |= MsFlags::MS_STRICTATIME,
            "bind" => flags |= MsFlags::MS_BIND,
            "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
            "private" => propagation = Some(MsFlags::MS_PRIVATE),
            "rprivate" => propagation = Some(MsFlags::MS_PRIVATE | MsFlags::MS_REC),
            "slave" => propagation = Some(MsFlags::MS_SLAVE),
            "rslave" => propagation = Some(MsFlags::MS_SLAVE | MsFlags::MS_REC),
            "shared" => propagation = Some(MsFlags::MS_SHARED),
            "rshared" => propagation = Some(MsFlags::MS_SHARED | MsFlags::MS_REC),
            other => data.push(other.to_string()),
        }
    }
    (flags, propagation, recursive_ro, data.join(","))
}

/// The path through which the kernel reaches an open descriptor.
fn fd_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// A root under construction.
struct Tree {
    root: OwnedFd,
    /// Whose what is made in it is, if not the node's root's.
    owner: Option<(u32, u32)>,
}

impl Tree {
    fn open(&self, path: &str) -> io::Result<OwnedFd> {
        sys::open_in_root(self.root.as_fd(), path, libc::O_PATH)
    }

    /// The directory at `path`, made with its parents where missing.
    fn directory(&self, path: &str) -> io::Result<OwnedFd> {
        match self.open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let (parent, name) = split(path).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let parent = self.directory(parent)?;
        match sys::mkdir_at(parent.as_fd(), name, 0o755) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            Err(_) => {}
            Ok(()) => self.own(path)?,
        }
        self.open(path)
    }

    /// Something that was just made belongs to the root of the sandbox's users.
    fn own(&self, path: &str) -> io::Result<()> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        std::os::unix::fs::chown(fd_path(&self.open(path)?), Some(uid), Some(gid))
    }

    /// The file at `path`, made empty with its parents where missing.
    fn file(&self, path: &str) -> io::Result<OwnedFd> {
        match self.open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        if let Some((parent, _)) = split(path) {
            self.directory(parent)?;
        }
        sys::open_in_root(self.root.as_fd(), path, libc::O_WRONLY | libc::O_CREAT)?;
        self.own(path)?;
        self.open(path)
    }

    /// Mounts, and binds the wanted part over it.
    fn mount(&self, m: &Mount, users: Option<&OwnedFd>) -> Result<(), Failure> {
        self.mount_whole(m, users.filter(|_| m.own_users))?;
        if m.inside.is_empty() {
            return Ok(());
        }
        let what = || format!("mounting \"{}\" of \"{}\" at \"{}\"", m.inside, m.source, m.destination);
        let whole = context(self.open(&m.destination), what)?;
        let part = context(sys::open_in_root(whole.as_fd(), &m.inside, libc::O_PATH | libc::O_DIRECTORY), what)?;
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        let (part, whole) = (fd_path(&part), fd_path(&whole));
        context(mount(Some(part.as_str()), whole.as_str(), None::<&str>, bind, None::<&str>), what)
    }

    fn mount_whole(&self, m: &Mount, users: Option<&OwnedFd>) -> Result<(), Failure> {
        let (flags, propagation, recursive_ro, data) = parse_options(&m.options);
        let what = || format!("mounting \"{}\" to rootfs at \"{}\"", m.source, m.destination);
        if m.kind != "bind" {
            let target = context(self.directory(&m.destination), what)?;
            context(
                mount(
                    Some(m.source.as_str()),
                    fd_path(&target).as_str(),
                    Some(m.kind.as_str()),
                    flags,
                    Some(data.as_str()),
                ),
                what,
            )?;
            return Ok(());
        }
        let is_dir = context(std::fs::metadata(&m.source), what)?.is_dir();
        let target = if is_dir { self.directory(&m.destination) } else { self.file(&m.destination) };
        let target = context(target, what)?;
        let bind = MsFlags::MS_BIND | (flags & MsFlags::MS_REC);
        match users {
            None => {
                let at = fd_path(&target);
                context(mount(Some(m.source.as_str()), at.as_str(), None::<&str>, bind, None::<&str>), what)?;
            }
            Some(users) => {
                context(for_users(&m.source, &fd_path(&target), users, flags.contains(MsFlags::MS_REC)), what)?
            }
        }
        // The descriptor still names what lies under the new mount; look again.
        let target = context(self.open(&m.destination), what)?;
        let path = fd_path(&target);
        let attributes = flags - MsFlags::MS_BIND - MsFlags::MS_REC;
        if !attributes.is_empty() {
            let kept = existing_flags(&path);
            context(
                mount(
                    None::<&str>,
                    path.as_str(),
                    None::<&str>,
                    MsFlags::MS_BIND | MsFlags::MS_REMOUNT | attributes | kept,
                    None::<&str>,
                ),
                what,
            )?;
        }
        if recursive_ro {
            let path = CString::new(path.as_str()).map_err(|e| e.to_string())?;
            context(sys::mount_read_only_recursive(&path), || format!("{}, recursively read-only", what()))?;
        }
        if let Some(propagation) = propagation {
            context(mount(None::<&str>, path.as_str(), None::<&str>, propagation, None::<&str>), what)?;
        }
        Ok(())
    }
}

/// Binds a path to another with the owners that the sandbox's users make of its files.
fn for_users(source: &str, target: &str, users: &OwnedFd, recursive: bool) -> io::Result<()> {
    let (source, target) = (CString::new(source)?, CString::new(target)?);
    sys::attach_mount(&sys::mount_for_users(&source, users, recursive)?, &target)
}

/// Flags a bind mount inherits from its source and would lose by a remount.
fn existing_flags(path: &str) -> MsFlags {
    use nix::sys::statvfs::{FsFlags, statvfs};
    let Ok(stat) = statvfs(path) else { return MsFlags::empty() };
    let mut flags = MsFlags::empty();
    for (have, keep) in [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ] {
        if stat.flags().contains(have) {
            flags |= keep;
        }
    }
    flags
}

/// Parent and last name of an absolute path.
fn split(path: &str) -> Option<(&str, &str)> {
    let path = path.trim_end_matches('/');
    let (parent, name) = path.rsplit_once('/')?;
    (!name.is_empty()).then_some((if parent.is_empty() { "/" } else { parent }, name))
}

/// Builds the root and enters it. Runs in the container's mount namespace, before privileges are given up.
pub fn enter(bundle: &Bundle, users: Option<&OwnedFd>) -> Result<(), Failure> {
    isolate(bundle)?;
    if let Some(users) = users {
        own_layers(bundle, users)?;
    }
    mount_overlay(&bundle.rootfs)?;
    let mountpoint = &bundle.rootfs.mountpoint;
    let root = context(
        nix::fcntl::open(
            mountpoint,
            nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        ),
        || "opening the root file system".into(),
    )?;
    let owner = bundle.users.as_ref().and_then(|u| u.on_node(0, 0));
    let tree = Tree { root, owner };
    for m in &bundle.mounts {
        tree.mount(m, users)?;
        if m.destination == "/sys" {
            mount_cgroups(&tree, bundle)?;
        }
        if m.destination == "/dev" && m.kind == "tmpfs" {
            make_devices(&tree, bundle)?;
        }
    }
    pivot(&tree)?;
    hide_paths(bundle)?;
    if bundle.rootfs.readonly {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | existing_flags("/");
        context(mount(None::<&str>, "/", None::<&str>, flags, None::<&str>), || {
            "making the root file system read-only".into()
        })?;
    }
    Ok(())
}

/// Only mounts the root file system, for an OCI runtime that does the rest. Runs in a mount namespace of its own.
pub fn mount_root(bundle: &Bundle) -> Result<(), Failure> {
    isolate(bundle)?;
    mount_overlay(&bundle.rootfs)
}

/// Cuts this namespace's mounts off from the node's, as far as the pod's mount propagation allows.
fn isolate(bundle: &Bundle) -> Result<(), Failure> {
    let bidirectional = bundle.mounts.iter().any(|m| m.options.iter().any(|o| o == "rshared" || o == "shared"));
    if !bidirectional {
        return context(
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>),
            || "making mounts slaves of the node's".into(),
        );
    }
    // A bidirectional mount must stay the peer of its source, so only the mount that ours will hang on is cut off.
    let holder = context(mount_holding(&bundle.rootfs.mountpoint), || "reading /proc/self/mountinfo".into())?;
    context(mount(None::<&str>, holder.as_str(), None::<&str>, MsFlags::MS_PRIVATE, None::<&str>), || {
        format!("making the mount at {holder} private")
    })
}

/// The mount point that a path lies on.
fn mount_holding(path: &Path) -> io::Result<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut best = "/";
    for point in table.lines().filter_map(|line| line.split(' ').nth(4)) {
        if path.starts_with(point) && point.len() > best.len() {
            best = point;
        }
    }
    Ok(best.to_string())
}

/// Image layers seen by this namespace with the sandbox's owners. The writable layer is the sandbox's own by itself: the
/// kernel would not let the node's root, which mounts it, work in it otherwise.
fn own_layers(bundle: &Bundle, users: &OwnedFd) -> Result<(), Failure> {
    use std::os::unix::fs::MetadataExt;
    let Rootfs { layers, upper, .. } = &bundle.rootfs;
    let what = || format!("giving {} to the sandbox's users", layers.display());
    // Nothing of it may reach the node, whatever propagation the mount that it hangs on has.
    let holder = context(mount_holding(layers), what)?;
    context(mount(None::<&str>, holder.as_str(), None::<&str>, MsFlags::MS_PRIVATE, None::<&str>), what)?;
    let path = layers.to_string_lossy();
    context(for_users(&path, &path, users, false), what)?;
    let root = context(std::fs::metadata(upper), what)?;
    if let Some((uid, gid)) = bundle.users.as_ref().and_then(|u| u.on_node(root.uid(), root.gid())) {
        context(std::os::unix::fs::chown(upper, Some(uid), Some(gid)), what)?;
    }
    Ok(())
}

fn mount_overlay(rootfs: &Rootfs) -> Result<(), Failure> {
    // Short relative names: the kernel takes one page of options, and images may have over a hundred layers.
    context(std::env::set_current_dir(&rootfs.layers), || format!("entering {}", rootfs.layers.display()))?;
    let options = |extra: &str| {
        format!(
            "lowerdir={},upperdir={},workdir={}{extra}",
            rootfs.lower.join(":"),
            rootfs.upper.display(),
            rootfs.work.display()
        )
    };
    let attempt = |data: String| {
        mount(Some("overlay"), &rootfs.mountpoint, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
    };
    // Volatile: a container's writable layer need not survive a power cut, so ending one need not wait for the disk.
    let mounted = attempt(options(",volatile")).or_else(|_| attempt(options("")));
    context(mounted, || format!("mounting the root file system at {}", rootfs.mountpoint.display()))
}

fn mount_cgroups(tree: &Tree, bundle: &Bundle) -> Result<(), Failure> {
    let base = "/sys/fs/cgroup";
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME;
    if !bundle.cgroup_writable {
        flags |= MsFlags::MS_RDONLY;
    }
    let several = bundle.cgroup_mounts.iter().any(|m| !m.name.is_empty());
    if several {
        tree.mount(&Mount::new(base, "tmpfs", "tmpfs", &["nosuid", "nodev", "noexec", "mode=755"]), None)?;
    }
    for m in &bundle.cgroup_mounts {
        let at = if m.name.is_empty() { base.to_string() } else { format!("{base}/{}", m.name) };
        let what = || format!("mounting cgroup at \"{at}\"");
        let target = context(tree.directory(&at), what)?;
        let data = (!m.data.is_empty()).then_some(m.data.as_str());
        context(mount(Some("cgroup"), fd_path(&target).as_str(), Some(m.kind.as_str()), flags, data), what)?;
    }
    if several && !bundle.cgroup_writable {
        let target = context(tree.open(base), || format!("opening {base}"))?;
        context(
            mount(
                None::<&str>,
                fd_path(&target).as_str(),
                None::<&str>,
                MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags,
                None::<&str>,
            ),
            || format!("making {base} read-only"),
        )?;
    }
    Ok(())
}

fn make_devices(tree: &Tree, bundle: &Bundle) -> Result<(), Failure> {
    use nix::sys::stat::{Mode, SFlag, fchmodat, makedev, mknodat};
    use nix::unistd::{Gid, Uid, fchownat, symlinkat};
    for device in &bundle.devices {
        let what = || format!("creating device {}", device.path);
        let (parent, name) = split(&device.path).ok_or_else(|| format!("{}: not a path", what()))?;
        let parent = context(tree.directory(parent), what)?;
        let kind = SFlag::from_bits_truncate(device.mode & libc::S_IFMT);
        let mode = Mode::from_bits_truncate(device.mode & 0o7777);
        match mknodat(&parent, name, kind, mode, makedev(device.major, device.minor)) {
            Err(nix::errno::Errno::EEXIST) => continue,
            other => context(other, what)?,
        }
        // mknod is subject to the mask; the wanted mode is exact.
        context(fchmodat(&parent, name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink), what)?;
        context(
            fchownat(
                &parent,
                name,
                Some(Uid::from_raw(device.uid)),
                Some(Gid::from_raw(device.gid)),
                nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
            ),
            what,
        )?;
    }
    let dev = context(tree.open("/dev"), || "opening /dev".into())?;
    for (target, name) in [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
        ("/proc/kcore", "core"),
    ] {
        match symlinkat(target, &dev, name) {
            Err(nix::errno::Errno::EEXIST) => {}
            other => context(other, || format!("linking /dev/{name}"))?,
        }
    }
    Ok(())
}

fn pivot(tree: &Tree) -> Result<(), Failure> {
    let step = |r: nix::Result<()>, what: &str| context(r, || what.to_string());
    use nix::fcntl::{OFlag, open};
    let old = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty());
    let old = context(old, || "opening the node's root".into())?;
    step(nix::unistd::fchdir(&tree.root), "entering the root file system")?;
    step(nix::unistd::pivot_root(".", "."), "changing the root")?;
    // By its descriptor: `.` still is our own root, whose mounts must keep their propagation.
    step(nix::unistd::fchdir(&old), "entering the node's root")?;
    // The node's tree now lies over our root. Letting go of it must not unmount anything on the node.
    step(
        mount(None::<&str>, ".", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>),
        "cutting off the node's mounts",
    )?;
    step(umount2(".", MntFlags::MNT_DETACH), "letting go of the node's mounts")?;
    step(nix::unistd::chdir("/"), "entering the new root")
}

fn hide_paths(bundle: &Bundle) -> Result<(), Failure> {
    for path in &bundle.readonly_paths {
        let what = || format!("making {path} read-only");
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        match mount(Some(path.as_str()), path.as_str(), None::<&str>, bind, None::<&str>) {
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => continue,
            other => context(other, what)?,
        }
        let flags = bind | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | existing_flags(path);
        context(mount(None::<&str>, path.as_str(), None::<&str>, flags, None::<&str>), what)?;
    }
    if bundle.masked_paths.is_empty() {
        return Ok(());
    }
    let null = context(null_device(), || "opening /dev/null".into())?;
    for path in &bundle.masked_paths {
        let what = || format!("hiding {path}");
        match std::fs::metadata(path) {
            Err(_) => continue,
            Ok(meta) if meta.is_dir() => context(
                mount(Some("tmpfs"), path.as_str(), Some("tmpfs"), MsFlags::MS_RDONLY, Some("nr_blocks=1,nr_inodes=1")),
                what,
            )?,
            Ok(_) => context(
                mount(Some(fd_path(&null).as_str()), path.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>),
                what,
            )?,
        }
    }
    Ok(())
}

/// `/dev/null`, proven to be it: an image or volume may have put something else there.
fn null_device() -> io::Result<OwnedFd> {
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::{Mode, fstat, major, minor};
    let fd = open("/dev/null", OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    let stat = fstat(&fd)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFCHR || (major(stat.st_rdev), minor(stat.st_rdev)) != (1, 3) {
        return Err(io::Error::other("it is not the null device"));
    }
    Ok(fd)
}
