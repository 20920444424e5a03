//! Which fields a KubeProxyConfiguration has, and of what type each is.
//!
//! A field of the wrong type is an error in the words of Go's decoder; one that is not there is what upstream decodes
//! leniently after it failed to decode strictly: a warning.

use std::time::Duration;

use serde_json::Value;

#[derive(Clone, Copy)]
enum Type {
    Text,
    Number,
    Decimal,
    Flag,
    Period,
    Texts,
    Flags,
    /// An object whose own fields are nobody's business here.
    Any,
    Part(&'static [(&'static str, Type)]),
}

use Type::{Any, Decimal, Flag, Flags, Number, Part, Period, Text, Texts};

const FIELDS: &[(&str, Type)] = &[
    ("apiVersion", Text),
    ("kind", Text),
    ("featureGates", Flags),
    (
        "clientConnection",
        Part(&[
            ("kubeconfig", Text),
            ("acceptContentTypes", Text),
            ("contentType", Text),
            ("qps", Decimal),
            ("burst", Number),
        ]),
    ),
    (
        "logging",
        Part(&[("format", Text), ("flushFrequency", Any), ("verbosity", Number), ("vmodule", Any), ("options", Any)]),
    ),
    ("hostnameOverride", Text),
    ("bindAddress", Text),
    ("healthzBindAddress", Text),
    ("metricsBindAddress", Text),
    ("bindAddressHardFail", Flag),
    ("enableProfiling", Flag),
    ("showHiddenMetricsForVersion", Text),
    ("mode", Text),
    (
        "iptables",
        Part(&[
            ("masqueradeBit", Number),
            ("masqueradeAll", Flag),
            ("localhostNodePorts", Flag),
            ("syncPeriod", Period),
            ("minSyncPeriod", Period),
        ]),
    ),
    (
        "ipvs",
        Part(&[
            ("syncPeriod", Period),
            ("minSyncPeriod", Period),
            ("scheduler", Text),
            ("excludeCIDRs", Texts),
            ("strictARP", Flag),
            ("tcpTimeout", Period),
            ("tcpFinTimeout", Period),
            ("udpTimeout", Period),
        ]),
    ),
    (
        "nftables",
        Part(&[("masqueradeBit", Number), ("masqueradeAll", Flag), ("syncPeriod", Period), ("minSyncPeriod", Period)]),
    ),
    ("winkernel", Any),
    ("detectLocalMode", Text),
    ("detectLocal", Part(&[("bridgeInterface", Text), ("interfaceNamePrefix", Text)])),
    ("clusterCIDR", Text),
    ("nodePortAddresses", Texts),
    ("oomScoreAdj", Number),
    (
        "conntrack",
        Part(&[
            ("maxPerCore", Number),
            ("min", Number),
            ("tcpEstablishedTimeout", Period),
            ("tcpCloseWaitTimeout", Period),
            ("tcpBeLiberal", Flag),
            ("udpTimeout", Period),
            ("udpStreamTimeout", Period),
        ]),
    ),
    ("configSyncPeriod", Period),
    ("portRange", Text),
    ("windowsRunAsService", Flag),
];

/// The fields that are not there, by their paths; the first of a wrong type is an error.
pub(super) fn check(document: &Value) -> Result<Vec<String>, String> {
    let mut unknown = Vec::new();
    part(document, FIELDS, "", &mut unknown)?;
    Ok(unknown)
}

fn part(value: &Value, fields: &[(&str, Type)], path: &str, unknown: &mut Vec<String>) -> Result<(), String> {
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match fields.iter().find(|(known, _)| known == name) {
            Some((_, kind)) => field(value, *kind, &path, unknown)?,
            None => unknown.push(path),
        }
    }
    Ok(())
}

fn field(value: &Value, kind: Type, path: &str, unknown: &mut Vec<String>) -> Result<(), String> {
    let expect = match (kind, value) {
        (_, Value::Null) | (Any, _) | (Text | Texts, Value::String(_)) | (Flag, Value::Bool(_)) => return Ok(()),
        (Decimal, Value::Number(_)) => return Ok(()),
        (Number, Value::Number(number)) if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => return Ok(()),
        (Number, Value::Number(number)) => {
            return Err(format!(
                "json: cannot unmarshal number {number} into Go struct field KubeProxyConfiguration.{path} of type int32"
            ));
        }
        (Texts, Value::Array(all)) => return all.iter().try_for_each(|one| field(one, Text, path, unknown)),
        (Flags, Value::Object(all)) => return all.values().try_for_each(|one| field(one, Flag, path, unknown)),
        (Period, Value::String(text)) => return duration(text).map(|_| ()),
        (Period, other) => {
            return Err(format!("json: cannot unmarshal {} into Go value of type string", type_of(other)));
        }
        (Part(fields), Value::Object(_)) => return part(value, fields, path, unknown),
        (Text, _) => "string",
        (Number, _) => "int32",
        (Decimal, _) => "float32",
        (Flag, _) => "bool",
        (Texts, _) => "[]string",
        (Flags, _) => "map[string]bool",
        (Part(_), _) => "object",
    };
    let found = type_of(value);
    Err(format!("json: cannot unmarshal {found} into Go struct field KubeProxyConfiguration.{path} of type {expect}"))
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A length of time, which may be negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub negative: bool,
    pub length: Duration,
}

/// Go's form: `24h0m0s`, `1.5h`, `-90s`, `250ms`.
pub(super) fn duration(text: &str) -> Result<Span, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut length = Duration::ZERO;
    while !rest.is_empty() && rest != "0" {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            other => return Err(format!("time: unknown unit {other:?} in duration {text:?}")),
        };
        let more = Duration::try_from_secs_f64(number * seconds).map_err(|_| invalid())?;
        length = length.checked_add(more).ok_or_else(invalid)?;
        rest = &rest[unit..];
    }
    Ok(Span { negative: negative && !length.is_zero(), length })
}
