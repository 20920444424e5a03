//! A layer archive becomes a directory that overlayfs can use as a lower layer.
//!
//! The archive is applied to an overlay of the layers below it, inside a private mount namespace, so that whiteouts,
//! links into lower layers and symbolic links on the way mean exactly what they meant to the image's builder; what the
//! overlay collected in its upper directory is the layer.
//!
//! Guarantees: an entry cannot reach outside the layer, whatever its name, links or order; the bytes read match the
//! announced digest; a layer that failed leaves nothing behind.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, makedev, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};
use sha2::{Digest, Sha256};

/// Most entries of one layer: beyond any real image, below what would exhaust inodes unnoticed.
const MAX_ENTRIES: usize = 4_000_000;
/// Most unpacked bytes of one layer: a small archive must not fill the disk by compression alone.
const MAX_UNPACKED: u64 = 256 << 30;

/// Where a layer is built.
pub struct Site<'a> {
    /// Directory that `lower` is relative to.
    pub layers: &'a Path,
    /// The layers below, topmost first.
    pub lower: &'a [String],
    /// A new directory, made here, which becomes the layer.
    pub upper: &'a Path,
    /// Scratch space on the same file system, made and removed here.
    pub scratch: &'a Path,
}

/// Counts and hashes what passes.
pub struct Hashing<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
    limit: u64,
}

impl<R: Read> Hashing<R> {
    /// Passes on at most `limit` bytes.
    pub fn new(inner: R, limit: u64) -> Self {
        Hashing { inner, hash: Sha256::new(), bytes: 0, limit }
    }

    /// Reads what is left and returns the digest and length of everything.
    pub fn finish(mut self) -> io::Result<(String, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((format!("sha256:{}", hex(&self.hash.finalize())), self.bytes))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        self.bytes += n as u64;
        if self.bytes > self.limit {
            return Err(io::Error::other(format!("larger than {} bytes", self.limit)));
        }
        Ok(n)
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, b| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{b:02x}");
        text
    })
}

/// `sha256:` of some bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Undoes gzip or zstd, told by the first bytes; other data passes unchanged.
pub fn decompress<'a>(mut source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0u8; 4];
    let mut have = 0;
    while have < magic.len() {
        match source.read(&mut magic[have..])? {
            0 => break,
            n => have += n,
        }
    }
    let whole = io::Cursor::new(magic[..have].to_vec()).chain(source);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(io::BufReader::with_capacity(128 << 10, whole))),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(whole)?),
        _ => Box::new(whole),
    })
}

/// Unpacks one layer. `digest` is that of the archive as stored, `diff_id` that of the archive uncompressed.
pub fn layer(source: impl Read + Send, digest: Option<&str>, diff_id: &str, site: &Site<'_>) -> Result<u64> {
    let work = site.scratch.join("work");
    let merged = site.scratch.join("merged");
    let empty = site.scratch.join("empty");
    for dir in [&work, &merged, &empty, &site.upper.to_path_buf()] {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    // A thread of its own: its mount namespace ends with it, and the overlay with that.
    let outcome = std::thread::scope(|scope| {
        let build = || -> Result<u64> {
            mount_overlay(site, &empty, &work, &merged)?;
            let compressed = Hashing::new(source, MAX_UNPACKED);
            apply_verified(compressed, digest, diff_id, &merged)
        };
        let thread = std::thread::Builder::new().name("unpack".into()).spawn_scoped(scope, build)?;
        thread.join().unwrap_or_else(|_| bail!("the unpacking thread died"))
    });
    let _ = std::fs::remove_dir_all(site.scratch);
    if outcome.is_err() {
        let _ = std::fs::remove_dir_all(site.upper);
    }
    outcome
}

fn mount_overlay(site: &Site<'_>, empty: &Path, work: &Path, merged: &Path) -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).context("creating a mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
        .context("cutting off the node's mounts")?;
    // The working directory is this thread's own since it left the others' namespace.
    nix::unistd::chdir(site.layers)?;
    let mut lower: Vec<String> = site.lower.to_vec();
    lower.push(empty.display().to_string());
    let base = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), site.upper.display(), work.display());
    // Neither renamed directories nor copied-up metadata may be stored as references to the layers below.
    let attempts = [format!("{base},redirect_dir=off,metacopy=off,index=off"), base];
    let mut last = Ok(());
    for data in &attempts {
        last = mount(Some("overlay"), merged, Some("overlay"), MsFlags::empty(), Some(data.as_str()));
        if last.is_ok() {
            break;
        }
    }
    last.context("mounting an overlay to unpack a layer")
}

fn apply_verified(mut compressed: Hashing<impl Read>, digest: Option<&str>, diff_id: &str, root: &Path) -> Result<u64> {
    let (diff, size) = {
        let mut archive = Hashing::new(decompress(&mut compressed)?, MAX_UNPACKED);
        apply(&mut archive, root)?;
        archive.finish().context("reading the layer")?
    };
    let (stored, _) = compressed.finish()?;
    if let Some(digest) = digest
        && stored != digest
    {
        bail!("layer digest mismatch: expected {digest}, got {stored}");
    }
    if diff != diff_id {
        bail!("layer content mismatch: expected {diff_id}, got {diff}");
    }
    Ok(size)
}

fn apply(archive: impl Read, root: &Path) -> Result<()> {
    let root = Root::open(root)?;
    let mut archive = tar::Archive::new(archive);
    // Directory times are set last: creating entries inside changes them.
    let mut directories: Vec<(PathBuf, u64)> = Vec::new();
    let mut here: std::collections::HashSet<PathBuf> = std::collections::HashSet::new();
    for (count, entry) in archive.entries()?.enumerate() {
        if count >= MAX_ENTRIES {
            bail!("the layer has more than {MAX_ENTRIES} entries");
        }
        let mut entry = entry.context("reading the layer archive")?;
        let path = clean(&entry.path()?).with_context(|| format!("entry {count}"))?;
        let shown = path.display().to_string();
        root.extract(&mut entry, &path, &mut directories, &mut here)
            .with_context(|| format!("unpacking \"{shown}\""))?;
        let mut prefix = path;
        while !prefix.as_os_str().is_empty() && here.insert(prefix.clone()) {
            prefix.pop();
        }
    }
    for (path, mtime) in directories.iter().rev() {
        if let Ok((parent, name)) = root.parent(path) {
            let time = TimeSpec::new(*mtime as i64, 0);
            let _ = utimensat(&parent, name.as_os_str(), &time, &time, UtimensatFlags::NoFollowSymlink);
        }
    }
    Ok(())
}

/// A path of an archive without `.`, empty parts or a leading slash. `..` is refused.
fn clean(path: &Path) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => bail!("\"{}\" leads out of the layer", path.display()),
        }
    }
    Ok(clean)
}

/// The directory being filled. Every path is resolved with it as `/`.
struct Root {
    fd: OwnedFd,
}

impl Root {
    fn open(path: &Path) -> Result<Root> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Root { fd: nix::fcntl::open(path, flags, Mode::empty())? })
    }

    fn resolve(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        openat2(&self.fd, path, how)
    }

    fn directory(&self, path: &Path) -> Result<OwnedFd> {
        match self.resolve(path, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(fd) => Ok(fd),
            Err(nix::errno::Errno::ENOENT) if !path.as_os_str().is_empty() => {
                let (parent, name) = self.parent(path)?;
                match mkdirat(&parent, name.as_os_str(), Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                    Err(e) => return Err(e.into()),
                }
                Ok(self.resolve(path, OFlag::O_PATH | OFlag::O_DIRECTORY)?)
            }
            Err(e) => Err(e.into()),
        }
    }

    fn parent(&self, path: &Path) -> Result<(OwnedFd, std::ffi::OsString)> {
        let name = path.file_name().context("the root itself")?.to_os_string();
        Ok((self.directory(path.parent().unwrap_or(Path::new("")))?, name))
    }

    fn extract(
        &self,
        entry: &mut tar::Entry<'_, impl Read>,
        path: &Path,
        directories: &mut Vec<(PathBuf, u64)>,
        here: &mut std::collections::HashSet<PathBuf>,
    ) -> Result<()> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        if path.as_os_str().is_empty() {
            // The root directory: its owner and mode, if it is one.
            if kind.is_dir() {
                let mode = Mode::from_bits_truncate(mode_of(entry)?);
                let (uid, gid) = owner(entry)?;
                fchownat(&self.fd, ".", Some(uid), Some(gid), AtFlags::empty())?;
                fchmodat(&self.fd, ".", mode, FchmodatFlags::FollowSymlink)?;
            }
            return Ok(());
        }
        let (parent, name) = self.parent(path)?;
        if let Some(target) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(&parent, path, target, here);
        }
        let existing = nix::sys::stat::fstatat(&parent, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW).ok();
        let is_dir = existing.is_some_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFDIR);
        if existing.is_some() && !(is_dir && kind.is_dir()) {
            remove(&parent, &name)?;
        }
        if kind.is_hard_link() {
            let target = clean(&entry.link_name()?.context("a hard link without target")?)?;
            let (target_parent, target_name) = self.parent(&target)?;
            nix::unistd::linkat(&target_parent, target_name.as_os_str(), &parent, name.as_os_str(), AtFlags::empty())
                .with_context(|| format!("linking to \"{}\"", target.display()))?;
            return Ok(());
        }
        let mode = mode_of(entry)?;
        let bits = Mode::from_bits_truncate(mode);
        match kind {
            tar::EntryType::Directory => {
                if !is_dir {
                    mkdirat(&parent, name.as_os_str(), Mode::from_bits_truncate(0o700))?;
                }
                directories.push((path.to_path_buf(), entry.header().mtime().unwrap_or(0)));
            }
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let fd = nix::fcntl::openat(&parent, name.as_os_str(), flags, Mode::from_bits_truncate(0o600))?;
                io::copy(entry, &mut std::fs::File::from(fd))?;
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name_bytes().context("a symbolic link without target")?;
                symlinkat(OsStr::from_bytes(&target), &parent, name.as_os_str())?;
            }
            tar::EntryType::Char | tar::EntryType::Block | tar::EntryType::Fifo => {
                let (flag, device) = match kind {
                    tar::EntryType::Fifo => (SFlag::S_IFIFO, 0),
                    other => {
                        let header = entry.header();
                        let device = makedev(
                            header.device_major()?.unwrap_or(0).into(),
                            header.device_minor()?.unwrap_or(0).into(),
                        );
                        // Character device 0/0 is overlayfs's own whiteout; no image can want that.
                        if device == 0 {
                            bail!("device 0/0 is not allowed");
                        }
                        (if other == tar::EntryType::Char { SFlag::S_IFCHR } else { SFlag::S_IFBLK }, device)
                    }
                };
                mknodat(&parent, name.as_os_str(), flag, bits, device)?;
            }
            other => bail!("unsupported entry type {other:?}"),
        }
        self.set_metadata(entry, kind, &parent, &name, bits)
    }

    fn set_metadata(
        &self,
        entry: &mut tar::Entry<'_, impl Read>,
        kind: tar::EntryType,
        parent: &OwnedFd,
        name: &OsStr,
        mode: Mode,
    ) -> Result<()> {
        let (uid, gid) = owner(entry)?;
        fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let mtime = TimeSpec::new(entry.header().mtime().unwrap_or(0) as i64, 0);
        let at = PathBuf::from(format!("/proc/self/fd/{}", parent.as_fd().as_raw_fd())).join(name);
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions {
                let extension = extension?;
                let Some(attribute) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
                // The overlay's own attributes steer the kernel; an image has no business setting them.
                if attribute.starts_with(b"trusted.") {
                    continue;
                }
                match xattr::set(&at, OsStr::from_bytes(attribute), extension.value_bytes()) {
                    Err(e) if e.raw_os_error() == Some(libc::ENOTSUP) => {}
                    other => {
                        other.with_context(|| format!("setting attribute {}", String::from_utf8_lossy(attribute)))?
                    }
                }
            }
        }
        if kind != tar::EntryType::Symlink {
            // After the owner: changing that clears the set-user-id bits.
            fchmodat(parent, name, mode, FchmodatFlags::FollowSymlink)?;
        }
        utimensat(parent, name, &mtime, &mtime, UtimensatFlags::NoFollowSymlink)?;
        Ok(())
    }

    /// `.wh.NAME` removes NAME of the layers below; `.wh..wh..opq` removes all that they have in this directory.
    fn whiteout(
        &self,
        parent: &OwnedFd,
        path: &Path,
        target: &[u8],
        here: &std::collections::HashSet<PathBuf>,
    ) -> Result<()> {
        if target != b".wh..opq" {
            if target.is_empty() || target == b"." || target == b".." {
                bail!("a whiteout of nothing");
            }
            // Other names beginning so are builders' bookkeeping.
            if target.starts_with(b".wh.") {
                return Ok(());
            }
            return remove(parent, OsStr::from_bytes(target));
        }
        let dir = path.parent().unwrap_or(Path::new(""));
        let listing = self.resolve(dir, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let names: Vec<_> =
            nix::dir::Dir::from_fd(listing)?.iter().filter_map(|e| e.ok().map(|e| e.file_name().to_owned())).collect();
        for name in names {
            let name = OsStr::from_bytes(name.to_bytes());
            // What this layer itself has put there stays, whichever came first.
            if name != "." && name != ".." && !here.contains(&dir.join(name)) {
                remove(parent, name)?;
            }
        }
        Ok(())
    }
}

/// Many writers leave fields that they have no use for empty, which means zero.
fn field(raw: &[u8], parsed: io::Result<u64>) -> io::Result<u64> {
    if raw.iter().all(|b| *b == 0 || *b == b' ') { Ok(0) } else { parsed }
}

fn mode_of(entry: &tar::Entry<'_, impl Read>) -> Result<u32> {
    let header = entry.header();
    Ok(field(&header.as_old().mode, header.mode().map(u64::from))? as u32 & 0o7777)
}

fn owner(entry: &tar::Entry<'_, impl Read>) -> Result<(Uid, Gid)> {
    let id = |n: u64| u32::try_from(n).context("an owner above 2^32");
    let header = entry.header();
    let (uid, gid) = (field(&header.as_old().uid, header.uid())?, field(&header.as_old().gid, header.gid())?);
    Ok((Uid::from_raw(id(uid)?), Gid::from_raw(id(gid)?)))
}

/// Removes a name and everything under it; never follows a symbolic link. Absence is fine.
fn remove(parent: &OwnedFd, name: &OsStr) -> Result<()> {
    use nix::errno::Errno;
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = nix::fcntl::openat(parent, name, flags, Mode::empty())?;
    let names: Vec<_> = nix::dir::Dir::from_fd(dir.try_clone()?)?
        .iter()
        .filter_map(|e| e.ok().map(|e| e.file_name().to_owned()))
        .collect();
    for child in names {
        let child = OsStr::from_bytes(child.to_bytes());
        if child != "." && child != ".." {
            remove(&dir, child)?;
        }
    }
    Ok(unlinkat(parent, name, UnlinkatFlags::RemoveDir)?)
}
