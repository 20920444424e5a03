//! Counting, in the Prometheus text format: a histogram that costs a few relaxed additions, and what clients of
//! this process count under upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Durations or sizes, by upper bounds that ascend.
pub struct Histogram<const N: usize> {
    bounds: &'static [f64; N],
    buckets: [AtomicU64; N],
    count: AtomicU64,
    /// In billionths.
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    pub const fn new(bounds: &'static [f64; N]) -> Self {
        let buckets = [const { AtomicU64::new(0) }; N];
        Self { bounds, buckets, count: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        if let Some(at) = self.bounds.iter().position(|bound| seconds <= *bound) {
            self.buckets[at].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        // Five hundred years of work fit.
        self.sum.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// All lines of one series; `labels` without braces.
    pub fn write(&self, out: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        for (bound, bucket) in self.bounds.iter().zip(&self.buckets) {
            total += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
        }
        let (count, sum) = (self.count(), self.sum.load(Ordering::Relaxed) as f64 / 1e9);
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
    }
}

/// What a family is, before its series.
pub fn head(out: &mut String, name: &str, kind: &str, about: &str) {
    let _ = writeln!(out, "# HELP {name} {about}\n# TYPE {name} {kind}");
}

/// Requests over HTTPS by code, host and method.
static REQUESTS: Mutex<BTreeMap<(u16, String, String), u64>> = Mutex::new(BTreeMap::new());
/// Most that are told apart; a client talks to one server.
const MAX_REQUESTS: usize = 1000;

/// A request was answered, or (with code 0) was not.
pub fn requested(code: u16, host: &str, method: &str) {
    let mut requests = REQUESTS.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (code, host.to_string(), method.to_string());
    if requests.len() < MAX_REQUESTS || requests.contains_key(&key) {
        *requests.entry(key).or_default() += 1;
    }
}

/// Shows what clients count at this process's `/metrics`.
pub(crate) fn show() {
    crate::exposition::register("rest_client", page);
}

fn page() -> String {
    let mut out = String::new();
    let requests = REQUESTS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let name = "rest_client_requests_total";
    head(&mut out, name, "counter", "[ALPHA] Requests by how they were answered.");
    for ((code, host, method), count) in requests {
        let code = if code == 0 { "<error>".into() } else { code.to_string() };
        let _ = writeln!(out, "{name}{{code=\"{code}\",host=\"{host}\",method=\"{method}\"}} {count}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_accumulate() {
        static BOUNDS: [f64; 2] = [0.1, 1.0];
        let histogram = Histogram::new(&BOUNDS);
        for milliseconds in [50, 500, 5000] {
            histogram.observe(Duration::from_millis(milliseconds));
        }
        let mut out = String::new();
        histogram.write(&mut out, "x", "a=\"b\"");
        assert_eq!(
            out,
            "x_bucket{a=\"b\",le=\"0.1\"} 1\nx_bucket{a=\"b\",le=\"1\"} 2\nx_bucket{a=\"b\",le=\"+Inf\"} 3\nx_sum{a=\"b\"} 5.55\nx_count{a=\"b\"} 3\n"
        );
    }
}
