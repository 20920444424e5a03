//! What extends the API: custom resource definitions and API services.

use meta::Value;

use crate::cells::{age, name};
use crate::kinds::Plain;
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    CustomResourceDefinition: "Name|Created At";
    ApiService: "Name|Service|Available|Age";
}

impl Strategy for CustomResourceDefinition {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        Plain.table_row(object, now)
    }
}

impl Strategy for ApiService {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let service = object.at("spec.service");
        let service = if service.is_null() { "Local".into() } else { format!("{}/{}", service.text("namespace"), service.text("name")) };
        let available = match object.find("status.conditions", "type", "Available") {
            None => "Unknown".to_string(),
            Some(c) if c.text("status") == "False" => format!("False ({})", c.text("reason")),
            Some(c) => c.text("status").to_string(),
        };
        vec![name(object), service.into(), available.into(), age(object, now)]
    }
}
