//! Discovery: which groups, versions and resources there are, in the legacy and the aggregated form.
//!
//! Derived from the catalog, and for groups of extension servers from what these publish. Fields are in the order of
//! upstream's types: scripts look for them as text.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use resources::{Resource, Verbs};
use serde::Serialize;
use serde_json::Value;

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

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiVersions<'a> {
    kind: &'static str,
    versions: [&'static str; 1],
    #[serde(rename = "serverAddressByClientCIDRs")]
    server_address_by_client_cidrs: [ServerAddress<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServerAddress<'a> {
    #[serde(rename = "clientCIDR")]
    client_cidr: &'static str,
    server_address: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiGroupList {
    kind: &'static str,
    api_version: &'static str,
    groups: Vec<ApiGroup>,
}

/// Kind and version are said where it stands alone.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiGroup {
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<&'static str>,
    name: String,
    versions: Vec<GroupVersionForDiscovery>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preferred_version: Option<GroupVersionForDiscovery>,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct GroupVersionForDiscovery {
    group_version: String,
    version: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiResourceList<'a> {
    kind: &'static str,
    api_version: &'static str,
    group_version: String,
    resources: Vec<ApiResource<'a>>,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct ApiResource<'a> {
    name: String,
    singular_name: &'a str,
    namespaced: bool,
    /// Of the body, where it is another one than the list's.
    #[serde(skip_serializing_if = "String::is_empty")]
    group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    version: String,
    kind: String,
    verbs: &'a [&'static str],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    short_names: &'a [Arc<str>],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    categories: &'a [Arc<str>],
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_version_hash: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiGroupDiscoveryList<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Metadata,
    items: Vec<ApiGroupDiscovery<'a>>,
}

#[derive(Default, Serialize)]
struct Metadata {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
}

#[derive(Serialize)]
struct ApiGroupDiscovery<'a> {
    metadata: Metadata,
    versions: Vec<ApiVersionDiscovery<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ApiVersionDiscovery<'a> {
    /// As the extension server that has it tells it.
    Remote(Value),
    Own {
        version: &'a str,
        resources: Vec<ApiResourceDiscovery<'a>>,
        freshness: &'static str,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ApiResourceDiscovery<'a> {
    resource: &'a str,
    response_kind: GroupVersionKind,
    scope: &'static str,
    singular_resource: &'a str,
    verbs: &'a [&'static str],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    short_names: &'a [Arc<str>],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    categories: &'a [Arc<str>],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subresources: Vec<ApiSubresourceDiscovery<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ApiSubresourceDiscovery<'a> {
    subresource: &'a str,
    response_kind: GroupVersionKind,
    verbs: &'a [&'static str],
}

#[derive(Serialize)]
struct GroupVersionKind {
    group: String,
    version: String,
    kind: String,
}

impl From<&meta::Gvk> for GroupVersionKind {
    fn from(gvk: &meta::Gvk) -> Self {
        Self { group: gvk.group.to_string(), version: gvk.version.to_string(), kind: gvk.kind.to_string() }
    }
}

fn group_of(name: &str, versions: &[String]) -> ApiGroup {
    let versions: Vec<_> = versions
        .iter()
        .map(|v| GroupVersionForDiscovery { group_version: format!("{name}/{v}"), version: v.clone() })
        .collect();
    let preferred_version = versions.first().cloned();
    ApiGroup { kind: None, api_version: None, name: name.into(), versions, preferred_version }
}

/// `/apis`.
pub fn group_list(catalog: &Catalog, services: &Services) -> ApiGroupList {
    let groups = services.groups(catalog).iter().filter(|(g, _)| !g.is_empty()).map(|(g, v)| group_of(g, v)).collect();
    ApiGroupList { kind: "APIGroupList", api_version: "v1", groups }
}

/// `/apis/GROUP`.
pub fn group(catalog: &Catalog, services: &Services, name: &str) -> Option<ApiGroup> {
    let (_, versions) = services.groups(catalog).into_iter().find(|(g, _)| g == name && !g.is_empty())?;
    Some(ApiGroup { kind: Some("APIGroup"), api_version: Some("v1"), ..group_of(name, &versions) })
}

/// `/api`.
pub fn core_versions(server_address: &str) -> ApiVersions<'_> {
    let address = ServerAddress { client_cidr: "0.0.0.0/0", server_address };
    ApiVersions { kind: "APIVersions", versions: ["v1"], server_address_by_client_cidrs: [address] }
}

/// The resources of a served version, as they are told of.
fn served<'a>(catalog: &'a Catalog, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Resource> {
    let resources = catalog.kinds().iter().map(|served| &served.resource);
    resources.filter(move |r| &*r.group == group && r.version(version).is_some_and(|v| v.served))
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub fn resource_list<'a>(catalog: &'a Catalog, group: &'a str, version: &'a str) -> Option<ApiResourceList<'a>> {
    let mut resources = Vec::new();
    for r in served(catalog, group, version) {
        resources.push(ApiResource {
            name: r.plural.to_string(),
            singular_name: &r.singular,
            namespaced: r.namespaced,
            kind: r.kind.to_string(),
            verbs: verbs(r),
            short_names: &r.short_names,
            categories: &r.categories,
            storage_version_hash: storage_version_hash(r),
            ..ApiResource::default()
        });
        for sub in &r.subresources {
            let body = r.body(sub, version);
            let other = &*body.group != group || &*body.version != version;
            let said = |text: &str| if other { text.to_string() } else { String::new() };
            resources.push(ApiResource {
                name: format!("{}/{}", r.plural, sub.name),
                namespaced: r.namespaced,
                group: said(&body.group),
                version: said(&body.version),
                kind: body.kind.to_string(),
                verbs: sub.verbs,
                ..ApiResource::default()
            });
        }
    }
    let group_version = meta::GroupVersion::new(group, version).to_string();
    let list = ApiResourceList { kind: "APIResourceList", api_version: "v1", group_version, resources };
    Some(list).filter(|list| !list.resources.is_empty())
}

/// The aggregated form of `/api` (`core`) or `/apis`, as `apidiscovery.k8s.io/v2`, in JSON.
pub fn aggregated(catalog: &Catalog, services: &Services, core: bool) -> Result<Vec<u8>, serde_json::Error> {
    let groups = services.groups(catalog);
    let items = groups.iter().filter(|(group, _)| group.is_empty() == core).map(|(group, versions)| {
        let version = |v| match services.remote(group, v) {
            Some(remote) => ApiVersionDiscovery::Remote(remote.documents.discovery(v)),
            None => aggregated_version(catalog, group, v),
        };
        ApiGroupDiscovery {
            metadata: Metadata { name: group.clone() },
            versions: versions.iter().map(|v| version(v)).collect(),
        }
    });
    serde_json::to_vec(&ApiGroupDiscoveryList {
        kind: "APIGroupDiscoveryList",
        api_version: "apidiscovery.k8s.io/v2",
        metadata: Metadata::default(),
        items: items.collect(),
    })
}

fn aggregated_version<'a>(catalog: &'a Catalog, group: &'a str, version: &'a str) -> ApiVersionDiscovery<'a> {
    let mut out: BTreeMap<&str, ApiResourceDiscovery<'a>> = BTreeMap::new();
    for r in served(catalog, group, version) {
        let subresources = r.subresources.iter().map(|sub| ApiSubresourceDiscovery {
            subresource: &sub.name,
            response_kind: (&r.body(sub, version)).into(),
            verbs: sub.verbs,
        });
        let entry = ApiResourceDiscovery {
            resource: &r.plural,
            response_kind: (&meta::Gvk::new(group, version, &r.kind)).into(),
            scope: if r.namespaced { "Namespaced" } else { "Cluster" },
            singular_resource: &r.singular,
            verbs: verbs(r),
            short_names: &r.short_names,
            categories: &r.categories,
            subresources: subresources.collect(),
        };
        out.insert(&r.plural, entry);
    }
    ApiVersionDiscovery::Own { version, resources: out.into_values().collect(), freshness: "Current" }
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
