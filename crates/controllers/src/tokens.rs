//! Tokens kept in Secrets: those of service accounts as they were before tokens had bounds, and those nodes join with.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use client::Change;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use meta::{Object, Status};
use ring::{hmac, rand, signature};
use serde_json::{Map, Value, json};

use crate::plan::{Action, Plan};
use crate::pods::seconds_between;
use crate::runner::{Controller, own_key};
use crate::{Context, decoded};

pub const ACCOUNT_TOKEN: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// The index of token Secrets by the account they are for.
const BY_ACCOUNT: &str = "account";
const BOOTSTRAP_TOKEN: &str = "bootstrap.kubernetes.io/token";
const JWS_PREFIX: &str = "jws-kubeconfig-";

/// Signs service account tokens.
#[derive(Clone)]
pub struct Signer {
    key: EncodingKey,
    algorithm: Algorithm,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl Signer {
    /// From a private key in PEM: RSA, or on the curve P-256.
    pub fn from_pem(pem: &str) -> Result<Self, String> {
        let der = crate::signing::pkcs8(pem)?;
        let random = rand::SystemRandom::new();
        let p256 = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        if signature::EcdsaKeyPair::from_pkcs8(p256, &der, &random).is_ok() {
            return Ok(Self { key: EncodingKey::from_ec_der(&der), algorithm: Algorithm::ES256 });
        }
        let key = EncodingKey::from_rsa_pem(pem.as_bytes()).map_err(|e| e.to_string())?;
        Ok(Self { key, algorithm: Algorithm::RS256 })
    }

    fn token(&self, secret: &Object, account: &Object) -> Result<String, String> {
        let (namespace, name) = (&*account.meta.namespace, &*account.meta.name);
        let claims = json!({
            "iss": LEGACY_ISSUER,
            "sub": format!("system:serviceaccount:{namespace}:{name}"),
            "kubernetes.io/serviceaccount/namespace": namespace,
            "kubernetes.io/serviceaccount/secret.name": &*secret.meta.name,
            "kubernetes.io/serviceaccount/service-account.name": name,
            "kubernetes.io/serviceaccount/service-account.uid": &*account.meta.uid,
        });
        jsonwebtoken::encode(&Header::new(self.algorithm), &claims, &self.key).map_err(|e| e.to_string())
    }
}

/// Key of the account a token Secret is for.
pub fn account_of(secret: &Object) -> Option<String> {
    let typed = secret.typed::<Secret>().ok()?;
    if typed.type_.as_deref() != Some(ACCOUNT_TOKEN) {
        return None;
    }
    let name = typed.metadata.annotations.as_ref()?.get(ACCOUNT_NAME)?;
    Some(meta::object::object_key(&secret.meta.namespace, name))
}

/// Fills the Secrets made for service accounts' tokens, and deletes them with their accounts.
pub(crate) fn service_account_tokens(cx: &Context) -> Controller {
    let accounts = cx.informers.get::<ServiceAccount>();
    let resource = client::gvr_of::<Secret>();
    let secrets = cx.informers.get_gvr(resource.clone(), "", None, Some(&format!("type={ACCOUNT_TOKEN}")));
    secrets.add_index(BY_ACCOUNT, |o| account_of(o).into_iter().collect());
    let (of, of_accounts, by_account) = (secrets.clone(), accounts.clone(), secrets.clone());
    let (signer, root_ca) = (cx.options.service_account_signer.clone(), cx.options.root_ca.clone());
    let client = cx.client.clone();
    let reconcile = move |ask: crate::runner::Ask| {
        let (of, of_accounts) = (of.clone(), of_accounts.clone());
        let (signer, root_ca, resource, client) = (signer.clone(), root_ca.clone(), resource.clone(), client.clone());
        Box::pin(async move {
            let mut plan = Plan::nothing();
            let Some(signer) = signer else { return Ok(plan) };
            let Some(secret) = of.get(&ask.key).filter(|o| o.meta.deletion_timestamp.is_none()) else {
                return Ok(plan);
            };
            let Some(key) = account_of(&secret) else { return Ok(plan) };
            let typed = decoded::<Secret>(&secret)?;
            let annotations = typed.metadata.annotations.clone().unwrap_or_default();
            let said = annotations.get(ACCOUNT_UID).filter(|u| !u.is_empty());
            let fits = |account: &Arc<Object>| said.is_none_or(|uid| **uid == *account.meta.uid);
            let account = match of_accounts.get(&key).filter(&fits) {
                Some(account) => Some(account),
                // Deleting is for good: the informer may not have seen the account yet.
                None => {
                    let (namespace, name) = meta::object::split_key(&key);
                    let api = client.api::<ServiceAccount>().namespaced(namespace);
                    api.dynamic().get_opt(name).await?.filter(&fits)
                }
            };
            let Some(account) = account else {
                plan.act(Action::delete(&resource, &secret));
                return Ok(plan);
            };
            let data = typed.data.clone().unwrap_or_default();
            let is = |field: &str, want: &str| data.get(field).is_some_and(|d| d.0 == want.as_bytes());
            let has_token = data.get("token").is_some_and(|t| !t.0.is_empty());
            let ca_fits = root_ca.as_deref().is_none_or(|ca| is("ca.crt", ca));
            if has_token && ca_fits && is("namespace", &secret.meta.namespace) && said.is_some() {
                return Ok(plan);
            }
            let mut body = secret.value().map_err(Status::internal)?;
            let bytes = |text: &str| json!(k8s_openapi::ByteString(text.as_bytes().to_vec()));
            if !body["data"].is_object() {
                body["data"] = Value::Object(Map::new());
            }
            if !has_token {
                body["data"]["token"] = bytes(&signer.token(&secret, &account).map_err(Status::internal)?);
            }
            if let Some(ca) = &root_ca {
                body["data"]["ca.crt"] = bytes(ca);
            }
            body["data"]["namespace"] = bytes(&secret.meta.namespace);
            body["metadata"]["annotations"][ACCOUNT_UID] = (&*account.meta.uid).into();
            plan.act(Action::update(&resource, &secret, body));
            Ok(plan)
        }) as futures::future::BoxFuture<'static, Result<Plan, Status>>
    };
    Controller::with_io("serviceaccount-token-controller", reconcile)
        .watch(&secrets, own_key)
        .watch(&accounts, move |change: &Change| {
            by_account.by_index(BY_ACCOUNT, &change.key).iter().map(|s| s.meta.key()).collect()
        })
}

fn text<'s>(secret: &'s Secret, field: &str) -> &'s str {
    let data = secret.data.as_ref().and_then(|d| d.get(field));
    data.and_then(|d| std::str::from_utf8(&d.0).ok()).unwrap_or_default()
}

/// Seconds a bootstrap token has left; `None` for ever. One whose end cannot be read has ended.
fn seconds_left(secret: &Secret, now: Timestamp) -> Option<i64> {
    let expiration = text(secret, "expiration");
    if expiration.is_empty() {
        return None;
    }
    Some(client::time::parse(expiration).map_or(0, |at| seconds_between(now, at)))
}

fn bootstrap_tokens(cx: &Context) -> Arc<client::Informer> {
    let fields = format!("type={BOOTSTRAP_TOKEN}");
    cx.informers.get_gvr(client::gvr_of::<Secret>(), "kube-system", None, Some(&fields))
}

/// Deletes bootstrap tokens when their time is over.
pub(crate) fn token_cleaner(cx: &Context) -> Controller {
    let secrets = bootstrap_tokens(cx);
    let of = secrets.clone();
    Controller::new("token-cleaner-controller", move |ask| {
        let mut plan = Plan::nothing();
        let Some(object) = of.get(&ask.key).filter(|o| o.meta.deletion_timestamp.is_none()) else { return Ok(plan) };
        match seconds_left(&*decoded::<Secret>(&object)?, ask.now).map(u64::try_from) {
            None => {}
            Some(Ok(left @ 1..)) => {
                plan.again_after(Duration::from_secs(left));
            }
            Some(_) => {
                plan.act(Action::delete(&client::gvr_of::<Secret>(), &object));
            }
        }
        Ok(plan)
    })
    .watch(&secrets, own_key)
}

/// A JWS (HMAC-SHA256) of content that whoever checks it has already: the middle part stays empty.
fn detached_signature(content: &str, id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"HS256\",\"kid\":{}}}", Value::from(id)));
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), signed.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(tag))
}

/// Signs `kube-public/cluster-info` with each bootstrap token meant for it.
pub(crate) fn bootstrap_signer(cx: &Context) -> Controller {
    const INFO: &str = "kube-public/cluster-info";
    let secrets = bootstrap_tokens(cx);
    let resource = client::gvr_of::<ConfigMap>();
    let maps = cx.informers.get_gvr(resource.clone(), "kube-public", None, Some("metadata.name=cluster-info"));
    let (of, of_maps) = (secrets.clone(), maps.clone());
    Controller::new("bootstrap-signer-controller", move |ask| {
        let mut plan = Plan::nothing();
        let Some(map) = of_maps.get(INFO) else { return Ok(plan) };
        let mut body = map.value().map_err(Status::internal)?;
        let Some(content) = body["data"]["kubeconfig"].as_str().map(String::from) else { return Ok(plan) };
        let mut signatures = Map::new();
        for object in of.list(None).iter().filter(|o| o.meta.deletion_timestamp.is_none()) {
            let secret = decoded::<Secret>(object)?;
            let (id, key) = (text(&secret, "token-id"), text(&secret, "token-secret"));
            let named = *object.meta.name == *format!("bootstrap-token-{id}");
            let over = seconds_left(&secret, ask.now).is_some_and(|left| left <= 0);
            if named && !key.is_empty() && !over && text(&secret, "usage-bootstrap-signing") == "true" {
                signatures.insert(format!("{JWS_PREFIX}{id}"), detached_signature(&content, id, key).into());
            }
        }
        let Some(data) = body["data"].as_object_mut() else { return Ok(plan) };
        let known = data.clone();
        data.retain(|name, _| !name.starts_with(JWS_PREFIX));
        data.extend(signatures);
        if *data != known {
            plan.act(Action::update(&resource, &map, body));
        }
        Ok(plan)
    })
    .watch(&secrets, |_| vec![String::new()])
    .watch(&maps, |_| vec![String::new()])
    .workers(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detached_signatures() {
        let signed = detached_signature("payload", "abcdef", "0123456789abcdef");
        let parts: Vec<&str> = signed.split('.').collect();
        assert_eq!(URL_SAFE_NO_PAD.decode(parts[0]).unwrap(), br#"{"alg":"HS256","kid":"abcdef"}"#);
        assert_eq!(parts[1], "");
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef");
        let text = format!("{}.{}", parts[0], URL_SAFE_NO_PAD.encode("payload"));
        hmac::verify(&key, text.as_bytes(), &URL_SAFE_NO_PAD.decode(parts[2]).unwrap()).unwrap();
    }

    #[test]
    fn tokens_end() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (expiration, expect) in
            [("", None), ("2026-01-01T00:00:10Z", Some(10)), ("2025-12-31T23:59:59Z", Some(-1)), ("soon", Some(0))]
        {
            let mut secret = Secret::default();
            let data = [("expiration".to_string(), k8s_openapi::ByteString(expiration.into()))];
            secret.data = Some(data.into_iter().filter(|(_, v)| !v.0.is_empty()).collect());
            assert_eq!(seconds_left(&secret, now), expect, "{expiration}");
        }
    }
}
