//! Changes of elements alone, told to the kernel directly.
//!
//! Most changes are of a few elements: an endpoint comes or goes, a pod enters a policy's set. Starting nft for them
//! would cost more than the change. [`encode`] writes one atomic batch in nf_tables' own form; what it does not know how
//! to write (ranges, chains, sets) it leaves to nft. Keys are laid out as nft lays them out: each part in whole words,
//! addresses and ports as on the wire, indexes as the machine counts.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use crate::conntrack::{Netfilter, number_of};
use crate::nft::Map;
use crate::service::Protocol;
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
    pub map: Map,
    pub key: Arc<str>,
    /// What it leads to, if anything, when it is put in; `None`: it is taken away.
    pub value: Option<Arc<str>>,
}

/// Changes as one batch: the bytes, and the last message's number. `None` when nft has to do it.
pub fn encode(changes: &[(Family, Change)], first_sequence: u32) -> Option<(Vec<u8>, u32)> {
    let mut batch = Batch { bytes: Vec::with_capacity(1024), sequence: first_sequence };
    batch.frame(BATCH_BEGIN, 0);
    let mut rest = changes;
    while let [(family, first), ..] = rest {
        let same =
            |(f, c): &(Family, Change)| f == family && c.map == first.map && c.value.is_some() == first.value.is_some();
        let count = rest.iter().take(ELEMENTS_PER_MESSAGE).take_while(|entry| same(entry)).count();
        let (now, later) = rest.split_at(count);
        rest = later;
        batch.elements(*family, first.map, now, rest.is_empty())?;
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
    pub fn fill(&mut self, changes: &[(Family, Change)]) -> io::Result<u32> {
        let mut commits = 0;
        for some in changes.chunks(ELEMENTS_PER_BATCH) {
            if !self.change_elements(some)? {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "an element the kernel cannot be told of"));
            }
            commits += 1;
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

    fn elements(&mut self, family: Family, map: Map, changes: &[(Family, Change)], last: bool) -> Option<()> {
        let adding = changes.first()?.1.value.is_some();
        let (kind, create) = if adding { (NEW_ELEMENTS, NLM_F_CREATE) } else { (DELETE_ELEMENTS, 0) };
        let flags = create | if last { NLM_F_ACK } else { 0 };
        let start = self.header(kind, flags, number_of(family), 0);
        self.text(LIST_TABLE, TABLE);
        self.text(LIST_SET, &map.name());
        let list = self.open(LIST_ELEMENTS);
        for (_, change) in changes {
            let element = self.open(LIST_ELEMENT);
            let key = self.open(KEY);
            self.value(&key_bytes(map, &change.key)?);
            self.end(key)?;
            if let Some(value) = change.value.as_deref().filter(|value| !value.is_empty()) {
                let data = self.open(DATA);
                match verdict(value) {
                    Some((code, chain)) => {
                        let verdict = self.open(DATA_VERDICT);
                        self.attribute(VERDICT_CODE, &code.to_be_bytes());
                        if let Some(chain) = chain {
                            self.text(VERDICT_CHAIN, chain);
                        }
                        self.end(verdict)?;
                    }
                    None => self.value(&fields(value, false)?),
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

    fn value(&mut self, bytes: &[u8]) {
        self.attribute(DATA_VALUE, bytes);
    }
}

fn verdict(text: &str) -> Option<(i32, Option<&str>)> {
    if text == "drop" {
        return Some((DROP, None));
    }
    text.strip_prefix("goto ").map(|chain| (GOTO, Some(chain)))
}

fn key_bytes(map: Map, key: &str) -> Option<Vec<u8>> {
    match map {
        Map::Sources => None,
        Map::Endpoints(_) | Map::NodePortEndpoints(_) => fields(key, true),
        _ => fields(key, false),
    }
}

/// The parts of a key or value; `indexed`: the last one is an index.
fn fields(text: &str, indexed: bool) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(40);
    let mut parts = text.split(" . ").peekable();
    while let Some(part) = parts.next() {
        if indexed && parts.peek().is_none() {
            out.extend(part.parse::<u32>().ok()?.to_ne_bytes());
        } else if let Ok(port) = part.parse::<u16>() {
            out.extend(port.to_be_bytes());
        } else if let Ok(protocol) = part.to_ascii_uppercase().parse::<Named>() {
            out.push(protocol.0);
        } else {
            match part.parse::<IpAddr>().ok()? {
                IpAddr::V4(v4) => out.extend(v4.octets()),
                IpAddr::V6(v6) => out.extend(v6.octets()),
            }
        }
        out.resize(out.len().next_multiple_of(4), 0);
    }
    Some(out)
}

/// A protocol's number by its name.
struct Named(u8);

impl std::str::FromStr for Named {
    type Err = ();

    fn from_str(name: &str) -> Result<Named, ()> {
        Protocol::parse(Some(name).filter(|name| !name.is_empty())).map(|protocol| Named(protocol.number())).ok_or(())
    }
}
