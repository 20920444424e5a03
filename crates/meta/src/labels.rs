//! An object's labels: few, read often, hardly ever changed; so a sorted list, a fifth of the room a tree takes.

use std::fmt;
use std::sync::{Arc, LazyLock};

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::alike::{Alike, hash_of};

type Pair = (Box<str>, Box<str>);

/// Labels by key, in the keys' order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Arc<[Pair]>);

/// Labels that some object kept for long has.
static SHARED: LazyLock<Alike<[Pair]>> = LazyLock::new(Alike::default);

impl Labels {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.place(key).ok().map(|at| &*self.0[at].1)
    }

    pub fn contains_key(&self, key: &str) -> bool {
        self.place(key).is_ok()
    }

    fn place(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| (**known).cmp(key))
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Box<str>, &Box<str>)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets a label, in place of one of its key.
    pub fn insert(&mut self, key: Box<str>, value: Box<str>) {
        match self.place(&key) {
            Ok(at) => Arc::make_mut(&mut self.0)[at].1 = value,
            Err(at) => {
                let mut pairs = self.0.to_vec();
                pairs.insert(at, (key, value));
                self.0 = pairs.into();
            }
        }
    }
}

impl Labels {
    /// Shares them with objects that have the same.
    pub(crate) fn share(&mut self) {
        if !self.is_empty() {
            self.0 = SHARED.one(hash_of(&self.0), self.0.clone());
        }
    }
}

impl FromIterator<Pair> for Labels {
    /// Of several with one key the last counts.
    fn from_iter<I: IntoIterator<Item = Pair>>(pairs: I) -> Self {
        let mut pairs: Vec<Pair> = pairs.into_iter().collect();
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        pairs.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                std::mem::swap(later, kept);
            }
            same
        });
        Self(pairs.into())
    }
}

impl<'a> IntoIterator for &'a Labels {
    type Item = &'a Pair;
    type IntoIter = std::slice::Iter<'a, Pair>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(pairs.into_iter().collect())
            }
        }
        d.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_a_map() {
        let mut labels: Labels = serde_json::from_str(r#"{"b":"1","a":"2","b":"3"}"#).unwrap();
        let pairs = |l: &Labels| l.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
        assert_eq!(pairs(&labels), "a=2,b=3");
        labels.insert("aa".into(), "4".into());
        labels.insert("a".into(), "5".into());
        assert_eq!(pairs(&labels), "a=5,aa=4,b=3");
        assert_eq!(
            (labels.get("aa"), labels.get("c"), labels.contains_key("b"), labels.len()),
            (Some("4"), None, true, 3)
        );
        assert!(serde_json::from_str::<Labels>("[]").is_err());
    }
}
