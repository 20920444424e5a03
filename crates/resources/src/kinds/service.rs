//! Services.

use meta::Value;

use crate::cells::{age, labels, name, or_none, texts};
use crate::kinds::networking::balancer_addresses;
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    Service: "Name|Type|Cluster-IP|External-IP|Port(s)|Age|Selector*";
}

fn external_ip(service: &Value) -> Value {
    let own = || texts(service.list("spec.externalIPs"));
    match service.text("spec.type") {
        "ClusterIP" | "NodePort" => or_none(&own().collect::<Vec<_>>().join(",")),
        "LoadBalancer" => {
            let balancer = balancer_addresses(service.list("status.loadBalancer.ingress"));
            let all: Vec<String> = Some(balancer).filter(|b| !b.is_empty()).into_iter().chain(own()).collect();
            if all.is_empty() { "<pending>".into() } else { all.join(",").into() }
        }
        "ExternalName" => service.text("spec.externalName").into(),
        _ => "<unknown>".into(),
    }
}

fn ports(service: &Value) -> Value {
    let port = |p: &Value| match p.int("nodePort") {
        node_port @ 1.. => format!("{}:{node_port}/{}", p.int("port"), p.text("protocol")),
        _ => format!("{}/{}", p.int("port"), p.text("protocol")),
    };
    or_none(&service.list("spec.ports").iter().map(port).collect::<Vec<_>>().join(","))
}

impl Strategy for Service {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let cluster_ip = object.list("spec.clusterIPs").first().and_then(Value::as_str).unwrap_or_default();
        vec![
            name(object),
            object.text("spec.type").into(),
            or_none(cluster_ip),
            external_ip(object),
            ports(object),
            age(object, now),
            labels(object.map("spec.selector")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn services_are_printed() {
        let check = |spec: Value, status: Value, expect: Value| {
            let object = json!({"metadata": {"name": "s", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec, "status": status});
            let mut row = Service.table_row(&object, "2026-01-01T01:00:00Z");
            row.remove(0);
            assert_eq!(Value::from(row), expect);
        };
        let ports = json!([{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]);
        check(json!({"type": "NodePort", "clusterIPs": ["10.0.0.1"], "ports": ports, "selector": {"a": "b"}}), json!({}),
            json!(["NodePort", "10.0.0.1", "<none>", "80:30080/TCP,53/UDP", "60m", "a=b"]));
        check(json!({"type": "ExternalName", "externalName": "x.y"}), json!({}),
            json!(["ExternalName", "<none>", "x.y", "<none>", "60m", "<none>"]));
        check(json!({"type": "LoadBalancer", "externalIPs": ["1.1.1.1"]}), json!({"loadBalancer": {"ingress": [{"ip": "2.2.2.2"}]}}),
            json!(["LoadBalancer", "<none>", "2.2.2.2,1.1.1.1", "<none>", "60m", "<none>"]));
        check(json!({"type": "LoadBalancer"}), json!({}), json!(["LoadBalancer", "<none>", "<pending>", "<none>", "60m", "<none>"]));
    }
}
