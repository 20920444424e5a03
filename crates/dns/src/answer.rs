//! One packet in, one packet out.
//!
//! [`answer`] is a pure function of the zone and the packet: it decides, or says what another server has to be asked.
//! [`encode`] fits a reply into what the asker can take. Aliases within the zone are followed here.

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinEncodable;

use crate::upstreams::Upstreams;
use crate::zone::{Lookup, Zone, alias, is_reverse};

/// What a UDP reply may hold when the asker does not say.
const PLAIN_BYTES: usize = 512;
/// The most a UDP reply holds, whatever the asker takes: fits any link without fragments.
const EDNS_BYTES: u16 = 1232;
/// A TCP reply's length field.
const TCP_BYTES: usize = 65_535;
/// Aliases followed within the zone before giving up: longer chains are loops.
const MAX_ALIASES: usize = 8;
/// A DNS header; less is no packet at all.
const HEADER_BYTES: usize = 12;

/// Records beyond which a reply is written one by one.
const MANY_RECORDS: usize = 100;
/// A pointer to the name that follows the header.
const ASKED_NAME: [u8; 2] = [0xc0, HEADER_BYTES as u8];
/// The mark in the header's third byte.
const TRUNCATED: u8 = 2;

/// How a packet came, which decides how much may go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What the asker takes, as far as he says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takes {
    /// How large a reply over UDP.
    pub bytes: Option<u16>,
    /// Signatures; there are none here.
    pub signatures: bool,
}

/// What to do with a packet.
#[derive(Debug)]
pub enum Outcome {
    Reply(Message),
    /// The reply lacks what another server knows: ask it and add that.
    Ask {
        reply: Message,
        name: Name,
        kind: RecordType,
    },
    /// Not a question: no answer, lest two servers answer each other for ever.
    Ignore,
}

/// Decides one packet. `upstreams`: who can be asked about other names. Also says what the asker takes.
pub fn answer(zone: &Zone, packet: &[u8], upstreams: &Upstreams) -> (Outcome, Takes) {
    if packet.len() < HEADER_BYTES || packet[2] & 0x80 != 0 {
        return (Outcome::Ignore, Takes::default());
    }
    let Ok(request) = Message::from_vec(packet) else {
        let id = u16::from_be_bytes([packet[0], packet[1]]);
        let reply = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
        return (Outcome::Reply(reply), Takes::default());
    };
    let said = |edns: &Edns| Takes { bytes: Some(edns.max_payload()), signatures: edns.flags().dnssec_ok };
    let takes = request.edns.as_ref().map(said).unwrap_or_default();
    (decide(zone, request, upstreams), takes)
}

fn decide(zone: &Zone, request: Message, upstreams: &Upstreams) -> Outcome {
    let mut reply = Message::new(request.metadata.id, MessageType::Response, request.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&request.metadata);
    reply.metadata.recursion_available = !upstreams.is_empty();
    reply.metadata.response_code = ResponseCode::NoError;
    reply.queries = request.queries;
    if let Some(asked) = &request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_BYTES).set_version(0);
        reply.set_edns(edns);
        if asked.version() > 0 {
            return fail(reply, ResponseCode::BADVERS);
        }
    }
    if request.metadata.op_code != OpCode::Query {
        return fail(reply, ResponseCode::NotImp);
    }
    let [query] = reply.queries.as_slice() else { return fail(reply, ResponseCode::FormErr) };
    let (name, kind) = (query.name.clone(), query.query_type);
    if !matches!(query.query_class, DNSClass::IN | DNSClass::ANY) || matches!(kind, RecordType::AXFR | RecordType::IXFR)
    {
        return fail(reply, ResponseCode::Refused);
    }
    resolve(zone, reply, name, kind, upstreams)
}

fn fail(mut reply: Message, code: ResponseCode) -> Outcome {
    reply.metadata.response_code = code;
    Outcome::Reply(reply)
}

fn resolve(zone: &Zone, mut reply: Message, mut name: Name, kind: RecordType, upstreams: &Upstreams) -> Outcome {
    let known = |name: &Name| !upstreams.servers(name).is_empty();
    for _ in 0..MAX_ALIASES {
        match zone.lookup(&name, kind) {
            Lookup::Name(found) => {
                reply.metadata.authoritative = true;
                if found.answers.is_empty() {
                    reply.add_authority(zone.soa());
                }
                let mut records: Vec<Record> =
                    found.answers.into_iter().map(|data| Record::from_rdata(name.clone(), zone.ttl, data)).collect();
                // Clients take the first: let it be another one from query to query.
                if records.len() > 1 {
                    let by = usize::from(reply.metadata.id) % records.len();
                    records.rotate_left(by);
                }
                reply.answers.extend(records);
                reply.additionals.extend(found.additionals);
                return Outcome::Reply(reply);
            }
            Lookup::Alias(target) => {
                reply.metadata.authoritative = true;
                reply.add_answer(Record::from_rdata(name, zone.ttl, alias(&target)));
                if kind == RecordType::CNAME || !zone.holds(&target) {
                    let ask = known(&target) && kind != RecordType::CNAME;
                    return if ask { Outcome::Ask { reply, name: target, kind } } else { Outcome::Reply(reply) };
                }
                name = target;
            }
            Lookup::NoSuchName => {
                reply.metadata.authoritative = true;
                reply.add_authority(zone.soa());
                // Of an alias that leads nowhere the alias itself is the answer.
                return fail(reply, ResponseCode::NXDomain);
            }
            Lookup::NotYet => return fail(reply, ResponseCode::ServFail),
            Lookup::Elsewhere if known(&name) => return Outcome::Ask { reply, name, kind },
            // Nobody who could be asked knows an address's name: better said at once, tools wait for it.
            Lookup::Elsewhere if is_reverse(&name) => return fail(reply, ResponseCode::NXDomain),
            Lookup::Elsewhere => return fail(reply, ResponseCode::Refused),
        }
    }
    fail(reply, ResponseCode::ServFail)
}

/// The reply's bytes. What does not fit is left out: additional records silently, answers with the truncation mark that
/// has the asker come back over TCP. `None` when not even the question can be written.
pub fn encode(reply: Message, transport: Transport, takes: Takes) -> Option<Vec<u8>> {
    let limit = match transport {
        Transport::Tcp => TCP_BYTES,
        Transport::Udp => takes.bytes.map_or(PLAIN_BYTES, |bytes| usize::from(bytes.min(EDNS_BYTES)).max(PLAIN_BYTES)),
    };
    if reply.answers.len() + reply.additionals.len() <= MANY_RECORDS {
        let bytes = reply.to_vec().ok()?;
        if bytes.len() <= limit {
            return Some(bytes);
        }
    }
    encode_many(reply, limit)
}

/// The same record by record, until there is no more room. The usual way gives up shortening names after some hundred
/// records; here all that have the asked name share it with the question, whose name begins where the header ends.
fn encode_many(mut reply: Message, limit: usize) -> Option<Vec<u8>> {
    let [answers, authorities, additionals] =
        [&mut reply.answers, &mut reply.authorities, &mut reply.additionals].map(std::mem::take);
    let asked = reply.queries.first()?.name.clone();
    let mut bytes = reply.to_vec().ok()?;
    // What follows the question is the asker's EDNS record, one of the additional ones.
    let edns = bytes.split_off(HEADER_BYTES + asked.to_bytes().ok()?.len() + 4);
    let room = limit.checked_sub(edns.len()).filter(|room| bytes.len() <= *room)?;
    let put = |records: &[Record], bytes: &mut Vec<u8>| -> Option<u16> {
        let mut count = 0;
        for record in records {
            let before = bytes.len();
            match &record.name {
                name if *name == asked => bytes.extend(ASKED_NAME),
                name => bytes.extend(name.to_bytes().ok()?),
            }
            let data = record.data.to_bytes().ok()?;
            bytes.extend(u16::from(record.record_type()).to_be_bytes());
            bytes.extend(u16::from(record.dns_class).to_be_bytes());
            bytes.extend(record.ttl.to_be_bytes());
            bytes.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
            bytes.extend(data);
            if bytes.len() > room {
                bytes.truncate(before);
                break;
            }
            count += 1;
        }
        Some(count)
    };
    let answered = put(&answers, &mut bytes)?;
    let whole = usize::from(answered) == answers.len();
    let mut counts = [answered, 0, 0];
    if whole {
        counts[1] = put(&authorities, &mut bytes)?;
    }
    let (has_edns, end) = (u16::from(!edns.is_empty()), bytes.len() + edns.len());
    bytes.extend(edns);
    if whole {
        let more = put(&additionals, &mut bytes)?;
        // All or none: the asker cannot tell which are missing.
        if usize::from(more) == additionals.len() && bytes.len() <= limit {
            counts[2] = more;
        } else {
            bytes.truncate(end);
        }
    } else {
        bytes[2] |= TRUNCATED;
    }
    counts[2] += has_edns;
    for (place, count) in bytes[6..HEADER_BYTES].chunks_exact_mut(2).zip(counts) {
        place.copy_from_slice(&count.to_be_bytes());
    }
    Some(bytes)
}

/// Takes what another server said into a reply.
pub fn add_foreign(reply: &mut Message, foreign: Message) {
    reply.metadata.response_code = foreign.metadata.response_code;
    reply.answers.extend(foreign.answers);
    reply.authorities.extend(foreign.authorities.into_iter().filter(|record| matches!(record.data, RData::SOA(_))));
}
