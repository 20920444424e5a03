//! Jobs as controllers: gathering the world for [`crate::job`], and deleting Jobs whose time after their end is over.

use std::sync::Arc;
use std::time::Duration;

use client::Change;
use k8s_openapi::api::batch::v1::Job;
use meta::{LabelSelector, Object};
use serde_json::Value;

use crate::job::{FINALIZER, has_finalizer, plan, strip};
use crate::owners::{self, BY_CONTROLLER, ORPHANS};
use crate::plan::{Action, Plan};
use crate::pod_facts;
use crate::pods::{self, PodView};
use crate::replicas::pods_resource;
use crate::runner::{Controller, own_key};
use crate::{Context, conditions, decoded, figures, status_of};

const OURSELVES: &str = "kubernetes.io/job-controller";
/// The index of pods nobody controls that carry our finalizer, by namespace.
const LEFT_BEHIND: &str = "left-behind";

pub fn jobs(cx: &Context) -> Controller {
    let (jobs, all_pods) = (cx.informers.get::<Job>(), pod_facts::informer(&cx.informers));
    owners::index(&all_pods);
    // By the Job's key, so that pods of a Job that is gone are found too.
    all_pods.add_index("job", |o| {
        let of_job = o.meta.controller().filter(|c| c.kind == "Job" && c.api_version.starts_with("batch/"));
        of_job.map(|c| meta::object::object_key(&o.meta.namespace, &c.name)).into_iter().collect()
    });
    // Pods nobody controls any more that still carry our finalizer.
    all_pods.add_index(LEFT_BEHIND, |o| {
        let left = o.meta.controller().is_none() && o.meta.finalizers.iter().any(|f| &**f == FINALIZER);
        left.then(|| o.meta.namespace.to_string()).into_iter().collect()
    });
    let (of, of_pods) = (jobs.clone(), all_pods.clone());
    let by_name = owners::to_controller("Job");
    let by_selector = owners::to_controllers("Job", &jobs, owners::spec_selector);
    Controller::new("job-controller", move |ask| {
        let object = of.get(&ask.key);
        let uid = object.as_ref().map(|o| o.meta.uid.clone());
        let left = of_pods
            .by_index("job", &ask.key)
            .into_iter()
            .filter(|p| p.meta.controller().map(|c| &*c.uid) != uid.as_deref());
        let (namespace, _) = meta::object::split_key(&ask.key);
        let of_nobody = of_pods.by_index(LEFT_BEHIND, namespace);
        let selectors: Vec<LabelSelector> = match of_nobody.is_empty() {
            true => Vec::new(),
            false => of.list(Some(namespace)).iter().map(|j| owners::spec_selector(j)).collect(),
        };
        let unwanted = of_nobody.into_iter().filter(|p| !selectors.iter().any(|s| s.matches(&p.meta.labels)));
        let left = pods::views(left.chain(unwanted).collect())?;
        let mut plan_of_left =
            Plan { actions: left.iter().filter(|p| has_finalizer(p)).map(strip).collect(), ..Plan::nothing() };
        let Some(object) = object else { return Ok(plan_of_left) };
        let job = decoded::<Job>(&object)?;
        let Some(spec) = &job.spec else { return Ok(plan_of_left) };
        if spec.managed_by.as_deref().is_some_and(|m| m != OURSELVES) {
            return Ok(plan_of_left);
        }
        let selector: LabelSelector = owners::spec_selector(&object);
        let owned = of_pods.by_index(BY_CONTROLLER, &object.meta.uid);
        let orphans = of_pods.by_index(ORPHANS, &object.meta.namespace);
        let manual = spec.manual_selector == Some(true);
        let claimed = owners::claim(&pods_resource(), &object, &selector, owned, orphans, |o: &Arc<Object>| {
            manual
                || o.meta.finalizers.iter().any(|f| &**f == FINALIZER)
                || PodView::new(o.clone()).is_ok_and(|p| !p.is_finished())
        });
        let views = pods::views(claimed.objects)?;
        let taken = |name: &str| of_pods.get(&meta::object::object_key(&object.meta.namespace, name)).is_some();
        let plan = plan(&object, spec, &views, &taken, ask.now)?;
        plan_of_left.actions.extend(claimed.actions);
        plan_of_left.actions.extend(plan.actions);
        Ok(Plan { actions: plan_of_left.actions, ..plan })
    })
    .watch(&jobs, |change| {
        show_progress(change);
        own_key(change)
    })
    .watch(&all_pods, move |change: &Change| {
        let mut keys = by_name(change);
        keys.extend(by_selector(change).into_iter().filter(|k| !keys.contains(k)).collect::<Vec<_>>());
        keys
    })
    .workers(cx.options.concurrency)
}

/// How a Job ended, and why.
fn ended(status: &Value) -> Option<(&'static str, String)> {
    [("Complete", "succeeded"), ("Failed", "failed")].into_iter().find_map(|(kind, result)| {
        let condition = conditions::get(status, kind).filter(|c| c["status"] == "True")?;
        Some((result, condition["reason"].as_str().unwrap_or_default().to_string()))
    })
}

/// Counts what a Job's status says that it did not say before.
fn show_progress(change: &Change) {
    let (Some(old), Some(new)) = (&change.old, &change.new) else { return };
    let (Ok(before), Ok(after), Ok(job)) = (status_of(old), status_of(new), decoded::<Job>(new)) else { return };
    let mode = job.spec.as_ref().and_then(|s| s.completion_mode.as_deref()).unwrap_or("NonIndexed");
    for result in ["succeeded", "failed"] {
        let number = |status: &Value| status[result].as_u64().unwrap_or(0);
        let more = number(&after).saturating_sub(number(&before));
        if more > 0 {
            let labels = [("completion_mode", mode), ("result", result)];
            figures::count("job_controller_job_pods_finished_total", &labels, more);
        }
    }
    if let (None, Some((result, reason))) = (ended(&before), ended(&after)) {
        let labels = [("completion_mode", mode), ("result", result), ("reason", &*reason)];
        figures::count("job_controller_jobs_finished_total", &labels, 1);
    }
}

/// Deletes finished Jobs when their time is over.
pub fn ttl_after_finished(cx: &Context) -> Controller {
    let jobs = cx.informers.get::<Job>();
    let of = jobs.clone();
    Controller::new("ttl-after-finished-controller", move |ask| {
        let mut plan = Plan::nothing();
        let Some(object) = of.get(&ask.key).filter(|o| o.meta.deletion_timestamp.is_none()) else { return Ok(plan) };
        let job = decoded::<Job>(&object)?;
        let Some(ttl) = job.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished) else { return Ok(plan) };
        let status = status_of(&object)?;
        let ended =
            ["Complete", "Failed"].iter().find_map(|c| conditions::get(&status, c).filter(|c| c["status"] == "True"));
        let Some(at) = ended.and_then(|c| conditions::time(c, "lastTransitionTime")) else { return Ok(plan) };
        let left = i64::from(ttl) - pods::seconds_between(at, ask.now);
        if left > 0 {
            plan.again_after(Duration::from_secs(left.unsigned_abs()));
        } else {
            let options = client::DeleteOptions {
                resource_version: Some(object.resource_version.to_string()),
                ..Default::default()
            };
            let options = options.propagation(client::Propagation::Foreground);
            plan.act(Action::delete_with(&client::gvr_of::<Job>(), &object, options));
        }
        Ok(plan)
    })
    .watch(&jobs, own_key)
}
