//! Addresses for Services of type LoadBalancer, where no cloud gives any.
//!
//! [`plan`] gives each such Service an address of a pool for each of its families, the one it asks for where it asks, and takes
//! addresses of the pool away from Services that are of that type no longer. Who has what stands in the Services' statuses
//! and nowhere else, so a restart knows all; of two that have one address the older keeps it. Services that name a class, or
//! have or want an address outside the pool, are somebody else's. What cannot be had is said in an event. The proxies of all
//! nodes answer for the addresses; how packets from elsewhere get to a node it does not know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use client::{Client, Informers, Patch, Recorder};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::Family;

/// Addresses looked at in one pool before it counts as used up: a pool is as large as a cluster has load balancers.
const MAX_POOL: usize = 1 << 16;
/// How soon a status that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub assignments: Vec<Assignment>,
    /// Services, `namespace/name`, that cannot have what they want, and why.
    pub complaints: BTreeMap<String, String>,
}

/// A Service's addresses as they shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub namespace: String,
    pub name: String,
    /// The version this was decided upon.
    pub resource_version: String,
    pub addresses: Vec<IpAddr>,
}

/// What is to be written for these Services.
pub fn plan<'a>(services: impl IntoIterator<Item = &'a Service>, pools: &[IpNet]) -> Plan {
    let in_pools = |address: &IpAddr| pools.iter().any(|pool| pool.contains(address));
    let mut services: Vec<&Service> = services.into_iter().collect();
    services.sort_by_cached_key(|service| {
        let made = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (made, key_of(service))
    });
    let mut out = Plan::default();
    let mut taken = BTreeSet::new();
    // First who keeps what: a newcomer gets nothing that somebody has.
    let mut wanting = Vec::new();
    for service in &services {
        let has = addresses(service);
        if !is_ours(service) {
            if !is_balanced(service) && has.iter().any(in_pools) {
                out.assignments.push(assign(service, Vec::new()));
            }
            continue;
        }
        if !has.iter().all(in_pools) {
            continue;
        }
        let asked = asked(service);
        let keeps = |family: &str| {
            let mut own = has.iter().copied().filter(|address| Family::of(*address).address_type() == family);
            own.find(|address| !taken.contains(address) && asked.as_ref().is_none_or(|asked| asked.allows(*address)))
        };
        let kept: Vec<(String, Option<IpAddr>)> =
            families(service).into_iter().map(|family| (family.clone(), keeps(&family))).collect();
        taken.extend(kept.iter().filter_map(|(_, address)| *address));
        wanting.push((service, has, asked, kept));
    }
    for (service, has, asked, kept) in wanting {
        let mut complain = |message: String| _ = out.complaints.insert(key_of(service), message);
        let mut chosen = Vec::new();
        for (family, kept) in kept {
            let of_family = || pools.iter().filter(|pool| Family::of(pool.addr()).address_type() == family);
            let free = match (kept, &asked) {
                (Some(kept), _) => Some(kept),
                // Waits until it is free, or until somebody else gives it.
                (None, Some(Asked::Nonsense(text))) => {
                    complain(format!("{text:?} is no address"));
                    None
                }
                (None, Some(Asked::Address(address))) if Family::of(*address).address_type() == family => {
                    let free = in_pools(address) && !taken.contains(address);
                    if !free {
                        let why = if in_pools(address) { "another Service has it" } else { "it is in no pool" };
                        complain(format!("{address} cannot be given: {why}"));
                    }
                    free.then_some(*address)
                }
                // A cluster without this family's addresses.
                _ if of_family().next().is_none() => None,
                _ => {
                    let free = of_family().flat_map(given_out).find(|address| !taken.contains(address));
                    if free.is_none() {
                        let all: Vec<String> = of_family().map(ToString::to_string).collect();
                        complain(format!("no address is left in {}", all.join(", ")));
                    }
                    free
                }
            };
            taken.extend(free);
            chosen.extend(free);
        }
        if chosen != has {
            out.assignments.push(assign(service, chosen));
        }
    }
    out
}

fn assign(service: &Service, addresses: Vec<IpAddr>) -> Assignment {
    Assignment {
        namespace: service.metadata.namespace.clone().unwrap_or_default(),
        name: service.metadata.name.clone().unwrap_or_default(),
        resource_version: service.metadata.resource_version.clone().unwrap_or_default(),
        addresses,
    }
}

/// An address a Service asks for: `loadBalancerIP`.
enum Asked {
    Address(IpAddr),
    Nonsense(String),
}

impl Asked {
    /// Whether an address may be kept: of the other family it may be any.
    fn allows(&self, address: IpAddr) -> bool {
        match self {
            Asked::Address(asked) => *asked == address || Family::of(*asked) != Family::of(address),
            Asked::Nonsense(_) => false,
        }
    }
}

fn asked(service: &Service) -> Option<Asked> {
    let text = service.spec.as_ref()?.load_balancer_ip.as_deref().filter(|text| !text.is_empty())?;
    Some(text.parse().map_or_else(|_| Asked::Nonsense(text.to_string()), Asked::Address))
}

fn families(service: &Service) -> Vec<String> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone());
    families.unwrap_or_else(|| vec![Family::V4.address_type().into()])
}

fn key_of(service: &Service) -> String {
    let metadata = &service.metadata;
    format!("{}/{}", metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

/// A pool's addresses in order, without the network's own (of IPv6, all routers' there).
fn given_out(pool: &IpNet) -> impl Iterator<Item = IpAddr> + use<> {
    let (own, single) = (pool.network(), pool.prefix_len() + 1 >= pool.max_prefix_len());
    pool.hosts().filter(move |address| single || *address != own).take(MAX_POOL)
}

fn is_balanced(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"))
}

fn is_ours(service: &Service) -> bool {
    let named = service.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_ref());
    is_balanced(service) && named.is_none() && service.metadata.deletion_timestamp.is_none()
}

fn addresses(service: &Service) -> Vec<IpAddr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    ingress.into_iter().flatten().filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect()
}

/// Gives and takes addresses until cancelled. One at a time in a cluster.
pub async fn run(client: Client, informers: Arc<Informers>, pools: Vec<IpNet>, cancel: CancellationToken) {
    let services = informers.get::<Service>();
    let recorder = Recorder::new(&client, "service-controller", "");
    let mut changes = services.subscribe();
    let mut said = BTreeMap::new();
    if cancel.run_until_cancelled(services.synced()).await.is_none() {
        return;
    }
    loop {
        while changes.try_next().is_some() {}
        let all: Vec<Arc<Service>> = services.list(None).iter().filter_map(|object| object.typed().ok()).collect();
        let plan = plan(all.iter().map(|service| &**service), &pools);
        let mut failed = false;
        for assignment in &plan.assignments {
            let written = write(&client, assignment).await;
            failed |= written == Written::NotYet;
            let key = format!("{}/{}", assignment.namespace, assignment.name);
            if written == Written::Yes
                && let Some(object) = services.get(&key)
            {
                match assignment.addresses.is_empty() {
                    true => recorder.normal(&object, "DeletedLoadBalancer", "Deleted load balancer"),
                    false => recorder.normal(&object, "EnsuredLoadBalancer", "Ensured load balancer"),
                }
            }
        }
        for (key, why) in plan.complaints.iter().filter(|(key, why)| said.get(*key) != Some(*why)) {
            let Some(object) = services.get(key) else { continue };
            let message = format!("Error syncing load balancer: failed to ensure load balancer: {why}");
            recorder.warning(&object, "SyncLoadBalancerFailed", message);
        }
        said = plan.complaints;
        tokio::select! {
            () = cancel.cancelled() => return,
            batch = changes.next() => if batch.is_none() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    Yes,
    /// The Service has changed or is gone: what follows its event decides anew.
    NotNow,
    NotYet,
}

async fn write(client: &Client, assignment: &Assignment) -> Written {
    let ingress: Vec<_> = assignment.addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
    let ingress = if ingress.is_empty() { json!(null) } else { json!(ingress) };
    let patch = json!({
        "metadata": {"resourceVersion": assignment.resource_version},
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    let api = client.api::<Service>().namespaced(&assignment.namespace);
    match api.patch_status(&assignment.name, Patch::Merge(patch)).await {
        Ok(_) => Written::Yes,
        Err(status) if status.is_conflict() || status.is_not_found() => Written::NotNow,
        Err(status) => {
            let Assignment { namespace, name, .. } = assignment;
            tracing::warn!("cannot write the address of Service {namespace}/{name}: {status}");
            Written::NotYet
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, spec: serde_json::Value, ips: &[&str]) -> Service {
        let ingress: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let metadata = json!({"name": name, "namespace": "ns", "resourceVersion": "7",
            "creationTimestamp": "2026-01-02T00:00:00Z"});
        serde_json::from_value(json!({"metadata": metadata,
            "spec": spec, "status": {"loadBalancer": {"ingress": ingress}}}))
        .unwrap()
    }

    fn older(mut service: Service) -> Service {
        service.metadata.creation_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        service
    }

    #[test]
    fn addresses_are_given_and_taken() {
        let balanced = json!({"type": "LoadBalancer", "ipFamilies": ["IPv4"]});
        let with = |key: &str, value: serde_json::Value| {
            let mut spec = balanced.clone();
            spec[key] = value;
            spec
        };
        let both = with("ipFamilies", json!(["IPv6", "IPv4"]));
        let full = "ns/b: no address is left in 192.0.2.0/30";
        let asking = |ip: &str| with("loadBalancerIP", json!(ip));
        let mut both_asking = both.clone();
        both_asking["loadBalancerIP"] = json!("192.0.2.2");
        let cases = [
            (vec![service("a", balanced.clone(), &[])], "a=192.0.2.1"),
            (vec![service("a", balanced.clone(), &["192.0.2.1"])], ""),
            (vec![service("a", balanced.clone(), &[]), service("b", balanced.clone(), &["192.0.2.1"])], "a=192.0.2.2"),
            (vec![service("a", both.clone(), &[])], "a=2001:db8::1,192.0.2.1"),
            // A family more, and one less.
            (vec![service("a", both.clone(), &["192.0.2.1"])], "a=2001:db8::1,192.0.2.1"),
            (vec![service("a", balanced.clone(), &["192.0.2.2", "2001:db8::1"])], "a=192.0.2.2"),
            (vec![service("a", with("loadBalancerClass", json!("cloud")), &[])], ""),
            (vec![service("a", with("loadBalancerClass", json!("cloud")), &["192.0.2.1"])], ""),
            (vec![service("a", asking("192.0.2.2"), &[])], "a=192.0.2.2"),
            // Another than it has, and of one family only.
            (vec![service("a", asking("192.0.2.2"), &["192.0.2.1"])], "a=192.0.2.2"),
            (vec![service("a", both_asking, &["2001:db8::2", "192.0.2.1"])], "a=2001:db8::2,192.0.2.2"),
            (vec![service("a", asking("198.51.100.1"), &[])], "ns/a: 198.51.100.1 cannot be given: it is in no pool"),
            (
                vec![service("a", asking("192.0.2.2"), &[]), service("b", balanced.clone(), &["192.0.2.2"])],
                "ns/a: 192.0.2.2 cannot be given: another Service has it",
            ),
            (vec![service("a", asking("x"), &["192.0.2.1"])], "a= ns/a: \"x\" is no address"),
            // Somebody else gave it.
            (vec![service("a", balanced.clone(), &["198.51.100.1"])], ""),
            // No longer of that type: taken away; but not what is somebody else's.
            (vec![service("a", json!({"type": "ClusterIP"}), &["192.0.2.1"])], "a="),
            (vec![service("a", json!({"type": "ClusterIP"}), &["198.51.100.1"])], ""),
            // Two have one: the older keeps it.
            (
                vec![
                    service("a", balanced.clone(), &["192.0.2.1"]),
                    older(service("b", balanced.clone(), &["192.0.2.1"])),
                ],
                "a=192.0.2.2",
            ),
            // Two addresses there are for three.
            (
                vec![
                    service("a", balanced.clone(), &[]),
                    service("b", balanced.clone(), &[]),
                    older(service("c", balanced.clone(), &[])),
                ],
                &format!("c=192.0.2.1 a=192.0.2.2 {full}"),
            ),
        ];
        let pools = ["192.0.2.0/30".parse().unwrap(), "2001:db8::/126".parse().unwrap()];
        for (services, expect) in cases {
            let plan = plan(&services, &pools);
            let mut got: Vec<String> = plan
                .assignments
                .iter()
                .map(|a| {
                    let list: Vec<String> = a.addresses.iter().map(IpAddr::to_string).collect();
                    format!("{}={}", a.name, list.join(","))
                })
                .collect();
            got.extend(plan.complaints.iter().map(|(key, why)| format!("{key}: {why}")));
            assert_eq!(got.join(" "), expect);
        }
    }
}
