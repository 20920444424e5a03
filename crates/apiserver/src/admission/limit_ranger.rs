//! LimitRanger: defaults and bounds of a namespace's LimitRanges for containers, pods and claims.

use std::collections::BTreeSet;

use async_trait::async_trait;
use meta::quantity::Quantity;
use meta::{Status, Value};
use serde_json::json;

use super::amounts::{self, Amounts, list};
use super::{Attributes, Operation, Plugin, Write};
use crate::server::ApiServer;

pub struct LimitRanger;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

fn ranges(server: &ApiServer, a: &Attributes<'_>) -> Result<Vec<Value>, Status> {
    let objects = server.lookup_all("", "limitranges", &a.target.request.namespace);
    objects.into_iter().map(|range| range.value().map_err(Status::internal)).collect()
}

#[async_trait]
impl Plugin for LimitRanger {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.is("", "pods") || a.is("", "persistentvolumeclaims")
    }

    async fn mutate(&self, write: &Write<'_>, pod: &mut Value) -> Result<(), Status> {
        let Write { server, a, .. } = *write;
        if a.creates("", "pods") {
            for range in ranges(server, a)? {
                default(&range, pod);
            }
        }
        Ok(())
    }

    async fn validate(&self, write: &Write<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Write { server, a, .. } = *write;
        let claim = a.is("", "persistentvolumeclaims") && matches!(a.operation, Operation::Create | Operation::Update);
        let Some(object) = object.filter(|_| claim || a.creates("", "pods")) else { return Ok(()) };
        for range in ranges(server, a)? {
            let errors = check(&range, object, claim);
            let why = match &errors[..] {
                [] => continue,
                [one] => one.clone(),
                many => format!("[{}]", many.join(", ")),
            };
            return Err(a.forbid(object["metadata"]["name"].as_str().unwrap_or_default(), why));
        }
        Ok(())
    }
}

/// Fills in what containers leave open, and notes it in an annotation.
fn default(range: &Value, pod: &mut Value) {
    let (mut requests, mut limits) = (json!({}), json!({}));
    for item in list(&range["spec"], "limits").iter().filter(|item| item["type"] == "Container") {
        for (into, field) in [(&mut requests, "defaultRequest"), (&mut limits, "default")] {
            for (name, amount) in item[field].as_object().into_iter().flatten() {
                into[name] = amount.clone();
            }
        }
    }
    let mut said = Vec::new();
    for (field, word) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"][field].as_array_mut().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_string();
            for (defaults, field, what) in [(&requests, "requests", "request"), (&limits, "limits", "limit")] {
                let mut set = BTreeSet::new();
                for (resource, amount) in defaults.as_object().into_iter().flatten() {
                    if !container["resources"].is_object() {
                        container["resources"] = json!({});
                    }
                    let list = &mut container["resources"][field];
                    if !list.is_object() {
                        *list = json!({});
                    }
                    if list.get(resource).is_none() {
                        list[resource] = amount.clone();
                        set.insert(resource.as_str());
                    }
                }
                if !set.is_empty() {
                    said.push(format!("{} {what} for {word} {name}", set.into_iter().collect::<Vec<_>>().join(", ")));
                }
            }
        }
    }
    if said.is_empty() {
        return;
    }
    let annotations = &mut pod["metadata"]["annotations"];
    if !annotations.is_object() {
        *annotations = json!({});
    }
    annotations[ANNOTATION] = format!("LimitRanger plugin set: {}", said.join("; ")).into();
}

fn check(range: &Value, object: &Value, claim: bool) -> Vec<String> {
    let mut errors = Vec::new();
    let spec = &object["spec"];
    for item in list(&range["spec"], "limits") {
        match item["type"].as_str().unwrap_or_default() {
            "PersistentVolumeClaim" if claim => {
                let requests = amounts::of(&spec["resources"]["requests"]);
                bounds(item, &requests, &Amounts::new(), false, &mut errors);
            }
            "Container" if !claim => {
                for container in list(spec, "containers").iter().chain(list(spec, "initContainers")) {
                    let resources = &container["resources"];
                    bounds(
                        item,
                        &amounts::of(&resources["requests"]),
                        &amounts::of(&resources["limits"]),
                        true,
                        &mut errors,
                    );
                }
            }
            "Pod" if !claim => bounds(item, &of_whole(spec, "requests"), &of_whole(spec, "limits"), true, &mut errors),
            _ => {}
        }
    }
    errors
}

/// A pod's sum of those resources that each of its containers states, or the most an init container states.
fn of_whole(spec: &Value, field: &str) -> Amounts {
    let each: Vec<Amounts> = list(spec, "containers").iter().map(|c| amounts::of(&c["resources"][field])).collect();
    let mut sum = Amounts::new();
    for (name, amount) in each.iter().flatten() {
        if each.iter().all(|own| own.contains_key(name)) {
            amounts::add(&mut sum, name, amount);
        }
    }
    for (name, amount) in list(spec, "initContainers").iter().flat_map(|c| amounts::of(&c["resources"][field])) {
        let most = sum.entry(name).or_insert_with(|| amount.clone());
        if amount > *most {
            *most = amount;
        }
    }
    sum.extend(amounts::of(&spec["resources"][field]));
    sum
}

/// Claims have no limits: their requests alone are held to the maximum.
fn bounds(item: &Value, requests: &Amounts, limits: &Amounts, limited: bool, errors: &mut Vec<String>) {
    let kind = item["type"].as_str().unwrap_or_default();
    for (name, least) in amounts::of(&item["min"]) {
        let head = format!("minimum {name} usage per {kind} is {least}");
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => errors.push(format!("{head}.  No request is specified")),
            (Some(request), _) if *request < least => errors.push(format!("{head}, but request is {request}")),
            (_, Some(limit)) if *limit < least => errors.push(format!("{head}, but limit is {limit}")),
            _ => {}
        }
    }
    for (name, most) in amounts::of(&item["max"]) {
        let head = format!("maximum {name} usage per {kind} is {most}");
        match (requests.get(&name), limits.get(&name)) {
            (None, _) if !limited => errors.push(format!("{head}.  No request is specified")),
            (_, None) if limited => errors.push(format!("{head}.  No limit is specified")),
            (_, Some(limit)) if *limit > most => errors.push(format!("{head}, but limit is {limit}")),
            (Some(request), _) if *request > most => errors.push(format!("{head}, but request is {request}")),
            _ => {}
        }
    }
    for (name, most) in amounts::of(&item["maxLimitRequestRatio"]) {
        let head = format!("{name} max limit to request ratio per {kind} is {most}");
        let stated = |list: &Amounts| list.get(&name).filter(|q| !q.is_zero()).map(Quantity::as_f64);
        match (stated(requests), stated(limits)) {
            (None, _) => errors.push(format!("{head}, but no request is specified or request is 0")),
            (_, None) => errors.push(format!("{head}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) if limit / request > most.as_f64() => {
                errors.push(format!("{head}, but provided ratio is {:.6}", limit / request))
            }
            _ => {}
        }
    }
}
