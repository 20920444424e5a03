//! TLS settings from PEM files, all over one provider.

use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::pki::Pair;

/// Must run before anything else uses TLS.
pub fn install_provider() {
    // Only fails when one is installed already, which is then this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn load(pair: &Pair) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let (certificate, key) = pair.read()?;
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.with_context(|| format!("{} holds no certificate", pair.certificate.display()))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .with_context(|| format!("{} holds no key", pair.key.display()))?;
    Ok((chain, key))
}

fn roots(ca_pem: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.context("not a CA certificate")?)?;
    }
    Ok(roots)
}

/// A server that takes client certificates of the authorities in the PEM text, and clients without one.
pub fn server(pair: &Pair, client_ca_pem: &str) -> Result<Arc<ServerConfig>> {
    server_speaking(pair, client_ca_pem, None, &[])
}

/// The same of these versions and cipher suites of TLS, by the names upstream gives them; all when nothing is said.
pub fn server_speaking(
    pair: &Pair,
    client_ca_pem: &str,
    oldest: Option<&str>,
    suites: &[String],
) -> Result<Arc<ServerConfig>> {
    let (chain, key) = load(pair)?;
    let mut provider = rustls::crypto::ring::default_provider();
    if !suites.is_empty() {
        let known = |suite: &rustls::SupportedCipherSuite| format!("{:?}", suite.suite());
        // Go calls some of them by a longer name, and knows some that nobody should speak.
        let plain = |name: &str| name.trim_end_matches("_SHA256").to_string();
        provider
            .cipher_suites
            .retain(|suite| suite.tls13().is_some() || suites.iter().any(|name| plain(name) == plain(&known(suite))));
    }
    let versions: &[&rustls::SupportedProtocolVersion] = match oldest {
        Some("VersionTLS13") => &[&rustls::version::TLS13],
        _ => rustls::ALL_VERSIONS,
    };
    let provider = Arc::new(provider);
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots(client_ca_pem)?), provider.clone())
            .allow_unauthenticated()
            .build()?;
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions)?;
    let mut config = builder.with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The API server as a client of kubelets. Kubelets' serving certificates are their own unless an authority is named, as
/// with upstream's `--kubelet-certificate-authority` left empty; the connection still proves the API server to the kubelet.
pub fn kubelet_client(pair: &Pair, kubelet_ca_pem: Option<&str>) -> Result<Arc<ClientConfig>> {
    let (chain, key) = load(pair)?;
    let builder = match kubelet_ca_pem {
        Some(pem) => ClientConfig::builder().with_root_certificates(roots(pem)?),
        None => {
            ClientConfig::builder().dangerous().with_custom_certificate_verifier(client::AnyCertificate::verifier())
        }
    };
    Ok(Arc::new(builder.with_client_auth_cert(chain, key)?))
}
