//! Who is believed and who decides, as upstream's flags of the API server say it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use apiserver::authn::configuration::{
    ALGORITHMS, Anonymous, ClaimMappings, ClaimValidationRule, Configuration, IssuerConfig, JwtAuthenticator, Mapping,
};
use apiserver::authn::token_file::Tokens;
use apiserver::authn::token_review::Reviewer;
use apiserver::authn::{Authentication, Configured};
use apiserver::authz::chain::Authorization;
use apiserver::authz::configuration::Configuration as Authorizers;
use apiserver::authz::webhook::Options as WebhookOptions;
use apiserver::server::{FrontProxyHeaders, ServiceAccounts};
use meta::FieldPath;
use tokio_util::sync::CancellationToken;

use super::{duration, reload};

/// How long others' answers about tokens are kept.
const TOKEN_TTL: Duration = Duration::from_secs(2 * 60);
/// And their decisions: of a yes, and of a no.
const AUTHORIZED_TTL: Duration = Duration::from_secs(5 * 60);
const UNAUTHORIZED_TTL: Duration = Duration::from_secs(30);
const AUTHORIZER_TIMEOUT: Duration = Duration::from_secs(30);

/// Who may come in, and what they may do.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct AccessOptions {
    /// An AuthenticationConfiguration: issuers of tokens, and whom nobody vouches for.
    #[arg(long, value_name = "FILE")]
    pub authentication_config: Option<PathBuf>,
    /// Whether requests without credentials are those of system:anonymous [default: true].
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub anonymous_auth: Option<bool>,
    /// Lines of token,user,uid,"groups".
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// Take the tokens of Secrets bootstrap-token-… from machines that join.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub enable_bootstrap_token_auth: Option<bool>,
    /// Another authority whose certificates name users.
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,

    /// An OpenID Connect issuer whose tokens are taken.
    #[arg(long, value_name = "URL")]
    pub oidc_issuer_url: Option<String>,
    /// The audience its tokens must have.
    #[arg(long, value_name = "ID")]
    pub oidc_client_id: Option<String>,
    /// The authority of its certificate; what this machine trusts without.
    #[arg(long, value_name = "FILE")]
    pub oidc_ca_file: Option<PathBuf>,
    /// The claim that is the user's name [default: sub].
    #[arg(long, value_name = "CLAIM")]
    pub oidc_username_claim: Option<String>,
    /// What stands before it [default: the issuer and #, nothing for email]; - for nothing.
    #[arg(long, value_name = "PREFIX")]
    pub oidc_username_prefix: Option<String>,
    /// The claim that is the user's groups.
    #[arg(long, value_name = "CLAIM")]
    pub oidc_groups_claim: Option<String>,
    /// What stands before each group.
    #[arg(long, value_name = "PREFIX")]
    pub oidc_groups_prefix: Option<String>,
    /// What its tokens may be signed with [default: RS256].
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub oidc_signing_algs: Vec<String>,
    /// Claims a token must have, each with its value.
    #[arg(long, value_delimiter = ',', value_name = "KEY=VALUE")]
    pub oidc_required_claim: Vec<String>,

    /// A kubeconfig of the server that is asked about tokens nobody here knows.
    #[arg(long, value_name = "FILE")]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// How long its answers are kept [default: 2m].
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub authentication_token_webhook_cache_ttl: Option<Duration>,
    /// The version of TokenReview it is asked in [default: v1beta1].
    #[arg(long, value_name = "VERSION")]
    pub authentication_token_webhook_version: Option<String>,

    /// Another authority of front proxies.
    #[arg(long, value_name = "FILE")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of its front proxies; all without.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub requestheader_allowed_names: Vec<String>,
    #[arg(long, value_delimiter = ',', value_name = "HEADERS")]
    pub requestheader_username_headers: Vec<String>,
    #[arg(long, value_delimiter = ',', value_name = "HEADERS")]
    pub requestheader_uid_headers: Vec<String>,
    #[arg(long, value_delimiter = ',', value_name = "HEADERS")]
    pub requestheader_group_headers: Vec<String>,
    #[arg(long, value_delimiter = ',', value_name = "PREFIXES")]
    pub requestheader_extra_headers_prefix: Vec<String>,

    /// The issuer of service account tokens; more of them are taken besides.
    #[arg(long, value_name = "URL")]
    pub service_account_issuer: Vec<String>,
    /// The key that signs service account tokens instead of the cluster's own.
    #[arg(long, value_name = "FILE")]
    pub service_account_signing_key_file: Option<PathBuf>,
    /// Keys that service account tokens may be signed with.
    #[arg(long, value_name = "FILE")]
    pub service_account_key_file: Vec<PathBuf>,
    /// Where relying parties find these keys.
    #[arg(long, value_name = "URL")]
    pub service_account_jwks_uri: Option<String>,
    /// The longest a service account's token lives.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub service_account_max_token_expiration: Option<Duration>,
    /// What tokens for this server are for [default: the issuer].
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub api_audiences: Vec<String>,

    /// An AuthorizationConfiguration: who decides, in which order.
    #[arg(long, value_name = "FILE")]
    pub authorization_config: Option<PathBuf>,
    /// Who decides: Node, RBAC, ABAC, Webhook, AlwaysAllow, AlwaysDeny [default: Node,RBAC].
    #[arg(long, value_delimiter = ',', value_name = "MODES")]
    pub authorization_mode: Vec<String>,
    /// The policies of mode ABAC, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    pub authorization_policy_file: Option<PathBuf>,
    /// A kubeconfig of the server that mode Webhook asks.
    #[arg(long, value_name = "FILE")]
    pub authorization_webhook_config_file: Option<PathBuf>,
    /// How long its yes is kept [default: 5m].
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub authorization_webhook_cache_authorized_ttl: Option<Duration>,
    /// How long its no is kept [default: 30s].
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub authorization_webhook_cache_unauthorized_ttl: Option<Duration>,
    /// The version of SubjectAccessReview it is asked in [default: v1beta1].
    #[arg(long, value_name = "VERSION")]
    pub authorization_webhook_version: Option<String>,
}

/// What the flags come to.
pub struct Access {
    pub authentication: Arc<Authentication>,
    pub authorization: Arc<Authorization>,
    pub service_accounts: ServiceAccounts,
    /// The issuer and the signing key, where named.
    pub issuer: Option<String>,
    pub signing_key: Option<String>,
    /// More authorities, PEM.
    pub client_ca: String,
    pub front_proxy_ca: String,
    pub front_proxy_names: Vec<String>,
    pub front_proxy_headers: FrontProxyHeaders,
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn read_if(file: Option<&PathBuf>) -> Result<String> {
    file.map_or(Ok(String::new()), |file| read(file))
}

impl AccessOptions {
    /// Reads what is named. `own_issuer` is whose tokens the cluster makes where nobody says.
    pub async fn open(&self, own_issuer: &str, cancel: &CancellationToken) -> Result<Access> {
        let issuers = if self.service_account_issuer.is_empty() {
            vec![own_issuer.to_string()]
        } else {
            self.service_account_issuer.clone()
        };
        let usual = FrontProxyHeaders::default();
        let or = |said: &[String], usual: Vec<String>| if said.is_empty() { usual } else { said.to_vec() };
        Ok(Access {
            authentication: self.authentication(&issuers, cancel).await?,
            authorization: self.authorization(cancel).await?,
            service_accounts: ServiceAccounts {
                keys: self.service_account_key_file.iter().map(|file| read(file)).collect::<Result<_>>()?,
                other_issuers: issuers[1..].to_vec(),
                audiences: self.api_audiences.clone(),
                jwks_uri: self.service_account_jwks_uri.clone().unwrap_or_default(),
                max_seconds: self
                    .service_account_max_token_expiration
                    .map(|time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX)),
            },
            issuer: self.service_account_issuer.first().cloned(),
            signing_key: self.service_account_signing_key_file.as_deref().map(read).transpose()?,
            client_ca: read_if(self.client_ca_file.as_ref())?,
            front_proxy_ca: read_if(self.requestheader_client_ca_file.as_ref())?,
            front_proxy_names: self.requestheader_allowed_names.clone(),
            front_proxy_headers: FrontProxyHeaders {
                username: or(&self.requestheader_username_headers, usual.username),
                uid: or(&self.requestheader_uid_headers, usual.uid),
                group: or(&self.requestheader_group_headers, usual.group),
                extra_prefix: or(&self.requestheader_extra_headers_prefix, usual.extra_prefix),
            },
        })
    }

    fn oidc(&self) -> Result<Option<Configuration>> {
        let any = self.oidc_ca_file.is_some()
            || self.oidc_username_claim.is_some()
            || self.oidc_username_prefix.is_some()
            || self.oidc_groups_claim.is_some()
            || self.oidc_groups_prefix.is_some()
            || !self.oidc_signing_algs.is_empty()
            || !self.oidc_required_claim.is_empty();
        let (url, client) = match (&self.oidc_issuer_url, &self.oidc_client_id) {
            (None, None) if !any => return Ok(None),
            (Some(url), Some(client)) => (url.clone(), client.clone()),
            _ => bail!("oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set"),
        };
        let claim = self.oidc_username_claim.clone().unwrap_or_else(|| "sub".into());
        let prefix = match self.oidc_username_prefix.as_deref() {
            Some("-") => String::new(),
            None | Some("") if claim == "email" => String::new(),
            None | Some("") => format!("{url}#"),
            Some(prefix) => prefix.into(),
        };
        let groups = Mapping {
            prefix: self.oidc_groups_claim.as_ref().map(|_| self.oidc_groups_prefix.clone().unwrap_or_default()),
            claim: self.oidc_groups_claim.clone().unwrap_or_default(),
            ..Mapping::default()
        };
        let required = self.oidc_required_claim.iter().map(|said| {
            let (claim, value) =
                said.split_once('=').ok_or_else(|| anyhow!("--oidc-required-claim: {said} is not KEY=VALUE"))?;
            let required_value = value.to_string();
            Ok(ClaimValidationRule { claim: claim.into(), required_value, ..ClaimValidationRule::default() })
        });
        let authenticator = JwtAuthenticator {
            issuer: IssuerConfig {
                url,
                audiences: vec![client],
                certificate_authority: read_if(self.oidc_ca_file.as_ref())?,
                ..IssuerConfig::default()
            },
            claim_validation_rules: required.collect::<Result<_>>()?,
            claim_mappings: ClaimMappings {
                username: Mapping { claim, prefix: Some(prefix), ..Mapping::default() },
                groups,
                ..ClaimMappings::default()
            },
            user_validation_rules: Vec::new(),
        };
        let usual = ["RS256".to_string()];
        let names = if self.oidc_signing_algs.is_empty() { &usual[..] } else { &self.oidc_signing_algs };
        let algorithms = names.iter().map(|name| {
            let known = ALGORITHMS.iter().find(|(known, _)| known == name).map(|(_, algorithm)| *algorithm);
            known.ok_or_else(|| anyhow!("oidc: unsupported signing alg: {name:?}"))
        });
        let algorithms = algorithms.collect::<Result<Vec<_>>>()?;
        let mut errors = Vec::new();
        let trusted = authenticator.checked(&FieldPath::root(), &[], &algorithms, &mut errors);
        ensure!(errors.is_empty(), "oidc: {}", apiserver::document::joined(&errors));
        Ok(Some(Configuration { issuers: vec![trusted], anonymous: None }))
    }

    async fn authentication(&self, issuers: &[String], cancel: &CancellationToken) -> Result<Arc<Authentication>> {
        let tokens = match &self.token_auth_file {
            Some(file) => Tokens::parse(&read(file)?, &file.display().to_string()).map_err(|e| anyhow!(e))?,
            None => Tokens::default(),
        };
        let reviewer = match &self.authentication_token_webhook_config_file {
            Some(file) => {
                let version = self.authentication_token_webhook_version.as_deref().unwrap_or("v1beta1");
                let ttl = self.authentication_token_webhook_cache_ttl.unwrap_or(TOKEN_TTL);
                let opened = Reviewer::open(file, version, ttl).await;
                Some(opened.map_err(|e| anyhow!("authentication webhook {}: {e}", file.display()))?)
            }
            None => None,
        };
        // Who lets everybody do everything does not mean strangers, whatever --anonymous-auth says.
        let open = self.authorization_mode.iter().any(|mode| mode == "AlwaysAllow");
        let anonymous = Anonymous { enabled: self.anonymous_auth.unwrap_or(true) && !open, paths: Vec::new() };
        let oidc = self.oidc()?;
        let mut authentication = Authentication::default();
        authentication.tokens = tokens;
        authentication.bootstrap_tokens = self.enable_bootstrap_token_auth.unwrap_or(false);
        authentication.reviewer = reviewer;
        let authentication = Arc::new(authentication);
        let Some(file) = &self.authentication_config else {
            authentication.configure(Configured::start(oidc.unwrap_or_default(), &anonymous));
            return Ok(authentication);
        };
        ensure!(oidc.is_none(), "authentication-config file and oidc-* flags are mutually exclusive");
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let parsed = Configuration::parse(&bytes, issuers).map_err(|e| anyhow!("{}: {e}", file.display()))?;
        ensure!(
            parsed.anonymous.is_none() || self.anonymous_auth.is_none(),
            "--anonymous-auth flag cannot be set when anonymous field is configured in authentication configuration file"
        );
        authentication.configure(Configured::start(parsed, &anonymous));
        let (held, own) = (authentication.clone(), issuers.to_vec());
        reload::follow(file.clone(), bytes, cancel.clone(), move |bytes| {
            let (held, own, anonymous) = (held.clone(), own.clone(), anonymous.clone());
            Box::pin(async move { held.reconfigure(&bytes, &own, &anonymous).await })
        });
        Ok(authentication)
    }

    async fn authorization(&self, cancel: &CancellationToken) -> Result<Arc<Authorization>> {
        let Some(file) = &self.authorization_config else {
            let usual = ["Node".to_string(), "RBAC".to_string()];
            let modes = if self.authorization_mode.is_empty() { &usual[..] } else { &self.authorization_mode };
            let webhook = self.authorization_webhook_config_file.as_deref().map(|file| {
                let kept = |time: Option<Duration>, usual| Some(time.unwrap_or(usual)).filter(|time| !time.is_zero());
                let options = WebhookOptions {
                    name: "default".into(),
                    version: self.authorization_webhook_version.clone().unwrap_or_else(|| "v1beta1".into()),
                    timeout: AUTHORIZER_TIMEOUT,
                    keep_allowed: kept(self.authorization_webhook_cache_authorized_ttl, AUTHORIZED_TTL),
                    keep_refused: kept(self.authorization_webhook_cache_unauthorized_ttl, UNAUTHORIZED_TTL),
                    denies_on_error: false,
                };
                (file, options)
            });
            let chain = Authorizers::of_modes(modes, self.authorization_policy_file.as_deref(), webhook)
                .map_err(|e| anyhow!(e))?;
            return Ok(Arc::new(Authorization::new(chain.open().await.map_err(|e| anyhow!(e))?)));
        };
        ensure!(
            self.authorization_mode.is_empty()
                && self.authorization_policy_file.is_none()
                && self.authorization_webhook_config_file.is_none(),
            "--authorization-config can not be specified when --authorization-mode or --authorization-webhook-* flags are defined"
        );
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let refuse = |e: String| anyhow!("{}: {e}", file.display());
        let parsed = Authorizers::parse(&bytes).map_err(refuse)?;
        let types = parsed.local_types();
        let authorization = Arc::new(Authorization::new(parsed.open().await.map_err(refuse)?));
        let held = authorization.clone();
        reload::follow(file.clone(), bytes, cancel.clone(), move |bytes| {
            let (held, types) = (held.clone(), types.clone());
            Box::pin(async move { held.reconfigure(&bytes, &types).await })
        });
        Ok(authorization)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oidc(said: AccessOptions) -> Result<String, String> {
        let found = said.oidc().map_err(|e| format!("{e:#}"))?;
        Ok(found.map_or("none".into(), |c| format!("{} {:?}", c.issuers[0].issuer.url, c.issuers[0].algorithms)))
    }

    #[test]
    fn oidc_flags() {
        let url = Some("https://a.example.com".to_string());
        let both = || AccessOptions {
            oidc_issuer_url: url.clone(),
            oidc_client_id: Some("id".into()),
            ..AccessOptions::default()
        };
        assert_eq!(oidc(AccessOptions::default()).unwrap(), "none");
        assert_eq!(oidc(both()).unwrap(), "https://a.example.com [RS256]");
        let algorithms = vec!["ES256".to_string()];
        assert_eq!(
            oidc(AccessOptions { oidc_signing_algs: algorithms, ..both() }).unwrap(),
            "https://a.example.com [ES256]"
        );
        for (said, expect) in [
            (AccessOptions { oidc_issuer_url: url.clone(), ..AccessOptions::default() }, "must be specified together"),
            (
                AccessOptions { oidc_groups_claim: Some("g".into()), ..AccessOptions::default() },
                "must be specified together",
            ),
            (AccessOptions { oidc_issuer_url: Some("http://a".into()), ..both() }, "URL scheme must be https"),
            (AccessOptions { oidc_signing_algs: vec!["HS256".into()], ..both() }, "unsupported signing alg: \"HS256\""),
            (AccessOptions { oidc_required_claim: vec!["a".into()], ..both() }, "is not KEY=VALUE"),
        ] {
            let why = oidc(said).unwrap_err();
            assert!(why.contains(expect), "{why}: says nothing of {expect}");
        }
    }
}
