//! The plugins by upstream's names: at which points each has a say, the default set, and how a file's sets change it.
//!
//! Follows upstream's merging: the file's `multiPoint` set over the default one, then each point's own set over that. It
//! does not know what the plugins do.

use super::file::{PluginFile, PluginSet, PluginSets};
use crate::verdict::{Plugin, Plugins};

/// An extension point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    PreFilter,
    Filter,
    PostFilter,
    Reserve,
    PreScore,
    Score,
    PreBind,
    Bind,
    PostBind,
    Permit,
    PreEnqueue,
    QueueSort,
    PlacementGenerate,
    PlacementScore,
    PlacementFeasible,
    PodGroupPostFilter,
}

use Point::*;

/// All, in the order in which upstream sets them up, which decides what it complains of first.
const POINTS: [Point; 16] = [
    PreFilter,
    Filter,
    PostFilter,
    Reserve,
    PreScore,
    Score,
    PreBind,
    Bind,
    PostBind,
    Permit,
    PreEnqueue,
    QueueSort,
    PlacementGenerate,
    PlacementScore,
    PlacementFeasible,
    PodGroupPostFilter,
];

fn set_of(sets: &PluginSets, point: Point) -> &PluginSet {
    match point {
        PreFilter => &sets.pre_filter,
        Filter => &sets.filter,
        PostFilter => &sets.post_filter,
        Reserve => &sets.reserve,
        PreScore => &sets.pre_score,
        Score => &sets.score,
        PreBind => &sets.pre_bind,
        Bind => &sets.bind,
        PostBind => &sets.post_bind,
        Permit => &sets.permit,
        PreEnqueue => &sets.pre_enqueue,
        QueueSort => &sets.queue_sort,
        PlacementGenerate => &sets.placement_generate,
        PlacementScore => &sets.placement_score,
        PlacementFeasible => &sets.placement_feasible,
        PodGroupPostFilter => &sets.pod_group_post_filter,
    }
}

/// A plugin by upstream's name.
struct Known {
    name: &'static str,
    points: &'static [Point],
    /// What it is called where it refuses.
    filter: Option<Plugin>,
    /// Its weight in the default set.
    weight: i32,
    gate: Gate,
}

/// What has to be open for a plugin to be in the default set.
#[derive(Clone, Copy, PartialEq)]
enum Gate {
    Open,
    Groups,
    Topology,
    /// Nothing opens it here.
    Closed,
}

/// Which of the gates that change the default set are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gates {
    /// `GenericWorkload`
    pub groups: bool,
    /// `TopologyAwareWorkloadScheduling`
    pub topology: bool,
    /// `StorageCapacityScoring`: room for volumes counts when nodes are scored.
    pub capacity_scoring: bool,
}

impl Default for Gates {
    fn default() -> Self {
        Self { groups: false, topology: false, capacity_scoring: true }
    }
}

impl Gates {
    fn has(self, gate: Gate) -> bool {
        match gate {
            Gate::Open => true,
            Gate::Groups => self.groups,
            Gate::Topology => self.topology,
            Gate::Closed => false,
        }
    }
}

const FILTERS: &[Point] = &[PreFilter, Filter];
const FILTERS_AND_SCORES: &[Point] = &[PreFilter, Filter, PreScore, Score];
const FIT: &[Point] = &[PreFilter, Filter, PreScore, Score, PlacementScore];
const VOLUMES: &[Point] = &[PreFilter, Filter, Reserve, PreBind, PreScore, Score];
const DEVICES: &[Point] = &[PreEnqueue, PreFilter, Filter, PostFilter, Score, Reserve, PreBind];
const PREEMPTION: &[Point] = &[PreEnqueue, PostFilter, PodGroupPostFilter];
const GANGS: &[Point] = &[PreEnqueue, PreFilter, Permit, Reserve, PlacementFeasible];

const fn known(name: &'static str, points: &'static [Point], filter: Option<Plugin>, weight: i32, gate: Gate) -> Known {
    Known { name, points, filter, weight, gate }
}

/// In the order of the default set.
const PLUGINS: &[Known] = &[
    known("SchedulingGates", &[PreEnqueue], Some(Plugin::SchedulingGates), 0, Gate::Open),
    known("PrioritySort", &[QueueSort], None, 0, Gate::Open),
    known("NodeUnschedulable", &[Filter], Some(Plugin::NodeUnschedulable), 0, Gate::Open),
    known("NodeName", &[Filter], None, 0, Gate::Open),
    known("TaintToleration", &[Filter, PreScore, Score], Some(Plugin::TaintToleration), 3, Gate::Open),
    known("NodeAffinity", FILTERS_AND_SCORES, Some(Plugin::NodeAffinity), 2, Gate::Open),
    known("NodePorts", FILTERS, Some(Plugin::NodePorts), 0, Gate::Open),
    known("DeferredPodScheduling", &[PreFilter, Filter, Reserve], None, 0, Gate::Closed),
    known("NodeResourcesFit", FIT, Some(Plugin::NodeResourcesFit), 1, Gate::Open),
    known("VolumeRestrictions", FILTERS, Some(Plugin::VolumeRestrictions), 0, Gate::Open),
    known("NodeVolumeLimits", FILTERS, Some(Plugin::NodeVolumeLimits), 0, Gate::Open),
    known("VolumeBinding", VOLUMES, Some(Plugin::VolumeBinding), 0, Gate::Open),
    known("VolumeZone", FILTERS, Some(Plugin::VolumeZone), 0, Gate::Open),
    known("PodTopologySpread", FILTERS_AND_SCORES, Some(Plugin::PodTopologySpread), 2, Gate::Open),
    known("InterPodAffinity", FILTERS_AND_SCORES, Some(Plugin::InterPodAffinity), 2, Gate::Open),
    known("DynamicResources", DEVICES, Some(Plugin::DynamicResources), 2, Gate::Open),
    known("DefaultPreemption", PREEMPTION, None, 0, Gate::Open),
    known("NodeResourcesBalancedAllocation", &[PreScore, Score], None, 1, Gate::Open),
    known("ImageLocality", &[Score], None, 1, Gate::Open),
    known("DefaultBinder", &[Bind], None, 0, Gate::Open),
    known("NodeDeclaredFeatures", FILTERS, Some(Plugin::NodeDeclaredFeatures), 0, Gate::Open),
    known("GangScheduling", GANGS, Some(Plugin::GangScheduling), 0, Gate::Groups),
    known("TopologyPlacementGenerator", &[PlacementGenerate], None, 0, Gate::Topology),
    known("PodGroupPodsCount", &[PlacementScore], None, 1, Gate::Topology),
];

impl Plugins {
    /// Every plugin that may refuse.
    pub fn all() -> Self {
        let mut out = Self::default();
        PLUGINS.iter().filter_map(|k| k.filter).for_each(|p| out.insert(p));
        out
    }
}

fn find(name: &str) -> Option<&'static Known> {
    PLUGINS.iter().find(|k| k.name == name)
}

/// The default set.
fn usual(gates: Gates) -> Vec<PluginFile> {
    let usual = PLUGINS.iter().filter(|k| gates.has(k.gate));
    usual.map(|k| PluginFile { name: k.name.into(), weight: k.weight }).collect()
}

/// A file's sets over the default ones.
pub fn merge(own: Option<&PluginSets>, gates: Gates) -> PluginSets {
    let mut out = own.cloned().unwrap_or_default();
    let given = std::mem::take(&mut out.multi_point);
    let drops = |name: &str| given.disabled.iter().any(|d| d.name == name);
    let mut replaced = vec![false; given.enabled.len()];
    let mut enabled = Vec::new();
    if !drops("*") {
        for plugin in usual(gates).into_iter().filter(|p| !drops(&p.name)) {
            // Of several of one name the last counts here; the others are found to be too many later.
            match given.enabled.iter().rposition(|e| e.name == plugin.name) {
                Some(at) => {
                    replaced[at] = true;
                    enabled.push(given.enabled[at].clone());
                }
                None => enabled.push(plugin),
            }
        }
    }
    enabled.extend(given.enabled.iter().zip(replaced).filter(|(_, replaced)| !replaced).map(|(e, _)| e.clone()));
    out.multi_point = PluginSet { enabled, disabled: given.disabled };
    out
}

/// Which plugins have a say where, and how much.
#[derive(Clone, Debug, Default)]
pub struct Enabled(Vec<(Point, &'static str, i64)>);

impl Enabled {
    /// What merged sets come to; an error is worded as upstream's framework words it.
    pub fn of(sets: &PluginSets) -> Result<Self, String> {
        let mut out = Vec::new();
        for point in POINTS {
            let kind = format!("{point:?}Plugin");
            let missing = |name: &str| format!("{kind} {name:?} does not exist");
            let twice = |name: &str| format!("plugin {name:?} already registered as {kind:?}");
            let set = set_of(sets, point);
            let mut own: Vec<&str> = Vec::new();
            let weight = |plugin: &PluginFile| i64::from(if plugin.weight == 0 { 1 } else { plugin.weight });
            for plugin in &set.enabled {
                let known = find(&plugin.name).ok_or_else(|| missing(&plugin.name))?;
                if !known.points.contains(&point) {
                    return Err(format!("plugin {:?} does not extend {kind} plugin", plugin.name));
                }
                if own.contains(&known.name) {
                    return Err(twice(known.name));
                }
                own.push(known.name);
                out.push((point, known.name, weight(plugin)));
            }
            let disabled = |name: &str| set.disabled.iter().any(|d| d.name == name);
            if disabled("*") {
                continue;
            }
            let mut everywhere: Vec<&str> = Vec::new();
            for plugin in &sets.multi_point.enabled {
                let known = find(&plugin.name).ok_or_else(|| missing(&plugin.name))?;
                if !known.points.contains(&point) || disabled(known.name) || own.contains(&known.name) {
                    continue;
                }
                if everywhere.contains(&known.name) {
                    return Err(twice(known.name));
                }
                everywhere.push(known.name);
                out.push((point, known.name, weight(plugin)));
            }
        }
        Ok(Self(out))
    }

    /// How much a plugin's say counts at a point; `None` when it has none.
    pub fn weight(&self, point: Point, name: &str) -> Option<i64> {
        self.0.iter().find(|e| e.0 == point && e.1 == name).map(|e| e.2)
    }

    pub fn has(&self, point: Point, name: &str) -> bool {
        self.weight(point, name).is_some()
    }

    /// How many have a say at a point.
    pub fn count(&self, point: Point) -> usize {
        self.0.iter().filter(|e| e.0 == point).count()
    }

    /// A plugin whose weight is not in a range, and that weight.
    pub fn beyond(&self, range: std::ops::RangeInclusive<i64>) -> Option<(&'static str, i64)> {
        self.0.iter().find(|e| !range.contains(&e.2)).map(|e| (e.1, e.2))
    }

    /// Plugins that may refuse.
    pub fn filters(&self) -> Plugins {
        let mut out = Plugins::default();
        for known in PLUGINS {
            let point = match known.filter {
                Some(Plugin::SchedulingGates | Plugin::GangScheduling) => PreEnqueue,
                _ => Filter,
            };
            if let Some(plugin) = known.filter.filter(|_| self.has(point, known.name)) {
                out.insert(plugin);
            }
        }
        out
    }
}

/// Names of all plugins that sets speak of, in order.
pub fn names(sets: &PluginSets) -> Vec<String> {
    let points = POINTS.iter().map(|p| set_of(sets, *p)).chain([&sets.multi_point]);
    let mut out: Vec<String> = points.flat_map(|s| &s.enabled).map(|p| p.name.clone()).collect();
    out.sort_unstable();
    out.dedup();
    out
}
