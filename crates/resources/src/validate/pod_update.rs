//! What of a pod may change, by the way it is written.

use meta::Value;

use super::{At, Errors, formats, resources, same, scheduling};
use meta::Tree;

const OTHER_FIELDS: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
const CONTAINERS: [&str; 2] = ["containers", "initContainers"];

/// A pod's spec, written plainly.
pub fn spec(spec: &At<'_>, old: &Value, errors: &mut Errors) {
    for list in CONTAINERS {
        let at = spec.child(list);
        if at.value.list("").len() != old.list(list).len() {
            return errors.forbidden(&at, "pod updates may not add or remove containers");
        }
        for image in at.items().map(|c| c.child("image")) {
            if image.str().trim() != image.str() {
                errors.invalid(&image, "must not have leading or trailing whitespace");
            }
        }
    }
    let deadline = spec.child("activeDeadlineSeconds");
    match (deadline.number(), old.number("activeDeadlineSeconds")) {
        (Some(new), Some(old)) if new > old => {
            errors.invalid(&deadline, "must be less than or equal to previous value")
        }
        (None, Some(_)) => errors.invalid(&deadline, "must not update from a positive integer to nil value"),
        _ => {}
    }
    scheduling::only_added_tolerations(&spec.child("tolerations"), old.at("tolerations"), errors);
    let gates = spec.child("schedulingGates");
    for gate in gates.items().filter(|g| !old.list("schedulingGates").contains(g.value)) {
        errors.forbidden(
            &gates,
            format!("only deletion is allowed, but found new scheduling gate '{}'", gate.value.text("name")),
        );
    }

    // What may change is put back; the rest must be the same.
    let mut rest = spec.value.clone();
    for list in CONTAINERS {
        for (container, before) in rest.list_mut(list).iter_mut().zip(old.list(list)) {
            container.copy_from("image", before);
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        rest.copy_from(field, old);
    }
    if old.int("terminationGracePeriodSeconds") < 0 && rest.int("terminationGracePeriodSeconds") == 1 {
        rest.copy_from("terminationGracePeriodSeconds", old);
    }
    if !old.list("schedulingGates").is_empty() {
        narrowed_placement(spec, old, &mut rest, errors);
    }
    if !same(&rest, old) {
        errors.forbidden(spec, format!("{OTHER_FIELDS}\n{}", difference(&rest, old)));
    }
}

/// A gated pod's node selector may gain labels, and an affinity it did not have.
fn narrowed_placement(spec: &At<'_>, old: &Value, rest: &mut Value, errors: &mut Errors) {
    let selector = spec.child("nodeSelector");
    if old.map("nodeSelector").iter().all(|(key, value)| selector.value.map("").get(key) == Some(value)) {
        rest.copy_from("nodeSelector", old);
    } else {
        errors.invalid(&selector, "only additions are allowed (no mutations or deletions)");
    }
    if old.at("affinity.nodeAffinity").is_null() {
        rest.copy_from("affinity.nodeAffinity", old);
        if rest.map("affinity").is_empty() && !old.has("affinity") {
            rest.drop("affinity");
        }
    }
}

/// Ephemeral containers may only be added.
pub fn ephemeral_containers(spec: &At<'_>, old: &Value, errors: &mut Errors) {
    let list = spec.child("ephemeralContainers");
    for before in old.list("ephemeralContainers") {
        let name = before.text("name");
        match list.value.find("", "name", name) {
            None => errors.forbidden(&list, format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(now) if !same(now, before) => {
                errors.forbidden(
                    &list,
                    format!("existing ephemeral containers {name:?} may not be changed\n{}", difference(now, before)),
                );
            }
            Some(_) => {}
        }
    }
}

/// A resize changes amounts of cpu and memory and leaves the quality of service alone.
pub fn resize(spec: &At<'_>, old: &Value, errors: &mut Errors) {
    let was = old.text("status.qosClass");
    let now = resources::quality_of_service(spec.value);
    if !was.is_empty() && was != now {
        errors.invalid_as(spec, now, "Pod QOS Class may not change as a result of resizing");
    }
    if old.text("spec.os.name") == "windows" {
        errors.forbidden(spec, "windows pods cannot be resized");
    }
    for list in CONTAINERS {
        for container in spec.each(list) {
            let Some(before) = old.at("spec").find(list, "name", container.value.text("name")) else { continue };
            for side in ["requests", "limits"].map(|s| format!("resources.{s}")) {
                let mutable = |v: &Value| {
                    v.map(&side)
                        .iter()
                        .filter(|(k, _)| *k != "cpu" && *k != "memory")
                        .map(|(k, v)| (k.clone(), v.clone()))
                        .collect()
                };
                let (now, before): (Vec<(String, Value)>, Vec<_>) = (mutable(container.value), mutable(before));
                if now != before {
                    errors.forbidden(spec, "only cpu and memory resources are mutable");
                }
            }
        }
    }
}

/// Conditions whose types are Kubernetes' own.
const SYSTEM_CONDITIONS: [&str; 3] = ["PodScheduled", "Ready", "Initialized"];

/// What a kubelet or scheduler writes.
pub fn status(pod: &At<'_>, old: &Value, errors: &mut Errors) {
    let status = pod.child("status");
    let nominated = status.child("nominatedNodeName");
    if nominated.value != old.at("status.nominatedNodeName") {
        errors.may_format(&nominated, formats::dns_subdomain);
    }
    let conditions = pod.value.list("status.conditions").iter().enumerate();
    for (at, condition) in conditions.filter(|(_, condition)| !SYSTEM_CONDITIONS.contains(&condition.text("type"))) {
        // Upstream looks for them there.
        let kind =
            At { value: condition.at("type"), path: pod.path.child("metadata.conditions").index(at).child("Type") };
        errors.format(&kind, formats::qualified_name);
    }
    addresses(&status, errors);
    // What has ended for good does not start again.
    let policy = old.text("spec.restartPolicy");
    if policy == "Always" || restarts_all(old.at("spec")) {
        return;
    }
    for list in ["containerStatuses", "initContainerStatuses"] {
        for before in old.at("status").list(list) {
            let exit = before.at("state.terminated");
            if exit.is_null() || (policy == "OnFailure" && exit.int("exitCode") != 0) {
                continue;
            }
            let own = CONTAINERS
                .iter()
                .find_map(|l| old.at("spec").find(l, "name", before.text("name")))
                .map_or("", |c| c.text("restartPolicy"));
            let Some(now) = status.value.find(list, "name", before.text("name")) else { continue };
            if own.is_empty() && !now.has("state.terminated") {
                errors.forbidden(&status.child(list).child("state"), "may not be transitioned to non-terminated state");
            }
        }
    }
}

/// A pod has one address of each family at most.
fn addresses(status: &At<'_>, errors: &mut Errors) {
    let list = status.child("podIPs");
    let (first, only) = (status.child("podIP"), list.path.index(0));
    let listed: Vec<At<'_>> = list.items().map(|item| At { value: item.value.at("ip"), path: item.path }).collect();
    // The one is the first of the others, where both are there.
    if !first.blank() && listed.first().is_none_or(|at| at.value != first.value) {
        return errors.format(&At { value: first.value, path: only }, formats::ip);
    }
    for at in &listed {
        errors.format(at, formats::ip);
    }
    if listed.len() > 1 {
        let families: Vec<bool> =
            listed.iter().filter_map(|at| formats::parse_ip(at.str())).map(|ip| ip.is_ipv6()).collect();
        if listed.len() > 2 || families.len() == 2 && families[0] == families[1] {
            errors.invalid(&list, "may specify no more than one IP for each IP family");
        }
        errors.unique(listed.into_iter());
    }
}

/// Whether one container's exit may have all of them run anew, whatever their own policies.
fn restarts_all(spec: &Value) -> bool {
    let rules = CONTAINERS.iter().flat_map(|list| spec.list(list)).flat_map(|c| c.list("restartPolicyRules"));
    rules.into_iter().any(|rule| rule.text("action") == "RestartAllContainers")
}

/// Lines `path: old -> new` of the leaves that differ.
fn difference(new: &Value, old: &Value) -> String {
    /// Enough to see what is meant.
    const MAX_LINES: usize = 20;
    fn walk(path: &str, new: &Value, old: &Value, lines: &mut Vec<String>) {
        if same(new, old) || lines.len() >= MAX_LINES {
            return;
        }
        match (new, old) {
            (Value::Object(new), Value::Object(old)) => {
                let keys: std::collections::BTreeSet<&String> = new.keys().chain(old.keys()).collect();
                for key in keys {
                    walk(
                        &format!("{path}.{key}"),
                        new.get(key).unwrap_or(&Value::Null),
                        old.get(key).unwrap_or(&Value::Null),
                        lines,
                    );
                }
            }
            (Value::Array(new), Value::Array(old)) if new.len() == old.len() => {
                for (i, (new, old)) in new.iter().zip(old).enumerate() {
                    walk(&format!("{path}[{i}]"), new, old, lines);
                }
            }
            _ => lines.push(format!("  {}: {old} -> {new}", path.trim_start_matches('.'))),
        }
    }
    let mut lines = Vec::new();
    walk("", new, old, &mut lines);
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_ended_for_good_stays_so() {
        let with = |state: Value, rules: Value| {
            json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "restartPolicyRules": rules}, {"name": "b"}]},
                "status": {"containerStatuses": [{"name": "b", "state": state}]}})
        };
        let rule = |action: &str| json!([{"action": action, "exitCodes": {"operator": "In", "values": [42]}}]);
        let (over, runs) = (json!({"terminated": {"exitCode": 1}}), json!({"running": {}}));
        for (rules, refused) in [(json!([]), true), (rule("Restart"), true), (rule("RestartAllContainers"), false)] {
            let (old, new) = (with(over.clone(), rules.clone()), with(runs.clone(), rules.clone()));
            let mut errors = Errors::default();
            status(&At::root(&new), &old, &mut errors);
            assert_eq!(!errors.0.is_empty(), refused, "{rules}");
        }
    }
}
