//! Which containers run again: by policy, by the rules of their exits, and by what their resources became.

use k8s_openapi::api::core::v1::{Container as Spec, Pod, ResourceRequirements};

use crate::pods::observed::{Container, Observed, State};
use crate::quantity;
use crate::spec::{self, Kind};

/// What the first rule that speaks of this exit wants done.
fn matched_rule(container: &Spec, exit_code: i32) -> Option<&str> {
    container.restart_policy_rules.iter().flatten().find_map(|rule| {
        let codes = rule.exit_codes.as_ref()?;
        let listed = codes.values.as_ref().is_some_and(|v| v.contains(&exit_code));
        (listed == (codes.operator == "In")).then_some(rule.action.as_str())
    })
}

/// Since when all containers have to run anew: the last exit that asked for it, in the engine's nanoseconds. What was
/// made before is of an earlier round: it ends if it still runs, and is started again whatever its policy.
pub fn round(pod: &Pod, seen: &Observed) -> Option<i64> {
    let asks = |c: &&Container| {
        c.state == State::Exited
            && spec::all_containers(pod)
                .any(|(_, s)| s.name == c.name && matched_rule(s, c.exit_code) == Some("RestartAllContainers"))
    };
    let exits = seen.containers.iter().filter(asks).filter_map(|c| c.finished_at);
    exits.max().and_then(|at| i64::try_from(at.as_nanosecond()).ok())
}

/// Whether a dead container is to be run again.
pub fn restarts(pod: &Pod, kind: Kind, container: &Spec, exit_code: i32) -> bool {
    if kind == Kind::Ephemeral {
        return false;
    }
    if kind == Kind::Sidecar {
        return true;
    }
    if matched_rule(container, exit_code).is_some() {
        return true;
    }
    let policy = container.restart_policy.as_deref().unwrap_or_else(|| spec::restart_policy(pod));
    match (policy, kind) {
        ("Never", _) => false,
        // An init container that succeeded is done whatever the policy.
        ("OnFailure", _) | (_, Kind::Init) => exit_code != 0,
        _ => true,
    }
}

/// Which of cpu and memory differ.
pub fn changed<'a>(
    wanted: &'a ResourceRequirements,
    applied: &'a ResourceRequirements,
) -> impl Iterator<Item = &'static str> + 'a {
    ["cpu", "memory"].into_iter().filter(|name| {
        let of = |r: &ResourceRequirements| {
            (quantity::amount(r.requests.as_ref(), name), quantity::amount(r.limits.as_ref(), name))
        };
        of(wanted) != of(applied)
    })
}

/// Whether cpu or memory differ between what a container has and what it asks for, and whether it asked to be restarted
/// when they do.
pub fn resized(container: &Spec, applied: &ResourceRequirements) -> Option<bool> {
    let wanted = container.resources.clone().unwrap_or_default();
    let restart = |name: &str| {
        container
            .resize_policy
            .iter()
            .flatten()
            .any(|p| p.resource_name == name && p.restart_policy == "RestartContainer")
    };
    let changed: Vec<&str> = changed(&wanted, applied).collect();
    (!changed.is_empty()).then(|| changed.into_iter().any(restart))
}
