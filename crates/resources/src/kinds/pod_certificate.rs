//! certificates.k8s.io: what kubelets ask signers for, in the name of pods.
//!
//! A request says all it says when it is made; afterwards its signer alone speaks, through status, and one last time.
//! What stands inside keys and certificates is not looked at here.

use meta::{FieldError, Status, Value};

use super::certificates::check_signer;
use crate::cells::{age, name, or_none, seconds_between};
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors, formats};
use meta::Tree;

kinds! {
    PodCertificateRequest: "Name|PodName|ServiceAccountName|NodeName|SignerName|State|Age";
}

/// Bytes of a UID.
const MAX_UID: usize = 128;
/// Seconds a certificate may live: an hour, and a day from Kubernetes' own signers or 91 days from others.
const SHORTEST: i64 = 3600;
const LONGEST_OF_KUBERNETES: i64 = 24 * 3600;
const LONGEST: i64 = 91 * 24 * 3600;
/// Bytes of a chain in PEM, and of the stub request.
const MAX_CHAIN: usize = 100 << 10;
const MAX_STUB: usize = 10 << 10;
/// Seconds between either end of a certificate's life and the time its renewal begins.
const REFRESH_MARGIN: i64 = 600;
/// Conditions that end a request.
const ENDS: [&str; 3] = ["Issued", "Denied", "Failed"];
/// Fields of v1beta1 alone, made superfluous by the stub request.
const PAST_FIELDS: [&str; 2] = ["spec.pkixPublicKey", "spec.proofOfPossession"];

/// How a request ended, if it has.
fn end(object: &Value) -> Option<&str> {
    object.list("status.conditions").iter().map(|c| c.text("type")).find(|kind| ENDS.contains(kind))
}

fn check_spec(spec: &At<'_>, errors: &mut Errors) {
    let signer = spec.child("signerName");
    check_signer(&signer, errors);
    for (key, at) in spec.child("unverifiedUserAnnotations").entries() {
        for complaint in formats::qualified_name(&key.to_lowercase()) {
            errors.invalid_as(
                &At { value: at.value, path: spec.child("unverifiedUserAnnotations").path },
                key,
                complaint,
            );
        }
    }
    for (named, uid, format) in [
        ("podName", "podUID", formats::dns_subdomain as fn(&str) -> Vec<String>),
        ("serviceAccountName", "serviceAccountUID", formats::dns_subdomain),
        ("nodeName", "nodeUID", formats::dns_subdomain),
    ] {
        errors.format(&spec.child(named), format);
        let uid = spec.child(uid);
        if uid.blank() {
            errors.invalid_as(&uid, "", "must not be empty");
        } else if uid.str().len() > MAX_UID {
            errors.too_long(&uid, MAX_UID);
        }
    }
    let lives = spec.child("maxExpirationSeconds");
    let own = signer
        .str()
        .split_once('/')
        .is_some_and(|(domain, _)| domain == "kubernetes.io" || domain.ends_with(".kubernetes.io"));
    let longest = if own { LONGEST_OF_KUBERNETES } else { LONGEST };
    match lives.number() {
        None => errors.required(&lives, "must be set"),
        Some(seconds) if !(SHORTEST..=longest).contains(&seconds) => {
            errors.invalid(&lives, format!("must be in the range [{SHORTEST}, {longest}]"));
        }
        Some(_) => {}
    }
    let stub = spec.child("stubPKCS10Request");
    // Four characters of base64 are three bytes.
    if stub.str().len() / 4 * 3 > MAX_STUB {
        errors.too_long(&stub, MAX_STUB);
    }
}

/// What a signer may say.
fn check_status(object: &Value, old: &Value, errors: &mut Errors) {
    let (root, status) = (At::root(object), At::new(object.at("status"), "status"));
    let mut ends = 0;
    for condition in status.each("conditions") {
        let kind = condition.child("type");
        if !ENDS.contains(&kind.str()) {
            errors.not_supported(&kind, &ENDS);
            continue;
        }
        ends += 1;
        if ends > 1 {
            errors.invalid(&kind, "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"");
        }
        errors.one_of(&condition.child("status"), &["True"]);
        errors.need(&condition.child("reason"), "");
        errors.need(&condition.child("lastTransitionTime"), "");
    }
    if !errors.0.is_empty() {
        return;
    }
    if end(old).is_some() {
        if object.at("status") != old.at("status") {
            errors.invalid(&root.child("status"), "immutable after PodCertificateRequest is issued, denied, or failed");
        }
        return;
    }
    let times = ["notBefore", "notAfter", "beginRefreshAt"];
    match end(object) {
        Some("Issued") => {
            let chain = status.child("certificateChain");
            if chain.str().len() > MAX_CHAIN {
                errors.too_long(&chain, MAX_CHAIN);
            } else if !chain.str().contains("-----BEGIN CERTIFICATE-----") {
                errors.invalid(&chain, "issued certificate chain must contain at least one certificate");
            }
            for field in times {
                let why = if field == "beginRefreshAt" {
                    "must be present and in the range [notbefore+10min, notafter-10min]"
                } else {
                    "must be present and consistent with the issued certificate"
                };
                errors.need(&status.child(field), why);
            }
            let [begins, ends, renews] = times.map(|field| status.child(field));
            if seconds_between(begins.str(), renews.str()).is_some_and(|s| s < REFRESH_MARGIN) {
                errors.invalid(&renews, "must be at least 10 minutes after status.notBefore");
            } else if seconds_between(renews.str(), ends.str()).is_some_and(|s| s < REFRESH_MARGIN) {
                errors.invalid(&renews, "must be at least 10 minutes before status.notAfter");
            }
        }
        Some(_) if times.iter().chain(&["certificateChain"]).any(|f| status.value.has(f)) => errors.invalid(
            &status,
            "non-condition status fields must be empty when denying or failing the PodCertificateRequest",
        ),
        _ => {}
    }
}

impl Strategy for PodCertificateRequest {
    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        check_spec(&At::new(object.at("spec"), "spec"), &mut errors);
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if cx.subresource == "status" {
            check_status(object, old, &mut errors);
        } else {
            errors.immutable(&At::root(object).child("spec"), old.at("spec"));
        }
        errors.0
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        false
    }

    fn convert(&self, object: &mut Value, _from: &str, to: &str) -> Result<(), Status> {
        for field in PAST_FIELDS.iter().filter(|_| to == "v1") {
            object.drop(field);
        }
        Ok(())
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        vec![
            name(object),
            object.text("spec.podName").into(),
            object.text("spec.serviceAccountName").into(),
            object.text("spec.nodeName").into(),
            or_none(object.text("spec.signerName")),
            end(object).unwrap_or("Pending").into(),
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
    const STATUS: Context<'static> = Context { subresource: "status", ..CX };

    fn request(changes: &[(&str, Value)]) -> Value {
        let mut object = json!({"metadata": {"name": "r"}, "spec": {"signerName": "example.com/s", "podName": "p", "podUID": "1",
            "serviceAccountName": "default", "serviceAccountUID": "2", "nodeName": "n", "nodeUID": "3",
            "maxExpirationSeconds": 86400, "stubPKCS10Request": "AAAA"}});
        for (path, value) in changes {
            object.put(path, value.clone());
        }
        object
    }

    #[test]
    fn requests_are_whole_and_bounded() {
        let check = |changes: &[(&str, Value)], expected: &[&str]| {
            let object = request(changes);
            expect(&PodCertificateRequest.validate_create(&CX, &object), expected, &object);
        };
        check(&[], &[]);
        check(&[("spec.podUID", json!(""))], &["spec.podUID: Invalid value: \"\": must not be empty"]);
        check(
            &[("spec.maxExpirationSeconds", json!(3599))],
            &["spec.maxExpirationSeconds: Invalid value: 3599: must be in the range [3600, 7862400]"],
        );
        check(
            &[("spec.maxExpirationSeconds", json!(90000)), ("spec.signerName", json!("kubernetes.io/a"))],
            &["spec.maxExpirationSeconds: Invalid value: 90000: must be in the range [3600, 86400]"],
        );
    }

    #[test]
    fn a_signer_speaks_once() {
        let condition = |kind: &str| json!([{"type": kind, "status": "True", "reason": "r", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let check = |old: &Value, new: &Value, expected: &[&str]| {
            expect(&PodCertificateRequest.validate_update(&STATUS, new, old), expected, new);
        };
        let denied = request(&[("status.conditions", condition("Denied"))]);
        check(&request(&[]), &denied, &[]);
        check(
            &denied,
            &request(&[("status.conditions", condition("Failed"))]),
            &[
                "status: Invalid value: {\"conditions\":[{\"lastTransitionTime\":\"2026-01-01T00:00:00Z\",\"reason\":\"r\",\"status\":\"True\",\"type\":\"Failed\"}]}: immutable after PodCertificateRequest is issued, denied, or failed",
            ],
        );
        check(
            &request(&[]),
            &request(&[("status.conditions", condition("Odd"))]),
            &[
                "status.conditions[0].type: Unsupported value: \"Odd\": supported values: \"Denied\", \"Failed\", \"Issued\"",
            ],
        );
        check(
            &request(&[]),
            &request(&[("status.conditions", condition("Issued"))]),
            &[
                "status.certificateChain: Invalid value: \"\": issued certificate chain must contain at least one certificate",
                "status.notBefore: Required value: must be present and consistent with the issued certificate",
                "status.notAfter: Required value: must be present and consistent with the issued certificate",
                "status.beginRefreshAt: Required value: must be present and in the range [notbefore+10min, notafter-10min]",
            ],
        );
    }
}
