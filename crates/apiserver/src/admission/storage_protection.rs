//! StorageObjectInUseProtection and PodGroupProtection: claims, volumes and groups of pods carry the finalizer that their
//! protection controllers take off.

use async_trait::async_trait;
use meta::{Status, Value};
use serde_json::json;

use super::{Attributes, Plugin};
use crate::server::ApiServer;

pub struct StorageProtection;

#[async_trait]
impl Plugin for StorageProtection {
    async fn mutate(
        &self,
        _server: &ApiServer,
        a: &Attributes<'_>,
        object: &mut Value,
        _old: Option<&Value>,
    ) -> Result<(), Status> {
        let finalizer = if a.creates("", "persistentvolumeclaims") {
            "kubernetes.io/pvc-protection"
        } else if a.creates("", "persistentvolumes") {
            "kubernetes.io/pv-protection"
        } else if a.creates("scheduling.k8s.io", "podgroups") {
            "scheduling.k8s.io/podgroup-protection"
        } else {
            return Ok(());
        };
        let Some(metadata) = object["metadata"].as_object_mut() else { return Ok(()) };
        let finalizers = metadata.entry("finalizers").or_insert_with(|| json!([]));
        if let Some(list) = finalizers.as_array_mut()
            && !list.iter().any(|f| f == finalizer)
        {
            list.push(finalizer.into());
        }
        Ok(())
    }
}
