//! Certificate signing requests: kubelets' own are approved, approved ones signed, old ones forgotten.

use std::time::Duration;

use client::{Client, Gvr};
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, PodCertificateRequest};
use meta::{Object, Status};
use serde_json::{Value, json};

use crate::plan::{Action, Plan};
use crate::pods::seconds_between;
use crate::runner::{Ask, Controller, own_key};
use crate::signing::{self, Asked, Authority};
use crate::{Context, decoded, status_of};

/// Seconds an answered request is kept, so that whoever asked can fetch the answer.
const ANSWERED_KEPT: i64 = 3600;
/// Seconds a request may wait for an answer.
const PENDING_KEPT: i64 = 24 * 3600;
/// Seconds a pod's certificate request is kept after it was made; its kubelet polls it every few seconds.
const POD_REQUEST_KEPT: i64 = 30 * 60;
/// Shortest life a request may ask for, in seconds.
const SHORTEST: i64 = 600;

fn resource() -> Gvr {
    client::gvr_of::<CertificateSigningRequest>()
}

fn condition<'s>(status: &'s Value, kind: &str) -> Option<&'s Value> {
    crate::conditions::get(status, kind)
}

/// Which right lets a requester have a kubelet's client certificate unasked, if that is what it wants.
fn recognized(request: &CertificateSigningRequest, asked: &Asked) -> Option<&'static str> {
    let spec = &request.spec;
    let usages = spec.usages.as_deref().unwrap_or_default();
    if spec.signer_name != signing::KUBELET_CLIENT || signing::check_kubelet_client(asked, usages).is_err() {
        return None;
    }
    let own = spec.username.as_deref() == Some(&asked.common_name);
    Some(if own { "selfnodeclient" } else { "nodeclient" })
}

fn with_condition(object: &Object, kind: &str, reason: &str, message: &str, now: Timestamp) -> Result<Value, Status> {
    let mut body = object.value().map_err(Status::internal)?;
    let at = client::time::rfc3339(now);
    crate::conditions::replace(
        &mut body["status"],
        json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastUpdateTime": at, "lastTransitionTime": at}),
    );
    Ok(body)
}

/// Asks whether the requester itself may have such a certificate.
async fn is_allowed(client: &Client, request: &CertificateSigningRequest, right: &str) -> Result<bool, Status> {
    let spec = &request.spec;
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {
            "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
            "resourceAttributes": {
                "group": "certificates.k8s.io", "resource": "certificatesigningrequests", "verb": "create", "subresource": right,
            },
        },
    });
    let api = client.dynamic(Gvr::new("authorization.k8s.io", "v1", "subjectaccessreviews"));
    let answer = api.create(review).await?.value().map_err(Status::internal)?;
    Ok(answer["status"]["allowed"] == true)
}

pub fn approving(cx: &Context) -> Controller {
    let requests = cx.informers.get::<CertificateSigningRequest>();
    let (of, client) = (requests.clone(), cx.client.clone());
    let reconcile = move |ask: Ask| {
        let (of, client) = (of.clone(), client.clone());
        async move {
            let mut plan = Plan::nothing();
            let Some(object) = of.get(&ask.key) else { return Ok(plan) };
            let request = decoded::<CertificateSigningRequest>(&object)?;
            let status = status_of(&object)?;
            if status.get("certificate").is_some()
                || ["Approved", "Denied"].iter().any(|c| condition(&status, c).is_some())
            {
                return Ok(plan);
            }
            // What cannot be read is for people, or for the signer to refuse.
            let Ok(asked) = Asked::parse(&request.spec.request.0) else { return Ok(plan) };
            let Some(right) = recognized(&request, &asked) else { return Ok(plan) };
            if !is_allowed(&client, &request, right).await? {
                return Ok(plan);
            }
            let own = if right == "selfnodeclient" { "self " } else { "" };
            let said = format!("Auto approving {own}kubelet client certificate after SubjectAccessReview.");
            let body = with_condition(&object, "Approved", "AutoApproved", &said, ask.now)?;
            plan.act(Action::update_subresource(&resource(), &object, "approval", body));
            Ok(plan)
        }
        .boxed()
    };
    Controller::with_io("certificatesigningrequest-approving-controller", reconcile).watch(&requests, own_key)
}

/// What a signer makes of one request.
fn sign(
    object: &Object,
    request: &CertificateSigningRequest,
    authority: &Authority,
    longest: Duration,
    now: Timestamp,
) -> Result<Plan, Status> {
    let mut plan = Plan::nothing();
    let usages = request.spec.usages.as_deref().unwrap_or_default();
    let checked = Asked::parse(&request.spec.request.0)
        .and_then(|asked| signing::check(&request.spec.signer_name, &asked, usages).map(|()| asked));
    let asked = match checked {
        Ok(asked) => asked,
        Err(why) => {
            let body = with_condition(object, "Failed", "SignerValidationFailure", &why, now)?;
            plan.act(Action::update_subresource(&resource(), object, "status", body));
            return Ok(plan);
        }
    };
    let longest = i64::try_from(longest.as_secs()).unwrap_or(i64::MAX);
    let seconds =
        request.spec.expiration_seconds.map_or(longest, |s| i64::from(s).clamp(SHORTEST, longest.max(SHORTEST)));
    let certificate = authority.sign(&asked, usages, seconds, now).map_err(Status::internal)?;
    let mut body = object.value().map_err(Status::internal)?;
    body["status"]["certificate"] = json!(k8s_openapi::ByteString(certificate.into_bytes()));
    plan.act(Action::update_subresource(&resource(), object, "status", body));
    Ok(plan)
}

pub fn signing_requests(cx: &Context) -> Controller {
    let requests = cx.informers.get::<CertificateSigningRequest>();
    let (of, options) = (requests.clone(), cx.options.clone());
    Controller::new("certificatesigningrequest-signing-controller", move |ask| {
        let Some(object) = of.get(&ask.key) else { return Ok(Plan::nothing()) };
        let request = decoded::<CertificateSigningRequest>(&object)?;
        let own = options.signers.get(&request.spec.signer_name);
        let Some(authority) = own.or(options.signing.as_ref()) else { return Ok(Plan::nothing()) };
        let status = status_of(&object)?;
        let approved = condition(&status, "Approved").is_some_and(|c| c["status"] == "True");
        let over = ["Denied", "Failed"].iter().any(|c| condition(&status, c).is_some());
        let ours = [
            signing::KUBE_APISERVER_CLIENT,
            signing::KUBELET_CLIENT,
            signing::KUBELET_SERVING,
            signing::LEGACY_UNKNOWN,
        ];
        let name = request.spec.signer_name.as_str();
        if !approved || over || status.get("certificate").is_some() || !ours.contains(&name) {
            return Ok(Plan::nothing());
        }
        sign(&object, &request, authority, options.cluster_signing_duration, ask.now)
    })
    .watch(&requests, own_key)
}

/// Seconds until a request may be forgotten; not positive when it is time.
fn left(status: &Value, created: &str, now: Timestamp) -> i64 {
    let since = |text: Option<&str>| text.and_then(client::time::parse).map_or(0, |at| seconds_between(at, now));
    let age = since(Some(created));
    let answered = ["Approved", "Denied", "Failed"].iter().filter_map(|kind| condition(status, kind));
    let answered = answered.map(|c| ANSWERED_KEPT - since(c["lastUpdateTime"].as_str().or(Some(created)))).min();
    answered.unwrap_or(PENDING_KEPT - age)
}

pub fn cleaner(cx: &Context) -> Controller {
    let requests = cx.informers.get::<CertificateSigningRequest>();
    let of = requests.clone();
    Controller::new("certificatesigningrequest-cleaner-controller", move |ask| {
        let mut plan = Plan::nothing();
        let Some(object) = of.get(&ask.key) else { return Ok(plan) };
        let left = left(&status_of(&object)?, &object.meta.creation_timestamp, ask.now);
        match u64::try_from(left) {
            Ok(left @ 1..) => plan.again_after(Duration::from_secs(left)),
            _ => plan.act(Action::delete(&resource(), &object)),
        };
        Ok(plan)
    })
    .watch(&requests, own_key)
}

pub fn pod_request_cleaner(cx: &Context) -> Controller {
    let requests = cx.informers.get::<PodCertificateRequest>();
    let of = requests.clone();
    Controller::new("podcertificaterequest-cleaner-controller", move |ask| {
        let mut plan = Plan::nothing();
        let Some(object) = of.get(&ask.key) else { return Ok(plan) };
        let created = client::time::parse(&object.meta.creation_timestamp).unwrap_or(Timestamp::MIN);
        match u64::try_from(POD_REQUEST_KEPT.saturating_sub(seconds_between(created, ask.now))) {
            Ok(left @ 1..) => plan.again_after(Duration::from_secs(left)),
            _ => plan.act(Action::delete(&client::gvr_of::<PodCertificateRequest>(), &object)),
        };
        Ok(plan)
    })
    .watch(&requests, own_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_requests_are_forgotten() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let said =
            |kind: &str, at: &str| json!({"conditions": [{"type": kind, "status": "True", "lastUpdateTime": at}]});
        for (status, created, expect) in [
            (json!(null), "2026-01-01T23:00:00Z", PENDING_KEPT - 3600),
            (json!({}), "2026-01-01T00:00:00Z", 0),
            (said("Approved", "2026-01-01T23:30:00Z"), "2026-01-01T00:00:00Z", 1800),
            (said("Denied", "2026-01-01T22:00:00Z"), "2026-01-01T21:00:00Z", -3600),
        ] {
            assert_eq!(left(&status, created, now), expect, "{status}");
        }
    }
}
