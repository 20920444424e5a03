//! Schedules of CronJobs: when they are due, as upstream's cron library has it. Pure.
//!
//! Five fields, or a word after `@`; in a time zone whose clock may jump. A time the clock leaps over does not come, one it
//! shows twice comes twice. Days fit when both day fields do, unless both are restricted: then either is enough.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

/// Least, greatest, and names for numbers from the least.
type Field = (u32, u32, &'static [&'static str]);

const FIELDS: [Field; 5] = [
    (0, 59, &[]),
    (0, 23, &[]),
    (1, 31, &[]),
    (1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    (0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];
const WORDS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];
/// Set in a field that was given as `*`.
const STAR: u64 = 1 << 63;
/// Years looked ahead before a schedule counts as one that never comes (30 February).
const YEARS: i16 = 5;
/// Missed times counted before it is said that there are too many.
pub const MAX_MISSED: usize = 100;

enum Times {
    /// Bits of minutes, hours, days, months, days of the week.
    Fields([u64; 5]),
    /// Seconds from one time to the next.
    Every(i64),
}

/// A schedule with its time zone.
pub struct Schedule {
    times: Times,
    zone: TimeZone,
}

fn number(text: &str, (least, _, names): Field) -> Result<u32, String> {
    if let Some(at) = names.iter().position(|n| text.eq_ignore_ascii_case(n)) {
        return Ok(least + at as u32);
    }
    text.parse::<u32>().map_err(|_| format!("failed to parse int from {text}"))
}

/// Bits of one of the parts between commas: `*`, `5`, `1-5`, `*/15`, `10-20/2`.
fn bits(text: &str, field: Field) -> Result<u64, String> {
    let (least, greatest, _) = field;
    let (span, step) = text.split_once('/').map_or((text, None), |(span, step)| (span, Some(step)));
    let step = step.map_or(Ok(1), |s| number(s, (least, greatest, &[])))?;
    let (first, last) = span.split_once('-').map_or((span, None), |(first, last)| (first, Some(last)));
    let any = first == "*" || first == "?";
    let (start, end) = match last {
        _ if any => (least, greatest),
        Some(last) => (number(first, field)?, number(last, field)?),
        // `5/15`: from five on.
        None if text.contains('/') => (number(first, field)?, greatest),
        None => (number(first, field)?, number(first, field)?),
    };
    if step == 0 || start < least || end > greatest || start > end {
        return Err(format!("range out of bounds: {text}"));
    }
    let numbers = (start..=end).step_by(step as usize).fold(0, |all, n| all | 1 << n);
    Ok(numbers | if any && step == 1 { STAR } else { 0 })
}

/// Whole seconds of a duration as Go writes it (`1h30m`), at least one.
fn seconds(text: &str) -> Result<i64, String> {
    let bad = || format!("failed to parse duration @every {text}");
    let (mut rest, mut total) = (text, 0f64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let amount: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += amount
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(bad()),
            };
        rest = &rest[unit..];
    }
    // The cast saturates: beyond any calendar anyway.
    Ok((total as i64).max(1))
}

impl Schedule {
    pub fn parse(text: &str, zone: TimeZone) -> Result<Self, String> {
        let (text, zone) = match text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) {
            Some(rest) => {
                let (name, rest) = rest.split_once(' ').ok_or("schedule without fields")?;
                (rest.trim(), TimeZone::get(name).map_err(|e| e.to_string())?)
            }
            None => (text, zone),
        };
        if let Some(every) = text.strip_prefix("@every ") {
            return Ok(Self { times: Times::Every(seconds(every)?), zone });
        }
        let text = WORDS.iter().find(|(word, _)| *word == text).map_or(text, |(_, fields)| fields);
        let parts: Vec<&str> = text.split_whitespace().collect();
        if parts.len() != FIELDS.len() {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", parts.len(), parts.join(" ")));
        }
        let mut fields = [0; 5];
        for ((part, field), out) in parts.iter().zip(FIELDS).zip(&mut fields) {
            for each in part.split(',').filter(|p| !p.is_empty()) {
                *out |= bits(each, field)?;
            }
        }
        Ok(Self { times: Times::Fields(fields), zone })
    }

    pub fn zoned(&self, at: Timestamp) -> Zoned {
        at.to_zoned(self.zone.clone())
    }

    /// The first time after another.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let whole = Timestamp::from_second(after.as_second()).ok()?;
        match &self.times {
            Times::Every(seconds) => whole.checked_add(SignedDuration::from_secs(*seconds)).ok(),
            Times::Fields(fields) => {
                let from = whole.checked_add(SignedDuration::from_secs(1)).ok()?;
                next(fields, self.zoned(from)).map(|t| t.timestamp())
            }
        }
    }

    /// The latest time after `from`, up to and including `now`.
    pub fn latest(&self, from: Timestamp, now: Timestamp) -> Option<Timestamp> {
        if let Times::Every(seconds) = self.times {
            let times = (now.as_second() - from.as_second()) / seconds;
            return (times > 0).then(|| Timestamp::from_second(from.as_second() + times * seconds).ok())?;
        }
        // What comes after a time is due exactly for the times before the latest one.
        let due = |second: i64| self.next(Timestamp::from_second(second).ok()?).filter(|t| *t <= now);
        let (mut low, mut high) = (from.as_second(), now.as_second());
        let mut latest = due(low)?;
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match due(middle) {
                Some(at) => (low, latest) = (middle, at),
                None => high = middle,
            }
        }
        Some(latest)
    }

    /// How many times lie after `from` up to `to`, counted to one beyond the limit.
    pub fn count(&self, from: Timestamp, to: Timestamp) -> usize {
        let mut at = from;
        for n in 0..=MAX_MISSED {
            match self.next(at).filter(|t| *t <= to) {
                Some(next) => at = next,
                None => return n,
            }
        }
        MAX_MISSED + 1
    }
}

fn day_fits(fields: &[u64; 5], t: &Zoned) -> bool {
    let by_month = fields[2] >> t.day() & 1 == 1;
    let by_week = fields[4] >> t.weekday().to_sunday_zero_offset() & 1 == 1;
    if (fields[2] | fields[4]) & STAR != 0 { by_month && by_week } else { by_month || by_week }
}

/// The first fitting time from one on: month, day, hour and minute are each moved on until they fit.
fn next(fields: &[u64; 5], from: Zoned) -> Option<Zoned> {
    let last = from.year().saturating_add(YEARS);
    let mut t = from;
    while t.year() <= last {
        if fields[3] >> t.month() & 1 == 0 {
            t = t.first_of_month().ok()?.checked_add(1.month()).ok()?.start_of_day().ok()?;
        } else if !day_fits(fields, &t) {
            t = t.tomorrow().ok()?.start_of_day().ok()?;
        } else if fields[1] >> t.hour() & 1 == 0 {
            let left = 3600 - i64::from(t.minute()) * 60 - i64::from(t.second());
            t = t.checked_add(left.seconds()).ok()?;
        } else if fields[0] >> t.minute() & 1 == 0 || t.second() != 0 {
            t = t.checked_add((60 - i64::from(t.second())).seconds()).ok()?;
        } else {
            return Some(t);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn schedules() {
        for (text, zone, now, latest, next) in [
            ("*/5 * * * *", "UTC", "2026-01-01T10:07:30Z", "2026-01-01T10:05:00Z", "2026-01-01T10:10:00Z"),
            ("@hourly", "UTC", "2026-01-01T10:00:00Z", "2026-01-01T10:00:00Z", "2026-01-01T11:00:00Z"),
            ("0 9 * * 1-5", "Europe/Berlin", "2026-07-06T07:00:00Z", "2026-07-06T07:00:00Z", "2026-07-07T07:00:00Z"),
            ("TZ=UTC 0 0 1 * ?", "UTC", "2026-01-15T00:00:00Z", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"),
            // Either day field is enough when both are restricted; a step over all is a restriction.
            ("0 0 13 * fri", "UTC", "2026-01-14T00:00:00Z", "2026-01-13T00:00:00Z", "2026-01-16T00:00:00Z"),
            ("0 0 */10 * 1", "UTC", "2026-01-13T00:00:00Z", "2026-01-12T00:00:00Z", "2026-01-19T00:00:00Z"),
            ("0 0 29 2 *", "UTC", "2026-01-13T00:00:00Z", "2024-02-29T00:00:00Z", "2028-02-29T00:00:00Z"),
            // The clock leaps from 2:00 to 3:00: half past two does not come that night.
            ("30 2 * * *", "Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T01:30:00Z", "2026-03-30T00:30:00Z"),
            // It shows half past two twice: both come.
            ("30 2 * * *", "Europe/Berlin", "2026-10-25T00:45:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"),
            ("30 6-16/4 * * *", "UTC", "2026-01-01T20:00:00Z", "2026-01-01T14:30:00Z", "2026-01-02T06:30:00Z"),
        ] {
            let schedule =
                Schedule::parse(text, TimeZone::get(zone).unwrap()).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(schedule.latest(at("2020-01-01T00:00:00Z"), at(now)), Some(at(latest)), "{text}");
            assert_eq!(schedule.next(at(now)), Some(at(next)), "{text}");
        }
        for text in ["", "* * * *", "61 * * * *", "* * * * * *", "nonsense", "0 0 * * 7", "*/0 * * * *", "@every x"] {
            assert!(Schedule::parse(text, TimeZone::UTC).is_err(), "{text}");
        }
        let never = Schedule::parse("0 0 30 2 *", TimeZone::UTC).unwrap();
        assert_eq!(never.next(at("2026-01-01T00:00:00Z")), None);
        assert_eq!(never.latest(at("2025-01-01T00:00:00Z"), at("2026-01-01T00:00:00Z")), None);
    }

    #[test]
    fn missed_times() {
        let every = Schedule::parse("@every 1h30m", TimeZone::UTC).unwrap();
        let from = at("2026-01-01T00:00:00Z");
        assert_eq!(every.latest(from, at("2026-01-01T04:00:00Z")), Some(at("2026-01-01T03:00:00Z")));
        assert_eq!(every.latest(from, at("2026-01-01T01:00:00Z")), None);
        let minutely = Schedule::parse("* * * * *", TimeZone::UTC).unwrap();
        assert_eq!(minutely.count(from, at("2026-01-01T01:00:00Z")), 60);
        assert_eq!(minutely.count(from, at("2026-03-01T01:00:00Z")), MAX_MISSED + 1);
        // The clock went back behind the last time: nothing is due, and nothing is missed.
        assert_eq!(minutely.latest(at("2026-01-01T01:00:00Z"), from), None);
        assert_eq!(minutely.count(at("2026-01-01T01:00:00Z"), from), 0);
    }
}
