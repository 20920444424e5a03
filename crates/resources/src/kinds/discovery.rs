//! discovery.k8s.io: endpoint slices.

use meta::Value;

use crate::cells::{age, name, some_of, texts};
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    EndpointSlice: "Name|AddressType|Ports|Endpoints|Age";
}

/// Ports and endpoints shown before the rest is counted.
const SHOWN: usize = 3;

impl Strategy for EndpointSlice {
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
