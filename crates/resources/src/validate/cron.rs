//! Schedules of cron jobs: five fields, or a word after `@`. Checks them as upstream's parser does, without keeping them.

use super::formats::Complaints;

/// Name, least, greatest, and names for numbers from the least.
type Field = (&'static str, u32, u32, &'static [&'static str]);

const FIELDS: [Field; 5] = [
    ("minute", 0, 59, &[]),
    ("hour", 0, 23, &[]),
    ("day of month", 1, 31, &[]),
    ("month", 1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    ("day of week", 0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];
const WORDS: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

fn number(text: &str, (_, least, _, names): Field) -> Result<u32, String> {
    if let Some(at) = names.iter().position(|n| text.eq_ignore_ascii_case(n)) {
        return Ok(least + at as u32);
    }
    match text.parse::<i64>() {
        Ok(n) if n < 0 => Err(format!("negative number ({n}) not allowed: {text}")),
        Ok(n) => u32::try_from(n).map_err(|e| format!("failed to parse int from {text}: {e}")),
        Err(_) => Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")),
    }
}

/// One of the parts between commas: `*`, `5`, `1-5`, `*/15`, `10-20/2`.
fn range(text: &str, field: Field) -> Result<(), String> {
    let (_, least, greatest, _) = field;
    let mut halves = text.split('/');
    let (span, step, more) = (halves.next().unwrap_or_default(), halves.next(), halves.next());
    if more.is_some() {
        return Err(format!("too many slashes: {text}"));
    }
    let mut ends = span.split('-');
    let (first, last, extra) = (ends.next().unwrap_or_default(), ends.next(), ends.next());
    if extra.is_some() {
        return Err(format!("too many hyphens: {text}"));
    }
    let (start, end) = match (first, last) {
        ("*" | "?", _) => (least, greatest),
        (first, None) if step.is_some() => (number(first, field)?, greatest),
        (first, None) => (number(first, field)?, number(first, field)?),
        (first, Some(last)) => (number(first, field)?, number(last, field)?),
    };
    if step.map_or(Ok(1), |s| number(s, (field.0, least, greatest, &[])))? == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    if start < least {
        return Err(format!("beginning of range ({start}) below minimum ({least}): {text}"));
    }
    if end > greatest {
        return Err(format!("end of range ({end}) above maximum ({greatest}): {text}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    Ok(())
}

fn parse(schedule: &str) -> Result<(), String> {
    let mut schedule = schedule;
    if let Some(rest) = schedule.strip_prefix("TZ=").or(schedule.strip_prefix("CRON_TZ=")) {
        let (zone, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        if let Some(complaint) = time_zone(zone).into_iter().next() {
            return Err(format!("provided bad location {zone}: {complaint}"));
        }
        schedule = rest.trim();
    }
    if schedule.starts_with('@') {
        return match schedule.strip_prefix("@every ") {
            Some(every) if every.starts_with(|c: char| c.is_ascii_digit()) && every.ends_with(['h', 'm', 's']) => {
                Ok(())
            }
            Some(every) => Err(format!("failed to parse duration {schedule}: time: invalid duration {every:?}")),
            None if WORDS.contains(&schedule) => Ok(()),
            None => Err(format!("unrecognized descriptor: {schedule}")),
        };
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!(
            "expected exactly {} fields, found {}: [{}]",
            FIELDS.len(),
            fields.len(),
            fields.join(" ")
        ));
    }
    for (text, field) in fields.iter().zip(FIELDS) {
        for part in text.split(',').filter(|p| !p.is_empty()) {
            range(part, field)?;
        }
    }
    Ok(())
}

/// Complaints about a schedule.
pub fn schedule(text: &str) -> Complaints {
    parse(text).err().into_iter().collect()
}

/// First parts of names in the time zone database; the rest is for who has the database.
const AREAS: [&str; 17] = [
    "Africa",
    "America",
    "Antarctica",
    "Arctic",
    "Asia",
    "Atlantic",
    "Australia",
    "Brazil",
    "Canada",
    "Chile",
    "Etc",
    "Europe",
    "Indian",
    "Mexico",
    "Pacific",
    "US",
    "posix",
];
/// Names of zones without an area.
const ZONES: [&str; 45] = [
    "UTC",
    "GMT",
    "CET",
    "CST6CDT",
    "Cuba",
    "EET",
    "EST",
    "EST5EDT",
    "Egypt",
    "Eire",
    "GB",
    "GB-Eire",
    "GMT+0",
    "GMT-0",
    "GMT0",
    "Greenwich",
    "HST",
    "Hongkong",
    "Iceland",
    "Iran",
    "Israel",
    "Jamaica",
    "Japan",
    "Kwajalein",
    "Libya",
    "MET",
    "MST",
    "MST7MDT",
    "NZ",
    "NZ-CHAT",
    "Navajo",
    "PRC",
    "PST8PDT",
    "Poland",
    "Portugal",
    "ROC",
    "ROK",
    "Singapore",
    "Turkey",
    "UCT",
    "Universal",
    "W-SU",
    "WET",
    "Zulu",
    "Factory",
];

/// Complaints about the name of a time zone.
pub fn time_zone(text: &str) -> Complaints {
    if text.is_empty() {
        return vec!["timeZone must be nil or non-empty string".into()];
    }
    if text.eq_ignore_ascii_case("Local") {
        return vec!["timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".into()];
    }
    let good = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+-".contains(&b));
    let known = match text.split_once('/') {
        Some((area, place)) => AREAS.contains(&area) && place.split('/').all(good),
        None => ZONES.contains(&text),
    };
    if known { Vec::new() } else { vec![format!("unknown time zone {text}")] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_read_as_upstream_reads_them() {
        for good in [
            "* * * * *",
            "*/5 0-6 1,15 jan-mar MON",
            "@hourly",
            "@every 5m",
            "0 0 * * ?",
            "TZ=UTC 0 0 * * *",
            "5/10 * * * *",
        ] {
            assert_eq!(schedule(good), Complaints::new(), "{good}");
        }
        for (bad, expect) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("@sometimes", "unrecognized descriptor: @sometimes"),
        ] {
            assert_eq!(schedule(bad), [expect], "{bad}");
        }
    }

    #[test]
    fn time_zones_have_names() {
        for good in ["UTC", "Europe/Berlin", "America/Argentina/Ushuaia", "Etc/GMT+3"] {
            assert_eq!(time_zone(good), Complaints::new(), "{good}");
        }
        for bad in ["", "local", "Nowhere/City", "Europe/", "../x"] {
            assert_ne!(time_zone(bad), Complaints::new(), "{bad}");
        }
    }
}
