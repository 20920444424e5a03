//! CertificateApproval, CertificateSigning and CertificateSubjectRestriction: who may speak for a signer, and what no
//! request may ask of the API server's own.

use async_trait::async_trait;
use meta::{Status, Value};
use x509_parser::prelude::*;

use super::{Attributes, Operation, Plugin, Write};
use crate::authn::MASTERS;
use crate::authz::{self, Decision};
use crate::server::ApiServer;

pub struct Certificates;

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

#[async_trait]
impl Plugin for Certificates {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.target.group() == GROUP && a.target.plural() == "certificatesigningrequests"
    }

    async fn validate(&self, write: &Write<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Write { server, a, old } = *write;
        let Some(object) = object else { return Ok(()) };
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let signer = old.unwrap_or(object)["spec"]["signerName"].as_str().unwrap_or_default();
        let why = match (a.operation, &*a.target.request.subresource) {
            (Operation::Create, "") if signer == CLIENT_SIGNER => match asks_for_masters(object) {
                Ok(false) => return Ok(()),
                Ok(true) => format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed"),
                Err(error) => format!("failed to parse CSR: {error}"),
            },
            (Operation::Update, "approval") if !may(server, a, "approve", signer) => {
                format!("user not permitted to approve requests with signerName {signer:?}")
            }
            (Operation::Update, "status") => {
                let part = |csr: &Value| (csr["status"]["certificate"].clone(), csr["status"]["conditions"].clone());
                if old.map(part) == Some(part(object)) || may(server, a, "sign", signer) {
                    return Ok(());
                }
                format!("user not permitted to sign requests with signerName {signer:?}")
            }
            _ => return Ok(()),
        };
        Err(a.forbid(name, why))
    }
}

/// By the signer's name, or by its domain.
fn may(server: &ApiServer, a: &Attributes<'_>, verb: &str, signer: &str) -> bool {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    [signer, &domain].into_iter().any(|name| {
        let attributes =
            authz::Attributes { verb, group: GROUP, version: "*", resource: "signers", name, ..Default::default() };
        matches!(authz::decide(server, &a.target.caller.user, &attributes), Decision::Allow(_))
    })
}

fn asks_for_masters(csr: &Value) -> Result<bool, String> {
    use base64::Engine;
    let text = csr["spec"]["request"].as_str().unwrap_or_default();
    let pem = base64::engine::general_purpose::STANDARD.decode(text).map_err(|e| e.to_string())?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).map_err(|e| e.to_string())?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).map_err(|e| e.to_string())?;
    let mut organizations = request.certification_request_info.subject.iter_organization();
    Ok(organizations.any(|o| o.as_str() == Ok(MASTERS)))
}
