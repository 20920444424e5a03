//! Looking at one pod in the engine: two lists, and a status for whatever is not known already.
//!
//! A status is asked for again only when its container's state changed: what has ended does not change, and what runs
//! changes by ending.

use std::collections::HashMap;

use super::observed::{Container, Observed, Sandbox, State};
use crate::cri::{CallResult, Engine, v1};
use crate::spec::names;

/// Statuses already known, for one pod.
#[derive(Default)]
pub struct Known {
    containers: HashMap<String, Container>,
    sandboxes: HashMap<String, Sandbox>,
}

impl Known {
    /// What there is now.
    pub async fn look(&mut self, engine: &Engine, uid: &str) -> CallResult<Observed> {
        let labels = HashMap::from([(names::POD_UID.to_string(), uid.to_string())]);
        let (sandboxes, containers) = engine.list(labels).await?;
        let mut out =
            Observed { sandboxes: sandboxes.iter().map(Sandbox::from_list).collect(), containers: Vec::new() };
        out.sort();
        if let Some(newest) = out.sandboxes.first_mut().filter(|s| s.ready) {
            match self.sandboxes.get(&newest.id) {
                Some(known) if known.host_network || !known.ips.is_empty() => *newest = known.clone(),
                _ => {
                    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: newest.id.clone(), verbose: false };
                    match engine.pod_sandbox_status(request).await {
                        Ok(answer) => newest.learn(&answer.status.unwrap_or_default()),
                        Err(status) if status.code() == tonic::Code::NotFound => newest.ready = false,
                        Err(status) => return Err(status),
                    }
                    self.sandboxes.insert(newest.id.clone(), newest.clone());
                }
            }
        }
        for container in &containers {
            let state = State::from_wire(container.state);
            if let Some(known) = self.containers.get(&container.id).filter(|k| k.state == state) {
                out.containers.push(known.clone());
                continue;
            }
            let request = v1::ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
            match engine.container_status(request).await {
                Ok(answer) => out
                    .containers
                    .push(Container::from_status(&container.pod_sandbox_id, &answer.status.unwrap_or_default())),
                // It went between the list and the question.
                Err(status) if status.code() == tonic::Code::NotFound => {}
                Err(status) => return Err(status),
            }
        }
        self.containers = out.containers.iter().map(|c| (c.id.clone(), c.clone())).collect();
        self.sandboxes.retain(|id, _| out.sandboxes.iter().any(|s| s.id == *id && s.ready));
        out.sort();
        Ok(out)
    }
}
