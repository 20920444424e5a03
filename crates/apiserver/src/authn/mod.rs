//! Who asks: client certificates, bearer tokens, anonymous.
//!
//! A certificate that the client CA signed names a user (CN), groups (O) and a uid. A bearer token is looked for in a file
//! ([`token_file`]), is a service account's ([`token`], or of the old form [`legacy_token`]), a joining machine's
//! ([`bootstrap_token`]), an issuer's ([`issuer`]), or somebody else is asked about it ([`token_review`]); the first who knows
//! it counts. Credentials that are wrong are 401; none at all is `system:anonymous`, where that is let in.

mod bootstrap_token;
pub mod claims;
pub mod configuration;
mod fetch;
pub mod front_proxy;
pub mod issuer;
mod keys;
pub mod legacy_token;
pub mod token;
pub mod token_file;
pub mod token_review;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use meta::Status;
use x509_parser::prelude::*;

use crate::server::ApiServer;
use configuration::{Anonymous, Configuration};
use issuer::Issuer;

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

/// How long the issuers of a changed configuration may take to be found before it is not taken up, as upstream.
const HEALTHY_WITHIN: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Issuers and anonymous users, which may be configured anew.
#[derive(Default)]
pub struct Configured {
    issuers: Vec<Arc<Issuer>>,
    anonymous: Anonymous,
}

impl Configured {
    /// Begins to look for the issuers. `anonymous` is what counts where the configuration does not say.
    pub fn start(configuration: Configuration, anonymous: &Anonymous) -> Arc<Self> {
        Arc::new(Self {
            issuers: configuration.issuers.into_iter().map(Issuer::start).collect(),
            anonymous: configuration.anonymous.unwrap_or_else(|| anonymous.clone()),
        })
    }

    fn health(&self) -> Result<(), String> {
        self.issuers.iter().try_for_each(|issuer| {
            let of = |why| format!("oidc: authenticator for issuer {:?} is not healthy: {why}", issuer.url());
            issuer.health().map_err(of)
        })
    }
}

/// Who is believed besides certificates and service accounts.
#[derive(Default)]
pub struct Authentication {
    pub tokens: token_file::Tokens,
    pub bootstrap_tokens: bool,
    pub reviewer: Option<token_review::Reviewer>,
    configured: RwLock<Arc<Configured>>,
}

impl Authentication {
    pub fn configured(&self) -> Arc<Configured> {
        self.configured.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What counts from now on.
    pub fn configure(&self, configured: Arc<Configured>) {
        *self.configured.write().unwrap_or_else(PoisonError::into_inner) = configured;
    }

    /// Takes up a changed document once all its issuers are found; else everything stays as it was. `own` are this server's
    /// issuers.
    pub async fn reconfigure(&self, document: &[u8], own: &[String], anonymous: &Anonymous) -> Result<(), String> {
        let taken = match Configuration::parse(document, own) {
            Ok(parsed) => self.replace(Configured::start(parsed, anonymous)).await,
            Err(why) => Err(why),
        };
        crate::instruments::reloaded("authentication", taken.is_ok());
        taken
    }

    async fn replace(&self, configured: Arc<Configured>) -> Result<(), String> {
        let until = tokio::time::Instant::now() + HEALTHY_WITHIN;
        while let Err(why) = configured.health() {
            if tokio::time::Instant::now() >= until {
                return Err(why);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.configure(configured);
        Ok(())
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
    /// The user behind a connection's certificate and a request's `Authorization` header; `path` is what is asked for.
    pub async fn authenticate(
        &self,
        certificate: Option<&Arc<User>>,
        authorization: Option<&str>,
        path: &str,
    ) -> Result<Arc<User>, Status> {
        if let Some(user) = certificate {
            return Ok(user.clone());
        }
        let anonymous = || match self.authentication().configured().anonymous.allows(path) {
            true => Ok(Arc::new(User::anonymous())),
            false => Err(Status::unauthorized()),
        };
        let Some(header) = authorization else { return anonymous() };
        let mut words = header.trim().split(' ');
        let bearer = words.next().is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer"));
        // Credentials nobody here reads are none, as upstream has it.
        let Some(token) = words.next().filter(|token| bearer && !token.is_empty()) else { return anonymous() };
        let verified = Box::pin(self.verify_token(token, &[])).await.map_err(|why| {
            tracing::info!(%why, "bearer token refused");
            Status::unauthorized()
        })?;
        if let Some(secret) = verified.used {
            Box::pin(self.note_use(secret)).await;
        }
        Ok(Arc::new(verified.user.authenticated()))
    }

    /// Verifies a token for the given audiences; none means the API server's own.
    pub async fn verify_token(&self, token: &str, audiences: &[String]) -> Result<token::Verified, String> {
        let authentication = self.authentication();
        if let Some(user) = authentication.tokens.user(token) {
            return self.known(user, audiences);
        }
        let mut said = match self.verify_account_token(token, audiences).await {
            Ok(verified) => return Ok(verified),
            Err(why) => vec![why],
        };
        if authentication.bootstrap_tokens
            && let Some(user) = self.bootstrap_user(token)
        {
            return self.known(user, audiences);
        }
        let configured = authentication.configured();
        let issuer = issuer::said_issuer(token).filter(|_| !configured.issuers.is_empty());
        for issuer in configured.issuers.iter().filter(|known| issuer.as_deref() == Some(known.url())) {
            match issuer.verify(token).await {
                Ok(user) => return self.known(user, audiences),
                Err(why) => said.push(why),
            }
        }
        if let Some(reviewer) = &authentication.reviewer {
            match reviewer.user(token, audiences).await {
                Ok(Some(user)) => return self.known(user, audiences),
                Ok(None) => {}
                Err(why) => said.push(why),
            }
        }
        match &mut said[..] {
            [one] => Err(std::mem::take(one)),
            many => {
                Err(format!("[{}]", many.iter().map(|why| why.trim_matches(['[', ']'])).collect::<Vec<_>>().join(", ")))
            }
        }
    }

    /// A user whose token says nothing of audiences: it is for this server.
    fn known(&self, user: User, audiences: &[String]) -> Result<token::Verified, String> {
        let own = &self.token_keys().audiences;
        let shared: Vec<String> =
            own.iter().filter(|own| audiences.is_empty() || audiences.contains(own)).cloned().collect();
        if shared.is_empty() {
            return Err(token::other_audiences(own, audiences));
        }
        Ok(token::Verified { user, audiences: shared, used: None })
    }
}
