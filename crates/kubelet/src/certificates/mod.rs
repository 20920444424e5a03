//! The node's own certificates: asked of the cluster's signers, kept as files, replaced before they end.
//!
//! A private key never leaves the node. Files have upstream's names and are replaced as a whole, the link last, so that
//! whoever reads `…-current.pem` finds a pair that fits. It knows how to ask and to keep, not what a certificate is for.

pub mod bootstrap;
pub mod serving;

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use client::{Client, Gvr};
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

/// Between looks at a request that waits for approval.
const LOOK: Duration = Duration::from_secs(1);
/// A request that nobody decided on is made anew after this; as upstream.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// After a failed request.
const RETRY: Duration = Duration::from_secs(10);
/// A certificate is replaced at this share of its life, and up to so much later, lest a fleet asks at once.
const REPLACE_AT: f64 = 0.7;
const REPLACE_SPREAD: f64 = 0.2;

/// What to ask a signer for.
#[derive(Clone, Debug)]
pub struct Ask {
    pub signer: &'static str,
    pub usages: &'static [&'static str],
    pub node_name: String,
    pub names: Vec<String>,
    pub ips: Vec<IpAddr>,
}

/// The client certificate of a node.
pub fn client_ask(node_name: &str) -> Ask {
    Ask {
        signer: "kubernetes.io/kube-apiserver-client-kubelet",
        usages: &["digital signature", "client auth"],
        node_name: node_name.into(),
        names: Vec::new(),
        ips: Vec::new(),
    }
}

/// A certificate chain and its key, as PEM.
pub struct Pair {
    pub chain: String,
    pub key: String,
}

/// Asks a signer, and waits until somebody has decided.
pub async fn request(client: &Client, ask: &Ask) -> anyhow::Result<Pair> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(ask.names.clone())?;
    params.subject_alt_names.extend(ask.ips.iter().map(|ip| SanType::IpAddress(*ip)));
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "system:nodes");
    subject.push(DnType::CommonName, format!("system:node:{}", ask.node_name));
    params.distinguished_name = subject;
    let pem = params.serialize_request(&key)?.pem()?;
    let api = client.dynamic(Gvr::new("certificates.k8s.io", "v1", "certificatesigningrequests"));
    let made = api
        .create(json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"generateName": "csr-"},
            "spec": {"request": STANDARD.encode(pem), "signerName": ask.signer, "usages": ask.usages},
        }))
        .await
        .context("cannot create a certificate signing request")?;
    let name = made.meta.name.to_string();
    tracing::info!(csr = %name, signer = ask.signer, "certificate asked for");
    let decided = async {
        loop {
            let value = api.get(&name).await.context("certificate signing request")?.value()?;
            if let Some(chain) = verdict(&value)? {
                return anyhow::Ok(chain);
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let chain = match tokio::time::timeout(PATIENCE, decided).await {
        Ok(decided) => decided.with_context(|| format!("certificate signing request {name}"))?,
        Err(_) => bail!("certificate signing request {name}: nobody has approved it"),
    };
    Ok(Pair { chain, key: key.serialize_pem() })
}

/// The certificate, once there is one; an error when there will be none.
fn verdict(request: &Value) -> anyhow::Result<Option<String>> {
    for condition in request["status"]["conditions"].as_array().into_iter().flatten() {
        if let Some(kind @ ("Denied" | "Failed")) = condition["type"].as_str() {
            let text = |key: &str| condition[key].as_str().unwrap_or_default().to_string();
            bail!("{} ({}: {})", kind.to_lowercase(), text("reason"), text("message"));
        }
    }
    match request["status"]["certificate"].as_str().filter(|c| !c.is_empty()) {
        Some(encoded) => Ok(Some(String::from_utf8(STANDARD.decode(encoded)?)?)),
        None => Ok(None),
    }
}

/// From when until when the first certificate of a PEM text is valid.
pub fn validity(pem: &[u8]) -> Option<(Timestamp, Timestamp)> {
    let der = CertificateDer::pem_slice_iter(pem).next()?.ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    let at = |t: x509_parser::time::ASN1Time| Timestamp::from_second(t.timestamp()).ok();
    Some((at(certificate.validity().not_before)?, at(certificate.validity().not_after)?))
}

/// When to replace a certificate; `luck` (0 to 1) spreads a fleet.
pub fn replace_at((from, until): (Timestamp, Timestamp), luck: f64) -> Timestamp {
    let life = until.duration_since(from).as_secs_f64();
    let share = REPLACE_AT + REPLACE_SPREAD * luck;
    from.checked_add(SignedDuration::from_secs((life * share) as i64)).unwrap_or(from)
}

/// One pair kept in a directory.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    prefix: &'static str,
}

impl Store {
    pub fn client(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), prefix: "kubelet-client" }
    }

    pub fn server(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), prefix: "kubelet-server" }
    }

    /// The link to the pair in use.
    pub fn current(&self) -> PathBuf {
        self.dir.join(format!("{}-current.pem", self.prefix))
    }

    /// How long the pair in use is valid, if there is one and it still is.
    pub fn valid(&self, now: Timestamp) -> Option<(Timestamp, Timestamp)> {
        validity(&fs::read(self.current()).ok()?).filter(|(_, until)| *until > now)
    }

    /// Writes a pair and makes it the current one.
    pub fn save(&self, pair: &Pair, now: Timestamp) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let stamp = now.strftime("%Y-%m-%d-%H-%M-%S").to_string();
        let file = self.dir.join(format!("{}-{stamp}.pem", self.prefix));
        let mut out = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&file)?;
        out.write_all(pair.chain.as_bytes())?;
        out.write_all(pair.key.as_bytes())?;
        out.sync_all()?;
        let fresh = self.dir.join(format!("{}-updated.pem", self.prefix));
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        symlink(&file, &fresh)?;
        fs::rename(fresh, self.current())
    }
}

/// Waits until the pair has to be replaced, and replaces it; returns when that is done.
pub async fn replace(client: &Client, store: &Store, ask: &Ask) {
    let luck = rand::random::<f64>();
    loop {
        let now = Timestamp::now();
        if let Some(valid) = store.valid(now) {
            let due = replace_at(valid, luck);
            if let Ok(left) = Duration::try_from(due.duration_since(now))
                && !left.is_zero()
            {
                // In pieces, so that a machine that slept does not oversleep.
                tokio::time::sleep(left.min(Duration::from_secs(3600))).await;
                continue;
            }
            // A signer may give pairs that are due from the start; it is not asked without a pause.
            let left = Duration::try_from(valid.1.duration_since(now)).unwrap_or_default();
            tokio::time::sleep(left.min(RETRY)).await;
        }
        let replaced = async {
            let pair = request(client, ask).await?;
            store.save(&pair, Timestamp::now()).context("certificate not written")
        };
        match replaced.await {
            Ok(()) => return tracing::info!(signer = ask.signer, "certificate replaced"),
            Err(error) => tracing::warn!(signer = ask.signer, "certificate not replaced: {error:#}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Reads a PEM file that is a directory's link.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions() {
        for (status, expect) in [
            (json!({}), Ok(None)),
            (json!({"conditions": [{"type": "Approved"}]}), Ok(None)),
            (json!({"certificate": STANDARD.encode("PEM")}), Ok(Some("PEM".to_string()))),
            (
                json!({"conditions": [{"type": "Denied", "reason": "R", "message": "m"}]}),
                Err("denied (R: m)".to_string()),
            ),
        ] {
            assert_eq!(verdict(&json!({"status": status})).map_err(|e| e.to_string()), expect);
        }
    }

    #[test]
    fn pairs_are_kept_and_replaced_in_time() {
        let dir = std::env::temp_dir().join(format!("kubelet-pairs-{}", std::process::id()));
        let store = Store::client(&dir);
        let now = Timestamp::now();
        assert_eq!(store.valid(now), None);
        let made = rcgen::generate_simple_self_signed(vec!["n".into()]).unwrap();
        let pair = Pair { chain: made.cert.pem(), key: made.signing_key.serialize_pem() };
        store.save(&pair, now).unwrap();
        store.save(&pair, now).unwrap();
        let (from, until) = store.valid(now).unwrap();
        assert_eq!(store.valid(until), None);
        let life = until.duration_since(from);
        for luck in [0.0, 1.0] {
            let due = replace_at((from, until), luck).duration_since(from);
            assert!(due >= life * 69 / 100 && due <= life * 91 / 100, "{due:?}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
