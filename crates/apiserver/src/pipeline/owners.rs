//! Who owns which fields after a write: `managedFields` of bodies on their way to the store.
//!
//! Bodies are in the storage version here; owners are remembered in the version they wrote in, and others' fields are
//! judged in theirs, which may ask a conversion webhook. A kind of one version, or whose owners all wrote in the stored
//! one, asks nobody.

use meta::apply::{Unconverted, Versions};
use meta::{Status, Value};

use super::{Target, metadata};

/// Conversions one write may need for one version: both bodies, and twice what an apply withdraws.
const CONVERSIONS: usize = 8;

/// The manager a write is recorded under: the client's word, or the first part of its user agent.
fn manager<'a>(target: &Target<'a>) -> &'a str {
    let agent = &target.caller.user_agent;
    let named = target.request.options.field_manager.as_deref().filter(|m| !m.is_empty());
    named.unwrap_or_else(|| agent.split('/').next().filter(|a| !a.is_empty()).unwrap_or("unknown"))
}

pub fn applied_by<'a>(target: &Target<'a>, now: &'a str) -> meta::apply::Writer<'a> {
    meta::apply::Writer { manager: manager(target), subresource: &target.request.subresource, now }
}

/// The versions of the kind, written in the one asked for.
fn versions<'t>(target: &Target<'t>) -> Versions<'t> {
    let (served, root) = (target.served, target.version.schema.root());
    if !served.has_versions() {
        return Versions::one(root);
    }
    Versions::several(root, move |api_version| served.version_of(api_version).map(|version| version.schema.root()))
}

/// Tries until nothing is lacking.
async fn across<T>(
    target: &Target<'_>,
    attempt: impl Fn(&Versions<'_>) -> Result<T, Unconverted>,
) -> Result<T, Status> {
    let mut versions = versions(target);
    for _ in 0..CONVERSIONS * target.served.resource.versions.len() {
        let lacking = match attempt(&versions) {
            Ok(done) => return Ok(done),
            Err(lacking) => lacking,
        };
        let mut converted = lacking.object.clone();
        let gone = || Status::internal(format!("there is no version {}", lacking.api_version));
        let version = target.served.version_of(&lacking.api_version).ok_or_else(gone)?;
        target.served.convert(&mut converted, version).await?;
        versions.learn(lacking, converted);
    }
    Err(Status::internal("the conversions of an object have no end"))
}

/// A configuration laid over the object as its author sees it.
pub async fn apply(target: &Target<'_>, seen: &Value, applied: &Value, now: &str) -> Result<Value, Status> {
    let force = target.request.options.force.unwrap_or(false);
    let writer = applied_by(target, now);
    let attempt = |versions: &Versions<'_>| meta::apply::apply_across(versions, seen, applied, force, &writer);
    let done = across(target, attempt).await?;
    done.map_err(|conflicts| conflicts.status(target.group(), target.plural(), &target.request.name))
}

/// The storage schema, where owners are all of the stored version: the writer, and those of these entries as text.
fn stored_root<'t>(target: &Target<'t>, entries: &[&str]) -> Option<meta::schema::View<'t>> {
    let served = target.served;
    let storage = served.storage().storage_version();
    if served.has_versions() {
        let stored = format!("\"apiVersion\":\"{}\"", served.storage().storage_gvk().api_version());
        let others = |text: &&str| text.matches("\"apiVersion\":").count() != text.matches(&*stored).count();
        if !served.is_storage(target.version) || entries.iter().any(others) {
            return None;
        }
    }
    Some(storage.schema.root())
}

fn entries_of(body: &Value) -> String {
    body["metadata"].get("managedFields").map(Value::to_string).unwrap_or_default()
}

/// Records who owns which fields after an ordinary write.
pub async fn manage(target: &Target<'_>, old: Option<&Value>, body: &mut Value, now: &str) -> Result<(), Status> {
    let writer = applied_by(target, now);
    if !target.served.has_versions() {
        let root = target.served.storage().storage_version().schema.root();
        meta::apply::track_update(root, old, body, &writer);
        return Ok(());
    }
    let (theirs, sent) = (old.map(entries_of).unwrap_or_default(), entries_of(body));
    if let Some(root) = stored_root(target, &[&theirs, &sent]) {
        meta::apply::track_update(root, old, body, &writer);
        return Ok(());
    }
    let api_version = target.served.resource.group_version(&target.version.name).to_string();
    let seen = &*body;
    let attempt =
        |versions: &Versions<'_>| meta::apply::track_update_across(versions, old, seen, &api_version, &writer);
    let entries = match across(target, attempt).await {
        Ok(entries) => entries,
        // As upstream: what cannot be tracked is stored without owners.
        Err(error) => {
            tracing::warn!(%error, name = target.request.name, "managed fields cannot be kept up to date");
            Vec::new()
        }
    };
    let metadata = metadata::of(body)?;
    match entries.is_empty() {
        true => drop(metadata.remove("managedFields")),
        false => drop(metadata.insert("managedFields".into(), entries.into())),
    }
    Ok(())
}

/// The same for a create whose client sent no entries, as it will be stored.
pub fn of_creator(target: &Target<'_>, body: &Value, now: &str) -> Option<String> {
    meta::apply::created(stored_root(target, &[])?, body, &applied_by(target, now))
}

/// As [`manage`], with the old body's entries as text: the new ones, likewise (empty for none). Where that cannot be said
/// in text, both bodies get their entries back, and nothing is returned.
pub async fn manage_apart(
    target: &Target<'_>,
    old: &mut Value,
    body: &mut Value,
    entries: &str,
    now: &str,
) -> Result<Option<String>, Status> {
    let sent = metadata::of(body)?.remove("managedFields");
    // Most who send entries send those they read.
    let told = sent.as_ref().filter(|sent| !sent.is_null()).map(Value::to_string);
    let theirs = told.is_some_and(|told| told != entries);
    if !theirs
        && let Some(root) = stored_root(target, &[entries])
        && let Some(managed) = meta::apply::updated(root, old, body, entries, &applied_by(target, now))
    {
        return Ok(Some(managed.into_owned()));
    }
    if !entries.is_empty() {
        let entries: Value = serde_json::from_str(entries).map_err(Status::internal)?;
        metadata::of(old)?.insert("managedFields".into(), entries);
    }
    if let Some(sent) = sent {
        metadata::of(body)?.insert("managedFields".into(), sent);
    }
    manage(target, Some(old), body, now).await?;
    Ok(None)
}
