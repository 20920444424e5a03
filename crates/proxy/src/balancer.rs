//! Addresses for Services of type LoadBalancer, where no cloud gives any.
//!
//! [`plan`] gives each such Service without an address one of a pool, for each of its families, and takes addresses of
//! the pool away from Services that are of that type no longer. Who has what stands in the Services' statuses and nowhere
//! else, so a restart knows all. Services that name a class, or an address outside the pool, are somebody else's. The
//! proxies of all nodes answer for the addresses; how packets from elsewhere get to a node it does not know.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use client::{Client, Informers, Patch};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::Family;

/// Addresses looked at in one pool before it counts as used up: a pool is as large as a cluster has load balancers.
const MAX_POOL: usize = 1 << 16;
/// How soon a status that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// A Service's addresses as they shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub namespace: String,
    pub name: String,
    /// The version this was decided upon.
    pub resource_version: String,
    pub addresses: Vec<IpAddr>,
}

/// What is to be written for these Services; and whether a pool is used up.
pub fn plan<'a>(services: impl IntoIterator<Item = &'a Service> + Clone, pools: &[IpNet]) -> (Vec<Assignment>, bool) {
    let in_pools = |address: &IpAddr| pools.iter().any(|pool| pool.contains(address));
    let mut taken: BTreeSet<IpAddr> =
        services.clone().into_iter().filter(|service| is_ours(service)).flat_map(addresses).collect();
    let (mut out, mut used_up) = (Vec::new(), false);
    for service in services {
        let assign = |addresses| Assignment {
            namespace: service.metadata.namespace.clone().unwrap_or_default(),
            name: service.metadata.name.clone().unwrap_or_default(),
            resource_version: service.metadata.resource_version.clone().unwrap_or_default(),
            addresses,
        };
        let has = addresses(service);
        if !is_ours(service) {
            if !is_balanced(service) && has.iter().any(in_pools) {
                out.push(assign(Vec::new()));
            }
            continue;
        }
        if !has.is_empty() {
            continue;
        }
        let spec = service.spec.as_ref();
        let asked = spec.and_then(|spec| spec.load_balancer_ip.as_deref()).filter(|text| !text.is_empty());
        let families = spec.and_then(|spec| spec.ip_families.clone()).unwrap_or_else(|| vec!["IPv4".into()]);
        let chosen: Vec<IpAddr> = match asked.map(str::parse::<IpAddr>) {
            Some(Ok(address)) if in_pools(&address) && !taken.contains(&address) => vec![address],
            // Waits until it is free, or until somebody else gives it.
            Some(_) => Vec::new(),
            None => families
                .iter()
                .filter_map(|family| {
                    let mut of_family =
                        pools.iter().filter(|pool| Family::of(pool.addr()).address_type() == family).peekable();
                    of_family.peek()?;
                    let free = of_family.flat_map(given_out).find(|a| !taken.contains(a));
                    used_up |= free.is_none();
                    free
                })
                .collect(),
        };
        if !chosen.is_empty() {
            taken.extend(&chosen);
            out.push(assign(chosen));
        }
    }
    (out, used_up)
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
    let mut changes = services.subscribe();
    let mut said = false;
    if cancel.run_until_cancelled(services.synced()).await.is_none() {
        return;
    }
    loop {
        while changes.try_next().is_some() {}
        let all: Vec<Arc<Service>> = services.list(None).iter().filter_map(|object| object.typed().ok()).collect();
        let (assignments, used_up) = plan(all.iter().map(|service| &**service), &pools);
        if used_up && !said {
            tracing::warn!(?pools, "no address is left for another Service of type LoadBalancer");
        }
        said = used_up;
        let mut failed = false;
        for assignment in assignments {
            failed |= !write(&client, &assignment).await;
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            batch = changes.next() => if batch.is_none() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

async fn write(client: &Client, assignment: &Assignment) -> bool {
    let ingress: Vec<_> = assignment.addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
    let ingress = if ingress.is_empty() { json!(null) } else { json!(ingress) };
    let patch = json!({
        "metadata": {"resourceVersion": assignment.resource_version},
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    let api = client.api::<Service>().namespaced(&assignment.namespace);
    match api.patch_status(&assignment.name, Patch::Merge(patch)).await {
        Ok(_) => true,
        // The Service has changed or is gone: what follows its event decides anew.
        Err(status) if status.is_conflict() || status.is_not_found() => true,
        Err(status) => {
            let Assignment { namespace, name, .. } = assignment;
            tracing::warn!("cannot write the address of Service {namespace}/{name}: {status}");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, spec: serde_json::Value, ips: &[&str]) -> Service {
        let ingress: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns", "resourceVersion": "7"},
            "spec": spec, "status": {"loadBalancer": {"ingress": ingress}}}))
        .unwrap()
    }

    #[test]
    fn addresses_are_given_and_taken() {
        let balanced = json!({"type": "LoadBalancer", "ipFamilies": ["IPv4"]});
        let with = |key: &str, value: serde_json::Value| {
            let mut spec = balanced.clone();
            spec[key] = value;
            spec
        };
        let cases = [
            (vec![service("a", balanced.clone(), &[])], "a=192.0.2.1"),
            (vec![service("a", balanced.clone(), &["192.0.2.1"])], ""),
            (vec![service("a", balanced.clone(), &[]), service("b", balanced.clone(), &["192.0.2.1"])], "a=192.0.2.2"),
            (vec![service("a", with("ipFamilies", json!(["IPv6", "IPv4"])), &[])], "a=2001:db8::1,192.0.2.1"),
            (vec![service("a", with("loadBalancerClass", json!("cloud")), &[])], ""),
            (vec![service("a", with("loadBalancerIP", json!("192.0.2.2")), &[])], "a=192.0.2.2"),
            (vec![service("a", with("loadBalancerIP", json!("198.51.100.1")), &[])], ""),
            // No longer of that type: taken away; but not what is somebody else's.
            (vec![service("a", json!({"type": "ClusterIP"}), &["192.0.2.1"])], "a="),
            (vec![service("a", json!({"type": "ClusterIP"}), &["198.51.100.1"])], ""),
            // Two addresses there are for three.
            (
                ["a", "b", "c"].map(|name| service(name, balanced.clone(), &[])).into(),
                "a=192.0.2.1 b=192.0.2.2 used up",
            ),
        ];
        let pools = ["192.0.2.0/30".parse().unwrap(), "2001:db8::/126".parse().unwrap()];
        for (services, expect) in cases {
            let (assignments, used_up) = plan(&services, &pools);
            let mut got: Vec<String> = assignments
                .iter()
                .map(|a| {
                    let list: Vec<String> = a.addresses.iter().map(IpAddr::to_string).collect();
                    format!("{}={}", a.name, list.join(","))
                })
                .collect();
            got.extend(used_up.then(|| "used up".to_string()));
            assert_eq!(got.join(" "), expect);
        }
    }
}
