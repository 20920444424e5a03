//! MutatingAdmissionPolicy: changes that expressions make to what is written.
//!
//! Follows `k8s.io/apiserver/pkg/admission/plugin/policy/mutating`: a mutation is a configuration laid over the object as
//! server-side apply does, or a JSON patch. Policies run before mutating webhooks, and again with them.

use cel::Value as Cel;
use cel::value::{List, Object as CelObject};
use meta::schema::{ListKind, Shape, View};
use meta::status::Cause;
use meta::{Gvr, Reason, Status, Value};
use resources::validate::expressions::{Purpose, Scope};
use serde::Deserialize;

use super::Attributes;
use super::policy::{Asker, BUDGET, Conditions, Expression, Session};
use super::policy_match::{self, GROUP};
use super::policy_validate::{Seen, variables};
use crate::server::ApiServer;
use crate::webhook::admission::{Subject, settled};

enum Mutation {
    Apply(Expression),
    Patch(Expression),
}

/// A policy, compiled.
pub struct Policy {
    name: String,
    spec: Value,
    variables: Vec<(String, Expression)>,
    conditions: Conditions,
    mutations: Vec<Mutation>,
}

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = Value::deserialize(deserializer)?;
        let spec = object["spec"].take();
        let mut scope = Scope::policy(spec["paramKind"].is_object(), true);
        let variables = variables(&mut scope, &spec);
        let mutations = spec["mutations"].as_array().into_iter().flatten().map(|m| {
            if m["patchType"] == "JSONPatch" {
                Mutation::Patch(Expression::new(&scope, &m["jsonPatch"]["expression"], Purpose::JsonPatch))
            } else {
                let text = &m["applyConfiguration"]["expression"];
                Mutation::Apply(Expression::new(&scope, text, Purpose::ApplyConfiguration))
            }
        });
        Ok(Self {
            name: object["metadata"]["name"].as_str().unwrap_or_default().into(),
            conditions: Conditions::of(&scope, &spec["matchConditions"]),
            mutations: mutations.collect(),
            variables,
            spec,
        })
    }
}

/// One pass over the policies, or the second one for those that want it.
#[derive(Default)]
pub struct Round {
    second: bool,
    /// Which policy ran with which binding and parameter, and what it left.
    ran: Vec<(String, u64)>,
}

fn fingerprint(object: &Value) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    object.to_string().hash(&mut hasher);
    hasher.finish()
}

/// Whether there is any such policy.
pub fn any(server: &ApiServer) -> bool {
    server.has_any(GROUP, "mutatingadmissionpolicies")
}

impl Round {
    /// Another pass, over what others changed since.
    pub fn again(self) -> Self {
        Self { second: true, ..self }
    }

    /// Lets policies change a body in the storage version. Says whether any did.
    pub async fn run(
        &mut self,
        server: &ApiServer,
        a: &Attributes<'_>,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<bool, Status> {
        let policies = server.lookup_all(GROUP, "mutatingadmissionpolicies", "");
        if policies.is_empty() || policy_match::is_exempt(a.target.request) {
            return Ok(false);
        }
        let before = object.clone();
        let Some(subject) = Subject::of_write(server, a, &before) else { return Ok(false) };
        let mut failures = Vec::new();
        for policy in policies {
            let policy = policy.typed::<Policy>().map_err(Status::internal)?;
            let matched = policy_match::form(server, &subject, &policy.spec["matchConstraints"], Some(object), old);
            let outcome = match matched {
                Ok(None) => continue,
                Ok(Some(form)) => {
                    self.bindings(server, &subject, &policy, form, object, old, &mut failures).await?;
                    continue;
                }
                Err(status) => format!("failed to configure policy: {}", status.message),
            };
            if policy.spec["failurePolicy"] != "Ignore" {
                failures.push(format!("policy {:?} denied request: {outcome}", policy.name));
            }
        }
        if failures.is_empty() {
            return Ok(*object != before);
        }
        let resource = &subject.forms[0];
        let why = "admission request denied by policy";
        let mut status = Status::forbidden(&resource.group, &resource.resource, &subject.name, why);
        status.reason = Reason::Invalid;
        status.message = failures[0].clone();
        if let Some(details) = &mut status.details {
            details.causes.extend(failures.into_iter().map(|message| Cause { message, ..Cause::default() }));
        }
        Err(status)
    }

    #[allow(clippy::too_many_arguments)]
    async fn bindings(
        &mut self,
        server: &ApiServer,
        subject: &Subject<'_>,
        policy: &Policy,
        form: &Gvr,
        object: &mut Value,
        old: Option<&Value>,
        failures: &mut Vec<String>,
    ) -> Result<(), Status> {
        for binding in policy_match::bindings(server, "mutatingadmissionpolicybindings", &policy.name) {
            let (name, spec) = (binding["metadata"]["name"].as_str().unwrap_or_default(), &binding["spec"]);
            let mut fail = |why: String| {
                if policy.spec["failurePolicy"] != "Ignore" {
                    failures.push(format!("policy '{}' with binding '{name}' denied request: {why}", policy.name));
                }
            };
            let kind = &policy.spec["paramKind"];
            let params = match policy_match::bound(server, subject, kind, spec, Some(object), old).await {
                Ok(Some(params)) => params,
                Ok(None) => continue,
                Err(why) => {
                    fail(format!("failed to configure binding: {why}"));
                    continue;
                }
            };
            for param in params {
                let key = match &param {
                    Some(p) => format!("{}/{name}/{}/{}", policy.name, p.meta.namespace, p.meta.name),
                    None => format!("{}/{name}", policy.name),
                };
                let earlier = self.ran.iter().position(|(k, _)| *k == key);
                let wants = policy.spec["reinvocationPolicy"] == "IfNeeded"
                    && earlier.is_some_and(|e| self.ran[e].1 != fingerprint(object));
                if self.second && !wants {
                    continue;
                }
                let param = param.map(|p| p.value()).transpose().map_err(Status::internal)?;
                for mutation in &policy.mutations {
                    let seen = Seen::of(server, subject, form, Some(object), old).await?;
                    let asker = Asker { server, user: &subject.caller.user };
                    let row = subject.row_of(server, form);
                    let root = row.as_ref().and_then(|r| r.resource.version(&form.version)).map(|v| v.schema.root());
                    match changed(policy, mutation, &seen, &asker, param.as_ref(), root) {
                        Ok(Some(changed)) => *object = settled(server, subject, form, object, changed).await?,
                        Ok(None) => {}
                        Err(why) => fail(why),
                    }
                }
                match earlier {
                    Some(earlier) => self.ran[earlier].1 = fingerprint(object),
                    None => self.ran.push((key, fingerprint(object))),
                }
            }
        }
        Ok(())
    }
}

/// What a mutation makes of an object; `None` if the conditions do not hold or nothing is to change.
fn changed(
    policy: &Policy,
    mutation: &Mutation,
    seen: &Seen,
    asker: &Asker<'_>,
    params: Option<&Value>,
    root: Option<View<'_>>,
) -> Result<Option<Value>, String> {
    let inputs = seen.inputs(asker, params);
    let Some(object) = &seen.object else { return Ok(None) };
    if !policy.conditions.hold(&inputs, &policy.variables)? {
        return Ok(None);
    }
    let mut session = Session::new(&inputs, &policy.variables, BUDGET);
    match mutation {
        Mutation::Apply(expression) => {
            let value = session.eval(expression).map_err(|stop| stop.text())?;
            check_names(&value, "Object")?;
            let mut config = value.to_json().map_err(|e| e.to_string())?;
            for field in ["apiVersion", "kind"] {
                config[field] = object[field].clone();
            }
            let mut merged = object.clone();
            if let Some(root) = root {
                let mut whole = Vec::new();
                atomics(root, &config, "", &mut whole);
                if !whole.is_empty() {
                    return Err(format!(
                        "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
                        whole.join(", ")
                    ));
                }
                meta::apply::lay_over(root, &mut merged, &config).map_err(|errors| {
                    format!(
                        "error applying patch: failed to convert patch object to typed object: {}",
                        errors.join("\n")
                    )
                })?;
            } else {
                meta::patch::merge(&mut merged, &config).map_err(|e| e.to_string())?;
            }
            Ok(Some(merged))
        }
        Mutation::Patch(expression) => {
            let value = session.eval(expression).map_err(|stop| stop.text())?;
            let Cel::List(list) = value else {
                return Err("type mismatch: JSONPatchType.expression should evaluate to array".into());
            };
            let patch = operations(&list)?;
            match meta::patch::json(object.clone(), &patch) {
                Ok(changed) => Ok(Some(changed)),
                // A patch whose test fails is not applied, and that is all.
                Err(why) if why.to_string().contains("test failed") => Ok(None),
                Err(why) => Err(format!("JSON Patch: {why}")),
            }
        }
    }
}

fn operations(list: &List<'_>) -> Result<Value, String> {
    let mut out = Vec::new();
    for item in list.items().map_err(|e| e.to_string())? {
        let Cel::Object(CelObject::Made(_, fields)) = &item else {
            return Err("type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch".into());
        };
        let mut operation = serde_json::Map::new();
        for (name, value) in fields.iter() {
            if let Cel::Object(CelObject::Made(made, _)) = value {
                check_names(value, made)?;
            }
            let json = value.to_json().map_err(|e| {
                format!("JSONPath valueExpression evaluated to a type that could not marshal to JSON: {e}")
            })?;
            operation.insert(name.to_string(), json);
        }
        out.push(Value::Object(operation));
    }
    Ok(Value::Array(out))
}

/// `Object.spec{}` stands in the field `spec` of an `Object{}`, and nowhere else.
fn check_names(value: &Cel<'_>, path: &str) -> Result<(), String> {
    match value {
        Cel::Object(CelObject::Made(name, fields)) => {
            if **name != *path {
                return Err(format!(
                    "type mismatch: unexpected type name {:?}, expected {path:?}, which matches field name path from root Object type",
                    &**name
                ));
            }
            fields.iter().try_for_each(|(field, value)| check_names(value, &format!("{path}.{field}")))
        }
        Cel::List(list) => {
            for item in list.items().map_err(|e| e.to_string())? {
                check_names(&item, path)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What a configuration would replace as a whole, though it may only mean a part of it.
fn atomics(view: View<'_>, config: &Value, path: &str, found: &mut Vec<String>) {
    match (view.shape(), config) {
        (Shape::Struct(_) | Shape::Map { .. }, Value::Object(map)) => {
            if view.node().atomic {
                found.push(path.into());
            }
            for (name, value) in map {
                if let Some(inner) = view.child(name) {
                    atomics(inner, value, &format!("{path}.{name}"), found);
                }
            }
        }
        (Shape::List { kind, .. }, Value::Array(items)) => {
            if *kind == ListKind::Atomic {
                found.push(path.into());
            }
            if let Some(inner) = view.item() {
                for (at, item) in items.iter().enumerate() {
                    atomics(inner, item, &format!("{path}[{at}]"), found);
                }
            }
        }
        _ => {}
    }
}
