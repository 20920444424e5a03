//! Service addresses: cluster IPs and node ports are handed out here, and held by the transaction that writes the Service.
//!
//! Which addresses a Service holds is a function of its body ([`claims`]): one key an address, written and removed in the
//! same transaction as the Service. So two Services can never hold one address, whichever of several API servers they
//! came through, and nothing leaks. Cluster IPs are IPAddress objects, as upstream's allocator makes them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use async_trait::async_trait;
use bytes::Bytes;
use ipnet::IpNet;
use meta::{FieldError, FieldPath, Status, Value};
use rand::Rng;
use resources::Resource;
use serde_json::json;

use super::service_families::{family_of, settle, texts};
use super::{Attributes, Operation, Plugin, Write};
use crate::clock;
use crate::server::ApiServer;

pub struct ServiceAddress;

/// Random tries at a free address before the range is searched from one end.
const RANDOM_TRIES: usize = 32;
/// Addresses of an IPv6 range that are given out: as many as the largest IPv4 range upstream takes has room for.
const MAX_RANGE: u128 = 1 << 20;
const NODE_PORT_PREFIX: &str = "/registry/ranges/servicenodeports/";

pub fn is_service(resource: &Resource) -> bool {
    resource.group.is_empty() && &*resource.plural == "services"
}

type Spec = serde_json::Map<String, Value>;

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn has_addresses(spec: &Spec) -> bool {
    matches!(spec.get("type").and_then(Value::as_str), None | Some("ClusterIP" | "NodePort" | "LoadBalancer"))
}

fn has_node_ports(spec: &Spec) -> bool {
    match spec.get("type").and_then(Value::as_str) {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec.get("allocateLoadBalancerNodePorts").and_then(Value::as_bool).unwrap_or(true),
        _ => false,
    }
}

/// The keys a body holds besides its own, and what is written there. Only Services hold any.
pub fn claims(resource: &Resource, body: Option<&Value>) -> BTreeMap<String, Bytes> {
    let mut out = BTreeMap::new();
    let Some(body) = body.filter(|_| is_service(resource)) else { return out };
    let (spec, metadata) = (&body["spec"], &body["metadata"]);
    if spec.as_object().is_some_and(has_addresses) {
        for ip in strings(&spec["clusterIPs"]).filter_map(|ip| ip.parse::<IpAddr>().ok()) {
            // As it is written canonically, whatever the client wrote: one address, one key.
            let (family, ip) = (family_of(ip), ip.to_string());
            let object = json!({
                "kind": "IPAddress", "apiVersion": "networking.k8s.io/v1",
                "metadata": {
                    "name": ip, "uid": uuid::Uuid::new_v4().to_string(), "creationTimestamp": clock::now(),
                    "labels": {"ipaddress.kubernetes.io/ip-family": family, "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"},
                },
                "spec": {"parentRef": {"resource": "services", "namespace": metadata["namespace"], "name": metadata["name"]}},
            });
            // A tree written by this function always encodes.
            if let Ok(raw) = meta::object::encode_stored(&object) {
                out.insert(format!("/registry/ipaddresses/{ip}"), raw);
            }
        }
    }
    let health = spec["healthCheckNodePort"].as_u64().filter(|p| *p != 0).map(|p| format!("{p}/TCP"));
    let ports = spec["ports"].as_array().into_iter().flatten().filter_map(|port| {
        let number = port["nodePort"].as_u64().filter(|p| *p != 0)?;
        Some(format!("{number}/{}", port["protocol"].as_str().unwrap_or("TCP")))
    });
    for port in ports.chain(health) {
        let holder = format!(
            "{}/{}",
            metadata["namespace"].as_str().unwrap_or_default(),
            metadata["name"].as_str().unwrap_or_default()
        );
        out.insert(format!("{NODE_PORT_PREFIX}{port}"), Bytes::from(holder));
    }
    out
}

/// What to tell the client whose address another Service holds.
pub fn taken(key: &str) -> FieldError {
    match key.strip_prefix(NODE_PORT_PREFIX).and_then(|p| p.split('/').next()).and_then(|p| p.parse::<u64>().ok()) {
        Some(port) => {
            FieldError::invalid(&FieldPath::new("spec.ports[0].nodePort"), port, "provided port is already allocated")
        }
        None => {
            let ip = key.rsplit('/').next().unwrap_or_default();
            let why = format!("failed to allocate IP {ip}: provided IP is already allocated");
            FieldError::invalid(&FieldPath::new("spec.clusterIPs"), json!([ip]), why)
        }
    }
}

#[async_trait]
impl Plugin for ServiceAddress {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.is("", "services") && matches!(a.operation, Operation::Create | Operation::Update)
    }

    async fn mutate(&self, write: &Write<'_>, service: &mut Value) -> Result<(), Status> {
        let Write { server, old, .. } = *write;
        let name = service["metadata"]["name"].as_str().unwrap_or_default().to_string();
        let refuse = |errors: Vec<FieldError>| Status::invalid("", "Service", &name, &errors);
        let asked = resources::kinds::service::asked_families(&service["spec"]);
        if !asked.is_empty() {
            return Err(refuse(asked));
        }
        let Some(spec) = service["spec"].as_object_mut() else { return Ok(()) };
        let before = old.and_then(|old| old["spec"].as_object());
        keep_addresses(spec, old);
        if has_addresses(spec) {
            settle(spec, before, &families(server)).map_err(refuse)?;
            assign_cluster_ips(server, spec, before).map_err(|error| refuse(vec![error]))?;
        }
        if has_node_ports(spec) {
            assign_node_ports(server, spec).map_err(|error| refuse(vec![error]))?;
        }
        Ok(())
    }
}

/// What an update leaves out, and what clients of one address do not know of: values that were given out are taken over
/// first, then `clusterIP` and `clusterIPs` are brought together (upstream's service storage does it in that order).
fn keep_addresses(spec: &mut Spec, old: Option<&Value>) {
    let one = |spec: &Spec| spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default().to_string();
    let Some(before) = old.and_then(|old| old["spec"].as_object()) else {
        let one = one(spec);
        if !one.is_empty() && texts(spec, "clusterIPs").is_empty() {
            spec.insert("clusterIPs".into(), json!([one]));
        }
        return;
    };
    let addressed = has_addresses(spec) && has_addresses(before);
    if addressed && one(spec).is_empty() && !one(before).is_empty() {
        spec.insert("clusterIP".into(), one(before).into());
    }
    if texts(spec, "clusterIPs").is_empty()
        && (addressed || one(spec) == one(before))
        && let Some(ips) = before.get("clusterIPs")
    {
        spec.insert("clusterIPs".into(), ips.clone());
    }
    keep_health_port(spec, before);
    keep_node_ports(spec, before);
    let (now, was) = (one(spec), one(before));
    if now != was && texts(spec, "clusterIPs") == texts(before, "clusterIPs") {
        if now.is_empty() {
            spec.remove("clusterIPs");
        } else {
            spec.insert("clusterIPs".into(), json!([now]));
        }
    }
}

fn keep_health_port(spec: &mut Spec, before: &Spec) {
    let has = |spec: &Spec| {
        let is = |field: &str, value: &str| spec.get(field).and_then(Value::as_str) == Some(value);
        is("type", "LoadBalancer") && is("externalTrafficPolicy", "Local")
    };
    let unsaid = spec.get("healthCheckNodePort").and_then(Value::as_u64).unwrap_or(0) == 0;
    if let Some(kept) = before.get("healthCheckNodePort")
        && unsaid
        && has(spec)
        && has(before)
    {
        spec.insert("healthCheckNodePort".into(), kept.clone());
    }
}

/// Node ports go by the names of ports. A Service that no longer has any gives them up unless its author changed them too:
/// then they are judged.
fn keep_node_ports(spec: &mut Spec, before: &Spec) {
    if !has_node_ports(before) {
        return;
    }
    let number = |port: &Value| port["nodePort"].as_u64().filter(|number| *number != 0);
    let ports = |spec: &Spec| spec.get("ports").and_then(Value::as_array).cloned().unwrap_or_default();
    let used = |ports: &[Value]| ports.iter().filter_map(number).collect::<std::collections::BTreeSet<u64>>();
    let (had, wants) = (ports(before), has_node_ports(spec));
    let (was, now) = (used(&had), used(&ports(spec)));
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let name = |port: &Value| port["name"].as_str().unwrap_or_default().to_string();
        let kept = had.iter().rfind(|old| name(old) == name(port)).and_then(number);
        let unsaid = number(port).is_none();
        let Some(port) = port.as_object_mut() else { continue };
        match kept {
            Some(kept) if wants && unsaid && !now.contains(&kept) => {
                port.insert("nodePort".into(), kept.into());
            }
            _ if !wants && was == now => {
                port.remove("nodePort");
            }
            _ => {}
        }
    }
}

/// The cluster's address families, the one Services get when they do not say first.
fn families(server: &ApiServer) -> Vec<&'static str> {
    server.config().service_cidrs.iter().map(|range| family_of(range.addr())).collect()
}

/// All ranges addresses are given out of: the server's own, and those of ServiceCIDRs that stand.
fn ranges(server: &ApiServer) -> Vec<IpNet> {
    let mut out = server.config().service_cidrs.clone();
    for object in server.lookup_all("networking.k8s.io", "servicecidrs", "") {
        let Some(body) = object.value().ok().filter(|_| object.meta.deletion_timestamp.is_none()) else { continue };
        out.extend(strings(&body["spec"]["cidrs"]).filter_map(|range| range.parse::<IpNet>().ok()));
    }
    out.sort();
    out.dedup();
    // The server's own first, in its order: the default family and the usual range.
    let own = |range: &IpNet| server.config().service_cidrs.iter().position(|o| o == range).unwrap_or(usize::MAX);
    out.sort_by_key(own);
    out
}

/// An address of each of the Service's families: the one asked for, or a free one. What it had already it keeps.
fn assign_cluster_ips(server: &ApiServer, spec: &mut Spec, before: Option<&Spec>) -> Result<(), FieldError> {
    let mut ips: Vec<String> = texts(spec, "clusterIPs").into_iter().map(str::to_string).collect();
    if ips.first().is_some_and(|ip| ip == "None") {
        return Ok(());
    }
    let families: Vec<String> = texts(spec, "ipFamilies").into_iter().map(str::to_string).collect();
    let had = before.map(|before| texts(before, "clusterIPs")).unwrap_or_default();
    let ranges = ranges(server);
    for (at, family) in families.iter().enumerate() {
        let mut of_family = ranges.iter().filter(|range| family_of(range.addr()) == family);
        match ips.get(at) {
            Some(ip) if had.contains(&ip.as_str()) => {}
            Some(ip) => check_ip(&ips, ip, &of_family.collect::<Vec<_>>())?,
            None => {
                let free = of_family.find_map(|range| free_ip(server, range));
                let full = || FieldError::internal(&FieldPath::new("spec.clusterIPs"), "range is full");
                ips.push(free.ok_or_else(full)?.to_string());
            }
        }
    }
    if let Some(first) = ips.first() {
        spec.insert("clusterIP".into(), first.as_str().into());
    }
    spec.insert("clusterIPs".into(), json!(ips));
    Ok(())
}

fn check_ip(all: &[String], ip: &str, ranges: &[&IpNet]) -> Result<(), FieldError> {
    if ip.parse::<IpAddr>().is_ok_and(|parsed| ranges.iter().any(|range| range.contains(&parsed))) {
        return Ok(());
    }
    let valid = ranges.iter().map(|range| range.to_string()).collect::<Vec<_>>().join(",");
    let why = format!(
        "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid IPs is {valid}"
    );
    Err(FieldError::invalid(&FieldPath::new("spec.clusterIPs"), json!(all), why))
}

/// An address of the range nobody holds, as far as the cache knows; the transaction makes sure.
fn free_ip(server: &ApiServer, range: &IpNet) -> Option<IpAddr> {
    let (base, last) = match (range.network(), range.broadcast()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (u128::from(u32::from(first)), u128::from(u32::from(last)) - 1),
        // No broadcast address there, and far more addresses than Services: enough of them to choose from.
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            (u128::from(first), u128::from(last).min(u128::from(first).saturating_add(MAX_RANGE)))
        }
        _ => return None,
    };
    let address = |number: u128| match range {
        IpNet::V4(_) => IpAddr::V4((number as u32).into()),
        IpNet::V6(_) => IpAddr::V6(number.into()),
    };
    let first = base + 1;
    if last < first {
        return None;
    }
    // The lowest addresses stay free for those who ask for one by name (DNS's tenth), as upstream keeps them.
    let reserved = ((last - first) / 16).clamp(16, 256).min((last - first) / 2);
    let is_free =
        |ip: &u128| server.lookup("networking.k8s.io", "ipaddresses", "", &address(*ip).to_string()).is_none();
    let mut rng = rand::rng();
    let random = (0..RANDOM_TRIES).map(|_| rng.random_range(first + reserved..=last)).find(is_free);
    let found = random.or_else(|| (first + reserved..=last).chain(first..first + reserved).find(is_free));
    found.map(address)
}

fn assign_node_ports(server: &ApiServer, spec: &mut serde_json::Map<String, Value>) -> Result<(), FieldError> {
    let (low, high) = server.config().node_ports;
    let used: Vec<u64> = server
        .lookup_all("", "services", "")
        .iter()
        .filter_map(|service| service.value().ok())
        .flat_map(|service| {
            let spec = &service["spec"];
            let ports: Vec<u64> = spec["ports"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|p| p["nodePort"].as_u64())
                .chain(spec["healthCheckNodePort"].as_u64())
                .collect();
            ports
        })
        .collect();
    let mut rng = rand::rng();
    let mut taken_here: Vec<u64> = Vec::new();
    let mut free = |taken_here: &[u64]| {
        let fine = |p: &u64| !used.contains(p) && !taken_here.contains(p);
        (0..RANDOM_TRIES)
            .map(|_| rng.random_range(u64::from(low)..=u64::from(high)))
            .find(fine)
            .or_else(|| (u64::from(low)..=u64::from(high)).find(fine))
    };
    for (at, port) in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
        let path = FieldPath::new("spec.ports").index(at).child("nodePort");
        match port["nodePort"].as_u64().filter(|p| *p != 0) {
            Some(named) if named < u64::from(low) || named > u64::from(high) => {
                return Err(FieldError::invalid(
                    &path,
                    named,
                    format!("provided port is not in the valid range. The range of valid ports is {low}-{high}"),
                ));
            }
            Some(named) => taken_here.push(named),
            None => {
                let found = free(&taken_here)
                    .ok_or_else(|| FieldError::internal(&path, "failed to allocate a nodePort: range is full"))?;
                taken_here.push(found);
                port["nodePort"] = found.into();
            }
        }
    }
    let local = spec.get("externalTrafficPolicy").and_then(Value::as_str) == Some("Local");
    if local
        && spec.get("type").and_then(Value::as_str) == Some("LoadBalancer")
        && spec.get("healthCheckNodePort").and_then(Value::as_u64).unwrap_or(0) == 0
    {
        let path = FieldPath::new("spec.healthCheckNodePort");
        let found = free(&taken_here)
            .ok_or_else(|| FieldError::internal(&path, "failed to allocate a nodePort: range is full"))?;
        spec.insert("healthCheckNodePort".into(), found.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::{MASTERS, User};
    use crate::testing::Fixture;
    use meta::Verb;

    /// Addresses of each family, in ranges of the server's and of a ServiceCIDR's, and the IPAddress behind each.
    #[tokio::test]
    async fn addresses_of_two_families() {
        let fixture = Fixture::start().await;
        let admin = User::new("admin", &[MASTERS]);
        let ask = async |verb, resource: &str, name: &str, body: Value| {
            let namespace = if resource.contains('/') { "" } else { "default" };
            fixture.ask(&admin, verb, resource, namespace, name, body).await
        };
        let service = |name: &str, spec: Value| {
            let mut body = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
            body["spec"]["ports"] = json!([{"port": 80}]);
            body
        };
        let create = async |name: &str, spec: Value| ask(Verb::Create, "services", "", service(name, spec)).await;
        let dual = create("dual", json!({"ipFamilyPolicy": "PreferDualStack"})).await.unwrap();
        let ips: Vec<IpAddr> = strings(&dual["spec"]["clusterIPs"]).map(|ip| ip.parse().unwrap()).collect();
        assert!(ips.len() == 2 && ips[0].is_ipv4() && ips[1].is_ipv6(), "{dual}");
        let address =
            ask(Verb::Get, "networking.k8s.io/v1/ipaddresses", &ips[1].to_string(), Value::Null).await.unwrap();
        assert_eq!(address["metadata"]["labels"]["ipaddress.kubernetes.io/ip-family"], "IPv6");

        let six = create("six", json!({"ipFamilies": ["IPv6"]})).await.unwrap();
        assert_eq!(six["spec"]["clusterIPs"].as_array().map(Vec::len), Some(1), "{six}");
        let refused = create("taken", json!({"clusterIP": ips[1], "clusterIPs": [ips[1]]})).await.unwrap_err();
        assert!(refused.message.contains("already allocated"), "{refused}");
        let outside = json!({"clusterIP": "fd97::5"});
        let refused = create("outside", outside.clone()).await.unwrap_err();
        assert!(refused.message.contains("The range of valid IPs is fd96::/112"), "{refused}");
        let more = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["fd97::/112"]}});
        ask(Verb::Create, "networking.k8s.io/v1/servicecidrs", "", more).await.unwrap();
        assert_eq!(create("outside", outside).await.unwrap()["spec"]["clusterIPs"], json!(["fd97::5"]));

        // One stack less frees the address, one more finds a new one.
        let mut single = dual.clone();
        single["spec"]["ipFamilyPolicy"] = "SingleStack".into();
        let single = ask(Verb::Update, "services", "dual", single).await.unwrap();
        assert_eq!(single["spec"]["clusterIPs"], json!([ips[0]]));
        create("again", json!({"clusterIP": ips[1]})).await.unwrap();
        let mut both = single.clone();
        both["spec"]["ipFamilyPolicy"] = "RequireDualStack".into();
        let both = ask(Verb::Update, "services", "dual", both).await.unwrap();
        assert_eq!(both["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_ne!(both["spec"]["clusterIPs"][1], json!(ips[1]));
    }
}
