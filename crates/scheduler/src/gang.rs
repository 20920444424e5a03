//! Trying the pods of a gang as one: all that are needed find a node, or none is taken.
//!
//! A group that is to be in one domain of a topology is tried in each, and gets the one where most of it has room; of equal
//! ones that which has the least room to spare, so that large groups find large domains.

use std::collections::BTreeMap;
use std::sync::Arc;

use meta::Object;
use tokio::time::Instant;

use crate::gang_preemption::GangPlan;
use crate::metrics::{Attempt, Cost, METRICS, Preemptor};
use crate::pod::Pod;
use crate::profile::Weights;
use crate::queue::Condition;
use crate::run::{Scheduler, Taken};
use crate::snapshot::NodeId;
use crate::symbol::Symbol;
use crate::verdict::{Plugin, Plugins, WhyNot};
use crate::writes;

/// Domains with room for a whole group that are compared; more would only be a little better.
const MOST_DOMAINS: usize = 32;

/// A pod of the gang, out of the queue.
struct Member {
    key: Arc<str>,
    pod: Pod,
    object: Arc<Object>,
}

type Outcome = Result<Taken, Box<WhyNot>>;

/// What is compared of placements, what weighs more first: how much of the group they hold, how little room they leave.
fn weigh(weights: &Weights, held: i64, tight: i64) -> (i64, i64) {
    let counted = |weight: i64, score: i64| if weight == 0 { 0 } else { score };
    let held = counted(weights.placement_pods_count, held);
    let tight = counted(weights.placement_fit, tight);
    if weights.placement_fit > weights.placement_pods_count { (tight, held) } else { (held, tight) }
}

fn placed(outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|o| o.is_ok()).count()
}

impl Scheduler {
    /// Places a gang of which one pod is out of the queue.
    pub(crate) async fn place_gang(&mut self, group: &Arc<str>, first: &Arc<str>, needed: usize) {
        let began = Instant::now();
        let members = self.gather(group, first);
        // The room that is held for the one is not the other's to lack.
        let nominated: Vec<(Pod, Symbol)> = members
            .iter()
            .filter_map(|m| Some((m.pod.clone(), self.world.core.nominations.node_of(&m.key)?)))
            .collect();
        members.iter().for_each(|m| self.world.core.nominations.set(&m.pod, None));
        let outcomes = match self.domains(group, &members) {
            None => self.attempt(&members).await,
            Some((key, values)) => self.attempt_in_one_of(&members, needed, key, values).await,
        };
        let found = placed(&outcomes);
        let how = match found >= needed {
            true => Attempt::Scheduled,
            false if outcomes.iter().any(|o| o.as_ref().is_err_and(|why| why.fault.is_some())) => Attempt::Error,
            false => Attempt::Unschedulable,
        };
        if let Some(first) = members.first() {
            METRICS.group(&first.pod.spec.profile.scheduler_name, how, began.elapsed());
        }
        self.tell_group(group, found >= needed, found, needed);
        if found >= needed {
            self.settle(group, members, outcomes);
        } else {
            self.withdraw(&members, &outcomes);
            self.refuse_gang(group, members, outcomes, needed, nominated);
        }
    }

    /// All of the gang that wait, in their order.
    fn gather(&mut self, group: &Arc<str>, first: &Arc<str>) -> Vec<Member> {
        let mut keys = vec![first.clone()];
        for key in self.world.groups.waiting(group) {
            if key != *first && self.world.queue.take_out(&key, Instant::now()) {
                keys.push(key);
            }
        }
        keys.sort_by_key(|key| self.world.queue.get(key).map(|w| w.rank()));
        let member = |key: Arc<str>| {
            let waiting = self.world.queue.get(&key)?;
            Some(Member { pod: waiting.pod.clone(), object: waiting.object.clone(), key })
        };
        keys.into_iter().filter_map(member).collect()
    }

    /// Takes a node for each, where there is one.
    async fn attempt(&mut self, members: &[Member]) -> Vec<Outcome> {
        let mut out = Vec::with_capacity(members.len());
        for member in members {
            let found = self.find(&member.pod, &member.object).await;
            out.push(found.map(|id| self.take(&member.pod, id)));
        }
        out
    }

    fn withdraw(&mut self, members: &[Member], outcomes: &[Outcome]) {
        for (member, taken) in members.iter().zip(outcomes) {
            if let Ok(taken) = taken {
                self.give_back(&member.pod, taken);
            }
        }
    }

    /// The domains a group may be in; `None` where it need not be in one.
    fn domains(&self, group: &str, members: &[Member]) -> Option<(Symbol, Vec<Symbol>)> {
        let key = self.world.topology_of(group, &members.first()?.pod)?;
        if let Some(value) = self.world.domain_of(group, key) {
            return Some((key, vec![value]));
        }
        let snapshot = &self.world.core.snapshot;
        let mut values: Vec<Symbol> = snapshot.ids().filter_map(|id| snapshot.node(id).labels.get(key)).collect();
        values.sort_unstable();
        values.dedup();
        Some((key, values))
    }

    async fn attempt_in_one_of(
        &mut self,
        members: &[Member],
        needed: usize,
        key: Symbol,
        values: Vec<Symbol>,
    ) -> Vec<Outcome> {
        let mut best: Option<((i64, i64), Symbol)> = None;
        let mut whole = 0;
        let profile = members.first().map(|m| m.pod.spec.profile.clone()).unwrap_or_default();
        METRICS.placements(&profile.scheduler_name, values.len());
        for value in values {
            let began = Instant::now();
            self.world.core.snapshot.within = Some((key, value));
            let outcomes = self.attempt(members).await;
            self.withdraw(members, &outcomes);
            let found = placed(&outcomes);
            METRICS.placement(&profile.scheduler_name, found >= needed, began.elapsed());
            let score = weigh(&profile.weights, found as i64, -self.room_in(key, value));
            if best.is_none_or(|(most, _)| score > most) {
                best = Some((score, value));
            }
            whole += usize::from(found == members.len() && found >= needed);
            if whole == MOST_DOMAINS {
                break;
            }
        }
        // Without any domain nothing is within it.
        self.world.core.snapshot.within = Some((key, best.map_or_else(|| Symbol::of(""), |b| b.1)));
        let outcomes = self.attempt(members).await;
        self.world.core.snapshot.within = None;
        outcomes
    }

    /// CPU nobody has asked for in a domain.
    fn room_in(&self, key: Symbol, value: Symbol) -> i64 {
        let snapshot = &self.world.core.snapshot;
        let nodes = snapshot.ids().map(|id| snapshot.node(id)).filter(|n| n.labels.get(key) == Some(value));
        nodes.map(|n| n.allocatable.cpu - n.requested.cpu).fold(0, i64::saturating_add)
    }

    /// Enough were placed: they go, the others wait.
    fn settle(&mut self, group: &Arc<str>, members: Vec<Member>, outcomes: Vec<Outcome>) {
        let mut refused = Vec::new();
        for (member, outcome) in members.into_iter().zip(outcomes) {
            match outcome {
                Ok(place) => {
                    self.world.groups.join(group, &member.key, true);
                    self.send(&member.key, &member.pod, member.object, place);
                }
                Err(why) => refused.push((member, why)),
            }
        }
        self.let_wait(refused, &[]);
    }

    /// Too few were placed: room is made for all of it, if that can be, and it waits.
    fn refuse_gang(
        &mut self,
        group: &Arc<str>,
        members: Vec<Member>,
        outcomes: Vec<Outcome>,
        needed: usize,
        nominated: Vec<(Pod, Symbol)>,
    ) {
        let (found, nodes) = (placed(&outcomes), self.world.core.snapshot.present());
        let mut room = Vec::new();
        let said = match self.room_for(group, &members, needed, &nominated) {
            Ok(plan) => {
                room = self.make_room_for_gang(&members, plan);
                String::new()
            }
            Err(why) => why,
        };
        let why = |outcome: Outcome| match outcome {
            Err(why) => why,
            Ok(_) => {
                let why = format!("{found} of the {needed} pods that pod group {group} still needs could be placed");
                Box::new(WhyNot { nodes, pod: Some((Plugin::GangScheduling, why)), ..WhyNot::default() })
            }
        };
        let refused = members
            .into_iter()
            .zip(outcomes)
            .map(|(member, outcome)| (member, Box::new(WhyNot { preemption: said.clone(), ..*why(outcome) })));
        let refused = refused.collect();
        self.let_wait(refused, &room);
    }

    /// `room`: nodes by pod where room is being made.
    fn let_wait(&mut self, refused: Vec<(Member, Box<WhyNot>)>, room: &[(Arc<str>, Arc<str>)]) {
        let mut by = Plugins::of(&[Plugin::GangScheduling]);
        refused.iter().for_each(|(_, why)| by = by.with(why.plugins()));
        for (member, why) in refused {
            let held = self.world.core.nominations.node_of(&member.key).is_some();
            // Where room was held for it and is no more, its status is not to say so.
            let stale = (!held && member.pod.nominated.is_some()).then(|| "".into());
            let nominated = room.iter().find(|(key, _)| *key == member.key).map(|(_, node)| node.clone()).or(stale);
            self.give_up(&member.key, &member.object, &why, by, nominated);
        }
    }

    /// Who would have to go for the gang, or why nobody goes (nothing to be said where that goes without saying).
    fn room_for(
        &mut self,
        group: &Arc<str>,
        members: &[Member],
        needed: usize,
        nominated: &[(Pod, Symbol)],
    ) -> Result<GangPlan, String> {
        let Some(first) = members.first().filter(|m| m.pod.spec.profile.preempts_for_groups) else {
            return Err(String::new());
        };
        let about = self.world.groups.about(group);
        let priority = about.priority.unwrap_or(first.pod.priority());
        if !about.preempts || !first.pod.spec.preempts {
            return Err("not eligible due to preemptionPolicy=Never.".into());
        }
        if self.world.topology_of(group, &first.pod).is_some() {
            return Err("not supported for pod groups with topology constraints.".into());
        }
        let snapshot = &self.world.core.snapshot;
        let leaving = |id: NodeId| snapshot.pods_on(id).any(|(_, p)| p.deleting && p.priority() < priority);
        // Others who are asked to go may not be on their way yet.
        let asked = members.iter().any(|m| self.world.queue.has_removals(&m.key));
        if asked || nominated.iter().filter_map(|(_, node)| snapshot.node_id(*node)).any(leaving) {
            nominated.iter().for_each(|(pod, node)| self.world.core.nominations.set(pod, Some(*node)));
            return Err("not eligible due to a terminating pod on the nominated node.".into());
        }
        let pods: Vec<Pod> = members.iter().map(|m| m.pod.clone()).collect();
        let groups = &self.world.groups;
        let unit_of = |pod: &Pod| groups.unit_of(pod);
        let began = Instant::now();
        let plan = self.world.core.preempt_for_gang(&pods, needed, priority, &unit_of, &mut rand::rng());
        let cost = |p: &GangPlan| Cost { victims: p.victims.len(), units: p.units, broken_budgets: p.broken_budgets };
        METRICS.preempted(Preemptor::Group, plan.as_ref().map(cost), began.elapsed());
        plan.ok_or_else(|| {
            let nodes = self.world.core.snapshot.present();
            format!("0/{nodes} nodes are available: {nodes} No preemption victims found for incoming pod group.")
        })
    }

    /// Removes the victims; answers where the pods of the gang are to go then.
    fn make_room_for_gang(&mut self, members: &[Member], plan: GangPlan) -> Vec<(Arc<str>, Arc<str>)> {
        let mut room = Vec::with_capacity(plan.places.len());
        for (at, id) in &plan.places {
            let node = self.world.core.snapshot.node(*id);
            room.push((members[*at].key.clone(), node.name.clone()));
            let symbol = node.symbol;
            self.world.core.nominations.set(&members[*at].pod, Some(symbol));
        }
        let mut by_node: BTreeMap<NodeId, Vec<Pod>> = BTreeMap::new();
        let mut whole = Vec::new();
        for (victim, node) in plan.victims {
            if let Some(of) = victim.group.clone().filter(|of| self.world.groups.about(of).whole && !whole.contains(of))
            {
                whole.push(of);
            }
            by_node.entry(node).or_default().push(victim);
        }
        let Some(first) = members.first() else { return room };
        let message =
            format!("{}: preempting to accommodate a higher priority pod group", first.pod.spec.profile.scheduler_name);
        for (node, victims) in by_node {
            let name = self.world.core.snapshot.node(node).name.clone();
            self.remove_victims(victims, &first.pod, Preemptor::Group, &name, &message);
        }
        for of in whole {
            let condition = Condition {
                status: "True".into(),
                reason: "PreemptionByScheduler".into(),
                message: message.clone().into(),
            };
            let call = writes::set_group_condition(self.client.clone(), of.clone(), "DisruptionTarget", condition);
            self.write_apart("pod group's condition", &of, call);
        }
        room
    }

    /// Writes the group's condition, where it does not say so already.
    fn tell_group(&mut self, group: &Arc<str>, scheduled: bool, found: usize, needed: usize) {
        if !self.world.groups.is_news(group, scheduled) {
            return;
        }
        let (status, reason, message) = match scheduled {
            true => ("True", "Scheduled", String::new()),
            false => ("False", "Unschedulable", format!("{found} of {needed} pods could be placed")),
        };
        let condition = Condition { status: status.into(), reason: reason.into(), message: message.into() };
        let call =
            writes::set_group_condition(self.client.clone(), group.clone(), "PodGroupInitiallyScheduled", condition);
        self.write_apart("pod group's condition", group, call);
    }
}
