//! HorizontalPodAutoscalers: when their metrics are asked ([`crate::hpa_metrics`]), and what is written of the answers
//! ([`crate::hpa`] makes replicas of them).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use client::{Change, Client, Gvr, Informer};
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use meta::{LabelSelector, Object, Status};
use serde_json::{Value, json};

use crate::conditions::{self, Condition};
use crate::hpa::{self, Autoscaling, History};
use crate::hpa_metrics::{Look, together};
use crate::plan::{Action, Note, Plan, What};
use crate::pod_facts;
use crate::pods::{self, PodView};
use crate::runner::{Ask, Controller};
use crate::scale::{Kinds, scale_of};
use crate::{Context, decoded, figures, status_of};

fn resource() -> Gvr {
    client::gvr_of::<HorizontalPodAutoscaler>()
}

/// The autoscaler's status being put together.
struct Report<'a> {
    object: &'a Object,
    status: Value,
    plan: Plan,
    settings: Autoscaling,
    now: Timestamp,
}

impl Report<'_> {
    fn set(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        conditions::update(&mut self.status, Condition { kind, status, reason, message }, self.now);
    }

    fn warn(&mut self, reason: &'static str, message: String) {
        self.plan.note(Note::warning(self.object, reason, message));
    }

    fn finish(mut self, known: &Value) -> Result<Plan, Status> {
        if self.status != *known {
            let failed = Note::warning(self.object, "FailedUpdateStatus", "{}");
            self.plan.act(Action::status(&resource(), self.object, self.status)?.failed(failed));
        }
        self.plan.again_after(self.settings.period);
        Ok(self.plan)
    }
}

/// What the targets of all autoscalers select, by the autoscaler's key.
type Selectors = Mutex<HashMap<String, LabelSelector>>;

/// Why a target's pods cannot be told, as its event, its condition's reason and both their words say.
#[derive(Debug, PartialEq)]
struct Wrong {
    event: &'static str,
    said: String,
    reason: &'static str,
    condition: String,
}

/// The pods a target selects, if no other autoscaler's target has any of them.
fn selected(all_pods: &Informer, selectors: &Selectors, object: &Object, text: &str) -> Result<Vec<PodView>, Wrong> {
    let wrong = |reason, said: String| Wrong { event: reason, condition: said.clone(), said, reason };
    if text.is_empty() {
        let condition = "the HPA target's scale is missing a selector".to_string();
        return Err(Wrong {
            condition,
            event: "SelectorRequired",
            ..wrong("InvalidSelector", "selector is required".into())
        });
    }
    let selector = LabelSelector::parse(text).map_err(|why| {
        wrong(
            "InvalidSelector",
            format!("couldn't convert selector into a corresponding internal selector object: {why}"),
        )
    })?;
    let namespace = &object.meta.namespace;
    let found = all_pods.list_selected(Some(namespace), &selector);
    let (key, inside) = (object.meta.key(), format!("{namespace}/"));
    let mut selectors = selectors.lock().unwrap_or_else(PoisonError::into_inner);
    selectors.insert(key.clone(), selector);
    let mut rivals: Vec<&String> = selectors
        .iter()
        .filter(|(other, of)| {
            other.starts_with(&inside) && (**other == key || found.iter().any(|p| of.matches(&p.meta.labels)))
        })
        .map(|(other, _)| other)
        .collect();
    if rivals.len() > 1 {
        rivals.sort();
        let rivals: Vec<&str> = rivals.into_iter().map(String::as_str).collect();
        let said = format!("pods by selector {text} are controlled by multiple HPAs: [{}]", rivals.join(" "));
        return Err(wrong("AmbiguousSelector", said));
    }
    drop(selectors);
    pods::views(found).map_err(|status| wrong("InvalidSelector", status.message))
}

async fn reconcile(memory: &Memory, object: &Object, now: Timestamp, failure: Option<&Status>) -> Result<Plan, Status> {
    let Memory { client, all_pods, kinds, histories, selectors, settings } = memory;
    let settings = *settings;
    let typed = decoded::<HorizontalPodAutoscaler>(object)?;
    let spec = &typed.spec;
    let known = status_of(object)?;
    let status = if known.is_object() { known.clone() } else { json!({}) };
    let mut report = Report { object, status, plan: Plan::nothing(), settings, now };
    report.plan.stop_at_failure = true;
    report.status["observedGeneration"] = object.meta.generation.into();
    let namespace = &*object.meta.namespace;
    let scale = match scale_of(client, kinds, namespace, &spec.scale_target_ref).await {
        Ok(scale) => scale,
        Err(status) => {
            let said = format!("the HPA controller was unable to get the target's current scale: {}", status.message);
            report.warn("FailedGetScale", status.message);
            report.set("AbleToScale", "False", "FailedGetScale", &said);
            for (field, number) in [("currentReplicas", 0), ("desiredReplicas", 0)] {
                if report.status.get(field).is_none() {
                    report.status[field] = number.into();
                }
            }
            return report.finish(&known);
        }
    };
    report.set(
        "AbleToScale",
        "True",
        "SucceededGetScale",
        "the HPA controller was able to get the target's current scale",
    );
    let (least, most) = (i64::from(spec.min_replicas.unwrap_or(1)), i64::from(spec.max_replicas));
    let current = scale.replicas;
    report.status["currentReplicas"] = scale.running.into();
    let mut history = {
        let mut histories = histories.lock().unwrap_or_else(PoisonError::into_inner);
        histories.entry(object.meta.key()).or_default().clone()
    };
    let mut wanted = current;
    let mut reason = String::new();
    if current == 0 && least != 0 {
        report.set(
            "ScalingActive",
            "False",
            "ScalingDisabled",
            "scaling is disabled since the replica count of the target is zero",
        );
    } else if current > most || current < least {
        wanted = current.clamp(least, most);
        reason = if current > most {
            "Current number of replicas above Spec.MaxReplicas"
        } else {
            "Current number of replicas below Spec.MinReplicas"
        }
        .into();
    } else {
        let pods = match selected(all_pods, selectors, object, &scale.selector) {
            Ok(pods) => pods,
            Err(wrong) => {
                report.warn(wrong.event, wrong.said.clone());
                report.warn("FailedComputeMetricsReplicas", wrong.said);
                report.set("ScalingActive", "False", wrong.reason, &wrong.condition);
                return report.finish(&known);
            }
        };
        let look = Look { client, namespace, spec, scale: &scale, pods, settings, now };
        let metrics = spec.metrics.as_deref().unwrap_or_default();
        let mut answers = Vec::with_capacity(metrics.len());
        for metric in metrics {
            answers.push(look.answer(metric).await);
        }
        let (statuses, result) = together(answers, current);
        report.status["currentMetrics"] = if statuses.is_empty() { Value::Null } else { statuses.into() };
        match result {
            Err((why, message)) => {
                report.warn(why, message.clone());
                report.warn(
                    "FailedComputeMetricsReplicas",
                    format!("invalid metrics (1 invalid out of {}), first error is: {message}", metrics.len()),
                );
                report.set("ScalingActive", "False", why, &message);
                report.status["desiredReplicas"] = report.status["desiredReplicas"].as_i64().unwrap_or(0).into();
                return report.finish(&known);
            }
            Ok((proposed, metric)) => {
                report.set(
                    "ScalingActive",
                    "True",
                    "ValidMetricFound",
                    &format!("the HPA was able to successfully calculate a replica count from {metric}"),
                );
                let bounded = hpa::bound(spec, &settings, &mut history, current, proposed, now);
                wanted = bounded.replicas;
                match bounded.stabilized {
                    Some((why, message)) => report.set("AbleToScale", "True", why, message),
                    None => {
                        report.set("AbleToScale", "True", "ReadyForNewScale", "recommended size matches current size")
                    }
                }
                match bounded.limited {
                    Some((why, message)) => report.set("ScalingLimited", "True", why, message),
                    None => report.set(
                        "ScalingLimited",
                        "False",
                        "DesiredWithinRange",
                        "the desired count is within the acceptable range",
                    ),
                }
                reason =
                    if wanted > current { format!("{metric} above target") } else { "All metrics below target".into() };
            }
        }
    }
    report.status["desiredReplicas"] = wanted.into();
    if wanted != current {
        let mut body = scale.object.value().map_err(Status::internal)?;
        body["spec"]["replicas"] = wanted.into();
        let ours = resource().resource;
        let of_target = |s: &&Status| s.details.as_ref().is_none_or(|d| d.kind != *ours);
        if let Some(why) = failure.filter(of_target) {
            // Told before it is tried again: what fails ends the plan.
            let said = format!("the HPA controller was unable to update the target scale: {}", why.message);
            report.set("AbleToScale", "False", "FailedUpdateScale", &said);
            if report.status != known {
                report.plan.act(Action::status(&resource(), object, report.status.clone())?);
                report.plan.again_after(settings.period);
                return Ok(report.plan);
            }
        }
        report.set(
            "AbleToScale",
            "True",
            "SucceededRescale",
            &format!("the HPA controller was able to update the target scale to {wanted}"),
        );
        report.status["lastScaleTime"] = client::time::rfc3339(now).into();
        let said = format!("New size: {wanted}; reason: {reason}");
        report.plan.act(
            Action::update_subresource(&scale.resource, &scale.object, "scale", body)
                .done(Note::normal(object, "SuccessfulRescale", said))
                .failed(Note::warning(
                    object,
                    "FailedRescale",
                    format!("New size: {wanted}; reason: {reason}; error: {{}}"),
                )),
        );
        history.scaled(wanted - current, now);
    }
    histories.lock().unwrap_or_else(PoisonError::into_inner).insert(object.meta.key(), history);
    report.finish(&known)
}

/// Which way a look scales, in the words of its figure.
fn action_of(plan: &Result<Plan, Status>) -> &'static str {
    let actions = plan.iter().flat_map(|p| &p.actions);
    let scaled = actions.filter_map(|a| match &a.what {
        What::Update { subresource: "scale", body, .. } => Some(body),
        _ => None,
    });
    match scaled.map(|b| b["spec"]["replicas"].as_i64() > b["status"]["replicas"].as_i64()).next() {
        None => "none",
        Some(true) => "scale_up",
        Some(false) => "scale_down",
    }
}

/// What went wrong with a look: what its spec says, or something else.
fn error_of(plan: &Result<Plan, Status>) -> &'static str {
    let told = |p: &Plan, reason: &str| p.notes.iter().any(|n| n.reason == reason);
    match plan {
        Ok(plan) if told(plan, "SelectorRequired") || told(plan, "InvalidSelector") => "spec",
        Ok(plan) if plan.notes.is_empty() => "none",
        Ok(_) | Err(_) => "internal",
    }
}

/// What looks at autoscalers need, and what they remember of each other.
struct Memory {
    client: Client,
    all_pods: Arc<Informer>,
    kinds: Kinds,
    histories: Mutex<HashMap<String, History>>,
    selectors: Selectors,
    settings: Autoscaling,
}

pub fn autoscaler(cx: &Context) -> Controller {
    let (autoscalers, all_pods) = (cx.informers.get::<HorizontalPodAutoscaler>(), pod_facts::informer(&cx.informers));
    let of = autoscalers.clone();
    let memory = Arc::new(Memory {
        client: cx.client.clone(),
        all_pods: all_pods.clone(),
        kinds: Kinds::default(),
        histories: Mutex::default(),
        selectors: Mutex::default(),
        settings: cx.options.autoscaling,
    });
    let run = move |ask: Ask| {
        let (of, memory) = (of.clone(), memory.clone());
        async move {
            let Some(object) = of.get(&ask.key).filter(|o| o.meta.deletion_timestamp.is_none()) else {
                memory.histories.lock().unwrap_or_else(PoisonError::into_inner).remove(&*ask.key);
                memory.selectors.lock().unwrap_or_else(PoisonError::into_inner).remove(&*ask.key);
                return Ok(Plan::nothing());
            };
            let plan = reconcile(&memory, &object, ask.now, ask.failure.as_deref()).await;
            let labels = [("action", action_of(&plan)), ("error", error_of(&plan))];
            figures::count("horizontal_pod_autoscaler_controller_reconciliations_total", &labels, 1);
            plan
        }
        .boxed()
    };
    Controller::with_io("horizontal-pod-autoscaler-controller", run)
        .watch(&autoscalers, |change: &Change| match (&change.old, &change.new) {
            // Its own status must not make it look again at once.
            (Some(old), Some(new)) if old.meta.generation == new.meta.generation && old.meta.uid == new.meta.uid => {
                Vec::new()
            }
            _ => vec![change.key.to_string()],
        })
        .read(&all_pods)
        .workers(cx.options.concurrency)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn targets_without_a_clear_selector_are_refused() {
        let informers = client::Informers::new(client::Client::new(crate::sim::Sim::default()));
        let pods = pod_facts::informer(&informers);
        let hpa = |name: &str| {
            let metadata = json!({"name": name, "namespace": "n", "uid": name});
            Object::from_value(
                &json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v2", "metadata": metadata}),
            )
            .unwrap()
        };
        let selectors = Selectors::default();
        let ask = |name: &str, text: &str| {
            selected(&pods, &selectors, &hpa(name), text).map(|p| p.len()).map_err(|w| (w.event, w.reason))
        };
        assert_eq!(ask("a", ""), Err(("SelectorRequired", "InvalidSelector")));
        assert_eq!(ask("a", "app in web"), Err(("InvalidSelector", "InvalidSelector")));
        assert_eq!(ask("a", "app=web"), Ok(0));
        assert_eq!(ask("b", "app=web"), Ok(0));
    }
}
