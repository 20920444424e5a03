//! What is called over the network to admit or to convert: where it listens, and the versions of reviews it reads.

use std::collections::HashSet;

use super::{At, Errors, formats};

/// Versions of reviews this server sends.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

/// Versions a webhook reads: names that differ, one of which this server knows.
pub fn review_versions(at: &At<'_>, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for version in at.items() {
        if seen.insert(version.str()) {
            errors.format(&version, formats::dns_1035_label);
        } else {
            errors.invalid(&version, "duplicate version");
        }
    }
    if !REVIEWS.iter().any(|known| seen.contains(known)) {
        errors.invalid(at, "must include at least one of v1, v1beta1");
    }
}

fn url(at: &At<'_>, errors: &mut Errors) {
    // As Go takes an URL apart; each part that is wrong is shown alone.
    let (url, fragment) = at.str().split_once('#').unwrap_or((at.str(), ""));
    let (url, query) = url.split_once('?').unwrap_or((url, ""));
    let (scheme, rest) = url.split_once(':').unwrap_or(("", url));
    if scheme != "https" {
        errors.invalid_as(at, scheme, "'https' is the only allowed URL scheme; desired format: https://host[/path]");
    }
    let authority = rest.strip_prefix("//").and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        errors.invalid_as(at, "", "host must be specified; desired format: https://host[/path]");
    }
    for (part, what) in [(user, "user information is"), (fragment, "fragments are"), (query, "query parameters are")] {
        if !part.is_empty() {
            errors.invalid_as(at, part, format!("{what} not permitted in the URL"));
        }
    }
}

/// A service's path: segments that could be names.
fn service_path(at: &At<'_>, errors: &mut Errors) {
    let path = at.str();
    match path {
        "" | "/" => return,
        "//" => return errors.invalid(at, "segment[0] may not be empty"),
        _ => {}
    }
    if !path.starts_with('/') {
        errors.invalid(at, "must start with a '/'");
    }
    let rest = path.get(1..).unwrap_or_default();
    for (n, segment) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if segment.is_empty() {
            errors.invalid(at, format!("segment[{n}] may not be empty"));
            continue;
        }
        for complaint in formats::dns_subdomain(segment) {
            errors.invalid(at, format!("segment[{n}]: {complaint}"));
        }
    }
}

/// The port of a service that is called; absent, it has a default.
pub fn port(at: &At<'_>, errors: &mut Errors) {
    if at.there() && !at.number().is_some_and(|p| (1..=65535).contains(&p)) {
        errors.invalid(at, format!("port is not valid: {}", super::PORT_RANGE));
    }
}

/// Where a webhook listens: at a URL or behind a service.
pub fn client(at: &At<'_>, errors: &mut Errors) {
    let (url, service) = (at.child("url"), at.child("service"));
    match (url.there(), service.there()) {
        (true, false) => self::url(&url, errors),
        (false, true) => {
            errors.need(&service.child("name"), "");
            errors.need(&service.child("namespace"), "");
            port(&service.child("port"), errors);
            service_path(&service.child("path"), errors);
        }
        _ => errors.required(at, "exactly one of url or service is required"),
    }
}
