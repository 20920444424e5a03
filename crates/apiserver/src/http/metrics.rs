//! Request counts and times, under upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use http::{Method, StatusCode};

/// Upper bounds of the latency histogram, seconds.
const BUCKETS: [f64; 12] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 5.0, 30.0];

#[derive(Default)]
struct Series {
    count: u64,
    seconds: f64,
    buckets: [u64; BUCKETS.len()],
}

type Key = (String, String, String, u16);

/// Keyed by verb, group, resource and code: all bounded by what the server knows.
static REQUESTS: LazyLock<Mutex<BTreeMap<Key, Series>>> = LazyLock::new(Mutex::default);

pub fn observe(method: &Method, path: &str, code: StatusCode, took: Duration) {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, rest) = match &parts[..] {
        ["api", _, rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        _ => return,
    };
    let resource = match rest {
        ["namespaces", _, resource, ..] | [resource, ..] => *resource,
        [] => return,
    };
    // A path that named nothing must not grow the table.
    if code == StatusCode::NOT_FOUND || code == StatusCode::FORBIDDEN {
        return;
    }
    let key = (method.to_string(), group.to_string(), resource.to_string(), code.as_u16());
    let mut requests = REQUESTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let series = requests.entry(key).or_default();
    let seconds = took.as_secs_f64();
    series.count += 1;
    series.seconds += seconds;
    if let Some(at) = BUCKETS.iter().position(|bound| seconds <= *bound) {
        series.buckets[at] += 1;
    }
}

/// The text exposition format.
pub fn render(stored: &[(String, usize)]) -> String {
    let mut out = String::new();
    let requests = REQUESTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // Writing to a String does not fail.
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(out, "{text}");
    };
    line(format_args!("# TYPE apiserver_request_total counter"));
    for ((verb, group, resource, code), series) in requests.iter() {
        line(format_args!(
            "apiserver_request_total{{code=\"{code}\",group=\"{group}\",resource=\"{resource}\",verb=\"{verb}\"}} {}",
            series.count
        ));
    }
    line(format_args!("# TYPE apiserver_request_duration_seconds histogram"));
    for ((verb, group, resource, code), series) in requests.iter() {
        let labels = format!("code=\"{code}\",group=\"{group}\",resource=\"{resource}\",verb=\"{verb}\"");
        let mut total = 0;
        for (bound, count) in BUCKETS.iter().zip(series.buckets) {
            total += count;
            line(format_args!("apiserver_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {total}"));
        }
        line(format_args!("apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {}", series.count));
        line(format_args!("apiserver_request_duration_seconds_sum{{{labels}}} {}", series.seconds));
        line(format_args!("apiserver_request_duration_seconds_count{{{labels}}} {}", series.count));
    }
    line(format_args!("# TYPE apiserver_storage_objects gauge"));
    for (resource, count) in stored {
        line(format_args!("apiserver_storage_objects{{resource=\"{resource}\"}} {count}"));
    }
    out
}
