//! Disruption budgets, quotas and limit ranges.

use meta::Value;

use crate::cells::{age, name, quantity};
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    PodDisruptionBudget: "Name|Min Available|Max Unavailable|Allowed Disruptions#|Age";
    ResourceQuota: "Name|Request|Limit|Age";
    LimitRange: "Name|Created At";
}

impl Strategy for PodDisruptionBudget {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let bound = |field: &str| match object["spec"].at(field) {
            Value::Null => "N/A".into(),
            Value::String(text) => Value::from(text.as_str()),
            number => number.to_string().into(),
        };
        let allowed = object.int("status.disruptionsAllowed");
        vec![name(object), bound("minAvailable"), bound("maxUnavailable"), allowed.into(), age(object, now)]
    }
}

impl Strategy for ResourceQuota {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let (hard, used) = (object.map("status.hard"), object.map("status.used"));
        let side = |limits: bool| {
            let of = hard.iter().filter(|(name, _)| name.starts_with("limits.") == limits);
            let used = |name: &str| used.get(name).map_or("0".to_string(), quantity);
            Value::from(of.map(|(name, hard)| format!("{name}: {}/{}", used(name), quantity(hard))).collect::<Vec<_>>().join(", "))
        };
        vec![name(object), side(false), side(true), age(object, now)]
    }
}

impl Strategy for LimitRange {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        crate::kinds::Plain.table_row(object, now)
    }
}
