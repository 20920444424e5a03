//! Service addresses: cluster IPs and node ports are handed out here, and held by the transaction that writes the Service.
//!
//! Which addresses a Service holds is a function of its body ([`claims`]): one key an address, written and removed in the
//! same transaction as the Service. So two Services can never hold one address, whichever of several API servers they
//! came through, and nothing leaks. Cluster IPs are IPAddress objects, as upstream's allocator makes them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use async_trait::async_trait;
use bytes::Bytes;
use meta::{FieldError, FieldPath, Status, Value};
use rand::Rng;
use resources::Resource;
use serde_json::json;

use super::{Attributes, Operation, Plugin};
use crate::clock;
use crate::server::ApiServer;

pub struct ServiceAddress;

/// Random tries at a free address before the range is searched from one end.
const RANDOM_TRIES: usize = 32;
const NODE_PORT_PREFIX: &str = "/registry/ranges/servicenodeports/";

fn is_service(resource: &Resource) -> bool {
    resource.group.is_empty() && &*resource.plural == "services"
}

fn strings<'a>(list: &'a Value) -> impl Iterator<Item = &'a str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn has_addresses(spec: &Value) -> bool {
    matches!(spec["type"].as_str(), None | Some("ClusterIP" | "NodePort" | "LoadBalancer"))
}

fn has_node_ports(spec: &Value) -> bool {
    match spec["type"].as_str() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec["allocateLoadBalancerNodePorts"].as_bool().unwrap_or(true),
        _ => false,
    }
}

/// The keys a body holds besides its own, and what is written there. Only Services hold any.
pub fn claims(resource: &Resource, body: Option<&Value>) -> BTreeMap<String, Bytes> {
    let mut out = BTreeMap::new();
    let Some(body) = body.filter(|_| is_service(resource)) else { return out };
    let (spec, metadata) = (&body["spec"], &body["metadata"]);
    if has_addresses(spec) {
        for ip in strings(&spec["clusterIPs"]).filter(|ip| *ip != "None") {
            let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
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
    async fn mutate(
        &self,
        server: &ApiServer,
        a: &Attributes<'_>,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        if !a.is("", "services") || !matches!(a.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        let name = service["metadata"]["name"].as_str().unwrap_or_default().to_string();
        let refuse = |error: FieldError| Status::invalid("", "Service", &name, &[error]);
        let Some(spec) = service["spec"].as_object_mut() else { return Ok(()) };
        keep_addresses(spec, old);
        if has_addresses(&Value::Object(spec.clone())) {
            let cluster_ip = spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default().to_string();
            match &*cluster_ip {
                "" => {
                    let ip = match spec.get("clusterIPs").map(strings).and_then(|mut l| l.next()) {
                        Some(ip) => ip.to_string(),
                        None => free_ip(server).map_err(refuse)?.to_string(),
                    };
                    spec.insert("clusterIP".into(), ip.as_str().into());
                    spec.insert("clusterIPs".into(), json!([ip]));
                }
                ip => {
                    if ip != "None" {
                        check_ip(server, ip).map_err(refuse)?;
                    }
                    spec.insert("clusterIPs".into(), json!([ip]));
                }
            }
            spec.entry("ipFamilyPolicy").or_insert_with(|| "SingleStack".into());
            let family = if cluster_ip.contains(':') { "IPv6" } else { "IPv4" };
            spec.entry("ipFamilies").or_insert_with(|| json!([family]));
        }
        if has_node_ports(&Value::Object(spec.clone())) {
            assign_node_ports(server, spec).map_err(refuse)?;
        }
        Ok(())
    }
}

/// An update that leaves an address out keeps it; one that changes the type gives it up.
fn keep_addresses(spec: &mut serde_json::Map<String, Value>, old: Option<&Value>) {
    let kind = spec.get("type").and_then(Value::as_str).unwrap_or("ClusterIP").to_string();
    if kind == "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
    }
    let Some(before) = old.map(|o| &o["spec"]) else { return };
    if kind != "ExternalName"
        && has_addresses(before)
        && spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default().is_empty()
    {
        for field in ["clusterIP", "clusterIPs"] {
            if !before[field].is_null() {
                spec.insert(field.into(), before[field].clone());
            }
        }
    }
    let wants_ports = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
    let had_ports = has_node_ports(before);
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let same = |o: &&Value| o["port"] == port["port"] && o["protocol"] == port["protocol"];
        let kept = before["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(same)
            .map(|o| o["nodePort"].clone())
            .filter(|p| !p.is_null());
        let Some(port) = port.as_object_mut() else { continue };
        let named = port.get("nodePort").and_then(Value::as_u64).unwrap_or(0) != 0;
        if !wants_ports && had_ports && kept.as_ref() == port.get("nodePort") {
            port.remove("nodePort");
        } else if wants_ports
            && !named
            && let Some(kept) = kept
        {
            port.insert("nodePort".into(), kept);
        }
    }
}

fn check_ip(server: &ApiServer, ip: &str) -> Result<(), FieldError> {
    let path = FieldPath::new("spec.clusterIPs").index(0);
    let parsed: IpAddr = ip
        .parse()
        .map_err(|_| FieldError::invalid(&path, ip, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))?;
    let range = server.config().service_cidr;
    match parsed {
        IpAddr::V4(v4) if range.contains(&v4) => Ok(()),
        _ => Err(FieldError::invalid(
            &FieldPath::new("spec.clusterIPs"),
            json!([ip]),
            format!(
                "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid IPs is {range}"
            ),
        )),
    }
}

fn free_ip(server: &ApiServer) -> Result<Ipv4Addr, FieldError> {
    let range = server.config().service_cidr;
    let (first, last) = (u32::from(range.network()) + 1, u32::from(range.broadcast()).saturating_sub(1));
    // The lowest addresses stay free for those who ask for one by name (DNS's tenth), as upstream keeps them.
    let reserved = (((last - first) / 16).clamp(16, 256)).min((last - first) / 2);
    let is_free =
        |ip: u32| server.lookup("networking.k8s.io", "ipaddresses", "", &Ipv4Addr::from(ip).to_string()).is_none();
    let mut rng = rand::rng();
    let random = (0..RANDOM_TRIES).map(|_| rng.random_range(first + reserved..=last)).find(|ip| is_free(*ip));
    let found =
        random.or_else(|| (first + reserved..=last).chain(first + 10..first + reserved).find(|ip| is_free(*ip)));
    found.map(Ipv4Addr::from).ok_or_else(|| FieldError::internal(&FieldPath::new("spec.clusterIPs"), "range is full"))
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
