//! Devices that have to be made ready before a pod that got them is bound: whoever makes them so says it in conditions of
//! the claim.

use k8s_openapi::api::resource::v1 as api;

use super::allocation;

/// How far a claim's devices are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    Pending,
    /// One cannot be made ready, and why.
    Failed(String),
}

fn results(allocation: &api::AllocationResult) -> impl Iterator<Item = &api::DeviceRequestAllocationResult> {
    let results = allocation.devices.as_ref().and_then(|d| d.results.as_deref()).unwrap_or_default();
    results.iter().filter(|r| r.binding_conditions.as_ref().is_some_and(|c| !c.is_empty()))
}

/// Whether an allocation has devices that have to be made ready.
pub fn waits(allocation: &api::AllocationResult) -> bool {
    results(allocation).next().is_some()
}

/// Whose devices those are.
pub fn awaited_drivers(allocation: &api::AllocationResult) -> impl Iterator<Item = String> + '_ {
    results(allocation).map(|r| r.driver.clone())
}

/// How far a claim's devices are. One without an allocation has none that wait.
pub fn readiness(claim: &api::ResourceClaim) -> Readiness {
    let devices = claim.status.as_ref().and_then(|s| s.devices.as_deref()).unwrap_or_default();
    let mut out = Readiness::Ready;
    for result in allocation(claim).into_iter().flat_map(results) {
        let told = devices.iter().find(|d| {
            (&d.driver, &d.pool, &d.device) == (&result.driver, &result.pool, &result.device)
                && d.share_id == result.share_id
        });
        let conditions = told.and_then(|d| d.conditions.as_deref()).unwrap_or_default();
        let holding = |kind: &String| conditions.iter().find(|c| c.type_ == *kind && c.status == "True");
        if let Some(failed) = result.binding_failure_conditions.iter().flatten().find_map(holding) {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let (device, reason) = (&result.device, &failed.reason);
            return Readiness::Failed(format!(
                "claim {name} binding failed: device {}/{}/{device}: {}: {reason}: {}",
                result.driver, result.pool, failed.type_, failed.message
            ));
        }
        if !result.binding_conditions.iter().flatten().all(|kind| holding(kind).is_some()) {
            out = Readiness::Pending;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn conditions_tell() {
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let device = |conditions: Value| json!([{"driver": "d", "pool": "p", "device": "x", "conditions": conditions}]);
        for (devices, expect) in [
            (json!([]), Readiness::Pending),
            (device(json!([condition("Attached", "False")])), Readiness::Pending),
            (device(json!([condition("Attached", "True")])), Readiness::Pending),
            (device(json!([condition("Attached", "True"), condition("Warm", "True")])), Readiness::Ready),
            (
                device(json!([condition("Attached", "True"), condition("Broken", "True")])),
                Readiness::Failed("claim c binding failed: device d/p/x: Broken: R: m".into()),
            ),
        ] {
            let result = json!({"request": "r", "driver": "d", "pool": "p", "device": "x",
                "bindingConditions": ["Attached", "Warm"], "bindingFailureConditions": ["Broken"]});
            let claim: api::ResourceClaim = serde_json::from_value(json!({
                "metadata": {"name": "c"}, "spec": {},
                "status": {"allocation": {"devices": {"results": [result]}}, "devices": devices},
            }))
            .unwrap();
            assert!(waits(allocation(&claim).unwrap()));
            assert_eq!(readiness(&claim), expect, "{devices}");
        }
    }
}
