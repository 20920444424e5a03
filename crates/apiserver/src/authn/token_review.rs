//! `--authentication-token-webhook-config-file`: tokens nobody here knows, shown to a server that a kubeconfig names.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use client::remote::Post;
use serde_json::{Value, json};

use super::User;

/// Answers kept; the oldest go when there are more.
const MAX_KEPT: usize = 4096;
/// Tries at an answer, each wait half as long again, as upstream.
const TRIES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// Asks, and remembers.
pub struct Reviewer {
    post: Post,
    version: String,
    ttl: Duration,
    kept: Mutex<HashMap<String, (Instant, Option<User>)>>,
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
}

fn user_of(status: &Value) -> Option<User> {
    if status["authenticated"] != true {
        return None;
    }
    let user = &status["user"];
    let text = |field: &str| user[field].as_str().unwrap_or_default().to_string();
    let extra = user["extra"].as_object().into_iter().flatten().map(|(k, v)| (k.clone(), strings(v))).collect();
    Some(User { name: text("username"), uid: text("uid"), groups: strings(&user["groups"]), extra })
}

impl Reviewer {
    pub async fn open(kubeconfig: &Path, version: &str, ttl: Duration) -> Result<Self, String> {
        if !matches!(version, "v1" | "v1beta1") {
            return Err(format!(
                "unsupported authentication webhook version {version:?}, supported versions are \"v1\", \"v1beta1\""
            ));
        }
        let post = Post::from_kubeconfig(kubeconfig, "kube-apiserver").await.map_err(|status| status.message)?;
        Ok(Self { post, version: version.into(), ttl, kept: Mutex::default() })
    }

    /// The user the other server says a token names; none when it says that it names nobody.
    pub async fn user(&self, token: &str, audiences: &[String]) -> Result<Option<User>, String> {
        let key = format!("{token} {}", audiences.join(" "));
        let fresh = |since: &Instant| since.elapsed() < self.ttl;
        {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, user)) = kept.get(&key).filter(|(since, _)| fresh(since)) {
                return Ok(user.clone());
            }
        }
        let mut spec = json!({"token": token});
        if !audiences.is_empty() {
            spec["audiences"] = json!(audiences);
        }
        let review = json!({
            "apiVersion": format!("authentication.k8s.io/{}", self.version),
            "kind": "TokenReview",
            "metadata": {},
            "spec": spec,
            "status": {"user": {}},
        });
        let answer = self.post.ask_patiently(&review, TRIES, FIRST_WAIT).await.map_err(|status| status.message)?;
        let user = user_of(&answer["status"]);
        if let (None, Some(why)) = (&user, answer["status"]["error"].as_str().filter(|why| !why.is_empty())) {
            return Err(why.into());
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, (since, _)| fresh(since));
        if kept.len() < MAX_KEPT {
            kept.insert(key, (Instant::now(), user.clone()));
        }
        Ok(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_name_users() {
        let status = json!({"authenticated": true, "user": {"username": "jane", "uid": "1", "groups": ["a"], "extra": {"k": ["v"]}}});
        let user = user_of(&status).unwrap();
        assert_eq!(
            (&*user.name, &*user.uid, &user.groups[..], &user.extra["k"][..]),
            ("jane", "1", &["a".to_string()][..], &["v".to_string()][..])
        );
        assert_eq!(user_of(&json!({"user": {"username": "jane"}})), None);
    }
}
