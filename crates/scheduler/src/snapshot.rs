//! The cluster as the core sees it, kept current change by change.
//!
//! Nodes and pods live in slots and are named by small numbers. Every change of a node gets a version and goes into a
//! bounded log, so that whoever computed something about all nodes needs to look again only at those that changed since.
//! Nothing here knows of the API, of time, or of what is pending.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::counters::Counters;
use crate::devices::Devices;
use crate::node::{ImageSpread, Node, Offer};
use crate::pod::Pod;
use crate::spread_defaults::SpreadDefaults;
use crate::storage::Storage;
use crate::symbol::{Labels, Symbol, SymbolMap};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodId(pub u32);

impl NodeId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Node changes remembered; who is further behind looks at every node. Four bytes each.
const LOG: usize = 65_536;

/// What pods with the same terms have in common: their spec (by address), namespace, and the labels if terms ask for them.
type TermsOf = (usize, Symbol, Option<Labels>);

/// Pods on nodes with the same affinity or anti-affinity to others.
#[derive(Debug)]
pub struct Alike {
    /// One of them.
    pub pod: Pod,
    pub by_node: BTreeMap<NodeId, i64>,
}

fn terms_of(pod: &Pod) -> Option<TermsOf> {
    let terms = pod.spec.terms.as_deref()?;
    let labels = terms.asks_for_labels().then(|| pod.labels.clone());
    Some((Arc::as_ptr(&pod.spec) as usize, pod.namespace, labels))
}

/// A pod on a node.
#[derive(Clone, Debug)]
pub struct Placed {
    pub pod: Pod,
    pub node: NodeId,
}

/// The domains of one topology key: which one each node is in.
#[derive(Debug, Default)]
pub struct Column {
    /// By node; [`Column::NONE`] where the node has no such label.
    pub domain: Vec<u32>,
    pub domains: usize,
    /// Whether every node there is has the label.
    pub complete: bool,
}

impl Column {
    pub const NONE: u32 = u32::MAX;

    pub fn of(&self, node: NodeId) -> Option<usize> {
        self.domain.get(node.index()).copied().filter(|d| *d != Self::NONE).map(|d| d as usize)
    }
}

/// See the module.
#[derive(Default)]
pub struct Snapshot {
    nodes: Vec<Node>,
    free_nodes: Vec<NodeId>,
    node_ids: SymbolMap<NodeId>,
    present: usize,
    pods: Vec<Option<Placed>>,
    free_pods: Vec<PodId>,
    pod_ids: HashMap<Arc<str>, PodId>,
    with_terms: HashMap<TermsOf, Alike>,
    log: VecDeque<NodeId>,
    version: u64,
    columns: RefCell<SymbolMap<Arc<Column>>>,
    image_spread: ImageSpread,
    /// Changes when what is known of images elsewhere may change a node's score.
    pub image_epoch: u64,
    pub counters: Counters,
    pub namespaces: SymbolMap<Labels>,
    pub spread_defaults: SpreadDefaults,
    pub storage: Storage,
    pub devices: Devices,
    /// Whether pods of groups are placed; else they are refused.
    pub places_groups: bool,
    /// The only nodes looked at now, by a label and its value.
    pub within: Option<(Symbol, Symbol)>,
}

impl Snapshot {
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// Nodes there are.
    pub fn present(&self) -> usize {
        self.present
    }

    /// Pods on nodes.
    pub fn pods_placed(&self) -> usize {
        self.pod_ids.len()
    }

    pub fn node_id(&self, name: Symbol) -> Option<NodeId> {
        self.node_ids.get(&name).copied()
    }

    /// Ids of the nodes there are.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().enumerate().filter(|(_, n)| n.present).map(|(at, _)| NodeId(at as u32))
    }

    pub fn placed(&self, id: PodId) -> Option<&Placed> {
        self.pods.get(id.0 as usize).and_then(Option::as_ref)
    }

    pub fn pod(&self, key: &str) -> Option<&Placed> {
        self.pod_ids.get(key).and_then(|id| self.placed(*id))
    }

    /// Every pod on a node.
    pub fn all_placed(&self) -> impl Iterator<Item = &Placed> {
        self.pods.iter().flatten()
    }

    pub fn pods_on(&self, node: NodeId) -> impl Iterator<Item = (PodId, &Pod)> {
        self.node(node).pods.iter().filter_map(|id| Some((*id, &self.placed(*id)?.pod)))
    }

    /// Pods on nodes that have affinity or anti-affinity to other pods, like with like.
    pub fn with_terms(&self) -> impl Iterator<Item = &Alike> {
        self.with_terms.values()
    }

    /// The number of changes so far.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Nodes changed since a version, some perhaps more than once; `None` when that is too long ago.
    pub fn changed_since(&self, version: u64) -> Option<impl Iterator<Item = NodeId> + '_> {
        let behind = usize::try_from(self.version.saturating_sub(version)).ok().filter(|n| *n <= self.log.len())?;
        Some(self.log.iter().skip(self.log.len() - behind).copied())
    }

    fn touch(&mut self, id: NodeId) {
        self.version += 1;
        self.nodes[id.index()].changed = self.version;
        if self.log.len() == LOG {
            self.log.pop_front();
        }
        self.log.push_back(id);
    }

    fn slot(&mut self, name: &str) -> NodeId {
        let symbol = Symbol::of(name);
        if let Some(id) = self.node_ids.get(&symbol) {
            return *id;
        }
        let node = Node::named(name.into());
        let id = match self.free_nodes.pop() {
            Some(id) => {
                self.nodes[id.index()] = node;
                id
            }
            None => {
                self.nodes.push(node);
                NodeId((self.nodes.len() - 1) as u32)
            }
        };
        self.node_ids.insert(symbol, id);
        id
    }

    fn free_if_unused(&mut self, id: NodeId) {
        let node = &self.nodes[id.index()];
        if !node.present && node.pods.is_empty() {
            self.node_ids.remove(&node.symbol);
            self.free_nodes.push(id);
        }
    }

    fn count_images(&mut self, offer: &Offer, by: i64) {
        for (image, _) in &offer.images {
            let count = self.image_spread.entry(*image).or_insert(0);
            *count += by;
            if *count <= 0 {
                self.image_spread.remove(image);
            }
        }
    }

    /// Nodes that have an image.
    pub fn nodes_with_image(&self, image: Symbol) -> i64 {
        self.image_spread.get(&image).copied().unwrap_or(0)
    }

    /// Takes a node's newest offer; what was before, when it was there and different, and `None` when nothing changed.
    pub fn set_node(&mut self, name: &str, offer: Offer) -> Option<NodeId> {
        let id = self.slot(name);
        let node = &self.nodes[id.index()];
        if node.present && *node.offer == offer {
            return None;
        }
        let old = node.offer.clone();
        if !node.present || old.labels != offer.labels {
            self.columns.get_mut().clear();
        }
        if !node.present || old.images != offer.images {
            self.count_images(&old, -1);
            self.count_images(&offer, 1);
            self.image_epoch += 1;
        }
        let node = &mut self.nodes[id.index()];
        self.present += usize::from(!node.present);
        node.present = true;
        node.offer = Arc::new(offer);
        self.touch(id);
        Some(id)
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(id) = self.node_id(Symbol::of(name)).filter(|id| self.node(*id).present) else { return };
        let old = self.nodes[id.index()].offer.clone();
        self.count_images(&old, -1);
        self.image_epoch += 1;
        self.columns.get_mut().clear();
        let node = &mut self.nodes[id.index()];
        node.present = false;
        node.offer = Arc::default();
        self.present -= 1;
        self.touch(id);
        self.free_if_unused(id);
    }

    fn note_claims(&mut self, pod: &Pod, by: i32) {
        for claim in pod.volumes.iter().filter_map(|v| pod.claim(v)) {
            self.storage.note_use(claim, by);
        }
    }

    /// Puts a pod on a node; replaces what was known of the pod.
    pub fn place(&mut self, pod: Pod, node: &str) -> NodeId {
        self.remove(&pod.key.clone());
        let id = self.slot(node);
        let pod_id = self.free_pods.pop().unwrap_or_else(|| {
            self.pods.push(None);
            PodId((self.pods.len() - 1) as u32)
        });
        let node = &mut self.nodes[id.index()];
        node.take(&pod);
        node.pods.push(pod_id);
        if let Some(terms) = terms_of(&pod) {
            let alike =
                self.with_terms.entry(terms).or_insert_with(|| Alike { pod: pod.clone(), by_node: BTreeMap::new() });
            *alike.by_node.entry(id).or_insert(0) += 1;
        }
        self.counters.note(&pod, id, 1, &self.namespaces);
        self.note_claims(&pod, 1);
        self.pod_ids.insert(pod.key.clone(), pod_id);
        self.pods[pod_id.0 as usize] = Some(Placed { pod, node: id });
        self.touch(id);
        id
    }

    /// Takes a pod off its node.
    pub fn remove(&mut self, key: &str) -> Option<Placed> {
        let id = self.pod_ids.remove(key)?;
        let placed = self.pods[id.0 as usize].take()?;
        self.free_pods.push(id);
        if let Some(terms) = terms_of(&placed.pod)
            && let Some(alike) = self.with_terms.get_mut(&terms)
        {
            if let Some(count) = alike.by_node.get_mut(&placed.node) {
                *count -= 1;
                if *count == 0 {
                    alike.by_node.remove(&placed.node);
                }
            }
            if alike.by_node.is_empty() {
                self.with_terms.remove(&terms);
            }
        }
        self.counters.note(&placed.pod, placed.node, -1, &self.namespaces);
        self.note_claims(&placed.pod, -1);
        let node = &mut self.nodes[placed.node.index()];
        node.give_back(&placed.pod);
        if let Some(at) = node.pods.iter().position(|p| *p == id) {
            node.pods.swap_remove(at);
        }
        self.touch(placed.node);
        self.free_if_unused(placed.node);
        Some(placed)
    }

    /// Changes what is known of a placed pod where that does not move or resize it.
    pub fn refresh(&mut self, pod: Pod) {
        let Some(placed) = self.pod_ids.get(&pod.key).and_then(|id| self.pods[id.0 as usize].as_mut()) else { return };
        placed.pod = pod;
    }

    /// Takes a namespace's labels; counts that depend on them begin anew.
    /// Whether they changed.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) -> bool {
        let symbol = Symbol::of(name);
        let changed = match labels {
            Some(labels) => self.namespaces.insert(symbol, labels.clone()).as_ref() != Some(&labels),
            None => self.namespaces.remove(&symbol).is_some(),
        };
        if changed {
            self.counters.namespaces_changed();
        }
        changed
    }

    /// The domains of a topology key.
    pub fn column(&self, key: Symbol) -> Arc<Column> {
        if let Some(column) = self.columns.borrow().get(&key).filter(|c| c.domain.len() == self.nodes.len()) {
            return column.clone();
        }
        let mut domains: SymbolMap<u32> = SymbolMap::default();
        let mut domain = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let next = domains.len() as u32;
            let value = node.labels.get(key).filter(|_| node.present);
            domain.push(value.map_or(Column::NONE, |v| *domains.entry(v).or_insert(next)));
        }
        let complete = self.nodes.iter().zip(&domain).all(|(node, d)| !node.present || *d != Column::NONE);
        let column = Arc::new(Column { domain, domains: domains.len(), complete });
        self.columns.borrow_mut().insert(key, column.clone());
        column
    }
}
