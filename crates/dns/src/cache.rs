//! What other servers said, for as long as they allow, and no longer than [`LONGEST`].
//!
//! "No such name" and "no such record" are kept too, as long as the answer's SOA says (RFC 2308); failures are not. The
//! records handed out carry what is left of their time. It holds [`MAX_ENTRIES`] at most; when it is full, what is over
//! goes first, and if nothing is, everything.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// The longest anything is kept, as cluster DNS servers usually have it.
const LONGEST: Duration = Duration::from_secs(30);
/// Questions remembered, some hundreds of bytes each.
const MAX_ENTRIES: usize = 10_000;

#[derive(Clone, Debug)]
struct Entry {
    since: Instant,
    until: Instant,
    code: ResponseCode,
    answers: Vec<Record>,
    authorities: Vec<Record>,
}

/// Answers by name, in lower case, and type.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<(Name, RecordType), Entry>,
    /// What went for want of room.
    evicted: [usize; 2],
}

impl Cache {
    /// Adds what is known to a reply, and says whether that is something or that there is nothing; `None` when nobody knows.
    pub fn fill(&self, reply: &mut Message, name: &Name, kind: RecordType, now: Instant) -> Option<bool> {
        let entry = self.entries.get(&(name.to_lowercase(), kind)).filter(|entry| now < entry.until)?;
        let age = u32::try_from(now.saturating_duration_since(entry.since).as_secs()).unwrap_or(u32::MAX);
        let aged = |record: &Record| {
            let mut record = record.clone();
            record.ttl = record.ttl.saturating_sub(age);
            record
        };
        reply.metadata.response_code = entry.code;
        reply.answers.extend(entry.answers.iter().map(aged));
        reply.authorities.extend(entry.authorities.iter().map(aged));
        Some(!entry.answers.is_empty())
    }

    /// Forgets everything: somebody else is asked from now on.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// How many answers are held: that there is something, and that there is nothing.
    pub fn held(&self) -> [usize; 2] {
        let something = self.entries.values().filter(|entry| !entry.answers.is_empty()).count();
        [something, self.entries.len() - something]
    }

    /// How many of each sort went so far because there was no room.
    pub fn evicted(&self) -> [usize; 2] {
        self.evicted
    }

    /// Remembers an answer, if it is one that may be.
    pub fn keep(&mut self, name: &Name, kind: RecordType, said: &Message, now: Instant) {
        let code = said.metadata.response_code;
        let soa = said.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some((record.ttl.min(soa.minimum), record.clone())),
            _ => None,
        });
        let (seconds, authorities) = match (code, said.answers.iter().map(|record| record.ttl).min()) {
            (ResponseCode::NoError, Some(least)) => (least, Vec::new()),
            (ResponseCode::NoError | ResponseCode::NXDomain, _) => match soa {
                Some((seconds, record)) => (seconds, vec![record]),
                None => return,
            },
            _ => return,
        };
        let lasts = Duration::from_secs(u64::from(seconds)).min(LONGEST);
        if lasts.is_zero() {
            return;
        }
        if self.entries.len() >= MAX_ENTRIES {
            let before = self.held();
            self.entries.retain(|_, entry| now < entry.until);
            if self.entries.len() >= MAX_ENTRIES {
                self.entries.clear();
            }
            let after = self.held();
            for (evicted, (before, after)) in self.evicted.iter_mut().zip(before.into_iter().zip(after)) {
                *evicted += before - after;
            }
        }
        let entry = Entry { since: now, until: now + lasts, code, answers: said.answers.clone(), authorities };
        self.entries.insert((name.to_lowercase(), kind), entry);
    }
}
