//! Image names: how people write them and how they are stored.
//!
//! `busybox` means `docker.io/library/busybox:latest`. Normalising is idempotent.

use std::fmt;

/// The registry meant when none is named.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The names under which the default registry is also known.
const DEFAULT_REGISTRY_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];
/// Longest repository name, as registries allow.
const MAX_REPOSITORY: usize = 255;

/// A complete image name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Host and port.
    pub registry: String,
    /// Path within the registry.
    pub repository: String,
    /// Absent only if there is a digest.
    pub tag: Option<String>,
    /// `sha256:…`.
    pub digest: Option<String>,
}

/// Not a name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image reference \"{name}\": {reason}")]
pub struct InvalidReference {
    name: String,
    reason: &'static str,
}

impl Reference {
    /// Reads a name as a person writes it.
    pub fn parse(name: &str) -> Result<Reference, InvalidReference> {
        let fail = |reason| InvalidReference { name: name.to_string(), reason };
        let (rest, digest) = match name.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_string())),
            Some(_) => return Err(fail("invalid reference format")),
            None => (name, None),
        };
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (path, tag) = match rest[slash..].find(':') {
            Some(colon) => (&rest[..slash + colon], Some(rest[slash + colon + 1..].to_string())),
            None => (rest, None),
        };
        if tag.as_deref().is_some_and(|t| !is_tag(t)) {
            return Err(fail("invalid reference format"));
        }
        let (registry, repository) = match path.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => {
                (host.to_string(), rest.to_string())
            }
            _ => (DEFAULT_REGISTRY.to_string(), path.to_string()),
        };
        let aliased = DEFAULT_REGISTRY_ALIASES.contains(&registry.as_str());
        let registry = if aliased { DEFAULT_REGISTRY.to_string() } else { registry };
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository
        };
        if repository.to_lowercase() != repository {
            return Err(fail("repository name must be lowercase"));
        }
        if repository.len() > MAX_REPOSITORY || !repository.split('/').all(is_component) {
            return Err(fail("invalid reference format"));
        }
        if !registry.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b)) {
            return Err(fail("invalid reference format"));
        }
        let tag = if tag.is_none() && digest.is_none() { Some("latest".to_string()) } else { tag };
        Ok(Reference { registry, repository, tag, digest })
    }

    /// Registry and repository.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The form under which it is stored: by digest if there is one, else by tag.
    pub fn canonical(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{}@{digest}", self.name()),
            (None, Some(tag)) => format!("{}:{tag}", self.name()),
            (None, None) => self.name(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical())
    }
}

/// Whether this is `sha256:` and 64 hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex_id)
}

/// Whether this is 64 hexadecimal digits.
pub fn is_hex_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    bytes.next().is_some_and(word) && tag.len() <= 128 && bytes.all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_component(part: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(part.bytes().next())
        && edge(part.bytes().last())
        && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised() {
        let hex = "a".repeat(64);
        let cases = [
            ("busybox".to_string(), "docker.io/library/busybox:latest".to_string()),
            ("busybox:1.35".into(), "docker.io/library/busybox:1.35".into()),
            ("a/b".into(), "docker.io/a/b:latest".into()),
            ("index.docker.io/a/b:x".into(), "docker.io/a/b:x".into()),
            ("registry.k8s.io/pause:3.9".into(), "registry.k8s.io/pause:3.9".into()),
            ("localhost/x".into(), "localhost/x:latest".into()),
            ("localhost:5000/x/y:z".into(), "localhost:5000/x/y:z".into()),
            ("127.0.0.1:5000/x".into(), "127.0.0.1:5000/x:latest".into()),
            (format!("busybox@sha256:{hex}"), format!("docker.io/library/busybox@sha256:{hex}")),
            (format!("busybox:1@sha256:{hex}"), format!("docker.io/library/busybox@sha256:{hex}")),
        ];
        for (input, expect) in cases {
            let once = Reference::parse(&input).unwrap().canonical();
            assert_eq!(once, expect, "{input}");
            assert_eq!(Reference::parse(&once).unwrap().canonical(), expect);
        }
        for bad in ["", "UPPER", "a:b:c", "a@sha256:xyz", "a b", "a/", "/a", "-a", "a:", "..", "a/../b", "x:-"] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }
}
