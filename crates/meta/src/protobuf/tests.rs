//! The codec against upstream's own round-trip data: one object of every kind, every field filled, in JSON and protobuf.
//!
//! The data lies outside the repository: in `$NAUPLIUS_REFERENCE/fixtures` or `../shared/reference/fixtures` beside the workspace. Where
//! it is absent the test says so and passes.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::decode::Issues;
use crate::schema::{builtin, prune};

fn fixtures() -> Option<PathBuf> {
    let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let dir = match std::env::var_os("NAUPLIUS_REFERENCE") {
        Some(dir) => PathBuf::from(dir),
        None => workspace.join("../shared/reference"),
    }
    .join("fixtures");
    if dir.is_dir() {
        return Some(dir);
    }
    println!("skipped: no reference data at {} (set NAUPLIUS_REFERENCE)", dir.display());
    None
}

/// Where two trees first differ.
fn difference(path: &str, a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            keys.into_iter().find_map(|key| {
                let path = format!("{path}.{key}");
                difference(&path, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null))
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| difference(&format!("{path}[{i}]"), a, b))
        }
        (a, b) if a == b => None,
        (a, b) => Some(format!("{path}: {a} ≠ {b}")),
    }
}

#[test]
fn fixtures_round_trip() {
    let Some(dir) = fixtures() else { return };
    let mut names: Vec<PathBuf> = std::fs::read_dir(dir).expect("fixtures").map(|e| e.expect("entry").path()).collect();
    names.retain(|p| p.extension().is_some_and(|e| e == "json"));
    names.sort();
    let (mut tried, mut failures) = (0, Vec::new());
    for path in names {
        let name = path.file_stem().expect("name").to_string_lossy().into_owned();
        let json: Value = serde_json::from_slice(&std::fs::read(&path).expect("json")).expect("json");
        let bytes = std::fs::read(path.with_extension("pb")).expect("pb");
        let envelope = Envelope::open(&bytes).expect("envelope");
        // Versions no longer served are not in the table.
        let Some(view) = builtin().kind(&envelope.gvk()) else { continue };
        tried += 1;
        let mut pruned = json.clone();
        let mut issues = Issues::default();
        if let Err(e) = prune(view, &mut pruned, &mut issues) {
            failures.push(format!("{name}: prune: {e}"));
        }
        failures.extend(issues.texts().map(|text| format!("{name}: prune: {text}")));
        failures.extend(difference("", &pruned, &json).map(|d| format!("{name}: prune: {d}")));
        match decode(builtin(), &bytes) {
            Ok(value) => failures.extend(difference("", &value, &json).map(|d| format!("{name}: decode: {d}"))),
            Err(e) => failures.push(format!("{name}: decode: {e}")),
        }
        match encode(view, &json) {
            Ok(ours) if ours == bytes => {}
            Ok(ours) => {
                let at = ours.iter().zip(&bytes).take_while(|(a, b)| a == b).count();
                let near = |b: &[u8]| {
                    String::from_utf8_lossy(&b[at.saturating_sub(24).min(b.len())..(at + 16).min(b.len())]).into_owned()
                };
                failures.push(format!(
                    "{name}: encode: at {at} of {}: {:?} ≠ {:?}",
                    bytes.len(),
                    near(&ours),
                    near(&bytes)
                ));
            }
            Err(e) => failures.push(format!("{name}: encode: {e}")),
        }
    }
    println!("{tried} kinds");
    assert!(tried > 90, "only {tried} kinds were tried");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn absent_and_zero() {
    let view = builtin().kind(&Gvk::new("apps", "v1", "Deployment")).expect("kind");
    let value = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 0, "template": {"spec": {"containers": [{"name": "c"}]}}}});
    let read = decode(builtin(), &encode(view, &value).expect("encode")).expect("decode");
    assert_eq!(read["spec"]["replicas"], 0);
    assert_eq!(read["metadata"], json!({"name": "d"}));
    assert_eq!(read["spec"]["minReadySeconds"], Value::Null);
    assert_eq!(read["spec"]["template"]["spec"]["containers"], json!([{"name": "c", "resources": {}}]));
}

#[test]
fn hostile_bytes_are_errors() {
    let types = builtin();
    assert_eq!(decode(types, b"{}"), Err(ProtobufError::Prefix));
    let pod = |raw: &[u8]| decode(types, &seal("v1", "Pod", raw));
    assert_eq!(pod(&[0x0a, 0x05, 1]), Err(ProtobufError::Truncated));
    assert_eq!(pod(&[0x0b]), Err(ProtobufError::Malformed("illegal wireType")));
    assert!(matches!(decode(types, &seal("v1", "Nope", b"")), Err(ProtobufError::UnknownKind { .. })));
    // JSONSchemaProps.not, nested without end.
    let schema = types.named(JSON_SCHEMA_PROPS).expect("schema");
    let mut deep = Vec::new();
    for _ in 0..1000 {
        let inner = std::mem::take(&mut deep);
        wire::bytes(&mut deep, 28, &inner);
    }
    assert_eq!(read_message(schema, &deep), Err(ProtobufError::Malformed("message nested too deeply")));
}

#[test]
fn watch_frames_carry_envelopes() {
    let object = seal("v1", "Pod", b"");
    let frame = watch_frame("ADDED", &object);
    assert_eq!(frame[..4], ((frame.len() - 4) as u32).to_be_bytes());
    let mut reader = wire::Reader::new(&frame[4..]);
    let (_, kind) = reader.field().expect("field").expect("type");
    assert_eq!(kind.text(), Ok("ADDED"));
}

use crate::schema::JSON_SCHEMA_PROPS;

/// A list in pieces is the list as a whole.
#[test]
fn lists_in_pieces() {
    let item =
        |at: usize| json!({"metadata": {"name": format!("n{at}"), "uid": "u"}, "data": {"k": "x".repeat(at * 40)}});
    let view = |kind: &str| builtin().kind(&Gvk::new("", "v1", kind)).unwrap();
    let metadata = json!({"resourceVersion": "7", "continue": "c", "remainingItemCount": 3});
    for count in [0, 1, 9] {
        let items: Vec<Value> = (0..count).map(item).collect();
        let list = json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": metadata, "items": items});
        let whole = encode(view("ConfigMapList"), &list).unwrap();
        for piece in [1, 300, 100_000] {
            let given = items.iter().cloned().map(Ok::<_, ProtobufError>);
            let pieces = encode_list(view("ConfigMap"), ("v1", "ConfigMapList"), &metadata, given, piece).unwrap();
            assert_eq!(pieces.concat(), whole, "{count} items in pieces of {piece}");
        }
    }
}
