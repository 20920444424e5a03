//! Formats of strings: names, label keys and values, ports, addresses. Each function answers with its complaints.
//!
//! Follows `k8s.io/apimachinery/pkg/util/validation`, whose texts name the regular expression; the checks here are plain
//! loops over bytes that accept the same language.

use std::net::IpAddr;

/// What is wrong, in upstream's words; nothing when all is well.
pub type Complaints = Vec<String>;

/// A format as a rule for objects' names ([`crate::Strategy::validate_name`]); what is generated may end in a dash.
pub fn name(format: fn(&str) -> Complaints, name: &str, generate: bool) -> Result<(), String> {
    let name = if generate { name.strip_suffix('-').unwrap_or(name) } else { name };
    format(name).into_iter().next().map_or(Ok(()), Err)
}

const DNS_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const MAX_LABEL: usize = 63;
const MAX_SUBDOMAIN: usize = 253;

fn pattern(what: &str, pattern: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{what} (e.g. {}regex used for validation is '{pattern}')", examples.join(" or "))
}

fn too_long(max: usize) -> String {
    format!("must be no more than {max} characters")
}

const EMPTY: &str = "must be non-empty";

/// `first rest* last`, where both ends are of `edge` and all of `edge` or `middle`.
fn edged(text: &str, edge: fn(u8) -> bool, middle: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let ends = bytes.first().is_some_and(|b| edge(*b)) && bytes.last().is_some_and(|b| edge(*b));
    ends && bytes.iter().all(|b| edge(*b) || middle.contains(b))
}

fn lower_or_digit(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn alphanumeric(b: u8) -> bool {
    b.is_ascii_alphanumeric()
}

fn check(text: &str, max: usize, fits: bool, complaint: impl FnOnce() -> String) -> Complaints {
    let length = (text.len() > max).then(|| too_long(max));
    length.into_iter().chain((!fits).then(complaint)).collect()
}

pub fn dns_label(text: &str) -> Complaints {
    let complaint = || {
        pattern(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
            DNS_LABEL,
            &["my-name", "123-abc"],
        )
    };
    check(text, MAX_LABEL, edged(text, lower_or_digit, b"-"), complaint)
}

pub fn dns_1035_label(text: &str) -> Complaints {
    let fits = edged(text, lower_or_digit, b"-") && text.as_bytes()[0].is_ascii_lowercase();
    check(text, MAX_LABEL, fits, || {
        pattern(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        )
    })
}

pub fn dns_subdomain(text: &str) -> Complaints {
    check(text, MAX_SUBDOMAIN, text.split('.').all(|part| edged(part, lower_or_digit, b"-")), || {
        pattern(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            &format!("{DNS_LABEL}(\\.{DNS_LABEL})*"),
            &["example.com"],
        )
    })
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

/// A subdomain with two labels at least.
pub fn fully_qualified_name(text: &str) -> Complaints {
    let complaints = dns_subdomain(text);
    if complaints.is_empty() && !text.contains('.') {
        return vec!["should be a domain with at least two segments separated by dots".into()];
    }
    complaints
}

/// `[prefix/]name`, as keys of labels and annotations.
pub fn qualified_name(text: &str) -> Complaints {
    const NAME: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
    const WORDS: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let shape = || pattern(WORDS, NAME, &["MyName", "my.name", "123-abc"]);
    let mut parts = text.split('/');
    let (name, prefix) = match (parts.next().unwrap_or_default(), parts.next(), parts.next()) {
        (name, None, _) => (name, None),
        (prefix, Some(name), None) => (name, Some(prefix)),
        _ => {
            return vec![format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                shape()
            )];
        }
    };
    let mut complaints = match prefix {
        None => Vec::new(),
        Some("") => vec![format!("prefix part {EMPTY}")],
        Some(prefix) => dns_subdomain(prefix).into_iter().map(|c| format!("prefix part {c}")).collect(),
    };
    if name.is_empty() {
        complaints.push(format!("name part {EMPTY}"));
    } else if name.len() > MAX_LABEL {
        complaints.push(format!("name part {}", too_long(MAX_LABEL)));
    }
    if !edged(name, alphanumeric, b"-_.") {
        complaints.push(format!("name part {}", shape()));
    }
    complaints
}

pub fn label_value(text: &str) -> Complaints {
    check(text, MAX_LABEL, text.is_empty() || edged(text, alphanumeric, b"-_."), || {
        pattern(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        )
    })
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
