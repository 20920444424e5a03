//! The shim's life: one loop that serves the engine's requests, copies container output, and reaps.
//!
//! Guarantees: what a container wrote before it exited is in its log, and its exit on disk, before its exit is
//! announced; a slow attached client slows only the container it watches; an engine that dies mid-request harms nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::attached::{Attached, write_some};
use super::ending::{oom_killed, signal_cgroup, write_exit};
use super::log::{Log, Stream};
use super::oci;
use super::protocol::{ContainerState, Exit, Reply, Request};
use super::spawn::{self, Home};
use super::sys;
use crate::spec::bundle::{Bundle, Bytes};

/// One read of container output, in bytes.
const CHUNK: usize = 16 * 1024;
/// Most connections at once. Execs, attaches and the engine's own; beyond it new ones wait in the backlog.
const MAX_CONNECTIONS: usize = 512;
/// Reads of one stream in a row before others get their turn.
const READS_A_TURN: usize = 16;

/// What a connection is for, after its first request.
enum Role {
    Asking,
    Watching,
    /// The process, and whether it ends with the connection.
    Exec(i32, bool),
    Attached(String),
}

struct Connection {
    socket: OwnedFd,
    role: Role,
}

struct Container {
    pid: i32,
    started_at: i64,
    exit: Option<Exit>,
    exit_file: PathBuf,
    oom_file: Option<PathBuf>,
    bundle: PathBuf,
    cgroups: Vec<PathBuf>,
    own_pid_namespace: bool,
    /// Where attached clients' input goes; the terminal's master if there is one.
    stdin: Option<File>,
    stdin_once: bool,
    /// Input the container has not taken yet.
    unread: Vec<u8>,
    terminal: bool,
    outputs: [Option<File>; 2],
    log: Log,
    attached: Vec<Attached>,
}

/// All of a shim.
pub struct Supervisor {
    listener: OwnedFd,
    children: OwnedFd,
    home: Home,
    connections: BTreeMap<RawFd, Connection>,
    containers: BTreeMap<String, Container>,
    /// Running execs: process to connection.
    execs: BTreeMap<i32, RawFd>,
    /// Clients of ended containers that have not taken all output yet.
    leaving: Vec<Attached>,
    ending: bool,
}

/// What a polled descriptor stands for.
enum Source {
    Listener,
    Children,
    Connection(RawFd),
    Output(String, usize),
    Input(String, usize),
    ClientReady(String, usize, usize),
    LeavingReady(usize, usize),
    InputReady(String),
}

impl Supervisor {
    /// Takes over as the sandbox's supervisor.
    pub fn new(listener: OwnedFd, home: Home) -> std::io::Result<Supervisor> {
        Ok(Supervisor {
            listener,
            children: sys::child_signal_fd()?,
            home,
            connections: BTreeMap::new(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            leaving: Vec::new(),
            ending: false,
        })
    }

    /// Runs until told to end. `first` is the connection of the engine that asked for this sandbox.
    pub fn run(mut self, first: OwnedFd) {
        let pid = std::process::id() as i32;
        let _ = sys::set_nonblocking(first.as_fd());
        let number = first.as_raw_fd();
        self.connections.insert(number, Connection { socket: first, role: Role::Watching });
        self.reply(number, &Reply::Ready { pid, init: self.home.init });
        while !self.ending {
            self.turn();
        }
    }

    fn reply(&self, connection: RawFd, reply: &Reply) {
        self.reply_with(connection, reply, &[]);
    }

    fn reply_with(&self, connection: RawFd, reply: &Reply, fds: &[RawFd]) {
        if let (Some(c), Ok(text)) = (self.connections.get(&connection), serde_json::to_vec(reply)) {
            // The engine may be gone; what it must know is on disk.
            let _ = sys::send_packet(c.socket.as_fd(), &text, fds);
        }
    }

    fn turn(&mut self) {
        let (sources, ready) = self.wait();
        for (source, events) in sources.into_iter().zip(ready) {
            if events.is_empty() {
                continue;
            }
            match source {
                Source::Listener => self.accept(),
                Source::Children => self.reap(),
                Source::Connection(fd) => self.read_connection(fd),
                Source::Output(id, stream) => self.read_output(&id, stream, false),
                Source::Input(id, client) => self.read_input(&id, client),
                Source::ClientReady(id, client, stream) => {
                    if let Some(c) = self.containers.get_mut(&id)
                        && let Some(a) = c.attached.get_mut(client)
                    {
                        a.flush(stream);
                    }
                }
                Source::LeavingReady(client, stream) => {
                    if let Some(a) = self.leaving.get_mut(client) {
                        a.flush(stream);
                    }
                }
                Source::InputReady(id) => {
                    if let Some(c) = self.containers.get_mut(&id) {
                        c.feed(&[]);
                    }
                }
            }
        }
        for c in self.containers.values_mut() {
            self.leaving.extend(c.attached.extract_if(.., |a| a.leaves));
            c.attached.retain(|a| a.stdin.is_some() || a.outputs.iter().any(Option::is_some));
        }
        for done in self.leaving.extract_if(.., |a| a.pending.iter().all(Vec::is_empty)) {
            self.connections.remove(&done.connection);
        }
    }

    /// Blocks until something happens.
    fn wait(&self) -> (Vec<Source>, Vec<PollFlags>) {
        let mut sources = vec![Source::Children];
        let mut fds = vec![PollFd::new(self.children.as_fd(), PollFlags::POLLIN)];
        let mut add = |source, fd: BorrowedFd<'static>, flags| {
            sources.push(source);
            fds.push(PollFd::new(fd, flags));
        };
        // The borrow ends with this function; the polled descriptors all belong to `self`.
        if self.connections.len() < MAX_CONNECTIONS {
            add(Source::Listener, sys::borrow(self.listener.as_raw_fd()), PollFlags::POLLIN);
        }
        for &fd in self.connections.keys() {
            add(Source::Connection(fd), sys::borrow(fd), PollFlags::POLLIN);
        }
        for (id, c) in &self.containers {
            for stream in 0..2 {
                // Someone has not taken what is there: the container waits with them.
                let held = c.attached.iter().any(|a| !a.pending[stream].is_empty());
                if let (Some(output), false) = (&c.outputs[stream], held) {
                    add(Source::Output(id.clone(), stream), sys::borrow(output.as_raw_fd()), PollFlags::POLLIN);
                }
            }
            if let (Some(stdin), false) = (&c.stdin, c.unread.is_empty()) {
                add(Source::InputReady(id.clone()), sys::borrow(stdin.as_raw_fd()), PollFlags::POLLOUT);
            }
            for (client, a) in c.attached.iter().enumerate() {
                if let (Some(stdin), true) = (&a.stdin, c.unread.is_empty()) {
                    add(Source::Input(id.clone(), client), sys::borrow(stdin.as_raw_fd()), PollFlags::POLLIN);
                }
                for stream in 0..2 {
                    if let (Some(output), false) = (&a.outputs[stream], a.pending[stream].is_empty()) {
                        let fd = sys::borrow(output.as_raw_fd());
                        add(Source::ClientReady(id.clone(), client, stream), fd, PollFlags::POLLOUT);
                    }
                }
            }
        }
        for (client, a) in self.leaving.iter().enumerate() {
            for stream in 0..2 {
                if let (Some(output), false) = (&a.outputs[stream], a.pending[stream].is_empty()) {
                    let fd = sys::borrow(output.as_raw_fd());
                    add(Source::LeavingReady(client, stream), fd, PollFlags::POLLOUT);
                }
            }
        }
        let ready = match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect(),
            Err(_) => Vec::new(),
        };
        (sources, ready)
    }

    fn accept(&mut self) {
        while let Ok(socket) = sys::accept(self.listener.as_fd()) {
            self.connections.insert(socket.as_raw_fd(), Connection { socket, role: Role::Asking });
        }
    }

    fn read_connection(&mut self, fd: RawFd) {
        let Some(connection) = self.connections.get(&fd) else { return };
        match sys::receive_packet(connection.socket.as_fd()) {
            Ok(Some((packet, fds))) => match serde_json::from_slice(&packet) {
                Ok(request) => self.serve(fd, request, fds),
                Err(e) => self.reply(fd, &Reply::Error { message: format!("unknown request: {e}") }),
            },
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => self.drop_connection(fd),
        }
    }

    fn drop_connection(&mut self, fd: RawFd) {
        let Some(connection) = self.connections.remove(&fd) else { return };
        match connection.role {
            Role::Attached(id) => {
                if let Some(c) = self.containers.get_mut(&id) {
                    c.attached.retain(|a| a.connection != fd);
                }
                self.leaving.retain(|a| a.connection != fd);
            }
            // Unless tied, the command goes on, as when any client of a remote shell goes away. It stays in the table
            // of running ones only if its end is still to be told.
            Role::Exec(pid, tied) => {
                if self.execs.remove(&pid).is_some() && tied {
                    let _ = sys::kill(pid, libc::SIGKILL);
                }
            }
            Role::Asking | Role::Watching => {}
        }
    }

    fn serve(&mut self, fd: RawFd, request: Request, fds: Vec<OwnedFd>) {
        let outcome = match request {
            Request::Watch => {
                self.watch(fd);
                return;
            }
            Request::Start { bundle } => self.start(&bundle),
            Request::Signal { id, signal, all } => self.signal(&id, signal, all),
            Request::Exec { id, args, tty, stdio, tied } => {
                match self.exec(fd, &id, args, (tty, tied), sort_stdio(stdio, fds)) {
                    Ok(()) => return,
                    Err(message) => Err(message),
                }
            }
            Request::KillExec => {
                if let Some(Connection { role: Role::Exec(pid, _), .. }) = self.connections.get(&fd) {
                    let _ = sys::kill(*pid, libc::SIGKILL);
                }
                return;
            }
            Request::Attach { id, stdio } => self.attach(fd, &id, sort_stdio(stdio, fds)),
            Request::Resize { id, width, height } => self.container(&id).and_then(|c| {
                let master = c.outputs[0].as_ref().filter(|_| c.terminal).ok_or("the container has no terminal")?;
                sys::resize_terminal(master.as_fd(), width, height).map_err(|e| e.to_string())?;
                Ok(Reply::Ok)
            }),
            Request::ReopenLog { id } => self
                .container(&id)
                .and_then(|c| c.log.reopen().map_err(|e| format!("opening the log: {e}")).map(|()| Reply::Ok)),
            Request::Forget { id } => {
                if self.containers.get(&id).is_some_and(|c| c.exit.is_none()) {
                    Err(format!("container {id} is running"))
                } else {
                    self.containers.remove(&id);
                    Ok(Reply::Ok)
                }
            }
            Request::Shutdown => {
                self.shutdown();
                Ok(Reply::Ok)
            }
        };
        match outcome {
            Ok(reply) => self.reply(fd, &reply),
            Err(message) => self.reply(fd, &Reply::Error { message }),
        }
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, String> {
        self.containers.get_mut(id).ok_or_else(|| format!("container {id} is not known to its shim"))
    }

    fn watch(&mut self, fd: RawFd) {
        if let Some(connection) = self.connections.get_mut(&fd) {
            connection.role = Role::Watching;
        }
        let containers = self.containers.iter().map(|(id, c)| ContainerState {
            id: id.clone(),
            pid: c.pid,
            started_at: c.started_at,
            exit: c.exit.clone(),
        });
        let state =
            Reply::State { pid: std::process::id() as i32, init: self.home.init, containers: containers.collect() };
        self.reply(fd, &state);
    }

    fn start(&mut self, path: &Path) -> Result<Reply, String> {
        let bundle = read_bundle(path)?;
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| format!("creating a pipe: {e}"));
        let log = Log::open(bundle.log.as_deref()).map_err(|e| format!("opening the log: {e}"))?;
        let (mut stdin, mut outputs, mut theirs) = (None, [None, None], [None, None, None]);
        if !bundle.process.terminal {
            if bundle.stdin {
                let (read, write) = pipe()?;
                theirs[0] = Some(read);
                stdin = Some(File::from(write));
            }
            for stream in 0..2 {
                let (read, write) = pipe()?;
                theirs[stream + 1] = Some(write);
                outputs[stream] = Some(File::from(read));
            }
        }
        let spawned = match &bundle.oci {
            None => spawn::container(&self.home, &bundle, theirs)?,
            Some(runtime) => oci::container(runtime, &bundle, theirs)?,
        };
        let started_at = sys::now();
        if let Some(master) = spawned.terminal {
            let master = File::from(master);
            // The stream back to a terminal is the terminal itself.
            stdin = if bundle.stdin { master.try_clone().ok() } else { None };
            outputs[0] = Some(master);
        }
        for file in outputs.iter().chain([&stdin]).flatten() {
            sys::set_nonblocking(file.as_fd()).map_err(|e| format!("preparing a stream: {e}"))?;
        }
        let container = Container {
            pid: spawned.pid,
            started_at,
            exit: None,
            exit_file: bundle.exit_file,
            oom_file: bundle.oom_file,
            bundle: path.to_path_buf(),
            cgroups: bundle.cgroups,
            own_pid_namespace: bundle.pid_namespace == crate::spec::bundle::PidNamespace::Private,
            stdin,
            stdin_once: bundle.stdin_once,
            unread: Vec::new(),
            terminal: bundle.process.terminal,
            outputs,
            log,
            attached: Vec::new(),
        };
        self.containers.insert(bundle.id, container);
        Ok(Reply::Started { pid: spawned.pid, at: started_at })
    }

    fn signal(&mut self, id: &str, signal: i32, all: bool) -> Result<Reply, String> {
        let c = self.container(id)?;
        if c.exit.is_none() {
            // Not reaped yet, so the number is still the container's.
            let _ = sys::kill(c.pid, signal);
        }
        if all {
            signal_cgroup(&c.cgroups, signal);
        }
        Ok(Reply::Ok)
    }

    fn exec(
        &mut self,
        fd: RawFd,
        id: &str,
        args: Vec<String>,
        (tty, tied): (bool, bool),
        stdio: [Option<OwnedFd>; 3],
    ) -> Result<(), String> {
        let c = self.container(id)?;
        if c.exit.is_some() {
            return Err(format!("container {id} is not running"));
        }
        let (pid, path) = (c.pid, c.bundle.clone());
        let bundle = read_bundle(&path)?;
        let mut process = bundle.process.clone();
        process.terminal = tty;
        let spawned = match &bundle.oci {
            Some(runtime) => oci::exec(runtime, id, &args, tty, stdio)?,
            None => {
                process.args = args.into_iter().map(Bytes::Text).collect();
                spawn::exec(&self.home, &bundle, pid, &process, stdio)?
            }
        };
        self.execs.insert(spawned.pid, fd);
        if let Some(connection) = self.connections.get_mut(&fd) {
            connection.role = Role::Exec(spawned.pid, tied);
        }
        let master = spawned.terminal.as_ref().map(|m| m.as_raw_fd());
        self.reply_with(fd, &Reply::Started { pid: spawned.pid, at: sys::now() }, master.as_slice());
        drop((bundle, process));
        Ok(())
    }

    fn attach(&mut self, fd: RawFd, id: &str, stdio: [Option<OwnedFd>; 3]) -> Result<Reply, String> {
        let c = self.container(id)?;
        if c.exit.is_some() {
            return Err(format!("container {id} is not running"));
        }
        let [stdin, stdout, stderr] = stdio;
        for stream in [&stdin, &stdout, &stderr].into_iter().flatten() {
            sys::set_nonblocking(stream.as_fd()).map_err(|e| e.to_string())?;
        }
        c.attached.push(Attached {
            connection: fd,
            stdin: stdin.map(File::from).filter(|_| c.stdin.is_some()),
            outputs: [stdout.map(File::from), stderr.map(File::from)],
            pending: [Vec::new(), Vec::new()],
            ended: [false, false],
            leaves: false,
        });
        let id = id.to_string();
        if let Some(connection) = self.connections.get_mut(&fd) {
            connection.role = Role::Attached(id);
        }
        Ok(Reply::Ok)
    }

    /// Copies what a container has written. The `last` time all that is there, whoever holds back: the log must have
    /// it, and it is no more than a pipe holds.
    fn read_output(&mut self, id: &str, stream: usize, last: bool) {
        let Some(c) = self.containers.get_mut(id) else { return };
        let kind = if stream == 0 { Stream::Stdout } else { Stream::Stderr };
        let mut buffer = [0u8; CHUNK];
        let mut turns = 0;
        while last || turns < READS_A_TURN {
            turns += 1;
            let Some(output) = &mut c.outputs[stream] else { return };
            match output.read(&mut buffer) {
                Ok(n) if n > 0 => {
                    c.log.write(kind, &buffer[..n]);
                    for a in &mut c.attached {
                        a.give(stream, &buffer[..n]);
                    }
                    if !last && c.attached.iter().any(|a| !a.pending[stream].is_empty()) {
                        return;
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                // End of file; on a terminal's master the same news is an I/O error.
                Ok(_) | Err(_) => {
                    // While the first process lives, a terminal nobody holds open may be opened again.
                    c.log.finish(kind);
                    c.outputs[stream] = None;
                    c.attached.iter_mut().for_each(|a| a.end(stream));
                    return;
                }
            }
        }
    }

    fn read_input(&mut self, id: &str, client: usize) {
        let Some(c) = self.containers.get_mut(id) else { return };
        let Some(stdin) = c.attached.get_mut(client).and_then(|a| a.stdin.as_mut()) else { return };
        let mut buffer = [0u8; CHUNK];
        match stdin.read(&mut buffer) {
            Ok(n) if n > 0 => c.feed(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => {
                let client = &mut c.attached[client];
                client.stdin = None;
                if c.stdin_once && !c.terminal {
                    c.stdin = None;
                    c.unread.clear();
                } else {
                    // The container listens to who comes next; this client has detached, as engines understand it.
                    client.leaves = true;
                }
            }
        }
    }

    fn reap(&mut self) {
        // Which signals are pending does not matter: every ended child is taken.
        let mut drain = [0u8; 512];
        while nix::unistd::read(&self.children, &mut drain).is_ok_and(|n| n > 0) {}
        while let Some((pid, code)) = sys::reap(None, false) {
            if let Some(fd) = self.execs.remove(&pid) {
                self.reply(fd, &Reply::ExecExited { code });
                self.connections.remove(&fd);
                continue;
            }
            let found = self.containers.iter().find(|(_, c)| c.pid == pid && c.exit.is_none());
            if let Some(id) = found.map(|(id, _)| id.clone()) {
                self.container_ended(&id, code);
            }
        }
    }

    fn container_ended(&mut self, id: &str, code: i32) {
        let Some(c) = self.containers.get_mut(id) else { return };
        if !c.own_pid_namespace {
            // No kernel ends the rest of the container for us.
            signal_cgroup(&c.cgroups, libc::SIGKILL);
        }
        let oom = c.oom_file.as_deref().is_some_and(oom_killed);
        let exit = Exit { code, at: sys::now(), oom };
        for stream in 0..2 {
            self.read_output(id, stream, true);
        }
        let Some(c) = self.containers.get_mut(id) else { return };
        c.exit = Some(exit.clone());
        for stream in [Stream::Stdout, Stream::Stderr] {
            c.log.finish(stream);
        }
        c.outputs = [None, None];
        c.stdin = None;
        self.leaving.append(&mut c.attached);
        write_exit(&c.exit_file, &exit);
        let watchers: Vec<RawFd> =
            self.connections.iter().filter(|(_, c)| matches!(c.role, Role::Watching)).map(|(&fd, _)| fd).collect();
        for fd in watchers {
            self.reply(fd, &Reply::Exited { id: id.to_string(), exit: exit.clone() });
        }
    }

    fn shutdown(&mut self) {
        for c in self.containers.values() {
            if c.exit.is_none() {
                let _ = sys::kill(c.pid, libc::SIGKILL);
                signal_cgroup(&c.cgroups, libc::SIGKILL);
            }
        }
        if self.home.init > 0 {
            let _ = sys::kill(self.home.init, libc::SIGKILL);
        }
        // Reaped here so that exits are on disk; those in uninterruptible sleep are left to the node's init.
        let deadline = std::time::Instant::now() + SHUTDOWN_WAIT;
        while self.containers.values().any(|c| c.exit.is_none()) && std::time::Instant::now() < deadline {
            let mut waiting = [PollFd::new(self.children.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut waiting, PollTimeout::from(100u8));
            self.reap();
        }
        self.ending = true;
    }
}

/// How long a shim that ends waits for its killed containers.
const SHUTDOWN_WAIT: std::time::Duration = std::time::Duration::from_secs(10);

impl Container {
    /// Passes input on, keeping what the container does not take yet.
    fn feed(&mut self, data: &[u8]) {
        let Some(stdin) = &mut self.stdin else { return };
        self.unread.extend_from_slice(data);
        match write_some(stdin, &mut self.unread) {
            Ok(()) => {}
            Err(_) => {
                self.stdin = None;
                self.unread = Vec::new();
            }
        }
    }
}

fn sort_stdio(present: [bool; 3], fds: Vec<OwnedFd>) -> [Option<OwnedFd>; 3] {
    let mut fds = fds.into_iter();
    present.map(|here| if here { fds.next() } else { None })
}

fn read_bundle(path: &Path) -> Result<Bundle, String> {
    let what = |e: &dyn std::fmt::Display| format!("reading {}: {e}", path.display());
    let text = std::fs::read(path).map_err(|e| what(&e))?;
    serde_json::from_slice(&text).map_err(|e| what(&e))
}
