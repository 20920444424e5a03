//! The decoders of the store's files under bytes whose checksums are right and whose content is not: an error or a value,
//! never a panic. Deterministic; damage that the checksums catch is the business of `crash`.

use crate::embedded::leases::LeaseTerm;
use crate::embedded::log::SegmentHeader;
use crate::embedded::record::{self, Entry, Place};
use crate::embedded::{Options, snapshot};
use crate::tests::model::Random;
use crate::tests::{delete, put};
use crate::{LeaseId, Op, maintain};

/// A payload with every kind of step.
fn payload(random: &mut Random) -> Vec<u8> {
    let mut payload = Vec::new();
    record::begin(&mut payload, random.below(u64::MAX));
    for revision in 0..1 + random.below(4) {
        let value = "v".repeat(random.below(40) as usize);
        let leased = Op::Put { key: "/l".into(), value: value.clone().into(), lease: Some(LeaseId(7)) };
        let ops = [put("/k", &value), delete("/d"), leased];
        record::commit(&mut payload, 2 + revision, &ops, &mut Vec::new());
        let term = LeaseTerm { id: LeaseId(revision as i64), ttl_ms: 1, expires_ms: 2 };
        record::step(&mut payload, &Entry::Lease(term));
        record::step(&mut payload, &Entry::LeaseEnd(LeaseId(1)));
        record::step(&mut payload, &Entry::Compact(revision));
    }
    payload.split_off(record::HEADER)
}

/// Changes some bytes, or the length.
fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    match random.below(4) {
        0 => bytes.truncate(random.below(bytes.len() as u64 + 1) as usize),
        1 => bytes.extend((0..random.below(20)).map(|n| n as u8)),
        _ => {}
    }
    for _ in 0..random.below(4).min(bytes.len() as u64) {
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] = if random.below(2) == 0 { 0xff } else { random.below(256) as u8 };
    }
}

#[test]
fn payloads() {
    let mut random = Random::new(1);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut bytes = payload(&mut random);
        assert!(record::decode(&bytes).is_ok());
        damage(&mut random, &mut bytes);
        match record::decode(&bytes) {
            Ok(_) => read += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(read > 0 && refused > 0, "{read} {refused}");
}

#[test]
fn headers() {
    let mut random = Random::new(2);
    for _ in 0..20_000 {
        let mut bytes: Vec<u8> = (0..random.below(80)).map(|_| random.below(256) as u8).collect();
        assert!(SegmentHeader::decode(&bytes).is_err());
        bytes.resize(record::HEADER, 0);
        let place = Place { store: 1, segment: 1, offset: 64 };
        _ = record::header(&bytes, place);
    }
}

/// A snapshot whose blocks are damaged, and framed anew so that every checksum is right.
#[test]
fn snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshot");
    let store = crate::embedded::open(dir.path().join("store"), Options::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for n in 0..20 {
        runtime.block_on(crate::tests::commit(&store, vec![put(&format!("/{n}"), "value")]));
    }
    store.save(&path).unwrap();
    let good = std::fs::read(&path).unwrap();
    let identity = u64::from_le_bytes(good[16..24].try_into().unwrap());
    let mut random = Random::new(3);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..300 {
        let mut file = good[..64].to_vec();
        let mut rest = &good[64..];
        let mut offset = 64;
        while !rest.is_empty() {
            let place = Place { store: identity, segment: u64::MAX, offset };
            let (length, _) = record::header(&rest[..record::HEADER], place).unwrap();
            let mut block = rest[record::HEADER..record::HEADER + length].to_vec();
            damage(&mut random, &mut block);
            let place = Place { offset: file.len() as u64, ..place };
            block.splice(..0, [0; record::HEADER]);
            record::seal(&mut block, place);
            file.append(&mut block);
            let framed = record::framed_len(length);
            (rest, offset) = (&rest[framed..], offset + framed as u64);
        }
        std::fs::write(&path, &file).unwrap();
        match snapshot::read(&path, drop) {
            Ok(_) => read += 1,
            Err(_) => refused += 1,
        }
        let target = tempfile::tempdir().unwrap();
        if maintain::restore(&path, target.path(), &Options::default(), 1).is_ok() {
            _ = crate::embedded::open(target.path(), Options::default());
        }
    }
    assert!(read > 0 && refused > 0, "{read} {refused}");
}
