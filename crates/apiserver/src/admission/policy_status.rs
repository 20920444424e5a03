//! The status of ValidatingAdmissionPolicies: what type checking says of their expressions.
//!
//! Follows upstream's type checker: expressions are dynamic when they run, but where the rules of a policy name kinds whose
//! schemas are known, each is also checked against those, and what would not fit is a warning in the status. Nothing
//! here changes what a policy does.

use std::sync::Arc;

use cel::{Decl, Provider, Structs, Type};
use meta::schema::{Scalar, Shape, View};
use meta::{Gvk, Object, Request, Status, Value, Verb};
use resources::validate::expressions::{Purpose, Scope};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::policy_match::GROUP;
use super::policy_validate::variables;
use crate::bootstrap::loopback;
use crate::following::Following;
use crate::pipeline::Target;
use crate::pipeline::write::Change;
use crate::server::ApiServer;

const PLURAL: &str = "validatingadmissionpolicies";
/// Kinds one policy is checked against, as upstream.
const MAX_KINDS: usize = 10;

/// Structs of built-in kinds by their OpenAPI names, and those of custom kinds.
struct Kinds {
    custom: Structs,
}

fn ty(view: View<'_>) -> Type {
    match view.shape() {
        Shape::Struct(s) if s.name.is_empty() => Type::Dyn,
        Shape::Struct(s) => Type::Struct(s.name.clone()),
        Shape::Map { .. } => Type::map(Type::String, view.child("").map_or(Type::Dyn, ty)),
        Shape::List { .. } => Type::list(view.item().map_or(Type::Dyn, ty)),
        Shape::Scalar(scalar) => match scalar {
            Scalar::String | Scalar::Duration => Type::String,
            Scalar::Boolean => Type::Bool,
            Scalar::Int32 | Scalar::Int64 | Scalar::Uint32 | Scalar::Uint64 => Type::Int,
            Scalar::Float32 | Scalar::Float64 => Type::Double,
            Scalar::Bytes => Type::Bytes,
            Scalar::Time | Scalar::MicroTime => Type::Timestamp,
            _ => Type::Dyn,
        },
    }
}

impl Provider for Kinds {
    fn field(&self, name: &str, field: &str) -> Option<Type> {
        let Some(view) = meta::schema::builtin().named(name) else { return self.custom.field(name, field) };
        let Shape::Struct(s) = view.shape() else { return None };
        let found = s.fields.iter().find(|f| cel::decl::escape(&f.name).as_deref() == Some(field));
        found.map(|f| ty(view.of(f)))
    }
}

/// Kinds that a policy's rules name, each with its type.
fn kinds(server: &ApiServer, spec: &Value) -> Vec<(Gvk, Type, Option<Arc<Decl>>)> {
    let catalog = server.catalog();
    let mut found: Vec<(Gvk, Type, Option<Arc<Decl>>)> = Vec::new();
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect()
    };
    for rule in spec["matchConstraints"]["resourceRules"].as_array().into_iter().flatten() {
        let (groups, versions, plurals) =
            (texts(&rule["apiGroups"]), texts(&rule["apiVersions"]), texts(&rule["resources"]));
        // Wildcards name no kind in particular.
        if groups.iter().chain(&versions).any(|text| text == "*") {
            continue;
        }
        for served in catalog.kinds() {
            let resource = &served.resource;
            if !groups.iter().any(|g| **g == *resource.group) || !plurals.iter().any(|p| **p == *resource.plural) {
                continue;
            }
            for version in resource.versions.iter().filter(|v| v.served && versions.iter().any(|w| **w == *v.name)) {
                let gvk = Gvk::new(&resource.group, &version.name, &resource.kind);
                let decl =
                    version.published.as_deref().filter(|_| resource.custom).and_then(|p| Decl::of(p, true, &gvk.kind));
                let ty = decl.as_ref().map_or_else(|| ty(version.schema.root()), |decl| decl.ty());
                if found.len() < MAX_KINDS && !found.iter().any(|(g, ..)| *g == gvk) {
                    found.push((gvk, ty, decl));
                }
            }
        }
    }
    found.sort_by(|a, b| (&a.0.group, &a.0.version, &a.0.kind).cmp(&(&b.0.group, &b.0.version, &b.0.kind)));
    found
}

/// The warnings about a policy's expressions.
fn warnings(server: &ApiServer, spec: &Value) -> Vec<Value> {
    let kinds = kinds(server, spec);
    let mut out = Vec::new();
    for (at, validation) in spec["validations"].as_array().into_iter().flatten().enumerate() {
        for field in ["expression", "messageExpression"] {
            let text = validation[field].as_str().unwrap_or_default();
            if text.is_empty() {
                continue;
            }
            let mut said = Vec::new();
            for (gvk, ty, decl) in &kinds {
                let known = Arc::new(Kinds { custom: Structs::of(decl.as_deref()) });
                let mut scope = Scope::policy(spec["paramKind"].is_object(), false).typed(ty.clone(), Type::Dyn, known);
                variables(&mut scope, spec);
                // Any type will do: what it must evaluate to was checked when it was written.
                if let Err(why) = scope.compile(text, Purpose::Variable) {
                    let version = if gvk.group.is_empty() {
                        format!("/{}", gvk.version)
                    } else {
                        format!("{}/{}", gvk.group, gvk.version)
                    };
                    said.push(format!("{version}, Kind={}: {why}\n", gvk.kind));
                }
            }
            if !said.is_empty() {
                let field = format!("spec.validations[{at}].{field}");
                out.push(json!({"fieldRef": field, "warning": said.join("\n")}));
            }
        }
    }
    out
}

/// Keeps the status of all policies, until `cancel`.
pub async fn run(server: Arc<ApiServer>, cancel: CancellationToken) {
    let mut policies = Following::new(&server, GROUP, PLURAL);
    while let Some(Some(changed)) = cancel.run_until_cancelled(policies.next()).await {
        for policy in &changed {
            take(&server, policy).await;
        }
    }
}

async fn take(server: &Arc<ApiServer>, object: &Arc<Object>) {
    if let Err(status) = observe(server, object).await {
        tracing::warn!(policy = %object.meta.name, %status, "type checking of a policy");
    }
}

async fn observe(server: &Arc<ApiServer>, object: &Arc<Object>) -> Result<(), Status> {
    let policy = object.value().map_err(Status::internal)?;
    let generation = &policy["metadata"]["generation"];
    if policy["status"]["observedGeneration"] == *generation {
        return Ok(());
    }
    let warnings = warnings(server, &policy["spec"]);
    let update = |current: &mut Value| {
        if current["metadata"]["generation"] == *generation {
            let mut checking = json!({});
            if !warnings.is_empty() {
                checking["expressionWarnings"] = warnings.clone().into();
            }
            if !current["status"].is_object() {
                current["status"] = json!({});
            }
            current["status"]["observedGeneration"] = generation.clone();
            current["status"]["typeChecking"] = checking;
        }
        Ok(())
    };
    let catalog = server.catalog();
    let served = catalog.find(GROUP, PLURAL).ok_or_else(Status::unknown_path)?;
    let version = served.resource.storage_version();
    let request = Request::new(Verb::Update, served.resource.gvr(&version.name), "", &object.meta.name);
    let request = request.subresource("status");
    let caller = loopback();
    match server.change(Target { caller: &caller, served, version, request: &request }, Change::Server(&update)).await {
        Err(status) if !status.is_not_found() => Err(status),
        _ => Ok(()),
    }
}
