//! Semantic versions.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use super::opaque::Opaque;
use super::{Row, bool, no_overload, text};
use crate::eval::{Error, fail};
use crate::value::Value;

#[derive(Clone, Debug)]
pub struct Version {
    parts: [u64; 3],
    pre: Vec<String>,
    build: String,
}

fn number(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (plain && (text == "0" || !text.starts_with('0'))).then(|| text.parse().ok()).flatten()
}

pub fn parse(said: &str) -> Result<Version, String> {
    if said.is_empty() {
        return Err("Version string empty".into());
    }
    let (rest, build) = said.split_once('+').unwrap_or((said, ""));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(core, pre)| (core, Some(pre)));
    let parts: Vec<&str> = core.split('.').collect();
    let [major, minor, patch] = parts[..] else { return Err("No Major.Minor.Patch elements found".into()) };
    let mut numbers = [0; 3];
    for (at, part) in [major, minor, patch].into_iter().enumerate() {
        numbers[at] = match number(part) {
            Some(n) => n,
            None if part.len() > 1 && part.starts_with('0') && part.bytes().all(|b| b.is_ascii_digit()) => {
                let name = ["Major", "Minor", "Patch"][at];
                return Err(format!("{name} number must not contain leading zeroes {part:?}"));
            }
            None => {
                let name = ["major", "minor", "patch"][at];
                return Err(format!("Invalid character(s) found in {name} number {part:?}"));
            }
        };
    }
    let identifier = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let mut pre_parts = Vec::new();
    for part in pre.into_iter().flat_map(|p| p.split('.')) {
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if digits && number(part).is_none() {
            return Err(format!("Numeric PreRelease version must not contain leading zeroes {part:?}"));
        }
        if !identifier(part) {
            return Err(format!("Invalid character(s) found in prerelease {part:?}"));
        }
        pre_parts.push(part.to_string());
    }
    if said.contains('+') && !build.split('.').all(identifier) {
        return Err(format!("Invalid character(s) found in build meta data {build:?}"));
    }
    Ok(Version { parts: numbers, pre: pre_parts, build: build.into() })
}

/// Without a leading `v`, leading zeros and missing parts.
fn normalized(said: &str) -> Result<Version, String> {
    let said = said.strip_prefix('v').unwrap_or(said);
    let mut parts: Vec<String> = said.splitn(3, '.').map(str::to_string).collect();
    for part in &mut parts {
        if part.len() > 1 {
            let trimmed = part.trim_start_matches('0').to_string();
            *part = if trimmed.starts_with(|c: char| c.is_ascii_digit()) { trimmed } else { format!("0{trimmed}") };
        }
    }
    if parts.len() < 3 && parts.last().is_some_and(|p| p.contains(['+', '-'])) {
        return Err("short version cannot contain PreRelease/Build meta data".into());
    }
    parts.resize(3, "0".into());
    parse(&parts.join("."))
}

impl Version {
    pub fn cmp(&self, other: &Self) -> Ordering {
        self.parts.cmp(&other.parts).then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let pairs = self.pre.iter().zip(&other.pre);
                let first = pairs
                    .map(|(a, b)| match (number(a), number(b)) {
                        (Some(a), Some(b)) => a.cmp(&b),
                        (Some(_), None) => Ordering::Less,
                        (None, Some(_)) => Ordering::Greater,
                        (None, None) => a.cmp(b),
                    })
                    .find(|o| o.is_ne());
                first.unwrap_or_else(|| self.pre.len().cmp(&other.pre.len()))
            }
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.parts;
        write!(f, "{major}.{minor}.{patch}")?;
        if !self.pre.is_empty() {
            write!(f, "-{}", self.pre.join("."))?;
        }
        if !self.build.is_empty() {
            write!(f, "+{}", self.build)?;
        }
        Ok(())
    }
}

fn read(args: &[Value<'_>]) -> Result<Version, String> {
    let said = text(args, 0).unwrap_or_default();
    if matches!(args.get(1), Some(Value::Bool(true))) { normalized(said) } else { parse(said) }
}

fn semver<'a>(args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    match read(args) {
        Ok(version) => Ok(Value::Opaque(Opaque::Semver(Arc::new(version)))),
        Err(why) => fail(why),
    }
}

fn get<'v>(args: &'v [Value<'_>], at: usize) -> Result<&'v Version, Error> {
    match args.get(at) {
        Some(Value::Opaque(Opaque::Semver(version))) => Ok(version),
        _ => no_overload(),
    }
}

fn part<'a>(args: &[Value<'a>], at: usize) -> Result<Value<'a>, Error> {
    Ok(Value::Int(get(args, 0)?.parts[at] as i64))
}

pub const ROWS: &[Row] = &[
    Row("semver", "string_to_semver", "(string) kubernetes.Semver", semver),
    Row("semver", "string_bool_to_semver", "(string, bool) kubernetes.Semver", semver),
    Row("isSemver", "is_semver_string", "(string) bool", |a| bool(read(a).is_ok())),
    Row("isSemver", "is_semver_string_bool", "(string, bool) bool", |a| bool(read(a).is_ok())),
    Row("isGreaterThan", "semver_is_greater_than", "kubernetes.Semver.(kubernetes.Semver) bool", |a| {
        bool(get(a, 0)?.cmp(get(a, 1)?).is_gt())
    }),
    Row("isLessThan", "semver_is_less_than", "kubernetes.Semver.(kubernetes.Semver) bool", |a| {
        bool(get(a, 0)?.cmp(get(a, 1)?).is_lt())
    }),
    Row("compareTo", "semver_compare_to", "kubernetes.Semver.(kubernetes.Semver) int", |a| {
        Ok(Value::Int(get(a, 0)?.cmp(get(a, 1)?) as i64))
    }),
    Row("major", "semver_major", "kubernetes.Semver.() int", |a| part(a, 0)),
    Row("minor", "semver_minor", "kubernetes.Semver.() int", |a| part(a, 1)),
    Row("patch", "semver_patch", "kubernetes.Semver.() int", |a| part(a, 2)),
];
