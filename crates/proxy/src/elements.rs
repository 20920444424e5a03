//! Changes of elements alone, told to the kernel directly.
//!
//! Most changes are of a few elements: an endpoint comes or goes, a pod enters a policy's set. Starting nft for them
//! would cost more than the change. [`encode`] writes one atomic batch in nf_tables' own form; what it does not know how
//! to write (ranges, chains, sets) it leaves to nft. Keys are laid out as nft lays them out: each part in whole words,
//! addresses and ports as on the wire, indexes as the machine counts.

use std::cmp::Reverse;
use std::io;
use std::net::IpAddr;

use crate::conntrack::{Netfilter, number_of};
use crate::map::{Element, Value};
use crate::{Family, TABLE};

/// Bytes of one batch; more goes through nft, which splits it. The kernel takes a batch as one datagram.
const MAX_BATCH_BYTES: usize = 128 << 10;
/// Elements in one message: lengths of attributes have 16 bits.
const ELEMENTS_PER_MESSAGE: usize = 256;
/// Elements in one batch when there are many: keeps it well below [`MAX_BATCH_BYTES`].
const ELEMENTS_PER_BATCH: usize = 768;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// The subsystem's number, in the batch's frame and above the message types.
const NF_TABLES: u16 = 10;
const NEW_ELEMENTS: u16 = (NF_TABLES << 8) | 12;
const DELETE_ELEMENTS: u16 = (NF_TABLES << 8) | 14;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NESTED: u16 = 0x8000;

/// `NFTA_SET_ELEM_LIST_*`.
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
/// `NFTA_SET_ELEM_*`, `NFTA_DATA_*`, `NFTA_VERDICT_*`.
const KEY: u16 = 1;
const DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const DROP: i32 = 0;
const GOTO: i32 = -4;

/// One element to take away or to put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub element: Element,
    /// What it leads to when it is put in; `None`: it is taken away.
    pub value: Option<Value>,
}

/// Changes as one batch: the bytes, and the last message's number. `None` when nft has to do it.
pub fn encode(changes: &[(Family, Change)], first_sequence: u32) -> Option<(Vec<u8>, u32)> {
    let mut batch = Batch { bytes: Vec::with_capacity(1024), sequence: first_sequence };
    batch.frame(BATCH_BEGIN, 0);
    let mut rest = changes;
    while let [(family, first), ..] = rest {
        let same = |(f, c): &(Family, Change)| {
            f == family && c.element.map() == first.element.map() && c.value.is_some() == first.value.is_some()
        };
        let count = rest.iter().take(ELEMENTS_PER_MESSAGE).take_while(|entry| same(entry)).count();
        let (now, later) = rest.split_at(count);
        rest = later;
        batch.elements(*family, now, rest.is_empty())?;
        if batch.bytes.len() > MAX_BATCH_BYTES {
            return None;
        }
    }
    let last = batch.sequence;
    batch.frame(BATCH_END, 0);
    Some((batch.bytes, last))
}

impl Netfilter {
    /// Has the kernel make the changes, all or none. `Ok(false)`: they cannot be said this way.
    pub fn change_elements(&mut self, changes: &[(Family, Change)]) -> io::Result<bool> {
        match encode(changes, self.next_sequence()) {
            Some((batch, last)) => self.commit(&batch, last).map(|()| true),
            None => Ok(false),
        }
    }
}

impl Netfilter {
    /// Fills a table that was empty, some hundred elements a commit; how many commits that took.
    pub fn fill(&mut self, family: Family, elements: impl Iterator<Item = Change>) -> io::Result<u32> {
        let mut elements = elements.map(|change| (family, change)).peekable();
        let mut commits = 0;
        let mut some = Vec::with_capacity(ELEMENTS_PER_BATCH);
        while elements.peek().is_some() {
            some.extend(elements.by_ref().take(ELEMENTS_PER_BATCH));
            // The last maps first: the others lead there.
            some.sort_by_key(|(_, change)| Reverse(change.element));
            if !self.change_elements(&some)? {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "an element the kernel cannot be told of"));
            }
            commits += 1;
            some.clear();
        }
        Ok(commits)
    }
}

struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
}

impl Batch {
    fn header(&mut self, kind: u16, flags: u16, family: u8, resource: u16) -> usize {
        let start = self.bytes.len();
        self.sequence = self.sequence.wrapping_add(1);
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn frame(&mut self, kind: u16, family: u8) {
        let start = self.header(kind, 0, family, NF_TABLES);
        self.close(start);
    }

    fn elements(&mut self, family: Family, changes: &[(Family, Change)], last: bool) -> Option<()> {
        let (_, first) = changes.first()?;
        let adding = first.value.is_some();
        let (kind, create) = if adding { (NEW_ELEMENTS, NLM_F_CREATE) } else { (DELETE_ELEMENTS, 0) };
        let flags = create | if last { NLM_F_ACK } else { 0 };
        let start = self.header(kind, flags, number_of(family), 0);
        self.text(LIST_TABLE, TABLE);
        self.text(LIST_SET, &first.element.map().name());
        let list = self.open(LIST_ELEMENTS);
        for (_, change) in changes {
            let element = self.open(LIST_ELEMENT);
            let key = self.open(KEY);
            let mut parts = Parts::default();
            parts.key(&change.element)?;
            self.attribute(DATA_VALUE, parts.bytes());
            self.end(key)?;
            if let Some(value) = change.value.as_ref().filter(|value| **value != Value::There) {
                let data = self.open(DATA);
                match value {
                    Value::There => {}
                    Value::Verdict(verdict) => {
                        let nested = self.open(DATA_VERDICT);
                        let code = if verdict.chain().is_some() { GOTO } else { DROP };
                        self.attribute(VERDICT_CODE, &code.to_be_bytes());
                        if let Some(chain) = verdict.chain() {
                            self.text(VERDICT_CHAIN, chain);
                        }
                        self.end(nested)?;
                    }
                    Value::To(endpoint) => {
                        let mut parts = Parts::default();
                        parts.address(endpoint.address);
                        parts.port(endpoint.port);
                        self.attribute(DATA_VALUE, parts.bytes());
                    }
                }
                self.end(data)?;
            }
            self.end(element)?;
        }
        self.end(list)?;
        self.close(start);
        Some(())
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        start
    }

    /// Sets a nested attribute's length, if it has room for it.
    fn end(&mut self, start: usize) -> Option<()> {
        let length = u16::try_from(self.bytes.len() - start).ok()?;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        Some(())
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend((value.len() as u16 + 4).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, &[text.as_bytes(), &[0]].concat());
    }
}

/// A key or value, each part of it in whole words.
#[derive(Default)]
struct Parts {
    bytes: [u8; MAX_PARTS],
    length: usize,
}

/// Two IPv6 addresses are the longest; an address, a protocol and a port come to less.
const MAX_PARTS: usize = 32;

impl Parts {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn put(&mut self, part: &[u8]) {
        self.bytes[self.length..][..part.len()].copy_from_slice(part);
        self.length += part.len().next_multiple_of(4);
    }

    fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.put(&v4.octets()),
            IpAddr::V6(v6) => self.put(&v6.octets()),
        }
    }

    fn port(&mut self, port: u16) {
        self.put(&port.to_be_bytes());
    }

    fn index(&mut self, index: u16) {
        self.put(&u32::from(index).to_ne_bytes());
    }

    /// `None` for a key that has ranges.
    fn key(&mut self, element: &Element) -> Option<()> {
        match *element {
            Element::Frontend(ip, protocol, port) | Element::Restricted(ip, protocol, port) => {
                self.address(ip);
                self.put(&[protocol.number()]);
                self.port(port);
            }
            Element::NodePort(protocol, port) => {
                self.put(&[protocol.number()]);
                self.port(port);
            }
            Element::Endpoint(_, ip, port, index) => {
                self.address(ip);
                self.port(port);
                self.index(index);
            }
            Element::NodePortEndpoint(_, port, index) => {
                self.port(port);
                self.index(index);
            }
            Element::Hairpin(ip) => {
                self.address(ip);
                self.address(ip);
            }
            Element::ClusterIp(ip) | Element::PolicyIngress(ip) | Element::PolicyEgress(ip) | Element::Peer(_, ip) => {
                self.address(ip)
            }
            Element::NamedPort(_, ip, port) => {
                self.address(ip);
                self.port(port);
            }
            Element::Source(..) => return None,
        }
        Some(())
    }
}
