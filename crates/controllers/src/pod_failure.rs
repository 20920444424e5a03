//! What a Job makes of its failed pods: which count, and what its failure policy says. Pure.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::ContainerStatus;

use crate::pods::PodView;

/// When a finished pod finished, as far as it says.
pub fn finished_at(pod: &PodView) -> Option<Timestamp> {
    let status = pod.pod.status.as_ref()?;
    let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let ends = containers.filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()).map(|t| t.0);
    let told = || pod.condition("Ready").and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
    let deleted = || client::time::parse(pod.object.meta.deletion_timestamp.as_deref()?);
    ends.max().or_else(told).or_else(deleted)
}

/// What the failure policy says of a failed pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Count,
    Ignore,
    FailJob(String),
    FailIndex,
}

pub fn judge(spec: &JobSpec, pod: &PodView) -> Verdict {
    let Some(status) = pod.pod.status.as_ref().filter(|_| pod.is_failed()) else { return Verdict::Count };
    for (at, rule) in spec.pod_failure_policy.iter().flat_map(|p| &p.rules).enumerate() {
        let Some(why) = matches_rule(rule, pod, status) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(format!("{why} matching FailJob rule at index {at}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn matches_rule(
    rule: &PodFailurePolicyRule,
    pod: &PodView,
    status: &k8s_openapi::api::core::v1::PodStatus,
) -> Option<String> {
    let key = pod.object.meta.key();
    if let Some(codes) = &rule.on_exit_codes {
        let code = |c: &ContainerStatus| Some(c.state.as_ref()?.terminated.as_ref()?.exit_code);
        let fits = |c: &&ContainerStatus| {
            let named = codes.container_name.as_ref().is_none_or(|n| *n == c.name);
            let listed = |code: i32| codes.values.contains(&code) == (codes.operator == "In");
            named && code(c).is_some_and(|code| code != 0 && listed(code))
        };
        let found = status.container_statuses.iter().chain(&status.init_container_statuses).flatten().find(fits)?;
        return Some(format!("Container {} for pod {key} failed with exit code {}", found.name, code(found)?));
    }
    let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
    let found =
        status.conditions.iter().flatten().find(|c| {
            patterns.iter().any(|p| p.type_ == c.type_ && p.status.as_deref().unwrap_or("True") == c.status)
        })?;
    Some(format!("Pod {key} has condition {}", found.type_))
}
