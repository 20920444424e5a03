//! PodTopologyLabels: a pod that is created on a node says in which zone and region it is. Those bound later hear it with
//! their binding.

use async_trait::async_trait;
use meta::{Status, Value};
use serde_json::json;

use super::{Attributes, Plugin, Write};
use crate::server::ApiServer;

/// Labels a pod takes over from its node.
pub const TOPOLOGY: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

pub struct PodTopologyLabels;

#[async_trait]
impl Plugin for PodTopologyLabels {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.creates("", "pods")
    }

    async fn mutate(&self, write: &Write<'_>, pod: &mut Value) -> Result<(), Status> {
        let Write { server, .. } = *write;
        let Some(name) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) else { return Ok(()) };
        let Some(node) = server.lookup("", "nodes", "", name) else { return Ok(()) };
        for (key, value) in TOPOLOGY.iter().filter_map(|key| Some((*key, node.meta.label(key)?))) {
            let Some(metadata) = pod["metadata"].as_object_mut() else { return Ok(()) };
            let labels = metadata.entry("labels").or_insert_with(|| json!({}));
            if let Some(labels) = labels.as_object_mut() {
                labels.insert(key.into(), value.into());
            }
        }
        Ok(())
    }
}
