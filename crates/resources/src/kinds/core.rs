//! Small core kinds: config maps, secrets, service accounts, namespaces, endpoints, component statuses.

use meta::Value;

use crate::cells::{age, name, some_of};
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    ComponentStatus: "Name|Status|Message|Error";
    ConfigMap: "Name|Data|Age";
    Endpoints: "Name|Endpoints|Age";
    Namespace: "Name|Status|Age";
    Secret: "Name|Type|Data#|Age";
    ServiceAccount: "Name|Secrets#|Age";
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

impl Strategy for ConfigMap {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), (object.map("data").len() + object.map("binaryData").len()).into(), age(object, now)]
    }
}

/// `ip:port`, brackets around IPv6.
fn host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

impl Strategy for Endpoints {
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

impl Strategy for Namespace {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), object.text("status.phase").into(), age(object, now)]
    }
}

impl Strategy for Secret {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), object.text("type").into(), object.map("data").len().into(), age(object, now)]
    }
}

impl Strategy for ServiceAccount {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), object.list("secrets").len().into(), age(object, now)]
    }
}
