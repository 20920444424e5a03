//! The plugins' arguments: read strictly, given their defaults, checked, and put into a profile.

use std::time::Duration;

use k8s_openapi::api::core::v1::NodeSelectorTerm;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::file::{
    ArgsOf, At, DefaultPreemptionArgs, DynamicResourcesArgs, Form, InterPodAffinityArgs, NodeAffinityArgs,
    NodeResourcesBalancedAllocationArgs, NodeResourcesFitArgs, PodTopologySpreadArgs, Ratio, ResourceSpec,
    ScoringStrategy, ShapePoint, VolumeBindingArgs,
};
use super::mistakes::Mistakes;
use super::{GROUP, GROUP_VERSION, Gates, STRICT, no_duration, not_an_object, time, without_nulls};
use crate::node_selection::{NodeSelection, Preference};
use crate::plugins::MAX_SCORE;
use crate::pod::SpreadConstraint;
use crate::profile::{Profile, Resource, SpreadDefaulting, Strategy};

/// The largest of a shape's scores.
const MAX_SHAPE_SCORE: i32 = 10;

/// One plugin's.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Arguments {
    DefaultPreemption(DefaultPreemptionArgs),
    DynamicResources(DynamicResourcesArgs),
    InterPodAffinity(InterPodAffinityArgs),
    NodeAffinity(NodeAffinityArgs),
    NodeResourcesBalancedAllocation(NodeResourcesBalancedAllocationArgs),
    NodeResourcesFit(NodeResourcesFitArgs),
    PodTopologySpread(PodTopologySpreadArgs),
    VolumeBinding(VolumeBindingArgs),
    /// Of a plugin that takes none.
    Other(Value),
}

fn read<T: DeserializeOwned + Form>(raw: &Value, name: &str) -> Result<T, String> {
    let mut raw = if raw.is_null() { Value::Object(Default::default()) } else { raw.clone() };
    if let Some(wrong) = not_an_object(&raw) {
        return Err(format!("decoding args for plugin {name}: {wrong}"));
    }
    if let Some(map) = raw.as_object_mut() {
        let said = map.remove("kind").and_then(|k| k.as_str().map(str::to_string)).unwrap_or_default();
        let version = map.remove("apiVersion").and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default();
        let wanted = format!("{name}Args");
        if !version.is_empty() && version != GROUP_VERSION {
            let why = format!("no kind {wanted:?} is registered for version {version:?}");
            return Err(format!("decoding args for plugin {name}: {why}"));
        }
        if !said.is_empty() && said != wanted {
            return Err(format!("args for plugin {name} were not of type {wanted}.{GROUP}, got {said}.{GROUP}"));
        }
    }
    if let Some(wrong) = T::wrong(&raw, At::TOP) {
        return Err(format!("decoding args for plugin {name}: {wrong}"));
    }
    let mut unknown = Vec::new();
    T::unknown(&raw, "", &mut unknown);
    if !unknown.is_empty() {
        let unknown = unknown.join(", ");
        return Err(format!("{STRICT}decoding args for plugin {name}: {STRICT}{unknown}"));
    }
    serde_json::from_value(without_nulls(&raw)).map_err(|e| format!("decoding args for plugin {name}: {e}"))
}

fn usual_resources() -> Vec<ResourceSpec> {
    ["cpu", "memory"].map(|name| ResourceSpec { name: name.into(), weight: 1 }).into()
}

fn weigh(resources: &mut Vec<ResourceSpec>) {
    if resources.is_empty() {
        *resources = usual_resources();
    }
    resources.iter_mut().filter(|r| r.weight == 0).for_each(|r| r.weight = 1);
}

impl Arguments {
    /// Those of a plugin, with what it does not say filled in.
    pub fn of(given: &ArgsOf, gates: Gates) -> Result<Self, String> {
        let (name, raw) = (given.name.as_str(), &given.args);
        Ok(match name {
            "DefaultPreemption" => {
                let mut args: DefaultPreemptionArgs = read(raw, name)?;
                args.min_candidate_nodes_percentage.get_or_insert(10);
                args.min_candidate_nodes_absolute.get_or_insert(100);
                Self::DefaultPreemption(args)
            }
            "DynamicResources" => {
                let mut args: DynamicResourcesArgs = read(raw, name)?;
                args.filter_timeout.get_or_insert_with(|| "10s".into());
                args.binding_timeout.get_or_insert_with(|| "10m0s".into());
                for text in args.filter_timeout.iter().chain(&args.binding_timeout) {
                    if time(text).is_none() {
                        return Err(format!("decoding args for plugin {name}: {}", no_duration(text)));
                    }
                }
                Self::DynamicResources(args)
            }
            "InterPodAffinity" => {
                let mut args: InterPodAffinityArgs = read(raw, name)?;
                args.hard_pod_affinity_weight.get_or_insert(1);
                Self::InterPodAffinity(args)
            }
            "NodeAffinity" => Self::NodeAffinity(read(raw, name)?),
            "NodeResourcesBalancedAllocation" => {
                let mut args: NodeResourcesBalancedAllocationArgs = read(raw, name)?;
                weigh(&mut args.resources);
                Self::NodeResourcesBalancedAllocation(args)
            }
            "NodeResourcesFit" => {
                let mut args: NodeResourcesFitArgs = read(raw, name)?;
                let usual = || ScoringStrategy { r#type: "LeastAllocated".into(), ..ScoringStrategy::default() };
                weigh(&mut args.scoring_strategy.get_or_insert_with(usual).resources);
                Self::NodeResourcesFit(args)
            }
            "PodTopologySpread" => {
                let mut args: PodTopologySpreadArgs = read(raw, name)?;
                if args.defaulting_type.is_empty() {
                    args.defaulting_type = "System".into();
                }
                Self::PodTopologySpread(args)
            }
            "VolumeBinding" => {
                let mut args: VolumeBindingArgs = read(raw, name)?;
                args.bind_timeout_seconds.get_or_insert(600);
                if gates.capacity_scoring && args.shape.as_ref().is_none_or(Vec::is_empty) {
                    // The more room is left, the better.
                    args.shape = Some(
                        [(0, MAX_SHAPE_SCORE), (100, 0)]
                            .map(|(utilization, score)| ShapePoint { utilization, score })
                            .into(),
                    );
                }
                Self::VolumeBinding(args)
            }
            _ => Self::Other(raw.clone()),
        })
    }

    /// Those a plugin has without a word in the file; `None` when it takes none.
    pub fn usual(name: &str, gates: Gates) -> Option<Self> {
        let out = Self::of(&ArgsOf { name: name.into(), args: Value::Null }, gates).ok()?;
        (!matches!(out, Self::Other(_))).then_some(out)
    }

    /// Says what is wrong with them.
    pub fn check(&self, path: &str, gates: Gates, out: &mut Mistakes) {
        match self {
            Self::DefaultPreemption(args) => check_preemption(args, path, out),
            Self::DynamicResources(args) => {
                let mut check = |name: &str, text: &Option<String>, least: i64, why: &str| {
                    let text = text.as_deref().unwrap_or_default();
                    if time(text).is_none_or(|t| t < least) {
                        out.invalid(format!("{path}.{name}"), format_args!("{text:?}"), why);
                    }
                };
                check("filterTimeout", &args.filter_timeout, 0, "must be zero or positive");
                check("bindingTimeout", &args.binding_timeout, 1_000_000_000, "must be at least 1 second");
            }
            Self::InterPodAffinity(args) => {
                let weight = args.hard_pod_affinity_weight.unwrap_or_default();
                if !(0..=100).contains(&weight) {
                    out.invalid(format!("{path}.hardPodAffinityWeight"), weight, "not in valid range [0, 100]");
                }
            }
            Self::NodeAffinity(args) => check_added(args, path, out),
            Self::NodeResourcesBalancedAllocation(args) => {
                for (at, resource) in args.resources.iter().enumerate() {
                    let path = format!("{path}.resources[{at}]");
                    if args.resources[..at].iter().any(|r| r.name == resource.name) {
                        out.duplicate(format!("{path}.name"), &resource.name);
                    }
                    if resource.weight != 1 {
                        out.invalid(format!("{path}.weight"), resource.weight, "must be 1");
                    }
                }
            }
            Self::NodeResourcesFit(args) => check_fit(args, path, out),
            Self::PodTopologySpread(args) => check_spread(args, path, out),
            Self::VolumeBinding(args) => {
                let seconds = args.bind_timeout_seconds.unwrap_or_default();
                if seconds < 0 {
                    let why = "invalid BindTimeoutSeconds, should not be a negative value";
                    out.invalid(format!("{path}.bindTimeoutSeconds"), seconds, why);
                }
                let shape = args.shape.as_deref();
                if gates.capacity_scoring {
                    check_shape(shape.unwrap_or_default(), &format!("{path}.shape"), out);
                } else if let Some(shape) = shape {
                    let why = "unexpected field `shape`, remove it or turn on the feature gate StorageCapacityScoring";
                    out.invalid(format!("{path}.shape"), serde_json::to_string(shape).unwrap_or_default(), why);
                }
            }
            Self::Other(_) => {}
        }
    }

    /// Puts checked ones into a profile.
    pub fn apply(&self, profile: &mut Profile) {
        let duration = |text: &Option<String>| {
            let nanos = text.as_deref().and_then(time).and_then(|t| u64::try_from(t).ok());
            nanos.map(Duration::from_nanos).unwrap_or_default()
        };
        let count = |n: Option<i32>| n.and_then(|n| usize::try_from(n).ok()).unwrap_or_default();
        match self {
            Self::DefaultPreemption(args) => {
                profile.candidates =
                    (count(args.min_candidate_nodes_percentage), count(args.min_candidate_nodes_absolute));
            }
            Self::DynamicResources(args) => {
                let within = duration(&args.filter_timeout);
                profile.devices_filter_within = (!within.is_zero()).then_some(within);
                profile.devices_ready_within = duration(&args.binding_timeout);
            }
            Self::InterPodAffinity(args) => {
                profile.hard_pod_affinity_weight = i64::from(args.hard_pod_affinity_weight.unwrap_or(1));
                profile.ignore_preferred_terms_of_existing_pods = args.ignore_preferred_terms_of_existing_pods;
            }
            Self::NodeAffinity(args) => {
                let Some(added) = &args.added_affinity else { return };
                let required = added.required_during_scheduling_ignored_during_execution.as_ref();
                profile.added_affinity = required.map(|r| NodeSelection::new(&Default::default(), Some(r)));
                profile.added_preferences =
                    Preference::all(added.preferred_during_scheduling_ignored_during_execution.as_deref());
            }
            Self::NodeResourcesBalancedAllocation(args) => {
                profile.balanced = args.resources.iter().map(|r| Resource::of(&r.name)).collect();
            }
            Self::NodeResourcesFit(args) => {
                let list = |names: &[String]| names.iter().map(|n| n.as_str().into()).collect();
                profile.fit.ignored = list(&args.ignored_resources);
                profile.fit.ignored_groups = list(&args.ignored_resource_groups);
                let Some(from) = &args.scoring_strategy else { return };
                profile.fit.resources = from.resources.iter().map(|r| (Resource::of(&r.name), r.weight)).collect();
                profile.fit.strategy = match from.r#type.as_str() {
                    "MostAllocated" => Strategy::MostAllocated,
                    "RequestedToCapacityRatio" => {
                        let shape = from.requested_to_capacity_ratio.iter().flat_map(|r| &r.shape);
                        Strategy::RequestedToCapacityRatio(line(shape))
                    }
                    _ => Strategy::LeastAllocated,
                };
            }
            Self::PodTopologySpread(args) => {
                profile.spread = match args.defaulting_type.as_str() {
                    "List" => {
                        SpreadDefaulting::List(args.default_constraints.iter().map(SpreadConstraint::of).collect())
                    }
                    _ => SpreadDefaulting::System,
                };
            }
            Self::VolumeBinding(args) => {
                let seconds = args.bind_timeout_seconds.and_then(|s| u64::try_from(s).ok());
                profile.bind_timeout = Duration::from_secs(seconds.unwrap_or_default());
                profile.volume_shape = args.shape.as_ref().map(|shape| line(shape.iter()));
            }
            Self::Other(_) => {}
        }
    }
}

/// A shape, with scores as nodes get them.
fn line<'a>(shape: impl Iterator<Item = &'a ShapePoint>) -> Box<[(i64, i64)]> {
    let scale = MAX_SCORE / i64::from(MAX_SHAPE_SCORE);
    shape.map(|p| (i64::from(p.utilization), i64::from(p.score) * scale)).collect()
}

fn check_preemption(args: &DefaultPreemptionArgs, path: &str, out: &mut Mistakes) {
    let percent = args.min_candidate_nodes_percentage.unwrap_or_default();
    let absolute = args.min_candidate_nodes_absolute.unwrap_or_default();
    let (percents, absolutes) =
        (format!("{path}.minCandidateNodesPercentage"), format!("{path}.minCandidateNodesAbsolute"));
    if !(0..=100).contains(&percent) {
        out.invalid(&percents, percent, "not in valid range [0, 100]");
    }
    if absolute < 0 {
        out.invalid(&absolutes, absolute, "not in valid range [0, inf)");
    }
    if percent == 0 && absolute == 0 {
        out.invalid(percents, 0, "cannot be zero at the same time as minCandidateNodesAbsolute");
        out.invalid(absolutes, 0, "cannot be zero at the same time as minCandidateNodesPercentage");
    }
}

/// A name as labels and resources have it: `name` or `prefix/name`. Whether something is wrong with it.
pub fn check_name(name: &str, shown: &str, path: &str, out: &mut Mistakes) -> bool {
    const PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    const PREFIX: &str = "prefix part a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    let mut wrong = false;
    let mut say = |why: &str| {
        wrong = true;
        out.invalid(path, shown, why);
    };
    let (prefix, part) = name.split_once('/').map_or((None, name), |(prefix, part)| (Some(prefix), part));
    if part.contains('/') {
        say(
            "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
        );
        return true;
    }
    let lower = |label: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = label.as_bytes();
        edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    match prefix {
        Some("") => say("prefix part must be non-empty"),
        Some(prefix) if prefix.len() > 253 => say("prefix part must be no more than 253 characters"),
        Some(prefix) if !prefix.split('.').all(lower) => say(PREFIX),
        _ => {}
    }
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = part.as_bytes();
    if part.is_empty() {
        say("name part must be non-empty");
    } else if part.len() > 63 {
        say("name part must be no more than 63 characters");
    }
    if !edge(bytes.first())
        || !edge(bytes.last())
        || !bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    {
        say(PART);
    }
    wrong
}

fn check_fit(args: &NodeResourcesFitArgs, path: &str, out: &mut Mistakes) {
    for (at, name) in args.ignored_resources.iter().enumerate() {
        check_name(name, &format!("{name:?}"), &format!("{path}.ignoredResources[{at}]"), out);
    }
    for (at, group) in args.ignored_resource_groups.iter().enumerate() {
        let path = format!("{path}.ignoredResourceGroups[{at}]");
        if group.contains('/') {
            out.invalid(&path, format_args!("{group:?}"), "resource group name can't contain '/'");
        }
        check_name(group, &format!("{group:?}"), &path, out);
    }
    let path = format!("{path}.scoringStrategy");
    let Some(strategy) = &args.scoring_strategy else { return };
    if !matches!(strategy.r#type.as_str(), "LeastAllocated" | "MostAllocated" | "RequestedToCapacityRatio") {
        let supported = ["LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"];
        out.unsupported(format!("{path}.type"), &strategy.r#type, &supported);
    }
    for (at, resource) in strategy.resources.iter().enumerate() {
        if !(1..=100).contains(&resource.weight) {
            let why = format!("resource weight of {} not in valid range (0, 100]", resource.name);
            out.invalid(format!("{path}.resources[{at}].weight"), resource.weight, why);
        }
    }
    let path = format!("{path}.requestedToCapacityRatio");
    match (strategy.r#type == "RequestedToCapacityRatio", &strategy.requested_to_capacity_ratio) {
        (true, None) => out.required(path, "must be specified when type is RequestedToCapacityRatio"),
        (true, Some(Ratio { shape })) => check_shape(shape, &format!("{path}.shape"), out),
        (false, Some(_)) => out.forbidden(path, "must be nil when type is not RequestedToCapacityRatio"),
        (false, None) => {}
    }
}

fn check_shape(shape: &[ShapePoint], path: &str, out: &mut Mistakes) {
    if shape.is_empty() {
        return out.required(path, "at least one point must be specified");
    }
    if let Some(at) = (1..shape.len()).find(|at| shape[at - 1].utilization >= shape[*at].utilization) {
        let why = "values must be sorted in increasing order";
        out.invalid(format!("{path}[{at}].utilization"), shape[at].utilization, why);
    }
    for (at, point) in shape.iter().enumerate() {
        if !(0..=100).contains(&point.utilization) {
            out.invalid(format!("{path}[{at}].utilization"), point.utilization, "not in valid range [0, 100]");
        }
        if !(0..=MAX_SHAPE_SCORE).contains(&point.score) {
            out.invalid(format!("{path}[{at}].score"), point.score, "not in valid range [0, 10]");
        }
    }
}

fn check_spread(args: &PodTopologySpreadArgs, path: &str, out: &mut Mistakes) {
    let kind = format!("{path}.defaultingType");
    match args.defaulting_type.as_str() {
        "System" if !args.default_constraints.is_empty() => {
            out.invalid(kind, "\"System\"", "when .defaultConstraints are not empty");
        }
        "System" | "List" => {}
        other => out.unsupported(kind, other, &["System", "List"]),
    }
    for (at, c) in args.default_constraints.iter().enumerate() {
        let path = format!("{path}.defaultConstraints[{at}]");
        if c.max_skew <= 0 {
            out.invalid(format!("{path}.maxSkew"), c.max_skew, "not in valid range (0, inf)");
        }
        if c.topology_key.is_empty() {
            out.required(format!("{path}.topologyKey"), "can not be empty");
        } else {
            check_name(&c.topology_key, &format!("{:?}", c.topology_key), &format!("{path}.topologyKey"), out);
        }
        match c.when_unsatisfiable.as_str() {
            "" => out.required(format!("{path}.whenUnsatisfiable"), "can not be empty"),
            "DoNotSchedule" | "ScheduleAnyway" => {}
            other => out.unsupported(format!("{path}.whenUnsatisfiable"), other, &["DoNotSchedule", "ScheduleAnyway"]),
        }
        if c.label_selector.is_some() {
            let why = "constraint must not define a selector, as they deduced for each pod";
            out.forbidden(format!("{path}.labelSelector"), why);
        }
        let same = |o: &&k8s_openapi::api::core::v1::TopologySpreadConstraint| {
            o.topology_key == c.topology_key && o.when_unsatisfiable == c.when_unsatisfiable
        };
        if args.default_constraints[..at].iter().any(|o| same(&o)) {
            out.duplicate(&path, &format!("{{{}, {}}}", c.topology_key, c.when_unsatisfiable));
        }
    }
}

fn check_added(args: &NodeAffinityArgs, path: &str, out: &mut Mistakes) {
    let path = format!("{path}.addedAffinity");
    let Some(added) = &args.added_affinity else { return };
    let required = added.required_during_scheduling_ignored_during_execution.iter();
    for (at, term) in required.flat_map(|r| &r.node_selector_terms).enumerate() {
        let path = format!("{path}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[{at}]");
        check_term(term, &path, out);
    }
    let preferred = added.preferred_during_scheduling_ignored_during_execution.iter().flatten();
    // One that counts for nothing is not looked at.
    for (at, term) in preferred.enumerate().filter(|(_, term)| term.weight != 0) {
        check_term(&term.preference, &format!("{path}.preferredDuringSchedulingIgnoredDuringExecution[{at}]"), out);
    }
}

/// As Go shows a list of texts.
fn listed(values: &[String]) -> Value {
    if values.is_empty() { Value::Null } else { values.into() }
}

fn check_term(term: &NodeSelectorTerm, path: &str, out: &mut Mistakes) {
    for (at, e) in term.match_expressions.iter().flatten().enumerate() {
        let path = format!("{path}.matchExpressions[{at}]");
        let values = e.values.as_deref().unwrap_or_default();
        let shown = listed(values);
        let number = |v: &String| v.parse::<i64>().is_ok();
        check_name(&e.key, &format!("{:?}", e.key), &format!("{path}.key"), out);
        let path = format!("{path}.values");
        match e.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                out.invalid(path, shown, "for 'in', 'notin' operators, values set can't be empty");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                out.invalid(path, shown, "values set must be empty for exists and does not exist");
            }
            "Gt" | "Lt" if values.len() != 1 => {
                out.invalid(path, shown, "for 'Gt', 'Lt' operators, exactly one value is required");
            }
            "Gt" | "Lt" if !values.iter().all(number) => {
                let value = format!("{:?}", values[0]);
                out.invalid(format!("{path}[0]"), value, "for 'Gt', 'Lt' operators, the value must be an integer");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => {
                let path = path.trim_end_matches(".values");
                out.say(format!("{path}.operator: Unsupported value: {other:?}"));
            }
        }
    }
    for (at, e) in term.match_fields.iter().flatten().enumerate() {
        let path = format!("{path}.matchFields[{at}]");
        let values = e.values.as_deref().unwrap_or_default();
        if !matches!(e.operator.as_str(), "In" | "NotIn") {
            out.unsupported(format!("{path}.operator"), &e.operator, &["In", "NotIn"]);
        } else if values.len() != 1 {
            out.invalid(format!("{path}.values"), listed(values), "must have one element");
        }
    }
}
