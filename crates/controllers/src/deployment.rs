//! Deployments: gathering the world for [`crate::rollout`].

use client::Change;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use meta::Object;

use crate::owners::{self, BY_CONTROLLER, ORPHANS};
use crate::plan::Plan;
use crate::pod_facts;
use crate::pods;
use crate::rollout::{self, Set, World};
use crate::runner::{Controller, own_key};
use crate::{Context, decoded};

pub fn deployments(cx: &Context) -> Controller {
    let deployments = cx.informers.get::<Deployment>();
    let (sets, all_pods) = (cx.informers.get::<ReplicaSet>(), pod_facts::informer(&cx.informers));
    owners::index(&sets);
    owners::index(&all_pods);
    let (of, of_sets, of_pods) = (deployments.clone(), sets.clone(), all_pods.clone());
    let reconcile = move |ask: crate::runner::Ask| {
        let Some(object) = of.get(&ask.key) else { return Ok(Plan::nothing()) };
        let deployment = decoded::<Deployment>(&object)?;
        let selector = owners::spec_selector(&object);
        let owned = of_sets.by_index(BY_CONTROLLER, &object.meta.uid);
        let orphans = of_sets.by_index(ORPHANS, &object.meta.namespace);
        let resource = client::gvr_of::<ReplicaSet>();
        let claimed = owners::claim(&resource, &object, &selector, owned, orphans, |_| !selector.is_everything());
        if !claimed.actions.is_empty() {
            // Adopted sets are written again by the rollout; it comes when they are ours.
            return Ok(Plan { actions: claimed.actions, ..Plan::nothing() });
        }
        let uids: Vec<String> = claimed.objects.iter().map(|s| s.meta.uid.to_string()).collect();
        let sets = claimed.objects.into_iter().map(Set::new).collect::<Result<_, _>>()?;
        let (running, named) = (of_pods.clone(), of_sets.clone());
        let namespace = object.meta.namespace.to_string();
        let world = World {
            sets,
            old_pods_running: Box::new(move |new| {
                let others = uids.iter().filter(|uid| Some(uid.as_str()) != new);
                let unfinished =
                    |o: &std::sync::Arc<Object>| pods::PodView::new(o.clone()).is_ok_and(|p| !p.is_finished());
                others.flat_map(|uid| running.by_index(BY_CONTROLLER, uid)).any(|o| unfinished(&o))
            }),
            named: Box::new(move |name| named.get(&meta::object::object_key(&namespace, name)).is_some()),
            failure: ask.failure.clone(),
        };
        rollout::plan(&object, &deployment, world, ask.now)
    };
    let (recreated, parents) = (deployments.clone(), sets.clone());
    // Pods matter only to Recreate, which waits for the last old one to go.
    let from_pod = move |change: &Change| {
        let (Some(old), None) = (&change.old, &change.new) else { return Vec::new() };
        let Some(set) = old.meta.controller().filter(|c| c.kind == "ReplicaSet") else { return Vec::new() };
        let set = parents.get(&meta::object::object_key(&old.meta.namespace, &set.name));
        let Some(owner) = set.as_ref().and_then(|s| s.meta.controller()) else { return Vec::new() };
        let key = meta::object::object_key(&old.meta.namespace, &owner.name);
        let recreate = |o: std::sync::Arc<Object>| {
            let deployment = o.typed::<Deployment>().ok()?;
            let strategy = deployment.spec.strategy.as_ref()?.type_.clone();
            (strategy.as_deref() == Some("Recreate")).then_some(())
        };
        recreated.get(&key).and_then(recreate).map(|()| key).into_iter().collect()
    };
    Controller::new("deployment-controller", reconcile)
        .watch(&deployments, own_key)
        .watch(&sets, owners::to_controllers("Deployment", &deployments, owners::spec_selector))
        .watch(&all_pods, from_pod)
}
