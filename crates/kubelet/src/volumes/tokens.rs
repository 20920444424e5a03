//! Service account tokens bound to a pod, asked for with TokenRequest and renewed in time.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;

use client::{Client, Gvr};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, ServiceAccountTokenProjection};
use serde_json::json;

use crate::spec;

/// As upstream: an hour unless the pod says otherwise.
const DEFAULT_SECONDS: i64 = 3600;
/// A token is renewed after this share of its life, and at the latest after a day.
const RENEW_AFTER_PERCENT: i64 = 80;
const RENEW_AT_LATEST: SignedDuration = SignedDuration::from_hours(24);
/// When to ask again for a renewal that failed.
const RETRY: SignedDuration = SignedDuration::from_secs(10);

/// A token as it is to be passed on.
#[derive(Clone)]
pub struct Token {
    pub text: String,
    /// When another is to be asked for.
    pub renew_at: Timestamp,
    pub expires_at: Timestamp,
}

/// Tokens by pod uid, audience and lifetime.
#[derive(Default)]
pub struct Tokens {
    held: Mutex<HashMap<(String, String, i64), Token>>,
}

impl Tokens {
    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String, i64), Token>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token for a projection.
    pub async fn get(
        &self,
        client: &Client,
        pod: &Pod,
        projection: &ServiceAccountTokenProjection,
    ) -> Result<Token, String> {
        let seconds = projection.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
        let audience = projection.audience.clone().unwrap_or_default();
        let key = (spec::uid(pod).to_string(), audience.clone(), seconds);
        let now = Timestamp::now();
        let held = self.held().get(&key).cloned();
        if let Some(token) = held.as_ref().filter(|t| now < t.renew_at) {
            return Ok(token.clone());
        }
        match self.ask(client, pod, &audience, seconds).await {
            Ok(token) => {
                self.held().insert(key, token.clone());
                Ok(token)
            }
            // The old one still serves for a while.
            Err(error) => match held.filter(|t| now < t.expires_at) {
                Some(token) => {
                    tracing::warn!(pod = %spec::described(pod), "cannot renew service account token: {error}");
                    Ok(Token { renew_at: now + RETRY, ..token })
                }
                None => Err(error),
            },
        }
    }

    async fn ask(&self, client: &Client, pod: &Pod, audience: &str, seconds: i64) -> Result<Token, String> {
        let account = spec::spec(pod).service_account_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
        let audiences: Vec<&str> = Some(audience).filter(|a| !a.is_empty()).into_iter().collect();
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {
                "audiences": audiences, "expirationSeconds": seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": spec::name(pod), "uid": spec::uid(pod)},
            },
        });
        let api = client.dynamic(Gvr::new("", "v1", "serviceaccounts")).namespaced(spec::namespace(pod));
        let answer =
            api.create_subresource(account, "token", body).await.map_err(|e| format!("failed to fetch token: {e}"))?;
        let answer = answer.value().map_err(|e| format!("failed to fetch token: {e}"))?;
        let text = answer["status"]["token"].as_str().ok_or("failed to fetch token: the server sent none")?.to_string();
        let now = Timestamp::now();
        let expires_at = answer["status"]["expirationTimestamp"]
            .as_str()
            .and_then(|t| t.parse().ok())
            .unwrap_or(now + SignedDuration::from_secs(seconds));
        let life = expires_at.duration_since(now);
        let renew = SignedDuration::from_secs(life.as_secs() * RENEW_AFTER_PERCENT / 100).min(RENEW_AT_LATEST);
        Ok(Token { text, renew_at: now + renew, expires_at })
    }

    /// A pod is gone, and its tokens with it.
    pub fn release(&self, uid: &str) {
        self.held().retain(|(pod, _, _), _| pod != uid);
    }
}
