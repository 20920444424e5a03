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

/// Resources by group and kind, as discovery last said.
pub type Kinds = Mutex<HashMap<(String, String), Gvr>>;

/// The resource of a kind, whatever version it is named in: a scale is the same in all, and versions go. A kind that is not
/// known yet is looked for anew.
pub async fn kind_of(client: &Client, kinds: &Kinds, target: &CrossVersionObjectReference) -> Result<Gvr, Status> {
    let group = target.api_version.as_deref().and_then(|v| v.split_once('/')).map_or("", |(group, _)| group);
    let key = (group.to_string(), target.kind.clone());
    let known = |kinds: &Kinds| kinds.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
    if let Some(gvr) = known(kinds) {
        return Ok(gvr);
    }
    let found = client.discover().await?;
    {
        let mut kinds = kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.clear();
        let (preferred, others): (Vec<_>, Vec<_>) = found.resources.into_iter().partition(|api| api.preferred);
        for api in preferred.into_iter().chain(others) {
            kinds.entry((api.resource.group.to_string(), api.kind)).or_insert(api.resource);
        }
    }
    known(kinds).ok_or_else(|| {
        Status::new(meta::Reason::NotFound, format!("no matches for kind {:?} in group {group:?}", target.kind))
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
