//! Encryption at rest as upstream configures it: the file that `--encryption-provider-config` names.
//!
//! An `EncryptionConfiguration` says which resources are sealed by which providers; here it becomes chains of sealers by
//! prefix of the store. Read at the start, and again when it changes if that is asked for. Refused as a whole when anything in
//! it is not understood: half of it would store secrets in the clear.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use resources::Resource;
use serde::Deserialize;
use store::transform::{ByPrefix, Chain, Kind, Provider, Replaceable, Sealer};

/// How often a file that is to be read again when it changes is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    api_version: String,
    kind: String,
    resources: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    resources: Vec<String>,
    providers: Vec<Source>,
}

/// One of them is set.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    aesgcm: Option<Keys>,
    aescbc: Option<Keys>,
    secretbox: Option<Keys>,
    identity: Option<Identity>,
    kms: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    name: String,
    secret: String,
}

/// Reads the file: its content, and the rules in it.
pub fn read(file: &Path) -> Result<(Vec<u8>, ByPrefix)> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let rules = parse(&bytes, &resources::builtin::table(meta::schema::builtin(), &Default::default()))
        .with_context(|| format!("encryption provider configuration {}", file.display()))?;
    Ok((bytes, rules))
}

/// Reads the file again whenever its content, known so far as `last`, changes, until the rules are used no more. One that is not
/// understood leaves the rules as they are.
async fn follow(file: PathBuf, last: Vec<u8>, rules: Weak<Replaceable>, interval: Duration) {
    let mut last = Some(last);
    loop {
        tokio::time::sleep(interval).await;
        let Some(rules) = rules.upgrade() else { return };
        let now = tokio::fs::read(&file).await.ok();
        if now == last {
            continue;
        }
        match read(&file) {
            Ok((bytes, read)) => {
                rules.replace(read);
                tracing::info!(file = %file.display(), "took up a changed encryption configuration");
                last = Some(bytes);
            }
            Err(error) => {
                tracing::error!("keeping the encryption configuration as it was: {error:#}");
                last = now;
            }
        }
    }
}

/// Follows a file in the background.
pub fn spawn_follow(file: &Path, last: Vec<u8>, rules: &Arc<Replaceable>) {
    tokio::spawn(follow(file.into(), last, Arc::downgrade(rules), LOOK_INTERVAL));
}

fn parse(bytes: &[u8], builtin: &[Resource]) -> Result<ByPrefix> {
    let (value, _) = meta::decode::yaml(bytes).map_err(|e| anyhow::anyhow!("{e}"))?;
    let configuration: Configuration = serde_json::from_value(value)?;
    let (version, kind) = (&*configuration.api_version, &*configuration.kind);
    ensure!(
        matches!(version, "apiserver.config.k8s.io/v1" | "v1")
            && matches!(kind, "EncryptionConfiguration" | "EncryptionConfig"),
        "no kind {kind:?} is registered for version {version:?}: EncryptionConfiguration of apiserver.config.k8s.io/v1 is expected"
    );
    ensure!(!configuration.resources.is_empty(), "resources: Required value: at least one resources is required");
    let mut rules = Vec::new();
    for (n, entry) in configuration.resources.into_iter().enumerate() {
        let at = format!("resources[{n}]");
        ensure!(!entry.resources.is_empty(), "{at}.resources: Required value: at least one {at}.resources is required");
        let mut providers = Vec::new();
        for (n, source) in entry.providers.into_iter().enumerate() {
            providers.extend(source.providers(&format!("{at}.providers[{n}]"))?);
        }
        let Some(chain) = Chain::new(providers) else {
            bail!("{at}.providers: Required value: at least one {at}.providers is required")
        };
        let chain = Arc::new(chain);
        for resource in &entry.resources {
            rules.extend(prefixes(resource, builtin).into_iter().map(|prefix| (prefix, chain.clone())));
        }
    }
    Ok(ByPrefix(rules))
}

impl Source {
    fn providers(self, at: &str) -> Result<Vec<Provider>> {
        let Source { aesgcm, aescbc, secretbox, identity, kms } = self;
        ensure!(
            kms.is_none(),
            "{at}.kms: Unsupported value: KMS plugins are not supported, only aesgcm, aescbc, secretbox and identity"
        );
        let sealed = [(Kind::AesGcm, aesgcm), (Kind::AesCbc, aescbc), (Kind::SecretBox, secretbox)];
        let mut sealed = sealed.into_iter().filter_map(|(kind, keys)| Some((kind, keys?)));
        match (sealed.next(), sealed.next(), identity) {
            (Some((kind, keys)), None, None) => keys.sealers(kind, &format!("{at}.{}", kind.name())),
            (None, None, Some(Identity {})) => Ok(vec![Provider::Identity]),
            (None, None, None) => {
                bail!(
                    "{at}: Required value: provider does not contain any of the expected providers: kms, AES-GCM, AES-CBC, Secretbox, Identity"
                )
            }
            _ => bail!(
                "{at}: Invalid value: more than one provider specified in a single element, should split into different list elements"
            ),
        }
    }
}

impl Keys {
    fn sealers(self, kind: Kind, at: &str) -> Result<Vec<Provider>> {
        ensure!(!self.keys.is_empty(), "{at}.keys: Required value: at least one keys is required");
        let sealer = |(n, key): (usize, Key)| {
            let at = format!("{at}.keys[{n}]");
            ensure!(!key.name.is_empty(), "{at}.name: Required value: name is a mandatory field for a key");
            ensure!(!key.secret.is_empty(), "{at}.secret: Required value: secret is a mandatory field for a key");
            let Ok(secret) = STANDARD.decode(&key.secret) else {
                bail!("{at}.secret: Invalid value: \"REDACTED\": secrets must be base64 encoded")
            };
            let sealer = Sealer::new(kind, &key.name, &secret)
                .with_context(|| format!("{at}.secret: Invalid value: \"REDACTED\""))?;
            Ok(Provider::Sealed(sealer))
        };
        self.keys.into_iter().enumerate().map(sealer).collect()
    }
}

/// Where a resource's objects are: `secrets`, `deployments.apps`, and for many `*.apps`, `*.` (the group without a name)
/// and `*.*`. What is not built in is, or may become, a custom resource.
fn prefixes(resource: &str, builtin: &[Resource]) -> Vec<String> {
    let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
    let stored = builtin.iter().filter(|row| !row.prefix.is_empty() && *row.group == *group);
    let directory = |row: &Resource| format!("{}/", row.prefix);
    match (plural, group) {
        ("*", "*") => vec!["/registry/".to_owned()],
        ("*", "") => stored.map(directory).collect(),
        ("*", _) => stored.map(directory).chain([format!("/registry/{group}/")]).collect(),
        _ => match stored.into_iter().find(|row| *row.plural == *plural) {
            Some(row) => vec![directory(row)],
            None if group.is_empty() => vec![format!("/registry/{plural}/")],
            None => vec![format!("/registry/{group}/{plural}/")],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "c2VjcmV0IGlzIHNlY3VyZSBhbmQgdGhpcnR5LXR3byE=";

    fn configuration(entries: &str) -> Result<ByPrefix> {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n{}",
            entries.replace("KEY", KEY)
        );
        parse(text.as_bytes(), &resources::builtin::table(meta::schema::builtin(), &Default::default()))
    }

    #[test]
    fn resources_have_their_places() {
        let builtin = resources::builtin::table(meta::schema::builtin(), &Default::default());
        for (resource, expected) in [
            ("secrets", vec!["/registry/secrets/"]),
            ("services", vec!["/registry/services/specs/"]),
            ("deployments.apps", vec!["/registry/deployments/"]),
            ("pandas.awesome.bears.example", vec!["/registry/awesome.bears.example/pandas/"]),
            ("*.*", vec!["/registry/"]),
            ("*.bears.example", vec!["/registry/bears.example/"]),
        ] {
            assert_eq!(prefixes(resource, &builtin), expected, "{resource}");
        }
        let core = prefixes("*.", &builtin);
        assert!(core.iter().any(|p| p == "/registry/secrets/") && !core.iter().any(|p| p == "/registry/deployments/"));
        assert!(prefixes("*.apps", &builtin).iter().any(|p| p == "/registry/deployments/"));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (entries, expected) in [
            (
                "- resources: [secrets]\n  providers:\n  - kms: {name: k, endpoint: unix:///k}",
                "KMS plugins are not supported",
            ),
            ("- resources: [secrets]\n  providers:\n  - aesgcm: {keys: []}", "at least one keys"),
            ("- resources: [secrets]\n  providers: []", "resources[0].providers: Required value"),
            ("- resources: [secrets]\n  providers:\n  - {}", "does not contain any"),
            ("- resources: [secrets]\n  providers:\n  - {identity: {}, aescbc: {keys: []}}", "more than one provider"),
            ("- resources: [secrets]\n  providers:\n  - aesgcm: {keys: [{name: k, secret: '!'}]}", "base64"),
            (
                "- resources: [secrets]\n  providers:\n  - aesgcm: {keys: [{name: k, secret: aGVsbG8=}]}",
                "got 5, expected one of [16, 32]",
            ),
            ("- resources: [secrets]\n  providers:\n  - rot13: {}", "unknown field"),
            ("- resources: []\n  providers: [{identity: {}}]", "resources[0].resources: Required value"),
        ] {
            let refused = format!("{:#}", configuration(entries).unwrap_err());
            assert!(refused.contains(expected), "{entries}: {refused}");
            assert!(!refused.contains(KEY), "{refused}");
        }
        let foreign = parse(b"apiVersion: v1\nkind: Pod\nresources: []", &[]).unwrap_err().to_string();
        assert!(foreign.contains("EncryptionConfiguration"), "{foreign}");
    }

    #[tokio::test]
    async fn a_changed_file_is_taken_up_and_a_wrong_one_is_not() {
        use store::transform::Transformer;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("configuration");
        let write = |providers: &str| {
            let text = format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n{}",
                providers.replace("KEY", KEY)
            );
            // As a whole, as tools do.
            std::fs::write(dir.path().join("new"), text).unwrap();
            std::fs::rename(dir.path().join("new"), &file).unwrap();
        };
        write("  - identity: {}");
        let (bytes, first) = read(&file).unwrap();
        let rules = Arc::new(Replaceable::default());
        rules.replace(first);
        let followed = tokio::spawn(follow(file.clone(), bytes, Arc::downgrade(&rules), Duration::from_millis(1)));
        let sealed = async |mark: &str| loop {
            let stored = rules.seal("/registry/secrets/a/b", "v".into()).unwrap();
            if stored.starts_with(mark.as_bytes()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        sealed("v").await;
        for (providers, mark) in [
            ("  - secretbox: {keys: [{name: a, secret: KEY}]}", "k8s:enc:secretbox:v1:a:"),
            ("  - rot13: {}", "k8s:enc:secretbox:v1:a:"),
            ("  - aesgcm: {keys: [{name: b, secret: KEY}]}", "k8s:enc:aesgcm:v1:b:"),
        ] {
            write(providers);
            tokio::time::timeout(Duration::from_secs(20), sealed(mark)).await.expect(mark);
        }
        drop(rules);
        tokio::time::timeout(Duration::from_secs(20), followed).await.unwrap().unwrap();
    }

    #[test]
    fn the_order_of_the_file_is_kept() {
        let rules = configuration(
            "- resources: [events]\n  providers: [{identity: {}}]\n- resources: ['*.*']\n  providers:\n  - secretbox: {keys: [{name: a, secret: KEY}]}\n  - aesgcm: {keys: [{name: b, secret: KEY}]}\n  - aescbc: {keys: [{name: c, secret: KEY}]}\n  - identity: {}",
        );
        let rules = rules.unwrap().0;
        assert_eq!(rules.iter().map(|(prefix, _)| &**prefix).collect::<Vec<_>>(), ["/registry/events/", "/registry/"]);
        let told = format!("{:?}", rules[1].1);
        let at = |text: &str| told.find(text).unwrap();
        assert!(at("secretbox:v1:a") < at("aesgcm:v1:b") && at("aesgcm:v1:b") < at("aescbc:v1:c"));
        assert!(at("aescbc:v1:c") < at("Identity"));
    }
}
