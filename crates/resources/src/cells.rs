//! What cells of server-side tables share: ages, counts, lists cut short, labels and containers on one line.
//!
//! Texts are upstream's, since people and scripts read them.

use jiff::Timestamp;
use meta::{LabelSelector, Value};

use meta::Tree;

/// A duration in the two or three figures people want.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let pair = |big: i64, unit: &str, small: i64, part: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{part}") }
    };
    match () {
        // Clocks of two machines may differ a little.
        _ if seconds < -1 => "<invalid>".into(),
        _ if seconds < 0 => "0s".into(),
        _ if seconds < 120 => format!("{seconds}s"),
        _ if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => pair(hours / 24, "d", hours % 24, "h"),
        _ if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        _ if hours < 24 * 365 * 8 => pair(hours / 24 / 365, "y", hours / 24 % 365, "d"),
        _ => format!("{}y", hours / 24 / 365),
    }
}

/// Whole seconds from one RFC 3339 time to another.
pub fn seconds_between(from: &str, to: &str) -> Option<i64> {
    let (from, to): (Timestamp, Timestamp) = (from.parse().ok()?, to.parse().ok()?);
    Some(to.duration_since(from).as_secs())
}

/// Time passed since a timestamp.
pub fn since(timestamp: &str, now: &str) -> String {
    seconds_between(timestamp, now).map_or_else(|| "<unknown>".into(), human_duration)
}

/// The object's age.
pub fn age(object: &Value, now: &str) -> Value {
    since(object.text("metadata.creationTimestamp"), now).into()
}

pub fn name(object: &Value) -> Value {
    object["metadata"]["name"].clone()
}

/// The text, or `<none>`.
pub fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

/// `True` or `False`, `<unset>` for absent.
pub fn titled(value: &Value) -> Value {
    match value {
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        _ => "<unset>".into(),
    }
}

/// Names and images of containers.
pub fn containers(containers: &[Value]) -> [Value; 2] {
    ["name", "image"].map(|field| containers.iter().map(|c| c.text(field)).collect::<Vec<_>>().join(",").into())
}

/// A label map: `a=b,c=d`.
pub fn labels(map: &serde_json::Map<String, Value>) -> Value {
    let pairs: Vec<String> = map.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    or_none(&pairs.join(","))
}

/// A `metav1.LabelSelector`.
pub fn selector(selector: &Value) -> Value {
    match LabelSelector::from_value(selector) {
        Ok(selector) => or_none(&selector.to_string()),
        Err(_) => "<error>".into(),
    }
}

/// At most `max` texts of many: `a,b,c + 2 more...`.
pub fn some_of(texts: impl Iterator<Item = String>, max: usize, separator: &str, nothing: &str) -> Value {
    let mut texts: Vec<String> = texts.collect();
    let more = texts.len().saturating_sub(max);
    texts.truncate(max);
    let shown = texts.join(separator);
    match more {
        0 if shown.is_empty() => nothing.into(),
        0 => shown.into(),
        _ => format!("{shown} + {more} more...").into(),
    }
}

/// The texts of a list of strings.
pub fn texts(list: &[Value]) -> impl Iterator<Item = String> {
    list.iter().filter_map(|v| v.as_str().map(Into::into))
}

/// A quantity in canonical form; empty text for none.
pub fn quantity(value: &Value) -> String {
    meta::quantity::Quantity::from_value(value)
        .map_or_else(|_| value.as_str().unwrap_or_default().into(), |q| q.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_upstreams() {
        let (minute, hour, day, year) = (60, 3600, 86400, 86400 * 365);
        for (seconds, expect) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (10 * minute + 9, "10m"),
            (179 * minute, "179m"),
            (3 * hour, "3h"),
            (7 * hour + 5 * minute, "7h5m"),
            (8 * hour + 59 * minute, "8h"),
            (47 * hour, "47h"),
            (48 * hour, "2d"),
            (50 * hour, "2d2h"),
            (8 * day, "8d"),
            (700 * day, "700d"),
            (2 * year, "2y"),
            (2 * year + 3 * day, "2y3d"),
            (8 * year + day, "8y"),
        ] {
            assert_eq!(human_duration(seconds), expect, "{seconds}");
        }
        assert_eq!(since("2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"), "60s");
        assert_eq!(since("2026-01-01T00:00:00.5Z", "2026-01-01T00:01:00Z"), "59s");
        assert_eq!(since("", "2026-01-01T00:01:00Z"), "<unknown>");
    }

    #[test]
    fn long_lists_are_cut() {
        let list = || ["a", "b", "c", "d"].map(String::from).into_iter();
        assert_eq!(some_of(list(), 3, ",", "<unset>"), "a,b,c + 1 more...");
        assert_eq!(some_of(list(), 4, ",", "<unset>"), "a,b,c,d");
        assert_eq!(some_of(list().take(0), 3, ",", "<unset>"), "<unset>");
    }
}
