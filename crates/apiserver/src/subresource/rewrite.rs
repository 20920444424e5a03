//! Links in proxied pages: absolute paths gain the proxy's own, so that a page fetched through the API server leads back
//! through it. Follows upstream's proxy transport; only HTML of a bounded size is looked at.

use bytes::Bytes;
use http::{Response, header};
use http_body_util::{BodyExt, Limited};

use crate::http::{Body, full};

/// Larger pages are passed on as they are announced to be; unannounced ones are cut off as too large.
const MAX_PAGE: usize = 8 << 20;
const ATTRIBUTES: [&str; 4] = ["href", "src", "action", "longdesc"];

/// Rewrites a response's page and its `Location`.
pub async fn links(response: Response<Body>, prefix: &str) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if let Some(location) =
        parts.headers.get(header::LOCATION).and_then(|v| v.to_str().ok()).filter(|l| is_absolute_path(l))
        && let Ok(through) = format!("{prefix}{location}").parse()
    {
        parts.headers.insert(header::LOCATION, through);
    }
    let html = parts.headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"text/html"));
    let length =
        parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
    if !html || parts.headers.contains_key(header::CONTENT_ENCODING) || length.is_some_and(|n| n > MAX_PAGE) {
        return Response::from_parts(parts, body);
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    let page = match Limited::new(body, MAX_PAGE).collect().await {
        Ok(page) => page.to_bytes(),
        Err(error) => {
            tracing::warn!(%error, "a proxied page cannot be read");
            Bytes::new()
        }
    };
    let page = match std::str::from_utf8(&page) {
        Ok(text) => Bytes::from(rewrite(text, prefix)),
        Err(_) => page,
    };
    Response::from_parts(parts, full(page))
}

/// `/path`, but not `//host/path`.
fn is_absolute_path(link: &str) -> bool {
    link.starts_with('/') && !link.starts_with("//")
}

fn rewrite(page: &str, prefix: &str) -> String {
    let mut out = String::with_capacity(page.len() + 256);
    let mut rest = page;
    while let Some(open) = rest.find('<') {
        let end = rest[open..].find('>').map_or(rest.len(), |at| open + at);
        out.push_str(&rest[..open]);
        tag(&rest[open..end], prefix, &mut out);
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// Copies a tag, its links rewritten.
fn tag(text: &str, prefix: &str, out: &mut String) {
    let mut rest = text;
    while let Some(equals) = rest.find('=') {
        let name = rest[..equals].trim_end().rsplit(|c: char| c.is_whitespace()).next().unwrap_or_default();
        let known = ATTRIBUTES.iter().any(|a| name.eq_ignore_ascii_case(a));
        let value = rest[equals + 1..].trim_start();
        let quote = value.len() - value.trim_start_matches(['"', '\'']).len();
        let at = rest.len() - value.len() + quote.min(1);
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if known && is_absolute_path(rest) {
            out.push_str(prefix);
        }
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    #[test]
    fn absolute_links_go_through_the_proxy() {
        for (page, expect) in [
            ("<a href=\"/rewriteme\">test</a>", "<a href=\"/p/rewriteme\">test</a>"),
            ("<IMG alt='/x' SRC='/i.png'>", "<IMG alt='/x' SRC='/p/i.png'>"),
            ("<a href=\"b\"><a href=\"//h/x\"><a href=/y>", "<a href=\"b\"><a href=\"//h/x\"><a href=/p/y>"),
            ("a = /b < c", "a = /b < c"),
        ] {
            assert_eq!(super::rewrite(page, "/p"), expect);
        }
    }
}
