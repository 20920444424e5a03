//! Keeps a PodGroup until its pods are done: it is what tells the scheduler how they belong together.

use std::sync::Arc;

use client::Change;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use meta::{Object, Status};

use crate::Context;
use crate::plan::Plan;
use crate::pod_facts::{self, facts};
use crate::pods::{self, PodView};
use crate::runner::{Controller, own_key};
use crate::volumes::finalizer;

const PROTECTION: &str = "scheduling.k8s.io/podgroup-protection";
/// The index of pods by their group.
const BY_GROUP: &str = "group";

/// The key of the group a pod says it belongs to.
fn group_of(pod: &Object) -> Option<String> {
    let facts = facts(pod)?;
    let name = facts.shape.scheduling_group.as_ref()?.pod_group_name.as_deref()?;
    Some(meta::object::object_key(&pod.meta.namespace, name))
}

/// A group is held while any of its pods has not ended.
fn plan(group: &Object, pods: &[PodView]) -> Result<Plan, Status> {
    let used = pods.iter().any(|p| !p.is_finished());
    // One that nothing uses yet keeps what it has: it may have been given at creation.
    if !used && group.meta.deletion_timestamp.is_none() {
        return Ok(Plan::nothing());
    }
    let action = finalizer(&client::gvr_of::<PodGroup>(), group, PROTECTION, used)?;
    Ok(Plan { actions: action.into_iter().collect(), ..Plan::nothing() })
}

pub fn pod_group_protection(cx: &Context) -> Controller {
    let (groups, all_pods) = (cx.informers.get::<PodGroup>(), pod_facts::informer(&cx.informers));
    all_pods.add_index(BY_GROUP, |pod| group_of(pod).into_iter().collect());
    let (of, of_pods) = (groups.clone(), all_pods.clone());
    Controller::new("podgroup-protection-controller", move |ask| {
        let Some(group) = of.get(&ask.key) else { return Ok(Plan::nothing()) };
        plan(&group, &pods::views(of_pods.by_index(BY_GROUP, &ask.key))?)
    })
    .watch(&groups, own_key)
    .watch(&all_pods, |change: &Change| {
        // A pod that goes on as before makes no difference.
        let state = |o: &Arc<Object>| Some((o.meta.uid.clone(), PodView::new(o.clone()).ok()?.is_finished()));
        match (&change.old, &change.new) {
            (Some(old), Some(new)) if state(old) == state(new) => Vec::new(),
            (old, new) => [old, new].into_iter().flatten().filter_map(|o| group_of(o)).collect(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn groups_stay_as_long_as_their_pods_run() {
        let pod = |phase: &str| {
            let body = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p", "namespace": "n", "uid": "u"},
                "spec": {"schedulingGroup": {"podGroupName": "g"}}, "status": {"phase": phase}});
            Arc::new(Object::from_value(&body).unwrap())
        };
        assert_eq!(group_of(&pod("Running")).as_deref(), Some("n/g"));
        for (has, leaving, phases, expect) in [
            (false, false, &["Pending"][..], Some(true)),
            (true, false, &["Running", "Succeeded"], None),
            (true, false, &["Succeeded"], None),
            (false, false, &[], None),
            (true, true, &["Running"], None),
            (true, true, &["Failed", "Succeeded"], Some(false)),
            (true, true, &[], Some(false)),
            (false, true, &["Running"], None),
        ] {
            let mut body = json!({"kind": "PodGroup", "apiVersion": "scheduling.k8s.io/v1beta1",
                "metadata": {"name": "g", "namespace": "n", "uid": "g", "resourceVersion": "3"}});
            if has {
                body["metadata"]["finalizers"] = json!([PROTECTION]);
            }
            if leaving {
                body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            let group = Object::from_value(&body).unwrap();
            let views = pods::views(phases.iter().map(|p| pod(p)).collect()).unwrap();
            let plan = plan(&group, &views).unwrap();
            let written = plan.actions.first().map(|a| match &a.what {
                crate::plan::What::Update { body, .. } => body["metadata"]["finalizers"] == json!([PROTECTION]),
                other => panic!("{other:?}"),
            });
            assert_eq!(written, expect, "{has} {leaving} {phases:?}");
        }
    }
}
