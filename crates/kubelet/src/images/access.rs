//! Who may use an image that is already here: one that was pulled with a secret is for pods that have that secret, not
//! for everybody who knows its name.
//!
//! What was pulled with what is written down by image id, credentials only as a hash. An image without a record was not
//! pulled by this agent and is the node's.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::cri::v1::AuthConfig;

/// When present images are looked into.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Verification {
    Never,
    /// Images this agent did not pull are everybody's.
    #[default]
    NotPreloaded,
    /// The same for images of these names only; a trailing `/*` is a prefix.
    NotListed(Vec<String>),
    Always,
}

/// Where a credential comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "from")]
pub enum Origin {
    Secret {
        namespace: String,
        name: String,
        uid: String,
        hash: String,
    },
    /// A provider of the node: what it opens is open to all pods here.
    Node,
}

/// A credential with its origin.
#[derive(Clone, Debug)]
pub struct Credential {
    pub origin: Origin,
    pub auth: AuthConfig,
}

/// What identifies a credential without giving it away.
pub fn hash(auth: &AuthConfig) -> String {
    let fields =
        [&auth.username, &auth.password, &auth.auth, &auth.server_address, &auth.identity_token, &auth.registry_token];
    let joined: Vec<u8> = fields.iter().flat_map(|f| f.bytes().chain([0])).collect();
    digest(&SHA256, &joined).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// How an image was pulled.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    /// By a name the registry opened to everybody, or with what all pods here may use.
    open: BTreeSet<String>,
    /// Name and credential.
    with: BTreeSet<(String, Origin)>,
}

/// The records, one file an image.
pub struct Access {
    dir: PathBuf,
    verification: Verification,
}

impl Verification {
    /// Upstream's names.
    pub fn parse(policy: &str, allowed: Vec<String>) -> Result<Self, String> {
        match policy {
            "NeverVerify" => Ok(Self::Never),
            "" | "NeverVerifyPreloadedImages" => Ok(Self::NotPreloaded),
            "NeverVerifyAllowlistedImages" => Ok(Self::NotListed(allowed)),
            "AlwaysVerify" => Ok(Self::Always),
            other => Err(format!("unknown image pull credentials verification policy {other:?}")),
        }
    }

    /// Whether an image nobody pulled here needs a look at all.
    fn excuses_unpulled(&self, image: &str) -> bool {
        match self {
            Self::Never | Self::NotPreloaded => true,
            Self::Always => false,
            Self::NotListed(list) => list.iter().any(|l| match l.strip_suffix("/*") {
                Some(prefix) => image.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')),
                None => image == l || image.strip_prefix(l.as_str()).is_some_and(|r| r.starts_with([':', '@'])),
            }),
        }
    }
}

impl Access {
    pub fn new(dir: impl Into<PathBuf>, verification: Verification) -> Self {
        Self { dir: dir.into(), verification }
    }

    fn file(&self, id: &str) -> PathBuf {
        self.dir.join(id.replace(['/', ':'], "-")).with_extension("json")
    }

    fn record(&self, id: &str) -> Option<Record> {
        serde_json::from_slice(&std::fs::read(self.file(id)).ok()?).ok()
    }

    /// Notes how an image was pulled.
    pub fn pulled(&self, id: &str, image: &str, origin: Option<&Origin>) {
        let mut record = self.record(id).unwrap_or_default();
        match origin {
            None | Some(Origin::Node) => record.open.insert(image.into()),
            Some(origin) => record.with.insert((image.into(), origin.clone())),
        };
        let path = self.file(id);
        let fresh = path.with_extension("new");
        let written = serde_json::to_vec(&record).map_err(std::io::Error::from).and_then(|bytes| {
            std::fs::create_dir_all(&self.dir)?;
            std::fs::write(&fresh, bytes)?;
            std::fs::rename(&fresh, &path)
        });
        if let Err(error) = written {
            tracing::warn!(image, "how the image was pulled is not written down: {error}");
        }
    }

    /// Whether a pod may use an image that is here. `credentials` are asked for only where it depends on them.
    pub async fn allows(&self, id: &str, image: &str, credentials: impl Future<Output = Vec<Credential>>) -> bool {
        if self.verification == Verification::Never {
            return true;
        }
        let Some(record) = self.record(id) else { return self.verification.excuses_unpulled(image) };
        if record.open.contains(image) {
            return true;
        }
        let of_image: Vec<&Origin> = record.with.iter().filter(|(i, _)| i == image).map(|(_, o)| o).collect();
        if of_image.is_empty() {
            return false;
        }
        credentials.await.iter().any(|c| of_image.iter().any(|o| same(o, &c.origin)))
    }
}

/// The same secret, whatever it says now, or the same words from another.
fn same(a: &Origin, b: &Origin) -> bool {
    match (a, b) {
        (Origin::Secret { uid, hash, .. }, Origin::Secret { uid: other, hash: words, .. }) => {
            uid == other || hash == words
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_may_use_what() {
        let dir = std::env::temp_dir().join(format!("kubelet-access-{}", std::process::id()));
        let secret = |uid: &str, hash: &str| Origin::Secret {
            namespace: "n".into(),
            name: "s".into(),
            uid: uid.into(),
            hash: hash.into(),
        };
        let listed = Verification::NotListed(vec!["r/list/*".into(), "r/one".into()]);
        let access = |v: &Verification| Access::new(&dir, v.clone());
        let writer = access(&Verification::Always);
        writer.pulled("sha256:1", "r/secret:1", Some(&secret("u1", "h1")));
        writer.pulled("sha256:2", "r/open:1", None);
        writer.pulled("sha256:3", "r/node:1", Some(&Origin::Node));
        for (verification, id, image, has, expect) in [
            (&Verification::NotPreloaded, "sha256:1", "r/secret:1", None, false),
            (&Verification::NotPreloaded, "sha256:1", "r/secret:1", Some(secret("u1", "new")), true),
            (&Verification::NotPreloaded, "sha256:1", "r/secret:1", Some(secret("u2", "h1")), true),
            (&Verification::NotPreloaded, "sha256:1", "r/secret:1", Some(secret("u2", "h2")), false),
            (&Verification::Never, "sha256:1", "r/secret:1", None, true),
            (&Verification::NotPreloaded, "sha256:2", "r/open:1", None, true),
            (&Verification::NotPreloaded, "sha256:3", "r/node:1", None, true),
            (&Verification::NotPreloaded, "sha256:9", "r/any:1", None, true),
            (&Verification::Always, "sha256:9", "r/any:1", None, false),
            (&listed, "sha256:9", "r/any:1", None, false),
            (&listed, "sha256:9", "r/list/x:1", None, true),
            (&listed, "sha256:9", "r/one:1", None, true),
            (&listed, "sha256:9", "r/onemore:1", None, false),
        ] {
            let credentials: Vec<Credential> =
                has.iter().map(|o| Credential { origin: o.clone(), auth: AuthConfig::default() }).collect();
            let got = access(verification).allows(id, image, async { credentials }).await;
            assert_eq!(got, expect, "{verification:?} {image} {has:?}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
