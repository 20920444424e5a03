//! Service account tokens as they were before TokenRequest: kept in a Secret, without audience or end, and good while the
//! Secret that holds them and the account they are for exist. When one is used is noted on its Secret, by day, so that
//! those nobody uses any more can be told.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meta::{Gvr, Request, RequestBody, Verb};
use serde_json::{Value, json};

use super::User;
use super::token::{TokenKeys, Verified, other_audiences};
use crate::bootstrap::loopback;
use crate::server::ApiServer;

const ISSUER: &str = "kubernetes/serviceaccount";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Where it stands since when uses are noted.
pub const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";

/// Today, as labels and [`TRACKING`] write it.
pub fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

fn claim(claims: &Value, name: &str) -> String {
    claims[format!("kubernetes.io/serviceaccount/{name}")].as_str().unwrap_or_default().to_string()
}

impl ApiServer {
    /// Verifies a token of the old form; `None` when it is none.
    pub(super) fn verify_legacy_token(
        &self,
        keys: &TokenKeys,
        token: &str,
        audiences: &[String],
    ) -> Option<Result<Verified, String>> {
        let claims = keys.claims(token, &[ISSUER], &["iss", "sub"]).ok()?;
        Some(self.judge(keys, token, &claims, audiences))
    }

    fn judge(&self, keys: &TokenKeys, token: &str, claims: &Value, audiences: &[String]) -> Result<Verified, String> {
        let (namespace, account) = (claim(claims, "namespace"), claim(claims, "service-account.name"));
        let (uid, secret) = (claim(claims, "service-account.uid"), claim(claims, "secret.name"));
        let name = format!("system:serviceaccount:{namespace}:{account}");
        if claims["sub"].as_str() != Some(&name) {
            return Err("token subject does not match its service account".into());
        }
        // It has no audience of its own: it is for this server.
        let own = &keys.audiences;
        let shared: Vec<String> =
            own.iter().filter(|own| audiences.is_empty() || audiences.contains(own)).cloned().collect();
        if shared.is_empty() {
            return Err(other_audiences(own, audiences));
        }
        let found = self.lookup("", "secrets", &namespace, &secret).filter(|s| s.meta.deletion_timestamp.is_none());
        let found = found.ok_or_else(|| format!("secret {namespace}/{secret} does not exist"))?;
        let body = found.value().map_err(|e| e.to_string())?;
        let held = body["data"]["token"].as_str().and_then(|t| STANDARD.decode(t).ok());
        if held.as_deref() != Some(token.as_bytes()) {
            return Err(format!("secret {namespace}/{secret} holds another token"));
        }
        if found.meta.label(INVALID_SINCE).is_some() {
            return Err(format!("the token in {namespace}/{secret} has been invalidated: it was not used for long"));
        }
        match self.lookup("", "serviceaccounts", &namespace, &account) {
            Some(found) if *found.meta.uid == *uid && found.meta.deletion_timestamp.is_none() => {}
            _ => return Err(format!("service account {namespace}/{account} does not exist")),
        }
        let mut user = User::new(&name, &[]);
        user.uid = uid;
        user.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
        let is_noted = found.meta.label(LAST_USED) == Some(&*today());
        let used = (!is_noted).then_some((namespace, secret));
        Ok(Verified { user, audiences: shared, used })
    }

    /// Notes that the token of a Secret was used today. That it could not be noted is no reason to refuse it.
    pub(super) async fn note_use(&self, (namespace, secret): (String, String)) {
        let mut request = Request::new(Verb::Patch, Gvr::new("", "v1", "secrets"), &namespace, &secret);
        let value = json!({"metadata": {"labels": {LAST_USED: today()}}});
        request.body = RequestBody::Value { content_type: "application/merge-patch+json", value };
        if let Err(status) = self.serve(&loopback(), request).await {
            tracing::info!(namespace, secret, "the use of a token is not noted: {status}");
        }
    }
}
