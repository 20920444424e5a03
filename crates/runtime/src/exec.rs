//! Commands in running containers: to their end, or handed to a streaming session.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use crate::engine::{Container, Engine};
use crate::shim::protocol::{Reply, Request};
use crate::shim_client::Connection;

/// Most output of a synchronous command that is kept, in bytes, as CRI wants.
const MAX_EXEC_OUTPUT: usize = 16 << 20;
/// How long an ended command's streams may stay open in silence: what it left in the background may hold them.
const SILENCE: Duration = Duration::from_secs(1);

/// A command's outcome.
pub struct ExecOutput {
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it complained.
    pub stderr: Vec<u8>,
    /// 128 + signal if killed.
    pub code: i32,
}

/// How a command relates to who started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecKind {
    /// It is killed when its connection closes.
    Tied,
    /// It goes on without.
    Free,
    /// It goes on without, on a terminal that hangs up.
    Terminal,
}

/// A command did not end in time and was killed.
#[derive(Debug, thiserror::Error)]
#[error("command timed out: timeout {0:?} exceeded")]
pub struct TimedOut(pub Duration);

impl Engine {
    /// Runs a command in a container to its end. Zero: no time limit.
    pub async fn exec_sync(&self, container: &Container, args: Vec<String>, timeout: Duration) -> Result<ExecOutput> {
        let (out, stdout) = pipe()?;
        let (err, stderr) = pipe()?;
        let connection = self.begin_exec(container, args, ExecKind::Tied, [None, Some(stdout), Some(stderr)]).await?.0;
        let (stdout, stderr) = (Kept::default(), Kept::default());
        let over = CancellationToken::new();
        let readers = [(out, stdout.clone()), (err, stderr.clone())]
            .map(|(fd, kept)| tokio::spawn(read_limited(fd, kept, over.clone())));
        let _stop = AbortOnDrop(readers.iter().map(|t| t.abort_handle()).collect());
        let ended = async {
            loop {
                match connection.receive().await? {
                    Some((Reply::ExecExited { code }, _)) => return anyhow::Ok(code),
                    Some(_) => {}
                    None => bail!("the container's shim has gone"),
                }
            }
        };
        let limit = if timeout.is_zero() { Duration::from_secs(u32::MAX.into()) } else { timeout };
        let code = match tokio::time::timeout(limit, ended).await {
            Ok(code) => code?,
            Err(_) => {
                connection.send(&Request::KillExec, &[]).await?;
                return Err(TimedOut(timeout).into());
            }
        };
        over.cancel();
        futures::future::join_all(readers).await;
        let take = |kept: Kept| std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(ExecOutput { stdout: take(stdout), stderr: take(stderr), code })
    }

    /// Starts a command in a container with the given streams; returns its connection and, if asked for, the master
    /// of its terminal.
    pub async fn begin_exec(
        &self,
        container: &Container,
        args: Vec<String>,
        kind: ExecKind,
        streams: [Option<OwnedFd>; 3],
    ) -> Result<(Connection, Option<OwnedFd>)> {
        let record = container.record();
        if !record.running() {
            bail!(
                "container is in {} state",
                if record.finished_at != 0 { "CONTAINER_EXITED" } else { "CONTAINER_CREATED" }
            );
        }
        if args.is_empty() {
            bail!("no command specified");
        }
        let connection = Connection::open(&self.sandbox_state_dir(&record.sandbox_id))?;
        let stdio = [streams[0].is_some(), streams[1].is_some(), streams[2].is_some()];
        let fds: Vec<RawFd> = streams.iter().flatten().map(AsRawFd::as_raw_fd).collect();
        let (tty, tied) = (kind == ExecKind::Terminal, kind == ExecKind::Tied);
        let request = Request::Exec { id: container.id.clone(), args, tty, stdio, tied };
        let (_, mut received) = connection.ask(&request, &fds).await.context("failed to exec in container")?;
        Ok((connection, received.pop()))
    }
}

/// A pipe, closed in children unless passed on.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

/// Output as far as it has been read.
type Kept = Arc<Mutex<Vec<u8>>>;

/// Ends tasks with its own end.
struct AbortOnDrop(Vec<tokio::task::AbortHandle>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

/// A read of a command's stream: zero at its end, and when the command is over and then nothing comes for a while.
/// All that a command wrote before its end is there to read once its end is known, so none of it is missed, however
/// slow whoever takes it is.
pub async fn read_on(read: impl Future<Output = std::io::Result<usize>>, over: &CancellationToken) -> usize {
    tokio::select! {
        biased;
        read = read => read.unwrap_or(0),
        () = async { over.cancelled().await; tokio::time::sleep(SILENCE).await } => 0,
    }
}

/// Reads to the end, keeping the first part.
async fn read_limited(fd: OwnedFd, kept: Kept, over: CancellationToken) {
    let Ok(mut pipe) = tokio::net::unix::pipe::Receiver::from_owned_fd(fd) else { return };
    let mut buffer = vec![0u8; 16 * 1024];
    loop {
        let n = read_on(pipe.read(&mut buffer), &over).await;
        if n == 0 {
            break;
        }
        let mut all = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_EXEC_OUTPUT - all.len();
        all.extend_from_slice(&buffer[..n.min(room)]);
    }
}
