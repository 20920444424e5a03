//! An address held on `lo`, so that a server on this node can listen on a Service's cluster IP.
//!
//! Speaks rtnetlink itself, two requests. Only what was added is taken off again.

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const NLMSG_ERROR: u16 = 2;
/// Request, acknowledge.
const FLAGS: u16 = 1 | 4;
/// Create, and only if it is not there.
const CREATE: u16 = 0x400 | 0x200;
/// `lo` is the first link of every network namespace.
const LOOPBACK: u32 = 1;
/// Valid on this host only.
const SCOPE_HOST: u8 = 254;
/// Usable at once: nobody else on `lo` could have it.
const NO_DETECTION: u8 = 2;
/// The attributes `IFA_ADDRESS` and `IFA_LOCAL`.
const ATTRIBUTES: [u16; 2] = [1, 2];

/// An address this process added; it goes with this value.
#[derive(Debug)]
pub struct Held(IpAddr);

/// Adds an address to `lo`; `None` when it was there already.
pub fn hold(address: IpAddr) -> io::Result<Option<Held>> {
    match request(NEW_ADDRESS, FLAGS | CREATE, address) {
        Ok(()) => Ok(Some(Held(address))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(error),
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = request(DELETE_ADDRESS, FLAGS, self.0) {
            tracing::warn!("cannot take {} off lo: {error}", self.0);
        }
    }
}

fn request(kind: u16, flags: u16, address: IpAddr) -> io::Result<()> {
    let (family, octets) = match address {
        IpAddr::V4(v4) => (2, v4.octets().to_vec()),
        IpAddr::V6(v6) => (10, v6.octets().to_vec()),
    };
    let mut body = vec![family, octets.len() as u8 * 8, if address.is_ipv6() { NO_DETECTION } else { 0 }, SCOPE_HOST];
    body.extend(LOOPBACK.to_ne_bytes());
    for attribute in ATTRIBUTES {
        body.extend((octets.len() as u16 + 4).to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(&octets);
    }
    let mut packet = Vec::with_capacity(16 + body.len());
    packet.extend((16 + body.len() as u32).to_ne_bytes());
    packet.extend(kind.to_ne_bytes());
    packet.extend(flags.to_ne_bytes());
    packet.extend(1u32.to_ne_bytes());
    packet.extend([0; 4]);
    packet.extend(body);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&packet, 0)?;
    let (reply, _) = socket.recv_from_full()?;
    let number = |at: usize| reply.get(at..at + 4).and_then(|four| four.try_into().ok()).map(i32::from_ne_bytes);
    match (number(4).map(|word| word as u16), number(16)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "unexpected answer from the kernel")),
    }
}
