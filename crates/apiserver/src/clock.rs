//! Now, as metadata spells it.

use jiff::Timestamp;

/// RFC 3339 in whole seconds with `Z`: the form of `metav1.Time`.
pub fn now() -> String {
    format(Timestamp::now())
}

/// As [`now`], for any time.
pub fn format(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// That long ago.
pub fn before(time: std::time::Duration) -> String {
    format(Timestamp::now().checked_sub(time).unwrap_or(Timestamp::MIN))
}

/// `now` plus whole seconds.
pub fn after_seconds(seconds: i64) -> String {
    let later = Timestamp::now().checked_add(jiff::SignedDuration::from_secs(seconds));
    format(later.unwrap_or(Timestamp::MAX))
}
