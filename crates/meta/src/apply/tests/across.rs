//! A kind of two versions: what `v1` calls `spec.host` and `spec.port`, `v2` holds in one `spec.address`, and what both
//! call `spec.words` stays.

use super::*;

/// As a conversion webhook does it.
fn convert(object: &Value, api_version: &str) -> Value {
    let mut out = object.clone();
    out["apiVersion"] = api_version.into();
    let Some(Value::Object(spec)) = out.get_mut("spec") else { return out };
    let text = |value: Option<Value>| value.and_then(|v| v.as_str().map(String::from)).unwrap_or_default();
    if api_version == "g/v2" {
        if spec.contains_key("host") || spec.contains_key("port") {
            let (host, port) = (text(spec.remove("host")), text(spec.remove("port")));
            spec.insert("address".into(), format!("{host}:{port}").into());
        }
    } else if let Some(address) = spec.remove("address") {
        let address = text(Some(address));
        let (host, port) = address.split_once(':').unwrap_or((&address, ""));
        spec.insert("host".into(), host.into());
        spec.insert("port".into(), port.into());
    }
    out
}

/// Asks again until nothing is lacking; no object is converted twice.
fn across<T>(schema: &Schema, attempt: impl Fn(&Versions<'_>) -> Result<T, Unconverted>) -> T {
    let known = |version: &str| matches!(version, "g/v1" | "g/v2").then(|| schema.root());
    let mut versions = Versions::several(schema.root(), known);
    let mut asked: Vec<Unconverted> = Vec::new();
    loop {
        match attempt(&versions) {
            Ok(done) => return done,
            Err(lacking) => {
                assert!(!asked.contains(&lacking), "asked twice for {lacking:?}");
                asked.push(lacking.clone());
                let converted = convert(&lacking.object, &lacking.api_version);
                versions.learn(lacking, converted);
            }
        }
    }
}

fn thing(version: &str, spec: Value) -> Value {
    json!({"apiVersion": version, "kind": "Thing", "metadata": {"name": "a"}, "spec": spec})
}

fn applied(live: &Value, config: &Value, force: bool, who: &str) -> Result<Value, String> {
    let schema = open_schema();
    let version = config["apiVersion"].as_str().unwrap_or_default();
    let entries = entries_of(live).cloned().unwrap_or_default();
    let mut seen = convert(live, version);
    put(&mut seen, entries);
    let done = across(&schema, |versions| apply_across(versions, &seen, config, force, &by(who)));
    done.map_err(|conflicts| conflicts.status("g", "things", "a").message)
}

#[test]
fn owners_of_other_versions_are_asked_in_theirs() {
    let first =
        applied(&nothing(), &thing("g/v1", json!({"host": "h", "port": "1", "words": "w"})), false, "A").unwrap();
    // Another port is another address; A owns the port in its version.
    let said = applied(&first, &thing("g/v2", json!({"address": "h:2"})), false, "B").unwrap_err();
    assert_eq!(said, "Apply failed with 1 conflict: conflict with \"A\": .spec.port");
    // The same address changes nothing that A owns.
    let shared = applied(&first, &thing("g/v2", json!({"address": "h:1"})), false, "B").unwrap();
    assert_eq!(owned(&shared, "A"), json!({"f:spec": {".": {}, "f:host": {}, "f:port": {}, "f:words": {}}}));
    assert_eq!(owned(&shared, "B"), json!({"f:spec": {".": {}, "f:address": {}}}));
    // Forced, it takes from A what changed, as A's version names it.
    let forced = applied(&first, &thing("g/v2", json!({"address": "h:2"})), true, "B").unwrap();
    assert_eq!(owned(&forced, "A"), json!({"f:spec": {".": {}, "f:host": {}, "f:words": {}}}));
}

#[test]
fn what_is_withdrawn_stays_where_another_version_owns_it() {
    let first =
        applied(&nothing(), &thing("g/v1", json!({"host": "h", "port": "1", "words": "w"})), false, "A").unwrap();
    let shared = applied(&first, &thing("g/v2", json!({"address": "h:1"})), false, "B").unwrap();
    // A moves to v2 and names neither any more: B's address keeps host and port, the words go.
    let left = applied(&shared, &thing("g/v2", json!({"more": "m"})), false, "A").unwrap();
    assert_eq!(left["spec"], json!({"address": "h:1", "more": "m"}));
    assert_eq!(owned(&left, "A"), json!({"f:spec": {".": {}, "f:more": {}}}));
    // What nobody owns was never applied, and stays.
    let mut loose = first.clone();
    loose["spec"]["loose"] = "l".into();
    let left = applied(&loose, &thing("g/v2", json!({"words": "w"})), false, "A").unwrap();
    assert_eq!(left["spec"], json!({"loose": "l", "words": "w"}));
}

#[test]
fn updates_are_of_the_version_they_were_written_in() {
    let schema = open_schema();
    let first = applied(&nothing(), &thing("g/v1", json!({"host": "h", "port": "1"})), false, "A").unwrap();
    let mut body = first.clone();
    body["spec"]["port"] = "2".into();
    // Stored as v1, written as v2.
    let track = |old: &Value, body: &Value| {
        across(&schema, |versions| track_update_across(versions, Some(old), body, "g/v2", &later("B")))
    };
    let entries = track(&first, &body);
    put(&mut body, entries.clone());
    assert_eq!(owned(&body, "A"), json!({"f:spec": {".": {}, "f:host": {}}}));
    assert_eq!(owned(&body, "B"), json!({"f:spec": {"f:address": {}}}));
    assert_eq!(entries::text(entries.last().unwrap(), "apiVersion"), "g/v2");
    // A version that is no more owns nothing.
    let mut old = body.clone();
    old["metadata"]["managedFields"][0]["apiVersion"] = "g/v0".into();
    let entries = track(&old, &old);
    assert_eq!(entries.len(), 1);
    assert_eq!(entries::text(&entries[0], "manager"), "B");
}
