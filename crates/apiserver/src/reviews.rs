//! Kinds that are asked, not stored: token and access reviews, bindings, component statuses.

use meta::{FieldError, FieldPath, Reply, Status, Value};
use serde_json::json;

use crate::authn::User;
use crate::authz::chain::Authorizer;
use crate::authz::rbac::Rule;
use crate::authz::{self, Attributes, Decision};
use crate::pipeline::{Target, body};
use crate::server::ApiServer;

/// Answers the POST of a review.
pub async fn create(server: &ApiServer, target: Target<'_>) -> Result<Reply, Status> {
    let resource = &target.served.resource;
    if &*resource.plural == "bindings" {
        return crate::subresource::binding::bind_by_name(server, target).await;
    }
    let mut review = body::decode_object(server, &target, &target.request.body)?;
    let caller = &target.caller.user;
    let spec = review["spec"].clone();
    let plural = &*resource.plural;
    if plural.ends_with("subjectaccessreviews") {
        let errors = errors_of(plural, &target.request.namespace, &review["metadata"], &spec);
        if !errors.is_empty() {
            // Upstream does not name the kind of a review that is wrong.
            return Err(Status::invalid("authorization.k8s.io", "", "", &errors));
        }
    }
    review["status"] = match &*resource.plural {
        "tokenreviews" => token_review(server, &spec).await?,
        "selfsubjectreviews" => json!({"userInfo": user_info(caller)}),
        "selfsubjectaccessreviews" => access(server, caller, &spec)?,
        "subjectaccessreviews" | "localsubjectaccessreviews" => access(server, &subject(&spec), &spec)?,
        "selfsubjectrulesreviews" => match spec["namespace"].as_str().unwrap_or_default() {
            "" => return Err(Status::bad_request("no namespace on request")),
            namespace => rules(server, caller, namespace),
        },
        _ => return Err(target.not_allowed()),
    };
    if !review["metadata"].is_object() {
        review["metadata"] = json!({});
    }
    Ok(Reply::Value { value: review, code: 201 })
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.clone().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

async fn token_review(server: &ApiServer, spec: &Value) -> Result<Value, Status> {
    let token = spec["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences: Vec<String> = strings(&spec["audiences"]);
    Ok(match server.verify_token(token, &audiences).await {
        Ok(verified) => {
            let mut user = verified.user;
            user.groups.push(crate::authn::AUTHENTICATED.into());
            json!({"authenticated": true, "user": user_info(&user), "audiences": verified.audiences})
        }
        Err(why) => {
            let said =
                if why.contains("invalid bearer token") { why } else { format!("[invalid bearer token, {why}]") };
            json!({"user": {}, "error": said})
        }
    })
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
}

fn subject(spec: &Value) -> User {
    User {
        name: spec["user"].as_str().unwrap_or_default().into(),
        uid: spec["uid"].as_str().unwrap_or_default().into(),
        groups: strings(&spec["groups"]),
        extra: spec["extra"]
            .as_object()
            .map(|e| e.iter().map(|(k, v)| (k.clone(), strings(v))).collect())
            .unwrap_or_default(),
    }
}

/// What is wrong with a review of what somebody may do.
fn errors_of(plural: &str, namespace: &str, metadata: &Value, spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let root = FieldPath::new("spec");
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let not_path = root.child("nonResourceAttributes");
    if resource.is_object() && path.is_object() {
        let why = "cannot be specified in combination with resourceAttributes";
        errors.push(FieldError::invalid(&not_path, path.clone(), why));
    }
    if !resource.is_object() && !path.is_object() {
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.push(FieldError::invalid(&root.child("resourceAttributes"), "null", why));
    }
    if plural != "selfsubjectaccessreviews"
        && spec["user"].as_str().unwrap_or_default().is_empty()
        && strings(&spec["groups"]).is_empty()
    {
        errors.push(FieldError::invalid(&root.child("user"), "", "at least one of user or group must be specified"));
    }
    let local = plural == "localsubjectaccessreviews";
    let says = |(field, value): (&String, &Value)| {
        !(field == "managedFields" || field == "namespace" || value.is_null() || *value == "")
    };
    if metadata.as_object().is_some_and(|metadata| metadata.iter().any(says)) {
        let why = if local { "must be empty except for namespace" } else { "must be empty" };
        errors.push(FieldError::invalid(&FieldPath::new("metadata"), metadata.clone(), why));
    }
    let said = resource["namespace"].as_str().unwrap_or_default();
    if local && resource.is_object() && said != namespace {
        let why = "must match metadata.namespace";
        errors.push(FieldError::invalid(&root.child("resourceAttributes").child("namespace"), said, why));
    }
    if local && path.is_object() {
        errors.push(FieldError::invalid(&not_path, path.clone(), "disallowed on this kind of request"));
    }
    errors
}

fn access(server: &ApiServer, user: &User, spec: &Value) -> Result<Value, Status> {
    let text = |at: &'static str, field: &str| spec[at][field].as_str().unwrap_or_default().to_string();
    let resource = spec["resourceAttributes"].is_object();
    let decision = if resource {
        let t = |field| text("resourceAttributes", field);
        let (verb, group, version, plural, sub, ns, name) =
            (t("verb"), t("group"), t("version"), t("resource"), t("subresource"), t("namespace"), t("name"));
        authz::decide(
            server,
            user,
            &Attributes {
                verb: &verb,
                group: &group,
                version: &version,
                resource: &plural,
                subresource: &sub,
                namespace: &ns,
                name: &name,
                ..Attributes::default()
            },
        )
    } else {
        let (verb, path) = (text("nonResourceAttributes", "verb"), text("nonResourceAttributes", "path"));
        authz::decide(server, user, &Attributes::path(&verb, &path))
    };
    let denied = matches!(decision, Decision::Deny(_));
    let (allowed, reason) = match decision {
        Decision::Allow(reason) => (true, reason),
        Decision::Deny(reason) | Decision::NoOpinion(reason) => (false, reason),
    };
    let mut status = json!({"allowed": allowed});
    if denied {
        status["denied"] = true.into();
    }
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    Ok(status)
}

fn rules(server: &ApiServer, user: &User, namespace: &str) -> Value {
    let (mut resource, mut paths) = (Vec::new(), Vec::new());
    let mut push = |rule: Rule| {
        if rule.non_resource_urls.is_empty() {
            let mut out = json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
            if !rule.resource_names.is_empty() {
                out["resourceNames"] = json!(rule.resource_names);
            }
            resource.push(out);
        } else {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
    };
    let everything = || {
        let all = || vec!["*".to_string()];
        let resources = Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() };
        vec![resources, Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() }]
    };
    let chain = server.authorization().chain();
    if user.in_group(crate::authn::MASTERS) {
        everything().into_iter().for_each(&mut push);
    }
    for member in &chain.0 {
        let rules = match &member.authorizer {
            Authorizer::Rbac => server.rbac().rules_of(server, user, namespace),
            Authorizer::Abac(policies) => policies.rules_of(user, namespace),
            Authorizer::AlwaysAllow => everything(),
            Authorizer::Node | Authorizer::AlwaysDeny | Authorizer::Webhook(_) => Vec::new(),
        };
        rules.into_iter().for_each(&mut push);
    }
    // Others say yes or no to one question, and not what they would say yes to.
    let incomplete = chain.asks_others();
    let mut rules = json!({"resourceRules": resource, "nonResourceRules": paths, "incomplete": incomplete});
    if incomplete {
        rules["evaluationError"] = "webhook authorizer does not support user rule resolution".into();
    }
    rules
}

/// `componentstatuses`: the store and the server itself are known to be well, since they answer.
pub async fn component_statuses(server: &ApiServer, target: Target<'_>) -> Result<Reply, Status> {
    server.await_newest().await?;
    let one = |name: &str| {
        let condition = json!({"type": "Healthy", "status": "True", "message": "ok"});
        json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name}, "conditions": [condition]})
    };
    let name = &*target.request.name;
    if name.is_empty() {
        let list = json!({"kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": [one("etcd-0")]});
        return Ok(Reply::Value { value: list, code: 200 });
    }
    if name == "etcd-0" { Ok(Reply::Value { value: one(name), code: 200 }) } else { Err(target.not_found()) }
}
