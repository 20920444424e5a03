//! Groups of pods that are placed together or not at all (`scheduling.k8s.io` PodGroup, gate `GenericWorkload`).
//!
//! A gang's pods wait outside the queue until there are enough of them; then they are tried as one. Nothing here decides
//! where they go.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use client::Change;
use serde::Deserialize;

use crate::pod::Pod;
use crate::symbol::Symbol;
use crate::world::view;

#[derive(Default, Deserialize)]
#[serde(default)]
struct GroupView {
    spec: GroupSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct GroupSpec {
    scheduling_policy: PolicyView,
    scheduling_constraints: Option<ConstraintsView>,
    disruption_mode: Option<ModeView>,
    priority: Option<i32>,
    preemption_policy: Option<Box<str>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ConstraintsView {
    topology: Option<Vec<TopologyView>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TopologyView {
    key: Box<str>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ModeView {
    all: Option<Anything>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Anything {}

/// What a group asks beside how many of it there must be.
#[derive(Clone, Debug, PartialEq)]
pub struct About {
    pub priority: Option<i32>,
    /// `preemptionPolicy` is not `Never`.
    pub preempts: bool,
    /// It can be disrupted as a whole only.
    pub whole: bool,
    /// It is to be in one domain of this label.
    pub topology: Option<Symbol>,
}

impl Default for About {
    fn default() -> Self {
        Self { priority: None, preempts: true, whole: false, topology: None }
    }
}

impl About {
    fn of(spec: &GroupSpec) -> Self {
        let topology = spec.scheduling_constraints.as_ref().and_then(|c| c.topology.as_ref()?.first());
        Self {
            priority: spec.priority,
            preempts: spec.preemption_policy.as_deref() != Some("Never"),
            whole: spec.disruption_mode.as_ref().is_some_and(|m| m.all.is_some()),
            topology: topology.map(|t| Symbol::of(&t.key)),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PolicyView {
    gang: Option<GangView>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct GangView {
    min_count: usize,
}

#[derive(Default)]
struct Group {
    /// `None`: there is no such object. `Some(0)`: its pods go one by one.
    at_least: Option<usize>,
    about: About,
    /// Pods by key, and whether they are placed. Ordered, so that the same is tried each time.
    members: BTreeMap<Arc<str>, bool>,
    /// What its condition says, as far as it was said here.
    told: Option<bool>,
}

/// See the module.
#[derive(Default)]
pub struct Groups {
    /// Whether the gate is open and the API has such things.
    pub enabled: bool,
    /// Whether the gate is open by which groups are kept together in a topology.
    pub topology: bool,
    groups: HashMap<Arc<str>, Group>,
}

impl Groups {
    /// Takes a change of a PodGroup.
    pub fn take(&mut self, change: &Change) {
        let known = change.new.as_ref().and_then(|o| view::<GroupView>(o));
        let group = self.groups.entry(change.key.clone()).or_default();
        group.about = known.as_ref().map(|g| About::of(&g.spec)).unwrap_or_default();
        group.at_least = known.map(|g| g.spec.scheduling_policy.gang.map_or(0, |g| g.min_count));
        self.sweep(&change.key);
    }

    /// Notes a pod of a group, and whether it is placed.
    pub fn join(&mut self, group: &Arc<str>, pod: &Arc<str>, placed: bool) {
        self.groups.entry(group.clone()).or_default().members.insert(pod.clone(), placed);
    }

    pub fn leave(&mut self, group: &Arc<str>, pod: &str) {
        if let Some(known) = self.groups.get_mut(group) {
            known.members.remove(pod);
            self.sweep(group);
        }
    }

    fn sweep(&mut self, group: &Arc<str>) {
        if self.groups.get(group).is_some_and(|g| g.at_least.is_none() && g.members.is_empty()) {
            self.groups.remove(group);
        }
    }

    /// Whether the group's pods may be tried.
    pub fn is_ready(&self, group: &str) -> bool {
        let ready = |g: &Group| g.at_least.is_some_and(|least| g.members.len() >= least);
        self.groups.get(group).is_some_and(ready)
    }

    /// What a group's pods wait for before they are tried, if anything.
    pub fn missing(&self, group: &str) -> Option<String> {
        if self.is_ready(group) {
            return None;
        }
        let (_, name) = meta::object::split_key(group);
        Some(match self.groups.get(group).and_then(|g| g.at_least) {
            None => format!("waiting for pod's pod group {name:?} to appear in scheduling queue"),
            Some(_) => "waiting for minCount pods from a gang to appear in scheduling queue".into(),
        })
    }

    /// How many more pods of a gang must be placed for it to be; `None` where pods go one by one.
    pub fn needs(&self, group: &str) -> Option<usize> {
        let group = self.groups.get(group)?;
        let least = group.at_least.filter(|least| *least > 0)?;
        Some(least.saturating_sub(group.members.values().filter(|placed| **placed).count()))
    }

    /// What a group asks; nothing of one that is not known.
    pub fn about(&self, group: &str) -> About {
        self.groups.get(group).map(|g| g.about.clone()).unwrap_or_default()
    }

    /// What is disrupted when a pod is, and how important that is.
    pub fn unit_of(&self, pod: &Pod) -> (Arc<str>, i32) {
        match pod.group.as_ref().and_then(|key| Some((key, &self.groups.get(key)?.about))) {
            // A pod may be called as a group is.
            Some((key, about)) if about.whole => {
                (format!("group {key}").into(), about.priority.unwrap_or(pod.priority()))
            }
            _ => (pod.key.clone(), pod.priority()),
        }
    }

    /// The group's pods that are placed.
    pub fn placed(&self, group: &str) -> impl Iterator<Item = &Arc<str>> {
        let members = self.groups.get(group).into_iter().flat_map(|g| &g.members);
        members.filter(|(_, placed)| **placed).map(|(key, _)| key)
    }

    /// The group's pods that are not placed.
    pub fn waiting(&self, group: &str) -> Vec<Arc<str>> {
        let members = self.groups.get(group).into_iter().flat_map(|g| &g.members);
        members.filter(|(_, placed)| !**placed).map(|(key, _)| key.clone()).collect()
    }

    /// Whether the group's condition is to be written, because it does not say so already.
    pub fn is_news(&mut self, group: &str, scheduled: bool) -> bool {
        let Some(group) = self.groups.get_mut(group) else { return false };
        // Once all of it was placed, that stands.
        if group.told == Some(true) || group.told == Some(scheduled) {
            return false;
        }
        group.told = Some(scheduled);
        true
    }
}
