//! `AuthorizationConfiguration` of `apiserver.config.k8s.io`: who decides, in which order, and how webhooks are asked.
//!
//! Follows upstream's validation, word for word where people look for the words. Opening what is configured reads
//! kubeconfigs, and asks nobody yet.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::remote::Post;
use meta::{FieldError, FieldPath};
use serde::Deserialize;

use super::abac::Policies;
use super::chain::{Authorizer, Chain, Member};
use super::webhook::{Condition, Options, Webhook};
use crate::authn::configuration::VERSIONS;
use crate::document::{self, joined};

const TYPES: [&str; 5] = ["AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"];
/// The mode whose policies are in a file: documents know no such type.
const ABAC: &str = "ABAC";
const MAX_CONDITIONS: usize = 64;
const MAX_TIMEOUT: Duration = Duration::from_secs(30);
/// How long answers are kept where nobody says, as upstream.
const KEEP_ALLOWED: Duration = Duration::from_secs(5 * 60);
const KEEP_REFUSED: Duration = Duration::from_secs(30);

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Document {
    authorizers: Vec<AuthorizerConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AuthorizerConfig {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    webhook: Option<WebhookConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct WebhookConfig {
    #[serde(rename = "authorizedTTL")]
    authorized_ttl: Option<String>,
    cache_authorized_requests: Option<bool>,
    #[serde(rename = "unauthorizedTTL")]
    unauthorized_ttl: Option<String>,
    cache_unauthorized_requests: Option<bool>,
    timeout: Option<String>,
    subject_access_review_version: String,
    match_condition_subject_access_review_version: String,
    failure_policy: String,
    connection_info: ConnectionInfo,
    match_conditions: Vec<MatchCondition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ConnectionInfo {
    #[serde(rename = "type")]
    kind: String,
    kube_config_file: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MatchCondition {
    expression: String,
}

/// A webhook whose configuration is good.
#[derive(Debug)]
struct Remote {
    options: Options,
    kubeconfig: PathBuf,
    conditions: Vec<Condition>,
}

/// Who decides, as configured.
#[derive(Debug)]
pub struct Configuration {
    /// Type, name, and whom to ask.
    authorizers: Vec<(String, String, Option<Remote>)>,
    /// The file of mode ABAC, which flags alone can name.
    policies: Option<PathBuf>,
}

/// A Go duration that must be there; 0 stands for one that is not.
fn time(said: Option<&str>, usual: Duration, path: &FieldPath, errors: &mut Vec<FieldError>) -> Duration {
    let Some(text) = said.filter(|text| !text.is_empty()) else { return usual };
    match meta::time::parse_duration(text) {
        Some(0) => usual,
        Some(nanos) if nanos > 0 => Duration::from_nanos(nanos.unsigned_abs()),
        Some(_) => {
            errors.push(FieldError::invalid(path, text, "must be > 0s"));
            usual
        }
        None => {
            errors.push(FieldError::invalid(path, text, format!("time: invalid duration {text:?}")));
            usual
        }
    }
}

impl Configuration {
    /// Of a document, if it is good.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let document: Document = document::read(bytes, "AuthorizationConfiguration", &VERSIONS)?;
        let mut errors = Vec::new();
        let root = FieldPath::new("authorizers");
        if document.authorizers.is_empty() {
            errors.push(FieldError::required(&root, "at least one authorization mode must be defined"));
        }
        let (mut types, mut names) = (BTreeSet::new(), BTreeSet::new());
        let mut all = Vec::new();
        for (at, said) in document.authorizers.into_iter().enumerate() {
            let path = root.index(at);
            let kind = path.child("type");
            if said.kind.is_empty() {
                errors.push(FieldError::required(&kind, ""));
                continue;
            }
            if !TYPES.contains(&&*said.kind) {
                errors.push(FieldError::not_supported(&kind, &*said.kind, &TYPES));
                continue;
            }
            if !types.insert(said.kind.clone()) && said.kind != "Webhook" {
                errors.push(FieldError::duplicate(&kind, &*said.kind));
                continue;
            }
            check_name(&said.name, !names.insert(said.name.clone()), &path.child("name"), &mut errors);
            let webhook = path.child("webhook");
            let remote = match (&*said.kind, said.webhook) {
                ("Webhook", None) => {
                    errors.push(FieldError::required(&webhook, "required when type=Webhook"));
                    continue;
                }
                ("Webhook", Some(config)) => Some(config.checked(&said.name, &path, &mut errors)),
                (_, Some(_)) => {
                    errors.push(FieldError::invalid(&webhook, "non-null", "may only be specified when type=Webhook"));
                    None
                }
                (_, None) => None,
            };
            all.push((said.kind, said.name, remote));
        }
        if errors.is_empty() { Ok(Self { authorizers: all, policies: None }) } else { Err(joined(&errors)) }
    }

    /// Of `--authorization-mode` and the flags of its webhook.
    pub fn of_modes(
        modes: &[String],
        policies: Option<&Path>,
        webhook: Option<(&Path, Options)>,
    ) -> Result<Self, String> {
        let mut webhook = webhook;
        let mut all = Vec::new();
        for (at, mode) in modes.iter().enumerate() {
            if !TYPES.contains(&&**mode) && mode != ABAC {
                return Err(format!("authorization-mode {mode:?} is not a valid mode"));
            }
            if modes[..at].contains(mode) {
                return Err(format!("authorization-mode {modes:?} has mode specified more than once"));
            }
            let remote = match (&**mode, webhook.take()) {
                ("Webhook", Some((kubeconfig, options))) => {
                    Some(Remote { options, kubeconfig: kubeconfig.into(), conditions: Vec::new() })
                }
                ("Webhook", None) => {
                    return Err("authorization-mode Webhook's authorization config file not passed".into());
                }
                (_, other) => {
                    webhook = other;
                    None
                }
            };
            all.push((mode.clone(), mode.to_lowercase(), remote));
        }
        let has_abac = modes.iter().any(|mode| mode == ABAC);
        match (webhook, has_abac, policies) {
            (Some(_), ..) => Err("cannot specify --authorization-webhook-config-file without mode Webhook".into()),
            (_, true, None) => Err("authorization-mode ABAC's authorization policy file not passed".into()),
            (_, false, Some(_)) => Err("cannot specify --authorization-policy-file without mode ABAC".into()),
            (_, _, policies) => Ok(Self { authorizers: all, policies: policies.map(Into::into) }),
        }
    }

    /// Types besides webhooks: a configuration that is taken up later has the same.
    pub fn local_types(&self) -> BTreeSet<String> {
        self.authorizers.iter().filter(|(kind, ..)| kind != "Webhook").map(|(kind, ..)| kind.clone()).collect()
    }

    /// Ready to decide.
    pub async fn open(self) -> Result<Chain, String> {
        let mut members = Vec::new();
        for (kind, name, remote) in self.authorizers {
            let authorizer = match (&*kind, remote) {
                (_, Some(Remote { options, kubeconfig, conditions })) => {
                    let post = Post::from_kubeconfig(&kubeconfig, "kube-apiserver").await;
                    let post = post.map_err(|e| format!("{}: {}", kubeconfig.display(), e.message))?;
                    Authorizer::Webhook(Box::new(Webhook::new(options, post, conditions)))
                }
                ("Node", _) => Authorizer::Node,
                ("RBAC", _) => Authorizer::Rbac,
                (ABAC, _) => Authorizer::Abac(Policies::read(self.policies.as_deref().unwrap_or(Path::new("")))?),
                ("AlwaysAllow", _) => Authorizer::AlwaysAllow,
                _ => Authorizer::AlwaysDeny,
            };
            members.push(Member::new(name, authorizer));
        }
        Ok(Chain(members))
    }
}

fn check_name(name: &str, twice: bool, path: &FieldPath, errors: &mut Vec<FieldError>) {
    if name.is_empty() {
        return errors.push(FieldError::required(path, ""));
    }
    if twice {
        return errors.push(FieldError::duplicate(path, name));
    }
    let wrong = meta::formats::dns_subdomain(name);
    if !wrong.is_empty() {
        let why = format!("authorizer name is invalid: {}", wrong.join(", "));
        errors.push(FieldError::invalid(path, name, why));
    }
}

impl WebhookConfig {
    fn checked(self, name: &str, path: &FieldPath, errors: &mut Vec<FieldError>) -> Remote {
        let timeout = path.child("timeout");
        let said = self.timeout.as_deref();
        let time_out = time(said, Duration::ZERO, &timeout, errors);
        if time_out.is_zero() {
            errors.push(FieldError::required(&timeout, ""));
        } else if time_out > MAX_TIMEOUT {
            errors.push(FieldError::invalid(&timeout, said.unwrap_or_default(), "must be > 0s and <= 30s"));
        }
        let allowed = time(self.authorized_ttl.as_deref(), KEEP_ALLOWED, &path.child("authorizedTTL"), errors);
        let refused = time(self.unauthorized_ttl.as_deref(), KEEP_REFUSED, &path.child("unauthorizedTTL"), errors);
        let mut one_of = |field: &str, said: &str, taken: &[&str], required: Option<&str>| {
            let path = path.child(field);
            match (said, required) {
                ("", Some(why)) => errors.push(FieldError::required(&path, why)),
                ("", None) => {}
                (said, _) if !taken.contains(&said) => errors.push(FieldError::not_supported(&path, said, taken)),
                _ => {}
            }
        };
        one_of("subjectAccessReviewVersion", &self.subject_access_review_version, &["v1", "v1beta1"], Some(""));
        let conditions = (!self.match_conditions.is_empty()).then_some("required if match conditions are specified");
        let version = &self.match_condition_subject_access_review_version;
        one_of("matchConditionSubjectAccessReviewVersion", version, &["v1"], conditions);
        one_of("failurePolicy", &self.failure_policy, &["NoOpinion", "Deny"], Some(""));
        let kubeconfig = self.connection_info.checked(&path.child("connectionInfo"), errors);
        let conditions = self.conditions(&path.child("matchConditions"), errors);
        let keeps = |keeps: Option<bool>, time: Duration| keeps.unwrap_or(true).then_some(time);
        let options = Options {
            name: name.into(),
            version: self.subject_access_review_version,
            timeout: time_out,
            keep_allowed: keeps(self.cache_authorized_requests, allowed),
            keep_refused: keeps(self.cache_unauthorized_requests, refused),
            denies_on_error: self.failure_policy == "Deny",
        };
        Remote { options, kubeconfig, conditions }
    }

    fn conditions(&self, path: &FieldPath, errors: &mut Vec<FieldError>) -> Vec<Condition> {
        if self.match_conditions.len() > MAX_CONDITIONS {
            errors.push(FieldError::too_many(path, self.match_conditions.len(), MAX_CONDITIONS));
            return Vec::new();
        }
        let (mut seen, mut out) = (BTreeSet::new(), Vec::new());
        for (at, condition) in self.match_conditions.iter().enumerate() {
            let path = path.index(at).child("expression");
            let text = &*condition.expression;
            if text.trim().is_empty() {
                errors.push(FieldError::required(&path, ""));
            } else if !seen.insert(text) {
                errors.push(FieldError::duplicate(&path, text));
            } else {
                match Condition::compile(text) {
                    Ok(condition) => out.push(condition),
                    Err(why) => errors.push(FieldError::invalid(&path, text, why)),
                }
            }
        }
        out
    }
}

impl ConnectionInfo {
    fn checked(&self, path: &FieldPath, errors: &mut Vec<FieldError>) -> PathBuf {
        let (kind, file) = (path.child("type"), path.child("kubeConfigFile"));
        let said = self.kube_config_file.as_deref().unwrap_or_default();
        match &*self.kind {
            "" => errors.push(FieldError::required(&kind, "")),
            // This server's own credentials for itself are no file: who runs elsewhere is named by a kubeconfig.
            "InClusterConfig" => {
                errors.push(FieldError::invalid(&kind, &*self.kind, "only KubeConfigFile is supported"))
            }
            "KubeConfigFile" if said.is_empty() => errors.push(FieldError::required(&file, "")),
            "KubeConfigFile" if !Path::new(said).is_absolute() => {
                errors.push(FieldError::invalid(&file, said, "must be an absolute path"));
            }
            "KubeConfigFile" => match std::fs::metadata(said) {
                Err(error) => {
                    errors.push(FieldError::invalid(&file, said, format!("error loading file: stat {said}: {error}")));
                }
                Ok(found) if !found.is_file() => {
                    errors.push(FieldError::invalid(&file, said, "must be a regular file"));
                }
                Ok(_) => {}
            },
            other => errors.push(FieldError::not_supported(&kind, other, &["InClusterConfig", "KubeConfigFile"])),
        }
        said.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expect: &[&str]) {
        let text = format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n{body}");
        document::expect(body, Configuration::parse(text.as_bytes()), expect);
    }

    #[test]
    fn documents_are_refused_as_upstream_refuses_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let file = file.path().display();
        let webhook = format!(
            "timeout: 3s, subjectAccessReviewVersion: v1, failurePolicy: NoOpinion, connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {file}}}"
        );
        let one = |webhook: &str| format!("authorizers: [{{type: Webhook, name: w, webhook: {{{webhook}}}}}]");
        check("authorizers: [{type: Node, name: node}, {type: RBAC, name: rbac}]", &[]);
        check(&one(&webhook), &[]);
        check("authorizers: []", &["authorizers: Required value: at least one authorization mode must be defined"]);
        check(
            "authorizers: [{name: a}, {type: Who, name: b}]",
            &["authorizers[0].type: Required value", "authorizers[1].type: Unsupported value: \"Who\""],
        );
        check(
            "authorizers: [{type: RBAC, name: a}, {type: RBAC, name: b}]",
            &["authorizers[1].type: Duplicate value: \"RBAC\""],
        );
        check(
            "authorizers: [{type: RBAC, name: A_}, {type: Node}]",
            &["authorizer name is invalid", "authorizers[1].name: Required value"],
        );
        check(
            "authorizers: [{type: Webhook, name: a}, {type: Node, name: node, webhook: {}}]",
            &[
                "authorizers[0].webhook: Required value: required when type=Webhook",
                "may only be specified when type=Webhook",
            ],
        );
        check(
            &one(""),
            &[
                "authorizers[0].timeout: Required value",
                "authorizers[0].subjectAccessReviewVersion: Required value",
                "authorizers[0].failurePolicy: Required value",
                "authorizers[0].connectionInfo.type: Required value",
            ],
        );
        check(
            &one(&webhook.replace("3s", "31s").replace("NoOpinion", "Allow")),
            &[
                "authorizers[0].timeout: Invalid value: \"31s\": must be > 0s and <= 30s",
                "authorizers[0].failurePolicy: Unsupported value: \"Allow\"",
            ],
        );
        check(
            &one(&format!("{webhook}, authorizedTTL: -1s")),
            &["authorizers[0].authorizedTTL: Invalid value: \"-1s\": must be > 0s"],
        );
        check(
            &one(&format!("{webhook}, matchConditions: [{{expression: 'request.user'}}, {{expression: ' '}}]")),
            &[
                "matchConditionSubjectAccessReviewVersion: Required value: required if match conditions are specified",
                "authorizers[0].matchConditions[0].expression: Invalid value: \"request.user\": must evaluate to bool but got string",
                "authorizers[0].matchConditions[1].expression: Required value",
            ],
        );
        check(
            &one(
                "timeout: 3s, subjectAccessReviewVersion: v1, failurePolicy: Deny, connectionInfo: {type: KubeConfigFile, kubeConfigFile: /not/there}",
            ),
            &["error loading file: stat /not/there"],
        );
        check(&one(&format!("{webhook}, more: 1")), &["strict decoding error"]);
    }

    #[test]
    fn modes_are_refused_as_upstream_refuses_them() {
        let modes = |modes: &[&str]| {
            let modes: Vec<String> = modes.iter().map(ToString::to_string).collect();
            Configuration::of_modes(&modes, None, None).map(|c| c.local_types().len())
        };
        assert_eq!(modes(&["Node", "RBAC"]), Ok(2));
        for (said, expect) in [
            (vec!["Who"], "authorization-mode \"Who\" is not a valid mode"),
            (vec!["RBAC", "RBAC"], "has mode specified more than once"),
            (vec!["Webhook"], "authorization-mode Webhook's authorization config file not passed"),
            (vec!["ABAC"], "authorization-mode ABAC's authorization policy file not passed"),
        ] {
            assert!(modes(&said).unwrap_err().contains(expect), "{said:?}");
        }
    }
}
