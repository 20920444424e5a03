//! Scales: what anything has of replicas and should have, whatever its kind.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use client::{Client, Gvr};
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use meta::{Object, Status};

/// The target as it stands.
pub struct Scale {
    pub resource: Gvr,
    pub object: Arc<Object>,
    /// What it should have.
    pub replicas: i64,
    /// What it has.
    pub running: i64,
    pub selector: String,
}

/// Resources by API version and kind, as discovery last said.
pub type Kinds = Mutex<HashMap<(String, String), Gvr>>;

/// The resource of a kind; a kind that is not known yet is looked for anew.
pub async fn kind_of(client: &Client, kinds: &Kinds, target: &CrossVersionObjectReference) -> Result<Gvr, Status> {
    let version = target.api_version.clone().unwrap_or_else(|| "v1".into());
    let key = (version.clone(), target.kind.clone());
    let known = |kinds: &Kinds| kinds.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
    if let Some(gvr) = known(kinds) {
        return Ok(gvr);
    }
    let found = client.discover().await?;
    {
        let mut kinds = kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.clear();
        for api in found.resources {
            let group = &api.resource.group;
            let version = &api.resource.version;
            let version = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
            kinds.entry((version, api.kind)).or_insert(api.resource);
        }
    }
    known(kinds).ok_or_else(|| {
        Status::new(meta::Reason::NotFound, format!("no matches for kind {:?} in version {version:?}", target.kind))
    })
}

/// An object's scale.
pub async fn scale_of(
    client: &Client,
    kinds: &Kinds,
    namespace: &str,
    target: &CrossVersionObjectReference,
) -> Result<Scale, Status> {
    let resource = kind_of(client, kinds, target).await?;
    let object = client.dynamic(resource.clone()).namespaced(namespace).get_subresource(&target.name, "scale").await?;
    let body = object.value().map_err(Status::internal)?;
    Ok(Scale {
        resource,
        replicas: body["spec"]["replicas"].as_i64().unwrap_or(0),
        running: body["status"]["replicas"].as_i64().unwrap_or(0),
        selector: body["status"]["selector"].as_str().unwrap_or_default().into(),
        object,
    })
}
