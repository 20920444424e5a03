//! Policies, conditions and rules as clients meet them: requests to a whole server.

use meta::Verb;
use serde_json::{Value, json};

use crate::authn::User;
use crate::testing::{Fixture, admin, pod, said};

const V1: &str = "admissionregistration.k8s.io/v1";

fn path(plural: &str) -> String {
    format!("{V1}/{plural}")
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": V1, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn matching(group: &str, plural: &str) -> Value {
    json!({"resourceRules": [{"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [plural]}]})
}

async fn bind(f: &Fixture, kind: &str, plural: &str, name: &str, more: Value) {
    let mut spec = json!({"policyName": name});
    if kind.starts_with("Validating") {
        spec["validationActions"] = json!(["Deny"]);
    }
    crate::testing::merge(&mut spec, more);
    f.create(&path(plural), "", object(kind, &format!("{name}-b"), spec)).await.unwrap();
}

fn config(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

#[tokio::test(flavor = "multi_thread")]
async fn validating() {
    let f = Fixture::start().await;
    f.namespace("n", json!({"env": "test"})).await;
    f.create("configmaps", "n", config("limits", json!({"max": "2"}))).await.unwrap();
    let policy = json!({
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": matching("", "pods"),
        "matchConditions": [{"name": "not-exempt", "expression": "!has(object.metadata.labels) || !('exempt' in object.metadata.labels)"}],
        "variables": [{"name": "count", "expression": "size(object.spec.containers)"}, {"name": "max", "expression": "int(params.data.max)"}],
        "validations": [
            {"expression": "variables.count <= variables.max", "messageExpression": "'at most ' + string(variables.max) + ' containers in ' + namespaceObject.metadata.name", "reason": "Forbidden"},
            {"expression": "request.userInfo.username != 'mallory'", "message": "not you"},
            {"expression": "authorizer.requestResource.check('create').allowed()"}]});
    f.create(&path("validatingadmissionpolicies"), "", object("ValidatingAdmissionPolicy", "small", policy))
        .await
        .unwrap();
    let more = json!({"paramRef": {"name": "limits", "parameterNotFoundAction": "Deny"}, "matchResources": {"namespaceSelector": {"matchLabels": {"env": "test"}}}});
    bind(&f, "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", "small", more).await;
    let many = |name: &str| {
        let container = |n: &str| json!({"name": n, "image": "i"});
        pod(name, json!({"spec": {"containers": [container("a"), container("b"), container("c")]}}))
    };
    f.create("pods", "n", pod("one", json!({}))).await.unwrap();
    let refused = f.create("pods", "n", many("three")).await;
    assert_eq!(
        said(&refused),
        "403 pods \"three\" is forbidden: ValidatingAdmissionPolicy 'small' with binding 'small-b' denied request: at most 2 containers in n"
    );
    let mut exempt = many("free");
    exempt["metadata"]["labels"] = json!({"exempt": ""});
    f.create("pods", "n", exempt).await.unwrap();
    let mallory = User::new("mallory", &["system:masters"]);
    let refused = f.ask(&mallory, Verb::Create, "pods", "n", "", pod("hers", json!({}))).await;
    assert_eq!(
        said(&refused),
        "422 pods \"hers\" is forbidden: ValidatingAdmissionPolicy 'small' with binding 'small-b' denied request: not you"
    );
    f.ask(&admin(), Verb::Delete, "configmaps", "n", "limits", Value::Null).await.unwrap();
    let refused = f.create("pods", "n", pod("two", json!({}))).await;
    assert!(
        said(&refused).contains(
            "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
        ),
        "{}",
        said(&refused)
    );
    let wrong = object(
        "ValidatingAdmissionPolicy",
        "wrong",
        json!({"matchConstraints": matching("", "pods"), "validations": [{"expression": "object.x +"}]}),
    );
    let refused = f.create(&path("validatingadmissionpolicies"), "", wrong).await;
    assert!(said(&refused).contains("spec.validations[0].expression: Invalid value: \"object.x +\": compilation failed: ERROR: <input>:1:11: Syntax error: mismatched input '<EOF>'"), "{}", said(&refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn warnings_and_failures() {
    let f = Fixture::start().await;
    f.namespace("n", Value::Null).await;
    let policy = json!({"matchConstraints": matching("", "configmaps"), "failurePolicy": "Ignore",
        "validations": [{"expression": "object.data.a == 'b'"}, {"expression": "object.data.missing == 'b'"}]});
    f.create(&path("validatingadmissionpolicies"), "", object("ValidatingAdmissionPolicy", "warns", policy))
        .await
        .unwrap();
    bind(
        &f,
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        "warns",
        json!({"validationActions": ["Warn", "Audit"]}),
    )
    .await;
    let (made, warned) =
        f.ask_warned(&admin(), Verb::Create, "configmaps", "n", "", config("c", json!({"a": "x"}))).await;
    made.unwrap();
    assert_eq!(
        warned,
        [
            "Validation failed for ValidatingAdmissionPolicy 'warns' with binding 'warns-b': failed expression: object.data.a == 'b'"
        ]
    );
    // Type checking tells of fields that the kind does not have.
    let policy = json!({"matchConstraints": matching("apps", "deployments"), "validations": [{"expression": "object.spec.replicas > '1' && object.spec.none"}]});
    f.create(&path("validatingadmissionpolicies"), "", object("ValidatingAdmissionPolicy", "typed", policy))
        .await
        .unwrap();
    let mut status = Value::Null;
    for _ in 0..200 {
        status = f
            .ask(&admin(), Verb::Get, &path("validatingadmissionpolicies"), "", "typed", Value::Null)
            .await
            .unwrap()["status"]
            .take();
        if status["observedGeneration"] == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let warning = &status["typeChecking"]["expressionWarnings"][0];
    assert_eq!(warning["fieldRef"], "spec.validations[0].expression", "{status}");
    let text = warning["warning"].as_str().unwrap();
    assert!(text.starts_with("apps/v1, Kind=Deployment: compilation failed: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'"), "{text}");
    assert!(text.contains("undefined field 'none'"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mutating() {
    let f = Fixture::start().await;
    f.namespace("n", Value::Null).await;
    let policy = json!({"matchConstraints": matching("", "pods"), "reinvocationPolicy": "Never",
        "matchConditions": [{"name": "c", "expression": "!object.spec.containers.exists(c, c.name == 'sidecar')"}],
        "mutations": [
            {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
                "Object{metadata: Object.metadata{labels: {'by': 'policy'}}, spec: Object.spec{containers: [Object.spec.containers{name: 'sidecar', image: 'side'}]}}"}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression":
                "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: 'c'}]"}}]});
    f.create(&path("mutatingadmissionpolicies"), "", object("MutatingAdmissionPolicy", "adds", policy)).await.unwrap();
    bind(&f, "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings", "adds", json!({})).await;
    let made = f.create("pods", "n", pod("one", json!({}))).await.unwrap();
    let names: Vec<&str> =
        made["spec"]["containers"].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
    assert_eq!(made["metadata"]["labels"], json!({"by": "policy"}), "the second mutation's condition no longer holds");
    assert!(names.contains(&"sidecar") && names.contains(&"c"), "{names:?}");
    let policy = json!({"matchConstraints": matching("", "configmaps"), "reinvocationPolicy": "IfNeeded", "mutations": [
        {"patchType": "JSONPatch", "jsonPatch": {"expression":
            "has(object.metadata.annotations) ? [JSONPatch{op: 'add', path: '/metadata/annotations/seen', value: 'yes'}] : [JSONPatch{op: 'add', path: '/metadata/annotations', value: {'seen': 'no'}}]"}},
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{data: Object.data{wrong: Object.other{}}}"}}]});
    f.create(&path("mutatingadmissionpolicies"), "", object("MutatingAdmissionPolicy", "notes", policy)).await.unwrap();
    bind(&f, "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings", "notes", json!({})).await;
    let refused = f.create("configmaps", "n", config("c", json!({}))).await;
    assert!(
        said(&refused).contains(
            "policy 'notes' with binding 'notes-b' denied request: type mismatch: unexpected type name \"Object.other\""
        ),
        "{}",
        said(&refused)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_rules() {
    let f = Fixture::start().await;
    f.namespace("n", Value::Null).await;
    let definition = |rule: &str| {
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "ranges.example.com"},
            "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "ranges", "kind": "Range"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "x-kubernetes-validations": [{"rule": rule, "message": "low over high"}],
                        "properties": {"low": {"type": "integer"}, "high": {"type": "integer"},
                            "name": {"type": "string", "maxLength": 20, "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "name is immutable"}]}}}}}}}]}})
    };
    let definitions = "apiextensions.k8s.io/v1/customresourcedefinitions";
    let refused = f.create(definitions, "", definition("self.low <= self.hihg")).await;
    assert!(said(&refused).contains("undefined field 'hihg'"), "{}", said(&refused));
    f.create(definitions, "", definition("self.low <= self.high")).await.unwrap();
    for _ in 0..200 {
        if f.server.catalog().find("example.com", "ranges").is_some() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let range = |low: i64, high: i64, name: &str| json!({"apiVersion": "example.com/v1", "kind": "Range", "metadata": {"name": "r"}, "spec": {"low": low, "high": high, "name": name}});
    let ranges = "example.com/v1/ranges";
    let refused = f.create(ranges, "n", range(3, 2, "a")).await;
    assert_eq!(said(&refused), "422 Range.example.com \"r\" is invalid: spec: Invalid value: low over high");
    let made = f.create(ranges, "n", range(1, 2, "a")).await.unwrap();
    let mut other = range(1, 2, "b");
    other["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"].clone();
    let refused = f.ask(&admin(), Verb::Update, ranges, "n", "r", other).await;
    assert_eq!(
        said(&refused),
        "422 Range.example.com \"r\" is invalid: spec.name: Invalid value: \"b\": name is immutable"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_conditions() {
    let f = Fixture::start().await;
    f.namespace("n", Value::Null).await;
    let hook = |condition: &str| {
        json!({"apiVersion": V1, "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "w"}, "webhooks": [{
            "name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 1,
            // Nobody listens there: whoever is asked is refused.
            "clientConfig": {"url": "https://127.0.0.1:1/"},
            "matchConditions": [{"name": "c", "expression": condition}],
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]}]})
    };
    let refused = f.create(&path("validatingwebhookconfigurations"), "", hook("object.metadata.name = 'x'")).await;
    assert!(said(&refused).contains("webhooks[0].matchConditions[0].expression: Invalid value"), "{}", said(&refused));
    f.create(&path("validatingwebhookconfigurations"), "", hook("object.metadata.name.startsWith('asked')"))
        .await
        .unwrap();
    f.create("configmaps", "n", config("free", json!({}))).await.unwrap();
    let refused = f.create("configmaps", "n", config("asked", json!({}))).await;
    assert!(said(&refused).contains("failed calling webhook \"a.b.c\""), "{}", said(&refused));
}
