//! What many objects say alike, kept once for all of them. Knows neither what it is nor who holds it: the last holder to go
//! takes it along.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Values known before those that nobody holds any more are looked for.
const FEWEST: usize = 64;

/// The values of one type that somebody holds, by their hash; of two that collide only one is shared.
pub struct Alike<T: ?Sized>(Mutex<Known<T>>);

struct Known<T: ?Sized> {
    values: HashMap<u64, Weak<T>>,
    /// When to look for what nobody holds any more.
    most: usize,
}

impl<T: ?Sized> Default for Alike<T> {
    fn default() -> Self {
        Self(Mutex::new(Known { values: HashMap::new(), most: FEWEST }))
    }
}

impl<T: PartialEq + ?Sized> Alike<T> {
    /// The value that is kept in place of this one.
    pub fn one(&self, hash: u64, value: Arc<T>) -> Arc<T> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = known.values.get(&hash).and_then(Weak::upgrade).filter(|k| **k == *value) {
            return same;
        }
        known.values.insert(hash, Arc::downgrade(&value));
        if known.values.len() > known.most {
            known.values.retain(|_, weak| weak.strong_count() > 0);
            known.most = (known.values.len() * 2).max(FEWEST);
        }
        value
    }
}

/// A hash to ask [`Alike::one`] with; good for one process.
pub fn hash_of(value: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_once_and_not_longer_than_held() {
        let alike = Alike::<str>::default();
        let one = |text: &str| alike.one(hash_of(text), text.into());
        let (a, b) = (one("a"), one("a"));
        assert!(Arc::ptr_eq(&a, &b));
        assert_eq!(&*alike.one(hash_of("a"), "collides".into()), "collides");
        for i in 0..10 * FEWEST {
            one(&i.to_string());
        }
        assert!(alike.0.lock().unwrap().values.len() <= FEWEST + 1);
    }
}
