//! Strings as 64-bit symbols: what the core compares instead of text.
//!
//! A [`Symbol`] is a keyed hash of a string (a key per process, so collisions cannot be made on purpose; by accident
//! they are a matter of 2⁻⁶⁴). Nothing is stored, so nothing grows with the names clients invent. What it deliberately
//! does not know is the text: whoever needs it for a message keeps it.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::{Arc, OnceLock};

/// A string, hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Symbol(u64);

impl Symbol {
    pub fn of(text: &str) -> Self {
        static KEY: OnceLock<RandomState> = OnceLock::new();
        Self(KEY.get_or_init(RandomState::new).hash_one(text))
    }

    /// A symbol of the pair, in this order.
    pub fn with(self, other: Self) -> Self {
        Self(self.0.rotate_left(32) ^ other.0.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// A hasher for keys that are symbols already: their bits are random as they are.
#[derive(Default)]
pub struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 ^= n;
    }
}

/// A map by symbol.
pub type SymbolMap<V> = HashMap<Symbol, V, BuildHasherDefault<AlreadyHashed>>;

/// Labels: key and value symbols, ordered by key; cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels(Arc<[(Symbol, Symbol)]>);

impl Labels {
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut pairs: Vec<_> = pairs.into_iter().map(|(k, v)| (Symbol::of(k), Symbol::of(v))).collect();
        pairs.sort_unstable();
        Self(pairs.into())
    }

    pub fn get(&self, key: Symbol) -> Option<Symbol> {
        self.0.binary_search_by_key(&key, |p| p.0).ok().map(|at| self.0[at].1)
    }
}
