//! Service account tokens: signing, verifying, and the key set others verify them with.
//!
//! JWTs bound to a service account and often to a pod, as upstream's TokenRequest makes them. A token is good while its
//! signature, times and audience are, and the objects it is bound to still exist with the same uid.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, Header, Validation};
use serde_json::{Value, json};

use super::User;
use super::keys::{self, Verifying};
use crate::server::{ApiServer, ServiceAccounts};

/// Signs and verifies.
pub struct TokenKeys {
    encoding: EncodingKey,
    header: Header,
    /// The signing key's public half first.
    verifying: Vec<Verifying>,
    jwks: Value,
    jwks_uri: String,
    /// Of new tokens.
    pub issuer: String,
    /// All whose tokens are taken.
    issuers: Vec<String>,
    /// What tokens for this server are for.
    pub audiences: Vec<String>,
    /// Longest life of a token, seconds.
    pub max_seconds: Option<i64>,
}

/// A token that is good.
pub struct Verified {
    pub user: User,
    pub audiences: Vec<String>,
    /// Namespace and name of the Secret that holds it, when its use is not noted there yet.
    pub used: Option<(String, String)>,
}

impl TokenKeys {
    /// From a private key in PEM, which signs, and what else is configured.
    pub fn new(private: &str, issuer: &str, more: &ServiceAccounts) -> Result<Self, String> {
        let signing = keys::signing(private).map_err(|e| format!("service account key: {e}"))?;
        let mut verifying = vec![signing.public];
        for pem in &more.keys {
            let found = keys::verifying(pem).map_err(|e| format!("service account key: {e}"))?;
            verifying
                .extend(found.into_iter().filter(|key| verifying.iter().all(|k| k.id != key.id)).collect::<Vec<_>>());
        }
        let or = |said: &str, usual: String| if said.is_empty() { usual } else { said.to_string() };
        let issuers: Vec<String> = std::iter::once(issuer.to_string()).chain(more.other_issuers.clone()).collect();
        Ok(Self {
            encoding: signing.encoding,
            header: Header { kid: Some(verifying[0].id.clone()), ..Header::new(signing.algorithm) },
            jwks: json!({"keys": verifying.iter().map(|key| key.jwk.clone()).collect::<Vec<_>>()}),
            verifying,
            jwks_uri: or(&more.jwks_uri, format!("{}/openid/v1/jwks", issuer.trim_end_matches('/'))),
            issuer: issuer.into(),
            audiences: if more.audiences.is_empty() { vec![issuer.into()] } else { more.audiences.clone() },
            issuers,
            max_seconds: more.max_seconds,
        })
    }

    pub fn jwks(&self) -> &Value {
        &self.jwks
    }

    /// OpenID discovery, for relying parties outside the cluster.
    pub fn openid_configuration(&self) -> Value {
        let mut algorithms: Vec<&str> = self.verifying.iter().filter_map(|key| key.jwk["alg"].as_str()).collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        json!({
            "issuer": self.issuer,
            "jwks_uri": self.jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })
    }

    /// Whose tokens are taken.
    pub fn issuers(&self) -> &[String] {
        &self.issuers
    }

    pub fn sign(&self, claims: &Value) -> Result<String, String> {
        jsonwebtoken::encode(&self.header, claims, &self.encoding).map_err(|e| e.to_string())
    }

    pub(super) fn claims<I: ToString>(&self, token: &str, issuers: &[I], required: &[&str]) -> Result<Value, String> {
        let header = jsonwebtoken::decode_header(token).map_err(|e| e.to_string())?;
        let mut validation = Validation::new(header.alg);
        validation.validate_aud = false; // Audiences are compared by the caller.
        validation.validate_nbf = true;
        validation.leeway = 10;
        validation.set_issuer(issuers);
        validation.set_required_spec_claims(required);
        let fits = |key: &&Verifying| key.algorithms.contains(&header.alg);
        // The one it names first; what it names is only a word.
        let named = |key: &&Verifying| header.kid.as_deref() == Some(&key.id);
        let all = self.verifying.iter().filter(fits);
        let order = all.clone().filter(named).chain(all.filter(|key| !named(key)));
        let mut why = "no key of its kind is known".to_string();
        for key in order {
            match jsonwebtoken::decode::<Value>(token, &key.decoding, &validation) {
                Ok(token) => return Ok(token.claims),
                Err(error) => {
                    why = error.to_string();
                    // Another key does not make it younger.
                    if *error.kind() != jsonwebtoken::errors::ErrorKind::InvalidSignature {
                        break;
                    }
                }
            }
        }
        Err(why)
    }
}

/// What is said of a token that no service account ever had.
const NOT_OURS: &str = "invalid bearer token";

/// Whether a token says that it is from one of these, true or not.
fn is_own(token: &str, issuers: &[String]) -> bool {
    let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims = claims.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    claims.is_some_and(|claims| issuers.iter().any(|issuer| claims["iss"] == **issuer))
}

/// A token that is for others.
pub(super) fn other_audiences(said: &[String], wanted: &[String]) -> String {
    format!("[invalid bearer token, token audiences {said:?} is invalid for the target audiences {wanted:?}]")
}

impl ApiServer {
    /// Verifies a service account's token for the given audiences; none means the API server's own.
    pub(super) async fn verify_account_token(&self, token: &str, audiences: &[String]) -> Result<Verified, String> {
        let keys = self.token_keys();
        let claims = match keys.claims(token, &keys.issuers, &["exp", "iss", "sub"]) {
            Ok(claims) => claims,
            Err(why) => {
                let why = if is_own(token, &keys.issuers) {
                    format!("[invalid bearer token, {why}]")
                } else {
                    NOT_OURS.into()
                };
                return self.verify_legacy_token(keys, token, audiences).unwrap_or(Err(why));
            }
        };
        let wanted = if audiences.is_empty() { &keys.audiences } else { audiences };
        let said: Vec<String> = match &claims["aud"] {
            Value::String(one) => vec![one.clone()],
            many => many.as_array().into_iter().flatten().filter_map(Value::as_str).map(String::from).collect(),
        };
        let shared: Vec<String> = said.iter().filter(|a| wanted.contains(a)).cloned().collect();
        if shared.is_empty() {
            return Err(other_audiences(&said, wanted));
        }
        let about = &claims["kubernetes.io"];
        let text = |at: &Value, field: &str| at[field].as_str().unwrap_or_default().to_string();
        let namespace = text(about, "namespace");
        let (name, uid) = (text(&about["serviceaccount"], "name"), text(&about["serviceaccount"], "uid"));
        if claims["sub"].as_str() != Some(&*format!("system:serviceaccount:{namespace}:{name}")) {
            return Err("token subject does not match its service account".into());
        }
        self.must_live("serviceaccounts", &namespace, &name, &uid).await?;
        let mut user = User::new(&format!("system:serviceaccount:{namespace}:{name}"), &[]);
        user.uid = uid;
        user.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
        if let Some(id) = claims["jti"].as_str() {
            user.extra.insert("authentication.kubernetes.io/credential-id".into(), vec![format!("JTI={id}")]);
        }
        for (kind, plural, namespaced) in [("pod", "pods", true), ("secret", "secrets", true), ("node", "nodes", false)]
        {
            let (name, uid) = (text(&about[kind], "name"), text(&about[kind], "uid"));
            if name.is_empty() {
                continue;
            }
            // A pod's token names its node for the record; only the object bound to must live.
            if kind != "node" || about["pod"].is_null() {
                self.must_live(plural, if namespaced { &namespace } else { "" }, &name, &uid).await?;
            }
            if kind != "secret" {
                user.extra.insert(format!("authentication.kubernetes.io/{kind}-name"), vec![name]);
                user.extra.insert(format!("authentication.kubernetes.io/{kind}-uid"), vec![uid]);
            }
        }
        Ok(Verified { user, audiences: shared, used: None })
    }

    async fn must_live(&self, plural: &str, namespace: &str, name: &str, uid: &str) -> Result<(), String> {
        match self.find("", plural, namespace, name).await.map_err(|status| status.message)? {
            Some(object) if &*object.meta.uid == uid => Ok(()),
            Some(_) => Err(format!("{plural} {name} is another one now")),
            None => Err(format!("{plural} {name} does not exist")),
        }
    }
}
