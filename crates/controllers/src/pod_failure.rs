//! What a Job makes of its failed pods: which count, and what its failure policy says. Pure.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyRule};

use crate::pod_facts::Ended;
use crate::pods::PodView;

/// When a finished pod finished, as far as it says.
pub fn finished_at(pod: &PodView) -> Option<Timestamp> {
    let ends = pod.facts.ended.iter().filter_map(|e| e.at);
    let told = || pod.condition("Ready").and_then(|c| c.last_transition_time);
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
    if !pod.is_failed() {
        return Verdict::Count;
    }
    for (at, rule) in spec.pod_failure_policy.iter().flat_map(|p| &p.rules).enumerate() {
        let Some(why) = matches_rule(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(format!("{why} matching FailJob rule at index {at}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn matches_rule(rule: &PodFailurePolicyRule, pod: &PodView) -> Option<String> {
    let key = pod.object.meta.key();
    if let Some(codes) = &rule.on_exit_codes {
        let fits = |e: &&Ended| {
            let named = codes.container_name.as_ref().is_none_or(|n| **n == *e.container);
            named && e.code != 0 && codes.values.contains(&e.code) == (codes.operator == "In")
        };
        let found = pod.facts.ended.iter().find(fits)?;
        return Some(format!("Container {} for pod {key} failed with exit code {}", found.container, found.code));
    }
    let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
    let found =
        pod.facts.conditions.iter().find(|c| {
            patterns.iter().any(|p| *p.type_ == *c.kind && p.status.as_deref().unwrap_or("True") == c.status)
        })?;
    Some(format!("Pod {key} has condition {}", found.kind))
}
