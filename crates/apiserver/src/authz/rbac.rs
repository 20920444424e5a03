//! Role-based access control over the cached roles and bindings.
//!
//! Bindings are indexed by subject, and the index is rebuilt when a role or binding changes: deciding touches only the
//! rules bound to the user and its groups. Follows `plugin/pkg/auth/authorizer/rbac`.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use serde::Deserialize;

use super::{Attributes, Decision};
use crate::authn::User;
use crate::server::ApiServer;

pub const GROUP: &str = "rbac.authorization.k8s.io";

/// `rbac/v1.PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub non_resource_urls: Vec<String>,
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|x| x == "*" || x == item)
}

impl Rule {
    pub fn allows(&self, a: &Attributes<'_>) -> bool {
        if !has(&self.verbs, a.verb) {
            return false;
        }
        if let Some(path) = a.path {
            return self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => url == path,
            });
        }
        let resource = self.resources.iter().any(|r| match r.split_once('/') {
            _ if r == "*" => true,
            None => a.subresource.is_empty() && r == a.resource,
            Some((resource, sub)) => (resource == "*" || resource == a.resource) && sub == a.subresource,
        });
        resource
            && has(&self.api_groups, a.group)
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|n| n == a.name))
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Role {
    #[serde(deserialize_with = "or_default")]
    rules: Vec<Rule>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Binding {
    #[serde(deserialize_with = "or_default")]
    subjects: Vec<Subject>,
    role_ref: RoleRef,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RoleRef {
    kind: String,
    name: String,
}

fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(d)?.unwrap_or_default())
}

/// One role as bound to one subject.
#[derive(Clone)]
struct Grant {
    /// `None` for the whole cluster.
    namespace: Option<Arc<str>>,
    rules: Arc<[Rule]>,
    why: Arc<str>,
}

#[derive(Default)]
struct Index {
    /// Newest revision of each of the four kinds at the time it was built.
    built_at: [u64; 4],
    /// Keyed `u:NAME` and `g:NAME`.
    grants: HashMap<String, Vec<Grant>>,
}

/// The authorizer.
#[derive(Default)]
pub struct Rbac {
    index: RwLock<Arc<Index>>,
}

const KINDS: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

impl Rbac {
    fn index(&self, server: &ApiServer) -> Arc<Index> {
        let catalog = server.catalog();
        let caches = KINDS.map(|plural| catalog.find(GROUP, plural).and_then(|served| served.cache.clone()));
        let now = std::array::from_fn(|at| caches[at].as_ref().map_or(0, |cache| cache.newest()));
        let index = self.index.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if index.built_at == now && !index.grants.is_empty() {
            return index;
        }
        let [cluster_roles, roles, cluster_bindings, bindings] =
            caches.map(|cache| cache.map(|c| c.list(c.prefix()).items).unwrap_or_default());
        let mut rules: HashMap<(Box<str>, Box<str>), Arc<[Rule]>> = HashMap::new();
        for role in cluster_roles.iter().chain(&roles) {
            match serde_json::from_slice::<Role>(role.raw()) {
                Ok(parsed) => {
                    drop(rules.insert((role.meta.namespace.clone(), role.meta.name.clone()), parsed.rules.into()))
                }
                Err(error) => tracing::warn!(role = %role.meta.key(), %error, "role cannot be read"),
            }
        }
        let mut grants: HashMap<String, Vec<Grant>> = HashMap::new();
        for object in cluster_bindings.iter().chain(&bindings) {
            let Ok(binding) = serde_json::from_slice::<Binding>(object.raw()) else { continue };
            let scope = (!object.meta.namespace.is_empty()).then(|| Arc::<str>::from(&*object.meta.namespace));
            let role_namespace: Box<str> =
                if binding.role_ref.kind == "Role" { object.meta.namespace.clone() } else { Box::default() };
            let Some(found) = rules.get(&(role_namespace, binding.role_ref.name.as_str().into())) else { continue };
            let kind = if scope.is_some() { "RoleBinding" } else { "ClusterRoleBinding" };
            let why: Arc<str> = format!(
                "RBAC: allowed by {kind} {:?} of {} {:?}",
                object.meta.key(),
                binding.role_ref.kind,
                binding.role_ref.name
            )
            .into();
            for subject in binding.subjects {
                let key = match &*subject.kind {
                    "User" => format!("u:{}", subject.name),
                    "Group" => format!("g:{}", subject.name),
                    "ServiceAccount" => {
                        let ns =
                            if subject.namespace.is_empty() { &*object.meta.namespace } else { &subject.namespace };
                        format!("u:system:serviceaccount:{ns}:{}", subject.name)
                    }
                    _ => continue,
                };
                let grant = Grant { namespace: scope.clone(), rules: found.clone(), why: why.clone() };
                grants.entry(key).or_default().push(grant);
            }
        }
        let index = Arc::new(Index { built_at: now, grants });
        *self.index.write().unwrap_or_else(std::sync::PoisonError::into_inner) = index.clone();
        index
    }

    pub fn decide(&self, server: &ApiServer, user: &User, a: &Attributes<'_>) -> Decision {
        let index = self.index(server);
        let keys = std::iter::once(format!("u:{}", user.name)).chain(user.groups.iter().map(|g| format!("g:{g}")));
        for grant in keys.filter_map(|key| index.grants.get(&key)).flatten() {
            let in_scope = grant.namespace.as_deref().is_none_or(|ns| ns == a.namespace && a.path.is_none());
            if in_scope && grant.rules.iter().any(|rule| rule.allows(a)) {
                return Decision::Allow(grant.why.to_string());
            }
        }
        Decision::NoOpinion(String::new())
    }

    /// All rules a user has in a namespace: `(rule, whether cluster-wide)`.
    pub fn rules_of(&self, server: &ApiServer, user: &User, namespace: &str) -> Vec<Rule> {
        let index = self.index(server);
        let keys = std::iter::once(format!("u:{}", user.name)).chain(user.groups.iter().map(|g| format!("g:{g}")));
        let grants = keys.filter_map(|key| index.grants.get(&key)).flatten();
        grants
            .filter(|g| g.namespace.as_deref().is_none_or(|ns| ns == namespace))
            .flat_map(|g| g.rules.iter().cloned())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        let rule = |verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]| Rule {
            verbs: verbs.iter().map(ToString::to_string).collect(),
            api_groups: groups.iter().map(ToString::to_string).collect(),
            resources: resources.iter().map(ToString::to_string).collect(),
            resource_names: names.iter().map(ToString::to_string).collect(),
            non_resource_urls: vec![],
        };
        let ask = |verb, group, resource, subresource, name| Attributes {
            verb,
            group,
            version: "v1",
            resource,
            subresource,
            namespace: "n",
            name,
            ..Attributes::default()
        };
        for (rule, ask, expect) in [
            (rule(&["get"], &[""], &["pods"], &[]), ask("get", "", "pods", "", "a"), true),
            (rule(&["get"], &[""], &["pods"], &[]), ask("get", "", "pods", "log", "a"), false),
            (rule(&["get"], &[""], &["pods/log"], &[]), ask("get", "", "pods", "log", "a"), true),
            (rule(&["get"], &[""], &["*/scale"], &[]), ask("get", "", "x", "scale", "a"), true),
            (rule(&["*"], &["*"], &["*"], &[]), ask("bind", "g", "x", "y", "a"), true),
            (rule(&["get"], &["apps"], &["*"], &[]), ask("get", "", "pods", "", "a"), false),
            (rule(&["get"], &[""], &["pods"], &["b"]), ask("get", "", "pods", "", "a"), false),
        ] {
            assert_eq!(rule.allows(&ask), expect, "{rule:?} {ask:?}");
        }
        let urls = Rule {
            verbs: vec!["get".into()],
            non_resource_urls: vec!["/healthz".into(), "/api/*".into()],
            ..Rule::default()
        };
        assert!(urls.allows(&Attributes::path("get", "/healthz")));
        assert!(urls.allows(&Attributes::path("get", "/api/v1")));
        assert!(!urls.allows(&Attributes::path("get", "/metrics")));
    }
}
