//! discovery.k8s.io: endpoint slices.

use meta::{FieldError, Value};

use crate::cells::{age, name, some_of, texts};
use crate::kinds::core::unreachable_address;
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors, formats};
use meta::Tree;

kinds! {
    EndpointSlice: "Name|AddressType|Ports|Endpoints|Age";
}

/// Ports and endpoints shown before the rest is counted.
const SHOWN: usize = 3;

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_HINTS: usize = 8;

fn at_most(at: &At<'_>, max: usize, errors: &mut Errors) {
    let count = at.value.list("").len();
    if count > max {
        errors.0.push(FieldError::too_many(&at.path, count, max));
    }
}

/// Where `v1beta1` says an endpoint is, by these keys of its topology.
const ZONE: &str = "topology.kubernetes.io/zone";
const HOSTNAME: &str = "kubernetes.io/hostname";

impl Strategy for EndpointSlice {
    fn past_versions(&self) -> &'static [&'static str] {
        &["v1beta1"]
    }

    /// `v1` gave the number of `v1beta1`'s hints to the zone. The hints are lost: their controller knows them.
    fn upgrade(&self, object: &mut Value) {
        for endpoint in object.list_mut("endpoints").iter_mut().filter_map(Value::as_object_mut) {
            endpoint.remove("zone");
            let topology = endpoint.remove("topology").or_else(|| endpoint.remove("deprecatedTopology"));
            let Some(Value::Object(mut topology)) = topology else { continue };
            if let Some(zone) = topology.remove(ZONE) {
                endpoint.insert("zone".into(), zone);
            }
            if topology.get(HOSTNAME) == endpoint.get("nodeName") {
                topology.remove(HOSTNAME);
            }
            if !topology.is_empty() {
                endpoint.insert("deprecatedTopology".into(), topology.into());
            }
        }
    }

    fn default(&self, object: &mut Value) {
        for port in object.list_mut("ports") {
            port.or_put("name", "");
            port.or_put("protocol", "TCP");
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors::default());
        let kind = at.child("addressType");
        errors.need_one_of(&kind, &["FQDN", "IPv4", "IPv6"]);
        at_most(&at.child("endpoints"), MAX_ENDPOINTS, &mut errors);
        for endpoint in at.each("endpoints") {
            let addresses = endpoint.child("addresses");
            if addresses.value.list("").is_empty() {
                errors.required(&addresses, "must contain at least 1 address");
            }
            at_most(&addresses, MAX_ADDRESSES, &mut errors);
            for address in addresses.items() {
                let ip = formats::parse_ip(address.str());
                match kind.str() {
                    "FQDN" => errors.format(&address, formats::fully_qualified_name),
                    "IPv4" | "IPv6" if ip.is_none() => errors.format(&address, formats::ip),
                    "IPv4" if !ip.is_some_and(|ip| ip.is_ipv4()) => {
                        errors.invalid_as(&addresses, address.str(), "must be an IPv4 address");
                    }
                    "IPv6" if !ip.is_some_and(|ip| ip.is_ipv6()) => {
                        errors.invalid_as(&addresses, address.str(), "must be an IPv6 address");
                    }
                    _ => {
                        if let Some(complaint) = unreachable_address(address.str()) {
                            errors.invalid(&address, complaint);
                        }
                    }
                }
            }
            errors.format_if_set(&endpoint.child("nodeName"), formats::dns_subdomain);
            errors.may_format(&endpoint.child("hostname"), formats::dns_label);
            for (hints, format) in [
                ("hints.forZones", formats::label_value as fn(&str) -> Vec<String>),
                ("hints.forNodes", formats::dns_subdomain),
            ] {
                let hints = endpoint.child(hints);
                at_most(&hints, MAX_HINTS, &mut errors);
                for hint in hints.items() {
                    errors.format(&hint.child("name"), format);
                }
                errors.unique(hints.items().map(|hint| hint.child("name")));
            }
        }
        let ports = at.child("ports");
        at_most(&ports, MAX_PORTS, &mut errors);
        let mut names = std::collections::HashSet::new();
        for port in ports.items() {
            let name = port.child("name");
            errors.may_format(&name, formats::dns_label);
            // Two ports without a name have the same name.
            if !names.insert(name.str()) {
                errors.duplicate(&name);
            }
            errors.need_one_of(&port.child("protocol"), &["SCTP", "TCP", "UDP"]);
            errors.format_if_set(&port.child("appProtocol"), formats::qualified_name);
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors(self.validate_create(cx, object));
        errors.immutable(&At::root(object).child("addressType"), old.at("addressType"));
        errors.0
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        true
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let port = |port: &Value| match (port.number("port"), port.at("name").as_str()) {
            (Some(number), _) => number.to_string(),
            (None, Some(name)) => name.to_string(),
            (None, None) => "*".to_string(),
        };
        vec![
            name(object),
            object.text("addressType").into(),
            some_of(object.list("ports").iter().map(port), SHOWN, ",", "<unset>"),
            some_of(object.list("endpoints").iter().flat_map(|e| texts(e.list("addresses"))), SHOWN, ",", "<unset>"),
            age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::tests::expect;

    const CX: Context<'static> = Context::SOMEBODY;

    #[test]
    fn slices_are_checked() {
        let check = |mut object: Value, expected: &[&str]| {
            EndpointSlice.default(&mut object);
            expect(&EndpointSlice.validate_create(&CX, &object), expected, &object);
        };
        check(json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]}), &[]);
        check(
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["::1"]}, {}], "ports": [{}, {}]}),
            &[
                "endpoints[0].addresses: Invalid value: \"::1\": must be an IPv4 address",
                "endpoints[1].addresses: Required value: must contain at least 1 address",
                "ports[1].name: Duplicate value: \"\"",
            ],
        );
        check(json!({}), &["addressType: Required value"]);
    }
}
