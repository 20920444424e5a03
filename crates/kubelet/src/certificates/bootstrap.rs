//! A node's first certificate: with the credentials of a bootstrap kubeconfig a client certificate is asked for, and a
//! kubeconfig written that uses it.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context as _, ensure};
use client::Client;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Store, client_ask, request, validity};

fn parsed(path: &Path) -> anyhow::Result<Value> {
    let bytes = super::read(path)?;
    Ok(meta::yaml::read(&bytes).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?.0)
}

fn named<'a>(config: &'a Value, list: &str, name: &str, what: &str) -> Option<&'a Value> {
    config[list].as_array()?.iter().find(|e| e["name"] == name).map(|e| &e[what])
}

/// The cluster and the user of a kubeconfig's current context.
fn current(config: &Value) -> Option<(&Value, &Value)> {
    let context = named(config, "contexts", config["current-context"].as_str()?, "context")?;
    Some((
        named(config, "clusters", context["cluster"].as_str()?, "cluster")?,
        named(config, "users", context["user"].as_str()?, "user")?,
    ))
}

/// Whether a kubeconfig can be used as it is: it has credentials, and a certificate among them has not ended.
fn is_usable(path: &Path, now: Timestamp) -> bool {
    let Ok(config) = parsed(path) else { return false };
    let Some((_, user)) = current(&config) else { return false };
    let file = user["client-certificate"].as_str().map(|p| path.parent().unwrap_or(Path::new("/")).join(p));
    match (file, user["client-certificate-data"].as_str()) {
        (Some(file), _) => {
            std::fs::read(file).ok().and_then(|pem| validity(&pem)).is_some_and(|(_, until)| until > now)
        }
        (None, Some(data)) => {
            use base64::Engine as _;
            let pem = base64::engine::general_purpose::STANDARD.decode(data).unwrap_or_default();
            validity(&pem).is_some_and(|(_, until)| until > now)
        }
        (None, None) => user.as_object().is_some_and(|u| !u.is_empty()),
    }
}

/// A kubeconfig to the same cluster, whose user is the pair of a store.
fn written(bootstrap: &Path, store: &Store) -> anyhow::Result<Value> {
    let config = parsed(bootstrap)?;
    let (cluster, _) = current(&config).with_context(|| format!("{} has no current context", bootstrap.display()))?;
    let mut cluster = cluster.clone();
    if let Some(file) = cluster["certificate-authority"].as_str() {
        // Relative to the file it stood in.
        let whole = std::path::absolute(bootstrap.parent().unwrap_or(Path::new("/")).join(file))?;
        cluster["certificate-authority"] = whole.to_string_lossy().into();
    }
    let pair = store.current();
    Ok(json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "default-context",
        "clusters": [{"name": "default-cluster", "cluster": cluster}],
        "contexts": [{"name": "default-context",
            "context": {"cluster": "default-cluster", "user": "default-auth", "namespace": "default"}}],
        "users": [{"name": "default-auth", "user": {"client-certificate": pair, "client-key": pair}}],
    }))
}

/// Makes sure there is a kubeconfig that works, asking for a certificate where there is none.
pub async fn ensure(kubeconfig: &Path, bootstrap: &Path, node_name: &str, store: &Store) -> anyhow::Result<()> {
    if is_usable(kubeconfig, Timestamp::now()) {
        return Ok(());
    }
    ensure!(
        bootstrap.exists(),
        "{} has no valid credentials, and {} is not there to get them with",
        kubeconfig.display(),
        bootstrap.display()
    );
    let config = written(bootstrap, store)?;
    if store.valid(Timestamp::now()).is_none() {
        let client = Client::from_kubeconfig(bootstrap, "kubelet")
            .await
            .with_context(|| format!("bootstrap kubeconfig {}", bootstrap.display()))?;
        let pair = request(&client, &client_ask(node_name)).await?;
        store.save(&pair, Timestamp::now()).context("certificate not written")?;
    }
    if let Some(dir) = kubeconfig.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut file = std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(kubeconfig)?;
    file.write_all(serde_json::to_string_pretty(&config)?.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubeconfigs() {
        let dir = std::env::temp_dir().join(format!("kubelet-bootstrap-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (bootstrap, kubeconfig) = (dir.join("bootstrap"), dir.join("kubeconfig"));
        let text = "current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\n\
            clusters: [{name: k, cluster: {server: 'https://1.2.3.4', certificate-authority: ca.crt}}]\nusers: [{name: u, user: {token: t}}]\n";
        std::fs::write(&bootstrap, text).unwrap();
        let store = Store::client(dir.join("pki"));
        let config = written(&bootstrap, &store).unwrap();
        let (cluster, _) = current(&config).unwrap();
        assert_eq!(cluster["certificate-authority"], *dir.join("ca.crt").to_string_lossy());
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        let now = Timestamp::now();
        assert!(is_usable(&bootstrap, now) && !is_usable(&kubeconfig, now) && !is_usable(&dir.join("none"), now));
        let made = rcgen::generate_simple_self_signed(vec!["n".into()]).unwrap();
        let pair = super::super::Pair { chain: made.cert.pem(), key: made.signing_key.serialize_pem() };
        store.save(&pair, now).unwrap();
        assert!(is_usable(&kubeconfig, now));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
