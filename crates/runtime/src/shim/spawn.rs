//! Starts processes in containers: the first one (`container`) and later ones (`exec`).
//!
//! A forked child prepares itself and becomes the program; it tells the shim what went wrong, or nothing when the
//! program has taken over. The shim waits for that, so a start either succeeded or names its reason.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use super::rootfs::{self, Failure};
use super::sys::{self, Forked};
use crate::spec::bundle::{Bundle, PidNamespace, Process};

/// How long a child may prepare itself (milliseconds). Mounting a dead network volume must not hang the shim for good.
pub const PREPARE_TIMEOUT_MS: u16 = 60_000;
/// Where programs are looked for if the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running child.
pub struct Spawned {
    /// Its number in the shim's PID namespace.
    pub pid: i32,
    /// The terminal's master, if one was asked for.
    pub terminal: Option<OwnedFd>,
}

/// The namespaces the shim itself needs while starting things.
pub struct Home {
    /// The shim's own PID namespace, to come back to.
    pub pid_namespace: OwnedFd,
    /// The init of the sandbox's PID namespace, else 0.
    pub init: i32,
    /// The sandbox's own users, which a container's processes join last.
    pub users: Option<OwnedFd>,
}

/// Starts a container's first process with the given standard streams (ignored with a terminal).
pub fn container(home: &Home, bundle: &Bundle, stdio: [Option<OwnedFd>; 3]) -> Result<Spawned, Failure> {
    let join = match bundle.pid_namespace {
        PidNamespace::Private | PidNamespace::Node => None,
        PidNamespace::Sandbox => Some(home.init),
        PidNamespace::Target(pid) => Some(pid),
    };
    let mut namespaces = libc::CLONE_NEWNS;
    if bundle.pid_namespace == PidNamespace::Private {
        namespaces |= libc::CLONE_NEWPID;
    }
    fork_into(home, join, namespaces, move |channel| {
        join_cgroups(bundle)?;
        if bundle.cgroup_namespace {
            step(sys::unshare(libc::CLONE_NEWCGROUP), "creating a cgroup namespace")?;
        }
        sys::new_session_keyring();
        adjust_oom_score(&bundle.process);
        rootfs::enter(bundle, home.users.as_ref())?;
        become_program(home, bundle, &bundle.process, stdio, channel, true)
    })
}

/// Starts a further process in a container whose first process is `pid`.
pub fn exec(
    home: &Home,
    bundle: &Bundle,
    pid: i32,
    process: &Process,
    stdio: [Option<OwnedFd>; 3],
) -> Result<Spawned, Failure> {
    let first = step(sys::pidfd_open(pid), "finding the container's first process")?;
    fork_into(home, Some(pid), 0, move |channel| {
        join_cgroups(bundle)?;
        adjust_oom_score(process);
        let mut kinds = libc::CLONE_NEWNS;
        if bundle.cgroup_namespace {
            kinds |= libc::CLONE_NEWCGROUP;
        }
        step(sys::setns(&first, kinds), "joining the container's namespaces")?;
        become_program(home, bundle, process, stdio, channel, false)
    })
}

/// A system call's failure, with what it was for.
pub fn step<T>(result: io::Result<T>, what: &str) -> Result<T, Failure> {
    result.map_err(|e| format!("{what}: {e}"))
}

/// Forks into a PID namespace and follows the child until it has become its program or has failed.
fn fork_into(
    home: &Home,
    join_pid_of: Option<i32>,
    namespaces: libc::c_int,
    child: impl FnOnce(&OwnedFd) -> Result<std::convert::Infallible, Failure>,
) -> Result<Spawned, Failure> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| format!("creating a socket pair: {e}"))?;
    let joined = match join_pid_of {
        None => None,
        Some(pid) => {
            let target = step(sys::pidfd_open(pid), "finding the process whose PID namespace to join")?;
            step(sys::setns(&target, libc::CLONE_NEWPID), "joining a PID namespace")?;
            Some(target)
        }
    };
    let forked = sys::clone_process(namespaces);
    if let Ok(Forked::Child) = forked {
        sys::reset_signals();
        drop(ours);
        let Err(failure) = child(&theirs);
        // Should even this fail, the shim sees the channel close and the process end.
        let _ = sys::send_packet(theirs.as_fd(), failure.as_bytes(), &[]);
        sys::exit_now(127);
    }
    if joined.is_some() {
        step(sys::setns(&home.pid_namespace, libc::CLONE_NEWPID), "coming back to the shim's PID namespace")?;
    }
    let pid = match step(forked, "creating a process")? {
        Forked::Parent(pid) => pid,
        Forked::Child => unreachable!("the child has ended above"),
    };
    drop(theirs);
    let outcome = follow(&ours);
    if outcome.is_err() {
        let _ = sys::kill(pid, libc::SIGKILL);
        sys::reap(Some(pid), true);
    }
    outcome.map(|terminal| Spawned { pid, terminal })
}

/// Reads the child's messages: a terminal's master, a failure, or the end that means success.
fn follow(channel: &OwnedFd) -> Result<Option<OwnedFd>, Failure> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut terminal = None;
    loop {
        let mut waiting = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, PollTimeout::from(PREPARE_TIMEOUT_MS)) {
            Ok(0) => return Err(format!("preparing the process took longer than {} s", PREPARE_TIMEOUT_MS / 1000)),
            Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => return Err(format!("waiting for the process: {e}")),
            Ok(_) => {}
        }
        match step(sys::receive_packet(channel.as_fd()), "hearing from the process")? {
            None => return Ok(terminal),
            Some((_, mut fds)) if !fds.is_empty() => terminal = fds.pop(),
            Some((message, _)) => return Err(String::from_utf8_lossy(&message).into_owned()),
        }
    }
}

fn join_cgroups(bundle: &Bundle) -> Result<(), Failure> {
    for dir in &bundle.cgroups {
        let file = dir.join("cgroup.procs");
        step(std::fs::write(&file, "0"), &format!("joining cgroup {}", dir.display()))?;
    }
    Ok(())
}

/// Lowering the score needs a capability that a confined node lacks: then the container keeps what it has. One without
/// a wish must not inherit the shim's protection.
fn adjust_oom_score(process: &Process) {
    let _ = std::fs::write("/proc/self/oom_score_adj", process.oom_score_adj.unwrap_or(0).to_string());
}

/// From here the process is inside: give it its terminal or streams, its user, its limits, and run it.
fn become_program(
    home: &Home,
    bundle: &Bundle,
    process: &Process,
    stdio: [Option<OwnedFd>; 3],
    channel: &OwnedFd,
    first: bool,
) -> Result<std::convert::Infallible, Failure> {
    step(nix::unistd::setsid().map(drop).map_err(io::Error::from), "creating a session")?;
    if process.terminal {
        let (master, terminal) = step(sys::open_terminal(), "opening a terminal")?;
        step(sys::send_packet(channel.as_fd(), b"", &[master.as_raw_fd()]), "handing over the terminal")?;
        for target in 0..3 {
            step(sys::place_fd(terminal.as_fd(), target), "placing the terminal")?;
        }
        step(sys::control_terminal(), "taking control of the terminal")?;
        if first {
            bind_console(&terminal);
        }
    } else {
        let null = || {
            let path = if Path::new("/dev/null").exists() { "/dev/null" } else { "/proc/self/fd/0" };
            File::options().read(true).write(true).open(path).map(OwnedFd::from)
        };
        // Placed from the highest free numbers, so that none is overwritten before it is used.
        let mut streams = Vec::with_capacity(3);
        for stream in stdio {
            let stream = match stream {
                Some(fd) => fd,
                None => step(null(), "opening /dev/null")?,
            };
            streams.push(step(stream.try_clone(), "placing a stream")?);
        }
        for (target, stream) in streams.iter().enumerate() {
            step(sys::place_fd(stream.as_fd(), target as i32), "placing a stream")?;
        }
    }
    // Until the users are joined below, files belong to whom the process is on the node.
    let owner = match &bundle.users {
        None => (process.uid, process.gid),
        Some(users) => users
            .on_node(process.uid, process.gid)
            .ok_or_else(|| format!("user {} or group {} is not one of the sandbox's own", process.uid, process.gid))?,
    };
    sys::chown_stdio(owner.0, owner.1);
    for &(resource, soft, hard) in &process.rlimits {
        step(sys::set_rlimit(resource, soft, hard), "setting a resource limit")?;
    }
    sys::set_umask(0o022);
    enter_working_directory(process, owner, first)?;
    if let Some(profile) = &process.apparmor {
        set_apparmor(profile)?;
    }
    sys::close_range_on_exec(3);
    if let Some(users) = &home.users {
        step(sys::setns(users, libc::CLONE_NEWUSER), "joining the sandbox's users")?;
    }
    give_up_privileges(process)?;
    run(process)
}

/// The terminal also appears as `/dev/console`. A convenience: its absence stops nobody.
fn bind_console(terminal: &OwnedFd) {
    use nix::mount::{MsFlags, mount};
    use std::os::unix::fs::OpenOptionsExt;
    let created =
        File::options().create(true).write(true).truncate(false).custom_flags(libc::O_NOFOLLOW).open("/dev/console");
    if let Ok(console) = created {
        let source = format!("/proc/self/fd/{}", terminal.as_raw_fd());
        let target = format!("/proc/self/fd/{}", console.as_raw_fd());
        let _ = mount(Some(source.as_str()), target.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>);
    }
}

fn enter_working_directory(process: &Process, owner: (u32, u32), first: bool) -> Result<(), Failure> {
    let cwd = if process.cwd.is_empty() { "/" } else { &process.cwd };
    if first && !Path::new(cwd).exists() {
        step(std::fs::create_dir_all(cwd), &format!("creating working directory \"{cwd}\""))?;
        let _ = std::os::unix::fs::chown(cwd, Some(owner.0), Some(owner.1));
    }
    step(std::env::set_current_dir(cwd), &format!("chdir to cwd (\"{cwd}\") set in config.json failed"))
}

fn set_apparmor(profile: &str) -> Result<(), Failure> {
    let what = format!("applying AppArmor profile \"{profile}\"");
    let file = ["/proc/self/attr/apparmor/exec", "/proc/self/attr/exec"]
        .iter()
        .find_map(|path| File::options().write(true).open(path).ok())
        .ok_or_else(|| format!("{what}: AppArmor is not available"))?;
    step((&file).write_all(format!("exec {profile}").as_bytes()), &what)
}

fn give_up_privileges(process: &Process) -> Result<(), Failure> {
    let sets = process.capabilities;
    if process.no_new_privileges {
        step(sys::set_no_new_privileges(), "setting no_new_privs")?;
    }
    // Without no_new_privs a filter may only be installed while we still are privileged; with it, as late as possible.
    let filter = process.seccomp.as_ref().map(|f| f.as_bytes());
    if let (Some(filter), false) = (filter, process.no_new_privileges) {
        step(sys::apply_seccomp(filter), "applying the seccomp profile")?;
    }
    step(sys::limit_bounding_set(sets.bounding), "limiting capabilities")?;
    step(sys::keep_capabilities(true), "keeping capabilities")?;
    step(sys::set_user(process.uid, process.gid, &process.groups), "changing the user")?;
    step(sys::set_capabilities(sets.permitted | sets.ambient, sets.ambient), "setting capabilities")?;
    step(sys::raise_ambient(sets.ambient), "raising ambient capabilities")?;
    step(sys::keep_capabilities(false), "keeping capabilities")?;
    if let (Some(filter), true) = (filter, process.no_new_privileges) {
        step(sys::apply_seccomp(filter), "applying the seccomp profile")?;
    }
    Ok(())
}

fn run(process: &Process) -> Result<std::convert::Infallible, Failure> {
    let strings = |list: &[crate::spec::bundle::Bytes]| {
        list.iter()
            .map(|s| CString::new(s.as_bytes()).map_err(|_| "an argument or variable contains a NUL byte".to_string()))
            .collect::<Result<Vec<_>, _>>()
    };
    let args = strings(&process.args)?;
    let mut env = strings(&process.env)?;
    if !env.iter().any(|v| v.as_bytes().starts_with(b"HOME=")) {
        let home = home_of(process.uid);
        env.push(CString::new(format!("HOME={home}")).map_err(|e| e.to_string())?);
    }
    if process.terminal && !env.iter().any(|v| v.as_bytes().starts_with(b"TERM=")) {
        env.push(c"TERM=xterm".into());
    }
    let name = args.first().ok_or("no command specified")?;
    let shown = name.to_string_lossy();
    if name.as_bytes().is_empty() {
        return Err("exec: \"\": executable file not found in $PATH".into());
    }
    if name.as_bytes().contains(&b'/') {
        return Err(explain(&shown, &sys::exec(name, &args, &env)));
    }
    let path = env
        .iter()
        .find_map(|v| v.as_bytes().strip_prefix(b"PATH="))
        .map_or(DEFAULT_PATH.into(), String::from_utf8_lossy);
    let mut denied = None;
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let Ok(candidate) = CString::new(format!("{dir}/{shown}")) else { continue };
        let error = sys::exec(&candidate, &args, &env);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => denied = Some(error),
            _ => return Err(explain(&shown, &error)),
        }
    }
    Err(match denied {
        Some(error) => explain(&shown, &error),
        None => format!("exec: \"{shown}\": executable file not found in $PATH"),
    })
}

/// The wording that clients of other engines look for.
fn explain(name: &str, error: &io::Error) -> String {
    let reason = match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory",
        Some(libc::EACCES) => "permission denied",
        Some(libc::ENOEXEC) => "exec format error",
        Some(libc::E2BIG) => "argument list too long",
        Some(libc::EISDIR) => "is a directory",
        _ => return format!("exec: \"{name}\": {error}"),
    };
    match error.raw_os_error() {
        Some(libc::ENOENT) => format!("exec: \"{name}\": stat {name}: {reason}"),
        _ => format!("exec: \"{name}\": {reason}"),
    }
}

fn home_of(uid: u32) -> String {
    let table = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    table
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|f| f.len() >= 6 && f[2].parse() == Ok(uid))
        .map_or_else(|| "/".to_string(), |f| f[5].to_string())
}
