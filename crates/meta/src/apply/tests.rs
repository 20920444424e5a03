//! Ownership through writes and applies, with built-in kinds and a custom resource without a schema.

use serde_json::{Value, json};

use super::*;
use crate::Gvk;
use crate::schema::{Schema, builtin};

mod across;
mod random;

const NOW: &str = "2026-01-01T00:00:00Z";
const LATER: &str = "2026-01-01T00:01:00Z";

fn kind(group: &str, version: &str, kind: &str) -> View<'static> {
    let gvk = Gvk { group: group.into(), version: version.into(), kind: kind.into() };
    // Every kind these tests use is built in.
    let view = builtin().kind(&gvk);
    view.unwrap()
}

fn deployments() -> View<'static> {
    kind("apps", "v1", "Deployment")
}

fn open_schema() -> Schema {
    crate::schema::structural::open()
}

fn by(manager: &str) -> Writer<'_> {
    Writer { manager, subresource: "", now: NOW }
}

fn later(manager: &str) -> Writer<'_> {
    Writer { now: LATER, ..by(manager) }
}

/// What a manager owns; null for nothing.
fn owned(object: &Value, manager: &str) -> Value {
    let entries = entries_of(object).cloned().unwrap_or_default();
    entries.iter().find(|e| entries::text(e, "manager") == manager).map_or(Value::Null, |e| e["fieldsV1"].clone())
}

fn time_of(object: &Value, manager: &str) -> Value {
    let entries = entries_of(object).cloned().unwrap_or_default();
    entries.iter().find(|e| entries::text(e, "manager") == manager).map_or(Value::Null, |e| e["time"].clone())
}

/// Without `managedFields`, to compare what was written.
fn bare(object: &Value) -> Value {
    let mut out = object.clone();
    if let Some(metadata) = metadata(&mut out) {
        metadata.remove("managedFields");
    }
    out
}

fn updated(root: View<'_>, old: &Value, writer: Writer<'_>, change: impl FnOnce(&mut Value)) -> Value {
    let mut body = old.clone();
    change(&mut body);
    tracked(root, old, body, &writer)
}

/// An update, whose entries as text say what trees say wherever they say anything.
fn tracked(root: View<'_>, old: &Value, mut body: Value, writer: &Writer<'_>) -> Value {
    let text = |object: &Value| entries_of(object).map(|e| Value::from(e.clone()).to_string()).unwrap_or_default();
    let sent = text(&body);
    let by_text = super::updated(root, &bare(old), &bare(&body), &text(old), writer).map(String::from);
    let same_sent = sent == text(old);
    track_update(root, Some(old), &mut body, writer);
    if let Some(by_text) = by_text.filter(|_| same_sent) {
        assert_eq!(by_text, text(&body), "{old} {body}");
    }
    body
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}, "uid": "u", "generation": 1},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate"},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i:1", "ports": [{"containerPort": 80, "protocol": "TCP"}], "args": ["a"]}]},
            },
        },
    })
}

fn created() -> Value {
    let mut body = deployment();
    track_update(deployments(), None, &mut body, &by("creator"));
    body
}

#[test]
fn create_owns_what_upstream_records() {
    let want = json!([{
        "manager": "creator", "operation": "Update", "apiVersion": "apps/v1", "time": NOW, "fieldsType": "FieldsV1",
        "fieldsV1": {
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {
                "f:replicas": {}, "f:selector": {}, "f:strategy": {"f:type": {}},
                "f:template": {
                    "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                    "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {
                        ".": {}, "f:name": {}, "f:image": {}, "f:args": {},
                        "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}},
                    }}},
                },
            },
        },
    }]);
    assert_eq!(created()["metadata"]["managedFields"], want);
}

#[test]
fn an_update_takes_what_it_changes() {
    let old = created();
    let new = updated(deployments(), &old, later("scaler"), |b| {
        b["spec"]["replicas"] = 3.into();
        b["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": "1"}]);
        b["metadata"]["finalizers"] = json!(["example.com/x"]);
        b["metadata"]["generation"] = 2.into();
    });
    let want = json!({
        "f:metadata": {"f:finalizers": {".": {}, "v:\"example.com/x\"": {}}},
        "f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {
            "f:env": {".": {}, "k:{\"name\":\"A\"}": {".": {}, "f:name": {}, "f:value": {}}},
        }}}}},
    });
    assert_eq!(owned(&new, "scaler"), want);
    assert_eq!(time_of(&new, "scaler"), LATER);
    let first = owned(&new, "creator");
    assert!(first["f:spec"].get("f:replicas").is_none() && first["f:spec"].get("f:selector").is_some());
    assert_eq!(time_of(&new, "creator"), NOW);

    // A field that goes leaves every set, an item with all that is in it, and an entry that owns nothing goes too.
    let gone = updated(deployments(), &new, later("cleaner"), |b| {
        b["spec"].as_object_mut().unwrap().remove("replicas");
        b["metadata"].as_object_mut().unwrap().remove("finalizers");
        b["spec"]["template"]["spec"]["containers"][0].as_object_mut().unwrap().remove("env");
    });
    assert_eq!(owned(&gone, "scaler"), Value::Null);
    assert_eq!(owned(&gone, "cleaner"), Value::Null);
    assert_eq!(time_of(&gone, "creator"), NOW);
}

#[test]
fn a_write_that_changes_nothing_changes_no_entry() {
    let old = created();
    let same = updated(deployments(), &old, later("creator"), |b| b["metadata"]["resourceVersion"] = "7".into());
    assert_eq!(same["metadata"]["managedFields"], old["metadata"]["managedFields"]);
    // A client that does not know the field does not delete it.
    let unaware = updated(deployments(), &old, later("x"), |b| drop(metadata(b).unwrap().remove("managedFields")));
    assert_eq!(unaware, old);
    let bad_set = json!([{"manager": "y", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"spec": {}}}]);
    for bad in [json!([{"manager": "y"}]), bad_set] {
        let broken = updated(deployments(), &old, later("x"), |b| b["metadata"]["managedFields"] = bad);
        assert_eq!(broken, old);
    }
}

#[test]
fn entries_of_one_writer_become_one() {
    let old = created();
    let half = |set: Value| json!({"manager": "creator", "operation": "Update", "apiVersion": "apps/v1", "time": NOW, "fieldsType": "FieldsV1", "fieldsV1": set});
    let new = updated(deployments(), &old, later("x"), |b| {
        b["metadata"]["managedFields"] = json!([
            half(json!({"f:spec": {"f:selector": {}}})),
            half(json!({"f:spec": {"f:replicas": {}, "f:paused": {}}}))
        ]);
        b["spec"]["replicas"] = 2.into();
    });
    assert_eq!(entries_of(&new).map(Vec::len), Some(2));
    assert_eq!(owned(&new, "creator"), json!({"f:spec": {"f:selector": {}, "f:paused": {}}}));
}

#[test]
fn entries_can_be_taken_away_but_not_through_a_subresource() {
    let old = created();
    for reset in [json!([]), json!([{}])] {
        let new = updated(deployments(), &old, later("x"), |b| {
            b["metadata"]["managedFields"] = reset.clone();
            b["spec"]["replicas"] = 9.into();
        });
        assert!(new["metadata"].get("managedFields").is_none());
        // And stays away.
        let more = updated(deployments(), &new, later("x"), |b| b["spec"]["replicas"] = 10.into());
        assert!(more["metadata"].get("managedFields").is_none());
        let writer = Writer { subresource: "status", ..later("x") };
        let kept = updated(deployments(), &old, writer, |b| b["metadata"]["managedFields"] = reset.clone());
        assert_eq!(kept, old);
    }
}

#[test]
fn status_is_an_entry_of_its_own() {
    let old = created();
    let writer = Writer { subresource: "status", ..later("creator") };
    let new = updated(deployments(), &old, writer, |b| {
        b["status"] = json!({"replicas": 1, "conditions": [{"type": "Available", "status": "True"}]});
    });
    let entries = entries_of(&new).unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[0], entries_of(&old).unwrap()[0]);
    assert_eq!(entries[1]["subresource"], "status");
    let want = json!({"f:status": {"f:replicas": {}, "f:conditions": {".": {}, "k:{\"type\":\"Available\"}": {".": {}, "f:type": {}, "f:status": {}}}}});
    assert_eq!(entries[1]["fieldsV1"], want);
}

#[test]
fn the_oldest_updates_share_an_entry() {
    let root = kind("", "v1", "ConfigMap");
    let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": "v"}});
    track_update(root, None, &mut object, &by("m00"));
    for n in 1..14 {
        let (manager, now) = (format!("m{n:02}"), format!("2026-01-01T00:00:{n:02}Z"));
        let writer = Writer { manager: &manager, subresource: "", now: &now };
        object = updated(root, &object, writer, |b| b["data"][&manager] = "x".into());
    }
    let entries = entries_of(&object).unwrap();
    assert_eq!(entries.len(), 10);
    assert_eq!(entries[0]["manager"], "ancient-changes");
    assert_eq!(entries[0]["time"], "2026-01-01T00:00:04Z");
    assert_eq!(
        entries[0]["fieldsV1"],
        json!({"f:data": {".": {}, "f:k": {}, "f:m01": {}, "f:m02": {}, "f:m03": {}, "f:m04": {}}})
    );
    assert_eq!(entries[1]["manager"], "m05");
}

/// One manager's configuration of a config map.
fn config(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "default"}, "data": data})
}

fn nothing() -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}})
}

#[test]
fn apply_merges_removes_and_remembers() {
    let root = kind("", "v1", "ConfigMap");
    let one = apply(root, &nothing(), &config(json!({"a": "1", "b": "1"})), false, &by("A")).unwrap();
    assert_eq!(bare(&one), config(json!({"a": "1", "b": "1"})));
    assert_eq!(owned(&one, "A"), json!({"f:data": {"f:a": {}, "f:b": {}}}));
    // Again: nothing changes, not even the time.
    assert_eq!(apply(root, &one, &config(json!({"a": "1", "b": "1"})), false, &later("A")).unwrap(), one);
    // Two may apply the same value.
    let two = apply(root, &one, &config(json!({"b": "1", "c": "1"})), false, &later("B")).unwrap();
    assert_eq!(bare(&two), config(json!({"a": "1", "b": "1", "c": "1"})));
    // What A no longer applies goes, unless B owns it.
    let three = apply(root, &two, &config(json!({})), false, &later("A")).unwrap();
    assert_eq!(bare(&three), config(json!({"b": "1", "c": "1"})));
    assert_eq!(owned(&three, "A"), json!({"f:data": {}}));
    assert_eq!(owned(&three, "B"), json!({"f:data": {"f:b": {}, "f:c": {}}}));
    // What an update wrote is not an applier's to remove.
    let four = updated(root, &three, later("U"), |b| b["data"]["u"] = "1".into());
    let five = apply(root, &four, &config(json!({"b": "1"})), false, &later("B")).unwrap();
    assert_eq!(bare(&five), config(json!({"b": "1", "u": "1"})));
    // The very last one out takes the map with it.
    let empty = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "default"}});
    let six = apply(root, &one, &empty, false, &later("A")).unwrap();
    assert_eq!(bare(&six), empty);
    assert_eq!(six["metadata"].get("managedFields"), None);
}

#[test]
fn conflicts_are_worded_as_upstream_words_them() {
    let root = deployments();
    let old = created();
    let wanted = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"replicas": 5, "template": {"spec": {"containers": [{"name": "c", "image": "i:2"}]}}}});
    let said =
        apply(root, &old, &wanted, false, &later("A")).unwrap_err().status("apps", "deployments", "web").to_value();
    let containers = ".spec.template.spec.containers[name=\"c\"].image";
    assert_eq!(
        said,
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 409, "reason": "Conflict",
            "message": format!("Apply failed with 2 conflicts: conflicts with \"creator\" using apps/v1:\n- .spec.replicas\n- {containers}"),
            "details": {"causes": [
                {"reason": "FieldManagerConflict", "message": "conflict with \"creator\" using apps/v1", "field": ".spec.replicas"},
                {"reason": "FieldManagerConflict", "message": "conflict with \"creator\" using apps/v1", "field": containers},
            ]},
        })
    );
    let new = apply(root, &old, &wanted, true, &later("A")).unwrap();
    assert_eq!(new["spec"]["replicas"], 5);
    assert!(owned(&new, "creator")["f:spec"].get("f:replicas").is_none());
    assert_eq!(
        owned(&new, "A"),
        json!({"f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}}}}}}})
    );
    // One conflict alone is said in one line; appliers are named without a version.
    let other =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 6}});
    let said = apply(root, &new, &other, false, &later("B")).unwrap_err().status("apps", "deployments", "web");
    assert_eq!(said.message, "Apply failed with 1 conflict: conflict with \"A\": .spec.replicas");
    // The same value is no conflict.
    let same =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 5}});
    assert!(apply(root, &new, &same, false, &later("B")).is_ok());
}

#[test]
fn lists_that_cannot_be_told_apart_are_refused() {
    let root = deployments();
    let with = |spec: Value| json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}, "spec": {"template": {"spec": spec}}});
    let head =
        "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.template.spec.containers";
    // (pod spec, words)
    let cases = [
        (
            json!({"containers": [{"name": "a"}, {"name": "a"}]}),
            format!("{head}: duplicate entries for key [name=\"a\"]"),
        ),
        // A key that Go always writes is empty when it is missing; that it may not be is for validation to say.
        (
            json!({"containers": [{"image": "a"}, {"image": "b"}]}),
            format!("{head}: duplicate entries for key [name=\"\"]"),
        ),
        (
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 1}, {"containerPort": 1, "protocol": "TCP"}]}]}),
            format!("{head}[name=\"a\"].ports: duplicate entries for key [containerPort=1,protocol=\"TCP\"]"),
        ),
    ];
    for (spec, words) in cases {
        let refused =
            apply(root, &created(), &with(spec), true, &by("A")).unwrap_err().status("apps", "deployments", "web");
        assert_eq!((refused.code, refused.message), (500, words));
    }
}

#[test]
fn keys_that_are_missing_are_refused() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"ports": {
        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"],
        "items": {"type": "object", "required": ["port"], "properties": {"port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}, "name": {"type": "string"}}},
    }}}}});
    let schema = crate::schema::structural::build(&schema, &crate::FieldPath::new("schema")).unwrap();
    let with = |item: Value| json!({"apiVersion": "example.com/v1", "kind": "T", "metadata": {"name": "t"}, "spec": {"ports": [item]}});
    let live = json!({"apiVersion": "example.com/v1", "kind": "T", "metadata": {}});
    let done = apply(schema.root(), &live, &with(json!({"port": 1, "name": "x"})), false, &by("A")).unwrap();
    let item = json!({".": {}, "f:port": {}, "f:name": {}});
    assert_eq!(owned(&done, "A"), json!({"f:spec": {"f:ports": {"k:{\"port\":1,\"protocol\":\"TCP\"}": item}}}));
    let refused = apply(schema.root(), &live, &with(json!({"name": "x"})), false, &by("A")).unwrap_err();
    assert_eq!(
        refused.status("", "", "").message,
        "failed to create typed patch object (/t; example.com/v1, Kind=T): .spec.ports: element 0: \
         associative list with keys has an element that omits key field \"port\" (and doesn't have default value)"
    );
}

#[test]
fn a_null_is_applied_where_the_schema_allows_one() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "word": {"type": "string", "nullable": true},
        "map": {"type": "object", "nullable": true, "additionalProperties": {"type": "string"}},
    }}}});
    let schema = crate::schema::structural::build(&schema, &crate::FieldPath::new("schema")).unwrap();
    let with =
        |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "T", "metadata": {"name": "t"}, "spec": spec});
    let live = with(json!({"word": "w", "map": {"a": "1"}}));
    let done = apply(schema.root(), &live, &with(json!({"word": null, "map": null})), true, &by("A")).unwrap();
    assert_eq!(done["spec"], json!({"word": null, "map": {"a": "1"}}));
    assert_eq!(owned(&done, "A"), json!({"f:spec": {"f:word": {}, "f:map": {}}}));
}

#[test]
fn items_keep_their_order_and_leave_with_their_applier() {
    let root = kind("", "v1", "Pod");
    let pod = |names: &[&str]| {
        let containers: Vec<Value> = names.iter().map(|n| json!({"name": n})).collect();
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}})
    };
    // (live, applied, merged)
    let cases: &[(&[&str], &[&str], &[&str])] = &[
        (&["a", "b", "c"], &["c", "a"], &["b", "c", "a"]),
        (&["a", "b", "c"], &["a", "x", "c"], &["a", "b", "x", "c"]),
        (&["a", "b"], &["x"], &["a", "b", "x"]),
        (&["s", "a", "t"], &["x", "a"], &["s", "x", "a", "t"]),
        (&[], &["b", "a"], &["b", "a"]),
    ];
    for (live, applied, want) in cases {
        let merged = apply(root, &pod(live), &pod(applied), true, &by("A")).unwrap();
        assert_eq!(bare(&merged), pod(want), "{live:?} + {applied:?}");
    }
    let one = apply(root, &pod(&["s"]), &pod(&["s", "a", "b"]), false, &by("A")).unwrap();
    let mut two = updated(root, &one, by("kubelet"), |b| b["spec"]["containers"][1]["image"] = "i".into());
    two = apply(root, &two, &pod(&["s", "b"]), false, &by("A")).unwrap();
    assert_eq!(bare(&two), pod(&["s", "b"]));
    assert_eq!(owned(&two, "kubelet"), Value::Null);
}

#[test]
fn sets_keys_defaults_and_whole_values() {
    let root = kind("", "v1", "Service");
    let service = |spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "finalizers": ["a/a"]}, "spec": spec});
    let one = apply(
        root,
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {}}),
        &service(json!({"ports": [{"port": 80}], "selector": {"a": "1"}, "externalIPs": ["1.2.3.4"]})),
        false,
        &by("A"),
    )
    .unwrap();
    let want = json!({
        "f:metadata": {"f:finalizers": {"v:\"a/a\"": {}}},
        "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}, "f:selector": {}, "f:externalIPs": {}},
    });
    assert_eq!(owned(&one, "A"), want);
    // The default the server filled in belongs to the same item, and goes with it.
    let mut defaulted = one.clone();
    defaulted["spec"]["ports"][0]["protocol"] = "TCP".into();
    let two = apply(
        root,
        &defaulted,
        &service(json!({"ports": [{"port": 81}], "selector": {"b": "1"}, "externalIPs": ["1.2.3.4"]})),
        false,
        &by("A"),
    )
    .unwrap();
    assert_eq!(two["spec"]["ports"], json!([{"port": 81}]));
    // An atomic map is replaced.
    assert_eq!(two["spec"]["selector"], json!({"b": "1"}));
    let refused = apply(root, &two, &service(json!({"selector": {"c": "1"}})), false, &by("B")).unwrap_err();
    assert_eq!(
        refused.status("", "services", "s").message,
        "Apply failed with 1 conflict: conflict with \"A\": .spec.selector"
    );
}

#[test]
fn the_first_apply_finds_an_owner_for_what_was_there() {
    let root = kind("", "v1", "ConfigMap");
    let live = config(json!({"a": "1", "b": "1"}));
    let refused = apply(root, &live, &config(json!({"a": "2"})), false, &by("A")).unwrap_err();
    assert_eq!(
        refused.status("", "configmaps", "c").message,
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.a"
    );
    let new = apply(root, &live, &config(json!({"a": "1"})), false, &by("A")).unwrap();
    assert_eq!(owned(&new, "before-first-apply"), json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}}));
    assert_eq!(owned(&new, "A"), json!({"f:data": {"f:a": {}}}));
}

#[test]
fn kubectl_comes_over_from_its_annotation() {
    let root = kind("", "v1", "ConfigMap");
    let annotate = |body: &mut Value, last: &Value| {
        body["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": last.to_string()})
    };
    let mut live = config(json!({"a": "1", "b": "1"}));
    annotate(&mut live, &config(json!({"a": "1", "b": "0"})));
    track_update(root, None, &mut live, &by("kubectl-client-side-apply"));
    // a is what kubectl made it, b was changed by someone.
    let wanted = config(json!({"a": "2"}));
    let new = apply(root, &live, &wanted, false, &later("kubectl")).unwrap();
    assert_eq!(new["data"], json!({"a": "2", "b": "1"}));
    let annotation =
        new["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(annotation).unwrap(), wanted);
    let refused = apply(root, &live, &config(json!({"a": "2", "b": "2"})), false, &later("kubectl")).unwrap_err();
    assert_eq!(
        refused.status("", "configmaps", "c").message,
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using v1: .data.b"
    );
    // Others get no favours.
    assert!(apply(root, &live, &wanted, false, &later("other")).is_err());
}

#[test]
fn status_is_not_applied_through_the_main_resource() {
    let root = deployments();
    let mut wanted = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"paused": true}, "status": {"replicas": 4}});
    let new = apply(root, &created(), &wanted, false, &by("A")).unwrap();
    assert_eq!(owned(&new, "A"), json!({"f:spec": {"f:paused": {}}}));
    wanted["status"] = json!({"replicas": 4});
    let writer = Writer { subresource: "status", ..by("A") };
    let new = apply(root, &created(), &wanted, false, &writer).unwrap();
    assert_eq!(owned(&new, "A"), json!({"f:status": {"f:replicas": {}}}));
}

#[test]
fn without_a_schema_maps_are_shared_and_lists_are_whole() {
    let schema = open_schema();
    let root = schema.root();
    let object = |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t", "labels": {"a": "b"}}, "spec": spec});
    let mut body = object(json!({"list": [{"name": "a"}], "map": {"x": {"y": 1}}, "n": null}));
    track_update(root, None, &mut body, &by("creator"));
    let want = json!({
        "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
        "f:spec": {".": {}, "f:list": {}, "f:n": {}, "f:map": {".": {}, "f:x": {".": {}, "f:y": {}}}},
    });
    assert_eq!(owned(&body, "creator"), want);
    let wanted = object(json!({"list": [{"name": "b"}], "map": {"x": {"z": 1}}}));
    let refused = apply(root, &body, &wanted, false, &by("A")).unwrap_err();
    assert_eq!(
        refused.status("example.com", "things", "t").message,
        "Apply failed with 1 conflict: conflict with \"creator\" using example.com/v1: .spec.list"
    );
    let new = apply(root, &body, &wanted, true, &by("A")).unwrap();
    assert_eq!(new["spec"], json!({"list": [{"name": "b"}], "map": {"x": {"y": 1, "z": 1}}, "n": null}));
    assert_eq!(
        owned(&new, "A")["f:spec"],
        json!({".": {}, "f:list": {}, "f:map": {".": {}, "f:x": {".": {}, "f:z": {}}}})
    );
}

#[test]
fn sets_follow_a_schema_that_made_a_field_whole() {
    let root = kind("", "v1", "Service");
    let live = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "managedFields": [{
        "manager": "old", "operation": "Update", "apiVersion": "v1", "time": NOW, "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {"f:selector": {".": {}, "f:a": {}}}},
    }]}, "spec": {"selector": {"a": "1"}}});
    let wanted =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"selector": {"a": "2"}}});
    let refused = apply(root, &live, &wanted, false, &by("A")).unwrap_err();
    assert_eq!(
        refused.status("", "services", "s").message,
        "Apply failed with 1 conflict: conflict with \"old\" using v1: .spec.selector"
    );
}

#[test]
fn indistinguishable_items_of_an_update_are_one_leaf() {
    let root = kind("", "v1", "Pod");
    let pod = |env: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "env": env}]}});
    let mut body = pod(json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "B"}]));
    track_update(root, None, &mut body, &by("m"));
    let env = &owned(&body, "m")["f:spec"]["f:containers"]["k:{\"name\":\"c\"}"]["f:env"];
    assert_eq!(*env, json!({".": {}, "k:{\"name\":\"A\"}": {}, "k:{\"name\":\"B\"}": {".": {}, "f:name": {}}}));
}
