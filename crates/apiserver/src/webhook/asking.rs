//! Asks one webhook, and takes its answer for what it is: a no, a patch, or a failure to be judged by the webhook's policy.

use std::time::Duration;

use base64::Engine;
use meta::{Status, Value};

use super::client;
use super::configuration::Webhook;
use super::subject::Subject;
use crate::instruments::{self, Called, Half};
use crate::pipeline::Caller;
use crate::server::ApiServer;

/// What a webhook without `timeoutSeconds` gets.
const DEFAULT_SECONDS: u64 = 10;
const MAX_SECONDS: u64 = 30;

/// What a webhook said.
pub(super) struct Answer {
    pub(super) patch: Option<Value>,
}

pub(super) enum Failure {
    /// It said no, or the request may not ask it at all.
    Refused(Status),
    /// It could not be asked, or its answer is none.
    Calling(String),
}

/// Asks a webhook, and counts what came of it.
pub(super) async fn ask(
    server: &ApiServer,
    subject: &Subject<'_>,
    hook: &Webhook,
    half: Half,
    review: &Value,
) -> Result<Answer, Failure> {
    let began = std::time::Instant::now();
    let answer = asked(server, subject, hook, review).await;
    let called = match &answer {
        Ok(_) => Called::Allowed,
        Err(Failure::Refused(status)) => Called::Denied(status.code),
        Err(Failure::Calling(_)) => Called::Failed { open: hook.ignores_failure() },
    };
    instruments::webhook(&hook.name, half, subject.operation.as_str(), &called, began.elapsed());
    answer
}

async fn asked(server: &ApiServer, subject: &Subject<'_>, hook: &Webhook, review: &Value) -> Result<Answer, Failure> {
    if subject.dry_run && !hook.is_free_of_effects() {
        return Err(Failure::Refused(Status::bad_request(format!(
            "admission webhook {:?} does not support dry run",
            hook.name
        ))));
    }
    let timeout = Duration::from_secs(hook.timeout_seconds.unwrap_or(DEFAULT_SECONDS).clamp(1, MAX_SECONDS));
    let called = client::post(server, &hook.client_config, review, timeout).await;
    let answer = called.map_err(|why| Failure::Calling(format!("failed to call webhook: {why}")))?;
    let invalid = |why: String| Failure::Calling(format!("received invalid webhook response: {why}"));
    let response = &answer["response"];
    if !response.is_object() {
        return Err(invalid("webhook response was absent".into()));
    }
    if review["apiVersion"] == "admission.k8s.io/v1" {
        if answer["apiVersion"] != review["apiVersion"] || answer["kind"] != review["kind"] {
            let text = |field: &str| answer[field].as_str().unwrap_or_default().to_string();
            return Err(invalid(format!(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
                text("apiVersion"),
                text("kind")
            )));
        }
        if response["uid"] != review["request"]["uid"] {
            return Err(invalid(format!(
                "expected response.uid={}, got {}",
                review["request"]["uid"], response["uid"]
            )));
        }
    }
    for (key, value) in response["auditAnnotations"].as_object().into_iter().flatten() {
        subject.caller.annotate(format!("{}/{key}", hook.name), value.as_str().unwrap_or_default());
    }
    for warning in response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        subject.caller.warn(warning);
    }
    if response["allowed"] != true {
        return Err(Failure::Refused(denial(&hook.name, &response["status"])));
    }
    let patch = response["patch"].as_str().unwrap_or_default();
    if patch.is_empty() {
        return Ok(Answer { patch: None });
    }
    match response["patchType"].as_str() {
        Some("JSONPatch") => {}
        Some(other) => return Err(invalid(format!("invalid response.patchType of {other:?}, expected \"JSONPatch\""))),
        None if review["apiVersion"] == "admission.k8s.io/v1" => {
            return Err(invalid("webhook returned response.patch but not response.patchType".into()));
        }
        None => {}
    }
    let bytes =
        base64::engine::general_purpose::STANDARD.decode(patch).map_err(|e| invalid(format!("response.patch: {e}")))?;
    let patch = serde_json::from_slice(&bytes).map_err(|e| invalid(format!("response.patch: {e}")))?;
    Ok(Answer { patch: Some(patch) })
}

/// A webhook's no, as the caller gets it: the webhook's code and reason, never one of success.
fn denial(name: &str, said: &Value) -> Status {
    let mut status = Status::from_value(said);
    status.success = false;
    status.code =
        said["code"].as_u64().and_then(|c| u16::try_from(c).ok()).filter(|c| (400..600).contains(c)).unwrap_or(400);
    let reason = said["reason"].as_str().unwrap_or_default();
    let denied = format!("admission webhook {name:?} denied the request");
    status.message = match (&*status.message, reason) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    if said["details"].is_null() {
        status.details = None;
    }
    status
}

/// A failure, if the webhook's policy lets it count; `place` is where the audit log is told if it does not.
pub(super) fn judge(caller: &Caller, hook: &Webhook, place: &str, failure: Failure) -> Result<(), Status> {
    match failure {
        Failure::Refused(status) => Err(status),
        Failure::Calling(why) if hook.ignores_failure() => {
            tracing::warn!(webhook = hook.name, why, "failed calling webhook, failing open");
            caller.annotate(format!("failed-open.{place}"), &*hook.name);
            Ok(())
        }
        Failure::Calling(why) => Err(Status::internal(format!("failed calling webhook {:?}: {why}", hook.name))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn denials_keep_the_webhooks_words_but_never_its_success() {
        for (said, code, message) in [
            (
                json!({"message": "no", "code": 403, "reason": "Forbidden"}),
                403,
                "admission webhook \"a.b.c\" denied the request: no",
            ),
            (json!({"reason": "why"}), 400, "admission webhook \"a.b.c\" denied the request: why"),
            (
                json!({"status": "Success", "code": 200}),
                400,
                "admission webhook \"a.b.c\" denied the request without explanation",
            ),
            (Value::Null, 400, "admission webhook \"a.b.c\" denied the request without explanation"),
        ] {
            let status = denial("a.b.c", &said);
            assert!(!status.success);
            assert_eq!((status.code, &*status.message), (code, message));
        }
    }
}
