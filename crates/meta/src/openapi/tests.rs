use serde_json::json;

use super::*;
use crate::protobuf::wire::Reader;
use crate::schema::builtin;

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

fn kind<'a>(gvk: Gvk, list_kind: &'a str, plural: &'a str, subresources: Vec<Part<'a>>) -> Kind<'a> {
    let view = builtin().kind(&gvk).expect("kind");
    Kind {
        gvk,
        list_kind,
        plural,
        namespaced: true,
        schema: Source::Builtin(view),
        verbs: ALL,
        subresources,
        delete_returns_object: false,
        selectable: Vec::new(),
    }
}

fn pods() -> Kind<'static> {
    let exec = Gvk::new("", "v1", "PodExecOptions");
    let schema = builtin().kind(&exec);
    let status = Part {
        name: "status",
        verbs: &["get", "patch", "update"],
        body: Gvk::new("", "v1", "Pod"),
        schema: None,
        connect: false,
    };
    let exec = Part { name: "exec", verbs: &["create", "get"], body: exec, schema, connect: true };
    kind(Gvk::new("", "v1", "Pod"), "PodList", "pods", vec![status, exec])
}

/// Every reference of a document must lead somewhere.
fn check_references(value: &Value, document: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                let pointer = reference.strip_prefix('#').expect("local");
                let found = document.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"));
                assert!(!found.is_null(), "{reference} is null");
            }
            map.values().for_each(|v| check_references(v, document));
        }
        Value::Array(items) => items.iter().for_each(|v| check_references(v, document)),
        _ => {}
    }
}

#[test]
fn v3_says_what_kubectl_reads() {
    let document = v3(&[pods()], &[], &());
    check_references(&document, &document);
    let schemas = &document["components"]["schemas"];
    let pod = &schemas["io.k8s.api.core.v1.Pod"];
    let gvk = json!({"group": "", "version": "v1", "kind": "Pod"});
    assert_eq!(pod["x-kubernetes-group-version-kind"], json!([gvk]));
    let ports = &schemas["io.k8s.api.core.v1.Container"]["properties"]["ports"];
    assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["containerPort", "protocol"]));
    assert_eq!(ports["x-kubernetes-patch-merge-key"], "containerPort");
    let protocol = &schemas["io.k8s.api.core.v1.ContainerPort"]["properties"]["protocol"];
    assert_eq!(protocol, &json!({"type": "string", "default": "TCP", "enum": ["SCTP", "TCP", "UDP"]}));
    let item = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"];
    assert_eq!(item["patch"]["x-kubernetes-group-version-kind"], gvk);
    let names: Vec<&Value> =
        item["patch"]["parameters"].as_array().expect("parameters").iter().map(|p| &p["name"]).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    assert_eq!(item["get"]["operationId"], "readCoreV1NamespacedPod");
    assert_eq!(document["paths"]["/api/v1/pods"]["get"]["operationId"], "listCoreV1PodForAllNamespaces");
    let exec = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}/exec"];
    assert_eq!(exec["post"]["operationId"], "connectCoreV1PostNamespacedPodExec");
    assert!(exec["parameters"].to_string().contains("command"));
}

#[test]
fn custom_kinds_bring_their_own_schema() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "description": "what", "properties": {
        "cron": {"type": "string", "nullable": true}, "n": {"x-kubernetes-int-or-string": true}}}}});
    let custom = || Kind {
        gvk: Gvk::new("stable.example.com", "v1", "CronTab"),
        list_kind: "CronTabList",
        plural: "crontabs",
        namespaced: true,
        schema: Source::Custom(&schema),
        verbs: ALL,
        subresources: Vec::new(),
        delete_returns_object: false,
        selectable: Vec::new(),
    };
    let document = v3(&[custom()], &[], &());
    check_references(&document, &document);
    let definition = &document["components"]["schemas"]["com.example.stable.v1.CronTab"];
    assert_eq!(definition["properties"]["spec"]["properties"]["cron"]["nullable"], true);
    assert_eq!(
        definition["x-kubernetes-group-version-kind"],
        json!([{"group": "stable.example.com", "version": "v1", "kind": "CronTab"}])
    );
    let old = v2(&[custom()], &());
    check_references(&old, &old);
    assert_eq!(
        old["definitions"]["com.example.stable.v1.CronTab"]["properties"]["spec"]["properties"]["cron"],
        json!({})
    );
    assert_eq!(old["paths"]["/apis/stable.example.com/v1/crontabs"]["get"]["tags"], json!(["stableExampleCom_v1"]));
    // kubectl applies with a strategic merge patch where that is told of.
    let item = "/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}";
    assert_eq!(
        old["paths"][item]["patch"]["consumes"],
        json!(["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"])
    );
}

/// A client that knows no fields takes any; one that knows three refuses the others.
#[test]
fn custom_kinds_open_at_the_root_name_no_fields() {
    for (schema, named_in_v3) in [
        (json!(null), false),
        (
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {"type": "string"}}}),
            true,
        ),
    ] {
        let custom = || Kind {
            gvk: Gvk::new("example.com", "v1", "Open"),
            list_kind: "OpenList",
            plural: "opens",
            namespaced: true,
            schema: Source::Custom(&schema),
            verbs: ALL,
            subresources: Vec::new(),
            delete_returns_object: false,
            selectable: vec!["a"],
        };
        let (old, new) = (v2(&[custom()], &()), v3(&[custom()], &[], &()));
        assert_eq!(old["definitions"]["com.example.v1.Open"].get("properties"), None, "{schema}");
        let new = &new["components"]["schemas"]["com.example.v1.Open"];
        assert_eq!(new["x-kubernetes-selectable-fields"], json!([{"fieldPath": "a"}]));
        assert_eq!(new["properties"]["metadata"]["allOf"].is_array(), named_in_v3, "{schema}");
    }
}

#[test]
fn gnostic_names_every_definition() {
    let document = v2(&[pods()], &());
    let bytes = gnostic(&document);
    let mut reader = Reader::new(&bytes);
    let mut names = 0;
    while let Some((tag, value)) = reader.field().expect("field") {
        if tag == 9 {
            let mut definitions = Reader::new(value.bytes().expect("bytes"));
            while let Some((_, definition)) = definitions.field().expect("field") {
                let mut parts = Reader::new(definition.bytes().expect("bytes"));
                let (_, name) = parts.field().expect("field").expect("name");
                assert!(document["definitions"].get(name.text().expect("text")).is_some());
                names += 1;
            }
        }
    }
    assert_eq!(names, document["definitions"].as_object().expect("definitions").len());
}
