//! Which address families a Service has, as far as its author left that open.
//!
//! [`settle`] follows upstream's rules: a policy nobody named is SingleStack, or what it was; families follow from
//! addresses that were asked for, then from the cluster's first; a Service changes between one stack and two only when its
//! author says so. A pure function of the spec, the spec before, and the cluster's families; it gives out no address.

use std::net::IpAddr;

use meta::{FieldError, FieldPath, Value};
use serde_json::{Map, json};

pub const IPV4: &str = "IPv4";
pub const IPV6: &str = "IPv6";

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

type Spec = Map<String, Value>;

pub fn family_of(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { IPV4 } else { IPV6 }
}

pub(super) fn texts<'a>(spec: &'a Spec, field: &str) -> Vec<&'a str> {
    spec.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

fn text<'a>(spec: &'a Spec, field: &str) -> &'a str {
    spec.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Fills in `ipFamilyPolicy` and `ipFamilies`. `families` are the cluster's, the default one first.
pub fn settle(spec: &mut Spec, old: Option<&Spec>, families: &[&str]) -> Result<(), Vec<FieldError>> {
    if untouched_preference(spec, old) {
        return Ok(());
    }
    let headless = text(spec, "clusterIP") == "None";
    let unselected = headless && spec.get("selector").and_then(Value::as_object).is_none_or(Map::is_empty);
    if text(spec, "ipFamilyPolicy").is_empty() {
        let policy = match old.map(|old| text(old, "ipFamilyPolicy")) {
            Some(before) if !before.is_empty() => before,
            _ if unselected => REQUIRE,
            _ => SINGLE,
        };
        spec.insert("ipFamilyPolicy".into(), policy.into());
    }
    let policy = text(spec, "ipFamilyPolicy").to_string();
    let mut errors = well_formed(spec, headless);
    if !errors.is_empty() {
        return Err(errors);
    }
    let invalid = |field: &str, value: Value, why: &str| FieldError::invalid(&FieldPath::new(field), value, why);
    let bad_policy = |why: &str| invalid("spec.ipFamilyPolicy", json!(policy), why);
    if let Some(old) = old {
        for (field, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
            let (now, before) = (texts(spec, field), texts(old, field));
            if policy == SINGLE {
                if now == before && now.len() > 1 {
                    let first = json!([now[0]]);
                    spec.insert(field.into(), first);
                }
            } else if before.len() == 2 && now.len() == 1 {
                errors.push(bad_policy(&format!("must be 'SingleStack' to release the secondary {what}")));
            }
        }
    }
    if policy == SINGLE {
        for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if texts(spec, field).len() == 2 {
                errors.push(bad_policy(&format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                )));
            }
        }
    }
    let mut chosen: Vec<String> = texts(spec, "ipFamilies").into_iter().map(str::to_string).collect();
    let ips = texts(spec, "clusterIPs");
    for (at, ip) in ips.iter().enumerate().skip(chosen.len()) {
        let Ok(ip) = ip.parse() else { break };
        let family = family_of(ip);
        if families.contains(&family) {
            chosen.push(family.into());
        } else {
            let path = FieldPath::new("spec.clusterIPs").index(at);
            errors.push(FieldError::invalid(&path, json!(ips), format!("{family} is not configured on this cluster")));
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let other = |family: &str| if family == IPV4 { IPV6 } else { IPV4 };
    let default = families.first().copied().unwrap_or(IPV4);
    // Nothing is given out for it and nobody here fills its slices: it may have what the cluster has not.
    let mut dual = unselected;
    if !unselected {
        if policy == REQUIRE && families.len() < 2 {
            errors.push(bad_policy("this cluster is not configured for dual-stack services"));
        }
        for (at, family) in chosen.iter().enumerate().filter(|(_, family)| !families.contains(&family.as_str())) {
            let path = FieldPath::new("spec.ipFamilies").index(at);
            errors.push(FieldError::invalid(&path, family.as_str(), "not configured on this cluster"));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        dual = families.len() == 2;
    }
    if chosen.is_empty() {
        chosen.push(default.into());
    }
    if policy != SINGLE && chosen.len() == 1 && dual {
        chosen.push(other(&chosen[0]).into());
    }
    spec.insert("ipFamilies".into(), json!(chosen));
    Ok(())
}

/// A Service that prefers two stacks stays as it is when the cluster changes: an update that says nothing of addresses is
/// no wish for another one.
fn untouched_preference(spec: &Spec, old: Option<&Spec>) -> bool {
    let Some(old) = old else { return false };
    let prefers = |spec: &Spec| text(spec, "ipFamilyPolicy") == PREFER;
    let same = |field| spec.get(field) == old.get(field);
    prefers(spec)
        && (prefers(old) || text(old, "ipFamilyPolicy").is_empty())
        && ["type", "clusterIP", "clusterIPs", "ipFamilies"].into_iter().all(same)
}

/// What must hold of addresses and families before anything can be inferred from them.
fn well_formed(spec: &Spec, headless: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (one, ips, families) = (text(spec, "clusterIP"), texts(spec, "clusterIPs"), texts(spec, "ipFamilies"));
    let path = FieldPath::new("spec.clusterIPs");
    match ips.first() {
        Some(_) if one.is_empty() => {
            errors.push(FieldError::invalid(&path, json!(ips), "must be empty when `clusterIP` is not specified"));
        }
        Some(first) if *first != one => {
            errors.push(FieldError::invalid(&path, json!(ips), "first value must match `clusterIP`"));
        }
        _ => {}
    }
    if headless {
        if ips.len() > 1 {
            errors.push(FieldError::invalid(&path, json!(ips), "'None' must be the first and only value"));
        }
        return errors;
    }
    let mut seen: Vec<&str> = Vec::new();
    let mut readable = true;
    for (at, ip) in ips.iter().enumerate() {
        let Ok(parsed) = ip.parse() else {
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(&path.index(at), *ip, why));
            readable = false;
            continue;
        };
        let family = family_of(parsed);
        if let Some(said) = families.get(at).filter(|said| **said != family) {
            let why = format!("expected an {said} value as indicated by `ipFamilies[{at}]`");
            errors.push(FieldError::invalid(&path.index(at), *ip, why));
        }
        seen.push(family);
    }
    if ips.len() > 2 {
        errors.push(FieldError::invalid(&path, json!(ips), "may only hold up to 2 values"));
    }
    if readable && seen.len() > 1 && seen[1..].contains(&seen[0]) {
        errors.push(FieldError::invalid(&path, json!(ips), "may specify no more than one IP for each IP family"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &[&str] = &[IPV4, IPV6];

    #[track_caller]
    fn check(spec: Value, old: Option<Value>, families: &[&str], expect: Result<&str, &str>) {
        let mut now = spec.as_object().unwrap().clone();
        let found = match settle(&mut now, old.as_ref().and_then(Value::as_object), families) {
            Ok(()) => Ok(format!("{} {}", text(&now, "ipFamilyPolicy"), texts(&now, "ipFamilies").join(","))),
            Err(errors) => Err(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
        };
        match expect {
            Ok(expect) => assert_eq!(found.as_deref(), Ok(expect), "{spec}"),
            Err(part) => assert!(found.as_ref().is_err_and(|said| said.contains(part)), "{spec}: {found:?}"),
        }
    }

    #[test]
    fn families_of_new_services() {
        check(json!({}), None, &[IPV4], Ok("SingleStack IPv4"));
        check(json!({}), None, &[IPV6], Ok("SingleStack IPv6"));
        check(json!({}), None, BOTH, Ok("SingleStack IPv4"));
        check(json!({"ipFamilyPolicy": "PreferDualStack"}), None, &[IPV4], Ok("PreferDualStack IPv4"));
        check(json!({"ipFamilyPolicy": "PreferDualStack"}), None, &[IPV6, IPV4], Ok("PreferDualStack IPv6,IPv4"));
        check(
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
            None,
            BOTH,
            Ok("RequireDualStack IPv6,IPv4"),
        );
        check(json!({"ipFamilyPolicy": "RequireDualStack"}), None, &[IPV4], Err("not configured for dual-stack"));
        check(json!({"ipFamilies": ["IPv6"]}), None, &[IPV4], Err("spec.ipFamilies[0]"));
        check(json!({"ipFamilies": ["IPv4", "IPv6"]}), None, BOTH, Err("when multiple IP families are specified"));
        check(json!({"clusterIP": "fd00::5", "clusterIPs": ["fd00::5"]}), None, BOTH, Ok("SingleStack IPv6"));
        check(json!({"clusterIP": "fd00::5", "clusterIPs": ["fd00::5"]}), None, &[IPV4], Err("IPv6 is not configured"));
        check(json!({"clusterIPs": ["fd00::5"]}), None, BOTH, Err("must be empty when `clusterIP`"));
        check(
            json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "10.0.0.2"], "ipFamilyPolicy": "PreferDualStack"}),
            None,
            BOTH,
            Err("no more than one IP for each IP family"),
        );
        check(
            json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv6"]}),
            None,
            BOTH,
            Err("expected an IPv6 value as indicated by `ipFamilies[0]`"),
        );
    }

    #[test]
    fn families_of_headless_services() {
        let none = |extra: Value| {
            let mut spec = json!({"clusterIP": "None", "clusterIPs": ["None"]});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            spec
        };
        check(none(json!({"selector": {"a": "b"}})), None, BOTH, Ok("SingleStack IPv4"));
        check(none(json!({})), None, &[IPV4], Ok("RequireDualStack IPv4,IPv6"));
        check(
            none(json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"]})),
            None,
            &[IPV4],
            Ok("SingleStack IPv6"),
        );
    }

    #[test]
    fn stacks_change_when_asked() {
        let single = json!({"type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack"});
        let dual = json!({"type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack"});
        let with = |spec: &Value, field: &str, value: Value| {
            let mut spec = spec.clone();
            spec[field] = value;
            spec
        };
        let policy = |spec: &Value, policy: &str| with(spec, "ipFamilyPolicy", json!(policy));
        check(policy(&single, "PreferDualStack"), Some(single.clone()), BOTH, Ok("PreferDualStack IPv4,IPv6"));
        check(policy(&dual, "SingleStack"), Some(dual.clone()), BOTH, Ok("SingleStack IPv4"));
        // Prefers two and has one, from before the cluster had two: stays.
        let prefers = policy(&single, "PreferDualStack");
        check(prefers.clone(), Some(prefers), BOTH, Ok("PreferDualStack IPv4"));
        check(
            with(&dual, "clusterIPs", json!(["10.0.0.1"])),
            Some(dual.clone()),
            BOTH,
            Err("must be 'SingleStack' to release the secondary cluster IP"),
        );
        // A PUT without a policy keeps it.
        check(with(&dual, "ipFamilyPolicy", json!(null)), Some(dual), BOTH, Ok("PreferDualStack IPv4,IPv6"));
    }
}
