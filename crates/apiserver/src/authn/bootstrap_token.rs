//! Bootstrap tokens: how a machine that wants to become a node asks for its certificate.
//!
//! `ID.SECRET`, good while the Secret `kube-system/bootstrap-token-ID` holds the same and says that it is for this.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meta::Value;

use super::User;
use crate::server::ApiServer;

const GROUP: &str = "system:bootstrappers";

fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

fn data(secret: &Value, field: &str) -> String {
    let bytes = secret["data"][field].as_str().and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

/// A group the Secret may add.
fn is_group(group: &str) -> bool {
    let of = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    group.strip_prefix("system:bootstrappers:").is_some_and(|rest| {
        rest.len() <= 256
            && rest.bytes().all(|b| of(b) || matches!(b, b':' | b'-'))
            && rest.bytes().last().is_some_and(of)
    })
}

/// Whom a Secret names to whoever shows its token; `now` is seconds since 1970.
fn judge(held: &Value, id: &str, secret: &str, now: i64) -> Result<User, &'static str> {
    if !held["metadata"]["deletionTimestamp"].is_null() {
        return Err("it is deleted and awaiting removal");
    }
    if held["type"] != "bootstrap.kubernetes.io/token" {
        return Err("it has the wrong type");
    }
    let said = data(held, "token-secret");
    // The time this takes says nothing of the secret.
    let same =
        said.len() == secret.len() && said.bytes().zip(secret.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0;
    if said.is_empty() || !same || data(held, "token-id") != id {
        return Err("it holds another token");
    }
    let end = data(held, "expiration");
    if !end.is_empty() && end.parse::<jiff::Timestamp>().map_or(true, |end| end.as_second() <= now) {
        return Err("it is expired");
    }
    if data(held, "usage-bootstrap-authentication") != "true" {
        return Err("it is not marked usable for authentication");
    }
    let more = data(held, "auth-extra-groups");
    let more: Vec<&str> = more.split(',').filter(|g| !g.is_empty()).collect();
    if !more.iter().all(|group| is_group(group)) {
        return Err("it names groups it may not");
    }
    let mut user = User::new(&format!("system:bootstrap:{id}"), &[GROUP]);
    user.groups.extend(more.into_iter().map(String::from));
    user.groups.sort();
    user.groups.dedup();
    Ok(user)
}

impl ApiServer {
    /// The user of a bootstrap token, if it is one and good.
    pub(super) fn bootstrap_user(&self, token: &str) -> Option<User> {
        let (id, secret) = parts(token)?;
        let name = format!("bootstrap-token-{id}");
        let held = self.lookup("", "secrets", "kube-system", &name)?.value().ok()?;
        let user = judge(&held, id, secret, jiff::Timestamp::now().as_second());
        user.map_err(|why| tracing::warn!(secret = name, why, "bootstrap token refused")).ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_are_judged_by_their_secret() {
        assert_eq!(parts("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for not in ["abcde.0123456789abcdef", "ABCDEF.0123456789abcdef", "abcdef.0123", "abcdef", "a.b.c"] {
            assert_eq!(parts(not), None, "{not}");
        }
        let secret = |change: &[(&str, &str)]| {
            let mut held = json!({"type": "bootstrap.kubernetes.io/token", "metadata": {}, "data": {}});
            let usual = [("token-id", "abcdef"), ("token-secret", "s"), ("usage-bootstrap-authentication", "true")];
            for (field, value) in usual.iter().chain(change) {
                held["data"][field] = STANDARD.encode(value).into();
            }
            held
        };
        let judged = |change: &[(&str, &str)]| judge(&secret(change), "abcdef", "s", 0).map(|u| u.groups.join(" "));
        assert_eq!(judged(&[]).unwrap(), "system:bootstrappers");
        let more = [
            ("auth-extra-groups", "system:bootstrappers:kubeadm:default-node-token"),
            ("expiration", "2100-01-01T00:00:00Z"),
        ];
        assert_eq!(judged(&more).unwrap(), "system:bootstrappers system:bootstrappers:kubeadm:default-node-token");
        for (change, why) in [
            (("token-secret", "t"), "it holds another token"),
            (("token-secret", ""), "it holds another token"),
            (("expiration", "1960-01-01T00:00:00Z"), "it is expired"),
            (("expiration", "soon"), "it is expired"),
            (("usage-bootstrap-authentication", "false"), "it is not marked usable for authentication"),
            (("auth-extra-groups", "system:masters"), "it names groups it may not"),
        ] {
            assert_eq!(judged(&[change]).unwrap_err(), why, "{change:?}");
        }
    }
}
