//! What happened that may help a waiting pod, gathered over a batch of changes.

use std::collections::HashMap;

use tokio::time::Instant;

use crate::core::Core;
use crate::queue::PodQueue;
use crate::snapshot::NodeId;
use crate::verdict::{Plugin, Plugins};

/// See the module.
#[derive(Default)]
pub struct Events {
    /// Nodes that pods left.
    pub freed: Vec<NodeId>,
    /// Nodes that are new or offer something else.
    pub changed: Vec<NodeId>,
    /// Plugins that may think otherwise now, whatever the node.
    pub plugins: Plugins,
}

impl Events {
    pub fn may_help(&mut self, plugins: &[Plugin]) {
        plugins.iter().for_each(|p| self.plugins.insert(*p));
    }

    fn is_empty(&self) -> bool {
        self.freed.is_empty() && self.changed.is_empty() && self.plugins.is_empty()
    }

    /// Wakes the pods that may now have a chance.
    pub fn wake(mut self, core: &Core, queue: &mut PodQueue, now: Instant) {
        if self.is_empty() || !queue.has_unschedulable() {
            return;
        }
        for nodes in [&mut self.freed, &mut self.changed] {
            nodes.sort_unstable();
            nodes.dedup();
        }
        let mut known: HashMap<usize, bool> = HashMap::new();
        queue.wake(now, |waiting| {
            let spec = &waiting.pod.spec;
            let helped = *known.entry(std::sync::Arc::as_ptr(spec) as usize).or_insert_with(|| {
                core.worth_trying(spec, &self.freed, false) || core.worth_trying(spec, &self.changed, true)
            });
            if helped {
                return Some(true);
            }
            waiting.refused_by.intersects(self.plugins).then_some(false)
        });
    }
}
