//! Named network namespaces, as `ip netns` keeps them, and doing things inside one.
//!
//! A namespace belongs to a thread, so everything here that must happen inside one happens on a short-lived thread of
//! its own ([`within`]): no thread of the process ever changes sides, except through [`enter`], which a process calls
//! before it has other threads. A socket stays in the namespace it was made in, whoever uses it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use tokio::net::{TcpSocket, TcpStream};

/// Where `ip netns` looks for names.
pub const NAMED: &str = "/run/netns";

/// The stack of a thread that makes one socket or a few netlink requests, in bytes.
const STACK_BYTES: usize = 256 << 10;

/// The file that names a namespace.
pub fn path(name: &str) -> PathBuf {
    Path::new(NAMED).join(name)
}

/// Whether `path` is a live namespace, not merely the file a crash left behind.
pub fn exists(path: &Path) -> bool {
    statfs(path).is_ok_and(|info| info.filesystem_type() == NSFS_MAGIC)
}

/// Moves the calling thread into a node's namespace and gives it the node's host name: pods on the host's network see it
/// as theirs. Threads started later inherit both, threads already running do not: so a process that lives inside a
/// namespace calls this first of all.
pub fn enter(namespace: &Path) -> io::Result<()> {
    step_into(namespace)?;
    let name = namespace.file_name().and_then(|name| name.to_str()).and_then(|name| name.rsplit_once("-node-"));
    if let Some((_, number)) = name {
        unshare(CloneFlags::CLONE_NEWUTS)?;
        nix::unistd::sethostname(format!("node-{number}"))?;
    }
    Ok(())
}

fn step_into(namespace: &Path) -> io::Result<()> {
    let file = std::fs::File::open(namespace)?;
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

/// Runs `work` inside a namespace, on a thread of its own.
pub fn within<T: Send>(namespace: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).stack_size(STACK_BYTES);
        let running = thread.spawn_scoped(scope, || {
            step_into(namespace)?;
            work()
        })?;
        running.join().unwrap_or_else(|_| Err(io::Error::other("the namespace's thread panicked")))
    })
}

/// A listening socket inside a namespace.
pub fn listen_in(namespace: &Path, address: SocketAddr) -> io::Result<TcpListener> {
    within(namespace, || TcpListener::bind(address))
}

/// Connects from inside a namespace. Only the socket is made there; the wait for the other side is the caller's.
pub async fn connect_in(namespace: &Path, address: SocketAddr) -> io::Result<TcpStream> {
    let namespace = namespace.to_path_buf();
    let (done, socket) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netns-dial".into()).stack_size(STACK_BYTES).spawn(move || {
        let made = step_into(&namespace).and_then(|()| match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        });
        // The receiver is gone when the caller gave up: then the socket is closed right here.
        let _ = done.send(made);
    })?;
    let socket = socket.await.map_err(|_| io::Error::other("the namespace's thread panicked"))??;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Makes a named namespace, unless it lives already; says whether it did.
pub fn create(name: &str) -> io::Result<bool> {
    let target = path(name);
    if exists(&target) {
        return Ok(false);
    }
    share_the_directory()?;
    // A file that names nothing is what a crash between the two steps leaves; it serves as the mount point again.
    std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&target)?;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns-new".into()).stack_size(STACK_BYTES);
        let running = thread.spawn_scoped(scope, || -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(())
        })?;
        running.join().unwrap_or_else(|_| Err(io::Error::other("the namespace's thread panicked")))
    })?;
    Ok(true)
}

/// Takes a namespace's name away. It dies with the last process and socket inside it.
pub fn remove(name: &str) -> io::Result<()> {
    let target = path(name);
    match umount2(&target, MntFlags::MNT_DETACH) {
        // EINVAL: a plain file, not a mount.
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    match std::fs::remove_file(&target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The names under `ip netns` that `wanted` accepts.
pub fn named(wanted: impl Fn(&str) -> bool) -> io::Result<Vec<String>> {
    let directory = match std::fs::read_dir(NAMED) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in directory {
        if let Ok(name) = entry?.file_name().into_string()
            && wanted(&name)
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Makes the directory a shared mount, as `ip netns` does, so that a name made here is seen (and can be removed) from
/// every mount namespace.
fn share_the_directory() -> io::Result<()> {
    std::fs::create_dir_all(NAMED)?;
    let share = || mount(None::<&str>, NAMED, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        Ok(()) => Ok(()),
        // Not a mount of its own yet.
        Err(Errno::EINVAL) => {
            mount(Some(NAMED), NAMED, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
            Ok(share()?)
        }
        Err(errno) => Err(errno.into()),
    }
}
