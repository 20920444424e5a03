//! What the scheduler counts, under upstream's names, and a page of it.
//!
//! One set for the process, since there is one scheduler in it; counting is a few relaxed additions. It knows nothing of who
//! reads: [`serve`] answers plain HTTP/1.1 on whatever listener it is given.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Upper bounds of durations, in seconds: from a tenth of a millisecond, doubling, to some 13 s.
const BOUNDS: usize = 18;
const FIRST_BOUND: f64 = 0.0001;

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    Scheduled,
    Unschedulable,
    Error,
}

impl Attempt {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Scheduled, "scheduled"), (Self::Unschedulable, "unschedulable"), (Self::Error, "error")];
}

#[derive(Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS],
    count: AtomicU64,
    microseconds: AtomicU64,
}

impl Histogram {
    const fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BOUNDS],
            count: AtomicU64::new(0),
            microseconds: AtomicU64::new(0),
        }
    }

    fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let mut bound = FIRST_BOUND;
        for bucket in &self.buckets {
            if seconds <= bound {
                bucket.fetch_add(1, Ordering::Relaxed);
                break;
            }
            bound *= 2.0;
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.microseconds.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let (mut sum, mut bound) = (0, FIRST_BOUND);
        let comma = if labels.is_empty() { "" } else { "," };
        for bucket in &self.buckets {
            sum += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {sum}");
            bound *= 2.0;
        }
        let count = self.count.load(Ordering::Relaxed);
        let seconds = Duration::from_micros(self.microseconds.load(Ordering::Relaxed)).as_secs_f64();
        let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{braces} {seconds}\n{name}_count{braces} {count}");
    }
}

/// See the module.
pub struct Metrics {
    attempts: [Histogram; 3],
    algorithm: Histogram,
    to_bound: Histogram,
    preemption_attempts: AtomicU64,
    victims: AtomicU64,
    /// Active, backing off, unschedulable, gated.
    pending: [AtomicU64; 4],
    assumed: AtomicU64,
    nodes: AtomicU64,
    pods: AtomicU64,
}

/// The process's own.
pub static METRICS: Metrics = Metrics {
    attempts: [const { Histogram::new() }; 3],
    algorithm: Histogram::new(),
    to_bound: Histogram::new(),
    preemption_attempts: AtomicU64::new(0),
    victims: AtomicU64::new(0),
    pending: [const { AtomicU64::new(0) }; 4],
    assumed: AtomicU64::new(0),
    nodes: AtomicU64::new(0),
    pods: AtomicU64::new(0),
};

const QUEUES: [&str; 4] = ["active", "backoff", "unschedulable", "gated"];

impl Metrics {
    /// One attempt to place a pod.
    pub fn attempt(&self, how: Attempt, took: Duration) {
        self.attempts[how as usize].observe(took);
        self.algorithm.observe(took);
    }

    /// A pod was bound this long after it was first seen.
    pub fn bound(&self, after: Duration) {
        self.to_bound.observe(after);
    }

    pub fn preempted(&self, victims: usize) {
        self.preemption_attempts.fetch_add(1, Ordering::Relaxed);
        self.victims.fetch_add(victims as u64, Ordering::Relaxed);
    }

    /// How much there is of everything: pods waiting by queue, assumed pods, nodes, placed pods.
    pub fn sizes(&self, pending: [usize; 4], assumed: usize, nodes: usize, pods: usize) {
        for (gauge, size) in self.pending.iter().zip(pending) {
            gauge.store(size as u64, Ordering::Relaxed);
        }
        for (gauge, size) in [(&self.assumed, assumed), (&self.nodes, nodes), (&self.pods, pods)] {
            gauge.store(size as u64, Ordering::Relaxed);
        }
    }

    /// The page, in Prometheus' text format.
    pub fn page(&self) -> String {
        let mut out = String::new();
        let head = |out: &mut String, name: &str, kind: &str, about: &str| {
            let _ = writeln!(out, "# HELP {name} {about}\n# TYPE {name} {kind}");
        };
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let profile = "profile=\"default-scheduler\"";
        let name = "scheduler_schedule_attempts_total";
        head(&mut out, name, "counter", "Attempts to schedule pods, by result.");
        for (how, result) in Attempt::ALL {
            let _ =
                writeln!(out, "{name}{{{profile},result=\"{result}\"}} {}", load(&self.attempts[how as usize].count));
        }
        let name = "scheduler_scheduling_attempt_duration_seconds";
        head(&mut out, name, "histogram", "How long an attempt takes, without the binding.");
        for (how, result) in Attempt::ALL {
            self.attempts[how as usize].write(&mut out, name, &format!("{profile},result=\"{result}\""));
        }
        let name = "scheduler_scheduling_algorithm_duration_seconds";
        head(&mut out, name, "histogram", "How long the choice of a node takes.");
        self.algorithm.write(&mut out, name, "");
        let name = "scheduler_pod_scheduling_sli_duration_seconds";
        head(&mut out, name, "histogram", "From the first sight of a pod to its binding.");
        self.to_bound.write(&mut out, name, "");
        for (name, about, value) in [
            ("scheduler_preemption_attempts_total", "Attempts to make room.", load(&self.preemption_attempts)),
            ("scheduler_preemption_victims_total", "Pods removed to make room.", load(&self.victims)),
        ] {
            head(&mut out, name, "counter", about);
            let _ = writeln!(out, "{name} {value}");
        }
        let name = "scheduler_pending_pods";
        head(&mut out, name, "gauge", "Pods that wait, by queue.");
        for (queue, size) in QUEUES.iter().zip(&self.pending) {
            let _ = writeln!(out, "{name}{{queue=\"{queue}\"}} {}", load(size));
        }
        let name = "scheduler_cache_size";
        head(&mut out, name, "gauge", "Nodes, pods and assumed pods known.");
        for (kind, size) in [("assumed_pods", &self.assumed), ("nodes", &self.nodes), ("pods", &self.pods)] {
            let _ = writeln!(out, "{name}{{type=\"{kind}\"}} {}", load(size));
        }
        out
    }
}

/// Connections answered at once, how long each may take to ask, and the longest line it may ask with.
const CONNECTIONS: usize = 16;
const ASK_WITHIN: Duration = Duration::from_secs(5);
const MAX_LINE: u64 = 4096;

/// Answers /metrics and the health checks until dropped. A connection gets one answer.
pub async fn serve(listener: TcpListener) {
    static PLACES: Semaphore = Semaphore::const_new(CONNECTIONS);
    loop {
        let Ok(place) = PLACES.acquire().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(async move {
                    // Whoever does not ask in time, or goes away, gets nothing.
                    let _ = tokio::time::timeout(ASK_WITHIN, answer(stream)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "metrics: no connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    use tokio::io::AsyncReadExt;
    let mut line = String::new();
    BufReader::new((&mut stream).take(MAX_LINE)).read_line(&mut line).await?;
    let path = line.strip_prefix("GET ").and_then(|l| l.split([' ', '?']).next()).unwrap_or_default();
    let (code, body) = match path {
        "/metrics" => ("200 OK", client::exposition::text()),
        "/healthz" | "/livez" | "/readyz" => ("200 OK", "ok".into()),
        _ => ("404 Not Found", "404 page not found\n".into()),
    };
    let head = format!(
        "HTTP/1.1 {code}\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_upstreams_names() {
        let metrics = Histogram::new();
        metrics.observe(Duration::from_micros(150));
        metrics.observe(Duration::from_secs(100));
        let mut out = String::new();
        metrics.write(&mut out, "x", "a=\"b\"");
        assert!(out.starts_with("x_bucket{a=\"b\",le=\"0.0001\"} 0\nx_bucket{a=\"b\",le=\"0.0002\"} 1\n"), "{out}");
        assert!(
            out.ends_with("x_bucket{a=\"b\",le=\"+Inf\"} 2\nx_sum{a=\"b\"} 100.00015\nx_count{a=\"b\"} 2\n"),
            "{out}"
        );
        METRICS.attempt(Attempt::Scheduled, Duration::from_millis(1));
        let page = METRICS.page();
        for name in [
            "scheduler_schedule_attempts_total{profile=\"default-scheduler\",result=\"scheduled\"}",
            "scheduler_pending_pods{queue=\"gated\"} 0",
        ] {
            assert!(page.contains(name), "{page}");
        }
    }
}
