//! networking.k8s.io: ingresses, their classes, network policies, service addresses.

use meta::Value;

use crate::cells::{age, name, or_none, selector, texts};
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    Ingress: "Name|Class|Hosts|Address|Ports|Age";
    IngressClass: "Name|Controller|Parameters|Age";
    IpAddress: "Name|ParentRef|Age";
    NetworkPolicy: "Name|Pod-Selector|Age";
    ServiceCidr: "Name|CIDRs|Age";
}

/// Rules whose hosts are shown before the rest is counted.
const HOSTS_SHOWN: usize = 3;

/// Addresses of a load balancer's status: each address or, without one, host name once, sorted.
pub fn balancer_addresses(ingress: &[Value]) -> String {
    let address = |i: &Value| Some(i.text("ip")).filter(|t| !t.is_empty()).unwrap_or(i.text("hostname")).to_string();
    let mut all: Vec<String> = ingress.iter().map(address).filter(|t| !t.is_empty()).collect();
    all.sort();
    all.dedup();
    all.join(",")
}

fn hosts(rules: &[Value]) -> String {
    let hosts: Vec<&str> = rules.iter().map(|r| r.text("host")).filter(|h| !h.is_empty()).take(HOSTS_SHOWN).collect();
    match rules.len().saturating_sub(HOSTS_SHOWN) {
        _ if hosts.is_empty() => "*".into(),
        more if more > 0 && hosts.len() == HOSTS_SHOWN => format!("{} + {more} more...", hosts.join(",")),
        _ => hosts.join(","),
    }
}

impl Strategy for Ingress {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let ports = if object.list("spec.tls").is_empty() { "80" } else { "80, 443" };
        vec![
            name(object),
            object.at("spec.ingressClassName").as_str().unwrap_or("<none>").into(),
            hosts(object.list("spec.rules")).into(),
            balancer_addresses(object.list("status.loadBalancer.ingress")).into(),
            ports.into(),
            age(object, now),
        ]
    }
}

impl Strategy for IngressClass {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let parameters = object.at("spec.parameters");
        let text = match (parameters.is_null(), parameters.at("apiGroup").as_str()) {
            (true, _) => String::new(),
            (_, Some(group)) => format!("{}.{group}/{}", parameters.text("kind"), parameters.text("name")),
            (_, None) => format!("{}/{}", parameters.text("kind"), parameters.text("name")),
        };
        vec![name(object), object.text("spec.controller").into(), or_none(&text), age(object, now)]
    }
}

impl Strategy for IpAddress {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let parent = object.at("spec.parentRef");
        let resource = match parent.text("group") {
            "" => parent.text("resource").to_string(),
            group => format!("{}.{group}", parent.text("resource")),
        };
        let text = [&resource, parent.text("namespace"), parent.text("name")].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>();
        vec![name(object), or_none(&text.join("/")), age(object, now)]
    }
}

impl Strategy for NetworkPolicy {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), selector(object.at("spec.podSelector")), age(object, now)]
    }
}

impl Strategy for ServiceCidr {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), texts(object.list("spec.cidrs")).collect::<Vec<_>>().join(",").into(), age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hosts_are_cut_as_upstream_cuts_them() {
        let rules = |hosts: &[&str]| hosts.iter().map(|h| json!({"host": h})).collect::<Vec<_>>();
        for (given, expect) in [(&[][..], "*"), (&[""], "*"), (&["a", "b"], "a,b"), (&["a", "b", "c", "d"], "a,b,c + 1 more...")] {
            assert_eq!(hosts(&rules(given)), expect);
        }
    }
}
