//! What a cluster has from its first second: system namespaces, default roles and bindings, priority classes, flow
//! schemas, the `kubernetes` Service and its endpoint.
//!
//! Objects that exist are left alone, except default roles, which gain what they lack (upstream's auto-reconciliation), the
//! default range of cluster IPs, which gains a second family, and the endpoint, which follows the server's address.

mod controllers;
pub(crate) mod policy;

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use meta::{Gvr, Request, Status, Value, Verb};
use serde_json::json;

use crate::admission::service_families;
use crate::authn::{MASTERS, User, legacy_token};
use crate::pipeline::Caller;
use crate::server::ApiServer;

/// Writes under way at once: they share the store's syncs.
const PARALLEL: usize = 64;
const RBAC: &str = "rbac.authorization.k8s.io";

/// The server's own identity, for what it does by itself.
pub fn loopback() -> Caller {
    Caller::new(Arc::new(User::new("system:apiserver", &[MASTERS])), "nauplius-apiserver")
}

/// Makes sure everything is there.
pub async fn run(server: &Arc<ApiServer>) -> Result<(), Status> {
    let namespaces = ["kube-system", "kube-public", "kube-node-lease", "default"];
    create_all(
        server,
        namespaces.iter().map(|name| object("", "v1", "namespaces", "", "Namespace", name, json!({}))).collect(),
    )
    .await?;
    let mut objects = policy::cluster_roles();
    objects.extend(crate::flowcontrol::wanted());
    objects.extend(policy::bindings().into_iter().chain(policy::namespaced()).chain(controllers::wanted()));
    for (name, value, description) in [
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ] {
        let body = json!({"value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority"});
        objects.push(object("scheduling.k8s.io", "v1", "priorityclasses", "", "PriorityClass", name, body));
    }
    let tracking = json!({"data": {"since": legacy_token::today()}});
    objects.push(object("", "v1", "configmaps", "kube-system", "ConfigMap", legacy_token::TRACKING, tracking));
    let ranges = &server.config().service_cidrs;
    let Some(address) = ranges.first().and_then(|range| range.hosts().find(|ip| *ip != range.network())) else {
        return Err(Status::internal("no range of cluster IPs"));
    };
    let port = server.config().advertise.port();
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let mut service = object(
        "",
        "v1",
        "services",
        "default",
        "Service",
        "kubernetes",
        json!({"spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        }}),
    );
    service.body["metadata"]["labels"] = labels;
    objects.push(service);
    let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    objects.push(object(
        "networking.k8s.io",
        "v1",
        "servicecidrs",
        "",
        "ServiceCIDR",
        "kubernetes",
        json!({"spec": {"cidrs": ranges}}),
    ));
    create_all(server, objects).await?;
    publish_authentication(server).await?;
    publish_endpoint(server).await
}

/// One object that should exist.
pub(crate) struct Wanted {
    resource: Gvr,
    namespace: String,
    name: String,
    body: Value,
}

pub(crate) fn object(
    group: &str,
    version: &str,
    plural: &str,
    namespace: &str,
    kind: &str,
    name: &str,
    mut body: Value,
) -> Wanted {
    body["kind"] = kind.into();
    body["apiVersion"] = meta::GroupVersion::new(group, version).to_string().into();
    if !body["metadata"].is_object() {
        body["metadata"] = json!({});
    }
    body["metadata"]["name"] = name.into();
    if !namespace.is_empty() {
        body["metadata"]["namespace"] = namespace.into();
    }
    Wanted { resource: Gvr::new(group, version, plural), namespace: namespace.into(), name: name.into(), body }
}

async fn create_all(server: &Arc<ApiServer>, objects: Vec<Wanted>) -> Result<(), Status> {
    futures::stream::iter(objects.into_iter().map(|wanted| ensure(server, wanted)))
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<()>>()
        .await?;
    server.await_newest().await
}

async fn ensure(server: &Arc<ApiServer>, wanted: Wanted) -> Result<(), Status> {
    let Wanted { resource, namespace, name, body } = wanted;
    let found = server.lookup(&resource.group, &resource.resource, &namespace, &name);
    let caller = loopback();
    let request = |verb| Request::new(verb, resource.clone(), &namespace, &name);
    let Some(found) = found else {
        let mut request = request(Verb::Create).json(body);
        request.name = String::new();
        return match server.serve(&caller, request).await {
            Err(status) if !status.is_already_exists() => Err(status),
            _ => Ok(()),
        };
    };
    if &*resource.resource == "servicecidrs" {
        let mut current = found.value().map_err(Status::internal)?;
        if widens(&current["spec"]["cidrs"], &body["spec"]["cidrs"]) {
            current["spec"]["cidrs"] = body["spec"]["cidrs"].clone();
            server.serve(&caller, request(Verb::Update).json(current)).await?;
        }
        return Ok(());
    }
    if &*resource.group != RBAC {
        return Ok(());
    }
    let mut current = found.value().map_err(Status::internal)?;
    if current["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] != "true" {
        return Ok(());
    }
    let mut changed = false;
    for field in ["rules", "subjects"] {
        let wanted = body[field].as_array().cloned().unwrap_or_default();
        // Aggregated roles get their rules from others.
        if wanted.is_empty() {
            continue;
        }
        if !current[field].is_array() {
            current[field] = json!([]);
        }
        if let Some(list) = current[field].as_array_mut() {
            for item in wanted {
                if !list.contains(&item) {
                    list.push(item);
                    changed = true;
                }
            }
        }
    }
    if changed {
        server.serve(&caller, request(Verb::Update).json(current)).await?;
    }
    Ok(())
}

/// From one range of addresses to the same and a second one.
fn widens(now: &Value, wanted: &Value) -> bool {
    match (now.as_array().map(Vec::as_slice), wanted.as_array().map(Vec::as_slice)) {
        (Some([only]), Some([first, _])) => only == first,
        _ => false,
    }
}

/// How extension servers recognize clients, and this server when it speaks for them.
async fn publish_authentication(server: &Arc<ApiServer>) -> Result<(), Status> {
    let Some(front_proxy) = &server.config().front_proxy else { return Ok(()) };
    let list = |names: &[String]| json!(names).to_string();
    let headers = &front_proxy.headers;
    let data = json!({
        "client-ca-file": front_proxy.client_ca,
        "requestheader-client-ca-file": front_proxy.ca,
        "requestheader-allowed-names": json!(front_proxy.allowed_names).to_string(),
        "requestheader-username-headers": list(&headers.username),
        "requestheader-uid-headers": list(&headers.uid),
        "requestheader-group-headers": list(&headers.group),
        "requestheader-extra-headers-prefix": list(&headers.extra_prefix),
    });
    let (namespace, name) = ("kube-system", "extension-apiserver-authentication");
    let found = server.lookup("", "configmaps", namespace, name);
    let Some(mut current) = found.map(|f| f.value()).transpose().map_err(Status::internal)? else {
        return ensure(server, object("", "v1", "configmaps", namespace, "ConfigMap", name, json!({"data": data})))
            .await;
    };
    if current["data"] != data {
        current["data"] = data;
        let request = Request::new(Verb::Update, Gvr::new("", "v1", "configmaps"), namespace, name).json(current);
        server.serve(&loopback(), request).await?;
    }
    Ok(())
}

/// The endpoint behind the `kubernetes` Service.
async fn publish_endpoint(server: &Arc<ApiServer>) -> Result<(), Status> {
    let (ip, port) = (server.config().advertise.ip().to_string(), server.config().advertise.port());
    // Endpoints refuse loopback addresses; a server only reachable from its own machine has no endpoint for pods.
    if server.config().advertise.ip().is_loopback() {
        return Ok(());
    }
    let mut slice = object(
        "discovery.k8s.io",
        "v1",
        "endpointslices",
        "default",
        "EndpointSlice",
        "kubernetes",
        json!({
            "addressType": service_families::family_of(server.config().advertise.ip()),
            "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }),
    );
    slice.body["metadata"]["labels"] = json!({"kubernetes.io/service-name": "kubernetes"});
    let mut endpoints = object(
        "",
        "v1",
        "endpoints",
        "default",
        "Endpoints",
        "kubernetes",
        json!({
            "subsets": [{"addresses": [{"ip": ip}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
        }),
    );
    endpoints.body["metadata"]["labels"] = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    let caller = loopback();
    for wanted in [endpoints, slice] {
        let found = server.lookup(&wanted.resource.group, &wanted.resource.resource, &wanted.namespace, &wanted.name);
        let current = found.map(|f| f.value()).transpose().map_err(Status::internal)?;
        match current {
            None => ensure(server, wanted).await?,
            Some(current) => {
                let same = ["subsets", "endpoints", "ports"].iter().all(|field| current[*field] == wanted.body[*field]);
                if !same {
                    let request =
                        Request::new(Verb::Update, wanted.resource, &wanted.namespace, &wanted.name).json(wanted.body);
                    server.serve(&caller, request).await?;
                }
            }
        }
    }
    Ok(())
}
