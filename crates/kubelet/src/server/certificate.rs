//! The node API's TLS: a given certificate or one made here, and the authority client certificates must come from.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::authorities::Authorities;
use crate::certificates::serving::Current;
use crate::config::Config;

/// Makes a self-signed pair once, and keeps it.
fn self_signed(config: &Config, ips: &[IpAddr]) -> anyhow::Result<(PathBuf, PathBuf)> {
    let dir = config.root_dir.join("pki");
    let (certificate, key) = (dir.join("kubelet.crt"), dir.join("kubelet.key"));
    if certificate.exists() && key.exists() {
        return Ok((certificate, key));
    }
    fs::create_dir_all(&dir)?;
    let mut names = vec![config.hostname().to_string()];
    names.extend(ips.iter().map(ToString::to_string));
    let made = rcgen::generate_simple_self_signed(names)?;
    let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&key)?;
    std::io::Write::write_all(&mut file, made.signing_key.serialize_pem().as_bytes())?;
    fs::write(&certificate, made.cert.pem())?;
    Ok((certificate, key))
}

/// The certificates of a PEM file.
pub fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).with_context(|| format!("cannot read {}", path.display()))?;
    read.collect::<Result<_, _>>().with_context(|| format!("{} is not a PEM certificate", path.display()))
}

/// The acceptor's configuration; `issued` is the pair the cluster's signer gives, where it is to give one.
pub fn server_config(
    config: &Config,
    ips: &[IpAddr],
    issued: Option<Arc<Current>>,
) -> anyhow::Result<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = match &config.client_ca {
        Some(path) => builder.with_client_cert_verifier(Arc::new(Authorities::open(path)?)),
        None => builder.with_no_client_auth(),
    };
    let mut out = match issued {
        Some(issued) => builder.with_cert_resolver(issued),
        None => {
            let (certificate, key) = match &config.serving_certificate {
                Some(pair) => pair.clone(),
                None => self_signed(config, ips)?,
            };
            let chain = certificates(&certificate)?;
            let key = PrivateKeyDer::from_pem_file(&key)
                .with_context(|| format!("{} is not a PEM private key", key.display()))?;
            builder.with_single_cert(chain, key)?
        }
    };
    out.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(out)
}
