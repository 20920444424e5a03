//! The server's side of TLS, from files' contents.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::Tls;
use crate::StoreError;
use crate::etcd::causes;

/// What turns connections into TLS connections, of HTTP/2 where the client has a choice.
pub fn acceptor(tls: &Tls) -> Result<TlsAcceptor, StoreError> {
    let wrong = |what: &str, error: &dyn std::error::Error| {
        StoreError::Invalid(format!("TLS settings: {what}: {}", causes(error)))
    };
    let certificates = |pem: &[u8], what: &str| {
        CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|error| wrong(what, &error))
    };
    let chain = certificates(&tls.cert, "the certificate")?;
    let key = PrivateKeyDer::from_pem_slice(&tls.key).map_err(|error| wrong("the key", &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| wrong("the versions", &error))?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(ca, "the clients' authority")? {
                roots.add(certificate).map_err(|error| wrong("the clients' authority", &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| wrong("the clients' authority", &error))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| wrong("the certificate", &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
