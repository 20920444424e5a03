//! The engine's side of its shims: starting them through the zygote and talking to them.
//!
//! Guarantees: a shim that does not answer in time is an error, never a hang; a lost zygote is replaced by the next
//! request.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket, socketpair};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::shim::protocol::{Reply, Request, SOCKET, SandboxRequest};
use crate::shim::sys;

/// How long a shim may take to answer. Starting a container is the slowest; its own limit is shorter.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);

/// Starts shims.
pub struct Zygote {
    exe: PathBuf,
    socket: Mutex<Option<OwnedFd>>,
}

/// The allocator of the program reads this.
const ALLOCATOR_SETTING: &str = "_RJEM_MALLOC_CONF";
/// A shim waits almost all its life, and there are many: what it frees goes back to the kernel at once.
const ALLOCATOR_KEEPS_NOTHING: &str = "narenas:1,tcache:false,dirty_decay_ms:0,muzzy_decay_ms:0";

impl Zygote {
    /// One that re-executes `exe` as `exe shim zygote`.
    pub fn new(exe: PathBuf) -> Zygote {
        Zygote { exe, socket: Mutex::new(None) }
    }

    fn start(&self) -> Result<OwnedFd> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let mut child = Command::new(&self.exe)
            .args(["shim", "zygote"])
            .env(ALLOCATOR_SETTING, ALLOCATOR_KEEPS_NOTHING)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {} shim zygote", self.exe.display()))?;
        // Reaped whenever it ends, which is with the engine as a rule.
        std::thread::Builder::new().name("zygote".into()).stack_size(64 * 1024).spawn(move || child.wait())?;
        Ok(ours)
    }

    /// Forks a shim and returns the connection on which it will report, first of all that it is ready.
    fn fork(&self, request: &SandboxRequest) -> Result<Connection> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let packet = serde_json::to_vec(request)?;
        let mut guard = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        for fresh in [false, true] {
            if fresh || guard.is_none() {
                *guard = Some(self.start()?);
            }
            if let Some(socket) = guard.as_ref() {
                match sys::send_packet(socket.as_fd(), &packet, &[theirs.as_raw_fd()]) {
                    Ok(()) => return Connection::new(ours),
                    Err(error) if fresh => return Err(error).context("asking for a shim"),
                    Err(_) => {}
                }
            }
        }
        bail!("no zygote")
    }

    /// Starts a shim; returns its connection (already watching), its process and its PID namespace's init or 0.
    pub async fn spawn(&self, request: &SandboxRequest) -> Result<(Connection, i32, i32)> {
        // One packet to a process that does nothing else; only the very first call starts a program.
        let connection = self.fork(request)?;
        match connection.receive_in_time().await?.0 {
            Reply::Ready { pid, init } => Ok((connection, pid, init)),
            Reply::Error { message } => bail!("{message}"),
            other => bail!("a shim answered {other:?}"),
        }
    }
}

/// A connection to a shim.
pub struct Connection {
    /// Sequenced packets rather than a stream: only used for readiness and its descriptor.
    socket: UnixStream,
}

impl Connection {
    fn new(fd: OwnedFd) -> Result<Connection> {
        sys::set_nonblocking(fd.as_fd())?;
        Ok(Connection { socket: UnixStream::from_std(std::os::unix::net::UnixStream::from(fd))? })
    }

    /// To the shim of a sandbox's run-time directory.
    pub fn open(dir: &Path) -> Result<Connection> {
        let socket =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        // Through the directory's descriptor: the full path may be longer than a socket address holds.
        let dir = std::fs::File::open(dir)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
        connect(socket.as_raw_fd(), &UnixAddr::new(path.as_str())?).context("connecting to the shim")?;
        Connection::new(socket)
    }

    /// Sends a request.
    pub async fn send(&self, request: &Request, fds: &[RawFd]) -> Result<()> {
        let packet = serde_json::to_vec(request)?;
        self.socket
            .async_io(Interest::WRITABLE, || sys::send_packet(self.socket.as_fd(), &packet, fds))
            .await
            .context("asking the shim")
    }

    /// The next packet, however long it takes; `None` when the shim has closed.
    pub async fn receive(&self) -> Result<Option<(Reply, Vec<OwnedFd>)>> {
        let packet = self.socket.async_io(Interest::READABLE, || sys::receive_packet(self.socket.as_fd())).await;
        match packet {
            Ok(None) => Ok(None),
            Ok(Some((packet, fds))) => Ok(Some((serde_json::from_slice(&packet).context("a shim's answer")?, fds))),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(e) => Err(e).context("hearing from the shim"),
        }
    }

    async fn receive_in_time(&self) -> Result<(Reply, Vec<OwnedFd>)> {
        match tokio::time::timeout(ANSWER_TIMEOUT, self.receive()).await {
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None)) => bail!("the shim has gone"),
            Ok(Err(error)) => Err(error),
            Err(_) => bail!("the shim did not answer within {} s", ANSWER_TIMEOUT.as_secs()),
        }
    }

    /// Sends a request and returns its answer; a refusal is an error.
    pub async fn ask(&self, request: &Request, fds: &[RawFd]) -> Result<(Reply, Vec<OwnedFd>)> {
        self.send(request, fds).await?;
        match self.receive_in_time().await? {
            (Reply::Error { message }, _) => Err(Refused(message).into()),
            answer => Ok(answer),
        }
    }
}

/// What a shim answered instead of doing it: a message for the user, as against a shim that cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// One request on a connection of its own.
pub async fn ask(dir: &Path, request: &Request) -> Result<Reply> {
    Ok(Connection::open(dir)?.ask(request, &[]).await?.0)
}
