//! certificates.k8s.io: signing requests and trust bundles.

use meta::Value;

use crate::cells::{age, human_duration, name, or_none};
use crate::strategy::Strategy;
use crate::tree::Tree;

kinds! {
    CertificateSigningRequest: "Name|Age|SignerName|Requestor|RequestedDuration|Condition";
    ClusterTrustBundle: "Name|SignerName";
}

impl Strategy for CertificateSigningRequest {
    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let is = |kind: &str| object.find("status.conditions", "type", kind).is_some();
        let mut condition = if is("Denied") { "Denied" } else if is("Approved") { "Approved" } else { "Pending" }.to_string();
        if is("Failed") {
            condition += ",Failed";
        }
        if !object.text("status.certificate").is_empty() {
            condition += ",Issued";
        }
        vec![
            name(object),
            age(object, now),
            or_none(object.text("spec.signerName")),
            object.text("spec.username").into(),
            or_none(&object.number("spec.expirationSeconds").map(human_duration).unwrap_or_default()),
            condition.into(),
        ]
    }
}

impl Strategy for ClusterTrustBundle {
    fn table_row(&self, object: &Value, _now: &str) -> Vec<Value> {
        vec![name(object), or_none(object.text("spec.signerName"))]
    }
}
