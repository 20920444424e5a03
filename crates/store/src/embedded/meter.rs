//! What an open store has done since it was opened, in numbers.
//!
//! Guarantees: counting costs a few additions a group. Knows nothing of who reads the numbers, and how.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::{Change, ChangeKind};

/// The upper bounds of a [`Histogram`]'s counts: a millisecond, doubled so many times, as etcd has them.
pub const BOUNDS: usize = 14;

/// How often something took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    /// By the first bound that it was within; the last: none.
    counts: [AtomicU64; BOUNDS + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    pub fn add(&self, took: Duration) {
        let within = (0..BOUNDS).find(|bound| took <= Self::bound(*bound)).unwrap_or(BOUNDS);
        self.counts[within].fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn bound(number: usize) -> Duration {
        Duration::from_millis(1 << number)
    }

    /// How many were within each bound, those within lower ones included; then all.
    pub fn counts(&self) -> Vec<u64> {
        let mut sum = 0;
        let mut add = |count: &AtomicU64| {
            sum += count.load(Ordering::Relaxed);
            sum
        };
        self.counts.iter().map(&mut add).collect()
    }

    pub fn seconds(&self) -> f64 {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)).as_secs_f64()
    }
}

/// The numbers.
#[derive(Debug, Default)]
pub struct Meter {
    /// Writing a group to the log, until it is on disk.
    pub syncs: Histogram,
    /// A group from when it is taken up until everybody sees it.
    pub groups: Histogram,
    /// Bytes of records written.
    pub written: AtomicU64,
    pub puts: AtomicU64,
    pub deletes: AtomicU64,
    pub leases_granted: AtomicU64,
    pub leases_ended: AtomicU64,
    /// Snapshots of the store's own, written.
    pub snapshots: Histogram,
}

impl Meter {
    pub fn changed(&self, changes: &[Change]) {
        let puts = changes.iter().filter(|change| matches!(change.kind, ChangeKind::Put(_))).count();
        self.puts.fetch_add(puts as u64, Ordering::Relaxed);
        self.deletes.fetch_add((changes.len() - puts) as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_include_what_is_below() {
        let histogram = Histogram::default();
        for took in [0, 1, 2, 3, 5000, 9000] {
            histogram.add(Duration::from_millis(took));
        }
        let counts = histogram.counts();
        assert_eq!((counts[0], counts[1], counts[2], counts[BOUNDS - 1], counts[BOUNDS]), (2, 3, 4, 5, 6));
        assert!((histogram.seconds() - 14.006).abs() < 1e-9);
    }
}
