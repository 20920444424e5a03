//! Service account tokens: signing, verifying, and the key set others verify them with.
//!
//! JWTs signed with ES256, bound to a service account and often to a pod, as upstream's TokenRequest makes them. A token is
//! good while its signature, times and audience are, and the objects it is bound to still exist with the same uid.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use super::User;
use crate::server::ApiServer;

/// Signs and verifies.
pub struct TokenKeys {
    encoding: EncodingKey,
    decoding: DecodingKey,
    key_id: String,
    jwks: Value,
    pub issuer: String,
}

/// A token that is good.
pub struct Verified {
    pub user: User,
    pub audiences: Vec<String>,
    /// Namespace and name of the Secret that holds it, when its use is not noted there yet.
    pub used: Option<(String, String)>,
}

impl TokenKeys {
    /// From a P-256 private key in PKCS#8 PEM.
    pub fn new(pkcs8_pem: &str, issuer: &str) -> Result<Self, String> {
        let der = pem_body(pkcs8_pem).ok_or("the service account key is not PEM")?;
        let rng = ring::rand::SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &rng)
            .map_err(|e| format!("service account key: {e}"))?;
        // Uncompressed point: 4, x, y.
        let point = pair.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..65]));
        let key_id = URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, point));
        let jwks = json!({"keys": [{"use": "sig", "kty": "EC", "kid": key_id, "crv": "P-256", "alg": "ES256", "x": x, "y": y}]});
        Ok(Self {
            encoding: EncodingKey::from_ec_der(&der),
            decoding: DecodingKey::from_ec_components(&x, &y).map_err(|e| e.to_string())?,
            key_id,
            jwks,
            issuer: issuer.into(),
        })
    }

    pub fn jwks(&self) -> &Value {
        &self.jwks
    }

    /// OpenID discovery, for relying parties outside the cluster.
    pub fn openid_configuration(&self) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", self.issuer),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    pub fn sign(&self, claims: &Value) -> Result<String, String> {
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &self.encoding).map_err(|e| e.to_string())
    }

    pub(super) fn claims(&self, token: &str, issuer: &str, required: &[&str]) -> Result<Value, String> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_aud = false; // Audiences are compared by the caller.
        validation.validate_nbf = true;
        validation.leeway = 10;
        validation.set_issuer(&[issuer]);
        validation.set_required_spec_claims(required);
        jsonwebtoken::decode::<Value>(token, &self.decoding, &validation).map(|t| t.claims).map_err(|e| e.to_string())
    }
}

/// What is said of a token that no service account ever had.
const NOT_OURS: &str = "invalid bearer token";

/// Whether a token says that it is from this issuer, true or not.
fn is_own(token: &str, issuer: &str) -> bool {
    let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims = claims.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    claims.is_some_and(|claims| claims["iss"] == issuer)
}

/// A token that is for others.
pub(super) fn other_audiences(said: &[String], wanted: &[String]) -> String {
    format!("[invalid bearer token, token audiences {said:?} is invalid for the target audiences {wanted:?}]")
}

fn pem_body(pem: &str) -> Option<Vec<u8>> {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
    base64::engine::general_purpose::STANDARD.decode(body).ok()
}

impl ApiServer {
    /// Verifies a token for the given audiences; none means the API server's own.
    pub async fn verify_token(&self, token: &str, audiences: &[String]) -> Result<Verified, String> {
        let keys = self.token_keys();
        let claims = match keys.claims(token, &keys.issuer, &["exp", "iss", "sub"]) {
            Ok(claims) => claims,
            Err(why) => {
                let why = if is_own(token, &keys.issuer) {
                    format!("[invalid bearer token, {why}]")
                } else {
                    NOT_OURS.into()
                };
                return self.verify_legacy_token(keys, token, audiences).unwrap_or(Err(why));
            }
        };
        let own = std::slice::from_ref(&keys.issuer);
        let wanted = if audiences.is_empty() { own } else { audiences };
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
