//! Connections the kernel still remembers although the program changed, and the rule set's generation.
//!
//! A TCP connection to an endpoint that is gone ends by itself. A UDP "connection" goes on for as long as the client
//! sends: to an endpoint that left, or to nowhere if the first packet came before the first endpoint. [`stale`] says
//! which remembered connections lead to nobody who serves; the shell has the kernel forget them. SCTP likewise. Who still
//! serves keeps the connections it has, as with TCP, also where new ones would go to others.
//!
//! Spoken over netlink directly: no tool needs to be installed for it.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use crate::endpoints::Endpoint;
use crate::service::{Front, Protocol};
use crate::{Family, NodeView, Ruleset};

/// Connections looked at in one go, some 150 bytes each; what is left over is found after the next change.
const MAX_CONNECTIONS: usize = 50_000;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// Connection tracking messages: get, delete.
const CT_GET: u16 = (1 << 8) | 1;
const CT_DELETE: u16 = (1 << 8) | 2;
/// nf_tables: the question for a table, and its name.
const GET_TABLE: u16 = (10 << 8) | 1;
const TABLE_NAME: u16 = 1;
/// nf_tables: the question for the generation.
const GET_GENERATION: u16 = (10 << 8) | 16;

/// Attributes of a connection.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const IDENTITY: u16 = 12;
const ZONE: u16 = 18;
/// What a dump is to have, and by which fields of a tuple that is told; within a tuple, the protocol and its number.
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
const BY_PROTOCOL: u32 = 1 << 3;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const NESTED: u16 = 0x8000;
/// Those whose connections outlive their endpoints, by their numbers.
pub(crate) const CONNECTIONLESS: [(Protocol, u8); 2] = [(Protocol::Udp, 17), (Protocol::Sctp, 132)];
/// Attribute types carry flags in their upper bits.
const TYPE_MASK: u16 = 0x3fff;

/// One remembered connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub protocol: Protocol,
    /// Where the client sent to.
    pub destination: (IpAddr, u16),
    /// Who answers, or would.
    pub responder: Endpoint,
    /// The attributes that name it to the kernel, as the kernel wrote them.
    name: Vec<u8>,
}

/// The connections to a front behind which others serve, and not who answers them. `serving` tells, of a Service, who does
/// behind a front.
pub fn stale<'a>(
    connections: &'a [Connection],
    ruleset: &Ruleset,
    node: &NodeView,
    serving: impl Fn(&str, &Front) -> BTreeSet<Endpoint>,
) -> Vec<&'a Connection> {
    let mut known: HashMap<Front, BTreeSet<Endpoint>> = HashMap::new();
    let mut contradicts = |connection: &&Connection| {
        let (address, port) = connection.destination;
        let front = Front::Address(address, connection.protocol, port);
        let owned = ruleset.owner(&front).map(|owner| (front, owner)).or_else(|| {
            let front = Front::NodePort(connection.protocol, port);
            ruleset.owner(&front).filter(|_| node.addresses.contains(&address)).map(|owner| (front, owner))
        });
        owned.is_some_and(|(front, owner)| {
            let serving = known.entry(front).or_insert_with(|| serving(owner, &front));
            !serving.is_empty() && !serving.contains(&connection.responder)
        })
    };
    connections.iter().filter(|connection| contradicts(connection)).collect()
}

/// A channel to the netfilter of the calling thread's network namespace.
pub struct Netfilter {
    socket: Socket,
    sequence: u32,
}

impl Netfilter {
    pub fn open() -> io::Result<Netfilter> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netfilter { socket, sequence: 0 })
    }

    /// A number that grows with every change anybody makes to nftables here.
    pub fn generation(&mut self) -> io::Result<u32> {
        let mut number = None;
        self.request(GET_GENERATION, NLM_F_REQUEST, 0, &[], |reply| {
            number = attribute(reply, 1).and_then(|four| four.try_into().ok()).map(u32::from_be_bytes);
            false
        })?;
        number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no generation in the kernel's answer"))
    }

    /// Whether nftables has a table of this name.
    pub fn has_table(&mut self, family: Family, name: &str) -> io::Result<bool> {
        let body = written(TABLE_NAME, format!("{name}\0").as_bytes());
        match self.request(GET_TABLE, NLM_F_REQUEST, number_of(family), &body, |_| false) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The remembered connections of a family and protocol, at most [`MAX_CONNECTIONS`] of them. The kernel leaves out the
    /// others, of which a node may have very many; one before 5.8 shows them too. It goes through its whole table for each
    /// question.
    pub fn connections(&mut self, family: Family, protocol: Protocol) -> io::Result<Vec<Connection>> {
        let mut out = Vec::new();
        let Some((_, number)) = CONNECTIONLESS.iter().find(|(known, _)| *known == protocol) else { return Ok(out) };
        let by = written(FILTER | NESTED, &written(FILTER_ORIGINAL, &BY_PROTOCOL.to_ne_bytes()));
        let wanted = written(TUPLE_PROTOCOL | NESTED, &written(PROTOCOL_NUMBER, &[*number]));
        let filter = [by, written(TUPLE_ORIGINAL | NESTED, &wanted)].concat();
        self.request(CT_GET, NLM_F_REQUEST | NLM_F_DUMP, number_of(family), &filter, |reply| {
            let found = parse(reply).filter(|found| found.protocol == protocol);
            out.extend(found.filter(|_| out.len() < MAX_CONNECTIONS));
            true
        })?;
        Ok(out)
    }

    /// Has the kernel forget one; it may have done so already.
    pub fn forget(&mut self, connection: &Connection) -> io::Result<()> {
        let family = number_of(Family::of(connection.destination.0));
        match self.request(CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, family, &connection.name, |_| true) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends a batch whose last message, numbered `last`, asks for an acknowledgement.
    pub(crate) fn commit(&mut self, batch: &[u8], last: u32) -> io::Result<()> {
        let first = self.sequence;
        self.sequence = last.wrapping_add(1);
        self.socket.send(batch, 0)?;
        let mut result = Ok(());
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while let Some(message) = rest.get(..16) {
                let length = (word(message, 0) as usize).clamp(16, rest.len());
                let (kind, sequence) = (word(message, 4) as u16, word(message, 8));
                let payload = &rest[16..length];
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if kind != NLMSG_ERROR || !(first..=last).contains(&sequence) {
                    continue;
                }
                let code = word(payload, 0) as i32;
                if code != 0 && result.is_ok() {
                    result = Err(io::Error::from_raw_os_error(-code));
                }
                // A batch that could not be committed at all is answered by its first message's number.
                if sequence == last || (code != 0 && sequence == first.wrapping_add(1)) {
                    return result;
                }
            }
        }
    }

    /// Sends one request and shows the attributes of each answer to `each`, until the end of the dump, the
    /// acknowledgement, or until `each` has enough.
    fn request(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        body: &[u8],
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = 20 + body.len();
        let mut packet = Vec::with_capacity(length);
        packet.extend((length as u32).to_ne_bytes());
        packet.extend(kind.to_ne_bytes());
        packet.extend(flags.to_ne_bytes());
        packet.extend(self.sequence.to_ne_bytes());
        packet.extend([0; 4]);
        packet.extend([family, 0, 0, 0]);
        packet.extend(body);
        self.socket.send(&packet, 0)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while let Some(message) = rest.get(..16) {
                let length = (word(message, 0) as usize).clamp(16, rest.len());
                let (kind, sequence) = (word(message, 4) as u16, word(message, 8));
                let payload = &rest[16..length];
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = payload.get(..4).map_or(0, |_| word(payload, 0) as i32);
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ if !each(payload.get(4..).unwrap_or_default()) => return Ok(()),
                    _ => {}
                }
            }
        }
    }
}

pub(crate) fn number_of(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// An attribute, padded.
fn written(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// Four bytes in the machine's order; the caller has checked that they are there.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// Type, whole attribute and value of each attribute.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let whole = bytes.get(..length).filter(|_| length >= 4)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, whole, &whole[4..]))
    })
}

fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _, _)| *k == kind).map(|(_, _, value)| value)
}

fn parse(reply: &[u8]) -> Option<Connection> {
    let original = attribute(reply, TUPLE_ORIGINAL)?;
    let answer = attribute(reply, TUPLE_REPLY)?;
    let number = attribute(attribute(original, TUPLE_PROTOCOL)?, PROTOCOL_NUMBER)?.first()?;
    let protocol = CONNECTIONLESS.iter().find(|(_, known)| known == number)?.0;
    let mut name = Vec::new();
    for (kind, whole, _) in attributes(reply) {
        if matches!(kind, TUPLE_ORIGINAL | IDENTITY | ZONE) {
            name.extend(whole);
            name.resize(name.len().next_multiple_of(4), 0);
        }
    }
    let (address, port) = side(answer, Side::Source)?;
    Some(Connection {
        protocol,
        destination: side(original, Side::Destination)?,
        responder: Endpoint { address, port },
        name,
    })
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

/// One end of a tuple.
fn side(tuple: &[u8], side: Side) -> Option<(IpAddr, u16)> {
    let (v4, v6, port) = match side {
        Side::Source => (1, 3, 2),
        Side::Destination => (2, 4, 3),
    };
    let (addresses, ports) = (attribute(tuple, 1)?, attribute(tuple, 2)?);
    let address = match attribute(addresses, v4) {
        Some(four) => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(four).ok()?)),
        None => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(attribute(addresses, v6)?).ok()?)),
    };
    Some((address, u16::from_be_bytes(attribute(ports, port)?.try_into().ok()?)))
}

#[cfg(test)]
impl Connection {
    pub(crate) fn example(protocol: Protocol, destination: (IpAddr, u16), responder: Endpoint) -> Connection {
        Connection { protocol, destination, responder, name: Vec::new() }
    }
}
