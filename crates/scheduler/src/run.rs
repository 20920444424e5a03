//! The shell around the core: changes in, decisions out.
//!
//! One task owns everything known. It takes in all changes that wait, places a bounded number of pods, sends their
//! bindings off, and looks at the changes again; with nothing to do it sleeps until a change, an answer, or the end of a
//! pod's delay. A placed pod counts as placed from the decision on, until its binding fails.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use client::{Client, EventType, Informer, Informers, Recorder, reference};
use futures::FutureExt;
use futures::future::BoxFuture;
use meta::{Object, Status};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::consult;
use crate::events::Events;
use crate::extender::{self, Extender};
use crate::hints::Event;
use crate::metrics::{Attempt, Cost, METRICS, Preemptor};
use crate::plugins::default_preemption::Plan;
use crate::plugins::{dynamic_resources, volume_binding};
use crate::pod::Pod;
use crate::profile::ProfileRef;
use crate::queue::{Condition, PodQueue};
use crate::snapshot::NodeId;
use crate::sources::{Served, Sources};
use crate::symbol::Symbol;
use crate::timing::{Ended, Point, Timing};
use crate::verdict::{Plugins, WhyNot};
use crate::world::World;
use crate::{Error, Options, writes};

/// Pods placed between two looks at the changes.
const ROUND: usize = 64;

/// Bindings that may wait for claims at once; a few kilobytes each.
const WAITING_FOR_CLAIMS: usize = 1024;

/// Reason of the condition, and the event, of a pod that is not tried yet.
const NOT_READY: &str = "NotReadyForScheduling";

/// The answer to a call.
enum Answer {
    Bound { object: Arc<Object>, node: Arc<str>, steps: Steps, result: Result<(), Status> },
    Evicted { victim: Arc<Object>, by: Arc<str>, waiting: Arc<str>, node: Arc<str>, result: Result<(), Status> },
    Told { what: &'static str, object: Arc<Object>, result: Result<(), Status> },
    Written { what: &'static str, of: Arc<str>, result: Result<(), Status> },
}

/// A failure as upstream words it: with the plugin whose work it was.
fn of_plugin(point: &str, plugin: &str, mut status: Status) -> Status {
    status.message = format!("running {point} plugin {plugin:?}: {}", status.message);
    status
}

/// A node, taken for a pod.
pub(crate) struct Taken {
    node: Arc<str>,
    steps: Steps,
}

/// What has to be written before a pod is bound.
#[derive(Default)]
struct Steps {
    volumes: Vec<volume_binding::Step>,
    devices: Vec<dynamic_resources::Step>,
}

/// A call that answers even when it panics: its pod must not be waited for forever.
async fn guarded(call: impl Future<Output = Result<(), Status>>) -> Result<(), Status> {
    AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(|_| Err(Status::internal("the call panicked")))
}

pub(crate) struct Scheduler {
    pub(crate) world: World,
    pub(crate) client: Client,
    /// One a profile, since events are told under its name.
    recorders: Vec<(ProfileRef, Recorder)>,
    pods: Arc<Informer>,
    claims: Arc<Informer>,
    device_claims: Option<Arc<Informer>>,
    nodes: Arc<Informer>,
    extenders: Vec<Arc<Extender>>,
    calls: JoinSet<Answer>,
    /// Bindings that wait for claims, minutes perhaps.
    slow: JoinSet<Answer>,
    options: Options,
}

/// Runs the scheduler until cancelled. Leader election, where there are several of us, is the caller's.
pub fn run(
    client: Client,
    informers: Arc<Informers>,
    options: Options,
    cancel: CancellationToken,
) -> BoxFuture<'static, Result<(), Error>> {
    Box::pin(running(client, informers, options, cancel))
}

/// Has everything followed that a scheduler needs, before it leads, so that it can begin at once when it does. What is
/// followed stays so as long as `informers`.
pub async fn warm(client: &Client, informers: &Informers, options: &Options) {
    let mut served = Served::of(client).await;
    served.groups &= options.groups;
    Sources::new(informers, served).listen().await;
    options.synced.store(true, Ordering::Release);
}

async fn running(
    client: Client,
    informers: Arc<Informers>,
    options: Options,
    cancel: CancellationToken,
) -> Result<(), Error> {
    METRICS.name(options.profiles.iter().map(|p| p.scheduler_name.clone()));
    client::exposition::register("scheduler", || METRICS.page());
    let mut served = Served::of(&client).await;
    served.groups &= options.groups;
    let extenders = extender::connect(&options.extenders).await.map_err(Error::Extender)?;
    let mut sources = Sources::new(&informers, served);
    if cancel.run_until_cancelled(sources.listen()).await.is_none() {
        return Ok(());
    }
    options.synced.store(true, Ordering::Release);
    let queue =
        PodQueue::new(options.pod_initial_backoff, options.pod_max_backoff).remembering(options.unschedulable_for);
    let mut scheduler = Scheduler {
        world: World::new(queue, options.profiles.clone()),
        recorders: options
            .profiles
            .iter()
            .map(|p| (p.clone(), Recorder::new(&client, &p.scheduler_name, "")))
            .collect(),
        client,
        pods: informers.get::<k8s_openapi::api::core::v1::Pod>(),
        claims: informers.get::<k8s_openapi::api::core::v1::PersistentVolumeClaim>(),
        device_claims: served.devices.then(|| informers.get::<k8s_openapi::api::resource::v1::ResourceClaim>()),
        nodes: informers.get::<k8s_openapi::api::core::v1::Node>(),
        extenders: extenders.into_iter().map(Arc::new).collect(),
        calls: JoinSet::new(),
        slow: JoinSet::new(),
        options,
    };
    scheduler.world.core.timing = Timing::watching();
    scheduler.world.core.snapshot.devices.served = served.devices;
    scheduler.world.core.snapshot.places_groups = served.groups;
    scheduler.world.groups.enabled = served.groups;
    scheduler.world.groups.topology = scheduler.options.topology;
    scheduler.take_all(&mut sources)?;
    cancel.run_until_cancelled(scheduler.work(&mut sources)).await.unwrap_or(Ok(()))
}

impl Scheduler {
    /// The profile of a pod that waits or was placed just now.
    fn profile_of(&self, key: &str) -> ProfileRef {
        let waiting = self.world.queue.get(key).map(|w| &w.pod);
        let pod = waiting.or_else(|| self.world.core.snapshot.pod(key).map(|p| &p.pod));
        pod.map(|p| p.spec.profile.clone()).unwrap_or_default()
    }

    fn record(&self, profile: &ProfileRef, about: &Object, kind: EventType, reason: &str, message: String) {
        let own = self.recorders.iter().find(|(of, _)| of == profile).or(self.recorders.first());
        own.into_iter().for_each(|(_, recorder)| recorder.event(&reference(about), kind, reason, message.clone()));
    }

    /// Whether no more calls may be made now.
    fn is_full(&self) -> bool {
        self.calls.len() >= self.options.calls_in_flight || self.slow.len() >= WAITING_FOR_CLAIMS
    }

    /// Takes in every change and answer that waits.
    fn take_all(&mut self, sources: &mut Sources) -> Result<(), Error> {
        let mut events = Events::default();
        let now = Instant::now();
        while let Some(next) = sources.next().now_or_never() {
            let (source, changes) = next.ok_or(Error::Stopped)?;
            self.world.take(source, changes, &mut events, now);
        }
        while let Some(answer) = self.calls.try_join_next().or_else(|| self.slow.try_join_next()) {
            self.take_answer(answer, &mut events);
        }
        events.wake(&self.world.core, &mut self.world.queue, now);
        self.world.queue.advance(now);
        self.tell_of_held(now);
        let snapshot = &self.world.core.snapshot;
        let (nodes, pods) = (snapshot.present(), snapshot.pods_placed());
        let calls = self.calls.len() + self.slow.len();
        METRICS.sizes(self.world.queue.sizes(), self.world.assumed.len(), nodes, pods, calls);
        METRICS.entities(self.world.queue.entities());
        self.world.queue.news_of_kept().into_iter().for_each(|counts| METRICS.unschedulable(counts));
        Ok(())
    }

    /// Pods that something keeps outside the queue say so after a while.
    fn tell_of_held(&mut self, now: Instant) {
        for (key, why) in self.world.held_too_long(now) {
            let Some(waiting) = self.world.queue.get(&key) else { continue };
            let (object, profile) = (waiting.object.clone(), waiting.pod.spec.profile.clone());
            self.record(&profile, &object, EventType::Warning, NOT_READY, why.clone());
            self.tell(&key, &object, NOT_READY, why, None);
        }
    }

    async fn work(&mut self, sources: &mut Sources) -> Result<(), Error> {
        loop {
            self.take_all(sources)?;
            let mut placed = 0;
            while placed < ROUND && !self.is_full() && self.try_next().await {
                placed += 1;
            }
            let full = self.is_full();
            if self.world.queue.is_ready() && !full {
                // Others share the thread.
                tokio::task::yield_now().await;
                continue;
            }
            self.wait(sources, full).await?;
        }
    }

    async fn wait(&mut self, sources: &mut Sources, full: bool) -> Result<(), Error> {
        let mut events = Events::default();
        let due = self.world.queue.next().into_iter().chain(self.world.next_to_tell()).min().filter(|_| !full);
        let sleep = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            next = sources.next() => {
                let (source, changes) = next.ok_or(Error::Stopped)?;
                self.world.take(source, changes, &mut events, Instant::now());
            }
            Some(answer) = self.calls.join_next() => self.take_answer(answer, &mut events),
            Some(answer) = self.slow.join_next() => self.take_answer(answer, &mut events),
            () = sleep => {}
        }
        events.wake(&self.world.core, &mut self.world.queue, Instant::now());
        Ok(())
    }

    /// Tries one pod; whether there was one.
    async fn try_next(&mut self) -> bool {
        let now = Instant::now();
        let Some(key) = self.world.queue.pop(now) else { return false };
        let Some(waiting) = self.world.queue.get(&key) else { return true };
        let (pod, object) = (waiting.pod.clone(), waiting.object.clone());
        if let Some(group) = pod.group.clone().filter(|_| self.world.groups.enabled)
            && let Some(needed) = self.world.groups.needs(&group).filter(|n| *n > 0)
        {
            self.place_gang(&group, &key, needed).await;
            return true;
        }
        // One more of a group goes where the others are.
        let within = pod.group.as_ref().and_then(|group| {
            let key = self.world.topology_of(group, &pod)?;
            Some((key, self.world.domain_of(group, key)?))
        });
        self.world.core.snapshot.within = within;
        let found = self.find(&pod, &object).await;
        self.world.core.snapshot.within = None;
        match found {
            Ok(id) => {
                let taken = self.take(&pod, id);
                self.send(&key, &pod, object, taken);
            }
            Err(why) => self.refuse(&key, &pod, &object, why).await,
        }
        true
    }

    /// The best node for a pod, in its extenders' view too.
    pub(crate) async fn find(&mut self, pod: &Pod, object: &Arc<Object>) -> Result<NodeId, Box<WhyNot>> {
        let start = Instant::now();
        let interested = self.interested(object);
        let found = if interested.is_empty() {
            self.world.core.schedule(pod, &mut rand::rng())
        } else {
            let extenders: Vec<&Extender> = interested.iter().map(|e| &**e).collect();
            consult::place(&mut self.world.core, &extenders, &self.nodes, pod, object).await
        };
        let how = match &found {
            Ok(_) => Attempt::Scheduled,
            Err(why) if why.fault.is_some() => Attempt::Error,
            Err(_) => Attempt::Unschedulable,
        };
        METRICS.attempt(&pod.spec.profile.scheduler_name, how, start.elapsed());
        if interested.is_empty() {
            METRICS.timing(&pod.spec.profile, &self.world.core.timing);
        }
        found
    }

    /// The extenders a pod concerns.
    fn interested(&self, object: &Object) -> Vec<Arc<Extender>> {
        self.extenders.iter().filter(|e| e.is_interested(object)).cloned().collect()
    }

    /// Takes a node for a pod, in what is known here.
    pub(crate) fn take(&mut self, pod: &Pod, id: NodeId) -> Taken {
        let start = Instant::now();
        let core = &self.world.core;
        let node = core.snapshot.node(id).name.clone();
        let steps = Steps { volumes: core.volume_steps(pod, id), devices: core.device_steps(pod, id) };
        let snapshot = &mut self.world.core.snapshot;
        volume_binding::reserve(&mut snapshot.storage, &steps.volumes, Symbol::of(&node));
        dynamic_resources::reserve(&mut snapshot.devices, &steps.devices);
        snapshot.place(pod.clone(), &node);
        METRICS.point(&pod.spec.profile.scheduler_name, Point::Reserve, Ended::Success, start.elapsed());
        Taken { node, steps }
    }

    /// Takes that back, before anything was sent.
    pub(crate) fn give_back(&mut self, pod: &Pod, taken: &Taken) {
        self.release(&pod.spec.profile, &taken.steps);
        self.world.core.snapshot.remove(&pod.key);
    }

    /// Lets go of what was reserved for a pod.
    fn release(&mut self, profile: &ProfileRef, steps: &Steps) {
        let start = Instant::now();
        let snapshot = &mut self.world.core.snapshot;
        volume_binding::release(&mut snapshot.storage, &steps.volumes);
        dynamic_resources::release(&mut snapshot.devices, &steps.devices);
        METRICS.point(&profile.scheduler_name, Point::Unreserve, Ended::Success, start.elapsed());
    }

    /// Sends a pod on its way to the node taken for it, its claims first.
    pub(crate) fn send(&mut self, key: &Arc<str>, pod: &Pod, object: Arc<Object>, taken: Taken) {
        let Taken { node, steps } = taken;
        self.world.core.nominations.set(pod, None);
        self.world.assumed.insert(key.clone(), pod.uid.clone());
        let binder = self.extenders.iter().find(|e| e.binds() && e.is_interested(&object)).cloned();
        let client = self.client.clone();
        let bind = {
            let (client, object, node) = (client.clone(), object.clone(), node.clone());
            let profile = pod.spec.profile.clone();
            async move {
                let start = Instant::now();
                let theirs = match &binder {
                    None => None,
                    Some(extender) => match extender.bind(&object, &node).await {
                        Err(why) if extender.is_ignorable() => {
                            tracing::info!("extender passed over: {why}");
                            None
                        }
                        said => Some(said),
                    },
                };
                let bound = match theirs {
                    Some(said) => said,
                    None => writes::bind(client, object, node).await.map_err(|s| of_plugin("Bind", "DefaultBinder", s)),
                };
                let ended = Ended::of(&bound, Ended::Error);
                METRICS
                    .plugin_and_point(&profile.scheduler_name, ("DefaultBinder", Point::Bind, ended, start.elapsed()));
                bound
            }
        };
        if steps.volumes.is_empty() && steps.devices.is_empty() {
            self.calls.spawn(async move { Answer::Bound { object, node, steps, result: guarded(bind).await } });
            return;
        }
        let within = pod.spec.profile.bind_timeout;
        let ready_within = pod.spec.profile.devices_ready_within;
        let profile = pod.spec.profile.clone();
        let claims =
            writes::bind_claims(client.clone(), self.claims.clone(), steps.volumes.clone(), node.clone(), within);
        let (owner, devices, expected) = (object.clone(), steps.devices.clone(), node.clone());
        let waits = self.device_claims.clone().filter(|_| devices.iter().any(|s| s.waits));
        if waits.is_some() {
            let said = format!("waiting for binding conditions for device on node {node}");
            self.record(&pod.spec.profile, &object, EventType::Normal, "BindingConditionsPending", said);
        }
        self.slow.spawn(async move {
            let all = async {
                let start = Instant::now();
                // Others may count on where it is expected, since this may take a while.
                writes::nominate(&client, &owner, &expected).await;
                claims
                    .await
                    .inspect_err(|_| METRICS.volumes_not_bound())
                    .map_err(|s| of_plugin("PreBind", "VolumeBinding", s))?;
                let reserved = writes::reserve_devices(&client, &owner, &devices).await;
                let ready = match (reserved, waits) {
                    (Ok(()), Some(claims)) => {
                        writes::await_devices(&client, &claims, &devices, ready_within, &profile.scheduler_name).await
                    }
                    (reserved, _) => reserved,
                };
                METRICS.point(
                    &profile.scheduler_name,
                    Point::PreBind,
                    Ended::of(&ready, Ended::Error),
                    start.elapsed(),
                );
                let bound = match ready {
                    Ok(()) => bind.await,
                    Err(status) => Err(of_plugin("PreBind", "DynamicResources", status)),
                };
                if bound.is_err() {
                    writes::release_devices(&client, &owner, &devices).await;
                }
                bound
            };
            let result = guarded(all).await;
            Answer::Bound { object, node, steps, result }
        });
    }

    /// No node would have the pod: room is made for it, if that can be, and it waits.
    async fn refuse(&mut self, key: &Arc<str>, pod: &Pod, object: &Arc<Object>, mut why: Box<WhyNot>) {
        if why.fault.is_some() {
            let message = why.to_string();
            self.record(&pod.spec.profile, object, EventType::Warning, "FailedScheduling", message.clone());
            self.tell(key, object, "SchedulerError", message, None);
            self.world.queue.failed(key, Instant::now());
            return;
        }
        self.let_go(pod, &mut why);
        let extenders = self.interested(object);
        let mut nominated = None;
        if why.nodes > 0 {
            let start = Instant::now();
            let plan = if extenders.iter().any(|e| e.preempts()) {
                let extenders: Vec<&Extender> = extenders.iter().map(|e| &**e).collect();
                consult::preempt(&mut self.world.core, &extenders, &self.pods, pod, object, &why).await
            } else {
                self.world.core.preempt(pod, &why, &mut rand::rng())
            };
            let ended = if plan.is_ok() { Ended::Success } else { Ended::Unschedulable };
            let took = start.elapsed();
            let run = ("DefaultPreemption", Point::PostFilter, ended, took);
            METRICS.plugin_and_point(&pod.spec.profile.scheduler_name, run);
            METRICS.preempted(Preemptor::Pod, plan.as_ref().ok().map(|plan| self.cost(plan)), took);
            match plan {
                Ok(plan) => nominated = Some(self.make_room(pod, plan)),
                Err(message) => {
                    let waits = self.world.core.nominations.node_of(key).is_some();
                    if waits && !message.starts_with("not eligible") {
                        self.world.core.nominations.set(pod, None);
                        nominated = Some("".into());
                    }
                    why.preemption = message;
                }
            }
        }
        self.give_up(key, object, &why, why.plugins(), nominated);
    }

    /// Says why a pod has to wait, and lets it wait for what changes the mind of those who refused it.
    pub(crate) fn give_up(
        &mut self,
        key: &Arc<str>,
        object: &Arc<Object>,
        why: &WhyNot,
        by: Plugins,
        nominated: Option<Arc<str>>,
    ) {
        let message = why.to_string();
        let profile = self.profile_of(key);
        self.record(&profile, object, EventType::Warning, "FailedScheduling", message.clone());
        self.tell(key, object, "Unschedulable", message, nominated);
        self.world.queue.refused(key, by);
    }

    /// Makes a call about something that is no pod; that it failed is said, and that is all.
    pub(crate) fn write_apart(
        &mut self,
        what: &'static str,
        of: &Arc<str>,
        call: impl Future<Output = Result<(), Status>> + Send + 'static,
    ) {
        let of = of.clone();
        self.calls.spawn(async move { Answer::Written { what, of, result: guarded(call).await } });
    }

    /// Lets go of a claim's devices where that may help the pod.
    fn let_go(&mut self, pod: &Pod, why: &mut WhyNot) {
        why.tell_of_devices(pod);
        let claim = why.to_let_go.as_ref().and_then(|key| self.world.core.snapshot.devices.claim(key).cloned());
        let Some((claim, object)) = claim.zip(self.world.queue.get(&pod.key).map(|w| w.object.clone())) else { return };
        let call = writes::deallocate(self.client.clone(), claim);
        self.calls.spawn(async move { Answer::Told { what: "deallocation", object, result: guarded(call).await } });
    }

    /// Removes the victims; answers the node where the pod is to go.
    fn make_room(&mut self, pod: &Pod, plan: Plan) -> Arc<str> {
        let node = self.world.core.snapshot.node(plan.node);
        let (name, symbol) = (node.name.clone(), node.symbol);
        for displaced in &plan.displaced {
            self.world.core.nominations.set(displaced, None);
            if let Some(waiting) = self.world.queue.get(&displaced.key) {
                let (object, condition) = (waiting.object.clone(), waiting.condition.clone());
                let call = writes::set_condition(
                    self.client.clone(),
                    object.clone(),
                    "PodScheduled",
                    condition,
                    false,
                    Some("".into()),
                );
                self.calls
                    .spawn(async move { Answer::Told { what: "nomination", object, result: guarded(call).await } });
            }
            self.world.queue.wake_one(&displaced.key, Instant::now());
        }
        self.world.core.nominations.set(pod, Some(symbol));
        let message = format!("{}: preempting to accommodate a higher priority pod", pod.spec.profile.scheduler_name);
        let victims = self.with_their_groups(plan.victims);
        self.remove_victims(victims, pod, Preemptor::Pod, &name, &message);
        name
    }

    fn cost(&self, plan: &Plan) -> Cost {
        let mut units: Vec<Arc<str>> = plan.victims.iter().map(|v| self.world.groups.unit_of(v).0).collect();
        units.sort_unstable();
        units.dedup();
        Cost { victims: plan.victims.len(), units: units.len(), broken_budgets: plan.broken_budgets }
    }

    /// Victims, with the rest of the groups that can be disrupted as a whole only.
    fn with_their_groups(&self, mut victims: Vec<Pod>) -> Vec<Pod> {
        let groups: Vec<Arc<str>> = victims.iter().filter_map(|v| v.group.clone()).collect();
        for group in groups.iter().filter(|g| self.world.groups.enabled && self.world.groups.about(g).whole) {
            for key in self.world.groups.placed(group) {
                if let Some(placed) =
                    self.world.core.snapshot.pod(key).filter(|_| !victims.iter().any(|v| v.key == *key))
                {
                    victims.push(placed.pod.clone());
                }
            }
        }
        victims
    }

    /// Removes pods that are in the way of another on a node.
    pub(crate) fn remove_victims(
        &mut self,
        victims: Vec<Pod>,
        pod: &Pod,
        preemptor: Preemptor,
        name: &Arc<str>,
        message: &str,
    ) {
        for victim in victims {
            // Who is on the way out already needs no push.
            let Some(object) = self.pods.get(&victim.key).filter(|o| !victim.deleting && *o.meta.uid == *victim.uid)
            else {
                continue;
            };
            let call = writes::evict(self.client.clone(), object.clone(), message.into());
            let (by, waiting, node) = (pod.uid.clone(), pod.key.clone(), name.clone());
            self.world.queue.begin_removal(&waiting);
            self.calls.spawn(async move {
                let start = Instant::now();
                let result = guarded(call).await;
                METRICS.removed(preemptor, result.is_ok(), start.elapsed());
                Answer::Evicted { victim: object, by, waiting, node, result }
            });
        }
    }

    /// Writes the pod's condition, where it is not so already.
    fn tell(
        &mut self,
        key: &Arc<str>,
        object: &Arc<Object>,
        reason: &str,
        message: String,
        nominated: Option<Arc<str>>,
    ) {
        let Some(waiting) = self.world.queue.get_mut(key) else { return };
        let condition = Condition { status: "False".into(), reason: reason.into(), message: message.into() };
        if waiting.condition == condition && nominated.is_none() {
            return;
        }
        let transition = waiting.condition.status != condition.status;
        waiting.condition = condition.clone();
        let object = object.clone();
        let call = writes::set_condition(
            self.client.clone(),
            object.clone(),
            "PodScheduled",
            condition,
            transition,
            nominated,
        );
        self.calls.spawn(async move { Answer::Told { what: "condition", object, result: guarded(call).await } });
    }

    fn take_answer(&mut self, answer: Result<Answer, tokio::task::JoinError>, events: &mut Events) {
        match answer {
            Ok(Answer::Bound { object, node, result: Ok(()), .. }) => {
                let key = object.meta.key();
                // It stays assumed until it is seen.
                let assumed = self.world.assumed.get_key_value(key.as_str()).map(|(key, _)| key.clone());
                let profile = self.profile_of(&key);
                if let Some(waiting) = assumed.and_then(|key| self.world.queue.remove(&key)) {
                    METRICS.bound(waiting.attempts, waiting.since().elapsed(), waiting.flushed);
                }
                let message = format!("Successfully assigned {key} to {node}");
                self.record(&profile, &object, EventType::Normal, "Scheduled", message);
            }
            Ok(Answer::Bound { object, node, steps, result: Err(status) }) => {
                let profile = self.profile_of(&object.meta.key());
                self.release(&profile, &steps);
                self.unplace(&object, &node, &status, events);
            }
            Ok(Answer::Evicted { victim, by, waiting, node, result: Ok(()) }) => {
                self.world.note_leaving(&victim);
                self.world.queue.end_removal(&waiting, Instant::now());
                let message = format!("Preempted by pod {by} on node {node}");
                self.record(&self.profile_of(&waiting), &victim, EventType::Normal, "Preempted", message);
            }
            Ok(Answer::Evicted { victim, waiting, result: Err(status), .. }) => {
                tracing::warn!(pod = victim.meta.key(), "not preempted: {status}");
                self.world.queue.end_removal(&waiting, Instant::now());
                if let Some(pod) = self.world.queue.get(&waiting).map(|w| w.pod.clone()) {
                    self.world.core.nominations.set(&pod, None);
                    self.world.queue.wake_one(&waiting, Instant::now());
                }
            }
            Ok(Answer::Told { what, object, result: Err(status) }) if !status.is_not_found() => {
                tracing::warn!(pod = object.meta.key(), "{what} not written: {status}");
                // What was not written must not count as written.
                if let Some(waiting) = self.world.queue.get_mut(&object.meta.key()) {
                    waiting.condition = Condition::default();
                }
            }
            Ok(Answer::Written { what, of, result: Err(status) }) => {
                tracing::warn!(of = &*of, "{what} not written: {status}");
            }
            Ok(Answer::Told { .. } | Answer::Written { .. }) => {}
            // Calls answer even when they panic (see `guarded`), so this is a task aborted at the end.
            Err(error) => tracing::error!(%error, "a call ended without an answer"),
        }
    }

    /// The binding failed: the pod is where it was before.
    fn unplace(&mut self, object: &Arc<Object>, node: &str, status: &Status, events: &mut Events) {
        let key: Arc<str> = object.meta.key().into();
        if self.world.assumed.get(&key).is_none_or(|uid| **uid != *object.meta.uid) {
            // Seen placed, or gone, meanwhile.
            return;
        }
        self.world.assumed.remove(&key);
        if let Some(placed) = self.world.core.snapshot.remove(&key) {
            if let Some(group) = placed.pod.group.as_ref().filter(|_| self.world.groups.enabled) {
                self.world.groups.join(group, &key, false);
            }
            events.push(Event::Left(placed.pod, placed.node));
        }
        let leaving = self.world.queue.get(&key).is_some_and(|w| w.pod.deleting);
        if status.is_not_found() || leaving {
            self.world.queue.remove(&key);
            return;
        }
        tracing::warn!(pod = %key, node, "not bound: {status}");
        let message = status.to_string();
        self.record(&self.profile_of(&key), object, EventType::Warning, "FailedScheduling", message.clone());
        self.tell(&key, object, "SchedulerError", message, None);
        self.world.queue.failed(&key, Instant::now());
    }
}
