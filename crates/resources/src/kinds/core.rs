//! Small core kinds: config maps, secrets, service accounts, namespaces, endpoints, component statuses.

use meta::{FieldError, Value};
use serde_json::{Map, json};

use crate::cells::{age, name, some_of};
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors, formats, same};
use meta::Tree;

kinds! {
    ComponentStatus: "Name|Status|Message|Error";
    ConfigMap: "Name|Data|Age";
    Endpoints: "Name|Endpoints|Age";
    Namespace: "Name|Status|Age";
    Secret: "Name|Type|Data|Age";
    ServiceAccount: "Name|Secrets|Age";
}

/// Endpoints shown before the rest is counted.
const ENDPOINTS_SHOWN: usize = 3;

impl Strategy for ComponentStatus {
    fn table_row(&self, object: &Value, _now: &str) -> Vec<Value> {
        let healthy = object.find("conditions", "type", "Healthy");
        let status = match healthy.map(|c| c.text("status")) {
            None => "Unknown",
            Some("True") => "Healthy",
            Some(_) => "Unhealthy",
        };
        let said = |field: &str| Value::from(healthy.map_or("", |c| c.text(field)));
        vec![name(object), status.into(), said("message"), said("error")]
    }
}

/// All values of a ConfigMap or Secret together, in bytes.
const MAX_DATA_BYTES: usize = 1 << 20;

/// Length of what a base64 text stands for.
fn decoded_len(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default();
    (text.len() / 4 * 3).saturating_sub(text.bytes().rev().take_while(|b| *b == b'=').count().min(2))
}

/// What is marked immutable stays marked, and its contents stay.
fn check_immutable(object: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    const DETAIL: &str = "field is immutable when `immutable` is set";
    if !old.flag("immutable") {
        return;
    }
    let at = At::root(object);
    if !object.flag("immutable") {
        errors.forbidden(&at.child("immutable"), DETAIL);
    }
    for field in fields.iter().filter(|f| !same(object.at(f), old.at(f))) {
        errors.forbidden(&at.child(field), DETAIL);
    }
}

fn check_keys(data: &At<'_>, errors: &mut Errors) {
    for (key, value) in data.entries() {
        for complaint in formats::config_key(key) {
            errors.invalid_as(&value, key, complaint);
        }
    }
}

impl Strategy for ConfigMap {
    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors::default());
        let (data, binary) = (at.child("data"), at.child("binaryData"));
        check_keys(&data, &mut errors);
        check_keys(&binary, &mut errors);
        for (key, value) in data.entries().filter(|(key, _)| binary.value.map("").contains_key(*key)) {
            errors.invalid_as(&value, key, "duplicate of key present in binaryData");
        }
        let texts = data.entries().map(|(_, v)| v.str().len());
        if texts.chain(binary.entries().map(|(_, v)| decoded_len(v.value))).sum::<usize>() > MAX_DATA_BYTES {
            errors.0.push(FieldError::too_long(&meta::FieldPath::new("[]"), MAX_DATA_BYTES));
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors(self.validate_create(cx, object));
        check_immutable(object, old, &["data", "binaryData"], &mut errors);
        errors.0
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), (object.map("data").len() + object.map("binaryData").len()).into(), age(object, now)]
    }
}

/// `ip:port`, brackets around IPv6.
fn host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

/// Complaints about an address no packet from elsewhere reaches.
pub fn unreachable_address(text: &str) -> Option<String> {
    let ip = formats::parse_ip(text)?;
    let (link_local, multicast) = match ip {
        std::net::IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        std::net::IpAddr::V6(ip) => (ip.segments()[0] & 0xffc0 == 0xfe80, ip.segments()[0] & 0xff0f == 0xff02),
    };
    match () {
        _ if ip.is_unspecified() => Some(format!("may not be unspecified ({text})")),
        _ if ip.is_loopback() => Some("may not be in the loopback range (127.0.0.0/8, ::1/128)".into()),
        _ if link_local => Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)".into()),
        _ if multicast => Some("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into()),
        _ => None,
    }
}

impl Strategy for Endpoints {
    fn default(&self, object: &mut Value) {
        for subset in object.list_mut("subsets") {
            for port in subset.list_mut("ports") {
                port.or_put("protocol", "TCP");
            }
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        for subset in At::root(object).each("subsets") {
            let addresses = || ["addresses", "notReadyAddresses"].into_iter().flat_map(|list| subset.each(list));
            if addresses().next().is_none() {
                errors.required(&subset, "must specify `addresses` or `notReadyAddresses`");
            }
            for address in addresses() {
                let ip = address.child("ip");
                errors.format(&ip, formats::ip);
                if let Some(complaint) = unreachable_address(ip.str()) {
                    errors.invalid(&ip, complaint);
                }
                errors.may_format(&address.child("hostname"), formats::dns_label);
                errors.format_if_set(&address.child("nodeName"), formats::dns_subdomain);
            }
            let several = subset.value.list("ports").len() > 1;
            for port in subset.each("ports") {
                if several {
                    errors.need(&port.child("name"), "");
                }
                errors.may_format(&port.child("name"), formats::dns_label);
                errors.port(&port.child("port"));
                errors.need_one_of(&port.child("protocol"), &["SCTP", "TCP", "UDP"]);
                errors.format_if_set(&port.child("appProtocol"), formats::qualified_name);
            }
        }
        errors.0
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let all = object.list("subsets").iter().flat_map(|subset| {
            let addresses = subset.list("addresses");
            let bare = subset.list("ports").is_empty().then(|| addresses.iter().map(|a| a.text("ip").to_string()));
            let ports = subset.list("ports").iter();
            let paired = ports.flat_map(|port| addresses.iter().map(|a| host_port(a.text("ip"), port.int("port"))));
            bare.into_iter().flatten().chain(paired)
        });
        vec![name(object), some_of(all, ENDPOINTS_SHOWN, ",", "<none>"), age(object, now)]
    }
}

/// The finalizer by which the namespace controller holds a namespace until it is empty.
const KUBERNETES: &str = "kubernetes";
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

impl Strategy for Namespace {
    fn default(&self, object: &mut Value) {
        let name = object.at("metadata.name").clone();
        if name.as_str().is_some_and(|n| !n.is_empty()) {
            object.dig("metadata.labels").insert(NAME_LABEL.into(), name);
        }
        object.or_put("status.phase", "Active");
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        let mut finalizers = object.list("spec.finalizers").to_vec();
        if !finalizers.iter().any(|f| f == KUBERNETES) {
            finalizers.push(KUBERNETES.into());
        }
        object.put("spec.finalizers", finalizers);
        object.put("status", json!({"phase": "Active"}));
    }

    fn prepare_update(&self, cx: &Context<'_>, object: &mut Value, old: &Value) {
        match cx.subresource {
            "" => object.copy_from("spec.finalizers", old),
            "finalize" => object.copy_from("status", old),
            _ => {}
        }
    }

    fn prepare_delete(&self, object: &mut Value) {
        object.put("status.phase", "Terminating");
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::new(object.at("spec.finalizers"), "spec.finalizers"), Errors::default());
        for finalizer in at.items() {
            errors.format(&finalizer, formats::qualified_name);
            if !finalizer.str().contains('/') && finalizer.str() != KUBERNETES {
                errors.invalid(&finalizer, "name is neither a standard finalizer name nor is it fully qualified");
            }
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, _old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let phase = At::root(object).child("status.phase");
        match (cx.subresource, object.has("metadata.deletionTimestamp"), phase.str()) {
            ("finalize", ..) => return self.validate_create(cx, object),
            ("status", false, said) if said != "Active" => {
                errors.invalid(&phase, "may only be 'Active' if `deletionTimestamp` is empty")
            }
            ("status", true, said) if said != "Terminating" => {
                errors.invalid(&phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")
            }
            _ => {}
        }
        errors.0
    }

    fn validate_name(&self, name: &str, generate: bool) -> Result<(), String> {
        formats::name(formats::dns_label, name, generate)
    }

    fn held(&self, object: &Value) -> bool {
        !object.list("spec.finalizers").is_empty()
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        false
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), object.text("status.phase").into(), age(object, now)]
    }
}

/// Types of secrets, and keys each must hold.
const SECRET_KEYS: &[(&str, &[&str])] = &[
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];
const BASIC_AUTH: (&str, [&str; 2]) = ("kubernetes.io/basic-auth", ["username", "password"]);
const TOKEN_TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_ANNOTATION: &str = "kubernetes.io/service-account.name";

impl Strategy for Secret {
    fn default(&self, object: &mut Value) {
        if object.text("type").is_empty() {
            object.put("type", "Opaque");
        }
        // `stringData` is for writing only: its texts end up in `data`.
        let texts = object.map("stringData").clone();
        object.drop("stringData");
        if !texts.is_empty() {
            let data = object.dig("data");
            for (key, text) in texts {
                let encoded = base64::Engine::encode(
                    &base64::engine::general_purpose::STANDARD,
                    text.as_str().unwrap_or_default(),
                );
                data.insert(key, encoded.into());
            }
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors::default());
        let data = at.child("data");
        check_keys(&data, &mut errors);
        if data.entries().map(|(_, v)| decoded_len(v.value)).sum::<usize>() > MAX_DATA_BYTES {
            errors.too_long(&data, MAX_DATA_BYTES);
        }
        let entry =
            |key: &str| At { value: data.value.map("").get(key).unwrap_or(&Value::Null), path: data.path.key(key) };
        let kind = object.text("type");
        for key in SECRET_KEYS.iter().filter(|(of, _)| *of == kind).flat_map(|(_, keys)| *keys) {
            let entry = entry(key);
            if !entry.there() {
                errors.required(&entry, "");
            } else if kind.starts_with("kubernetes.io/docker") && !is_json_object(entry.str()) {
                errors.invalid_as(&entry, "<secret contents redacted>", "invalid character in JSON, or not an object");
            }
        }
        if kind == BASIC_AUTH.0 && !BASIC_AUTH.1.iter().any(|key| entry(key).there()) {
            for key in BASIC_AUTH.1 {
                errors.required(&entry(key), "");
            }
        }
        if kind == TOKEN_TYPE && object.map("metadata.annotations").get(ACCOUNT_ANNOTATION).is_none_or(|a| a == "") {
            errors
                .0
                .push(FieldError::required(&meta::FieldPath::new("metadata.annotations").key(ACCOUNT_ANNOTATION), ""));
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors(self.validate_create(cx, object));
        errors.immutable(&At::root(object).child("type"), old.at("type"));
        check_immutable(object, old, &["data"], &mut errors);
        errors.0
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), object.text("type").into(), object.map("data").len().into(), age(object, now)]
    }
}

/// Whether a base64 text holds a JSON object.
fn is_json_object(encoded: &str) -> bool {
    let decoded = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, encoded);
    decoded.is_ok_and(|bytes| serde_json::from_slice::<Map<String, Value>>(&bytes).is_ok())
}

impl Strategy for ServiceAccount {
    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        for secret in object.list_mut("secrets") {
            *secret = json!({"name": secret["name"]});
        }
    }

    fn prepare_update(&self, cx: &Context<'_>, object: &mut Value, _old: &Value) {
        self.prepare_create(cx, object);
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), object.list("secrets").len().into(), age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::expect;

    const CX: Context<'static> = Context::SOMEBODY;

    #[test]
    fn secrets_take_texts_and_keep_bytes() {
        let mut secret = json!({"stringData": {"a": "hello"}, "data": {"a": "b2xk", "b": "eA=="}});
        Secret.default(&mut secret);
        assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "aGVsbG8=", "b": "eA=="}}));
        let check = |secret: Value, expected: &[&str]| expect(&Secret.validate_create(&CX, &secret), expected, &secret);
        check(secret, &[]);
        check(json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}), &["data[tls.key]: Required value"]);
        check(
            json!({"type": "kubernetes.io/basic-auth"}),
            &["data[username]: Required value", "data[password]: Required value"],
        );
        check(json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}}), &[]);
        check(
            json!({"data": {"a/b": ""}}),
            &[
                "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
            ],
        );
        let old = json!({"type": "Opaque"});
        let new = json!({"type": "Other"});
        expect(&Secret.validate_update(&CX, &new, &old), &["type: Invalid value: \"Other\": field is immutable"], &new);
    }

    #[test]
    fn config_maps_are_bounded_and_may_be_frozen() {
        let big = json!({"data": {"a": "x".repeat((1 << 20) + 1)}});
        assert_eq!(
            ConfigMap.validate_create(&CX, &big)[0].to_string(),
            "[]: Too long: may not be more than 1048576 bytes"
        );
        let both = json!({"data": {"a": ""}, "binaryData": {"a": ""}});
        expect(
            &ConfigMap.validate_create(&CX, &both),
            &["data[a]: Invalid value: \"a\": duplicate of key present in binaryData"],
            &both,
        );
        let (old, new) = (json!({"immutable": true, "data": {"a": "1"}}), json!({"data": {"a": "2"}}));
        expect(
            &ConfigMap.validate_update(&CX, &new, &old),
            &[
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ],
            &new,
        );
    }

    #[test]
    fn namespaces_are_held_until_finalized() {
        let mut namespace = json!({"metadata": {"name": "n"}});
        Namespace.default(&mut namespace);
        Namespace.prepare_create(&CX, &mut namespace);
        assert_eq!(
            namespace,
            json!({"metadata": {"name": "n", "labels": {"kubernetes.io/metadata.name": "n"}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
        );
        assert!(Namespace.held(&namespace));
        let mut new = namespace.clone();
        new.put("spec.finalizers", json!([]));
        Namespace.prepare_update(&CX, &mut new, &namespace);
        assert!(Namespace.held(&new));
        new.put("spec.finalizers", json!([]));
        Namespace.prepare_update(&Context { subresource: "finalize", ..CX }, &mut new, &namespace);
        assert!(!Namespace.held(&new));
        assert!(Namespace.validate_name("a.b", false).is_err() && Namespace.validate_name("a-", true).is_ok());
    }

    #[test]
    fn endpoints_are_checked() {
        let object =
            json!({"subsets": [{"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": 80, "protocol": "TCP"}]}, {}]});
        expect(
            &Endpoints.validate_create(&CX, &object),
            &[
                "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                "subsets[1]: Required value: must specify `addresses` or `notReadyAddresses`",
            ],
            &object,
        );
    }
}
