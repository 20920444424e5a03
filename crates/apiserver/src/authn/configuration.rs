//! `AuthenticationConfiguration` of `apiserver.config.k8s.io`: who vouches for tokens, how their claims become users, and
//! which paths are for anybody.
//!
//! Follows upstream's validation, word for word where people look for the words. Reads no file; what comes out can be
//! used at once.

use std::collections::BTreeSet;

use jsonwebtoken::Algorithm;
use meta::{FieldError, FieldPath};
use serde::Deserialize;

use super::claims::Mapper;
use crate::document::{self, joined};

/// Upstream's limit of issuers.
const MAX_ISSUERS: usize = 64;
/// Versions of the documents of this group.
pub const VERSIONS: [&str; 3] =
    ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];
/// What a token may be signed with, where a document configures it; ES512 is not known here.
pub const ALGORITHMS: [(&str, Algorithm); 8] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    jwt: Option<Vec<JwtAuthenticator>>,
    anonymous: Option<AnonymousConfig>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AnonymousConfig {
    #[serde(default)]
    enabled: bool,
    #[serde(default)]
    conditions: Vec<AnonymousCondition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnonymousCondition {
    path: String,
}

/// One issuer, and what becomes of its tokens.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct JwtAuthenticator {
    pub issuer: IssuerConfig,
    pub claim_validation_rules: Vec<ClaimValidationRule>,
    pub claim_mappings: ClaimMappings,
    pub user_validation_rules: Vec<UserValidationRule>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IssuerConfig {
    pub url: String,
    #[serde(rename = "discoveryURL")]
    pub discovery_url: String,
    /// PEM; what this machine trusts when empty.
    pub certificate_authority: String,
    pub audiences: Vec<String>,
    pub audience_match_policy: String,
    pub egress_selector_type: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClaimValidationRule {
    pub claim: String,
    pub required_value: String,
    pub expression: String,
    pub message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClaimMappings {
    pub username: Mapping,
    pub groups: Mapping,
    pub uid: Mapping,
    pub extra: Vec<ExtraMapping>,
}

/// A claim, with or without a prefix, or an expression over all claims.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mapping {
    pub claim: String,
    pub prefix: Option<String>,
    pub expression: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExtraMapping {
    pub key: String,
    pub value_expression: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UserValidationRule {
    pub expression: String,
    pub message: String,
}

/// Whether somebody who shows nothing is let in, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anonymous {
    pub enabled: bool,
    /// Only these; everywhere when empty.
    pub paths: Vec<String>,
}

impl Default for Anonymous {
    fn default() -> Self {
        Self { enabled: true, paths: Vec::new() }
    }
}

impl Anonymous {
    pub fn allows(&self, path: &str) -> bool {
        self.enabled && (self.paths.is_empty() || self.paths.iter().any(|p| p == path))
    }
}

/// An issuer whose configuration is good.
#[derive(Debug)]
pub struct Trusted {
    pub issuer: IssuerConfig,
    pub mapper: Mapper,
    pub algorithms: Vec<Algorithm>,
}

/// What is configured.
#[derive(Debug, Default)]
pub struct Configuration {
    pub issuers: Vec<Trusted>,
    /// Absent where the document does not say.
    pub anonymous: Option<Anonymous>,
}

impl Configuration {
    /// Of a document, if it is good. `own` are issuers nobody else may be: this server's.
    pub fn parse(bytes: &[u8], own: &[String]) -> Result<Self, String> {
        let document: Document = document::read(bytes, "AuthenticationConfiguration", &VERSIONS)?;
        let mut errors = Vec::new();
        let jwt = document.jwt.unwrap_or_default();
        if jwt.len() > MAX_ISSUERS {
            return Err(FieldError::too_many(&FieldPath::new("jwt"), jwt.len(), MAX_ISSUERS).to_string());
        }
        let (mut urls, mut discoveries) = (BTreeSet::new(), BTreeSet::new());
        let mut issuers = Vec::new();
        for (at, authenticator) in jwt.into_iter().enumerate() {
            let path = FieldPath::new("jwt").index(at);
            let issuer = &authenticator.issuer;
            let twice = !urls.insert(issuer.url.clone());
            let discovered = !issuer.discovery_url.is_empty() && !discoveries.insert(issuer.discovery_url.clone());
            let (url, discovery) = (issuer.url.clone(), issuer.discovery_url.clone());
            issuers.push(authenticator.checked(&path, own, &ALGORITHMS.map(|(_, a)| a), &mut errors));
            if twice {
                errors.push(FieldError::duplicate(&path.child("issuer").child("url"), url));
            }
            if discovered {
                errors.push(FieldError::duplicate(&path.child("issuer").child("discoveryURL"), discovery));
            }
        }
        let anonymous = document.anonymous.map(|said| Anonymous {
            enabled: said.enabled,
            paths: said.conditions.into_iter().map(|c| c.path).collect(),
        });
        if anonymous.as_ref().is_some_and(|a| !a.enabled && !a.paths.is_empty()) {
            let path = FieldPath::new("anonymous.conditions");
            errors.push(FieldError::invalid_unprinted(
                &path,
                "enabled should be set to true when conditions are defined",
            ));
        }
        if errors.is_empty() { Ok(Self { issuers, anonymous }) } else { Err(joined(&errors)) }
    }
}

impl JwtAuthenticator {
    /// Checks it, and compiles its expressions.
    pub fn checked(
        self,
        path: &FieldPath,
        own: &[String],
        algorithms: &[Algorithm],
        errors: &mut Vec<FieldError>,
    ) -> Trusted {
        check_issuer(&self.issuer, &path.child("issuer"), own, errors);
        let mapper = Mapper::compile(&self, path, errors);
        Trusted { issuer: self.issuer, mapper, algorithms: algorithms.to_vec() }
    }
}

fn check_issuer(issuer: &IssuerConfig, path: &FieldPath, own: &[String], errors: &mut Vec<FieldError>) {
    let url = path.child("url");
    if issuer.url.is_empty() {
        errors.push(FieldError::required(&url, ""));
    } else {
        check_url(&issuer.url, &url, own, errors);
    }
    let discovery = path.child("discoveryURL");
    if !issuer.discovery_url.is_empty() {
        if !issuer.url.is_empty() && issuer.url.trim_end_matches('/') == issuer.discovery_url.trim_end_matches('/') {
            let why = "discoveryURL must be different from URL";
            errors.push(FieldError::invalid(&discovery, &*issuer.discovery_url, why));
        }
        check_url(&issuer.discovery_url, &discovery, &[], errors);
    }
    check_audiences(issuer, path, errors);
    if !issuer.certificate_authority.is_empty()
        && let Err(why) = super::front_proxy::roots(&issuer.certificate_authority).and_then(|roots| {
            if roots.is_empty() {
                Err("data does not contain any valid RSA or ECDSA certificates".into())
            } else {
                Ok(())
            }
        })
    {
        errors.push(FieldError::invalid(&path.child("certificateAuthority"), "<omitted>", why));
    }
    if !matches!(&*issuer.egress_selector_type, "" | "controlplane" | "cluster") {
        let why = "egress selector must be either controlplane or cluster";
        errors.push(FieldError::invalid(&path.child("egressSelectorType"), &*issuer.egress_selector_type, why));
    }
}

fn check_url(said: &str, path: &FieldPath, own: &[String], errors: &mut Vec<FieldError>) {
    let mut refuse = |why: &str| errors.push(FieldError::invalid(path, said, why));
    if own.iter().any(|own| own == said) {
        refuse(&format!("URL must not overlap with disallowed issuers: [{}]", own.join(" ")));
    }
    let (scheme, rest) = said.split_once("://").unwrap_or(("", said));
    if !scheme.eq_ignore_ascii_case("https") {
        refuse("URL scheme must be https");
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
        refuse("URL must not contain a username or password");
    }
    if !query.is_empty() {
        refuse("URL must not contain a query");
    }
    if !fragment.is_empty() {
        refuse("URL must not contain a fragment");
    }
}

fn check_audiences(issuer: &IssuerConfig, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let audiences = path.child("audiences");
    if issuer.audiences.is_empty() {
        errors.push(FieldError::required(&audiences, format!("at least one {} is required", audiences.as_str())));
        return;
    }
    for (at, audience) in issuer.audiences.iter().enumerate() {
        if audience.is_empty() {
            errors.push(FieldError::required(&audiences.index(at), ""));
        }
        if issuer.audiences[..at].contains(audience) {
            errors.push(FieldError::duplicate(&audiences.index(at), &**audience));
        }
    }
    let policy = &*issuer.audience_match_policy;
    let why = match issuer.audiences.len() {
        1 if !matches!(policy, "" | "MatchAny") => "audienceMatchPolicy must be empty or MatchAny for single audience",
        2.. if policy != "MatchAny" => "audienceMatchPolicy must be MatchAny for multiple audiences",
        _ => return,
    };
    errors.push(FieldError::invalid(&path.child("audienceMatchPolicy"), policy, why));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expect: &[&str]) {
        let text = format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n{body}");
        document::expect(body, Configuration::parse(text.as_bytes(), &["https://own.example.com".into()]), expect);
    }

    #[test]
    fn documents_are_refused_as_upstream_refuses_them() {
        const ISSUER: &str = "jwt: [{issuer: {url: 'https://a.example.com', audiences: [a]}, claimMappings: {username: {claim: sub, prefix: ''}}}]";
        check("", &[]);
        check(ISSUER, &[]);
        check("anonymous: {enabled: true, conditions: [{path: /livez}]}", &[]);
        check(
            "anonymous: {enabled: false, conditions: [{path: /livez}]}",
            &["anonymous.conditions: Invalid value", "enabled should be set to true"],
        );
        check("jwt: []\nmore: 1", &["strict decoding error", "more"]);
        check("jwt: []\njwt: []", &["strict decoding error", "jwt"]);
        let issuer = |issuer: &str| {
            format!("jwt: [{{issuer: {issuer}, claimMappings: {{username: {{claim: sub, prefix: ''}}}}}}]")
        };
        check(
            &issuer("{}"),
            &[
                "jwt[0].issuer.url: Required value",
                "jwt[0].issuer.audiences: Required value: at least one jwt[0].issuer.audiences is required",
            ],
        );
        check(
            &issuer("{url: 'http://u@a?q#f', audiences: [a, a]}"),
            &[
                "URL scheme must be https",
                "username or password",
                "must not contain a query",
                "must not contain a fragment",
                "jwt[0].issuer.audiences[1]: Duplicate value",
                "audienceMatchPolicy must be MatchAny for multiple audiences",
            ],
        );
        check(
            &issuer("{url: 'https://own.example.com', audiences: [a]}"),
            &["must not overlap with disallowed issuers: [https://own.example.com]"],
        );
        check(
            &issuer("{url: 'https://a', discoveryURL: 'https://a/', audiences: [a], certificateAuthority: x}"),
            &[
                "discoveryURL must be different from URL",
                "jwt[0].issuer.certificateAuthority: Invalid value: \"<omitted>\"",
            ],
        );
        let two = format!("jwt: [{0}, {0}]", ISSUER.trim_start_matches("jwt: [").trim_end_matches(']'));
        check(&two, &["jwt[1].issuer.url: Duplicate value"]);
    }

    #[test]
    fn other_kinds_are_not_read() {
        for (kind, version) in [("AuthorizationConfiguration", "v1"), ("AuthenticationConfiguration", "v9")] {
            let text = format!("apiVersion: apiserver.config.k8s.io/{version}\nkind: {kind}\n");
            let said = Configuration::parse(text.as_bytes(), &[]).unwrap_err();
            assert!(said.starts_with("no kind"), "{said}");
        }
    }
}
