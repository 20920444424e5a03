//! Named formats, and what is wrong with texts by them.

use super::opaque::Opaque;
use super::{Row, no_overload, text, time};
use crate::value::Value;

pub struct Format {
    /// As expressions name it.
    key: &'static str,
    pub name: &'static str,
    check: fn(&str) -> Vec<String>,
}

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const NAME_PART: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// Starts, goes on and ends with allowed bytes.
fn shaped(text: &str, edge: fn(u8) -> bool, inner: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(a), Some(b)) if edge(*a) && edge(*b))
        && bytes.iter().all(|b| inner(*b))
}

fn is_label(text: &str) -> bool {
    shaped(text, lower, |b| lower(b) || b == b'-')
}

fn wordy(text: &str) -> bool {
    shaped(text, |b| b.is_ascii_alphanumeric(), |b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn gather(text: &str, max: usize, fits: bool, message: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > max {
        out.push(format!("must be no more than {max} bytes"));
    }
    if !fits {
        out.push(message.into());
    }
    out
}

/// What a prefix stands for: with a trailing dash, a letter may follow.
fn prefix(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(rest) if !text.is_empty() => format!("{rest}a"),
        _ => text.into(),
    }
}

fn dns_label(text: &str) -> Vec<String> {
    gather(text, 63, is_label(text), LABEL)
}

fn dns_subdomain(text: &str) -> Vec<String> {
    gather(text, 253, text.split('.').all(is_label), SUBDOMAIN)
}

fn dns_1035(text: &str) -> Vec<String> {
    gather(text, 63, is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase()), LABEL_1035)
}

fn qualified_name(text: &str) -> Vec<String> {
    let parts: Vec<&str> = text.split('/').collect();
    let mut out = Vec::new();
    let name = match parts[..] {
        [name] => name,
        [domain, name] => {
            if domain.is_empty() {
                out.push("prefix part must be non-empty".into());
            } else {
                out.extend(dns_subdomain(domain).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => {
            return vec![format!(
                "a qualified name {NAME_PART} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        out.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        out.push("name part must be no more than 63 bytes".into());
    }
    if !wordy(name) {
        out.push(format!("name part {NAME_PART}"));
    }
    out
}

fn unless(fits: bool, message: &str) -> Vec<String> {
    if fits { Vec::new() } else { vec![message.into()] }
}

fn is_uuid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &&str, len: usize| part.len() == len && part.bytes().all(|b| b.is_ascii_hexdigit());
    match parts[..] {
        [all] => hex(&all, 32),
        [a, b, c, d, e] => [(a, 8), (b, 4), (c, 4), (d, 4), (e, 12)].iter().all(|(p, n)| hex(p, *n)),
        _ => false,
    }
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && time::parse_timestamp(&format!("{text}T00:00:00Z")).is_some()
}

static FORMATS: [Format; 13] = [
    Format { key: "dns1123Label", name: "DNS1123Label", check: dns_label },
    Format { key: "dns1123Subdomain", name: "DNS1123Subdomain", check: dns_subdomain },
    Format { key: "dns1035Label", name: "DNS1035Label", check: dns_1035 },
    Format { key: "qualifiedName", name: "QualifiedName", check: qualified_name },
    Format { key: "dns1123LabelPrefix", name: "DNS1123LabelPrefix", check: |t| dns_label(&prefix(t)) },
    Format { key: "dns1123SubdomainPrefix", name: "DNS1123SubdomainPrefix", check: |t| dns_subdomain(&prefix(t)) },
    Format { key: "dns1035LabelPrefix", name: "DNS1035LabelPrefix", check: |t| dns_1035(&prefix(t)) },
    Format { key: "labelValue", name: "LabelValue", check: |t| gather(t, 63, t.is_empty() || wordy(t), LABEL_VALUE) },
    Format { key: "uri", name: "URI", check: |t| super::url::check(t).err().into_iter().collect() },
    Format { key: "uuid", name: "uuid", check: |t| unless(is_uuid(t), "does not match the UUID format") },
    Format { key: "byte", name: "byte", check: |t| unless(time::base64(t).is_some(), "invalid base64") },
    Format { key: "date", name: "date", check: |t| unless(is_date(t), "invalid date") },
    Format {
        key: "datetime",
        name: "datetime",
        check: |t| unless(time::parse_timestamp(t).is_some(), "invalid datetime"),
    },
];

fn named<'a>(key: &str) -> Option<Value<'a>> {
    FORMATS.iter().find(|f| f.key == key).map(|f| Value::Opaque(Opaque::Format(f)))
}

macro_rules! rows {
    ($($key:literal),*) => {
        &[
            $(Row(
                concat!("format.", $key),
                concat!("format.", $key),
                "() kubernetes.NamedFormat",
                |_| named($key).map_or_else(no_overload, Ok),
            ),)*
            Row("format.named", "format-named", "(string) optional(kubernetes.NamedFormat)", |a| {
                Ok(Value::Optional(named(text(a, 0)?).map(std::rc::Rc::new)))
            }),
            Row("validate", "format-validate", "kubernetes.NamedFormat.(string) optional(list(string))", |a| {
                let Some(Value::Opaque(Opaque::Format(format))) = a.first() else { return no_overload() };
                let wrong = (format.check)(text(a, 1)?);
                if wrong.is_empty() {
                    return Ok(Value::Optional(None));
                }
                Ok(Value::some(Value::list(wrong.into_iter().map(Value::text).collect())))
            }),
        ]
    };
}

pub const ROWS: &[Row] = rows!(
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime"
);
