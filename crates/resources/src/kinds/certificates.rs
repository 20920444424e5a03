//! certificates.k8s.io: signing requests and trust bundles.

use meta::{FieldError, Value};
use serde_json::json;

use crate::cells::{age, human_duration, name, or_none};
use crate::strategy::{Context, Strategy};
use crate::validate::{At, Errors, formats};
use meta::Tree;

kinds! {
    CertificateSigningRequest: "Name|Age|SignerName|Requestor|RequestedDuration|Condition";
    ClusterTrustBundle: "Name|SignerName";
}

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
const MIN_SECONDS: i64 = 600;
/// Conditions only approvers set, and only ever to true.
const DECISIONS: [&str; 2] = ["Approved", "Denied"];
const REQUEST_HEAD: &[u8] = b"-----BEGIN CERTIFICATE REQUEST-----";

fn decided(condition: &Value) -> bool {
    DECISIONS.contains(&condition.text("type"))
}

/// The conditions of an update: those of one sort as the client has them, those of the other as they were.
fn merge_conditions(object: &mut Value, old: &Value, theirs: impl Fn(&Value) -> bool, now: &str) {
    let kept = old.list("status.conditions").iter().filter(|c| !theirs(c));
    let mut all: Vec<Value> =
        kept.chain(object.list("status.conditions").iter().filter(|c| theirs(c))).cloned().collect();
    for condition in &mut all {
        condition.or_put("lastUpdateTime", now);
        condition.or_put("lastTransitionTime", now);
    }
    if !all.is_empty() || object.has("status.conditions") {
        object.put("status.conditions", all);
    }
}

/// Decisions of which there are as many as there were are the same ones: signers do not change them.
fn keep_decisions(object: &mut Value, old: &Value) {
    for kind in DECISIONS {
        let of = |object: &Value| -> Vec<usize> {
            let all = object.list("status.conditions").iter().enumerate();
            all.filter(|(_, c)| c.text("type") == kind).map(|(at, _)| at).collect()
        };
        let (before, now) = (of(old), of(object));
        if before.len() != now.len() {
            continue;
        }
        for (from, to) in before.into_iter().zip(now) {
            object["status"]["conditions"][to] = old.list("status.conditions")[from].clone();
        }
    }
}

/// A signed certificate is PEM: certificates, and nothing else.
fn check_certificate(at: &At<'_>, errors: &mut Errors) {
    let decoded = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, at.str()).unwrap_or_default();
    let text = String::from_utf8_lossy(&decoded);
    let kinds = text.split("-----BEGIN ").skip(1).map(|block| block.split("-----").next().unwrap_or_default());
    let mut blocks = 0;
    for kind in kinds {
        if kind != "CERTIFICATE" {
            let why = format!("only CERTIFICATE PEM blocks are allowed, found {kind:?}");
            return errors.invalid_as(at, "<certificate data>", why);
        }
        blocks += 1;
    }
    if blocks == 0 {
        errors.invalid_as(at, "<certificate data>", "must contain at least one CERTIFICATE PEM block");
    }
}

/// A signer's name: `example.com/signer`.
pub(super) fn check_signer(at: &At<'_>, errors: &mut Errors) {
    if !errors.need(at, "") {
        return;
    }
    match at.str().split_once('/') {
        Some((domain, path)) if !path.contains('/') => {
            for label in domain.split('.') {
                for complaint in formats::dns_label(label) {
                    errors.invalid_as(at, domain, format!("validating label {label:?}: {complaint}"));
                }
            }
            if !domain.contains('.') {
                errors.invalid_as(at, domain, "should be a domain with at least two segments separated by dots");
            }
            for complaint in formats::dns_subdomain(path) {
                errors.invalid_as(at, path, format!("validating label {path:?}: {complaint}"));
            }
        }
        _ => errors.invalid(at, "must be a fully qualified domain and path of the form 'example.com/signer-name'"),
    }
}

fn check_conditions(object: &Value, errors: &mut Errors) {
    let conditions = At::root(object).child("status.conditions");
    for condition in conditions.items() {
        let (kind, status) = (condition.child("type"), condition.child("status"));
        errors.need(&kind, "");
        let allowed: &[&str] =
            if decided(condition.value) || kind.str() == "Failed" { &["True"] } else { &["False", "True", "Unknown"] };
        errors.need_one_of(&status, allowed);
    }
    let decisions: Vec<At<'_>> =
        conditions.items().map(|c| c.child("type")).filter(|t| DECISIONS.contains(&t.str())).collect();
    if DECISIONS.iter().all(|d| decisions.iter().any(|t| t.str() == *d)) {
        errors.invalid(&decisions[decisions.len() - 1], "Approved and Denied conditions are mutually exclusive");
    }
    errors.unique(conditions.items().map(|c| c.child("type")));
}

impl Strategy for CertificateSigningRequest {
    /// Who asks is the server's word, not the client's.
    fn prepare_create(&self, cx: &Context<'_>, object: &mut Value) {
        object.put("spec.username", cx.user);
        object.put("spec.groups", json!(cx.groups));
        match cx.uid {
            "" => object.drop("spec.uid"),
            uid => object.put("spec.uid", uid),
        }
        match cx.extra.is_empty() {
            true => object.drop("spec.extra"),
            false => object.put("spec.extra", json!(cx.extra)),
        }
    }

    fn prepare_update(&self, cx: &Context<'_>, object: &mut Value, old: &Value) {
        object.copy_from("spec", old);
        match cx.subresource {
            "approval" => {
                object.copy_from("status.certificate", old);
                merge_conditions(object, old, |_| true, cx.now);
            }
            "status" => {
                keep_decisions(object, old);
                merge_conditions(object, old, |_| true, cx.now);
            }
            _ => object.copy_from("status", old),
        }
    }

    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (At::new(object.at("spec"), "spec"), Errors::default());
        let request = spec.child("request");
        let decoded =
            base64::Engine::decode(&base64::engine::general_purpose::STANDARD, request.str()).unwrap_or_default();
        if !decoded.windows(REQUEST_HEAD.len()).any(|w| w == REQUEST_HEAD) {
            errors.invalid(&request, "PEM block type must be CERTIFICATE REQUEST");
        }
        let usages = spec.child("usages");
        if usages.value.list("").is_empty() {
            errors.required(&usages, "");
        }
        for usage in usages.items() {
            errors.one_of(&usage, &USAGES);
        }
        errors.unique(usages.items());
        let signer = spec.child("signerName");
        if signer.str() == "kubernetes.io/legacy-unknown" {
            errors.invalid(&signer, "the legacy signerName is not allowed via this API version");
        } else {
            check_signer(&signer, &mut errors);
        }
        errors.at_least(
            &spec.child("expirationSeconds"),
            MIN_SECONDS,
            "may not specify a duration less than 600 seconds (10 minutes)",
        );
        check_conditions(object, &mut errors);
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors(self.validate_create(cx, object));
        let conditions = At::root(object).child("status.conditions");
        for before in old.list("status.conditions").iter().filter(|c| decided(c) || c.text("type") == "Failed") {
            let kind = before.text("type");
            if conditions.value.find("", "type", kind).is_none() {
                errors.forbidden(&conditions, format!("updates may not remove a condition of type {kind:?}"));
            }
        }
        let certificate = At::root(object).child("status.certificate");
        let before = old.text("status.certificate");
        if cx.subresource == "status" {
            for kind in DECISIONS {
                let count =
                    |object: &Value| object.list("status.conditions").iter().filter(|c| c.text("type") == kind).count();
                if count(object) > count(old) {
                    errors.forbidden(&conditions, format!("updates may not add a condition of type {kind:?}"));
                }
            }
            if certificate.str() != before {
                if !certificate.blank() {
                    check_certificate(&certificate, &mut errors);
                }
                if !before.is_empty() {
                    errors.forbidden(&certificate, "updates may not modify existing certificate content");
                }
            }
        }
        errors.0
    }

    fn validate_name(&self, _name: &str, _generate: bool) -> Result<(), String> {
        Ok(())
    }

    fn tracks_generation(&self, _has_status: bool) -> bool {
        false
    }

    fn table_row(&self, object: &Value, now: &str) -> Vec<Value> {
        let is = |kind: &str| object.find("status.conditions", "type", kind).is_some();
        let mut condition = if is("Denied") {
            "Denied"
        } else if is("Approved") {
            "Approved"
        } else {
            "Pending"
        }
        .to_string();
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

/// A trust bundle is PEM, of certificates only, and not without any. What a certificate says is its users' to judge.
fn check_anchors(bundle: &At<'_>, errors: &mut Errors) {
    let mut anchors = 0;
    let mut complain = |why: String| errors.invalid_as(bundle, "<value omitted>", why);
    let mut fine = true;
    for (at, block) in bundle.str().split("-----BEGIN ").skip(1).enumerate() {
        let (kind, rest) = block.split_once("-----").unwrap_or_default();
        let body = rest.split("-----END ").next().unwrap_or_default();
        let why = if kind != "CERTIFICATE" {
            format!("entry {at} has bad block type: {kind}")
        } else if body.contains(':') {
            format!("entry {at} has PEM block headers")
        } else {
            let text: String = body.split_whitespace().collect();
            let decoded = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text);
            if decoded.is_ok_and(|der| der.first() == Some(&SEQUENCE)) {
                anchors += 1;
                continue;
            }
            format!("entry {at} does not parse as an X.509 certificate")
        };
        fine = false;
        complain(why);
    }
    if fine && anchors == 0 {
        complain("at least one trust anchor must be provided".into());
    }
}

/// What every certificate begins with, in DER.
const SEQUENCE: u8 = 0x30;

impl Strategy for ClusterTrustBundle {
    fn validate_create(&self, _cx: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let (at, mut errors) = (At::root(object), Errors::default());
        let (signer, name) = (at.child("spec.signerName"), at.child("metadata.name"));
        if signer.blank() {
            if name.str().contains(':') {
                errors.invalid(&name, "ClusterTrustBundle without signer name must not have \":\" in its name");
            }
        } else {
            check_signer(&signer, &mut errors);
            let prefix = signer.str().replace('/', ":") + ":";
            if !name.str().starts_with(&prefix) {
                errors.invalid(
                    &name,
                    format!("ClusterTrustBundle for signerName {} must be named with prefix {prefix}", signer.str()),
                );
            }
        }
        let bundle = at.child("spec.trustBundle");
        if errors.need(&bundle, "") {
            check_anchors(&bundle, &mut errors);
        }
        errors.0
    }

    fn validate_update(&self, cx: &Context<'_>, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors(self.validate_create(cx, object));
        errors.immutable(&At::root(object).child("spec.signerName"), old.at("spec.signerName"));
        errors.0
    }

    fn validate_name(&self, _name: &str, _generate: bool) -> Result<(), String> {
        Ok(())
    }

    fn table_row(&self, object: &Value, _now: &str) -> Vec<Value> {
        vec![name(object), or_none(object.text("spec.signerName"))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::expect;

    const CX: Context<'static> = Context::SOMEBODY;

    #[test]
    fn approvers_decide_and_signers_sign() {
        let pem =
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [REQUEST_HEAD, b"\nAA=="].concat());
        let mut old = json!({"spec": {"request": pem, "usages": ["client auth"], "signerName": "example.com/s", "username": "forged"}});
        CertificateSigningRequest.prepare_create(&CX, &mut old);
        assert_eq!(old.text("spec.username"), "u");
        let extra = std::collections::BTreeMap::from([("k".into(), vec!["v".into()])]);
        let mut told = json!({"spec": {"uid": "forged", "extra": {"forged": []}}});
        CertificateSigningRequest.prepare_create(&Context { uid: "1", extra: &extra, ..CX }, &mut told);
        assert_eq!(told["spec"], json!({"username": "u", "groups": [], "uid": "1", "extra": {"k": ["v"]}}));
        expect(&CertificateSigningRequest.validate_create(&CX, &old), &[], &old);
        let update = |subresource, path: &str, value: Value| {
            let mut new = old.clone();
            new.put(path, value);
            let cx = Context { subresource, ..CX };
            CertificateSigningRequest.prepare_update(&cx, &mut new, &old);
            expect(&CertificateSigningRequest.validate_update(&cx, &new, &old), &[], &new);
            new
        };
        let approved = || json!([{"type": "Approved", "status": "True"}]);
        assert_eq!(
            update("approval", "status.conditions", approved())["status"]["conditions"][0]["lastUpdateTime"],
            CX.now
        );
        for (path, value, expected) in [
            (
                "status.conditions",
                approved(),
                "status.conditions: Forbidden: updates may not add a condition of type \"Approved\"",
            ),
            (
                "status.certificate",
                json!("eA=="),
                "status.certificate: Invalid value: \"<certificate data>\": must contain at least one CERTIFICATE PEM block",
            ),
        ] {
            let (mut new, cx) = (old.clone(), Context { subresource: "status", ..CX });
            new.put(path, value);
            CertificateSigningRequest.prepare_update(&cx, &mut new, &old);
            expect(&CertificateSigningRequest.validate_update(&cx, &new, &old), &[expected], &new);
        }
        assert!(!update("", "status.certificate", json!("eA==")).has("status.certificate"));
        assert_eq!(update("", "spec.signerName", json!("other.com/x")).text("spec.signerName"), "example.com/s");
        let bad = json!({"spec": {"request": "", "signerName": "x"}});
        expect(
            &CertificateSigningRequest.validate_create(&CX, &bad),
            &[
                "spec.request: Invalid value: \"\": PEM block type must be CERTIFICATE REQUEST",
                "spec.usages: Required value",
                "spec.signerName: Invalid value: \"x\": must be a fully qualified domain and path of the form 'example.com/signer-name'",
            ],
            &bad,
        );
    }
}
