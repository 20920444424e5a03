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

/// Leaves, of the cipher suites of TLS 1.2, those named; those of 1.3 cannot be chosen, as with Go's servers.
fn restrict(provider: &mut rustls::crypto::CryptoProvider, names: &[String]) -> anyhow::Result<()> {
    if let Some(odd) = names.iter().find(|name| !name.starts_with("TLS_")) {
        anyhow::bail!("invalid configuration: tlsCipherSuites: Cipher suite {odd} not supported or doesn't exist");
    }
    if !names.is_empty() {
        provider.cipher_suites.retain(|suite| {
            let name = format!("{:?}", suite.suite());
            suite.tls13().is_some()
                || names.iter().any(|n| n.trim_end_matches("_SHA256") == name.trim_end_matches("_SHA256"))
        });
    }
    Ok(())
}

/// The acceptor's configuration; `issued` is the pair the cluster's signer gives, where it is to give one.
pub fn server_config(
    config: &Config,
    ips: &[IpAddr],
    issued: Option<Arc<Current>>,
) -> anyhow::Result<rustls::ServerConfig> {
    let mut provider = rustls::crypto::ring::default_provider();
    restrict(&mut provider, &config.tls.suites)?;
    let versions: &[_] = if config.tls.newest_only {
        &[&rustls::version::TLS13]
    } else {
        &[&rustls::version::TLS12, &rustls::version::TLS13]
    };
    let builder = rustls::ServerConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(versions)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_chosen_by_name() {
        let left = |names: &[&str]| {
            let mut provider = rustls::crypto::ring::default_provider();
            let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
            restrict(&mut provider, &names).map(|()| provider.cipher_suites.len())
        };
        let (all, none) = (left(&[]).unwrap(), left(&["TLS_RSA_WITH_AES_128_CBC_SHA"]).unwrap());
        assert_eq!((all, none), (9, 3));
        // Go knows the last by two names.
        for name in [
            "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
            "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
            "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
        ] {
            assert_eq!(left(&[name]).unwrap(), 4, "{name}");
        }
        assert!(left(&["AES"]).unwrap_err().to_string().contains("Cipher suite AES not supported"));
    }
}
