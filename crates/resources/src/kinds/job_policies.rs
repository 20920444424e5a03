//! When a job has failed, and when it has succeeded, if it says so itself.

use meta::{FieldError, Tree};

use crate::validate::devices::at_most;
use crate::validate::{At, Errors, formats};

const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const MAX_CONDITIONS: usize = 20;
/// Bytes of a list of indexes.
const MAX_INDEXES: usize = 64 * 1024;
const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
const STATUSES: [&str; 3] = ["False", "True", "Unknown"];

/// There, and one of these; who says nothing is told them.
fn one_of(at: &At<'_>, supported: &[&str], errors: &mut Errors) {
    let listed: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
    if errors.need(at, &format!("valid values: [{}]", listed.join(" "))) {
        errors.one_of(at, supported);
    }
}

fn exit_codes(codes: &At<'_>, containers: &[&str], errors: &mut Errors) {
    one_of(&codes.child("operator"), &["In", "NotIn"], errors);
    let (container, values) = (codes.child("containerName"), codes.child("values"));
    if container.there() && !containers.contains(&container.str()) {
        errors.invalid(&container, "must be one of the container or initContainer names in the pod template");
    }
    if values.value.list("").is_empty() {
        errors.invalid(&values, "at least one value is required");
    } else {
        at_most(&values, MAX_EXIT_CODES, errors);
    }
    for value in values.items().filter(|v| codes.value.text("operator") == "In" && v.number() == Some(0)) {
        errors.invalid(&value, "must not be 0 for the In operator");
    }
    errors.unique(values.items());
    if !values.value.list("").is_sorted_by_key(|v| v.as_i64()) {
        errors.invalid(&values, "must be ordered");
    }
}

/// `podFailurePolicy` of a job's spec.
pub fn failure(spec: &At<'_>, errors: &mut Errors) {
    let containers: Vec<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|l| spec.value.at("template.spec").list(l))
        .map(|c| c.text("name"))
        .collect();
    let rules = spec.child("podFailurePolicy.rules");
    at_most(&rules, MAX_RULES, errors);
    for rule in rules.items() {
        let action = rule.child("action");
        one_of(&action, &ACTIONS, errors);
        if action.str() == "FailIndex" && !spec.value.has("backoffLimitPerIndex") {
            errors.invalid(&action, "requires the backoffLimitPerIndex to be set");
        }
        let (codes, conditions) = (rule.child("onExitCodes"), rule.child("onPodConditions"));
        if codes.there() {
            exit_codes(&codes, &containers, errors);
        }
        at_most(&conditions, MAX_CONDITIONS, errors);
        for pattern in conditions.items() {
            errors.format(&pattern.child("type"), formats::qualified_name);
            one_of(&pattern.child("status"), &STATUSES, errors);
        }
        let detail = match (codes.there(), conditions.value.list("").is_empty()) {
            (true, false) => "specifying both OnExitCodes and OnPodConditions is not supported",
            (false, true) => "specifying one of OnExitCodes and OnPodConditions is required",
            _ => continue,
        };
        errors.0.push(FieldError::invalid_unprinted(&rule.path, detail));
    }
}

/// How many indexes a list such as `0,2-4` names, or what is wrong with it.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let number = |text: &str| {
        let index: i64 = text.parse().map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
        if index >= completions { Err(format!("too large index: {text:?}")) } else { Ok(index) }
    };
    let (mut last, mut total) = (None, 0);
    for interval in text.split(',').filter(|_| !text.is_empty()) {
        let parts: Vec<&str> = interval.split('-').collect();
        let (first, end) = match parts[..] {
            [one] => (number(one)?, number(one)?),
            [from, to] => {
                let (from, to) = (number(from)?, number(to)?);
                if from >= to {
                    return Err(format!("non-increasing order, previous: {from}, current: {to}"));
                }
                (from, to)
            }
            _ => {
                return Err(format!(
                    "the fragment {interval:?} violates the requirement that an index interval can have at most two parts separated by '-'"
                ));
            }
        };
        if let Some(last) = last.filter(|last| *last >= first) {
            return Err(format!("non-increasing order, previous: {last}, current: {first}"));
        }
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

/// `successPolicy` of a job's spec.
pub fn success(spec: &At<'_>, errors: &mut Errors) {
    let policy = spec.child("successPolicy");
    let rules = policy.child("rules");
    if spec.value.text("completionMode") != "Indexed" {
        return errors.invalid(&policy, "requires indexed completion mode");
    }
    if rules.value.list("").is_empty() {
        errors.required(&rules, "at least one rules must be specified when the successPolicy is specified");
    }
    at_most(&rules, MAX_RULES, errors);
    let completions = spec.value.int("completions");
    for rule in rules.items() {
        let (indexes, count) = (rule.child("succeededIndexes"), rule.child("succeededCount"));
        if !indexes.there() && !count.there() {
            errors.required(&rule, "at least one of succeededCount or succeededIndexes must be specified");
        }
        if indexes.str().len() > MAX_INDEXES {
            errors.too_long(&indexes, MAX_INDEXES);
        }
        let named = count_indexes(indexes.str(), completions).unwrap_or_else(|why| {
            errors.invalid(&indexes, format!("error parsing succeededIndexes: {why}"));
            0
        });
        errors.not_negative(&count);
        let Some(wanted) = count.number() else { continue };
        if wanted > completions {
            let detail = format!("must be less than or equal to {completions} (the number of specified completions)");
            errors.invalid(&count, detail);
        }
        if indexes.there() && wanted > named {
            let detail = format!(
                "must be less than or equal to {named} (the number of indexes in the specified succeededIndexes field)"
            );
            errors.invalid(&count, detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_counted() {
        for (text, expect) in [
            ("", Ok(0)),
            ("0,2-4", Ok(4)),
            ("2,1", Err("non-increasing order, previous: 2, current: 1")),
            ("3-1", Err("non-increasing order, previous: 3, current: 1")),
            ("7", Err("too large index: \"7\"")),
            ("-1", Err("cannot convert string to integer for index: \"\"")),
        ] {
            assert_eq!(count_indexes(text, 5).as_ref().map_err(String::as_str).copied(), expect, "{text}");
        }
    }
}
