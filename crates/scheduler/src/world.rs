//! What the scheduler knows, and how changes of objects change it: the snapshot, the queue, the pods assumed to be placed.
//!
//! No call to the API is made here, and no clock read but to tell how long that took.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use client::Change;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use meta::Object;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::core::Core;
use crate::devices::{Devices, allocation};
use crate::events::Events;
use crate::group::Groups;
use crate::hints::{Event, has_moved};
use crate::metrics::{METRICS, Verb};
use crate::node::{Node, Offer};
use crate::plugins::{dynamic_resources, scheduling_gates};
use crate::pod::{Pod, Specs};
use crate::profile::ProfileRef;
use crate::queue::{Condition, PodQueue};
use crate::selector::Selector;
use crate::sources::Source;
use crate::symbol::{Labels, Symbol};
use crate::verdict::Plugin;
use crate::view::{NodeView, PodView};

/// How long a pod is held before its status says so: hardly any is held longer, and a write costs more than the wait.
const UNTOLD_FOR: Duration = Duration::from_secs(5);

/// See the module.
pub struct World {
    pub core: Core,
    pub queue: PodQueue,
    pub specs: Specs,
    /// Pods placed here but not yet seen placed: their uid.
    pub assumed: HashMap<Arc<str>, Arc<str>>,
    /// Pods that only claims or companions that are not there hold outside the queue.
    held: HashSet<Arc<str>>,
    /// When those are to be told of that are held still, in order.
    untold: VecDeque<(Instant, Arc<str>)>,
    pub groups: Groups,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Owner {
    spec: OwnerSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OwnerSpec {
    selector: Option<serde_json::Value>,
}

/// An object's body in a form of ours; `None` (said once) when it is no such thing.
pub fn view<T: DeserializeOwned>(object: &Object) -> Option<T> {
    serde_json::from_slice(object.raw())
        .inspect_err(|error| tracing::warn!(kind = %object.kind, key = object.meta.key(), %error, "an object that cannot be read"))
        .ok()
}

impl World {
    pub fn new(queue: PodQueue, profiles: Vec<ProfileRef>) -> Self {
        Self {
            core: Core::default(),
            queue,
            specs: Specs::with_profiles(profiles),
            assumed: HashMap::new(),
            held: HashSet::new(),
            untold: VecDeque::new(),
            groups: Groups::default(),
        }
    }

    /// Takes changes of one source.
    pub fn take(&mut self, source: Source, changes: Vec<Change>, events: &mut Events, now: Instant) {
        let mut began = std::time::Instant::now();
        for change in changes {
            let (_, name) = meta::object::split_key(&change.key);
            let mut assigned = source == Source::Pods && self.core.snapshot.pod(&change.key).is_some();
            match source {
                Source::Pods => self.take_pod(&change, events, now),
                Source::Nodes => self.take_node(&change, events),
                Source::Namespaces => {
                    let labels = |o: &Arc<Object>| Labels::new(o.meta.labels.iter().map(|(k, v)| (&**k, &**v)));
                    if self.core.snapshot.set_namespace(name, change.new.as_ref().map(labels)) {
                        events.push(Event::Namespace);
                    }
                }
                Source::Services | Source::ReplicaSets | Source::ReplicationControllers | Source::StatefulSets => {
                    self.take_owner(source, &change);
                }
                Source::Claims
                | Source::Volumes
                | Source::Classes
                | Source::CsiNodes
                | Source::CsiDrivers
                | Source::Capacities
                | Source::Attachments => {
                    self.take_storage(source, &change, events);
                }
                Source::Budgets => self.core.budgets.take(&change),
                Source::PodGroups => {
                    self.groups.take(&change);
                    self.look_at_group(&change.key, events, now);
                }
                Source::DeviceClaims | Source::DeviceClasses | Source::DeviceSlices | Source::DeviceTaintRules => {
                    self.take_devices(source, &change, events);
                    if source == Source::DeviceClasses {
                        self.take_classes(events, now);
                    }
                }
            }
            assigned = assigned || source == Source::Pods && self.core.snapshot.pod(&change.key).is_some();
            let verb = match (&change.old, &change.new) {
                (None, Some(_)) => Verb::Add,
                (_, None) => Verb::Delete,
                _ => Verb::Update,
            };
            let ended = std::time::Instant::now();
            METRICS.handled(source, assigned, verb, ended - began);
            began = ended;
        }
        if source == Source::DeviceClaims {
            let keys = self.held.iter().cloned().collect();
            self.let_in(keys, now);
        }
    }

    /// Classes may stand for other resources now: pods that wait may ask for something else.
    fn take_classes(&mut self, events: &mut Events, now: Instant) {
        let classes = self.core.snapshot.devices.extended_classes();
        if self.specs.classes == classes {
            return;
        }
        self.specs.classes = classes;
        for object in self.queue.objects() {
            let key: Arc<str> = object.meta.key().into();
            self.take_pod(&Change { key, old: None, new: Some(object) }, events, now);
        }
        events.push(Event::Devices);
    }

    /// What beside its gates holds a pod outside the queue: claims or companions that are not there.
    pub fn held_by(&self, pod: &Pod) -> Option<String> {
        let devices = &self.core.snapshot.devices;
        let asks = devices.served && !pod.claims.is_empty() && pod.spec.profile.has(Plugin::DynamicResources);
        let by_claims = if asks { dynamic_resources::claims(devices, pod).err() } else { None };
        let group = pod.group.as_ref().filter(|_| self.groups.enabled);
        by_claims.or_else(|| self.groups.missing(group?))
    }

    /// Pods that are held for so long that their status is to say so, and what holds them; each once.
    pub fn held_too_long(&mut self, now: Instant) -> Vec<(Arc<str>, String)> {
        let mut out = Vec::new();
        while self.untold.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, key)) = self.untold.pop_front() else { break };
            let waiting = self.queue.get(&key).filter(|_| self.held.contains(&key));
            if let Some(why) = waiting.and_then(|w| self.held_by(&w.pod)) {
                out.push((key, why));
            }
        }
        out
    }

    /// When that is to be asked next.
    pub fn next_to_tell(&self) -> Option<Instant> {
        self.untold.front().map(|(due, _)| *due)
    }

    /// Lets pods into the queue that are not held any more.
    fn let_in(&mut self, keys: Vec<Arc<str>>, now: Instant) {
        for key in keys {
            let Some(waiting) = self.queue.get(&key).filter(|_| self.held.contains(&key)) else { continue };
            if self.held_by(&waiting.pod).is_none() {
                self.held.remove(&key);
                self.queue.open(&key, now);
            }
        }
    }

    /// A group changed, or a pod joined it.
    fn look_at_group(&mut self, group: &Arc<str>, events: &mut Events, now: Instant) {
        events.push(Event::Group(group.clone()));
        if self.groups.is_ready(group) {
            let keys = self.groups.waiting(group);
            self.let_in(keys, now);
        }
    }

    /// The label in one domain of which a group is to be, if any.
    pub fn topology_of(&self, group: &str, pod: &Pod) -> Option<Symbol> {
        let on = self.groups.enabled && self.groups.topology && pod.spec.profile.generates_placements;
        self.groups.about(group).topology.filter(|_| on)
    }

    /// The domain a group is in already.
    pub fn domain_of(&self, group: &str, key: Symbol) -> Option<Symbol> {
        let snapshot = &self.core.snapshot;
        let node = |pod: &Arc<str>| Some(snapshot.node(snapshot.pod(pod)?.node));
        self.groups.placed(group).find_map(|pod| node(pod)?.labels.get(key))
    }

    fn take_owner(&mut self, source: Source, change: &Change) {
        let (namespace, name) = meta::object::split_key(&change.key);
        let spec = |o: &Arc<Object>| view::<Owner>(o).and_then(|o| o.spec.selector);
        let raw = change.new.as_ref().and_then(spec);
        let by_map = |raw: &serde_json::Value| {
            let pairs = raw.as_object().filter(|m| !m.is_empty())?;
            Some(Selector::equal(pairs.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)))))
        };
        let by_selector = |raw: serde_json::Value| {
            serde_json::from_value::<LabelSelector>(raw).ok().map(|s| Selector::compile(Some(&s)))
        };
        let defaults = &mut self.core.snapshot.spread_defaults;
        match source {
            Source::Services => defaults.set_service(namespace, name, raw.as_ref().and_then(by_map)),
            Source::ReplicationControllers => {
                defaults.set_controller("ReplicationController", namespace, name, raw.as_ref().and_then(by_map));
            }
            Source::ReplicaSets => defaults.set_controller("ReplicaSet", namespace, name, raw.and_then(by_selector)),
            _ => defaults.set_controller("StatefulSet", namespace, name, raw.and_then(by_selector)),
        }
    }

    fn take_node(&mut self, change: &Change, events: &mut Events) {
        let snapshot = &mut self.core.snapshot;
        let known = snapshot.node_id(Symbol::of(&change.key)).map(|id| snapshot.node(id)).filter(|n| n.present);
        let before = known.map(|n| n.offer.clone());
        let Some(object) = &change.new else {
            snapshot.remove_node(&change.key);
            before.into_iter().for_each(|offer| events.push(Event::NodeGone(offer)));
            return;
        };
        let Some(node) = view::<NodeView>(object) else { return };
        if let Some(id) = snapshot.set_node(&change.key, Offer::of(object, &node)) {
            let as_it_was = |offer| Box::new(Node { offer, present: true, ..Node::named((&*change.key).into()) });
            events.push(Event::Node { id, before: before.map(as_it_was) });
        }
    }

    fn leave_group(&mut self, pod: &Pod) {
        if let Some(group) = &pod.group {
            self.groups.leave(group, &pod.key);
        }
    }

    fn forget_pod(&mut self, key: &Arc<str>, events: &mut Events) {
        self.assumed.remove(key);
        self.held.remove(key);
        if let Some(waiting) = self.queue.remove(key) {
            self.drop_nomination(&waiting.pod, events);
            self.leave_group(&waiting.pod);
        }
        if let Some(placed) = self.core.snapshot.remove(key) {
            self.leave_group(&placed.pod);
            events.push(Event::Left(placed.pod, placed.node));
        }
    }

    /// No room is held for a pod any more: others may have it.
    /// A placed pod was told to go: it is on its way out, whether or not that has been seen.
    pub fn note_leaving(&mut self, object: &Object) {
        let snapshot = &mut self.core.snapshot;
        let key = object.meta.key();
        if snapshot.pod(&key).is_some_and(|p| *p.pod.uid == *object.meta.uid && !p.pod.deleting)
            && let Some(mut placed) = snapshot.remove(&key)
        {
            placed.pod.deleting = true;
            let node = snapshot.node(placed.node).name.clone();
            snapshot.place(placed.pod, &node);
        }
    }

    fn drop_nomination(&mut self, pod: &Pod, events: &mut Events) {
        let held = self.core.nominations.node_of(&pod.key).and_then(|node| self.core.snapshot.node_id(node));
        self.core.nominations.set(pod, None);
        held.into_iter().for_each(|id| events.push(Event::Left(pod.clone(), id)));
    }

    /// The same where the pod is on a node now, unless it is that one.
    fn drop_nomination_elsewhere(&mut self, pod: &Pod, node: &str, events: &mut Events) {
        if self.core.nominations.node_of(&pod.key) == Some(Symbol::of(node)) {
            self.core.nominations.set(pod, None);
        } else {
            self.drop_nomination(pod, events);
        }
    }

    fn take_storage(&mut self, source: Source, change: &Change, events: &mut Events) {
        let storage = &mut self.core.snapshot.storage;
        let (key, there, node) = (&change.key, change.new.is_some(), Symbol::of(&change.key));
        let volume = storage.volume(key).cloned();
        let limits = storage.limits(node).map(<[_]>::to_vec);
        if !storage.take(source, change) {
            return;
        }
        match source {
            Source::Claims => events.push(Event::Claim(key.clone())),
            Source::Volumes => {
                if let Some(now) = storage.volume(key) {
                    events.push(Event::Volume { moved: has_moved(volume.as_deref(), now) });
                }
            }
            Source::Capacities => events.push(Event::Capacity),
            Source::CsiDrivers => {
                events.push(Event::Capacity);
                // A driver may be needed no more where it is not.
                events.push(Event::Attachable { more: true });
            }
            Source::Attachments => events.push(Event::Attachable { more: !there }),
            Source::Classes if there => events.push(Event::Class(key.clone())),
            Source::CsiNodes if there => {
                let now = storage.limits(node).unwrap_or_default();
                let no_more = |(driver, limit): &(Symbol, i64)| now.iter().any(|n| n.0 == *driver && n.1 <= *limit);
                events.push(Event::Attachable { more: limits.is_none_or(|before| !before.iter().all(no_more)) });
            }
            _ => {}
        }
    }

    fn take_devices(&mut self, source: Source, change: &Change, events: &mut Events) {
        let devices = &mut self.core.snapshot.devices;
        let taken = |devices: &Devices| devices.claim(&change.key).is_some_and(|c| allocation(c).is_some());
        let before = source == Source::DeviceClaims && taken(devices);
        if !devices.take(source, change) {
            return;
        }
        events.push(match source {
            Source::DeviceClaims => Event::DeviceClaim { key: change.key.clone(), freed: before && !taken(devices) },
            _ => Event::Devices,
        });
    }

    fn take_pod(&mut self, change: &Change, events: &mut Events, now: Instant) {
        let Some(object) = &change.new else { return self.forget_pod(&change.key, events) };
        let Some(view) = view::<PodView>(object) else { return };
        if matches!(&*view.status.phase, "Succeeded" | "Failed") {
            return self.forget_pod(&change.key, events);
        }
        let known = self.core.snapshot.pod(&change.key).map(|p| &p.pod.uid);
        if known.is_some_and(|uid| **uid != *object.meta.uid) {
            // Another pod of the same name.
            self.forget_pod(&change.key, events);
        }
        let pod = Pod::new(object, &view, &mut self.specs);
        if view.spec.node_name.is_empty() {
            self.take_unplaced(pod, object, &view, events, now);
        } else {
            self.take_placed(pod, &view.spec.node_name, events, now);
        }
    }

    fn take_placed(&mut self, pod: Pod, node: &str, events: &mut Events, now: Instant) {
        if let Some(group) = pod.group.as_ref().filter(|_| self.groups.enabled) {
            self.groups.join(group, &pod.key, true);
        }
        let confirmed = self.assumed.remove(&pod.key).is_some();
        self.drop_nomination_elsewhere(&pod, node, events);
        if let Some(waiting) = self.queue.remove(&pod.key) {
            METRICS.bound(waiting.attempts, now.saturating_duration_since(waiting.since()), waiting.flushed);
        }
        if let Some(old) = self.core.snapshot.pod(&pod.key) {
            let same_node = *self.core.snapshot.node(old.node).name == *node;
            let same_pod = Arc::ptr_eq(&old.pod.spec, &pod.spec)
                && old.pod.labels == pod.labels
                && old.pod.deleting == pod.deleting;
            if same_node && same_pod {
                if confirmed {
                    events.push(Event::Came(pod.clone()));
                }
                return self.core.snapshot.refresh(pod);
            }
            events.push(Event::Left(old.pod.clone(), old.node));
        }
        self.core.snapshot.place(pod.clone(), node);
        events.push(Event::Came(pod));
    }

    fn take_unplaced(&mut self, pod: Pod, object: &Arc<Object>, view: &PodView, events: &mut Events, now: Instant) {
        let assumed = self.assumed.contains_key(&pod.key);
        if assumed && !self.queue.contains(&pod.key) {
            // Bound, and not seen yet.
            return;
        }
        if !assumed && (pod.deleting || self.specs.profile(&view.spec.scheduler_name).is_none()) {
            return self.forget_pod(&pod.key, events);
        }
        let condition = view.status.conditions.iter().find(|c| &*c.r#type == "PodScheduled");
        let condition = condition.map_or_else(Condition::default, |c| Condition {
            status: c.status.clone(),
            reason: c.reason.clone(),
            message: c.message.clone(),
        });
        // What was nominated here and is not seen yet must stay. Who is on its way counts where it goes, once.
        if !assumed && self.queue.get(&pod.key).is_none_or(|w| w.pod.uid != pod.uid || w.pod.nominated != pod.nominated)
        {
            self.core.nominations.set(&pod, pod.nominated);
        }
        let gated = pod.spec.profile.has(Plugin::SchedulingGates) && scheduling_gates::holds(view);
        let group = pod.group.clone().filter(|_| self.groups.enabled);
        if let Some(group) = &group {
            self.groups.join(group, &pod.key, assumed);
        }
        let holds = !gated && self.held_by(&pod).is_some();
        if holds {
            if self.held.insert(pod.key.clone()) {
                self.untold.push_back((now + UNTOLD_FOR, pod.key.clone()));
            }
        } else {
            self.held.remove(&pod.key);
        }
        self.queue.put(pod, object.clone(), condition, gated || holds, now);
        if let Some(group) = &group {
            self.look_at_group(group, events, now);
        }
    }
}
