//! `podCertificate` projections: a key made here that never leaves the node, a certificate asked of its signer with a
//! PodCertificateRequest, and another of both before it ends.
//!
//! A signer's refusal is final for the pod, as upstream. An agent that starts anew makes a new key.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client::{Client, Gvr};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{PodCertificateRequest, PodCertificateRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, PodCertificateProjection, ServiceAccount};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde_json::json;

use crate::spec;

/// How often a request is looked at, and how long in a row: a signer is a controller somewhere.
const POLL: Duration = Duration::from_millis(200);
const WAIT: Duration = Duration::from_secs(10);
/// When to look again at a renewal that is not signed yet.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(10);

/// A key and its certificate, as the pod sees them.
#[derive(Clone, Debug, PartialEq)]
pub struct Credential {
    /// PKCS#8, PEM.
    pub key: String,
    /// The certificate and what leads to its root, PEM.
    pub chain: String,
    pub renew_at: Timestamp,
    until: Timestamp,
}

#[derive(Clone)]
struct Asked {
    key: String,
    request: String,
}

#[derive(Clone, Default)]
struct Entry {
    issued: Option<Credential>,
    asked: Option<Asked>,
    refused: Option<String>,
}

/// Which projection: pod uid, volume, place among the volume's sources.
type Key = (String, String, usize);

/// The certificates of the node's pods.
#[derive(Default)]
pub struct Certificates {
    held: Mutex<HashMap<Key, Entry>>,
}

/// A new key of a type, and a request for it that says nothing but whose it is.
fn key_and_request(kind: &str) -> Result<(String, Vec<u8>), String> {
    let algorithm = match kind {
        "ECDSAP256" => &rcgen::PKCS_ECDSA_P256_SHA256,
        "ECDSAP384" => &rcgen::PKCS_ECDSA_P384_SHA384,
        "ED25519" => &rcgen::PKCS_ED25519,
        other => return Err(format!("key type {other} is not supported by this node")),
    };
    let text = |e: rcgen::Error| e.to_string();
    let key = KeyPair::generate_for(algorithm).map_err(text)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(text)?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

/// What has become of a request: a credential, a refusal, or nothing yet.
fn outcome(request: &PodCertificateRequest, key: &str) -> Option<Result<Credential, String>> {
    let status = request.status.as_ref()?;
    let name = request.metadata.name.as_deref().unwrap_or_default();
    for condition in status.conditions.iter().flatten().filter(|c| c.status == "True") {
        if matches!(condition.type_.as_str(), "Denied" | "Failed") {
            return Some(Err(format!(
                "PodCertificateRequest {name} was {}: {}: {}",
                condition.type_.to_lowercase(),
                condition.reason,
                condition.message
            )));
        }
    }
    let chain = status.certificate_chain.clone().filter(|c| !c.is_empty())?;
    Some(Ok(Credential {
        key: key.into(),
        chain,
        renew_at: status.begin_refresh_at.as_ref()?.0,
        until: status.not_after.as_ref()?.0,
    }))
}

impl Certificates {
    fn held(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, key: &Key, change: impl FnOnce(&mut Entry)) {
        change(self.held().entry(key.clone()).or_default());
    }

    /// The credential of a projection: the `at`th source of a volume.
    pub async fn get(
        &self,
        client: &Client,
        node: &str,
        pod: &Pod,
        (volume, at): (&str, usize),
        source: &PodCertificateProjection,
    ) -> Result<Credential, String> {
        let key: Key = (spec::uid(pod).into(), volume.into(), at);
        let entry = self.held().get(&key).cloned().unwrap_or_default();
        if let Some(why) = entry.refused {
            return Err(why);
        }
        let now = Timestamp::now();
        if let Some(issued) = entry.issued.as_ref().filter(|i| now < i.renew_at) {
            return Ok(issued.clone());
        }
        match self.renew(client, node, pod, &key, entry.asked, source, entry.issued.is_none()).await {
            Ok(credential) => Ok(credential),
            // The old one still serves for a while.
            Err(why) => match entry.issued.filter(|i| now < i.until) {
                Some(issued) => {
                    tracing::debug!(pod = %spec::described(pod), "certificate not renewed yet: {why}");
                    Ok(Credential { renew_at: now + LOOK_AGAIN, ..issued })
                }
                None => Err(why),
            },
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn renew(
        &self,
        client: &Client,
        node: &str,
        pod: &Pod,
        key: &Key,
        asked: Option<Asked>,
        source: &PodCertificateProjection,
        patient: bool,
    ) -> Result<Credential, String> {
        let asked = match asked {
            Some(asked) => asked,
            None => {
                let asked = ask(client, node, pod, source).await?;
                self.keep(key, |e| e.asked = Some(asked.clone()));
                asked
            }
        };
        let api = client.api::<PodCertificateRequest>().namespaced(spec::namespace(pod));
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            let found = api.get_opt(&asked.request).await.map_err(|e| e.to_string())?;
            match found.as_ref().map(|r| outcome(r, &asked.key)) {
                // Nobody signed it before it was cleaned away: another is asked for next time.
                None => {
                    self.keep(key, |e| e.asked = None);
                    return Err(format!("PodCertificateRequest {} is gone", asked.request));
                }
                Some(Some(Ok(credential))) => {
                    self.keep(key, |e| (e.issued, e.asked) = (Some(credential.clone()), None));
                    return Ok(credential);
                }
                Some(Some(Err(why))) => {
                    self.keep(key, |e| (e.refused, e.asked) = (Some(why.clone()), None));
                    return Err(why);
                }
                Some(None) if !patient || tokio::time::Instant::now() > deadline => {
                    return Err(format!("PodCertificateRequest {} is not issued yet", asked.request));
                }
                Some(None) => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// A pod is gone, and its keys with it.
    pub fn release(&self, uid: &str) {
        self.held().retain(|(pod, ..), _| pod != uid);
    }
}

async fn ask(client: &Client, node: &str, pod: &Pod, source: &PodCertificateProjection) -> Result<Asked, String> {
    let text = |e: client::Status| e.to_string();
    let namespace = spec::namespace(pod);
    let account = spec::spec(pod).service_account_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
    let node_uid = client.api::<Node>().get(node).await.map_err(text)?.metadata.uid.clone();
    let account_object = client.api::<ServiceAccount>().namespaced(namespace).get(account).await.map_err(text)?;
    let (key, request) = key_and_request(&source.key_type)?;
    let wish = PodCertificateRequestSpec {
        signer_name: source.signer_name.clone(),
        pod_name: spec::name(pod).into(),
        pod_uid: spec::uid(pod).into(),
        service_account_name: account.into(),
        service_account_uid: account_object.metadata.uid.clone().unwrap_or_default(),
        node_name: node.into(),
        node_uid: node_uid.unwrap_or_default(),
        max_expiration_seconds: source.max_expiration_seconds,
        stub_pkc_s10_request: ByteString(request),
        unverified_user_annotations: source.user_annotations.clone(),
    };
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": spec::name(pod), "uid": spec::uid(pod)});
    let body = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "PodCertificateRequest", "spec": wish,
        "metadata": {"generateName": format!("req-{}-", spec::name(pod)), "namespace": namespace, "ownerReferences": [owner]},
    });
    let api = client.dynamic(Gvr::new("certificates.k8s.io", "v1", "podcertificaterequests")).namespaced(namespace);
    let made = api.create(body).await.map_err(text)?;
    Ok(Asked { key, request: made.meta.name.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_say_nothing_but_their_key() {
        for kind in ["ECDSAP256", "ECDSAP384", "ED25519"] {
            let (key, request) = key_and_request(kind).unwrap();
            assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"), "{kind}");
            let (_, parsed) = x509_parser::prelude::FromDer::from_der(&request).unwrap();
            let parsed: x509_parser::prelude::X509CertificationRequest<'_> = parsed;
            let info = &parsed.certification_request_info;
            assert_eq!((info.subject.iter().count(), info.iter_attributes().count()), (0, 0), "{kind}");
        }
        assert!(key_and_request("RSA3072").is_err());
    }

    #[test]
    fn what_becomes_of_a_request() {
        let request = |status: serde_json::Value| -> PodCertificateRequest {
            let whole = json!({"metadata": {"name": "r"}, "status": status, "spec": {"nodeName": "n", "nodeUID": "u", "podName": "p",
                "podUID": "u", "serviceAccountName": "s", "serviceAccountUID": "u", "signerName": "x/y", "stubPKCS10Request": ""}});
            serde_json::from_value(whole).unwrap()
        };
        let condition = |kind: &str| {
            json!([{"type": kind, "status": "True", "reason": "Because", "message": "so",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        };
        assert!(outcome(&request(json!({})), "k").is_none());
        let refused = outcome(&request(json!({"conditions": condition("Denied")})), "k").unwrap();
        assert_eq!(refused.unwrap_err(), "PodCertificateRequest r was denied: Because: so");
        let issued = json!({"conditions": condition("Issued"), "certificateChain": "c", "notBefore": "2026-01-01T00:00:00Z",
            "beginRefreshAt": "2026-01-02T00:00:00Z", "notAfter": "2026-01-03T00:00:00Z"});
        let issued = outcome(&request(issued), "k").unwrap().unwrap();
        assert_eq!((issued.key.as_str(), issued.chain.as_str()), ("k", "c"));
        assert!(issued.renew_at < issued.until);
    }
}
