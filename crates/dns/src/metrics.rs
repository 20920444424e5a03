//! What the server did, in numbers, under CoreDNS's names.
//!
//! Counting costs each answer a few additions and nothing else, so no lock guards them; only what went to other servers is
//! counted under one. All is told of one zone, `.`, as CoreDNS tells it with its usual configuration.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::answer::Transport;

/// Labels every number has.
const PLACE: &str = "server=\"dns://:53\",view=\"\",zone=\".\"";
/// Types counted by name.
const KINDS: [RecordType; 15] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::ANY,
    RecordType::AXFR,
    RecordType::CNAME,
    RecordType::DNSKEY,
    RecordType::DS,
    RecordType::HTTPS,
    RecordType::IXFR,
    RecordType::MX,
    RecordType::NS,
    RecordType::PTR,
    RecordType::SOA,
    RecordType::SRV,
    RecordType::TXT,
];
/// Codes counted by name; the last stands for all others.
const CODES: [(ResponseCode, &str); 7] = [
    (ResponseCode::NoError, "NOERROR"),
    (ResponseCode::FormErr, "FORMERR"),
    (ResponseCode::ServFail, "SERVFAIL"),
    (ResponseCode::NXDomain, "NXDOMAIN"),
    (ResponseCode::NotImp, "NOTIMP"),
    (ResponseCode::Refused, "REFUSED"),
    (ResponseCode::BADVERS, "BADVERS"),
];
const FAMILIES: [&str; 2] = ["1", "2"];
const TRANSPORTS: [&str; 2] = ["udp", "tcp"];
/// Bounds of durations, seconds: doubling from a quarter of a millisecond.
const SECONDS: [f64; 16] =
    [0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192];
/// Bounds of the time from a pod's change to answers that know of it, seconds: doubling from a millisecond.
const PROGRAMMING: [f64; 20] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384, 32.768,
    65.536, 131.072, 262.144, 524.288,
];
/// What CoreDNS would have been told to do in order to do the same.
const PLUGINS: [&str; 5] = ["cache", "forward", "kubernetes", "loadbalance", "prometheus"];
/// Bounds of packets' sizes, bytes.
const BYTES: [f64; 14] =
    [0.0, 100.0, 200.0, 300.0, 400.0, 511.0, 1023.0, 2047.0, 4095.0, 8291.0, 16_000.0, 32_000.0, 48_000.0, 64_000.0];
/// Servers told apart; answers of more are counted under the last one's name.
const MAX_SERVERS: usize = 64;

/// Who had the answer, by CoreDNS's names for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Zone,
    Cache,
    Forward,
    Nobody,
}

const BY: [(By, &str); 4] =
    [(By::Zone, "kubernetes"), (By::Cache, "cache"), (By::Forward, "forward"), (By::Nobody, "")];

/// Counts of what lies below each bound and above the one before, and the sum in millionths.
#[derive(Debug)]
struct Histogram<const N: usize> {
    bounds: &'static [f64; N],
    counts: [AtomicU64; N],
    beyond: AtomicU64,
    millionths: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: &'static [f64; N]) -> Histogram<N> {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Histogram { bounds, counts, beyond: AtomicU64::new(0), millionths: AtomicU64::new(0) }
    }

    fn observe(&self, value: f64) {
        let at = self.bounds.iter().position(|bound| value <= *bound);
        at.map_or(&self.beyond, |at| &self.counts[at]).fetch_add(1, Ordering::Relaxed);
        self.millionths.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    fn write(&self, name: &str, labels: &str, out: &mut String) {
        let mut below = 0;
        for (count, bound) in self.counts.iter().zip(self.bounds) {
            below += count.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        below += self.beyond.load(Ordering::Relaxed);
        let sum = self.millionths.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(
            out,
            "{name}_bucket{{{labels},le=\"+Inf\"}} {below}\n{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {below}"
        );
    }
}

type Counts<const N: usize> = [AtomicU64; N];

fn zeros<const N: usize>() -> Counts<N> {
    std::array::from_fn(|_| AtomicU64::new(0))
}

/// One question, answered.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    pub transport: Transport,
    pub over_v4: bool,
    pub kind: RecordType,
    pub code: ResponseCode,
    /// The asker would take signatures.
    pub signatures: bool,
    pub by: By,
    pub took: Duration,
    /// Of the question and of the answer, bytes.
    pub sizes: (usize, usize),
}

/// Shared by all who answer.
#[derive(Debug)]
pub struct Metrics {
    /// By family, transport and type; the last one for types without a name here.
    requests: [[Counts<{ KINDS.len() + 1 }>; 2]; 2],
    responses: [Counts<{ CODES.len() + 1 }>; BY.len()],
    durations: Histogram<{ SECONDS.len() }>,
    programming: Histogram<{ PROGRAMMING.len() }>,
    /// Questions of askers that would take signatures.
    signatures: AtomicU64,
    /// Of questions and answers, each by transport.
    sizes: [[Histogram<{ BYTES.len() }>; 2]; 2],
    /// Answers from the cache: that there is something, and that there is nothing.
    hits: Counts<2>,
    misses: AtomicU64,
    entries: Counts<2>,
    evicted: Counts<2>,
    rejected: AtomicU64,
    others: Mutex<BTreeMap<(SocketAddr, &'static str), Histogram<{ SECONDS.len() }>>>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let sizes = || std::array::from_fn(|_| Histogram::new(&BYTES));
        Metrics {
            requests: std::array::from_fn(|_| std::array::from_fn(|_| zeros())),
            responses: std::array::from_fn(|_| zeros()),
            durations: Histogram::new(&SECONDS),
            programming: Histogram::new(&PROGRAMMING),
            signatures: AtomicU64::new(0),
            sizes: [sizes(), sizes()],
            hits: zeros(),
            misses: AtomicU64::new(0),
            entries: zeros(),
            evicted: zeros(),
            rejected: AtomicU64::new(0),
            others: Mutex::default(),
        }
    }
}

fn name_of(code: ResponseCode) -> &'static str {
    CODES.iter().find(|(known, _)| *known == code).map_or("other", |(_, name)| name)
}

impl Metrics {
    pub fn answered(&self, what: &Answered) {
        let transport = usize::from(what.transport == Transport::Tcp);
        let kind = KINDS.iter().position(|kind| *kind == what.kind).unwrap_or(KINDS.len());
        let code = CODES.iter().position(|(code, _)| *code == what.code).unwrap_or(CODES.len());
        let by = BY.iter().position(|(by, _)| *by == what.by).unwrap_or_default();
        self.requests[usize::from(!what.over_v4)][transport][kind].fetch_add(1, Ordering::Relaxed);
        self.responses[by][code].fetch_add(1, Ordering::Relaxed);
        self.signatures.fetch_add(u64::from(what.signatures), Ordering::Relaxed);
        self.durations.observe(what.took.as_secs_f64());
        self.sizes[0][transport].observe(what.sizes.0 as f64);
        self.sizes[1][transport].observe(what.sizes.1 as f64);
    }

    /// The cache was asked: it knew something, it knew that there is nothing, or it did not know.
    pub fn looked_up(&self, found: Option<bool>) {
        let count = match found {
            Some(something) => &self.hits[usize::from(!something)],
            None => &self.misses,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// How many answers of each sort the cache holds, and has given up.
    pub fn holds(&self, entries: [usize; 2], evicted: [usize; 2]) {
        for (count, now) in self.entries.iter().chain(&self.evicted).zip(entries.into_iter().chain(evicted)) {
            count.store(now as u64, Ordering::Relaxed);
        }
    }

    /// A change of pods became known to those who ask for a headless Service, after so long.
    pub fn programmed(&self, took: Duration) {
        self.programming.observe(took.as_secs_f64());
    }

    /// There was no room to ask another server.
    pub fn rejected(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }

    /// Another server was asked; `None`: it did not answer.
    pub fn asked(&self, server: SocketAddr, code: Option<ResponseCode>, took: Duration) {
        // Each update leaves the numbers whole, so a poisoned lock still guards good ones.
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (server, code.map_or("SERVFAIL", name_of));
        if others.len() >= MAX_SERVERS && !others.contains_key(&key) {
            key = others.last_key_value().map_or(key, |(last, _)| *last);
        }
        others.entry(key).or_insert_with(|| Histogram::new(&SECONDS)).observe(took.as_secs_f64());
    }

    /// The text format Prometheus reads.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        head(&mut out, "coredns_build_info", "gauge", "What answers here.");
        let version = env!("CARGO_PKG_VERSION");
        let _ = writeln!(out, "coredns_build_info{{goversion=\"\",revision=\"nauplius\",version=\"{version}\"}} 1");
        let name = "coredns_plugin_enabled";
        head(&mut out, name, "gauge", "What this server does, by CoreDNS's names.");
        for plugin in PLUGINS {
            let _ = writeln!(out, "{name}{{name=\"{plugin}\",{PLACE}}} 1");
        }
        let name = "coredns_kubernetes_dns_programming_duration_seconds";
        head(&mut out, name, "histogram", "Seconds from a pod's change to answers that know of it.");
        self.programming.write(name, "service_kind=\"headless_with_selector\"", &mut out);
        let name = "coredns_dns_requests_total";
        head(&mut out, name, "counter", "Questions by address family, transport and type.");
        for (family, by_transport) in FAMILIES.iter().zip(&self.requests) {
            for (proto, by_kind) in TRANSPORTS.iter().zip(by_transport) {
                let kinds = KINDS.iter().map(ToString::to_string).chain(["other".to_string()]);
                for (kind, count) in kinds.zip(by_kind).filter(|(_, count)| of(count) > 0) {
                    let count = of(count);
                    let _ = writeln!(
                        out,
                        "{name}{{family=\"{family}\",proto=\"{proto}\",{PLACE},type=\"{kind}\"}} {count}"
                    );
                }
            }
        }
        let name = "coredns_dns_responses_total";
        head(&mut out, name, "counter", "Answers by who had them and their code.");
        for ((_, plugin), by_code) in BY.iter().zip(&self.responses) {
            let codes = CODES.iter().map(|(_, name)| *name).chain(["other"]);
            for (code, count) in codes.zip(by_code).filter(|(_, count)| of(count) > 0) {
                let _ = writeln!(out, "{name}{{plugin=\"{plugin}\",rcode=\"{code}\",{PLACE}}} {}", of(count));
            }
        }
        let name = "coredns_dns_request_duration_seconds";
        head(&mut out, name, "histogram", "Seconds from a question to its answer.");
        self.durations.write(name, PLACE, &mut out);
        for (which, by_transport) in ["request", "response"].iter().zip(&self.sizes) {
            let name = format!("coredns_dns_{which}_size_bytes");
            head(&mut out, &name, "histogram", "Bytes of the packets.");
            for (proto, sizes) in TRANSPORTS.iter().zip(by_transport) {
                sizes.write(&name, &format!("proto=\"{proto}\",{PLACE}"), &mut out);
            }
        }
        let cache = "server=\"dns://:53\",view=\"\",zones=\".\"";
        for (name, kind, help, counts) in [
            ("coredns_cache_hits_total", "counter", "Answers the cache had.", &self.hits),
            ("coredns_cache_entries", "gauge", "Answers the cache holds.", &self.entries),
            ("coredns_cache_evictions_total", "counter", "Answers the cache gave up for others.", &self.evicted),
        ] {
            head(&mut out, name, kind, help);
            for (sort, count) in ["success", "denial"].iter().zip(counts) {
                let _ = writeln!(out, "{name}{{type=\"{sort}\",{cache}}} {}", of(count));
            }
        }
        let asked = of(&self.misses) + self.hits.iter().map(of).sum::<u64>();
        for (name, help, labels, count) in [
            ("coredns_cache_misses_total", "Answers the cache did not have.", cache, of(&self.misses)),
            ("coredns_cache_requests_total", "Times the cache was asked.", cache, asked),
            ("coredns_cache_prefetch_total", "Answers asked for before they were over: none are.", cache, 0),
            ("coredns_cache_served_stale_total", "Answers given although they were over: none are.", cache, 0),
            ("coredns_dns_do_requests_total", "Questions of askers that take signatures.", PLACE, of(&self.signatures)),
            ("coredns_forward_healthcheck_broken_total", "Servers are not checked, but asked in turn.", "", 0),
            (
                "coredns_forward_max_concurrent_rejects_total",
                "Questions there was no room for.",
                "",
                of(&self.rejected),
            ),
            ("coredns_panics_total", "Answers that could not be worked out: none, since nothing may panic.", "", 0),
        ] {
            head(&mut out, name, "counter", help);
            let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let _ = writeln!(out, "{name}{labels} {count}");
        }
        let name = "coredns_proxy_request_duration_seconds";
        head(&mut out, name, "histogram", "Seconds another server took, by the server and its answer's code.");
        for ((server, code), took) in &*self.others.lock().unwrap_or_else(PoisonError::into_inner) {
            took.write(name, &format!("proxy_name=\"forward\",rcode=\"{code}\",to=\"{server}\""), &mut out);
        }
        out
    }
}
