//! Eviction: a pod is deleted if its disruption budget allows, and says that this is why.
//!
//! Follows upstream's eviction REST storage: a pod that does not run (any more) needs no budget's leave; one that runs but
//! is not ready may go without being counted, where enough others are ready or the budget's policy says so. What was
//! decided on one version of the pod is done to that version only. Disruptions are counted by the budget itself, in its
//! status, so that several servers never give one away twice.

use meta::{Cause, Object, Reply, Request, Status, Tree, Value, Verb};
use serde_json::json;

use crate::clock;
use crate::pipeline::delete::DeleteOptions;
use crate::pipeline::write::Change;
use crate::pipeline::{Target, body, metadata};
use crate::server::ApiServer;

/// Tries at a pod that others keep changing, as upstream.
const TRIES: usize = 20;
/// Pods a budget may have let go whose end the controller has not seen yet, as upstream.
const MOST_DISRUPTED: usize = 2000;
/// Seconds after which to ask again a budget that is behind its own specification.
const BUDGET_BEHIND: u32 = 10;

const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// Whether a pod may go, and on what that rests.
#[derive(Debug, PartialEq)]
enum Leave {
    /// Nobody asks, or a budget has counted it.
    Granted,
    /// As long as the pod is as it was looked at. With the name of the budget that did not count it, if one would.
    AsItIs(Option<String>),
}

pub async fn evict(server: &ApiServer, target: Target<'_>) -> Result<Reply, Status> {
    let eviction = body::decode_options(&target.request.body, "Eviction")?;
    let name = metadata::text(&eviction, "name");
    if name != target.request.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut request = target.request.clone();
    request.subresource = String::new();
    request.verb = Verb::Delete;
    request.body = match eviction.get("deleteOptions").filter(|o| o.is_object()) {
        Some(options) => meta::RequestBody::Value { content_type: "application/json", value: options.clone() },
        None => meta::RequestBody::None,
    };
    let asked = DeleteOptions { evicts: true, ..DeleteOptions::of(&request)? };
    let target = Target { request: &request, ..target };
    let mut refused = Status::conflict(target.group(), target.plural(), &request.name, metadata::MODIFIED);
    for _ in 0..TRIES {
        let pod = server.find("", "pods", &request.namespace, &request.name).await?;
        let pod = pod.ok_or_else(|| target.not_found())?;
        let leave = leave(server, &target, &pod, asked.dry()).await?;
        let mut options = asked.clone();
        if let Leave::AsItIs(_) = &leave
            && options.resource_version.is_none()
        {
            options.resource_version = Some(pod.resource_version.to_string());
        }
        match disrupt(server, target, options).await {
            Err(status) if status.is_conflict() && asked.resource_version.is_none() => match leave {
                Leave::AsItIs(None) => {
                    refused = status;
                    server.await_newest().await?;
                }
                // It may be ready by now, and would have to be counted.
                Leave::AsItIs(Some(budget)) => return Err(behind(&budget)),
                Leave::Granted => return Err(status),
            },
            done => return done.map(|()| super::created()),
        }
    }
    Err(refused)
}

/// Says on the pod why it goes, and deletes it.
async fn disrupt(server: &ApiServer, target: Target<'_>, mut options: DeleteOptions) -> Result<(), Status> {
    if !options.dry() {
        let mut request = target.request.clone();
        request.subresource = "status".into();
        let mark = |pod: &mut Value| {
            server.check_preconditions(&target, &options, pod)?;
            let mut condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting", "lastProbeTime": null});
            if let Some(generation) = pod.number("metadata.generation") {
                condition["observedGeneration"] = generation.into();
            }
            set_condition(pod, condition);
            Ok(())
        };
        let written = server.change(Target { request: &request, ..target }, Change::Server(&mark)).await?;
        if written.removed {
            return Ok(());
        }
        options.resource_version = options.resource_version.map(|_| written.object.resource_version.to_string());
    }
    server.delete_object(target, &options).await.map(drop)
}

/// Asks the pod's budget.
async fn leave(server: &ApiServer, target: &Target<'_>, pod: &Object, dry: bool) -> Result<Leave, Status> {
    let body = pod.value().map_err(Status::internal)?;
    let ended = matches!(body.text("status.phase"), "Succeeded" | "Failed") || pod.meta.deletion_timestamp.is_some();
    if ended {
        return Ok(Leave::Granted);
    }
    if body.text("status.phase") == "Pending" {
        return Ok(Leave::AsItIs(None));
    }
    let mut budgets = Vec::new();
    for budget in server.lookup_all("policy", "poddisruptionbudgets", &pod.meta.namespace) {
        let body = budget.value().map_err(Status::internal)?;
        let selector = meta::LabelSelector::from_value(body.at("spec.selector")).map_err(Status::internal)?;
        if selector.matches(&pod.meta.labels) {
            budgets.push((budget, body));
        }
    }
    let (budget, rules) = match &budgets[..] {
        [] => return Ok(Leave::Granted),
        [one] => one,
        _ => {
            return Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    if !is_ready(&body) && lets_unready_go(rules) {
        return Ok(Leave::AsItIs(Some(budget.meta.name.to_string())));
    }
    let now = clock::now();
    let spend = |budget: &mut Value| spend(budget, &pod.meta.name, &now);
    if dry {
        let mut budget = rules.clone();
        return spend(&mut budget).map(|()| Leave::Granted);
    }
    let catalog = server.catalog();
    let served = catalog.find("policy", "poddisruptionbudgets").ok_or_else(Status::unknown_path)?;
    let version = served.resource.storage_version();
    let gvr = served.resource.gvr(&version.name);
    let request = Request::new(Verb::Update, gvr, &pod.meta.namespace, &budget.meta.name).subresource("status");
    server.change(Target { caller: target.caller, served, version, request: &request }, Change::Server(&spend)).await?;
    Ok(Leave::Granted)
}

fn is_ready(pod: &Value) -> bool {
    pod.find("status.conditions", "type", "Ready").is_some_and(|ready| ready.text("status") == "True")
}

/// Whether a pod that is not ready goes uncounted: by the budget's policy, or since enough others are ready.
fn lets_unready_go(budget: &Value) -> bool {
    let (current, desired) = (budget.int("status.currentHealthy"), budget.int("status.desiredHealthy"));
    budget.text("spec.unhealthyPodEvictionPolicy") == "AlwaysAllow" || (desired > 0 && current >= desired)
}

/// Takes one disruption from a budget, or says why there is none.
fn spend(budget: &mut Value, pod: &str, now: &str) -> Result<(), Status> {
    let name = metadata::text(budget, "name").to_string();
    let forbid = |why: &str| Err(Status::forbidden("policy", "poddisruptionbudgets", &name, why));
    if budget.int("status.observedGeneration") < budget.int("metadata.generation") {
        return Err(behind(&name));
    }
    let allowed = budget.int("status.disruptionsAllowed");
    if allowed < 0 {
        return forbid("pdb disruptions allowed is negative");
    }
    if budget.map("status.disruptedPods").len() > MOST_DISRUPTED {
        return forbid("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        let (desired, current) = (budget.int("status.desiredHealthy"), budget.int("status.currentHealthy"));
        let why = format!("The disruption budget {name} needs {desired} healthy pods and has {current} currently");
        return Err(too_many(0, why));
    }
    budget.put("status.disruptionsAllowed", allowed - 1);
    if allowed == 1 {
        let generation = budget.int("metadata.generation");
        let condition = json!({"type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
            "observedGeneration": generation});
        set_condition(budget, condition);
    }
    budget.dig("status.disruptedPods").insert(pod.to_string(), now.into());
    Ok(())
}

/// The budget cannot say yet.
fn behind(budget: &str) -> Status {
    too_many(BUDGET_BEHIND, format!("The disruption budget {budget} is still being processed by the server."))
}

fn too_many(retry_after_seconds: u32, why: String) -> Status {
    let cause = Cause { reason: "DisruptionBudget".into(), message: why, field: String::new() };
    Status::too_many_requests(REFUSED, retry_after_seconds).with_causes(vec![cause])
}

/// Puts a condition in the place of that of its type. Its transition is now, unless its status was the same before.
fn set_condition(object: &mut Value, mut condition: Value) {
    let before = object.find("status.conditions", "type", condition.text("type"));
    let since = before.filter(|before| before.text("status") == condition.text("status"));
    condition["lastTransitionTime"] =
        since.map_or_else(|| clock::now().into(), |same| same.at("lastTransitionTime").clone());
    let kind = condition.text("type").to_string();
    if let Some(known) = object.list_mut("status.conditions").iter_mut().find(|known| known.text("type") == kind) {
        *known = condition;
        return;
    }
    match object.at_mut("status.conditions") {
        Some(Value::Array(conditions)) => conditions.push(condition),
        _ => object.put("status.conditions", vec![condition]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disruptions_are_spent_until_there_are_none() {
        let mut budget = json!({"metadata": {"name": "b", "generation": 2}, "status": {"observedGeneration": 1,
            "disruptionsAllowed": 2, "desiredHealthy": 1, "currentHealthy": 3,
            "conditions": [{"type": "DisruptionAllowed", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        let why = |refused: Result<(), Status>| {
            let status = refused.expect_err("a refusal");
            (status.code, status.details.map(|d| d.causes[0].message.clone()).unwrap_or_default())
        };
        let spend = |budget: &mut Value, pod: &str| spend(budget, pod, "2026-01-02T00:00:00Z");
        assert_eq!(
            why(spend(&mut budget, "a")),
            (429, "The disruption budget b is still being processed by the server.".into())
        );
        budget["status"]["observedGeneration"] = 2.into();
        spend(&mut budget, "a").unwrap();
        assert_eq!(budget["status"]["conditions"][0]["status"], "True");
        spend(&mut budget, "b").unwrap();
        assert_eq!(budget["status"]["conditions"][0]["reason"], "InsufficientPods");
        assert_eq!(budget.map("status.disruptedPods").len(), 2);
        assert_eq!(
            why(spend(&mut budget, "c")),
            (429, "The disruption budget b needs 1 healthy pods and has 3 currently".into())
        );
    }

    #[test]
    fn unready_pods_go_where_enough_others_are_ready() {
        for (policy, current, desired, expect) in [
            ("", 1, 1, true),
            ("", 0, 1, false),
            ("", 0, 0, false),
            ("IfHealthyBudget", 2, 1, true),
            ("AlwaysAllow", 0, 1, true),
        ] {
            let budget = json!({"spec": {"unhealthyPodEvictionPolicy": policy},
                "status": {"currentHealthy": current, "desiredHealthy": desired}});
            assert_eq!(lets_unready_go(&budget), expect, "{budget}");
        }
    }
}
