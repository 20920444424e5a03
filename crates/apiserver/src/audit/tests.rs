//! The whole way: a server under a policy, what is asked of it, and the lines that come of it.

use std::sync::Arc;

use meta::{Gvr, Options, Reply, Request, Value, Verb};
use serde_json::json;

use super::policy::Policy;
use super::sink::Overflow;
use super::{Audit, log};
use crate::authn::User;
use crate::testing::{Fixture, admin, merge, pod};

struct Audited {
    fixture: Fixture,
    audit: Arc<Audit>,
    path: std::path::PathBuf,
    read: usize,
}

impl Audited {
    async fn under(rules: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let policy = Policy::parse(format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}").as_bytes()).unwrap();
        let sink = log::open(log::Options { path: path.clone(), ..Default::default() }, Overflow::Block).unwrap();
        let audit = Audit::new(policy, vec![sink]);
        let fixture = Fixture::audited(dir, audit.clone()).await;
        let labels =
            json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/audit": "restricted"});
        fixture.namespace("n", labels).await;
        Self { fixture, audit, path, read: 0 }
    }

    async fn call(&self, user: &User, request: Request) -> Result<Reply, meta::Status> {
        self.fixture.server.call_within(&Arc::new(user.clone()), "test/1.0", request).await
    }

    /// What was told since the last look.
    async fn told(&mut self) -> Vec<Value> {
        // A watch tells of its end from a task of its own.
        tokio::task::yield_now().await;
        self.audit.flush().await;
        let text = std::fs::read_to_string(&self.path).unwrap();
        let all: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let new = all[self.read..].to_vec();
        self.read = all.len();
        new
    }
}

fn request(verb: Verb, plural: &str, name: &str) -> Request {
    Request::new(verb, Gvr::new("", "v1", plural), "n", name)
}

/// Takes out what no test can know.
fn settled(mut event: Value) -> Value {
    let map = event.as_object_mut().unwrap();
    for field in ["auditID", "requestReceivedTimestamp", "stageTimestamp", "apiVersion", "kind", "user", "sourceIPs"] {
        assert!(map.remove(field).is_some(), "{field}");
    }
    map.remove("userAgent");
    event
}

#[tokio::test]
async fn each_level_tells_what_it_says() {
    let mut audited = Audited::under(
        "omitStages: [RequestReceived]
rules:
- {level: RequestResponse, resources: [{resources: [configmaps]}], omitManagedFields: true}
- {level: Request, resources: [{resources: [pods]}]}
- {level: Metadata}
",
    )
    .await;
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    audited.call(&admin(), request(Verb::Create, "configmaps", "").json(body.clone())).await.unwrap();
    let told = settled(audited.told().await.remove(0));
    let uid = told["responseObject"]["metadata"]["uid"].clone();
    assert!(uid.is_string());
    let mut expect = json!({
        "level": "RequestResponse", "stage": "ResponseComplete", "verb": "create",
        "requestURI": "/api/v1/namespaces/n/configmaps",
        "objectRef": {"resource": "configmaps", "namespace": "n", "name": "a", "apiVersion": "v1"},
        "responseStatus": {"metadata": {}, "code": 201},
        "requestObject": body, "responseObject": told["responseObject"],
        "annotations": {"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": ""},
    });
    assert_eq!(told, expect);
    assert!(told["responseObject"]["metadata"].get("managedFields").is_none());

    // A refusal is told with its words, a patch as it was sent.
    let patch = json!({"metadata": {"labels": {"a": "b"}}});
    let mut asked = request(Verb::Patch, "configmaps", "none");
    asked.body = meta::RequestBody::Value { content_type: "application/merge-patch+json", value: patch.clone() };
    assert!(audited.call(&admin(), asked).await.is_err());
    let told = settled(audited.told().await.remove(0));
    assert_eq!(told["requestObject"], patch);
    assert_eq!(told["responseStatus"]["reason"], "NotFound");
    assert_eq!(told["responseObject"]["message"], "configmaps \"none\" not found");

    // Request: with defaults and without the answer.
    audited.call(&admin(), request(Verb::Create, "pods", "").json(pod("p", json!({})))).await.unwrap();
    let told = settled(audited.told().await.remove(0));
    assert_eq!(told["requestObject"]["spec"]["restartPolicy"], "Always");
    assert_eq!(told["annotations"]["pod-security.kubernetes.io/enforce-policy"], "baseline:latest");
    let why = told["annotations"]["pod-security.kubernetes.io/audit-violations"].as_str().unwrap();
    assert!(why.starts_with("would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation"), "{why}");
    assert!(told.get("responseObject").is_none());

    // Metadata: names alone, and who was refused why.
    assert!(audited.call(&User::new("u", &[]), request(Verb::Get, "secrets", "s")).await.is_err());
    let told = settled(audited.told().await.remove(0));
    expect = json!({
        "level": "Metadata", "stage": "ResponseComplete", "verb": "get",
        "requestURI": "/api/v1/namespaces/n/secrets/s",
        "objectRef": {"resource": "secrets", "namespace": "n", "name": "s", "apiVersion": "v1"},
        "responseStatus": {"metadata": {}, "code": 403, "status": "Failure", "reason": "Forbidden",
            "details": {"name": "s", "kind": "secrets"},
            "message": "secrets \"s\" is forbidden: User \"u\" cannot get resource \"secrets\" in API group \"\" in the namespace \"n\""},
        "annotations": {"authorization.k8s.io/decision": "forbid", "authorization.k8s.io/reason": ""},
    });
    assert_eq!(told, expect);
}

#[tokio::test]
async fn a_watch_is_told_when_it_begins_and_when_it_ends() {
    let mut audited = Audited::under("rules: [{level: Metadata, verbs: [watch]}]").await;
    let mut asked = request(Verb::Watch, "pods", "");
    asked.options = Options { timeout_seconds: Some(60), ..Options::default() };
    let watch = audited.call(&admin(), asked).await.unwrap();
    let stages = |events: Vec<Value>| -> Vec<String> {
        events.iter().map(|e| e["stage"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(stages(audited.told().await), ["RequestReceived", "ResponseStarted"]);
    drop(watch);
    assert_eq!(stages(audited.told().await), ["ResponseComplete"]);
    audited.call(&admin(), request(Verb::List, "pods", "")).await.unwrap();
    assert!(audited.told().await.is_empty());
    let levels: Vec<u64> = audited.audit.levels().map(|(_, count)| count).collect();
    assert_eq!((levels[1], audited.audit.events()), (1, 3));
}

#[tokio::test]
async fn policies_annotate() {
    let mut audited = Audited::under(
        "omitStages: [RequestReceived]\nrules: [{level: Metadata, resources: [{resources: [configmaps]}]}]",
    )
    .await;
    let kind = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let rules = json!({"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]});
    let policy = kind(
        "ValidatingAdmissionPolicy",
        "p.example",
        json!({
            "matchConstraints": rules, "failurePolicy": "Fail",
            "validations": [{"expression": "true"}, {"expression": "object.metadata.name != 'bad'", "message": "bad name"}],
            "auditAnnotations": [{"key": "name", "valueExpression": "'it is ' + object.metadata.name"}],
        }),
    );
    let mut binding = kind(
        "ValidatingAdmissionPolicyBinding",
        "b",
        json!({"policyName": "p.example", "validationActions": ["Audit"]}),
    );
    merge(&mut binding, json!({"metadata": {"labels": {"a": "b"}}}));
    let group = "admissionregistration.k8s.io/v1";
    audited.fixture.create(&format!("{group}/validatingadmissionpolicies"), "", policy).await.unwrap();
    audited.fixture.create(&format!("{group}/validatingadmissionpolicybindings"), "", binding).await.unwrap();
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bad"}});
    audited.call(&admin(), request(Verb::Create, "configmaps", "").json(body)).await.unwrap();
    let told = audited.told().await.remove(0);
    assert_eq!(told["annotations"]["p.example/name"], "it is bad");
    let failure = &told["annotations"]["validation.policy.admission.k8s.io/validation_failure"];
    let failure: Value = serde_json::from_str(failure.as_str().unwrap()).unwrap();
    let expect = json!([{"message": "bad name", "policy": "p.example", "binding": "b", "expressionIndex": 1, "validationActions": ["Audit"]}]);
    assert_eq!(failure, expect);
}
