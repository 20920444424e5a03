//! Slices of devices as drivers publish them, and the pools they make up.
//!
//! A pool counts as a whole: only slices of its newest generation, and only once all of them are there.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::NodeSelector;
use k8s_openapi::api::resource::v1 as api;
use meta::quantity::Quantity;

use super::{device_id, quantity};
use crate::node::Node;
use crate::node_selection::NodeSelection;
use crate::symbol::Symbol;

/// Driver and name of a pool.
pub type PoolId = (Symbol, Symbol);

/// Counters by set and name.
pub type Counters = BTreeMap<String, BTreeMap<String, Quantity>>;

/// Verdicts of selectors kept with a device; more selectors than that are asked anew.
const VERDICTS: usize = 64;

/// On which nodes something can be used.
#[derive(Debug)]
pub enum Reach {
    Node(Box<str>, Symbol),
    Selection(NodeSelector, NodeSelection),
    All,
    Nowhere,
    /// Each device says so itself.
    ByDevice,
}

impl Reach {
    fn of(node: Option<&String>, all: Option<bool>, selector: Option<&NodeSelector>) -> Self {
        match (node, selector) {
            (Some(name), _) if !name.is_empty() => Self::Node(name.as_str().into(), Symbol::of(name)),
            _ if all == Some(true) => Self::All,
            (_, Some(s)) => Self::Selection(s.clone(), NodeSelection::new(&BTreeMap::new(), Some(s))),
            _ => Self::Nowhere,
        }
    }

    pub fn matches(&self, node: &Node) -> bool {
        match self {
            Self::Node(_, symbol) => *symbol == node.symbol,
            Self::Selection(_, selection) => selection.matches(node),
            Self::All | Self::ByDevice => true,
            Self::Nowhere => false,
        }
    }
}

/// Whether a selector picks a device, or why that cannot be told.
pub type Verdict = Result<bool, Arc<str>>;

/// A device, and what selectors said of it.
#[derive(Debug)]
pub struct Device {
    pub id: Symbol,
    pub body: api::Device,
    pub reach: Reach,
    pub counters: Counters,
    verdicts: Mutex<Vec<(u64, Verdict)>>,
}

impl Device {
    /// What a selector says; asked once.
    pub fn verdict(&self, selector: u64, ask: impl FnOnce() -> Result<bool, String>) -> Verdict {
        let Ok(mut verdicts) = self.verdicts.lock() else { return ask().map_err(Into::into) };
        if let Some((_, said)) = verdicts.iter().find(|v| v.0 == selector) {
            return said.clone();
        }
        let said = ask().map_err(Arc::from);
        if verdicts.len() == VERDICTS {
            drop(verdicts.remove(0));
        }
        verdicts.push((selector, said.clone()));
        said
    }

    pub fn can_be_shared(&self) -> bool {
        self.body.allow_multiple_allocations == Some(true)
    }
}

/// A ResourceSlice.
#[derive(Debug)]
pub struct Slice {
    pub name: Arc<str>,
    pub driver: Arc<str>,
    pub pool_name: Arc<str>,
    pub pool: PoolId,
    pub reach: Reach,
    pub devices: Vec<Device>,
    generation: i64,
    expected: i64,
    counters: Counters,
}

fn counters_of(from: &BTreeMap<String, api::Counter>) -> BTreeMap<String, Quantity> {
    from.iter().map(|(name, counter)| (name.clone(), quantity(&counter.value))).collect()
}

impl Slice {
    pub fn of(name: Arc<str>, from: Arc<api::ResourceSlice>) -> Self {
        let spec = &from.spec;
        let (driver, pool) = (&spec.driver, &spec.pool.name);
        let by_device = spec.per_device_node_selection == Some(true);
        let device = |d: &api::Device| Device {
            id: device_id(driver, pool, &d.name),
            body: d.clone(),
            reach: Reach::of(d.node_name.as_ref(), d.all_nodes, d.node_selector.as_ref()),
            counters: d
                .consumes_counters
                .iter()
                .flatten()
                .map(|c| (c.counter_set.clone(), counters_of(&c.counters)))
                .collect(),
            verdicts: Mutex::default(),
        };
        Self {
            name,
            driver: driver.as_str().into(),
            pool_name: pool.as_str().into(),
            pool: (Symbol::of(driver), Symbol::of(pool)),
            reach: if by_device {
                Reach::ByDevice
            } else {
                Reach::of(spec.node_name.as_ref(), spec.all_nodes, spec.node_selector.as_ref())
            },
            devices: spec.devices.iter().flatten().map(device).collect(),
            generation: spec.pool.generation,
            expected: spec.pool.resource_slice_count,
            counters: spec
                .shared_counters
                .iter()
                .flatten()
                .map(|set| (set.name.clone(), counters_of(&set.counters)))
                .collect(),
        }
    }

    /// Whether some of it may be used on a node.
    pub fn concerns(&self, node: &Node) -> bool {
        // Counters are what the pool cannot do without.
        !self.counters.is_empty()
            || match &self.reach {
                Reach::ByDevice => self.devices.iter().any(|d| d.reach.matches(node)),
                reach => reach.matches(node),
            }
    }

    /// Where a device of this slice can be used.
    pub fn reach_of<'a>(&'a self, device: &'a Device) -> &'a Reach {
        if matches!(self.reach, Reach::ByDevice) { &device.reach } else { &self.reach }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Pool {
    pub id: PoolId,
    pub driver: Box<str>,
    pub name: Box<str>,
    /// Those with devices for the node, by name.
    pub slices: Vec<Arc<Slice>>,
    /// Those of the rest: their devices take counters too.
    elsewhere: Vec<Arc<Slice>>,
    pub counters: Counters,
    /// Slices of its generation are missing.
    pub incomplete: bool,
    /// Two devices of one name, two sets of counters, or counters that are not there.
    pub invalid: bool,
    /// Some device has to be made ready before a pod that got it is bound.
    pub waits: bool,
}

/// The one node that all slices are for, whatever their generation.
pub fn only_node(all: &[Arc<Slice>]) -> Option<Symbol> {
    let nodes = all.iter().map(|s| match &s.reach {
        Reach::Node(_, node) => Some(*node),
        _ => None,
    });
    nodes.reduce(|a, b| a.filter(|_| a == b)).flatten()
}

impl Pool {
    fn named_as(slice: &Slice) -> Self {
        Self {
            id: slice.pool,
            driver: (&*slice.driver).into(),
            name: (&*slice.pool_name).into(),
            slices: Vec::new(),
            elsewhere: Vec::new(),
            counters: Counters::default(),
            incomplete: false,
            invalid: false,
            waits: false,
        }
    }

    /// The pool that slices make up for the node that some of them concern; `None` where it has nothing of it.
    ///
    /// What a newer generation has for other nodes makes this one's slices obsolete only once some of them are missing: upstream
    /// looks no further before.
    pub fn gather(all: &[Arc<Slice>], concerns: impl Fn(&Slice) -> bool) -> Option<Self> {
        let newest = all.iter().filter(|s| concerns(s)).map(|s| s.generation).max()?;
        let of_it: Vec<&Arc<Slice>> = all.iter().filter(|s| s.generation == newest).collect();
        let (mut here, mut elsewhere): (Vec<_>, Vec<_>) =
            of_it.iter().map(|s| Arc::clone(s)).partition(|s| concerns(s));
        let first = here.first()?.clone();
        let empty = Self::named_as(&first);
        if here.len() as i64 == first.expected {
            elsewhere.clear();
        } else if all.iter().any(|s| s.generation > newest) {
            return None;
        } else if of_it.len() as i64 != first.expected {
            return Some(Self { incomplete: true, ..empty });
        }
        here.sort_by(|a, b| a.name.cmp(&b.name));
        let mut counters = Counters::default();
        let sets = here.iter().flat_map(|s| &s.counters);
        let once = sets.fold(true, |once, (name, set)| counters.insert(name.clone(), set.clone()).is_none() && once);
        let there = |(set, wanted): (&String, &BTreeMap<String, Quantity>)| {
            counters.get(set).is_some_and(|set| wanted.keys().all(|name| set.contains_key(name)))
        };
        let all_there = here.iter().chain(&elsewhere).flat_map(|s| &s.devices).flat_map(|d| &d.counters).all(there);
        let mut names = HashSet::new();
        let invalid = !once || !all_there || !here.iter().flat_map(|s| &s.devices).all(|d| names.insert(d.id));
        if invalid {
            return Some(Self { invalid, ..empty });
        }
        let mut devices = here.iter().flat_map(|s| &s.devices);
        let waits = devices.any(|d| d.body.binding_conditions.iter().flatten().next().is_some());
        Some(Self { slices: here, elsewhere, counters, waits, ..empty })
    }

    /// All devices of its generation.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.slices.iter().chain(&self.elsewhere).flat_map(|s| &s.devices)
    }

    /// As messages name it.
    pub fn path(&self) -> String {
        format!("{}/{}", self.driver, self.name)
    }
}
