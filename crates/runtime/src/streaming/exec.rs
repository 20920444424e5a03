//! Exec and attach sessions: a container's streams on one side, a client's channels on the other.
//!
//! Guarantees: all output of the process reaches the client before its end is told; a client that goes away lets go
//! of everything; the process then sees what it would see of a closed terminal or pipe.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::channel::{Channels, Outgoing, Output, StatusFormat};
use crate::engine::Engine;
use crate::exec::{ExecKind, pipe as new_pipe, read_on};
use crate::shim::protocol::{Reply, Request};
use crate::shim::sys;
use crate::shim_client::{Connection, ask};
use cri::v1::{AttachRequest, ExecRequest};

/// One read, in bytes.
const CHUNK: usize = 32 * 1024;

/// A terminal's master. The type serves only to wait until it is ready.
struct Terminal(UnixStream);

impl Terminal {
    fn new(fd: OwnedFd) -> io::Result<Terminal> {
        sys::set_nonblocking(fd.as_fd())?;
        UnixStream::from_std(std::os::unix::net::UnixStream::from(fd)).map(Terminal)
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.async_io(Interest::READABLE, || Ok(nix::unistd::read(&self.0, buffer)?)).await;
        match read {
            // Nobody holds the terminal open any more.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(0),
            other => other,
        }
    }

    async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let n = self.0.async_io(Interest::WRITABLE, || Ok(nix::unistd::write(&self.0, data)?)).await?;
            data = &data[n..];
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Copies a pipe to a channel until either ends, and ends the channel.
async fn pump_out(from: OwnedFd, to: Output, over: CancellationToken) {
    if let Ok(mut from) = pipe::Receiver::from_owned_fd(from) {
        let mut buffer = vec![0u8; CHUNK];
        loop {
            let n = read_on(from.read(&mut buffer), &over).await;
            if n == 0 || to.write(Bytes::copy_from_slice(&buffer[..n])).await.is_err() {
                break;
            }
        }
    }
    to.finish().await;
}

/// Copies a channel to a pipe until either ends, and closes the pipe.
async fn pump_in(mut from: mpsc::Receiver<Bytes>, to: OwnedFd) {
    if let Ok(mut to) = pipe::Sender::from_owned_fd(to) {
        while let Some(data) = from.recv().await {
            if to.write_all(&data).await.is_err() {
                break;
            }
        }
    }
}

/// Tasks that end with their owner.
#[derive(Default)]
struct Tasks {
    running: Vec<tokio::task::JoinHandle<()>>,
    /// The process is over: what it wrote is still passed on, and nothing is waited for.
    over: CancellationToken,
}

impl Tasks {
    fn add(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.running.push(tokio::spawn(task));
    }

    /// Passes on all that the process wrote, as slowly as the client takes it.
    async fn drain(&mut self, alive: &mut mpsc::Receiver<std::convert::Infallible>) {
        self.over.cancel();
        tokio::select! {
            _ = futures::future::join_all(self.running.iter_mut()) => {}
            _ = alive.recv() => {}
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.running.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Standard input, output and error, as far as wanted.
type Streams = [Option<OwnedFd>; 3];

/// The ends of three pipes: ours and the process's.
fn pipes(channels: &Channels) -> Result<(Streams, Streams)> {
    let (mut ours, mut theirs) = ([None, None, None], [None, None, None]);
    let wanted = [channels.stdin.is_some(), channels.stdout.is_some(), channels.stderr.is_some()];
    for (at, _) in wanted.iter().enumerate().filter(|(_, wanted)| **wanted) {
        let (read, write) = new_pipe()?;
        (ours[at], theirs[at]) = if at == 0 { (Some(write), Some(read)) } else { (Some(read), Some(write)) };
    }
    Ok((ours, theirs))
}

fn start_pumps(channels: &mut Channels, ours: [Option<OwnedFd>; 3], inputs: &mut Tasks, outputs: &mut Tasks) {
    let [stdin, stdout, stderr] = ours;
    if let (Some(fd), Some(from)) = (stdin, channels.stdin.take()) {
        inputs.add(pump_in(from, fd));
    }
    for (fd, to) in [(stdout, channels.stdout.take()), (stderr, channels.stderr.take())] {
        if let (Some(fd), Some(to)) = (fd, to) {
            outputs.add(pump_out(fd, to, outputs.over.clone()));
        }
    }
}

/// Runs an exec session to its end.
pub async fn exec(engine: Arc<Engine>, container: &str, request: ExecRequest, mut channels: Channels) {
    let (error, status, connection) = (channels.error.clone(), channels.status, channels.connection.clone());
    let outcome = run_exec(&engine, container, request, &mut channels).await;
    let outcome = outcome.map(|code| code.unwrap_or(0));
    report(&error, status, outcome).await;
    // A client that is gone has closed already.
    let _ = connection.send(Outgoing::Close).await;
}

/// The process's exit code, or nothing if the client has gone first.
async fn run_exec(
    engine: &Engine,
    container: &str,
    request: ExecRequest,
    channels: &mut Channels,
) -> Result<Option<i32>> {
    let container = engine.container(container).context("the container is gone")?;
    let (mut inputs, mut outputs) = (Tasks::default(), Tasks::default());
    let process = if request.tty {
        let (process, master) =
            engine.begin_exec(&container, request.cmd, ExecKind::Terminal, [None, None, None]).await?;
        let terminal = Arc::new(Terminal::new(master.context("no terminal came back")?)?);
        serve_terminal(&terminal, channels, &mut inputs, &mut outputs);
        process
    } else {
        let (ours, theirs) = pipes(channels)?;
        let (process, _) = engine.begin_exec(&container, request.cmd, ExecKind::Free, theirs).await?;
        start_pumps(channels, ours, &mut inputs, &mut outputs);
        process
    };
    let code = tokio::select! {
        code = exit_code(&process) => code?,
        _ = channels.alive.recv() => return Ok(None),
    };
    outputs.drain(&mut channels.alive).await;
    Ok(Some(code))
}

fn serve_terminal(terminal: &Arc<Terminal>, channels: &mut Channels, inputs: &mut Tasks, outputs: &mut Tasks) {
    if let Some(mut stdin) = channels.stdin.take() {
        let terminal = terminal.clone();
        inputs.add(async move {
            while let Some(data) = stdin.recv().await {
                if terminal.write_all(&data).await.is_err() {
                    break;
                }
            }
        });
    }
    if let Some(mut resize) = channels.resize.take() {
        let terminal = terminal.clone();
        inputs.add(async move {
            while let Some(data) = resize.recv().await {
                for size in sizes(&data) {
                    // A size that the kernel refuses changes nothing.
                    let _ = sys::resize_terminal(terminal.0.as_fd(), size.width, size.height);
                }
            }
        });
    }
    let (terminal, stdout, over) = (terminal.clone(), channels.stdout.take(), outputs.over.clone());
    outputs.add(async move {
        let mut buffer = vec![0u8; CHUNK];
        loop {
            let n = read_on(terminal.read(&mut buffer), &over).await;
            if n == 0 {
                break;
            }
            if let Some(stdout) = &stdout
                && stdout.write(Bytes::copy_from_slice(&buffer[..n])).await.is_err()
            {
                break;
            }
        }
        if let Some(stdout) = stdout {
            stdout.finish().await;
        }
    });
}

fn sizes(data: &[u8]) -> Vec<Size> {
    serde_json::Deserializer::from_slice(data).into_iter().map_while(Result::ok).collect()
}

async fn exit_code(process: &Connection) -> Result<i32> {
    loop {
        match process.receive().await? {
            Some((Reply::ExecExited { code }, _)) => return Ok(code),
            Some(_) => {}
            None => bail!("the container's shim has gone"),
        }
    }
}

/// Runs an attach session to its end.
pub async fn attach(engine: Arc<Engine>, container: &str, request: AttachRequest, mut channels: Channels) {
    let (error, status, connection) = (channels.error.clone(), channels.status, channels.connection.clone());
    let outcome = run_attach(&engine, container, request, &mut channels).await;
    report(&error, status, outcome.map(|()| 0)).await;
    // A client that is gone has closed already.
    let _ = connection.send(Outgoing::Close).await;
}

async fn run_attach(engine: &Engine, container: &str, request: AttachRequest, channels: &mut Channels) -> Result<()> {
    let container = engine.container(container).context("the container is gone")?;
    let dir = engine.sandbox_state_dir(&container.sandbox_id);
    let (mut inputs, mut outputs) = (Tasks::default(), Tasks::default());
    if request.tty
        && let Some(mut resize) = channels.resize.take()
    {
        let (dir, id) = (dir.clone(), container.id.clone());
        inputs.add(async move {
            while let Some(data) = resize.recv().await {
                for Size { width, height } in sizes(&data) {
                    let request = Request::Resize { id: id.clone(), width, height };
                    if let Err(error) = ask(&dir, &request).await {
                        tracing::debug!(container = id, error = format!("{error:#}"), "resizing a terminal");
                    }
                }
            }
        });
    }
    let (ours, theirs) = pipes(channels)?;
    let connection = Connection::open(&dir)?;
    {
        use std::os::fd::AsRawFd;
        let stdio = [theirs[0].is_some(), theirs[1].is_some(), theirs[2].is_some()];
        let fds: Vec<_> = theirs.iter().flatten().map(AsRawFd::as_raw_fd).collect();
        connection.ask(&Request::Attach { id: container.id.clone(), stdio }, &fds).await?;
    }
    drop(theirs);
    start_pumps(channels, ours, &mut inputs, &mut outputs);
    tokio::select! {
        // The shim closes it when the container ends.
        _ = connection.receive() => outputs.drain(&mut channels.alive).await,
        _ = channels.alive.recv() => {}
    }
    Ok(())
}

/// Tells the client how it ended.
async fn report(error: &Output, format: StatusFormat, outcome: Result<i32>) {
    let text = match (format, &outcome) {
        (StatusFormat::Json, Ok(0)) => r#"{"metadata":{},"status":"Success"}"#.to_string(),
        (StatusFormat::Json, Ok(code)) => serde_json::json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        })
        .to_string(),
        (StatusFormat::Json, Err(e)) => serde_json::json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("error executing command in container: {e:#}"),
            "reason": "InternalError",
            "details": {"causes": [{"message": format!("error executing command in container: {e:#}")}]},
            "code": 500,
        })
        .to_string(),
        (StatusFormat::Text, Ok(0)) => String::new(),
        (StatusFormat::Text, Ok(code)) => {
            format!("error executing remote command: command terminated with non-zero exit code: exit status {code}")
        }
        (StatusFormat::Text, Err(e)) => format!("error executing remote command: {e:#}"),
    };
    if !text.is_empty() {
        // A client that is gone does not ask any more.
        let _ = error.write(text.into()).await;
    }
    error.finish().await;
}
