//! admissionregistration.k8s.io: webhooks and admission policies.

use meta::Value;

use crate::cells::{age, name};
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    /// Both kinds of webhook configuration.
    Webhooks: "Name|Webhooks#|Age";
    ValidatingPolicy: "Name|Validations#|ParamKind|Age";
    MutatingPolicy: "Name|Mutations#|ParamKind|Age";
    /// Both kinds of policy binding.
    PolicyBinding: "Name|PolicyName|ParamRef|Age";
}

impl Strategy for Webhooks {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![name(object), object.list("webhooks").len().into(), age(object, now)]
    }
}

fn policy_row(object: &Value, rules: &str, now: &str) -> Vec<Value> {
    let param = object.at("spec.paramKind");
    let param = if param.is_null() { "<unset>".into() } else { format!("{}/{}", param.text("apiVersion"), param.text("kind")) };
    vec![name(object), object.list(rules).len().into(), param.into(), age(object, now)]
}

impl Strategy for ValidatingPolicy {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        policy_row(object, "spec.validations", now)
    }
}

impl Strategy for MutatingPolicy {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        policy_row(object, "spec.mutations", now)
    }
}

impl Strategy for PolicyBinding {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let param = object.at("spec.paramRef");
        let param = match (param.is_null(), param.text("namespace"), param.text("name")) {
            (true, ..) => "<unset>".to_string(),
            (_, "", param) => param.into(),
            (_, namespace, param) => format!("{namespace}/{param}"),
        };
        vec![name(object), object.text("spec.policyName").into(), param.into(), age(object, now)]
    }
}
