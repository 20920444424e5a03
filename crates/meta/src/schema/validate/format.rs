//! The string formats CRDs may name. Formats nobody knows match everything, as upstream has it.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Whether a text is of a format.
pub(super) fn matches(format: &str, text: &str) -> bool {
    match format {
        "date" => date(text),
        "date-time" | "datetime" => date_time(text),
        "duration" => crate::time::parse_duration(text).is_some() || long_duration(text),
        "byte" => base64(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.contains(':') && text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => cidr(text),
        "hostname" => hostname(text),
        "email" => email(text),
        "uri" => uri(text),
        "mac" => mac(text),
        "uuid" => uuid(text, None),
        "uuid3" => uuid(text, Some(b'3')),
        "uuid4" => uuid(text, Some(b'4')),
        "uuid5" => uuid(text, Some(b'5')),
        "hexcolor" => {
            matches!(text.trim_start_matches('#').len(), 3 | 6)
                && text.trim_start_matches('#').bytes().all(|b| b.is_ascii_hexdigit())
        }
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "k8s-short-name" => dns_label(text) && text.len() <= 63,
        "k8s-long-name" => text.len() <= 253 && text.split('.').all(dns_label),
        _ => true,
    }
}

fn date(text: &str) -> bool {
    text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok()
}

fn date_time(text: &str) -> bool {
    if crate::time::parse(text).is_some() {
        return true;
    }
    // Also without a zone, and with an offset without its colon.
    let civil = text.len() >= 19 && text.as_bytes()[10] == b'T' && text.parse::<jiff::civil::DateTime>().is_ok();
    let short = text.len() > 5 && matches!(text.as_bytes()[text.len() - 5], b'+' | b'-') && {
        let (head, tail) = text.split_at(text.len() - 2);
        crate::time::parse(&format!("{head}:{tail}")).is_some()
    };
    civil || short
}

/// `3 days`, `2 weeks` and their like.
fn long_duration(text: &str) -> bool {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    digits > 0 && {
        let unit = text[digits..].trim().trim_end_matches('s');
        let units = [
            "n", "ns", "nano", "u", "µ", "us", "µs", "micro", "m", "ms", "milli", "s", "sec", "second", "min",
            "minute", "h", "hr", "hour", "d", "day", "w", "wk", "week",
        ];
        units.contains(&unit) || units.contains(&text[digits..].trim())
    }
}

fn base64(text: &str) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}

fn cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let Ok(bits) = bits.parse::<u8>() else { return false };
    address.parse::<Ipv4Addr>().is_ok() && bits <= 32 || address.parse::<Ipv6Addr>().is_ok() && bits <= 128
}

fn dns_label(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn hostname(text: &str) -> bool {
    let label = |part: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = part.as_bytes();
        bytes.len() <= 63
            && edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    text.len() <= 255 && text.trim_end_matches('.').split('.').all(label)
}

fn email(text: &str) -> bool {
    match text.rsplit_once('@') {
        Some((local, domain)) => !local.is_empty() && hostname(domain) && !text.contains(char::is_whitespace),
        None => false,
    }
}

/// As Go's `url.ParseRequestURI`: absolute, or a path from the root.
fn uri(text: &str) -> bool {
    if text.contains(|c: char| c.is_control() || c == ' ') {
        return false;
    }
    let scheme = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphabetic())
            && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    };
    text.starts_with('/') || text.split_once(':').is_some_and(|(head, _)| scheme(head))
}

fn mac(text: &str) -> bool {
    let separator = if text.contains('-') { '-' } else { ':' };
    let parts: Vec<&str> = text.split(separator).collect();
    matches!(parts.len(), 6 | 8 | 20) && parts.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn uuid(text: &str, version: Option<u8>) -> bool {
    let hex: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
    hex.len() == 32 && hex.iter().all(u8::is_ascii_hexdigit) && version.is_none_or(|v| hex[12] == v)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn formats() {
        for (format, yes, no) in [
            ("date", "2024-02-29", "2023-02-29"),
            ("date-time", "2024-02-29T01:02:03Z", "2024-02-29"),
            ("duration", "1h30m", "soon"),
            ("ipv4", "10.0.0.1", "10.0.0.256"),
            ("ipv6", "fe80::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("email", "a@b.example", "a"),
            ("uri", "https://example.com/x", "x y"),
            ("uuid4", "6ba7b810-9dad-41d1-80b4-00c04fd430c8", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
            ("mac", "00:00:5e:00:53:01", "00:00"),
            ("byte", "YQ==", "Y"),
        ] {
            assert!(matches(format, yes), "{format} {yes}");
            assert!(!matches(format, no), "{format} {no}");
        }
        assert!(matches("something-else", "x"));
    }
}
