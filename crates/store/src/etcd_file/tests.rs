//! Files of trees of every height come back, and damaged ones are refused. That etcd's own tools take them, and we take
//! etcd's, is in the tests of the served API.

use bytes::Bytes;

use super::*;

/// Keys whose numbers and values make trees of one, two and three levels, and values longer than pages.
fn sample(keys: u64) -> Vec<KeyValue> {
    let make = |n: u64| KeyValue {
        key: format!("/k/{n:06}").into(),
        value: Bytes::from(vec![n as u8; if n % 97 == 5 { 9000 } else { (n % 200) as usize }]),
        create_revision: 2 + n / 3,
        // Written in another order than they are named, several at once.
        mod_revision: 2 + (n * 7919 % keys) / 3 + keys,
        version: 1 + n % 5,
        lease: (n.is_multiple_of(11)).then_some(LeaseId(7)),
    };
    (0..keys).map(make).collect()
}

fn contents(revision: Revision) -> Contents {
    let leases = [7, -3].map(|id| LeaseTerm { id: LeaseId(id), ttl_ms: 60_000, expires_ms: 61_000 });
    Contents { store: 9, revision, leases: leases.into(), next_lease: 8 }
}

fn saved(path: &Path, keys: &[KeyValue], revision: Revision) -> u64 {
    let order = keys.iter().map(|kv| (kv.mod_revision, kv.key.clone())).collect();
    let find = |key: &Key| keys[keys.binary_search_by(|kv| kv.key.cmp(key)).unwrap()].clone();
    write(path, &contents(revision), order, |asked| Ok(asked.iter().map(|(_, key)| find(key)).collect())).unwrap()
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    for keys in [0, 1, 40, 1000, 30_000] {
        let sample = sample(keys);
        let size = saved(&path, &sample, 99_999);
        assert_eq!((size % 4096, path.metadata().unwrap().len()), (0, size));
        assert!(is_one(&path));
        let mut items = Vec::new();
        let read = read(&path, 1000, |kv| items.push(kv)).unwrap();
        assert!(items == sample, "{keys} keys");
        assert_eq!(read.revision, 99_999);
        let mut leases = read.leases;
        leases.sort_unstable_by_key(|term| -term.id.0);
        assert_eq!(leases, contents(0).leases);
    }
}

#[test]
fn damage_is_an_error_and_nothing_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let sample = sample(300);
    saved(&path, &sample, 1000);
    let mut whole = std::fs::read(&path).unwrap();
    let end = Sha256::digest(&whole);
    whole.extend_from_slice(&end);
    let mut random = 88_172_645_463_325_252_u64;
    for round in 0..120 {
        let mut bytes = whole.clone();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let at = random as usize % bytes.len();
        bytes[at] ^= 1 << (random >> 60 & 7);
        // With the sum, any change is told; without it, what is read may differ, and that is all.
        if round % 2 == 1 {
            bytes.truncate(whole.len() - 32);
        }
        if round % 8 == 3 {
            bytes.truncate(at);
        }
        std::fs::write(&path, &bytes).unwrap();
        let read = read(&path, 0, |_| {});
        assert!(round % 2 == 1 || read.is_err(), "round {round}: the change at {at} was not seen");
    }
}
