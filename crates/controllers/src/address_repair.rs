//! A Service's cluster IPs and the IPAddresses that hold them, kept one to one.
//!
//! Both are written in one transaction; this puts right what somebody else did to either since: an IPAddress that was
//! deleted or given to another comes back to its Service, one that the allocator made and no Service holds goes. IPAddresses
//! of other makers are theirs. It does not give out addresses.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use client::Informer;
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use meta::Object;
use serde_json::{Value, json};

use crate::plan::{Action, Note, Plan};
use crate::runner::{Controller, own_key};
use crate::{Context, decoded};

const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// What one transaction changed is heard of Services and of IPAddresses apart: by then of both.
const SETTLING: Duration = Duration::from_secs(5);
/// How old an IPAddress without its Service must be: an older server writes it first.
const GRACE: Duration = Duration::from_secs(60);

/// What is known of the other side.
trait World {
    fn address(&self, name: &str) -> Option<(Arc<Object>, Arc<IPAddress>)>;
    /// The cluster IPs of a Service, if it is there.
    fn held(&self, namespace: &str, name: &str) -> Option<Vec<IpAddr>>;
    fn is_in_range(&self, ip: IpAddr) -> bool;
}

fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let spec = service.spec.iter().filter(|spec| spec.type_.as_deref() != Some("ExternalName"));
    spec.flat_map(|spec| spec.cluster_ips.iter().flatten()).filter_map(|ip| ip.parse().ok()).collect()
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The namespace and name of the Service an IPAddress refers to.
fn parent(address: &IPAddress) -> Option<(&str, &str)> {
    let parent = &address.spec.parent_ref;
    let is_service = parent.group.as_deref().unwrap_or_default().is_empty() && parent.resource == "services";
    is_service.then(|| (parent.namespace.as_deref().unwrap_or_default(), parent.name.as_str()))
}

fn label<'a>(address: &'a IPAddress, name: &str) -> Option<&'a str> {
    address.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

fn new_address(ip: IpAddr, namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {"name": ip.to_string(), "labels": {FAMILY: family(ip), MANAGED_BY: ALLOCATOR}},
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": name}},
    })
}

/// What is to be done for a Service.
fn of_service(world: &impl World, object: &Object, service: &Service) -> Plan {
    let resource = client::gvr_of::<IPAddress>();
    let mut plan = Plan::nothing();
    let (namespace, name) = (&*object.meta.namespace, &*object.meta.name);
    for ip in cluster_ips(service) {
        let (of, text) = (family(ip), ip.to_string());
        let say = |reason, message: String| Note::warning(object, reason, message);
        let create = || Action::create(&resource, "", new_address(ip, namespace, name)).may_exist().where_allowed();
        if !world.is_in_range(ip) {
            let why = "is not within any configured Service CIDR; please recreate service";
            plan.note(say("ClusterIPOutOfRange", format!("Cluster IP [{of}]: {text} {why}")));
            continue;
        }
        let Some((known, address)) = world.address(&text) else {
            plan.note(say("ClusterIPNotAllocated", format!("Cluster IP [{of}]: {text} is not allocated; repairing")));
            plan.act(create());
            continue;
        };
        let holder = parent(&address);
        if let Some((other_namespace, other)) = holder.filter(|holder| *holder != (namespace, name))
            && world.held(other_namespace, other).is_some_and(|held| held.contains(&ip))
        {
            let why = "was assigned to multiple services; please recreate service";
            plan.note(say("ClusterIPAlreadyAllocated", format!("Cluster IP [{of}]:{text} {why}")));
            continue;
        }
        let is_ours = holder == Some((namespace, name));
        if is_ours && label(&address, FAMILY) == Some(of) && label(&address, MANAGED_BY) == Some(ALLOCATOR) {
            continue;
        }
        if !is_ours {
            let why = format!("for Service {namespace}/{name} has a wrong reference; repairing");
            plan.note(say("ClusterIPNotAllocated", format!("the ClusterIP [{of}]: {text} {why}")));
        }
        plan.act(Action::delete(&resource, &known).where_allowed());
        plan.act(create());
    }
    plan
}

/// What is to be done about an IPAddress.
fn of_address(world: &impl World, object: &Object, address: &IPAddress, now: Timestamp) -> Plan {
    let resource = client::gvr_of::<IPAddress>();
    let mut plan = Plan::nothing();
    let ip = &object.meta.name;
    let mut go = |reason, message: String| {
        plan.note(Note::warning(object, reason, message));
        plan.act(Action::delete(&resource, object).where_allowed());
    };
    if label(address, MANAGED_BY) != Some(ALLOCATOR) {
        return plan;
    }
    let Some((namespace, name)) = parent(address) else {
        let message = format!("IPAddress {ip} appears to have been modified, not referencing a Service: cleaning up");
        go("IPAddressNotAllocated", message);
        return plan;
    };
    match world.held(namespace, name) {
        Some(held) if held.iter().any(|held| held.to_string() == **ip) => {}
        Some(_) => go(
            "IPAddressWrongReference",
            format!("IPAddress: {ip} for Service {namespace}/{name} has a wrong reference; cleaning up"),
        ),
        None => {
            let created = address.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
            let age = Duration::try_from(now.duration_since(created)).unwrap_or_default();
            if age > GRACE {
                let message =
                    format!("IPAddress: {ip} for Service {namespace}/{name} appears to have leaked: cleaning up");
                go("IPAddressNotAllocated", message);
            } else {
                plan.again_after(GRACE - age + Duration::from_secs(1));
            }
        }
    }
    plan
}

struct Informed {
    services: Arc<Informer>,
    addresses: Arc<Informer>,
    ranges: Arc<Informer>,
}

impl World for Informed {
    fn address(&self, name: &str) -> Option<(Arc<Object>, Arc<IPAddress>)> {
        let object = self.addresses.get(name)?;
        let address = decoded(&object).ok()?;
        Some((object, address))
    }

    fn held(&self, namespace: &str, name: &str) -> Option<Vec<IpAddr>> {
        let object = self.services.get(&meta::object::object_key(namespace, name))?;
        decoded::<Service>(&object).ok().map(|service| cluster_ips(&service))
    }

    fn is_in_range(&self, ip: IpAddr) -> bool {
        let ranges = self.ranges.list(None);
        let mut ranges = ranges.iter().filter_map(|object| decoded::<ServiceCIDR>(object).ok());
        ranges.any(|range| {
            let mut texts = range.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
            texts.any(|text| text.parse::<IpNet>().is_ok_and(|net| net.contains(&ip)))
        })
    }
}

pub fn address_repair(cx: &Context) -> Controller {
    let informers = &cx.informers;
    let (services, addresses) = (informers.get::<Service>(), informers.get::<IPAddress>());
    let ranges = informers.get::<ServiceCIDR>();
    let world = Informed { services: services.clone(), addresses: addresses.clone(), ranges: ranges.clone() };
    Controller::new("ipallocator-repair-controller", move |ask| {
        // A Service's key has a namespace before it, an IPAddress's none.
        if ask.key.contains('/') {
            let Some(object) = world.services.get(&ask.key) else { return Ok(Plan::nothing()) };
            return Ok(of_service(&world, &object, &*decoded(&object)?));
        }
        let Some((object, address)) = world.address(&ask.key) else { return Ok(Plan::nothing()) };
        Ok(of_address(&world, &object, &address, ask.now))
    })
    .watch(&services, |change| {
        let both = [&change.old, &change.new].into_iter().flatten();
        let held = both.filter_map(|object| decoded::<Service>(object).ok()).flat_map(|s| cluster_ips(&s));
        own_key(change).into_iter().chain(held.map(|ip| ip.to_string())).collect()
    })
    .watch(&addresses, |change| {
        let both = [&change.old, &change.new].into_iter().flatten();
        let read = both.filter_map(|object| decoded::<IPAddress>(object).ok());
        let parents =
            read.filter_map(|a| parent(&a).map(|(namespace, name)| meta::object::object_key(namespace, name)));
        own_key(change).into_iter().chain(parents).collect()
    })
    .read(&ranges)
    .settling(SETTLING)
    .workers(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Default)]
    struct Told {
        addresses: BTreeMap<String, Value>,
        services: BTreeMap<String, Vec<IpAddr>>,
    }

    impl World for Told {
        fn address(&self, name: &str) -> Option<(Arc<Object>, Arc<IPAddress>)> {
            let body = self.addresses.get(name)?;
            let typed = serde_json::from_value(body.clone()).unwrap();
            Some((Arc::new(Object::from_value(body).unwrap()), Arc::new(typed)))
        }

        fn held(&self, namespace: &str, name: &str) -> Option<Vec<IpAddr>> {
            self.services.get(&format!("{namespace}/{name}")).cloned()
        }

        fn is_in_range(&self, ip: IpAddr) -> bool {
            ip.to_string().starts_with("10.96.")
        }
    }

    fn address(ip: &str, change: impl FnOnce(&mut Value)) -> (String, Value) {
        let mut body = new_address(ip.parse().unwrap(), "ns", "a");
        body["metadata"]["uid"] = "u".into();
        body["metadata"]["creationTimestamp"] = "2026-01-02T03:00:00Z".into();
        change(&mut body);
        (ip.to_string(), body)
    }

    fn show(plan: &Plan) -> String {
        let notes = plan.notes.iter().map(|note| format!("{}: {}", note.reason, note.message));
        let later = plan.again.map(|delay| format!("again after {} s", delay.as_secs()));
        let actions = plan.actions.iter().map(ToString::to_string);
        notes.chain(actions).chain(later).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn services_get_their_addresses_back() {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "ns", "uid": "s"},
            "spec": {"type": "ClusterIP", "clusterIPs": ["10.96.0.1"]}});
        let check = |address: Option<(String, Value)>, others: &[&str], expect: &str| {
            let mut world = Told { addresses: address.into_iter().collect(), ..Told::default() };
            world.services.insert("ns/b".into(), others.iter().map(|ip| ip.parse().unwrap()).collect());
            let object = Object::from_value(&service).unwrap();
            assert_eq!(show(&of_service(&world, &object, &serde_json::from_value(service.clone()).unwrap())), expect);
        };
        let ip = "10.96.0.1";
        check(Some(address(ip, |_| {})), &[], "");
        let missing = "ClusterIPNotAllocated: Cluster IP [IPv4]: 10.96.0.1 is not allocated; repairing";
        check(None, &[], &format!("{missing}; create ipaddresses 10.96.0.1"));
        let again = "delete ipaddresses 10.96.0.1; create ipaddresses 10.96.0.1";
        check(Some(address(ip, |a| a["metadata"]["labels"] = json!({}))), &[], again);
        let wrong =
            "ClusterIPNotAllocated: the ClusterIP [IPv4]: 10.96.0.1 for Service ns/a has a wrong reference; repairing";
        let of_b = || Some(address(ip, |a| a["spec"]["parentRef"]["name"] = "b".into()));
        check(of_b(), &[], &format!("{wrong}; {again}"));
        check(Some(address(ip, |a| a["spec"]["parentRef"]["group"] = "x".into())), &[], &format!("{wrong}; {again}"));
        let twice = "ClusterIPAlreadyAllocated: Cluster IP [IPv4]:10.96.0.1 was assigned to multiple services; please recreate service";
        check(of_b(), &[ip], twice);
    }

    #[test]
    fn addresses_of_nobody_go() {
        let check = |now: &str, held: Option<&str>, change: fn(&mut Value), expect: &str| {
            let mut world = Told::default();
            if let Some(ip) = held {
                world.services.insert("ns/a".into(), vec![ip.parse().unwrap()]);
            }
            let (_, body) = address("10.96.0.1", change);
            let object = Object::from_value(&body).unwrap();
            let typed = serde_json::from_value(body).unwrap();
            assert_eq!(show(&of_address(&world, &object, &typed, now.parse().unwrap())), expect);
        };
        let (soon, late) = ("2026-01-02T03:00:20Z", "2026-01-02T03:02:00Z");
        check(late, Some("10.96.0.1"), |_| {}, "");
        check(soon, None, |_| {}, "again after 41 s");
        check(
            late,
            None,
            |_| {},
            "IPAddressNotAllocated: IPAddress: 10.96.0.1 for Service ns/a appears to have leaked: cleaning up; \
             delete ipaddresses 10.96.0.1",
        );
        check(
            late,
            Some("10.96.0.2"),
            |_| {},
            "IPAddressWrongReference: IPAddress: 10.96.0.1 for Service ns/a has a wrong reference; cleaning up; \
             delete ipaddresses 10.96.0.1",
        );
        check(
            soon,
            None,
            |a| a["spec"]["parentRef"]["resource"] = "gateways".into(),
            "IPAddressNotAllocated: IPAddress 10.96.0.1 appears to have been modified, not referencing a Service: \
             cleaning up; delete ipaddresses 10.96.0.1",
        );
        check(late, None, |a| a["metadata"]["labels"] = json!({}), "");
    }
}
