//! What `up` tells the API server for its nodes' sake: the Service of the cluster's DNS, and who may read what.
//!
//! Anything that is there already stays as somebody may have changed it.

use std::net::IpAddr;

use anyhow::{Context, Result};
use client::Client;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

/// Where the DNS's Service lies, and the ConfigMap that says of other servers.
pub const DNS_NAMESPACE: &str = "kube-system";
/// The name of both.
pub const DNS_NAME: &str = "kube-dns";

/// The `kube-dns` Service, at the address pods are told.
pub async fn dns_service(admin: &Client, addresses: &[IpAddr]) -> Result<()> {
    let port = |name: &str, protocol: &str, port: u16| ServicePort {
        name: Some(name.into()),
        port: port.into(),
        protocol: Some(protocol.into()),
        ..Default::default()
    };
    let mut service = Service {
        spec: Some(ServiceSpec {
            cluster_ip: addresses.first().map(ToString::to_string),
            cluster_ips: Some(addresses.iter().map(ToString::to_string).collect()),
            ip_family_policy: Some(if addresses.len() > 1 { "RequireDualStack" } else { "SingleStack" }.into()),
            ports: Some(vec![
                port("dns", "UDP", 53),
                port("dns-tcp", "TCP", 53),
                port("metrics", "TCP", dns::METRICS_PORT),
            ]),
            ..Default::default()
        }),
        ..Default::default()
    };
    service.metadata.name = Some(DNS_NAME.into());
    service.metadata.namespace = Some(DNS_NAMESPACE.into());
    service.metadata.labels =
        Some([("k8s-app", DNS_NAME), ("kubernetes.io/name", "CoreDNS")].map(|(k, v)| (k.into(), v.into())).into());
    let services = admin.api::<Service>().namespaced(DNS_NAMESPACE);
    match services.create(&service).await {
        Ok(_) => return Ok(()),
        Err(status) if !status.is_already_exists() => return Err(status).context("Service kube-dns"),
        Err(_) => {}
    }
    // A cluster that got a second address family since it was made, or lost it; or was made when there were fewer ports.
    let known = services.get(DNS_NAME).await.context("Service kube-dns")?.spec.clone().unwrap_or_default();
    let wanted = service.spec.unwrap_or_default();
    let (now, ips) = (known.cluster_ips.unwrap_or_default(), wanted.cluster_ips.unwrap_or_default());
    let mut patch = json!({"spec": {}});
    if now.len() != ips.len() && now.first() == ips.first() {
        patch["spec"] = json!({"ipFamilyPolicy": wanted.ip_family_policy, "clusterIPs": ips, "ipFamilies": null});
    }
    if known.ports.map_or(0, |ports| ports.len()) < wanted.ports.as_ref().map_or(0, Vec::len) {
        patch["spec"]["ports"] = json!(wanted.ports);
    }
    if patch["spec"] != json!({})
        && let Err(status) = services.patch(DNS_NAME, client::Patch::Merge(patch)).await
    {
        tracing::warn!("Service kube-dns stays as it is: {status}");
    }
    Ok(())
}

/// What the proxy and the DNS server may read beyond upstream's roles for them: what NetworkPolicies are made of, what names
/// are made of (upstream's role is its service account's, ours is a user), and the one ConfigMap that names other servers.
pub async fn roles(admin: &Client) -> Result<()> {
    const POLICIES: &str = "nauplius:network-policies";
    const DNS: &str = "nauplius:dns";
    let rule = |group: &str, resources: &[&str]| PolicyRule {
        api_groups: Some(vec![group.into()]),
        resources: Some(resources.iter().map(|resource| (*resource).into()).collect()),
        verbs: vec!["list".into(), "watch".into()],
        ..Default::default()
    };
    let reference = |kind: &str, name: &str| RoleRef {
        api_group: Some("rbac.authorization.k8s.io".into()),
        kind: kind.into(),
        name: name.into(),
    };
    let user = |name: &str| {
        Some(vec![Subject {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "User".into(),
            name: name.into(),
            namespace: None,
        }])
    };
    let named = |name: &str, namespace: Option<&str>| ObjectMeta {
        name: Some(name.into()),
        namespace: namespace.map(Into::into),
        ..Default::default()
    };
    let policies = ClusterRole {
        metadata: named(POLICIES, None),
        rules: Some(vec![rule("networking.k8s.io", &["networkpolicies"]), rule("", &["pods", "namespaces"])]),
        ..Default::default()
    };
    let proxies = ClusterRoleBinding {
        metadata: named(POLICIES, None),
        role_ref: reference("ClusterRole", POLICIES),
        subjects: user("system:kube-proxy"),
    };
    let names = ClusterRole {
        metadata: named(DNS, None),
        rules: Some(vec![rule("", &["services", "namespaces"]), rule("discovery.k8s.io", &["endpointslices"])]),
        ..Default::default()
    };
    let answering = ClusterRoleBinding {
        metadata: named(DNS, None),
        role_ref: reference("ClusterRole", DNS),
        subjects: user("system:kube-dns"),
    };
    let settings = Role {
        metadata: named(DNS, Some(DNS_NAMESPACE)),
        rules: Some(vec![PolicyRule { resource_names: Some(vec![DNS_NAME.into()]), ..rule("", &["configmaps"]) }]),
    };
    let servers = RoleBinding {
        metadata: named(DNS, Some(DNS_NAMESPACE)),
        role_ref: reference("Role", DNS),
        subjects: user("system:kube-dns"),
    };
    for (name, made) in [
        (POLICIES, admin.api::<ClusterRole>().create(&policies).await.map(drop)),
        (POLICIES, admin.api::<ClusterRoleBinding>().create(&proxies).await.map(drop)),
        (DNS, admin.api::<ClusterRole>().create(&names).await.map(drop)),
        (DNS, admin.api::<ClusterRoleBinding>().create(&answering).await.map(drop)),
        (DNS, admin.api::<Role>().namespaced(DNS_NAMESPACE).create(&settings).await.map(drop)),
        (DNS, admin.api::<RoleBinding>().namespaced(DNS_NAMESPACE).create(&servers).await.map(drop)),
    ] {
        match made {
            Err(status) if !status.is_already_exists() => return Err(status).context(name),
            _ => {}
        }
    }
    Ok(())
}
