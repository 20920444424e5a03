//! Topology hints of Services that ask for them by annotation: each zone gets endpoints in proportion to its share of the
//! nodes' processors, its own ones first. Pure; numbers, thresholds and words follow upstream.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use meta::Object;
use meta::quantity::Quantity;

use crate::endpoint_slices::{Endpoint, Hints};
use crate::nodes;

/// By how much a zone's endpoints may be busier than the average.
const OVERLOAD: f64 = 0.2;
const MODE: &str = "service.kubernetes.io/topology-mode";
const OLD_MODE: &str = "service.kubernetes.io/topology-aware-hints";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Nodes with one of these run no ordinary endpoints.
const EXCLUDED: &[&str] = &["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

/// Each zone's share of the processors; `None` where a node does not say its own.
pub type Zones = Option<BTreeMap<String, f64>>;

/// Whether a Service asks for hints.
pub fn is_wanted(annotations: Option<&BTreeMap<String, String>>) -> bool {
    let mode = annotations.and_then(|a| a.get(MODE).or_else(|| a.get(OLD_MODE)));
    mode.is_some_and(|m| m == "Auto" || m == "auto")
}

/// The shares of all zones that have nodes which could serve.
pub fn zones<'n>(nodes: impl Iterator<Item = (&'n Object, &'n Node)>) -> Zones {
    let mut cpu: BTreeMap<String, i64> = BTreeMap::new();
    for (object, node) in nodes {
        let ready = nodes::condition(node, "Ready").is_some_and(|c| c.status == "True");
        if !ready || EXCLUDED.iter().any(|label| object.meta.label(label).is_some()) {
            continue;
        }
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref()?.get("cpu"));
        let milli = allocatable.and_then(|q| q.0.parse::<Quantity>().ok()).map_or(0, |q| q.milli_value());
        let zone = object.meta.label(ZONE).filter(|z| !z.is_empty())?;
        if milli == 0 {
            return None;
        }
        *cpu.entry(zone.to_string()).or_default() += milli;
    }
    let total: i64 = cpu.values().sum();
    // One zone alone has nothing to share out.
    (cpu.len() > 1).then(|| cpu.into_iter().map(|(zone, milli)| (zone, milli as f64 / total as f64)).collect())
}

/// Gives every ready endpoint the zone it is for; when that cannot be fair, none has any and it is said why.
pub fn hint(zones: &Zones, endpoints: &mut [&mut Endpoint]) -> Result<(), String> {
    let outcome = share_out(zones, endpoints);
    if outcome.is_err() {
        endpoints.iter_mut().for_each(|e| e.hints = None);
    }
    outcome
}

fn share_out(zones: &Zones, endpoints: &mut [&mut Endpoint]) -> Result<(), String> {
    let nodes_say_too_little =
        "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes";
    let Some(shares) = zones else { return Err(nodes_say_too_little.into()) };
    let count = endpoints.iter().filter(|e| e.is_ready()).count();
    let counts = format!("({count} endpoints, {} zones)", shares.len());
    if shares.len() > count {
        return Err(format!("Insufficient number of endpoints {counts}"));
    }
    let least = |share: f64| (share * count as f64 / (1.0 + OVERLOAD)).ceil();
    if shares.values().map(|s| least(*s)).sum::<f64>() > count as f64 {
        return Err(format!(
            "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold {counts}"
        ));
    }
    // Everybody's own zone first,
    let mut has: BTreeMap<&str, f64> = BTreeMap::new();
    for endpoint in endpoints.iter_mut() {
        endpoint.hints = None;
        if !endpoint.is_ready() {
            continue;
        }
        let zone = endpoint.zone.as_deref().filter(|z| !z.is_empty());
        let Some(zone) = zone else { return Err("One or more endpoints do not have a zone specified".into()) };
        endpoint.hints = Some(Hints::zone(zone));
        if let Some((zone, _)) = shares.get_key_value(zone) {
            *has.entry(zone).or_default() += 1.0;
        }
    }
    // then from those that have more than their share to those that have less.
    let (mut giving, mut receiving): (BTreeMap<&str, f64>, BTreeMap<&str, f64>) = Default::default();
    for (zone, share) in shares {
        let (has, wants) = (has.get(zone.as_str()).copied().unwrap_or(0.0), (share * count as f64).max(least(*share)));
        let side = if has > wants { &mut giving } else { &mut receiving };
        side.insert(zone, (has - wants).abs());
    }
    let most = |of: &BTreeMap<&str, f64>| {
        of.iter().max_by(|a, b| a.1.total_cmp(b.1)).map_or(("", 0.0), |(z, n)| (zone_of(shares, z), *n))
    };
    loop {
        let ((from, give), (to, take)) = (most(&giving), most(&receiving));
        if (give < 1.0 && take < 1.0) || give < 0.5 || take < 0.5 {
            return Ok(());
        }
        giving.entry(from).and_modify(|n| *n -= 1.0);
        receiving.entry(to).and_modify(|n| *n -= 1.0);
        let own = Some(Hints::zone(from));
        if let Some(given) = endpoints.iter_mut().find(|e| e.zone.as_deref() == Some(from) && e.hints == own) {
            given.hints = Some(Hints::zone(to));
        }
    }
}

/// A zone's name as long-lived as the shares.
fn zone_of<'z>(shares: &'z BTreeMap<String, f64>, zone: &str) -> &'z str {
    shares.get_key_value(zone).map_or("", |(zone, _)| zone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn endpoints_are_shared_out_by_processors() {
        let shares = |list: &[(&str, f64)]| Some(list.iter().map(|(z, s)| (z.to_string(), *s)).collect());
        let halves = shares(&[("a", 0.5), ("b", 0.5)]);
        for (what, zones, endpoints, expect) in [
            ("own zones suffice", halves.clone(), "aabb", Ok("aabb")),
            ("one zone gives", halves.clone(), "aaab", Ok("baab")),
            ("the unready have none", halves.clone(), "aAabb", Ok("a-abb")),
            ("too few", halves.clone(), "a", Err("Insufficient number of endpoints (1 endpoints, 2 zones)")),
            (
                "nodes unknown",
                None,
                "ab",
                Err("Insufficient Node information: allocatable CPU or zone not specified on one or more nodes"),
            ),
            ("nowhere", halves, "abb?", Err("One or more endpoints do not have a zone specified")),
            (
                "no fair share",
                shares(&[("a", 0.2), ("b", 0.4), ("c", 0.4)]),
                "abc",
                Err(
                    "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold (3 endpoints, 3 zones)",
                ),
            ),
        ] {
            let made = endpoints.chars().map(|zone| {
                let ready = !zone.is_ascii_uppercase();
                let mut body = json!({"addresses": ["10.0.0.1"], "conditions": {"ready": ready}});
                if zone != '?' {
                    body["zone"] = zone.to_ascii_lowercase().to_string().into();
                }
                serde_json::from_value::<Endpoint>(body).unwrap()
            });
            let mut made: Vec<Endpoint> = made.collect();
            let outcome = hint(&zones, &mut made.iter_mut().collect::<Vec<_>>());
            let hints: String = made
                .iter()
                .map(|e| match serde_json::to_value(&e.hints).unwrap() {
                    Value::Null => "-".to_string(),
                    hints => hints["forZones"][0]["name"].as_str().unwrap().to_string(),
                })
                .collect();
            match expect {
                Ok(expect) => assert_eq!((outcome, hints.as_str()), (Ok(()), expect), "{what}"),
                Err(why) => {
                    assert_eq!(outcome, Err(why.to_string()), "{what}");
                    assert!(hints.chars().all(|h| h == '-'), "{what}");
                }
            }
        }
    }
}
