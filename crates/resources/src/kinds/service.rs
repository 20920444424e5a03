//! Services.

use std::collections::HashSet;

use meta::{FieldError, Value};
use serde_json::json;

use crate::cells::{age, labels, name, or_none, texts};
use crate::kinds::core::unreachable_address;
use crate::kinds::networking::balancer_addresses;
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors, IMMUTABLE, formats, same, selectors};
use meta::Tree;

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

/// Seconds a client keeps its endpoint: unless said, and at most.
const AFFINITY_SECONDS: i64 = 10_800;
const MAX_AFFINITY_SECONDS: i64 = 86_400;
const KUBELET_PORT: i64 = 10250;
const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

fn headless(spec: &Value) -> bool {
    spec.text("clusterIP") == "None" || spec.list("clusterIPs").iter().eq([&json!("None")])
}

fn has_cluster_ip(spec: &Value) -> bool {
    matches!(spec.text("type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn has_node_ports(spec: &Value) -> bool {
    matches!(spec.text("type"), "NodePort" | "LoadBalancer")
}

/// Reached from outside, so that it matters which node a packet came in by.
fn external(spec: &Value) -> bool {
    has_node_ports(spec) || (spec.text("type") == "ClusterIP" && !spec.list("externalIPs").is_empty())
}

fn has_health_port(spec: &Value) -> bool {
    spec.text("type") == "LoadBalancer" && spec.text("externalTrafficPolicy") == "Local"
}

fn default_spec(spec: &mut Value) {
    spec.or_put("sessionAffinity", "None");
    match spec.text("sessionAffinity") {
        "None" => spec.drop("sessionAffinityConfig"),
        "ClientIP" => spec.or_put("sessionAffinityConfig.clientIP.timeoutSeconds", AFFINITY_SECONDS),
        _ => {}
    }
    spec.or_put("type", "ClusterIP");
    for port in spec.list_mut("ports") {
        port.or_put("protocol", "TCP");
        if matches!(port.at("targetPort"), Value::Null) || port["targetPort"] == 0 || port["targetPort"] == "" {
            port.copy_from("targetPort", &json!({"targetPort": port["port"]}));
        }
    }
    if external(spec) && spec.text("externalTrafficPolicy").is_empty() {
        spec.put("externalTrafficPolicy", "Cluster");
    }
    if has_cluster_ip(spec) {
        spec.or_put("internalTrafficPolicy", "Cluster");
    }
    if spec.text("type") == "LoadBalancer" {
        spec.or_put("allocateLoadBalancerNodePorts", true);
    }
}

/// A change of type takes away what the new type does not have, unless the client changed that too.
fn drop_what_the_type_has_not(spec: &mut Value, old: &Value) {
    let unchanged = |spec: &Value, field: &str| same(spec.at(field), old.at(field));
    if has_cluster_ip(old) && !has_cluster_ip(spec) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if unchanged(spec, field) {
                spec.drop(field);
            }
        }
    }
    if has_node_ports(old) && !has_node_ports(spec) {
        let ports = |spec: &Value| spec.list("ports").iter().map(|p| p.int("nodePort")).collect::<HashSet<_>>();
        if ports(spec).is_subset(&ports(old)) {
            for port in spec.list_mut("ports") {
                port.drop("nodePort");
            }
        }
    }
    let lost = [
        (has_health_port(old) && !has_health_port(spec), "healthCheckNodePort"),
        (old.text("type") == "LoadBalancer" && spec.text("type") != "LoadBalancer", "allocateLoadBalancerNodePorts"),
        (old.text("type") == "LoadBalancer" && spec.text("type") != "LoadBalancer", "loadBalancerClass"),
        (external(old) && !external(spec), "externalTrafficPolicy"),
    ];
    for (_, field) in lost.into_iter().filter(|(lost, _)| *lost) {
        if unchanged(spec, field) {
            spec.drop(field);
        }
    }
}

fn check_ports(spec: &At<'_>, errors: &mut Errors) {
    let several = spec.value.list("ports").len() > 1;
    let (mut numbers, mut nodes) = (HashSet::new(), HashSet::new());
    for port in spec.each("ports") {
        let (name, number, protocol) = (port.child("name"), port.child("port"), port.child("protocol"));
        if several {
            errors.need(&name, "");
        }
        errors.may_format(&name, formats::dns_label);
        errors.port(&number);
        errors.need_one_of(&protocol, &PROTOCOLS);
        errors.port_or_name(&port.child("targetPort"));
        errors.format_if_set(&port.child("appProtocol"), formats::qualified_name);
        if !numbers.insert((protocol.str(), number.number())) {
            errors.0.push(FieldError::duplicate(&port.path, json!({"port": number.value, "protocol": protocol.value})));
        }
        let node = port.child("nodePort");
        if node.number().unwrap_or(0) != 0 {
            if spec.value.text("type") == "ClusterIP" {
                errors.forbidden(&node, "may not be used when `type` is 'ClusterIP'");
            }
            if !nodes.insert((protocol.str(), node.number())) {
                errors.duplicate(&node);
            }
        }
        if spec.value.text("type") == "LoadBalancer" && number.number() == Some(KUBELET_PORT) {
            errors.invalid_as(
                &port,
                KUBELET_PORT,
                format!("may not expose port {KUBELET_PORT} externally since it is used by kubelet"),
            );
        }
    }
    errors.unique(spec.each("ports").map(|p| p.child("name")));
}

fn check_type(spec: &At<'_>, errors: &mut Errors) {
    let kind = spec.child("type");
    errors.need_one_of(&kind, &TYPES);
    if spec.value.list("ports").is_empty() && !headless(spec.value) && kind.str() != "ExternalName" {
        errors.required(&spec.child("ports"), "");
    }
    match kind.str() {
        "ExternalName" => {
            for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"].map(|f| spec.child(f)) {
                if !same(field.value, &Value::Null) {
                    errors.forbidden(&field, "may not be set for ExternalName services");
                }
            }
            let name = spec.child("externalName");
            if errors.need(&name, "") {
                for complaint in formats::dns_subdomain(name.str().trim_end_matches('.')) {
                    errors.invalid(&name, complaint);
                }
            }
        }
        "NodePort" | "LoadBalancer" if headless(spec.value) => {
            let detail = format!("may not be set to 'None' for {} services", kind.str());
            errors.0.push(FieldError::invalid(&spec.path.child("clusterIPs").index(0), "None", detail));
        }
        _ => {}
    }
    errors.format_if_set(&spec.child("loadBalancerClass"), formats::qualified_name);
    for (field, of) in [("allocateLoadBalancerNodePorts", "LoadBalancer"), ("loadBalancerClass", "LoadBalancer")] {
        let field = spec.child(field);
        if field.there() && kind.str() != of {
            errors.forbidden(&field, format!("may only be used when `type` is '{of}'"));
        }
    }
}

/// What is wrong with the families somebody asked for, before any addresses are given out.
pub fn asked_families(spec: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    check_families(&At::new(spec, "spec"), &mut errors);
    errors.0
}

fn check_families(spec: &At<'_>, errors: &mut Errors) {
    errors.may_one_of(&spec.child("ipFamilyPolicy"), &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    for family in spec.each("ipFamilies") {
        errors.one_of(&family, &["IPv4", "IPv6"]);
    }
    errors.unique(spec.each("ipFamilies"));
}

fn check_addresses(spec: &At<'_>, errors: &mut Errors) {
    if spec.value.text("type") == "ExternalName" {
        return;
    }
    let ips = spec.child("clusterIPs");
    let one = spec.value.text("clusterIP");
    if !ips.value.list("").is_empty() && ips.items().next().is_some_and(|ip| ip.str() != one) {
        errors.invalid(&ips, "first value must match `clusterIP`");
    }
    let alone = ips.value.list("").len() == 1;
    for ip in ips.items() {
        match ip.str() {
            "None" if alone => {}
            "None" => errors.invalid(&ip, "may be set only if there are no other values"),
            _ => errors.format(&ip, formats::ip),
        }
    }
    errors.unique(ips.items());
    check_families(spec, errors);
}

fn check_traffic(spec: &At<'_>, errors: &mut Errors) {
    let (outside, inside, health) =
        (spec.child("externalTrafficPolicy"), spec.child("internalTrafficPolicy"), spec.child("healthCheckNodePort"));
    match (external(spec.value), outside.blank()) {
        (true, true) => errors.required(&outside, ""),
        (true, false) => errors.one_of(&outside, &["Cluster", "Local"]),
        (false, false) => errors.invalid(&outside, "may only be set for externally-accessible services"),
        (false, true) => {}
    }
    errors.may_one_of(&inside, &["Cluster", "Local"]);
    errors.may_one_of(&spec.child("trafficDistribution"), &["PreferClose", "PreferSameNode", "PreferSameZone"]);
    if health.number().unwrap_or(0) != 0 {
        errors.port(&health);
        if !has_health_port(spec.value) {
            errors.invalid(
                &health,
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            );
        }
    }
}

fn check(object: &Value, errors: &mut Errors) {
    let spec = At::new(object.at("spec"), "spec");
    check_type(&spec, errors);
    check_ports(&spec, errors);
    check_addresses(&spec, errors);
    check_traffic(&spec, errors);
    selectors::labels(&spec.child("selector"), errors);
    let affinity = spec.child("sessionAffinity");
    errors.need_one_of(&affinity, &["ClientIP", "None"]);
    let seconds = spec.child("sessionAffinityConfig.clientIP.timeoutSeconds");
    if affinity.str() == "ClientIP" {
        if !seconds.there() {
            errors.required(&seconds, "");
        } else if seconds.number().is_none_or(|s| !(1..=MAX_AFFINITY_SECONDS).contains(&s)) {
            errors.invalid(&seconds, format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}"));
        }
    }
    for ip in spec.each("externalIPs") {
        match formats::parse_ip(ip.str()) {
            None => errors.format(&ip, formats::ip),
            Some(_) => {
                if let Some(complaint) = unreachable_address(ip.str()) {
                    errors.invalid(&ip, complaint);
                }
            }
        }
    }
    let ranges = spec.child("loadBalancerSourceRanges");
    if !ranges.value.list("").is_empty() && spec.value.text("type") != "LoadBalancer" {
        errors.forbidden(&ranges, "may only be used when `type` is 'LoadBalancer'");
    }
    for range in ranges.items() {
        for complaint in formats::cidr(range.str().trim()) {
            errors.invalid(&range, complaint);
        }
    }
}

/// Addresses and their families stay while the type has them; the second may come, and go when the policy says so.
fn check_kept_address(spec: &At<'_>, old: &Value, errors: &mut Errors) {
    const KEPT: &str = "may not change once set";
    if !has_cluster_ip(spec.value) || !has_cluster_ip(old) || (headless(spec.value) && headless(old)) {
        return;
    }
    for (field, unset) in
        [("clusterIPs", "primary clusterIP can not be unset"), ("ipFamilies", "primary ipFamily can not be unset")]
    {
        // A Service that becomes headless or ceases to be may have other families.
        if field == "ipFamilies" && headless(spec.value) != headless(old) {
            continue;
        }
        let (new, before) = (spec.child(field), old.list(field));
        let at = |index| At { value: new.value, path: new.path.index(index) };
        let now = new.value.list("");
        if now.is_empty() && !before.is_empty() {
            errors.invalid(&at(0), unset);
        }
        let changed = now.iter().zip(before).position(|(now, before)| now != before);
        if let Some(index) = changed {
            errors.invalid(&at(index), KEPT);
        }
    }
}

/// What whoever balances a Service may say of it. Of one that is not balanced too, though upstream lets nobody since v1.29:
/// Conformance tests from before do so, and the next update of the Service takes it away.
fn check_balancer(object: &Value, errors: &mut Errors) {
    let list = At::new(object.at("status"), "status").child("loadBalancer.ingress");
    let balanced = object.text("spec.type") == "LoadBalancer";
    for ingress in list.items() {
        let (ip, mode, hostname) = (ingress.child("ip"), ingress.child("ipMode"), ingress.child("hostname"));
        errors.may_format(&ip, formats::ip);
        match (ip.there(), mode.there()) {
            (true, false) if balanced => errors.required(&mode, "must be specified when `ip` is set"),
            (false, true) => errors.forbidden(&mode, "may not be specified when `ip` is not set"),
            _ => errors.may_one_of(&mode, &["Proxy", "VIP"]),
        }
        errors.may_format(&hostname, formats::dns_subdomain);
        if formats::parse_ip(hostname.str()).is_some() {
            errors.invalid(&hostname, "must be a DNS name, not an IP address");
        }
    }
}

impl Strategy for Service {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.at_mut("spec") {
            default_spec(spec);
        }
        object.or_put("status.loadBalancer", json!({}));
        if object.text("spec.type") == "LoadBalancer" {
            for ingress in object.list_mut("status.loadBalancer.ingress") {
                if !ingress.text("ip").is_empty() {
                    ingress.or_put("ipMode", "VIP");
                }
            }
        }
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        object.put("status", json!({"loadBalancer": {}}));
    }

    fn prepare_update(&self, cx: &Context<'_>, object: &mut Value, old: &Value) {
        if !cx.subresource.is_empty() {
            return;
        }
        if let Some(spec) = object.at_mut("spec") {
            drop_what_the_type_has_not(spec, old.at("spec"));
        }
        if object.text("spec.type") != "LoadBalancer" {
            object.put("status.loadBalancer", json!({}));
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        check(object, &mut errors);
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let (spec, before) = (At::new(object.at("spec"), "spec"), old.at("spec"));
        if cx.subresource == "status" {
            check_balancer(object, &mut errors);
            return errors.0;
        }
        check_kept_address(&spec, before, &mut errors);
        let (health, class) = (spec.child("healthCheckNodePort"), spec.child("loadBalancerClass"));
        if has_health_port(before)
            && has_health_port(spec.value)
            && !same(health.value, before.at("healthCheckNodePort"))
        {
            errors.invalid(&health, IMMUTABLE);
        }
        if before.text("type") == "LoadBalancer"
            && spec.value.text("type") == "LoadBalancer"
            && !same(class.value, before.at("loadBalancerClass"))
        {
            errors.invalid(&class, "may not change once set");
        }
        check(object, &mut errors);
        errors.0
    }

    fn validate_name(&self, name: &str, generate: bool) -> Result<(), String> {
        formats::name(formats::dns_label, name, generate)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        false
    }

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
    use crate::validate::tests::expect;

    const CX: Context<'static> = Context::SOMEBODY;

    fn service(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "s"}, "spec": spec});
        Service.default(&mut object);
        object
    }

    #[test]
    fn what_a_balancer_says() {
        let cases = [
            ("LoadBalancer", json!({"ip": "192.0.2.1", "ipMode": "VIP"}), ""),
            ("LoadBalancer", json!({"hostname": "a.example"}), ""),
            ("ClusterIP", json!({"ip": "192.0.2.1"}), ""),
            (
                "LoadBalancer",
                json!({"ip": "192.0.2.1"}),
                "[0].ipMode: Required value: must be specified when `ip` is set",
            ),
            (
                "LoadBalancer",
                json!({"hostname": "a", "ipMode": "VIP"}),
                "[0].ipMode: Forbidden: may not be specified when `ip` is not set",
            ),
            (
                "LoadBalancer",
                json!({"hostname": "192.0.2.1"}),
                "[0].hostname: Invalid value: \"192.0.2.1\": must be a DNS name, not an IP address",
            ),
        ];
        for (kind, ingress, expected) in cases {
            let object = json!({"spec": {"type": kind}, "status": {"loadBalancer": {"ingress": [ingress]}}});
            let mut errors = Errors::default();
            check_balancer(&object, &mut errors);
            let said: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
            assert_eq!(said.join("; ").replace("status.loadBalancer.ingress", ""), expected, "{object}");
        }
    }

    #[test]
    fn services_are_filled_in() {
        let object = service(json!({"ports": [{"port": 80}]}));
        assert_eq!(
            object["spec"],
            json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "type": "ClusterIP",
            "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"})
        );
        let object = service(
            json!({"type": "LoadBalancer", "clusterIP": "10.0.0.1", "sessionAffinity": "ClientIP", "ports": [{"port": 80, "targetPort": "web"}]}),
        );
        assert_eq!(
            (object["spec"].flag("allocateLoadBalancerNodePorts"), object["spec"].text("externalTrafficPolicy")),
            (true, "Cluster")
        );
        assert_eq!(object["spec"].int("sessionAffinityConfig.clientIP.timeoutSeconds"), 10800);
    }

    #[test]
    fn services_are_checked() {
        let check = |spec: Value, expected: &[&str]| {
            let object = service(spec);
            expect(&Service.validate_create(&CX, &object), expected, &object);
        };
        let port = || json!([{"port": 80}]);
        check(json!({"ports": port()}), &[]);
        check(json!({}), &["spec.ports: Required value"]);
        check(json!({"clusterIP": "None"}), &[]);
        check(json!({"type": "ExternalName"}), &["spec.externalName: Required value"]);
        check(json!({"type": "ExternalName", "externalName": "example.com."}), &[]);
        check(
            json!({"type": "Wrong", "ports": port()}),
            &[
                "spec.type: Unsupported value: \"Wrong\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ],
        );
        check(
            json!({"ports": [{"port": 80}, {"name": "b", "port": 80}]}),
            &[
                "spec.ports[0].name: Required value",
                "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
            ],
        );
        check(
            json!({"ports": [{"port": 0}]}),
            &[
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            ],
        );
        check(
            json!({"ports": [{"port": 80, "nodePort": 30000}]}),
            &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
        );
        check(
            json!({"type": "NodePort", "clusterIP": "None", "ports": port()}),
            &["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services"],
        );
        check(json!({"clusterIP": "10.0.0.1", "ports": port()}), &[]);
        check(
            json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.2"], "ports": port()}),
            &["spec.clusterIPs: Invalid value: [\"10.0.0.2\"]: first value must match `clusterIP`"],
        );
        check(
            json!({"externalTrafficPolicy": "Local", "ports": port()}),
            &[
                "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
            ],
        );
        check(
            json!({"externalIPs": ["127.0.0.1"], "ports": port()}),
            &[
                "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ],
        );
        check(
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}, "ports": port()}),
            &[
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400",
            ],
        );
    }

    #[test]
    fn types_change_and_addresses_stay() {
        let old = service(json!({"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
                "ports": [{"port": 80, "nodePort": 30000}]}));
        let check = |changes: &[(&str, Value)], expected: &[&str]| {
            let mut new = old.clone();
            for (path, value) in changes {
                new.put(path, value.clone());
            }
            Service.prepare_update(&CX, &mut new, &old);
            expect(&Service.validate_update(&CX, &new, &old), expected, &new);
            new
        };
        let plain = check(&[("spec.type", json!("ClusterIP"))], &[]);
        assert_eq!(plain["spec"]["ports"][0].at("nodePort"), &Value::Null);
        let named = check(&[("spec.type", json!("ExternalName")), ("spec.externalName", json!("a.b"))], &[]);
        assert!(!named.has("spec.clusterIP"));
        check(
            &[("spec.clusterIP", json!("10.0.0.2")), ("spec.clusterIPs", json!(["10.0.0.2"]))],
            &["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"],
        );
    }

    #[test]
    fn services_are_printed() {
        let check = |spec: Value, status: Value, expect: Value| {
            let object = json!({"metadata": {"name": "s", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec, "status": status});
            let mut row = Service.table_row(&object, "2026-01-01T01:00:00Z");
            row.remove(0);
            assert_eq!(Value::from(row), expect);
        };
        let ports = json!([{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]);
        check(
            json!({"type": "NodePort", "clusterIPs": ["10.0.0.1"], "ports": ports, "selector": {"a": "b"}}),
            json!({}),
            json!(["NodePort", "10.0.0.1", "<none>", "80:30080/TCP,53/UDP", "60m", "a=b"]),
        );
        check(
            json!({"type": "ExternalName", "externalName": "x.y"}),
            json!({}),
            json!(["ExternalName", "<none>", "x.y", "<none>", "60m", "<none>"]),
        );
        check(
            json!({"type": "LoadBalancer", "externalIPs": ["1.1.1.1"]}),
            json!({"loadBalancer": {"ingress": [{"ip": "2.2.2.2"}]}}),
            json!(["LoadBalancer", "<none>", "2.2.2.2,1.1.1.1", "<none>", "60m", "<none>"]),
        );
        check(
            json!({"type": "LoadBalancer"}),
            json!({}),
            json!(["LoadBalancer", "<none>", "<pending>", "<none>", "60m", "<none>"]),
        );
    }
}
