//! The shim's raw system calls, each wrapped so that the rest of the shim needs no `unsafe`.
//!
//! Named room for unsafe code. Everything here assumes what `shim` guarantees: the process has one thread.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::protocol::{MAX_FDS, MAX_PACKET};

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The process forked: which side is this?
pub enum Forked {
    /// The parent, with the child's process id.
    Parent(i32),
    /// The child.
    Child,
}

/// `fork`, with new namespaces for the child.
pub fn clone_process(namespaces: libc::c_int) -> io::Result<Forked> {
    // SAFETY: without CLONE_VM this is fork(2): the child gets a copy of the address space and goes on here with a
    // copy of the stack. The process has a single thread, so no lock can be held by another one across it.
    let pid = check(unsafe {
        libc::syscall(libc::SYS_clone, (libc::SIGCHLD | namespaces) as libc::c_ulong, 0usize, 0usize, 0usize, 0usize)
    })?;
    Ok(if pid == 0 { Forked::Child } else { Forked::Parent(pid as i32) })
}

/// Ends this process at once, without running destructors that belong to the parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// A descriptor that names a process whatever becomes of its number.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers; a non-negative result is a new descriptor that we own.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Joins namespaces of a process (by pidfd) or one by its file.
pub fn setns(fd: &OwnedFd, kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: takes an open descriptor and a flag word.
    check(unsafe { libc::setns(fd.as_raw_fd(), kinds) }.into()).map(drop)
}

/// Leaves namespaces for new ones.
pub fn unshare(kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: takes a flag word.
    check(unsafe { libc::unshare(kinds) }.into()).map(drop)
}

/// Marks every descriptor from `first` on close-on-exec, so that nothing of ours leaks into a container.
pub fn close_range_on_exec(first: u32) {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: only changes flags of descriptors. Refusal (an old kernel) is harmless: all of ours have the flag already.
    unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
}

/// Closes every descriptor from `first` on, for a process that needs none any more and never drops their owners.
pub fn close_all_from(first: u32) {
    // SAFETY: the caller goes on without descriptors.
    unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
}

/// Puts a descriptor at number `target` (0, 1 or 2), without close-on-exec.
pub fn place_fd(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    // SAFETY: both numbers are valid; replacing one of the standard streams is the purpose.
    unsafe {
        if fd.as_raw_fd() == target {
            check(libc::fcntl(target, libc::F_SETFD, 0).into()).map(drop)
        } else {
            check(libc::dup2(fd.as_raw_fd(), target).into()).map(drop)
        }
    }
}

/// The owner of descriptor 0, 1 or 2 becomes the user, if it is a pipe or terminal that a container may open again
/// through `/dev/stdout`.
pub fn chown_stdio(uid: u32, gid: u32) {
    for fd in 0..3 {
        // SAFETY: plain calls on a number and a local buffer; failing is harmless.
        unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            if libc::fstat(fd, &mut stat) != 0 {
                continue;
            }
            let kind = stat.st_mode & libc::S_IFMT;
            let null = kind == libc::S_IFCHR && stat.st_rdev == libc::makedev(1, 3);
            if null || stat.st_uid == uid || (kind != libc::S_IFIFO && kind != libc::S_IFCHR) {
                continue;
            }
            // Terminals belong to group tty (5); a pipe goes to the user's group.
            libc::fchown(fd, uid, if kind == libc::S_IFCHR { libc::gid_t::MAX } else { gid });
        }
    }
}

/// Opens `path` as if `root` were `/`: symbolic links and `..` cannot leave it.
pub fn open_in_root(root: BorrowedFd<'_>, path: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct OpenHow {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    const RESOLVE_IN_ROOT: u64 = 0x10;
    const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
    let path = CString::new(path).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let how = OpenHow {
        flags: (flags | libc::O_CLOEXEC) as u64,
        mode: if flags & libc::O_CREAT != 0 { 0o644 } else { 0 },
        resolve: RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
    };
    // SAFETY: the struct is what openat2(2) describes and its size is passed; the result is a new descriptor.
    unsafe {
        let fd = check(libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &how as *const OpenHow,
            std::mem::size_of::<OpenHow>(),
        ))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// `mkdirat`.
pub fn mkdir_at(dir: BorrowedFd<'_>, name: &str, mode: u32) -> io::Result<()> {
    let name = CString::new(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: an open directory and a terminated string.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }.into()).map(drop)
}

/// mount_setattr(2)'s struct.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// A copy of the mounts at a path, not attached anywhere, in which files have the owners that a user namespace makes of
/// them.
pub fn mount_for_users(path: &CStr, users: &OwnedFd, recursive: bool) -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_int = 1;
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    let attr = MountAttr { set: MOUNT_ATTR_IDMAP, clear: 0, propagation: 0, userns: users.as_raw_fd() as u64 };
    // SAFETY: a terminated path and integers; a non-negative result is a new descriptor that we own. The struct is
    // mount_setattr(2)'s and its size is passed.
    unsafe {
        let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | recursive;
        let tree = check(libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags))?;
        let tree = OwnedFd::from_raw_fd(tree as RawFd);
        check(libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &attr as *const MountAttr,
            std::mem::size_of::<MountAttr>(),
        ))?;
        Ok(tree)
    }
}

/// Attaches a copy of mounts to a path.
pub fn attach_mount(tree: &OwnedFd, path: &CStr) -> io::Result<()> {
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    const MOVE_MOUNT_T_SYMLINKS: libc::c_uint = 0x10;
    // SAFETY: an open descriptor and terminated paths.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS,
        )
    })
    .map(drop)
}

/// Makes a mount and everything under it read-only.
pub fn mount_read_only_recursive(path: &CStr) -> io::Result<()> {
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, userns: 0 };
    // SAFETY: the struct is mount_setattr(2)'s and its size is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &attr as *const MountAttr,
            std::mem::size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Sends a packet with descriptors beside it.
pub fn send_packet(socket: BorrowedFd<'_>, data: &[u8], fds: &[RawFd]) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let iov = [io::IoSlice::new(data)];
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    sendmsg::<()>(socket.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives a packet; `None` when the other side has closed.
pub fn receive_packet(socket: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    // What is pending says how large the packet is, so that idle shims keep no large buffer.
    // SAFETY: a peek of zero length that asks for the true length.
    let pending =
        check(unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), 0, libc::MSG_PEEK | libc::MSG_TRUNC) }
            as libc::c_long)? as usize;
    let mut buffer = vec![0u8; pending.clamp(1, MAX_PACKET)];
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut fds = Vec::new();
    let length = {
        let mut iov = [io::IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = part {
                // SAFETY: the kernel has just installed these descriptors for us alone.
                fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        message.bytes
    };
    if length == 0 && fds.is_empty() {
        return Ok(None);
    }
    buffer.truncate(length);
    Ok(Some((buffer, fds)))
}

/// Borrows a descriptor by number for the duration of a poll.
pub fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: used for building poll sets only: each number comes from an owner that the set does not outlive.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Accepts a connection.
pub fn accept(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the result is a new descriptor that we own.
    unsafe {
        let fd = check(
            libc::accept4(
                socket.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            )
            .into(),
        )?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Makes reads and writes of a descriptor non-blocking.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: flag calls on an open descriptor.
    unsafe {
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL).into())? as libc::c_int;
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK).into()).map(drop)
    }
}

/// Opens a new pseudo terminal of the current root's `/dev/ptmx`; returns (master, terminal).
pub fn open_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    // SAFETY: string constants and descriptors that were just opened.
    unsafe {
        let master =
            check(libc::open(c"/dev/ptmx".as_ptr(), libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC).into())? as RawFd;
        let master = OwnedFd::from_raw_fd(master);
        let unlock: libc::c_int = 0;
        check(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlock).into())?;
        // The terminal by its master, not by a name that the image might have put elsewhere.
        let terminal = check(
            libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC).into(),
        )? as RawFd;
        Ok((master, OwnedFd::from_raw_fd(terminal)))
    }
}

/// Makes standard input's terminal the controlling one of this session.
pub fn control_terminal() -> io::Result<()> {
    // SAFETY: plain ioctl on descriptor 0.
    check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// Sets a terminal's size.
pub fn resize_terminal(fd: BorrowedFd<'_>, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: an open terminal and a struct of the type the request wants.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &size) }.into()).map(drop)
}

/// Sets a resource limit.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: a struct of the right type.
    check(unsafe { libc::setrlimit(resource as _, &limit) }.into()).map(drop)
}

/// Sets the three user and three group ids and the supplementary groups, in the order that works.
pub fn set_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: the groups are a slice of gid_t; with one thread the raw calls reach the whole process.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

fn prctl(option: libc::c_int, a: u64, b: u64) -> io::Result<()> {
    // SAFETY: only options with integer arguments are passed.
    check(unsafe { libc::prctl(option, a as libc::c_ulong, b as libc::c_ulong, 0, 0) }.into()).map(drop)
}

/// Drops every capability outside `keep` from the bounding set.
pub fn limit_bounding_set(keep: u64) -> io::Result<()> {
    for capability in 0..64u64 {
        // SAFETY: reads one bit by number; past the last capability it fails.
        let present = unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) };
        if present < 0 {
            break;
        }
        if present == 1 && keep & (1 << capability) == 0 {
            prctl(libc::PR_CAPBSET_DROP, capability, 0)?;
        }
    }
    Ok(())
}

/// Keeps permitted capabilities across a change of user id.
pub fn keep_capabilities(keep: bool) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, keep.into(), 0)
}

/// Sets effective and permitted to one mask, inheritable to another.
pub fn set_capabilities(permitted: u64, inheritable: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let mut data = [0u32; 6];
    for half in 0..2 {
        let shift = 32 * half;
        data[3 * half] = (permitted >> shift) as u32;
        data[3 * half + 1] = (permitted >> shift) as u32;
        data[3 * half + 2] = (inheritable >> shift) as u32;
    }
    // SAFETY: header and data are laid out as capset(2) says for version 3.
    check(unsafe { libc::syscall(libc::SYS_capset, &header as *const Header, data.as_ptr()) }).map(drop)
}

/// Raises the ambient capabilities of a mask.
pub fn raise_ambient(mask: u64) -> io::Result<()> {
    for capability in (0..64u64).filter(|c| mask & (1 << c) != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, capability)?;
    }
    Ok(())
}

/// Programs run from here on gain no privileges.
pub fn set_no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)
}

/// A new, empty session keyring, so that containers do not share the node's.
pub fn new_session_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring. Kernels without keyrings refuse, which is as good.
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0usize) };
}

/// Applies a compiled seccomp program to this process.
pub fn apply_seccomp(program: &[u8]) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const u8,
    }
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    let length = u16::try_from(program.len() / 8).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = Program { length, filter: program.as_ptr() };
    // SAFETY: the kernel reads `length` instructions of 8 bytes, which the slice holds, and validates them.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0 as libc::c_uint, &program as *const Program)
    })
    .map(drop)
}

/// Becomes another program. Returns only on failure.
pub fn exec(program: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with a null pointer and outlive the call.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Reaps one ended child, if any: (pid, code), where killed by signal n is 128 + n. With a pid, only that one.
pub fn reap(pid: Option<i32>, wait: bool) -> Option<(i32, i32)> {
    let mut status = 0;
    let flags = if wait { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: writes the status to a local.
        let ended = unsafe { libc::waitpid(pid.unwrap_or(-1), &mut status, flags) };
        if ended < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
            continue;
        }
        if ended <= 0 {
            return None;
        }
        let code = if libc::WIFEXITED(status) {
            libc::WEXITSTATUS(status)
        } else if libc::WIFSIGNALED(status) {
            128 + libc::WTERMSIG(status)
        } else {
            continue;
        };
        return Some((ended, code));
    }
}

/// This process is killed when its parent ends.
pub fn end_with_parent() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0)
}

/// Processes whose parents end become children of this one.
pub fn adopt_orphans() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0)
}

/// Sends a signal.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes integers.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// Ignores or restores a signal's default.
pub fn ignore_signal(signal: i32, ignore: bool) {
    // SAFETY: SIG_IGN and SIG_DFL are valid dispositions and no handler is ours.
    unsafe { libc::signal(signal, if ignore { libc::SIG_IGN } else { libc::SIG_DFL }) };
}

/// All signals back to their defaults and unblocked, as a fresh program expects.
pub fn reset_signals() {
    for signal in 1..=64 {
        ignore_signal(signal, false);
    }
    // SAFETY: an empty local set.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// Blocks SIGCHLD and returns a descriptor that becomes readable when a child has ended.
pub fn child_signal_fd() -> io::Result<OwnedFd> {
    // SAFETY: a local set; the result is a new descriptor.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        let fd = check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Waits for the process to be signalled (an init with nothing else to do).
pub fn pause() {
    // SAFETY: no arguments.
    unsafe { libc::pause() };
}

/// Sets the mask for new files.
pub fn set_umask(mask: u32) {
    // SAFETY: cannot fail.
    unsafe { libc::umask(mask) };
}

/// Names the process for `ps`.
pub fn name_process(name: &CStr) {
    // SAFETY: a terminated string, of which the kernel copies at most 16 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Nanoseconds since 1970.
pub fn now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}
