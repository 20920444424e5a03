//! What claims, classes and taints of devices may say (`resource.k8s.io`).
//!
//! Follows `pkg/apis/resource/validation`. Slices, which offer devices, are [`super::slices`]'.

use std::collections::{HashMap, HashSet};

use meta::{FieldError, Tree, Value};

use super::{At, Errors, conditions, formats, scheduling};

/// Requests of a claim, and names that refer to them.
const MAX_REQUESTS: usize = 32;
const MAX_CONSTRAINTS: usize = 32;
const MAX_CONFIGS: usize = 32;
const MAX_SELECTORS: usize = 32;
const MAX_ALTERNATIVES: usize = 8;
const MAX_EXPRESSION: usize = 10 * 1024;
/// Bytes of parameters and of a device's data.
const MAX_RAW: usize = 10 * 1024;
const MAX_CONSUMERS: usize = 256;
const MAX_BINDING_CONDITIONS: usize = 4;
const MAX_DEVICE_CONDITIONS: usize = 8;
const MAX_INTERFACE_NAME: usize = 256;
const MAX_HARDWARE_ADDRESS: usize = 128;
const MAX_ADDRESSES: usize = 16;
const MAX_POOL_NAME: usize = 253;
const MAX_ID: usize = 32;
const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];
const NO_SUCH_REQUEST: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

/// Requests by name, and the names of their alternatives.
type Requests<'v> = HashMap<&'v str, HashSet<&'v str>>;

/// Says whether a list is short enough to be looked into.
pub(crate) fn at_most(list: &At<'_>, most: usize, errors: &mut Errors) -> bool {
    let count = list.value.list("").len();
    if count > most {
        errors.0.push(FieldError::too_many(&list.path, count, most));
    }
    count <= most
}

/// Items whose keys are all different; a repeated one is complained of at the item.
pub(crate) fn distinct<'v>(list: &At<'v>, key: impl Fn(&At<'v>) -> String, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for item in list.items() {
        let key = key(&item);
        if seen.contains(&key) {
            errors.0.push(FieldError::duplicate(&item.path, key));
        } else {
            seen.insert(key);
        }
    }
}

fn by_name(at: &At<'_>) -> String {
    at.value.text("name").into()
}

fn itself(at: &At<'_>) -> String {
    at.str().into()
}

/// `a/b/c`, each part a subdomain.
pub fn pool_name(at: &At<'_>, errors: &mut Errors) {
    if !errors.need(at, "") {
        return;
    }
    if at.str().len() > MAX_POOL_NAME {
        errors.too_long(at, MAX_POOL_NAME);
    }
    for part in at.str().split('/') {
        for complaint in formats::dns_subdomain(part) {
            errors.invalid_as(at, part, complaint);
        }
    }
}

/// An identifier as C has it, such as `my_name`.
fn identifier(at: &At<'_>, text: &str, errors: &mut Errors) {
    if text.len() > MAX_ID {
        errors.too_long(at, MAX_ID);
    }
    let fits = !text.starts_with(|c: char| c.is_ascii_digit())
        && !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !fits {
        let what = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'";
        let examples = ["my_name", "MY_NAME", "MyName"];
        errors.invalid_as(at, text, meta::formats::pattern(what, "[A-Za-z_][A-Za-z0-9_]*", &examples));
    }
}

/// The name of an attribute or capacity: an identifier, in a driver's domain or in none.
pub fn qualified(at: &At<'_>, name: &str, errors: &mut Errors) {
    let parts: Vec<&str> = name.split('/').collect();
    match parts[..] {
        [id] => identifier(at, id, errors),
        [domain, id] => {
            if domain.is_empty() {
                errors.invalid_as(at, "", "the domain must not be empty");
            } else {
                let domain: Value = domain.into();
                errors.driver_name(&At { value: &domain, path: at.path.clone() });
            }
            if id.is_empty() {
                errors.invalid_as(at, "", "the name must not be empty");
            } else {
                identifier(at, id, errors);
            }
        }
        // Upstream does not look at what has more slashes.
        _ => {}
    }
}

fn fully_qualified(at: &At<'_>, errors: &mut Errors) {
    qualified(at, at.str(), errors);
    if !at.str().contains('/') {
        errors.invalid(at, "a fully qualified name must be a domain and a name separated by a slash");
    }
}

fn share_id(at: &At<'_>, errors: &mut Errors) {
    if !at.there() {
        return;
    }
    let text = at.str();
    let dashes = |at: usize| matches!(at, 8 | 13 | 18 | 23);
    if text.len() != 36 {
        errors.invalid(at, format!("error validating uid: invalid UUID length: {}", text.len()));
    } else if !text.bytes().enumerate().all(|(i, b)| if dashes(i) { b == b'-' } else { b.is_ascii_hexdigit() }) {
        errors.invalid(at, "error validating uid: invalid UUID format");
    } else if text.bytes().any(|b| b.is_ascii_uppercase()) {
        let detail = "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters";
        errors.invalid(at, detail);
    }
}

fn requests<'v>(devices: &At<'v>) -> Requests<'v> {
    let alternatives = |request: &At<'v>| request.each("firstAvailable").map(|a| a.value.text("name")).collect();
    devices.each("requests").map(|request| (request.value.text("name"), alternatives(&request))).collect()
}

fn request_reference(at: &At<'_>, known: &Requests<'_>, errors: &mut Errors) {
    let (first, rest) = at.str().split_once('/').map_or((at.str(), None), |(first, rest)| (first, Some(rest)));
    if rest.is_some_and(|rest| rest.contains('/')) {
        return errors.invalid(at, NO_SUCH_REQUEST);
    }
    for part in [Some(first), rest].into_iter().flatten() {
        for complaint in formats::dns_label(part) {
            errors.invalid_as(at, part, complaint);
        }
    }
    let found = known.get(first).is_some_and(|alternatives| rest.is_none_or(|rest| alternatives.contains(rest)));
    if !found {
        errors.invalid(at, NO_SUCH_REQUEST);
    }
}

fn request_references(list: &At<'_>, known: &Requests<'_>, errors: &mut Errors) {
    if at_most(list, MAX_REQUESTS, errors) {
        list.items().for_each(|name| request_reference(&name, known, errors));
        distinct(list, itself, errors);
    }
}

/// Expressions over devices.
pub fn selectors(list: &At<'_>, errors: &mut Errors) {
    if !at_most(list, MAX_SELECTORS, errors) {
        return;
    }
    for selector in list.items() {
        let cel = selector.child("cel");
        if !cel.there() {
            errors.required(&cel, "");
            continue;
        }
        let expression = cel.child("expression");
        if expression.str().len() > MAX_EXPRESSION {
            errors.too_long(&expression, MAX_EXPRESSION);
        } else if let Err(why) = cel::device::compile(expression.str()) {
            errors.invalid_as(&expression, expression.str(), why);
        }
    }
}

fn raw(at: &At<'_>, errors: &mut Errors) {
    match at.value {
        Value::Null => errors.required(at, ""),
        value if value.to_string().len() > MAX_RAW => errors.too_long(at, MAX_RAW),
        Value::Object(_) => {}
        _ => errors.invalid_as(at, "<value omitted>", "must be a valid JSON object"),
    }
}

/// What drivers are told.
pub fn configuration(at: &At<'_>, errors: &mut Errors) {
    let opaque = at.child("opaque");
    if !opaque.there() {
        return errors.required(&opaque, "");
    }
    errors.driver_name(&opaque.child("driver"));
    raw(&opaque.child("parameters"), errors);
}

/// The configurations of a class.
pub fn configurations(list: &At<'_>, errors: &mut Errors) {
    if at_most(list, MAX_CONFIGS, errors) {
        list.items().for_each(|config| configuration(&config, errors));
    }
}

fn toleration(at: &At<'_>, errors: &mut Errors) {
    let (operator, value) = (at.child("operator"), at.child("value"));
    errors.may_format(&at.child("key"), formats::qualified_name);
    match operator.str() {
        "Exists" if !value.blank() => errors.invalid(&value, "must be empty for operator `Exists`"),
        "Exists" => {}
        "Equal" => errors.format(&value, formats::label_value),
        _ => errors.need_one_of(&operator, &["Equal", "Exists"]),
    }
    let effect = at.child("effect");
    if !effect.blank() {
        errors.one_of(&effect, &EFFECTS);
    }
}

/// A taint of a device; its effect only where it is new.
pub fn taint(at: &At<'_>, old: Option<&Value>, errors: &mut Errors) {
    errors.format(&at.child("key"), formats::qualified_name);
    errors.may_format(&at.child("value"), formats::label_value);
    let effect = at.child("effect");
    if old.is_none_or(|old| old.text("effect") != effect.str()) {
        errors.need_one_of(&effect, &EFFECTS);
    }
}

/// What is asked for: exactly, or as one of several alternatives.
fn asked(at: &At<'_>, errors: &mut Errors) {
    errors.need_format(&at.child("deviceClassName"), formats::dns_subdomain);
    selectors(&at.child("selectors"), errors);
    let (mode, number) = (at.child("allocationMode"), at.child("count"));
    let count = number.number().unwrap_or(0);
    match mode.str() {
        "All" if count != 0 => errors.invalid(&number, "must not be specified when allocationMode is 'All'"),
        "All" => {}
        "ExactCount" if count <= 0 => errors.invalid_as(&number, count, "must be greater than zero"),
        "ExactCount" => {}
        _ => errors.not_supported(&mode, &["All", "ExactCount"]),
    }
    at.each("tolerations").for_each(|one| toleration(&one, errors));
}

fn request(at: &At<'_>, errors: &mut Errors) {
    errors.format(&at.child("name"), formats::dns_label);
    let (exactly, alternatives) = (at.child("exactly"), at.child("firstAvailable"));
    match (exactly.there(), !alternatives.value.list("").is_empty()) {
        (false, false) => errors.required(at, "exactly one of `exactly` or `firstAvailable` is required"),
        (true, true) => {
            let detail = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            errors.invalid_as(at, Value::Null, detail);
        }
        (true, false) => asked(&exactly, errors),
        (false, true) => {
            if at_most(&alternatives, MAX_ALTERNATIVES, errors) {
                for alternative in alternatives.items() {
                    errors.format(&alternative.child("name"), formats::dns_label);
                    asked(&alternative, errors);
                }
                distinct(&alternatives, by_name, errors);
            }
        }
    }
}

/// The spec of a claim.
pub fn claim(spec: &At<'_>, errors: &mut Errors) {
    let devices = spec.child("devices");
    let known = requests(&devices);
    let (list, constraints, configs) =
        (devices.child("requests"), devices.child("constraints"), devices.child("config"));
    if at_most(&list, MAX_REQUESTS, errors) {
        list.items().for_each(|one| request(&one, errors));
        distinct(&list, by_name, errors);
    }
    if at_most(&constraints, MAX_CONSTRAINTS, errors) {
        for constraint in constraints.items() {
            request_references(&constraint.child("requests"), &known, errors);
            match ["matchAttribute", "distinctAttribute"].map(|f| constraint.child(f)).into_iter().find(At::there) {
                Some(attribute) => fully_qualified(&attribute, errors),
                None => {
                    let detail = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
                    errors.required(&constraint, detail);
                }
            }
        }
    }
    if at_most(&configs, MAX_CONFIGS, errors) {
        for config in configs.items() {
            request_references(&config.child("requests"), &known, errors);
            configuration(&config, errors);
        }
    }
}

/// Conditions that must hold before a device is bound, and those that forbid it.
pub fn binding_conditions(at: &At<'_>, errors: &mut Errors) {
    let fields = ["bindingConditions", "bindingFailureConditions"];
    let [hold, fail] = fields.map(|f| at.child(f));
    for list in [&hold, &fail] {
        if at_most(list, MAX_BINDING_CONDITIONS, errors) {
            list.items().for_each(|condition| errors.format(&condition, formats::qualified_name));
        }
    }
    distinct(&hold, itself, errors);
    distinct(&fail, itself, errors);
    let held = hold.value.list("");
    for condition in fail.items().filter(|condition| held.contains(condition.value)) {
        errors.invalid(&condition, "bindingFailureConditions must not overlap with bindingConditions");
    }
    for (list, other, [named, needed]) in [(&hold, &fail, fields), (&fail, &hold, [fields[1], fields[0]])] {
        if list.value.list("").is_empty() && !other.value.list("").is_empty() {
            // Both say what is needed of the list that is empty.
            errors.invalid_as(list, Value::Array(Vec::new()), format!("{named} are required to use {needed}"));
        }
    }
}

fn allocation(at: &At<'_>, known: &Requests<'_>, errors: &mut Errors) {
    let (results, configs) = (at.child("devices.results"), at.child("devices.config"));
    if at_most(&results, MAX_REQUESTS, errors) {
        for result in results.items() {
            request_reference(&result.child("request"), known, errors);
            errors.driver_name(&result.child("driver"));
            pool_name(&result.child("pool"), errors);
            errors.format(&result.child("device"), formats::dns_label);
            binding_conditions(&result, errors);
            share_id(&result.child("shareID"), errors);
        }
    }
    if at_most(&configs, 2 * MAX_CONFIGS, errors) {
        for config in configs.items() {
            errors.need_one_of(&config.child("source"), &["FromClaim", "FromClass"]);
            request_references(&config.child("requests"), known, errors);
            configuration(&config, errors);
        }
    }
    if at.value.has("nodeSelector") {
        scheduling::node_selector(&at.child("nodeSelector"), errors);
    }
}

/// Driver, pool, device and share: what tells allocated devices apart.
fn identity(device: &Value) -> [&str; 4] {
    ["driver", "pool", "device", "shareID"].map(|field| device.text(field))
}

fn device_status(at: &At<'_>, allocated: &HashSet<[&str; 4]>, errors: &mut Errors) {
    errors.driver_name(&at.child("driver"));
    pool_name(&at.child("pool"), errors);
    errors.format(&at.child("device"), formats::dns_label);
    share_id(&at.child("shareID"), errors);
    if !allocated.contains(&identity(at.value)) {
        let shown = identity(at.value).join("/");
        errors.invalid_as(at, shown.trim_end_matches('/'), "must be an allocated device in the claim");
    }
    let list = at.child("conditions");
    at_most(&list, MAX_DEVICE_CONDITIONS, errors);
    conditions::conditions(&list, errors);
    if at.value.has("data") {
        raw(&at.child("data"), errors);
    }
    let network = at.child("networkData");
    for (field, most) in [("interfaceName", MAX_INTERFACE_NAME), ("hardwareAddress", MAX_HARDWARE_ADDRESS)] {
        if network.value.text(field).len() > most {
            errors.too_long(&network.child(field), most);
        }
    }
    let addresses = network.child("ips");
    if at_most(&addresses, MAX_ADDRESSES, errors) {
        for address in addresses.items().filter(|address| formats::parse_cidr(address.str()).is_none()) {
            errors.invalid(&address, "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)");
        }
        distinct(&addresses, itself, errors);
    }
}

/// A change of a claim's status.
pub fn claim_status(object: &Value, old: &Value, errors: &mut Errors) {
    let status = At::new(object.at("status"), "status");
    let spec = At::new(object.at("spec"), "spec");
    let known = requests(&spec.child("devices"));
    let (consumers, devices, allocated) =
        (status.child("reservedFor"), status.child("devices"), status.child("allocation"));
    if at_most(&consumers, MAX_CONSUMERS, errors) {
        for consumer in consumers.items() {
            for field in ["resource", "name", "uid"] {
                errors.need(&consumer.child(field), "");
            }
        }
        distinct(&consumers, |consumer| consumer.value.text("uid").into(), errors);
    }
    let there = allocated.each("devices.results").map(|result| identity(result.value)).collect();
    devices.items().for_each(|device| device_status(&device, &there, errors));
    distinct(&devices, |device| identity(device.value).join("/").trim_end_matches('/').into(), errors);
    let before = old.at("status");
    if !consumers.value.list("").is_empty() {
        let added = || consumers.value.list("").iter().any(|one| !before.list("reservedFor").contains(one));
        if !allocated.there() {
            errors.forbidden(&consumers, "may not be specified when `allocated` is not set");
        } else if object.has("metadata.deletionTimestamp") && added() {
            let detail = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            errors.forbidden(&consumers, detail);
        }
    }
    match (before.has("allocation"), allocated.there()) {
        (true, true) => errors.immutable(&allocated, before.at("allocation")),
        (false, true) => allocation(&allocated, &known, errors),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::tests::expect;

    #[test]
    fn claims_ask_for_what_there_can_be() {
        let check = |devices: Value, expected: &[&str]| {
            let spec = json!({"devices": devices});
            let mut errors = Errors::default();
            claim(&At::new(&spec, "spec"), &mut errors);
            expect(&errors.0, expected, &spec);
        };
        let exactly = |name: &str| json!({"name": name, "exactly": {"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1}});
        let alternatives = json!({"name": "q", "firstAvailable": [
            {"name": "s", "deviceClassName": "c", "allocationMode": "All", "selectors": [{"cel": {"expression": "device.driver == 'd.io'"}}]}]});
        check(
            json!({"requests": [exactly("r"), alternatives], "constraints": [{"requests": ["r", "q/s"], "matchAttribute": "d.io/a"}],
                "config": [{"requests": ["q"], "opaque": {"driver": "d.io", "parameters": {}}}]}),
            &[],
        );
        check(
            json!({"requests": [exactly("r"), exactly("r"), {"name": "x"}], "constraints": [{"requests": ["q/s"]}, {"matchAttribute": "a"}],
                "config": [{}, {"opaque": {"driver": "d.io", "parameters": "x"}}]}),
            &[
                "spec.devices.requests[1]: Duplicate value: \"r\"",
                "spec.devices.requests[2]: Required value: exactly one of `exactly` or `firstAvailable` is required",
                &format!("spec.devices.constraints[0].requests[0]: Invalid value: \"q/s\": {NO_SUCH_REQUEST}"),
                "spec.devices.constraints[0]: Required value: exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set",
                "spec.devices.constraints[1].matchAttribute: Invalid value: \"a\": a fully qualified name must be a domain and a name separated by a slash",
                "spec.devices.config[0].opaque: Required value",
                "spec.devices.config[1].opaque.parameters: Invalid value: \"<value omitted>\": must be a valid JSON object",
            ],
        );
    }

    #[test]
    fn a_status_tells_of_what_is_allocated() {
        let check = |status: Value, old: Value, expected: &[&str]| {
            let object = json!({"spec": {"devices": {"requests": [{"name": "r"}]}}, "status": status});
            let mut errors = Errors::default();
            claim_status(&object, &json!({"status": old}), &mut errors);
            expect(&errors.0, expected, &object);
        };
        let result = json!({"request": "r", "driver": "d.io", "pool": "p", "device": "x"});
        let allocation = json!({"devices": {"results": [result]}});
        let consumer = json!({"resource": "pods", "name": "p", "uid": "u"});
        check(json!({"allocation": allocation, "reservedFor": [consumer], "devices": [result]}), json!({}), &[]);
        check(
            json!({"reservedFor": [consumer]}),
            json!({}),
            &["status.reservedFor: Forbidden: may not be specified when `allocated` is not set"],
        );
        check(
            json!({"devices": [result]}),
            json!({}),
            &["status.devices[0]: Invalid value: \"d.io/p/x\": must be an allocated device in the claim"],
        );
    }
}
