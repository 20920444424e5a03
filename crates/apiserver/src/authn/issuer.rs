//! An issuer of OpenID Connect: found by its discovery document, believed by its keys.
//!
//! Discovery is tried until it succeeds; keys are read when a token names one that is not known, at most once at a time.
//! Until then, and when the issuer cannot be reached, its tokens are refused and nothing else is.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

use super::User;
use super::configuration::{ALGORITHMS, Trusted};
use super::fetch;
use crate::instruments;

const WELL_KNOWN: &str = "/.well-known/openid-configuration";
/// The wait before discovery is tried again, as upstream.
const DISCOVER_AGAIN: Duration = Duration::from_secs(10);
/// Keys are not read again sooner, however many tokens name unknown ones.
const KEYS_AGAIN: Duration = Duration::from_secs(1);
/// A clock may be behind the one that said when a token begins to be good, as upstream.
const NOT_BEFORE_LEEWAY: i64 = 5 * 60;
/// Keys of one issuer.
const MAX_KEYS: usize = 1000;

struct Key {
    id: Option<String>,
    decoding: DecodingKey,
}

#[derive(Default)]
struct Keys {
    keys: Arc<Vec<Key>>,
    read: Option<Instant>,
}

/// See the module.
pub struct Issuer {
    trusted: Trusted,
    /// Where the keys are, or why that is not known.
    found: Mutex<Result<String, String>>,
    keys: tokio::sync::Mutex<Keys>,
}

/// A token's parts that are not yet believed.
struct Read<'t> {
    claims: Value,
    algorithm: String,
    key_id: Option<String>,
    signed: &'t str,
    signature: &'t str,
}

fn part(text: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

fn read(token: &str) -> Option<Read<'_>> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let (header, claims) = (part(header)?, part(claims)?);
    let text = |field: &str| header[field].as_str().map(String::from);
    Some(Read { claims, algorithm: text("alg").unwrap_or_default(), key_id: text("kid"), signed, signature })
}

/// Who a token says made it, true or not.
pub fn said_issuer(token: &str) -> Option<String> {
    match part(token.split('.').nth(1)?)?["iss"].as_str()? {
        // As it was before it had a scheme.
        "accounts.google.com" => Some("https://accounts.google.com".into()),
        issuer => Some(issuer.into()),
    }
}

impl Issuer {
    /// Discovers in the background while anybody holds it.
    pub fn start(trusted: Trusted) -> Arc<Self> {
        let waiting = format!("oidc: authenticator for issuer {:?} is not initialized", trusted.issuer.url);
        let issuer = Arc::new(Self { trusted, found: Mutex::new(Err(waiting)), keys: Default::default() });
        tokio::spawn(discover(Arc::downgrade(&issuer)));
        issuer
    }

    pub fn url(&self) -> &str {
        &self.trusted.issuer.url
    }

    /// Why its tokens cannot be judged.
    pub fn health(&self) -> Result<(), String> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(drop).map_err(Clone::clone)
    }

    fn authority(&self) -> &str {
        &self.trusted.issuer.certificate_authority
    }

    async fn discovered(&self) -> Result<String, String> {
        let issuer = &self.trusted.issuer;
        let well_known = || format!("{}{WELL_KNOWN}", issuer.url.trim_end_matches('/'));
        let url = if issuer.discovery_url.is_empty() { well_known() } else { issuer.discovery_url.clone() };
        let document = fetch::get(&url, self.authority()).await?;
        let document: Value = serde_json::from_slice(&document)
            .map_err(|e| format!("oidc: failed to decode provider discovery object: {e}"))?;
        let said = document["issuer"].as_str().unwrap_or_default();
        if said != issuer.url {
            return Err(format!(
                "oidc: issuer URL provided to client ({:?}) did not match the issuer URL returned by provider ({said:?})",
                issuer.url
            ));
        }
        match document["jwks_uri"].as_str() {
            None | Some("") => Err("provider did not return JWKS URL".into()),
            Some(uri) => Ok(uri.into()),
        }
    }

    async fn read_keys(&self) -> Result<Vec<Key>, String> {
        let uri = self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let read = fetch::get(&uri, self.authority()).await;
        let read = read.and_then(|body| keys(&body));
        instruments::keys_read(self.url(), read.is_ok());
        read.map_err(|why| format!("failed to verify signature: fetching keys {why}"))
    }

    /// The keys, read anew when `stale` are those known.
    async fn newer(&self, stale: Option<&Arc<Vec<Key>>>) -> Result<Arc<Vec<Key>>, String> {
        let mut held = self.keys.lock().await;
        let known = held.read.is_some() && stale.is_none_or(|stale| !Arc::ptr_eq(stale, &held.keys));
        if known {
            return Ok(held.keys.clone());
        }
        if let Some(rest) = held.read.and_then(|read| KEYS_AGAIN.checked_sub(read.elapsed())) {
            tokio::time::sleep(rest).await;
        }
        let keys = Arc::new(self.read_keys().await?);
        *held = Keys { keys: keys.clone(), read: Some(Instant::now()) };
        Ok(keys)
    }

    /// The user a token of this issuer names.
    pub async fn verify(&self, token: &str) -> Result<User, String> {
        let began = Instant::now();
        let user = self.verified(token).await.map_err(|why| format!("oidc: {why}"));
        instruments::token_of_issuer(self.url(), user.is_ok(), began.elapsed());
        user
    }

    async fn verified(&self, token: &str) -> Result<User, String> {
        self.health().map_err(|_| "authenticator not initialized")?;
        let refuse = |why: String| format!("verify token: {why}");
        let read = read(token).ok_or_else(|| refuse("oidc: malformed jwt".into()))?;
        self.check_claims(&read.claims).map_err(refuse)?;
        let algorithm = self.algorithm(&read.algorithm).map_err(refuse)?;
        let keys = self.newer(None).await.map_err(refuse)?;
        if !signed_by_any(&keys, &read, algorithm) {
            // It may have been signed with a key made since.
            let keys = self.newer(Some(&keys)).await.map_err(refuse)?;
            if !signed_by_any(&keys, &read, algorithm) {
                return Err(refuse("failed to verify signature: failed to verify id token signature".into()));
            }
        }
        self.trusted.mapper.user(&read.claims)
    }

    fn algorithm(&self, said: &str) -> Result<Algorithm, String> {
        let known = ALGORITHMS.iter().find(|(name, _)| *name == said).map(|(_, algorithm)| *algorithm);
        known.filter(|algorithm| self.trusted.algorithms.contains(algorithm)).ok_or_else(|| {
            let taken: Vec<&str> =
                ALGORITHMS.iter().filter(|(_, a)| self.trusted.algorithms.contains(a)).map(|(name, _)| *name).collect();
            format!("oidc: id token signed with unsupported algorithm, expected {taken:?} got {said:?}")
        })
    }

    fn check_claims(&self, claims: &Value) -> Result<(), String> {
        let wanted = &self.trusted.issuer.audiences;
        let said: Vec<&str> = match &claims["aud"] {
            Value::String(one) => vec![one],
            many => many.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
        };
        if !said.iter().any(|aud| wanted.iter().any(|w| w == aud)) {
            return Err(match &wanted[..] {
                [one] => format!("oidc: expected audience {one:?} got {said:?}"),
                many => format!("oidc: expected audience in {many:?} got {said:?}"),
            });
        }
        let now = jiff::Timestamp::now();
        let seconds = |claim: &str| claims[claim].as_f64().map(|s| s as i64);
        let end = seconds("exp").unwrap_or_default();
        if end <= now.as_second() {
            let end = jiff::Timestamp::from_second(end).unwrap_or_default();
            return Err(format!("oidc: token is expired (Token Expiry: {end})"));
        }
        if let Some(begin) = seconds("nbf").filter(|begin| now.as_second() + NOT_BEFORE_LEEWAY < *begin) {
            let begin = jiff::Timestamp::from_second(begin).unwrap_or_default();
            return Err(format!("oidc: current time {now} before the nbf (not before) time: {begin}"));
        }
        Ok(())
    }
}

/// The keys of a set that can be used; what cannot is left out.
fn keys(document: &[u8]) -> Result<Vec<Key>, String> {
    let document: Value = serde_json::from_slice(document).map_err(|e| format!("oidc: failed to decode keys: {e}"))?;
    let listed = document["keys"].as_array().into_iter().flatten().take(MAX_KEYS);
    let usable = |key: &Value| {
        if key["use"].as_str().is_some_and(|used| used != "sig") {
            return None;
        }
        // Only what says how to verify: of certificates beside it nothing is used.
        let fields = ["kty", "kid", "crv", "x", "y", "n", "e"];
        let fields = fields.iter().filter_map(|f| Some((f.to_string(), key.get(*f)?.clone())));
        let key: Jwk = serde_json::from_value(Value::Object(fields.collect())).ok()?;
        Some(Key { decoding: DecodingKey::from_jwk(&key).ok()?, id: key.common.key_id })
    };
    Ok(listed.filter_map(usable).collect())
}

fn signed_by_any(keys: &[Key], read: &Read<'_>, algorithm: Algorithm) -> bool {
    let named = |key: &&Key| read.key_id.is_none() || key.id == read.key_id;
    let verifies = |key: &Key| {
        let verified = jsonwebtoken::crypto::verify(read.signature, read.signed.as_bytes(), &key.decoding, algorithm);
        verified.unwrap_or(false)
    };
    keys.iter().filter(named).any(verifies)
}

async fn discover(issuer: Weak<Issuer>) {
    loop {
        let Some(held) = issuer.upgrade() else { return };
        let found = held.discovered().await;
        let done = found.is_ok();
        if let Err(why) = &found {
            tracing::error!(issuer = held.url(), why, "oidc authenticator: initializing plugin");
        }
        *held.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
        drop(held);
        if done {
            return;
        }
        tokio::time::sleep(DISCOVER_AGAIN).await;
    }
}
