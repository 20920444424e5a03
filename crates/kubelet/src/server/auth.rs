//! Who asks, and may they: client certificates or bearer tokens; permission from the API server, remembered briefly.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use client::{Client, Gvr};
use http::{Method, Request};
use serde_json::{Value, json};

use crate::config::Auth as Lives;

/// Answers remembered of each kind; beyond that all are forgotten, which costs a question each.
const REMEMBERED: usize = 1024;

/// An authenticated user.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
}

/// Reads the user out of a client certificate the TLS layer has verified.
pub fn identity(certificate: &[u8]) -> Option<User> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_string();
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_string).collect();
    groups.push("system:authenticated".into());
    Some(User { name, uid: String::new(), groups })
}

/// A map that forgets everything when it is full, and entries when they are old.
struct Memory<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K: std::hash::Hash + Eq, V: Clone> Memory<K, V> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    fn get(&self, key: &K) -> Option<V> {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.get(key).filter(|(_, until)| *until > Instant::now()).map(|(v, _)| v.clone())
    }

    fn put(&self, key: K, value: V, life: Duration) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= REMEMBERED {
            map.clear();
        }
        map.insert(key, (value, Instant::now() + life));
    }
}

/// Asks the API server, and remembers.
pub struct Auth {
    client: Client,
    node: String,
    config: Lives,
    /// Tokens are remembered by their hash under a key of this process.
    hasher: RandomState,
    users: Memory<(u64, usize), Option<User>>,
    decisions: Memory<(User, String, String), Result<(), String>>,
}

/// What part of the node a path is about: the specific name first, then the one that covers everything.
fn subresources(path: &str) -> Vec<&'static str> {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    match first {
        "stats" => vec!["stats"],
        "metrics" => vec!["metrics"],
        "logs" => vec!["log"],
        "pods" | "runningpods" | "allocatedPods" => vec!["pods", "proxy"],
        "configz" => vec!["configz", "proxy"],
        "healthz" | "livez" | "readyz" => vec!["healthz", "proxy"],
        "checkpoint" => vec!["checkpoint"],
        "statusz" => vec!["statusz"],
        "flagz" => vec!["flagz"],
        _ => vec!["proxy"],
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

impl Auth {
    pub fn new(client: Client, node: String, config: Lives) -> Self {
        Self { client, node, config, hasher: RandomState::new(), users: Memory::new(), decisions: Memory::new() }
    }

    /// Who asks without a certificate: the user of the token, or, where that is allowed and nothing is shown, nobody in
    /// particular.
    pub async fn user<B>(&self, request: &Request<B>) -> Option<User> {
        if self.config.anonymous && !request.headers().contains_key("authorization") {
            let groups = vec!["system:unauthenticated".to_string()];
            return Some(User { name: "system:anonymous".into(), uid: String::new(), groups });
        }
        self.bearer(request).await
    }

    /// The user of a bearer token, if the API server knows it.
    async fn bearer<B>(&self, request: &Request<B>) -> Option<User> {
        if !self.config.tokens {
            return None;
        }
        let header = request.headers().get("authorization")?.to_str().ok()?;
        let (scheme, token) = header.split_once(' ')?;
        let token = token.trim();
        if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
            return None;
        }
        let key = (self.hasher.hash_one(token), token.len());
        if let Some(known) = self.users.get(&key) {
            return known;
        }
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        let answer =
            match self.client.dynamic(Gvr::new("authentication.k8s.io", "v1", "tokenreviews")).create(review).await {
                Ok(answer) => answer.value().ok()?,
                Err(status) => {
                    tracing::warn!("token not reviewed: {status}");
                    return None;
                }
            };
        let user = (answer["status"]["authenticated"] == Value::Bool(true)).then(|| {
            let of = &answer["status"]["user"];
            let text = |key: &str| of[key].as_str().unwrap_or_default().to_string();
            let groups =
                of["groups"].as_array().into_iter().flatten().filter_map(|g| g.as_str()).map(str::to_string).collect();
            User { name: text("username"), uid: text("uid"), groups }
        });
        self.users.put(key, user.clone(), if user.is_some() { self.config.token_for } else { self.config.denied_for });
        user
    }

    /// Whether the user may do this; the error says what is missing.
    pub async fn allows(&self, user: &User, method: &Method, path: &str) -> Result<(), String> {
        if self.config.everything {
            return Ok(());
        }
        let verb = verb(method);
        let mut last = Err("Forbidden".to_string());
        for subresource in subresources(path) {
            last = self.may(user, verb, subresource).await;
            if last.is_ok() {
                break;
            }
        }
        last
    }

    async fn may(&self, user: &User, verb: &str, subresource: &str) -> Result<(), String> {
        let key = (user.clone(), verb.to_string(), subresource.to_string());
        if let Some(known) = self.decisions.get(&key) {
            return known;
        }
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": user.name, "groups": user.groups, "uid": user.uid,
                "resourceAttributes": {"verb": verb, "group": "", "version": "v1", "resource": "nodes", "subresource": subresource, "name": self.node},
            },
        });
        let api = self.client.dynamic(Gvr::new("authorization.k8s.io", "v1", "subjectaccessreviews"));
        let answer = match api.create(review).await {
            Ok(answer) => answer.value().map_err(|e| e.to_string())?,
            Err(status) => {
                return Err(format!(
                    "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource}): {status}",
                    user.name
                ));
            }
        };
        let allowed = answer["status"]["allowed"] == Value::Bool(true);
        let decision = if allowed {
            Ok(())
        } else {
            Err(format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])", user.name))
        };
        self.decisions.put(
            key,
            decision.clone(),
            if allowed { self.config.allowed_for } else { self.config.denied_for },
        );
        decision
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specific_permission_goes_first() {
        for (path, expect) in [
            ("/pods", vec!["pods", "proxy"]),
            ("/runningpods/", vec!["pods", "proxy"]),
            ("/healthz/syncloop", vec!["healthz", "proxy"]),
            ("/configz", vec!["configz", "proxy"]),
            ("/stats/summary", vec!["stats"]),
            ("/metrics/cadvisor", vec!["metrics"]),
            ("/logs/", vec!["log"]),
            ("/checkpoint/n/p/c", vec!["checkpoint"]),
            ("/exec/n/p/c", vec!["proxy"]),
        ] {
            assert_eq!(subresources(path), expect, "{path}");
        }
    }
}
