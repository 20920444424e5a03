//! Names and amounts of resources: requests, limits, capacities.

use meta::Value;
use meta::quantity::Quantity;

use super::{At, Errors, NOT_NEGATIVE, formats};
use meta::Tree;

/// Resources containers may ask for by a name without a domain.
const CONTAINER_RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
/// Names without a domain that quotas, nodes and volumes know.
const STANDARD_RESOURCES: [&str; 27] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
    "storage",
    "requests.storage",
    "endpoints",
    "namespaces",
    "nodes",
    "events",
    "serviceaccounts",
    "podtemplates",
    "limitranges",
];
const MUST_BE_INTEGER: &str = "must be an integer";

fn huge_pages(name: &str) -> bool {
    name.strip_prefix("requests.").unwrap_or(name).starts_with("hugepages-")
}

/// Without a domain, or in Kubernetes' own.
fn native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// In a domain of its own, and fit for a quota: asked for as processors are.
pub fn is_extended(name: &str) -> bool {
    !native(name) && !name.starts_with("requests.") && formats::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether more may be asked for than there is.
fn overcommittable(name: &str) -> bool {
    native(name) && !huge_pages(name)
}

/// A name that quotas and lists may have.
pub fn name(at: &At<'_>, shown: &str, errors: &mut Errors) {
    let complaints = formats::qualified_name(shown);
    if complaints.is_empty() && !shown.contains('/') && !STANDARD_RESOURCES.contains(&shown) && !huge_pages(shown) {
        errors.invalid_as(at, shown, "must be a standard resource type or fully qualified");
    }
    for complaint in complaints {
        errors.invalid_as(at, shown, complaint);
    }
}

/// A name that quotas may limit: also counts of objects, `count/pods`.
pub fn quota_name(at: &At<'_>, shown: &str, errors: &mut Errors) {
    name(at, shown, errors);
    if !shown.contains('/') && !STANDARD_RESOURCES.contains(&shown) && !huge_pages(shown) {
        errors.invalid_as(at, shown, "must be a standard resource for quota");
    }
}

/// A name that a container may ask for.
pub fn container_name(at: &At<'_>, shown: &str, errors: &mut Errors) {
    name(at, shown, errors);
    if !shown.contains('/') {
        if !CONTAINER_RESOURCES.contains(&shown) && !huge_pages(shown) {
            errors.invalid_as(at, shown, "must be a standard resource for containers");
        }
    } else if !native(shown) && shown.starts_with("requests.") {
        errors.invalid_as(at, shown, "doesn't follow extended resource name standard");
    }
}

/// An amount: not negative, whole where halves make no sense.
pub fn amount(at: &At<'_>, resource: &str, errors: &mut Errors) -> Option<Quantity> {
    let quantity = match Quantity::from_value(at.value) {
        Ok(quantity) => quantity,
        Err(error) => {
            errors.invalid(at, error.to_string());
            return None;
        }
    };
    if quantity.sign() < 0 {
        errors.invalid(at, NOT_NEGATIVE);
    }
    let counted = !native(resource)
        || matches!(
            resource,
            "pods"
                | "services"
                | "secrets"
                | "configmaps"
                | "replicationcontrollers"
                | "resourcequotas"
                | "persistentvolumeclaims"
                | "services.nodeports"
                | "services.loadbalancers"
        );
    if counted && !quantity.is_whole() {
        errors.invalid(at, MUST_BE_INTEGER);
    }
    Some(quantity)
}

/// A list of amounts by name.
pub fn list(at: &At<'_>, errors: &mut Errors) {
    for (resource, value) in at.entries() {
        name(&value, resource, errors);
        amount(&value, resource, errors);
    }
}

/// `resources` of a container: requests within limits.
pub fn requirements(at: &At<'_>, errors: &mut Errors) {
    let (limits, requests) = (at.child("limits"), at.child("requests"));
    for (resource, value) in limits.entries() {
        container_name(&value, resource, errors);
        amount(&value, resource, errors);
    }
    for (resource, value) in requests.entries() {
        container_name(&value, resource, errors);
        let Some(requested) = amount(&value, resource, errors) else { continue };
        let text = requested.to_string();
        match limits.value.map("").get(resource).map(Quantity::from_value) {
            None if !overcommittable(resource) => {
                errors.required(&limits, "Limit must be set for non overcommitable resources")
            }
            Some(Ok(limit)) if !overcommittable(resource) && requested != limit => {
                errors.invalid_as(&requests, text, format!("must be equal to {resource} limit of {limit}"));
            }
            Some(Ok(limit)) if requested > limit => {
                errors.invalid_as(
                    &requests,
                    text,
                    format!("must be less than or equal to {resource} limit of {limit}"),
                );
            }
            _ => {}
        }
    }
    let names = || limits.value.map("").keys().chain(requests.value.map("").keys());
    if names().any(|n| huge_pages(n)) && !names().any(|n| n == "cpu" || n == "memory") {
        errors.forbidden(at, "HugePages require cpu or memory");
    }
}

/// Containers' amounts of one resource, for quality of service.
fn positive(container: &Value, side: &str, resource: &str) -> Option<Quantity> {
    let value = container.map("resources").get(side)?.get(resource)?;
    Quantity::from_value(value).ok().filter(|q| q.sign() > 0)
}

/// `status.qosClass` of a pod.
pub fn quality_of_service(spec: &Value) -> &'static str {
    // Requests for the pod as a whole say it for all its containers.
    let holders: Vec<&Value> = if !spec.map("resources.requests").is_empty() || !spec.map("resources.limits").is_empty()
    {
        vec![spec]
    } else {
        spec.list("containers").iter().chain(spec.list("initContainers")).collect()
    };
    let (mut any, mut guaranteed) = (false, true);
    for holder in &holders {
        for resource in ["cpu", "memory"] {
            let (limit, request) = (positive(holder, "limits", resource), positive(holder, "requests", resource));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::tests::expect;

    #[test]
    fn requests_stay_within_limits() {
        let check = |resources: Value, expected: &[&str]| {
            let mut errors = Errors::default();
            requirements(&At::new(&resources, "resources"), &mut errors);
            expect(&errors.0, expected, &resources);
        };
        check(
            json!({"limits": {"cpu": "1", "example.com/gpu": "2"}, "requests": {"cpu": "500m", "example.com/gpu": 2}}),
            &[],
        );
        check(
            json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}),
            &["resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"],
        );
        check(
            json!({"requests": {"memory": "-1"}}),
            &["resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0"],
        );
        check(
            json!({"limits": {"gpu": "1"}}),
            &[
                "resources.limits[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified",
                "resources.limits[gpu]: Invalid value: \"gpu\": must be a standard resource for containers",
            ],
        );
        check(
            json!({"limits": {"pods": "1"}}),
            &["resources.limits[pods]: Invalid value: \"pods\": must be a standard resource for containers"],
        );
        check(
            json!({"requests": {"example.com/gpu": "1"}}),
            &["resources.limits: Required value: Limit must be set for non overcommitable resources"],
        );
        check(
            json!({"limits": {"hugepages-2Mi": "2Mi"}, "requests": {"hugepages-2Mi": "2Mi"}}),
            &["resources: Forbidden: HugePages require cpu or memory"],
        );
        check(
            json!({"limits": {"cpu": "x"}}),
            &[
                "resources.limits[cpu]: Invalid value: \"x\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ],
        );
    }

    #[test]
    fn quality_follows_requests_and_limits() {
        let both = json!({"resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}});
        let some = json!({"resources": {"requests": {"cpu": "1"}}});
        for (containers, expected) in [
            (json!([{}]), "BestEffort"),
            (json!([both]), "Guaranteed"),
            (json!([both, {}]), "Burstable"),
            (json!([some]), "Burstable"),
            (json!([{"resources": {"requests": {"cpu": "0"}}}]), "BestEffort"),
        ] {
            assert_eq!(quality_of_service(&json!({"containers": containers})), expected);
        }
    }
}
