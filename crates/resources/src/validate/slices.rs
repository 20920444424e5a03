//! What slices may offer: devices, their attributes, capacities and counters (`resource.k8s.io`).
//!
//! Follows `pkg/apis/resource/validation`.

use meta::quantity::Quantity;
use meta::{FieldError, Tree, Value};

use super::devices::{at_most, binding_conditions, distinct, pool_name, qualified, taint};
use super::{At, Errors, formats, scheduling};

const MAX_DEVICES: usize = 128;
/// Where devices have taints, counters or lists.
const MAX_RICH_DEVICES: usize = 64;
const MAX_ATTRIBUTES_AND_CAPACITIES: usize = 32;
const MAX_ATTRIBUTE_VALUES: usize = 48;
const MAX_VALUE: usize = 64;
const MAX_TAINTS: usize = 16;
const MAX_COUNTER_SETS: usize = 8;
const MAX_COUNTERS: usize = 32;
const MAX_CONSUMPTIONS: usize = 2;
const MAX_OPTIONS: usize = 10;
const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];
const UNSET_OR_TRUE: &str = "must be either unset or set to true";

fn version(at: &At<'_>, errors: &mut Errors) {
    let numeric = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'))
    };
    let identifier = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let (rest, build) = at.str().split_once('+').map_or((at.str(), None), |(rest, build)| (rest, Some(build)));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(core, pre)| (core, Some(pre)));
    let digits_only = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let fits = core.split('.').count() == 3
        && core.split('.').all(numeric)
        && pre.is_none_or(|pre| pre.split('.').all(|p| identifier(p) && (!digits_only(p) || numeric(p))))
        && build.is_none_or(|build| build.split('.').all(identifier));
    if !fits {
        errors.invalid(at, "must be a string compatible with semver.org spec 2.0.0");
    }
    short(at, errors);
}

fn short(at: &At<'_>, errors: &mut Errors) {
    if at.str().len() > MAX_VALUE {
        errors.too_long(at, MAX_VALUE);
    }
}

fn attribute(at: &At<'_>, errors: &mut Errors) {
    let fields = ["bool", "int", "string", "version"];
    short(&at.child("string"), errors);
    if at.value.has("version") {
        version(&at.child("version"), errors);
    }
    for list in LISTS.map(|f| at.child(f)).into_iter().filter(At::there) {
        if list.value.list("").is_empty() {
            errors.invalid(&list, "must not be empty if specified");
        }
    }
    at.each("strings").for_each(|item| short(&item, errors));
    at.each("versions").for_each(|item| version(&item, errors));
    match fields.iter().chain(&LISTS).filter(|f| at.value.has(f)).count() {
        0 => errors.invalid_as(at, "", "exactly one value must be specified"),
        1 => {}
        _ => errors.invalid(at, "exactly one value must be specified"),
    }
}

/// Which amounts of a shared capacity may be asked for.
fn request_policy(capacity: &At<'_>, policy: &At<'_>, errors: &mut Errors) {
    let (values, range) = (policy.child("validValues"), policy.child("validRange"));
    let quantity = |value: &Value| Quantity::from_value(value).ok();
    let most = quantity(capacity.value.at("value")).unwrap_or_else(Quantity::zero);
    let usual = quantity(policy.value.at("default"));
    let listed = !values.value.list("").is_empty();
    let required = |name: &str| format!("required when {name} is defined");
    match (listed, range.there(), usual) {
        (true, true, _) => {
            let detail = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
            errors.forbidden(policy, detail);
        }
        (true, false, None) => errors.required(&policy.child("default"), &required("validValues")),
        (false, true, None) => errors.required(&policy.child("default"), &required("validRange")),
        (true, false, Some(usual)) => valid_values(&values, &usual, &most, errors),
        (false, true, Some(usual)) => valid_range(&range, &usual, &most, errors),
        (false, false, _) => {}
    }
}

fn valid_values(list: &At<'_>, usual: &Quantity, most: &Quantity, errors: &mut Errors) {
    let known: Vec<_> = list.items().filter_map(|at| Some((Quantity::from_value(at.value).ok()?, at))).collect();
    for pair in known.windows(2) {
        if let [(before, _), (after, at)] = pair
            && before > after
        {
            errors.invalid_as(at, after.to_string(), "values must be sorted in ascending order");
        }
    }
    if at_most(list, MAX_OPTIONS, errors) {
        for (option, at) in known.iter().filter(|(option, _)| option > most) {
            errors.invalid_as(at, option.to_string(), format!("option is larger than capacity value: {most}"));
        }
        let whole = |at: &At<'_>| Quantity::from_value(at.value).map_or(0, |q| q.value()).to_string();
        distinct(list, whole, errors);
    }
    if !known.iter().any(|(option, _)| option == usual) {
        errors.invalid_as(list, usual.to_string(), "default value is not valid according to the requestPolicy");
    }
}

fn valid_range(at: &At<'_>, usual: &Quantity, most: &Quantity, errors: &mut Errors) {
    let given = |field: &str| Quantity::from_value(at.value.at(field)).ok().filter(|_| at.value.has(field));
    let [least, upper, step] = ["min", "max", "step"].map(|f| at.child(f));
    let Some(min) = given("min") else { return errors.required(&least, "required when validRange is defined") };
    if min > *most {
        errors.invalid_as(&least, min.to_string(), format!("min is larger than capacity value: {most}"));
    }
    if *usual < min {
        errors.invalid_as(&least, usual.to_string(), format!("default is less than min: {min}"));
    }
    let max = given("max");
    if let Some(max) = &max {
        if min > *max {
            errors.invalid_as(&upper, min.to_string(), format!("min is larger than max: {max}"));
        }
        if max > most {
            errors.invalid_as(&upper, max.to_string(), format!("max is larger than capacity value: {most}"));
        }
        if usual > max {
            errors.invalid_as(&upper, usual.to_string(), format!("default is more than max: {max}"));
        }
    }
    let Some(by) = given("step") else { return };
    let one = min.add(&by);
    if one > *most {
        errors.invalid_as(&step, by.to_string(), format!("one step {one} is larger than capacity value: {most}"));
    }
    for value in std::iter::once(usual).chain(&max) {
        // A step of nothing leads nowhere; upstream fails where it divides by it.
        let off = value.value().saturating_sub(min.value()).checked_rem(by.value()).is_none_or(|rest| rest != 0);
        if off {
            let detail = format!("value is not a multiple of a given step ({by}) from ({min})");
            errors.invalid_as(&step, value.to_string(), detail);
        }
    }
}

fn counters(at: &At<'_>, errors: &mut Errors) {
    let counters = at.child("counters");
    let count = counters.value.map("").len();
    if count == 0 {
        errors.required(&counters, "");
    } else if count > MAX_COUNTERS {
        errors.0.push(FieldError::too_many(&counters.path, count, MAX_COUNTERS));
    } else {
        for (name, _) in counters.entries() {
            formats::dns_label(name).into_iter().for_each(|why| errors.invalid_as(&counters, name, why));
        }
    }
}

/// Which of several ways to name nodes are taken, those not taken being complained of.
fn places(at: &At<'_>, flags: &[&str], empty_name: &str, errors: &mut Errors) -> Vec<String> {
    let mut taken = Vec::new();
    let (node, selector) = (at.child("nodeName"), at.child("nodeSelector"));
    if node.there() {
        if node.blank() {
            errors.invalid(&node, empty_name);
        } else {
            taken.push("`nodeName`".to_string());
            errors.format(&node, formats::dns_subdomain);
        }
    }
    if selector.there() {
        taken.push("`nodeSelector`".into());
        scheduling::node_selector(&selector, errors);
    }
    for flag in flags.iter().map(|f| at.child(f)).filter(At::there) {
        match flag.value {
            Value::Bool(true) => {
                let name = flag.path.as_str().rsplit('.').next().unwrap_or_default().to_string();
                taken.push(format!("`{name}`"));
            }
            _ => errors.invalid(&flag, UNSET_OR_TRUE),
        }
    }
    taken
}

fn device(at: &At<'_>, old: Option<&Value>, places_own: bool, errors: &mut Errors) {
    errors.format(&at.child("name"), formats::dns_label);
    let (attributes, capacity) = (at.child("attributes"), at.child("capacity"));
    let both = attributes.value.map("").len() + capacity.value.map("").len();
    if both > MAX_ATTRIBUTES_AND_CAPACITIES {
        let detail =
            format!("the total number of attributes and capacities must not exceed {MAX_ATTRIBUTES_AND_CAPACITIES}");
        errors.invalid_as(at, both, detail);
    }
    let listed = |value: &Value| LISTS.iter().map(|list| value.list(list).len()).sum::<usize>().max(1);
    let values: usize = attributes.value.map("").values().map(listed).sum();
    if values > MAX_ATTRIBUTE_VALUES {
        let detail = format!("the total number of attribute values must not exceed {MAX_ATTRIBUTE_VALUES}");
        errors.invalid_as(at, values, detail);
    }
    for (name, value) in attributes.entries() {
        qualified(&attributes, name, errors);
        attribute(&value, errors);
    }
    for (name, value) in capacity.entries() {
        qualified(&capacity, name, errors);
        let policy = value.child("requestPolicy");
        if !policy.there() {
        } else if at.value.flag("allowMultipleAllocations") {
            request_policy(&value, &policy, errors);
        } else {
            errors.forbidden(&policy, "allowMultipleAllocations must be true");
        }
    }
    let (taints, consumed) = (at.child("taints"), at.child("consumesCounters"));
    if old.is_none_or(|old| old.at("taints") != taints.value) && at_most(&taints, MAX_TAINTS, errors) {
        taints.items().for_each(|one| taint(&one, None, errors));
    }
    if at_most(&consumed, MAX_CONSUMPTIONS, errors) {
        for consumption in consumed.items() {
            errors.need_format(&consumption.child("counterSet"), formats::dns_label);
            counters(&consumption, errors);
        }
        distinct(&consumed, |one| one.value.text("counterSet").into(), errors);
    }
    if places_own {
        const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
        match &places(at, &["allNodes"], "must not be empty", errors)[..] {
            [] => errors.required(at, ONE),
            [_] => {}
            several => errors.invalid_as(at, format!("{{{}}}", several.join(", ")), ONE),
        }
    } else if ["nodeName", "nodeSelector", "allNodes"].iter().any(|f| at.value.has(f)) {
        let detail = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
        errors.invalid_as(at, Value::Null, detail);
    }
    binding_conditions(at, errors);
}

/// The spec of a slice.
pub fn slice(spec: &At<'_>, old: Option<&Value>, errors: &mut Errors) {
    errors.driver_name(&spec.child("driver"));
    let pool = spec.child("pool");
    pool_name(&pool.child("name"), errors);
    for (field, least, detail) in [
        ("resourceSliceCount", 1, "must be greater than zero"),
        ("generation", 0, "must be greater than or equal to zero"),
    ] {
        let (number, value) = (pool.child(field), pool.value.int(field));
        if value < least {
            errors.invalid_as(&number, value, detail);
        }
    }
    for field in ["pool.name", "driver", "nodeName"].into_iter().filter(|_| old.is_some()) {
        errors.immutable(&spec.child(field), old.map_or(&Value::Null, |old| old.at(field)));
    }
    let flags = ["allNodes", "perDeviceNodeSelection"];
    let taken = places(spec, &flags, "must be either unset or set to a non-empty string", errors);
    let terms = spec.child("nodeSelector.nodeSelectorTerms");
    if spec.value.has("nodeSelector") && terms.value.list("").len() != 1 {
        errors.invalid(&terms, "must have exactly one node selector term");
    }
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match &taken[..] {
        [] => errors.required(spec, ONE),
        [_] => {}
        several => {
            let detail = format!("{ONE}, but multiple fields are set");
            errors.invalid_as(spec, format!("{{{}}}", several.join(", ")), detail);
        }
    }
    let (devices, shared) = (spec.child("devices"), spec.child("sharedCounters"));
    if devices.there() && shared.there() {
        errors.invalid_as(spec, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let rich = |device: &Value| {
        !device.list("taints").is_empty()
            || !device.list("consumesCounters").is_empty()
            || device.map("attributes").values().any(|value| LISTS.iter().any(|list| value.has(list)))
    };
    let most = if devices.value.list("").iter().any(rich) { MAX_RICH_DEVICES } else { MAX_DEVICES };
    if at_most(&devices, most, errors) {
        let places_own = spec.value.flag("perDeviceNodeSelection");
        for one in devices.items() {
            let before = old.and_then(|old| old.find("devices", "name", one.value.text("name")));
            device(&one, before, places_own, errors);
        }
        distinct(&devices, |one| one.value.text("name").into(), errors);
    }
    if at_most(&shared, MAX_COUNTER_SETS, errors) {
        for set in shared.items() {
            errors.need_format(&set.child("name"), formats::dns_label);
            counters(&set, errors);
        }
        distinct(&shared, |set| set.value.text("name").into(), errors);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::tests::expect;

    #[test]
    fn devices_are_whole() {
        let check = |device: Value, expected: &[&str]| {
            let spec = json!({"driver": "d.io", "nodeName": "n", "pool": {"name": "p", "resourceSliceCount": 1}, "devices": [device]});
            let mut errors = Errors::default();
            slice(&At::new(&spec, "spec"), None, &mut errors);
            expect(&errors.0, expected, &spec);
        };
        check(
            json!({"name": "a", "attributes": {"d.io/v": {"version": "1.2.3-a.1+b"}}, "allowMultipleAllocations": true,
                "capacity": {"m": {"value": "8", "requestPolicy": {"default": "2", "validRange": {"min": "1", "max": "8", "step": "1"}}}}}),
            &[],
        );
        check(
            json!({"name": "a", "attributes": {"v": {"version": "1.02.3"}, "n": {}},
                "capacity": {"m": {"value": "8", "requestPolicy": {}}}, "bindingConditions": ["x"], "allNodes": true}),
            &[
                "spec.devices[0].attributes[v].version: Invalid value: \"1.02.3\": must be a string compatible with semver.org spec 2.0.0",
                "spec.devices[0].attributes[n]: Invalid value: \"\": exactly one value must be specified",
                "spec.devices[0].capacity[m].requestPolicy: Forbidden: allowMultipleAllocations must be true",
                "spec.devices[0].bindingFailureConditions: Invalid value: []: bindingFailureConditions are required to use bindingConditions",
                "spec.devices[0]: Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
            ],
        );
        check(
            json!({"name": "a", "allowMultipleAllocations": true, "capacity": {"m": {"value": "4", "requestPolicy": {"default": "3", "validValues": ["2", "5"]}}}}),
            &[
                "spec.devices[0].capacity[m].requestPolicy.validValues[1]: Invalid value: \"5\": option is larger than capacity value: 4",
                "spec.devices[0].capacity[m].requestPolicy.validValues: Invalid value: \"3\": default value is not valid according to the requestPolicy",
            ],
        );
    }
}
