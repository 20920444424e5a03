//! Field management: who owns which fields (`metadata.managedFields`), and server-side apply on top of it.
//!
//! [`track_update`] runs on every ordinary write, so it walks the old and the new object once, builds only what differs
//! and leaves the entries of others the opaque JSON they are unless a field they may own is touched. [`apply`] merges a
//! configuration. Both know the schema, not the kind; they read no clock, and what a subresource may not write has to be
//! restored in the body before. Who wrote in another version of the API is judged in that version ([`versions`]).

mod compare;
mod config;
mod conflicts;
mod created;
mod entries;
mod fields;
mod last_applied;
mod opaque;
mod place;
mod prune;
mod text;
mod versions;

pub use conflicts::{Conflict, Conflicts};
pub use created::created;
pub use opaque::updated;
pub use versions::{Unconverted, Versions};

use serde_json::{Map, Value};

use crate::schema::View;
use entries::Operation;
use fields::Fields;
use place::Place;
use versions::Differences;

/// The manager given what was there before the first apply to an object without any entries.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Whose write it is, and when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    pub manager: &'a str,
    /// Empty for the resource itself.
    pub subresource: &'a str,
    /// RFC 3339, whole seconds.
    pub now: &'a str,
}

fn metadata(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object.get_mut("metadata").and_then(Value::as_object_mut)
}

fn entries_of(object: &Value) -> Option<&Vec<Value>> {
    object.get("metadata")?.get("managedFields")?.as_array()
}

fn put(body: &mut Value, entries: Vec<Value>) {
    if let Some(metadata) = metadata(body) {
        if entries.is_empty() {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".into(), Value::Array(entries));
        }
    }
}

/// An object as other versions are made of it.
fn bare(object: &Value) -> Value {
    let mut bare = object.clone();
    if let Some(metadata) = metadata(&mut bare) {
        metadata.remove("managedFields");
    }
    bare
}

/// The entries before this write: what the client sent, or the old object's when that is nothing, or may not be
/// changed (subresources), or cannot be read.
fn entries_before(old: Option<&Value>, sent: Option<Value>, writer: &Writer<'_>) -> Vec<Value> {
    let olds = || old.and_then(entries_of).filter(|e| entries::valid(e)).cloned().unwrap_or_default();
    match sent {
        Some(Value::Array(sent)) if writer.subresource.is_empty() => {
            if entries::is_reset(&sent) {
                Vec::new()
            } else if entries::valid(&sent) {
                sent
            } else {
                olds()
            }
        }
        // The usual case of a write to a subresource: the client sent back what it read.
        Some(Value::Array(sent)) if old.and_then(entries_of) == Some(&sent) => sent,
        _ => olds(),
    }
}

/// Keeps `managedFields` of a body up to date after an ordinary create (`old` is none) or update.
pub fn track_update(root: View<'_>, old: Option<&Value>, body: &mut Value, writer: &Writer<'_>) {
    let sent = metadata(body).and_then(|m| m.remove("managedFields"));
    let api_version = entries::text(body, "apiVersion").to_string();
    // Of one version nothing is ever lacking.
    if let Ok(entries) = tracked(&Versions::one(root), old, body, sent, &api_version, writer) {
        put(body, entries);
    }
}

/// The same for a kind of several versions, written in `api_version` whatever the version of the bodies is. The new
/// entries, or what has to be converted before there can be any.
pub fn track_update_across(
    versions: &Versions<'_>,
    old: Option<&Value>,
    body: &Value,
    api_version: &str,
    writer: &Writer<'_>,
) -> Result<Vec<Value>, Unconverted> {
    let sent = body.get("metadata").and_then(|m| m.get("managedFields")).cloned();
    tracked(versions, old, &bare(body), sent, api_version, writer)
}

fn tracked(
    versions: &Versions<'_>,
    old: Option<&Value>,
    body: &Value,
    sent: Option<Value>,
    api_version: &str,
    writer: &Writer<'_>,
) -> Result<Vec<Value>, Unconverted> {
    let mut entries = entries_before(old, sent, writer);
    // An object whose entries were taken away is not tracked again before someone applies.
    if old.is_some() && entries.is_empty() {
        return Ok(entries);
    }
    versions.drop_gone(&mut entries);
    let without = old.filter(|_| versions.are_several()).map(bare);
    let differences = versions.differences(without.as_ref().or(old), body, api_version, &entries)?;
    if differences.values().any(|(_, difference)| !difference.is_empty()) {
        record(versions, &mut entries, differences, api_version, writer);
    }
    Ok(entries)
}

/// Gives the writer what it gained, and takes from the others that and what is no more.
fn record(
    versions: &Versions<'_>,
    entries: &mut Vec<Value>,
    mut differences: Differences<'_>,
    api_version: &str,
    writer: &Writer<'_>,
) {
    entries::merge_twins(entries);
    let own = entries::find(entries, writer, Operation::Update, api_version);
    for (at, entry) in entries.iter_mut().enumerate() {
        let Some((place, difference)) = differences.get(versions.name(entries::text(entry, "apiVersion"))) else {
            continue;
        };
        let Some(set) = entries::fields_mut(entry) else { continue };
        // Built-in types keep their list and map types; those of a CRD may have changed.
        if !place.is_builtin() {
            config::reconcile(*place, set);
        }
        fields::subtract(set, &difference.lost);
        if Some(at) != own {
            fields::subtract(set, &difference.gained);
        }
    }
    let gained = differences.remove(versions.name(api_version)).map(|(_, difference)| difference.gained);
    if let Some(gained) = gained.filter(|gained| !gained.is_empty()) {
        match own {
            Some(at) => {
                match entries::fields_mut(&mut entries[at]) {
                    Some(set) => fields::unite(set, gained),
                    None => entries[at] = entries::new(writer, Operation::Update, api_version, gained),
                }
                entries::set_time(&mut entries[at], Some(&writer.now.into()));
            }
            None => entries.push(entries::new(writer, Operation::Update, api_version, gained)),
        }
    }
    entries::drop_empty(entries);
    entries::cap(entries);
    entries::sort(entries);
}

/// What this writer's requests do not change, whatever they say: kinds have their status written through the status
/// subresource alone, and only that there. Custom resources may do without; for them the caller has dropped what counts
/// not.
fn ignored(place: Place<'_>, writer: &Writer<'_>) -> &'static [&'static str] {
    match writer.subresource {
        "" if place.is_builtin() && place.declares("status") => &["f:status"],
        "status" => &["f:spec"],
        _ => &[],
    }
}

/// Lays a configuration over an object as an apply does, with nobody's ownership asked or noted: admission changes what
/// somebody else writes.
pub fn lay_over(root: View<'_>, object: &mut Value, configuration: &Value) -> Result<(), Vec<String>> {
    let place = Place::root(root);
    let mut errors = Vec::new();
    config::check(place, configuration, "", &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    config::merge(place, object, configuration);
    Ok(())
}

/// Server-side apply: the live object with the configuration laid over it, without what this manager applied before and
/// no longer does, and with the owners of all fields. Without `force`, fields others own may not be changed.
pub fn apply(
    root: View<'_>,
    live: &Value,
    applied: &Value,
    force: bool,
    writer: &Writer<'_>,
) -> Result<Value, Conflicts> {
    match apply_across(&Versions::one(root), live, applied, force, writer) {
        Ok(done) => done,
        Err(lacking) => Err(Conflicts::Invalid(format!("no conversion to {} was asked for", lacking.api_version))),
    }
}

/// The same for a kind of several versions, some of which others may have written in; or what has to be converted before
/// it can be told.
pub fn apply_across(
    versions: &Versions<'_>,
    live: &Value,
    applied: &Value,
    force: bool,
    writer: &Writer<'_>,
) -> Result<Result<Value, Conflicts>, Unconverted> {
    let api_version = entries::text(applied, "apiVersion");
    let Some(root) = versions.root(api_version) else {
        return Ok(Err(Conflicts::Invalid(format!("there is no version {api_version}"))));
    };
    let place = Place::root(root);
    let mut errors = Vec::new();
    config::check(place, applied, "", &mut errors);
    if !errors.is_empty() {
        return Ok(Err(Conflicts::Invalid(unfit(applied, &errors))));
    }
    let ignored = ignored(place, writer);
    let ignore = |set: &mut Fields| ignored.iter().for_each(|element| drop(set.remove(*element)));

    let mut entries = entries_of(live).filter(|e| entries::valid(e)).cloned().unwrap_or_default();
    if entries.is_empty() {
        let mut before = compare::compare(root, None, live).gained;
        ignore(&mut before);
        if !before.is_empty() {
            let owner = Writer { manager: BEFORE_FIRST_APPLY, ..*writer };
            entries.push(entries::new(&owner, Operation::Update, api_version, before));
        }
    }

    versions.drop_gone(&mut entries);
    entries::merge_twins(&mut entries);
    for entry in &mut entries {
        let place = versions.place(entries::text(entry, "apiVersion"));
        if let (Some(place), Some(set)) = (place, entries::fields_mut(entry)) {
            config::reconcile(place, set);
        }
    }
    let mut set = config::applied(place, applied);
    ignore(&mut set);
    let own = entries::find(&entries, writer, Operation::Apply, api_version);
    let before = own.map(|at| entries.remove(at));

    let live = &bare(live);
    let mut merged = live.clone();
    config::merge(place, &mut merged, applied);
    if let Some(metadata) = metadata(&mut merged) {
        metadata.remove("managedFields");
    }
    if let Some(last) = before.as_ref().filter(|before| entries::fields_of(before).is_some_and(|f| !f.is_empty())) {
        let own = entries::new(writer, Operation::Apply, api_version, set.clone());
        let owners: Vec<&Value> = entries.iter().chain([&own]).collect();
        merged = prune::withdrawn(versions, merged, last, &owners, api_version)?;
        // Lists applied empty are in no set, but they were applied.
        config::merge(place, &mut merged, applied);
    }

    let mut differences = versions.differences(Some(live), &merged, api_version, &entries)?;
    for (_, difference) in differences.values_mut() {
        ignore(&mut difference.gained);
        ignore(&mut difference.lost);
    }
    let theirs = |entry: &Value| differences.get(versions.name(entries::text(entry, "apiVersion")));
    if !force && let Err(conflicts) = refuse_conflicts(root, live, &entries, theirs, writer, api_version) {
        return Ok(Err(conflicts));
    }
    for entry in &mut entries {
        let Some((_, difference)) = theirs(entry) else { continue };
        if let Some(owned) = entries::fields_mut(entry) {
            fields::subtract(owned, &difference.gained);
            fields::subtract(owned, &difference.lost);
        }
    }
    compare::strip(&mut set);
    let mut entry = entries::new(writer, Operation::Apply, api_version, set);
    if differences.get(versions.name(api_version)).is_some_and(|(_, difference)| difference.is_empty()) {
        // Nothing was written: whoever applies what is there already, as upstream, does it at no time.
        entries::set_time(&mut entry, before.as_ref().and_then(|b| b.get("time")));
    }
    entries.push(entry);
    entries::drop_empty(&mut entries);
    entries::sort(&mut entries);
    last_applied::keep(&mut merged, applied, writer);
    put(&mut merged, entries);
    Ok(Ok(merged))
}

/// Fails when others own what would change.
fn refuse_conflicts<'d>(
    root: View<'_>,
    live: &Value,
    entries: &[Value],
    changed: impl Fn(&Value) -> Option<&'d (Place<'d>, compare::Difference)>,
    writer: &Writer<'_>,
    api_version: &str,
) -> Result<(), Conflicts> {
    // Computed at most once, and only when there is a conflict.
    let mut allowed: Option<Fields> = None;
    let mut found: Vec<Conflict> = Vec::new();
    for entry in entries {
        let (Some(owned), Some((_, changed))) = (entries::fields_of(entry), changed(entry)) else { continue };
        let mut contested = fields::intersection(owned, &changed.gained);
        if !contested.is_empty() {
            let allowed = allowed.get_or_insert_with(|| last_applied::allowed(root, live, writer, api_version));
            fields::subtract(&mut contested, allowed);
        }
        found.extend(conflicts::with_entry(entry, &contested));
    }
    if found.is_empty() {
        return Ok(());
    }
    found.sort_by(|a, b| a.manager.cmp(&b.manager));
    Err(Conflicts::Fields(found))
}

/// Upstream's words for a configuration whose lists cannot be read.
fn unfit(applied: &Value, errors: &[String]) -> String {
    let said = match errors {
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    let meta = |name: &str| applied.get("metadata").map_or("", |m| entries::text(m, name));
    let api_version = entries::text(applied, "apiVersion");
    let kind = entries::text(applied, "kind");
    let gvk = match api_version.split_once('/') {
        Some(_) => format!("{api_version}, Kind={kind}"),
        None => format!("/{api_version}, Kind={kind}"),
    };
    format!("failed to create typed patch object ({}/{}; {gvk}): {said}", meta("namespace"), meta("name"))
}

#[cfg(test)]
mod tests;
