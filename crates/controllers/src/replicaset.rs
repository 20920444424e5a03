//! ReplicaSets and ReplicationControllers: gathering the world for [`crate::replicas`].

use std::collections::BTreeMap;
use std::sync::Arc;

use client::Informer;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{PodTemplateSpec, ReplicationController};
use meta::{LabelSelector, Object, Status};

use crate::owners::{self, BY_CONTROLLER, ORPHANS};
use crate::plan::Plan;
use crate::pod_facts;
use crate::pods::{self, PodView};
use crate::replicas::{self, Set, World};
use crate::runner::{Ask, Controller, own_key};
use crate::{Context, decoded, status_of};

/// (replicas, minReadySeconds, template) of either kind's spec.
macro_rules! wanted {
    ($spec:expr) => {
        (
            i64::from($spec.replicas.unwrap_or(1)),
            $spec.min_ready_seconds.unwrap_or(0),
            $spec.template.clone().unwrap_or_default(),
        )
    };
}

fn gather(
    pods: &Informer,
    object: &Object,
    selector: &LabelSelector,
    crowd: &dyn Fn() -> BTreeMap<String, usize>,
    ask: &Ask,
    (count, min_ready_seconds, template): (i64, i32, PodTemplateSpec),
) -> Result<Plan, Status> {
    let resource = replicas::pods_resource();
    let namespace = &object.meta.namespace;
    let owned = pods.by_index(BY_CONTROLLER, &object.meta.uid);
    let orphans = pods.by_index(ORPHANS, namespace);
    let unfinished = |o: &Arc<Object>| PodView::new(o.clone()).is_ok_and(|p| !p.is_finished());
    let claimed = owners::claim(&resource, object, selector, owned, orphans, unfinished);
    let views = pods::views(claimed.objects)?;
    let status = status_of(object)?;
    let set = Set {
        resource: if &*object.kind == "ReplicaSet" {
            client::gvr_of::<ReplicaSet>()
        } else {
            client::gvr_of::<ReplicationController>()
        },
        object,
        replicas: count,
        min_ready_seconds,
        template: &template,
        status,
    };
    let taken = |name: &str| pods.get(&meta::object::object_key(namespace, name)).is_some();
    let mut plan =
        replicas::plan(&set, &World { pods: &views, crowd, taken: &taken, failure: ask.failure.as_deref() }, ask.now)?;
    plan.actions.splice(0..0, claimed.actions);
    Ok(plan)
}

/// How many pods of the ReplicaSet's kin (all sets of the same owner) run on each node.
fn kin_by_node(pods: &Informer, sets: &Informer, object: &Object) -> BTreeMap<String, usize> {
    let mut kin = vec![object.meta.uid.to_string()];
    if let Some(owner) = object.meta.controller() {
        kin = sets.by_index(BY_CONTROLLER, &owner.uid).iter().map(|s| s.meta.uid.to_string()).collect();
    }
    let mut crowd = BTreeMap::new();
    for uid in kin {
        for pod in pods::views(pods.by_index(BY_CONTROLLER, &uid)).unwrap_or_default() {
            if pod.is_active() && !pod.node().is_empty() {
                *crowd.entry(pod.node().to_string()).or_insert(0) += 1;
            }
        }
    }
    crowd
}

pub fn replica_sets(cx: &Context) -> Controller {
    let (sets, pods) = (cx.informers.get::<ReplicaSet>(), pod_facts::informer(&cx.informers));
    owners::index(&sets);
    owners::index(&pods);
    let (of_sets, of_pods) = (sets.clone(), pods.clone());
    Controller::new("replicaset-controller", move |ask| {
        let Some(object) = of_sets.get(&ask.key) else { return Ok(Plan::nothing()) };
        let set = decoded::<ReplicaSet>(&object)?;
        let spec = &set.spec;
        let selector = owners::spec_selector(&object);
        let crowd = || kin_by_node(&of_pods, &of_sets, &object);
        gather(&of_pods, &object, &selector, &crowd, &ask, wanted!(spec))
    })
    .watch(&sets, own_key)
    .watch(&pods, owners::to_controllers("ReplicaSet", &sets, owners::spec_selector))
}

/// A ReplicationController's selector is a plain map, and its template's labels stand in for a missing one.
fn map_selector(object: &Object) -> LabelSelector {
    let Ok(controller) = object.typed::<ReplicationController>() else { return LabelSelector::nothing() };
    let Some(spec) = &controller.spec else { return LabelSelector::nothing() };
    let template_labels = || spec.template.as_ref()?.metadata.as_ref()?.labels.as_ref();
    match spec.selector.as_ref().filter(|s| !s.is_empty()).or_else(template_labels) {
        Some(map) if !map.is_empty() => LabelSelector::from_map(map.iter().map(|(k, v)| (k.as_str(), v.as_str()))),
        _ => LabelSelector::nothing(),
    }
}

pub fn replication_controllers(cx: &Context) -> Controller {
    let (sets, pods) = (cx.informers.get::<ReplicationController>(), pod_facts::informer(&cx.informers));
    owners::index(&pods);
    let (of_sets, of_pods) = (sets.clone(), pods.clone());
    Controller::new("replicationcontroller-controller", move |ask| {
        let Some(object) = of_sets.get(&ask.key) else { return Ok(Plan::nothing()) };
        let set = decoded::<ReplicationController>(&object)?;
        let Some(spec) = &set.spec else { return Ok(Plan::nothing()) };
        gather(&of_pods, &object, &map_selector(&object), &BTreeMap::new, &ask, wanted!(spec))
    })
    .watch(&sets, own_key)
    .watch(&pods, owners::to_controllers("ReplicationController", &sets, map_selector))
}
