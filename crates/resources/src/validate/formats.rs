//! Formats of strings: names, label keys and values, ports, addresses. Each function answers with its complaints.
//!
//! Follows `k8s.io/apimachinery/pkg/util/validation`, whose texts name the regular expression; the checks here are plain
//! loops over bytes that accept the same language.

use std::net::IpAddr;

pub use meta::formats::{Complaints, dns_1035_label, dns_label, dns_subdomain, label_value, qualified_name};
use meta::formats::{DNS_LABEL, MAX_SUBDOMAIN, alphanumeric, check, edged, lower_or_digit, pattern, too_long};

/// A format as a rule for objects' names ([`crate::Strategy::validate_name`]); what is generated may end in a dash.
pub fn name(format: fn(&str) -> Complaints, name: &str, generate: bool) -> Result<(), String> {
    let name = if generate { name.strip_suffix('-').unwrap_or(name) } else { name };
    format(name).into_iter().next().map_or(Ok(()), Err)
}

/// `*.example.com`
pub fn wildcard_subdomain(text: &str) -> Complaints {
    let fits =
        text.strip_prefix("*.").is_some_and(|rest| rest.split('.').all(|part| edged(part, lower_or_digit, b"-")));
    check(text, MAX_SUBDOMAIN, fits, || {
        pattern(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!("\\*\\.{DNS_LABEL}(\\.{DNS_LABEL})*"),
            &["*.example.com"],
        )
    })
}

/// A subdomain whose labels may hold underscores, as names of services often do.
pub fn relaxed_subdomain(text: &str) -> Complaints {
    const LABEL: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let fits = text.split('.').all(|part| edged(part.strip_prefix('_').unwrap_or(part), lower_or_digit, b"-_"));
    check(text, MAX_SUBDOMAIN, fits, || {
        pattern(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character",
            &format!("{LABEL}(\\.{LABEL})*"),
            &["example.com"],
        )
    })
}

/// A subdomain with two labels at least.
pub fn fully_qualified_name(text: &str) -> Complaints {
    let complaints = dns_subdomain(text);
    if complaints.is_empty() && !text.contains('.') {
        return vec!["should be a domain with at least two segments separated by dots".into()];
    }
    complaints
}

/// The name of a port: at most 15 of `a-z0-9-`, with a letter.
pub fn port_name(text: &str) -> Complaints {
    const MAX: usize = 15;
    let mut complaints = Vec::new();
    if text.len() > MAX {
        complaints.push(too_long(MAX));
    }
    if !text.bytes().all(|b| lower_or_digit(b) || b == b'-') {
        complaints.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        complaints.push("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        complaints.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        complaints.push("must not begin or end with a hyphen".into());
    }
    complaints
}

/// The name of an environment variable: anything printable but `=`.
pub fn env_name(text: &str) -> Complaints {
    match text {
        "" => vec!["environment variable name must be non-empty".into()],
        _ if text.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=') => Vec::new(),
        _ => vec![
            "a valid environment variable name must consist only of printable ASCII characters other than '='".into(),
        ],
    }
}

/// A key of a ConfigMap or Secret.
pub fn config_key(text: &str) -> Complaints {
    let fits = !text.is_empty() && text.bytes().all(|b| alphanumeric(b) || b"-_.".contains(&b));
    let mut complaints = check(text, MAX_SUBDOMAIN, fits, || {
        pattern(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        )
    });
    match text {
        "." => complaints.push("must not be '.'".into()),
        ".." => complaints.push("must not be '..'".into()),
        _ if text.starts_with("..") => complaints.push("must not start with '..'".into()),
        _ => {}
    }
    complaints
}

pub fn http_header_name(text: &str) -> Complaints {
    if !text.is_empty() && text.bytes().all(|b| alphanumeric(b) || b == b'-') {
        return Vec::new();
    }
    vec![pattern(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// `30%`
pub fn percent(text: &str) -> Complaints {
    if text.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
        return Vec::new();
    }
    vec![pattern(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// Go's `net.ParseIP` takes no leading zeros and no zones.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

/// Why a name cannot be one segment of a URL's path.
pub fn not_a_path_segment(name: &str) -> Option<String> {
    if matches!(name, "." | "..") {
        return Some(format!("may not be '{name}'"));
    }
    ['/', '%'].into_iter().find(|c| name.contains(*c)).map(|c| format!("may not contain '{c}'"))
}

/// Bytes of a CSI driver's name.
pub const MAX_DRIVER_NAME: usize = 63;

/// A CSI driver's name, apart from its length. Case does not matter in it.
pub fn driver_name(text: &str) -> Complaints {
    dns_subdomain(&text.to_lowercase())
}

pub fn ip(text: &str) -> Complaints {
    if parse_ip(text).is_some() {
        Vec::new()
    } else {
        vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()]
    }
}

/// `10.0.0.0/8`
pub fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let address = parse_ip(address)?;
    let canonical = bits.bytes().all(|b| b.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    let bits: u8 = bits.parse().ok().filter(|_| canonical)?;
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
}

pub fn cidr(text: &str) -> Complaints {
    if parse_cidr(text).is_some() {
        Vec::new()
    } else {
        vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_upstreams() {
        fn check(format: fn(&str) -> Complaints, good: &[&str], bad: &[&str]) {
            for text in good {
                assert_eq!(format(text), Complaints::new(), "{text}");
            }
            for text in bad {
                assert_ne!(format(text), Complaints::new(), "{text}");
            }
        }
        let long = "a".repeat(64);
        check(dns_label, &["a", "0", "a-b", "0-1"], &["", "A", "-a", "a-", "a.b", "a_b", &long]);
        check(dns_1035_label, &["a", "a-0"], &["", "0a", "a-", "A"]);
        check(dns_subdomain, &["a", "a.b-c", &long], &["", ".", "a..b", "a.", "A.b", "a_b"]);
        check(wildcard_subdomain, &["*.a", "*.a.b"], &["*", "a", "*a", "*.*.a"]);
        check(qualified_name, &["a", "A.b_c-d", "x.y/Z"], &["", "/a", "a/", "a/b/c", "-a", "A_/b", &long]);
        check(label_value, &["", "a", "A-b_c.d"], &["-a", "a b", "é", &long]);
        check(port_name, &["http", "a1", "80a"], &["80", "a--b", "-a", "a-", "A", "abcdefghijklmnop"]);
        check(config_key, &["a.b", ".x", "A_B-c"], &["", ".", "..", "..x", "a/b"]);
        check(env_name, &["A", "my.env-name", "1a"], &["", "a=b", "é"]);
        check(percent, &["1%", "100%"], &["%", "1", "a%", "-1%"]);
        check(ip, &["10.0.0.1", "::1"], &["", "10.0.0", "010.0.0.1", "fe80::1%eth0"]);
        check(cidr, &["10.0.0.0/8", "::/0"], &["10.0.0.0", "10.0.0.0/33", "10.0.0.0/08", "x/8"]);
        check(fully_qualified_name, &["a.b"], &["a", "A.b"]);
    }
}
