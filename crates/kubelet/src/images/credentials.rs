//! Registry credentials out of pull secrets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

use crate::cri::v1::AuthConfig;

const DOCKER_HUB: &str = "index.docker.io";

/// The registry host of an image name, and the rest.
fn split(image: &str) -> (&str, &str) {
    match image.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => match host {
            "docker.io" | "registry-1.docker.io" => (DOCKER_HUB, rest),
            _ => (host, rest),
        },
        _ => (DOCKER_HUB, image),
    }
}

/// Whether a key of a docker configuration speaks of the image: same host (`*` for one label), and a path prefix.
pub fn covers(key: &str, image: &str) -> bool {
    let bare = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let path = match path {
        "v1" | "v2" => "",
        other => other,
    };
    let host = if host == "docker.io" { DOCKER_HUB } else { host };
    let (image_host, image_path) = split(image);
    let (pattern, labels): (Vec<&str>, Vec<&str>) = (host.split('.').collect(), image_host.split('.').collect());
    let host_fits = pattern.len() == labels.len()
        && pattern.iter().zip(labels).all(|(p, l)| match p.split_once('*') {
            Some((head, tail)) => l.len() >= head.len() + tail.len() && l.starts_with(head) && l.ends_with(tail),
            None => *p == l,
        });
    host_fits && image_path.starts_with(path)
}

/// Credentials for an image, the most specific first.
pub fn matching(secret: &Secret, image: &str) -> Vec<AuthConfig> {
    let data = |key: &str| {
        secret.data.as_ref().and_then(|d| d.get(key)).and_then(|b| serde_json::from_slice::<Value>(&b.0).ok())
    };
    let entries = match secret.type_.as_deref() {
        Some("kubernetes.io/dockercfg") => data(".dockercfg"),
        _ => data(".dockerconfigjson").map(|v| v["auths"].clone()),
    };
    let Some(Value::Object(entries)) = entries else { return Vec::new() };
    let mut found: Vec<(&String, &Value)> = entries.iter().filter(|(key, _)| covers(key, image)).collect();
    found.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
    found
        .into_iter()
        .map(|(key, entry)| {
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_string();
            let (mut username, mut password) = (text("username"), text("password"));
            if username.is_empty()
                && let Ok(decoded) = STANDARD.decode(text("auth").trim_end_matches('\0'))
                && let Some((user, pass)) = String::from_utf8_lossy(&decoded).split_once(':')
            {
                (username, password) = (user.into(), pass.into());
            }
            AuthConfig {
                username,
                password,
                server_address: key.clone(),
                identity_token: text("identitytoken"),
                registry_token: text("registrytoken"),
                ..Default::default()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_cover_images() {
        for (key, image, expect) in [
            ("https://index.docker.io/v1/", "busybox", true),
            ("docker.io", "library/busybox", true),
            ("reg.example.com", "reg.example.com/a", true),
            ("reg.example.com/team", "reg.example.com/team/a", true),
            ("reg.example.com/team", "reg.example.com/other/a", false),
            ("*.example.com", "reg.example.com/a", true),
            ("localhost:5000", "localhost:5000/a", true),
            ("reg.example.com", "busybox", false),
        ] {
            assert_eq!(covers(key, image), expect, "{key} {image}");
        }
    }

    #[test]
    fn decodes_auth() {
        let config = json!({"auths": {"r.io": {"auth": STANDARD.encode("u:p:q")}}}).to_string();
        let secret: Secret = serde_json::from_value(
            json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": STANDARD.encode(config)}}),
        )
        .unwrap();
        let got = matching(&secret, "r.io/x");
        assert_eq!((got[0].username.as_str(), got[0].password.as_str()), ("u", "p:q"));
    }
}
