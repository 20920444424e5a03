//! Discovery: which groups, versions and resources there are, in the legacy and the aggregated form.
//!
//! Derived from the catalog, and for groups of extension servers from what these publish.

use std::collections::BTreeMap;

use base64::Engine;
use resources::{Resource, Verbs};
use serde_json::{Value, json};

use crate::aggregation::Services;
use crate::catalog::Catalog;

pub fn verbs(resource: &Resource) -> &'static [&'static str] {
    match resource.verbs {
        Verbs::All => &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        Verbs::NoDeleteCollection => &["create", "delete", "get", "list", "patch", "update", "watch"],
        Verbs::CreateOnly => &["create"],
        Verbs::ReadOnly => &["get", "list"],
    }
}

/// General since this release: upstream stores them so that the release before can read them, and the hash says it.
const STORED_AS_BEFORE: [(&str, &str); 4] = [
    ("ClusterTrustBundle", "v1beta1"),
    ("DeviceTaintRule", "v1beta2"),
    ("PodCertificateRequest", "v1beta1"),
    ("StorageVersionMigration", "v1beta1"),
];

/// The hash clients compare to learn whether two resources are stored alike: the first 8 bytes of a SHA-256 in base64.
fn storage_version_hash(resource: &Resource) -> Option<String> {
    if resource.prefix.is_empty() {
        return None;
    }
    let before = STORED_AS_BEFORE.iter().find(|(kind, _)| *kind == &*resource.kind && !resource.custom);
    let version = before.map_or(&*resource.storage_version().name, |(_, version)| version);
    let text = format!("{}/{version}/{}", resource.group, resource.kind);
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    Some(base64::engine::general_purpose::STANDARD.encode(&digest.as_ref()[..8]))
}

/// Kubernetes version order: `v2 > v1 > v2beta1 > v1beta2 > v1alpha1`, anything else last.
pub fn version_priority(version: &str) -> (u8, u64, u64) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = rest[..digits].parse().ok()?;
        let (stability, minor) = match &rest[digits..] {
            "" => (3, 0),
            beta if beta.starts_with("beta") => (2, beta[4..].parse().ok()?),
            alpha if alpha.starts_with("alpha") => (1, alpha[5..].parse().ok()?),
            _ => return None,
        };
        Some((stability, major, minor))
    };
    parse().unwrap_or((0, 0, 0))
}

fn group_value(name: &str, versions: &[String]) -> Value {
    let list: Vec<Value> =
        versions.iter().map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v})).collect();
    json!({"name": name, "versions": list, "preferredVersion": list[0]})
}

/// `/apis`.
pub fn group_list(catalog: &Catalog, services: &Services) -> Value {
    let groups: Vec<Value> =
        services.groups(catalog).iter().filter(|(g, _)| !g.is_empty()).map(|(g, v)| group_value(g, v)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`.
pub fn group(catalog: &Catalog, services: &Services, name: &str) -> Option<Value> {
    let (_, versions) = services.groups(catalog).into_iter().find(|(g, _)| g == name && !g.is_empty())?;
    let mut value = group_value(name, &versions);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Some(value)
}

/// `/api`.
pub fn core_versions(server_address: &str) -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}]})
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub fn resource_list(catalog: &Catalog, group: &str, version: &str) -> Option<Value> {
    let mut out = Vec::new();
    let mut found = false;
    for served in catalog.kinds() {
        let r = &served.resource;
        if &*r.group != group || !r.version(version).is_some_and(|v| v.served) {
            continue;
        }
        found = true;
        let mut entry = json!({
            "name": &*r.plural, "singularName": &*r.singular, "namespaced": r.namespaced, "kind": &*r.kind, "verbs": verbs(r),
        });
        if !r.short_names.is_empty() {
            entry["shortNames"] = json!(r.short_names);
        }
        if !r.categories.is_empty() {
            entry["categories"] = json!(r.categories);
        }
        if let Some(hash) = storage_version_hash(r) {
            entry["storageVersionHash"] = hash.into();
        }
        out.push(entry);
        for sub in &r.subresources {
            let body = r.body(sub, version);
            let mut entry = json!({
                "name": format!("{}/{}", r.plural, sub.name), "singularName": "", "namespaced": r.namespaced, "kind": &*body.kind, "verbs": sub.verbs,
            });
            if &*body.group != group || &*body.version != version {
                entry["group"] = (&*body.group).into();
                entry["version"] = (&*body.version).into();
            }
            out.push(entry);
        }
    }
    let gv = meta::GroupVersion::new(group, version).to_string();
    found.then(|| json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": gv, "resources": out}))
}

/// The aggregated form of `/api` (`core`) or `/apis`, as `apidiscovery.k8s.io/v2`.
pub fn aggregated(catalog: &Catalog, services: &Services, core: bool) -> Value {
    let items: Vec<Value> = services
        .groups(catalog)
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|v| match services.remote(&group, v) {
                    Some(remote) => remote.documents.discovery(v),
                    None => aggregated_version(catalog, &group, v),
                })
                .collect();
            let metadata = if core {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": group, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_version(catalog: &Catalog, group: &str, version: &str) -> Value {
    let mut out: BTreeMap<String, Value> = BTreeMap::new();
    for served in catalog.kinds() {
        let r = &served.resource;
        if &*r.group != group || !r.version(version).is_some_and(|v| v.served) {
            continue;
        }
        let kind = |g: &str, v: &str, k: &str| json!({"group": g, "version": v, "kind": k});
        let mut entry = json!({
            "resource": &*r.plural, "responseKind": kind(group, version, &r.kind), "scope": if r.namespaced { "Namespaced" } else { "Cluster" },
            "singularResource": &*r.singular, "verbs": verbs(r),
        });
        if !r.short_names.is_empty() {
            entry["shortNames"] = json!(r.short_names);
        }
        if !r.categories.is_empty() {
            entry["categories"] = json!(r.categories);
        }
        let subs: Vec<Value> = r
            .subresources
            .iter()
            .map(|sub| {
                let body = r.body(sub, version);
                json!({"subresource": &*sub.name, "responseKind": kind(&body.group, &body.version, &body.kind), "verbs": sub.verbs})
            })
            .collect();
        if !subs.is_empty() {
            entry["subresources"] = subs.into();
        }
        out.insert(r.plural.to_string(), entry);
    }
    let resources: Vec<Value> = out.into_values().collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions_in_order() {
        let mut versions = vec!["v1beta1", "foo", "v1", "v11alpha2", "v2", "v10", "v3beta1", "v1beta12"];
        versions.sort_by_key(|v| std::cmp::Reverse(super::version_priority(v)));
        assert_eq!(versions, ["v10", "v2", "v1", "v3beta1", "v1beta12", "v1beta1", "v11alpha2", "foo"]);
    }
}
