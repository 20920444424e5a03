//! Who asks: client certificates, bearer tokens, anonymous.
//!
//! A certificate that the client CA signed names a user (CN), groups (O) and a uid; a bearer token is a service
//! account's ([`token`], or of the old form [`legacy_token`]). Credentials that are wrong are 401; none at all is `system:anonymous`.

pub mod front_proxy;
pub mod legacy_token;
pub mod token;

use std::collections::BTreeMap;
use std::sync::Arc;

use meta::Status;
use x509_parser::prelude::*;

use crate::server::ApiServer;

pub const ANONYMOUS: &str = "system:anonymous";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const AUTHENTICATED: &str = "system:authenticated";
/// Members may do everything, whatever RBAC says.
pub const MASTERS: &str = "system:masters";
/// Upstream's OID for a user's uid in a client certificate.
const UID_OID: &str = "1.3.6.1.4.1.57683.2";

/// `user.Info`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    pub fn new(name: &str, groups: &[&str]) -> Self {
        Self { name: name.into(), groups: groups.iter().map(ToString::to_string).collect(), ..Self::default() }
    }

    pub fn anonymous() -> Self {
        Self::new(ANONYMOUS, &[UNAUTHENTICATED])
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The namespace and name of a service account's user.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix("system:serviceaccount:")?.split_once(':')
    }

    /// Adds `system:authenticated`, as every identity but the anonymous one has.
    fn authenticated(mut self) -> Self {
        if !self.in_group(AUTHENTICATED) && !self.in_group(UNAUTHENTICATED) {
            self.groups.push(AUTHENTICATED.into());
        }
        self
    }
}

/// The user a verified client certificate names.
pub fn user_of_certificate(der: &[u8]) -> Result<User, Status> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| Status::unauthorized())?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next().and_then(|cn| cn.as_str().ok()).unwrap_or_default();
    if name.is_empty() {
        return Err(Status::unauthorized());
    }
    let mut user = User { name: name.into(), ..User::default() };
    user.groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(String::from).collect();
    let uid = subject.iter_attributes().find(|a| a.attr_type().to_id_string() == UID_OID);
    user.uid = uid.and_then(|a| a.as_str().ok()).unwrap_or_default().to_string();
    Ok(user.authenticated())
}

impl ApiServer {
    /// The user behind a connection's certificate and a request's `Authorization` header.
    pub async fn authenticate(
        &self,
        certificate: Option<&Arc<User>>,
        authorization: Option<&str>,
    ) -> Result<Arc<User>, Status> {
        if let Some(user) = certificate {
            return Ok(user.clone());
        }
        let Some(header) = authorization else { return Ok(Arc::new(User::anonymous())) };
        let mut words = header.trim().split(' ');
        let bearer = words.next().is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer"));
        // Credentials nobody here reads are none, as upstream has it.
        let Some(token) = words.next().filter(|token| bearer && !token.is_empty()) else {
            return Ok(Arc::new(User::anonymous()));
        };
        let verified = self.verify_token(token, &[]).await.map_err(|why| {
            tracing::info!(%why, "bearer token refused");
            Status::unauthorized()
        })?;
        if let Some(secret) = verified.used {
            self.note_use(secret).await;
        }
        Ok(Arc::new(verified.user.authenticated()))
    }
}
