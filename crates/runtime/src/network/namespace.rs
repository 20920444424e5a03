//! Doing something inside another network namespace.
//!
//! Guarantees: no thread that runs anything else ever changes its namespace.

use std::io;
use std::os::fd::BorrowedFd;

use nix::sched::{CloneFlags, setns};

/// Runs `work` on a thread of its own that has joined the namespace.
pub fn inside<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).stack_size(128 * 1024).spawn_scoped(
            scope,
            move || -> io::Result<T> {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            },
        )?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread in a network namespace died")))
    })
}

/// Opens a TCP connection to a port on a pod's own loopback, as if from inside it.
pub async fn connect(namespace: std::os::fd::OwnedFd, port: u16) -> io::Result<tokio::net::TcpStream> {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
    use std::os::fd::AsFd;
    // The socket is made inside; a socket stays in the namespace it was made in, so connecting can be done here.
    let attempt = |address: SocketAddr, namespace: std::os::fd::OwnedFd| async move {
        let socket = tokio::task::spawn_blocking(move || {
            inside(namespace.as_fd(), move || {
                let domain = if address.is_ipv4() {
                    nix::sys::socket::AddressFamily::Inet
                } else {
                    nix::sys::socket::AddressFamily::Inet6
                };
                let flags = nix::sys::socket::SockFlag::SOCK_CLOEXEC | nix::sys::socket::SockFlag::SOCK_NONBLOCK;
                nix::sys::socket::socket(domain, nix::sys::socket::SockType::Stream, flags, None)
            })
        })
        .await
        .map_err(io::Error::other)???;
        let socket = tokio::net::TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        Ok::<_, io::Error>(stream)
    };
    let other = namespace.try_clone()?;
    match attempt((Ipv4Addr::LOCALHOST, port).into(), namespace).await {
        Ok(stream) => Ok(stream),
        Err(first) => attempt((Ipv6Addr::LOCALHOST, port).into(), other).await.map_err(|_| first),
    }
}
