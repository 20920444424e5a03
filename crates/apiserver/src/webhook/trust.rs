//! Whose certificates webhooks and extension servers may show.
//!
//! A bundle's roots vouch for what they signed; and a certificate that is itself in the bundle needs nobody to vouch for it,
//! even if it could sign others: that is what a webhook's certificate made with `openssl req -x509` is, and Go takes it.

use std::sync::Arc;

use base64::Engine;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Where distributions keep the roots they trust, for webhooks without a `caBundle`; the first that is there counts.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

#[derive(Debug)]
struct Trust {
    by_signature: Arc<WebPkiServerVerifier>,
    itself: Vec<CertificateDer<'static>>,
}

/// What a bundle (PEM in base64) vouches for; without one, what this machine trusts.
pub(crate) fn of(bundle: Option<&str>) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let pem = match bundle.filter(|b| !b.is_empty()) {
        Some(bundle) => base64::engine::general_purpose::STANDARD
            .decode(bundle)
            .map_err(|e| format!("unable to load root certificates: {e}"))?,
        None => SYSTEM_ROOTS.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default(),
    };
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates.iter().cloned());
    if added == 0 {
        return Err("unable to load root certificates: unable to parse bytes as PEM block".into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let by_signature =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(|e| e.to_string())?;
    Ok(Arc::new(Trust { by_signature, itself: certificates }))
}

/// A trusted certificate still has its time and its names.
fn stands_for_itself(shown: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), Error> {
    let bad = |error| Error::InvalidCertificate(error);
    let (_, parsed) = X509Certificate::from_der(shown).map_err(|_| bad(CertificateError::BadEncoding))?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < parsed.validity().not_before.timestamp() {
        return Err(bad(CertificateError::NotValidYet));
    }
    if now > parsed.validity().not_after.timestamp() {
        return Err(bad(CertificateError::Expired));
    }
    verify_server_name(&ParsedCertificate::try_from(shown)?, name)
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.itself.iter().any(|trusted| trusted.as_ref() == shown.as_ref()) {
            return stands_for_itself(shown, name, now).map(|()| ServerCertVerified::assertion());
        }
        self.by_signature.verify_server_cert(shown, between, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_signature.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_signature.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_signature.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl req -x509`, P-256, for a hundred years: a certificate that may sign others, for localhost and 127.0.0.1.
    const OWN: &str = include_str!("testdata/self-signed.pem");

    #[test]
    fn a_certificate_in_the_bundle_is_trusted_under_its_names() {
        let bundle = base64::engine::general_purpose::STANDARD.encode(OWN);
        let trust = of(Some(&bundle)).unwrap();
        let own = CertificateDer::from_pem_slice(OWN.as_bytes()).unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_900_000_000));
        let check = |name: &str, now: UnixTime| {
            let name = ServerName::try_from(name.to_string()).unwrap();
            trust.verify_server_cert(&own, &[], &name, &[], now).map(drop)
        };
        check("localhost", now).unwrap();
        check("127.0.0.1", now).unwrap();
        assert!(check("example.org", now).is_err());
        assert!(check("localhost", UnixTime::since_unix_epoch(std::time::Duration::from_secs(1))).is_err());
        assert!(of(Some("")).is_ok() || !SYSTEM_ROOTS.iter().any(|path| std::path::Path::new(path).exists()));
        assert!(of(Some("eA==")).is_err());
    }
}
