//! The shim: one small process a sandbox, which holds its namespaces and is the parent of its containers, so that the
//! engine may die and come back without touching them.
//!
//! Guarantees: single-threaded (forking and changing namespaces are only sound then); an exit is on disk before anyone
//! is told; without an engine it goes on logging and reaping. It deliberately knows no CRI, no images, no network set-up.
//!
//! Shims are forked from a *zygote*, a re-executed instance of this binary, so that they share its relocated pages: an
//! idle shim owns little memory, and starting one costs no program start.

mod attached;
mod ending;
mod log;
mod oci;
pub mod protocol;
mod rootfs;
mod spawn;
mod supervise;
pub mod sys;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::spec::bundle::Users;
use protocol::{Reply, SandboxRequest};

/// Entry of the re-executed process: `args` are what follows `shim` on the command line. Must be called before any
/// thread exists.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ! {
    if args.into_iter().next().as_deref() != Some(std::ffi::OsStr::new("zygote")) {
        eprintln!("shim: started by the container engine, not by hand");
        sys::exit_now(2);
    }
    let Ok(socket) = take_socket() else {
        eprintln!("shim: no socket on standard input");
        sys::exit_now(2);
    };
    sys::name_process(c"nauplius-zygote");
    // Terminal signals are meant for the engine; the zygote ends when the engine closes its socket.
    let _ = nix::unistd::setsid();
    sys::ignore_signal(libc::SIGCHLD, true);
    // A shim that the kernel kills for want of memory takes its pod along. Where this is refused, it is as it was.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-999");
    let _ = std::env::set_current_dir("/");
    loop {
        match sys::receive_packet(socket.as_fd()) {
            Ok(Some((request, mut fds))) => {
                let Some(connection) = fds.pop() else { continue };
                match sys::clone_process(0) {
                    Ok(sys::Forked::Child) => {
                        drop(socket);
                        shim(&request, connection);
                        sys::exit_now(0);
                    }
                    Ok(sys::Forked::Parent(_)) => {}
                    Err(e) => answer(&connection, &Reply::Error { message: format!("forking a shim: {e}") }),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(None) | Err(_) => sys::exit_now(0),
        }
    }
}

/// The engine's socket comes as standard input; the standard streams become the null device, for all shims to come.
fn take_socket() -> io::Result<OwnedFd> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    nix::sys::socket::getsockopt(&stdin, nix::sys::socket::sockopt::SockType)?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    for target in 0..3 {
        sys::place_fd(null.as_fd(), target)?;
    }
    Ok(stdin)
}

fn answer(connection: &OwnedFd, reply: &Reply) {
    if let Ok(text) = serde_json::to_vec(reply) {
        // A peer that is gone needs no answer.
        let _ = sys::send_packet(connection.as_fd(), &text, &[]);
    }
}

fn shim(request: &[u8], connection: OwnedFd) {
    sys::ignore_signal(libc::SIGCHLD, false);
    match prepare(request) {
        Ok(supervisor) => {
            // The connection survives as the shim's first watcher.
            supervisor.run(connection);
        }
        Err(message) => answer(&connection, &Reply::Error { message }),
    }
}

/// Makes the sandbox: namespaces, host name, kernel parameters, the init of a shared PID namespace, the socket.
fn prepare(request: &[u8]) -> Result<supervise::Supervisor, String> {
    let step = |r: io::Result<()>, what: &str| r.map_err(|e| format!("{what}: {e}"));
    let request: SandboxRequest = serde_json::from_slice(request).map_err(|e| format!("reading the request: {e}"))?;
    let _ = nix::unistd::setsid();
    sys::name_process(c"nauplius-shim");
    let mut kinds = 0;
    for (wanted, kind) in
        [(request.net, libc::CLONE_NEWNET), (request.ipc, libc::CLONE_NEWIPC), (request.uts, libc::CLONE_NEWUTS)]
    {
        if wanted {
            kinds |= kind;
        }
    }
    let users = match &request.users {
        None => {
            step(sys::unshare(kinds), "creating the sandbox's namespaces")?;
            None
        }
        Some(users) => Some(namespaces_of(users, kinds)?),
    };
    if request.uts && !request.hostname.is_empty() {
        nix::unistd::sethostname(&request.hostname).map_err(|e| format!("setting the host name: {e}"))?;
    }
    for (name, value) in &request.sysctls {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        step(std::fs::write(&path, value), &format!("setting sysctl {name} to {value}"))?;
    }
    let init = if request.shared_pid { spawn_init()? } else { 0 };
    let listener = listen(&request).map_err(|e| format!("listening in {}: {e}", request.dir.display()))?;
    let pid_namespace: OwnedFd =
        std::fs::File::open("/proc/self/ns/pid").map_err(|e| format!("own PID namespace: {e}"))?.into();
    step(std::env::set_current_dir("/"), "entering /")?;
    drop(request);
    supervise::Supervisor::new(listener, spawn::Home { pid_namespace, init, users })
        .map_err(|e| format!("watching children: {e}"))
}

/// Makes a user namespace, and others that belong to it, and joins the others: the shim itself keeps the node's users,
/// whose powers it needs. Returns the user namespace.
fn namespaces_of(users: &Users, kinds: libc::c_int) -> Result<OwnedFd, String> {
    let child = match sys::clone_process(libc::CLONE_NEWUSER | kinds) {
        Ok(sys::Forked::Parent(pid)) => pid,
        Ok(sys::Forked::Child) => loop {
            // Only its namespaces are wanted; it is killed below.
            sys::pause();
        },
        Err(e) => return Err(format!("creating a user namespace: {e}")),
    };
    let made = join_of(child, users, kinds);
    let _ = sys::kill(child, libc::SIGKILL);
    sys::reap(Some(child), true);
    made
}

fn join_of(child: i32, users: &Users, kinds: libc::c_int) -> Result<OwnedFd, String> {
    for (file, ranges) in [("uid_map", &users.uids), ("gid_map", &users.gids)] {
        let lines: Vec<String> = ranges.iter().map(|r| format!("{} {} {}", r.inside, r.node, r.length)).collect();
        let path = format!("/proc/{child}/{file}");
        std::fs::write(&path, lines.join("\n")).map_err(|e| format!("writing the sandbox's {file}: {e}"))?;
    }
    let open = |name: &str| -> Result<OwnedFd, String> {
        let file = std::fs::File::open(format!("/proc/{child}/ns/{name}"));
        file.map(OwnedFd::from).map_err(|e| format!("opening the sandbox's {name} namespace: {e}"))
    };
    for (name, kind) in [("net", libc::CLONE_NEWNET), ("ipc", libc::CLONE_NEWIPC), ("uts", libc::CLONE_NEWUTS)] {
        if kinds & kind != 0 {
            sys::setns(&open(name)?, kind).map_err(|e| format!("joining the sandbox's {name} namespace: {e}"))?;
        }
    }
    open("user")
}

fn listen(request: &SandboxRequest) -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    use std::os::fd::AsRawFd;
    let socket =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    // Through the directory's descriptor: the full path may be longer than a socket address holds.
    let dir = std::fs::File::open(&request.dir)?;
    let path = format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), protocol::SOCKET);
    let _ = std::fs::remove_file(&path);
    bind(socket.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
    listen(&socket, Backlog::new(64)?)?;
    Ok(socket)
}

/// The first process of a shared PID namespace: it adopts and reaps what containers leave behind.
fn spawn_init() -> Result<i32, String> {
    match sys::clone_process(libc::CLONE_NEWPID).map_err(|e| format!("creating a PID namespace: {e}"))? {
        sys::Forked::Parent(pid) => Ok(pid),
        sys::Forked::Child => {
            sys::name_process(c"pause");
            // A shim that is killed takes it along, and with it everything in its namespace.
            let _ = sys::end_with_parent();
            let _ = nix::unistd::setsid();
            // Nothing may stay open here, above all not the connection whose end tells the engine of a shim's death.
            sys::close_all_from(0);
            // An init without handlers ignores every signal from its own namespace; ignored children reap themselves.
            sys::ignore_signal(libc::SIGCHLD, true);
            loop {
                sys::pause();
            }
        }
    }
}
