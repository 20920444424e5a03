//! Timestamps and durations, and their texts.

use jiff::{Timestamp, tz};

use super::{Row, no_overload, text};
use crate::eval::{Error, fail};
use crate::value::Value;

const NANOS: i64 = 1_000_000_000;

pub fn parse_duration(text: &str) -> Option<i64> {
    meta::time::parse_duration(text)
}

/// RFC 3339, in CEL's range of years.
pub fn parse_timestamp(text: &str) -> Option<Timestamp> {
    // jiff takes more forms than RFC 3339 has.
    let looks = text.len() >= 20 && text.as_bytes()[10] == b'T' && text.is_ascii();
    let time: Timestamp = looks.then(|| text.parse().ok()).flatten()?;
    let year = time.to_zoned(tz::TimeZone::UTC).year();
    (1..=9999).contains(&year).then_some(time)
}

pub fn timestamp_text(time: Timestamp) -> String {
    time.to_string()
}

pub fn duration_text(nanos: i64) -> String {
    let (sign, nanos) = if nanos < 0 { ("-", nanos.unsigned_abs()) } else { ("", nanos.unsigned_abs()) };
    let (seconds, rest) = (nanos / NANOS as u64, nanos % NANOS as u64);
    let fraction = format!("{rest:09}");
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { format!("{sign}{seconds}s") } else { format!("{sign}{seconds}.{fraction}s") }
}

pub fn shifted<'a>(time: Timestamp, nanos: i64) -> Result<Value<'a>, Error> {
    match time.checked_add(jiff::SignedDuration::from_nanos(nanos)) {
        Ok(time) if (1..=9999).contains(&time.to_zoned(tz::TimeZone::UTC).year()) => Ok(Value::Timestamp(time)),
        _ => fail("timestamp overflow"),
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Standard base64, with its padding.
pub fn base64(text: &str) -> Option<Vec<u8>> {
    let clean: Vec<u8> = text.bytes().filter(|b| !matches!(b, b'\r' | b'\n')).collect();
    if !clean.len().is_multiple_of(4) {
        return None;
    }
    let mut out = Vec::with_capacity(clean.len() / 4 * 3);
    let groups = clean.len() / 4;
    for (at, group) in clean.chunks(4).enumerate() {
        let pad = group.iter().rev().take_while(|b| **b == b'=').count();
        if pad > 2 || (pad > 0 && at + 1 < groups) {
            return None;
        }
        let mut bits = 0u32;
        for byte in &group[..4 - pad] {
            bits = bits << 6 | ALPHABET.iter().position(|a| a == byte)? as u32;
        }
        bits <<= 6 * pad as u32;
        out.extend(&bits.to_be_bytes()[1..4 - pad]);
    }
    Some(out)
}

pub fn to_base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut bits = 0u32;
        for at in 0..3 {
            bits = bits << 8 | u32::from(group.get(at).copied().unwrap_or(0));
        }
        for at in 0..4 {
            let letter = ALPHABET[(bits >> (18 - 6 * at)) as usize & 63];
            out.push(if at <= group.len() { letter as char } else { '=' });
        }
    }
    out
}

fn zone(name: &str) -> Result<tz::TimeZone, Error> {
    if name.is_empty() || name == "UTC" || name == "Z" {
        return Ok(tz::TimeZone::UTC);
    }
    let (sign, digits) = match name.as_bytes()[0] {
        b'-' => (-1, &name[1..]),
        b'+' => (1, &name[1..]),
        _ => (1, name),
    };
    if let Some((hours, minutes)) = digits.split_once(':')
        && let (Ok(hours), Ok(minutes)) = (hours.parse::<i32>(), minutes.parse::<i32>())
        && (0..60).contains(&minutes)
        && (0..24).contains(&hours)
    {
        let offset = tz::Offset::from_seconds(sign * (hours * 3600 + minutes * 60));
        return offset.map(tz::TimeZone::fixed).or_else(|_| fail(format!("unknown time zone {name}")));
    }
    tz::TimeZone::get(name).or_else(|_| fail(format!("unknown time zone {name}")))
}

fn part<'a>(args: &[Value<'a>], get: fn(&jiff::Zoned) -> i64) -> Result<Value<'a>, Error> {
    let Some(Value::Timestamp(time)) = args.first() else { return no_overload() };
    let zone = if args.len() > 1 { zone(text(args, 1)?)? } else { tz::TimeZone::UTC };
    Ok(Value::Int(get(&time.to_zoned(zone))))
}

fn span<'a>(args: &[Value<'a>], unit: i64) -> Result<Value<'a>, Error> {
    match args {
        [Value::Duration(nanos)] => Ok(Value::Int(nanos / unit)),
        _ => no_overload(),
    }
}

macro_rules! parts {
    ($($name:literal $id:literal $get:expr;)*) => {
        &[
            $(
                Row($name, concat!("timestamp_to_", $id), "timestamp.() int", |a| part(a, $get)),
                Row($name, concat!("timestamp_to_", $id, "_with_tz"), "timestamp.(string) int", |a| part(a, $get)),
            )*
            Row("getHours", "duration_to_hours", "duration.() int", |a| span(a, 3600 * NANOS)),
            Row("getMinutes", "duration_to_minutes", "duration.() int", |a| span(a, 60 * NANOS)),
            Row("getSeconds", "duration_to_seconds", "duration.() int", |a| span(a, NANOS)),
            Row("getMilliseconds", "duration_to_milliseconds", "duration.() int", |a| match a {
                [Value::Duration(nanos)] => Ok(Value::Int(nanos / 1_000_000)),
                _ => no_overload(),
            }),
        ]
    };
}

pub const ROWS: &[Row] = parts! {
    "getFullYear" "year" |t| i64::from(t.year());
    "getMonth" "month" |t| i64::from(t.month()) - 1;
    "getDayOfYear" "day_of_year" |t| i64::from(t.day_of_year()) - 1;
    "getDate" "day_of_month_1_based" |t| i64::from(t.day());
    "getDayOfMonth" "day_of_month" |t| i64::from(t.day()) - 1;
    "getDayOfWeek" "day_of_week" |t| i64::from(t.weekday().to_sunday_zero_offset());
    "getHours" "hours" |t| i64::from(t.hour());
    "getMinutes" "minutes" |t| i64::from(t.minute());
    "getSeconds" "seconds" |t| i64::from(t.second());
    "getMilliseconds" "milliseconds" |t| i64::from(t.millisecond());
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_goes_both_ways() {
        for (plain, coded) in [("", ""), ("a", "YQ=="), ("ab", "YWI="), ("abc", "YWJj"), ("abcd", "YWJjZA==")] {
            assert_eq!(to_base64(plain.as_bytes()), coded);
            assert_eq!(base64(coded).as_deref(), Some(plain.as_bytes()));
        }
        for wrong in ["a", "a===", "====", "YQ==YQ==", "Y!=="] {
            assert_eq!(base64(wrong), None, "{wrong}");
        }
    }
}
