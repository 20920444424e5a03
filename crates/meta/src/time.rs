//! Times and durations as Go reads and writes them.
//!
//! `metav1.Time` is RFC 3339 in whole seconds, `metav1.MicroTime` has six digits of a second, both in UTC with `Z`;
//! `metav1.Duration` is Go's duration text (`1h30m0s`). No clock is read here.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;

/// A time's text in canonical form, or `None` when it already is. The error is worded as Go's `time.Parse` words it.
pub fn canonical(text: &str, micro: bool) -> Result<Option<String>, String> {
    let time = parse(text).ok_or_else(|| parse_error(text, micro))?;
    let canonical = if micro { micro_time(time) } else { seconds(time) };
    Ok((canonical != text).then_some(canonical))
}

/// Reads RFC 3339: a date, `T`, a time with optional fraction, and `Z` or an offset.
pub fn parse(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    if bytes.len() < 20 || bytes[4] != b'-' || bytes[10] != b'T' || bytes[13] != b':' || text.contains('[') {
        return None;
    }
    let offset = &text[text.rfind(['Z', '+', '-'])?..];
    if offset != "Z" && (offset.len() != 6 || offset.as_bytes()[3] != b':') {
        return None;
    }
    text.parse().ok()
}

fn parse_error(text: &str, micro: bool) -> String {
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    // Go names the layout element at which it stopped; most misfits stop at the first.
    format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\"")
}

/// `2024-02-03T04:05:06Z`.
pub fn seconds(time: Timestamp) -> String {
    let mut out = String::with_capacity(20);
    civil(&mut out, time);
    out.push('Z');
    out
}

/// `2024-02-03T04:05:06.789000Z`.
pub fn micro_time(time: Timestamp) -> String {
    let mut out = String::with_capacity(27);
    let at = civil(&mut out, time);
    out.push('.');
    digits(&mut out, at.subsec_nanosecond() / 1000, 6);
    out.push('Z');
    out
}

/// Writes date and time of day in UTC; this is on the way of every object with a time, so no format is parsed for it.
fn civil(out: &mut String, time: Timestamp) -> DateTime {
    let at = Offset::UTC.to_datetime(time);
    digits(out, at.year().into(), 4);
    for (before, part) in [('-', at.month()), ('-', at.day()), ('T', at.hour()), (':', at.minute()), (':', at.second())]
    {
        out.push(before);
        digits(out, part.into(), 2);
    }
    at
}

fn digits(out: &mut String, value: i32, width: u32) {
    for place in (0..width).rev() {
        let digit = value.unsigned_abs() / 10u32.pow(place) % 10;
        out.push(char::from(b'0' + digit as u8));
    }
}

/// Nanoseconds in each of Go's duration units.
const UNITS: &[(&str, i64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads Go's duration text (`-1.5h`, `300ms`, `0`) as nanoseconds.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: i128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|end| *end > 0)?;
        let (number, after) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let unit = i128::from(UNITS.iter().find(|(name, _)| *name == &after[..end])?.1);
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        // Digits beyond the 18th are below a nanosecond for every unit.
        let fraction = &fraction[..fraction.len().min(18)];
        if !fraction.is_empty() {
            total += fraction.parse::<i128>().ok()? * unit / 10i128.pow(fraction.len() as u32);
        }
        rest = &after[end..];
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// Writes nanoseconds as Go does: `1h0m0s`, `1.5s`, `300ms`, `0s`.
pub fn format_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    if n == 0 {
        return "0s".into();
    }
    let decimal = |value: u64, unit: u64| {
        let (whole, rest) = (value / unit, value % unit);
        if rest == 0 {
            return whole.to_string();
        }
        let digits = unit.ilog10() as usize;
        format!("{whole}.{}", format!("{rest:0digits$}").trim_end_matches('0'))
    };
    match n {
        1..1_000 => format!("{sign}{n}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", decimal(n, 1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", decimal(n, 1_000_000)),
        _ => {
            let minutes = n / 60_000_000_000;
            let seconds = decimal(n % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, m) => format!("{sign}{m}m{seconds}s"),
                (h, m) => format!("{sign}{h}h{m}m{seconds}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, expect) in [
            ("2024-02-03T04:05:06Z", Ok(None)),
            ("2024-02-03T04:05:06.9+02:00", Ok(Some("2024-02-03T02:05:06Z".into()))),
            ("2024-02-03 04:05:06Z", Err(())),
            ("2024-02-30T04:05:06Z", Err(())),
            ("2024-02-03T04:05:06+02", Err(())),
            ("", Err(())),
        ] {
            assert_eq!(canonical(text, false).map_err(drop), expect, "{text}");
        }
        assert_eq!(canonical("2024-02-03T04:05:06Z", true), Ok(Some("2024-02-03T04:05:06.000000Z".into())));
    }

    #[test]
    fn durations() {
        for (text, expect) in [
            ("0", Some("0s")),
            ("1h", Some("1h0m0s")),
            ("-1.5h", Some("-1h30m0s")),
            ("90s", Some("1m30s")),
            ("1500ms", Some("1.5s")),
            ("1m0.25s", Some("1m0.25s")),
            ("3us", Some("3µs")),
            ("1", None),
            ("h", None),
            ("", None),
            ("1.2.3s", None),
            ("1y", None),
        ] {
            assert_eq!(parse_duration(text).map(format_duration).as_deref(), expect, "{text}");
        }
    }
}
