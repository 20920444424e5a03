//! Encryption at rest: the scenarios through it, what is refused, how keys are changed, and upstream's own bytes.

use std::sync::Arc;

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
