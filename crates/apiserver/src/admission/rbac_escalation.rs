//! Nobody grants what they do not have: roles and bindings are held to their author's own rules.
//!
//! The verbs `escalate` (roles) and `bind` (bindings) lift this, and `system:masters` is above it. Follows
//! `pkg/registry/rbac`, where upstream does the same inside the storage of these kinds.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use meta::{Status, Value};

use super::{Attributes, Operation, Plugin, Write};
use crate::authn::MASTERS;
use crate::authz::rbac::{GROUP, Rule};
use crate::authz::{self, Decision};
use crate::server::ApiServer;

pub struct RbacEscalation;

#[async_trait]
impl Plugin for RbacEscalation {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.target.group() == GROUP && matches!(a.operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, write: &Write<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Write { server, a, old } = *write;
        let Some(object) = object else { return Ok(()) };
        if a.target.caller.user.in_group(MASTERS)
            || old.is_some_and(|old| without_collection(old) == without_collection(object))
        {
            return Ok(());
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let plural = a.target.plural();
        let rules = match plural {
            "roles" | "clusterroles" => {
                if may(server, a, "escalate", plural, name) {
                    return Ok(());
                }
                rules_of(object)
            }
            "rolebindings" | "clusterrolebindings" => {
                let role = &object["roleRef"];
                let named = role["name"].as_str().unwrap_or_default();
                let (plural, namespace) =
                    if role["kind"] == "Role" { ("roles", &*a.target.request.namespace) } else { ("clusterroles", "") };
                if may(server, a, "bind", plural, named) {
                    return Ok(());
                }
                let found = server
                    .lookup(GROUP, plural, namespace, named)
                    .ok_or_else(|| Status::not_found(GROUP, plural, named))?;
                rules_of(&found.value().map_err(Status::internal)?)
            }
            _ => return Ok(()),
        };
        let user = &a.target.caller.user;
        let own = server.rbac().rules_of(server, user, &a.target.request.namespace);
        let missing = uncovered(&own, &rules);
        if !missing.is_empty() {
            let groups = quoted(&user.groups);
            return Err(a.forbid(
                name,
                format!(
                    "user {:?} (groups={groups}) is attempting to grant RBAC permissions not currently held:\n{}",
                    user.name,
                    describe(&missing)
                ),
            ));
        }
        let aggregates = |role: &Value| {
            role["aggregationRule"]["clusterRoleSelectors"].as_array().is_some_and(|list| !list.is_empty())
        };
        if plural == "clusterroles"
            && (aggregates(object) || old.is_some_and(aggregates))
            && !uncovered(&own, &everything()).is_empty()
        {
            return Err(a.forbid(name, "must have cluster-admin privileges to use the aggregationRule"));
        }
        Ok(())
    }
}

/// An object without what the garbage collector changes.
fn without_collection(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["finalizers", "ownerReferences", "managedFields", "resourceVersion"] {
            metadata.remove(field);
        }
    }
    object
}

fn may(server: &ApiServer, a: &Attributes<'_>, verb: &str, resource: &str, name: &str) -> bool {
    let attributes = authz::Attributes {
        verb,
        group: GROUP,
        version: "v1",
        resource,
        namespace: &a.target.request.namespace,
        name,
        ..Default::default()
    };
    matches!(authz::decide(server, &a.target.caller.user, &attributes), Decision::Allow(_))
}

fn rules_of(role: &Value) -> Vec<Rule> {
    let each = role["rules"].as_array().into_iter().flatten();
    // A rule's null lists are as good as none.
    each.filter_map(|rule| {
        let mut rule = rule.clone();
        if let Some(map) = rule.as_object_mut() {
            map.retain(|_, value| !value.is_null());
        }
        serde_json::from_value(rule).ok()
    })
    .collect()
}

fn everything() -> Vec<Rule> {
    let all = || vec!["*".to_string()];
    let resources = Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() };
    vec![resources, Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() }]
}

/// The smallest parts of rules that no rule of the owner covers.
fn uncovered(own: &[Rule], rules: &[Rule]) -> Vec<Rule> {
    let mut parts = Vec::new();
    let one = |item: &String| vec![item.clone()];
    for rule in rules {
        for verb in &rule.verbs {
            for group in &rule.api_groups {
                for resource in &rule.resources {
                    let part = |names: Vec<String>| Rule {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        resource_names: names,
                        ..Rule::default()
                    };
                    match &rule.resource_names[..] {
                        [] => parts.push(part(Vec::new())),
                        names => parts.extend(names.iter().map(|name| part(one(name)))),
                    }
                }
            }
            parts.extend(rule.non_resource_urls.iter().map(|url| Rule {
                verbs: one(verb),
                non_resource_urls: one(url),
                ..Rule::default()
            }));
        }
    }
    parts.retain(|part| !own.iter().any(|rule| covers(rule, part)));
    parts
}

fn covers(own: &Rule, part: &Rule) -> bool {
    let has = |list: &[String], item: &str| list.iter().any(|x| x == "*" || x == item);
    if !part.verbs.iter().all(|verb| has(&own.verbs, verb)) {
        return false;
    }
    if let [url] = &part.non_resource_urls[..] {
        return own
            .non_resource_urls
            .iter()
            .any(|o| o == url || o.strip_suffix('*').is_some_and(|prefix| url.starts_with(prefix)));
    }
    let resource = part.resources.iter().all(|resource| {
        let below = resource
            .split_once('/')
            .is_some_and(|(_, sub)| own.resources.iter().any(|o| o.strip_prefix("*/") == Some(sub)));
        has(&own.resources, resource) || below
    });
    let named = own.resource_names.is_empty()
        || (!part.resource_names.is_empty() && part.resource_names.iter().all(|n| own.resource_names.contains(n)));
    resource && named && part.api_groups.iter().all(|group| has(&own.api_groups, group))
}

fn quoted(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(" "))
}

/// One line a group and resource, their verbs together.
fn describe(missing: &[Rule]) -> String {
    let mut merged: BTreeMap<[String; 4], Vec<String>> = BTreeMap::new();
    for rule in missing {
        let parts = [&rule.api_groups, &rule.resources, &rule.non_resource_urls, &rule.resource_names];
        let verbs =
            merged.entry(parts.map(|list| if list.is_empty() { String::new() } else { quoted(list) })).or_default();
        for verb in &rule.verbs {
            if !verbs.contains(verb) {
                verbs.push(verb.clone());
            }
        }
    }
    let lines: BTreeSet<String> = merged
        .into_iter()
        .map(|(parts, verbs)| {
            let names = ["APIGroups", "Resources", "NonResourceURLs", "ResourceNames"];
            let mut said: Vec<String> = names
                .iter()
                .zip(&parts)
                .filter(|(_, part)| !part.is_empty())
                .map(|(name, part)| format!("{name}:{part}"))
                .collect();
            said.push(format!("Verbs:{}", quoted(&verbs)));
            format!("{{{}}}", said.join(", "))
        })
        .collect();
    lines.into_iter().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage() {
        let rule = |text: &str| {
            let words: Vec<Vec<String>> =
                text.split(' ').map(|w| w.split(',').filter(|w| *w != "-").map(String::from).collect()).collect();
            Rule {
                verbs: words[0].clone(),
                api_groups: words[1].clone(),
                resources: words[2].clone(),
                resource_names: words.get(3).cloned().unwrap_or_default(),
                ..Rule::default()
            }
        };
        for (own, asked, expect) in [
            ("get,list apps deployments", "get apps deployments", ""),
            ("* * *", "get apps deployments", ""),
            (
                "get apps deployments",
                "get,list,watch apps deployments",
                "{APIGroups:[\"apps\"], Resources:[\"deployments\"], Verbs:[\"list\" \"watch\"]}",
            ),
            ("get apps */scale", "get apps deployments/scale", ""),
            ("get apps deployments x", "get apps deployments x", ""),
            (
                "get apps deployments x",
                "get apps deployments",
                "{APIGroups:[\"apps\"], Resources:[\"deployments\"], Verbs:[\"get\"]}",
            ),
            (
                "get apps deployments",
                "get * deployments y",
                "{APIGroups:[\"*\"], Resources:[\"deployments\"], ResourceNames:[\"y\"], Verbs:[\"get\"]}",
            ),
        ] {
            assert_eq!(describe(&uncovered(&[rule(own)], &[rule(asked)])), expect, "{own} | {asked}");
        }
    }
}
