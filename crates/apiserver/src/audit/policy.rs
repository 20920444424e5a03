//! What is told of a request: the rules of an `audit.k8s.io/v1` Policy.
//!
//! The first rule that matches decides; a request that none matches is not told of. A policy is refused in upstream's words
//! before anything is served. Rules know a request by its names, as authorization does, and nothing of its body.

use meta::{FieldError, FieldPath, Value};
use serde::Deserialize;

use crate::authn::User;
use crate::authz::Attributes;

/// The kind a policy file must hold.
const API_VERSION: &str = "audit.k8s.io/v1";

/// How much is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    pub const ALL: [Self; 4] = [Self::None, Self::Metadata, Self::Request, Self::RequestResponse];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// When it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    pub const ALL: [Self; 4] = [Self::RequestReceived, Self::ResponseStarted, Self::ResponseComplete, Self::Panic];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    level: String,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<String>,
    omit_managed_fields: Option<bool>,
}

const POLICY_FIELDS: [&str; 6] = ["apiVersion", "kind", "metadata", "omitManagedFields", "omitStages", "rules"];
const RULE_FIELDS: [&str; 9] = [
    "level",
    "namespaces",
    "nonResourceURLs",
    "omitManagedFields",
    "omitStages",
    "resources",
    "userGroups",
    "users",
    "verbs",
];

/// A policy that can be followed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    rules: Vec<Rule>,
    omit_stages: Vec<String>,
    omit_managed_fields: bool,
}

/// What a policy says of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<'p> {
    pub level: Level,
    omit_stages: [&'p [String]; 2],
    pub omit_managed_fields: bool,
}

impl Verdict<'_> {
    /// Which stages are told, in the order of [`Stage::ALL`].
    pub fn stages(&self) -> [bool; 4] {
        Stage::ALL.map(|stage| !self.omit_stages.iter().any(|omitted| omitted.iter().any(|s| s == stage.as_str())))
    }
}

impl Policy {
    /// Reads a policy, YAML or JSON.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (value, _) = meta::decode::yaml(bytes).map_err(|e| format!("failed decoding: {e}"))?;
        let text = |field: &str| value[field].as_str().unwrap_or_default();
        if text("apiVersion") != API_VERSION || text("kind") != "Policy" {
            let (api_version, kind) = (text("apiVersion"), text("kind"));
            return Err(format!(
                "failed decoding: no kind {kind:?} is registered for version {api_version:?} in scheme \"k8s.io/apiserver/pkg/audit/scheme.go:30\""
            ));
        }
        warn_of_unknown(&value);
        let policy = Self::deserialize(&value).map_err(|e| format!("failed decoding: {e}"))?;
        let errors = policy.errors();
        match &errors[..] {
            [] => {}
            [one] => return Err(one.to_string()),
            many => {
                let said: Vec<String> = many.iter().map(ToString::to_string).collect();
                return Err(format!("[{}]", said.join(", ")));
            }
        }
        if policy.rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".into());
        }
        Ok(policy)
    }

    fn errors(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        omit_stages(&self.omit_stages, &FieldPath::new("omitStages"), &mut errors);
        for (at, rule) in self.rules.iter().enumerate() {
            rule.check(&FieldPath::new("rules").index(at), &mut errors);
        }
        errors
    }

    /// What is told of a request by `user`, who is absent when nobody could be made out.
    pub fn verdict(&self, user: Option<&User>, a: &Attributes<'_>) -> Verdict<'_> {
        match self.rules.iter().find(|rule| rule.matches(user, a)) {
            Some(rule) => Verdict {
                level: rule.level(),
                omit_stages: [&rule.omit_stages, &self.omit_stages],
                omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
            },
            None => Verdict {
                level: Level::None,
                omit_stages: [&[], &self.omit_stages],
                omit_managed_fields: self.omit_managed_fields,
            },
        }
    }
}

/// Fields nobody reads are likely meant to be others: upstream says so, and goes on.
fn warn_of_unknown(policy: &Value) {
    let unknown = |value: &Value, known: &[&str]| -> Vec<String> {
        value.as_object().into_iter().flat_map(|o| o.keys()).filter(|k| !known.contains(&k.as_str())).cloned().collect()
    };
    let mut found = unknown(policy, &POLICY_FIELDS);
    for (at, rule) in policy["rules"].as_array().into_iter().flatten().enumerate() {
        found.extend(unknown(rule, &RULE_FIELDS).into_iter().map(|field| format!("rules[{at}].{field}")));
    }
    if !found.is_empty() {
        let fields: Vec<String> = found.iter().map(|field| format!("unknown field {field:?}")).collect();
        tracing::warn!(
            "Audit policy contains errors, falling back to lenient decoding: strict decoding error: {}",
            fields.join(", ")
        );
    }
}

fn omit_stages(stages: &[String], path: &FieldPath, errors: &mut Vec<FieldError>) {
    for (at, stage) in stages.iter().enumerate() {
        if !Stage::ALL.iter().any(|known| known.as_str() == stage) {
            let allowed = Stage::ALL.map(Stage::as_str).join(",");
            errors.push(FieldError::invalid(&path.index(at), stage.as_str(), format!("allowed stages are {allowed}")));
        }
    }
}

impl Rule {
    fn level(&self) -> Level {
        Level::ALL.into_iter().find(|level| level.as_str() == self.level).unwrap_or_default()
    }

    fn check(&self, path: &FieldPath, errors: &mut Vec<FieldError>) {
        let levels = Level::ALL.map(Level::as_str);
        match self.level.as_str() {
            "" => errors.push(FieldError::required(&path.child("level"), "")),
            level if !levels.contains(&level) => {
                errors.push(FieldError::not_supported(&path.child("level"), level, &levels));
            }
            _ => {}
        }
        let urls = path.child("nonResourceURLs");
        for (at, url) in self.non_resource_urls.iter().enumerate().filter(|(_, url)| *url != "*") {
            if !url.starts_with('/') {
                let why = "non-resource URL rules must begin with a '/' character";
                errors.push(FieldError::invalid(&urls.index(at), url.as_str(), why));
            }
            if url.strip_suffix('*').unwrap_or(url).contains('*') {
                let why = "non-resource URL wildcards '*' must be the final character of the rule";
                errors.push(FieldError::invalid(&urls.index(at), url.as_str(), why));
            }
        }
        let resources = path.child("resources");
        for of in &self.resources {
            let wrong =
                if of.group.is_empty() { Vec::new() } else { resources::validate::formats::dns_subdomain(&of.group) };
            if !wrong.is_empty() {
                errors.push(FieldError::invalid(&resources.child("group"), of.group.as_str(), wrong.join(",")));
            }
            if !of.resource_names.is_empty() && of.resources.is_empty() {
                let why = "using resourceNames requires at least one resource";
                errors.push(FieldError::invalid(&resources.child("resourceNames"), of.resource_names.clone(), why));
            }
        }
        omit_stages(&self.omit_stages, &path.child("omitStages"), errors);
        if !self.non_resource_urls.is_empty() && (!self.resources.is_empty() || !self.namespaces.is_empty()) {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            errors.push(FieldError::invalid(&urls, self.non_resource_urls.clone(), why));
        }
    }

    fn matches(&self, user: Option<&User>, a: &Attributes<'_>) -> bool {
        let has = |list: &[String], item: &str| list.iter().any(|x| x == item);
        let users = self.users.is_empty() || user.is_some_and(|user| has(&self.users, &user.name));
        let groups = self.user_groups.is_empty()
            || user.is_some_and(|user| user.groups.iter().any(|g| has(&self.user_groups, g)));
        if !users || !groups || !(self.verbs.is_empty() || has(&self.verbs, a.verb)) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return a.path.is_none()
                && (self.namespaces.is_empty() || has(&self.namespaces, a.namespace))
                && (self.resources.is_empty() || self.resources.iter().any(|of| of.matches(a)));
        }
        self.non_resource_urls.is_empty()
            || a.path.is_some_and(|path| {
                self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                    Some(start) => path.starts_with(start),
                    None => url == path,
                })
            })
    }
}

impl GroupResources {
    fn matches(&self, a: &Attributes<'_>) -> bool {
        if self.group != a.group {
            return false;
        }
        let named = || self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == a.name);
        let is = |resource: &String| match resource.split_once('/') {
            None => resource == "*" || (resource == a.resource && a.subresource.is_empty()),
            Some((resource, "*")) => resource == a.resource,
            Some((resource, sub)) => {
                (resource == "*" || resource == a.resource) && !a.subresource.is_empty() && sub == a.subresource
            }
        };
        self.resources.is_empty() || (named() && self.resources.iter().any(is))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rules: &str) -> Result<Policy, String> {
        Policy::parse(format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}").as_bytes())
    }

    #[test]
    fn refused_in_upstreams_words() {
        for (rules, expect) in [
            ("rules: []", "loaded illegal policy with 0 rules"),
            ("rules: [{users: [a]}]", "rules[0].level: Required value"),
            (
                "rules: [{level: All}]",
                "rules[0].level: Unsupported value: \"All\": supported values: \"Metadata\", \"None\", \"Request\", \"RequestResponse\"",
            ),
            (
                "rules: [{level: None, nonResourceURLs: [a, /a*b, '/*', '*']}]",
                "[rules[0].nonResourceURLs[0]: Invalid value: \"a\": non-resource URL rules must begin with a '/' character, rules[0].nonResourceURLs[1]: Invalid value: \"/a*b\": non-resource URL wildcards '*' must be the final character of the rule]",
            ),
            (
                "rules: [{level: None, resources: [{resourceNames: [a]}]}]",
                "rules[0].resources.resourceNames: Invalid value: [\"a\"]: using resourceNames requires at least one resource",
            ),
            (
                "rules: [{level: None, omitStages: [Panic, End]}]",
                "rules[0].omitStages[1]: Invalid value: \"End\": allowed stages are RequestReceived,ResponseStarted,ResponseComplete,Panic",
            ),
            (
                "rules: [{level: None, namespaces: [a], nonResourceURLs: ['/a']}]",
                "rules[0].nonResourceURLs: Invalid value: [\"/a\"]: rules cannot apply to both regular resources and non-resource URLs",
            ),
        ] {
            assert_eq!(policy(rules).err().as_deref(), Some(expect), "{rules}");
        }
        assert!(Policy::parse(b"apiVersion: v1\nkind: Policy\nrules: [{level: None}]").is_err());
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = policy(
            "omitStages: [RequestReceived]
rules:
- {level: None, users: ['system:kube-proxy'], verbs: [watch]}
- {level: None, userGroups: [g], nonResourceURLs: ['/api*', /version]}
- {level: Request, resources: [{group: '', resources: [pods/status, '*/scale', secrets/*]}], omitStages: [Panic]}
- {level: Metadata, resources: [{resources: [configmaps], resourceNames: [a]}], namespaces: [kube-system], omitManagedFields: true}
- {level: RequestResponse, resources: [{group: apps}]}
",
        )
        .unwrap();
        let resource = |verb, group, resource, subresource, namespace, name| Attributes {
            verb,
            group,
            resource,
            subresource,
            namespace,
            name,
            version: "v1",
            ..Attributes::default()
        };
        let user = |name: &str| User::new(name, &["g"]);
        for (who, a, expect) in [
            ("system:kube-proxy", resource("watch", "apps", "x", "", "", ""), "None"),
            ("system:kube-proxy", resource("get", "apps", "x", "", "n", "y"), "RequestResponse"),
            ("u", Attributes::path("get", "/apis"), "None"),
            ("u", Attributes::path("get", "/version/x"), "None"),
            ("u", resource("get", "", "pods", "status", "n", "y"), "Request"),
            ("u", resource("get", "", "pods", "", "n", "y"), "None"),
            ("u", resource("get", "", "secrets", "", "n", "y"), "Request"),
            ("u", resource("get", "", "replicationcontrollers", "scale", "n", "y"), "Request"),
            ("u", resource("get", "", "configmaps", "", "kube-system", "a"), "Metadata"),
            ("u", resource("get", "", "configmaps", "", "kube-system", "b"), "None"),
            ("u", resource("get", "", "configmaps", "", "default", "a"), "None"),
        ] {
            assert_eq!(policy.verdict(Some(&user(who)), &a).level.as_str(), expect, "{who} {a:?}");
        }
        let of = policy.verdict(Some(&user("u")), &resource("get", "", "pods", "status", "n", "y"));
        assert_eq!((of.stages(), of.omit_managed_fields), ([false, true, true, false], false));
        let of = policy.verdict(None, &resource("get", "", "configmaps", "", "kube-system", "a"));
        assert_eq!((of.level, of.omit_managed_fields), (Level::Metadata, true));
    }
}
