//! What form of a reply a client takes: what its headers say, in upstream's order of preference.

use http::{HeaderMap, header};
use meta::{Reason, Status};

use super::encode::Shape;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
    Protobuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Whole,
    Table,
    /// `PartialObjectMetadata`, of one object or as watched.
    Metadata,
    /// `PartialObjectMetadataList`.
    MetadataList,
}

/// What the client takes.
#[derive(Clone)]
pub struct Negotiated {
    pub format: Format,
    pub view: View,
    /// What the client takes of objects as they are, where it would rather have a table or metadata.
    pub plain: Option<Format>,
    pub gzip: bool,
    /// JSON for people: indented.
    pub pretty: bool,
    /// JSON will do where there is no protobuf.
    pub json_too: bool,
}

impl Negotiated {
    /// The same, with JSON indented where the client wants it so.
    pub fn pretty(self, pretty: bool) -> Self {
        Self { pretty, ..self }
    }

    pub fn of(headers: &HeaderMap, verb: meta::Verb) -> Result<Self, Status> {
        let gzip = headers
            .get_all(header::ACCEPT_ENCODING)
            .iter()
            .any(|v| v.to_str().is_ok_and(|v| v.split(',').any(|e| e.trim().starts_with("gzip"))));
        let mut accept: Vec<&str> = headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .map(str::trim)
            .filter(|v| !v.is_empty())
            .collect();
        if accept.is_empty() {
            return Ok(Self {
                format: Format::Json,
                view: View::Whole,
                plain: Some(Format::Json),
                gzip,
                pretty: false,
                json_too: true,
            });
        }
        if accept.len() > 1 {
            accept.sort_by_key(|clause| preference(clause));
        }
        let mut best: Option<(Format, View)> = None;
        let (mut plain, mut json_too) = (None, false);
        let mut known_type = false;
        for clause in &accept {
            let mut parts = clause.split(';').map(str::trim);
            let format = match parts.next().unwrap_or_default() {
                "application/json" | "*/*" | "application/*" => Format::Json,
                "application/yaml" => Format::Yaml,
                "application/vnd.kubernetes.protobuf" => Format::Protobuf,
                _ => continue,
            };
            known_type = true;
            let (mut view, mut strange) = (View::Whole, false);
            let (mut group, mut version) = ("", "");
            for part in parts {
                match part.split_once('=').unwrap_or((part, "")) {
                    ("as", "Table") => view = View::Table,
                    ("as", "PartialObjectMetadata") => view = View::Metadata,
                    ("as", "PartialObjectMetadataList") => view = View::MetadataList,
                    ("as", _) => strange = true,
                    ("g", g) => group = g,
                    ("v", v) => version = v,
                    _ => {}
                }
            }
            let known = view == View::Whole || (group == "meta.k8s.io" && matches!(version, "v1" | "v1beta1"));
            let fits = match view {
                View::Whole => true,
                View::Table => format == Format::Json,
                View::Metadata | View::MetadataList => format != Format::Yaml,
            };
            if known && !strange && fits {
                best = best.or(Some((format, view)));
                if view == View::Whole {
                    json_too |= format == Format::Json;
                    plain = plain.or(Some(format));
                }
            }
        }
        if let Some((format, view)) = best {
            return Ok(Self { format, view, plain, gzip, pretty: false, json_too });
        }
        Err(if known_type { not_acceptable() } else { nothing_acceptable(verb) })
    }

    /// The same, without protobuf for a kind that has no such form, where the client takes JSON too.
    pub fn fitting(&self, shape: &Shape) -> Self {
        let is_protobuf = |format| format == Format::Protobuf;
        if !self.json_too || !(is_protobuf(self.format) || self.plain.is_some_and(is_protobuf)) || shape.has_protobuf()
        {
            return self.clone();
        }
        let json = |format| if is_protobuf(format) { Format::Json } else { format };
        Self { format: json(self.format), plain: self.plain.map(json), ..self.clone() }
    }
}

/// Whether a client wants JSON to look at: it says so, or it is a program people look through, as upstream has it.
pub fn wants_pretty(headers: &HeaderMap, query: &str) -> bool {
    let said = super::route::pairs(query).find(|(key, value)| key == "pretty" && !value.is_empty());
    if let Some((_, said)) = said {
        return matches!(said.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True");
    }
    let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|program| agent.starts_with(program))
}

/// Where a clause stands among others: what the client likes best first, and what it names before what it would take.
fn preference(clause: &str) -> (u16, bool) {
    let quality = clause.split(';').find_map(|part| part.trim().strip_prefix("q=")?.parse::<f32>().ok());
    // Qualities have three digits at most.
    let dislike = 1000 - (quality.unwrap_or(1.0).clamp(0.0, 1.0) * 1000.0) as u16;
    (dislike, clause.starts_with("*/"))
}

/// As the framework under upstream says it, which looks at types alone.
fn nothing_acceptable(verb: meta::Verb) -> Status {
    let mut message = String::from(
        "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/vnd.kubernetes.protobuf",
    );
    if matches!(verb, meta::Verb::List | meta::Verb::Watch) {
        message += ", application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";
    }
    Status::new(Reason::NotAcceptable, message)
}

pub fn not_acceptable() -> Status {
    let message = "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf";
    Status::new(Reason::NotAcceptable, message)
}
