//! The pods that wait for a node.
//!
//! A pod is *active* (to be tried next, by priority and then by how long it waits), *backing off* (to be tried again after
//! a delay that doubles with its attempts), *unschedulable* (until something happens that may help), *gated*, or *out*
//! being tried or bound. Time is given from outside.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use meta::Object;
use tokio::time::Instant;

use crate::hints;
use crate::metrics::{Cause, METRICS};
use crate::pod::Pod;
use crate::profile::ProfileRef;
use crate::verdict::{Plugin, Plugins};

/// How long a pod may lie unschedulable before it is tried again whatever happened, unless the queue is told otherwise.
pub const UNSCHEDULABLE_FOR: Duration = Duration::from_secs(300);

/// What wakes a pod for which room was to be made: one that was in the way is gone, or that came to nothing.
const PREEMPTION: &str = "AssignedPodDelete";

/// The condition `PodScheduled` as last seen or sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Condition {
    pub status: Box<str>,
    pub reason: Box<str>,
    pub message: Box<str>,
}

/// A pod that waits.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub pod: Pod,
    pub object: Arc<Object>,
    pub condition: Condition,
    pub attempts: u32,
    /// Who refused it last.
    pub refused_by: Plugins,
    gated: bool,
    /// Removals under way to make room for it; while there are, nothing wakes it.
    removals: u32,
    /// Whether something would have.
    missed: bool,
    /// Whether it is tried again for nothing but the time it waited.
    pub flushed: bool,
    /// Priority (reversed), when it came, and a number that tells equals apart.
    rank: (i64, Instant, u64),
    /// When it first was to be tried.
    active: Option<Instant>,
    tried: Instant,
    place: Place,
}

impl Waiting {
    /// What it is tried by before others: small is first.
    pub fn rank(&self) -> (i64, Instant, u64) {
        self.rank
    }

    /// Since when it could have been placed: what held it before does not count.
    pub fn since(&self) -> Instant {
        self.active.unwrap_or(self.rank.1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Gated,
    Active,
    /// Until when; whether it may be tried sooner when nothing else is to do.
    BackingOff(Instant, bool),
    Unschedulable,
    Out,
}

impl Place {
    /// Which queue this is: active, backing off, unschedulable, gated.
    fn queue(self) -> Option<usize> {
        match self {
            Self::Active => Some(0),
            Self::BackingOff(..) => Some(1),
            Self::Unschedulable => Some(2),
            Self::Gated => Some(3),
            Self::Out => None,
        }
    }
}

/// See the module.
pub struct PodQueue {
    pods: HashMap<Arc<str>, Waiting>,
    active: BTreeSet<((i64, Instant, u64), Arc<str>)>,
    backing_off: BTreeSet<(Instant, u64, Arc<str>)>,
    unschedulable: BTreeSet<(Instant, u64, Arc<str>)>,
    /// Backing off, but to be had when nothing is active.
    eager: BTreeSet<(Instant, u64, Arc<str>)>,
    /// How many of the unschedulable each plugin refused, by profile; and whether that changed.
    kept: Vec<(ProfileRef, [usize; Plugin::ALL.len()])>,
    kept_changed: bool,
    /// Groups, and how many of their pods there are, by queue.
    groups: [HashMap<Arc<str>, usize>; 4],
    sequence: u64,
    first: Duration,
    most: Duration,
    unschedulable_for: Duration,
}

impl PodQueue {
    pub fn new(first: Duration, most: Duration) -> Self {
        Self {
            pods: HashMap::new(),
            active: BTreeSet::new(),
            backing_off: BTreeSet::new(),
            unschedulable: BTreeSet::new(),
            eager: BTreeSet::new(),
            kept: Vec::new(),
            kept_changed: false,
            groups: Default::default(),
            sequence: 0,
            first,
            most,
            unschedulable_for: UNSCHEDULABLE_FOR,
        }
    }

    /// The same, with pods lying unschedulable for another time at most.
    pub fn remembering(self, unschedulable_for: Duration) -> Self {
        Self { unschedulable_for, ..self }
    }

    pub fn get(&self, key: &str) -> Option<&Waiting> {
        self.pods.get(key)
    }

    /// All that wait, whatever for.
    pub fn objects(&self) -> Vec<Arc<Object>> {
        self.pods.values().map(|w| w.object.clone()).collect()
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Waiting> {
        self.pods.get_mut(key)
    }

    pub fn contains(&self, key: &str) -> bool {
        self.pods.contains_key(key)
    }

    /// Pods to try right now.
    pub fn is_ready(&self) -> bool {
        !self.active.is_empty() || !self.eager.is_empty()
    }

    fn leave(&mut self, key: &Arc<str>) {
        let Some(w) = self.pods.get(key) else { return };
        if let Some((queue, group)) = w.place.queue().zip(w.pod.group.as_ref())
            && let Some(members) = self.groups[queue].get_mut(group)
        {
            *members = members.saturating_sub(1);
            if *members == 0 {
                self.groups[queue].remove(group);
            }
        }
        match w.place {
            Place::Active => {
                self.active.remove(&(w.rank, key.clone()));
            }
            Place::BackingOff(until, eager) => {
                self.backing_off.remove(&(until, w.rank.2, key.clone()));
                if eager {
                    self.eager.remove(&(until, w.rank.2, key.clone()));
                }
            }
            Place::Unschedulable => {
                self.unschedulable.remove(&(w.tried, w.rank.2, key.clone()));
                self.keep(key, false);
            }
            Place::Gated | Place::Out => {}
        }
    }

    /// Counts a pod among the unschedulable, or no more.
    fn keep(&mut self, key: &Arc<str>, more: bool) {
        let Some(w) = self.pods.get(key) else { return };
        let (profile, by) = (&w.pod.spec.profile, w.refused_by);
        self.kept_changed = true;
        let at = self.kept.iter().position(|k| k.0 == *profile).unwrap_or_else(|| {
            self.kept.push((profile.clone(), [0; Plugin::ALL.len()]));
            self.kept.len() - 1
        });
        for plugin in by.iter() {
            let count = &mut self.kept[at].1[plugin as usize];
            *count = if more { *count + 1 } else { count.saturating_sub(1) };
        }
    }

    /// How many pods each plugin keeps waiting, by plugin and profile, if that changed since it was asked last.
    pub fn news_of_kept(&mut self) -> Option<Vec<(&'static str, Box<str>, usize)>> {
        if !std::mem::take(&mut self.kept_changed) {
            return None;
        }
        let all = self.kept.iter().flat_map(|(profile, counts)| {
            let counts = Plugin::ALL.iter().zip(counts).filter(|(_, count)| **count > 0);
            counts.map(|(plugin, count)| (plugin.name(), profile.scheduler_name.clone(), *count))
        });
        Some(all.collect())
    }

    fn enter(&mut self, key: &Arc<str>, place: Place, cause: Cause) {
        self.leave(key);
        let Some(w) = self.pods.get_mut(key) else { return };
        if let Some(queue) = place.queue() {
            let member = w.pod.group.clone().map(|group| {
                let members = self.groups[queue].entry(group).or_insert(0);
                *members += 1;
                *members == 1
            });
            METRICS.incoming(queue, cause, member);
        }
        w.place = place;
        match place {
            Place::Active => {
                self.active.insert((w.rank, key.clone()));
            }
            Place::BackingOff(until, eager) => {
                self.backing_off.insert((until, w.rank.2, key.clone()));
                if eager {
                    self.eager.insert((until, w.rank.2, key.clone()));
                }
            }
            Place::Unschedulable => {
                self.unschedulable.insert((w.tried, w.rank.2, key.clone()));
                self.keep(key, true);
            }
            Place::Gated | Place::Out => {}
        }
    }

    /// Takes a pod's newest version. A change that bears on who refused it makes it worth trying again.
    pub fn put(&mut self, pod: Pod, object: Arc<Object>, condition: Condition, gated: bool, now: Instant) {
        let key = pod.key.clone();
        if let Some(known) = self.pods.get_mut(&key).filter(|w| w.pod.uid == pod.uid) {
            let mind = hints::own_change(&known.pod, &pod);
            let changed = !Arc::ptr_eq(&known.pod.spec, &pod.spec) || !mind.is_empty();
            let opened = known.gated && !gated;
            known.gated = gated;
            known.object = object;
            known.condition = condition;
            let (place, refused_by) = (known.place, known.refused_by);
            if !changed && !opened {
                known.pod = pod;
                return;
            }
            // The rank is part of where it is found.
            self.leave(&key);
            let Some(known) = self.pods.get_mut(&key) else { return };
            known.rank.0 = -i64::from(pod.priority());
            known.active = known.active.or_else(|| (!gated).then_some(now));
            known.pod = pod;
            known.place = Place::Out;
            let next = match place {
                Place::Out => Place::Out,
                _ if gated => Place::Gated,
                Place::BackingOff(until, eager) => Place::BackingOff(until, eager),
                Place::Unschedulable if !opened && !mind.intersects(refused_by) => Place::Unschedulable,
                _ => Place::Active,
            };
            self.enter(&key, next, Cause::PodUpdate);
            return;
        }
        self.remove(&key);
        self.sequence += 1;
        let rank = (-i64::from(pod.priority()), now, self.sequence);
        let fresh = Waiting {
            pod,
            object,
            condition,
            attempts: 0,
            refused_by: Plugins::default(),
            gated,
            removals: 0,
            missed: false,
            flushed: false,
            rank,
            active: (!gated).then_some(now),
            tried: now,
            place: Place::Out,
        };
        self.pods.insert(key.clone(), fresh);
        self.enter(&key, if gated { Place::Gated } else { Place::Active }, Cause::PodAdd);
    }

    pub fn remove(&mut self, key: &Arc<str>) -> Option<Waiting> {
        self.leave(key);
        self.pods.remove(key)
    }

    /// The next pod to try.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<str>> {
        let key = match self.active.first() {
            Some((_, key)) => key.clone(),
            None => self.eager.first()?.2.clone(),
        };
        self.enter(&key, Place::Out, Cause::PodAdd);
        if let Some(w) = self.pods.get_mut(&key) {
            w.attempts = w.attempts.saturating_add(1);
            w.tried = now;
        }
        Some(key)
    }

    /// Takes a certain pod out to be tried, where it waits for that; whether it did.
    pub fn take_out(&mut self, key: &Arc<str>, now: Instant) -> bool {
        let waits = self.pods.get(key).is_some_and(|w| !matches!(w.place, Place::Gated | Place::Out));
        if waits {
            self.enter(key, Place::Out, Cause::PodAdd);
            if let Some(w) = self.pods.get_mut(key) {
                w.attempts = w.attempts.saturating_add(1);
                w.tried = now;
            }
        }
        waits
    }

    fn delay(&self, attempts: u32) -> Duration {
        let doublings = attempts.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doublings).min(self.most)
    }

    /// No node would have it.
    pub fn refused(&mut self, key: &Arc<str>, by: Plugins) {
        if let Some(w) = self.pods.get_mut(key) {
            w.refused_by = by;
            self.enter(key, Place::Unschedulable, Cause::ScheduleAttemptFailure);
        }
    }

    /// What held a pod outside the queue is no more.
    pub fn open(&mut self, key: &Arc<str>, now: Instant) {
        if let Some(w) = self.pods.get_mut(key).filter(|w| w.place == Place::Gated) {
            w.gated = false;
            w.active.get_or_insert(now);
            self.enter(key, Place::Active, Cause::Opened);
        }
    }

    /// Something went wrong that is not the pod's fault.
    pub fn failed(&mut self, key: &Arc<str>, now: Instant) {
        if let Some(w) = self.pods.get(key) {
            let until = now + self.delay(w.attempts);
            self.enter(key, Place::BackingOff(until, false), Cause::ScheduleAttemptFailure);
        }
    }

    /// Unschedulable pods that may be worth another try go on; the predicate says which, and why: with `true` as soon as
    /// there is nothing better to do, with `false` not before their delay is over.
    pub fn wake(&mut self, now: Instant, mut worth: impl FnMut(&Waiting) -> Option<(bool, &'static str)>) {
        let mut woken = Vec::new();
        for (_, _, key) in &self.unschedulable {
            if let Some(w) = self.pods.get(key)
                && let Some(eager) = worth(w)
            {
                woken.push((key.clone(), eager));
            }
        }
        for (key, (eager, why)) in woken {
            self.awaken(&key, eager, now, Cause::Event(why));
        }
    }

    /// One pod is worth another try once its delay is over.
    pub fn wake_one(&mut self, key: &Arc<str>, now: Instant) {
        if self.pods.get(key).is_some_and(|w| w.place == Place::Unschedulable) {
            self.awaken(key, false, now, Cause::Event(PREEMPTION));
        }
    }

    /// Room begins to be made for a pod: until that is over, trying again would find others to remove.
    pub fn begin_removal(&mut self, key: &str) {
        if let Some(w) = self.pods.get_mut(key) {
            w.removals += 1;
        }
    }

    /// Whether room is being made for a pod.
    pub fn has_removals(&self, key: &str) -> bool {
        self.pods.get(key).is_some_and(|w| w.removals > 0)
    }

    /// One removal is over. After the last, what happened meanwhile counts.
    pub fn end_removal(&mut self, key: &Arc<str>, now: Instant) {
        let Some(w) = self.pods.get_mut(key) else { return };
        w.removals = w.removals.saturating_sub(1);
        if w.removals == 0 && std::mem::take(&mut w.missed) && w.place == Place::Unschedulable {
            self.awaken(key, true, now, Cause::Event(PREEMPTION));
        }
    }

    fn awaken(&mut self, key: &Arc<str>, eager: bool, now: Instant, cause: Cause) {
        let Some(w) = self.pods.get_mut(key) else { return };
        if w.removals > 0 {
            w.missed = true;
            return;
        }
        w.flushed = cause == Cause::UnschedulableTimeout;
        let (tried, attempts) = (w.tried, w.attempts);
        let until = tried + self.delay(attempts);
        self.enter(key, if until <= now { Place::Active } else { Place::BackingOff(until, eager) }, cause);
    }

    /// How many pods are active, backing off, unschedulable and gated.
    pub fn sizes(&self) -> [usize; 4] {
        let (active, backing_off, unschedulable) =
            (self.active.len(), self.backing_off.len(), self.unschedulable.len());
        // Those that are out are being bound, and few.
        let gated = self.pods.len().saturating_sub(active + backing_off + unschedulable);
        [active, backing_off, unschedulable, gated]
    }

    /// By queue: pods of no group, and groups.
    pub fn entities(&self) -> [[usize; 2]; 4] {
        let sizes = self.sizes();
        std::array::from_fn(|queue| {
            let groups = &self.groups[queue];
            [sizes[queue].saturating_sub(groups.values().sum()), groups.len()]
        })
    }

    pub fn has_unschedulable(&self) -> bool {
        !self.unschedulable.is_empty()
    }

    /// What the passing of time makes ready.
    pub fn advance(&mut self, now: Instant) {
        while let Some((_, _, key)) = self.backing_off.first().filter(|b| b.0 <= now).cloned() {
            self.enter(&key, Place::Active, Cause::BackoffComplete);
        }
        let due = self.unschedulable.iter().take_while(|u| u.0 + self.unschedulable_for <= now);
        let due: Vec<_> = due.map(|u| u.2.clone()).collect();
        for key in due {
            if self.pods.get(&key).is_some_and(|w| w.removals > 0) {
                // Its time begins anew, or time would stand still for the queue.
                self.leave(&key);
                if let Some(w) = self.pods.get_mut(&key) {
                    (w.missed, w.tried) = (true, now);
                }
                self.enter(&key, Place::Unschedulable, Cause::UnschedulableTimeout);
            } else {
                self.awaken(&key, true, now, Cause::UnschedulableTimeout);
            }
        }
    }

    /// When time alone will make something ready; `None` when it will not.
    pub fn next(&self) -> Option<Instant> {
        let delayed = self.backing_off.first().map(|b| b.0);
        let forgotten = self.unschedulable.first().map(|u| u.0 + self.unschedulable_for);
        [delayed, forgotten].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Specs;
    use crate::verdict::Plugin;
    use serde_json::json;

    #[test]
    fn pods_wait_their_turn() {
        let (mut queue, mut specs) = (PodQueue::new(Duration::from_secs(1), Duration::from_secs(10)), Specs::default());
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut put = |queue: &mut PodQueue, name: &str, priority: i32, gated: bool| {
            let body = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "n", "uid": name},
                "spec": {"priority": priority}});
            let object = Arc::new(Object::from_value(&body).unwrap());
            let pod = Pod::new(&object, &serde_json::from_slice(object.raw()).unwrap(), &mut specs);
            queue.put(pod, object, Condition::default(), gated, start);
        };
        put(&mut queue, "a", 0, false);
        put(&mut queue, "b", 5, false);
        put(&mut queue, "c", 0, false);
        put(&mut queue, "gated", 9, true);
        put(&mut queue, "a", 0, false);
        let pop = |queue: &mut PodQueue, seconds| queue.pop(at(seconds)).map(|k| k.to_string());
        assert_eq!(pop(&mut queue, 0).as_deref(), Some("n/b"), "the important first");
        assert_eq!(pop(&mut queue, 0).as_deref(), Some("n/a"), "then who came first");
        let by = Plugins::of(&[Plugin::NodeResourcesFit]);
        queue.refused(&"n/a".into(), by);
        queue.failed(&"n/b".into(), at(0));
        assert_eq!(pop(&mut queue, 0).as_deref(), Some("n/c"));
        assert!(!queue.is_ready() && queue.next() == Some(at(1)));
        queue.advance(at(1));
        assert_eq!(pop(&mut queue, 1).as_deref(), Some("n/b"));
        queue.failed(&"n/b".into(), at(1));
        assert_eq!(queue.next(), Some(at(3)), "the delay doubles");
        // Nothing else to do: no need to wait for the delay.
        queue.wake(at(0), |w| w.refused_by.intersects(by).then_some((true, "")));
        assert_eq!(pop(&mut queue, 1).as_deref(), Some("n/a"));
        queue.refused(&"n/a".into(), by);
        queue.wake(at(1), |_| Some((false, "")));
        assert_eq!(pop(&mut queue, 2), None);
        queue.advance(at(3));
        assert_eq!(pop(&mut queue, 3).as_deref(), Some("n/b"));
        assert_eq!(pop(&mut queue, 3).as_deref(), Some("n/a"));
        queue.refused(&"n/a".into(), by);
        put(&mut queue, "a", 1, false);
        assert_eq!(pop(&mut queue, 3).as_deref(), Some("n/a"), "it asks for something else now");
        put(&mut queue, "gated", 9, false);
        assert_eq!(pop(&mut queue, 3).as_deref(), Some("n/gated"));
        queue.refused(&"n/gated".into(), by);
        assert_eq!(queue.next(), Some(at(303)), "nobody is forgotten");
        // While room is made for it, what happens is only remembered.
        queue.begin_removal("n/gated");
        queue.wake(at(30), |_| Some((true, "")));
        assert_eq!(pop(&mut queue, 30), None);
        queue.end_removal(&"n/gated".into(), at(30));
        assert_eq!(pop(&mut queue, 30).as_deref(), Some("n/gated"));
        queue.refused(&"n/gated".into(), by);
        queue.remove(&"n/gated".into());
        assert_eq!(queue.next(), None);
    }
}
