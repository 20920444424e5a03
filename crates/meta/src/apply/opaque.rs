//! Upkeep of `managedFields` on the text they are stored as.
//!
//! The entries of a usual object are larger than all the rest of it, and a usual write touches a few of their fields. So
//! entries are cut at their first level only, what a write gains or loses is looked up there, and everything else is copied.
//! Says the same as [`super::track_update`], which does what is rare: twins, too many writers, entries a client sent.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::entries::{MAX_UPDATE_MANAGERS, Operation};
use super::fields::{self, Fields};
use super::place::Place;
use super::{Writer, compare};
use crate::schema::View;

/// The first level of a set, each element with what is below it as text.
type Elements<'e> = BTreeMap<Cow<'e, str>, Cow<'e, str>>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored<'e> {
    #[serde(borrow)]
    manager: Option<Cow<'e, str>>,
    #[serde(borrow)]
    operation: Option<Cow<'e, str>>,
    #[serde(borrow)]
    api_version: Option<Cow<'e, str>>,
    #[serde(borrow)]
    time: Option<Cow<'e, str>>,
    #[serde(borrow)]
    subresource: Option<Cow<'e, str>>,
    #[serde(borrow)]
    fields_v1: Option<BTreeMap<Cow<'e, str>, &'e RawValue>>,
}

struct Entry<'e> {
    manager: Option<Cow<'e, str>>,
    operation: Option<Cow<'e, str>>,
    api_version: Option<Cow<'e, str>>,
    time: Option<Cow<'e, str>>,
    subresource: Option<Cow<'e, str>>,
    fields: Elements<'e>,
}

fn text<'t>(text: &'t Option<Cow<'_, str>>) -> &'t str {
    text.as_deref().unwrap_or_default()
}

impl<'e> From<Stored<'e>> for Entry<'e> {
    fn from(stored: Stored<'e>) -> Self {
        let elements = stored.fields_v1.into_iter().flatten();
        Self {
            manager: stored.manager,
            operation: stored.operation,
            api_version: stored.api_version,
            time: stored.time,
            subresource: stored.subresource,
            fields: elements.map(|(element, below)| (element, below.get().into())).collect(),
        }
    }
}

impl<'e> Entry<'e> {
    fn of(writer: &Writer<'e>, api_version: &'e str) -> Self {
        Self {
            manager: Some(writer.manager.into()),
            operation: Some(Operation::Update.as_str().into()),
            api_version: Some(api_version.into()),
            time: None,
            subresource: (!writer.subresource.is_empty()).then(|| writer.subresource.into()),
            fields: Elements::new(),
        }
    }

    fn is_update(&self) -> bool {
        text(&self.operation) == Operation::Update.as_str()
    }

    /// What tells writers apart: for updates the version of the API too.
    fn writer(&self) -> [&str; 4] {
        let version = if self.is_update() { text(&self.api_version) } else { "" };
        [text(&self.manager), text(&self.operation), text(&self.subresource), version]
    }

    fn subtract(&mut self, what: &Fields) -> serde_json::Result<()> {
        for element in what.keys() {
            let Some(below) = self.fields.get(element.as_str()) else { continue };
            let mut tree = Fields::new();
            tree.insert(element.clone(), serde_json::from_str(below)?);
            fields::subtract(&mut tree, what);
            match tree.remove(element) {
                Some(left) => self.fields.insert(element.clone().into(), left.to_string().into()),
                None => self.fields.remove(element.as_str()),
            };
        }
        Ok(())
    }

    fn unite(&mut self, what: Fields) -> serde_json::Result<()> {
        for (element, more) in what {
            let below = match self.fields.get(element.as_str()) {
                None => more,
                Some(below) => {
                    let mut tree = Fields::new();
                    tree.insert(element.clone(), serde_json::from_str(below)?);
                    fields::unite(&mut tree, Fields::from_iter([(element.clone(), more)]));
                    tree.remove(&element).unwrap_or_default()
                }
            };
            self.fields.insert(element.into(), below.to_string().into());
        }
        Ok(())
    }

    /// In the order of trees.
    fn write(&self, out: &mut String) {
        let text = |text: &str| Value::from(text).to_string();
        let mut first = true;
        let mut field = |out: &mut String, name: &str, value: &str| {
            out.push_str(if std::mem::take(&mut first) { "{\"" } else { ",\"" });
            out.extend([name, "\":", value]);
        };
        if let Some(version) = &self.api_version {
            field(out, "apiVersion", &text(version));
        }
        field(out, "fieldsType", "\"FieldsV1\"");
        field(out, "fieldsV1", "{");
        for (at, (element, below)) in self.fields.iter().enumerate() {
            out.push_str(if at == 0 { "" } else { "," });
            out.push_str(&text(element));
            out.push(':');
            out.push_str(below);
        }
        out.push('}');
        let rest = [
            ("manager", &self.manager),
            ("operation", &self.operation),
            ("subresource", &self.subresource),
            ("time", &self.time),
        ];
        for (name, value) in rest.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            field(out, name, &text(value));
        }
        out.push('}');
    }
}

/// The entries after an ordinary update: `old` and `body` are without them, `entries` is how they were stored (empty for
/// none). Empty for none; nothing where this has to be worked out on trees.
pub fn updated<'e>(
    root: View<'_>,
    old: &Value,
    body: &Value,
    entries: &'e str,
    writer: &Writer<'_>,
) -> Option<Cow<'e, str>> {
    // An object whose entries were taken away is not tracked again before someone applies.
    if entries.is_empty() {
        return Some(entries.into());
    }
    let difference = compare::compare(root, Some(old), body);
    if difference.is_empty() {
        return Some(entries.into());
    }
    if !Place::root(root).is_builtin() {
        return None;
    }
    let api_version = body.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    let stored: Vec<Stored<'_>> = serde_json::from_str(entries).ok()?;
    let mut all: Vec<Entry<'_>> = stored.into_iter().map(Entry::from).collect();
    if all.iter().enumerate().any(|(at, entry)| all[..at].iter().any(|e| e.writer() == entry.writer())) {
        return None;
    }
    let own = Entry::of(writer, api_version);
    let at = all.iter().position(|entry| entry.writer() == own.writer());
    for (index, entry) in all.iter_mut().enumerate() {
        entry.subtract(&difference.lost).ok()?;
        if Some(index) != at {
            entry.subtract(&difference.gained).ok()?;
        }
    }
    if !difference.gained.is_empty() {
        let at = at.unwrap_or_else(|| {
            all.push(own);
            all.len() - 1
        });
        all[at].unite(difference.gained).ok()?;
        all[at].time = Some(writer.now.into());
    }
    all.retain(|entry| !entry.fields.is_empty());
    if all.iter().filter(|e| e.is_update()).count() > MAX_UPDATE_MANAGERS {
        return None;
    }
    all.sort_by(|a, b| {
        let order = |e: &Entry<'_>| {
            [&e.operation, &e.time, &e.manager, &e.api_version, &e.subresource].map(|t| text(t).to_string())
        };
        order(a).cmp(&order(b))
    });
    let mut out = String::with_capacity(entries.len() + 256);
    for (at, entry) in all.iter().enumerate() {
        out.push(if at == 0 { '[' } else { ',' });
        entry.write(&mut out);
    }
    if !all.is_empty() {
        out.push(']');
    }
    Some(out.into())
}
