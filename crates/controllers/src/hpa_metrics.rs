//! What each metric of a HorizontalPodAutoscaler says: asking the metrics APIs, and telling the answers.
//!
//! What the numbers mean for the replicas is [`crate::hpa`]'s; when to ask, and what to write, the controller's.

use std::collections::HashMap;

use client::{Client, Gvr, ListOptions};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscalerSpec, MetricIdentifier, MetricSpec, MetricTarget};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as ApiSelector;
use meta::quantity::{Format, Quantity};
use meta::{LabelSelector, Status};
use serde_json::{Value, json};

use crate::hpa::{self, Autoscaling, Groups, Measured, Target};
use crate::pods::PodView;
use crate::scale::Scale;

/// Seconds a measure covers when its API does not say.
const WINDOW: f64 = 60.0;
/// What went wrong, as a condition's reason and message.
pub type Failure = (&'static str, String);

/// What one metric wants, its name for people, and how the status tells it.
pub struct Answer {
    pub replicas: i64,
    pub said: String,
    pub status: Value,
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
pub struct Look<'a> {
    pub client: &'a Client,
    pub namespace: &'a str,
    pub spec: &'a HorizontalPodAutoscalerSpec,
    pub scale: &'a Scale,
    pub pods: Vec<PodView>,
    pub settings: Autoscaling,
    pub now: Timestamp,
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
        hpa::group(&self.pods, measures, is_cpu, &self.settings, self.now)
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
        let proposal = hpa::by_pods(
            self.scale.replicas,
            groups,
            wanted,
            &request,
            hpa::tolerances(self.spec, self.settings.tolerance),
        )
        .map_err(failed)?;
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
        let (current, running, tolerances) =
            (self.scale.replicas, self.scale.running, hpa::tolerances(self.spec, self.settings.tolerance));
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

    /// What one metric says.
    pub async fn answer(&self, metric: &MetricSpec) -> Result<Answer, Failure> {
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
            let tolerances = hpa::tolerances(self.spec, self.settings.tolerance);
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
pub fn together(answers: Vec<Result<Answer, Failure>>, current: i64) -> (Vec<Value>, Result<(i64, String), Failure>) {
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

    #[test]
    fn plurals() {
        for (kind, expect) in [("Service", "services"), ("Ingress", "ingresses"), ("NetworkPolicy", "networkpolicies")]
        {
            assert_eq!(plural(kind), expect);
        }
    }
}
