//! Series of one name told apart by labels that are not known beforehand, or are many and rare: a map under a lock, with an end.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client::metrics::{Histogram, head};

/// Series of a name; labels name drivers and profiles, of which a cluster has a handful. What is beyond is not counted.
const MOST: usize = 1000;

fn entry<'a, T>(map: &'a mut BTreeMap<Box<str>, T>, labels: &str, fresh: impl FnOnce() -> T) -> Option<&'a mut T> {
    if !map.contains_key(labels) {
        if map.len() >= MOST {
            return None;
        }
        map.insert(labels.into(), fresh());
    }
    map.get_mut(labels)
}

/// Histograms, by labels as they are written.
pub struct Family<const N: usize> {
    bounds: &'static [f64; N],
    series: Mutex<BTreeMap<Box<str>, Box<Histogram<N>>>>,
}

impl<const N: usize> Family<N> {
    pub const fn new(bounds: &'static [f64; N]) -> Self {
        Self { bounds, series: Mutex::new(BTreeMap::new()) }
    }

    fn series(&self) -> MutexGuard<'_, BTreeMap<Box<str>, Box<Histogram<N>>>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn observe(&self, labels: &str, took: Duration) {
        let mut series = self.series();
        let of = entry(&mut series, labels, || Box::new(Histogram::new(self.bounds)));
        of.into_iter().for_each(|h| h.observe(took));
    }

    pub fn write(&self, out: &mut String, name: &str, about: &str) {
        head(out, name, "histogram", about);
        self.series().iter().for_each(|(labels, histogram)| histogram.write(out, name, labels));
    }

    /// How often something was observed, as a family of its own.
    pub fn write_counts(&self, out: &mut String, name: &str, about: &str) {
        head(out, name, "counter", about);
        for (labels, histogram) in self.series().iter() {
            let _ = writeln!(out, "{name}{{{labels}}} {}", histogram.count());
        }
    }
}

/// Counters, by labels as they are written.
pub struct Counts(Mutex<BTreeMap<Box<str>, u64>>);

impl Counts {
    pub const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    pub fn add(&self, labels: &str, more: u64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entry(&mut counts, labels, || 0).into_iter().for_each(|count| *count += more);
    }

    pub fn write(&self, out: &mut String, name: &str, about: &str) {
        head(out, name, "counter", about);
        for (labels, count) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "{name}{{{labels}}} {count}");
        }
    }
}
