//! Links, addresses and routes by rtnetlink: exactly the requests that pod networking makes, synchronous.
//!
//! A socket belongs to the network namespace it was opened in, wherever it is used, so nothing here ever changes a
//! thread's namespace except the short-lived thread that opens a socket inside a pod.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

/// Largest answer, in bytes: one link's attributes take a few thousand.
const ANSWER: usize = 64 * 1024;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const NESTED: u16 = 0x8000;
const IFF_UP: u32 = 1;
const AF_BRIDGE: u8 = 7;

/// A link as the kernel shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// The bridge it is a port of, else 0.
    pub master: u32,
    /// Hardware address.
    pub address: Vec<u8>,
    /// Largest packet.
    pub mtu: u32,
    /// Bytes received, errors receiving, bytes sent, errors sending.
    pub counters: [u64; 4],
}

/// A conversation with one network namespace's routing tables.
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A message under construction.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16) -> Message {
        let mut bytes = vec![0u8; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        Message { bytes }
    }

    /// `struct ifinfomsg`.
    fn link(mut self, family: u8, index: u32, flags: u32, change: u32) -> Message {
        self.bytes.extend_from_slice(&[family, 0, 0, 0]);
        for word in [index, flags, change] {
            self.bytes.extend_from_slice(&word.to_ne_bytes());
        }
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Message {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Message {
        let length = (value.len() + 4) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn number(self, kind: u16, value: u32) -> Message {
        self.attribute(kind, &value.to_ne_bytes())
    }

    fn name(self, kind: u16, value: &str) -> Message {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    fn nest(mut self, kind: u16, fill: impl FnOnce(Message) -> Message) -> Message {
        let start = self.bytes.len();
        self = fill(self.raw(&[0; 4]));
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self
    }
}

impl Netlink {
    /// In this process's network namespace.
    pub fn open() -> io::Result<Netlink> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// In another network namespace.
    pub fn open_in(namespace: BorrowedFd<'_>) -> io::Result<Netlink> {
        super::namespace::inside(namespace, Netlink::open)?
    }

    fn ask(&mut self, mut message: Message, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.sequence += 1;
        let length = message.bytes.len() as u32;
        message.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        message.bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        sendto(self.socket.as_raw_fd(), &message.bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut buffer = vec![0u8; ANSWER];
        loop {
            let n = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..n];
            while rest.len() >= 16 {
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                if length < 16 || length > rest.len() {
                    return Err(io::Error::from(io::ErrorKind::InvalidData));
                }
                let (one, next) = rest.split_at(length.next_multiple_of(4).min(rest.len()));
                rest = next;
                let sequence = u32::from_ne_bytes([one[8], one[9], one[10], one[11]]);
                if sequence != self.sequence {
                    continue;
                }
                match u16::from_ne_bytes([one[4], one[5]]) {
                    NLMSG_ERROR if length >= 20 => {
                        let code = i32::from_ne_bytes([one[16], one[17], one[18], one[19]]);
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    NLMSG_DONE => return Ok(()),
                    kind => each(kind, &one[16..length]),
                }
            }
        }
    }

    fn tell(&mut self, message: Message) -> io::Result<()> {
        self.ask(message, |_, _| {})
    }

    /// The link of a name.
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut found = None;
        let message = Message::new(RTM_GETLINK, NLM_F_ACK).link(0, 0, 0, 0).name(IFLA_IFNAME, name);
        match self.ask(message, |kind, data| {
            if kind == RTM_NEWLINK {
                found = parse_link(data);
            }
        }) {
            Ok(()) => Ok(found),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Every link.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut found = Vec::new();
        self.ask(Message::new(RTM_GETLINK, NLM_F_DUMP).link(0, 0, 0, 0), |kind, data| {
            if kind == RTM_NEWLINK {
                found.extend(parse_link(data));
            }
        })?;
        Ok(found)
    }

    /// Makes a bridge; one that is there already is fine.
    pub fn add_bridge(&mut self, name: &str) -> io::Result<()> {
        let message = Message::new(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            .link(0, 0, 0, 0)
            .name(IFLA_IFNAME, name)
            .nest(IFLA_LINKINFO | NESTED, |m| m.name(IFLA_INFO_KIND, "bridge"));
        exists_is_fine(self.tell(message))
    }

    /// Makes a pair: `name` here, up, a port of bridge `master`; `peer` in another namespace.
    pub fn add_veth(&mut self, name: &str, master: u32, peer: &str, namespace: RawFd, mtu: u32) -> io::Result<()> {
        let message = Message::new(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            .link(0, 0, IFF_UP, IFF_UP)
            .name(IFLA_IFNAME, name)
            .number(IFLA_MTU, mtu)
            .number(IFLA_MASTER, master)
            .nest(IFLA_LINKINFO | NESTED, |m| {
                m.name(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA | NESTED, |m| {
                    m.nest(VETH_INFO_PEER | NESTED, |m| {
                        m.raw(&[0; 16])
                            .name(IFLA_IFNAME, peer)
                            .number(IFLA_MTU, mtu)
                            .number(IFLA_NET_NS_FD, namespace as u32)
                    })
                })
            });
        self.tell(message)
    }

    /// Brings a link up.
    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.tell(Message::new(RTM_NEWLINK, NLM_F_ACK).link(0, index, IFF_UP, IFF_UP))
    }

    /// Sets a link's hardware address.
    pub fn set_address(&mut self, index: u32, address: &[u8]) -> io::Result<()> {
        self.tell(Message::new(RTM_NEWLINK, NLM_F_ACK).link(0, index, 0, 0).attribute(IFLA_ADDRESS, address))
    }

    /// Lets a bridge send a port's packets back to it, so that a pod reaches itself through its Service.
    pub fn set_hairpin(&mut self, index: u32) -> io::Result<()> {
        let message = Message::new(RTM_SETLINK, NLM_F_ACK)
            .link(AF_BRIDGE, index, 0, 0)
            .nest(IFLA_PROTINFO | NESTED, |m| m.attribute(IFLA_BRPORT_MODE, &[1]));
        self.tell(message)
    }

    /// Removes a link; absence is fine.
    pub fn delete_link(&mut self, name: &str) -> io::Result<()> {
        match self.tell(Message::new(RTM_DELLINK, NLM_F_ACK).link(0, 0, 0, 0).name(IFLA_IFNAME, name)) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Puts a link into a group; false when there is no such link.
    pub fn set_group(&mut self, name: &str, group: u32) -> io::Result<bool> {
        // Not NEWLINK, which without that link would take the whole group for meant.
        let message = Message::new(RTM_SETLINK, NLM_F_ACK).link(0, 0, 0, 0).name(IFLA_IFNAME, name);
        match self.tell(message.number(IFLA_GROUP, group)) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Removes every link of a group; an empty group is fine.
    pub fn delete_group(&mut self, group: u32) -> io::Result<()> {
        match self.tell(Message::new(RTM_DELLINK, NLM_F_ACK).link(0, 0, 0, 0).number(IFLA_GROUP, group)) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Gives a link an address; one that it has already is fine.
    pub fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        const IFA_ADDRESS: u16 = 1;
        const IFA_LOCAL: u16 = 2;
        const IFA_BROADCAST: u16 = 4;
        /// No duplicate address detection: addresses are ours to give, and pods must not wait a second for it.
        const IFA_F_NODAD: u8 = 2;
        let mut header = vec![family(address), prefix, IFA_F_NODAD, 0];
        header.extend_from_slice(&index.to_ne_bytes());
        let mut message = Message::new(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            .raw(&header)
            .attribute(IFA_LOCAL, &octets(address))
            .attribute(IFA_ADDRESS, &octets(address));
        if let IpAddr::V4(v4) = address {
            let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            let broadcast = Ipv4Addr::from(u32::from(v4) | host);
            message = message.attribute(IFA_BROADCAST, &broadcast.octets());
        }
        exists_is_fine(self.tell(message))
    }

    /// Adds a default route.
    pub fn add_default_route(&mut self, gateway: IpAddr, index: u32) -> io::Result<()> {
        const RTA_OIF: u16 = 4;
        const RTA_GATEWAY: u16 = 5;
        const RT_TABLE_MAIN: u8 = 254;
        const RTPROT_STATIC: u8 = 4;
        const RTN_UNICAST: u8 = 1;
        let header = [family(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
        let message = Message::new(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            .raw(&header)
            .attribute(RTA_GATEWAY, &octets(gateway))
            .number(RTA_OIF, index);
        exists_is_fine(self.tell(message))
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn exists_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn word(data: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(..4)?.try_into().ok()?))
}

fn parse_link(data: &[u8]) -> Option<Link> {
    let mut link = Link { index: word(data.get(4..)?)?, up: word(data.get(8..)?)? & IFF_UP != 0, ..Link::default() };
    let mut rest = data.get(16..)?;
    while rest.len() >= 4 {
        let length = u16::from_ne_bytes([rest[0], rest[1]]) as usize;
        let kind = u16::from_ne_bytes([rest[2], rest[3]]) & !NESTED;
        if length < 4 || length > rest.len() {
            break;
        }
        let value = &rest[4..length];
        match kind {
            IFLA_IFNAME => link.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_string(),
            IFLA_MASTER => link.master = word(value)?,
            IFLA_MTU => link.mtu = word(value)?,
            IFLA_ADDRESS => link.address = value.to_vec(),
            IFLA_STATS64 => {
                // struct rtnl_link_stats64: rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, …
                let at = |n: usize| {
                    value.get(n * 8..n * 8 + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
                };
                link.counters = [at(2), at(4), at(3), at(5)];
            }
            _ => {}
        }
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    Some(link)
}
