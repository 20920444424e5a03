//! Times as the API writes them.

use jiff::Timestamp;

/// `metav1.Time`: RFC 3339, whole seconds, `Z`.
pub fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `metav1.MicroTime`: RFC 3339 with six digits of fraction.
pub fn rfc3339_micro(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// Reads either form; `None` for what is no time.
pub fn parse(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}
