//! networking.k8s.io: ingresses, their classes, network policies, service addresses.

use meta::{FieldError, Value};

use crate::cells::{age, name, or_none, selector, texts};
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors, formats, selectors};
use meta::Tree;

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

const BAD_SEQUENCES: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
const BAD_ENDINGS: [&str; 2] = ["/..", "/."];

fn check_backend(at: &At<'_>, errors: &mut Errors) {
    let (resource, service) = (at.child("resource"), at.child("service"));
    match (resource.there(), service.there()) {
        (true, true) => errors.invalid_as(at, "", "cannot set both resource and service backends"),
        (false, false) => errors.invalid_as(at, "", "resource or service backend is required"),
        (true, false) => {
            errors.format_if_set(&resource.child("apiGroup"), formats::dns_subdomain);
            for field in ["kind", "name"] {
                errors.need(&resource.child(field), "");
                errors.path_segment(&resource.child(field));
            }
        }
        (false, true) => {
            errors.need_format(&service.child("name"), formats::dns_label);
            let (name, number) = (service.child("port.name"), service.child("port.number"));
            match (name.blank(), number.number().unwrap_or(0) == 0) {
                (false, false) => errors.invalid_as(at, "", "cannot set both port name & port number"),
                (false, true) => errors.format(&name, formats::port_name),
                (true, false) => errors.port(&number),
                (true, true) => errors.required(at, "port name or number is required"),
            }
        }
    }
}

fn check_path(at: &At<'_>, errors: &mut Errors) {
    const ABSOLUTE: &str = "must be an absolute path";
    let (kind, path) = (at.child("pathType"), at.child("path"));
    if !kind.there() {
        return errors.required(&kind, "pathType must be specified");
    }
    match kind.str() {
        "Exact" | "Prefix" => {
            if !path.str().starts_with('/') {
                errors.invalid_as(&path, path.str(), ABSOLUTE);
            }
            for bad in BAD_SEQUENCES.iter().filter(|bad| path.str().contains(**bad)) {
                errors.invalid(&path, format!("must not contain '{bad}'"));
            }
            for bad in BAD_ENDINGS.iter().filter(|bad| path.str().ends_with(**bad)) {
                errors.invalid(&path, format!("cannot end with '{bad}'"));
            }
        }
        "ImplementationSpecific" if !path.blank() && !path.str().starts_with('/') => errors.invalid(&path, ABSOLUTE),
        "ImplementationSpecific" => {}
        _ => errors.not_supported(&kind, &["Exact", "ImplementationSpecific", "Prefix"]),
    }
    check_backend(&at.child("backend"), errors);
}

fn check_host(at: &At<'_>, errors: &mut Errors) {
    errors.format(at, if at.str().contains('*') { formats::wildcard_subdomain } else { formats::dns_subdomain });
}

fn check_ingress(spec: &At<'_>, errors: &mut Errors) {
    let (default, rules) = (spec.child("defaultBackend"), spec.child("rules"));
    if default.there() {
        check_backend(&default, errors);
    } else if rules.value.list("").is_empty() {
        errors.invalid_as(spec, serde_json::json!([]), "either `defaultBackend` or `rules` must be specified");
    }
    for rule in rules.items() {
        let host = rule.child("host");
        if formats::parse_ip(host.str()).is_some() {
            errors.invalid(&host, "must be a DNS name, not an IP address");
        } else if !host.blank() {
            check_host(&host, errors);
        }
        let paths = rule.child("http.paths");
        if rule.value.has("http") && paths.value.list("").is_empty() {
            errors.required(&paths, "");
        }
        for path in paths.items() {
            check_path(&path, errors);
        }
    }
    for tls in spec.each("tls") {
        for host in tls.each("hosts") {
            check_host(&host, errors);
        }
        errors.may_format(&tls.child("secretName"), formats::dns_subdomain);
    }
    errors.format_if_set(&spec.child("ingressClassName"), formats::dns_subdomain);
}

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

impl Strategy for Ingress {
    fn default(&self, object: &mut Value) {
        object.or_put("status.loadBalancer", serde_json::Map::new());
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        object.put("status.loadBalancer", serde_json::Map::new());
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        check_ingress(&spec, &mut errors);
        if let Some(class) = object.map("metadata.annotations").get(CLASS_ANNOTATION)
            && spec.value.has("ingressClassName")
        {
            let path = meta::FieldPath::new("annotations").child(CLASS_ANNOTATION);
            errors.0.push(FieldError::invalid(&path, class.clone(), "can not be set when the class field is also set"));
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if cx.subresource == "status" {
            for ingress in At::new(object.at("status"), "status").each("loadBalancer.ingress") {
                errors.may_format(&ingress.child("ip"), formats::ip);
                errors.may_format(&ingress.child("hostname"), formats::dns_subdomain);
            }
            return errors.0;
        }
        check_ingress(&At::new(object.at("spec"), "spec"), &mut errors);
        errors.0
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let annotated = object.map("metadata.annotations").contains_key(CLASS_ANNOTATION);
        let text =
            "annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead";
        annotated.then(|| text.to_string()).into_iter().collect()
    }

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

const MAX_CONTROLLER: usize = 250;

impl Strategy for IngressClass {
    fn default(&self, object: &mut Value) {
        if let Some(parameters) = object.at_mut("spec.parameters") {
            parameters.or_put("scope", "Cluster");
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        let controller = spec.child("controller");
        if controller.str().len() > MAX_CONTROLLER {
            errors.too_long(&controller, MAX_CONTROLLER);
        }
        if errors.need(&controller, "") {
            match controller.str().split_once('/') {
                Some((domain, path)) if !path.is_empty() => {
                    for complaint in formats::dns_subdomain(domain) {
                        errors.invalid_as(&controller, domain, complaint);
                    }
                }
                _ => errors.invalid(&controller, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
            }
        }
        let parameters = spec.child("parameters");
        if parameters.there() {
            errors.format_if_set(&parameters.child("apiGroup"), formats::dns_subdomain);
            for field in ["kind", "name"] {
                errors.need(&parameters.child(field), "");
                errors.path_segment(&parameters.child(field));
            }
            errors.may_one_of(&parameters.child("scope"), &["Cluster", "Namespace"]);
            let namespace = parameters.child("namespace");
            match (parameters.value.text("scope"), namespace.there()) {
                ("Namespace", false) => errors.required(&namespace, "`parameters.scope` is set to 'Namespace'"),
                ("Namespace", true) => errors.format(&namespace, formats::dns_label),
                ("Cluster", true) => errors.forbidden(&namespace, "`parameters.scope` is set to 'Cluster'"),
                _ => {}
            }
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors(self.validate_create(cx, object));
        errors.immutable(&At::root(object).child("spec.controller"), old.at("spec.controller"));
        errors.0
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        true
    }

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
    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (parent, mut errors) = (At::root(object).child("spec.parentRef"), Errors::default());
        if !parent.there() {
            errors.required(&parent, "");
            return errors.0;
        }
        errors.need(&parent.child("resource"), "");
        errors.need(&parent.child("name"), "");
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors(self.validate_create(cx, object));
        errors.immutable(&At::root(object).child("spec.parentRef"), old.at("spec.parentRef"));
        errors.0
    }

    fn validate_name(&self, name: &str, _generate: bool) -> Result<(), String> {
        match formats::parse_ip(name) {
            None => Err("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()),
            Some(ip) if ip.to_string() != name => Err(format!("must be in canonical form (\"{ip}\")")),
            Some(_) => Ok(()),
        }
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let parent = object.at("spec.parentRef");
        let resource = match parent.text("group") {
            "" => parent.text("resource").to_string(),
            group => format!("{}.{group}", parent.text("resource")),
        };
        let text = [&resource, parent.text("namespace"), parent.text("name")]
            .into_iter()
            .filter(|t| !t.is_empty())
            .collect::<Vec<_>>();
        vec![name(object), or_none(&text.join("/")), age(object, now)]
    }
}

fn check_policy_port(at: &At<'_>, errors: &mut Errors) {
    let (port, end) = (at.child("port"), at.child("endPort"));
    errors.may_one_of(&at.child("protocol"), &["SCTP", "TCP", "UDP"]);
    if port.there() {
        errors.port_or_name(&port);
    }
    match (port.value, end.number()) {
        (Value::Null, Some(_)) => errors.invalid(&end, "may not be specified when `port` is not specified"),
        (Value::String(_), Some(_)) => errors.invalid(&end, "may not be specified when `port` is non-numeric"),
        (_, Some(last)) => {
            if port.number().is_some_and(|first| last < first) {
                errors.invalid_as(&end, port.number(), "must be greater than or equal to `port`");
            }
            errors.port(&end);
        }
        (_, None) => {}
    }
}

/// A range, and ranges within it that it leaves out.
fn check_block(at: &At<'_>, errors: &mut Errors) {
    let whole = at.child("cidr");
    if !errors.need(&whole, "") {
        return;
    }
    let Some((address, bits)) = formats::parse_cidr(whole.str()) else {
        return errors.format(&whole, formats::cidr);
    };
    let prefix = |ip: std::net::IpAddr, bits: u8| -> (bool, u128) {
        let (number, width) = match ip {
            std::net::IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32),
            std::net::IpAddr::V6(ip) => (u128::from(ip), 128),
        };
        (ip.is_ipv4(), number.checked_shr(width - u32::from(bits)).unwrap_or(0))
    };
    for except in at.each("except") {
        match formats::parse_cidr(except.str()) {
            None => errors.format(&except, formats::cidr),
            Some((ip, except_bits)) => {
                if prefix(ip, bits) != prefix(address, bits) || bits >= except_bits {
                    errors.invalid(&except, "must be a strict subset of `cidr`");
                }
            }
        }
    }
}

fn check_peer(at: &At<'_>, errors: &mut Errors) {
    let (pods, namespaces, block) = (at.child("podSelector"), at.child("namespaceSelector"), at.child("ipBlock"));
    selectors::label_selector(&pods, errors);
    selectors::label_selector(&namespaces, errors);
    let selects = pods.there() || namespaces.there();
    if block.there() {
        check_block(&block, errors);
        if selects {
            errors.forbidden(at, "may not specify both ipBlock and another peer");
        }
    } else if !selects {
        errors.required(at, "must specify a peer");
    }
}

impl Strategy for NetworkPolicy {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.at_mut("spec") else { return };
        if spec.list("policyTypes").is_empty() {
            let types: &[&str] = if spec.list("egress").is_empty() { &["Ingress"] } else { &["Ingress", "Egress"] };
            spec.put("policyTypes", types);
        }
        for way in ["ingress", "egress"] {
            for rule in spec.list_mut(way) {
                for port in rule.list_mut("ports") {
                    port.or_put("protocol", "TCP");
                }
            }
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        selectors::label_selector(&spec.child("podSelector"), &mut errors);
        for (way, peers) in [("ingress", "from"), ("egress", "to")] {
            for rule in spec.each(way) {
                for port in rule.each("ports") {
                    check_policy_port(&port, &mut errors);
                }
                for peer in rule.each(peers) {
                    check_peer(&peer, &mut errors);
                }
            }
        }
        let types = spec.child("policyTypes");
        if types.value.list("").len() > 2 {
            errors.invalid(&types, "may not specify more than two policyTypes");
        }
        for kind in types.items() {
            errors.one_of(&kind, &["Egress", "Ingress"]);
        }
        errors.0
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        true
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), selector(object.at("spec.podSelector")), age(object, now)]
    }
}

impl ServiceCidr {
    fn check(cidrs: &At<'_>, errors: &mut Errors) {
        let list = cidrs.value.list("");
        if list.is_empty() {
            errors.required(cidrs, "at least one CIDR required");
        }
        if list.len() > 2 {
            errors.0.push(FieldError::too_many(&cidrs.path, list.len(), 2));
        }
        for cidr in cidrs.items() {
            errors.format(&cidr, formats::cidr);
        }
        let six = |cidr: &Value| cidr.as_str().is_some_and(|text| text.contains(':'));
        if let [first, second] = list
            && six(first) == six(second)
        {
            let said = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96";
            errors.invalid(cidrs, said);
        }
    }
}

impl Strategy for ServiceCidr {
    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        ServiceCidr::check(&At::root(object).child("spec.cidrs"), &mut errors);
        errors.0
    }

    /// A range of the other family may come behind a single one; nothing else changes.
    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if !cx.subresource.is_empty() {
            return errors.0;
        }
        let cidrs = At::root(object).child("spec.cidrs");
        let (now, before) = (cidrs.value.list(""), old.list("spec.cidrs"));
        let widened = now.len() == 2 && before.len() == 1;
        if now.len() != before.len() && !widened {
            errors.immutable(&cidrs, old.at("spec.cidrs"));
            return errors.0;
        }
        for (cidr, before) in cidrs.items().zip(before) {
            errors.immutable(&cidr, before);
        }
        if widened {
            ServiceCidr::check(&cidrs, &mut errors);
        }
        errors.0
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), texts(object.list("spec.cidrs")).collect::<Vec<_>>().join(",").into(), age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::tests::expect;

    const CX: Context<'static> = Context::SOMEBODY;

    fn check(strategy: &dyn Strategy, spec: Value, expected: &[&str]) -> Value {
        let mut object = json!({"spec": spec});
        strategy.default(&mut object);
        expect(&strategy.validate_create(&CX, &object), expected, &object);
        object
    }

    #[test]
    fn ranges_of_cluster_ips_may_gain_a_family() {
        let cidrs = |list: &[&str]| json!({"spec": {"cidrs": list}});
        let (four, six) = ("10.0.0.0/24", "fd00::/112");
        let families = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96";
        let both = format!("spec.cidrs: Invalid value: [\"10.0.0.0/24\",\"10.1.0.0/24\"]: {families}");
        expect(&ServiceCidr.validate_create(&CX, &cidrs(&[four, "10.1.0.0/24"])), &[&both], &json!({}));
        let cases: [(&[&str], &[&str], &[&str]); 6] = [
            (&[four], &[four], &[]),
            (&[four], &[four, six], &[]),
            (&[four, six], &[four, six], &[]),
            (&[four], &["10.1.0.0/24"], &["spec.cidrs[0]: Invalid value: \"10.1.0.0/24\": field is immutable"]),
            (&[four], &[six, four], &["spec.cidrs[0]: Invalid value: \"fd00::/112\": field is immutable"]),
            (&[four, six], &[four], &["spec.cidrs: Invalid value: [\"10.0.0.0/24\"]: field is immutable"]),
        ];
        for (before, after, expected) in cases {
            expect(&ServiceCidr.validate_update(&CX, &cidrs(after), &cidrs(before)), expected, &cidrs(after));
        }
    }

    #[test]
    fn ingresses_are_checked() {
        let backend = || json!({"service": {"name": "s", "port": {"number": 80}}});
        let path = |path: Value| json!({"rules": [{"host": "a.b", "http": {"paths": [path]}}]});
        check(&Ingress, json!({"defaultBackend": backend()}), &[]);
        check(&Ingress, json!({}), &["spec: Invalid value: []: either `defaultBackend` or `rules` must be specified"]);
        check(&Ingress, path(json!({"path": "/", "pathType": "Prefix", "backend": backend()})), &[]);
        check(
            &Ingress,
            path(json!({"path": "/"})),
            &["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"],
        );
        check(
            &Ingress,
            path(json!({"path": "x//y", "pathType": "Exact", "backend": {}})),
            &[
                "spec.rules[0].http.paths[0].path: Invalid value: \"x//y\": must be an absolute path",
                "spec.rules[0].http.paths[0].path: Invalid value: \"x//y\": must not contain '//'",
                "spec.rules[0].http.paths[0].backend: Invalid value: \"\": resource or service backend is required",
            ],
        );
        check(
            &Ingress,
            json!({"defaultBackend": {"service": {"name": "s"}}, "rules": [{"host": "1.2.3.4"}]}),
            &[
                "spec.defaultBackend: Required value: port name or number is required",
                "spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
            ],
        );
        check(
            &IngressClass,
            json!({"controller": "x"}),
            &["spec.controller: Invalid value: \"x\": must be a domain-prefixed path (such as \"acme.io/foo\")"],
        );
    }

    #[test]
    fn network_policies_are_checked() {
        let object = check(&NetworkPolicy, json!({"podSelector": {}, "egress": [{"ports": [{"port": 53}]}]}), &[]);
        assert_eq!(
            (&object["spec"]["policyTypes"], &object["spec"]["egress"][0]["ports"][0]["protocol"]),
            (&json!(["Ingress", "Egress"]), &json!("TCP"))
        );
        let block =
            |except: &str| json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": [except]}}]}]});
        check(&NetworkPolicy, block("10.1.0.0/16"), &[]);
        for bad in ["11.0.0.0/16", "10.0.0.0/8"] {
            let expected = format!(
                "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"{bad}\": must be a strict subset of `cidr`"
            );
            check(&NetworkPolicy, block(bad), &[&expected]);
        }
        check(
            &NetworkPolicy,
            json!({"ingress": [{"from": [{}], "ports": [{"endPort": 5}, {"port": 80, "endPort": 70}]}]}),
            &[
                "spec.ingress[0].from[0]: Required value: must specify a peer",
                "spec.ingress[0].ports[0].endPort: Invalid value: 5: may not be specified when `port` is not specified",
                "spec.ingress[0].ports[1].endPort: Invalid value: 80: must be greater than or equal to `port`",
            ],
        );
    }

    #[test]
    fn hosts_are_cut_as_upstream_cuts_them() {
        let rules = |hosts: &[&str]| hosts.iter().map(|h| json!({"host": h})).collect::<Vec<_>>();
        for (given, expect) in
            [(&[][..], "*"), (&[""], "*"), (&["a", "b"], "a,b"), (&["a", "b", "c", "d"], "a,b,c + 1 more...")]
        {
            assert_eq!(hosts(&rules(given)), expect);
        }
    }
}
