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
    /// What was observed in whole numbers, such as bytes, of which billionths would not fit.
    whole: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    pub const fn new(bounds: &'static [f64; N]) -> Self {
        let buckets = [const { AtomicU64::new(0) }; N];
        Self { bounds, buckets, count: AtomicU64::new(0), sum: AtomicU64::new(0), whole: AtomicU64::new(0) }
    }

    pub fn observe(&self, took: Duration) {
        self.note(took.as_secs_f64());
        // Five hundred years of work fit.
        self.sum.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    pub fn observe_whole(&self, amount: u64) {
        self.note(amount as f64);
        self.whole.fetch_add(amount, Ordering::Relaxed);
    }

    fn note(&self, value: f64) {
        if let Some(at) = self.bounds.iter().position(|bound| value <= *bound) {
            self.buckets[at].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
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
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed) as f64;
        let (count, sum) = (self.count(), load(&self.sum) / 1e9 + load(&self.whole));
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
    }
}

/// What a family is, before its series.
pub fn head(out: &mut String, name: &str, kind: &str, about: &str) {
    let _ = writeln!(out, "# HELP {name} {about}\n# TYPE {name} {kind}");
}

/// A label's value, as the format wants it between its quotes.
pub fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

// Upper bounds as upstream has them.
static SECONDS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
static BYTES: [f64; 11] =
    [64.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0];

/// What is counted of requests of one method to one host.
struct Exchanges {
    took: Histogram<12>,
    sent: Histogram<11>,
    received: Histogram<11>,
}

/// Requests over HTTPS: by code, and by host and method alone.
struct Requests {
    answered: BTreeMap<(u16, String, String), u64>,
    exchanges: BTreeMap<(String, String), Box<Exchanges>>,
}

static REQUESTS: Mutex<Requests> = Mutex::new(Requests { answered: BTreeMap::new(), exchanges: BTreeMap::new() });
/// Most that are told apart; a client talks to one server.
const MAX_REQUESTS: usize = 1000;

/// A request was answered, or (with code 0) was not, after this time. `bytes`: what was sent, and received where that is
/// known at once.
pub fn requested(code: u16, host: &str, method: &str, took: Duration, bytes: (u64, Option<u64>)) {
    let mut requests = REQUESTS.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (code, host.to_string(), method.to_string());
    if requests.answered.len() >= MAX_REQUESTS && !requests.answered.contains_key(&key) {
        return;
    }
    *requests.answered.entry(key).or_default() += 1;
    let fresh =
        || Exchanges { took: Histogram::new(&SECONDS), sent: Histogram::new(&BYTES), received: Histogram::new(&BYTES) };
    let of = requests.exchanges.entry((host.to_string(), method.to_string())).or_insert_with(|| Box::new(fresh()));
    of.took.observe(took);
    of.sent.observe_whole(bytes.0);
    bytes.1.into_iter().for_each(|bytes| of.received.observe_whole(bytes));
}

/// Shows what clients count at this process's `/metrics`.
pub(crate) fn show() {
    crate::exposition::register("rest_client", page);
}

fn page() -> String {
    let mut out = String::new();
    let requests = REQUESTS.lock().unwrap_or_else(PoisonError::into_inner);
    let name = "rest_client_requests_total";
    head(&mut out, name, "counter", "[ALPHA] Requests by how they were answered.");
    for ((code, host, method), count) in &requests.answered {
        let code = if *code == 0 { "<error>".into() } else { code.to_string() };
        let _ = writeln!(out, "{name}{{code=\"{code}\",host=\"{host}\",method=\"{method}\"}} {count}");
    }
    let mut family = |name: &str, about: &str, write: fn(&Exchanges, &mut String, &str, &str)| {
        head(&mut out, name, "histogram", about);
        for ((host, verb), exchanges) in &requests.exchanges {
            write(exchanges, &mut out, name, &format!("host=\"{host}\",verb=\"{verb}\""));
        }
    };
    family(
        "rest_client_request_duration_seconds",
        "[ALPHA] Until a request's answer begins.",
        |e, out, name, labels| e.took.write(out, name, labels),
    );
    family("rest_client_request_size_bytes", "[ALPHA] Bodies sent.", |e, out, name, labels| {
        e.sent.write(out, name, labels)
    });
    family(
        "rest_client_response_size_bytes",
        "[ALPHA] Bodies received whose length was told ahead.",
        |e, out, name, labels| e.received.write(out, name, labels),
    );
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
