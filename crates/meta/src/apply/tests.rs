//! Ownership through writes and applies, with built-in kinds and a custom resource without a schema.

use serde_json::{Value, json};

use super::*;
use crate::Gvk;
use crate::schema::builtin;

const NOW: &str = "2026-01-01T00:00:00Z";

fn kind(group: &str, version: &str, kind: &str) -> View<'static> {
    let gvk = Gvk { group: group.into(), version: version.into(), kind: kind.into() };
    // Every kind these tests use is built in.
    let view = builtin().kind(&gvk).unwrap();
    view
}

fn by(manager: &str) -> Writer<'_> {
    Writer { manager, subresource: "", now: NOW }
}

fn owned(object: &Value, manager: &str) -> Value {
    let entries = entries_of(object).cloned().unwrap_or_default();
    entries.iter().find(|e| entries::text(e, "manager") == manager).map_or(Value::Null, |e| e["fieldsV1"].clone())
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

#[test]
fn create_owns_what_upstream_records() {
    let mut body = deployment();
    track_update(kind("apps", "v1", "Deployment"), None, &mut body, &by("kubectl-create"));
    let want = json!([{
        "manager": "kubectl-create", "operation": "Update", "apiVersion": "apps/v1", "time": NOW, "fieldsType": "FieldsV1",
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
    assert_eq!(body["metadata"]["managedFields"], want);
}
