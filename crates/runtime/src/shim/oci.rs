//! Containers made by an OCI runtime (runc, crun) instead of by the shim itself.
//!
//! Guarantees as for the shim's own: the root file system is mounted in a namespace that only the container keeps; its
//! first process becomes the shim's child, so logs, exits, signals and adoption are the same. The runtime's program runs
//! for a moment only.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use super::rootfs::{self, Failure};
use super::spawn::{PREPARE_TIMEOUT_MS, Spawned, step};
use super::sys::{self, Forked};
use crate::spec::bundle::{Bundle, OciRuntime};

/// Files of a bundle that a run of the program reads or writes.
const PID_FILE: &str = "oci.pid";
const LOG_FILE: &str = "oci.log";
const PROCESS_FILE: &str = "process.json";
const CONSOLE: &str = "console.sock";
/// What the program finds in its environment.
const ENVIRONMENT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes a container and starts its first process.
pub fn container(runtime: &OciRuntime, bundle: &Bundle, stdio: [Option<OwnedFd>; 3]) -> Result<Spawned, Failure> {
    step(sys::adopt_orphans(), "becoming the parent of orphans")?;
    step(std::fs::create_dir_all(&runtime.state), "creating the runtime's directory")?;
    let run = Run { runtime, id: &bundle.id };
    let made = run.detached(
        &["create", "--bundle", &runtime.bundle.to_string_lossy()],
        bundle.process.terminal,
        stdio,
        || rootfs::mount_root(bundle),
    );
    made.and_then(|spawned| run.once(&["start", &bundle.id], [None, None, None], || Ok(())).map(|()| spawned))
}

/// Starts a further process in a container.
pub fn exec(
    runtime: &OciRuntime,
    id: &str,
    args: &[String],
    terminal: bool,
    stdio: [Option<OwnedFd>; 3],
) -> Result<Spawned, Failure> {
    let config = runtime.bundle.join("config.json");
    let text = step(std::fs::read(&config), "reading the container's configuration")?;
    let mut config: Value = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", config.display()))?;
    let mut process = config["process"].take();
    process["args"] = args.into();
    process["terminal"] = terminal.into();
    let file = runtime.bundle.join(PROCESS_FILE);
    step(std::fs::write(&file, process.to_string()), "writing the process's specification")?;
    let run = Run { runtime, id };
    run.detached(&["exec", "--detach", "--process", &file.to_string_lossy()], terminal, stdio, || Ok(()))
}

/// Runs of the program about one container.
struct Run<'a> {
    runtime: &'a OciRuntime,
    id: &'a str,
}

impl Run<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.runtime.bundle.join(name)
    }

    /// A run that leaves a process behind, which becomes ours.
    fn detached(
        &self,
        command: &[&str],
        terminal: bool,
        stdio: [Option<OwnedFd>; 3],
        prepare: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<Spawned, Failure> {
        let pid_file = self.file(PID_FILE);
        let shown = pid_file.to_string_lossy();
        let console = if terminal { Some(Console::open(&self.runtime.bundle)?) } else { None };
        let mut args = command.to_vec();
        args.extend(["--pid-file", &shown]);
        let socket = console.as_ref().map(Console::path);
        if let Some(path) = &socket {
            args.extend(["--console-socket", path]);
        }
        args.push(self.id);
        self.once(&args, stdio, prepare)?;
        let text = step(std::fs::read_to_string(&pid_file), "reading the process's number")?;
        let pid = text.trim().parse().map_err(|_| format!("the runtime says \"{text}\" is a process"))?;
        let terminal = console.map(|c| c.receive()).transpose()?;
        Ok(Spawned { pid, terminal })
    }

    /// Runs the program to its end. `prepare` comes before it, in a mount namespace of its own.
    fn once(
        &self,
        command: &[&str],
        stdio: [Option<OwnedFd>; 3],
        prepare: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let log = self.file(LOG_FILE);
        let _ = std::fs::remove_file(&log);
        let child = match step(sys::clone_process(libc::CLONE_NEWNS), "creating a process")? {
            Forked::Parent(pid) => pid,
            Forked::Child => {
                sys::reset_signals();
                let prepared = prepare().and_then(|()| hide_second_hierarchy());
                let Err(failure) = prepared.and_then(|()| self.become_program(command, stdio));
                // Told as the program tells its own.
                let line = serde_json::json!({"level": "error", "msg": failure}).to_string();
                let _ = std::fs::write(&log, line);
                sys::exit_now(127);
            }
        };
        drop(stdio);
        let ended = wait(child);
        match ended {
            Some(0) => Ok(()),
            Some(code) => Err(last_error(&log).unwrap_or_else(|| {
                format!("{} {} ended with code {code}", self.runtime.program.display(), command[0])
            })),
            None => {
                let _ = sys::kill(child, libc::SIGKILL);
                sys::reap(Some(child), true);
                Err(format!("{} {} took too long", self.runtime.program.display(), command[0]))
            }
        }
    }

    fn become_program(&self, command: &[&str], stdio: [Option<OwnedFd>; 3]) -> Result<Infallible, Failure> {
        let null = step(File::options().read(true).write(true).open("/dev/null"), "opening /dev/null")?;
        for (target, stream) in stdio.iter().enumerate() {
            let stream = stream.as_ref().map_or(null.as_fd(), AsFd::as_fd);
            step(sys::place_fd(stream, target as i32), "placing a stream")?;
        }
        let text = |s: &[u8]| CString::new(s).map_err(|_| "an argument contains a NUL byte".to_string());
        let program = text(self.runtime.program.as_os_str().as_bytes())?;
        let log = self.file(LOG_FILE);
        let mut args = vec![program.clone()];
        for part in ["--root".as_ref(), self.runtime.state.as_os_str(), "--log".as_ref(), log.as_os_str()] {
            args.push(text(part.as_bytes())?);
        }
        for part in ["--log-format", "json"].iter().chain(command) {
            args.push(text(part.as_bytes())?);
        }
        let error = sys::exec(&program, &args, &[text(ENVIRONMENT.as_bytes())?]);
        Err(format!("running {}: {error}", self.runtime.program.display()))
    }
}

/// Where version 1 manages resources, crun refuses to work beside a version 2 hierarchy that has a controller left. Runs
/// in a mount namespace of its own.
fn hide_second_hierarchy() -> Result<(), Failure> {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    const ALL: &str = "/sys/fs/cgroup";
    const VERSION_2: &str = "/sys/fs/cgroup/unified";
    if !Path::new(VERSION_2).join("cgroup.controllers").exists() {
        return Ok(());
    }
    // Private first, so that the node keeps it.
    let private = mount(None::<&str>, ALL, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>);
    let hidden = private.and_then(|()| umount2(VERSION_2, MntFlags::MNT_DETACH));
    hidden.map_err(|e| format!("hiding {VERSION_2}: {e}"))
}

/// Waits for a child for as long as preparing a process may take.
fn wait(child: i32) -> Option<i32> {
    let pidfd = sys::pidfd_open(child).ok()?;
    loop {
        let mut waiting = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, PollTimeout::from(PREPARE_TIMEOUT_MS)) {
            Ok(0) => return None,
            Err(nix::errno::Errno::EINTR) => {}
            Ok(_) | Err(_) => return sys::reap(Some(child), true).map(|(_, code)| code),
        }
    }
}

/// The last error that the program logged.
fn last_error(log: &Path) -> Option<String> {
    let text = std::fs::read_to_string(log).ok()?;
    text.lines().rev().find_map(|line| {
        let entry: Value = serde_json::from_str(line).ok()?;
        Some(entry.get("msg")?.as_str()?.to_string())
    })
}

/// Where a runtime hands over the terminal that it has opened.
struct Console {
    listener: OwnedFd,
    dir: File,
}

impl Console {
    fn open(dir: &Path) -> Result<Console, Failure> {
        use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
        let _ = std::fs::remove_file(dir.join(CONSOLE));
        let dir = step(File::open(dir), "opening the bundle")?;
        let listener = || -> io::Result<OwnedFd> {
            let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            bind(socket.as_raw_fd(), &UnixAddr::new(Self::path_in(&dir).as_str())?)?;
            listen(&socket, Backlog::new(1)?)?;
            Ok(socket)
        };
        let listener = step(listener(), "listening for the terminal")?;
        Ok(Console { listener, dir })
    }

    /// Through our own descriptor: the full path may be longer than a socket's address holds.
    fn path_in(dir: &File) -> String {
        format!("/proc/{}/fd/{}/{CONSOLE}", std::process::id(), dir.as_raw_fd())
    }

    fn path(&self) -> String {
        Self::path_in(&self.dir)
    }

    /// The terminal's master. The runtime has ended, so it is there or never comes.
    fn receive(self) -> Result<OwnedFd, Failure> {
        step(sys::set_nonblocking(self.listener.as_fd()), "preparing the terminal's socket")?;
        let connection = step(sys::accept(self.listener.as_fd()), "waiting for the terminal")?;
        let received = step(sys::receive_packet(connection.as_fd()), "receiving the terminal")?;
        let master = received.and_then(|(_, mut fds)| fds.pop()).ok_or("the runtime sent no terminal")?;
        let _ = std::fs::remove_file(Self::path_in(&self.dir));
        Ok(master)
    }
}
