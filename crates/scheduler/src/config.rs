//! `KubeSchedulerConfiguration` (`kubescheduler.config.k8s.io/v1`): read strictly, checked, and turned into profiles.
//!
//! Every field of the v1 form is known here. What this scheduler has no room for (plugins behind alpha gates)
//! is refused by name rather than passed over; what has no meaning for it (how many nodes to look at: it looks at all) is
//! accepted.

mod file;

use std::time::Duration;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::extender::Settings;
use crate::node_selection::{NodeSelection, Preference};
use crate::pod::SpreadConstraint;
use crate::profile::{Profile, ProfileRef, Resource, SpreadDefaulting, Strategy};
use crate::verdict::{Plugin, Plugins};
use file::{ArgsOf, PluginSet, ProfileFile};

pub use file::LeaderElection;

/// The largest weight, and the largest of a shape's scores, upstream takes.
const MAX_WEIGHT: i64 = 100;
const MAX_SHAPE_SCORE: i64 = 10;
/// More profiles than anybody has schedulers.
const MAX_PROFILES: usize = 64;

/// What a configuration file says.
#[derive(Clone, Debug)]
pub struct Configuration {
    pub profiles: Vec<ProfileRef>,
    pub pod_initial_backoff: Duration,
    pub pod_max_backoff: Duration,
    pub extenders: Vec<Settings>,
    pub leader_election: LeaderElection,
    /// `clientConnection.kubeconfig`
    pub kubeconfig: Option<String>,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            profiles: vec![ProfileRef::default()],
            pod_initial_backoff: Duration::from_secs(1),
            pod_max_backoff: Duration::from_secs(10),
            extenders: Vec::new(),
            leader_election: LeaderElection::default(),
            kubeconfig: None,
        }
    }
}

/// What is wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct Wrong {
    path: String,
    why: String,
}

fn wrong<T>(path: impl Into<String>, why: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { path: path.into(), why: why.into() })
}

/// A plugin by upstream's name, and what it can do.
struct Known {
    name: &'static str,
    filter: Option<Plugin>,
    scores: bool,
}

const fn known(name: &'static str, filter: Option<Plugin>, scores: bool) -> Known {
    Known { name, filter, scores }
}

/// The default plugins.
const PLUGINS: &[Known] = &[
    known("SchedulingGates", Some(Plugin::SchedulingGates), false),
    known("PrioritySort", None, false),
    known("NodeUnschedulable", Some(Plugin::NodeUnschedulable), false),
    known("NodeName", None, false),
    known("TaintToleration", Some(Plugin::TaintToleration), true),
    known("NodeAffinity", Some(Plugin::NodeAffinity), true),
    known("NodePorts", Some(Plugin::NodePorts), false),
    known("NodeResourcesFit", Some(Plugin::NodeResourcesFit), true),
    known("VolumeRestrictions", Some(Plugin::VolumeRestrictions), false),
    known("NodeVolumeLimits", Some(Plugin::NodeVolumeLimits), false),
    known("VolumeBinding", Some(Plugin::VolumeBinding), false),
    known("VolumeZone", Some(Plugin::VolumeZone), false),
    known("PodTopologySpread", Some(Plugin::PodTopologySpread), true),
    known("InterPodAffinity", Some(Plugin::InterPodAffinity), true),
    known("DynamicResources", Some(Plugin::DynamicResources), false),
    known("DefaultPreemption", None, false),
    known("NodeResourcesBalancedAllocation", None, true),
    known("ImageLocality", None, true),
    known("DefaultBinder", None, false),
    known("NodeDeclaredFeatures", Some(Plugin::NodeDeclaredFeatures), false),
];
/// Plugins of upstream's that are not here.
const ABSENT: &[&str] = &["GangScheduling", "TopologyPlacementGenerator", "PodGroupPodsCount", "DeferredPodScheduling"];

fn find(name: &str, path: &str) -> Result<&'static Known, Wrong> {
    if ABSENT.contains(&name) {
        return wrong(path, format!("plugin {name:?} is not supported by this scheduler"));
    }
    PLUGINS.iter().find(|k| k.name == name).map_or_else(|| wrong(path, format!("plugin {name:?} does not exist")), Ok)
}

impl Profile {
    fn weight(&mut self, name: &str) -> Option<&mut i64> {
        let w = &mut self.weights;
        Some(match name {
            "TaintToleration" => &mut w.taint_toleration,
            "NodeAffinity" => &mut w.node_affinity,
            "NodeResourcesFit" => &mut w.node_resources_fit,
            "NodeResourcesBalancedAllocation" => &mut w.node_resources_balanced_allocation,
            "PodTopologySpread" => &mut w.pod_topology_spread,
            "InterPodAffinity" => &mut w.inter_pod_affinity,
            "ImageLocality" => &mut w.image_locality,
            _ => return None,
        })
    }
}

/// Which extension points a set speaks of.
#[derive(Clone, Copy, PartialEq)]
enum Point {
    Multi,
    PreEnqueue,
    QueueSort,
    Filter,
    PostFilter,
    Score,
    Bind,
    /// Points that follow from the others here: names are checked, and that is all.
    Other,
}

/// Switches of one profile while its sets are applied.
struct Switches {
    profile: Profile,
    sorts: bool,
    binds: bool,
}

impl Switches {
    fn set(&mut self, point: Point, known: &Known, on: bool, weight: i64) {
        let at = |points: &[Point]| point == Point::Multi || points.contains(&point);
        let wanted = if known.name == "SchedulingGates" { Point::PreEnqueue } else { Point::Filter };
        if let Some(plugin) = known.filter.filter(|_| at(&[wanted])) {
            if on { self.profile.filters.insert(plugin) } else { self.profile.filters.remove(plugin) }
        }
        if known.scores && at(&[Point::Score]) {
            let defaults = Profile::default().weight(known.name).map_or(1, |w| *w);
            if let Some(own) = self.profile.weight(known.name) {
                *own = match (on, weight) {
                    (false, _) => 0,
                    (true, 0) => defaults,
                    (true, weight) => weight,
                };
            }
        }
        match known.name {
            "DefaultPreemption" if at(&[Point::PostFilter]) => self.profile.preempts = on,
            "PrioritySort" if at(&[Point::QueueSort]) => self.sorts = on,
            "DefaultBinder" if at(&[Point::Bind]) => self.binds = on,
            _ => {}
        }
    }

    fn apply(&mut self, point: Point, set: Option<&PluginSet>, path: &str) -> Result<(), Wrong> {
        let Some(set) = set else { return Ok(()) };
        for (at, plugin) in set.disabled.iter().enumerate() {
            if plugin.name == "*" {
                PLUGINS.iter().for_each(|k| self.set(point, k, false, 0));
            } else if !ABSENT.contains(&plugin.name.as_str()) {
                self.set(point, find(&plugin.name, &format!("{path}.disabled[{at}].name"))?, false, 0);
            }
        }
        let mut seen = Vec::new();
        for (at, plugin) in set.enabled.iter().enumerate() {
            let path = format!("{path}.enabled[{at}]");
            let known = find(&plugin.name, &format!("{path}.name"))?;
            if seen.contains(&known.name) {
                return wrong(path, format!("plugin {:?} already registered", known.name));
            }
            seen.push(known.name);
            let can = match point {
                Point::Score => known.scores,
                Point::Filter => known.filter.is_some() && known.name != "SchedulingGates" || known.name == "NodeName",
                Point::PostFilter => matches!(known.name, "DefaultPreemption" | "DynamicResources"),
                Point::QueueSort => known.name == "PrioritySort",
                Point::Bind => known.name == "DefaultBinder",
                Point::PreEnqueue => matches!(known.name, "SchedulingGates" | "DynamicResources" | "DefaultPreemption"),
                Point::Multi | Point::Other => true,
            };
            if !can {
                return wrong(path, format!("plugin {:?} does not extend this point", known.name));
            }
            let weight = i64::from(plugin.weight.unwrap_or(0));
            if weight < 0 || (known.scores && weight > MAX_WEIGHT * MAX_WEIGHT) {
                return wrong(format!("{path}.weight"), format!("{weight} is no weight"));
            }
            self.set(point, known, true, weight);
        }
        Ok(())
    }
}

fn args<T: DeserializeOwned>(raw: &Value, path: &str) -> Result<T, Wrong> {
    let mut raw = raw.clone();
    if let Some(map) = raw.as_object_mut() {
        map.remove("apiVersion");
        map.remove("kind");
    }
    serde_json::from_value(raw).or_else(|e| wrong(path, e.to_string()))
}

fn resources(list: &[file::ResourceSpec], path: &str) -> Result<Box<[(Resource, i64)]>, Wrong> {
    let mut out = Vec::with_capacity(list.len());
    for (at, r) in list.iter().enumerate() {
        let weight = if r.weight == 0 { 1 } else { r.weight };
        if !(1..=MAX_WEIGHT).contains(&weight) {
            return wrong(
                format!("{path}[{at}].weight"),
                format!(
                    "Invalid value: {}: resource weight of {} not in valid range [1, {MAX_WEIGHT}]",
                    r.weight, r.name
                ),
            );
        }
        out.push((Resource::of(&r.name), weight));
    }
    Ok(out.into())
}

fn strategy(from: &file::ScoringStrategy, profile: &mut Profile, path: &str) -> Result<(), Wrong> {
    if !from.resources.is_empty() {
        profile.fit.resources = resources(&from.resources, &format!("{path}.resources"))?;
    }
    profile.fit.strategy = match from.r#type.as_str() {
        "" | "LeastAllocated" => Strategy::LeastAllocated,
        "MostAllocated" => Strategy::MostAllocated,
        "RequestedToCapacityRatio" => {
            let path = format!("{path}.requestedToCapacityRatio.shape");
            let shape = from.requested_to_capacity_ratio.as_ref().map_or(&[][..], |r| &r.shape);
            if shape.is_empty() {
                return wrong(path, "Required value: at least one point must be specified");
            }
            let mut points: Vec<(i64, i64)> = Vec::with_capacity(shape.len());
            for (at, point) in shape.iter().enumerate() {
                let path = format!("{path}[{at}]");
                if !(0..=100).contains(&point.utilization) {
                    return wrong(
                        format!("{path}.utilization"),
                        format!("Invalid value: {}: not in valid range [0, 100]", point.utilization),
                    );
                }
                if points.last().is_some_and(|last| last.0 >= point.utilization) {
                    return wrong(
                        format!("{path}.utilization"),
                        format!(
                            "Invalid value: {}: utilization values must be sorted in increasing order",
                            point.utilization
                        ),
                    );
                }
                if !(0..=MAX_SHAPE_SCORE).contains(&point.score) {
                    return wrong(
                        format!("{path}.score"),
                        format!("Invalid value: {}: not in valid range [0, {MAX_SHAPE_SCORE}]", point.score),
                    );
                }
                points.push((point.utilization, point.score * (crate::plugins::MAX_SCORE / MAX_SHAPE_SCORE)));
            }
            Strategy::RequestedToCapacityRatio(points.into())
        }
        other => {
            return wrong(
                format!("{path}.type"),
                format!(
                    "Unsupported value: {other:?}: supported values: \"LeastAllocated\", \"MostAllocated\", \"RequestedToCapacityRatio\""
                ),
            );
        }
    };
    Ok(())
}

fn spread(from: &file::PodTopologySpreadArgs, path: &str) -> Result<SpreadDefaulting, Wrong> {
    match (from.defaulting_type.as_str(), from.default_constraints.as_slice()) {
        ("" | "System", []) => Ok(SpreadDefaulting::System),
        ("System", _) => {
            wrong(format!("{path}.defaultingType"), "Invalid value: \"System\": when .defaultConstraints are not empty")
        }
        ("" | "List", constraints) => {
            for (at, c) in constraints.iter().enumerate() {
                let path = format!("{path}.defaultConstraints[{at}]");
                if c.max_skew <= 0 {
                    return wrong(
                        format!("{path}.maxSkew"),
                        format!("Invalid value: {}: not in valid range (0, inf)", c.max_skew),
                    );
                }
                if c.topology_key.is_empty() {
                    return wrong(format!("{path}.topologyKey"), "Required value: can not be empty");
                }
                if !matches!(c.when_unsatisfiable.as_str(), "DoNotSchedule" | "ScheduleAnyway") {
                    return wrong(
                        format!("{path}.whenUnsatisfiable"),
                        format!("Unsupported value: {:?}", c.when_unsatisfiable),
                    );
                }
                if c.label_selector.is_some() {
                    return wrong(
                        format!("{path}.labelSelector"),
                        "Forbidden: constraint must not define a selector, as they deduced for each pod",
                    );
                }
            }
            let of = |c: &TopologySpreadConstraint| SpreadConstraint::of(c);
            Ok(SpreadDefaulting::List(constraints.iter().map(of).collect()))
        }
        (other, _) => wrong(
            format!("{path}.defaultingType"),
            format!("Unsupported value: {other:?}: supported values: \"System\", \"List\""),
        ),
    }
}

fn configure(profile: &mut Profile, config: &ArgsOf, path: &str) -> Result<(), Wrong> {
    find(&config.name, &format!("{path}.name"))?;
    let path = format!("{path}.args");
    let raw = &config.args;
    match config.name.as_str() {
        "NodeResourcesFit" => {
            let args: file::NodeResourcesFitArgs = args(raw, &path)?;
            profile.fit.ignored = args.ignored_resources.into_iter().map(Into::into).collect();
            profile.fit.ignored_groups = args.ignored_resource_groups.into_iter().map(Into::into).collect();
            if let Some(from) = &args.scoring_strategy {
                strategy(from, profile, &format!("{path}.scoringStrategy"))?;
            }
        }
        "NodeResourcesBalancedAllocation" => {
            let args: file::BalancedArgs = args(raw, &path)?;
            if !args.resources.is_empty() {
                let path = format!("{path}.resources");
                if let Some(at) = args.resources.iter().position(|r| !matches!(r.weight, 0 | 1)) {
                    return wrong(
                        format!("{path}[{at}].weight"),
                        format!(
                            "Invalid value: {}: resource weight of {} should be 1",
                            args.resources[at].weight, args.resources[at].name
                        ),
                    );
                }
                profile.balanced = resources(&args.resources, &path)?.iter().map(|r| r.0).collect();
            }
        }
        "InterPodAffinity" => {
            let args: file::InterPodAffinityArgs = args(raw, &path)?;
            let weight = args.hard_pod_affinity_weight.unwrap_or(1);
            if !(0..=MAX_WEIGHT).contains(&weight) {
                return wrong(
                    format!("{path}.hardPodAffinityWeight"),
                    format!("Invalid value: {weight}: not in valid range [0, {MAX_WEIGHT}]"),
                );
            }
            profile.hard_pod_affinity_weight = weight;
            profile.ignore_preferred_terms_of_existing_pods = args.ignore_preferred_terms_of_existing_pods;
        }
        "NodeAffinity" => {
            let args: file::NodeAffinityArgs = args(raw, &path)?;
            if let Some(added) = &args.added_affinity {
                let required = added.required_during_scheduling_ignored_during_execution.as_ref();
                profile.added_affinity = required.map(|r| NodeSelection::new(&Default::default(), Some(r)));
                profile.added_preferences =
                    Preference::all(added.preferred_during_scheduling_ignored_during_execution.as_deref());
            }
        }
        "PodTopologySpread" => profile.spread = spread(&args(raw, &path)?, &path)?,
        "VolumeBinding" => {
            let args: file::VolumeBindingArgs = args(raw, &path)?;
            let seconds = args.bind_timeout_seconds.unwrap_or(600);
            let Ok(seconds) = u64::try_from(seconds) else {
                return wrong(
                    format!("{path}.bindTimeoutSeconds"),
                    format!("Invalid value: {seconds}: invalid BindTimeoutSeconds, should not be a negative value"),
                );
            };
            if !args.shape.is_empty() {
                return wrong(
                    format!("{path}.shape"),
                    "Forbidden: scoring by storage capacity is not supported by this scheduler",
                );
            }
            profile.bind_timeout = Duration::from_secs(seconds);
        }
        "DefaultPreemption" => {
            let args: file::DefaultPreemptionArgs = args(raw, &path)?;
            let percent = args.min_candidate_nodes_percentage.unwrap_or(10);
            let absolute = args.min_candidate_nodes_absolute.unwrap_or(100);
            let Some(percent) = usize::try_from(percent).ok().filter(|p| *p <= 100) else {
                return wrong(
                    format!("{path}.minCandidateNodesPercentage"),
                    format!("Invalid value: {percent}: not in valid range [0, 100]"),
                );
            };
            let Ok(absolute) = usize::try_from(absolute) else {
                return wrong(
                    format!("{path}.minCandidateNodesAbsolute"),
                    format!("Invalid value: {absolute}: not in valid range [0, inf)"),
                );
            };
            if percent == 0 && absolute == 0 {
                return wrong(path, "minCandidateNodesPercentage and minCandidateNodesAbsolute cannot both be zero");
            }
            profile.candidates = (percent, absolute);
        }
        // Their arguments change nothing that is done here.
        "DynamicResources" => {}
        other => return wrong(path, format!("plugin {other:?} takes no arguments")),
    }
    Ok(())
}

fn profile(from: &ProfileFile, path: &str) -> Result<Profile, Wrong> {
    let mut switches = Switches { profile: Profile::default(), sorts: true, binds: true };
    if let Some(name) = &from.scheduler_name {
        switches.profile.scheduler_name = name.as_str().into();
    }
    if let Some(sets) = &from.plugins {
        let path = format!("{path}.plugins");
        for (point, set, name) in [
            (Point::Multi, &sets.multi_point, "multiPoint"),
            (Point::PreEnqueue, &sets.pre_enqueue, "preEnqueue"),
            (Point::QueueSort, &sets.queue_sort, "queueSort"),
            (Point::Other, &sets.pre_filter, "preFilter"),
            (Point::Filter, &sets.filter, "filter"),
            (Point::PostFilter, &sets.post_filter, "postFilter"),
            (Point::Other, &sets.pre_score, "preScore"),
            (Point::Score, &sets.score, "score"),
            (Point::Other, &sets.reserve, "reserve"),
            (Point::Other, &sets.permit, "permit"),
            (Point::Other, &sets.pre_bind, "preBind"),
            (Point::Bind, &sets.bind, "bind"),
            (Point::Other, &sets.post_bind, "postBind"),
        ] {
            switches.apply(point, set.as_ref(), &format!("{path}.{name}"))?;
        }
        let name = &switches.profile.scheduler_name;
        if !switches.sorts {
            return wrong(path, format!("one queue sort plugin required for profile with scheduler name {name:?}"));
        }
        if !switches.binds {
            return wrong(path, format!("at least one bind plugin is needed for profile with scheduler name {name:?}"));
        }
    }
    let mut out = switches.profile;
    for (at, config) in from.plugin_config.iter().enumerate() {
        if from.plugin_config[..at].iter().any(|c| c.name == config.name) {
            return wrong(format!("{path}.pluginConfig[{at}]"), format!("Duplicate value: {:?}", config.name));
        }
        configure(&mut out, config, &format!("{path}.pluginConfig[{at}]"))?;
    }
    Ok(out)
}

/// The extenders, and the resources that are theirs alone to check.
fn extenders(from: Vec<file::ExtenderFile>) -> Result<(Vec<Settings>, Vec<String>), Wrong> {
    let (mut out, mut managed, mut ignored): (Vec<Settings>, Vec<String>, Vec<String>) = Default::default();
    for (at, extender) in from.into_iter().enumerate() {
        let path = format!("extenders[{at}]");
        for resource in &extender.managed_resources {
            if managed.contains(&resource.name) {
                let why = format!("Invalid value: {:?}: duplicate extender managed resource name", resource.name);
                return wrong(format!("{path}.managedResources"), why);
            }
            managed.push(resource.name.clone());
            ignored.extend(resource.ignored_by_scheduler.then(|| resource.name.clone()));
        }
        out.push(extender.checked(&path)?);
    }
    let binders = out.iter().filter(|e| !e.bind.is_empty()).count();
    if binders > 1 {
        let why = format!(
            "Invalid value: \"found {binders} extenders implementing bind\": only one extender can implement bind"
        );
        return wrong("extenders", why);
    }
    Ok((out, ignored))
}

/// Reads a configuration, parsed from YAML or JSON.
pub fn read(raw: &Value) -> Result<Configuration, Wrong> {
    let text = |name: &str| raw[name].as_str().unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if (version, kind) != ("kubescheduler.config.k8s.io/v1", "KubeSchedulerConfiguration") {
        let why = format!(
            "no kind {kind:?} is registered for version {version:?}: want KubeSchedulerConfiguration of kubescheduler.config.k8s.io/v1"
        );
        return wrong("apiVersion", why);
    }
    let from: file::File =
        serde_json::from_value(raw.clone()).or_else(|e| wrong("strict decoding error", e.to_string()))?;
    if from.parallelism.is_some_and(|p| p <= 0) {
        return wrong("parallelism", "Invalid value: should be an integer value greater than zero");
    }
    let percents =
        from.profiles.iter().enumerate().map(|(at, p)| (format!("profiles[{at}]."), p.percentage_of_nodes_to_score));
    for (path, percent) in [(String::new(), from.percentage_of_nodes_to_score)].into_iter().chain(percents) {
        if percent.is_some_and(|p| !(0..=100).contains(&p)) {
            return wrong(format!("{path}percentageOfNodesToScore"), "Invalid value: not in valid range [0-100]");
        }
    }
    let seconds = |value: Option<i64>, usual: u64, path: &str| match value.map(u64::try_from) {
        None => Ok(usual),
        Some(Ok(seconds)) if seconds > 0 => Ok(seconds),
        Some(_) => wrong(path, "Invalid value: must be greater than 0"),
    };
    let first = seconds(from.pod_initial_backoff_seconds, 1, "podInitialBackoffSeconds")?;
    let most = seconds(from.pod_max_backoff_seconds, 10.max(first), "podMaxBackoffSeconds")?;
    if most < first {
        return wrong(
            "podMaxBackoffSeconds",
            format!("Invalid value: {most}: must be greater than or equal to PodInitialBackoffSeconds"),
        );
    }
    if from.profiles.len() > MAX_PROFILES {
        return wrong("profiles", format!("more than {MAX_PROFILES}"));
    }
    let (extenders, ignored) = extenders(from.extenders)?;
    let mut profiles: Vec<ProfileRef> = Vec::new();
    for (at, from) in from.profiles.iter().enumerate() {
        let mut made = profile(from, &format!("profiles[{at}]"))?;
        made.fit.ignore(&ignored);
        let path = format!("profiles[{at}].schedulerName");
        if made.scheduler_name.is_empty() {
            return wrong(path, "Required value");
        }
        if profiles.iter().any(|p| p.scheduler_name == made.scheduler_name) {
            return wrong(path, format!("Duplicate value: {:?}", made.scheduler_name));
        }
        profiles.push(ProfileRef::new(made));
    }
    if profiles.is_empty() {
        let mut made = Profile::default();
        made.fit.ignore(&ignored);
        profiles.push(if ignored.is_empty() { ProfileRef::default() } else { ProfileRef::new(made) });
    }
    Ok(Configuration {
        profiles,
        extenders,
        pod_initial_backoff: Duration::from_secs(first),
        pod_max_backoff: Duration::from_secs(most),
        leader_election: from.leader_election.unwrap_or_default().checked()?,
        kubeconfig: from.client_connection.and_then(|c| c.kubeconfig).filter(|k| !k.is_empty()),
    })
}

impl Plugins {
    /// Every plugin that may refuse.
    pub fn all() -> Self {
        let mut out = Self::default();
        PLUGINS.iter().filter_map(|k| k.filter).for_each(|p| out.insert(p));
        out
    }
}

#[cfg(test)]
mod tests;
