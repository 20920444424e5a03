//! Bodies → trees, with everything strict field validation wants to know.
//!
//! JSON and YAML become a [`Value`]; fields given twice are noted in [`Issues`] (the last one counts), and [`object`] adds the
//! fields the schema does not know. What becomes of issues is the caller's choice: [`Issues::strict_error`] for
//! `fieldValidation=Strict`, [`Issues::texts`] for the warnings of `Warn`. Depth is bounded; the length of the
//! bytes is whoever reads the body's to bound.

use std::collections::HashMap;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};

use crate::schema::{TypeError, View, prune};

/// Issues kept of one body; upstream stops at the same number.
const MAX_ISSUES: usize = 100;

/// What a body is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
}

/// Why a body is no tree, or not a tree of its kind. Displayed as upstream words it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("couldn't get version/kind; json parse error: {0}")]
    Json(String),
    #[error("error converting YAML to JSON: {0}")]
    Yaml(String),
    #[error(transparent)]
    Type(#[from] TypeError),
}

impl DecodeError {
    /// The parser's words alone.
    pub fn plain(&self) -> String {
        match self {
            Self::Json(why) | Self::Yaml(why) => why.clone(),
            Self::Type(error) => error.to_string(),
        }
    }
}

/// Something a strict reader objects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Issue {
    /// A field the schema does not know: its path.
    Unknown(String),
    /// A field given more than once: its path.
    Duplicate(String),
    /// A YAML key given more than once: the line and the key.
    DuplicateLine(usize, String),
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(path) => write!(f, "unknown field {path:?}"),
            Self::Duplicate(path) => write!(f, "duplicate field {path:?}"),
            Self::DuplicateLine(line, key) => write!(f, "line {line}: key {key:?} already set in map"),
        }
    }
}

/// The issues of one body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Issues {
    found: Vec<Issue>,
}

impl Issues {
    pub fn push(&mut self, issue: Issue) {
        if self.found.len() < MAX_ISSUES {
            self.found.push(issue);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Issue> {
        self.found.iter()
    }

    /// Adds another's issues behind these.
    pub fn extend(&mut self, other: Issues) {
        other.found.into_iter().for_each(|issue| self.push(issue));
    }

    /// One text for each warning.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        // All YAML duplicates are one complaint.
        let lines: Vec<&Issue> = self.found.iter().filter(|i| matches!(i, Issue::DuplicateLine(..))).collect();
        let yaml = (!lines.is_empty()).then(|| {
            lines.iter().fold(String::from("yaml: unmarshal errors:"), |text, line| format!("{text}\n  {line}"))
        });
        let rest = self.found.iter().filter(|i| !matches!(i, Issue::DuplicateLine(..))).map(Issue::to_string);
        yaml.into_iter().chain(rest)
    }

    /// The message of the error that `fieldValidation=Strict` answers; `None` without issues.
    pub fn strict_error(&self) -> Option<String> {
        let texts: Vec<String> = self.texts().collect();
        (!texts.is_empty()).then(|| format!("strict decoding error: {}", texts.join(", ")))
    }

    /// Puts the issues of a JSON body into the order in which they stand there, and forgets duplicates of unknown fields, as
    /// upstream's decoder reports them.
    pub fn arrange(&mut self, json: &[u8]) {
        let unknown: Vec<String> = self
            .found
            .iter()
            .filter_map(|i| if let Issue::Unknown(path) = i { Some(path.clone()) } else { None })
            .collect();
        self.found.retain(|issue| match issue {
            Issue::Duplicate(path) => !unknown.iter().any(|u| {
                path.strip_prefix(u.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            }),
            _ => true,
        });
        if self.found.len() < 2 {
            return;
        }
        let mut order = Order { places: HashMap::new(), next: 0 };
        for issue in &self.found {
            if let Issue::Unknown(path) | Issue::Duplicate(path) = issue {
                order.places.insert(path.clone(), [usize::MAX; 2]);
            }
        }
        let mut reader = serde_json::Deserializer::from_slice(json);
        // The body was read before, so this cannot fail.
        let _ = (OrderSeed { order: &mut order, path: String::new() }).deserialize(&mut reader);
        self.found.sort_by_key(|issue| match issue {
            Issue::Unknown(path) => order.places.get(path).map_or(usize::MAX, |p| p[0]),
            Issue::Duplicate(path) => order.places.get(path).map_or(usize::MAX, |p| p[1]),
            Issue::DuplicateLine(line, _) => *line,
        });
    }
}

/// Reads a JSON tree; fields given twice are noted.
pub fn json(bytes: &[u8]) -> Result<(Value, Issues), DecodeError> {
    // Looked at once as a whole, the texts in it need no look each. What is no UTF-8 is left to the reader to word.
    let read = match std::str::from_utf8(bytes) {
        Ok(text) => read(serde_json::Deserializer::from_str(text)),
        Err(_) => read(serde_json::Deserializer::from_slice(bytes)),
    };
    read.map_err(|error| DecodeError::Json(syntax(bytes, &error)))
}

fn read<'de, R: serde_json::de::Read<'de>>(
    mut reader: serde_json::Deserializer<R>,
) -> Result<(Value, Issues), serde_json::Error> {
    let mut issues = Issues::default();
    let value = Seed { issues: &mut issues, path: &Path { parent: None, step: Step::Root } }
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))?;
    Ok((value, issues))
}

/// What is wrong with JSON, as Go says it; what Go has no words for stays as it is.
fn syntax(bytes: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".into();
    }
    let said = error.to_string();
    let line = bytes.split(|b| *b == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let Some(found) = line.get(error.column().saturating_sub(1)).copied() else { return said };
    let place = match said.split(" at line").next().unwrap_or_default() {
        "expected value" => "looking for beginning of value",
        "key must be a string" => "looking for beginning of object key string",
        "trailing comma" if found == b'}' => "looking for beginning of object key string",
        "trailing comma" => "looking for beginning of value",
        "expected `:`" => "after object key",
        "expected `,` or `}`" => "after object key:value pair",
        "expected `,` or `]`" => "after array element",
        "trailing characters" => "after top-level value",
        "invalid escape" => "in string escape code",
        _ => return said,
    };
    format!("invalid character '{}' {place}", found.escape_ascii())
}

/// Reads the first document of a YAML stream; keys given twice are noted.
pub fn yaml(bytes: &[u8]) -> Result<(Value, Issues), DecodeError> {
    crate::yaml::read(bytes).map_err(DecodeError::Yaml)
}

/// Reads a tree in either form.
pub fn tree(bytes: &[u8], format: Format) -> Result<(Value, Issues), DecodeError> {
    match format {
        Format::Json => json(bytes),
        Format::Yaml => yaml(bytes),
    }
}

/// Reads an object of a kind: parsed, types checked, unknown fields dropped and noted.
pub fn object(view: View<'_>, bytes: &[u8], format: Format) -> Result<(Value, Issues), DecodeError> {
    let (mut value, mut issues) = tree(bytes, format)?;
    prune(view, &mut value, &mut issues)?;
    if format == Format::Json {
        issues.arrange(bytes);
    }
    Ok((value, issues))
}

struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    step: Step<'p>,
}

enum Step<'p> {
    Root,
    Key(&'p str),
    Index(usize),
}

impl Path<'_> {
    fn text(&self) -> String {
        let mut out = self.parent.map_or_else(String::new, Path::text);
        match self.step {
            Step::Root => {}
            Step::Key(key) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(key);
            }
            Step::Index(at) => out.push_str(&format!("[{at}]")),
        }
        out
    }
}

/// Builds a tree; serde_json bounds the depth.
struct Seed<'i, 'p> {
    issues: &'i mut Issues,
    path: &'p Path<'p>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = Path { parent: Some(self.path), step: Step::Index(items.len()) };
            match access.next_element_seed(Seed { issues: self.issues, path: &path })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let path = Path { parent: Some(self.path), step: Step::Key(&key) };
            let value = access.next_value_seed(Seed { issues: self.issues, path: &path })?;
            match map.entry(key) {
                Entry::Vacant(free) => _ = free.insert(value),
                Entry::Occupied(mut taken) => {
                    let path = Path { parent: Some(self.path), step: Step::Key(taken.key()) };
                    self.issues.push(Issue::Duplicate(path.text()));
                    taken.insert(value);
                }
            }
        }
        Ok(Value::Object(map))
    }
}

/// Finds where in a document certain paths stand.
struct Order {
    /// Path → place of its first and second occurrence.
    places: HashMap<String, [usize; 2]>,
    next: usize,
}

struct OrderSeed<'o> {
    order: &'o mut Order,
    path: String,
}

impl<'de> DeserializeSeed<'de> for OrderSeed<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OrderSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let mut at = 0;
        while access.next_element_seed(OrderSeed { order: self.order, path: format!("{}[{at}]", self.path) })?.is_some()
        {
            at += 1;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        while let Some(key) = access.next_key::<String>()? {
            let path = if self.path.is_empty() { key } else { format!("{}.{key}", self.path) };
            if let Some(places) = self.order.places.get_mut(&path) {
                if let Some(place) = places.iter_mut().find(|p| **p == usize::MAX) {
                    *place = self.order.next;
                }
                self.order.next += 1;
            }
            access.next_value_seed(OrderSeed { order: self.order, path }).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gvk;
    use crate::schema::builtin;

    fn strict(body: &str, format: Format) -> String {
        let view = builtin().kind(&Gvk::new("apps", "v1", "Deployment")).expect("kind");
        match object(view, body.as_bytes(), format) {
            Ok((_, issues)) => issues.strict_error().unwrap_or_default(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn json_issues_stand_in_the_documents_order() {
        let body = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d","labels":{"a":"b"}},
            "spec":{"unknown1":"val1","unknownDupe":"x","unknownDupe":"y","paused":true,"paused":false,
            "template":{"spec":{"containers":[{"name":"n","unknownNested":"v","unknownNestedDupe":"v","unknownNestedDupe":"w",
            "imagePullPolicy":"Always","imagePullPolicy":"Never"}]}}}}"#;
        assert_eq!(
            strict(body, Format::Json),
            "strict decoding error: unknown field \"spec.unknown1\", unknown field \"spec.unknownDupe\", duplicate field \
             \"spec.paused\", unknown field \"spec.template.spec.containers[0].unknownNested\", unknown field \
             \"spec.template.spec.containers[0].unknownNestedDupe\", duplicate field \
             \"spec.template.spec.containers[0].imagePullPolicy\""
        );
    }

    #[test]
    fn yaml_issues_name_lines() {
        let body = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n  unknown1: a\n  paused: true\n  paused: no\n";
        assert_eq!(
            strict(body, Format::Yaml),
            "strict decoding error: yaml: unmarshal errors:\n  line 7: key \"paused\" already set in map, unknown field \"spec.unknown1\""
        );
    }

    #[test]
    fn broken_bodies_are_errors() {
        assert!(strict("{", Format::Json).starts_with("couldn't get version/kind; json parse error: "));
        assert!(strict("{} x", Format::Json).contains("json parse error"));
        assert!(strict("a: [", Format::Yaml).starts_with("error converting YAML to JSON: yaml: "));
        let deep = "[".repeat(100_000);
        assert!(strict(&deep, Format::Json).contains("recursion"));
        assert!(strict(&deep, Format::Yaml).starts_with("error converting YAML to JSON: yaml: "));
    }
}
