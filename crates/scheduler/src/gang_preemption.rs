//! Making room for a gang: all of it gets a node by the removal of less important pods, or nobody is removed.
//!
//! All less important pods are supposed away, and the gang is placed. Then as many as possible are taken back, those under a
//! disruption budget before the rest and the most important first, as long as enough of the gang still has room: where it was
//! placed, or elsewhere. The pods of a group that can only be disrupted as a whole go, or stay, together, with the group's priority.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng;

use crate::core::{Core, Prepared, filter_alone};
use crate::plugins::{dynamic_resources, volume_binding};
use crate::pod::Pod;
use crate::snapshot::{NodeId, Placed};
use crate::symbol::Symbol;

/// Who goes and stays together: a group, or one pod.
pub type UnitKey = Arc<str>;

/// What a placed pod belongs to, and how important that is.
pub type UnitOf<'a> = dyn Fn(&Pod) -> (UnitKey, i32) + 'a;

/// Who must go so that a gang has room, and where its pods go then.
#[derive(Debug)]
pub struct GangPlan {
    /// (index of the pod, its node)
    pub places: Vec<(usize, NodeId)>,
    /// With the node each is on.
    pub victims: Vec<(Pod, NodeId)>,
    /// What goes together, and how much of that breaks a budget.
    pub units: usize,
    pub broken_budgets: usize,
}

struct Unit {
    priority: i32,
    /// A group rather than one pod.
    whole: bool,
    pods: Vec<Placed>,
    /// A budget would be broken.
    protected: bool,
}

impl Unit {
    /// Smaller is more important: by priority, then groups before pods, of groups the larger, and who began first.
    fn importance(&self) -> impl Ord + use<> {
        let earliest = self.pods.iter().map(|p| p.pod.begun()).min().map(|(not, at)| (not, at.to_string()));
        let size = if self.whole { self.pods.len() } else { 0 };
        (Reverse(self.priority), !self.whole, Reverse(size), earliest)
    }
}

/// A pod of the gang where it is supposed to be, and what its claims get there.
struct Held {
    at: usize,
    id: NodeId,
    volumes: Vec<volume_binding::Step>,
    devices: Vec<dynamic_resources::Step>,
}

impl Core {
    /// Finds room for at least `needed` of these pods, of a gang of this priority. The snapshot is afterwards as it was.
    pub fn preempt_for_gang(
        &mut self,
        pods: &[Pod],
        needed: usize,
        priority: i32,
        unit_of: &UnitOf<'_>,
        rng: &mut impl Rng,
    ) -> Option<GangPlan> {
        let mut units = self.suppose_away(priority, unit_of);
        let mut places = self.place_gang(pods, rng);
        let (mut victims, mut gone, mut broken_budgets) = (Vec::new(), 0, 0);
        if places.len() >= needed {
            units.sort_by_cached_key(|u| (!u.protected, u.importance()));
            for unit in units.drain(..) {
                self.bring_back(&unit.pods);
                if self.all_fit(pods, &places, &unit.pods) {
                    continue;
                }
                // Elsewhere there may be room beside them.
                let before = std::mem::take(&mut places);
                before.iter().for_each(|held| self.lift(pods, held));
                places = self.place_gang(pods, rng);
                if places.len() < needed {
                    places.iter().for_each(|held| self.lift(pods, held));
                    unit.pods.iter().for_each(|p| drop(self.snapshot.remove(&p.pod.key)));
                    before.iter().for_each(|held| self.hold(pods, held));
                    places = before;
                    (gone, broken_budgets) = (gone + 1, broken_budgets + usize::from(unit.protected));
                    victims.extend(unit.pods);
                }
            }
        }
        places.iter().for_each(|held| self.lift(pods, held));
        units.iter().for_each(|u| self.bring_back(&u.pods));
        self.bring_back(&victims);
        let places = places.into_iter().map(|held| (held.at, held.id)).collect();
        let victims: Vec<_> = victims.into_iter().map(|p| (p.pod, p.node)).collect();
        (!victims.is_empty()).then_some(GangPlan { places, victims, units: gone, broken_budgets })
    }

    /// Takes a node for each pod, where there is one.
    fn place_gang(&mut self, pods: &[Pod], rng: &mut impl Rng) -> Vec<Held> {
        let mut out = Vec::with_capacity(pods.len());
        for (at, pod) in pods.iter().enumerate() {
            let Ok(id) = self.schedule(pod, rng) else { continue };
            let held = Held { at, id, volumes: self.volume_steps(pod, id), devices: self.device_steps(pod, id) };
            self.hold(pods, &held);
            out.push(held);
        }
        out
    }

    fn hold(&mut self, pods: &[Pod], held: &Held) {
        let node = self.snapshot.node(held.id).name.clone();
        volume_binding::reserve(&mut self.snapshot.storage, &held.volumes, Symbol::of(&node));
        dynamic_resources::reserve(&mut self.snapshot.devices, &held.devices);
        self.snapshot.place(pods[held.at].clone(), &node);
    }

    fn lift(&mut self, pods: &[Pod], held: &Held) {
        volume_binding::release(&mut self.snapshot.storage, &held.volumes);
        dynamic_resources::release(&mut self.snapshot.devices, &held.devices);
        self.snapshot.remove(&pods[held.at].key);
    }

    /// Takes away all that is less important.
    fn suppose_away(&mut self, priority: i32, unit_of: &UnitOf<'_>) -> Vec<Unit> {
        let mut keys: BTreeMap<UnitKey, (i32, Vec<Arc<str>>)> = BTreeMap::new();
        for placed in self.snapshot.all_placed() {
            let (unit, importance) = unit_of(&placed.pod);
            if importance < priority {
                keys.entry(unit).or_insert((importance, Vec::new())).1.push(placed.pod.key.clone());
            }
        }
        let mut units = Vec::with_capacity(keys.len());
        for (priority, mut keys) in keys.into_values() {
            keys.sort();
            let pods: Vec<Placed> = keys.iter().filter_map(|key| self.snapshot.remove(key)).collect();
            let whole = pods.first().is_some_and(|p| *unit_of(&p.pod).0 != *p.pod.key);
            units.push(Unit { priority, whole, pods, protected: false });
        }
        // Those before count against a budget: the most important first.
        units.sort_by_cached_key(Unit::importance);
        let broken = self.budgets.broken_by(units.iter().flat_map(|u| &u.pods).map(|p| &p.pod));
        let mut broken = broken.into_iter();
        for unit in &mut units {
            unit.protected = broken.by_ref().take(unit.pods.len()).fold(false, |any, one| any | one);
        }
        units
    }

    fn bring_back(&mut self, pods: &[Placed]) {
        for placed in pods {
            let node = self.snapshot.node(placed.node).name.clone();
            self.snapshot.place(placed.pod.clone(), &node);
        }
    }

    /// Whether the gang's pods still fit beside what came back.
    fn all_fit(&mut self, pods: &[Pod], places: &[Held], back: &[Placed]) -> bool {
        let reaches_far = |p: &Pod| p.spec.terms.is_some();
        let far = back.iter().any(|p| reaches_far(&p.pod));
        places.iter().all(|held| {
            let pod = &pods[held.at];
            let near = back.iter().any(|p| p.node == held.id);
            // What is on other nodes matters to those only who look at them.
            if !(near || far || reaches_far(pod) || !pod.spec.spread.is_empty()) {
                return true;
            }
            self.lift(pods, held);
            let fits = self.fits(pod, held.id);
            self.hold(pods, held);
            fits
        })
    }

    fn fits(&mut self, pod: &Pod, id: NodeId) -> bool {
        filter_alone(&pod.spec, self.snapshot.node(id)).is_ok()
            && Prepared::new(&mut self.snapshot, pod)
                .is_ok_and(|p| p.filter(&self.snapshot, id, self.snapshot.node(id)).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Cluster;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;
    use serde_json::json;

    /// Gangs of pods that each want 2 of the 4 CPUs a node has.
    #[test]
    fn as_few_as_possible_go() {
        let pod = |priority: i64, cpu: &str| json!({"spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        let whole = |p: &Pod| match p.key.strip_prefix("n/g-") {
            Some(_) => (Arc::from("group"), 5),
            None => (p.key.clone(), p.priority()),
        };
        for (what, placed, gang, needed, expect) in [
            ("room for all", &[("a1", "a", 0, "3"), ("b1", "b", 0, "3")][..], 3, 3, Some("n/a1 n/b1")),
            ("all of it on one node", &[("a1", "a", 0, "3"), ("b1", "b", 0, "3")], 2, 2, Some("n/b1")),
            (
                "the least important",
                &[("a1", "a", 1, "2"), ("a2", "a", 0, "2"), ("b1", "b", 10, "4")],
                1,
                1,
                Some("n/a2"),
            ),
            ("not for a part of it", &[("a1", "a", 0, "4"), ("b1", "b", 10, "4")], 3, 3, None),
            ("a part is enough", &[("a1", "a", 0, "4"), ("b1", "b", 10, "4")], 3, 2, Some("n/a1")),
            ("wherever the least is lost", &[("a1", "a", 5, "4"), ("b1", "b", 0, "4")], 1, 1, Some("n/b1")),
            ("nobody as important", &[("a1", "a", 10, "4"), ("b1", "b", 10, "4")], 1, 1, None),
            (
                "a group as a whole",
                &[("g-1", "a", 0, "2"), ("g-2", "b", 0, "2"), ("a1", "a", 7, "2"), ("b1", "b", 10, "2")],
                1,
                1,
                Some("n/g-1 n/g-2"),
            ),
        ] {
            let mut cluster = Cluster::new(&[("a", json!({})), ("b", json!({}))]);
            for (name, node, priority, cpu) in placed {
                cluster.place(name, node, &pod(*priority, cpu));
            }
            let pods: Vec<Pod> = (0..gang).map(|i| cluster.pod(&format!("new-{i}"), &pod(10, "2"))).collect();
            let before: Vec<_> =
                placed.iter().map(|p| cluster.core.snapshot.pod(&format!("n/{}", p.0)).unwrap().node).collect();
            let mut rng = SmallRng::seed_from_u64(1);
            let plan = cluster.core.preempt_for_gang(&pods, needed, 10, &whole, &mut rng);
            let victims = plan.map(|p| {
                assert!(p.places.len() >= needed, "{what}");
                let mut keys: Vec<String> = p.victims.iter().map(|v| v.0.key.to_string()).collect();
                keys.sort();
                keys.join(" ")
            });
            assert_eq!(victims.as_deref(), expect, "{what}");
            let after: Vec<_> =
                placed.iter().map(|p| cluster.core.snapshot.pod(&format!("n/{}", p.0)).unwrap().node).collect();
            assert_eq!(
                (before, cluster.core.snapshot.pods_placed()),
                (after, placed.len()),
                "{what}: all is as it was"
            );
        }
    }
}
