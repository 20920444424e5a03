//! Encryption at rest: the scenarios through it, what is refused, how keys are changed, and upstream's own bytes.

use std::sync::Arc;

use base64::Engine;
use bytes::Bytes;
use futures::StreamExt;

use super::{commit, put, scenarios};
use crate::embedded::{self, Embedded};
use crate::transform::{ByPrefix, Chain, Kind, Plain, Provider, Sealer, Transformed, Transformer};
use crate::{Backend, Op, StoreError};

fn sealer(kind: Kind, name: &str, key: &[u8]) -> Provider {
    Provider::Sealed(Sealer::new(kind, name, key).unwrap())
}

fn chain<const N: usize>(providers: [Provider; N]) -> Arc<Chain> {
    Arc::new(Chain::new(providers.into()).unwrap())
}

fn raw() -> (tempfile::TempDir, Arc<Embedded>) {
    let dir = tempfile::tempdir().unwrap();
    let store = embedded::open(dir.path(), embedded::Options::default()).unwrap();
    (dir, Arc::new(store))
}

#[tokio::test]
async fn sealed_values_keep_the_scenarios() {
    let transformers: [(&str, Arc<dyn Transformer>); 5] = [
        ("plain", Arc::new(Plain)),
        ("identity", chain([Provider::Identity])),
        ("aesgcm", chain([sealer(Kind::AesGcm, "key1", &[7; 32])])),
        ("aescbc", chain([sealer(Kind::AesCbc, "key1", &[7; 32])])),
        ("secretbox", chain([sealer(Kind::SecretBox, "key1", &[7; 32])])),
    ];
    // Each scenario through one of them; they take turns.
    for ((name, scenario), (what, transformer)) in scenarios::ALL.iter().zip(transformers.iter().cycle()) {
        println!("{name}, {what}");
        let (_dir, store) = raw();
        scenario(Arc::new(Transformed::new(store, transformer.clone()))).await;
    }
}

/// What else than the right key in the right place: refused with the key's name, in reads and in watches.
#[tokio::test]
async fn sealed_values_are_bound_to_key_and_place() {
    let (_dir, raw) = raw();
    let sealed = |key: u8| {
        let providers = [sealer(Kind::AesGcm, "key1", &[key; 32]), Provider::Identity];
        Transformed::new(raw.clone(), chain(providers))
    };
    let (ours, other) = (sealed(1), sealed(2));
    commit(&*raw, vec![put("/old", "in the clear")]).await;
    let first = commit(&ours, vec![put("/secret", "the same"), put("/again", "the same")]).await;
    let stored = async |key: &str| raw.get(key, None).await.unwrap().0.unwrap().value;
    let (secret, again) = (stored("/secret").await, stored("/again").await);
    assert!(secret.starts_with(b"k8s:enc:aesgcm:v1:key1:") && secret != again);
    assert!(!secret.windows(4).any(|four| four == b"same"));
    assert_eq!(ours.get("/old", None).await.unwrap().0.unwrap().value, "in the clear");
    assert_eq!(ours.get("/secret", None).await.unwrap().0.unwrap().value, "the same");
    for (what, store) in [("another key", other), ("no key", Transformed::new(raw.clone(), Arc::new(Plain)))] {
        let refused = store.get("/secret", None).await;
        assert!(matches!(&refused, Err(StoreError::Corrupt(text)) if text.contains("/secret")), "{what}: {refused:?}");
        assert!(store.range("/", "0", 0, None).await.is_err(), "{what}");
    }
    // Put under another key, cut, changed.
    let mut changed = secret.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    for (key, value) in [("/moved", secret.to_vec()), ("/cut", secret[..30].to_vec()), ("/secret", changed)] {
        let after = raw.current_revision().await.unwrap();
        let op = Op::Put { key: key.into(), value: value.into(), lease: None };
        commit(&*raw, vec![op]).await;
        assert!(matches!(ours.get(key, None).await, Err(StoreError::Corrupt(_))), "{key}");
        let mut watch = ours.watch("/", after).await.unwrap();
        assert!(matches!(watch.next().await, Some(Err(StoreError::Corrupt(_)))), "{key}");
        assert!(watch.next().await.is_none());
    }
    assert_eq!(ours.get("/secret", Some(first)).await.unwrap().0.unwrap().value, "the same");
}

/// Any cut and any changed bit of a stored value is an error or, in the one cipher that cannot tell, another value: never
/// a panic.
#[test]
fn damaged_values_are_refused() {
    for (kind, tells) in [(Kind::AesGcm, true), (Kind::AesCbc, false), (Kind::SecretBox, true)] {
        let chain = chain([sealer(kind, "k", &[3; 32])]);
        let stored = chain.seal("/k", Bytes::from_static(b"a value of more than one block")).unwrap();
        for length in 0..stored.len() {
            let opened = chain.open("/k", stored.slice(..length));
            assert!(opened.is_err() || !tells, "{kind:?} cut to {length}: {opened:?}");
        }
        for bit in 0..stored.len() * 8 {
            let mut changed = stored.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            let opened = chain.open("/k", changed.into());
            assert!(opened.is_err() || !tells, "{kind:?} bit {bit}: {opened:?}");
        }
    }
}

/// The steps by which keys are changed, as upstream's documentation gives them: everything stays readable.
#[tokio::test]
async fn keys_are_changed_without_a_gap() {
    let (_dir, raw) = raw();
    let old = || sealer(Kind::AesCbc, "old", &[1; 32]);
    let new = || sealer(Kind::SecretBox, "new", &[2; 32]);
    let steps = [
        (chain([Provider::Identity]), &b""[..]),
        (chain([old(), Provider::Identity]), b"k8s:enc:aescbc:v1:old:"),
        (chain([old(), new()]), b"k8s:enc:aescbc:v1:old:"),
        (chain([new(), old()]), b"k8s:enc:secretbox:v1:new:"),
        (chain([new()]), b"k8s:enc:secretbox:v1:new:"),
        (chain([Provider::Identity, new()]), b""),
        (chain([Provider::Identity]), b""),
    ];
    let mut mark = &b""[..];
    for (n, (chain, next)) in steps.into_iter().enumerate() {
        let store = Transformed::new(raw.clone(), chain);
        if n > 0 {
            let found = store.get("/s", None).await.unwrap().0.unwrap();
            assert_eq!(found.value, "kept", "step {n}");
            assert_eq!(store.is_current("/s").await.unwrap(), mark == next, "step {n}");
        }
        commit(&store, vec![put("/s", "kept")]).await;
        assert!(store.is_current("/s").await.unwrap());
        let stored = raw.get("/s", None).await.unwrap().0.unwrap().value;
        assert!(stored.starts_with(next), "step {n}: {stored:?}");
        mark = next;
    }
}

#[tokio::test]
async fn the_first_prefix_that_fits_decides() {
    let (_dir, raw) = raw();
    let rules = vec![
        ("/registry/events/".to_owned(), chain([Provider::Identity])),
        ("/registry/".to_owned(), chain([sealer(Kind::AesGcm, "k", &[1; 16])])),
    ];
    let store = Transformed::new(raw.clone(), Arc::new(ByPrefix(rules)));
    for (key, sealed) in [("/registry/events/a", false), ("/registry/secrets/a", true), ("/elsewhere", false)] {
        commit(&store, vec![put(key, "v")]).await;
        let stored = raw.get(key, None).await.unwrap().0.unwrap().value;
        assert_eq!(stored.starts_with(b"k8s:enc:"), sealed, "{key}");
        assert_eq!(store.get(key, None).await.unwrap().0.unwrap().value, "v");
    }
}

#[test]
fn keys_of_other_lengths_are_refused() {
    for (kind, length) in [(Kind::AesGcm, 24), (Kind::AesGcm, 0), (Kind::AesCbc, 31), (Kind::SecretBox, 16)] {
        let refused = Sealer::new(kind, "k", &vec![0; length]).unwrap_err().to_string();
        assert!(refused.contains(&format!("expected length, got {length}")), "{refused}");
    }
}

/// What upstream's API server v1.26 had in its store, with the key it was given.
#[test]
fn what_upstream_sealed_is_read() {
    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    for (kind, name, key, stored, holds) in [
        (
            Kind::AesGcm,
            "g1",
            "/registry/secrets/default/s-up",
            concat!(
                "azhzOmVuYzphZXNnY206djE6ZzE6I8TD59z49agNhd+S3z6XzuE5mjeyAe3vBE235UfyPnUAqd4IJykLAMEz0YI3gyMLxiZwteLSb5UI",
                "aAHSG7LDWH5jsQWZFUGoXj1CSOhASLnDBIwnCPkCXAv8zL4AY7TFn0bhp5wvYdc34R2XIs0NWOCpODoc0KxfogmGRX9gsTCVAJqet8e9",
                "BAKxkDVkx+1UswUvmGCw5xlYAoAUv5Ux/yh4A27pcOfMONkQxlaYlBthPkF1Qc5cXgd5odaHJA4rqZEU4kDd1cqpusUyChYebyS6m1+z",
                "JfZnny0lyWplonn1SjPILQNz2iOnmPXF4bUZjEwt2dZp"
            ),
            "from-up",
        ),
        (
            Kind::AesCbc,
            "c1",
            "/registry/configmaps/default/c-up",
            concat!(
                "azhzOmVuYzphZXNjYmM6djE6YzE6q3HW9egUbBJIaFq4A8Uw/Nlh2+PdSTGOUfR3NHMOsUGKvqE3BN8v8ev/n0rVflcXyPMGE6cWh3mz",
                "LrTJKPEFtDkkFldksQyX1BoO6mzgqNIX7U8yFxPdvCMzZ0d2JyKlwqXinZAbXzBcVfAjfC66LGd5p2n19mndPKDHrZBl9CGpGKMX0fM3",
                "rfWZ2dTA2wYjV5C60x+02DwGAg29oIeVDGPdTvjfJJCZi0J92sROYn4VIAU6XQMV3AQHbpX7VVFPYqf3aXD9wmvW+XcDZYdYT0Zz3rPG",
                "ALXqbJzGE3ba/1c="
            ),
            "from-up",
        ),
        (
            Kind::SecretBox,
            "s1",
            "/registry/secrets/default/theirs-sb",
            concat!(
                "azhzOmVuYzpzZWNyZXRib3g6djE6czE6Qr/ctGJgDfIksE4A12B1oH7T4pLkehZLC9gi3nI6/XUGmXmEvMKzxF4nSR4KYLV9NXSZakNI",
                "X5Zjif20QCabJtVcgmBUdw6oxyklMweRoATrpatG+1FH9AbGIcFR0wfDQawn+XIUYlUc2l0tp2pFnmDfs0q5yVIJywyuFjpl47Ce2pkY",
                "h1VArH4sDYBG701PW1k25wStpjCORQNEBU7ykLP+Aau4Eb6kf+rI9JUS1EEjD2lubnyd3UNBkpEJ2CYZ1z15MaExAZ3z3GD5Z7a7NHs5",
                "ooeNMVJ7X0cHV7XxquHvO7OUlYchDeAIOJqGooW3923K9k82YkgxtxzKu0ZCcG49yM/oF0+Troj9"
            ),
            "UPSTREAMBOX",
        ),
    ] {
        let stored: Bytes = base64::engine::general_purpose::STANDARD.decode(stored).unwrap().into();
        let value = chain([sealer(kind, name, SECRET)]).open(key, stored).unwrap();
        assert!(value.windows(holds.len()).any(|bytes| bytes == holds.as_bytes()), "{kind:?}: {value:?}");
    }
}
