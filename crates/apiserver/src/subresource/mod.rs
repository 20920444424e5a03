//! Subresources that act: a POST of one object that changes or makes another.
//!
//! Streams and proxied calls are in [`connect`]; they are not answered with objects.

pub mod binding;
pub mod connect;
mod rewrite;
pub mod scale;
mod token;

use meta::{Reply, Status, Value, Verb};
use serde_json::json;

use crate::admission::{Attributes, Operation};
use crate::clock;
use crate::pipeline::delete::DeleteOptions;
use crate::pipeline::write::Change;
use crate::pipeline::{Target, body, metadata};
use crate::server::ApiServer;
use crate::webhook::admission::admit_body;

/// Serves a POST to an acting subresource.
pub async fn act(server: &ApiServer, target: Target<'_>) -> Result<Reply, Status> {
    let sub = target.served.resource.subresource(&target.request.subresource).ok_or_else(Status::unknown_path)?;
    let mut object = body::decode_options(&target.request.body, &sub.body.kind)?;
    let attributes = Attributes::new(&target, Operation::Create)?;
    admit_body(server, &attributes, sub.body.clone(), &mut object).await?;
    if &*target.request.subresource == "binding" {
        return binding::bind(server, target, &object).await;
    }
    let mut request = target.request.clone();
    request.body = meta::RequestBody::Value { content_type: "application/json", value: object };
    let target = Target { request: &request, ..target };
    match &*target.request.subresource {
        "eviction" => Box::pin(evict(server, target)).await,
        "token" => Box::pin(token::create(server, target)).await,
        _ => Err(Status::unknown_path()),
    }
}

fn created() -> Reply {
    let mut status = Status::success();
    status.code = 201;
    Reply::Value { value: status.to_value(), code: 201 }
}

/// Deletes a pod if its disruption budgets allow.
async fn evict(server: &ApiServer, target: Target<'_>) -> Result<Reply, Status> {
    let eviction = body::decode_options(&target.request.body, "Eviction")?;
    let name = metadata::text(&eviction, "name");
    if !name.is_empty() && name != target.request.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let pod =
        server.lookup("", "pods", &target.request.namespace, &target.request.name).ok_or_else(|| target.not_found())?;
    let body = pod.value().map_err(Status::internal)?;
    let finished = matches!(body["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"))
        || pod.meta.deletion_timestamp.is_some();
    let mut request = target.request.clone();
    request.subresource = String::new();
    request.verb = Verb::Delete;
    request.body = match eviction.get("deleteOptions").filter(|o| o.is_object()) {
        Some(options) => meta::RequestBody::Value { content_type: "application/json", value: options.clone() },
        None => meta::RequestBody::None,
    };
    let options = DeleteOptions::of(&request)?;
    let target = Target { request: &request, ..target };
    if !finished {
        spend_budget(server, &target, &pod).await?;
    }
    server.delete_object(target, &options).await?;
    Ok(created())
}

/// Takes one disruption from the pod's budget, or refuses with 429.
async fn spend_budget(server: &ApiServer, target: &Target<'_>, pod: &meta::Object) -> Result<(), Status> {
    let mut budgets = Vec::new();
    for budget in server.lookup_all("policy", "poddisruptionbudgets", &pod.meta.namespace) {
        let body = budget.value().map_err(Status::internal)?;
        let selector = meta::LabelSelector::from_value(&body["spec"]["selector"]).map_err(Status::internal)?;
        if selector.matches(&pod.meta.labels) {
            budgets.push((budget, body));
        }
    }
    let (budget, body) = match &budgets[..] {
        [] => return Ok(()),
        [one] => one,
        _ => {
            return Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    if target.dry_run()? {
        return Ok(());
    }
    let name = &budget.meta.name;
    let refuse = |why: String| {
        let cause = meta::Cause { reason: "DisruptionBudget".into(), message: why, field: String::new() };
        Err(Status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 0)
            .with_causes(vec![cause]))
    };
    let spend = |budget: &mut Value| {
        let generation = budget["metadata"]["generation"].as_i64().unwrap_or(0);
        if budget["status"]["observedGeneration"].as_i64().unwrap_or(0) < generation {
            return refuse(format!("The disruption budget {name} is still being processed by the server."));
        }
        let allowed = budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
        if allowed <= 0 {
            let status = &budget["status"];
            return refuse(format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                status["desiredHealthy"].as_i64().unwrap_or(0),
                status["currentHealthy"].as_i64().unwrap_or(0)
            ));
        }
        budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
        let disrupted = &mut budget["status"]["disruptedPods"];
        if !disrupted.is_object() {
            *disrupted = json!({});
        }
        disrupted[&*pod.meta.name] = clock::now().into();
        Ok(())
    };
    let catalog = server.catalog();
    let served = catalog.find("policy", "poddisruptionbudgets").ok_or_else(Status::unknown_path)?;
    let version = served.resource.storage_version();
    let request =
        meta::Request::new(Verb::Update, served.resource.gvr(&version.name), metadata::text(body, "namespace"), name)
            .subresource("status");
    server.change(Target { caller: target.caller, served, version, request: &request }, Change::Server(&spend)).await?;
    Ok(())
}
