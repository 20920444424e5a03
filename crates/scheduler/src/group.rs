//! Groups of pods that are placed together or not at all (`scheduling.k8s.io` PodGroup, gate `GenericWorkload`).
//!
//! A gang's pods wait outside the queue until there are enough of them; then they are tried as one. Nothing here decides
//! where they go.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use client::Change;
use serde::Deserialize;

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
    groups: HashMap<Arc<str>, Group>,
}

impl Groups {
    /// Takes a change of a PodGroup.
    pub fn take(&mut self, change: &Change) {
        let at_least = change.new.as_ref().and_then(|o| view::<GroupView>(o));
        let at_least = at_least.map(|g| g.spec.scheduling_policy.gang.map_or(0, |g| g.min_count));
        let group = self.groups.entry(change.key.clone()).or_default();
        group.at_least = at_least;
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

    /// How many more pods of a gang must be placed for it to be; `None` where pods go one by one.
    pub fn needs(&self, group: &str) -> Option<usize> {
        let group = self.groups.get(group)?;
        let least = group.at_least.filter(|least| *least > 0)?;
        Some(least.saturating_sub(group.members.values().filter(|placed| **placed).count()))
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
