//! The authorities that client certificates must come from, as their file has them now: one that changed is read again
//! with the next client, and one that cannot be read leaves those that were known.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use anyhow::Context as _;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::certificate::certificates;

/// What tells one state of a file from the next.
type Stamp = Option<(SystemTime, u64)>;
type Verifier = Arc<dyn ClientCertVerifier>;

/// The file's authorities.
#[derive(Debug)]
pub struct Authorities {
    path: PathBuf,
    known: RwLock<(Stamp, Verifier)>,
}

fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

fn read(path: &Path) -> anyhow::Result<Verifier> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        roots.add(authority).with_context(|| format!("{} holds no certificate authority", path.display()))?;
    }
    // Tokens stay possible, so a certificate is asked for and not demanded.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()));
    Ok(verifier.allow_unauthenticated().build()?)
}

impl Authorities {
    /// Those of a file that must be readable now.
    pub fn open(path: &Path) -> anyhow::Result<Authorities> {
        let known = (stamp(path), read(path)?);
        Ok(Authorities { path: path.to_path_buf(), known: RwLock::new(known) })
    }

    fn now(&self) -> Verifier {
        let seen = stamp(&self.path);
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            if known.0 == seen {
                return known.1.clone();
            }
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        match read(&self.path) {
            Ok(verifier) => *known = (seen, verifier),
            Err(error) => tracing::warn!("client authorities not read again: {error:#}"),
        }
        known.1.clone()
    }
}

impl ClientCertVerifier for Authorities {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // They may change; clients that have one certificate send it.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.now().verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now().supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

    /// An authority's certificate, and one of a client that it signed.
    fn authority() -> (String, CertificateDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own = params.self_signed(&key).unwrap().pem();
        let mut client = CertificateParams::new(vec!["client".to_string()]).unwrap();
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let signed = client.signed_by(&KeyPair::generate().unwrap(), &Issuer::new(params, key)).unwrap();
        (own, signed.der().clone())
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.crt");
        let ((old, of_old), (new, of_new)) = (authority(), authority());
        std::fs::write(&file, &old).unwrap();
        let authorities = Authorities::open(&file).unwrap();
        let known = |client| authorities.verify_client_cert(client, &[], UnixTime::now()).is_ok();
        assert_eq!((known(&of_old), known(&of_new)), (true, false));
        std::fs::write(&file, format!("{old}{new}")).unwrap();
        assert_eq!((known(&of_old), known(&of_new)), (true, true));
        std::fs::write(&file, "damaged").unwrap();
        assert_eq!((known(&of_old), known(&of_new)), (true, true));
        std::fs::write(&file, format!("{new}\n")).unwrap();
        assert_eq!((known(&of_old), known(&of_new)), (false, true));
    }
}
