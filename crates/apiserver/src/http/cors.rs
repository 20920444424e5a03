//! Pages of other origins that may call this server from a browser (`--cors-allowed-origins`).

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use regex::RegexSet;

use super::{Body, full};

/// Patterns of origins; none allows none.
#[derive(Clone, Debug, Default)]
pub struct Origins(Option<Arc<RegexSet>>);

const HEADERS: [(HeaderName, &str); 4] = [
    (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, OPTIONS, PUT, DELETE, PATCH"),
    (
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        "Content-Type, Content-Length, Accept-Encoding, X-CSRF-Token, Authorization, X-Requested-With, If-Modified-Since",
    ),
    (header::ACCESS_CONTROL_EXPOSE_HEADERS, "Date"),
    (header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"),
];

impl Origins {
    /// Each pattern must say where an origin's host begins or ends, as upstream demands it.
    pub fn new(patterns: &[String]) -> Result<Self, String> {
        if patterns.is_empty() {
            return Ok(Self(None));
        }
        for pattern in patterns {
            let bounded = pattern.starts_with('^')
                || pattern.starts_with("(^")
                || pattern.contains("//")
                || pattern.ends_with('$')
                || pattern.ends_with(')');
            if !bounded {
                return Err(format!(
                    "--cors-allowed-origins has an invalid regular expression: {pattern:?} must pin the start and the end of the host, for example '//example\\.com(:|$)'"
                ));
            }
        }
        let set = RegexSet::new(patterns).map_err(|e| format!("--cors-allowed-origins: {e}"))?;
        Ok(Self(Some(Arc::new(set))))
    }

    /// The request's origin, if it is allowed.
    pub fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let patterns = self.0.as_ref()?;
        let origin = headers.get(header::ORIGIN)?;
        patterns.is_match(origin.to_str().ok()?).then(|| origin.clone())
    }
}

/// What a browser is told beside an answer.
pub fn tell(origin: &HeaderValue, headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// The answer to a browser that asks first.
pub fn asked(origin: &HeaderValue) -> Response<Body> {
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::NO_CONTENT;
    tell(origin, response.headers_mut());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_matched() {
        let origins = Origins::new(&["//example\\.com(:|$)".into()]).unwrap();
        for (origin, expect) in [
            (Some("https://example.com"), true),
            (Some("http://example.com:8080"), true),
            (Some("https://example.com.evil.org"), false),
            (None, false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            assert_eq!(origins.allowed(&headers).is_some(), expect, "{origin:?}");
        }
        assert!(Origins::default().allowed(&HeaderMap::from_iter([(header::ORIGIN, "x".parse().unwrap())])).is_none());
        assert!(Origins::new(&["example".into()]).unwrap_err().contains("invalid regular expression"));
        assert!(Origins::new(&["//(".into()]).is_err());
    }
}
