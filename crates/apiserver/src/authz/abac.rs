//! Mode ABAC: policies of a file, one JSON object a line, of which one that matches allows.
//!
//! Takes upstream's form `abac.authorization.kubernetes.io/v1beta1` and the older one without version and kind, whose empty
//! fields mean everything. The file is read once: who changes it starts the server anew, as upstream.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::rbac::Rule;
use super::{Attributes, Decision};
use crate::authn::{AUTHENTICATED, User};

const VERSION: &str = "abac.authorization.kubernetes.io/v1beta1";
/// What one may do who only reads.
const READS: [&str; 3] = ["get", "list", "watch"];

/// Whom a line lets do what; `*` is everything, and an empty field nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Policy {
    user: String,
    group: String,
    readonly: bool,
    api_group: String,
    resource: String,
    namespace: String,
    #[serde(rename = "nonResourcePath")]
    path: String,
}

impl Policy {
    fn of_line(line: &str) -> Result<Self, String> {
        let mut value: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
        let spec = match (value["apiVersion"].as_str(), value["kind"].as_str()) {
            (Some(VERSION), Some("Policy")) => {
                return serde_json::from_value(value["spec"].take()).map_err(|e| e.to_string());
            }
            (None | Some(""), None | Some("")) => value,
            (version, kind) => {
                let (version, kind) = (version.unwrap_or_default(), kind.unwrap_or_default());
                return Err(format!("no kind {kind:?} is registered for version {version:?}"));
            }
        };
        serde_json::from_value(spec).map(Self::widened).map_err(|e| e.to_string())
    }

    /// What the form without a version means by empty fields.
    fn widened(self) -> Self {
        let everybody = self.user.is_empty() && self.group.is_empty() || self.user == "*" || self.group == "*";
        let or_all = |text: &str| if text.is_empty() { "*".to_string() } else { text.to_string() };
        let path = if self.namespace.is_empty() && self.resource.is_empty() { "*" } else { "" };
        Self {
            user: if everybody { String::new() } else { self.user },
            group: if everybody { AUTHENTICATED.into() } else { self.group },
            readonly: self.readonly,
            api_group: "*".into(),
            resource: or_all(&self.resource),
            namespace: or_all(&self.namespace),
            path: path.into(),
        }
    }

    fn is_about(&self, user: &User) -> bool {
        let named = |said: &str, fits: bool| said.is_empty() || said == "*" || fits;
        !(self.user.is_empty() && self.group.is_empty())
            && named(&self.user, self.user == user.name)
            && named(&self.group, user.in_group(&self.group))
    }

    fn allows(&self, user: &User, a: &Attributes<'_>) -> bool {
        let is = |said: &str, asked: &str| said == "*" || said == asked;
        self.is_about(user)
            && (!self.readonly || READS.contains(&a.verb))
            && match a.path {
                None => {
                    is(&self.namespace, a.namespace) && is(&self.resource, a.resource) && is(&self.api_group, a.group)
                }
                Some(path) => match self.path.strip_suffix('*') {
                    Some(head) => path.starts_with(head.trim_end_matches('*')),
                    None => self.path == path,
                },
            }
    }
}

/// The policies of a file.
#[derive(Debug)]
pub struct Policies(Vec<Policy>);

impl Policies {
    pub fn read(file: &Path) -> Result<Self, String> {
        let shown = file.display();
        let text = std::fs::read_to_string(file).map_err(|e| format!("error reading policy file {shown}: {e}"))?;
        Self::parse(&text, &shown.to_string())
    }

    fn parse(text: &str, file: &str) -> Result<Self, String> {
        let lines =
            text.lines().enumerate().filter(|(_, line)| !matches!(line.trim_start().as_bytes(), [] | [b'#', ..]));
        let policies = lines.map(|(at, line)| {
            Policy::of_line(line).map_err(|e| format!("error reading policy file {file}, line {}: {line}: {e}", at + 1))
        });
        policies.collect::<Result<_, _>>().map(Self)
    }

    pub fn decide(&self, user: &User, a: &Attributes<'_>) -> Decision {
        match self.0.iter().any(|policy| policy.allows(user, a)) {
            true => Decision::Allow(String::new()),
            false => Decision::NoOpinion("No policy matched.".into()),
        }
    }

    /// What a user may do in a namespace, as rules.
    pub fn rules_of(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let all = |text: &str| vec![text.to_string()];
        let here = |p: &&Policy| p.is_about(user) && (p.namespace == "*" || p.namespace == namespace);
        let rules = |p: &Policy| {
            let verbs = if p.readonly { READS.map(String::from).to_vec() } else { all("*") };
            let resources = (!p.resource.is_empty()).then(|| Rule {
                verbs: verbs.clone(),
                api_groups: all(&p.api_group),
                resources: all(&p.resource),
                ..Rule::default()
            });
            let paths =
                (!p.path.is_empty()).then(|| Rule { verbs, non_resource_urls: all(&p.path), ..Rule::default() });
            resources.into_iter().chain(paths)
        };
        self.0.iter().filter(here).flat_map(rules).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r##"
# Who may do what.
{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"user": "ann", "namespace": "a", "resource": "pods", "apiGroup": ""}}
{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"group": "readers", "namespace": "*", "resource": "*", "apiGroup": "*", "readonly": true}}
{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"user": "*", "nonResourcePath": "/healthz*", "readonly": true}}
{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"namespace": "*", "resource": "*", "apiGroup": "*"}}
{"user": "old", "resource": "pods"}
{"user": "older"}
"##;

    #[test]
    fn a_line_that_matches_allows() {
        let policies = Policies::parse(FILE, "f").unwrap();
        for (who, verb, what, expect) in [
            ("ann", "delete", "a//pods", true),
            ("ann", "get", "b//pods", false),
            ("ann", "get", "a/apps/deployments", false),
            ("ann", "get", "/healthz/etcd", true),
            ("ann", "post", "/healthz", false),
            ("ann", "get", "/metrics", false),
            ("bob/readers", "list", "b/apps/deployments", true),
            ("bob/readers", "update", "b/apps/deployments", false),
            ("old", "create", "x//pods", true),
            ("old", "create", "x//services", false),
            ("old", "get", "/metrics", false),
            ("older", "create", "x/apps/deployments", true),
            ("older", "get", "/metrics", true),
            ("nobody", "get", "a//pods", false),
        ] {
            let (name, groups) =
                who.split_once('/').map_or((who, vec![]), |(name, group)| (name, vec![group.to_string()]));
            let user = User { name: name.into(), groups, ..User::default() };
            let attributes = match what.split('/').collect::<Vec<_>>()[..] {
                [namespace, group, resource] if !namespace.is_empty() => {
                    Attributes { verb, namespace, group, resource, ..Attributes::default() }
                }
                _ => Attributes::path(verb, what),
            };
            let said = policies.decide(&user, &attributes);
            assert_eq!(matches!(said, Decision::Allow(_)), expect, "{who} {verb} {what}: {said:?}");
        }
        let ann = User { name: "ann".into(), ..User::default() };
        assert_eq!(policies.rules_of(&ann, "a").len(), 1);
    }

    #[test]
    fn a_line_that_is_none_is_told() {
        for (text, expect) in [
            ("\n{", "error reading policy file f, line 2: {: "),
            (r#"{"apiVersion": "v1", "kind": "Pod"}"#, "no kind \"Pod\" is registered for version \"v1\""),
        ] {
            let said = Policies::parse(text, "f").unwrap_err();
            assert!(said.contains(expect), "{said}");
        }
    }
}
