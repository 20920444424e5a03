//! Front proxies: clients whose certificate lets them say whom they speak for.
//!
//! Their authority is apart from the one that signs ordinary clients, so that no client certificate ever becomes a front
//! proxy's, and a front proxy's names nobody by itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::prelude::*;

use super::User;
use crate::server::{FrontProxy, FrontProxyHeaders};

/// Decides which certificates are front proxies'.
pub struct FrontProxies {
    verifier: Arc<dyn ClientCertVerifier>,
    allowed_names: Vec<String>,
    headers: FrontProxyHeaders,
}

/// The roots of PEM text.
pub fn roots(pem: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|e| format!("not a CA certificate: {e}"))?;
        roots.add(certificate).map_err(|e| format!("not a CA certificate: {e}"))?;
    }
    Ok(roots)
}

impl FrontProxies {
    pub fn new(config: &FrontProxy) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&config.ca)?), provider)
            .build()
            .map_err(|e| format!("the front proxies' authority: {e}"))?;
        Ok(Self { verifier, allowed_names: config.allowed_names.clone(), headers: config.headers.clone() })
    }

    /// Whether a certificate chain is signed by the front proxies' authority; such a chain names no user by itself.
    pub fn signed(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((first, rest)) = chain.split_first() else { return false };
        self.verifier.verify_client_cert(first, rest, UnixTime::now()).is_ok()
    }

    /// Whether its name may speak for others.
    pub fn may_speak(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some(Ok((_, certificate))) = chain.first().map(|der| X509Certificate::from_der(der)) else { return false };
        let name = certificate.subject().iter_common_name().next().and_then(|cn| cn.as_str().ok());
        self.allowed_names.is_empty() || name.is_some_and(|name| self.allowed_names.iter().any(|n| n == name))
    }
}

impl FrontProxies {
    /// The user a front proxy's headers name, if they name one. The headers are taken off.
    pub fn user(&self, headers: &mut HeaderMap) -> Option<User> {
        user_of_headers(&self.headers, headers)
    }
}

fn user_of_headers(names: &FrontProxyHeaders, headers: &mut HeaderMap) -> Option<User> {
    let texts = |headers: &HeaderMap, names: &[String]| -> Vec<String> {
        let all = names.iter().map(|name| headers.get_all(name.as_str()));
        let texts = all.map(|values| values.iter().filter_map(|v| v.to_str().ok()).map(String::from).collect());
        texts.into_iter().find(|texts: &Vec<String>| texts.iter().any(|t| !t.is_empty())).unwrap_or_default()
    };
    let first = |headers: &HeaderMap, names: &[String]| texts(headers, names).into_iter().find(|t| !t.is_empty());
    let name = first(headers, &names.username)?;
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let prefixes: Vec<String> = names.extra_prefix.iter().map(|prefix| prefix.to_lowercase()).collect();
    let extra_of = |key: &str| prefixes.iter().find_map(|prefix| key.strip_prefix(prefix).map(String::from));
    for (key, value) in headers.iter() {
        let (Some(key), Ok(value)) = (extra_of(key.as_str()), value.to_str()) else { continue };
        extra.entry(crate::http::route::decode(&key).to_lowercase()).or_default().push(value.into());
    }
    let uid = first(headers, &names.uid).unwrap_or_default();
    let groups = texts(headers, &names.group);
    let plain = [&names.username, &names.uid, &names.group];
    let is_own = |key: &str| {
        extra_of(key).is_some() || plain.iter().any(|names| names.iter().any(|name| name.eq_ignore_ascii_case(key)))
    };
    let own: Vec<_> = headers.keys().filter(|key| is_own(key.as_str())).cloned().collect();
    for name in own {
        headers.remove(name);
    }
    Some(User { name, uid, groups, extra }.authenticated())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_name_users() {
        let user_of_headers = |headers: &mut HeaderMap| super::user_of_headers(&FrontProxyHeaders::default(), headers);
        let mut headers = HeaderMap::new();
        assert_eq!(user_of_headers(&mut headers), None);
        headers.insert("x-remote-group", "a".parse().unwrap());
        assert_eq!(user_of_headers(&mut headers), None);
        headers.append("x-remote-group", "b".parse().unwrap());
        headers.insert("x-remote-user", "jane".parse().unwrap());
        headers.insert("x-remote-extra-Example.com%2Fscope", "s".parse().unwrap());
        let user = user_of_headers(&mut headers).unwrap();
        assert_eq!(user.name, "jane");
        assert_eq!(user.groups, ["a", "b", "system:authenticated"]);
        assert_eq!(user.extra["example.com/scope"], ["s"]);
        assert!(headers.is_empty());
    }
}
