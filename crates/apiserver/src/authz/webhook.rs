//! Another server that decides: asked with a SubjectAccessReview, whose answers are kept for a while.
//!
//! Follows `k8s.io/apiserver/plugin/pkg/authorizer/webhook`: match conditions say whether it is asked at all, a failure to ask
//! counts as its failure policy says.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cel::decl::{ListKind, Shape};
use cel::{Decl, Env, PER_CALL_LIMIT, Program, Structs, Type, Value as Cel};
use client::remote::Post;
use meta::selector::Operator;
use meta::{FieldSelector, LabelSelector};
use serde_json::{Value, json};
use std::sync::Arc;

use super::{Attributes, Decision};
use crate::authn::User;
use crate::instruments::{self, Outcome};

/// Answers kept, as upstream.
const MAX_KEPT: usize = 8192;
/// Requests longer than this are not kept: whoever makes them could fill the memory.
const MAX_KEPT_BYTES: usize = 10_000;
const TRIES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// How it is asked.
#[derive(Clone, Debug)]
pub struct Options {
    pub name: String,
    /// Of SubjectAccessReview: `v1` or `v1beta1`.
    pub version: String,
    pub timeout: Duration,
    /// How long a yes is kept; none are without.
    pub keep_allowed: Option<Duration>,
    pub keep_refused: Option<Duration>,
    /// A webhook that cannot be asked says no, instead of nothing.
    pub denies_on_error: bool,
}

/// See the module.
pub struct Webhook {
    pub options: Options,
    post: Post,
    conditions: Vec<Condition>,
    kept: Mutex<HashMap<String, (Instant, Decision)>>,
}

/// An expression over the request.
#[derive(Debug)]
pub struct Condition {
    text: String,
    program: Program,
}

/// The shape of `request`.
fn request_decl() -> &'static Arc<Decl> {
    static REQUEST: OnceLock<Arc<Decl>> = OnceLock::new();
    REQUEST.get_or_init(|| {
        let text = || Decl::leaf(Shape::String);
        let list = |item| Decl::leaf(Shape::List { item, kind: ListKind::Atomic });
        let requirement = || {
            Decl::with_fields(
                "kubernetes.SelectorRequirement",
                [("key", text()), ("operator", text()), ("values", list(text()))],
            )
        };
        let selector = |name| Decl::with_fields(name, [("rawSelector", text()), ("requirements", list(requirement()))]);
        let resource = Decl::with_fields(
            "kubernetes.ResourceAttributes",
            [
                ("namespace", text()),
                ("verb", text()),
                ("group", text()),
                ("version", text()),
                ("resource", text()),
                ("subresource", text()),
                ("name", text()),
                ("fieldSelector", selector("kubernetes.FieldSelectorAttributes")),
                ("labelSelector", selector("kubernetes.LabelSelectorAttributes")),
            ],
        );
        let path = Decl::with_fields("kubernetes.NonResourceAttributes", [("path", text()), ("verb", text())]);
        Decl::with_fields(
            "kubernetes.SubjectAccessReviewSpec",
            [
                ("resourceAttributes", resource),
                ("nonResourceAttributes", path),
                ("user", text()),
                ("groups", list(text())),
                ("extra", Decl::leaf(Shape::Map { value: list(text()) })),
                ("uid", text()),
            ],
        )
    })
}

impl Condition {
    pub fn compile(text: &str) -> Result<Self, String> {
        let known = Structs::of([&**request_decl()]);
        let env = Env::new(&known).var("request", request_decl().ty());
        let program = env.compile(text).map_err(|issues| format!("compilation failed: {issues}"))?;
        match program.output() {
            Type::Bool => Ok(Self { text: text.into(), program }),
            other => Err(format!("must evaluate to bool but got {}", other.full())),
        }
    }

    fn holds(&self, request: &Value) -> Result<bool, String> {
        let failed = |why: String| format!("cel evaluation error: expression '{}' resulted in error: {why}", self.text);
        let seen = Cel::of(request, request_decl()).map_err(|e| failed(e.to_string()))?;
        let vars = &[("request", seen)][..];
        match self.program.eval(&vars, PER_CALL_LIMIT).0 {
            Ok(Cel::Bool(holds)) => Ok(holds),
            Ok(_) => Err(failed("it is no bool".into())),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// Whether all hold; one that does not is enough, whatever fails beside it.
fn all_hold(conditions: &[Condition], request: &Value) -> Result<bool, String> {
    let mut failed = Vec::new();
    for condition in conditions {
        match condition.holds(request) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(why) => failed.push(why),
        }
    }
    match &failed[..] {
        [] => Ok(true),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

/// `spec` of the review.
fn spec(user: &User, a: &Attributes<'_>) -> Value {
    let mut spec = json!({});
    let mut put = |field: &str, value: Value| {
        let empty = value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty);
        if !empty {
            spec[field] = value;
        }
    };
    put("user", (&*user.name).into());
    put("uid", (&*user.uid).into());
    put("groups", json!(user.groups));
    if !user.extra.is_empty() {
        put("extra", json!(user.extra));
    }
    if let Some(path) = a.path {
        put("nonResourceAttributes", json!({"path": path, "verb": a.verb}));
        return spec;
    }
    let mut resource = json!({});
    for (field, value) in [
        ("namespace", a.namespace),
        ("verb", a.verb),
        ("group", a.group),
        ("version", a.version),
        ("resource", a.resource),
        ("subresource", a.subresource),
        ("name", a.name),
    ] {
        if !value.is_empty() {
            resource[field] = value.into();
        }
    }
    let fields = FieldSelector::parse(a.field_selector).unwrap_or_default();
    let fields: Vec<Value> = fields
        .terms
        .iter()
        .map(|(key, value, equal)| json!({"key": key, "operator": if *equal { "In" } else { "NotIn" }, "values": [value]}))
        .collect();
    if !fields.is_empty() {
        resource["fieldSelector"] = json!({"requirements": fields});
    }
    let labels = LabelSelector::parse(a.label_selector).unwrap_or_default();
    let labels: Vec<Value> = labels.requirements.iter().filter_map(label_requirement).collect();
    if !labels.is_empty() {
        resource["labelSelector"] = json!({"requirements": labels});
    }
    put("resourceAttributes", resource);
    spec
}

fn label_requirement(of: &meta::selector::Requirement) -> Option<Value> {
    let operator = match of.operator {
        Operator::In => "In",
        Operator::NotIn => "NotIn",
        Operator::Exists => "Exists",
        Operator::DoesNotExist => "DoesNotExist",
        // Reviews have no words for these.
        Operator::GreaterThan(_) | Operator::LessThan(_) => return None,
    };
    let mut out = json!({"key": of.key, "operator": operator});
    if !of.values.is_empty() {
        out["values"] = json!(of.values);
    }
    Some(out)
}

/// The same as conditions see it: all texts are there.
fn seen(spec: &Value) -> Value {
    let text = |at: &Value, field: &str| at[field].as_str().unwrap_or_default().to_string();
    let mut seen = json!({
        "user": text(spec, "user"),
        "uid": text(spec, "uid"),
        "groups": spec.get("groups").cloned().unwrap_or_else(|| json!([])),
        "extra": spec.get("extra").cloned().unwrap_or_else(|| json!({})),
    });
    if let Some(path) = spec.get("nonResourceAttributes") {
        seen["nonResourceAttributes"] = path.clone();
    }
    if let Some(resource) = spec.get("resourceAttributes") {
        let mut all = resource.clone();
        for field in ["namespace", "verb", "group", "version", "resource", "subresource", "name"] {
            all[field] = text(resource, field).into();
        }
        seen["resourceAttributes"] = all;
    }
    seen
}

fn decision_of(status: &Value) -> Decision {
    let reason = status["reason"].as_str().unwrap_or_default().to_string();
    match (status["denied"] == true, status["allowed"] == true) {
        (true, true) => Decision::Deny("webhook subject access review returned both allow and deny response".into()),
        (true, false) => Decision::Deny(reason),
        (false, true) => Decision::Allow(reason),
        (false, false) => Decision::NoOpinion(reason),
    }
}

impl Webhook {
    pub fn new(options: Options, post: Post, conditions: Vec<Condition>) -> Self {
        Self { options, post, conditions, kept: Mutex::default() }
    }

    fn on_error(&self) -> Decision {
        if self.options.denies_on_error { Decision::Deny(String::new()) } else { Decision::NoOpinion(String::new()) }
    }

    fn known(&self, key: &str) -> Option<Decision> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, decision) = kept.get(key)?;
        (Instant::now() < *until).then(|| decision.clone())
    }

    fn keep(&self, key: String, decision: &Decision) {
        let time = match decision {
            Decision::Allow(_) => self.options.keep_allowed,
            Decision::Deny(_) | Decision::NoOpinion(_) => self.options.keep_refused,
        };
        let Some(time) = time.filter(|_| key.len() <= MAX_KEPT_BYTES) else { return };
        let now = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, (until, _)| now < *until);
        }
        if kept.len() < MAX_KEPT {
            kept.insert(key, (now + time, decision.clone()));
        }
    }

    /// What it says of a request.
    pub async fn decide(&self, user: &User, attributes: &Attributes<'_>) -> Decision {
        let name = &*self.options.name;
        let spec = spec(user, attributes);
        if !self.conditions.is_empty() {
            match all_hold(&self.conditions, &seen(&spec)) {
                Ok(true) => {}
                Ok(false) => {
                    instruments::authorizer_excluded(name);
                    return Decision::NoOpinion(String::new());
                }
                Err(why) => {
                    tracing::warn!(authorizer = name, why, "match conditions of an authorizer");
                    instruments::authorizer_condition_failed(name);
                    return self.on_error();
                }
            }
        }
        let key = spec.to_string();
        if let Some(decision) = self.known(&key) {
            return decision;
        }
        let review = json!({
            "apiVersion": format!("authorization.k8s.io/{}", self.options.version),
            "kind": "SubjectAccessReview",
            "metadata": {},
            "spec": spec,
            "status": {"allowed": false},
        });
        let began = Instant::now();
        let asking = self.post.ask_patiently(&review, TRIES, FIRST_WAIT);
        let (asked, decision) = match tokio::time::timeout(self.options.timeout, asking).await {
            Ok(Ok(answer)) => (Outcome::Success, decision_of(&answer["status"])),
            Ok(Err(status)) => {
                tracing::error!(authorizer = name, why = status.message, "Failed to make webhook authorizer request");
                (Outcome::Error, self.on_error())
            }
            Err(_) => {
                tracing::error!(authorizer = name, "webhook authorizer request timed out");
                (Outcome::Timeout, self.on_error())
            }
        };
        instruments::authorizer_asked(name, asked, self.options.denies_on_error, began.elapsed());
        if matches!(asked, Outcome::Success) {
            self.keep(key, &decision);
        }
        decision
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(conditions: &[&str], user: &User, a: &Attributes<'_>) -> Result<bool, String> {
        let conditions: Vec<Condition> = conditions.iter().map(|c| Condition::compile(c).unwrap()).collect();
        all_hold(&conditions, &seen(&spec(user, a)))
    }

    #[test]
    fn reviews_say_what_is_asked() {
        let user = User { uid: "1".into(), ..User::new("jane", &["a"]) };
        let a = Attributes {
            verb: "list",
            version: "v1",
            resource: "pods",
            namespace: "n",
            field_selector: "spec.nodeName=x,status.phase!=Running",
            label_selector: "app in (a,b),!c",
            ..Attributes::default()
        };
        assert_eq!(
            spec(&user, &a),
            json!({"user": "jane", "uid": "1", "groups": ["a"], "resourceAttributes": {
                "namespace": "n", "verb": "list", "version": "v1", "resource": "pods",
                "fieldSelector": {"requirements": [
                    {"key": "spec.nodeName", "operator": "In", "values": ["x"]},
                    {"key": "status.phase", "operator": "NotIn", "values": ["Running"]}]},
                "labelSelector": {"requirements": [
                    {"key": "app", "operator": "In", "values": ["a", "b"]}, {"key": "c", "operator": "DoesNotExist"}]},
            }})
        );
        let path = spec(&user, &Attributes::path("get", "/version"));
        assert_eq!(path["nonResourceAttributes"], json!({"path": "/version", "verb": "get"}));
    }

    #[test]
    fn conditions_see_the_request() {
        let user = User::new("jane", &["dev"]);
        let pods = Attributes { verb: "get", resource: "pods", namespace: "n", ..Attributes::default() };
        let path = Attributes::path("get", "/version");
        for (conditions, a, expect) in [
            (vec!["has(request.resourceAttributes)"], &pods, Ok(true)),
            (vec!["has(request.resourceAttributes)"], &path, Ok(false)),
            (vec!["request.resourceAttributes.namespace == 'n'", "request.user != 'jane'"], &pods, Ok(false)),
            (vec!["request.resourceAttributes.group == ''", "'dev' in request.groups"], &pods, Ok(true)),
            (vec!["request.resourceAttributes.namespace == 'n'"], &path, Err(())),
            (vec!["request.resourceAttributes.namespace == 'n'", "request.user == ''"], &path, Ok(false)),
        ] {
            assert_eq!(hold(&conditions, &user, a).map_err(drop), expect, "{conditions:?}");
        }
        for (text, expect) in
            [("request.user", "must evaluate to bool but got string"), ("request.who == ''", "undefined field 'who'")]
        {
            let why = Condition::compile(text).unwrap_err();
            assert!(why.contains(expect), "{text}: {why}");
        }
    }

    #[test]
    fn answers_are_decisions() {
        for (status, expect) in [
            (json!({"allowed": true, "reason": "r"}), Decision::Allow("r".into())),
            (json!({"allowed": false}), Decision::NoOpinion(String::new())),
            (json!({"denied": true, "reason": "r"}), Decision::Deny("r".into())),
        ] {
            assert_eq!(decision_of(&status), expect);
        }
        assert!(matches!(decision_of(&json!({"allowed": true, "denied": true})), Decision::Deny(_)));
    }
}
