//! HorizontalPodAutoscalers: asking the metrics APIs, and writing what [`crate::hpa`] makes of the answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use client::{Change, Client, Gvr, Informer, ListOptions};
use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricIdentifier, MetricSpec,
    MetricTarget,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as ApiSelector;
use meta::quantity::{Format, Quantity};
use meta::{LabelSelector, Object, Status};
use serde_json::{Value, json};

use crate::conditions::{self, Condition};
use crate::hpa::{self, Groups, History, Measured, Target};
use crate::plan::{Action, Note, Plan};
use crate::pod_facts;
use crate::pods::{self, PodView};
use crate::runner::{Ask, Controller};
use crate::{Context, decoded, status_of};

/// Seconds a measure covers when its API does not say.
const WINDOW: f64 = 60.0;

fn resource() -> Gvr {
    client::gvr_of::<HorizontalPodAutoscaler>()
}

/// What went wrong, as a condition's reason and message.
type Failure = (&'static str, String);

/// What one metric wants, its name for people, and how the status tells it.
struct Answer {
    replicas: i64,
    said: String,
    status: Value,
}

/// The target as it stands.
struct Scale {
    resource: Gvr,
    object: Arc<Object>,
    /// What it should have.
    replicas: i64,
    /// What it has.
    running: i64,
    selector: String,
}

/// Resources by API version and kind, as discovery last said.
pub type Kinds = Mutex<HashMap<(String, String), Gvr>>;

/// The resource of a kind; a kind that is not known yet is looked for anew.
pub async fn kind_of(client: &Client, kinds: &Kinds, target: &CrossVersionObjectReference) -> Result<Gvr, Status> {
    let version = target.api_version.clone().unwrap_or_else(|| "v1".into());
    let key = (version.clone(), target.kind.clone());
    let known = |kinds: &Kinds| kinds.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
    if let Some(gvr) = known(kinds) {
        return Ok(gvr);
    }
    let found = client.discover().await?;
    {
        let mut kinds = kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.clear();
        for api in found.resources {
            let group = &api.resource.group;
            let version = &api.resource.version;
            let version = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
            kinds.entry((version, api.kind)).or_insert(api.resource);
        }
    }
    known(kinds).ok_or_else(|| {
        Status::new(meta::Reason::NotFound, format!("no matches for kind {:?} in version {version:?}", target.kind))
    })
}

fn milli(text: &Value) -> Option<i64> {
    text.as_str()?.parse::<Quantity>().ok().map(|q| q.milli_value())
}

fn milli_of(quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>) -> Option<i64> {
    quantity?.0.parse::<Quantity>().ok().map(|q| q.milli_value())
}

fn written(milli: i64) -> Value {
    Quantity::from_milli(milli, Format::DecimalSi).to_string().into()
}

fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => (b as char).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

fn selector_text(selector: Option<&ApiSelector>) -> String {
    let value = selector.and_then(|s| serde_json::to_value(s).ok());
    value.and_then(|v| LabelSelector::from_value(&v).ok()).map(|s| s.to_string()).unwrap_or_default()
}

fn measured(item: &Value, milli: i64, pod: &str) -> Measured {
    let window = item["window"].as_str().and_then(|w| w.trim_end_matches('s').parse().ok());
    let window = window.or_else(|| item["windowSeconds"].as_f64()).unwrap_or(WINDOW);
    let at = item["timestamp"].as_str().and_then(client::time::parse).unwrap_or(Timestamp::MIN);
    Measured { pod: pod.into(), milli, at, window }
}

/// One autoscaler's look at the world.
struct Look<'a> {
    client: &'a Client,
    namespace: &'a str,
    spec: &'a HorizontalPodAutoscalerSpec,
    scale: &'a Scale,
    pods: Vec<PodView>,
    now: Timestamp,
}

impl Look<'_> {
    /// Use of a resource by the target's pods, of all containers or one.
    async fn resource_use(&self, name: &str, container: Option<&str>) -> Result<Vec<Measured>, Status> {
        let api = self.client.dynamic(Gvr::new("metrics.k8s.io", "v1beta1", "pods")).namespaced(self.namespace);
        let list = api.list(&ListOptions::labels(&*self.scale.selector)).await?;
        let mut out = Vec::new();
        for item in &list.items {
            let body = item.value().map_err(Status::internal)?;
            let containers = body["containers"].as_array().into_iter().flatten();
            let wanted = containers.filter(|c| container.is_none_or(|name| c["name"] == name));
            // A pod one of whose containers was not measured counts as not measured.
            let amounts: Option<Vec<i64>> = wanted.map(|c| milli(&c["usage"][name])).collect();
            if let Some(amounts) = amounts.filter(|a| !a.is_empty()) {
                out.push(measured(&body, amounts.iter().sum(), &item.meta.name));
            }
        }
        if out.is_empty() {
            let said = format!("no metrics returned from resource metrics API for {name}");
            return Err(Status::new(meta::Reason::NotFound, said));
        }
        Ok(out)
    }

    /// What a pod's containers request of a resource, or why that is not known.
    fn request(&self, pod: &PodView, name: &str, container: Option<&str>) -> Result<i64, String> {
        let all = pod.facts.shape.containers().iter().chain(pod.facts.shape.sidecars());
        let mut sum = 0;
        for each in all.filter(|c| container.is_none_or(|name| *c.name == *name)) {
            let requests = each.resources.as_ref().and_then(|r| r.requests.as_ref());
            sum += milli_of(requests.and_then(|r| r.get(name))).ok_or_else(|| {
                format!("missing request for {name} in container {} of Pod {}", each.name, pod.name())
            })?;
        }
        Ok(sum)
    }

    fn ready(&self) -> usize {
        self.pods.iter().filter(|p| p.phase() == "Running" && p.is_ready()).count()
    }

    fn groups(&self, measures: &[Measured], is_cpu: bool) -> Groups {
        hpa::group(&self.pods, measures, is_cpu, self.now)
    }

    async fn by_resource(
        &self,
        name: &str,
        container: Option<&str>,
        target: &MetricTarget,
    ) -> Result<(hpa::Proposal, bool), Failure> {
        const REASON: &str = "FailedGetResourceMetric";
        let failed = |why: String| (REASON, format!("the HPA was unable to compute the replica count: {why}"));
        let measures = self
            .resource_use(name, container)
            .await
            .map_err(|s| failed(format!("unable to get metrics for resource {name}: {}", s.message)))?;
        let groups = self.groups(&measures, name == "cpu");
        let wanted = match (target.average_utilization, milli_of(target.average_value.as_ref())) {
            (_, Some(average)) => Target::Average(average),
            (Some(percent), None) => Target::Utilization(i64::from(percent)),
            (None, None) => {
                return Err(failed(
                    "invalid resource metric source: neither a utilization target nor a value target was set".into(),
                ));
            }
        };
        let mut requests = HashMap::new();
        if matches!(wanted, Target::Utilization(_)) {
            for pod in &self.pods {
                let request = self.request(pod, name, container);
                let request = request.map_err(|why| failed(format!("failed to get {name} utilization: {why}")))?;
                requests.insert(pod.name().to_string(), request);
            }
        }
        let request = |pod: &str| requests.get(pod).copied();
        let proposal =
            hpa::by_pods(self.scale.replicas, groups, wanted, &request, hpa::tolerances(self.spec)).map_err(failed)?;
        Ok((proposal, matches!(wanted, Target::Utilization(_))))
    }

    /// Values of a custom metric; the newer version of the API first.
    async fn custom(&self, about: &str, metric: &MetricIdentifier, selector: &str) -> Result<Vec<Value>, Status> {
        let mut query = Vec::new();
        if !selector.is_empty() {
            query.push(format!("labelSelector={}", escape(selector)));
        }
        let of_metric = selector_text(metric.selector.as_ref());
        if !of_metric.is_empty() {
            query.push(format!("metricLabelSelector={}", escape(&of_metric)));
        }
        let (query, name) = (query.join("&"), escape(&metric.name));
        let mut last = None;
        for version in ["v1beta2", "v1beta1"] {
            let path =
                format!("/apis/custom.metrics.k8s.io/{version}/namespaces/{}/{about}/{name}?{query}", self.namespace);
            match self.client.get_path(&path).await {
                Ok(bytes) => {
                    let list: Value = serde_json::from_slice(&bytes).map_err(Status::internal)?;
                    return Ok(list["items"].as_array().cloned().unwrap_or_default());
                }
                Err(status) => last = Some(status),
            }
        }
        Err(last.unwrap_or_else(|| Status::internal("no version asked")))
    }

    async fn external(&self, metric: &MetricIdentifier) -> Result<i64, Status> {
        let selector = escape(&selector_text(metric.selector.as_ref()));
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/{}?labelSelector={selector}",
            self.namespace,
            escape(&metric.name)
        );
        let list: Value = serde_json::from_slice(&self.client.get_path(&path).await?).map_err(Status::internal)?;
        let items = list["items"].as_array().filter(|i| !i.is_empty());
        let items = items
            .ok_or_else(|| Status::new(meta::Reason::NotFound, "no metrics returned from external metrics API"))?;
        Ok(items.iter().filter_map(|i| milli(&i["value"])).sum())
    }

    /// A value shared by the target's pods: (replicas, what the status says of it).
    fn by_number(&self, value: i64, target: &MetricTarget) -> Result<(i64, Value), String> {
        let (current, running, tolerances) = (self.scale.replicas, self.scale.running, hpa::tolerances(self.spec));
        if let Some(average) = milli_of(target.average_value.as_ref()) {
            let mean = if running > 0 { (value + running - 1) / running } else { value };
            let replicas = hpa::by_average(current, running, value, average, tolerances);
            return Ok((replicas, json!({"averageValue": written(mean)})));
        }
        let wanted =
            milli_of(target.value.as_ref()).ok_or("neither a value target nor an average value target was set")?;
        let replicas = hpa::by_value(current, self.ready(), value, wanted, tolerances);
        Ok((replicas, json!({"value": written(value)})))
    }

    async fn answer(&self, metric: &MetricSpec) -> Result<Answer, Failure> {
        if let Some(source) = &metric.resource {
            let (found, percent) = self.by_resource(&source.name, None, &source.target).await?;
            let current = current(&found);
            let of = if percent { "utilization (percentage of request)" } else { "" };
            return Ok(Answer {
                replicas: found.replicas,
                said: format!("{} resource {of}", source.name).trim_end().into(),
                status: json!({"type": "Resource", "resource": {"name": source.name, "current": current}}),
            });
        }
        if let Some(source) = &metric.container_resource {
            let found = self.by_resource(&source.name, Some(&source.container), &source.target).await;
            let (found, percent) = found.map_err(|(_, why)| ("FailedGetContainerResourceMetric", why))?;
            let of = if percent { "utilization (percentage of request)" } else { "" };
            let status = json!({"name": source.name, "container": source.container, "current": current(&found)});
            return Ok(Answer {
                replicas: found.replicas,
                said: format!("{} container resource {of}", source.name).trim_end().into(),
                status: json!({"type": "ContainerResource", "containerResource": status}),
            });
        }
        let failed = |reason: &'static str| {
            move |why: String| (reason, format!("the HPA was unable to compute the replica count: {why}"))
        };
        if let Some(source) = &metric.pods {
            let failed = failed("FailedGetPodsMetric");
            let asked = self.custom("pods/*", &source.metric, &self.scale.selector).await;
            let items =
                asked.map_err(|s| failed(format!("unable to get metric {}: {}", source.metric.name, s.message)))?;
            let measures: Vec<Measured> = items
                .iter()
                .filter_map(|i| Some(measured(i, milli(&i["value"])?, i["describedObject"]["name"].as_str()?)))
                .collect();
            let wanted = milli_of(source.target.average_value.as_ref()).unwrap_or(1);
            let groups = self.groups(&measures, false);
            let tolerances = hpa::tolerances(self.spec);
            let found = hpa::by_pods(self.scale.replicas, groups, Target::Average(wanted), &|_| None, tolerances)
                .map_err(failed)?;
            let status = json!({"metric": source.metric, "current": current(&found)});
            return Ok(Answer {
                replicas: found.replicas,
                said: format!("pods metric {}", source.metric.name),
                status: json!({"type": "Pods", "pods": status}),
            });
        }
        if let Some(source) = &metric.object {
            let failed = failed("FailedGetObjectMetric");
            let object = &source.described_object;
            let group = object.api_version.as_deref().and_then(|v| v.split_once('/')).map(|(g, _)| g);
            // The API takes the kind's plural; kinds of this form have regular ones.
            let plural = plural(&object.kind);
            let about = match group {
                Some(group) => format!("{plural}.{group}/{}", escape(&object.name)),
                None => format!("{plural}/{}", escape(&object.name)),
            };
            let asked = self.custom(&about, &source.metric, "").await;
            let items =
                asked.map_err(|s| failed(format!("unable to get metric {}: {}", source.metric.name, s.message)))?;
            let value = items.first().and_then(|i| milli(&i["value"]));
            let value =
                value.ok_or_else(|| failed(format!("unable to get metric {}: no value", source.metric.name)))?;
            let (replicas, current) = self.by_number(value, &source.target).map_err(failed)?;
            let status = json!({"describedObject": object, "metric": source.metric, "current": current});
            return Ok(Answer {
                replicas,
                said: format!("{} metric {}", object.kind, source.metric.name),
                status: json!({"type": "Object", "object": status}),
            });
        }
        if let Some(source) = &metric.external {
            let failed = failed("FailedGetExternalMetric");
            let asked = self.external(&source.metric).await;
            let value = asked.map_err(|s| {
                failed(format!(
                    "unable to get external metric {}/{}: {}",
                    self.namespace, source.metric.name, s.message
                ))
            })?;
            let (replicas, current) = self.by_number(value, &source.target).map_err(failed)?;
            return Ok(Answer {
                replicas,
                said: format!("external metric {}", source.metric.name),
                status: json!({"type": "External", "external": {"metric": source.metric, "current": current}}),
            });
        }
        Err((
            "InvalidMetricSourceType",
            format!("the HPA was unable to compute the replica count: unknown metric source type {:?}", metric.type_),
        ))
    }
}

/// A kind's plural, as English makes it of class names.
fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    match kind.as_bytes() {
        [.., b's' | b'x'] => format!("{kind}es"),
        [rest @ .., b'y'] => format!("{}ies", String::from_utf8_lossy(rest)),
        _ => format!("{kind}s"),
    }
}

fn current(found: &hpa::Proposal) -> Value {
    let mut out = json!({"averageValue": written(found.average_milli)});
    if let Some(percent) = found.utilization {
        out["averageUtilization"] = percent.into();
    }
    out
}

/// What metrics together say: the highest of all; but when some cannot be told, nothing that scales down.
fn together(answers: Vec<Result<Answer, Failure>>, current: i64) -> (Vec<Value>, Result<(i64, String), Failure>) {
    let (mut statuses, mut best, mut failure) = (Vec::new(), None::<(i64, String)>, None);
    for answer in answers {
        match answer {
            Ok(answer) => {
                statuses.push(answer.status);
                if best.as_ref().is_none_or(|(most, _)| answer.replicas > *most) {
                    best = Some((answer.replicas, answer.said));
                }
            }
            Err(why) => failure = failure.or(Some(why)),
        }
    }
    let result = match (best, failure) {
        (None, Some(why)) => Err(why),
        (None, None) => Err(("InvalidSpec", "no metrics are named".into())),
        (Some((replicas, _)), Some(why)) if replicas < current => Err(why),
        (Some(best), _) => Ok(best),
    };
    (statuses, result)
}

/// The autoscaler's status being put together.
struct Report<'a> {
    object: &'a Object,
    status: Value,
    plan: Plan,
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
            self.plan.act(Action::status(&resource(), self.object, self.status)?);
        }
        self.plan.again_after(hpa::PERIOD);
        Ok(self.plan)
    }
}

async fn scale_of(
    client: &Client,
    kinds: &Kinds,
    namespace: &str,
    target: &CrossVersionObjectReference,
) -> Result<Scale, Status> {
    let resource = kind_of(client, kinds, target).await?;
    let object = client.dynamic(resource.clone()).namespaced(namespace).get_subresource(&target.name, "scale").await?;
    let body = object.value().map_err(Status::internal)?;
    Ok(Scale {
        resource,
        replicas: body["spec"]["replicas"].as_i64().unwrap_or(0),
        running: body["status"]["replicas"].as_i64().unwrap_or(0),
        selector: body["status"]["selector"].as_str().unwrap_or_default().into(),
        object,
    })
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

async fn reconcile(
    client: &Client,
    all_pods: &Informer,
    kinds: &Kinds,
    histories: &Mutex<HashMap<String, History>>,
    selectors: &Selectors,
    object: &Object,
    now: Timestamp,
) -> Result<Plan, Status> {
    let typed = decoded::<HorizontalPodAutoscaler>(object)?;
    let spec = &typed.spec;
    let known = status_of(object)?;
    let status = if known.is_object() { known.clone() } else { json!({}) };
    let mut report = Report { object, status, plan: Plan::nothing(), now };
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
        let look = Look { client, namespace, spec, scale: &scale, pods, now };
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
                let bounded = hpa::bound(spec, &mut history, current, proposed, now);
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

pub fn autoscaler(cx: &Context) -> Controller {
    let (autoscalers, all_pods) = (cx.informers.get::<HorizontalPodAutoscaler>(), pod_facts::informer(&cx.informers));
    let (of, of_pods, client) = (autoscalers.clone(), all_pods.clone(), cx.client.clone());
    let histories: Arc<Mutex<HashMap<String, History>>> = Arc::default();
    let selectors: Arc<Selectors> = Arc::default();
    let kinds: Arc<Kinds> = Arc::default();
    let run = move |ask: Ask| {
        let (of, of_pods, client, kinds) = (of.clone(), of_pods.clone(), client.clone(), kinds.clone());
        let (histories, selectors) = (histories.clone(), selectors.clone());
        async move {
            let Some(object) = of.get(&ask.key).filter(|o| o.meta.deletion_timestamp.is_none()) else {
                histories.lock().unwrap_or_else(PoisonError::into_inner).remove(&*ask.key);
                selectors.lock().unwrap_or_else(PoisonError::into_inner).remove(&*ask.key);
                return Ok(Plan::nothing());
            };
            reconcile(&client, &of_pods, &kinds, &histories, &selectors, &object, ask.now).await
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

    #[test]
    fn metrics_together() {
        let ok = |replicas, said: &str| Ok(Answer { replicas, said: said.into(), status: json!({}) });
        let bad = || Err(("FailedGetResourceMetric", "no".to_string()));
        for (answers, current, expect) in [
            (vec![ok(3, "a"), ok(5, "b")], 4, Ok(5)),
            (vec![ok(5, "a"), bad()], 4, Ok(5)),
            (vec![ok(3, "a"), bad()], 4, Err(())),
            (vec![bad()], 4, Err(())),
        ] {
            assert_eq!(together(answers, current).1.map(|(n, _)| n).map_err(drop), expect);
        }
    }

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

    #[test]
    fn plurals() {
        for (kind, expect) in [("Service", "services"), ("Ingress", "ingresses"), ("NetworkPolicy", "networkpolicies")]
        {
            assert_eq!(plural(kind), expect);
        }
    }
}
