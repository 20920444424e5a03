//! Trying the pods of a gang as one: all that are needed find a node, or none is taken.

use std::sync::Arc;

use meta::Object;
use tokio::time::Instant;

use crate::pod::Pod;
use crate::queue::Condition;
use crate::run::{Scheduler, Taken};
use crate::verdict::{Plugin, Plugins, WhyNot};
use crate::writes;

/// A pod of the gang, out of the queue.
struct Member {
    key: Arc<str>,
    pod: Pod,
    object: Arc<Object>,
}

impl Scheduler {
    /// Places a gang of which one pod is out of the queue.
    pub(crate) async fn place_gang(&mut self, group: &Arc<str>, first: &Arc<str>, needed: usize) {
        let mut keys = vec![first.clone()];
        for key in self.world.groups.waiting(group) {
            if key != *first && self.world.queue.take_out(&key, Instant::now()) {
                keys.push(key);
            }
        }
        keys.sort_by_key(|key| self.world.queue.get(key).map(|w| w.rank()));
        let member = |s: &Self, key: Arc<str>| {
            s.world.queue.get(&key).map(|w| (w.pod.clone(), w.object.clone())).map(|(pod, object)| Member {
                key,
                pod,
                object,
            })
        };
        let members: Vec<Member> = keys.into_iter().filter_map(|key| member(self, key)).collect();
        let mut taken: Vec<(Member, Taken)> = Vec::new();
        let mut refused: Vec<(Member, Box<WhyNot>)> = Vec::new();
        for member in members {
            match self.find(&member.pod, &member.object).await {
                Ok(id) => {
                    let place = self.take(&member.pod, id);
                    taken.push((member, place));
                }
                Err(why) => refused.push((member, why)),
            }
        }
        let enough = taken.len() >= needed;
        self.tell_group(group, enough, taken.len(), needed);
        if enough {
            for (member, place) in taken {
                self.world.groups.join(group, &member.key, true);
                self.send(&member.key, &member.pod, member.object, place);
            }
        } else {
            let (found, nodes) = (taken.len(), self.world.core.snapshot.present());
            for (member, place) in taken {
                self.give_back(&member.key, &place);
                let why = format!("{found} of the {needed} pods that pod group {group} still needs could be placed");
                let pod = Some((Plugin::GangScheduling, why));
                refused.push((member, Box::new(WhyNot { nodes, pod, ..WhyNot::default() })));
            }
        }
        let mut by = Plugins::of(&[Plugin::GangScheduling]);
        refused.iter().for_each(|(_, why)| by = by.with(why.plugins()));
        for (member, why) in refused {
            // Room is made for whole gangs or not at all, and thus not.
            self.give_up(&member.key, &member.object, &why, by, None);
        }
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
        let call = writes::set_group_condition(self.client.clone(), group.clone(), condition);
        self.write_apart("pod group's condition", group, call);
    }
}
