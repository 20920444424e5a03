//! LimitPodHardAntiAffinityTopology, off unless asked for: a pod keeps others off its node, and no farther.

use async_trait::async_trait;
use meta::{Status, Value};

use super::{Attributes, Operation, Plugin, Write};
use crate::server::ApiServer;

pub struct LimitPodHardAntiAffinityTopology;

const HOSTNAME: &str = "kubernetes.io/hostname";

#[async_trait]
impl Plugin for LimitPodHardAntiAffinityTopology {
    fn concerns(&self, _server: &ApiServer, a: &Attributes<'_>) -> bool {
        a.is("", "pods") && matches!(a.operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, write: &Write<'_>, pod: Option<&Value>) -> Result<(), Status> {
        let Some(pod) = pod else { return Ok(()) };
        let terms = &pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let keys = terms.as_array().into_iter().flatten().map(|term| term["topologyKey"].as_str().unwrap_or_default());
        match keys.into_iter().find(|key| *key != HOSTNAME) {
            None => Ok(()),
            Some(key) => Err(write.a.forbid(
                pod["metadata"]["name"].as_str().unwrap_or_default(),
                format!("affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key {HOSTNAME} is allowed"),
            )),
        }
    }
}
