//! What happened, gathered over a batch of changes, and whom of the waiting pods it wakes.
//!
//! A pod is woken when one of the plugins that refused it may now think otherwise (see [`crate::hints`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use crate::core::{Core, filter_alone};
use crate::hints::{Event, helps};
use crate::metrics::METRICS;
use crate::queue::{PodQueue, Waiting};
use crate::snapshot::NodeId;
use crate::symbol::{Labels, Symbol};
use crate::verdict::{Plugin, Plugins};

/// Events of one batch that are looked at one by one; what is beyond wakes everybody.
const MOST: usize = 8192;

/// How often a waiting pod was looked at.
static LOOKS: AtomicU64 = AtomicU64::new(0);

/// See the module.
#[derive(Default)]
pub struct Events {
    list: Vec<Event>,
    overflown: bool,
}

/// Of so many looks at a waiting pod one is timed, and of that no more questions than these: enough to know, few enough not to be
/// felt.
const SAMPLED: u64 = 10;
const TIMED: usize = 32;

/// What pods with the same chances have in common: spec (by address), who refused them, namespace, and their labels where
/// rules about other pods may look at them.
type Alike = (usize, Plugins, Symbol, Option<Labels>);

fn alike(waiting: &Waiting) -> Option<Alike> {
    let pod = &waiting.pod;
    if !pod.volumes.is_empty() || pod.wants_devices() || pod.group.is_some() {
        return None;
    }
    // Other pods' terms may pick it by its labels whatever its own say.
    let labelled = waiting.refused_by.contains(Plugin::InterPodAffinity);
    Some((Arc::as_ptr(&pod.spec) as usize, waiting.refused_by, pod.namespace, labelled.then(|| pod.labels.clone())))
}

impl Events {
    pub fn push(&mut self, event: Event) {
        if self.list.len() < MOST {
            self.list.push(event);
        } else {
            self.overflown = true;
        }
    }

    /// Nodes whose changes may have made room.
    fn nodes(&self) -> Vec<NodeId> {
        let mut out: Vec<NodeId> = self
            .list
            .iter()
            .filter_map(|e| match e {
                Event::Node { id, .. } | Event::Left(_, id) => Some(*id),
                _ => None,
            })
            .collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    fn verdict(&self, waiting: &Waiting, nodes: &[NodeId], core: &Core) -> Option<(bool, &'static str)> {
        let refused_by = waiting.refused_by;
        // Nobody knows what changes an extender's mind; and where there was no node, anything may be better.
        let anything = self.overflown || refused_by.is_empty() || refused_by == Plugins::all();
        let mut left = if LOOKS.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLED) { TIMED } else { 0 };
        let mut ask = |plugin, event: &Event| {
            if left == 0 {
                return helps(plugin, event, &waiting.pod, core);
            }
            left -= 1;
            let start = std::time::Instant::now();
            let out = helps(plugin, event, &waiting.pod, core);
            METRICS.hint(plugin, event.label(core), out, start.elapsed());
            out
        };
        let by = self.list.iter().find(|e| anything || refused_by.iter().any(|p| ask(p, e)))?;
        // Where a node would have it now, waiting longer only helps others.
        let welcome = |id: &NodeId| {
            let node = core.snapshot.nodes().get(id.index()).filter(|n| n.present);
            node.is_some_and(|n| filter_alone(&waiting.pod.spec, n).is_ok())
        };
        Some((nodes.iter().any(welcome), by.label(core)))
    }

    /// Wakes the pods that may now have a chance.
    pub fn wake(self, core: &Core, queue: &mut PodQueue, now: Instant) {
        if self.list.is_empty() || !queue.has_unschedulable() {
            return;
        }
        let nodes = self.nodes();
        let mut known: HashMap<Alike, Option<(bool, &'static str)>> = HashMap::new();
        queue.wake(now, |waiting| match alike(waiting) {
            Some(alike) => *known.entry(alike).or_insert_with(|| self.verdict(waiting, &nodes, core)),
            None => self.verdict(waiting, &nodes, core),
        });
    }
}
