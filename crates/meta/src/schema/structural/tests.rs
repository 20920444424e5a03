use serde_json::json;

use super::*;
use crate::schema::{conform, validate};

fn crontab() -> Value {
    json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["cronSpec"], "properties": {
            "cronSpec": {"type": "string", "pattern": r"^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$"},
            "image": {"type": "string", "maxLength": 8, "default": "busybox"},
            "replicas": {"type": "integer", "minimum": 1, "maximum": 10, "default": 1},
            "mode": {"type": "string", "enum": ["a", "b"]},
            "when": {"type": "string", "format": "date-time", "nullable": true},
            "port": {"x-kubernetes-int-or-string": true},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "maxItems": 3, "items": {"type": "string"}},
            "hosts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "n": {"type": "integer", "default": 7}}}},
            "any": {"x-kubernetes-preserve-unknown-fields": true},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "one": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}
        }},
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
    }})
}

fn schema() -> Schema {
    build(&crontab(), &FieldPath::new("spec.versions[0].schema.openAPIV3Schema")).expect("structural")
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": {"name": "c"}, "spec": spec})
}

#[test]
fn objects_are_pruned_and_defaulted() {
    let schema = schema();
    let mut value =
        object(json!({"cronSpec": "* * * * *", "foo": 1, "image": null, "when": null, "any": {"x": [null]},
        "hosts": [{"name": "a", "bar": 1}], "labels": {"k": null}}));
    value["metadata"]["nope"] = 1.into();
    value["status"] = json!({"x": {"y": 1}});
    let mut issues = Issues::default();
    conform(schema.root(), &mut value, &mut issues).expect("conform");
    let mut expect =
        object(json!({"cronSpec": "* * * * *", "image": "busybox", "replicas": 1, "when": null, "any": {"x": [null]},
        "hosts": [{"name": "a", "n": 7}], "labels": {}}));
    expect["status"] = json!({"x": {"y": 1}});
    assert_eq!(value, expect);
    let texts: Vec<String> = issues.texts().collect();
    assert_eq!(
        texts,
        [r#"unknown field "metadata.nope""#, r#"unknown field "spec.foo""#, r#"unknown field "spec.hosts[0].bar""#]
    );
    assert_eq!(validate(schema.root(), &value, &FieldPath::root()), []);
    // Metadata is a built-in type.
    let mut bad = object(json!({}));
    bad["metadata"]["labels"] = json!({"a": 1});
    let e = conform(schema.root(), &mut bad, &mut Issues::default()).expect_err("labels");
    assert_eq!(
        e.to_string(),
        "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"
    );
}

#[test]
fn complaints_are_worded_as_upstream_words_them() {
    let schema = schema();
    for (spec, expect) in [
        (json!({}), "spec.cronSpec: Required value"),
        (
            json!({"cronSpec": "0 5"}),
            r#"spec.cronSpec: Invalid value: "0 5": spec.cronSpec in body should match '^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$'"#,
        ),
        (
            json!({"cronSpec": "* * * * *", "replicas": 15}),
            "spec.replicas: Invalid value: 15: spec.replicas in body should be less than or equal to 10",
        ),
        (
            json!({"cronSpec": "* * * * *", "replicas": "x"}),
            r#"spec.replicas: Invalid value: "string": spec.replicas in body must be of type integer: "string""#,
        ),
        (
            json!({"cronSpec": "* * * * *", "mode": "c"}),
            r#"spec.mode: Unsupported value: "c": supported values: "a", "b""#,
        ),
        (json!({"cronSpec": "* * * * *", "image": "123456789"}), "spec.image: Too long: may not be more than 8 bytes"),
        (json!({"cronSpec": "* * * * *", "tags": ["a", "a"]}), r#"spec.tags[1]: Duplicate value: "a""#),
        (
            json!({"cronSpec": "* * * * *", "tags": ["a", "b", "c", "d"]}),
            "spec.tags: Too many: 4: must have at most 3 items",
        ),
        (
            json!({"cronSpec": "* * * * *", "hosts": [{"name": "a"}, {"name": "a"}]}),
            r#"spec.hosts[1]: Duplicate value: {"name":"a"}"#,
        ),
        (
            json!({"cronSpec": "* * * * *", "when": "today"}),
            r#"spec.when: Invalid value: "today": spec.when in body must be of type date-time: "today""#,
        ),
        (
            json!({"cronSpec": "* * * * *", "port": true}),
            r#"spec.port: Invalid value: "boolean": spec.port in body must be of type integer,string: "boolean""#,
        ),
        (
            json!({"cronSpec": "* * * * *", "one": {"a": "x", "b": "y"}}),
            r#"<nil>: Invalid value: "": "spec.one" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
        ),
    ] {
        let errors = validate(schema.root(), &object(spec), &FieldPath::root());
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts.first().map(String::as_str), Some(expect), "{texts:?}");
    }
}

#[test]
fn schemas_must_be_structural() {
    let path = FieldPath::new("spec.versions[0].schema.openAPIV3Schema");
    for (schema, expect) in [
        (json!({}), "type: Required value: must not be empty at the root"),
        (json!({"type": "string"}), r#"type: Invalid value: "string": must be object at the root"#),
        (
            json!({"type": "object", "properties": {"a": {}}}),
            "properties[a].type: Required value: must not be empty for specified object fields",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array", "items": {}}}}),
            "properties[a].items.type: Required value: must not be empty for specified array items",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "anyOf": [{"type": "string"}]}}}),
            "properties[a].anyOf[0].type: Forbidden: must be empty to be structural",
        ),
        (
            json!({"type": "object", "anyOf": [{"properties": {"x": {"minimum": 1}}}]}),
            "properties[x]: Required value: because it is defined in spec.versions[0].schema.openAPIV3Schema.anyOf[0].properties[x]",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "anyOf": [{"properties": {"x": {"title": "t"}}}]}}}),
            "properties[a].anyOf[0].properties[x].title: Forbidden: must be empty to be structural",
        ),
        (
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
            "properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}),
            "properties[a].pattern: Invalid value: \"(\": must be a valid regular expression, but isn't: ",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}),
            "properties[a].default: Invalid value: \"string\": ",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "object", "properties": {}, "default": {"x": 1}}}}),
            "properties[a].default: Invalid value: {\"x\":1}: must not have unknown fields",
        ),
    ] {
        let errors = build(&schema, &path).expect_err("not structural");
        let expect = format!("spec.versions[0].schema.openAPIV3Schema.{expect}");
        assert!(errors.iter().any(|e| e.to_string().starts_with(&expect)), "{expect}: {errors:?}");
    }
    let either = json!({"type": "object", "properties": {"a": {"x-kubernetes-int-or-string": true,
        "anyOf": [{"type": "integer"}, {"type": "string"}]}}});
    assert!(build(&either, &path).is_ok());
    assert!(build(&Value::Null, &path).is_err());
}
