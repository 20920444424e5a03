//! Who may use an image that is already here: one that was pulled with a secret is for pods that have that secret, not
//! for everybody who knows its name.
//!
//! What was pulled with what is written down by image id, credentials only as a hash, and that a pull is under way, before it
//! begins: one that ended with the agent is known for one. An image without a record was not pulled by this agent and is
//! the node's.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

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
    /// A provider that was asked for a service account.
    Account {
        namespace: String,
        name: String,
        uid: String,
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
    /// By a name the registry opened to everybody, or with what all pods here may use. Names are those of repositories.
    open: BTreeSet<String>,
    /// Name and credential.
    with: BTreeSet<(String, Origin)>,
}

/// Credentials noted for one image; who has another one asks the registry again.
const MAX_NOTED: usize = 100;

/// The repository of an image's name: what is allowed by one tag is allowed by all.
fn repository(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// The records, one file an image.
pub struct Access {
    dir: PathBuf,
    verification: Verification,
    /// Pulls of each image.
    under_way: Mutex<HashMap<String, usize>>,
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

    /// Upstream's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Never => "NeverVerify",
            Self::NotPreloaded => "NeverVerifyPreloadedImages",
            Self::NotListed(_) => "NeverVerifyAllowlistedImages",
            Self::Always => "AlwaysVerify",
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
        Self { dir: dir.into(), verification, under_way: Mutex::default() }
    }

    fn file(&self, id: &str) -> PathBuf {
        self.dir.join(id.replace(['/', ':'], "-")).with_extension("json")
    }

    /// Says that a pull is under way.
    fn intent(&self, image: &str) -> PathBuf {
        let name: String = digest(&SHA256, image.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect();
        self.dir.join("pulling").join(name)
    }

    /// None where there is no record. One that cannot be read lets nobody in without asking the registry.
    fn record(&self, id: &str) -> Option<Record> {
        match std::fs::read(self.file(id)) {
            Ok(bytes) => Some(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(_) => Some(Record::default()),
        }
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let fresh = path.with_extension("new");
        std::fs::create_dir_all(path.parent().unwrap_or(&self.dir))?;
        std::fs::write(&fresh, bytes)?;
        std::fs::rename(&fresh, path)
    }

    /// Notes that an image is about to be pulled; one whose pull nobody could know of must not be.
    pub fn pulling(&self, image: &str) -> Result<(), String> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.write(&self.intent(image), image.as_bytes());
        written.map_err(|e| format!("failed to record image pull intent: {e}"))?;
        *under_way.entry(image.into()).or_default() += 1;
        Ok(())
    }

    /// A pull has ended; nothing is left to be known of it once others of the same image have, too.
    fn ended(&self, image: &str, known: bool) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let left = under_way.get(image).map_or(0, |n| n.saturating_sub(1));
        if left > 0 {
            under_way.insert(image.into(), left);
            return;
        }
        under_way.remove(image);
        if known {
            let _ = std::fs::remove_file(self.intent(image));
        }
    }

    /// Notes that it was not.
    pub fn not_pulled(&self, image: &str) {
        self.ended(image, true);
    }

    /// Notes how an image was pulled.
    pub fn pulled(&self, id: &str, image: &str, origin: Option<&Origin>) {
        // Where that cannot be written down, that it was pulled stays known by its intent.
        self.ended(image, self.note(id, image, origin));
    }

    /// Writes down with what an image may be used; whether that is on disk.
    fn note(&self, id: &str, image: &str, origin: Option<&Origin>) -> bool {
        let name = repository(image);
        let had = self.record(id);
        let mut record = had.clone().unwrap_or_default();
        match origin {
            None | Some(Origin::Node) => drop(record.open.insert(name.into())),
            Some(_) if record.with.len() >= MAX_NOTED => {}
            Some(origin) => drop(record.with.insert((name.into(), origin.clone()))),
        }
        if had.as_ref() == Some(&record) {
            return true;
        }
        let bytes = serde_json::to_vec(&record).map_err(std::io::Error::from);
        let written = bytes.and_then(|bytes| self.write(&self.file(id), &bytes));
        if let Err(error) = &written {
            tracing::warn!(image, "how the image was pulled is not written down: {error}");
        }
        written.is_ok()
    }

    /// Forgets images that are gone, as they were listed; what was noted after `listed` may be of newer ones.
    pub fn keep(&self, present: impl Iterator<Item = String>, listed: SystemTime) {
        let keep: BTreeSet<PathBuf> = present.map(|id| self.file(&id)).collect();
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let old = entry.metadata().and_then(|m| m.modified()).is_ok_and(|at| at < listed);
            if old && path.extension().is_some_and(|e| e == "json") && !keep.contains(&path) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// Whether a pod may use an image that is here. `credentials` are asked for only where it depends on them.
    pub async fn allows(&self, id: &str, image: &str, credentials: impl Future<Output = Vec<Credential>>) -> bool {
        if self.verification == Verification::Never {
            return true;
        }
        let Some(record) = self.record(id) else {
            return !self.intent(image).exists() && self.verification.excuses_unpulled(image);
        };
        let name = repository(image);
        if record.open.contains(name) {
            return true;
        }
        let of_image: Vec<&Origin> = record.with.iter().filter(|(i, _)| i == name).map(|(_, o)| o).collect();
        if of_image.is_empty() {
            return false;
        }
        let known = credentials.await.into_iter().find(|c| of_image.iter().any(|o| same(o, &c.origin)));
        if let Some(known) = &known {
            // The same secret with other words, or these words in another secret, are good from now on.
            self.note(id, image, Some(&known.origin));
        }
        known.is_some()
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
        let account = |uid: &str| Origin::Account { namespace: "n".into(), name: "a".into(), uid: uid.into() };
        writer.pulled("sha256:4", "r/account:1", Some(&account("a1")));
        // The agent ended while this was pulled, and while that was noted.
        writer.pulling("r/cut:1").unwrap();
        std::fs::write(writer.file("sha256:6"), "{").unwrap();
        writer.pulled("sha256:1", "r/secret:1", Some(&secret("u1", "h1")));
        writer.pulled("sha256:2", "r/open:1", None);
        writer.pulled("sha256:3", "r/node:1", Some(&Origin::Node));
        for (verification, id, image, has, expect) in [
            (&Verification::NotPreloaded, "sha256:1", "r/secret:1", None, false),
            (&Verification::NotPreloaded, "sha256:1", "r/secret:1", Some(secret("u1", "new")), true),
            (&Verification::NotPreloaded, "sha256:1", "r/secret:1", Some(secret("u2", "h1")), true),
            (&Verification::NotPreloaded, "sha256:1", "r/secret:1", Some(secret("u3", "h3")), false),
            (&Verification::NotPreloaded, "sha256:1", "r/secret:1", Some(secret("u3", "new")), true),
            (&Verification::NotPreloaded, "sha256:1", "r/secret:2", Some(secret("u1", "h1")), true),
            (&Verification::NotPreloaded, "sha256:1", "r/other:1", Some(secret("u1", "h1")), false),
            (&Verification::NotPreloaded, "sha256:4", "r/account:1", Some(account("a1")), true),
            (&Verification::NotPreloaded, "sha256:4", "r/account:1", Some(account("a2")), false),
            (&Verification::NotPreloaded, "sha256:4", "r/account:1", Some(Origin::Node), false),
            (&Verification::NotPreloaded, "sha256:5", "r/cut:1", None, false),
            (&Verification::NotPreloaded, "sha256:6", "r/any:1", None, false),
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
        // Of two pulls of one image, one ends.
        for (step, known) in [("begins", true), ("begins", true), ("ends", true), ("ends", false)] {
            match step {
                "begins" => writer.pulling("r/twice:1").unwrap(),
                _ => writer.not_pulled("r/twice:1"),
            }
            assert_eq!(writer.intent("r/twice:1").exists(), known, "{step}");
        }
        writer.not_pulled("r/cut:1");
        let listed = SystemTime::now();
        writer.keep(["sha256:1".to_string()].into_iter(), listed - std::time::Duration::from_secs(3600));
        assert!(writer.file("sha256:4").exists(), "it may be newer than the list");
        writer.keep(["sha256:1".to_string()].into_iter(), listed + std::time::Duration::from_secs(3600));
        for (id, image, expect) in
            [("sha256:5", "r/cut:1", true), ("sha256:4", "r/account:1", true), ("sha256:1", "r/secret:1", false)]
        {
            let left = access(&Verification::NotPreloaded);
            assert_eq!(left.allows(id, image, async { Vec::new() }).await, expect, "{image}, afterwards");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn repositories() {
        for (image, expect) in [
            ("r:5000/a/b:1", "r:5000/a/b"),
            ("r:5000/a", "r:5000/a"),
            ("a@sha256:00", "a"),
            ("a:1@sha256:00", "a"),
            ("a", "a"),
        ] {
            assert_eq!(repository(image), expect);
        }
    }
}
