//! How many replicas a HorizontalPodAutoscaler wants: metric arithmetic, then behaviour (stabilization and policies).
//! Pure; what metrics say is gathered by [`crate::horizontal_pod_autoscaler`].

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerSpec};

use crate::pods::{PodView, seconds_between};

/// What autoscalers go by where they say nothing themselves.
#[derive(Clone, Copy, Debug)]
pub struct Autoscaling {
    /// How often an autoscaler looks.
    pub period: Duration,
    /// Relative deviation from the target that is let be.
    pub tolerance: f64,
    /// How long a pod's processor use is disbelieved after its start, unless it is ready and was measured since.
    pub cpu_initialization: Duration,
    /// How long after its start a pod that is not ready counts as never having been ready.
    pub initial_readiness_delay: Duration,
    /// How long the highest recommendation of the past holds against scaling down.
    pub downscale_stabilization: Duration,
}

impl Default for Autoscaling {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(15),
            tolerance: 0.1,
            cpu_initialization: Duration::from_secs(300),
            initial_readiness_delay: Duration::from_secs(30),
            downscale_stabilization: Duration::from_secs(300),
        }
    }
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

/// Longest stabilization window and policy period there is, in seconds: what is remembered.
const MEMORY: i64 = 3600;
/// Replicas an autoscaler without behaviour may always scale up to; beyond, to twice what there is.
const PLAIN_LIMIT: i64 = 4;
/// Recommendations and scalings remembered: a look every 15 s for an hour, with room.
const MAX_REMEMBERED: usize = 1000;

/// One pod's measure of one metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    pub pod: String,
    /// In thousandths of the metric's unit.
    pub milli: i64,
    pub at: Timestamp,
    /// Seconds the measure covers.
    pub window: f64,
}

/// The pods of a target, by how far their measures can be believed.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    pub ready: usize,
    pub measured: Vec<Measured>,
    pub unready: Vec<String>,
    pub missing: Vec<String>,
}

/// Sorts pods: those that ended or leave do not count; `is_cpu` says that starting pods burn more than they will.
pub fn group(pods: &[PodView], measures: &[Measured], is_cpu: bool, settings: &Autoscaling, now: Timestamp) -> Groups {
    let mut groups = Groups::default();
    for pod in pods.iter().filter(|p| !p.is_terminating() && !p.is_failed()) {
        let name = pod.name().to_string();
        if pod.phase() == "Pending" || pod.phase().is_empty() {
            groups.unready.push(name);
            continue;
        }
        let Some(measure) = measures.iter().find(|m| m.pod == name) else {
            groups.missing.push(name);
            continue;
        };
        if is_cpu && is_starting(pod, measure, settings, now) {
            groups.unready.push(name);
            continue;
        }
        groups.ready += 1;
        groups.measured.push(measure.clone());
    }
    groups
}

fn is_starting(pod: &PodView, measure: &Measured, settings: &Autoscaling, now: Timestamp) -> bool {
    let condition = pod.condition("Ready");
    let started = pod.facts.start_time;
    let (Some(condition), Some(started)) = (condition, started) else { return true };
    let changed = condition.last_transition_time.unwrap_or(started);
    if seconds_between(started, now) < seconds(settings.cpu_initialization) {
        let covered = seconds_between(changed, measure.at) as f64;
        return condition.status == "False" || covered < measure.window;
    }
    condition.status == "False" && seconds_between(started, changed) < seconds(settings.initial_readiness_delay)
}

/// What a metric's target compares with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Percent of what the pods request.
    Utilization(i64),
    /// Thousandths a pod on average.
    Average(i64),
}

/// What one metric wants, and what it said.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    pub replicas: i64,
    /// Percent of requests, for utilization.
    pub utilization: Option<i64>,
    /// Thousandths a pod on average.
    pub average_milli: i64,
}

/// Tolerances below and above the target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerances {
    pub down: f64,
    pub up: f64,
}

impl Tolerances {
    fn allow(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// (use of target, percent of requests when that is the target, average in thousandths)
fn ratio(
    measured: &[Measured],
    target: Target,
    request: &dyn Fn(&str) -> Option<i64>,
) -> Result<(f64, Option<i64>, i64), String> {
    let used: i64 = measured.iter().map(|m| m.milli).sum();
    let average = used / i64::try_from(measured.len().max(1)).unwrap_or(1);
    match target {
        Target::Average(wanted) => Ok((average as f64 / wanted.max(1) as f64, None, average)),
        Target::Utilization(wanted) => {
            let requested: i64 = measured.iter().filter_map(|m| request(&m.pod)).sum();
            if requested == 0 {
                return Err("no metrics returned matched known pods".into());
            }
            let percent = used * 100 / requested;
            Ok((percent as f64 / wanted.max(1) as f64, Some(percent), average))
        }
    }
}

fn ceil(number: f64) -> i64 {
    // Beyond any cluster anyway; the cast saturates.
    number.ceil() as i64
}

/// Replicas by a metric that each pod has. `request` is a pod's request in thousandths; missing ones are an error the
/// caller found before.
pub fn by_pods(
    current: i64,
    mut groups: Groups,
    target: Target,
    request: &dyn Fn(&str) -> Option<i64>,
    tolerances: Tolerances,
) -> Result<Proposal, String> {
    if groups.measured.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".into());
    }
    let (used, utilization, average_milli) = ratio(&groups.measured, target, request)?;
    let proposal = |replicas| Ok(Proposal { replicas, utilization, average_milli });
    let add_unready = !groups.unready.is_empty() && used > 1.0;
    if !add_unready && groups.missing.is_empty() {
        if tolerances.allow(used) {
            return proposal(current);
        }
        return proposal(ceil(used * groups.ready as f64));
    }
    let assumed = |pod: &String, milli: i64| Measured { pod: pod.clone(), milli, at: Timestamp::MIN, window: 0.0 };
    // What is not known is assumed to be against the change: full use before scaling down, none before scaling up.
    if used < 1.0 {
        for pod in &groups.missing {
            let full = match target {
                Target::Utilization(percent) => request(pod).unwrap_or(0) * percent.max(100) / 100,
                Target::Average(milli) => milli,
            };
            groups.measured.push(assumed(pod, full));
        }
    } else if used > 1.0 {
        groups.measured.extend(groups.missing.iter().map(|pod| assumed(pod, 0)));
    }
    if add_unready {
        groups.measured.extend(groups.unready.iter().map(|pod| assumed(pod, 0)));
    }
    let (again, _, _) = ratio(&groups.measured, target, request)?;
    if tolerances.allow(again) || (used < 1.0 && again > 1.0) || (used > 1.0 && again < 1.0) {
        return proposal(current);
    }
    let replicas = ceil(again * groups.measured.len() as f64);
    // Assumptions must not turn the change around.
    if (again < 1.0 && replicas > current) || (again > 1.0 && replicas < current) {
        return proposal(current);
    }
    proposal(replicas)
}

/// Replicas by one value for the whole target: the pods share it by their number.
pub fn by_value(current: i64, ready: usize, value: i64, target: i64, tolerances: Tolerances) -> i64 {
    let used = value as f64 / target.max(1) as f64;
    if current == 0 {
        // From zero there are no pods to scale: one for each target's worth.
        return ceil(used);
    }
    if tolerances.allow(used) { current } else { ceil(used * ready as f64) }
}

/// Replicas by one value that should be so much for each pod.
pub fn by_average(current: i64, status_replicas: i64, value: i64, target: i64, tolerances: Tolerances) -> i64 {
    let used =
        if status_replicas == 0 { f64::INFINITY } else { value as f64 / (target.max(1) * status_replicas) as f64 };
    if status_replicas > 0 && tolerances.allow(used) { current } else { ceil(value as f64 / target.max(1) as f64) }
}

/// What is remembered of an autoscaler between looks; a restart begins anew, as upstream's does.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// (when, replicas wanted)
    recommendations: Vec<(Timestamp, i64)>,
    /// (when, replicas added or, negative, removed)
    scalings: Vec<(Timestamp, i64)>,
}

impl History {
    fn forget(&mut self, now: Timestamp) {
        for list in [&mut self.recommendations, &mut self.scalings] {
            list.retain(|(at, _)| seconds_between(*at, now) <= MEMORY);
            let beyond = list.len().saturating_sub(MAX_REMEMBERED);
            list.drain(..beyond);
        }
    }

    pub fn scaled(&mut self, change: i64, now: Timestamp) {
        self.scalings.push((now, change));
    }
}

/// Why the number is not what metrics want.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounded {
    pub replicas: i64,
    /// (reason, message) when stabilization holds.
    pub stabilized: Option<(&'static str, &'static str)>,
    /// (reason, message) when a bound or a policy holds.
    pub limited: Option<(&'static str, &'static str)>,
}

/// The bound that policies set on scaling from `current`.
fn policy_bound(rules: &HPAScalingRules, current: i64, scalings: &[(Timestamp, i64)], up: bool, now: Timestamp) -> i64 {
    let select = rules.select_policy.as_deref().unwrap_or("Max");
    if select == "Disabled" {
        return current;
    }
    let sign = if up { 1 } else { -1 };
    let bounds = rules.policies.iter().flatten().map(|policy| {
        let period = i64::from(policy.period_seconds);
        let recent = scalings.iter().filter(|(at, change)| change * sign > 0 && seconds_between(*at, now) < period);
        let start = current - recent.map(|(_, change)| change).sum::<i64>();
        let value = i64::from(policy.value);
        match policy.type_.as_str() {
            "Percent" if up => ceil(start as f64 * (1.0 + value as f64 / 100.0)),
            "Percent" => (start as f64 * (1.0 - value as f64 / 100.0)).floor() as i64,
            _ => start + sign * value,
        }
    });
    // "Max" is the largest change either way.
    let bound = if (select == "Min") == up { bounds.min() } else { bounds.max() };
    bound.unwrap_or(current)
}

/// Rules with upstream's defaults for what is not said.
fn rules(spec: &HorizontalPodAutoscalerSpec, settings: &Autoscaling, up: bool) -> (HPAScalingRules, i64) {
    use k8s_openapi::api::autoscaling::v2::HPAScalingPolicy;
    let behavior = spec.behavior.clone().unwrap_or_default();
    let mut rules = if up { behavior.scale_up } else { behavior.scale_down }.unwrap_or_default();
    let policy = |type_: &str, value| HPAScalingPolicy { type_: type_.into(), value, period_seconds: 15 };
    if rules.policies.as_ref().is_none_or(Vec::is_empty) {
        let all = if up { vec![policy("Pods", 4), policy("Percent", 100)] } else { vec![policy("Percent", 100)] };
        rules.policies = Some(all);
    }
    let usual = if up { 0 } else { seconds(settings.downscale_stabilization) };
    let window = rules.stabilization_window_seconds.map_or(usual, i64::from);
    (rules, window)
}

/// The tolerances an autoscaler names, else the usual.
pub fn tolerances(spec: &HorizontalPodAutoscalerSpec, usual: f64) -> Tolerances {
    let of = |rules: Option<&HPAScalingRules>| {
        let named = rules.and_then(|r| r.tolerance.as_ref()).and_then(|q| q.0.parse::<meta::quantity::Quantity>().ok());
        named.map_or(usual, |q| q.milli_value() as f64 / 1000.0)
    };
    let behavior = spec.behavior.as_ref();
    Tolerances {
        down: of(behavior.and_then(|b| b.scale_down.as_ref())),
        up: of(behavior.and_then(|b| b.scale_up.as_ref())),
    }
}

/// Brings what metrics want within stabilization, policies and the spec's bounds.
pub fn bound(
    spec: &HorizontalPodAutoscalerSpec,
    settings: &Autoscaling,
    history: &mut History,
    current: i64,
    wanted: i64,
    now: Timestamp,
) -> Bounded {
    let (least, most) = (i64::from(spec.min_replicas.unwrap_or(1)), i64::from(spec.max_replicas));
    history.forget(now);
    // The first look is no change: what runs counts as recommended, so that a restart of ours does not scale down.
    if history.recommendations.is_empty() {
        history.recommendations.push((now, current));
    }
    let ((up, up_window), (down, down_window)) = (rules(spec, settings, true), rules(spec, settings, false));
    let within = |window: i64| {
        let past = history.recommendations.iter().filter(move |(at, _)| seconds_between(*at, now) < window);
        past.map(|(_, n)| *n)
    };
    let highest = within(down_window).chain([wanted]).max().unwrap_or(wanted);
    let lowest = within(up_window).chain([wanted]).min().unwrap_or(wanted);
    let steady = current.clamp(lowest.min(highest), highest.max(lowest));
    history.recommendations.push((now, wanted));
    let stabilized = match steady {
        n if n == wanted => None,
        n if n > wanted => Some((
            "ScaleDownStabilized",
            "recent recommendations were higher than current one, applying the highest recent recommendation",
        )),
        _ => Some((
            "ScaleUpStabilized",
            "recent recommendations were lower than current one, applying the lowest recent recommendation",
        )),
    };
    let (replicas, limited) = if steady > current {
        // Without behaviour the bound is older than policies, and a little lower.
        let bound = match spec.behavior {
            None => (2 * current).max(PLAIN_LIMIT),
            Some(_) => policy_bound(&up, current, &history.scalings, true, now).max(current),
        };
        let (top, why) = if bound < most {
            (bound, ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate"))
        } else {
            (most, ("TooManyReplicas", "the desired replica count is more than the maximum replica count"))
        };
        if steady > top { (top, Some(why)) } else { (steady, None) }
    } else if steady < current {
        let bound = policy_bound(&down, current, &history.scalings, false, now).min(current);
        let (bottom, why) = if bound > least {
            (bound, ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate"))
        } else {
            (least, ("TooFewReplicas", "the desired replica count is less than the minimum replica count"))
        };
        if steady < bottom { (bottom, Some(why)) } else { (steady, None) }
    } else if steady < least {
        (least, Some(("TooFewReplicas", "the desired replica count is less than the minimum replica count")))
    } else {
        (steady, None)
    };
    Bounded { replicas, stabilized, limited }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HorizontalPodAutoscalerBehavior};

    use super::*;

    const USUAL: Tolerances = Tolerances { down: 0.1, up: 0.1 };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn groups(milli: &[i64], unready: usize, missing: usize) -> Groups {
        let measure = |(i, m): (usize, &i64)| Measured { pod: format!("p{i}"), milli: *m, at: at(0), window: 30.0 };
        Groups {
            ready: milli.len(),
            measured: milli.iter().enumerate().map(measure).collect(),
            unready: (0..unready).map(|i| format!("u{i}")).collect(),
            missing: (0..missing).map(|i| format!("m{i}")).collect(),
        }
    }

    #[test]
    fn pods_metrics() {
        let request = |_: &str| Some(1000);
        // (current, measures, unready, missing, percent wanted, expected)
        for (what, current, milli, unready, missing, percent, expect) in [
            ("up", 3, &[300, 500, 700][..], 0, 0, 30, 5),
            ("down", 5, &[100, 300, 500, 250, 250], 0, 0, 50, 3),
            ("tolerated", 3, &[1010, 1030, 1020], 0, 0, 100, 3),
            ("up, unready pods hold it back", 3, &[400, 500], 1, 0, 30, 3),
            ("down, unready pods do not count", 5, &[100, 300, 500, 250, 250], 2, 0, 50, 3),
            ("down, missing pods count in full", 4, &[100, 100, 100], 0, 1, 50, 3),
            ("up, but not beyond tolerance with idle ones", 4, &[700, 700, 700], 0, 1, 50, 4),
            ("up, missing pods count as idle", 4, &[900, 900, 900], 0, 1, 50, 6),
        ] {
            let found =
                by_pods(current, groups(milli, unready, missing), Target::Utilization(percent), &request, USUAL);
            assert_eq!(found.unwrap().replicas, expect, "{what}");
        }
        let none = by_pods(3, groups(&[], 3, 0), Target::Average(1), &request, USUAL);
        assert!(none.is_err());
        let average = by_pods(3, groups(&[20_000, 10_000, 30_000], 0, 0), Target::Average(15_000), &request, USUAL);
        assert_eq!(average.unwrap(), Proposal { replicas: 4, utilization: None, average_milli: 20_000 });
        let narrow = Tolerances { up: 0.01, down: 0.1 };
        let found = by_pods(3, groups(&[1030, 1030, 1030], 0, 0), Target::Utilization(100), &request, narrow);
        assert_eq!(found.unwrap().replicas, 4, "a tolerance of its own");
    }

    #[test]
    fn values() {
        let t = USUAL;
        assert_eq!(by_value(3, 3, 20_000, 15_000, t), 4);
        assert_eq!(by_value(3, 3, 15_500, 15_000, t), 3);
        assert_eq!(by_value(0, 0, 31_000, 15_000, t), 3);
        assert_eq!(by_average(3, 3, 8_600, 2_150, t), 4);
        assert_eq!(by_average(3, 3, 6_500, 2_150, t), 3);
        assert_eq!(by_average(0, 0, 100, 50, t), 2);
    }

    fn spec(least: i32, most: i32) -> HorizontalPodAutoscalerSpec {
        HorizontalPodAutoscalerSpec { min_replicas: Some(least), max_replicas: most, ..Default::default() }
    }

    #[test]
    fn scaling_up_is_at_once_but_bounded() {
        for (current, wanted, expect, why) in [
            (3, 5, 5, None),
            (1, 50, 4, Some("ScaleUpLimit")),
            (3, 50, 6, Some("ScaleUpLimit")),
            (10, 50, 20, Some("ScaleUpLimit")),
            (60, 300, 100, Some("TooManyReplicas")),
            (1, 1, 2, Some("TooFewReplicas")),
        ] {
            let bounded =
                bound(&spec(2, 100), &Autoscaling::default(), &mut History::default(), current, wanted, at(0));
            assert_eq!((bounded.replicas, bounded.limited.map(|l| l.0)), (expect, why), "{current} {wanted}");
        }
        // With behaviour what was added within the period counts.
        let named = HorizontalPodAutoscalerSpec { behavior: Some(Default::default()), ..spec(1, 100) };
        assert_eq!(bound(&named, &Autoscaling::default(), &mut History::default(), 3, 50, at(0)).replicas, 7);
        let mut history = History::default();
        history.scaled(4, at(0));
        assert_eq!(bound(&named, &Autoscaling::default(), &mut history, 8, 50, at(10)).replicas, 8);
        assert_eq!(bound(&named, &Autoscaling::default(), &mut history, 8, 50, at(15)).replicas, 16);
    }

    #[test]
    fn scaling_down_waits_for_its_window() {
        let mut history = History::default();
        let spec = spec(2, 100);
        let first = bound(&spec, &Autoscaling::default(), &mut history, 10, 4, at(0));
        assert_eq!((first.replicas, first.stabilized.map(|s| s.0)), (10, Some("ScaleDownStabilized")));
        assert_eq!(bound(&spec, &Autoscaling::default(), &mut history, 10, 3, at(299)).replicas, 10);
        assert_eq!(bound(&spec, &Autoscaling::default(), &mut history, 10, 3, at(301)).replicas, 3);
        assert_eq!(bound(&spec, &Autoscaling::default(), &mut History::default(), 10, 10, at(0)).replicas, 10);
    }

    #[test]
    fn policies() {
        let policy = |type_: &str, value| HPAScalingPolicy { type_: type_.into(), value, period_seconds: 60 };
        let rules = |select: &str, policies: Vec<HPAScalingPolicy>| HPAScalingRules {
            select_policy: Some(select.into()),
            policies: Some(policies),
            stabilization_window_seconds: Some(0),
            ..Default::default()
        };
        let with = |r: HPAScalingRules, up: bool| {
            let mut behavior = HorizontalPodAutoscalerBehavior::default();
            if up {
                behavior.scale_up = Some(r)
            } else {
                behavior.scale_down = Some(r)
            }
            HorizontalPodAutoscalerSpec { behavior: Some(behavior), ..spec(1, 1000) }
        };
        let both = || vec![policy("Pods", 3), policy("Percent", 50)];
        for (select, up, current, wanted, expect) in [
            ("Max", true, 10, 100, 15),
            ("Min", true, 10, 100, 13),
            ("Disabled", true, 10, 100, 10),
            ("Max", false, 10, 1, 5),
            ("Min", false, 10, 1, 7),
            ("Disabled", false, 10, 1, 10),
        ] {
            let mut history = History { recommendations: vec![(at(-1000), 1)], scalings: Vec::new() };
            let bounded =
                bound(&with(rules(select, both()), up), &Autoscaling::default(), &mut history, current, wanted, at(0));
            assert_eq!(bounded.replicas, expect, "{select} {up}");
        }
    }
}
