//! StorageObjectInUseProtection and PodGroupProtection: claims, volumes and groups of pods carry the finalizer that their
//! protection controllers take off.

use async_trait::async_trait;
use meta::{Status, Value};
use serde_json::json;

use super::{Attributes, Plugin, Write};
use crate::server::ApiServer;

pub struct StorageProtection;

/// The finalizer that guards what is created.
fn finalizer(a: &Attributes<'_>) -> Option<&'static str> {
    let guarded = [
        ("", "persistentvolumeclaims", "kubernetes.io/pvc-protection"),
        ("", "persistentvolumes", "kubernetes.io/pv-protection"),
        ("scheduling.k8s.io", "podgroups", "scheduling.k8s.io/podgroup-protection"),
    ];
    guarded.iter().find(|(group, plural, _)| a.creates(group, plural)).map(|(_, _, finalizer)| *finalizer)
}

#[async_trait]
impl Plugin for StorageProtection {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        finalizer(a).is_some()
    }

    async fn mutate(&self, write: &Write<'_>, object: &mut Value) -> Result<(), Status> {
        let Write { a, .. } = *write;
        let Some(finalizer) = finalizer(a) else { return Ok(()) };
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
