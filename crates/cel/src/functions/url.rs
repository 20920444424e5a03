//! URLs, read as Go reads request URIs.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::opaque::Opaque;
use super::{Row, bool, made, no_overload, text};
use crate::eval::{Error, fail, insert};
use crate::value::{Mapping, Value};

#[derive(Clone, Debug)]
pub struct Url {
    pub text: String,
    scheme: String,
    host: String,
    path: String,
    query: String,
}

fn unescaped(text: &str, plus: bool) -> Option<String> {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                let hex = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok())?;
                out.push(u8::from_str_radix(hex, 16).ok()?);
                at += 3;
                continue;
            }
            b'+' if plus => out.push(b' '),
            other => out.push(other),
        }
        at += 1;
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

/// A path with what must be escaped escaped.
fn escaped_path(path: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@!'()*[]%".contains(&b);
    path.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn parse(raw: &str) -> Result<Url, String> {
    let wrong = |why: &str| Err(format!("parse {raw:?}: {why}"));
    if raw.is_empty() {
        return wrong("empty url");
    }
    if raw.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return wrong("net/url: invalid control character in URL");
    }
    let scheme_end = raw.find(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c)));
    let (scheme, rest) = match scheme_end {
        Some(0) if raw.starts_with(':') => return wrong("missing protocol scheme"),
        Some(at) if raw[at..].starts_with(':') && raw.as_bytes()[0].is_ascii_alphabetic() => {
            (raw[..at].to_lowercase(), &raw[at + 1..])
        }
        Some(at) if raw[at..].starts_with(':') && raw.as_bytes()[0].is_ascii_digit() => {
            return wrong("first path segment in URL cannot contain colon");
        }
        _ => (String::new(), raw),
    };
    if !rest.starts_with('/') && scheme.is_empty() {
        return wrong("invalid URI for request");
    }
    let (rest, _fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, path) = match rest.strip_prefix("//") {
        Some(rest) if !scheme.is_empty() || !rest.starts_with('/') => {
            let end = rest.find('/').unwrap_or(rest.len());
            let authority = &rest[..end];
            (authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_string(), &rest[end..])
        }
        _ => (String::new(), rest),
    };
    let after_host = if host.starts_with('[') {
        match host.rfind(']') {
            Some(at) => &host[at + 1..],
            None => return wrong("missing ']' in host"),
        }
    } else {
        host.rfind(':').map_or("", |at| &host[at..])
    };
    let port = after_host.strip_prefix(':').unwrap_or("");
    if (!after_host.is_empty() && !after_host.starts_with(':')) || !port.bytes().all(|b| b.is_ascii_digit()) {
        return wrong(&format!("invalid port {after_host:?} after host"));
    }
    if host.contains(' ') {
        return wrong("invalid character \" \" in host name");
    }
    if unescaped(path, false).is_none() {
        let at = path.find('%').unwrap_or(0);
        let shown: String = path[at..].chars().take(3).collect();
        return wrong(&format!("invalid URL escape {shown:?}"));
    }
    Ok(Url { text: raw.into(), scheme, host, path: path.into(), query: query.into() })
}

impl Url {
    fn hostname(&self) -> &str {
        if let Some(inner) = self.host.strip_prefix('[') {
            return inner.split(']').next().unwrap_or_default();
        }
        self.host.rsplit_once(':').map_or(&self.host, |(host, _)| host)
    }

    fn port(&self) -> &str {
        let after = self.host.rfind(']').map_or(&*self.host, |at| &self.host[at + 1..]);
        after.rsplit_once(':').map_or("", |(_, port)| port)
    }
}

fn get<'v>(args: &'v [Value<'_>]) -> Result<&'v Url, Error> {
    match args.first() {
        Some(Value::Opaque(Opaque::Url(url))) => Ok(url),
        _ => no_overload(),
    }
}

fn query<'a>(args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let mut lists: BTreeMap<String, Vec<Value<'a>>> = BTreeMap::new();
    for pair in get(args)?.query.split('&').filter(|p| !p.is_empty() && !p.contains(';')) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let (Some(key), Some(value)) = (unescaped(key, true), unescaped(value, true)) {
            lists.entry(key).or_default().push(Value::text(value));
        }
    }
    let mut out = BTreeMap::new();
    for (key, values) in lists {
        insert(&mut out, Value::text(key), Value::list(values))?;
    }
    Ok(Value::Map(Mapping::Made(std::rc::Rc::new(out))))
}

pub fn check(raw: &str) -> Result<(), String> {
    parse(raw).map(drop)
}

pub const ROWS: &[Row] = &[
    Row("url", "string_to_url", "(string) kubernetes.URL", |a| match parse(text(a, 0)?) {
        Ok(url) => Ok(Value::Opaque(Opaque::Url(Arc::new(url)))),
        Err(why) => fail(format!("URL parse error during conversion from string: {why}")),
    }),
    Row("isURL", "is_url_string", "(string) bool", |a| bool(parse(text(a, 0)?).is_ok())),
    Row("getScheme", "url_get_scheme", "kubernetes.URL.() string", |a| made(get(a)?.scheme.clone())),
    Row("getHost", "url_get_host", "kubernetes.URL.() string", |a| made(get(a)?.host.clone())),
    Row("getHostname", "url_get_hostname", "kubernetes.URL.() string", |a| made(get(a)?.hostname().into())),
    Row("getPort", "url_get_port", "kubernetes.URL.() string", |a| made(get(a)?.port().into())),
    Row("getEscapedPath", "url_get_escaped_path", "kubernetes.URL.() string", |a| made(escaped_path(&get(a)?.path))),
    Row("getQuery", "url_get_query", "kubernetes.URL.() map(string, list(string))", query),
];
